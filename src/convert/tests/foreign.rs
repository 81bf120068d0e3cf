//! MLX's folders there and back; ranks of 0.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::adapter::ExtraRole;
use crate::convert::{ToTiedOptions, mlx_to_tied, peft_to_tied, tied_to_mlx};
use crate::error::{Code, Result};
use crate::format::NoBlobs;
use crate::fs::Existing;
use crate::mlx::MlxOptions;
use crate::open::{Opened, Source, open_adapter};
use crate::peft::import::PeftKind;
use crate::safetensors::{Checkpoint, SafetensorsFile, write_tensors};
use crate::tensor::Tensor;

fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-tiny")
}

fn tensor(shape: &[usize], start: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| start + i as f32 / 64.0).collect();
    Tensor::from_f32(shape.to_vec(), &values).unwrap()
}

fn folder(dir: &Path, weights: &str, config: &str, tensors: &[(&str, Tensor)]) -> PathBuf {
    let path = tempfile::tempdir_in(dir).unwrap().keep();
    fs::write(path.join("adapter_config.json"), config).unwrap();
    let tensors: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(n, t)| ((*n).to_owned(), t.clone()))
        .collect();
    write_tensors(&path.join(weights), Existing::Refuse, &[], &tensors).unwrap();
    path
}

const MLX: &str = r#"{"fine_tune_type": "lora", "num_layers": 2, "model": "org/base",
    "lora_parameters": {"rank": 2, "scale": 3.3, "dropout": 0.1, "keys": ["self_attn.q_proj", "mlp.down_proj"]}}"#;
const Q: &str = "model.layers.2.self_attn.q_proj";
const DOWN: &str = "model.layers.3.mlp.down_proj";

fn pairs() -> Vec<(String, Tensor)> {
    vec![
        (format!("{Q}.lora_a"), tensor(&[64, 2], 1.0)),
        (format!("{Q}.lora_b"), tensor(&[2, 64], -2.0)),
        (format!("{DOWN}.lora_a"), tensor(&[128, 2], 3.0)),
        (format!("{DOWN}.lora_b"), tensor(&[2, 64], 4.0)),
    ]
}

fn mlx(dir: &Path, config: &str, tensors: &[(String, Tensor)]) -> PathBuf {
    let named: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(n, t)| (n.as_str(), t.clone()))
        .collect();
    folder(dir, "adapters.safetensors", config, &named)
}

fn open(path: &Path) -> Result<Opened> {
    let base = Checkpoint::open(llama()).unwrap();
    open_adapter(path, Some(&base), &NoBlobs)
}

fn stored(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = SafetensorsFile::open(path.join("adapters.safetensors")).unwrap();
    let names = file.header().tensors.iter();
    names
        .map(|t| {
            (
                t.name.clone(),
                file.tensor(&t.name).unwrap().data().to_vec(),
            )
        })
        .collect()
}

/// Breaks where a factor of MLX's is not transposed, its scale not multiplied as it is, or the way back gives
/// other bytes.
#[test]
fn mlx_goes_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let input = mlx(dir.path(), MLX, &pairs());
    let opened = open(&input).unwrap();
    assert_eq!(opened.source, Source::Mlx(PeftKind::Lora));
    assert_eq!((opened.notes.len(), opened.missing.len()), (1, 2));
    assert_eq!(
        opened.adapter.base.as_ref().unwrap().name.as_deref(),
        Some("org/base")
    );
    let modules = opened.adapter.modules();
    let module = modules.iter().find(|m| m.path == Q).unwrap();
    let factors = opened.adapter.groups[module.group].low_rank(0, 0).unwrap();
    assert_eq!(factors.scale as f32, 3.3);
    let (a, b) = (
        pairs()[0].1.to_f32().unwrap(),
        pairs()[1].1.to_f32().unwrap(),
    );
    assert_eq!((factors.right[64], factors.left[3]), (a[1], b[64 + 1]));

    let tl = dir.path().join("x.tl");
    mlx_to_tied(&input, &tl, &ToTiedOptions::default()).unwrap();
    let back = dir.path().join("back");
    let report = tied_to_mlx(&tl, &back, &llama(), &NoBlobs, &MlxOptions::default()).unwrap();
    assert_eq!(
        (report.fine_tune_type, report.num_layers, report.tensors),
        ("lora", 2, 4)
    );
    assert_eq!(stored(&back), stored(&input));
    let config = fs::read_to_string(back.join("adapter_config.json")).unwrap();
    assert!(config.contains("\"scale\": 3.3"), "{config}");
    let wrong = peft_to_tied(&tl, &dir.path().join("y.tl"), &ToTiedOptions::default());
    assert!(wrong.is_err());
    let peft = folder(
        dir.path(),
        "adapter_model.safetensors",
        r#"{"peft_type": "LORA"}"#,
        &[],
    );
    let refused = mlx_to_tied(&peft, &dir.path().join("z.tl"), &ToTiedOptions::default());
    assert_eq!(refused.unwrap_err().code(), Code::NoAdapter);
}

