//! Convolution and its gradients against their scalar twins, on every instruction set of this machine.

mod common;

use common::geometry::{Problem, image};
use common::{ALGORITHMS, Strided, bits, in_pools, quickcheck, wave, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Convolution, ConvolutionTranspose, Weight};
use tilewise::machine::{self, Isa};
use tilewise::reference::conv::{self, columns, naive};
use tilewise::{Element, ImageRank, Spatial, Tensor, TensorView};

#[derive(Clone, Debug)]
struct Case<T, const S: usize, const N: usize> {
    isa: Isa,
    algorithm: Algorithm,
    problem: Problem<S, N>,
    x: Strided<T, N>,
    weight: Strided<T, N>,
    bias: Option<Strided<T, 1>>,
    residual: Option<Strided<T, N>>,
    relu: bool,
    dz: Strided<T, N>,
    y: Strided<T, N>,
    dx: Strided<T, N>,
    dw: Strided<T, N>,
    db: Strided<T, 1>,
}

impl<T: Element, const S: usize, const N: usize> Arbitrary for Case<T, S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem = Problem::<S, N>::arbitrary(g);
        Self::of(g, problem)
    }
}

impl<T: Element, const S: usize, const N: usize> Case<T, S, N> {
    fn of(g: &mut Gen, problem: Problem<S, N>) -> Self {
        Case {
            isa: *g.choose(machine::supported()).expect("there is a baseline"),
            algorithm: *g.choose(&ALGORITHMS).expect("there are some"),
            problem,
            x: image(g, problem.x()),
            weight: Strided::random(g, problem.weight()),
            bias: bool::arbitrary(g).then(|| Strided::random(g, [problem.c_out])),
            residual: bool::arbitrary(g).then(|| image(g, problem.y())),
            relu: bool::arbitrary(g),
            dz: image(g, problem.y()),
            y: image(g, problem.y()),
            dx: image(g, problem.x()),
            dw: Strided::random(g, problem.weight()),
            db: Strided::random(g, [problem.c_out]),
        }
    }
}

/// A case with many output channels for few positions.
#[derive(Clone, Debug)]
struct Few<T, const S: usize, const N: usize>(Case<T, S, N>);

impl<T: Element, const S: usize, const N: usize> Arbitrary for Few<T, S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem = Problem::few(g);
        let mut case = Case::of(g, problem);
        // What this path is for, three times of four.
        if within(g, 0..4) > 0 {
            case.weight = Strided::rows(g, problem.weight(), 0, false);
            (case.algorithm, case.bias, case.relu) = (Algorithm::Auto, None, false);
        }
        Few(case)
    }
}

/// A case with many images.
#[derive(Clone, Debug)]
struct Many<T, const S: usize, const N: usize>(Case<T, S, N>);

impl<T: Element, const S: usize, const N: usize> Arbitrary for Many<T, S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem = Problem::many(g);
        let mut case = Case::of(g, problem);
        if within(g, 0..4) > 0 {
            case.algorithm = *g.choose(&[Algorithm::Auto, Algorithm::Direct]).expect("two");
        }
        Many(case)
    }
}

/// |found − expected| ≤ 2 ε (terms + 4) · magnitude for each element.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    magnitude: &Tensor<f64, N>,
    terms: usize,
    algorithm: Algorithm,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    // Winograd's tiles mix the pixels of several outputs, those of 4 with factors up to 8.
    let (factor, mixed) = match algorithm {
        Algorithm::Winograd4 => (100.0, true),
        Algorithm::ImplicitGemm | Algorithm::Direct => (2.0, false),
        _ => (8.0, true),
    };
    let most = magnitude.iter().copied().fold(0.0, f64::max);
    let bound = factor * T::EPSILON.to_f64() * (terms as f64 + 4.0);
    for (at, ((found, expected), &size)) in found.iter().zip(expected).zip(magnitude).enumerate() {
        let size = if mixed { most } else { size };
        let error = (found.to_f64() - expected).abs();
        assert!(error <= bound * size, "{what}, element {at}: {found} {expected} ± {}", bound * size);
    }
}

fn abs<T: Element, const N: usize>(view: TensorView<'_, T, N>) -> Tensor<T, N> {
    Tensor::from_fn(view.shape(), |at| view.get(at).expect("inside").abs()).expect("memory")
}

