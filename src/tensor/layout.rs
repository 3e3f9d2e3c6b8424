//! Shapes and strides. All arithmetic on sizes that come from a caller is checked here and nowhere else.
#![forbid(unsafe_code)]

use crate::error::{Dims, Error, Result, Strides, expect_axis};

/// Shape and strides of a view of rank `N`, in elements.
///
/// The element with index `[i₀, …]` lies `Σ iₐ · strideₐ` elements from the one with index 0. Strides are
/// signed; a stride of 0 repeats an element. Two facts hold for every `Layout`, so that kernels need no
/// checks of their own: the product of the sizes (zeros left out) fits in `isize`, and so does the
/// distance between any two elements.
///
/// ```
/// use tilewise::Layout;
/// let layout = Layout::contiguous([2, 3])?;
/// assert_eq!(layout.strides(), [3, 1]);
/// assert_eq!(layout.len(), 6);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout<const N: usize> {
    shape: [usize; N],
    strides: [isize; N],
}

impl<const N: usize> Layout<N> {
    /// A layout with these strides.
    ///
    /// # Errors
    /// [`Error::Overflow`] where a size or a distance does not fit in `isize`.
    pub fn new(shape: [usize; N], strides: [isize; N]) -> Result<Self> {
        Self::checked("Layout::new", shape, strides)
    }

    /// The row-major layout: the last axis is contiguous.
    ///
    /// # Errors
    /// [`Error::Overflow`] where the number of elements does not fit in `isize`.
    pub fn contiguous(shape: [usize; N]) -> Result<Self> {
        Self::dense("Layout::contiguous", shape)
    }

    /// [`contiguous`](Self::contiguous) of an operation that its errors name.
    pub(crate) fn dense(op: &'static str, shape: [usize; N]) -> Result<Self> {
        let mut strides = [0; N];
        let mut next = 1isize;
        for axis in (0..N).rev() {
            strides[axis] = next;
            next = isize::try_from(shape[axis].max(1))
                .ok()
                .and_then(|n| next.checked_mul(n))
                .ok_or_else(|| Error::Overflow { op, shape: Dims::new(&shape) })?;
        }
        Ok(Self { shape, strides })
    }

    pub(crate) fn checked(op: &'static str, shape: [usize; N], strides: [isize; N]) -> Result<Self> {
        let fits = || -> Option<()> {
            let (mut len, mut low, mut high) = (1isize, 0isize, 0isize);
            for axis in 0..N {
                len = len.checked_mul(isize::try_from(shape[axis].max(1)).ok()?)?;
                let reach =
                    isize::try_from(shape[axis].saturating_sub(1)).ok()?.checked_mul(strides[axis])?;
                if reach < 0 { low = low.checked_add(reach)? } else { high = high.checked_add(reach)? }
            }
            high.checked_sub(low)?;
            Some(())
        };
        fits().ok_or_else(|| Error::Overflow { op, shape: Dims::new(&shape) })?;
        Ok(Self { shape, strides })
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> [usize; N] {
        self.shape
    }

    /// The distances between neighbours along each axis, in elements.
    pub fn strides(&self) -> [isize; N] {
        self.strides
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True where a size is 0.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// True where the elements lie one after the other in row-major order, without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut next = 1isize;
        for axis in (0..N).rev() {
            if self.shape[axis] > 1 && self.strides[axis] != next {
                return self.is_empty();
            }
            next = next.wrapping_mul(self.shape[axis] as isize);
        }
        true
    }

    /// Distance of an element from the one with index 0, or `None` where the index is outside the shape.
    #[inline]
    pub fn offset(&self, index: [usize; N]) -> Option<isize> {
        let mut offset = 0isize;
        for axis in 0..N {
            if index[axis] >= self.shape[axis] {
                return None;
            }
            // Wraps only where an axis that follows has size 0.
            offset = offset.wrapping_add((index[axis] as isize).wrapping_mul(self.strides[axis]));
        }
        Some(offset)
    }

    /// Lowest and highest distance of any element from the one with index 0. (0, 0) for an empty layout.
    pub fn span(&self) -> (isize, isize) {
        let (mut low, mut high) = (0, 0);
        if !self.is_empty() {
            for axis in 0..N {
                let reach = (self.shape[axis] - 1) as isize * self.strides[axis];
                if reach < 0 { low += reach } else { high += reach }
            }
        }
        (low, high)
    }

    /// True where two indices might reach one element.
    ///
    /// The axes must nest: taken from the smallest stride to the largest, each stride must be larger than
    /// the span of those before it. Every layout made by permuting, flipping, slicing or reshaping a
    /// contiguous one nests; some exotic layouts without any overlap do not, and count as overlapping.
    pub fn may_overlap(&self) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut axes: [(usize, usize); N] =
            std::array::from_fn(|axis| (self.strides[axis].unsigned_abs(), self.shape[axis]));
        sort_few(&mut axes, |&axis| axis);
        let mut span = 0usize;
        for (stride, n) in axes {
            if n > 1 {
                if stride <= span {
                    return true;
                }
                span += (n - 1) * stride;
            }
        }
        false
    }

