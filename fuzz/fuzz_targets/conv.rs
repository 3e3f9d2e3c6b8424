//! Convolutions with any numbers for options, over views of any strides, on every instruction set, against the scalar
//! twins.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the elements
//! of outputs hold canaries.
#![no_main]

mod support;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use support::{Few, Lie, Number, Stored, Values, WORK, product, small, stored, too_large, with_some_isa};
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Convolution, ConvolutionTranspose, Im2col, PatchOrder};
use tilewise::reference::conv::{self, Geometry, columns};
use tilewise::{Element, ImageRank, Spatial, Tensor, TensorView};

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    axes: u8,
    double: bool,
    isa: u8,
    batch: u8,
    /// Channels of a group.
    inputs: Few,
    outputs: Few,
    image: [Few; 3],
    kernel: [Number; 3],
    stride: [Number; 3],
    dilation: [Number; 3],
    padding: [[Number; 2]; 3],
    output_padding: [Number; 3],
    mode: Option<bool>,
    groups: Number,
    flipped: bool,
    relu: bool,
    bias: bool,
    residual: bool,
    packed: bool,
    packed_last: bool,
    order: bool,
    algorithm: u8,
    lies: [Lie; 4],
    wrong: Option<(u8, Number)>,
    seed: u32,
}

fuzz_target!(|input: Input| {
    match (input.axes % 3, input.double) {
        (0, false) => run::<f32, 1, 3>(&input),
        (1, false) => run::<f32, 2, 4>(&input),
        (2, false) => run::<f32, 3, 5>(&input),
        (0, true) => run::<f64, 1, 3>(&input),
        (1, true) => run::<f64, 2, 4>(&input),
        _ => run::<f64, 3, 5>(&input),
    }
});

/// Sums are of at most `terms` products, each of at most 4 in size, and of bias and residual.
fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    terms: usize,
) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    // The transforms of Winograd's tiles of 4 have factors up to 8, and their sums cancel.
    let bound = 100.0 * T::EPSILON.to_f64() * (terms as f64 + 5.0) * (4.0 * terms as f64 + 4.0);
    for (found, expected) in found.iter().zip(expected) {
        let error = (found.to_f64() - expected).abs();
        assert!(error <= bound, "{what}: {found} instead of {expected}, within {bound:e}");
    }
}

fn join<const S: usize, const N: usize>(first: usize, second: usize, sizes: [usize; S]) -> [usize; N] {
    std::array::from_fn(|axis| [first, second].get(axis).copied().unwrap_or_else(|| sizes[axis - 2]))
}

fn run<T: Element, const S: usize, const N: usize>(input: &Input)
where
    Spatial<S>: ImageRank<N>,
{
    with_some_isa(input.isa, || check::<T, S, N>(input));
}

