//! The ChaCha20 key stream (RFC 8439): words that depend on a key and their place alone.

/// The state before its rounds, of nonce zero.
fn start(key: &[u8; 32], counter: u32) -> [u32; 16] {
    let mut state = [0u32; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for (word, bytes) in state[4..12].iter_mut().zip(key.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    state[12] = counter;
    state
}

/// One block of the key stream with nonce zero. Single words, not [`chacha20_blocks`] of one: with assertions on, as in tests
/// that make gigabytes, loops over one block take ten times as long.
pub(crate) fn chacha20_block(key: &[u8; 32], counter: u32) -> [u32; 16] {
    let state = start(key, counter);
    let mut x = state;
    for _ in 0..10 {
        rounds(&mut x, single);
    }
    for (a, b) in x.iter_mut().zip(state) {
        *a = a.wrapping_add(b);
    }
    x
}

/// A double round of quarter rounds: columns, then diagonals.
#[inline(always)]
fn rounds<W>(x: &mut [W; 16], quarter: impl Fn(&mut [W; 16], usize, usize, usize, usize)) {
    quarter(x, 0, 4, 8, 12);
    quarter(x, 1, 5, 9, 13);
    quarter(x, 2, 6, 10, 14);
    quarter(x, 3, 7, 11, 15);
    quarter(x, 0, 5, 10, 15);
    quarter(x, 1, 6, 11, 12);
    quarter(x, 2, 7, 8, 13);
    quarter(x, 3, 4, 9, 14);
}

#[inline(always)]
fn single(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(16);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(12);
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(8);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(7);
}

/// Several blocks with nonce zero, word by word: `[word][block]`, so that loops over blocks vectorise.
#[inline(always)]
pub(crate) fn chacha20_blocks<const N: usize>(
    key: &[u8; 32],
    counters: [u32; N],
) -> [[u32; N]; 16] {
    let mut state = start(key, 0).map(|word| [word; N]);
    state[12] = counters;
    let mut x = state;
    for _ in 0..10 {
        rounds(&mut x, quarter);
    }
    for (a, b) in x.iter_mut().zip(state) {
        for n in 0..N {
            a[n] = a[n].wrapping_add(b[n]);
        }
    }
    x
}

#[inline(always)]
fn quarter<const N: usize>(x: &mut [[u32; N]; 16], a: usize, b: usize, c: usize, d: usize) {
    half(x, (a, b, d), 16);
    half(x, (c, d, b), 12);
    half(x, (a, b, d), 8);
    half(x, (c, d, b), 7);
}

#[inline(always)]
fn half<const N: usize>(x: &mut [[u32; N]; 16], (a, b, d): (usize, usize, usize), by: u32) {
    let added = x[b];
    for (a, b) in x[a].iter_mut().zip(added) {
        *a = a.wrapping_add(b);
    }
    let mixed = x[a];
    for (d, a) in x[d].iter_mut().zip(mixed) {
        *d = (*d ^ a).rotate_left(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_stream_is_rfc_8439() {
        // RFC 8439 appendix A.1, test vectors 1 and 2: zero key and nonce, counters 0 and 1.
        assert_eq!(
            chacha20_block(&[0; 32], 0)[..4],
            [0xade0_b876, 0x903d_f1a0, 0xe56a_5d40, 0x28bd_8653]
        );
        assert_eq!(
            chacha20_block(&[0; 32], 1)[..4],
            [0xbee7_079f, 0x7a38_5155, 0x7c97_ba98, 0x0d08_2d73]
        );
    }

    /// Breaks where blocks made together differ from those made one by one.
    #[test]
    fn blocks_made_together_are_the_same() {
        let key = std::array::from_fn(|i| i as u8);
        let together = chacha20_blocks(&key, [7, 8, u32::MAX]);
        for (n, counter) in [7, 8, u32::MAX].into_iter().enumerate() {
            assert_eq!(together.map(|word| word[n]), chacha20_block(&key, counter));
        }
    }
}
