//! Losses against their scalar twins.

mod common;

use common::{Strided, bits, in_pools, quickcheck, size, value, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::loss::{BinaryCrossEntropy, CrossEntropy, MeanSquared, Reduction, Target};
use tilewise::machine::{self, Isa};
use tilewise::{Element, Error, Tensor, TensorView, reference};

fn reduction(g: &mut Gen) -> Reduction {
    *g.choose(&[Reduction::Mean, Reduction::Sum]).expect("not empty")
}

/// The factor that a reduction puts before a sum over `count`.
fn factor(reduction: Reduction, count: f64) -> f64 {
    match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean if count == 0.0 => 0.0,
        Reduction::Mean => 1.0 / count,
    }
}

#[derive(Clone, Debug)]
struct Rows<T> {
    isa: Isa,
    logits: Strided<T, 2>,
    classes: Vec<usize>,
    weights: Option<Strided<T, 1>>,
    soft: Option<Strided<T, 2>>,
    ignore: Option<usize>,
    smoothing: f64,
    reduction: Reduction,
    log_probabilities: bool,
    out: Strided<T, 2>,
}

impl<T: Element> Arbitrary for Rows<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        // Beyond 256 classes a row passes through the staging buffer in parts.
        let classes = if u8::arbitrary(g).is_multiple_of(8) { within(g, 250..600) } else { size(g).max(1) };
        let shape = [size(g), classes];
        let mut logits = Strided::random(g, shape);
        let scale = T::from_f64(*g.choose(&[1.0, 30.0, 3000.0]).expect("not empty"));
        logits.data.iter_mut().for_each(|z| *z *= scale);
        let soft = u8::arbitrary(g).is_multiple_of(3).then(|| {
            let mut soft = Strided::<T, 2>::random(g, shape);
            soft.data.iter_mut().for_each(|q| *q = if *q < T::ZERO { T::ZERO } else { *q });
            soft
        });
        Rows {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            logits,
            classes: (0..shape[0]).map(|_| within(g, 0..classes)).collect(),
            weights: (soft.is_none() && bool::arbitrary(g)).then(|| {
                let mut weights = Strided::<T, 1>::random(g, [classes]);
                weights.data.iter_mut().for_each(|w| *w = if *w < T::ZERO { T::ZERO } else { *w });
                weights
            }),
            ignore: (soft.is_none() && bool::arbitrary(g)).then(|| within(g, 0..classes)),
            soft,
            smoothing: *g.choose(&[0.0, 0.0, 0.1, 1.0]).expect("not empty"),
            reduction: reduction(g),
            log_probabilities: u8::arbitrary(g).is_multiple_of(4),
            out: Strided::random(g, shape),
        }
    }
}

fn check_rows<T: Element>(case: Rows<T>) -> bool {
    machine::with_isa(case.isa, || rows(case)).expect("supported")
}

