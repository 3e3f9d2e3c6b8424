//! Normalisation against its scalar twin, on every instruction set of this machine.

mod common;
#[path = "norm/errors.rs"]
mod errors;

use common::{Strided, bits, in_pools, quickcheck, size, value, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::machine::{self, Isa};
use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsGradientsMut, RmsNormalization,
};
use tilewise::random::Rng;
use tilewise::reference::norm::{self as twin, Norm};
use tilewise::{Element, Result, Tensor, TensorView};

/// Far over any sum that the tests make of small factors times ε.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    size: f64,
) {
    assert_eq!(found.shape(), expected.shape());
    let bound = T::EPSILON.to_f64() * size;
    for (at, (found, expected)) in found.iter().zip(expected.as_slice()).enumerate() {
        let found = found.to_f64();
        assert!((found - expected).abs() <= bound, "{what} {at}: {found} {expected} ± {bound}");
    }
}

fn largest<T: Element, const N: usize>(view: TensorView<'_, T, N>) -> f64 {
    view.iter().fold(0.0, |most, x| most.max(x.to_f64().abs()))
}

/// Rows of three axes, so that some layouts do not merge.
#[derive(Clone, Debug)]
struct RowsCase<T> {
    isa: Isa,
    x: Strided<T, 3>,
    residual: Strided<T, 3>,
    scale: Option<Strided<T, 1>>,
    shift: Option<Strided<T, 1>>,
    dy: Strided<T, 3>,
    outputs: [Strided<T, 3>; 2],
    parameters: [Strided<T, 1>; 2],
    beta: T,
    offset: T,
    wanted: [bool; 3],
}

impl<T: Element> Arbitrary for RowsCase<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let n = if within(g, 0..8) == 0 { within(g, 60..300) } else { size(g) };
        let rows = if within(g, 0..8) == 0 { within(g, 60..200) } else { within(g, 0..6) };
        let shape = [within(g, 0..4), rows, n];
        let maybe = |g: &mut Gen| bool::arbitrary(g).then(|| Strided::random(g, [n]));
        RowsCase {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            x: Strided::random(g, shape),
            residual: Strided::random(g, shape),
            scale: maybe(g),
            shift: maybe(g),
            dy: Strided::random(g, shape),
            outputs: [Strided::random(g, shape), Strided::random(g, shape)],
            parameters: [Strided::random(g, [n]), Strided::random(g, [n])],
            beta: [T::ZERO, T::ONE, value(g)][usize::arbitrary(g) % 3],
            offset: T::from_f64(*g.choose(&[0.0, 0.0, 1000.0]).unwrap()),
            wanted: std::array::from_fn(|_| bool::arbitrary(g)),
        }
    }
}

const EPSILON: f64 = 1e-3;

fn rows<T: Element>(case: RowsCase<T>) -> bool {
    machine::with_isa(case.isa, || run_rows(case)).expect("supported")
}

