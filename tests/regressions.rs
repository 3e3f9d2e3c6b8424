//! Bugs that were found, each kept by name.

#[path = "regressions/composites.rs"]
mod composites;
#[path = "regressions/empty.rs"]
mod empty;
#[path = "regressions/layers.rs"]
mod layers;

use std::ptr::NonNull;

use tilewise::conv::Convolution;
use tilewise::gemm::{Gemm, Packed, gemm};
use tilewise::{Tensor, TensorView, machine};

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
    let ones = |x: f32| Tensor::full([1], x).unwrap();
    let close = |a: f32, b: f32| {
        let (a, b) = ([a], [b]);
        let view = |x| TensorView::from_slice(x, [1]).unwrap();
        view(&a).all_close(view(&b), 1e-5, 1e-8)
    };
    assert!(!close(1.0, f32::INFINITY));
    assert!(!close(f32::NEG_INFINITY, f32::INFINITY));
    assert!(!close(f32::INFINITY, 1.0));
    assert!(close(f32::INFINITY, f32::INFINITY));
    // Nor where the tolerance is one.
    let (one, infinity) = (ones(1.0), ones(f32::INFINITY));
    assert!(!infinity.view().all_close(one.view(), 0.0, f64::INFINITY));
    assert!(!one.view().all_close(infinity.view(), f64::INFINITY, 0.0));
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

#[test]
fn an_infinite_alpha_without_depth_multiplies_nothing() {
    let empty = Tensor::<f32, 2>::zeros([3, 0]).unwrap();
    let mut c = Tensor::<f32, 2>::full([3, 3], 2.0).unwrap();
    gemm(f32::INFINITY, empty.view(), empty.view().transpose(), 1.0, c.view_mut()).unwrap();
    assert_eq!(c.as_slice(), [2.0; 9]);
}

#[test]
fn cross_entropy_of_rows_without_classes_ends() {
    let empty = TensorView::<f32, 2>::as_strided(&[], [1 << 60, 0], [0, 1]).unwrap();
    let loss = tilewise::loss::CrossEntropy::new().forward(empty, empty);
    assert_eq!(loss, Ok(0.0));
}

#[test]
fn debug_takes_any_precision_and_any_length_of_text() {
    let one = [1.0f64];
    let view = TensorView::from_slice(&one, [1]).unwrap();
    assert!(format!("{view:.65535?}").starts_with("[1.000"));
    let words = ["é".repeat(70_000), "a".into()];
    let text = format!("{:?}", TensorView::from_slice(&words, [2]).unwrap());
    assert!(text.ends_with("  \"a\"]"));
}

/// Multiplies when its thread ends.
struct AtExit;

impl Drop for AtExit {
    fn drop(&mut self) {
        let a = Tensor::<f32, 2>::full([300, 300], 1.0).unwrap();
        let mut c = Tensor::<f32, 2>::zeros([300, 300]).unwrap();
        gemm(1.0, a.view(), a.view(), 0.0, c.view_mut()).unwrap();
        assert_eq!(c.as_slice()[0], 300.0);
    }
}

thread_local! {
    static AT_EXIT: AtExit = const { AtExit };
}

#[test]
fn a_thread_that_ends_can_still_multiply() {
    for scratch_first in [false, true] {
        let thread = std::thread::spawn(move || {
            if scratch_first {
                drop(AtExit);
            }
            AT_EXIT.with(|_| {});
            drop(AtExit);
        });
        thread.join().unwrap();
    }
}

#[test]
fn a_forced_instruction_set_does_not_reach_jobs_that_run_meanwhile() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let chosen = machine::isa().unwrap();
    let a = Tensor::<f32, 2>::full([256, 256], 1.0).unwrap();
    pool.install(|| {
        rayon::scope(|scope| {
            for job in 0..200 {
                let a = a.view();
                scope.spawn(move |_| {
                    if job % 2 == 1 {
                        return assert_eq!(machine::isa().unwrap(), chosen);
                    }
                    let mut c = Tensor::<f32, 2>::zeros([256, 256]).unwrap();
                    let product = || gemm(1.0, a, a, 0.0, c.view_mut());
                    machine::with_isa(machine::Isa::Baseline, product).unwrap().unwrap();
                });
            }
        });
    });
}

