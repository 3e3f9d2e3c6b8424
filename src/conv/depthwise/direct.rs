//! 3 × 3 windows over images with channels last, read as they lie: lanes are channels, nothing is copied.
//!
//! ```text
//! for each row of outputs
//!     for each four columns                 their pixels: streams of channels, zeros where padding is
//!         for each vector of channels: Σ over taps, and inputs of a group, of weights · pixel, a pixel loaded once for the four
//! ```
#![forbid(unsafe_code)]

use std::ops::Range;

use super::Forward;
use crate::activation;
use crate::conv::correlate::Call;
use crate::conv::emit::{bounded, channels_last};
use crate::conv::weights::Filter;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::tile;
use crate::machine::{self, Isa};
use crate::simd::{self, MOST_LANES, Simd, SimdOp, Streams};
use crate::tensor::TensorViewMut;
use crate::workspace::scratch;

/// Channels of a group for which there are kernels, as [`of_group`] has them. 1 is among them: depthwise layers whose windows are too
/// far-reaching for copies come here.
const GROUPS: [usize; 5] = [1, 2, 4, 8, 16];

/// `$body` with a constant `$INPUTS` for so many channels of a group, for which vectors of `$S` [have a kernel](has_kernel).
macro_rules! of_group {
    ($S:ident, $inputs:expr, $INPUTS:ident => $body:expr) => {
        of_group!($S, $inputs, $INPUTS => $body, 1 2 4 8 16)
    };
    ($S:ident, $inputs:expr, $INPUTS:ident => $body:expr, $($n:literal)*) => {
        match $inputs {
            // Constant where it is false: then the kernel is not compiled.
            $($n => if const { $n <= $S::LANES } {
                const $INPUTS: usize = $n;
                $body
            } else {
                $crate::conv::depthwise::direct::no_such_group()
            },)*
            _ => $crate::conv::depthwise::direct::no_such_group(),
        }
    };
}

pub(super) use of_group;

/// Of each input of a channel's group.
pub(in crate::conv) const TAPS: usize = 9;
/// Outputs side by side.
pub(super) const SIDE: usize = 4;

/// Whether outputs of these strides are computed here, where there is a kernel for their groups: all pixels are neighbours, and
/// windows overlap or touch.
pub(super) fn fits<T: Element>(call: &Call<'_, T>, shape: [usize; 5], strides: [isize; 5]) -> bool {
    call.reach().flat(call.x.shape()[2], shape[2]) && call.images_of(shape, strides).all(dense)
}

/// Whether there is a kernel for groups of so many channels: they are lanes of one vector.
pub(super) fn has_kernel<T: Element>(isa: Isa, inputs: usize) -> bool {
    GROUPS.contains(&inputs) && inputs <= tile::<T>(isa).lanes
}

/// True where all channels of all pixels of a row are neighbours.
pub(in crate::conv) fn dense((shape, strides): ([usize; 5], [isize; 5])) -> bool {
    channels_last(shape, strides) && usize::try_from(strides[4]) == Ok(shape[1])
}

/// The part `y` of an output, whose first element is `origin` in it: all of its channels and columns.
pub(super) struct Direct<'d, T> {
    pub forward: &'d Forward<'d, T>,
    pub y: TensorViewMut<'d, T, 5>,
    pub origin: [usize; 5],
}

impl<T: Element> SimdOp<T> for Direct<'_, T> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        if self.forward.reach.stride[2] == 1 {
            self.rows::<S, 1, 6>(simd)
        } else {
            self.rows::<S, 2, 9>(simd)
        }
    }
}

/// [`has_kernel`] says which there are.
#[cold]
pub(super) fn no_such_group() -> ! {
    unreachable!("internal error: channels of a group without a kernel")
}

