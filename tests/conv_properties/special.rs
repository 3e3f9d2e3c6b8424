//! What is not a number or infinite: a sum that has it shows it, on every path.

use tilewise::conv::{Algorithm, Chain, Convolution, Link};
use tilewise::reference::conv::{self as reference, Geometry};
use tilewise::{Element, Tensor, TensorView, machine};

use super::common::{ALGORITHMS, last, turned, wave};

/// Batch, channels in and out, groups, size, kernel, stride, padding, dilation: some for each path of `conv`'s table.
const LAYERS: [[usize; 9]; 28] = [
    // Single taps: rows of patches, batched, with a stride, in groups.
    [2, 20, 33, 1, 9, 1, 1, 1, 1],
    [1, 20, 16, 1, 10, 1, 2, 2, 1],
    [1, 16, 16, 4, 12, 1, 1, 1, 1],
    // Implicit: few channels, ragged ones, padding beyond the kernel, dilation, deep.
    [1, 3, 4, 1, 9, 3, 1, 1, 1],
    [1, 5, 70, 1, 7, 3, 1, 4, 2],
    [1, 6, 80, 1, 12, 3, 1, 2, 2],
    [1, 130, 66, 1, 4, 5, 1, 2, 1],
    // Output channels as lanes.
    [1, 3, 64, 1, 28, 7, 2, 3, 1],
    [1, 12, 32, 1, 28, 3, 1, 1, 1],
    [1, 10, 48, 1, 14, 5, 1, 2, 1],
    [1, 3, 16, 1, 31, 3, 2, 1, 1],
    // Weights turned in the call, where channels lie last.
    [1, 16, 72, 1, 47, 3, 2, 1, 1],
    [1, 8, 80, 1, 23, 3, 1, 2, 1],
    // Winograd's, whole tiles and cut ones.
    [1, 24, 32, 1, 28, 3, 1, 1, 1],
    [1, 32, 24, 1, 15, 3, 1, 1, 1],
    [1, 48, 48, 2, 14, 3, 1, 1, 1],
    // Depthwise: from a copy, in place, with a multiplier.
    [2, 8, 8, 8, 14, 3, 1, 1, 1],
    [1, 24, 24, 24, 28, 3, 1, 1, 1],
    [1, 19, 19, 19, 29, 3, 2, 1, 1],
    [1, 12, 36, 12, 10, 5, 1, 2, 1],
    [1, 33, 33, 33, 12, 3, 1, 2, 2],
    // Small groups.
    [1, 16, 16, 8, 14, 3, 1, 1, 1],
    [1, 32, 32, 8, 14, 3, 1, 1, 1],
    [1, 32, 32, 8, 15, 5, 2, 2, 1],
    [1, 32, 32, 4, 14, 3, 1, 1, 1],
    [1, 64, 64, 4, 15, 3, 2, 1, 1],
    [1, 12, 20, 4, 9, 3, 1, 1, 1],
    // Images as lanes.
    [14, 4, 8, 1, 9, 3, 2, 1, 1],
];

/// Fails where an element that is infinite or no number by the reference is not so; where `exact`, also where another one is.
fn agrees<T: Element>(y: TensorView<'_, T, 4>, expected: &Tensor<f64, 4>, exact: bool, what: &str) {
    assert_eq!(y.shape(), expected.shape());
    for (at, (y, expected)) in y.iter().zip(expected).enumerate() {
        let kept = if expected.is_nan() { y.is_nan() } else { y.is_finite() == expected.is_finite() };
        assert!(kept || !exact && expected.is_finite(), "{what}: {y} at {at} instead of {expected}");
    }
}

