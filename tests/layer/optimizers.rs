//! Optimizers: against the reference, and resumed.

use quickcheck::{Arbitrary, Gen};
use tilewise::layer::optimizer::{Adam, AdamW, Optimizer, Sgd, StateTensor};
use tilewise::layer::{Init, Linear, Parameters, Sequential};
use tilewise::random::Rng;
use tilewise::{Element, Error, Tensor, reference};

use super::common::{bits, quickcheck, value, within};
use super::flat;

/// One layer whose only parameter, `[len, 1]`, is what an optimizer's test works on.
pub fn numbers(values: &[f64]) -> Linear<f64> {
    Linear::from_parts(Tensor::from_slice(values, [values.len(), 1]).unwrap(), None).unwrap()
}

fn set_gradient<T: Element>(layer: &mut Linear<T>, gradient: &[T]) {
    layer.visit_mut(&mut |_, p| p.gradient_mut().copy_from_slice(gradient));
}

/// Three steps from (1, −2) by these gradients; the values were computed in Python, in double precision, from the
/// algorithm boxes of torch.optim.SGD, Adam and AdamW.
#[test]
fn optimizers_give_the_values_of_the_published_definitions() {
    let check = |optimizer: &mut dyn Optimizer<f64>, expected: [f64; 2]| {
        let mut layer = numbers(&[1.0, -2.0]);
        for gradient in [[0.5, -1.0], [0.25, 0.75], [-1.5, 0.125]] {
            set_gradient(&mut layer, &gradient);
            optimizer.step(&mut layer).unwrap();
            assert_eq!(layer.weight().gradient(), gradient, "the gradient stays");
        }
        for (found, expected) in layer.weight().value().iter().zip(expected) {
            assert!((found - expected).abs() < 4e-16 * 8.0, "{found} {expected}");
        }
    };
    check(&mut Sgd::new(0.1), [1.075, -1.9874999999999998]);
    check(&mut Sgd::new(0.1).weight_decay(0.5), [0.9385000000000001, -1.70825]);
    check(&mut Sgd::new(0.1).momentum(0.9), [0.967, -1.884]);
    check(
        &mut Sgd::new(0.1).momentum(0.9).nesterov(true).weight_decay(0.01),
        [1.037869708191, -1.8677881663820002],
    );
    check(&mut Adam::new(0.1), [0.8415043907981822, -1.8905585725409244]);
    check(&mut Adam::new(0.1).weight_decay(0.1), [0.8304142282594253, -1.8452011052113562]);
    check(
        &mut AdamW::new(0.1).betas(0.8, 0.99).epsilon(1e-3).weight_decay(0.1),
        [0.8253768829445496, -1.8443875174306934],
    );
}

#[derive(Clone, Debug)]
struct Steps {
    values: Vec<f64>,
    gradients: Vec<Vec<f64>>,
    rate: f64,
    momentum: f64,
    decay: f64,
    flag: bool,
}

impl Arbitrary for Steps {
    fn arbitrary(g: &mut Gen) -> Self {
        let len = within(g, 0..40);
        let mut vector = || (0..len).map(|_| f64::from(value::<f32>(g))).collect::<Vec<_>>();
        Steps {
            values: vector(),
            gradients: (0..6).map(|_| vector()).collect(),
            rate: *g.choose(&[0.0, 0.01, 0.3]).unwrap(),
            momentum: *g.choose(&[0.0, 0.5, 0.9]).unwrap(),
            decay: *g.choose(&[0.0, 0.1]).unwrap(),
            flag: bool::arbitrary(g),
        }
    }
}

/// Steps of the library's optimizer in `T`, and what the reference makes of the same numbers in `f64`.
fn follow<T: Element>(
    case: &Steps,
    optimizer: &mut dyn Optimizer<T>,
    mut twin: impl FnMut(usize, f64) -> f64,
) {
    let values: Vec<T> = case.values.iter().map(|&v| T::from_f64(v)).collect();
    let weight = Tensor::from_slice(&values, [values.len(), 1]).unwrap();
    let mut layer = Linear::from_parts(weight, None).unwrap();
    for gradient in &case.gradients {
        let in_t: Vec<T> = gradient.iter().map(|&g| T::from_f64(g)).collect();
        set_gradient(&mut layer, &in_t);
        optimizer.step(&mut layer).unwrap();
        for (number, (found, &g)) in layer.weight().value().iter().zip(gradient).enumerate() {
            let expected = twin(number, g);
            // Some ten roundings a step of numbers of the size of θ, γ and a momentum's sum of gradients; where m̂
            // and √v̂ are both small, their quotient is still at most about 1.
            let bound = 300.0 * T::EPSILON.to_f64() * (expected.abs() + 10.0);
            assert!((found.to_f64() - expected).abs() <= bound, "{found} {expected}");
        }
    }
}

