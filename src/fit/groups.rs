//! Which modules are fitted together, and the tie group that a fit becomes.

use std::collections::{BTreeMap, HashMap, HashSet};

use faer::Mat;
use rayon::prelude::*;

use super::{Budget, FitOptions};
use crate::adapter::{Adapter, Factor, LowRank, ModuleKind, Scaling, Target, TieGroup};
use crate::convert::Tied;
use crate::error::{Code, Error, Result};
use crate::fit::solver::cores::CoreModel;
use crate::fit::solver::problem::Problem;
use crate::fit::solver::scaled::ScaledModel;
use crate::fit::solver::solve::Model;
use crate::fit::solver::untied::NUMBER;
use crate::tensor::Tensor;

/// The last names of modules that share A and u where asked, in the order of B's rows.
const JOINT: &[&[&str]] = &[
    &["q_proj", "k_proj", "v_proj"],
    &["query", "key", "value"],
    &["q", "k", "v"],
];

/// Targets that are tied over the same layers.
pub(super) struct Family {
    pub(super) targets: Vec<Target>,
    /// Ascending.
    pub(super) layers: Vec<u32>,
    /// The groups of one module that it came from: layer by layer, target by target.
    pub(super) sources: Vec<TieGroup>,
}

impl Family {
    /// The update of every target in every layer.
    pub(super) fn updates(&self) -> Result<Vec<Vec<LowRank>>> {
        let of_layer = |groups: &[TieGroup]| groups.iter().map(|g| g.low_rank(0, 0)).collect();
        self.sources
            .par_chunks(self.targets.len())
            .map(of_layer)
            .collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        let factors = self.sources.iter().flat_map(TieGroup::factors);
        factors.map(|(_, f)| f.tensor.byte_len()).sum()
    }

    /// Rank-one terms, of all targets at once, that an untied LoRA of so many bytes has.
    pub(super) fn untied_terms(&self, bytes: u64) -> usize {
        let term = NUMBER * (self.in_features() + self.out()).max(1) as u64;
        usize::try_from(bytes / term).unwrap_or(usize::MAX)
    }

    pub(super) fn in_features(&self) -> usize {
        self.sources.first().map_or(0, |g| g.in_features)
    }

    /// Of all targets.
    pub(super) fn out(&self) -> usize {
        self.targets.iter().map(|t| t.out).sum()
    }

    /// Numbers of A, B and u for each rank.
    pub(super) fn numbers(&self) -> usize {
        self.in_features() + self.out() + self.layers.len()
    }

    /// Numbers of v.
    pub(super) fn v_numbers(&self) -> usize {
        self.layers.len() * self.out()
    }

    /// Numbers of the factors before.
    pub(super) fn numbers_before(&self) -> usize {
        let numbers = |g: &TieGroup| g.rank * (g.in_features + g.total_out());
        self.sources.iter().map(numbers).sum()
    }

    pub(super) fn module_paths(&self) -> impl Iterator<Item = String> + '_ {
        let path = |g: &TieGroup| g.targets.iter().map(|t| g.module_path(t, 0)).collect();
        self.sources
            .iter()
            .flat_map(path as fn(&TieGroup) -> Vec<_>)
    }
}

/// What is fitted, and what stays.
pub(super) struct FitPlan {
    pub(super) families: Vec<Family>,
    /// The adapter with the groups that stay.
    pub(super) rest: Adapter,
    /// Modules of the groups that stay.
    pub(super) kept: Vec<String>,
}

/// One module template with its shape: what can be tied over layers.
type Key = (String, usize, usize, ModuleKind);

/// The adapter with no group but those that are tied over layers and stay, and their modules.
pub(super) fn kept_tied(tied: &Tied, stays: impl Fn(&TieGroup) -> bool) -> (Adapter, Vec<String>) {
    let kept = |g: &TieGroup| g.is_tied() && g.instances() > 1 && stays(g);
    let groups = &tied.adapter.groups;
    let modules = tied.adapter.modules().into_iter();
    let modules = modules.filter(|m| kept(&groups[m.group])).map(|m| m.path);
    let rest = Adapter {
        groups: groups.iter().filter(|g| kept(g)).cloned().collect(),
        ..tied.adapter.clone()
    };
    (rest, modules.collect())
}

