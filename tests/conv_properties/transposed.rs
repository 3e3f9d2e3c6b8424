//! Transposed convolution in both layouts.

use tilewise::activation::Activation;
use tilewise::conv::ConvolutionTranspose;
use tilewise::{Element, Tensor, machine};

use super::common::{bits, in_pools, last, turned, wave};

/// Y with channels last, in both directions of its columns.
fn check<T: Element>() {
    // Images, channels in, out of a group, groups, columns, kernel, stride along the height.
    for [images, c_in, c_out, groups, width, kernel, stride] in [
        [3, 5, 3, 1, 21, 7, 2],
        [3, 6, 3, 2, 21, 4, 2],
        [3, 40, 6, 1, 9, 5, 3],
        [3, 3, 2, 3, 21, 2, 2],
        [3, 4, 5, 1, 1, 1, 2],
        // Groups and panels in tasks of their own.
        [1, 64, 3, 2, 60, 5, 2],
        [1, 90, 1, 3, 90, 5, 1],
        [1, 64, 6, 1, 60, 5, 2],
    ] {
        let x = wave::<T, 4>([images, c_in, 13, width], 0.1);
        let w = wave::<T, 4>([c_in, c_out, kernel, kernel], 0.2);
        let (x_last, bias) = (last(&x), wave::<T, 1>([c_out * groups], 0.3));
        let conv = ConvolutionTranspose::<2>::new().stride([stride, 2]).groups(groups);
        let conv = conv.padding([kernel / 2; 2]).output_padding([0, width % 2]);
        for (conv, bias) in [(conv, None), (conv.activation(Activation::Relu), Some(bias.view()))] {
            for &isa in machine::supported() {
                let expected = machine::with_isa(isa, || conv.forward(x.view(), w.view(), bias).unwrap());
                let expected = last(&expected.unwrap());
                for (x, flipped) in [(x.view(), false), (turned(&x_last), true)] {
                    let found = in_pools(|| {
                        let mut y = Tensor::full(expected.shape(), T::NAN).unwrap();
                        let to = y.view_mut().permute([0, 3, 1, 2]).unwrap();
                        let to = if flipped { to.flip(3).unwrap() } else { to };
                        machine::with_isa(isa, || conv.forward_into(x, w.view(), bias, to).unwrap()).unwrap();
                        y
                    });
                    let expected = expected.view();
                    let expected = if flipped { expected.flip(2).unwrap() } else { expected };
                    let expected = bits(expected.to_tensor().unwrap().as_slice());
                    let what = format!(
                        "{isa} {images} {c_in} to {groups} times {c_out}, {width}, {kernel}, {stride}"
                    );
                    assert!(found.iter().all(|y| bits(y.as_slice()) == expected), "{what}");
                }
            }
        }
    }
}

#[test]
fn few_channels_last_have_the_bits_of_planes() {
    check::<f32>();
    check::<f64>();
}
