//! Which examples each optimiser step sees.

use crate::format::chacha20_block;

/// Cuts epochs into optimiser steps, and steps into micro-batches.
///
/// The order of an epoch is a pure function of the seed and the epoch's number, so that a run is
/// resumed by its step number alone. Each step is a uniformly random set of examples; within a
/// step, micro-batches hold examples of similar length. Sorting over more than one step would make
/// some steps of short examples only, which biases the gradient.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    lengths: Vec<u32>,
    batch_size: usize,
    global_batch: usize,
    seed: u64,
    /// The last epoch asked for, and its order.
    order: Option<(u64, Vec<u32>)>,
}

impl Sampler {
    /// A sampler of examples with these lengths in tokens: `global_batch` of them to a step, at
    /// most `batch_size` of them to a micro-batch. Sizes of zero are taken as one.
    pub(super) fn new(
        lengths: &[usize],
        batch_size: usize,
        global_batch: usize,
        seed: u64,
    ) -> Self {
        Self {
            lengths: lengths
                .iter()
                .map(|l| u32::try_from(*l).unwrap_or(u32::MAX))
                .collect(),
            batch_size: batch_size.max(1),
            global_batch: global_batch.max(1),
            seed,
            order: None,
        }
    }

    /// Optimiser steps that see every example once; the last of them may be smaller.
    pub(super) fn steps_per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.global_batch) as u64
    }

    /// The micro-batches, as places of examples, of optimiser step `step`, counted from 1 over all
    /// epochs. No micro-batch is empty; without examples there is none.
    pub(super) fn step(&mut self, step: u64) -> Vec<Vec<usize>> {
        if self.lengths.is_empty() {
            return Vec::new();
        }
        let at = step.saturating_sub(1);
        let epoch = at / self.steps_per_epoch();
        let start = (at % self.steps_per_epoch()) as usize * self.global_batch;
        let (lengths, seed) = (&self.lengths, self.seed);
        if self.order.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.order = Some((epoch, shuffled(lengths.len() as u32, seed, epoch)));
        }
        let order = self.order.iter().flat_map(|(_, order)| order);
        let mut examples: Vec<u32> = order.skip(start).take(self.global_batch).copied().collect();
        // Stable: examples of one length stay in shuffled order.
        examples.sort_by_key(|e| lengths.get(*e as usize));
        let micro = examples.chunks(self.batch_size);
        micro
            .map(|m| m.iter().map(|e| *e as usize).collect())
            .collect()
    }
}

/// 0 .. n in random order (Fisher and Yates), from the ChaCha20 stream of (seed, epoch).
fn shuffled(n: u32, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    let mut words = Words::new(seed, epoch);
    for last in (1..order.len()).rev() {
        let other = words.below(last as u32 + 1);
        order.swap(last, other as usize);
    }
    order
}

/// A stream of random words that is the same on every machine.
struct Words {
    key: [u8; 32],
    counter: u32,
    block: std::array::IntoIter<u32, 16>,
}

impl Words {
    fn new(seed: u64, epoch: u64) -> Self {
        let mut key = *b"................tlkit data order";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        Self {
            block: chacha20_block(&key, 0).into_iter(),
            key,
            counter: 0,
        }
    }

    fn next(&mut self) -> u32 {
        loop {
            if let Some(word) = self.block.next() {
                return word;
            }
            self.counter = self.counter.wrapping_add(1);
            self.block = chacha20_block(&self.key, self.counter).into_iter();
        }
    }

    /// A uniform number below `n` (Lemire's method, arXiv 1805.10941): no modulo bias.
    fn below(&mut self, n: u32) -> u32 {
        let threshold = n.wrapping_neg() % n.max(1);
        loop {
            let product = u64::from(self.next()) * u64::from(n);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_sees_every_example_once(
            lengths in prop::collection::vec(2usize..100, 1..80),
            batch in 1usize..9, global in 1usize..20, seed: u64, epoch in 0u64..3,
        ) {
            // An example left out, or seen twice, would change what the run optimises.
            let mut sampler = Sampler::new(&lengths, batch, global, seed);
            let per_epoch = sampler.steps_per_epoch();
            let mut seen = Vec::new();
            for step in 1..=per_epoch {
                let micro = sampler.step(epoch * per_epoch + step);
                let size: usize = micro.iter().map(Vec::len).sum();
                prop_assert!(size == global || step == per_epoch);
                prop_assert!(micro.iter().all(|m| !m.is_empty() && m.len() <= batch));
                // Similar lengths: no micro-batch reaches below the one before it.
                let flat: Vec<usize> = micro.concat();
                prop_assert!(flat.windows(2).all(|w| lengths[w[0]] <= lengths[w[1]]));
                seen.extend(flat);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_step_depends_on_its_number_alone() {
        // What resuming rests on: a new sampler that starts in the middle gives the same steps.
        let lengths: Vec<usize> = (0..37).map(|i| 2 + i * 7 % 11).collect();
        let mut through = Sampler::new(&lengths, 2, 5, 3);
        let all: Vec<_> = (1..=20).map(|n| through.step(n)).collect();
        for n in [20, 9, 8, 1] {
            let step = Sampler::new(&lengths, 2, 5, 3).step(n);
            assert_eq!(step, all[n as usize - 1]);
        }
        assert_ne!(all[0], all[8], "the epochs have orders of their own");
        assert_ne!(all[0], Sampler::new(&lengths, 2, 5, 4).step(1), "seeds too");
    }

    #[test]
    fn the_order_is_fixed_for_ever() {
        // A change of the generator would make old runs unrepeatable. The order was computed a
        // second time, outside this crate.
        assert_eq!(shuffled(10, 0, 0), [1, 7, 3, 2, 6, 5, 9, 4, 0, 8]);
        assert_eq!(shuffled(0, 0, 0), [0; 0]);
    }

    #[test]
    fn every_order_is_as_likely() {
        // A shuffle with a wrong range of the draw favours some orders by a third or more.
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..6000 {
            *counts.entry(shuffled(3, 1, epoch)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(
            counts.values().all(|n| (850..1150).contains(n)),
            "{counts:?}"
        );
    }

    #[test]
    fn without_examples_there_are_no_batches() {
        let mut sampler = Sampler::new(&[], 1, 1, 0);
        assert_eq!((sampler.steps_per_epoch(), sampler.step(1).len()), (0, 0));
    }
}
