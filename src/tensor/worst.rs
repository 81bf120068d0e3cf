//! Maxima and bounds of errors, in which what is not a number counts as the worst.
//!
//! `f64::max` drops NaN, and so does every `if a > b`: an error that could not be computed would
//! look like none. Whatever is reported as a largest error, or held against a tolerance, goes
//! through here.

/// The larger of two; NaN where either is NaN.
pub fn larger<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a >= b || a.partial_cmp(&a).is_none() {
        a
    } else {
        b
    }
}

/// The largest; 0 of none, NaN where one is NaN. For errors, which are not below zero.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, larger)
}

/// `value`, or 0 where rounding took it below; NaN stays NaN.
pub(crate) fn at_least_zero(value: f64) -> f64 {
    larger(value, 0.0)
}

/// Whether an error is finite and at most `tolerance`, which may be infinite.
pub(crate) fn is_within(error: f64, tolerance: f64) -> bool {
    error.is_finite() && error <= tolerance
}

/// The largest of many errors, and where it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Worst {
    /// The largest; NaN where one is NaN, 0 of none.
    pub(crate) error: f64,
    /// The place of the first that is as large; empty of none.
    pub(crate) place: String,
}

impl Worst {
    /// Takes in the error of one place.
    pub(crate) fn add(&mut self, place: &str, error: f64) {
        let is_worse = !self.error.is_nan() && (error.is_nan() || error > self.error);
        if is_worse || self.place.is_empty() {
            self.error = error;
            place.clone_into(&mut self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Breaks where an error that is NaN or infinite drops out of a maximum or passes a bound.
    #[test]
    fn what_is_not_finite_wins_and_passes_nothing() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for (a, b) in [(nan, 1.0), (1.0, nan), (nan, inf), (inf, nan), (nan, nan)] {
            assert!(larger(a, b).is_nan(), "{a} {b}");
            assert!(larger(a as f32, b as f32).is_nan(), "{a} {b}");
        }
        assert_eq!(larger(1.0, inf), inf);
        assert_eq!((largest([]), largest([0.5, 2.0, 1.0])), (0.0, 2.0));
        assert!(at_least_zero(nan).is_nan());
        assert_eq!((at_least_zero(-1e-30), at_least_zero(2.0)), (0.0, 2.0));
        for tolerance in [0.0, 1.0, inf, nan] {
            assert!(!is_within(nan, tolerance) && !is_within(inf, tolerance));
        }
        assert!(is_within(1.0, 1.0) && is_within(1.0, inf));
        assert!(!is_within(1.0, 0.9) && !is_within(0.0, nan));
    }

    proptest! {
        /// Breaks where an error is passed over, or a place is named that is not the first of the worst.
        #[test]
        fn the_worst_is_found_wherever_it_is(
            errors in prop::collection::vec(
                prop_oneof![4 => 0.0f64..10.0, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)], 1..20),
        ) {
            let mut worst = Worst::default();
            for (i, error) in errors.iter().enumerate() {
                worst.add(&i.to_string(), *error);
            }
            prop_assert_eq!(largest(errors.iter().copied()).to_bits(), worst.error.to_bits());
            let first = errors.iter().position(|e| e.to_bits() == worst.error.to_bits());
            prop_assert_eq!(first.map(|i| i.to_string()), Some(worst.place));
        }
    }
}
