//! safetensors files, and folders of them.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;

use tlkit::Code;
use tlkit::safetensors::{Checkpoint, Header, SafetensorsFile};

use super::measure::measured;
use super::{Folder, KB, MB, assert_code, on_small_stack, safetensors};

fn parse(json: &str, data: u64) -> tlkit::Result<Header> {
    Header::parse(json.as_bytes(), data)
}

fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn a_huge_header_length_is_not_allocated() {
    let folder = Folder::new();
    for (claim, code) in [
        (u64::MAX, Code::HeaderTooLarge),
        (u64::MAX - 7, Code::HeaderTooLarge),
        (100_000_001, Code::HeaderTooLarge),
        (100_000_000, Code::Truncated),
        (93, Code::Truncated),
    ] {
        let file = [&claim.to_le_bytes()[..], &[b' '; 92]].concat();
        let path = folder.file("x.safetensors", &file);
        let (opened, cost) = measured(|| SafetensorsFile::open(&path));
        assert_code(opened, code);
        cost.within(16 * KB);
    }
}

#[test]
fn bytes_belong_to_exactly_one_tensor() {
    // A range that many tensors share makes a reader that copies them take many times the file.
    let shared: Vec<String> = (0..1000)
        .map(|i| entry(&format!("t{i}"), "U8", "[1000]", "[0,1000]"))
        .collect();
    assert_code(
        parse(&format!("{{{}}}", shared.join(",")), 1000),
        Code::Overlap,
    );
    // A hole, or bytes after the last tensor, may hold another file.
    let (a, b) = (
        entry("a", "U8", "[4]", "[0,4]"),
        entry("b", "U8", "[4]", "[8,12]"),
    );
    assert_code(parse(&format!("{{{a},{b}}}"), 12), Code::Hole);
    assert_code(parse(&format!("{{{a}}}"), 5), Code::Hole);
    assert_code(parse("{}", 1), Code::Hole);
}

#[test]
fn no_product_or_offset_overflows() {
    let cases = [
        ("[0]", "[0,18446744073709551615]", Code::Truncated),
        (
            "[0]",
            "[18446744073709551615,18446744073709551615]",
            Code::Truncated,
        ),
        ("[4]", "[4,0]", Code::BadOffsets),
        ("[4]", "[0,18446744073709551616]", Code::HeaderInvalid),
        ("[-1]", "[0,4]", Code::HeaderInvalid),
        ("[1e1]", "[0,4]", Code::HeaderInvalid),
        ("[18446744073709551615,2]", "[0,4]", Code::ShapeOverflow),
        ("[4294967296,4294967296]", "[0,0]", Code::ShapeOverflow),
        (
            "[0,18446744073709551615,18446744073709551615]",
            "[0,0]",
            Code::ShapeOverflow,
        ),
        ("[4611686018427387905]", "[0,4]", Code::ShapeOverflow),
    ];
    for (shape, offsets, code) in cases {
        assert_code(
            parse(&format!("{{{}}}", entry("t", "F32", shape, offsets)), 4),
            code,
        );
    }
}

