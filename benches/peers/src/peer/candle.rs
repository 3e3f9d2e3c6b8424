//! The crate `candle-core` on the CPU. It keeps copies of the operands, and allocates C in each call: its
//! interface has no other.

use candle_core::{Device, Tensor, WithDType};
use tilewise::Element;

use super::{Peer, Product};
use crate::problem::{Matrix, Problem};
use crate::workload::Workload;

pub struct Candle;

const FITS: &str = "shapes fit";

fn tensor<T: WithDType>(matrix: Matrix<'_, T>, batch: usize) -> Tensor {
    let [rows, columns] = matrix.stored();
    let tensor = match batch {
        1 => Tensor::from_slice(matrix.data, (rows, columns), &Device::Cpu),
        _ => Tensor::from_slice(matrix.data, (batch, rows, columns), &Device::Cpu),
    };
    let tensor = tensor.expect(FITS);
    if matrix.transposed { tensor.t().expect(FITS) } else { tensor }
}

struct Run {
    a: Tensor,
    b: Tensor,
    c: Option<Tensor>,
}

impl<T: Element + WithDType> Product<T> for Run {
    fn run(&mut self, _c: &mut [T]) {
        // The last result's memory may serve again.
        self.c = None;
        self.c = Some(self.a.matmul(&self.b).expect(FITS));
    }

    fn complete(&mut self, c: &mut [T]) {
        let result = self.c.take().expect("it has run");
        c.copy_from_slice(&result.flatten_all().expect(FITS).to_vec1::<T>().expect(FITS));
    }
}

impl<T: Element + WithDType> Peer<T> for Candle {
    fn name(&self) -> &'static str {
        "candle"
    }

    fn about(&self) -> String {
        format!("{}, allocates its output in the call", super::version("candle-core"))
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<T>) -> Option<Box<dyn Product<T> + 'p>> {
        let Workload { batch, gram, .. } = problem.workload;
        let a = tensor(problem.a(), batch);
        // The transposed view shares A's memory, as it does for the others.
        let b = if gram { a.t().expect(FITS) } else { tensor(problem.b(), batch) };
        Some(Box::new(Run { a, b, c: None }))
    }
}
