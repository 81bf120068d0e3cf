//! One A and one B for many adapters of one base: each adapter's layers are layers of one fit.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::factors::{Factors, tie_group};
use super::measure::measure;
use super::modules::ModuleSet;
use super::options::{Budget, FitOptions};
use super::select::{Selection, nothing_to_fit, select};
use super::solver::problem::Problem;
use super::solver::solve::fit;
use super::with_factors::fit_set_with;
use crate::adapter::{Adapter, Factor, ModuleKind, Target, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;
use crate::tensor::worst::is_within;

/// Of the adapters that are not served, one in so many is left out before the others are fitted again.
const DROPPED: usize = 8;

/// How adapters share.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ShareOptions {
    /// Rank of every shared pair.
    pub rank: usize,
    /// As [`FitOptions::joint`].
    pub joint: bool,
    /// An adapter that the shared pairs leave with a larger relative error is left out: above 0, at most 1.
    pub max_error: f64,
}

impl ShareOptions {
    /// A pair for each target, and adapters left out above an error of a half.
    pub fn new(rank: usize) -> Self {
        Self {
            rank,
            joint: false,
            max_error: 0.5,
        }
    }

    /// The fit of each pair.
    ///
    /// # Errors
    /// [`Code::Usage`] for a rank or an error out of range.
    fn fit_options(&self) -> Result<FitOptions> {
        let options = FitOptions {
            joint: self.joint,
            ..FitOptions::new(Budget::Rank(self.rank))
        };
        options.check()?;
        if !(self.max_error > 0.0 && self.max_error <= 1.0) {
            let message = format!("a bound of {} is not above 0 and at most 1", self.max_error);
            return Err(Error::new(Code::Usage, message));
        }
        Ok(options)
    }
}

/// One adapter of a shared fit.
#[derive(Debug)]
#[non_exhaustive]
pub struct SharedAdapter {
    /// With the shared A and B; as it was where it is left out.
    pub adapter: Adapter,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over its shared modules; for one left out, what sharing would have
    /// left it with.
    pub error: f64,
    /// Whether it is left out, for its error or because no other adapter changes what it changes.
    pub left_out: bool,
}

/// One shared pair of A and B. Errors are relative, over all adapters that share it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PairFit {
    /// Module paths with `{}` for the layer number, in the order of B's rows.
    pub targets: Vec<String>,
    /// Rank of A and B.
    pub rank: usize,
    /// Adapters that share it.
    pub adapters: usize,
    /// Bytes of A and B.
    pub bytes: u64,
    /// Error of what is written, in f32.
    pub error: f64,
    /// No A and B of this rank, whatever the adapters' u, are below.
    pub bound: f64,
    /// Error of the largest singular triplets over all layers of all adapters.
    pub baseline: f64,
}

/// What [`fit_shared`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Shared {
    /// In the order given.
    pub adapters: Vec<SharedAdapter>,
    /// The shared pairs.
    pub pairs: Vec<PairFit>,
    /// Their A and B.
    pub tensors: Vec<Tensor>,
}

/// Targets, with the width of their input.
type Key = (Vec<(String, usize, ModuleKind)>, usize);

/// What one adapter brings to a shared fit.
struct AdapterModules<'t> {
    number: usize,
    set: &'t ModuleSet,
}

/// What one adapter gets from the shared pairs.
struct AdapterGroup {
    number: usize,
    group: TieGroup,
    /// Squared error and squared norm.
    square: [f64; 2],
}

/// What one fit of all pairs found.
#[derive(Default)]
struct Pairs {
    groups: Vec<AdapterGroup>,
    fits: Vec<PairFit>,
    tensors: Vec<Tensor>,
}

