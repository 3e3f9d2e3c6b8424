//! Pooling against its scalar twins: random geometry, strides and options on every instruction set.

mod common;

use common::{Strided, bits, in_pools, last, quickcheck, wave, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::machine;
use tilewise::pool::{AveragePool, LpPool, MaxPool, NO_ELEMENT};
use tilewise::random::Rng;
use tilewise::reference::pool::{self as reference, Axis};
use tilewise::{Element, ImageRank, Spatial, Tensor, TensorView};

/// How windows lie over an image of `S` axes.
#[derive(Clone, Copy, Debug)]
enum Windows<const S: usize> {
    Sliding {
        kernel: [usize; S],
        stride: [usize; S],
        dilation: [usize; S],
        padding: [[usize; 2]; S],
        ceil: bool,
    },
    Adaptive([usize; S]),
    Global,
}

impl<const S: usize> Windows<S> {
    fn random(g: &mut Gen) -> Self {
        match u8::arbitrary(g) % 8 {
            0 => Self::Adaptive(std::array::from_fn(|_| within(g, 1..7))),
            1 => Self::Global,
            2 | 3 => Self::Sliding {
                kernel: [3; S],
                stride: [2; S],
                dilation: [1; S],
                padding: [[1; 2]; S],
                ceil: bool::arbitrary(g),
            },
            _ => Self::Sliding {
                kernel: std::array::from_fn(|_| within(g, 1..5)),
                stride: std::array::from_fn(|_| within(g, 1..5)),
                dilation: std::array::from_fn(|_| 1 + within(g, 0..4) / 2),
                padding: std::array::from_fn(|_| [within(g, 0..4), within(g, 0..4)]),
                ceil: bool::arbitrary(g),
            },
        }
    }

    fn axes(&self, image: &[usize]) -> Vec<Axis> {
        let axis = |(i, &size): (usize, &usize)| match *self {
            Self::Sliding { kernel, stride, dilation, padding, ceil } => {
                reference::sliding(size, kernel[i], stride[i], dilation[i], padding[i], ceil)
            }
            Self::Adaptive(outputs) => reference::adaptive(size, outputs[i]),
            Self::Global => reference::adaptive(size, 1),
        };
        image.iter().enumerate().map(axis).collect()
    }
}

macro_rules! descriptor {
    ($windows:expr, $Pool:ident $(, $p:expr)?) => {
        match $windows {
            Windows::Sliding { kernel, stride, dilation, padding, ceil } => $Pool::new(kernel $(, $p)?)
                .stride(stride)
                .dilation(dilation)
                .padding_sides(padding)
                .ceil(ceil),
            Windows::Adaptive(outputs) => $Pool::adaptive(outputs $(, $p)?),
            Windows::Global => $Pool::global($($p)?),
        }
    };
}

#[derive(Clone, Debug)]
struct Case<T, const S: usize, const N: usize> {
    windows: Windows<S>,
    x: Strided<T, N>,
    count_include_pad: bool,
    p: f64,
    seed: u64,
}

impl<T: Element, const S: usize, const N: usize> Arbitrary for Case<T, S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let most = [0, 70, 20, 9][S];
        let mut shape: [usize; N] = std::array::from_fn(|_| within(g, 1..most));
        shape[0] = within(g, 0..4);
        shape[1] = *g.choose(&[0, 1, 2, 3, 5, 8, 16, 17, 33]).expect("some");
        if u8::arbitrary(g).is_multiple_of(16) {
            shape[N - 1] = 0;
        }
        let mut x: Strided<T, N> = Strided::random(g, shape);
        for element in &mut x.data {
            // Equal values, to see which comes first.
            if bool::arbitrary(g) && element.to_f64().abs() < 4.0 {
                *element = T::from_f64((element.to_f64() * 2.0).round() / 2.0);
            }
        }
        let p = *g.choose(&[1.0, 2.0, 3.0, 1.5]).expect("some");
        let (count_include_pad, seed) = (bool::arbitrary(g), u64::arbitrary(g));
        Self { windows: Windows::random(g), x, count_include_pad, p, seed }
    }
}

