//! Every operation of every token this machine has, lane by lane against scalar code, through
//! [`Dispatch`] so that it is compiled as kernels are.

use super::{Dispatch, Simd, SimdOp, Streams};
use crate::machine::{Isa, isa, supported};
use crate::{Element, TensorView};
use std::marker::PhantomData;

/// What the tests need to know of an element.
trait Lane: Element {
    const BITS: u32;
    /// Values at which something may go wrong.
    const SPECIAL: [Self; 26];

    fn raw(self) -> u64;
    fn from_raw(bits: u64) -> Self;
    fn fused(a: Self, b: Self, c: Self) -> Self;
    fn copysign(self, sign: Self) -> Self;
}

macro_rules! lane {
    ($t:ident, $uint:ident) => {
        impl Lane for $t {
            const BITS: u32 = $uint::BITS;
            const SPECIAL: [Self; 26] = {
                const INTEGERS: $t = 1.0 / $t::EPSILON;
                [
                    $t::NAN,
                    -$t::NAN,
                    $t::INFINITY,
                    $t::NEG_INFINITY,
                    0.0,
                    -0.0,
                    $t::from_bits(1),
                    -$t::from_bits(1),
                    $t::MIN_POSITIVE / 2.0,
                    $t::MIN_POSITIVE,
                    -$t::MIN_POSITIVE,
                    $t::MAX,
                    $t::MIN,
                    1.0,
                    -1.0,
                    1.0 + $t::EPSILON,
                    0.5,
                    -0.5,
                    0.5 - $t::EPSILON / 4.0,
                    1.5,
                    2.5,
                    -3.5,
                    INTEGERS,
                    -INTEGERS - 1.0,
                    INTEGERS - 1.0,
                    INTEGERS / 2.0 + 0.5,
                ]
            };

            fn raw(self) -> u64 {
                u64::from(self.to_bits())
            }
            fn from_raw(bits: u64) -> Self {
                $t::from_bits(bits as $uint)
            }
            fn fused(a: Self, b: Self, c: Self) -> Self {
                a.mul_add(b, c)
            }
            fn copysign(self, sign: Self) -> Self {
                $t::copysign(self, sign)
            }
        }
    };
}

lane!(f32, u32);
lane!(f64, u64);

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Three arguments a lane.
type Args<T> = [Vec<T>; 3];

/// All pairs of special values, then random ones: of any bits, and of moderate size; some third
/// argument with each. A multiple of every vector length.
#[inline(never)]
fn args<T: Lane>() -> Args<T> {
    let special = || T::SPECIAL.into_iter();
    let mut pairs: Vec<(T, T)> = special().flat_map(|a| special().map(move |b| (a, b))).collect();
    let mut state = 1;
    for _ in 0..2000 {
        pairs.push((T::from_raw(splitmix(&mut state)), T::from_raw(splitmix(&mut state))));
        let mut moderate = || T::from_f64((splitmix(&mut state) >> 11) as f64 / (1u64 << 50) as f64 - 4.0);
        pairs.push((moderate(), moderate()));
    }
    pairs.resize(pairs.len().next_multiple_of(16), (T::ONE, T::ONE));
    let (a, b): (Vec<T>, Vec<T>) = pairs.into_iter().unzip();
    let c = (0..a.len()).map(|i| b[i * 7 % b.len()]).collect();
    [a, b, c]
}

/// How a lane must agree.
#[derive(Clone, Copy, PartialEq)]
enum Agree {
    /// In all bits.
    Bits,
    /// In all bits, but one NaN is as good as another.
    Value,
}

#[inline(never)]
#[track_caller]
fn agree<T: Lane>(how: Agree, what: &str, args: &[T], found: T, expected: T) {
    let nan = how == Agree::Value && found.is_nan() && expected.is_nan();
    assert!(
        nan || found.raw() == expected.raw(),
        "{what}{args:?}: {found} ({:#x}), expected {expected} ({:#x})",
        found.raw(),
        expected.raw()
    );
}

