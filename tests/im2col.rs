//! im2col and col2im against their scalar twins.

mod common;

use common::geometry::{Problem, image};
use common::{Strided, bits, in_pools, quickcheck};
use quickcheck::{Arbitrary, Gen};
use tilewise::conv::{Im2col, PatchOrder};
use tilewise::reference::conv::columns;
use tilewise::{Element, ImageRank, Spatial, Tensor, TensorView};

#[derive(Clone, Debug)]
struct Case<T, const S: usize, const N: usize> {
    problem: Problem<S, N>,
    x: Strided<T, N>,
    dx: Strided<T, N>,
    matrix: Strided<T, 2>,
    last: bool,
    parallel: bool,
}

impl<T: Element, const S: usize, const N: usize> Arbitrary for Case<T, S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem = Problem::<S, N>::arbitrary(g);
        let count = |sizes: [usize; S]| sizes.iter().product::<usize>();
        let matrix = [problem.batch * count(problem.output), problem.c_in * count(problem.kernel)];
        Case {
            problem,
            x: image(g, problem.x()),
            dx: image(g, problem.x()),
            matrix: Strided::random(g, matrix),
            last: bool::arbitrary(g),
            parallel: bool::arbitrary(g),
        }
    }
}

/// The patch matrix with columns (tap, channel) from the one with (channel, tap).
fn reorder(matrix: Tensor<f64, 2>, channels: usize, taps: usize, last: bool) -> Tensor<f64, 2> {
    if !last {
        return matrix;
    }
    let from = |column: usize| column % channels * taps + column / channels;
    Tensor::from_fn(matrix.shape(), |[row, column]| *matrix.get([row, from(column)]).unwrap()).unwrap()
}

fn check<T: Element, const S: usize, const N: usize>(mut case: Case<T, S, N>) -> bool
where
    Spatial<S>: ImageRank<N>,
{
    let Problem { geometry: g, kernel, c_in, .. } = case.problem;
    let taps = kernel.iter().product();
    let order = if case.last { PatchOrder::ChannelsLast } else { PatchOrder::ChannelsFirst };
    let patches = Im2col::<S>::new(kernel).stride(g.stride).padding_sides(g.padding).dilation(g.dilation);
    let patches = patches.order(order);
    assert_eq!(patches.shape(case.x.shape), Ok(case.matrix.shape));

    // What is written before is what is summed: any values do.
    let matrix = case.matrix.view().to_tensor().unwrap();
    let natural = Tensor::from_fn(matrix.shape(), |[row, column]| {
        let at = if case.last { column % taps * c_in + column / taps } else { column };
        *matrix.get([row, at]).unwrap()
    });
    let natural = natural.unwrap();
    let expected = columns::col2im(&g, natural.view(), case.dx.shape, kernel).unwrap();
    let abs = Tensor::from_fn(natural.shape(), |at| natural.get(at).unwrap().abs()).unwrap();
    let size = columns::col2im(&g, abs.view(), case.dx.shape, kernel).unwrap();
    case.dx.view_mut().fill(T::NAN);
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(if case.parallel { 3 } else { 1 }).build().unwrap();
    pool.install(|| patches.col2im_into(case.matrix.view(), case.dx.view_mut())).unwrap();
    let bound = 2.0 * T::EPSILON.to_f64() * (taps as f64 + 1.0);
    for ((found, expected), size) in case.dx.view().iter().zip(&expected).zip(&size) {
        assert!((found.to_f64() - expected).abs() <= bound * size, "{found} {expected}");
    }
    assert_eq!(patches.col2im(case.matrix.view(), case.dx.shape).unwrap().view(), case.dx.view());

    let expected = columns::im2col(&g, case.x.view(), kernel).unwrap();
    let expected = reorder(expected, c_in, taps, case.last);
    case.matrix.view_mut().fill(T::NAN);
    pool.install(|| patches.im2col_into(case.x.view(), case.matrix.view_mut())).unwrap();
    let found = case.matrix.view();
    assert!(found.iter().map(|x| x.to_f64()).eq(expected.iter().copied()), "im2col");
    assert!(patches.im2col(case.x.view()).unwrap().view() == found);

    case.matrix.canaries_live() && case.dx.canaries_live()
}

#[test]
fn equals_the_reference_in_one_dimension() {
    quickcheck(300, check::<f32, 1, 3> as fn(Case<f32, 1, 3>) -> bool);
}

#[test]
fn equals_the_reference_in_two_dimensions() {
    quickcheck(200, check::<f32, 2, 4> as fn(Case<f32, 2, 4>) -> bool);
    quickcheck(100, check::<f64, 2, 4> as fn(Case<f64, 2, 4>) -> bool);
}

#[test]
fn equals_the_reference_in_three_dimensions() {
    quickcheck(100, check::<f32, 3, 5> as fn(Case<f32, 3, 5>) -> bool);
}

