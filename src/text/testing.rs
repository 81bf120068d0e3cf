//! A model's tokenizer in miniature: SentencePiece-like, letters and bytes, no merges but one.

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Vocabulary;
use crate::error::Result;

/// Builds a folder with a tokenizer: `<unk>` 0, `<s>` 1, `</s>` 2, bytes from 3, `▁` 259, `a` … `z`
/// from 260, then some punctuation and `▁a`.
pub(super) struct Model(Value);

impl Model {
    pub(super) fn new() -> Self {
        let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
        pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        pieces.push("▁".to_owned());
        pieces.extend(('a'..='z').map(String::from));
        pieces.extend([".", "|", ":", "[", "]", "/", "▁a"].map(String::from));
        let vocab = vocab(pieces);
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0",
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": 0.5, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "vocab": vocab, "merges": [["▁", "a"]]}
        });
        Self(tokenizer).processor(&["<s>"], &[])
    }

    /// A tokenizer of bytes in the manner of GPT-2, where a text's start is like any other place:
    /// `</s>` 0, then the bytes, and ` a` after them; no bos.
    pub(super) fn byte_level() -> Self {
        let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        letters.sort_unstable();
        let mut pieces = vec!["</s>".to_owned()];
        pieces.extend(letters.into_iter().map(String::from));
        pieces.push("Ġa".to_owned());
        let vocab = vocab(pieces);
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        Self(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 0, "content": "</s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "normalizer": null, "pre_tokenizer": bytes, "post_processor": bytes, "decoder": bytes,
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "vocab": vocab, "merges": [["Ġ", "a"]]}
        }))
    }

    /// Sets what the tokenizer puts before and after a text.
    pub(super) fn processor(mut self, before: &[&str], after: &[&str]) -> Self {
        let token = |name: &&str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let mut single: Vec<Value> = before.iter().map(token).collect();
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.extend(after.iter().map(token));
        self.0["post_processor"] = json!({"type": "TemplateProcessing", "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}});
        self
    }

    /// Opens the model with these files beside the tokenizer.
    pub(super) fn open(&self, files: &[(&str, &str)]) -> Result<Vocabulary> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), self.0.to_string()).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Vocabulary::open(folder.path())
    }
}

/// The pieces with their ids, which are their places.
fn vocab(pieces: Vec<String>) -> Value {
    let numbered = pieces.into_iter().enumerate();
    numbered.map(|(id, piece)| (piece, json!(id))).collect()
}
