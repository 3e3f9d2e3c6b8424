//! A block of a transformer.

use super::describe::debug;
use super::{Dropout, FeedForward, Layer, LayerNorm, MultiHeadAttention, Parameter, Parameters, not_called};
use crate::activation::Activation;
use crate::attention::{Align, KvCache};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::random::{self, Rng};
use crate::tensor::{Tensor, TensorView};

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// x + f(norm(x)): trains without a warm-up.
    Pre,
    /// norm(x + f(x)), as in "Attention is all you need".
    Post,
}

/// Attention and a feed-forward part, each with a residual path and a normalisation: an encoder's block, or with
/// causal attention a decoder's, which can go on from a cache.
///
/// Takes and gives `[batch, length, width]`. Sources: A. Vaswani et al., "Attention is all you need" (NeurIPS 2017); R.
/// Xiong et al., "On layer normalization in the transformer architecture" (ICML 2020), for the order of normalisation.
///
/// ```
/// use tilewise::layer::{Layer, NormOrder, TransformerBlock};
/// use tilewise::{Tensor, random::Rng};
/// let mut rng = Rng::seed(1);
/// let decoder = TransformerBlock::<f32>::decoder(32, 4, 64, NormOrder::Pre, &mut rng)?;
/// let x = Tensor::from_fn([1, 3, 32], |[_, i, d]| (i * d % 7) as f32 / 7.0)?;
/// let y = decoder.infer(x.view())?;
/// let mut cache = decoder.cache(1, 8)?;
/// for i in 0..3 {
///     let step = decoder.decode(x.view().slice(1, i..i + 1, 1)?, &mut cache)?;
///     assert!(step.view().all_close(y.view().slice(1, i..i + 1, 1)?, 1e-4, 1e-4));
/// }
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct TransformerBlock<T> {
    attention: MultiHeadAttention<T>,
    feed_forward: FeedForward<T>,
    norms: [Box<dyn Layer<T, 3, 3> + Send + Sync>; 2],
    order: NormOrder,
    /// Of what the parts add to the residual path.
    dropouts: Option<[Dropout<T, 3>; 2]>,
    output: Option<[usize; 3]>,
}

impl<T: Element> TransformerBlock<T> {
    /// From parts: norms are those of attention and of the feed-forward part.
    pub fn from_parts(
        attention: MultiHeadAttention<T>,
        feed_forward: FeedForward<T>,
        norms: [Box<dyn Layer<T, 3, 3> + Send + Sync>; 2],
        order: NormOrder,
    ) -> Self {
        Self { attention, feed_forward, norms, order, dropouts: None, output: None }
    }

    /// An encoder's block with GELU and layer normalisation.
    ///
    /// # Errors
    /// [`Error::Argument`] where `heads` does not divide `width`, [`Error::Alloc`] where there is no memory.
    pub fn encoder(
        width: usize,
        heads: usize,
        hidden: usize,
        order: NormOrder,
        rng: &mut Rng,
    ) -> Result<Self> {
        // Where a part is refused, the generator stays as it was.
        let mut draws = rng.clone();
        let attention = MultiHeadAttention::new(width, heads, &mut draws)?;
        let feed_forward = FeedForward::new(width, hidden, Activation::Gelu, &mut draws)?;
        let norms: [Box<dyn Layer<T, 3, 3> + Send + Sync>; 2] =
            [Box::new(LayerNorm::new(width)?), Box::new(LayerNorm::new(width)?)];
        *rng = draws;
        Ok(Self::from_parts(attention, feed_forward, norms, order))
    }

    /// A decoder's block: causal attention, else as [`encoder`](Self::encoder).
    ///
    /// # Errors
    /// As [`encoder`](Self::encoder).
    pub fn decoder(
        width: usize,
        heads: usize,
        hidden: usize,
        order: NormOrder,
        rng: &mut Rng,
    ) -> Result<Self> {
        let block = Self::encoder(width, heads, hidden, order, rng)?;
        Ok(Self { attention: block.attention.causal(Align::Start), ..block })
    }

    /// Dropout while training, with one probability and different elements: of the weights of attention, of what goes
    /// into the second layer of the feed-forward part, and of what each part adds to the residual path. What `forward` has kept
    /// of a call without it is dropped.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::dropout`].
    pub fn dropout(self, probability: f64, seed: u64) -> Result<Self> {
        let seeds = [0, 1, 2, 3].map(|place| random::at(seed, place));
        Ok(Self {
            attention: self.attention.dropout(probability, seeds[0])?,
            feed_forward: self.feed_forward.dropout(probability, seeds[1])?,
            dropouts: Some([Dropout::new(probability, seeds[2])?, Dropout::new(probability, seeds[3])?]),
            output: None,
            ..self
        })
    }

