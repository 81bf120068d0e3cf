//! Scores of a model on a file of questions.

use std::collections::BTreeMap;

use serde::Serialize;

use super::score::bleu::{BleuOptions, bleu};
use super::score::rouge::rouge_l;
use super::score::{best_choice, gsm8k, squad};
use super::task::Task;
use crate::error::{Code, Error, Result};
use crate::model::generate::{Generation, StopReason, generate, text};
use crate::model::{Branches, Model};
use crate::progress::Progress;
use crate::text::{Batch, EvalItem, Example, Vocabulary};

/// How to evaluate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EvalOptions {
    /// What is asked.
    pub task: Task,
    /// Most new tokens of an answer.
    pub max_tokens: usize,
    /// Questions at a time; the scores do not depend on it.
    pub batch_size: usize,
}

impl EvalOptions {
    /// Answers of up to 500 tokens, 8 questions at a time.
    pub fn new(task: Task) -> Self {
        Self {
            task,
            max_tokens: 500,
            batch_size: 8,
        }
    }
}

/// What the model answered to one question.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Prediction {
    /// The text that was scored, or the likeliest choice.
    pub prediction: String,
    /// Log-likelihood of each choice, in nats, summed over its tokens; empty of other tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
}

/// The scores of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalReport {
    /// What was asked.
    pub task: Task,
    /// Number of questions.
    pub items: usize,
    /// Each score by its name, from 0 to 100; see [`Task`].
    pub scores: BTreeMap<&'static str, f64>,
    /// Prompts that lost their beginning, for want of positions.
    pub truncated_prompts: usize,
    /// Answers that were cut before the model ended them.
    pub unfinished: usize,
    /// The answers, in the order of the questions.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// Scores a model on `items`.
///
/// A prompt that leaves no room for the answer among the model's positions keeps its last tokens
/// and its bos, and is counted. `progress` counts the questions, and is asked after every token
/// whether the work may go on.
///
/// ```no_run
/// use tlkit::eval::{EvalOptions, Task, evaluate};
/// use tlkit::format::NoBlobs;
/// use tlkit::model::{Session, device};
/// use tlkit::progress::Progress;
/// use tlkit::text::load_items;
///
/// # fn main() -> tlkit::Result<()> {
/// let Session { model, branches, vocabulary, .. } =
///     Session::open("llama".as_ref(), None, &NoBlobs, &device(None)?, None)?;
/// let items = load_items("squad.jsonl".as_ref(), None)?;
/// let options = EvalOptions::new(Task::Qa);
/// let report = evaluate(&model, &branches, &vocabulary, &items, &options, Progress::new())?;
/// println!("F1 {:.2}", report.scores["f1"]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Code::NoExamples`] without items; [`Code::BadExample`] with the number, from 1, of an item
/// that lacks what the task needs; [`Code::Diverged`] for logits that are not finite; those of
/// [`generate`], [`Model::loss`] and `progress`.
pub fn evaluate(
    model: &Model,
    branches: &Branches,
    vocabulary: &Vocabulary,
    items: &[EvalItem],
    options: &EvalOptions,
    progress: Progress<'_>,
) -> Result<EvalReport> {
    check_items(items, options.task)?;
    let mut run = Run {
        model,
        branches,
        vocabulary,
        truncated: 0,
        unfinished: 0,
    };
    let (predictions, scores) = if options.task == Task::Choice {
        run.choose(items, progress)?
    } else {
        let predictions = run.answer(items, options, progress)?;
        let scores = score_texts(options.task, items, &predictions)?;
        let wrap = |prediction| Prediction {
            prediction,
            log_likelihoods: Vec::new(),
        };
        (predictions.into_iter().map(wrap).collect(), scores)
    };
    Ok(EvalReport {
        task: options.task,
        items: items.len(),
        scores,
        truncated_prompts: run.truncated,
        unfinished: run.unfinished,
        predictions,
    })
}

