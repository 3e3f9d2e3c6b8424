//! A decoder-only transformer: blocks of causal attention, with rotary positions, and gated feed-forward parts.

use tilewise::activation::Activation;
use tilewise::attention::{Align, KvCache};
use tilewise::layer::{
    FeedForward, Layer, MultiHeadAttention, NormOrder, Parameter, Parameters, RmsNorm, Rotary,
    TransformerBlock,
};
use tilewise::random::Rng;
use tilewise::{Tensor, TensorView};

use crate::model::Options;

/// Angles of positions are multiples of powers of it.
const BASE: f64 = 10_000.0;

pub struct Decoder {
    blocks: Vec<TransformerBlock<f32>>,
    norm: RmsNorm<f32, 3>,
}

impl Decoder {
    pub fn new(options: &Options, seed: u64, rng: &mut Rng) -> tilewise::Result<Self> {
        let width = options.hidden;
        let block = |number: u64| {
            let rotary = Rotary::new(width / options.heads.max(1), options.context, BASE)?;
            let attention = MultiHeadAttention::new(width, options.heads, rng)?;
            let attention = attention.causal(Align::Start).rotary(rotary);
            let feed_forward = FeedForward::gated(width, 2 * width, Activation::Silu, rng)?;
            let norms: [Box<dyn Layer<f32, 3, 3> + Send + Sync>; 2] =
                [Box::new(RmsNorm::new(width)?), Box::new(RmsNorm::new(width)?)];
            let block = TransformerBlock::from_parts(attention, feed_forward, norms, NormOrder::Pre);
            block.dropout(options.dropout, seed.wrapping_add(number))
        };
        let blocks = (0..options.layers as u64).map(block).collect::<tilewise::Result<_>>()?;
        Ok(Self { blocks, norm: RmsNorm::new(width)? })
    }

    /// Empty caches for [`decode`](Self::decode), one for each block.
    pub fn caches(&self, capacity: usize) -> tilewise::Result<Vec<KvCache<f32>>> {
        self.blocks.iter().map(|block| block.cache(1, capacity)).collect()
    }

    /// What comes after the characters in the caches, `[1, n, width]`, which are appended to them.
    pub fn decode(
        &self,
        x: TensorView<'_, f32, 3>,
        caches: &mut [KvCache<f32>],
    ) -> tilewise::Result<Tensor<f32, 3>> {
        let mut x = x.to_tensor()?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            x = block.decode(x.view(), cache)?;
        }
        self.norm.infer(x.view())
    }
}

/// `[time, batch, width]` as `[batch, time, width]` and back.
fn turned(x: TensorView<'_, f32, 3>) -> tilewise::Result<Tensor<f32, 3>> {
    x.permute([1, 0, 2])?.to_tensor()
}

impl Parameters<f32> for Decoder {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        for (number, block) in self.blocks.iter().enumerate() {
            block.visit(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.norm.visit(&mut |name, parameter| f(&format!("norm.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        for (number, block) in self.blocks.iter_mut().enumerate() {
            block.visit_mut(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.norm.visit_mut(&mut |name, parameter| f(&format!("norm.{name}"), parameter));
    }
}

/// Takes and gives `[time, batch, width]`.
impl Layer<f32, 3, 3> for Decoder {
    fn check_forward(&self, [time, batch, width]: [usize; 3]) -> tilewise::Result<[usize; 3]> {
        let x = self.blocks.iter().try_fold([batch, time, width], |x, block| block.check_forward(x))?;
        let [batch, time, width] = self.norm.check_forward(x)?;
        Ok([time, batch, width])
    }

    fn check_backward(&self, [time, batch, width]: [usize; 3]) -> tilewise::Result<[usize; 3]> {
        let d = self.norm.check_backward([batch, time, width])?;
        let d = self.blocks.iter().rev().try_fold(d, |d, block| block.check_backward(d))?;
        Ok([d[1], d[0], d[2]])
    }

    fn forward(&mut self, x: TensorView<'_, f32, 3>) -> tilewise::Result<Tensor<f32, 3>> {
        self.check_forward(x.shape())?;
        let mut x = turned(x)?;
        for block in &mut self.blocks {
            x = block.forward(x.view())?;
        }
        turned(self.norm.forward(x.view())?.view())
    }

    fn infer(&self, x: TensorView<'_, f32, 3>) -> tilewise::Result<Tensor<f32, 3>> {
        let mut x = turned(x)?;
        for block in &self.blocks {
            x = block.infer(x.view())?;
        }
        turned(self.norm.infer(x.view())?.view())
    }

    fn backward(&mut self, dy: TensorView<'_, f32, 3>) -> tilewise::Result<Tensor<f32, 3>> {
        self.check_backward(dy.shape())?;
        let mut d = self.norm.backward(turned(dy)?.view())?;
        for block in self.blocks.iter_mut().rev() {
            d = block.backward(d.view())?;
        }
        turned(d.view())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Net;

    #[test]
    fn character_by_character_is_as_all_at_once() {
        let options =
            Options { net: Net::Transformer, hidden: 16, layers: 2, heads: 4, context: 8, dropout: 0.5 };
        let decoder = Decoder::new(&options, 1, &mut Rng::seed(1)).unwrap();
        let x = Tensor::from_fn([8, 1, 16], |[t, _, d]| ((t * 5 + d * 3) % 7) as f32 / 7.0).unwrap();
        let all = decoder.infer(x.view()).unwrap();
        let mut caches = decoder.caches(8).unwrap();
        for range in [0..3, 3..4, 4..8] {
            let part = x.view().slice(0, range.clone(), 1).unwrap().permute([1, 0, 2]).unwrap();
            let y = decoder.decode(part, &mut caches).unwrap();
            let expected = all.view().slice(0, range, 1).unwrap().permute([1, 0, 2]).unwrap();
            assert!(y.view().all_close(expected, 1e-4, 1e-4));
        }
    }
}
