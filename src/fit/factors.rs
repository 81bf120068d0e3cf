//! Factors in full length, and the tie group that they become.

use faer::Mat;

use super::modules::ModuleSet;
use super::solver::cores::CoreModel;
use super::solver::model::PlainModel;
use super::solver::problem::Problem;
use super::solver::scaled::ScaledModel;
use crate::adapter::{Factor, Scaling, TieGroup};
use crate::error::Result;
use crate::tensor::Tensor;

/// Factors of the updates themselves, out of the common bases.
pub(super) struct Factors {
    /// in × R.
    a: Mat<f64>,
    /// Σ out × R.
    b: Mat<f64>,
    layers: PerLayer,
}

/// What every layer has of its own.
enum PerLayer {
    /// u.
    Diagonal {
        /// layers × R.
        u: Mat<f64>,
        /// layers × Σ out.
        v: Option<Mat<f64>>,
    },
    /// R × R for each layer.
    Cores(Vec<Mat<f64>>),
}

impl Factors {
    pub(super) fn plain(problem: &Problem, model: &PlainModel) -> Self {
        Self {
            a: problem.lift_inputs(&model.a),
            b: problem.lift_outputs(&model.b),
            layers: PerLayer::Diagonal {
                u: model.u.clone(),
                v: None,
            },
        }
    }

    pub(super) fn cores(problem: &Problem, model: &CoreModel) -> Self {
        Self {
            a: problem.lift_inputs(&model.a),
            b: problem.lift_outputs(&model.b),
            layers: PerLayer::Cores(model.cores.clone()),
        }
    }

    pub(super) fn scaled(problem: &Problem, model: &ScaledModel) -> Self {
        let mut model = model.clone();
        model.balance();
        Self {
            a: problem.lift_inputs(&model.a),
            b: model.b,
            layers: PerLayer::Diagonal {
                u: model.u,
                v: Some(model.v),
            },
        }
    }
}

/// The tie group of factors: f32, s = 1.
///
/// Without cores, columns that carry nothing are left out; the others stand by falling weight, A and B of
/// equal length, and the largest u of each is 1, so that one fit has one form. Cores have one already.
pub(super) fn tie_group(set: &ModuleSet, problem: &Problem, factors: &Factors) -> Result<TieGroup> {
    let layers = set.layers.len();
    let plain = |a: &Mat<f64>, b: &Mat<f64>| -> Result<TieGroup> {
        let columns = (0..a.ncols()).flat_map(|k| a.col_as_slice(k));
        let flat_a: Vec<f32> = columns.map(|x| *x as f32).collect();
        Ok(TieGroup {
            layers: Some(set.layers.clone()),
            experts: None,
            rank: a.ncols(),
            in_features: a.nrows(),
            scaling: Scaling::one(a.ncols()),
            a: factor(vec![a.ncols(), a.nrows()], &flat_a)?,
            b: factor(vec![b.nrows(), b.ncols()], &by_rows(b))?,
            core: None,
            u: None,
            v: None,
            targets: set.targets.clone(),
        })
    };
    match &factors.layers {
        PerLayer::Cores(cores) => {
            let (group, rank) = (plain(&factors.a, &factors.b)?, factors.a.ncols());
            let values: Vec<f32> = cores.iter().flat_map(by_rows).collect();
            Ok(TieGroup {
                core: Some(factor(vec![layers, rank, rank], &values)?),
                ..group
            })
        }
        PerLayer::Diagonal { u, v } => {
            let [a, b, u] = canonical([&factors.a, &factors.b, u], problem);
            let v = v
                .as_ref()
                .map(|v| factor(vec![layers, v.ncols()], &by_rows(v)));
            Ok(TieGroup {
                u: Some(factor(vec![layers, u.ncols()], &by_rows(&u))?),
                v: v.transpose()?,
                ..plain(&a, &b)?
            })
        }
    }
}

fn factor(shape: Vec<usize>, values: &[f32]) -> Result<Factor> {
    Tensor::from_f32(shape, values).map(Factor::trained)
}

/// Row by row, in f32.
fn by_rows(m: &Mat<f64>) -> Vec<f32> {
    let row = |i| (0..m.ncols()).map(move |k| m[(i, k)] as f32);
    (0..m.nrows()).flat_map(row).collect()
}

/// One column as it is written: where it came from, its weight, what A, B, u are multiplied with.
struct Column {
    from: usize,
    weight: f64,
    a: f64,
    b: f64,
    u: f64,
}

/// A, B and u in the one form of their product.
fn canonical([a, b, u]: [&Mat<f64>; 3], problem: &Problem) -> [Mat<f64>; 3] {
    let mut used = vec![0.0; problem.layers];
    for l in &problem.layer_of {
        used[*l] = 1.0;
    }
    let column = |k: usize| {
        let (a, b) = (a.col(k).norm_l2(), b.col(k).norm_l2());
        // A layer without an update has u = 0, not the rounding errors of a solver.
        let u = || (0..problem.layers).map(|l| used[l] * u[(l, k)]);
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
    let mut columns: Vec<Column> = (0..u.ncols()).map(column).collect();
    columns.sort_by(|x, y| y.weight.total_cmp(&x.weight));
    let floor = 1e-12 * columns.first().map_or(0.0, |c| c.weight);
    let kept = columns.iter().filter(|c| c.weight > floor).count().max(1);
    let of = |m: &Mat<f64>, factor: fn(&Column) -> f64| {
        Mat::from_fn(m.nrows(), kept, |i, k| {
            m[(i, columns[k].from)] * factor(&columns[k])
        })
    };
    let mut own = of(u, |c| c.u);
    for (l, used) in used.iter().enumerate() {
        own.row_mut(l).iter_mut().for_each(|u| *u *= used);
    }
    [of(a, |c| c.a), of(b, |c| c.b), own]
}