fn rows<T: Element>(mut case: Rows<T>) -> bool {
    let logits = case.logits.view();
    let [batch, classes] = logits.shape();
    let ignored = |row: usize| case.soft.is_none() && Some(case.classes[row]) == case.ignore;
    let weights = case.weights.as_ref().map(Strided::view);
    let weight = |class: usize| weights.map_or(1.0, |weights| weights.get([class]).unwrap().to_f64());
    let q = |row: usize, class: usize| match &case.soft {
        _ if ignored(row) => 0.0,
        Some(soft) => {
            let q = soft.view().get([row, class]).expect("inside").to_f64();
            (1.0 - case.smoothing) * q + case.smoothing / classes as f64
        }
        None => {
            let hot = if case.classes[row] == class { 1.0 } else { 0.0 };
            weight(class) * ((1.0 - case.smoothing) * hot + case.smoothing / classes as f64)
        }
    };
    let counted = (0..batch).filter(|&row| !ignored(row)).map(|row| match case.soft {
        Some(_) => 1.0,
        None => weight(case.classes[row]),
    });
    let counted: f64 = counted.sum();
    let factor = factor(case.reduction, counted);
    let (sum, gradient) = if case.log_probabilities {
        reference::likelihood(logits, q).unwrap()
    } else {
        reference::cross_entropy(logits, q).unwrap()
    };

    let mut loss = CrossEntropy::new().label_smoothing(case.smoothing).reduction(case.reduction);
    if let Some(class) = case.ignore {
        loss = loss.ignore_index(class);
    }
    let soft = case.soft.as_ref().map(Strided::view);
    if case.log_probabilities {
        loss = loss.log_probabilities();
    }
    let target = match (soft, weights) {
        (Some(soft), _) => Target::Probabilities(soft),
        (None, Some(weights)) => Target::Weighted(&case.classes, weights),
        (None, None) => Target::Classes(&case.classes),
    };
    let value = loss.forward(logits, target).unwrap();
    let (both, owned) = loss.forward_backward(logits, target).unwrap();
    case.out.view_mut().fill(T::NAN);
    let into = loss.forward_backward_into(logits, target, case.out.view_mut()).unwrap();
    assert_eq!([value.to_f64().to_bits(); 2], [both, into].map(|loss| loss.to_f64().to_bits()));
    assert!(case.out.view() == owned.view());

    // Subtracting the maximum rounds each logit's distance d from it once; the exponentials, their sum in lanes and
    // its logarithm add a few roundings of numbers that are, times their weight, at most 1 and d. The
    // reference adds one after the other.
    let epsilon = T::EPSILON.to_f64();
    let (mut slack, mut weights) = (0.0, vec![0.0; batch]);
    for (row, weight) in weights.iter_mut().enumerate() {
        let z = |class| logits.get([row, class]).expect("inside").to_f64();
        let max = (0..classes).map(z).fold(f64::NEG_INFINITY, f64::max);
        for class in 0..classes {
            slack += q(row, class) * (max - z(class) + 1.0 + z(class).abs());
            *weight += q(row, class);
        }
    }
    let roundings = 32.0 * epsilon + (batch + classes) as f64 * f64::EPSILON;
    let bound = roundings * factor * (slack + sum.abs());
    assert!((value.to_f64() - factor * sum).abs() <= bound, "{value} {} ± {bound}", factor * sum);
    let each = loss.row_losses(logits, target).unwrap();
    let total: f64 = each.iter().map(|loss| loss.to_f64()).sum();
    assert!((total - sum).abs() <= roundings * (slack + sum.abs()), "{total} {sum}");
    Tensor::from_fn([batch, classes], |[row, class]| {
        let found = owned.get([row, class]).expect("inside").to_f64();
        let expected = factor * gradient.get([row, class]).expect("inside");
        let bound = roundings * factor * (weights[row] + q(row, class));
        assert!((found - expected).abs() <= bound, "[{row}, {class}]: {found} {expected} ± {bound}");
    })
    .expect("memory");
    case.out.canaries_live()
}

#[test]
fn cross_entropy_equals_the_reference() {
    quickcheck(300, check_rows::<f32> as fn(Rows<f32>) -> bool);
    quickcheck(300, check_rows::<f64> as fn(Rows<f64>) -> bool);
}

#[derive(Clone, Debug)]
struct Elements<T> {
    isa: Isa,
    y: Strided<T, 3>,
    target: Strided<T, 3>,
    out: Strided<T, 3>,
    reduction: Reduction,
}

impl<T: Element> Arbitrary for Elements<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let shape = [size(g), size(g), within(g, 0..6)];
        let mut y = Strided::random(g, shape);
        let scale = T::from_f64(*g.choose(&[1.0, 30.0, 3000.0]).expect("not empty"));
        y.data.iter_mut().for_each(|y| *y *= scale);
        let mut target = Strided::<T, 3>::random(g, shape);
        // From −2 … 2 to 0 … 1, with 0 and 1 themselves.
        for t in &mut target.data {
            *t = T::from_f64((t.to_f64() + 1.0).clamp(0.0, 2.0) / 2.0);
        }
        Elements {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            y,
            target,
            out: Strided::random(g, shape),
            reduction: reduction(g),
        }
    }
}

fn check_elements<T: Element>(case: Elements<T>) -> bool {
    machine::with_isa(case.isa, || elements(case)).expect("supported")
}

