use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::delta_error;
use super::factored::ratio;
use crate::adapter::{Adapter, Module};
use crate::error::Result;
use crate::tensor::Tensor;

/// What two adapters do differently.
#[derive(Debug, Clone, Serialize)]
pub struct AdaptersReport {
    /// One line for each target: the modules of one name in all layers.
    pub targets: Vec<TargetReport>,
    /// Full tensors (biases, saved modules, magnitudes) that differ.
    pub extras: Vec<ExtraReport>,
    /// Modules and full tensors that only the first adapter has.
    pub only_in_one: Vec<String>,
    /// Modules and full tensors that only the second adapter has.
    pub only_in_two: Vec<String>,
    /// Modules compared.
    pub modules: usize,
    /// Largest relative error of any module, and of the full tensors.
    pub max_relative: f64,
}

/// The difference of one target over its layers.
#[derive(Debug, Clone, Serialize)]
pub struct TargetReport {
    /// Module name with `{}` for the layer.
    pub target: String,
    /// Modules compared.
    pub modules: usize,
    /// ‖ΔW₁‖ over all of them.
    pub norm: f64,
    /// ‖ΔW₁ − ΔW₂‖ over ‖ΔW₁‖, all layers together.
    pub relative: f64,
    /// Largest relative error of one module.
    pub max_relative: f64,
    /// The module that has it.
    pub worst: String,
    /// Largest |ΔW₁ − ΔW₂| of one element.
    pub max_abs: f64,
}

/// The difference of one full tensor.
#[derive(Debug, Clone, Serialize)]
pub struct ExtraReport {
    /// The base tensor's name.
    pub name: String,
    /// Largest difference of one element; infinite where dtype-independent comparison is impossible.
    pub max_abs: f64,
    /// ‖difference‖ over ‖first‖.
    pub relative: f64,
}

/// Magnitudes of a DoRA by module path.
pub type Magnitudes = BTreeMap<String, Tensor>;

/// Compares two adapters module by module, in factored form.
///
/// # Errors
/// [`crate::Code::ShapeDisagrees`] where a module has different shapes.
pub fn verify_adapters(
    one: (&Adapter, &Magnitudes),
    two: (&Adapter, &Magnitudes),
) -> Result<AdaptersReport> {
    let places = |a: &Adapter| -> BTreeMap<String, Module> {
        a.modules()
            .into_iter()
            .map(|m| (m.path.clone(), m))
            .collect()
    };
    let (first, second) = (places(one.0), places(two.0));
    let mut targets: BTreeMap<String, Sum> = BTreeMap::new();
    let mut modules = 0;
    for (path, m) in &first {
        let Some(n) = second.get(path) else { continue };
        let group = &one.0.groups[m.group];
        let before = group.low_rank(m.layer, m.target)?;
        let after = two.0.groups[n.group].low_rank(n.layer, n.target)?;
        let error = delta_error(&before, &after).map_err(|e| e.tensor(path))?;
        let sum = targets
            .entry(group.targets[m.target].module.clone())
            .or_default();
        sum.modules += 1;
        sum.square += error.frobenius.powi(2);
        sum.norm += error.norm.powi(2);
        sum.max_abs = sum.max_abs.max(error.max_abs);
        if sum.worst.is_empty() || error.relative > sum.max_relative {
            sum.max_relative = error.relative;
            sum.worst = path.clone();
        }
        modules += 1;
    }
    let targets: Vec<TargetReport> = targets.into_iter().map(Sum::finish).collect();
    let (tensors_one, tensors_two) = (full_tensors(one), full_tensors(two));
    let mut extras = Vec::new();
    for (name, a) in &tensors_one {
        let Some(b) = tensors_two.get(name) else {
            continue;
        };
        extras.extend(compare_tensors(name, a, b)?);
    }
    let mut names = [BTreeSet::new(), BTreeSet::new()];
    names[0].extend(first.into_keys().chain(tensors_one.into_keys()));
    names[1].extend(second.into_keys().chain(tensors_two.into_keys()));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
    let largest = targets
        .iter()
        .map(|t| t.max_relative)
        .chain(extras.iter().map(|e| e.relative));
    Ok(AdaptersReport {
        max_relative: largest.fold(0.0, f64::max),
        only_in_one: only(&names[0], &names[1]),
        only_in_two: only(&names[1], &names[0]),
        targets,
        extras,
        modules,
    })
}

impl AdaptersReport {
    /// Whether both adapt the same modules, within a relative error.
    pub fn is_equal(&self, tolerance: f64) -> bool {
        self.only_in_one.is_empty() && self.only_in_two.is_empty() && self.max_relative <= tolerance
    }
}

#[derive(Default)]
struct Sum {
    modules: usize,
    square: f64,
    norm: f64,
    max_relative: f64,
    worst: String,
    max_abs: f64,
}

impl Sum {
    fn finish((target, sum): (String, Self)) -> TargetReport {
        TargetReport {
            target,
            modules: sum.modules,
            norm: sum.norm.sqrt(),
            relative: ratio(sum.square.sqrt(), sum.norm.sqrt()),
            max_relative: sum.max_relative,
            worst: sum.worst,
            max_abs: sum.max_abs,
        }
    }
}

fn full_tensors((adapter, magnitudes): (&Adapter, &Magnitudes)) -> BTreeMap<String, Tensor> {
    let extras = adapter
        .extras
        .iter()
        .map(|e| (e.name.clone(), e.tensor.clone()));
    let magnitudes = magnitudes
        .iter()
        .map(|(path, t)| (format!("{path}.lora_magnitude_vector"), t.clone()));
    extras.chain(magnitudes).collect()
}

/// The difference of two full tensors, where they differ at all.
fn compare_tensors(name: &str, a: &Tensor, b: &Tensor) -> Result<Option<ExtraReport>> {
    if a.same_bytes(b) {
        return Ok(None);
    }
    let report = |max_abs, relative| {
        Ok(Some(ExtraReport {
            name: name.to_owned(),
            max_abs,
            relative,
        }))
    };
    if a.shape() != b.shape() {
        return report(f64::INFINITY, f64::INFINITY);
    }
    let (mut square, mut norm, mut max_abs) = (0.0, 0.0, 0.0f64);
    for (x, y) in a.to_f32()?.into_iter().zip(b.to_f32()?) {
        let d = f64::from(x) - f64::from(y);
        square += d * d;
        norm += f64::from(x).powi(2);
        max_abs = max_abs.max(d.abs());
    }
    report(max_abs, ratio(square.sqrt(), norm.sqrt()))
}
