//! Encodings of positions.

use std::fmt::{self, Debug, Formatter};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// The encoding that is added to embeddings, `[length, dim]`: sin(p / 10000^(2i/dim)) at 2i, its cosine at 2i + 1.
///
/// Source: A. Vaswani et al., "Attention is all you need" (NeurIPS 2017), section 3.5.
///
/// # Errors
/// [`Error::Overflow`] or [`Error::Alloc`] where there is no memory.
///
/// ```
/// let encoding = tilewise::layer::sinusoidal::<f64>(3, 4)?;
/// assert_eq!(encoding.as_slice()[..4], [0.0, 1.0, 0.0, 1.0]);
/// assert_eq!(encoding.as_slice()[4..6], [1f64.sin(), 1f64.cos()]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn sinusoidal<T: Element>(length: usize, dim: usize) -> Result<Tensor<T, 2>> {
    Tensor::from_fn([length, dim], |[position, at]| {
        let angle = angle(position, at / 2 * 2, dim, 10_000.0);
        T::from_f64(if at % 2 == 0 { angle.sin() } else { angle.cos() })
    })
}

/// position / base^(at / dim).
fn angle(position: usize, at: usize, dim: usize, base: f64) -> f64 {
    position as f64 / base.powf(at as f64 / dim as f64)
}

/// Rotary encoding: each query and key is turned by its position, so that their product knows the distance alone.
///
/// The pair (xᵢ, xᵢ₊ₕ), h = dim/2, is turned by the angle p · base^(−2i/dim); the pairs are (x₂ᵢ, x₂ᵢ₊₁) where
/// [`interleaved`](Self::interleaved). Source: J. Su et al., "RoFormer: enhanced transformer with rotary position
/// embedding" (2021).
///
/// ```
/// use tilewise::{Tensor, layer::Rotary};
/// let rotary = Rotary::<f64>::new(2, 8, 10_000.0)?;
/// let mut x = Tensor::from_slice(&[1.0, 0.0], [1, 1, 1, 2])?;
/// rotary.apply(x.view_mut(), 3)?;
/// assert_eq!(x.as_slice(), [3f64.cos(), 3f64.sin()]);
/// rotary.revert(x.view_mut(), 3)?;
/// assert!((x.as_slice()[0] - 1.0).abs() < 1e-15);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Rotary<T> {
    /// `[positions, dim / 2]`.
    cos: Tensor<T, 2>,
    sin: Tensor<T, 2>,
    interleaved: bool,
    partial: bool,
}

impl<T> Debug for Rotary<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [positions, half] = self.cos.shape();
        f.debug_struct("Rotary")
            .field("dim", &(2 * half))
            .field("positions", &positions)
            .field("interleaved", &self.interleaved)
            .field("partial", &self.partial)
            .finish()
    }
}

/// Where rows of `[batch, heads, length, dim]` stand.
#[derive(Clone, Copy)]
enum Positions<'a> {
    /// One behind the other from the first of each entry.
    From(usize),
    /// Each as given, entry by entry.
    Given(&'a [usize]),
}