/// `f(a)` or `f(a, b)` for each element.
fn map<const N: usize>(
    a: &mut Tensor<f64, N>,
    b: Option<TensorView<'_, f64, N>>,
    f: impl Fn(f64, f64) -> f64,
) {
    let zeros = std::iter::repeat(&0.0);
    match b {
        Some(b) => a.as_mut_slice().iter_mut().zip(b.iter()).for_each(|(a, &b)| *a = f(*a, b)),
        None => a.as_mut_slice().iter_mut().zip(zeros).for_each(|(a, &b)| *a = f(*a, b)),
    }
}

fn wide<T: Element, const N: usize>(view: TensorView<'_, T, N>) -> Tensor<f64, N> {
    Tensor::from_fn(view.shape(), |at| view.get(at).expect("inside").to_f64()).expect("memory")
}

fn descriptor<const S: usize, const N: usize>(
    problem: &Problem<S, N>,
    algorithm: Algorithm,
) -> Convolution<S> {
    let g = problem.geometry;
    let conv = Convolution::new().stride(g.stride).padding_sides(g.padding).dilation(g.dilation);
    conv.groups(g.groups).flipped(g.flipped).algorithm(algorithm)
}

fn check<T: Element, const S: usize, const N: usize>(case: Case<T, S, N>) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    machine::with_isa(case.isa, || {
        let mut case = case;
        forward(&mut case);
        backward(&mut case);
        transposed(&mut case);
        case.y.canaries_live()
            && case.dx.canaries_live()
            && case.dw.canaries_live()
            && case.db.canaries_live()
    })
    .expect("supported")
}

fn forward<T: Element, const S: usize, const N: usize>(case: &mut Case<T, S, N>)
where
    Spatial<S>: ImageRank<N>,
{
    let (g, terms) = (&case.problem.geometry, case.problem.terms()[0]);
    let (x, weight) = (case.x.view(), case.weight.view());
    let bias = case.bias.as_ref().map(Strided::view);
    let mut conv = descriptor(&case.problem, case.algorithm);
    assert_eq!(conv.output_shape(x.shape(), weight.shape()), Ok(case.problem.y()));

    let mut expected = conv::forward(g, x, weight, bias).unwrap();
    let (abs_x, abs_weight, abs_bias) = (abs(x), abs(weight), bias.map(abs));
    let abs_bias = abs_bias.as_ref().map(Tensor::view);
    let mut size = conv::forward(g, abs_x.view(), abs_weight.view(), abs_bias).unwrap();
    if case.relu {
        conv = conv.activation(Activation::Relu);
    }
    let activation = |z: f64| if case.relu { z.max(0.0) } else { z };

    let plain = wide(expected.view());
    map(&mut expected, None, |z, _| activation(z));
    case.y.view_mut().fill(T::NAN);
    conv.forward_into(x, weight, bias, case.y.view_mut()).unwrap();
    near("y", case.y.view(), &expected, &size, terms, case.algorithm);
    let y = conv.forward(x, weight, bias).unwrap();
    near("owned y", y.view(), &expected, &size, terms, case.algorithm);
    let packed = [conv.pack(weight).unwrap(), conv.pack_channels_last(weight).unwrap()];
    for packed in &packed {
        case.y.view_mut().fill(T::NAN);
        conv.forward_into(x, packed, bias, case.y.view_mut()).unwrap();
        near("packed y", case.y.view(), &expected, &size, terms, case.algorithm);
    }

    let Some(residual) = &case.residual else { return };
    let residual = wide(residual.view());
    expected = plain;
    map(&mut expected, Some(residual.view()), |z, r| activation(z + r));
    map(&mut size, Some(residual.view()), |size, r| size + r.abs());
    let residual = case.residual.as_ref().expect("there is one").view();
    for weight in [weight.into(), Weight::from(&packed[0]), Weight::from(&packed[1])] {
        case.y.view_mut().fill(T::NAN);
        conv.forward_add_into(x, weight, bias, residual, case.y.view_mut()).unwrap();
        near("y with residual", case.y.view(), &expected, &size, terms + 1, case.algorithm);
    }
}

