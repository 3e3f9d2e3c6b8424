//! What must hold of convolution whatever the sizes: gradients, adjoints, the algebra of true convolution, determinism.

#[path = "conv_properties/algebra.rs"]
mod algebra;
mod common;
#[path = "conv_properties/special.rs"]
mod special;
#[path = "conv_properties/transposed.rs"]
mod transposed;

use common::geometry::Problem;
use common::{ALGORITHMS, bits, in_pools, last, quickcheck, turned, wave, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Convolution, ConvolutionTranspose, Im2col};
use tilewise::gemm::gemm;
use tilewise::reference::conv::Geometry;
use tilewise::{Element, ImageRank, Spatial, Tensor, TensorView, machine};

/// Kernels of a single tap that sum more steps than a block has, packed: by plain products and by windows.
#[test]
fn single_taps_packed() {
    // Batch, channels in and out, size, stride.
    for [n, c_in, c_out, size, stride] in
        [[2, 512, 40, 7, 1], [1, 600, 70, 9, 2], [3, 1030, 13, 5, 1], [1, 300, 9, 30, 1], [2, 520, 64, 6, 2]]
    {
        let conv = Convolution::<2>::new().stride([stride; 2]);
        let (x, w) = (wave::<f32, 4>([n, c_in, size, size], 0.1), wave([c_out, c_in, 1, 1], 0.2));
        for &isa in machine::supported() {
            let results = machine::with_isa(isa, || {
                [
                    conv.forward(x.view(), &conv.pack(w.view()).unwrap(), None),
                    conv.forward(x.view(), w.view(), None),
                ]
            });
            let [packed, view] = results.unwrap().map(Result::unwrap);
            let close = packed.view().all_close(view.view(), 1e-4, 1e-4);
            assert!(close, "{isa} [{n}, {c_in}, {size}, {size}] to {c_out}, stride {stride}");
        }
    }
}

/// Kernels over one axis that is long: where channels lie last, patches are read as they lie, but for those at the ends.
fn check_long_lines<T: Element>() {
    let planes = wave::<T, 4>([1, 64, 2, 4000], 0.1);
    let pixels = last(&planes);
    // Output channels, kernel, stride, padding.
    for (c_out, kernel, stride, padding) in [
        (80, 3, [1, 1], [[0, 0], [1, 1]]),
        (33, 4, [1, 2], [[1, 0], [0, 3]]),
        (40, 9, [2, 1], [[0, 1], [8, 0]]),
    ] {
        let (w, bias) = (wave::<T, 4>([c_out, 64, 1, kernel], 0.2), wave::<T, 1>([c_out], 0.3));
        let conv = Convolution::<2>::new().stride(stride).padding_sides(padding).activation(Activation::Relu);
        let shape = conv.output_shape(planes.shape(), w.shape()).unwrap();
        let (residual, mut expected) = (wave::<T, 4>(shape, 0.4), Tensor::zeros(shape).unwrap());
        let residual_last = last(&residual);
        let (bias, beside, implicit) =
            (Some(bias.view()), turned(&residual_last), conv.algorithm(Algorithm::ImplicitGemm));
        implicit.forward_add_into(planes.view(), w.view(), bias, beside, expected.view_mut()).unwrap();
        for x in [planes.view(), turned(&pixels)] {
            for &isa in machine::supported() {
                let packed = machine::with_isa(isa, || conv.pack_channels_last(w.view()).unwrap()).unwrap();
                let results = in_pools(|| {
                    let mut y = Tensor::full(residual_last.shape(), T::NAN).unwrap();
                    machine::with_isa(isa, || {
                        let to = y.view_mut().permute([0, 3, 1, 2]).unwrap();
                        conv.forward_add_into(x, &packed, bias, beside, to).unwrap();
                    })
                    .unwrap();
                    assert!(turned(&y).all_close(expected.view(), 1e-4, 1e-4), "{isa} {c_out} {kernel}");
                    bits(y.as_slice())
                });
                assert!(results.iter().all(|result| *result == results[0]), "{isa} {c_out} {kernel}");
            }
        }
    }
}

#[test]
fn long_lines_are_read_in_place() {
    check_long_lines::<f32>();
    check_long_lines::<f64>();
}

