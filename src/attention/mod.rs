//! Scaled dot-product attention, and its gradients.
//!
//! | tensor | shape |
//! | --- | --- |
//! | Q, dQ | `[batch, heads, queries, dim]` |
//! | K, dK | `[batch, kv_heads, keys, dim]` |
//! | V, dV | `[batch, kv_heads, keys, value_dim]` |
//! | Y, dY | `[batch, heads, queries, value_dim]` |
//! | normaliser | `[batch, heads, queries]` |
//!
//! in any strides: `[batch, length, heads, dim]` is [`permute`](TensorView::permute)`([0, 2, 1, 3])` and costs nothing.
//! `kv_heads` divides `heads`: neighbouring query heads share keys and values where it is smaller (grouped queries; one
//! key head: multi-query attention). Y = A V with A = softmax(S), row by row, and
//!
//! S = cap(scale · Q Kᵀ) − slope · |i − j| + bias, −∞ where a mask forbids key j for query i.
//!
//! | option | what it does |
//! | --- | --- |
//! | [`scale`](Attention::scale) | 1/√dim unless given |
//! | [`soft_cap`](Attention::soft_cap) | cap(s) = c · tanh(s/c) |
//! | [`alibi`](Attention::alibi) | one slope a head, times the distance of the positions |
//! | [`bias`](Attention::bias), [`mask`](Attention::mask) | added; or false where a key may not be attended to. Both broadcast over any axes |
//! | [`causal`](Attention::causal), [`window`](Attention::window), [`key_lengths`](Attention::key_lengths) | masks made of positions: what they hide is not computed, and keys behind the length are not read |
//! | [`dropout`](Attention::dropout) | weights become 0 by a rate, the others grow by 1/(1 − rate) |
//! | [`linear`](Attention::linear) | A = S / Σ S instead of the softmax |
//!
//! A query that no key is left for gets 0, and so does its gradient; one with a NaN among the scores that are left gets NaN.
//! Weights and gradients of scores that are 0 are multiplied as others are: where the row of Q, K, V or dY that they meet
//! has an infinity or NaN, the result may be NaN.
//!
//! With D = rowsum(dY ⊙ Y): dV = Aᵀ dY, dA = dY Vᵀ, dS = A ⊙ (dA − D), dQ = scale · dS K, dK = scale · dSᵀ Q; dS is the
//! gradient of the bias. Gradients of equal arguments add up.
//!
//! Sources: A. Vaswani et al., "Attention is all you need" (NeurIPS 2017); T. Dao et al., "FlashAttention" (NeurIPS
//! 2022); O. Press et al., "Train short, test long" (ICLR 2022) for ALiBi; J. Ainslie et al., "GQA" (EMNLP 2023).
//!
//! # Which path runs when
//!
//! | call | path |
//! | --- | --- |
//! | forward, at most 8 queries for each head of keys, rows of keys and values contiguous and whole vectors, neither `linear` nor `dropout` | decode: pieces of keys in parallel, each key and value read once |
//! | forward otherwise | panels of queries over blocks of keys, the softmax corrected from block to block |
//! | backward | blocks of keys over blocks of queries, scores computed again; panel by panel where positions hide part of a block |
//!
//! No memory grows with queries × keys but that of [`scores`](Attention::scores). The result has the same bits for any number of threads.
#![forbid(unsafe_code)]

mod backward;
mod cache;
mod decode;
mod dropout;
mod forward;
mod kernel;
mod kernels;
mod plan;
mod scores;
mod stage;

pub use self::cache::KvCache;
pub(crate) use self::decode::Decode;
pub(crate) use self::kernel::Scores;
pub(crate) use self::kernels::Attends;
pub use self::stage::Stage;

