//! Views and tensors against a naive model: a list of buffer positions, one for each element.

mod common;
#[path = "tensor/errors.rs"]
mod errors;

use common::{bits, quickcheck, within};
use quickcheck::{Arbitrary, Gen};
use tilewise::{Error, Layout, Tensor, TensorView, TensorViewMut, Window};

/// All indices of a shape, in row-major order.
fn indices<const N: usize>(shape: [usize; N]) -> Vec<[usize; N]> {
    let mut all = Vec::new();
    for flat in 0..shape.iter().product() {
        let (mut index, mut left) = ([0; N], flat);
        for axis in (0..N).rev() {
            index[axis] = left % shape[axis];
            left /= shape[axis];
        }
        all.push(index);
    }
    all
}

/// A shape and strides over exactly as long a buffer as they need; element `i` of the buffer is `i`.
#[derive(Clone, Debug)]
struct Source<const N: usize> {
    data: Vec<i32>,
    offset: usize,
    shape: [usize; N],
    strides: [isize; N],
}

impl<const N: usize> Source<N> {
    fn new(shape: [usize; N], strides: [isize; N]) -> Self {
        let (mut offset, mut len) = (0, usize::from(!shape.contains(&0)));
        if len > 0 {
            for axis in 0..N {
                let reach = (shape[axis] - 1) * strides[axis].unsigned_abs();
                len += reach;
                offset += if strides[axis] < 0 { reach } else { 0 };
            }
        }
        Self { data: (0..len as i32).collect(), offset, shape, strides }
    }

    fn view(&self) -> TensorView<'_, i32, N> {
        TensorView::as_strided_at(&self.data, self.offset, self.shape, self.strides).unwrap()
    }

    /// The buffer position of an element, by the definition of strides.
    fn at(&self, index: [usize; N]) -> i32 {
        let distance: isize = (0..N).map(|axis| index[axis] as isize * self.strides[axis]).sum();
        (self.offset as isize + distance) as i32
    }
}

impl<const N: usize> Arbitrary for Source<N> {
    fn arbitrary(g: &mut Gen) -> Self {
        // Half are row-major, with or without gaps; the others may overlap or stand still.
        let shape: [usize; N] = std::array::from_fn(|_| *g.choose(&[0, 1, 1, 2, 2, 3, 3, 4, 5]).unwrap());
        let mut strides = [0; N];
        let mut next = 1;
        for axis in (0..N).rev() {
            strides[axis] = next;
            next *= shape[axis].max(1) as isize;
        }
        match u8::arbitrary(g) % 4 {
            0 | 1 => {}
            2 => strides = strides.map(|stride| if bool::arbitrary(g) { 2 * stride } else { -3 * stride }),
            _ => strides = std::array::from_fn(|_| within(g, 0..24) as isize - 9),
        }
        Self::new(shape, strides)
    }
}

/// True where a view has this shape and, at each index, the element at the source index that `from` gives.
fn same<const N: usize, const M: usize>(
    view: TensorView<'_, i32, M>,
    source: &Source<N>,
    shape: [usize; M],
    from: impl Fn([usize; M]) -> [usize; N],
) -> bool {
    let expected: Vec<i32> = indices(shape).into_iter().map(|index| source.at(from(index))).collect();
    view.shape() == shape
        && view.len() == expected.len()
        && view.iter().copied().eq(expected.iter().copied())
        && view.iter().len() == expected.len()
        && indices(shape).into_iter().zip(&expected).all(|(index, x)| view.get(index) == Some(x))
        && view.as_slice().is_none_or(|slice| slice == expected)
        && view.to_tensor().unwrap().as_slice() == expected
        && view == view.to_tensor().unwrap().view()
}

fn any_axis(g: u8, rank: usize) -> usize {
    usize::from(g) % rank
}

#[test]
fn a_strided_view_is_its_definition() {
    fn property<const N: usize>(source: Source<N>) -> bool {
        same(source.view(), &source, source.shape, |index| index)
    }
    quickcheck(500, property::<0> as fn(_) -> _);
    quickcheck(500, property::<1> as fn(_) -> _);
    quickcheck(500, property::<2> as fn(_) -> _);
    quickcheck(500, property::<4> as fn(_) -> _);
}

