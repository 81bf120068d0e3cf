//! The JSON files beside the weights that a merge writes anew: the config and the index.

use serde_json::Value;

use super::plan::{MergePlan, TensorPlan};
use crate::base::edits::ConfigEdits;
use crate::base::{CONFIG_FILE, MAX_CONFIG_BYTES, read_config};
use crate::error::{Code, Error, Result};
use crate::fs::read_limited;
use crate::safetensors::{Checkpoint, INDEX_FILE};

/// Largest index that is read.
const MAX_INDEX_BYTES: u64 = 100_000_000;

impl MergePlan<'_> {
    /// Plans the files that no longer say what is so: `config.json` with the edits, and the index
    /// where tensors are added, dropped, or of another size.
    ///
    /// # Errors
    /// [`Code::ConfigInvalid`], [`Code::BadIndex`].
    pub(super) fn rewrite(&mut self, mut edits: ConfigEdits) -> Result<()> {
        if self.unties {
            edits.untie();
        }
        if !edits.is_empty() {
            match edited_config(self.base, &edits)? {
                Some(config) if self.base.is_dir() => self.rewritten.push((CONFIG_FILE, config)),
                _ => self.notes.extend(edits.advice()),
            }
        }
        if self.base.is_sharded() && self.shards.iter().any(|s| s.new_header.is_some()) {
            let index = changed_index(self)?;
            self.rewritten.push((INDEX_FILE, index));
        }
        Ok(())
    }
}

/// `config.json` with the edits, other bytes as they are; `None` where there is no config.
fn edited_config(base: &Checkpoint, edits: &ConfigEdits) -> Result<Option<Vec<u8>>> {
    if read_config(base)?.is_none() {
        return Ok(None);
    }
    let path = base.folder().join(CONFIG_FILE);
    let bytes = read_limited(&path, MAX_CONFIG_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::new(Code::ConfigInvalid, "is not UTF-8")
            .file(&path)
            .cause(e)
    })?;
    let edited = edits.apply(&text).map_err(|e| e.file(&path))?;
    Ok(Some(edited.into_bytes()))
}

/// The index of a sharded base for the tensors that the output has.
fn changed_index(plan: &MergePlan<'_>) -> Result<Vec<u8>> {
    let base = plan.base;
    let path = base.folder().join(INDEX_FILE);
    let bad = |e: String| Error::new(Code::BadIndex, e).file(&path);
    let raw = read_limited(&path, MAX_INDEX_BYTES)?;
    let mut index: Value = serde_json::from_slice(&raw).map_err(|e| bad(e.to_string()))?;
    let (mut bytes, mut elements) = (0i128, 0i128);
    for place in &plan.dropped {
        let info = base.at(*place).1;
        bytes -= i128::from(info.byte_len());
        elements -= info.shape.iter().product::<usize>() as i128;
    }
    for tensor in &plan.tensors {
        bytes += i128::from(tensor.byte_len());
        elements += tensor.shape.iter().product::<usize>() as i128;
        if !tensor.appended {
            let info = base.at(tensor.source).1;
            bytes -= i128::from(info.byte_len());
            elements -= info.shape.iter().product::<usize>() as i128;
        }
    }
    if let Some(map) = index.get_mut("weight_map").and_then(Value::as_object_mut) {
        for place in &plan.dropped {
            map.remove(&base.at(*place).1.name);
        }
        for tensor in plan.tensors.iter().filter(|t| !t.appended) {
            map.remove(&base.at(tensor.source).1.name);
        }
        let shard = |t: &TensorPlan| plan.shards.get(t.source.shard).map(|s| s.name.clone());
        for tensor in &plan.tensors {
            map.insert(tensor.name.clone(), shard(tensor).into());
        }
    }
    for (key, more) in [("total_size", bytes), ("total_parameters", elements)] {
        let total = index.get_mut("metadata").and_then(|m| m.get_mut(key));
        if let Some((total, n)) = total.and_then(|t| t.as_u64().map(|n| (t, n))) {
            let n = i128::from(n).saturating_add(more);
            *total = u64::try_from(n).unwrap_or_default().into();
        }
    }
    let mut text = serde_json::to_vec_pretty(&index).map_err(|e| bad(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
