//! Gradients of sums: what a window was given goes to all elements that it covers.
//!
//! For a row of the image, the gradients of the windows above it are added up first, row by row of dY, and then spread along
//! it. With a stride s, elements of one residue mod s see the same taps: each residue is a sum of shifted rows.
#![forbid(unsafe_code)]

use super::forward::{Along, along, channels_last, cut, gather, scatter, tasks, trace};
use super::geometry::{Axis, Slide};
use super::reduce::{Average, Norm};
use crate::element::Element;
use crate::error::Result;
use crate::machine::Isa;
use crate::parallel;
use crate::simd::{MOST_LANES, Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::{Scratch, scratch};

/// The derivative of a reduction: dx = received(Σ given(dy, y), x).
pub trait Share<T: Element>: Copy + Send + Sync {
    /// True where what is given is divided by the number of elements.
    const WEIGHTED: bool;

    /// Spreads the gradients of a piece.
    fn spread(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()>;

    fn given<S: Simd<T>>(self, simd: S, dy: S::V, y: S::V) -> S::V;
    fn received<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V;
}

impl<T: Element> Share<T> for Average {
    const WEIGHTED: bool = true;

    fn spread(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()> {
        T::share_averages(isa, piece)
    }

    #[inline(always)]
    fn given<S: Simd<T>>(self, _: S, dy: S::V, _: S::V) -> S::V {
        dy
    }

    #[inline(always)]
    fn received<S: Simd<T>>(self, _: S, sum: S::V, _: S::V) -> S::V {
        sum
    }
}

impl<T: Element> Share<T> for Norm {
    const WEIGHTED: bool = false;

    fn spread(isa: Isa, piece: Piece<'_, '_, T, Self>) -> Result<()> {
        T::share_norms(isa, piece)
    }

    #[inline(always)]
    fn given<S: Simd<T>>(self, simd: S, dy: S::V, y: S::V) -> S::V {
        simd.mul(dy, self.outer(simd, y))
    }

    #[inline(always)]
    fn received<S: Simd<T>>(self, simd: S, sum: S::V, x: S::V) -> S::V {
        simd.mul(sum, self.inner(simd, x))
    }
}

/// A checked call.
#[derive(Clone, Copy)]
pub struct Call<'a, T, R> {
    pub op: &'static str,
    pub isa: Isa,
    /// `[batch, channels, windows…]`.
    pub dy: TensorView<'a, T, 5>,
    /// Input and output, where they are needed.
    pub values: Option<[TensorView<'a, T, 5>; 2]>,
    pub axes: [Axis; 3],
    pub share: R,
    pub with_padding: bool,
}

impl<T: Element, R: Share<T>> Call<'_, T, R> {
    /// Computes `dx`, of the image's shape.
    pub(super) fn run(&self, dx: TensorViewMut<'_, T, 5>) -> Result<()> {
        if dx.is_empty() {
            return Ok(());
        }
        let tasks = tasks(self.dy.len().max(dx.len()), &self.axes);
        let last = channels_last(dx.shape(), dx.strides());
        trace::<T>(self.op, self.isa, [self.dy.shape(), dx.shape()], last, tasks);
        self.split(dx, last, [0; 5], tasks)
    }

    fn split(&self, dx: TensorViewMut<'_, T, 5>, last: bool, origin: [usize; 5], tasks: usize) -> Result<()> {
        let axes: &[usize] = if last { &[0, 2, 3] } else { &[0, 1, 2, 3] };
        let Some(axis) = cut(dx.shape(), axes).filter(|_| tasks > 1) else {
            return R::spread(self.isa, Piece { call: self, dx, last, origin });
        };
        let (at, half) = (dx.shape()[axis] / 2, tasks / 2);
        let (low, high) = dx.split_at(axis, at)?;
        let mut beyond = origin;
        beyond[axis] += at;
        let (first, second) = parallel::join(
            || self.split(low, last, origin, half),
            || self.split(high, last, beyond, tasks - half),
        );
        first.and(second)
    }
}

kernels! {
    /// Element types with the gradients of sums.
    pub trait Shares {
        /// Those of averages.
        fn share_averages(isa: Isa, op: Piece<'_, '_, Self, Average>) -> Result<()>;

        /// Those of norms.
        fn share_norms(isa: Isa, op: Piece<'_, '_, Self, Norm>) -> Result<()>;
    }
}

pub struct Piece<'p, 'a, T, R> {
    call: &'p Call<'a, T, R>,
    dx: TensorViewMut<'p, T, 5>,
    last: bool,
    origin: [usize; 5],
}

/// One image or plane as `[depth, height, width, lanes]`.
fn plane<T>(
    view: TensorView<'_, T, 5>,
    last: bool,
    image: usize,
    channel: usize,
) -> Result<TensorView<'_, T, 4>> {
    let view = view.select::<4>(0, image)?;
    if last { view.permute([1, 2, 3, 0]) } else { view.select::<3>(0, channel)?.insert_axis(3) }
}

impl<T: Element, R: Share<T>> SimdOp<T> for Piece<'_, '_, T, R> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Result<()> {
        let Piece { call, mut dx, last, origin } = self;
        let [images, channels, depth, height, columns] = dx.shape();
        let (planes, lanes) = if last { (1, channels) } else { (channels, 1) };
        let width = call.axes[2];
        let outputs = width.outputs();
        let shifts = Shifts::new(call.op, &width, lanes)?;
        let margins = shifts.as_ref().map_or([0; 2], |shifts| shifts.margins);
        let (given, spread) =
            (outputs * lanes, shifts.as_ref().map_or(columns * lanes, |shifts| shifts.spread));
        let mut sums = scratch::<T>(call.op, margins[0] + given + margins[1])?;
        let mut row = scratch::<T>(call.op, spread)?;
        let mut stages = scratch::<T>(call.op, 2 * given.max(columns * lanes))?;
        let (stage, stage_two) = stages.split_at_mut(given.max(columns * lanes));
        let mut weights = scratch::<T>(call.op, if R::WEIGHTED { outputs } else { 0 })?;
        let inverse = |count: usize| if count == 0 { T::ZERO } else { T::ONE / T::from_usize(count) };
        for (output, weight) in weights.iter_mut().enumerate() {
            *weight = inverse(width.count(output, call.with_padding));
        }
        sums[..margins[0]].fill(T::ZERO);
        sums[margins[0] + given..].fill(T::ZERO);
        for at in 0..images * planes {
            let (image, channel) = (origin[0] + at / planes, origin[1] + at % planes);
            let dy = plane(call.dy, last, image, channel)?;
            let values = match call.values {
                Some([x, y]) => Some([plane(x, last, image, channel)?, plane(y, last, image, channel)?]),
                None => None,
            };
            let dx = dx.view_mut().select::<4>(0, at / planes)?;
            let mut dx = if last {
                dx.permute([1, 2, 3, 0])?
            } else {
                dx.select::<3>(0, at % planes)?.insert_axis(3)?
            };
            for at in 0..depth * height {
                let at = [at / height, at % height];
                let position = [origin[2] + at[0], origin[3] + at[1]];
                let to = &mut sums[margins[0]..][..given];
                to.fill(T::ZERO);
                for d in call.axes[0].covering(position[0]) {
                    for h in call.axes[1].covering(position[1]) {
                        let factor = if R::WEIGHTED {
                            let count = [(0, d), (1, h)]
                                .map(|(axis, window)| call.axes[axis].count(window, call.with_padding));
                            inverse(count[0].saturating_mul(count[1]))
                        } else {
                            T::ONE
                        };
                        let dy = line(dy, [d, h], stage, given);
                        let y = values.map(|[_, y]| line(y, [d, h], stage_two, given));
                        give(simd, call.share, factor, dy, y.unwrap_or(dy), to);
                    }
                }
                if R::WEIGHTED {
                    for (to, &weight) in to.chunks_exact_mut(lanes).zip(weights.iter()) {
                        to.iter_mut().for_each(|to| *to *= weight);
                    }
                }
                let sums_along = match &shifts {
                    Some(shifts) => shifts.spread(simd, &sums, &mut row, columns),
                    None => {
                        spread_windows(&width, lanes, to, &mut row);
                        &mut row[..]
                    }
                };
                if let Some([x, _]) = values {
                    let x = line(x, position, stage, columns * lanes);
                    receive(simd, call.share, x, sums_along);
                }
                match dx.line_mut(at) {
                    Some(to) => to.copy_from_slice(sums_along),
                    None => scatter(sums_along, dx.matrix_at_mut(at), 0),
                }
            }
        }
        Ok(())
    }
}

