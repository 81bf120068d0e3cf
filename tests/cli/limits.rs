//! Memory in proportion to what a command is given, whatever a hostile file asks for.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use tlkit::digest::Digest;
use tlkit::tensor::Dtype;

use super::{Run, Shell};
use crate::hostile::{Stored, tl};

const MB: u64 = 1 << 10;

/// Runs a command and gives the most memory that it had, in kB.
fn measured(shell: &Shell, line: &str) -> (Run, u64) {
    let mut command = shell.command(line);
    measured_command(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

fn measured_command(command: &mut std::process::Command) -> (Run, u64) {
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let size = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(size.unwrap_or(0));
        sleep(Duration::from_millis(2));
    }
    (Run::of(child.wait_with_output().unwrap()), peak)
}

#[track_caller]
fn assert_refused(run: &Run, peak: u64, most: u64, codes: &[&str], what: &str) {
    let error = run
        .stderr
        .lines()
        .find(|l| l.starts_with("error["))
        .unwrap_or_default();
    let known = codes
        .iter()
        .any(|c| error.starts_with(&format!("error[{c}]: ")));
    assert!(
        known && [2, 4].contains(&run.code),
        "{what}: exit {}: {}",
        run.code,
        run.stderr
    );
    assert!(peak < most, "{what}: {peak} kB: {error}");
}

/// Changes a JSON file.
fn set(shell: &Shell, file: &str, change: impl FnOnce(&mut Value)) {
    let path = shell.path(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Templates that make much of nothing, each in another way.
const BOMBS: &[&str] = &[
    "{{ 'a'*1000000000 }}",
    "{% set x = ['a'*1000000]*1000 %}{{ x|join }}",
    "{% set x = ['a'*3000000]*5000 %}{{ x|join|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ ''.join(x)|length }}",
    "{% set y = 'a'*10000000 %}{{ [y,y,y,y,y,y,y,y,y,y]|join }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x|string|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x|pprint|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x|tojson|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x|upper|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x|replace('b','c')|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ '%s'|format(x)|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ (x ~ 'b')|length }}",
    "{% set x = ['a'*1000000]*5000 %}{{ x in 'b' }}",
    "{% set x = ['a'*1000000]*5000 %}{% set y %}{{ x }}{% endset %}{{ y|length }}",
    "{% set x = {'k': 'a'*1000000} %}{{ ([x]*5000)|tojson|length }}",
    "{% set x = ['a'*1000000]*5000 %}{% filter trim %}{{ x }}{% endfilter %}",
    "{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x=ns.x~ns.x %}{% endfor %}",
    "{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x=ns.x+ns.x %}{% endfor %}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ ns.x|string|length }}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ ns.x|tojson|length }}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ ns.x ~ '' }}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns=namespace(x={}) %}{% for i in range(60) %}{% set ns.x={'a':ns.x,'b':ns.x} %}{% endfor %}{{ ns.x }}",
    "{% set ns=namespace(x=[]) %}{% for i in range(100000) %}{% for j in range(100000) %}{% set ns.x=[ns.x] %}{% endfor %}{% endfor %}",
    "{% set ns=namespace(x='a'*1000000) %}{% for i in range(100) %}{% set ns.x=ns.x.replace('a','aa') %}{% endfor %}",
    "{% set ns=namespace(x='a'*1000000) %}{% for i in range(100) %}{% set ns.x=ns.x|replace('a','aa') %}{% endfor %}",
    "{{ ('x'*1000000).replace('','y'*1000000)|length }}",
    "{{ ('x'*1000000)|replace('','y'*1000000)|length }}",
    "{{ ('x\\n'*1000000)|indent(1000000) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '%s'*1000000|format('a'*1000000) }}",
    "{{ [0]*10**10 }}",
    "{{ ([0]*10**7)|list|length }}{{ ([0]*10**7)|list|length }}{{ ([0]*10**8)|list|length }}",
    "{{ ('a,'*30000000).split(',')|length }}",
    "{{ ('a,'*30000000)|split(',')|length }}",
    "{{ ('a\\n'*30000000).splitlines()|length }}",
    "{{ ('a\\n'*30000000)|lines|length }}",
    "{{ ('a'*50000000)|list|length }}",
    "{{ range(100000)|batch(1)|list|length }}{% for i in range(1000) %}{{ range(100000)|batch(1, 'x')|list|length }}{% endfor %}",
    "{{ range(100000)|slice(1000000000, 'x')|list|length }}",
    "{% set ns=namespace(x=range(100000)|list) %}{% for i in range(10000) %}{% set ns.x=ns.x|sort %}{% endfor %}",
    "{% for i in range(10000) %}{{ range(100000)|map('string')|list|groupby(0)|length }}{% endfor %}",
    "{% macro f(x) %}{{ f(x~x) }}{% endmacro %}{{ f('a') }}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x=f(ns.x) %}{% endfor %}",
    "{{ strftime_now('%B'*50000000)|length }}",
    "{{ strftime_now('%1000000000d'*10000)|length }}",
    "{{ raise_exception('a'*90000000) }}",
    "{{ ('ß'*40000000).upper().lower().title()|length }}{{ ('ß'*40000000).upper()|length }}",
    "{{ 2**9999999999 }}{{ ('9'*1000000)|int ** 99 }}",
];

/// Breaks where a template that nests deeply, as code or as a value, overflows the stack.
#[test]
fn templates_that_nest_are_refused_or_rendered() {
    let shell = Shell::new();
    let chain = |start: &str, link: &str, end: &str| {
        let links = (250_000 - start.len() - end.len()) / link.len();
        format!("{start}{}{end}", link.repeat(links))
    };
    for (what, source) in [
        ("minus", chain("{{ ", "-", "1 }}")),
        ("not", chain("{{ ", "not ", "1 }}")),
        ("lists", chain("{{ ", "[", " }}")),
        ("sum", chain("{{ 1", "+1", " }}")),
        ("concatenation", chain("{{ a", "~a", " }}")),
        ("attributes", chain("{{ a", ".b", " }}")),
        ("filters", chain("{{ a", "|e", " }}")),
        ("calls", chain("{{ a", "()", " }}")),
        ("elif", chain("{% if a %}", "{% elif b %}", "{% endif %}")),
        ("else", chain("{{ 1 ", "if a else 1 ", "}}")),
        ("and", chain("{{ a", " and a", " }}")),
        ("comparisons", chain("{{ a", " < a", " }}")),
        ("too long", "a".repeat(300_000)),
        (
            "values",
            "{% set ns=namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x=[ns.x] %}{% endfor %}\
             {{ ns.x }}{{ ns.x|tojson }}"
                .to_owned(),
        ),
        (
            "values that are compared",
            "{% set ns=namespace(x=[],y=[]) %}{% for i in range(50000) %}{% set ns.x=[ns.x] %}\
             {% set ns.y=[ns.y] %}{% endfor %}{{ ns.x == ns.y }}{{ [ns.x,ns.y]|sort|unique|list|length }}"
                .to_owned(),
        ),
    ] {
        set(&shell, "base/tokenizer_config.json", |config| config["chat_template"] = json!(source));
        let line = "generate --model base --prompt ab --max-tokens 1 --chat --device cpu";
        let (run, peak) = measured(&shell, line);
        assert!([0, 2, 4].contains(&run.code), "{what}: exit {}: {}", run.code, run.stderr);
        assert!(peak < 500 * MB, "{what}: {peak} kB");
    }
}

/// Breaks where a template takes memory out of proportion, aborts, or is not told to be at fault.
#[test]
fn templates_that_multiply_are_refused_in_little_memory() {
    let shell = Shell::new();
    for bomb in BOMBS {
        set(&shell, "base/tokenizer_config.json", |config| {
            config["chat_template"] = json!(bomb)
        });
        let line = "generate --model base --prompt ab --max-tokens 1 --chat --device cpu";
        let (run, peak) = measured(&shell, line);
        // What stays within its fuel may also be rendered.
        if run.code == 0 {
            assert!(peak < 400 * MB, "{bomb}: {peak} kB");
            continue;
        }
        assert_refused(&run, peak, 400 * MB, &["TL0604", "TL0006"], bomb);
    }
}

/// Breaks where a tokenizer takes memory out of proportion to its text.
#[test]
fn tokenizers_that_multiply_are_refused_in_little_memory() {
    let shell = Shell::new();
    let plain = fs::read(shell.path("base/tokenizer.json")).unwrap();
    let twenty = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "x".repeat(20)});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    let long = "a".repeat(1 << 20);
    for (part, value) in [
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![twenty.clone(); 5]}),
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![twenty.clone(); 7]}),
        ),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": long.repeat(10)}),
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "Prepend", "prepend": long}); 9]}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![bytes; 25]}),
        ),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": vec![twenty; 7]}),
        ),
    ] {
        fs::write(shell.path("base/tokenizer.json"), &plain).unwrap();
        set(&shell, "base/tokenizer.json", |file| file[part] = value);
        for line in [
            "generate --model base --prompt ab€ --max-tokens 1 --device cpu",
            "verify logits --base base --adapter style.tl --merged base --text ab€",
        ] {
            let (run, peak) = measured(&shell, line);
            assert_refused(&run, peak, 400 * MB, &["TL0603", "TL0006"], part);
        }
    }
}

