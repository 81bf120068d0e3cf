//! The tasks that a model is scored on.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// What is asked, and how answers are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// `rouge_l`: mean F1 of ROUGE-L, × 100.
    Summarization,
    /// `exact_match` and `f1` as SQuAD has them, × 100, of the answer's first line.
    Qa,
    /// `bleu` of the corpus as sacrebleu has it (13a), 0 to 100.
    Translation,
    /// `exact_match` of the number after `####` as GSM8K has it, × 100.
    Math,
    /// `accuracy` of the likeliest choice, × 100; `accuracy_norm` by likelihood per token.
    Choice,
}

impl Task {
    /// All of them.
    pub const ALL: [Task; 5] = [
        Task::Summarization,
        Task::Qa,
        Task::Translation,
        Task::Math,
        Task::Choice,
    ];

    /// The name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Summarization => "summarization",
            Task::Qa => "qa",
            Task::Translation => "translation",
            Task::Math => "math",
            Task::Choice => "choice",
        }
    }

    /// How answers are scored, in a few words.
    pub fn summary(self) -> &'static str {
        match self {
            Task::Summarization => "ROUGE-L, mean F1",
            Task::Qa => "Exact match and F1 as SQuAD has them, of the first line",
            Task::Translation => "Corpus BLEU as sacrebleu has it",
            Task::Math => "Exact match of the number after ####, as GSM8K has it",
            Task::Choice => "Accuracy of the likeliest choice, by its sum and per token",
        }
    }

    /// The one of its scores that stands for the task where there is room for one.
    pub fn main_score(self) -> &'static str {
        match self {
            Task::Summarization => "rouge_l",
            Task::Qa => "f1",
            Task::Translation => "bleu",
            Task::Math => "exact_match",
            Task::Choice => "accuracy",
        }
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Task::ALL.into_iter().find(|task| task.name() == name);
        known.ok_or_else(|| Error::new(Code::Usage, format!("there is no task `{name}`")))
    }
}
