//! The factors of one module, as the arithmetic of a merge takes them.

use std::ops::Range;

use ndarray::Array2;

use super::factor::Factor;
use super::group::TieGroup;
use crate::error::{Code, Error, Result};
use crate::tensor::{Tensor, product, scale_rows};

/// The factors of one module, ready for the arithmetic of spec §12: D = s · (left · right).
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// B' = diag(v)·B, out × rank, row-major.
    pub left: Vec<f32>,
    /// A' = diag(u)·A or C·A, rank × in, row-major.
    pub right: Vec<f32>,
    /// Rank.
    pub rank: usize,
    /// Output features.
    pub out: usize,
    /// Input features.
    pub in_features: usize,
    /// s before it becomes f32.
    pub scale: f64,
}

impl LowRank {
    /// ΔW (out × in) in f32 by the normative arithmetic. For small modules and tests: it is dense.
    pub fn delta(&self) -> Array2<f32> {
        let s = self.scale as f32;
        Array2::from_shape_fn((self.out, self.in_features), |(i, j)| {
            let left = &self.left[i * self.rank..(i + 1) * self.rank];
            let d = left.iter().enumerate().fold(0.0f32, |acc, (k, b)| {
                b.mul_add(self.right[k * self.in_features + j], acc)
            });
            if s == 1.0 { d } else { s * d }
        })
    }
}

impl TieGroup {
    /// The factors of one instance of a target, widened to f32 and scaled: `A' = rn32(u·A)` or C·A by
    /// [`product`], `B' = rn32(v·B)`.
    ///
    /// # Errors
    /// [`Code::Usage`] for an index out of range, or a factor without its bytes;
    /// [`Code::DtypeNotAllowed`] for one that is neither F32, F16, BF16 nor quantised.
    pub fn low_rank(&self, instance: usize, target: usize) -> Result<LowRank> {
        let t = self.targets.get(target).ok_or_else(|| out_of(instance))?;
        let first_row: usize = self.targets[..target].iter().map(|t| t.out).sum();
        let rows = first_row..first_row + t.out;
        let r = self.rank;
        Ok(LowRank {
            left: self.left_rows(instance, rows)?,
            right: self.right(instance)?,
            rank: r,
            out: t.out,
            in_features: self.in_features,
            scale: self.scaling.factor(r),
        })
    }

    /// A of an instance, r × in, without u or core.
    pub(crate) fn inputs(&self, instance: usize) -> Result<Vec<f32>> {
        let range = || out_of(instance);
        let (r, n) = (self.rank, self.in_features);
        let a = self.slice(&self.a.tensor, 3, instance).ok_or_else(range)?;
        let columns = *a.shape().last().ok_or_else(range)?;
        let wide = a.to_f32()?;
        let mut right = Vec::with_capacity(r * n);
        for row in wide.chunks_exact(columns.max(1)) {
            right.extend_from_slice(row.get(..n).ok_or_else(range)?);
        }
        match right.len() == r * n {
            true => Ok(right),
            false => Err(range()),
        }
    }

    /// A' of an instance, r × in: with u or core.
    pub(crate) fn right(&self, instance: usize) -> Result<Vec<f32>> {
        let (r, n) = (self.rank, self.in_features);
        let mut right = self.inputs(instance)?;
        if let Some(core) = self.own_core(instance)? {
            right = product(&core, &right, r, n);
        }
        if let Some(u) = self.own_u(instance)? {
            scale_rows(&mut right, n, &u);
        }
        Ok(right)
    }

    /// B of an instance and all targets, Σ out × r, without v.
    pub(crate) fn outputs(&self, instance: usize) -> Result<Vec<f32>> {
        self.b_rows(instance, 0..self.total_out())
    }

    /// B' of an instance and all targets, Σ out × r: with v.
    pub(crate) fn left(&self, instance: usize) -> Result<Vec<f32>> {
        self.left_rows(instance, 0..self.total_out())
    }

    /// The core of an instance, r × r.
    pub(crate) fn own_core(&self, instance: usize) -> Result<Option<Vec<f32>>> {
        self.own(self.core.as_ref(), 3, instance, self.rank * self.rank)
    }

    /// u of an instance.
    pub(crate) fn own_u(&self, instance: usize) -> Result<Option<Vec<f32>>> {
        self.own(self.u.as_ref(), 2, instance, self.rank)
    }

    fn b_rows(&self, instance: usize, rows: Range<usize>) -> Result<Vec<f32>> {
        let range = || out_of(instance);
        let b = self.slice(&self.b.tensor, 3, instance).ok_or_else(range)?;
        let left = b.slice_first(rows.clone()).ok_or_else(range)?.to_f32()?;
        match left.len() == rows.len() * self.rank {
            true => Ok(left),
            false => Err(range()),
        }
    }

    fn left_rows(&self, instance: usize, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut left = self.b_rows(instance, rows.clone())?;
        if let Some(v) = self.own(self.v.as_ref(), 2, instance, rows.end)? {
            scale_rows(&mut left, self.rank, &v[rows]);
        }
        Ok(left)
    }

    /// What an instance has of a factor that has `stacked_rank` axes with the instances': so many leading values.
    fn own(
        &self,
        factor: Option<&Factor>,
        stacked_rank: usize,
        instance: usize,
        len: usize,
    ) -> Result<Option<Vec<f32>>> {
        let Some(factor) = factor else {
            return Ok(None);
        };
        let row = self.slice(&factor.tensor, stacked_rank, instance);
        let mut row = row.ok_or_else(|| out_of(instance))?.to_f32()?;
        match row.len() < len {
            true => Err(out_of(instance)),
            false => {
                row.truncate(len);
                Ok(Some(row))
            }
        }
    }

    /// The instance's slice of a tensor that has an axis for it (`stacked_rank` axes), else the tensor
    /// itself.
    fn slice(&self, tensor: &Tensor, stacked_rank: usize, instance: usize) -> Option<Tensor> {
        match tensor.shape() {
            [extent, ..] if tensor.shape().len() == stacked_rank => {
                tensor.index_first(self.entry(*extent, instance))
            }
            _ => Some(tensor.clone()),
        }
    }
}

fn out_of(instance: usize) -> Error {
    let message = format!("no instance {instance}, or no such target, in this tie group");
    Error::new(Code::Usage, message)
}
