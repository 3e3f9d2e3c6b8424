//! What a view should be: a shape, and the buffer position of every element in row-major order.
//!
//! Written from the documentation of the operations, in lists and 128-bit numbers, without strides.

use crate::numbers::{Size, Stride};
use crate::program::Op;

/// More elements than this are not listed.
const LISTED: usize = 4096;

#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub shape: Vec<usize>,
    /// `None` where there are too many.
    pub positions: Option<Vec<usize>>,
}

/// What an operation must give.
#[derive(Debug)]
pub enum Outcome {
    View(Model),
    Refused,
    /// An axis more than the program can hold.
    Skipped,
}

/// True where the sizes other than 0 have a product that fits in `isize`.
fn countable(shape: &[usize]) -> bool {
    shape
        .iter()
        .try_fold(1isize, |product, &n| product.checked_mul(isize::try_from(n.max(1)).ok()?))
        .is_some()
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// All indices of a shape, in row-major order.
pub fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &n in shape {
        all = all
            .iter()
            .flat_map(|index| (0..n).map(move |i| index.iter().copied().chain([i]).collect()))
            .collect();
    }
    all
}

/// The view of `shape` whose element at each index is the one at the index that `from` gives.
fn gather(source: &Model, shape: Vec<usize>, from: impl Fn(&[usize]) -> Vec<usize>) -> Outcome {
    if !countable(&shape) {
        return Outcome::Refused;
    }
    let positions = source.positions.as_ref().filter(|_| count(&shape) <= LISTED).map(|positions| {
        indices_if_any(&shape)
            .iter()
            .map(|index| {
                let from = from(index);
                assert_eq!(from.len(), source.shape.len());
                let flat = from.iter().zip(&source.shape).fold(0, |flat, (&i, &n)| {
                    assert!(i < n);
                    flat * n + i
                });
                positions[flat]
            })
            .collect()
    });
    Outcome::View(Model { shape, positions })
}

/// [`indices`], without building long lists for a shape that ends in 0.
fn indices_if_any(shape: &[usize]) -> Vec<Vec<usize>> {
    if shape.contains(&0) { vec![] } else { indices(shape) }
}

impl Model {
    /// What `as_strided_at` must give over a slice of `len` elements.
    pub fn strided(len: usize, offset: usize, shape: &[usize], strides: &[Stride]) -> Option<Self> {
        if !countable(shape) {
            return None;
        }
        let (mut low, mut high) = (0i128, 0i128);
        for (&n, stride) in shape.iter().zip(strides) {
            let reach = (n.saturating_sub(1) as i128) * stride.0 as i128;
            isize::try_from(reach).ok()?;
            if reach < 0 { low += reach } else { high += reach }
        }
        for distance in [low, high, high - low] {
            isize::try_from(distance).ok()?;
        }
        let empty = shape.contains(&0);
        let offset = offset as i128;
        // Only a slice of elements without a size reaches beyond `isize`; that far it cannot be viewed.
        let end = (len as i128).min(isize::MAX as i128 + 1);
        if !empty && (offset + low < 0 || offset + high >= end || offset >= end) {
            return None;
        }
        let listed = count(shape) <= LISTED;
        let positions = listed.then(|| {
            indices_if_any(shape)
                .iter()
                .map(|index| {
                    let distance: i128 =
                        index.iter().zip(strides).map(|(&i, s)| i as i128 * s.0 as i128).sum();
                    usize::try_from(offset + distance).expect("in bounds")
                })
                .collect()
        });
        Some(Self { shape: shape.to_vec(), positions })
    }

    /// The elements 0, 1, 2, … of a slice of `len`.
    pub fn contiguous(len: usize, shape: &[usize]) -> Option<Self> {
        if !countable(shape) || count(shape) != len {
            return None;
        }
        Some(Self { shape: shape.to_vec(), positions: (len <= LISTED).then(|| (0..len).collect()) })
    }

    pub fn count(&self) -> usize {
        count(&self.shape)
    }

    fn rank(&self) -> usize {
        self.shape.len()
    }