impl<T: Element> Direct<'_, T> {
    #[inline(always)]
    fn rows<S: Simd<T>, const STRIDE: usize, const SPAN: usize>(self, simd: S) -> Result<()> {
        let Self { forward, mut y, origin } = self;
        let (call, reach) = (forward.call, &forward.reach);
        let finish = &call.finish;
        let [images, channels, depths, height, _] = y.shape();
        let [_, _, _, rows, columns] = call.x.shape();
        let mut packed = scratch::<T>(call.op, forward.packed_len(channels))?;
        let mut zeros = scratch::<T>(call.op, channels)?;
        zeros.fill(T::ZERO);
        let (weights, _) = forward.weights(0..channels, &mut packed)?;
        let mut biases = scratch::<T>(call.op, channels.next_multiple_of(MOST_LANES))?;
        forward.bias(0..channels, &mut biases)?;
        let [low, high] = finish.activation.bounds().unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let bounds = [low, high].map(T::from_f64);
        let order = [0, 2, 3, 4, 1];
        let x = call.x.permute(order)?;
        let residual = match finish.residual {
            Some(residual) => Some(residual.permute(order)?),
            None => None,
        };
        let mut y = y.view_mut().permute(order)?;
        // So many writes go beyond the caches, of which others have a share, and wait for lines that are not asked for.
        let far = y.len().saturating_mul(size_of::<T>()) > machine::caches().share() / 8;
        // What caches hold comes in time by itself, and asking for it takes longer.
        let ask = (x.len() + y.len()).saturating_mul(size_of::<T>()) > machine::caches().share() / 4;
        for at in 0..images * depths * height {
            let (image, d, h) = (at / height / depths, at / height % depths, at % height);
            let x = x.select::<4>(0, origin[0] + image)?;
            let residual = match residual {
                Some(residual) => {
                    residual.select::<4>(0, origin[0] + image)?.line([origin[2] + d, origin[3] + h])
                }
                None => None,
            };
            let above = reach.start[1] + ((origin[3] + h) * reach.stride[1]) as isize;
            // Behind the windows, where rows are only asked for, this may wrap.
            let line = |i: usize| {
                let row = within(above.wrapping_add((i * reach.dilation[1]) as isize), rows)?;
                x.line([origin[2] + d, row])
            };
            let lines = [line(0), line(1), line(2)];
            // What the next row of outputs reads besides, where the height has no dilation.
            let next: [_; STRIDE] = std::array::from_fn(|i| line(3 + i).filter(|_| ask));
            let mut y = y.view_mut().select::<4>(0, image)?;
            let Some(to) = y.line_mut([d, h]) else { return Ok(()) };
            let mut windows = Windows::<T, STRIDE, SPAN> {
                // Lines that are not there are so for the whole row.
                lines: Streams::same(&zeros),
                next,
                weights,
                biases: &biases,
                bounds,
                residual,
                channels,
                column: 0,
                far,
            };
            for (at, to) in to.chunks_mut(SIDE * channels).enumerate() {
                let left = reach.start[2] + (at * SIDE * STRIDE) as isize;
                let inside = within(left, (columns + 1).saturating_sub(SPAN));
                for (row, line) in lines.into_iter().enumerate() {
                    pixels(&mut windows.lines, row, line, inside, (left, columns), (0, channels), &zeros);
                }
                windows.column = at * SIDE;
                of_group!(S, forward.inputs, INPUTS => windows.run::<S, INPUTS>(simd, to));
            }
            if finish.activation.bounds().is_none() {
                activation::apply(simd, finish.activation, to);
            }
        }
        Ok(())
    }
}

/// What lies at `at`, where that is inside.
pub(in crate::conv) fn within(at: isize, size: usize) -> Option<usize> {
    usize::try_from(at).ok().filter(|&at| at < size)
}

/// For a row of `to`, pixels of a line of `columns`, those from column `left` on, which is `inside` where all of them are: of each as
/// many channels from `first` on as there are `zeros`, of which all of `to` has been made; without a line the row stays as it is. They
/// stand for the padding. That is multiplied as well: 0 times what is infinite is not a number.
#[inline(always)]
pub(in crate::conv) fn pixels<'s, T: Element, const SPAN: usize, const ROWS: usize>(
    to: &mut Streams<'s, T, SPAN, ROWS>,
    row: usize,
    line: Option<&'s [T]>,
    inside: Option<usize>,
    (left, columns): (isize, usize),
    (first, all): (usize, usize),
    zeros: &'s [T],
) {
    let Some(line) = line else { return };
    match inside {
        Some(column) => to.row_apart(row, &line[column * all + first..], all),
        None => {
            let start = left.saturating_neg().clamp(0, SPAN as isize) as usize;
            let end = (columns as isize - left).clamp(start as isize, SPAN as isize) as usize;
            let at = left.saturating_add_unsigned(start).max(0) as usize * all + first;
            to.row_among(row, start..end, line.get(at..).unwrap_or(&[]), all, zeros);
        }
    }
}

/// Windows side by side, at most [`SIDE`] of them.
struct Windows<'w, T, const STRIDE: usize, const SPAN: usize> {
    /// Pixels: all channels of each.
    lines: Streams<'w, T, SPAN, 3>,
    /// Rows below them, to ask for.
    next: [Option<&'w [T]>; STRIDE],
    /// As [`vectors_of`] makes them.
    weights: &'w [T],
    /// In whole vectors.
    biases: &'w [T],
    /// Of the outputs.
    bounds: [T; 2],
    residual: Option<&'w [T]>,
    channels: usize,
    /// Of the first output.
    column: usize,
    /// The caches do not hold the outputs.
    far: bool,
}

