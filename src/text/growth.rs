//! How much longer a tokenizer can make a text than it is, known before the text is given to it.
//!
//! A normalizer that replaces every letter by twenty multiplies a text by twenty, and a chain of
//! seven of them by a thousand million. A chain that may do so is first run on the text piece by
//! piece, step by step, with its size known before each step.

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};

use super::cut::floor;
use super::sound::Parts;

/// Bytes that the normalizers may make of a text of no length. Each takes some 400 in memory.
const FREE_BYTES: usize = 256 << 10;
/// How many times as long they may make a text: a space becomes `▁`, which has three bytes.
const MOST_LONGER: usize = 3;
/// How many times as long pre-tokenizers or decoders may make a text, at the worst.
const MAX_GROWTH: f64 = 64.0;
/// How often the post-processors may repeat a text's tokens.
const MAX_REPEATS: f64 = 4.0;
/// Most special tokens that a post-processor may put around a text.
const MAX_SPECIALS: usize = 4096;
/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Longest regular expressions of a tokenizer, together, in bytes.
const MAX_PATTERN_BYTES: usize = 64 << 10;
/// Bytes of a text that go through the normalizers at a time.
const PIECE: usize = 1 << 10;

/// Refuses a `tokenizer.json` whose regular expressions are too long to be compiled: compiled, each
/// byte takes some 300.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_patterns(parts: &Parts) -> Result<(), String> {
    let parts = [&parts.normalizer, &parts.pre_tokenizer, &parts.decoder];
    let length: usize = parts.into_iter().map(pattern_bytes).sum();
    match length > MAX_PATTERN_BYTES {
        true => Err(format!(
            "its regular expressions have {length} bytes, the limit is {MAX_PATTERN_BYTES}"
        )),
        false => Ok(()),
    }
}

fn pattern_bytes(part: &Value) -> usize {
    match part {
        Value::Array(list) => list.iter().map(pattern_bytes).sum(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| match (key.as_str(), value) {
                ("Regex" | "pattern", Value::String(pattern)) => pattern.len(),
                (_, value) => pattern_bytes(value),
            })
            .sum(),
        _ => 0,
    }
}

/// What a tokenizer's normalizers can do to a text's length.
#[derive(Debug)]
pub(super) struct Growth {
    /// Each step with the most that it multiplies a text's bytes by.
    steps: Vec<(NormalizerWrapper, f64)>,
}

impl Growth {
    /// Of a tokenizer.
    ///
    /// # Errors
    /// What is wrong with it, where its other parts could make a text many times as long.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let pre = json(tokenizer.get_pre_tokenizer());
        let (post, decoder) = (
            json(tokenizer.get_post_processor()),
            json(tokenizer.get_decoder()),
        );
        let repeats = product(&post, "processors", &repeats);
        if specials(&post) > MAX_SPECIALS || repeats > MAX_REPEATS {
            return Err("its post-processor repeats a text's tokens, or adds thousands".to_owned());
        }
        for (what, growth) in [
            ("pre-tokenizer", product(&pre, "pretokenizers", &growth)),
            ("decoder", product(&decoder, "decoders", &growth)),
        ] {
            if growth > MAX_GROWTH {
                return Err(format!("its {what} may make a text {growth} times as long"));
            }
        }
        let longest = tokenizer.get_vocab(true).into_keys().map(|t| t.len()).max();
        if longest.is_some_and(|n| n > MAX_TOKEN_BYTES) {
            return Err(format!(
                "it has a token of more than {MAX_TOKEN_BYTES} bytes"
            ));
        }
        let mut steps = Vec::new();
        if let Some(normalizer) = tokenizer.get_normalizer() {
            flatten(normalizer, &mut steps);
        }
        Ok(Self { steps })
    }

    /// Refuses a text of which the normalizers would make too much.
    ///
    /// # Errors
    /// What they would make.
    pub(super) fn check(&self, text: &str) -> Result<(), String> {
        let len = text.len();
        let most = FREE_BYTES + MOST_LONGER * len;
        let all: f64 = self.steps.iter().map(|(_, growth)| growth).product();
        if len as f64 * all <= most as f64 {
            return Ok(());
        }
        let refuse = || {
            Err(format!(
                "its normalizers make more than {most} bytes of a text of {len}"
            ))
        };
        let (mut rest, mut total) = (text, 0);
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(floor(rest, PIECE));
            rest = later;
            let mut normal = NormalizedString::from(piece);
            for (step, growth) in &self.steps {
                if normal.get().len() as f64 * growth > most as f64 {
                    return refuse();
                }
                step.normalize(&mut normal).map_err(|e| e.to_string())?;
            }
            total += normal.get().len();
            if total > most {
                return refuse();
            }
        }
        Ok(())
    }
}

fn flatten(normalizer: &NormalizerWrapper, steps: &mut Vec<(NormalizerWrapper, f64)>) {
    match normalizer {
        NormalizerWrapper::Sequence(list) => {
            list.as_ref().iter().for_each(|n| flatten(n, steps));
        }
        one => steps.push((one.clone(), growth(&json(Some(one))))),
    }
}

fn json(part: Option<&impl serde::Serialize>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok())
        .unwrap_or_default()
}

/// The product over a part, and over those in it where it is a sequence.
fn product(part: &Value, list: &str, of: &dyn Fn(&Value) -> f64) -> f64 {
    match part.get(list).and_then(Value::as_array) {
        Some(parts) => parts.iter().map(|part| product(part, list, of)).product(),
        None => of(part),
    }
}

