//! The JSON inside a store's records (settings, states of collection, tags) and of its marker.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tlkit::store::testing::decode_json(bytes);
});