fn run_rows<T: Element>(mut case: RowsCase<T>) -> bool {
    let offset = case.offset;
    let moved = Tensor::from_fn(case.x.shape, |at| *case.x.view().get(at).unwrap() + offset).unwrap();
    case.x.view_mut().assign(moved.view()).unwrap();
    let RowsCase { x, residual, scale, shift, dy, outputs, parameters, beta, wanted, .. } = &mut case;
    let [y, sum] = outputs;
    let (x, residual, dy) = (x.view(), residual.view(), dy.view());
    let (scale, shift) = (scale.as_ref().map(Strided::view), shift.as_ref().map(Strided::view));
    let n = x.shape()[2] as f64;
    let added = Tensor::from_fn(x.shape(), |at| *x.get(at).unwrap() + *residual.get(at).unwrap()).unwrap();
    let (layer, rms) = (LayerNormalization::new().epsilon(EPSILON), RmsNormalization::new().epsilon(EPSILON));
    // |x̂| is at most √n, or as much as ε lets a small variance grow; scale and shift are at most 2.
    let mut size = 40.0 * (4.0 + n.sqrt());
    if T::NAME == "f64" {
        // The twin's own mean is rounded.
        size *= 1.0 + offset.to_f64();
    }
    let (mean, variance) = twin::statistics(Norm::Layer, x).unwrap();
    let found = layer.statistics(x).unwrap();
    let vector = |values: Vec<f64>| Tensor::from_slice(&values, [values.len()]).unwrap();
    let inverse = variance.iter().map(|variance| 1.0 / (variance + EPSILON).sqrt()).collect();
    near("mean", found.mean.view(), &vector(mean), size + 4.0 * offset.to_f64());
    near("inverse deviation", found.inverse_deviation.view(), &vector(inverse), size);
    for norm in [Norm::Layer, Norm::Rms] {
        let shift = shift.filter(|_| norm == Norm::Layer);
        y.view_mut().fill(T::NAN);
        match norm {
            Norm::Layer => layer.forward_into(x, scale, shift, y.view_mut()).unwrap(),
            _ => rms.forward_into(x, scale, y.view_mut()).unwrap(),
        }
        let expected = twin::forward(norm, x, scale, shift, EPSILON, None).unwrap();
        near("y", y.view(), &expected, size);
        let owned = match norm {
            Norm::Layer => layer.forward(x, scale, shift).unwrap(),
            _ => rms.forward(x, scale).unwrap(),
        };
        assert_eq!(bits(owned.as_slice()), bits(y.view().to_tensor().unwrap().as_slice()));

        y.view_mut().fill(T::NAN);
        sum.view_mut().fill(T::NAN);
        match norm {
            Norm::Layer => {
                layer.forward_residual_into(x, residual, scale, shift, sum.view_mut(), y.view_mut()).unwrap()
            }
            _ => rms.forward_residual_into(x, residual, scale, sum.view_mut(), y.view_mut()).unwrap(),
        }
        assert!(sum.view() == added.view());
        let expected = twin::forward(norm, added.view(), scale, shift, EPSILON, None).unwrap();
        near("y of the sum", y.view(), &expected, size);
        let (owned_sum, owned) = match norm {
            Norm::Layer => layer.forward_residual(x, residual, scale, shift).unwrap(),
            _ => rms.forward_residual(x, residual, scale).unwrap(),
        };
        assert!(owned_sum == added);
        assert_eq!(bits(owned.as_slice()), bits(y.view().to_tensor().unwrap().as_slice()));

        // Backward: what the outputs held counts by beta, and is not read where beta is 0.
        let (dx, dscale, dshift) = twin::backward(norm, x, scale, dy, EPSILON, None).unwrap();
        let beta = *beta;
        let held = |to: f64| if beta == T::ZERO { T::NAN } else { T::from_f64(to) };
        let [held_x, held_p] = [held(0.5), held(-0.25)];
        y.view_mut().fill(held_x);
        parameters.iter_mut().for_each(|p| p.view_mut().fill(held_p));
        let kept = |held: T| if beta == T::ZERO { 0.0 } else { beta.to_f64() * held.to_f64() };
        let plus = |t: f64, held: T| t + kept(held);
        let [p, q] = &mut *parameters;
        match norm {
            Norm::Layer => {
                let gradients = NormGradientsMut {
                    input: wanted[0].then(|| y.view_mut()),
                    scale: wanted[1].then(|| p.view_mut()),
                    shift: wanted[2].then(|| q.view_mut()),
                };
                layer.backward_into(x, scale, dy, beta, gradients).unwrap();
            }
            _ => {
                let gradients = RmsGradientsMut {
                    input: wanted[0].then(|| y.view_mut()),
                    scale: wanted[1].then(|| p.view_mut()),
                };
                rms.backward_into(x, scale, dy, beta, gradients).unwrap();
            }
        }
        // dx divides by √ε at the least.
        let size_dx = size * (8.0 + largest(dx.view()));
        if wanted[0] {
            let expected = Tensor::from_fn(dx.shape(), |at| plus(*dx.get(at).unwrap(), held_x)).unwrap();
            near("dx", y.view(), &expected, size_dx);
        }
        let rows = (x.shape()[0] * x.shape()[1]) as f64;
        let size_p = size * 4.0 * (1.0 + rows);
        for (number, (found, expected)) in [(&*p, &dscale), (&*q, &dshift)].into_iter().enumerate() {
            if wanted[1 + number] && (norm == Norm::Layer || number == 0) {
                let expected =
                    Tensor::from_fn(expected.shape(), |at| plus(*expected.get(at).unwrap(), held_p)).unwrap();
                near(["dscale", "dshift"][number], found.view(), &expected, size_p);
            }
        }
    }
    assert!(case.outputs.iter().all(Strided::canaries_live));
    assert!(case.parameters.iter().all(Strided::canaries_live));
    true
}

