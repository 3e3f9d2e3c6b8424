//! Convolutions one after the other, some rows at a time: what lies between them stays in cache.
//!
//! ```text
//! for some images, or for each                         tasks: images, else rows of the output
//!     for each strip of rows of the output             as many as let all that lies between stay in L2
//!         for each convolution: the rows that the next one reads and that are not there yet
//! ```
//!
//! Rows that two strips read are kept, those that two tasks read are computed by both. Each convolution adds up as it does
//! alone, images as lanes excepted: neither strips nor tasks change a bit.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::emit::channels_last;
use super::geometry::{Geometry, Padding, expect, lift, lower};
use super::packed::PackedConvolution;
use super::{Algorithm, Convolution, Weight};
use crate::element::Element;
use crate::error::{Dims, Error, Result};
use crate::gemm::{GRAIN, balanced, blocks};
use crate::machine;
use crate::parallel;
use crate::spatial::{ImageRank, Sliding, Spatial};
use crate::tensor::{Tensor, TensorView, TensorViewMut};
use crate::workspace;

/// A convolution of a [`Chain`], with its packed weights and its bias `[c_out]`.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a, T, const S: usize> {
    convolution: Convolution<S>,
    weight: &'a PackedConvolution<T>,
    bias: Option<TensorView<'a, T, 1>>,
}

impl<'a, T, const S: usize> Link<'a, T, S> {
    /// Weights packed by [`Convolution::pack`] or [`Convolution::pack_channels_last`].
    pub fn new(
        convolution: Convolution<S>,
        weight: &'a PackedConvolution<T>,
        bias: Option<TensorView<'a, T, 1>>,
    ) -> Self {
        Self { convolution, weight, bias }
    }
}

/// Convolutions that run as one, each over what the one before gives: the blocks of networks for inference, such as
/// MobileNetV2's expansion, depthwise convolution and projection, whose widest tensor is never written to memory.
///
/// The result is that of the convolutions one by one, in every bit; in batches whose images fill vectors, over few channels, but for
/// rounding.
///
/// ```
/// use tilewise::{Tensor, activation::Activation, conv::{Chain, Convolution, Link}};
/// let wide = Convolution::<2>::new().activation(Activation::Relu);
/// let depthwise = Convolution::<2>::new().padding([1, 1]).groups(6);
/// let w = wide.pack(Tensor::<f32, 4>::full([6, 2, 1, 1], 0.5)?.view())?;
/// let v = depthwise.pack(Tensor::<f32, 4>::full([6, 1, 3, 3], 1.0)?.view())?;
/// let chain = Chain::new([Link::new(wide, &w, None), Link::new(depthwise, &v, None)]);
///
/// let x = Tensor::<f32, 4>::full([1, 2, 3, 3], 1.0)?;
/// let y = chain.forward(x.view())?;
/// assert_eq!(y.as_slice()[..5], [4.0, 6.0, 4.0, 6.0, 9.0]);
/// assert_eq!(y, depthwise.forward(wide.forward(x.view(), &w, None)?.view(), &v, None)?);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a, T, const S: usize, const L: usize> {
    links: [Link<'a, T, S>; L],
}

