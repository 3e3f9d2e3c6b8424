//! One pass over the gates of some rows and units: what follows the product, in vectors.
#![forbid(unsafe_code)]

use super::descriptor::Nonlinearity;
use super::functions::{Functions, Gates, Role, Usual};
use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{self, Dispatch, Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut};

kernels! {
    /// Element types with their passes.
    pub trait Passes {
        /// What follows the product of a step.
        fn forward_pass(isa: Isa, pass: ForwardPass<'_, Self>) {
            match pass.functions {
                None => Self::dispatch(isa, With(pass, Usual)),
                Some(functions) => Self::dispatch(isa, With(pass, functions)),
            }
        }

        /// What precedes the product of a step back.
        fn backward_pass(isa: Isa, pass: BackwardPass<'_, Self>) {
            match pass.functions {
                None => Self::dispatch(isa, With(pass, Usual)),
                Some(functions) => Self::dispatch(isa, With(pass, functions)),
            }
        }
    }
}

/// A pass and how it computes activations.
struct With<P, G>(P, G);

/// What a pass computes.
#[derive(Clone, Copy, Debug)]
pub enum Stage<T> {
    /// out = h.
    Elman(Nonlinearity),
    /// out = o ⊙ tanh c: h, unless that is projected.
    Lstm { clip: Option<T>, coupled: bool },
    /// out = h.
    GruAfter,
    /// r and z; out = r ⊙ h.
    GruReset,
    /// n; out = h.
    GruCandidate,
}

/// Forward, over some units: columns of a step's matrices, which have contiguous rows. What a stage does not use is empty.
pub struct ForwardPass<'p, T> {
    pub(super) stage: Stage<T>,
    pub(super) functions: Option<Functions>,
    /// U x, gates interleaved; then the gates, where they are kept or needed.
    pub(super) z: TensorViewMut<'p, T, 2>,
    /// Added to it.
    pub(super) bias: &'p [T],
    pub(super) keep: bool,
    /// How far from a unit's gates in `z` those lie that the next pass reads in its place.
    pub(super) ahead: isize,
    /// W h, gates interleaved.
    pub(super) product: TensorView<'p, T, 2>,
    pub(super) h_prev: TensorView<'p, T, 2>,
    pub(super) c_prev: TensorView<'p, T, 2>,
    pub(super) c: TensorViewMut<'p, T, 2>,
    pub(super) out: TensorViewMut<'p, T, 2>,
    /// W h + b of gate n, where it is kept.
    pub(super) candidate: TensorViewMut<'p, T, 2>,
    pub(super) candidate_bias: &'p [T],
    /// To i, f and o.
    pub(super) peephole: [&'p [T]; 3],
}

/// Backward, over some units, likewise.
pub struct BackwardPass<'p, T> {
    pub(super) stage: Stage<T>,
    pub(super) functions: Option<Functions>,
    /// The gates, interleaved.
    pub(super) gates: TensorView<'p, T, 2>,
    pub(super) h: TensorView<'p, T, 2>,
    pub(super) h_prev: TensorView<'p, T, 2>,
    pub(super) c: TensorView<'p, T, 2>,
    pub(super) c_prev: TensorView<'p, T, 2>,
    pub(super) candidate: TensorView<'p, T, 2>,
    pub(super) peephole: [&'p [T]; 3],
    /// The gradient for h, and after the pass what of it goes to the h before past the product.
    pub(super) dh: TensorViewMut<'p, T, 2>,
    /// The gradient for o ⊙ tanh c where that is projected, or for r ⊙ h.
    pub(super) dout: TensorView<'p, T, 2>,
    pub(super) projected: bool,
    /// The gradient for c, and after the pass for the c before.
    pub(super) dc: TensorViewMut<'p, T, 2>,
    /// The gradients for the gates before their activations, gate by gate.
    pub(super) dz: [TensorViewMut<'p, T, 2>; 4],
    /// o ⊙ tanh c where that is projected, or r ⊙ h.
    pub(super) out: TensorViewMut<'p, T, 2>,
}

/// The vector from `at` on, of which `n` elements exist.
#[inline(always)]
fn get<T: Element, S: Simd<T>>(simd: S, from: &[T], at: usize, n: usize) -> S::V {
    simd.load_up_to(&from[at..at + n])
}

/// Writes `n` elements of a vector from `at` on.
#[inline(always)]
fn put<T: Element, S: Simd<T>>(simd: S, v: S::V, to: &mut [T], at: usize, n: usize) {
    simd.store_up_to(v, &mut to[at..at + n]);
}

/// Asks for the cache lines that lie `ahead` of these.
#[inline(always)]
fn ask<T: Element>(from: &[T], ahead: isize) {
    for at in (0..from.len()).step_by(simd::CACHE_LINE / size_of::<T>()) {
        simd::prefetch(from.as_ptr().wrapping_offset(at as isize + ahead));
    }
}

/// Vector `k` of some.
#[inline(always)]
fn block<T: Element, S: Simd<T>>(simd: S, from: &[T], k: usize) -> S::V {
    simd.load(&from[k * S::LANES..])
}

/// The sum of the vectors `k` of all three.
#[inline(always)]
fn sum<T: Element, S: Simd<T>>(simd: S, z: &[T], product: &[T], bias: &[T], k: usize) -> S::V {
    simd.add(simd.add(block(simd, z, k), block(simd, bias, k)), block(simd, product, k))
}

#[inline(always)]
fn row<'a, T>(view: &TensorView<'a, T, 2>, index: usize) -> &'a [T] {
    view.row(index).unwrap_or(&[])
}

