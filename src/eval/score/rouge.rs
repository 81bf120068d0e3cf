//! ROUGE-N and ROUGE-L on words of ASCII letters and digits, without stemming.

use std::collections::HashMap;

use super::words::harmonic;

/// Precision, recall and their harmonic mean, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Prf {
    /// Share of the prediction that is in the reference.
    pub precision: f64,
    /// Share of the reference that is in the prediction.
    pub recall: f64,
    /// 2·P·R / (P + R), or 0.
    pub f1: f64,
}

impl Prf {
    fn new(common: usize, predicted: usize, reference: usize) -> Self {
        // With nothing on one side there is nothing in common, and the share is 0, not NaN.
        let precision = common as f64 / predicted.max(1) as f64;
        let recall = common as f64 / reference.max(1) as f64;
        Self {
            precision,
            recall,
            f1: harmonic(precision, recall),
        }
    }
}

/// The longest common subsequence of words, against the reference that gives the best F1.
///
/// All zero without references.
pub fn rouge_l(prediction: &str, references: &[&str]) -> Prf {
    let prediction = Words::new(prediction);
    let prediction = prediction.list();
    best(references, |reference| {
        let reference = reference.list();
        let common = longest_common(&prediction, &reference);
        Prf::new(common, prediction.len(), reference.len())
    })
}

/// Runs of `n` words in common, each as often as it stands in both, against the reference that
/// gives the best F1.
///
/// All zero without references, and for `n` = 0.
pub fn rouge_n(n: usize, prediction: &str, references: &[&str]) -> Prf {
    if n == 0 {
        return Prf::default();
    }
    let prediction = Words::new(prediction);
    let prediction = prediction.list();
    let ours = count(&prediction, n);
    best(references, |reference| {
        let reference = reference.list();
        let theirs = count(&reference, n);
        let both = ours
            .iter()
            .map(|(run, a)| theirs.get(run).map_or(0, |b| *a.min(b)));
        let runs = |words: &[&str]| (words.len() + 1).saturating_sub(n);
        Prf::new(both.sum(), runs(&prediction), runs(&reference))
    })
}

/// The first of the scores with the greatest F1.
fn best(references: &[&str], score: impl Fn(&Words) -> Prf) -> Prf {
    let scores = references.iter().map(|text| score(&Words::new(text)));
    let best = scores.reduce(|best, next| if next.f1 > best.f1 { next } else { best });
    best.unwrap_or_default()
}

/// A text in lower case, and its words.
struct Words(String);

impl Words {
    fn new(text: &str) -> Self {
        Self(text.to_lowercase())
    }

    fn list(&self) -> Vec<&str> {
        // Words part at letters outside ASCII too; `café` is `caf`.
        let parts = self.0.split(|c: char| !c.is_ascii_alphanumeric());
        parts.filter(|word| !word.is_empty()).collect()
    }
}

fn count<'a, 'b>(words: &'a [&'b str], n: usize) -> HashMap<&'a [&'b str], usize> {
    let mut counts = HashMap::new();
    for run in words.windows(n) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// Length of the longest common subsequence, in memory for one row of the table.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len()];
    for word in a {
        let (mut diagonal, mut left) = (0, 0);
        for (cell, other) in row.iter_mut().zip(b) {
            let above = *cell;
            *cell = if word == other {
                diagonal + 1
            } else {
                above.max(left)
            };
            (diagonal, left) = (above, *cell);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::eval::score::testing::oracle;

    #[derive(Deserialize)]
    struct Item {
        hyp: String,
        refs: Vec<String>,
        nostem: BTreeMap<String, [f64; 3]>,
        multi_nostem: BTreeMap<String, f64>,
    }

    #[derive(Deserialize)]
    struct Edge {
        #[serde(rename = "ref")]
        reference: String,
        hyp: String,
        nostem: BTreeMap<String, [f64; 3]>,
    }

    #[derive(Deserialize)]
    struct Oracle {
        items: Vec<Item>,
        edge: Vec<Edge>,
        tokenize: Vec<(String, Vec<String>, Vec<String>)>,
    }

    fn score(name: &str, prediction: &str, references: &[&str]) -> Option<Prf> {
        match name {
            "rouge1" => Some(rouge_n(1, prediction, references)),
            "rouge2" => Some(rouge_n(2, prediction, references)),
            "rougeL" => Some(rouge_l(prediction, references)),
            _ => None,
        }
    }

    #[test]
    fn scores_equal_rouge_score() {
        let Some(oracle) = oracle::<Oracle>("rouge") else {
            return;
        };
        let check = |prediction: &str, reference: &str, expected: &BTreeMap<String, [f64; 3]>| {
            let mut checked = 0;
            for (name, [p, r, f]) in expected {
                let Some(got) = score(name, prediction, &[reference]) else {
                    continue;
                };
                assert_eq!(
                    [got.precision, got.recall, got.f1],
                    [*p, *r, *f],
                    "{name}: {prediction}"
                );
                checked += 1;
            }
            assert_eq!(checked, 3);
        };
        for item in &oracle.items {
            check(&item.hyp, &item.refs[0], &item.nostem);
            let references: Vec<&str> = item.refs.iter().map(String::as_str).collect();
            for (name, f1) in &item.multi_nostem {
                if let Some(got) = score(name, &item.hyp, &references) {
                    assert_eq!(got.f1, *f1, "{name}");
                }
            }
        }
        for edge in &oracle.edge {
            check(&edge.hyp, &edge.reference, &edge.nostem);
        }
        for (text, expected, _) in &oracle.tokenize {
            assert_eq!(Words::new(text).list(), *expected);
        }
        assert_eq!((oracle.items.len(), oracle.edge.len()), (150, 7));
    }

    #[test]
    fn hand_made_cases() {
        // "the cat mat" of 3 words is common to texts of 4 and 5 words.
        let got = rouge_l("the cat a mat", &["the big cat is-mat"]);
        assert_eq!((got.precision, got.recall), (0.75, 0.6));
        assert!((got.f1 - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!(rouge_l("a b", &["x y", "B a", "a b"]).f1, 1.0);
        assert_eq!(rouge_l("a b", &[]), Prf::default());
        assert_eq!(rouge_l("…", &[""]), Prf::default());
        // A run that stands thrice in one and twice in the other is common twice.
        assert_eq!(rouge_n(1, "a a a", &["a a b b"]).recall, 0.5);
        assert_eq!(rouge_n(5, "a b", &["a b"]), Prf::default());
        assert_eq!(rouge_n(0, "a b", &["a b"]), Prf::default());
    }
}
