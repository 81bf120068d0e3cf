//! A record or a blob of a store, past the digest that would keep arbitrary bytes out.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tlkit::store::testing::decode(bytes);
});
