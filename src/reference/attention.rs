//! Attention, score by score, in `f64`.

use super::{at, expect};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView};

/// What changes a score q·k before it becomes a weight, with every field open: the twin of the options of
/// [`attention::Attention`](crate::attention::Attention).
#[derive(Clone, Copy)]
pub struct Attention<'a, T> {
    /// The factor of q·k.
    pub scale: f64,
    /// Scores become cap · tanh(score / cap).
    pub soft_cap: Option<f64>,
    /// ALiBi, one slope a head: − slope · |position of the query − position of the key| is added.
    pub slopes: Option<TensorView<'a, T, 1>>,
    /// Added; broadcasts to `[batch, heads, queries, keys]`.
    pub bias: Option<TensorView<'a, T, 4>>,
    /// True where a key may be attended to; broadcasts as `bias` does.
    pub mask: Option<TensorView<'a, bool, 4>>,
    /// Keys behind the query's position are not attended to.
    pub causal: bool,
    /// Keys `window` or more away from the query's position are not attended to.
    pub window: Option<usize>,
    /// The last query stands at the last key; else the first query at key `first`.
    pub align_end: bool,
    /// Where the first query stands, unless the last decides.
    pub first: usize,
    /// Keys of each entry of the batch; those behind are not there.
    pub lengths: Option<&'a [usize]>,
    /// What a weight is multiplied by in the end, by `[batch, head, query, key]`: dropout.
    pub factor: Option<&'a dyn Fn([usize; 4]) -> f64>,
    /// Weights are scores divided by their sum, without exponentials.
    pub linear: bool,
}

/// What [`Attention::forward`] gives.
pub struct Attended {
    /// `[batch, heads, queries, value_dim]`.
    pub output: Tensor<f64, 4>,
    /// ln Σ e^score over the keys of each query, −∞ where there are none; with `linear` Σ score.
    pub normalizer: Tensor<f64, 3>,
}

/// What [`Attention::backward`] gives.
pub struct Gradients {
    /// As the queries.
    pub query: Tensor<f64, 4>,
    /// As the keys.
    pub key: Tensor<f64, 4>,
    /// As the values.
    pub value: Tensor<f64, 4>,
    /// `[batch, heads, queries, keys]`: not summed over the axes along which `bias` was broadcast.
    pub bias: Tensor<f64, 4>,
}

impl<'a, T: Element> Attention<'a, T> {
    /// softmax(scale · Q Kᵀ) V.
    pub fn new(scale: f64) -> Self {
        Self {
            scale,
            soft_cap: None,
            slopes: None,
            bias: None,
            mask: None,
            causal: false,
            window: None,
            align_end: false,
            first: 0,
            lengths: None,
            factor: None,
            linear: false,
        }
    }

    /// The score of a key for a query and its derivative by q·k, or nothing where the key is not attended to.
    fn score(&self, [b, h, i, j]: [usize; 4], [queries, keys]: [usize; 2], dot: f64) -> Option<(f64, f64)> {
        let keys = self.lengths.map_or(keys, |lengths| lengths[b]);
        let first = if self.align_end { keys as f64 - queries as f64 } else { self.first as f64 };
        let position = i as f64 + first;
        let distance = position - j as f64;
        if j >= keys
            || (self.causal && distance < 0.0)
            || self.window.is_some_and(|window| distance.abs() >= window as f64)
        {
            return None;
        }
        // An axis of size 1 stands for all indices.
        let index = |shape: [usize; 4]| {
            let index = [b, h, i, j];
            std::array::from_fn(|axis| if shape[axis] == 1 { 0 } else { index[axis] })
        };
        if self.mask.is_some_and(|mask| mask.get(index(mask.shape())) == Some(&false)) {
            return None;
        }
        let (mut score, mut slope) = (self.scale * dot, self.scale);
        if let Some(cap) = self.soft_cap {
            let t = (score / cap).tanh();
            (score, slope) = (cap * t, slope * (1.0 - t * t));
        }
        score -= self.slopes.map_or(0.0, |slopes| at(slopes, [h]) * distance.abs());
        score += self.bias.map_or(0.0, |bias| at(bias, index(bias.shape())));
        // −∞ as a mask.
        (score != f64::NEG_INFINITY).then_some((score, slope))
    }

