//! One decoder layer, forward and backward.
//!
//! ```text
//! m = x + Wo·attention(rope(norm(Wqkv·norm₁(x))))        y = m + Wd·gate(Wgu·norm₂(m))
//! ```
//!
//! What is added to x and to m may be normed or multiplied first.
//!
//! The backward visits only what leads from the output to something adapted, and computes again
//! what is cheaper to compute than to keep: norms and gates.

use std::ops::Range;

use candle_core::Tensor;

use super::family::Slot;
use super::weights::{Layer, Projection};
use crate::error::{Code, Error, Result};
use crate::model::ops::{
    Branch, BranchGrads, Dropout, Kept, Masks, Norm, Operand, Past, Rotation, add_branch,
    add_in_place, attention, attention_backward, branch_backward, linear_backward, rotate,
};

/// The branches of one layer: slot by slot, in the order of [`Slot::ALL`].
pub(super) type LayerBranches = [Vec<Branch>; 4];

/// What the backward of a layer reads, besides its input.
#[derive(Debug)]
pub(super) struct Tape {
    /// [q k v] before the head norms, where there are any.
    raw: Option<Tensor>,
    /// [q k v] as attention read them.
    qkv: Tensor,
    sums: Vec<f32>,
    attended: Tensor,
    middle: Tensor,
    /// None where experts make it again.
    gate_up: Option<Kept>,
    /// What the norms before the residual stream read, where there are any.
    added: Option<[Tensor; 2]>,
    /// x·Aᵀ of each branch.
    products: [Vec<Tensor>; 4],
}

impl Tape {
    fn gate_up(&self) -> Result<&Kept> {
        self.gate_up
            .as_ref()
            .ok_or_else(|| Error::new(Code::Usage, "a layer of experts has no product of an MLP"))
    }
}

/// The batch as a layer sees it.
pub(super) struct Rows<'a> {
    pub(super) sequences: &'a [Range<usize>],
    /// Of each of the model's rotary embeddings.
    pub(super) rotations: &'a [Rotation],
    pub(super) masks: &'a Masks,
    /// Of what branches read.
    pub(super) dropout: Option<Dropout>,
}

