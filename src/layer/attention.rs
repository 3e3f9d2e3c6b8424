//! Multi-head attention.

mod parts;

use self::parts::Parts;
use super::describe::debug;
use super::feed_forward::rows;
use super::{Init, Layer, Parameter, Parameters, Rotary, not_called};
use crate::attention::{Align, Attended, Attention, AttentionGradientsMut, KvCache, Stage};
use crate::element::Element;
use crate::error::{Dims, Error, Result, expect};
use crate::linear::{Dense, DenseGradientsMut};
use crate::random::{self, Rng};
use crate::tensor::{Tensor, TensorView};

/// Attention over heads, with projections before and after: Y = concat(headₕ) Woᵀ + bo, headₕ = att(Qₕ, Kₕ, Vₕ), where Q, K
/// and V are X Wᵀ + b and its parts.
///
/// Takes and gives `[batch, length, width]`. Weights have PyTorch's order and names: `in_proj_weight`
/// `[(heads + 2 · kv_heads) · head_dim, width]` holds the rows of Q, of K and of V one after the other, each head's rows
/// together; `out_proj.weight` is `[width, heads · head_dim]`. Keys and values come from the same sequence in
/// [`Layer::forward`], from another in [`forward_cross`](Self::forward_cross), and from the positions so far in
/// [`decode`](Self::decode).
///
/// ```
/// use tilewise::attention::{Align, KvCache};
/// use tilewise::layer::{Layer, MultiHeadAttention};
/// use tilewise::{Tensor, random::Rng};
/// let layer = MultiHeadAttention::<f32>::new(32, 4, &mut Rng::seed(1))?.causal(Align::Start);
/// let x = Tensor::from_fn([1, 3, 32], |[_, i, d]| (i * d % 7) as f32 / 7.0)?;
/// let y = layer.infer(x.view())?;
/// let mut cache = layer.cache(1, 16)?;
/// for i in 0..3 {
///     let step = layer.decode(x.view().slice(1, i..i + 1, 1)?, &mut cache)?;
///     assert!(step.view().all_close(y.view().slice(1, i..i + 1, 1)?, 1e-5, 1e-5));
/// }
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct MultiHeadAttention<T> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    in_weight: Parameter<T>,
    in_bias: Option<Parameter<T>>,
    out_weight: Parameter<T>,
    out_bias: Option<Parameter<T>>,
    causal: Option<Align>,
    rotary: Option<Rotary<T>>,
    /// Rate and seed.
    dropout: Option<(f64, u64)>,
    /// Calls in training so far.
    calls: u64,
    saved: Option<Call<T>>,
}

/// A call's inputs and their projections.
struct Inputs<T> {
    shape: [usize; 3],
    /// Positions of what keys and values come from.
    keys: usize,
    x: Tensor<T, 2>,
    /// The other sequence.
    context: Option<Tensor<T, 2>>,
    /// Q, K and V side by side, or Q alone.
    projected: Tensor<T, 2>,
    /// K and V of the other sequence.
    projected_context: Option<Tensor<T, 2>>,
}

/// What `forward` keeps.
struct Call<T> {
    inputs: Inputs<T>,
    attended: Attended<T>,
    /// Rate and seed of this call.
    dropout: Option<(f64, u64)>,
}

impl<T: Element> MultiHeadAttention<T> {
    /// `heads` heads over `width`, which they divide; biases are 0.
    ///
    /// # Errors
    /// [`Error::Argument`] where `heads` does not divide `width`, [`Error::Alloc`] where there is no memory.
    pub fn new(width: usize, heads: usize, rng: &mut Rng) -> Result<Self> {
        Self::grouped(width, heads, heads, rng)
    }