fn optimizers_follow<T: Element>(case: Steps) -> bool {
    let nesterov = case.flag && case.momentum > 0.0;
    let sgd = |value| reference::Sgd {
        value,
        rate: case.rate,
        momentum: case.momentum,
        nesterov,
        weight_decay: case.decay,
        velocity: 0.0,
    };
    let mut twins: Vec<_> = case.values.iter().map(|&value| sgd(value)).collect();
    let mut optimizer =
        Sgd::new(case.rate).momentum(case.momentum).nesterov(nesterov).weight_decay(case.decay);
    follow::<T>(&case, &mut optimizer, |number, g| {
        twins[number].step(g);
        twins[number].value
    });

    let adam = |value| reference::Adam {
        betas: (case.momentum, 0.99),
        weight_decay: case.decay,
        decoupled: case.flag,
        epsilon: 1e-3,
        ..reference::Adam::new(value, case.rate)
    };
    let mut twins: Vec<_> = case.values.iter().map(|&value| adam(value)).collect();
    let twin = |number: usize, g: f64| {
        twins[number].step(g);
        twins[number].value
    };
    if case.flag {
        let optimizer = AdamW::new(case.rate).betas(case.momentum, 0.99).epsilon(1e-3);
        follow::<T>(&case, &mut optimizer.weight_decay(case.decay), twin);
    } else {
        let optimizer = Adam::new(case.rate).betas(case.momentum, 0.99).epsilon(1e-3);
        follow::<T>(&case, &mut optimizer.weight_decay(case.decay), twin);
    }
    true
}

#[test]
fn optimizers_follow_the_reference() {
    quickcheck(200, optimizers_follow::<f32> as fn(Steps) -> bool);
    quickcheck(200, optimizers_follow::<f64> as fn(Steps) -> bool);
}

#[test]
fn optimizers_refuse_wrong_options_and_other_parameters() {
    let mut layer = numbers(&[1.0, -2.0]);
    set_gradient(&mut layer, &[1.0, 1.0]);
    let cases: [(&mut dyn Optimizer<f64>, &str); 10] = [
        (&mut Sgd::new(-0.1), "Sgd::step: learning rate is -0.1, expected finite and at least 0"),
        (&mut Sgd::new(f64::NAN), "Sgd::step: learning rate is NaN, expected finite and at least 0"),
        (&mut Sgd::new(0.1).momentum(-1.0), "Sgd::step: momentum is -1, expected finite and at least 0"),
        (
            &mut Sgd::new(0.1).nesterov(true),
            "Sgd::step: momentum is 0, expected positive for Nesterov's form",
        ),
        (
            &mut Sgd::new(0.1).weight_decay(f64::INFINITY),
            "Sgd::step: weight decay is inf, expected finite and at least 0",
        ),
        (
            &mut Adam::new(0.1).betas(1.0, 0.9),
            "Adam::step: beta 1 is 1, expected at least 0, below 1 in the type of the parameters",
        ),
        (
            &mut Adam::new(0.1).betas(0.9, -0.1),
            "Adam::step: beta 2 is -0.1, expected at least 0, below 1 in the type of the parameters",
        ),
        (&mut Adam::new(0.1).epsilon(-1.0), "Adam::step: epsilon is -1, expected finite and at least 0"),
        (&mut AdamW::new(f64::INFINITY), "AdamW::step: learning rate is inf, expected finite and at least 0"),
        (
            &mut AdamW::new(0.1).weight_decay(-1.0),
            "AdamW::step: weight decay is -1, expected finite and at least 0",
        ),
    ];
    for (optimizer, expected) in cases {
        assert_eq!(optimizer.step(&mut layer).unwrap_err().to_string(), expected);
        assert_eq!(layer.weight().value(), [1.0, -2.0]);
    }

    for optimizer in [&mut Adam::new(0.1) as &mut dyn Optimizer<f64>, &mut Sgd::new(0.1).momentum(0.9)] {
        optimizer.step(&mut layer).unwrap();
        let name = optimizer.step(&mut numbers(&[0.0; 3])).unwrap_err().to_string();
        assert!(name.ends_with("::step: parameter has shape [3, 1], expected [2, 1]"), "{name}");
        let mut more = Sequential::new().push(numbers(&[5.0; 2])).push(numbers(&[5.0; 2]));
        let name = optimizer.step(&mut more).unwrap_err().to_string();
        assert!(
            name.ends_with("number of parameters is 2, not 1, expected that of the first step"),
            "{name}"
        );
        assert_eq!(flat(&more, false), [5.0; 4]);
        let none = optimizer.step(&mut Sequential::new()).unwrap_err().to_string();
        assert!(none.contains("number of parameters is 0, not 1"), "{none}");
        optimizer.step(&mut layer).unwrap();
    }
}

