//! `inspect`: what a file or folder holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tlkit::adapter::{
    Adapter, ExtraRole, ModuleKind, ScalingRule, TieGroup, quantisation_of_name, without_numbers,
};
use tlkit::format::{NoBlobs, Stored, TlFile};
use tlkit::open::{Source, is_foreign, open_adapter};
use tlkit::peft::import::PeftKind;
use tlkit::peft::is_peft_dir;
use tlkit::quant::Quantised;
use tlkit::safetensors::{Checkpoint, SafetensorsFile};
use tlkit::{Code, Result};

use super::refused::{self, Refusal, TensorView, by_merge};
use super::{open_base, show};
use crate::command::args::Inspect;
use crate::command::output::{Outcome, Output, bytes, count, fields, number, plural, table};

pub(crate) fn inspect(args: &Inspect, output: &Output) -> Result<Outcome> {
    let path = args.path.as_path();
    if is_foreign(path) && path.is_file() {
        return peft(path, args, output);
    }
    if path.is_file() {
        match SafetensorsFile::open(path) {
            Ok(file) if TlFile::is_tl(&file) => return tl(path, args, output),
            Ok(_) => {}
            // Of other files only torch's archives have tensors to show.
            Err(e) => return refused::archive(path, output).map_err(|_| e),
        }
    }
    if is_peft_dir(path) {
        return peft(path, args, output);
    }
    checkpoint(path, args, output)
}

#[derive(Serialize)]
struct AdapterView {
    kind: &'static str,
    path: String,
    identity: String,
    bytes: u64,
    method: String,
    parameters: u64,
    trained_parameters: u64,
    modules: usize,
    base: Option<String>,
    /// How its name says that it is quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_kind: Option<&'static str>,
    /// How the base that is at hand is quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_quantised: Option<QuantisedView>,
    task: Option<String>,
    fingerprint: Option<String>,
    provenance: BTreeMap<String, String>,
    groups: Vec<GroupView>,
    extras: Vec<ExtraView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorView>,
    /// Stored tensors that their seeds do not make.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    invalid: Vec<String>,
    /// Why a merge into the base would fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
}

#[derive(Serialize)]
struct GroupView {
    targets: Vec<String>,
    layers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<usize>,
    rank: usize,
    r#in: usize,
    out: usize,
    scaling: f64,
    rule: &'static str,
    factors: Vec<FactorView>,
}

#[derive(Serialize)]
struct FactorView {
    name: &'static str,
    dtype: String,
    shape: Vec<usize>,
    trained: bool,
    seeded: bool,
}

#[derive(Serialize)]
struct ExtraView {
    name: String,
    role: &'static str,
    dtype: String,
    shape: Vec<usize>,
}

impl AdapterView {
    fn new(
        kind: &'static str,
        path: &Path,
        identity: String,
        bytes: u64,
        adapter: &Adapter,
    ) -> Self {
        let base = adapter.base.as_ref();
        Self {
            kind,
            path: show(path),
            identity,
            bytes,
            method: adapter.method().to_string(),
            parameters: adapter.parameters(),
            trained_parameters: adapter.trained_parameters(),
            modules: adapter.modules().len(),
            base: base.and_then(|b| b.name.clone()),
            base_kind: base.and_then(|b| quantisation_of_name(b.name.as_deref()?)),
            base_quantised: None,
            task: adapter.task.clone(),
            fingerprint: base.and_then(|b| b.weights.clone()),
            provenance: adapter.provenance.clone(),
            groups: adapter.groups.iter().map(GroupView::new).collect(),
            extras: adapter
                .extras
                .iter()
                .map(|e| ExtraView {
                    name: e.name.clone(),
                    role: role(e.role),
                    dtype: e.tensor.dtype().to_string(),
                    shape: e.tensor.shape().to_vec(),
                })
                .collect(),
            tensors: Vec::new(),
            invalid: Vec::new(),
            refused: None,
        }
    }

