//! The network of `benches/support/digits.rs`, a step of training of which `benches/peers/python/networks.py` times.

/// Filters, taps and stride of the convolutions.
pub const CONVOLUTIONS: [(usize, usize, usize); 4] = [(16, 5, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2)];
pub const SIDE: usize = 28;
/// Inputs of the first dense layer, its outputs, and those of the second.
pub const DENSE: [usize; 3] = [64 * 49, 128, 10];
