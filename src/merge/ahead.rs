//! Merged blocks of shards, made by a second thread ahead of the one that writes.
//!
//! Copying inside the kernel keeps one thread busy and leaves the other cores idle; reading and
//! merging the next tensors meanwhile hides nearly all of their time.

use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};

use super::build::about;
use super::plan::{Plan, TensorPlan};
use super::{Control, Job};
use crate::compute::Stats;
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
    pub(super) bytes: Vec<u8>,
    pub(super) stats: Stats,
    pub(super) output: usize,
    pub(super) slot: usize,
    /// Where the bytes go.
    pub(super) at: u64,
}

/// The merged blocks of the tensors given: by group, then by rows, then by part.
#[derive(Debug)]
pub(super) struct Blocks {
    ready: Receiver<Result<Block>>,
    spare: Sender<Vec<u8>>,
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

    /// Takes a written block's buffer back: a fresh one costs a page fault for every page.
    pub(super) fn recycle(&self, block: Block) {
        // The other thread may be done, and needs no more buffers then.
        let _ = self.spare.send(block.bytes);
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
    let (spare, buffers) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let made = groups
                .iter()
                .try_for_each(|group| produce(group, control, &send, &buffers));
            if let Err(e) = made {
                // Nobody to tell where the writer has failed itself.
                let _ = send.send(Err(e));
            }
        });
        write(Blocks { ready, spare })
    })
}

fn produce(
    group: &[Part<'_>],
    control: &Control<'_>,
    send: &SyncSender<Result<Block>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<()> {
    let blame = |part: &Part<'_>, e| match part.label {
        Some(label) => about(e, label),
        None => e,
    };
    let mut jobs = Vec::with_capacity(group.len());
    for part in group {
        jobs.push(Job::new(part.plan, part.tensor).map_err(|e| blame(part, e))?);
    }
    let Some(first) = jobs.first() else {
        return Ok(());
    };
    for rows in first.blocks() {
        control.check()?;
        let mut base = buffers.try_recv().unwrap_or_default();
        base.resize(rows.len() * first.row_bytes(), 0);
        first.read(&rows, &mut base)?;
        for (i, (part, job)) in group.iter().zip(&jobs).enumerate() {
            // The last one may have what was read; a single one needs no copy so.
            let mut bytes = match i + 1 == jobs.len() {
                true => std::mem::take(&mut base),
                false => {
                    let mut copy = buffers.try_recv().unwrap_or_default();
                    copy.clear();
                    copy.extend_from_slice(&base);
                    copy
                }
            };
            let merged = job.merge(rows.clone(), &mut bytes);
            let block = Block {
                stats: merged.map_err(|e| blame(part, e))?,
                bytes,
                output: part.output,
                slot: part.slot,
                at: part.at + rows.start as u64 * job.row_bytes() as u64,
            };
            // The writer has stopped, and says why itself.
            if send.send(Ok(block)).is_err() {
                return Err(ended());
            }
        }
    }
    Ok(())
}