/// A model with the weights of another.
fn copy_of<T: Element>(net: &Sequential<T>) -> Sequential<T> {
    let mut copy = model::<T>(2);
    let mut values = flat(net, false).into_iter();
    copy.visit_mut(&mut |_, p| p.value_mut().iter_mut().for_each(|to| *to = values.next().unwrap()));
    copy
}

fn model<T: Element>(seed: u64) -> Sequential<T> {
    let (mut rng, init) = (Rng::seed(seed), Init::xavier_normal());
    Sequential::new()
        .push(Linear::new(5, 7, init, &mut rng).unwrap())
        .push(Linear::new(7, 3, init, &mut rng).unwrap())
}

/// Steps by gradients that depend on the weights and the step.
fn steps<T: Element>(
    net: &mut Sequential<T>,
    optimizer: &mut dyn Optimizer<T>,
    range: std::ops::Range<usize>,
) {
    for step in range {
        net.visit_mut(&mut |_, p| {
            let gradient: Vec<T> =
                p.value().iter().map(|&x| x * x - T::from_f64(step as f64 / 7.0)).collect();
            p.gradient_mut().copy_from_slice(&gradient);
        });
        optimizer.step(net).unwrap();
    }
}

fn resumed_steps_are_the_same<T: Element>() {
    let makers: [fn() -> Box<dyn Optimizer<T>>; 5] = [
        || Box::new(Sgd::new(0.05)),
        || Box::new(Sgd::new(0.05).momentum(0.9).weight_decay(0.1)),
        || Box::new(Sgd::new(0.05).momentum(0.9).nesterov(true)),
        || Box::new(Adam::new(0.02).betas(0.8, 0.97)),
        || Box::new(AdamW::new(0.02)),
    ];
    for make in makers {
        for pause in [0, 1, 5] {
            let (mut net, mut optimizer) = (model::<T>(1), make());
            steps(&mut net, optimizer.as_mut(), 0..pause);
            let (mut copy, mut resumed, mut state) = (copy_of(&net), make(), Vec::new());
            optimizer.visit_state(&mut |tensor| state.push(tensor));
            state.reverse();
            resumed.restore(&copy, optimizer.steps(), &state).unwrap();
            steps(&mut net, optimizer.as_mut(), pause..9);
            steps(&mut copy, resumed.as_mut(), pause..9);
            assert_eq!(bits(&flat(&copy, false)), bits(&flat(&net, false)));
            assert_eq!((resumed.steps(), optimizer.steps()), (9, 9));
        }
    }
}

#[test]
fn resumed_optimizers_make_the_same_steps() {
    resumed_steps_are_the_same::<f32>();
    resumed_steps_are_the_same::<f64>();
}

/// Steps, a change of the momentum, more steps: what the optimizer keeps goes into another one, and on from there.
#[test]
fn a_state_is_restored_whatever_the_momentum_was_before() {
    for (first, then) in [(0.9, 0.0), (0.0, 0.9)] {
        for more in [0, 1, 2] {
            let (mut net, mut optimizer) = (model::<f64>(1), Sgd::new(0.05).momentum(first));
            steps(&mut net, &mut optimizer, 0..2);
            let mut optimizer = optimizer.momentum(then);
            steps(&mut net, &mut optimizer, 2..2 + more);
            let (mut copy, mut resumed) = (copy_of(&net), Sgd::new(0.05).momentum(then));
            let mut state = Vec::new();
            optimizer.visit_state(&mut |tensor| state.push(tensor));
            resumed.restore(&copy, optimizer.steps(), &state).unwrap();
            steps(&mut net, &mut optimizer, 5..7);
            steps(&mut copy, &mut resumed, 5..7);
            // The velocity has outlived the steps without momentum in both.
            steps(&mut net, &mut optimizer.momentum(0.5), 7..9);
            steps(&mut copy, &mut resumed.momentum(0.5), 7..9);
            assert_eq!(bits(&flat(&copy, false)), bits(&flat(&net, false)));
        }
    }
}

#[test]
fn the_parameters_of_the_first_step_are_the_only_ones() {
    // None at all are parameters, too.
    let mut adam = Adam::<f64>::new(0.1);
    adam.step(&mut Sequential::new()).unwrap();
    let error = adam.step(&mut numbers(&[1.0])).unwrap_err().to_string();
    assert_eq!(error, "Adam::step: number of parameters is 1, not 0, expected that of the first step");
    let mut sgd = Sgd::new(0.1);
    sgd.step(&mut numbers(&[1.0; 2])).unwrap();
    let mut sgd = sgd.momentum(0.9);
    let error = sgd.step(&mut numbers(&[1.0; 3])).unwrap_err().to_string();
    assert_eq!(error, "Sgd::step: parameter has shape [3, 1], expected [2, 1]");
    sgd.step(&mut numbers(&[1.0; 2])).unwrap();
    // A first step that fails is none.
    let mut sgd = Sgd::new(f64::NAN).momentum(0.9);
    sgd.step(&mut numbers(&[1.0; 2])).unwrap_err();
    sgd.set_learning_rate(0.1);
    sgd.step(&mut numbers(&[1.0; 3])).unwrap();
}