/// Fits one A and B for each kind of module to all adapters, each with its own u, and without those
/// that it would not serve: the worst are left out, and the others fitted again. Memory grows with the
/// numbers of all adapters, in f64.
///
/// # Errors
/// Those of [`super::fit_adapter`]; [`Code::Usage`] for fewer than two adapters, a bound that is not
/// above 0 and at most 1, and where no two adapters share.
pub fn fit_shared(all: &[Tied], options: &ShareOptions) -> Result<Shared> {
    let fit_options = options.fit_options()?;
    if all.len() < 2 {
        return Err(Error::new(
            Code::Usage,
            "one adapter has nothing to share with",
        ));
    }
    let selections: Vec<Selection> = all
        .iter()
        .map(|tied| select(tied, &fit_options))
        .collect::<Result<_>>()?;
    if selections.iter().all(|p| p.sets.is_empty()) {
        return Err(nothing_to_fit());
    }
    let found = fit_served(&selections, options)?;
    if found.pairs.fits.is_empty() {
        let message = "no two adapters change the same modules";
        return Err(Error::new(Code::Usage, message));
    }
    let SharedFit {
        pairs,
        errors,
        left_out,
    } = readmit(&selections, options, found)?;
    Ok(Shared {
        adapters: finish(all, &selections, pairs.groups, &errors, &left_out)?,
        pairs: pairs.fits,
        tensors: pairs.tensors,
    })
}

/// Pairs for the adapters that they serve.
struct SharedFit {
    pairs: Pairs,
    /// Relative error of each adapter.
    errors: Vec<f64>,
    /// For each adapter that is left out, the error that it had before.
    left_out: Vec<Option<f64>>,
}

/// Leaves out the worst adapters and fits again, until all that are left are served.
///
/// # Errors
/// [`Code::Usage`] where no two are.
fn fit_served(selections: &[Selection], options: &ShareOptions) -> Result<SharedFit> {
    let mut left_out: Vec<Option<f64>> = vec![None; selections.len()];
    loop {
        let pairs = fit_pairs(selections, &left_out, options.rank)?;
        let errors = errors(selections.len(), &pairs.groups);
        let mut unserved: Vec<usize> = (0..selections.len())
            .filter(|n| left_out[*n].is_none() && !is_within(errors[*n], options.max_error))
            .collect();
        let served = left_out.iter().filter(|a| a.is_none()).count();
        if unserved.is_empty() {
            return Ok(SharedFit {
                pairs,
                errors,
                left_out,
            });
        }
        // The worst first, and few at a time: without them the others may be served.
        unserved.sort_by(|a, b| errors[*b].total_cmp(&errors[*a]));
        unserved.truncate(unserved.len().div_ceil(DROPPED));
        if served - unserved.len() < 2 {
            let message = format!("no two adapters are served within {}", options.max_error);
            let hint = "raise the rank, or the error at which one is left out";
            return Err(Error::new(Code::Usage, message).hint(hint));
        }
        for number in unserved {
            left_out[number] = Some(errors[number]);
        }
    }
}

/// Takes in again what was left out for others' sake, where all are served then.
fn readmit(
    selections: &[Selection],
    options: &ShareOptions,
    found: SharedFit,
) -> Result<SharedFit> {
    let mut left_out = found.left_out.clone();
    for (number, plan) in selections.iter().enumerate() {
        if left_out[number].is_none() {
            continue;
        }
        let mut square = [0.0; 2];
        for set in &plan.sets {
            let same = |g: &&AdapterGroup| {
                let group = &g.group;
                group.targets == set.targets && group.in_features == set.in_features()
            };
            if let Some(own) = found.pairs.groups.iter().find(same) {
                let (_, [off, norm]) = fit_set_with(set, &own.group)?;
                square = [square[0] + off, square[1] + norm];
            }
        }
        if square[1] > 0.0 && is_within((square[0] / square[1]).sqrt(), options.max_error) {
            left_out[number] = None;
        }
    }
    if left_out == found.left_out {
        return Ok(found);
    }
    let pairs = fit_pairs(selections, &left_out, options.rank)?;
    let errors = errors(selections.len(), &pairs.groups);
    match errors.iter().all(|e| is_within(*e, options.max_error)) {
        true => Ok(SharedFit {
            pairs,
            errors,
            left_out,
        }),
        false => Ok(found),
    }
}

