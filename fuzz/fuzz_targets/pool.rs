//! Pooling with any numbers for options, over views of any strides, on every instruction set, against the scalar twins.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the elements
//! of outputs hold canaries.
#![no_main]

mod support;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use support::{Lie, Number, Stored, Values, WORK, near, small, too_large, with_some_isa};
use tilewise::pool::{AveragePool, LpPool, MaxPool};
use tilewise::reference::pool::{self as reference, Axis};
use tilewise::{Element, ImageRank, Spatial, Tensor};

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    axes: u8,
    double: bool,
    isa: u8,
    batch: u8,
    channels: u8,
    image: [u8; 3],
    kernel: [Number; 3],
    stride: Option<[Number; 3]>,
    dilation: [Number; 3],
    padding: [[Number; 2]; 3],
    ceil: bool,
    /// Adaptive, or global where false.
    adaptive: Option<bool>,
    count_include_pad: bool,
    p: u8,
    special: u8,
    lies: [Lie; 3],
    seed: u32,
}

fuzz_target!(|input: Input| {
    match (input.axes % 3, input.double) {
        (0, false) => run::<f32, 1, 3>(&input),
        (1, false) => run::<f32, 2, 4>(&input),
        (2, false) => run::<f32, 3, 5>(&input),
        (0, true) => run::<f64, 1, 3>(&input),
        (1, true) => run::<f64, 2, 4>(&input),
        _ => run::<f64, 3, 5>(&input),
    }
});

fn run<T: Element, const S: usize, const N: usize>(input: &Input)
where
    Spatial<S>: ImageRank<N>,
{
    with_some_isa(input.isa, || check::<T, S, N>(input));
}

fn check<T: Element, const S: usize, const N: usize>(input: &Input)
where
    Spatial<S>: ImageRank<N>,
{
    let take = |numbers: [Number; 3]| std::array::from_fn::<_, S, _>(|axis| numbers[axis].0);
    let sizes: [usize; S] = std::array::from_fn(|axis| usize::from(input.image[axis] % [40, 12, 7][S - 1]));
    let channels = usize::from(input.channels % 20);
    let shape: [usize; N] = std::array::from_fn(|axis| match axis {
        0 => usize::from(input.batch % 3),
        1 => channels,
        _ => sizes[axis - 2],
    });
    let mut values = Values::seed(input.seed);
    let x = Stored::<T, N>::new(shape, Stored::<T, N>::nested(shape, input.lies[0]), || {
        let bits = values.bits();
        if input.special > 128 && bits >> 58 == 0 {
            return [T::NAN, T::INFINITY, T::NEG_INFINITY][(bits >> 8) as usize % 3];
        }
        // Equal ones are wanted.
        T::from_f64((bits >> 40 & 31) as f64 / 4.0 - 4.0)
    });

    let (kernel, dilation) = (take(input.kernel), take(input.dilation));
    let stride = input.stride.map_or(kernel, take);
    let padding: [[usize; 2]; S] = std::array::from_fn(|axis| input.padding[axis].map(|side| side.0));
    let p = [1.0, 2.0, 3.0][usize::from(input.p % 3)];
    let (max, average, lp) = match input.adaptive {
        None => (
            MaxPool::new(kernel).stride(stride).dilation(dilation).padding_sides(padding).ceil(input.ceil),
            AveragePool::new(kernel)
                .stride(stride)
                .dilation(dilation)
                .padding_sides(padding)
                .ceil(input.ceil),
            LpPool::new(kernel, p).stride(stride).dilation(dilation).padding_sides(padding).ceil(input.ceil),
        ),
        Some(true) => (MaxPool::adaptive(kernel), AveragePool::adaptive(kernel), LpPool::adaptive(kernel, p)),
        Some(false) => (MaxPool::global(), AveragePool::global(), LpPool::global(p)),
    };
    let average = average.count_include_pad(input.count_include_pad);
    // What the twins, which list every tap, can hold.
    let numbers = || kernel.iter().chain(&stride).chain(&dilation);
    let good = input.adaptive.is_some() || numbers().all(|&size| size > 0);
    let listed = good
        && (input.adaptive == Some(false) || numbers().chain(padding.as_flattened()).all(|&size| size <= 64));
    let axes: Vec<Axis> = (0..if listed { S } else { 0 })
        .map(|axis| match input.adaptive {
            None => reference::sliding(
                sizes[axis],
                kernel[axis],
                stride[axis],
                dilation[axis],
                padding[axis],
                input.ceil,
            ),
            Some(true) => reference::adaptive(sizes[axis], kernel[axis]),
            Some(false) => reference::adaptive(sizes[axis], 1),
        })
        .collect();
    let outputs = match max.output_shape(shape) {
        Ok(outputs) => outputs,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(max.forward(x.view()).is_err() && average.forward(x.view()).is_err());
            let windows = |axis: &Axis| !axis.is_empty() && axis.iter().all(|window| !window.is_empty());
            assert!(!listed || too_large(&error) || !axes.iter().all(windows), "refused: {error}");
            return;
        }
    };
    assert!(good, "a size of 0 was taken");
    if !small(&outputs) {
        return;
    }
    let mut y = Stored::<T, N>::written(outputs, input.lies[1]);
    if let Err(error) = max.forward_into(x.view(), y.view_mut()) {
        assert!(too_large(&error) && y.untouched(), "{error}");
        return;
    }
    let taps = axes.iter().map(|axis| axis.iter().map(Vec::len).sum::<usize>().max(1)).product::<usize>();
    if !listed || taps.saturating_mul(shape[0] * shape[1]) > WORK {
        average.forward(x.view()).expect("as the maximum");
        let (y, indices) = max.forward_with_indices(x.view()).expect("as the maximum");
        max.backward(y.view(), indices.view(), sizes).expect("as forward");
        average.backward(y.view(), sizes).expect("as forward");
        return;
    }
    let (expected, places) = reference::maximum(x.view(), &axes).expect("small");
    near("max", y.view(), &expected, 0.0);
    let (found, indices) = max.forward_with_indices(x.view()).expect("as without");
    near("max with indices", found.view(), &expected, 0.0);
    assert_eq!(indices.as_slice(), places.as_slice());
    let dy = Tensor::from_fn(outputs, |at| T::from_usize(at.iter().sum::<usize>() % 5)).expect("small");
    let mut dx = Stored::<T, N>::written(shape, input.lies[2]);
    max.backward_into(dy.view(), indices.view(), dx.view_mut()).expect("as forward");
    near(
        "max backward",
        dx.view(),
        &reference::maximum_backward(dy.view(), places.view(), shape).expect("small"),
        0.0,
    );
    assert!(y.canaries_live() && dx.canaries_live(), "a gap was written");

    let include = input.count_include_pad;
    average.forward_into(x.view(), y.view_mut()).expect("as the maximum");
    if input.special <= 128 {
        near("average", y.view(), &reference::average(x.view(), &axes, include).expect("small"), 4e4);
        lp.forward_into(x.view(), y.view_mut()).expect("as the maximum");
        near("norm", y.view(), &reference::norm(x.view(), &axes, p).expect("small"), 4e4);
    }
    average.backward_into(dy.view(), dx.view_mut()).expect("as forward");
    let expected = reference::average_backward(dy.view(), &axes, include, shape).expect("small");
    near("average backward", dx.view(), &expected, 4e4);
    assert!(y.canaries_live() && dx.canaries_live(), "a gap was written");
}