fn check<T: Element, const S: usize, const N: usize>(input: &Input)
where
    Spatial<S>: ImageRank<N>,
{
    let values = &mut Values::seed(input.seed);
    let take = |numbers: [Number; 3]| std::array::from_fn::<_, S, _>(|axis| numbers[axis].0);
    let (kernel, image) = (take(input.kernel), std::array::from_fn(|axis| input.image[axis].0));
    let geometry = Geometry {
        stride: take(input.stride),
        padding: std::array::from_fn(|axis| input.padding[axis].map(|side| side.0)),
        dilation: take(input.dilation),
        groups: input.groups.0,
        flipped: input.flipped,
    };
    // Groups that no channels have are for the errors.
    let groups = if input.groups.0 <= 4 { input.groups.0 } else { 1 };
    let (Few(per_input), Few(per_output)) = (input.inputs, input.outputs);
    // Some batches fill vectors.
    let batch = usize::from(if input.batch < 192 { input.batch % 4 } else { 12 + input.batch % 8 });
    let mut x_shape = join::<S, N>(batch, groups * per_input, image);
    let mut w_shape = join::<S, N>(groups * per_output, per_input, kernel);
    if let Some((which, Number(size))) = input.wrong {
        let shape = if which & 1 == 0 { &mut x_shape } else { &mut w_shape };
        shape[usize::from(which >> 1) % N] = size;
    }
    // Large kernels stand in views of one element, or of none.
    let (Ok(x), Ok(w)) = (stored(x_shape, input.lies[0], values), stored(w_shape, input.lies[1], values))
    else {
        return;
    };

    let mut conv = Convolution::<S>::new().stride(geometry.stride).dilation(geometry.dilation);
    conv = conv.padding_sides(geometry.padding).groups(geometry.groups).flipped(geometry.flipped);
    conv = conv.algorithm(
        [
            Algorithm::Auto,
            Algorithm::ImplicitGemm,
            Algorithm::Direct,
            Algorithm::Winograd2,
            Algorithm::Winograd4,
        ][usize::from(input.algorithm % 5)],
    );
    patches::<T, S, N>(input, &geometry, &x, kernel, values);
    transposed::<T, S, N>(input, &geometry, &x, kernel, values);
    let shape = conv.output_shape(x_shape, w_shape);
    let y_shape = match shape {
        Ok(shape) => shape,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let again = conv.forward(x.view(), w.view(), None).expect_err("its shape was refused");
            assert!(again.to_string().contains("Convolution::forward"));
            if !too_large(&error) && small(&x_shape) && small(&w_shape) {
                let reference = conv::forward(&geometry, x.view(), w.view(), None);
                assert!(reference.is_err(), "{error}, but the reference takes it");
            }
            // Other padding may fit.
            if let Some(full) = input.mode {
                let _ = if full { conv.full() } else { conv.same() }.output_shape(x_shape, w_shape);
            }
            return;
        }
    };
    let terms = product(&w_shape[1..]).unwrap_or(usize::MAX);
    // The textbook has a patch matrix where there is no output channel, too.
    let positions = product(&[y_shape[0], y_shape[1].max(1), product(&y_shape[2..]).unwrap_or(usize::MAX)]);
    let work = positions.and_then(|len| len.checked_mul(terms.max(1)));
    if work.is_none_or(|work| work > WORK) || !small(&x_shape) || !small(&w_shape) || !small(&y_shape) {
        return;
    }
    let bias = Stored::<T, 1>::read([w_shape[0]], input.lies[2], values);
    let bias = input.bias.then(|| bias.view());
    let residual = Stored::<T, N>::read(y_shape, input.lies[2], values);
    let mut y = Stored::<T, N>::written(y_shape, input.lies[3]);
    let mut expected = conv::forward(&geometry, x.view(), w.view(), bias).expect("the library takes it");
    let plain = conv;
    if input.relu {
        conv = conv.activation(Activation::Relu);
    }
    let packed = input.packed.then(|| {
        if input.packed_last { conv.pack_channels_last(w.view()) } else { conv.pack(w.view()) }
            .expect("its shape is right")
    });
    let result = match (&packed, input.residual) {
        (Some(packed), false) => conv.forward_into(x.view(), packed, bias, y.view_mut()),
        (None, false) => conv.forward_into(x.view(), w.view(), bias, y.view_mut()),
        (Some(packed), true) => conv.forward_add_into(x.view(), packed, bias, residual.view(), y.view_mut()),
        (None, true) => conv.forward_add_into(x.view(), w.view(), bias, residual.view(), y.view_mut()),
    };
    if let Err(error) = result {
        // Boxes of windows that lie far apart may be larger than memory.
        assert!(too_large(&error), "{error}");
        assert!(y.untouched(), "a refused call wrote");
        return;
    }
    if input.residual {
        let residual = residual.view();
        expected.as_mut_slice().iter_mut().zip(residual.iter()).for_each(|(y, r)| *y += r.to_f64());
    }
    if input.relu {
        expected.as_mut_slice().iter_mut().for_each(|y| *y = y.max(0.0));
    }
    near("y", y.view(), &expected, terms + 1);
    assert!(y.canaries_live(), "a gap of y was written");
    modes(input, conv, &geometry, &x, &w);

    // The way back, from the residual: a shape is all that it has to have.
    let dz = residual;
    let mut dx = Stored::<T, N>::written(x_shape, input.lies[3]);
    let mut dw = Stored::<T, N>::written(w_shape, input.lies[2]);
    let input_gradient = plain.backward_input_into(dz.view(), w.view(), dx.view_mut());
    let weight_gradient = plain.backward_weight_into(x.view(), dz.view(), dw.view_mut());
    let (want_dx, want_dw, want_db) =
        columns::backward(&geometry, x.view(), w.view(), dz.view()).expect("the library takes it");
    let windows = product(&y_shape[2..]).unwrap_or(0) * y_shape[0];
    let taps = product(&w_shape[2..]).unwrap_or(0);
    match input_gradient {
        Ok(()) => near("dx", dx.view(), &want_dx, per_output * taps),
        Err(error) => assert!(too_large(&error) && dx.untouched(), "{error}"),
    }
    match weight_gradient {
        Ok(()) => near("dw", dw.view(), &want_dw, windows),
        Err(error) => assert!(too_large(&error) && dw.untouched(), "{error}"),
    }
    near("db", plain.backward_bias(dz.view()).expect("memory").view(), &want_db, windows);
    assert!(dx.canaries_live() && dw.canaries_live(), "a gap of a gradient was written");
}

/// "Same" and "full" are paddings like others.
fn modes<T: Element, const S: usize, const N: usize>(
    input: &Input,
    conv: Convolution<S>,
    geometry: &Geometry<S>,
    x: &Stored<T, N>,
    w: &Stored<T, N>,
) where
    Spatial<S>: ImageRank<N>,
{
    let Some(full) = input.mode else { return };
    let conv = if full { conv.full() } else { conv.same() };
    let Ok(shape) = conv.output_shape(x.shape, w.shape) else { return };
    let mut padding = [[0, 0]; S];
    for axis in 0..S {
        let (size, stride) = (x.shape[2 + axis], geometry.stride[axis]);
        let reach = geometry.dilation[axis] * (w.shape[2 + axis] - 1);
        if full {
            padding[axis] = [reach, reach];
        } else {
            assert_eq!(shape[2 + axis], size.div_ceil(stride).max(1));
            let all = ((shape[2 + axis] - 1) * stride + reach + 1).saturating_sub(size);
            padding[axis] =
                if geometry.flipped { [all - all / 2, all / 2] } else { [all / 2, all - all / 2] };
        }
    }
    if product(&shape).is_none_or(|len| len > 4 * WORK) {
        return;
    }
    let by_mode = conv.forward(x.view(), w.view(), None);
    let by_sides = conv.padding_sides(padding).forward(x.view(), w.view(), None);
    assert!(by_mode == by_sides, "a mode is not its padding");
}