#[test]
fn rows_follow_the_reference() {
    quickcheck(400, rows::<f32> as fn(RowsCase<f32>) -> bool);
    quickcheck(400, rows::<f64> as fn(RowsCase<f64>) -> bool);
}

fn random<T: Element, const N: usize>(
    rng: &mut Rng,
    shape: [usize; N],
    mean: f64,
    deviation: f64,
) -> Tensor<T, N> {
    Tensor::from_fn(shape, |_| rng.normal(T::from_f64(mean), T::from_f64(deviation))).unwrap()
}

#[test]
fn a_large_mean_costs_no_digits() {
    let mut rng = Rng::seed(3);
    for n in [3, 17, 128, 768, 5000, 100_000] {
        // In f32 a million with deviation 1 leaves four bits: what they say must come out right all the same.
        let x = random::<f32, 2>(&mut rng, [3, n], 1e6, 1.0);
        let y = LayerNormalization::new().forward(x.view(), None, None).unwrap();
        let expected = twin::forward(Norm::Layer, x.view(), None, None, 1e-5, None).unwrap();
        near("y", y.view(), &expected, 8.0 * (1.0 + largest(y.view())));
    }
    // All equal: nothing is left, whatever the mean's rounding was.
    for (&isa, n) in machine::supported().iter().flat_map(|isa| [777, 5000, 12_345].map(|n| (isa, n))) {
        for value in [0.1f32, 1e6, -3.3e7, 53_779_997_000.0, 1.1033e11, 1e30] {
            let x = Tensor::full([2, n], value).unwrap();
            let forward = || LayerNormalization::new().forward(x.view(), None, None);
            let y = machine::with_isa(isa, forward).unwrap().unwrap();
            assert!(largest(y.view()) <= 1e-4, "{isa} {value} {n}: {}", largest(y.view()));
        }
    }
}

/// The gradient of Σ y ⊙ dy by central differences, against the analytic one.
fn gradient_check(what: &str, values: &mut [f64], gradient: &[f64], mut loss: impl FnMut(&[f64]) -> f64) {
    let step = 1e-5;
    for i in 0..values.len() {
        let held = values[i];
        values[i] = held + step;
        let above = loss(values);
        values[i] = held - step;
        let below = loss(values);
        values[i] = held;
        let expected = (above - below) / (2.0 * step);
        let scale = 1.0f64.max(expected.abs());
        assert!((gradient[i] - expected).abs() < 1e-7 * scale, "{what} {i}: {} {expected}", gradient[i]);
    }
}

fn dot<const N: usize>(y: &Tensor<f64, N>, dy: &Tensor<f64, N>) -> f64 {
    y.as_slice().iter().zip(dy.as_slice()).map(|(y, dy)| y * dy).sum()
}

#[test]
fn row_gradients_are_those_of_finite_differences() -> Result<()> {
    let mut rng = Rng::seed(9);
    let shape = [4, 19];
    let x = random::<f64, 2>(&mut rng, shape, 0.3, 1.0);
    let dy = random::<f64, 2>(&mut rng, shape, 0.1, 1.0);
    let (scale, shift) =
        (random::<f64, 1>(&mut rng, [19], 1.0, 0.5), random::<f64, 1>(&mut rng, [19], 0.0, 1.0));
    let one = |values: &[f64]| Tensor::from_slice(values, [19]).unwrap();
    let two = |values: &[f64]| Tensor::from_slice(values, shape).unwrap();

    let layer = LayerNormalization::new();
    let g = layer.backward(x.view(), Some(scale.view()), dy.view())?;
    let forward = |x: &Tensor<f64, 2>, scale: &Tensor<f64, 1>, shift: &Tensor<f64, 1>| {
        dot(&layer.forward(x.view(), Some(scale.view()), Some(shift.view())).unwrap(), &dy)
    };
    gradient_check("layer dx", &mut x.as_slice().to_vec(), g.input.as_slice(), |v| {
        forward(&two(v), &scale, &shift)
    });
    gradient_check("layer dscale", &mut scale.as_slice().to_vec(), g.scale.as_slice(), |v| {
        forward(&x, &one(v), &shift)
    });
    gradient_check("layer dshift", &mut shift.as_slice().to_vec(), g.shift.as_slice(), |v| {
        forward(&x, &scale, &one(v))
    });

    let rms = RmsNormalization::new();
    let g = rms.backward(x.view(), Some(scale.view()), dy.view())?;
    let forward = |x: &Tensor<f64, 2>, scale: &Tensor<f64, 1>| {
        dot(&rms.forward(x.view(), Some(scale.view())).unwrap(), &dy)
    };
    gradient_check("rms dx", &mut x.as_slice().to_vec(), g.input.as_slice(), |v| forward(&two(v), &scale));
    gradient_check("rms dscale", &mut scale.as_slice().to_vec(), g.scale.as_slice(), |v| {
        forward(&x, &one(v))
    });
    Ok(())
}

