//! One tie group in common bases: what comes after happens in small matrices, never out × in.
//!
//! All row spaces of the layers lie in the span of p ≤ min(in, Σr) orthonormal columns, all column
//! spaces in that of q ≤ min(out, Σr) others. In these bases layer l is `M_l = X_l·Y_lᵀ` with X_l
//! its left singular vectors (q × r_l) and Y_l its right ones times the singular values (p × r_l).
//! Distances stay what they were, since the bases are orthonormal.

use std::ops::Range;
use std::sync::OnceLock;

use faer::{Mat, Side};
use rayon::prelude::*;

use super::basis::Basis;
use super::model::PlainModel;
use crate::adapter::LowRank;
use crate::adapter::error::{left_columns, right_columns};
use crate::error::{Code, Error, Result};

/// Largest basis whose spectrum is decomposed with vectors; above it, they are iterated for.
const WHOLE_SPECTRUM: usize = 512;
/// Steps of the subspace iteration; it gives a start to improve on, not a result.
const SUBSPACE_STEPS: usize = 8;
/// Singular values below this share of the largest are rounding errors of the decompositions.
const ZERO: f64 = 1e-15;

/// The updates of one tie group, layer by layer.
pub(in crate::fit) struct Problem {
    /// q × S: left singular vectors of all layers, S = Σ r_l.
    pub(in crate::fit) x: Mat<f64>,
    /// p × S: right singular vectors times singular values.
    pub(in crate::fit) y: Mat<f64>,
    /// Singular value of each column of X and Y.
    pub(in crate::fit) sigma: Vec<f64>,
    /// The layer of each column; ascending.
    pub(in crate::fit) layer_of: Vec<usize>,
    /// Number of layers.
    pub(in crate::fit) layers: usize,
    /// Σ_l ‖ΔW_l‖²_F.
    pub(in crate::fit) square: f64,
    /// Of Σ_l ΔW_lᵀ·ΔW_l.
    pub(in crate::fit) row_side: Spectrum,
    /// Of Σ_l ΔW_l·ΔW_lᵀ.
    pub(in crate::fit) column_side: Spectrum,
    /// Columns by descending singular value.
    order: Vec<usize>,
    inputs: Basis,
    outputs: Vec<Basis>,
}

/// Eigenvalues of one side's Gram matrix, and what rank by rank is left of them.
pub(in crate::fit) struct Spectrum {
    gram: Mat<f64>,
    /// Ascending, as columns; empty for a large matrix, or where they cannot be found.
    vectors: OnceLock<Option<Mat<f64>>>,
    /// Descending.
    values: Vec<f64>,
    /// Σ of all values from index R on, less what rounding may have added.
    tails: Vec<f64>,
}

impl Spectrum {
    pub(in crate::fit) fn of(columns: &Mat<f64>) -> Result<Self> {
        let gram = columns * columns.transpose();
        let n = gram.nrows();
        let values = gram.self_adjoint_eigenvalues(Side::Lower);
        let mut values = values.map_err(|_| failed())?;
        values.reverse();
        // A bound has to hold: errors of the eigenvalues must not lift it above the truth.
        let total: f64 = values.iter().sum();
        let slack = 8.0 * columns.ncols() as f64 * f64::EPSILON * total;
        let mut tails = vec![0.0; n + 1];
        for (i, value) in values.iter().enumerate().rev() {
            tails[i] = tails[i + 1] + value.max(0.0);
        }
        for tail in &mut tails {
            *tail = (*tail - slack).max(0.0);
        }
        Ok(Self {
            gram,
            vectors: OnceLock::new(),
            values,
            tails,
        })
    }

    /// The bounds ask for values alone, and some fits for no more than bounds.
    fn vectors(&self) -> Option<&Mat<f64>> {
        let whole = || {
            let eigen = match self.gram.nrows() <= WHOLE_SPECTRUM {
                true => self.gram.self_adjoint_eigen(Side::Lower).ok()?,
                false => return None,
            };
            Some(eigen.U().to_owned())
        };
        self.vectors.get_or_init(whole).as_ref()
    }

    /// What no subspace of this dimension can hold.
    pub(in crate::fit) fn tail(&self, rank: usize) -> f64 {
        self.tails.get(rank).copied().unwrap_or(0.0)
    }

    /// Number of directions that are more than rounding errors.
    pub(in crate::fit) fn dimension(&self) -> usize {
        let floor = 1e-12 * self.values.first().copied().unwrap_or(0.0);
        self.values.iter().take_while(|v| **v > floor).count()
    }

