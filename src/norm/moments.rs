//! Count, mean and sum of squared deviations of a set, and how those of two sets join.

/// The moments of a set of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moments {
    pub count: f64,
    pub mean: f64,
    /// Σ(x − mean)².
    pub squares: f64,
}

impl Moments {
    /// From Σd and Σd² for d = x − shift.
    #[inline(always)]
    pub(super) fn about(shift: f64, count: f64, [sum, squares]: [f64; 2]) -> Self {
        Self { count, mean: shift + sum / count, squares: not_negative(squares - sum * sum / count) }
    }

    /// Adds those of a disjoint set.
    #[inline(always)]
    pub(super) fn join(&mut self, other: Self) {
        if self.count == 0.0 {
            *self = other;
            return;
        }
        if other.count == 0.0 {
            return;
        }
        let count = self.count + other.count;
        let distance = other.mean - self.mean;
        self.mean += distance * (other.count / count);
        self.squares += other.squares + distance * distance * (self.count * other.count / count);
        self.count = count;
    }

    /// From three numbers; zeros are those of nothing.
    #[inline(always)]
    pub(super) fn get(from: &[f64]) -> Self {
        Self { count: from[0], mean: from[1], squares: from[2] }
    }

    /// The counterpart of [`get`](Self::get).
    #[inline(always)]
    pub(super) fn put(self, to: &mut [f64]) {
        to[..3].copy_from_slice(&[self.count, self.mean, self.squares]);
    }

    /// The biased variance.
    pub(super) fn variance(self) -> f64 {
        self.squares / self.count
    }
}

/// A sum of squares that rounding made negative is 0; NaN stays.
#[inline(always)]
pub(super) fn not_negative(squares: f64) -> f64 {
    if squares < 0.0 { 0.0 } else { squares }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_parts_join_to_those_of_the_whole() {
        let of = |values: &[f64]| {
            let squares = values.iter().map(|x| x * x).sum();
            Moments::about(0.0, values.len() as f64, [values.iter().sum(), squares])
        };
        let mut joined = Moments::default();
        for part in [&[1.0, 2.0, 6.0][..], &[], &[-4.0], &[8.0, 8.0]] {
            if !part.is_empty() {
                joined.join(of(part));
            }
            joined.join(Moments::default());
        }
        let whole = of(&[1.0, 2.0, 6.0, -4.0, 8.0, 8.0]);
        assert_eq!((joined.count, whole.count), (6.0, 6.0));
        assert!((joined.mean - whole.mean).abs() < 1e-15);
        assert!((joined.variance() - whole.variance()).abs() < 1e-13);
        assert!(not_negative(f64::NAN).is_nan());
    }
}