/// An operation of three vectors, of which it may ignore some, on all arguments. Little of it is
/// compiled per operation.
#[inline(always)]
fn lanewise<T: Lane, S: Simd<T>>(
    s: S,
    how: Agree,
    what: &str,
    op: impl Fn(S::V, S::V, S::V) -> S::V,
    scalar: impl Fn(T, T, T) -> T,
) {
    #[inline(never)]
    fn check<T: Lane>(how: Agree, what: &str, args: &Args<T>, found: &[T], scalar: &dyn Fn(T, T, T) -> T) {
        for (i, &found) in found.iter().enumerate() {
            let [a, b, c] = [0, 1, 2].map(|arg| args[arg][i]);
            agree(how, what, &[a, b, c], found, scalar(a, b, c));
        }
    }

    let args = args::<T>();
    let [a, b, c] = &args;
    let mut found = vec![T::NAN; a.len()];
    for (i, found) in found.chunks_exact_mut(S::LANES).enumerate() {
        let [a, b, c] = [a, b, c].map(|arg| s.load(&arg[i * S::LANES..]));
        s.store(op(a, b, c), found);
    }
    check(how, what, &args, &found, &scalar);
}

/// Runs an operation with every instruction set that this machine has, for both element types.
macro_rules! everywhere {
    ($op:ident) => {
        for &isa in supported() {
            f32::dispatch(isa, $op(isa, PhantomData::<f32>));
            f64::dispatch(isa, $op(isa, PhantomData::<f64>));
        }
    };
}

/// Declares a struct that runs a body with a token, and the test that runs it everywhere.
macro_rules! token_test {
    ($test:ident, $Op:ident, |$s:ident, $isa:ident, $T:ident, $S:ident| $body:block) => {
        struct $Op<T>(Isa, PhantomData<T>);

        impl<$T: Lane> SimdOp<$T> for $Op<$T> {
            type Output = ();

            #[inline(always)]
            fn eval<$S: Simd<$T>>(self, $s: $S) {
                let $isa = self.0;
                $body
            }
        }

        #[test]
        fn $test() {
            everywhere!($Op);
        }
    };
}

fn fuses(isa: Isa) -> bool {
    isa != Isa::Baseline || cfg!(any(target_feature = "fma", target_arch = "aarch64"))
}

token_test!(arithmetic, Arithmetic, |s, isa, T, S| {
    use Agree::{Bits, Value};
    lanewise(s, Value, "add", |a, b, _| s.add(a, b), |a: T, b, _| a + b);
    lanewise(s, Value, "sub", |a, b, _| s.sub(a, b), |a: T, b, _| a - b);
    lanewise(s, Value, "mul", |a, b, _| s.mul(a, b), |a: T, b, _| a * b);
    lanewise(s, Value, "div", |a, b, _| s.div(a, b), |a: T, b, _| a / b);
    lanewise(s, Value, "sqrt", |a, _, _| s.sqrt(a), |a: T, _, _| Element::sqrt(a));
    lanewise(s, Bits, "min", |a, b, _| s.min(a, b), |a: T, b, _| if a < b { a } else { b });
    lanewise(s, Bits, "max", |a, b, _| s.max(a, b), |a: T, b, _| if a > b { a } else { b });
    lanewise(s, Bits, "abs", |a, _, _| s.abs(a), |a: T, _, _| Element::abs(a));
    lanewise(s, Bits, "neg", |a, _, _| s.neg(a), |a: T, _, _| -a);
    lanewise(s, Bits, "copysign", |a, b, _| s.copysign(a, b), |a: T, b, _| Lane::copysign(a, b));
    let product = |a, b, c| if fuses(isa) { T::fused(a, b, c) } else { a * b + c };
    lanewise(s, Value, "mul_add", |a, b, c| s.mul_add(a, b, c), product);
    lanewise(s, Value, "neg_mul_add", |a, b, c| s.neg_mul_add(a, b, c), |a, b, c| product(-a, b, c));
});

token_test!(bits_and_integers, Bits, |s, _isa, T, S| {
    let ones = u64::MAX >> (64 - T::BITS);
    #[inline(always)]
    fn bits<T: Lane, S: Simd<T>>(
        s: S,
        what: &str,
        op: impl Fn(S::V, S::V) -> S::V,
        scalar: impl Fn(u64, u64) -> u64,
    ) {
        let scalar = |a: T, b: T, _| T::from_raw(scalar(a.raw(), b.raw()));
        lanewise(s, Agree::Bits, what, |a, b, _| op(a, b), scalar);
    }
    bits(s, "and", |a, b| s.and(a, b), |a, b| a & b);
    bits(s, "or", |a, b| s.or(a, b), |a, b| a | b);
    bits(s, "int_add", |a, b| s.int_add(a, b), u64::wrapping_add);
    bits(s, "int_sub", |a, b| s.int_sub(a, b), u64::wrapping_sub);
    bits(s, "shl 0", |a, _| s.shl::<0>(a), |a, _| a);
    bits(s, "shl 1", |a, _| s.shl::<1>(a), |a, _| a << 1);
    bits(s, "shl 23", |a, _| s.shl::<23>(a), |a, _| a << 23);
    bits(s, "shl 31", |a, _| s.shl::<31>(a), |a, _| a << 31);
    bits(s, "shr 0", |a, _| s.shr::<0>(a), |a, _| a);
    bits(s, "shr 1", |a, _| s.shr::<1>(a), |a, _| a >> 1);
    bits(s, "shr 23", |a, _| s.shr::<23>(a), |a, _| a >> 23);
    bits(s, "shr 31", |a, _| s.shr::<31>(a), |a, _| a >> 31);

    let pattern = 0xDEAD_BEEF_7654_3210;
    bits(s, "splat_bits", |_, _| s.splat_bits(pattern), |_, _| pattern & ones);
    for x in T::SPECIAL {
        bits(s, "splat", |_, _| s.splat(x), |_, _| x.raw());
    }
});