/// Checks that there are items, and that all have what the task needs.
///
/// # Errors
/// [`Code::NoExamples`] without items; [`Code::BadExample`] with the number, from 1, of an item.
pub fn check_items(items: &[EvalItem], task: Task) -> Result<()> {
    if items.is_empty() {
        return Err(Error::new(Code::NoExamples, "no question to evaluate"));
    }
    let lacking = |(number, item)| lacks(item, task).map(|lack| bad(number, lack));
    let first = items.iter().enumerate().find_map(lacking);
    first.map_or(Ok(()), Err)
}

fn bad(number: usize, what: &str) -> Error {
    Error::new(Code::BadExample, format!("item {}: {what}", number + 1))
}

fn lacks(item: &EvalItem, task: Task) -> Option<&'static str> {
    let answerless = item.references().is_empty();
    match task {
        Task::Choice => item.choices.is_empty().then_some("no \"choices\""),
        Task::Math => (answerless && item.final_answer.is_none())
            .then_some("no \"final\", \"answers\" or \"completion\""),
        _ => answerless.then_some("no \"answers\" or \"completion\""),
    }
}

fn score_texts(
    task: Task,
    items: &[EvalItem],
    texts: &[String],
) -> Result<BTreeMap<&'static str, f64>> {
    let mean = |f: &dyn Fn(&str, &EvalItem) -> f64| {
        let sum: f64 = texts.iter().zip(items).map(|(t, item)| f(t, item)).sum();
        100.0 * sum / items.len() as f64
    };
    let share = |yes: bool| f64::from(u8::from(yes));
    Ok(match task {
        Task::Summarization => BTreeMap::from([(
            "rouge_l",
            mean(&|t, item| rouge_l(t, &item.references()).f1),
        )]),
        Task::Qa => BTreeMap::from([
            (
                "exact_match",
                mean(&|t, item| share(squad::exact_match(t, &item.references()))),
            ),
            ("f1", mean(&|t, item| squad::f1(t, &item.references()))),
        ]),
        Task::Translation => {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let references: Vec<_> = items.iter().map(EvalItem::references).collect();
            let bleu = bleu(&texts, &references, BleuOptions::default())?;
            BTreeMap::from([("bleu", bleu.score)])
        }
        Task::Math | Task::Choice => BTreeMap::from([(
            "exact_match",
            mean(&|t, item| {
                let first = item.references().first().copied();
                let gold = item.final_answer.as_deref().or(first);
                share(gold.is_some_and(|gold| gsm8k::matches(t, gold)))
            }),
        )]),
    })
}

/// The likeliest choice by sums, and by means. One without a likelihood must not leave the field to
/// the others.
fn chosen(number: usize, sums: &[f64], means: &[f64]) -> Result<(usize, usize)> {
    let all_known = sums.iter().chain(means).all(|x| x.is_finite());
    let best = best_choice(sums).zip(best_choice(means));
    best.filter(|_| all_known).ok_or_else(|| {
        let message = format!("item {}: the model's logits are not finite", number + 1);
        Error::new(Code::Diverged, message)
    })
}

type Chosen = (Vec<Prediction>, BTreeMap<&'static str, f64>);

struct Run<'a> {
    model: &'a Model,
    branches: &'a Branches,
    vocabulary: &'a Vocabulary,
    truncated: usize,
    unfinished: usize,
}

