//! A call allocates nothing once each thread has had its scratch: its time is then its own, whatever the allocator does.
//! Convolution has a file of its own, `conv_alloc.rs`.

#[path = "alloc/attention.rs"]
mod attention;
#[path = "alloc/norm.rs"]
mod norm;
#[path = "alloc/pool.rs"]
mod pool;
#[path = "alloc/recurrent.rs"]
mod recurrent;
#[path = "alloc/rows.rs"]
mod rows;
#[path = "alloc/training.rs"]
mod training;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;
use tilewise::activation::Activation;
use tilewise::gemm::{Bias, Gemm, Operand, Packed, gemm, gram};
use tilewise::{Element, Tensor, TensorView, machine};

/// The system's allocator, which counts what the threads of our pools ask of it.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The harness has threads too, and may allocate at any time.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: the system's allocator does everything; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is handed a call, with its name.
type Measure<'a> = dyn FnMut(&str, &mut dyn FnMut()) + 'a;

fn matrix<T: Element>(shape: [usize; 2]) -> Tensor<T, 2> {
    Tensor::from_fn(shape, |[i, j]| T::from_f64(((i * 7 + j * 3) % 11) as f64 / 8.0 - 0.5)).unwrap()
}

/// Hands `call` a call for each path, with its name.
fn each_path<T: Element>(call: &mut Measure) {
    let mut product = |name: &str, [m, n, k]: [usize; 3]| {
        let (a, b, mut c) = (matrix::<T>([m, k]), matrix::<T>([k, n]), matrix::<T>([m, n]));
        let mut run = |name: &str, a: TensorView<T, 2>, b: TensorView<T, 2>| {
            call(name, &mut || gemm(T::ONE, a, b, T::ONE, c.view_mut()).unwrap());
        };
        let (at, bt) = (a.view().transpose().to_tensor().unwrap(), b.view().transpose().to_tensor().unwrap());
        run(name, a.view(), b.view());
        run(&format!("{name}, A column-major"), at.view().transpose(), b.view());
        run(&format!("{name}, B column-major"), a.view(), bt.view().transpose());
        let mut ct = matrix::<T>([n, m]);
        call(&format!("{name}, C column-major"), &mut || {
            gemm(T::ONE, a.view(), b.view(), T::ZERO, ct.view_mut().transpose()).unwrap();
        });
        let mut wide = Tensor::<T, 3>::zeros([m, n, 2]).unwrap();
        call(&format!("{name}, C with gaps"), &mut || {
            let c = wide.view_mut().select(2, 0).unwrap();
            gemm(T::ONE, a.view(), b.view(), T::ONE, c).unwrap();
        });
        let (lhs, rhs) = (Packed::lhs(a.view()).unwrap(), Packed::rhs(b.view()).unwrap());
        let operands: [(Operand<T>, Operand<T>); 3] = [
            ((&lhs).into(), (&rhs).into()),
            (a.view().into(), (&rhs).into()),
            ((&lhs).into(), b.view().into()),
        ];
        for (a, b) in operands {
            call(&format!("{name}, packed"), &mut || gemm(T::ONE, a, b, T::ONE, c.view_mut()).unwrap());
        }
        let (row, column, residual) = (matrix([1, n]), matrix([1, m]), matrix([m, n]));
        for bias in [
            Bias::PerRow(column.view().select(0, 0).unwrap()),
            Bias::PerColumn(row.view().select(0, 0).unwrap()),
        ] {
            let options = Gemm::new().bias(bias).residual(residual.view()).activation(Activation::Relu);
            call(&format!("{name}, epilogue"), &mut || {
                options.run(a.view(), b.view(), c.view_mut()).unwrap();
            });
        }
    };
    product("tiny", [16, 32, 16]);
    product("tiny, ragged", [17, 19, 23]);
    product("blocked", [120, 200, 300]);
    product("A in place", [200, 40, 300]);
    product("B in place", [5, 600, 400]);
    product("A packed at once", [20, 2600, 200]);
    product("split", [12, 30, 9000]);
    product("row times matrix", [1, 1500, 900]);
    product("matrix times column", [1500, 1, 900]);
    product("scratch on huge pages", [600, 1100, 512]);
    product("no depth", [30, 50, 0]);
    product("nothing", [0, 50, 20]);
    for (batch, [m, n, k]) in [(9, [40, 50, 60]), (3, [256, 256, 256])] {
        let operand = |batch, rows, columns| {
            matrix::<T>([batch, rows * columns]).reshape([batch, rows, columns]).unwrap()
        };
        let (a, b) = (operand(batch, m, k), operand(batch, k, n));
        let (mut c, packed) = (operand(batch, m, n), Packed::rhs(b.view().select(0, 0).unwrap()).unwrap());
        call("batched", &mut || Gemm::new().run_batched(a.view(), b.view(), c.view_mut()).unwrap());
        call("batched, packed", &mut || Gemm::new().run_batched(a.view(), &packed, c.view_mut()).unwrap());
    }
    // One task and several, a row alone, depth in parts.
    for [m, k] in [[24, 40], [300, 200], [1, 900], [40, 9000]] {
        let (a, at, mut c) = (matrix::<T>([m, k]), matrix::<T>([k, m]), matrix::<T>([m, m]));
        for (name, a) in [("gram", a.view()), ("gram, A column-major", at.view().transpose())] {
            call(name, &mut || gram(T::ONE, a, T::ONE, c.view_mut()).unwrap());
        }
    }
}

fn every_operation<T: Element>(call: &mut Measure) {
    each_path::<T>(call);
    norm::calls::<T>(call);
    rows::calls::<T>(call);
    pool::calls::<T>(call);
    attention::calls::<T>(call);
    recurrent::calls::<T>(call);
    training::calls::<T>(call);
}

fn both_types(call: &mut Measure) {
    for &isa in machine::supported() {
        let paths = || {
            every_operation::<f32>(&mut |name, run| call(&format!("{name}, f32, {isa}"), run));
            every_operation::<f64>(&mut |name, run| call(&format!("{name}, f64, {isa}"), run));
        };
        machine::with_isa(isa, paths).unwrap();
    }
}

#[test]
fn a_warm_call_allocates_nothing() {
    for threads in [1, 2] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // At the same time, so that no thread does the work of all of them.
        let together = Barrier::new(threads);
        pool.broadcast(|_| {
            COUNTED.set(true);
            together.wait();
            both_types(&mut |_, run| (0..2).for_each(|_| run()));
        });
        let found = pool.install(|| {
            let mut found = Vec::new();
            both_types(&mut |name, run| {
                // A thread that was given the smaller part of a product until now.
                run();
                let before = ALLOCATIONS.load(Ordering::SeqCst);
                (0..2).for_each(|_| run());
                let after = ALLOCATIONS.load(Ordering::SeqCst);
                if after != before {
                    found.push(format!("{name}: {}", after - before));
                }
            });
            found
        });
        assert!(found.is_empty(), "allocations in two calls with {threads} threads: {found:#?}");
    }
    let counted = ALLOCATIONS.load(Ordering::SeqCst);
    assert!(counted > 100, "{counted}: making the operands is counted too");
}