/// A row as a slice, copied where it is none.
#[inline(always)]
fn line<'r, T: Element>(
    from: TensorView<'r, T, 4>,
    at: [usize; 2],
    stage: &'r mut [T],
    len: usize,
) -> &'r [T] {
    match from.line(at) {
        Some(line) => line,
        None => {
            gather(from.matrix_at(at), 0, &mut stage[..len]);
            &stage[..len]
        }
    }
}

/// to += factor · given(dy, y).
#[inline(always)]
fn give<T: Element, S: Simd<T>, R: Share<T>>(simd: S, share: R, factor: T, dy: &[T], y: &[T], to: &mut [T]) {
    let factor = simd.splat(factor);
    for (to, (dy, y)) in to.chunks_mut(S::LANES).zip(dy.chunks(S::LANES).zip(y.chunks(S::LANES))) {
        if to.len() == S::LANES {
            let given = share.given(simd, simd.load(dy), simd.load(y));
            simd.store(simd.mul_add(factor, given, simd.load(to)), to);
        } else {
            let given = share.given(simd, simd.load_partial(dy), simd.load_partial(y));
            simd.store_partial(simd.mul_add(factor, given, simd.load_partial(to)), to);
        }
    }
}

/// to = received(to, x).
#[inline(always)]
fn receive<T: Element, S: Simd<T>, R: Share<T>>(simd: S, share: R, x: &[T], to: &mut [T]) {
    for (to, x) in to.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
        if to.len() == S::LANES {
            simd.store(share.received(simd, simd.load(to), simd.load(x)), to);
        } else {
            simd.store_partial(share.received(simd, simd.load_partial(to), simd.load_partial(x)), to);
        }
    }
}