/// Large enough for many tasks, and for blocks of channels.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let shape = [2, 35, 61, 59];
    let mut t = 0.1;
    let x = Tensor::<f32, 4>::from_fn(shape, |_| {
        t += 0.7;
        f64::sin(t * t) as f32
    });
    let x = x.unwrap();
    for order in [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast] {
        let patches = Im2col::<2>::new([3, 2]).padding([1, 0]).stride([1, 2]).order(order);
        let results = in_pools(|| {
            let matrix = patches.im2col(x.view()).unwrap();
            let back = patches.col2im(matrix.view(), shape).unwrap();
            [bits(matrix.as_slice()), bits(back.as_slice())]
        });
        assert!(results.iter().all(|result| *result == results[0]));
        // Each pixel comes back as often as windows see it.
        let ones = Tensor::full(shape, 1.0).unwrap();
        let seen = patches.col2im(patches.im2col(ones.view()).unwrap().view(), shape).unwrap();
        let expected = |[_, _, y, _]: [usize; 4]| if y == 0 || y == 60 { 2.0 } else { 3.0 };
        let expected = Tensor::from_fn(shape, |at| if at[3] < 58 { expected(at) } else { 0.0 }).unwrap();
        assert!(seen == expected);
    }
}

#[test]
fn bad_input_is_an_error_and_nothing_is_written() {
    let image = Tensor::<f32, 4>::full([1, 2, 4, 5], 1.0).unwrap();
    let mut matrix = Tensor::<f32, 2>::full([6, 18], 7.0).unwrap();
    let mut dx = Tensor::<f32, 4>::full([1, 2, 4, 5], 7.0).unwrap();
    let patches = Im2col::<2>::new([3, 3]);
    let text = |result: tilewise::Result<()>| result.unwrap_err().to_string();
    let into = |patches: Im2col<2>, matrix: &mut Tensor<f32, 2>| {
        text(patches.im2col_into(image.view(), matrix.view_mut()))
    };
    let big = usize::MAX;
    let cases = [
        (
            into(Im2col::new([5, 3]), &mut matrix),
            "Im2col::im2col_into: kernel (dilated) has shape [5, 3], expected [4, 5]",
        ),
        (
            into(Im2col::new([3, 3]).dilation([1, 3]), &mut matrix),
            "Im2col::im2col_into: kernel (dilated) has shape [3, 7], expected [4, 5]",
        ),
        (
            into(Im2col::new([0, 3]), &mut matrix),
            "Im2col::im2col_into: kernel is [0, 3], expected sizes of at least 1",
        ),
        (
            into(patches.stride([1, 0]), &mut matrix),
            "Im2col::im2col_into: stride is [1, 0], expected sizes of at least 1",
        ),
        (
            into(patches.dilation([0, 1]), &mut matrix),
            "Im2col::im2col_into: dilation is [0, 1], expected sizes of at least 1",
        ),
        (
            into(patches.dilation([big, 1]), &mut matrix),
            "Im2col::im2col_into: the sizes of shape [3, 3] overflow",
        ),
        (
            into(patches.padding_sides([[0, 0], [big, 1]]), &mut matrix),
            "Im2col::im2col_into: the sizes of shape [4, 5] overflow",
        ),
        (
            into(patches.padding([1 << 40, 1 << 40]), &mut matrix),
            "Im2col::im2col_into: the sizes of shape [1, 2, 4, 5] overflow",
        ),
        (
            into(patches.padding([1, 0]), &mut matrix),
            "Im2col::im2col_into: matrix has shape [6, 18], expected [12, 18]",
        ),
        (
            text(patches.col2im_into(matrix.view(), dx.view_mut().slice(3, 1.., 1).unwrap())),
            "Im2col::col2im_into: matrix has shape [6, 18], expected [4, 18]",
        ),
        (
            text(patches.col2im(matrix.view(), [big, 1, 4, 5]).map(|_| ())),
            "Im2col::col2im: the sizes of shape [18446744073709551615, 1, 4, 5] overflow",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    assert!(matrix.iter().chain(&dx).all(|&x| x == 7.0));
    let most = patches.padding([1 << 30, 1 << 24]).im2col(image.view());
    assert!(matches!(most, Err(tilewise::Error::Alloc { .. })));
}

#[test]
fn a_single_tap_may_be_dilated_and_moved_by_any_number() {
    let x = TensorView::from_slice(&[1.0, 2.0, 3.0], [1, 1, 3]).unwrap();
    let patches = Im2col::<1>::new([1]).dilation([usize::MAX]).stride([usize::MAX]);
    let matrix = patches.im2col(x).unwrap();
    assert_eq!(matrix.as_slice(), [1.0]);
    assert_eq!(patches.col2im(matrix.view(), [1, 1, 3]).unwrap().as_slice(), [1.0, 0.0, 0.0]);
    // An image of nothing has windows over its padding.
    let nothing = Tensor::<f32, 3>::zeros([1, 2, 0]).unwrap();
    let matrix = Im2col::<1>::new([2]).padding([2]).im2col(nothing.view()).unwrap();
    assert!(matrix == Tensor::zeros([3, 4]).unwrap());
    assert!(Im2col::<1>::new([2]).padding([2]).col2im(matrix.view(), [1, 2, 0]).unwrap().is_empty());
}
