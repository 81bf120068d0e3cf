//! Adapter folders as they come from the Hub: configs, weights, pickles.

use std::io::{Cursor, Write as _};
use std::path::Path;

use tlkit::convert::find_ties;
use tlkit::format::NoBlobs;
use tlkit::open::open_adapter;
use tlkit::peft::import::{ImportOptions, Imported, PeftKind, import};
use tlkit::peft::pickle::{Limits, read_torch_archive};
use tlkit::peft::{CONFIG_FILE, PICKLE_FILE, PeftConfig, WEIGHTS_FILE};
use tlkit::safetensors::{Checkpoint, encode_header};
use tlkit::tensor::Dtype;
use tlkit::{Code, Result};
use zip::write::SimpleFileOptions;

use super::measure::measured;
use super::{Folder, KB, MB, assert_code, on_small_stack};

/// An adapter folder of rank 1 with these modules, one input and one output each, all values unlike.
fn adapter(config: &str, modules: &[String]) -> Folder {
    let mut names = Vec::new();
    for module in modules {
        names.extend(["A", "B"].map(|f| format!("base_model.model.{module}.lora_{f}.weight")));
    }
    let entries = names
        .iter()
        .map(|n| (n.as_str(), Dtype::F32, &[1, 1][..], 4));
    let mut file = encode_header(&[], entries, 8);
    for i in 0..names.len() {
        file.extend_from_slice(&(i as f32).to_le_bytes());
    }
    let folder = Folder::new();
    folder.file(CONFIG_FILE, config.as_bytes());
    folder.file(WEIGHTS_FILE, &file);
    folder
}

fn read(folder: &Path) -> Result<Imported> {
    import(folder, &ImportOptions::default())
}

