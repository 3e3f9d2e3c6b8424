//! Groups of a few channels: lanes of vectors, read in place where channels lie last and the window is 3 × 3.

mod common;

use common::{bits, in_pools, last, turned, wave};
use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Convolution, Weight};
use tilewise::reference::conv::{self, Geometry};
use tilewise::{Element, Tensor, machine};

/// In bits; one NaN is as good as another.
fn same<T: Element>(a: &[T], b: &[T]) -> bool {
    let alike = |(a, b): (&T, &T)| (a.is_nan() && b.is_nan()) || a.to_f64().to_bits() == b.to_f64().to_bits();
    a.len() == b.len() && a.iter().zip(b).all(alike)
}

#[track_caller]
fn close<'a, T: Element>(found: impl IntoIterator<Item = &'a T>, expected: &Tensor<f64, 4>, what: &str) {
    let tolerance = if size_of::<T>() == 4 { 2e-5 } else { 1e-13 };
    let mut count = 0;
    for (found, &expected) in found.into_iter().zip(expected) {
        let found = found.to_f64();
        let same = found == expected || (found.is_nan() && expected.is_nan());
        assert!(same || (found - expected).abs() < tolerance, "{what}: {found} {expected}");
        count += 1;
    }
    assert_eq!(count, expected.len(), "{what}");
}