/// The most that one part multiplies the bytes of a text by.
fn growth(part: &Value) -> f64 {
    let text = |key: &str| part.get(key).and_then(Value::as_str).unwrap_or_default();
    let len = |key: &str| text(key).len() as f64;
    match text("type") {
        "Replace" => {
            // An expression may match the empty text before every letter.
            let pattern = part.pointer("/pattern/String").and_then(Value::as_str);
            match pattern.unwrap_or_default().len() {
                0 => 1.0 + len("content"),
                n => (len("content") / n as f64).max(1.0),
            }
        }
        // Every piece between two special tokens gets one.
        "Prepend" => 1.0 + len("prepend"),
        "Metaspace" => 1.0 + len("replacement"),
        "WordPiece" => 2.0 + len("prefix"),
        // Unicode's worst cases: U+FDFA, U+0390 and U+0130; a table of the file's own may do the same.
        "Precompiled" => 20.0,
        "NFKC" | "NFKD" => 12.0,
        "NFC" | "NFD" => 4.0,
        "BertNormalizer" => 6.0,
        "Lowercase" => 2.0,
        "ByteLevel" | "ByteFallback" => 3.0,
        _ => 1.0,
    }
}

/// How often a post-processor has a text's tokens in its result.
fn repeats(part: &Value) -> f64 {
    let count = |key: &str| {
        let pieces = part.get(key).and_then(Value::as_array)?;
        let texts = pieces.iter().filter(|p| p.get("Sequence").is_some());
        Some(texts.count() as f64)
    };
    let most = [count("single"), count("pair")].into_iter().flatten();
    most.fold(1.0, f64::max)
}

/// Special tokens that post-processors put around a text.
fn specials(part: &Value) -> usize {
    if let Some(parts) = part.get("processors").and_then(Value::as_array) {
        return parts.iter().map(specials).sum();
    }
    let of = |key: &str| -> usize {
        let pieces = part.get(key).and_then(Value::as_array);
        let ids = pieces.into_iter().flatten().filter_map(|piece| {
            let name = piece.pointer("/SpecialToken/id")?.as_str()?;
            let ids = part.get("special_tokens")?.get(name)?.get("ids")?;
            Some(ids.as_array()?.len())
        });
        ids.sum()
    };
    of("single").max(of("pair"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(part: &str, value: Value) -> Tokenizer {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/llama-tiny/tokenizer.json"
        );
        let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        file[part] = value;
        Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap()
    }

    fn twenty(regex: &str) -> Value {
        json!({"type": "Replace", "pattern": {"Regex": regex}, "content": "x".repeat(20)})
    }

    /// Breaks where a chain of normalizers that multiplies a text is run on it.
    #[test]
    fn a_chain_that_multiplies_is_refused_before_it_runs() {
        for n in [5, 6, 7, 1000] {
            let chain = json!({"type": "Sequence", "normalizers": vec![twenty("."); n]});
            let growth = Growth::of(&with("normalizer", chain)).unwrap();
            assert!(growth.check("ab").is_err(), "{n}");
        }
        let nested = json!({"type": "Sequence", "normalizers": [
            {"type": "Sequence", "normalizers": vec![twenty("."); 4]}, twenty("$"), twenty(".")]});
        let growth = Growth::of(&with("normalizer", nested)).unwrap();
        assert!(growth.check("ab").is_err());
        let content =
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "x".repeat(9_000_000)});
        let growth = Growth::of(&with("normalizer", content)).unwrap();
        assert!(growth.check("ab").is_err());
    }

    /// Breaks where a pattern of megabytes is compiled.
    #[test]
    fn long_patterns_are_refused() {
        let file = |n: usize| {
            let pattern = "(?=a)a|".repeat(n);
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}});
            let list = json!({"type": "Sequence", "pretokenizers": [split]});
            serde_json::to_vec(&json!({"model": {}, "pre_tokenizer": list})).unwrap()
        };
        let check = |file: &[u8]| check_patterns(&Parts::read(file)?);
        check(&file(1000)).unwrap();
        assert!(check(&file(10_000)).is_err());
        assert!(check(b"{").is_err());
    }

    /// Breaks where a chain is refused for what it could do and does not: usual tokenizers have them.
    #[test]
    fn what_models_ship_is_accepted() {
        let usual = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "NFKC"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            twenty("never in the text")]});
        let growth = Growth::of(&with("normalizer", usual)).unwrap();
        growth
            .check(&"The quick brown fox. ".repeat(40_000))
            .unwrap();
        let once = Growth::of(&with("normalizer", twenty("."))).unwrap();
        once.check("a short text").unwrap();
        assert!(once.check(&"a".repeat(300_000)).is_err());
    }

    /// Breaks where another part of a tokenizer may multiply a text.
    #[test]
    fn other_parts_that_multiply_are_refused() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
        let template = |n: usize| {
            json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                "single": vec![json!({"Sequence": {"id": "A", "type_id": 0}}); n]})
        };
        let many: Vec<u32> = (0..5000).map(|n| n % 3).collect();
        let tokens = vec!["<s>"; many.len()];
        let specials = json!({"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "s", "type_id": 0}}],
            "special_tokens": {"s": {"id": "s", "ids": many, "tokens": tokens}}});
        for (part, value) in [
            (
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": vec![bytes; 20]}),
            ),
            (
                "decoder",
                json!({"type": "Sequence", "decoders": vec![twenty("."); 3]}),
            ),
            ("post_processor", template(9)),
            (
                "post_processor",
                json!({"type": "Sequence", "processors": vec![template(2); 9]}),
            ),
            ("post_processor", specials),
        ] {
            assert!(Growth::of(&with(part, value)).is_err(), "{part}");
        }
    }
}
