//! Group normalisation, and instance normalisation, where each channel is a group.

use super::batch::owned;
use super::sets::{Channels, Sets};
use super::{NormGradients, NormGradientsMut};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Group normalisation of `[batch, channels, spatial…]`, 0 to 3 spatial axes: plain data. The [module](super) has the
/// formulas.
///
/// The channels of a sample make `groups` groups of neighbours. Scale and shift, `[channels]`, count as 1 and 0 where
/// they are left out.
///
/// ```
/// use tilewise::{TensorView, norm::GroupNormalization};
/// let x = TensorView::from_slice(&[1.0, 3.0, 10.0, -10.0], [1, 4])?;
/// let y = GroupNormalization::new(2).epsilon(0.0).forward(x, None, None)?;
/// assert_eq!(y.as_slice(), [-1.0, 1.0, 1.0, -1.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormalization {
    groups: usize,
    epsilon: f64,
}

/// Instance normalisation of `[batch, channels, spatial…]`, 0 to 3 spatial axes: plain data. The [module](super) has
/// the formulas.
///
/// Scale and shift, `[channels]`, count as 1 and 0 where they are left out.
///
/// ```
/// use tilewise::{TensorView, norm::InstanceNormalization};
/// let x = TensorView::from_slice(&[1.0, 3.0, 10.0, -10.0], [1, 2, 2])?;
/// let y = InstanceNormalization::new().epsilon(0.0).forward(x, None, None)?;
/// assert_eq!(y.as_slice(), [-1.0, 1.0, 1.0, -1.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceNormalization {
    epsilon: f64,
}

impl Default for InstanceNormalization {
    fn default() -> Self {
        Self::new()
    }
}

impl GroupNormalization {
    /// This many groups, with ε = 10⁻⁵.
    pub const fn new(groups: usize) -> Self {
        Self { groups, epsilon: 1e-5 }
    }

    /// ε, added to the variance under the root. With 0, groups whose elements are all equal give NaN.
    pub const fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon, ..self }
    }
}

impl InstanceNormalization {
    /// With ε = 10⁻⁵.
    pub const fn new() -> Self {
        Self { epsilon: 1e-5 }
    }

    /// ε, added to the variance under the root. With 0, channels whose elements are all equal give NaN.
    pub const fn epsilon(self, epsilon: f64) -> Self {
        Self { epsilon }
    }
}

macro_rules! calls {
    ($name:ident, |$self:ident, $x:ident| $groups:expr) => {
        impl $name {
            fn channels<T, const N: usize>($self, op: &'static str, $x: TensorView<'_, T, N>) -> Channels {
                Channels { op, epsilon: $self.epsilon, sets: Sets::Groups($groups) }
            }

            /// An error where [`forward`](Self::forward) would give one.
            pub(crate) fn check<T: Element, const N: usize>(
                self,
                op: &'static str,
                x: TensorView<'_, T, N>,
                scale: Option<TensorView<'_, T, 1>>,
                shift: Option<TensorView<'_, T, 1>>,
            ) -> Result<()> {
                self.channels(op, x).check(x, scale, shift).map(|_| ())
            }

            /// y, of the shape of x.
            ///
            /// # Errors
            /// As [`forward_into`](Self::forward_into).
            pub fn forward<T: Element, const N: usize>(
                self,
                x: TensorView<'_, T, N>,
                scale: Option<TensorView<'_, T, 1>>,
                shift: Option<TensorView<'_, T, 1>>,
            ) -> Result<Tensor<T, N>> {
                let channels = self.channels(concat!(stringify!($name), "::forward"), x);
                channels.check(x, scale, shift)?;
                let mut y = Tensor::zeros(x.shape())?;
                channels.forward(x, [scale, shift], None, y.view_mut())?;
                Ok(y)
            }

            /// [`forward`](Self::forward) into `y`, whose old contents are not read.
            ///
            /// # Errors
            /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit,
            /// [`Error::Argument`](crate::Error::Argument) where ε is negative or not finite or groups do not divide
            /// the channels, [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
            pub fn forward_into<T: Element, const N: usize>(
                self,
                x: TensorView<'_, T, N>,
                scale: Option<TensorView<'_, T, 1>>,
                shift: Option<TensorView<'_, T, 1>>,
                y: TensorViewMut<'_, T, N>,
            ) -> Result<()> {
                let channels = self.channels(concat!(stringify!($name), "::forward_into"), x);
                channels.check(x, scale, shift)?;
                expect(channels.op, "y", &y.shape(), &x.shape())?;
                channels.forward(x, [scale, shift], None, y)
            }

            /// All gradients, from what [`forward`](Self::forward) got and `dy`.
            ///
            /// # Errors
            /// As [`forward_into`](Self::forward_into).
            pub fn backward<T: Element, const N: usize>(
                self,
                x: TensorView<'_, T, N>,
                scale: Option<TensorView<'_, T, 1>>,
                dy: TensorView<'_, T, N>,
            ) -> Result<NormGradients<T, N>> {
                let channels = self.channels(concat!(stringify!($name), "::backward"), x);
                owned(channels, x, |gradients| {
                    channels.check_backward(x, scale, dy, &gradients)?;
                    channels.backward(x, [scale, None], dy, T::ZERO, gradients)
                })
            }

            /// The gradients asked for, each added to `beta` times what its output held: beta 0 overwrites without
            /// reading, 1 accumulates.
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
                let channels = self.channels(concat!(stringify!($name), "::backward_into"), x);
                channels.check_backward(x, scale, dy, &gradients)?;
                channels.backward(x, [scale, None], dy, beta, gradients)
            }
        }
    };
}

calls!(GroupNormalization, |self, _x| self.groups);
calls!(InstanceNormalization, |self, x| x.shape().get(1).copied().unwrap_or(0));
