//! The adapter's share of a product: y += s · (x·Aᵀ)·Bᵀ in some columns of y.

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut as _;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::slices::ROWS;
use super::slices::update;
use super::{add_in_place, f32s, is_fused, tensor};
use crate::error::Result;

/// Columns handled by one task where tokens are summed over.
const TILE: usize = 128;

/// Rows of B that make columns of y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row of B.
    pub row: usize,
    /// First column of y.
    pub column: usize,
    /// How many.
    pub len: usize,
}

/// One pair of factors beside a product, u and v multiplied in; in f32 beside activations in half
/// precision, else in their type.
#[derive(Debug, Clone)]
pub struct Branch {
    /// r × in
    pub a: Tensor,
    /// out × r
    pub b: Tensor,
    /// s
    pub scale: f64,
    /// Where the rows of B go.
    pub spans: Vec<Span>,
    /// Whether the gradients of A and of B are wanted.
    pub wanted: [bool; 2],
}

/// Gradients of a [`Branch`], where wanted.
#[derive(Debug, Clone, Default)]
pub struct BranchGrads {
    /// r × in
    pub a: Option<Tensor>,
    /// out × r
    pub b: Option<Tensor>,
}

/// y (tokens × width, consumed) with the branch added, and p = x·Aᵀ (tokens × r) for the backward.
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn add_branch(y: Tensor, x: &Tensor, branch: &Branch) -> Result<(Tensor, Tensor)> {
    if !is_fused(x) {
        // The factors are f32 beside half-precision activations: a small step of training is lost
        // in half precision.
        let p = x.to_dtype(branch.a.dtype())?.matmul(&branch.a.t()?)?;
        let part = (&p * branch.scale)?.matmul(&branch.b.t()?)?;
        return Ok((scatter(&y, &part.to_dtype(y.dtype())?, &branch.spans)?, p));
    }
    let (tokens, width) = y.dims2()?;
    let (rank, in_features) = branch.a.dims2()?;
    let out = branch.b.dim(0)?;
    let mut p = vec![0.0; tokens * rank];
    {
        let (x, a, b) = (f32s(x)?, f32s(&branch.a)?, f32s(&branch.b)?);
        let a = MatRef::from_row_major_slice(&a, rank, in_features);
        (p.par_chunks_mut(ROWS * rank))
            .zip(x.par_chunks(ROWS * in_features))
            .for_each(|(p, x)| {
                let rows = x.len() / in_features;
                let x = MatRef::from_row_major_slice(x, rows, in_features);
                let p = MatMut::from_row_major_slice_mut(p, rows, rank);
                matmul(p, Accum::Replace, x, a.transpose(), 1.0, Par::Seq);
            });
        let b = MatRef::from_row_major_slice(&b, out, rank);
        update(&y, |y| {
            (y.par_chunks_mut(ROWS * width))
                .zip(p.par_chunks(ROWS * rank))
                .for_each(|(y, p)| {
                    let rows = p.len() / rank;
                    let p = MatRef::from_row_major_slice(p, rows, rank);
                    let mut y = MatMut::from_row_major_slice_mut(y, rows, width);
                    for span in &branch.spans {
                        let y = y.rb_mut().subcols_mut(span.column, span.len);
                        let b = b.subrows(span.row, span.len);
                        matmul(
                            y,
                            Accum::Add,
                            p,
                            b.transpose(),
                            branch.scale as f32,
                            Par::Seq,
                        );
                    }
                });
        })?;
    }
    Ok((y, tensor(p, tokens, rank)?))
}

/// dx (consumed; None where nothing below wants it) with the branch's share added, and the
/// gradients of A and B, given dy, x and the p of [`add_branch`].
///
/// # Errors
/// [`crate::Code::Backend`]
pub fn branch_backward(
    dx: Option<Tensor>,
    dy: &Tensor,
    x: &Tensor,
    p: &Tensor,
    branch: &Branch,
) -> Result<(Option<Tensor>, BranchGrads)> {
    if !is_fused(x) {
        return composed_backward(dx, dy, x, p, branch);
    }
    let b_grad = match branch.wanted[1] {
        true => Some(b_gradient(dy, p, branch)?),
        false => None,
    };
    if dx.is_none() && !branch.wanted[0] {
        return Ok((None, BranchGrads { a: None, b: b_grad }));
    }
    let dp = p_gradient(dy, branch)?;
    let a_grad = match branch.wanted[0] {
        true => Some(a_gradient(&dp, x)?),
        false => None,
    };
    let dx = match dx {
        None => None,
        Some(dx) => {
            let (rank, in_features) = branch.a.dims2()?;
            {
                let (dp, a) = (f32s(&dp)?, f32s(&branch.a)?);
                let a = MatRef::from_row_major_slice(&a, rank, in_features);
                update(&dx, |dx| {
                    (dx.par_chunks_mut(ROWS * in_features))
                        .zip(dp.par_chunks(ROWS * rank))
                        .for_each(|(dx, dp)| {
                            let rows = dp.len() / rank;
                            let dp = MatRef::from_row_major_slice(dp, rows, rank);
                            let dx = MatMut::from_row_major_slice_mut(dx, rows, in_features);
                            matmul(dx, Accum::Add, dp, a, 1.0, Par::Seq);
                        });
                })?;
            }
            Some(dx)
        }
    };
    Ok((
        dx,
        BranchGrads {
            a: a_grad,
            b: b_grad,
        },
    ))
}

