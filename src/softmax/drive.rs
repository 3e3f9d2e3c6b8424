//! From tensors of any rank and strides to the kernels: which path, which tasks, which rows.

use super::kernel::{BLOCK, Backward, Forward, Kernel};
use crate::element::Element;
use crate::error::Result;
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut, sort_few};
use crate::vecmath::Pair;
use crate::workspace::{product, scratch};

/// Fewest elements a task is worth.
const GRAIN: usize = 1 << 13;

/// Elements that are copied at a time, more or less.
const STAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Path {
    Rows,
    Columns,
}

/// The axes in the order of the output's memory, outermost first, and the path: a pure function of shapes and
/// strides, so that the order of additions is one whatever the number of tasks is.
fn plan<const K: usize, const N: usize>(
    shape: [usize; N],
    dst: [isize; N],
    srcs: [[isize; N]; K],
    axis: usize,
) -> ([usize; N], Path) {
    let mut order: [usize; N] = std::array::from_fn(|axis| axis);
    // Strides of axes of size 1 mean nothing; such axes go outermost.
    sort_few(&mut order, |&axis| {
        std::cmp::Reverse(if shape[axis] > 1 { dst[axis].unsigned_abs() } else { usize::MAX })
    });
    let inner = order.last().copied().unwrap_or(axis);
    let contiguous = dst[inner] == 1 && srcs.iter().all(|strides| strides[inner] == 1);
    (order, if inner != axis && contiguous && shape[inner] > 1 { Path::Columns } else { Path::Rows })
}

