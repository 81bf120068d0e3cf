//! Merging against what others computed: PEFT's own merged weights, and a naive oracle.
//!
//! `peft` needs the shared data (`TLKIT_SHARED`, or `../shared/data`), and says so where it is
//! absent; `identities` and `matrix` stand on `fixtures/` alone.
#![allow(clippy::print_stderr)]

mod architectures;
mod identities;
mod matrix;
mod nemo;
mod peft;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tlkit::Result;
use tlkit::convert::{ToTiedOptions, peft_to_tied, tied_to_peft};
use tlkit::format::NoBlobs;
use tlkit::merge::{self, Control, ExecOptions, MergeInput, PlanOptions, Rounding, TiedPolicy};
use tlkit::open::open_adapter;
use tlkit::peft::export::{ExportOptions, Form};
use tlkit::safetensors::Checkpoint;
use tlkit::tensor::Tensor;

use crate::shared::names;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Merges weighted adapters and reads the result. Tied embeddings change together, as in PEFT.
fn merge(
    base: &Path,
    adapters: &[(&Path, f64)],
    out: &Path,
    rounding: Rounding,
) -> Result<BTreeMap<String, Tensor>> {
    merge_tied(base, adapters, out, rounding, TiedPolicy::Shared)
}

fn merge_tied(
    base: &Path,
    adapters: &[(&Path, f64)],
    out: &Path,
    rounding: Rounding,
    tied: TiedPolicy,
) -> Result<BTreeMap<String, Tensor>> {
    let base = Checkpoint::open(base)?;
    let mut inputs = Vec::new();
    for (path, weight) in adapters {
        let mut input = MergeInput::open(path, &base, &NoBlobs)?;
        input.weight = *weight;
        inputs.push(input);
    }
    let mut options = PlanOptions::default();
    options.rounding = rounding;
    options.tied = tied;
    let plan = merge::plan(&base, &inputs, &options)?;
    let mut exec = ExecOptions::default();
    exec.durable = false;
    merge::execute(&plan, out, &exec, &Control::default())?;
    Ok(tensors(out))
}

/// Every tensor of a file or model directory.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let load = |shard: &tlkit::safetensors::SafetensorsFile, name: &str| {
        (name.to_owned(), shard.tensor(name).unwrap())
    };
    let shards = checkpoint.shards().iter();
    shards
        .flat_map(|s| s.header().tensors.iter().map(move |t| load(s, &t.name)))
        .collect()
}

/// The name of the first tensor in which two checkpoints are not the same bytes.
fn first_difference(
    one: &BTreeMap<String, Tensor>,
    two: &BTreeMap<String, Tensor>,
) -> Option<String> {
    let missing = two.keys().find(|n| !one.contains_key(*n));
    let differs = one.iter().find(|(name, tensor)| {
        two.get(*name)
            .is_none_or(|other| !tensor.same_bytes(other) || tensor.shape() != other.shape())
    });
    missing.or(differs.map(|(n, _)| n)).cloned()
}

fn to_tl(adapter: &Path, out: &Path, base: &Path) -> Result<PathBuf> {
    let base = Checkpoint::open(base)?;
    let mut options = ToTiedOptions::default();
    options.base = Some(&base);
    peft_to_tied(adapter, out, &options)?;
    Ok(out.to_owned())
}

fn to_peft(tl: &Path, out: &Path, base: &Path, form: Form) -> Result<PathBuf> {
    let base = Checkpoint::open(base)?;
    let mut options = ExportOptions::default();
    options.form = form;
    tied_to_peft(tl, out, &NoBlobs, Some(&base), &options)?;
    Ok(out.to_owned())
}