/// A buffer of this shape for a result, its elements NaN.
fn output<T: Element, const N: usize>(seed: u64, shape: [usize; N]) -> Strided<T, N> {
    let mut strided = Strided::random(&mut Gen::from_size_and_seed(64, seed), shape);
    strided.view_mut().fill(T::NAN);
    strided
}

#[track_caller]
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    bound: &Tensor<f64, N>,
    factor: f64,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for ((&found, &expected), &bound) in found.iter().zip(expected).zip(bound) {
        let (found, bound) = (found.to_f64(), factor * T::EPSILON.to_f64() * bound);
        let close =
            (found - expected).abs() <= bound || found == expected || (found.is_nan() && expected.is_nan());
        assert!(close, "{what}: {found} instead of {expected}, within {bound:e}");
    }
}

fn check<T: Element, const S: usize, const N: usize>(case: Case<T, S, N>) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    let (x, shape) = (case.x.view(), case.x.shape);
    let image: [usize; S] = std::array::from_fn(|axis| shape[2 + axis]);
    let max = descriptor!(case.windows, MaxPool);
    let average = descriptor!(case.windows, AveragePool).count_include_pad(case.count_include_pad);
    let lp = descriptor!(case.windows, LpPool, case.p);
    let empty = image.contains(&0) && !matches!(case.windows, Windows::Sliding { .. });
    let axes = if empty { Vec::new() } else { case.windows.axes(&image) };
    if empty || axes.iter().any(Vec::is_empty) {
        assert!(max.forward(x).is_err() && average.forward(x).is_err() && lp.forward(x).is_err());
        return true;
    }
    let (y, places) = reference::maximum(x, &axes).unwrap();
    let outputs = y.shape();
    assert_eq!(max.output_shape(shape).unwrap(), outputs);
    let mut absolute = x.to_tensor().unwrap();
    absolute.as_mut_slice().iter_mut().for_each(|x| *x = x.abs());
    let volume: usize = axes.iter().map(|axis| axis.iter().map(Vec::len).max().unwrap_or(0)).product();
    let factor = volume as f64 + 8.0;
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            // Maximum.
            let mut found = output::<T, N>(case.seed, outputs);
            max.forward_into(x, found.view_mut()).unwrap();
            near("max", found.view(), &y, &y, 0.0);
            assert!(found.canaries_live());
            let mut found = output::<T, N>(case.seed ^ 1, outputs);
            let mut indices = Tensor::full(outputs, 7).unwrap();
            max.forward_with_indices_into(x, found.view_mut(), indices.view_mut()).unwrap();
            near("max with indices", found.view(), &y, &y, 0.0);
            assert_eq!(indices.as_slice(), places.as_slice(), "{isa}");
            let dy = Tensor::from_fn(outputs, |at| {
                let mix = at.iter().fold(case.seed as usize % 97, |mix, at| mix.wrapping_mul(31) + at);
                T::from_f64((mix % 64) as f64 / 16.0 - 2.0)
            })
            .unwrap();
            let mut dx = output::<T, N>(case.seed ^ 3, shape);
            max.backward_into(dy.view(), indices.view(), dx.view_mut()).unwrap();
            let expected = reference::maximum_backward(dy.view(), places.view(), shape).unwrap();
            // Multiples of 1/16: sums are exact.
            near("max backward", dx.view(), &expected, &expected, 0.0);
            assert!(dx.canaries_live());

            // Average.
            let include = case.count_include_pad;
            let mut found = output::<T, N>(case.seed ^ 4, outputs);
            average.forward_into(x, found.view_mut()).unwrap();
            let expected = reference::average(x, &axes, include).unwrap();
            let size = reference::average(absolute.view(), &axes, include).unwrap();
            near("average", found.view(), &expected, &size, factor);
            assert!(found.canaries_live());
            let mut dx = output::<T, N>(case.seed ^ 5, shape);
            average.backward_into(dy.view(), dx.view_mut()).unwrap();
            let expected = reference::average_backward(dy.view(), &axes, include, shape).unwrap();
            let mut size = dy.view().to_tensor().unwrap();
            size.as_mut_slice().iter_mut().for_each(|x| *x = x.abs());
            let size = reference::average_backward(size.view(), &axes, include, shape).unwrap();
            near("average backward", dx.view(), &expected, &size, factor);
            assert!(dx.canaries_live());

            // Norm.
            let mut found = output::<T, N>(case.seed ^ 6, outputs);
            lp.forward_into(x, found.view_mut()).unwrap();
            let expected = reference::norm(x, &axes, case.p).unwrap();
            near("norm", found.view(), &expected, &expected, 4.0 * factor);
            assert!(found.canaries_live());
            let mut dx = output::<T, N>(case.seed ^ 7, shape);
            lp.backward_into(x, found.view(), dy.view(), dx.view_mut()).unwrap();
            let size = Tensor::from_fn(outputs, |at| dy.get(at).unwrap().abs()).unwrap();
            let size = reference::norm_backward(absolute.view(), size.view(), &axes, case.p).unwrap();
            let expected = reference::norm_backward(x, dy.view(), &axes, case.p).unwrap();
            near("norm backward", dx.view(), &expected, &size, 16.0 * factor);
            assert!(dx.canaries_live());
        })
        .unwrap();
    }
    true
}