impl<'a, T: Element, const S: usize, const L: usize> Chain<'a, T, S, L> {
    /// At least one link, the first over X.
    pub fn new(links: [Link<'a, T, S>; L]) -> Self {
        const { assert!(L > 0, "a chain without links") };
        Self { links }
    }

    /// The shape of Y.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), where shapes or options are wrong.
    pub fn output_shape<const N: usize>(&self, x: [usize; N]) -> Result<[usize; N]>
    where
        Spatial<S>: ImageRank<N>,
    {
        Ok(self.stages("Chain::output_shape", x)?[L - 1].output)
    }

    /// Y `[batch, c_out, spatial…]` from X `[batch, c_in, spatial…]`.
    ///
    /// # Errors
    /// As [`Convolution::forward`] for each of the links.
    pub fn forward<const N: usize>(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>>
    where
        Spatial<S>: ImageRank<N>,
    {
        let op = "Chain::forward";
        let mut y = Tensor::zeros(self.stages(op, x.shape())?[L - 1].output)?;
        self.run(op, x, None, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Shape`] where `y` has another shape. Nothing is written then.
    pub fn forward_into<const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.run("Chain::forward_into", x, None, y)
    }

    /// [`forward_into`](Self::forward_into) with a residual of Y's shape, added before the last activation.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_add_into<const N: usize>(
        &self,
        x: TensorView<'_, T, N>,
        residual: TensorView<'_, T, N>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        self.run("Chain::forward_add_into", x, Some(residual), y)
    }

    fn stages<const N: usize>(&self, op: &'static str, x: [usize; N]) -> Result<[Stage<N>; L]>
    where
        Spatial<S>: ImageRank<N>,
    {
        let none = Sliding { kernel: [1; 3], stride: [1; 3], dilation: [1; 3], padding: [[0; 2]; 3] };
        let mut stages = [Stage { sliding: none, input: x, output: x, unit: 1, work: 0 }; L];
        let mut input = x;
        for (stage, link) in stages.iter_mut().zip(&self.links) {
            let Link { convolution, weight, bias } = link;
            let bias = bias.map(|bias| bias.len());
            let sizes = convolution.geometry.forward(op, lift(input), weight.shape, bias)?;
            let output = lower(sizes.output);
            let len = output.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
            let len = len.filter(|&len| isize::try_from(len).is_ok());
            let len = len.ok_or_else(|| Error::Overflow { op, shape: Dims::new(&output) })?;
            let (unit, work) = (weight.unit(), len.saturating_mul(weight.depth()));
            *stage = Stage { sliding: sizes.sliding, input, output, unit, work };
            input = output;
        }
        Ok(stages)
    }

    fn run<const N: usize>(
        &self,
        op: &'static str,
        x: TensorView<'_, T, N>,
        residual: Option<TensorView<'_, T, N>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()>
    where
        Spatial<S>: ImageRank<N>,
    {
        let (stages, isa) = (self.stages(op, x.shape())?, machine::isa()?);
        for (link, stage) in self.links.iter().zip(&stages) {
            link.weight.check(op, isa, &link.convolution.geometry, &stage.sliding)?;
        }
        let expected = stages[L - 1].output;
        for (arg, found) in [("residual", residual.map(|r| r.shape())), ("y", Some(y.shape()))] {
            expect(op, arg, S, lift(found.unwrap_or(expected)), lift(expected))?;
        }
        if let [link] = &self.links[..] {
            return link.convolution.run(op, x, Weight::Packed(link.weight), link.bias, residual, y);
        }
        if y.is_empty() {
            return Ok(());
        }
        let work = stages.iter().fold(0, |work: usize, stage| work.saturating_add(stage.work));
        let last = channels_last(x.shape(), x.strides());
        let room = machine::caches().l2 / 2 / size_of::<T>();
        let walk = Walk { op, links: &self.links, stages: &stages, x, residual, last, room };
        let tasks = parallel::threads_for(work, GRAIN);
        machine::trace(|| {
            let path = if last { "channels last" } else { "planes" };
            format!("{op} x {:?} y {:?} {} {L} links {path} {tasks} tasks", x.shape(), y.shape(), T::NAME)
        });
        walk.split(y, [0, 0], tasks)
    }
}

/// A link over images of a known size.
#[derive(Clone, Copy)]
struct Stage<const N: usize> {
    sliding: Sliding,
    input: [usize; N],
    output: [usize; N],
    /// Rows that are computed together, from a multiple of it on.
    unit: usize,
    /// Multiplications.
    work: usize,
}

impl<const N: usize> Stage<N> {
    /// Rows of the input under so many of the output, padding among them.
    fn span(&self, rows: usize) -> usize {
        let Sliding { kernel, stride, dilation, .. } = self.sliding;
        let axis = 5 - N;
        ((rows - 1) * stride[axis]).saturating_add((kernel[axis] - 1) * dilation[axis] + 1)
    }

    /// The rows of the input under some of the output, and the padding before and behind them.
    fn under(&self, rows: &Range<usize>) -> (Range<usize>, [usize; 2]) {
        let axis = 5 - N;
        let before = self.sliding.padding[axis][0];
        let first = rows.start * self.sliding.stride[axis];
        let end = first.saturating_add(self.span(rows.len()));
        let behind = before + self.input[2];
        let padding = [before.clamp(first, end) - first, end - behind.clamp(first, end)];
        let inside = |at: usize| at.clamp(before, behind) - before;
        (inside(first)..inside(end), padding)
    }

    /// Elements of a row of the output.
    fn row(&self) -> usize {
        self.output[1] * self.output[3..].iter().product::<usize>()
    }
}

/// A call with at least two links.
struct Walk<'w, T, const S: usize, const L: usize, const N: usize> {
    op: &'static str,
    links: &'w [Link<'w, T, S>; L],
    stages: &'w [Stage<N>; L],
    x: TensorView<'w, T, N>,
    residual: Option<TensorView<'w, T, N>>,
    /// The channels of what lies between are neighbours, as those of X.
    last: bool,
    /// Elements that may lie between the convolutions at a time.
    room: usize,
}

impl<T: Element, const S: usize, const L: usize, const N: usize> Walk<'_, T, S, L, N>
where
    Spatial<S>: ImageRank<N>,
{
    /// Computes the part `y`, whose first image and row are `at` in the output, in `tasks` tasks.
    fn split(&self, y: TensorViewMut<'_, T, N>, at: [usize; 2], tasks: usize) -> Result<()> {
        if tasks <= 1 {
            return parallel::alone(|| self.walk(y, at));
        }
        let (images, rows, unit) = (y.shape()[0], y.shape()[2], self.stages[L - 1].unit);
        let (half, parts) = (tasks / 2, rows.div_ceil(unit));
        let (axis, middle) = if images.is_multiple_of(tasks) || images >= 4 * tasks {
            (0, images * half / tasks)
        } else if parts >= tasks && self.pays(rows, tasks) {
            (2, (parts * half / tasks).clamp(1, parts - 1) * unit)
        } else {
            // All threads in each of the convolutions.
            return self.walk(y, at);
        };
        let (low, high) = y.split_at(axis, middle)?;
        let mut next = at;
        next[axis / 2] += middle;
        let (first, second) =
            parallel::join(|| self.split(low, at, half), || self.split(high, next, tasks - half));
        first.and(second)
    }

    /// True where tasks of so many rows compute hardly more than is there.
    fn pays(&self, rows: usize, tasks: usize) -> bool {
        let rooms = self.rooms(rows.div_ceil(tasks));
        let whole = self.rooms(rows);
        let fits =
            |(&room, whole): (&usize, usize)| room.saturating_mul(6 * tasks) <= whole.saturating_mul(7);
        rooms.iter().zip(whole).all(fits)
    }

    /// Rows of each output that are there at most while so many of the last one's are computed.
    fn rooms(&self, rows: usize) -> [usize; L] {
        let (mut rooms, mut rows) = ([0; L], rows);
        for (room, stage) in rooms.iter_mut().zip(self.stages).rev() {
            *room = rows.saturating_add(2 * (stage.unit - 1)).clamp(1, stage.output[2].max(1));
            rows = stage.span(*room);
        }
        rooms
    }

    /// Elements between the convolutions for so many rows of an image.
    fn between(&self, rows: usize) -> usize {
        let rooms = self.rooms(rows).into_iter().zip(self.stages).take(L - 1);
        rooms.fold(0, |sum, (room, stage)| sum.saturating_add(room.saturating_mul(stage.row())))
    }

    /// Images and rows that are taken at a time.
    fn strip(&self, images: usize, rows: usize) -> [usize; 2] {
        let (room, all) = (self.room, self.between(rows));
        if all <= room {
            return [(room / all.max(1)).clamp(1, images), rows];
        }
        let (mut fits, mut exceeds) = (0, rows);
        while exceeds - fits > 1 {
            let middle = (fits + exceeds) / 2;
            if self.between(middle) <= room { fits = middle } else { exceeds = middle }
        }
        let unit = self.stages[L - 1].unit;
        [1, balanced(rows, (fits / unit * unit).max(unit), unit)]
    }

    /// Computes the part `y` in strips.
    fn walk(&self, mut y: TensorViewMut<'_, T, N>, at: [usize; 2]) -> Result<()> {
        let (images, rows) = (y.shape()[0], y.shape()[2]);
        let [group, strip] = self.strip(images, rows);
        let (rooms, mut starts, mut len) = (self.rooms(strip), [0; L], 0usize);
        for ((start, room), stage) in starts.iter_mut().zip(rooms).zip(self.stages).take(L - 1) {
            *start = len;
            len = room
                .checked_mul(stage.row())
                .and_then(|n| n.checked_mul(group)?.checked_add(len))
                .ok_or(Error::Alloc { op: self.op, bytes: usize::MAX })?;
        }
        let mut data = workspace::scratch(self.op, len)?;
        for images in blocks(0..images, group) {
            let x = self.x.slice(0, at[0] + images.start..at[0] + images.end, 1)?;
            let mut between =
                Between { x, rooms, starts, there: [const { 0..0 }; L], data: &mut data, last: self.last };
            for rows in blocks(0..rows, strip) {
                let mut part = [images.clone(), rows.clone()];
                let y = y.view_mut().slice(0, part[0].clone(), 1)?.slice(2, part[1].clone(), 1)?;
                for (part, at) in part.iter_mut().zip(at) {
                    *part = part.start + at..part.end + at;
                }
                let [images, rows] = part;
                let residual = match self.residual {
                    Some(residual) => Some(residual.slice(0, images, 1)?.slice(2, rows.clone(), 1)?),
                    None => None,
                };
                let (under, padding) = self.stages[L - 1].under(&rows);
                self.make(L - 2, &under, &mut between)?;
                let x = between.rows(self.stages, L - 2, under)?;
                self.link(&self.links[L - 1], &self.stages[L - 1], padding, x, residual, y)?;
            }
        }
        Ok(())
    }

    /// Sees to it that these rows of link `i`'s output are there.
    fn make(&self, i: usize, rows: &Range<usize>, between: &mut Between<'_, T, L, N>) -> Result<()> {
        let stage = &self.stages[i];
        let all = stage.output[2];
        let first = rows.start / stage.unit * stage.unit;
        let end = rows.end.next_multiple_of(stage.unit).min(all);
        between.forget(stage, i, first);
        let new = between.there[i].end..end;
        if new.is_empty() {
            return Ok(());
        }
        let (under, padding) = stage.under(&new);
        if i > 0 {
            self.make(i - 1, &under, between)?;
        }
        between.there[i].end = end;
        let (x, y) = between.pair(self.stages, i, under, new)?;
        self.link(&self.links[i], stage, padding, x, None, y)
    }

    /// A convolution with `padding` instead of its own along the rows.
    fn link(
        &self,
        link: &Link<'_, T, S>,
        stage: &Stage<N>,
        padding: [usize; 2],
        x: TensorView<'_, T, N>,
        residual: Option<TensorView<'_, T, N>>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let mut sides: [[usize; 2]; S] = std::array::from_fn(|axis| stage.sliding.padding[3 - S + axis]);
        sides[0] = padding;
        let geometry = Geometry { padding: Padding::Sides(sides), ..link.convolution.geometry };
        // The weights know how they were packed. Images are no lanes here: whether that pays depends on the rows there are.
        let convolution = Convolution { geometry, algorithm: Algorithm::ImplicitGemm, ..link.convolution };
        let weight = Weight::Packed(link.weight);
        let call = convolution.call(self.op, x, weight, link.bias, residual, y.shape())?;
        T::correlate(&call, y.lift())
    }
}

/// What lies between the convolutions, of some images.
struct Between<'b, T, const L: usize, const N: usize> {
    x: TensorView<'b, T, N>,
    /// Of each output, how many rows there is room for, where they begin in `data`, and which are there.
    rooms: [usize; L],
    starts: [usize; L],
    there: [Range<usize>; L],
    data: &'b mut [T],
    last: bool,
}

impl<T: Element, const L: usize, const N: usize> Between<'_, T, L, N> {
    /// Rows of output `i` before `first` are no longer needed: those behind move to the front.
    fn forget(&mut self, stage: &Stage<N>, i: usize, first: usize) {
        let there = self.there[i].clone();
        let kept = there.end.saturating_sub(first);
        self.there[i] = first..first + kept;
        // Without channels there is nothing to move, however many rows.
        if kept == 0 || first == there.start || stage.row() == 0 {
            return;
        }
        let images = self.x.shape()[0];
        let (planes, row) = if self.last {
            (images, stage.row())
        } else {
            (images * stage.output[1], stage.row() / stage.output[1])
        };
        let from = (first - there.start) * row;
        let all = self.data[self.starts[i]..].chunks_exact_mut(self.rooms[i] * row);
        all.take(planes).for_each(|plane| plane.copy_within(from..from + kept * row, 0));
    }

    /// The shape of output `i` as it lies in `data`, and the order of its axes.
    fn shape(&self, stages: &[Stage<N>; L], i: usize) -> ([usize; N], [usize; N]) {
        let mut shape = stages[i].output;
        (shape[0], shape[2]) = (self.x.shape()[0], self.rooms[i]);
        if !self.last {
            return (shape, std::array::from_fn(|axis| axis));
        }
        shape[1..].rotate_left(1);
        let order = std::array::from_fn(|axis| match axis {
            0 => 0,
            1 => N - 1,
            _ => axis - 1,
        });
        (shape, order)
    }

    fn rows(&self, stages: &[Stage<N>; L], i: usize, rows: Range<usize>) -> Result<TensorView<'_, T, N>> {
        let (shape, order) = self.shape(stages, i);
        let len: usize = shape.iter().product();
        let view = TensorView::from_slice(&self.data[self.starts[i]..][..len], shape)?.permute(order)?;
        let first = self.there[i].start;
        view.slice(2, rows.start - first..rows.end - first, 1)
    }

    /// Rows that link `i` reads, and rows that it writes.
    fn pair(
        &mut self,
        stages: &[Stage<N>; L],
        i: usize,
        under: Range<usize>,
        new: Range<usize>,
    ) -> Result<(TensorView<'_, T, N>, TensorViewMut<'_, T, N>)> {
        let (shape, order) = self.shape(stages, i);
        let len: usize = shape.iter().product();
        let before = (i > 0).then(|| self.shape(stages, i - 1));
        let (low, high) = self.data.split_at_mut(self.starts[i]);
        let first = self.there[i].start;
        let y = TensorViewMut::from_slice(&mut high[..len], shape)?.permute(order)?;
        let y = y.slice(2, new.start - first..new.end - first, 1)?;
        let x = match before {
            None => self.x.slice(2, under, 1)?,
            Some((shape, order)) => {
                let len: usize = shape.iter().product();
                let x = TensorView::from_slice(&low[self.starts[i - 1]..][..len], shape)?.permute(order)?;
                let first = self.there[i - 1].start;
                x.slice(2, under.start - first..under.end - first, 1)?
            }
        };
        Ok((x, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::conv::Algorithm;
    use crate::random::Rng;

    /// Uniform numbers, of which [`seen`] is a view of this shape.
    fn random<const N: usize>(rng: &mut Rng, mut shape: [usize; N], last: bool) -> Tensor<f32, N> {
        shape[1..].rotate_left(usize::from(last));
        Tensor::from_fn(shape, |_| rng.uniform(-1.0, 1.0)).unwrap()
    }

    fn seen<const N: usize>(tensor: &Tensor<f32, N>, last: bool) -> TensorView<'_, f32, N> {
        let order = std::array::from_fn(|axis| if axis == 1 { N - 1 } else { axis - axis.min(1) });
        if last { tensor.view().permute(order).unwrap() } else { tensor.view() }
    }

    /// A chain of random links over random images, in strips and tasks of all kinds, and the links one by one.
    fn check<const S: usize, const N: usize>(rng: &mut Rng)
    where
        Spatial<S>: ImageRank<N>,
    {
        let last = rng.below(2) == 1;
        let mut shape = [0; N];
        shape.fill_with(|| 5 + rng.below(9));
        (shape[0], shape[1]) = (rng.below(4), 1 + rng.below(20));
        let x = random(rng, shape, last);
        let mut parts = Vec::new();
        for _ in 0..3 {
            // Of one channel each, or of two or four.
            let few = [1, 2, 4][rng.below(3)];
            let depthwise = rng.below(3) == 0 && shape[1] > 0 && shape[1] % few == 0;
            let algorithms = [Algorithm::Auto, Algorithm::Direct, Algorithm::Winograd2, Algorithm::Winograd4];
            let algorithm = algorithms[rng.below(4)];
            let plain = rng.below(2) == 0;
            let convolution = Convolution::<S>::new()
                .stride(std::array::from_fn(|_| if plain { 1 } else { 1 + rng.below(3) }))
                .dilation(std::array::from_fn(|_| if plain { 1 } else { 1 + rng.below(2) }))
                .padding_sides(std::array::from_fn(|_| [rng.below(5), 3 + rng.below(2)]))
                .groups(if depthwise { shape[1] / few } else { 1 })
                .flipped(rng.below(2) == 1)
                .activation([Activation::Relu, Activation::Tanh][rng.below(2)])
                .algorithm(algorithm);
            let mut w = [1 + rng.below(3); N];
            w[1] = if depthwise { few } else { shape[1] };
            w[0] = if depthwise { shape[1] } else { rng.below(40) };
            let w = random(rng, w, false);
            shape = convolution.output_shape(shape, w.shape()).unwrap();
            let bias = Tensor::<f32, 1>::from_fn([shape[1]], |_| rng.uniform(-1.0, 1.0)).unwrap();
            parts.push((convolution, w, bias));
        }
        let residual = random(rng, shape, last);
        for &isa in machine::supported() {
            machine::with_isa(isa, || {
                let packed: Vec<_> = parts
                    .iter()
                    .map(|(conv, w, _)| {
                        if last { conv.pack_channels_last(w.view()) } else { conv.pack(w.view()) }.unwrap()
                    })
                    .collect();
                let links: [_; 3] =
                    std::array::from_fn(|i| Link::new(parts[i].0, &packed[i], Some(parts[i].2.view())));
                let mut between = seen(&x, last).to_tensor().unwrap();
                let mut expected = Tensor::zeros(shape).unwrap();
                for (i, link) in links.iter().enumerate() {
                    let order = std::array::from_fn(|axis| match axis {
                        0 => 0,
                        axis if last => axis % (N - 1) + 1,
                        axis => axis,
                    });
                    let stored = between.view().permute(order).unwrap().to_tensor().unwrap();
                    let x = seen(&stored, last);
                    if i < 2 {
                        between = link.convolution.forward(x, link.weight, link.bias).unwrap();
                    } else {
                        let (residual, y) = (seen(&residual, last), expected.view_mut());
                        link.convolution.forward_add_into(x, link.weight, link.bias, residual, y).unwrap();
                    }
                }
                let chain = Chain::new(links);
                let stages = chain.stages("test", seen(&x, last).shape()).unwrap();
                for (room, tasks) in [(usize::MAX, 1), (0, 1), (500, 1), (2000, 2), (0, 3), (2000, 7)] {
                    let (x, residual) = (seen(&x, last), Some(seen(&residual, last)));
                    let walk =
                        Walk { op: "test", links: &chain.links, stages: &stages, x, residual, last, room };
                    let mut y = Tensor::full(shape, f32::NAN).unwrap();
                    if !expected.is_empty() {
                        walk.split(y.view_mut(), [0, 0], tasks).unwrap();
                    }
                    assert!(y == expected, "{isa}, room {room}, {tasks} tasks: {parts:?} {shape:?}");
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn strips_and_tasks_change_no_bit() {
        let mut rng = Rng::seed(7);
        for _ in 0..150 {
            check::<2, 4>(&mut rng);
            check::<1, 3>(&mut rng);
        }
    }

    /// The image has padding along its depth, its strips have none: what is read in place there must be so in the image too.
    #[test]
    fn strips_of_planes_change_no_bit() {
        let mut rng = Rng::seed(8);
        let x = random(&mut rng, [1, 6, 9, 140, 5], true);
        let (w, v) = (random(&mut rng, [6, 1, 1, 3, 3], false), random(&mut rng, [6, 6, 1, 1, 1], false));
        let bias = Tensor::<f32, 1>::from_fn([6], |_| rng.uniform(-1.0, 1.0)).unwrap();
        let point = Convolution::<3>::new();
        let few = point.padding([1, 1, 1]).stride([1, 65, 1]).groups(6);
        for &isa in machine::supported() {
            machine::with_isa(isa, || {
                let (w, v) =
                    (few.pack_channels_last(w.view()).unwrap(), point.pack_channels_last(v.view()).unwrap());
                let links = [Link::new(few, &w, Some(bias.view())), Link::new(point, &v, None)];
                let chain = Chain::new(links);
                let x = seen(&x, true);
                let between = few.forward(x, &w, Some(bias.view())).unwrap();
                let stored = between.view().permute([0, 2, 3, 4, 1]).unwrap().to_tensor().unwrap();
                let expected = point.forward(seen(&stored, true), &v, None).unwrap();
                let stages = chain.stages("test", x.shape()).unwrap();
                let walk = Walk {
                    op: "test",
                    links: &chain.links,
                    stages: &stages,
                    x,
                    residual: None,
                    last: true,
                    room: 0,
                };
                let mut y = Tensor::full(expected.shape(), f32::NAN).unwrap();
                walk.split(y.view_mut(), [0, 0], 1).unwrap();
                assert!(y == expected, "{isa}");
            })
            .unwrap();
        }
    }
}