    /// Orthonormal columns spanning the leading eigenspace; `near` is where iterations start.
    pub(in crate::fit) fn leading(&self, rank: usize, near: &Mat<f64>) -> Mat<f64> {
        let n = self.gram.nrows();
        let rank = rank.min(n);
        if let Some(vectors) = self.vectors() {
            return Mat::from_fn(n, rank, |i, k| vectors[(i, n - 1 - k)]);
        }
        let mut space = near.subcols(0, rank.min(near.ncols())).to_owned();
        for _ in 0..SUBSPACE_STEPS {
            space = (&self.gram * &space).qr().compute_thin_Q();
        }
        space
    }
}

impl Problem {
    /// The problem of layers × targets updates, or `None` where all of them are zero.
    ///
    /// Every layer has the same targets, of the same shapes; ranks and scalings may differ.
    ///
    /// # Errors
    /// [`Code::NonFinite`] for values that are not finite, or too large to be squared.
    pub(in crate::fit) fn new(updates: &[Vec<LowRank>]) -> Result<Option<Self>> {
        check_finite(updates)?;
        let targets = updates.first().map_or(0, Vec::len);
        let ((inputs, right), outputs) = rayon::join(
            || Basis::of(&input_columns(updates)),
            || {
                let basis = |t| Basis::of(&output_columns(updates, t));
                (0..targets).into_par_iter().map(basis).collect::<Vec<_>>()
            },
        );
        let (outputs, left): (Vec<Basis>, Vec<Mat<f64>>) = outputs.into_iter().unzip();
        let layers: Vec<Layer> = places(updates)
            .into_par_iter()
            .map(|place| Layer::of(&place, &left, &right))
            .collect::<Result<_>>()?;
        Self::of_layers(&layers, inputs, outputs)
    }

    fn of_layers(layers: &[Layer], inputs: Basis, outputs: Vec<Basis>) -> Result<Option<Self>> {
        let all = || layers.iter().flat_map(|l| l.sigma.iter().copied());
        let floor = ZERO * all().fold(0.0, f64::max);
        let kept: Vec<(usize, usize)> = layers
            .iter()
            .enumerate()
            .flat_map(|(l, layer)| (0..layer.sigma.len()).map(move |k| (l, k)))
            .filter(|(l, k)| layers[*l].sigma[*k] > floor)
            .collect();
        let sigma: Vec<f64> = kept.iter().map(|(l, k)| layers[*l].sigma[*k]).collect();
        let square: f64 = sigma.iter().map(|s| s * s).sum();
        if !square.is_finite() || !(square * square).is_finite() {
            return Err(failed());
        }
        if kept.is_empty() || square == 0.0 {
            return Ok(None);
        }
        let q: usize = outputs.iter().map(|b| b.size).sum();
        let entry = |c: usize| (&layers[kept[c].0], kept[c].1);
        let x = Mat::from_fn(q, kept.len(), |i, c| entry(c).0.left[(i, entry(c).1)]);
        let y = Mat::from_fn(inputs.size, kept.len(), |j, c| {
            sigma[c] * entry(c).0.right[(j, entry(c).1)]
        });
        let scaled = Mat::from_fn(q, kept.len(), |i, c| sigma[c] * x[(i, c)]);
        let (row_side, column_side) = rayon::join(|| Spectrum::of(&y), || Spectrum::of(&scaled));
        let mut order: Vec<usize> = (0..sigma.len()).collect();
        // Stable, so that equal values keep the order of the layers.
        order.sort_by(|i, j| sigma[*j].total_cmp(&sigma[*i]));
        Ok(Some(Self {
            x,
            y,
            layer_of: kept.iter().map(|(l, _)| *l).collect(),
            layers: layers.len(),
            square,
            row_side: row_side?,
            column_side: column_side?,
            sigma,
            order,
            inputs,
            outputs,
        }))
    }

    /// ‖ΔW_l‖²_F of each layer.
    pub(in crate::fit) fn layer_squares(&self) -> Vec<f64> {
        let mut squares = vec![0.0; self.layers];
        for (l, s) in self.layer_of.iter().zip(&self.sigma) {
            squares[*l] += s * s;
        }
        squares
    }

    /// Number of singular triplets of all layers: at this rank the triplets are exact.
    pub(in crate::fit) fn full_rank(&self) -> usize {
        self.sigma.len()
    }

