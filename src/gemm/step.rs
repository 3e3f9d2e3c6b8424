//! A step of depth: a column of A times a row of B, in registers.

use super::kernel::each;
use crate::element::Element;
use crate::simd::Simd;

/// All of `at`, `by` elements on. Not `map`, which is not always inlined: the addresses would be in memory.
#[inline(always)]
pub(super) fn moved<T>([a, b, c, d]: [*const T; 4], by: isize) -> [*const T; 4] {
    [a.wrapping_offset(by), b.wrapping_offset(by), c.wrapping_offset(by), d.wrapping_offset(by)]
}

/// sums += a · b for one step of depth.
///
/// # Safety
/// `R` elements can be read, of neighbours from `a[0]` on where they are `PACKED`, else three at `lines` from each of `a`;
/// and `V` vectors at `b`, of the last one `last` elements where they are `MASKED`.
#[inline(always)]
pub(super) unsafe fn step<
    T: Element,
    S: Simd<T>,
    const R: usize,
    const V: usize,
    const PACKED: bool,
    const MASKED: bool,
>(
    simd: S,
    a: [*const T; 4],
    lines: [isize; 3],
    b: *const T,
    last: usize,
    sums: &mut [[S::V; V]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let vectors = row::<T, S, V, MASKED>(simd, b, last);
        outer::<T, S, R, V, PACKED>(simd, a, lines, vectors, sums);
    }
}

/// As [`step`] over `PACKED` lines, but for the last vector, of which there is one element: `column` += a · that.
///
/// # Safety
/// `R` neighbours can be read from `a` on, and from `b` on one vector less than `V`, and an element.
#[inline(always)]
pub(super) unsafe fn step_lone<T: Element, S: Simd<T>, const R: usize, const V: usize>(
    simd: S,
    a: *const T,
    b: *const T,
    sums: &mut [[S::V; V]; R],
    column: &mut S::V,
) {
    // SAFETY: the caller's promise.
    let (a, b) =
        unsafe { (std::slice::from_raw_parts(a, R), std::slice::from_raw_parts(b, (V - 1) * S::LANES + 1)) };
    let mut vectors = [simd.splat(T::ZERO); V];
    each!(v in vectors V {
        if v + 1 < V {
            vectors[v] = simd.load(&b[v * S::LANES..]);
        }
    });
    each!(i in rows R {
        let x = simd.splat(a[i]);
        each!(v in vectors V {
            if v + 1 < V {
                sums[i][v] = simd.mul_add(x, vectors[v], sums[i][v]);
            }
        });
    });
    *column = simd.mul_add(simd.splat(b[(V - 1) * S::LANES]), simd.load_partial(a), *column);
}

/// The vectors of one step of B.
///
/// # Safety
/// `V` vectors can be read at `b`, of the last one `last` elements where they are `MASKED`.
#[inline(always)]
pub(super) unsafe fn row<T: Element, S: Simd<T>, const V: usize, const MASKED: bool>(
    simd: S,
    b: *const T,
    last: usize,
) -> [S::V; V] {
    let mut vectors = [simd.splat(T::ZERO); V];
    each!(v in vectors V {
        let masked = MASKED && v + 1 == V;
        // SAFETY: the caller's promise.
        let run = unsafe { std::slice::from_raw_parts(b.add(v * S::LANES), if masked { last } else { S::LANES }) };
        vectors[v] = if masked { simd.load_partial(run) } else { simd.load(run) };
    });
    vectors
}

/// sums += a · `vectors` for one step of depth.
///
/// # Safety
/// `R` elements can be read, of neighbours from `a[0]` on where they are `PACKED`, else three at `lines` from each of `a`.
#[inline(always)]
pub(super) unsafe fn outer<T: Element, S: Simd<T>, const R: usize, const V: usize, const PACKED: bool>(
    simd: S,
    a: [*const T; 4],
    lines: [isize; 3],
    vectors: [S::V; V],
    sums: &mut [[S::V; V]; R],
) {
    each!(i in rows R {
        let (from, line) = if PACKED { (a[0], i as isize) } else { (a[i / 3], lines[i % 3]) };
        // SAFETY: the caller's promise.
        let x = simd.splat(unsafe { *from.offset(line) });
        each!(v in vectors V {
            sums[i][v] = simd.mul_add(x, vectors[v], sums[i][v]);
        });
    });
}
