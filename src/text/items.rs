//! What evaluation asks, and what it expects for an answer.

use std::path::Path;

use serde::Deserialize;

use super::jsonl::{Lines, bad_line, parse};
use crate::error::{Code, Error, Result};

const EXPECTED: &str =
    r#"{"prompt": …} with "completion", "answers": […], "choices": […] and "label", or "final""#;

/// One question. At least one of `completion`, `answers`, `choices` and `final_answer` is there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EvalItem {
    /// The text to continue.
    pub prompt: String,
    /// The continuation wanted.
    pub completion: Option<String>,
    /// Answers any of which is right; may be empty.
    #[serde(default)]
    pub answers: Vec<String>,
    /// Continuations to choose from: none, or at least two.
    #[serde(default)]
    pub choices: Vec<String>,
    /// Index of the right choice; below the number of choices, and there exactly if they are.
    pub label: Option<usize>,
    /// The result of a calculation; `final` in the file.
    #[serde(rename = "final")]
    pub final_answer: Option<String>,
}

impl EvalItem {
    /// The texts a generated one is compared with: the answers, or else the completion.
    pub fn references(&self) -> Vec<&str> {
        if self.answers.is_empty() {
            return self.completion.as_deref().into_iter().collect();
        }
        self.answers.iter().map(String::as_str).collect()
    }

    fn fault(&self) -> Option<&'static str> {
        match (self.choices.len(), self.label) {
            (0, Some(_)) => return Some("a label without choices"),
            (1, _) => return Some("a single choice is none"),
            (2.., None) => return Some("choices without a label"),
            (n, Some(label)) if label >= n => {
                return Some("the label is not the index of a choice");
            }
            _ => {}
        }
        let nothing =
            self.references().is_empty() && self.choices.is_empty() && self.final_answer.is_none();
        nothing.then_some("nothing to compare an answer with")
    }
}

/// Reads the questions of a JSONL file, at most `limit` of them; other keys are ignored.
///
/// # Errors
/// [`Code::BadExample`] with the number of the bad line; [`Code::NoExamples`] for a file without
/// any; [`Code::Io`].
pub fn load_items(path: &Path, limit: Option<usize>) -> Result<Vec<EvalItem>> {
    let mut items = Vec::new();
    for line in Lines::open(path)?.take(limit.unwrap_or(usize::MAX)) {
        let (number, line) = line?;
        let item: EvalItem = parse(number, &line, EXPECTED).map_err(|e| e.file(path))?;
        if let Some(fault) = item.fault() {
            let what = format!("{fault}; expected {EXPECTED}");
            return Err(bad_line(number, &what).file(path));
        }
        items.push(item);
    }
    if items.is_empty() {
        return Err(Error::new(Code::NoExamples, "no question to evaluate").file(path));
    }
    Ok(items)
}

/// Reads the `prompt` of each line of a JSONL file; other keys are ignored.
///
/// # Errors
/// As [`load_items`], but no line needs an answer.
pub fn load_prompts(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        prompt: String,
    }
    let mut prompts = Vec::new();
    for line in Lines::open(path)? {
        let (number, line) = line?;
        let line: Line = parse(number, &line, r#"{"prompt": …}"#).map_err(|e| e.file(path))?;
        prompts.push(line.prompt);
    }
    if prompts.is_empty() {
        return Err(Error::new(Code::NoExamples, "no prompt to continue").file(path));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shared;

    fn load(text: &str) -> Result<Vec<EvalItem>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load_items(file.path(), None)
    }

    #[test]
    fn items_keep_what_is_there() {
        let text = r#"{"prompt":"q","completion":" a","answers":["b","c"],"id":7}
            {"prompt":"q","completion":" a"}
            {"prompt":"q","choices":["x","y"],"label":1}
            {"prompt":"q","final":"18"}"#;
        let items = load(text).unwrap();
        assert_eq!(items[0].references(), ["b", "c"]);
        assert_eq!(items[1].references(), [" a"]);
        assert_eq!((items[2].choices.len(), items[2].label), (2, Some(1)));
        assert_eq!(items[3].final_answer.as_deref(), Some("18"));
    }

    #[test]
    fn faults_are_named_with_their_line() {
        // A label past its choices would be an answer that no model can give.
        for (line, reason) in [
            (r#"{"completion":"a"}"#, "missing field `prompt`"),
            (r#"{"prompt":"a"}"#, "nothing to compare"),
            (r#"{"prompt":"a","answers":[]}"#, "nothing to compare"),
            (
                r#"{"prompt":"a","label":0,"final":"1"}"#,
                "label without choices",
            ),
            (r#"{"prompt":"a","choices":["x","y"]}"#, "without a label"),
            (
                r#"{"prompt":"a","choices":["x","y"],"label":2}"#,
                "not the index",
            ),
            (
                r#"{"prompt":"a","choices":["x","y"],"label":-1}"#,
                "invalid value",
            ),
            (
                r#"{"prompt":"a","choices":["x"],"label":0}"#,
                "single choice",
            ),
        ] {
            let error = load(&format!("\n{line}")).unwrap_err();
            assert_eq!(error.code(), Code::BadExample);
            assert!(error.message().starts_with("line 2: "), "{error}");
            assert!(error.message().contains(reason), "{error}");
        }
        assert_eq!(load("\n").unwrap_err().code(), Code::NoExamples);
    }

    #[test]
    fn every_task_at_hand_loads() {
        for task in [
            "squad",
            "gsm8k",
            "hellaswag",
            "dialogsum",
            "multi30k",
            "iwslt17",
        ] {
            if let Some(file) = shared(&format!("tasks/{task}/valid.jsonl")) {
                assert!(load_items(&file, None).unwrap().len() > 50, "{task}");
            }
        }
    }
}
