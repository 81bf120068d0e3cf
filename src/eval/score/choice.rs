//! Choices: the one that a model finds likeliest, and how many were right.

use super::words::same_count;
use crate::error::Result;

/// The choice with the highest score, the first of equals; NaN is never chosen.
///
/// `None` if there is nothing to choose from.
pub fn best_choice(scores: &[f64]) -> Option<usize> {
    let numbers = scores.iter().enumerate().filter(|(_, s)| !s.is_nan());
    let best = numbers.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(index, _)| index)
}

/// The share of choices that are right, from 0 to 1; NaN of none.
///
/// # Errors
/// [`Code::Usage`](crate::Code::Usage) if there are not as many labels as choices.
pub fn accuracy(choices: &[usize], labels: &[usize]) -> Result<f64> {
    same_count("labels", labels.len(), "choices", choices.len())?;
    let right = choices.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / choices.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn choices_are_scored() {
        assert_eq!(best_choice(&[f64::NAN, -2.0, -1.0, -1.0]), Some(2));
        assert_eq!(best_choice(&[f64::NAN]), None);
        assert_eq!(accuracy(&[0, 1, 2, 3], &[0, 1, 2, 0]).unwrap(), 0.75);
        assert!(accuracy(&[], &[]).unwrap().is_nan());
        assert_eq!(accuracy(&[0], &[]).unwrap_err().code(), Code::Usage);
    }
}
