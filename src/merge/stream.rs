//! Tensors in, merged blocks out: on the processor, or through a device's pipeline; for a writer, on a
//! second thread ahead of it.
//!
//! The blocks are the same either way, and come in the same order, so nobody downstream can tell.
//! Copying inside the kernel keeps one thread busy and leaves the other cores idle; reading and
//! merging the next tensors meanwhile hides nearly all of their time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use rayon::prelude::*;

use super::plan::{MergePlan, TensorPlan};
use super::request::Control;
use super::tensor::TensorMerge;
use crate::compute::{Buffer, Done, Pipeline, Pool, Stats, Weight};
use crate::error::{Code, Error, Result};

/// Bytes that one thread reads of a block which goes to a device.
const READ: usize = 1 << 20;
/// Blocks that may wait for the writer; bounds the memory to a few of them.
const AHEAD: usize = 3;

/// Merged bytes of some rows of one of a group's tensors.
#[derive(Debug)]
pub(crate) struct Merged<'m> {
    /// The group that was given.
    pub(crate) group: usize,
    /// Which of its tensors.
    pub(crate) part: usize,
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// The base's bytes, where they were asked for.
    pub(crate) old: &'m [u8],
    /// The merged bytes.
    pub(crate) new: Buffer,
    pub(crate) stats: Stats,
}

/// Takes the merged blocks: by group, then by rows, then by part.
pub(crate) type Sink<'s> = dyn FnMut(Merged<'_>) -> Result<()> + 's;

/// Which block is on its way through a device.
#[derive(Debug)]
struct Tag<'a> {
    group: usize,
    tensors: Arc<[TensorMerge<'a>]>,
    part: usize,
    rows: Range<usize>,
}

/// Merges groups of tensors. The tensors of a group start from the same base tensor, whose rows are
/// read once for all of them.
pub(crate) struct Merger<'a> {
    control: Control<'a>,
    /// Whether blocks come with the base's bytes.
    keep_old: bool,
    /// Buffers that the sink may hold on to while it is given more.
    held: usize,
    pool: Arc<Pool>,
    pipeline: Option<Pipeline<'a, Tag<'a>>>,
}

impl<'a> Merger<'a> {
    /// On the device of `control`. The sink may hold `held` blocks beside the one it is given.
    pub(crate) fn new(control: &Control<'a>, keep_old: bool, held: usize) -> Self {
        Self {
            control: *control,
            keep_old,
            held,
            pool: Arc::default(),
            pipeline: None,
        }
    }

    /// Merges the tensors of one group. The last of their blocks may come with a later group, or with
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// Those of [`TensorMerge::merge`], of `sink`, and of the device.
    pub(crate) fn group(
        &mut self,
        group: usize,
        tensors: Vec<TensorMerge<'a>>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        if let Some(gpu) = self.control.gpu
            && !tensors.is_empty()
            && tensors.iter().all(TensorMerge::is_for_gpu)
        {
            let largest = tensors
                .iter()
                .map(TensorMerge::block_bytes)
                .max()
                .unwrap_or(0);
            let fits = |p: &Pipeline<'_, _>| p.block_bytes() >= largest;
            if !self.pipeline.as_ref().is_some_and(fits) {
                self.finish(sink)?;
                // The old one gives its memory back first.
                self.pipeline = None;
                let pipeline = Pipeline::new(gpu, largest, self.held)?;
                self.pipeline = Some(pipeline);
            }
            return self.on_gpu(group, tensors.into(), sink);
        }
        self.finish(sink)?;
        self.on_cpu(group, &tensors, sink)
    }

    /// Brings out what is still on its way.
    ///
    /// # Errors
    /// Those of `sink`, and of the device.
    pub(crate) fn finish(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        match &mut self.pipeline {
            Some(pipeline) => pipeline.finish(&mut |done| deliver(done, sink)),
            None => Ok(()),
        }
    }

