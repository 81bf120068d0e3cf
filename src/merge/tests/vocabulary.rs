//! Outputs that have other tensors than the base: resized embeddings, trained rows, heads that the
//! base lacks, and an adapter's tokenizer.

use super::*;

const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const DECODER: &str =
    "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"model_type\": \"llama\"\n}\n";
const UNTIED: &str = "{\n  \"tie_word_embeddings\": false,\n  \"vocab_size\": 10\n}\n";

fn embeddings(rows: usize, columns: usize) -> MergeInput {
    let mut one = extra(
        EMBED,
        ExtraRole::Replace,
        tensor(Dtype::F32, &[rows, columns], 41, 1.0),
    );
    let head = tensor(Dtype::BF16, &[rows, columns], 42, 1.0);
    let extras = &mut one.adapter.extras;
    extras.push(Extra::new(HEAD, ExtraRole::Replace, head));
    one
}

fn narrowed(tensor: &Tensor) -> Tensor {
    Tensor::narrowed(
        Dtype::BF16,
        tensor.shape().to_vec(),
        &tensor.to_f32().unwrap(),
    )
    .unwrap()
}

fn trained_rows(name: &str, rows: &[u32], seed: u64) -> MergeInput {
    let values = tensor(Dtype::F32, &[rows.len(), 6], seed, 1.0);
    let mut one = extra(name, ExtraRole::Replace, values);
    one.adapter.extras[0].role = ExtraRole::Rows;
    one.adapter.extras[0].rows = rows.to_vec();
    one.adapter.validate().unwrap();
    one
}

/// What a reader of safetensors of the official crate sees, where every tensor has to begin at a
/// multiple of its element size.
fn check_official(folder: &Path) {
    for shard in Checkpoint::open(folder).unwrap().shards() {
        let bytes = fs::read(shard.path()).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in parsed.tensors() {
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(start % (view.dtype().bitsize() / 8), 0, "{name}");
        }
    }
}

#[test]
fn embeddings_of_another_size_are_written_whole_with_the_config() {
    let base = decoder();
    for (rows, shards) in [(14, 1), (14, 3), (9, 1), (11, 3)] {
        let bench = Bench::model(&base, shards, Some(UNTIED));
        let one = embeddings(rows, 6);
        let changed = [
            (EMBED, narrowed(&one.adapter.extras[0].tensor)),
            (HEAD, one.adapter.extras[1].tensor.clone()),
        ];
        let report = bench.merge(&[one]).unwrap();
        check(&bench.out(), &base, &changed);
        check_official(&bench.out());
        let config = fs::read_to_string(bench.out().join("config.json")).unwrap();
        let size = format!("\"vocab_size\": {rows}");
        assert_eq!(config, UNTIED.replace("\"vocab_size\": 10", &size));
        assert!(
            report.notes.iter().any(|n| n.contains("vocabulary")),
            "{:?}",
            report.notes
        );
        if shards > 1 {
            let index = fs::read(bench.out().join("model.safetensors.index.json")).unwrap();
            let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
            let size: usize = read(&bench.out()).values().map(|t| t.data().len()).sum();
            assert_eq!(index["metadata"]["total_size"], size);
        }
    }
}

/// Breaks where a model gets embeddings that no longer fit one another, or its base is cut short.
#[test]
fn a_half_resized_vocabulary_is_refused() {
    let one = extra(
        EMBED,
        ExtraRole::Replace,
        tensor(Dtype::F32, &[14, 6], 41, 1.0),
    );
    let bench = Bench::model(&decoder(), 1, Some(UNTIED));
    let e = bench.refusal(std::slice::from_ref(&one));
    assert_eq!((e.code(), e.tensor_name()), (Code::BaseShape, Some(HEAD)));
    // Another width is no other vocabulary.
    let e = bench.refusal(&[embeddings(10, 5)]);
    assert_eq!(e.code(), Code::BaseShape);
    // What is no embedding has no other size.
    let norm = extra(
        "model.norm.weight",
        ExtraRole::Replace,
        tensor(Dtype::F32, &[7], 1, 1.0),
    );
    assert_eq!(bench.refusal(&[norm]).code(), Code::BaseShape);
    // One tensor for both: it is enough.
    let tied_base = without(decoder(), HEAD);
    let bench = Bench::model(&tied_base, 1, Some("{\"tie_word_embeddings\": true}"));
    bench
        .merge_with(std::slice::from_ref(&one), &tied(TiedPolicy::Shared))
        .unwrap();
    check(
        &bench.out(),
        &without(tied_base.clone(), EMBED),
        &[(EMBED, narrowed(&one.adapter.extras[0].tensor))],
    );
    // Untied, the new output would keep the old size.
    let e = bench.refusal_with(&[one], &tied(TiedPolicy::Untie));
    assert_eq!(e.code(), Code::BaseShape);
}

