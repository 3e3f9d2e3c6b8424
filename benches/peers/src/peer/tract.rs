//! The crate `tract-linalg`: `f32` only, A and B packed in the call (into memory allocated for it, as its
//! interface has no other), B before it where that is allowed. It keeps copies of the operands and its own C.

use rayon::prelude::*;
use tract_data::prelude::{DatumType, Tensor};
use tract_linalg::MmmDispatch;
use tract_linalg::mmm::{AsInputValue, FusedSpec, MMMInputValue, MatMatMul, ScratchSpace};
use tract_linalg::multithread::{Executor, multithread_tract_scope};

use super::{Peer, Product};
use crate::problem::{Matrix, Problem};
use crate::workload::Workload;

pub struct Tract {
    executor: Executor,
}

impl Tract {
    pub fn new(threads: usize) -> Self {
        Tract { executor: if threads > 1 { Executor::RayonGlobal } else { Executor::SingleThread } }
    }
}

const FITS: &str = "shapes fit and the kernel runs here";

/// A copy, and the axes of depth and of lines.
struct Operand {
    tensor: Tensor,
    depth: usize,
    lines: usize,
}

impl Operand {
    /// `depth`: the axis of the matrix, before it was transposed, that is summed over.
    fn new(matrix: Matrix<'_, f32>, depth: usize) -> Self {
        let tensor = Tensor::from_shape(&matrix.stored(), matrix.data).expect(FITS);
        let depth = if matrix.transposed { 1 - depth } else { depth };
        Operand { tensor, depth, lines: 1 - depth }
    }
}

struct Entry {
    kernel: Box<dyn MatMatMul>,
    a: Operand,
    b: Operand,
    packed: Option<Box<dyn MMMInputValue>>,
    scratch: Box<dyn ScratchSpace>,
    c: Tensor,
}

impl Entry {
    fn new(a: Matrix<'_, f32>, b: Matrix<'_, f32>, prepacked: bool) -> Self {
        let (m, k, n) = (a.rows, a.columns, b.columns);
        let dispatch = MmmDispatch::native();
        let kernel = dispatch.preferred_kernel(DatumType::F32, Some(m), Some(k), Some(n)).expect(FITS);
        let (a, b) = (Operand::new(a, 1), Operand::new(b, 0));
        let packed =
            prepacked.then(|| kernel.packings()[0].1.prepare_one(&b.tensor, b.depth, b.lines).expect(FITS));
        // SAFETY: the scratch space is used with this kernel only.
        let scratch = unsafe { kernel.allocate_scratch_space() };
        let c = Tensor::zero::<f32>(&[m, n]).expect(FITS);
        Entry { kernel, a, b, packed, scratch, c }
    }

    fn run(&mut self) {
        let (pack_a, pack_b) = &self.kernel.packings()[0];
        let a = pack_a.prepare_one(&self.a.tensor, self.a.depth, self.a.lines).expect(FITS);
        let in_call;
        let b = match &self.packed {
            Some(packed) => packed,
            None => {
                in_call = pack_b.prepare_one(&self.b.tensor, self.b.depth, self.b.lines).expect(FITS);
                &in_call
            }
        };
        let product = FusedSpec::AddMatMul {
            a: AsInputValue::Borrowed(&*a),
            b: AsInputValue::Borrowed(&**b),
            packing: 0,
        };
        let (m, n) = (self.c.shape()[0], self.c.shape()[1]);
        // SAFETY: the operands are packed as this kernel's first packing wants them, the scratch space is
        // this kernel's, and C is an m × n tensor of f32 that nobody else uses.
        unsafe {
            let store = FusedSpec::Store(self.kernel.c_view(Some(0), Some(1)).wrap(&self.c.view_mut()));
            self.kernel.run_with_scratch_space(m, n, &mut *self.scratch, &[product, store]).expect(FITS);
        }
    }
}

struct Run {
    executor: Executor,
    entries: Vec<Entry>,
}

impl Product<f32> for Run {
    fn run(&mut self, _c: &mut [f32]) {
        match &mut self.entries[..] {
            [entry] => multithread_tract_scope(self.executor.clone(), || entry.run()),
            entries => entries
                .par_iter_mut()
                .for_each(|entry| multithread_tract_scope(Executor::SingleThread, || entry.run())),
        }
    }

    fn complete(&mut self, c: &mut [f32]) {
        for (c, entry) in c.chunks_exact_mut(c.len() / self.entries.len()).zip(&self.entries) {
            c.copy_from_slice(entry.c.try_as_plain_ram().expect(FITS).as_slice::<f32>().expect(FITS));
        }
    }
}

impl Peer<f32> for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn about(&self) -> String {
        let kernel =
            MmmDispatch::native().preferred_kernel(DatumType::F32, Some(1024), Some(1024), Some(1024));
        format!("{}, kernel {}", super::version("tract-linalg"), kernel.expect(FITS).name())
    }

    fn prepare<'p>(&'p self, problem: &'p Problem<f32>) -> Option<Box<dyn Product<f32> + 'p>> {
        let Workload { batch, prepacked, .. } = problem.workload;
        let (a, b) = (problem.a(), problem.b());
        let entries = (0..batch).map(|i| Entry::new(a.entry(i), b.entry(i), prepacked)).collect();
        Some(Box::new(Run { executor: self.executor.clone(), entries }))
    }
}
