//! Which path computes a correlation.
#![forbid(unsafe_code)]

use super::Algorithm;
use super::correlation::Correlation;
use super::depthwise::Reach;
use super::emit::{Finish, channels_last};
use super::lanes;
use super::packed::PackedConvolution;
use super::pointwise::{merges, one_by_one};
use super::weights::{Cut, Filter, Weights};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::tile;
use crate::machine::{self, Isa};
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace;

/// Weights of a call.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    View(Filter<'a, T>),
    Packed(&'a PackedConvolution<T>),
}

/// A checked correlation: y[b, o, q] = finish(Σ w[o, c, t] · x[b, c, q · stride + start + t · dilation]).
#[derive(Clone, Copy)]
pub struct Call<'a, T> {
    pub(super) op: &'static str,
    pub(super) isa: Isa,
    pub(super) x: TensorView<'a, T, 5>,
    pub(super) w: Operand<'a, T>,
    pub(super) groups: usize,
    pub(super) kernel: [usize; 3],
    pub(super) stride: [usize; 3],
    pub(super) dilation: [usize; 3],
    pub(super) start: [isize; 3],
    pub(super) finish: Finish<'a, T>,
    pub(super) algorithm: Algorithm,
}

/// Paths of a correlation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Plain products over views: rows are pixels.
    PointwiseRows,
    /// Plain products over views, one for each image.
    PointwiseImages,
    /// Patches as rows: over weights packed for that, and where channels lie last.
    Patches,
    /// Groups of one input channel, or of a few and as many output channels: channels are lanes.
    Depthwise,
    /// Images are lanes.
    Images,
    /// Boxes of outputs, by patches in panels or in place, or by Winograd.
    Implicit,
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Path::PointwiseRows => "pixels",
            Path::PointwiseImages => "planes",
            Path::Patches => "patches",
            Path::Depthwise => "channels as lanes",
            Path::Images => "images as lanes",
            Path::Implicit => "boxes",
        }
    }
}

impl<'a, T: Element> Call<'a, T> {
    /// Computes `y`, `[images, groups · rows, depth, height, width]`.
    pub(super) fn run(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        let (call, vectors) = self.unpacked();
        match (call.path(y.shape(), y.strides(), vectors.is_some()), call.w) {
            (Path::PointwiseRows, _) => call.pixels(y),
            (Path::PointwiseImages, _) => call.images(y),
            (Path::Patches, Operand::Packed(packed)) => {
                call.patches(packed.columns().ok_or_else(|| packed.misfit(call.op))?.slab(), y)
            }
            (Path::Patches, Operand::View(w)) => call.patches_of(w, y),
            (Path::Depthwise, Operand::View(w)) => call.depthwise(w, vectors, y),
            (Path::Images, _) => match call.by_images(y.shape(), y.strides()) {
                Some(images) => images.run(y),
                None => call.implicit(y),
            },
            _ => call.implicit(y),
        }
    }

    /// Over the weights themselves where they are small groups' ones, which were packed beside them.
    fn unpacked(&self) -> (Self, Option<&[T]>) {
        let filter = if let Operand::Packed(packed) = self.w { packed.filter() } else { None };
        let Some((view, vectors)) = filter else { return (*self, None) };
        // What was packed keeps the algorithm that it was packed for.
        let call = Call { w: Operand::View(view), algorithm: Algorithm::ImplicitGemm, ..*self };
        (call, Some(vectors))
    }

    /// Says what a call does, where that is asked for.
    pub(super) fn trace(&self, w: [usize; 5], y: [usize; 5], strides: [isize; 5]) {
        machine::trace(|| {
            let (call, vectors) = self.unpacked();
            let path = call.path(y, strides, vectors.is_some());
            let (op, x, isa) = (self.op, self.x.shape(), self.isa);
            format!("{op} {x:?} by {w:?} to {y:?} {} {isa} path {}", T::NAME, path.name())
        });
    }

    /// Where its windows read.
    pub(super) fn reach(&self) -> Reach {
        let Call { kernel, stride, dilation, start, .. } = *self;
        Reach { kernel, stride, dilation, start }
    }