#[test]
fn keys_stand_once() {
    // Of two equal keys one reader takes the first and another the last.
    let a = entry("a", "U8", "[4]", "[0,4]");
    assert_code(parse(&format!("{{{a},{a}}}"), 4), Code::DuplicateKey);
    let escaped = entry("\\u0061", "I8", "[4]", "[0,4]");
    assert_code(parse(&format!("{{{a},{escaped}}}"), 4), Code::DuplicateKey);
    let inner = a.replace(r#""dtype""#, r#""dtype":"F32","dtype""#);
    assert_code(parse(&format!("{{{inner}}}"), 4), Code::DuplicateKey);
    let meta = r#"{"__metadata__":{"tl":"1"},"__metadata__":{"tl":"2"}}"#;
    assert_code(parse(meta, 0), Code::DuplicateKey);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for open in ["[", "{\"a\":", "{\"__metadata__\":", "{\"a\":{\"dtype\":"] {
        let deep = open.repeat(200_000);
        on_small_stack(|| assert_code(parse(&deep, 0), Code::HeaderInvalid));
    }
    let folder = Folder::new();
    let index = format!("{{\"metadata\":{}", "[".repeat(200_000));
    folder.file("model.safetensors.index.json", index.as_bytes());
    on_small_stack(|| assert_code(Checkpoint::open(folder.path()), Code::BadIndex));
}

#[test]
fn names_cannot_write_to_the_terminal() {
    for name in [
        "a\\u0000b",
        "\\u001b[2J",
        "a\\nb",
        "\\u009b31m",
        "\\u007f",
        "",
    ] {
        let json = format!("{{{}}}", entry(name, "U8", "[0]", "[0,0]"));
        assert_code(parse(&json, 0), Code::BadTensorName);
    }
    // Names that are merely odd are accepted as they are; an error that names them shows what they are.
    for odd in [
        '\u{202e}',
        '\u{2066}',
        '\u{200b}',
        '\u{ad}',
        '\u{61c}',
        '\u{feff}',
        '\u{e0041}',
    ] {
        let json = format!("{{{}}}", entry(&format!("a{odd}b"), "U8", "[1]", "[0,2]"));
        let text = parse(&json, 2).unwrap_err().to_string();
        assert!(
            !text.contains(odd) && text.contains(&odd.escape_unicode().to_string()),
            "{text}"
        );
    }
    // An unknown dtype, field or the like is quoted from the file too.
    let json = format!("{{{}}}", entry("a", "\\u001b]0;x\\u0007", "[0]", "[0,0]"));
    assert_code(parse(&json, 0), Code::UnknownDtype);
    let json = r#"{"a":{"\u001b[31m":1}}"#;
    assert_code(parse(json, 0), Code::HeaderInvalid);
    let huge = format!("{{{}}}", entry(&"n".repeat(MB), "U8", "[0]", "[0,0]"));
    assert_code(parse(&huge, 0), Code::BadTensorName);
    assert_code(parse("{\"\u{ff}\":1}\0", 0), Code::HeaderInvalid);
    assert_code(Header::parse(b"{\"\xff\":1}", 0), Code::HeaderInvalid);
}

#[test]
fn a_million_tensors_are_no_quadratic_work() {
    let mut json = String::from("{");
    for i in 0..1_000_000 {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(
            json,
            r#"{comma}"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        );
    }
    json.push('}');
    let size = json.len();
    let (found, cost) = measured(|| {
        let header = parse(&json, 0).unwrap();
        (0..1_000_000)
            .filter(|i| header.get(&format!("t{i}")).is_some())
            .count()
    });
    assert_eq!(found, 1_000_000);
    cost.within(10 * size);
    json.truncate(json.len() - 1);
    for i in 0..50_000 {
        let _ = write!(
            json,
            r#","u{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        );
    }
    json.push('}');
    assert_code(parse(&json, 0), Code::TooManyTensors);
}

#[test]
fn an_index_does_not_reach_out_of_its_folder() {
    let outside = Folder::new();
    let evil = safetensors(
        "{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
        b"",
    );
    let target = outside.file("evil.safetensors", &evil);
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    folder.file("sub/evil.safetensors", &evil);
    folder.file("evil.safetensors", &evil);
    let absolute = target.to_str().unwrap();
    for name in [
        "../evil.safetensors",
        "sub/evil.safetensors",
        "./evil.safetensors",
        "/etc/passwd",
        absolute,
        "evil.safetensors/",
        "evil.safetensors/.",
        "..",
        ".",
        "",
        "sub\\\\evil.safetensors",
        "/",
    ] {
        let index = format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#);
        folder.file("model.safetensors.index.json", index.as_bytes());
        assert_code(Checkpoint::open(folder.path()), Code::BadIndex);
    }
    // Links are how the Hub's cache is built, so they are followed, but not to anything but a file,
    // nor out of the folder.
    for (name, to) in [
        ("dir", "sub"),
        ("gone", "nowhere"),
        ("loop", "loop"),
        ("dev", "/dev/zero"),
    ] {
        symlink(to, folder.path().join(name)).unwrap();
        let index = format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#);
        folder.file("model.safetensors.index.json", index.as_bytes());
        let error = Checkpoint::open(folder.path()).unwrap_err();
        match name {
            "dev" => assert_eq!(error.code(), Code::LinkOutside, "{error:?}"),
            _ => assert_eq!(error.kind(), tlkit::ErrorKind::Io, "{name}: {error:?}"),
        }
    }
    // One shard under two names is not two shards.
    symlink("evil.safetensors", folder.path().join("again")).unwrap();
    let index = r#"{"weight_map":{"t":"evil.safetensors","u":"again"}}"#;
    folder.file("model.safetensors.index.json", index.as_bytes());
    assert_code(Checkpoint::open(folder.path()), Code::BadIndex);
}

#[test]
fn a_pipe_does_not_block_the_reader() {
    // Without a writer, opening one in the usual way never returns.
    let folder = Folder::new();
    let pipe = folder.path().join("model.safetensors");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        return;
    }
    assert_code(Checkpoint::open(folder.path()), Code::Io);
    assert_code(tlkit::fs::read_limited(&pipe, 10), Code::Io);
}
