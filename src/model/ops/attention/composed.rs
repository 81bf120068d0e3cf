//! Attention composed of candle's operations.
//!
//! Query heads that share keys are rows of one product, so that keys and values are neither
//! repeated nor their gradients summed afterwards; neighbouring sequences of one length are one
//! batch. Scores are whole: rows × keys for each query head, of as many sequences at a time as
//! [`MOST`] allows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::super::head::{cap_slope, capped};
use super::super::kernels::{Call, run, serve};
use super::super::slices::wide;
use super::heads::{Heads, Past};
use crate::error::Result;

/// Most scores that are made at a time, unless one sequence has more: 512 MiB in f32.
const MOST: usize = 1 << 27;

/// Sequences of one length, end to end.
struct Group {
    start: usize,
    count: usize,
    rows: usize,
}

fn groups(heads: &Heads, sequences: &[Range<usize>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for range in sequences {
        let rows = range.len();
        match groups.last_mut() {
            Some(last) if last.rows == rows && (last.count + 1) * heads.q * rows * rows <= MOST => {
                last.count += 1;
            }
            _ => groups.push(Group {
                start: range.start,
                count: 1,
                rows,
            }),
        }
    }
    groups
}

/// `heads` heads from column `start` on of `count` sequences of `rows` rows: count · heads × rows
/// × dim.
fn split(
    x: &Tensor,
    [count, rows]: [usize; 2],
    [start, heads]: [usize; 2],
    dim: usize,
) -> Result<Tensor> {
    let x = x.narrow(1, start * dim, heads * dim)?;
    let x = x.reshape((count, rows, heads, dim))?.transpose(1, 2)?;
    Ok(x.contiguous()?.reshape((count * heads, rows, dim))?)
}

/// The reverse of [`split`]: count · rows × heads · dim.
fn join(x: &Tensor, [count, rows]: [usize; 2], heads: usize, dim: usize) -> Result<Tensor> {
    let x = x.reshape((count, heads, rows, dim))?.transpose(1, 2)?;
    Ok(x.reshape((count * rows, heads * dim))?)
}

/// What hides keys from queries, made once for all layers and sequences of a batch.
#[derive(Debug, Default)]
pub struct Masks(RefCell<BTreeMap<Option<usize>, Tensor>>);

impl Masks {
    /// What is added to the scores of the last `rows` of `keys` positions: 0 where a query sees
    /// the key, −∞ where it does not. None where all are seen.
    fn get(
        &self,
        heads: &Heads,
        [rows, keys]: [usize; 2],
        (device, dtype): (&Device, DType),
    ) -> Result<Option<Tensor>> {
        let window = heads.window.filter(|w| *w < keys);
        if rows == 1 && window.is_none() {
            return Ok(None);
        }
        let mut masks = self.0.borrow_mut();
        // That of fewer positions is the first rows and columns of that of more.
        let whole = match masks.get(&window) {
            Some(whole) if whole.dim(0)? >= keys => whole.clone(),
            _ => {
                let whole = mask(keys, window, device, dtype)?;
                masks.insert(window, whole.clone());
                whole
            }
        };
        Ok(Some(
            whole.narrow(0, keys - rows, rows)?.narrow(1, 0, keys)?,
        ))
    }
}

fn mask(keys: usize, window: Option<usize>, device: &Device, dtype: DType) -> Result<Tensor> {
    let line = |from: usize| {
        let positions = Tensor::arange(from as u32, (from + keys) as u32, device)?;
        positions.reshape((1, keys))
    };
    let (key, query) = (line(0)?, line(0)?.t()?);
    let later = key.broadcast_gt(&query)?;
    let hidden = match window {
        None => later,
        Some(window) => (later + line(window)?.broadcast_le(&query)?)?,
    };
    let shown = Tensor::zeros((keys, keys), dtype, device)?;
    let infinite = Tensor::full(f32::NEG_INFINITY, (keys, keys), device)?.to_dtype(dtype)?;
    Ok(hidden.where_cond(&infinite, &shown)?)
}

/// The softmax of scale · q·kᵀ, and where there is a cap on that its slope; made in f32 at least: q is b · kv × group · rows × dim with all rows of
/// a query head together, k is b · kv × keys × dim, and the result b · kv × group · rows × keys.
fn probabilities(
    [q, k]: [&Tensor; 2],
    heads: &Heads,
    rows: usize,
    masks: &Masks,
) -> Result<(Tensor, Option<Tensor>)> {
    let scores = q.matmul(&k.t()?)?;
    let (batch, all, keys) = scores.dims3()?;
    if serve(&scores) && heads.cap.is_none() {
        let window = heads.window.filter(|w| *w < keys).unwrap_or(0);
        let call = Call::new("softmax", batch * all, &[&scores])?;
        let p = run(call.ints(&[rows, keys, window]).floats(&[heads.scale]))?;
        return Ok((p, None));
    }
    let dtype = wide(q.dtype());
    let scores = (scores.to_dtype(dtype)? * f64::from(heads.scale))?;
    let (scores, bend) = match heads.cap {
        None => (scores, None),
        Some(cap) => {
            let scores = capped(&scores, cap)?;
            let bend = cap_slope(&scores, cap)?;
            (scores, Some(bend))
        }
    };
    let scores = match masks.get(heads, [rows, keys], (q.device(), dtype))? {
        None => scores,
        Some(mask) => {
            let each = scores.reshape((batch * all / rows, rows, keys))?;
            each.broadcast_add(&mask)?.reshape((batch, all, keys))?
        }
    };
    let top = scores.max_keepdim(D::Minus1)?;
    let scores = scores.broadcast_sub(&top)?.exp()?;
    let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    Ok((p, bend))
}

impl Group {
    /// The group's rows of `x`.
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(0, self.start, self.count * self.rows)?)
    }

    fn shape(&self) -> [usize; 2] {
        [self.count, self.rows]
    }

    /// Rows of all query heads as the rows that read each key head.
    fn queries(&self, x: &Tensor, heads: &Heads) -> Result<Tensor> {
        let q = split(x, self.shape(), [0, heads.q], heads.dim)?;
        let group = heads.q / heads.kv;
        Ok(q.reshape((self.count * heads.kv, group * self.rows, heads.dim))?)
    }

    fn keys_and_values(&self, x: &Tensor, heads: &Heads) -> Result<[Tensor; 2]> {
        let side = |start| split(x, self.shape(), [start, heads.kv], heads.dim);
        Ok([side(heads.q)?, side(heads.q + heads.kv)?])
    }
}