#[test]
fn rows_have_the_same_bits_for_any_number_of_threads() {
    let mut rng = Rng::seed(5);
    for shape in [[7, 300, 65], [1, 9000, 16], [2, 3, 40_000]] {
        let x = random::<f32, 3>(&mut rng, shape, 1.0, 1.0);
        let dy = random::<f32, 3>(&mut rng, shape, 0.0, 1.0);
        let scale = random::<f32, 1>(&mut rng, [shape[2]], 1.0, 1.0);
        let results = in_pools(|| {
            let layer = LayerNormalization::new();
            let (sum, y) = layer.forward_residual(x.view(), dy.view(), Some(scale.view()), None).unwrap();
            let g = layer.backward(x.view(), Some(scale.view()), dy.view()).unwrap();
            let r = RmsNormalization::new().backward(x.view(), Some(scale.view()), dy.view()).unwrap();
            [sum.as_slice(), y.as_slice(), g.input.as_slice(), g.scale.as_slice(), g.shift.as_slice()]
                .into_iter()
                .chain([r.input.as_slice(), r.scale.as_slice()])
                .map(bits)
                .collect::<Vec<_>>()
        });
        assert!(results.iter().all(|result| *result == results[0]), "{shape:?}");
    }
}

/// Images of two spatial axes.
#[derive(Clone, Debug)]
struct ChannelsCase<T> {
    isa: Isa,
    groups: usize,
    x: Strided<T, 4>,
    dy: Strided<T, 4>,
    output: Strided<T, 4>,
    vectors: [Strided<T, 1>; 6],
    present: [bool; 5],
    beta: T,
    offset: T,
}

/// Row-major, channels last, or any order of axes; sometimes with gaps.
fn image<T: Element>(g: &mut Gen, shape: [usize; 4], way: usize) -> Strided<T, 4> {
    let [b, c, h, w] = shape;
    match way {
        0 => Strided::rows(g, shape, 0, false),
        1 => {
            let last = Strided::rows(g, [b, h, w, c], 0, false);
            let [sb, sh, sw, sc] = last.strides;
            Strided { shape, strides: [sb, sc, sh, sw], data: last.data, offset: last.offset }
        }
        _ => Strided::random(g, shape),
    }
}

impl<T: Element> Arbitrary for ChannelsCase<T> {
    fn arbitrary(g: &mut Gen) -> Self {
        let groups = within(g, 1..4);
        let channels = groups * if within(g, 0..6) == 0 { within(g, 20..50) } else { within(g, 0..6) };
        let side = if within(g, 0..8) == 0 { 20 } else { 6 };
        let shape = [within(g, 0..4), channels, within(g, 0..side), within(g, 0..side)];
        let ways = [usize::arbitrary(g) % 3, usize::arbitrary(g) % 6];
        let mut operand = |odd: bool| image(g, shape, if odd && ways[1] == 0 { 2 } else { ways[0] });
        let (x, dy, output) = (operand(false), operand(true), operand(true));
        ChannelsCase {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            groups,
            x,
            dy,
            output,
            vectors: std::array::from_fn(|_| Strided::random(g, [channels])),
            present: std::array::from_fn(|_| bool::arbitrary(g)),
            beta: [T::ZERO, T::ONE, value(g)][usize::arbitrary(g) % 3],
            offset: T::from_f64(*g.choose(&[0.0, 0.0, 100.0]).unwrap()),
        }
    }
}

fn channels<T: Element>(case: ChannelsCase<T>) -> bool {
    machine::with_isa(case.isa, || run_channels(case)).expect("supported")
}

