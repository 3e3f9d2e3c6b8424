//! Batch normalisation.

use super::sets::{Channels, Sets};
use super::{NormGradients, NormGradientsMut};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Batch normalisation of `[batch, channels, spatial…]`, 0 to 3 spatial axes: plain data. The [module](super) has the
/// formulas.
///
/// In training the statistics are those of the batch; in inference they are constants, running averages that
/// [`BatchStatistics::update`] keeps. Scale and shift, `[channels]`, count as 1 and 0 where they are left out.
///
/// ```
/// use tilewise::{Tensor, TensorView, norm::BatchNormalization};
/// let x = TensorView::from_slice(&[1.0, 10.0, 3.0, 30.0], [2, 2])?;
/// let batch_norm = BatchNormalization::new().epsilon(0.0);
/// let (y, statistics) = batch_norm.forward_training(x, None, None)?;
/// assert_eq!(y.as_slice(), [-1.0, -1.0, 1.0, 1.0]);
/// assert_eq!(statistics.mean.as_slice(), [2.0, 20.0]);
///
/// let (mut mean, mut variance) = (Tensor::zeros([2])?, Tensor::full([2], 1.0)?);
/// statistics.update(1.0, mean.view_mut(), variance.view_mut())?; // all of the new, nothing of the old
/// assert_eq!(variance.as_slice(), [2.0, 200.0]); // unbiased
/// let y = batch_norm.forward_inference(x, mean.view(), variance.view(), None, None)?;
/// assert_eq!(*y.get([1, 0]).unwrap(), 1.0 / 2f64.sqrt());
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormalization {
    epsilon: f64,
}

/// The statistics of a batch, from [`BatchNormalization::forward_training`].
pub struct BatchStatistics<T> {
    /// The mean of each channel.
    pub mean: Tensor<T, 1>,
    /// The biased variance of each channel.
    pub variance: Tensor<T, 1>,
    /// How many elements of a channel they were made from.
    pub count: usize,
}

impl<T: Element> BatchStatistics<T> {
    /// running = (1 − momentum)·running + momentum·batch, of the mean and of the unbiased variance,
    /// Σ(x − μ)²/(count − 1), as PyTorch has it.
    ///
    /// # Errors
    /// [`Error::Shape`] where a running statistic does not have the shape `[channels]`, [`Error::Argument`] where the
    /// momentum is not in 0 … 1 or the statistics are those of fewer than two elements, which have no unbiased
    /// variance.
    pub fn update<'a>(
        &self,
        momentum: f64,
        running_mean: TensorViewMut<'a, T, 1>,
        running_variance: TensorViewMut<'a, T, 1>,
    ) -> Result<()> {
        let op = "BatchStatistics::update";
        check_momentum(op, momentum)?;
        if self.count < 2 {
            return Err(Error::argument(op, "elements of a channel", self.count, "at least 2"));
        }
        let unbiased = self.count as f64 / (self.count - 1) as f64;
        self.mix(op, momentum, unbiased, running_mean, running_variance)
    }

    /// [`update`](Self::update) with the biased variance, as ONNX and Keras have it; their momentum is the share of the
    /// old, 1 − `momentum`.
    ///
    /// # Errors
    /// As [`update`](Self::update), but one element of a channel is enough.
    ///
    /// ```
    /// use tilewise::{Tensor, TensorView, norm::BatchNormalization};
    /// let x = TensorView::from_slice(&[1.0, 3.0], [2, 1])?;
    /// let (_, statistics) = BatchNormalization::new().forward_training(x, None, None)?;
    /// let (mut mean, mut variance) = (Tensor::zeros([1])?, Tensor::full([1], 2.0)?);
    /// statistics.update_biased(0.5, mean.view_mut(), variance.view_mut())?;
    /// assert_eq!((mean.as_slice(), variance.as_slice()), (&[1.0][..], &[1.5][..]));
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn update_biased<'a>(
        &self,
        momentum: f64,
        running_mean: TensorViewMut<'a, T, 1>,
        running_variance: TensorViewMut<'a, T, 1>,
    ) -> Result<()> {
        let op = "BatchStatistics::update_biased";
        check_momentum(op, momentum)?;
        if self.count == 0 {
            return Err(Error::argument(op, "elements of a channel", 0, "at least 1"));
        }
        self.mix(op, momentum, 1.0, running_mean, running_variance)
    }

    fn mix<'a>(
        &self,
        op: &'static str,
        momentum: f64,
        unbiased: f64,
        running_mean: TensorViewMut<'a, T, 1>,
        running_variance: TensorViewMut<'a, T, 1>,
    ) -> Result<()> {
        expect(op, "running_mean", &running_mean.shape(), &self.mean.shape())?;
        expect(op, "running_variance", &running_variance.shape(), &self.variance.shape())?;
        for (mut running, batch, factor) in
            [(running_mean, &self.mean, 1.0), (running_variance, &self.variance, unbiased)]
        {
            for (at, value) in batch.iter().enumerate() {
                if let Some(running) = running.get_mut([at]) {
                    let new = momentum * factor * value.to_f64();
                    // Nothing of the old, whatever it is, where the momentum is 1.
                    let old = if momentum == 1.0 { 0.0 } else { (1.0 - momentum) * running.to_f64() };
                    *running = T::from_f64(old + new);
                }
            }
        }
        Ok(())
    }
}

