use std::fs;
use std::path::Path;

use super::{Budget, ExtractOptions, extract};
use crate::adapter::{Adapter, ExtraRole, Method, ModuleKind};
use crate::digest::Digest;
use crate::error::Code;
use crate::format::{WriteOptions, encode, encoded_len};
use crate::fs::Existing;
use crate::merge::{ExecOptions, MergeInput, PlanOptions, execute, plan};
use crate::progress::Progress;
use crate::safetensors::{Checkpoint, write_tensors};
use crate::tensor::{Dtype, Tensor};
use crate::testing::fixture;

/// A model of one attention layer or two, in f32; what `change` makes of each tensor's values.
fn model(
    dir: &Path,
    config: &str,
    tensors: &[(&str, &[usize])],
    change: impl Fn(&str, usize) -> f32,
) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config).unwrap();
    let of = |(name, shape): &(&str, &[usize])| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|i| start(name, i) + change(name, i))
            .collect();
        (
            (*name).to_owned(),
            Tensor::from_f32(shape.to_vec(), &values).unwrap(),
        )
    };
    let tensors: Vec<(String, Tensor)> = tensors.iter().map(of).collect();
    write_tensors(
        &dir.join("model.safetensors"),
        Existing::Refuse,
        &[],
        &tensors,
    )
    .unwrap();
}

/// Numbers that have no low rank.
fn start(name: &str, i: usize) -> f32 {
    let salt = name
        .bytes()
        .fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let x = (i as u32).wrapping_add(salt).wrapping_mul(2_654_435_761);
    (x >> 8) as f32 * f32::powi(2.0, -24) - 0.5
}

const LLAMA: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}"#;
const LAYERS: [(&str, &[usize]); 6] = [
    ("model.embed_tokens.weight", &[40, 16]),
    ("model.layers.0.self_attn.q_proj.weight", &[16, 16]),
    ("model.layers.1.self_attn.q_proj.weight", &[16, 16]),
    ("model.layers.0.mlp.down_proj.weight", &[16, 24]),
    ("model.norm.weight", &[16]),
    ("lm_head.weight", &[40, 16]),
];

/// Rank 2 in q_proj, all ranks in down_proj, and the norm.
fn change(name: &str, i: usize) -> f32 {
    let (row, col) = (i / 16, i % 16);
    match name {
        n if n.contains("q_proj") => {
            0.01 * (row as f32 * 0.1 - 1.0) * (col as f32 - 3.0)
                + 0.002 * ((row % 3) * (col % 5)) as f32
        }
        n if n.contains("down_proj") => 0.02 * start("other", i),
        "model.norm.weight" => 0.25,
        _ => 0.0,
    }
}

fn opened(dir: &Path, name: &str) -> Checkpoint {
    Checkpoint::open(dir.join(name)).unwrap()
}

fn merged(base: &Checkpoint, adapter: &Adapter, to: &Path) -> Checkpoint {
    let inputs = [MergeInput::new(
        "extracted",
        adapter.clone(),
        Digest::of(b"any"),
    )];
    let plan = plan(base, &inputs, &PlanOptions::default()).unwrap();
    execute(&plan, to, &ExecOptions::default(), &Progress::new().into()).unwrap();
    Checkpoint::open(to).unwrap()
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let (file, _) = checkpoint.at(checkpoint.locate(name).unwrap());
    file.tensor(name).unwrap().to_f32().unwrap()
}

/// Breaks where what a base gets back is not the tuned model, or a change gets lost.
#[test]
fn a_base_with_its_extracted_adapter_is_the_tuned_model() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), LLAMA, &LAYERS, |_, _| 0.0);
    model(&dir.path().join("tuned"), LLAMA, &LAYERS, change);
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let options = ExtractOptions::new(Budget::Rank(16));
    let (adapter, report) = extract(&base, &tuned, &options, &Progress::new()).unwrap();
    assert!(
        report.bound <= report.error && report.error < 1e-5,
        "{report:?}"
    );
    assert_eq!(adapter.method(), Method::Lora);
    assert_eq!(
        (report.extras.as_slice(), report.unchanged),
        (&["model.norm.weight".to_owned()][..], 2)
    );
    let rebuilt = merged(&base, &adapter, &dir.path().join("merged"));
    for (name, _) in LAYERS {
        let (want, got) = (values(&tuned, name), values(&rebuilt, name));
        let off = want
            .iter()
            .zip(&got)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f32::max);
        assert!(off < 1e-6, "{name}: {off}");
    }
    // Of rank 2, but for the rounding of the tuned weights.
    let options = ExtractOptions::new(Budget::Rank(2));
    let (_, report) = extract(&base, &tuned, &options, &Progress::new()).unwrap();
    let of_q = report
        .modules
        .iter()
        .filter(|m| m.module.contains("q_proj"));
    assert!(
        of_q.clone().count() == 2 && of_q.clone().all(|m| m.error < 1e-5),
        "{report:?}"
    );
}

