//! One weight of both checkpoints, and its difference as factors.

use super::delta::{Delta, MOST_HELD, Numbers};
use super::options::ExtractOptions;
use super::solver::{Leading, leading, refit, residual, square};
use crate::adapter::{Factor, LowRank, ModuleKind, Scaling, Target, TieGroup, split_layer};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor};

/// Singular values below this share of the largest are nothing but rounding.
const ZERO: f64 = 1e-9;

/// A weight that becomes factors: of one matrix, or of one for each expert, all of one rank.
pub(super) struct Unit<'c> {
    /// The path of its module, or the parameter's name.
    pub(super) name: String,
    pub(super) kind: ModuleKind,
    pub(super) experts: Option<usize>,
    /// Rows and columns of a matrix as it is stored.
    pub(super) shape: (usize, usize),
    pub(super) base: Numbers<'c>,
    pub(super) tuned: Numbers<'c>,
}

/// What the singular values of a unit's matrices explain.
pub(super) struct Spectrum {
    /// ‖ΔW‖²_F.
    pub(super) square: f64,
    /// Sums of the squares of the first, second … singular values.
    pub(super) squares: Vec<f64>,
    /// Whether there are no more.
    pub(super) is_whole: bool,
}

/// A unit as it is written.
pub(super) struct Solved {
    pub(super) group: TieGroup,
    /// ‖ΔW‖²_F.
    pub(super) square: f64,
    /// ‖ΔW − ΔW'‖²_F.
    pub(super) missed: f64,
    /// What no factors of this rank miss less than.
    pub(super) least: f64,
}

/// The factors of one matrix, in the order of the adapter: A is rank × in, B is out × rank.
struct Factors {
    a: Tensor,
    b: Tensor,
    missed: f64,
    least: f64,
}