/// Layers of networks with channels last: rows of patches, cut anywhere, for whole and for narrow tiles.
#[test]
fn weights_packed_for_channels_last() {
    // Batch, channels in and out, size, kernel, stride, padding, dilation.
    let layers = [
        [2, 3, 40, 61, 7, 2, 3, 1],
        [1, 3, 16, 40, 3, 2, 1, 1],
        [1, 128, 70, 15, 3, 2, 1, 1],
        [3, 70, 40, 9, 1, 2, 0, 1],
        [1, 300, 520, 7, 3, 2, 1, 1],
        [1, 5, 6, 9, 3, 1, 4, 2],
        [2, 1, 3, 6, 3, 1, 2, 1],
        // Rows long enough to be read in place: depth in one block and in several, which begin within a run, padding alone.
        [2, 5, 20, 50, 5, 2, 4, 1],
        [1, 40, 24, 52, 3, 2, 1, 1],
        [2, 130, 66, 25, 3, 1, 1, 1],
        [1, 3, 70, 20, 3, 1, 4, 1],
        [1, 2, 6, 90, 7, 3, 0, 1],
    ];
    for [n, c_in, c_out, size, kernel, stride, padding, dilation] in layers {
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([padding; 2]).dilation([dilation; 2]);
        let conv = conv.activation(Activation::Relu);
        let w = wave::<f32, 4>([c_out, c_in, kernel, kernel], 0.2);
        let bias = wave([c_out], 0.3);
        let nhwc = wave::<f32, 4>([n, size, size, c_in], 0.1);
        let x = nhwc.view().permute([0, 3, 1, 2]).unwrap();
        let expected = conv.forward(x, w.view(), Some(bias.view())).unwrap();
        let [_, _, high, wide] = expected.shape();
        let terms = (c_in * kernel * kernel) as f32;
        let results = in_pools(|| {
            let packed = conv.pack_channels_last(w.view()).unwrap();
            let mut y = Tensor::full([n, high, wide, c_out], f32::NAN).unwrap();
            let to = y.view_mut().permute([0, 3, 1, 2]).unwrap();
            conv.forward_into(x, &packed, Some(bias.view()), to).unwrap();
            let planes = conv.forward(x, &packed, Some(bias.view())).unwrap();
            assert_eq!(
                y.view().permute([0, 3, 1, 2]).unwrap().to_tensor().unwrap(),
                planes,
                "another layout"
            );
            for (found, expected) in planes.iter().zip(expected.iter()) {
                assert!(
                    (found - expected).abs() <= 2.0 * terms * f32::EPSILON * (terms + 1.0),
                    "{found} {expected}"
                );
            }
            bits(y.as_slice())
        });
        assert!(results.iter().all(|result| *result == results[0]));
    }
}

/// Whole numbers between −4 and 4: sums of their products are exact.
fn whole<const N: usize>(g: &mut Gen, shape: [usize; N]) -> Tensor<f32, N> {
    Tensor::from_fn(shape, |_| within(g, 0..9) as f32 - 4.0).unwrap()
}

fn dot<const N: usize>(a: &Tensor<f64, N>, b: &Tensor<f64, N>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn descriptor<const S: usize, const N: usize>(problem: &Problem<S, N>) -> Convolution<S> {
    let g = problem.geometry;
    let conv = Convolution::new().stride(g.stride).padding_sides(g.padding).dilation(g.dilation);
    conv.groups(g.groups).flipped(g.flipped)
}

/// Central differences of L = Σ R ⊙ Y: L is linear in each argument, so that only rounding is left.
fn differences<const S: usize, const N: usize>(problem: Problem<S, N>) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    let conv = descriptor(&problem);
    let (mut x, mut w) = (wave::<f64, N>(problem.x(), 0.1), wave::<f64, N>(problem.weight(), 0.2));
    let (mut b, r) = (wave::<f64, 1>([problem.c_out], 0.3), wave::<f64, N>(problem.y(), 0.4));
    let loss = |x: &Tensor<f64, N>, w: &Tensor<f64, N>, b: &Tensor<f64, 1>| {
        dot(&conv.forward(x.view(), w.view(), Some(b.view())).unwrap(), &r)
    };
    let gradients = conv.backward(x.view(), w.view(), r.view()).unwrap();
    let h = 1e-3;
    let scale = 1.0 + r.iter().map(|r| r.abs()).sum::<f64>() * problem.terms()[0] as f64;
    let close = |[high, low]: [f64; 2], gradient: f64| {
        let error = ((high - low) / (2.0 * h) - gradient).abs();
        assert!(error < 1e-12 * scale / h, "{problem:?}: {error}");
    };
    // A dozen of each, spread.
    let chosen = |len: usize| (0..len).step_by(len / 12 + 1);
    for i in chosen(x.len()) {
        let held = x.as_slice()[i];
        let pair = [h, -h].map(|h| {
            x.as_mut_slice()[i] = held + h;
            loss(&x, &w, &b)
        });
        x.as_mut_slice()[i] = held;
        close(pair, gradients.input.as_slice()[i]);
    }
    for i in chosen(w.len()) {
        let held = w.as_slice()[i];
        let pair = [h, -h].map(|h| {
            w.as_mut_slice()[i] = held + h;
            loss(&x, &w, &b)
        });
        w.as_mut_slice()[i] = held;
        close(pair, gradients.weight.as_slice()[i]);
    }
    for i in chosen(b.len()) {
        let held = b.as_slice()[i];
        let pair = [h, -h].map(|h| {
            b.as_mut_slice()[i] = held + h;
            loss(&x, &w, &b)
        });
        b.as_mut_slice()[i] = held;
        close(pair, gradients.bias.as_slice()[i]);
    }
    true
}

