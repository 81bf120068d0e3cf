//! PEFT directories to coded `.tl` files.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::named::names;
use super::tied::ToFitted;
use crate::adapter::Adapter;
use crate::convert::{
    Tied, ToTiedOptions, fingerprinted, import_tied, import_unbound, touched_tensors,
};
use crate::error::Result;
use crate::fit::coded::{CodeTarget, CodedAdapter, CodedFleet, CodedReport, code, code_all};
use crate::fit::options::FitOptions;
use crate::fit::stored::measure_again;
use crate::fit::updates::fit_adapter;
use crate::format::write_tl;
use crate::fs::{Existing, Output, check_inputs, check_output, write_dir};

/// Report of [`peft_to_coded`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToCoded {
    /// What was lost.
    #[serde(flatten)]
    pub coded: CodedReport,
    /// Bytes of the PEFT files.
    pub file_bytes_before: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// One adapter of [`peft_to_coded_fleet`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CodedFile {
    /// What it is called in the output folder.
    pub name: String,
    /// What it lost.
    #[serde(flatten)]
    pub coded: CodedAdapter,
    /// Bytes of the PEFT files.
    pub file_bytes_before: u64,
    /// The adapter's identity.
    pub root: String,
}

/// Report of [`peft_to_coded_fleet`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToCodedFleet {
    /// Of all adapters together; its own `adapters` are in `files`.
    #[serde(flatten)]
    pub fleet: CodedFleet,
    /// In the order given.
    #[serde(rename = "adapters")]
    pub files: Vec<CodedFile>,
    /// Bytes of all PEFT files.
    pub file_bytes_before: u64,
    /// What was ignored, guessed or approximated on the way, for people.
    pub notes: Vec<String>,
    /// The folder written.
    pub output: PathBuf,
}

/// Converts a PEFT adapter directory to a `.tl` that is coded as [`code`] does.
///
/// # Errors
/// Those of [`import_tied`], [`code`] and [`write_tl`].
pub fn peft_to_coded(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    target: CodeTarget,
) -> Result<ToCoded> {
    let tied = import_to_code(dir, options)?;
    let (adapter, coded) = code(&tied.adapter, target)?;
    write_coded(tied, adapter, coded, output, options)
}

/// A PEFT adapter directory as it is to be coded; the base's fingerprint comes with what is left of its modules.
///
/// # Errors
/// Those of [`import_tied`].
pub fn import_to_code(dir: &Path, options: &ToTiedOptions<'_>) -> Result<Tied> {
    let tied = import_unbound(dir, options)?;
    if let Some(base) = options.base {
        touched_tensors(&tied.adapter, base, &[])?;
    }
    Ok(tied)
}

/// Writes what coding of `tied` gave.
///
/// # Errors
/// Those of [`write_tl`].
pub fn write_coded(
    tied: Tied,
    mut adapter: Adapter,
    coded: CodedReport,
    output: &Path,
    options: &ToTiedOptions<'_>,
) -> Result<ToCoded> {
    if let Some(base) = options.base {
        // Of the modules that are left.
        adapter.base = Some(fingerprinted(&adapter, base)?);
    }
    let written = write_tl(output, &adapter, &options.write)?;
    Ok(ToCoded {
        coded: CodedReport {
            file_bytes: written.bytes,
            ..coded
        },
        file_bytes_before: tied.bytes,
        root: written.root.to_string(),
        notes: tied.notes,
        output: output.to_owned(),
    })
}

/// Converts a PEFT adapter directory to the `.tl` that is closest to it within a budget, and codes the factors of that:
/// A, B, u or cores, v. `target` is an error of the fit's updates, or bytes of the file.
///
/// # Errors
/// Those of [`import_tied`], [`fit_adapter`], [`code`] and [`write_tl`].
pub fn peft_to_coded_fit(
    dir: &Path,
    output: &Path,
    options: &ToTiedOptions<'_>,
    fit: &FitOptions,
    target: CodeTarget,
) -> Result<ToFitted> {
    let tied = import_tied(dir, options)?;
    let (adapter, fitted) = fit_adapter(&tied, fit)?;
    let (adapter, coded) = code(&adapter, target)?;
    let fitted = measure_again(&tied, fit, &fitted, &adapter)?;
    let mut report = super::tied::write_fitted(tied, &adapter, fitted, output, &options.write)?;
    report.coded = Some(coded);
    Ok(report)
}

/// Converts PEFT adapter directories to a folder of coded `.tl` files, `OUT/NAME.tl`: one error, or number of bytes, of
/// all of them together.
///
/// # Errors
/// Those of [`import_tied`], [`code_all`] and [`write_tl`]; [`crate::Code::Usage`] for two adapters of one name;
/// [`crate::Code::OutputExists`], also where the output to be replaced holds anything else.
pub fn peft_to_coded_fleet(
    dirs: &[PathBuf],
    output: &Path,
    options: &ToTiedOptions<'_>,
    target: CodeTarget,
) -> Result<ToCodedFleet> {
    let names = names(dirs)?;
    check_output(output, Output::SharedAdapters, options.write.existing)?;
    if options.write.existing == Existing::Replace {
        check_inputs(output, dirs)?;
    }
    let import = |dir: &PathBuf| import_tied(dir, options).map_err(|e| e.file(dir));
    let all: Vec<Tied> = dirs.iter().map(import).collect::<Result<_>>()?;
    let adapters: Vec<&Adapter> = all.iter().map(|t| &t.adapter).collect();
    let (coded, mut fleet) = code_all(&adapters, target)?;
    let mut files = Vec::with_capacity(names.len());
    write_dir(
        output,
        Output::SharedAdapters,
        options.write.existing,
        |folder| {
            let reports = fleet.adapters.drain(..);
            for (((name, tied), adapter), report) in names.iter().zip(&all).zip(&coded).zip(reports)
            {
                let written =
                    write_tl(&folder.join(format!("{name}.tl")), adapter, &options.write)?;
                files.push(CodedFile {
                    name: name.clone(),
                    coded: CodedAdapter {
                        file_bytes: written.bytes,
                        ..report
                    },
                    file_bytes_before: tied.bytes,
                    root: written.root.to_string(),
                });
            }
            Ok(())
        },
    )?;
    let mut notes: Vec<String> = all.iter().flat_map(|t| t.notes.clone()).collect();
    notes.sort();
    notes.dedup();
    Ok(ToCodedFleet {
        fleet,
        file_bytes_before: all.iter().map(|t| t.bytes).sum(),
        files,
        notes,
        output: output.to_owned(),
    })
}