token_test!(comparisons, Comparisons, |s, _isa, T, S| {
    #[inline(always)]
    fn compare<T: Lane, S: Simd<T>>(
        s: S,
        what: &str,
        op: impl Fn(S::V, S::V) -> S::M,
        scalar: impl Fn(T, T) -> bool,
    ) {
        let select = |a, b, c| s.select(op(a, b), b, c);
        lanewise(s, Agree::Bits, what, select, |a, b, c| if scalar(a, b) { b } else { c });

        let [a, b, _] = args::<T>();
        for (a, b) in a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)) {
            let none = !a.iter().zip(b).any(|(&a, &b)| scalar(a, b));
            assert!(s.none(op(s.load(a), s.load(b))) == none, "none {what}");
        }
    }
    compare(s, "lt", |a, b| s.lt(a, b), |a, b| a < b);
    compare(s, "le", |a, b| s.le(a, b), |a, b| a <= b);
    compare(s, "eq", |a, b| s.eq(a, b), |a, b| a == b);
    compare(s, "ne", |a, b| s.ne(a, b), |a, b| a != b);
    let zero = s.splat(T::ZERO);
    compare(s, "and", |a, b| s.mask_and(s.le(a, b), s.lt(a, zero)), |a, b| a <= b && a < T::ZERO);
    compare(s, "or", |a, b| s.mask_or(s.lt(a, b), s.eq(a, zero)), |a, b| a < b || a == T::ZERO);

    for lane in 0..S::LANES {
        let mut one = vec![T::ZERO; S::LANES];
        one[lane] = T::ONE;
        assert!(!s.none(s.lt(zero, s.load(&one))), "lane {lane}");
    }
    assert!(s.none(s.lt(zero, zero)) && !s.none(s.eq(zero, zero)));
});

/// Upper halves folded onto lower ones.
fn fold<T: Copy>(lanes: &[T], op: impl Fn(T, T) -> T + Copy) -> T {
    match lanes {
        [one] => *one,
        _ => {
            let (lower, upper) = lanes.split_at(lanes.len() / 2);
            fold(&lower.iter().zip(upper).map(|(&a, &b)| op(a, b)).collect::<Vec<_>>(), op)
        }
    }
}

token_test!(reductions, Reductions, |s, _isa, T, S| {
    let [a, b, _] = args::<T>();
    for lanes in a.chunks_exact(S::LANES).chain(b.chunks_exact(S::LANES)) {
        let v = s.load(lanes);
        agree(Agree::Value, "reduce_add", lanes, s.reduce_add(v), fold(lanes, |a, b| a + b));
        let max = s.reduce_max(v);
        if lanes.iter().any(|x| x.is_nan()) {
            assert!(lanes.iter().any(|x| x.raw() == max.raw()), "{max} of {lanes:?}");
        } else {
            assert_eq!(max, fold(lanes, Element::max), "{lanes:?}");
        }
    }
});

token_test!(four_reductions_at_once, FourReductions, |s, _isa, T, S| {
    let [a, b, c] = args::<T>();
    for lanes in a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)).zip(c.chunks_exact(S::LANES)) {
        let ((a, b), c) = lanes;
        let [a, b, c] = [a, b, c].map(|lanes| s.load(lanes));
        let four = [a, b, c, s.mul(a, b)];
        let (each, alone) = (s.reduce_add_each(four), four.map(|v| s.reduce_add(v)));
        for (each, alone) in each.into_iter().zip(alone) {
            assert!(
                each.raw() == alone.raw() || (each.is_nan() && alone.is_nan()),
                "{each} {alone} of {lanes:?}"
            );
        }
    }
});