#[test]
fn gradients_are_central_differences() {
    quickcheck(40, differences::<1, 3> as fn(Problem<1, 3>) -> bool);
    quickcheck(40, differences::<2, 4> as fn(Problem<2, 4>) -> bool);
    quickcheck(20, differences::<3, 5> as fn(Problem<3, 5>) -> bool);
}

/// Layers of real networks: channels in and out, groups, size, kernel, stride, padding, dilation.
const LAYERS: [[usize; 8]; 19] = [
    [64, 64, 1, 56, 3, 1, 1, 1],
    [96, 40, 1, 28, 3, 1, 1, 1],
    [33, 70, 1, 14, 3, 1, 1, 1],
    [128, 96, 1, 7, 3, 1, 1, 1],
    [48, 65, 1, 29, 3, 2, 1, 1],
    [3, 64, 1, 112, 7, 2, 3, 1],
    [1, 20, 1, 28, 5, 1, 0, 1],
    [100, 130, 1, 20, 1, 1, 0, 1],
    [64, 100, 1, 28, 1, 2, 0, 1],
    [64, 64, 64, 30, 3, 1, 1, 1],
    [40, 80, 40, 31, 3, 2, 1, 1],
    [64, 96, 8, 19, 3, 1, 1, 1],
    [24, 36, 1, 33, 3, 1, 4, 4],
    [16, 24, 2, 40, 4, 3, 2, 1],
    // Output channels as lanes.
    [1, 16, 1, 28, 5, 1, 2, 1],
    [16, 32, 1, 28, 3, 2, 1, 1],
    [32, 64, 2, 14, 3, 2, 1, 1],
    [9, 32, 1, 140, 3, 2, 1, 1],
    [12, 48, 1, 21, 3, 1, 2, 2],
];

/// Y, dX and dW as im2col, products for each image and group, and col2im, in f64.
fn by_columns(
    layer: [usize; 8],
    x: &Tensor<f64, 4>,
    w: &Tensor<f64, 4>,
    dz: impl Fn([usize; 4]) -> f64,
) -> [Tensor<f64, 4>; 3] {
    let [c_in, c_out, groups, size, kernel, stride, padding, dilation] = layer;
    let patches =
        Im2col::<2>::new([kernel; 2]).stride([stride; 2]).padding([padding; 2]).dilation([dilation; 2]);
    let matrix = patches.im2col(x.view()).unwrap();
    let out = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    let (batch, rows, columns) = (x.shape()[0], out * out, c_in / groups * kernel * kernel);
    let dz = Tensor::from_fn([batch, c_out, out, out], dz).unwrap();
    let mut y = Tensor::<f64, 4>::zeros(dz.shape()).unwrap();
    let (mut dw, mut dmatrix) = (Tensor::zeros(w.shape()).unwrap(), Tensor::zeros(matrix.shape()).unwrap());
    for sample in 0..batch {
        for group in 0..groups {
            let (outputs, inputs) = (c_out / groups, group * columns..(group + 1) * columns);
            let (channels, samples) =
                (group * outputs..(group + 1) * outputs, sample * rows..(sample + 1) * rows);
            let matrix =
                matrix.view().slice(0, samples.clone(), 1).unwrap().slice(1, inputs.clone(), 1).unwrap();
            let dmatrix = dmatrix.view_mut().slice(0, samples, 1).unwrap().slice(1, inputs, 1).unwrap();
            let w = w.view().slice(0, channels.clone(), 1).unwrap().reshape([outputs, columns]).unwrap();
            let dw =
                dw.view_mut().slice(0, channels.clone(), 1).unwrap().reshape([outputs, columns]).unwrap();
            let y = y.view_mut().select::<3>(0, sample).unwrap().slice(0, channels.clone(), 1).unwrap();
            let dz = dz.view().select::<3>(0, sample).unwrap().slice(0, channels, 1).unwrap();
            let dz = dz.reshape([outputs, rows]).unwrap();
            gemm(1.0, w, matrix.transpose(), 0.0, y.reshape([outputs, rows]).unwrap()).unwrap();
            gemm(1.0, dz.transpose(), w, 0.0, dmatrix).unwrap();
            gemm(1.0, dz, matrix, 1.0, dw).unwrap();
        }
    }
    [y, patches.col2im(dmatrix.view(), x.shape()).unwrap(), dw]
}

