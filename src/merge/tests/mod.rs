//! Tests on tiny synthetic checkpoints, against oracles that are written out element by element.

mod directory;
mod each;
mod joint;
mod methods;
mod names;
mod quantised;
mod result;
mod undo;
mod vocabulary;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::*;
use crate::adapter::{Adapter, Extra, ExtraRole, Factor, ModuleKind, Scaling, Target, TieGroup};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fs::Existing;
use crate::progress::Progress;
use crate::safetensors::{Checkpoint, SafetensorsFile, write_tensors};
use crate::tensor::{Dtype, Tensor, narrow_into, widen};

/// Numbers that are not dyadic, so that every rounding shows; the same for the same seed.
fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f32 / (1u64 << 31) as f32 * 2.0 - 1.0) * size
    };
    (0..n).map(|_| next()).collect()
}

fn tensor(dtype: Dtype, shape: &[usize], seed: u64, size: f32) -> Tensor {
    let n = shape.iter().product();
    Tensor::narrowed(dtype, shape.to_vec(), &numbers(n, seed, size)).unwrap()
}

/// A decoder of two layers in bf16: 6 wide, k and v of 4 rows, a vocabulary of 10.
fn decoder() -> Vec<(String, Tensor)> {
    let mut all = vec![
        (
            "model.embed_tokens.weight".into(),
            tensor(Dtype::BF16, &[10, 6], 1, 1.0),
        ),
        (
            "model.norm.weight".into(),
            tensor(Dtype::BF16, &[6], 2, 1.0),
        ),
        (
            "lm_head.weight".into(),
            tensor(Dtype::BF16, &[10, 6], 3, 1.0),
        ),
    ];
    for layer in 0..2u64 {
        for (i, (m, out)) in [("q_proj", 6), ("k_proj", 4), ("v_proj", 4)]
            .into_iter()
            .enumerate()
        {
            let path = format!("model.layers.{layer}.self_attn.{m}");
            let seed = 10 * (layer + 1) + i as u64;
            all.push((
                format!("{path}.weight"),
                tensor(Dtype::BF16, &[out, 6], seed, 1.0),
            ));
            all.push((
                format!("{path}.bias"),
                tensor(Dtype::BF16, &[out], seed + 5, 1.0),
            ));
        }
    }
    all
}

fn without(mut tensors: Vec<(String, Tensor)>, name: &str) -> Vec<(String, Tensor)> {
    tensors.retain(|(n, _)| n != name);
    tensors
}

/// One module outside the layers: plain LoRA.
fn lora(module: &str, out: usize, n: usize, kind: ModuleKind, seed: u64) -> TieGroup {
    let rank = 2;
    TieGroup {
        layers: None,
        experts: None,
        rank,
        in_features: n,
        scaling: Scaling {
            alpha: 3.0,
            rule: crate::adapter::ScalingRule::AlphaOverSqrtRank,
        },
        a: Factor::trained(tensor(Dtype::F32, &[rank, n], seed, 0.5)),
        b: Factor::trained(tensor(Dtype::F32, &[out, rank], seed + 1, 0.5)),
        core: None,
        u: None,
        v: None,
        targets: vec![Target {
            module: module.into(),
            out,
            kind,
        }],
    }
}

/// The paper's joint q, k, v group over both layers of [`decoder`].
fn tied_qkv(seed: u64) -> TieGroup {
    let target = |m: &str, out| Target {
        module: format!("model.layers.{{}}.self_attn.{m}"),
        out,
        kind: ModuleKind::Linear,
    };
    TieGroup {
        layers: Some(vec![0, 1]),
        experts: None,
        rank: 3,
        in_features: 6,
        scaling: Scaling::one(3),
        a: Factor::trained(tensor(Dtype::F32, &[3, 6], seed, 0.5)),
        b: Factor::trained(tensor(Dtype::F32, &[14, 3], seed + 1, 0.5)),
        core: None,
        u: Some(Factor::trained(tensor(Dtype::F32, &[2, 3], seed + 2, 1.0))),
        v: Some(Factor::trained(tensor(Dtype::F32, &[2, 14], seed + 3, 1.0))),
        targets: vec![
            target("q_proj", 6),
            target("k_proj", 4),
            target("v_proj", 4),
        ],
    }
}

fn input(groups: Vec<TieGroup>) -> MergeInput {
    let text = format!(
        "{groups:?}{:?}",
        groups
            .iter()
            .map(|g| g.a.tensor.data().to_vec())
            .collect::<Vec<_>>()
    );
    let adapter = Adapter {
        groups,
        ..Adapter::default()
    };
    adapter.validate().unwrap();
    MergeInput::new("a.tl", adapter, Digest::of(text.as_bytes()))
}

fn extra(name: &str, role: ExtraRole, tensor: Tensor) -> MergeInput {
    let adapter = Adapter {
        extras: vec![Extra::new(name, role, tensor)],
        ..Adapter::default()
    };
    adapter.validate().unwrap();
    MergeInput::new("extra", adapter, Digest::of(name.as_bytes()))
}

