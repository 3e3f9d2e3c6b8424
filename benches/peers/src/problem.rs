//! The operands of a workload, and the check of what a peer makes of them.

use aligned_vec::{AVec, ConstAlign, avec};
use tilewise::Element;

use crate::workload::{Layout, Workload};

pub type Buffer<T> = AVec<T, ConstAlign<64>>;

/// A matrix as it lies in memory: the row-major one of this shape, or its transpose.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// All entries of the batch, one after the other.
    pub data: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub transposed: bool,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows and columns in memory.
    pub fn stored(&self) -> [usize; 2] {
        if self.transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }

    /// Elements from one row to the next, and from one column to the next.
    pub fn strides(&self) -> [usize; 2] {
        if self.transposed { [1, self.rows] } else { [self.columns, 1] }
    }

    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// One entry of the batch.
    pub fn entry(&self, entry: usize) -> Matrix<'a, T> {
        Matrix { data: &self.data[entry * self.len()..][..self.len()], ..*self }
    }
}

/// The same buffers for every peer, on the boundaries of cache lines.
pub struct Problem<T> {
    pub workload: Workload,
    a: Buffer<T>,
    b: Buffer<T>,
}

impl<T: Element> Problem<T> {
    /// Random values in [−1, 1).
    pub fn new(workload: &Workload) -> Self {
        let mut random = fastrand::Rng::with_seed(0x7113_3153);
        let mut fill =
            |len: usize| Buffer::from_iter(64, (0..len).map(|_| T::from_f64(2.0 * random.f64() - 1.0)));
        let Workload { m, n, k, batch, gram, .. } = *workload;
        let a = fill(batch * m * k);
        let b = if gram { Buffer::new(64) } else { fill(batch * k * n) };
        Problem { workload: workload.clone(), a, b }
    }

    pub fn a(&self) -> Matrix<'_, T> {
        let Workload { m, k, layout, .. } = self.workload;
        Matrix { data: &self.a, rows: m, columns: k, transposed: layout == Layout::Tn }
    }

    /// In a Gram matrix this is A transposed, in A's own memory.
    pub fn b(&self) -> Matrix<'_, T> {
        let Workload { n, k, layout, gram, .. } = self.workload;
        let data = if gram { &self.a } else { &self.b };
        Matrix { data, rows: k, columns: n, transposed: layout == Layout::Nt }
    }

    /// Room for C. Not a number anywhere, so that elements never written are found.
    pub fn output(&self) -> Buffer<T> {
        let Workload { m, n, batch, .. } = self.workload;
        avec![[64]| T::from_f64(f64::NAN); batch * m * n]
    }

    /// Compares sampled elements with sums in `f64`, and all elements with another result where there is one.
    ///
    /// The bound is that of sums in `T`, whose error grows like the root of the depth; products of fewer
    /// bits, as bfloat16 has, fail it.
    pub fn check(&self, c: &[T], expected: Option<&[T]>) -> Result<(), String> {
        let Workload { m, n, k, batch, .. } = self.workload;
        let unit = if size_of::<T>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON } / 2.0;
        let tolerance = unit * (8.0 + 2.0 * (k as f64).sqrt());
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let (entry, i, j) = (random.usize(..batch), random.usize(..m), random.usize(..n));
            let (a, b) = (self.a().entry(entry), self.b().entry(entry));
            let ([a_row, a_column], [b_row, b_column]) = (a.strides(), b.strides());
            let (mut sum, mut size) = (0.0, 0.0);
            for p in 0..k {
                let product =
                    a.data[i * a_row + p * a_column].to_f64() * b.data[p * b_row + j * b_column].to_f64();
                sum += product;
                size += product.abs();
            }
            let found = c[(entry * m + i) * n + j].to_f64();
            within(found, sum, tolerance * size, || format!("entry {entry}, row {i}, column {j}"))?;
        }
        // No product is larger than 1, and both results may be off.
        let bound = 2.0 * tolerance * k as f64;
        for (index, (found, expected)) in c.iter().zip(expected.unwrap_or(&[])).enumerate() {
            within(found.to_f64(), expected.to_f64(), bound, || format!("element {index}"))?;
        }
        Ok(())
    }
}

fn within(found: f64, expected: f64, bound: f64, place: impl Fn() -> String) -> Result<(), String> {
    // Not a number is within no bound.
    if (found - expected).abs() <= bound {
        return Ok(());
    }
    Err(format!("{} is {found}, not {expected} (± {bound:.1e})", place()))
}
