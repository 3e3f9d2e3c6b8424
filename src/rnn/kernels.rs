//! What is compiled in this crate, for each element type, and not again in every crate that has sequences.
#![forbid(unsafe_code)]

use super::descriptor::Spec;
use super::sequence::{Output, OutputGradients, OutputMut, Sequence, StateMut};
use super::tape::Tape;
use super::weights::{GradientsMut, Operand, PackedWeights, Weights};
use super::{backward, forward};
use crate::error::Result;
use crate::simd::kernels;
use crate::tensor::TensorView;

kernels! {
    /// Element types with their recurrences.
    pub trait Recur {
        /// [`PackedWeights::pack`].
        fn pack_recurrent(spec: Spec, weights: Weights<'_, Self>) -> Result<PackedWeights<Self>> {
            PackedWeights::pack(spec, weights)
        }

        /// [`forward::owned`].
        fn recur(
            op: &'static str,
            spec: Spec,
            sequence: Sequence<'_, Self>,
            weights: Operand<'_, Self>,
            tape: Option<&mut Tape<Self>>,
        ) -> Result<Output<Self>> {
            forward::owned(op, spec, sequence, weights, tape)
        }

        /// [`forward::into`].
        fn recur_into(
            op: &'static str,
            spec: Spec,
            sequence: Sequence<'_, Self>,
            weights: Operand<'_, Self>,
            output: OutputMut<'_, Self>,
            tape: Option<&mut Tape<Self>>,
        ) -> Result<()> {
            forward::into(op, spec, sequence, weights, output, tape)
        }

        /// [`forward::step`].
        fn recur_step(
            spec: Spec,
            x: TensorView<'_, Self, 2>,
            weights: Operand<'_, Self>,
            state: StateMut<'_, Self>,
        ) -> Result<()> {
            forward::step(spec, x, weights, state)
        }

        /// [`backward::into`].
        #[allow(clippy::too_many_arguments, reason = "those of the public call")]
        fn recur_backward(
            op: &'static str,
            spec: Spec,
            sequence: Sequence<'_, Self>,
            weights: Weights<'_, Self>,
            tape: &Tape<Self>,
            outputs: OutputGradients<'_, Self>,
            beta: Self,
            gradients: GradientsMut<'_, Self>,
        ) -> Result<()> {
            backward::into(op, spec, sequence, weights, tape, outputs, beta, gradients)
        }
    }
}