/// Sizes at which many blocks and tasks come together; the scalar twin would take minutes.
fn layers<T: Element>() {
    for (index, &layer) in LAYERS.iter().enumerate() {
        let [c_in, c_out, groups, size, kernel, stride, padding, dilation] = layer;
        let batch = 1 + index % 3;
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([padding; 2]);
        let conv = conv.dilation([dilation; 2]).groups(groups);
        let x = wave::<f64, 4>([batch, c_in, size, size], 0.1);
        let w = wave::<f64, 4>([c_out, c_in / groups, kernel, kernel], 0.2);
        // Rounded once, so that both begin with the same numbers.
        let round = |t: Tensor<f64, 4>| {
            let narrow = Tensor::from_fn(t.shape(), |at| T::from_f64(*t.get(at).unwrap())).unwrap();
            let back = Tensor::from_fn(t.shape(), |at| narrow.get(at).unwrap().to_f64()).unwrap();
            (narrow, back)
        };
        let ((x, wide_x), (w, wide_w)) = (round(x), round(w));
        let shape = conv.output_shape(x.shape(), w.shape()).unwrap();
        let dz = wave::<T, 4>(shape, 0.5);
        let [y, dx, dw] = by_columns(layer, &wide_x, &wide_w, |at| dz.get(at).unwrap().to_f64());
        let taps = kernel * kernel;
        let terms = [c_in / groups * taps, c_out / groups * taps, batch * shape[2] * shape[3]];
        let near = |what: &str, found: TensorView<'_, T, 4>, expected: &Tensor<f64, 4>, terms: usize| {
            // Neither factor is larger than 1: partial sums are near the root of their number of terms, and so is the
            // number of roundings of one sign that are left. The worst case would let wrong elements through.
            let bound = 8.0 * T::EPSILON.to_f64() * (terms as f64 + 4.0);
            assert_eq!(found.shape(), expected.shape());
            for (found, expected) in found.iter().zip(expected) {
                let error = (found.to_f64() - expected).abs();
                assert!(error <= bound, "{what} {layer:?}: {found} {expected} ± {bound}");
            }
        };
        near("NCHW", conv.forward(x.view(), w.view(), None).unwrap().view(), &y, terms[0]);
        near(
            "packed",
            conv.forward(x.view(), &conv.pack(w.view()).unwrap(), None).unwrap().view(),
            &y,
            terms[0],
        );
        let (last_x, last_dz) = (nhwc(&x), nhwc(&dz));
        let nchw = [0, 3, 1, 2];
        let (last_x, last_dz) = (last_x.view().permute(nchw).unwrap(), last_dz.view().permute(nchw).unwrap());
        let [n, c, h, width] = shape;
        let mut found = Tensor::<T, 4>::full([n, h, width, c], T::NAN).unwrap();
        conv.forward_into(last_x, w.view(), None, found.view_mut().permute(nchw).unwrap()).unwrap();
        near("NHWC", found.view().permute(nchw).unwrap(), &y, terms[0]);

        for (x, dz) in [(x.view(), dz.view()), (last_x, last_dz)] {
            let all = conv.backward(x, w.view(), dz).unwrap();
            near("dX", all.input.view(), &dx, terms[1]);
            near("dW", all.weight.view(), &dw, terms[2]);
        }
        let mut found = Tensor::<T, 4>::full([n, size, size, c_in], T::NAN).unwrap();
        conv.backward_input_into(last_dz, w.view(), found.view_mut().permute(nchw).unwrap()).unwrap();
        near("NHWC dX", found.view().permute(nchw).unwrap(), &dx, terms[1]);
    }
}

fn nhwc<T: Element>(t: &Tensor<T, 4>) -> Tensor<T, 4> {
    t.view().permute([0, 2, 3, 1]).unwrap().to_tensor().unwrap()
}

#[test]
fn layers_of_networks_equal_im2col_and_a_product() {
    for &isa in machine::supported() {
        machine::with_isa(isa, layers::<f32>).unwrap();
    }
    layers::<f64>();
}