/// Breaks where a long line of data takes hundreds of times its length in memory.
#[test]
fn a_long_line_is_tokenised_as_far_as_it_is_used() {
    let shell = Shell::new();
    let long = "ab".repeat(8_000_000);
    fs::write(
        shell.path("long.jsonl"),
        format!("{{\"text\":\"{long}\"}}\n"),
    )
    .unwrap();
    let line = "train --model base --data long.jsonl -o t.tl --max-steps 1 --global-batch 1 \
                --batch-size 1 --seq-len 32 --device cpu";
    let (run, peak) = measured(&shell, line);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(peak < 500 * MB, "{peak} kB");
    let data = format!("{{\"prompt\":\"{long}\",\"completion\":\"b\",\"answers\":[\"b\"]}}\n");
    fs::write(shell.path("long.jsonl"), data).unwrap();
    let (run, peak) = measured(
        &shell,
        "generate --model base --prompts long.jsonl --max-tokens 1",
    );
    assert_refused(&run, peak, 500 * MB, &["TL0006", "TL0615"], "generate");
    let line = "eval --model base --data long.jsonl --task qa --max-tokens 1";
    let (run, peak) = measured(&shell, line);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(peak < 500 * MB, "{peak} kB");
    // Blanks that make no token: no part of the text is enough.
    let blank = format!("{{\"text\":\"{}\"}}\n", " ".repeat(16_000_000));
    fs::write(shell.path("long.jsonl"), blank).unwrap();
    let line = "train --model base --data long.jsonl -o t2.tl --max-steps 1 --seq-len 32";
    let (_, peak) = measured(&shell, line);
    assert!(peak < 900 * MB, "{peak} kB");
}

