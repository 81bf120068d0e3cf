//! Whether what an adapter changes fits the base, and what is said where it does not.

use std::collections::BTreeMap;

use super::plan::TensorPlan;
use super::request::{MergeInput, PlanOptions};
use crate::adapter::{Extra, ExtraRole};
use crate::base::cut::{Cut, Found};
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::shape_text;

/// Fails where two names of an adapter lead to the same part of a tensor.
pub(super) fn apart(names: &[String], places: &[Option<Found<Location>>]) -> Result<()> {
    let mut taken: BTreeMap<Location, Vec<Cut>> = BTreeMap::new();
    for (name, found) in names.iter().zip(places) {
        for piece in found.iter().flat_map(|f| &f.pieces) {
            let there = taken.entry(piece.place).or_default();
            if !there.iter().all(|cut| cut.is_apart(piece.at)) {
                let message = "two names of the adapter lead to one tensor of the base";
                return Err(Error::new(Code::AmbiguousModule, message).tensor(name));
            }
            there.push(piece.at);
        }
    }
    Ok(())
}

/// One adapter changes the weight as a whole, another a part of it.
pub(super) fn part_of(tensor: &TensorPlan) -> Error {
    let message = "one adapter adds to all of it, another to parts of it";
    Error::new(Code::AdaptersConflict, message)
        .tensor(&tensor.name)
        .hint("merge one, then the other into the result")
}

/// Two adapters have values for the same place.
pub(super) fn both_replace(one: &MergeInput, other: &MergeInput, name: &str) -> Error {
    let message = format!("`{}` and `{}` both replace it", one.label, other.label);
    Error::new(Code::AdaptersConflict, message).tensor(name)
}

/// A DoRA and another adapter change the same weight.
pub(super) fn shared_dora(tensor: &str) -> Error {
    let message =
        "a DoRA depends on the weight alone, and cannot share a module with another adapter";
    Error::new(Code::AdaptersConflict, message)
        .tensor(tensor)
        .hint("merge one, then the other into the result, if the order is right for you")
}

/// Fails where a DoRA has not one magnitude for each output.
pub(super) fn check_magnitudes(magnitudes: usize, out: usize, module: &str) -> Result<()> {
    if magnitudes == out {
        return Ok(());
    }
    let message = format!("{magnitudes} magnitudes for {out} outputs");
    Err(Error::new(Code::FactorShape, message).tensor(module))
}

/// s with the adapter's weight, as f32; alone where a method weighs the whole update.
pub(super) fn weighted(input: &MergeInput, factor: f64, options: &PlanOptions) -> Result<f32> {
    let scale = match options.method {
        Some(_) => factor as f32,
        None => (factor * input.weight) as f32,
    };
    if scale.is_finite() {
        return Ok(scale);
    }
    let message = format!("scaling {factor} times weight {} overflows", input.weight);
    Err(Error::new(Code::BadAlpha, message))
}

/// An update and a bias for one tensor.
pub(super) fn mixed(tensor: &TensorPlan) -> Error {
    let message = "both a low-rank update and a bias are to be added to it";
    Error::new(Code::AdaptersConflict, message).tensor(&tensor.name)
}

/// The tensor has not the extents that the adapter needs.
pub(super) fn misfit(base: &Checkpoint, tensor: &TensorPlan, needs: &[usize]) -> Error {
    let message = format!(
        "the adapter needs {}, the base has {}",
        shape_text(needs),
        shape_text(&tensor.shape)
    );
    let (file, _) = base.at(tensor.source);
    let hint = match (needs, &tensor.shape[..]) {
        ([_, a], [_, b]) if a == b => {
            "the number of rows differs: was the vocabulary resized for training, or is it another model size?"
        }
        ([a, b], [c, d]) if (a, b) == (d, c) => {
            "the base stores it transposed; the adapter says otherwise"
        }
        _ => "check that this is the adapter's base model",
    };
    Error::new(Code::BaseShape, message)
        .tensor(&tensor.name)
        .file(file.path())
        .hint(hint)
}

/// Says of a bias that the base lacks that PEFT would not have it either.
pub(super) fn no_bias(e: Error, extras: &[Extra]) -> Error {
    let bias = extras
        .iter()
        .any(|x| matches!(x.role, ExtraRole::AddBias(..)) && e.tensor_name() == Some(&x.name));
    if !bias || e.code() != Code::UnmatchedModule {
        return e;
    }
    Error::new(Code::UnmatchedModule, "the base has no such bias to add to")
        .tensor(e.tensor_name().unwrap_or_default())
        .hint("PEFT refuses to merge a lora_bias into a layer without bias, too")
}
