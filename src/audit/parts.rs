//! What was found out about one adapter, part by part, and the row that it makes.

use super::describe::Description;
use super::facts::{Facts, Fit, Measured};
use super::owner::Owner;
use super::problem::Problem;
use super::row::{Format, Row};
use super::tensors::{Contents, TensorSums};
use crate::adapter::quantisation_of_name;
use crate::error::Error;

/// Sums over the files of an adapter. Those counted elsewhere hold nothing here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FileSums {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) linked_bytes: u64,
    pub(super) adapter_bytes: u64,
    pub(super) full_weights: u64,
    pub(super) optimizer: u64,
    /// Bytes of files that would stay beside a new adapter.
    pub(super) kept: u64,
}

/// The forms that were made of an adapter in memory.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) fits: Vec<Fit>,
    pub(super) measured: Vec<Measured>,
    /// Why some could not be.
    pub(super) problem: Option<Error>,
}

impl Made {
    pub(super) fn failed(error: Error) -> Self {
        Self {
            problem: Some(error),
            ..Self::default()
        }
    }
}

/// Everything that was read of one adapter.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) path: String,
    pub(super) format: Format,
    pub(super) files: FileSums,
    pub(super) description: Description,
    /// Where the tensors could be listed.
    pub(super) sums: Option<TensorSums>,
    pub(super) contents: Contents,
    /// Bytes of the weights' tensors, and what they take packed with zstd, where measured.
    pub(super) packed: Option<(u64, u64)>,
    pub(super) error: Option<Problem>,
}

impl Parts {
    /// Those of an adapter of which nothing is known but where it is and what it takes.
    pub(super) fn new(path: String, format: Format, files: FileSums) -> Self {
        Self {
            path,
            format,
            files,
            description: Description::default(),
            sums: None,
            contents: Contents::default(),
            packed: None,
            error: None,
        }
    }

    /// The row of the adapter, which has this owner.
    pub(super) fn into_row(self, owner: Owner, made: Option<Made>) -> Row {
        let Self {
            files,
            description: known,
            sums,
            contents,
            ..
        } = self;
        let lora = known.lora.unwrap_or_default();
        let is_measured = made.is_some() || sums.as_ref().is_some_and(|s| s.is_coded);
        let made = made.unwrap_or_default();
        Row {
            kind: known.kind,
            user: owner.user,
            task: owner.task,
            base_kind: known.base.as_deref().and_then(quantisation_of_name),
            base: known.base,
            base_fingerprint: known.base_fingerprint,
            rank: known.rank,
            alpha: known.alpha,
            modules: known.modules,
            layers: known.layers,
            trained_parameters: known.trained_parameters,
            parameters: sums.as_ref().map(|s| s.parameters),
            dtype: sums.and_then(|s| s.dtype),
            files: files.files,
            bytes: files.bytes,
            disk_bytes: files.disk_bytes,
            linked_bytes: files.linked_bytes,
            adapter_bytes: files.adapter_bytes,
            error: self.error,
            facts: Facts {
                full_weights: files.full_weights,
                optimizer: files.optimizer,
                kept: files.kept,
                targets: lora.targets,
                bits: lora.bits,
                extra_bytes: lora.extra_bytes,
                wide: contents.wide,
                projections: contents.projections,
                hashed: contents.hashed,
                packed: self.packed,
                is_measured,
                measured: made.measured,
                fits: made.fits,
                unfitted: made.problem.as_ref().map(Problem::from),
            },
            ..Row::new(self.path, self.format)
        }
    }
}