/// A `.tl` with seeded tensors of `len` values whose digests are right.
fn seeded(digests: &[String], len: u64) -> Vec<u8> {
    let one = 1.0f32.to_le_bytes();
    let mut tensors = serde_json::Map::new();
    tensors.insert(
        "g0.B".into(),
        json!({"dtype": "F32", "sha256": Digest::of(&one).hex(), "shape": [1, 1]}),
    );
    let mut groups = Vec::new();
    for (i, digest) in digests.iter().enumerate() {
        let seed = json!({"generator": "chacha20-uniform/1", "key": format!("{:064x}", i + 1), "step": "33000000"});
        tensors.insert(
            format!("g{i}.A"),
            json!({"dtype": "F32", "sha256": digest, "shape": [1, len], "seed": seed}),
        );
        groups.push(json!({"A": format!("g{i}.A"), "B": "g0.B", "alpha": 1, "in": len, "rank": 1,
            "scaling": "alpha/rank", "targets": [{"module": format!("q{i}"), "out": 1}], "trained": ["B"]}));
    }
    let manifest =
        json!({"groups": groups, "method": "tl3", "requires": [], "tensors": tensors, "tl": 1});
    tl(
        &manifest.to_string(),
        false,
        &[("g0.B", Dtype::F32, vec![1, 1], &one)],
    )
}