impl<T: Element, const STRIDE: usize, const SPAN: usize> Windows<'_, T, STRIDE, SPAN> {
    /// Outputs, pixel after pixel.
    #[inline(always)]
    fn run<S: Simd<T>, const INPUTS: usize>(&self, simd: S, to: &mut [T]) {
        let whole = self.channels / S::LANES * S::LANES;
        for first in (0..whole).step_by(S::LANES) {
            self.ahead(first, to);
            let taps = taps_of::<T, S, INPUTS>(self.weights, first);
            let mut sums = [simd.load(&self.biases[first..]); SIDE];
            for row in 0..3 {
                let x = self.lines.load_row(simd, row, first);
                Self::add::<S, INPUTS>(simd, taps, row, x, &mut sums);
            }
            self.finish(simd, first..first + S::LANES, sums, to);
        }
        if whole < self.channels {
            let taps = taps_of::<T, S, INPUTS>(self.weights, whole);
            let mut sums = [simd.load(&self.biases[whole..]); SIDE];
            for row in 0..3 {
                let x = self.lines.load_row_partial(simd, row, whole);
                Self::add::<S, INPUTS>(simd, taps, row, x, &mut sums);
            }
            self.finish(simd, whole..self.channels, sums, to);
        }
    }

    /// Asks for what is read below these windows, and for what is written beside them.
    #[inline(always)]
    fn ahead(&self, first: usize, to: &[T]) {
        let below = self.column * STRIDE * self.channels + first;
        for next in self.next.iter().flatten() {
            for i in 0..SIDE * STRIDE {
                simd::prefetch(next.as_ptr().wrapping_add(below + i * self.channels));
            }
        }
        if self.far {
            for i in SIDE..2 * SIDE {
                simd::prefetch(to.as_ptr().wrapping_add(i * self.channels + first));
            }
        }
    }

    /// What a row of pixels adds to sums side by side.
    #[inline(always)]
    fn add<S: Simd<T>, const INPUTS: usize>(
        simd: S,
        taps: &[T],
        row: usize,
        x: [S::V; SPAN],
        sums: &mut [S::V; SIDE],
    ) {
        for input in 0..INPUTS {
            let x = of_input::<T, S, INPUTS, SPAN>(simd, x, input);
            for (t, tap) in row_of(simd, taps, row, input).into_iter().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.mul_add(tap, x[i * STRIDE + t], *sum);
                }
            }
        }
    }

    /// Adds the residual, applies the bounds and stores.
    #[inline(always)]
    fn finish<S: Simd<T>>(&self, simd: S, run: Range<usize>, mut sums: [S::V; SIDE], to: &mut [T]) {
        let [low, high] = self.bounds;
        let limits = [simd.splat(low), simd.splat(high)];
        if let Some(residual) = self.residual {
            for (sum, residual) in
                sums.iter_mut().zip(residual[self.column * self.channels..].chunks_exact(self.channels))
            {
                *sum = simd.add(*sum, simd.load_partial(&residual[run.clone()]));
            }
        }
        for (sum, y) in sums.into_iter().zip(to.chunks_exact_mut(self.channels)) {
            let sum = bounded(simd, limits, sum);
            let y = &mut y[run.clone()];
            if y.len() == S::LANES {
                simd.store(sum, y);
            } else {
                simd.store_partial(sum, y);
            }
        }
    }
}

/// Of pixels one of the inputs of each group, in all of its lanes.
#[inline(always)]
pub(super) fn of_input<T: Element, S: Simd<T>, const INPUTS: usize, const SPAN: usize>(
    simd: S,
    mut x: [S::V; SPAN],
    input: usize,
) -> [S::V; SPAN] {
    if const { INPUTS > 1 } {
        for x in &mut x {
            *x = simd.within::<INPUTS>(*x, input);
        }
    }
    x
}

/// Elements of packed weights of so many channels, in groups of `inputs`.
pub(in crate::conv) fn packed_len(channels: usize, inputs: usize, taps: usize) -> Option<usize> {
    channels.checked_next_multiple_of(MOST_LANES)?.checked_mul(taps)?.checked_mul(inputs)
}

/// The taps for the vector of channels from `first` on and `INPUTS` of their groups, of weights as [`vectors_of`] has them.
#[inline(always)]
pub(in crate::conv) fn taps_of<T: Element, S: Simd<T>, const INPUTS: usize>(
    weights: &[T],
    first: usize,
) -> &[T] {
    &weights[place(first, [0, INPUTS], TAPS)..][..(INPUTS * TAPS - 1) * MOST_LANES + S::LANES]
}

/// Of such taps those of a row of the kernel for one of the inputs.
#[inline(always)]
pub(in crate::conv) fn row_of<T: Element, S: Simd<T>>(
    simd: S,
    taps: &[T],
    row: usize,
    input: usize,
) -> [S::V; 3] {
    simd.load_apart(&taps[(input * TAPS + row * 3) * MOST_LANES..], MOST_LANES)
}

/// Where the first tap of a channel and one of the inputs of its group lies in packed weights.
#[inline(always)]
pub(super) fn place(channel: usize, [input, inputs]: [usize; 2], taps: usize) -> usize {
    (channel / MOST_LANES * inputs + input) * (taps * MOST_LANES) + channel % MOST_LANES
}

/// Weights as vectors: of each [`MOST_LANES`] channels, for each of the inputs of their groups, the taps, one after the other. Groups
/// have `multiplier` output channels.
pub(in crate::conv) fn vectors_of<T: Element>(
    filter: &Filter<'_, T>,
    channels: Range<usize>,
    [multiplier, inputs]: [usize; 2],
    taps: usize,
    to: &mut [T],
) -> Result<()> {
    to.fill(T::ZERO);
    for input in 0..inputs {
        let place = |i: usize| place(i, [input, inputs], taps);
        filter.spread(multiplier, [input, inputs], channels.clone(), place, MOST_LANES, to)?;
    }
    Ok(())
}
