//! Heads that a base lacks, and the adapter of a classifier brings; what the config then says.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::adapter::{Adapter, ExtraRole};
use crate::base::architecture::class_of_task;
use crate::base::edits::ConfigEdits;
use crate::base::heads::absent;
use crate::base::read_config;
use crate::error::Result;
use crate::safetensors::Checkpoint;

/// Labels of a classifier whose config does not say.
const LABELS: usize = 2;
/// Most labels that are written into a config.
const MAX_LABELS: usize = 100_000;

/// The tensors of an adapter that its base may lack.
pub(super) fn absent_heads<'a>(base: &Checkpoint, adapter: &'a Adapter) -> BTreeSet<&'a str> {
    let extras = adapter.extras.iter();
    let whole = extras.filter(|e| e.role == ExtraRole::Replace);
    absent(
        base,
        adapter.task.as_deref(),
        whole.map(|e| e.name.as_str()),
    )
}

/// Plans what the config says of a model that got a head: its class, and its labels.
pub(super) fn settle(
    base: &Checkpoint,
    adapter: &Adapter,
    added: &BTreeSet<&str>,
    edits: &mut ConfigEdits,
) -> Result<()> {
    let (Some(task), false) = (adapter.task.as_deref(), added.is_empty()) else {
        return Ok(());
    };
    let config = read_config(base)?.unwrap_or_default();
    let model_type = config.get("model_type").and_then(Value::as_str);
    if let Some(class) = model_type.and_then(|t| class_of_task(t, task)) {
        edits.set(&["architectures"], vec![class]);
    }
    let extras = adapter.extras.iter();
    let heads = extras.filter(|e| added.contains(e.name.as_str()));
    let labels = heads
        .filter_map(|e| labels(&e.name, e.tensor.shape()))
        .max();
    let before = config.get("id2label").and_then(Value::as_object);
    let before = before.map_or(LABELS, |labels| labels.len());
    if let Some(n) = labels.filter(|n| task != "QUESTION_ANS" && *n != before) {
        let number = |i: usize| (i.to_string(), Value::from(format!("LABEL_{i}")));
        let name = |i: usize| (format!("LABEL_{i}"), Value::from(i));
        let ids: Map<String, Value> = (0..n).map(number).collect();
        let names: Map<String, Value> = (0..n).map(name).collect();
        edits.set(&["id2label"], ids);
        edits.set(&["label2id"], names);
    }
    Ok(())
}

/// The labels of a classifier, by the last layer of its head.
fn labels(name: &str, shape: &[usize]) -> Option<usize> {
    let module = name.strip_suffix(".weight")?;
    let last = matches!(module, "score" | "classifier") || module.ends_with(".out_proj");
    match shape {
        [labels, _] if last && *labels <= MAX_LABELS => Some(*labels),
        _ => None,
    }
}
