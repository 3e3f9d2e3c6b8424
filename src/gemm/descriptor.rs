//! The public calls: options, checks, and the choice of a path.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::blocking::{tile, turns, turns_small};
use super::driver::{self, Extent, Input, Path, Scale};
use super::epilogue::{Bias, Epilogue};
use super::packed::{Packed, Side};
use super::{gram, panel, thin, tiny, vector};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::kernels;
use crate::tensor::{TensorView, TensorViewMut};

const OP: &str = "gemm";

/// A matrix to multiply: a view with any strides (negative and zero ones too), or one packed before.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a, T> {
    /// A matrix in memory.
    View(TensorView<'a, T, 2>),
    /// A matrix packed by [`Packed::lhs`] or [`Packed::rhs`].
    Packed(&'a Packed<T>),
}

/// One matrix for each entry of a batch, or one for all.
#[derive(Clone, Copy, Debug)]
pub enum BatchOperand<'a, T> {
    /// `[batch, rows, columns]`; a batch of 1 serves every entry.
    View(TensorView<'a, T, 3>),
    /// A packed matrix that serves every entry.
    Packed(&'a Packed<T>),
}

impl<'a, T: Element> BatchOperand<'a, T> {
    fn entry(&self, entry: usize) -> Result<Operand<'a, T>> {
        Ok(match *self {
            BatchOperand::View(view) => Operand::View(entry_of(view, entry)?),
            BatchOperand::Packed(packed) => Operand::Packed(packed),
        })
    }
}

macro_rules! from {
    ($operand:ident, $rank:literal) => {
        impl<'a, T> From<TensorView<'a, T, $rank>> for $operand<'a, T> {
            fn from(view: TensorView<'a, T, $rank>) -> Self {
                Self::View(view)
            }
        }

        impl<'a, T> From<&'a Packed<T>> for $operand<'a, T> {
            fn from(packed: &'a Packed<T>) -> Self {
                Self::Packed(packed)
            }
        }
    };
}

from!(Operand, 2);
from!(BatchOperand, 3);

/// Options of a product C = activation(alpha · A · B + beta · C + bias + residual): plain data.
///
/// With A `[m, k]` and B `[k, n]`, C and the residual are `[m, n]`. `beta` = 0 never reads C. NaN and infinity
/// propagate as IEEE 754 says, also where alpha is 0; alpha multiplies the sum of each block of depth, not of the whole.
/// A depth of 0 leaves the other terms.
///
/// ```
/// use tilewise::activation::Activation;
/// use tilewise::gemm::{Bias, Gemm};
/// use tilewise::{Tensor, TensorView};
///
/// let a = TensorView::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// let b = TensorView::from_slice(&[1.0, 0.0, 0.0, -1.0], [2, 2])?;
/// let bias = TensorView::from_slice(&[10.0, 3.0], [2])?;
/// let mut c = Tensor::zeros([2, 2])?;
/// Gemm::new().bias(Bias::PerColumn(bias)).activation(Activation::Relu).run(a, b, c.view_mut())?;
/// assert_eq!(c.as_slice(), [11.0, 1.0, 13.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'e, T> {
    alpha: T,
    beta: T,
    bias: Option<Bias<'e, T>>,
    residual: Option<TensorView<'e, T, 3>>,
    activation: Activation,
}

impl<T: Element> Default for Gemm<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'e, T: Element> Gemm<'e, T> {
    /// C = A · B.
    pub fn new() -> Self {
        Self { alpha: T::ONE, beta: T::ZERO, bias: None, residual: None, activation: Activation::Identity }
    }

    /// The factor of A · B; 1 unless set.
    pub fn alpha(self, alpha: T) -> Self {
        Self { alpha, ..self }
    }

    /// The factor of what C held before; 0 unless set, and then C is never read.
    pub fn beta(self, beta: T) -> Self {
        Self { beta, ..self }
    }

