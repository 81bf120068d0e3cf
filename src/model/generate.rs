//! Greedy generation, several prompts at a time.

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::model::{Branches, Cache, Model};
use crate::text::{TextStream, Vocabulary};

/// When to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generation {
    /// Most new tokens of each sequence.
    pub max_tokens: usize,
    /// Tokens that end a sequence, and do not become part of it.
    pub stop: Vec<u32>,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            max_tokens: 500,
            stop: Vec::new(),
        }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopReason {
    /// The model ended it.
    Eos,
    /// [`Generation::max_tokens`] were generated.
    MaxTokens,
    /// Prompt and new tokens fill the positions that the model was trained for.
    MaxPositions,
}

/// What followed a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Generated {
    /// New tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stopped: StopReason,
}

/// Continues every prompt with the likeliest token, the lowest one where several are; each of
/// them as it would be alone.
///
/// `on_token` is called with a prompt's number and its next token as soon as that is known; its
/// error stops the work and is returned.
///
/// ```no_run
/// use tlkit::format::NoBlobs;
/// use tlkit::model::generate::{Generation, generate, text};
/// use tlkit::model::{Session, device};
///
/// # fn main() -> tlkit::Result<()> {
/// let adapter = Some("style.tl".as_ref());
/// let session = Session::open("llama".as_ref(), adapter, &NoBlobs, &device(None)?, None)?;
/// let prompt = session.vocabulary.encode_prompt("Once upon a time")?;
/// let mut options = Generation::default();
/// options.stop = session.vocabulary.eos().to_vec();
/// let prompts = [prompt];
/// let answers = generate(&session.model, &session.branches, &prompts, &options, |_, _| Ok(()))?;
/// println!("{}", text(&session.vocabulary, &prompts[0], &answers[0].tokens)?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Code::Usage`] for a prompt without tokens, or longer than the model's positions;
/// [`Code::Diverged`] for logits that are not numbers; those of [`Model::extend`] and `on_token`.
pub fn generate(
    model: &Model,
    branches: &Branches,
    prompts: &[Vec<u32>],
    options: &Generation,
    mut on_token: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Generated>> {
    let positions = model.config().max_positions;
    check(prompts, positions)?;
    let mut results: Vec<Generated> = prompts
        .iter()
        .map(|_| Generated {
            tokens: Vec::new(),
            stopped: StopReason::MaxTokens,
        })
        .collect();
    let ending = |prompt: &[u32], new: usize| {
        if new >= options.max_tokens {
            Some(StopReason::MaxTokens)
        } else if prompt.len() + new >= positions {
            Some(StopReason::MaxPositions)
        } else {
            None
        }
    };
    let mut active = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        match ending(prompt, 0) {
            Some(reason) => results[number].stopped = reason,
            None => active.push(number),
        }
    }
    let mut cache = Cache::default();
    let mut next: Vec<Vec<u32>> = active.iter().map(|n| prompts[*n].clone()).collect();
    while !active.is_empty() {
        let chosen = likeliest(&model.extend(branches, &next, &mut cache)?)?;
        let mut goes_on = Vec::with_capacity(active.len());
        for (&number, &token) in active.iter().zip(&chosen) {
            let result = &mut results[number];
            let ended = if options.stop.contains(&token) {
                Some(StopReason::Eos)
            } else {
                result.tokens.push(token);
                on_token(number, token)?;
                ending(&prompts[number], result.tokens.len())
            };
            if let Some(reason) = ended {
                result.stopped = reason;
            }
            goes_on.push(ended.is_none());
        }
        cache.retain(&goes_on);
        let mut left = goes_on.iter();
        active.retain(|_| left.next().copied().unwrap_or(false));
        next = (chosen.iter().zip(&goes_on))
            .filter(|(_, goes_on)| **goes_on)
            .map(|(token, _)| vec![*token])
            .collect();
    }
    Ok(results)
}

/// The text that `tokens` add after the tokens of `prompt`.
///
/// # Errors
/// As [`TextStream::push`].
pub fn text(vocabulary: &Vocabulary, prompt: &[u32], tokens: &[u32]) -> Result<String> {
    let mut stream = TextStream::new(vocabulary, prompt);
    let mut text = String::new();
    for token in tokens {
        text.extend(stream.push(*token)?);
    }
    text.extend(stream.finish()?);
    Ok(text)
}

fn check(prompts: &[Vec<u32>], positions: usize) -> Result<()> {
    for (number, prompt) in prompts.iter().enumerate() {
        let fault = match prompt.len() {
            0 => "has no tokens".to_owned(),
            n if n > positions => format!("has {n} tokens, and the model {positions} positions"),
            _ => continue,
        };
        let message = format!("prompt {} {fault}", number + 1);
        return Err(Error::new(Code::Usage, message));
    }
    Ok(())
}

