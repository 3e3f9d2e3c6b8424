//! Weights packed once for many convolutions.
#![forbid(unsafe_code)]

use super::depthwise;
use super::geometry::{Geometry, flip};
use super::weights::{Cut, Filter, Weights};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::Packed;
use crate::machine::{self, Isa};
use crate::spatial::Sliding;
use crate::tensor::TensorView;
use crate::workspace::{self, Aligned};

/// Weights packed by [`Convolution::pack`](super::Convolution::pack): a copy in the order in which the kernels read, and of few channels
/// one as they are.
///
/// It remembers the instruction set, the groups and the kernel's sizes; a call that differs refuses it.
pub struct PackedConvolution<T> {
    /// Of the weights: `[c_out, c_in / groups, kernel…]`, three spatial axes.
    pub(super) shape: [usize; 5],
    pub(super) flipped: bool,
    cut: Cut,
    form: Form<T>,
    /// The weights as they are, row-major, where [`depthwise`] or batches with images as lanes may take them.
    plain: Option<Aligned<T>>,
}

/// How packed weights lie.
enum Form<T> {
    /// Panels of a left operand, or Winograd's of a right one, group after group.
    Panels(Aligned<T>),
    /// Panels of one group whose kernel is a single tap, which plain products take too.
    Rows(Packed<T>),
    /// Weights of groups of one input channel, or of a few, as `depthwise` packs them.
    Depthwise(Aligned<T>),
    /// A right operand, its columns the output channels, its depth taps and the channels of each: for pixels as rows.
    Columns(Packed<T>),
}

impl<T: Element> PackedConvolution<T> {
    /// `single`: the kernel is a single tap, with stride 1 and nothing padded; `last`: channels lie last; `lanes`: groups are
    /// those that [`depthwise`] takes; `batches`: [`images`] may take the weights.
    pub(super) fn new(
        op: &'static str,
        w: TensorView<'_, T, 5>,
        groups: usize,
        flipped: bool,
        winograd: usize,
        [single, last, lanes, batches]: [bool; 4],
    ) -> Result<Self> {
        let isa = machine::isa()?;
        let view = flip(w, flipped)?;
        let filter = Filter::new(view);
        let cut = Cut::new::<T>(isa, groups, filter.sizes(groups), winograd);
        let zeros = |len| -> Result<Aligned<T>> {
            let mut data = workspace::try_vec(op, len)?;
            data.resize(len, T::ZERO);
            Ok(data)
        };
        let mut plain = None;
        if lanes || batches {
            let to = plain.insert(zeros(view.len())?);
            to.iter_mut().zip(view).for_each(|(to, &from)| *to = from);
        }
        let packed = |form| Ok(Self { shape: w.shape(), flipped, cut, form, plain });
        if groups == 1 && last && winograd == 0 {
            let [rows, ..] = w.shape();
            let taps_first = view.permute([0, 2, 3, 4, 1])?.to_tensor()?;
            let matrix = taps_first.view().reshape([rows, cut.depth])?;
            return packed(Form::Columns(Packed::rhs(matrix.transpose())?));
        }
        if groups == 1 && single {
            let matrix = w.select::<4>(4, 0)?.select::<3>(3, 0)?.select::<2>(2, 0)?;
            return packed(Form::Rows(Packed::lhs(matrix)?));
        }
        if lanes {
            return packed(Form::Depthwise(depthwise::pack(op, &filter, groups, w.shape())?));
        }
        let mut data = zeros(cut.len(op)?)?;
        T::pack(&filter, op, &cut, &mut data)?;
        packed(Form::Panels(data))
    }

    /// Weights of small groups as a view, and as [`depthwise::pack`] has them.
    pub(super) fn filter(&self) -> Option<(Filter<'_, T>, &[T])> {
        if let Form::Depthwise(vectors) = &self.form { Some((self.plain()?, vectors)) } else { None }
    }

    /// The weights as they are, where they were kept.
    pub(super) fn plain(&self) -> Option<Filter<'_, T>> {
        TensorView::from_slice(self.plain.as_deref()?, self.shape).ok().map(Filter::new)
    }

    /// The panels, where they are those of [`Weights`].
    pub(super) fn weights(&self) -> Option<Weights<'_, T>> {
        let (cut, data) = match &self.form {
            Form::Panels(data) => (self.cut, &data[..]),
            Form::Rows(packed) => {
                let slab = packed.slab();
                (Cut { kc: slab.kc(), width: slab.width(), ..self.cut }, packed.panels())
            }
            Form::Depthwise(..) | Form::Columns(_) => return None,
        };
        Some(Weights { cut, data, in_place: None })
    }

    /// A left operand `[c_out, c_in]` of plain products.
    pub(super) fn rows(&self) -> Option<&Packed<T>> {
        if let Form::Rows(packed) = &self.form { Some(packed) } else { None }
    }

    /// Multiplications for each output.
    pub(super) fn depth(&self) -> usize {
        self.cut.depth
    }

    /// Neighbouring outputs that are computed together: a side of a Winograd tile.
    pub(super) fn unit(&self) -> usize {
        self.cut.winograd.max(1)
    }

    /// A right operand `[taps · c_in, c_out]`.
    pub(super) fn columns(&self) -> Option<&Packed<T>> {
        if let Form::Columns(packed) = &self.form { Some(packed) } else { None }
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.cut.isa
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        let len = match &self.form {
            Form::Panels(data) => data.len(),
            Form::Depthwise(vectors) => vectors.len(),
            Form::Rows(packed) | Form::Columns(packed) => packed.panels().len(),
        };
        (len + self.plain.as_deref().map_or(0, <[T]>::len)) * size_of::<T>()
    }

    /// An error where they were packed for something else than a call like this.
    pub(super) fn check<const S: usize>(
        &self,
        op: &'static str,
        isa: Isa,
        &Geometry { groups, flipped, .. }: &Geometry<S>,
        sliding: &Sliding,
    ) -> Result<()> {
        let [rows, channels, d, h, w] = self.shape;
        let sizes = [rows / groups.max(1), channels, d, h, w];
        // The algorithm is the one that was chosen when they were packed, unless it cannot do this.
        let winograd = if sliding.is_plain() { self.cut.winograd } else { 0 };
        let current = Cut::new::<T>(isa, groups, sizes, winograd);
        let columns = self.columns().is_some();
        if self.cut == current && self.flipped == flipped {
            return Ok(());
        }
        Err(Error::Packed {
            op,
            arg: "weight",
            found: self.describe(),
            expected: describe(&current, flipped, columns),
        })
    }

    /// The error of a path that cannot take weights of this form.
    pub(super) fn misfit(&self, op: &'static str) -> Error {
        let expected = describe(&self.cut, self.flipped, self.columns().is_none());
        Error::Packed { op, arg: "weight", found: self.describe(), expected }
    }

    fn describe(&self) -> String {
        describe(&self.cut, self.flipped, self.columns().is_some())
    }
}

fn describe(cut: &Cut, flipped: bool, columns: bool) -> String {
    let turned = if flipped { ", turned" } else { "" };
    let last = if columns { ", for channels last" } else { "" };
    let tiles = match cut.winograd {
        0 => String::new(),
        outputs => format!(", for Winograd's tiles of {outputs} by {outputs}"),
    };
    format!("{} with {} groups{tiles}{turned}{last}", cut.isa, cut.groups)
}

impl<T> std::fmt::Debug for PackedConvolution<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedConvolution")
            .field("shape", &self.shape)
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}
