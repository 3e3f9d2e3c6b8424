//! Convolution allocates nothing once each thread has had its scratch, and never the patch matrix.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Chain, Convolution, ConvolutionTranspose, Im2col, Link};
use tilewise::{Element, Tensor, TensorView, machine};

/// The system's allocator, which counts what the threads of our pools ask of it.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// The harness has threads too, and may allocate at any time.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(calls: usize, bytes: isize) {
    if COUNTED.get() {
        CALLS.fetch_add(calls, SeqCst);
        let now = BYTES.fetch_add(bytes, SeqCst) + bytes;
        MOST.fetch_max(now, SeqCst);
    }
}

// SAFETY: the system's allocator does everything; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).start_handler(|_| COUNTED.set(true)).build().unwrap()
}

/// The counters are for all threads: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn wave<T: Element, const N: usize>(shape: [usize; N]) -> Tensor<T, N> {
    let mut t = 0;
    Tensor::from_fn(shape, |_| {
        t += 1;
        T::from_f64((t * 7 % 11) as f64 / 8.0 - 0.5)
    })
    .unwrap()
}

/// Batch, channels in and out, groups, size, kernel, stride, padding, dilation.
const LAYERS: [[usize; 9]; 11] = [
    [1, 64, 64, 1, 28, 3, 1, 1, 1],
    [2, 33, 40, 1, 14, 3, 1, 1, 1],
    [2, 32, 48, 1, 15, 3, 2, 1, 1],
    [1, 3, 64, 1, 56, 7, 2, 3, 1],
    [2, 96, 64, 1, 14, 1, 1, 0, 1],
    [1, 96, 64, 1, 14, 1, 2, 0, 1],
    [2, 48, 48, 48, 20, 3, 1, 1, 1],
    [1, 48, 96, 48, 21, 3, 2, 1, 1],
    [2, 32, 64, 4, 12, 3, 1, 1, 1],
    [1, 16, 16, 1, 20, 3, 1, 2, 2],
    [16, 4, 8, 1, 12, 3, 2, 1, 1],
];

