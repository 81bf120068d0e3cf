//! Second moments of what modules read, in bases of few directions.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use crate::error::Result;
use crate::fit::coded::InputMoments;
use crate::model::{Branches, Model, Slot};
use crate::progress::Progress;
use crate::text::Example;
use crate::text::batches;

/// Columns that one task computes; results do not depend on the number of threads.
const COLUMNS: usize = 64;

/// Where moments are wanted: what a layer's product reads, in a basis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'b> {
    /// The layer.
    pub(super) layer: usize,
    /// The product.
    pub(super) slot: Slot,
    /// Q, in × p.
    pub(super) basis: MatRef<'b, f64>,
}

/// `Qᵀ·E[x·xᵀ]·Q` (p × p) for each of `wanted`, x running over all positions of `texts` when the
/// model runs with `branches`.
///
/// # Errors
/// Those of [`Model::inputs`]; that of `progress`, which counts the batches.
pub(super) fn second_moments(
    model: &Model,
    branches: &Branches,
    texts: &[Example],
    wanted: &[Wanted<'_>],
    progress: Progress<'_>,
) -> Result<Vec<Mat<f64>>> {
    let size = |w: &Wanted<'_>| w.basis.ncols();
    let mut sums: Vec<Mat<f64>> = wanted
        .iter()
        .map(|w| Mat::zeros(size(w), size(w)))
        .collect();
    let positions = each_input(model, branches, texts, wanted, progress, &mut |at, x| {
        let z = product(x, wanted[at].basis);
        sums[at] += product(z.transpose(), z.as_ref());
    })?;
    let share = 1.0 / positions.max(1) as f64;
    for sum in &mut sums {
        *sum *= faer::Scale(share);
    }
    Ok(sums)
}

/// `Qᵀ·E[x·xᵀ]` (p × in) for each of `wanted`, and the diagonal of E[x·xᵀ]; as [`second_moments`].
///
/// # Errors
/// Those of [`second_moments`].
pub(super) fn input_moments(
    model: &Model,
    branches: &Branches,
    texts: &[Example],
    wanted: &[Wanted<'_>],
    progress: Progress<'_>,
) -> Result<Vec<InputMoments>> {
    let none = |w: &Wanted<'_>| InputMoments {
        cross: Mat::zeros(w.basis.ncols(), w.basis.nrows()),
        diagonal: vec![0.0; w.basis.nrows()],
    };
    let mut sums: Vec<InputMoments> = wanted.iter().map(none).collect();
    let positions = each_input(model, branches, texts, wanted, progress, &mut |at, x| {
        let sum = &mut sums[at];
        let z = product(x, wanted[at].basis);
        sum.cross += product(z.transpose(), x);
        for (j, d) in sum.diagonal.iter_mut().enumerate() {
            *d += x.col(j).iter().map(|x| x * x).sum::<f64>();
        }
    })?;
    let share = 1.0 / positions.max(1) as f64;
    for sum in &mut sums {
        sum.cross *= faer::Scale(share);
        sum.diagonal.iter_mut().for_each(|d| *d *= share);
    }
    Ok(sums)
}

/// Shows `visit` what each of `wanted` reads (tokens × in); the number of positions.
fn each_input(
    model: &Model,
    branches: &Branches,
    texts: &[Example],
    wanted: &[Wanted<'_>],
    progress: Progress<'_>,
    visit: &mut dyn FnMut(usize, MatRef<'_, f64>),
) -> Result<usize> {
    let mut positions = 0;
    for batch in batches(texts) {
        positions += batch.tokens.len();
        model.inputs(branches, &batch, &mut |layer, slot, x| {
            let mut here = wanted
                .iter()
                .enumerate()
                .filter(|(_, w)| (w.layer, w.slot) == (layer, slot))
                .peekable();
            if here.peek().is_none() {
                return Ok(());
            }
            let (tokens, width) = x.dims2()?;
            let x = x.to_dtype(candle_core::DType::F64)?;
            let x = x.flatten_all()?.to_vec1::<f64>()?;
            let x = MatRef::from_row_major_slice(&x, tokens, width);
            here.for_each(|(at, _)| visit(at, x));
            Ok(())
        })?;
        progress.advance(1)?;
    }
    Ok(positions)
}

/// one · two
fn product(one: MatRef<'_, f64>, two: MatRef<'_, f64>) -> Mat<f64> {
    let width = two.ncols();
    let starts: Vec<usize> = (0..width).step_by(COLUMNS).collect();
    let parts: Vec<Mat<f64>> = starts
        .par_iter()
        .map(|start| {
            let two = two.subcols(*start, COLUMNS.min(width - start));
            let mut part = Mat::zeros(one.nrows(), two.ncols());
            matmul(&mut part, Accum::Replace, one, two, 1.0, Par::Seq);
            part
        })
        .collect();
    let mut whole = Mat::zeros(one.nrows(), width);
    for (start, part) in starts.iter().zip(&parts) {
        whole
            .as_mut()
            .subcols_mut(*start, part.ncols())
            .copy_from(part);
    }
    whole
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::text::Batch;

    /// Breaks where the moments are not those of their definition, whatever the batches, the basis or
    /// the layer.
    #[test]
    fn moments_are_means_of_projected_squares() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-tiny");
        let model = Model::open(&dir, &Device::Cpu, None).unwrap();
        let text = |from: u32, len: u32| Example {
            tokens: (from..from + len).map(|t| t * 37 % 128).collect(),
            predicted: vec![true; len as usize],
        };
        let texts = [text(0, 9), text(40, 3), text(70, 20)];
        let none = Branches::none(model.config().layers);
        let modules = model.modules();
        for slot in Slot::ALL {
            let place = modules.iter().find(|m| (m.layer, m.slot) == (1, slot));
            let n = place.unwrap().in_features;
            let basis = Mat::from_fn(n, 70, |i, j| ((i * 13 + j * 29) as f64).sin());
            let wanted = Wanted {
                layer: 1,
                slot,
                basis: basis.as_ref(),
            };
            let found = second_moments(&model, &none, &texts, &[wanted], Progress::new()).unwrap();
            let mut right = Mat::<f64>::zeros(70, 70);
            for text in &texts {
                let batch = Batch::new([text]);
                let mut sum = |layer, of: Slot, x: &candle_core::Tensor| {
                    if (layer, of) == (1, slot) {
                        for row in x.to_vec2::<f32>().unwrap() {
                            let z = Mat::from_fn(1, n, |_, j| f64::from(row[j])) * &basis;
                            right += z.transpose() * &z;
                        }
                    }
                    Ok(())
                };
                model.inputs(&none, &batch, &mut sum).unwrap();
            }
            right *= faer::Scale(1.0 / 29.0);
            assert!((&found[0] - &right).norm_l2() < 1e-5 * right.norm_l2());
        }
    }
}