/// ⟨dZ, conv(X)⟩ = ⟨convᵀ(dZ), X⟩ in whole numbers, where it is exact.
fn adjoint<const S: usize, const N: usize>(problem: Problem<S, N>, seed: u64) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    let g = &mut Gen::from_size_and_seed(100, seed);
    let (x, w, dz) = (whole(g, problem.x()), whole(g, problem.weight()), whole(g, problem.y()));
    let y = descriptor(&problem).forward(x.view(), w.view(), None).unwrap();
    let mut output_padding = [0; S];
    let o = problem.geometry;
    for axis in 0..S {
        let padded = problem.image[axis] + o.padding[axis][0] + o.padding[axis][1];
        output_padding[axis] = (padded - o.dilation[axis] * (problem.kernel[axis] - 1) - 1) % o.stride[axis];
    }
    let transpose =
        ConvolutionTranspose::new().stride(o.stride).padding_sides(o.padding).dilation(o.dilation);
    let transpose = transpose.groups(o.groups).flipped(o.flipped).output_padding(output_padding);
    let back = transpose.forward(dz.view(), w.view(), None).unwrap();
    let dx = descriptor(&problem).backward_input(dz.view(), w.view(), problem.image).unwrap();
    let dw = descriptor(&problem).backward_weight(x.view(), dz.view(), problem.kernel).unwrap();
    let inner = |a: &Tensor<f32, N>, b: &Tensor<f32, N>| {
        assert_eq!(a.shape(), b.shape());
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    let forward = inner(&dz, &y);
    back == dx && forward == inner(&back, &x) && forward == inner(&dw, &w)
}

#[derive(Clone, Copy, Debug)]
struct Seeded<const S: usize, const N: usize>(Problem<S, N>, u64);

impl<const S: usize, const N: usize> Arbitrary for Seeded<S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        Self(Problem::arbitrary(g), u64::arbitrary(g))
    }
}

#[test]
fn the_transpose_is_the_adjoint() {
    fn case<const S: usize, const N: usize>(Seeded(problem, seed): Seeded<S, N>) -> bool
    where
        Spatial<S>: ImageRank<N>,
    {
        adjoint(problem, seed)
    }
    quickcheck(200, case::<1, 3> as fn(Seeded<1, 3>) -> bool);
    quickcheck(200, case::<2, 4> as fn(Seeded<2, 4>) -> bool);
    quickcheck(50, case::<3, 5> as fn(Seeded<3, 5>) -> bool);
}

/// Paths of the gradients that random problems are too small for: weights of many outputs and of many inputs, blocks of depth,
/// boxes of some rows, taps far apart, several groups.
#[test]
fn large_gradients_are_adjoint() {
    let problem = |[batch, c_in, c_out, groups]: [usize; 4], image: [usize; 2], kernel, dilation| {
        let (stride, padding) = ([2; 2], [[1; 2]; 2]);
        let geometry = Geometry { stride, padding, dilation: [dilation; 2], groups, flipped: false };
        let output = image.map(|size| (size + 2 - dilation * (kernel - 1) - 1) / 2 + 1);
        Problem { geometry, batch, c_in, c_out, image, kernel: [kernel; 2], output }
    };
    for problem in [
        problem([3, 5, 70, 1], [9, 8], 3, 1),
        problem([2, 3, 400, 1], [5, 6], 3, 1),
        problem([2, 1700, 3, 1], [4, 5], 3, 1),
        problem([1, 20, 20, 1], [6, 4000], 3, 1),
        problem([2, 4, 6, 2], [40, 41], 3, 18),
        problem([3, 26, 28, 2], [15, 14], 4, 2),
        problem([3, 32, 24, 1], [14, 28], 3, 1),
        problem([2, 16, 20, 1], [27, 13], 5, 1),
        problem([2, 16, 4, 1], [14, 14], 1, 1),
        problem([35, 12, 8, 1], [21, 30], 3, 1),
        problem([16, 3, 4, 1], [90, 70], 4, 2),
    ] {
        for &isa in machine::supported() {
            machine::with_isa(isa, || assert!(adjoint(problem, 7), "{isa} {problem:?}")).unwrap();
        }
        let pools = in_pools(|| {
            let (w, dz) = (wave::<f32, 4>(problem.weight(), 0.1), wave(problem.y(), 0.2));
            let conv = descriptor(&problem);
            let dx = conv.backward_input(dz.view(), w.view(), problem.image).unwrap();
            let dw = conv.backward_weight(wave(problem.x(), 0.3).view(), dz.view(), problem.kernel).unwrap();
            [bits(dx.as_slice()), bits(dw.as_slice())]
        });
        assert!(pools.iter().all(|found| *found == pools[0]), "{problem:?}");
    }
}

