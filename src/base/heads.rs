//! Heads that a base of another class lacks.

use std::collections::BTreeSet;

use super::modules::is_head;
use crate::safetensors::Checkpoint;

/// Of the tensors that an adapter for a task replaces those that its base may lack: heads, and what else was
/// saved for a task whose head is trained from nothing; all of a module that the base has nothing of.
pub(crate) fn absent<'a>(
    base: &Checkpoint,
    task: Option<&str>,
    replaced: impl Iterator<Item = &'a str>,
) -> BTreeSet<&'a str> {
    const TASKS: [&str; 3] = ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"];
    let of_task = task.is_some_and(|t| TASKS.contains(&t));
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let mut whole = replaced.filter(|name| of_task || is_head(name)).peekable();
    if whole.peek().is_none() {
        return BTreeSet::new();
    }
    let present: BTreeSet<String> = base.tensors().keys().map(|n| top(n)).collect();
    whole.filter(|name| !present.contains(&top(name))).collect()
}