/// As [`super::attention`].
pub(super) fn forward(
    qkv: &Tensor,
    heads: &Heads,
    sequences: &[Range<usize>],
    past: Option<&[Past]>,
    masks: &Masks,
) -> Result<Tensor> {
    let parts: Result<Vec<Tensor>> = match past {
        None => (groups(heads, sequences).iter())
            .map(|group| {
                let qkv = group.of(qkv)?;
                let [k, v] = group.keys_and_values(&qkv, heads)?;
                attend(&qkv, heads, group, [&k, &v], masks)
            })
            .collect(),
        Some(past) => (sequences.iter().zip(past))
            .map(|(range, past)| {
                let group = Group {
                    start: range.start,
                    count: 1,
                    rows: range.len(),
                };
                // Keys that no row sees are left out, so that one new row needs no mask.
                let first = heads.visible(past.len - group.rows).start;
                let side = |x: &Tensor| {
                    let seen = past.len - first;
                    split(
                        &x.narrow(0, first, seen)?,
                        [1, seen],
                        [0, heads.kv],
                        heads.dim,
                    )
                };
                let sides = [&side(&past.keys)?, &side(&past.values)?];
                attend(&group.of(qkv)?, heads, &group, sides, masks)
            })
            .collect(),
    };
    Ok(Tensor::cat(&parts?, 0)?)
}

fn attend(
    qkv: &Tensor,
    heads: &Heads,
    group: &Group,
    [k, v]: [&Tensor; 2],
    masks: &Masks,
) -> Result<Tensor> {
    let q = group.queries(qkv, heads)?;
    let (p, _) = probabilities([&q, k], heads, group.rows, masks)?;
    let out = p.to_dtype(v.dtype())?.matmul(v)?;
    join(&out, group.shape(), heads.q, heads.dim)
}

/// The gradient of q·kᵀ, in the type of `dp`: scale · p · (dp − along), `along` being one for each
/// row.
fn slope(p: &Tensor, dp: &Tensor, along: &Tensor, heads: &Heads) -> Result<Tensor> {
    if serve(dp) {
        let (batch, rows, keys) = dp.dims3()?;
        let call = Call::new("softmax_backward", batch * rows, &[p, dp, along])?;
        return run(call.ints(&[keys]).floats(&[heads.scale]));
    }
    let slope = (p * dp.to_dtype(p.dtype())?.broadcast_sub(along)?)?;
    Ok((slope * f64::from(heads.scale))?.to_dtype(dp.dtype())?)
}

/// As [`super::attention_backward`].
pub(super) fn backward(
    [dout, qkv, out]: [&Tensor; 3],
    heads: &Heads,
    sequences: &[Range<usize>],
    masks: &Masks,
) -> Result<Tensor> {
    let parts: Result<Vec<Tensor>> = (groups(heads, sequences).iter())
        .map(|group| {
            let qkv = group.of(qkv)?;
            let q = group.queries(&qkv, heads)?;
            let [k, v] = group.keys_and_values(&qkv, heads)?;
            let [dout, out] = [
                group.queries(&group.of(dout)?, heads)?,
                group.queries(&group.of(out)?, heads)?,
            ];
            let (p, bend) = probabilities([&q, &k], heads, group.rows, masks)?;
            let dtype = wide(q.dtype());
            let dv = p.to_dtype(q.dtype())?.t()?.matmul(&dout)?;
            // Σ dP·P over the keys is Σ dO·O over the columns of a head.
            let along = (dout.to_dtype(dtype)? * out.to_dtype(dtype)?)?;
            let along = along.sum_keepdim(D::Minus1)?;
            let ds = slope(&p, &dout.matmul(&v.t()?)?, &along, heads)?;
            let ds = match bend {
                None => ds,
                Some(bend) => (ds.to_dtype(dtype)? * bend)?.to_dtype(ds.dtype())?,
            };
            let (dq, dk) = (ds.matmul(&k)?, ds.t()?.matmul(&q)?);
            let side = |x: &Tensor, count| join(x, group.shape(), count, heads.dim);
            let parts = [
                side(&dq, heads.q)?,
                side(&dk, heads.kv)?,
                side(&dv, heads.kv)?,
            ];
            Ok(Tensor::cat(&parts, 1)?)
        })
        .collect();
    Ok(Tensor::cat(&parts?, 0)?)
}