/// A folder with `base.safetensors`, and a place for outputs.
struct Bench {
    dir: tempfile::TempDir,
    base: PathBuf,
}

impl Bench {
    fn file(tensors: &[(String, Tensor)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        write_tensors(&base, Existing::Refuse, &[("format", "pt")], tensors).unwrap();
        Self { dir, base }
    }

    /// A model directory; `shards` > 1 makes an index.
    fn model(tensors: &[(String, Tensor)], shards: usize, config: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::create_dir(&base).unwrap();
        if let Some(config) = config {
            fs::write(base.join("config.json"), config).unwrap();
        }
        if shards == 1 {
            let file = base.join("model.safetensors");
            write_tensors(&file, Existing::Refuse, &[("format", "pt")], tensors).unwrap();
            return Self { dir, base };
        }
        let mut map = serde_json::Map::new();
        for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
            write_tensors(
                &base.join(&name),
                Existing::Refuse,
                &[("format", "pt")],
                part,
            )
            .unwrap();
            for (t, _) in part {
                map.insert(t.clone(), name.clone().into());
            }
        }
        let size: usize = tensors.iter().map(|(_, t)| t.data().len()).sum();
        let index = serde_json::json!({"metadata": {"total_size": size}, "weight_map": map});
        fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
        Self { dir, base }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join(if self.base.is_dir() {
            "out"
        } else {
            "out.safetensors"
        })
    }

    fn merge(&self, inputs: &[MergeInput]) -> Result<MergeReport> {
        self.merge_with(inputs, &PlanOptions::default())
    }

    fn merge_with(&self, inputs: &[MergeInput], options: &PlanOptions) -> Result<MergeReport> {
        let base = Checkpoint::open(&self.base)?;
        let plan = plan(&base, inputs, options)?;
        execute(
            &plan,
            &self.out(),
            &ExecOptions::default(),
            &Control::default(),
        )
    }

    /// The error of planning, which must not have written anything.
    fn refusal(&self, inputs: &[MergeInput]) -> Error {
        self.refusal_with(inputs, &PlanOptions::default())
    }

    fn refusal_with(&self, inputs: &[MergeInput], options: &PlanOptions) -> Error {
        let base = Checkpoint::open(&self.base).unwrap();
        plan(&base, inputs, options).unwrap_err()
    }

    /// Names in the folder besides the base: nothing may be left after a failure.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        let base = self.base.file_name().unwrap().to_str().unwrap();
        names.filter(|n| n != base).collect()
    }
}

fn tied(policy: TiedPolicy) -> PlanOptions {
    PlanOptions {
        tied: policy,
        ..PlanOptions::default()
    }
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let names: Vec<String> = checkpoint.tensors().keys().cloned().collect();
    let get = |n: &String| {
        let file = checkpoint.at(checkpoint.locate(n).unwrap()).0;
        SafetensorsFile::open(file.path())
            .unwrap()
            .tensor(n)
            .unwrap()
    };
    names.iter().map(|n| (n.clone(), get(n))).collect()
}

/// Spec §12 element by element: one rounding after all updates were summed.
fn oracle(base: &Tensor, updates: &[(&TieGroup, usize, usize, f64)], safe: bool) -> Tensor {
    let (rows, cols) = (base.shape()[0], base.shape()[1]);
    let mut sum = vec![0f32; rows * cols];
    for (n, (group, layer, target, weight)) in updates.iter().enumerate() {
        let mut low = group.low_rank(*layer, *target).unwrap();
        low.scale *= weight;
        let d = low.delta();
        let d = match group.targets[*target].kind.is_transposed() {
            true => d.t().to_owned(),
            false => d,
        };
        for (s, d) in sum.iter_mut().zip(d.iter()) {
            *s = if n == 0 { *d } else { *s + d };
        }
    }
    if safe {
        let mut bytes = vec![0; base.data().len()];
        narrow_into(base.dtype(), &sum, &mut bytes);
        sum = widen(base.dtype(), &bytes).unwrap();
    }
    let old = base.to_f32().unwrap();
    let new: Vec<f32> = old.iter().zip(&sum).map(|(w, d)| w + d).collect();
    Tensor::narrowed(base.dtype(), base.shape().to_vec(), &new).unwrap()
}

/// Checks every tensor of an output: those in `changed` are as given, all others the base's.
fn check(out: &Path, base: &[(String, Tensor)], changed: &[(&str, Tensor)]) {
    let got = read(out);
    for (name, old) in base {
        let want = changed
            .iter()
            .find(|(n, _)| n == name)
            .map_or(old, |(_, t)| t);
        assert!(
            got[name].same_bytes(want),
            "{name}: {:?} {:?}",
            got[name].to_f32(),
            want.to_f32()
        );
    }
    for (name, want) in changed {
        assert!(got[*name].same_bytes(want), "{name}");
    }
}

fn find<'a>(tensors: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
    &tensors.iter().find(|(n, _)| n == name).unwrap().1
}
