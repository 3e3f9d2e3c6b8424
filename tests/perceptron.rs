//! Perceptrons: exact in small integers, so primal, dual and reference must agree to the last update.

mod common;

use common::{bits, in_pools, quickcheck, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::machine::{self, Isa};
use tilewise::perceptron::{DualPerceptron, OneVsRest, Outcome, Perceptron, Rule};
use tilewise::random::Rng;
use tilewise::{Element, Tensor, TensorView, reference};

/// Integer points with labels: separable by a hidden hyperplane with a margin, or at random.
#[derive(Clone, Debug)]
struct Case {
    isa: Isa,
    shape: [usize; 2],
    points: Vec<i64>,
    labels: Vec<i8>,
    transposed: bool,
}

impl Arbitrary for Case {
    fn arbitrary(g: &mut Gen) -> Self {
        let shape @ [samples, features] = [within(g, 0..20), within(g, 0..40)];
        let mut integer = |limit: usize| within(g, 0..2 * limit + 1) as i64 - limit as i64;
        let hidden: Vec<i64> = (0..features).map(|_| integer(3)).collect();
        let (mut points, mut labels) = (Vec::new(), Vec::new());
        let random = integer(1) == 0;
        for _ in 0..samples {
            let point: Vec<i64> = (0..features).map(|_| integer(4)).collect();
            let side = point.iter().zip(&hidden).map(|(x, w)| x * w).sum::<i64>() + 1;
            labels.push(if random {
                [1, -1][(integer(1) & 1) as usize]
            } else if side > 0 {
                1
            } else {
                -1
            });
            points.extend(point);
        }
        let isa = *g.choose(machine::supported()).expect("there is a baseline");
        Case { isa, shape, points, labels, transposed: bool::arbitrary(g) }
    }
}

fn check<T: Element>(case: Case) -> bool {
    machine::with_isa(case.isa, || run::<T>(&case)).expect("supported")
}

fn run<T: Element>(case: &Case) -> bool {
    let [samples, features] = case.shape;
    let at = |i: usize, j: usize| T::from_f64(case.points[i * features + j] as f64);
    let rows = Tensor::from_fn(case.shape, |[i, j]| at(i, j)).unwrap();
    let columns = Tensor::from_fn([features, samples], |[j, i]| at(i, j)).unwrap();
    let x = if case.transposed { columns.view().transpose() } else { rows.view() };
    let passes = 60;
    let expected = reference::perceptron(x, &case.labels, 1.0, passes).unwrap();
    let (alpha, dual_expected) = reference::dual_perceptron(x, &case.labels, 1.0, passes).unwrap();
    assert_eq!(expected, dual_expected);

    let rule = Rule::<T>::new().max_passes(passes);
    let mut primal = Perceptron::<T>::new(features).unwrap();
    let mut mistakes = Vec::new();
    let outcome = primal.fit_traced(x, &case.labels, &rule, |i| mistakes.push(i)).unwrap();
    assert_eq!(mistakes, expected.mistakes);
    assert_eq!(outcome.updates, mistakes.len());
    assert_eq!(outcome.separable, expected.separable);
    let exact = |view: TensorView<'_, T, 1>| view.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
    assert_eq!((exact(primal.weights()), primal.bias().to_f64()), (expected.weights.clone(), expected.bias));

    let mut dual = DualPerceptron::<T>::new(x, &case.labels).unwrap();
    let mut dual_mistakes = Vec::new();
    assert_eq!(dual.fit_traced(&rule, |i| dual_mistakes.push(i)).unwrap(), outcome);
    assert_eq!(dual_mistakes, mistakes);
    assert_eq!((exact(dual.alpha()), dual.bias().to_f64()), (alpha, expected.bias));
    let same = dual.to_primal(x).unwrap();
    assert_eq!((exact(same.weights()), same.bias().to_f64()), (expected.weights, expected.bias));
    let gram = reference::gemm(T::ONE, x, x.transpose(), T::ZERO, dual.gram()).unwrap();
    assert!(dual.gram().iter().zip(&gram).all(|(found, &expected)| found.to_f64() == expected));

    // Separable means that the model says so of every sample.
    let predicted = primal.predict(x).unwrap();
    let right = predicted.as_slice() == case.labels;
    assert!(right || !outcome.separable);

    // In steps of one pass it does the same.
    let mut stepwise = Perceptron::<T>::new(features).unwrap();
    let mut updates = 0;
    for _ in 0..outcome.passes {
        updates += stepwise.fit(x, &case.labels, &rule.max_passes(1)).unwrap().updates;
    }
    assert_eq!((updates, stepwise.weights() == primal.weights()), (outcome.updates, true));

    // A limit on updates ends it there, in both forms.
    let limit = outcome.updates / 2;
    let rule = rule.max_updates(limit);
    let mut short = Perceptron::<T>::new(features).unwrap();
    let ended = short.fit(x, &case.labels, &rule).unwrap();
    assert_eq!(ended, DualPerceptron::new(x, &case.labels).unwrap().fit(&rule).unwrap());
    ended.updates == limit && (outcome.updates == 0 || !ended.separable)
}

#[test]
fn primal_dual_and_reference_make_the_same_mistakes() {
    quickcheck(300, check::<f32> as fn(Case) -> bool);
    quickcheck(300, check::<f64> as fn(Case) -> bool);
}

#[test]
fn the_textbook_examples_go_as_printed() {
    // Li Hang, "Statistical Learning Methods", examples 2.1 and 2.2.
    let x = TensorView::from_slice(&[3.0f32, 3.0, 4.0, 3.0, 1.0, 1.0], [3, 2]).unwrap();
    let labels = [1, 1, -1];
    let mut mistakes = Vec::new();
    let mut primal = Perceptron::new(2).unwrap();
    let outcome = primal.fit_traced(x, &labels, &Rule::new(), |i| mistakes.push(i + 1)).unwrap();
    assert_eq!(mistakes, [1, 3, 3, 3, 1, 3, 3]);
    assert_eq!(outcome, Outcome { updates: 7, passes: 6, separable: true });
    assert_eq!((primal.weights().as_slice().unwrap(), primal.bias()), (&[1.0, 1.0][..], -3.0));

    let mut dual = DualPerceptron::new(x, &labels).unwrap();
    assert_eq!(
        dual.gram().to_tensor().unwrap().as_slice(),
        [18.0, 21.0, 6.0, 21.0, 25.0, 7.0, 6.0, 7.0, 2.0]
    );
    assert_eq!(dual.fit(&Rule::new()).unwrap(), outcome);
    assert_eq!((dual.alpha().as_slice().unwrap(), dual.bias()), (&[2.0, 0.0, 5.0][..], -3.0));

    let distance = |point: [f32; 2]| primal.distance(TensorView::from_slice(&point, [2]).unwrap()).unwrap();
    assert_eq!(distance([3.0, 3.0]), (3.0 / 2f64.sqrt()) as f32);
    assert_eq!(distance([1.0, 1.0]), (-1.0 / 2f64.sqrt()) as f32);
    assert_eq!(distance([1.5, 1.5]), 0.0);
}

#[test]
fn the_sign_of_zero_is_plus_and_a_point_on_the_plane_is_still_learned() {
    let x = Tensor::<f64, 2>::zeros([1, 2]).unwrap();
    let mut perceptron = Perceptron::new(2).unwrap();
    assert_eq!(perceptron.predict(x.view()).unwrap().as_slice(), [1]);
    let outcome = perceptron.fit(x.view(), &[1], &Rule::new()).unwrap();
    assert_eq!(outcome, Outcome { updates: 1, passes: 2, separable: true });
    assert_eq!(perceptron.bias(), 1.0);
}

#[test]
fn updates_stay_within_novikoffs_bound() {
    // Points of the unit square, split by x + y = 1 with a gap of 2 · 0.1 / √2.
    let mut rng = Rng::seed(4);
    let (mut points, mut labels) = (Vec::new(), Vec::new());
    while labels.len() < 500 {
        let (a, b) = (rng.unit(), rng.unit());
        if (a + b - 1.0).abs() >= 0.1 {
            points.extend([a, b]);
            labels.push(if a + b > 1.0 { 1 } else { -1 });
        }
    }
    let x = TensorView::from_slice(&points, [500, 2]).unwrap();
    let outcome = Perceptron::new(2).unwrap().fit(x, &labels, &Rule::new()).unwrap();
    // θ = (1, 1, −1): with x₀ counted in, R² ≤ 3 and γ ≥ 0.1 / √3.
    assert!(outcome.separable);
    assert!(outcome.updates as f64 <= 3.0 / (0.01 / 3.0), "{outcome:?}");
}

#[test]
fn what_cannot_be_separated_ends_and_says_so() {
    let x = TensorView::from_slice(&[0.0f32, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], [4, 2]).unwrap();
    let labels = [-1, 1, 1, -1];
    let rule = Rule::new().max_passes(50);
    let outcome = Perceptron::new(2).unwrap().fit(x, &labels, &rule).unwrap();
    assert!(!outcome.separable && outcome.passes == 50 && outcome.updates >= 50);
    let outcome = DualPerceptron::new(x, &labels).unwrap().fit(&rule.max_updates(10)).unwrap();
    assert!(!outcome.separable && outcome.updates == 10);
    let outcome = Perceptron::new(2).unwrap().fit(x, &labels, &rule.max_passes(0)).unwrap();
    assert_eq!(outcome, Outcome::default());
    // A NaN separates nothing.
    let nan = TensorView::from_slice(&[f32::NAN, 1.0], [2, 1]).unwrap();
    for isa in machine::supported() {
        let fit = || Perceptron::new(1).unwrap().fit(nan, &[1, -1], &rule).unwrap();
        assert!(!machine::with_isa(*isa, fit).unwrap().separable);
        let fit = || DualPerceptron::new(nan, &[1, -1]).unwrap().fit(&rule).unwrap();
        assert!(!machine::with_isa(*isa, fit).unwrap().separable);
    }
    // No samples: nothing contradicts.
    let none = Tensor::<f32, 2>::zeros([0, 2]).unwrap();
    assert!(Perceptron::new(2).unwrap().fit(none.view(), &[], &rule).unwrap().separable);
}

#[test]
fn distance_keeps_its_digits_at_the_ends_of_the_range() {
    let distance = |w: [f32; 2], b: f32, point: [f32; 2]| {
        let perceptron = Perceptron::from_parts(Tensor::from_slice(&w, [2]).unwrap(), b);
        perceptron.distance(TensorView::from_slice(&point, [2]).unwrap()).unwrap()
    };
    assert_eq!(distance([3e30, 4e30], 5e30, [0.0, 0.0]), 1.0);
    assert_eq!(distance([3e-30, 4e-30], -5e-30, [0.0, 0.0]), -1.0);
    // ‖w‖ itself is out of range.
    assert_eq!(distance([3e38, 3e38], 0.0, [0.5, 0.5]), 0.5f32.sqrt());
    let w = Tensor::from_slice(&[1.5e308, 1.5e308], [2]).unwrap();
    let point = TensorView::from_slice(&[0.5, 0.5], [2]).unwrap();
    assert!((Perceptron::from_parts(w, 0.0).distance(point).unwrap() - 0.5f64.sqrt()).abs() < 1e-15);
    assert_eq!(distance([0.0, 0.0], 1.0, [0.0, 0.0]), f32::INFINITY);
    assert!(distance([0.0, 0.0], 0.0, [0.0, 0.0]).is_nan());
}

/// Three clouds that overlap a little, so that some classes separate and others do not.
fn clouds(samples: usize, features: usize) -> (Tensor<f32, 2>, Vec<usize>) {
    let mut rng = Rng::seed(9);
    let classes: Vec<usize> = (0..samples).map(|_| rng.below(3)).collect();
    let x = Tensor::from_fn([samples, features], |[i, j]| {
        let centre = if j % 3 == classes[i] { 1.0 + classes[i] as f32 } else { 0.0 };
        rng.normal(centre, 0.8f32)
    });
    (x.unwrap(), classes)
}

#[test]
fn each_class_learns_as_it_would_alone() {
    let (x, classes) = clouds(400, 45);
    let rule = Rule::new().rate(0.5).max_passes(12);
    for isa in machine::supported() {
        machine::with_isa(*isa, || {
            let mut model = OneVsRest::<f32>::new(3, 45).unwrap();
            let outcomes = model.fit(x.view(), &classes, &rule).unwrap();
            for (class, outcome) in outcomes.into_iter().enumerate() {
                let labels: Vec<i8> = classes.iter().map(|&c| if c == class { 1 } else { -1 }).collect();
                let mut alone = Perceptron::new(45).unwrap();
                assert_eq!(alone.fit(x.view(), &labels, &rule).unwrap(), outcome);
                let weights = model.weights().select::<1>(0, class).unwrap();
                assert_eq!(bits(alone.weights().as_slice().unwrap()), bits(weights.as_slice().unwrap()));
                assert_eq!(model.bias().get([class]), Some(&alone.bias()));
            }
        })
        .unwrap();
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, classes) = clouds(3000, 64);
    let rule = Rule::new().max_passes(5);
    let results = in_pools(|| {
        let mut model = OneVsRest::<f32>::new(3, 64).unwrap();
        let outcomes = model.fit(x.view(), &classes, &rule).unwrap();
        let scores = model.scores(x.view()).unwrap();
        let predicted = model.predict(x.view()).unwrap();
        let weights = model.weights().select::<1>(0, 1).unwrap().to_tensor().unwrap();
        let single = Perceptron::from_parts(weights, 0.5).scores(x.view()).unwrap();
        let right = predicted.iter().zip(&classes).filter(|(p, c)| p == c).count();
        assert!(right > 2700, "{right} of 3000");
        (outcomes, bits(scores.as_slice()), predicted.as_slice().to_vec(), bits(single.as_slice()))
    });
    assert!(results.iter().all(|result| *result == results[0]));
}

#[test]
fn the_first_of_equal_classes_wins() {
    let x = Tensor::<f32, 2>::full([2, 1], 1.0).unwrap();
    let model = OneVsRest::new(4, 1).unwrap();
    assert_eq!(model.predict(x.view()).unwrap().as_slice(), [0, 0]);
}

#[test]
fn a_nan_is_lower_than_negative_infinity() {
    // Learned weights (1, −1), (−1, −2) and (−1, 1) at (∞, ∞).
    let x = TensorView::from_slice(&[1.0f32, -1.0, 0.0, 3.0], [2, 2]).unwrap();
    let mut model = OneVsRest::new(3, 2).unwrap();
    model.fit(x, &[0, 2], &Rule::new().max_passes(1)).unwrap();
    let x = Tensor::full([1, 2], f32::INFINITY).unwrap();
    let scores = model.scores(x.view()).unwrap();
    assert!(matches!(scores.as_slice(), [a, f32::NEG_INFINITY, b] if a.is_nan() && b.is_nan()));
    assert_eq!(model.predict(x.view()).unwrap().as_slice(), [1]);
}

#[test]
fn bad_input_is_refused_before_anything_changes() {
    let x = Tensor::<f32, 2>::full([2, 3], 1.0).unwrap();
    let rule = Rule::new();
    let mut model = Perceptron::<f32>::new(3).unwrap();
    let mut narrow = Perceptron::<f32>::new(2).unwrap();
    let mut many = OneVsRest::<f32>::new(2, 3).unwrap();
    let point = Tensor::zeros([2]).unwrap();
    let dual = DualPerceptron::new(x.view(), &[1, -1]).unwrap();
    let taller = Tensor::<f32, 2>::zeros([3, 3]).unwrap();
    let errors = [
        narrow.fit(x.view(), &[1, 1], &rule).map(drop),
        model.fit(x.view(), &[1], &rule).map(drop),
        model.fit(x.view(), &[1, 0], &rule).map(drop),
        model.fit(x.view(), &[1, 1], &rule.rate(0.0)).map(drop),
        model.fit(x.view(), &[1, 1], &rule.rate(f32::NAN)).map(drop),
        narrow.predict(x.view()).map(drop),
        narrow.scores(x.view()).map(drop),
        model.distance(point.view()).map(drop),
        DualPerceptron::new(x.view(), &[1, 2]).map(drop),
        DualPerceptron::new(x.view(), &[1]).map(drop),
        dual.to_primal(taller.view()).map(drop),
        many.fit(x.view(), &[0, 2], &rule).map(drop),
        many.fit(x.view(), &[0], &rule).map(drop),
        many.scores(Tensor::zeros([1, 4]).unwrap().view()).map(drop),
        OneVsRest::<f32>::new(0, 3).unwrap().predict(x.view()).map(drop),
        OneVsRest::<f32>::new(usize::MAX, 2).map(drop),
    ];
    let expected = [
        "Perceptron::fit: x has shape [2, 3], expected [2, 2]",
        "Perceptron::fit: labels has shape [1], expected [2]",
        "Perceptron::fit: labels is 0 in row 1, expected 1 or -1",
        "Perceptron::fit: rate is 0, expected positive and finite",
        "Perceptron::fit: rate is NaN, expected positive and finite",
        "Perceptron::predict: x has shape [2, 3], expected [2, 2]",
        "Perceptron::scores: x has shape [2, 3], expected [2, 2]",
        "Perceptron::distance: point has shape [2], expected [3]",
        "DualPerceptron::new: labels is 2 in row 1, expected 1 or -1",
        "DualPerceptron::new: labels has shape [1], expected [2]",
        "DualPerceptron::to_primal: x has shape [3, 3], expected [2, 3]",
        "OneVsRest::fit: classes is class 2 in row 1, expected a class of the model",
        "OneVsRest::fit: classes has shape [1], expected [2]",
        "OneVsRest::scores: x has shape [1, 4], expected [1, 3]",
        "OneVsRest::predict: number of classes is 0, expected at least 1",
        "Tensor::full: the sizes of shape [18446744073709551615, 2] overflow",
    ];
    for (error, expected) in errors.into_iter().zip(expected) {
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    assert!(model.weights().iter().chain(many.weights().iter()).all(|&w| w == 0.0));
}
