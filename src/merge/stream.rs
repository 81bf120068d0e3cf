//! Tensors in, merged blocks out: on the processor, or through a device's pipeline.
//!
//! The blocks are the same either way, and come in the same order, so nobody downstream can tell.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::{Control, Job};
use crate::compute::{Buffer, Done, Pipeline, Pool, Stats, Weight};
use crate::error::Result;

/// Bytes that one thread reads of a block which goes to a device.
const READ: usize = 1 << 20;

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
    jobs: Arc<[Job<'a>]>,
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
    /// Those of [`Job::merge`], of `sink`, and of the device.
    pub(crate) fn group(
        &mut self,
        group: usize,
        jobs: Vec<Job<'a>>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        if let Some(gpu) = self.control.gpu
            && !jobs.is_empty()
            && jobs.iter().all(Job::is_for_gpu)
        {
            let largest = jobs.iter().map(Job::block_bytes).max().unwrap_or(0);
            let fits = |p: &Pipeline<'_, _>| p.block_bytes() >= largest;
            if !self.pipeline.as_ref().is_some_and(fits) {
                self.finish(sink)?;
                // The old one gives its memory back first.
                self.pipeline = None;
                let pipeline = Pipeline::new(gpu, largest, self.held)?;
                self.pipeline = Some(pipeline);
            }
            return self.on_gpu(group, jobs.into(), sink);
        }
        self.finish(sink)?;
        self.on_cpu(group, &jobs, sink)
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

    fn on_cpu(&mut self, group: usize, jobs: &[Job<'a>], sink: &mut Sink<'_>) -> Result<()> {
        let Some((last, others)) = jobs.split_last() else {
            return Ok(());
        };
        for rows in last.blocks() {
            self.control.check()?;
            let mut emit = |part, job: &Job<'_>, old: &[u8], mut new: Buffer| {
                let merged = job.merge(rows.clone(), &mut new);
                sink(Merged {
                    group,
                    part,
                    rows: rows.clone(),
                    old,
                    stats: merged.map_err(|e| job.blame(e))?,
                    new,
                })
            };
            let mut base = self.pool.heap(rows.len() * last.row_bytes());
            last.read(&rows, &mut base)?;
            for (part, job) in others.iter().enumerate() {
                emit(part, job, &base, self.copy(&base))?;
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

    fn on_gpu(&mut self, group: usize, jobs: Arc<[Job<'a>]>, sink: &mut Sink<'_>) -> Result<()> {
        let Some(pipeline) = &mut self.pipeline else {
            return Ok(());
        };
        let deliver: &mut dyn FnMut(Done<'_, Tag<'a>>) -> Result<()> =
            &mut |done| deliver(done, sink);
        let weights = |pipeline: &Pipeline<'_, _>| -> Result<Vec<Arc<Weight>>> {
            let weigh = |job: &Job<'a>| {
                let weight = job.weight(pipeline.gpu());
                weight.map(Arc::new).map_err(|e| job.blame(e))
            };
            jobs.iter().map(weigh).collect()
        };
        // The factors of tensors that are done with make room for these.
        let weights = match weights(pipeline) {
            Ok(weights) => weights,
            Err(_) => {
                pipeline.finish(deliver)?;
                weights(pipeline)?
            }
        };
        let Some(first) = jobs.first() else {
            return Ok(());
        };
        for rows in first.blocks() {
            self.control.check()?;
            let len = rows.len() * first.row_bytes();
            pipeline.read(rows.clone(), len, |to| read(first, &rows, to), deliver)?;
            for (part, weight) in weights.iter().enumerate() {
                let tag = Tag {
                    group,
                    jobs: jobs.clone(),
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
        jobs,
        part,
        rows,
    } = done.tag;
    if let Some(job) = jobs.get(part) {
        job.check(&done.stats).map_err(|e| job.blame(e))?;
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
fn read(job: &Job<'_>, rows: &Range<usize>, to: &mut [u8]) -> Result<()> {
    let size = job.row_bytes().max(1);
    let step = (READ / size).max(1);
    to.par_chunks_mut(step * size)
        .enumerate()
        .try_for_each(|(n, part)| {
            let start = rows.start + n * step;
            job.read(&(start..start + part.len() / size), part)
        })
}
