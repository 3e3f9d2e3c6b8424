//! Depthwise convolution, and gradients of few channels: what the random cases of `conv.rs` do not reach.

mod common;

use common::{bits, in_pools, last, turned, wave};
use tilewise::activation::Activation;
use tilewise::conv::Convolution;
use tilewise::reference::conv::{self, Geometry};
use tilewise::{Tensor, TensorView, machine};

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // The last has so few outputs that channels of its weights' gradient are divided.
    let cases = [(3, 150, 40, 1, 1), (3, 150, 41, 2, 1), (3, 33, 60, 1, 2), (1, 1000, 15, 1, 1)];
    for (images, channels, size, stride, multiplier) in cases {
        let conv = Convolution::<2>::new().groups(channels).stride([stride; 2]).padding([1, 1]);
        let x = wave::<f32, 4>([images, channels, size, size], 0.1);
        let w = wave([channels * multiplier, 1, 3, 3], 0.2);
        let x_last = last(&x);
        for x in [x.view(), turned(&x_last)] {
            let results = in_pools(|| {
                let y = conv.forward(x, w.view(), None).unwrap();
                let dx = conv.backward_input(y.view(), w.view(), [size; 2]).unwrap();
                let dw = conv.backward_weight(x, y.view(), [3, 3]).unwrap();
                // Where both have channels last, they are read in place.
                let y_last = last(&y);
                let beside = conv.backward_weight(x, turned(&y_last), [3, 3]).unwrap();
                [y, dx, dw, beside].map(|tensor| bits(tensor.as_slice()))
            });
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }
}

/// Channels last are read in place where the window is 3 × 3, planes are copied: the sums are the same.
#[test]
fn channels_last_give_the_bits_of_planes() {
    let activations = [Activation::Identity, Activation::Relu, Activation::relu6(), Activation::Silu];
    let mut case = 0;
    for channels in [2, 15, 17, 40] {
        for [height, width] in [[1, 1], [1, 4], [3, 5], [6, 8], [7, 9]] {
            for stride in [[1, 1], [2, 2], [1, 2], [2, 1]] {
                case += 1;
                let padding = [[1 + case % 2, 1 + case / 3 % 2], [1 + case % 2, 1 + case / 2 % 2]];
                let conv = Convolution::<2>::new().groups(channels).stride(stride).padding_sides(padding);
                let conv = conv.activation(activations[case % 4]);
                let (x, w) = (wave([2, channels, height, width], 0.1), wave([channels, 1, 3, 3], 0.2));
                let (bias, x_last) = (wave([channels], 0.3), last(&x));
                let shape = conv.output_shape(x.shape(), w.shape()).unwrap();
                let residual = wave(shape, 0.4);
                let residual_last = last(&residual);
                for &isa in machine::supported() {
                    machine::with_isa(isa, || {
                        let [n, c, h, w_out] = shape;
                        let (mut planes, mut y) = (
                            Tensor::zeros(shape).unwrap(),
                            Tensor::full([n, h, w_out, c], f32::NAN).unwrap(),
                        );
                        let bias = Some(bias.view());
                        let to = y.view_mut().permute([0, 3, 1, 2]).unwrap();
                        if case % 3 == 0 {
                            conv.forward_into(x.view(), w.view(), bias, planes.view_mut()).unwrap();
                            conv.forward_into(turned(&x_last), w.view(), bias, to).unwrap();
                        } else {
                            let (first, second) = (residual.view(), turned(&residual_last));
                            conv.forward_add_into(x.view(), w.view(), bias, first, planes.view_mut())
                                .unwrap();
                            conv.forward_add_into(turned(&x_last), w.view(), bias, second, to).unwrap();
                        }
                        assert_eq!(
                            bits(last(&planes).as_slice()),
                            bits(y.as_slice()),
                            "case {case} on {isa}"
                        );
                    })
                    .unwrap();
                }
            }
        }
    }
}

