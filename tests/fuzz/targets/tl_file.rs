//! A whole `.tl`: opened and loaded as it is, and once more with its digests put right, since no
//! mutation would get past them. What loads has exactly the file's manifest, and opens elsewhere.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use tlkit::digest::Digest;
use tlkit::format::{NoBlobs, TlFile, encode};
use tlkit::safetensors::{Header, MAX_HEADER_BYTES};

/// What one input may make the reader unpack and generate.
const MAX_BYTES: u64 = 16 << 20;

fuzz_target!(|file: &[u8]| {
    check(file);
    if let Some(repaired) = repair(file) {
        check(&repaired);
    }
});

fn check(file: &[u8]) {
    let path = scratch::file("tl", file);
    let tl = match TlFile::open(&path) {
        Ok(tl) => tl,
        Err(e) => return assert!(!e.to_string().chars().any(char::is_control)),
    };
    safetensors::SafeTensors::deserialize(file).expect("every .tl opens as safetensors");
    if let Ok(adapter) = tl.load_within(&NoBlobs, MAX_BYTES) {
        let encoded = encode(&adapter).expect("what was read can be written");
        assert_eq!(encoded.manifest, *tl.manifest());
        for module in adapter.modules() {
            let group = &adapter.groups[module.group];
            group
                .low_rank(module.layer, module.target)
                .expect("every module has factors");
        }
    }
}

/// The file with the digests that its tensors and its manifest really have.
fn repair(file: &[u8]) -> Option<Vec<u8>> {
    let len = Header::announced_len(file, file.len() as u64, MAX_HEADER_BYTES).ok()? as usize;
    let (json, data) = file[8..].split_at(len);
    let header = Header::parse(json, data.len() as u64).ok()?;
    let mut manifest = header.metadata("tl.manifest")?.to_owned();
    let mut out = file.to_vec();
    for tensor in &header.tensors {
        let key = format!(r#""{}":{{"dtype":"#, tensor.name);
        let entry = manifest.find(&key)?;
        let at = manifest[entry..].find(r#""sha256":""#)? + entry + 10;
        let old = manifest.get(at..at + 64)?.to_owned();
        let range = tensor.range.start as usize..tensor.range.end as usize;
        let new = Digest::of(&data[range]).hex();
        manifest = manifest.replace(&old, &new);
        replace(&mut out, old.as_bytes(), new.as_bytes());
    }
    let root = header.metadata("tl.root")?.to_owned();
    let new = Digest::of(manifest.as_bytes()).to_string();
    if root.len() == new.len() {
        replace(&mut out, root.as_bytes(), new.as_bytes());
    }
    Some(out)
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(old.len()).position(|w| w == old) {
        bytes[at + found..][..new.len()].copy_from_slice(new);
        at += found + old.len();
    }
}
