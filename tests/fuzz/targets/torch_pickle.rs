//! `adapter_model.bin`: the whole archive, or, after a byte that is not `P`, its pickle alone, put
//! into a valid archive, since no mutation would get past the checksums of a zip.
#![no_main]

mod scratch;

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use tlkit::peft::pickle::{Limits, read_torch_archive};
use zip::write::SimpleFileOptions;

fuzz_target!(|input: &[u8]| {
    let limits = Limits {
        max_file: 1 << 20,
        max_pickle: 1 << 18,
        max_tensors: 1 << 10,
    };
    let archive = match input.split_first() {
        Some((b'P', _)) => input.to_vec(),
        Some((_, pickle)) => wrap(pickle),
        None => return,
    };
    let path = scratch::file("bin", &archive);
    if let Ok(tensors) = read_torch_archive(&path, limits) {
        let bytes: usize = tensors.values().map(|t| t.data().len()).sum();
        // Views may share bytes; each is inside a storage that is inside the file.
        assert!(bytes <= archive.len() * tensors.len().max(2));
    }
});

fn wrap(pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let storages: [(&str, &[u8]); 3] = [
        ("a/data.pkl", pickle),
        ("a/data/0", &[1; 64]),
        ("a/data/1", &[2; 24]),
    ];
    for (name, bytes) in storages {
        zip.start_file(name, stored).expect("a valid name");
        zip.write_all(bytes).expect("memory");
    }
    zip.finish().expect("memory").into_inner()
}