    /// Lower bound of the squared error of any tied adapter of a rank, without v.
    ///
    /// `B·diag(u_l)·A` has its rows in the span of A and its columns in that of B, both of dimension
    /// R, whatever u: no better than the best subspace for all layers, by Eckart and Young.
    pub(in crate::fit) fn bound(&self, rank: usize) -> f64 {
        self.row_side.tail(rank).max(self.column_side.tail(rank))
    }

    /// As [`bound`](Self::bound), of tied adapters with a v as well: `diag(v_l)·B` spans another
    /// space in every layer, so that only the rows bound the error.
    pub(in crate::fit) fn bound_with_v(&self, rank: usize) -> f64 {
        self.row_side.tail(rank)
    }

    /// Squared error of the `rank` largest singular triplets of all layers.
    pub(in crate::fit) fn triplet_error(&self, rank: usize) -> f64 {
        let left_out = self.order.iter().skip(rank).map(|c| self.sigma[*c].powi(2));
        left_out.rev().sum()
    }

    /// The `rank` largest singular triplets, each used by its own layer.
    pub(in crate::fit) fn triplets(&self, rank: usize) -> PlainModel {
        let chosen = &self.order[..rank.min(self.order.len())];
        let r = chosen.len();
        PlainModel {
            a: Mat::from_fn(self.y.nrows(), r, |j, k| {
                self.y[(j, chosen[k])] / self.sigma[chosen[k]]
            }),
            b: Mat::from_fn(self.x.nrows(), r, |i, k| self.x[(i, chosen[k])]),
            u: Mat::from_fn(self.layers, r, |l, k| {
                if self.layer_of[chosen[k]] == l {
                    self.sigma[chosen[k]]
                } else {
                    0.0
                }
            }),
        }
    }

    /// Q: the orthonormal columns that span all rows of the updates, in × p.
    pub(in crate::fit) fn input_basis(&self) -> Mat<f64> {
        let p = self.inputs.size;
        self.lift_inputs(&Mat::<f64>::identity(p, p))
    }

    /// Σ out over the targets.
    pub(in crate::fit) fn out(&self) -> usize {
        self.outputs.iter().map(|o| o.rows).sum()
    }

    /// Columns in the outputs' basis (q × n) in full length (Σ out × n).
    pub(in crate::fit) fn lift_outputs(&self, small: &Mat<f64>) -> Mat<f64> {
        let mut full = Mat::zeros(self.out(), small.ncols());
        let (mut row, mut at) = (0, 0);
        for basis in &self.outputs {
            let part = basis.lift(small.subrows(at, basis.size));
            full.as_mut().subrows_mut(row, basis.rows).copy_from(&part);
            (row, at) = (row + basis.rows, at + basis.size);
        }
        full
    }

    /// Columns in the inputs' basis (p × n) in full length (in × n).
    pub(in crate::fit) fn lift_inputs(&self, small: &Mat<f64>) -> Mat<f64> {
        self.inputs.lift(small.as_ref())
    }

    /// Columns of X and Y that are each layer's.
    pub(in crate::fit) fn columns(&self) -> Vec<Range<usize>> {
        let mut columns = vec![0..0; self.layers];
        for (at, layer) in self.layer_of.iter().enumerate() {
            let first = match columns[*layer].is_empty() {
                true => at,
                false => columns[*layer].start,
            };
            columns[*layer] = first..at + 1;
        }
        columns
    }
}

/// Where one layer's columns stand: its first among the inputs', its rank; the same per target.
struct Place {
    right: (usize, usize),
    left: Vec<(usize, usize)>,
}

fn places(updates: &[impl AsRef<[LowRank]>]) -> Vec<Place> {
    let targets = updates.first().map_or(0, |l| l.as_ref().len());
    let (mut at, mut at_target) = (0, vec![0; targets]);
    let mut places = Vec::with_capacity(updates.len());
    for layer in updates {
        let first = at;
        let mut left = Vec::with_capacity(targets);
        for (module, start) in layer.as_ref().iter().zip(&mut at_target) {
            left.push((*start, module.rank));
            *start += module.rank;
            at += module.rank;
        }
        places.push(Place {
            right: (first, at - first),
            left,
        });
    }
    places
}

/// A of all layers and targets as columns: in × Σr, layer by layer.
fn input_columns(updates: &[impl AsRef<[LowRank]>]) -> Mat<f64> {
    let all: Vec<&LowRank> = updates.iter().flat_map(AsRef::as_ref).collect();
    right_columns(&all)
}

