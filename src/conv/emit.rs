//! Sums on their way to the output: bias, residual, activation, and the output's own layout.
#![forbid(unsafe_code)]

use crate::activation::{self, Activation};
use crate::element::Element;
use crate::error::Result;
use crate::simd::{Simd, SimdOp};
use crate::tensor::{TensorView, TensorViewMut};

/// What happens to a sum: y = activation(sum + bias + residual).
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a, T> {
    /// One for each output channel.
    pub(super) bias: Option<TensorView<'a, T, 1>>,
    /// `[batch, channels, depth, height, width]`, the output's shape.
    pub(super) residual: Option<TensorView<'a, T, 5>>,
    pub(super) activation: Activation,
}

impl<'a, T: Element> Finish<'a, T> {
    /// The part of the residual at `at` that has this shape.
    pub(super) fn residual_at(
        &self,
        at: [usize; 5],
        shape: [usize; 5],
    ) -> Result<Option<TensorView<'a, T, 5>>> {
        let Some(mut residual) = self.residual else { return Ok(None) };
        for axis in 0..5 {
            residual = residual.slice(axis, at[axis]..at[axis] + shape[axis], 1)?;
        }
        Ok(Some(residual))
    }

    /// Without a bias −0, which changes nothing: other paths, which do not add any, keep the sign of a sum of −0.
    pub(super) fn bias(&self, channel: usize) -> T {
        self.bias.and_then(|bias| bias.get([channel])).copied().unwrap_or(-T::ZERO)
    }
}

/// Rows of sums, one for each channel, to a box of the output.
pub(super) struct Emit<'a, T> {
    /// `[channels, pitch]`: in each row the box's positions in row-major order, and room for a vector behind them.
    pub sums: &'a [T],
    pub pitch: usize,
    /// `[images, channels, depth, height, width]`.
    pub y: TensorViewMut<'a, T, 5>,
    /// The residual's box.
    pub residual: Option<TensorView<'a, T, 5>>,
    /// Index of the first channel.
    pub channel: usize,
    pub finish: &'a Finish<'a, T>,
    /// Room for a vector of positions times the channels, where the output's channels are neighbours.
    pub turned: &'a mut [T],
}

/// True where channels and not columns are neighbours in memory.
pub(super) fn channels_last<const N: usize>(shape: [usize; N], strides: [isize; N]) -> bool {
    strides[1] == 1 && shape[1] > 1 && strides[N - 1] != 1
}

impl<T: Element> SimdOp<T> for Emit<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        if channels_last(self.y.shape(), self.y.strides()) {
            self.pixels(simd);
        } else {
            self.planes(simd);
        }
    }
}