    /// Checks that every element lies in a slice of `len` elements whose element `offset` has index 0.
    pub(crate) fn check_bounds(&self, op: &'static str, offset: usize, len: usize) -> Result<()> {
        let (low, high) = self.span();
        let inside = self.is_empty()
            || isize::try_from(offset).is_ok_and(|at| {
                at.checked_add(low).is_some_and(|first| first >= 0)
                    && at.checked_add(high).is_some_and(|last| (last as usize) < len)
            });
        if inside {
            return Ok(());
        }
        Err(Error::OutOfBounds {
            op,
            shape: Dims::new(&self.shape),
            strides: Strides::new(&self.strides),
            offset,
            len,
        })
    }

    pub(crate) fn check_disjoint(&self, op: &'static str) -> Result<()> {
        if !self.may_overlap() {
            return Ok(());
        }
        Err(Error::Overlap { op, shape: Dims::new(&self.shape), strides: Strides::new(&self.strides) })
    }

    // The following give the layout of a derived view and, where it can differ, the distance of its
    // first element from this layout's. They reach no element that this layout does not reach.

    pub(crate) fn permute(&self, axes: [usize; N]) -> Result<Self> {
        let mut seen = [false; N];
        for &axis in &axes {
            if axis >= N || std::mem::replace(&mut seen[axis], true) {
                return Err(Error::argument("permute", "axes", Dims::new(&axes), "each axis once"));
            }
        }
        Ok(Self { shape: axes.map(|axis| self.shape[axis]), strides: axes.map(|axis| self.strides[axis]) })
    }

    /// Where the part that begins at `at` begins, and its layout. The caller keeps it inside.
    #[inline(always)]
    pub(crate) fn tile(&self, at: [usize; N], shape: [usize; N]) -> (isize, Self) {
        let inside =
            (0..N).all(|axis| shape[axis] <= self.shape[axis] && at[axis] <= self.shape[axis] - shape[axis]);
        assert!(inside, "a tile lies inside its matrix");
        // Strides of an axis of one element may be anything, and are not used where there is an element.
        let offset = (0..N)
            .fold(0isize, |sum, axis| sum.wrapping_add((at[axis] as isize).wrapping_mul(self.strides[axis])));
        (offset, Self { shape, strides: self.strides })
    }

    pub(crate) fn transpose(&self) -> Self {
        let mut reversed = *self;
        reversed.shape.reverse();
        reversed.strides.reverse();
        reversed
    }

    pub(crate) fn flip(&self, axis: usize) -> Result<(isize, Self)> {
        expect_axis("flip", axis, N)?;
        let mut flipped = *self;
        let last = if self.is_empty() { 0 } else { (self.shape[axis] - 1) as isize };
        // A stride of isize::MIN can stand only where it is never multiplied by more than 0.
        flipped.strides[axis] = self.strides[axis].checked_neg().unwrap_or(0);
        Ok((last * self.strides[axis], flipped))
    }