token_test!(loads_and_stores, LoadsAndStores, |s, _isa, T, S| {
    let values: Vec<T> = (1..=3 * S::LANES).map(T::from_usize).collect();
    let canary = T::from_f64(-7.0);
    for start in 0..=S::LANES {
        for len in S::LANES..=S::LANES + 2 {
            let mut out = vec![canary; 4 * S::LANES];
            s.store(s.load(&values[start..start + len]), &mut out[start..start + len]);
            assert_eq!(out[start..start + S::LANES], values[start..start + S::LANES]);
            out.drain(start..start + S::LANES);
            assert!(out.iter().all(|&x| x == canary), "start {start} len {len}");
        }
        for len in 0..=S::LANES + 2 {
            let present = len.min(S::LANES);
            let mut expected = values[start..start + present].to_vec();
            expected.resize(S::LANES, T::ZERO);
            let v = s.load_partial(&values[start..][..len.min(values.len() - start)]);
            let mut out = vec![canary; S::LANES];
            s.store(v, &mut out);
            assert!(out.iter().zip(&expected).all(|(a, b)| a.raw() == b.raw()), "{out:?} {expected:?}");

            let mut out = vec![canary; 3 * S::LANES];
            let whole = s.load(&values[start..]);
            let end = out.len().min(start + len);
            s.store_partial(whole, &mut out[start..end]);
            assert_eq!(out[start..start + present], values[start..start + present]);
            out.drain(start..start + present);
            assert!(out.iter().all(|&x| x == canary), "start {start} len {len}");
        }
    }
    let tight = values[..S::LANES - 1].to_vec().into_boxed_slice();
    assert_eq!(s.reduce_max(s.load_partial(&tight)), T::from_usize(S::LANES - 1));
    assert_eq!(s.reduce_add(s.load_partial(&[])), T::ZERO);
});

token_test!(side_by_side, SideBySide, |s, _isa, T, S| {
    let values: Vec<T> = (1..=8 * S::LANES).map(T::from_usize).collect();
    let flat = |vectors: [S::V; 3]| {
        let mut out = vec![T::NAN; 3 * S::LANES];
        out.chunks_exact_mut(S::LANES).zip(vectors).for_each(|(to, v)| s.store(v, to));
        out
    };
    let expected = |starts: [usize; 3], len: usize| -> Vec<T> {
        let lane = |start: usize, i: usize| if i < len { values[start + i] } else { T::ZERO };
        starts.iter().flat_map(|&start| (0..S::LANES).map(move |i| lane(start, i))).collect()
    };
    for step in [0, 1, S::LANES, S::LANES + 3] {
        let starts = [0, step, 2 * step];
        let tight = &values[..2 * step + S::LANES];
        assert_eq!(flat(s.load_apart(tight, step)), expected(starts, S::LANES));
        let mut out = vec![T::NAN; 2 * step + S::LANES];
        s.store_apart::<3>(s.load_apart(&values, S::LANES), &mut out, step);
        // The last of those that fall on one place stays.
        for (i, &x) in out.iter().enumerate() {
            let last = starts.iter().rposition(|start| (*start..start + S::LANES).contains(&i));
            assert!(last.map_or(x.is_nan(), |n| x == values[n * S::LANES + i - starts[n]]));
        }
        for len in [0, 1, S::LANES, 2 * S::LANES + 1] {
            let [mut apart, mut each] = [Streams::<T, 3>::none(); 2];
            apart.apart(&values[..2 * step + len], step, len);
            each.each(len, |i| &values[starts[i]..]);
            let mut rows = Streams::<T, 3, 3>::same(&values[..len]);
            rows.row_apart(1, &values[..2 * step + len], step);
            let before = &values[..len];
            rows.row_among(2, 1..3, &values[1..][..step + len], step, before);
            let [mut right, mut none] = [Streams::<T, 3, 3>::same(before); 2];
            right.row_among(0, 0..1, &values[1..][..len], usize::MAX, before);
            none.row_among(0, 3..3, &[], step, before);
            assert_eq!(flat(right.load_row_partial(s, 0, 0)), expected([1, 0, 0], len));
            assert_eq!(flat(none.load_row_partial(s, 0, 0)), expected([0; 3], len));
            for (row, starts) in [[0; 3], starts, [0, 1, 1 + step]].into_iter().enumerate() {
                assert_eq!(
                    flat(rows.load_row_partial(s, row, 0)),
                    expected(starts, len),
                    "{step} {len} {row}"
                );
                for (i, &start) in starts.iter().enumerate() {
                    for at in 0..=len {
                        let found = [rows.load_one(s, row, i, at); 3];
                        assert_eq!(flat(found), expected([start + at; 3], (len - at).min(S::LANES)));
                    }
                }
                if len >= S::LANES {
                    let from = starts.map(|start| start + len - S::LANES);
                    let found = flat(rows.load_row(s, row, len - S::LANES));
                    assert_eq!(found, expected(from, S::LANES), "{step} {len} {row}");
                }
            }
            for streams in [apart, each] {
                for at in 0..=len {
                    let (from, left) = (starts.map(|start| start + at), len - at);
                    if left >= S::LANES {
                        assert_eq!(flat(streams.load(s, at)), expected(from, S::LANES), "{step} {len} {at}");
                    }
                    assert_eq!(flat(streams.load_partial(s, at)), expected(from, left), "{step} {len} {at}");
                }
            }
        }
    }
});