/// Breaks where a budget is not kept to, or ranks go where they explain little.
#[test]
fn budgets_are_kept_to() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), LLAMA, &LAYERS, |_, _| 0.0);
    model(&dir.path().join("tuned"), LLAMA, &LAYERS, change);
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let of = |budget, dtype| {
        let mut options = ExtractOptions::new(budget);
        options.dtype = dtype;
        extract(&base, &tuned, &options, &Progress::new()).unwrap()
    };
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::I8] {
        let (_, close) = of(Budget::Error(0.05), dtype);
        let (_, far) = of(Budget::Error(0.5), dtype);
        assert!(
            close.error <= 0.05 && far.error <= 0.5 && close.bytes > far.bytes,
            "{dtype}"
        );
        for bytes in [9_000, 5_500] {
            let (adapter, report) = of(Budget::Bytes(bytes), dtype);
            let len = encoded_len(&adapter, &WriteOptions::default()).unwrap();
            assert!(len <= bytes && report.error < 1.0, "{dtype}: {len}");
        }
    }
    let nothing = ExtractOptions::new(Budget::Bytes(100));
    let error = extract(&base, &tuned, &nothing, &Progress::new()).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
}

/// Breaks where a change is left out unsaid.
#[test]
fn what_is_left_out_is_an_error_unless_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), LLAMA, &LAYERS, |_, _| 0.0);
    model(&dir.path().join("tuned"), LLAMA, &LAYERS, change);
    model(&dir.path().join("less"), LLAMA, &LAYERS[..5], change);
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let mut options = ExtractOptions::new(Budget::Rank(2));
    options.targets = vec!["q_proj".to_owned()];
    let error = extract(&base, &tuned, &options, &Progress::new()).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
    options.allow_left_out = true;
    let (adapter, report) = extract(&base, &tuned, &options, &Progress::new()).unwrap();
    assert_eq!(
        report.left_out,
        ["model.layers.0.mlp.down_proj.weight", "model.norm.weight"]
    );
    assert_eq!((adapter.modules().len(), adapter.extras.len()), (2, 0));
    let less = opened(dir.path(), "less");
    let whole = ExtractOptions::new(Budget::Rank(2));
    let error = extract(&base, &less, &whole, &Progress::new()).unwrap_err();
    assert_eq!(error.code(), Code::UnmatchedModule);
    let error = extract(&base, &base, &whole, &Progress::new()).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
}

/// Breaks where a weight that is stored (in, out) gets factors for the other order, or a table of positions is
/// taken for a linear layer, or names lack the class's prefix.
#[test]
fn conv1d_and_tables_are_told_by_the_architecture() {
    const GPT2: &str = r#"{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}"#;
    let tensors: [(&str, &[usize]); 5] = [
        ("wte.weight", &[30, 12]),
        ("wpe.weight", &[20, 12]),
        ("h.0.attn.c_attn.weight", &[12, 36]),
        ("h.0.attn.c_attn.bias", &[36]),
        ("h.0.ln_1.weight", &[12]),
    ];
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), GPT2, &tensors, |_, _| 0.0);
    model(
        &dir.path().join("tuned"),
        GPT2,
        &tensors,
        |name, i| match name {
            "wte.weight" => 0.0,
            _ => 0.1 * start("more", i),
        },
    );
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let options = ExtractOptions::new(Budget::Rank(12));
    let (adapter, _) = extract(&base, &tuned, &options, &Progress::new()).unwrap();
    let group = &adapter.groups[0];
    let target = &group.targets[0];
    assert_eq!(
        (target.module.as_str(), target.kind),
        ("transformer.h.{}.attn.c_attn", ModuleKind::Conv1d)
    );
    assert_eq!((group.in_features, target.out), (12, 36));
    let roles: Vec<(&str, ExtraRole)> = adapter
        .extras
        .iter()
        .map(|e| (e.name.as_str(), e.role))
        .collect();
    assert_eq!(
        roles,
        [
            ("transformer.h.0.attn.c_attn.bias", ExtraRole::Bias),
            ("transformer.h.0.ln_1.weight", ExtraRole::Replace),
            ("transformer.wpe.weight", ExtraRole::Replace),
        ]
    );
    let rebuilt = merged(&base, &adapter, &dir.path().join("merged"));
    let (want, got) = (
        values(&tuned, "h.0.attn.c_attn.weight"),
        values(&rebuilt, "h.0.attn.c_attn.weight"),
    );
    assert!(want.iter().zip(&got).all(|(x, y)| (x - y).abs() < 1e-6));
}

