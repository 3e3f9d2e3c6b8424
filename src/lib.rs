#![doc = include_str!("../README.md")]

pub mod activation;
pub mod attention;
pub mod conv;
mod element;
mod error;
pub mod gemm;
pub mod layer;
pub mod linear;
pub mod loss;
pub mod machine;
pub mod norm;
mod parallel;
pub mod perceptron;
pub mod pool;
pub mod random;
pub mod reference;
pub mod rnn;
mod simd;
pub mod softmax;
mod spatial;
mod tensor;
pub mod vecmath;
mod workspace;

pub use element::Element;
pub use error::{Dims, Error, Result, Strides};
pub use spatial::{ImageRank, Spatial};
pub use tensor::{Iter, Layout, Tensor, TensorView, TensorViewMut, Window};
