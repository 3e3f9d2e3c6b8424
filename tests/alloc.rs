//! A call allocates nothing once each thread has had its scratch: its time is then its own, whatever the allocator does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPoolBuilder;
use tilewise::activation::Activation;
use tilewise::gemm::{Bias, Gemm, Operand, Packed, gemm};
use tilewise::norm::{BatchNormalization, GroupNormalization, LayerNormalization, NormGradientsMut};
use tilewise::rnn::{Direction, Elman, Gru, Lstm, OutputMut, Recurrent, Reset, Sequence, Tape, Weights};
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

fn matrix<T: Element>(shape: [usize; 2]) -> Tensor<T, 2> {
    Tensor::from_fn(shape, |[i, j]| T::from_f64(((i * 7 + j * 3) % 11) as f64 / 8.0 - 0.5)).unwrap()
}

/// Hands `call` a call for each path, with its name.
fn each_path<T: Element>(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
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
    norms::<T>(call);
}

fn norms<T: Element>(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    let (layer, batch, group) =
        (LayerNormalization::new(), BatchNormalization::new(), GroupNormalization::new(4));
    let x = matrix::<T>([700, 96]);
    let (mut y, mut sum) = (matrix::<T>([700, 96]), matrix::<T>([700, 96]));
    let mut vectors = [(); 4].map(|()| Tensor::<T, 1>::full([96], T::ONE).unwrap());
    let [scale, shift, mean, variance] = &mut vectors;
    call("layer norm", &mut || {
        let (scale, shift) = (Some(scale.view()), Some(shift.view()));
        let (sum, y) = (sum.view_mut(), y.view_mut());
        layer.forward_residual_into(x.view(), x.view(), scale, shift, sum, y).unwrap();
    });
    let mut turned = matrix::<T>([96, 700]);
    call("layer norm, strided", &mut || {
        layer.forward_into(x.view(), None, Some(shift.view()), turned.view_mut().transpose()).unwrap();
    });
    call("layer norm, backward", &mut || {
        let (dx, dscale) = (Some(y.view_mut()), Some(mean.view_mut()));
        let gradients = NormGradientsMut { input: dx, scale: dscale, shift: Some(variance.view_mut()) };
        layer.backward_into(x.view(), Some(scale.view()), x.view(), T::ZERO, gradients).unwrap();
    });
    call("batch norm", &mut || {
        let (mean, variance) = (mean.view_mut(), variance.view_mut());
        batch.forward_training_into(x.view(), None, None, mean, variance, y.view_mut()).unwrap();
    });
    let image = x.view().reshape([25, 96, 28]).unwrap();
    call("group norm, backward", &mut || {
        let dx = Some(y.view_mut().reshape([25, 96, 28]).unwrap());
        let gradients = NormGradientsMut { input: dx, scale: Some(mean.view_mut()), shift: None };
        group.backward_into(image, None, image, T::ZERO, gradients).unwrap();
    });
}

/// Hands `call` recurrent calls, forward and back.
fn recurrent<T: Element>(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    fn each<T: Element>(
        name: &str,
        cell: impl Recurrent,
        directions: usize,
        lengths: Option<&[usize]>,
        call: &mut dyn FnMut(&str, &mut dyn FnMut()),
    ) {
        let (time, batch, inputs, hidden) = (4, 34, 21, 40);
        let tensor = |[a, b, c]: [usize; 3]| matrix::<T>([a, b * c]).reshape([a, b, c]).unwrap();
        let rows = cell.gates() * hidden;
        let (u, w) = (tensor([directions, rows, inputs]), tensor([directions, rows, hidden]));
        let (x, mut y) = (tensor([time, batch, inputs]), tensor([time, batch, directions * hidden]));
        let weights = Weights::new(u.view(), w.view());
        let sequence = Sequence { lengths, ..Sequence::new(x.view()) };
        let (packed, mut tape) = (cell.pack(weights).unwrap(), Tape::new());
        call(&format!("{name}, packed"), &mut || {
            cell.forward_into(sequence, &packed, OutputMut::new(y.view_mut())).unwrap();
        });
        call(name, &mut || {
            cell.forward_taped_into(sequence, weights, &mut tape, OutputMut::new(y.view_mut())).unwrap();
        });
        let mut gradients = cell.backward(sequence, weights, &tape, y.view()).unwrap();
        call(&format!("{name}, back"), &mut || {
            cell.backward_into(sequence, weights, &tape, y.view(), T::ONE, gradients.view_mut()).unwrap();
        });
    }
    let lengths: Vec<usize> = (0..34).map(|entry| entry % 5).collect();
    each::<T>("Elman", Elman::new(), 1, None, call);
    each::<T>("LSTM", Lstm::new().direction(Direction::Bidirectional), 2, Some(&lengths), call);
    each::<T>("GRU", Gru::new().reset(Reset::Before).recompute(true), 1, None, call);
    each::<T>("GRU", Gru::new().direction(Direction::Reverse), 1, Some(&lengths), call);
}

fn both_types(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    for &isa in machine::supported() {
        let paths = || {
            each_path::<f32>(&mut |name, run| call(&format!("{name}, f32, {isa}"), run));
            each_path::<f64>(&mut |name, run| call(&format!("{name}, f64, {isa}"), run));
            recurrent::<f32>(&mut |name, run| call(&format!("{name}, f32, {isa}"), run));
            recurrent::<f64>(&mut |name, run| call(&format!("{name}, f64, {isa}"), run));
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
