//! The one error type.
#![forbid(unsafe_code)]

use std::fmt;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was wrong with a call. Nothing was written when a call returns one, but for [`Alloc`](Self::Alloc): memory may run out in
/// the middle of a call of many parts (tasks of several threads, a batch, several gradients), after others have written theirs.
///
/// ```
/// use tilewise::{Tensor, gemm};
/// let a = Tensor::<f32, 2>::zeros([2, 3])?;
/// let b = Tensor::<f32, 2>::zeros([4, 5])?;
/// let mut c = Tensor::<f32, 2>::zeros([2, 5])?;
/// let error = gemm::gemm(1.0, a.view(), b.view(), 0.0, c.view_mut()).unwrap_err();
/// assert_eq!(error.to_string(), "gemm: b has shape [4, 5], expected [3, 5]");
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// An argument's shape does not fit the others.
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The argument that does not fit.
        arg: &'static str,
        /// Its shape.
        found: Dims,
        /// The shape that would fit.
        expected: Dims,
    },
    /// A layout reaches an element outside its slice.
    OutOfBounds {
        /// The operation that refused.
        op: &'static str,
        /// The shape asked for.
        shape: Dims,
        /// The strides asked for, in elements.
        strides: Strides,
        /// Index of the first element, in elements from the start of the slice.
        offset: usize,
        /// Length of the slice.
        len: usize,
    },
    /// Two indices of a layout may reach one element, and it would be writable.
    Overlap {
        /// The operation that refused.
        op: &'static str,
        /// The shape asked for.
        shape: Dims,
        /// The strides asked for, in elements.
        strides: Strides,
    },
    /// A product or sum of sizes does not fit in `isize`.
    Overflow {
        /// The operation that refused.
        op: &'static str,
        /// The shape whose sizes overflow.
        shape: Dims,
    },
    /// A view cannot have the shape asked for without copying elements.
    NotViewable {
        /// The operation that refused.
        op: &'static str,
        /// The view's shape.
        found: Dims,
        /// Its strides, in elements.
        strides: Strides,
        /// The shape asked for.
        expected: Dims,
    },
    /// An argument has a value that the operation does not take.
    Argument {
        /// The operation that refused.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A prepacked operand was packed for something else.
    Packed {
        /// The operation that refused.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What it was packed for.
        found: String,
        /// What this call needs.
        expected: String,
    },
    /// An instruction set, asked for by `TILEWISE_ISA` or
    /// [`with_isa`](crate::machine::with_isa), that does not exist or that this processor lacks.
    Isa {
        /// The name asked for.
        requested: String,
        /// Why it cannot be had.
        reason: &'static str,
    },
    /// The system has no memory to give.
    Alloc {
        /// The operation that refused.
        op: &'static str,
        /// Bytes asked for; `usize::MAX` stands for more than can be counted.
        bytes: usize,
    },
}

impl Error {
    /// A shape that does not fit, as every operation reports it.
    ///
    /// ```
    /// let error = tilewise::Error::shape("MyLayer::forward", "x", &[2, 3], &[2, 4]);
    /// assert_eq!(error.to_string(), "MyLayer::forward: x has shape [2, 3], expected [2, 4]");
    /// ```
    #[cold]
    pub fn shape(op: &'static str, arg: &'static str, found: &[usize], expected: &[usize]) -> Self {
        Error::Shape { op, arg, found: Dims::new(found), expected: Dims::new(expected) }
    }

    /// A value that an operation does not take.
    ///
    /// ```
    /// let error = tilewise::Error::argument("MyLayer::new", "rate", -1, "at least 0");
    /// assert_eq!(error.to_string(), "MyLayer::new: rate is -1, expected at least 0");
    /// ```
    #[cold]
    pub fn argument(
        op: &'static str,
        arg: &'static str,
        value: impl fmt::Display,
        expected: &'static str,
    ) -> Self {
        Error::Argument { op, arg, value: value.to_string(), expected }
    }
}

/// An error unless the shape is the one expected.
pub(crate) fn expect(op: &'static str, arg: &'static str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::shape(op, arg, found, expected)) }
}

/// An error unless views of this rank have the axis.
pub(crate) fn expect_axis(op: &'static str, axis: usize, rank: usize) -> Result<()> {
    let at = format_args!("{axis} at rank {rank}");
    if axis < rank { Ok(()) } else { Err(Error::argument(op, "axis", at, "less than the rank")) }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { op, arg, found, expected } => {
                write!(f, "{op}: {arg} has shape {found}, expected {expected}")
            }
            Error::OutOfBounds { op, shape, strides, offset, len } => write!(
                f,
                "{op}: shape {shape} with strides {strides} from offset {offset} reaches outside a slice of {len} elements"
            ),
            Error::Overlap { op, shape, strides } => write!(
                f,
                "{op}: shape {shape} with strides {strides} may reach one element by two indices, so it cannot be written"
            ),
            Error::Overflow { op, shape } => write!(f, "{op}: the sizes of shape {shape} overflow"),
            Error::NotViewable { op, found, strides, expected } => write!(
                f,
                "{op}: shape {found} with strides {strides} cannot be viewed as {expected} without a copy"
            ),
            Error::Argument { op, arg, value, expected } => {
                write!(f, "{op}: {arg} is {value}, expected {expected}")
            }
            Error::Packed { op, arg, found, expected } => {
                write!(f, "{op}: {arg} was packed for {found}, this call needs {expected}")
            }
            Error::Isa { requested, reason } => write!(f, "instruction set {requested}: {reason}"),
            Error::Alloc { op, bytes: usize::MAX } => write!(f, "{op}: more bytes than there are addresses"),
            Error::Alloc { op, bytes } => write!(f, "{op}: no memory for {bytes} bytes"),
        }
    }
}

impl std::error::Error for Error {}

/// A shape inside an [`Error`]. Prints as `[2, 3]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Dims(Box<[usize]>);

/// Strides inside an [`Error`], in elements. Prints as `[3, -1]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Strides(Box<[isize]>);

macro_rules! list {
    ($name:ident, $t:ty) => {
        impl $name {
            pub(crate) fn new(list: &[$t]) -> Self {
                Self(list.into())
            }

            /// The sizes, outermost first.
            pub fn as_slice(&self) -> &[$t] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

list!(Dims, usize);
list!(Strides, isize);
