mod families;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::adapter::{FactorName, Method};
use crate::error::Code;
use crate::format::NoBlobs;
use crate::model::attach;
use crate::open::open_adapter;
use crate::safetensors::Checkpoint;
use crate::safetensors::SafetensorsFile;
use crate::testing::{fixture, shared};
use crate::text::{Batch, IGNORE};
use crate::train::{AdapterSpec, Objective, Param, TrainingAdapter, TrainingModel};

fn one(tokens: &[u32]) -> Batch {
    Batch {
        tokens: tokens.to_vec(),
        targets: vec![IGNORE; tokens.len()],
        sequences: std::iter::once(0..tokens.len()).collect(),
    }
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    tensor.to_vec1::<f64>().unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
}

#[test]
fn logits_of_trained_models_are_the_golden_ones() {
    for name in ["stories260K", "babyllama105"] {
        let Some(dir) = shared(&format!("models/{name}")) else {
            return;
        };
        let golden = std::fs::read(dir.join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let ids: Vec<u32> = serde_json::from_value(golden["nll"][0]["ids"].clone()).unwrap();
        let npy = std::fs::read(dir.join("golden_logits.npy")).unwrap();
        let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
        let right = npy[header..]
            .as_chunks()
            .0
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)));
        let right: Vec<f64> = right.collect();
        let none = Branches::default();
        for (dtype, bound) in [(DType::F32, 2e-4), (DType::F64, 1e-5)] {
            let model = Model::open_as(&dir, &Device::Cpu, dtype).unwrap();
            let logits = flat(&model.logits(&none, &one(&ids)).unwrap());
            let error = largest_difference(&logits, &right);
            assert!(error < bound, "{name} {dtype:?}: {error}");
        }
        let model = Model::open(&dir, &Device::Cpu, None).unwrap();
        for text in golden["nll"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(text["ids"].clone()).unwrap();
            let nll: Vec<f64> = serde_json::from_value(text["nll_per_token"].clone()).unwrap();
            let mut batch = one(&ids[..ids.len() - 1]);
            batch.targets = ids[1..].to_vec();
            let loss = model.loss(&none, &batch).unwrap();
            let right: f64 = nll.iter().sum();
            assert!(
                (loss.nats - right).abs() < 1e-4 * right,
                "{name}: {loss:?}, {right}"
            );
        }
    }
}

#[test]
fn logits_with_peft_adapters_are_those_of_peft() {
    let cases = [
        ("llama-f32", "lora-qkv-r4"),
        ("llama-f32", "lora-rslora"),
        ("llama-f32", "lora-patterns"),
        ("llama-f32", "vera-qkv"),
        ("llama-bf16", "lora-all7-r8"),
        ("llama-bf16", "vera-all7-bf16"),
        ("qwen2-bf16", "lora-qwen2"),
        ("mistral-f32", "lora-mistral"),
    ];
    for (base, name) in cases {
        let Some(dir) = shared(&format!("peft-interop/bases/{base}")) else {
            return;
        };
        let config = shared(&format!("peft-interop/adapters/{name}")).unwrap();
        let expected = shared(&format!("peft-interop/expected/{name}/logits.safetensors")).unwrap();
        let file = SafetensorsFile::open(&expected).unwrap();
        let right: Vec<f64> = file
            .tensor("logits_adapter")
            .unwrap()
            .to_f32()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect();
        let ids = file.tensor("input_ids").unwrap();
        let ids: Vec<u32> = ids
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b) as u32)
            .collect();
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let opened = open_adapter(&config, Some(&checkpoint), &NoBlobs).unwrap();
        let model = Model::open(&dir, &Device::Cpu, None).unwrap();
        let branches = attach(&opened.adapter, &model).unwrap();
        let n = ids.len() / 2;
        let mut batch = one(&ids);
        batch.sequences = vec![0..n, n..2 * n];
        let logits = flat(&model.logits(&branches, &batch).unwrap());
        let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let off: Vec<f64> = logits.iter().zip(&right).map(|(a, b)| a - b).collect();
        let error = (square(&off) / square(&right)).sqrt();
        // PEFT rounds every activation of a half-precision base, this decoder none: run in f32,
        // PEFT is as far from its own bf16 logits.
        let bound = if base.ends_with("bf16") { 5e-2 } else { 2e-6 };
        assert!(error < bound, "{name}: relative error {error}");
    }
}

/// Four sequences of the fixture's vocabulary, one of a single token.
fn batch() -> Batch {
    let mut batch = Batch::default();
    for (s, n) in [9usize, 1, 17, 4].into_iter().enumerate() {
        let start = batch.tokens.len();
        batch
            .tokens
            .extend((0..n).map(|i| ((i * 37 + s * 11) % 128) as u32));
        batch.targets.extend((0..n).map(|i| {
            if i % 3 == 1 {
                IGNORE
            } else {
                ((i * 53 + s) % 128) as u32
            }
        }));
        batch.sequences.push(start..start + n);
    }
    batch
}

