//! Transposed convolution in both layouts.

use tilewise::activation::Activation;
use tilewise::conv::ConvolutionTranspose;
use tilewise::{Tensor, machine};

use super::common::{bits, in_pools, last, turned, wave};

#[test]
fn few_channels_last_have_the_bits_of_planes() {
    // Channels in, out of a group, groups, kernel, stride.
    for [c_in, c_out, groups, kernel, stride] in [
        [7, 1, 1, 3, 1],
        [5, 3, 1, 7, 2],
        [6, 3, 2, 4, 2],
        [40, 6, 1, 5, 3],
        [3, 2, 3, 2, 2],
        [4, 5, 1, 1, 2],
    ] {
        let (x, w) =
            (wave::<f32, 4>([2, c_in, 13, 21], 0.1), wave::<f32, 4>([c_in, c_out, kernel, kernel], 0.2));
        let (x_last, bias) = (last(&x), wave::<f32, 1>([c_out * groups], 0.3));
        let conv =
            ConvolutionTranspose::<2>::new().stride([stride, 2]).groups(groups).padding([kernel / 2; 2]);
        for conv in [conv, conv.activation(Activation::Relu)] {
            for bias in [None, Some(bias.view())] {
                for &isa in machine::supported() {
                    let expected =
                        machine::with_isa(isa, || conv.forward(x.view(), w.view(), bias).unwrap()).unwrap();
                    for x in [x.view(), turned(&x_last)] {
                        let found = in_pools(|| {
                            let mut y = Tensor::full(last(&expected).shape(), f32::NAN).unwrap();
                            let to = y.view_mut().permute([0, 3, 1, 2]).unwrap();
                            machine::with_isa(isa, || conv.forward_into(x, w.view(), bias, to).unwrap())
                                .unwrap();
                            y
                        });
                        let what = format!("{isa} {c_in} to {groups} times {c_out}, {kernel}, {stride}");
                        assert!(
                            found.iter().all(|y| bits(y.as_slice()) == bits(last(&expected).as_slice())),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}
