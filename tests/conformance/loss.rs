//! Losses.

use tilewise::Element;

use super::{Array, Call, Result, skip};

pub const OPERATORS: &[&str] = &["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"];

pub fn run<T: Element>(_: &Call) -> Result<Vec<Array>> {
    skip("not yet")
}
