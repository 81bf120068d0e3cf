//! What the closest tied adapter of a LoRA takes and loses, found by fitting it.

use std::path::Path;

use super::facts::Fit;
use super::parts::{Fits, Parts};
use super::problem::Problem;
use super::row::Format;
use crate::convert::{Found, Tied, ToTiedOptions, import_tied};
use crate::fit::{Budget, FitOptions, fit_adapter};
use crate::format::{WriteOptions, encoded_len};

/// Fits an adapter at its own rank; `None` where it is no LoRA in order, or a `.tl` already.
pub(super) fn measure(path: &Path, parts: &Parts) -> Option<Fits> {
    let lora = parts.description.lora.as_ref();
    let is_read = [Format::Peft, Format::Mlx, Format::Nemo].contains(&parts.format);
    if !is_read || parts.error.is_some() || lora?.targets.is_empty() {
        return None;
    }
    let rank = parts.description.rank?;
    Some(fits(path, rank as usize).map_err(|error| Problem::from(&error.file(path))))
}

fn fits(path: &Path, rank: usize) -> crate::Result<Vec<Fit>> {
    let tied = import_tied(path, &ToTiedOptions::default())?;
    if tied.found == Found::Tied {
        return Ok(vec![Fit {
            joint: false,
            bytes: encoded_len(&tied.adapter, &WriteOptions::default())?,
            error: tied.worst.relative,
        }]);
    }
    let alone = fit(&tied, rank, false)?;
    let joint = fit(&tied, rank, true)?;
    Ok([alone, joint].into_iter().flatten().collect())
}

/// `None` where the joint form is the other one again.
fn fit(tied: &Tied, rank: usize, joint: bool) -> crate::Result<Option<Fit>> {
    let budget = Budget::Rank(rank);
    let (adapter, report) = fit_adapter(
        tied,
        &FitOptions {
            budget,
            joint,
            core: false,
            quick: false,
        },
    )?;
    if joint && report.groups.iter().all(|g| g.targets.len() == 1) {
        return Ok(None);
    }
    Ok(Some(Fit {
        joint,
        bytes: encoded_len(&adapter, &WriteOptions::default())?,
        error: report.error,
    }))
}
