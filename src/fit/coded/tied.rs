//! The factors of a tied group, coded line by line.
//!
//! Each line is worth what an error in it does to the updates of all layers: a row of A what B and all cores make
//! of it, and so on. What is fitted per layer, u or the cores, is solved anew for A and B as they are coded.

use std::ops::Range;

use faer::Mat;
use faer::linalg::solvers::Solve;

use super::bound::Term;
use super::module::COARSE;
use super::module::{SideLine, code_side, gram, inner};
use crate::adapter::{Factor, FactorName, TieGroup};
use crate::coding::{Axis, Coded};
use crate::error::Result;
use crate::tensor::Tensor;

/// The numbers of tied groups with one A and one B: mostly one, else the same of several adapters.
pub(super) struct Tied {
    /// s².
    scale: f64,
    /// Rows of A, and columns of B.
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    /// The layers of each group.
    layers: Vec<Range<usize>>,
    /// What each layer has on the rank side: diag(u), a core, or 1.
    cores: Vec<Mat<f64>>,
    /// Whether the cores are diagonal.
    diagonal: bool,
    /// v of each layer.
    v: Option<Vec<Vec<f32>>>,
    /// Which factors are coded: those that no seed makes.
    coded: Vec<FactorName>,
    /// A·Aᵀ, and Bᵀ·diag(v²)·B of each layer.
    gram_a: Mat<f64>,
    gram_b: Vec<Mat<f64>>,
    /// ‖ΔW‖² of each group, all its layers together.
    pub(super) squares: Vec<f64>,
}

/// The lines of a tied group's factors as they are coded.
pub(super) struct CodedTied {
    /// Of A, B, the rank side and v, those that are coded.
    lines: Vec<(FactorName, Vec<Option<SideLine>>)>,
    /// ‖ΔW − ΔW'‖² of each group.
    pub(super) squares: Vec<f64>,
}

/// What coding a factor gave: its lines, and the numbers of them.
type Side = (Vec<Option<SideLine>>, Vec<Vec<f32>>);

impl Tied {
    /// The groups, which have the same A and B, where they have the form that is coded: A and B once for all layers, as
    /// large as they are used.
    ///
    /// # Errors
    /// Those of [`Tensor::to_f32`].
    pub(super) fn of(groups: &[&TieGroup]) -> Result<Option<Self>> {
        let group = groups[0];
        let (r, n, m) = (group.rank, group.in_features, group.total_out());
        let has = |g: &TieGroup| {
            g.factors()
                .map(|(name, f)| (name, f.seed))
                .collect::<Vec<_>>()
        };
        let alike = |g: &&TieGroup| {
            g.a.tensor.shape() == [r, n]
                && g.b.tensor.shape() == [m, r]
                && g.layers.is_some()
                && g.experts.is_none()
                && g.scaling.factor(r) == group.scaling.factor(r)
                && has(g) == has(group)
        };
        if !groups.iter().all(alike) {
            return Ok(None);
        }
        let layers = layer_ranges(groups);
        let count = layers.last().map_or(0, |l| l.end);
        let a = rows(&group.a, n)?;
        let b = transposed(&rows(&group.b, r)?);
        let cores = cores_of(groups, r, count)?;
        let v = match group.v {
            Some(_) => Some(every(groups, |g| g.v.as_ref(), m)?),
            None => None,
        };
        let scaled = |l: usize| scaled_by(&b, v.as_ref().map(|v| &v[l]));
        let gram_b: Vec<Mat<f64>> = match &v {
            None => vec![gram(&b, &b); count],
            Some(_) => (0..count).map(|l| gram(&scaled(l), &scaled(l))).collect(),
        };
        let gram_a = gram(&a, &a);
        let unseeded = group.factors().filter(|(_, f)| f.seed.is_none());
        let mut tied = Self {
            scale: group.scaling.factor(r).powi(2),
            coded: unseeded.map(|(name, _)| name).collect(),
            diagonal: group.core.is_none(),
            squares: Vec::new(),
            layers,
            a,
            b,
            cores,
            v,
            gram_a,
            gram_b,
        };
        let own = |l: usize| {
            let c = &tied.cores[l];
            tied.scale * inner(&tied.gram_b[l], &(c * &tied.gram_a * c.transpose()))
        };
        let squares = tied.layers.iter().map(|l| l.clone().map(own).sum());
        tied.squares = squares.collect();
        Ok((tied.square() > 0.0 && !tied.coded.is_empty()).then_some(tied))
    }

    /// ‖ΔW‖² of all of them.
    pub(super) fn square(&self) -> f64 {
        self.squares.iter().sum()
    }