fn backward<T: Element, const S: usize, const N: usize>(case: &mut Case<T, S, N>)
where
    Spatial<S>: ImageRank<N>,
{
    let Problem { geometry: g, image, kernel, .. } = &case.problem;
    let (x, weight, dz) = (case.x.view(), case.weight.view(), case.dz.view());
    let conv = descriptor(&case.problem, case.algorithm).activation(Activation::Relu);
    let (abs_x, abs_weight, abs_dz) = (abs(x), abs(weight), abs(dz));
    let sizes = columns::backward(g, abs_x.view(), abs_weight.view(), abs_dz.view()).unwrap();
    let [_, dx_terms, dw_terms, db_terms] = case.problem.terms();

    case.dx.view_mut().fill(T::NAN);
    case.dw.view_mut().fill(T::NAN);
    case.db.view_mut().fill(T::NAN);
    conv.backward_input_into(dz, weight, case.dx.view_mut()).unwrap();
    conv.backward_weight_into(x, dz, case.dw.view_mut()).unwrap();
    conv.backward_bias_into(dz, case.db.view_mut()).unwrap();

    let by_columns = columns::backward(g, x, weight, dz).unwrap();
    let by_zeros = (
        naive::backward_input(g, dz, weight, *image).unwrap(),
        naive::backward_weight(g, x, dz, *kernel).unwrap(),
        naive::backward_bias(dz).unwrap(),
    );
    let all = conv.backward(x, weight, dz).unwrap();
    for (dx, dw, db) in [by_columns, by_zeros] {
        near("dx", case.dx.view(), &dx, &sizes.0, dx_terms, case.algorithm);
        near("dw", case.dw.view(), &dw, &sizes.1, dw_terms, case.algorithm);
        near("db", case.db.view(), &db, &sizes.2, db_terms, Algorithm::ImplicitGemm);
        near("owned dx", all.input.view(), &dx, &sizes.0, dx_terms, case.algorithm);
        near("owned dw", all.weight.view(), &dw, &sizes.1, dw_terms, case.algorithm);
        near("owned db", all.bias.view(), &db, &sizes.2, db_terms, Algorithm::ImplicitGemm);
    }
    assert!(all.input == conv.backward_input(dz, weight, *image).unwrap(), "dx alone");
    assert!(all.weight == conv.backward_weight(x, dz, *kernel).unwrap(), "dw alone");
    assert!(all.bias == conv.backward_bias(dz).unwrap(), "db alone");
}

/// From dZ to an image of X's size, or of one nearby.
fn transposed<T: Element, const S: usize, const N: usize>(case: &mut Case<T, S, N>)
where
    Spatial<S>: ImageRank<N>,
{
    let g = &case.problem.geometry;
    let (x, weight) = (case.dz.view(), case.weight.view());
    let mut output_padding = [0; S];
    for axis in 0..S {
        let padded = case.problem.image[axis] + g.padding[axis][0] + g.padding[axis][1];
        let extent = g.dilation[axis] * (case.problem.kernel[axis] - 1) + 1;
        output_padding[axis] = (padded - extent) % g.stride[axis];
    }
    let conv = ConvolutionTranspose::new().stride(g.stride).padding_sides(g.padding).dilation(g.dilation);
    let conv = conv.groups(g.groups).flipped(g.flipped).output_padding(output_padding);
    assert_eq!(conv.output_shape(x.shape(), weight.shape()), Ok(case.problem.x()));

    let c_in = case.problem.c_in;
    let bias = Tensor::from_fn([c_in], |[c]| T::from_f64(c as f64 / 3.0 - 0.7)).unwrap();
    let bias = case.bias.as_ref().map(|_| bias.view());
    let mut expected = conv::transposed(g, output_padding, x, weight, bias).unwrap();
    let (abs_x, abs_weight, abs_bias) = (abs(x), abs(weight), bias.map(abs));
    let abs_bias = abs_bias.as_ref().map(Tensor::view);
    let size = conv::transposed(g, output_padding, abs_x.view(), abs_weight.view(), abs_bias).unwrap();
    let conv = if case.relu { conv.activation(Activation::Relu) } else { conv };
    map(&mut expected, None, |z, _| if case.relu { z.max(0.0) } else { z });
    let terms = case.problem.terms()[1];
    case.dx.view_mut().fill(T::NAN);
    conv.forward_into(x, weight, bias, case.dx.view_mut()).unwrap();
    near("transposed", case.dx.view(), &expected, &size, terms, Algorithm::Auto);
    let y = conv.forward(x, weight, bias).unwrap();
    near("owned transposed", y.view(), &expected, &size, terms, Algorithm::Auto);
}

