//! GSM8K: the final number after `####`.

/// The final number of a solution: after the first `#### ` that a number follows, without commas.
///
/// Solutions that end with a line `A: 18` in place of `#### 18` are read alike.
pub fn extract(solution: &str) -> Option<String> {
    let solution = solution.replace("\nA: ", "\n#### ");
    let mut parts = solution.split("#### ");
    // What stands before the first mark is no answer.
    parts.next();
    parts.find_map(leading_number).map(|n| n.replace(',', ""))
}

/// Whether the solution's final number is, as a text, the one wanted: `18`, or a solution with it.
pub fn matches(solution: &str, gold: &str) -> bool {
    let gold = extract(gold).unwrap_or_else(|| gold.trim().replace(',', ""));
    extract(solution).is_some_and(|answer| answer == gold)
}

/// A minus or none, then digits, points and commas, at least one of them.
fn leading_number(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let part = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    let length = digits.find(|c| !part(c)).unwrap_or(digits.len());
    let sign = text.len() - digits.len();
    if length == 0 {
        return None;
    }
    text.get(..sign + length)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::eval::score::testing::oracle;

    #[derive(Deserialize)]
    struct Item {
        solution: String,
        gold: String,
        extracted: String,
        is_correct_openai: bool,
        #[serde(rename = "match")]
        matched: bool,
    }

    #[derive(Deserialize)]
    struct Oracle {
        items: Vec<Item>,
    }

    #[test]
    fn answers_equal_those_of_openai() {
        let Some(oracle) = oracle::<Oracle>("gsm8k") else {
            return;
        };
        assert_eq!(oracle.items.len(), 1600);
        for item in &oracle.items {
            let got = extract(&item.solution).unwrap_or_else(|| "[invalid]".to_owned());
            assert_eq!(got, item.extracted, "{}", item.solution);
            let matched = matches(&item.solution, &item.gold);
            assert_eq!(matched, item.matched, "{}", item.solution);
            assert_eq!(matched, item.is_correct_openai, "{}", item.solution);
        }
    }

    #[test]
    fn hand_made_cases() {
        for (solution, expected) in [
            ("so 3\n#### 1,234.5 dollars", Some("1234.5")),
            ("#### x\n#### -7", Some("-7")),
            ("1\nA: 18", Some("18")),
            ("A: 18", None),
            ("####18", None),
            ("#### -", None),
            ("18 #### ", None),
            ("####### 5", Some("5")),
        ] {
            assert_eq!(extract(solution).as_deref(), expected, "{solution}");
        }
        assert!(matches("#### 1,000", "1000"));
        assert!(matches("#### 1000", "steps\n#### 1,000"));
        // The match is of texts, as the reference has it.
        assert!(!matches("#### 18.0", "18"));
        assert!(!matches("18", "18"));
    }
}