    fn text(&self) -> String {
        let mut pairs = vec![
            ("kind", self.kind.to_owned()),
            ("method", self.method.clone()),
            (
                "parameters",
                format!(
                    "{} ({} trained)",
                    count(self.parameters),
                    count(self.trained_parameters)
                ),
            ),
            ("bytes", bytes(self.bytes)),
            ("modules", self.modules.to_string()),
        ];
        pairs.extend(self.base.clone().map(|b| ("base", b)));
        if let Some(quantised) = &self.base_quantised {
            pairs.push(("base kind", quantised.text()));
        } else if let Some(kind) = self.base_kind {
            pairs.push(("base kind", format!("{kind}, by its name")));
        }
        pairs.extend(
            self.fingerprint
                .clone()
                .map(|f| ("base weights", format!("sha256:{f}"))),
        );
        pairs.extend(self.task.clone().map(|t| ("task", t)));
        pairs.push(("identity", self.identity.clone()));
        pairs.extend(
            self.provenance
                .iter()
                .map(|(k, v)| ("provenance", format!("{k}: {v}"))),
        );
        pairs.extend(self.refused.as_ref().map(|r| ("merge", r.text())));
        let mut text = format!("{}\n{}\n", fields(&pairs), group_table(&self.groups));
        if !self.extras.is_empty() {
            text.push_str(&format!("\n{}\n", extra_table(&self.extras)));
        }
        if !self.tensors.is_empty() {
            text.push_str(&format!("\n{}\n", tensor_table(&self.tensors)));
        }
        text
    }
}

fn group_table(groups: &[GroupView]) -> String {
    let factor = |f: &FactorView| {
        let seed = if f.seeded { " (seed)" } else { "" };
        format!("{}{seed} {:?} {}", f.name, f.shape, f.dtype)
    };
    let rows = groups.iter().map(|g| {
        let factors: Vec<String> = g.factors.iter().map(factor).collect();
        vec![
            g.targets.join("\n"),
            g.layers.clone().unwrap_or("-".into())
                + &g.experts
                    .map_or_else(String::new, |e| format!(" × {e} experts")),
            g.rank.to_string(),
            format!("{} → {}", g.r#in, g.out),
            number(g.scaling),
            factors.join("\n"),
        ]
    });
    let header = ["targets", "layers", "rank", "in → out", "scale", "factors"];
    table(&header, &[2], rows)
}

fn extra_table(extras: &[ExtraView]) -> String {
    let rows = extras.iter().map(|e| {
        let shape = format!("{:?}", e.shape);
        vec![e.name.clone(), e.role.into(), e.dtype.clone(), shape]
    });
    table(&["full tensor", "role", "dtype", "shape"], &[], rows)
}

impl GroupView {
    fn new(g: &TieGroup) -> Self {
        let kind = |k| match k {
            ModuleKind::Linear => "",
            ModuleKind::Conv1d => " (conv1d)",
            ModuleKind::Embedding => " (embedding)",
            ModuleKind::Parameter => " (parameter)",
            ModuleKind::ParameterTransposed => " (parameter, transposed)",
        };
        Self {
            targets: g
                .targets
                .iter()
                .map(|t| format!("{}{}", t.module, kind(t.kind)))
                .collect(),
            layers: g.layers.as_deref().map(ranges),
            experts: g.experts,
            rank: g.rank,
            r#in: g.in_features,
            out: g.total_out(),
            scaling: g.scaling.factor(g.rank),
            rule: match g.scaling.rule {
                ScalingRule::AlphaOverRank => "alpha/rank",
                ScalingRule::AlphaOverSqrtRank => "alpha/sqrt(rank)",
            },
            factors: g
                .factors()
                .map(|(part, f)| FactorView {
                    name: part.name(),
                    dtype: f.tensor.dtype().to_string(),
                    shape: f.tensor.shape().to_vec(),
                    trained: f.trained,
                    seeded: f.seed.is_some(),
                })
                .collect(),
        }
    }
}

fn role(role: ExtraRole) -> &'static str {
    match role {
        ExtraRole::Replace => "replaces",
        ExtraRole::Bias => "bias",
        ExtraRole::BaseLayer => "base layer",
        ExtraRole::Rows => "replaces rows",
        ExtraRole::AddBias(..) => "adds to bias",
    }
}

/// Layer numbers as ranges: `0–31`, `0–3, 8`.
fn ranges(layers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for layer in layers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == *layer => *end = *layer,
            _ => parts.push((*layer, *layer)),
        }
    }
    let text = parts.iter().map(|(a, b)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}–{b}")
        }
    });
    text.collect::<Vec<_>>().join(", ")
}

