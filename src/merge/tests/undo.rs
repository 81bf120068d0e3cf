//! Merging in place, and back.

use super::*;

fn undo_path(bench: &Bench) -> PathBuf {
    bench.dir.path().join("base.undo")
}

fn in_place(bench: &Bench, inputs: &[MergeInput]) -> Result<MergeReport> {
    let base = Checkpoint::open(&bench.base)?;
    let plan = plan(&base, inputs, &PlanOptions::default())?;
    merge_in_place(
        &plan,
        &undo_path(bench),
        &InPlaceOptions::default(),
        &Control::default(),
    )
}

fn back(bench: &Bench) -> Result<UnmergeReport> {
    unmerge(&bench.base, &undo_path(bench), &Control::default())
}

fn bytes(path: &Path) -> Vec<Vec<u8>> {
    if path.is_file() {
        return vec![fs::read(path).unwrap()];
    }
    let mut names: Vec<PathBuf> = fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    names.iter().map(|n| fs::read(n).unwrap()).collect()
}

fn benches() -> [Bench; 3] {
    let base = decoder();
    [
        Bench::file(&base),
        Bench::model(&base, 1, None),
        Bench::model(&base, 3, None),
    ]
}

#[test]
fn in_place_gives_the_bytes_of_a_normal_merge_and_unmerge_those_of_the_base() {
    for bench in benches() {
        let inputs = [input(vec![tied_qkv(70)])];
        let before = bytes(&bench.base);
        bench.merge(&inputs).unwrap();
        let report = in_place(&bench, &inputs).unwrap();
        assert!(bytes(&bench.base) == bytes(&bench.out()));
        assert_eq!(report.total.tensors, 6);
        assert!(undo_path(&bench).exists());
        let undone = back(&bench).unwrap();
        assert!(bytes(&bench.base) == before);
        assert_eq!((undone.restored, undone.was_interrupted), (6, false));
        // Once more does no harm.
        assert_eq!(back(&bench).unwrap().already_original, 6);
        assert_eq!(bench.leftovers().len(), 2);
    }
}

#[test]
fn an_interrupted_merge_or_unmerge_is_recovered_whatever_was_written() {
    for bench in benches() {
        let before = bytes(&bench.base);
        in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
        let open = bench.dir.path().join("base.undo.incomplete");
        let finished = fs::read(undo_path(&bench)).unwrap();
        // Killed in the middle of writing: a range is neither merged nor original.
        for name in [undo_path(&bench), open.clone()] {
            let _ = fs::remove_file(undo_path(&bench));
            fs::write(&open, &finished).unwrap();
            scribble(&bench, "model.layers.0.self_attn.k_proj.weight");
            let e = in_place(&bench, &[input(vec![tied_qkv(71)])]).unwrap_err();
            assert_eq!(e.code(), Code::OutputExists);
            let report = unmerge(&bench.base, &name, &Control::default()).unwrap();
            assert!(report.was_interrupted);
            assert!(bytes(&bench.base) == before);
            assert!(!open.exists());
        }
    }
}

/// Overwrites half of a tensor in the base.
fn scribble(bench: &Bench, name: &str) {
    let base = Checkpoint::open(&bench.base).unwrap();
    let (file, info) = base.at(base.locate(name).unwrap());
    let range = file.file_range(info);
    let mut all = fs::read(file.path()).unwrap();
    all[range.start as usize..(range.start + range.end) as usize / 2].fill(0x55);
    fs::write(file.path(), all).unwrap();
}

#[test]
fn a_base_that_was_changed_since_is_not_touched() {
    for bench in benches() {
        in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
        scribble(&bench, "model.layers.1.self_attn.v_proj.weight");
        let changed = bytes(&bench.base);
        assert_eq!(back(&bench).unwrap_err().code(), Code::UndoMismatch);
        assert!(bytes(&bench.base) == changed);
    }
    // Another base altogether.
    let [bench, ..] = benches();
    in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
    let other = Bench::file(&without(decoder(), "lm_head.weight"));
    let e = unmerge(&other.base, &undo_path(&bench), &Control::default()).unwrap_err();
    assert_eq!(e.code(), Code::UndoMismatch);
    let e = unmerge(&bench.base, &bench.base, &Control::default()).unwrap_err();
    assert_eq!(e.code(), Code::UndoMismatch);
}

