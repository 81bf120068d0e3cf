//! Merged blocks of a shard, made by a second thread ahead of the one that writes.
//!
//! Copying inside the kernel keeps one thread busy and leaves the other cores idle; reading and
//! merging the next tensors meanwhile hides nearly all of their time.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::plan::Plan;
use super::{Control, Job};
use crate::compute::Stats;
use crate::error::{Code, Error, Result};

/// Blocks that may wait for the writer; bounds the memory to a few of them.
const AHEAD: usize = 3;

/// Merged bytes of some rows.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    pub(super) stats: Stats,
}

/// The merged blocks of the tensors given, in order.
#[derive(Debug)]
pub(super) struct Blocks {
    ready: Receiver<Result<Block>>,
    spare: Sender<Vec<u8>>,
}

impl Blocks {
    /// The next block.
    pub(super) fn next(&self) -> Result<Block> {
        let ended = || Error::new(Code::Io, "the merging thread ended before its work did");
        self.ready.recv().map_err(|_| ended())?
    }

    /// Takes a written block's buffer back: a fresh one costs a page fault for every page.
    pub(super) fn recycle(&self, block: Block) {
        // The other thread may be done, and needs no more buffers then.
        let _ = self.spare.send(block.bytes);
    }
}

/// Runs `write`, which takes the blocks of `tensors` (indices into the plan's) one by one.
pub(super) fn with_blocks<T>(
    plan: &Plan<'_>,
    tensors: &[usize],
    control: &Control<'_>,
    write: impl FnOnce(Blocks) -> Result<T>,
) -> Result<T> {
    let (send, ready) = sync_channel(AHEAD);
    let (spare, buffers) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(e) = produce(plan, tensors, control, &send, &buffers) {
                // Nobody to tell where the writer has failed itself.
                let _ = send.send(Err(e));
            }
        });
        write(Blocks { ready, spare })
    })
}

fn produce(
    plan: &Plan<'_>,
    tensors: &[usize],
    control: &Control<'_>,
    send: &SyncSender<Result<Block>>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<()> {
    for tensor in tensors.iter().filter_map(|t| plan.tensors().get(*t)) {
        let job = Job::new(plan, tensor)?;
        for rows in job.blocks() {
            control.check()?;
            let mut bytes = buffers.try_recv().unwrap_or_default();
            bytes.resize(rows.len() * job.row_bytes(), 0);
            job.read(&rows, &mut bytes)?;
            let stats = job.merge(rows, &mut bytes)?;
            if send.send(Ok(Block { bytes, stats })).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