    /// Numbers of the coded factors.
    pub(super) fn numbers(&self) -> u64 {
        let (layers, r) = (self.cores.len(), self.a.len());
        let (n, m) = (
            self.a.first().map_or(0, Vec::len),
            self.b.first().map_or(0, Vec::len),
        );
        let of = |name: &FactorName| match name {
            FactorName::A => r * n,
            FactorName::B => r * m,
            FactorName::C => layers * r * r,
            FactorName::U => layers * r,
            FactorName::V => layers * m,
        };
        self.coded.iter().map(of).sum::<usize>() as u64
    }

    /// Its lines as sources of their own: what a code of these factors needs.
    pub(super) fn terms(&self) -> Vec<Term> {
        let r = self.a.len();
        let mut terms = Vec::new();
        let mut add = |square: f64, size: usize| terms.push(Term::line(square, size));
        let (of_a, of_b) = (self.weights_a(), self.weights_b());
        for name in &self.coded {
            match name {
                FactorName::A => {
                    (0..r).for_each(|k| add(of_a[k] * self.gram_a[(k, k)], self.a[k].len()))
                }
                FactorName::B => {
                    (0..r).for_each(|k| add(of_b[k] * square(&self.b[k]), self.b[k].len()))
                }
                FactorName::C | FactorName::U => {
                    let lines = self.rank_lines(&self.cores);
                    let weights = self.rank_weights(&self.gram_a, &self.gram_b);
                    let each = lines.iter().zip(weights);
                    each.for_each(|(line, weight)| add(weight * square(line), line.len()));
                }
                FactorName::V => {
                    let lines = self.v.iter().flatten();
                    let weights = self.weights_v(&self.b, &self.cores, &self.gram_a);
                    let each = lines.zip(weights);
                    each.for_each(|(line, weight)| add(weight * square(line), line.len()));
                }
            }
        }
        terms
    }

    /// The integers where a bit is worth a squared error of `price`.
    pub(super) fn coded(&self, price: f64) -> CodedTied {
        let is_coded = |name| self.coded.contains(&name);
        let mut lines = Vec::new();
        let mut side = |name, values: &[Vec<f32>], weights: &[f64]| -> Vec<Vec<f32>> {
            let each = values.iter().zip(weights);
            let (coded, values): Side = each.map(|(v, w)| code_side(v, *w, price)).unzip();
            lines.push((name, coded));
            values
        };
        let a = match is_coded(FactorName::A) {
            true => side(FactorName::A, &self.a, &self.weights_a()),
            false => self.a.clone(),
        };
        let b = match is_coded(FactorName::B) {
            true => side(FactorName::B, &self.b, &self.weights_b()),
            false => self.b.clone(),
        };
        let (gram_a, mixed_a) = (gram(&a, &a), gram(&a, &self.a));
        let rank_side = if self.diagonal {
            FactorName::U
        } else {
            FactorName::C
        };
        let mut cores = self.cores.clone();
        if is_coded(rank_side) {
            let (own, mixed) = self.grams_b(&b, self.v.as_deref());
            let best = self.best_cores((&own, &mixed), (&gram_a, &mixed_a));
            let weights = self.rank_weights(&gram_a, &own);
            let values = side(rank_side, &self.rank_lines(&best), &weights);
            cores = self.cores_of(&values);
        }
        let mut v = self.v.clone();
        if let (true, Some(before)) = (is_coded(FactorName::V), &self.v) {
            v = Some(side(
                FactorName::V,
                before,
                &self.weights_v(&b, &cores, &gram_a),
            ));
        }
        let (own, mixed) = self.grams_b(&b, v.as_deref());
        let off = |l: usize| {
            let (core, before) = (&cores[l], &self.cores[l]);
            let cross = core * &mixed_a * before.transpose();
            let after = core * &gram_a * core.transpose();
            self.scale * (inner(&own[l], &after) - 2.0 * inner(&mixed[l], &cross))
        };
        let each = self.layers.iter().zip(&self.squares);
        let off = each.map(|(l, square)| (square + l.clone().map(off).sum::<f64>()).max(0.0));
        CodedTied {
            squares: off.collect(),
            lines,
        }
    }

    /// B'ᵀ·diag(v'²)·B' and B'ᵀ·diag(v'·v)·B of every layer.
    fn grams_b(&self, b: &[Vec<f32>], v: Option<&[Vec<f32>]>) -> (Vec<Mat<f64>>, Vec<Mat<f64>>) {
        let layers = self.cores.len();
        let (Some(after), Some(before)) = (v, &self.v) else {
            return (vec![gram(b, b); layers], vec![gram(b, &self.b); layers]);
        };
        let of = |l: usize| {
            let (own, old) = (
                scaled_by(b, Some(&after[l])),
                scaled_by(&self.b, Some(&before[l])),
            );
            (gram(&own, &own), gram(&own, &old))
        };
        (0..layers).map(of).unzip()
    }

