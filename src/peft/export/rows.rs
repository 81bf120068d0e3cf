//! An adapter that is nothing but trained rows, as PEFT's `TrainableTokensConfig` has it.

use super::content::{Entry, PeftContent, Values, common_keys, impossible};
use crate::adapter::{Adapter, Extra, ExtraRole};
use crate::error::Result;
use crate::peft::config::Common;
use crate::peft::json::Json;
use crate::peft::names::PREFIX;
use crate::peft::tokens::{ALONE_KEY, ALONE_SUFFIX};

/// The directory of an adapter without a low-rank update.
///
/// # Errors
/// [`Code::ExportImpossible`](crate::Code::ExportImpossible) where it has anything but rows, or other rows of
/// one embedding than of another.
pub(super) fn plan_rows(adapter: &Adapter) -> Result<PeftContent> {
    let extras = &adapter.extras;
    let first = extras.first().filter(|e| e.role == ExtraRole::Rows);
    let alike = |e: &Extra| e.role == ExtraRole::Rows && first.is_some_and(|f| f.rows == e.rows);
    let Some(first) = first.filter(|_| extras.iter().all(alike)) else {
        return Err(impossible(
            "the adapter has no low-rank update, and PEFT no adapter without one but of the same trained rows of all its embeddings",
        ));
    };
    let module = |e: &Extra| e.name.strip_suffix(".weight").unwrap_or(&e.name).to_owned();
    // Embeddings that are one tensor: PEFT finds the input's itself, and those that are tied to it.
    let is_one = extras.len() > 1 && extras.iter().all(|e| e.tensor.same_bytes(&first.tensor));
    let targets = match is_one {
        true => Json::Null,
        false => Json::texts(&extras.iter().map(module).collect::<Vec<_>>()),
    };
    let mut common = Common::default();
    common_keys(adapter, &mut common);
    let text = |t: Option<String>| t.map_or(Json::Null, Json::Text);
    let rows = first.rows.iter().map(|r| Json::Int((*r).into()));
    let keys = [
        (
            "base_model_name_or_path",
            text(common.base_model_name_or_path),
        ),
        ("inference_mode", Json::Bool(true)),
        ("peft_type", Json::Text("TRAINABLE_TOKENS".into())),
        ("revision", text(common.revision)),
        ("target_modules", targets),
        ("task_type", text(common.task_type)),
        (ALONE_KEY, Json::List(rows.collect())),
    ];
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value));
    let entry = |e: &Extra| Entry {
        name: format!("{PREFIX}{}{ALONE_SUFFIX}", module(e)),
        dtype: e.tensor.dtype(),
        shape: e.tensor.shape().to_vec(),
        values: Values::Ready(e.tensor.clone()),
    };
    Ok(PeftContent {
        config: Json::Map(keys.collect()).to_pretty(),
        entries: extras.iter().map(entry).collect(),
        notes: Vec::new(),
    })
}