#[test]
fn one_axis_equals_the_reference() {
    quickcheck(200, check::<f32, 1, 3> as fn(Case<f32, 1, 3>) -> bool);
    quickcheck(100, check::<f64, 1, 3> as fn(Case<f64, 1, 3>) -> bool);
}

#[test]
fn two_axes_equal_the_reference() {
    quickcheck(300, check::<f32, 2, 4> as fn(Case<f32, 2, 4>) -> bool);
    quickcheck(150, check::<f64, 2, 4> as fn(Case<f64, 2, 4>) -> bool);
}

#[test]
fn three_axes_equal_the_reference() {
    quickcheck(100, check::<f32, 3, 5> as fn(Case<f32, 3, 5>) -> bool);
    quickcheck(50, check::<f64, 3, 5> as fn(Case<f64, 3, 5>) -> bool);
}

#[test]
fn nan_propagates_and_the_first_maximum_wins() {
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    let image = [1.0, 3.0, 3.0, 0.0, nan, 9.0, 9.0, nan, low, low, low, low];
    let x = Tensor::from_fn([2, 40, 3, 4], |[_, _, h, w]| image[4 * h + w]).unwrap();
    let turned = last(&x);
    let pool = MaxPool::<2>::new([1, 2]).stride([1, 1]).padding([0, 1]);
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            for x in [x.view(), turned.view().permute([0, 3, 1, 2]).unwrap()] {
                let (y, indices) = pool.forward_with_indices(x).unwrap();
                let plain = pool.forward(x).unwrap();
                assert_eq!(bits(plain.as_slice()), bits(y.as_slice()));
                let y: Vec<f32> = y.iter().copied().take(15).collect();
                let expected = [1.0, 3.0, 3.0, 3.0, 0.0, nan, nan, 9.0, nan, nan, low, low, low, low, low];
                assert_eq!(bits(&y), bits(&expected), "{isa}");
                let places = [0, 1, 1, 2, 3, 4, 4, 5, 7, 7, 8, 8, 9, 10, 11];
                assert!(indices.as_slice().chunks(15).all(|indices| indices == places), "{isa} {indices:?}");
            }
        })
        .unwrap();
    }
}

#[test]
fn same_padding_gives_a_window_for_each_step() {
    for size in 1..9usize {
        let x = Tensor::<f64, 3>::from_fn([1, 1, size], |[_, _, i]| (i * i % 7) as f64).unwrap();
        for (kernel, stride, dilation) in
            [(1, 1, 1), (2, 1, 1), (3, 2, 1), (2, 3, 2), (5, 2, 1), (4, 1, 3), (1, 4, 1)]
        {
            let windows = size.div_ceil(stride);
            let all = ((windows - 1) * stride + dilation * (kernel - 1) + 1).saturating_sub(size);
            let pool = AveragePool::<1>::new([kernel]).stride([stride]).dilation([dilation]);
            for (same, less) in [(pool.same(), true), (pool.same_lower(), false)] {
                let before = if less { all / 2 } else { all - all / 2 };
                let expected = pool.padding_sides([[before, all - before]]).forward(x.view()).unwrap();
                assert!(same.forward(x.view()).unwrap() == expected);
                assert_eq!(expected.shape(), [1, 1, windows]);
            }
        }
    }
}

