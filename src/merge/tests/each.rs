//! Many adapters, each into an output of its own: the bytes are those of single merges.
//!
//! Bands of the base are a few tensors long here, and a pass has three outputs.

use super::*;
use std::sync::atomic::AtomicBool;

/// Adapters that touch different tensors, one of them by replacing: more than one pass has.
fn adapters() -> Vec<MergeInput> {
    let new = tensor(Dtype::F32, &[6], 31, 1.0);
    let mut all = vec![
        input(vec![tied_qkv(70)]),
        input(vec![lora("lm_head", 10, 6, ModuleKind::Linear, 8)]),
        extra("model.norm.weight", ExtraRole::Replace, new),
        input(vec![tied_qkv(90)]),
        input(vec![tied_qkv(110)]),
    ];
    all[3].weight = -0.5;
    for (i, input) in all.iter_mut().enumerate() {
        input.label = format!("a{i}.tl");
    }
    all
}

fn names(inputs: &[MergeInput]) -> Vec<String> {
    inputs.iter().map(|i| i.label.replace(".tl", "")).collect()
}

fn each(bench: &Bench, inputs: &[MergeInput], options: &PlanOptions) -> Result<EachReport> {
    let base = Checkpoint::open(&bench.base)?;
    let folder = bench.dir.path().join("each");
    let plan = plan_each(&base, inputs, &names(inputs), options, &folder)?;
    let done = std::sync::atomic::AtomicU64::new(0);
    let count = |n| {
        done.fetch_add(n, Ordering::Relaxed);
    };
    let control = Control::from(Progress::new().counted_by(&count));
    let report = execute_each(&plan, &ExecOptions::default(), &control)?;
    assert_eq!(done.into_inner(), plan.total().bytes_out);
    Ok(report)
}

/// Every file below a folder, or the file itself.
fn content(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([(PathBuf::new(), fs::read(path).unwrap())]);
    }
    let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| (e.file_name().into(), fs::read(e.path()).unwrap()))
        .collect()
}

/// Checks every output and report against a merge of the adapter alone.
fn check_each(bench: &Bench, inputs: &[MergeInput], options: &PlanOptions) -> EachReport {
    let report = each(bench, inputs, options).unwrap();
    assert_eq!(report.outputs.len(), inputs.len());
    for (input, one) in inputs.iter().zip(&report.outputs) {
        let alone = bench.merge_with(std::slice::from_ref(input), options);
        assert_eq!(one.tensors, alone.unwrap().tensors, "{}", input.label);
        assert!(
            content(&one.output) == content(&bench.out()),
            "{}",
            input.label
        );
        match bench.base.is_dir() {
            true => fs::remove_dir_all(bench.out()).unwrap(),
            false => fs::remove_file(bench.out()).unwrap(),
        }
    }
    let made = fs::read_dir(bench.dir.path().join("each")).unwrap().count();
    assert_eq!(made, inputs.len());
    report
}

