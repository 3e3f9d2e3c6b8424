//! The crate `matrixmultiply`. Its threads are its own, as many as `MATMUL_NUM_THREADS` says.

use rayon::prelude::*;

use super::{Peer, Product, product};
use crate::problem::{Matrix, Problem};

pub struct MatrixMultiply;

macro_rules! peer {
    ($T:ty, $multiply:ident, $gemm:path) => {
        fn $multiply(a: Matrix<'_, $T>, b: Matrix<'_, $T>, c: &mut [$T]) {
            let (m, n, k) = (a.rows, b.columns, a.columns);
            assert!(c.len() == m * n && a.data.len() == m * k && b.data.len() == k * n);
            let [a_row, a_column] = a.strides().map(|stride| stride as isize);
            let [b_row, b_column] = b.strides().map(|stride| stride as isize);
            let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
            // SAFETY: shapes and strides are those of matrices that fill these slices, as asserted.
            unsafe { $gemm(m, k, n, 1.0, a, a_row, a_column, b, b_row, b_column, 0.0, c, n as isize, 1) };
        }

        impl Peer<$T> for MatrixMultiply {
            fn name(&self) -> &'static str {
                "matrixmultiply"
            }

            fn about(&self) -> String {
                super::version("matrixmultiply")
            }

            fn prepare<'p>(&'p self, problem: &'p Problem<$T>) -> Option<Box<dyn Product<$T> + 'p>> {
                let (a, b) = (problem.a(), problem.b());
                if problem.workload.batch > 1 {
                    return product(move |c: &mut [$T]| {
                        let entries = c.par_chunks_mut(a.rows * b.columns).enumerate();
                        entries.for_each(|(i, c)| $multiply(a.entry(i), b.entry(i), c));
                    });
                }
                product(move |c: &mut [$T]| $multiply(a, b, c))
            }
        }
    };
}

peer!(f32, multiply_f32, matrixmultiply::sgemm);
peer!(f64, multiply_f64, matrixmultiply::dgemm);
