//! Tokenizers and chat templates: programs of somebody else's that multiply what they are given.

use std::path::Path;

use serde_json::{Value, json};
use tlkit::Code;
use tlkit::text::{Message, Vocabulary};

use super::measure::measured;
use super::{Folder, MB, assert_code};

fn tokenizer(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-tiny/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut file);
    serde_json::to_vec(&file).unwrap()
}

/// The memory of the command's allocator is not at hand here: the chain has to be known before it runs.
#[test]
fn normalizers_do_not_multiply_a_text() {
    let folder = Folder::new();
    let twenty = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "x".repeat(20)});
    for steps in [5, 7, 50] {
        let chain = json!({"type": "Sequence", "normalizers": vec![twenty.clone(); steps]});
        folder.file(
            "tokenizer.json",
            &tokenizer(|file| file["normalizer"] = chain),
        );
        let (opened, cost) = measured(|| Vocabulary::open(folder.path()));
        assert_code(opened, Code::BadTokenizer);
        cost.within(64 * MB);
    }
    folder.file(
        "tokenizer.json",
        &tokenizer(|file| file["normalizer"] = twenty),
    );
    let vocabulary = Vocabulary::open(folder.path()).unwrap();
    let (tokens, cost) = measured(|| vocabulary.encode_prompt(&"a".repeat(MB)));
    assert_code(tokens, Code::BadTokenizer);
    cost.within(64 * MB);
}

/// Breaks where a text is tokenised as far as it goes, and not as far as it is used.
#[test]
fn of_a_long_text_only_what_is_used_is_tokenised() {
    let folder = Folder::new();
    folder.file("tokenizer.json", &tokenizer(|_| ()));
    let vocabulary = Vocabulary::open(folder.path()).unwrap();
    let long = "ab".repeat(8 * MB);
    let (tokens, cost) = measured(|| vocabulary.encode_prompt_start(&long, 100).unwrap());
    assert!(tokens.len() > 100);
    assert_eq!(
        tokens[..100],
        vocabulary.encode_prompt(&long[..200]).unwrap()[..100]
    );
    cost.within(400 * MB);
    let tokens = vocabulary.encode_prompt_end(&long, 100).unwrap();
    let short = vocabulary.encode_prompt(&long[..200]).unwrap();
    assert_eq!(tokens[tokens.len() - 100..], short[short.len() - 100..]);
    assert_code(vocabulary.encode_prompt(&long), Code::TextTooLong);
}

#[test]
fn templates_do_not_multiply_a_message() {
    let folder = Folder::new();
    folder.file("tokenizer.json", &tokenizer(|_| ()));
    let message = Message {
        role: "user".to_owned(),
        content: "ab".to_owned(),
    };
    for source in [
        "{% set x = ['a'*3000000]*5000 %}{{ x|join|length }}",
        "{% set x = ['a'*3000000]*5000 %}{{ ''.join(x)|length }}",
        "{% set x = ['a'*3000000]*5000 %}{{ x|tojson|length }}{{ x|string|length }}",
        "{% set x = ['a'*3000000]*5000 %}{% set y %}{{ x }}{% endset %}",
        "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{{ 'a' * 1000000000 }}",
        "{{ ('a,' * 30000000).split(',')|length }}",
    ] {
        folder.file("chat_template.jinja", source.as_bytes());
        let vocabulary = Vocabulary::open(folder.path()).unwrap();
        let rendered = vocabulary.render(std::slice::from_ref(&message), true);
        assert_code(rendered, Code::ChatTemplate);
    }
    let nested = format!("{{{{ {}1 }}}}", "-".repeat(250_000));
    folder.file("chat_template.jinja", nested.as_bytes());
    let _ = Vocabulary::open(folder.path());
}