#[test]
fn equals_the_reference_in_one_dimension() {
    quickcheck(400, check::<f32, 1, 3> as fn(Case<f32, 1, 3>) -> bool);
    quickcheck(100, check::<f64, 1, 3> as fn(Case<f64, 1, 3>) -> bool);
}

#[test]
fn equals_the_reference_in_two_dimensions_in_f32() {
    quickcheck(400, check::<f32, 2, 4> as fn(Case<f32, 2, 4>) -> bool);
}

#[test]
fn equals_the_reference_in_two_dimensions_in_f64() {
    quickcheck(150, check::<f64, 2, 4> as fn(Case<f64, 2, 4>) -> bool);
}

#[test]
fn equals_the_reference_in_three_dimensions() {
    quickcheck(80, check::<f32, 3, 5> as fn(Case<f32, 3, 5>) -> bool);
    quickcheck(40, check::<f64, 3, 5> as fn(Case<f64, 3, 5>) -> bool);
}

#[test]
fn many_images_equal_the_reference() {
    fn many<T: Element, const S: usize, const N: usize>(case: Many<T, S, N>) -> bool
    where
        Spatial<S>: ImageRank<N>,
    {
        check(case.0)
    }
    quickcheck(200, many::<f32, 2, 4> as fn(Many<f32, 2, 4>) -> bool);
    quickcheck(60, many::<f64, 2, 4> as fn(Many<f64, 2, 4>) -> bool);
    quickcheck(60, many::<f32, 1, 3> as fn(Many<f32, 1, 3>) -> bool);
    quickcheck(30, many::<f32, 3, 5> as fn(Many<f32, 3, 5>) -> bool);
}

#[test]
fn few_positions_equal_the_reference() {
    fn few<T: Element, const S: usize, const N: usize>(case: Few<T, S, N>) -> bool
    where
        Spatial<S>: ImageRank<N>,
    {
        check(case.0)
    }
    quickcheck(150, few::<f32, 2, 4> as fn(Few<f32, 2, 4>) -> bool);
    quickcheck(50, few::<f64, 2, 4> as fn(Few<f64, 2, 4>) -> bool);
    quickcheck(50, few::<f32, 1, 3> as fn(Few<f32, 1, 3>) -> bool);
    quickcheck(25, few::<f32, 3, 5> as fn(Few<f32, 3, 5>) -> bool);
}

/// Enough outputs, and enough channels of them, that weights are turned in the call for patches as rows.
#[test]
fn channels_last_over_weights_as_they_are_equals_the_reference() {
    channels_last_over_weights_as_they_are::<f32>();
    channels_last_over_weights_as_they_are::<f64>();
}