/// How many elements a channel of `[batch, channels, spatial…]` has.
pub(crate) fn elements_of_a_channel<const N: usize>(shape: [usize; N]) -> usize {
    let others = shape.iter().enumerate().filter(|&(axis, _)| axis != 1);
    others.fold(1, |count, (_, &size)| count.saturating_mul(size))
}

/// An error unless 0 ≤ momentum ≤ 1.
pub(crate) fn check_momentum(op: &'static str, momentum: f64) -> Result<()> {
    if (0.0..=1.0).contains(&momentum) {
        return Ok(());
    }
    Err(Error::argument(op, "momentum", momentum, "from 0 to 1"))
}

impl Default for BatchNormalization {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchNormalization {
    /// With ε = 10⁻⁵.
    pub const fn new() -> Self {
        Self { epsilon: 1e-5 }
    }

    /// ε, added to the variance under the root. With 0, channels whose elements are all equal give NaN.
    pub const fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon }
    }

    fn channels(self, op: &'static str) -> Channels {
        Channels { op, epsilon: self.epsilon, sets: Sets::Batch }
    }

    /// An error where [`forward_training`](Self::forward_training) would give one.
    pub(crate) fn check<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<()> {
        self.channels(op).check(x, scale, shift).map(|_| ())
    }

    /// y and the statistics of the batch. Those of an empty batch are NaN.
    ///
    /// # Errors
    /// As [`forward_training_into`](Self::forward_training_into).
    pub fn forward_training<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<(Tensor<T, N>, BatchStatistics<T>)> {
        let channels = self.channels("BatchNormalization::forward_training");
        let [_, size] = channels.check(x, scale, shift)?;
        let (mut y, mut mean, mut variance) =
            (Tensor::zeros(x.shape())?, Tensor::zeros([size])?, Tensor::zeros([size])?);
        let statistics = Some([mean.view_mut(), variance.view_mut()]);
        channels.forward(x, [scale, shift], statistics, y.view_mut())?;
        let count = elements_of_a_channel(x.shape());
        Ok((y, BatchStatistics { mean, variance, count }))
    }

    /// [`forward_training`](Self::forward_training) into `y`, `mean` and `variance` (the biased one), whose old
    /// contents are not read.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Argument`] where ε is negative or not finite,
    /// [`Error::Alloc`] where there is no memory.
    pub fn forward_training_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
        mean: TensorViewMut<'_, T, 1>,
        variance: TensorViewMut<'_, T, 1>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let channels = self.channels("BatchNormalization::forward_training_into");
        let [_, size] = channels.check(x, scale, shift)?;
        expect(channels.op, "mean", &mean.shape(), &[size])?;
        expect(channels.op, "variance", &variance.shape(), &[size])?;
        expect(channels.op, "y", &y.shape(), &x.shape())?;
        channels.forward(x, [scale, shift], Some([mean, variance]), y)
    }

    /// y with constants for statistics, `[channels]` each.
    ///
    /// # Errors
    /// As [`forward_inference_into`](Self::forward_inference_into).
    pub fn forward_inference<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        mean: TensorView<'_, T, 1>,
        variance: TensorView<'_, T, 1>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, N>> {
        let channels = self.channels("BatchNormalization::forward_inference");
        check_constants(channels, x, [mean, variance], scale, shift)?;
        let mut y = Tensor::zeros(x.shape())?;
        channels.forward_constant(x, [mean, variance], [scale, shift], y.view_mut())?;
        Ok(y)
    }

    /// [`forward_inference`](Self::forward_inference) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward_training_into`](Self::forward_training_into).
    pub fn forward_inference_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        mean: TensorView<'_, T, 1>,
        variance: TensorView<'_, T, 1>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let channels = self.channels("BatchNormalization::forward_inference_into");
        check_constants(channels, x, [mean, variance], scale, shift)?;
        expect(channels.op, "y", &y.shape(), &x.shape())?;
        channels.forward_constant(x, [mean, variance], [scale, shift], y)
    }

    /// All gradients of [`forward_training`](Self::forward_training), from what it got, what it gave and `dy`.
    ///
    /// # Errors
    /// As [`backward_into`](Self::backward_into).
    ///
    /// ```
    /// use tilewise::{TensorView, norm::BatchNormalization};
    /// let x = TensorView::from_slice(&[1.0, 3.0], [2, 1])?;
    /// let dy = TensorView::from_slice(&[0.5, 0.25], [2, 1])?;
    /// let batch_norm = BatchNormalization::new().epsilon(0.0);
    /// let gradients = batch_norm.backward(x, None, None, dy)?;
    /// assert_eq!(gradients.input.as_slice(), [0.0, 0.0]); // y is (−1, 1) whatever x is
    /// assert_eq!(gradients.scale.as_slice(), [-0.25]);
    /// assert_eq!(gradients.shift.as_slice(), [0.75]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        mean: Option<TensorView<'_, T, 1>>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
    ) -> Result<NormGradients<T, N>> {
        let channels = self.channels("BatchNormalization::backward");
        owned(channels, x, |gradients| self.run_backward(channels.op, x, mean, scale, dy, T::ZERO, gradients))
    }

    /// The gradients of [`forward_training`](Self::forward_training) asked for, each added to `beta` times what its
    /// output held: beta 0 overwrites without reading, 1 accumulates.
    ///
    /// `mean` is that of the [`BatchStatistics`] where they were kept, which saves a pass over `x`: it is taken as a
    /// first value, and the statistics are made again from it.
    ///
    /// # Errors
    /// As [`forward_training_into`](Self::forward_training_into); all shapes are checked before anything is written.
    pub fn backward_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        mean: Option<TensorView<'_, T, 1>>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        self.run_backward("BatchNormalization::backward_into", x, mean, scale, dy, beta, gradients)
    }

    #[allow(clippy::too_many_arguments, reason = "what went in, what is known and what is wanted")]
    fn run_backward<T: Element, const N: usize>(
        self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        mean: Option<TensorView<'_, T, 1>>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let channels = self.channels(op);
        let [_, size] = channels.check_backward(x, scale, dy, &gradients)?;
        super::expect_vector(op, "mean", mean, size)?;
        channels.backward(x, [scale, mean], dy, beta, gradients)
    }

    /// As [`backward_into`](Self::backward_into), of [`forward_inference`](Self::forward_inference): the statistics are
    /// constants.
    ///
    /// # Errors
    /// As [`backward_into`](Self::backward_into).
    ///
    /// ```
    /// use tilewise::norm::{BatchNormalization, NormGradientsMut};
    /// use tilewise::{Tensor, TensorView};
    /// let x = TensorView::from_slice(&[1.0, 3.0], [2, 1])?;
    /// let dy = TensorView::from_slice(&[0.5, 0.25], [2, 1])?;
    /// let (mean, variance) = (Tensor::full([1], 2.0)?, Tensor::full([1], 4.0)?);
    /// let (mut dx, mut dscale) = (Tensor::zeros([2, 1])?, Tensor::zeros([1])?);
    /// let gradients =
    ///     NormGradientsMut { input: Some(dx.view_mut()), scale: Some(dscale.view_mut()), shift: None };
    /// let batch_norm = BatchNormalization::new().epsilon(0.0);
    /// batch_norm.backward_inference_into(x, mean.view(), variance.view(), None, dy, 0.0, gradients)?;
    /// assert_eq!(dx.as_slice(), [0.25, 0.125]); // dy over the deviation, which is 2
    /// assert_eq!(dscale.as_slice(), [-0.125]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    #[allow(clippy::too_many_arguments, reason = "what went in, what is known and what is wanted")]
    pub fn backward_inference_into<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        mean: TensorView<'_, T, 1>,
        variance: TensorView<'_, T, 1>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let channels = self.channels("BatchNormalization::backward_inference_into");
        check_constants(channels, x, [mean, variance], scale, None)?;
        channels.check_backward(x, scale, dy, &gradients)?;
        channels.backward_constant(x, [mean, variance], scale, dy, beta, gradients)
    }
}

fn check_constants<T: Element, const N: usize>(
    channels: Channels,
    x: TensorView<'_, T, N>,
    [mean, variance]: [TensorView<'_, T, 1>; 2],
    scale: Option<TensorView<'_, T, 1>>,
    shift: Option<TensorView<'_, T, 1>>,
) -> Result<()> {
    let [_, size] = channels.check(x, scale, shift)?;
    expect(channels.op, "mean", &mean.shape(), &[size])?;
    expect(channels.op, "variance", &variance.shape(), &[size])
}

/// Tensors for all gradients, filled by `run`.
pub(super) fn owned<T: Element, const N: usize>(
    channels: Channels,
    x: TensorView<'_, T, N>,
    run: impl FnOnce(NormGradientsMut<'_, T, N>) -> Result<()>,
) -> Result<NormGradients<T, N>> {
    let [_, size] = channels.check(x, None, None)?;
    let mut input = Tensor::zeros(x.shape())?;
    let (mut scale, mut shift) = (Tensor::zeros([size])?, Tensor::zeros([size])?);
    run(NormGradientsMut {
        input: Some(input.view_mut()),
        scale: Some(scale.view_mut()),
        shift: Some(shift.view_mut()),
    })?;
    Ok(NormGradients { input, scale, shift })
}
