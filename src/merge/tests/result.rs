//! What the merged bytes are.

use super::*;
use crate::fs::AtomicFile;
use std::sync::atomic::AtomicBool;

#[test]
fn a_tied_adapter_changes_its_modules_and_not_one_other_byte() {
    // Header, order, offsets and every untouched tensor are the base's; the others are the oracle's.
    let base = decoder();
    let bench = Bench::file(&base);
    let group = tied_qkv(70);
    let report = bench.merge(&[input(vec![group.clone()])]).unwrap();
    let mut changed = Vec::new();
    for layer in 0..2 {
        for (t, m) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let name = format!("model.layers.{layer}.self_attn.{m}.weight");
            let want = oracle(find(&base, &name), &[(&group, layer, t, 1.0)], false);
            changed.push((name, want));
        }
    }
    let changed: Vec<(&str, Tensor)> = changed
        .iter()
        .map(|(n, t)| (n.as_str(), t.clone()))
        .collect();
    check(&bench.out(), &base, &changed);
    let raw = |p: &Path| SafetensorsFile::open(p).unwrap().raw_header().to_vec();
    assert_eq!(raw(&bench.base), raw(&bench.out()));
    assert_eq!(report.total.tensors, 6);
    assert!(report.total.changed_share > 0.5 && report.total.survived.unwrap() > 0.9);
    assert_eq!(bench.leftovers(), ["out.safetensors"]);
}

#[test]
fn every_dtype_layout_and_rounding_follows_the_oracle() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for kind in [
            ModuleKind::Linear,
            ModuleKind::Conv1d,
            ModuleKind::Embedding,
        ] {
            for (rounding, safe) in [(Rounding::Peft, false), (Rounding::PeftSafe, true)] {
                let shape = kind.weight_shape(7, 5);
                let base = vec![("x.w.weight".to_owned(), tensor(dtype, &shape, 4, 1.0))];
                let bench = Bench::file(&base);
                let group = lora("x.w", 7, 5, kind, 8);
                let options = PlanOptions {
                    rounding,
                    ..PlanOptions::default()
                };
                bench
                    .merge_with(&[input(vec![group.clone()])], &options)
                    .unwrap();
                // PEFT rounds an embedding's update first, asked to be safe or not.
                let first = safe || kind == ModuleKind::Embedding;
                let want = oracle(&base[0].1, &[(&group, 0, 0, 1.0)], first);
                check(&bench.out(), &base, &[("x.w.weight", want)]);
            }
        }
    }
}

