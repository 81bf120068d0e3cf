//! Scores of generated text against references, equal to the reference implementations.
//!
//! | module | equals | for |
//! |---|---|---|
//! | [`rouge`] | `rouge_score` 0.1.2 without stemming | summaries |
//! | [`bleu`] | `sacrebleu` 2.6, tokenizer 13a | translations |
//! | [`squad`] | the official SQuAD v1.1 script | extracted answers |
//! | [`gsm8k`] | OpenAI's exact match | calculations |

pub mod bleu;
pub mod gsm8k;
pub mod rouge;
pub mod squad;

use crate::error::{Code, Error, Result};

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
/// [`Code::Usage`] if there are not as many labels as choices.
pub fn accuracy(choices: &[usize], labels: &[usize]) -> Result<f64> {
    same_count("labels", labels.len(), "choices", choices.len())?;
    let right = choices.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / choices.len() as f64)
}

fn same_count(given: &str, n: usize, wanted: &str, m: usize) -> Result<()> {
    if n == m {
        return Ok(());
    }
    Err(Error::new(
        Code::Usage,
        format!("{n} {given} for {m} {wanted}"),
    ))
}

/// Words as Python's `str.split()` finds them: four control characters part words there too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}'))
        .filter(|word| !word.is_empty())
}

/// Harmonic mean of precision and recall; 0 if both are.
fn harmonic(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    }
}

/// Reads the values that the reference implementations gave, where they are at hand.
#[cfg(test)]
fn oracle<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
    let path = crate::peft::testing::shared(&format!("oracle/{name}.json"))?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_scored() {
        assert_eq!(best_choice(&[f64::NAN, -2.0, -1.0, -1.0]), Some(2));
        assert_eq!(best_choice(&[f64::NAN]), None);
        assert_eq!(accuracy(&[0, 1, 2, 3], &[0, 1, 2, 0]).unwrap(), 0.75);
        assert!(accuracy(&[], &[]).unwrap().is_nan());
        assert_eq!(accuracy(&[0], &[]).unwrap_err().code(), Code::Usage);
    }

    #[test]
    fn words_part_where_python_parts_them() {
        let got: Vec<&str> = words(" a\u{1f}b\u{a0}\u{3000}c\u{200b}d ").collect();
        assert_eq!(got, ["a", "b", "c\u{200b}d"]);
    }
}
