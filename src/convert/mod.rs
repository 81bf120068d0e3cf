//! Between PEFT and `.tl`, without loss unless asked for.
//!
//! [`peft_to_tied`] looks at the tensors, not at a hint: VeRA is tied already; LoRA whose factors
//! are those of a tied adapter is recovered up to rounding; any other LoRA is kept as it is.
//! [`tied_to_peft`] goes back. Two lose, and say how much: [`crate::fit`], the closest tied adapter of any LoRA, or
//! the closest smaller LoRA, and [`store_as`], an adapter in a smaller type.

mod coalesce;
mod storage;
mod ties;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

pub use crate::open::{Opened, Source, import_with_base, open_adapter};
pub use coalesce::coalesce;
pub use storage::store_as;
pub use ties::recover_ties;

use crate::adapter::{Adapter, BaseModel, Method, Module, TieGroup};
use crate::adapter::{DeltaError, delta_error};
use crate::base::names::resolve;
use crate::base::ties::{Ties, is_output};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{BlobSource, TlFile, WriteOptions, fingerprint, write_tl};
use crate::open::CheckpointModules;
use crate::peft::export::{ExportOptions, Form, export};
use crate::peft::import::{Imported, PeftKind};
use crate::peft::projection::Fma;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// What the tensors of a PEFT adapter turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// VeRA with stored projections: tied as it is.
    Vera,
    /// VeRA whose projections were made again from their key.
    VeraRegenerated,
    /// LoRA whose factors are those of a tied adapter, in every module with layers.
    Tied,
    /// LoRA of which some modules are tied.
    PartlyTied,
    /// Any other LoRA, stored as it is.
    Untied,
}

/// Report of [`peft_to_tied`].
#[derive(Debug, Clone, Serialize)]
pub struct ToTied {
    /// What was found.
    pub found: Found,
    /// The preset that the result follows.
    pub method: String,
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of tie groups.
    pub groups: usize,
    /// Largest ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of any module.
    pub max_relative_error: f64,
    /// The module that has it.
    pub worst_module: String,
    /// Numbers in the adapter before.
    pub parameters_before: u64,
    /// Numbers in the `.tl`.
    pub parameters_after: u64,
    /// Bytes of the PEFT files.
    pub bytes_before: u64,
    /// Bytes of the `.tl`.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// What a careful user should know.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// How to convert to `.tl`.
#[derive(Debug, Default)]
pub struct ToTiedOptions<'a> {
    /// The base model: fingerprinted into the adapter, and asked for shapes.
    pub base: Option<&'a Checkpoint>,
    /// How the file is written.
    pub write: WriteOptions,
    /// How torch rounded when it made VeRA's projections.
    pub fma: Fma,
    /// The dtype of the base that VeRA's regenerated projections were used in; from the base where
    /// that is given.
    pub projection_dtype: Option<Dtype>,
}

/// A PEFT adapter in tie groups, as [`peft_to_tied`] writes it.
#[derive(Debug)]
pub struct Tied {
    /// The adapter, with the base's fingerprint where the base was at hand.
    pub adapter: Adapter,
    /// What was found.
    pub found: Found,
    /// The adapter as PEFT has it, in groups of one layer.
    pub source: Adapter,
    /// Largest error of any ΔW.
    pub worst: DeltaError,
    /// The module that has it.
    pub worst_module: String,
    /// Bytes of the PEFT files.
    pub bytes: u64,
    /// What a careful user should know.
    pub notes: Vec<String>,
}

/// Reads a PEFT adapter directory and brings it into tie groups, in memory.
///
/// # Errors
/// Those of [`import`]; [`Code::UnsupportedDora`].
pub fn import_tied(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    let mut tied = import_unbound(dir, options)?;
    if let Some(base) = options.base {
        tied.adapter.base = Some(fingerprinted(&tied.adapter, base)?);
    }
    Ok(tied)
}

