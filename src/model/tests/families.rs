//! Training, generating and merging on a tiny model of every family.

use std::path::Path;

use super::*;
use crate::digest::Digest;
use crate::merge::{self, Control, ExecOptions, MergeInput, PlanOptions};
use crate::tensor::Dtype;

/// Golden models that between them have all that families differ in.
const MODELS: [&str; 15] = [
    "mistral-window",
    "qwen3",
    "phi3",
    "phi3-longrope",
    "smollm3",
    "granite",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt2-bare",
    "qwen3-moe",
    "mixtral",
    "gemma3-vlm",
    "qwen2.5-vl",
];

fn spec(method: Method) -> AdapterSpec {
    AdapterSpec {
        targets: vec!["all".into()],
        rank: 3,
        ..template(method)
    }
}

fn training(dir: &Path, spec: &AdapterSpec, dtype: DType) -> (TrainingModel, Vec<Param>) {
    let model = Model::open_as(dir, &Device::Cpu, dtype).unwrap();
    let adapter = TrainingAdapter::new(spec, &model).unwrap();
    let start = adapter.start().unwrap();
    (TrainingModel::new(model, adapter, false), start)
}

/// The batch of the other tests, within a vocabulary of 32.
fn small() -> Batch {
    let mut batch = batch();
    let within = |t: &mut u32| *t = if *t == IGNORE { IGNORE } else { *t % 32 };
    batch.tokens.iter_mut().for_each(within);
    batch.targets.iter_mut().for_each(within);
    batch
}

/// Breaks where a family's backward leaves out what its forward does.
#[test]
fn gradients_of_every_family_are_finite_differences() {
    for name in MODELS {
        for method in [Method::Lora, Method::Tl6] {
            let dir = fixture(&format!("models/{name}"));
            let (mut narrow, start) = training(&dir, &spec(method), DType::F32);
            let (mut wide, _) = training(&dir, &spec(method), DType::F64);
            let params = moved(&start);
            let zeros =
                || -> Vec<Vec<f32>> { params.iter().map(|p| vec![0.0; p.values.len()]).collect() };
            let (mut fused, mut grads) = (zeros(), zeros());
            let a = narrow.accumulate(&params, &small(), &mut fused).unwrap();
            let b = wide.accumulate(&params, &small(), &mut grads).unwrap();
            assert!(
                (a.nats - b.nats).abs() < 1e-5 * b.nats,
                "{name}: {a:?} {b:?}"
            );
            for (index, (fused, grad)) in fused.iter().zip(&grads).enumerate() {
                let what = format!("{name} {}", params[index].name);
                let largest = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                let off: Vec<f32> = fused.iter().zip(grad).map(|(a, b)| a - b).collect();
                assert!(largest(&off) < 2e-4 * largest(grad), "{what}");
                let norm = grad.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
                let mut at = |step: f64| {
                    let mut params = params.clone();
                    let mut along = 0.0;
                    for (x, g) in params[index].values.iter_mut().zip(grad) {
                        let to = (f64::from(*x) + step * f64::from(*g) / norm) as f32;
                        along += f64::from(to - *x) * f64::from(*g);
                        *x = to;
                    }
                    (wide.loss(&params, &small()).unwrap().nats, along)
                };
                let ((up, far), (down, near)) = (at(1e-4), at(-1e-4));
                let slope = (up - down) / (far - near);
                assert!((slope - 1.0).abs() < 2e-3, "{what}: {slope}");
            }
        }
    }
}

/// Breaks where the cache forgets a window, positions or a kind of layer.
#[test]
fn every_family_generates_with_a_cache_what_it_computes_without() {
    for name in MODELS {
        let dir = fixture(&format!("models/{name}"));
        for dtype in [DType::F32, DType::F64] {
            let model = Model::open_as(&dir, &Device::Cpu, dtype).unwrap();
            let none = Branches::default();
            // The one with two sets of frequencies changes them at 16 tokens, for keys that it has too.
            let n = if name == "phi3-longrope" { 14 } else { 20 };
            let texts: [Vec<u32>; 2] = [(0..n).collect(), (10..n + 10).map(|t| t % 32).collect()];
            let mut cache = Cache::default();
            for step in [7, 1, 1, 4] {
                let at = cache.lengths().first().copied().unwrap_or(0);
                let new = texts.each_ref().map(|t| t[at..at + step].to_vec());
                let last = model.extend(&none, &new, &mut cache).unwrap();
                for (s, text) in texts.iter().enumerate() {
                    let all = flat(&model.logits(&none, &one(&text[..at + step])).unwrap());
                    let row = flat(&last.get(s).unwrap());
                    let error = largest_difference(&row, &all[all.len() - 32..]);
                    assert!(error < 1e-4, "{name}: {error}");
                }
            }
        }
    }
}

/// Breaks where a family's adapter is merged into other weights than it is attached to.
#[test]
fn an_attached_adapter_of_every_family_is_the_merged_one() {
    for name in MODELS {
        let dir = fixture(&format!("models/{name}"));
        let (objective, start) = training(&dir, &spec(Method::Tl5), DType::F32);
        let params = moved(&start);
        let adapter = objective.adapter().adapter(&params, Dtype::F32).unwrap();
        let model = objective.model();
        let branches = attach(&adapter, model).unwrap();
        let attached = model.loss(&branches, &small()).unwrap().nats;
        let plain = model.loss(&Branches::default(), &small()).unwrap().nats;
        assert!((attached - plain).abs() > 1e-3 * plain, "{name}");

        let out = tempfile::tempdir().unwrap();
        let merged = out.path().join("merged");
        let base = Checkpoint::open(&dir).unwrap();
        let inputs = [MergeInput::new("it", adapter, Digest::of(b"it"))];
        let plan = merge::plan(&base, &inputs, &PlanOptions::default()).unwrap();
        merge::execute(&plan, &merged, &ExecOptions::default(), &Control::default()).unwrap();
        let merged = Model::open_as(&merged, &Device::Cpu, DType::F32).unwrap();
        let merged = merged.loss(&Branches::default(), &small()).unwrap().nats;
        assert!(
            (attached - merged).abs() < 1e-5 * merged,
            "{name}: {attached} {merged}"
        );
    }
}

