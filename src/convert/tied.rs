//! A PEFT adapter brought into tie groups, in memory.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::coalesce::coalesce;
use super::equal::{LeftOut, leave_out_equal, told};
use super::fingerprint::fingerprinted;
use super::ties::recover_ties;
use crate::adapter::{Adapter, DeltaError, Module, TieGroup, delta_error};
use crate::error::{Code, Error, Result};
use crate::format::{NoBlobs, WriteOptions};
use crate::open::{Source, check_complete, import_any, open_adapter};
use crate::peft::import::{Imported, PeftKind};
use crate::peft::projection::Fma;
use crate::peft::tl_beside;
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

/// How to convert to `.tl`.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
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
    /// Refuse an adapter that lacks tensors of modules which config and base say are adapted.
    pub strict: bool,
    /// Keep whole tensors that are the base's own. By default they are left out where the base is at hand:
    /// mergekit writes embeddings, head and norms that nobody changed.
    pub keep_equal: bool,
}

/// A PEFT adapter in tie groups, as [`peft_to_tied`](crate::convert::peft_to_tied) writes it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Tied {
    /// The adapter, with the base's fingerprint where the base was at hand.
    pub adapter: Adapter,
    /// What kind of folder or file it was read from.
    pub from: Source,
    /// What was found.
    pub found: Found,
    /// The adapter as it was read, in groups of one layer.
    pub source: Adapter,
    /// Largest error of any ΔW.
    pub worst: DeltaError,
    /// The module that has it.
    pub worst_module: String,
    /// Whole tensors that are the base's own, and are not in the adapter.
    pub left_out: Vec<LeftOut>,
    /// Bytes of the PEFT files.
    pub bytes: u64,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
}

impl Tied {
    /// An adapter that was brought into tie groups without loss, and from no file.
    pub(crate) fn exact(source: Adapter, adapter: Adapter, found: Found) -> Self {
        Self {
            adapter,
            from: Source::Tl,
            found,
            source,
            worst: DeltaError::NONE,
            worst_module: String::new(),
            left_out: Vec::new(),
            bytes: 0,
            notes: Vec::new(),
        }
    }
}

/// Reads a PEFT adapter directory and brings it into tie groups, in memory.
///
/// # Errors
/// Those of [`import_any`]; [`Code::UnsupportedDora`].
pub fn import_tied(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    with_fingerprint(import_unbound(dir, options)?, options)
}

/// As [`import_tied`], of PEFT's Tied-LoRA too: what is tied needs no import, and its `.tl` is the adapter.
///
/// # Errors
/// Those of [`import_tied`] and [`open_adapter`].
pub fn import_or_open(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    match tl_beside(dir)? {
        Some(_) => with_fingerprint(already_tied(dir)?, options),
        None => import_tied(dir, options),
    }
}

fn with_fingerprint(mut tied: Tied, options: &ToTiedOptions<'_>) -> Result<Tied> {
    if let Some(base) = options.base {
        tied.adapter.base = Some(fingerprinted(&tied.adapter, base)?);
    }
    Ok(tied)
}

/// As [`import_tied`], without the base's fingerprint, which takes reading all weights that are changed.
pub(crate) fn import_unbound(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    let (imported, from) = import_any(dir, options.base, options.fma, options.projection_dtype)?;
    if options.strict {
        check_complete(&imported.missing).map_err(|e| e.file(dir))?;
    }
    if imported.kind == PeftKind::Dora {
        return Err(Error::new(
            Code::UnsupportedDora,
            "DoRA rescales the merged weight, which a .tl of version 1 cannot say",
        )
        .file(dir)
        .hint("merge it directly, without converting"));
    }
    let Imported {
        adapter: mut source,
        kind,
        mut notes,
        bytes,
        ..
    } = imported;
    let left_out = match options.base.filter(|_| !options.keep_equal) {
        Some(base) => leave_out_equal(&mut source, base).map_err(|e| e.file(dir))?,
        None => Vec::new(),
    };
    notes.extend(told(&left_out));
    let of_experts = source
        .modules()
        .iter()
        .filter(|m| m.expert.is_some() || m.path.contains(".experts."))
        .count();
    if options.base.is_none() && of_experts > 0 {
        notes.push(format!(
            "{of_experts} of the adapted weights are experts', and no base was given: that it has these experts, lays them out as the factors do, and that none is missing was not checked"
        ));
    }
    let (adapter, found) = find_ties(&source, kind)?;
    let (worst, worst_module) = largest_error(&source, &adapter)?;
    Ok(Tied {
        adapter,
        from,
        found,
        source,
        worst,
        worst_module,
        left_out,
        bytes,
        notes,
    })
}

/// The adapter of PEFT's Tied-LoRA, as its `.tl` has it.
fn already_tied(dir: &Path) -> Result<Tied> {
    let opened = open_adapter(dir, None, &NoBlobs)?;
    let (worst, worst_module) = largest_error(&opened.adapter, &opened.adapter)?;
    Ok(Tied {
        source: opened.adapter.clone(),
        from: opened.source,
        adapter: opened.adapter,
        found: Found::Tied,
        worst,
        worst_module,
        left_out: Vec::new(),
        bytes: opened.bytes,
        notes: opened.notes,
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

/// The worst module of a conversion, of equals the first.
pub(super) fn largest_error(source: &Adapter, tied: &Adapter) -> Result<(DeltaError, String)> {
    let places: HashMap<String, Module> =
        tied.modules().into_iter().map(|m| (m.label(), m)).collect();
    let of_module = |module: Module| {
        let lost = || {
            Error::new(
                Code::MissingFactor,
                format!("`{}` got lost in the conversion", module.path),
            )
        };
        let place = places.get(&module.label()).ok_or_else(lost)?;
        let before = source.groups[module.group].low_rank(module.layer, module.target)?;
        let after = tied.groups[place.group].low_rank(place.layer, place.target)?;
        Ok((delta_error(&before, &after)?, module.label()))
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
    let worst = errors.into_iter().reduce(worse);
    Ok(worst.unwrap_or((DeltaError::NONE, String::new())))
}
