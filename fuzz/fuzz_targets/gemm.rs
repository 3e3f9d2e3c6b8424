//! Products of any shapes and strides, on every instruction set, against the scalar twin.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between
//! the elements of C hold canaries.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use tilewise::activation::Activation;
use tilewise::gemm::{BatchOperand, Bias, Gemm, Operand, Packed, gram};
use tilewise::machine::Isa;
use tilewise::{Element, Result, TensorView, TensorViewMut, machine, reference};

const CANARY: f64 = -7.25e11;

/// A size: mostly a few, sometimes more than a block of tiles.
#[derive(Clone, Copy, Debug)]
struct Few(usize);

impl<'a> Arbitrary<'a> for Few {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let tag = u8::arbitrary(u)?;
        Ok(Few(match tag {
            0..=250 => usize::from(tag) % 41,
            _ => usize::from(u8::arbitrary(u)?),
        }))
    }
}

/// m, n and k: mostly a few of each.
#[derive(Clone, Copy, Debug)]
struct Shape([usize; 3]);

impl<'a> Arbitrary<'a> for Shape {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let tag = u8::arbitrary(u)?;
        let [Few(m), Few(n), Few(k)] = <[Few; 3]>::arbitrary(u)?;
        let more = usize::from(u8::arbitrary(u)?);
        Ok(Shape(match tag % 16 {
            // Too deep to be a tiny product, and sometimes for one block of depth.
            10 | 11 => [m % 41, n % 41, 129 + 6 * more],
            // Rows or columns alone, of more than a block.
            12 => [1, n % 200 + 8 * more, k % 200],
            13 => [m % 200 + 8 * more, 1, k % 200],
            // More rows than are read in place, and than tiles take at a time.
            14 => [100 + 4 * more, n % 70, k % 20],
            // Columns in several blocks of those that half of L2 holds.
            15 => [m % 5, 1000 + 7 * more, 130 + k],
            _ => [m, n, k],
        }))
    }
}

/// Something in an operand that is no number, or none that can be computed with.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Special {
    Nan,
    Infinity,
    MinusInfinity,
}

impl Special {
    fn value<T: Element>(self) -> T {
        T::from_f64(match self {
            Special::Nan => f64::NAN,
            Special::Infinity => f64::INFINITY,
            Special::MinusInfinity => f64::NEG_INFINITY,
        })
    }
}

/// Sizes that no memory holds.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Huge {
    Max,
    HalfWords,
    Words,
}

impl Huge {
    fn size(self) -> usize {
        match self {
            Huge::Max => isize::MAX as usize,
            Huge::HalfWords => 1 << 31,
            Huge::Words => (1 << 32) + 1,
        }
    }
}

/// How an operand lies in memory. Strides of any kind for what is read.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Lie {
    RowMajor,
    ColumnMajor,
    Strided([i8; 3]),
}

/// How C lies in memory: an order of the axes, directions and gaps.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Nested {
    swap: [bool; 2],
    back: [bool; 3],
    gaps: [u8; 3],
}

#[derive(Arbitrary, Debug)]
struct Input {
    double: bool,
    isa: u8,
    /// A times its transpose, with none of the options below.
    gram: bool,
    shape: Shape,
    /// Entries of a batch, less one bit to choose between the call for one and that for many.
    batch: Option<u8>,
    one: [bool; 3],
    lies: [Lie; 3],
    c: Nested,
    bias: Option<(bool, i8)>,
    residual: bool,
    relu: bool,
    packed: [bool; 2],
    alpha: i8,
    beta: i8,
    seed: u32,
    /// One in A or B, anywhere.
    special: Option<(Special, bool, u16)>,
    wrong: Option<Wrong>,
}

/// What makes a call one that must be refused, or of nothing at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Wrong {
    Depth(Few),
    Output(Few, Few),
    Bias(Few),
    Residual(Few, Few),
    Batch(u8, u8),
    SwappedPacked,
    PackedForAnother(u8),
    HugeDepth(Huge),
    HugeRows(Huge),
    /// Entries of nothing.
    HugeBatch(Huge),
}

