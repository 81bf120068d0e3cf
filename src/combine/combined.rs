//! Several adapters as one, in memory.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::bases::{base_of, longest_base};
use super::classes::{Apart, Class, classes};
use super::delta::of_deltas;
use super::elementwise::Elementwise;
use super::exact::exact;
use super::extras::{Added, by_elements, extras, scale_with_modules, weighted_sum};
use super::factors::of_factors;
use super::in_order::first_error;
use super::input::CombineInput;
use super::join::Numbers;
use super::measure::{Measured, measured};
use super::method::CombineMethod;
use super::options::CombineOptions;
use super::report::{CombineReport, CombinedPart};
use super::size::check_size;
use super::truncated::{Truncated, default_rank, truncated};
use crate::adapter::error::ratio;
use crate::adapter::provenance::{INPUTS, LONGEST_LIST};
use crate::adapter::{Adapter, TieGroup};
use crate::convert::coalesce;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fit::Budget;
use crate::progress::Progress;
use crate::tensor::Dtype;

/// An adapter, as the provenance says it.
#[derive(Serialize)]
struct Input {
    /// Its root, or the digest of its files.
    adapter: String,
    weight: f64,
}

/// How much there is to count: every module of every adapter, to be combined and to be measured.
pub fn work(inputs: &[CombineInput]) -> u64 {
    let modules = inputs.iter().map(|i| i.adapter.modules().len() as u64);
    2 * modules.sum::<u64>()
}

/// Combines adapters of one base, in memory. The numbers are the same bytes for any number of threads. The result's
/// provenance says the inputs' identities and weights; `progress` counts modules of the inputs, as many as [`work`] says.
///
/// # Errors
/// [`Code::Usage`] for options that make no sense, or nothing to combine; [`Code::AdaptersConflict`] for adapters of
/// different bases, tensors that replace one of the base and are not the same in all, or two ranks where A is added to
/// A; [`Code::UnsupportedTargetParameters`] for a truncation of experts; [`Code::ManifestLimit`] for a result beyond the
/// limits; [`Code::NonFinite`]; those of [`TieGroup::low_rank`]; [`Code::Interrupted`]
/// where `progress` is stopped.
pub fn combine(
    inputs: &[CombineInput],
    options: &CombineOptions<'_>,
    progress: Progress<'_>,
) -> Result<(Adapter, CombineReport)> {
    options.check()?;
    let inputs = prepared(inputs)?;
    let add = |name: &str, parts: Vec<Added>| match options.method {
        CombineMethod::Cat | CombineMethod::Svd | CombineMethod::Linear => Ok(weighted_sum(&parts)),
        _ => by_elements(name, parts, &Elementwise::of(options)),
    };
    let mut result = Adapter {
        extras: extras(&inputs, add)?,
        base: longest_base(&inputs, options.base.is_some()),
        task: task(&inputs),
        provenance: provenance(&inputs)?,
        ..Adapter::default()
    };
    let found = groups(&inputs, options, &result, progress)?;
    result.groups = found.groups;
    if let Some(dtype) = options.dtype {
        result.groups = stored_as(result.groups, dtype)?;
    }
    if result.groups.is_empty() && result.extras.is_empty() {
        return Err(nothing_left());
    }
    scale_with_modules(&mut result)?;
    result.sort();
    result.base = base_of(&inputs, &result, options.base)?;
    result.validate()?;
    let all = measured(&inputs, &result, progress)?;
    let report = report(
        &inputs,
        options.method,
        &result,
        all,
        (found.bound, found.cut),
    );
    Ok((result, report))
}

fn nothing_left() -> Error {
    let message = "nothing is left of the adapters";
    Error::new(Code::Usage, message).hint("give weights other than 0")
}

/// Adapters whose layers are brought together where that changes no number.
fn prepared(inputs: &[CombineInput]) -> Result<Vec<CombineInput>> {
    if inputs.is_empty() {
        return Err(Error::new(Code::Usage, "there is no adapter to combine"));
    }
    if inputs.iter().all(|input| input.weight == 0.0) {
        return Err(nothing_left());
    }
    let of = |input: &CombineInput| -> Result<CombineInput> {
        if !input.weight.is_finite() {
            let message = format!("weight {} of `{}`", input.weight, input.label);
            return Err(Error::new(Code::Usage, message));
        }
        input.adapter.validate().map_err(|e| e.file(&input.label))?;
        Ok(CombineInput {
            adapter: coalesce(&input.adapter)?,
            ..input.clone()
        })
    };
    inputs.iter().map(of).collect()
}

