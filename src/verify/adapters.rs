//! Two adapters, compared by what they do to each module.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::adapter::delta_error;
use crate::adapter::error::{DeltaError, ratio};
use crate::adapter::{Adapter, ExtraRole, Module, TieGroup};
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::worst::{Worst, is_within, larger};

/// What two adapters do differently.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
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
    /// Largest relative error of any module, and of the full tensors; NaN where one is.
    pub max_relative: f64,
    /// The module or full tensor that has it; empty where nothing was compared.
    pub worst: String,
    /// Modules and full tensors of which a value, a norm or the error is not finite, in either
    /// adapter. Such adapters are not equal, whatever the tolerance.
    pub not_finite: usize,
}

/// The difference of one target over its layers.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TargetReport {
    /// Module name with `{}` for the layer.
    pub target: String,
    /// Modules compared.
    pub modules: usize,
    /// ‖ΔW₁‖ over all of them.
    pub norm: f64,
    /// ‖ΔW₁ − ΔW₂‖ over ‖ΔW₁‖, all layers together.
    pub relative: f64,
    /// Largest relative error of one module; NaN where one is.
    pub max_relative: f64,
    /// The module that has it.
    pub worst: String,
    /// Largest |ΔW₁ − ΔW₂| of one element; NaN where one is.
    pub max_abs: f64,
    /// Modules of which a value, a norm or the error is not finite.
    pub not_finite: usize,
}

/// The difference of one full tensor, or that it has values that are not finite.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ExtraReport {
    /// The base tensor's name.
    pub name: String,
    /// Largest difference of one element; infinite where dtype-independent comparison is impossible,
    /// NaN where a value is not finite.
    pub max_abs: f64,
    /// ‖difference‖ over ‖first‖; as `max_abs`.
    pub relative: f64,
}

/// Magnitudes of a DoRA by module path.
pub type Magnitudes = BTreeMap<String, Tensor>;

/// Compares two adapters module by module, in factored form.
///
/// What is not finite equals nothing, itself included: a NaN or an infinity in a factor, a norm or
/// an error makes the two different.
///
/// # Errors
/// [`crate::Code::ShapeDisagrees`] where a module has different shapes.
pub fn verify_adapters(
    one: (&Adapter, &Magnitudes),
    two: (&Adapter, &Magnitudes),
) -> Result<AdaptersReport> {
    let places = |a: &Adapter| -> BTreeMap<String, Module> {
        a.modules().into_iter().map(|m| (m.label(), m)).collect()
    };
    let (first, second) = (places(one.0), places(two.0));
    let spare = [spare_values(one.0)?, spare_values(two.0)?];
    let mut targets: BTreeMap<String, TargetSum> = BTreeMap::new();
    let mut worst = Worst::default();
    let mut modules = 0;
    for (path, m) in &first {
        let Some(n) = second.get(path) else { continue };
        let group = &one.0.groups[m.group];
        let before = group.low_rank(m.layer, m.target)?;
        let after = two.0.groups[n.group].low_rank(n.layer, n.target)?;
        let mut error = delta_error(&before, &after).map_err(|e| e.tensor(path))?;
        if !(spare[0][m.group] && spare[1][n.group]) {
            error = DeltaError::UNKNOWN;
        }
        let target = group.targets[m.target].module.clone();
        targets.entry(target).or_default().add(path, &error);
        modules += 1;
    }
    let targets: Vec<TargetReport> = targets.into_iter().map(TargetSum::finish).collect();
    for t in &targets {
        worst.add(&t.worst, t.max_relative);
    }
    let (tensors_one, tensors_two) = (full_tensors(one), full_tensors(two));
    let mut extras = Vec::new();
    for (name, a) in &tensors_one {
        let Some(b) = tensors_two.get(name) else {
            continue;
        };
        if let Some(report) = compare_tensors(name, a, b)? {
            worst.add(name, report.relative);
            extras.push(report);
        }
    }
    let mut names = [BTreeSet::new(), BTreeSet::new()];
    names[0].extend(first.into_keys().chain(tensors_one.into_keys()));
    names[1].extend(second.into_keys().chain(tensors_two.into_keys()));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
    Ok(AdaptersReport {
        max_relative: worst.error,
        worst: worst.place,
        not_finite: targets.iter().map(|t| t.not_finite).sum::<usize>()
            + extras.iter().filter(|e| e.relative.is_nan()).count(),
        only_in_one: only(&names[0], &names[1]),
        only_in_two: only(&names[1], &names[0]),
        targets,
        extras,
        modules,
    })
}

impl AdaptersReport {
    /// Whether both adapt the same modules, within a relative error, and all numbers are finite.
    pub fn is_equal(&self, tolerance: f64) -> bool {
        self.only_in_one.is_empty()
            && self.only_in_two.is_empty()
            && self.not_finite == 0
            && is_within(self.max_relative, tolerance)
    }
}

