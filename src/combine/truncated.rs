//! Σ w_i ΔW_i cut to a rank, an error or a size: each module at the rank that it needs.

use rayon::prelude::*;

use super::classes::{Class, Member};
use super::exact::exact;
use super::in_order::first_error;
use super::input::CombineInput;
use super::join::Numbers;
use super::split::by_module;
use crate::adapter::error::{left_columns, product_norm, right_columns};
use crate::adapter::{Adapter, TieGroup};
use crate::convert::{Found, Tied};
use crate::error::Result;
use crate::fit::{Budget, shrink};
use crate::progress::Progress;
use crate::tensor::Dtype;

/// A fit takes errors below 1.
const LARGEST_ERROR: f64 = 0.999_999;

/// Groups, and what cutting to their ranks lost.
pub(super) struct Truncated {
    pub(super) groups: Vec<TieGroup>,
    /// ‖ΔW − ΔW'‖_F that no others of their ranks are below, where that is known.
    pub(super) bound: Option<f64>,
    /// What was lost, relative to what was cut, where it is not the whole error.
    pub(super) cut: Option<f64>,
}

/// The budget where none was given: the highest rank of the adapters, as PEFT.
pub(super) fn default_rank(inputs: &[CombineInput]) -> usize {
    let groups = inputs.iter().flat_map(|i| &i.adapter.groups);
    groups.map(|g| g.rank).max().unwrap_or(1)
}

/// The closest to the sum within a budget.
///
/// What is tied over layers and exact as it is stays: no LoRA of it is smaller. A rank that was asked for holds for it
/// too, and unties it where it has a higher one.
///
/// # Errors
/// Those of [`exact`] and [`shrink`]; that of `progress`.
pub(super) fn truncated(
    classes: Vec<Class>,
    budget: Option<Budget>,
    (default, dtype): (usize, Dtype),
    rest: &Adapter,
    progress: Progress<'_>,
) -> Result<Truncated> {
    let highest = match budget {
        Some(Budget::Rank(rank)) => rank,
        _ => usize::MAX,
    };
    let (mut kept, mut apart) = (Vec::new(), Vec::new());
    for class in classes {
        progress.advance(class.modules())?;
        let over_layers = |m: &Member| m.group.layers.as_ref().is_some_and(|l| l.len() > 1);
        match class.members.iter().any(over_layers) {
            false => apart.push(class),
            true => match exact(class.members.clone(), Numbers::Kept)? {
                Some(group) if group.is_tied() && group.rank <= highest => kept.push(group),
                Some(_) => apart.extend(modules(class)?),
                None => {}
            },
        }
    }
    let plain = |class: Class| {
        progress.check()?;
        exact(class.members, Numbers::Plain)
    };
    let sources = first_error(apart.into_par_iter().map(plain))?;
    let sources: Vec<TieGroup> = sources.into_iter().flatten().collect();
    let (fixed, cut) = (squared_norm(&kept)?, squared_norm(&sources)?);
    if cut == 0.0 {
        return Ok(Truncated {
            groups: kept,
            bound: Some(0.0),
            cut: None,
        });
    }
    let (adapter, report) = shrink(
        &as_found(kept, sources, rest),
        match budget {
            None => Budget::Rank(default),
            // Of all modules, of which some are not cut.
            Some(Budget::Tolerance(error)) => {
                Budget::Tolerance((error * ((fixed + cut) / cut).sqrt()).min(LARGEST_ERROR))
            }
            Some(budget) => budget,
        },
        dtype,
    )?;
    Ok(Truncated {
        groups: adapter.groups,
        bound: Some(report.bound * cut.sqrt()),
        cut: None,
    })
}

/// ‖ΔW‖²_F over all modules.
fn squared_norm(groups: &[TieGroup]) -> Result<f64> {
    let of_module = |group: &TieGroup, instance, target| -> Result<f64> {
        let update = group.low_rank(instance, target)?;
        let norm = product_norm(&left_columns(&[(&update, 1.0)]), &right_columns(&[&update]));
        Ok(norm * norm)
    };
    let of_group = |group: &TieGroup| -> Result<f64> {
        let mut sum = 0.0;
        for instance in 0..group.instances() {
            for target in 0..group.targets.len() {
                sum += of_module(group, instance, target)?;
            }
        }
        Ok(sum)
    };
    let squares = first_error(groups.par_iter().map(of_group))?;
    Ok(squares.iter().sum())
}

/// What a fit takes: groups that stay, and those of one layer that are cut.
fn as_found(kept: Vec<TieGroup>, sources: Vec<TieGroup>, rest: &Adapter) -> Tied {
    let alone = |groups| Adapter {
        groups,
        ..rest.clone()
    };
    Tied::exact(alone(sources), alone(kept), Found::Untied)
}

/// A class of groups over layers as one of each module.
pub(super) fn modules(class: Class) -> Result<Vec<Class>> {
    let mut out: Vec<Class> = Vec::new();
    for member in class.members {
        for (at, group) in by_module(&member.group)?.into_iter().enumerate() {
            if out.len() <= at {
                out.push(Class {
                    members: Vec::new(),
                });
            }
            out[at].members.push(Member {
                group,
                ..member.clone()
            });
        }
    }
    Ok(out)
}