fn template(method: Method) -> AdapterSpec {
    AdapterSpec {
        trained: method.trains().unwrap().to_vec(),
        tied: method.is_tied().unwrap(),
        layers: None,
        targets: vec!["q".into(), "k".into(), "v".into()],
        joint: true,
        rank: 4,
        alpha: 6.0,
        rule: crate::adapter::ScalingRule::AlphaOverRank,
        init: crate::train::Init::Default,
        seed: 1,
    }
}

/// Templates with a core: beside everything, alone on frozen A and B, and untied.
fn cores() -> Vec<AdapterSpec> {
    use FactorName::{A, B, C, V};
    let with = |trained: &[FactorName], tied| AdapterSpec {
        trained: trained.to_vec(),
        tied,
        ..template(Method::Tl6)
    };
    vec![
        with(&[A, B, C, V], true),
        with(&[C], true),
        with(&[A, C], true),
        with(&[A, B, C], false),
    ]
}

fn objective(template: &AdapterSpec, dtype: DType, recompute: bool) -> (TrainingModel, Vec<Param>) {
    let model = Model::open_as(&fixture("llama-tiny"), &Device::Cpu, dtype).unwrap();
    let adapter = TrainingAdapter::new(template, &model).unwrap();
    let start = adapter.start().unwrap();
    (TrainingModel::new(model, adapter, recompute), start)
}

/// The start moved by numbers that look random, so that no factor is zero.
fn moved(start: &[Param]) -> Vec<Param> {
    let mut state = 99u32;
    let mut params = start.to_vec();
    for x in params.iter_mut().flat_map(|p| &mut p.values) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *x += 0.2 * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5);
    }
    params
}

fn gradients(objective: &mut TrainingModel, params: &[Param]) -> (LossSum, Vec<Vec<f32>>) {
    let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.values.len()]).collect();
    let loss = objective.accumulate(params, &batch(), &mut grads).unwrap();
    (loss, grads)
}

/// The slope of the loss along the gradient of each tensor, by differences in f64.
fn check_differences(template: &AdapterSpec) {
    let (mut objective, start) = objective(template, DType::F64, false);
    let params = moved(&start);
    let (_, grads) = gradients(&mut objective, &params);
    for (index, grad) in grads.iter().enumerate() {
        let name = &params[index].name;
        let norm = grad.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{name} has no gradient");
        let mut at = |step: f64| {
            let mut params = params.clone();
            // What was really moved, since parameters are f32.
            let mut along = 0.0;
            for (x, g) in params[index].values.iter_mut().zip(grad) {
                let to = (f64::from(*x) + step * f64::from(*g) / norm) as f32;
                along += f64::from(to - *x) * f64::from(*g);
                *x = to;
            }
            (objective.loss(&params, &batch()).unwrap().nats, along)
        };
        let ((up, far), (down, near)) = (at(1e-3), at(-1e-3));
        let slope = (up - down) / (far - near);
        assert!(
            (slope - 1.0).abs() < 2e-4,
            "{name}: slope {slope} of the gradient's own"
        );
    }
}

#[test]
fn gradients_of_every_method_are_finite_differences() {
    for method in Method::PRESETS {
        check_differences(&template(method));
    }
}

/// Breaks where dC is transposed or misses a layer, or dA takes C for its transpose.
#[test]
fn gradients_of_cores_are_finite_differences() {
    for template in cores() {
        check_differences(&template);
    }
}

#[test]
fn gradients_on_every_module_joint_and_separate_are_finite_differences() {
    for (joint, tied, layers) in [(true, true, None), (false, false, Some(vec![1, 3]))] {
        check_differences(&AdapterSpec {
            targets: vec!["all".into()],
            joint,
            tied,
            layers,
            ..template(Method::Tl6)
        });
    }
}

#[test]
fn every_method_starts_at_the_base_model() {
    for template in Method::PRESETS.map(template).into_iter().chain(cores()) {
        let (mut objective, start) = objective(&template, DType::F32, false);
        let loss = objective.loss(&start, &batch()).unwrap();
        let base = objective
            .model()
            .loss(&Branches::default(), &batch())
            .unwrap();
        assert_eq!(loss, base, "{:?}", template.trained);
    }
}

#[test]
fn fused_gradients_are_those_of_f64_and_recomputation_changes_no_bit() {
    for method in [Method::Lora, Method::Tl6] {
        let template = AdapterSpec {
            targets: vec!["all".into()],
            ..template(method)
        };
        let (mut narrow, start) = objective(&template, DType::F32, false);
        let params = moved(&start);
        let (loss, grads) = gradients(&mut narrow, &params);
        let (mut wide, _) = objective(&template, DType::F64, false);
        let (right, grads64) = gradients(&mut wide, &params);
        assert!((loss.nats - right.nats).abs() < 1e-5 * right.nats);
        for ((a, b), p) in grads.iter().zip(&grads64).zip(&params) {
            let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let error = a
                .iter()
                .zip(b)
                .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(error < 1e-4 * scale, "{}: {error} of {scale}", p.name);
        }
        let (mut again, _) = objective(&template, DType::F32, true);
        assert_eq!(gradients(&mut again, &params), (loss, grads), "{method}");
    }
}

