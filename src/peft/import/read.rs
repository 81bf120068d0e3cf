//! A PEFT directory, read into an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::imported::{ImportOptions, Imported};
use super::importer::Importer;
use super::missing::Selected;
use crate::adapter::{Adapter, BaseModel, MAX_MODULES};
use crate::base::hub_name;
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::peft::beside::{Beside, read_beside};
use crate::peft::config::PeftConfig;
use crate::peft::files::AdapterFiles;
use crate::peft::names::TargetRules;
use crate::peft::parameters::TargetParameters;
use crate::peft::tensors::sort_tensors;
use crate::peft::tokens::TrainedTokens;

/// Reads a PEFT adapter directory: LoRA, DoRA or VeRA.
///
/// # Errors
/// The `TL03xx` codes for what is wrong with it, the `TL04xx` codes for what tlkit cannot say.
pub fn import(dir: &Path, options: &ImportOptions<'_>) -> Result<Imported> {
    let files = AdapterFiles::open(dir)?;
    let config_path = files.config_path();
    let mut importer = Importer {
        options,
        adapter: Adapter {
            base: base_model(&files.config),
            task: files.config.common().task_type.clone(),
            ..Adapter::default()
        },
        notes: Vec::new(),
        rank_zero: Vec::new(),
        magnitudes: BTreeMap::new(),
        parameters: BTreeMap::new(),
        of_stacks: BTreeSet::new(),
        missing: Vec::new(),
    };
    let unknown = &files.config.common().unknown;
    if !unknown.is_empty() {
        importer.notes.push(format!(
            "config keys without effect here: {}",
            unknown.join(", ")
        ));
    }
    if let PeftConfig::Lora(config) = &files.config {
        config
            .refuse_unrepresentable()
            .map_err(|e| e.file(&config_path))?;
    }
    let mut sorted = sort_tensors(&files).map_err(|e| e.file(&files.weights_path))?;
    importer.notes.extend(sorted.notes.iter().cloned());
    let beside = read_beside(dir, options.base)?;
    importer.notes.extend(beside.notes.iter().cloned());
    let identity = identity(&files, &beside)?;
    let bytes = files.bytes + beside.bytes;
    sorted.add_beside(beside)?;
    let count = [
        sorted.lora.len(),
        sorted.vera.len(),
        sorted.base_layers.len() + sorted.others.len(),
    ];
    if let Some(n) = count.into_iter().find(|n| *n > MAX_MODULES) {
        let message = format!("{n} modules or full tensors, the limit is {MAX_MODULES}");
        return Err(Error::new(Code::ManifestLimit, message).file(&files.weights_path));
    }
    let kind = match &files.config {
        PeftConfig::Lora(config) => importer.lora(config, &sorted),
        PeftConfig::Vera(config) => importer.vera(config, &sorted),
    }
    .map_err(|e| e.file(dir))?;
    importer
        .extras(&files.config, &sorted)
        .map_err(|e| e.file(dir))?;
    let of_stacks = std::mem::take(&mut importer.of_stacks);
    let paths: BTreeSet<&str> = sorted
        .lora
        .keys()
        .chain(sorted.vera.keys())
        .chain(&of_stacks)
        .map(String::as_str)
        .collect();
    let selection = files.config.selection();
    let rules = TargetRules::new(selection)?;
    let parameters: &[String] = match &files.config {
        PeftConfig::Lora(config) => &config.target_parameters,
        PeftConfig::Vera(_) => &[],
    };
    importer.look_for_missing(
        &paths,
        &Selected {
            rules: &rules,
            targets: &selection.target_modules,
            parameters: TargetParameters(parameters),
        },
    )?;
    let tokens = match &files.config {
        PeftConfig::Lora(config) => &config.trainable_tokens,
        PeftConfig::Vera(_) => &TrainedTokens::None,
    };
    importer.tokens(tokens, &sorted).map_err(|e| e.file(dir))?;
    importer.adapter.sort();
    importer.adapter.validate().map_err(|e| e.file(dir))?;
    Ok(Imported {
        adapter: importer.adapter,
        kind,
        magnitudes: importer.magnitudes,
        notes: importer.notes,
        missing: importer.missing,
        bytes,
        identity,
    })
}

/// The digest over the adapter's files, and over what is read from beside them.
fn identity(files: &AdapterFiles, beside: &Beside) -> Result<Digest> {
    let own = files.identity()?;
    if beside.tensors.is_empty() {
        return Ok(own);
    }
    let mut hasher = Hasher::default();
    hasher.update(own.as_bytes());
    for (name, (_, tensor)) in &beside.tensors {
        hasher.update(format!("{name}\t{}\t{:?}\t", tensor.dtype(), tensor.shape()).as_bytes());
        hasher.update(Digest::of(tensor.data()).as_bytes());
    }
    Ok(hasher.finish())
}

/// What the config says of its base; a path is where somebody had it, and left out.
fn base_model(config: &PeftConfig) -> Option<BaseModel> {
    let common = config.common();
    let name = common.base_model_name_or_path.as_deref();
    let base = BaseModel {
        name: name.and_then(hub_name).map(str::to_owned),
        revision: common.revision.clone(),
        weights: None,
    };
    (base != BaseModel::default()).then_some(base)
}
