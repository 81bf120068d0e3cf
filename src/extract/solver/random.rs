//! Normal numbers from a counter: the same for any number of threads.

use faer::Mat;

/// A thin matrix of independent normal numbers.
pub(super) fn normal(rows: usize, cols: usize, seed: u64) -> Mat<f32> {
    let mut state = seed;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 * f64::powi(2.0, -53)
    };
    let mut second = None;
    Mat::from_fn(rows, cols, |_, _| {
        if let Some(value) = second.take() {
            return value;
        }
        // Box and Muller; 1 − u is above zero.
        let (u, angle) = (next(), std::f64::consts::TAU * next());
        let radius = (-2.0 * (1.0 - u).ln()).sqrt();
        second = Some((radius * angle.sin()) as f32);
        (radius * angle.cos()) as f32
    })
}
