//! How adapters are matched to the base, and what is refused before anything is written.

use super::*;

fn one(name: &str, out: usize, n: usize) -> Vec<(String, Tensor)> {
    vec![
        (name.to_owned(), tensor(Dtype::F32, &[out, n], 1, 1.0)),
        ("other.weight".to_owned(), tensor(Dtype::F32, &[2], 1, 1.0)),
    ]
}

fn module(path: &str) -> MergeInput {
    input(vec![lora(path, 4, 3, ModuleKind::Linear, 5)])
}

#[test]
fn leading_segments_may_differ_if_they_do_so_for_all() {
    // Hub GPT-2 files lack `transformer.`, vision-language models add `language_model.`.
    for (stored, adapted) in [
        ("h.0.attn.q.weight", "transformer.h.0.attn.q"),
        ("model.layers.0.q.weight", "layers.0.q"),
        ("model.language_model.layers.0.q.weight", "model.layers.0.q"),
        ("language_model.model.layers.0.q.weight", "model.layers.0.q"),
        (
            "model.layers.0.q.weight",
            "base_model.model.model.layers.0.q",
        ),
    ] {
        let base = one(stored, 4, 3);
        let bench = Bench::file(&base);
        let group = lora(adapted, 4, 3, ModuleKind::Linear, 5);
        bench.merge(&[input(vec![group.clone()])]).unwrap();
        let want = oracle(&base[0].1, &[(&group, 0, 0, 1.0)], false);
        check(&bench.out(), &base, &[(stored, want)]);
    }
}

#[test]
fn prefixes_are_never_exchanged_and_layers_never_confused() {
    // A vision tower has modules of the same name; layer 1 is not layer 0.
    for (stored, adapted) in [
        ("text_model.layers.0.q.weight", "vision_model.layers.0.q"),
        ("model.layers.1.q.weight", "layers.0.q"),
        ("layers.1.0.q.weight", "layers.0.q"),
    ] {
        let e = Bench::file(&one(stored, 4, 3)).refusal(&[module(adapted)]);
        assert_eq!(e.code(), Code::UnmatchedModule, "{stored}");
    }
}

#[test]
fn unmatched_modules_are_counted_and_the_nearest_names_told() {
    let bench = Bench::file(&one("model.layers.0.q_proj.weight", 4, 3));
    let e = bench.refusal(&[module("model.layers.0.qproj")]);
    assert_eq!(e.code(), Code::UnmatchedModule);
    assert_eq!(e.tensor_name(), Some("model.layers.0.qproj.weight"));
    assert!(
        e.hint_text()
            .unwrap()
            .contains("`model.layers.0.q_proj.weight`")
    );
    let groups = (0..5)
        .map(|i| lora(&format!("x.{i}.y"), 4, 3, ModuleKind::Linear, i))
        .collect();
    let e = bench.refusal(&[input(groups)]);
    assert!(e.to_string().contains("lacks 5 of the tensors"), "{e}");
    let e = bench.refusal(&[module("model.layers.0.q_proj"), module("gone")]);
    assert!(e.to_string().contains("a.tl"), "{e}");
    let e = bench.refusal(&[extra(
        "gone.weight",
        ExtraRole::Replace,
        tensor(Dtype::F32, &[2], 1, 1.0),
    )]);
    assert_eq!(e.code(), Code::UnmatchedModule);
}

