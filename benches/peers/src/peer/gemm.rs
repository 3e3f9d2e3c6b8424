//! The crate `gemm`.

use gemm::Parallelism;
use rayon::prelude::*;
use tilewise::Element;

use super::{Peer, Product, product};
use crate::problem::{Matrix, Problem};

pub struct Gemm {
    pub threads: usize,
}

fn multiply<T: Element>(a: Matrix<'_, T>, b: Matrix<'_, T>, c: &mut [T], threads: usize) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(c.len() == m * n && a.data.len() == m * k && b.data.len() == k * n);
    let ([a_row, a_column], [b_row, b_column]) = (a.strides(), b.strides());
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: shapes and strides are those of matrices that fill these slices, as asserted.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.data.as_ptr(),
            b_column as isize,
            b_row as isize,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

impl<T: Element> Peer<T> for Gemm {
    fn name(&self) -> &'static str {
        "gemm"
    }

    fn about(&self) -> String {
        super::version("gemm")
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<T>) -> Option<Box<dyn Product<T> + 'p>> {
        let (a, b, threads) = (problem.a(), problem.b(), self.threads);
        if problem.workload.batch > 1 {
            return product(move |c| {
                let entries = c.par_chunks_mut(a.rows * b.columns).enumerate();
                entries.for_each(|(i, c)| multiply(a.entry(i), b.entry(i), c, 1));
            });
        }
        product(move |c| multiply(a, b, c, threads))
    }
}