#[test]
fn options_must_be_numbers_of_the_parameters_type() {
    let weight = Tensor::<f32, 2>::full([2, 1], 1.0).unwrap();
    let mut layer = Linear::from_parts(weight, None).unwrap();
    let cases: [(&mut dyn Optimizer<f32>, &str); 7] = [
        (&mut Sgd::new(1e39), "learning rate"),
        (&mut Sgd::new(0.1).momentum(1e39), "momentum"),
        (&mut Sgd::new(0.1).weight_decay(1e39), "weight decay"),
        (&mut Adam::new(0.1).epsilon(1e39), "epsilon"),
        (&mut Adam::new(0.1).epsilon(1e-50), "epsilon"),
        (&mut Adam::new(1e38), "learning rate / (1 - beta 1 ^ t)"),
        (&mut AdamW::new(1e20).weight_decay(1e20), "1 - learning rate * weight decay"),
    ];
    for (optimizer, expected) in cases {
        let Error::Argument { arg, .. } = optimizer.step(&mut layer).unwrap_err() else { unreachable!() };
        assert_eq!(arg, expected);
        assert_eq!((layer.weight().value(), optimizer.steps()), (&[1.0; 2][..], 0));
    }
    // ε = 0 is allowed, and what f64 holds is an option for it.
    set_gradient(&mut layer, &[1.0; 2]);
    Adam::new(0.1).epsilon(0.0).step(&mut layer).unwrap();
    let mut layer = numbers(&[1.0]);
    Adam::new(0.1).epsilon(1e-50).step(&mut layer).unwrap();
    assert_eq!(layer.weight().value(), [1.0]);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let mut net = model::<f64>(1);
    let mut optimizer = Adam::new(0.02);
    steps(&mut net, &mut optimizer, 0..3);
    let (mut state, mut other) = (Vec::new(), copy_of(&net));
    optimizer.visit_state(&mut |tensor| state.push(tensor));
    let ours: Vec<_> = state.iter().map(|t| (t.parameter, t.name, t.shape, t.values.len())).collect();
    assert_eq!(ours[..2], [(0, "first_moment", &[5, 7][..], 35), (0, "second_moment", &[5, 7], 35)]);
    assert_eq!(ours.len(), 8);

    let mut resumed = Adam::new(0.02);
    resumed.restore(&net, 3, &state).unwrap();
    let with = |at: usize, change: fn(&mut StateTensor<'_, f64>)| {
        let mut state = state.clone();
        change(&mut state[at]);
        state
    };
    let cases = [
        (with(1, |t| t.shape = &[7, 5]), "second_moment has shape [7, 5], expected [5, 7]"),
        (with(2, |t| t.values = &[0.0; 6]), "first_moment has shape [6], expected [7]"),
        (with(1, |t| t.name = "velocity"), "name of a tensor is velocity, expected one that is kept"),
        (
            with(0, |t| t.parameter = 4),
            "number of a parameter is 4, expected less than the number of parameters",
        ),
        (
            with(0, |t| t.name = "second_moment"),
            "second_moment is there twice, expected there once for each parameter",
        ),
        (state[..7].to_vec(), "second_moment is missing, expected there once for each parameter"),
        (Vec::new(), "first_moment is missing, expected there once for each parameter"),
    ];
    for (state, expected) in cases {
        let error = resumed.restore(&net, 5, &state).unwrap_err().to_string();
        assert_eq!(error, format!("Adam::restore: {expected}"));
    }
    let error = Sgd::new(0.1).restore(&net, 3, &state).unwrap_err().to_string();
    assert_eq!(error, "Sgd::restore: name of a tensor is first_moment, expected one that is kept");
    let velocity = StateTensor { name: "velocity", ..state[0] };
    let error = Sgd::new(0.1).momentum(0.5).restore(&net, 3, &[velocity]).unwrap_err().to_string();
    assert_eq!(error, "Sgd::restore: velocity is missing, expected there once for each parameter");

    assert_eq!(resumed.steps(), 3);
    steps(&mut net, &mut optimizer, 3..6);
    steps(&mut other, &mut resumed, 3..6);
    assert_eq!(bits(&flat(&other, false)), bits(&flat(&net, false)));
}