/// Breaks where dropout differs between the forward, its repetition and the backward, is not the mask of
/// its step, or touches more than what adapters read.
#[test]
fn gradients_under_dropout_are_finite_differences() {
    let dir = fixture("models/qwen3");
    let with = |dtype, recompute, step| {
        let model = Model::open_as(&dir, &Device::Cpu, dtype).unwrap();
        let adapter = TrainingAdapter::new(&spec(Method::Lora), &model).unwrap();
        let params = moved(&adapter.start().unwrap());
        let mut model = TrainingModel::new(model, adapter, recompute).with_dropout(0.3, 7);
        model.begin(step, 0);
        (model, params)
    };
    let run = |dtype, recompute, step| {
        let (mut model, params) = with(dtype, recompute, step);
        let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.values.len()]).collect();
        let loss = model.accumulate(&params, &small(), &mut grads).unwrap();
        (loss, grads)
    };
    let first = run(DType::F32, false, 1);
    assert_eq!(first, run(DType::F32, true, 1));
    assert_ne!(first.0, run(DType::F32, false, 2).0);
    let (mut plain, params) = with(DType::F32, false, 1);
    assert_ne!(first.0, plain.loss(&params, &small()).unwrap());

    let (loss, grads) = run(DType::F64, false, 1);
    assert!((loss.nats - first.0.nats).abs() < 1e-5 * loss.nats);
    let (mut model, params) = with(DType::F64, false, 1);
    for (index, grad) in grads.iter().enumerate() {
        let norm = grad.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        let mut at = |step: f64| {
            let mut params = params.clone();
            let mut along = 0.0;
            for (x, g) in params[index].values.iter_mut().zip(grad) {
                let to = (f64::from(*x) + step * f64::from(*g) / norm) as f32;
                along += f64::from(to - *x) * f64::from(*g);
                *x = to;
            }
            let mut unused: Vec<Vec<f32>> =
                params.iter().map(|p| vec![0.0; p.values.len()]).collect();
            let loss = model.accumulate(&params, &small(), &mut unused).unwrap();
            (loss.nats, along)
        };
        let ((up, far), (down, near)) = (at(1e-4), at(-1e-4));
        let slope = (up - down) / (far - near);
        assert!(
            (slope - 1.0).abs() < 2e-3,
            "{}: {slope}",
            params[index].name
        );
    }
}

/// Breaks where a start changes the model, or rsLoRA's scale is not the one that is stored.
#[test]
fn every_start_is_the_base_model_and_scales_are_kept() {
    use crate::adapter::ScalingRule;
    use crate::train::Init;

    let dir = fixture("models/gpt2");
    for init in [
        Init::Default,
        Init::Kaiming,
        Init::Gaussian,
        Init::Orthogonal,
    ] {
        for (method, tied) in [(Method::Lora, false), (Method::Tl6, true)] {
            let spec = AdapterSpec {
                init,
                tied,
                rank: 4,
                rule: ScalingRule::AlphaOverSqrtRank,
                ..spec(method)
            };
            let (mut objective, start) = training(&dir, &spec, DType::F64);
            let loss = objective.loss(&start, &small()).unwrap().nats;
            let model = objective.model();
            let base = model.loss(&Branches::default(), &small()).unwrap().nats;
            assert!(
                (loss - base).abs() < 1e-7 * base,
                "{init} {method}: {loss} {base}"
            );
            let adapter = objective.adapter().adapter(&start, Dtype::F32).unwrap();
            assert_eq!(adapter.groups[0].scaling.factor(4), 3.0);
        }
    }
}

/// Breaks where an adapter of experts runs without them, or an unknown model is run as another.
#[test]
fn what_does_not_run_is_refused_by_name() {
    let dir = fixture("models/qwen3-moe");
    let model = Model::open(&dir, &Device::Cpu, None).unwrap();
    let e = model.choose_targets(&["gate".into()]).unwrap_err();
    assert_eq!(e.code(), Code::Usage);
    let (objective, start) = training(&dir, &spec(Method::Lora), DType::F32);
    let mut adapter = objective.adapter().adapter(&start, Dtype::F32).unwrap();
    adapter.groups[0].targets[0].module = "model.layers.{}.mlp.experts.0.up_proj".into();
    let e = attach(&adapter, &model).unwrap_err();
    assert_eq!(e.code(), Code::UnsupportedAdapter, "{e}");

    let folder = tempfile::tempdir().unwrap();
    let config = |text: &str| {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        ModelConfig::read(folder.path()).unwrap_err()
    };
    for name in [
        "Qwen3_5ForCausalLM",
        "Qwen3NextForCausalLM",
        "FalconForCausalLM",
    ] {
        let e = config(&format!(r#"{{"architectures":["{name}"]}}"#));
        assert_eq!(e.code(), Code::UnsupportedModel);
        assert!(e.message().contains(name), "{e}");
    }
}