/// The modules of one target.
#[derive(Default)]
struct TargetSum {
    modules: usize,
    square: f64,
    norm: f64,
    max_abs: f64,
    worst: Worst,
    not_finite: usize,
}

impl TargetSum {
    fn add(&mut self, path: &str, error: &DeltaError) {
        self.modules += 1;
        self.square += error.frobenius.powi(2);
        self.norm += error.norm.powi(2);
        self.max_abs = larger(self.max_abs, error.max_abs);
        // An infinite relative error of finite numbers is no NaN: the first has no update here.
        let all = DeltaError {
            relative: 0.0,
            ..*error
        };
        let is_known = all.is_finite() && !error.relative.is_nan();
        self.not_finite += usize::from(!is_known);
        let relative = if is_known { error.relative } else { f64::NAN };
        self.worst.add(path, relative);
    }

    fn finish((target, sum): (String, Self)) -> TargetReport {
        TargetReport {
            target,
            modules: sum.modules,
            norm: sum.norm.sqrt(),
            relative: ratio(sum.square.sqrt(), sum.norm.sqrt()),
            max_relative: sum.worst.error,
            worst: sum.worst.place,
            max_abs: sum.max_abs,
            not_finite: sum.not_finite,
        }
    }
}

/// For each group, whether the columns of A and rows of B that no module uses are finite.
fn spare_values(adapter: &Adapter) -> Result<Vec<bool>> {
    let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
    let of_group = |g: &TieGroup| -> Result<bool> {
        let (a, b) = (&g.a.tensor, &g.b.tensor);
        let columns = a.shape().last().copied().unwrap_or(0);
        let rows = b.shape().iter().rev().nth(1).copied().unwrap_or(0);
        let (used, total) = (g.in_features, g.total_out());
        let a = match columns > used {
            true => a.to_f32()?,
            false => Vec::new(),
        };
        let b = match rows > total {
            true => b.to_f32()?,
            false => Vec::new(),
        };
        let mut a = a.chunks(columns.max(1)).filter_map(|row| row.get(used..));
        let rows = b.chunks((rows * g.rank).max(1));
        let mut b = rows.filter_map(|layer| layer.get(total * g.rank..));
        Ok(a.all(finite) && b.all(finite))
    };
    adapter.groups.iter().map(of_group).collect()
}

/// A tensor that is no factor, with what it does to the base.
type Full = (Option<(ExtraRole, Vec<u32>)>, Tensor);

fn full_tensors((adapter, magnitudes): (&Adapter, &Magnitudes)) -> BTreeMap<String, Full> {
    let extras = adapter.extras.iter().map(|e| {
        let does = Some((e.role, e.rows.clone()));
        (e.name.clone(), (does, e.tensor.clone()))
    });
    let magnitudes = magnitudes
        .iter()
        .map(|(path, t)| (format!("{path}.lora_magnitude_vector"), (None, t.clone())));
    extras.chain(magnitudes).collect()
}

/// Whether two extras of one name do the same to it, their values aside. What replaces all of a
/// tensor does so under every role for it.
fn same_effect(one: Option<&(ExtraRole, Vec<u32>)>, two: Option<&(ExtraRole, Vec<u32>)>) -> bool {
    use ExtraRole::{BaseLayer, Bias, Replace};
    match (one, two) {
        (Some((Replace | Bias | BaseLayer, _)), Some((Replace | Bias | BaseLayer, _))) => true,
        _ => one == two,
    }
}

/// The difference of two full tensors, where they differ at all or are not finite.
fn compare_tensors(name: &str, (does, a): &Full, (other, b): &Full) -> Result<Option<ExtraReport>> {
    let report = |max_abs, relative| {
        Ok(Some(ExtraReport {
            name: name.to_owned(),
            max_abs,
            relative,
        }))
    };
    if !same_effect(does.as_ref(), other.as_ref()) {
        return report(f64::INFINITY, f64::INFINITY);
    }
    if a.same_bytes(b) && !a.dtype().is_float() {
        return Ok(None);
    }
    let (one, two) = (a.to_f32()?, b.to_f32()?);
    if !one.iter().chain(&two).all(|x| x.is_finite()) {
        return report(f64::NAN, f64::NAN);
    }
    if a.same_bytes(b) {
        return Ok(None);
    }
    if a.shape() != b.shape() {
        return report(f64::INFINITY, f64::INFINITY);
    }
    let (mut square, mut norm, mut max_abs) = (0.0, 0.0, 0.0f64);
    for (x, y) in one.into_iter().zip(two) {
        let d = f64::from(x) - f64::from(y);
        square += d * d;
        norm += f64::from(x).powi(2);
        max_abs = larger(max_abs, d.abs());
    }
    report(max_abs, ratio(square.sqrt(), norm.sqrt()))
}

#[cfg(test)]
mod tests;
