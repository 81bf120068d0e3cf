//! What generation keeps of the tokens so far.

use crate::model::ops::Past;

/// Keys and values of sequences under generation.
#[derive(Debug, Default)]
pub struct Cache {
    pub(super) layers: Vec<Vec<Past>>,
    /// Tokens so far of each sequence.
    pub(super) lengths: Vec<usize>,
}

impl Cache {
    /// Tokens so far of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Forgets the sequences that `keep` has a false for; the others move up.
    pub fn retain(&mut self, keep: &[bool]) {
        fn filter<T>(list: &mut Vec<T>, keep: &[bool]) {
            let mut number = 0;
            list.retain(|_| {
                number += 1;
                keep.get(number - 1).copied().unwrap_or(true)
            });
        }
        for layer in &mut self.layers {
            filter(layer, keep);
        }
        filter(&mut self.lengths, keep);
    }
}