fn composed_backward(
    dx: Option<Tensor>,
    dy: &Tensor,
    x: &Tensor,
    p: &Tensor,
    branch: &Branch,
) -> Result<(Option<Tensor>, BranchGrads)> {
    let dtype = branch.a.dtype();
    let dy = gather(dy, &branch.spans)?.to_dtype(dtype)?;
    let b = match branch.wanted[1] {
        true => Some(dy.t()?.matmul(&(p * branch.scale)?)?),
        false => None,
    };
    if dx.is_none() && !branch.wanted[0] {
        return Ok((None, BranchGrads { a: None, b }));
    }
    let dp = (dy.matmul(&branch.b)? * branch.scale)?;
    let a = match branch.wanted[0] {
        true => Some(dp.t()?.matmul(&x.to_dtype(dtype)?)?),
        false => None,
    };
    let dx = match dx {
        None => None,
        Some(dx) => {
            let part = dp.matmul(&branch.a)?.to_dtype(dx.dtype())?;
            Some(add_in_place(dx, &part)?)
        }
    };
    Ok((dx, BranchGrads { a, b }))
}

/// s · dy·B: tokens × r.
fn p_gradient(dy: &Tensor, branch: &Branch) -> Result<Tensor> {
    let (tokens, width) = dy.dims2()?;
    let (out, rank) = branch.b.dims2()?;
    let mut dp = vec![0.0; tokens * rank];
    let (dy, b) = (f32s(dy)?, f32s(&branch.b)?);
    let b = MatRef::from_row_major_slice(&b, out, rank);
    (dp.par_chunks_mut(ROWS * rank))
        .zip(dy.par_chunks(ROWS * width))
        .for_each(|(dp, dy)| {
            let rows = dy.len() / width;
            let dy = MatRef::from_row_major_slice(dy, rows, width);
            let mut dp = MatMut::from_row_major_slice_mut(dp, rows, rank);
            for span in &branch.spans {
                let (dy, b) = (
                    dy.subcols(span.column, span.len),
                    b.subrows(span.row, span.len),
                );
                matmul(
                    dp.rb_mut(),
                    Accum::Add,
                    dy,
                    b,
                    branch.scale as f32,
                    Par::Seq,
                );
            }
        });
    tensor(dp, tokens, rank)
}

/// s · dyᵀ·p: out × r, shared out by rows of it.
fn b_gradient(dy: &Tensor, p: &Tensor, branch: &Branch) -> Result<Tensor> {
    let (tokens, width) = dy.dims2()?;
    let (out, rank) = branch.b.dims2()?;
    let (dy, p) = (f32s(dy)?, f32s(p)?);
    let dy = MatRef::from_row_major_slice(&dy, tokens, width);
    let p = MatRef::from_row_major_slice(&p, tokens, rank);
    let tiles: Vec<Span> = (branch.spans.iter())
        .flat_map(|s| {
            (0..s.len).step_by(TILE).map(|start| Span {
                row: s.row + start,
                column: s.column + start,
                len: TILE.min(s.len - start),
            })
        })
        .collect();
    let parts: Vec<Vec<f32>> = (tiles.par_iter())
        .map(|tile| {
            let mut part = vec![0.0; tile.len * rank];
            let to = MatMut::from_row_major_slice_mut(&mut part, tile.len, rank);
            let dy = dy.subcols(tile.column, tile.len);
            matmul(
                to,
                Accum::Replace,
                dy.transpose(),
                p,
                branch.scale as f32,
                Par::Seq,
            );
            part
        })
        .collect();
    let mut gradient = vec![0.0; out * rank];
    for (tile, part) in tiles.iter().zip(&parts) {
        gradient[tile.row * rank..(tile.row + tile.len) * rank].copy_from_slice(part);
    }
    tensor(gradient, out, rank)
}