fn tl(path: &Path, args: &Inspect, output: &Output) -> Result<Outcome> {
    let file = TlFile::open(path)?;
    let adapter = file.manifest().adapter()?;
    let mut view = AdapterView::new(
        ".tl version 1",
        path,
        file.root().to_string(),
        file.file().byte_len(),
        &adapter,
    );
    let storage = file.storage();
    for (name, _) in storage.iter().filter(|(_, s)| **s == Stored::Raw) {
        let entry = file.manifest().tensors().get(*name);
        // No more work than the file has bytes; the digests themselves are not looked at here.
        if let Some(Err(e)) = entry.map(|entry| entry.check_seed()) {
            output.note(&format!(
                "tensor `{name}`: {}: no command but this one takes the file",
                e.message()
            ));
            view.invalid.push((*name).to_owned());
        }
    }
    if args.tensors || storage.values().any(|s| *s != Stored::Raw) {
        for (name, stored) in storage {
            let Some(entry) = file.manifest().tensors().get(name) else {
                continue;
            };
            let stored = match stored {
                Stored::Raw => "inside",
                Stored::Packed => "inside, zstd",
                Stored::Seeded => "seeded",
                Stored::External => "external",
            };
            view.tensors.push(TensorView {
                name: name.to_owned(),
                dtype: entry.dtype()?.to_string(),
                shape: entry.shape.clone(),
                bytes: entry.byte_len()?,
                stored: Some(stored),
            });
        }
    }
    output.report(&view, || view.text())?;
    Ok(Outcome::Success)
}

fn peft(path: &Path, args: &Inspect, output: &Output) -> Result<Outcome> {
    let base = open_base(args.base.as_ref(), &args.names)?;
    let opened = match open_adapter(path, base.as_ref(), &NoBlobs) {
        Ok(opened) => opened,
        Err(e) => return refused::adapter(path, e, output),
    };
    for note in &opened.notes {
        output.note(note);
    }
    let kind = match opened.source {
        Source::Peft(PeftKind::Lora) if opened.adapter.groups.is_empty() => "PEFT trained rows",
        Source::Peft(PeftKind::Lora) => "PEFT LoRA",
        Source::Peft(PeftKind::Dora) => "PEFT DoRA",
        Source::Peft(PeftKind::Vera) => "PEFT VeRA",
        Source::Peft(PeftKind::VeraRegenerated) => "PEFT VeRA, projections regenerated",
        Source::Nemo => "NeMo",
        Source::Mlx(_) if opened.adapter.groups.is_empty() => "MLX, whole tensors",
        Source::Mlx(PeftKind::Dora) => "MLX DoRA",
        Source::Mlx(_) => "MLX LoRA",
        Source::Tl => ".tl",
    };
    let adapter = tlkit::convert::coalesce(&opened.adapter)?;
    let mut view = AdapterView::new(
        kind,
        path,
        opened.identity.to_string(),
        opened.bytes,
        &adapter,
    );
    view.refused = base.as_ref().and_then(|base| by_merge(path, base));
    view.base_quantised = base.as_ref().and_then(QuantisedView::of);
    output.report(&view, || view.text())?;
    Ok(Outcome::Success)
}

#[derive(Serialize)]
struct CheckpointView {
    kind: &'static str,
    path: String,
    files: Vec<FileView>,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    dtypes: BTreeMap<String, u64>,
    families: Vec<Family>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantised: Option<QuantisedView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<TensorView>,
}

/// How a base is quantised, or why that is not read.
#[derive(Serialize)]
struct QuantisedView {
    kinds: BTreeMap<String, usize>,
    /// Scales, zero points and tables.
    companions: usize,
    /// What the weights are made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl QuantisedView {
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        match Quantised::of(checkpoint) {
            Ok(None) => None,
            Ok(Some(quantised)) => Some(Self {
                kinds: quantised
                    .kinds()
                    .into_iter()
                    .map(|(k, n)| (k.to_owned(), n))
                    .collect(),
                companions: quantised.companions().len(),
                dtype: Some(quantised.dtype().to_string()),
                refused: None,
            }),
            Err(e) => Some(Self {
                kinds: BTreeMap::new(),
                companions: 0,
                dtype: None,
                refused: Some(e.to_string()),
            }),
        }
    }

    fn text(&self) -> String {
        if let Some(refused) = &self.refused {
            return refused.clone();
        }
        let kinds: Vec<String> = self
            .kinds
            .iter()
            .map(|(kind, n)| format!("{kind} ({})", plural(*n, "weight")))
            .collect();
        let dtype = self.dtype.as_deref().unwrap_or_default();
        format!(
            "{}, made for {dtype}; {}",
            kinds.join("; "),
            plural(self.companions, "companion")
        )
    }
}

