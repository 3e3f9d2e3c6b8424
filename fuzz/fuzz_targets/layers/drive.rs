//! A program of calls of any layer.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use tilewise::layer::optimizer::{Adam, AdamW, Optimizer, Sgd};
use tilewise::layer::{Layer, Parameter, Parameters, clip_gradient_norm, clip_gradient_value};
use tilewise::{Error, Tensor, TensorView};

use crate::support::{Few, Lie, Number, Stored, Values, near, product, small, stored, too_large};
use crate::{Input, finite, size};

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Step {
    /// With an axis of another size.
    Forward {
        other: Option<(u8, Number)>,
        owned: bool,
    },
    Infer {
        other: Option<(u8, Number)>,
    },
    Backward {
        other: Option<(u8, Number)>,
        how: u8,
    },
    /// A parameter becomes one of another shape.
    Exchange {
        which: u8,
        rank: u8,
        shape: [Few; 4],
    },
    Zero,
    Clip {
        value: bool,
        limit: i8,
    },
    Learn {
        optimizer: u8,
        rate: u8,
    },
}

/// A view of this shape, or of another one; `None` where it could not be, or its copy would take real memory.
pub fn operand<const N: usize>(
    mut shape: [usize; N],
    other: Option<(u8, Number)>,
    lie: Lie,
    values: &mut Values,
) -> Option<Stored<f32, N>> {
    if let Some((axis, number)) = other {
        shape[usize::from(axis) % N] = size(number);
    }
    let len = product(&shape);
    if len.is_some_and(|len| len > 10_000 && len < isize::MAX as usize / 4) {
        return None;
    }
    stored(shape, lie, values).ok()
}

/// What the last forward that was taken had and gave.
#[derive(Clone, Copy)]
struct Kept<const I: usize, const O: usize> {
    x: [usize; I],
    y: [usize; O],
}

struct Driver<'i, const I: usize, const O: usize> {
    input: &'i Input,
    layer: &'i mut dyn Layer<f32, I, O>,
    shape: [usize; I],
    /// Training and inference give the same.
    steady: bool,
    values: Values,
    kept: Option<Kept<I, O>>,
    /// Sizes that overflow, or memory that could not be had: what was kept may be there or not.
    unknown: bool,
    /// No parameter has another shape than it was made with: what is taken and what is refused can be foretold.
    own: bool,
    learnt: bool,
    optimizer: Option<Learner>,
}

/// Forward, the steps, and backward. `steady`: training and inference give the same. Whether what the layer gives can still be
/// foretold.
pub fn drive<const I: usize, const O: usize>(
    input: &Input,
    layer: &mut dyn Layer<f32, I, O>,
    shape: [usize; I],
    steady: bool,
) -> bool {
    let values = Values::seed(input.seed);
    let (kept, unknown, own, learnt, optimizer) = (None, false, true, false, None);
    let mut driver = Driver { input, layer, shape, steady, values, kept, unknown, own, learnt, optimizer };
    let (forward, backward) =
        (Step::Forward { other: None, owned: false }, Step::Backward { other: None, how: 0 });
    driver.act(forward);
    for &step in &input.steps {
        driver.act(step);
        // What was kept belongs to other parameters, then to these.
        if let Step::Exchange { .. } = step {
            [backward, forward, backward].into_iter().for_each(|step| driver.act(step));
        }
    }
    driver.act(backward);
    driver.names();
    driver.own && !driver.learnt
}

