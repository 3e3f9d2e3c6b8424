//! Convolution.
#![forbid(unsafe_code)]

mod im2col;

pub use im2col::{Im2col, PatchOrder};
