//! Words, and what several scores make of their counts.

use crate::error::{Code, Error, Result};

pub(super) fn same_count(given: &str, n: usize, wanted: &str, m: usize) -> Result<()> {
    if n == m {
        return Ok(());
    }
    Err(Error::new(
        Code::Usage,
        format!("{n} {given} for {m} {wanted}"),
    ))
}

/// Words as Python's `str.split()` finds them: four control characters part words there too.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}'))
        .filter(|word| !word.is_empty())
}

/// Harmonic mean of precision and recall; 0 if both are.
pub(super) fn harmonic(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_part_where_python_parts_them() {
        let got: Vec<&str> = words(" a\u{1f}b\u{a0}\u{3000}c\u{200b}d ").collect();
        assert_eq!(got, ["a", "b", "c\u{200b}d"]);
    }
}
