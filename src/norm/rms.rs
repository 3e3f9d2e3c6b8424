//! RMS normalisation.

use super::expect_vector;
use super::layer::check;
use super::rows::{Gradients, Operands, Rows, check_epsilon};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// RMS normalisation along the last axis of `[…, n]`: plain data. The [module](super) has the formulas.
///
/// y = x/√(mean x² + ε) ⊙ scale, with scale `[n]` counting as 1 where it is left out. Squares that overflow make a row
/// 0.
///
/// ```
/// use tilewise::{TensorView, norm::RmsNormalization};
/// let x = TensorView::from_slice(&[4.0, 3.0, 2.0, 1.0, 1.0, -1.0, 0.0, 0.0], [1, 8])?; // the mean square is 4
/// let scale = TensorView::from_slice(&[1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [8])?;
/// let y = RmsNormalization::new().epsilon(0.0).forward(x, Some(scale))?;
/// assert_eq!(y.as_slice(), [2.0, 15.0, 1.0, 0.5, 0.5, -0.5, 0.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormalization {
    epsilon: f64,
}

/// The gradients from [`RmsNormalization::backward`].
pub struct RmsGradients<T, const N: usize> {
    /// dx, of the shape of x.
    pub input: Tensor<T, N>,
    /// Of the shape of scale.
    pub scale: Tensor<T, 1>,
}

/// Where [`RmsNormalization::backward_into`] writes; what is `None` is not computed.
pub struct RmsGradientsMut<'a, T, const N: usize> {
    /// dx, of the shape of x.
    pub input: Option<TensorViewMut<'a, T, N>>,
    /// Of the shape of scale.
    pub scale: Option<TensorViewMut<'a, T, 1>>,
}

impl Default for RmsNormalization {
    fn default() -> Self {
        Self::new()
    }
}

impl RmsNormalization {
    /// With ε = 10⁻⁶.
    pub const fn new() -> Self {
        Self { epsilon: 1e-6 }
    }

    /// ε, added to the mean square under the root. With 0, rows of zeros give NaN.
    pub const fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon }
    }

    fn rows(self, op: &'static str) -> Result<Rows> {
        check_epsilon(op, self.epsilon)?;
        Ok(Rows { op, epsilon: self.epsilon, centred: false })
    }

    /// An error where [`forward`](Self::forward) would give one.
    pub(crate) fn check<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
    ) -> Result<()> {
        self.rows(op)?;
        check(op, x, scale, None).map(|_| ())
    }

    /// y, of the shape of x `[…, n]`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, N>> {
        let op = "RmsNormalization::forward";
        let rows = self.rows(op)?;
        check(op, x, scale, None)?;
        let mut y = Tensor::zeros(x.shape())?;
        rows.forward(Operands { x, residual: None, y: y.view_mut() }, scale, None)?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Argument`](crate::Error::Argument) where
    /// `x` has no axis or ε is negative or not finite, [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn forward_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let op = "RmsNormalization::forward_into";
        let rows = self.rows(op)?;
        check(op, x, scale, None)?;
        expect(op, "y", &y.shape(), &x.shape())?;
        rows.forward(Operands { x, residual: None, y }, scale, None)
    }

    /// (x + residual, its normalisation), in one pass over memory.
    ///
    /// What is normalised is the sum as it is given back, rounded. Its gradient is that of both addends:
    /// [`backward_into`](Self::backward_into) of the sum, added by `beta` to what comes along the residual path.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    ///
    /// ```
    /// use tilewise::{TensorView, norm::RmsNormalization};
    /// let x = TensorView::from_slice(&[1.0, 3.0], [1, 2])?;
    /// let residual = TensorView::from_slice(&[3.0, -7.0], [1, 2])?;
    /// let (sum, y) = RmsNormalization::new().epsilon(0.0).forward_residual(x, residual, None)?;
    /// assert_eq!(sum.as_slice(), [4.0, -4.0]);
    /// assert_eq!(y.as_slice(), [1.0, -1.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_residual<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        let op = "RmsNormalization::forward_residual";
        let rows = self.rows(op)?;
        check(op, x, scale, None)?;
        expect(op, "residual", &residual.shape(), &x.shape())?;
        let (mut sum, mut y) = (Tensor::zeros(x.shape())?, Tensor::zeros(x.shape())?);
        let residual = Some((residual, sum.view_mut()));
        rows.forward(Operands { x, residual, y: y.view_mut() }, scale, None)?;
        Ok((sum, y))
    }

    /// [`forward_residual`](Self::forward_residual) into `sum` and `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_residual_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        sum: TensorViewMut<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let op = "RmsNormalization::forward_residual_into";
        let rows = self.rows(op)?;
        check(op, x, scale, None)?;
        expect(op, "residual", &residual.shape(), &x.shape())?;
        expect(op, "sum", &sum.shape(), &x.shape())?;
        expect(op, "y", &y.shape(), &x.shape())?;
        rows.forward(Operands { x, residual: Some((residual, sum)), y }, scale, None)
    }

    /// dx, from what [`forward`](Self::forward) got and `dy`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn backward_input<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
    ) -> Result<Tensor<T, N>> {
        let mut dx = Tensor::zeros(x.shape())?;
        let gradients = RmsGradientsMut { input: Some(dx.view_mut()), scale: None };
        self.run_backward("RmsNormalization::backward_input", x, scale, dy, T::ZERO, gradients)?;
        Ok(dx)
    }

    /// All gradients, from what [`forward`](Self::forward) got and `dy`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    ///
    /// ```
    /// use tilewise::{TensorView, norm::RmsNormalization};
    /// let x = TensorView::from_slice(&[4.0], [1, 1])?;
    /// let dy = TensorView::from_slice(&[0.5], [1, 1])?;
    /// let gradients = RmsNormalization::new().epsilon(0.0).backward(x, None, dy)?;
    /// assert_eq!(gradients.input.as_slice(), [0.0]); // y is 1 whatever x is
    /// assert_eq!(gradients.scale.as_slice(), [0.5]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
    ) -> Result<RmsGradients<T, N>> {
        let n = x.shape().last().copied().unwrap_or(0);
        let (mut input, mut dscale) = (Tensor::zeros(x.shape())?, Tensor::zeros([n])?);
        let gradients = RmsGradientsMut { input: Some(input.view_mut()), scale: Some(dscale.view_mut()) };
        self.run_backward("RmsNormalization::backward", x, scale, dy, T::ZERO, gradients)?;
        Ok(RmsGradients { input, scale: dscale })
    }

    /// The gradients asked for, each added to `beta` times what its output held: beta 0 overwrites without reading,
    /// 1 accumulates.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into); all shapes are checked before anything is written.
    pub fn backward_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: RmsGradientsMut<'_, T, N>,
    ) -> Result<()> {
        self.run_backward("RmsNormalization::backward_into", x, scale, dy, beta, gradients)
    }

    fn run_backward<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: RmsGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let rows = self.rows(op)?;
        let n = check(op, x, scale, None)?;
        expect(op, "dy", &dy.shape(), &x.shape())?;
        let RmsGradientsMut { input, scale: dscale } = gradients;
        if let Some(dx) = &input {
            expect(op, "gradients.input", &dx.shape(), &x.shape())?;
        }
        expect_vector(op, "gradients.scale", dscale.as_ref().map(TensorViewMut::view), n)?;
        rows.backward(Gradients { x, dy, dx: input }, scale, beta, [dscale, None])
    }
}