impl Layer {
    /// The layer's output for x (tokens × hidden), and what the backward needs.
    ///
    /// `cache` receives the present keys and values, and returns those of the whole sequences.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        rows: &Rows<'_>,
        branches: &LayerBranches,
        mut cache: Option<&mut Vec<Past>>,
    ) -> Result<(Tensor, Tape)> {
        let mut products: [Vec<Tensor>; 4] = Default::default();
        let mut project = |slot: Slot, x: Operand<'_>| -> Result<Tensor> {
            let own = &branches[slot as usize];
            let dropout = self.dropout(rows, slot);
            self.slot(slot)
                .forward(x, own, dropout, &mut products[slot as usize])
        };
        let heads = &self.heads;
        let raw = project(Slot::Qkv, self.norms[0].forward(x)?.into())?;
        let (raw, qkv) = match &self.head_norms {
            None => (None, raw),
            Some(norms) => {
                let qkv = self.each_head(&raw, norms, |norm, x, _| norm.forward(x))?;
                (Some(raw), qkv)
            }
        };
        let qkv = self.turn(qkv, rows, false)?;
        let past = match cache.as_mut() {
            None => None,
            Some(past) => {
                self.remember(&qkv, rows.sequences, past)?;
                Some(past.as_slice())
            }
        };
        let (attended, sums) = attention(&qkv, heads, rows.sequences, past, rows.masks)?;
        let (middle, attention_out) =
            self.add(0, project(Slot::Output, attended.clone().into())?, x)?;
        let normed = self.norms[1].forward(&middle)?;
        let (down, gate_up) = match &self.experts {
            Some(experts) => (experts.forward(&normed)?, None),
            None => {
                let slot = self.slot(Slot::GateUp);
                let plain = branches[Slot::GateUp as usize].is_empty() && slot.bias.is_none();
                let gate_up = match plain {
                    true => Kept::product(&normed, &slot.pieces())?,
                    false => {
                        let sum = project(Slot::GateUp, normed.clone().into())?;
                        Kept::of(sum, &slot.pieces())?
                    }
                };
                drop(normed);
                let down = project(Slot::Down, self.activation.of(&gate_up)?)?;
                (down, Some(gate_up))
            }
        };
        let (out, mlp_out) = self.add(1, down, &middle)?;
        let added = attention_out.zip(mlp_out).map(<[Tensor; 2]>::from);
        Ok((
            out,
            Tape {
                raw,
                qkv,
                sums,
                attended,
                middle,
                gate_up,
                added,
                products,
            },
        ))
    }

    /// What a slot's product reads, made again from the layer's input x and the tape where it is
    /// cheaper to compute than to keep.
    pub(super) fn input(&self, slot: Slot, x: &Tensor, tape: &Tape) -> Result<Tensor> {
        match slot {
            Slot::Qkv => self.norms[0].forward(x),
            Slot::Output => Ok(tape.attended.clone()),
            Slot::GateUp => self.norms[1].forward(&tape.middle),
            Slot::Down => self.activation.of(tape.gate_up()?)?.tensor(),
        }
    }

    /// The gradient with respect to the layer's input x, given that of its output, and the
    /// gradients of the branches. With `lowest`, nothing below that slot is wanted, and there is
    /// no gradient of x.
    pub(super) fn backward(
        &self,
        dy: Tensor,
        x: &Tensor,
        tape: &Tape,
        rows: &Rows<'_>,
        branches: &LayerBranches,
        lowest: Option<Slot>,
    ) -> Result<(Option<Tensor>, [Vec<BranchGrads>; 4])> {
        let mut grads: [Vec<BranchGrads>; 4] = Default::default();
        let mut back = |slot: Slot, dy: Operand<'_>| {
            let (dx, own) = self.slot(slot).backward(
                &dy,
                &|| self.input(slot, x, tape),
                &tape.products[slot as usize],
                &branches[slot as usize],
                self.dropout(rows, slot),
                lowest != Some(slot),
            )?;
            grads[slot as usize] = own;
            Ok::<_, crate::Error>(dx)
        };
        let dadded = self.add_backward(1, &dy, tape)?;
        let dnorm = match &self.experts {
            Some(experts) => experts.backward(&dadded, &self.norms[1].forward(&tape.middle)?)?,
            None => {
                let Some(dgate) = back(Slot::Down, dadded.clone().into())? else {
                    return Ok((None, grads));
                };
                let kept = tape.gate_up()?;
                let dgate_up = match kept.whole() {
                    Some(gate_up) => {
                        let dgate_up = self.activation.backward(&dgate, gate_up)?;
                        drop(dgate);
                        dgate_up.into()
                    }
                    None => self.activation.back(&dgate, kept)?,
                };
                let Some(dnorm) = back(Slot::GateUp, dgate_up)? else {
                    return Ok((None, grads));
                };
                dnorm
            }
        };
        drop(dadded);
        let dmiddle = add_in_place(self.norms[1].backward(&dnorm, &tape.middle)?, &dy)?;
        drop((dnorm, dy));
        let dadded = self.add_backward(0, &dmiddle, tape)?;
        let Some(dattended) = back(Slot::Output, dadded.into())? else {
            return Ok((None, grads));
        };
        let heads = &self.heads;
        let dqkv = attention_backward(
            &dattended,
            &tape.qkv,
            &tape.attended,
            &tape.sums,
            heads,
            rows.sequences,
            rows.masks,
        )?;
        let dqkv = self.turn(dqkv, rows, true)?;
        let dqkv = match (&self.head_norms, &tape.raw) {
            (Some(norms), Some(raw)) => self.each_head(&dqkv, norms, |norm, dy, columns| {
                let raw = raw.narrow(1, columns.start, columns.len())?.contiguous()?;
                norm.backward(dy, &raw)
            })?,
            _ => dqkv,
        };
        let Some(dnorm) = back(Slot::Qkv, dqkv.into())? else {
            return Ok((None, grads));
        };
        let dx = add_in_place(self.norms[0].backward(&dnorm, x)?, &dmiddle)?;
        Ok((Some(dx), grads))
    }

    /// That of a slot's branches.
    fn dropout(&self, rows: &Rows<'_>, slot: Slot) -> Option<Dropout> {
        let numbers = [self.number as u64, slot as u64];
        rows.dropout.map(|d| d.of(&numbers))
    }

    /// [q k v] with the heads of q and k turned by their positions, or turned back.
    fn turn(&self, qkv: Tensor, rows: &Rows<'_>, back: bool) -> Result<Tensor> {
        let heads = &self.heads;
        match self.rotary.and_then(|r| rows.rotations.get(r)) {
            None => Ok(qkv),
            Some(rotation) => rotate(qkv, heads.q + heads.kv, heads.dim, rotation, back),
        }
    }

    /// The residual stream with `part` of attention (0) or the MLP (1) added; and `part` where a norm
    /// reads it first.
    fn add(&self, which: usize, part: Tensor, to: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (normed, raw) = match &self.post_norms {
            None => (part, None),
            Some(norms) => (norms[which].forward(&part)?, Some(part)),
        };
        let normed = self.scaled(normed)?;
        Ok((add_in_place(normed, to)?, raw))
    }

    /// The gradient of what [`add`](Self::add) was given, from that of the residual stream.
    fn add_backward(&self, which: usize, dy: &Tensor, tape: &Tape) -> Result<Tensor> {
        let dy = self.scaled(dy.clone())?;
        match (&self.post_norms, &tape.added) {
            (Some(norms), Some(added)) => norms[which].backward(&dy, &added[which]),
            _ => Ok(dy),
        }
    }

    fn scaled(&self, x: Tensor) -> Result<Tensor> {
        match self.residual_scale == 1.0 {
            true => Ok(x),
            false => Ok((x * self.residual_scale)?),
        }
    }

    /// [q k v] with `change` applied to the columns of q and to those of k.
    fn each_head(
        &self,
        qkv: &Tensor,
        [q_norm, k_norm]: &[Norm; 2],
        change: impl Fn(&Norm, &Tensor, Range<usize>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (q, kv) = (
            self.heads.q * self.heads.dim,
            self.heads.kv * self.heads.dim,
        );
        let part = |norm, columns: Range<usize>| {
            change(
                norm,
                &qkv.narrow(1, columns.start, columns.len())?.contiguous()?,
                columns,
            )
        };
        let parts = [
            part(q_norm, 0..q)?,
            part(k_norm, q..q + kv)?,
            qkv.narrow(1, q + kv, kv)?,
        ];
        Ok(Tensor::cat(&parts, 1)?)
    }

    /// Appends the rows' keys and values to those of their sequences.
    fn remember(
        &self,
        qkv: &Tensor,
        sequences: &[Range<usize>],
        past: &mut Vec<Past>,
    ) -> Result<()> {
        let (q, kv) = (
            self.heads.q * self.heads.dim,
            self.heads.kv * self.heads.dim,
        );
        for (s, range) in sequences.iter().enumerate() {
            let rows = qkv.narrow(0, range.start, range.len())?;
            let keys = rows.narrow(1, q, kv)?.contiguous()?;
            let values = rows.narrow(1, q + kv, kv)?.contiguous()?;
            let Some(past) = past.get_mut(s) else {
                past.push(Past {
                    keys,
                    values,
                    len: range.len(),
                });
                continue;
            };
            let len = past.len + range.len();
            if past.keys.dim(0)? < len {
                let grow = |rows: &Tensor| -> Result<Tensor> {
                    let room = (2 * len, kv);
                    let grown = Tensor::zeros(room, rows.dtype(), rows.device())?;
                    grown.slice_set(&rows.narrow(0, 0, past.len)?.contiguous()?, 0, 0)?;
                    Ok(grown)
                };
                (past.keys, past.values) = (grow(&past.keys)?, grow(&past.values)?);
            }
            past.keys.slice_set(&keys, 0, past.len)?;
            past.values.slice_set(&values, 0, past.len)?;
            past.len = len;
        }
        Ok(())
    }
}