/// Breaks where copies of both embeddings do not both get their new rows in a model that had one tensor for both.
#[test]
fn untied_both_embeddings_grow() {
    let base = without(decoder(), HEAD);
    let config = DECODER.replace(
        "\n}",
        ",\n  \"tie_word_embeddings\": true,\n  \"vocab_size\": 10\n}",
    );
    let bench = Bench::model(&base, 1, Some(&config));
    let one = embeddings(14, 6);
    let embed = narrowed(&one.adapter.extras[0].tensor);
    let head = one.adapter.extras[1].tensor.clone();
    let untied = tied(TiedPolicy::Untie);
    bench.merge_with(&[one], &untied).unwrap();
    let got = read(&bench.out());
    assert!(got[EMBED].same_bytes(&embed) && got[HEAD].same_bytes(&head));
    let config = fs::read_to_string(bench.out().join("config.json")).unwrap();
    assert!(
        config.contains("\"vocab_size\": 14") && config.contains("\"tie_word_embeddings\": false")
    );
}

/// Breaks where a bias of the output keeps the old number of entries, or is one that may have any.
#[test]
fn the_bias_of_the_output_grows_with_it() {
    const WORDS: &str = "bert.embeddings.word_embeddings.weight";
    const BIAS: &str = "cls.predictions.bias";
    const NORM: &str = "bert.embeddings.LayerNorm.bias";
    let base = [(WORDS, vec![10, 6]), (BIAS, vec![10]), (NORM, vec![6])];
    let base = base.map(|(name, shape)| (name.to_owned(), tensor(Dtype::BF16, &shape, 3, 1.0)));
    let config = "{\"architectures\": [\"BertForMaskedLM\"], \"model_type\": \"bert\"}";
    let whole = |name: &str, shape: &[usize]| {
        extra(name, ExtraRole::Replace, tensor(Dtype::BF16, shape, 7, 1.0))
    };
    let shared = tied(TiedPolicy::Shared);
    let with = |name: &str, rows: usize| {
        let mut one = whole(WORDS, &[14, 6]);
        one.adapter
            .extras
            .extend(whole(name, &[rows]).adapter.extras);
        one
    };
    let bench = Bench::model(&base, 1, Some(config));
    bench
        .merge_with(&[with("cls.predictions.decoder.bias", 14)], &shared)
        .unwrap();
    let got = read(&bench.out());
    assert_eq!(
        (got[WORDS].shape(), got[BIAS].shape()),
        (&[14, 6][..], &[14][..])
    );
    assert!(got[BIAS].same_bytes(&tensor(Dtype::BF16, &[14], 7, 1.0)));
    for one in [whole(WORDS, &[14, 6]), with(BIAS, 15), with(NORM, 14)] {
        let e = bench.refusal_with(&[one], &shared);
        assert_eq!(e.code(), Code::BaseShape, "{e:?}");
    }
}

/// Breaks where a grown BART does not load, since what is added to its output has the old length.
#[test]
fn the_buffer_of_the_output_is_filled_up_with_zeros() {
    const SHARED: &str = "model.shared.weight";
    const BUFFER: &str = "final_logits_bias";
    let old = tensor(Dtype::F32, &[1, 10], 4, 1.0);
    let base = [
        (BUFFER.to_owned(), old.clone()),
        (SHARED.to_owned(), tensor(Dtype::F32, &[10, 6], 3, 1.0)),
    ];
    let config =
        "{\"architectures\": [\"BartForConditionalGeneration\"], \"model_type\": \"bart\"}";
    for rows in [8, 14] {
        let bench = Bench::model(&base, 1, Some(config));
        let table = tensor(Dtype::F32, &[rows, 6], 7, 1.0);
        let one = extra(SHARED, ExtraRole::Replace, table.clone());
        bench.merge_with(&[one], &tied(TiedPolicy::Shared)).unwrap();
        let got = read(&bench.out());
        let mut want = old.to_f32().unwrap();
        want.resize(rows, 0.0);
        assert_eq!(got[BUFFER].shape(), [1, rows]);
        assert_eq!(got[BUFFER].to_f32().unwrap(), want);
        assert!(got[SHARED].same_bytes(&table));
    }
}

