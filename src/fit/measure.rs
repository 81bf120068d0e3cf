//! How far a tie group, as it is stored, is from the updates it stands for.

use faer::Mat;
use rayon::prelude::*;

use super::solver::basis::Basis;
use crate::adapter::error::{left_columns, right_columns};
use crate::adapter::{Factor, LowRank, TieGroup};
use crate::error::Result;

/// ‖ΔW_l − ΔW_l'‖²_F of every layer, over all targets, of the factors as they are stored.
///
/// As [`crate::adapter::delta_error`] without its search for the largest element, which costs out × in; in
/// bases of A and B, which all layers share. The products u·A and v·B are not rounded here: rounded in
/// each layer, it leaves the span of A, and could pass below the bound by the last digit of f32.
pub(super) fn measure(updates: &[Vec<LowRank>], group: &TieGroup) -> Result<Vec<f64>> {
    let stored = Stored::of(group)?;
    let shared = match stored.v {
        Some(_) => None,
        None => Some(stored.outputs(None)),
    };
    let of_layer = |(l, targets): (usize, &Vec<LowRank>)| -> f64 {
        let own;
        let outputs = match &shared {
            Some(shared) => shared,
            None => {
                own = stored.outputs(Some(l));
                &own
            }
        };
        let pairs = targets.iter().zip(outputs);
        pairs
            .map(|(before, side)| stored.off(l, before, side))
            .sum()
    };
    Ok(updates.par_iter().enumerate().map(of_layer).collect())
}

/// An orthonormal basis of a factor's columns, and the factor in it (basis × R).
type Side = (Basis, Mat<f64>);

/// A tie group's numbers.
struct Stored<'g> {
    group: &'g TieGroup,
    a: Side,
    b: Vec<f32>,
    u: Option<Vec<f32>>,
    v: Option<Vec<f32>>,
    core: Option<Vec<f32>>,
}

impl<'g> Stored<'g> {
    fn of(group: &'g TieGroup) -> Result<Self> {
        let values = |f: &Option<Factor>| f.as_ref().map(|f| f.tensor.to_f32()).transpose();
        let (a, n) = (group.a.tensor.to_f32()?, group.in_features);
        let columns = Mat::from_fn(n, group.rank, |j, k| f64::from(a[k * n + j]));
        Ok(Self {
            group,
            a: Basis::of(&columns),
            b: group.b.tensor.to_f32()?,
            u: values(&group.u)?,
            v: values(&group.v)?,
            core: values(&group.core)?,
        })
    }

    /// B of every target, in one layer times its v.
    fn outputs(&self, layer: Option<usize>) -> Vec<Side> {
        let (r, total) = (self.group.rank, self.group.total_out());
        let v = match (&self.v, layer) {
            (Some(v), Some(l)) => Some(&v[l * total..(l + 1) * total]),
            _ => None,
        };
        let mut first = 0;
        let of_target = |out: usize| {
            let rows = first..first + out;
            first = rows.end;
            let scaled = |i: usize, k: usize| {
                let i = rows.start + i;
                v.map_or(1.0, |v| f64::from(v[i])) * f64::from(self.b[i * r + k])
            };
            Basis::of(&Mat::from_fn(out, r, scaled))
        };
        self.group
            .targets
            .iter()
            .map(|t| t.out)
            .map(of_target)
            .collect()
    }

    /// The update of one layer and target in the bases of its B and of A.
    fn small(&self, layer: usize, b: &Mat<f64>) -> Mat<f64> {
        let (r, a) = (self.group.rank, &self.a.1);
        if let Some(core) = &self.core {
            let own = |k, i| f64::from(core[(layer * r + k) * r + i]);
            return b * Mat::from_fn(r, r, own) * a.transpose();
        }
        let u = |k: usize| self.u.as_ref().map_or(1.0, |u| f64::from(u[layer * r + k]));
        // Triplets use few columns in a layer.
        let used: Vec<usize> = (0..r).filter(|k| u(*k) != 0.0).collect();
        let left = Mat::from_fn(b.nrows(), used.len(), |i, k| b[(i, used[k])]);
        let right = Mat::from_fn(used.len(), a.nrows(), |k, j| u(used[k]) * a[(j, used[k])]);
        left * right
    }

    /// ‖ΔW_l − ΔW_l'‖²_F of one target.
    fn off(&self, layer: usize, before: &LowRank, (basis, b): &Side) -> f64 {
        let left = basis.coordinates(left_columns(&[(before, 1.0)]));
        let right = self.a.0.coordinates(right_columns(&[before]));
        let mut difference = left * right.transpose();
        let after = self.small(layer, b);
        let common = difference.as_mut();
        let mut common = common.submatrix_mut(0, 0, after.nrows(), after.ncols());
        common -= &after;
        difference.squared_norm_l2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Target;
    use crate::adapter::delta_error;
    use crate::fit::tests::{module, values};
    use crate::tensor::Tensor;

    /// A tie group of q and k over two layers; ranks above out and in are among those that files have.
    fn tied(rank: usize, (u, v, core): (bool, bool, bool)) -> TieGroup {
        let (n, outs) = (14, [9, 5]);
        let total = outs.iter().sum::<usize>();
        let factor = |on: bool, shape: Vec<usize>, values: Vec<f32>| {
            on.then(|| Factor::trained(Tensor::from_f32(shape, &values).unwrap()))
        };
        let mut us = values(2 * rank, 1, 1);
        us[rank..].iter_mut().step_by(2).for_each(|u| *u = 0.0);
        let group = module(
            "q",
            0,
            &values(rank * n, 1, 2),
            &values(total * rank, 1, 3),
            rank,
        );
        let target = |(name, out): (&str, usize)| Target {
            module: format!("h.{{}}.{name}"),
            out,
            ..group.targets[0].clone()
        };
        TieGroup {
            layers: Some(vec![0, 1]),
            targets: ["q", "k"].into_iter().zip(outs).map(target).collect(),
            u: factor(u, vec![2, rank], us),
            v: factor(v, vec![2, total], values(2 * total, 1, 4)),
            core: factor(core, vec![2, rank, rank], values(2 * rank * rank, 1, 5)),
            ..group
        }
    }

    #[test]
    fn the_distance_is_that_of_the_products_in_full() {
        let before = |name, out: usize, layer: u8| {
            let (a, b) = (values(3 * 14, 2, layer), values(out * 3, 2, layer + 50));
            let lora = module(name, 0, &a, &b, 3);
            lora.low_rank(0, 0).unwrap()
        };
        let updates: Vec<Vec<LowRank>> = (0..2)
            .map(|l| vec![before("q", 9, l), before("k", 5, l + 10)])
            .collect();
        let forms = [
            (true, false, false),
            (true, true, false),
            (false, false, true),
            (false, false, false),
        ];
        for (rank, form) in [1, 4, 12, 20]
            .into_iter()
            .flat_map(|r| forms.map(|f| (r, f)))
        {
            let group = tied(rank, form);
            for (l, found) in measure(&updates, &group).unwrap().into_iter().enumerate() {
                let off = |t: usize| {
                    let after = group.low_rank(l, t).unwrap();
                    delta_error(&updates[l][t], &after)
                        .unwrap()
                        .frobenius
                        .powi(2)
                };
                let right = off(0) + off(1);
                assert!(
                    (found / right - 1.0).abs() < 1e-6,
                    "{rank} {form:?} {found} {right}"
                );
            }
        }
    }
}
