//! What `inspect` shows of an adapter that no other command takes, and how it says why.

use std::path::Path;

use serde::Serialize;
use tlkit::format::NoBlobs;
use tlkit::merge::{self, MergeInput, PlanOptions};
use tlkit::peft::{Contents, StoredTensor, look, stored_tensors};
use tlkit::safetensors::Checkpoint;
use tlkit::{Error, Result};

use super::show;
use crate::command::flags;
use crate::command::output::{Outcome, Output, bytes, fields, table};

/// Why an adapter is refused.
#[derive(Serialize)]
pub(super) struct Refusal {
    code: &'static str,
    message: String,
    tensor: Option<String>,
    hint: Option<String>,
}

impl Refusal {
    pub(super) fn of(error: &Error) -> Self {
        Self {
            code: error.code().as_str(),
            message: error.message().to_owned(),
            tensor: error.tensor_name().map(str::to_owned),
            hint: flags::hint(error).map(|hint| hint.into_owned()),
        }
    }

    /// On one line.
    pub(super) fn text(&self) -> String {
        let tensor = self.tensor.as_ref();
        let at = tensor.map_or(String::new(), |name| format!(" (`{name}`)"));
        format!("refused: {}{at} [{}]", self.message, self.code)
    }
}

/// What a merge into `base` would refuse the adapter with, by names and shapes alone; a policy for
/// what is tied is the caller's to choose, and no reason here.
pub(super) fn by_merge(path: &Path, base: &Checkpoint) -> Option<Refusal> {
    let mut options = PlanOptions::default();
    options.tied = merge::TiedPolicy::Shared;
    let planned = MergeInput::open(path, base, &NoBlobs)
        .and_then(|input| merge::plan(base, &[input], &options).map(drop));
    planned.err().map(|error| Refusal::of(&error))
}

#[derive(Serialize)]
struct RefusedView {
    kind: &'static str,
    path: String,
    refused: Refusal,
    weights: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    config: Vec<KeyView>,
    tensors: Vec<TensorView>,
}

#[derive(Serialize)]
struct KeyView {
    key: String,
    value: String,
}

/// A tensor as it is stored.
#[derive(Serialize)]
pub(super) struct TensorView {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stored: Option<&'static str>,
}

impl TensorView {
    fn of(t: StoredTensor) -> Self {
        Self {
            name: t.name,
            dtype: t.dtype.to_string(),
            shape: t.shape,
            bytes: t.bytes,
            stored: None,
        }
    }
}

/// Shows the folder of a refused adapter: its config and tensors, and why. What cannot be shown fails
/// with the refusal.
pub(super) fn adapter(path: &Path, error: Error, output: &Output) -> Result<Outcome> {
    let Ok(contents) = look(path) else {
        return Err(error);
    };
    let Contents {
        config,
        weights,
        bytes,
        tensors,
        ..
    } = contents;
    let view = RefusedView {
        kind: "adapter that is refused",
        path: show(path),
        refused: Refusal::of(&error),
        weights: show(&weights),
        bytes,
        config: config
            .into_iter()
            .map(|(key, value)| KeyView { key, value })
            .collect(),
        tensors: tensors.into_iter().map(TensorView::of).collect(),
    };
    output.report(&view, || view.text())?;
    Ok(Outcome::Success)
}

impl RefusedView {
    fn text(&self) -> String {
        let mut pairs = vec![
            ("kind", self.kind.to_owned()),
            ("merge", self.refused.text()),
        ];
        pairs.extend(self.refused.hint.clone().map(|hint| ("hint", hint)));
        pairs.push(("weights", self.weights.clone()));
        pairs.push(("bytes", bytes(self.bytes)));
        let mut text = format!("{}\n", fields(&pairs));
        if !self.config.is_empty() {
            let keys = self.config.iter();
            let rows = keys.map(|k| vec![k.key.clone(), k.value.clone()]);
            text.push_str(&format!("\n{}\n", table(&["config", ""], &[], rows)));
        }
        text.push_str(&format!("\n{}\n", tensors_text(&self.tensors)));
        text
    }
}

fn tensors_text(tensors: &[TensorView]) -> String {
    let rows = tensors.iter().map(|t| {
        let shape = format!("{:?}", t.shape);
        vec![t.name.clone(), t.dtype.clone(), shape, bytes(t.bytes)]
    });
    table(&["tensor", "dtype", "shape", "bytes"], &[3], rows)
}

#[derive(Serialize)]
struct ArchiveView {
    kind: &'static str,
    path: String,
    tensors: Vec<TensorView>,
}

/// Shows an archive of torch.
pub(super) fn archive(path: &Path, output: &Output) -> Result<Outcome> {
    let tensors = stored_tensors(path)?;
    let view = ArchiveView {
        kind: "archive of torch",
        path: show(path),
        tensors: tensors.into_iter().map(TensorView::of).collect(),
    };
    output.report(&view, || {
        let all: u64 = view.tensors.iter().map(|t| t.bytes).sum();
        let head = fields(&[
            ("kind", view.kind.to_owned()),
            ("tensors", view.tensors.len().to_string()),
            ("bytes", bytes(all)),
        ]);
        format!("{head}\n\n{}\n", tensors_text(&view.tensors))
    })?;
    Ok(Outcome::Success)
}