    /// As [`new`](Self::new), with fewer heads of keys and values, which divide `heads`.
    ///
    /// # Errors
    /// [`Error::Argument`] where a number of heads does not divide, [`Error::Alloc`] where there is no memory.
    pub fn grouped(width: usize, heads: usize, kv_heads: usize, rng: &mut Rng) -> Result<Self> {
        let op = "MultiHeadAttention::new";
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::argument(op, "heads", heads, "a divisor of the width"));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::argument(op, "kv_heads", kv_heads, "a divisor of heads"));
        }
        let head_dim = width / heads;
        let overflow = || Error::Overflow { op, shape: Dims::new(&[width, heads, kv_heads]) };
        let both = kv_heads.checked_mul(2).and_then(|heads| heads.checked_mul(head_dim));
        let rows = both.and_then(|both| both.checked_add(width)).ok_or_else(overflow)?;
        let (mut in_weight, mut out_weight) = (Tensor::zeros([rows, width])?, Tensor::zeros([width, width])?);
        Init::xavier_uniform().fill(in_weight.as_mut_slice(), width, rows, rng);
        Init::xavier_uniform().fill(out_weight.as_mut_slice(), width, width, rng);
        let (in_bias, out_bias) = (Tensor::zeros([rows])?, Tensor::zeros([width])?);
        Self::from_parts([heads, kv_heads], in_weight, Some(in_bias), out_weight, Some(out_bias))
    }

    /// A layer with these weights, `[(heads + 2 · kv_heads) · head_dim, width]` and `[width, heads · head_dim]`, and
    /// biases. The size of a head follows.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Argument`] where they do not fit each other, [`Error::Alloc`] where there is no
    /// memory for the gradients.
    pub fn from_parts(
        [heads, kv_heads]: [usize; 2],
        in_weight: Tensor<T, 2>,
        in_bias: Option<Tensor<T, 1>>,
        out_weight: Tensor<T, 2>,
        out_bias: Option<Tensor<T, 1>>,
    ) -> Result<Self> {
        let op = "MultiHeadAttention::from_parts";
        if heads == 0 {
            return Err(Error::argument(op, "heads", heads, "at least 1"));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::argument(op, "kv_heads", kv_heads, "a divisor of heads"));
        }
        let ([rows, width], all) = (in_weight.shape(), kv_heads.saturating_mul(2).saturating_add(heads));
        if !rows.is_multiple_of(all) {
            return Err(Error::argument(op, "rows of in_weight", rows, "a multiple of heads + 2 · kv_heads"));
        }
        let head_dim = rows / all;
        expect(op, "out_weight", &out_weight.shape(), &[width, heads * head_dim])?;
        if let Some(bias) = &in_bias {
            expect(op, "in_bias", &bias.shape(), &[rows])?;
        }
        if let Some(bias) = &out_bias {
            expect(op, "out_bias", &bias.shape(), &[width])?;
        }
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
            in_weight: Parameter::new(in_weight)?,
            in_bias: in_bias.map(Parameter::new).transpose()?,
            out_weight: Parameter::new(out_weight)?,
            out_bias: out_bias.map(Parameter::new).transpose()?,
            causal: None,
            rotary: None,
            dropout: None,
            calls: 0,
            saved: None,
        })
    }

    /// A layer from three projections `[rows, width]`, each with the rows of its heads one after the other.
    ///
    /// # Errors
    /// As [`from_parts`](Self::from_parts).
    ///
    /// ```
    /// use tilewise::layer::{Layer, MultiHeadAttention};
    /// use tilewise::{Tensor, TensorView};
    /// let unit = [1.0, 0.0, 0.0, 1.0];
    /// let unit = TensorView::from_slice(&unit, [2, 2])?;
    /// let layer = MultiHeadAttention::<f64>::from_projections([1, 1], [unit; 3], unit.to_tensor()?)?;
    /// // Each position finds two that are like itself.
    /// let x = Tensor::full([1, 2, 2], 3.0)?;
    /// assert_eq!(layer.infer(x.view())?, x);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_projections(
        heads: [usize; 2],
        [query, key, value]: [TensorView<'_, T, 2>; 3],
        out_weight: Tensor<T, 2>,
    ) -> Result<Self> {
        let op = "MultiHeadAttention::from_projections";
        let [q_rows, width] = query.shape();
        if heads[0] == 0 || !q_rows.is_multiple_of(heads[0]) {
            let value = format!("{q_rows} of {} heads", heads[0]);
            return Err(Error::argument(op, "rows of query", value, "a multiple of heads"));
        }
        let kv_rows = (q_rows / heads[0]).saturating_mul(heads[1]);
        for (arg, view) in [("key", key), ("value", value)] {
            expect(op, arg, &view.shape(), &[kv_rows, width])?;
        }
        let mut all = Tensor::zeros([q_rows.saturating_add(kv_rows.saturating_mul(2)), width])?;
        for (first, view) in [(0, query), (q_rows, key), (q_rows + kv_rows, value)] {
            all.view_mut().slice(0, first..first + view.shape()[0], 1)?.assign(view)?;
        }
        Self::from_parts(heads, all, None, out_weight, None)
    }

    /// Keys behind a query's position are hidden. What `forward` has kept of a call without this is dropped.
    pub fn causal(self, align: Align) -> Self {
        Self { causal: Some(align), saved: None, ..self }
    }

    /// Queries and keys are turned by their positions. What `forward` has kept of a call without this is dropped.
    pub fn rotary(self, rotary: Rotary<T>) -> Self {
        Self { rotary: Some(rotary), saved: None, ..self }
    }

    /// Dropout of the weights while training: each becomes 0 with this probability, and the others are divided by 1 −
    /// `probability`. Which do depends on the seed, the number of the call and their places alone.
    ///
    /// # Errors
    /// [`Error::Argument`] where the probability is not at least 0 and less than 1.
    pub fn dropout(self, probability: f64, seed: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            let op = "MultiHeadAttention::dropout";
            return Err(Error::argument(op, "probability", probability, "at least 0 and less than 1"));
        }
        Ok(Self { dropout: (probability > 0.0).then_some((probability, seed)), ..self })
    }

    /// An empty cache for [`decode`](Self::decode), with room for `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache<T>> {
        KvCache::new([batch, self.kv_heads], capacity, [self.head_dim; 2])
    }

    fn columns(&self) -> [usize; 2] {
        [self.heads * self.head_dim, self.kv_heads * self.head_dim]
    }

    /// Rows of the input projection from `first` on, of `x`.
    fn project(&self, x: &Tensor<T, 2>, rows: std::ops::Range<usize>) -> Result<Tensor<T, 2>> {
        let weight = self.in_weight.view::<2>()?.slice(0, rows.clone(), 1)?;
        let bias = match &self.in_bias {
            Some(bias) => Some(bias.view::<1>()?.slice(0, rows, 1)?),
            None => None,
        };
        Dense::new().forward(x.view(), weight.transpose(), bias)
    }

    /// The output projection of heads `[batch, length, heads · head_dim]`.
    fn output(&self, attended: &Tensor<T, 4>, shape: [usize; 3]) -> Result<Tensor<T, 3>> {
        let heads = attended.view().permute([0, 2, 1, 3])?;
        let rows = heads.to_tensor()?.reshape([shape[0] * shape[1], self.columns()[0]])?;
        let bias = self.out_bias.as_ref().map(Parameter::view::<1>).transpose()?;
        Dense::new().forward(rows.view(), self.out_weight.view::<2>()?.transpose(), bias)?.reshape(shape)
    }

    fn options(&self, dropout: Option<(f64, u64)>) -> Attention<'static, T> {
        let options = self.causal.map_or(Attention::new(), |align| Attention::new().causal(align));
        dropout.map_or(options, |(rate, seed)| options.dropout(rate, seed))
    }

    /// That a tensor has the layer's width, and the parameters their shapes: they may have been exchanged.
    fn check(&self, op: &'static str, arg: &'static str, shape: [usize; 3]) -> Result<()> {
        let ([_, width], [q, kv]) = (self.in_weight.view::<2>()?.shape(), self.columns());
        let rows = q + 2 * kv;
        let bias = |bias: &Option<Parameter<T>>, arg, len| {
            bias.as_ref().map_or(Ok(()), |bias| expect(op, arg, bias.shape(), &[len]))
        };
        expect(op, "in_weight", self.in_weight.shape(), &[rows, width])?;
        bias(&self.in_bias, "in_bias", rows)?;
        expect(op, "out_weight", self.out_weight.shape(), &[width, q])?;
        bias(&self.out_bias, "out_bias", width)?;
        expect(op, arg, &shape, &[shape[0], shape[1], width])
    }

    /// That the rotary encoding fits the heads and has so many positions.
    fn check_rotary(&self, op: &'static str, first: usize, length: usize) -> Result<()> {
        let Some(rotary) = &self.rotary else { return Ok(()) };
        rotary.check_dim(op, "a head", &[self.head_dim])?;
        rotary.check(op, first, length)
    }

    /// Checks both inputs, and projects them.
    fn inputs(
        &self,
        op: &'static str,
        x: TensorView<'_, T, 3>,
        context: Option<TensorView<'_, T, 3>>,
    ) -> Result<Inputs<T>> {
        let shape = x.shape();
        self.check(op, "x", shape)?;
        let keys = match context {
            Some(context) => {
                self.check(op, "context", context.shape())?;
                if context.shape()[0] != shape[0] {
                    let [_, length, width] = context.shape();
                    return Err(Error::shape(op, "context", &context.shape(), &[shape[0], length, width]));
                }
                context.shape()[1]
            }
            None => shape[1],
        };
        self.check_rotary(op, 0, shape[1].max(keys))?;
        let ([q_columns, kv_columns], x) = (self.columns(), rows(x)?);
        let all = q_columns + 2 * kv_columns;
        let context = context.map(rows).transpose()?;
        let mut projected = self.project(&x, 0..if context.is_some() { q_columns } else { all })?;
        let mut projected_context =
            context.as_ref().map(|context| self.project(context, q_columns..all)).transpose()?;
        if let Some(rotary) = &self.rotary {
            let parts = Parts { layer: self, batch: shape[0], queries: shape[1], keys };
            let [q, k, _] = parts.split_mut(&mut projected, projected_context.as_mut())?;
            rotary.apply(q, 0)?;
            rotary.apply(k, 0)?;
        }
        Ok(Inputs { shape, keys, x, context, projected, projected_context })
    }

    fn run(
        &self,
        op: &'static str,
        x: TensorView<'_, T, 3>,
        context: Option<TensorView<'_, T, 3>>,
        dropout: Option<(f64, u64)>,
    ) -> Result<(Tensor<T, 3>, Call<T>)> {
        let inputs = self.inputs(op, x, context)?;
        let [q, k, v] = self.heads(&inputs)?;
        let attended = self.options(dropout).forward_saving(q, k, v)?;
        let y = self.output(&attended.output, inputs.shape)?;
        Ok((y, Call { inputs, attended, dropout }))
    }

    /// Q, K and V.
    fn heads<'v>(&self, inputs: &'v Inputs<T>) -> Result<[TensorView<'v, T, 4>; 3]> {
        let Inputs { shape, keys, ref projected, ref projected_context, .. } = *inputs;
        let parts = Parts { layer: self, batch: shape[0], queries: shape[1], keys };
        parts.split(projected, projected_context.as_ref())
    }

    /// [`run`](Self::run) in training, with weights of its own that are dropped.
    fn train(
        &mut self,
        op: &'static str,
        x: TensorView<'_, T, 3>,
        context: Option<TensorView<'_, T, 3>>,
    ) -> Result<Tensor<T, 3>> {
        let dropout = self.dropout.map(|(rate, seed)| (rate, random::at(seed, self.calls)));
        let (y, call) = self.run(op, x, context, dropout)?;
        self.calls = self.calls.wrapping_add(1);
        self.saved = Some(call);
        Ok(y)
    }

    /// As [`Layer::forward`], with keys and values from `context`, `[batch, keys, width]`.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    ///
    /// ```
    /// use tilewise::{Tensor, layer::MultiHeadAttention, random::Rng};
    /// let mut layer = MultiHeadAttention::<f64>::new(8, 2, &mut Rng::seed(1))?;
    /// let (x, context) = (Tensor::full([1, 3, 8], 0.5)?, Tensor::full([1, 5, 8], 0.25)?);
    /// let y = layer.forward_cross(x.view(), context.view())?;
    /// assert_eq!(y, layer.infer_cross(x.view(), context.view())?);
    /// let (dx, dcontext) = layer.backward_cross(y.view())?;
    /// assert_eq!((dx.shape(), dcontext.map(|d| d.shape())), ([1, 3, 8], Some([1, 5, 8])));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_cross(
        &mut self,
        x: TensorView<'_, T, 3>,
        context: TensorView<'_, T, 3>,
    ) -> Result<Tensor<T, 3>> {
        self.train("MultiHeadAttention::forward_cross", x, Some(context))
    }

    /// As [`Layer::infer`], with keys and values from `context`, `[batch, keys, width]`.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn infer_cross(
        &self,
        x: TensorView<'_, T, 3>,
        context: TensorView<'_, T, 3>,
    ) -> Result<Tensor<T, 3>> {
        Ok(self.run("MultiHeadAttention::infer_cross", x, Some(context), None)?.0)
    }

    /// The weights that each query of `x` has for each key of `x`, `[batch, heads, length, length]`, to look at: what
    /// [`Layer::infer`] gives does without this memory.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    ///
    /// ```
    /// use tilewise::{Tensor, attention::Align, layer::MultiHeadAttention, random::Rng};
    /// let layer = MultiHeadAttention::<f64>::new(4, 1, &mut Rng::seed(1))?.causal(Align::Start);
    /// let weights = layer.weights(Tensor::full([1, 2, 4], 0.5)?.view())?;
    /// assert_eq!(weights.as_slice(), [1.0, 0.0, 0.5, 0.5]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn weights(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 4>> {
        let inputs = self.inputs("MultiHeadAttention::weights", x, None)?;
        let [q, k, _] = self.heads(&inputs)?;
        self.options(None).scores(q, k, Stage::Weights)
    }

    /// The next positions `[batch, n, width]`, which follow those in the cache and are appended to it; each attends to all
    /// up to itself.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where the cache has no room or the rotary encoding no
    /// position, [`Error::Alloc`] where there is no memory; the cache then holds what it held.
    pub fn decode(&self, x: TensorView<'_, T, 3>, cache: &mut KvCache<T>) -> Result<Tensor<T, 3>> {
        let (op, shape) = ("MultiHeadAttention::decode", x.shape());
        self.check(op, "x", shape)?;
        self.check_rotary(op, cache.len(), shape[1])?;
        let parts = Parts { layer: self, batch: shape[0], queries: shape[1], keys: shape[1] };
        let [q_columns, kv_columns] = self.columns();
        let mut projected = self.project(&rows(x)?, 0..q_columns + 2 * kv_columns)?;
        if let Some(rotary) = &self.rotary {
            let [q, k, _] = parts.split_mut(&mut projected, None)?;
            rotary.apply(q, cache.len())?;
            rotary.apply(k, cache.len())?;
        }
        let [q, k, v] = parts.split(&projected, None)?;
        cache.attempt(|cache| {
            cache.append(k, v)?;
            let attended = Attention::new().causal(Align::End).forward(q, cache.keys()?, cache.values()?)?;
            self.output(&attended, shape)
        })
    }

    /// Gradients for `x` and, after [`forward_cross`](Self::forward_cross), for the context, from that for the output.
    ///
    /// # Errors
    /// As [`Layer::backward`].
    ///
    /// ```
    /// use tilewise::layer::{Layer, MultiHeadAttention};
    /// use tilewise::{Tensor, random::Rng};
    /// let mut layer = MultiHeadAttention::<f64>::new(8, 2, &mut Rng::seed(1))?;
    /// let y = layer.forward(Tensor::full([1, 3, 8], 0.5)?.view())?;
    /// let (dx, none) = layer.backward_cross(y.view())?;
    /// assert!(dx == layer.backward(y.view())? && none.is_none());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_cross(
        &mut self,
        dy: TensorView<'_, T, 3>,
    ) -> Result<(Tensor<T, 3>, Option<Tensor<T, 3>>)> {
        let op = "MultiHeadAttention::backward";
        let call = self.saved.take().ok_or_else(|| not_called(op))?;
        let gradients = self.gradients(op, &call, dy);
        // What was kept stays.
        self.saved = Some(call);
        gradients
    }

    /// An error unless dY fits the call that was kept, and parameters are as they were.
    fn check_call(&self, op: &'static str, call: &Call<T>, dy: [usize; 3]) -> Result<()> {
        expect(op, "dy", &dy, &call.inputs.shape)?;
        self.check(op, "dy", dy)
    }

    fn gradients(
        &mut self,
        op: &'static str,
        call: &Call<T>,
        dy: TensorView<'_, T, 3>,
    ) -> Result<(Tensor<T, 3>, Option<Tensor<T, 3>>)> {
        let Call { inputs, attended, dropout } = call;
        let Inputs { shape, keys, x, context, projected, projected_context } = inputs;
        self.check_call(op, call, dy.shape())?;
        let (dy, [q_columns, kv_columns]) = (rows(dy)?, self.columns());
        // First what can fail for lack of memory, then what adds to gradients.
        let heads = attended.output.view().permute([0, 2, 1, 3])?.to_tensor()?;
        let heads = heads.reshape([shape[0] * shape[1], q_columns])?;
        let dheads = Dense::new().backward_input(dy.view(), self.out_weight.view::<2>()?.transpose())?;
        let dheads = dheads.view().reshape([shape[0], shape[1], self.heads, self.head_dim])?;
        let mut dprojected = Tensor::zeros(projected.shape())?;
        let mut dcontext =
            projected_context.as_ref().map(|context| Tensor::zeros(context.shape())).transpose()?;
        let parts = Parts { layer: self, batch: shape[0], queries: shape[1], keys: *keys };
        let [q, k, v] = self.heads(inputs)?;
        let [dq, dk, dv] = parts.split_mut(&mut dprojected, dcontext.as_mut())?;
        let gradients = AttentionGradientsMut { query: Some(dq), key: Some(dk), value: Some(dv), bias: None };
        let (y, normalizer) = (attended.output.view(), attended.normalizer.view());
        let dheads = dheads.permute([0, 2, 1, 3])?;
        self.options(*dropout).backward_into(q, k, v, y, normalizer, dheads, gradients)?;
        if let Some(rotary) = &self.rotary {
            let [dq, dk, _] = parts.split_mut(&mut dprojected, dcontext.as_mut())?;
            rotary.revert(dq, 0)?;
            rotary.revert(dk, 0)?;
        }
        let all = q_columns + 2 * kv_columns;
        let split = if context.is_some() { q_columns } else { all };
        let weight = self.in_weight.view::<2>()?;
        let part = |rows: std::ops::Range<usize>| weight.slice(0, rows, 1).map(TensorView::transpose);
        let dx = Dense::new().backward_input(dprojected.view(), part(0..split)?)?.reshape(*shape)?;
        let dcontext_out = match &dcontext {
            Some(d) => {
                let d = Dense::new().backward_input(d.view(), part(split..all)?)?;
                Some(d.reshape([shape[0], *keys, shape[2]])?)
            }
            None => None,
        };
        accumulate(&mut self.out_weight, self.out_bias.as_mut(), 0..shape[2], &heads, &dy)?;
        accumulate(&mut self.in_weight, self.in_bias.as_mut(), 0..split, x, &dprojected)?;
        if let (Some(context), Some(d)) = (context, &dcontext) {
            accumulate(&mut self.in_weight, self.in_bias.as_mut(), split..all, context, d)?;
        }
        Ok((dx, dcontext_out))
    }
}

