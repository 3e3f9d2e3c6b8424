//! Matrix multiplication: C = activation(alpha · A · B + beta · C + bias + residual).
//!
//! A is `[m, k]`, B is `[k, n]`, C and the residual are `[m, n]`, the bias is `[m]` or `[n]`; cᵢⱼ takes in
//! Σₚ aᵢₚ · bₚⱼ. All may have any strides; those of A and B may be negative or 0.
//!
//! # How
//!
//! The loops are those of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (ACM TOMS 34(3), 2008) in the arrangement of F. Van Zee and R. van de Geijn, "BLIS" (ACM TOMS 41(3), 2015):
//!
//! ```text
//!                 n                          B, packed              in L3: kc × nc
//!            ┌─────────┐                     ┌──┬──┬──┬──┐
//!            │    B    │ k                   │  │  │  │  │ kc        one panel in L1: kc × tile columns
//!            └─────────┘                     └──┴──┴──┴──┘
//!      k                   A, packed, in L2
//!    ┌───┐   ┌─────────┐      ┌────┐         ┌──┬──┬──┬──┐
//!  m │ A │   │    C    │      ├────┤         ├──┼──┼──┼──┤
//!    │   │   │         │      ├────┤ mc      ├──┼──▓──┼──┤         one tile of C in registers
//!    └───┘   └─────────┘      └────┘         └──┴──┴──┴──┘
//!                               kc
//! ```
//!
//! Packing rearranges a block so that the micro-kernel reads both operands from front to back:
//!
//! ```text
//!  panel of A, 3 rows high        a00 a10 a20 │ a01 a11 a21 │ a02 a12 a22 │ …      one step of depth each
//!  panel of B, 4 columns wide     b00 b01 b02 b03 │ b10 b11 b12 b13 │ …
//! ```
//!
//! Each step multiplies a column of A, one broadcast element at a time, with a row of B in vectors. Tiles are 12 ×
//! 32 (AVX-512), 6 × 16 (AVX2) and 4 × 8 (baseline) in `f32`, half as wide in `f64`. The epilogue runs over each tile
//! after its last step of depth, while it is in L1.
//!
//! # Which path runs when
//!
//! | shape and operands | path |
//! | --- | --- |
//! | m or n is 0 | nothing to do |
//! | k is 0 | C is scaled and the epilogue runs |
//! | C is column-major, nothing is packed | the transposed product: Cᵀ = Bᵀ · Aᵀ |
//! | m or n is 1, nothing is packed, the matrix has contiguous rows or columns | matrix–vector: dot products, or rows added up in L1 |
//! | n is at most 4 tiles | blocked, A read in place |
//! | m is at most 2 tiles, rows of B contiguous, n a multiple of the tile | blocked, B read in place |
//! | an operand is [`Packed`] | blocked, that operand read as it was packed |
//! | anything else | blocked, both packed |
//! | a batch of products of less than 2²⁴ multiplications each | its entries are the tasks |
//!
//! # Promises
//!
//! The result has the same bits for any number of threads: an element is the sum over its blocks of depth in order,
//! and in a block over its steps in order, whoever computes it. The depth of a block depends on `k`, the element type
//! and the machine alone, so over a [`Packed`] right operand a row has the same bits alone and in any batch. Results
//! differ between instruction sets in rounding.

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
pub(crate) use kernel::Kernels;
pub use packed::Packed;