    /// `vectors`: the weights are there as kernels for small groups read them.
    fn path(&self, y: [usize; 5], strides: [isize; 5], vectors: bool) -> Path {
        let [images, channels, image @ ..] = self.x.shape();
        let Call { dilation, groups, .. } = *self;
        let packed = if let Operand::Packed(packed) = self.w { Some(packed) } else { None };
        // An input without channels has groups without any.
        if groups > 1 && channels == groups && packed.is_none() && self.reach().fits(1) {
            return Path::Depthwise;
        }
        let free = packed.is_none() && (vectors || self.algorithm.is_open());
        if free && self.fits_groups(y, strides, vectors) {
            return Path::Depthwise;
        }
        if self.by_images(y, strides).is_some() {
            return Path::Images;
        }
        let plain = self.plain(y);
        if packed.is_some_and(|packed| packed.columns().is_some()) {
            return if plain { Path::PointwiseRows } else { Path::Patches };
        }
        let all = |fits: &dyn Fn([usize; 5], [isize; 5]) -> bool| {
            self.images_of(y, strides).all(|(shape, strides)| fits(shape, strides))
        };
        let rows = |shape: [usize; 5], strides: [isize; 5]| {
            channels_last(shape, strides) && merges(shape, strides, &[0, 2, 3, 4])
        };
        let positions: usize = image.iter().product();
        let planes = || {
            let sizes = [y[1] / groups, channels / groups];
            self.planes_merge(y, strides)
                && (images == 1 || one_by_one(positions, tile::<T>(self.isa).lanes, sizes))
        };
        if let Operand::View(w) = self.w
            && !(plain && (all(&rows) || planes()))
            && groups == 1
            && y[1] >= CHANNELS
            && self.algorithm.is_open()
            && channels_last(self.x.shape(), self.x.strides())
            && channels_last(y, strides)
            // Rows of the image are read as they lie.
            && dilation[2] == 1
            && self.x.strides()[4] == channels as isize
            // Each run of pixels reads all weights.
            && (y[4] >= if plain || y[1] < MANY { 2 * RUN } else { RUN } || merges(y, strides, &[0, 2, 3, 4]))
            && images * y[2..].iter().product::<usize>() >= POSITIONS
            && self.winograd(w, y) == 0
        {
            return Path::Patches;
        }
        if !plain || packed.is_some_and(|packed| packed.rows().is_none()) {
            return Path::Implicit;
        }
        if packed.is_none() && all(&rows) {
            Path::PointwiseRows
        } else if planes() {
            Path::PointwiseImages
        } else {
            Path::Implicit
        }
    }

    /// [`patches`](Self::patches) with weights that are packed for it here.
    fn patches_of(&self, w: Filter<'_, T>, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let mut data = workspace::scratch(self.op, w.columns_len(self.op, self.isa)?)?;
        self.patches(w.columns(self.op, self.isa, &mut data)?, y)
    }

    /// As [`winograd`], for a call over `w`.
    pub(super) fn winograd(&self, w: Filter<'_, T>, [images, _, image @ ..]: [usize; 5]) -> usize {
        let plain = self.stride == [1; 3] && self.dilation == [1; 3];
        let positions = image.iter().fold(images, |positions, &size| positions * size);
        winograd(self.algorithm, w.sizes(self.groups), plain, Some(positions))
    }

    fn implicit(&self, y: TensorViewMut<'_, T, 5>) -> Result<()> {
        let mut scratch;
        let weights = match self.w {
            Operand::Packed(packed) => packed.weights().ok_or_else(|| packed.misfit(self.op))?,
            Operand::View(filter) => {
                let sizes = filter.sizes(self.groups);
                let winograd = self.winograd(filter, y.shape());
                let [rows, channels, kernel @ ..] = sizes;
                let depth = kernel.iter().fold(channels, |depth, taps| depth.saturating_mul(*taps));
                let pays = lanes::pays(tile::<T>(self.isa), rows, depth, y.shape()[4]);
                let cut = if self.algorithm.is_open() && pays && winograd == 0 {
                    Cut::lanes::<T>(self.isa, self.groups, sizes)
                } else {
                    Cut::new::<T>(self.isa, self.groups, sizes, winograd)
                };
                let in_place = if winograd == 0 && !cut.lanes { filter.in_place() } else { None };
                let mut data = &[][..];
                if in_place.is_none() {
                    scratch = workspace::scratch(self.op, cut.len(self.op)?)?;
                    filter.pack(self.op, &cut, &mut scratch)?;
                    data = &scratch;
                }
                Weights { cut, data, in_place }
            }
        };
        let Call { op, x, kernel, stride, dilation, start, finish, .. } = *self;
        let problem = Correlation { op, x, weights, kernel, stride, dilation, start, finish };
        let (shape, strides) = (y.shape(), y.strides());
        if !self.plain(shape) || !self.planes_merge(shape, strides) {
            return problem.run(y);
        }
        // Planes are single rows: they are read, or copied, and written in whole vectors then.
        let row = |[images, channels, image @ ..]: [usize; 5]| {
            [images, channels, 1, 1, image.iter().product::<usize>()]
        };
        let mut problem = Correlation { x: x.reshape(row(x.shape()))?, ..problem };
        if let Some(residual) = finish.residual {
            problem.finish.residual = Some(residual.reshape(row(shape))?);
        }
        problem.run(y.reshape(row(shape))?)
    }