    /// Scores (0 where there are none), weights, derivatives of scores, and the normaliser for one query.
    fn row(
        &self,
        [b, h, i]: [usize; 3],
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let ([_, heads, queries, dim], [_, kv_heads, keys, _]) = (q.shape(), k.shape());
        let kv = h / (heads / kv_heads);
        let scores: Vec<Option<(f64, f64)>> = (0..keys)
            .map(|j| {
                let dot = (0..dim).map(|d| at(q, [b, h, i, d]) * at(k, [b, kv, j, d])).sum();
                self.score([b, h, i, j], [queries, keys], dot)
            })
            .collect();
        let slopes = scores.iter().map(|score| score.map_or(0.0, |(_, slope)| slope)).collect();
        if self.linear {
            let sum: f64 = scores.iter().flatten().map(|(score, _)| score).sum();
            return (scores.iter().map(|score| score.map_or(0.0, |(s, _)| s / sum)).collect(), slopes, sum);
        }
        let most = scores.iter().flatten().fold(f64::NEG_INFINITY, |most, (score, _)| most.max(*score));
        let sum: f64 = scores.iter().flatten().map(|(score, _)| (score - most).exp()).sum();
        let weights = scores.iter().map(|score| score.map_or(0.0, |(s, _)| (s - most).exp() / sum));
        (weights.collect(), slopes, if sum == 0.0 { f64::NEG_INFINITY } else { most + sum.ln() })
    }

    fn check(&self, q: TensorView<'_, T, 4>, k: TensorView<'_, T, 4>, v: TensorView<'_, T, 4>) -> Result<()> {
        let op = "reference::attention";
        let ([batch, heads, _, dim], [_, kv_heads, keys, _]) = (q.shape(), k.shape());
        expect(op, "k", &k.shape(), &[batch, kv_heads, keys, dim])?;
        expect(op, "v", &v.shape(), &[batch, kv_heads, keys, v.shape()[3]])?;
        if if kv_heads == 0 { heads > 0 } else { !heads.is_multiple_of(kv_heads) } {
            return Err(Error::argument(op, "heads of q", heads, "a multiple of the heads of k"));
        }
        Ok(())
    }

    fn factor(&self, index: [usize; 4]) -> f64 {
        self.factor.map_or(1.0, |factor| factor(index))
    }