fuzz_target!(|input: Input| {
    let run = match (input.double, input.gram) {
        (true, false) => run::<f64>,
        (false, false) => run::<f32>,
        (true, true) => run_gram::<f64>,
        (false, true) => run_gram::<f32>,
    };
    run(&input);
});

/// Random numbers with all their mantissa in use, at most 2 in size.
struct Values(u64);

impl Values {
    fn next<T: Element>(&mut self) -> T {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        T::from_f64((self.0 >> 11) as f64 / (1u64 << 51) as f64 - 2.0)
    }
}

/// A buffer of exactly the length that its view needs.
#[derive(Clone, Debug)]
struct Matrices<T> {
    data: Vec<T>,
    offset: usize,
    shape: [usize; 3],
    strides: [isize; 3],
}

impl<T: Element> Matrices<T> {
    fn new(shape: [usize; 3], strides: [isize; 3], mut element: impl FnMut() -> T) -> Self {
        let (mut offset, mut len) = (0, usize::from(!shape.contains(&0)));
        if len > 0 {
            for axis in 0..3 {
                let reach = (shape[axis] - 1) * strides[axis].unsigned_abs();
                len += reach;
                offset += if strides[axis] < 0 { reach } else { 0 };
            }
        }
        // A vector's capacity might be larger than its length, and AddressSanitizer would not see the end.
        let data = (0..len).map(|_| element()).collect::<Vec<T>>().into_boxed_slice().into_vec();
        Self { data, offset, shape, strides }
    }

    fn read(shape: [usize; 3], lie: Lie, values: &mut Values) -> Self {
        let [_, rows, columns] = shape.map(|n| n as isize);
        let strides = match lie {
            Lie::RowMajor => [rows * columns, columns, 1],
            Lie::ColumnMajor => [rows * columns, 1, rows],
            Lie::Strided(strides) => strides.map(|stride| isize::from(stride % 50)),
        };
        Self::new(shape, strides, || values.next())
    }

    fn written(shape: [usize; 3], lie: Nested, values: &mut Values) -> Self {
        let mut order = [0, 1, 2];
        if lie.swap[0] {
            order.swap(1, 2);
        }
        if lie.swap[1] {
            order.swap(0, 2);
        }
        let (mut strides, mut next) = ([0; 3], 1);
        for axis in order.into_iter().rev() {
            strides[axis] = if lie.back[axis] { -next } else { next };
            next = next * shape[axis].max(1) as isize + isize::from(lie.gaps[axis] % 4);
        }
        let mut c = Self::new(shape, strides, || T::from_f64(CANARY));
        let elements: Vec<T> = (0..shape.iter().product()).map(|_| values.next()).collect();
        c.view_mut().assign(TensorView::from_slice(&elements, shape).unwrap()).unwrap();
        c
    }

    fn view(&self) -> TensorView<'_, T, 3> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).expect("fits")
    }

    fn view_mut(&mut self) -> TensorViewMut<'_, T, 3> {
        TensorViewMut::as_strided_at(&mut self.data, self.offset, self.shape, self.strides).expect("nested")
    }

    fn put(&mut self, special: Special, at: u16) {
        let len = self.data.len();
        if let Some(element) = self.data.get_mut(usize::from(at) % len.max(1)) {
            *element = special.value();
        }
    }

    fn entry(&self, entry: usize) -> TensorView<'_, T, 2> {
        self.view().select(0, if self.shape[0] == 1 { 0 } else { entry }).expect("exists")
    }

    /// True where every element outside the view is a canary.
    fn canaries_live(&self) -> bool {
        let mut outside = self.clone();
        outside.view_mut().fill(T::from_f64(CANARY));
        outside.data.iter().all(|&element| element == T::from_f64(CANARY))
    }
}

fn factor<T: Element>(byte: i8) -> T {
    match byte {
        0..=20 => T::ONE,
        -20..0 => T::ZERO,
        other => T::from_f64(f64::from(other) / 37.0),
    }
}

/// The arguments of a call.
struct Call<'a, T> {
    a: TensorView<'a, T, 3>,
    b: TensorView<'a, T, 3>,
    options: Gemm<'a, T>,
    residual: Option<TensorView<'a, T, 3>>,
    packed: [bool; 2],
    swapped: bool,
    /// What operands are packed for, where not for the call's.
    packed_for: Option<Isa>,
    batched: bool,
}