impl Unit<'_> {
    /// Elements of all its matrices.
    pub(super) fn elements(&self) -> usize {
        self.matrices() * self.shape.0 * self.shape.1
    }

    fn matrices(&self) -> usize {
        self.experts.unwrap_or(1)
    }

    /// The highest rank that its matrices have.
    pub(super) fn size(&self) -> usize {
        self.shape.0.min(self.shape.1)
    }

    /// Numbers of one rank of the factors of all its matrices.
    pub(super) fn numbers(&self) -> usize {
        self.matrices() * (self.shape.0 + self.shape.1)
    }

    /// The tensor that messages are about.
    pub(super) fn tensor(&self) -> String {
        match self.kind.is_parameter() {
            true => self.name.clone(),
            false => format!("{}.weight", self.name),
        }
    }

    fn delta(&self, matrix: usize) -> Result<Delta<'_>> {
        let first = matrix * self.shape.0;
        Delta::new((self.base, self.tuned), first, self.shape)
    }

    fn norm(&self, delta: &Delta<'_>) -> Result<f64> {
        let found = square(delta)?;
        match found.is_finite() {
            true => Ok(found),
            false => {
                Err(Error::new(Code::NonFinite, "its difference is not finite")
                    .tensor(self.tensor()))
            }
        }
    }

    /// The leading singular values, at least `rank` of each matrix.
    ///
    /// # Errors
    /// Those of reading; [`Code::NonFinite`].
    pub(super) fn spectrum(&self, rank: usize) -> Result<Spectrum> {
        let mut all = Spectrum {
            square: 0.0,
            squares: vec![0.0; rank.min(self.size())],
            is_whole: rank >= self.size(),
        };
        for matrix in 0..self.matrices() {
            let delta = self.delta(matrix)?;
            let square = self.norm(&delta)?;
            if square == 0.0 {
                continue;
            }
            all.square += square;
            let found =
                leading(&delta, rank, square, false).map_err(|e| e.tensor(self.tensor()))?;
            for (sum, own) in all.squares.iter_mut().zip(&found.squares) {
                *sum += own;
            }
        }
        Ok(all)
    }

    /// Its factors at a rank; `None` where both checkpoints have the same.
    ///
    /// # Errors
    /// Those of reading; [`Code::NonFinite`].
    pub(super) fn solve(&self, rank: usize, options: &ExtractOptions) -> Result<Option<Solved>> {
        let mut found = Vec::with_capacity(self.matrices());
        let (mut all, mut highest) = (0.0, 1);
        for matrix in 0..self.matrices() {
            let delta = self.delta(matrix)?;
            let square = self.norm(&delta)?;
            all += square;
            let triplets = match square > 0.0 {
                true => {
                    Some(leading(&delta, rank, square, true).map_err(|e| e.tensor(self.tensor()))?)
                }
                false => None,
            };
            if let Some(triplets) = &triplets {
                let floor = ZERO * triplets.values.first().copied().unwrap_or(0.0);
                let rank = triplets.values.iter().filter(|s| **s > floor).count();
                highest = highest.max(rank);
            }
            // Factors of one expert are small beside its weights, which are read again.
            let delta = self.experts.is_none().then_some(delta);
            found.push((triplets, delta, matrix));
        }
        if all == 0.0 {
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(found.len());
        for (triplets, delta, matrix) in found {
            let part = match triplets {
                None => self.nothing(highest, options.dtype)?,
                Some(triplets) => {
                    let delta = match delta {
                        Some(delta) => delta,
                        None => self.delta(matrix)?,
                    };
                    self.factors(&delta, &triplets, highest, options.dtype)
                        .map_err(|e| e.tensor(self.tensor()))?
                }
            };
            parts.push(part);
        }
        let missed = parts.iter().map(|p| p.missed).sum();
        let least = parts.iter().map(|p| p.least).sum();
        Ok(Some(Solved {
            group: self.group(highest, parts)?,
            square: all,
            missed,
            least,
        }))
    }

    /// Whether its matrices are held in memory, one on each thread.
    pub(super) fn is_small(&self) -> bool {
        self.shape.0 * self.shape.1 <= MOST_HELD
    }

    /// ‖ΔW − ΔW'‖²_F of an update of this weight.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn missed_by(&self, update: &LowRank) -> Result<f64> {
        let s = update.scale as f32;
        let left: Vec<f32> = update.left.iter().map(|x| s * x).collect();
        let (out, n, rank) = (update.out, update.in_features, update.rank);
        let delta = self.delta(0)?;
        match self.kind.is_transposed() {
            false => residual(&delta, &left, &update.right, rank),
            true => {
                let (own, other) = (flipped(&update.right, rank, n), flipped(&left, out, rank));
                residual(&delta, &own, &other, rank)
            }
        }
    }

    /// Out and in features.
    fn features(&self) -> (usize, usize) {
        match self.kind.is_transposed() {
            true => (self.shape.1, self.shape.0),
            false => self.shape,
        }
    }

    fn nothing(&self, rank: usize, dtype: Dtype) -> Result<Factors> {
        let (out, n) = self.features();
        let dtype = if dtype == Dtype::I8 {
            Dtype::F32
        } else {
            dtype
        };
        let zeros = |rows: usize, cols: usize| {
            Tensor::narrowed(dtype, vec![rows, cols], &vec![0.0; rows * cols])
        };
        Ok(Factors {
            a: zeros(rank, n)?,
            b: zeros(out, rank)?,
            missed: 0.0,
            least: 0.0,
        })
    }

    /// The triplets as factors of equal lengths, stored, and measured as they are stored.
    fn factors(
        &self,
        delta: &Delta<'_>,
        found: &Leading,
        rank: usize,
        dtype: Dtype,
    ) -> Result<Factors> {
        let (rows, cols) = self.shape;
        let kept = found.values.len().min(rank);
        let roots: Vec<f32> = found.values.iter().map(|s| s.sqrt() as f32).collect();
        let mut left = vec![0.0f32; rows * rank];
        for (i, row) in left.chunks_mut(rank).enumerate() {
            for (k, x) in row.iter_mut().take(kept).enumerate() {
                *x = found.left[(i, k)] * roots[k];
            }
        }
        let mut right = vec![0.0f32; rank * cols];
        for (k, row) in right.chunks_mut(cols).take(kept).enumerate() {
            for (x, v) in row.iter_mut().zip(found.right.col_as_slice(k)) {
                *x = v * roots[k];
            }
        }
        // As a module has them: B is out × rank, and of a weight that is stored (in, out) the right one.
        let transposed = self.kind.is_transposed();
        let store = |is_left: bool, values: &[f32]| -> Result<(Tensor, Vec<f32>)> {
            let (rows, cols) = if is_left { (rows, rank) } else { (rank, cols) };
            let (shape, stored) = match transposed {
                true => (vec![cols, rows], flipped(values, rows, cols)),
                false => (vec![rows, cols], values.to_vec()),
            };
            let tensor = Tensor::stored(dtype, shape.clone(), &stored)?;
            let back = tensor.to_f32()?;
            let tensor = match dtype {
                // Rows get the same codes again once layers are stacked.
                Dtype::I8 => Tensor::from_f32(shape, &back)?,
                _ => tensor,
            };
            let back = match transposed {
                true => flipped(&back, cols, rows),
                false => back,
            };
            Ok((tensor, back))
        };
        let (of_right, right) = store(false, &right)?;
        if dtype != Dtype::F32
            && let Some(better) = refit(delta, &right, rank)?
        {
            left = better;
        }
        let (of_left, left) = store(true, &left)?;
        let missed = residual(delta, &left, &right, rank)?;
        let (a, b) = match transposed {
            true => (of_left, of_right),
            false => (of_right, of_left),
        };
        Ok(Factors {
            a,
            b,
            missed,
            least: (found.square - found.most).max(0.0).min(missed),
        })
    }

    fn group(&self, rank: usize, parts: Vec<Factors>) -> Result<TieGroup> {
        let (out, n) = self.features();
        let (a, b): (Vec<Tensor>, Vec<Tensor>) = parts.into_iter().map(|p| (p.a, p.b)).unzip();
        let factor = |own: Vec<Tensor>| -> Result<Factor> {
            Ok(Factor::trained(match self.experts {
                None => own.into_iter().next().ok_or_else(none)?,
                Some(_) => stack(&own)?,
            }))
        };
        let (module, layer) = split_layer(&self.name);
        Ok(TieGroup {
            layers: layer.map(|l| vec![l]),
            experts: self.experts,
            rank,
            in_features: n,
            scaling: Scaling::one(rank),
            a: factor(a)?,
            b: factor(b)?,
            core: None,
            u: None,
            v: None,
            targets: vec![Target {
                module,
                out,
                kind: self.kind,
            }],
        })
    }
}

fn none() -> Error {
    Error::new(Code::Usage, "a weight without matrices")
}

/// Tensors of one shape as one with an axis before.
fn stack(parts: &[Tensor]) -> Result<Tensor> {
    let first = parts.first().ok_or_else(none)?;
    let shape = [&[parts.len()], first.shape()].concat();
    let bytes: Vec<&[u8]> = parts.iter().map(|p| &**p.data()).collect();
    Tensor::new(first.dtype(), shape, bytes.concat())
}

/// A row-major matrix of `rows` × `cols`, transposed.
fn flipped(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let column = |j: usize| (0..rows).map(move |i| values[i * cols + j]);
    (0..cols).flat_map(column).collect()
}