#[test]
fn permute_and_transpose_reorder_the_index() {
    fn property(source: Source<3>, order: u8) -> bool {
        let axes = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][usize::from(order) % 6];
        let permuted = source.view().permute(axes).unwrap();
        let mut inverse = [0; 3];
        (0..3).for_each(|axis| inverse[axes[axis]] = axis);
        let transposed = source.view().transpose();
        same(permuted, &source, axes.map(|axis| source.shape[axis]), |index| inverse.map(|at| index[at]))
            && transposed == source.view().permute([2, 1, 0]).unwrap()
            && permuted.permute(inverse).unwrap() == source.view()
    }
    quickcheck(1000, property as fn(_, _) -> _);
}

#[test]
fn flip_reverses_one_axis_and_twice_is_nothing() {
    fn property(source: Source<3>, axis: u8) -> bool {
        let axis = any_axis(axis, 3);
        let flipped = source.view().flip(axis).unwrap();
        same(flipped, &source, source.shape, |mut index| {
            index[axis] = source.shape[axis] - 1 - index[axis];
            index
        }) && flipped.flip(axis).unwrap() == source.view()
    }
    quickcheck(1000, property as fn(_, _) -> _);
}

#[test]
fn slice_takes_every_step_of_a_range() {
    fn property(source: Source<3>, axis: u8, start: u8, len: u8, step: u8) -> bool {
        let axis = any_axis(axis, 3);
        let n = source.shape[axis];
        let start = usize::from(start) % (n + 1);
        let end = start + usize::from(len) % (n - start + 1);
        let step = 1 + usize::from(step) % 7;
        let sliced = source.view().slice(axis, start..end, step).unwrap();
        let mut shape = source.shape;
        shape[axis] = (start..end).step_by(step).count();
        same(sliced, &source, shape, |mut index| {
            index[axis] = start + step * index[axis];
            index
        })
    }
    quickcheck(2000, property as fn(_, _, _, _, _) -> _);
}

#[test]
fn slice_takes_any_kind_of_range() {
    use std::ops::Bound::{Excluded, Unbounded};
    let data = [0, 1, 2, 3, 4];
    let view = TensorView::from_slice(&data, [5]).unwrap();
    let taken = |view: TensorView<'_, i32, 1>| view.iter().copied().collect::<Vec<_>>();
    assert_eq!(taken(view.slice(0, .., 1).unwrap()), data);
    assert_eq!(taken(view.slice(0, 3.., 1).unwrap()), [3, 4]);
    assert_eq!(taken(view.slice(0, ..3, 2).unwrap()), [0, 2]);
    assert_eq!(taken(view.slice(0, ..=3, 1).unwrap()), [0, 1, 2, 3]);
    assert_eq!(taken(view.slice(0, 1..=1, 1).unwrap()), [1]);
    assert_eq!(taken(view.slice(0, 5..5, 1).unwrap()), []);
    assert_eq!(taken(view.slice(0, (Excluded(2), Unbounded), 1).unwrap()), [3, 4]);
    assert_eq!(taken(view.slice(0, .., usize::MAX).unwrap()), [0]);
}

#[test]
fn select_and_insert_axis_change_the_rank() {
    fn property(source: Source<3>, axis: u8, at: u8) -> bool {
        let axis = any_axis(axis, 3);
        let mut left: Vec<usize> = source.shape.into();
        let n = left.remove(axis);
        let at = usize::from(at) % (n + 1);
        let selected = source.view().select::<2>(axis, at);
        let selects = match selected {
            Err(_) => at == n,
            Ok(view) => same(view, &source, left.try_into().unwrap(), |[i, j]| {
                let mut index = vec![i, j];
                index.insert(axis, at);
                index.try_into().unwrap()
            }),
        };
        let inserted = source.view().insert_axis::<4>(axis).unwrap();
        let mut shape: Vec<usize> = source.shape.into();
        shape.insert(axis, 1);
        selects
            && same(inserted, &source, shape.try_into().unwrap(), |index| {
                let mut index = index.to_vec();
                index.remove(axis);
                index.try_into().unwrap()
            })
            && inserted.select::<3>(axis, 0).unwrap() == source.view()
    }
    quickcheck(1000, property as fn(_, _, _) -> _);
}