fn elements<T: Element>(mut case: Elements<T>) -> bool {
    let (y, t) = (case.y.view(), case.target.view());
    let factor = factor(case.reduction, y.len() as f64);
    let epsilon = T::EPSILON.to_f64();

    // All terms are positive, so the error is relative to the sum: some roundings of each term and of the sum in
    // lanes, and those of the reference, which adds one after the other. What is below the least number of the type
    // becomes 0 or that, in each term and once in the end.
    let relative = 24.0 * epsilon + y.len() as f64 * f64::EPSILON;
    let least = if T::NAME == "f32" { f64::from(f32::from_bits(1)) } else { f64::from_bits(1) };
    let close = |(found, gradient): (T, TensorView<'_, T, 3>), (sum, expected): (f64, Tensor<f64, 3>)| {
        let bound = factor * (relative * sum + y.len() as f64 * least) + least;
        assert!((found.to_f64() - factor * sum).abs() <= bound, "{found} {} ± {bound}", factor * sum);
        for (found, expected) in gradient.iter().zip(&expected) {
            let bound = 4.0 * epsilon * factor * (expected.abs() + 1.0);
            let expected = factor * expected;
            assert!((found.to_f64() - expected).abs() <= bound, "{found} {expected} ± {bound}");
        }
    };
    let loss = MeanSquared::new().reduction(case.reduction);
    let (both, owned) = loss.forward_backward(y, t).unwrap();
    assert_eq!(loss.forward(y, t).unwrap(), both);
    case.out.view_mut().fill(T::NAN);
    assert_eq!(loss.forward_backward_into(y, t, case.out.view_mut()).unwrap(), both);
    assert!(case.out.view() == owned.view());
    close((both, owned.view()), reference::squared(y, t).unwrap());

    let loss = BinaryCrossEntropy::new().reduction(case.reduction);
    let (both, owned) = loss.forward_backward(y, t).unwrap();
    assert_eq!(loss.forward(y, t).unwrap(), both);
    case.out.view_mut().fill(T::NAN);
    assert_eq!(loss.forward_backward_into(y, t, case.out.view_mut()).unwrap(), both);
    assert!(case.out.view() == owned.view());
    close((both, owned.view()), reference::binary_cross_entropy(y, t).unwrap());
    case.out.canaries_live()
}

#[test]
fn elementwise_losses_equal_the_reference() {
    quickcheck(200, check_elements::<f32> as fn(Elements<f32>) -> bool);
    quickcheck(200, check_elements::<f64> as fn(Elements<f64>) -> bool);
}

