//! Layer normalisation.

use super::rows::{self, Gradients, Operands, Rows, check_epsilon};
use super::{NormGradients, NormGradientsMut, expect_vector};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Layer normalisation along the last axis of `[…, n]`: plain data. The [module](super) has the formulas.
///
/// Scale and shift, `[n]` each, may be left out: then they count as 1 and 0. Another axis is brought to the end by
/// [`permute`](TensorView::permute), which copies nothing.
///
/// ```
/// use tilewise::{TensorView, norm::LayerNormalization};
/// let x = TensorView::from_slice(&[1.0, 3.0, 10.0, -10.0], [2, 2])?;
/// let scale = TensorView::from_slice(&[1.0, 2.0], [2])?;
/// let shift = TensorView::from_slice(&[0.0, 5.0], [2])?;
/// let y = LayerNormalization::new().epsilon(0.0).forward(x, Some(scale), Some(shift))?;
/// assert_eq!(y.as_slice(), [-1.0, 7.0, 1.0, 3.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormalization {
    epsilon: f64,
}

/// What makes x̂ of each row, from [`LayerNormalization::statistics`]: x̂ = (x − mean)·inverse_deviation.
pub struct RowStatistics<T> {
    /// μ of each row.
    pub mean: Tensor<T, 1>,
    /// 1/√(σ² + ε) of each row.
    pub inverse_deviation: Tensor<T, 1>,
}

impl Default for LayerNormalization {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerNormalization {
    /// With ε = 10⁻⁵.
    pub const fn new() -> Self {
        Self { epsilon: 1e-5 }
    }