fn channels_last_over_weights_as_they_are<T: Element>() {
    fn last<T: Element>(view: TensorView<'_, T, 4>) -> Tensor<T, 4> {
        view.permute([0, 2, 3, 1]).unwrap().to_tensor().unwrap()
    }
    let nchw = [0, 3, 1, 2];
    let value = |i: usize| T::from_f64(((i * 37 + 11) % 64) as f64 / 32.0 - 1.0);
    let of = |shape: [usize; 4], seed: usize| {
        Tensor::from_fn(shape, |at| value(at.iter().fold(seed, |sum, i| sum * 31 + i))).unwrap()
    };
    for (c_in, c_out, kernel, stride, padding, flipped) in [
        (5, 33, [3, 3], [2, 2], [[1, 1], [1, 1]], false),
        (34, 40, [3, 2], [2, 1], [[0, 2], [1, 0]], true),
        (3, 64, [5, 5], [1, 2], [[2, 2], [2, 1]], false),
        (36, 65, [1, 1], [2, 2], [[0, 0], [0, 0]], false),
    ] {
        let geometry = conv::Geometry { stride, padding, flipped, ..conv::Geometry::new() };
        let layer = Convolution::<2>::new().stride(stride).padding_sides(padding).flipped(flipped);
        let (x, w) = (of([2, c_in, 37, 41], 1), of([c_out, c_in, kernel[0], kernel[1]], 2));
        let bias = Tensor::from_fn([c_out], |[i]| value(i)).unwrap();
        let expected = conv::forward(&geometry, x.view(), w.view(), Some(bias.view())).unwrap();
        let dz = of(expected.shape(), 3);
        let (dx, ..) = columns::backward(&geometry, x.view(), w.view(), dz.view()).unwrap();
        // A residual whose channels do not lie last, and an activation.
        let mut added = wide(expected.view());
        map(&mut added, Some(wide(dz.view()).view()), |z, r| (z + r).max(0.0));
        let relu = layer.activation(Activation::Relu);
        // As they are, and with taps before channels.
        let turned = last(w.view());
        let (last_x, last_dz) = (last(x.view()), last(dz.view()));
        for &isa in machine::supported() {
            for w in [w.view(), turned.view().permute(nchw).unwrap()] {
                let [mut y, mut sum, mut found] =
                    [&last_dz, &last_dz, &last_x].map(|t| Tensor::full(t.shape(), T::NAN).unwrap());
                machine::with_isa(isa, || {
                    let [x, last_dz] = [&last_x, &last_dz].map(|t| t.view().permute(nchw).unwrap());
                    let [y, sum, found] =
                        [&mut y, &mut sum, &mut found].map(|t| t.view_mut().permute(nchw).unwrap());
                    layer.forward_into(x, w, Some(bias.view()), y).unwrap();
                    relu.forward_add_into(x, w, Some(bias.view()), dz.view(), sum).unwrap();
                    layer.backward_input_into(last_dz, w, found).unwrap();
                })
                .unwrap();
                for (what, found, expected) in
                    [("y", &y, &expected), ("sum", &sum, &added), ("dx", &found, &dx)]
                {
                    let size = Tensor::full(expected.shape(), 1.0).unwrap();
                    let terms = c_in.max(c_out) * kernel[0] * kernel[1];
                    near(what, found.view().permute(nchw).unwrap(), expected, &size, terms, Algorithm::Auto);
                }
            }
        }
    }
}

/// Kernels of a single tap over planes of few pixels with channels first: image by image, and all images together.
#[test]
fn single_taps_over_small_planes_equal_the_reference() {
    single_taps_over_small_planes::<f32>();
    single_taps_over_small_planes::<f64>();
}