#[test]
fn two_ways_to_fit_are_refused_until_a_rename_decides() {
    let mut base = one("a.layers.0.q.weight", 4, 3);
    base.push((
        "b.layers.0.q.weight".into(),
        tensor(Dtype::F32, &[4, 3], 2, 1.0),
    ));
    let bench = Bench::file(&base);
    let group = lora("layers.0.q", 4, 3, ModuleKind::Linear, 5);
    let inputs = [input(vec![group.clone()])];
    assert_eq!(bench.refusal(&inputs).code(), Code::AmbiguousModule);
    let options = PlanOptions {
        renames: vec![("layers".into(), "b.layers".into())],
        ..PlanOptions::default()
    };
    bench.merge_with(&inputs, &options).unwrap();
    let name = "b.layers.0.q.weight";
    check(
        &bench.out(),
        &base,
        &[(
            name,
            oracle(find(&base, name), &[(&group, 0, 0, 1.0)], false),
        )],
    );
    // A rename that leads two modules to one tensor, and one that leads nowhere.
    let both = input(vec![
        group,
        lora("c.layers.0.q", 4, 3, ModuleKind::Linear, 6),
    ]);
    for (from, to, code) in [
        ("c", "b", Code::AmbiguousModule),
        ("", "x", Code::UnmatchedModule),
    ] {
        let renames = vec![
            (from.into(), to.into()),
            ("layers".into(), "b.layers".into()),
        ];
        let options = PlanOptions {
            renames,
            ..PlanOptions::default()
        };
        assert_eq!(
            bench
                .refusal_with(std::slice::from_ref(&both), &options)
                .code(),
            code
        );
    }
}

#[test]
fn shapes_and_dtypes_that_do_not_fit_are_named() {
    let bench = Bench::file(&one("x.q.weight", 5, 3));
    let e = bench.refusal(&[module("x.q")]);
    assert_eq!(e.code(), Code::BaseShape);
    assert!(
        e.to_string().contains("needs [4, 3], the base has [5, 3]"),
        "{e}"
    );
    assert!(e.hint_text().unwrap().contains("vocabulary"));
    let e = bench.refusal(&[extra(
        "other.weight",
        ExtraRole::Replace,
        tensor(Dtype::F32, &[3], 1, 1.0),
    )]);
    assert_eq!(e.code(), Code::BaseShape);
    let bytes = Tensor::new(Dtype::U8, vec![4, 3], vec![0; 12]).unwrap();
    let e = Bench::file(&[("x.q.weight".into(), bytes.clone())]).refusal(&[module("x.q")]);
    assert_eq!(e.code(), Code::BaseDtype);
    let e = Bench::file(&[("x.q.qweight".into(), bytes)]).refusal(&[module("x.q")]);
    assert_eq!(e.code(), Code::BaseDtype);
    assert!(e.to_string().contains("x.q.qweight"));
}

#[test]
fn the_base_decides_the_layout_of_a_lenient_adapter_only() {
    let conv = [
        ("h.0.attn.c_attn", 9, 3),
        ("h.0.attn.c_proj", 3, 3),
        ("h.0.mlp.c_proj", 3, 12),
    ];
    let shape = |out, n| [n, out];
    let base: Vec<(String, Tensor)> = conv
        .iter()
        .map(|(m, out, n)| {
            (
                format!("{m}.weight"),
                tensor(Dtype::F32, &shape(*out, *n), 7, 1.0),
            )
        })
        .collect();
    let bench = Bench::file(&base);
    for m in 0..conv.len() {
        let (name, out, n) = conv[m];
        let mut one = input(vec![lora(name, out, n, ModuleKind::Linear, 5)]);
        if out != n {
            assert_eq!(bench.refusal(&[one.clone()]).code(), Code::BaseShape);
        }
        one.lenient_layout = true;
        bench.merge(&[one]).unwrap();
        let group = lora(name, out, n, ModuleKind::Conv1d, 5);
        let want = oracle(&base[m].1, &[(&group, 0, 0, 1.0)], false);
        check(&bench.out(), &base, &[(&base[m].0, want)]);
        fs::remove_file(bench.out()).unwrap();
    }
    // A square `Linear` elsewhere stays what the adapter says.
    let base = one("x.c_proj.weight", 3, 3);
    let bench = Bench::file(&base);
    let group = lora("x.c_proj", 3, 3, ModuleKind::Linear, 5);
    let mut one = input(vec![group.clone()]);
    one.lenient_layout = true;
    bench.merge(&[one]).unwrap();
    check(
        &bench.out(),
        &base,
        &[(
            "x.c_proj.weight",
            oracle(&base[0].1, &[(&group, 0, 0, 1.0)], false),
        )],
    );
}