/// Breaks where one weight that is embedding and output is not what PEFT makes of it: the
/// embedding's update rounded and added, then the output's added to that.
#[test]
fn a_shared_weight_takes_the_embeddings_update_then_the_outputs() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let embed = "model.embed_tokens.weight";
        let base = vec![(embed.to_owned(), tensor(dtype, &[40, 30], 4, 1.0))];
        let (e, h) = (
            lora("model.embed_tokens", 30, 40, ModuleKind::Embedding, 8),
            lora("lm_head", 40, 30, ModuleKind::Linear, 9),
        );
        let (up, down) = ([(&e, 0, 0, 1.0)], [(&h, 0, 0, 1.0)]);
        for (rounding, safe) in [(Rounding::Peft, false), (Rounding::PeftSafe, true)] {
            let want = oracle(&oracle(&base[0].1, &up, true), &down, safe);
            for groups in [vec![e.clone(), h.clone()], vec![h.clone(), e.clone()]] {
                let bench = Bench::model(&base, 1, Some(r#"{"tie_word_embeddings": true}"#));
                let options = PlanOptions {
                    rounding,
                    ..tied(TiedPolicy::Shared)
                };
                let report = bench.merge_with(&[input(groups)], &options).unwrap();
                check(&bench.out(), &base, &[(embed, want.clone())]);
                assert!(report.total.survived.unwrap() > 0.9);
            }
            let mut one = input(vec![e.clone(), h.clone()]);
            let m = |n, seed| tensor(Dtype::F32, &[n], seed, 2.0);
            one.magnitudes.insert("model.embed_tokens".into(), m(30, 5));
            one.magnitudes.insert("lm_head".into(), m(40, 6));
            let bench = Bench::model(&base, 1, Some(r#"{"tie_word_embeddings": true}"#));
            bench.merge_with(&[one], &tied(TiedPolicy::Shared)).unwrap();
            let half = dora_oracle(&base[0].1, &e, &m(30, 5).to_f32().unwrap());
            let want = dora_oracle(&half, &h, &m(40, 6).to_f32().unwrap());
            check(&bench.out(), &base, &[(embed, want)]);
        }
    }
}

#[test]
fn adapters_are_summed_with_their_weights_before_the_one_rounding() {
    let base = vec![(
        "x.w.weight".to_owned(),
        tensor(Dtype::BF16, &[7, 5], 4, 1.0),
    )];
    let bench = Bench::file(&base);
    let (g, h) = (
        lora("x.w", 7, 5, ModuleKind::Linear, 8),
        lora("x.w", 7, 5, ModuleKind::Linear, 9),
    );
    let (mut a, mut b) = (input(vec![g.clone()]), input(vec![h.clone()]));
    (a.weight, b.weight) = (0.75, -0.3);
    bench.merge(&[a, b]).unwrap();
    let want = oracle(&base[0].1, &[(&g, 0, 0, 0.75), (&h, 0, 0, -0.3)], false);
    check(&bench.out(), &base, &[("x.w.weight", want)]);
}

#[test]
fn vera_is_rounded_once_even_under_peft_safe() {
    let base = vec![(
        "x.w.weight".to_owned(),
        tensor(Dtype::BF16, &[40, 30], 4, 1.0),
    )];
    let group = lora("x.w", 40, 30, ModuleKind::Linear, 8);
    let options = PlanOptions {
        rounding: Rounding::PeftSafe,
        ..PlanOptions::default()
    };
    let mut one = input(vec![group.clone()]);
    one.single_rounding = true;
    let once = oracle(&base[0].1, &[(&group, 0, 0, 1.0)], false);
    assert!(!once.same_bytes(&oracle(&base[0].1, &[(&group, 0, 0, 1.0)], true)));
    let bench = Bench::file(&base);
    bench
        .merge_with(std::slice::from_ref(&one), &options)
        .unwrap();
    check(&bench.out(), &base, &[("x.w.weight", once)]);
    // Summed with an update that PEFT rounds twice, the sum is rounded twice.
    let mut zero = input(vec![group.clone()]);
    zero.weight = 0.0;
    for inputs in [[one.clone(), zero.clone()], [zero, one]] {
        let bench = Bench::file(&base);
        bench.merge_with(&inputs, &options).unwrap();
        let want = oracle(&base[0].1, &[(&group, 0, 0, 1.0)], true);
        check(&bench.out(), &base, &[("x.w.weight", want)]);
    }
}

#[test]
fn extras_replace_round_and_carry_updates() {
    let base = decoder();
    let bench = Bench::file(&base);
    let (norm, bias) = ("model.norm.weight", "model.layers.0.self_attn.q_proj.bias");
    let (q, head) = ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight");
    let new_head = tensor(Dtype::F32, &[10, 6], 90, 1.0);
    let group = lora("lm_head", 10, 6, ModuleKind::Linear, 8);
    let mut all = input(vec![group.clone()]);
    let mut add = |name: &str, role, t: &Tensor| {
        all.adapter.extras.push(Extra::new(name, role, t.clone()));
    };
    add(norm, ExtraRole::Replace, &tensor(Dtype::F32, &[6], 91, 1.0));
    add(bias, ExtraRole::Bias, &tensor(Dtype::F16, &[6], 92, 1.0));
    add(
        q,
        ExtraRole::Replace,
        &tensor(Dtype::BF16, &[6, 6], 93, 1.0),
    );
    add(head, ExtraRole::BaseLayer, &new_head);
    bench.merge(&[all]).unwrap();
    let narrow = |t: Tensor| {
        Tensor::narrowed(Dtype::BF16, t.shape().to_vec(), &t.to_f32().unwrap()).unwrap()
    };
    let changed = [
        (norm, narrow(tensor(Dtype::F32, &[6], 91, 1.0))),
        (bias, narrow(tensor(Dtype::F16, &[6], 92, 1.0))),
        (q, tensor(Dtype::BF16, &[6, 6], 93, 1.0)),
        (
            head,
            oracle(&narrow(new_head), &[(&group, 0, 0, 1.0)], false),
        ),
    ];
    check(&bench.out(), &base, &changed);
}

#[test]
fn lora_bias_is_scaled_and_added() {
    let base = decoder();
    let bench = Bench::file(&base);
    let name = "model.layers.1.self_attn.k_proj.bias";
    let delta = tensor(Dtype::F32, &[4], 90, 0.5);
    let scaling = Scaling {
        alpha: 3.0,
        rule: crate::adapter::ScalingRule::AlphaOverRank,
    };
    let mut one = extra(name, ExtraRole::AddBias(scaling, 8), delta.clone());
    one.weight = 2.0;
    bench.merge(&[one]).unwrap();
    let old = find(&base, name).to_f32().unwrap();
    let want: Vec<f32> = old
        .iter()
        .zip(delta.to_f32().unwrap())
        .map(|(b, d)| b + 0.75 * d)
        .collect();
    check(
        &bench.out(),
        &base,
        &[(name, Tensor::narrowed(Dtype::BF16, vec![4], &want).unwrap())],
    );

    let missing = extra("model.norm.bias", ExtraRole::AddBias(scaling, 8), delta);
    let e = bench.refusal(&[missing]);
    assert_eq!(e.code(), Code::UnmatchedModule);
    assert!(e.hint_text().unwrap().contains("PEFT refuses"));
}

/// PEFT's DoRA: rows of W + Δ are scaled to the magnitudes; columns where outputs are columns.
fn dora_oracle(base: &Tensor, group: &TieGroup, m: &[f32]) -> Tensor {
    let transposed = group.targets[0].kind.is_transposed();
    let delta = group.low_rank(0, 0).unwrap().delta();
    let (rows, cols) = (base.shape()[0], base.shape()[1]);
    let w = ndarray::Array2::from_shape_vec((rows, cols), base.to_f32().unwrap()).unwrap();
    let mut sum = if transposed {
        w.t().to_owned() + &delta
    } else {
        w + &delta
    };
    for (mut row, m) in sum.rows_mut().into_iter().zip(m) {
        let norm = row
            .iter()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>()
            .sqrt() as f32;
        row.mapv_inplace(|x| m / norm * x);
    }
    let sum = if transposed { sum.t().to_owned() } else { sum };
    let values: Vec<f32> = sum.iter().copied().collect();
    Tensor::narrowed(base.dtype(), vec![rows, cols], &values).unwrap()
}

#[test]
fn dora_follows_pefts_formula_in_every_layout() {
    for kind in [
        ModuleKind::Linear,
        ModuleKind::Conv1d,
        ModuleKind::Embedding,
    ] {
        let shape = kind.weight_shape(7, 5);
        let base = vec![("x.w.weight".to_owned(), tensor(Dtype::F16, &shape, 4, 1.0))];
        let bench = Bench::file(&base);
        let group = lora("x.w", 7, 5, kind, 8);
        let m = tensor(Dtype::F32, &[7], 9, 2.0);
        let mut one = input(vec![group.clone()]);
        one.magnitudes.insert("x.w".into(), m.clone());
        bench.merge(std::slice::from_ref(&one)).unwrap();
        let want = dora_oracle(&base[0].1, &group, &m.to_f32().unwrap());
        check(&bench.out(), &base, &[("x.w.weight", want)]);
        // It depends on the weight alone, so it cannot share a module.
        let other = input(vec![lora("x.w", 7, 5, kind, 18)]);
        assert_eq!(
            bench.refusal(&[one.clone(), other]).code(),
            Code::AdaptersConflict
        );
        one.weight = 0.5;
        assert_eq!(bench.refusal(&[one]).code(), Code::Usage);
    }
}

#[test]
fn threads_and_blocks_do_not_show_in_the_bytes() {
    // 3 MiB rows force several blocks; the bytes must not depend on how they are cut or spread.
    let (rows, cols) = (9, 800_000);
    let base = vec![(
        "x.w.weight".to_owned(),
        tensor(Dtype::BF16, &[rows, cols], 4, 1.0),
    )];
    let bench = Bench::file(&base);
    let group = lora("x.w", rows, cols, ModuleKind::Linear, 8);
    let inputs = [input(vec![group.clone()])];
    let mut outputs = Vec::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let report = pool.install(|| bench.merge(&inputs)).unwrap();
        outputs.push((fs::read(bench.out()).unwrap(), report.tensors));
        fs::remove_file(bench.out()).unwrap();
    }
    assert!(outputs[0] == outputs[1]);
    let header = fs::read(&bench.base).unwrap().len() - base[0].1.data().len();
    let want = oracle(&base[0].1, &[(&group, 0, 0, 1.0)], false);
    assert!(outputs[0].0[header..] == **want.data());
}

#[test]
fn what_is_not_finite_or_changes_nothing_leaves_nothing() {
    let base = vec![("x.w.weight".to_owned(), tensor(Dtype::F16, &[7, 5], 4, 1.0))];
    let bench = Bench::file(&base);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        let mut group = lora("x.w", 7, 5, ModuleKind::Linear, 8);
        group.b = Factor::trained(Tensor::from_f32(vec![7, 2], &[bad; 14]).unwrap());
        let e = bench.merge(&[input(vec![group])]).unwrap_err();
        assert_eq!(e.code(), Code::NonFiniteResult);
        assert_eq!(e.tensor_name(), Some("x.w.weight"));
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    }
    for tiny in [0.0, 1e-12] {
        let mut group = lora("x.w", 7, 5, ModuleKind::Linear, 8);
        group.b = Factor::trained(Tensor::from_f32(vec![7, 2], &[tiny; 14]).unwrap());
        let e = bench.merge(&[input(vec![group])]).unwrap_err();
        assert_eq!(e.code(), Code::NothingChanged, "{e}");
        assert_eq!(bench.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn existing_outputs_and_the_base_itself_are_safe() {
    let base = decoder();
    let bench = Bench::file(&base);
    let inputs = [input(vec![tied_qkv(70)])];
    fs::write(bench.out(), b"mine").unwrap();
    assert_eq!(bench.merge(&inputs).unwrap_err().code(), Code::OutputExists);
    assert_eq!(fs::read(bench.out()).unwrap(), b"mine");
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let options = ExecOptions {
        existing: Existing::Replace,
        durable: false,
        ..ExecOptions::default()
    };
    let run = |out: &Path| execute(&plan, out, &options, &Control::default());
    assert_eq!(run(&bench.base).unwrap_err().code(), Code::Usage);
    run(&bench.out()).unwrap();
    assert_ne!(fs::read(bench.out()).unwrap(), b"mine");
}

#[test]
fn progress_adds_up_and_a_cancelled_merge_leaves_nothing() {
    let bench = Bench::file(&decoder());
    let inputs = [input(vec![tied_qkv(70)])];
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let (seen, cancel) = (std::sync::atomic::AtomicU64::new(0), AtomicBool::new(false));
    let stop = |n: u64| {
        if seen.fetch_add(n, Ordering::Relaxed) + n > plan.bytes_out() / 2 {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let control = Control::from(Progress::new().stopped_by(&cancel).counted_by(&stop));
    let e = execute(&plan, &bench.out(), &ExecOptions::default(), &control).unwrap_err();
    assert_eq!(e.code(), Code::Interrupted);
    assert_eq!(bench.leftovers(), Vec::<String>::new());
    seen.store(0, Ordering::Relaxed);
    let control = Control::from(Progress::new().counted_by(&stop));
    execute(&plan, &bench.out(), &ExecOptions::default(), &control).unwrap();
    assert_eq!(seen.into_inner(), plan.bytes_out());
    let summary = plan.summary();
    assert_eq!(summary.bytes_out, fs::metadata(&bench.base).unwrap().len());
    assert_eq!(
        summary.bytes_merged + summary.bytes_copied,
        summary.bytes_out
    );
    assert_eq!((summary.tensors_merged, summary.shards.len()), (6, 1));
    assert!(serde_json::to_string(&summary).is_ok());
}

#[test]
fn writing_over_a_clone_of_the_base_gives_the_same_file() {
    // What happens on file systems that share extents; only there do the copies fall away.
    let bench = Bench::file(&decoder());
    let inputs = [input(vec![tied_qkv(70)])];
    bench.merge(&inputs).unwrap();
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let plan = plan(&checkpoint, &inputs, &PlanOptions::default()).unwrap();
    let mut clone = AtomicFile::create(bench.dir.path().join("clone"), Existing::Refuse).unwrap();
    clone.write_all(&fs::read(&bench.base).unwrap()).unwrap();
    let seen = std::sync::atomic::AtomicU64::new(0);
    let count = |n| {
        seen.fetch_add(n, Ordering::Relaxed);
    };
    let control = Control::from(Progress::new().counted_by(&count));
    let out = shard::ShardOutput {
        plan: &plan,
        shard: &plan.shards()[0],
        file: clone,
        cloned: true,
        label: None,
    };
    let outputs = [out];
    shard::write_shards(&checkpoint.shards()[0], &outputs, &control).unwrap();
    let [out] = outputs;
    out.file.commit(false).unwrap();
    let got = fs::read(bench.dir.path().join("clone")).unwrap();
    assert!(got == fs::read(bench.out()).unwrap());
    assert_eq!(seen.into_inner(), plan.bytes_out());
}
