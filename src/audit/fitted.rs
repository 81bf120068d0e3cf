//! What the closest tied adapter of a LoRA takes and loses, found by fitting it.

use std::path::Path;

use super::row::{Form, Problem, Row};
use crate::convert::{Found, Tied, ToTiedOptions, import_tied};
use crate::error::Result;
use crate::fit::{Budget, FitOptions, fit_adapter};
use crate::format::{WriteOptions, encoded_len};

/// A measured conversion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Whether query, key and value shared A and u.
    pub joint: bool,
    /// Bytes of the `.tl`, to the byte.
    pub bytes: u64,
    /// ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all modules that were fitted.
    pub error: f64,
}

/// Fits the adapter of a row at its own rank where it is a PEFT LoRA in order, and puts what came
/// out, or why nothing did, into the row's facts.
pub(super) fn measure(path: &Path, row: &mut Row) {
    let is_lora = row.kind.as_deref() == Some("lora") && !row.facts.targets.is_empty();
    let Some(rank) = row.rank.filter(|_| is_lora && row.format == Form::Peft) else {
        return;
    };
    if row.error.is_some() {
        return;
    }
    match fits(path, rank as usize) {
        Ok(fits) => row.facts.fits = fits,
        Err(error) => row.facts.unfitted = Some(Problem::from(&error.file(path))),
    }
}

fn fits(path: &Path, rank: usize) -> Result<Vec<Fit>> {
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
fn fit(tied: &Tied, rank: usize, joint: bool) -> Result<Option<Fit>> {
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
