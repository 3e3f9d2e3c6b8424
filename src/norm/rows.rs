//! Normalisation along the last axis: from views of any rank and strides to rows, in parallel.

use super::row::{self, Rule};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::{TensorView, TensorViewMut, sort_few};
use crate::vecmath::Pair;
use crate::workspace::{Scratch, scratch};

/// Fewest elements a task is worth.
const GRAIN: usize = 1 << 14;

/// Most pieces in which rows are summed for the gradients of scale and shift, and the least rows of one.
const PIECES: usize = 64;
/// Rows whose gradients are summed before the sum joins a total.
const FLUSH: usize = 64;

/// Elements of an operand that are copied at a time where its rows are not contiguous.
const STAGE: usize = 1 << 13;

/// Which normalisation; its options, checked.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub op: &'static str,
    pub epsilon: f64,
    /// Whether the mean is subtracted.
    pub centred: bool,
}

/// The axes in the order of the memory of the operand with these strides, the last one staying last.
fn order<const N: usize>(shape: [usize; N], strides: [isize; N]) -> [usize; N] {
    let mut order: [usize; N] = std::array::from_fn(|axis| axis);
    if let Some((_, leading)) = order.split_last_mut() {
        let stride = |axis: usize| if shape[axis] > 1 { strides[axis].unsigned_abs() } else { usize::MAX };
        sort_few(leading, |&axis| std::cmp::Reverse(stride(axis)));
    }
    order
}

/// `[rows, n]`, where all axes but the last merge.
fn merged<const N: usize>(shape: [usize; N]) -> [usize; 2] {
    match shape.split_last() {
        Some((&n, rows)) => [rows.iter().product(), n],
        None => [1, 1],
    }
}

fn matrix<'a, T, const N: usize>(view: TensorView<'a, T, N>) -> Option<TensorView<'a, T, 2>> {
    view.viewed_as(merged(view.shape()))
}

fn matrix_mut<'a, T, const N: usize>(view: TensorViewMut<'a, T, N>) -> Option<TensorViewMut<'a, T, 2>> {
    let shape = merged(view.shape());
    view.viewed_as(shape)
}

/// A scale or shift as a slice, copied where it is strided.
struct Flat<'a, T: Element> {
    slice: Option<&'a [T]>,
    copy: Option<Scratch<T>>,
}

impl<'a, T: Element> Flat<'a, T> {
    fn new(op: &'static str, view: Option<TensorView<'a, T, 1>>) -> Result<Self> {
        let Some(view) = view else { return Ok(Self { slice: None, copy: None }) };
        if let Some(slice) = view.as_slice() {
            return Ok(Self { slice: Some(slice), copy: None });
        }
        let mut copy = scratch(op, view.len())?;
        TensorViewMut::from_slice(&mut copy, [view.len()])?.assign(view)?;
        Ok(Self { slice: None, copy: Some(copy) })
    }

    fn get(&self) -> Option<&[T]> {
        self.slice.or(self.copy.as_deref())
    }
}

/// Operands of a forward call, or parts of them.
pub(super) struct Operands<'a, T, const N: usize> {
    pub x: TensorView<'a, T, N>,
    /// Added to `x`, and where the sum goes.
    pub residual: Option<(TensorView<'a, T, N>, TensorViewMut<'a, T, N>)>,
    pub y: TensorViewMut<'a, T, N>,
}

impl<'a, T: Element, const N: usize> Operands<'a, T, N> {
    fn permute(self, order: [usize; N]) -> Result<Self> {
        let residual = match self.residual {
            Some((residual, sum)) => Some((residual.permute(order)?, sum.permute(order)?)),
            None => None,
        };
        Ok(Self { x: self.x.permute(order)?, residual, y: self.y.permute(order)? })
    }

    fn split_at(self, axis: usize, at: usize) -> Result<(Self, Self)> {
        let (x, high_x) = self.x.split_at(axis, at)?;
        let (y, high_y) = self.y.split_at(axis, at)?;
        let (residual, high_residual) = match self.residual {
            Some((residual, sum)) => {
                let (residual, high_residual) = residual.split_at(axis, at)?;
                let (sum, high_sum) = sum.split_at(axis, at)?;
                (Some((residual, sum)), Some((high_residual, high_sum)))
            }
            None => (None, None),
        };
        Ok((Self { x, residual, y }, Self { x: high_x, residual: high_residual, y: high_y }))
    }