    /// Y `[batch, heads, queries, value_dim]` from Q `[batch, heads, queries, dim]`, K `[batch, kv_heads, keys, dim]` and
    /// V `[batch, kv_heads, keys, value_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Argument`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, reference::attention::Attention};
    /// let q = Tensor::<f32, 4>::zeros([1, 1, 1, 2])?;
    /// let kv = Tensor::from_slice(&[1.0, 2.0, 3.0, 6.0], [1, 1, 2, 2])?;
    /// let y = Attention::new(1.0).forward(q.view(), kv.view(), kv.view())?.output;
    /// assert_eq!(y.as_slice(), [2.0, 4.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
    ) -> Result<Attended> {
        self.check(q, k, v)?;
        let ([batch, heads, queries, _], [_, kv_heads, _, value_dim]) = (q.shape(), v.shape());
        let mut output = Tensor::zeros([batch, heads, queries, value_dim])?;
        let normalizer = Tensor::from_fn([batch, heads, queries], |[b, h, i]| {
            let (weights, _, normalizer) = self.row([b, h, i], q, k);
            for d in 0..value_dim {
                let terms = weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
                let kv = h / (heads / kv_heads);
                let sum = terms.map(|(j, weight)| weight * self.factor([b, h, i, j]) * at(v, [b, kv, j, d]));
                let sum = sum.sum();
                if let Some(y) = output.get_mut([b, h, i, d]) {
                    *y = sum;
                }
            }
            normalizer
        })?;
        Ok(Attended { output, normalizer })
    }

    /// The scores, −∞ where a key is not attended to, and the weights, `[batch, heads, queries, keys]` both.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// ```
    /// use tilewise::{Tensor, reference::attention::Attention};
    /// let x = Tensor::<f64, 4>::full([1, 1, 2, 1], 3.0)?;
    /// let [scores, weights] = Attention { causal: true, ..Attention::new(1.0) }.scores(x.view(), x.view())?;
    /// assert_eq!(scores.as_slice(), [9.0, f64::NEG_INFINITY, 9.0, 9.0]);
    /// assert_eq!(weights.as_slice(), [1.0, 0.0, 0.5, 0.5]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn scores(&self, q: TensorView<'_, T, 4>, k: TensorView<'_, T, 4>) -> Result<[Tensor<f64, 4>; 2]> {
        self.check(q, k, k)?;
        let ([batch, heads, queries, dim], [_, kv_heads, keys, _]) = (q.shape(), k.shape());
        let shape = [batch, heads, queries, keys];
        let scores = Tensor::from_fn(shape, |[b, h, i, j]| {
            let kv = h / (heads / kv_heads);
            let dot = (0..dim).map(|d| at(q, [b, h, i, d]) * at(k, [b, kv, j, d])).sum();
            self.score([b, h, i, j], [queries, keys], dot).map_or(f64::NEG_INFINITY, |(score, _)| score)
        })?;
        let mut row = Vec::new();
        let weights = Tensor::from_fn(shape, |[b, h, i, j]| {
            if j == 0 {
                row = self.row([b, h, i], q, k).0;
            }
            row[j]
        })?;
        Ok([scores, weights])
    }

    /// All gradients from dY. With A the weights, F the factors of dropout and dA = F ⊙ (dY Vᵀ): dV = (A ⊙ F)ᵀ dY, and
    /// the scores' gradient is A ⊙ (dA − rowsum(A ⊙ dA)), or (dA − rowsum(A ⊙ dA)) / Σ scores with `linear`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// ```
    /// use tilewise::{Tensor, reference::attention::Attention};
    /// let q = Tensor::<f64, 4>::zeros([1, 1, 1, 1])?;
    /// let kv = Tensor::from_slice(&[1.0, 3.0], [1, 1, 2, 1])?;
    /// let dy = Tensor::full([1, 1, 1, 1], 1.0)?;
    /// let gradients = Attention::new(1.0).backward(q.view(), kv.view(), kv.view(), dy.view())?;
    /// assert_eq!(gradients.value.as_slice(), [0.5, 0.5]);
    /// assert_eq!(gradients.query.as_slice(), [1.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
        dy: TensorView<'_, T, 4>,
    ) -> Result<Gradients> {
        self.check(q, k, v)?;
        let ([batch, heads, queries, dim], [_, kv_heads, keys, value_dim]) = (q.shape(), v.shape());
        expect("reference::attention", "dy", &dy.shape(), &[batch, heads, queries, value_dim])?;
        let mut gradients = Gradients {
            query: Tensor::zeros(q.shape())?,
            key: Tensor::zeros(k.shape())?,
            value: Tensor::zeros(v.shape())?,
            bias: Tensor::zeros([batch, heads, queries, keys])?,
        };
        let add = |tensor: &mut Tensor<f64, 4>, index, term: f64| {
            if let Some(sum) = tensor.get_mut(index) {
                *sum += term;
            }
        };
        for b in 0..batch {
            for (h, i) in (0..heads).flat_map(|h| (0..queries).map(move |i| (h, i))) {
                let kv = h / (heads / kv_heads);
                let (weights, slopes, normalizer) = self.row([b, h, i], q, k);
                let da: Vec<f64> = (0..keys)
                    .map(|j| {
                        let dot: f64 =
                            (0..value_dim).map(|d| at(dy, [b, h, i, d]) * at(v, [b, kv, j, d])).sum();
                        self.factor([b, h, i, j]) * dot
                    })
                    .collect();
                let mean: f64 = weights.iter().zip(&da).map(|(weight, da)| weight * da).sum();
                for j in 0..keys {
                    let factor = self.factor([b, h, i, j]);
                    for d in 0..value_dim {
                        add(&mut gradients.value, [b, kv, j, d], weights[j] * factor * at(dy, [b, h, i, d]));
                    }
                    // Keys that are not attended to have no slope and no weight.
                    let ds = match (slopes[j] == 0.0 && weights[j] == 0.0, self.linear) {
                        (true, _) => continue,
                        (_, true) => (da[j] - mean) / normalizer,
                        (_, false) => weights[j] * (da[j] - mean),
                    };
                    add(&mut gradients.bias, [b, h, i, j], ds);
                    for d in 0..dim {
                        add(&mut gradients.query, [b, h, i, d], ds * slopes[j] * at(k, [b, kv, j, d]));
                        add(&mut gradients.key, [b, kv, j, d], ds * slopes[j] * at(q, [b, h, i, d]));
                    }
                }
            }
        }
        Ok(gradients)
    }
}
