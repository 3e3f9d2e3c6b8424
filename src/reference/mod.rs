//! Scalar twins of every operation: plain loops straight from the formulas, for tests and for reading.
//!
//! They share nothing with the fast code but the tensor types, so that a mistake in its index arithmetic
//! cannot hide here.
#![forbid(unsafe_code)]