/// Breaks where layers that were trained whole are lost, or groups of several ranks and scales mean something else.
#[test]
fn whole_layers_and_several_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let name = "model.layers.3.self_attn.q_proj.weight".to_owned();
    let full = mlx(
        dir.path(),
        r#"{"fine_tune_type": "full"}"#,
        &[(name.clone(), tensor(&[64, 64], 0.5))],
    );
    let opened = open(&full).unwrap();
    let [extra] = &opened.adapter.extras[..] else {
        panic!("{:?}", opened.adapter.extras);
    };
    assert_eq!((&extra.name, extra.role), (&name, ExtraRole::Replace));
    let back = dir.path().join("full");
    let options = MlxOptions::default();
    let report = tied_to_mlx(&full, &back, &llama(), &NoBlobs, &options).unwrap();
    assert_eq!((report.fine_tune_type, report.num_layers), ("full", 1));
    assert_eq!(stored(&back), stored(&full));

    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2}}"#;
    let name = |layer: u8, end: &str| {
        format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{end}.weight")
    };
    let names = [name(0, "A"), name(0, "B"), name(1, "A"), name(1, "B")];
    let shapes = [[1, 64], [64, 1], [2, 64], [64, 2]];
    let tensors: Vec<(&str, Tensor)> = names
        .iter()
        .zip(&shapes)
        .map(|(n, s)| (n.as_str(), tensor(s, 1.0)))
        .collect();
    let peft = folder(dir.path(), "adapter_model.safetensors", config, &tensors);
    let out = dir.path().join("padded");
    tied_to_mlx(&peft, &out, &llama(), &NoBlobs, &options).unwrap();
    let again = open(&out).unwrap().adapter;
    let first = open(&peft).unwrap().adapter;
    for (module, other) in first.modules().iter().zip(again.modules()) {
        let delta = |a: &crate::adapter::Adapter, m: &crate::adapter::Module| {
            a.groups[m.group]
                .low_rank(m.layer, m.target)
                .unwrap()
                .delta()
        };
        assert_eq!(module.path, other.path);
        assert_eq!(delta(&first, module), delta(&again, &other));
    }
}

