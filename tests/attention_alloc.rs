//! What attention asks of the allocator: nothing once it is warm, and never anything that grows with queries × keys.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tilewise::attention::{Align, Attention, AttentionGradientsMut};
use tilewise::{Tensor, machine};

/// The system's allocator, which adds up what this thread asks of it.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does everything; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes asked for by a first and by a later call, forward and backward, on one thread.
fn bytes(length: usize, causal: bool, dim: usize) -> [usize; 2] {
    let x =
        Tensor::<f32, 4>::from_fn([1, 1, length, dim], |[_, _, i, d]| ((i + d) % 5) as f32 / 5.0).unwrap();
    let bias = Tensor::<f32, 4>::zeros([1, 1, 1, length]).unwrap();
    let (mut y, mut normalizer) =
        (Tensor::<f32, 4>::zeros(x.shape()).unwrap(), Tensor::<f32, 3>::zeros([1, 1, length]).unwrap());
    let mut gradients = [0; 3].map(|_| Tensor::<f32, 4>::zeros(x.shape()).unwrap());
    let mut options = Attention::new().bias(bias.view()).dropout(0.1, 1);
    if causal {
        options = options.causal(Align::Start);
    }
    let mut call = || {
        let before = BYTES.get();
        let [dq, dk, dv] = &mut gradients;
        options
            .forward_saving_into(x.view(), x.view(), x.view(), y.view_mut(), normalizer.view_mut())
            .unwrap();
        let gradients = AttentionGradientsMut {
            query: Some(dq.view_mut()),
            key: Some(dk.view_mut()),
            value: Some(dv.view_mut()),
            bias: None,
        };
        let (y, normalizer, x) = (y.view(), normalizer.view(), x.view());
        options.backward_into(x, x, x, y, normalizer, x, gradients).unwrap();
        BYTES.get() - before
    };
    [call(), call()]
}

#[test]
fn memory_does_not_grow_with_queries_times_keys() {
    for &isa in machine::supported() {
        for (causal, dim) in [(false, 64), (true, 64), (false, 37)] {
            // Each in a thread of its own, which has no scratch yet and computes everything itself.
            let measure = |length| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                pool.install(|| machine::with_isa(isa, || bytes(length, causal, dim)).unwrap())
            };
            let [short, long] = [measure(512), measure(2048)];
            assert_eq!([short[1], long[1]], [0; 2], "{isa}: a warm call allocates nothing");
            // Scores of all queries with all keys would be 16 MiB.
            assert!(long[0] < 5 << 20, "{isa}: {} bytes", long[0]);
            assert!(long[0] < 5 * short[0], "{isa}: {} bytes, then {}", short[0], long[0]);
        }
    }
}