/// Where no tap of a window meets the image, or there are no channels, nothing is summed up, whoever reads beside it.
#[test]
fn batches_whose_windows_read_nothing() {
    // Stride, padding, X, output channels and kernel.
    let cases = [
        ([1, 1], [0, 0], [16, 0, 5, 5], [8, 3, 3]),
        ([2, 1], [1, 0], [16, 4, 3, 20], [1, 1, 3]),
        ([2, 1], [0, 0], [16, 4, 18, 40], [3, 1, 3]),
        ([1, 2], [0, 1], [16, 4, 40, 1], [2, 3, 1]),
        ([2, 2], [0, 0], [16, 4, 41, 50], [4, 1, 2]),
        ([1, 1], [0, 0], [16, 8, 5, 5], [0, 3, 3]),
    ];
    // A row of a long image at a time: one of two residues has no output in it.
    let cases = cases.map(|(stride, padding, x, w)| (stride, padding, [1, 1], x, w));
    let long = ([2, 1], [0, 0], [3, 1], [16, 4, 6, 2001], [4, 2, 1]);
    for (stride, padding, dilation, x, [c_out, height, width]) in cases.into_iter().chain([long]) {
        let (x, w) = (wave::<f32, 4>(x, 0.1), wave::<f32, 4>([c_out, x[1], height, width], 0.2));
        let (bias, back) = (wave::<f32, 1>([c_out], 0.3), wave::<f32, 1>([x.shape()[1]], 0.4));
        let conv = Convolution::<2>::new().stride(stride).padding(padding).dilation(dilation);
        let dz = wave::<f32, 4>(conv.output_shape(x.shape(), w.shape()).unwrap(), 0.5);
        let transpose = ConvolutionTranspose::<2>::new().stride(stride).padding(padding).dilation(dilation);
        let (x_last, dz_last) = (last(&x), last(&dz));
        let all = |algorithm, last| {
            let (conv, transpose) = (conv.algorithm(algorithm), transpose.algorithm(algorithm));
            let (x, dz) = if last { (turned(&x_last), turned(&dz_last)) } else { (x.view(), dz.view()) };
            let gradients = conv.backward(x, w.view(), dz).unwrap();
            let image = transpose.forward(dz, w.view(), Some(back.view())).unwrap();
            let y = conv.forward(x, w.view(), Some(bias.view())).unwrap();
            [y, image, gradients.input, gradients.weight]
        };
        for (&isa, last) in machine::supported().iter().flat_map(|isa| [(isa, false), (isa, true)]) {
            let run = |algorithm| in_pools(|| machine::with_isa(isa, || all(algorithm, last)).unwrap());
            let (results, expected) = (run(Algorithm::Auto), run(Algorithm::ImplicitGemm));
            for result in results {
                for (found, expected) in result.iter().zip(&expected[0]) {
                    assert!(
                        found.view().all_close(expected.view(), 1e-4, 1e-4),
                        "{isa} {:?} {stride:?} {last}",
                        x.shape()
                    );
                }
            }
        }
    }
}

/// Sums of planes and of pixels, in order or apart, whoever adds them up.
#[test]
fn bias_gradients_of_any_layout() {
    let (conv, [n, c, h, w]) = (Convolution::<2>::new(), [9, 24, 40, 31]);
    let dz = wave::<f32, 4>([n, c, h, w], 0.3);
    let expected = columns_of(&dz);
    let apart = |order: [usize; 4], more: [usize; 4]| {
        let mut shape = [0, 1, 2, 3].map(|axis| dz.shape()[order[axis]] + more[axis]);
        let mut stored = Tensor::full(shape, f32::NAN).unwrap();
        shape = [0, 1, 2, 3].map(|axis| dz.shape()[order[axis]]);
        let mut view = stored.view_mut();
        for (axis, &size) in shape.iter().enumerate() {
            view = view.slice(axis, ..size, 1).unwrap();
        }
        view.assign(dz.view().permute(order).unwrap()).unwrap();
        stored
    };
    // Planes, planes with rows apart, pixels, those apart, rows of these apart, and channels of columns.
    for (order, more) in [
        ([0, 1, 2, 3], [0; 4]),
        ([0, 1, 2, 3], [0, 0, 0, 2]),
        ([0, 2, 3, 1], [0; 4]),
        ([0, 2, 3, 1], [0, 0, 0, 1]),
        ([0, 2, 3, 1], [0, 0, 1, 0]),
        ([0, 3, 1, 2], [0; 4]),
    ] {
        let stored = apart(order, more);
        let mut view = stored.view();
        for axis in 0..4 {
            view = view.slice(axis, ..dz.shape()[order[axis]], 1).unwrap();
        }
        let mut back = [0; 4];
        (0..4).for_each(|axis| back[order[axis]] = axis);
        let view = view.permute(back).unwrap();
        for &isa in machine::supported() {
            let pools = in_pools(|| machine::with_isa(isa, || conv.backward_bias(view).unwrap()).unwrap());
            assert!(pools.iter().all(|db| bits(db.as_slice()) == bits(pools[0].as_slice())), "{order:?}");
            for (db, expected) in pools[0].iter().zip(&expected) {
                assert!(
                    (f64::from(*db) - expected).abs() < 1e-2,
                    "{isa} {order:?} {more:?}: {db} {expected}"
                );
            }
        }
    }
}

