//! Multithreaded SIMD CPU kernels for neural networks.
#![warn(missing_docs)]

mod element;
mod error;
pub mod machine;
mod simd;

pub use element::Element;
pub use error::{Error, Result};
