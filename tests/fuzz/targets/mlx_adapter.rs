//! MLX's adapter folder: a config and, after a zero byte, the bytes of a safetensors file.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tlkit::format::NoBlobs;
use tlkit::open::{Source, open_adapter};

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|b| *b == 0).unwrap_or(input.len());
    let (config, weights) = input.split_at(end);
    let weights = weights.get(1..).unwrap_or_default();
    let folder = scratch::folder(&[("adapter_config.json", config), ("adapters.safetensors", weights)]);
    match open_adapter(&folder, None, &NoBlobs) {
        Ok(opened) => {
            assert!(matches!(opened.source, Source::Mlx(_)));
            opened.adapter.validate().expect("what is read is valid");
            for module in opened.adapter.modules().iter().take(8) {
                let group = &opened.adapter.groups[module.group];
                let _ = group.low_rank(module.layer, module.target).expect("factors that fit");
            }
        }
        Err(e) => assert!(!e.to_string().chars().any(char::is_control)),
    }
});
