//! Matrix multiplication: C = activation(alpha · A · B + beta · C + bias + residual).
//!
//! A is `[m, k]`, B is `[k, n]`, C and the residual are `[m, n]`, the bias is `[m]` or `[n]`; cᵢⱼ takes in
//! Σₚ aᵢₚ · bₚⱼ. All may have any strides; those of A and B may be negative or 0.
//!
//! # How
//!
//! The loops are those of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (ACM TOMS 34(3), 2008). Where a panel of B stays in L1 (AVX2, baseline) some panels of A stay in L2, and go by for each
//! panel of B, which comes from farther. With the wide tiles of AVX-512, and for few steps of depth, it is B that is
//! resident in L2, and a row of tiles of C is computed from left to right: its pages and cache lines come in the order in
//! which memory has them. The latter:
//!
//! ```text
//!                 n                          B, packed or in place   in L2: kc × nc
//!            ┌─────────┐                     ┌──┬──┬──┬──┐
//!            │    B    │ k                   │  │  │  │  │ kc
//!            └─────────┘                     └──┴──┴──┴──┘
//!      k                   A, in L1
//!    ┌───┐   ┌─────────┐      ┌────┐         ┌──┬──┬──┬──┐
//!  m │ A │   │    C    │      ├────┤         ├──┼──▓──┼──┤         one tile of C in registers
//!    │   │   │         │      ├────┤         ├──┼──┼──┼──┤
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
//! Each step multiplies a column of A, one broadcast element at a time, with a row of B in vectors (a lone column beside three
//! vectors, the other way around). Tiles are 6 ×
//! 64 (AVX-512; 12 × 32 where there are no more columns), 6 × 16 (AVX2) and 4 × 8 (baseline) in `f32`, half as wide in
//! `f64`. The kernel computes some tiles of a row or of a column at a time. The epilogue runs over each tile
//! after its last step of depth, while it is in registers or in L1.
//!
//! # Which path runs when
//!
//! | shape and operands | path |
//! | --- | --- |
//! | m or n is 0 | nothing to do |
//! | k is 0 | C is scaled and the epilogue runs |
//! | C is column-major, nothing is packed | the transposed product: Cᵀ = Bᵀ · Aᵀ |
//! | m or n is 1, nothing is packed, the matrix has contiguous rows or columns | matrix–vector: dot products, or rows added up in L1 |
//! | m is 2 to 8 (AVX-512 48), n at least 8, columns of B contiguous, k at least 2 vectors for each row (AVX-512 12 steps, f64 8); or n fills at most half of a vector, m at least 8, rows of A contiguous, k at least 4 vectors for each column; the few and 6 lines of the other in half of L2, nothing packed | the same: dot products of up to four of the few and six of the others at once, unless C is turned as below |
//! | at most 128³ multiplications for one thread, k at most 128, rows of B and C contiguous, rows or columns of A; on the baseline columns that fill vectors | tiny: nothing is packed |
//! | A column-major, at least two vectors of rows, C row-major and with at most half as many elements as A and B, nothing packed; few columns, which would fill at most half of a vector, or B column-major and at most 2¹⁴ elements of C | the transposed product beside C, which is turned |
//! | m is at most 72 (baseline 48; AVX-512 96 where B is larger than L3, 24 where this is that of a server, else 7 and 8, and up to 16 where rows of B are whole pages apart), B is larger than half of L2, its rows contiguous and long | thin: B read once, along its rows |
//! | A and B contiguous along a depth of more than two blocks, C row-major and at most 4 MiB, at least twice as many columns as rows, at least a tile's columns of rows | the transposed product: the shorter operand is packed, Cᵀ made beside C |
//! | A column-major, larger than a quarter of L3, a block of its depth no more than a quarter of L2, with more rows than B has columns; depth and C as before | the same: its columns are read as rows |
//! | several threads, few tiles of C that go unevenly or operands larger than L2, and at least 2 blocks of depth for each thread | split: blocks of depth as products of their own, added up in order |
//! | rows of A contiguous, with AVX2 and the baseline up to 512 columns; columns of A contiguous and n at most 8 tiles, or 4, or up to 8 of less than 16 columns, where A is larger than a quarter of L2, or a vector where it is larger than L2 and its columns begin whole pages apart | blocked, A read in place |
//! | n takes several blocks, a block of A is small (AVX-512 where L3 is that of a server: 16 MiB) | blocked, A packed at once |
//! | m is at most 72 (AVX2 36, baseline 24), or 4 times that where a block of B fits in L2 as it lies and, but for AVX-512 and few steps of depth, 60 rows (AVX2) where it takes 1 MiB at most, or 144 where L3 is that of a server and B takes 16 MiB at most, rows of B contiguous | blocked, B read in place; where there are 24 rows (AVX2 12, baseline 16; AVX-512 48 where L3 is that of a server) and the vectors of B are parts of two cache lines, or L3 is that of a server and there are more than 96 (AVX2 48, baseline 32) or B takes more than 16 MiB, its panels are packed by the first tile that reads them |
//! | an operand is [`Packed`] | blocked, that operand read as it was packed; by a lone row some panels side by side; a right one of at most a quarter of L2 by each thread, for its rows, if these are 8 tiles for each |
//! | columns of B contiguous, a block of A takes no more than a sixteenth of L2 | blocked, as much of B packed at a time |
//! | anything else | blocked, A packed some panels at a time, B block by block |
//! | C is larger than 32 MiB or than L3, and is written once and not read, as with few steps of depth (a rank-k update of it, beta 0) | as above, C written past the caches |
//! | [`gram`]: A · Aᵀ | halves: a product below the diagonal, copied above it; leaves of tiles on and below it; up to 256 rows of 4096 steps or more are the sum of such products of 2 to 8 parts of the depth |
//! | a batch of products of less than 2²⁴ multiplications each | its entries are the tasks |
//!
//! # Promises
//!
//! The result has the same bits for any number of threads: an element is the sum over its blocks of depth in order,
//! and in a block over its steps in order, or a dot product over lanes, whoever computes it. The depth of a block
//! depends on the shape of the whole product, the element type, the machine and how the operands lie; over packed ones, in
//! [`gram`] and in layers on `k` instead of the shape, so over a [`Packed`] right operand a row has the same bits alone and
//! in any batch. [`gram`] sums parts of a large depth by themselves first. Results
//! differ between instruction sets in rounding.

mod ahead;
mod block;
mod blocking;
mod descriptor;
mod driver;
mod epilogue;
mod gram;
mod keep;
mod kernel;
mod lone;
mod packed;
mod panel;
mod series;
mod split;
mod step;
mod sweep;
mod thin;
mod tiny;
mod vector;
mod walk;

pub(crate) use block::{Block, Store};
pub(crate) use blocking::{LEAST_DEPTH, NEAR, Tile, balanced, depth_block, tile, tile_rows};
pub(crate) use descriptor::Products;
pub use descriptor::{BatchOperand, Gemm, Operand, gemm};
pub(crate) use driver::{Extent, GRAIN, Input, Scale, blocks, columns, depth_blocks, product};
pub use epilogue::Bias;
pub(crate) use epilogue::Epilogue;
pub use gram::gram;
pub(crate) use kernel::{Kernels, each};
pub(crate) use lone::RUNS;
pub use packed::Packed;
pub(crate) use packed::Slab;
pub(crate) use panel::{PanelSource, Panels, Runs, pack, packed_len, transpose};
pub(crate) use series::Series;
pub(crate) use split::Sums;
pub(crate) use walk::Order;
