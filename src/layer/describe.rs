//! Layers as `Debug` shows them.

use std::fmt::{Debug, Formatter, Result};

use super::Parameters;
use crate::element::Element;

/// A layer's options, then the name and shape of each parameter: numbers would be many.
pub(super) fn describe<T: Element>(
    f: &mut Formatter<'_>,
    name: &str,
    options: &[(&str, &dyn Debug)],
    parameters: &dyn Parameters<T>,
) -> Result {
    let mut list = f.debug_struct(name);
    for (name, option) in options {
        list.field(name, option);
    }
    parameters.visit(&mut |name, parameter| {
        list.field(name, &parameter.shape());
    });
    list.finish()
}

/// `Debug` of a layer whose options are these fields.
macro_rules! debug {
    ([$($generics:tt)*] $type:ty, $name:expr $(, $option:ident)*) => {
        impl<$($generics)*> std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                crate::layer::describe::describe(f, $name, &[$((stringify!($option), &self.$option)),*], self)
            }
        }
    };
}

pub(super) use debug;
