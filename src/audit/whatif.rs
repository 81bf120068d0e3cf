//! What an adapter would take in other forms, and what that costs in quality.

use std::collections::BTreeMap;

use serde::Serialize;

use super::row::{Row, Target};
use crate::adapter::{Method, Part, Shape};
use crate::base::modules::QKV;
use crate::tensor::{Dtype, larger};

/// What a form does to the adapter's quality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Quality {
    /// Every number stays what it is.
    Exact,
    /// Every number is rounded to nearest; `bound` is the largest relative error of one that
    /// neither overflows nor is subnormal in the new type.
    Rounded {
        /// Unit roundoff.
        bound: f64,
    },
    /// The closest tied adapter at the same rank, found by fitting.
    Fitted {
        /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over the fitted modules; of several adapters the largest.
        error: f64,
    },
    /// The adapter has to be trained anew.
    Retrain {
        /// Error against the present adapter; `None`: not measured.
        error: Option<f64>,
    },
}

impl Quality {
    /// What is known of both.
    pub(super) fn worst(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fitted { error: a }, Self::Fitted { error: b }) => Self::Fitted {
                error: larger(a, b),
            },
            _ => self,
        }
    }
}

/// What one adapter takes in one form.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// `thin`, `zstd`, `fp16`, `bf16`, `fit`, or a method: `vera`, `tl1` … `tl6`.
    pub name: &'static str,
    /// Whether q, k and v share one A, as in the paper.
    pub joint: bool,
    /// Bytes of the adapter and of what stays beside it.
    pub bytes: u64,
    /// Bytes that it takes less than now; negative where it takes more.
    pub saving: i64,
    /// Of the saving, what rests on the presumption that projections are what their seed makes.
    pub presumed: u64,
    /// Numbers trained (retraining only).
    pub parameters: Option<u64>,
    /// What it does to the adapter's quality.
    pub quality: Quality,
}

/// Bytes that the header of a `.tl` with so many tensors takes at most, about.
pub fn header_bytes(tensors: u64) -> u64 {
    1024 + 512 * tensors
}

/// Every scenario that applies to a row whose waste is known.
pub(super) fn scenarios(row: &Row) -> Vec<Scenario> {
    let mut found = Vec::new();
    let mut add = |name, joint, bytes: u64, presumed, parameters, quality| {
        found.push(Scenario {
            name,
            joint,
            bytes,
            saving: signed(row.bytes, bytes),
            presumed,
            parameters,
            quality,
        });
    };
    if row.error.is_some() || row.parameters.is_none() || row.adapter_bytes > row.bytes {
        return found;
    }
    let waste = row.waste;
    let thin = row.bytes.saturating_sub(waste.lossless());
    add("thin", false, thin, waste.presumed, None, Quality::Exact);
    if let Some((raw, packed)) = row.facts.packed {
        let bytes = row.bytes.saturating_sub(raw).saturating_add(packed);
        add("zstd", false, bytes, 0, None, Quality::Exact);
    }
    if waste.dtype > 0 {
        for (name, dtype) in [("fp16", Dtype::F16), ("bf16", Dtype::BF16)] {
            let bound = dtype.unit_roundoff();
            let bytes = thin.saturating_sub(waste.dtype);
            let quality = Quality::Rounded { bound };
            add(name, false, bytes, waste.presumed, None, quality);
        }
    }
    let facts = &row.facts;
    for fit in &facts.fits {
        let bytes = fit.bytes.saturating_add(facts.kept);
        let quality = Quality::Fitted { error: fit.error };
        add("fit", fit.joint, bytes, 0, None, quality);
    }
    let error = None;
    for joint in [false, true] {
        // A LoRA is another adapter only where q, k and v then share A.
        let methods = Method::PRESETS.into_iter();
        for method in methods.filter(|m| joint || *m != Method::Lora) {
            let Some(retrained) = retrained(&facts.targets, method, joint) else {
                continue;
            };
            let weights = retrained.parameters.saturating_mul(facts.bits) / 8;
            let bytes = [
                weights,
                header_bytes(retrained.tensors),
                facts.extra_bytes,
                facts.kept,
            ]
            .into_iter()
            .fold(0u64, u64::saturating_add);
            let parameters = Some(retrained.parameters);
            let quality = Quality::Retrain { error };
            add(method.name(), joint, bytes, 0, parameters, quality);
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
pub struct Retrained {
    /// Numbers trained, each tied tensor once.
    pub parameters: u64,
    /// Tensors that a `.tl` names, frozen ones too.
    pub tensors: u64,
}

/// Numbers that `method` would train on these targets, each at its own rank, A and B tied over its
/// layers; with `joint`, q, k and v of the same input and layers share one A. `None` where there
/// is no target, or a count is beyond the limits of an adapter.
pub fn retrained(targets: &[Target], method: Method, joint: bool) -> Option<Retrained> {
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
        let vectors = |p: &&Part| matches!(p, Part::U | Part::V);
        total.tensors += 2 + method.trains()?.iter().filter(vectors).count() as u64;
    }
    (!groups.is_empty()).then_some(total)
}

fn alone(target: &Target) -> (Shape, u64) {
    let shape = Shape {
        layers: target.layers,
        input: target.input,
        outs: [target.out, 0, 0],
    };
    (shape, target.rank)
}

/// Targets with q, k and v of one parent, input and number of layers put together; their rank is
/// the largest of the three.
fn joined(targets: &[Target]) -> Vec<(Shape, u64)> {
    let mut together: BTreeMap<_, Vec<(Shape, u64)>> = BTreeMap::new();
    let mut groups = Vec::new();
    for target in targets {
        let (mut shape, rank) = alone(target);
        let Some((parent, family, slot)) = role(&target.module) else {
            groups.push((shape, rank));
            continue;
        };
        shape.outs = [0; 3];
        let key = (parent, family, target.input, target.layers);
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

/// Parent, architecture and place among q, k, v of a module that is one of them.
fn role(module: &str) -> Option<(&str, usize, usize)> {
    let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
    QKV.iter().enumerate().find_map(|(family, names)| {
        let slot = names.iter().position(|n| *n == last)?;
        Some((parent, family, slot))
    })
}