    /// ε, added to the variance under the root. With 0, rows whose elements are all equal give NaN.
    pub const fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon }
    }

    fn rows(self, op: &'static str) -> Result<Rows> {
        check_epsilon(op, self.epsilon)?;
        Ok(Rows { op, epsilon: self.epsilon, centred: true })
    }

    /// An error where [`forward`](Self::forward) would give one.
    pub(crate) fn check<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<()> {
        self.rows(op)?;
        check(op, x, scale, shift).map(|_| ())
    }

    /// y, of the shape of x `[…, n]`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, N>> {
        let op = "LayerNormalization::forward";
        let rows = self.rows(op)?;
        check(op, x, scale, shift)?;
        let mut y = Tensor::zeros(x.shape())?;
        rows.forward(Operands { x, residual: None, y: y.view_mut() }, scale, shift)?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where `x` has no axis or ε is negative or not
    /// finite, [`Error::Alloc`] where there is no memory.
    pub fn forward_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let op = "LayerNormalization::forward_into";
        let rows = self.rows(op)?;
        check(op, x, scale, shift)?;
        expect(op, "y", &y.shape(), &x.shape())?;
        rows.forward(Operands { x, residual: None, y }, scale, shift)
    }

    /// The statistics of the rows of x `[…, n]`, `[rows]` each, in row-major order of the other axes; rows of no elements
    /// have none. Neither [`forward`](Self::forward) nor [`backward`](Self::backward) needs them.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    ///
    /// ```
    /// use tilewise::{TensorView, norm::LayerNormalization};
    /// let x = TensorView::from_slice(&[1.0, 3.0, 10.0, -10.0], [2, 2])?;
    /// let statistics = LayerNormalization::new().epsilon(0.0).statistics(x)?;
    /// assert_eq!(statistics.mean.as_slice(), [2.0, 0.0]);
    /// assert_eq!(statistics.inverse_deviation.as_slice(), [1.0, 0.1]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn statistics<T: Element, const N: usize>(self, x: TensorView<'_, T, N>) -> Result<RowStatistics<T>> {
        let op = "LayerNormalization::statistics";
        let rows = self.rows(op)?;
        let n = check(op, x, None, None)?;
        let copy;
        let x = match x.as_slice() {
            Some(x) => x,
            None => {
                copy = x.to_tensor()?;
                copy.as_slice()
            }
        };
        // Of rows of no elements there may be more than can be walked.
        let count = x.len().checked_div(n).unwrap_or(0);
        let mut pairs = Tensor::zeros([count, 2])?;
        rows::statistics(rows, x, n, pairs.as_mut_slice())?;
        let [mean, inverse_deviation] = [0, 1].map(|at| pairs.view().select::<1>(1, at)?.to_tensor());
        Ok(RowStatistics { mean: mean?, inverse_deviation: inverse_deviation? })
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
    /// use tilewise::{TensorView, norm::LayerNormalization};
    /// let x = TensorView::from_slice(&[1.0, 2.0], [1, 2])?;
    /// let residual = TensorView::from_slice(&[5.0, 8.0], [1, 2])?;
    /// let (sum, y) = LayerNormalization::new().epsilon(0.0).forward_residual(x, residual, None, None)?;
    /// assert_eq!(sum.as_slice(), [6.0, 10.0]);
    /// assert_eq!(y.as_slice(), [-1.0, 1.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn forward_residual<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<(Tensor<T, N>, Tensor<T, N>)> {
        let op = "LayerNormalization::forward_residual";
        let rows = self.rows(op)?;
        check(op, x, scale, shift)?;
        expect(op, "residual", &residual.shape(), &x.shape())?;
        let (mut sum, mut y) = (Tensor::zeros(x.shape())?, Tensor::zeros(x.shape())?);
        let residual = Some((residual, sum.view_mut()));
        rows.forward(Operands { x, residual, y: y.view_mut() }, scale, shift)?;
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
        shift: Option<TensorView<'_, T, 1>>,
        sum: TensorViewMut<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let op = "LayerNormalization::forward_residual_into";
        let rows = self.rows(op)?;
        check(op, x, scale, shift)?;
        expect(op, "residual", &residual.shape(), &x.shape())?;
        expect(op, "sum", &sum.shape(), &x.shape())?;
        expect(op, "y", &y.shape(), &x.shape())?;
        rows.forward(Operands { x, residual: Some((residual, sum)), y }, scale, shift)
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
        let gradients = NormGradientsMut { input: Some(dx.view_mut()), scale: None, shift: None };
        self.run_backward("LayerNormalization::backward_input", x, scale, dy, T::ZERO, gradients)?;
        Ok(dx)
    }

    /// All gradients, from what [`forward`](Self::forward) got and `dy`.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    ///
    /// ```
    /// use tilewise::{TensorView, norm::LayerNormalization};
    /// let x = TensorView::from_slice(&[1.0, 3.0], [1, 2])?;
    /// let dy = TensorView::from_slice(&[0.5, 0.25], [1, 2])?;
    /// let gradients = LayerNormalization::new().epsilon(0.0).backward(x, None, dy)?;
    /// assert_eq!(gradients.input.as_slice(), [0.0, 0.0]); // y is (−1, 1) whatever x is
    /// assert_eq!(gradients.scale.as_slice(), [-0.5, 0.25]);
    /// assert_eq!(gradients.shift.as_slice(), [0.5, 0.25]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
    ) -> Result<NormGradients<T, N>> {
        let n = x.shape().last().copied().unwrap_or(0);
        let mut input = Tensor::zeros(x.shape())?;
        let (mut dscale, mut dshift) = (Tensor::zeros([n])?, Tensor::zeros([n])?);
        let gradients = NormGradientsMut {
            input: Some(input.view_mut()),
            scale: Some(dscale.view_mut()),
            shift: Some(dshift.view_mut()),
        };
        self.run_backward("LayerNormalization::backward", x, scale, dy, T::ZERO, gradients)?;
        Ok(NormGradients { input, scale: dscale, shift: dshift })
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
        gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        self.run_backward("LayerNormalization::backward_into", x, scale, dy, beta, gradients)
    }

    fn run_backward<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let rows = self.rows(op)?;
        let n = check(op, x, scale, None)?;
        expect(op, "dy", &dy.shape(), &x.shape())?;
        let NormGradientsMut { input, scale: dscale, shift: dshift } = gradients;
        if let Some(dx) = &input {
            expect(op, "gradients.input", &dx.shape(), &x.shape())?;
        }
        expect_vector(op, "gradients.scale", dscale.as_ref().map(TensorViewMut::view), n)?;
        expect_vector(op, "gradients.shift", dshift.as_ref().map(TensorViewMut::view), n)?;
        rows.backward(Gradients { x, dy, dx: input }, scale, beta, [dscale, dshift])
    }
}

/// The size of the last axis, which scale and shift must have too.
pub(super) fn check<T: Element, const N: usize>(
    op: &'static str,
    x: TensorView<'_, T, N>,
    scale: Option<TensorView<'_, T, 1>>,
    shift: Option<TensorView<'_, T, 1>>,
) -> Result<usize> {
    let Some(&n) = x.shape().last() else {
        return Err(Error::argument(op, "rank of x", 0, "at least 1"));
    };
    expect_vector(op, "scale", scale, n)?;
    expect_vector(op, "shift", shift, n)?;
    Ok(n)
}