    /// True where the positions of an image can be seen as one axis in all tensors.
    fn planes_merge(&self, y: [usize; 5], strides: [isize; 5]) -> bool {
        self.images_of(y, strides).all(|(shape, strides)| merges(shape, strides, &[2, 3, 4]))
    }

    /// True for a kernel of a single tap, with stride 1 and nothing padded: each output is a product with one pixel.
    fn plain(&self, y: [usize; 5]) -> bool {
        self.kernel == [1; 3]
            && self.stride == [1; 3]
            && self.start == [0; 3]
            && self.x.shape()[2..] == y[2..]
    }
}

/// Outputs along a side of the Winograd tiles for weights of these sizes a group, 0 for none. `plain`: stride and dilation
/// are 1. `positions` of the output, where they are known.
pub(super) fn winograd(
    algorithm: Algorithm,
    [rows, channels, kernel @ ..]: [usize; 5],
    plain: bool,
    positions: Option<usize>,
) -> usize {
    let fits = kernel == [1, 3, 3] && plain;
    match algorithm {
        Algorithm::Winograd4 if fits => 4,
        Algorithm::Winograd2 if fits => 2,
        Algorithm::Auto if fits && pays([rows, channels], positions) => 2,
        _ => 0,
    }
}

/// Whether Winograd's transforms pay, for tiles of 2, for so many channels out and in, and positions where they are known.
fn pays([rows, channels]: [usize; 2], positions: Option<usize>) -> bool {
    let (least, most) = (rows.min(channels), rows.max(channels));
    // What the transforms of pixels cost is shared by output channels, that of the filters by positions.
    least >= 16 && most >= 24 && positions.is_none_or(|n| n >= 192 && n >= most / 4 * 3)
}

