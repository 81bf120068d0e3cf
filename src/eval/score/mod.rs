//! Scores of generated text against references, equal to the reference implementations.
//!
//! | module | equals | for |
//! |---|---|---|
//! | [`rouge`] | `rouge_score` 0.1.2 without stemming | summaries |
//! | [`bleu`] | `sacrebleu` 2.6, tokenizer 13a | translations |
//! | [`squad`] | the official SQuAD v1.1 script | extracted answers |
//! | [`gsm8k`] | OpenAI's exact match | calculations |

pub mod bleu;
mod choice;
pub mod gsm8k;
pub mod rouge;
pub mod squad;
#[cfg(test)]
mod testing;
mod words;

pub use choice::{accuracy, best_choice};
