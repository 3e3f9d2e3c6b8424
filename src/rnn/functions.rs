//! The activations of a cell's gates: the usual ones, which the passes have compiled in, or any others, which they call.
#![forbid(unsafe_code)]

use crate::activation::{self, Activation};
use crate::element::Element;
use crate::simd::Simd;

/// What an activation is for: σ, tanh and tanh as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// i, f, o; r, z.
    Gate,
    /// g; n; the state of an Elman cell.
    Candidate,
    /// c of an LSTM on its way to h.
    Output,
}

const USUAL: [Activation; 3] = [Activation::Sigmoid, Activation::Tanh, Activation::Tanh];

/// The activations that a descriptor has, by [`Role`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chosen {
    pub forward: [Activation; 3],
    /// Those of the direction that reads in reverse.
    pub reverse: [Activation; 3],
    /// What enters a gate's is kept within ± this.
    pub clip: Option<f64>,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { forward: USUAL, reverse: USUAL, clip: None }
    }
}

impl Chosen {
    /// Those of both directions, unless they are the usual ones.
    pub(super) fn functions(self) -> Option<[Functions; 2]> {
        let functions = |activations| Functions { activations, clip: self.clip };
        (self != Self::default()).then(|| [functions(self.forward), functions(self.reverse)])
    }
}

/// The activations of one direction where they are not the usual ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Functions {
    pub(super) activations: [Activation; 3],
    pub(super) clip: Option<f64>,
}

/// How the passes compute activations.
pub(super) trait Gates<T: Element>: Copy {
    /// True where a tape keeps what enters an activation, false where it keeps what comes out.
    const ARGUMENTS: bool;

    /// What comes out.
    fn value<S: Simd<T>>(self, s: S, role: Role, argument: S::V) -> S::V;

    /// What comes out, and the slope there, from what a tape keeps; for [`Role::Output`] that is c.
    fn back<S: Simd<T>>(self, s: S, role: Role, kept: S::V) -> (S::V, S::V);

    /// What a tape keeps.
    #[inline(always)]
    fn kept<V>(self, argument: V, value: V) -> V {
        if Self::ARGUMENTS { argument } else { value }
    }
}

/// σ for gates, tanh for the others. Their slopes follow from their values.
#[derive(Clone, Copy)]
pub(super) struct Usual;

impl<T: Element> Gates<T> for Usual {
    const ARGUMENTS: bool = false;

    #[inline(always)]
    fn value<S: Simd<T>>(self, s: S, role: Role, argument: S::V) -> S::V {
        if role == Role::Gate { T::sigmoid_v(s, argument) } else { T::tanh_v(s, argument) }
    }

    #[inline(always)]
    fn back<S: Simd<T>>(self, s: S, role: Role, kept: S::V) -> (S::V, S::V) {
        let v = if role == Role::Output { T::tanh_v(s, kept) } else { kept };
        // v (1 − v), or 1 − v².
        (v, s.neg_mul_add(v, v, if role == Role::Gate { v } else { s.splat(T::ONE) }))
    }
}

impl Functions {
    /// What enters is kept within ± this. c on its way to h is not.
    fn bound(self, role: Role) -> Option<f64> {
        self.clip.filter(|_| role != Role::Output)
    }

    #[inline(always)]
    fn clipped<T: Element, S: Simd<T>>(self, s: S, role: Role, argument: S::V) -> S::V {
        // In this order of operands NaN passes.
        let within = |clip: f64| {
            let clip = T::from_f64(clip);
            s.max(s.splat(-clip), s.min(s.splat(clip), argument))
        };
        self.bound(role).map_or(argument, within)
    }
}

impl<T: Element> Gates<T> for Functions {
    const ARGUMENTS: bool = true;

    #[inline(always)]
    fn value<S: Simd<T>>(self, s: S, role: Role, argument: S::V) -> S::V {
        activation::value(s, self.activations[role as usize], self.clipped(s, role, argument))
    }

    #[inline(always)]
    fn back<S: Simd<T>>(self, s: S, role: Role, kept: S::V) -> (S::V, S::V) {
        let (activation, argument) = (self.activations[role as usize], self.clipped(s, role, kept));
        let mut slope = activation::derivative(s, activation, argument);
        if let Some(clip) = self.bound(role) {
            slope = s.select(s.lt(s.abs(kept), s.splat(T::from_f64(clip))), slope, s.splat(T::ZERO));
        }
        (activation::value(s, activation, argument), slope)
    }
}