impl<T: Element> Call<'_, T> {
    fn run(&self, c: TensorViewMut<'_, T, 3>) -> Result<()> {
        let pack = |view: TensorView<'_, T, 3>, rhs: bool| {
            let view = view.select(0, 0)?;
            let pack = || if rhs != self.swapped { Packed::rhs(view) } else { Packed::lhs(view) };
            self.packed_for.map_or_else(pack, |isa| machine::with_isa(isa, pack)?)
        };
        let pack_if = |wanted: bool, view: TensorView<'_, T, 3>, rhs| {
            (wanted && view.shape()[0] == 1).then(|| pack(view, rhs)).transpose()
        };
        let lhs = pack_if(self.packed[0], self.a, false)?;
        let rhs = pack_if(self.packed[1], self.b, true)?;
        if self.batched {
            let a = lhs.as_ref().map_or(BatchOperand::View(self.a), BatchOperand::Packed);
            let b = rhs.as_ref().map_or(BatchOperand::View(self.b), BatchOperand::Packed);
            let options = self.residual.map_or(self.options, |r| self.options.batched_residual(r));
            return options.run_batched(a, b, c);
        }
        let a = lhs.as_ref().map_or(Operand::View(self.a.select(0, 0)?), Operand::Packed);
        let b = rhs.as_ref().map_or(Operand::View(self.b.select(0, 0)?), Operand::Packed);
        let options = match self.residual {
            Some(residual) => self.options.residual(residual.select(0, 0)?),
            None => self.options,
        };
        options.run(a, b, c.select(0, 0)?)
    }
}

fn run<T: Element + Debug>(input: &Input) {
    let mut values = Values(u64::from(input.seed) << 1 | 1);
    let Shape([m, n, k]) = input.shape;
    let entries = input.batch.map(|batch| usize::from(batch % 5));
    if m * n * k * entries.unwrap_or(1) > 8_000_000 {
        return;
    }
    let batch = entries.unwrap_or(1);
    let in_batch = |operand: usize| if input.one[operand] { 1 } else { batch };
    let mut a = Matrices::read([in_batch(0), m, k], input.lies[0], &mut values);
    let mut b = Matrices::read([in_batch(1), k, n], input.lies[1], &mut values);
    if let Some((special, in_b, at)) = input.special {
        if in_b { &mut b } else { &mut a }.put(special, at);
    }
    let residual = Matrices::read([in_batch(2), m, n], input.lies[2], &mut values);
    let before = Matrices::written([batch, m, n], input.c, &mut values);
    let mut c = before.clone();
    let (alpha, beta) = (factor::<T>(input.alpha), factor::<T>(input.beta));
    if beta == T::ZERO {
        c.view_mut().fill(T::NAN);
    }
    let (per_row, bias_step) = input.bias.unwrap_or_default();
    let bias = Matrices::new([1, 1, if per_row { m } else { n }], [0, 0, isize::from(bias_step % 9)], || {
        values.next()
    });
    let bias: TensorView<'_, T, 1> = bias.entry(0).select(0, 0).expect("exists");
    let mut options = Gemm::new().alpha(alpha).beta(beta);
    if input.bias.is_some() {
        options = options.bias(if per_row { Bias::PerRow(bias) } else { Bias::PerColumn(bias) });
    }
    if input.relu {
        options = options.activation(Activation::Relu);
    }
    let call = Call {
        a: a.view(),
        b: b.view(),
        options,
        residual: input.residual.then(|| residual.view()),
        packed: input.packed,
        swapped: false,
        packed_for: None,
        batched: entries.is_some(),
    };
    let supported = machine::supported();
    let isa = supported[usize::from(input.isa) % supported.len()];
    if let Some(wrong) = input.wrong {
        let untouched = c.data.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
        let result = machine::with_isa(isa, || refused(call, wrong, &mut c)).expect("supported");
        if let Some(result) = result {
            let error = result.expect_err("a wrong call was taken");
            assert!(!error.to_string().is_empty());
        }
        assert!(c.data.iter().map(|x| x.to_f64().to_bits()).eq(untouched), "a refused call wrote");
        return;
    }
    machine::with_isa(isa, || call.run(c.view_mut())).expect("supported").expect("a right call");
    assert!(c.canaries_live(), "a gap of C was written");

    for entry in 0..batch {
        let (a, b, start) = (a.entry(entry), b.entry(entry), before.entry(entry));
        let product = reference::gemm(alpha, a, b, beta, start).expect("fits");
        let magnitude = reference::magnitude(alpha, a, b, beta, start).expect("fits");
        let bias = |wanted: bool| (input.bias.is_some() && per_row == wanted).then_some(bias);
        let residual = input.residual.then(|| residual.entry(entry));
        // Of NaN it is NaN, unlike the maximum of the standard library.
        let activation = |x: f64| if input.relu && x < 0.0 { 0.0 } else { x };
        let expected = reference::epilogue(product.view(), bias(true), bias(false), residual, activation);
        let expected = expected.expect("fits");
        let found = c.entry(entry);
        for ((&found, &expected), &size) in found.iter().zip(&expected).zip(&magnitude) {
            // Bias and residual are at most 2 each.
            check(found, expected, size + 4.0, [m, n, k], isa);
        }
    }
}