    /// What goes best with A and B as they are coded, by least squares.
    fn best_cores(
        &self,
        (own, mixed): (&[Mat<f64>], &[Mat<f64>]),
        (gram_a, mixed_a): (&Mat<f64>, &Mat<f64>),
    ) -> Vec<Mat<f64>> {
        let r = self.a.len();
        let of = |l: usize| {
            let wanted = &mixed[l] * &self.cores[l] * mixed_a.transpose();
            let best = if self.diagonal {
                let system = Mat::from_fn(r, r, |i, k| own[l][(i, k)] * gram_a[(i, k)]);
                let right = Mat::from_fn(r, 1, |k, _| wanted[(k, k)]);
                let u = system.partial_piv_lu().solve(&right);
                Mat::from_fn(r, r, |i, k| if i == k { u[(k, 0)] } else { 0.0 })
            } else {
                let left = own[l].partial_piv_lu().solve(&wanted);
                let both = gram_a.partial_piv_lu().solve(left.transpose());
                both.transpose().to_owned()
            };
            // Lines of zeros make the system singular; then what was there stays.
            match best.norm_l2().is_finite() && best.norm_l2() < 4.0 * self.cores[l].norm_l2() {
                true => best,
                false => self.cores[l].clone(),
            }
        };
        (0..self.cores.len()).map(of).collect()
    }

    /// The lines of what the layers have on the rank side: columns of u, or rows of the cores.
    fn rank_lines(&self, cores: &[Mat<f64>]) -> Vec<Vec<f32>> {
        let r = self.a.len();
        if self.diagonal {
            let column =
                |l: Range<usize>, k: usize| cores[l].iter().map(|c| c[(k, k)] as f32).collect();
            let groups = self.layers.iter();
            let columns = groups.flat_map(|l| (0..r).map(move |k| column(l.clone(), k)));
            return columns.collect();
        }
        let row = |c: &Mat<f64>, i: usize| (0..r).map(|k| c[(i, k)] as f32).collect();
        let rows = cores.iter().flat_map(|c| (0..r).map(move |i| row(c, i)));
        rows.collect()
    }

    fn cores_of(&self, lines: &[Vec<f32>]) -> Vec<Mat<f64>> {
        let r = self.a.len();
        let of = |g: usize, l: usize| {
            let first = self.layers[g].start;
            Mat::from_fn(r, r, |i, k| match self.diagonal {
                true if i == k => f64::from(lines[g * r + k][l - first]),
                true => 0.0,
                false => f64::from(lines[l * r + i][k]),
            })
        };
        let groups = self.layers.iter().enumerate();
        groups
            .flat_map(|(g, l)| l.clone().map(move |l| of(g, l)))
            .collect()
    }

    fn rank_weights(&self, gram_a: &Mat<f64>, gram_b: &[Mat<f64>]) -> Vec<f64> {
        let r = self.a.len();
        if self.diagonal {
            let of = |l: Range<usize>, k: usize| {
                let count = l.len().max(1) as f64;
                let b: f64 = gram_b[l].iter().map(|g| g[(k, k)]).sum();
                self.scale * gram_a[(k, k)] * b / count
            };
            let groups = self.layers.iter();
            let weights = groups.flat_map(|l| (0..r).map(move |k| of(l.clone(), k)));
            return weights.collect();
        }
        let mean = (0..r).map(|k| gram_a[(k, k)]).sum::<f64>() / r as f64;
        let rows = gram_b.iter().flat_map(|g| (0..r).map(move |i| g[(i, i)]));
        rows.map(|b| self.scale * mean * b).collect()
    }

    fn weights_a(&self) -> Vec<f64> {
        self.summed(|l| self.cores[l].transpose() * &self.gram_b[l] * &self.cores[l])
    }

    fn weights_b(&self) -> Vec<f64> {
        self.summed(|l| {
            let v = self
                .v
                .as_ref()
                .map_or(1.0, |v| square(&v[l]) / v[l].len().max(1) as f64);
            (&self.cores[l] * &self.gram_a * self.cores[l].transpose()) * faer::Scale(v)
        })
    }

    fn weights_v(&self, b: &[Vec<f32>], cores: &[Mat<f64>], gram_a: &Mat<f64>) -> Vec<f64> {
        let (plain, m) = (gram(b, b), b.first().map_or(1, Vec::len).max(1));
        let of =
            |c: &Mat<f64>| self.scale * inner(&plain, &(c * gram_a * c.transpose())) / m as f64;
        cores.iter().map(of).collect()
    }

