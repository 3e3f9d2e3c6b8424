//! Attention: of many queries, forward and back; of one, over a cache.

use tilewise::attention::{Align, Attention, AttentionGradientsMut, KvCache};
use tilewise::{Element, Tensor};

use super::{Measure, matrix};

pub fn calls<T: Element>(call: &mut Measure) {
    for [heads, kv_heads, queries, keys, dim] in [[4, 2, 70, 90, 24], [3, 3, 40, 40, 17], [8, 2, 1, 300, 32]]
    {
        let of =
            |heads, length| matrix::<T>([2 * heads * length, dim]).reshape([2, heads, length, dim]).unwrap();
        let (q, k, v) = (of(heads, queries), of(kv_heads, keys), of(kv_heads, keys));
        let (mut y, mut normalizer) =
            (of(heads, queries), Tensor::<T, 3>::zeros([2, heads, queries]).unwrap());
        let bias = Tensor::<T, 4>::zeros([1, 1, queries, keys]).unwrap();
        let plain = Attention::new().causal(Align::End);
        for (name, options) in
            [("attention", plain), ("attention with bias", plain.bias(bias.view()).soft_cap(T::ONE))]
        {
            let name = format!("{name}, {queries} of {keys}, {dim}");
            call(&name, &mut || options.forward_into(q.view(), k.view(), v.view(), y.view_mut()).unwrap());
            let (mut dq, mut dk, mut dv, mut d_bias) = (
                of(heads, queries),
                of(kv_heads, keys),
                of(kv_heads, keys),
                Tensor::zeros(bias.shape()).unwrap(),
            );
            call(&format!("{name}, backward"), &mut || {
                let (q, k, v) = (q.view(), k.view(), v.view());
                options.forward_saving_into(q, k, v, y.view_mut(), normalizer.view_mut()).unwrap();
                let gradients = AttentionGradientsMut {
                    query: Some(dq.view_mut()),
                    key: Some(dk.view_mut()),
                    value: Some(dv.view_mut()),
                    bias: name.contains("bias").then(|| d_bias.view_mut()),
                };
                options.backward_into(q, k, v, y.view(), normalizer.view(), q, gradients).unwrap();
            });
        }
        let mut cache = KvCache::<T>::new([2, kv_heads], keys, [dim, dim]).unwrap();
        call("cache", &mut || {
            cache.truncate(0).unwrap();
            cache.append(k.view(), v.view()).unwrap();
            let (k, v) = (cache.keys().unwrap(), cache.values().unwrap());
            plain.forward_into(q.view(), k, v, y.view_mut()).unwrap();
        });
    }
}
