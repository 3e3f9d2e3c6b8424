//! C = activation(alpha · A · B + beta · C + bias + residual).

mod descriptor;

pub use descriptor::{Bias, Gemm, Operand, Packed, gemm};
