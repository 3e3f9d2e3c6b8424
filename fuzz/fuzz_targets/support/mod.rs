//! What targets have in common: numbers that break arithmetic, and buffers that end where their views do.
#![allow(dead_code, reason = "each target uses a part")]

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use tilewise::{Element, Error, Layout, Tensor, TensorView, TensorViewMut, machine};

pub const CANARY: f64 = -7.25e11;

/// Terms of all sums of a call that are worth a comparison.
pub const WORK: usize = 60_000;

/// A small number, or one that breaks arithmetic.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub usize);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let max = isize::MAX as usize;
        Ok(Self(match u8::arbitrary(u)? {
            tag @ 0..=239 => [1, 1, 2, 3, 0, 1, 4, 2][usize::from(tag % 8)],
            240 => usize::MAX,
            241 => usize::MAX - 1,
            242 => max,
            243 => max / 2 + 1,
            244 => max / 3,
            245 => 1 << 31,
            246 => (1 << 32) + 1,
            247 => 1 << 16,
            tag => usize::from(tag) - 241,
        }))
    }
}

/// A size: a few, sometimes more than a vector.
#[derive(Clone, Copy, Debug)]
pub struct Few(pub usize);

impl<'a> Arbitrary<'a> for Few {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let tag = usize::from(u8::arbitrary(u)?);
        Ok(Self(if tag < 200 { tag % 8 } else { tag % 40 }))
    }
}

/// How a tensor lies in memory: an order of the axes, directions, gaps; what is only read may overlap itself.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Lie {
    /// Axis 1, that of channels, is the innermost.
    pub last: bool,
    pub back: [bool; 5],
    pub gaps: [u8; 5],
    pub strides: Option<[i8; 5]>,
}

/// Random numbers with all their mantissa in use, at most 2 in size.
pub struct Values(u64);

impl Values {
    pub fn seed(seed: u32) -> Self {
        Self(u64::from(seed) << 1 | 1)
    }

    /// By Marsaglia's xorshift64.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn next<T: Element>(&mut self) -> T {
        T::from_f64((self.bits() >> 11) as f64 / (1u64 << 51) as f64 - 2.0)
    }
}

/// A buffer of exactly the length that its view needs.
#[derive(Clone)]
pub struct Stored<T, const N: usize> {
    pub data: Vec<T>,
    offset: usize,
    pub shape: [usize; N],
    strides: [isize; N],
}

impl<T: Element, const N: usize> Stored<T, N> {
    pub fn new(shape: [usize; N], strides: [isize; N], mut element: impl FnMut() -> T) -> Self {
        let (mut offset, mut len) = (0, usize::from(!shape.contains(&0)));
        if len > 0 {
            for axis in 0..N {
                let reach = (shape[axis] - 1) * strides[axis].unsigned_abs();
                len += reach;
                offset += if strides[axis] < 0 { reach } else { 0 };
            }
        }
        // A vector's capacity might be larger than its length, and AddressSanitizer would not see the end.
        let data = (0..len).map(|_| element()).collect::<Vec<T>>().into_boxed_slice().into_vec();
        Self { data, offset, shape, strides }
    }

    /// Strides by which no two indices meet. Where there are no elements, other sizes may be too large for any.
    pub fn nested(shape: [usize; N], lie: Lie) -> [isize; N] {
        let (mut strides, mut next) = ([0; N], 1);
        if shape.contains(&0) {
            return strides;
        }
        let last = lie.last && N > 1;
        let order = (1..2).filter(|_| last).chain((0..N).rev().filter(|&axis| axis != 1 || !last));
        for axis in order {
            strides[axis] = if lie.back[axis] { -next } else { next };
            next = next * shape[axis] as isize + isize::from(lie.gaps[axis] % 3);
        }
        strides
    }

    pub fn read(shape: [usize; N], lie: Lie, values: &mut Values) -> Self {
        let strides = match lie.strides {
            Some(strides) => std::array::from_fn(|axis| isize::from(strides[axis] % 20)),
            None => Self::nested(shape, lie),
        };
        Self::new(shape, strides, || values.next())
    }

    /// Not numbers where the view reaches, canaries elsewhere.
    pub fn written(shape: [usize; N], lie: Lie) -> Self {
        let mut stored = Self::new(shape, Self::nested(shape, lie), || T::from_f64(CANARY));
        stored.view_mut().fill(T::NAN);
        stored
    }

    pub fn view(&self) -> TensorView<'_, T, N> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).expect("fits")
    }

    pub fn view_mut(&mut self) -> TensorViewMut<'_, T, N> {
        TensorViewMut::as_strided_at(&mut self.data, self.offset, self.shape, self.strides).expect("nested")
    }

    /// True where every element outside the view is a canary.
    pub fn canaries_live(&self) -> bool {
        let mut outside = self.clone();
        outside.view_mut().fill(T::from_f64(CANARY));
        outside.data.iter().all(|&element| element == T::from_f64(CANARY))
    }

    /// True where nothing was written since [`written`](Self::written).
    pub fn untouched(&self) -> bool {
        self.view().iter().all(|x| x.is_nan()) && self.canaries_live()
    }
}

/// Calls `f` with an instruction set of this machine.
pub fn with_some_isa(number: u8, f: impl FnOnce()) {
    let supported = machine::supported();
    machine::with_isa(supported[usize::from(number) % supported.len()], f).expect("supported");
}

/// Fails where an element is further from what is expected than so many roundings of it, or of 1.
pub fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    roundings: f64,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let bound = roundings * T::EPSILON.to_f64();
    for (found, &expected) in found.iter().zip(expected) {
        let found = found.to_f64();
        let close = (found - expected).abs() <= bound * (1.0 + expected.abs());
        let same = found == expected || (found.is_nan() && expected.is_nan());
        assert!(close || same, "{what}: {found} instead of {expected}, within {bound:e}");
    }
}

pub fn product(sizes: &[usize]) -> Option<usize> {
    if sizes.contains(&0) { Some(0) } else { sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)) }
}

/// True for a shape that is worth a comparison, and that a view may have: not even one without elements has sizes that
/// overflow.
pub fn small<const N: usize>(shape: &[usize; N]) -> bool {
    product(shape).is_some_and(|len| len <= WORK) && Layout::contiguous(*shape).is_ok()
}

/// True where an error says what no reference can: that numbers are too large for this machine.
pub fn too_large(error: &Error) -> bool {
    matches!(error, Error::Overflow { .. } | Error::Alloc { .. })
}

/// A view with these sizes: where they are large, of one element again and again.
pub fn stored<T: Element, const N: usize>(
    shape: [usize; N],
    lie: Lie,
    values: &mut Values,
) -> tilewise::Result<Stored<T, N>> {
    if product(&shape).is_some_and(|len| len <= WORK) && !shape.iter().any(|&size| size > WORK) {
        return Ok(Stored::read(shape, lie, values));
    }
    let stored = Stored { data: vec![values.next()], offset: 0, shape, strides: [0; N] };
    TensorView::as_strided(&stored.data, shape, stored.strides)?;
    Ok(stored)
}
