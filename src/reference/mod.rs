//! Scalar twins of every operation: plain loops straight from the formulas, for tests and for reading.
//!
//! They share nothing with the fast code but the tensor types, so that a mistake in its index arithmetic
//! cannot hide here. They take either element type, compute in `f64` and give back `f64`: what they return is
//! the value that a kernel's result is measured against.
#![forbid(unsafe_code)]

pub mod activation;
pub mod attention;
pub mod conv;
mod gemm;
mod linear;
mod loss;
pub mod norm;
mod optimizer;
mod perceptron;
pub mod pool;
pub mod rnn;
pub mod softmax;
pub mod transformer;
pub mod vecmath;

pub use gemm::{epilogue, gemm, gram, magnitude};
pub use linear::{dense, dense_backward};
pub use loss::{binary_cross_entropy, cross_entropy, likelihood, squared};
pub use optimizer::{Adam, Sgd};
pub use perceptron::{Learned, dual_perceptron, perceptron};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::TensorView;

/// The element at an index, as an `f64`. The callers have checked the shapes; NaN would show that they had not.
#[inline]
fn at<T: Element, const N: usize>(view: TensorView<'_, T, N>, index: [usize; N]) -> f64 {
    view.get(index).map_or(f64::NAN, |value| value.to_f64())
}

/// An error unless the shape is the one expected.
fn expect(op: &'static str, arg: &'static str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::shape(op, arg, found, expected)) }
}