token_test!(interleaving, Interleaving, |s, _isa, T, S| {
    let values: Vec<T> = (1..=2 * S::LANES).map(T::from_usize).collect();
    let (a, b) = (s.load(&values), s.load(&values[S::LANES..]));
    let flat = |[a, b]: [S::V; 2]| {
        let mut out = vec![T::NAN; 2 * S::LANES];
        s.store(a, &mut out);
        s.store(b, &mut out[S::LANES..]);
        out
    };
    let apart: Vec<T> = values.iter().step_by(2).chain(values.iter().skip(1).step_by(2)).copied().collect();
    let together: Vec<T> = (0..S::LANES).flat_map(|i| [values[i], values[S::LANES + i]]).collect();
    assert_eq!(flat(s.deinterleave(a, b)), apart);
    assert_eq!(flat(s.interleave(a, b)), together);
});

token_test!(columns_of_four_are_stored_and_loaded, Transposed, |s, _isa, T, S| {
    const STRIDE: usize = 7;
    let values: Vec<T> = (0..(super::MOST_LANES - 1) * STRIDE + 6).map(|i| T::from_f64(i as f64)).collect();
    let view = TensorView::as_strided(&values, [super::MOST_LANES, 6], [STRIDE as isize, 1]).unwrap();
    let columns = s.load_transposed(view.fours([0, 2], S::LANES));
    for (j, &column) in columns.iter().enumerate() {
        let mut lanes = vec![T::ZERO; S::LANES];
        s.store(column, &mut lanes);
        let expected: Vec<T> = values[2 + j..].iter().step_by(STRIDE).take(S::LANES).copied().collect();
        assert_eq!(lanes, expected, "column {j}");
    }
    let mut stored = vec![-T::ONE; (S::LANES - 1) * STRIDE + 4];
    s.store_transposed(columns, &mut stored, STRIDE);
    for (i, &x) in stored.iter().enumerate() {
        assert_eq!(x, if i % STRIDE < 4 { values[2 + i] } else { -T::ONE });
    }
});

token_test!(a_lane_of_each_group_goes_to_all, Within, |s, _isa, T, S| {
    let values: Vec<T> = (0..S::LANES).map(|i| T::from_f64(i as f64)).collect();
    macro_rules! check {
        ($($C:literal)*) => {$(
            for lane in 0..if $C <= S::LANES { $C } else { 0 } {
                let mut found = vec![T::ZERO; S::LANES];
                s.store(s.within::<$C>(s.load(&values), lane), &mut found);
                let expected: Vec<T> = (0..S::LANES).map(|i| values[i / $C * $C + lane]).collect();
                assert_eq!(found, expected, "lane {lane} of {}", $C);
            }
        )*};
    }
    check!(1 2 4 8 16);
});

token_test!(fused_tokens_round_once, Fused, |s, isa, T, S| {
    // (1 + ε)(1 − ε) − 1 is −ε², which a rounded product loses.
    let [plus, minus] = [T::ONE + T::EPSILON, T::ONE - T::EPSILON].map(|x| s.splat(x));
    let lost = if fuses(isa) { T::EPSILON * T::EPSILON } else { T::ZERO };
    assert_eq!(s.reduce_max(s.mul_add(plus, minus, s.splat(-T::ONE))), -lost, "{isa}");
    assert_eq!(s.reduce_max(s.neg_mul_add(plus, minus, s.splat(T::ONE))), lost, "{isa}");
});