    /// The diagonal of a sum over the layers.
    fn summed(&self, of: impl Fn(usize) -> Mat<f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.a.len()];
        for l in 0..self.cores.len() {
            let one = of(l);
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum += self.scale * one[(k, k)];
            }
        }
        sums
    }
}

impl CodedTied {
    /// ‖ΔW − ΔW'‖² of all groups.
    pub(super) fn square(&self) -> f64 {
        self.squares.iter().sum()
    }

    /// The groups with their factors coded, A and B once.
    ///
    /// # Errors
    /// Those of [`Tensor::coded`].
    pub(super) fn groups(&self, groups: &[&TieGroup]) -> Result<Vec<TieGroup>> {
        let mut coded: Vec<TieGroup> = groups.iter().map(|g| (*g).clone()).collect();
        for (name, lines) in &self.lines {
            let axis = match name {
                FactorName::B | FactorName::U => Axis::Columns,
                _ => Axis::Rows,
            };
            let shared = matches!(name, FactorName::A | FactorName::B);
            let mut rest = lines.as_slice();
            let mut made = None;
            for group in &mut coded {
                let tensors = group.factors_mut().find(|(part, _)| part == name);
                let Some((_, factor)) = tensors else { continue };
                let shape = factor.tensor.shape().to_vec();
                factor.tensor = match (&made, shared) {
                    (Some(tensor), true) => Tensor::clone(tensor),
                    _ => {
                        let count = lines_of(&shape, axis);
                        let (own, others) = rest.split_at(count.min(rest.len()));
                        rest = others;
                        encoded(shape, axis, own)?
                    }
                };
                made = Some(factor.tensor.clone());
            }
        }
        Ok(coded)
    }
}

/// The lines of a tensor.
fn lines_of(shape: &[usize], axis: Axis) -> usize {
    match axis {
        Axis::Columns => shape.last().copied().unwrap_or(0),
        Axis::Rows => shape.iter().rev().skip(1).product(),
    }
}

fn encoded(shape: Vec<usize>, axis: Axis, lines: &[Option<SideLine>]) -> Result<Tensor> {
    let taken = |l: &SideLine| (l.line, l.integers.clone());
    let integers = Coded {
        axis,
        mantissa: COARSE,
        lines: lines.iter().map(|l| l.as_ref().map(taken)).collect(),
    };
    Tensor::encoded(shape, &integers)
}

/// A factor's numbers, so many to a row.
fn rows(factor: &Factor, width: usize) -> Result<Vec<Vec<f32>>> {
    let values = factor.tensor.to_f32()?;
    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
}

/// The layers of each group, one group after the other.
fn layer_ranges(groups: &[&TieGroup]) -> Vec<Range<usize>> {
    let counts = groups.iter().map(|g| g.instances());
    let ranges = counts.scan(0, |end, n| {
        let start = *end;
        *end += n;
        Some(start..*end)
    });
    ranges.collect()
}

/// What each layer has on the rank side: diag(u), a core, or 1.
fn cores_of(groups: &[&TieGroup], r: usize, count: usize) -> Result<Vec<Mat<f64>>> {
    let of_u = |u: &Vec<f32>| Mat::from_fn(r, r, |i, k| if i == k { f64::from(u[k]) } else { 0.0 });
    let of_core = |c: &Vec<f32>| Mat::from_fn(r, r, |i, k| f64::from(c[i * r + k]));
    let group = groups[0];
    Ok(match (&group.u, &group.core) {
        (Some(_), _) => {
            let rows = every(groups, |g| g.u.as_ref(), r)?;
            rows.iter().map(of_u).collect()
        }
        (_, Some(_)) => {
            let rows = every(groups, |g| g.core.as_ref(), r * r)?;
            rows.iter().map(of_core).collect()
        }
        _ => vec![Mat::identity(r, r); count],
    })
}

/// The rows of a factor that every group has of its own.
fn every<'g>(
    groups: &[&'g TieGroup],
    of: impl Fn(&'g TieGroup) -> Option<&'g Factor>,
    width: usize,
) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    for factor in groups.iter().filter_map(|g| of(g)) {
        all.append(&mut rows(factor, width)?);
    }
    Ok(all)
}

fn square(line: &[f32]) -> f64 {
    line.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// Columns, each number times that of v at its place.
fn scaled_by(columns: &[Vec<f32>], v: Option<&Vec<f32>>) -> Vec<Vec<f32>> {
    let Some(v) = v else {
        return columns.to_vec();
    };
    let column = |c: &Vec<f32>| c.iter().zip(v).map(|(x, v)| x * v).collect();
    columns.iter().map(column).collect()
}

fn transposed(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let columns = rows.first().map_or(0, Vec::len);
    let column = |k: usize| rows.iter().map(|r| r[k]).collect();
    (0..columns).map(column).collect()
}
