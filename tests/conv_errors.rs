//! What convolution refuses, in which words, and that nothing is written then.

use tilewise::conv::{Algorithm, Chain, Convolution, ConvolutionTranspose, Link};
use tilewise::{Error, Tensor, TensorView, TensorViewMut};

fn image(shape: [usize; 4]) -> Tensor<f32, 4> {
    Tensor::full(shape, 7.0).unwrap()
}

fn vector(len: usize) -> Tensor<f32, 1> {
    Tensor::full([len], 7.0).unwrap()
}

fn text<R>(result: tilewise::Result<R>) -> String {
    result.err().expect("a wrong call was taken").to_string()
}

const BIG: usize = usize::MAX;

#[test]
fn wrong_forward_calls() {
    let (x, w) = (image([2, 4, 5, 6]), image([6, 4, 3, 3]));
    let mut y = image([2, 6, 3, 4]);
    let conv = Convolution::<2>::new();
    let into = |conv: Convolution<2>, x: &Tensor<f32, 4>, w: &Tensor<f32, 4>, y: &mut Tensor<f32, 4>| {
        text(conv.forward_into(x.view(), w.view(), None, y.view_mut()))
    };
    let with = |conv: Convolution<2>, y: &mut Tensor<f32, 4>| into(conv, &x, &w, y);
    let op = "Convolution::forward_into";
    let cases = [
        (with(conv.stride([0, 1]), &mut y), "stride is [0, 1], expected sizes of at least 1"),
        (with(conv.stride([1, 0]), &mut y), "stride is [1, 0], expected sizes of at least 1"),
        (with(conv.dilation([1, 0]), &mut y), "dilation is [1, 0], expected sizes of at least 1"),
        (with(conv.groups(0), &mut y), "groups is 0, expected at least 1"),
        (with(conv.groups(3), &mut y), "c_in is 4 in 3 groups, expected a multiple of the groups"),
        (with(conv.groups(4), &mut y), "c_out is 6 in 4 groups, expected a multiple of the groups"),
        (with(conv.groups(2), &mut y), "w has shape [6, 4, 3, 3], expected [6, 2, 3, 3]"),
        (with(conv.dilation([3, 1]), &mut y), "kernel (dilated) has shape [7, 3], expected [5, 6]"),
        (with(conv.padding([1, 1]), &mut y), "y has shape [2, 6, 3, 4], expected [2, 6, 5, 6]"),
        (with(conv.stride([2, 2]), &mut y), "y has shape [2, 6, 3, 4], expected [2, 6, 2, 2]"),
        (with(conv.padding([BIG, 0]), &mut y), "the sizes of shape [5, 6] overflow"),
        (with(conv.padding_sides([[BIG, 1], [0, 0]]), &mut y), "the sizes of shape [5, 6] overflow"),
        (with(conv.dilation([BIG, 1]), &mut y), "the sizes of shape [3, 3] overflow"),
        (with(conv.dilation([BIG / 2, 1]).full(), &mut y), "the sizes of shape [3, 3] overflow"),
        (into(conv, &x, &image([6, 3, 3, 3]), &mut y), "w has shape [6, 3, 3, 3], expected [6, 4, 3, 3]"),
        (into(conv, &x, &image([6, 4, 6, 3]), &mut y), "kernel (dilated) has shape [6, 3], expected [5, 6]"),
        (into(conv, &x, &image([6, 4, 3, 0]), &mut y), "kernel is [3, 0], expected sizes of at least 1"),
        (into(conv, &x, &image([5, 4, 3, 3]), &mut y), "y has shape [2, 6, 3, 4], expected [2, 5, 3, 4]"),
        (into(conv, &image([2, 4, 0, 6]), &w, &mut y), "kernel (dilated) has shape [3, 3], expected [0, 6]"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, format!("{op}: {expected}"));
    }

    let bias = text(conv.forward_into(x.view(), w.view(), Some(vector(4).view()), y.view_mut()));
    assert_eq!(bias, "Convolution::forward_into: bias has shape [4], expected [6]");
    let skip = image([2, 6, 3, 3]);
    let residual = text(conv.forward_add_into(x.view(), w.view(), None, skip.view(), y.view_mut()));
    assert_eq!(
        residual,
        "Convolution::forward_add_into: residual has shape [2, 6, 3, 3], expected [2, 6, 3, 4]"
    );
    assert!(y.iter().all(|&y| y == 7.0), "a refused call wrote");

    let named = text(conv.forward(x.view(), w.view(), Some(vector(4).view())));
    assert_eq!(named, "Convolution::forward: bias has shape [4], expected [6]");
    let named = text(conv.groups(3).output_shape(x.shape(), w.shape()));
    assert_eq!(named, "Convolution::output_shape: c_in is 4 in 3 groups, expected a multiple of the groups");

    // More than there is memory for, and more than can be counted.
    let huge = conv.padding([1 << 26, 1 << 26]).forward(x.view(), w.view(), None);
    assert!(matches!(huge, Err(Error::Alloc { .. })), "{:?}", huge.err());
    let huge = conv.padding([1 << 40, 1 << 40]).forward(x.view(), w.view(), None);
    assert!(matches!(huge, Err(Error::Overflow { .. } | Error::Alloc { .. })), "{:?}", huge.err());
}

