//! What was written once is read for ever, and written the same way again.

use std::collections::BTreeSet;
use std::fs;

use tlkit::digest::Digest;
use tlkit::format::{DirBlobs, Packing, Stored, TlFile, WriteOptions, encode, write_tl};

use super::{fixture, list, root};

/// How many lines of `SHA256SUMS` are frozen, and the SHA-256 of those lines. New files are added
/// below them; a release moves the mark.
const FROZEN: (usize, &str) = (
    11,
    "a3d1387f050d3ada23fc026692410b430f3f705fe37d16836e42f80a0ddde215",
);

fn open(name: &str) -> TlFile {
    TlFile::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

fn blobs() -> DirBlobs {
    DirBlobs(fixture("blobs"))
}

/// Names of the golden `.tl` files.
pub(super) fn names() -> Vec<String> {
    let names = list("SHA256SUMS")
        .into_iter()
        .map(|mut line| line.remove(1));
    names.filter(|n| n.ends_with(".tl")).collect()
}

#[test]
fn golden_files_are_only_added() {
    // A changed golden file would hide that a new version writes other bytes than a released one.
    let sums = list("SHA256SUMS");
    let mut listed = BTreeSet::new();
    for line in &sums {
        let [sum, name] = &line[..] else {
            panic!("{line:?}")
        };
        let bytes = fs::read(fixture(name)).unwrap_or_else(|e| panic!("{name} is listed: {e}"));
        assert_eq!(Digest::of(&bytes).hex(), *sum, "{name} was changed");
        assert!(bytes.len() < 8 << 10, "{name} is not small");
        assert!(listed.insert(name.clone()), "{name} is listed twice");
    }
    let text = fs::read_to_string(fixture("SHA256SUMS")).unwrap();
    let (lines, sum) = FROZEN;
    let frozen: String = text.split_inclusive('\n').take(lines).collect();
    assert_eq!(
        Digest::of(frozen.as_bytes()).hex(),
        sum,
        "frozen lines were changed"
    );
    for entry in fs::read_dir(root().join("fixtures/v1")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            !name.ends_with(".tl") || listed.contains(&name),
            "{name} is not listed in SHA256SUMS"
        );
    }
}

#[test]
fn golden_files_open_with_their_roots_and_load() {
    let roots = list("ROOTS");
    assert_eq!(roots.len(), names().len());
    for line in &roots {
        let (root, name) = (&line[0], &line[1]);
        let file = open(name);
        assert_eq!(file.root().to_string(), *root, "{name}");
        let adapter = file
            .load(&blobs())
            .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        // Identity does not depend on packing, so the loaded adapter has the file's manifest.
        assert_eq!(
            encode(&adapter).unwrap().manifest,
            *file.manifest(),
            "{name}"
        );
    }
}

#[test]
fn canonical_files_are_written_again_byte_for_byte() {
    // Fails where the writer changes key order, padding, tensor order or alpha's spelling.
    let dir = tempfile::tempdir().unwrap();
    for name in names() {
        let file = open(&name);
        let storage = file.storage();
        let has = |stored| storage.values().any(|s| *s == stored);
        // zstd's bytes are not normative: another release of it may write other ones.
        if has(Stored::Packed) {
            continue;
        }
        let external = storage
            .iter()
            .filter(|(_, s)| **s == Stored::External)
            .map(|(n, _)| file.manifest().tensors()[*n].sha256)
            .collect::<BTreeSet<_>>();
        let packing = match () {
            () if !external.is_empty() => Packing::External(external),
            () if has(Stored::Seeded) => Packing::Thin,
            () => Packing::Fat,
        };
        let mut options = WriteOptions::default();
        options.packing = packing;
        let again = dir.path().join(&name);
        write_tl(&again, &file.load(&blobs()).unwrap(), &options).unwrap();
        let (old, new) = (fs::read(fixture(&name)).unwrap(), fs::read(again).unwrap());
        assert!(old == new, "{name} would be written with other bytes today");
    }
}

#[test]
fn every_packing_of_an_adapter_has_its_root() {
    let root = open("tl6-qkv.tl").root();
    assert_eq!(open("tl6-qkv.thin.tl").root(), root);
    assert_eq!(open("tl6-qkv.zstd.tl").root(), root);
    assert_eq!(
        open("vera-shared.external.tl").root(),
        open("vera-shared.tl").root()
    );
}

#[test]
fn updates_have_the_recorded_bytes() {
    // DELTAS is the test vector of the arithmetic (spec §12): it may never change.
    let deltas = list("DELTAS");
    assert!(deltas.len() > 20);
    for line in &deltas {
        let (sum, name, path) = (&line[0], &line[1], &line[2]);
        let adapter = open(name).load(&blobs()).unwrap();
        let module = adapter
            .modules()
            .into_iter()
            .find(|m| m.label() == *path)
            .unwrap();
        let factors = adapter.groups[module.group].low_rank(module.layer, module.target);
        let delta = factors.unwrap().delta();
        let bytes: Vec<u8> = delta.iter().flat_map(|d| d.to_le_bytes()).collect();
        assert_eq!(Digest::of(&bytes).hex(), *sum, "ΔW of {path} in {name}");
    }
}

#[test]
fn any_safetensors_reader_opens_them() {
    for name in names() {
        let bytes = fs::read(fixture(&name)).unwrap();
        assert!(
            bytes[8..].starts_with(br#"{"__metadata__":{"tl":"1","tl.manifest":""#),
            "{name}"
        );
        safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
