//! A random program of view operations, and views whose rank is known only when it runs.

use std::ops::Bound;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use tilewise::{Error, Result, TensorView, TensorViewMut, Window};

use crate::numbers::Size;

/// The ranks a program can hold.
pub const RANKS: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 8];

#[derive(Arbitrary, Clone, Debug)]
pub enum Op {
    Permute([Size; 8]),
    Transpose,
    Flip(Size),
    Slice {
        axis: Size,
        start: Option<Size>,
        after: bool,
        end: Option<Size>,
        inclusive: bool,
        step: Size,
    },
    Reshape(Vec<Size>),
    /// A reshape that has a chance: one axis as two.
    SplitAxis(Size, Size),
    /// A reshape that has a chance: two axes as one.
    MergeAxes(Size),
    Select {
        axis: Size,
        index: Size,
        rank: Option<u8>,
    },
    InsertAxis {
        axis: Size,
        rank: Option<u8>,
    },
    SplitAt {
        axis: Size,
        at: Size,
        second: bool,
    },
    Broadcast(Vec<Size>),
    /// Kernel, stride and dilation along each axis.
    Windows([[Size; 3]; 3]),
}

fn sizes<const N: usize>(sizes: &[Size]) -> [usize; N] {
    std::array::from_fn(|axis| sizes[axis].0)
}

/// Binds the view in either kind of enum, whatever its rank.
macro_rules! each {
    ($kind:ident: $any:expr, $v:ident => $body:expr) => {
        match $any {
            $kind::R0($v) => $body,
            $kind::R1($v) => $body,
            $kind::R2($v) => $body,
            $kind::R3($v) => $body,
            $kind::R4($v) => $body,
            $kind::R5($v) => $body,
            $kind::R6($v) => $body,
            $kind::R8($v) => $body,
        }
    };
}
pub(crate) use each;

/// Binds a constant to a rank of [`RANKS`].
macro_rules! ranked {
    ($rank:expr, $N:ident => $body:expr) => {
        ranked!(@ $rank, $N => $body; 0 1 2 3 4 5 6 8)
    };
    (@ $rank:expr, $N:ident => $body:expr; $($n:literal)*) => {
        match $rank {
            $($n => {
                const $N: usize = $n;
                $body
            })*
            rank => unreachable!("the model skips rank {rank}"),
        }
    };
}
pub(crate) use ranked;

macro_rules! kind {
    ($kind:ident, $view:ident, $($variant:ident $rank:literal),*) => {
        pub enum $kind<'a, T> {
            $($variant($view<'a, T, $rank>)),*
        }

        $(impl<'a, T> From<$view<'a, T, $rank>> for $kind<'a, T> {
            fn from(view: $view<'a, T, $rank>) -> Self {
                Self::$variant(view)
            }
        })*

        impl<'a, T> $kind<'a, T> {
            /// The operations that both kinds of views have.
            fn common(self, op: &Op) -> Result<Self> {
                match op {
                    Op::Permute(axes) => each!($kind: self, v => v.permute(sizes(axes)).map(Self::from)),
                    Op::Transpose => Ok(each!($kind: self, v => v.transpose().into())),
                    Op::Flip(axis) => each!($kind: self, v => v.flip(axis.0).map(Self::from)),
                    &Op::Slice { axis, start, after, end, inclusive, step } => {
                        let bound = |at: Option<Size>, included| match at {
                            None => Bound::Unbounded,
                            Some(at) if included => Bound::Included(at.0),
                            Some(at) => Bound::Excluded(at.0),
                        };
                        let range = (bound(start, !after), bound(end, inclusive));
                        each!($kind: self, v => v.slice(axis.0, range, step.0).map(Self::from))
                    }
                    Op::Reshape(to) => self.reshape(&sizes_of(to)),
                    &Op::Select { axis, index, rank } => each!($kind: self, v => {
                        let rank = rank.map_or(v.shape().len().saturating_sub(1), usize::from);
                        ranked!(rank, M => v.select::<M>(axis.0, index.0).map(Self::from))
                    }),
                    &Op::InsertAxis { axis, rank } => each!($kind: self, v => {
                        let rank = rank.map_or(v.shape().len() + 1, usize::from);
                        ranked!(rank, M => v.insert_axis::<M>(axis.0).map(Self::from))
                    }),
                    Op::SplitAxis(..) | Op::MergeAxes(_) => unreachable!("the caller reshapes"),
                    Op::SplitAt { .. } | Op::Broadcast(_) | Op::Windows(_) => {
                        unreachable!("not common")
                    }
                }
            }

            pub fn reshape(self, to: &[usize]) -> Result<Self> {
                each!($kind: self, v => ranked!(to.len(), M => {
                    v.reshape::<M>(to.try_into().expect("of that length")).map(Self::from)
                }))
            }
        }
    };
}

fn sizes_of(sizes: &[Size]) -> Vec<usize> {
    sizes.iter().map(|size| size.0).collect()
}

kind!(Shared, TensorView, R0 0, R1 1, R2 2, R3 3, R4 4, R5 5, R6 6, R8 8);
kind!(Exclusive, TensorViewMut, R0 0, R1 1, R2 2, R3 3, R4 4, R5 5, R6 6, R8 8);

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn apply(self, op: &Op) -> Result<Self> {
        match op {
            &Op::SplitAt { axis, at, second: false } => {
                each!(Shared: self, v => v.slice(axis.0, ..at.0, 1).map(Self::from))
            }
            &Op::SplitAt { axis, at, second: true } => {
                each!(Shared: self, v => v.slice(axis.0, at.0.., 1).map(Self::from))
            }
            Op::Broadcast(to) => each!(Shared: self, v => ranked!(to.len(), M => {
                v.broadcast::<M>(sizes(to)).map(Self::from)
            })),
            Op::Windows(all) => match self {
                Shared::R3(v) => v.windows(&window(all)).map(Self::from),
                Shared::R4(v) => v.windows(&window(all)).map(Self::from),
                Shared::R5(v) => v.windows(&window(all)).map(Self::from),
                _ => unreachable!("the model skips other ranks"),
            },
            op => self.common(op),
        }
    }
}

fn window<const S: usize>(all: &[[Size; 3]; 3]) -> Window<S> {
    let part = |which: usize| std::array::from_fn(|axis| all[axis][which].0);
    let window = Window::new(part(0));
    window.stride(part(1)).dilation(part(2))
}

impl<'a, T> Exclusive<'a, T> {
    /// Applies an operation that a shared view of the same layout took.
    pub fn apply(self, op: &Op) -> Result<Self> {
        match op {
            &Op::SplitAt { axis, at, second } => each!(Exclusive: self, v => {
                let (low, high): (_, _) = v.split_at(axis.0, at.0)?;
                Ok::<Self, Error>(if second { high.into() } else { low.into() })
            }),
            op => self.common(op),
        }
    }

    pub fn view(&self) -> Shared<'_, T> {
        each!(Exclusive: self, v => v.view().into())
    }
}