#[test]
fn wrong_chains() {
    let (x, conv) = (image([2, 4, 5, 6]), Convolution::<2>::new());
    let (w, v) = (image([6, 4, 3, 3]), image([3, 6, 2, 2]));
    let (w, v) = (conv.pack(w.view()).unwrap(), conv.pack(v.view()).unwrap());
    let link = |w, bias| Link::new(conv, w, bias);
    let (chain, op) = (Chain::new([link(&w, None), link(&v, None)]), "Chain::forward_into");
    assert_eq!(chain.output_shape(x.shape()).unwrap(), [2, 3, 2, 3]);
    let (mut y, other, four) = (image([2, 3, 2, 2]), image([2, 3, 2, 3]), vector(4));
    let into = |links: [Link<'_, f32, 2>; 2], y: &mut Tensor<f32, 4>| {
        text(Chain::new(links).forward_into(x.view(), y.view_mut()))
    };
    let cases = [
        (into([link(&w, None), link(&v, None)], &mut y), "y has shape [2, 3, 2, 2], expected [2, 3, 2, 3]"),
        (into([link(&v, None), link(&w, None)], &mut y), "w has shape [3, 6, 2, 2], expected [3, 4, 2, 2]"),
        (into([link(&w, None), link(&w, None)], &mut y), "w has shape [6, 4, 3, 3], expected [6, 6, 3, 3]"),
        (into([link(&w, None), link(&v, Some(four.view()))], &mut y), "bias has shape [4], expected [3]"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, format!("{op}: {expected}"));
    }
    let residual = text(chain.forward_add_into(x.view(), y.view(), image([2, 3, 2, 3]).view_mut()));
    assert_eq!(residual, "Chain::forward_add_into: residual has shape [2, 3, 2, 2], expected [2, 3, 2, 3]");
    assert!(y.iter().all(|&y| y == 7.0), "a refused call wrote");
    // The first link would not be computed before some rows of Y are, which lie in padding; nor without images.
    let turned = Link::new(conv.flipped(true), &w, None);
    let behind = Link::new(conv.padding_sides([[1 << 12, 0], [0, 0]]), &v, None);
    for images in [0, 2] {
        let x = image([images, 4, 5, 1 << 12]);
        let shape = Chain::new([link(&w, None), behind]).output_shape(x.shape()).unwrap();
        let mut y = image(shape);
        let error = Chain::new([turned, behind]).forward_into(x.view(), y.view_mut()).unwrap_err();
        assert!(matches!(error, Error::Packed { .. }), "{error}");
        assert!(y.iter().all(|&y| y == 7.0), "a refused call wrote");
    }
    assert!(chain.forward(image([0, 4, 5, 6]).view()).unwrap().is_empty());
    assert_eq!(chain.forward(x.view()).unwrap().shape(), other.shape());
}