/// Output channels from which on patches as rows pay.
const CHANNELS: usize = 4;
/// Output channels from which on they share well what a run of patches costs.
const MANY: usize = 32;
/// Outputs along a row from which on it is a run of its own for patches; twice as many where these are single pixels, or channels few.
const RUN: usize = 14;
/// Outputs from which on turning the weights in the call pays.
const POSITIONS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::{Convolution, Weight};
    use crate::tensor::Tensor;

    /// Weights as they are, packed, and packed for channels last.
    #[derive(Clone, Copy)]
    enum Form {
        View,
        Packed,
        PackedLast,
    }

    /// The path of a convolution from X to c_out channels, by square kernels.
    fn path(
        conv: Convolution<2>,
        x: [usize; 4],
        [c_out, kernel]: [usize; 2],
        last: bool,
        form: Form,
    ) -> Path {
        let [images, channels, height, width] = x;
        let order = if last { [0, 3, 1, 2] } else { [0, 1, 2, 3] };
        let stored = |[n, c, h, w]: [usize; 4]| if last { [n, h, w, c] } else { [n, c, h, w] };
        let w = Tensor::<f32, 4>::zeros([c_out, channels / conv.group_count(), kernel, kernel]).unwrap();
        let packed = match form {
            Form::View => None,
            Form::Packed => Some(conv.pack(w.view()).unwrap()),
            Form::PackedLast => Some(conv.pack_channels_last(w.view()).unwrap()),
        };
        let weight = packed.as_ref().map_or(Weight::View(w.view()), Weight::Packed);
        let x = Tensor::zeros(stored([images, channels, height, width])).unwrap();
        let x = x.view().permute(order).unwrap();
        let shape = conv.output_shape(x.shape(), w.shape()).unwrap();
        let y = Tensor::<f32, 4>::zeros(stored(shape)).unwrap();
        let y = y.view().permute(order).unwrap().lift();
        let call = conv.call("test", x, weight, None, None, shape).unwrap();
        let (call, vectors) = call.unpacked();
        call.path(y.shape(), y.strides(), vectors.is_some())
    }

    #[test]
    fn single_taps_are_products() {
        use Form::*;
        let (conv, strided) = (Convolution::<2>::new(), Convolution::new().stride([2, 2]));
        assert_eq!(path(conv, [8, 64, 14, 14], [256, 1], true, View), Path::PointwiseRows);
        assert_eq!(path(conv, [8, 64, 14, 14], [256, 1], false, View), Path::PointwiseImages);
        assert_eq!(path(conv, [8, 64, 14, 14], [256, 1], false, Packed), Path::PointwiseImages);
        assert_eq!(path(conv, [8, 64, 14, 14], [256, 1], true, PackedLast), Path::PointwiseRows);
        // Many channels of 49 pixels, unless there is one image only.
        assert_eq!(path(conv, [8, 512, 7, 7], [2048, 1], false, View), Path::Implicit);
        assert_eq!(path(conv, [8, 64, 8, 8], [64, 1], false, View), Path::PointwiseImages);
        assert_eq!(path(conv, [1, 512, 7, 7], [2048, 1], false, View), Path::PointwiseImages);
        assert_eq!(path(strided, [8, 64, 28, 28], [256, 1], false, View), Path::Implicit);
        assert_eq!(path(strided, [8, 64, 56, 56], [256, 1], true, View), Path::Patches);
        assert_eq!(path(strided, [8, 64, 56, 56], [256, 1], true, PackedLast), Path::Patches);
    }

    #[test]
    fn windows_are_rows_where_channels_lie_last() {
        use Form::*;
        let conv = Convolution::<2>::new().stride([2, 2]).padding([1, 1]);
        assert_eq!(path(conv, [1, 128, 56, 56], [128, 3], true, View), Path::Patches);
        assert_eq!(path(conv, [1, 128, 56, 56], [128, 3], false, View), Path::Implicit);
        assert_eq!(path(conv, [1, 128, 56, 56], [128, 3], true, PackedLast), Path::Patches);
        assert_eq!(path(conv, [1, 3, 224, 224], [64, 7], true, View), Path::Patches);
        // Few outputs, few output channels, another algorithm, and Winograd's.
        assert_eq!(path(conv, [1, 128, 14, 14], [128, 3], true, View), Path::Implicit);
        assert_eq!(path(conv, [1, 128, 56, 56], [16, 3], true, View), Path::Patches);
        assert_eq!(path(conv, [1, 128, 56, 56], [3, 3], true, View), Path::Implicit);
        let implicit = conv.algorithm(Algorithm::ImplicitGemm);
        assert_eq!(path(implicit, [1, 128, 56, 56], [128, 3], true, View), Path::Implicit);
        let dense = conv.stride([1, 1]);
        assert_eq!(path(dense, [1, 128, 56, 56], [128, 3], true, View), Path::Implicit);
        let direct = dense.algorithm(Algorithm::Direct);
        assert_eq!(path(direct, [1, 128, 56, 56], [128, 3], true, View), Path::Patches);
    }

    #[test]
    fn images_of_a_batch_are_lanes() {
        use Form::*;
        let (conv, strided) = (Convolution::<2>::new().padding([1, 1]), Convolution::new().stride([2, 2]));
        assert_eq!(path(strided, [64, 16, 14, 14], [32, 3], false, View), Path::Images);
        assert_eq!(path(conv, [64, 3, 32, 32], [16, 3], false, View), Path::Images);
        // Over weights packed before, too.
        assert_eq!(path(strided, [64, 16, 14, 14], [32, 3], false, Packed), Path::Images);
        assert_eq!(path(conv, [64, 8, 32, 32], [8, 3], true, PackedLast), Path::Images);
        // Pixels as neighbours over short sums, few images, Winograd's, another algorithm.
        assert_eq!(path(conv, [64, 3, 32, 32], [16, 3], true, PackedLast), Path::Patches);
        assert_eq!(path(strided, [8, 16, 14, 14], [32, 3], false, Packed), Path::Implicit);
        assert_eq!(path(conv, [64, 3, 32, 32], [16, 3], true, View), Path::Patches);
        // Pixels as neighbours: few channels, or sums that are long beside their number.
        assert_eq!(path(conv, [64, 8, 32, 32], [8, 3], true, View), Path::Images);
        assert_eq!(path(conv, [64, 3, 14, 14], [16, 3], true, View), Path::Images);
        assert_eq!(path(strided, [1, 16, 14, 14], [32, 3], false, View), Path::Implicit);
        assert_eq!(path(conv, [64, 16, 14, 14], [24, 3], false, View), Path::Implicit);
        assert_eq!(
            path(conv.algorithm(Algorithm::Direct), [64, 16, 14, 14], [24, 3], false, View),
            Path::Images
        );
        let implicit = strided.algorithm(Algorithm::ImplicitGemm);
        assert_eq!(path(implicit, [64, 16, 14, 14], [32, 3], false, View), Path::Implicit);
    }

    #[test]
    fn small_groups_are_lanes() {
        use Form::*;
        let conv = |groups| Convolution::<2>::new().padding([1, 1]).groups(groups);
        for last in [false, true] {
            for form in [View, if last { PackedLast } else { Packed }] {
                assert_eq!(path(conv(64), [1, 64, 14, 14], [64, 3], last, form), Path::Depthwise);
                assert_eq!(path(conv(64), [1, 64, 14, 14], [128, 3], last, form), Path::Depthwise);
                assert_eq!(path(conv(32), [1, 64, 14, 14], [64, 3], last, form), Path::Depthwise);
                assert_eq!(path(conv(2), [1, 64, 14, 14], [64, 3], last, form), Path::Implicit);
                assert_eq!(path(conv(32), [1, 64, 14, 14], [32, 3], last, form), Path::Implicit);
            }
        }
        let implicit = conv(32).algorithm(Algorithm::ImplicitGemm);
        assert_eq!(path(implicit, [1, 64, 14, 14], [64, 3], true, View), Path::Implicit);
        let direct = conv(32).algorithm(Algorithm::Direct);
        assert_eq!(path(direct, [1, 64, 14, 14], [64, 3], true, View), Path::Depthwise);
        assert_eq!(path(conv(64).stride([65, 1]), [1, 64, 99, 14], [128, 3], true, View), Path::Implicit);
    }

    #[test]
    fn winograd_wants_channels_and_positions() {
        let auto = |sizes, plain, positions| winograd(Algorithm::Auto, sizes, plain, positions);
        assert_eq!(auto([64, 64, 1, 3, 3], true, Some(3136)), 2);
        assert_eq!(auto([64, 64, 1, 3, 3], true, None), 2);
        assert_eq!(auto([64, 64, 1, 3, 3], false, None), 0);
        assert_eq!(auto([64, 64, 1, 5, 5], true, None), 0);
        assert_eq!(auto([64, 64, 2, 3, 3], true, None), 0);
        assert_eq!([191, 192].map(|n| auto([64, 64, 1, 3, 3], true, Some(n))), [0, 2]);
        assert_eq!([383, 384].map(|n| auto([512, 512, 1, 3, 3], true, Some(n))), [0, 2]);
        assert_eq!([[15, 64], [16, 23], [16, 24]].map(|[o, c]| auto([o, c, 1, 3, 3], true, None)), [0, 0, 2]);
        let four = |sizes, plain| winograd(Algorithm::Winograd4, sizes, plain, Some(1));
        assert_eq!([four([2, 2, 1, 3, 3], true), four([2, 2, 1, 3, 3], false)], [4, 0]);
        assert_eq!(winograd(Algorithm::Winograd2, [2, 2, 1, 3, 3], true, Some(1)), 2);
        for algorithm in [Algorithm::ImplicitGemm, Algorithm::Direct] {
            assert_eq!(winograd(algorithm, [64, 64, 1, 3, 3], true, None), 0);
        }
    }
}
