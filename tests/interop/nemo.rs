//! NeMo's adapters against what NeMo computes with them: `tests/peft/nemo.py` made both.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tlkit::Code;
use tlkit::adapter::Method;
use tlkit::convert::{ToTiedOptions, nemo_to_tied};
use tlkit::format::NoBlobs;
use tlkit::merge::Rounding;
use tlkit::open::{Opened, Source, open_adapter};
use tlkit::safetensors::{Checkpoint, SafetensorsFile};

use super::{first_difference, fixtures, merge};

fn nemo(name: &str) -> PathBuf {
    fixtures().join(format!("nemo/{name}.nemo"))
}

fn base_of(name: &str) -> Checkpoint {
    let base = match name {
        "vera-megatron" => "models/megatron-gpt",
        _ => "llama-tiny",
    };
    Checkpoint::open(fixtures().join(base)).unwrap()
}

fn open(path: &Path, base: Option<&Checkpoint>) -> tlkit::Result<Opened> {
    open_adapter(path, base, &NoBlobs)
}

/// Largest difference between ΔW·x and NeMo's output, by what the output is.
fn error(opened: &Opened, name: &str, expected: &SafetensorsFile) -> f64 {
    let adapter = &opened.adapter;
    let mut worst: f64 = 0.0;
    let mut seen = 0;
    for module in adapter.modules() {
        let y = expected.tensor(&format!("{name}/{}", module.path)).unwrap();
        let y = y.to_f32().unwrap();
        let group = &adapter.groups[module.group];
        let delta = group.low_rank(module.layer, module.target).unwrap().delta();
        assert_eq!(delta.nrows(), y.len(), "{}", module.path);
        for (row, want) in delta.rows().into_iter().zip(&y) {
            let xs = (1u8..=255).map(|i| f64::from(i).sin());
            let got: f64 = row.iter().zip(xs).map(|(w, x)| f64::from(*w) * x).sum();
            worst = worst.max((got - f64::from(*want)).abs());
        }
        seen += 1;
    }
    let prefix = format!("{name}/");
    let names = expected.header().tensors.iter();
    let all = names.filter(|t| t.name.starts_with(&prefix)).count();
    assert_eq!(seen, all, "{name}");
    worst
}

/// Breaks where a row of a fused weight becomes another projection's, a scale or a vector is lost, ranks are joined
/// in another order, or tied layers are stored apart.
#[test]
fn every_module_puts_out_what_nemo_does() {
    let expected = SafetensorsFile::open(fixtures().join("nemo/expected.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, outputs, method, groups) in [
        ("lora", "lora", Method::Lora, 4),
        ("lora-tp2", "lora", Method::Lora, 4),
        ("canonical", "canonical", Method::Lora, 5),
        ("tied", "tied", Method::Tl5, 1),
        ("vera", "vera", Method::Tl6, 1),
        ("vera-megatron", "vera-megatron", Method::Vera, 1),
    ] {
        let base = base_of(name);
        let opened = open(&nemo(name), Some(&base)).unwrap();
        assert_eq!(opened.source, Source::Nemo);
        assert_eq!(
            (opened.adapter.method(), opened.adapter.groups.len()),
            (method, groups),
            "{name}"
        );
        assert_eq!(opened.missing, [""; 0]);
        let worst = error(&opened, outputs, &expected);
        assert!(worst < 1e-5, "{name}: {worst:e}");
        let mut options = ToTiedOptions::default();
        options.base = Some(&base);
        options.strict = true;
        let out = dir.path().join(format!("{name}.tl"));
        let report = nemo_to_tied(&nemo(name), &out, &options).unwrap();
        assert_eq!(
            (report.method, report.max_relative_error),
            (method, 0.0),
            "{name}"
        );
        let stored = open(&out, None).unwrap();
        assert!(error(&stored, outputs, &expected) < 1e-5, "{name}");
    }
}

/// Breaks where one adapter is another by how many ranks saved it, or without its base.
#[test]
fn ranks_and_the_base_change_nothing() {
    let base = base_of("lora");
    let dir = tempfile::tempdir().unwrap();
    let merged = |name: &str| {
        let out = dir.path().join(name);
        merge(
            &fixtures().join("llama-tiny"),
            &[(&nemo(name), 1.0)],
            &out,
            Rounding::Peft,
        )
        .unwrap()
    };
    assert_eq!(first_difference(&merged("lora"), &merged("lora-tp2")), None);
    let bytes = |base: Option<&Checkpoint>| {
        let out = dir.path().join(format!("{}.tl", base.is_some()));
        let options = ToTiedOptions::default();
        let opened = open(&nemo("lora"), base).unwrap();
        nemo_to_tied(&nemo("lora"), &out, &options).unwrap();
        (opened.identity, fs::read(out).unwrap())
    };
    assert_eq!(bytes(Some(&base)), bytes(None));
}

#[test]
fn what_is_no_low_rank_update_is_refused() {
    let code = |name: &str, base: Option<&Checkpoint>| open(&nemo(name), base).unwrap_err().code();
    let positions = Code::UnsupportedPositionEmbedding;
    assert_eq!(code("tied-add", Some(&base_of("tied-add"))), positions);
    assert_eq!(code("vera-megatron", None), Code::NeedsBase);
}

/// The plain tar of an archive.
fn tar_of(name: &str) -> Vec<u8> {
    let bytes = fs::read(nemo(name)).unwrap();
    match bytes.starts_with(&[0x1f, 0x8b]) {
        false => bytes,
        true => {
            let mut out = Vec::new();
            GzDecoder::new(&bytes[..]).read_to_end(&mut out).unwrap();
            out
        }
    }
}

/// An archive of these members.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Its config and state dict.
fn members_of(name: &str) -> (Vec<u8>, Vec<u8>) {
    let bytes = tar_of(name);
    let mut tar = tar::Archive::new(&bytes[..]);
    let mut found = [Vec::new(), Vec::new()];
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let at = match path.file_name().and_then(|n| n.to_str()) {
            Some("model_config.yaml") => 0,
            Some("model_weights.ckpt") => 1,
            _ => continue,
        };
        entry.read_to_end(&mut found[at]).unwrap();
    }
    let [config, weights] = found;
    (config, weights)
}