#[test]
fn updates_go_onto_a_resized_embedding() {
    let mut one = embeddings(14, 6);
    one.adapter.extras[0].role = ExtraRole::BaseLayer;
    let group = lora("model.embed_tokens", 6, 14, ModuleKind::Embedding, 15);
    one.adapter.groups.push(group.clone());
    let bench = Bench::model(&decoder(), 1, Some(UNTIED));
    let grown = narrowed(&one.adapter.extras[0].tensor);
    let head = one.adapter.extras[1].tensor.clone();
    bench.merge(&[one]).unwrap();
    let want = oracle(&grown, &[(&group, 0, 0, 1.0)], true);
    check(&bench.out(), &decoder(), &[(EMBED, want), (HEAD, head)]);
}

#[test]
fn trained_rows_replace_theirs_and_no_other() {
    let base = decoder();
    let bench = Bench::file(&base);
    let one = trained_rows(EMBED, &[0, 3, 9], 51);
    let row = |t: &Tensor, at: usize| t.to_f32().unwrap()[at * 6..at * 6 + 6].to_vec();
    let mut values = find(&base, EMBED).to_f32().unwrap();
    for (from, to) in [0, 3, 9].into_iter().enumerate() {
        let new = row(&one.adapter.extras[0].tensor, from);
        values[to * 6..to * 6 + 6].copy_from_slice(&new);
    }
    let want = Tensor::narrowed(Dtype::BF16, vec![10, 6], &values).unwrap();
    let report = bench.merge(std::slice::from_ref(&one)).unwrap();
    check(&bench.out(), &base, &[(EMBED, want)]);
    assert!(report.total.changed <= 18);
    // A row of two adapters, with unlike values; and a row that the base does not have.
    let same = trained_rows(EMBED, &[1, 3], 52);
    let e = bench.refusal(&[one.clone(), same]);
    assert_eq!(e.code(), Code::AdaptersConflict);
    let e = bench.refusal(&[trained_rows(EMBED, &[10], 53)]);
    assert_eq!(e.code(), Code::BaseShape);
    // Equal values, and other rows, go together.
    fs::remove_file(bench.out()).unwrap();
    bench
        .merge(&[one.clone(), one, trained_rows(EMBED, &[1], 54)])
        .unwrap();
}

#[test]
fn trained_rows_are_undone_in_place() {
    let base = decoder();
    let bench = Bench::file(&base);
    let before = fs::read(&bench.base).unwrap();
    let undo = bench.dir.path().join("undo");
    {
        let checkpoint = Checkpoint::open(&bench.base).unwrap();
        let inputs = [trained_rows(EMBED, &[2], 55)];
        let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
        merge_in_place(
            &plan,
            &undo,
            &InPlaceOptions::default(),
            &Control::default(),
        )
        .unwrap();
    }
    assert_ne!(fs::read(&bench.base).unwrap(), before);
    unmerge(&bench.base, &undo, &Control::default()).unwrap();
    assert_eq!(fs::read(&bench.base).unwrap(), before);
    // Another layout has no place in the base's files.
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let inputs = [embeddings(14, 6)];
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let e = merge_in_place(
        &plan,
        &undo,
        &InPlaceOptions::default(),
        &Control::default(),
    );
    assert_eq!(e.unwrap_err().code(), Code::Usage);
    assert_eq!(fs::read(&bench.base).unwrap(), before);
}

