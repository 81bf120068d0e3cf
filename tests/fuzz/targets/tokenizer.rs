//! `tokenizer.json` of anybody's: it is refused, or gives tokens of short texts and takes them back, in
//! memory that the fuzzer's limit holds to.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tlkit::text::Vocabulary;

const TEXTS: &[&str] = &["", "ab", "Hello, world! é€🙂 <s>", "a  b\n\t\u{fdfa}\u{390}İ"];

fuzz_target!(|bytes: &[u8]| {
    let folder = scratch::folder(&[("tokenizer.json", bytes)]);
    let vocabulary = match Vocabulary::open(&folder) {
        Ok(vocabulary) => vocabulary,
        // An error must be printable, whatever stood in the file.
        Err(e) => return assert!(!e.to_string().chars().any(char::is_control)),
    };
    for text in TEXTS {
        let Ok(tokens) = vocabulary.encode_prompt(text) else {
            continue;
        };
        let _ = vocabulary.decode(&tokens);
        let _ = vocabulary.encode_continuation(text);
        assert!(vocabulary.encode_prompt_start(text, 1).is_ok());
    }
});