/// An element of which terms of this size were added up.
fn check<T: Element>(found: T, expected: f64, size: f64, [m, n, k]: [usize; 3], isa: Isa) {
    let bound = 2.0 * T::EPSILON.to_f64() * (k as f64 + 4.0) * size;
    let (found, error) = (found.to_f64(), (found.to_f64() - expected).abs());
    // An infinity is equal to itself, but not near. The bound of one is none.
    let right = if bound.is_finite() { error <= bound } else { found == expected };
    assert!(
        right || found.is_nan() && expected.is_nan(),
        "{found} instead of {expected}, within {bound:e}; {isa} {m}x{n}x{k}"
    );
}

fn run_gram<T: Element + Debug>(input: &Input) {
    let mut values = Values(u64::from(input.seed) << 1 | 1);
    let Shape([m, _, k]) = input.shape;
    if m * m * k > 8_000_000 {
        return;
    }
    let mut a = Matrices::<T>::read([1, m, k], input.lies[0], &mut values);
    if let Some((special, _, at)) = input.special {
        a.put(special, at);
    }
    let before = Matrices::written([1, m, m], input.c, &mut values);
    let mut c = before.clone();
    let (alpha, beta) = (factor::<T>(input.alpha), factor::<T>(input.beta));
    let (a, start) = (a.entry(0), before.entry(0));
    let supported = machine::supported();
    let isa = supported[usize::from(input.isa) % supported.len()];
    let call = |a, c: TensorViewMut<'_, T, 3>| {
        machine::with_isa(isa, || gram(alpha, a, beta, c.select(0, 0)?)).expect("supported")
    };
    if input.wrong.is_some() {
        let mut other = vec![T::ZERO; m * (m + 1)];
        let view = TensorViewMut::from_slice(&mut other, [1, m, m + 1]).expect("as many");
        assert!(call(a, view).is_err(), "a wrong call was taken");
        assert!(other.iter().all(|&x| x == T::ZERO), "a refused call wrote");
        return;
    }
    call(a, c.view_mut()).expect("a right call");
    assert!(c.canaries_live(), "a gap of C was written");
    let expected = reference::gram(alpha, a, beta, start).expect("fits");
    let size = reference::magnitude(alpha, a, a.transpose(), beta, start).expect("fits");
    let found = c.entry(0);
    for i in 0..m {
        for j in 0..=i {
            let at = |[i, j]: [usize; 2]| *found.get([i, j]).expect("inside");
            check(
                at([i, j]),
                *expected.get([i, j]).expect("inside"),
                *size.get([i, j]).expect("inside"),
                [m, m, k],
                isa,
            );
            let same = at([i, j]).to_f64().to_bits() == at([j, i]).to_f64().to_bits();
            assert!(same, "not symmetric at {i}, {j}; {isa} {m}x{k}");
        }
    }
}

