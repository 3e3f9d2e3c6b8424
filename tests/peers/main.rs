//! The same numbers as PyTorch's and ONNX Runtime's, gradients among them, in double precision.
//!
//! `data/pytorch.py` made most of the vectors, `data/rnn.py` some for recurrent cells. Each test says how many cases of
//! each operation there are, and each case that all its arrays have been read: none is lost in silence.

mod attention;
mod cells;
mod image;
mod norm;
mod pointwise;
mod recurrent;
mod vectors;
