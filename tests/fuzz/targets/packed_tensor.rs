//! A packed tensor. First byte: dtype, and where the raw length comes from (the frame, or two bytes).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tlkit::format::unpack;
use tlkit::tensor::Dtype;

/// What one input may order.
const MAX_RAW: u64 = 16 << 20;

fuzz_target!(|input: &[u8]| {
    let [how, low, high, packed @ ..] = input else {
        return;
    };
    let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][usize::from(how % 3)];
    let declared = u64::from(u16::from_le_bytes([*low, *high]));
    // The frame's own claim is at the fifth byte in the form that most encoders write.
    let claimed = packed
        .get(5..9)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes);
    let raw_len = match (how / 3 % 2, claimed) {
        (1, Some(claimed)) => u64::from(claimed).min(MAX_RAW),
        _ => declared,
    };
    if let Ok(raw) = unpack(dtype, packed, raw_len) {
        assert_eq!(raw.len() as u64, raw_len);
    }
});