#[test]
fn merges_in_sequence_are_undone_in_reverse() {
    let [bench, ..] = benches();
    let before = bytes(&bench.base);
    in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
    let first = bench.dir.path().join("first.undo");
    fs::rename(undo_path(&bench), &first).unwrap();
    in_place(&bench, &[input(vec![tied_qkv(90)])]).unwrap();
    let wrong = unmerge(&bench.base, &first, &Control::default()).unwrap_err();
    assert_eq!(wrong.code(), Code::UndoMismatch);
    back(&bench).unwrap();
    unmerge(&bench.base, &first, &Control::default()).unwrap();
    assert!(bytes(&bench.base) == before);
}

#[test]
fn a_damaged_undo_file_is_noticed_before_anything_is_written() {
    let [bench, ..] = benches();
    in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
    let merged = bytes(&bench.base);
    let good = fs::read(undo_path(&bench)).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(undo_path(&bench), bad).unwrap();
    assert_eq!(back(&bench).unwrap_err().code(), Code::DigestMismatch);
    for (from, to) in [
        ("\"file\":0", "\"file\":7"),
        ("\"version\":2", "\"version\":9"),
    ] {
        let edit = |text: &str| text.replacen(from, to, 1);
        fs::write(undo_path(&bench), edited(&good, edit, Sealed::AsItWas)).unwrap();
        assert_eq!(back(&bench).unwrap_err().code(), Code::DigestMismatch);
        // One that knows of the digest is still no undo file of this base.
        fs::write(undo_path(&bench), edited(&good, edit, Sealed::Anew)).unwrap();
        assert_eq!(
            back(&bench).unwrap_err().code(),
            Code::UndoMismatch,
            "{from}"
        );
    }
    assert!(bytes(&bench.base) == merged);
}

/// What an edited undo file gives as its digest.
#[derive(Clone, Copy, PartialEq)]
enum Sealed {
    AsItWas,
    Anew,
    Never,
}

/// An undo file that says something else of the same bytes.
fn edited(undo: &[u8], edit: impl Fn(&str) -> String, sealed: Sealed) -> Vec<u8> {
    use crate::merge::undo::{DIGEST_KEY, METADATA_KEY};
    use crate::safetensors::{Header, encode_header};
    let len = u64::from_le_bytes(undo[..8].try_into().unwrap()) as usize;
    let (json, data) = undo[8..].split_at(len);
    let header = Header::parse(json, data.len() as u64).unwrap();
    let text = edit(header.metadata(METADATA_KEY).unwrap());
    let digest = match sealed {
        Sealed::Anew => Digest::of(text.as_bytes()).hex(),
        _ => header.metadata(DIGEST_KEY).unwrap_or_default().to_owned(),
    };
    let mut metadata = vec![(METADATA_KEY, text.as_str())];
    if sealed != Sealed::Never {
        metadata.push((DIGEST_KEY, &digest));
    }
    let tensors = header
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.byte_len()));
    let mut out = encode_header(&metadata, tensors, 8);
    out.extend_from_slice(data);
    out
}