    pub(crate) fn slice(&self, axis: usize, start: usize, end: usize, step: usize) -> Result<(isize, Self)> {
        expect_axis("slice", axis, N)?;
        if step == 0 {
            return Err(Error::argument("slice", "step", 0, "at least 1"));
        }
        if start > end || end > self.shape[axis] {
            let value = self.along(axis, format_args!("{start}..{end}"));
            return Err(Error::argument("slice", "range", value, "a range inside the axis"));
        }
        let mut sliced = *self;
        sliced.shape[axis] = (end - start).div_ceil(step);
        if sliced.shape[axis] > 1 {
            // Fits: at least one step was taken inside this layout's span.
            sliced.strides[axis] = self.strides[axis] * step as isize;
        }
        let first = if sliced.is_empty() { 0 } else { start as isize * self.strides[axis] };
        Ok((first, sliced))
    }

    /// What is wrong about an axis, as errors say it.
    #[cold]
    fn along(&self, axis: usize, what: std::fmt::Arguments<'_>) -> String {
        format!("{what} along axis {axis} of shape {}", Dims::new(&self.shape))
    }

    pub(crate) fn check_split(&self, axis: usize, at: usize) -> Result<()> {
        expect_axis("split_at", axis, N)?;
        if at > self.shape[axis] {
            let value = self.along(axis, format_args!("{at}"));
            return Err(Error::argument("split_at", "at", value, "at most the axis's size"));
        }
        Ok(())
    }

    pub(crate) fn broadcast<const M: usize>(&self, shape: [usize; M]) -> Result<Layout<M>> {
        let mismatch = || Error::shape("broadcast", "self", &self.shape, &shape);
        let lead = M.checked_sub(N).ok_or_else(mismatch)?;
        let mut strides = [0; M];
        for axis in 0..N {
            if self.shape[axis] == shape[lead + axis] {
                strides[lead + axis] = self.strides[axis];
            } else if self.shape[axis] != 1 {
                return Err(mismatch());
            }
        }
        Layout::checked("broadcast", shape, strides)
    }

    /// The layout of the same elements, in the same row-major order, under another shape; an error where
    /// no strides give it.
    pub(crate) fn reshape<const M: usize>(&self, shape: [usize; M]) -> Result<Layout<M>> {
        let target = Layout::dense("reshape", shape)?;
        if target.len() != self.len() {
            return Err(Error::shape("reshape", "self", &self.shape, &shape));
        }
        self.like(target).ok_or_else(|| Error::NotViewable {
            op: "reshape",
            found: Dims::new(&self.shape),
            strides: Strides::new(&self.strides),
            expected: Dims::new(&shape),
        })
    }

    /// What [`reshape`](Self::reshape) gives, if anything: unlike its error, that there are no strides takes no memory.
    pub(crate) fn viewed_as<const M: usize>(&self, shape: [usize; M]) -> Option<Layout<M>> {
        self.like(Layout::contiguous(shape).ok().filter(|target| target.len() == self.len())?)
    }

    /// These elements under the shape of `target`, which is contiguous and has as many.
    fn like<const M: usize>(&self, target: Layout<M>) -> Option<Layout<M>> {
        if self.is_contiguous() {
            return Some(target);
        }
        // No index leads farther than it did.
        Layout::checked("reshape", target.shape, self.strides_of(target.shape)?).ok()
    }

    /// Strides of a layout that is not contiguous, and so not empty, under another shape of as many elements.
    fn strides_of<const M: usize>(&self, shape: [usize; M]) -> Option<[isize; M]> {
        // Walk both shapes from the innermost axis; whenever the products of the sizes passed agree, the old axes in
        // between must be one run of equal steps.
        let mut strides = [0; M];
        let (mut old, mut new) = (N, M);
        while new > 0 {
            let (mut old_len, mut new_len) = (1, 1);
            let group_end = new;
            let mut run: Option<(isize, usize)> = None;
            while (new_len == 1 && new > 0) || new_len != old_len {
                if new_len <= old_len {
                    new -= 1;
                    new_len *= shape[new];
                    continue;
                }
                old -= 1;
                let (n, stride) = (self.shape[old], self.strides[old]);
                if n > 1 {
                    run = match run {
                        None => Some((stride, n)),
                        // Elements of no size may lie further apart than any slice is long.
                        Some((step, count)) if step.checked_mul(count as isize) == Some(stride) => {
                            Some((step, count * n))
                        }
                        Some(_) => return None,
                    };
                }
                old_len *= n;
            }
            let mut step = run.map_or(0, |(step, _)| step);
            for axis in (new..group_end).rev() {
                strides[axis] = step;
                step = step.wrapping_mul(shape[axis] as isize);
            }
        }
        Some(strides)
    }

