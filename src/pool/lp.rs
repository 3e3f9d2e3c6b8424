//! The p-norm of windows.
#![forbid(unsafe_code)]

use super::geometry::{Padding, Windows};
use super::reduce::Norm;
use super::{Call, forward, lift, lower, spread, windows};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine;
use crate::spatial::{ImageRank, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Pooling by the p-norm: plain data. The [module](super) has the formulas.
///
/// Powers are taken as they stand: |x|ᵖ may overflow or vanish where |x| would not. For p = ∞ there is
/// [`MaxPool`](super::MaxPool), of |x|.
///
/// ```
/// use tilewise::{TensorView, pool::LpPool};
/// let x = TensorView::from_slice(&[3.0f32, -4.0, 0.0, 2.0], [1, 1, 4])?;
/// assert_eq!(LpPool::<1>::new([2], 2.0).forward(x)?.as_slice(), [5.0, 2.0]);
/// assert_eq!(LpPool::<1>::new([2], 1.0).forward(x)?.as_slice(), [7.0, 2.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LpPool<const S: usize> {
    windows: Windows<S>,
    norm: Norm,
}

windows!(LpPool);

impl<const S: usize> LpPool<S> {
    /// Windows of these sizes, side by side, dense, without padding, and p ≥ 1, finite also as an element: at most
    /// 3.4·10³⁸ in `f32`.
    pub const fn new(kernel: [usize; S], p: f64) -> Self {
        Self { windows: Windows::sliding(kernel), norm: Norm::new(p) }
    }

    /// As many windows as given along each axis, of sizes that differ by one at most.
    pub const fn adaptive(outputs: [usize; S], p: f64) -> Self {
        Self { windows: Windows::Adaptive(outputs), norm: Norm::new(p) }
    }

    /// One window, the image.
    pub const fn global(p: f64) -> Self {
        Self { windows: Windows::Global, norm: Norm::new(p) }
    }

    fn check<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.norm.p() >= 1.0 && T::from_f64(self.norm.p()).is_finite() {
            return Ok(());
        }
        Err(Error::argument(op, "p", self.norm.p(), "at least 1 and finite as an element"))
    }

    /// Y `[batch, channels, windows…]` from X `[batch, channels, spatial…]`.
    ///
    /// # Errors
    /// As [`MaxPool::forward`](super::MaxPool::forward), and [`Error::Argument`] where p is less than 1
    /// or, as an element, not finite.
    pub fn forward<T: Element, const N: usize>(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("LpPool::forward", &self.windows, lift(x.shape()))?;
        self.check::<T>(call.op)?;
        let mut y = Tensor::zeros(lower(call.outputs()))?;
        self.reduce(&call, x, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where `y` has another shape.
    pub fn forward_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("LpPool::forward_into", &self.windows, lift(x.shape()))?;
        self.check::<T>(call.op)?;
        self.reduce(&call, x, y)
    }

    fn reduce<T: Element, const N: usize>(
        &self,
        call: &Call,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (x, y, isa) = (x.lift(), y.lift(), machine::isa()?);
        call.expect("y", y.shape())?;
        let (op, axes) = (call.op, call.axes);
        forward::Call { op, isa, x, axes, reduction: self.norm, with_padding: false }.run(y)
    }

    /// dX, of the shape of X, from X, Y and dY.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where Y or dY has another shape.
    ///
    /// ```
    /// use tilewise::{TensorView, pool::LpPool};
    /// let pool = LpPool::<1>::new([2], 2.0);
    /// let x = TensorView::from_slice(&[3.0, -4.0], [1, 1, 2])?;
    /// let y = pool.forward(x)?;
    /// let dy = TensorView::from_slice(&[5.0], [1, 1, 1])?;
    /// assert_eq!(pool.backward(x, y.view(), dy)?.as_slice(), [3.0, -4.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
    ) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("LpPool::backward", &self.windows, lift(x.shape()))?;
        self.check_backward(&call, y, dy)?;
        let mut dx = Tensor::zeros(x.shape())?;
        self.spread(&call, x, y, dy, dx.view_mut())?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into `dx`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), and [`Error::Shape`] where `dx` has another shape.
    pub fn backward_into<T: Element, const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let call = Call::new("LpPool::backward_into", &self.windows, lift(x.shape()))?;
        self.check_backward(&call, y, dy)?;
        call.expect_shape("dx", lift(dx.shape()), call.image)?;
        self.spread(&call, x, y, dy, dx)
    }

    fn check_backward<T: Element, const N: usize>(
        &self,
        call: &Call,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
    ) -> Result<()> {
        self.check::<T>(call.op)?;
        call.expect("y", lift(y.shape()))?;
        call.expect("dy", lift(dy.shape()))
    }

    fn spread<T: Element, const N: usize>(
        &self,
        call: &Call,
        x: TensorView<'_, T, N>,
        y: TensorView<'_, T, N>,
        dy: TensorView<'_, T, N>,
        dx: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let (op, axes, isa) = (call.op, call.axes, machine::isa()?);
        let (dy, values) = (dy.lift(), Some([x.lift(), y.lift()]));
        spread::Call { op, isa, dy, values, axes, share: self.norm, with_padding: false }.run(dx.lift())
    }
}