#[test]
fn adapters_that_replace_the_same_tensor_conflict() {
    let bench = Bench::file(&decoder());
    let new = || {
        extra(
            "model.norm.weight",
            ExtraRole::Replace,
            tensor(Dtype::F32, &[6], 1, 1.0),
        )
    };
    assert_eq!(
        bench.refusal(&[new(), new()]).code(),
        Code::AdaptersConflict
    );
    let mut half = new();
    half.weight = 0.5;
    assert_eq!(bench.refusal(&[half]).code(), Code::Usage);
    let mut nan = module("x");
    nan.weight = f64::NAN;
    assert_eq!(bench.refusal(&[nan]).code(), Code::Usage);
    let mut huge = input(vec![tied_qkv(1)]);
    huge.weight = 1e300;
    assert_eq!(bench.refusal(&[huge]).code(), Code::BadAlpha);
    assert_eq!(bench.refusal(&[]).code(), Code::Usage);
}

#[test]
fn shared_embeddings_are_refused_unless_the_policy_says_what_to_do() {
    let embed = || {
        input(vec![lora(
            "model.embed_tokens",
            6,
            10,
            ModuleKind::Embedding,
            5,
        )])
    };
    let head = || input(vec![lora("lm_head", 10, 6, ModuleKind::Linear, 5)]);
    let untied = decoder();
    let no_head = without(decoder(), "lm_head.weight");
    let refused = |bench: &Bench, i: MergeInput| {
        assert_eq!(bench.refusal(&[i]).code(), Code::TiedEmbedding);
    };
    let free = |bench: &Bench, i: MergeInput| bench.merge(&[i]).map(drop).unwrap();
    // The checkpoint tells, where the config does not.
    refused(&Bench::file(&no_head), embed());
    refused(&Bench::file(&no_head), head());
    free(&Bench::file(&untied), embed());
    free(&Bench::file(&untied), head());
    refused(&Bench::model(&no_head, 1, Some("{}")), embed());
    // The config decides, where it says so; also that of a vision-language model.
    let on = Some(r#"{"text_config": {"tie_word_embeddings": true}}"#);
    let off = Some(r#"{"tie_word_embeddings": false}"#);
    refused(&Bench::model(&untied, 1, on), head());
    refused(&Bench::model(&untied, 1, on), embed());
    free(&Bench::model(&no_head, 1, off), embed());
    let e = Bench::model(&no_head, 1, off).refusal(&[head()]);
    assert_eq!(e.code(), Code::UnmatchedModule);
    // A model without a head has nothing to be tied to.
    let bare = Some(r#"{"architectures": ["LlamaModel"]}"#);
    free(&Bench::model(&no_head, 1, bare), embed());
    let both = {
        let mut one = extra(
            "lm_head.weight",
            ExtraRole::Replace,
            tensor(Dtype::BF16, &[10, 6], 8, 1.0),
        );
        let mut two = one.adapter.extras[0].clone();
        two.name = "model.embed_tokens.weight".into();
        two.tensor = tensor(Dtype::BF16, &[10, 6], 9, 1.0);
        one.adapter.extras.push(two);
        one
    };
    let e = Bench::file(&no_head).refusal_with(&[both], &tied(TiedPolicy::Shared));
    assert_eq!(e.code(), Code::TiedEmbedding);
}

#[test]
fn a_shared_policy_changes_both_as_peft_does() {
    let group = lora("lm_head", 10, 6, ModuleKind::Linear, 5);
    let embed = "model.embed_tokens.weight";
    let base = without(decoder(), "lm_head.weight");
    let bench = Bench::file(&base);
    bench
        .merge_with(&[input(vec![group.clone()])], &tied(TiedPolicy::Shared))
        .unwrap();
    let want = oracle(find(&base, embed), &[(&group, 0, 0, 1.0)], false);
    check(&bench.out(), &base, &[(embed, want.clone())]);
    // Where both are stored, both change.
    let mut base = base;
    base.push(("lm_head.weight".into(), find(&base, embed).clone()));
    let bench = Bench::model(&base, 1, Some(r#"{"tie_word_embeddings": true}"#));
    bench
        .merge_with(&[input(vec![group])], &tied(TiedPolicy::Shared))
        .unwrap();
    check(
        &bench.out(),
        &base,
        &[(embed, want.clone()), ("lm_head.weight", want)],
    );
}

#[test]
fn untying_gives_the_output_a_tensor_of_its_own() {
    let base = without(decoder(), "lm_head.weight");
    let embed = "model.embed_tokens.weight";
    let head_group = lora("lm_head", 10, 6, ModuleKind::Linear, 5);
    let embed_group = lora("model.embed_tokens", 6, 10, ModuleKind::Embedding, 15);
    let old = find(&base, embed);
    let new_head = oracle(old, &[(&head_group, 0, 0, 1.0)], false);
    let new_embed = oracle(old, &[(&embed_group, 0, 0, 1.0)], true);
    let config = "{\n  \"eps\": 1.0,\n  \"tie_word_embeddings\": true\n}\n";
    for (groups, embed_want, head_want) in [
        (vec![head_group.clone()], old, &new_head),
        (vec![embed_group.clone()], &new_embed, old),
        (vec![head_group, embed_group], &new_embed, &new_head),
    ] {
        for shards in [1, 3] {
            let bench = Bench::model(&base, shards, Some(config));
            bench
                .merge_with(&[input(groups.clone())], &tied(TiedPolicy::Untie))
                .unwrap();
            let changed = [
                (embed, embed_want.clone()),
                ("lm_head.weight", head_want.clone()),
            ];
            check(&bench.out(), &base, &changed);
            let text = fs::read_to_string(bench.out().join("config.json")).unwrap();
            assert_eq!(text, config.replace("true", "false"));
            if shards > 1 {
                let index = fs::read(bench.out().join("model.safetensors.index.json")).unwrap();
                let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
                let size: usize = read(&bench.out()).values().map(|t| t.data().len()).sum();
                assert_eq!(index["metadata"]["total_size"], size);
            }
            // The official reader agrees about the rewritten header.
            let shard = Checkpoint::open(bench.out()).unwrap();
            let shard = shard
                .at(shard.locate("lm_head.weight").unwrap())
                .0
                .path()
                .to_owned();
            let bytes = fs::read(shard).unwrap();
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(
                parsed.tensor("lm_head.weight").unwrap().data(),
                &**head_want.data()
            );
        }
    }
    // Hub GPT-2 has no prefix: a head beside it would not load.
    let bare = [(
        "wte.weight".to_owned(),
        tensor(Dtype::F32, &[10, 6], 3, 1.0),
    )];
    let one = input(vec![lora("lm_head", 10, 6, ModuleKind::Linear, 5)]);
    let e = Bench::file(&bare).refusal_with(&[one], &tied(TiedPolicy::Untie));
    assert_eq!(e.code(), Code::TiedEmbedding);
}

fn config(model_type: &str, class: &str) -> String {
    format!("{{\n  \"architectures\": [\"{class}\"],\n  \"model_type\": \"{model_type}\"\n}}\n")
}

/// Breaks where a model that is untied lacks a tensor that its class then has, so that it begins at random.
#[test]
fn untying_writes_every_name_that_the_class_ties() {
    let old = tensor(Dtype::F32, &[10, 6], 3, 1.0);
    let bias = tensor(Dtype::F32, &[10], 4, 1.0);
    let bart = [
        "lm_head",
        "model.decoder.embed_tokens",
        "model.encoder.embed_tokens",
    ];
    for (model_type, class, stored, others, output) in [
        (
            "bart",
            "BartForConditionalGeneration",
            "model.shared",
            &bart[..],
            "lm_head",
        ),
        (
            "whisper",
            "WhisperForConditionalGeneration",
            "model.decoder.embed_tokens",
            &["proj_out"],
            "proj_out",
        ),
        (
            "mamba",
            "MambaForCausalLM",
            "backbone.embeddings",
            &["lm_head"],
            "lm_head",
        ),
        (
            "bert",
            "BertForMaskedLM",
            "bert.embeddings.word_embeddings",
            &["cls.predictions.decoder"],
            "cls.predictions.decoder",
        ),
    ] {
        let mut base = vec![(format!("{stored}.weight"), old.clone())];
        if model_type == "bert" {
            base.push(("cls.predictions.bias".to_owned(), bias.clone()));
        }
        let bench = Bench::model(&base, 1, Some(&config(model_type, class)));
        for on_output in [false, true] {
            let (module, kind, out, n) = match on_output {
                true => (output, ModuleKind::Linear, 10, 6),
                false => (stored, ModuleKind::Embedding, 6, 10),
            };
            let group = lora(module, out, n, kind, 5);
            let inputs = [input(vec![group.clone()])];
            assert_eq!(
                bench.refusal(&inputs).code(),
                Code::TiedEmbedding,
                "{module}"
            );
            bench.merge_with(&inputs, &tied(TiedPolicy::Untie)).unwrap();
            let new = oracle(&old, &[(&group, 0, 0, 1.0)], !on_output);
            let value = |is_output: bool| {
                if is_output == on_output {
                    new.clone()
                } else {
                    old.clone()
                }
            };
            let mut changed = vec![(format!("{stored}.weight"), value(false))];
            for other in others {
                changed.push((format!("{other}.weight"), value(*other == output)));
            }
            if model_type == "bert" {
                changed.push(("cls.predictions.decoder.bias".to_owned(), bias.clone()));
            }
            let changed: Vec<(&str, Tensor)> = changed
                .iter()
                .map(|(name, t)| (name.as_str(), t.clone()))
                .collect();
            check(&bench.out(), &base, &changed);
            let _ = fs::remove_dir_all(bench.out());
        }
    }
}

/// Breaks where the trained copy of one module takes the place of what its name was tied to: the bias of BERT's
/// output, or the embeddings of an encoder and a decoder, which PEFT leaves as they are.
#[test]
fn untying_gives_a_trained_copy_to_its_own_name_alone() {
    let old = tensor(Dtype::F32, &[10, 6], 3, 1.0);
    let bias = tensor(Dtype::F32, &[10], 4, 1.0);
    let copy = |seed| tensor(Dtype::F32, &[10, 6], seed, 1.0);
    let merged = |class: (&str, &str), base: &[(String, Tensor)], trained: &[(&str, Tensor)]| {
        let (name, values) = &trained[0];
        let mut one = extra(name, ExtraRole::Replace, values.clone());
        for (name, values) in &trained[1..] {
            let more = Extra::new(*name, ExtraRole::Replace, values.clone());
            one.adapter.extras.push(more);
        }
        let bench = Bench::model(base, 1, Some(&config(class.0, class.1)));
        bench.merge_with(&[one], &tied(TiedPolicy::Untie)).unwrap();
        read(&bench.out())
    };
    let words = "bert.embeddings.word_embeddings.weight";
    let (weight_name, bias_name) = (
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    );
    let base = [
        (words.to_owned(), old.clone()),
        ("cls.predictions.bias".to_owned(), bias.clone()),
    ];
    let new_bias = tensor(Dtype::F32, &[10], 9, 1.0);
    let trained = [(weight_name, copy(8)), (bias_name, new_bias.clone())];
    let out = merged(("bert", "BertForMaskedLM"), &base, &trained);
    assert!(out[words].same_bytes(&old) && out["cls.predictions.bias"].same_bytes(&bias));
    assert!(out[weight_name].same_bytes(&copy(8)) && out[bias_name].same_bytes(&new_bias));
    // Of a tensor that was saved as one with its output, all names have the values.
    let trained = [
        (words, copy(8)),
        (weight_name, copy(8)),
        (bias_name, new_bias.clone()),
    ];
    let out = merged(("bert", "BertForMaskedLM"), &base, &trained);
    assert!(out[words].same_bytes(&copy(8)) && out[weight_name].same_bytes(&copy(8)));
    let both = ["cls.predictions.bias", bias_name];
    assert!(both.iter().all(|name| out[*name].same_bytes(&new_bias)));

    let m2m = ("m2m_100", "M2M100ForConditionalGeneration");
    let t5 = ("t5", "T5ForConditionalGeneration");
    for (class, at, decoder) in [(m2m, "model.", true), (t5, "", false)] {
        let name = |module: &str| format!("{at}{module}.weight");
        let base = [(name("shared"), old.clone())];
        let shared = name("shared");
        let trained = [(shared.as_str(), copy(8)), ("lm_head.weight", copy(9))];
        let out = merged(class, &base, &trained);
        assert!(out[&shared].same_bytes(&copy(8)) && out["lm_head.weight"].same_bytes(&copy(9)));
        assert!(out[&name("encoder.embed_tokens")].same_bytes(&old));
        // T5's decoder is loaded from `shared` even so, as from PEFT's file.
        let of_decoder = out.get(&name("decoder.embed_tokens"));
        assert_eq!(
            of_decoder.map(|t| t.same_bytes(&old)),
            decoder.then_some(true)
        );
    }
}

/// Breaks where a class that has no output is refused for its input, or its aliases do not change together.
#[test]
fn without_an_output_there_is_nothing_to_refuse() {
    let old = tensor(Dtype::F32, &[10, 6], 3, 1.0);
    let group = |module: &str| lora(module, 6, 10, ModuleKind::Embedding, 5);
    for (model_type, class, stored, module) in [
        (
            "bert",
            "BertForSequenceClassification",
            "bert.embeddings.word_embeddings",
            None,
        ),
        ("qwen3", "Qwen3Model", "embed_tokens", None),
        (
            "bart",
            "BartForSequenceClassification",
            "model.shared",
            Some("model.encoder.embed_tokens"),
        ),
    ] {
        let name = format!("{stored}.weight");
        let base = [(name.clone(), old.clone())];
        let bench = Bench::model(&base, 1, Some(&config(model_type, class)));
        let group = group(module.unwrap_or(stored));
        bench.merge(&[input(vec![group.clone()])]).unwrap();
        let want = oracle(&old, &[(&group, 0, 0, 1.0)], true);
        check(&bench.out(), &base, &[(&name, want)]);
    }
}

/// Breaks where a pair that fits only transposed is merged because some model stores weights so.
#[test]
fn a_pair_that_fits_only_transposed_is_refused() {
    for (model_type, class, name) in [
        ("llama", "LlamaForCausalLM", "model.layers.0.mlp.down_proj"),
        ("gpt_neo", "GPTNeoForCausalLM", "transformer.h.0.mlp.c_proj"),
    ] {
        let base = one(&format!("{name}.weight"), 3, 4);
        for described in [Some(config(model_type, class)), None] {
            let bench = Bench::model(&base, 1, described.as_deref());
            let mut one = module(name);
            one.lenient_layout = true;
            assert_eq!(bench.refusal(&[one]).code(), Code::BaseShape, "{name}");
        }
    }
    // GPT-2's own are stored so.
    let name = "transformer.h.0.mlp.c_proj";
    let base = one(&format!("{name}.weight"), 3, 4);
    let bench = Bench::model(&base, 1, Some(&config("gpt2", "GPT2LMHeadModel")));
    let mut one = module(name);
    one.lenient_layout = true;
    bench.merge(&[one]).unwrap();
}