#[test]
fn broadcast_repeats() {
    fn property(source: Source<2>, sizes: (u8, u8, u8)) -> bool {
        let wide = |n: usize, to: u8| if n == 1 { usize::from(to) % 5 } else { n };
        let [rows, columns] = source.shape;
        let shape = [usize::from(sizes.0) % 4, wide(rows, sizes.1), wide(columns, sizes.2)];
        same(source.view().broadcast(shape).unwrap(), &source, shape, |[_, i, j]| {
            [if rows == 1 { 0 } else { i }, if columns == 1 { 0 } else { j }]
        })
    }
    quickcheck(1000, property as fn(_, _) -> _);
}

/// True where some strides reach these positions in row-major order of `shape`.
fn viewable<const M: usize>(positions: &[i32], shape: [usize; M]) -> bool {
    if positions.is_empty() {
        return true;
    }
    let (mut strides, mut inner) = ([0; M], 1);
    for axis in (0..M).rev() {
        if shape[axis] > 1 {
            strides[axis] = positions[inner] - positions[0];
        }
        inner *= shape[axis];
    }
    indices(shape).iter().zip(positions).all(|(index, &at)| {
        at == positions[0] + (0..M).map(|axis| index[axis] as i32 * strides[axis]).sum::<i32>()
    })
}

#[test]
fn reshape_keeps_the_order_and_fails_only_where_no_strides_exist() {
    fn attempt<const N: usize, const M: usize>(source: &Source<N>, shape: [usize; M]) -> bool {
        let positions: Vec<i32> = source.view().iter().copied().collect();
        match source.view().reshape(shape) {
            Ok(view) => view.shape() == shape && view.iter().eq(positions.iter()),
            Err(Error::Shape { .. }) => shape.iter().product::<usize>() != positions.len(),
            Err(Error::NotViewable { .. }) => !viewable(&positions, shape),
            Err(error) => panic!("{error}"),
        }
    }
    fn property(source: Source<3>, sizes: (u8, u8)) -> bool {
        let len: usize = source.shape.iter().product();
        let [a, b, c] = source.shape;
        let i = 1 + usize::from(sizes.0) % 6;
        let j = 1 + usize::from(sizes.1) % 6;
        let mut all = attempt(&source, [len])
            && attempt(&source, [a * b, c])
            && attempt(&source, [a, b * c])
            && attempt(&source, [1, a, 1, b, c, 1])
            && attempt(&source, [i, j])
            && attempt(&source, []);
        if len.is_multiple_of(i) {
            all &= attempt(&source, [len / i, i]) && attempt(&source, [i, len / i]);
            if (len / i).is_multiple_of(j) {
                all &= attempt(&source, [i, len / i / j, j]) && attempt(&source, [j, 1, i, len / i / j]);
            }
        }
        all
    }
    quickcheck(3000, property as fn(_, _) -> _);
}

