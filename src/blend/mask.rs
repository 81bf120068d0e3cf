//! Random drops that depend on the seed, the update and the place of the element alone.

use crate::digest::Hasher;
use crate::format::chacha20_blocks;
use crate::tensor::{Isa, Kernel};

/// Names the derivation, so that another one draws other words.
const DOMAIN: &[u8; 16] = b"tlkit-blend-drop";
/// Blocks of the key stream that are made together.
const TOGETHER: usize = 16;
/// Words of one block.
const WORDS: usize = 16;

/// The words that decide which elements of one update are dropped.
///
/// Word n is that of the ChaCha20 key stream (RFC 8439, nonce zero, block counter from 0, words
/// little-endian) under the key SHA-256(`tlkit-blend-drop` ‖ seed ‖ input ‖ name), both numbers as 8
/// bytes, little-endian. Element n stays where word n / 2³² is less than its probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    key: [u8; 32],
}

impl Mask {
    /// For the update that adapter number `input` makes to the tensor of this name.
    pub fn new(seed: u64, input: u64, name: &str) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(DOMAIN);
        hasher.update(&seed.to_le_bytes());
        hasher.update(&input.to_le_bytes());
        hasher.update(name.as_bytes());
        Self {
            key: *hasher.finish().as_bytes(),
        }
    }

    /// The words of the elements from `start` on.
    pub fn words(&self, start: u64, out: &mut [u32]) {
        Isa::detect().run(Words {
            key: &self.key,
            start,
            out,
        });
    }

    /// The least word of an element that is dropped, where all stay with probability `p`.
    pub(super) fn threshold(p: f64) -> u64 {
        // Exact: a product with a power of two. A word less than this is less than p · 2³².
        (p * 4_294_967_296.0).ceil() as u64
    }
}

struct Words<'a> {
    key: &'a [u8; 32],
    start: u64,
    out: &'a mut [u32],
}

impl Kernel for Words<'_> {
    type Out = ();

    #[inline(always)]
    fn run<const WIDTH: usize>(self) {
        let words = WORDS as u64;
        let mut block = self.start / words;
        let mut skip = (self.start % words) as usize;
        let mut out = self.out;
        while !out.is_empty() {
            let mut counters = [0; TOGETHER];
            for (n, counter) in counters.iter_mut().enumerate() {
                // 2³² blocks are 2³⁶ elements, more than any tensor has.
                *counter = block.wrapping_add(n as u64) as u32;
            }
            let made = chacha20_blocks(self.key, counters);
            let mut flat = [0; TOGETHER * WORDS];
            for (word, lanes) in made.iter().enumerate() {
                for (n, value) in lanes.iter().enumerate() {
                    flat[n * WORDS + word] = *value;
                }
            }
            let there = &flat[skip..];
            let (now, rest) = out.split_at_mut(out.len().min(there.len()));
            now.copy_from_slice(&there[..now.len()]);
            out = rest;
            block += TOGETHER as u64;
            skip = 0;
        }
    }
}