    /// This layout without one axis, whose index is fixed. `M` must be `N − 1`.
    pub(crate) fn select<const M: usize>(&self, axis: usize, index: usize) -> Result<(isize, Layout<M>)> {
        expect_axis("select", axis, N)?;
        if M + 1 != N {
            let value = format!("{M} at rank {N}");
            return Err(Error::argument("select", "rank of the result", value, "one less than the rank"));
        }
        if index >= self.shape[axis] {
            let value = self.along(axis, format_args!("{index}"));
            return Err(Error::argument("select", "index", value, "less than the axis's size"));
        }
        let from = |at: usize| if at < axis { at } else { at + 1 };
        let layout = Layout {
            shape: std::array::from_fn(|at| self.shape[from(at)]),
            strides: std::array::from_fn(|at| self.strides[from(at)]),
        };
        let first = if layout.is_empty() { 0 } else { index as isize * self.strides[axis] };
        Ok((first, layout))
    }

    /// This layout with an axis of size 1 put in. `M` must be `N + 1`.
    pub(crate) fn insert_axis<const M: usize>(&self, axis: usize) -> Result<Layout<M>> {
        if M != N + 1 {
            let value = format!("{M} at rank {N}");
            return Err(Error::argument(
                "insert_axis",
                "rank of the result",
                value,
                "one more than the rank",
            ));
        }
        expect_axis("insert_axis", axis, M)?;
        let from = |at: usize| if at < axis { at } else { at - 1 };
        Ok(Layout {
            shape: std::array::from_fn(|at| if at == axis { 1 } else { self.shape[from(at)] }),
            strides: std::array::from_fn(|at| if at == axis { 0 } else { self.strides[from(at)] }),
        })
    }
}

impl<const N: usize> Layout<N> {
    /// `[batch, channels, spatial…]` with axes of size 1 put in after the channels, so that three are spatial.
    pub(crate) fn lift(&self) -> Layout<5> {
        const { assert!(N >= 2 && N <= 5) };
        let (mut shape, mut strides) = ([1; 5], [0; 5]);
        for axis in 0..N {
            let to = if axis < 2 { axis } else { 5 - N + axis };
            (shape[to], strides[to]) = (self.shape[axis], self.strides[axis]);
        }
        Layout { shape, strides }
    }
}

impl Layout<2> {
    /// The row-major layout of a matrix whose elements exist, so that its sizes cannot overflow.
    #[inline(always)]
    pub(crate) fn matrix(shape: [usize; 2]) -> Self {
        Self { shape, strides: [shape[1] as isize, 1] }
    }

    /// The same sizes with strides of which the caller knows that no distance overflows.
    #[inline(always)]
    pub(crate) fn with_strides(self, strides: [isize; 2]) -> Self {
        Self { strides, ..self }
    }
}

