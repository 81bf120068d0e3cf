//! DELLA's drops: the odds of an element go by its rank in its row.

use super::mask::Mask;

/// The probability of each element of a row to stay, by the rank of its magnitude: the least has
/// density − ε, the largest density + ε; of equal ones the first has the lower rank. A row of one element has
/// the density.
pub(super) fn odds(row: &[f32], density: f64, epsilon: f64, order: &mut Vec<u32>, out: &mut [f32]) {
    order.clear();
    order.extend(0..row.len() as u32);
    let bits = |at: &u32| (row[*at as usize].to_bits() & 0x7fff_ffff, *at);
    order.sort_unstable_by_key(bits);
    let (low, epsilon) = ((density - epsilon) as f32, epsilon as f32);
    let last = row.len().saturating_sub(1) as f32;
    for (rank, at) in order.iter().enumerate() {
        let share = match last {
            0.0 => 0.5,
            last => rank as f32 / last,
        };
        out[*at as usize] = low + share * 2.0 * epsilon;
    }
}

/// Whether an element stays, by its word.
pub(super) fn stays(word: u32, p: f32) -> bool {
    u64::from(word) < Mask::threshold(f64::from(p))
}