fn run_channels<T: Element>(mut case: ChannelsCase<T>) -> bool {
    let offset = case.offset;
    let moved = Tensor::from_fn(case.x.shape, |at| *case.x.view().get(at).unwrap() + offset).unwrap();
    case.x.view_mut().assign(moved.view()).unwrap();
    let ChannelsCase { groups, x, dy, output, vectors, present, beta, .. } = &mut case;
    let (x, dy, groups, beta) = (x.view(), dy.view(), *groups, *beta);
    let [scale, shift, constant, spread, p, q] = vectors;
    let spread = Tensor::from_fn(spread.shape, |at| spread.view().get(at).unwrap().abs()).unwrap();
    let (scale, shift) = (present[0].then(|| scale.view()), present[1].then(|| shift.view()));
    let constants = [constant.view(), spread.view()];
    let lists = constants.map(|v| v.iter().map(|v| v.to_f64()).collect::<Vec<_>>());
    let [b, _, h, w] = x.shape();
    for (norm, constant) in
        [(Norm::Batch, false), (Norm::Batch, true), (Norm::Instance, false), (Norm::Group(groups), false)]
    {
        let given = constant.then_some((&lists[0][..], &lists[1][..]));
        // |x̂| is at most the root of the set's size, or (|x| + |constant|)/√ε, and what rounding makes of both.
        let n = match norm {
            Norm::Batch => b * h * w,
            Norm::Instance => h * w,
            _ => h * w * x.shape()[1] / groups,
        } as f64;
        let far = if constant { 35.0 * (4.0 + offset.to_f64()) } else { n.sqrt() };
        let mut size = 40.0 * (4.0 + far);
        if T::NAME == "f64" {
            size *= 1.0 + offset.to_f64();
        }
        let batch = BatchNormalization::new().epsilon(EPSILON);
        let instance = InstanceNormalization::new().epsilon(EPSILON);
        let group = GroupNormalization::new(groups).epsilon(EPSILON);
        let y = &mut *output;
        y.view_mut().fill(T::NAN);
        match norm {
            Norm::Batch if constant => batch
                .forward_inference_into(x, constants[0], constants[1], scale, shift, y.view_mut())
                .unwrap(),
            Norm::Batch => {
                let (mean, variance) = (p.view_mut(), q.view_mut());
                batch.forward_training_into(x, scale, shift, mean, variance, y.view_mut()).unwrap();
                let (means, variances) = twin::statistics(norm, x).unwrap();
                if !x.is_empty() {
                    let c = [means.len()];
                    let means = Tensor::from_slice(&means, c).unwrap();
                    let variances = Tensor::from_slice(&variances, c).unwrap();
                    // The twin adds one after the other: up to a rounding of the sum for each.
                    let roundings =
                        (b * h * w) as f64 * f64::EPSILON / T::EPSILON.to_f64() * (2.0 + offset.to_f64());
                    near("mean", p.view(), &means, 10.0 * (2.0 + offset.to_f64()) + roundings);
                    near("variance", q.view(), &variances, 200.0 * (1.0 + offset.to_f64() / 10.0));
                }
            }
            Norm::Instance => instance.forward_into(x, scale, shift, y.view_mut()).unwrap(),
            _ => group.forward_into(x, scale, shift, y.view_mut()).unwrap(),
        }
        let expected = twin::forward(norm, x, scale, shift, EPSILON, given).unwrap();
        near("y", y.view(), &expected, size);
        let owned = match norm {
            Norm::Batch if constant => {
                batch.forward_inference(x, constants[0], constants[1], scale, shift).unwrap()
            }
            Norm::Batch => batch.forward_training(x, scale, shift).unwrap().0,
            Norm::Instance => instance.forward(x, scale, shift).unwrap(),
            _ => group.forward(x, scale, shift).unwrap(),
        };
        // Another layout adds in another order.
        near("owned y", owned.view(), &expected, size);

        let (dx, dscale, dshift) = twin::backward(norm, x, scale, dy, EPSILON, given).unwrap();
        let held = |to: f64| if beta == T::ZERO { T::NAN } else { T::from_f64(to) };
        let [held_x, held_p] = [held(0.5), held(-0.25)];
        y.view_mut().fill(held_x);
        let near_mean = p.view().to_tensor().unwrap();
        p.view_mut().fill(held_p);
        q.view_mut().fill(held_p);
        let plus = |t: f64, held: T| t + if beta == T::ZERO { 0.0 } else { beta.to_f64() * held.to_f64() };
        let gradients = NormGradientsMut {
            input: present[2].then(|| y.view_mut()),
            scale: present[3].then(|| p.view_mut()),
            shift: present[4].then(|| q.view_mut()),
        };
        match norm {
            Norm::Batch if constant => {
                let [mean, variance] = constants;
                batch.backward_inference_into(x, mean, variance, scale, dy, beta, gradients).unwrap()
            }
            Norm::Batch => {
                let mean = present[0].then(|| near_mean.view());
                batch.backward_into(x, mean, scale, dy, beta, gradients).unwrap()
            }
            Norm::Instance => instance.backward_into(x, scale, dy, beta, gradients).unwrap(),
            _ => group.backward_into(x, scale, dy, beta, gradients).unwrap(),
        }
        let size_dx = size * (8.0 + largest(dx.view()));
        if present[2] {
            let expected = Tensor::from_fn(dx.shape(), |at| plus(*dx.get(at).unwrap(), held_x)).unwrap();
            near("dx", y.view(), &expected, size_dx);
        }
        let size_p = size * 4.0 * (1.0 + (b * h * w) as f64);
        for (number, (found, expected)) in [(&*p, &dscale), (&*q, &dshift)].into_iter().enumerate() {
            if present[3 + number] {
                let expected =
                    Tensor::from_fn(expected.shape(), |at| plus(*expected.get(at).unwrap(), held_p)).unwrap();
                near(["dscale", "dshift"][number], found.view(), &expected, size_p);
            }
        }
    }
    assert!(case.output.canaries_live());
    assert!(case.vectors.iter().all(Strided::canaries_live));
    true
}