/// Found by the fuzzer: the length of a row that no vector would have held overflowed.
#[test]
fn a_convolution_may_have_any_stride() {
    let x = Tensor::<f32, 4>::from_fn([1, 1, 3, 4], |[_, _, i, j]| (4 * i + j) as f32).unwrap();
    let w = Tensor::<f32, 4>::full([1, 1, 2, 2], 1.0).unwrap();
    for stride in [1 << 62, usize::MAX / 2, usize::MAX] {
        let conv = |stride| tilewise::conv::Convolution::<2>::new().stride(stride);
        let y = conv([stride, stride]).forward(x.view(), w.view(), None).unwrap();
        assert_eq!(y.as_slice(), [10.0]);
        let y = conv([stride, 1]).forward(x.view(), w.view(), None).unwrap();
        assert_eq!(y.as_slice(), [10.0, 14.0, 18.0]);
        let y = conv([1, stride]).forward(x.view(), w.view(), None).unwrap();
        assert_eq!(y.as_slice(), [10.0, 26.0]);
        let dy = Tensor::<f32, 4>::full([1, 1, 1, 3], 1.0).unwrap();
        let dw = conv([stride, 1]).backward_weight(x.view(), dy.view(), [2, 2]).unwrap();
        assert_eq!(dw.as_slice(), [3.0, 6.0, 15.0, 18.0]);
        let dx = conv([stride, 1]).backward_input(dy.view(), w.view(), [3, 4]).unwrap();
        assert_eq!(dx.as_slice(), [1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

/// Found by a random case: only the first plane of depth was computed.
#[test]
fn winograd_computes_every_plane_of_depth() {
    use tilewise::conv::{Algorithm, Convolution};
    let value = |at: [usize; 5]| {
        (at.iter().zip([31, 17, 7, 5, 3]).map(|(i, f)| i * f).sum::<usize>() % 11) as f64 - 5.0
    };
    let x = Tensor::from_fn([2, 3, 4, 6, 7], value).unwrap();
    let w = Tensor::from_fn([5, 3, 1, 3, 3], value).unwrap();
    let conv = Convolution::<3>::new().padding([1, 1, 1]);
    let direct = conv.algorithm(Algorithm::ImplicitGemm);
    let y = direct.forward(x.view(), w.view(), None).unwrap();
    assert_eq!(y.shape(), [2, 5, 6, 6, 7]);
    let dx = direct.backward_input(y.view(), w.view(), [4, 6, 7]).unwrap();
    for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
        let conv = conv.algorithm(algorithm);
        let found = conv.forward(x.view(), w.view(), None).unwrap();
        assert!(found.view().all_close(y.view(), 1e-9, 1e-9), "{algorithm:?}");
        let found = conv.backward_input(y.view(), w.view(), [4, 6, 7]).unwrap();
        assert!(found.view().all_close(dx.view(), 1e-9, 1e-9), "{algorithm:?}");
    }
}

/// The gradients of the two directions were tasks, and in a task the best instruction set was taken.
#[test]
fn gradients_of_two_directions_keep_a_forced_instruction_set() {
    use tilewise::rnn::{Direction, Gru, Recurrent, Tape, Weights};
    let [steps, batch, inputs, hidden] = [12, 24, 40, 48];
    let value = |at: [usize; 3]| {
        (at.iter().zip([31, 17, 7]).map(|(i, f)| i * f).sum::<usize>() % 23) as f32 / 23.0 - 0.4
    };
    let x = Tensor::from_fn([steps, batch, inputs], value).unwrap();
    let (u, w) =
        (Tensor::from_fn([2, 3 * hidden, inputs], value), Tensor::from_fn([2, 3 * hidden, hidden], value));
    let (u, w) = (u.unwrap(), w.unwrap());
    let cell = Gru::new().direction(Direction::Bidirectional);
    let run = |isa, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let back = || {
            let (weights, mut tape) = (Weights::new(u.view(), w.view()), Tape::new());
            let y = cell.forward_taped(x.view(), weights, &mut tape).unwrap().y;
            cell.backward(x.view(), weights, &tape, y.view()).unwrap()
        };
        pool.install(|| machine::with_isa(isa, back).unwrap())
    };
    for &isa in machine::supported() {
        let (one, three) = (run(isa, 1), run(isa, 3));
        assert_eq!(one.weights.input.as_slice(), three.weights.input.as_slice(), "{isa}");
        assert_eq!(one.weights.recurrent.as_slice(), three.weights.recurrent.as_slice(), "{isa}");
    }
}

#[test]
fn gradients_of_a_bias_without_elements_end() {
    let dz = Tensor::<f32, 4>::zeros([1 << 50, 3, 0, 0]).unwrap();
    let db = tilewise::conv::Convolution::<2>::new().backward_bias(dz.view()).unwrap();
    assert_eq!(db.as_slice(), [0.0; 3]);
}

/// The strides of axes of one element may be anything, and were multiplied all the same.
#[test]
fn a_single_row_may_have_any_stride() {
    let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [1.0f32; 16]);
    for stride in [isize::MAX, isize::MIN + 1] {
        let a = TensorView::as_strided(&a, [1, 4], [stride, 1]).unwrap();
        let b = TensorView::as_strided(&b, [4, 2], [4, 2]).unwrap();
        let mut c = Tensor::<f32, 2>::zeros([1, 2]).unwrap();
        gemm(1.0, a, b, 0.0, c.view_mut()).unwrap();
        assert_eq!(c.as_slice(), [10.0, 10.0]);
    }
}

#[test]
fn pooling_of_an_endless_image_does_not_overflow() {
    use tilewise::pool::MaxPool;
    let one = [3.0f32];
    let x = TensorView::from_slice(&one, [1, 1, 1]).unwrap().broadcast([1, 1, isize::MAX as usize]).unwrap();
    // What it would take does not fit in any memory.
    let y = MaxPool::<1>::new([3]).stride([1 << 61]).forward(x);
    assert!(matches!(y, Err(tilewise::Error::Alloc { .. })), "{y:?}");
    let x = TensorView::from_slice(&one, [1, 1, 1, 1]).unwrap().broadcast([1, 1, 1, 1 << 62]).unwrap();
    let y = MaxPool::<2>::new([1, 1 << 62]).padding_sides([[3, 3], [0, 0]]).forward(x);
    assert!(matches!(y, Err(tilewise::Error::Alloc { .. })), "{y:?}");
}

#[test]
fn layers_refuse_gradients_of_other_shapes() {
    use tilewise::activation::Activation;
    use tilewise::layer::{AvgPool2d, FeedForward, Layer, MultiHeadAttention};
    use tilewise::{Error, pool::AveragePool, random::Rng};
    let zeros = |shape| Tensor::<f32, 3>::zeros(shape).unwrap();
    let mut layer = FeedForward::<f32>::new(4, 5, Activation::Relu, &mut Rng::seed(1)).unwrap();
    layer.forward(zeros([3, 4, 4]).view()).unwrap();
    assert!(matches!(layer.backward(zeros([6, 2, 4]).view()), Err(Error::Shape { .. })));
    assert_eq!(layer.backward(zeros([3, 4, 4]).view()).unwrap().shape(), [3, 4, 4]);
    let mut layer = AvgPool2d::new(AveragePool::new([2, 2]));
    let images = |shape| Tensor::<f32, 4>::zeros(shape).unwrap();
    layer.forward(images([2, 3, 4, 4]).view()).unwrap();
    assert!(matches!(layer.backward(images([3, 2, 2, 2]).view()), Err(Error::Shape { .. })));
    let large = MultiHeadAttention::<f32>::new(usize::MAX, 1, &mut Rng::seed(1));
    assert!(matches!(large, Err(Error::Overflow { .. })));
}

/// Steps from tap to tap were counted in pixels, also where no window has two taps inside.
#[test]
fn a_dilation_beyond_the_image_does_not_overflow() {
    use tilewise::conv::{Convolution, Im2col};
    let far = (1 << 61) - 3;
    let conv = Convolution::<2>::new().dilation([far, 1]).padding_sides([[far, 0], [0, 0]]);
    let (dz, w) = (Tensor::<f32, 4>::full([1, 9, 1, 9], 1.0), Tensor::full([9, 1, 2, 1], 2.0));
    let dx = conv.backward_input(dz.unwrap().view(), w.unwrap().view(), [1, 9]).unwrap();
    assert_eq!(dx.as_slice(), [18.0; 9]);
    let patches = Im2col::<2>::new([2, 1]).dilation([far, 1]).padding_sides([[far, 0], [0, 0]]);
    let matrix = patches.im2col(dx.view()).unwrap();
    assert_eq!(matrix.as_slice(), [0.0, 18.0].repeat(9));
    assert_eq!(patches.col2im(matrix.view(), [1, 1, 1, 9]).unwrap(), dx);
}

/// Taps that the dilation sends out of the image read zeros: the copy of an image had all that lies between them, 40 GB.
#[test]
fn far_taps_take_no_memory() {
    let far = 1 << 31;
    let conv = Convolution::<2>::new().dilation([far, far + 1]).same();
    let x = Tensor::<f64, 4>::from_fn([2, 3, 6, 7], |[n, c, h, w]| (n + 2 * c + 3 * h * w) as f64).unwrap();
    let w = Tensor::from_fn([4, 3, 3, 3], |[o, c, h, w]| (o * c + h) as f64 - w as f64).unwrap();
    let centre = w.view().slice(2, 1..2, 1).unwrap().slice(3, 1..2, 1).unwrap();
    let plain = Convolution::<2>::new();
    let (y, expected) =
        (conv.forward(x.view(), w.view(), None).unwrap(), plain.forward(x.view(), centre, None).unwrap());
    assert_eq!(y, expected);
    let dx = conv.backward_input(y.view(), w.view(), [6, 7]).unwrap();
    assert_eq!(dx, plain.backward_input(y.view(), centre, [6, 7]).unwrap());
    let dw = conv.backward_weight(x.view(), y.view(), [3, 3]).unwrap();
    let dw_centre = dw.view().slice(2, 1..2, 1).unwrap().slice(3, 1..2, 1).unwrap();
    assert_eq!(dw_centre.to_tensor().unwrap(), plain.backward_weight(x.view(), y.view(), [1, 1]).unwrap());
}

/// In the lanes behind a row's end x̂ was (0 − mean)/σ, which may be infinite, times a gradient of 0.
#[test]
fn lanes_behind_a_row_add_nothing_to_its_gradient() {
    use tilewise::{Element, norm::LayerNormalization};
    fn check<T: Element>(exponent: i32) {
        // All equal, so that x̂ is 0; a power of 2, so that sums are exact.
        let large = T::from_f64(2f64.powi(exponent));
        for n in (1..=40).chain([63, 64]) {
            let x = Tensor::full([2, n], large).unwrap();
            let dy = Tensor::from_fn([2, n], |[row, i]| T::from_f64(((7 * i + row) % 5) as f64)).unwrap();
            let dx = LayerNormalization::new().backward_input(x.view(), None, dy.view()).unwrap();
            for (dx, dy) in dx.as_slice().chunks(n).zip(dy.as_slice().chunks(n)) {
                let mean = dy.iter().map(|g| g.to_f64()).sum::<f64>() / n as f64;
                for (dx, dy) in dx.iter().zip(dy) {
                    let expected = (dy.to_f64() - mean) / 1e-5f64.sqrt();
                    let error = (dx.to_f64() - expected).abs();
                    assert!(error <= 4e3 * T::EPSILON.to_f64(), "{n}: {dx} {expected}");
                }
            }
        }
    }
    for &isa in machine::supported() {
        machine::with_isa(isa, || {
            check::<f32>(121);
            check::<f64>(1017);
        })
        .unwrap();
    }
}

/// x, on which dx does not depend where the statistics are constants, was multiplied by 0.
#[test]
fn gradients_by_constant_statistics_do_not_look_at_x() {
    use tilewise::norm::{BatchNormalization, NormGradientsMut};
    let shape = [2, 3, 5, 7];
    let x = Tensor::from_fn(shape, |[b, c, h, w]| [f32::NAN, f32::INFINITY, 1.0][(b + c + h + w) % 3]);
    let dy = Tensor::from_fn(shape, |[b, c, h, w]| (b + 2 * c + 3 * h + 5 * w) as f32 - 9.0).unwrap();
    let (x, mean) = (x.unwrap(), Tensor::from_slice(&[0.5, f32::INFINITY, -1.0], [3]).unwrap());
    let (variance, scale) = (Tensor::full([3], 0.25).unwrap(), Tensor::from_fn([3], |[c]| c as f32 + 1.0));
    let scale = scale.unwrap();
    let last = [3 * 35, 1, 3 * 7, 3];
    for &isa in machine::supported() {
        for beta in [0.0, 0.5] {
            for strides in [[3 * 35, 35, 7, 1], last] {
                let held = if beta == 0.0 { f32::NAN } else { 8.0 };
                let mut dx = vec![held; 210];
                let to = tilewise::TensorViewMut::as_strided(&mut dx, shape, strides).unwrap();
                let mut dshift = Tensor::full([3], held).unwrap();
                let gradients =
                    NormGradientsMut { input: Some(to), scale: None, shift: Some(dshift.view_mut()) };
                let (mean, variance, scale) = (mean.view(), variance.view(), Some(scale.view()));
                let batch_norm = BatchNormalization::new().epsilon(0.0);
                let run = || {
                    let (x, dy) = (x.view(), dy.view());
                    batch_norm.backward_inference_into(x, mean, variance, scale, dy, beta, gradients)
                };
                machine::with_isa(isa, run).unwrap().unwrap();
                let dx = TensorView::as_strided(&dx, shape, strides).unwrap();
                let more = if beta == 0.0 { 0.0 } else { beta * held };
                let expected =
                    Tensor::from_fn(shape, |at| dy.get(at).unwrap() * 2.0 * (at[1] as f32 + 1.0) + more);
                assert_eq!(dx, expected.unwrap().view(), "{isa} {beta} {strides:?}");
                let sums = Tensor::from_fn([3], |[c]| {
                    dy.view().select::<3>(1, c).unwrap().iter().sum::<f32>() + more
                });
                assert_eq!(dshift, sums.unwrap(), "{isa} {beta} {strides:?}");
            }
        }
    }
}