/// The tie groups by the method.
fn groups(
    inputs: &[CombineInput],
    options: &CombineOptions<'_>,
    rest: &Adapter,
    progress: Progress<'_>,
) -> Result<Truncated> {
    let whole = |groups| Truncated {
        groups,
        bound: None,
        cut: None,
    };
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let elementwise = Elementwise::of(options);
    let apart = match options.method {
        CombineMethod::Cat | CombineMethod::Svd => Apart::WhereNeeded,
        method if method.is_on_delta() => Apart::Modules,
        _ => Apart::Vectors,
    };
    let classes = classes(inputs, apart)?;
    check_size(&classes, inputs)?;
    match options.method {
        CombineMethod::Cat => {
            let of = |class: Class| {
                progress.advance(class.modules())?;
                exact(class.members, Numbers::Kept)
            };
            let groups = first_error(classes.into_par_iter().map(of))?;
            together(groups.into_iter().flatten().collect()).map(whole)
        }
        CombineMethod::Svd => {
            let default = (default_rank(inputs), dtype);
            truncated(classes, options.budget, default, rest, progress)
        }
        method if method.is_on_delta() => {
            let budget = options.budget.unwrap_or(Budget::Rank(default_rank(inputs)));
            of_deltas(&classes, &elementwise, (budget, dtype), rest, progress)
        }
        _ => {
            let of = |class: &Class| {
                progress.advance(class.modules())?;
                of_factors(class, inputs, &elementwise)
            };
            let groups = first_error(classes.par_iter().map(of))?;
            together(groups).map(whole)
        }
    }
}

/// Groups of one layer each, those of one module and rank together.
fn together(groups: Vec<TieGroup>) -> Result<Vec<TieGroup>> {
    let alone = Adapter {
        groups,
        ..Adapter::default()
    };
    Ok(coalesce(&alone)?.groups)
}

/// A, B and cores stored as `dtype`. Vectors, which hold the weights, stay: they take next to nothing.
fn stored_as(groups: Vec<TieGroup>, dtype: Dtype) -> Result<Vec<TieGroup>> {
    let bare = |g: &TieGroup| TieGroup {
        u: None,
        v: None,
        ..g.clone()
    };
    let matrices = Adapter {
        groups: groups.iter().map(bare).collect(),
        ..Adapter::default()
    };
    let stored = matrices.to_dtype(dtype)?.groups;
    let whole = |(new, old): (TieGroup, TieGroup)| TieGroup {
        u: old.u,
        v: old.v,
        ..new
    };
    Ok(stored.into_iter().zip(groups).map(whole).collect())
}

/// Which adapters the result is made of: an identity does not say where a file was.
fn provenance(inputs: &[CombineInput]) -> Result<BTreeMap<String, String>> {
    let parts = inputs.iter().map(|i| Input {
        adapter: i.identity.to_string(),
        weight: i.weight,
    });
    let text = serde_json::to_string(&parts.collect::<Vec<_>>())
        .map_err(|e| Error::new(Code::Usage, format!("the weights have no text: {e}")).cause(e))?;
    let text = match text.len() <= LONGEST_LIST {
        true => text,
        false => Digest::of(text.as_bytes()).to_string(),
    };
    Ok(BTreeMap::from([(INPUTS.to_owned(), text)]))
}

/// The task that all adapters which say one say.
fn task(inputs: &[CombineInput]) -> Option<String> {
    let mut tasks = inputs.iter().filter_map(|i| i.adapter.task.as_ref());
    let first = tasks.next()?;
    tasks.all(|t| t == first).then(|| first.clone())
}

fn report(
    inputs: &[CombineInput],
    method: CombineMethod,
    result: &Adapter,
    all: Vec<Measured>,
    (bound, cut): (Option<f64>, Option<f64>),
) -> CombineReport {
    let sum = |of: fn(&Measured) -> f64| all.iter().map(of).sum::<f64>();
    let norm = sum(|m| m.square).sqrt();
    let error = ratio(sum(|m| m.off).sqrt(), norm);
    let highest = |a: &Adapter| a.groups.iter().map(|g| g.rank).max().unwrap_or(0);
    let part = |i: &CombineInput| CombinedPart {
        adapter: i.label.clone(),
        weight: i.weight,
        identity: i.identity.to_string(),
        modules: i.adapter.modules().len(),
        rank: highest(&i.adapter),
        bytes: i.bytes,
    };
    let tied = |g: &&TieGroup| g.is_tied() && g.instances() > 1;
    let tied = result.groups.iter().filter(tied);
    let common = all.iter().filter(|m| m.module.ranks.len() > 1).count();
    let mut notes: Vec<String> = Vec::new();
    for input in inputs {
        notes.extend(input.notes.iter().map(|n| format!("{}: {n}", input.label)));
    }
    if inputs.len() > 1 && common == 0 {
        notes.push("no module is in more than one of the adapters".into());
    }
    CombineReport {
        method,
        adapters: inputs.iter().map(part).collect(),
        error,
        bound: bound.map(|b| ratio(b, norm)),
        cut,
        rank: highest(result),
        common,
        tied: tied.map(|g| g.instances() * g.targets.len()).sum(),
        modules: all.into_iter().map(|m| m.module).collect(),
        tensor_bytes_before: inputs.iter().map(|i| i.adapter.tensor_bytes()).sum(),
        tensor_bytes: result.tensor_bytes(),
        notes,
    }
}
