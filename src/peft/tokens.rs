//! Rows of embeddings that were trained one by one: `trainable_token_indices` of a config, and the
//! tensors that go with it. PEFT replaces the rows (`TrainableTokensLayer`), it does not add to them.

use super::json::{self, Json, wrong};
use crate::error::{Code, Error, Result};

/// The key of a config.
pub(super) const KEY: &str = "trainable_token_indices";
/// What PEFT puts around an embedding with trained rows.
pub(super) const WRAPPER: &str = ".token_adapter";
/// What follows an embedding's path in the name of the tensor with its trained rows.
pub(super) const SUFFIX: &str = ".token_adapter.trainable_tokens_delta";

/// The same in an adapter that is nothing but trained rows (`TrainableTokensConfig`).
pub(super) const ALONE_SUFFIX: &str = ".trainable_tokens_delta";
/// The key of such an adapter's config.
pub(super) const ALONE_KEY: &str = "token_indices";

/// Which rows of which embeddings were trained.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TrainedTokens {
    /// None.
    #[default]
    None,
    /// These of the input embedding, whatever it is called.
    Input(Vec<u32>),
    /// These of every embedding that the file has rows of.
    Every(Vec<u32>),
    /// By what the embedding's path ends in.
    Named(Vec<(String, Vec<u32>)>),
}

impl TrainedTokens {
    /// Whether they are all that the adapter has.
    pub(crate) fn are_alone(&self) -> bool {
        matches!(self, Self::Every(_))
    }

    /// # Errors
    /// [`Code::ConfigInvalid`] for anything but row numbers.
    pub(super) fn read(value: &Json) -> Result<Self> {
        Ok(match value {
            falsy if falsy.is_falsy() => Self::None,
            Json::List(_) => Self::Input(indices(value)?),
            Json::Map(entries) => {
                let named = entries.iter();
                let named = named.map(|(name, list)| Ok((name.clone(), indices(list)?)));
                Self::Named(named.collect::<Result<_>>()?)
            }
            other => return Err(wrong(KEY, other, "a list or an object of lists")),
        })
    }

    /// Of an adapter that is nothing but trained rows.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`] for anything but row numbers.
    pub(super) fn read_alone(value: &Json) -> Result<Self> {
        match value {
            falsy if falsy.is_falsy() => Ok(Self::Every(Vec::new())),
            list => indices(list).map(Self::Every),
        }
    }

    /// The value as PEFT writes it.
    pub(super) fn to_json(&self) -> Json {
        let list = |rows: &[u32]| Json::List(rows.iter().map(|r| Json::Int((*r).into())).collect());
        match self {
            Self::None => Json::Null,
            Self::Input(rows) | Self::Every(rows) => list(rows),
            Self::Named(named) => {
                let entries = named.iter().map(|(name, rows)| (name.clone(), list(rows)));
                Json::Map(entries.collect())
            }
        }
    }

    /// The rows of the embedding at `path`, one of `embeddings` that have trained rows.
    ///
    /// # Errors
    /// [`Code::UnsupportedTrainableTokens`] where the config does not tell.
    pub(super) fn of(&self, path: &str, embeddings: usize) -> Result<&[u32]> {
        let cannot_tell = |message: String| {
            Err(Error::new(Code::UnsupportedTrainableTokens, message)
                .tensor(format!("{path}{SUFFIX}"))
                .hint("merge it with PEFT's merge_and_unload"))
        };
        match self {
            Self::Every(rows) => Ok(rows),
            Self::Input(rows) if embeddings == 1 => Ok(rows),
            Self::Named(named) => {
                let mut fitting = named
                    .iter()
                    .filter(|(name, _)| path.ends_with(name.as_str()));
                match (fitting.next(), fitting.next()) {
                    (Some((_, rows)), None) => Ok(rows),
                    (None, _) => cannot_tell(format!("holds rows, and `{KEY}` does not list them")),
                    _ => cannot_tell(format!("holds rows, and `{KEY}` lists some twice for it")),
                }
            }
            Self::None => cannot_tell(format!("holds rows, and `{KEY}` does not say which")),
            Self::Input(_) => cannot_tell(format!(
                "{embeddings} embeddings have trained rows, and `{KEY}` does not tell them apart"
            )),
        }
    }

    /// What the config lists that none of the embeddings at `paths` has rows for.
    pub(super) fn missing<'t>(&'t self, paths: &[&str]) -> Option<&'t str> {
        match self {
            Self::Input(_) | Self::Every(_) if paths.is_empty() => Some("the input embedding"),
            Self::Named(named) => {
                let absent = |name: &&String| !paths.iter().any(|p| p.ends_with(name.as_str()));
                named
                    .iter()
                    .map(|(name, _)| name)
                    .find(absent)
                    .map(String::as_str)
            }
            _ => None,
        }
    }
}

fn indices(value: &Json) -> Result<Vec<u32>> {
    let Json::List(items) = value else {
        return Err(wrong(KEY, value, "a list of row numbers"));
    };
    let row = |item: &Json| {
        let row = json::unsigned(KEY, item)?;
        u32::try_from(row).map_err(|_| wrong(KEY, item, "a row number"))
    };
    items.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TrainedTokens> {
        TrainedTokens::read(&Json::parse(text.as_bytes())?)
    }

    #[test]
    fn configs_say_which_rows_and_come_back() {
        for off in ["null", "false", "[]", "{}"] {
            assert_eq!(read(off).unwrap(), TrainedTokens::None);
        }
        for text in ["[3,1]", "{\"embed_tokens\":[3,7],\"lm_head\":[2]}"] {
            let tokens = read(text).unwrap();
            let compact: String = tokens.to_json().to_pretty().split_whitespace().collect();
            assert_eq!(compact, text);
        }
        for bad in ["3", "[-1]", "[1.5]", "[4294967296]", "{\"a\":3}", "\"x\""] {
            assert_eq!(read(bad).unwrap_err().code(), Code::ConfigInvalid, "{bad}");
        }
    }

    /// Breaks where rows could go to another embedding than they were trained for.
    #[test]
    fn what_does_not_tell_is_refused() {
        let named = read("{\"embed_tokens\":[3],\"lm_head\":[2]}").unwrap();
        assert_eq!(named.of("model.embed_tokens", 2).unwrap(), [3]);
        assert_eq!(named.of("lm_head", 2).unwrap(), [2]);
        assert_eq!(named.missing(&["model.embed_tokens"]), Some("lm_head"));
        let twice = read("{\"tokens\":[3],\"embed_tokens\":[3]}").unwrap();
        let list = read("[3]").unwrap();
        assert_eq!(list.of("wte", 1).unwrap(), [3]);
        assert_eq!(list.missing(&[]), Some("the input embedding"));
        for (tokens, count) in [
            (&named, 1),
            (&twice, 1),
            (&list, 2),
            (&TrainedTokens::None, 1),
        ] {
            let path = if *tokens == named {
                "wte"
            } else {
                "embed_tokens"
            };
            let e = tokens.of(path, count).unwrap_err();
            assert_eq!(e.code(), Code::UnsupportedTrainableTokens);
        }
    }
}