    fn slice(&mut self, axis: usize, at: usize) -> Result<Operands<'_, T, N>> {
        let residual = match &mut self.residual {
            Some((residual, sum)) => {
                Some((residual.slice(axis, at..=at, 1)?, sum.view_mut().slice(axis, at..=at, 1)?))
            }
            None => None,
        };
        let (x, y) = (self.x.slice(axis, at..=at, 1)?, self.y.view_mut().slice(axis, at..=at, 1)?);
        Ok(Operands { x, residual, y })
    }

    /// As matrices of rows, where the axes of all merge.
    fn matrices(&mut self) -> Option<Operands<'_, T, 2>> {
        let residual = match &mut self.residual {
            Some((residual, sum)) => Some((matrix(*residual)?, matrix_mut(sum.view_mut())?)),
            None => None,
        };
        Some(Operands { x: matrix(self.x)?, residual, y: matrix_mut(self.y.view_mut())? })
    }
}

#[derive(Clone, Copy)]
struct Call<'a, T> {
    rows: Rows,
    rule: Rule,
    isa: Isa,
    scale: Option<&'a [T]>,
    shift: Option<&'a [T]>,
}

impl Rows {
    fn call<'a, T: Element>(
        self,
        n: usize,
        scale: Option<&'a [T]>,
        shift: Option<&'a [T]>,
    ) -> Result<Call<'a, T>> {
        let rule = Rule { epsilon: self.epsilon, inverse: 1.0 / n as f64 };
        Ok(Call { rows: self, rule, isa: machine::isa()?, scale, shift })
    }

    /// The shapes fit. `x` has at least one axis.
    pub(super) fn forward<T: Element, const N: usize>(
        self,
        operands: Operands<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<()> {
        let shape = operands.y.shape();
        let [_, n] = merged(shape);
        machine::isa()?;
        if operands.y.is_empty() {
            return Ok(());
        }
        let ones;
        let (scale, shift) = (Flat::new(self.op, scale)?, Flat::new(self.op, shift)?);
        let mut factors = scale.get();
        if factors.is_none() && shift.get().is_some() {
            let mut buffer = scratch(self.op, n)?;
            buffer.fill(T::ONE);
            ones = buffer;
            factors = Some(&ones);
        }
        let call = self.call(n, factors, shift.get())?;
        let tasks = parallel::tasks(operands.y.len(), GRAIN);
        machine::trace(|| format!("{} {shape:?} {} {} {tasks} tasks", self.op, T::NAME, call.isa));
        let order = order(shape, operands.y.strides());
        forward(call, operands.permute(order)?, tasks)
    }
}

/// μ and 1/√(σ² + ε) of rows of `n`, in pairs.
pub(super) fn statistics<T: Element>(rows: Rows, x: &[T], n: usize, pairs: &mut [T]) -> Result<()> {
    let rule = Rule { epsilon: rows.epsilon, inverse: 1.0 / n as f64 };
    let (isa, tasks) = (machine::isa()?, parallel::tasks(x.len(), GRAIN));
    machine::trace(|| format!("{} [{}, {n}] {} {isa} {tasks} tasks", rows.op, pairs.len() / 2, T::NAME));
    parallel::for_each_chunk_mut(pairs, 2, tasks, &|first, pairs| {
        let x = &x[first * n..(first + pairs.len() / 2) * n];
        T::row_statistics(isa, Statistics { rule, x, n, pairs });
    });
    Ok(())
}

