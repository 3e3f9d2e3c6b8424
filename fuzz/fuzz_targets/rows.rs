//! What works on rows and elements: softmax, losses, dense layers, activations, functions, perceptrons, over views of any
//! strides, on every instruction set, against the scalar twins.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the elements
//! of outputs hold canaries.
#![no_main]

mod support;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use support::{Few, Lie, Number, Stored, Values, near, small, stored, too_large, with_some_isa};
use tilewise::activation::{self, Activation};
use tilewise::gemm::{Operand, Packed};
use tilewise::linear::{Dense, DenseGradientsMut};
use tilewise::loss::{BinaryCrossEntropy, CrossEntropy, MeanSquared, Reduction, Target};
use tilewise::perceptron::{DualPerceptron, OneVsRest, Perceptron, Rule};
use tilewise::softmax::Softmax;
use tilewise::{Element, Result, Tensor, TensorView, reference, vecmath};

#[derive(Arbitrary, Debug)]
struct Input {
    double: bool,
    isa: u8,
    call: Call,
    shape: [Few; 3],
    /// A size of one operand that is made another one.
    wrong: Option<(u8, Number)>,
    lies: [Lie; 4],
    /// How large x is.
    scale: u8,
    seed: u32,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Call {
    Softmax {
        axis: u8,
        logarithm: bool,
    },
    CrossEntropy {
        target: Classes,
        smoothing: u8,
        ignore: Option<Number>,
        sum: bool,
        likelihood: bool,
    },
    Pointwise {
        binary: bool,
        sum: bool,
    },
    Dense {
        packed: bool,
        bias: bool,
        activation: u8,
        beta: u8,
        wanted: [bool; 3],
    },
    Activation {
        which: u8,
        parameters: [i8; 2],
    },
    Function(u8),
    /// Axes along which the slopes are shared.
    Slopes {
        ones: u8,
    },
    Perceptron {
        label: Option<i8>,
        rate: u8,
        passes: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Classes {
    /// With a class of some row.
    Plain(Option<(u8, Number)>),
    Weighted(Option<(u8, Number)>),
    Soft,
}

fuzz_target!(|input: Input| {
    with_some_isa(input.isa, || if input.double { run::<f64>(&input) } else { run::<f32>(&input) });
});

fn run<T: Element>(input: &Input) {
    // Where a view of these sizes cannot be, there is nothing to call.
    let _ = match input.call {
        Call::Softmax { axis, logarithm } => softmax::<T>(input, usize::from(axis % 4), logarithm),
        Call::CrossEntropy { target, smoothing, ignore, sum, likelihood } => {
            let smoothing = [0.0, 0.0, 0.1, 1.0, -0.1, 1.5, f64::NAN][usize::from(smoothing % 7)];
            let mut loss = CrossEntropy::new().label_smoothing(smoothing).reduction(reduction(sum));
            if let Some(Number(class)) = ignore {
                loss = loss.ignore_index(class);
            }
            if likelihood {
                loss = loss.log_probabilities();
            }
            cross_entropy::<T>(input, loss, target, smoothing)
        }
        Call::Pointwise { .. } => pointwise::<T>(input),
        Call::Dense { .. } => dense::<T>(input),
        Call::Activation { .. } => activation::<T>(input),
        Call::Function(which) => function::<T>(input, which),
        Call::Slopes { ones } => slopes::<T>(input, ones),
        Call::Perceptron { .. } => perceptron::<T>(input),
    };
}

fn reduction(sum: bool) -> Reduction {
    if sum { Reduction::Sum } else { Reduction::Mean }
}

/// By which [`reduction`] multiplies the sum of so many losses.
fn factor(sum: bool, count: f64) -> f64 {
    match sum {
        true => 1.0,
        false if count == 0.0 => 0.0,
        false => 1.0 / count,
    }
}

impl Input {
    fn shape<const N: usize>(&self) -> [usize; N] {
        std::array::from_fn(|axis| self.shape[axis].0)
    }

    /// The shape of operand `which`, of which a size may be wrong.
    fn of<const N: usize>(&self, which: u8, mut shape: [usize; N]) -> [usize; N] {
        if let Some((place, Number(size))) = self.wrong
            && place % 4 == which
        {
            shape[usize::from(place / 4) % N] = size;
        }
        shape
    }

    /// Operand `which`, to be read.
    fn read<T: Element, const N: usize>(
        &self,
        which: u8,
        shape: [usize; N],
        values: &mut Values,
    ) -> Result<Stored<T, N>> {
        stored(self.of(which, shape), self.lies[usize::from(which)], values)
    }

    /// Operand `which`, to be written; `None` where there is no such view.
    fn written<T: Element, const N: usize>(&self, which: u8, shape: [usize; N]) -> Option<Stored<T, N>> {
        let shape = self.of(which, shape);
        small(&shape).then(|| Stored::written(shape, self.lies[usize::from(which)]))
    }

    /// Makes x as large as it should be; the largest that it may have.
    fn scale<T: Element, const N: usize>(&self, x: &mut Stored<T, N>) -> f64 {
        let scale = [1.0, 1.0, 30.0, 1000.0][usize::from(self.scale % 4)];
        x.data.iter_mut().for_each(|x| *x *= T::from_f64(scale));
        2.0 * scale
    }
}

/// Fails unless a call was taken where it fits, and refused otherwise. Whether there are results.
fn taken<V>(result: &Result<V>, fits: bool) -> bool {
    match result {
        Ok(_) => assert!(fits, "a bad call was taken"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(!fits || too_large(error), "refused without a reason: {error}");
        }
    }
    result.is_ok()
}

/// In double precision, elements of a type.
fn rounded<T: Element, const N: usize>(
    shape: [usize; N],
    f: impl FnMut([usize; N]) -> f64,
) -> Tensor<f64, N> {
    let mut f = f;
    Tensor::from_fn(shape, |at| T::from_f64(f(at)).to_f64()).expect("small")
}

fn get<T: Element, const N: usize>(view: TensorView<'_, T, N>, at: [usize; N]) -> f64 {
    view.get(at).expect("inside").to_f64()
}

fn exact<T: Element, const N: usize>(tensor: &Tensor<T, N>) -> Tensor<f64, N> {
    rounded::<T, N>(tensor.shape(), |at| get(tensor.view(), at))
}

fn softmax<T: Element>(input: &Input, axis: usize, logarithm: bool) -> Option<()> {
    let (shape, values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let mut x = input.read::<T, 3>(0, shape, values).ok()?;
    let largest = input.scale(&mut x);
    let mut y = input.written::<T, 3>(1, shape)?;
    let softmax = if logarithm { Softmax::new(axis).logarithm() } else { Softmax::new(axis) };
    let result = softmax.forward_into(x.view(), y.view_mut());
    if taken(&result, axis < 3 && x.shape == y.shape) {
        let expected = reference::softmax::forward(x.view(), axis, logarithm).expect("small");
        near("y", y.view(), &exact(&expected), 8.0 * largest + 100.0);
        assert!(y.canaries_live());
    } else {
        assert!(y.untouched());
    }
    let (y, dy) = (input.read::<T, 3>(2, shape, values).ok()?, input.read::<T, 3>(0, shape, values).ok()?);
    let mut dx = input.written::<T, 3>(1, shape)?;
    let result = softmax.backward_into(y.view(), dy.view(), dx.view_mut());
    if taken(&result, axis < 3 && dy.shape == y.shape && dx.shape == y.shape) {
        let expected = reference::softmax::backward(y.view(), dy.view(), axis, logarithm).expect("small");
        near("dx", dx.view(), &exact(&expected), 100.0 * (4.0 + dx.shape[axis] as f64));
        assert!(dx.canaries_live());
    } else {
        assert!(dx.untouched());
    }
    Some(())
}

fn cross_entropy<T: Element>(
    input: &Input,
    loss: CrossEntropy,
    target: Classes,
    smoothing: f64,
) -> Option<()> {
    let Call::CrossEntropy { ignore, sum, likelihood, .. } = input.call else { return None };
    let ([batch, classes], values) = (input.shape::<2>(), &mut Values::seed(input.seed));
    let mut logits = input.read::<T, 2>(0, [batch, classes], values).ok()?;
    let largest = input.scale(&mut logits);
    let mut gradient = input.written::<T, 2>(1, [batch, classes])?;
    let soft = input.read::<T, 2>(2, [batch, classes], values).ok()?;
    let mut weights = input.read::<T, 1>(3, [classes], values).ok()?;
    weights.data.iter_mut().for_each(|weight| *weight = weight.abs());
    let mut numbers: Vec<usize> = (0..batch).map(|_| values.bits() as usize % classes.max(1)).collect();
    if let Classes::Plain(Some((row, Number(class)))) | Classes::Weighted(Some((row, Number(class)))) = target
        && batch > 0
    {
        numbers[usize::from(row) % batch] = class;
    }
    let (soft, weights) = (soft.view(), weights.view());
    // What the logits have is what the targets must fit.
    let [rows, classes] = logits.shape;
    let (goal, fits) = match target {
        Classes::Plain(_) => (Target::Classes(&numbers), true),
        Classes::Weighted(_) => (Target::Weighted(&numbers, weights), weights.len() == classes),
        Classes::Soft => (Target::Probabilities(soft), soft.shape() == logits.shape && ignore.is_none()),
    };
    let hard = !matches!(target, Classes::Soft);
    let ignored = |row: usize| hard && ignore.is_some_and(|Number(class)| numbers[row] == class);
    let known = |row: usize| !hard || ignored(row) || numbers[row] < classes;
    let fits = fits && (0.0..=1.0).contains(&smoothing) && rows == batch && (0..batch).all(known);
    let result = loss.forward_backward_into(logits.view(), goal, gradient.view_mut());
    if !taken(&result, fits && gradient.shape == logits.shape) {
        assert!(gradient.untouched());
        taken(&loss.forward(logits.view(), goal), fits);
        return None;
    }
    let weight = |class: usize| {
        if hard && matches!(target, Classes::Weighted(_)) { get(weights, [class]) } else { 1.0 }
    };
    let q = |row: usize, class: usize| {
        let spread = smoothing / classes as f64;
        match hard {
            true if ignored(row) => 0.0,
            true if numbers[row] == class => weight(class) * (1.0 - smoothing + spread),
            true => weight(class) * spread,
            false => (1.0 - smoothing) * get(soft, [row, class]) + spread,
        }
    };
    let count: f64 = (0..batch)
        .filter(|&row| !ignored(row))
        .map(|row| if hard { weight(numbers[row]) } else { 1.0 })
        .sum();
    let factor = factor(sum, count);
    let twin = if likelihood {
        reference::likelihood(logits.view(), q)
    } else {
        reference::cross_entropy(logits.view(), q)
    };
    let (total, twin) = twin.expect("small");
    // Terms of both signs where probabilities have them.
    let size: f64 = (0..batch * classes).map(|at| q(at / classes, at % classes).abs()).sum();
    let roundings = 100.0 * (largest + 10.0) * factor * (1.0 + size) * (4.0 + classes as f64);
    let found = result.expect("taken");
    let both = Tensor::full([1], found).expect("one");
    near("loss", both.view(), &rounded::<T, 1>([1], |_| factor * total), roundings);
    let again = loss.forward(logits.view(), goal).expect("as before");
    assert_eq!(again.to_f64().to_bits(), found.to_f64().to_bits());
    let expected = rounded::<T, 2>(gradient.shape, |at| factor * get(twin.view(), at));
    near("gradient", gradient.view(), &expected, roundings);
    assert!(gradient.canaries_live());
    let each = loss.row_losses(logits.view(), goal).expect("as before");
    assert_eq!(each.shape(), [batch]);
    Some(())
}

fn pointwise<T: Element>(input: &Input) -> Option<()> {
    let Call::Pointwise { binary, sum } = input.call else { return None };
    let (shape, values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let mut y = input.read::<T, 3>(0, shape, values).ok()?;
    let largest = input.scale(&mut y);
    let (t, mut gradient) = (input.read::<T, 3>(1, shape, values).ok()?, input.written::<T, 3>(2, shape)?);
    let reduction = reduction(sum);
    let result = if binary {
        BinaryCrossEntropy::new().reduction(reduction).forward_backward_into(
            y.view(),
            t.view(),
            gradient.view_mut(),
        )
    } else {
        MeanSquared::new().reduction(reduction).forward_backward_into(y.view(), t.view(), gradient.view_mut())
    };
    if !taken(&result, y.shape == t.shape && gradient.shape == y.shape) {
        assert!(gradient.untouched());
        return None;
    }
    let twin = if binary {
        reference::binary_cross_entropy(y.view(), t.view())
    } else {
        reference::squared(y.view(), t.view())
    };
    let (total, twin) = twin.expect("small");
    let len = twin.len() as f64;
    let factor = factor(sum, len);
    let found = Tensor::full([1], result.expect("taken")).expect("one");
    // Of binary cross-entropy with other numbers than probabilities, terms of both signs.
    let roundings = 20.0 * (largest + 2.0).powi(2) * (1.0 + factor * len);
    near("loss", found.view(), &rounded::<T, 1>([1], |_| factor * total), roundings);
    let expected = rounded::<T, 3>(y.shape, |at| factor * get(twin.view(), at));
    near("gradient", gradient.view(), &expected, 20.0 * (largest + 2.0));
    assert!(gradient.canaries_live());
    Some(())
}

fn dense<T: Element>(input: &Input) -> Option<()> {
    let Call::Dense { packed, bias, activation, beta, wanted } = input.call else { return None };
    let ([rows, inputs, outputs], values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let x = input.read::<T, 2>(0, [rows, inputs], values).ok()?;
    let w = input.read::<T, 2>(1, [inputs, outputs], values).ok()?;
    let b = input.read::<T, 1>(2, [outputs], values).ok()?;
    let b = bias.then(|| b.view());
    let mut y = input.written::<T, 2>(3, [rows, outputs])?;
    let activation = [Activation::Identity, Activation::Relu, Activation::Tanh, Activation::Gelu]
        [usize::from(activation % 4)];
    let dense = Dense::new().activation(activation);
    let small = small(&w.shape);
    let prepared = (packed && small).then(|| Packed::rhs(w.view()).expect("memory"));
    let weight: Operand<'_, T> = match &prepared {
        Some(packed) => packed.into(),
        None => w.view().into(),
    };
    let fits = x.shape[1] == w.shape[0]
        && y.shape == [x.shape[0], w.shape[1]]
        && b.is_none_or(|b| b.len() == w.shape[1]);
    let result = dense.forward_into(x.view(), weight, b, y.view_mut());
    let terms = |n: usize| 40.0 * (4.0 + n as f64).powi(2);
    if taken(&result, fits) {
        let f = |z| reference::activation::value(activation, z);
        let expected = reference::dense(x.view(), w.view(), b, f).expect("small");
        near("y", y.view(), &expected, terms(inputs));
        assert!(y.canaries_live());
    } else {
        assert!(y.untouched());
    }

    let dz = input.read::<T, 2>(3, [rows, outputs], values).ok()?;
    let (mut dx, mut dw) =
        (input.written::<T, 2>(0, [rows, inputs])?, input.written::<T, 2>(1, [inputs, outputs])?);
    let mut db = input.written::<T, 1>(2, [outputs])?;
    let beta = [0.0, 1.0, -0.5][usize::from(beta % 3)];
    if beta != 0.0 {
        dx.view_mut().fill(T::ONE);
        dw.view_mut().fill(T::ONE);
        db.view_mut().fill(T::ONE);
    }
    let fits = dz.shape == [x.shape[0], w.shape[1]]
        && x.shape[1] == w.shape[0]
        && (!wanted[2] || db.shape == [w.shape[1]]);
    let gradients = DenseGradientsMut {
        input: wanted[0].then(|| dx.view_mut()),
        weight: wanted[1].then(|| dw.view_mut()),
        bias: wanted[2].then(|| db.view_mut()),
    };
    let result = dense.backward_into(x.view(), w.view(), dz.view(), T::from_f64(beta), gradients);
    let kept = [dx.canaries_live(), dw.canaries_live(), db.canaries_live()];
    assert_eq!(kept, [true; 3], "a gap of a gradient was written");
    if !taken(&result, fits) {
        let before = |x: &T| if beta == 0.0 { x.is_nan() } else { *x == T::ONE };
        assert!(dx.view().iter().chain(dw.view().iter()).chain(db.view().iter()).all(before));
        return None;
    }
    let twin = reference::dense_backward(x.view(), w.view(), dz.view()).expect("small");
    let plus = |sum: f64| sum + beta;
    if wanted[0] {
        near("dx", dx.view(), &rounded::<T, 2>(dx.shape, |at| plus(get(twin.0.view(), at))), terms(outputs));
    }
    if wanted[1] {
        near("dw", dw.view(), &rounded::<T, 2>(dw.shape, |at| plus(get(twin.1.view(), at))), terms(rows));
    }
    if wanted[2] {
        near("db", db.view(), &rounded::<T, 1>(db.shape, |at| plus(get(twin.2.view(), at))), terms(rows));
    }
    Some(())
}

fn chosen(which: u8, [a, b]: [i8; 2]) -> Activation {
    let (a, b) = (f64::from(a) / 16.0, f64::from(b) / 16.0);
    match which % 22 {
        0 => Activation::Identity,
        1 => Activation::Relu,
        2 => Activation::LeakyRelu { slope: a },
        3 => Activation::ThresholdedRelu { threshold: a },
        4 => Activation::Elu { alpha: a },
        5 => Activation::selu(),
        6 => Activation::Celu { alpha: a.abs() + 0.25 },
        7 => Activation::Gelu,
        8 => Activation::GeluTanh,
        9 => Activation::Silu,
        10 => Activation::Swish { beta: a },
        11 => Activation::Mish,
        12 => Activation::Sigmoid,
        13 => Activation::Tanh,
        14 => Activation::ScaledTanh { alpha: a, beta: b },
        15 => Activation::Affine { alpha: a, beta: b },
        16 => Activation::Softplus,
        17 => Activation::Softsign,
        18 => Activation::HardSigmoid { alpha: a, beta: b },
        19 => Activation::HardSwish,
        20 => Activation::Sign,
        _ => Activation::Clip { low: a, high: b },
    }
}

fn activation<T: Element>(input: &Input) -> Option<()> {
    let Call::Activation { which, parameters } = input.call else { return None };
    let (shape, values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let mut x = input.read::<T, 3>(0, shape, values).ok()?;
    input.scale(&mut x);
    let (dy, mut y) = (input.read::<T, 3>(1, shape, values).ok()?, input.written::<T, 3>(2, shape)?);
    let f = chosen(which, parameters);
    let forward = activation::forward(f, x.view(), y.view_mut());
    // Where f has a step, rounding of its argument decides: either side will do.
    let check = |what: &str, found: TensorView<'_, T, 3>, expected: &dyn Fn([usize; 3], f64) -> f64| {
        Tensor::from_fn(found.shape(), |at| {
            let (found, nudge) = (get(found, at), 8.0 * T::EPSILON.to_f64());
            let close = [0.0, -nudge, nudge].iter().any(|nudge| {
                let expected = T::from_f64(expected(at, get(x.view(), at) * (1.0 + nudge))).to_f64();
                let bound = 4000.0 * T::EPSILON.to_f64() * (1.0 + expected.abs());
                found == expected || (found - expected).abs() <= bound
            });
            assert!(close, "{what} of {f:?} at {at:?}, x {}: {found}", get(x.view(), at));
        })
        .expect("small");
    };
    if taken(&forward, x.shape == y.shape) {
        check("y", y.view(), &|_, x| reference::activation::value(f, x));
        let before: Vec<u64> = y.view().iter().map(|y| y.to_f64().to_bits()).collect();
        y.view_mut().assign(x.view()).expect("one shape");
        activation::in_place(f, y.view_mut()).expect("any view");
        assert!(
            y.view().iter().map(|y| y.to_f64().to_bits()).eq(before),
            "in place is not as elsewhere: {f:?}"
        );
        assert!(y.canaries_live());
    } else {
        assert!(y.untouched());
    }
    let mut dx = input.written::<T, 3>(2, shape)?;
    let result = activation::backward(f, x.view(), dy.view(), dx.view_mut());
    if taken(&result, x.shape == dy.shape && x.shape == dx.shape) {
        check("dx", dx.view(), &|at, x| get(dy.view(), at) * reference::activation::derivative(f, x));
        assert!(dx.canaries_live());
    } else {
        assert!(dx.untouched());
    }
    Some(())
}

fn function<T: Element>(input: &Input, which: u8) -> Option<()> {
    let (shape, values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let mut x = input.read::<T, 3>(0, shape, values).ok()?;
    input.scale(&mut x);
    let mut y = input.written::<T, 3>(1, shape)?;
    let (result, twin): (_, fn(f64) -> f64) = match which % 5 {
        0 => (vecmath::exp(x.view(), y.view_mut()), f64::exp),
        1 => (vecmath::log(x.view(), y.view_mut()), f64::ln),
        2 => (vecmath::tanh(x.view(), y.view_mut()), f64::tanh),
        3 => (vecmath::sigmoid(x.view(), y.view_mut()), reference::vecmath::sigmoid),
        _ => (vecmath::erf(x.view(), y.view_mut()), reference::vecmath::erf),
    };
    if !taken(&result, x.shape == y.shape) {
        assert!(y.untouched());
        return None;
    }
    near("y", y.view(), &rounded::<T, 3>(shape, |at| twin(get(x.view(), at))), 8.0);
    assert!(y.canaries_live());
    Some(())
}

fn slopes<T: Element>(input: &Input, ones: u8) -> Option<()> {
    let (shape, values) = (input.shape::<3>(), &mut Values::seed(input.seed));
    let shared: [usize; 3] = std::array::from_fn(|axis| if ones >> axis & 1 == 1 { 1 } else { shape[axis] });
    let (x, slope) =
        (input.read::<T, 3>(0, shape, values).ok()?, input.read::<T, 3>(1, shared, values).ok()?);
    let mut y = input.written::<T, 3>(2, shape)?;
    let broadcasts = (0..3).all(|axis| slope.shape[axis] == 1 || slope.shape[axis] == x.shape[axis]);
    let result = activation::prelu(x.view(), slope.view(), y.view_mut());
    if taken(&result, broadcasts && x.shape == y.shape) {
        near("y", y.view(), &reference::activation::prelu(x.view(), slope.view()).expect("small"), 8.0);
        assert!(y.canaries_live());
    } else {
        assert!(y.untouched());
    }
    let dy = input.read::<T, 3>(3, shape, values).ok()?;
    let (mut dx, mut d_slope) = (input.written::<T, 3>(2, shape)?, input.written::<T, 3>(1, shared)?);
    let (to_x, to_slope) = (Some(dx.view_mut()), Some(d_slope.view_mut()));
    let result = activation::prelu_backward(x.view(), slope.view(), dy.view(), to_x, to_slope);
    if taken(&result, broadcasts && dy.shape == x.shape && dx.shape == x.shape) {
        let twin = reference::activation::prelu_backward(x.view(), slope.view(), dy.view()).expect("small");
        near("dx", dx.view(), &twin.0, 8.0);
        near("d_slope", d_slope.view(), &twin.1, 8.0 * (4.0 + x.view().len() as f64));
        assert!(dx.canaries_live() && d_slope.canaries_live());
    } else {
        assert!(dx.untouched() && d_slope.untouched());
    }
    Some(())
}

/// Whole numbers, of which all sums are exact: all forms make the same mistakes.
fn perceptron<T: Element>(input: &Input) -> Option<()> {
    let Call::Perceptron { label, rate, passes } = input.call else { return None };
    let ([samples, features], values) = (input.shape::<2>(), &mut Values::seed(input.seed));
    let mut x = input.read::<T, 2>(0, [samples, features], values).ok()?;
    x.data.iter_mut().for_each(|x| *x = T::from_f64((x.to_f64() * 3.0).round()));
    let mut labels: Vec<i8> =
        (0..samples).map(|_| if values.bits() >> 40 & 1 == 0 { 1 } else { -1 }).collect();
    if let (Some(label), Some(last)) = (label, labels.last_mut()) {
        *last = label;
    }
    let rate = [1.0, 2.0, 0.5, 0.0, -1.0, f64::NAN, f64::INFINITY][usize::from(rate % 7)];
    let passes = usize::from(passes % 12);
    let rule = Rule::new().rate(T::from_f64(rate)).max_passes(passes);
    let good = labels.iter().all(|&label| label == 1 || label == -1);
    let fits = good && rate > 0.0 && rate.is_finite();

    let (mut primal, mut mistakes) = (Perceptron::<T>::new(features).expect("memory"), Vec::new());
    let result = primal.fit_traced(x.view(), &labels, &rule, |row| mistakes.push(row));
    if !taken(&result, fits && x.shape == [samples, features]) {
        assert!(mistakes.is_empty());
        // A product of all samples with each other.
        if small(&[x.shape[0], x.shape[0], x.shape[1]]) {
            let dual = DualPerceptron::new(x.view(), &labels);
            if taken(&dual, good && x.shape[0] == samples) {
                taken(&dual.and_then(|mut dual| dual.fit(&rule)), rate > 0.0 && rate.is_finite());
            }
        }
        return None;
    }
    let twin = reference::perceptron(x.view(), &labels, rate, passes).expect("small");
    let outcome = result.expect("taken");
    assert_eq!(
        (&mistakes, outcome.updates, outcome.separable),
        (&twin.mistakes, twin.mistakes.len(), twin.separable)
    );
    assert!(primal.weights().iter().map(|w| w.to_f64()).eq(twin.weights.iter().copied()));
    let mut dual = DualPerceptron::new(x.view(), &labels).expect("as before");
    assert_eq!(dual.fit(&rule).expect("as before"), outcome);
    assert_eq!(dual.to_primal(x.view()).expect("its samples").weights(), primal.weights());
    let right =
        primal.predict(x.view()).expect("its features").iter().zip(&labels).filter(|(a, b)| a == b).count();
    assert!(!outcome.separable || right == samples);
    let classes: Vec<usize> = labels.iter().map(|&label| usize::from(label > 0)).collect();
    let mut both = OneVsRest::<T>::new(2, features).expect("memory");
    assert_eq!(both.fit(x.view(), &classes, &rule).expect("as before")[1], outcome);
    assert_eq!(both.predict(x.view()).expect("its features").shape(), [samples]);
    Some(())
}
