//! A block of a transformer.

use super::{FeedForward, Layer, LayerNorm, MultiHeadAttention, Parameter, Parameters, not_called};
use crate::activation::Activation;
use crate::attention::{Align, KvCache};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::random::Rng;
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
        Self { attention, feed_forward, norms, order, output: None }
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
        let attention = MultiHeadAttention::new(width, heads, rng)?;
        let feed_forward = FeedForward::new(width, hidden, Activation::Gelu, rng)?;
        let norms: [Box<dyn Layer<T, 3, 3> + Send + Sync>; 2] =
            [Box::new(LayerNorm::new(width)?), Box::new(LayerNorm::new(width)?)];
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
        let attend = |x: TensorView<'_, T, 3>| self.attention.decode(x, cache);
        let x = self.part(0, x, attend)?;
        self.part(1, x.view(), |x| self.feed_forward.infer(x))
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

impl<T: Element> Parameters<T> for TransformerBlock<T> {
    fn visit(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        self.attention.visit(&mut |name, parameter| f(&format!("attention.{name}"), parameter));
        self.feed_forward.visit(&mut |name, parameter| f(&format!("feed_forward.{name}"), parameter));
        for (number, norm) in self.norms.iter_mut().enumerate() {
            norm.visit(&mut |name, parameter| f(&format!("norm{}.{name}", number + 1), parameter));
        }
    }
}

impl<T: Element> Layer<T, 3, 3> for TransformerBlock<T> {
    /// Where a part fails, those before it have kept the new input: [`backward`](Layer::backward) is then refused until
    /// `forward` has succeeded.
    fn forward(&mut self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        self.output = None;
        let [norm1, norm2] = &mut self.norms;
        let y = match self.order {
            NormOrder::Pre => {
                let x = add(self.attention.forward(norm1.forward(x)?.view())?, x)?;
                add(self.feed_forward.forward(norm2.forward(x.view())?.view())?, x.view())?
            }
            NormOrder::Post => {
                let x = norm1.forward(add(self.attention.forward(x)?, x)?.view())?;
                norm2.forward(add(self.feed_forward.forward(x.view())?, x.view())?.view())?
            }
        };
        self.output = Some(y.shape());
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        let x = self.part(0, x, |x| self.attention.infer(x))?;
        self.part(1, x.view(), |x| self.feed_forward.infer(x))
    }

    fn backward(&mut self, dy: TensorView<'_, T, 3>) -> Result<Tensor<T, 3>> {
        let op = "TransformerBlock::backward";
        let expected = self.output.ok_or_else(|| not_called(op))?;
        if dy.shape() != expected {
            return Err(Error::shape(op, "dy", &dy.shape(), &expected));
        }
        let [norm1, norm2] = &mut self.norms;
        match self.order {
            NormOrder::Pre => {
                let dx = add(norm2.backward(self.feed_forward.backward(dy)?.view())?, dy)?;
                add(norm1.backward(self.attention.backward(dx.view())?.view())?, dx.view())
            }
            NormOrder::Post => {
                let dsum = norm2.backward(dy)?;
                let dx = add(self.feed_forward.backward(dsum.view())?, dsum.view())?;
                let dsum = norm1.backward(dx.view())?;
                add(self.attention.backward(dsum.view())?, dsum.view())
            }
        }
    }
}
