//! What an adapter takes and loses in forms that are made of it in memory: coded, as int8, truncated, tied.

use std::path::Path;

use super::facts::{Fit, Measured};
use super::parts::{Made, Parts};
use super::row::{Format, Kind};
use super::scenario::Form;
use crate::adapter::{Adapter, Factor, TieGroup};
use crate::convert::{Found, Tied, ToTiedOptions, import_or_open, store_as};
use crate::error::{Code, Result};
use crate::fit::{Budget, CodeTarget, FitOptions, code, fit_adapter, shrink};
use crate::format::{NoBlobs, TlFile, WriteOptions, encoded_len};
use crate::tensor::{Dtype, Tensor};

/// Makes the forms of an adapter in a file or folder; `None` where it is none in order.
pub(super) fn measure(path: &Path, parts: &Parts) -> Option<Made> {
    let is_read = matches!(parts.description.kind, Some(Kind::Method(_)));
    if !is_read || parts.error.is_some() || parts.sums.is_none() {
        return None;
    }
    Some(match parts.format {
        Format::Tl => of_tl(path),
        _ => of_folder(path, parts),
    })
}

fn of_tl(path: &Path) -> Made {
    let adapter = TlFile::open(path).and_then(|file| file.load(&NoBlobs));
    let mut made = match adapter {
        Ok(adapter) => of_adapter(adapter),
        Err(error) => Made::failed(error),
    };
    made.problem = made.problem.map(|e| e.file(path));
    made
}

fn of_folder(path: &Path, parts: &Parts) -> Made {
    let tied = match import_or_open(path, &ToTiedOptions::default()) {
        Ok(tied) => tied,
        Err(error) => return Made::failed(error.file(path)),
    };
    let lora = parts.description.lora.as_ref();
    let rank = parts.description.rank.unwrap_or(0) as usize;
    let fits = match lora.is_some_and(|l| !l.targets.is_empty()) && rank > 0 {
        true => fits(&tied, rank),
        false => Ok(Vec::new()),
    };
    let mut made = others(&tied);
    match fits {
        Ok(fits) => made.fits = fits,
        Err(error) => made.problem = Some(error),
    }
    made.problem = made.problem.map(|e| e.file(path));
    made
}

/// The forms of an adapter in memory.
pub(super) fn of_adapter(adapter: Adapter) -> Made {
    match modules(&adapter) {
        Ok(source) => others(&Tied::exact(source, adapter, Found::Untied)),
        Err(error) => Made::failed(error),
    }
}

/// The untied groups of an adapter as it would be read from a folder: one of each module and layer.
fn modules(adapter: &Adapter) -> Result<Adapter> {
    let plain = |g: &&TieGroup| {
        g.factors().count() == 2 && g.experts.is_none() && (!g.is_tied() || g.instances() == 1)
    };
    let mut groups = Vec::new();
    for group in adapter.groups.iter().filter(plain) {
        for instance in 0..group.instances() {
            for (at, target) in group.targets.iter().enumerate() {
                let update = group.low_rank(instance, at)?;
                let (out, rank) = (update.out, update.rank);
                let a = Tensor::from_f32(vec![rank, update.in_features], &update.right)?;
                let b = Tensor::from_f32(vec![out, rank], &update.left)?;
                let layer = group.layers.as_ref().and_then(|l| l.get(instance));
                groups.push(TieGroup {
                    layers: layer.map(|l| vec![*l]),
                    a: Factor::trained(a),
                    b: Factor::trained(b),
                    targets: vec![target.clone()],
                    ..group.clone()
                });
            }
        }
    }
    Ok(Adapter {
        groups,
        ..adapter.clone()
    })
}

fn others(tied: &Tied) -> Made {
    let mut made = Made::default();
    if is_coded(&tied.adapter) {
        return made;
    }
    for percent in Form::PERCENT {
        match coded(&tied.adapter, percent) {
            Ok(measured) => made.measured.push(measured),
            // Of zeros there is nothing to code.
            Err(error) if error.code() == Code::Usage => {}
            Err(error) => {
                made.problem = Some(error);
                return made;
            }
        }
    }
    made.measured.extend(int8(&tied.adapter).ok().flatten());
    // Of an adapter without a LoRA there is nothing to truncate.
    let truncated = |percent: &u8| truncated(tied, *percent).ok();
    made.measured
        .extend(Form::PERCENT.iter().filter_map(truncated));
    made
}

/// Whether numbers of it were coded before: what is lost against the first ones is not known.
fn is_coded(adapter: &Adapter) -> bool {
    let mut factors = adapter.groups.iter().flat_map(TieGroup::factors);
    factors.any(|(_, f)| f.tensor.coded_bytes().is_some())
}

fn coded(adapter: &Adapter, percent: u8) -> Result<Measured> {
    let (_, report) = code(adapter, CodeTarget::Error(f64::from(percent) / 100.0))?;
    Ok(Measured {
        form: Form::Coded(percent),
        bytes: report.file_bytes,
        error: report.error,
        bound: Some((report.bound * report.numbers as f64 / 8.0).ceil() as u64),
    })
}

/// `None` where it is stored so already.
fn int8(adapter: &Adapter) -> Result<Option<Measured>> {
    let mut factors = adapter.groups.iter().flat_map(TieGroup::factors);
    if factors.all(|(_, f)| f.seed.is_some() || f.tensor.dtype() == Dtype::I8) {
        return Ok(None);
    }
    let (stored, report) = store_as(adapter, Dtype::I8)?;
    let square = |of: fn(f64, f64) -> f64| {
        let targets = report.targets.iter();
        targets.map(|t| of(t.norm, t.relative).powi(2)).sum::<f64>()
    };
    let norm = square(|norm, _| norm).max(f64::MIN_POSITIVE);
    Ok(Some(Measured {
        form: Form::Int8,
        bytes: encoded_len(&stored, &WriteOptions::default())?,
        error: (square(|norm, relative| norm * relative) / norm).sqrt(),
        bound: None,
    }))
}

fn truncated(tied: &Tied, percent: u8) -> Result<Measured> {
    let budget = Budget::Tolerance(f64::from(percent) / 100.0);
    let (adapter, report) = shrink(tied, budget, Dtype::F16)?;
    Ok(Measured {
        form: Form::Truncated(percent),
        bytes: encoded_len(&adapter, &WriteOptions::default())?,
        error: report.error,
        bound: None,
    })
}

/// The closest tied adapters at a rank.
fn fits(tied: &Tied, rank: usize) -> Result<Vec<Fit>> {
    if tied.found == Found::Tied {
        return Ok(vec![Fit {
            joint: false,
            bytes: encoded_len(&tied.adapter, &WriteOptions::default())?,
            error: tied.worst.relative,
        }]);
    }
    let alone = fit(tied, rank, false)?;
    let joint = fit(tied, rank, true)?;
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