/// Each window's share to each element it covers.
#[inline(always)]
fn spread_windows<T: Element>(width: &Axis, lanes: usize, from: &[T], to: &mut [T]) {
    to.fill(T::ZERO);
    for (output, from) in from.chunks_exact(lanes).enumerate() {
        let taps = width.taps(output);
        if lanes == 1 && taps.step == 1 {
            to[taps.first..][..taps.count].iter_mut().for_each(|to| *to += from[0]);
            continue;
        }
        for position in taps.positions() {
            let to = &mut to[position * lanes..][..lanes];
            to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
        }
    }
}

/// The taps of each residue of the stride, as distances in a row of windows.
struct Shifts {
    stride: usize,
    before: usize,
    /// Zeros before and behind a row of windows.
    margins: [usize; 2],
    /// Elements of a padded row of the image, whole vectors of each residue.
    spread: usize,
    /// The first tap of each residue, and the end.
    starts: Scratch<usize>,
    /// Distances backwards, residue by residue.
    shifts: Scratch<usize>,
}

impl Shifts {
    /// `None` where windows are gone through one by one.
    fn new(op: &'static str, width: &Axis, lanes: usize) -> Result<Option<Self>> {
        let &Axis::Sliding(Slide { kernel, stride, dilation, padding, image, outputs }) = width else {
            return Ok(None);
        };
        if along(width, lanes) == Along::Windows || stride > 2 * image + 256 {
            return Ok(None);
        }
        let mut starts = scratch::<usize>(op, stride + 1)?;
        let mut shifts = scratch::<usize>(op, kernel)?;
        let mut count = 0;
        for residue in 0..stride {
            starts[residue] = count;
            for tap in (0..kernel).map(|tap| tap * dilation).filter(|tap| tap % stride == residue) {
                shifts[count] = tap / stride;
                count += 1;
            }
        }
        starts[stride] = count;
        let places = (padding[0] + image).div_ceil(stride).next_multiple_of(MOST_LANES);
        let before = (kernel - 1) * dilation / stride;
        let behind = (places + MOST_LANES).saturating_sub(outputs);
        let spread = (places + MOST_LANES) * stride;
        Ok(Some(Self { stride, before: padding[0], margins: [before, behind], spread, starts, shifts }))
    }

    /// A row of the image from a row of windows with its margins.
    #[inline(always)]
    fn spread<'r, T: Element, S: Simd<T>>(
        &self,
        simd: S,
        from: &[T],
        to: &'r mut [T],
        columns: usize,
    ) -> &'r mut [T] {
        let Self { stride, before, .. } = *self;
        let places = (before + columns).div_ceil(stride);
        for place in (0..places).step_by(S::LANES) {
            match stride {
                1 => simd.store(self.residue(simd, from, place, 0), &mut to[place..]),
                2 => {
                    let (even, odd) =
                        (self.residue(simd, from, place, 0), self.residue(simd, from, place, 1));
                    let [low, high] = simd.interleave(even, odd);
                    simd.store(low, &mut to[2 * place..]);
                    simd.store(high, &mut to[2 * place + S::LANES..]);
                }
                _ => {
                    let mut lanes = [T::ZERO; MOST_LANES];
                    for residue in 0..stride {
                        simd.store(self.residue(simd, from, place, residue), &mut lanes);
                        let to = to[place * stride + residue..].iter_mut().step_by(stride);
                        for (to, lane) in to.zip(&lanes[..S::LANES]) {
                            *to = *lane;
                        }
                    }
                }
            }
        }
        &mut to[before..][..columns]
    }

    #[inline(always)]
    fn residue<T: Element, S: Simd<T>>(&self, simd: S, from: &[T], place: usize, residue: usize) -> S::V {
        let mut sum = simd.splat(T::ZERO);
        for &shift in &self.shifts[self.starts[residue]..self.starts[residue + 1]] {
            sum = simd.add(sum, simd.load(&from[self.margins[0] + place - shift..]));
        }
        sum
    }
}
