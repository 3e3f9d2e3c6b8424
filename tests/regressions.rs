//! Bugs that were found, each kept by name.

use std::ptr::NonNull;

use tilewise::gemm::{Gemm, Packed, gemm};
use tilewise::{Tensor, TensorView};

#[test]
fn debug_of_an_empty_view_does_not_walk_its_long_axes() {
    let empty = TensorView::<f32, 2>::as_strided(&[], [1 << 60, 0], [0, 1]).unwrap();
    assert_eq!(format!("{empty:?}"), "[]");
    assert_eq!(format!("{:?}", Tensor::<f32, 3>::zeros([1, 2, 0]).unwrap()), "[]");
}

#[test]
fn reshape_of_elements_without_a_size_does_not_overflow() {
    // SAFETY: elements without a size are everywhere.
    let data = unsafe { std::slice::from_raw_parts(NonNull::<()>::dangling().as_ptr(), usize::MAX) };
    let far = isize::MAX / 2;
    let view = TensorView::as_strided(data, [2, 3], [1, far]).unwrap();
    assert!(view.reshape([6]).is_err());
    assert_eq!(view.reshape([2, 1, 3]).unwrap().strides()[2], far);
}

#[test]
fn no_finite_number_is_close_to_an_infinity() {
    let close = |a: f32, b: f32| {
        let (a, b) = ([a], [b]);
        let view = |x| TensorView::from_slice(x, [1]).unwrap();
        view(&a).all_close(view(&b), 1e-5, 1e-8)
    };
    assert!(!close(1.0, f32::INFINITY));
    assert!(!close(f32::NEG_INFINITY, f32::INFINITY));
    assert!(!close(f32::INFINITY, 1.0));
    assert!(close(f32::INFINITY, f32::INFINITY));
}

/// A matrix without elements whose other side is longer than anything can walk.
fn deep(shape: [usize; 2]) -> TensorView<'static, f32, 2> {
    TensorView::as_strided(&[], shape, [0, 0]).unwrap()
}

const DEEP: usize = 1 << 60;

#[test]
fn a_product_without_elements_is_done_however_deep() {
    let one = [1.0f32];
    let row = TensorView::from_slice(&one, [1, 1]).unwrap().broadcast([1, DEEP]).unwrap();
    let mut c = Tensor::<f32, 2>::zeros([1, 0]).unwrap();
    gemm(1.0, row, deep([DEEP, 0]), 0.0, c.view_mut()).unwrap();
    let mut c = Tensor::<f32, 2>::zeros([0, 1]).unwrap();
    gemm(1.0, deep([0, DEEP]), row.transpose(), 0.0, c.view_mut()).unwrap();
}

#[test]
fn a_batch_without_elements_is_done_however_long() {
    let empty = Tensor::<f32, 3>::zeros([DEEP, 0, 0]).unwrap();
    let mut c = Tensor::<f32, 3>::zeros([DEEP, 0, 0]).unwrap();
    Gemm::new().run_batched(empty.view(), empty.view(), c.view_mut()).unwrap();
}

#[test]
fn a_matrix_without_lines_is_packed_however_deep() {
    assert_eq!(Packed::lhs(deep([0, DEEP])).unwrap().bytes(), 0);
    assert_eq!(Packed::rhs(deep([DEEP, 0])).unwrap().bytes(), 0);
}
