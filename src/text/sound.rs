//! Whether a `tokenizer.json` may be given to its reader, which panics on some.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Bit of a unit of a double array that says that a word ends at its child 0.
const LEAF: u32 = 1 << 8;
/// What a unit's label is compared by.
const LABEL: u32 = 1 << 31 | 0xFF;

/// The parts of a `tokenizer.json` that can do harm, as they are written.
#[derive(serde::Deserialize)]
pub(super) struct Parts {
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) decoder: Value,
    /// Read for its texts alone, which are looked at only where they are kept.
    #[serde(default, rename = "post_processor")]
    _post_processor: Value,
}

impl Parts {
    /// Reads them. A file on which `tokenizers` would panic is refused: one that is not JSON, that has a
    /// precompiled map whose trie leads out of itself, or whose decoder strips a text's end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let parts: Self =
            serde_json::from_slice(file).map_err(|e| format!("not a tokenizer: {e}"))?;
        check_part(&parts.normalizer)?;
        if strips_ends(&parts.decoder) {
            // It counts back from the end without a look at the start.
            return Err("its decoder strips the end of a text".to_owned());
        }
        Ok(parts)
    }
}

/// Whether a `Strip` among the decoders takes anything from a text's end.
fn strips_ends(part: &Value) -> bool {
    match part {
        Value::Array(list) => list.iter().any(strips_ends),
        Value::Object(map) => map.iter().any(|(key, value)| match key.as_str() {
            "stop" => *value != 0,
            _ => strips_ends(value),
        }),
        _ => false,
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match part {
        Value::Array(list) => list.iter().try_for_each(check_part),
        Value::Object(map) => {
            let precompiled = map.get("type").is_some_and(|t| t == "Precompiled");
            match map.get("precompiled_charsmap") {
                Some(Value::String(text)) => check_map(text),
                Some(_) => Err("its precompiled map is no text".to_owned()),
                None if precompiled => Err("its precompiled map is missing".to_owned()),
                None => map.values().try_for_each(check_part),
            }
        }
        _ => Ok(()),
    }
}

/// A map of SentencePiece: bytes of a double array (u32), the array, and texts that end with a zero.
fn check_map(text: &str) -> Result<(), String> {
    let bad = |what: &str| format!("its precompiled map {what}");
    let bytes = STANDARD.decode(text).map_err(|_| bad("is not base64"))?;
    let (size, rest) = bytes.split_first_chunk().ok_or_else(|| bad("is empty"))?;
    let size = u32::from_le_bytes(*size) as usize / 4 * 4;
    let (array, texts) = rest
        .split_at_checked(size)
        .ok_or_else(|| bad("is cut off"))?;
    let texts = std::str::from_utf8(texts).map_err(|_| bad("is not UTF-8"))?;
    let (units, _) = array.as_chunks();
    let units: Vec<u32> = units.iter().map(|u| u32::from_le_bytes(*u)).collect();
    match leads_out(&units, texts) {
        true => Err(bad("leads out of itself")),
        false => Ok(()),
    }
}

/// Whether a search could read beyond the array, or find a text that is not there.
fn leads_out(units: &[u32], texts: &str) -> bool {
    let offset = |unit: u32| (unit >> 10) as usize * if unit & 1 << 9 == 0 { 1 } else { 1 << 8 };
    let mut seen = vec![false; units.len()];
    let Some(root) = units.first() else {
        return true;
    };
    let mut waiting = vec![offset(*root)];
    while let Some(place) = waiting.pop() {
        // The children of a node are at its place, with the last byte exchanged.
        if place | 0xFF >= units.len() {
            return true;
        }
        for byte in 1..=0xFF {
            let child = place ^ byte;
            let unit = units[child];
            if unit & LABEL != byte as u32 || std::mem::replace(&mut seen[child], true) {
                continue;
            }
            let next = child ^ offset(unit);
            waiting.push(next);
            if unit & LEAF == 0 {
                continue;
            }
            let value = units.get(next).map(|unit| (unit & !(1 << 31)) as usize);
            if !value.is_some_and(|at| texts.is_char_boundary(at)) {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(units: &[u32], texts: &str) -> Vec<u8> {
        let mut map = (units.len() as u32 * 4).to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        map.extend(texts.as_bytes());
        let normalizer = serde_json::json!({"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)}]});
        serde_json::to_vec(&serde_json::json!({"normalizer": normalizer})).unwrap()
    }

    /// A trie that knows `a` alone, which becomes the text at `value`.
    fn trie(value: u32) -> Vec<u32> {
        let mut units = vec![0; 512];
        units[0] = 1 << 10; // the children of the root are at 1
        units[1 ^ 97] = 97 | LEAF | 256 << 10; // those of `a` are at 96 ^ 256
        units[96 ^ 256] = value | 1 << 31;
        units
    }

    /// Breaks where a map that real models have is refused.
    #[test]
    fn a_map_that_stays_within_itself_is_accepted() {
        Parts::read(&file(&trie(0), "b\0")).unwrap();
        Parts::read(br#"{"normalizer": null, "decoder": {"type": "Fuse"}}"#).unwrap();
    }

    /// Breaks where a file makes the tokenizer's reader panic.
    #[test]
    fn what_the_reader_would_panic_on_is_refused() {
        let wrong = |file: &[u8]| Parts::read(file).map(drop).unwrap_err();
        assert!(wrong(br#"{"decoder": {"type"": "Fuse"}}"#).contains("not a tokenizer"));
        assert!(wrong(br#"{"decoder": {"type": "\ud800"}}"#).contains("not a tokenizer"));
        let strip = |stop: u32| {
            let strip =
                serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": stop});
            let decoder = serde_json::json!({"type": "Sequence", "decoders": [strip]});
            serde_json::to_vec(&serde_json::json!({"decoder": decoder})).unwrap()
        };
        Parts::read(&strip(0)).unwrap();
        assert!(wrong(&strip(1)).contains("strips the end"));
        let broken = br#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "%"}}"#;
        assert!(wrong(broken).contains("base64"));
        let broken = br#"{"normalizer": {"type": "Precompiled"}}"#;
        assert!(wrong(broken).contains("missing"));
        let huge = STANDARD.encode(u32::MAX.to_le_bytes());
        let huge = serde_json::json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": huge}});
        assert!(wrong(&serde_json::to_vec(&huge).unwrap()).contains("cut off"));
        assert!(wrong(&file(&[], "")).contains("leads out"));
        assert!(wrong(&file(&trie(7), "b\0")).contains("leads out"));
        assert!(wrong(&file(&trie(1), "é\0")).contains("leads out"));
        let mut far = trie(0);
        far[1 ^ 97] = 97 | 4096 << 10;
        assert!(wrong(&file(&far, "b\0")).contains("leads out"));
        let mut root = trie(0);
        root[0] = 4096 << 10;
        assert!(wrong(&file(&root, "b\0")).contains("leads out"));
    }
}