/// Sorts axes, or what else is few, by a key; those of one key stay in their order. The standard library's sort is for many: a thousand
/// lines of assembly for each type and key, and the axes of every kind of call are sorted.
pub(crate) fn sort_few<I: Copy, K: Ord>(items: &mut [I], key: impl Fn(&I) -> K) {
    for end in 1..items.len() {
        let mut at = end;
        while at > 0 && key(&items[at - 1]) > key(&items[at]) {
            items.swap(at - 1, at);
            at -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_overflow_are_refused() {
        let big = isize::MAX as usize;
        assert!(Layout::contiguous([big, 2]).is_err());
        assert!(Layout::contiguous([0, big, big]).is_err(), "zeros do not hide an overflow");
        assert!(Layout::contiguous([usize::MAX]).is_err());
        assert!(Layout::new([3], [isize::MAX]).is_err());
        assert!(Layout::new([2, 2], [isize::MAX, 1]).is_err());
        assert!(Layout::new([2, 2], [isize::MAX, -1]).is_err(), "low to high overflows");
        assert!(Layout::new([1], [isize::MIN]).is_ok());
        assert!(Layout::new([2], [isize::MIN]).is_err());
    }

    #[test]
    fn nesting_decides_overlap() {
        assert!(!Layout::contiguous([4, 5, 6]).unwrap().may_overlap());
        assert!(Layout::new([2, 2], [1, 1]).unwrap().may_overlap());
        assert!(Layout::new([2], [0]).unwrap().may_overlap());
        assert!(!Layout::new([1, 0], [0, 0]).unwrap().may_overlap());
        assert!(!Layout::new([4, 3], [-3, 1]).unwrap().may_overlap());
        assert!(Layout::new([4, 4], [3, 1]).unwrap().may_overlap());
    }

    #[test]
    fn flip_of_an_extreme_unused_stride_does_not_overflow() {
        let (offset, flipped) = Layout::new([1], [isize::MIN]).unwrap().flip(0).unwrap();
        assert_eq!((offset, flipped.shape()), (0, [1]));
    }

    #[test]
    fn reshape_finds_the_strides_that_exist() {
        let layout = Layout::new([4, 6], [12, 2]).unwrap();
        assert_eq!(layout.reshape([24]).unwrap().strides(), [2]);
        assert_eq!(layout.reshape([2, 2, 3, 2]).unwrap().strides(), [24, 12, 4, 2]);
        let padded = Layout::new([4, 6], [8, 1]).unwrap();
        assert!(matches!(padded.reshape([24]), Err(Error::NotViewable { .. })));
        assert_eq!(layout.viewed_as([24]), layout.reshape([24]).ok());
        assert_eq!([padded.viewed_as([24]), padded.viewed_as([23]), layout.viewed_as([25])], [None; 3]);
        assert_eq!(padded.viewed_as([2, 2, 6]), Some(padded.reshape([2, 2, 6]).unwrap()));
        assert_eq!(padded.reshape([2, 2, 1, 6]).unwrap().strides()[..2], [16, 8]);
        assert_eq!(padded.reshape([4, 1, 2, 3]).unwrap().strides()[2..], [3, 1]);
        assert!(matches!(padded.reshape([5, 5]), Err(Error::Shape { .. })));
        assert_eq!(Layout::new([1, 1], [7, 9]).unwrap().reshape([]).unwrap().shape(), [0usize; 0]);
    }

    #[test]
    fn lifted_images_have_three_spatial_axes() {
        let lifted = Layout::new([2, 3, 4], [1, 8, 2]).unwrap().lift();
        assert_eq!((lifted.shape(), lifted.strides()), ([2, 3, 1, 1, 4], [1, 8, 0, 0, 2]));
        let layout = Layout::contiguous([2, 3, 4, 5]).unwrap();
        assert_eq!(layout.lift().shape(), [2, 3, 1, 4, 5]);
        assert_eq!(layout.lift().offset([1, 2, 0, 3, 4]), layout.offset([1, 2, 3, 4]));
    }

    #[test]
    fn few_are_sorted_as_the_standard_library_does() {
        for seed in 0..720usize {
            let mut items: [(usize, usize); 6] = std::array::from_fn(|i| (seed * (7 * i + 3) / 5 % 4, i));
            let mut expected = items;
            expected.sort_by_key(|&(key, _)| std::cmp::Reverse(key));
            super::sort_few(&mut items, |&(key, _)| std::cmp::Reverse(key));
            assert_eq!(items, expected, "{seed}");
        }
        super::sort_few(&mut [(); 0], |_| 0);
    }
}
