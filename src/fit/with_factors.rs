//! A LoRA in the A and B that another adapter has.

use faer::Mat;

use super::measure::measure;
use super::modules::ModuleSet;
use super::options::{Budget, FitOptions};
use super::select::{Selection, select};
use super::solver::algebra::{gram, least_squares, product};
use super::solver::problem::singular_squares;
use crate::adapter::{Adapter, Factor, LowRank, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// A LoRA in the A and B of another adapter.
#[derive(Debug)]
#[non_exhaustive]
pub struct FitWithFactors {
    /// The adapter.
    pub adapter: Adapter,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over the modules that take A and B from the pair.
    pub error: f64,
    /// Number of these modules.
    pub modules: usize,
}

/// A LoRA in the A and B that another adapter has: u by least squares, so that nothing else with this
/// A and B is closer. Modules that the pair does not have stay as they are.
///
/// # Errors
/// [`Code::Usage`] where the pair has none of its modules; those of [`super::fit_adapter`].
pub fn fit_with_factors_of(tied: &Tied, pair: &Adapter) -> Result<FitWithFactors> {
    let joint = pair.groups.iter().any(|g| g.targets.len() > 1);
    let options = FitOptions {
        joint,
        // No tied group is of a lower rank: all modules with layers are fitted.
        ..FitOptions::new(Budget::Rank(0))
    };
    let Selection {
        sets,
        rest: mut adapter,
        ..
    } = select(tied, &options)?;
    let (mut square, mut modules) = ([0.0; 2], 0);
    for set in &sets {
        let fits = |g: &&TieGroup| {
            let pair = g.is_tied() && g.v.is_none() && g.targets == set.targets;
            pair && g.in_features == set.in_features()
        };
        let Some(group) = pair.groups.iter().find(fits) else {
            adapter.groups.extend(set.sources.iter().cloned());
            continue;
        };
        let (fitted, own) = fit_set_with(set, group)?;
        square = [square[0] + own[0], square[1] + own[1]];
        modules += set.sources.len();
        adapter.groups.push(fitted);
    }
    if square[1] == 0.0 {
        let message = "the pair has none of the adapter's modules, or they change nothing";
        return Err(Error::new(Code::Usage, message));
    }
    adapter.sort();
    adapter.validate()?;
    Ok(FitWithFactors {
        adapter,
        error: (square[0] / square[1]).sqrt(),
        modules,
    })
}

/// The tie group of a set of modules with a pair's A and B; its squared error and squared norm.
pub(super) fn fit_set_with(set: &ModuleSet, pair: &TieGroup) -> Result<(TieGroup, [f64; 2])> {
    let updates = set.updates()?;
    let group = project(set, &updates, pair)?;
    let off = measure(&updates, &group)?.iter().sum();
    let mut norm = 0.0;
    for layer in &updates {
        norm += singular_squares(layer)?.iter().sum::<f64>();
    }
    Ok((group, [off, norm]))
}

/// The tie group with a pair's A and B that is closest to a set's updates.
fn project(set: &ModuleSet, updates: &[Vec<LowRank>], pair: &TieGroup) -> Result<TieGroup> {
    let (r, n, out) = (pair.rank, pair.in_features, pair.total_out());
    let s = pair.scaling.factor(r);
    let (a, b) = (pair.a.tensor.to_f32()?, pair.b.tensor.to_f32()?);
    let a = Mat::from_fn(n, r, |j, k| f64::from(a[k * n + j]));
    let b = Mat::from_fn(out, r, |i, k| s * f64::from(b[i * r + k]));
    let mut rhs = Mat::<f64>::zeros(updates.len(), r);
    for (l, targets) in updates.iter().enumerate() {
        let mut row = 0;
        for m in targets {
            let left = Mat::from_fn(m.out, m.rank, |i, k| {
                m.scale * f64::from(m.left[i * m.rank + k])
            });
            let right = Mat::from_fn(m.rank, n, |k, j| f64::from(m.right[k * n + j]));
            let (lb, ra) = (left.transpose() * b.subrows(row, m.out), right * &a);
            for k in 0..r {
                rhs[(l, k)] += lb.col(k).transpose() * ra.col(k);
            }
            row += m.out;
        }
    }
    let curvature = product(&gram(&a), &gram(&b));
    let zero = Mat::zeros(updates.len(), r);
    let empty = || Error::new(Code::NonFinite, "the pair's A or B is zero or not finite");
    let u = least_squares(rhs, &curvature, &zero).ok_or_else(empty)?;
    let row = |l| (0..r).map(move |k| (l, k));
    let flat: Vec<f32> = (0..updates.len())
        .flat_map(row)
        .map(|at| u[at] as f32)
        .collect();
    Ok(TieGroup {
        layers: Some(set.layers.clone()),
        u: Some(Factor::trained(Tensor::from_f32(
            vec![updates.len(), r],
            &flat,
        )?)),
        // Whatever stood between the pair's A and B is its own.
        core: None,
        ..pair.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::super::fit_shared;
    use super::super::share::tests::{family_of_adapters, options, stranger};
    use super::super::tests::{module, tied, values};
    use super::*;

    /// Breaks where a new adapter of a pair is not found in it, or the projection is not the closest.
    #[test]
    fn a_new_adapter_is_projected_onto_a_pair() {
        let mut all = family_of_adapters(5, 4);
        let new = all.pop().unwrap();
        let found = fit_shared(&all, &options(4)).unwrap();
        let pair = &found.adapters[0].adapter;
        let FitWithFactors {
            adapter,
            error,
            modules,
        } = fit_with_factors_of(&new, pair).unwrap();
        assert_eq!(modules, 3);
        assert!(error < 1e-4, "{error}");
        let same = |part: fn(&TieGroup) -> &Factor| {
            part(&adapter.groups[0]).tensor.data().id() == part(&pair.groups[0]).tensor.data().id()
        };
        assert!(same(|g| &g.a) && same(|g| &g.b));
        let stranger = stranger();
        let FitWithFactors { adapter, error, .. } = fit_with_factors_of(&stranger, pair).unwrap();
        assert!(error > 0.3 && error <= 1.0, "{error}");
        let options = FitOptions::new(Budget::Rank(0));
        let updates = select(&stranger, &options).unwrap().sets[0]
            .updates()
            .unwrap();
        let off = |group: &TieGroup| measure(&updates, group).unwrap().iter().sum::<f64>();
        let best = off(&adapter.groups[0]);
        for by in [0.9f32, 1.1] {
            let mut other = adapter.groups[0].clone();
            let u = other.u.as_mut().unwrap();
            let values: Vec<f32> = u.tensor.to_f32().unwrap().iter().map(|u| u * by).collect();
            u.tensor = Tensor::from_f32(u.tensor.shape().to_vec(), &values).unwrap();
            assert!(off(&other) > best);
        }
        let elsewhere = tied(vec![
            module("o_proj", 0, &values(60, 7, 1), &values(36, 8, 1), 2),
            module("o_proj", 1, &values(60, 7, 2), &values(36, 8, 2), 2),
        ]);
        assert_eq!(
            fit_with_factors_of(&elsewhere, pair).unwrap_err().code(),
            Code::Usage
        );
    }
}