#[derive(Serialize)]
struct FileView {
    name: String,
    bytes: u64,
    tensors: usize,
}

/// Tensors whose names differ in numbers only.
#[derive(Serialize, Default)]
struct Family {
    name: String,
    count: usize,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

fn checkpoint(path: &Path, args: &Inspect, output: &Output) -> Result<Outcome> {
    let checkpoint = Checkpoint::open(path).map_err(|e| match e.code() {
        Code::NotFound if path.is_dir() => e.hint("a folder must hold a model or a PEFT adapter"),
        _ => e,
    })?;
    for note in checkpoint.notes() {
        output.note(note);
    }
    let view = CheckpointView::new(&checkpoint, path, args.tensors);
    output.report(&view, || view.text())?;
    Ok(Outcome::Success)
}

impl CheckpointView {
    fn new(checkpoint: &Checkpoint, path: &Path, list_all: bool) -> Self {
        let mut view = Self {
            kind: if checkpoint.is_sharded() {
                "sharded checkpoint"
            } else {
                "safetensors"
            },
            path: show(path),
            files: Vec::new(),
            tensors: checkpoint.tensors().len(),
            parameters: 0,
            bytes: checkpoint.byte_len(),
            dtypes: BTreeMap::new(),
            families: Vec::new(),
            quantised: QuantisedView::of(checkpoint),
            list: Vec::new(),
        };
        for file in checkpoint.shards() {
            let name = file
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            view.files.push(FileView {
                name,
                bytes: file.byte_len(),
                tensors: file.header().tensors.len(),
            });
        }
        let mut families: BTreeMap<(String, String, Vec<usize>), Family> = BTreeMap::new();
        for (name, place) in checkpoint.tensors() {
            let info = checkpoint.at(*place).1;
            let dtype = info.dtype.to_string();
            view.parameters += info.shape.iter().product::<usize>() as u64;
            *view.dtypes.entry(dtype.clone()).or_default() += info.byte_len();
            let pattern = without_numbers(name);
            let key = (pattern.clone(), dtype.clone(), info.shape.clone());
            let family = families.entry(key).or_insert_with(|| Family {
                name: pattern,
                dtype: dtype.clone(),
                shape: info.shape.clone(),
                ..Family::default()
            });
            family.count += 1;
            family.bytes += info.byte_len();
            if list_all {
                let (shape, bytes) = (info.shape.clone(), info.byte_len());
                view.list.push(TensorView {
                    name: name.clone(),
                    dtype,
                    shape,
                    bytes,
                    stored: None,
                });
            }
        }
        view.families = families.into_values().collect();
        view
    }

    fn text(&self) -> String {
        let dtypes: Vec<String> = self
            .dtypes
            .iter()
            .map(|(d, n)| format!("{d} {}", bytes(*n)))
            .collect();
        let mut pairs = vec![
            ("kind", self.kind.to_owned()),
            ("tensors", self.tensors.to_string()),
            ("parameters", count(self.parameters)),
            (
                "bytes",
                format!("{} ({})", bytes(self.bytes), dtypes.join(", ")),
            ),
        ];
        pairs.extend(self.quantised.as_ref().map(|q| ("quantised", q.text())));
        let mut text = fields(&pairs);
        let rows = self
            .files
            .iter()
            .map(|f| vec![f.name.clone(), bytes(f.bytes), f.tensors.to_string()]);
        text.push_str(&format!(
            "\n{}\n",
            table(&["file", "bytes", "tensors"], &[1, 2], rows)
        ));
        if !self.list.is_empty() {
            text.push_str(&format!("\n{}\n", tensor_table(&self.list)));
            return text;
        }
        let rows = self.families.iter().map(|f| {
            vec![
                f.name.clone(),
                f.count.to_string(),
                f.dtype.clone(),
                format!("{:?}", f.shape),
                bytes(f.bytes),
            ]
        });
        text.push_str(&format!(
            "\n{}\n",
            table(
                &["tensors", "count", "dtype", "shape", "bytes"],
                &[1, 4],
                rows
            )
        ));
        text
    }
}

fn tensor_table(tensors: &[TensorView]) -> String {
    let rows = tensors.iter().map(|t| {
        let stored = t.stored.unwrap_or_default().to_owned();
        vec![
            t.name.clone(),
            t.dtype.clone(),
            format!("{:?}", t.shape),
            bytes(t.bytes),
            stored,
        ]
    });
    table(&["tensor", "dtype", "shape", "bytes", ""], &[3], rows)
}
