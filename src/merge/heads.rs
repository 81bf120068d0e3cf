//! Heads that a base lacks, and the adapter of a classifier brings.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter::{Adapter, ExtraRole};
use crate::base::modules::is_head;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// The tensors of an adapter for a classifier that its base may lack: heads, and what else was saved
/// for a task whose head is trained from nothing; all of a module that the base has nothing of.
pub(super) fn absent_heads<'a>(base: &Checkpoint, adapter: &'a Adapter) -> BTreeSet<&'a str> {
    const TASKS: [&str; 3] = ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];
    let of_task = adapter.task.as_deref().is_some_and(|t| TASKS.contains(&t));
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let extras = adapter.extras.iter();
    let mut whole = extras
        .filter(|e| e.role == ExtraRole::Replace && (of_task || is_head(&e.name)))
        .peekable();
    if whole.peek().is_none() {
        return BTreeSet::new();
    }
    let present: BTreeSet<String> = base.tensors().keys().map(|n| top(n)).collect();
    let absent = whole.filter(|e| !present.contains(&top(&e.name)));
    absent.map(|e| e.name.as_str()).collect()
}

/// The dtype that most weights of a base have, by elements.
pub(super) fn weight_dtype(base: &Checkpoint) -> Option<Dtype> {
    let mut counts: BTreeMap<Dtype, u64> = BTreeMap::new();
    for place in base.tensors().values() {
        let info = base.at(*place).1;
        if info.dtype.is_float() {
            *counts.entry(info.dtype).or_default() +=
                info.byte_len() / (info.dtype.bits() as u64 / 8);
        }
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(d, _)| d)
}
