//! What is compiled in this crate, for each element type, and not again in every crate that attends.

use super::backward::Backward;
use super::plan::Plan;
use super::{AttentionGradientsMut, run, run_backward};
use crate::error::Result;
use crate::simd::kernels;
use crate::tensor::{TensorView, TensorViewMut};

kernels! {
    /// Element types with attention.
    pub trait Attends {
        /// Y, and the logarithms of the sums, from Q, K and V.
        fn attend(
            plan: &Plan<'_, Self>,
            operands: [TensorView<'_, Self, 4>; 3],
            y: TensorViewMut<'_, Self, 4>,
            normalizer: Option<TensorViewMut<'_, Self, 3>>,
        ) -> Result<()> {
            run(plan, operands, y, normalizer)
        }

        /// The gradients.
        fn attend_backward(
            call: Backward<'_, '_, Self>,
            gradients: AttentionGradientsMut<'_, Self>,
        ) -> Result<()> {
            run_backward(call, gradients)
        }
    }
}
