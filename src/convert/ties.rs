//! Finding the tied adapter whose factors a LoRA holds.
//!
//! Exporting a tied adapter writes, for each layer, A' = diag(u_l)·A and B' = diag(v_l)·B, rounded
//! to the file's dtype. Row k of all A' is then one row times a number for each layer, up to that
//! rounding; likewise the rows of B'. A LoRA that was trained untied has no such rows: its layers
//! differ in direction by far more than any rounding.

use std::collections::BTreeMap;

use crate::adapter::{Adapter, Factor, ModuleKind, Scaling, TieGroup};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::tensor::worst::is_within;
use crate::tensor::{Dtype, Tensor};

/// Units of roundoff that a row may be off the common row: one from the export's product, one from
/// narrowing, and the errors of the common row and of the multiplier themselves.
const TOLERANCE_UNITS: f64 = 8.0;

/// Replaces each stacked group whose layers share their rows by the tied group they came from, and
/// joins groups that share A and u into one group with several targets, as the paper has q, k, v.
///
/// Groups that are not tied stay as they are, bit for bit.
///
/// # Errors
/// [`Code::DtypeNotAllowed`] for factors that are not floats.
pub fn recover_ties(adapter: &Adapter) -> Result<Adapter> {
    let mut groups = Vec::with_capacity(adapter.groups.len());
    for group in &adapter.groups {
        groups.push(recover_group(group)?.unwrap_or_else(|| group.clone()));
    }
    let mut out = Adapter {
        groups: join_groups(groups)?,
        ..adapter.clone()
    };
    out.sort();
    Ok(out)
}

/// The tied form of one group, where it has one.
fn recover_group(group: &TieGroup) -> Result<Option<TieGroup>> {
    let mut mixed = group.core.is_some() || group.u.is_some() || group.v.is_some();
    // What the experts of a layer share has an axis of its own.
    mixed |= group.experts.is_some()
        && [&group.a, &group.b].iter().any(|f| {
            let shape = f.tensor.shape();
            shape.len() == 3 && shape.first() != Some(&group.instances())
        });
    if group.is_tied() || group.instances() < 2 || mixed {
        return Ok(None);
    }
    let (layers, r) = (group.instances(), group.rank);
    let Some(a) = common_rows(&group.a.tensor, layers)? else {
        return Ok(None);
    };
    let Some(b) = common_rows(&group.b.tensor, layers)? else {
        return Ok(None);
    };
    let (u, v) = (
        a.multipliers(layers, r)?,
        b.multipliers(layers, group.total_out())?,
    );
    Ok(Some(TieGroup {
        a: a.rows,
        b: b.rows,
        u,
        v,
        ..group.clone()
    }))
}

/// Rows that all layers share, and each layer's multiplier of each row.
struct CommonRows {
    rows: Factor,
    /// layers × rows; `None` where all are one.
    scales: Option<Vec<f32>>,
}

impl CommonRows {
    fn multipliers(&self, layers: usize, rows: usize) -> Result<Option<Factor>> {
        let tensor = |s: &Vec<f32>| Tensor::from_f32(vec![layers, rows], s).map(Factor::trained);
        self.scales.as_ref().map(tensor).transpose()
    }
}

fn common_rows(factor: &Tensor, layers: usize) -> Result<Option<CommonRows>> {
    let (rows, columns) = match factor.shape() {
        [_, _] => {
            return Ok(Some(CommonRows {
                rows: Factor::trained(factor.clone()),
                scales: None,
            }));
        }
        [_, rows, columns] => (*rows, *columns),
        _ => {
            return Err(Error::new(
                Code::ShapeDisagrees,
                "a factor has two or three axes",
            ));
        }
    };
    let tolerance = TOLERANCE_UNITS * factor.dtype().unit_roundoff();
    let floor = smallest_step(factor.dtype());
    let values = factor.to_f32()?;
    let mut common = vec![0f32; rows * columns];
    let mut scales = vec![1f32; layers * rows];
    for row in 0..rows {
        let of_layer = |l: usize| &values[(l * rows + row) * columns..][..columns];
        let Some((direction, multipliers)) =
            common_row(&of_layer, layers, columns, tolerance, floor)
        else {
            return Ok(None);
        };
        common[row * columns..][..columns].copy_from_slice(&direction);
        for (l, s) in multipliers.into_iter().enumerate() {
            scales[l * rows + row] = s;
        }
    }
    // Identical layers were kept once before this; only multipliers can still differ from one.
    let rows = Factor::trained(Tensor::from_f32(vec![rows, columns], &common)?);
    Ok(Some(CommonRows {
        rows,
        scales: scales.iter().any(|s| *s != 1.0).then_some(scales),
    }))
}

/// Half the distance of the numbers next to zero: what rounding can lose of a tiny value.
fn smallest_step(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => f64::powi(2.0, -25),
        _ => f64::from(f32::MIN_POSITIVE),
    }
}

