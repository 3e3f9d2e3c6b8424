//! The crate `rten-gemm`: `f32` only, B packed before where that is allowed.

use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;

use super::{Peer, Product, product};
use crate::problem::{Matrix, Problem};

pub struct Rten {
    executor: GemmExecutor,
}

impl Rten {
    pub fn new() -> Self {
        Rten { executor: GemmExecutor::new() }
    }

    fn multiply(&self, a: Matrix<'_, f32>, b: GemmInputB<'_, f32>, c: &mut [f32]) {
        let a = GemmInputA::Unpacked(view(a));
        self.executor.gemm(c, a, b, GemmOptions::default()).expect("shapes fit");
    }
}

fn view<'a>(matrix: Matrix<'a, f32>) -> NdTensorView<'a, f32, 2> {
    let view = NdTensorView::from_data(matrix.stored(), matrix.data);
    if matrix.transposed { view.transposed() } else { view }
}

impl Peer<f32> for Rten {
    fn name(&self) -> &'static str {
        "rten-gemm"
    }

    fn about(&self) -> String {
        format!("{}, kernel {}", super::version("rten-gemm"), self.executor.kernel_name())
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<f32>) -> Option<Box<dyn Product<f32> + 'p>> {
        let (a, b) = (problem.a(), problem.b());
        if problem.workload.batch > 1 {
            return product(move |c: &mut [f32]| {
                let entries = c.par_chunks_mut(a.rows * b.columns).enumerate();
                entries.for_each(|(i, c)| {
                    self.multiply(a.entry(i), GemmInputB::Unpacked(view(b.entry(i))), c);
                });
            });
        }
        if problem.workload.prepacked {
            let packed = self.executor.prepack_b(view(b));
            return product(move |c: &mut [f32]| self.multiply(a, GemmInputB::Packed(&packed), c));
        }
        product(move |c: &mut [f32]| self.multiply(a, GemmInputB::Unpacked(view(b)), c))
    }
}