#[inline(always)]
fn row_mut<'v, T>(view: &'v mut TensorViewMut<'_, T, 2>, index: usize) -> &'v mut [T] {
    view.row_mut(index).unwrap_or(&mut [])
}

/// `body` with `at` the first unit of each vector and `n` the units in it.
macro_rules! vectors {
    ($S:ident, $units:expr, |$at:ident, $n:ident| $body:block) => {
        for $at in (0..$units).step_by($S::LANES) {
            let $n = $S::LANES.min($units - $at);
            $body
        }
    };
}

macro_rules! by_stage {
    ($($Pass:ident)*) => {$(
        impl<T: Element, G: Gates<T>> SimdOp<T> for With<$Pass<'_, T>, G> {
            type Output = ();

            #[inline(always)]
            fn eval<S: Simd<T>>(self, simd: S) {
                let With(mut pass, gates) = self;
                match pass.stage {
                    Stage::Elman(nonlinearity) => pass.elman(simd, gates, nonlinearity),
                    Stage::Lstm { clip, coupled } => pass.lstm(simd, gates, clip, coupled),
                    Stage::GruAfter => pass.gru_after(simd, gates),
                    Stage::GruReset => pass.gru_reset(simd, gates),
                    Stage::GruCandidate => pass.gru_candidate(simd, gates),
                }
            }
        }
    )*};
}

by_stage!(ForwardPass BackwardPass);