/// Breaks where an undo file that no longer names every merged range is applied, and what came out
/// is called restored.
#[test]
fn a_range_that_was_edited_out_is_missed() {
    let without_last = |text: &str| {
        let mut undo: serde_json::Value = serde_json::from_str(text).unwrap();
        undo["ranges"].as_array_mut().unwrap().pop();
        undo.to_string()
    };
    let moved = |text: &str| {
        let mut undo: serde_json::Value = serde_json::from_str(text).unwrap();
        for end in ["start", "end"] {
            let at = &mut undo["ranges"][0][end];
            *at = (at.as_u64().unwrap() + 4).into();
        }
        undo.to_string()
    };
    let old = |text: &str| text.replacen("\"version\":2", "\"version\":1", 1);
    for bench in benches() {
        let before = bytes(&bench.base);
        in_place(&bench, &[input(vec![tied_qkv(70)])]).unwrap();
        let merged = bytes(&bench.base);
        let good = fs::read(undo_path(&bench)).unwrap();
        let refuse = |bytes_of_undo: Vec<u8>, code| {
            fs::write(undo_path(&bench), bytes_of_undo).unwrap();
            assert_eq!(back(&bench).unwrap_err().code(), code);
            assert!(bytes(&bench.base) == merged);
        };
        refuse(
            edited(&good, without_last, Sealed::AsItWas),
            Code::DigestMismatch,
        );
        refuse(
            edited(&good, without_last, Sealed::Never),
            Code::UndoMismatch,
        );
        // Known by its digest, and still one stored tensor is not restored.
        refuse(
            edited(&good, without_last, Sealed::Anew),
            Code::UndoMismatch,
        );
        refuse(edited(&good, moved, Sealed::Anew), Code::UndoMismatch);
        // A file of version 1 had no digest: it is applied when asked for, and nothing is claimed.
        let undigested = edited(&good, old, Sealed::Never);
        refuse(undigested.clone(), Code::UndoMismatch);
        refuse(edited(&good, old, Sealed::Anew), Code::UndoMismatch);
        fs::write(undo_path(&bench), undigested).unwrap();
        let options = UnmergeOptions { undigested: true };
        let control = Control::default();
        let report = unmerge_with(&bench.base, &undo_path(&bench), options, &control).unwrap();
        assert!(!report.proved && bytes(&bench.base) == before);
        fs::write(undo_path(&bench), &good).unwrap();
        assert!(back(&bench).unwrap().proved);
    }
}

fn put_back(bench: &Bench, content: &[Vec<u8>]) {
    if bench.base.is_file() {
        return fs::write(&bench.base, &content[0]).unwrap();
    }
    let mut names: Vec<PathBuf> = fs::read_dir(&bench.base)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    for (name, content) in names.iter().zip(content) {
        fs::write(name, content).unwrap();
    }
}

/// Breaks where any flipped bit, or any byte that came in or went, makes an undo file do something
/// else than restore the base or leave it as it is: after a merge, in the middle of one, and after
/// it was undone.
#[test]
fn a_damaged_undo_file_restores_all_or_nothing() {
    use proptest::prelude::*;
    let bench = &benches()[2];
    let before = bytes(&bench.base);
    in_place(bench, &[input(vec![tied_qkv(70)])]).unwrap();
    let merged = bytes(&bench.base);
    let good = fs::read(undo_path(bench)).unwrap();
    scribble(bench, "model.layers.0.self_attn.k_proj.weight");
    let torn = bytes(&bench.base);
    let open = bench.dir.path().join("base.undo.incomplete");
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    // Most of the file is bytes of tensors: the header is met as often.
    let place = prop_oneof![0..header, 0..good.len()];
    let how = (place, 0u32..8, 0usize..3, any::<u8>());
    let config = ProptestConfig::with_cases(400);
    proptest!(config, |((at, bit, kind, byte) in how, state in 0usize..3)| {
        let mut bad = good.clone();
        match kind {
            0 => bad[at] ^= 1 << bit,
            1 => bad.insert(at, byte),
            _ => drop(bad.remove(at)),
        }
        let (now, name) = match state {
            0 => (&merged, undo_path(bench)),
            1 => (&torn, open.clone()),
            _ => (&before, undo_path(bench)),
        };
        for path in [undo_path(bench), open.clone()] {
            let _ = fs::remove_file(path);
        }
        put_back(bench, now);
        fs::write(&name, &bad).unwrap();
        let done = unmerge(&bench.base, &undo_path(bench), &Control::default());
        let after = bytes(&bench.base);
        match done {
            Ok(_) => prop_assert!(after == before),
            Err(_) => prop_assert!(&after == now),
        }
    });
}