use self::backward::Backward;
use self::dropout::Dropout;
use self::forward::{Forward, Outputs};
use self::plan::Plan;
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Where the positions of queries and keys meet, if there are more of one than of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Align {
    /// The first query stands at the first key: query i at key i. PyTorch's `is_causal`.
    Start,
    /// The last query stands at the last key of its entry: query i at key i + keys − queries. Decoding with a cache.
    End,
    /// The first query stands at this key: query i at key i + position, whatever the number of keys.
    At(usize),
}

/// Options of attention: plain data. The [module](self) has the formulas.
///
/// ```
/// use tilewise::{Tensor, attention::{Align, Attention}};
/// let x = Tensor::<f32, 4>::from_fn([1, 2, 3, 4], |[_, h, i, d]| (h + i * d) as f32)?;
/// let y = Attention::new().causal(Align::Start).forward(x.view(), x.view(), x.view())?;
/// // The first query sees the first key alone.
/// assert_eq!(y.as_slice()[..4], x.as_slice()[..4]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Attention<'e, T> {
    scale: Option<T>,
    soft_cap: Option<T>,
    slopes: Option<TensorView<'e, T, 1>>,
    bias: Option<TensorView<'e, T, 4>>,
    mask: Option<TensorView<'e, bool, 4>>,
    causal: Option<Align>,
    window: Option<usize>,
    align: Option<Align>,
    lengths: Option<&'e [usize]>,
    dropout: Option<Dropout>,
    linear: bool,
}

/// What [`Attention::forward_saving`] gives.
pub struct Attended<T> {
    /// Y, `[batch, heads, queries, value_dim]`.
    pub output: Tensor<T, 4>,
    /// ln Σ e^S of each query, −∞ where no key is left; with [`linear`](Attention::linear) Σ S. `[batch, heads, queries]`.
    pub normalizer: Tensor<T, 3>,
}

/// The gradients of attention, from [`Attention::backward`].
pub struct AttentionGradients<T> {
    /// dQ, `[batch, heads, queries, dim]`.
    pub query: Tensor<T, 4>,
    /// dK, `[batch, kv_heads, keys, dim]`.
    pub key: Tensor<T, 4>,
    /// dV, `[batch, kv_heads, keys, value_dim]`.
    pub value: Tensor<T, 4>,
}

/// Where [`Attention::backward_into`] writes; what is `None` is not computed.
pub struct AttentionGradientsMut<'a, T> {
    /// dQ, `[batch, heads, queries, dim]`.
    pub query: Option<TensorViewMut<'a, T, 4>>,
    /// dK, `[batch, kv_heads, keys, dim]`.
    pub key: Option<TensorViewMut<'a, T, 4>>,
    /// dV, `[batch, kv_heads, keys, value_dim]`.
    pub value: Option<TensorViewMut<'a, T, 4>>,
    /// The gradient of the [`bias`](Attention::bias), in its shape: dS, summed where the bias was broadcast.
    pub bias: Option<TensorViewMut<'a, T, 4>>,
}

impl<T: Element> Default for Attention<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'e, T: Element> Attention<'e, T> {
    /// softmax(Q Kᵀ / √dim) V.
    pub fn new() -> Self {
        Self {
            scale: None,
            soft_cap: None,
            slopes: None,
            bias: None,
            mask: None,
            causal: None,
            window: None,
            align: None,
            lengths: None,
            dropout: None,
            linear: false,
        }
    }

    /// The factor of Q Kᵀ; 1/√dim unless set.
    pub fn scale(self, scale: T) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// Scores become cap · tanh(score / cap), before anything is added. The cap is positive, and its square neither 0 nor
    /// infinite: from 2.7·10⁻²³ to 1.8·10¹⁹ in `f32`, from 1.6·10⁻¹⁶² to 1.3·10¹⁵⁴ in `f64`.
    pub fn soft_cap(self, cap: T) -> Self {
        Self { soft_cap: Some(cap), ..self }
    }

    /// − slope · |position of the query − position of the key| is added, with one slope a head.
    pub fn alibi(self, slopes: TensorView<'e, T, 1>) -> Self {
        Self { slopes: Some(slopes), ..self }
    }