/// Breaks where a changed archive is read as something else, or its size leads to an allocation.
#[test]
fn changed_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let code = |bytes: &[u8]| {
        let path = dir.path().join("x.nemo");
        fs::write(&path, bytes).unwrap();
        open(&path, None).unwrap_err().code()
    };
    let (config, weights) = members_of("lora");
    let both = |config: &[u8], weights: &[u8]| {
        archive(&[
            ("./model_config.yaml", config),
            ("./model_weights.ckpt", weights),
        ])
    };
    let yaml = String::from_utf8(config.clone()).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(yaml.contains(from), "{from}");
        code(&both(yaml.replace(from, to).as_bytes(), &weights))
    };
    assert_eq!(
        changed("adapter_dim: 2", "adapter_dim: 3"),
        Code::RankMismatch
    );
    assert_eq!(
        changed("adapter_dim: 2", "adapter_dim: ${x}"),
        Code::NemoConfig
    );
    assert_eq!(
        changed("peft_scheme: lora", "peft_scheme: ptuning"),
        Code::UnsupportedPeftType
    );
    assert_eq!(
        changed("num_query_groups: 4", "num_query_groups: 2"),
        Code::FactorShape
    );
    assert_eq!(
        changed("hidden_size: 64", "hidden_size: 32"),
        Code::FactorShape
    );
    assert_eq!(
        changed("num_layers: 4", "num_layers: 2"),
        Code::TargetMismatch
    );
    assert_eq!(
        changed("weight_tying: false", "weight_tying: true"),
        Code::TargetMismatch
    );
    assert_eq!(changed("rmsnorm", "layernorm"), Code::NeedsBase);
    assert_eq!(
        changed("num_layers: 4", "num_layers: 4\nnum_layers: 4"),
        Code::DuplicateKey
    );

    assert_eq!(code(b"no archive"), Code::BadArchive);
    assert_eq!(
        code(&archive(&[("./model_config.yaml", &config)])),
        Code::NoAdapter
    );
    assert_eq!(
        code(&archive(&[("model_weights.ckpt", &weights)])),
        Code::NoAdapter
    );
    assert_eq!(code(&both(&config, b"\x80\x02.")), Code::BadArchive);
    let twice = archive(&[
        ("model_config.yaml", &config),
        ("./model_config.yaml", &config),
    ]);
    assert_eq!(code(&twice), Code::BadArchive);
    let stages = archive(&[
        ("model_config.yaml", &config),
        ("tp_rank_00_pp_rank_001/model_weights.ckpt", &weights),
    ]);
    assert_eq!(code(&stages), Code::UnsupportedMegatron);
    let gap = archive(&[
        ("model_config.yaml", &config),
        ("mp_rank_01/model_weights.ckpt", &weights),
    ]);
    assert_eq!(code(&gap), Code::UnsupportedMegatron);
    let large = vec![b'#'; (1 << 20) + 1];
    assert_eq!(code(&both(&large, &weights)), Code::BadArchive);

    let whole = both(&config, &weights);
    for end in [100, 600, whole.len() / 2] {
        assert_eq!(code(&whole[..end]), Code::BadArchive, "{end}");
    }
    // A member that claims 8 GiB.
    let mut lie = whole.clone();
    lie[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = lie[..512]
        .iter()
        .enumerate()
        .map(|(i, b)| {
            if (148..156).contains(&i) {
                32
            } else {
                u32::from(*b)
            }
        })
        .sum();
    lie[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(code(&lie), Code::BadArchive);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&whole).unwrap();
    let packed = packed.finish().unwrap();
    assert_eq!(code(&packed[..packed.len() - 200]), Code::BadArchive);
}