    fn on_cpu(
        &mut self,
        group: usize,
        tensors: &[TensorMerge<'a>],
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let Some((last, others)) = tensors.split_last() else {
            return Ok(());
        };
        for rows in last.blocks() {
            self.control.check()?;
            let mut emit = |part, tensor: &TensorMerge<'_>, old: &[u8], mut new: Buffer| {
                let merged = tensor.merge(rows.clone(), &mut new);
                sink(Merged {
                    group,
                    part,
                    rows: rows.clone(),
                    old,
                    stats: merged.map_err(|e| tensor.in_adapter(e))?,
                    new,
                })
            };
            let mut base = self.pool.heap(rows.len() * last.row_bytes());
            last.read(&rows, &mut base)?;
            for (part, tensor) in others.iter().enumerate() {
                emit(part, tensor, &base, self.copy(&base))?;
            }
            // The last one may have what was read; a single one needs no copy so.
            match self.keep_old {
                true => emit(others.len(), last, &base, self.copy(&base))?,
                false => emit(others.len(), last, &[], base)?,
            }
        }
        Ok(())
    }

    fn copy(&self, bytes: &[u8]) -> Buffer {
        let mut copy = self.pool.heap(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }

    fn on_gpu(
        &mut self,
        group: usize,
        tensors: Arc<[TensorMerge<'a>]>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let Some(pipeline) = &mut self.pipeline else {
            return Ok(());
        };
        let deliver: &mut dyn FnMut(Done<'_, Tag<'a>>) -> Result<()> =
            &mut |done| deliver(done, sink);
        let weights = |pipeline: &Pipeline<'_, _>| -> Result<Vec<Arc<Weight>>> {
            let to_device = |tensor: &TensorMerge<'a>| {
                let weight = tensor.weight(pipeline.gpu());
                weight.map(Arc::new).map_err(|e| tensor.in_adapter(e))
            };
            tensors.iter().map(to_device).collect()
        };
        // The factors of tensors that are done with make room for these.
        let weights = match weights(pipeline) {
            Ok(weights) => weights,
            Err(_) => {
                pipeline.finish(deliver)?;
                weights(pipeline)?
            }
        };
        let Some(first) = tensors.first() else {
            return Ok(());
        };
        for rows in first.blocks() {
            self.control.check()?;
            let len = rows.len() * first.row_bytes();
            pipeline.read(rows.clone(), len, |to| read(first, &rows, to), deliver)?;
            for (part, weight) in weights.iter().enumerate() {
                let tag = Tag {
                    group,
                    tensors: tensors.clone(),
                    part,
                    rows: rows.clone(),
                };
                pipeline.add(tag, weight, deliver)?;
            }
        }
        Ok(())
    }
}

fn deliver(done: Done<'_, Tag<'_>>, sink: &mut Sink<'_>) -> Result<()> {
    let Tag {
        group,
        tensors,
        part,
        rows,
    } = done.tag;
    if let Some(tensor) = tensors.get(part) {
        tensor
            .check(&done.stats)
            .map_err(|e| tensor.in_adapter(e))?;
    }
    sink(Merged {
        group,
        part,
        rows,
        old: done.old,
        new: done.new,
        stats: done.stats,
    })
}

/// Reads rows on all threads: one alone is slower than the way to the device.
fn read(tensor: &TensorMerge<'_>, rows: &Range<usize>, to: &mut [u8]) -> Result<()> {
    let size = tensor.row_bytes().max(1);
    let step = (READ / size).max(1);
    to.par_chunks_mut(step * size)
        .enumerate()
        .try_for_each(|(n, part)| {
            let start = rows.start + n * step;
            tensor.read(&(start..start + part.len() / size), part)
        })
}

/// A tensor to merge, in one of the outputs that are written together.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutputTensor<'p> {
    pub(super) plan: &'p MergePlan<'p>,
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
    groups: &[Vec<OutputTensor<'_>>],
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
    groups: &[Vec<OutputTensor<'_>>],
    control: &Control<'_>,
    send: &SyncSender<Result<Block>>,
) -> Result<()> {
    let in_adapter = |part: &OutputTensor<'_>, e: Error| match part.label {
        Some(label) => e.context(label),
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
        let mut tensors = Vec::with_capacity(group.len());
        for part in group {
            let tensor =
                TensorMerge::new(part.plan, part.tensor).map_err(|e| in_adapter(part, e))?;
            tensors.push(tensor.labelled(part.label));
        }
        merger.group(number, tensors, &mut sink)?;
    }
    merger.finish(&mut sink)
}
