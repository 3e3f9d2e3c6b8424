//! The dense operation against its scalar twin, on every instruction set of this machine.

mod common;

use common::{Strided, bits, in_pools, quickcheck, size, value, wave};
use quickcheck::{Arbitrary, Gen};
use tilewise::gemm::Packed;
use tilewise::linear::{Dense, DenseGradientsMut};
use tilewise::machine::{self, Isa};
use tilewise::{Element, Tensor, TensorView, activation::Activation, reference};

#[derive(Clone, Debug)]
struct Case<T> {
    isa: Isa,
    x: Strided<T, 2>,
    weight: Strided<T, 2>,
    bias: Option<Strided<T, 1>>,
    dz: Strided<T, 2>,
    beta: T,
    y: Strided<T, 2>,
    dx: Strided<T, 2>,
    dw: Strided<T, 2>,
    db: Strided<T, 1>,
    relu: bool,
}

impl<T: Element> Arbitrary for Case<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let [batch, inputs, outputs] = [size(g), size(g), size(g)];
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            x: Strided::random(g, [batch, inputs]),
            weight: Strided::random(g, [inputs, outputs]),
            bias: bool::arbitrary(g).then(|| Strided::random(g, [outputs])),
            dz: Strided::random(g, [batch, outputs]),
            beta: [T::ZERO, T::ONE, value(g)][usize::arbitrary(g) % 3],
            y: Strided::random(g, [batch, outputs]),
            dx: Strided::random(g, [batch, inputs]),
            dw: Strided::random(g, [inputs, outputs]),
            db: Strided::random(g, [outputs]),
            relu: bool::arbitrary(g),
        }
    }
}

/// |found − expected| ≤ 2 ε (terms + 4) · magnitude for each element.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: impl Fn([usize; N]) -> f64,
    magnitude: impl Fn([usize; N]) -> f64,
    terms: usize,
) {
    let bound = 2.0 * T::EPSILON.to_f64() * (terms as f64 + 4.0);
    let shape = found.shape();
    Tensor::from_fn(shape, |index| {
        let (found, expected) = (found.get(index).expect("inside").to_f64(), expected(index));
        let bound = bound * magnitude(index);
        assert!(
            (found - expected).abs() <= bound,
            "{what} {index:?} of {shape:?}: {found} {expected} ± {bound}"
        );
    })
    .expect("memory");
}

fn check<T: Element>(case: Case<T>) -> bool {
    machine::with_isa(case.isa, || run(case)).expect("supported")
}

