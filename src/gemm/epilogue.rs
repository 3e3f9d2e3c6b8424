//! What happens to a tile after its last block of depth, while it is in cache.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::activation::{self, Activation};
use crate::element::Element;
use crate::simd::{Simd, SimdOp};
use crate::tensor::TensorView;

/// A vector added to every row or every column of a product.
#[derive(Clone, Copy, Debug)]
pub enum Bias<'a, T> {
    /// Element `i` is added to all of row `i`: `[m]`.
    PerRow(TensorView<'a, T, 1>),
    /// Element `j` is added to all of column `j`: `[n]`.
    PerColumn(TensorView<'a, T, 1>),
}

/// Bias, residual and activation, checked against the product's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'e, T> {
    pub bias: Option<Bias<'e, T>>,
    pub residual: Option<TensorView<'e, T, 2>>,
    pub activation: Activation,
}

/// The usual [`Epilogue`] over one tile: max(low, min(high, sum + bias + residual)).
#[derive(Clone, Copy)]
pub(super) struct Tail<'e, T> {
    pub bias: Beside<'e, T>,
    /// Contiguous rows.
    pub residual: Option<TensorView<'e, T, 2>>,
    pub bounds: [T; 2],
}

/// The bias of a [`Tail`]: a tile's part of it.
#[derive(Clone, Copy)]
pub(super) enum Beside<'e, T> {
    Nothing,
    Columns(&'e [T]),
    Rows(&'e [T]),
}

impl<'e, T: Element> Epilogue<'e, T> {
    /// True where nothing is to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.bias.is_none() && self.residual.is_none() && self.activation == Activation::Identity
    }

    /// The same for the transposed product.
    pub(crate) fn transpose(self) -> Self {
        Self {
            bias: self.bias.map(|bias| match bias {
                Bias::PerRow(v) => Bias::PerColumn(v),
                Bias::PerColumn(v) => Bias::PerRow(v),
            }),
            residual: self.residual.map(TensorView::transpose),
            ..self
        }
    }

    /// The same for some columns of the product.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        let part = |view: TensorView<'e, T, 1>| view.slice(0, range.clone(), 1).unwrap_or(view);
        Self {
            bias: self.bias.map(|bias| match bias {
                Bias::PerRow(_) => bias,
                Bias::PerColumn(v) => Bias::PerColumn(part(v)),
            }),
            residual: self.residual.map(|r| r.tile([0, range.start], [r.shape()[0], range.len()])),
            ..self
        }
    }

    /// What a tile of this shape, whose first element is `at` in the product, can do to its sums while they are in
    /// registers; `None` where it is something else.
    #[inline(always)]
    pub(super) fn tail(&self, at: [usize; 2], shape: [usize; 2]) -> Option<Tail<'e, T>> {
        let bias = match self.bias {
            None => Beside::Nothing,
            Some(Bias::PerColumn(bias)) => Beside::Columns(&bias.as_slice()?[at[1]..at[1] + shape[1]]),
            Some(Bias::PerRow(bias)) => Beside::Rows(&bias.as_slice()?[at[0]..at[0] + shape[0]]),
        };
        let residual = match self.residual {
            Some(residual) if residual.strides()[1] == 1 => Some(residual.tile(at, shape)),
            Some(_) => return None,
            None => None,
        };
        let bounds = self.activation.bounds()?.map(T::from_f64);
        Some(Tail { bias, residual, bounds })
    }

    /// Finishes the elements of `run`, which lie in `row` from `column` on.
    #[inline(always)]
    pub(crate) fn apply<S: Simd<T>>(&self, simd: S, row: usize, column: usize, run: &mut [T]) {
        let columns = column..column + run.len();
        // −0 changes nothing, not even −0.
        let (mut bias, mut of_row) = (None, -T::ZERO);
        match self.bias {
            None => {}
            Some(Bias::PerRow(view)) => of_row = view.get([row]).copied().unwrap_or(of_row),
            Some(Bias::PerColumn(view)) => match view.as_slice() {
                Some(slice) => bias = Some(&slice[columns.clone()]),
                None => {
                    for (x, column) in run.iter_mut().zip(columns.clone()) {
                        *x += view.get([column]).copied().unwrap_or(T::ZERO);
                    }
                }
            },
        }
        let mut residual = None;
        if let Some(view) = self.residual {
            residual = view.row(row).map(|row| &row[columns.clone()]);
            if residual.is_none() {
                // The bias comes first, as it does in vectors.
                let bias = std::mem::take(&mut bias);
                for (i, (x, column)) in run.iter_mut().zip(columns).enumerate() {
                    *x += bias.map_or(of_row, |bias: &[T]| bias[i]);
                    *x += view.get([row, column]).copied().unwrap_or(T::ZERO);
                }
                of_row = -T::ZERO;
            }
        }
        let [low, high] = self.activation.bounds().unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
        let (low, high) = (simd.splat(T::from_f64(low)), simd.splat(T::from_f64(high)));
        let of_row = simd.splat(of_row);
        for (at, run) in run.chunks_mut(S::LANES).enumerate() {
            let at = at * S::LANES..at * S::LANES + run.len();
            let bias = bias.map_or(of_row, |bias| simd.load_up_to(&bias[at.clone()]));
            let mut value = simd.add(simd.load_up_to(run), bias);
            if let Some(residual) = residual {
                value = simd.add(value, simd.load_up_to(&residual[at]));
            }
            // The order of the operands lets NaN through.
            value = simd.max(low, simd.min(high, value));
            if run.len() == S::LANES {
                simd.store(value, run);
            } else {
                simd.store_partial(value, run);
            }
        }
        if self.activation.bounds().is_none() {
            simd.call(Activate { activation: self.activation, run });
        }
    }
}

/// Outlined, so that the functions are compiled once and not in every kernel.
struct Activate<'r, T> {
    activation: Activation,
    run: &'r mut [T],
}

impl<T: Element> SimdOp<T> for Activate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        activation::apply(simd, self.activation, self.run);
    }
}