#[test]
fn one_and_three_axes_are_named_as_the_caller_knows_them() {
    let x = Tensor::<f64, 3>::zeros([1, 2, 4]).unwrap();
    let w = Tensor::<f64, 3>::zeros([1, 2, 5]).unwrap();
    let error = text(Convolution::<1>::new().forward(x.view(), w.view(), None));
    assert_eq!(error, "Convolution::forward: kernel (dilated) has shape [5], expected [4]");
    let error = text(Convolution::<1>::new().stride([0]).forward(x.view(), w.view(), None));
    assert_eq!(error, "Convolution::forward: stride is [0], expected sizes of at least 1");
    let x = Tensor::<f64, 5>::zeros([1, 2, 4, 4, 4]).unwrap();
    let w = Tensor::<f64, 5>::zeros([1, 1, 5, 1, 1]).unwrap();
    let error = text(Convolution::<3>::new().forward(x.view(), w.view(), None));
    assert_eq!(error, "Convolution::forward: w has shape [1, 1, 5, 1, 1], expected [1, 2, 5, 1, 1]");
}

#[test]
fn weights_packed_for_another_call() {
    let (x, w) = (image([2, 4, 5, 6]), image([6, 4, 3, 3]));
    let conv = Convolution::<2>::new();
    let packed = conv.pack(w.view()).unwrap();
    let mut y = image([2, 6, 3, 4]);
    let mut refused = |conv: Convolution<2>, x: &Tensor<f32, 4>| {
        let error = conv.forward_into(x.view(), &packed, None, y.view_mut()).unwrap_err();
        assert!(y.iter().all(|&y| y == 7.0), "a refused call wrote");
        error
    };
    assert!(matches!(refused(conv.flipped(true), &x), Error::Packed { .. }));
    // The number of groups makes another shape of the weight first.
    assert!(matches!(refused(conv.groups(2), &x), Error::Shape { .. }));
    assert!(matches!(refused(conv.groups(2), &image([2, 8, 5, 6])), Error::Packed { .. }));
    assert!(matches!(refused(conv, &image([2, 3, 5, 6])), Error::Shape { .. }));
    let (w, packed) = (image([6, 4, 1, 1]), conv.pack_channels_last(image([6, 4, 1, 1]).view()).unwrap());
    assert!(conv.forward(x.view(), &packed, None).is_ok());
    assert!(conv.stride([2, 1]).forward(x.view(), &packed, None).is_ok());
    let error = text(conv.flipped(true).forward(x.view(), &packed, None));
    assert!(error.contains("packed for") && error.contains("for channels last"), "{error}");
    assert!(conv.stride([2, 1]).forward(x.view(), &conv.pack(w.view()).unwrap(), None).is_ok());
    let error = text(conv.groups(4).pack(w.view()));
    assert_eq!(error, "Convolution::pack: c_out is 6 in 4 groups, expected a multiple of the groups");
    let cube = Tensor::<f32, 5>::full([6, 4, 3, 3, 3], 1.0).unwrap();
    let cube = Convolution::<3>::new().pack(cube.view()).unwrap();
    let error = text(conv.same().forward(x.view(), &cube, None));
    assert_eq!(error, "Convolution::forward: w has shape [6, 4, 3, 3, 3], expected [6, 4, 3, 3]");
    assert!(matches!(conv.pack(image([6, 4, 0, 3]).view()), Err(Error::Argument { .. })));
}

