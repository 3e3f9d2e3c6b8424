//! The leaky ReLU whose slopes are tensors: a parameter of its own for each channel, for example.

use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine::{self, Isa};
use crate::parallel;
use crate::simd::{Simd, SimdOp, kernels};
use crate::tensor::{self, TensorView, TensorViewMut};
use crate::vecmath::map_vectors;

/// y = x for x > 0, else slope·x, for views of any strides. The slope has x's rank, and its axes of size 1 broadcast:
/// `[1, channels, 1, 1]` is one slope a channel.
///
/// Source: K. He et al., "Delving deep into rectifiers" (ICCV 2015).
///
/// # Errors
/// [`Error::Shape`] where y has another shape or the slope does not broadcast to it.
///
/// ```
/// use tilewise::{Tensor, TensorView, activation};
/// let x = TensorView::from_slice(&[-1.0f32, 2.0, -3.0, -4.0], [2, 2])?;
/// let slope = TensorView::from_slice(&[0.5, 0.25], [1, 2])?;
/// let mut y = Tensor::zeros([2, 2])?;
/// activation::prelu(x, slope, y.view_mut())?;
/// assert_eq!(y.as_slice(), [-0.5, 2.0, -1.5, -1.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn prelu<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    slope: TensorView<'_, T, N>,
    y: TensorViewMut<'_, T, N>,
) -> Result<()> {
    const OP: &str = "activation::prelu";
    let slope = broadcast(OP, slope, x.shape())?;
    expect(OP, "y", &y.shape(), &x.shape())?;
    let isa = machine::isa()?;
    machine::trace(|| format!("{OP} {:?} {} {isa}", y.shape(), T::NAME));
    tensor::map([x, slope], y, 1, &|[x, slope], y| T::slopes(isa, Forward { x, slope, y }))
}

/// The gradients of [`prelu`], each overwritten where it is wanted: dx = dy for x > 0, else slope·dy, and for the slope
/// Σ dy·x over the elements that it served and x ≤ 0.
///
/// # Errors
/// [`Error::Shape`] where shapes do not fit.
///
/// ```
/// use tilewise::{Tensor, TensorView, activation};
/// let x = TensorView::from_slice(&[-1.0f32, 2.0, -3.0, -4.0], [2, 2])?;
/// let slope = TensorView::from_slice(&[0.5, 0.25], [1, 2])?;
/// let dy = TensorView::from_slice(&[1.0, 1.0, 1.0, 10.0], [2, 2])?;
/// let (mut dx, mut d_slope) = (Tensor::zeros([2, 2])?, Tensor::zeros([1, 2])?);
/// activation::prelu_backward(x, slope, dy, Some(dx.view_mut()), Some(d_slope.view_mut()))?;
/// assert_eq!(dx.as_slice(), [0.5, 1.0, 0.5, 2.5]);
/// assert_eq!(d_slope.as_slice(), [-4.0, -40.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn prelu_backward<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    slope: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    dx: Option<TensorViewMut<'_, T, N>>,
    d_slope: Option<TensorViewMut<'_, T, N>>,
) -> Result<()> {
    const OP: &str = "activation::prelu_backward";
    let wide = broadcast(OP, slope, x.shape())?;
    expect(OP, "dy", &dy.shape(), &x.shape())?;
    dx.as_ref().map_or(Ok(()), |dx| expect(OP, "dx", &dx.shape(), &x.shape()))?;
    d_slope.as_ref().map_or(Ok(()), |d_slope| expect(OP, "d_slope", &d_slope.shape(), &slope.shape()))?;
    let isa = machine::isa()?;
    machine::trace(|| format!("{OP} {:?} {} {isa}", x.shape(), T::NAME));
    if let Some(dx) = dx {
        tensor::map([x, wide, dy], dx, 1, &|[x, slope, dy], dx| {
            T::slope_chains(isa, Backward { x, slope, dy, dx })
        })?;
    }
    let Some(mut d_slope) = d_slope else { return Ok(()) };
    let shape = slope.shape();
    let mut index = [0; N];
    for _ in 0..slope.len() {
        let (mut x, mut dy) = (x, dy);
        for axis in (0..N).filter(|&axis| shape[axis] > 1) {
            let range = index[axis]..index[axis] + 1;
            (x, dy) = (x.slice(axis, range.clone(), 1)?, dy.slice(axis, range, 1)?);
        }
        if let Some(d_slope) = d_slope.get_mut(index) {
            *d_slope = T::from_f64(tree(x, dy, parallel::tasks(x.len(), LEAF) > 1)?);
        }
        for axis in (0..N).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(())
}

fn broadcast<'a, T, const N: usize>(
    op: &'static str,
    slope: TensorView<'a, T, N>,
    shape: [usize; N],
) -> Result<TensorView<'a, T, N>> {
    slope.broadcast(shape).map_err(|_| Error::shape(op, "slope", &slope.shape(), &shape))
}

/// Elements of a leaf of the summation tree, at most.
const LEAF: usize = 1 << 14;

/// Σ dy·x over x ≤ 0, halved along the first axis that can be: the tree depends on the shape alone.
fn tree<T: Element, const N: usize>(
    x: TensorView<'_, T, N>,
    dy: TensorView<'_, T, N>,
    parallel: bool,
) -> Result<f64> {
    let shape = x.shape();
    let axis = (0..N).find(|&axis| shape[axis] > 1);
    let Some(axis) = axis.filter(|_| x.len() > LEAF) else {
        let term = |(&x, &dy): (&T, &T)| if x > T::ZERO { 0.0 } else { dy.to_f64() * x.to_f64() };
        return Ok(match (x.as_slice(), dy.as_slice()) {
            (Some(x), Some(dy)) => x.iter().zip(dy).map(term).sum(),
            _ => x.iter().zip(dy).map(term).sum(),
        });
    };
    let ((low, high), (low_dy, high_dy)) =
        (x.split_at(axis, shape[axis] / 2)?, dy.split_at(axis, shape[axis] / 2)?);
    let (first, second) = (|| tree(low, low_dy, parallel), || tree(high, high_dy, parallel));
    let (first, second) = if parallel { parallel::join(first, second) } else { (first(), second()) };
    Ok(first? + second?)
}

kernels! {
    /// Element types with their parametric rectified linear units.
    pub trait Prelus {
        /// f of a run.
        fn slopes(isa: Isa, op: Forward<'_, Self>);

        /// The chain rule through it.
        fn slope_chains(isa: Isa, op: Backward<'_, Self>);
    }
}

pub struct Forward<'a, T> {
    x: &'a [T],
    slope: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Forward { x: src, slope, y } = self;
        map_vectors!(s, y, |x in src, a in slope| s.select(s.lt(s.splat(T::ZERO), x), x, s.mul(a, x)));
    }
}

pub struct Backward<'a, T> {
    x: &'a [T],
    slope: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
}

impl<T: Element> SimdOp<T> for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn eval<S: Simd<T>>(self, s: S) {
        let Backward { x: src, slope, dy, dx } = self;
        map_vectors!(s, dx, |x in src, a in slope, g in dy| {
            s.select(s.lt(s.splat(T::ZERO), x), g, s.mul(a, g))
        });
    }
}
