//! The schema, the examples of the specification, and the code agree on what a manifest is.

use std::fs;

use serde_json::{Value, json};
use tlkit::format::{Manifest, TlFile};

use super::validate::Validator;
use super::{fixture, golden, root};

/// A JSON example of the specification: its kind, the fixture it is taken from, where it says so, and its text.
struct Example {
    kind: String,
    fixture: Option<String>,
    text: String,
}

fn examples() -> Vec<Example> {
    super::blocks("json")
        .into_iter()
        .map(|(info, text)| {
            let mut words = info.split(' ').skip(1).map(str::to_owned);
            let kind = words
                .next()
                .unwrap_or_else(|| panic!("a ```json block without a kind:\n{text}"));
            let fixture = words.next();
            Example {
                kind,
                fixture,
                text,
            }
        })
        .collect()
}

fn schema() -> Value {
    let text = fs::read_to_string(root().join("spec/manifest.schema.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The validator of the whole schema, or of one of its definitions.
fn validator(kind: &str) -> Validator {
    let mut schema = schema();
    if kind != "manifest" {
        assert!(
            schema["$defs"][kind].is_object(),
            "the schema defines no `{kind}`"
        );
        let definitions = schema["$defs"].take();
        schema = json!({"$ref": format!("#/$defs/{kind}"), "$defs": definitions});
    }
    Validator::new(schema)
}

/// Sorted keys, no spaces.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(k, _)| k.as_str());
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(k, v)| format!("{}:{}", json!(k), canonical(v)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

#[test]
fn the_schema_forbids_unknown_keys_everywhere() {
    // An object without it would let a typing error pass as an extension.
    fn check(value: &Value, at: &str) {
        if let Value::Object(map) = value {
            if map.get("type") == Some(&json!("object")) {
                assert!(map.contains_key("additionalProperties"), "{at}");
            }
            for (key, inner) in map {
                check(inner, &format!("{at}/{key}"));
            }
        }
    }
    check(&schema(), "");
}

#[test]
fn every_example_of_the_specification_is_valid() {
    let examples = examples();
    assert!(examples.iter().filter(|e| e.kind == "manifest").count() >= 4);
    for example in examples {
        let value: Value = serde_json::from_str(&example.text)
            .unwrap_or_else(|e| panic!("{e}:\n{}", example.text));
        if let Err(e) = validator(&example.kind).validate(&value) {
            panic!("{e}:\n{}", example.text);
        }
        if example.kind != "manifest" {
            continue;
        }
        let text = canonical(&value);
        let manifest =
            Manifest::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e:?}:\n{text}"));
        if let Some(name) = example.fixture {
            let file = TlFile::open(fixture(&name)).unwrap();
            assert_eq!(
                file.root(),
                manifest.root(),
                "the example is not the manifest of {name}"
            );
        }
    }
}

#[test]
fn every_golden_manifest_is_valid() {
    let validator = validator("manifest");
    for name in golden::names() {
        let file = TlFile::open(fixture(&name)).unwrap();
        let value: Value = serde_json::from_slice(&file.manifest().to_bytes()).unwrap();
        assert!(validator.is_valid(&value), "{name}");
    }
}

#[test]
fn broken_manifests_are_invalid_and_do_not_parse() {
    // What the schema lets through although the code refuses it, an editor would not underline.
    let file = TlFile::open(fixture("extras.tl")).unwrap();
    let good = String::from_utf8(file.manifest().to_bytes()).unwrap();
    let validator = validator("manifest");
    let changes = [
        (r#""tl":1"#, r#""tl":2"#),
        (r#""tl":1"#, r#""tl":1,"x":0"#),
        (r#""requires":[]"#, r#""requires":["int8"]"#),
        (r#""requires":[]"#, r#""requires":["core","core"]"#),
        (r#""requires":[]"#, r#""requires":["i8-rows","core"]"#),
        (r#""dtype":"F32""#, r#""coded":0,"dtype":"F32""#),
        (r#""dtype":"F32""#, r#""coded":9,"dtype":"F16""#),
        (r#""dtype":"F32""#, r#""dtype":"I8""#),
        (r#""dtype":"F32""#, r#""dtype":"F32","scales":"g0.B""#),
        (r#""requires":[],"#, ""),
        (r#""B":"g0.B""#, r#""B":"g0.B","C":"g0.A","u":"g0.A""#),
        (r#""method":"tl5""#, r#""method":"TL5""#),
        (r#""rank":1,"#, r#""rank":0,"#),
        (r#""rank":1,"#, r#""rank":65537,"#),
        (r#""rank":1,"#, r#""rank":1.5,"#),
        (r#""rank":1,"#, r#""rank":"1","#),
        (r#""in":2"#, r#""in":-2"#),
        (r#""alpha":1,"#, r#""alpha":0,"#),
        (r#""alpha":1,"#, r#""alpha":1.5,"#),
        (r#""alpha":1,"#, r#""alpha":"0x3FF8000000000000","#),
        (
            r#""scaling":"alpha/rank","targets""#,
            r#""scaling":"one","targets""#,
        ),
        (r#""layers":[0]"#, r#""layers":[]"#),
        (r#""layers":[0]"#, r#""layers":[0,0]"#),
        (r#""layers":[0]"#, r#""layers":[4096]"#),
        (r#""layers":[0],"#, ""),
        (r#"layers.{}.q"#, "layers.0.q"),
        (r#"layers.{}.q"#, "layers.{}.{}"),
        (r#"layers.{}.q"#, "layers.{}..q"),
        (r#"layers.{}.q"#, "/layers.{}.q"),
        (r#"{"module""#, r#"{"kind":"conv2d","module""#),
        (r#"{"module""#, r#"{"kind":"linear","module""#),
        (r#""out":2}"#, r#""out":2,"in":2}"#),
        (r#"["A","B"]"#, r#"["B","A"]"#),
        (r#"["A","B"]"#, r#"["A","A"]"#),
        (r#"["A","B"]"#, r#"["A","C"]"#),
        (r#""A":"g0.A""#, r#""A":"a""#),
        (r#""A":"g0.A","#, ""),
        (r#""dtype":"F32""#, r#""dtype":"I32""#),
        (r#""dtype":"F32","#, ""),
        (r#""sha256":""#, r#""sha256":"0"#),
        (r#""sha256":""#, r#""sha256":"sha256:"#),
        (r#""shape":[1,2]"#, r#""shape":[1,-2]"#),
        (r#""role":"replace""#, r#""role":"remove""#),
        (r#""role":"replace""#, r#""rank":4,"role":"replace""#),
        (r#""rank":4,"role":"add_bias""#, r#""role":"add_bias""#),
        (r#""revision":""#, r#""url":"http://","revision":""#),
        (r#""tool":"make-fixtures""#, r#""tool":1"#),
    ];
    for (from, to) in changes {
        assert!(good.contains(from), "{from} is not in {good}");
        let bad = good.replacen(from, to, 1);
        let value: Value = serde_json::from_str(&bad).unwrap_or_else(|e| panic!("{e}: {bad}"));
        assert!(
            !validator.is_valid(&value),
            "the schema accepts {from} => {to}"
        );
        assert!(
            Manifest::parse(bad.as_bytes()).is_err(),
            "the code accepts {from} => {to}"
        );
    }
}
