//! Seeded tensors (spec §7): frozen random factors kept as a key.
//!
//! Value n of the tensor, row-major, is `f32((w_n >> 8) − 2²³) × step`, rounded to nearest even
//! into the tensor's dtype, where w_n is word n of the ChaCha20 key stream (RFC 8439; the given
//! key, nonce zero, block counter from 0; words little-endian). The integer fits f32 exactly, so
//! there is one rounding and no transcendental function: every machine makes the same bytes.

use super::chacha::chacha20_block;
use super::sink::Sink;
use crate::adapter::Seed;
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor, byte_len, narrow_into, not_float};

/// Name of the generator in manifests.
pub const GENERATOR: &str = "chacha20-uniform/1";
/// Most elements of one seeded tensor; a manifest of a few bytes must not order terabytes.
pub const MAX_SEEDED_ELEMENTS: usize = 1 << 28;

/// The first `len` values of a seed, in f32.
///
/// # Errors
/// [`Code::SeedInvalid`] where `step` is not finite and positive, or `len` is beyond
/// [`MAX_SEEDED_ELEMENTS`].
pub fn generate(seed: &Seed, len: usize) -> Result<Vec<f32>> {
    check(seed, len)?;
    let mut out = vec![0.0; len];
    for (counter, place) in (0..).zip(out.chunks_mut(16)) {
        place.copy_from_slice(&values(seed, counter)[..place.len()]);
    }
    Ok(out)
}

fn check(seed: &Seed, len: usize) -> Result<()> {
    let top = seed.step * (1 << 23) as f32;
    if !(seed.step > 0.0 && top.is_finite()) {
        return Err(Error::new(
            Code::SeedInvalid,
            format!("step {} is not a usable factor", seed.step),
        ));
    }
    if len > MAX_SEEDED_ELEMENTS {
        let message = format!("{len} seeded values, the limit is {MAX_SEEDED_ELEMENTS}");
        return Err(Error::new(Code::SeedInvalid, message));
    }
    Ok(())
}

/// The 16 values that one block of the key stream makes.
fn values(seed: &Seed, counter: u32) -> [f32; 16] {
    chacha20_block(&seed.key, counter)
        .map(|word| ((word >> 8) as i32 - (1 << 23)) as f32 * seed.step)
}

/// The tensor of a seed.
///
/// # Errors
/// As [`generate`]; [`Code::DtypeNotAllowed`].
pub fn seeded_tensor(seed: &Seed, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
    let mut data = Vec::with_capacity(checked_len(seed, dtype, shape)?);
    pieces(seed, dtype, shape, &mut |bytes| {
        data.extend_from_slice(bytes);
        Ok(())
    })?;
    Tensor::new(dtype, shape.to_vec(), data)
}

/// The bytes of a seed's tensor, piece by piece: for whoever compares or hashes them only.
///
/// # Errors
/// As [`seeded_tensor`], and those of `sink`.
pub(super) fn pieces(seed: &Seed, dtype: Dtype, shape: &[usize], sink: Sink<'_>) -> Result<()> {
    const BLOCKS: usize = 1024;
    let mut left = checked_len(seed, dtype, shape)?;
    let width = dtype.bits() / 8;
    let mut buffer = vec![0; left.min(BLOCKS * 16 * width)];
    let mut counter = 0u32;
    while left > 0 {
        let n = left.min(buffer.len());
        for place in buffer[..n].chunks_mut(16 * width) {
            narrow_into(dtype, &values(seed, counter)[..place.len() / width], place);
            counter = counter.wrapping_add(1);
        }
        sink(&buffer[..n])?;
        left -= n;
    }
    Ok(())
}

/// Bytes of a seed's tensor, where it can be made at all.
fn checked_len(seed: &Seed, dtype: Dtype, shape: &[usize]) -> Result<usize> {
    if !dtype.is_float() {
        return Err(not_float(dtype));
    }
    let bytes = byte_len(dtype, shape)? as usize;
    check(seed, bytes / (dtype.bits() / 8))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_one_product_of_an_exact_integer() {
        // The first vector of spec §7; a change here would change every seeded adapter.
        let values = generate(
            &Seed {
                key: [0; 32],
                step: f32::powi(2.0, -23),
            },
            3,
        )
        .unwrap();
        let want = [0xade0_b876u32, 0x903d_f1a0, 0xe56a_5d40]
            .map(|w| ((w >> 8) as i32 - (1 << 23)) as f32 / (1 << 23) as f32);
        assert_eq!(values, want);
    }

    #[test]
    fn absurd_recipes_are_refused_before_allocation() {
        for (step, len) in [
            (0.0, 1),
            (f32::NAN, 1),
            (f32::MAX, 1),
            (-1.0, 1),
            (1.0, MAX_SEEDED_ELEMENTS + 1),
        ] {
            let seed = Seed { key: [0; 32], step };
            assert_eq!(generate(&seed, len).unwrap_err().code(), Code::SeedInvalid);
        }
    }
}
