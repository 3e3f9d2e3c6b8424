//! `Debug` as NumPy prints arrays: nested brackets, aligned columns, long axes shortened.
#![forbid(unsafe_code)]

use std::fmt::{self, Debug, Formatter, Write as _};

use super::{Tensor, TensorView, TensorViewMut};

/// More elements than this, and long axes show only their ends.
const THRESHOLD: usize = 1000;
/// Elements shown at each end of a shortened axis.
const EDGE: usize = 3;

/// The indices of an axis to show; `None` stands for the gap.
fn shown(size: usize, shorten: bool) -> impl Iterator<Item = Option<usize>> + Clone {
    let cut = shorten && size > 2 * EDGE;
    let head = if cut { EDGE } else { size };
    let tail = if cut { size - EDGE } else { size };
    (0..head).map(Some).chain(cut.then_some(None)).chain((tail..size).map(Some))
}

struct Printer<'v, 'a, T, const N: usize> {
    view: &'v TensorView<'a, T, N>,
    shorten: bool,
    width: usize,
}

impl<T: Debug, const N: usize> Printer<'_, '_, T, N> {
    /// Calls `f` with each element shown, so that the widest is known before the first is printed.
    fn each(&self, axis: usize, index: &mut [usize; N], f: &mut impl FnMut(&T)) {
        if axis == N {
            return self.view.get(*index).into_iter().for_each(f);
        }
        for at in shown(self.view.shape()[axis], self.shorten).flatten() {
            index[axis] = at;
            self.each(axis + 1, index, f);
        }
    }

    fn print(&self, f: &mut Formatter<'_>, axis: usize, index: &mut [usize; N]) -> fmt::Result {
        if axis == N {
            let Some(element) = self.view.get(*index) else { return Ok(()) };
            let text = text(element, f.precision());
            (text.chars().count()..self.width).try_for_each(|_| f.write_char(' '))?;
            return f.write_str(&text);
        }
        let innermost = axis + 1 == N;
        f.write_str("[")?;
        for (count, at) in shown(self.view.shape()[axis], self.shorten).enumerate() {
            if count > 0 && innermost {
                f.write_str(", ")?;
            } else if count > 0 {
                // As many line breaks as axes lie inside this one; then under the first bracket's content.
                write!(f, ",{}{}", "\n".repeat(N - axis - 1), " ".repeat(axis + 1))?;
            }
            match at {
                None => f.write_str("...")?,
                Some(at) => {
                    index[axis] = at;
                    self.print(f, axis + 1, index)?;
                }
            }
        }
        f.write_str("]")
    }
}

fn text(element: &impl Debug, precision: Option<usize>) -> String {
    match precision {
        // The formatter takes no more digits than this, nor has an element more.
        Some(digits) => format!("{element:.digits$?}", digits = digits.min(1100)),
        None => format!("{element:?}"),
    }
}

/// Prints as NumPy does; `{:.3?}` sets the digits after the point.
impl<T: Debug, const N: usize> Debug for TensorView<'_, T, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            // Its other axes may be of any size.
            return f.write_str("[]");
        }
        let mut printer = Printer { view: self, shorten: self.len() > THRESHOLD, width: 0 };
        let mut width = 0;
        printer.each(0, &mut [0; N], &mut |element| {
            width = width.max(text(element, f.precision()).chars().count())
        });
        printer.width = width;
        printer.print(f, 0, &mut [0; N])
    }
}

/// Prints as NumPy does; `{:.3?}` sets the digits after the point.
impl<T: Debug, const N: usize> Debug for TensorViewMut<'_, T, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.view(), f)
    }
}

/// Prints as NumPy does; `{:.3?}` sets the digits after the point.
impl<T: Debug, const N: usize> Debug for Tensor<T, N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.view(), f)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Tensor, TensorView};

    #[test]
    fn prints_like_numpy() {
        let t = Tensor::from_slice(&[1.0f32, 2.5, -3.0, 40.0], [2, 2]).unwrap();
        assert_eq!(format!("{t:?}"), "[[ 1.0,  2.5],\n [-3.0, 40.0]]");
        assert_eq!(format!("{t:.2?}"), "[[ 1.00,  2.50],\n [-3.00, 40.00]]");
        let cube: Vec<i32> = (0..8).collect();
        let cube = TensorView::from_slice(&cube, [2, 2, 2]).unwrap();
        assert_eq!(format!("{cube:?}"), "[[[0, 1],\n  [2, 3]],\n\n [[4, 5],\n  [6, 7]]]");
    }

    #[test]
    fn long_axes_are_shortened_and_empty_ones_are_brackets() {
        let t = Tensor::<i32, 1>::from_fn([2000], |[i]| i as i32).unwrap();
        assert_eq!(format!("{t:?}"), "[   0,    1,    2, ..., 1997, 1998, 1999]");
        assert_eq!(format!("{:?}", Tensor::<i32, 2>::zeros([0, 3]).unwrap()), "[]");
        assert_eq!(format!("{:?}", Tensor::<i32, 0>::full([], 7).unwrap()), "7");
        let huge = TensorView::from_slice(&[1u8], [1]).unwrap().broadcast([1 << 40]).unwrap();
        assert_eq!(format!("{huge:?}"), "[1, 1, 1, ..., 1, 1, 1]");
    }
}
