//! Several blocks on their way through the device at once.
//!
//! A lane is a stream with memory of its own on both sides: what is given to it happens one after
//! the other, and beside what other lanes do. So one lane's copy to the device, another's kernel and
//! a third's copy back run at the same time, while this thread reads the next block.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, sys};

use super::driver::failed;
use super::gpu::Gpu;
use super::memory::{DeviceMemory, Pinned, copy_in, copy_out};
use super::program::launch;
use super::weight::{Cut, Weight};
use crate::compute::buffer::{Buffer, Memory, Pool};
use crate::compute::stats::Stats;
use crate::error::{Code, Error, Result};

/// Lanes, where the memory allows them.
const LANES: usize = 4;
/// Where the statistics lie behind a block: kernels write what is aligned to this.
const ALIGN: usize = 256;

/// Blocks on their way, each with a tag of its caller's.
#[derive(Debug)]
pub(crate) struct Pipeline<'g, T> {
    gpu: &'g Gpu,
    pool: Arc<Pool>,
    lanes: Vec<Lane>,
    /// The lane that has the base's bytes which are merged now.
    current: usize,
    queue: VecDeque<Entry<T>>,
    /// Page-locked buffers made, and the most there may be.
    made: usize,
    most: usize,
}

#[derive(Debug)]
struct Lane {
    stream: Arc<CudaStream>,
    input: Pinned,
    base: DeviceMemory,
    /// The merged block, and its settled statistics behind it.
    out: DeviceMemory,
    unsettled: DeviceMemory,
    len: usize,
    row: usize,
    rows: usize,
}

#[derive(Debug)]
struct Entry<T> {
    tag: T,
    lane: usize,
    weight: Arc<Weight>,
    cut: Cut,
    len: usize,
    out: Buffer,
    done: CudaEvent,
}

/// A block that has come through.
#[derive(Debug)]
pub(crate) struct Done<'p, T> {
    pub(crate) tag: T,
    /// The base's bytes.
    pub(crate) old: &'p [u8],
    /// The merged bytes.
    pub(crate) new: Buffer,
    pub(crate) stats: Stats,
}

impl<'g, T> Pipeline<'g, T> {
    /// For blocks of up to `block` bytes, of which the caller may hold `held` while it adds more.
    ///
    /// # Errors
    /// [`Code::Backend`] where not even one lane has room.
    pub(crate) fn new(gpu: &'g Gpu, block: usize, held: usize) -> Result<Self> {
        let mut lanes = Vec::with_capacity(LANES);
        while lanes.len() < LANES {
            match Lane::new(gpu, block) {
                Ok(lane) => lanes.push(lane),
                // Half of what may be taken is for factors.
                Err(e) if lanes.is_empty() => return Err(e),
                Err(_) => break,
            }
            if gpu.memory_used() > gpu.limit / 2 {
                break;
            }
        }
        Ok(Self {
            gpu,
            pool: Arc::default(),
            current: 0,
            queue: VecDeque::new(),
            made: 0,
            most: lanes.len() + held + 1,
            lanes,
        })
    }