fn single_taps_over_small_planes<T: Element>() {
    // Images, channels in and out, groups, height and width, columns of padding on the right.
    for ([images, c_in, c_out, groups], [height, width], right) in [
        ([20, 600, 70, 1], [7, 7], 0),
        ([5, 160, 96, 1], [7, 7], 0),
        ([4, 64, 64, 1], [8, 8], 0),
        ([3, 300, 200, 1], [5, 5], 0),
        ([6, 128, 192, 2], [3, 5], 0),
        ([9, 200, 130, 1], [1, 1], 0),
        ([2, 40, 30, 1], [10, 13], 0),
        ([4, 96, 96, 1], [1, 7], 3),
        ([1, 16, 30, 1], [1, 5000], 3),
        ([40, 600, 70, 1], [1, 3], 0),
    ] {
        let padding = [[0, 0], [0, right]];
        let geometry = conv::Geometry { padding, groups, ..conv::Geometry::new() };
        let layer = Convolution::<2>::new().padding_sides(padding).groups(groups);
        let layer = layer.activation(Activation::Relu);
        // Contiguous, and some channels of more; a residual whose planes are single rows, and one whose are not.
        let (all, w) =
            (wave::<T, 4>([images, c_in + 2, height, width], 0.1), wave([c_out, c_in / groups, 1, 1], 0.2));
        let some = all.view().slice(1, 1..c_in + 1, 1).unwrap();
        let (x, bias) = (some.to_tensor().unwrap(), wave::<T, 1>([c_out], 0.3));
        let plain = conv::forward(&geometry, x.view(), w.view(), Some(bias.view())).unwrap();
        let residual = wave::<T, 4>(plain.shape(), 0.4);
        let [n, c, h, columns] = plain.shape();
        let mut wider = Tensor::full([n, c, h, columns + 1], T::NAN).unwrap();
        wider.view_mut().slice(3, 0..columns, 1).unwrap().assign(residual.view()).unwrap();
        let apart = wider.view().slice(3, 0..columns, 1).unwrap();
        let mut expected = wide(plain.view());
        map(&mut expected, Some(wide(residual.view()).view()), |z, r| (z + r).max(0.0));
        let size = Tensor::full(expected.shape(), 1.0).unwrap();
        let bias = Some(bias.view());
        for &isa in machine::supported() {
            let packed = machine::with_isa(isa, || layer.pack(w.view()).unwrap()).unwrap();
            for (x, residual) in [(x.view(), residual.view()), (some, residual.view()), (x.view(), apart)] {
                for weight in [Weight::View(w.view()), Weight::Packed(&packed)] {
                    let run = |x: TensorView<'_, T, 4>, residual: TensorView<'_, T, 4>| {
                        let mut y = Tensor::full(residual.shape(), T::NAN).unwrap();
                        let call = || layer.forward_add_into(x, weight, bias, residual, y.view_mut());
                        machine::with_isa(isa, call).unwrap().unwrap();
                        y
                    };
                    let found = in_pools(|| run(x, residual));
                    near("y", found[0].view(), &expected, &size, c_in / groups, Algorithm::Auto);
                    let whole = bits(found[0].as_slice());
                    assert!(
                        found.iter().all(|y| bits(y.as_slice()) == whole),
                        "{images} {c_in} {height} {isa}"
                    );
                    if matches!(weight, Weight::Packed(_)) {
                        let alone = run(x.slice(0, 0..1, 1).unwrap(), residual.slice(0, 0..1, 1).unwrap());
                        assert_eq!(
                            bits(alone.as_slice()),
                            whole[..alone.len()],
                            "{images} {c_in} {height} {isa}"
                        );
                    }
                }
            }
        }
    }
}

/// Boxes of 49 positions, with channels first and last: the last column of a tile has a kernel of its own, and what lies beside it in
/// scratch is not computed.
#[test]
fn seven_by_seven_outputs_equal_the_reference() {
    let (nchw, nhwc) = ([0, 3, 1, 2], [0, 2, 3, 1]);
    // One block of depth, and several groups of them.
    for (c_in, c_out) in [(20, 64), (700, 30)] {
        let layer = Convolution::<2>::new().padding([1, 1]).stride([2, 2]).algorithm(Algorithm::ImplicitGemm);
        let (x, w) = (wave::<f32, 4>([2, c_in, 13, 13], 0.1), wave([c_out, c_in, 3, 3], 0.2));
        let bias = wave::<f32, 1>([c_out], 0.3);
        let geometry = conv::Geometry { padding: [[1; 2]; 2], stride: [2; 2], ..conv::Geometry::new() };
        let expected = conv::forward(&geometry, x.view(), w.view(), Some(bias.view())).unwrap();
        let expected = wide(expected.view());
        let size = Tensor::full(expected.shape(), 8.0).unwrap();
        let turned = x.view().permute(nhwc).unwrap().to_tensor().unwrap();
        for &isa in machine::supported() {
            let packed = machine::with_isa(isa, || layer.pack(w.view()).unwrap()).unwrap();
            for weight in [Weight::View(w.view()), Weight::Packed(&packed)] {
                for last in [false, true] {
                    let shape = if last { nhwc.map(|axis| expected.shape()[axis]) } else { expected.shape() };
                    let mut y = Tensor::full(shape, f32::NAN).unwrap();
                    let to = if last { y.view_mut().permute(nchw).unwrap() } else { y.view_mut() };
                    let x = if last { turned.view().permute(nchw).unwrap() } else { x.view() };
                    let call = || layer.forward_into(x, weight, Some(bias.view()), to);
                    machine::with_isa(isa, call).unwrap().unwrap();
                    let y = if last { y.view().permute(nchw).unwrap() } else { y.view() };
                    near("y", y, &expected, &size, c_in * 9, Algorithm::ImplicitGemm);
                }
            }
        }
    }
}
