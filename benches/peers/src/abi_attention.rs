//! Attention and operations over rows for `python/attention.py`, as the products in `abi.rs`: pointers must lead to
//! contiguous tensors of the sizes given, and what is written may overlap nothing.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use tilewise::activation::{self, Activation};
use tilewise::attention::{Align, Attention, AttentionGradientsMut};
use tilewise::norm::{LayerNormalization, RmsNormalization};
use tilewise::softmax::Softmax;
use tilewise::{Result, TensorView, TensorViewMut, vecmath};

use crate::peak::{Memory, best_isa, fma_peak_f32};

/// What a caller says of an attention.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    /// The last query stands at the last key.
    pub causal: bool,
}

impl Sizes {
    fn options(&self) -> Attention<'static, f32> {
        if self.causal { Attention::new().causal(Align::End) } else { Attention::new() }
    }

    fn q(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.dim]
    }

    fn k(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.keys, self.dim]
    }
}

unsafe fn read<'a, const N: usize>(data: *const f32, shape: [usize; N]) -> Result<TensorView<'a, f32, N>> {
    // SAFETY: the caller's promise, as in all of this file.
    TensorView::from_slice(unsafe { from_raw_parts(data, shape.iter().product()) }, shape)
}

unsafe fn write<'a, const N: usize>(data: *mut f32, shape: [usize; N]) -> Result<TensorViewMut<'a, f32, N>> {
    // SAFETY: the caller's promise.
    TensorViewMut::from_slice(unsafe { from_raw_parts_mut(data, shape.iter().product()) }, shape)
}

/// Y.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sattention(
    sizes: &Sizes,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    y: *mut f32,
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let (q, k, v) = (read(q, sizes.q())?, read(k, sizes.k())?, read(v, sizes.k())?);
        sizes.options().forward_into(q, k, v, write(y, sizes.q())?)
    };
    run().is_ok()
}

/// Y, the normaliser of each query, and then all gradients.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_sattention_step(
    sizes: &Sizes,
    [q, k, v, dy]: &[*const f32; 4],
    [y, normalizer, dq, dk, dv]: &[*mut f32; 5],
) -> bool {
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let rows = [sizes.batch, sizes.heads, sizes.queries];
        let (q, k, v) = (read(*q, sizes.q())?, read(*k, sizes.k())?, read(*v, sizes.k())?);
        sizes.options().forward_saving_into(q, k, v, write(*y, sizes.q())?, write(*normalizer, rows)?)?;
        let gradients = AttentionGradientsMut {
            query: Some(write(*dq, sizes.q())?),
            key: Some(write(*dk, sizes.k())?),
            value: Some(write(*dv, sizes.k())?),
            bias: None,
        };
        let (y, normalizer) = (read(*y, sizes.q())?, read(*normalizer, rows)?);
        sizes.options().backward_into(q, k, v, y, normalizer, read(*dy, sizes.q())?, gradients)
    };
    run().is_ok()
}

/// An operation over rows, by its number in `python/attention.py`; normalisations with scale and shift.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_srows(
    operation: usize,
    rows: usize,
    columns: usize,
    x: *const f32,
    scale: *const f32,
    shift: *const f32,
    y: *mut f32,
) -> bool {
    let shape = [rows, columns];
    // SAFETY: the caller's promise.
    let run = || unsafe {
        let (from, to) = (read(x, shape)?, write(y, shape)?);
        let slices = || (from_raw_parts(x, rows * columns), from_raw_parts_mut(y, rows * columns));
        let (scale, shift) = (|| read(scale, [columns]), || read(shift, [columns]));
        match operation {
            0 => Softmax::new(1).forward_into(from, to),
            1 => LayerNormalization::new().forward_into(from, Some(scale()?), Some(shift()?), to),
            2 => RmsNormalization::new().forward_into(from, Some(scale()?), to),
            3 => activation::forward(Activation::Gelu, from, to),
            4 => {
                let (x, y) = slices();
                vecmath::exp_slice(x, y)
            }
            5 => {
                let (x, y) = slices();
                vecmath::tanh_slice(x, y)
            }
            _ => {
                let (x, y) = slices();
                vecmath::sigmoid_slice(x, y)
            }
        }
    };
    run().is_ok()
}

/// What the machine can do on so many threads: GFLOP/s in registers, GB/s read and copied.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tilewise_peaks(threads: usize, peaks: &mut [f64; 3]) {
    let mut memory = Memory::new();
    *peaks = [fma_peak_f32(best_isa(), threads), memory.read(threads), memory.copy(threads)];
}