kernels! {
    /// Element types with the normalisation of rows.
    pub trait RowKernels {
        /// [`Statistics`].
        fn row_statistics(isa: Isa, op: Statistics<'_, Self>);

        /// [`Forward`].
        fn normalize_rows(isa: Isa, op: Forward<'_, Self>);

        /// [`Backward`].
        fn row_gradients(isa: Isa, op: Backward<'_, Self>);
    }
}

pub struct Statistics<'a, T> {
    rule: Rule,
    x: &'a [T],
    n: usize,
    pairs: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Statistics<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Statistics { rule, x, n, pairs } = self;
        for (row, pair) in pairs.chunks_exact_mut(2).enumerate() {
            pair.copy_from_slice(&row::statistics(s, rule, &x[row * n..(row + 1) * n]));
        }
    }
}

fn forward<T: Element, const N: usize>(
    call: Call<'_, T>,
    mut operands: Operands<'_, T, N>,
    tasks: usize,
) -> Result<()> {
    let shape = operands.y.shape();
    let widest = (0..N.saturating_sub(1)).find(|&axis| shape[axis] > 1);
    if tasks > 1
        && let Some(axis) = widest
    {
        let (low, high) = operands.split_at(axis, shape[axis] / 2)?;
        let half = tasks / 2;
        let (first, second) =
            parallel::join(|| forward(call, low, half), || forward(call, high, tasks - half));
        return first.and(second);
    }
    if let Some(matrices) = operands.matrices() {
        return forward_matrix(call, matrices);
    }
    let Some(axis) = widest else { return Ok(()) };
    for at in 0..shape[axis] {
        forward(call, operands.slice(axis, at)?, 1)?;
    }
    Ok(())
}

/// Rows that are copied at a time.
fn stage(n: usize) -> usize {
    (STAGE / n.max(1)).max(1)
}

fn forward_matrix<T: Element>(call: Call<'_, T>, mut operands: Operands<'_, T, 2>) -> Result<()> {
    let [rows, n] = operands.y.shape();
    let contiguous = operands.x.row(0).is_some()
        && operands.y.row_mut(0).is_some()
        && operands.residual.as_mut().is_none_or(|(r, sum)| r.row(0).is_some() && sum.row_mut(0).is_some());
    if contiguous {
        T::normalize_rows(call.isa, Forward { call, operands });
        return Ok(());
    }
    let count = stage(n).min(rows);
    let mut buffer = scratch::<T>(call.rows.op, 4 * count * n)?;
    for first in (0..rows).step_by(count) {
        let range = first..rows.min(first + count);
        let (shape, size) = ([range.len(), n], range.len() * n);
        let (x, rest) = buffer.split_at_mut(size);
        let (y, rest) = rest.split_at_mut(size);
        let (r, rest) = rest.split_at_mut(size);
        TensorViewMut::matrix(x, shape).assign(operands.x.slice(0, range.clone(), 1)?)?;
        let staged = match &operands.residual {
            Some((residual, _)) => {
                TensorViewMut::matrix(r, shape).assign(residual.slice(0, range.clone(), 1)?)?;
                Some((TensorView::from_slice(r, shape)?, TensorViewMut::matrix(&mut rest[..size], shape)))
            }
            None => None,
        };
        let x = TensorView::from_slice(x, shape)?;
        let staged = Operands { x, residual: staged, y: TensorViewMut::matrix(y, shape) };
        T::normalize_rows(call.isa, Forward { call, operands: staged });
        operands.y.view_mut().slice(0, range.clone(), 1)?.assign(TensorView::from_slice(y, shape)?)?;
        if let Some((_, sum)) = &mut operands.residual {
            let staged = TensorView::from_slice(&rest[..size], shape)?;
            sum.view_mut().slice(0, range, 1)?.assign(staged)?;
        }
    }
    Ok(())
}

/// Contiguous rows.
pub struct Forward<'a, T> {
    call: Call<'a, T>,
    operands: Operands<'a, T, 2>,
}

impl<T: Element> SimdOp<T> for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        if self.call.rows.centred { self.run::<S, true>(s) } else { self.run::<S, false>(s) }
    }
}

impl<T: Element> Forward<'_, T> {
    #[inline(always)]
    fn run<S: Simd<T>, const CENTRED: bool>(self, s: S) {
        let Forward { call: Call { rule, scale, shift, .. }, operands } = self;
        let Operands { x, mut residual, mut y } = operands;
        let s = Pair(s);
        for at in 0..y.shape()[0] {
            let (Some(mut x), Some(y)) = (x.row(at), y.row_mut(at)) else { return };
            if let Some((residual, sum)) = &mut residual {
                let (Some(residual), Some(sum)) = (residual.row(at), sum.row_mut(at)) else { return };
                row::add(s, x, residual, sum);
                x = sum;
            }
            row::forward::<T, _, CENTRED>(s, rule, x, [scale, shift], y);
        }
    }
}

/// Operands of a backward call, or parts of them.
pub(super) struct Gradients<'a, T, const N: usize> {
    pub x: TensorView<'a, T, N>,
    pub dy: TensorView<'a, T, N>,
    pub dx: Option<TensorViewMut<'a, T, N>>,
}

impl<'a, T: Element, const N: usize> Gradients<'a, T, N> {
    fn slice(&mut self, axis: usize, at: usize) -> Result<Gradients<'_, T, N>> {
        let dx = match &mut self.dx {
            Some(dx) => Some(dx.view_mut().slice(axis, at..=at, 1)?),
            None => None,
        };
        Ok(Gradients { x: self.x.slice(axis, at..=at, 1)?, dy: self.dy.slice(axis, at..=at, 1)?, dx })
    }

    fn split_at(self, axis: usize, at: usize) -> Result<(Self, Self)> {
        let ((x, high_x), (dy, high_dy)) = (self.x.split_at(axis, at)?, self.dy.split_at(axis, at)?);
        let (dx, high_dx) = match self.dx {
            Some(dx) => {
                let (low, high) = dx.split_at(axis, at)?;
                (Some(low), Some(high))
            }
            None => (None, None),
        };
        Ok((Self { x, dy, dx }, Self { x: high_x, dy: high_dy, dx: high_dx }))
    }

    /// As matrices of rows, where the axes of all merge.
    fn matrices(&mut self) -> Option<Gradients<'_, T, 2>> {
        let dx = match &mut self.dx {
            Some(dx) => Some(matrix_mut(dx.view_mut())?),
            None => None,
        };
        Some(Gradients { x: matrix(self.x)?, dy: matrix(self.dy)?, dx })
    }
}