/// One row in all layers as direction times multiplier, or `None` where the layers differ.
///
/// The layer with the largest row sets the gauge (its multiplier is 1); the direction is then the
/// least-squares mean over all layers, so that rounding errors average out.
fn common_row<'v>(
    of_layer: &impl Fn(usize) -> &'v [f32],
    layers: usize,
    columns: usize,
    tolerance: f64,
    floor: f64,
) -> Option<(Vec<f32>, Vec<f32>)> {
    let dot =
        |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum() };
    let norm = |a: &[f32]| -> f64 { a.iter().map(|x| f64::from(*x) * f64::from(*x)).sum() };
    let norms: Vec<f64> = (0..layers).map(|l| norm(of_layer(l))).collect();
    let largest = (0..layers).fold(0, |best, l| if norms[l] > norms[best] { l } else { best });
    if norms[largest] == 0.0 {
        return Some((vec![0.0; columns], vec![1.0; layers]));
    }
    let gauge: Vec<f64> = of_layer(largest).iter().map(|x| f64::from(*x)).collect();
    let raw: Vec<f64> = (0..layers)
        .map(|l| dot(of_layer(l), &gauge) / norms[largest])
        .collect();
    let weight: f64 = raw.iter().map(|s| s * s).sum();
    let mut mean = vec![0f64; columns];
    for (l, s) in raw.iter().enumerate() {
        for (m, x) in mean.iter_mut().zip(of_layer(l)) {
            *m += s * f64::from(*x) / weight;
        }
    }
    let direction: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
    let wide: Vec<f64> = direction.iter().map(|x| f64::from(*x)).collect();
    let square: f64 = wide.iter().map(|x| x * x).sum();
    let mut multipliers = Vec::with_capacity(layers);
    for (l, norm) in norms.iter().enumerate() {
        let row = of_layer(l);
        let s = (dot(row, &wide) / square) as f32;
        let off: f64 = row
            .iter()
            .zip(&wide)
            .map(|(x, d)| (f64::from(*x) - f64::from(s) * d).powi(2))
            .sum();
        let most = tolerance * norm.sqrt() + floor * (columns as f64).sqrt();
        if !is_within(off.sqrt(), most) {
            return None;
        }
        multipliers.push(s);
    }
    Some((direction, multipliers))
}

/// The order of targets in a joint group: q, k, v first, as the paper stacks B's rows.
const TARGET_ORDER: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// Joins groups with the same layers, A, u and scaling. Their B and v follow one another.
fn join_groups(groups: Vec<TieGroup>) -> Result<Vec<TieGroup>> {
    let mut families: Vec<Vec<TieGroup>> = Vec::new();
    let mut places: BTreeMap<JoinKey, usize> = BTreeMap::new();
    for group in groups {
        // By key, not pair by pair: an adapter may have tens of thousands of groups.
        let place = match join_key(&group) {
            Some(key) => *places.entry(key).or_insert(families.len()),
            None => families.len(),
        };
        match families.get_mut(place) {
            Some(family) => family.push(group),
            None => families.push(vec![group]),
        }
    }
    families.into_iter().map(join_family).collect()
}

/// Dtype, shape and digest: equal for tensors of equal bytes.
type Content = (Dtype, Vec<usize>, Digest);

/// What groups that may be joined have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct JoinKey {
    layers: Vec<u32>,
    shape: (usize, usize, Scaling),
    a: Content,
    b: (usize, Dtype),
    u: Option<(Content, bool)>,
    v: Option<Dtype>,
}

/// `None` for a group that is joined with no other.
fn join_key(group: &TieGroup) -> Option<JoinKey> {
    let content = |t: &Tensor| (t.dtype(), t.shape().to_vec(), Digest::of(t.data()));
    let layers = group.layers.clone()?;
    let b = &group.b.tensor;
    let linear = group.targets.iter().all(|t| t.kind == ModuleKind::Linear);
    if !linear || group.core.is_some() || b.shape().iter().rev().nth(1) != Some(&group.total_out())
    {
        return None;
    }
    Some(JoinKey {
        layers,
        shape: (group.rank, group.in_features, group.scaling),
        a: content(&group.a.tensor),
        b: (b.shape().len(), b.dtype()),
        u: group.u.as_ref().map(|u| (content(&u.tensor), u.trained)),
        v: group.v.as_ref().map(|v| v.tensor.dtype()),
    })
}

fn join_family(mut family: Vec<TieGroup>) -> Result<TieGroup> {
    let place = |g: &TieGroup| {
        let module = g.targets[0].module.clone();
        let last = module
            .rsplit('.')
            .next()
            .and_then(|l| TARGET_ORDER.iter().position(|t| *t == l));
        (last.unwrap_or(TARGET_ORDER.len()), module)
    };
    family.sort_by_key(place);
    if family.len() == 1 {
        return Ok(family.swap_remove(0));
    }
    let first = family[0].clone();
    let b: Vec<&Tensor> = family.iter().map(|g| &g.b.tensor).collect();
    let v: Vec<&Tensor> = family
        .iter()
        .filter_map(|g| g.v.as_ref().map(|v| &v.tensor))
        .collect();
    let b_axis = usize::from(first.b.tensor.shape().len() == 3);
    let b = Factor {
        tensor: concat_outputs(&b, b_axis)?,
        ..first.b.clone()
    };
    let v = match &first.v {
        Some(factor) => Some(Factor {
            tensor: concat_outputs(&v, 1)?,
            ..factor.clone()
        }),
        None => None,
    };
    let targets = family.iter().flat_map(|g| g.targets.clone()).collect();
    Ok(TieGroup {
        b,
        v,
        targets,
        ..first
    })
}

/// Concatenates along the output axis: `axis` 0 of a B (out, r); `axis` 1 of a stacked B
/// (layers, out, r) or of v (layers, out).
fn concat_outputs(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let first = parts[0];
    let mut shape = first.shape().to_vec();
    shape[axis] = parts.iter().map(|p| p.shape()[axis]).sum();
    let mut data = Vec::new();
    for outer in 0..if axis == 0 { 1 } else { first.shape()[0] } {
        for part in parts {
            let size = part.data().len() / if axis == 0 { 1 } else { part.shape()[0] };
            data.extend_from_slice(&part.data()[outer * size..(outer + 1) * size]);
        }
    }
    Tensor::new(first.dtype(), shape, data)
}
