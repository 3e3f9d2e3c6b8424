//! What views and tensors refuse.

use tilewise::{Error, Tensor, TensorView, TensorViewMut, Window};

#[track_caller]
fn text<V>(result: Result<V, Error>) -> String {
    match result {
        Ok(_) => panic!("taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_views_say_what_is_wrong() {
    let big = isize::MAX as usize;
    let mut data: Vec<i32> = (0..24).collect();
    let cube = TensorView::from_slice(&data, [2, 3, 4]).unwrap();
    let image = TensorView::from_slice(&data, [1, 1, 4, 6]).unwrap();
    let strided =
        |shape: [usize; 2], strides: [isize; 2]| text(TensorView::as_strided(&data, shape, strides));
    let cases = [
        (
            text(TensorView::from_slice(&data, [5, 5])),
            "from_slice: data has shape [24], expected [25]".to_string(),
        ),
        (
            text(TensorView::from_slice(&data, [usize::MAX, 2])),
            format!("from_slice: the sizes of shape [{}, 2] overflow", usize::MAX),
        ),
        (
            strided([4, 7], [6, 1]),
            "as_strided: shape [4, 7] with strides [6, 1] from offset 0 reaches outside a slice of 24 elements"
                .into(),
        ),
        (
            strided([2, 1], [-1, 1]),
            "as_strided: shape [2, 1] with strides [-1, 1] from offset 0 reaches outside a slice of 24 elements"
                .into(),
        ),
        (
            text(TensorView::as_strided_at(&data, usize::MAX, [1], [1])),
            format!(
                "as_strided: shape [1] with strides [1] from offset {} reaches outside a slice of 24 elements",
                usize::MAX
            ),
        ),
        (strided([big, 2], [0, 0]), format!("as_strided: the sizes of shape [{big}, 2] overflow")),
        (strided([2, 2], [isize::MAX, -2]), "as_strided: the sizes of shape [2, 2] overflow".into()),
        (strided([3, 1], [isize::MIN, 1]), "as_strided: the sizes of shape [3, 1] overflow".into()),
        (text(cube.permute([0, 1, 1])), "permute: axes is [0, 1, 1], expected each axis once".into()),
        (text(cube.permute([0, 1, 3])), "permute: axes is [0, 1, 3], expected each axis once".into()),
        (text(cube.flip(3)), "flip: axis is 3 at rank 3, expected less than the rank".into()),
        (text(cube.slice(3, .., 1)), "slice: axis is 3 at rank 3, expected less than the rank".into()),
        (text(cube.slice(0, .., 0)), "slice: step is 0, expected at least 1".into()),
        (text(cube.slice(1, 1..4, 1)), "slice: range is 1..4 along axis 1 of shape [2, 3, 4], expected a range inside the axis".into()),
        (
            text(cube.slice(1, std::ops::Range { start: 2, end: 1 }, 1)),
            "slice: range is 2..1 along axis 1 of shape [2, 3, 4], expected a range inside the axis".into(),
        ),
        (
            text(cube.slice(1, ..=usize::MAX, 1)),
            format!("slice: range is 0..{} along axis 1 of shape [2, 3, 4], expected a range inside the axis", usize::MAX),
        ),
        (text(cube.reshape([5, 5])), "reshape: self has shape [2, 3, 4], expected [5, 5]".into()),
        (
            text(cube.transpose().reshape([24])),
            "reshape: shape [4, 3, 2] with strides [1, 4, 12] cannot be viewed as [24] without a copy".into(),
        ),
        (text(cube.reshape([big, big])), format!("reshape: the sizes of shape [{big}, {big}] overflow")),
        (text(cube.select::<2>(3, 0)), "select: axis is 3 at rank 3, expected less than the rank".into()),
        (text(cube.select::<2>(0, 2)), "select: index is 2 along axis 0 of shape [2, 3, 4], expected less than the axis's size".into()),
        (
            text(cube.select::<3>(0, 0)),
            "select: rank of the result is 3 at rank 3, expected one less than the rank".into(),
        ),
        (text(cube.insert_axis::<4>(4)), "insert_axis: axis is 4 at rank 4, expected less than the rank".into()),
        (
            text(cube.insert_axis::<3>(0)),
            "insert_axis: rank of the result is 3 at rank 3, expected one more than the rank".into(),
        ),
        (text(cube.broadcast([2, 3, 5])), "broadcast: self has shape [2, 3, 4], expected [2, 3, 5]".into()),
        (text(cube.broadcast([3, 4])), "broadcast: self has shape [2, 3, 4], expected [3, 4]".into()),
        (
            text(cube.broadcast([big, 2, 3, 4])),
            format!("broadcast: the sizes of shape [{big}, 2, 3, 4] overflow"),
        ),
        (
            text(image.windows(&Window::new([0, 1]))),
            "windows: kernel is [0, 1], expected sizes of at least 1".into(),
        ),
        (
            text(image.windows(&Window::new([1, 1]).stride([1, 0]))),
            "windows: stride is [1, 0], expected sizes of at least 1".into(),
        ),
        (
            text(image.windows(&Window::new([1, 1]).dilation([0, 1]))),
            "windows: dilation is [0, 1], expected sizes of at least 1".into(),
        ),
        (
            text(image.windows(&Window::new([3, 3]).dilation([2, 1]))),
            "windows: kernel (dilated) has shape [5, 3], expected [4, 6]".into(),
        ),
        (
            text(image.windows(&Window::new([usize::MAX, 1]).dilation([2, 1]))),
            format!("windows: the sizes of shape [{}, 1] overflow", usize::MAX),
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }

    let overlap = text(TensorViewMut::as_strided(&mut data, [3, 3], [1, 1]));
    assert_eq!(
        overlap,
        "as_strided: shape [3, 3] with strides [1, 1] may reach one element by two indices, so it cannot be written"
    );
    let mut view = TensorViewMut::from_slice(&mut data, [4, 6]).unwrap();
    assert_eq!(
        text(view.view_mut().split_at(0, 5)),
        "split_at: at is 5 along axis 0 of shape [4, 6], expected at most the axis's size"
    );
    let other = Tensor::<i32, 2>::zeros([6, 4]).unwrap();
    assert_eq!(text(view.assign(other.view())), "assign: source has shape [6, 4], expected [4, 6]");
}

#[test]
fn a_tensor_that_cannot_be_had_is_an_error() {
    let big = 1usize << 60;
    assert_eq!(
        text(Tensor::<f32, 1>::zeros([big])),
        format!("Tensor::full: no memory for {} bytes", 4 * big as u128)
    );
    assert_eq!(
        text(Tensor::<f64, 2>::full([big, 2], 1.0)),
        "Tensor::full: more bytes than there are addresses"
    );
    assert!(matches!(
        Tensor::<f32, 1>::from_fn([big], |_| 0.0),
        Err(Error::Alloc { op: "Tensor::from_fn", .. })
    ));
    let one = [1.0f32];
    let huge = TensorView::from_slice(&one, [1]).unwrap().broadcast([big]).unwrap();
    assert!(matches!(huge.to_tensor(), Err(Error::Alloc { op: "Tensor::full", .. })));
    assert_eq!(
        text(Tensor::<f32, 2>::zeros([usize::MAX, usize::MAX])),
        format!("Tensor::full: the sizes of shape [{0}, {0}] overflow", usize::MAX)
    );
    assert_eq!(
        text(Tensor::from_slice(&one, [2])),
        "Tensor::from_slice: elements has shape [1], expected [2]"
    );
    let tensor = Tensor::from_slice(&one, [1]).unwrap();
    assert_eq!(text(tensor.reshape([2])), "reshape: self has shape [1], expected [2]");
}