token_test!(a_dispatch_runs_the_set_it_names, Width, |_s, isa, T, S| {
    let bits = match isa {
        Isa::Baseline => 128,
        Isa::Avx2 => 256,
        Isa::Avx512 => 512,
    };
    assert_eq!(S::LANES as u32 * T::BITS, bits);
    assert_eq!(size_of::<S::V>() as u32 * 8, bits);
});

/// Shifts that only a 64-bit lane has.
struct LongShifts;

impl SimdOp<f64> for LongShifts {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<f64>>(self, s: S) {
        let shift = |shift: fn(u64) -> u64| move |a: f64, _, _| f64::from_bits(shift(a.to_bits()));
        lanewise(s, Agree::Bits, "shl 52", |a, _, _| s.shl::<52>(a), shift(|a| a << 52));
        lanewise(s, Agree::Bits, "shl 63", |a, _, _| s.shl::<63>(a), shift(|a| a << 63));
        lanewise(s, Agree::Bits, "shr 52", |a, _, _| s.shr::<52>(a), shift(|a| a >> 52));
        lanewise(s, Agree::Bits, "shr 63", |a, _, _| s.shr::<63>(a), shift(|a| a >> 63));
    }
}

#[test]
fn long_shifts() {
    supported().iter().for_each(|&isa| f64::dispatch(isa, LongShifts));
}

/// Loads or stores a slice of one element less than a vector.
struct Short(bool);

impl SimdOp<f32> for Short {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<f32>>(self, s: S) {
        let mut slice = vec![0.0; S::LANES - 1];
        let v = if self.0 { s.load(&slice) } else { s.splat(0.0) };
        s.store(v, &mut slice);
    }
}

#[test]
fn a_short_slice_is_caught() {
    for &isa in supported() {
        for load in [false, true] {
            let caught = std::panic::catch_unwind(|| f32::dispatch(isa, Short(load)));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(message.starts_with("internal error"), "{isa}: {message}");
        }
    }
}

/// Reads or writes three slices beyond their end, in one of the ways there are.
struct Beyond(usize);

impl SimdOp<f32> for Beyond {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<f32>>(self, s: S) {
        let mut values = vec![0.0; 2 * S::LANES + 2];
        let mut streams = Streams::<f32, 3>::none();
        let mut rows = Streams::<f32, 3, 2>::same(&values[..S::LANES]);
        match self.0 {
            0 => _ = s.load_apart::<3>(&values[1..], S::LANES / 2 + 1),
            1 => _ = s.load_apart::<3>(&values, usize::MAX / 2 + 1),
            2 => streams.apart(&values[1..], S::LANES / 2 + 1, S::LANES),
            3 => streams.each(S::LANES, |i| &values[..S::LANES - i]),
            4 => _ = streams.load(s, 0),
            5 => _ = streams.load_partial(s, 1),
            6 => s.store_apart([s.splat(0.0); 3], &mut values[1..], S::LANES / 2 + 1),
            7 => s.store_apart([s.splat(0.0); 3], &mut values, usize::MAX / 2 + 1),
            8 => rows.row_apart(1, &values[1..], S::LANES / 2 + 1),
            9 => rows.one(1, 2, &values[..S::LANES - 1]),
            13 => rows.row_among(1, 1..3, &values[1..], S::LANES + 2, &values),
            14 => rows.row_among(1, 1..2, &values, 1, &values[..S::LANES - 1]),
            15 => rows.row_among(1, 0..3, &values, usize::MAX / 2 + 1, &values),
            16 => _ = rows.load_one(s, 1, 2, S::LANES + 1),
            10 => _ = rows.load_row(s, 1, 1),
            11 => _ = rows.load_row_partial(s, 1, S::LANES + 1),
            _ => {
                streams.each(S::LANES, |_| &values);
                _ = streams.load(s, 1);
            }
        }
    }
}

#[test]
fn an_access_beyond_is_caught() {
    for &isa in supported() {
        for way in 0..17 {
            let caught = std::panic::catch_unwind(|| f32::dispatch(isa, Beyond(way)));
            assert!(caught.is_err(), "{isa}: {way}");
        }
    }
}

#[test]
fn the_environment_is_obeyed() {
    let expected = match std::env::var("TILEWISE_ISA") {
        Ok(name) if !name.is_empty() => name.parse().unwrap(),
        _ => *supported().last().unwrap(),
    };
    assert_eq!(isa(), Ok(expected));
}