/// Hands `call` every call of each layer, with its name.
fn each_call<T: Element>(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    for layer in LAYERS {
        let [batch, c_in, c_out, groups, size, kernel, stride, padding, dilation] = layer;
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([padding; 2]);
        let conv = conv.dilation([dilation; 2]).groups(groups);
        let patches = Im2col::<2>::new([kernel; 2]).stride([stride; 2]).padding([padding; 2]);
        let patches = patches.dilation([dilation; 2]);
        let x = wave::<T, 4>([batch, c_in, size, size]);
        let w = wave::<T, 4>([c_out, c_in / groups, kernel, kernel]);
        let bias = wave::<T, 1>([c_out]);
        let mut y = wave::<T, 4>(conv.output_shape(x.shape(), w.shape()).unwrap());
        let (skip, dz) = (wave::<T, 4>(y.shape()), wave::<T, 4>(y.shape()));
        let (mut dx, mut dw, mut db) =
            (wave::<T, 4>(x.shape()), wave::<T, 4>(w.shape()), wave::<T, 1>([c_out]));
        let mut matrix = patches.im2col(x.view()).unwrap();
        let packed = conv.pack(w.view()).unwrap();
        let relu = conv.activation(Activation::Relu);
        let last = |t: &Tensor<T, 4>| t.view().permute([0, 2, 3, 1]).unwrap().to_tensor().unwrap();
        let (last_x, last_dz) = (last(&x), last(&dz));
        let (mut last_y, mut last_dx) = (last(&y), last(&dx));
        let nchw = [0, 3, 1, 2];
        let mut run = |what: &str, f: &mut dyn FnMut()| call(&format!("{what} of {layer:?}"), f);
        let b: Option<TensorView<'_, T, 1>> = Some(bias.view());
        run("forward", &mut || conv.forward_into(x.view(), w.view(), None, y.view_mut()).unwrap());
        run("packed", &mut || relu.forward_into(x.view(), &packed, b, y.view_mut()).unwrap());
        let packed_last = conv.pack_channels_last(w.view()).unwrap();
        run("NHWC, packed", &mut || {
            let (x, y) = (last_x.view().permute(nchw).unwrap(), last_y.view_mut().permute(nchw).unwrap());
            relu.forward_into(x, &packed_last, b, y).unwrap();
        });
        for algorithm in [Algorithm::ImplicitGemm, Algorithm::Winograd4] {
            let conv = conv.algorithm(algorithm);
            run("forward by another algorithm", &mut || {
                conv.forward_into(x.view(), w.view(), b, y.view_mut()).unwrap();
            });
        }
        let (projection, v) = (Convolution::<2>::new(), wave::<T, 4>([8, c_out, 1, 1]));
        let projected = projection.pack(v.view()).unwrap();
        let chain = Chain::new([Link::new(relu, &packed, b), Link::new(projection, &projected, None)]);
        let mut narrow = wave::<T, 4>(chain.output_shape(x.shape()).unwrap());
        run("chain", &mut || chain.forward_into(x.view(), narrow.view_mut()).unwrap());
        let more = wave::<T, 4>(narrow.shape());
        run("chain with residual", &mut || {
            chain.forward_add_into(x.view(), more.view(), narrow.view_mut()).unwrap();
        });
        run("residual", &mut || {
            relu.forward_add_into(x.view(), w.view(), b, skip.view(), y.view_mut()).unwrap();
        });
        run("NHWC", &mut || {
            let (x, y) = (last_x.view().permute(nchw).unwrap(), last_y.view_mut().permute(nchw).unwrap());
            conv.forward_into(x, w.view(), b, y).unwrap();
        });
        run("dX", &mut || conv.backward_input_into(dz.view(), w.view(), dx.view_mut()).unwrap());
        run("dX in NHWC", &mut || {
            let (dz, dx) = (last_dz.view().permute(nchw).unwrap(), last_dx.view_mut().permute(nchw).unwrap());
            conv.backward_input_into(dz, w.view(), dx).unwrap();
        });
        run("dW", &mut || conv.backward_weight_into(x.view(), dz.view(), dw.view_mut()).unwrap());
        run("dW in NHWC", &mut || {
            let (x, dz) = (last_x.view().permute(nchw).unwrap(), last_dz.view().permute(nchw).unwrap());
            conv.backward_weight_into(x, dz, dw.view_mut()).unwrap();
        });
        run("dW, turned", &mut || {
            conv.flipped(true).backward_weight_into(x.view(), dz.view(), dw.view_mut()).unwrap();
        });
        run("db", &mut || conv.backward_bias_into(dz.view(), db.view_mut()).unwrap());
        let transpose = ConvolutionTranspose::<2>::new().stride([stride; 2]).groups(groups);
        let shape = transpose.output_shape(dz.shape(), w.shape()).unwrap();
        let mut image = wave::<T, 4>(shape);
        run("transposed", &mut || {
            transpose.forward_into(dz.view(), w.view(), None, image.view_mut()).unwrap();
        });
        let shift = wave::<T, 1>([image.shape()[1]]);
        let rectified = transpose.activation(Activation::Relu);
        run("transposed with bias", &mut || {
            let shift = Some(shift.view());
            rectified.forward_into(dz.view(), w.view(), shift, image.view_mut()).unwrap();
        });
        // Rows of the images do not touch.
        let wide = |t: &Tensor<T, 4>| {
            let [n, c, h, w] = t.shape();
            wave::<T, 4>([n, c, h, w + 3])
        };
        let (wide_x, mut wide_y, wide_dz, mut wide_dx) = (wide(&x), wide(&y), wide(&dz), wide(&dx));
        let (in_w, out_w) = (x.shape()[3], y.shape()[3]);
        let (wide_x, wide_dz) =
            (wide_x.view().slice(3, ..in_w, 1).unwrap(), wide_dz.view().slice(3, ..out_w, 1).unwrap());
        run("forward of rows apart", &mut || {
            let y = wide_y.view_mut().slice(3, ..out_w, 1).unwrap();
            conv.forward_into(wide_x, w.view(), b, y).unwrap();
        });
        run("dX of rows apart", &mut || {
            let dx = wide_dx.view_mut().slice(3, ..in_w, 1).unwrap();
            conv.backward_input_into(wide_dz, w.view(), dx).unwrap();
        });
        run("db of rows apart", &mut || conv.backward_bias_into(wide_dz, db.view_mut()).unwrap());
        run("im2col", &mut || patches.im2col_into(x.view(), matrix.view_mut()).unwrap());
        run("col2im", &mut || patches.col2im_into(matrix.view(), dx.view_mut()).unwrap());
    }
}

