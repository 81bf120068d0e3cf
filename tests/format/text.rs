//! What the specification prints is what the code computes.

use std::fs;

use tlkit::Code;
use tlkit::adapter::Seed;
use tlkit::coding::model::Model;
use tlkit::coding::trellis;
use tlkit::digest::Digest;
use tlkit::format::{fingerprint, seeded_tensor};
use tlkit::fs::Existing;
use tlkit::safetensors::{Checkpoint, write_tensors};
use tlkit::tensor::Tensor;

use super::{blocks, fixture, root};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_worked_example_is_the_golden_file() {
    // A reader who types the example in must get a file that opens.
    let blocks = blocks("hex");
    let [(info, dump)] = &blocks[..] else {
        panic!("one ```hex block is expected")
    };
    let name = info.split(' ').nth(1).unwrap();
    let mut bytes = Vec::new();
    for line in dump.lines() {
        let (offset, line) = line.split_once("  ").unwrap();
        assert_eq!(
            usize::from_str_radix(offset, 16).unwrap(),
            bytes.len(),
            "{line}"
        );
        let (digits, ascii) = line.split_once("  ").unwrap();
        let row = unhex(&digits.replace(' ', ""));
        let shown = row.iter().map(|b| {
            if (32..127).contains(b) {
                *b as char
            } else {
                '.'
            }
        });
        assert_eq!(ascii, shown.collect::<String>());
        bytes.extend(row);
    }
    assert!(
        bytes == fs::read(fixture(name)).unwrap(),
        "the dump is not {name}"
    );
}

#[test]
fn the_seed_vectors_are_what_the_generator_makes() {
    // Lines of key, step, dtype, shape, bytes. A change here would change every seeded adapter.
    let mut count = 0;
    for (_, text) in blocks("seeds") {
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [key, step, dtype, shape, want] = words[..] else {
                panic!("{line}")
            };
            let seed = Seed {
                key: unhex(key).try_into().unwrap(),
                step: f32::from_bits(u32::from_str_radix(step, 16).unwrap()),
            };
            let shape: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
            let tensor = seeded_tensor(&seed, dtype.parse().unwrap(), &shape).unwrap();
            let digest = Digest::of(tensor.data()).to_string();
            let made = if want.starts_with("sha256:") {
                digest
            } else {
                hex(tensor.data())
            };
            assert_eq!(made, want, "{line}");
            count += 1;
        }
    }
    assert!(count >= 6);
}

/// The numbers of a table that the text prints.
fn numbers(what: &str) -> Vec<u64> {
    let blocks = blocks("coded");
    let (_, text) = blocks
        .iter()
        .find(|b| b.0 == format!("coded {what}"))
        .unwrap();
    let words = text.split([' ', ';', '\n']).filter(|w| !w.is_empty());
    words.map(|w| w.parse().unwrap()).collect()
}

#[test]
fn the_tables_of_coded_tensors_are_those_of_the_code() {
    let states = trellis::NEXT.iter().flatten().map(|s| u64::from(*s));
    assert_eq!(numbers("states"), states.collect::<Vec<_>>());
    // Every frequency by the formula of chapter 6, as a reader of the text would write it.
    let (octave, shapes, power) = (numbers("octave"), numbers("shapes"), numbers("power"));
    for (scale, shape, z) in (0..128)
        .flat_map(|s| (0..16).map(move |h| (s, h)))
        .flat_map(|(s, h)| [(s, h, 0), (s, h, 1)])
    {
        let [a, b, c, zero] = shapes[4 * shape..][..4] else {
            panic!()
        };
        let h = u32::try_from(usize::saturating_sub(scale, 38) >> 3).unwrap();
        let weight = |i: u64| {
            let y = ((i << (h + 1)) + (1 << h) - 1).saturating_sub(z);
            let t = 16_384.min((4 * y * octave[scale % 8]) >> (8 + (scale >> 3)));
            let e = ((a * t) >> 8)
                + ((b * t * t) >> 16)
                + ((u128::from(c) * u128::from(t).pow(4).min(1 << 56)) >> 32) as u64;
            let density = power[(e % 64) as usize].checked_shr((e >> 6) as u32);
            let g = match (h, i, z) {
                (0, 0, 0) => zero,
                (0, 0, 1) => 6,
                (0, 1, 1) => 28,
                _ => 32,
            };
            density.unwrap_or(0) * g
        };
        let weights: Vec<u64> = (0..32).map(weight).collect();
        let sum: u64 = weights.iter().sum();
        let mut want: Vec<u64> = weights.iter().map(|w| 1 + 4064 * w / sum).collect();
        let most = weights.iter().max().unwrap();
        let first = weights.iter().position(|w| w == most).unwrap();
        want[first] += 4096 - want.iter().sum::<u64>();
        let model = Model::new(scale as u8, shape as u8).unwrap();
        let made = model.frequencies(z as usize).map(u64::from);
        assert_eq!(made[..], want[..], "scale {scale}, shape {shape}, set {z}");
    }
}