/// dpᵀ·x: r × in, shared out by columns of it.
fn a_gradient(dp: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (tokens, rank) = dp.dims2()?;
    let in_features = x.dim(1)?;
    let (dp, x) = (f32s(dp)?, f32s(x)?);
    let dp = MatRef::from_row_major_slice(&dp, tokens, rank);
    let x = MatRef::from_row_major_slice(&x, tokens, in_features);
    let starts: Vec<usize> = (0..in_features).step_by(TILE).collect();
    let parts: Vec<Vec<f32>> = (starts.par_iter())
        .map(|start| {
            let n = TILE.min(in_features - start);
            let mut part = vec![0.0; rank * n];
            let to = MatMut::from_row_major_slice_mut(&mut part, rank, n);
            matmul(
                to,
                Accum::Replace,
                dp.transpose(),
                x.subcols(*start, n),
                1.0,
                Par::Seq,
            );
            part
        })
        .collect();
    let mut gradient = vec![0.0; rank * in_features];
    for (start, part) in starts.iter().zip(&parts) {
        let n = part.len() / rank;
        for (to, part) in gradient.chunks_mut(in_features).zip(part.chunks(n)) {
            to[*start..start + n].copy_from_slice(part);
        }
    }
    tensor(gradient, rank, in_features)
}

/// The columns of the spans, in the order of B's rows.
fn gather(dy: &Tensor, spans: &[Span]) -> Result<Tensor> {
    let mut spans = spans.to_vec();
    spans.sort_by_key(|s| s.row);
    let parts: candle_core::Result<Vec<Tensor>> = spans
        .iter()
        .map(|s| dy.narrow(1, s.column, s.len))
        .collect();
    Ok(Tensor::cat(&parts?, 1)?.contiguous()?)
}

/// y with the columns of `part` added where the spans say.
fn scatter(y: &Tensor, part: &Tensor, spans: &[Span]) -> Result<Tensor> {
    if let [
        Span {
            row: 0,
            column: 0,
            len,
        },
    ] = spans
        && *len == y.dim(1)?
    {
        return Ok((y + part)?);
    }
    let mut spans = spans.to_vec();
    spans.sort_by_key(|s| s.column);
    let mut columns = Vec::new();
    let mut at = 0;
    for span in &spans {
        columns.push(y.narrow(1, at, span.column - at)?);
        let own = y.narrow(1, span.column, span.len)?;
        columns.push((own + part.narrow(1, span.row, span.len)?)?);
        at = span.column + span.len;
    }
    columns.push(y.narrow(1, at, y.dim(1)? - at)?);
    columns.retain(|c| c.elem_count() > 0);
    Ok(Tensor::cat(&columns, 1)?)
}

#[cfg(test)]
mod tests {
    use super::super::slices::tests::{close, random};
    use super::*;
    use candle_core::DType;

    #[test]
    fn fused_branches_equal_composed_ones() {
        // B's rows are q then v; y is [k q v'] with gaps, and q is interleaved.
        let spans = vec![
            Span {
                row: 0,
                column: 40,
                len: 3,
            },
            Span {
                row: 3,
                column: 50,
                len: 130,
            },
            Span {
                row: 133,
                column: 2,
                len: 7,
            },
        ];
        let narrow = Branch {
            a: random(5, 33, 1),
            b: random(140, 5, 2),
            scale: 1.5,
            spans,
            wanted: [true, true],
        };
        let to64 = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let wide = Branch {
            a: to64(&narrow.a),
            b: to64(&narrow.b),
            ..narrow.clone()
        };
        let (x, y, dx) = (random(300, 33, 3), random(300, 190, 4), random(300, 33, 5));
        let (right, p64) = add_branch(to64(&y), &to64(&x), &wide).unwrap();
        let (out, p) = add_branch(y.copy().unwrap(), &x, &narrow).unwrap();
        close(&out, &right, 1e-6);
        let dy = random(300, 190, 6);
        let (right, grads64) =
            branch_backward(Some(to64(&dx)), &to64(&dy), &to64(&x), &p64, &wide).unwrap();
        let (dx, grads) = branch_backward(Some(dx.copy().unwrap()), &dy, &x, &p, &narrow).unwrap();
        close(&dx.unwrap(), &right.unwrap(), 1e-5);
        close(&grads.a.unwrap(), &grads64.a.unwrap(), 1e-5);
        close(&grads.b.unwrap(), &grads64.b.unwrap(), 1e-5);
    }
}
