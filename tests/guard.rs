//! Operands that lie between pages which nobody may touch: an element too many, read or written, ends the process. Unlike a
//! sanitizer this also sees what masked loads and stores of one instruction set do.
#![cfg(target_os = "linux")]

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

use tilewise::activation::Activation;
use tilewise::gemm::{Bias, Gemm, Packed, gemm, gram};
use tilewise::{Element, TensorView, TensorViewMut, machine};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        access: c_int,
        flags: c_int,
        file: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn mprotect(at: *mut c_void, len: usize, access: c_int) -> c_int;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
}

const READ_WRITE: c_int = 1 | 2;
const PRIVATE_ANONYMOUS: c_int = 0x02 | 0x20;
/// A multiple of the page size of any system.
const PAGE: usize = 64 << 10;

/// Elements with a forbidden page on either side, close to one of them.
struct Guarded<T> {
    start: *mut c_void,
    bytes: usize,
    first: *mut T,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Element> Guarded<T> {
    fn new(len: usize, at_end: bool, mut element: impl FnMut(usize) -> T) -> Self {
        let inside = (len * size_of::<T>()).next_multiple_of(PAGE).max(PAGE);
        let bytes = inside + 2 * PAGE;
        // SAFETY: new pages, of which those inside are made usable; elements of `T` have no invalid bytes.
        unsafe {
            let start = mmap(std::ptr::null_mut(), bytes, 0, PRIVATE_ANONYMOUS, -1, 0);
            assert!(start.addr() != usize::MAX, "no memory");
            assert_eq!(mprotect(start.byte_add(PAGE), inside, READ_WRITE), 0);
            let offset = if at_end { inside - len * size_of::<T>() } else { 0 };
            let first = start.byte_add(PAGE + offset).cast::<T>();
            (0..len).for_each(|i| first.add(i).write(element(i)));
            Self { start, bytes, first, len, elements: PhantomData }
        }
    }

    fn slice(&self) -> &[T] {
        // SAFETY: `new` wrote as many elements, and the pages are this value's own.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }

    fn slice_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `slice`, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: these pages were mapped by `new`, and nothing of them is borrowed.
        unsafe { munmap(self.start, self.bytes) };
    }
}

/// A matrix whose elements fill their buffer, in rows or in columns, and so each beginning or ending at a forbidden page.
fn view<T: Element>(data: &Guarded<T>, [rows, columns]: [usize; 2], turned: bool) -> TensorView<'_, T, 2> {
    if turned {
        TensorView::from_slice(data.slice(), [columns, rows]).unwrap().transpose()
    } else {
        TensorView::from_slice(data.slice(), [rows, columns]).unwrap()
    }
}

/// Every order of the operands, packed and not, with and without reading C, with and without an epilogue.
fn products<T: Element>([m, n, k]: [usize; 3]) {
    let value = |i: usize| T::from_f64((i * 7 % 11) as f64 / 8.0 - 0.5);
    for at_end in [true, false] {
        let (a, b) = (Guarded::new(m * k, at_end, value), Guarded::new(k * n, at_end, value));
        let mut c = Guarded::new(m * n, at_end, value);
        let bias = Guarded::new(n, at_end, value);
        let bias = TensorView::from_slice(bias.slice(), [n]).unwrap();
        for turned in 0..8 {
            let (a, b) = (view(&a, [m, k], turned & 1 > 0), view(&b, [k, n], turned & 2 > 0));
            let mut run = |f: &dyn Fn(TensorViewMut<'_, T, 2>)| {
                let shape = if turned & 4 > 0 { [n, m] } else { [m, n] };
                let c = TensorViewMut::from_slice(c.slice_mut(), shape).unwrap();
                f(if turned & 4 > 0 { c.transpose() } else { c });
            };
            run(&|c| gemm(T::ONE, a, b, T::ZERO, c).unwrap());
            run(&|c| gemm(T::ONE, a, b, T::ONE, c).unwrap());
            run(&|c| {
                let options = Gemm::new().bias(Bias::PerColumn(bias)).activation(Activation::Relu);
                options.run(a, b, c).unwrap();
            });
            let (lhs, rhs) = (Packed::lhs(a).unwrap(), Packed::rhs(b).unwrap());
            run(&|c| gemm(T::ONE, &lhs, b, T::ONE, c).unwrap());
            run(&|c| gemm(T::ONE, a, &rhs, T::ONE, c).unwrap());
            if m == n {
                run(&|c| gram(T::ONE, a, T::ONE, c).unwrap());
            }
        }
    }
}

fn everywhere(shape: [usize; 3]) {
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            products::<f32>(shape);
            products::<f64>(shape);
        })
        .unwrap();
    }
}

#[test]
fn nothing_beyond_small_operands_is_touched() {
    for m in [1, 2, 5, 13] {
        for n in 1..=35 {
            for k in [1, 2, 19] {
                everywhere([m, n, k]);
            }
        }
    }
    for m in 1..=25 {
        everywhere([m, 17, 3]);
        everywhere([m, m, 9]);
    }
}

#[test]
fn nothing_beyond_large_operands_is_touched() {
    // Blocked with each way to fetch, thin, vectors, split where there are threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| {
        for shape in [
            [61, 67, 71],
            [130, 141, 301],
            [3, 1043, 517],
            [1, 5003, 91],
            [301, 1, 703],
            [12, 31, 9001],
            [77, 77, 40],
        ] {
            everywhere(shape);
        }
    });
}