/// Adds to the gradients of some rows of a weight `[outputs, inputs]` and of its bias.
fn accumulate<T: Element>(
    weight: &mut Parameter<T>,
    bias: Option<&mut Parameter<T>>,
    rows: std::ops::Range<usize>,
    x: &Tensor<T, 2>,
    dz: &Tensor<T, 2>,
) -> Result<()> {
    let (value, gradient) = weight.views::<2>()?;
    let bias = match bias {
        Some(bias) => Some(bias.gradient_view_mut::<1>()?.slice(0, rows.clone(), 1)?),
        None => None,
    };
    let gradient = gradient.slice(0, rows.clone(), 1)?.transpose();
    let gradients = DenseGradientsMut { input: None, weight: Some(gradient), bias };
    let value = value.slice(0, rows, 1)?.transpose();
    Dense::new().backward_into(x.view(), value, dz.view(), T::ONE, gradients)
}

debug!([T: Element] MultiHeadAttention<T>, "MultiHeadAttention", heads, kv_heads, head_dim, causal, rotary, dropout);

impl<T: Element> Parameters<T> for MultiHeadAttention<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        f("in_proj_weight", &self.in_weight);
        if let Some(bias) = &self.in_bias {
            f("in_proj_bias", bias);
        }
        f("out_proj.weight", &self.out_weight);
        if let Some(bias) = &self.out_bias {
            f("out_proj.bias", bias);
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        f("in_proj_weight", &mut self.in_weight);
        if let Some(bias) = &mut self.in_bias {
            f("in_proj_bias", bias);
        }
        f("out_proj.weight", &mut self.out_weight);
        if let Some(bias) = &mut self.out_bias {
            f("out_proj.bias", bias);
        }
    }
}

impl<T: Element> Layer<T, 3, 3> for MultiHeadAttention<T> {
    fn check_forward(&self, x: [usize; 3]) -> Result<[usize; 3]> {
        let op = "MultiHeadAttention::forward";
        self.check(op, "x", x)?;
        self.check_rotary(op, 0, x[1])?;
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; 3]) -> Result<[usize; 3]> {
        let op = "MultiHeadAttention::backward";
        self.check_call(op, self.saved.as_ref().ok_or_else(|| not_called(op))?, dy)?;
        Ok(dy)
    }

    fn forward(&mut self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.train("MultiHeadAttention::forward", x, None)
    }

    fn infer(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        Ok(self.run("MultiHeadAttention::infer", x, None, None)?.0)
    }

    /// After [`forward_cross`](MultiHeadAttention::forward_cross) that for `x`, while that for the context is dropped.
    fn backward(&mut self, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        Ok(self.backward_cross(dy)?.0)
    }
}