#[test]
fn channels_follow_the_reference() {
    quickcheck(500, channels::<f32> as fn(ChannelsCase<f32>) -> bool);
    quickcheck(500, channels::<f64> as fn(ChannelsCase<f64>) -> bool);
}

#[test]
fn channel_gradients_are_those_of_finite_differences() -> Result<()> {
    let mut rng = Rng::seed(11);
    let shape = [3, 4, 2, 3];
    let x = random::<f64, 4>(&mut rng, shape, 0.3, 1.0);
    let dy = random::<f64, 4>(&mut rng, shape, 0.1, 1.0);
    let (scale, shift) =
        (random::<f64, 1>(&mut rng, [4], 1.0, 0.5), random::<f64, 1>(&mut rng, [4], 0.0, 1.0));
    let (batch, instance, group) =
        (BatchNormalization::new(), InstanceNormalization::new(), GroupNormalization::new(2));
    let (mean, variance) = (Tensor::full([4], 0.25)?, Tensor::full([4], 1.5)?);
    type Parts<'a> = (&'a Tensor<f64, 4>, &'a Tensor<f64, 1>, &'a Tensor<f64, 1>);
    let all: [(&str, &dyn Fn(Parts) -> Tensor<f64, 4>); 4] = [
        ("batch", &|(x, s, t)| batch.forward_training(x.view(), Some(s.view()), Some(t.view())).unwrap().0),
        ("constant", &|(x, s, t)| {
            let (s, t) = (Some(s.view()), Some(t.view()));
            batch.forward_inference(x.view(), mean.view(), variance.view(), s, t).unwrap()
        }),
        ("instance", &|(x, s, t)| instance.forward(x.view(), Some(s.view()), Some(t.view())).unwrap()),
        ("group", &|(x, s, t)| group.forward(x.view(), Some(s.view()), Some(t.view())).unwrap()),
    ];
    for (name, forward) in all {
        let s = Some(scale.view());
        let g = match name {
            "batch" => batch.backward(x.view(), None, s, dy.view())?,
            "instance" => instance.backward(x.view(), s, dy.view())?,
            "group" => group.backward(x.view(), s, dy.view())?,
            _ => {
                let mut g = batch.backward(x.view(), None, s, dy.view())?;
                let gradients = NormGradientsMut {
                    input: Some(g.input.view_mut()),
                    scale: Some(g.scale.view_mut()),
                    shift: Some(g.shift.view_mut()),
                };
                let (mean, variance) = (mean.view(), variance.view());
                batch.backward_inference_into(x.view(), mean, variance, s, dy.view(), 0.0, gradients)?;
                g
            }
        };
        let four = |values: &[f64]| Tensor::from_slice(values, shape).unwrap();
        let one = |values: &[f64]| Tensor::from_slice(values, [4]).unwrap();
        gradient_check(&format!("{name} dx"), &mut x.as_slice().to_vec(), g.input.as_slice(), |v| {
            dot(&forward((&four(v), &scale, &shift)), &dy)
        });
        gradient_check(&format!("{name} dscale"), &mut scale.as_slice().to_vec(), g.scale.as_slice(), |v| {
            dot(&forward((&x, &one(v), &shift)), &dy)
        });
        gradient_check(&format!("{name} dshift"), &mut shift.as_slice().to_vec(), g.shift.as_slice(), |v| {
            dot(&forward((&x, &scale, &one(v))), &dy)
        });
    }
    Ok(())
}