#[test]
fn results_are_the_same_bytes_for_any_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (mut objective, start) = objective(&template(Method::Tl6), DType::F32, false);
            gradients(&mut objective, &moved(&start))
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_text() {
    let (objective, start) = objective(&template(Method::Tl6), DType::F32, false);
    let params = moved(&start);
    let branches = objective
        .adapter()
        .branches(&params, objective.model())
        .unwrap();
    let model = objective.model();
    let texts: [Vec<u32>; 2] = [(0..20).collect(), (40..53).collect()];
    let mut cache = Cache::default();
    for step in [8, 1, 1, 3] {
        let from = cache.lengths().to_vec();
        let new: Vec<Vec<u32>> = texts
            .iter()
            .enumerate()
            .map(|(s, t)| {
                let at = from.get(s).copied().unwrap_or(0);
                t[at..at + step].to_vec()
            })
            .collect();
        let last = model.extend(&branches, &new, &mut cache).unwrap();
        for (s, text) in texts.iter().enumerate() {
            let whole = &text[..cache.lengths()[s]];
            let all = flat(&model.logits(&branches, &one(whole)).unwrap());
            let row = flat(&last.get(s).unwrap());
            let error = largest_difference(&row, &all[all.len() - 128..]);
            assert!(error < 1e-4, "{error}");
        }
    }
}

#[test]
fn a_finished_adapter_computes_what_training_computed() {
    let methods = [Method::Lora, Method::Vera, Method::Tl4, Method::Tl6];
    let presets = methods.map(|method| (method, template(method)));
    let cores = cores().into_iter().map(|t| (Method::Custom, t));
    for (method, template) in presets.into_iter().chain(cores) {
        let (mut objective, start) = objective(&template, DType::F32, false);
        let params = moved(&start);
        let adapter = objective
            .adapter()
            .adapter(&params, crate::tensor::Dtype::F32)
            .unwrap();
        assert_eq!(adapter.method(), method);
        let attached = attach(&adapter, objective.model()).unwrap();
        let a = objective.loss(&params, &batch()).unwrap().nats;
        let b = objective.model().loss(&attached, &batch()).unwrap().nats;
        let what = &template.trained;
        assert!((a - b).abs() < 1e-6 * a, "{what:?}: {a} is not {b}");
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_refused() {
    let model = Model::open(&fixture("llama-tiny"), &Device::Cpu, None).unwrap();
    let error = model
        .logits(&Branches::default(), &one(&[1, 128]))
        .unwrap_err();
    assert_eq!(error.code(), Code::ModelConfig);
}

#[test]
fn logits_of_every_family_and_rope_scaling_are_the_golden_ones() {
    let none = Branches::default();
    let mut seen = 0;
    for dir in std::fs::read_dir(fixture("models")).unwrap() {
        let dir = dir.unwrap().path();
        let Ok(golden) = std::fs::read(dir.join("golden.json")) else {
            continue;
        };
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let old = tempfile::tempdir().unwrap();
        std::fs::copy(
            dir.join("model.safetensors"),
            old.path().join("model.safetensors"),
        )
        .unwrap();
        let forms = match dir.join("config-v4.json") {
            v4 if v4.exists() => {
                std::fs::copy(v4, old.path().join("config.json")).unwrap();
                vec![dir.clone(), old.path().to_owned()]
            }
            _ => vec![dir.clone()],
        };
        for (form, dtype, bound) in forms
            .iter()
            .flat_map(|f| [(f, DType::F32, 5e-5), (f, DType::F64, 5e-6)])
        {
            let model = Model::open_as(form, &Device::Cpu, dtype).unwrap();
            for sequence in golden["sequences"].as_array().unwrap() {
                let tokens: Vec<u32> = serde_json::from_value(sequence["tokens"].clone()).unwrap();
                let right: Vec<Vec<f64>> =
                    serde_json::from_value(sequence["logits"].clone()).unwrap();
                let logits = flat(&model.logits(&none, &one(&tokens)).unwrap());
                let rows = &logits[logits.len() - right.concat().len()..];
                let error = largest_difference(rows, &right.concat());
                let what = format!("{} {dtype:?}, {} tokens", dir.display(), tokens.len());
                assert!(error < bound, "{what}: {error}");
                let top: Vec<usize> = serde_json::from_value(sequence["argmax"].clone()).unwrap();
                let vocabulary = model.config().vocabulary;
                for (row, top) in logits.chunks(vocabulary).zip(top) {
                    assert!(row.iter().all(|x| *x <= row[top]), "{what}");
                }
            }
        }
        seen += 1;
    }
    assert!(seen >= 16, "only {seen} golden models");
}