/// `kernel` along `axis`, which exists, of views of one shape.
pub(super) fn run<T: Element, const K: usize, const N: usize>(
    op: &'static str,
    srcs: [TensorView<'_, T, N>; K],
    dst: TensorViewMut<'_, T, N>,
    axis: usize,
    kernel: impl Kernel<K>,
) -> Result<()> {
    let isa = machine::isa()?;
    if dst.is_empty() {
        return Ok(());
    }
    let (order, path) = plan(dst.shape(), dst.strides(), srcs.map(|src| src.strides()), axis);
    let tasks = parallel::tasks(dst.len(), GRAIN);
    machine::trace(|| format!("{op} {:?} axis {axis} {} {isa} {path:?} {tasks} tasks", dst.shape(), T::NAME));
    let mut ordered = srcs;
    for src in &mut ordered {
        *src = src.permute(order)?;
    }
    let axis = order.iter().position(|&a| a == axis).unwrap_or(0);
    split(Call { op, isa, axis, path, kernel }, ordered, dst.permute(order)?, tasks)
}

#[derive(Clone, Copy)]
pub struct Call<F> {
    op: &'static str,
    isa: Isa,
    axis: usize,
    path: Path,
    kernel: F,
}

fn split<T: Element, const K: usize, const N: usize, F: Kernel<K>>(
    call: Call<F>,
    srcs: [TensorView<'_, T, N>; K],
    dst: TensorViewMut<'_, T, N>,
    tasks: usize,
) -> Result<()> {
    // The outermost axis there is, so that pieces are long in memory.
    let Some(axis) = widest(call.axis, dst.shape()).filter(|_| tasks > 1) else {
        return piece(call, srcs, dst);
    };
    let at = dst.shape()[axis] / 2;
    let (low, high) = dst.split_at(axis, at)?;
    let (mut low_srcs, mut high_srcs) = (srcs, srcs);
    for k in 0..K {
        (low_srcs[k], high_srcs[k]) = srcs[k].split_at(axis, at)?;
    }
    let half = tasks / 2;
    let (first, second) =
        parallel::join(|| split(call, low_srcs, low, half), || split(call, high_srcs, high, tasks - half));
    first.and(second)
}

/// The outermost axis that can be cut: not the softmax's own.
fn widest<const N: usize>(axis: usize, shape: [usize; N]) -> Option<usize> {
    (0..N).find(|&a| a != axis && shape[a] > 1)
}

/// One task: cut further until the axes before and behind the softmax's own merge into one each.
fn piece<T: Element, const K: usize, const N: usize, F: Kernel<K>>(
    call: Call<F>,
    srcs: [TensorView<'_, T, N>; K],
    mut dst: TensorViewMut<'_, T, N>,
) -> Result<()> {
    let shape = dst.shape();
    let merged =
        [shape[..call.axis].iter().product(), shape[call.axis], shape[call.axis + 1..].iter().product()];
    let mut views = [TensorView::from_slice(&[], [0; 3])?; K];
    let viewable = views.iter_mut().zip(srcs).all(|(view, src)| {
        let viewed = src.viewed_as(merged);
        viewed.map(|viewed| *view = viewed).is_some()
    });
    if viewable && let Some(dst) = dst.view_mut().viewed_as(merged) {
        let strided = |strides: [isize; 3]| merged[1] > 1 && strides[1] != 1;
        if call.path == Path::Rows
            && (strided(dst.strides()) || views.iter().any(|view| strided(view.strides())))
        {
            return staged(call, views, dst);
        }
        return F::run(call.isa, Merged { call, srcs: views, dst });
    }
    let Some(axis) = widest(call.axis, shape) else { return Ok(()) };
    for at in 0..shape[axis] {
        let mut part = srcs;
        for src in &mut part {
            *src = src.slice(axis, at..at + 1, 1)?;
        }
        piece(call, part, dst.view_mut().slice(axis, at..at + 1, 1)?)?;
    }
    Ok(())
}

/// As the kernel itself, through contiguous copies of some rows.
fn staged<T: Element, const K: usize, F: Kernel<K>>(
    call: Call<F>,
    srcs: [TensorView<'_, T, 3>; K],
    mut dst: TensorViewMut<'_, T, 3>,
) -> Result<()> {
    let [before, n, behind] = dst.shape();
    let some = (STAGE / n).clamp(1, before);
    let mut buffers = scratch::<T>(call.op, product(call.op, &[some, n, K + 1])?)?;
    let (output, inputs) = buffers.split_at_mut(some * n);
    for at in 0..behind {
        for first in (0..before).step_by(some) {
            let rows = first..before.min(first + some);
            let (shape, len) = ([rows.len(), n, 1], rows.len() * n);
            let mut copies = [TensorView::from_slice(&[], [0; 3])?; K];
            for ((copy, input), src) in copies.iter_mut().zip(inputs.chunks_exact_mut(some * n)).zip(srcs) {
                let input = &mut input[..len];
                let src = src.slice(2, at..at + 1, 1)?.slice(0, rows.clone(), 1)?;
                TensorViewMut::from_slice(&mut *input, shape)?.assign(src)?;
                *copy = TensorView::from_slice(input, shape)?;
            }
            let y = TensorViewMut::from_slice(&mut output[..len], shape)?;
            F::run(call.isa, Merged { call, srcs: copies, dst: y })?;
            let mut to = dst.view_mut().slice(2, at..at + 1, 1)?.slice(0, rows, 1)?;
            to.assign(TensorView::from_slice(&output[..len], shape)?)?;
        }
    }
    Ok(())
}

kernels! {
    /// Element types with softmax.
    pub trait Softmaxes {
        /// Forward.
        fn softmax_forward(isa: Isa, op: Merged<'_, Self, Forward, 1>) -> Result<()>;

        /// Backward.
        fn softmax_backward(isa: Isa, op: Merged<'_, Self, Backward, 2>) -> Result<()>;
    }
}

/// Views of shape \[before, the axis, behind\].
pub struct Merged<'a, T, F, const K: usize> {
    call: Call<F>,
    srcs: [TensorView<'a, T, 3>; K],
    dst: TensorViewMut<'a, T, 3>,
}

impl<T: Element, F: Kernel<K>, const K: usize> SimdOp<T> for Merged<'_, T, F, K> {
    type Output = Result<()>;

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) -> Result<()> {
        let Merged { call, srcs, mut dst } = self;
        // Rows: matrices of rows, one for each index behind. Columns: matrices [axis, behind].
        let (axis, count) = match call.path {
            Path::Rows => (2, dst.shape()[2]),
            Path::Columns => (0, dst.shape()[0]),
        };
        for at in 0..count {
            let mut matrices = [TensorView::from_slice(&[], [0, 0])?; K];
            for (matrix, src) in matrices.iter_mut().zip(srcs) {
                *matrix = src.select(axis, at)?;
            }
            let matrix = dst.view_mut().select(axis, at)?;
            match call.path {
                Path::Rows => rows(call, s, matrices, matrix)?,
                Path::Columns => columns(call, s, matrices, matrix),
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn rows<T: Element, S: Simd<T>, const K: usize, F: Kernel<K>>(
    call: Call<F>,
    s: S,
    srcs: [TensorView<'_, T, 2>; K],
    mut dst: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    let count = dst.shape()[0];
    let mut next = sources(&srcs, 0);
    let mut ahead = None;
    for at in 0..count {
        let row = next;
        next = sources(&srcs, (at + 1).min(count - 1));
        if let Some(dst) = dst.row_mut(at) {
            ahead = call.kernel.row(Pair(s), row, next, ahead, dst);
        }
    }
    Ok(())
}

/// One row of each source; [`piece`] has seen that rows are contiguous.
#[inline(always)]
fn sources<'a, T: Element, const K: usize>(srcs: &[TensorView<'a, T, 2>; K], at: usize) -> [&'a [T]; K] {
    let mut row: [&[T]; K] = [&[]; K];
    for (row, src) in row.iter_mut().zip(srcs) {
        *row = src.row(at).unwrap_or(&[]);
    }
    row
}

#[inline(always)]
fn columns<T: Element, S: Simd<T>, const K: usize, F: Kernel<K>>(
    call: Call<F>,
    s: S,
    srcs: [TensorView<'_, T, 2>; K],
    mut dst: TensorViewMut<'_, T, 2>,
) {
    let width = dst.shape()[1];
    let mut first = 0;
    while width - first >= BLOCK * S::LANES {
        call.kernel.columns::<T, S, BLOCK>(s, &srcs, &mut dst, first, BLOCK * S::LANES);
        first += BLOCK * S::LANES;
    }
    while first < width {
        let count = S::LANES.min(width - first);
        call.kernel.columns::<T, S, 1>(s, &srcs, &mut dst, first, count);
        first += count;
    }
}