fn equal_the_reference<T: Element>(groups: usize, few: usize) {
    let channels = groups * few;
    let mut case = 0;
    for [height, width] in [[1, 1], [3, 5], [6, 8], [7, 9], [4, 14], [2, 17], [3, 30]] {
        for (stride, dilation) in [([1, 1], 1), ([2, 2], 1), ([1, 2], 2), ([2, 1], 1)] {
            case += 1;
            let padding = [[2 + case % 2, 2], [1 + case % 2, 1 + case / 2 % 2]];
            let flipped = case % 5 == 0;
            let kernel = if case % 7 == 0 && width >= 5 { [2, 5] } else { [3, 3] };
            let conv = Convolution::<2>::new().groups(groups).stride(stride).dilation([dilation, 1]);
            let conv = conv.padding_sides(padding).flipped(flipped);
            let geometry = Geometry { groups, stride, dilation: [dilation, 1], padding, flipped };
            let mut x = wave::<T, 4>([2, channels, height, width], 0.1);
            let (w, bias) = (wave([channels, few, kernel[0], kernel[1]], 0.2), wave([channels], 0.3));
            let shape = conv.output_shape(x.shape(), w.shape()).unwrap();
            let (dz, residual) = (wave::<T, 4>(shape, 0.4), wave::<T, 4>(shape, 0.5));
            // No group hears of another's: 0 times this is not a number.
            if case % 3 == 0 {
                *x.get_mut([1, channels - 1, height - 1, width - 1]).unwrap() = T::INFINITY;
            }
            let relu = conv.activation(Activation::Relu);
            let (x_last, dz_last, residual_last) = (last(&x), last(&dz), last(&residual));
            let mut y = conv::forward(&geometry, x.view(), w.view(), Some(bias.view())).unwrap();
            for (y, &residual) in y.as_mut_slice().iter_mut().zip(&residual) {
                let sum = *y + residual.to_f64();
                *y = if sum < 0.0 { 0.0 } else { sum };
            }
            let dx = conv::naive::backward_input(&geometry, dz.view(), w.view(), [height, width]).unwrap();
            let dw = conv::naive::backward_weight(&geometry, x.view(), dz.view(), kernel).unwrap();
            for &isa in machine::supported() {
                let what = format!("{groups} of {few}, case {case} on {isa}");
                machine::with_isa(isa, || {
                    let packed = relu.pack_channels_last(w.view()).unwrap();
                    let [n, c, h, w_out] = shape;
                    let mut found = Tensor::full([n, h, w_out, c], T::NAN).unwrap();
                    let mut again = Tensor::full([n, h, w_out, c], T::NAN).unwrap();
                    let bias = Some(bias.view());
                    let beside = turned(&residual_last);
                    let to = found.view_mut().permute([0, 3, 1, 2]).unwrap();
                    relu.forward_add_into(turned(&x_last), w.view(), bias, beside, to).unwrap();
                    let to = again.view_mut().permute([0, 3, 1, 2]).unwrap();
                    relu.forward_add_into(turned(&x_last), &packed, bias, beside, to).unwrap();
                    close(turned(&found), &y, &what);
                    assert!(same(found.as_slice(), again.as_slice()), "{what}");
                    // What was packed keeps its algorithm.
                    for other in [Algorithm::Winograd4, Algorithm::ImplicitGemm, Algorithm::Direct] {
                        let mut asked = Tensor::full([n, h, w_out, c], T::NAN).unwrap();
                        let to = asked.view_mut().permute([0, 3, 1, 2]).unwrap();
                        relu.algorithm(other)
                            .forward_add_into(turned(&x_last), &packed, bias, beside, to)
                            .unwrap();
                        assert!(same(asked.as_slice(), again.as_slice()), "{what}");
                    }
                    // Planes take what was packed for pixels, too.
                    let for_planes = relu.pack(w.view()).unwrap();
                    let weights: [Weight<'_, T, 4>; 3] =
                        [w.view().into(), (&packed).into(), (&for_planes).into()];
                    for weights in weights {
                        let mut planes = Tensor::full(shape, T::NAN).unwrap();
                        let to = planes.view_mut();
                        relu.forward_add_into(x.view(), weights, bias, residual.view(), to).unwrap();
                        close(&planes, &y, &what);
                    }
                    let found = conv.backward_input(dz.view(), w.view(), [height, width]).unwrap();
                    close(&found, &dx, &what);
                    let of_planes = conv.backward_weight(x.view(), dz.view(), kernel).unwrap();

                    let mut found = Tensor::full([2, height, width, channels], T::NAN).unwrap();
                    let to = found.view_mut().permute([0, 3, 1, 2]).unwrap();
                    conv.backward_input_into(turned(&dz_last), w.view(), to).unwrap();
                    close(turned(&found), &dx, &what);

                    let found = conv.backward_weight(turned(&x_last), turned(&dz_last), kernel).unwrap();
                    let infinite = case % 3 == 0 && stride != [1, 1];
                    // The reference puts zeros between gradients that are strides apart, and multiplies these too.
                    if !infinite {
                        close(&found, &dw, &what);
                        close(&of_planes, &dw, &what);
                    }
                    let [rows, columns] = kernel;
                    let mut strided = Tensor::full([rows * columns, few, channels], T::NAN).unwrap();
                    let to = strided.view_mut().permute([2, 1, 0]).unwrap();
                    let to = to.reshape([channels, few, rows, columns]).unwrap();
                    conv.backward_weight_into(turned(&x_last), turned(&dz_last), to).unwrap();
                    let strided = strided.view().permute([2, 1, 0]).unwrap();
                    assert!(found.as_slice().iter().zip(strided.iter()).all(|(a, b)| a == b || a.is_nan()));
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn groups_of_a_few_channels_equal_the_reference() {
    for (groups, few) in [(3, 2), (20, 2), (3, 4), (9, 4), (2, 8), (5, 8), (3, 16)] {
        equal_the_reference::<f32>(groups, few);
    }
}

#[test]
fn groups_of_a_few_channels_equal_the_reference_in_f64() {
    for (groups, few) in [(11, 2), (3, 4), (3, 8), (2, 16)] {
        equal_the_reference::<f64>(groups, few);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (images, groups, few, size, stride) in
        [(3, 40, 4, 40, 1), (3, 33, 2, 41, 2), (1, 100, 8, 15, 1), (3, 4, 16, 40, 1)]
    {
        let channels = groups * few;
        let conv = Convolution::<2>::new().groups(groups).stride([stride; 2]).padding([1, 1]);
        let x_last = last(&wave::<f32, 4>([images, channels, size, size], 0.1));
        let w = wave([channels, few, 3, 3], 0.2);
        let results = in_pools(|| {
            let y = conv.forward(turned(&x_last), w.view(), None).unwrap();
            let (y_last, x) = (last(&y), turned(&x_last).to_tensor().unwrap());
            let planes = conv.forward(x.view(), w.view(), None).unwrap();
            let mut again = Tensor::zeros(y_last.shape()).unwrap();
            let to = again.view_mut().permute([0, 3, 1, 2]).unwrap();
            conv.forward_into(turned(&x_last), w.view(), None, to).unwrap();
            let mut dx = Tensor::zeros(x_last.shape()).unwrap();
            let to = dx.view_mut().permute([0, 3, 1, 2]).unwrap();
            conv.backward_input_into(turned(&y_last), w.view(), to).unwrap();
            let dw = conv.backward_weight(turned(&x_last), turned(&y_last), [3, 3]).unwrap();
            let of_planes = conv.backward_weight(x.view(), y.view(), [3, 3]).unwrap();
            [again, dx, dw, planes, of_planes].map(|tensor| bits(tensor.as_slice()))
        });
        assert!(results.iter().all(|result| *result == results[0]));
    }
}
