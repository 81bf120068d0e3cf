//! SQuAD v1.1: exact match and F1 of words, after normalising answers.

use std::collections::HashMap;

use super::words::{harmonic, words};

/// An answer in lower case, without ASCII punctuation, English articles and superfluous space.
pub fn normalize(text: &str) -> String {
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    words(&without_articles(&text))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether the prediction is one of the answers, both normalised.
pub fn exact_match(prediction: &str, answers: &[&str]) -> bool {
    let prediction = normalize(prediction);
    answers.iter().any(|answer| normalize(answer) == prediction)
}

/// F1 of the words that prediction and answer have in common, against the best of the answers:
/// from 0 to 1, and 0 without answers or words.
pub fn f1(prediction: &str, answers: &[&str]) -> f64 {
    let prediction = normalize(prediction);
    let scores = answers
        .iter()
        .map(|answer| pair_f1(&prediction, &normalize(answer)));
    scores.fold(0.0, f64::max)
}

fn pair_f1(prediction: &str, answer: &str) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    let mut answered = 0usize;
    for word in words(answer) {
        *left.entry(word).or_default() += 1;
        answered += 1;
    }
    let (mut predicted, mut common) = (0usize, 0usize);
    for word in words(prediction) {
        predicted += 1;
        if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    harmonic(
        common as f64 / predicted as f64,
        common as f64 / answered as f64,
    )
}

/// Puts a space for each article that is a word of its own.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(if matches!(word, "a" | "an" | "the") {
            " "
        } else {
            word
        });
        let next = after.find(is_word).unwrap_or(after.len());
        let (gap, after) = after.split_at(next);
        out.push_str(gap);
        rest = after;
    }
    out
}

/// Python's `\w`, as far as the standard library tells letters from marks.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::eval::score::testing::oracle;

    #[derive(Deserialize)]
    struct Item {
        golds: Vec<String>,
        pred: BTreeMap<String, Option<String>>,
        em: BTreeMap<String, bool>,
        f1: BTreeMap<String, f64>,
    }

    #[derive(Deserialize)]
    struct Edge {
        pred: String,
        gold: String,
        f1: f64,
        em: bool,
    }

    #[derive(Deserialize)]
    struct Oracle {
        items: BTreeMap<String, Item>,
        normalize: Vec<(String, String)>,
        edge: Vec<Edge>,
    }

    #[test]
    fn scores_equal_the_official_script() {
        let Some(oracle) = oracle::<Oracle>("squad") else {
            return;
        };
        for (text, expected) in &oracle.normalize {
            assert_eq!(normalize(text), *expected);
        }
        let mut checked = 0;
        for item in oracle.items.values() {
            let answers: Vec<&str> = item.golds.iter().map(String::as_str).collect();
            for (system, prediction) in &item.pred {
                let Some(prediction) = prediction else {
                    continue;
                };
                assert_eq!(
                    exact_match(prediction, &answers),
                    item.em[system],
                    "{prediction}"
                );
                assert_eq!(f1(prediction, &answers), item.f1[system], "{prediction}");
                checked += 1;
            }
        }
        assert!(checked >= 1190, "{checked}");
        for edge in &oracle.edge {
            assert_eq!(
                exact_match(&edge.pred, &[&edge.gold]),
                edge.em,
                "{}",
                edge.pred
            );
            assert_eq!(f1(&edge.pred, &[&edge.gold]), edge.f1, "{}", edge.pred);
        }
    }

    #[test]
    fn hand_made_cases() {
        assert_eq!(
            normalize(" The  U.S. Army's a_the an-x"),
            "us armys athe anx"
        );
        // Articles go after punctuation went, and only where they are words of their own.
        assert_eq!(normalize("(A) theatre «the» end"), "theatre « » end");
        assert!(exact_match("The cat!", &["dog", "cat"]));
        // Two of two predicted words are among three.
        assert!((f1("x y", &["x", "z y the x"]) - 0.8).abs() < 1e-15);
        assert_eq!(f1("", &[""]), 0.0);
        assert!(exact_match("", &["the"]));
        assert_eq!(f1("x", &[]), 0.0);
        assert!(!exact_match("x", &[]));
    }
}