#[test]
fn what_mlx_would_not_load_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let code = |config: &str, tensors: &[(String, Tensor)]| {
        open(&mlx(dir.path(), config, tensors)).unwrap_err().code()
    };
    let with = |at: usize, name: &str, shape: &[usize]| {
        let mut all = pairs();
        all[at] = (name.to_owned(), tensor(shape, 0.0));
        all
    };
    let a = format!("{Q}.lora_a");
    assert_eq!(code(MLX, &with(0, &a, &[64, 3])), Code::FactorShape);
    assert_eq!(code(MLX, &with(0, &a, &[64])), Code::FactorShape);
    assert_eq!(code(MLX, &with(0, &a, &[0, 2])), Code::EmptyTensor);
    assert_eq!(code(MLX, &pairs()[1..]), Code::MissingFactor);
    assert_eq!(
        code(MLX, &with(0, "model.norm.weight", &[64])),
        Code::UnknownAdapterTensor
    );
    assert_eq!(
        code(&MLX.replace("\"rank\": 2", "\"rank\": 4"), &pairs()),
        Code::RankMismatch
    );
    assert_eq!(
        code(&MLX.replace("q_proj", "k_proj"), &pairs()),
        Code::TargetMismatch
    );
    assert_eq!(
        code(
            &MLX.replace("\"num_layers\": 2", "\"num_layers\": 1"),
            &pairs()
        ),
        Code::TargetMismatch
    );
    assert_eq!(
        code(&MLX.replace("\"lora\"", "\"dora\""), &pairs()),
        Code::MissingFactor
    );
    assert_eq!(
        code(r#"{"fine_tune_type": "full"}"#, &pairs()),
        Code::TargetMismatch
    );
    assert_eq!(code(MLX, &[]), Code::MissingFactor);
    let switch = "model.layers.3.mlp.switch_mlp.up_proj";
    let experts = [
        (format!("{switch}.lora_a"), tensor(&[3, 2, 64], 0.0)),
        (format!("{switch}.lora_b"), tensor(&[3, 8, 2], 0.0)),
    ];
    let config = MLX.replace("mlp.down_proj", "mlp.switch_mlp.up_proj");
    assert_eq!(code(&config, &experts), Code::UnmatchedModule);
    let alone = open_adapter(&mlx(dir.path(), &config, &experts), None, &NoBlobs);
    assert_eq!(alone.unwrap_err().code(), Code::NeedsBase);

    let options = MlxOptions::default();
    let bad = |input: &Path, base: &str| {
        let base = llama().join("..").join(base);
        tied_to_mlx(input, &dir.path().join("none"), &base, &NoBlobs, &options)
            .unwrap_err()
            .code()
    };
    let input = mlx(dir.path(), MLX, &pairs());
    assert_eq!(bad(&input, "models/megatron-gpt"), Code::UnsupportedModel);
    assert_eq!(bad(&input, "models/qwen2"), Code::UnmatchedModule);
    assert_eq!(bad(&input, "adapters/lora"), Code::ModelConfig);
    let v1 = llama().join("../v1");
    assert_eq!(
        bad(&v1.join("extras.tl"), "llama-tiny"),
        Code::ExportImpossible
    );
    assert_eq!(
        bad(&v1.join("experts.tl"), "llama-tiny"),
        Code::ExportImpossible
    );
    assert!(!dir.path().join("none").exists());
}

/// Breaks where a run's step is read in place of its end, or one of several is picked.
#[test]
fn the_step_of_a_run_is_read_only_where_it_is_alone() {
    let dir = tempfile::tempdir().unwrap();
    let input = mlx(dir.path(), MLX, &pairs());
    let weights = input.join("adapters.safetensors");
    fs::rename(&weights, input.join("0000100_adapters.safetensors")).unwrap();
    assert_eq!(open(&input).unwrap().notes.len(), 2);
    fs::copy(
        input.join("0000100_adapters.safetensors"),
        input.join("0000200_adapters.safetensors"),
    )
    .unwrap();
    assert_eq!(open(&input).unwrap_err().code(), Code::NoAdapter);
    fs::copy(input.join("0000100_adapters.safetensors"), &weights).unwrap();
    assert_eq!(open(&input).unwrap().notes.len(), 1);
}

/// Breaks where a module that mergekit gave rank 0 stops the others, or one whose rank is lost passes for such.
#[test]
fn modules_of_rank_zero_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"],
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 0}, "alpha_pattern": {"model.layers.0.self_attn.q_proj": 0}}"#;
    let name = |layer: u8, end: &str| {
        format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{end}.weight")
    };
    let names = [name(0, "A"), name(0, "B"), name(1, "A"), name(1, "B")];
    let shapes = [[0, 64], [64, 0], [2, 64], [64, 2]];
    let tensors: Vec<(&str, Tensor)> = names
        .iter()
        .zip(&shapes)
        .map(|(n, s)| (n.as_str(), tensor(s, 1.0)))
        .collect();
    let path = folder(dir.path(), "adapter_model.safetensors", config, &tensors);
    let opened = open(&path).unwrap();
    assert_eq!(opened.adapter.modules().len(), 1);
    assert!(
        opened
            .notes
            .iter()
            .any(|n| n.contains("1 modules have rank 0")),
        "{:?}",
        opened.notes
    );
    let lost = config.replace("_proj\": 0}, \"alpha", "_proj\": 2}, \"alpha");
    let path = folder(dir.path(), "adapter_model.safetensors", &lost, &tensors);
    assert_eq!(open(&path).unwrap_err().code(), Code::RankMismatch);
}
