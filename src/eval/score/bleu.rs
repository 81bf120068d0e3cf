//! Corpus BLEU on the words of `mteval-v13a`, with exponential smoothing.

use std::collections::HashMap;
use std::sync::LazyLock;

use fancy_regex::Regex;

use super::words::{same_count, words};
use crate::error::{Code, Error, Result};

/// Longest runs of words that are counted.
const ORDER: usize = 4;

/// What BLEU does beside its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BleuOptions {
    /// Compares in lower case.
    pub lowercase: bool,
    /// Leaves out the orders that no hypothesis is long enough for, as is done for the BLEU of
    /// single sentences.
    pub effective_order: bool,
}

/// BLEU and what it is made of; arrays are by the length of runs, from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Bleu {
    /// From 0 to 100.
    pub score: f64,
    /// Share of the hypotheses' runs that are in a reference, smoothed, from 0 to 100.
    pub precisions: [f64; ORDER],
    /// From 0 to 1; below 1 if the hypotheses are shorter than the references.
    pub brevity_penalty: f64,
    /// Runs in common.
    pub counts: [usize; ORDER],
    /// Runs of the hypotheses.
    pub totals: [usize; ORDER],
    /// Words of the hypotheses.
    pub hyp_len: usize,
    /// Words of the references, of each sentence the one nearest in length.
    pub ref_len: usize,
}

/// BLEU of hypotheses, each with its references, at least one.
///
/// # Errors
/// [`Code::Usage`] if the counts differ, or a hypothesis has no reference.
pub fn bleu<S: AsRef<str>>(
    hypotheses: &[S],
    references: &[Vec<S>],
    options: BleuOptions,
) -> Result<Bleu> {
    let lists = ("lists of references", "hypotheses");
    same_count(lists.0, references.len(), lists.1, hypotheses.len())?;
    let mut sums = Sums::default();
    for (i, (hypothesis, references)) in hypotheses.iter().zip(references).enumerate() {
        let prepare = |text: &S| tokenize(text.as_ref(), options.lowercase);
        let references: Vec<String> = references.iter().map(prepare).collect();
        if references.is_empty() {
            let message = format!("hypothesis {} has no reference", i + 1);
            return Err(Error::new(Code::Usage, message));
        }
        sums.add(&prepare(hypothesis), &references);
    }
    Ok(sums.score(options.effective_order))
}

/// A text's words by the rules of `mteval-v13a`, with one space between them.
pub fn tokenize_13a(text: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        [
            // Every ASCII sign but the apostrophe, comma, hyphen and point.
            (r"([{-~\[-` -&(-+:-@/])", " $1 "),
            // Points and commas, but where digits stand on both sides.
            (r"([^0-9])([.,])", "$1 $2 "),
            (r"([.,])([^0-9])", " $1 $2"),
            (r"([0-9])(-)", "$1 $2 "),
        ]
        .into_iter()
        .map(|(pattern, with)| (Regex::new(pattern).expect("a constant pattern"), with))
        .collect()
    });
    let text = text.replace("<skipped>", "").replace("-\n", "");
    let mut text = format!(" {} ", text.replace('\n', " "));
    for (entity, sign) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, sign);
    }
    for (rule, with) in RULES.iter() {
        text = rule.replace_all(&text, *with).into_owned();
    }
    words(&text).collect::<Vec<_>>().join(" ")
}

fn tokenize(text: &str, lowercase: bool) -> String {
    let end =
        text.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}'));
    if lowercase {
        tokenize_13a(&end.to_lowercase())
    } else {
        tokenize_13a(end)
    }
}

#[derive(Default)]
struct Sums {
    counts: [usize; ORDER],
    totals: [usize; ORDER],
    hyp_len: usize,
    ref_len: usize,
}

impl Sums {
    fn add(&mut self, hypothesis: &str, references: &[String]) {
        let hypothesis: Vec<&str> = words(hypothesis).collect();
        let references: Vec<Vec<&str>> = references.iter().map(|r| words(r).collect()).collect();
        let length = hypothesis.len();
        self.hyp_len += length;
        // Of two references equally near the shorter counts.
        let nearest = references
            .iter()
            .map(Vec::len)
            .min_by_key(|n| (n.abs_diff(length), *n));
        self.ref_len += nearest.unwrap_or(0);
        for (n, (count, total)) in (1..).zip(self.counts.iter_mut().zip(&mut self.totals)) {
            let mut most: HashMap<&[&str], usize> = HashMap::new();
            for reference in &references {
                for (run, times) in runs(reference, n) {
                    let most = most.entry(run).or_default();
                    *most = times.max(*most);
                }
            }
            for (run, times) in runs(&hypothesis, n) {
                *total += times;
                *count += times.min(most.get(run).copied().unwrap_or(0));
            }
        }
    }

