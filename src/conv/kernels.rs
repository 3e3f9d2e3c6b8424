//! What is compiled in this crate, for each element type, and not again in every crate that convolves.
#![forbid(unsafe_code)]

use super::Algorithm;
use super::bias;
use super::correlate::Call;
use super::transpose::Scatter;
use super::weight_gradient;
use super::weights::{Cut, Filter};
use crate::error::Result;
use crate::machine::Isa;
use crate::simd::kernels;
use crate::spatial::Sliding;
use crate::tensor::{TensorView, TensorViewMut};

kernels! {
    /// Element types with their convolutions.
    pub trait Convolve {
        /// [`Call::run`].
        fn correlate(call: &Call<'_, Self>, y: TensorViewMut<'_, Self, 5>) -> Result<()> {
            call.run(y)
        }

        /// [`Scatter::run`].
        fn scatter(scatter: &Scatter<'_, Self>, y: TensorViewMut<'_, Self, 5>) -> Result<()> {
            scatter.run(y)
        }

        /// [`weight_gradient::run`].
        fn weight_gradient(
            op: &'static str,
            isa: Isa,
            operands: [TensorView<'_, Self, 5>; 2],
            groups: usize,
            sliding: &Sliding,
            algorithm: Algorithm,
            dw: TensorViewMut<'_, Self, 5>,
        ) -> Result<()> {
            weight_gradient::run(op, isa, operands, groups, sliding, algorithm, dw)
        }

        /// [`bias::run`].
        fn bias_gradient(
            op: &'static str,
            isa: Isa,
            dz: TensorView<'_, Self, 5>,
            db: TensorViewMut<'_, Self, 1>,
            tasks: usize,
        ) -> Result<()> {
            bias::run(op, isa, dz, db, tasks)
        }

        /// [`Filter::pack`].
        fn pack(filter: &Filter<'_, Self>, op: &'static str, cut: &Cut, data: &mut [Self]) -> Result<()> {
            filter.pack(op, cut, data)
        }
    }
}