/// Each adapter's relative error over its groups; 0 where it has none.
fn errors(adapters: usize, parts: &[AdapterGroup]) -> Vec<f64> {
    let mut squares = vec![[0.0; 2]; adapters];
    for part in parts {
        for (sum, square) in squares[part.number].iter_mut().zip(part.square) {
            *sum += square;
        }
    }
    let error = |[off, norm]: [f64; 2]| if norm > 0.0 { (off / norm).sqrt() } else { 0.0 };
    squares.into_iter().map(error).collect()
}

/// The errors of shared adapters in other numbers, over their shared modules; `None` for one that is left out.
///
/// # Errors
/// Those of [`fit_shared`].
pub(super) fn shared_errors(
    all: &[Tied],
    adapters: &[SharedAdapter],
    options: &ShareOptions,
) -> Result<Vec<Option<f64>>> {
    let fit_options = options.fit_options()?;
    let of = |(tied, found): (&Tied, &SharedAdapter)| {
        if found.left_out {
            return Ok(None);
        }
        let mut square = [0.0; 2];
        for set in select(tied, &fit_options)?.sets {
            let same =
                |g: &&TieGroup| g.targets == set.targets && g.layers.as_ref() == Some(&set.layers);
            let group = found.adapter.groups.iter().find(same);
            let Some(group) = group.filter(|g| g.is_tied()) else {
                continue;
            };
            let updates = set.updates()?;
            square[0] += measure(&updates, group)?.iter().sum::<f64>();
            square[1] += Problem::new(&updates)?.map_or(0.0, |p| p.square);
        }
        let [off, norm] = square;
        Ok(Some(if norm > 0.0 { (off / norm).sqrt() } else { 0.0 }))
    };
    all.iter().zip(adapters).map(of).collect()
}

fn fit_pairs(selections: &[Selection], left_out: &[Option<f64>], rank: usize) -> Result<Pairs> {
    let mut kinds: BTreeMap<Key, Vec<AdapterModules<'_>>> = BTreeMap::new();
    for (number, plan) in selections
        .iter()
        .enumerate()
        .filter(|(n, _)| left_out[*n].is_none())
    {
        for set in &plan.sets {
            let target = |t: &Target| (t.module.clone(), t.out, t.kind);
            let key = (set.targets.iter().map(target).collect(), set.in_features());
            kinds
                .entry(key)
                .or_default()
                .push(AdapterModules { number, set });
        }
    }
    let mut pairs = Pairs::default();
    for members in kinds.values() {
        // What only one adapter changes is not shared.
        if members.len() < 2 {
            continue;
        }
        if let Some((own, pair)) = fit_pair(members, rank)? {
            let group = own.iter().map(|part| &part.group).take(1);
            let both = |g: &TieGroup| [g.a.tensor.clone(), g.b.tensor.clone()];
            pairs.tensors.extend(group.flat_map(both));
            pairs.groups.extend(own);
            pairs.fits.push(pair);
        }
    }
    Ok(pairs)
}