impl Run<'_> {
    fn answer(
        &mut self,
        items: &[EvalItem],
        options: &EvalOptions,
        progress: Progress<'_>,
    ) -> Result<Vec<String>> {
        let generation = Generation {
            max_tokens: options.max_tokens,
            stop: self.vocabulary.eos().to_vec(),
        };
        let size = options.batch_size.max(1);
        let mut texts = Vec::with_capacity(items.len());
        for (start, batch) in (0..).step_by(size).zip(items.chunks(size)) {
            let mut prompts = Vec::with_capacity(batch.len());
            for (i, item) in batch.iter().enumerate() {
                prompts.push(self.prompt(start + i, item, options.max_tokens)?);
            }
            let results = generate(self.model, self.branches, &prompts, &generation, |_, _| {
                progress.check()
            })?;
            for (prompt, result) in prompts.iter().zip(&results) {
                self.unfinished += usize::from(result.stopped != StopReason::Eos);
                let mut text = text(self.vocabulary, prompt, &result.tokens)?;
                if options.task == Task::Qa {
                    // The space before the first word is no line of its own.
                    text = text
                        .trim_start()
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                }
                texts.push(text);
            }
            progress.advance(batch.len() as u64)?;
        }
        Ok(texts)
    }

    /// Tokens of an item's prompt, such that `room` more fit into the model's positions.
    fn prompt(&mut self, number: usize, item: &EvalItem, room: usize) -> Result<Vec<u32>> {
        let positions = self.model.config().max_positions;
        let mut tokens = self.vocabulary.encode_prompt_end(&item.prompt, positions)?;
        if tokens.is_empty() {
            return Err(bad(
                number,
                "the prompt has no tokens, and the model no bos",
            ));
        }
        let most = positions.saturating_sub(room).max(1);
        if tokens.len() > most {
            self.truncated += 1;
            // Models that were trained with a bos are at a loss without one.
            let bos = usize::from(most > 1 && self.vocabulary.bos() == tokens.first().copied());
            tokens.drain(bos..bos + tokens.len() - most);
        }
        Ok(tokens)
    }

    fn choose(&mut self, items: &[EvalItem], progress: Progress<'_>) -> Result<Chosen> {
        let mut predictions = Vec::with_capacity(items.len());
        let (mut right, mut right_norm) = (0, 0);
        for (number, item) in items.iter().enumerate() {
            let (sums, means) = self.likelihoods(number, item, progress)?;
            let (choice, choice_norm) = chosen(number, &sums, &means)?;
            right += usize::from(item.label == Some(choice));
            right_norm += usize::from(item.label == Some(choice_norm));
            predictions.push(Prediction {
                prediction: item.choices[choice].clone(),
                log_likelihoods: sums,
            });
            progress.advance(1)?;
        }
        let share = |n: usize| 100.0 * n as f64 / items.len() as f64;
        let scores = [
            ("accuracy", share(right)),
            ("accuracy_norm", share(right_norm)),
        ];
        Ok((predictions, BTreeMap::from(scores)))
    }

    /// Log-likelihood of each choice after the prompt: its sum over the tokens, and their mean.
    fn likelihoods(
        &mut self,
        number: usize,
        item: &EvalItem,
        progress: Progress<'_>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let positions = self.model.config().max_positions;
        let mut choices = Vec::with_capacity(item.choices.len());
        for choice in &item.choices {
            let tokens = self
                .vocabulary
                .encode_continuation_start(choice, positions)?;
            choices.push(tokens);
        }
        let longest = choices.iter().map(Vec::len).max().unwrap_or(0);
        if longest > positions || choices.iter().any(Vec::is_empty) {
            let message = format!("a choice has no tokens, or more than {positions}");
            return Err(bad(number, &message));
        }
        // The last token is only ever predicted, and takes no position. All choices follow the
        // same prompt, so that they can be compared.
        let prompt = self.prompt(number, item, longest - 1)?;
        let (mut sums, mut means) = (Vec::new(), Vec::new());
        for choice in &choices {
            let tokens = [prompt.as_slice(), choice].concat();
            let predicted = (0..tokens.len()).map(|i| i >= prompt.len()).collect();
            // One at a time: logits are then those of one choice, however many there are.
            let batch = Batch::new([&Example { tokens, predicted }]);
            let loss = self.model.loss(self.branches, &batch)?;
            sums.push(-loss.nats);
            means.push(-loss.mean());
            progress.check()?;
        }
        Ok((sums, means))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use candle_core::Device;

    use super::*;
    use crate::testing::shared;

    fn item(json: &str) -> EvalItem {
        serde_json::from_str(json).unwrap()
    }

    /// Breaks where a task is scored by another's rule, or in another unit.
    #[test]
    fn each_task_has_its_scores() {
        let answers = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        let items = [
            item(r#"{"prompt": "", "answers": ["the cat sat on the mat"]}"#),
            item(r#"{"prompt": "", "completion": "a dog"}"#),
        ];
        let texts = answers(&["cat sat on mat", "a dog"]);
        let scores = |task| score_texts(task, &items, &texts).unwrap();
        assert_eq!(scores(Task::Qa)["exact_match"], 100.0);
        assert_eq!(scores(Task::Qa)["f1"], 100.0);
        assert!((scores(Task::Summarization)["rouge_l"] - 90.0).abs() < 1e-9);
        assert!((0.0..100.0).contains(&scores(Task::Translation)["bleu"]));
        let items = [
            item(r#"{"prompt": "", "final": "1,200"}"#),
            item(r##"{"prompt": "", "completion": "so\n#### 7"}"##),
        ];
        let scores = score_texts(Task::Math, &items, &answers(&["x\n#### 1200", "7"])).unwrap();
        assert_eq!(scores["exact_match"], 50.0);
    }

    /// Breaks where a choice whose likelihood is not a number drops out, and another one is right.
    #[test]
    fn a_choice_that_is_not_finite_is_not_passed_over() {
        assert_eq!(chosen(0, &[-2.0, -1.0], &[-0.1, -1.0]).unwrap(), (1, 0));
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for (sums, means) in odd.map(|x| ([-1.0, x], [-1.0, -2.0])) {
            for (sums, means) in [(sums, means), (means, sums)] {
                let e = chosen(4, &sums, &means).unwrap_err();
                assert_eq!(e.code(), Code::Diverged);
                assert!(e.to_string().contains("item 5"), "{e}");
            }
        }
    }

    /// Breaks where an item is scored that cannot be.
    #[test]
    fn items_that_lack_what_the_task_needs() {
        let choices = item(r#"{"prompt": "", "choices": ["a", "b"], "label": 0}"#);
        let last = item(r#"{"prompt": "", "final": "3"}"#);
        assert!(lacks(&choices, Task::Choice).is_none() && lacks(&last, Task::Math).is_none());
        assert!(lacks(&choices, Task::Qa).is_some() && lacks(&last, Task::Choice).is_some());
        assert!(lacks(&last, Task::Translation).is_some());
    }

    /// Breaks where batches, long prompts or choices change what a trained model answers.
    #[test]
    fn a_trained_model_is_scored() {
        let Some(dir) = shared("models/stories260K") else {
            return;
        };
        let model = Model::open(&dir, &Device::Cpu, None).unwrap();
        let vocabulary = Vocabulary::open(&dir).unwrap();
        let none = Branches::default();
        let score = |task, items: &[EvalItem], batch_size| {
            let options = EvalOptions {
                task,
                max_tokens: 12,
                batch_size,
            };
            evaluate(&model, &none, &vocabulary, items, &options, Progress::new()).unwrap()
        };
        let long = "Once upon a time, there was a dog. ".repeat(100);
        let right = "there was a little girl";
        let stories = [
            item(&format!(
                r#"{{"prompt": "Once upon a time,", "completion": " {right}"}}"#
            )),
            item(&format!(r#"{{"prompt": "{long}", "completion": "a"}}"#)),
            item(r#"{"prompt": "One day, a", "completion": "a"}"#),
        ];
        let one = score(Task::Summarization, &stories, 1);
        assert_eq!(one, score(Task::Summarization, &stories, 8));
        assert_eq!((one.truncated_prompts, one.unfinished), (1, 3));
        assert!(
            one.predictions[0]
                .prediction
                .starts_with(&format!(" {right}"))
        );
        let choices = [item(
            r#"{"prompt": "Once upon a time, there was a", "choices": [" time zoo up", " little girl"], "label": 1}"#,
        )];
        let report = score(Task::Choice, &choices, 8);
        let all = [("accuracy", 100.0), ("accuracy_norm", 100.0)];
        assert_eq!(report.scores, BTreeMap::from(all));
        let sums = &report.predictions[0].log_likelihoods;
        assert!(sums[0] < sums[1] && sums[1] < 0.0, "{sums:?}");
        let stopped = AtomicBool::new(true);
        let options = EvalOptions {
            task: Task::Choice,
            max_tokens: 1,
            batch_size: 1,
        };
        let progress = Progress::new().stopped_by(&stopped);
        let e = evaluate(&model, &none, &vocabulary, &choices, &options, progress).unwrap_err();
        assert_eq!(e.code(), Code::Interrupted);
    }
}
