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

    /// Finishes the elements of `run`, which lie in `row` from `column` on.
    #[inline(always)]
    pub(crate) fn apply<S: Simd<T>>(&self, simd: S, row: usize, column: usize, run: &mut [T]) {
        let columns = column..column + run.len();
        match self.bias {
            None => {}
            Some(Bias::PerRow(bias)) => {
                let value = bias.get([row]).copied().unwrap_or(T::ZERO);
                run.iter_mut().for_each(|x| *x += value);
            }
            Some(Bias::PerColumn(bias)) => match bias.as_slice() {
                Some(bias) => run.iter_mut().zip(&bias[columns.clone()]).for_each(|(x, &b)| *x += b),
                None => {
                    for (x, column) in run.iter_mut().zip(columns.clone()) {
                        *x += bias.get([column]).copied().unwrap_or(T::ZERO);
                    }
                }
            },
        }
        if let Some(residual) = self.residual {
            match residual.row(row) {
                Some(residual) => run.iter_mut().zip(&residual[columns]).for_each(|(x, &r)| *x += r),
                None => {
                    for (x, column) in run.iter_mut().zip(columns) {
                        *x += residual.get([row, column]).copied().unwrap_or(T::ZERO);
                    }
                }
            }
        }
        if self.activation != Activation::Identity {
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