impl<T: Element> Rotary<T> {
    /// For heads of `dim` numbers and positions below `positions`.
    ///
    /// # Errors
    /// [`Error::Argument`] where `dim` is odd, [`Error::Alloc`] where there is no memory.
    pub fn new(dim: usize, positions: usize, base: f64) -> Result<Self> {
        if !dim.is_multiple_of(2) {
            return Err(Error::argument("Rotary::new", "dim", dim, "an even number"));
        }
        let shape = [positions, dim / 2];
        let table = |f: fn(f64) -> f64| {
            Tensor::from_fn(shape, |[position, i]| T::from_f64(f(angle(position, 2 * i, dim, base))))
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)?, interleaved: false, partial: false })
    }

    /// From the cosines and sines of all angles, `[positions, dim / 2]` each: scaled or learnt frequencies, or those of
    /// another program.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes differ, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, layer::Rotary};
    /// let (cos, sin) = ([1.0, 0.0], [0.0, 1.0]);
    /// let table = |values| TensorView::from_slice(values, [2, 1]);
    /// let rotary = Rotary::from_tables(table(&cos)?, table(&sin)?)?;
    /// let mut x = Tensor::<f64, 4>::from_slice(&[1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2])?;
    /// rotary.apply_at(x.view_mut(), &[1, 0])?;
    /// assert_eq!(x.as_slice(), [-2.0, 1.0, 3.0, 4.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_tables(cos: TensorView<'_, T, 2>, sin: TensorView<'_, T, 2>) -> Result<Self> {
        if sin.shape() != cos.shape() {
            return Err(Error::shape("Rotary::from_tables", "sin", &sin.shape(), &cos.shape()));
        }
        Ok(Self { cos: cos.to_tensor()?, sin: sin.to_tensor()?, interleaved: false, partial: false })
    }

    /// Pairs are neighbours.
    pub fn interleaved(self) -> Self {
        Self { interleaved: true, ..self }
    }

    /// Heads may be longer than [`dim`](Self::dim): what lies behind it stays as it is.
    ///
    /// ```
    /// use tilewise::{Tensor, layer::Rotary};
    /// let rotary = Rotary::<f64>::new(2, 8, 10_000.0)?.partial();
    /// let mut x = Tensor::full([1, 1, 1, 3], 1.0)?;
    /// rotary.apply(x.view_mut(), 5)?;
    /// assert!(x.as_slice()[0] != 1.0 && x.as_slice()[2] == 1.0);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn partial(self) -> Self {
        Self { partial: true, ..self }
    }

    /// How many numbers of a head are turned.
    pub fn dim(&self) -> usize {
        2 * self.cos.shape()[1]
    }

    /// Turns `[batch, heads, length, dim]` in place, the first of `length` standing at position `first`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the last axis is not `dim`, or shorter where [`partial`](Self::partial), [`Error::Argument`] where a position is not below the number
    /// that it was made for.
    pub fn apply(&self, x: TensorViewMut<'_, T, 4>, first: usize) -> Result<()> {
        self.turn("Rotary::apply", x, Positions::From(first), T::ONE)
    }

    /// [`apply`](Self::apply) with a position for each of `[batch, length]`, one after the other: for entries that begin
    /// at different positions.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), and [`Error::Shape`] where there is not one position for each.
    pub fn apply_at(&self, x: TensorViewMut<'_, T, 4>, positions: &[usize]) -> Result<()> {
        self.turn("Rotary::apply_at", x, Positions::Given(positions), T::ONE)
    }

    /// Turns back: what [`apply`](Self::apply) does to a gradient.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn revert(&self, x: TensorViewMut<'_, T, 4>, first: usize) -> Result<()> {
        self.turn("Rotary::revert", x, Positions::From(first), -T::ONE)
    }

    /// Turns back what [`apply_at`](Self::apply_at) turned.
    ///
    /// # Errors
    /// As [`apply_at`](Self::apply_at).
    pub fn revert_at(&self, x: TensorViewMut<'_, T, 4>, positions: &[usize]) -> Result<()> {
        self.turn("Rotary::revert_at", x, Positions::Given(positions), -T::ONE)
    }

    fn turn(
        &self,
        op: &'static str,
        x: TensorViewMut<'_, T, 4>,
        positions: Positions<'_>,
        sign: T,
    ) -> Result<()> {
        let ([batch, heads, length, _], [_, half]) = (x.shape(), self.cos.shape());
        self.check_dim(op, "x", &x.shape())?;
        self.check_positions(op, positions, [batch, length])?;
        if x.is_empty() {
            return Ok(()); // its other sizes may be anything
        }
        let mut x = x.slice(3, ..2 * half, 1)?;
        for index in 0..batch * heads {
            let entry = x.view_mut().select::<3>(0, index / heads)?;
            let mut matrix = entry.select::<2>(0, index % heads)?;
            for at in 0..length {
                let position = match positions {
                    Positions::From(first) => first + at,
                    Positions::Given(all) => all[index / heads * length + at],
                };
                let table = position * half..(position + 1) * half;
                let (cos, sin) = (&self.cos.as_slice()[table.clone()], &self.sin.as_slice()[table]);
                let turned =
                    |a: T, b: T, i: usize| (a * cos[i] - sign * b * sin[i], sign * a * sin[i] + b * cos[i]);
                match matrix.row_mut(at) {
                    Some(row) if self.interleaved => {
                        for (i, pair) in row.chunks_exact_mut(2).enumerate() {
                            (pair[0], pair[1]) = turned(pair[0], pair[1], i);
                        }
                    }
                    Some(row) => {
                        let (low, high) = row.split_at_mut(half);
                        for i in 0..half {
                            (low[i], high[i]) = turned(low[i], high[i], i);
                        }
                    }
                    None => {
                        for i in 0..half {
                            let [a, b] = if self.interleaved { [2 * i, 2 * i + 1] } else { [i, half + i] };
                            let get = |d| matrix.get([at, d]).copied().unwrap_or(T::NAN);
                            let (low, high) = turned(get(a), get(b), i);
                            for (d, value) in [(a, low), (b, high)] {
                                if let Some(x) = matrix.get_mut([at, d]) {
                                    *x = value;
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn check_positions(
        &self,
        op: &'static str,
        positions: Positions<'_>,
        [batch, length]: [usize; 2],
    ) -> Result<()> {
        let all = match positions {
            Positions::From(first) => return self.check(op, first, length),
            Positions::Given(all) => all,
        };
        if batch.checked_mul(length) != Some(all.len()) {
            return Err(Error::shape(op, "positions", &[all.len()], &[batch, length]));
        }
        all.iter().try_for_each(|&position| self.check(op, position, 1))
    }

    /// An error where the last axis of this shape is not one to be turned.
    pub(super) fn check_dim(&self, op: &'static str, arg: &'static str, shape: &[usize]) -> Result<()> {
        let (dim, turned) = (shape[shape.len() - 1], self.dim());
        if dim == turned || (dim > turned && self.partial) {
            return Ok(());
        }
        let mut expected = shape.to_vec();
        expected[shape.len() - 1] = turned;
        Err(Error::shape(op, arg, shape, &expected))
    }

    pub(super) fn check(&self, op: &'static str, first: usize, length: usize) -> Result<()> {
        let positions = self.cos.shape()[0];
        if first.checked_add(length).is_none_or(|end| end > positions) {
            let last = first.saturating_add(length.saturating_sub(1));
            return Err(Error::argument(
                op,
                "a position",
                last,
                "less than the number of positions of the encoding",
            ));
        }
        Ok(())
    }
}
