//! Pooling with any numbers for options, over views of any strides, on every instruction set, against the scalar twins.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the elements
//! of outputs hold canaries.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use tilewise::pool::{AveragePool, LpPool, MaxPool};
use tilewise::reference::pool::{self as reference, Axis};
use tilewise::{Element, Error, ImageRank, Spatial, Tensor, TensorView, TensorViewMut, machine};

const CANARY: f64 = -7.25e11;

/// Taps of all windows that are worth a comparison.
const WORK: usize = 40_000;

/// A small number, or one that breaks arithmetic.
#[derive(Clone, Copy, Debug)]
struct Number(usize);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let max = isize::MAX as usize;
        Ok(Self(match u8::arbitrary(u)? {
            tag @ 0..=239 => [1, 1, 2, 3, 0, 1, 4, 2][usize::from(tag % 8)],
            240 => usize::MAX,
            241 => usize::MAX - 1,
            242 => max,
            243 => max / 2 + 1,
            244 => max / 3,
            245 => 1 << 31,
            246 => (1 << 32) + 1,
            247 => 1 << 16,
            tag => usize::from(tag) - 241,
        }))
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    /// Channels are neighbours.
    last: bool,
    back: [bool; 5],
    gaps: [u8; 5],
}

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

/// A buffer of exactly the length that its view needs.
#[derive(Clone)]
struct Stored<T, const N: usize> {
    data: Vec<T>,
    offset: usize,
    shape: [usize; N],
    strides: [isize; N],
}

impl<T: Element, const N: usize> Stored<T, N> {
    fn new(shape: [usize; N], lie: Lie) -> Self {
        let (mut strides, mut next, mut offset) = ([0; N], 1, 0);
        let order = (1..2).filter(|_| lie.last).chain((0..N).rev().filter(|&axis| axis != 1 || !lie.last));
        let mut len = usize::from(!shape.contains(&0));
        for axis in order {
            strides[axis] = if lie.back[axis] { -next } else { next };
            let reach = shape[axis].max(1) - 1;
            if len > 0 {
                len += reach * next as usize;
                offset += if lie.back[axis] { reach * next as usize } else { 0 };
            }
            next = next * shape[axis].max(1) as isize + isize::from(lie.gaps[axis] % 3);
        }
        // A vector's capacity might be larger than its length, and AddressSanitizer would not see the end.
        let data = vec![T::from_f64(CANARY); len].into_boxed_slice().into_vec();
        let mut stored = Self { data, offset, shape, strides };
        stored.view_mut().fill(T::NAN);
        stored
    }

    fn view(&self) -> TensorView<'_, T, N> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).expect("fits")
    }

    fn view_mut(&mut self) -> TensorViewMut<'_, T, N> {
        TensorViewMut::as_strided_at(&mut self.data, self.offset, self.shape, self.strides).expect("nested")
    }

    fn canaries_live(&self) -> bool {
        let mut outside = self.clone();
        outside.view_mut().fill(T::from_f64(CANARY));
        outside.data.iter().all(|&element| element == T::from_f64(CANARY))
    }
}

fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    bound: f64,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (found, &expected) in found.iter().zip(expected) {
        let found = found.to_f64();
        let close = (found - expected).abs() <= bound * T::EPSILON.to_f64() * (1.0 + expected.abs());
        assert!(
            close || found == expected || (found.is_nan() && expected.is_nan()),
            "{what}: {found} instead of {expected}"
        );
    }
}

fn run<T: Element, const S: usize, const N: usize>(input: &Input)
where
    Spatial<S>: ImageRank<N>,
{
    let isa = machine::supported()[usize::from(input.isa) % machine::supported().len()];
    machine::with_isa(isa, || check::<T, S, N>(input)).expect("supported");
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
    let mut state = u64::from(input.seed) << 1 | 1;
    let mut x = Stored::<T, N>::new(shape, input.lies[0]);
    let values = Tensor::from_fn(shape, |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if input.special > 128 && (state >> 40) % 64 == 0 {
            return [T::NAN, T::INFINITY, T::NEG_INFINITY][(state >> 50) as usize % 3];
        }
        // Equal ones are wanted.
        T::from_f64((state >> 59) as f64 / 4.0 - 4.0)
    });
    x.view_mut().assign(values.expect("small").view()).expect("of one shape");

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
    let outputs = match max.output_shape(shape) {
        Ok(outputs) => outputs,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(max.forward(x.view()).is_err() && average.forward(x.view()).is_err());
            return;
        }
    };
    let len = outputs.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
    if len.is_none_or(|len| len > WORK) {
        return;
    }
    let mut y = Stored::<T, N>::new(outputs, input.lies[1]);
    let too_large = |error: &Error| matches!(error, Error::Overflow { .. } | Error::Alloc { .. });
    if let Err(error) = max.forward_into(x.view(), y.view_mut()) {
        assert!(too_large(&error), "{error}");
        return;
    }
    // What the twins, which list every tap, can hold.
    let small = |size: &usize| *size <= 64;
    let listed = input.adaptive.is_some()
        || (kernel.iter().chain(&stride).chain(&dilation).chain(padding.as_flattened()).all(small)
            && kernel.iter().product::<usize>().saturating_mul(len.unwrap_or(0)) <= WORK);
    if !listed {
        average.forward(x.view()).expect("as the maximum");
        let (y, indices) = max.forward_with_indices(x.view()).expect("as the maximum");
        max.backward(y.view(), indices.view(), sizes).expect("as forward");
        average.backward(y.view(), sizes).expect("as forward");
        return;
    }
    let axes: Vec<Axis> = (0..S)
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
    let (expected, places) = reference::maximum(x.view(), &axes).expect("small");
    near("max", y.view(), &expected, 0.0);
    let (found, indices) = max.forward_with_indices(x.view()).expect("as without");
    near("max with indices", found.view(), &expected, 0.0);
    assert_eq!(indices.as_slice(), places.as_slice());
    let dy = Tensor::from_fn(outputs, |at| T::from_usize(at.iter().sum::<usize>() % 5)).expect("small");
    let mut dx = Stored::<T, N>::new(shape, input.lies[2]);
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