/// Sorts the modules of an adapter into families; what cannot be tied stays.
///
/// # Errors
/// [`Code::MissingFactor`] where the two forms of the adapter have different modules.
pub(super) fn families(tied: &Tied, options: &FitOptions) -> Result<FitPlan> {
    let small = |group: &TieGroup| match options.budget {
        Budget::Rank(rank) => group.rank <= rank,
        Budget::Tolerance(_) | Budget::Bytes(_) => true,
    };
    let (mut rest, mut kept) = kept_tied(tied, small);
    let stays: HashSet<String> = kept.iter().cloned().collect();
    let modules = tied.adapter.modules();
    let sources: HashMap<String, usize> = tied
        .source
        .modules()
        .into_iter()
        .map(|m| (m.path, m.group))
        .collect();
    let mut found: BTreeMap<Key, BTreeMap<u32, TieGroup>> = BTreeMap::new();
    for module in modules.iter().filter(|m| !stays.contains(&m.path)) {
        let lost =
            || Error::new(Code::MissingFactor, "a module has no source").tensor(&module.path);
        let source = &tied.source.groups[*sources.get(&module.path).ok_or_else(lost)?];
        match (source.layers.as_deref(), &source.targets[..]) {
            (Some([layer]), [target]) => {
                let key = (
                    target.module.clone(),
                    source.in_features,
                    target.out,
                    target.kind,
                );
                found.entry(key).or_default().insert(*layer, source.clone());
            }
            _ => {
                rest.groups.push(source.clone());
                kept.push(module.path.clone());
            }
        }
    }
    let mut families = Vec::new();
    for family in join(found, options.joint) {
        if family.layers.len() > 1 {
            families.push(family);
        } else {
            kept.extend(family.module_paths());
            rest.groups.extend(family.sources);
        }
    }
    Ok(FitPlan {
        families,
        rest,
        kept,
    })
}

/// One target in its layers, and its position in a joint group.
struct Member {
    position: usize,
    target: Target,
    layers: BTreeMap<u32, TieGroup>,
}

/// One family for each key, or for the keys of one attention where `joint`.
fn join(found: BTreeMap<Key, BTreeMap<u32, TieGroup>>, joint: bool) -> Vec<Family> {
    let mut places: BTreeMap<(String, usize, Vec<u32>), Vec<Member>> = BTreeMap::new();
    for ((module, n, out, kind), layers) in found {
        let (parent, name) = module.rsplit_once('.').unwrap_or(("", &module));
        let position = |names: &[&str]| names.iter().position(|n| *n == name);
        let mut sets = JOINT.iter().enumerate();
        let set = sets.find_map(|(s, names)| Some((s, position(names)?)));
        let (shared, position) = match set {
            Some((s, at)) if joint && kind == ModuleKind::Linear => (format!("{parent} {s}"), at),
            // The shape too: a module may change its width from one layer to another.
            _ => (format!("{module} {out} {kind:?}"), 0),
        };
        let place = (shared, n, layers.keys().copied().collect());
        places.entry(place).or_default().push(Member {
            position,
            target: Target { module, out, kind },
            layers,
        });
    }
    let family = |((_, _, layers), mut members): ((String, usize, Vec<u32>), Vec<Member>)| {
        members.sort_by_key(|m| m.position);
        let sources = |l: &u32| -> Vec<TieGroup> {
            let of = |m: &Member| m.layers.get(l).cloned();
            members.iter().filter_map(of).collect()
        };
        Family {
            sources: layers.iter().flat_map(sources).collect(),
            targets: members.iter().map(|m| m.target.clone()).collect(),
            layers,
        }
    };
    places.into_iter().map(family).collect()
}

/// Factors in full length.
pub(super) struct Factors {
    /// in × R.
    pub(super) a: Mat<f64>,
    /// Σ out × R.
    pub(super) b: Mat<f64>,
    /// layers × R.
    pub(super) u: Mat<f64>,
    /// layers × Σ out.
    pub(super) v: Option<Mat<f64>>,
    /// R × R for each layer, in place of u.
    pub(super) cores: Option<Vec<Mat<f64>>>,
}

impl Factors {
    pub(super) fn plain(problem: &Problem, model: &Model) -> Self {
        Self {
            a: problem.lift_inputs(&model.a),
            b: problem.lift_outputs(&model.b),
            u: model.u.clone(),
            v: None,
            cores: None,
        }
    }

    pub(super) fn cores(problem: &Problem, model: &CoreModel) -> Self {
        Self {
            a: problem.lift_inputs(&model.a),
            b: problem.lift_outputs(&model.b),
            u: Mat::zeros(problem.layers, model.a.ncols()),
            v: None,
            cores: Some(model.cores.clone()),
        }
    }

