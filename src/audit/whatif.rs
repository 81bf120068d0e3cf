//! What an adapter would take in other forms, and what that costs in quality.

use std::collections::BTreeMap;

use super::facts::TargetModule;
use super::row::Row;
use super::scenario::{Form, Quality, Scenario};
use crate::adapter::{FactorName, Method, Shape};
use crate::base::modules::in_joint_set;
use crate::tensor::Dtype;

/// Bytes that the header of a `.tl` with so many tensors takes at most, about.
pub fn header_bytes(tensors: u64) -> u64 {
    1024 + 512 * tensors
}

/// Every scenario that applies to a row whose waste is known.
pub(super) fn scenarios(row: &Row) -> Vec<Scenario> {
    if row.error.is_some() || row.parameters.is_none() || row.adapter_bytes > row.bytes {
        return Vec::new();
    }
    let mut found = exact_and_rounded(row);
    for other in &row.facts.measured {
        let kept = row.facts.kept;
        let quality = Quality::Measured { error: other.error };
        let bytes = other.bytes.saturating_add(kept);
        found.push(Scenario {
            bound_bytes: other.bound.map(|b| b.saturating_add(kept)),
            ..scenario(row, other.form, false, bytes, quality)
        });
    }
    for fit in &row.facts.fits {
        let bytes = fit.bytes.saturating_add(row.facts.kept);
        let quality = Quality::Fitted { error: fit.error };
        found.push(scenario(row, Form::Fit, fit.joint, bytes, quality));
    }
    found.extend(trained_anew(row));
    found
}

/// A form that rests on no presumption.
fn scenario(row: &Row, form: Form, joint: bool, bytes: u64, quality: Quality) -> Scenario {
    Scenario {
        form,
        joint,
        bytes,
        saving: signed(row.bytes, bytes),
        presumed: 0,
        parameters: None,
        bound_bytes: None,
        quality,
    }
}

/// What keeps the adapter, or rounds it.
fn exact_and_rounded(row: &Row) -> Vec<Scenario> {
    let waste = row.waste;
    let thin = row.bytes.saturating_sub(waste.lossless());
    let with_waste = |form, bytes, quality| Scenario {
        presumed: waste.presumed,
        ..scenario(row, form, false, bytes, quality)
    };
    let mut found = vec![with_waste(Form::Thin, thin, Quality::Exact)];
    if let Some((raw, packed)) = row.facts.packed {
        let bytes = row.bytes.saturating_sub(raw).saturating_add(packed);
        found.push(scenario(row, Form::Zstd, false, bytes, Quality::Exact));
    }
    if waste.dtype > 0 {
        for (form, dtype) in [(Form::Fp16, Dtype::F16), (Form::Bf16, Dtype::BF16)] {
            let bytes = thin.saturating_sub(waste.dtype);
            let bound = dtype.unit_roundoff();
            found.push(with_waste(form, bytes, Quality::Rounded { bound }));
        }
    }
    found
}

/// What another method would train on the same modules.
fn trained_anew(row: &Row) -> Vec<Scenario> {
    let facts = &row.facts;
    let mut found = Vec::new();
    for joint in [false, true] {
        // A LoRA is another adapter only where q, k and v then share A.
        let methods = Method::PRESETS.into_iter();
        for method in methods.filter(|m| joint || *m != Method::Lora) {
            let Some(retrained) = retrained(&facts.targets, method, joint) else {
                continue;
            };
            let weights = retrained.parameters.saturating_mul(facts.bits) / 8;
            let header = header_bytes(retrained.tensors);
            let bytes = [weights, header, facts.extra_bytes, facts.kept]
                .into_iter()
                .fold(0u64, u64::saturating_add);
            let quality = Quality::Retrain { error: None };
            found.push(Scenario {
                parameters: Some(retrained.parameters),
                ..scenario(row, Form::Method(method), joint, bytes, quality)
            });
        }
    }
    found
}

/// `before − after`, at the ends of the type where it does not fit.
pub(super) fn signed(before: u64, after: u64) -> i64 {
    let difference = i128::from(before) - i128::from(after);
    difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// What a method would train on the modules of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retrained {
    /// Numbers trained, each tied tensor once.
    pub parameters: u64,
    /// Tensors that a `.tl` names, frozen ones too.
    pub tensors: u64,
}

/// Numbers that `method` would train on these targets, each at its own rank, A and B tied over its
/// layers; with `joint`, q, k and v of the same input and layers share one A. `None` where there
/// is no target, or a count is beyond the limits of an adapter.
pub fn retrained(targets: &[TargetModule], method: Method, joint: bool) -> Option<Retrained> {
    let mut total = Retrained {
        parameters: 0,
        tensors: 0,
    };
    let groups = match joint {
        true => joined(targets),
        false => targets.iter().map(alone).collect(),
    };
    for (shape, rank) in &groups {
        let parameters = shape.parameters(method, *rank).ok()?;
        total.parameters = total.parameters.checked_add(parameters)?;
        let vectors = |p: &&FactorName| matches!(p, FactorName::U | FactorName::V);
        total.tensors += 2 + method.trains()?.iter().filter(vectors).count() as u64;
    }
    (!groups.is_empty()).then_some(total)
}

fn alone(target: &TargetModule) -> (Shape, u64) {
    let shape = Shape {
        layers: target.layers,
        input: target.input,
        outs: [target.out, 0, 0],
    };
    (shape, target.rank)
}

/// Targets with q, k and v of one parent, input and number of layers put together; their rank is
/// the largest of the three.
fn joined(targets: &[TargetModule]) -> Vec<(Shape, u64)> {
    let mut together: BTreeMap<_, Vec<(Shape, u64)>> = BTreeMap::new();
    let mut groups = Vec::new();
    for target in targets {
        let (mut shape, rank) = alone(target);
        let Some((parent, set, slot)) = role(&target.module) else {
            groups.push((shape, rank));
            continue;
        };
        shape.outs = [0; 3];
        let key = (parent, set, target.input, target.layers);
        let alike = together.entry(key).or_default();
        // Layers of two widths give two of a kind, which are two groups.
        match alike.iter_mut().find(|(shape, _)| shape.outs[slot] == 0) {
            Some((shape, largest)) => {
                shape.outs[slot] = target.out;
                *largest = rank.max(*largest);
            }
            None => {
                shape.outs[slot] = target.out;
                alike.push((shape, rank));
            }
        }
    }
    groups.extend(together.into_values().flatten());
    groups
}

/// Parent, set of names and place among q, k, v of a module that is one of them.
fn role(module: &str) -> Option<(&str, usize, usize)> {
    let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
    let (set, slot) = in_joint_set(last)?;
    Some((parent, set, slot))
}
