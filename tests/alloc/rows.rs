//! Rows and elements: softmax, losses, dense layers, activations, functions.

use tilewise::activation::{self, Activation};
use tilewise::gemm::Packed;
use tilewise::linear::{Dense, DenseGradientsMut};
use tilewise::loss::{BinaryCrossEntropy, CrossEntropy, MeanSquared, Reduction, Target};
use tilewise::softmax::Softmax;
use tilewise::{Element, Tensor, vecmath};

use super::{Measure, matrix};

pub fn calls<T: Element>(call: &mut Measure) {
    let (x, mut y) = (matrix::<T>([600, 90]), matrix::<T>([600, 90]));
    let x = x.view();
    let mut turned = matrix::<T>([90, 600]);
    for axis in [0, 1] {
        for softmax in [Softmax::new(axis), Softmax::new(axis).logarithm()] {
            call("softmax", &mut || softmax.forward_into(x, y.view_mut()).unwrap());
            call("softmax, strided", &mut || {
                softmax.forward_into(x, turned.view_mut().transpose()).unwrap();
            });
            call("softmax, backward", &mut || softmax.backward_into(x, x, y.view_mut()).unwrap());
        }
    }
    // Axes that do not merge.
    let (blocks, mut apart) =
        (x.reshape([20, 30, 90]).unwrap(), matrix::<T>([600, 100]).reshape([20, 30, 100]).unwrap());
    for axis in [0, 1, 2] {
        call("softmax of axes apart", &mut || {
            let y = apart.view_mut().slice(2, ..90, 1).unwrap();
            Softmax::new(axis).forward_into(blocks, y).unwrap();
        });
        let (swapped, mut y) =
            (blocks.permute([1, 0, 2]).unwrap(), y.view_mut().reshape([30, 20, 90]).unwrap());
        call("softmax of swapped axes, backward", &mut || {
            Softmax::new(axis).backward_into(swapped, swapped, y.view_mut()).unwrap();
        });
    }

    let classes: Vec<usize> = (0..600).map(|row| row * 7 % 90).collect();
    let weights = Tensor::<T, 1>::full([90], T::ONE).unwrap();
    let targets =
        [Target::Classes(&classes), Target::Weighted(&classes, weights.view()), Target::Probabilities(x)];
    for target in targets {
        for loss in [CrossEntropy::new().label_smoothing(0.1), CrossEntropy::new().log_probabilities()] {
            call("cross-entropy", &mut || assert!(loss.forward(x, target).is_ok()));
            call("cross-entropy and gradient", &mut || {
                loss.forward_backward_into(x, target, y.view_mut()).unwrap();
            });
        }
    }
    call("squared loss", &mut || {
        MeanSquared::new().forward_backward_into(x, x, turned.view_mut().transpose()).unwrap();
    });
    call("binary loss", &mut || {
        let loss = BinaryCrossEntropy::new().reduction(Reduction::Sum);
        loss.forward_backward_into(x, x, y.view_mut()).unwrap();
    });

    let (w, bias) = (matrix::<T>([90, 70]), Tensor::<T, 1>::full([70], T::ONE).unwrap());
    let (packed, dense) = (Packed::rhs(w.view()).unwrap(), Dense::new().activation(Activation::Gelu));
    let (mut z, dz) = (matrix::<T>([600, 70]), matrix::<T>([600, 70]));
    let (mut dw, mut db) = (matrix::<T>([90, 70]), Tensor::<T, 1>::zeros([70]).unwrap());
    call("dense", &mut || dense.forward_into(x, w.view(), Some(bias.view()), z.view_mut()).unwrap());
    call("dense, packed", &mut || dense.forward_into(x, &packed, None, z.view_mut()).unwrap());
    call("dense, backward", &mut || {
        let gradients = DenseGradientsMut {
            input: Some(y.view_mut()),
            weight: Some(dw.view_mut()),
            bias: Some(db.view_mut()),
        };
        dense.backward_into(x, w.view(), dz.view(), T::ONE, gradients).unwrap();
    });

    for function in [Activation::Relu, Activation::Gelu, Activation::Mish] {
        call("activation", &mut || activation::forward(function, x, y.view_mut()).unwrap());
        call("activation, strided", &mut || {
            activation::forward(function, x, turned.view_mut().transpose()).unwrap();
        });
        call("activation in place", &mut || {
            let (runs, _) = y.view_mut().split_at(1, 40).unwrap();
            activation::in_place(function, runs).unwrap();
        });
        call("activation, backward", &mut || activation::backward(function, x, x, y.view_mut()).unwrap());
    }
    let (slope, mut d_slope) = (matrix::<T>([1, 90]), matrix::<T>([1, 90]));
    call("slopes", &mut || activation::prelu(x, slope.view(), y.view_mut()).unwrap());
    call("slopes, backward", &mut || {
        let (dx, d_slope) = (Some(y.view_mut()), Some(d_slope.view_mut()));
        activation::prelu_backward(x, slope.view(), x, dx, d_slope).unwrap();
    });
    call("exp", &mut || vecmath::exp(x, y.view_mut()).unwrap());
    call("erf, strided", &mut || vecmath::erf(x, turned.view_mut().transpose()).unwrap());
}
