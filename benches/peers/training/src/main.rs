//! The step of training of `benches/support/digits.rs` by other libraries, beside which
//! `benches/peers/python/networks.py` runs it: `training LIBRARY` answers each line `BATCH 0 SECONDS` with the time of a step.

#[path = "../../../../examples/support/measure.rs"]
mod measure;

mod burn;
mod candle;

use std::error::Error;

/// Filters, taps and stride of the convolutions.
const CONVOLUTIONS: [(usize, usize, usize); 4] = [(16, 5, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2)];
const SIDE: usize = 28;
/// Inputs of the first dense layer, its outputs, and those of the second.
const DENSE: [usize; 3] = [64 * 49, 128, 10];

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("candle") => measure::serve(|batch, _| candle::step(batch)),
        Some("burn") => measure::serve(|batch, _| burn::step(batch)),
        _ => Err("usage: training candle|burn".into()),
    }
}