#[test]
fn an_exclusive_view_writes_its_elements_and_no_others() {
    fn property(source: Source<3>, axis: u8, at: u8) -> bool {
        let positions: Vec<i32> = source.view().iter().copied().collect();
        let mut distinct = positions.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut data = source.data.clone();
        let Source { offset, shape, strides, .. } = source.clone();
        let mut view = match TensorViewMut::as_strided_at(&mut data, offset, shape, strides) {
            Ok(view) => view,
            // It may refuse what doesn't overlap, but nothing that a user would meet.
            Err(Error::Overlap { .. }) => return strides != Layout::contiguous(shape).unwrap().strides(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(distinct.len(), positions.len(), "taken though it overlaps");
        // One part by index, through a flipped and transposed view, the other by assignment.
        let axis = any_axis(axis, 3);
        let at = usize::from(at) % (shape[axis] + 1);
        let (low, mut high) = view.view_mut().split_at(axis, at).unwrap();
        let mut low = low.flip(0).unwrap().transpose();
        for index in indices(low.shape()) {
            *low.get_mut(index).unwrap() = -1;
        }
        let fresh = Tensor::full(high.shape(), -2).unwrap();
        high.assign(fresh.view()).unwrap();
        assert!(high.view() == fresh.view());
        let mut expected: Vec<i32> = source.data.clone();
        for index in indices(shape) {
            expected[source.at(index) as usize] = if index[axis] < at { -1 } else { -2 };
        }
        data == expected
    }
    quickcheck(1500, property as fn(_, _, _) -> _);
}

#[test]
fn fill_leaves_gaps_alone() {
    let mut data = [0; 15];
    let mut view = TensorViewMut::as_strided_at(&mut data, 12, [3, 2], [-6, 2]).unwrap();
    assert!(view.as_mut_slice().is_none());
    view.fill(7);
    assert_eq!(data, [7, 0, 7, 0, 0, 0, 7, 0, 7, 0, 0, 0, 7, 0, 7]);
}

#[test]
fn to_tensor_of_long_strided_views_equals_their_iteration() {
    let data: Vec<i32> = (0..40_000).collect();
    let view = TensorView::from_slice(&data, [40, 10, 100]).unwrap();
    let views = [
        view.permute([2, 0, 1]).unwrap().flip(1).unwrap().reshape([100, 40, 10]).unwrap(),
        view.slice(2, 1.., 3).unwrap().slice(0, .., 7).unwrap(),
        view.flip(0).unwrap().flip(1).unwrap().flip(2).unwrap(),
        view.slice(1, 4..5, 1).unwrap().broadcast([40, 10, 100]).unwrap(),
    ];
    for view in views {
        let copy = view.to_tensor().unwrap();
        assert!(copy.iter().eq(view.iter()));
        assert_eq!(copy.as_slice().as_ptr() as usize % 64, 0, "aligned");
    }
}

/// ⌊(in − d·(k − 1) − 1) / s⌋ + 1, or nothing where the window is larger.
fn outputs(size: usize, kernel: usize, stride: usize, dilation: usize) -> Option<usize> {
    let extent = dilation * (kernel - 1) + 1;
    (extent <= size).then(|| (size - extent) / stride + 1)
}

#[test]
fn windows_are_their_formula() {
    /// Sizes of at least 1 for kernel, stride or dilation.
    fn sizes<const S: usize>(g: [u8; 3]) -> [usize; S] {
        std::array::from_fn(|axis| 1 + usize::from(g[axis]) % 3)
    }
    type Bytes = (u8, u8, u8);
    fn unpack((a, b, c): Bytes) -> [u8; 3] {
        [a, b, c]
    }

    fn one(source: Source<3>, kernel: Bytes, stride: Bytes, dilation: Bytes) -> bool {
        let ([k], [s], [d]) =
            (sizes::<1>(unpack(kernel)), sizes::<1>(unpack(stride)), sizes::<1>(unpack(dilation)));
        let [n, c, w] = source.shape;
        let windows = source.view().windows(&Window::new([k]).stride([s]).dilation([d]));
        match outputs(w, k, s, d) {
            None => windows.is_err(),
            Some(ow) => {
                same(windows.unwrap(), &source, [n, ow, c, k], |[b, j, ch, v]| [b, ch, j * s + v * d])
            }
        }
    }
    fn two(source: Source<4>, kernel: Bytes, stride: Bytes, dilation: Bytes) -> bool {
        let (k, s, d) =
            (sizes::<2>(unpack(kernel)), sizes::<2>(unpack(stride)), sizes::<2>(unpack(dilation)));
        let [n, c, h, w] = source.shape;
        let windows = source.view().windows(&Window::new(k).stride(s).dilation(d));
        match (outputs(h, k[0], s[0], d[0]), outputs(w, k[1], s[1], d[1])) {
            (Some(oh), Some(ow)) => {
                same(windows.unwrap(), &source, [n, oh, ow, c, k[0], k[1]], |[b, i, j, ch, u, v]| {
                    [b, ch, i * s[0] + u * d[0], j * s[1] + v * d[1]]
                })
            }
            _ => windows.is_err(),
        }
    }
    fn three(source: Source<5>, kernel: Bytes, stride: Bytes, dilation: Bytes) -> bool {
        let (k, s, d) =
            (sizes::<3>(unpack(kernel)), sizes::<3>(unpack(stride)), sizes::<3>(unpack(dilation)));
        let [n, c, z, h, w] = source.shape;
        let windows = source.view().windows(&Window::new(k).stride(s).dilation(d));
        let out: Option<Vec<usize>> =
            (0..3).map(|axis| outputs([z, h, w][axis], k[axis], s[axis], d[axis])).collect();
        match out.as_deref() {
            Some(&[oz, oh, ow]) => same(
                windows.unwrap(),
                &source,
                [n, oz, oh, ow, c, k[0], k[1], k[2]],
                |[b, i, j, l, ch, u, v, x]| {
                    [b, ch, i * s[0] + u * d[0], j * s[1] + v * d[1], l * s[2] + x * d[2]]
                },
            ),
            _ => windows.is_err(),
        }
    }
    quickcheck(800, one as fn(_, _, _, _) -> _);
    quickcheck(800, two as fn(_, _, _, _) -> _);
    quickcheck(400, three as fn(_, _, _, _) -> _);
}

#[test]
fn windows_as_a_matrix_are_im2col() {
    let pixels: Vec<i32> = (0..2 * 3 * 5 * 4).collect();
    let image = TensorView::from_slice(&pixels, [2, 3, 5, 4]).unwrap();
    let patches = image.windows(&Window::new([3, 2]).stride([2, 1])).unwrap();
    assert_eq!(patches.shape(), [2, 2, 3, 3, 3, 2]);
    assert!(matches!(patches.reshape([12, 18]), Err(Error::NotViewable { .. })));
    let matrix = patches.to_tensor().unwrap().reshape([12, 18]).unwrap();
    // Row 4 is image 0, output (1, 1); column 9 is channel 1, kernel (1, 1).
    assert_eq!(matrix.get([4, 9]), image.get([0, 1, 2 + 1, 1 + 1]));
}

/// The text of an error that must come.
#[test]
fn tensors_hold_what_they_were_given() {
    let t = Tensor::<usize, 3>::from_fn([2, 3, 4], |[i, j, k]| 100 * i + 10 * j + k).unwrap();
    assert_eq!((t.shape(), t.len(), t.is_empty()), ([2, 3, 4], 24, false));
    for [i, j, k] in indices([2, 3, 4]) {
        assert_eq!(t.get([i, j, k]), Some(&(100 * i + 10 * j + k)));
    }
    assert_eq!(t.get([0, 3, 0]), None);
    assert_eq!(t.get([usize::MAX; 3]), None);
    let mut t = t.reshape([4, 6]).unwrap();
    assert_eq!(t.get([3, 5]), Some(&123));
    *t.get_mut([0, 0]).unwrap() = 5;
    t.view_mut().as_mut_slice().unwrap()[1] = 6;
    assert_eq!(t.as_slice()[..3], [5, 6, 2]);
    assert_eq!((&t).into_iter().sum::<usize>(), t.iter().sum());
    let scalar = Tensor::full([], 7).unwrap();
    assert_eq!((scalar.len(), scalar.get([])), (1, Some(&7)));
    let empty = Tensor::<f32, 2>::zeros([0, 1 << 40]).unwrap();
    assert!(empty.is_empty() && empty.view().as_slice() == Some(&[]) && empty.iter().next().is_none());
    for n in [1, 3, 17, 1000] {
        let data = Tensor::<u8, 1>::zeros([n]).unwrap();
        assert_eq!(data.as_slice().as_ptr() as usize % 64, 0, "aligned");
    }
}

#[test]
fn equality_looks_at_shapes_and_elements() {
    let (a, b) = ([1.0f32, 2.0, 2.0, 1.0], [1.0, 2.0, 2.0, f32::NAN]);
    let square = TensorView::from_slice(&a, [2, 2]).unwrap();
    assert!(square == square.transpose());
    assert!(square == square.flip(0).unwrap().flip(1).unwrap());
    assert!(square != square.flip(0).unwrap());
    let column = square.reshape([4, 1]).unwrap();
    assert!(column == square.reshape([1, 4]).unwrap().transpose());
    let nan = TensorView::from_slice(&b, [2, 2]).unwrap();
    assert!(nan != nan, "NaN equals nothing");
    assert!(Tensor::full([2, 0], 1.0f32).unwrap() != Tensor::full([0, 2], 1.0f32).unwrap());
    assert!(Tensor::from_slice(&a, [2, 2]).unwrap() == square.transpose().to_tensor().unwrap());
}

#[test]
fn all_close_is_relative_to_the_other() {
    let close = |a: &[f64], b: &[f64], rtol, atol| {
        let view = |x| TensorView::from_slice(x, [a.len()]).unwrap();
        view(a).all_close(view(b), rtol, atol)
    };
    assert!(close(&[1.0, 2.0], &[1.0, 2.0], 0.0, 0.0));
    assert!(close(&[101.0], &[100.0], 0.01, 0.0));
    assert!(!close(&[102.0], &[100.0], 0.01, 0.0));
    assert!(close(&[110.0], &[100.0], 0.01, 9.5));
    assert!(close(&[0.0], &[-0.0], 0.0, 0.0));
    assert!(!close(&[1.0, f64::NAN], &[1.0, f64::NAN], 1.0, 1.0));
    assert!(close(&[f64::INFINITY], &[f64::INFINITY], 0.0, 0.0));
    assert!(!close(&[f64::INFINITY], &[f64::NEG_INFINITY], 1.0, 1.0));
    assert!(!close(&[1.0], &[f64::INFINITY], 1.0, 1.0));
    assert!(close(&[], &[], 0.0, 0.0));
    let (a, b) = (Tensor::full([2, 3], 1.0f32).unwrap(), Tensor::full([3, 2], 1.0f32).unwrap());
    assert!(!a.view().all_close(b.view(), 1.0, 1.0), "other shapes");
    assert_eq!(bits(a.as_slice()), bits(b.as_slice()));
}

#[test]
fn debug_prints_like_numpy() {
    let data: Vec<i32> = (0..24).collect();
    let view = TensorView::from_slice(&data, [2, 3, 4]).unwrap();
    assert_eq!(
        format!("{:?}", view.slice(2, ..2, 1).unwrap()),
        "[[[ 0,  1],\n  [ 4,  5],\n  [ 8,  9]],\n\n [[12, 13],\n  [16, 17],\n  [20, 21]]]"
    );
    assert_eq!(
        format!("{:?}", view.select::<2>(0, 0).unwrap().flip(1).unwrap().slice(0, ..1, 1).unwrap()),
        "[[3, 2, 1, 0]]"
    );
    let floats = Tensor::from_slice(&[0.5f32, -1.25, f32::NAN, f32::INFINITY], [4]).unwrap();
    assert_eq!(format!("{floats:?}"), "[  0.5, -1.25,   NaN,   inf]");
    assert_eq!(format!("{floats:.1?}"), "[ 0.5, -1.2,  NaN,  inf]");
    let long = Tensor::<usize, 2>::from_fn([100, 100], |[i, j]| 100 * i + j).unwrap();
    assert_eq!(
        format!("{long:?}"),
        "[[   0,    1,    2, ...,   97,   98,   99],
 [ 100,  101,  102, ...,  197,  198,  199],
 [ 200,  201,  202, ...,  297,  298,  299],
 ...,
 [9700, 9701, 9702, ..., 9797, 9798, 9799],
 [9800, 9801, 9802, ..., 9897, 9898, 9899],
 [9900, 9901, 9902, ..., 9997, 9998, 9999]]"
    );
    let mut data = [1, 2];
    assert_eq!(format!("{:?}", TensorViewMut::from_slice(&mut data, [2, 1]).unwrap()), "[[1],\n [2]]");
}

#[test]
fn iterators_know_their_length() {
    let data: Vec<i32> = (0..6).collect();
    let view = TensorView::from_slice(&data, [2, 3]).unwrap();
    let mut iter = view.transpose().into_iter();
    for left in (0..6).rev() {
        assert!(iter.next().is_some());
        assert_eq!((iter.len(), iter.size_hint()), (left, (left, Some(left))));
    }
    assert!(iter.next().is_none() && iter.next().is_none());
}

#[test]
fn everything_goes_to_other_threads() {
    fn both<T: Send + Sync>() {}
    both::<Tensor<f32, 4>>();
    both::<TensorView<'_, f64, 2>>();
    both::<TensorViewMut<'_, f32, 2>>();
    both::<Layout<3>>();
    both::<Window<2>>();
    both::<Error>();
    let mut t = Tensor::<i32, 2>::zeros([4, 2]).unwrap();
    let (mut low, mut high) = t.view_mut().split_at(0, 2).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| low.fill(1));
        scope.spawn(|| high.fill(2));
    });
    assert_eq!(t.as_slice(), [1, 1, 1, 1, 2, 2, 2, 2]);
}
