//! `.nemo`: a whole archive where it begins as one (tar's `./`, or gzip), else a config and, after a zero byte, the
//! pickle of a state dict, put into valid archives, since no mutation would get past the checksums of tar and zip.
#![no_main]

mod scratch;

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use tlkit::format::NoBlobs;
use tlkit::open::open_adapter;
use zip::write::SimpleFileOptions;

fuzz_target!(|input: &[u8]| {
    let archive = match input.first() {
        Some(b'.' | 0x1f) => input.to_vec(),
        Some(_) => {
            let end = input.iter().position(|b| *b == 0).unwrap_or(input.len());
            let (config, pickle) = input.split_at(end);
            wrap(config, pickle.get(1..).unwrap_or_default())
        }
        None => return,
    };
    let path = scratch::file("nemo", &archive);
    match open_adapter(&path, None, &NoBlobs) {
        Ok(opened) => {
            opened.adapter.validate().expect("what is read is valid");
            for module in opened.adapter.modules().iter().take(8) {
                let group = &opened.adapter.groups[module.group];
                let _ = group.low_rank(module.layer, module.target).expect("factors that fit");
            }
        }
        // An error must be printable, whatever stood in the file.
        Err(e) => assert!(!e.to_string().chars().any(char::is_control)),
    }
});

fn wrap(config: &[u8], pickle: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let storages: [(&str, &[u8]); 3] = [("a/data.pkl", pickle), ("a/data/0", &[1; 64]), ("a/data/1", &[2; 128])];
    for (name, bytes) in storages {
        zip.start_file(name, stored).expect("a valid name");
        zip.write_all(bytes).expect("memory");
    }
    let weights = zip.finish().expect("memory").into_inner();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in [("./model_config.yaml", config), ("./model_weights.ckpt", &weights[..])] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).expect("memory");
    }
    tar.into_inner().expect("memory")
}
