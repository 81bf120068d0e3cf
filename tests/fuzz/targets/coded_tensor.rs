//! A coded tensor. First three bytes: matrices, rows and columns.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tlkit::coding::{Extents, check, decode};

fuzz_target!(|input: &[u8]| {
    let [slices, rows, columns, coded @ ..] = input else {
        return;
    };
    let shape = [slices, rows, columns].map(|n| usize::from(*n).max(1));
    let extents = Extents::of(&shape).expect("three small extents");
    // The two readers refuse the same bytes.
    let checked = check(coded, &extents);
    match decode(coded, &extents) {
        Ok(values) => {
            assert!(checked.is_ok());
            assert_eq!(values.len(), shape.iter().product::<usize>());
            assert!(values.iter().all(|x| x.is_finite()));
        }
        Err(_) => assert!(checked.is_err()),
    }
});