    /// What an operation must give. `ranks` are those a program can hold.
    pub fn apply(&self, op: &Op, ranks: &[usize]) -> Outcome {
        let (rank, shape) = (self.rank(), &self.shape);
        match op {
            Op::Permute(axes) => {
                let axes: Vec<usize> = axes[..rank].iter().map(|axis| axis.0).collect();
                if !(0..rank).all(|axis| axes.contains(&axis)) {
                    return Outcome::Refused;
                }
                gather(self, axes.iter().map(|&axis| shape[axis]).collect(), |index| {
                    (0..rank).map(|axis| index[axes.iter().position(|&a| a == axis).unwrap()]).collect()
                })
            }
            Op::Transpose => gather(self, shape.iter().rev().copied().collect(), |index| {
                index.iter().rev().copied().collect()
            }),
            &Op::Flip(Size(axis)) => {
                if axis >= rank {
                    return Outcome::Refused;
                }
                gather(self, shape.clone(), |index| {
                    let mut from = index.to_vec();
                    from[axis] = shape[axis] - 1 - from[axis];
                    from
                })
            }
            &Op::Slice { axis: Size(axis), start, after, end, inclusive, step: Size(step) } => {
                if axis >= rank || step == 0 {
                    return Outcome::Refused;
                }
                let start = start.map_or(0, |at| at.0 as u128 + u128::from(after));
                let end = end.map_or(shape[axis] as u128, |at| at.0 as u128 + u128::from(inclusive));
                if start > end || end > shape[axis] as u128 {
                    return Outcome::Refused;
                }
                let (start, end) = (start as usize, end as usize);
                let mut sizes = shape.clone();
                sizes[axis] = (end - start).div_ceil(step);
                gather(self, sizes, |index| {
                    let mut from = index.to_vec();
                    from[axis] = start + index[axis] * step;
                    from
                })
            }
            Op::Reshape(sizes) => {
                if !ranks.contains(&sizes.len()) {
                    return Outcome::Skipped;
                }
                let sizes: Vec<usize> = sizes.iter().map(|size| size.0).collect();
                self.reshape(sizes)
            }
            &Op::SplitAxis(Size(axis), Size(by)) => match self.split_axis(axis, by) {
                Some(sizes) if ranks.contains(&sizes.len()) => self.reshape(sizes),
                _ => Outcome::Skipped,
            },
            &Op::MergeAxes(Size(axis)) => match self.merge_axes(axis) {
                Some(sizes) if ranks.contains(&sizes.len()) => self.reshape(sizes),
                _ => Outcome::Skipped,
            },
            &Op::Select { axis: Size(axis), index: Size(at), rank: result } => {
                let result = usize::from(result.unwrap_or(rank.saturating_sub(1) as u8));
                if !ranks.contains(&result) {
                    return Outcome::Skipped;
                }
                if result + 1 != rank || axis >= rank || at >= shape[axis] {
                    return Outcome::Refused;
                }
                let mut sizes = shape.clone();
                sizes.remove(axis);
                gather(self, sizes, |index| {
                    let mut from = index.to_vec();
                    from.insert(axis, at);
                    from
                })
            }
            &Op::InsertAxis { axis: Size(axis), rank: result } => {
                let result = result.map_or(rank + 1, usize::from);
                if !ranks.contains(&result) {
                    return Outcome::Skipped;
                }
                if result != rank + 1 || axis > rank {
                    return Outcome::Refused;
                }
                let mut sizes = shape.clone();
                sizes.insert(axis, 1);
                gather(self, sizes, |index| {
                    let mut from = index.to_vec();
                    from.remove(axis);
                    from
                })
            }
            &Op::SplitAt { axis: Size(axis), at: Size(at), second } => {
                if axis >= rank || at > shape[axis] {
                    return Outcome::Refused;
                }
                let mut sizes = shape.clone();
                sizes[axis] = if second { shape[axis] - at } else { at };
                gather(self, sizes, |index| {
                    let mut from = index.to_vec();
                    from[axis] += if second { at } else { 0 };
                    from
                })
            }
            Op::Broadcast(sizes) => {
                if !ranks.contains(&sizes.len()) {
                    return Outcome::Skipped;
                }
                let sizes: Vec<usize> = sizes.iter().map(|size| size.0).collect();
                let Some(lead) = sizes.len().checked_sub(rank) else { return Outcome::Refused };
                if shape.iter().zip(&sizes[lead..]).any(|(&from, &to)| from != to && from != 1) {
                    return Outcome::Refused;
                }
                gather(self, sizes, |index| {
                    index[lead..].iter().zip(shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect()
                })
            }
            Op::Windows(window) => {
                let Some(spatial) = rank.checked_sub(2).filter(|spatial| (1..=3).contains(spatial)) else {
                    return Outcome::Skipped;
                };
                let mut outputs = vec![];
                for axis in 0..spatial {
                    let [kernel, stride, dilation] = window[axis].map(|size| size.0 as u128);
                    if kernel == 0 || stride == 0 || dilation == 0 {
                        return Outcome::Refused;
                    }
                    let size = shape[2 + axis] as u128;
                    let extent = match (kernel - 1).checked_mul(dilation) {
                        Some(reach) if reach < size => reach + 1,
                        _ => return Outcome::Refused,
                    };
                    outputs.push(((size - extent) / stride + 1) as usize);
                }
                let kernel = (0..spatial).map(|axis| window[axis][0].0);
                let sizes =
                    [shape[0]].into_iter().chain(outputs).chain([shape[1]]).chain(kernel).collect::<Vec<_>>();
                gather(self, sizes, |index| {
                    let places = (0..spatial).map(|axis| {
                        let [_, stride, dilation] = window[axis].map(|size| size.0 as u128);
                        let place =
                            index[1 + axis] as u128 * stride + index[2 + spatial + axis] as u128 * dilation;
                        place as usize
                    });
                    [index[0], index[1 + spatial]].into_iter().chain(places).collect()
                })
            }
        }
    }

    /// The shape with one axis as two, where that is possible.
    pub fn split_axis(&self, axis: usize, by: usize) -> Option<Vec<usize>> {
        let n = *self.shape.get(axis)?;
        if by == 0 || !n.is_multiple_of(by) {
            return None;
        }
        let mut sizes = self.shape.clone();
        sizes.splice(axis..=axis, [n / by, by]);
        Some(sizes)
    }

    /// The shape with an axis and the next as one.
    pub fn merge_axes(&self, axis: usize) -> Option<Vec<usize>> {
        let end = axis.checked_add(2).filter(|&end| end <= self.rank())?;
        let product = self.shape[axis].checked_mul(self.shape[axis + 1])?;
        let mut sizes = self.shape.clone();
        sizes.splice(axis..end, [product]);
        Some(sizes)
    }

    fn reshape(&self, sizes: Vec<usize>) -> Outcome {
        if !countable(&sizes) || count(&sizes) != self.count() {
            return Outcome::Refused;
        }
        let reshaped = Model { shape: sizes, positions: self.positions.clone() };
        // Without the list nobody knows, and the program takes either answer.
        if reshaped.is_strided() { Outcome::View(reshaped) } else { Outcome::Refused }
    }

    /// True where some strides lead to these positions.
    fn is_strided(&self) -> bool {
        let Some(positions) = self.positions.as_ref().filter(|positions| !positions.is_empty()) else {
            return true;
        };
        let at = |flat: usize| positions[flat] as i128;
        let mut inner = 1;
        let mut strides = vec![0; self.rank()];
        for axis in (0..self.rank()).rev() {
            if self.shape[axis] > 1 {
                strides[axis] = at(inner) - at(0);
            }
            inner *= self.shape[axis];
        }
        indices(&self.shape).iter().enumerate().all(|(flat, index)| {
            at(flat) == at(0) + index.iter().zip(&strides).map(|(&i, s)| i as i128 * s).sum::<i128>()
        })
    }

    /// True where the elements lie one after the other.
    pub fn is_contiguous(&self) -> Option<bool> {
        let positions = self.positions.as_ref()?;
        Some(positions.windows(2).all(|pair| pair[1] == pair[0] + 1))
    }

    /// What `Debug` prints where nothing is shortened.
    pub fn print(&self) -> Option<String> {
        fn nested(shape: &[usize], cells: &[String], depth: usize, out: &mut String) {
            let Some((&n, inner)) = shape.split_first() else { return out.push_str(&cells[0]) };
            out.push('[');
            for i in 0..n {
                if i > 0 && inner.is_empty() {
                    out.push_str(", ");
                } else if i > 0 {
                    out.push(',');
                    inner.iter().for_each(|_| out.push('\n'));
                    (0..=depth).for_each(|_| out.push(' '));
                }
                let each = cells.len() / n;
                nested(inner, &cells[i * each..(i + 1) * each], depth + 1, out);
            }
            out.push(']');
        }
        let positions = self.positions.as_ref().filter(|positions| positions.len() <= 1000)?;
        let width = positions.iter().map(|at| at.to_string().len()).max();
        let Some(width) = width else { return Some("[]".into()) };
        let cells: Vec<String> = positions.iter().map(|at| format!("{at:>width$}")).collect();
        let mut out = String::new();
        nested(&self.shape, &cells, 0, &mut out);
        Some(out)
    }
}