#[test]
fn channels_have_the_same_bits_for_any_number_of_threads() {
    let mut rng = Rng::seed(6);
    // Many channels, many positions, one channel of one sample.
    for shape in [[4, 200, 9, 9], [2, 5, 150, 160], [1, 1, 300, 300]] {
        let x = random::<f32, 4>(&mut rng, shape, 1.0, 1.0);
        let dy = random::<f32, 4>(&mut rng, shape, 0.0, 1.0);
        let [_, c, h, w] = shape;
        let last = [(h * w * c) as isize, 1, (w * c) as isize, c as isize];
        for strides in [[(c * h * w) as isize, (h * w) as isize, w as isize, 1], last] {
            let (x, dy) = (
                TensorView::as_strided(x.as_slice(), shape, strides).unwrap(),
                TensorView::as_strided(dy.as_slice(), shape, strides).unwrap(),
            );
            let results = in_pools(|| {
                let batch = BatchNormalization::new();
                let (y, statistics) = batch.forward_training(x, None, None).unwrap();
                let g = batch.backward(x, Some(statistics.mean.view()), None, dy).unwrap();
                let i = InstanceNormalization::new().backward(x, None, dy).unwrap();
                let r = GroupNormalization::new(1).forward(x, None, None).unwrap();
                [y.as_slice(), statistics.variance.as_slice(), g.input.as_slice(), g.scale.as_slice()]
                    .into_iter()
                    .chain([g.shift.as_slice(), i.input.as_slice(), i.scale.as_slice(), r.as_slice()])
                    .map(bits)
                    .collect::<Vec<_>>()
            });
            assert!(results.iter().all(|result| *result == results[0]), "{shape:?} {strides:?}");
        }
    }
}

#[test]
fn a_large_mean_of_a_channel_costs_no_digits() {
    let mut rng = Rng::seed(4);
    let x = random::<f32, 4>(&mut rng, [3, 40, 21, 20], 1e6, 1.0);
    let last = TensorView::as_strided(x.as_slice(), [3, 40, 21, 20], [16800, 1, 800, 40]).unwrap();
    for x in [x.view(), last] {
        let y = BatchNormalization::new().forward_training(x, None, None).unwrap().0;
        let expected = twin::forward(Norm::Batch, x, None, None, 1e-5, None).unwrap();
        near("batch", y.view(), &expected, 8.0 * (1.0 + largest(y.view())));
        let y = GroupNormalization::new(8).forward(x, None, None).unwrap();
        let expected = twin::forward(Norm::Group(8), x, None, None, 1e-5, None).unwrap();
        near("group", y.view(), &expected, 8.0 * (1.0 + largest(y.view())));
    }
}

#[test]
fn what_is_not_a_number_stays_in_its_set() {
    let mut x = Tensor::full([2, 2, 40], 1.0f32).unwrap();
    x.as_mut_slice()[5] = f32::NAN;
    x.as_mut_slice()[3 * 40 + 7] = f32::INFINITY;
    let rows = |y: Tensor<f32, 3>| {
        y.as_slice().chunks(40).map(|row| row.iter().all(|y| y.is_nan())).collect::<Vec<_>>()
    };
    let y = LayerNormalization::new().forward(x.view(), None, None).unwrap();
    assert_eq!(rows(y), [true, false, false, true]);
    let y = InstanceNormalization::new().forward(x.view(), None, None).unwrap();
    assert_eq!(rows(y), [true, false, false, true]);
    let y = BatchNormalization::new().forward_training(x.view(), None, None).unwrap().0;
    assert_eq!(rows(y), [true; 4]);
}
