//! What a merge did to the elements it touched.

use crate::tensor::larger;

/// What a merge did to the weights it touched.
///
/// Sums are taken in f64 over short f32 partial sums, in an order that depends on the shape
/// alone: the same numbers on any processor and any number of threads. They are statistics, good
/// to about six digits for updates between 1e-15 and 1e15, and mean nothing where
/// [`Stats::non_finite`] is not zero. Squares beyond leave the range of f32: a sum is then
/// infinite, or zero although [`Stats::max_abs_delta`], which is not squared, is not.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Elements merged.
    pub elements: u64,
    /// Elements whose stored bits differ afterwards (−0 to +0 counts).
    pub changed: u64,
    /// Elements that are NaN or infinite afterwards.
    pub non_finite: u64,
    /// ‖T‖², the squared Frobenius norm of the exact update.
    pub delta_sq: f64,
    /// ⟨W′ − W, T⟩, what of the update arrived in the stored weights.
    pub moved_dot: f64,
    /// ‖W′ − W‖², the squared norm of the stored change.
    pub moved_sq: f64,
    /// Largest |T|.
    pub max_abs_delta: f32,
}

impl Stats {
    /// Takes in the statistics of further elements.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.changed += other.changed;
        self.non_finite += other.non_finite;
        self.delta_sq += other.delta_sq;
        self.moved_dot += other.moved_dot;
        self.moved_sq += other.moved_sq;
        self.max_abs_delta = larger(self.max_abs_delta, other.max_abs_delta);
    }

    /// Share of elements whose stored bits changed, from 0 to 1; 0 where there are none.
    pub fn changed_share(&self) -> f64 {
        if self.elements == 0 {
            0.0
        } else {
            self.changed as f64 / self.elements as f64
        }
    }

    /// ‖ΔW‖, the Frobenius norm of the update before rounding; at least its largest element, also
    /// where the squares of all were too small for f32.
    pub fn delta_norm(&self) -> f64 {
        larger(self.delta_sq.sqrt(), self.max_abs_delta.into())
    }

    /// ‖W′ − W‖, the Frobenius norm of the stored change.
    pub fn moved_norm(&self) -> f64 {
        self.moved_sq.sqrt()
    }

    /// How much of ΔW survived the rounding: ⟨W′ − W, ΔW⟩ / ‖ΔW‖². 1 where all did, 0 where
    /// every element was too small to move its weight; `None` where ΔW is zero, or where the squares
    /// leave the range of f32.
    pub fn survived(&self) -> Option<f64> {
        survived(self.moved_dot, self.delta_sq)
    }
}

/// The share of an update that arrived, where it can be told.
pub(crate) fn survived(moved_dot: f64, delta_sq: f64) -> Option<f64> {
    let known = delta_sq > 0.0 && delta_sq.is_finite() && moved_dot.is_finite();
    known.then(|| moved_dot / delta_sq)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where sums that left their range pass for a zero update, or for a share of one.
    #[test]
    fn what_left_the_range_is_neither_zero_nor_a_share() {
        let tiny = Stats {
            elements: 1,
            max_abs_delta: 1e-30,
            ..Stats::default()
        };
        assert!(tiny.delta_norm() > 0.0 && tiny.survived().is_none());
        let huge = Stats {
            delta_sq: f64::INFINITY,
            moved_dot: 1.0,
            max_abs_delta: 1e30,
            ..Stats::default()
        };
        assert!(huge.delta_norm().is_infinite() && huge.survived().is_none());
        let nan = Stats {
            max_abs_delta: f32::NAN,
            ..Stats::default()
        };
        for (mut one, two) in [(tiny, nan), (nan, tiny)] {
            one.add(&two);
            assert!(one.max_abs_delta.is_nan() && one.delta_norm().is_nan());
        }
    }
}
