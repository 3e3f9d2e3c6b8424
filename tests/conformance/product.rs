//! Matrix products.

use tilewise::gemm::{Gemm, gemm};
use tilewise::{Element, Tensor};

use super::{Array, Call, Result};

pub const OPERATORS: &[&str] = &["Gemm", "MatMul"];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    if call.node.operator == "MatMul" { matmul::<T>(call) } else { affine::<T>(call) }
}

fn affine<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let (a, b) = (call.need(0)?.tensor::<T, 2>()?, call.need(1)?.tensor::<T, 2>()?);
    let a = if call.flag("transA") { a.view().transpose() } else { a.view() };
    let b = if call.flag("transB") { b.view().transpose() } else { b.view() };
    let shape = [a.shape()[0], b.shape()[1]];
    let mut c = match call.input(2) {
        Some(c) => c.broadcast(&shape)?.to(shape)?,
        None => Tensor::zeros(shape)?,
    };
    let [alpha, beta] = ["alpha", "beta"].map(|name| T::from_f64(call.float(name, 1.0)));
    gemm(alpha, a, b, beta, c.view_mut())?;
    Ok(vec![c.into()])
}

/// As NumPy has it: vectors are a row or a column, all other axes but the last two broadcast.
fn matmul<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let (mut a, mut b) = (call.need(0)?.clone(), call.need(1)?.clone());
    let vectors = [a.rank() == 1, b.rank() == 1];
    if vectors[0] {
        a.shape.insert(0, 1);
    }
    if vectors[1] {
        b.shape.push(1);
    }
    let (more_a, [m, k]) = split(&a.shape);
    let (more_b, [_, n]) = split(&b.shape);
    let rank = more_a.len().max(more_b.len());
    let size = |more: &[usize], axis: usize| (axis + more.len()).checked_sub(rank).map_or(1, |at| more[at]);
    let more: Vec<usize> = (0..rank)
        .map(|axis| [size(more_a, axis), size(more_b, axis)])
        .map(|[a, b]| if a == 1 { b } else { a })
        .collect();
    let batch = more.iter().product();
    let of = |x: &Array, rows, columns| {
        x.broadcast(&[&more[..], &[rows, columns]].concat())?.to([batch, rows, columns])
    };
    let (a, b) = (of(&a, m, k)?, of(&b, k, n)?);
    let mut c = Tensor::<T, 3>::zeros([batch, m, n])?;
    Gemm::new().run_batched(a.view(), b.view(), c.view_mut())?;
    let mut shape = more;
    shape.extend([(!vectors[0]).then_some(m), (!vectors[1]).then_some(n)].into_iter().flatten());
    Ok(vec![Array::new(c.as_slice(), &shape)])
}

/// All axes but the last two, and these.
fn split(shape: &[usize]) -> (&[usize], [usize; 2]) {
    let (more, last) = shape.split_at(shape.len() - 2);
    (more, [last[0], last[1]])
}
