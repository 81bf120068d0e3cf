//! An undo file, as it is and with the digest of what it says put right, for a base of two tensors
//! that was merged, and one that was being merged. As it is, it restores the base or leaves it as it
//! was. One whose digest is right may say less than the merge did, and then writes no other bytes than
//! those that were there before.
#![no_main]

mod scratch;

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tlkit::digest::Digest;
use tlkit::merge::{Control, UnmergeOptions, unmerge, unmerge_with};
use tlkit::safetensors::{Header, MAX_HEADER_BYTES};

const HEADER: &[u8] = br#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}}      "#;

fn base(data: [u8; 16]) -> Vec<u8> {
    [&(HEADER.len() as u64).to_le_bytes(), HEADER, &data].concat()
}

fuzz_target!(|undo: &[u8]| {
    let original = base(std::array::from_fn(|i| i as u8));
    let merged = base(std::array::from_fn(|i| 16 + i as u8));
    let torn = base(std::array::from_fn(|i| if i < 12 { 16 + i as u8 } else { 99 }));
    let digested = repair(undo).is_some_and(|repaired| repaired == undo);
    for (before, name) in [(&merged, "undo"), (&torn, "undo.incomplete")] {
        if let Some(after) = run(undo, before, name, UnmergeOptions::default()) {
            assert!(digested, "applied, and its digest is wrong");
            let mut bytes = after.iter().zip(original.iter().zip(before));
            assert!(bytes.all(|(a, (o, b))| a == o || a == b));
        }
    }
    for undo in [Some(undo.to_owned()), repair(undo)].into_iter().flatten() {
        let options = UnmergeOptions { undigested: true };
        if let Some(after) = run(&undo, &merged, "undo", options) {
            let mut bytes = after.iter().zip(original.iter().zip(&merged));
            assert!(bytes.all(|(a, (o, m))| a == o || a == m));
        }
    }
});

/// The base after an undo file was applied, or `None` where it was refused.
fn run(undo: &[u8], before: &[u8], name: &str, options: UnmergeOptions) -> Option<Vec<u8>> {
    let path = scratch::file("base", before);
    let undo = scratch::file(name, undo);
    let done = match options.undigested {
        true => unmerge_with(&path, &undo, options, &Control::default()),
        false => unmerge(&path, &undo, &Control::default()),
    };
    let after = fs::read(&path).expect("the base is there");
    clean_up(&undo);
    match done {
        Ok(_) => Some(after),
        Err(e) => {
            assert!(!e.to_string().chars().any(char::is_control));
            assert!(after == before, "refused, and changed: {e}");
            None
        }
    }
}

fn clean_up(undo: &Path) {
    let plain = undo.with_extension("");
    for path in [undo, &plain, &undo.with_extension("undo.incomplete")] {
        let _ = fs::remove_file(path);
    }
}

/// The file with the digest that its text really has.
fn repair(file: &[u8]) -> Option<Vec<u8>> {
    let len = Header::announced_len(file, file.len() as u64, MAX_HEADER_BYTES).ok()? as usize;
    let (json, data) = file[8..].split_at(len);
    let header = Header::parse(json, data.len() as u64).ok()?;
    let old = header.metadata("tlkit_undo_sha256")?;
    let new = Digest::of(header.metadata("tlkit_undo")?.as_bytes()).hex();
    let at = file.windows(old.len()).position(|w| w == old.as_bytes())?;
    (old.len() == new.len()).then(|| [&file[..at], new.as_bytes(), &file[at + 64..]].concat())
}
