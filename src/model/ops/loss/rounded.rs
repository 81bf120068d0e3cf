//! The loss where products are of bf16 numbers: logits stay, and their gradient is made as it is rounded for its product.

use std::ops::Range;

use rayon::prelude::*;

use super::super::bf16::{Kernel, Lines, Rows, backward_more};
use super::super::head::cap_all;
use super::super::vector::{exp, exp_total, max, vectorised};

/// Numbers of the gradient that are best multiplied at a time: rounded, they stay in the third cache.
pub(super) const SLOPES: usize = 1 << 22;
/// What [`Tile::part`] is best a multiple of: K is cut in as many.
pub(super) const PART: usize = 1024;

/// Tokens and their targets.
pub(super) struct Tile<'a> {
    pub(super) kernel: Kernel,
    /// The output head.
    pub(super) head: &'a [Rows<'a>],
    pub(super) cap: Option<f32>,
    /// Of each row.
    pub(super) targets: &'a [usize],
    /// Tokens of the vocabulary whose gradient is multiplied at a time.
    pub(super) part: usize,
}

/// A row's softmax.
#[derive(Debug, Clone, Copy)]
struct Sum {
    /// The largest logit.
    top: f32,
    /// Σ exp(logit − top)
    total: f32,
}

impl Tile<'_> {
    /// Σ −ln softmax(logits)[target] of the rows of `logits`; in `back` its gradient, rows × hidden.
    pub(super) fn loss(&self, logits: &mut [f32], back: Option<&mut [f32]>) -> f64 {
        let vocabulary = logits.len() / self.targets.len().max(1);
        let sums: Vec<Sum> = (logits.par_chunks_mut(vocabulary.max(1)))
            .map(|logits| {
                if let Some(cap) = self.cap {
                    cap_all(logits, cap);
                }
                sum(logits)
            })
            .collect();
        let rows = logits.chunks(vocabulary.max(1)).zip(self.targets);
        let nats = rows.zip(&sums).map(|((logits, target), sum)| {
            f64::from(sum.total).ln() - f64::from(logits[*target] - sum.top)
        });
        let nats = nats.sum();
        if let Some(back) = back {
            let slopes = Slopes {
                logits,
                vocabulary,
                sums: &sums,
                targets: self.targets,
                cap: self.cap,
            };
            back.fill(0.0);
            self.backward(&slopes, back);
        }
        nats
    }

    /// Part by part of the vocabulary.
    fn backward(&self, slopes: &Slopes<'_>, dx: &mut [f32]) {
        let part = self.part.max(1);
        let mut column = 0;
        for (weight, rows) in self.head {
            for start in rows.clone().step_by(part) {
                let rows = start..(start + part).min(rows.end);
                let len = rows.len();
                backward_more(self.kernel, slopes, column, &[(*weight, rows)], dx);
                column += len;
            }
        }
    }
}

/// The gradient of the logits before their cap.
struct Slopes<'a> {
    /// Under their cap.
    logits: &'a [f32],
    vocabulary: usize,
    sums: &'a [Sum],
    targets: &'a [usize],
    cap: Option<f32>,
}

impl Lines for Slopes<'_> {
    fn rows(&self) -> usize {
        self.targets.len()
    }

    fn line<'a>(
        &'a self,
        row: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        scratch.resize(columns.len(), 0.0);
        let logits = &self.logits[row * self.vocabulary..][columns.clone()];
        softmax(logits, self.sums[row], scratch);
        let target = self.targets[row].checked_sub(columns.start);
        if let Some(own) = target.and_then(|at| scratch.get_mut(at)) {
            *own -= 1.0;
        }
        if let Some(cap) = self.cap {
            under(logits, cap, scratch);
        }
        scratch
    }
}

vectorised! {
    fn sum(logits: &[f32]) -> Sum {
        let top = max(logits);
        Sum { top, total: exp_total(logits, top) }
    }
}

vectorised! {
    fn softmax(logits: &[f32], sum: Sum, to: &mut [f32]) -> () {
        let scale = 1.0 / sum.total;
        for (to, x) in to.iter_mut().zip(logits) {
            *to = exp(*x - sum.top) * scale;
        }
    }
}

vectorised! {
    /// A gradient with respect to capped logits becomes that to those before.
    fn under(capped: &[f32], cap: f32, slopes: &mut [f32]) -> () {
        let rate = 1.0 / cap;
        for (slope, y) in slopes.iter_mut().zip(capped) {
            *slope *= 1.0 - (y * rate) * (y * rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::super::linear::{Products, narrow, product};
    use super::super::super::slices::tests::random;
    use super::super::super::{Matrix, Piece, f32s};
    use super::*;
    use crate::tensor::{Dtype, Tensor};

    /// Breaks where parts of the vocabulary take other logits, or a target is in none of them or in two: the gradient is
    /// that of the loss in f32 from the same logits, but for rounding.
    #[test]
    fn a_loss_in_parts_is_that_of_the_whole() {
        let (rows, hidden, vocabulary) = (40, 24, 210);
        let values = f32s(&random(vocabulary, hidden, 1)).unwrap().to_vec();
        let x = (random(rows, hidden, 2) * 3.0).unwrap();
        let targets: Vec<usize> = (0..rows).map(|i| i * 67 % vocabulary).collect();
        for kernel in Kernel::available() {
            let weight = Tensor::narrowed(Dtype::BF16, vec![vocabulary, hidden], &values).unwrap();
            let matrix = Matrix::new(weight, &Device::Cpu, DType::F32).unwrap();
            let exact = Piece::whole(&matrix);
            let mut logits = vec![0.0; rows * vocabulary];
            product(&f32s(&x).unwrap(), hidden, &[exact], &mut logits);
            for cap in [None, Some(2.0)] {
                let head = super::super::super::Head {
                    matrix: &matrix,
                    cap,
                };
                let mut want = vec![0.0; rows * hidden];
                let nats =
                    super::super::fused::tile(&mut logits.clone(), &targets, head, Some(&mut want));
                let weight =
                    Tensor::narrowed(Dtype::BF16, vec![vocabulary, hidden], &values).unwrap();
                let rounded = Matrix::new(weight, &Device::Cpu, DType::F32)
                    .unwrap()
                    .with_products(Products::of(kernel));
                let pieces = [Piece::whole(&rounded)];
                let (kernel, head) = narrow(&pieces).unwrap();
                for part in [32, 70, vocabulary] {
                    let tile = Tile {
                        kernel,
                        head: &head,
                        cap,
                        targets: &targets,
                        part,
                    };
                    let mut back = vec![7.0; rows * hidden];
                    let got = tile.loss(&mut logits.clone(), Some(&mut back));
                    assert!((got - nats).abs() < 1e-5 * nats, "{got} is not {nats}");
                    assert_eq!(tile.loss(&mut logits.clone(), None), got);
                    let most = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (got, want) in back.iter().zip(&want) {
                        let off = (got - want).abs();
                        assert!(off < 5e-3 * most, "{part}: {got} is not {want}");
                    }
                }
            }
        }
    }
}