fn transposed<T: Element, const S: usize, const N: usize>(
    input: &Input,
    geometry: &Geometry<S>,
    x: &Stored<T, N>,
    kernel: [usize; S],
    values: &mut Values,
) where
    Spatial<S>: ImageRank<N>,
{
    let output_padding = std::array::from_fn(|axis| input.output_padding[axis].0);
    let conv = ConvolutionTranspose::<S>::new().stride(geometry.stride).dilation(geometry.dilation);
    let conv = conv.padding_sides(geometry.padding).groups(geometry.groups).flipped(geometry.flipped);
    let conv = conv.output_padding(output_padding);
    let w_shape = join::<S, N>(x.shape[1], input.outputs.0, kernel);
    let Ok(w) = stored::<T, N>(w_shape, input.lies[1], values) else { return };
    let shape = match conv.output_shape(x.shape, w_shape) {
        Ok(shape) => shape,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(conv.forward(x.view(), w.view(), None).is_err(), "its shape was refused");
            return;
        }
    };
    let terms = product(&w_shape[2..]).and_then(|taps| taps.checked_mul(w_shape[0]));
    let work = product(&x.shape).and_then(|len| len.checked_mul(product(&w_shape[1..])?));
    if work.is_none_or(|work| work > WORK) || !small(&shape) {
        return;
    }
    let mut y = Stored::<T, N>::written(shape, input.lies[3]);
    if let Err(error) = conv.forward_into(x.view(), w.view(), None, y.view_mut()) {
        assert!(too_large(&error), "{error}");
        assert!(y.untouched(), "a refused call wrote");
        return;
    }
    let expected = conv::transposed(geometry, output_padding, x.view(), w.view(), None);
    near("transposed", y.view(), &expected.expect("the library takes it"), terms.unwrap_or(0));
    assert!(y.canaries_live(), "a gap of a transposed convolution's output was written");
}

fn patches<T: Element, const S: usize, const N: usize>(
    input: &Input,
    geometry: &Geometry<S>,
    x: &Stored<T, N>,
    kernel: [usize; S],
    values: &mut Values,
) where
    Spatial<S>: ImageRank<N>,
{
    let patches = Im2col::<S>::new(kernel).stride(geometry.stride).dilation(geometry.dilation);
    let patches = patches.padding_sides(geometry.padding);
    let order = if input.order { PatchOrder::ChannelsLast } else { PatchOrder::ChannelsFirst };
    let patches = patches.order(order);
    let shape = match patches.shape(x.shape) {
        Ok(shape) => shape,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(patches.im2col(x.view()).is_err(), "its shape was refused");
            return;
        }
    };
    // Rows without elements are walked below.
    if !small(&shape) || !small(&x.shape) || shape[0] > WORK {
        return;
    }
    let (channels, taps) = (x.shape[1], product(&kernel).expect("the matrix has them"));
    let natural =
        |column: usize| if input.order { column % channels * taps + column / channels } else { column };
    let mut matrix = Stored::<T, 2>::written(shape, input.lies[3]);
    patches.im2col_into(x.view(), matrix.view_mut()).expect("its shape is right");
    let expected = columns::im2col(geometry, x.view(), kernel).expect("the library takes it");
    let expected =
        Tensor::from_fn(shape, |[row, column]| expected.view().get([row, natural(column)]).copied());
    let expected = expected.expect("memory");
    assert!(matrix.view().iter().map(|x| Some(x.to_f64())).eq(expected.iter().copied()), "im2col");
    assert!(matrix.canaries_live(), "a gap of a matrix was written");

    let matrix = Stored::<T, 2>::read(shape, input.lies[2], values);
    let mut sums = Stored::<T, N>::written(x.shape, input.lies[3]);
    patches.col2im_into(matrix.view(), sums.view_mut()).expect("its shape is right");
    let mut ordered = Tensor::<T, 2>::zeros(shape).expect("memory");
    for row in 0..shape[0] {
        for column in 0..shape[1] {
            let value = matrix.view().get([row, column]).copied();
            ordered.get_mut([row, natural(column)]).into_iter().for_each(|x| *x = value.unwrap_or(T::NAN));
        }
    }
    let expected = columns::col2im(geometry, ordered.view(), x.shape, kernel).expect("the library takes it");
    near("col2im", sums.view(), &expected, taps);
    assert!(sums.canaries_live(), "a gap of an image was written");
}
