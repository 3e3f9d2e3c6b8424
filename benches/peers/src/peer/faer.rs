//! The crate `faer`.

use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use tilewise::Element;

use super::{Peer, Product, product};
use crate::problem::{Matrix, Problem};

pub struct Faer {
    pub threads: usize,
}

fn view<'a, T>(matrix: Matrix<'a, T>) -> MatRef<'a, T> {
    let [rows, columns] = matrix.stored();
    let view = MatRef::from_row_major_slice(matrix.data, rows, columns);
    if matrix.transposed { view.transpose() } else { view }
}

fn multiply<T: Element + ComplexField>(a: Matrix<'_, T>, b: Matrix<'_, T>, c: &mut [T], par: Par) {
    let c = MatMut::from_row_major_slice_mut(c, a.rows, b.columns);
    matmul(c, Accum::Replace, view(a), view(b), T::ONE, par);
}

impl<T: Element + ComplexField> Peer<T> for Faer {
    fn name(&self) -> &'static str {
        "faer"
    }

    fn about(&self) -> String {
        super::version("faer")
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<T>) -> Option<Box<dyn Product<T> + 'p>> {
        let (a, b) = (problem.a(), problem.b());
        if problem.workload.batch > 1 {
            return product(move |c| {
                let entries = c.par_chunks_mut(a.rows * b.columns).enumerate();
                entries.for_each(|(i, c)| multiply(a.entry(i), b.entry(i), c, Par::Seq));
            });
        }
        let par = if self.threads > 1 { Par::rayon(self.threads) } else { Par::Seq };
        product(move |c| multiply(a, b, c, par))
    }
}