#[test]
fn wrong_backward_calls() {
    let (x, w, dz) = (image([2, 4, 5, 6]), image([6, 4, 3, 3]), image([2, 6, 3, 4]));
    let conv = Convolution::<2>::new();
    let short = image([2, 6, 3, 3]);
    let (mut dx, mut dw, mut db) = (image([2, 4, 5, 6]), image([6, 4, 3, 3]), vector(5));
    let cases = [
        (
            text(conv.backward_input(short.view(), w.view(), [5, 6])),
            "Convolution::backward_input: dz has shape [2, 6, 3, 3], expected [2, 6, 3, 4]",
        ),
        (
            text(conv.backward_input(dz.view(), w.view(), [2, 6])),
            "Convolution::backward_input: kernel (dilated) has shape [3, 3], expected [2, 6]",
        ),
        (
            text(conv.backward_input(dz.view(), w.view(), [BIG, 6])),
            "Convolution::backward_input: the sizes of shape [18446744073709551615, 6] overflow",
        ),
        (
            text(conv.backward_input_into(short.view(), w.view(), dx.view_mut())),
            "Convolution::backward_input_into: dz has shape [2, 6, 3, 3], expected [2, 6, 3, 4]",
        ),
        (
            text(conv.groups(2).backward_input_into(dz.view(), w.view(), dx.view_mut())),
            "Convolution::backward_input_into: w has shape [6, 4, 3, 3], expected [6, 2, 3, 3]",
        ),
        (
            text(conv.backward_weight(x.view(), short.view(), [3, 3])),
            "Convolution::backward_weight: dz has shape [2, 6, 3, 3], expected [2, 6, 3, 4]",
        ),
        (
            text(conv.backward_weight(x.view(), dz.view(), [3, 0])),
            "Convolution::backward_weight: kernel is [3, 0], expected sizes of at least 1",
        ),
        (
            text(conv.backward_weight(x.view(), dz.view(), [6, 3])),
            "Convolution::backward_weight: kernel (dilated) has shape [6, 3], expected [5, 6]",
        ),
        (
            text(conv.groups(0).backward_weight(x.view(), dz.view(), [3, 3])),
            "Convolution::backward_weight: groups is 0, expected at least 1",
        ),
        (
            text(conv.backward_weight_into(x.view(), short.view(), dw.view_mut())),
            "Convolution::backward_weight_into: dz has shape [2, 6, 3, 3], expected [2, 6, 3, 4]",
        ),
        (
            text(conv.backward_bias_into(dz.view(), db.view_mut())),
            "Convolution::backward_bias_into: db has shape [5], expected [6]",
        ),
        (
            text(conv.backward(x.view(), w.view(), short.view())),
            "Convolution::backward: dz has shape [2, 6, 3, 3], expected [2, 6, 3, 4]",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    assert!(dx.iter().chain(&dw).chain(&db).all(|&x| x == 7.0), "a refused call wrote");
}

#[test]
fn wrong_transposed_calls() {
    let (x, w) = (image([2, 4, 3, 4]), image([4, 6, 3, 3]));
    let mut y = image([2, 6, 5, 6]);
    let conv = ConvolutionTranspose::<2>::new();
    let mut with = |conv: ConvolutionTranspose<2>, w: &Tensor<f32, 4>| {
        let error = text(conv.forward_into(x.view(), w.view(), None, y.view_mut()));
        assert!(y.iter().all(|&y| y == 7.0), "a refused call wrote");
        error
    };
    let op = "ConvolutionTranspose::forward_into";
    let cases = [
        (with(conv.stride([0, 1]), &w), "stride is [0, 1], expected sizes of at least 1"),
        (with(conv.dilation([0, 1]), &w), "dilation is [0, 1], expected sizes of at least 1"),
        (with(conv.groups(0), &w), "groups is 0, expected at least 1"),
        (with(conv.groups(3), &w), "c_in is 4 in 3 groups, expected a multiple of the groups"),
        (with(conv.groups(2), &w), "y has shape [2, 6, 5, 6], expected [2, 12, 5, 6]"),
        (with(conv, &image([5, 6, 3, 3])), "w has shape [5, 6, 3, 3], expected [4, 6, 3, 3]"),
        (with(conv, &image([4, 6, 0, 3])), "kernel is [0, 3], expected sizes of at least 1"),
        (
            with(conv.output_padding([1, 0]), &w),
            "output_padding is [1, 0], expected less than the stride or the dilation",
        ),
        (with(conv.padding([3, 1]), &w), "padding is [3, 3], expected at most what the output would have"),
        (with(conv.stride([BIG, 1]), &w), "the sizes of shape [3, 4] overflow"),
        (with(conv.dilation([BIG, 1]), &w), "the sizes of shape [3, 3] overflow"),
        (with(conv.padding_sides([[BIG, 1], [0, 0]]), &w), "the sizes of shape [3, 4] overflow"),
        (with(conv.stride([2, 1]), &w), "y has shape [2, 6, 5, 6], expected [2, 6, 7, 6]"),
        (with(conv.stride([BIG, 1]).output_padding([BIG - 1, 0]), &w), "the sizes of shape [3, 4] overflow"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, format!("{op}: {expected}"));
    }
    let error = text(conv.forward(x.view(), w.view(), Some(vector(4).view())));
    assert_eq!(error, "ConvolutionTranspose::forward: bias has shape [4], expected [6]");
}

/// Shapes that stay small while the image is said to be endless.
#[test]
fn endless_views_are_refused_before_they_are_walked() {
    let (one, mut nothing) = ([1.0f32], [0.0f32; 0]);
    let one = TensorView::from_slice(&one, [1, 1, 1]).unwrap();
    let endless = isize::MAX as usize / 8;
    let x = one.broadcast([1, 1, endless]).unwrap();
    let mut y = Tensor::<f32, 3>::zeros([1, 1, 3]).unwrap();
    let error = text(Convolution::<1>::new().forward_into(x, one, None, y.view_mut()));
    assert!(error.contains("y has shape [1, 1, 3], expected"), "{error}");
    let w = one.broadcast([1, endless, 1]).unwrap();
    let error = text(Convolution::<1>::new().groups(1 << 40).forward_into(x, w, None, y.view_mut()));
    assert!(error.contains("c_in"), "{error}");
    let error = text(ConvolutionTranspose::<1>::new().groups(3).forward_into(one, w, None, y.view_mut()));
    assert!(error.contains("c_in"), "{error}");
    // A stride as long as the image leaves one window of it, or two: that is little work.
    let y = Convolution::<1>::new().stride([endless]).forward(x, one, None).unwrap();
    assert_eq!(y.as_slice(), [1.0]);
    let y = Convolution::<1>::new().stride([endless - 1]).forward(x, one, None).unwrap();
    assert_eq!(y.as_slice(), [1.0, 1.0]);
    // Two taps so far apart have all between them in their box.
    let w = one.broadcast([1, 1, 2]).unwrap();
    let far = Convolution::<1>::new().dilation([endless - 1]).forward(x, w, None);
    assert!(matches!(far, Ok(_) | Err(Error::Alloc { .. })));
    // The same of groups, whose boxes are copied.
    let x = one.broadcast([1, 4, endless]).unwrap();
    for w in [[4, 1, 2], [4, 2, 2]] {
        let conv = Convolution::<1>::new().groups(4 / w[1]).dilation([endless - 1]);
        let far = conv.forward(x, one.broadcast(w).unwrap(), None);
        assert!(matches!(far, Ok(_) | Err(Error::Alloc { .. })));
        // What padding there is packed weights do not ask.
        assert!(conv.padding([1 << 63]).pack(one.broadcast(w).unwrap()).is_ok());
    }
    // Nothing is asked of images that have no elements.
    let empty = TensorView::from_slice(&[], [endless, 0, 5]).unwrap();
    let w = TensorView::from_slice(&[], [0, 0, 3]).unwrap();
    let y = TensorViewMut::from_slice(&mut nothing, [endless, 0, 3]).unwrap();
    assert_eq!(Convolution::<1>::new().forward_into(empty, w, None, y), Ok(()));
}

/// Sizes of 0 are legal: sums of nothing are 0, outputs of nothing are empty.
#[test]
fn nothing_is_legal() {
    let conv = Convolution::<2>::new().padding([1, 1]);
    let bias = Tensor::from_slice(&[1.0f32, 2.0], [2]).unwrap();
    let none = |shape| Tensor::<f32, 4>::zeros(shape).unwrap();
    // No input channels.
    let y = conv.forward(none([1, 0, 4, 4]).view(), none([2, 0, 3, 3]).view(), Some(bias.view())).unwrap();
    assert_eq!(y.shape(), [1, 2, 4, 4]);
    assert!(y.as_slice()[..16].iter().all(|&y| y == 1.0) && y.as_slice()[16..].iter().all(|&y| y == 2.0));
    let all = conv.backward(none([1, 0, 4, 4]).view(), none([2, 0, 3, 3]).view(), y.view()).unwrap();
    assert_eq!((all.input.len(), all.weight.len(), all.bias.as_slice()), (0, 0, &[16.0, 32.0][..]));
    // No output channels: the sum over them is 0.
    let y = conv.forward(image([1, 2, 4, 4]).view(), none([0, 2, 3, 3]).view(), None).unwrap();
    assert_eq!(y.shape(), [1, 0, 4, 4]);
    let all = conv.backward(image([1, 2, 4, 4]).view(), none([0, 2, 3, 3]).view(), y.view()).unwrap();
    assert!(all.input.len() == 32 && all.input.iter().all(|&x| x == 0.0));
    // No images: their gradients add up to 0.
    let y = conv.forward(none([0, 2, 4, 4]).view(), image([3, 2, 3, 3]).view(), None).unwrap();
    assert_eq!(y.shape(), [0, 3, 4, 4]);
    let all = conv.backward(none([0, 2, 4, 4]).view(), image([3, 2, 3, 3]).view(), y.view()).unwrap();
    assert!(all.weight.iter().chain(&all.bias).all(|&x| x == 0.0) && all.weight.len() == 54);
    // No pixels: windows over padding alone.
    let wide = conv.padding([2, 2]);
    let y = wide.forward(none([1, 2, 0, 0]).view(), image([3, 2, 3, 3]).view(), None).unwrap();
    assert!(y.shape() == [1, 3, 2, 2] && y.iter().all(|&y| y == 0.0));
    let all = wide.backward(none([1, 2, 0, 0]).view(), image([3, 2, 3, 3]).view(), y.view()).unwrap();
    assert!(all.input.is_empty() && all.weight.iter().all(|&x| x == 0.0));
    let y =
        ConvolutionTranspose::<2>::new().forward(none([1, 2, 0, 3]).view(), image([2, 3, 3, 3]).view(), None);
    assert_eq!(y.unwrap().shape(), [1, 3, 0, 5]);
}

/// Found by the fuzzer: the positions of an output without elements were walked.
#[test]
fn an_output_of_nothing_takes_no_time() {
    let conv = ConvolutionTranspose::<1>::new().stride([1 << 40]);
    let x = TensorView::<f32, 3>::from_slice(&[], [0, 1, 4]).unwrap();
    let w = Tensor::<f32, 3>::full([1, 2, 1], 1.0).unwrap();
    let y = conv.forward(x, w.view(), None).unwrap();
    assert_eq!(y.shape(), [0, 2, 3 * (1 << 40) + 1]);
    // A tap for each of many positions is found at once.
    let x = Tensor::<f32, 3>::full([1, 1, 1], 2.0).unwrap();
    let w = Tensor::<f32, 3>::from_fn([1, 1, 30_000], |[_, _, i]| i as f32).unwrap();
    let y = conv.forward(x.view(), w.view(), None).unwrap();
    assert!(y.iter().enumerate().all(|(i, &y)| y == 2.0 * i as f32));
}

/// Found by the fuzzer: a table of the taps of a kernel without channels was larger than memory.
#[test]
fn a_kernel_of_nothing_takes_no_memory() {
    for algorithm in [Algorithm::Auto, Algorithm::ImplicitGemm] {
        let taps = (1usize << 40) + 1;
        let x = TensorView::<f32, 3>::from_slice(&[], [1, 0, 3]).unwrap();
        let w = TensorView::<f32, 3>::from_slice(&[], [2, 0, taps]).unwrap();
        let bias = Tensor::<f32, 1>::from_fn([2], |[i]| i as f32).unwrap();
        let conv = Convolution::<1>::new().padding([taps / 2]).algorithm(algorithm);
        let y = conv.forward(x, w, Some(bias.view())).unwrap();
        assert_eq!(y.as_slice(), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], "{algorithm:?}");
    }
}

/// Where the stride is longer than the kernel, no tap falls on some positions: they are sums over no channels.
#[test]
fn positions_between_the_taps_are_sums_of_nothing() {
    let x = Tensor::<f32, 5>::full([1, 2, 4, 4, 4], 1.0).unwrap();
    let w = Tensor::<f32, 5>::full([2, 3, 1, 1, 1], 2.0).unwrap();
    let bias = Tensor::full([3], 0.5).unwrap();
    let y = ConvolutionTranspose::<3>::new()
        .stride([3; 3])
        .forward(x.view(), w.view(), Some(bias.view()))
        .unwrap();
    let hit = |[_, _, d, h, w]: [usize; 5]| [d, h, w].iter().all(|at| at % 3 == 0);
    assert!(y == Tensor::from_fn([1, 3, 10, 10, 10], |at| if hit(at) { 4.5 } else { 0.5 }).unwrap());
}

/// What padding cuts off may be all that the windows reach: then output padding alone makes Y.
#[test]
fn gradients_of_windows_that_do_not_meet_the_output_are_zero() {
    let (x, w) = (Tensor::<f32, 3>::full([1, 2, 1], 1.0), Tensor::<f32, 3>::full([2, 3, 2], 1.0));
    let (x, w) = (x.unwrap(), w.unwrap());
    for before in [5, 6, 7] {
        let conv =
            ConvolutionTranspose::<1>::new().dilation([4]).output_padding([3]).padding_sides([[before, 0]]);
        let y = conv.forward(x.view(), w.view(), None).unwrap();
        assert!(y == Tensor::zeros([1, 3, 8 - before]).unwrap(), "{before}");
        let dz = Tensor::full(y.shape(), 1.0).unwrap();
        let gradients = conv.backward(x.view(), w.view(), dz.view()).unwrap();
        assert!(gradients.input == Tensor::zeros([1, 2, 1]).unwrap(), "{before}");
        assert!(gradients.weight == Tensor::zeros([2, 3, 2]).unwrap(), "{before}");
        assert_eq!(gradients.bias.as_slice(), [(8 - before) as f32; 3]);
    }
}

/// A dilation of an axis with one tap lets output padding make Y deeper than X, where a stride along rows reads X in place.
#[test]
fn output_padding_along_an_axis_of_one_tap() {
    let x = Tensor::<f32, 5>::from_fn([1, 1, 1, 4, 4], |[.., h, w]| (4 * h + w) as f32).unwrap();
    let w = Tensor::<f32, 5>::full([1, 1, 1, 3, 3], 1.0).unwrap();
    let conv = ConvolutionTranspose::<3>::new().stride([1, 2, 2]).dilation([2, 1, 1]);
    let (plain, y) = (
        conv.forward(x.view(), w.view(), None).unwrap(),
        conv.output_padding([1, 0, 0]).forward(x.view(), w.view(), None).unwrap(),
    );
    assert_eq!(y.shape(), [1, 1, 2, 9, 9]);
    let (first, second) = y.as_slice().split_at(81);
    assert_eq!(first, plain.as_slice());
    assert_eq!(second, [0.0; 81]);
}