#[test]
fn a_window_in_the_padding_has_no_element() {
    let x = Tensor::<f64, 3>::full([1, 1, 2], 5.0).unwrap();
    let max = MaxPool::<1>::new([2]).padding([2]);
    let (y, indices) = max.forward_with_indices(x.view()).unwrap();
    assert_eq!(y.as_slice(), [f64::NEG_INFINITY, 5.0, f64::NEG_INFINITY]);
    assert_eq!(indices.as_slice(), [NO_ELEMENT, 0, NO_ELEMENT]);
    assert_eq!(max.backward(y.view(), indices.view(), [2]).unwrap().as_slice(), [5.0, 0.0]);
    let average = AveragePool::<1>::new([2]).padding([2]).count_include_pad(false);
    assert_eq!(average.forward(x.view()).unwrap().as_slice(), [0.0, 5.0, 0.0]);
}

#[test]
fn gradients_are_central_differences() {
    let mut x = wave::<f64, 4>([2, 3, 7, 6], 0.0);
    let (average, lp) = (
        AveragePool::<2>::new([3, 2]).stride([2, 1]).padding([1, 1]).count_include_pad(false),
        LpPool::<2>::new([2, 3], 3.0).dilation([2, 1]),
    );
    let max = MaxPool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
    let check =
        |forward: &dyn Fn(&Tensor<f64, 4>) -> Tensor<f64, 4>, dx: &Tensor<f64, 4>, x: &mut Tensor<f64, 4>| {
            // L = Σ R ⊙ Y.
            let r = wave(forward(x).shape(), 0.0);
            let loss =
                |x: &Tensor<f64, 4>| forward(x).iter().zip(&r).map(|(y, r): (&f64, &f64)| y * r).sum::<f64>();
            let h = 1e-6;
            for i in 0..x.len() {
                let [high, low] = [h, -h].map(|h| {
                    x.as_mut_slice()[i] += h;
                    let loss = loss(x);
                    x.as_mut_slice()[i] -= h;
                    loss
                });
                let difference = (high - low) / (2.0 * h);
                assert!((difference - dx.as_slice()[i]).abs() < 1e-7, "{difference} {}", dx.as_slice()[i]);
            }
        };
    let r = wave(average.output_shape(x.shape()).unwrap(), 0.0);
    check(&|x| average.forward(x.view()).unwrap(), &average.backward(r.view(), [7, 6]).unwrap(), &mut x);
    let y = lp.forward(x.view()).unwrap();
    let dx = lp.backward(x.view(), y.view(), wave(y.shape(), 0.0).view()).unwrap();
    check(&|x| lp.forward(x.view()).unwrap(), &dx, &mut x);
    let (y, indices) = max.forward_with_indices(x.view()).unwrap();
    let dx = max.backward(wave(y.shape(), 0.0).view(), indices.view(), [7, 6]).unwrap();
    check(&|x| max.forward(x.view()).unwrap(), &dx, &mut x);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for shape in [[4, 9, 61, 77], [1, 64, 80, 40]] {
        let x = wave::<f32, 4>(shape, 0.0);
        let turned = last(&x);
        for x in [x.view(), turned.view().permute([0, 3, 1, 2]).unwrap()] {
            let results = in_pools(|| {
                let max = MaxPool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
                let average = AveragePool::<2>::new([3, 3]).stride([2, 2]).padding([1, 1]);
                let lp = LpPool::<2>::new([2, 2], 2.0);
                let (y, indices) = max.forward_with_indices(x).unwrap();
                let norm = lp.forward(x).unwrap();
                let image = [shape[2], shape[3]];
                let mut dx = turned.view().to_tensor().unwrap();
                average.backward_into(y.view(), dx.view_mut().permute([0, 3, 1, 2]).unwrap()).unwrap();
                let results = [
                    max.forward(x).unwrap(),
                    max.backward(y.view(), indices.view(), image).unwrap(),
                    average.forward(x).unwrap(),
                    average.backward(y.view(), image).unwrap(),
                    lp.backward(x, norm.view(), norm.view()).unwrap(),
                    dx,
                    norm,
                    y,
                ];
                (results.map(|tensor| bits(tensor.as_slice())), indices.as_slice().to_vec())
            });
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }
}

/// Planes that are one window each, of more elements than a task has.
#[test]
fn any_number_of_threads_gives_the_same_bits_of_whole_planes() {
    for shape in [[4, 300, 7, 9], [1, 1037, 7, 7], [3, 2, 150, 111]] {
        let x = wave::<f32, 4>(shape, 0.0);
        let results = in_pools(|| {
            let results = [
                MaxPool::<2>::global().forward(x.view()),
                AveragePool::<2>::global().forward(x.view()),
                LpPool::<2>::global(3.0).forward(x.view()),
            ];
            results.map(|y| bits(y.unwrap().as_slice()))
        });
        assert!(results.iter().all(|result| *result == results[0]), "{shape:?}");
        let [.., height, width] = shape;
        let windows = [AveragePool::<2>::new([height, width]), AveragePool::adaptive([1, 1])];
        for pool in windows {
            assert_eq!(bits(pool.forward(x.view()).unwrap().as_slice()), results[0][1], "{shape:?}");
        }
    }
}

/// Planes of about a vector, and of about four; of whole numbers, so that sums are exact.
fn check_whole_planes<T: Element>() {
    let mut rng = Rng::seed(3);
    for len in [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 49, 63, 64, 65, 127, 129, 300] {
        for channels in [1, 2, 8, 15, 16, 17, 35] {
            // Some elements between planes belong to none.
            let stored =
                Tensor::from_fn([2, channels, len + 3], |_| T::from_f64(rng.below(41) as f64 - 50.0));
            let mut stored = stored.unwrap();
            let missing = [0, channels - 1, len - 1];
            *stored.get_mut(missing).unwrap() = T::NAN;
            let x = stored.view().slice(2, 0..len, 1).unwrap();
            let max = MaxPool::<1>::global().forward(x).unwrap();
            let average = AveragePool::<1>::global().forward(x).unwrap();
            let norms = [1.0, 2.0].map(|p| LpPool::<1>::global(p).forward(x).unwrap());
            for image in 0..2 {
                for channel in 0..channels {
                    let plane = x.select::<2>(0, image).unwrap().select::<1>(0, channel).unwrap();
                    let found =
                        [&max, &average, &norms[0], &norms[1]].map(|y| y.get([image, channel, 0]).unwrap());
                    if [image, channel] == missing[..2] {
                        assert!(found.iter().all(|y| y.is_nan()), "{len} {channels}: {found:?}");
                        continue;
                    }
                    let x = || plane.iter().map(|x| x.to_f64());
                    let sum: f64 = x().sum();
                    let expected = [
                        x().fold(f64::NEG_INFINITY, f64::max),
                        sum / len as f64,
                        -sum,
                        x().map(|x| x * x).sum::<f64>().sqrt(),
                    ];
                    for (&found, expected) in found.iter().zip(expected) {
                        let error = (found.to_f64() - expected).abs();
                        assert!(
                            error <= T::EPSILON.to_f64() * expected.abs(),
                            "{len} {channels}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn whole_planes_are_windows() {
    for &isa in machine::supported() {
        machine::with_isa(isa, check_whole_planes::<f32>).unwrap();
        machine::with_isa(isa, check_whole_planes::<f64>).unwrap();
    }
}

#[test]
fn long_rows_are_cut_in_blocks() {
    let x = wave::<f32, 3>([2, 3, 30_011], 0.0);
    for (kernel, stride, dilation) in [(3, 2, 1), (5, 1, 1), (4, 3, 2), (9, 7, 1), (700, 300, 1)] {
        let axes = [reference::sliding(30_011, kernel, stride, dilation, [1, 1], false)];
        let max = MaxPool::<1>::new([kernel]).stride([stride]).dilation([dilation]).padding([1]);
        let (y, indices) = reference::maximum(x.view(), &axes).unwrap();
        near("max", max.forward(x.view()).unwrap().view(), &y, &y, 0.0);
        let (found, places) = max.forward_with_indices(x.view()).unwrap();
        near("max", found.view(), &y, &y, 0.0);
        assert_eq!(places, indices);
    }
}

#[test]
fn hostile_sizes_are_errors_or_small() {
    let x = Tensor::<f32, 3>::full([1, 2, 3], 1.0).unwrap();
    let huge = usize::MAX / 8;
    // Two windows, a world of padding between them and the image.
    let pool = MaxPool::<1>::new([2]).dilation([huge]).stride([huge]).padding([huge]);
    let (y, indices) = pool.forward_with_indices(x.view()).unwrap();
    assert_eq!(y.as_slice()[0], 1.0);
    assert_eq!(indices.as_slice()[0], 0);
    let average = AveragePool::<1>::new([2]).dilation([huge]).stride([huge]).padding([huge]);
    let y = average.forward(x.view()).unwrap();
    assert_eq!(y.as_slice()[0], 0.5);
    average.backward(y.view(), [3]).unwrap();
    MaxPool::<1>::new([1]).stride([huge]).padding([huge]).forward(x.view()).unwrap();
    MaxPool::<1>::new([huge]).stride([huge]).padding([huge]).forward(x.view()).unwrap();
    for pool in [
        MaxPool::<1>::new([usize::MAX]).padding([usize::MAX / 2]),
        MaxPool::<1>::new([2]).dilation([usize::MAX]),
        MaxPool::<1>::new([1]).padding([usize::MAX]),
        MaxPool::<1>::new([1]).stride([1]).padding([huge]),
    ] {
        assert!(pool.forward(x.view()).is_err());
    }
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let x = Tensor::<f32, 4>::full([1, 2, 5, 5], 1.0).unwrap();
    let mut y = Tensor::<f32, 4>::full([1, 2, 3, 2], 7.0).unwrap();
    let text = |result: tilewise::Result<()>| result.unwrap_err().to_string();
    let max = MaxPool::<2>::new([2, 2]);
    let cases = [
        (
            text(max.forward_into(x.view(), y.view_mut())),
            "MaxPool::forward_into: y has shape [1, 2, 3, 2], expected [1, 2, 2, 2]",
        ),
        (
            text(MaxPool::<2>::new([6, 2]).forward(x.view()).map(|_| ())),
            "MaxPool::forward: kernel (dilated) has shape [6, 2], expected [5, 5]",
        ),
        (
            text(max.stride([0, 1]).forward(x.view()).map(|_| ())),
            "MaxPool::forward: stride is [0, 1], expected sizes of at least 1",
        ),
        (
            text(AveragePool::<2>::new([0, 1]).forward(x.view()).map(|_| ())),
            "AveragePool::forward: kernel is [0, 1], expected sizes of at least 1",
        ),
        (
            text(LpPool::<2>::new([2, 2], 0.5).forward(x.view()).map(|_| ())),
            "LpPool::forward: p is 0.5, expected at least 1 and finite as an element",
        ),
        (
            text(AveragePool::<2>::new([2, 2]).backward(x.view(), [5, 5]).map(|_| ())),
            "AveragePool::backward: dy has shape [1, 2, 5, 5], expected [1, 2, 2, 2]",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    // A p that `f32` has, one that only `f64` has, and one that neither has.
    let lp = |p| LpPool::<2>::new([2, 2], p);
    let wide = Tensor::<f64, 4>::full([1, 2, 5, 5], 1.0).unwrap();
    assert!(lp(3e38).forward(x.view()).unwrap().iter().all(|&y| y == 1.0));
    assert!(lp(1e39).forward(wide.view()).unwrap().iter().all(|&y| y == 1.0));
    assert!(
        text(lp(1e39).forward(x.view()).map(|_| ()))
            .ends_with("expected at least 1 and finite as an element")
    );
    assert!(lp(f64::INFINITY).forward(wide.view()).is_err());
    assert!(y.iter().all(|&y| y == 7.0));
    let (y, mut indices) = max.forward_with_indices(x.view()).unwrap();
    *indices.get_mut([0, 1, 1, 1]).unwrap() = 25;
    let mut dx = Tensor::full([1, 2, 5, 5], 7.0).unwrap();
    assert_eq!(
        text(max.backward_into(y.view(), indices.view(), dx.view_mut())),
        "MaxPool::backward_into: an index is 25, expected a place inside the image"
    );
    assert!(dx.iter().all(|&dx| dx == 7.0));
}