/// `None` where all updates are zero.
fn fit_pair(
    members: &[AdapterModules<'_>],
    rank: usize,
) -> Result<Option<(Vec<AdapterGroup>, PairFit)>> {
    let whole = ModuleSet {
        targets: members[0].set.targets.clone(),
        layers: (0..members.iter().map(|m| m.set.layers.len() as u32).sum()).collect(),
        sources: (members.iter())
            .flat_map(|m| m.set.sources.iter().cloned())
            .collect(),
    };
    let updates = whole.updates()?;
    let Some(problem) = Problem::new(&updates)? else {
        return Ok(None);
    };
    let found = fit(&problem, rank);
    let of = |model| -> Result<(TieGroup, Vec<f64>)> {
        let group = tie_group(&whole, &problem, &Factors::plain(&problem, model))?;
        let errors = measure(&updates, &group)?;
        Ok((group, errors))
    };
    let (mut group, mut squares) = of(&found.model)?;
    let triplets = of(&problem.triplets(group.rank))?;
    let baseline: f64 = triplets.1.iter().sum();
    // As they are written: rounding to f32 must not put the fit above the triplets.
    if baseline.is_finite() && !is_within(squares.iter().sum(), baseline) {
        (group, squares) = triplets;
    }
    let norms = problem.layer_squares();
    let mut first = 0;
    let mut parts = Vec::with_capacity(members.len());
    for member in members {
        let own = first..first + member.set.layers.len();
        parts.push(AdapterGroup {
            number: member.number,
            group: part_of(&group, own.clone(), &member.set.layers)?,
            square: [&squares, &norms].map(|s| s[own.clone()].iter().sum()),
        });
        first = own.end;
    }
    let share = |square: f64| (square / problem.square).sqrt();
    let pair = PairFit {
        targets: whole.targets.iter().map(|t| t.module.clone()).collect(),
        rank: group.rank,
        adapters: members.len(),
        bytes: group.a.tensor.byte_len() + group.b.tensor.byte_len(),
        error: share(squares.iter().sum()),
        bound: share(problem.bound(group.rank)),
        baseline: share(baseline),
    };
    Ok(Some((parts, pair)))
}

/// Some layers of a tie group, under other numbers; A and B are the same tensors.
fn part_of(group: &TieGroup, own: Range<usize>, layers: &[u32]) -> Result<TieGroup> {
    let rank = group.rank;
    let u = group.u.as_ref().map(|u| u.tensor.to_f32()).transpose()?;
    let rows = |u: Vec<f32>| {
        let rows = u.get(own.start * rank..own.end * rank).unwrap_or_default();
        Tensor::from_f32(vec![own.len(), rank], rows).map(Factor::trained)
    };
    Ok(TieGroup {
        layers: Some(layers.to_vec()),
        u: u.map(rows).transpose()?,
        ..group.clone()
    })
}

/// The adapters: the shared groups, and of the rest what each has already.
fn finish(
    all: &[Tied],
    selections: &[Selection],
    parts: Vec<AdapterGroup>,
    errors: &[f64],
    left_out: &[Option<f64>],
) -> Result<Vec<SharedAdapter>> {
    let mut shared: Vec<Vec<TieGroup>> = all.iter().map(|_| Vec::new()).collect();
    for part in parts {
        shared[part.number].push(part.group);
    }
    let adapter = |(number, groups): (usize, Vec<TieGroup>)| -> Result<SharedAdapter> {
        if groups.is_empty() {
            return Ok(SharedAdapter {
                adapter: all[number].adapter.clone(),
                error: left_out[number].unwrap_or(0.0),
                left_out: true,
            });
        }
        let mut adapter = selections[number].rest.clone();
        for set in &selections[number].sets {
            let same =
                |g: &TieGroup| g.targets == set.targets && g.layers.as_ref() == Some(&set.layers);
            if !groups.iter().any(same) {
                adapter.groups.extend(set.sources.iter().cloned());
            }
        }
        adapter.groups.extend(groups);
        adapter.sort();
        adapter.validate()?;
        Ok(SharedAdapter {
            adapter,
            error: errors[number],
            left_out: false,
        })
    };
    shared.into_iter().enumerate().map(adapter).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{module, tied, values};
    use super::*;
    use crate::fit::solver::problem::singular_squares;

    /// Adapters with the same A and B of q and their own u, the factors of every layer scaled differently.
    pub(in super::super) fn family_of_adapters(count: u8, rank: usize) -> Vec<Tied> {
        let (n, out) = (30, 18);
        let (a, b) = (values(rank * n, 1, 1), values(out * rank, 1, 2));
        let adapter = |number: u8| {
            let layer = |l: u8| {
                let u = values(rank, 2, 10 * number + l);
                let b: Vec<f32> = b.iter().zip(u.iter().cycle()).map(|(b, u)| b * u).collect();
                // Mixed, so that no two layers have the same A.
                let turn = |row: usize| (row + usize::from(l + number)) % rank;
                let a = (0..rank)
                    .flat_map(|k| a[turn(k) * n..][..n].to_vec())
                    .collect::<Vec<_>>();
                let b = (0..out * rank).map(|i| b[i / rank * rank + turn(i % rank)]);
                module("q_proj", u32::from(l), &a, &b.collect::<Vec<_>>(), rank)
            };
            tied((0..3).map(layer).collect())
        };
        (0..count).map(adapter).collect()
    }

    pub(in super::super) fn stranger() -> Tied {
        let layer = |l| {
            module(
                "q_proj",
                l,
                &values(60, 7, l as u8),
                &values(36, 8, l as u8),
                2,
            )
        };
        tied((0..3).map(layer).collect())
    }

    pub(in super::super) fn options(rank: usize) -> ShareOptions {
        ShareOptions {
            rank,
            joint: false,
            max_error: 0.2,
        }
    }

    /// Breaks where adapters of one A and B are not found to be so, do not get the same tensors, one
    /// that they do not serve spoils the others, or is changed.
    #[test]
    fn adapters_of_one_pair_share_it_and_a_stranger_is_left_apart() {
        let mut all = family_of_adapters(4, 4);
        all.insert(2, stranger());
        let found = fit_shared(&all, &options(4)).unwrap();
        let [pair] = &found.pairs[..] else {
            panic!("{:?}", found.pairs)
        };
        assert_eq!((pair.adapters, pair.rank), (4, 4));
        assert!(pair.error < 1e-4 && pair.bound <= pair.error && pair.error <= pair.baseline);
        let first = &found.adapters[0].adapter.groups[0];
        for (number, (shared, tied)) in found.adapters.iter().zip(&all).enumerate() {
            assert_eq!(shared.left_out, number == 2);
            if number == 2 {
                assert!(shared.error > 0.2);
                assert_eq!(shared.adapter.groups.len(), tied.adapter.groups.len());
                continue;
            }
            let group = &shared.adapter.groups[0];
            assert_eq!(group.a.tensor.data().id(), first.a.tensor.data().id());
            assert_eq!(group.b.tensor.data().id(), first.b.tensor.data().id());
            let selection = select(tied, &FitOptions::new(Budget::Rank(0)));
            let updates = selection.unwrap().sets[0].updates().unwrap();
            let off: f64 = measure(&updates, group).unwrap().iter().sum();
            let norm: f64 = updates
                .iter()
                .map(|l| singular_squares(l).unwrap().iter().sum::<f64>())
                .sum();
            assert!(((off / norm).sqrt() - shared.error).abs() < 1e-6);
        }
    }

    /// Breaks where a request that cannot be met is taken.
    #[test]
    fn what_cannot_be_shared_is_refused() {
        let all = family_of_adapters(2, 3);
        let strangers = [
            stranger(),
            tied(vec![
                module("q_proj", 0, &values(60, 5, 1), &values(36, 5, 2), 2),
                module("q_proj", 1, &values(60, 5, 3), &values(36, 5, 4), 2),
            ]),
        ];
        for (all, options) in [
            (&all[..1], options(3)),
            (&all[..], options(0)),
            (
                &all[..],
                ShareOptions {
                    max_error: f64::NAN,
                    ..options(3)
                },
            ),
            (&strangers[..], options(1)),
        ] {
            assert_eq!(fit_shared(all, &options).unwrap_err().code(), Code::Usage);
        }
    }
}