/// Breaks where a file of a few kB makes a command hold the gigabytes that its seeds make.
#[test]
fn seeded_tensors_are_checked_piece_by_piece() {
    let shell = Shell::new();
    let len = 1u64 << 25;
    let mut digests: Vec<String> = Vec::new();
    for n in 0..9 {
        let seed = tlkit::adapter::Seed {
            key: {
                let mut key = [0; 32];
                key[31] = n + 1;
                key
            },
            step: f32::from_bits(0x3300_0000),
        };
        let tensor = tlkit::format::seeded_tensor(&seed, Dtype::F32, &[1, len as usize]).unwrap();
        digests.push(Digest::of(tensor.data()).hex());
    }
    fs::write(shell.path("fewer.tl"), seeded(&digests[..7], len)).unwrap();
    fs::write(shell.path("seeds.tl"), seeded(&digests, len)).unwrap();
    shell.ok("store init store");
    for line in [
        "verify file seeds.tl",
        "inspect seeds.tl",
        "audit seeds.tl --hash",
        "store put store a/b fewer.tl",
    ] {
        let (run, peak) = measured(&shell, line);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        assert!(peak < 100 * MB, "{line}: {peak} kB");
    }
    // Held, they would be more than a gigabyte.
    for line in [
        "pack seeds.tl -o fat.tl",
        "convert tied-to-peft seeds.tl -o out",
        "merge base seeds.tl -o merged",
        "verify adapters seeds.tl style.tl",
        "store put store a/c seeds.tl",
    ] {
        let (run, peak) = measured(&shell, line);
        assert_refused(&run, peak, 100 * MB, &["TL0218"], line);
    }
    digests[0] = "0".repeat(64);
    fs::write(shell.path("seeds.tl"), seeded(&digests, len)).unwrap();
    let (run, peak) = measured(&shell, "verify file seeds.tl");
    assert_refused(&run, peak, 100 * MB, &["TL0213"], "a wrong digest");
}

/// Breaks where a packed tensor is unpacked whole to be checked, or at all where it cannot be used.
#[test]
fn packed_tensors_are_checked_piece_by_piece() {
    let shell = Shell::new();
    let one = 1.0f32.to_le_bytes();
    let len = 1usize << 29;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(4 * len as u64)).unwrap();
    encoder.include_contentsize(true).unwrap();
    let zeros = vec![0u8; 1 << 20];
    let mut hasher = tlkit::digest::Hasher::default();
    for _ in 0..4 * len / zeros.len() {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
        hasher.update(&zeros);
    }
    let packed = encoder.finish().unwrap();
    let digest = hasher.finish().hex();
    let manifest = json!({"groups": [{"A": "g0.A", "B": "g0.B", "alpha": 1, "in": len, "rank": 1,
            "scaling": "alpha/rank", "targets": [{"module": "q", "out": 1}], "trained": ["A", "B"]}],
        "method": "lora", "requires": [], "tl": 1, "tensors": {
            "g0.A": {"dtype": "F32", "sha256": digest, "shape": [1, len]},
            "g0.B": {"dtype": "F32", "sha256": Digest::of(&one).hex(), "shape": [1, 1]}}});
    let stored: [Stored<'_>; 2] = [
        ("g0.B", Dtype::F32, vec![1, 1], &one),
        ("z.g0.A", Dtype::U8, vec![packed.len()], &packed),
    ];
    fs::write(
        shell.path("bomb.tl"),
        tl(&manifest.to_string(), true, &stored),
    )
    .unwrap();
    for line in [
        "verify file bomb.tl",
        "inspect bomb.tl",
        "audit bomb.tl --hash",
    ] {
        let (run, peak) = measured(&shell, line);
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        assert!(peak < 150 * MB, "{line}: {peak} kB");
    }
    shell.ok("store init store");
    for line in [
        "convert tied-to-peft bomb.tl -o out",
        "merge base bomb.tl -o merged",
        "store put store a/b bomb.tl",
    ] {
        let (run, peak) = measured(&shell, line);
        assert_refused(&run, peak, 150 * MB, &["TL0218"], line);
    }
}