/// Hands `each` what every way of calling this layer gives, with its name.
fn each_way<T: Element>(
    conv: Convolution<2>,
    x: &Tensor<T, 4>,
    w: TensorView<'_, T, 4>,
    each: &mut dyn FnMut(&str, TensorView<'_, T, 4>),
) {
    let ones = Tensor::full([x.shape()[1], 1, 1, 1], T::ONE).unwrap();
    let copies = Convolution::<2>::new().groups(x.shape()[1]);
    let copied = copies.pack(ones.view()).unwrap();
    let [n, c, height, width] = conv.output_shape(x.shape(), w.shape()).unwrap();
    let (x_last, mut y_last) = (last(x), Tensor::full([n, height, width, c], T::ONE).unwrap());
    let winograd = w.shape()[2] == 3 && height == x.shape()[2];
    for &algorithm in &ALGORITHMS[..if winograd { 5 } else { 2 }] {
        let conv = conv.algorithm(algorithm);
        let packed = [conv.pack(w).unwrap(), conv.pack_channels_last(w).unwrap()];
        for (name, packed) in [("view", None), ("packed", Some(&packed[0])), ("for NHWC", Some(&packed[1]))] {
            let name = format!("{algorithm:?}, {name}");
            let planes = match packed {
                Some(packed) => conv.forward(x.view(), packed, None),
                None => conv.forward(x.view(), w, None),
            };
            each(&format!("{name}, NCHW"), planes.unwrap().view());
            y_last.view_mut().fill(T::ONE);
            let y = y_last.view_mut().permute([0, 3, 1, 2]).unwrap();
            match packed {
                Some(packed) => conv.forward_into(turned(&x_last), packed, None, y),
                None => conv.forward_into(turned(&x_last), w, None, y),
            }
            .unwrap();
            each(&format!("{name}, NHWC"), turned(&y_last));
            // The padding is then of what lies between.
            if let (Some(packed), Algorithm::Auto | Algorithm::Winograd2) = (packed, algorithm) {
                let chain = Chain::new([Link::new(copies, &copied, None), Link::new(conv, packed, None)]);
                each(&format!("{name}, chain"), chain.forward(x.view()).unwrap().view());
                y_last.view_mut().fill(T::ONE);
                let y = y_last.view_mut().permute([0, 3, 1, 2]).unwrap();
                chain.forward_into(turned(&x_last), y).unwrap();
                each(&format!("{name}, chain, NHWC"), turned(&y_last));
            }
        }
    }
}

/// A weight that is infinite or no number, also times the zeros of the padding; a pixel that is no number.
#[test]
fn not_a_number_is_never_lost() {
    fn check<T: Element>() {
        for layer in LAYERS {
            let [n, c_in, c_out, groups, size, kernel, stride, padding, dilation] = layer;
            let conv = Convolution::<2>::new().groups(groups).stride([stride; 2]);
            let conv = conv.padding([padding; 2]).dilation([dilation; 2]);
            let (stride, padding, dilation) = ([stride; 2], [[padding; 2]; 2], [dilation; 2]);
            let geometry = Geometry { stride, padding, dilation, groups, flipped: false };
            let mut x = wave::<T, 4>([n, c_in, size, size], 0.1);
            let mut w = wave::<T, 4>([c_out, c_in / groups, kernel, kernel], 0.2);
            let each = |x: &Tensor<T, 4>, w: &Tensor<T, 4>, bad: &str| {
                let expected = reference::forward(&geometry, x.view(), w.view(), None).unwrap();
                assert!(expected.iter().any(|y| y.is_nan()), "{layer:?}, {bad}: no case");
                for &isa in machine::supported() {
                    let mut each = |way: &str, y: TensorView<'_, T, 4>| {
                        // Pixels share Winograd's tiles; weights of different outputs share nothing.
                        let exact = bad != "pixel" || way.starts_with("ImplicitGemm");
                        let what = format!("{layer:?}, bad {bad}, {}, {isa}, {way}", T::NAME);
                        agrees(y, &expected, exact, &what);
                    };
                    machine::with_isa(isa, || each_way(conv, x, w.view(), &mut each)).unwrap();
                }
            };
            // The first and the last tap of all meet the padding, whatever the stride.
            let end = w.as_slice().len() - 1;
            for (name, at, bad) in [("first", 0, T::INFINITY), ("last", end, T::NAN)] {
                let good = std::mem::replace(&mut w.as_mut_slice()[at], bad);
                each(&x, &w, name);
                w.as_mut_slice()[at] = good;
            }
            x.as_mut_slice()[0] = T::NAN;
            each(&x, &w, "pixel");
        }
    }
    check::<f32>();
    check::<f64>();
}
