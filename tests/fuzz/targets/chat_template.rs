//! A chat template of anybody's: it is refused, or renders within the limits, in memory that the
//! fuzzer's limit holds to.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tlkit::Code;
use tlkit::text::{Message, Vocabulary};

const TOKENIZER: &[u8] = include_bytes!("../../../fixtures/llama-tiny/tokenizer.json");

fuzz_target!(|bytes: &[u8]| {
    let files = [("tokenizer.json", TOKENIZER), ("chat_template.jinja", bytes)];
    let vocabulary = match Vocabulary::open(&scratch::folder(&files)) {
        Ok(vocabulary) => vocabulary,
        Err(e) => return assert_eq!(e.code(), Code::ChatTemplate, "{e}"),
    };
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let talk = [message("system", "Be brief."), message("user", " a\n"), message("assistant", "b")];
    for (end, opening) in [(3, false), (2, true)] {
        match vocabulary.render(&talk[..end], opening) {
            Ok(text) => assert!(text.len() <= 32 << 20),
            Err(e) => assert_eq!(e.code(), Code::ChatTemplate, "{e}"),
        }
    }
});
