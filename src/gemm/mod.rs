//! C = activation(alpha · A · B + beta · C + bias + residual).

mod blocking;
mod descriptor;
mod driver;
mod epilogue;
mod kernel;
mod packed;
mod panel;
mod vector;

pub use descriptor::{BatchOperand, Gemm, Operand, gemm};
pub use epilogue::Bias;
pub use packed::Packed;