/// s·B of one target in all layers: out × Σr.
fn output_columns(updates: &[impl AsRef<[LowRank]>], target: usize) -> Mat<f64> {
    let of_target = updates.iter().filter_map(|l| l.as_ref().get(target));
    left_columns(&of_target.map(|m| (m, 1.0)).collect::<Vec<_>>())
}

/// Squared singular values of one layer's targets, one above the other; descending.
///
/// # Errors
/// [`Code::NonFinite`]
pub(in crate::fit) fn singular_squares(layer: &[LowRank]) -> Result<Vec<f64>> {
    let updates = [layer];
    check_finite(&updates)?;
    let triangles: Vec<Mat<f64>> = (0..layer.len())
        .map(|t| output_columns(&updates, t).qr().thin_R().to_owned())
        .collect();
    let rows = triangles.iter().map(Mat::nrows).sum();
    let mut left = Mat::<f64>::zeros(rows, layer.iter().map(|m| m.rank).sum());
    let (mut row, mut column) = (0, 0);
    for triangle in &triangles {
        // The targets' blocks stand on the diagonal: each has its own A.
        let place = left.as_mut();
        let (height, width) = (triangle.nrows(), triangle.ncols());
        let mut place = place.submatrix_mut(row, column, height, width);
        place.copy_from(triangle);
        (row, column) = (row + height, column + width);
    }
    let right = input_columns(&updates).qr();
    let core = left * right.thin_R().transpose();
    let sigma = core.singular_values().map_err(|_| failed())?;
    Ok(sigma.iter().map(|s| s * s).collect())
}

/// The largest singular triplets of a module as factors of equal length: A (rank × in) and B
/// (out × rank), row-major.
///
/// # Errors
/// [`Code::NonFinite`]
pub(in crate::fit) fn leading_factors(
    update: &LowRank,
    rank: usize,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let updates = [std::slice::from_ref(update)];
    check_finite(&updates)?;
    let left = [output_columns(&updates, 0)];
    let right = input_columns(&updates);
    let place = Place {
        right: (0, update.rank),
        left: vec![(0, update.rank)],
    };
    let layer = Layer::of(&place, &left, &right)?;
    let length = |k: usize| layer.sigma[k].sqrt();
    let a = (0..rank).flat_map(|k| (0..update.in_features).map(move |j| (j, k)));
    let a = a.map(|(j, k)| (length(k) * layer.right[(j, k)]) as f32);
    let b = (0..update.out).flat_map(|i| (0..rank).map(move |k| (i, k)));
    let b = b.map(|(i, k)| (length(k) * layer.left[(i, k)]) as f32);
    Ok((a.collect(), b.collect()))
}

fn check_finite(updates: &[impl AsRef<[LowRank]>]) -> Result<()> {
    let finite = |m: &LowRank| m.left.iter().chain(&m.right).all(|x| x.is_finite());
    let all = updates.iter().flat_map(AsRef::as_ref).all(finite);
    if all { Ok(()) } else { Err(failed()) }
}

/// Singular value decomposition of one layer in the common bases.
struct Layer {
    left: Mat<f64>,
    right: Mat<f64>,
    sigma: Vec<f64>,
}

impl Layer {
    fn of(place: &Place, left: &[Mat<f64>], right: &Mat<f64>) -> Result<Self> {
        let (first, rank) = place.right;
        let q = left.iter().map(Mat::nrows).sum();
        let mut outputs = Mat::<f64>::zeros(q, rank);
        let (mut row, mut column) = (0, 0);
        for (basis, (start, r)) in left.iter().zip(&place.left) {
            // The targets' blocks stand on the diagonal: each has its own A.
            outputs
                .as_mut()
                .submatrix_mut(row, column, basis.nrows(), *r)
                .copy_from(basis.subcols(*start, *r));
            (row, column) = (row + basis.nrows(), column + r);
        }
        let (l, r) = (outputs.qr(), right.subcols(first, rank).qr());
        let core = l.thin_R() * r.thin_R().transpose();
        let svd = core.thin_svd().map_err(|_| failed())?;
        Ok(Self {
            left: l.compute_thin_Q() * svd.U(),
            right: r.compute_thin_Q() * svd.V(),
            sigma: svd.S().column_vector().iter().copied().collect(),
        })
    }
}

pub(in crate::fit) fn failed() -> Error {
    let message = "the update has values that are not finite, or too large to be fitted";
    Error::new(Code::NonFinite, message)
}