/// Parts of an output have their part of the residual, whichever axis they are cut along.
#[test]
fn channels_last_are_cut_into_parts_of_the_same_bits() {
    for (images, dilation) in [(3, [1, 1, 1]), (1, [1, 2, 1])] {
        let (channels, size) = (37, [2, 40, 43]);
        let conv = Convolution::<3>::new().groups(channels).padding([0, 1, 1]).dilation(dilation);
        let conv = conv.activation(Activation::relu6());
        let x = wave([images, channels, size[0], size[1], size[2]], 0.1);
        let (w, bias) = (wave([channels, 1, 1, 3, 3], 0.2), wave([channels], 0.3));
        let shape = conv.output_shape(x.shape(), w.shape()).unwrap();
        let residual = wave(shape, 0.4);
        let mut planes = Tensor::zeros(shape).unwrap();
        let (x, residual, bias) = (x.view(), residual.view(), Some(bias.view()));
        conv.forward_add_into(x, w.view(), bias, residual, planes.view_mut()).unwrap();

        let (last, back) = ([0, 2, 3, 4, 1], [0, 4, 1, 2, 3]);
        let [x, residual] = [x, residual].map(|view| view.permute(last).unwrap().to_tensor().unwrap());
        let [n, c, d, h, w_out] = shape;
        let results = in_pools(|| {
            let mut y = Tensor::full([n, d, h, w_out, c], f32::NAN).unwrap();
            let to = y.view_mut().permute(back).unwrap();
            let [x, residual] = [&x, &residual].map(|held| held.view().permute(back).unwrap());
            conv.forward_add_into(x, w.view(), bias, residual, to).unwrap();
            bits(y.view().permute(back).unwrap().to_tensor().unwrap().as_slice())
        });
        assert!(results.iter().all(|result| *result == bits(planes.as_slice())), "{dilation:?}");
    }
}