#[test]
fn the_coded_vectors_are_what_the_code_reads() {
    // Lines of shape, coded bytes, values. A change here would change every coded adapter.
    let blocks = blocks("coded");
    let (_, text) = blocks.iter().find(|b| b.0 == "coded vectors").unwrap();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [shape, bytes, want] = words[..] else {
            panic!("{line}")
        };
        let shape = shape.split('x').map(|n| n.parse().unwrap()).collect();
        let tensor = Tensor::coded(shape, unhex(bytes)).unwrap();
        assert_eq!(hex(tensor.data()), want, "{line}");
    }
    assert!(text.lines().count() >= 3);
}

#[test]
fn the_fingerprint_example_is_what_the_code_computes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.safetensors");
    let t = |shape: &[usize], values: &[f32]| Tensor::from_f32(shape.to_vec(), values).unwrap();
    let tensors = [
        (
            "layers.0.q.weight".to_owned(),
            t(&[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        ),
        ("layers.0.q.bias".to_owned(), t(&[2], &[0.0, -1.0])),
        ("untouched".to_owned(), t(&[1], &[7.0])),
    ];
    write_tensors(&path, Existing::Refuse, &[], &tensors).unwrap();
    let base = Checkpoint::open(&path).unwrap();
    let names = ["layers.0.q.weight", "layers.0.q.bias"];
    let digest = fingerprint(&base, names).unwrap();
    let blocks = blocks("fingerprint");
    let (_, lines) = &blocks[0];
    assert_eq!(Digest::of(format!("{lines}\n").as_bytes()), digest);
    let text = fs::read_to_string(root().join("spec/tl-v1.md")).unwrap();
    assert!(
        text.contains(&digest.hex()),
        "the text does not give {digest}"
    );
}

#[test]
fn limits_of_the_text_are_those_of_the_code() {
    use tlkit::adapter::{
        MAX_EXPERTS, MAX_GROUPS, MAX_LAYERS, MAX_MODULES, MAX_NAME_BYTES, MAX_RANK,
    };
    use tlkit::format::{MAX_MANIFEST_BYTES, MAX_SEEDED_ELEMENTS, MAX_TENSOR_BYTES};
    let text = fs::read_to_string(root().join("spec/tl-v1.md")).unwrap();
    for (what, limit) in [
        ("bytes of the manifest", MAX_MANIFEST_BYTES as u64),
        ("raw bytes of one tensor", MAX_TENSOR_BYTES),
        ("elements of one seeded tensor", MAX_SEEDED_ELEMENTS as u64),
        ("tie groups", MAX_GROUPS as u64),
        ("layers of one group", MAX_LAYERS as u64),
        ("experts of one group", MAX_EXPERTS as u64),
        ("rank", MAX_RANK as u64),
        (
            "adapted modules (layers × experts × targets, over all groups)",
            MAX_MODULES as u64,
        ),
        (
            "bytes of a module template or of an extra's name",
            MAX_NAME_BYTES as u64,
        ),
    ] {
        let row = text.lines().find(|l| l.starts_with(&format!("| {what} |")));
        let row = row.unwrap_or_else(|| panic!("no row `{what}` in the limits table"));
        let value: String = row
            .split('|')
            .nth(2)
            .unwrap()
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        assert_eq!(value, limit.to_string(), "{row}");
    }
}

#[test]
fn the_text_names_every_code_of_what_cannot_be_said() {
    // A refusal whose code the specification does not explain is one that users cannot look up.
    let text = fs::read_to_string(root().join("spec/tl-v1.md")).unwrap();
    let codes = Code::ALL.iter().filter(|c| c.as_str().starts_with("TL04"));
    for code in codes.filter(|c| **c != Code::ExportImpossible) {
        assert!(
            text.contains(code.as_str()),
            "chapter 13 lacks {}",
            code.as_str()
        );
    }
}