    /// Added to the scores; broadcasts to `[batch, heads, queries, keys]`. −∞ hides a key.
    pub fn bias(self, bias: TensorView<'e, T, 4>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// True where a key may be attended to; broadcasts to `[batch, heads, queries, keys]`.
    pub fn mask(self, mask: TensorView<'e, bool, 4>) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// Keys behind a query's position are hidden. Positions are as `align` says, also for
    /// [`window`](Self::window) and [`alibi`](Self::alibi).
    pub fn causal(self, align: Align) -> Self {
        Self { causal: Some(align), ..self }
    }

    /// Keys `window` or more positions away are hidden, on both sides unless [`causal`](Self::causal) hides one.
    pub fn window(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }

    /// Where positions meet without [`causal`](Self::causal); [`Align::Start`] unless set.
    pub fn align(self, align: Align) -> Self {
        Self { align: Some(align), ..self }
    }

    /// How many keys each entry of the batch has; those behind are not read.
    pub fn key_lengths(self, lengths: &'e [usize]) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// Each weight becomes 0 with probability `rate`, decided by `seed` and its place alone; the others are divided by
    /// 1 − rate. Backward with the same seed finds the same weights.
    pub fn dropout(self, rate: f64, seed: u64) -> Self {
        Self { dropout: Some(Dropout { rate, seed }), ..self }
    }

    /// Weights are scores divided by their sum: dot-product attention without exponentials. Where the sum is 0 the
    /// result is what IEEE 754 makes of it.
    pub fn linear(self) -> Self {
        Self { linear: true, ..self }
    }

    /// What dropout multiplies the weight of `[batch, head, query, key]` by: 0 or 1/(1 − rate).
    ///
    /// ```
    /// use tilewise::attention::Attention;
    /// let options = Attention::<f64>::new().dropout(0.5, 7);
    /// let kept = (0..1000).filter(|&key| options.dropout_factor([0, 0, 0, key]) == 2.0).count();
    /// assert!((400..600).contains(&kept));
    /// ```
    pub fn dropout_factor(&self, [entry, head, query, key]: [usize; 4]) -> T {
        let Some(dropout) = self.dropout else { return T::ONE };
        let hash = dropout.row([entry, head, query]).hash(key as u32);
        if u64::from(hash) < dropout.threshold() { T::ZERO } else { dropout.factor() }
    }

    fn align_of_positions(&self) -> Align {
        self.causal.or(self.align).unwrap_or(Align::Start)
    }

    fn check(&self, op: &'static str) -> Result<()> {
        if self.window == Some(0) {
            return Err(Error::argument(op, "window", 0, "at least 1"));
        }
        // Farther out its product with 1/ln 2, or its inverse, overflows.
        if let Some(cap) = self.soft_cap
            && !(cap > T::ZERO && cap * cap > T::ZERO && (cap * cap).is_finite())
        {
            let expected = "positive, with a square that is neither 0 nor infinite";
            return Err(Error::argument(op, "soft_cap", cap, expected));
        }
        if let (Some(causal), Some(align)) = (self.causal, self.align)
            && causal != align
        {
            return Err(Error::argument(op, "align", format!("{align:?}"), "that of causal"));
        }
        self.dropout.map_or(Ok(()), |dropout| dropout.check(op))
    }

    /// Y from Q, K and V.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit or a mask does not broadcast, [`Error::Argument`] where the number of
    /// heads does not divide or an option has a value that it cannot have, [`Error::Alloc`] where there is no memory.
    pub fn forward(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
    ) -> Result<Tensor<T, 4>> {
        let plan = Plan::new("Attention::forward", self, q, k, v)?;
        let mut y = Tensor::zeros([plan.batch, plan.heads, plan.queries, plan.value_dim])?;
        T::attend(&plan, [q, k, v], y.view_mut(), None)?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
        y: TensorViewMut<'_, T, 4>,
    ) -> Result<()> {
        let plan = Plan::new("Attention::forward_into", self, q, k, v)?;
        expect(plan.op, "y", &y.shape(), &[plan.batch, plan.heads, plan.queries, plan.value_dim])?;
        T::attend(&plan, [q, k, v], y, None)
    }

    /// [`forward`](Self::forward) with what backward needs.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_saving(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
    ) -> Result<Attended<T>> {
        let plan = Plan::new("Attention::forward_saving", self, q, k, v)?;
        let rows = [plan.batch, plan.heads, plan.queries];
        let mut output = Tensor::zeros([plan.batch, plan.heads, plan.queries, plan.value_dim])?;
        let mut normalizer = Tensor::zeros(rows)?;
        T::attend(&plan, [q, k, v], output.view_mut(), Some(normalizer.view_mut()))?;
        Ok(Attended { output, normalizer })
    }

    /// [`forward_saving`](Self::forward_saving) into the caller's tensors, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_saving_into(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
        y: TensorViewMut<'_, T, 4>,
        normalizer: TensorViewMut<'_, T, 3>,
    ) -> Result<()> {
        let plan = Plan::new("Attention::forward_saving_into", self, q, k, v)?;
        let rows = [plan.batch, plan.heads, plan.queries];
        expect(plan.op, "y", &y.shape(), &[plan.batch, plan.heads, plan.queries, plan.value_dim])?;
        expect(plan.op, "normalizer", &normalizer.shape(), &rows)?;
        T::attend(&plan, [q, k, v], y, Some(normalizer))
    }

    /// dQ, dK and dV from what [`forward_saving`](Self::forward_saving) gave for the same arguments, and dY.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    ///
    /// ```
    /// use tilewise::{Tensor, attention::Attention};
    /// let q = Tensor::<f64, 4>::zeros([1, 1, 1, 1])?;
    /// let kv = Tensor::from_slice(&[1.0, 3.0], [1, 1, 2, 1])?;
    /// let options = Attention::new();
    /// let saved = options.forward_saving(q.view(), kv.view(), kv.view())?;
    /// assert_eq!(saved.output.as_slice(), [2.0]);
    /// let dy = Tensor::full([1, 1, 1, 1], 1.0)?;
    /// let gradients = options.backward(q.view(), kv.view(), kv.view(), &saved, dy.view())?;
    /// assert_eq!(gradients.value.as_slice(), [0.5, 0.5]);
    /// assert_eq!(gradients.query.as_slice(), [1.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
        saved: &Attended<T>,
        dy: TensorView<'_, T, 4>,
    ) -> Result<AttentionGradients<T>> {
        let plan = Plan::new("Attention::backward", self, q, k, v)?;
        let (y, normalizer) = (saved.output.view(), saved.normalizer.view());
        check_backward(&plan, y, normalizer, dy)?;
        let [mut query, mut key, mut value] =
            [Tensor::zeros(q.shape())?, Tensor::zeros(k.shape())?, Tensor::zeros(v.shape())?];
        let gradients = AttentionGradientsMut {
            query: Some(query.view_mut()),
            key: Some(key.view_mut()),
            value: Some(value.view_mut()),
            bias: None,
        };
        T::attend_backward(Backward { plan: &plan, q, k, v, y, normalizer, dy }, gradients)?;
        Ok(AttentionGradients { query, key, value })
    }

