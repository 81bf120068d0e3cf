//! A manifest: what is accepted is canonical, and describes an adapter of a known method.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tlkit::adapter::Method;
use tlkit::digest::Digest;
use tlkit::format::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::parse(bytes) else {
        return;
    };
    assert_eq!(manifest.to_bytes(), bytes);
    assert_eq!(manifest.root(), Digest::of(bytes));
    let adapter = manifest
        .adapter()
        .expect("an accepted manifest has an adapter");
    let name = format!(r#""method":"{}""#, adapter.method().name());
    assert!(String::from_utf8_lossy(bytes).contains(&name));
    assert!(Method::PRESETS.contains(&adapter.method()) || adapter.method() == Method::Custom);
    // Whatever the numbers are, counting with them must not overflow.
    adapter.trained_parameters();
    adapter.tensor_bytes();
    adapter.modules();
});
