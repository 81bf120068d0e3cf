//! Finding the one bit of a record that has changed.

use super::record::{MAGIC, UNBOUND};
use crate::digest::Digest;

/// Longest record of which every bit is tried.
const MAX_TRIED_BYTES: usize = 4 << 10;

/// What a record may have been of which one bit has changed: what follows the digest that it says
/// has that digest. Nothing where it is whole, damaged otherwise, or longer than is tried.
pub(super) fn candidates(object: &[u8]) -> Vec<Vec<u8>> {
    let Some((head, rest)) = object.split_at_checked(36) else {
        return Vec::new();
    };
    let (magic, said) = head.split_at(4);
    let with = |at: usize, bytes: &[u8]| {
        let mut whole = object.to_vec();
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        whole
    };
    let digest = Digest::of(rest);
    let known = [MAGIC, UNBOUND].iter().any(|m| m == magic);
    match (distance(digest.as_bytes(), said), known) {
        // Which form it has shows in what follows.
        (0, false) => {
            let near = [MAGIC, UNBOUND]
                .into_iter()
                .filter(|m| distance(m, magic) == 1);
            near.map(|m| with(0, &m)).collect()
        }
        (1, true) => vec![with(4, digest.as_bytes())],
        (2.., true) if rest.len() <= MAX_TRIED_BYTES => {
            let found = bit_that_gives(rest, said);
            found.map(|rest| with(36, &rest)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The bytes with the one bit changed that gives them a digest.
fn bit_that_gives(bytes: &[u8], said: &[u8]) -> Option<Vec<u8>> {
    let mut tried = bytes.to_vec();
    for bit in 0..8 * bytes.len() {
        tried[bit / 8] ^= 1 << (bit % 8);
        if Digest::of(&tried).as_bytes() == said {
            return Some(tried);
        }
        tried[bit / 8] ^= 1 << (bit % 8);
    }
    None
}

/// In how many bits two byte strings of one length differ.
fn distance(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a flipped bit is not found, or something else is made of a record.
    #[test]
    fn any_flipped_bit_of_a_record_is_found() {
        for magic in [MAGIC, UNBOUND] {
            let rest: Vec<u8> = (0..40).collect();
            let digest = Digest::of(&rest);
            let object = [&magic[..], &digest.as_bytes()[..], &rest].concat();
            assert_eq!(candidates(&object), Vec::<Vec<u8>>::new());
            for bit in 0..8 * object.len() {
                let mut damaged = object.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(candidates(&damaged).contains(&object), "bit {bit}");
                damaged[60] ^= 7;
                assert!(!candidates(&damaged).contains(&object), "bit {bit}");
            }
        }
        assert_eq!(candidates(b"TLR2"), Vec::<Vec<u8>>::new());
    }
}