    /// A vector added to every row or column, before the activation.
    pub fn bias(self, bias: Bias<'e, T>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// A matrix `[m, n]` added before the activation.
    pub fn residual(self, residual: TensorView<'e, T, 2>) -> Self {
        // Cannot fail: 3 is one more than 2, and axis 0 exists.
        Self { residual: residual.insert_axis(0).ok(), ..self }
    }

    /// Matrices `[batch, m, n]` added before the activation; a batch of 1 serves every entry.
    pub fn batched_residual(self, residual: TensorView<'e, T, 3>) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// Applied last.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Computes C `[m, n]` from A `[m, k]` and B `[k, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Packed`] where an operand was packed for the other
    /// side, another instruction set or other blocking, [`Error::Isa`] where `TILEWISE_ISA` is wrong: nothing is written then.
    /// [`Error::Alloc`] where there is no memory for scratch.
    pub fn run<'a>(
        &self,
        a: impl Into<Operand<'a, T>>,
        b: impl Into<Operand<'a, T>>,
        c: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        T::multiply(self, a.into(), b.into(), c)
    }

    /// [`run`](Self::run). Each structure that is handed on is much of the time that the smallest products take, so these go
    /// first.
    #[inline(always)]
    fn multiply(&self, a: Operand<'_, T>, b: Operand<'_, T>, mut c: TensorViewMut<'_, T, 2>) -> Result<()> {
        let isa = machine::isa()?;
        check(isa, &a, &b)?;
        let shape = check_output(operand_shape(&a), operand_shape(&b), c.shape())?;
        self.check_epilogue(None, shape)?;
        if c.is_empty() {
            return Ok(()); // the operands may be deeper than any scratch
        }
        let start = machine::verbose().then(Instant::now);
        let scale = self.scale(0, shape[2]);
        if tiny::product(isa, &a, &b, &scale, &mut c, None, None) {
            trace::<T>(isa, 1, shape, Path::TINY, start);
            return Ok(());
        }
        let path = T::product(isa, a, b, &scale, c, None)?;
        trace::<T>(isa, 1, shape, path, start);
        Ok(())
    }

    /// Computes C `[batch, m, n]` from A `[batch, m, k]` and B `[batch, k, n]`, either of which may have a batch
    /// of 1 or be packed, and then serves every entry.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// ```
    /// use tilewise::{Tensor, gemm::{Bias, Gemm}};
    /// let a = Tensor::<f32, 3>::from_fn([2, 1, 3], |[n, _, k]| (3 * n + k) as f32)?;
    /// let b = Tensor::<f32, 3>::full([1, 3, 2], 1.0)?; // serves both
    /// let (bias, skip) = (Tensor::full([1], 0.5)?, Tensor::full([1, 1, 2], 10.0)?);
    /// let mut c = Tensor::zeros([2, 1, 2])?;
    /// let gemm = Gemm::new().bias(Bias::PerRow(bias.view())).batched_residual(skip.view());
    /// gemm.run_batched(a.view(), b.view(), c.view_mut())?;
    /// assert_eq!(c.as_slice(), [13.5, 13.5, 22.5, 22.5]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn run_batched<'a>(
        &self,
        a: impl Into<BatchOperand<'a, T>>,
        b: impl Into<BatchOperand<'a, T>>,
        c: TensorViewMut<'_, T, 3>,
    ) -> Result<()> {
        T::multiply_batch(self, a.into(), b.into(), c)
    }

    /// [`run_batched`](Self::run_batched).
    fn multiply_batch(
        &self,
        a: BatchOperand<'_, T>,
        b: BatchOperand<'_, T>,
        c: TensorViewMut<'_, T, 3>,
    ) -> Result<()> {
        let isa = machine::isa()?;
        let [batch, rows, columns] = c.shape();
        for (arg, operand) in [("a", &a), ("b", &b)] {
            if let BatchOperand::View(view) = operand
                && view.shape()[0] != 1
                && view.shape()[0] != batch
            {
                let [_, rows, columns] = view.shape();
                return Err(Error::shape(OP, arg, &view.shape(), &[batch, rows, columns]));
            }
        }
        // Entry 0 stands for all: their shapes are the same. An empty batch has none, but is checked too.
        let shapes = [&a, &b].map(|operand| match operand {
            BatchOperand::View(view) => [view.shape()[1], view.shape()[2]],
            BatchOperand::Packed(packed) => packed.shape(),
        });
        for (arg, side, operand) in [("a", Side::Lhs, &a), ("b", Side::Rhs, &b)] {
            if let BatchOperand::Packed(packed) = operand {
                packed.check(OP, arg, side, isa)?;
            }
        }
        let [m, n, k] = check_output(shapes[0], shapes[1], [rows, columns])?;
        self.check_epilogue(Some(batch), [m, n, k])?;
        if c.is_empty() {
            return Ok(()); // there may be more empty entries than can be walked
        }
        let work = m.saturating_mul(n).saturating_mul(k);
        let (tasks, inner) = batch_tasks(batch, work);
        let start = machine::verbose().then(Instant::now);
        Batch { isa, gemm: self, a, b, depth: k, inner }.run(c, 0, tasks)?;
        trace::<T>(isa, batch, [m, n, k], Path { name: "batched", tasks }, start);
        Ok(())
    }

