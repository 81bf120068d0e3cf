//! A base that says it is quantised: it is recognised and read, or refused, whatever its companions hold.
//!
//! An input is a config on the first line, and the bytes of a safetensors file after it.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tlkit::quant::Quantised;
use tlkit::safetensors::Checkpoint;
use tlkit::tensor::Dtype;

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
    let (config, weights) = bytes.split_at(end);
    let weights = weights.get(1..).unwrap_or_default();
    let folder = scratch::folder(&[("config.json", config), ("model.safetensors", weights)]);
    let Ok(base) = Checkpoint::open(folder) else {
        return;
    };
    let quantised = match Quantised::of(&base) {
        Ok(Some(quantised)) => quantised,
        Ok(None) => return,
        Err(e) => {
            assert!(!e.to_string().chars().any(char::is_control));
            return;
        }
    };
    for weight in quantised.weights() {
        let n = weight.elements().min(1 << 12);
        let mut out = vec![0.0; n];
        let _ = weight.values(0..n, Dtype::BF16, &mut out);
        let last = weight.elements() - n;
        let _ = weight.values(last..last + n, Dtype::BF16, &mut out);
    }
});