/// Channels last are read in place where the window is 3 × 3: all widths of what is left of a row, padding, strides and a
/// dilated height; one pixel is infinite, which those weights see that reach it, and no other.
#[test]
fn weight_gradients_of_channels_last_equal_the_reference() {
    let mut case = 0;
    for channels in [2, 17, 40] {
        for [height, width] in [[1, 1], [2, 3], [3, 4], [6, 9], [5, 11], [9, 20]] {
            for (stride, dilation) in [([1, 1], 1), ([2, 2], 1), ([1, 2], 2), ([3, 1], 1)] {
                case += 1;
                let padding = [[2 + case % 2, 2], [1 + case % 2, 1 + case / 2 % 2]];
                let conv = Convolution::<2>::new().groups(channels).stride(stride).dilation([dilation, 1]);
                let conv = conv.padding_sides(padding);
                let geometry = Geometry {
                    groups: channels,
                    stride,
                    dilation: [dilation, 1],
                    padding,
                    ..Geometry::new()
                };
                let mut x = wave([2, channels, height, width], 0.1);
                // The reference puts zeros between gradients that are strides apart, and multiplies these too.
                if case % 3 == 0 && stride == [1, 1] {
                    *x.get_mut([1, 1, height - 1, width - 1]).unwrap() = f32::INFINITY;
                }
                let shape = conv.output_shape(x.shape(), [channels, 1, 3, 3]).unwrap();
                let dz = wave(shape, 0.4);
                let expected = conv::naive::backward_weight(&geometry, x.view(), dz.view(), [3, 3]).unwrap();
                let (x_last, dz_last) = (last(&x), last(&dz));
                for &isa in machine::supported() {
                    // Taps first: the weights are no runs.
                    let mut dw = Tensor::full([9, channels], f32::NAN).unwrap();
                    let to = dw.view_mut().transpose().reshape([channels, 1, 3, 3]).unwrap();
                    let owned = machine::with_isa(isa, || {
                        conv.backward_weight_into(turned(&x_last), turned(&dz_last), to).unwrap();
                        conv.backward_weight(turned(&x_last), turned(&dz_last), [3, 3]).unwrap()
                    });
                    let strided = dw.view().transpose().to_tensor().unwrap();
                    assert_eq!(
                        bits(owned.unwrap().as_slice()),
                        bits(strided.as_slice()),
                        "case {case} on {isa}"
                    );
                    for (found, expected) in dw.view().transpose().iter().zip(&expected) {
                        let found = f64::from(*found);
                        let same = found == *expected || (found.is_nan() && expected.is_nan());
                        assert!(
                            same || (found - expected).abs() < 1e-4,
                            "case {case} on {isa}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// Channels last are read and written in place where the window is 3 × 3 and the stride 2: all widths of what is left of a row,
/// any padding, turned kernels, any number of threads.
#[test]
fn input_gradients_of_channels_last_equal_the_reference() {
    let mut case = 0;
    for channels in [2, 17, 40] {
        for [height, width] in [[1, 1], [2, 3], [3, 4], [6, 9], [5, 12], [9, 20], [4, 16]] {
            for flipped in [false, true] {
                case += 1;
                let padding = [[2 + case % 3, 2], [1 + case % 4, 1 + case / 2 % 2]];
                let conv = Convolution::<2>::new().groups(channels).stride([2, 2]).padding_sides(padding);
                let conv = conv.flipped(flipped);
                let geometry =
                    Geometry { groups: channels, stride: [2, 2], padding, flipped, ..Geometry::new() };
                let x = [2, channels, height, width];
                let w = wave([channels, 1, 3, 3], 0.2);
                let dz = wave(conv.output_shape(x, w.shape()).unwrap(), 0.4);
                let expected =
                    conv::naive::backward_input(&geometry, dz.view(), w.view(), [height, width]).unwrap();
                let dz_last = last(&dz);
                for &isa in machine::supported() {
                    let results = in_pools(|| {
                        machine::with_isa(isa, || {
                            let mut dx = Tensor::full([2, height, width, channels], f32::NAN).unwrap();
                            let into = dx.view_mut().permute([0, 3, 1, 2]).unwrap();
                            conv.backward_input_into(turned(&dz_last), w.view(), into).unwrap();
                            dx
                        })
                        .unwrap()
                    });
                    for (found, expected) in turned(&results[0]).iter().zip(&expected) {
                        let same = (f64::from(*found) - expected).abs() < 1e-5;
                        assert!(same, "case {case} on {isa}: {found} {expected}");
                    }
                    assert!(results.iter().all(|dx| bits(dx.as_slice()) == bits(results[0].as_slice())));
                }
            }
        }
    }
}

/// Sums of more ones than an `f32` can count in a single chain of additions.
#[test]
fn a_long_sum_of_ones_is_exact() {
    let (images, size, channels) = (400, 224, 2);
    // All images are the same memory.
    let ones = Tensor::<f32, 3>::full([size, size, channels], 1.0).unwrap();
    let (shape, strides) =
        ([images, channels, size, size], [0, 1, (size * channels) as isize, channels as isize]);
    let view = TensorView::as_strided(ones.as_slice(), shape, strides).unwrap();
    let conv = Convolution::<2>::new().groups(channels).padding([1, 1]);
    let dw = conv.backward_weight(view, view, [3, 3]).unwrap();
    let inner = (images * size * size) as f32;
    assert!(inner > 16_777_216.0 && dw.get([0, 0, 1, 1]) == Some(&inner), "{:?}", dw.as_slice());
}

#[test]
fn layers_of_networks_equal_the_reference() {
    for (channels, size, stride, kernel) in [(70, 28, 1, 3), (150, 7, 1, 3), (40, 29, 2, 3), (33, 14, 1, 5)] {
        let padding = kernel / 2;
        let conv = Convolution::<2>::new().groups(channels).stride([stride; 2]).padding([padding; 2]);
        let geometry =
            Geometry { groups: channels, stride: [stride; 2], padding: [[padding; 2]; 2], ..Geometry::new() };
        let x = wave([2, channels, size, size], 0.1);
        let w = wave([channels, 1, kernel, kernel], 0.2);
        let expected = conv::forward(&geometry, x.view(), w.view(), None).unwrap();
        let x_last = last(&x);
        for &isa in machine::supported() {
            machine::with_isa(isa, || {
                for x in [x.view(), turned(&x_last)] {
                    let y = conv.forward(x, w.view(), None).unwrap();
                    for (found, expected) in y.iter().zip(&expected) {
                        assert!((f64::from(*found) - expected).abs() < 1e-5, "{isa} {channels} {size}");
                    }
                    let mut y_last = last(&y);
                    y_last.as_mut_slice().fill(f32::NAN);
                    let into = y_last.view_mut().permute([0, 3, 1, 2]).unwrap();
                    conv.forward_into(x, w.view(), None, into).unwrap();
                    assert!(turned(&y_last) == y.view(), "{isa}");
                    let packed = conv.pack(w.view()).unwrap();
                    assert!(conv.forward(x, &packed, None).unwrap() == y, "{isa}");
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn a_window_behind_the_image_is_zero() {
    let conv = Convolution::<1>::new().groups(5).padding_sides([[0, 9]]);
    let x = Tensor::<f32, 3>::full([1, 5, 3], 1.0).unwrap();
    let w = Tensor::<f32, 3>::full([5, 1, 2], 1.0).unwrap();
    let y = conv.forward(x.view(), w.view(), None).unwrap();
    for channel in y.as_slice().chunks(11) {
        assert_eq!(channel, [2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

/// With too few channels to share, threads share images: parts of them, as many for any number of threads, into weights in any strides.
#[test]
fn gradients_of_few_channels_are_the_same_in_any_number_of_threads() {
    for (images, inputs, outputs, size, taps, stride) in [
        (5, 1, 16, 40, 5, 1),
        (9, 3, 20, 33, 3, 2),
        (3, 2, 64, 40, 3, 1),
        (2, 1, 7, 100, 5, 1),
        (8, 3, 4, 40, 3, 1),
    ] {
        let conv = Convolution::<2>::new().stride([stride; 2]).padding([taps / 2; 2]);
        let geometry = Geometry { stride: [stride; 2], padding: [[taps / 2; 2]; 2], ..Geometry::new() };
        let x = wave([images, inputs, size, size], 0.1);
        let dz = wave(conv.output_shape(x.shape(), [outputs, inputs, taps, taps]).unwrap(), 0.3);
        let expected = conv::naive::backward_weight(&geometry, x.view(), dz.view(), [taps; 2]).unwrap();
        let (x_last, dz_last) = (last(&x), last(&dz));
        for (x, dz) in [(x.view(), dz.view()), (turned(&x_last), turned(&dz_last))] {
            for &isa in machine::supported() {
                let results = in_pools(|| {
                    let mut dw = Tensor::full([inputs, taps, taps, outputs], f32::NAN).unwrap();
                    let to = dw.view_mut().permute([3, 0, 1, 2]).unwrap();
                    machine::with_isa(isa, || conv.backward_weight_into(x, dz, to).unwrap()).unwrap();
                    dw
                });
                let [first, others @ ..] = &results[..] else { unreachable!() };
                assert!(others.iter().all(|dw| bits(dw.as_slice()) == bits(first.as_slice())), "{isa}");
                let first = first.view().permute([3, 0, 1, 2]).unwrap();
                for (&found, expected) in first.iter().zip(&expected) {
                    let error = (f64::from(found) - expected).abs();
                    assert!(error < 1e-3, "{inputs} to {outputs} channels on {isa}: {found} {expected}");
                }
            }
        }
    }
}