    fn check_epilogue(&self, batch: Option<usize>, [m, n, _]: [usize; 3]) -> Result<()> {
        let (bias, expected) = match self.bias {
            Some(Bias::PerRow(bias)) => (bias.shape(), [m]),
            Some(Bias::PerColumn(bias)) => (bias.shape(), [n]),
            None => ([0], [0]),
        };
        if bias != expected {
            return Err(Error::shape(OP, "bias", &bias, &expected));
        }
        let Some(residual) = self.residual else { return Ok(()) };
        let [entries, rows, columns] = residual.shape();
        match batch {
            _ if [rows, columns] == [m, n] && (entries == 1 || Some(entries) == batch) => Ok(()),
            Some(batch) => Err(Error::shape(OP, "residual", &residual.shape(), &[batch, m, n])),
            None if entries != 1 => Err(Error::shape(OP, "residual", &residual.shape(), &[1, m, n])),
            None => Err(Error::shape(OP, "residual", &[rows, columns], &[m, n])),
        }
    }

    /// The options for one entry of a batch of products of this depth.
    fn scale(&self, entry: usize, depth: usize) -> Scale<'e, T> {
        // Cannot fail: the batch has been checked.
        let residual = self.residual.and_then(|residual| entry_of(residual, entry).ok());
        // What a caller has just written field by field is not copied as a whole: that waits until it is in L1.
        let epilogue = match (self.bias, residual) {
            (None, None) => Epilogue { bias: None, residual: None, activation: self.activation },
            (bias, residual) => Epilogue { bias, residual, activation: self.activation },
        };
        // Without depth there is nothing that an infinite alpha could multiply.
        let alpha = if depth == 0 { T::ZERO } else { self.alpha };
        Scale { alpha, beta: self.beta, epilogue }
    }
}

/// C = alpha · A · B + beta · C, with A `[m, k]`, B `[k, n]` and C `[m, n]` of any strides.
///
/// # Errors
/// As [`Gemm::run`].
///
/// ```
/// use tilewise::{Tensor, TensorView, gemm};
/// let a = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// let mut c = Tensor::<f64, 2>::full([2, 2], 1.0)?;
/// gemm::gemm(2.0, a, a.transpose(), 1.0, c.view_mut())?;
/// assert_eq!(c.as_slice(), [29.0, 65.0, 65.0, 155.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn gemm<'a, T: Element>(
    alpha: T,
    a: impl Into<Operand<'a, T>>,
    b: impl Into<Operand<'a, T>>,
    beta: T,
    c: TensorViewMut<'_, T, 2>,
) -> Result<()> {
    Gemm::new().alpha(alpha).beta(beta).run(a, b, c)
}

#[inline]
fn operand_shape<T: Element>(operand: &Operand<'_, T>) -> [usize; 2] {
    match operand {
        Operand::View(view) => view.shape(),
        Operand::Packed(packed) => packed.shape(),
    }
}

#[inline]
fn check<T: Element>(isa: Isa, a: &Operand<'_, T>, b: &Operand<'_, T>) -> Result<()> {
    for (arg, side, operand) in [("a", Side::Lhs, a), ("b", Side::Rhs, b)] {
        if let Operand::Packed(packed) = operand {
            packed.check(OP, arg, side, isa)?;
        }
    }
    Ok(())
}

/// `[m, n, k]`, where A, B and C fit.
#[inline]
fn check_output([m, k]: [usize; 2], b: [usize; 2], c: [usize; 2]) -> Result<[usize; 3]> {
    let [_, n] = b;
    if b[0] != k {
        return Err(Error::shape(OP, "b", &b, &[k, n]));
    }
    if c != [m, n] {
        return Err(Error::shape(OP, "c", &c, &[m, n]));
    }
    Ok([m, n, k])
}