    pub(super) fn scaled(problem: &Problem, model: &ScaledModel) -> Self {
        let mut model = model.clone();
        model.balance();
        Self {
            a: problem.lift_inputs(&model.a),
            b: model.b,
            u: model.u,
            v: Some(model.v),
            cores: None,
        }
    }
}

/// The tie group of factors: f32, s = 1.
///
/// Columns that carry nothing are left out; the others stand by falling weight, A and B of equal
/// length, and the largest u of each is 1, so that one fit has one form.
pub(super) fn tie_group(family: &Family, problem: &Problem, factors: &Factors) -> Result<TieGroup> {
    let canonical = match &factors.cores {
        None => &canonical(factors, problem),
        // Theirs is a form of its own already.
        Some(_) => factors,
    };
    let Factors { a, b, u, v, cores } = canonical;
    let (rank, layers) = (u.ncols(), family.layers.len());
    let rows = |m: &Mat<f64>| -> Vec<f32> {
        let row = |i| (0..m.ncols()).map(move |k| m[(i, k)] as f32);
        (0..m.nrows()).flat_map(row).collect()
    };
    let flat_a: Vec<f32> = (0..rank)
        .flat_map(|k| a.col_as_slice(k).iter().map(|x| *x as f32))
        .collect();
    let factor =
        |shape: Vec<usize>, values: &[f32]| Tensor::from_f32(shape, values).map(Factor::trained);
    let v = v
        .as_ref()
        .map(|v| factor(vec![layers, v.ncols()], &rows(v)));
    let core = cores.as_ref().map(|cores| {
        let values: Vec<f32> = cores.iter().flat_map(&rows).collect();
        factor(vec![layers, rank, rank], &values)
    });
    let u = match cores {
        None => Some(factor(vec![layers, rank], &rows(u))?),
        Some(_) => None,
    };
    Ok(TieGroup {
        layers: Some(family.layers.clone()),
        rank,
        in_features: a.nrows(),
        scaling: Scaling::one(rank),
        a: factor(vec![rank, a.nrows()], &flat_a)?,
        b: factor(vec![b.nrows(), rank], &rows(b))?,
        core: core.transpose()?,
        u,
        v: v.transpose()?,
        targets: family.targets.clone(),
    })
}

/// One column as it is written: where it came from, its weight, what A, B, u are multiplied with.
struct Column {
    from: usize,
    weight: f64,
    a: f64,
    b: f64,
    u: f64,
}

fn canonical(factors: &Factors, problem: &Problem) -> Factors {
    let mut used = vec![0.0; problem.layers];
    for l in &problem.layer_of {
        used[*l] = 1.0;
    }
    let column = |k: usize| {
        let (a, b) = (factors.a.col(k).norm_l2(), factors.b.col(k).norm_l2());
        // A layer without an update has u = 0, not the rounding errors of a solver.
        let u = || (0..problem.layers).map(|l| used[l] * factors.u[(l, k)]);
        let top = u().fold(0.0, |top: f64, u| if u.abs() > top.abs() { u } else { top });
        let weight = a * b * u().map(|u| u * u).sum::<f64>().sqrt();
        let length = (top.abs() * a * b).sqrt();
        let over = |x: f64, by: f64| if weight > 0.0 { x / by } else { 0.0 };
        Column {
            from: k,
            weight,
            a: over(length, a),
            b: over(length, b).copysign(top),
            u: over(1.0, top),
        }
    };
    let mut columns: Vec<Column> = (0..factors.u.ncols()).map(column).collect();
    columns.sort_by(|x, y| y.weight.total_cmp(&x.weight));
    let floor = 1e-12 * columns.first().map_or(0.0, |c| c.weight);
    let kept = columns.iter().filter(|c| c.weight > floor).count().max(1);
    let of = |m: &Mat<f64>, factor: fn(&Column) -> f64| {
        Mat::from_fn(m.nrows(), kept, |i, k| {
            m[(i, columns[k].from)] * factor(&columns[k])
        })
    };
    let mut u = of(&factors.u, |c| c.u);
    for (l, used) in used.iter().enumerate() {
        u.row_mut(l).iter_mut().for_each(|u| *u *= used);
    }
    Factors {
        a: of(&factors.a, |c| c.a),
        b: of(&factors.b, |c| c.b),
        u,
        v: factors.v.clone(),
        cores: None,
    }
}