/// The lowest of the likeliest tokens of each row.
fn likeliest(logits: &Tensor) -> Result<Vec<u32>> {
    let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    rows.iter()
        .map(|row| {
            let mut best = (0, f32::NEG_INFINITY);
            for (token, &logit) in row.iter().enumerate() {
                if logit > best.1 {
                    best = (token, logit);
                }
            }
            if !best.1.is_finite() || row.iter().any(|x| x.is_nan()) {
                return Err(Error::new(
                    Code::Diverged,
                    "the model's logits are not finite",
                ));
            }
            Ok(best.0 as u32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::{fixture, shared};

    fn tiny() -> Model {
        Model::open(&fixture("llama-tiny"), &Device::Cpu, None).unwrap()
    }

    fn run(model: &Model, prompts: &[Vec<u32>], options: &Generation) -> Vec<Generated> {
        generate(model, &Branches::default(), prompts, options, |_, _| Ok(())).unwrap()
    }

    /// Breaks where caching, batching or the choice of a token differs from the reference's.
    #[test]
    fn trained_models_say_what_the_reference_says() {
        for name in ["stories260K", "babyllama105"] {
            let Some(dir) = shared(&format!("models/{name}")) else {
                continue;
            };
            let golden = std::fs::read(dir.join("golden.json")).unwrap();
            let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
            let ids = |key: &str| -> Vec<Vec<u32>> {
                let entries = golden["greedy"].as_array().unwrap();
                let list = entries
                    .iter()
                    .map(|e| serde_json::from_value(e[key].clone()).unwrap());
                list.collect()
            };
            let model = Model::open(&dir, &Device::Cpu, None).unwrap();
            let options = Generation {
                max_tokens: 60,
                stop: vec![2],
            };
            let got = run(&model, &ids("prompt_ids"), &options);
            let got: Vec<_> = got.into_iter().map(|g| g.tokens).collect();
            assert_eq!(got, ids("new_ids"), "{name}");
        }
    }

    /// Breaks where a sequence that ended disturbs those beside it, or tokens come out of order.
    #[test]
    fn sequences_do_not_know_of_each_other() {
        let model = tiny();
        let prompts = [vec![1, 5, 9], vec![7], vec![1, 2, 3, 4, 5, 6]];
        let plain = run(
            &model,
            &prompts,
            &Generation {
                max_tokens: 12,
                stop: vec![],
            },
        );
        // What the second prompt says fourth ends everyone who says it.
        let options = Generation {
            max_tokens: 12,
            stop: vec![plain[1].tokens[3]],
        };
        let mut heard = vec![Vec::new(); 3];
        let none = Branches::default();
        let together = generate(&model, &none, &prompts, &options, |n, token| {
            heard[n].push(token);
            Ok(())
        });
        let together = together.unwrap();
        for (n, prompt) in prompts.iter().enumerate() {
            let alone = run(&model, std::slice::from_ref(prompt), &options);
            assert_eq!(together[n], alone[0], "prompt {n}");
            assert_eq!(together[n].tokens, heard[n]);
            assert!(plain[n].tokens.starts_with(&heard[n]));
        }
        assert_eq!(together[1].stopped, StopReason::Eos);
    }

    /// Breaks where a limit cuts a text without a word, or is passed.
    #[test]
    fn limits_are_kept_and_said() {
        let model = tiny();
        let prompts = [vec![3; 128], vec![3; 126], vec![3; 5]];
        let options = Generation {
            max_tokens: 4,
            stop: vec![],
        };
        let got: Vec<_> = run(&model, &prompts, &options)
            .into_iter()
            .map(|g| (g.tokens.len(), g.stopped))
            .collect();
        let right = [
            (0, StopReason::MaxPositions),
            (2, StopReason::MaxPositions),
            (4, StopReason::MaxTokens),
        ];
        assert_eq!(got, right);
        for bad in [vec![], vec![3; 129]] {
            let e = generate(
                &model,
                &Branches::default(),
                &[bad],
                &options,
                |_, _| Ok(()),
            );
            assert_eq!(e.unwrap_err().code(), Code::Usage);
        }
    }

    #[test]
    fn equal_logits_give_the_lowest_token_and_nan_none() {
        let logits = |v: &[f32]| Tensor::from_slice(v, (1, v.len()), &Device::Cpu).unwrap();
        assert_eq!(likeliest(&logits(&[0.0, 2.0, 2.0])).unwrap(), [1]);
        let e = likeliest(&logits(&[0.0, f32::NAN, 2.0])).unwrap_err();
        assert_eq!(e.code(), Code::Diverged);
    }
}