kernels! {
    /// Element types with their products.
    pub trait Products {
        /// [`Gemm::run`].
        fn multiply(
            gemm: &Gemm<'_, Self>,
            a: Operand<'_, Self>,
            b: Operand<'_, Self>,
            c: TensorViewMut<'_, Self, 2>,
        ) -> Result<()> {
            gemm.multiply(a, b, c)
        }

        /// [`Gemm::run_batched`].
        fn multiply_batch(
            gemm: &Gemm<'_, Self>,
            a: BatchOperand<'_, Self>,
            b: BatchOperand<'_, Self>,
            c: TensorViewMut<'_, Self, 3>,
        ) -> Result<()> {
            gemm.multiply_batch(a, b, c)
        }

        /// One product; shapes have been checked. `tasks` overrides how many tasks it may be cut in.
        fn product(
            isa: Isa,
            a: Operand<'_, Self>,
            b: Operand<'_, Self>,
            scale: &Scale<'_, Self>,
            c: TensorViewMut<'_, Self, 2>,
            tasks: Option<usize>,
        ) -> Result<Path> {
            matrix(isa, a, b, scale, c, tasks)
        }

        /// [`gram`](super::gram()).
        fn gram(alpha: Self, a: TensorView<'_, Self, 2>, beta: Self, c: TensorViewMut<'_, Self, 2>) -> Result<()> {
            gram::run(alpha, a, beta, c)
        }

        /// [`Packed::lhs`] and [`Packed::rhs`].
        fn pack_operand(source: TensorView<'_, Self, 2>, side: Side) -> Result<Packed<Self>> {
            Packed::pack(source, side)
        }
    }
}

/// [`Products::product`].
fn matrix<T: Element>(
    isa: Isa,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    scale: &Scale<'_, T>,
    c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<Path> {
    let (a, b) = match (a, b) {
        (Operand::View(a), Operand::View(b)) => return views(isa, a, b, scale, c, tasks),
        packed => packed,
    };
    let lhs = match a {
        Operand::View(a) => Input::Source(a),
        Operand::Packed(packed) => Input::Packed(packed.slab()),
    };
    let rhs = match b {
        Operand::View(b) => Input::Source(b.transpose()),
        Operand::Packed(packed) => Input::Packed(packed.slab()),
    };
    driver::product(isa, lhs, rhs, scale, c, tasks, Extent::Whole)
}

/// One product of matrices in memory, transposed as a whole where C is column-major.
fn views<T: Element>(
    isa: Isa,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<Path> {
    let [m, n] = c.shape();
    let [row, column] = c.strides();
    let flip = if m == 1 || n == 1 { n == 1 && m != 1 } else { column != 1 && row == 1 };
    if flip {
        let scale = scale.transpose();
        return in_order(isa, b.transpose(), a.transpose(), &scale, c.transpose(), tasks);
    }
    in_order(isa, a, b, scale, c, tasks)
}

fn in_order<T: Element>(
    isa: Isa,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    mut c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<Path> {
    let ([m, n], k) = (c.shape(), a.shape()[1]);
    let (tile, shape) = (tile::<T>(isa), [m, n, k]);
    let strides = [a.strides(), b.strides(), c.strides()];
    if turns_small(tile, shape, strides) {
        return turned(isa, a, b, scale, c, tasks);
    }
    // What could be tiny too must not depend on the number of threads.
    let along = b.strides()[0] == 1 && b.strides()[1] != 1;
    if (m == 1 && vector::readable(b)) || (along && vector::few_rows::<T>(isa, shape)) {
        let tasks = vector::rows_times_matrix(isa, a, b, scale, c, tasks)?;
        return Ok(Path { name: "vector", tasks });
    }
    if a.strides()[1] == 1 && vector::few_columns::<T>(isa, shape) {
        let scale = scale.transpose();
        let tasks =
            vector::rows_times_matrix(isa, b.transpose(), a.transpose(), &scale, c.transpose(), tasks)?;
        return Ok(Path { name: "vector", tasks });
    }
    if tiny::product(isa, &a.into(), &b.into(), scale, &mut c, tasks, None) {
        return Ok(Path::TINY);
    }
    if thin::takes::<T>(tile, machine::caches(), shape, b.strides(), c.strides()) {
        let tasks = thin::product(isa, tile, a, b, scale, c, tasks)?;
        return Ok(Path { name: "thin", tasks });
    }
    if turns::<T>(tile, machine::caches(), shape, strides, driver::BESIDE) {
        let scale = scale.transpose();
        let (a, b) = (Input::Source(b.transpose()), Input::Source(a));
        return driver::product(isa, a, b, &scale, c.transpose(), tasks, Extent::Whole);
    }
    let (a, b) = (Input::Source(a), Input::Source(b.transpose()));
    driver::product(isa, a, b, scale, c, tasks, Extent::Whole)
}

/// Cᵀ = Bᵀ · Aᵀ beside C, then turned.
fn turned<T: Element>(
    isa: Isa,
    a: TensorView<'_, T, 2>,
    b: TensorView<'_, T, 2>,
    scale: &Scale<'_, T>,
    mut c: TensorViewMut<'_, T, 2>,
    tasks: Option<usize>,
) -> Result<Path> {
    let [m, n] = c.shape();
    let mut sums = driver::scratch(true, n, 1, m)?;
    let mut beside = TensorViewMut::matrix(&mut sums, [n, m]);
    if scale.first_beta().is_some() {
        beside.copy_from(c.view().transpose());
    }
    let scale = scale.transpose();
    let path = in_order(isa, b.transpose(), a.transpose(), &scale, beside.view_mut(), tasks)?;
    match c.as_mut_slice() {
        // Rows of C are the steps of a panel.
        Some(rows) => panel::pack(isa, beside.view(), 0..n, 0..m, n, rows, false),
        None => c.copy_from(beside.view().transpose()),
    }
    Ok(path)
}

pub(super) fn trace<T: Element>(
    isa: Isa,
    batch: usize,
    shape: [usize; 3],
    path: Path,
    start: Option<Instant>,
) {
    let Some(start) = start else { return };
    machine::trace(|| {
        let ([m, n, k], Path { name, tasks }) = (shape, path);
        let (tile, time) = (tile::<T>(isa), start.elapsed());
        let (rows, columns) = (tile.rows, tile.columns);
        format!(
            "{OP} {batch} x [{m}, {k}] [{k}, {n}] {} {isa} path {name} tile {rows}x{columns} tasks {tasks} {time:?}",
            T::NAME
        )
    });
}

/// How many tasks the entries of a batch are cut in, and each entry: one kind of tasks, never both.
fn batch_tasks(batch: usize, work: usize) -> (usize, Option<usize>) {
    /// An entry this large has enough for all threads; smaller ones are whole tasks.
    const LARGE: usize = 1 << 24;
    if batch <= 1 || work >= LARGE {
        return (1, None);
    }
    (parallel::tasks(batch.saturating_mul(work), 1 << 19), Some(1))
}

/// The matrix of one entry of a batch.
fn entry_of<'a, T>(view: TensorView<'a, T, 3>, entry: usize) -> Result<TensorView<'a, T, 2>> {
    view.select(0, if view.shape()[0] == 1 { 0 } else { entry })
}

struct Batch<'b, 'e, 'a, T> {
    isa: Isa,
    gemm: &'b Gemm<'e, T>,
    a: BatchOperand<'a, T>,
    b: BatchOperand<'a, T>,
    depth: usize,
    inner: Option<usize>,
}