impl Rows {
    /// The shapes fit. `x` has at least one axis. `parameters` are dscale and dshift; without a mean, only the first
    /// is written.
    pub(super) fn backward<T: Element, const N: usize>(
        self,
        operands: Gradients<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        beta: T,
        parameters: [Option<TensorViewMut<'_, T, 1>>; 2],
    ) -> Result<()> {
        let shape = operands.x.shape();
        let [_, n] = merged(shape);
        let isa = machine::isa()?;
        machine::trace(|| format!("{} {shape:?} {} {isa}", self.op, T::NAME));
        let mut sums = None;
        if parameters.iter().any(Option::is_some) {
            let mut buffer = scratch::<T>(self.op, 2 * n)?;
            buffer.fill(T::ZERO);
            sums = Some(buffer);
        } else if operands.dx.as_ref().is_none_or(|dx| dx.is_empty()) {
            return Ok(());
        }
        if !operands.x.is_empty() {
            let scale = Flat::new(self.op, scale)?;
            let call = self.call(n, scale.get(), None)?;
            let strides = operands.dx.as_ref().map_or(operands.x.strides(), |dx| dx.strides());
            let order = order(shape, strides);
            let dx = match operands.dx {
                Some(dx) => Some(dx.permute(order)?),
                None => None,
            };
            let (x, dy) = (operands.x.permute(order)?, operands.dy.permute(order)?);
            backward(call, beta, Gradients { x, dy, dx }, sums.as_deref_mut())?;
        }
        let Some(sums) = sums else { return Ok(()) };
        for (parameter, sums) in parameters.into_iter().zip([&sums[..n], &sums[n..]]) {
            let Some(mut parameter) = parameter else { continue };
            for (at, &sum) in sums.iter().enumerate() {
                if let Some(out) = parameter.get_mut([at]) {
                    *out = if beta == T::ZERO { sum } else { sum + beta * *out };
                }
            }
        }
        Ok(())
    }
}

/// Matrix by matrix, where the axes do not merge into one. `sums` is added to.
fn backward<T: Element, const N: usize>(
    call: Call<'_, T>,
    beta: T,
    mut operands: Gradients<'_, T, N>,
    mut sums: Option<&mut [T]>,
) -> Result<()> {
    if let Some(matrices) = operands.matrices() {
        return backward_matrix(call, beta, matrices, sums);
    }
    let shape = operands.x.shape();
    let Some(axis) = (0..N.saturating_sub(1)).find(|&axis| shape[axis] > 1) else { return Ok(()) };
    for at in 0..shape[axis] {
        backward(call, beta, operands.slice(axis, at)?, sums.as_deref_mut())?;
    }
    Ok(())
}

/// Rows in a piece: a function of the shape alone, because a piece is one sum.
fn piece(rows: usize) -> usize {
    rows.div_ceil(PIECES).max(FLUSH)
}

fn backward_matrix<T: Element>(
    call: Call<'_, T>,
    beta: T,
    operands: Gradients<'_, T, 2>,
    sums: Option<&mut [T]>,
) -> Result<()> {
    let [rows, n] = operands.x.shape();
    let size = piece(rows);
    let tasks = parallel::tasks(operands.x.len(), GRAIN);
    let Some(sums) = sums else { return pieces(call, beta, operands, None, size, tasks) };
    // Of each piece the totals of dscale and dshift, and their running sums.
    let count = rows.div_ceil(size).checked_mul(4 * n);
    let mut partial = scratch::<T>(call.rows.op, count.unwrap_or(usize::MAX))?;
    pieces(call, beta, operands, Some(&mut partial), size, tasks)?;
    for partial in partial.chunks_exact(4 * n) {
        sums.iter_mut().zip(partial).for_each(|(sum, &part)| *sum += part);
    }
    Ok(())
}

fn pieces<T: Element>(
    call: Call<'_, T>,
    beta: T,
    mut operands: Gradients<'_, T, 2>,
    partial: Option<&mut [T]>,
    size: usize,
    tasks: usize,
) -> Result<()> {
    let [rows, n] = operands.x.shape();
    let count = rows.div_ceil(size);
    if tasks <= 1 || count <= 1 {
        let mut partial = partial;
        for first in (0..rows).step_by(size) {
            let (low, high) = operands.split_at(0, size.min(rows - first))?;
            operands = high;
            let (part, rest) = partial.map(|partial| partial.split_at_mut(4 * n)).unzip();
            partial = rest;
            one_piece(call, beta, low, part)?;
        }
        return Ok(());
    }
    let half = count / 2;
    let (low, high) = operands.split_at(0, half * size)?;
    let (low_partial, high_partial) = partial.map(|partial| partial.split_at_mut(half * 4 * n)).unzip();
    let (first, second) = parallel::join(
        || pieces(call, beta, low, low_partial, size, tasks / 2),
        || pieces(call, beta, high, high_partial, size, tasks - tasks / 2),
    );
    first.and(second)
}

fn one_piece<T: Element>(
    call: Call<'_, T>,
    beta: T,
    mut operands: Gradients<'_, T, 2>,
    mut partial: Option<&mut [T]>,
) -> Result<()> {
    let [rows, n] = operands.x.shape();
    if let Some(partial) = &mut partial {
        partial.fill(T::ZERO);
    }
    let contiguous = operands.x.row(0).is_some()
        && operands.dy.row(0).is_some()
        && operands.dx.as_mut().is_none_or(|dx| dx.row_mut(0).is_some());
    if contiguous {
        T::row_gradients(call.isa, Backward { call, beta, operands, partial, first: 0 });
        return Ok(());
    }
    let count = stage(n).min(rows);
    let mut buffer = scratch::<T>(call.rows.op, 3 * count * n)?;
    for first in (0..rows).step_by(count) {
        let range = first..rows.min(first + count);
        let (shape, size) = ([range.len(), n], range.len() * n);
        let (x, rest) = buffer.split_at_mut(size);
        let (dy, rest) = rest.split_at_mut(size);
        TensorViewMut::matrix(x, shape).assign(operands.x.slice(0, range.clone(), 1)?)?;
        TensorViewMut::matrix(dy, shape).assign(operands.dy.slice(0, range.clone(), 1)?)?;
        let mut dx = None;
        if let Some(held) = &operands.dx {
            let mut copy = TensorViewMut::matrix(rest, shape);
            if beta != T::ZERO {
                copy.assign(held.view().slice(0, range.clone(), 1)?)?;
            }
            dx = Some(copy);
        }
        let staged =
            Gradients { x: TensorView::from_slice(x, shape)?, dy: TensorView::from_slice(dy, shape)?, dx };
        let partial = partial.as_deref_mut();
        T::row_gradients(call.isa, Backward { call, beta, operands: staged, partial, first });
        if let Some(dx) = &mut operands.dx {
            let staged = TensorView::from_slice(&rest[..size], shape)?;
            dx.view_mut().slice(0, range, 1)?.assign(staged)?;
        }
    }
    Ok(())
}

/// Contiguous rows, the first of which has this number in its piece.
pub struct Backward<'a, T> {
    call: Call<'a, T>,
    beta: T,
    operands: Gradients<'a, T, 2>,
    partial: Option<&'a mut [T]>,
    first: usize,
}