impl<T: Element> Emit<'_, T> {
    #[inline(always)]
    fn planes<S: Simd<T>>(mut self, simd: S) {
        let [images, channels, depth, height, width] = self.y.shape();
        for at in 0..images * depth {
            let (image, d) = (at / depth, at % depth);
            let residual = self.residual.and_then(|r| r.select::<4>(0, image).ok());
            let Ok(mut y) = self.y.view_mut().select::<4>(0, image) else { return };
            for c in 0..channels {
                let bias = self.finish.bias(self.channel + c);
                let sums = &self.sums[c * self.pitch + at * height * width..][..height * width];
                let all = residual.map(|r| r.line([c, d]));
                if let (Some(run), None | Some(Some(_))) = (y.line_mut([c, d]), all) {
                    self.finish.run(simd, sums, bias, all.flatten(), run);
                    continue;
                }
                let (mut y, residual) = (y.matrix_at_mut([c, d]), residual.map(|r| r.matrix_at([c, d])));
                for (h, sums) in sums.chunks_exact(width).enumerate() {
                    let residual_row = residual.map(|r| r.row(h));
                    if let (Some(run), None | Some(Some(_))) = (y.row_mut(h), residual_row) {
                        self.finish.run(simd, sums, bias, residual_row.flatten(), run);
                        continue;
                    }
                    for (w, &sum) in sums.iter().enumerate() {
                        let residual = residual.and_then(|r| r.get([h, w])).copied().unwrap_or(-T::ZERO);
                        let mut one = [sum + bias + residual];
                        activation::apply(simd, self.finish.activation, &mut one);
                        if let Some(y) = y.get_mut([h, w]) {
                            *y = one[0];
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn pixels<S: Simd<T>>(mut self, simd: S) {
        let [images, channels, depth, height, width] = self.y.shape();
        let Ok(lines) = TensorView::from_slice(&self.sums[..channels * self.pitch], [channels, self.pitch])
        else {
            return;
        };
        let bias = self.finish.bias.map(|bias| (bias, bias.as_slice()));
        for at in 0..images * depth * height {
            let [image, d, h] = [at / height / depth, at / height % depth, at % height];
            let y = self.y.view_mut().select::<4>(0, image);
            // [channels, width]
            let y = y.and_then(|y| y.select::<3>(1, d)).and_then(|y| y.select::<2>(1, h));
            let Ok(y) = y else { return };
            let mut y = y.transpose();
            let residual = self.residual.and_then(|r| r.select::<4>(0, image).ok());
            let residual = residual.and_then(|r| r.select::<3>(1, d).ok()?.select::<2>(1, h).ok());
            let residual = residual.map(TensorView::transpose);
            for w in (0..width).step_by(S::LANES) {
                let count = S::LANES.min(width - w);
                let first = at * width + w;
                let vectors = if S::LANES < 4 || channels < S::LANES { 0 } else { channels };
                for c in (0..vectors).step_by(S::LANES) {
                    let c = c.min(channels - S::LANES);
                    for i in (0..count).step_by(4) {
                        let four = simd.load_transposed(lines.fours([c, first + i], S::LANES));
                        simd.store_apart(four, &mut self.turned[i * channels + c..], channels);
                    }
                }
                let fours = if (4..S::LANES).contains(&channels) { channels } else { vectors };
                for c in (vectors..fours).step_by(4) {
                    let c = c.min(channels - 4);
                    let line = |i: usize| &self.sums[(c + i) * self.pitch + first..];
                    let four =
                        [simd.load(line(0)), simd.load(line(1)), simd.load(line(2)), simd.load(line(3))];
                    simd.store_transposed(four, &mut self.turned[c..], channels);
                }
                for c in fours..channels {
                    let from = &self.sums[c * self.pitch + first..][..count];
                    for (i, &sum) in from.iter().enumerate() {
                        self.turned[i * channels + c] = sum;
                    }
                }
                for (i, sums) in self.turned.chunks_exact(channels).enumerate().take(count) {
                    let Some(run) = y.row_mut(w + i) else { return };
                    let residual_row = residual.map(|r| r.row(w + i));
                    run.copy_from_slice(sums);
                    match bias {
                        Some((_, Some(bias))) => {
                            add(simd, run, &bias[self.channel..]);
                        }
                        Some(_) => run
                            .iter_mut()
                            .enumerate()
                            .for_each(|(c, y)| *y += self.finish.bias(self.channel + c)),
                        None => {}
                    }
                    match (residual_row, residual) {
                        (Some(Some(residual)), _) => add(simd, run, residual),
                        (_, Some(residual)) => {
                            for (c, y) in run.iter_mut().enumerate() {
                                *y += residual.get([w + i, c]).copied().unwrap_or(T::ZERO);
                            }
                        }
                        _ => {}
                    }
                    if self.finish.activation != Activation::Identity {
                        activation::apply(simd, self.finish.activation, run);
                    }
                }
            }
        }
    }
}

impl<T: Element> Finish<'_, T> {
    /// y = activation(sums + bias + residual) over a run.
    #[inline(always)]
    fn run<S: Simd<T>>(&self, simd: S, sums: &[T], bias: T, residual: Option<&[T]>, y: &mut [T]) {
        let bias = simd.splat(bias);
        let bounds = self.activation.bounds();
        let [low, high] = bounds.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let limits = [simd.splat(T::from_f64(low)), simd.splat(T::from_f64(high))];
        for (i, y) in y.chunks_mut(S::LANES).enumerate() {
            let run = i * S::LANES..i * S::LANES + y.len();
            let mut sum = simd.add(simd.load_up_to(&sums[run.clone()]), bias);
            if let Some(residual) = residual {
                sum = simd.add(sum, simd.load_up_to(&residual[run]));
            }
            simd.store_up_to(bounded(simd, limits, sum), y);
        }
        if bounds.is_none() {
            activation::apply(simd, self.activation, y);
        }
    }
}

/// The order of the operands lets NaN through.
#[inline(always)]
pub(super) fn bounded<T: Element, S: Simd<T>>(simd: S, [low, high]: [S::V; 2], x: S::V) -> S::V {
    simd.max(low, simd.min(high, x))
}

/// y += x.
#[inline(always)]
pub(super) fn add<T: Element, S: Simd<T>>(simd: S, y: &mut [T], x: &[T]) {
    let whole = y.len() / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        simd.store(simd.add(simd.load(&y[at..]), simd.load(&x[at..])), &mut y[at..]);
    }
    for at in whole..y.len() {
        y[at] += x[at];
    }
}