fn run<T: Element>(mut case: Case<T>) -> bool {
    let (x, weight, dz) = (case.x.view(), case.weight.view(), case.dz.view());
    let bias = case.bias.as_ref().map(Strided::view);
    let ([batch, inputs], [_, outputs]) = (x.shape(), weight.shape());
    let (activation, scalar): (_, fn(f64) -> f64) =
        if case.relu { (Activation::Relu, |z| z.max(0.0)) } else { (Activation::Identity, |z| z) };
    let dense = Dense::new().activation(activation);

    // Forward: the size of what is added is that of the absolute values.
    let abs = |view: TensorView<'_, T, 2>| {
        Tensor::from_fn(view.shape(), |index| view.get(index).expect("inside").abs()).expect("memory")
    };
    let (abs_x, abs_weight, abs_dz) = (abs(x), abs(weight), abs(dz));
    let abs_bias = bias.map(|bias| {
        Tensor::from_fn([outputs], |index| bias.get(index).expect("inside").abs()).expect("memory")
    });
    let expected = reference::dense(x, weight, bias, scalar).unwrap();
    let size = reference::dense(abs_x.view(), abs_weight.view(), abs_bias.as_ref().map(Tensor::view), |z| z);
    let size = size.unwrap();
    case.y.view_mut().fill(T::NAN);
    dense.forward_into(x, weight, bias, case.y.view_mut()).unwrap();
    let at = |t: &Tensor<f64, 2>, index| *t.get(index).expect("inside");
    near("y", case.y.view(), |i| at(&expected, i), |i| at(&size, i), inputs);
    let y = dense.forward(x, weight, bias).unwrap();
    near("owned y", y.view(), |i| at(&expected, i), |i| at(&size, i), inputs);
    let packed = Packed::rhs(weight).unwrap();
    let y = dense.forward(x, &packed, bias).unwrap();
    near("packed y", y.view(), |i| at(&expected, i), |i| at(&size, i), inputs);

    // Backward: what the outputs held counts by beta, and is not read where beta is 0.
    let (dx, dw, db) = reference::dense_backward(x, weight, dz).unwrap();
    let (sx, sw, sb) = reference::dense_backward(abs_x.view(), abs_weight.view(), abs_dz.view()).unwrap();
    let (held_x, held_w) = (case.dx.view().to_tensor().unwrap(), case.dw.view().to_tensor().unwrap());
    let held_b = case.db.view().to_tensor().unwrap();
    if case.beta == T::ZERO {
        case.dx.view_mut().fill(T::NAN);
        case.dw.view_mut().fill(T::NAN);
        case.db.view_mut().fill(T::NAN);
    }
    let gradients = DenseGradientsMut {
        input: Some(case.dx.view_mut()),
        weight: Some(case.dw.view_mut()),
        bias: Some(case.db.view_mut()),
    };
    dense.backward_into(x, weight, dz, case.beta, gradients).unwrap();
    let beta = case.beta.to_f64();
    let held = |t: &Tensor<T, 2>, i| beta * t.get(i).expect("inside").to_f64();
    let with = |t: &Tensor<f64, 2>, h: &Tensor<T, 2>, i| at(t, i) + held(h, i);
    let sized = |t: &Tensor<f64, 2>, h: &Tensor<T, 2>, i| at(t, i) + held(h, i).abs();
    near("dx", case.dx.view(), |i| with(&dx, &held_x, i), |i| sized(&sx, &held_x, i), outputs);
    near("dw", case.dw.view(), |i| with(&dw, &held_w, i), |i| sized(&sw, &held_w, i), batch);
    let held = |i| beta * held_b.get(i).expect("inside").to_f64();
    let at1 = |t: &Tensor<f64, 1>, i| *t.get(i).expect("inside");
    near("db", case.db.view(), |i| at1(&db, i) + held(i), |i| at1(&sb, i) + held(i).abs(), batch);

    let all = dense.backward(x, weight, dz).unwrap();
    near("owned dx", all.input.view(), |i| at(&dx, i), |i| at(&sx, i), outputs);
    near("owned dw", all.weight.view(), |i| at(&dw, i), |i| at(&sw, i), batch);
    near("owned db", all.bias.view(), |i| at1(&db, i), |i| at1(&sb, i), batch);
    assert_eq!(all.input, dense.backward_input(dz, weight).unwrap());
    assert_eq!(all.weight, dense.backward_weight(x, dz).unwrap());
    assert_eq!(all.bias, dense.backward_bias(dz).unwrap());

    case.y.canaries_live() && case.dx.canaries_live() && case.dw.canaries_live() && case.db.canaries_live()
}

#[test]
fn equals_the_reference_in_f32() {
    quickcheck(300, check::<f32> as fn(Case<f32>) -> bool);
}

#[test]
fn equals_the_reference_in_f64() {
    quickcheck(300, check::<f64> as fn(Case<f64>) -> bool);
}