impl Projection {
    fn forward(
        &self,
        x: Operand<'_>,
        branches: &[Branch],
        dropout: Option<Dropout>,
        products: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let x = match branches {
            [] => x,
            _ => x.tensor()?.into(),
        };
        let mut y = x.linear(&self.pieces())?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        let Operand::Whole(x) = &x else {
            return Ok(y);
        };
        for (number, branch) in branches.iter().enumerate() {
            let (sum, p) = match dropout {
                None => add_branch(y, x, branch)?,
                Some(d) => add_branch(y, &d.of(&[number as u64]).apply(x)?, branch)?,
            };
            y = sum;
            products.push(p);
        }
        Ok(y)
    }

    /// `x` makes the input again, where a branch needs it.
    fn backward(
        &self,
        dy: &Operand<'_>,
        x: &dyn Fn() -> Result<Tensor>,
        products: &[Tensor],
        branches: &[Branch],
        dropout: Option<Dropout>,
        wanted: bool,
    ) -> Result<(Option<Tensor>, Vec<BranchGrads>)> {
        let mut grads = Vec::new();
        if branches.is_empty() {
            let dx = wanted.then(|| dy.linear_backward(&self.pieces()));
            return Ok((dx.transpose()?, grads));
        }
        let dy = &dy.tensor()?;
        let mut dx = match wanted {
            true => Some(linear_backward(dy, &self.pieces())?),
            false => None,
        };
        let x = x()?;
        for (number, (branch, p)) in branches.iter().zip(products).enumerate() {
            let (sum, own) = match dropout {
                None => branch_backward(dx, dy, &x, p, branch)?,
                Some(d) => {
                    let d = d.of(&[number as u64]);
                    let zero = dx.as_ref().map(Tensor::zeros_like).transpose()?;
                    let (part, own) = branch_backward(zero, dy, &d.apply(&x)?, p, branch)?;
                    let sum = match (dx, part) {
                        (Some(dx), Some(part)) => Some(add_in_place(dx, &d.apply(&part)?)?),
                        _ => None,
                    };
                    (sum, own)
                }
            };
            dx = sum;
            grads.push(own);
        }
        Ok((dx, grads))
    }
}
