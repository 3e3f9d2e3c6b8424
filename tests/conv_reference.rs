//! The two textbook ways to the gradients of a convolution agree with each other and with literals.

mod common;

use common::{Strided, geometry::Problem, quickcheck};
use quickcheck::{Arbitrary, Gen};
use tilewise::reference::conv::{self, Geometry, columns, naive};
use tilewise::{Tensor, TensorView};

#[derive(Clone, Debug)]
struct Case<const S: usize, const N: usize> {
    problem: Problem<S, N>,
    x: Strided<f64, N>,
    weight: Strided<f64, N>,
    dy: Strided<f64, N>,
}

impl<const S: usize, const N: usize> Arbitrary for Case<S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let problem = Problem::arbitrary(g);
        Case {
            problem,
            x: Strided::random(g, problem.x()),
            weight: Strided::random(g, problem.weight()),
            dy: Strided::random(g, problem.y()),
        }
    }
}

fn close<const N: usize>(what: &str, a: &Tensor<f64, N>, b: &Tensor<f64, N>) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let most = a.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    let far = a.iter().zip(b).position(|(a, b)| (a - b).abs() > 1e-12 * most);
    assert_eq!(far, None, "{what}");
}

fn dot<const N: usize>(a: TensorView<'_, f64, N>, b: TensorView<'_, f64, N>) -> f64 {
    a.iter().zip(b.iter()).map(|(a, b)| a * b).sum()
}

fn agree<const S: usize, const N: usize>(case: Case<S, N>) -> bool {
    let (g, x, weight, dy) = (&case.problem.geometry, case.x.view(), case.weight.view(), case.dy.view());
    let (dx, dw, db) = columns::backward(g, x, weight, dy).unwrap();
    close("dx", &dx, &naive::backward_input(g, dy, weight, case.problem.image).unwrap());
    close("dw", &dw, &naive::backward_weight(g, x, dy, case.problem.kernel).unwrap());
    close("db", &db, &naive::backward_bias(dy).unwrap());

    // What the output size leaves over of the image is what the transposed convolution must be told.
    let y = conv::forward(g, x, weight, None).unwrap();
    assert_eq!(y.shape(), dy.shape());
    let remainder = std::array::from_fn(|axis| {
        let padded = case.problem.image[axis] + g.padding[axis][0] + g.padding[axis][1];
        (padded - g.dilation[axis] * (case.problem.kernel[axis] - 1) - 1) % g.stride[axis]
    });
    close("transposed", &dx, &conv::transposed(g, remainder, dy, weight, None).unwrap());

    // <dY, conv(X)> is linear in X and in W: it is <dX, X> and <dW, W>.
    let (forward, size) = (dot(dy, y.view()), 1e-12 * (1.0 + dot(dy, dy) + dot(y.view(), y.view())));
    (forward - dot(dx.view(), x)).abs() <= size && (forward - dot(dw.view(), weight)).abs() <= size
}

#[test]
fn both_ways_agree_in_one_dimension() {
    quickcheck(200, agree::<1, 3> as fn(Case<1, 3>) -> bool);
}

#[test]
fn both_ways_agree_in_two_dimensions() {
    quickcheck(100, agree::<2, 4> as fn(Case<2, 4>) -> bool);
}

#[test]
fn both_ways_agree_in_three_dimensions() {
    quickcheck(40, agree::<3, 5> as fn(Case<3, 5>) -> bool);
}

/// A 3x3 image under a 2x2 kernel, by hand.
#[test]
fn literals() {
    let x = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [1, 1, 3, 3]).unwrap();
    let w = TensorView::from_slice(&[1.0, 0.0, 0.0, -1.0], [1, 1, 2, 2]).unwrap();
    let asymmetric = TensorView::from_slice(&[1.0, 10.0, 100.0, 1000.0], [1, 1, 2, 2]).unwrap();
    let bias = TensorView::from_slice(&[0.5], [1]).unwrap();
    let plain = Geometry::<2>::new();
    let forward = |g: &Geometry<2>, w| conv::forward(g, x, w, Some(bias)).unwrap();
    assert_eq!(forward(&plain, w).as_slice(), [-3.5; 4]);
    assert_eq!(forward(&plain, asymmetric).as_slice(), [5421.5, 6532.5, 8754.5, 9865.5]);
    let flipped = Geometry { flipped: true, ..plain };
    assert_eq!(forward(&flipped, asymmetric).as_slice(), [1245.5, 2356.5, 4578.5, 5689.5]);
    // Along both axes the taps of one window are at −1 and 1, those of the other at 1 and 3: all see the middle only.
    let sparse = Geometry { stride: [2, 2], padding: [[1, 1]; 2], dilation: [2, 2], ..plain };
    assert_eq!(forward(&sparse, w).as_slice(), [-4.5, 0.5, 0.5, 5.5]);
    assert_eq!(forward(&sparse, asymmetric).as_slice(), [5000.5, 500.5, 50.5, 5.5]);
}

#[test]
fn kernels_that_do_not_fit_are_errors() {
    let x = Tensor::<f64, 4>::zeros([1, 1, 2, 4]).unwrap();
    let w = Tensor::<f64, 4>::zeros([1, 1, 3, 3]).unwrap();
    let error = |g: Geometry<2>| conv::forward(&g, x.view(), w.view(), None).unwrap_err().to_string();
    assert_eq!(
        error(Geometry::new()),
        "reference::conv: kernel (dilated) has shape [1, 3, 3], expected [1, 2, 4]"
    );
    let apart = Geometry { dilation: [1, usize::MAX], padding: [[1, 1]; 2], ..Geometry::new() };
    assert_eq!(error(apart), "reference::conv: the sizes of shape [1, 3, 3] overflow");
    let still = Geometry { stride: [0, 1], padding: [[1, 1]; 2], ..Geometry::new() };
    assert_eq!(error(still), "reference::conv: stride is 0, expected at least 1");
    let groups = Geometry { groups: 2, padding: [[1, 1]; 2], ..Geometry::new() };
    assert_eq!(error(groups), "reference::conv: groups is 2, expected a divisor of both channels");
}
