//! Updates of experts and of other parts of tensors, planned.

use super::fit::{check_magnitudes, misfit, mixed, part_of, shared_dora, weighted};
use super::orient::Layouts;
use super::plan::{Addition, TensorPlan};
use super::region::{Region, Shape, region};
use super::request::{MergeInput, PlanOptions};
use crate::adapter::Module;
use crate::base::cut::Piece;
use crate::compute::Rounding;
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location};

/// Adds the part of a weight's update that is `piece` to `tensor`, which has it: of every expert in
/// `modules`, or of the one module. `fused` says whether the class of the
/// model has the weight in a parameter that PEFT wraps itself.
///
/// # Errors
/// [`Code::BaseShape`] where extents do not fit; [`Code::AdaptersConflict`];
/// [`Code::UnsupportedDora`] for magnitudes of a part that is not whole rows.
pub(super) fn add(
    base: &Checkpoint,
    tensor: &mut TensorPlan,
    (index, input): (usize, &MergeInput),
    modules: &[Module],
    piece: &Piece<Location>,
    layouts: &Layouts<'_>,
    (options, fused): (&PlanOptions, bool),
) -> Result<()> {
    let Some(first) = modules.first() else {
        return Ok(());
    };
    let group = &input.adapter.groups[first.group];
    let target = &group.targets[first.target];
    let magnitudes = input.magnitudes.get(&first.path);
    if let Some(m) = magnitudes {
        check_magnitudes(m.len(), target.out, &first.path)?;
    }
    let kind = layouts.of_part(target, &tensor.name)?;
    let shape = Shape {
        out: target.out,
        in_features: group.in_features,
        transposed: kind.is_transposed(),
        experts: group.experts,
    };
    let scale = weighted(input, group.scaling.factor(group.rank), options)?;
    // PEFT rounds the update of a parameter to its dtype, whether asked to be safe or not.
    let rounding = match (options.rounding, fused) {
        _ if input.single_rounding => Rounding::Peft,
        (Rounding::Peft, true) => Rounding::PeftSafe,
        (rounding, _) => rounding,
    };
    let bias = |a: &Addition| matches!(a, Addition::Bias { .. });
    if tensor.additions.iter().any(bias) {
        return Err(mixed(tensor));
    }
    let own = match piece.of.index {
        Some(e) => modules.get(e..e + 1).unwrap_or_default(),
        None => modules,
    };
    for module in own {
        let Some(region) = region(&tensor.shape, piece, module, &shape) else {
            return Err(misfit(base, tensor, &shape.weight()));
        };
        let dora = magnitudes.is_some();
        if dora && (options.method.is_some() || !region.has_whole_rows(&tensor.shape, &shape)) {
            let message =
                "a DoRA of a part of a tensor, whose rows the base does not have as one weight";
            return Err(Error::new(Code::UnsupportedDora, message).tensor(&first.path));
        }
        let shared = |a: &Addition| {
            matches!(a, Addition::Part { input, dora: other, region: there, .. }
                if *input != index && (dora || *other) && !there.is_apart(&region))
        };
        if tensor.additions.iter().any(shared) {
            return Err(shared_dora(&tensor.name));
        }
        tensor.additions.push(Addition::Part {
            input: index,
            module: module.clone(),
            region,
            scale,
            dora,
            rounding,
        });
    }
    Ok(())
}

/// Fails unless parts of several adapters are the same or have nothing in common: what they share is
/// rounded once.
pub(super) fn check_apart(tensor: &TensorPlan) -> Result<()> {
    let mut regions: Vec<&Region> = Vec::new();
    let mut whole = false;
    for addition in &tensor.additions {
        match addition {
            Addition::Part { region, .. } => regions.push(region),
            _ => whole = true,
        }
    }
    regions.sort_by_key(|r| (r.rows, r.cols));
    regions.dedup_by_key(|r| (r.rows, r.cols));
    let meets = |(at, one): (usize, &&Region)| {
        let mut after = regions.iter().skip(at + 1);
        after.any(|other| !one.is_apart(other))
    };
    match whole && !regions.is_empty() || regions.iter().enumerate().any(meets) {
        true => Err(part_of(tensor)),
        false => Ok(()),
    }
}