impl<T: Element> ForwardPass<'_, T> {
    #[inline(always)]
    fn elman<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G, nonlinearity: Nonlinearity) {
        let [rows, units] = self.out.shape();
        for i in 0..rows {
            let (z, product) = (row_mut(&mut self.z, i), row(&self.product, i));
            let out = row_mut(&mut self.out, i);
            vectors!(S, units, |at, n| {
                ask(&z[at..at + S::LANES], self.ahead);
                let sum = sum(s, &z[at..], &product[at..], &self.bias[at..], 0);
                let h = match nonlinearity {
                    Nonlinearity::Tanh => a.value(s, Role::Candidate, sum),
                    // In this order of operands NaN passes.
                    Nonlinearity::Relu => s.max(s.splat(T::ZERO), sum),
                };
                put(s, h, out, at, n);
                if self.keep {
                    s.store(a.kept(sum, h), &mut z[at..]);
                }
            });
        }
    }

    #[inline(always)]
    fn lstm<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G, clip: Option<T>, coupled: bool) {
        let [rows, units] = self.out.shape();
        let [to_i, to_f, to_o] = self.peephole;
        for i in 0..rows {
            let (z, product) = (row_mut(&mut self.z, i), row(&self.product, i));
            let (c_prev, c) = (row(&self.c_prev, i), row_mut(&mut self.c, i));
            let out = row_mut(&mut self.out, i);
            vectors!(S, units, |at, n| {
                let z = &mut z[4 * at..4 * (at + S::LANES)];
                ask(z, self.ahead);
                let product = &product[4 * at..4 * (at + S::LANES)];
                let bias = &self.bias[4 * at..4 * (at + S::LANES)];
                let (mut i, mut f, g, mut o) = (
                    sum(s, z, product, bias, 0),
                    sum(s, z, product, bias, 1),
                    sum(s, z, product, bias, 2),
                    sum(s, z, product, bias, 3),
                );
                let before = get(s, c_prev, at, n);
                if !to_i.is_empty() {
                    i = s.mul_add(get(s, to_i, at, n), before, i);
                    f = s.mul_add(get(s, to_f, at, n), before, f);
                }
                let (z_i, z_f, z_g) = (i, f, g);
                let (i, g) = (a.value(s, Role::Gate, i), a.value(s, Role::Candidate, g));
                let f = if coupled { s.sub(s.splat(T::ONE), i) } else { a.value(s, Role::Gate, f) };
                let mut after = s.mul_add(f, before, s.mul(i, g));
                if let Some(clip) = clip {
                    // In this order of operands NaN passes.
                    after = s.max(s.splat(-clip), s.min(s.splat(clip), after));
                }
                if !to_o.is_empty() {
                    o = s.mul_add(get(s, to_o, at, n), after, o);
                }
                let z_o = o;
                let o = a.value(s, Role::Gate, o);
                put(s, after, c, at, n);
                put(s, s.mul(o, a.value(s, Role::Output, after)), out, at, n);
                if self.keep {
                    s.store(a.kept(z_i, i), z);
                    s.store(a.kept(z_f, f), &mut z[S::LANES..]);
                    s.store(a.kept(z_g, g), &mut z[2 * S::LANES..]);
                    s.store(a.kept(z_o, o), &mut z[3 * S::LANES..]);
                }
            });
        }
    }

    #[inline(always)]
    fn gru_after<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.out.shape();
        for i in 0..rows {
            let (z, product) = (row_mut(&mut self.z, i), row(&self.product, i));
            let (h_prev, out) = (row(&self.h_prev, i), row_mut(&mut self.out, i));
            let candidate = row_mut(&mut self.candidate, i);
            vectors!(S, units, |at, n| {
                let z = &mut z[3 * at..3 * (at + S::LANES)];
                ask(z, self.ahead);
                let product = &product[3 * at..3 * (at + S::LANES)];
                let bias = &self.bias[3 * at..3 * (at + S::LANES)];
                let (z_r, z_z) = (sum(s, z, product, bias, 0), sum(s, z, product, bias, 1));
                let (reset, update) = (a.value(s, Role::Gate, z_r), a.value(s, Role::Gate, z_z));
                let q = s.add(s.load(&product[2 * S::LANES..]), get(s, self.candidate_bias, at, n));
                let from_x = s.add(block(s, z, 2), block(s, bias, 2));
                let z_n = s.mul_add(reset, q, from_x);
                let new = a.value(s, Role::Candidate, z_n);
                let h = get(s, h_prev, at, n);
                put(s, s.mul_add(update, s.sub(h, new), new), out, at, n);
                if self.keep {
                    s.store(a.kept(z_r, reset), z);
                    s.store(a.kept(z_z, update), &mut z[S::LANES..]);
                    s.store(a.kept(z_n, new), &mut z[2 * S::LANES..]);
                    put(s, q, candidate, at, n);
                }
            });
        }
    }

    #[inline(always)]
    fn gru_reset<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.out.shape();
        for i in 0..rows {
            let (z, product) = (row_mut(&mut self.z, i), row(&self.product, i));
            let (h_prev, out) = (row(&self.h_prev, i), row_mut(&mut self.out, i));
            vectors!(S, units, |at, n| {
                let z = &mut z[3 * at..3 * (at + S::LANES)];
                ask(z, self.ahead);
                let product = &product[2 * at..2 * (at + S::LANES)];
                let bias = &self.bias[3 * at..3 * (at + S::LANES)];
                let (z_r, z_z) = (sum(s, z, product, bias, 0), sum(s, z, product, bias, 1));
                let (reset, update) = (a.value(s, Role::Gate, z_r), a.value(s, Role::Gate, z_z));
                put(s, s.mul(reset, get(s, h_prev, at, n)), out, at, n);
                s.store(a.kept(z_r, reset), z);
                s.store(a.kept(z_z, update), &mut z[S::LANES..]);
            });
        }
    }

    #[inline(always)]
    fn gru_candidate<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.out.shape();
        for i in 0..rows {
            let (z, product) = (row_mut(&mut self.z, i), row(&self.product, i));
            let (h_prev, out) = (row(&self.h_prev, i), row_mut(&mut self.out, i));
            vectors!(S, units, |at, n| {
                let z = &mut z[3 * at..3 * (at + S::LANES)];
                ask(z, self.ahead);
                let (update, _) = a.back(s, Role::Gate, s.load(&z[S::LANES..]));
                let bias = &self.bias[3 * at..3 * (at + S::LANES)];
                let from_x = s.add(block(s, z, 2), block(s, bias, 2));
                let z_n = s.add(from_x, s.load(&product[at..]));
                let new = a.value(s, Role::Candidate, z_n);
                let h = get(s, h_prev, at, n);
                put(s, s.mul_add(update, s.sub(h, new), new), out, at, n);
                if self.keep {
                    s.store(a.kept(z_n, new), &mut z[2 * S::LANES..]);
                }
            });
        }
    }
}