/// Central differences of `loss` at `x` against `gradient`. With h = 10⁻⁵ the error is about h² |f‴| / 6 ≈ 2·10⁻¹¹
/// and ε |f| / h ≈ 10⁻¹¹.
fn differences(x: &Tensor<f64, 2>, gradient: &Tensor<f64, 2>, loss: impl Fn(TensorView<'_, f64, 2>) -> f64) {
    let h = 1e-5;
    for i in 0..x.len() {
        let [high, low] = [h, -h].map(|h| {
            let mut x = x.view().to_tensor().unwrap();
            x.as_mut_slice()[i] += h;
            loss(x.view())
        });
        let (found, expected) = (gradient.as_slice()[i], (high - low) / (2.0 * h));
        assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{i}: {found} {expected}");
    }
}

#[test]
fn gradients_are_central_differences() {
    let mut g = Gen::new(10);
    let mut matrix = || Tensor::from_fn([5, 4], |_| value::<f64>(&mut g)).unwrap();
    let (z, t) = (matrix(), matrix());
    let q = Tensor::from_fn([5, 4], |index| t.get(index).unwrap().abs() / 2.0).unwrap();
    for reduction in [Reduction::Mean, Reduction::Sum] {
        for smoothing in [0.0, 0.2] {
            let loss = CrossEntropy::new().reduction(reduction).label_smoothing(smoothing).ignore_index(2);
            let classes = [0, 3, 2, 1, 0];
            let (_, gradient) = loss.forward_backward(z.view(), &classes).unwrap();
            differences(&z, &gradient, |z| loss.forward(z, &classes).unwrap());
            let loss = CrossEntropy::new().reduction(reduction).label_smoothing(smoothing);
            let (_, gradient) = loss.forward_backward(z.view(), q.view()).unwrap();
            differences(&z, &gradient, |z| loss.forward(z, q.view()).unwrap());
        }
        let loss = MeanSquared::new().reduction(reduction);
        let (_, gradient) = loss.forward_backward(z.view(), t.view()).unwrap();
        differences(&z, &gradient, |z| loss.forward(z, t.view()).unwrap());
        let loss = BinaryCrossEntropy::new().reduction(reduction);
        let (_, gradient) = loss.forward_backward(z.view(), q.view()).unwrap();
        differences(&z, &gradient, |z| loss.forward(z, q.view()).unwrap());
    }
}

#[test]
fn extreme_logits_stay_finite_and_small_losses_keep_their_digits() {
    let row = |values: &[f32]| Tensor::from_slice(values, [1, values.len()]).unwrap();
    let loss = CrossEntropy::new();
    let (value, d) = loss.forward_backward(row(&[3e38, -3e38]).view(), &[0]).unwrap();
    assert_eq!((value, d.as_slice()), (0.0, &[0.0, 0.0][..]));
    // z − max overflows to −∞ here, which is the right limit.
    assert_eq!(loss.forward(row(&[3e38, -3e38]).view(), &[1]).unwrap(), f32::INFINITY);
    let (value, d) = loss.forward_backward(row(&[0.0, 1e4]).view(), &[0]).unwrap();
    assert_eq!((value, d.as_slice()), (1e4, &[-1.0, 1.0][..]));
    // log(1 + e⁻³⁰) is e⁻³⁰ to all digits that f32 has; 1 + e⁻³⁰ is 1.
    let value = loss.forward(row(&[30.0, 0.0]).view(), &[0]).unwrap();
    assert!((f64::from(value) / (-30f64).exp() - 1.0).abs() < 1e-6);
    // Masked classes: no probability, no loss, no gradient.
    let masked = row(&[1.0, f32::NEG_INFINITY, 1.0]);
    let (value, d) = loss.forward_backward(masked.view(), &[0]).unwrap();
    assert_eq!((value, d.as_slice()), (2f32.ln(), &[-0.5, 0.0, 0.5][..]));
    let hot = row(&[1.0, 0.0, 0.0]);
    assert_eq!(loss.forward_backward(masked.view(), hot.view()).unwrap(), (value, d));
    assert_eq!(loss.forward(masked.view(), &[1]).unwrap(), f32::INFINITY);
    for bad in [[f32::NAN, 0.0], [0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
        let (value, d) = loss.forward_backward(row(&bad).view(), &[0]).unwrap();
        assert!(value.is_nan() && d.iter().all(|d| d.is_nan()), "{bad:?}: {value} {:?}", d.as_slice());
    }

    let loss = BinaryCrossEntropy::new().reduction(Reduction::Sum);
    let binary = |z: f32, t: f32| {
        let (value, d) = loss.forward_backward(row(&[z]).view(), row(&[t]).view()).unwrap();
        (value, d.as_slice()[0])
    };
    let inf = f32::INFINITY;
    for (z, t, expected) in [
        (3e38, 1.0, (0.0, 0.0)),
        (3e38, 0.0, (3e38, 1.0)),
        (-3e38, 0.0, (0.0, 0.0)),
        (-3e38, 1.0, (3e38, -1.0)),
        (inf, 1.0, (0.0, 0.0)),
        (inf, 0.0, (inf, 1.0)),
        (-inf, 0.0, (0.0, 0.0)),
        (-inf, 1.0, (inf, -1.0)),
    ] {
        assert_eq!(binary(z, t), expected, "{z} {t}");
    }
    assert!((f64::from(binary(30.0, 1.0).0) / (-30f64).exp() - 1.0).abs() < 1e-6);
    for t in [0.0, 0.5, 1.0] {
        let (value, d) = binary(f32::NAN, t);
        assert!(value.is_nan() && d.is_nan());
    }
}

#[test]
fn a_gradient_is_finite_where_only_its_double_is_not() {
    let y = Tensor::<f32, 1>::from_slice(&[2e38, 0.0, 0.0, -2e38], [4]).unwrap();
    let (_, dy) = MeanSquared::new().forward_backward(y.view(), Tensor::zeros([4]).unwrap().view()).unwrap();
    assert_eq!(dy.as_slice(), [1e38, 0.0, 0.0, -1e38]);
}

#[test]
fn a_mean_over_nothing_is_zero() {
    let z = Tensor::<f32, 2>::full([3, 2], 5.0).unwrap();
    let loss = CrossEntropy::new().ignore_index(9);
    let (value, d) = loss.forward_backward(z.view(), &[9, 9, 9]).unwrap();
    assert_eq!((value, d.as_slice()), (0.0, &[0.0; 6][..]));
    // The others' mean is over them alone.
    let (value, d) = loss.forward_backward(z.view(), &[9, 1, 9]).unwrap();
    assert_eq!((value, d.as_slice()), (2f32.ln(), &[0.0, 0.0, 0.5, -0.5, 0.0, 0.0][..]));
    // Nor do rows count whose classes weigh nothing, smoothed or not.
    let weights = Tensor::from_slice(&[0.0f32, 1.0], [2]).unwrap();
    for loss in [CrossEntropy::new(), CrossEntropy::new().label_smoothing(0.5)] {
        let (value, d) = loss.forward_backward(z.view(), (&[0, 0, 0][..], weights.view())).unwrap();
        assert_eq!((value, d.as_slice()), (0.0, &[0.0; 6][..]));
    }
    let empty = Tensor::<f32, 2>::zeros([0, 2]).unwrap();
    assert_eq!(CrossEntropy::new().forward(empty.view(), &[]).unwrap(), 0.0);
    assert_eq!(MeanSquared::new().forward(empty.view(), empty.view()).unwrap(), 0.0);
    assert_eq!(BinaryCrossEntropy::new().forward(empty.view(), empty.view()).unwrap(), 0.0);
    let no_classes = Tensor::<f32, 2>::zeros([2, 0]).unwrap();
    assert_eq!(CrossEntropy::new().forward(no_classes.view(), no_classes.view()).unwrap(), 0.0);
}

#[test]
fn any_number_of_threads_and_any_strides_give_the_same_bits() {
    let mut g = Gen::new(10);
    let shape = [3000, 37];
    let mut matrix = || Tensor::from_fn(shape, |_| value::<f32>(&mut g)).unwrap();
    let (z, t) = (matrix(), matrix());
    let turned = |m: &Tensor<f32, 2>| Tensor::from_fn([37, 3000], |[i, j]| *m.get([j, i]).unwrap()).unwrap();
    let (z_turned, t_turned) = (turned(&z), turned(&t));
    let classes: Vec<usize> = (0..3000).map(|row| row * 7 % 37).collect();
    let mut results = Vec::new();
    for (z, t) in [(z.view(), t.view()), (z_turned.view().transpose(), t_turned.view().transpose())] {
        results.extend(in_pools(|| {
            let losses = [
                CrossEntropy::new().label_smoothing(0.1).forward_backward(z, &classes).unwrap(),
                CrossEntropy::new().forward_backward(z, t).unwrap(),
                MeanSquared::new().forward_backward(z, t).unwrap(),
                BinaryCrossEntropy::new().forward_backward(z, t).unwrap(),
            ];
            losses.map(|(loss, d)| (loss.to_bits(), bits(d.as_slice())))
        }));
    }
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let z = Tensor::<f32, 2>::zeros([2, 3]).unwrap();
    let other = Tensor::<f32, 2>::zeros([2, 4]).unwrap();
    let mut out = Tensor::<f32, 2>::full([2, 4], 1.0).unwrap();
    let weights = Tensor::from_slice(&[1.0f32, -1.0, 0.0], [3]).unwrap();
    let text = |error: Error| error.to_string();
    let loss = CrossEntropy::new();
    let cases = [
        (
            text(loss.forward(z.view(), &[0, 3]).unwrap_err()),
            "CrossEntropy::forward: target is class 3 in row 1, expected a class below the number of logits",
        ),
        (
            text(loss.forward(z.view(), &[0]).unwrap_err()),
            "CrossEntropy::forward: target has shape [1], expected [2]",
        ),
        (
            text(loss.forward_backward(z.view(), other.view()).map(drop).unwrap_err()),
            "CrossEntropy::forward_backward: target has shape [2, 4], expected [2, 3]",
        ),
        (
            text(loss.forward_backward_into(z.view(), &[0, 1], out.view_mut()).unwrap_err()),
            "CrossEntropy::forward_backward_into: d_logits has shape [2, 4], expected [2, 3]",
        ),
        (
            text(loss.label_smoothing(1.5).forward(z.view(), &[0, 1]).unwrap_err()),
            "CrossEntropy::forward: label_smoothing is 1.5, expected between 0 and 1",
        ),
        (
            text(loss.label_smoothing(f64::NAN).forward(z.view(), &[0, 1]).unwrap_err()),
            "CrossEntropy::forward: label_smoothing is NaN, expected between 0 and 1",
        ),
        (
            text(loss.forward(z.view(), (&[0, 1][..], weights.view())).unwrap_err()),
            "CrossEntropy::forward: weights is -1 for class 1, expected at least 0",
        ),
        (
            text(loss.ignore_index(1).forward(z.view(), z.view()).unwrap_err()),
            "CrossEntropy::forward: ignore_index is 1, expected none where the target is probabilities",
        ),
        (
            text(MeanSquared::new().forward(z.view(), other.view()).unwrap_err()),
            "MeanSquared::forward: target has shape [2, 4], expected [2, 3]",
        ),
        (
            text(BinaryCrossEntropy::new().forward_backward(z.view(), other.view()).map(drop).unwrap_err()),
            "BinaryCrossEntropy::forward_backward: target has shape [2, 4], expected [2, 3]",
        ),
        (
            text(MeanSquared::new().forward_backward_into(z.view(), z.view(), out.view_mut()).unwrap_err()),
            "MeanSquared::forward_backward_into: gradient has shape [2, 4], expected [2, 3]",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    assert!(out.iter().all(|&element| element == 1.0));
}