    /// [`backward`](Self::backward) into the caller's tensors, whose old contents are not read, with any of the
    /// gradients and that of the bias.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Argument`] where the gradient of a bias is asked for and there is
    /// none.
    #[allow(clippy::too_many_arguments, reason = "what went in, what came out and what is wanted")]
    pub fn backward_into(
        &self,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
        y: TensorView<'_, T, 4>,
        normalizer: TensorView<'_, T, 3>,
        dy: TensorView<'_, T, 4>,
        gradients: AttentionGradientsMut<'_, T>,
    ) -> Result<()> {
        let plan = Plan::new("Attention::backward_into", self, q, k, v)?;
        check_backward(&plan, y, normalizer, dy)?;
        for (arg, gradient, like) in [
            ("gradients.query", &gradients.query, q.shape()),
            ("gradients.key", &gradients.key, k.shape()),
            ("gradients.value", &gradients.value, v.shape()),
        ] {
            if let Some(gradient) = gradient {
                expect(plan.op, arg, &gradient.shape(), &like)?;
            }
        }
        match (&gradients.bias, self.bias) {
            (Some(gradient), Some(bias)) => {
                expect(plan.op, "gradients.bias", &gradient.shape(), &bias.shape())?;
            }
            (Some(_), None) => {
                return Err(Error::argument(plan.op, "gradients.bias", "given", "None without a bias"));
            }
            (None, _) => {}
        }
        T::attend_backward(Backward { plan: &plan, q, k, v, y, normalizer, dy }, gradients)
    }
}