/// The sums of channels.
fn columns_of(dz: &Tensor<f32, 4>) -> Vec<f64> {
    let [n, c, ..] = dz.shape();
    let mut sums = vec![0.0; c];
    for at in 0..n * c {
        let plane = dz.view().select::<3>(0, at / c).unwrap().select::<2>(0, at % c).unwrap();
        sums[at % c] += plane.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    sums
}

/// Batches of long sequences, which are cut along their columns.
#[test]
fn batches_of_sequences() {
    let conv = Convolution::<1>::new().stride([2]).padding_sides([[3, 1]]).activation(Activation::Relu);
    let (x, w, b) = (wave::<f32, 3>([13, 6, 30_001], 0.1), wave([4, 6, 5], 0.2), wave::<f32, 1>([4], 0.3));
    let dz = wave::<f32, 3>(conv.output_shape(x.shape(), w.shape()).unwrap(), 0.4);
    let [x_last, dz_last] = [&x, &dz].map(|t| t.view().permute([0, 2, 1]).unwrap().to_tensor().unwrap());
    let all = |conv: Convolution<1>, last: bool| {
        let turned = [&x_last, &dz_last].map(|t| t.view().permute([0, 2, 1]).unwrap());
        let [x, dz] = if last { turned } else { [x.view(), dz.view()] };
        let mut y_last = Tensor::zeros(dz_last.shape()).unwrap();
        if last {
            let y = y_last.view_mut().permute([0, 2, 1]).unwrap();
            conv.forward_into(x, w.view(), Some(b.view()), y).unwrap();
        }
        let y = match last {
            true => y_last.view().permute([0, 2, 1]).unwrap().to_tensor().unwrap(),
            false => conv.forward(x, w.view(), Some(b.view())).unwrap(),
        };
        let gradients = conv.backward(x, w.view(), dz).unwrap();
        [y, gradients.input, gradients.weight]
    };
    for (&isa, last) in machine::supported().iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        let results =
            machine::with_isa(isa, || in_pools(|| machine::with_isa(isa, || all(conv, last)).unwrap()))
                .unwrap();
        let expected = machine::with_isa(isa, || all(conv.algorithm(Algorithm::ImplicitGemm), last)).unwrap();
        // Sums of 30, 20 and 195,000 products.
        for (i, tolerance) in [(0, 1e-5), (1, 1e-5), (2, 2e-3)] {
            assert!(results[0][i].view().all_close(expected[i].view(), 1e-5, tolerance), "{isa} {i}");
            assert!(results.iter().all(|found| bits(found[i].as_slice()) == bits(results[0][i].as_slice())));
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let cases = [
        ([4, 32, 30, 29], [48, 32, 3, 3], 1, 1, 1),
        ([1, 48, 56, 56], [64, 48, 3, 3], 1, 1, 1),
        ([3, 3, 112, 112], [32, 3, 7, 7], 1, 2, 3),
        ([2, 128, 14, 14], [256, 128, 1, 1], 1, 1, 0),
        ([2, 96, 28, 28], [96, 1, 3, 3], 96, 2, 1),
        ([5, 40, 20, 20], [80, 10, 3, 3], 4, 1, 1),
        ([16, 64, 7, 7], [64, 64, 3, 3], 1, 1, 1),
        ([3, 16, 28, 28], [32, 16, 3, 3], 1, 2, 1),
        ([1, 8, 42, 42], [64, 8, 5, 5], 1, 1, 2),
        ([50, 16, 28, 28], [32, 16, 3, 3], 1, 2, 1),
        ([13, 5, 20, 30], [6, 5, 5, 5], 1, 1, 2),
    ];
    for (x, w, groups, stride, padding) in cases {
        let (x, w, b) = (wave::<f32, 4>(x, 0.1), wave::<f32, 4>(w, 0.2), wave::<f32, 1>([w[0]], 0.3));
        let conv = Convolution::<2>::new().groups(groups).stride([stride; 2]).padding([padding; 2]);
        let dz = wave::<f32, 4>(conv.output_shape(x.shape(), w.shape()).unwrap(), 0.4);
        for last in [false, true] {
            let (x_last, dz_last) = (nhwc(&x), nhwc(&dz));
            let back = [0, 3, 1, 2];
            let x = if last { x_last.view().permute(back).unwrap() } else { x.view() };
            let dz = if last { dz_last.view().permute(back).unwrap() } else { dz.view() };
            let winograd = w.shape()[2] == 3 && stride == 1;
            for &algorithm in &ALGORITHMS[..if winograd { 5 } else { 1 }] {
                let results = in_pools(|| {
                    let conv = conv.activation(Activation::Relu).algorithm(algorithm);
                    let y = conv.forward(x, w.view(), Some(b.view())).unwrap();
                    let all = conv.backward(x, w.view(), dz).unwrap();
                    let bias = all.bias.as_slice();
                    [y.as_slice(), all.input.as_slice(), all.weight.as_slice(), bias].map(bits)
                });
                let what = w.shape();
                assert!(results.iter().all(|result| *result == results[0]), "{what:?} {last} {algorithm:?}");
            }
        }
    }
}

/// What `Auto` and `Direct` may lose against the implicit GEMM, in the worst element of a layer: a factor of 4.
#[test]
fn what_is_chosen_is_nearly_as_accurate_as_the_implicit_gemm() {
    let mut rng = tilewise::random::Rng::seed(7);
    // Batch, channels in and out, size, kernel.
    for [batch, c_in, c_out, size, kernel] in [
        [1, 64, 64, 56, 3],
        [1, 128, 128, 28, 3],
        [1, 256, 256, 14, 3],
        [1, 512, 128, 7, 3],
        [1, 32, 48, 40, 3],
        [1, 96, 96, 20, 3],
        [16, 128, 16, 8, 3],
        [16, 40, 32, 9, 7],
        [16, 128, 24, 6, 7],
    ] {
        let layer = [c_in, c_out, 1, size, kernel, 1, kernel / 2, 1];
        let mut draw = |shape: [usize; 4]| Tensor::from_fn(shape, |_| rng.normal(0.0f32, 1.0)).unwrap();
        let (x, w) = (draw([batch, c_in, size, size]), draw([c_out, c_in, kernel, kernel]));
        let wide =
            |t: &Tensor<f32, 4>| Tensor::from_fn(t.shape(), |at| f64::from(*t.get(at).unwrap())).unwrap();
        let [y, dx, dw] = by_columns(layer, &wide(&x), &wide(&w), |[n, c, i, j]| {
            f64::from(*x.get([n, c % c_in, i, j]).unwrap())
        });
        let dz = |[n, c, i, j]: [usize; 4]| *x.get([n, c % c_in, i, j]).unwrap();
        let dz = Tensor::from_fn([batch, c_out, size, size], dz).unwrap();
        let conv = Convolution::<2>::new().padding([kernel / 2; 2]);
        let errors = |algorithm| {
            let conv = conv.algorithm(algorithm);
            let worst = |found: &Tensor<f32, 4>, expected: &Tensor<f64, 4>| {
                let errors =
                    found.iter().zip(expected).map(|(&found, expected)| (f64::from(found) - expected).abs());
                errors.fold(0.0, f64::max)
            };
            let found = conv.forward(x.view(), w.view(), None).unwrap();
            let gradient = conv.backward_input(dz.view(), w.view(), [size; 2]).unwrap();
            let of_weight = conv.backward_weight(x.view(), dz.view(), [kernel; 2]).unwrap();
            [worst(&found, &y), worst(&gradient, &dx), worst(&of_weight, &dw)]
        };
        let plain = errors(Algorithm::ImplicitGemm);
        let ratio = |algorithm| {
            let errors = errors(algorithm);
            [0, 1, 2].map(|i| errors[i] / plain[i])
        };
        let (auto, two, four) =
            (ratio(Algorithm::Auto), ratio(Algorithm::Winograd2), ratio(Algorithm::Winograd4));
        let direct = ratio(Algorithm::Direct);
        println!(
            "{c_in}-{c_out} at {size}: Auto {auto:.2?}, Direct {direct:.2?}, Winograd2 {two:.2?}, Winograd4 {four:.2?}"
        );
        for (name, ratios) in [("Auto", auto), ("Direct", direct)] {
            assert!(ratios.iter().all(|&ratio| ratio <= 4.0), "{layer:?}, {name}: {ratios:?}");
        }
        assert!(four.iter().all(|&ratio| ratio <= 40.0), "{layer:?}: {four:?}");
    }
}
