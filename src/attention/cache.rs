//! Keys and values of the positions so far.

use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView};

/// Keys and values of the positions that a decoder has seen, with room for a fixed number of them.
///
/// What is appended is written behind what is there, which never moves; [`keys`](Self::keys) and
/// [`values`](Self::values) are views, to be attended to with [`Align::End`](super::Align::End).
///
/// ```
/// use tilewise::{Tensor, attention::{Align, Attention, KvCache}};
/// let mut cache = KvCache::<f32>::new([1, 2], 16, [4, 4])?;
/// for _ in 0..3 {
///     let step = Tensor::<f32, 4>::full([1, 2, 1, 4], 0.5)?;
///     cache.append(step.view(), step.view())?;
///     let y = Attention::new().causal(Align::End).forward(step.view(), cache.keys()?, cache.values()?)?;
///     assert_eq!(y.as_slice(), [0.5; 8]);
/// }
/// assert_eq!(cache.len(), 3);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct KvCache<T> {
    keys: Tensor<T, 4>,
    values: Tensor<T, 4>,
    len: usize,
}

impl<T: Element> KvCache<T> {
    /// An empty cache for `[batch, kv_heads]`, with room for `capacity` positions of `[dim, value_dim]` numbers.
    ///
    /// # Errors
    /// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory.
    pub fn new([batch, kv_heads]: [usize; 2], capacity: usize, [dim, value_dim]: [usize; 2]) -> Result<Self> {
        let room = |dim| Tensor::filled("KvCache::new", [batch, kv_heads, capacity, dim], T::ZERO);
        Ok(Self { keys: room(dim)?, values: room(value_dim)?, len: 0 })
    }

    /// Positions it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions it has room for.
    pub fn capacity(&self) -> usize {
        self.keys.shape()[2]
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// [`Error::Argument`] where it holds fewer.
    ///
    /// ```
    /// use tilewise::{Tensor, attention::KvCache};
    /// let mut cache = KvCache::<f32>::new([1, 1], 8, [4, 4])?;
    /// let steps = Tensor::full([1, 1, 3, 4], 0.5)?;
    /// cache.append(steps.view(), steps.view())?;
    /// cache.truncate(1)?; // what was only tried
    /// assert_eq!(cache.keys()?.shape(), [1, 1, 1, 4]);
    /// assert!(cache.truncate(2).is_err());
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::argument(
                "KvCache::truncate",
                "len",
                len,
                "at most the positions that it holds",
            ));
        }
        self.len = len;
        Ok(())
    }

    /// Appends keys `[batch, kv_heads, n, dim]` and values `[batch, kv_heads, n, value_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where there is no room. Nothing is written then.
    pub fn append(&mut self, keys: TensorView<'_, T, 4>, values: TensorView<'_, T, 4>) -> Result<()> {
        let op = "KvCache::append";
        let ([batch, kv_heads, capacity, dim], count) = (self.keys.shape(), keys.shape()[2]);
        expect(op, "keys", &keys.shape(), &[batch, kv_heads, count, dim])?;
        expect(op, "values", &values.shape(), &[batch, kv_heads, count, self.values.shape()[3]])?;
        if count > capacity - self.len {
            return Err(Error::argument(
                op,
                "the number of positions",
                count,
                "at most the room that is left",
            ));
        }
        let range = self.len..self.len + count;
        self.keys.view_mut().slice(2, range.clone(), 1)?.assign(keys)?;
        self.values.view_mut().slice(2, range, 1)?.assign(values)?;
        self.len += count;
        Ok(())
    }

    /// What `f` gives; where that is an error, what it appended is forgotten.
    pub(crate) fn attempt<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        let before = self.len;
        let result = f(self);
        if result.is_err() {
            self.len = before;
        }
        result
    }

    /// The keys, `[batch, kv_heads, len, dim]`.
    ///
    /// # Errors
    /// None that could happen.
    pub fn keys(&self) -> Result<TensorView<'_, T, 4>> {
        self.keys.view().slice(2, ..self.len, 1)
    }

    /// The values, `[batch, kv_heads, len, value_dim]`.
    ///
    /// # Errors
    /// None that could happen.
    pub fn values(&self) -> Result<TensorView<'_, T, 4>> {
        self.values.view().slice(2, ..self.len, 1)
    }
}
