//! Random convolutions: sizes that fit, with every option awkward at times.

use quickcheck::{Arbitrary, Gen};
use tilewise::Element;
use tilewise::reference::conv::Geometry;

use super::{Strided, within};

/// The sizes of a convolution over `S` spatial axes, images of rank `N`. The kernel always fits the padded image.
#[derive(Clone, Copy, Debug)]
pub struct Problem<const S: usize, const N: usize> {
    pub geometry: Geometry<S>,
    pub batch: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub image: [usize; S],
    pub kernel: [usize; S],
    pub output: [usize; S],
}

impl<const S: usize, const N: usize> Problem<S, N> {
    pub fn x(&self) -> [usize; N] {
        join(self.batch, self.c_in, self.image)
    }

    pub fn weight(&self) -> [usize; N] {
        join(self.c_out, self.c_in / self.geometry.groups, self.kernel)
    }

    pub fn y(&self) -> [usize; N] {
        join(self.batch, self.c_out, self.output)
    }

    /// Many output channels for few positions.
    pub fn few(g: &mut Gen) -> Self {
        let mut few = Self::arbitrary(g);
        (few.geometry.groups, few.batch) = (1, within(g, 1..3));
        few.geometry.flipped &= within(g, 0..4) == 0;
        (few.c_in, few.c_out) = (mostly(g, &[1, 3], &[8, 17]), mostly(g, &[48, 64], &[100]));
        let outputs = std::array::from_fn(|_| within(g, 1..4));
        few.fit(g, outputs);
        few
    }

    /// As many images as fill vectors, or nearly, over few channels.
    pub fn many(g: &mut Gen) -> Self {
        let mut many = Self::arbitrary(g);
        (many.geometry.groups, many.batch) = (1, mostly(g, &[4, 7, 8, 13, 16], &[14, 17, 31, 33]));
        (many.c_in, many.c_out) = (mostly(g, &[1, 2, 3], &[4, 5, 8]), mostly(g, &[3, 4, 8], &[6, 7, 13, 17]));
        for axis in 0..S {
            many.geometry.stride[axis] = many.geometry.stride[axis].min(2);
        }
        let most = if S == 3 { 4 } else { 8 };
        let outputs = std::array::from_fn(|_| within(g, 1..most));
        many.fit(g, outputs);
        many
    }

    /// An image on which as many windows as `outputs` says fit, or more where the padding alone holds more.
    fn fit(&mut self, g: &mut Gen, outputs: [usize; S]) {
        let Geometry { stride, dilation, padding, .. } = self.geometry;
        for axis in 0..S {
            let extent = dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = (outputs[axis] - 1) * stride[axis] + extent + within(g, 0..stride[axis]);
            let pads = padding[axis][0] + padding[axis][1];
            // A window over padding alone is legal.
            self.image[axis] = padded.saturating_sub(pads);
            self.output[axis] = (self.image[axis] + pads - extent) / stride[axis] + 1;
        }
    }

    /// Terms of the sums that give an element of Y, dX, dW and db.
    pub fn terms(&self) -> [usize; 4] {
        let count = |sizes: [usize; S]| sizes.iter().product::<usize>();
        let (taps, windows, groups) = (count(self.kernel), count(self.output), self.geometry.groups);
        let windows = self.batch * windows;
        [self.c_in / groups * taps, self.c_out / groups * taps, windows, windows]
    }
}

fn join<const S: usize, const N: usize>(first: usize, second: usize, sizes: [usize; S]) -> [usize; N] {
    std::array::from_fn(|axis| [first, second].get(axis).copied().unwrap_or_else(|| sizes[axis - 2]))
}

/// One of the first with odds of three quarters, else one of the others.
fn mostly(g: &mut Gen, usual: &[usize], others: &[usize]) -> usize {
    let list = if within(g, 0..4) > 0 { usual } else { others };
    *g.choose(list).expect("not empty")
}

impl<const S: usize, const N: usize> Arbitrary for Problem<S, N> {
    fn arbitrary(g: &mut Gen) -> Self {
        let depthwise = within(g, 0..4) == 0;
        let groups = if depthwise {
            mostly(g, &[2, 5, 16], &[17, 33, 70])
        } else {
            mostly(g, &[1, 1, 2], &[3, 4, 17])
        };
        let (per_input, per_output) = match depthwise || within(g, 0..4) == 0 {
            true => (1, mostly(g, &[1], &[2, 3])),
            false => (mostly(g, &[1, 2, 3, 5], &[0, 8, 16]), mostly(g, &[1, 2, 4, 7], &[0, 12, 13, 33])),
        };
        let small = groups > 4;
        let (per_input, per_output) =
            if small { (per_input.min(2), per_output.min(2)) } else { (per_input, per_output) };
        let mut geometry = Geometry { groups, flipped: within(g, 0..4) == 0, ..Geometry::new() };
        let (mut kernel, mut outputs) = ([0; S], [0; S]);
        // What most networks have is tried as often as all that they have not.
        let usual = within(g, 0..3) == 0;
        for axis in 0..S {
            let last = axis + 1 == S;
            kernel[axis] = if usual { 3 } else { mostly(g, &[1, 2, 3], &[4, 5, 7]) };
            let (mut stride, mut dilation, mut padding) = (1, 1, [1, 1]);
            if !usual {
                stride = mostly(g, &[1, 1, 2], &[3, 5]);
                dilation = mostly(g, &[1], &[2, 3]);
                padding = [mostly(g, &[0, 1, 2], &[4, 9]), mostly(g, &[0, 1, 2], &[4, 9])];
            }
            let windows = match (S, last) {
                (3, _) => mostly(g, &[1, 2, 3], &[4, 5]),
                (_, true) => mostly(g, &[1, 4, 7, 8, 14, 16, 17], &[15, 31, 33, 40]),
                _ => mostly(g, &[1, 2, 3, 4], &[6, 7, 8]),
            };
            (geometry.stride[axis], geometry.dilation[axis], geometry.padding[axis]) =
                (stride, dilation, padding);
            outputs[axis] = windows;
        }
        let batch = mostly(g, &[1, 2], &[0, 3, 5]);
        let (c_in, c_out) = (groups * per_input, groups * per_output);
        let mut problem = Self { geometry, batch, c_in, c_out, image: [0; S], kernel, output: [0; S] };
        problem.fit(g, outputs);
        problem
    }
}

/// An image with random strides, or stored as NHWC.
pub fn image<T: Element, const N: usize>(g: &mut Gen, shape: [usize; N]) -> Strided<T, N> {
    let mut stored = Strided::random(g, shape);
    if within(g, 0..3) > 0 {
        return stored;
    }
    let (mut next, mut strides) = (1, [0; N]);
    for axis in [1].into_iter().chain((2..N).rev()).chain([0]) {
        strides[axis] = next as isize;
        next *= shape[axis].max(1);
    }
    let values: Vec<T> = stored.view().iter().copied().collect();
    stored.data = vec![T::from_f64(super::CANARY); next + 2 * super::MARGIN];
    (stored.strides, stored.offset) = (strides, super::MARGIN);
    let values = tilewise::TensorView::from_slice(&values, shape).expect("as many");
    stored.view_mut().assign(values).expect("one shape");
    stored
}