/// As [`import_tied`], without the base's fingerprint, which takes reading all weights that are changed.
pub(crate) fn import_unbound(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    let imported = import_with_base(dir, options.base, options.fma, options.projection_dtype)?;
    if imported.kind == PeftKind::Dora {
        return Err(Error::new(
            Code::UnsupportedDora,
            "DoRA rescales the merged weight, which a .tl of version 1 cannot say",
        )
        .file(dir)
        .hint("merge it directly: tlkit merge BASE ADAPTER_DIR"));
    }
    let Imported {
        adapter: source,
        kind,
        notes,
        bytes,
        ..
    } = imported;
    let (adapter, found) = find_ties(&source, kind)?;
    let (worst, worst_module) = largest_error(&source, &adapter)?;
    Ok(Tied {
        adapter,
        found,
        source,
        worst,
        worst_module,
        bytes,
        notes,
    })
}

/// Converts a PEFT adapter directory to a `.tl`.
///
/// # Errors
/// Those of [`import_tied`] and [`write_tl`].
pub fn peft_to_tied(dir: &Path, output: &Path, options: &ToTiedOptions<'_>) -> Result<ToTied> {
    let tied = import_tied(dir, options)?;
    let written = write_tl(output, &tied.adapter, &options.write)?;
    Ok(ToTied {
        found: tied.found,
        method: tied.adapter.method().name().to_owned(),
        modules: tied.source.modules().len(),
        groups: tied.adapter.groups.len(),
        max_relative_error: tied.worst.relative,
        worst_module: tied.worst_module,
        parameters_before: tied.source.parameters(),
        parameters_after: tied.adapter.parameters(),
        bytes_before: tied.bytes,
        bytes_after: written.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}

/// Brings an imported adapter (groups of one layer) into tie groups.
///
/// # Errors
/// [`Code::DtypeNotAllowed`] for factors that are not floats.
pub fn find_ties(source: &Adapter, kind: PeftKind) -> Result<(Adapter, Found)> {
    let stacked = coalesce(source)?;
    match kind {
        PeftKind::Vera => return Ok((stacked, Found::Vera)),
        PeftKind::VeraRegenerated => return Ok((stacked, Found::VeraRegenerated)),
        PeftKind::Lora | PeftKind::Dora => {}
    }
    let tied = recover_ties(&stacked)?;
    // One layer is tied to nothing, so it says nothing about the others.
    let layered: Vec<&TieGroup> = tied.groups.iter().filter(|g| g.instances() > 1).collect();
    let count = layered.iter().filter(|g| g.is_tied()).count();
    let found = match count {
        0 => Found::Untied,
        n if n == layered.len() => Found::Tied,
        _ => Found::PartlyTied,
    };
    Ok((tied, found))
}

/// Checks that a base is the one whose fingerprint the adapter carries; `renames` are those of the merge
/// ([`crate::merge::PlanOptions::renames`]).
///
/// # Errors
/// [`Code::FingerprintAbsent`], [`Code::FingerprintMismatch`]; [`Code::UnmatchedModule`],
/// [`Code::AmbiguousModule`].
pub fn check_fingerprint(
    adapter: &Adapter,
    base: &Checkpoint,
    renames: &[(String, String)],
) -> Result<()> {
    let Some(want) = adapter.base.as_ref().and_then(|b| b.weights.as_ref()) else {
        return Err(Error::new(
            Code::FingerprintAbsent,
            "the adapter carries no fingerprint of its base",
        )
        .hint("record one when converting: tlkit convert peft-to-tied … --base BASE"));
    };
    let names = touched_tensors(adapter, base, renames)?;
    let actual = fingerprint(base, names)?.hex();
    if actual == *want {
        return Ok(());
    }
    let message = format!("made for a base with fingerprint {want}, this one has {actual}");
    Err(Error::new(Code::FingerprintMismatch, message)
        .hint("use the base that the adapter was trained on"))
}

/// What an adapter says of its base, with the fingerprint of this one.
pub(crate) fn fingerprinted(adapter: &Adapter, base: &Checkpoint) -> Result<BaseModel> {
    let names = touched_tensors(adapter, base, &[])?;
    Ok(BaseModel {
        weights: Some(fingerprint(base, names)?.hex()),
        ..adapter.base.clone().unwrap_or_default()
    })
}

/// The base tensors that an adapter changes, under the base's names: those that a merge finds. An
/// output projection that the base leaves out, being its embedding, is that embedding (spec §11).
pub(crate) fn touched_tensors<'b>(
    adapter: &Adapter,
    base: &'b Checkpoint,
    renames: &[(String, String)],
) -> Result<Vec<&'b str>> {
    let wanted = adapter.base_tensors();
    let outputs = wanted.iter().any(|name| is_output(name));
    let ties = outputs.then(|| Ties::of(base)).transpose()?;
    let embedding = ties.filter(|t| t.tied).and_then(|t| t.input);
    let may_miss = |name: &str| embedding.is_some() && is_output(name);
    let places = resolve(base, &wanted, renames, may_miss)?;
    let places = places.into_iter().filter_map(|place| place.or(embedding));
    Ok(places.map(|place| base.at(place).1.name.as_str()).collect())
}

