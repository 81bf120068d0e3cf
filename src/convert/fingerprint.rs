//! Whether a base is the one that an adapter was made for.

use std::collections::BTreeSet;

use crate::adapter::{Adapter, BaseModel, ExtraRole};
use crate::base::architecture::Architecture;
use crate::base::heads;
use crate::base::names::Names;
use crate::base::ties::Ties;
use crate::error::{Code, Error, Result};
use crate::format::fingerprint;
use crate::safetensors::Checkpoint;

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
        .hint("record one when converting, with the base at hand"));
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
/// output projection that the base leaves out, being its embedding, is that embedding (spec §11); a head
/// that it has nothing of is none of them.
pub(crate) fn touched_tensors<'b>(
    adapter: &Adapter,
    base: &'b Checkpoint,
    renames: &[(String, String)],
) -> Result<Vec<&'b str>> {
    let wanted = adapter.base_tensors();
    let architecture = Architecture::of(base)?;
    let names = Names::new(base, &architecture);
    let ties = Ties::of(base, &architecture, &names)?;
    let extras = adapter.extras.iter();
    let replaced = extras.filter(|e| e.role == ExtraRole::Replace);
    let replaced = replaced.map(|e| e.name.as_str());
    let absent = heads::absent(base, adapter.task.as_deref(), replaced);
    let may_miss = |name: &str| absent.contains(name) || ties.may_miss(name);
    let found = names.resolve(&wanted, renames, may_miss)?;
    let mut places = Vec::with_capacity(found.len());
    for (found, name) in found.into_iter().zip(&wanted) {
        match found {
            Some(found) => places.extend(found.pieces.iter().map(|piece| piece.place)),
            None => places.extend(ties.stands_for(name)),
        }
    }
    let mut seen = BTreeSet::new();
    places.retain(|place| seen.insert(*place));
    Ok(places
        .into_iter()
        .map(|place| base.at(place).1.name.as_str())
        .collect())
}
