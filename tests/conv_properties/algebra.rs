//! The algebra of true convolution.

use quickcheck::{Arbitrary, Gen};
use tilewise::conv::Convolution;
use tilewise::{ImageRank, Spatial, Tensor, TensorView};

use super::common::{quickcheck, within};
use super::{wave, whole};

/// True convolution of two signals in full mode, which has no favourite among them.
fn full<const S: usize, const N: usize>(f: &Tensor<f32, N>, g: &Tensor<f32, N>) -> Tensor<f32, N>
where
    Spatial<S>: ImageRank<N>,
{
    Convolution::<S>::new().flipped(true).full().forward(f.view(), g.view(), None).unwrap()
}

#[derive(Clone, Debug)]
struct Signals {
    lengths: [usize; 6],
    seed: u64,
}

impl Arbitrary for Signals {
    fn arbitrary(g: &mut Gen) -> Self {
        let lengths = std::array::from_fn(|_| within(g, 1..24));
        Self { lengths, seed: u64::arbitrary(g) }
    }
}

#[test]
fn true_convolution_commutes_and_associates() {
    fn check(Signals { lengths: [a, b, c, d, e, f], seed }: Signals) -> bool {
        let g = &mut Gen::from_size_and_seed(100, seed);
        let (x, y, z) = (whole(g, [1, 1, a]), whole(g, [1, 1, b]), whole(g, [1, 1, c]));
        let plane = |g: &mut Gen, h, w| whole(g, [1, 1, h, w]);
        let (p, q) = (plane(g, a, d), plane(g, e, f));
        full::<1, 3>(&x, &y) == full::<1, 3>(&y, &x)
            && full::<1, 3>(&full::<1, 3>(&x, &y), &z) == full::<1, 3>(&x, &full::<1, 3>(&y, &z))
            && full::<2, 4>(&p, &q) == full::<2, 4>(&q, &p)
    }
    quickcheck(300, check as fn(Signals) -> bool);
}

/// D(f ∗ g) = (D f) ∗ g = f ∗ (D g), with D the differences of a sequence that is 0 outside.
#[test]
fn true_convolution_differentiates_either_factor() {
    fn difference(f: &Tensor<f32, 3>) -> Tensor<f32, 3> {
        let at = |i: usize| f.as_slice().get(i).copied().unwrap_or(0.0);
        Tensor::from_fn([1, 1, f.len() + 1], |[_, _, i]| at(i) - if i == 0 { 0.0 } else { at(i - 1) })
            .unwrap()
    }
    fn check(Signals { lengths: [a, b, ..], seed }: Signals) -> bool {
        let g = &mut Gen::from_size_and_seed(100, seed);
        let (f, k) = (whole(g, [1, 1, a]), whole(g, [1, 1, b]));
        let whole = difference(&full::<1, 3>(&f, &k));
        let step = Tensor::from_slice(&[1.0, -1.0], [1, 1, 2]).unwrap();
        whole == full::<1, 3>(&difference(&f), &k)
            && whole == full::<1, 3>(&f, &difference(&k))
            && difference(&f) == full::<1, 3>(&f, &step)
    }
    quickcheck(300, check as fn(Signals) -> bool);
}

/// yₜ = Σₖ wₖ xₜ₋ₖ by hand; "same" and "valid" are the middle of "full".
#[test]
fn modes_of_true_convolution_are_parts_of_the_full_one() {
    let x = TensorView::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [1, 1, 4]).unwrap();
    let w = TensorView::from_slice(&[1.0, 10.0, 100.0], [1, 1, 3]).unwrap();
    let conv = Convolution::<1>::new().flipped(true);
    let y = |conv: Convolution<1>| conv.forward(x, w, None).unwrap().as_slice().to_vec();
    assert_eq!(y(conv.full()), [1.0, 12.0, 123.0, 234.0, 340.0, 400.0]);
    assert_eq!(y(conv.same()), [12.0, 123.0, 234.0, 340.0]);
    assert_eq!(y(conv), [123.0, 234.0]);
    // Two taps: the middle is not symmetric, and the later sample is given, as signal processing has it.
    let w = TensorView::from_slice(&[1.0, 10.0], [1, 1, 2]).unwrap();
    let y = |conv: Convolution<1>| conv.forward(x, w, None).unwrap().as_slice().to_vec();
    assert_eq!(y(conv.full()), [1.0, 12.0, 23.0, 34.0, 40.0]);
    assert_eq!(y(conv.same()), [1.0, 12.0, 23.0, 34.0]);

    fn check(Signals { lengths: [h, w, kh, kw, stride, dilation], seed }: Signals) -> bool {
        let g = &mut Gen::from_size_and_seed(100, seed);
        let (kh, kw, stride, dilation) = (kh % 6 + 1, kw % 6 + 1, stride % 3 + 1, dilation % 3 + 1);
        let (x, k) = (whole(g, [2, 3, h, w]), whole(g, [4, 3, kh, kw]));
        for flipped in [false, true] {
            let conv = Convolution::<2>::new().flipped(flipped).dilation([dilation; 2]);
            let (x, k) = (x.view(), k.view());
            let extent = [dilation * (kh - 1), dilation * (kw - 1)];
            let full = conv.full().forward(x, k, None).unwrap();
            assert!(full == conv.padding(extent).forward(x, k, None).unwrap());
            let same = conv.same().stride([stride; 2]).forward(x, k, None).unwrap();
            assert_eq!(same.shape(), [2, 4, h.div_ceil(stride), w.div_ceil(stride)]);
            let lower = conv.same_lower().stride([stride; 2]).forward(x, k, None).unwrap();
            assert_eq!(lower.shape(), same.shape());
            if stride == 1 {
                // All of full but what is cut at both ends, the odd one at the start or the end.
                for (part, first) in [(&same, !flipped), (&lower, flipped)] {
                    let cut = extent.map(|e| if first { e - e / 2 } else { e / 2 });
                    let middle = full.view().slice(2, cut[0]..cut[0] + h, 1).unwrap();
                    assert!(middle.slice(3, cut[1]..cut[1] + w, 1).unwrap() == part.view());
                }
            }
        }
        true
    }
    quickcheck(200, check as fn(Signals) -> bool);
}

#[test]
fn a_turned_kernel_is_a_view_with_negative_strides() {
    let (x, w) = (wave::<f32, 4>([2, 6, 17, 19], 0.1), wave::<f32, 4>([9, 3, 3, 4], 0.2));
    let conv = Convolution::<2>::new().padding([1, 2]).stride([2, 1]).groups(2);
    let turned = w.view().flip(2).unwrap().flip(3).unwrap();
    let w9 = w.view().slice(0, ..8, 1).unwrap();
    let turned = turned.slice(0, ..8, 1).unwrap();
    let y = conv.flipped(true).forward(x.view(), w9, None).unwrap();
    assert!(y == conv.forward(x.view(), turned, None).unwrap());
    let dx = conv.flipped(true).backward_input(y.view(), w9, [17, 19]).unwrap();
    assert!(dx == conv.backward_input(y.view(), turned, [17, 19]).unwrap());
    let dw = conv.flipped(true).backward_weight(x.view(), y.view(), [3, 4]).unwrap();
    let plain = conv.backward_weight(x.view(), y.view(), [3, 4]).unwrap();
    assert!(dw.view() == plain.view().flip(2).unwrap().flip(3).unwrap());
}