impl<T: Element> Batch<'_, '_, '_, T> {
    /// Computes the entries of `c`, the first of which is `first` in the batch.
    fn run(&self, mut c: TensorViewMut<'_, T, 3>, first: usize, tasks: usize) -> Result<()> {
        let entries = c.shape()[0];
        if tasks > 1 && entries > 1 {
            let half = tasks / 2;
            let cut = (entries * half / tasks).clamp(1, entries - 1);
            let (low, high) = c.split_at(0, cut)?;
            let (one, two) =
                parallel::join(|| self.run(low, first, half), || self.run(high, first + cut, tasks - half));
            return one.and(two);
        }
        // So many entries come from memory: all of B is read for the first rows.
        let [_, m, n] = c.shape();
        let bytes = (m + n).saturating_mul(self.depth).saturating_mul(size_of::<T>());
        let far = entries.saturating_mul(bytes) > machine::caches().share() / 2;
        for entry in 0..entries {
            let scale = self.gemm.scale(first + entry, self.depth);
            let mut c = c.view_mut().select(0, entry)?;
            let (a, b) = (self.a.entry(first + entry)?, self.b.entry(first + entry)?);
            let next = match &self.b {
                BatchOperand::View(b) if far && b.shape()[0] > 1 && entry + 1 < entries => {
                    Some(entry_of(*b, first + entry + 1)?)
                }
                _ => None,
            };
            if !tiny::product(self.isa, &a, &b, &scale, &mut c, self.inner, next.as_ref()) {
                T::product(self.isa, a, b, &scale, c, self.inner)?;
            }
        }
        Ok(())
    }
}