    /// Bytes of the largest block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.lanes.first().map_or(0, |l| l.input.len())
    }

    /// The device.
    pub(crate) fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Reads `len` bytes of the base, `rows` of a weight, with `fill`, and sends them to the device:
    /// what [`add`](Self::add) merges from then on. `sink` is given blocks that had to be finished
    /// first, in the order they were added.
    ///
    /// # Errors
    /// Those of `fill` and `sink`; [`Code::Backend`].
    pub(crate) fn read(
        &mut self,
        rows: Range<usize>,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
        sink: &mut dyn FnMut(Done<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let next = (self.current + 1) % self.lanes.len();
        // Their caller may want to see the bytes that are about to be overwritten.
        while self.queue.iter().any(|e| e.lane == next) {
            self.finish_one(sink)?;
        }
        self.current = next;
        let lane = &mut self.lanes[next];
        // Without entries, nothing but its own copy to the device can still be under way.
        (lane.stream.synchronize()).map_err(failed("waiting"))?;
        let input = lane.input.get_mut(..len).ok_or_else(too_long)?;
        fill(input)?;
        (lane.len, lane.row, lane.rows) = (len, rows.start, rows.len());
        // SAFETY: the lane's own memory, which the next call waits for, as does drop.
        unsafe { copy_in(&lane.stream, &lane.base, &lane.input[..len]) }
            .map_err(failed("copying to the device"))
    }

    /// Merges the rows read last with `weight`. `sink` as for [`read`](Self::read).
    ///
    /// # Errors
    /// Those of `sink`; [`Code::Backend`].
    pub(crate) fn add(
        &mut self,
        tag: T,
        weight: &Arc<Weight>,
        sink: &mut dyn FnMut(Done<'_, T>) -> Result<()>,
    ) -> Result<()> {
        let mut out = self.buffer(sink)?;
        let index = self.current;
        let cut = weight.cut(self.lanes[index].rows);
        self.lanes[index].make_room(self.gpu, cut.unsettled()[3])?;
        let lane = &self.lanes[index];
        let behind = lane.len.next_multiple_of(ALIGN);
        let whole = behind + cut.settled()[3];
        if whole > lane.out.len() {
            return Err(too_long());
        }
        let memory = [
            lane.base.at(0),
            lane.out.at(0),
            lane.unsettled.at(0),
            lane.out.at(behind),
        ];
        let (merge, settle) = weight.arguments(&cut, lane.row, memory);
        let [units, chunks] = cut.threads();
        let stream = &lane.stream;
        let to = out.whole_mut().get_mut(..whole).ok_or_else(too_long)?;
        // SAFETY: all memory is the lane's, whose stream orders its uses, or the entry's, which is
        // kept until its event, or by drop until the stream, has come to its end. Sizes were checked.
        let sent = unsafe {
            launch(stream, &weight.functions.merge, units, &merge)
                .and_then(|()| launch(stream, &weight.functions.settle, chunks, &settle))
                .and_then(|()| copy_out(stream, &lane.out, 0..whole, to))
        };
        let event = sent.and_then(|()| {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            let event = self.gpu.context.new_event(Some(flags))?;
            event.record(stream)?;
            Ok(event)
        });
        match event {
            Ok(done) => self.queue.push_back(Entry {
                tag,
                lane: index,
                weight: weight.clone(),
                cut,
                len: lane.len,
                out,
                done,
            }),
            Err(e) => {
                // The buffer must not go back to the pool under a copy's feet.
                let _ = stream.synchronize();
                return Err(failed("merging")(e));
            }
        }
        Ok(())
    }

    /// Finishes everything, in order.
    ///
    /// # Errors
    /// Those of `sink`; [`Code::Backend`].
    pub(crate) fn finish(&mut self, sink: &mut dyn FnMut(Done<'_, T>) -> Result<()>) -> Result<()> {
        while !self.queue.is_empty() {
            self.finish_one(sink)?;
        }
        Ok(())
    }

    fn finish_one(&mut self, sink: &mut dyn FnMut(Done<'_, T>) -> Result<()>) -> Result<()> {
        let Some(first) = self.queue.front() else {
            return Ok(());
        };
        // Left in the queue where this fails, so that drop waits for it.
        (first.done.synchronize()).map_err(failed("merging"))?;
        let Some(entry) = self.queue.pop_front() else {
            return Ok(());
        };
        let behind = entry.len.next_multiple_of(ALIGN);
        let (block, settled) = entry.out.whole().split_at(behind);
        let stats = entry.weight.stats(&entry.cut, &block[..entry.len], settled);
        let mut new = entry.out;
        new.shorten(entry.len);
        sink(Done {
            tag: entry.tag,
            old: &self.lanes[entry.lane].input[..entry.len],
            new,
            stats,
        })
    }

    /// A page-locked buffer: one that came back, else a new one, else the oldest entry's, as soon as
    /// its taker is done with it.
    fn buffer(&mut self, sink: &mut dyn FnMut(Done<'_, T>) -> Result<()>) -> Result<Buffer> {
        let len = self.lanes[self.current].out.len();
        loop {
            if let Some(memory) = self.pool.spare() {
                return Ok(self.pool.lend(memory, len));
            }
            if self.made < self.most {
                self.made += 1;
                let memory = Memory::Pinned(Pinned::new(self.gpu, len)?);
                return Ok(self.pool.lend(memory, len));
            }
            if self.queue.is_empty() {
                return Ok(self.pool.lend(self.pool.wait(), len));
            }
            self.finish_one(sink)?;
        }
    }
}

impl<T> Drop for Pipeline<'_, T> {
    fn drop(&mut self) {
        // Entries, and the lanes' memory, are in use until then.
        for lane in &self.lanes {
            let _ = lane.stream.synchronize();
        }
    }
}

impl Lane {
    fn new(gpu: &Gpu, block: usize) -> Result<Self> {
        let out = block.next_multiple_of(ALIGN) + Cut::most_settled(block);
        Ok(Self {
            stream: gpu
                .context
                .new_stream()
                .map_err(failed("making a stream"))?,
            input: Pinned::new(gpu, block)?,
            base: DeviceMemory::new(gpu, block)?,
            out: DeviceMemory::new(gpu, out)?,
            unsettled: DeviceMemory::new(gpu, 0)?,
            len: 0,
            row: 0,
            rows: 0,
        })
    }

    /// Sees to `len` bytes for the units' statistics.
    fn make_room(&mut self, gpu: &Gpu, len: usize) -> Result<()> {
        if self.unsettled.len() < len {
            (self.stream.synchronize()).map_err(failed("waiting"))?;
            self.unsettled = DeviceMemory::new(gpu, len)?;
        }
        Ok(())
    }
}

fn too_long() -> Error {
    Error::new(Code::Backend, "a block is larger than was made room for")
}
