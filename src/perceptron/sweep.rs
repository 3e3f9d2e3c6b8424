//! The inner loops: passes over the samples, and scores.

use super::{Outcome, Rule};
use crate::element::Element;
use crate::machine::Isa;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::TensorView;

/// Sums of a dot product that are kept apart: enough to hide the latency of an addition.
const CHAINS: usize = 4;

/// a · b over the shorter of the two, added in an order that depends on the length and the instruction set.
#[inline(always)]
fn dot<T: Element, S: Simd<T>>(simd: S, a: &[T], b: &[T]) -> T {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut sums = [simd.splat(T::ZERO); CHAINS];
    let (mut a_runs, mut b_runs) = (a.chunks_exact(CHAINS * S::LANES), b.chunks_exact(CHAINS * S::LANES));
    for (a, b) in a_runs.by_ref().zip(b_runs.by_ref()) {
        for (chain, sum) in sums.iter_mut().enumerate() {
            let from = chain * S::LANES;
            *sum = simd.mul_add(simd.load(&a[from..]), simd.load(&b[from..]), *sum);
        }
    }
    let rest = a_runs.remainder().chunks(S::LANES).zip(b_runs.remainder().chunks(S::LANES));
    for ((a, b), sum) in rest.zip(&mut sums) {
        *sum = simd.mul_add(simd.load_partial(a), simd.load_partial(b), *sum);
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// out += factor · x over the shorter of the two.
#[inline(always)]
fn add_scaled<T: Element, S: Simd<T>>(simd: S, factor: T, x: &[T], out: &mut [T]) {
    let factor = simd.splat(factor);
    for (x, out) in x.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        let sum = simd.mul_add(factor, simd.load_partial(x), simd.load_partial(out));
        simd.store_partial(sum, out);
    }
}

/// One perceptron while it learns.
pub(super) struct Learner<'a, T> {
    pub(super) weights: &'a mut [T],
    pub(super) bias: &'a mut T,
    pub(super) outcome: Outcome,
    /// False once it has ended.
    pub(super) active: bool,
}

/// Which rows are positive samples.
#[derive(Clone, Copy)]
pub(super) enum Labels<'a> {
    /// 1 or −1, for the only learner.
    Signs(&'a [i8]),
    /// The class of each row; those of class `first` are the first learner's, and so on.
    Classes { classes: &'a [usize], first: usize },
}

impl Labels<'_> {
    #[inline(always)]
    fn positive(&self, row: usize, learner: usize) -> bool {
        match self {
            Labels::Signs(labels) => labels[row] > 0,
            Labels::Classes { classes, first } => classes[row] == first + learner,
        }
    }
}

kernels! {
    /// Element types with perceptrons.
    pub trait Sweeps {
        /// [`Train`].
        fn train(isa: Isa, op: Train<'_, '_, Self>);

        /// [`TrainDual`].
        fn train_dual(isa: Isa, op: TrainDual<'_, Self>) -> Outcome;

        /// [`Scores`].
        fn perceptron_scores(isa: Isa, op: Scores<'_, Self>);
    }
}

/// All passes over the samples. Each learner goes its own way: it does what it would do alone.
pub struct Train<'a, 'b, T> {
    pub(super) rule: Rule<T>,
    /// With contiguous rows.
    pub(super) x: TensorView<'a, T, 2>,
    pub(super) learners: &'a mut [Learner<'b, T>],
    pub(super) labels: Labels<'a>,
    /// Called with the row of each mistake.
    pub(super) mistake: &'a mut dyn FnMut(usize),
}

impl<T: Element> Train<'_, '_, T> {
    pub(super) fn run(self, isa: Isa) {
        T::train(isa, self);
    }
}

impl<T: Element> SimdOp<T> for Train<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        for _ in 0..self.rule.max_passes {
            for learner in self.learners.iter_mut().filter(|learner| learner.active) {
                learner.outcome.passes += 1;
                // Until the first mistake of this pass.
                learner.outcome.separable = true;
            }
            for i in 0..self.x.shape()[0] {
                let Some(sample) = self.x.row(i) else { return };
                for (number, learner) in self.learners.iter_mut().enumerate() {
                    if !learner.active {
                        continue;
                    }
                    let positive = self.labels.positive(i, number);
                    let score = dot(simd, learner.weights, sample) + *learner.bias;
                    let margin = if positive { score } else { -score };
                    // Not `margin <= 0`: a NaN separates nothing.
                    if margin > T::ZERO {
                        continue;
                    }
                    learner.outcome.separable = false;
                    if learner.outcome.updates == self.rule.max_updates {
                        learner.active = false;
                        continue;
                    }
                    let step = if positive { self.rule.rate } else { -self.rule.rate };
                    add_scaled(simd, step, sample, learner.weights);
                    *learner.bias += step;
                    learner.outcome.updates += 1;
                    (self.mistake)(i);
                }
            }
            let mut any = false;
            for learner in self.learners.iter_mut() {
                learner.active &= !learner.outcome.separable;
                any |= learner.active;
            }
            if !any {
                return;
            }
        }
    }
}

/// The same over the Gram matrix, for one perceptron in dual form.
pub struct TrainDual<'a, T> {
    pub(super) rule: Rule<T>,
    pub(super) labels: &'a [i8],
    /// G, row-major, `[samples, samples]`.
    pub(super) gram: &'a [T],
    pub(super) alpha: &'a mut [T],
    pub(super) bias: &'a mut T,
    /// Σ αⱼ yⱼ Gⱼᵢ for each i.
    pub(super) products: &'a mut [T],
    pub(super) mistake: &'a mut dyn FnMut(usize),
}

impl<T: Element> TrainDual<'_, T> {
    pub(super) fn run(self, isa: Isa) -> Outcome {
        T::train_dual(isa, self)
    }
}

impl<T: Element> SimdOp<T> for TrainDual<'_, T> {
    type Output = Outcome;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) -> Outcome {
        let mut outcome = Outcome::default();
        let samples = self.labels.len();
        while outcome.passes < self.rule.max_passes {
            outcome.passes += 1;
            let before = outcome.updates;
            for (i, &label) in self.labels.iter().enumerate() {
                let score = self.products[i] + *self.bias;
                let (margin, step) =
                    if label > 0 { (score, self.rule.rate) } else { (-score, -self.rule.rate) };
                if margin > T::ZERO {
                    continue;
                }
                if outcome.updates == self.rule.max_updates {
                    return outcome;
                }
                self.alpha[i] += self.rule.rate;
                *self.bias += step;
                add_scaled(simd, step, &self.gram[i * samples..][..samples], self.products);
                outcome.updates += 1;
                (self.mistake)(i);
            }
            if outcome.updates == before {
                outcome.separable = true;
                return outcome;
            }
        }
        outcome
    }
}

/// w · x + b of each row, with the sums that learning makes.
pub struct Scores<'a, T> {
    /// With contiguous rows.
    pub(super) x: TensorView<'a, T, 2>,
    pub(super) weights: &'a [T],
    pub(super) bias: T,
    pub(super) scores: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Scores<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, simd: S) {
        for (i, score) in self.scores.iter_mut().enumerate() {
            if let Some(row) = self.x.row(i) {
                *score = dot(simd, self.weights, row) + self.bias;
            }
        }
    }
}