#[test]
fn outputs_are_those_of_single_merges() {
    // A block that goes to the wrong output, place or row, or a copy that a band's end cuts wrongly.
    let config = Some(r#"{"tie_word_embeddings": false}"#);
    for bench in [
        Bench::file(&decoder()),
        Bench::model(&decoder(), 1, config),
        Bench::model(&decoder(), 3, config),
    ] {
        for rounding in [Rounding::Peft, Rounding::PeftSafe] {
            let options = PlanOptions {
                rounding,
                ..PlanOptions::default()
            };
            let report = check_each(&bench, &adapters(), &options);
            assert_eq!(report.total.passes, 2);
            assert_eq!(report.outputs[3].adapters[0].weight, -0.5);
            fs::remove_dir_all(bench.dir.path().join("each")).unwrap();
        }
    }
}

#[test]
fn blocks_of_a_large_tensor_reach_their_rows() {
    // Three blocks of rows, of which each output has its own copy; the third adapter's factors are
    // more than are held at a time.
    let base = vec![
        (
            "x.w.weight".to_owned(),
            tensor(Dtype::F32, &[20_001, 128], 4, 1.0),
        ),
        ("y.weight".to_owned(), tensor(Dtype::BF16, &[77], 5, 1.0)),
    ];
    let bench = Bench::file(&base);
    let lora = |seed| input(vec![lora("x.w", 20_001, 128, ModuleKind::Linear, seed)]);
    let mut inputs = vec![lora(8), lora(9), lora(10)];
    inputs[1].label = "b.tl".into();
    inputs[2].label = "c.tl".into();
    check_each(&bench, &inputs, &PlanOptions::default());
}

#[test]
fn an_untied_output_projection_is_added_to_those_that_need_it() {
    // Its bytes come from the middle of the shard and go to the end of one output only.
    let tensors = without(decoder(), "lm_head.weight");
    let bench = Bench::model(&tensors, 2, Some(r#"{"tie_word_embeddings": true}"#));
    let head = |seed| input(vec![lora("lm_head", 10, 6, ModuleKind::Linear, seed)]);
    let embedding = lora("model.embed_tokens", 6, 10, ModuleKind::Embedding, 5);
    let mut inputs = vec![head(8), input(vec![tied_qkv(70)]), input(vec![embedding])];
    for (i, input) in inputs.iter_mut().enumerate() {
        input.label = format!("a{i}.tl");
    }
    check_each(&bench, &inputs, &tied(TiedPolicy::Untie));
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let bench = Bench::model(&decoder(), 3, None);
    let refused = |inputs: &[MergeInput]| {
        let before = bench.leftovers();
        let e = each(&bench, inputs, &PlanOptions::default()).unwrap_err();
        assert_eq!(bench.leftovers(), before);
        e
    };
    let mut inputs = adapters();
    inputs[4].label = "a0.tl".into();
    let e = refused(&inputs);
    assert_eq!(e.code(), Code::Usage);
    assert!(
        e.message().contains("`a0`") && e.hint_text().is_some(),
        "{e}"
    );
    inputs[4].label = "../a4.tl".into();
    assert_eq!(refused(&inputs).code(), Code::Usage);
    // The last of two passes: the first one must not have started.
    inputs[4] = input(vec![lora("no.such", 10, 6, ModuleKind::Linear, 8)]);
    inputs[4].label = "a4.tl".into();
    let e = refused(&inputs);
    assert_eq!(e.code(), Code::UnmatchedModule);
    assert!(e.message().starts_with("a4.tl: "), "{e}");
    let taken = bench.dir.path().join("each/a4");
    fs::create_dir_all(&taken).unwrap();
    assert_eq!(refused(&adapters()).code(), Code::OutputExists);
    assert_eq!(
        fs::read_dir(bench.dir.path().join("each")).unwrap().count(),
        1
    );
}

#[test]
fn a_failure_in_one_output_leaves_none_of_its_pass() {
    for bench in [Bench::file(&decoder()), Bench::model(&decoder(), 3, None)] {
        let mut inputs = adapters();
        inputs.truncate(3);
        let mut group = tied_qkv(70);
        group.u = Some(Factor::trained(
            Tensor::from_f32(vec![2, 3], &[[1.0; 3], [1e30; 3]].concat()).unwrap(),
        ));
        group.v = Some(Factor::trained(
            Tensor::from_f32(vec![2, 14], &[[1.0; 14], [f32::MAX; 14]].concat()).unwrap(),
        ));
        inputs[1] = input(vec![group]);
        inputs[1].label = "a1.tl".into();
        let e = each(&bench, &inputs, &PlanOptions::default()).unwrap_err();
        assert_eq!(e.code(), Code::NonFiniteResult);
        assert!(e.message().starts_with("a1.tl: "), "{e}");
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn an_interrupted_pass_goes_on_where_it_stopped() {
    let bench = Bench::model(&decoder(), 3, None);
    let mut inputs = adapters();
    inputs.truncate(3);
    let folder = bench.dir.path().join("each");
    let base = Checkpoint::open(&bench.base).unwrap();
    let options = PlanOptions::default();
    let plan = plan_each(&base, &inputs, &names(&inputs), &options, &folder).unwrap();
    let cancel = AtomicBool::new(false);
    let second = folder.join(".a2.tlkit-merge/new/model-00001-of-00003.safetensors");
    let stop = |_| cancel.store(second.exists(), Ordering::Relaxed);
    let control = Control::from(Progress::new().stopped_by(&cancel).counted_by(&stop));
    let e = execute_each(&plan, &ExecOptions::default(), &control).unwrap_err();
    assert_eq!(e.code(), Code::Interrupted);
    assert!(names(&inputs).iter().all(|n| !folder.join(n).exists()));
    let report = check_each(&bench, &inputs, &options);
    assert!(report.outputs.iter().all(|o| o.total.shards_reused == 1));
}

/// Breaks where a run that was killed between two of its last renames cannot be gone on with, or
/// goes on over an output that is another.
#[test]
fn outputs_that_have_their_name_are_not_made_again() {
    for bench in [Bench::file(&decoder()), Bench::model(&decoder(), 3, None)] {
        let mut inputs = adapters();
        inputs.truncate(3);
        let options = PlanOptions::default();
        let folder = bench.dir.path().join("each");
        let first = check_each(&bench, &inputs, &options);
        let remove = |path: &Path| match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        };
        let paths: Vec<_> = first.outputs.iter().map(|o| o.output.clone()).collect();
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&paths[0]).unwrap());
        let kept = inode();
        remove(&paths[1]);
        remove(&paths[2]);
        let base = Checkpoint::open(&bench.base).unwrap();
        let plan = plan_each(&base, &inputs, &names(&inputs), &options, &folder).unwrap();
        let run = || execute_each(&plan, &ExecOptions::default(), &Control::default());
        let again = run().unwrap();
        assert_eq!(inode(), kept);
        for (a, b) in first.outputs.iter().zip(&again.outputs) {
            assert_eq!((&a.output, &a.tensors), (&b.output, &b.tensors));
        }
        // All there, or one that is another: they exist, as ever.
        assert_eq!(run().unwrap_err().code(), Code::OutputExists);
        remove(&paths[2]);
        let file = match paths[1].is_dir() {
            true => paths[1].join("model-00002-of-00003.safetensors"),
            false => paths[1].clone(),
        };
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(run().unwrap_err().code(), Code::OutputExists);
        assert!(!paths[2].exists());
    }
}