    fn score(&self, effective_order: bool) -> Bleu {
        let (hyp, reference) = (self.hyp_len as f64, self.ref_len as f64);
        let brevity_penalty = match self.hyp_len {
            n if n >= self.ref_len => 1.0,
            0 => 0.0,
            _ => (1.0 - reference / hyp).exp(),
        };
        let mut result = Bleu {
            score: 0.0,
            precisions: [0.0; ORDER],
            brevity_penalty,
            counts: self.counts,
            totals: self.totals,
            hyp_len: self.hyp_len,
            ref_len: self.ref_len,
        };
        // Smoothing would make something of nothing.
        if self.counts == [0; ORDER] {
            return result;
        }
        let (mut smooth, mut order) = (1.0, ORDER);
        let parts = self
            .counts
            .iter()
            .zip(&self.totals)
            .zip(&mut result.precisions);
        for (n, ((count, total), precision)) in (1..).zip(parts) {
            if *total == 0 {
                break;
            }
            if effective_order {
                order = n;
            }
            *precision = if *count == 0 {
                smooth *= 2.0;
                100.0 / (smooth * *total as f64)
            } else {
                100.0 * *count as f64 / *total as f64
            };
        }
        // The logarithm of a precision of 0 makes the score 0.
        let logarithms = result.precisions.iter().take(order).map(|p| p.ln());
        result.score = brevity_penalty * (logarithms.sum::<f64>() / order as f64).exp();
        result
    }
}

fn runs<'a, 'b>(words: &'a [&'b str], n: usize) -> HashMap<&'a [&'b str], usize> {
    let mut counts = HashMap::new();
    for run in words.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::eval::score::testing::oracle;

    #[derive(Deserialize)]
    struct Corpus {
        score: f64,
        counts: [usize; ORDER],
        totals: [usize; ORDER],
        precisions: [f64; ORDER],
        bp: f64,
        sys_len: usize,
        ref_len: usize,
    }

    #[derive(Deserialize)]
    struct System {
        hyp: Vec<String>,
        #[serde(rename = "13a")]
        mixed: Corpus,
        #[serde(rename = "13a_lc")]
        lower: Corpus,
        sentence_13a_exp: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Edge {
        hyp: Vec<String>,
        refs: Vec<Vec<String>>,
        corpus: Corpus,
        corpus_eff: Option<f64>,
    }

    #[derive(Deserialize)]
    struct Oracle {
        references: Vec<String>,
        systems: BTreeMap<String, System>,
        tok13a: Vec<(String, String)>,
        edge: Vec<Edge>,
    }

    const MIXED: BleuOptions = BleuOptions {
        lowercase: false,
        effective_order: false,
    };
    const SENTENCE: BleuOptions = BleuOptions {
        lowercase: false,
        effective_order: true,
    };

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-13 * b.abs()
    }

    fn check(got: &Bleu, expected: &Corpus) {
        assert_eq!((got.counts, got.totals), (expected.counts, expected.totals));
        assert_eq!(
            (got.hyp_len, got.ref_len),
            (expected.sys_len, expected.ref_len)
        );
        assert_eq!(got.precisions, expected.precisions);
        assert!(near(got.brevity_penalty, expected.bp), "{got:?}");
        assert!(
            near(got.score, expected.score),
            "{} {}",
            got.score,
            expected.score
        );
    }

    #[test]
    fn scores_equal_sacrebleu() {
        let Some(oracle) = oracle::<Oracle>("bleu") else {
            return;
        };
        for (text, expected) in &oracle.tok13a {
            assert_eq!(tokenize_13a(text), *expected);
        }
        let references: Vec<Vec<String>> =
            oracle.references.iter().map(|r| vec![r.clone()]).collect();
        for system in oracle.systems.values() {
            let lower = BleuOptions {
                lowercase: true,
                ..MIXED
            };
            check(
                &bleu(&system.hyp, &references, MIXED).unwrap(),
                &system.mixed,
            );
            check(
                &bleu(&system.hyp, &references, lower).unwrap(),
                &system.lower,
            );
            for (i, expected) in system.sentence_13a_exp.iter().enumerate() {
                let got = bleu(&system.hyp[i..=i], &references[i..=i], SENTENCE).unwrap();
                assert!(near(got.score, *expected), "{i}: {} {expected}", got.score);
            }
        }
        for edge in &oracle.edge {
            let of = |i: usize| edge.refs.iter().map(|stream| stream[i].clone()).collect();
            let references: Vec<Vec<String>> = (0..edge.hyp.len()).map(of).collect();
            check(&bleu(&edge.hyp, &references, MIXED).unwrap(), &edge.corpus);
            if let Some(expected) = edge.corpus_eff {
                let got = bleu(&edge.hyp, &references, SENTENCE).unwrap();
                assert!(near(got.score, expected), "{} {expected}", got.score);
            }
        }
        assert_eq!((oracle.systems.len(), oracle.edge.len()), (3, 9));
    }

    #[test]
    fn hand_made_cases() {
        // One of two words, no pair of one: (50 · 100/2)^½, with no longer runs to count.
        let got = bleu(&["a b"], &[vec!["a c"]], SENTENCE).unwrap();
        assert!((got.score - 50.0).abs() < 1e-12, "{got:?}");
        assert_eq!(bleu(&["a b"], &[vec!["a c"]], MIXED).unwrap().score, 0.0);
        // Lengths 2 and 4 are equally near to 3; the shorter counts.
        let got = bleu(&["a b c"], &[vec!["a b c d", "a b"]], MIXED).unwrap();
        assert_eq!((got.ref_len, got.brevity_penalty), (2, 1.0));
        assert_eq!(
            tokenize_13a("It's 1,000.5, 3-4 (e.g.) x-y"),
            "It's 1,000.5 , 3 - 4 ( e . g . ) x-y"
        );
        let none: [&str; 0] = [];
        assert_eq!(bleu(&none, &[], MIXED).unwrap().score, 0.0);
        assert_eq!(bleu(&["a"], &[], MIXED).unwrap_err().code(), Code::Usage);
        assert_eq!(
            bleu(&["a"], &[vec![]], MIXED).unwrap_err().code(),
            Code::Usage
        );
    }
}
