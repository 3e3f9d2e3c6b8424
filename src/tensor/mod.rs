//! Tensors, and views of them that cost nothing.
//!
//! [`Tensor`] owns its elements, contiguous and 64-byte aligned. [`TensorView`] and [`TensorViewMut`] are a
//! pointer with a [`Layout`]: transposing, permuting, flipping, slicing, broadcasting and opening
//! [windows](TensorView::windows) change only the layout. Building a view checks that every reachable
//! element lies in its slice; every derived view reaches a subset; so kernels trust views.

mod elementwise;
mod format;
mod fours;
mod iter;
mod layout;
mod owned;
mod view;
mod windows;

pub(crate) use elementwise::{map, map_in_place};
pub use fours::Fours;
pub use iter::Iter;
pub use layout::Layout;
pub(crate) use layout::sort_few;
pub use owned::Tensor;
pub use view::{TensorView, TensorViewMut};
pub use windows::Window;