fn check_backward<T: Element>(
    plan: &Plan<'_, T>,
    y: TensorView<'_, T, 4>,
    normalizer: TensorView<'_, T, 3>,
    dy: TensorView<'_, T, 4>,
) -> Result<()> {
    let shape = [plan.batch, plan.heads, plan.queries, plan.value_dim];
    expect(plan.op, "y", &y.shape(), &shape)?;
    expect(plan.op, "normalizer", &normalizer.shape(), &shape[..3])?;
    expect(plan.op, "dy", &dy.shape(), &shape)
}

fn run_backward<T: Element>(
    call: Backward<'_, '_, T>,
    mut gradients: AttentionGradientsMut<'_, T>,
) -> Result<()> {
    let plan = call.plan;
    let all = [&gradients.query, &gradients.key, &gradients.value, &gradients.bias];
    if all.into_iter().flatten().all(|gradient| gradient.is_empty()) {
        return Ok(()); // the other sizes may be anything
    }
    if call.dy.is_empty() || plan.keys == 0 {
        let all = [&mut gradients.query, &mut gradients.key, &mut gradients.value, &mut gradients.bias];
        all.into_iter().flatten().for_each(|gradient| gradient.fill(T::ZERO));
        return Ok(());
    }
    let AttentionGradientsMut { query, key, value, bias } = gradients;
    let tasks = call.run(backward::Outputs { query, key, value }, bias)?;
    machine::trace(|| {
        let (shape, isa) =
            ([plan.batch, plan.heads, plan.queries, plan.keys, plan.dim, plan.value_dim], plan.isa);
        format!("{} {shape:?} {} {isa} tasks {tasks}", plan.op, T::NAME)
    });
    Ok(())
}

fn run<T: Element>(
    plan: &Plan<'_, T>,
    [q, k, v]: [TensorView<'_, T, 4>; 3],
    y: TensorViewMut<'_, T, 4>,
    mut normalizer: Option<TensorViewMut<'_, T, 3>>,
) -> Result<()> {
    if y.is_empty() {
        let Some(normalizer) = normalizer.as_mut().filter(|normalizer| !normalizer.is_empty()) else {
            return Ok(()); // the other sizes may be anything
        };
        if plan.dim == 0 && plan.adds_nothing() {
            plan.count(normalizer);
            return Ok(());
        }
    }
    let outputs = Outputs { y, normalizer };
    let (path, tasks) = if decode::takes(plan, k, v) {
        ("decode", decode::run(plan, q, k, v, outputs)?)
    } else {
        ("tiles", Forward { plan, q, k, v }.run(outputs)?)
    };
    machine::trace(|| {
        let (shape, isa) =
            ([plan.batch, plan.heads, plan.queries, plan.keys, plan.dim, plan.value_dim], plan.isa);
        format!("{} {shape:?} {} {isa} path {path} tasks {tasks}", plan.op, T::NAME)
    });
    Ok(())
}
