//! This library.

use tilewise::gemm::{Gemm, Packed, gram};
use tilewise::{Element, TensorView, TensorViewMut};

use super::{Peer, Product, TILEWISE, product};
use crate::problem::{Matrix, Problem};
use crate::workload::Workload;

pub struct Tilewise;

const FITS: &str = "shapes fit and there is memory";

fn view<'a, T: Element>(matrix: Matrix<'a, T>) -> TensorView<'a, T, 2> {
    let view = TensorView::from_slice(matrix.data, matrix.stored()).expect(FITS);
    if matrix.transposed { view.transpose() } else { view }
}

fn output<T: Element>(c: &mut [T], m: usize, n: usize) -> TensorViewMut<'_, T, 2> {
    TensorViewMut::from_slice(c, [m, n]).expect(FITS)
}

/// C = A · Aᵀ.
fn tilewise_gram<T: Element>(a: TensorView<'_, T, 2>, c: TensorViewMut<'_, T, 2>) {
    gram(T::ONE, a, T::ZERO, c).expect(FITS);
}

impl<T: Element> Peer<T> for Tilewise {
    fn name(&self) -> &'static str {
        TILEWISE
    }

    fn about(&self) -> String {
        let isa = tilewise::machine::isa().map_or_else(|error| error.to_string(), |isa| isa.to_string());
        format!("{}, {isa}", super::version("tilewise"))
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<T>) -> Option<Box<dyn Product<T> + 'p>> {
        let Workload { m, n, k, batch, gram: a_with_itself, prepacked, .. } = problem.workload;
        if batch > 1 {
            let a = TensorView::from_slice(problem.a().data, [batch, m, k]).expect(FITS);
            let b = TensorView::from_slice(problem.b().data, [batch, k, n]).expect(FITS);
            return product(move |c| {
                let c = TensorViewMut::from_slice(c, [batch, m, n]).expect(FITS);
                Gemm::new().run_batched(a, b, c).expect(FITS);
            });
        }
        let (a, b) = (view(problem.a()), view(problem.b()));
        if a_with_itself {
            return product(move |c| tilewise_gram(a, output(c, m, n)));
        }
        if prepacked {
            let packed = Packed::rhs(b).expect(FITS);
            return product(move |c| Gemm::new().run(a, &packed, output(c, m, n)).expect(FITS));
        }
        product(move |c| Gemm::new().run(a, b, output(c, m, n)).expect(FITS))
    }
}