fn both_types(call: &mut dyn FnMut(&str, &mut dyn FnMut())) {
    for &isa in machine::supported() {
        let calls = || {
            each_call::<f32>(&mut |name, run| call(&format!("{name}, f32, {isa}"), run));
            each_call::<f64>(&mut |name, run| call(&format!("{name}, f64, {isa}"), run));
        };
        machine::with_isa(isa, calls).unwrap();
    }
}

#[test]
fn a_warm_call_allocates_nothing() {
    let _alone = ALONE.lock();
    for threads in [1, 2] {
        let pool = pool(threads);
        // At the same time, so that no thread does the work of all of them.
        let together = Barrier::new(threads);
        pool.broadcast(|_| {
            together.wait();
            both_types(&mut |_, run| (0..2).for_each(|_| run()));
        });
        let found = pool.install(|| {
            let mut found = Vec::new();
            both_types(&mut |name, run| {
                // A thread that was given the smaller part of the work until now.
                (0..3).for_each(|_| run());
                let before = CALLS.load(SeqCst);
                (0..3).for_each(|_| run());
                let after = CALLS.load(SeqCst);
                if after != before {
                    found.push(format!("{name}: {}", after - before));
                }
            });
            found
        });
        assert!(found.is_empty(), "allocations in three calls with {threads} threads: {found:#?}");
    }
}

/// Bytes that a call takes beside its operands and its result, on threads that have no scratch yet.
fn extra(threads: usize, f: impl FnOnce() + Send) -> isize {
    /// A pool that ends frees its scratch some time later, while the next call is measured.
    static MEASURED: Mutex<Vec<ThreadPool>> = Mutex::new(Vec::new());

    let pool = pool(threads);
    let bytes = pool.install(|| {
        let before = BYTES.load(SeqCst);
        MOST.store(before, SeqCst);
        f();
        MOST.load(SeqCst) - before
    });
    MEASURED.lock().unwrap().push(pool);
    bytes
}

/// A 3×3 layer of ResNet-50, 64 channels at 56×56, 8 images: what the module's documentation says.
#[test]
fn the_patch_matrix_is_never_there() {
    let _alone = ALONE.lock();
    let x = wave::<f32, 4>([8, 64, 56, 56]);
    let w = wave::<f32, 4>([64, 64, 3, 3]);
    let mut y = wave::<f32, 4>([8, 64, 56, 56]);
    let (mut dx, mut dw) = (wave::<f32, 4>(x.shape()), wave::<f32, 4>(w.shape()));
    let dz = wave::<f32, 4>(y.shape());
    let patches = Im2col::<2>::new([3, 3]).padding([1, 1]);
    let matrix = extra(1, || drop(patches.im2col(x.view()).unwrap()));
    assert!((57_802_752..57_900_000).contains(&matrix), "8 · 56 · 56 rows of 576 floats, not {matrix} bytes");
    println!("{matrix} bytes for the matrix");
    for algorithm in [Algorithm::ImplicitGemm, Algorithm::Winograd2, Algorithm::Winograd4] {
        let conv = Convolution::<2>::new().padding([1, 1]).algorithm(algorithm);
        for threads in [1, 2] {
            let took = [
                extra(threads, || conv.forward_into(x.view(), w.view(), None, y.view_mut()).unwrap()),
                extra(threads, || conv.backward_input_into(dz.view(), w.view(), dx.view_mut()).unwrap()),
                extra(threads, || conv.backward_weight_into(x.view(), dz.view(), dw.view_mut()).unwrap()),
            ];
            println!("{algorithm:?}, {threads} threads: {took:?} bytes for Y, dX and dW");
            // What is transformed may fill L2, or the least number of tiles a megabyte; an odd number of vectors in a row adds a
            // quarter. What is added up, copied and packed comes on top.
            let transformed = machine::caches().l2.max(1 << 20) / 4 * 5;
            let bound = (1_200_000 + transformed as isize) * threads as isize;
            assert!(
                took.iter().all(|&bytes| bytes < bound),
                "{algorithm:?}: {took:?} bytes, {threads} threads"
            );
        }
    }
}