/// The worst module of a conversion, of equals the first.
fn largest_error(source: &Adapter, tied: &Adapter) -> Result<(DeltaError, String)> {
    let places: HashMap<String, Module> = tied
        .modules()
        .into_iter()
        .map(|m| (m.path.clone(), m))
        .collect();
    let of_module = |module: Module| {
        let lost = || {
            Error::new(
                Code::MissingFactor,
                format!("`{}` got lost in the conversion", module.path),
            )
        };
        let place = places.get(&module.path).ok_or_else(lost)?;
        let before = source.groups[module.group].low_rank(module.layer, module.target)?;
        let after = tied.groups[place.group].low_rank(place.layer, place.target)?;
        Ok((delta_error(&before, &after)?, module.path))
    };
    let errors: Vec<(DeltaError, String)> = source
        .modules()
        .into_par_iter()
        .map(of_module)
        .collect::<Result<_>>()?;
    let worse = |worst: (DeltaError, String), next: (DeltaError, String)| {
        let (old, new) = (worst.0.relative, next.0.relative);
        let is_worse = !old.is_nan() && (new.is_nan() || new > old);
        if is_worse { next } else { worst }
    };
    let none = DeltaError {
        frobenius: 0.0,
        norm: 0.0,
        relative: 0.0,
        max_abs: 0.0,
    };
    let worst = errors.into_iter().reduce(worse);
    Ok(worst.unwrap_or((none, String::new())))
}

/// Report of [`tied_to_peft`].
#[derive(Debug, Clone, Serialize)]
pub struct ToPeft {
    /// What was written.
    pub form: Form,
    /// The preset that the `.tl` follows.
    pub method: String,
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of the `.tl`.
    pub bytes_before: u64,
    /// Bytes of the PEFT files.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// The folder written.
    pub output: PathBuf,
}

/// Converts a `.tl` to a PEFT adapter directory.
///
/// # Errors
/// Those of [`TlFile::open`], [`TlFile::load`] and [`export`].
pub fn tied_to_peft(
    file: &Path,
    output: &Path,
    blobs: &dyn BlobSource,
    base: Option<&Checkpoint>,
    options: &ExportOptions<'_>,
) -> Result<ToPeft> {
    let tl = TlFile::open(file)?;
    let adapter = tl.load(blobs)?;
    let known = base.map(CheckpointModules::new).transpose()?;
    let known = known
        .as_ref()
        .map(|k| k as &dyn crate::peft::target_names::BaseModules);
    let written = export(
        &adapter,
        output,
        &ExportOptions {
            base: known,
            ..*options
        },
    )
    .map_err(|e| e.file(file))?;
    let root: Digest = tl.root();
    let method: Method = adapter.method();
    Ok(ToPeft {
        form: options.form,
        method: method.name().to_owned(),
        modules: adapter.modules().len(),
        tensors: written.tensors,
        bytes_before: tl.file().byte_len(),
        bytes_after: written.bytes,
        root: root.to_string(),
        output: output.to_owned(),
    })
}

#[cfg(test)]
mod tests;
