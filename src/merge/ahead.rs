//! Merged blocks of shards, made by a second thread ahead of the one that writes.
//!
//! Copying inside the kernel keeps one thread busy and leaves the other cores idle; reading and
//! merging the next tensors meanwhile hides nearly all of their time.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use super::build::about;
use super::plan::{Plan, TensorPlan};
use super::stream::{Merged, Merger};
use super::{Control, Job};
use crate::compute::{Buffer, Stats};
use crate::error::{Code, Error, Result};

/// Blocks that may wait for the writer; bounds the memory to a few of them.
const AHEAD: usize = 3;

/// A tensor to merge, in one of the outputs that are written together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'p> {
    pub(super) plan: &'p Plan<'p>,
    pub(super) tensor: &'p TensorPlan,
    /// Which output.
    pub(super) output: usize,
    /// Which of the output's merged tensors.
    pub(super) slot: usize,
    /// Where the tensor goes.
    pub(super) at: u64,
    /// What messages say where there are several outputs.
    pub(super) label: Option<&'p str>,
}

/// Merged bytes of some rows.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Buffer,
    pub(super) stats: Stats,
    pub(super) output: usize,
    pub(super) slot: usize,
    /// Where the bytes go.
    pub(super) at: u64,
}

/// The merged blocks of the tensors given: by group, then by rows, then by part. Their buffers are
/// used again once they are dropped.
#[derive(Debug)]
pub(super) struct Blocks {
    ready: Receiver<Result<Block>>,
}

impl Blocks {
    /// The next block.
    pub(super) fn next(&self) -> Result<Block> {
        self.ready.recv().map_err(|_| ended())?
    }

    /// The next block, if it is ready.
    pub(super) fn try_next(&self) -> Result<Option<Block>> {
        match self.ready.try_recv() {
            Ok(block) => block.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(ended()),
        }
    }
}

fn ended() -> Error {
    Error::new(Code::Io, "the merging thread ended before its work did")
}

/// Runs `write`, which takes the blocks of `groups` one by one. The parts of a group start from the
/// same base tensor, whose rows are read once for all of them.
pub(super) fn with_blocks<T>(
    groups: &[Vec<Part<'_>>],
    control: &Control<'_>,
    write: impl FnOnce(Blocks) -> Result<T>,
) -> Result<T> {
    let (send, ready) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(e) = produce(groups, control, &send) {
                // Nobody to tell where the writer has failed itself.
                let _ = send.send(Err(e));
            }
        });
        write(Blocks { ready })
    })
}

fn produce(
    groups: &[Vec<Part<'_>>],
    control: &Control<'_>,
    send: &SyncSender<Result<Block>>,
) -> Result<()> {
    let blame = |part: &Part<'_>, e| match part.label {
        Some(label) => about(e, label),
        None => e,
    };
    // Beside those that wait for the writer, it may hold one, and one may be on its way to wait.
    let mut merger = Merger::new(control, false, AHEAD + 2);
    let mut sink = |merged: Merged<'_>| {
        let part = &groups[merged.group][merged.part];
        let row_bytes = merged.new.len() / merged.rows.len().max(1);
        let block = Block {
            at: part.at + merged.rows.start as u64 * row_bytes as u64,
            bytes: merged.new,
            stats: merged.stats,
            output: part.output,
            slot: part.slot,
        };
        // The writer has stopped, and says why itself.
        send.send(Ok(block)).map_err(|_| ended())
    };
    for (number, group) in groups.iter().enumerate() {
        let mut jobs = Vec::with_capacity(group.len());
        for part in group {
            let job = Job::new(part.plan, part.tensor).map_err(|e| blame(part, e))?;
            jobs.push(job.labelled(part.label));
        }
        merger.group(number, jobs, &mut sink)?;
    }
    merger.finish(&mut sink)
}