fn config(more: &str) -> String {
    format!(r#"{{"peft_type":"LORA","r":1,"lora_alpha":1{more}}}"#)
}

#[test]
fn a_hundred_thousand_tensors_are_no_quadratic_work() {
    // With a rank and an alpha for each module, as PEFT writes them, and all in the target list.
    let experts: Vec<String> = (0..50_000)
        .map(|i| format!("model.layers.{}.mlp.experts.{}.up_proj", i % 61, i / 61))
        .collect();
    let pattern: Vec<String> = experts.iter().map(|m| format!("\"{m}\":1")).collect();
    let config = config(&format!(",\"rank_pattern\":{{{}}}", pattern.join(",")));
    let folder = adapter(&config, &experts);
    let (imported, cost) = measured(|| read(folder.path()).unwrap());
    assert_eq!(imported.adapter.groups.len(), 50_000);
    cost.within(400 * MB);
    let (tied, cost) = measured(|| find_ties(&imported.adapter, PeftKind::Lora).unwrap().0);
    assert!(tied.groups.len() < 1000);
    cost.within(400 * MB);
}

#[test]
fn fifty_thousand_groups_that_may_join_are_no_quadratic_work() {
    // All of one layer: each might be joined with each of the others, had it the same A.
    let modules: Vec<String> = (0..50_000)
        .map(|i| format!("model.layers.0.m{i}"))
        .collect();
    let folder = adapter(&config(""), &modules);
    let imported = read(folder.path()).unwrap();
    let (tied, cost) = measured(|| find_ties(&imported.adapter, PeftKind::Lora).unwrap().0);
    assert_eq!(tied.groups.len(), 50_000);
    cost.within(400 * MB);
}

#[test]
fn more_modules_than_the_limit_are_refused_before_the_work() {
    let modules: Vec<String> = (0..262_145).map(|i| format!("m{i}")).collect();
    assert_code(
        read(adapter(&config(""), &modules).path()),
        Code::ManifestLimit,
    );
}

#[test]
fn a_name_of_a_thousand_segments_is_refused() {
    let deep = "a.".repeat(1500) + "q";
    assert_code(read(adapter(&config(""), &[deep]).path()), Code::BadName);
}

#[test]
fn catastrophic_patterns_end() {
    let modules = [format!("model.layers.0.{}", "a".repeat(200))];
    for pattern in [
        r".*(?:(a|aa|ab?)(?!x))+c",
        r"(?:a*)*(?=b)",
        r"((a+)+)+$(?<!a)",
        r"(.*a){25}(?!.)b",
        r"(\\w+\\.?)+\\1x",
    ] {
        let quoted = pattern.replace("\\\\", "\\").replace('\\', "\\\\");
        for key in ["target_modules", "exclude_modules"] {
            let folder = adapter(&config(&format!(r#","{key}":"{quoted}""#)), &modules);
            let (_, cost) = measured(|| read(folder.path()).map(drop));
            cost.within(200 * MB);
        }
        let folder = adapter(
            &config(&format!(r#","alpha_pattern":{{"{quoted}":1}}"#)),
            &modules,
        );
        let (_, cost) = measured(|| read(folder.path()).map(drop));
        cost.within(200 * MB);
    }
}

#[test]
fn patterns_that_compile_to_gigabytes_are_refused() {
    for pattern in [
        r"(?:\\w{1000}){1000}",
        r"((((((((a{99}){99}){99}){99}){99}){99}){99}){99})",
    ] {
        let text = config(&format!(r#","target_modules":"{pattern}""#));
        let folder = adapter(&text, &["q".into()]);
        let (read, cost) = measured(|| read(folder.path()));
        assert_code(read, Code::BadPattern);
        cost.within(400 * MB);
    }
    let many: Vec<String> = (0..1001).map(|i| format!("\"(q|k){i}\":1")).collect();
    let text = config(&format!(",\"rank_pattern\":{{{}}}", many.join(",")));
    assert_code(read(adapter(&text, &["q".into()]).path()), Code::BadPattern);
}

/// Breaks where an update inside another wrapped layer is taken for the layer's own, or VeRA without its projections for
/// one that says how they were made.
#[test]
fn what_is_missing_or_wrapped_is_refused_by_its_code() {
    let wrapped = adapter(&config(""), &["q.base_layer".to_owned()]);
    assert_code(read(wrapped.path()), Code::UnsupportedMha);
    let names = ["b", "d"].map(|n| format!("base_model.model.q.vera_lambda_{n}"));
    let entries = names.iter().map(|n| (n.as_str(), Dtype::F32, &[1][..], 4));
    let mut file = encode_header(&[], entries, 8);
    file.extend_from_slice(&[0; 8]);
    let folder = Folder::new();
    let config = r#"{"peft_type":"VERA","r":1,"save_projection":true,"target_modules":["q"]}"#;
    folder.file(CONFIG_FILE, config.as_bytes());
    folder.file(WEIGHTS_FILE, &file);
    let weight = [("q.weight", Dtype::F32, &[1, 1][..], 4)];
    let mut base = encode_header(&[], weight, 8);
    base.extend_from_slice(&[0; 4]);
    let model = Folder::new();
    model.file("base.safetensors", &base);
    let base = Checkpoint::open(model.path().join("base.safetensors")).unwrap();
    let opened = open_adapter(folder.path(), Some(&base), &NoBlobs);
    assert_code(opened, Code::NoProjection);
}

#[test]
fn hostile_configs_are_refused() {
    let parse = |text: &str| PeftConfig::from_slice(text.as_bytes());
    assert_code(parse(&config(r#","r":2"#)), Code::DuplicateKey);
    assert_code(parse(&" ".repeat(5 * MB)), Code::ConfigInvalid);
    assert_code(
        parse(r#"{"peft_type":"\u001b[31m"}"#),
        Code::UnsupportedPeftType,
    );
    assert_code(
        parse(&config(",\"bias\":\"\u{202e}\\n\"")),
        Code::ConfigInvalid,
    );
    assert_code(
        parse(&config(r#","lora_alpha2":1e999"#)),
        Code::ConfigInvalid,
    );
    assert_code(
        parse(r#"{"peft_type":"LORA","r":4294967296}"#),
        Code::ConfigInvalid,
    );
    for open in ["[", "{\"a\":"] {
        let deep = config(&format!(",\"x\":{}", open.repeat(300_000)));
        on_small_stack(|| assert_code(parse(&deep), Code::ConfigInvalid));
    }
}

/// An archive of torch with this pickle and one storage of 16 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 16])] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn a_pickle_is_not_executed() {
    let folder = Folder::new();
    let proof = folder.path().join("executed");
    let command = format!("touch {}", proof.display());
    let text = [
        &b"X"[..],
        &(command.len() as u32).to_le_bytes(),
        command.as_bytes(),
    ]
    .concat();
    let protocols: [(&[u8], &[u8]); 5] = [
        (b"\x80\x02cos\nsystem\n", b"\x85R."),
        (b"\x80\x02cposix\nsystem\n", b"\x85R."),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93", b"\x85R."),
        (b"\x80\x02cbuiltins\neval\n", b"\x85R."),
        (b"\x80\x02(cos\nsystem\n", b"o."),
    ];
    folder.file(CONFIG_FILE, config("").as_bytes());
    for (call, end) in protocols {
        let path = folder.file(PICKLE_FILE, &archive(&[call, &text, end].concat()));
        assert_code(
            read_torch_archive(&path, Limits::default()),
            Code::PickleRefused,
        );
        assert_code(read(folder.path()), Code::PickleRefused);
        assert!(!proof.exists());
    }
}

#[test]
fn pickles_take_memory_in_proportion() {
    let folder = Folder::new();
    let measure = |pickle: &[u8], code| {
        let path = folder.file("x.bin", &archive(pickle));
        let (read, cost) = measured(|| read_torch_archive(&path, Limits::default()));
        assert_code(read, code);
        cost
    };
    // A tensor, then a dict that has it a hundred thousand times under one name.
    let repeated = |name: &[u8]| {
        let mut pickle = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\n\
            FloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89}tRq\x01"
            .to_vec();
        pickle.extend([b"X", &(name.len() as u32).to_le_bytes()[..], name].concat());
        pickle.extend(b"q\x0200}(");
        pickle.extend(b"h\x02h\x01".repeat(100_000));
        pickle.extend(b"u.");
        pickle
    };
    measure(&repeated(b"n"), Code::DuplicateKey).within(64 * MB);
    measure(&repeated(&vec![b'n'; 4000]), Code::DuplicateKey).within(64 * MB);
    measure(&repeated(&vec![b'n'; MB]), Code::PickleRefused).within(16 * MB);
    // A million lists, and a million tuples, one inside the other.
    measure(
        &[b"\x80\x02", &b"]0".repeat(1_000_000)[..]].concat(),
        Code::BadArchive,
    )
    .within(200 * MB);
    measure(
        &[b"\x80\x02N", &b"\x85".repeat(1_000_000)[..]].concat(),
        Code::BadArchive,
    )
    .within(200 * MB);
    measure(
        &[b"\x80\x02", &b"(".repeat(1_000_000)[..]].concat(),
        Code::PickleRefused,
    )
    .within(64 * MB);
    // A string that claims 4 GB.
    measure(b"\x80\x02X\xff\xff\xff\xffabc.", Code::BadArchive).within(64 * KB);
}