impl<T: Element> SimdOp<T> for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        if self.call.rows.centred { self.run::<S, true>(s) } else { self.run::<S, false>(s) }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn run<S: Simd<T>, const CENTRED: bool>(self, s: S) {
        let Backward { call: Call { rule, scale, .. }, beta, operands, partial, first } = self;
        let Gradients { x, dy, mut dx } = operands;
        let ([rows, n], s) = (x.shape(), Pair(s));
        let mut sums = partial.map(|partial| partial.split_at_mut(2 * n));
        for at in 0..rows {
            let (Some(x), Some(dy)) = (x.row(at), dy.row(at)) else { return };
            let dx = dx.as_mut().and_then(|dx| dx.row_mut(at));
            let parameters = sums.as_mut().map(|(_, running)| running.split_at_mut(n).into());
            row::backward::<T, _, CENTRED>(s, rule, x, scale, dy, (beta, dx), parameters);
            let last = (first + at + 1).is_multiple_of(FLUSH) || at + 1 == rows;
            if last && let Some((totals, running)) = &mut sums {
                for (total, running) in totals.iter_mut().zip(running.iter_mut()) {
                    *total += std::mem::take(running);
                }
            }
        }
    }
}

/// An error unless ε is a number that can stand under the root.
pub(super) fn check_epsilon(op: &'static str, epsilon: f64) -> Result<()> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(op, "epsilon", epsilon, "finite and at least 0"))
}