/// Breaks where each expert of a parameter does not get factors of its own, or one that did not change gets some.
#[test]
fn experts_get_factors_each() {
    const QWEN: &str = r#"{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}"#;
    let tensors: [(&str, &[usize]); 3] = [
        ("model.embed_tokens.weight", &[30, 12]),
        ("model.layers.0.mlp.experts.down_proj", &[3, 12, 8]),
        ("model.layers.0.mlp.gate.weight", &[3, 12]),
    ];
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), QWEN, &tensors, |_, _| 0.0);
    model(
        &dir.path().join("tuned"),
        QWEN,
        &tensors,
        |name, i| match name {
            "model.layers.0.mlp.experts.down_proj" if i >= 96 => 0.1 * start("more", i),
            "model.layers.0.mlp.gate.weight" => 0.5,
            _ => 0.0,
        },
    );
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let options = ExtractOptions::new(Budget::Rank(8));
    let (adapter, report) = extract(&base, &tuned, &options, &Progress::new()).unwrap();
    assert_eq!(
        (adapter.groups[0].experts, report.extras.len()),
        (Some(3), 1)
    );
    assert!(report.error < 1e-5);
    let rebuilt = merged(&base, &adapter, &dir.path().join("merged"));
    for (name, _) in tensors {
        let (want, got) = (values(&tuned, name), values(&rebuilt, name));
        assert!(
            want.iter().zip(&got).all(|(x, y)| (x - y).abs() < 1e-6),
            "{name}"
        );
    }
}

/// Breaks where rows of an embedding go along with all others, or a grown one does not go at all.
#[test]
fn embeddings_go_along_by_rows_or_grown() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), LLAMA, &LAYERS, |_, _| 0.0);
    let rows = |name: &str, i: usize| match name {
        "model.embed_tokens.weight" if [3, 39].contains(&(i / 16)) => 1.0,
        _ => 0.0,
    };
    model(&dir.path().join("rows"), LLAMA, &LAYERS, rows);
    let mut grown = LAYERS;
    grown[0].1 = &[44, 16];
    grown[5].1 = &[44, 16];
    model(&dir.path().join("grown"), LLAMA, &grown, |_, _| 0.0);
    let base = opened(dir.path(), "base");
    let options = ExtractOptions::new(Budget::Rank(2));
    let of = |name: &str| extract(&base, &opened(dir.path(), name), &options, &Progress::new());
    let (adapter, _) = of("rows").unwrap();
    assert_eq!(
        (adapter.extras[0].role, &adapter.extras[0].rows[..]),
        (ExtraRole::Rows, &[3, 39][..])
    );
    let (adapter, _) = of("grown").unwrap();
    let shapes: Vec<&[usize]> = adapter.extras.iter().map(|e| e.tensor.shape()).collect();
    assert_eq!(shapes, [[44, 16], [44, 16]]);
    let mut other = LAYERS;
    other[3].1 = &[16, 20];
    model(&dir.path().join("other"), LLAMA, &other, |_, _| 0.0);
    assert_eq!(of("other").unwrap_err().code(), Code::BaseShape);
    let mut factors = ExtractOptions::new(Budget::Rank(2));
    factors.embeddings = true;
    let (adapter, report) = extract(
        &base,
        &opened(dir.path(), "rows"),
        &factors,
        &Progress::new(),
    )
    .unwrap();
    assert_eq!(adapter.groups[0].targets[0].kind, ModuleKind::Embedding);
    assert!(report.error < 1e-5);
}

/// Breaks where the bytes depend on the number of threads, or a quantised base is not read by its numbers.
#[test]
fn bytes_are_the_same_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("base"), LLAMA, &LAYERS, |_, _| 0.0);
    model(&dir.path().join("tuned"), LLAMA, &LAYERS, change);
    let (base, tuned) = (opened(dir.path(), "base"), opened(dir.path(), "tuned"));
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let options = ExtractOptions::new(Budget::Error(0.1));
        let made = pool.install(|| extract(&base, &tuned, &options, &Progress::new()).unwrap());
        encode(&made.0).unwrap().manifest.root()
    };
    assert_eq!(of(1), of(3));
    let quantised = Checkpoint::open(fixture("quant/awq/model.safetensors")).unwrap();
    let options = ExtractOptions::new(Budget::Rank(2));
    let error = extract(&quantised, &quantised, &options, &Progress::new()).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
}