impl<const I: usize, const O: usize> Driver<'_, I, O> {
    fn act(&mut self, step: Step) {
        match step {
            Step::Forward { other, owned } => self.forward(other, owned),
            Step::Infer { other } => self.infer(other),
            Step::Backward { other, how } => self.backward(other, how),
            Step::Exchange { which, rank, shape } => {
                let new = parameter(rank, shape);
                self.own &= !exchange(self.layer, usize::from(which), new);
            }
            Step::Zero => {
                self.layer.zero_gradients();
                self.layer.visit(&mut |_, parameter| assert!(parameter.gradient().iter().all(|&g| g == 0.0)));
            }
            Step::Clip { value, limit } => {
                let (limit, mut parameters) = (f64::from(limit) / 16.0, Both(self.layer));
                let result = match value {
                    true => clip_gradient_value(&mut parameters, limit),
                    false => clip_gradient_norm(&mut parameters, limit).map(drop),
                };
                assert_eq!(result.is_ok(), limit >= 0.0);
            }
            Step::Learn { optimizer, rate } => {
                learn(self.layer, self.optimizer.get_or_insert_with(|| Learner::new(optimizer, rate)));
                self.learnt = true;
            }
        }
    }

    /// The maximum of padding alone, where there is nothing else, is −∞; steps of any length lead anywhere.
    fn finite<const N: usize>(&self, x: &Stored<f32, I>, found: &Tensor<f32, N>) {
        let tame = self.own && !self.learnt && !x.view().is_empty();
        assert!(!tame || finite(found), "a result is not finite");
    }

    fn forward(&mut self, other: Option<(u8, Number)>, owned: bool) {
        let Some(x) = operand(self.shape, other, self.input.lies[0], &mut self.values) else { return };
        let told = self.layer.check_forward(x.shape);
        let result = if owned && small(&x.shape) {
            self.layer.forward_owned(x.view().to_tensor().expect("small"))
        } else {
            self.layer.forward(x.view())
        };
        let inferred = self.layer.infer(x.view());
        let foretold = self.own && self.steady;
        match result {
            Ok(y) => {
                assert_eq!(told.expect("a shape that is taken"), y.shape());
                self.finite(&x, &y);
                if foretold {
                    let inferred = inferred.expect("inference takes what training does");
                    assert_eq!(inferred.shape(), y.shape());
                    if !self.learnt {
                        agree("inference", inferred.view(), y.view());
                    }
                }
                self.kept = Some(Kept { x: x.shape, y: y.shape() });
            }
            Err(error) => {
                refused(&error);
                assert!(told.is_err() || too_large(&error), "refused without a word: {error}");
                // Training keeps a copy, of which there may be none.
                let reason = inferred.is_err() || too_large(&error);
                assert!(!foretold || reason, "inference takes what training does not: {error}");
                if too_large(&error) {
                    (self.kept, self.unknown) = (None, true);
                }
            }
        }
    }

    fn infer(&mut self, other: Option<(u8, Number)>) {
        let Some(x) = operand(self.shape, other, self.input.lies[0], &mut self.values) else { return };
        match self.layer.infer(x.view()) {
            Ok(y) => self.finite(&x, &y),
            Err(error) => refused(&error),
        }
    }

    fn backward(&mut self, other: Option<(u8, Number)>, how: u8) {
        let Some(Kept { x, y }) = self.kept else {
            let none = Tensor::zeros([0; O]).expect("nothing");
            assert!(self.layer.check_backward([0; O]).is_err() || self.unknown, "there was no forward");
            assert!(self.layer.backward(none.view()).is_err() || self.unknown, "there was no forward");
            return;
        };
        let Some(dy) = operand(y, other, self.input.lies[1], &mut self.values) else { return };
        let (told, before) = (self.layer.check_backward(dy.shape), self.gradients());
        let result = match how % 5 {
            0 | 1 => self.layer.backward(dy.view()).map(Some),
            2 if small(&dy.shape) => {
                self.layer.backward_owned(dy.view().to_tensor().expect("small")).map(Some)
            }
            3 if small(&dy.shape) => {
                self.layer.backward_parameters_owned(dy.view().to_tensor().expect("small")).map(|()| None)
            }
            _ => self.layer.backward_parameters(dy.view()).map(|()| None),
        };
        match result {
            Ok(dx) => {
                assert!(dy.shape == y || !self.own, "a gradient of another shape was taken");
                let told = told.expect("a gradient that is taken");
                assert!(dx.as_ref().is_none_or(|dx| dx.shape() == told));
                if let Some(dx) = dx.filter(|_| self.own) {
                    assert_eq!(dx.shape(), x);
                    assert!(self.learnt || finite(&dx), "a gradient is not finite");
                }
            }
            Err(error) => {
                refused(&error);
                assert!(told.is_err() || too_large(&error), "refused without a word: {error}");
                assert!(told.is_ok() || self.gradients() == before, "refused, and added");
                let good = dy.shape == y && self.own;
                assert!(!good || too_large(&error), "what was kept is lost: {error}");
            }
        }
    }

    /// The bits of all gradients.
    fn gradients(&self) -> Vec<u32> {
        let mut all = Vec::new();
        self.layer.visit(&mut |_, parameter| all.extend(parameter.gradient().iter().map(|d| d.to_bits())));
        all
    }

    /// All walks have the same names in the same order.
    fn names(&mut self) {
        let (mut names, mut others) = (Vec::new(), Vec::new());
        self.layer.visit(&mut |name, parameter| names.push((name.to_owned(), parameter.len())));
        self.layer.visit_mut(&mut |name, parameter| others.push((name.to_owned(), parameter.len())));
        assert_eq!(names, others);
        assert_eq!(self.layer.parameter_count(), names.iter().map(|(_, len)| len).sum());
    }
}