#[test]
fn gradients_are_central_differences() {
    let [batch, inputs, outputs] = [5, 7, 3];
    let (mut x, mut w, mut b) =
        (wave([batch, inputs], 0.1), wave([inputs, outputs], 0.2), wave([outputs], 0.3));
    let r = wave([batch, outputs], 0.4);
    let dense = Dense::new();
    // L = Σ R ⊙ Y, so dL/dY = R.
    let loss = |x: &Tensor<f64, 2>, w: &Tensor<f64, 2>, b: &Tensor<f64, 1>| {
        let y = dense.forward(x.view(), w.view(), Some(b.view())).unwrap();
        y.iter().zip(&r).map(|(y, r)| y * r).sum::<f64>()
    };
    let gradients = dense.backward(x.view(), w.view(), r.view()).unwrap();
    // L is linear in each argument: only rounding is left, about ε |L| / h.
    let h = 1e-4;
    let difference = |high: f64, low: f64, gradient: f64| {
        assert!(((high - low) / (2.0 * h) - gradient).abs() < 1e-9 * (1.0 + gradient.abs()));
    };
    for i in 0..x.len() {
        let [high, low] = [h, -h].map(|h| {
            x.as_mut_slice()[i] += h;
            let loss = loss(&x, &w, &b);
            x.as_mut_slice()[i] -= h;
            loss
        });
        difference(high, low, gradients.input.as_slice()[i]);
    }
    for i in 0..w.len() {
        let [high, low] = [h, -h].map(|h| {
            w.as_mut_slice()[i] += h;
            let loss = loss(&x, &w, &b);
            w.as_mut_slice()[i] -= h;
            loss
        });
        difference(high, low, gradients.weight.as_slice()[i]);
    }
    for i in 0..b.len() {
        let [high, low] = [h, -h].map(|h| {
            b.as_mut_slice()[i] += h;
            let loss = loss(&x, &w, &b);
            b.as_mut_slice()[i] -= h;
            loss
        });
        difference(high, low, gradients.bias.as_slice()[i]);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, w, b) = (wave::<f64, 2>([900, 130], 0.1), wave([130, 700], 0.2), wave([700], 0.3));
    let dz = wave([900, 700], 0.4);
    let results = in_pools(|| {
        let dense = Dense::new().activation(Activation::Relu);
        let y = dense.forward(x.view(), w.view(), Some(b.view())).unwrap();
        let gradients = dense.backward(x.view(), w.view(), dz.view()).unwrap();
        [y.as_slice(), gradients.input.as_slice(), gradients.weight.as_slice(), gradients.bias.as_slice()]
            .map(bits)
    });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn the_sum_over_rows_has_the_same_bits_for_all_strides() {
    let dz = wave::<f64, 2>([333, 150], 0.1);
    let columns = Tensor::from_fn([150, 333], |[i, j]| *dz.get([j, i]).unwrap()).unwrap();
    let dense = Dense::new();
    let (rows, columns) =
        (dense.backward_bias(dz.view()).unwrap(), dense.backward_bias(columns.view().transpose()).unwrap());
    assert_eq!(bits(rows.as_slice()), bits(columns.as_slice()));
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let m = |rows, columns| Tensor::<f32, 2>::full([rows, columns], 1.0).unwrap();
    let v = |len| Tensor::<f32, 1>::full([len], 1.0).unwrap();
    let (x, w, dz) = (m(2, 3), m(3, 4), m(2, 4));
    let dense = Dense::new();
    let (mut y, mut db) = (m(2, 5), v(5));
    let text = |result: tilewise::Result<()>| result.unwrap_err().to_string();

    let cases = [
        (
            text(dense.forward(x.view(), m(5, 4).view(), None).map(|_| ())),
            "Dense::forward: weight has shape [5, 4], expected [3, 4]",
        ),
        (
            text(dense.forward(x.view(), w.view(), Some(v(3).view())).map(|_| ())),
            "Dense::forward: bias has shape [3], expected [4]",
        ),
        (
            text(dense.forward(x.view(), &Packed::rhs(m(5, 4).view()).unwrap(), None).map(|_| ())),
            "Dense::forward: weight has shape [5, 4], expected [3, 4]",
        ),
        (
            text(dense.forward_into(x.view(), w.view(), None, y.view_mut())),
            "Dense::forward_into: y has shape [2, 5], expected [2, 4]",
        ),
        (
            text(dense.backward_input(dz.view(), m(3, 5).view()).map(|_| ())),
            "Dense::backward_input: weight has shape [3, 5], expected [3, 4]",
        ),
        (
            text(dense.backward_input_into(dz.view(), w.view(), 0.0, y.view_mut())),
            "Dense::backward_input_into: dx has shape [2, 5], expected [2, 3]",
        ),
        (
            text(dense.backward_weight(x.view(), m(3, 4).view()).map(|_| ())),
            "Dense::backward_weight: dz has shape [3, 4], expected [2, 4]",
        ),
        (
            text(dense.backward_weight_into(x.view(), dz.view(), 0.0, y.view_mut())),
            "Dense::backward_weight_into: dw has shape [2, 5], expected [3, 4]",
        ),
        (
            text(dense.backward_bias_into(dz.view(), 0.0, db.view_mut())),
            "Dense::backward_bias_into: db has shape [5], expected [4]",
        ),
        (
            text(dense.backward(x.view(), m(2, 4).view(), dz.view()).map(|_| ())),
            "Dense::backward: weight has shape [2, 4], expected [3, 4]",
        ),
        (
            text(dense.backward(x.view(), w.view(), m(2, 3).view()).map(|_| ())),
            "Dense::backward: dz has shape [2, 3], expected [2, 4]",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }

    // The last output is wrong: the first two must not have been touched.
    let (mut dx, mut dw) = (m(2, 3), m(3, 4));
    let gradients = DenseGradientsMut {
        input: Some(dx.view_mut()),
        weight: Some(dw.view_mut()),
        bias: Some(db.view_mut()),
    };
    assert_eq!(
        text(dense.backward_into(x.view(), w.view(), dz.view(), 0.0, gradients)),
        "Dense::backward_into: gradients.bias has shape [5], expected [4]"
    );
    for untouched in [y.as_slice(), db.as_slice(), dx.as_slice(), dw.as_slice()] {
        assert!(untouched.iter().all(|&element| element == 1.0));
    }
}
