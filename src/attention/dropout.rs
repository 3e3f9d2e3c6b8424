//! Which weights dropout takes: a hash of the seed and of the weight's place, so that backward finds the same ones and
//! no thread waits for another's random numbers.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::random;

/// Dropout of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dropout {
    pub rate: f64,
    pub seed: u64,
}

/// The hash of a row of weights.
#[derive(Clone, Copy)]
pub struct Row([u32; 2]);

/// Two rounds of multiply and xor-shift, with the constants of Chris Wellons' "lowbias32" (2018, public domain).
#[inline(always)]
fn mix32(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

impl Dropout {
    pub fn check(self, op: &'static str) -> Result<()> {
        if (0.0..1.0).contains(&self.rate) {
            Ok(())
        } else {
            Err(Error::argument(op, "the rate of dropout", self.rate, "at least 0 and less than 1"))
        }
    }

    /// The row of weights of one query.
    pub fn row(self, [entry, head, query]: [usize; 3]) -> Row {
        let hash = [entry, head, query]
            .iter()
            .fold(self.seed, |hash, &index| random::at(hash ^ random::at(index as u64, 0), 0));
        Row([hash as u32, (hash >> 32) as u32])
    }

    /// A weight is dropped where its hash is below this.
    pub fn threshold(self) -> u64 {
        (self.rate * 2f64.powi(32)).round() as u64
    }

    /// What weights that stay are multiplied by.
    pub fn factor<T: Element>(self) -> T {
        T::from_f64(1.0 / (1.0 - self.rate))
    }
}

impl Row {
    /// A number for each key, uniform over 32 bits.
    #[inline(always)]
    pub fn hash(self, key: u32) -> u32 {
        mix32(mix32(key.wrapping_add(self.0[0])) ^ self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_met_in_rows_and_columns() {
        let dropout = Dropout { rate: 0.3, seed: 5 };
        let (n, threshold) = (1000, dropout.threshold());
        let dropped =
            |query: usize, key: usize| u64::from(dropout.row([1, 2, query]).hash(key as u32)) < threshold;
        // Six standard deviations.
        let near = |count: usize, n: usize| {
            let deviation = (0.21 * n as f64).sqrt();
            assert!((count as f64 - 0.3 * n as f64).abs() < 6.0 * deviation, "{count} of {n}");
        };
        for fixed in 0..20 {
            near((0..n).filter(|&key| dropped(fixed, key)).count(), n);
            near((0..n).filter(|&query| dropped(query, fixed)).count(), n);
            // Neighbours are independent.
            let both = (0..n).filter(|&key| dropped(fixed, key) == dropped(fixed, key + 1)).count();
            assert!((both as f64 - 0.58 * n as f64).abs() < 100.0, "{both}");
        }
    }
}