/// A parameter of some shape.
pub fn parameter(rank: u8, shape: [Few; 4]) -> Parameter<f32> {
    let [a, b, c, d] = shape.map(|size| size.0 % 9);
    match rank % 4 {
        0 => Parameter::new(Tensor::full([a, b], 0.5).expect("small")),
        1 => Parameter::new(Tensor::full([a], 0.5).expect("small")),
        2 => Parameter::new(Tensor::full([a, b, c], 0.5).expect("small")),
        _ => Parameter::new(Tensor::full([a, b, c, d], 0.5).expect("small")),
    }
    .expect("small")
}

pub fn refused(error: &Error) {
    assert!(!error.to_string().is_empty());
}

/// Two ways to one result differ by rounding alone.
pub fn agree<const N: usize>(what: &str, found: TensorView<'_, f32, N>, other: TensorView<'_, f32, N>) {
    let other = Tensor::from_fn(other.shape(), |at| f64::from(*other.get(at).expect("inside")));
    near(what, found, &other.expect("small"), 2e4);
}

/// Puts `new` in place of one of the parameters; whether there was one, of another shape.
fn exchange<const I: usize, const O: usize>(
    layer: &mut dyn Layer<f32, I, O>,
    which: usize,
    new: Parameter<f32>,
) -> bool {
    let (mut count, mut place, mut differs) = (0, 0, false);
    layer.visit(&mut |_, _| count += 1);
    let mut new = Some(new);
    layer.visit_mut(&mut |_, parameter| {
        if place == which % count.max(1)
            && let Some(new) = new.take()
        {
            differs = new.shape() != parameter.shape();
            *parameter = new;
        }
        place += 1;
    });
    differs
}

/// A layer as no more than its parameters.
struct Both<'l, const I: usize, const O: usize>(&'l mut dyn Layer<f32, I, O>);

impl<const I: usize, const O: usize> Parameters<f32> for Both<'_, I, O> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        self.0.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.0.visit_mut(f);
    }
}

struct Learner {
    optimizer: Box<dyn Optimizer<f32>>,
    /// Another one, which goes on from its state.
    resumed: Box<dyn Optimizer<f32>>,
    good: bool,
    shapes: Option<Vec<Box<[usize]>>>,
}

impl Learner {
    fn new(which: u8, rate: u8) -> Self {
        let rates = [0.0, 1e-3, 0.1, -0.1, f64::NAN, f64::INFINITY];
        let rate = rates[usize::from(rate) % rates.len()];
        let make = || -> Box<dyn Optimizer<f32>> {
            match which % 4 {
                0 => Box::new(Sgd::new(rate)),
                1 => Box::new(Sgd::new(rate).momentum(0.5).nesterov(which % 8 > 3)),
                2 => Box::new(Adam::new(rate).weight_decay(0.1)),
                _ => Box::new(AdamW::new(rate)),
            }
        };
        let good = rate >= 0.0 && rate.is_finite();
        Self { optimizer: make(), resumed: make(), good, shapes: None }
    }
}

/// A step, taken where the parameters are those of the first one; resumed from what is kept, another one is to the bit the same.
fn learn<const I: usize, const O: usize>(layer: &mut dyn Layer<f32, I, O>, learner: &mut Learner) {
    let mut shapes = Vec::new();
    layer.visit(&mut |_, parameter| shapes.push(Box::<[usize]>::from(parameter.shape())));
    let mut parameters = Both(layer);
    let before = values(&parameters);
    let fits = learner.good && learner.shapes.as_ref().is_none_or(|first| *first == shapes);
    let result = learner.optimizer.step(&mut parameters);
    if let Err(error) = &result {
        refused(error);
        assert_eq!(values(&parameters), before, "a parameter was changed");
    }
    assert_eq!(result.is_ok(), fits, "{result:?}");
    if !fits {
        return;
    }
    let after = values(&parameters);
    learner.shapes = Some(shapes);
    let mut state = Vec::new();
    learner.optimizer.visit_state(&mut |tensor| state.push(tensor));
    learner.resumed.restore(&parameters, learner.optimizer.steps(), &state).expect("of the same kind");
    assert_eq!(learner.resumed.steps(), learner.optimizer.steps());
    let mut again = Vec::new();
    learner.resumed.visit_state(&mut |tensor| again.push(tensor));
    let bits = |tensors: &[tilewise::layer::optimizer::StateTensor<'_, f32>]| -> Vec<u32> {
        tensors.iter().flat_map(|tensor| tensor.values).map(|x| x.to_bits()).collect()
    };
    assert_eq!(bits(&state), bits(&again));
    assert_eq!(values(&parameters), after);
}

/// The bits of all parameters.
fn values(parameters: &dyn Parameters<f32>) -> Vec<u32> {
    let mut values = Vec::new();
    parameters.visit(&mut |_, parameter| values.extend(parameter.value().iter().map(|x| x.to_bits())));
    values
}
