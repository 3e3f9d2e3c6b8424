//! Tilewise for the Python script: a C interface to just what the script times.
//!
//! Pointers are to contiguous row-major matrices; one flagged as transposed lies in memory as its transpose.
//! Functions that compute return whether they succeeded. All of them are unsafe for the same reason: pointers
//! must lead to matrices of the sizes given, and C may overlap no other.
#![allow(clippy::missing_safety_doc)] // said once, above

mod abi_attention;
mod abi_conv;
#[path = "../../support/peak.rs"]
mod peak;

use std::slice::{from_raw_parts, from_raw_parts_mut};

use tilewise::gemm::{Gemm, Operand, Packed, gram};
use tilewise::{Element, Result, TensorView, TensorViewMut};

/// A matrix as the caller describes it.
unsafe fn matrix<'a, T: Element>(
    data: *const T,
    [rows, columns]: [usize; 2],
    transposed: bool,
) -> Result<TensorView<'a, T, 2>> {
    // SAFETY: the caller's promise, as in all of this file.
    let data = unsafe { from_raw_parts(data, rows * columns) };
    if transposed {
        return Ok(TensorView::from_slice(data, [columns, rows])?.transpose());
    }
    TensorView::from_slice(data, [rows, columns])
}

unsafe fn run<'a, T: Element>(
    a: TensorView<'a, T, 2>,
    b: impl Into<Operand<'a, T>>,
    c: *mut T,
    n: usize,
) -> Result<()> {
    let shape = [a.shape()[0], n];
    // SAFETY: the caller's promise.
    let c = unsafe { from_raw_parts_mut(c, shape[0] * shape[1]) };
    Gemm::new().run(a, b, TensorViewMut::from_slice(c, shape)?)
}

unsafe fn plain<T: Element>(
    [m, n, k]: [usize; 3],
    (a, a_transposed): (*const T, bool),
    (b, b_transposed): (*const T, bool),
    c: *mut T,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { run(matrix(a, [m, k], a_transposed)?, matrix(b, [k, n], b_transposed)?, c, n) }
}

/// C = A · B.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sgemm(
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    a_transposed: bool,
    b: *const f32,
    b_transposed: bool,
    c: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { plain([m, n, k], (a, a_transposed), (b, b_transposed), c) }.is_ok()
}

/// C = A · B.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_dgemm(
    m: usize,
    n: usize,
    k: usize,
    a: *const f64,
    a_transposed: bool,
    b: *const f64,
    b_transposed: bool,
    c: *mut f64,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { plain([m, n, k], (a, a_transposed), (b, b_transposed), c) }.is_ok()
}

/// C = A · Aᵀ.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sgram(m: usize, k: usize, a: *const f32, c: *mut f32) -> bool {
    // SAFETY: the caller's promise.
    let (a, c) = unsafe { (matrix(a, [m, k], false), from_raw_parts_mut(c, m * m)) };
    a.and_then(|a| gram(1.0, a, 0.0, TensorViewMut::from_slice(c, [m, m])?)).is_ok()
}

/// A batch of products, the matrices of which lie one after the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sgemm_batched(
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let (a, b, c) = unsafe {
        (
            from_raw_parts(a, batch * m * k),
            from_raw_parts(b, batch * k * n),
            from_raw_parts_mut(c, batch * m * n),
        )
    };
    let mut product = || {
        let a = TensorView::from_slice(a, [batch, m, k])?;
        let b = TensorView::from_slice(b, [batch, k, n])?;
        Gemm::new().run_batched(a, b, TensorViewMut::from_slice(c, [batch, m, n])?)
    };
    product().is_ok()
}

/// Packs B for [`tilewise_sgemm_packed`]; null where that fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_spack(k: usize, n: usize, b: *const f32) -> *mut Packed<f32> {
    // SAFETY: the caller's promise.
    let packed = unsafe { matrix(b, [k, n], false) }.and_then(Packed::rhs);
    packed.map_or(std::ptr::null_mut(), |packed| Box::into_raw(Box::new(packed)))
}

/// C = A · B with a packed B.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sgemm_packed(
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    b: *const Packed<f32>,
    c: *mut f32,
) -> bool {
    // SAFETY: the caller's promise; B comes from `tilewise_spack` and has not been freed.
    unsafe { matrix(a, [m, k], false).and_then(|a| run(a, &*b, c, n)) }.is_ok()
}

/// Frees a packed B.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_free(packed: *mut Packed<f32>) {
    // SAFETY: the caller's promise; it comes from `tilewise_spack` and is freed once.
    drop(unsafe { Box::from_raw(packed) });
}