/// The result of a call with something wrong; `None` where nothing was wrong with it after all, or where the
/// call was right and had nothing to do.
fn refused<T: Element>(call: Call<'_, T>, wrong: Wrong, c: &mut Matrices<T>) -> Option<Result<()>> {
    let [batch, m, n] = c.shape;
    let one = [T::ONE];
    let one = TensorView::from_slice(&one, [1, 1, 1]).expect("one element");
    let broadcast = |shape: [usize; 3]| one.broadcast(shape);
    let short = [T::ONE; 256];
    let mut call: Call<'_, T> = call;
    match wrong {
        Wrong::Depth(Few(depth)) => {
            if depth == call.b.shape()[1] {
                return None;
            }
            call.b = broadcast([1, depth, n]).expect("small");
        }
        Wrong::Output(Few(rows), Few(columns)) => {
            if [rows, columns] == [m, n] {
                return None;
            }
            let mut other = vec![T::ZERO; batch * rows * columns];
            let view = TensorViewMut::from_slice(&mut other, [batch, rows, columns]).expect("as many");
            let result = call.run(view);
            assert!(other.iter().all(|&x| x == T::ZERO), "a refused call wrote");
            return Some(result);
        }
        Wrong::Bias(Few(len)) => {
            if len == m {
                return None;
            }
            let bias = TensorView::from_slice(&short[..len], [len]).expect("as many");
            call.options = call.options.bias(Bias::PerRow(bias));
            return Some(call.run(c.view_mut()));
        }
        Wrong::Residual(Few(rows), Few(columns)) => {
            if [rows, columns] == [m, n] {
                return None;
            }
            call.residual = Some(broadcast([1, rows, columns]).expect("small"));
        }
        Wrong::Batch(more, which) => {
            let entries = batch + 1 + usize::from(more);
            if !call.batched || entries == 1 {
                return None;
            }
            let with = |[_, rows, columns]: [usize; 3]| broadcast([entries, rows, columns]).expect("small");
            match which % 3 {
                0 => call.a = with(call.a.shape()),
                1 => call.b = with(call.b.shape()),
                _ => call.residual = Some(with([1, m, n])),
            }
        }
        Wrong::SwappedPacked => {
            if !(call.packed[0] && call.a.shape()[0] == 1 || call.packed[1] && call.b.shape()[0] == 1) {
                return None;
            }
            call.swapped = true;
        }
        Wrong::PackedForAnother(other) => {
            let supported = machine::supported();
            let other = supported[usize::from(other) % supported.len()];
            let packs = call.packed[0] && call.a.shape()[0] == 1 || call.packed[1] && call.b.shape()[0] == 1;
            if !packs || Ok(other) == machine::isa() {
                return None;
            }
            call.packed_for = Some(other);
        }
        Wrong::HugeDepth(huge) => {
            // Where C has no elements there is nothing to do, however deep the operands are.
            let (a, b) = (broadcast([1, m, huge.size()]), broadcast([1, huge.size(), n]));
            let (Ok(a), Ok(b)) = (a, b) else { return None };
            if c.shape.contains(&0) {
                (call.a, call.b) = (a, b);
                // Only a matrix without lines can be packed.
                call.packed = [call.packed[0] && m == 0, call.packed[1] && n == 0];
                assert_eq!(call.run(c.view_mut()), Ok(()));
                return None;
            }
            call.a = a;
            call.packed[0] = false;
        }
        Wrong::HugeBatch(huge) => {
            let (a, b) = (broadcast([1, 0, 1]).expect("empty"), broadcast([1, 1, 1]).expect("one"));
            let c = TensorViewMut::as_strided(&mut [], [huge.size(), 0, 1], [0; 3]).expect("empty");
            assert_eq!(Gemm::new().run_batched(a, b, c), Ok(()));
            return None;
        }
        Wrong::HugeRows(huge) => {
            let Ok(a) = broadcast([1, huge.size(), call.a.shape()[2]]) else { return None };
            call.a = a;
            call.packed[0] = false;
        }
    }
    Some(call.run(c.view_mut()))
}