    /// An empty cache for [`decode`](Self::decode), with room for `capacity` positions.
    ///
    /// # Errors
    /// [`Error::Alloc`] where there is no memory.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache<T>> {
        self.attention.cache(batch, capacity)
    }

    /// The next positions `[batch, n, width]`, which follow those in the cache and are appended to it.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::decode`].
    pub fn decode(&self, x: TensorView<'_, T, 3>, cache: &mut KvCache<T>) -> Result<Tensor<T, 3>> {
        cache.attempt(|cache| {
            let x = self.part(0, x, |x| self.attention.decode(x, cache))?;
            self.part(1, x.view(), |x| self.feed_forward.infer(x))
        })
    }

    /// The weights of attention for `x`, as [`MultiHeadAttention::weights`] has them.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn attention_weights(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 4>> {
        match self.order {
            NormOrder::Pre => self.attention.weights(self.norms[0].infer(x)?.view()),
            NormOrder::Post => self.attention.weights(x),
        }
    }

    /// All that has something to check.
    fn parts(&self) -> impl Iterator<Item = &dyn Layer<T, 3, 3>> {
        let norms = self.norms.iter().map(|norm| &**norm as &dyn Layer<T, 3, 3>);
        let dropouts = self.dropouts.iter().flatten().map(|dropout| dropout as &dyn Layer<T, 3, 3>);
        let parts: [&dyn Layer<T, 3, 3>; 2] = [&self.attention, &self.feed_forward];
        parts.into_iter().chain(norms).chain(dropouts)
    }

    /// One part with its residual path and normalisation.
    fn part(
        &self,
        number: usize,
        x: TensorView<'_, T, 3>,
        f: impl FnOnce(TensorView<'_, T, 3>) -> Result<Tensor<T, 3>>,
    ) -> Result<Tensor<T, 3>> {
        let norm = &self.norms[number];
        match self.order {
            NormOrder::Pre => add(f(norm.infer(x)?.view())?, x),
            NormOrder::Post => norm.infer(add(f(x)?, x)?.view()),
        }
    }

    /// [`part`](Self::part) in training.
    fn train_part(&mut self, number: usize, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        let (norm, order) = (&mut self.norms[number], self.order);
        let part: &mut dyn Layer<T, 3, 3> =
            if number == 0 { &mut self.attention } else { &mut self.feed_forward };
        let mut y = match order {
            NormOrder::Pre => part.forward(norm.forward(x)?.view())?,
            NormOrder::Post => part.forward(x)?,
        };
        if let Some(dropouts) = &mut self.dropouts {
            y = dropouts[number].forward(y.view())?;
        }
        let y = add(y, x)?;
        if order == NormOrder::Post { norm.forward(y.view()) } else { Ok(y) }
    }

    /// The gradient for what [`train_part`](Self::train_part) took.
    fn part_backward(&mut self, number: usize, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        let (norm, order) = (&mut self.norms[number], self.order);
        let part: &mut dyn Layer<T, 3, 3> =
            if number == 0 { &mut self.attention } else { &mut self.feed_forward };
        // The gradient for the sum with the residual path.
        let through = if order == NormOrder::Post { Some(norm.backward(dy)?) } else { None };
        let dsum = through.as_ref().map_or(dy, Tensor::view);
        let dropped = self.dropouts.as_mut().map(|dropouts| dropouts[number].backward(dsum)).transpose()?;
        let dx = part.backward(dropped.as_ref().map_or(dsum, Tensor::view))?;
        add(if order == NormOrder::Pre { norm.backward(dx.view())? } else { dx }, dsum)
    }
}

/// y + x.
fn add<T: Element>(mut y: Tensor<T, 3>, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
    if y.shape() != x.shape() {
        return Err(Error::shape("TransformerBlock", "a part's output", &y.shape(), &x.shape()));
    }
    match x.as_slice() {
        Some(x) => y.as_mut_slice().iter_mut().zip(x).for_each(|(y, &x)| *y += x),
        None => y.as_mut_slice().iter_mut().zip(x.iter()).for_each(|(y, &x)| *y += x),
    }
    Ok(y)
}

debug!([T: Element] TransformerBlock<T>, "TransformerBlock", order);

impl<T: Element> Parameters<T> for TransformerBlock<T> {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        self.attention.visit(&mut |name, parameter| f(&format!("attention.{name}"), parameter));
        self.feed_forward.visit(&mut |name, parameter| f(&format!("feed_forward.{name}"), parameter));
        for (number, norm) in self.norms.iter().enumerate() {
            norm.visit(&mut |name, parameter| f(&format!("norm{}.{name}", number + 1), parameter));
        }
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.attention.visit_mut(&mut |name, parameter| f(&format!("attention.{name}"), parameter));
        self.feed_forward.visit_mut(&mut |name, parameter| f(&format!("feed_forward.{name}"), parameter));
        for (number, norm) in self.norms.iter_mut().enumerate() {
            norm.visit_mut(&mut |name, parameter| f(&format!("norm{}.{name}", number + 1), parameter));
        }
    }
}

impl<T: Element> Layer<T, 3, 3> for TransformerBlock<T> {
    fn check_forward(&self, x: [usize; 3]) -> Result<[usize; 3]> {
        for part in self.parts() {
            // All lie on the residual path.
            expect("TransformerBlock::forward", "a part's output", &part.check_forward(x)?, &x)?;
        }
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; 3]) -> Result<[usize; 3]> {
        let op = "TransformerBlock::backward";
        expect(op, "dy", &dy, &self.output.ok_or_else(|| not_called(op))?)?;
        for part in self.parts() {
            part.check_backward(dy)?;
        }
        Ok(dy)
    }

    /// Where memory runs out in a part, those before it have kept the new input: [`backward`](Layer::backward) is then refused
    /// until `forward` has succeeded.
    fn forward(&mut self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.check_forward(x.shape())?;
        self.output = None;
        let x = self.train_part(0, x)?;
        let y = self.train_part(1, x.view())?;
        self.output = Some(y.shape());
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        let x = self.part(0, x, |x| self.attention.infer(x))?;
        self.part(1, x.view(), |x| self.feed_forward.infer(x))
    }

    fn backward(&mut self, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.check_backward(dy.shape())?;
        let dx = self.part_backward(1, dy)?;
        self.part_backward(0, dx.view())
    }
}