impl<T: Element> BackwardPass<'_, T> {
    #[inline(always)]
    fn elman<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G, nonlinearity: Nonlinearity) {
        let [rows, units] = self.dh.shape();
        let zero = s.splat(T::ZERO);
        for i in 0..rows {
            let (h, gates) = (row(&self.h, i), row(&self.gates, i));
            let dh = row_mut(&mut self.dh, i);
            let dz = row_mut(&mut self.dz[0], i);
            vectors!(S, units, |at, n| {
                let (h, gradient) = (get(s, h, at, n), get(s, dh, at, n));
                let kept = if G::ARGUMENTS { s.load(&gates[at..]) } else { h };
                let d = match nonlinearity {
                    Nonlinearity::Tanh => s.mul(gradient, a.back(s, Role::Candidate, kept).1),
                    Nonlinearity::Relu => s.select(s.lt(zero, h), gradient, zero),
                };
                put(s, d, dz, at, n);
                put(s, zero, dh, at, n);
            });
        }
    }

    #[inline(always)]
    fn lstm<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G, clip: Option<T>, coupled: bool) {
        let [rows, units] = self.dc.shape();
        let zero = s.splat(T::ZERO);
        let [to_i, to_f, to_o] = self.peephole;
        let [dz_i, dz_f, dz_g, dz_o] = &mut self.dz;
        for i in 0..rows {
            let (gates, c, c_prev) = (row(&self.gates, i), row(&self.c, i), row(&self.c_prev, i));
            let (dh, dc, dout) = (row_mut(&mut self.dh, i), row_mut(&mut self.dc, i), row(&self.dout, i));
            let (dz_i, dz_f) = (row_mut(dz_i, i), row_mut(dz_f, i));
            let (dz_g, dz_o) = (row_mut(dz_g, i), row_mut(dz_o, i));
            let out = row_mut(&mut self.out, i);
            vectors!(S, units, |at, n| {
                let gates = &gates[4 * at..4 * (at + S::LANES)];
                let (i, slope_i) = a.back(s, Role::Gate, block(s, gates, 0));
                let (f, slope_f) = a.back(s, Role::Gate, block(s, gates, 1));
                let (g, slope_g) = a.back(s, Role::Candidate, block(s, gates, 2));
                let (o, slope_o) = a.back(s, Role::Gate, block(s, gates, 3));
                let (c, before) = (get(s, c, at, n), get(s, c_prev, at, n));
                let (t, slope_t) = a.back(s, Role::Output, c);
                let gradient = if self.projected { get(s, dout, at, n) } else { get(s, dh, at, n) };
                let d_o = s.mul(s.mul(gradient, t), slope_o);
                let mut cell = s.mul_add(s.mul(gradient, o), slope_t, get(s, dc, at, n));
                if !to_o.is_empty() {
                    cell = s.mul_add(d_o, get(s, to_o, at, n), cell);
                }
                if let Some(clip) = clip {
                    cell = s.select(s.lt(s.abs(c), s.splat(clip)), cell, zero);
                }
                // Coupled, what f would have got goes to i, with the other sign.
                let (f, slope_f) = if coupled { (s.sub(s.splat(T::ONE), i), zero) } else { (f, slope_f) };
                let by_i = if coupled { s.sub(g, before) } else { g };
                let d_i = s.mul(s.mul(cell, by_i), slope_i);
                let d_f = s.mul(s.mul(cell, before), slope_f);
                let d_g = s.mul(s.mul(cell, i), slope_g);
                let mut cell = s.mul(cell, f);
                if !to_i.is_empty() {
                    cell = s.mul_add(d_i, get(s, to_i, at, n), cell);
                    cell = s.mul_add(d_f, get(s, to_f, at, n), cell);
                }
                put(s, d_i, dz_i, at, n);
                put(s, d_f, dz_f, at, n);
                put(s, d_g, dz_g, at, n);
                put(s, d_o, dz_o, at, n);
                put(s, cell, dc, at, n);
                if self.projected {
                    put(s, s.mul(o, t), out, at, n);
                } else {
                    put(s, zero, dh, at, n);
                }
            });
        }
    }

    /// dz is n's from x, r's, z's and n's from h.
    #[inline(always)]
    fn gru_after<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.dh.shape();
        let [dz_n, dz_r, dz_z, dz_q] = &mut self.dz;
        for i in 0..rows {
            let (gates, h_prev, candidate) =
                (row(&self.gates, i), row(&self.h_prev, i), row(&self.candidate, i));
            let (dz_n, dz_r) = (row_mut(dz_n, i), row_mut(dz_r, i));
            let (dz_z, dz_q) = (row_mut(dz_z, i), row_mut(dz_q, i));
            let dh = row_mut(&mut self.dh, i);
            vectors!(S, units, |at, n| {
                let gates = &gates[3 * at..3 * (at + S::LANES)];
                let (reset, slope_r) = a.back(s, Role::Gate, block(s, gates, 0));
                let (update, slope_z) = a.back(s, Role::Gate, block(s, gates, 1));
                let (new, slope_n) = a.back(s, Role::Candidate, block(s, gates, 2));
                let (h, q, gradient) = (get(s, h_prev, at, n), get(s, candidate, at, n), get(s, dh, at, n));
                let d_z = s.mul(s.mul(gradient, s.sub(h, new)), slope_z);
                let d_n = s.mul(s.neg_mul_add(gradient, update, gradient), slope_n);
                let d_r = s.mul(s.mul(d_n, q), slope_r);
                put(s, d_n, dz_n, at, n);
                put(s, d_r, dz_r, at, n);
                put(s, d_z, dz_z, at, n);
                put(s, s.mul(d_n, reset), dz_q, at, n);
                put(s, s.mul(gradient, update), dh, at, n);
            });
        }
    }

    /// The first of two: dz of z and n, and r ⊙ h.
    #[inline(always)]
    fn gru_candidate<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.dh.shape();
        let [_, dz_z, dz_n, _] = &mut self.dz;
        for i in 0..rows {
            let (gates, h_prev) = (row(&self.gates, i), row(&self.h_prev, i));
            let (dz_z, dz_n) = (row_mut(dz_z, i), row_mut(dz_n, i));
            let (dh, out) = (row_mut(&mut self.dh, i), row_mut(&mut self.out, i));
            vectors!(S, units, |at, n| {
                let gates = &gates[3 * at..3 * (at + S::LANES)];
                let (reset, _) = a.back(s, Role::Gate, block(s, gates, 0));
                let (update, slope_z) = a.back(s, Role::Gate, block(s, gates, 1));
                let (new, slope_n) = a.back(s, Role::Candidate, block(s, gates, 2));
                let (h, gradient) = (get(s, h_prev, at, n), get(s, dh, at, n));
                let d_z = s.mul(s.mul(gradient, s.sub(h, new)), slope_z);
                let d_n = s.mul(s.neg_mul_add(gradient, update, gradient), slope_n);
                put(s, d_z, dz_z, at, n);
                put(s, d_n, dz_n, at, n);
                put(s, s.mul(reset, h), out, at, n);
                put(s, s.mul(gradient, update), dh, at, n);
            });
        }
    }

    /// The second, after the product with W of gate n: dz of r.
    #[inline(always)]
    fn gru_reset<S: Simd<T>, G: Gates<T>>(&mut self, s: S, a: G) {
        let [rows, units] = self.dh.shape();
        let [dz_r, ..] = &mut self.dz;
        for i in 0..rows {
            let (gates, h_prev, dout) = (row(&self.gates, i), row(&self.h_prev, i), row(&self.dout, i));
            let (dh, dz_r) = (row_mut(&mut self.dh, i), row_mut(dz_r, i));
            vectors!(S, units, |at, n| {
                let (reset, slope_r) = a.back(s, Role::Gate, s.load(&gates[3 * at..]));
                let (h, gradient) = (get(s, h_prev, at, n), get(s, dout, at, n));
                put(s, s.mul(s.mul(gradient, h), slope_r), dz_r, at, n);
                put(s, s.mul_add(gradient, reset, get(s, dh, at, n)), dh, at, n);
            });
        }
    }
}