#[test]
fn what_cannot_be_done_in_place_leaves_the_base_alone() {
    let [bench, ..] = benches();
    let before = bytes(&bench.base);
    let mut nan = tied_qkv(70);
    nan.a = Factor::trained(Tensor::from_f32(vec![3, 6], &[f32::NAN; 18]).unwrap());
    assert_eq!(
        in_place(&bench, &[input(vec![nan])]).unwrap_err().code(),
        Code::NonFiniteResult
    );
    let mut zero = input(vec![tied_qkv(70)]);
    zero.weight = 0.0;
    assert_eq!(
        in_place(&bench, &[zero]).unwrap_err().code(),
        Code::NothingChanged
    );
    // A link into a download cache: others use the same bytes.
    let link = bench.dir.path().join("link.safetensors");
    fs::hard_link(&bench.base, &link).unwrap();
    assert_eq!(
        in_place(&bench, &[input(vec![tied_qkv(70)])])
            .unwrap_err()
            .code(),
        Code::Usage
    );
    fs::remove_file(&link).unwrap();
    let lock = fs::File::open(&bench.base).unwrap();
    lock.try_lock().unwrap();
    assert_eq!(
        in_place(&bench, &[input(vec![tied_qkv(70)])])
            .unwrap_err()
            .code(),
        Code::Busy
    );
    drop(lock);
    fs::write(undo_path(&bench), b"mine").unwrap();
    assert_eq!(
        in_place(&bench, &[input(vec![tied_qkv(70)])])
            .unwrap_err()
            .code(),
        Code::OutputExists
    );
    fs::remove_file(undo_path(&bench)).unwrap();
    assert!(bytes(&bench.base) == before);
    assert_eq!(bench.leftovers(), Vec::<String>::new());

    let base = without(decoder(), "lm_head.weight");
    let bench = Bench::file(&base);
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let inputs = [input(vec![lora("lm_head", 10, 6, ModuleKind::Linear, 5)])];
    let plan = plan(&checkpoint, &inputs, &tied(TiedPolicy::Untie)).unwrap();
    let e = merge_in_place(
        &plan,
        &undo_path(&bench),
        &InPlaceOptions::default(),
        &Control::default(),
    )
    .unwrap_err();
    assert_eq!(e.code(), Code::Usage);
}

#[test]
fn a_failure_while_writing_restores_the_base() {
    // The base changes under the second pass: what it computes is not what the first one did.
    let [bench, ..] = benches();
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let inputs = [input(vec![tied_qkv(70)])];
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let before = bytes(&bench.base);
    let name = "model.layers.1.self_attn.q_proj.weight";
    let disturb = |_| {
        // As soon as the undo file is complete, the second pass has begun.
        if bench.dir.path().join("base.undo.incomplete").exists() {
            scribble_at(&checkpoint, name);
        }
    };
    let control = Control::from(Progress::new().counted_by(&disturb));
    let e = merge_in_place(
        &plan,
        &undo_path(&bench),
        &InPlaceOptions::default(),
        &control,
    )
    .unwrap_err();
    assert!(e.to_string().contains("changed while it was merged"), "{e}");
    assert!(bytes(&bench.base) == before);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
}

/// As [`scribble`], through the file that is open.
fn scribble_at(base: &Checkpoint, name: &str) {
    use std::os::unix::fs::FileExt;
    let (file, info) = base.at(base.locate(name).unwrap());
    let to = fs::OpenOptions::new()
        .write(true)
        .open(file.path())
        .unwrap();
    to.write_all_at(&[0x55; 9], file.file_range(info).start + 2)
        .unwrap();
}