#[test]
fn a_classifier_brings_the_head_that_its_base_lacks() {
    for shards in [1, 3] {
        let base = decoder();
        let bench = Bench::model(&base, shards, Some(DECODER));
        let mut one = extra(
            "score.weight",
            ExtraRole::Replace,
            tensor(Dtype::F32, &[3, 6], 61, 1.0),
        );
        one.adapter.task = Some("SEQ_CLS".into());
        one.adapter.groups.push(lora(
            "model.layers.0.self_attn.q_proj",
            6,
            6,
            ModuleKind::Linear,
            7,
        ));
        let head = narrowed(&one.adapter.extras[0].tensor);
        let q = "model.layers.0.self_attn.q_proj.weight";
        let want = oracle(
            find(&base, q),
            &[(&one.adapter.groups[0], 0, 0, 1.0)],
            false,
        );
        let report = bench.merge(std::slice::from_ref(&one)).unwrap();
        check(&bench.out(), &base, &[("score.weight", head), (q, want)]);
        check_official(&bench.out());
        assert!(report.notes.iter().any(|n| n.contains("score.weight")));
        // The config is that of a class that loads it.
        let config = fs::read(bench.out().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
        assert_eq!(config["id2label"]["2"], "LABEL_2");
        assert_eq!(config["label2id"]["LABEL_1"], 1);
        let again = Checkpoint::open(bench.out()).unwrap();
        let base = Checkpoint::open(&bench.base).unwrap();
        let control = Control::default();
        let inputs = [one];
        let report =
            crate::verify::verify_merged(&base, &inputs, &again, &PlanOptions::default(), &control);
        assert!(report.unwrap().is_equal(0));
    }
    // A head goes after whatever comes last, and is not taken for it.
    let last = vec![(
        "model.embed_tokens.weight".to_owned(),
        tensor(Dtype::F32, &[10, 6], 1, 1.0),
    )];
    let bench = Bench::file(&last);
    let mut one = extra(
        "score.weight",
        ExtraRole::Replace,
        tensor(Dtype::F32, &[3, 6], 61, 1.0),
    );
    one.adapter.task = Some("SEQ_CLS".into());
    bench.merge(&[one]).unwrap();
    // What is no classifier's is a mistake.
    let stray = extra(
        "stray.weight",
        ExtraRole::Replace,
        tensor(Dtype::F32, &[3, 6], 61, 1.0),
    );
    let bench = Bench::file(&decoder());
    assert_eq!(bench.refusal(&[stray]).code(), Code::UnmatchedModule);
}

#[test]
fn a_tokenizer_comes_from_where_it_is_asked_for() {
    let bench = Bench::model(&decoder(), 1, Some(UNTIED));
    fs::write(bench.base.join("tokenizer.json"), "old").unwrap();
    fs::write(bench.base.join("merges.txt"), "kept").unwrap();
    let folder = bench.dir.path().join("adapter");
    fs::create_dir(&folder).unwrap();
    let mut one = embeddings(14, 6);
    one.folder = Some(folder.clone());
    let from_adapter = PlanOptions {
        tokenizer: TokenizerFrom::Adapter,
        ..PlanOptions::default()
    };
    let e = bench.refusal_with(std::slice::from_ref(&one), &from_adapter);
    assert_eq!(e.code(), Code::Usage);
    fs::write(folder.join("tokenizer.json"), "new").unwrap();
    fs::write(folder.join("added_tokens.json"), "{}").unwrap();
    fs::write(folder.join("optimizer.pt"), "x").unwrap();
    let report = bench.merge(std::slice::from_ref(&one)).unwrap();
    assert!(
        report.notes.iter().any(|n| n.contains("was not taken")),
        "{:?}",
        report.notes
    );
    fs::remove_dir_all(bench.out()).unwrap();
    bench
        .merge_with(std::slice::from_ref(&one), &from_adapter)
        .unwrap();
    let file = |name: &str| fs::read_to_string(bench.out().join(name)).ok();
    assert_eq!(file("tokenizer.json").as_deref(), Some("new"));
    assert_eq!(file("added_tokens.json").as_deref(), Some("{}"));
    assert_eq!(file("merges.txt").as_deref(), Some("kept"));
    assert_eq!(file("optimizer.pt"), None);
    let (base, merged) = (
        Checkpoint::open(&bench.base).unwrap(),
        Checkpoint::open(bench.out()).unwrap(),
    );
    let inputs = [one];
    for (options, equal) in [(from_adapter, true), (PlanOptions::default(), false)] {
        let control = Control::default();
        let report =
            crate::verify::verify_merged(&base, &inputs, &merged, &options, &control).unwrap();
        assert_eq!(report.is_equal(0), equal);
    }
}
