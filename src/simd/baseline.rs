//! What the compilation target always has, through the crate `wide`: vectors of 16 bytes.
#![forbid(unsafe_code)]

use super::{Simd, front, front_mut};
use crate::element::Element;
use crate::tensor::Fours;
use wide::bytemuck::cast;
use wide::{f32x4, f64x2, u32x4, u64x2};

/// Proof of nothing: every processor runs it.
#[derive(Clone, Copy, Debug)]
pub struct Baseline(());

impl Baseline {
    /// The token.
    #[inline]
    pub const fn new() -> Self {
        Baseline(())
    }
}

macro_rules! methods {
    ($(fn $name:ident $(<const $n:ident: i32>)? ($self:ident $(, $arg:ident: $type:ty)*) -> $out:ty $body:block)*) => {$(
        #[inline(always)]
        fn $name $(<const $n: i32>)? ($self $(, $arg: $type)*) -> $out $body
    )*};
}

macro_rules! baseline {
    ($T:ident, $uint:ident, $V:ident, $U:ident, $lanes:literal) => {
        impl Simd<$T> for Baseline {
            type V = $V;
            type M = $V;

            const LANES: usize = $lanes;
            const TILE_ROWS: usize = 4;
            const TILE_VECTORS: usize = 2;
            const NARROW_ROWS: usize = 4;
            const MASKED: bool = false;

            #[inline(always)]
            fn call<O: super::SimdOp<$T>>(self, op: O) -> O::Output {
                super::dispatch::Shims::baseline_shim(op)
            }

            #[inline(always)]
            fn within<const C: usize>(self, a: $V, lane: usize) -> $V {
                let a = a.to_array();
                $V::new(std::array::from_fn(|i| a[i / C * C + lane]))
            }

            methods! {
                fn splat(self, x: $T) -> $V { $V::splat(x) }
                fn splat_bits(self, bits: u64) -> $V { cast($U::splat(bits as $uint)) }
                fn load(self, src: &[$T]) -> $V { $V::new(*front(src)) }
                fn store(self, v: $V, dst: &mut [$T]) -> () { *front_mut(dst) = v.to_array() }
                fn load_partial(self, src: &[$T]) -> $V { $V::new(some(src)) }
                fn store_partial(self, v: $V, dst: &mut [$T]) -> () { put_some(v.to_array(), dst) }
                fn store_transposed(self, v: [$V; 4], dst: &mut [$T], stride: usize) -> () {
                    for (line, v) in v.into_iter().enumerate() {
                        for (i, lane) in v.to_array().into_iter().enumerate() {
                            dst[i * stride + line] = lane;
                        }
                    }
                }
                fn load_transposed(self, lines: Fours<'_, $T>) -> [$V; 4] {
                    std::array::from_fn(|p| $V::new(std::array::from_fn(|line| lines.get(line)[p])))
                }

                fn deinterleave(self, a: $V, b: $V) -> [$V; 2] {
                    let (a, b) = (a.to_array(), b.to_array());
                    let at = |i: usize| if i < $lanes { a[i] } else { b[i - $lanes] };
                    [0, 1].map(|odd| $V::new(std::array::from_fn(|i| at(2 * i + odd))))
                }
                fn interleave(self, a: $V, b: $V) -> [$V; 2] {
                    let (a, b) = (a.to_array(), b.to_array());
                    let at = |i: usize| if i % 2 == 0 { a[i / 2] } else { b[i / 2] };
                    [0, $lanes].map(|from| $V::new(std::array::from_fn(|i| at(from + i))))
                }

                fn add(self, a: $V, b: $V) -> $V { a + b }
                fn sub(self, a: $V, b: $V) -> $V { a - b }
                fn mul(self, a: $V, b: $V) -> $V { a * b }
                fn div(self, a: $V, b: $V) -> $V { a / b }
                fn mul_add(self, a: $V, b: $V, c: $V) -> $V { a.mul_add(b, c) }
                fn neg_mul_add(self, a: $V, b: $V, c: $V) -> $V { a.mul_neg_add(b, c) }
                fn sqrt(self, a: $V) -> $V { a.sqrt() }
                fn min(self, a: $V, b: $V) -> $V {
                    // On x86 these are one instruction with the semantics promised; elsewhere they are not.
                    if cfg!(target_feature = "sse2") { a.fast_min(b) } else { a.simd_lt(b).select(a, b) }
                }
                fn max(self, a: $V, b: $V) -> $V {
                    if cfg!(target_feature = "sse2") { a.fast_max(b) } else { b.simd_lt(a).select(a, b) }
                }
                fn abs(self, a: $V) -> $V { a & $V::splat($T::from_bits($uint::MAX >> 1)) }
                fn neg(self, a: $V) -> $V { a ^ $V::splat(-0.0) }
                fn copysign(self, a: $V, sign: $V) -> $V {
                    Simd::<$T>::abs(self, a) | sign & $V::splat(-0.0)
                }

                fn and(self, a: $V, b: $V) -> $V { a & b }
                fn or(self, a: $V, b: $V) -> $V { a | b }
                fn int_add(self, a: $V, b: $V) -> $V { cast(cast::<_, $U>(a) + cast::<_, $U>(b)) }
                fn int_sub(self, a: $V, b: $V) -> $V { cast(cast::<_, $U>(a) - cast::<_, $U>(b)) }
                fn shl<const N: i32>(self, a: $V) -> $V {
                    const { assert!(0 <= N && N < $uint::BITS as i32) };
                    cast(cast::<_, $U>(a) << N as u32)
                }
                fn shr<const N: i32>(self, a: $V) -> $V {
                    const { assert!(0 <= N && N < $uint::BITS as i32) };
                    cast(cast::<_, $U>(a) >> N as u32)
                }

                fn lt(self, a: $V, b: $V) -> $V { a.simd_lt(b) }
                fn le(self, a: $V, b: $V) -> $V { a.simd_le(b) }
                fn eq(self, a: $V, b: $V) -> $V { a.simd_eq(b) }
                fn ne(self, a: $V, b: $V) -> $V { a.simd_ne(b) }
                fn mask_and(self, a: $V, b: $V) -> $V { a & b }
                fn mask_or(self, a: $V, b: $V) -> $V { a | b }
                fn none(self, m: $V) -> bool { !m.any() }
                fn select(self, m: $V, a: $V, b: $V) -> $V { m.select(a, b) }

                fn reduce_add(self, a: $V) -> $T { fold(a.to_array(), |a, b| a + b) }
                fn reduce_max(self, a: $V) -> $T { fold(a.to_array(), |a, b| if a > b { a } else { b }) }
            }
        }
    };
}

baseline!(f32, u32, f32x4, u32x4, 4);
baseline!(f64, u64, f64x2, u64x2, 2);

/// As many elements as there are, then zeros. A function of its own: without masks it is long, and at most ends of rows take it.
#[inline(never)]
fn some<T: Element, const L: usize>(src: &[T]) -> [T; L] {
    let mut lanes = [T::ZERO; L];
    lanes.iter_mut().zip(src).for_each(|(lane, &x)| *lane = x);
    lanes
}

/// The inverse of [`some`].
#[inline(never)]
fn put_some<T: Element, const L: usize>(lanes: [T; L], dst: &mut [T]) {
    dst.iter_mut().zip(lanes).for_each(|(x, lane)| *x = lane);
}

/// Halves folded onto each other until one lane is left.
#[inline(always)]
fn fold<T: Copy, const L: usize>(mut lanes: [T; L], op: impl Fn(T, T) -> T) -> T {
    let mut half = L / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = op(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
