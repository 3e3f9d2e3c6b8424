//! The scores themselves, for who wants to see them: the one call whose memory grows with queries × keys.

use super::Attention;
use super::plan::Plan;
use crate::activation::Activation;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::Gemm;
use crate::machine;
use crate::parallel;
use crate::tensor::{Tensor, TensorView};

/// How far [`Attention::scores`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// scale · Q Kᵀ, of all keys.
    Product,
    /// With the soft cap, of all keys.
    Capped,
    /// With all that is added; −∞ where a key is hidden.
    Masked,
    /// The weights, before dropout: 0 where a key is hidden, and where a query has none.
    Weights,
}

/// Elements that are worth a task.
const GRAIN: usize = 1 << 12;

impl<T: Element> Attention<'_, T> {
    /// The scores of each query with each key, `[batch, heads, queries, keys]`, at a stage of the computation.
    ///
    /// [`forward`](Self::forward) never makes them; this is for looking at them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// ```
    /// use tilewise::{Tensor, attention::{Align, Attention, Stage}};
    /// let x = Tensor::<f64, 4>::full([1, 1, 2, 4], 1.0)?;
    /// let options = Attention::new().causal(Align::Start);
    /// let scores = options.scores(x.view(), x.view(), Stage::Masked)?;
    /// assert_eq!(scores.as_slice(), [2.0, f64::NEG_INFINITY, 2.0, 2.0]);
    /// let weights = options.scores(x.view(), x.view(), Stage::Weights)?;
    /// assert_eq!(weights.as_slice(), [1.0, 0.0, 0.5, 0.5]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn scores(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        stage: Stage,
    ) -> Result<Tensor<T, 4>> {
        let plan = Plan::new("Attention::scores", self, q, k, k)?;
        let Plan { batch, heads, queries, keys, .. } = plan;
        let mut scores = Tensor::zeros([batch, heads, queries, keys])?;
        if scores.is_empty() {
            return Ok(scores);
        }
        let cap = self.soft_cap.filter(|_| stage != Stage::Product);
        let product = match cap {
            Some(cap) => Gemm::new().alpha(plan.scale() / cap).activation(Activation::Tanh),
            None => Gemm::new().alpha(plan.scale()),
        };
        for entry in 0..batch {
            for head in 0..heads {
                let q: TensorView<'_, T, 2> = q.select::<3>(0, entry)?.select(0, head)?;
                let k: TensorView<'_, T, 2> = k.select::<3>(0, entry)?.select(0, head / plan.group)?;
                let scores = scores.view_mut().select::<3>(0, entry)?.select::<2>(0, head)?;
                product.run(q, k.transpose(), scores)?;
            }
        }
        let tasks = parallel::tasks(scores.len(), GRAIN);
        machine::trace(|| {
            format!("{} {stage:?} {:?} {} {} tasks {tasks}", plan.op, scores.shape(), T::NAME, plan.isa)
        });
        parallel::for_each_chunk_mut(scores.as_mut_slice(), keys, tasks, &|first, rows| {
            for (row, scores) in rows.chunks_exact_mut(keys).enumerate() {
                let row = first + row;
                if let Some(cap) = cap {
                    scores.iter_mut().for_each(|score| *score *= cap);
                }
                if matches!(stage, Stage::Masked | Stage::Weights) {
                    plan.hide([row / queries / heads, row / queries % heads, row % queries], scores);
                }
                if stage == Stage::Weights {
                    plan.weigh(scores);
                }
            }
        });
        Ok(scores)
    }
}

impl<T: Element> Plan<'_, T> {
    /// All that is added to the scores of a query.
    fn hide(&self, [entry, head, query]: [usize; 3], scores: &mut [T]) {
        let range = self.range(entry, query);
        let position = self.position(entry).saturating_add(query as isize);
        let slope = self.options.slopes.map(|slopes| slopes.get([head]).copied().unwrap_or(T::NAN));
        for (key, score) in scores.iter_mut().enumerate() {
            let at = [entry, head, query, key];
            let seen = range.contains(&key) && self.mask.is_none_or(|mask| mask.get(at) != Some(&false));
            if !seen {
                *score = T::NEG_INFINITY;
                continue;
            }
            if let Some(slope) = slope {
                *score -= slope * T::from_usize(position.abs_diff(key as isize));
            }
            if let Some(bias) = self.bias {
                *score += bias.get(at).copied().unwrap_or(T::NAN);
            }
        }
    }

    fn weigh(&self, scores: &mut [T]) {
        let hidden = T::NEG_INFINITY;
        if !self.options.linear {
            let most = scores.iter().fold(hidden, |most, &score| if score > most { score } else { most });
            let seen = scores.iter_mut().filter(|score| **score != hidden);
            seen.for_each(|score| *score = (*score - most).exp());
        }
        let sum = scores.iter().filter(|score| **score != hidden).fold(T::ZERO, |sum, &score| sum + score);
        scores.iter_mut().for_each(|score| *score = if *score == hidden { T::ZERO } else { *score / sum });
    }
}
