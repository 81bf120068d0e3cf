//! Merges by a method, against a second implementation that has whole updates in f64 and sorts them.

use super::*;
use crate::blend::{Average, Election, Mask, Method, Rescale, Sparsify};

const WEIGHT: &str = "x.w.weight";

fn by(method: Method, density: f64) -> PlanOptions {
    let mut asked = MergeMethod::new(method);
    let thins = method.recipe().sparsify != Sparsify::None;
    asked.density = thins.then_some(density);
    PlanOptions {
        method: Some(asked),
        ..PlanOptions::default()
    }
}

/// Places by magnitude, descending; of equal ones the first comes first.
fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    order
}

/// Which elements of an update of rows of `cols` elements stay, and the odds by which they did.
fn stays(
    method: &MergeMethod,
    density: f64,
    input: u64,
    cols: usize,
    x: &[f64],
) -> (Vec<bool>, Vec<f64>) {
    let n = x.len();
    let mut words = vec![0; n];
    Mask::new(method.seed(), input, WEIGHT).words(0, &mut words);
    let drawn = |i: usize| f64::from(words[i]) / 4_294_967_296.0;
    let mut keep = vec![false; n];
    let mut odds = vec![density; n];
    if density >= 1.0 {
        return (vec![true; n], vec![1.0; n]);
    }
    let count = (density * n as f64) as usize;
    match method.recipe().sparsify {
        Sparsify::None => keep.fill(true),
        Sparsify::Magnitude => descending(x)[..count.max(1)]
            .iter()
            .for_each(|i| keep[*i] = true),
        Sparsify::Random => (0..n).for_each(|i| keep[i] = drawn(i) < density),
        Sparsify::Outliers { gamma } => {
            let least = (n - count).saturating_sub((gamma * n as f64) as usize);
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs()));
            order[least..least + count]
                .iter()
                .for_each(|i| keep[*i] = true);
        }
        Sparsify::Ranked { epsilon } => {
            for (r, row) in x.chunks(cols).enumerate() {
                let mut order: Vec<usize> = (0..cols).collect();
                order.sort_by(|a, b| row[*a].abs().total_cmp(&row[*b].abs()));
                for (rank, at) in order.into_iter().enumerate() {
                    let i = r * cols + at;
                    let share = rank as f64 / (cols - 1) as f64;
                    odds[i] = density - epsilon + share * 2.0 * epsilon;
                    keep[i] = drawn(i) < odds[i];
                }
            }
        }
    }
    (keep, odds)
}

/// What a method makes of whole updates.
fn blended(method: &MergeMethod, updates: &[(Vec<f32>, f64, f64)], cols: usize) -> Vec<f64> {
    let recipe = method.recipe();
    let mut thinned = Vec::new();
    for (index, (update, weight, density)) in updates.iter().enumerate() {
        let x: Vec<f64> = update.iter().map(|x| f64::from(*x)).collect();
        let (keep, odds) = stays(method, *density, index as u64, cols, &x);
        let sum = |keep: &dyn Fn(usize) -> bool| -> f64 {
            let kept = x.iter().enumerate().filter(|(i, _)| keep(*i));
            kept.map(|(_, x)| x.abs()).sum()
        };
        let by_sums = sum(&|_| true) / sum(&|i| keep[i]).max(1e-30);
        let value = |i: usize| match (keep[i], recipe.rescale) {
            (false, _) => 0.0,
            (true, Rescale::None) => x[i] * weight,
            (true, Rescale::Density) => x[i] / odds[i] * weight,
            (true, Rescale::L1) => x[i] * by_sums * weight,
        };
        thinned.push((0..x.len()).map(value).collect::<Vec<f64>>());
    }
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let element = |i: usize| {
        let of = |k: &Vec<f64>| k[i];
        let pull: f64 = match recipe.election {
            Some(Election::Frequency) => thinned.iter().map(|k| sign(k[i])).sum(),
            _ => thinned.iter().map(of).sum(),
        };
        let winner = if pull >= 0.0 { 1.0 } else { -1.0 };
        let part = |k: &&Vec<f64>| recipe.election.is_none() || sign(k[i]) == winner;
        let sum: f64 = thinned.iter().filter(part).map(of).sum();
        let pairs = thinned.iter().zip(updates);
        let weights: f64 = pairs.filter(|(k, _)| part(k)).map(|(_, u)| u.1).sum();
        let by = match recipe.average {
            Average::Sum => 1.0,
            _ if weights.abs() < 1e-8 => 1.0,
            _ => weights,
        };
        sum / by * f64::from(recipe.lambda)
    };
    (0..updates[0].0.len()).map(element).collect()
}

fn dense(group: &TieGroup) -> Vec<f32> {
    group
        .low_rank(0, 0)
        .unwrap()
        .delta()
        .iter()
        .copied()
        .collect()
}

/// Merges, and compares with base plus update, rounded once; what a rounding of f64 moved is let through.
fn check_blend(bench: &Bench, base: &Tensor, want: &[f64], what: &str) {
    let got = read(&bench.out())[WEIGHT].to_f32().unwrap();
    let old = base.to_f32().unwrap();
    let unit = match base.dtype() {
        Dtype::BF16 => 2f64.powi(-8),
        Dtype::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-20),
    };
    for (i, ((got, old), want)) in got.iter().zip(&old).zip(want).enumerate() {
        let exact = f64::from(*old) + want;
        let size = exact.abs().max(want.abs()).max(f64::from(old.abs()) * 0.01);
        let apart = (f64::from(*got) - exact).abs();
        assert!(apart <= unit * size + 1e-7, "{what} {i}: {got} {exact}");
    }
    fs::remove_file(bench.out()).unwrap();
}

/// Breaks where a method does otherwise than its definition, on blocks of any dtype, with a density for each
/// adapter, weights that are negative, and every choice that can be made.
#[test]
fn every_method_is_its_definition() {
    let (rows, cols) = (23, 37);
    let groups: Vec<TieGroup> = (0..3)
        .map(|i| lora("x.w", rows, cols, ModuleKind::Linear, 8 + 3 * i))
        .collect();
    let (weights, densities) = ([0.7, -0.4, 1.1], [0.3, 0.55, 0.4]);
    let inputs = |thins: bool| -> Vec<MergeInput> {
        let all = groups.iter().zip(weights).zip(densities);
        all.map(|((g, weight), density)| MergeInput {
            weight,
            density: thins.then_some(density),
            ..input(vec![g.clone()])
        })
        .collect()
    };
    let updates: Vec<(Vec<f32>, f64, f64)> = (0..3)
        .map(|i| (dense(&groups[i]), weights[i], densities[i]))
        .collect();
    for (dtype, method) in Method::ALL.into_iter().flat_map(|m| {
        let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F16];
        dtypes.map(|d| (d, m))
    }) {
        let base = vec![(WEIGHT.to_owned(), tensor(dtype, &[rows, cols], 4, 1.0))];
        let bench = Bench::file(&base);
        let recipe = method.recipe();
        for choice in 0..4 {
            let mut asked = MergeMethod::new(method);
            match choice {
                1 => asked.normalize = Some(recipe.average == Average::Sum),
                2 if recipe.election.is_some() => asked.sign = Some(Election::Frequency),
                2 => asked.lambda = -0.6,
                3 if recipe.sparsify != Sparsify::None => asked.rescale = Some(Rescale::L1),
                3 => continue,
                _ => {}
            }
            if recipe.sparsify.is_random() {
                asked.seed = Some(choice);
            }
            let options = PlanOptions {
                method: Some(asked.clone()),
                ..PlanOptions::default()
            };
            let thins = recipe.sparsify != Sparsify::None;
            let report = bench.merge_with(&inputs(thins), &options).unwrap();
            assert_eq!(report.method.unwrap().name, method);
            let want = blended(&asked, &updates, cols);
            check_blend(
                &bench,
                &base[0].1,
                &want,
                &format!("{method} {dtype} {choice}"),
            );
        }
    }
}

/// Breaks where the plain sum by a method is other bytes than without one.
#[test]
fn linear_with_weights_of_one_is_the_merge_without_a_method() {
    let base = decoder();
    let both = || [input(vec![tied_qkv(70)]), input(vec![tied_qkv(90)])];
    let (plain, bench) = (Bench::file(&base), Bench::file(&base));
    plain.merge(&both()).unwrap();
    bench.merge_with(&both(), &by(Method::Linear, 1.0)).unwrap();
    for method in [Method::MagnitudePrune, Method::Dare, Method::Breadcrumbs] {
        let all = Bench::file(&base);
        all.merge_with(&both(), &by(method, 1.0)).unwrap();
        assert_eq!(fs::read(all.out()).unwrap(), fs::read(plain.out()).unwrap());
    }
    assert_eq!(
        fs::read(bench.out()).unwrap(),
        fs::read(plain.out()).unwrap()
    );
}

/// Breaks where bytes or statistics depend on the number of threads, or on which rows are merged together.
#[test]
fn the_same_bytes_for_any_threads_and_rows() {
    // Several pieces, the last one short.
    let (rows, cols) = (301, 67);
    let base = vec![(
        WEIGHT.to_owned(),
        tensor(Dtype::BF16, &[rows, cols], 4, 1.0),
    )];
    let inputs: Vec<MergeInput> = (0..3)
        .map(|i| input(vec![lora("x.w", rows, cols, ModuleKind::Linear, 8 + 3 * i)]))
        .collect();
    for method in Method::ALL {
        let mut outputs = Vec::new();
        for threads in [1, 2, 5] {
            let bench = Bench::file(&base);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let options = by(method, 0.4);
            let report = pool
                .unwrap()
                .install(|| bench.merge_with(&inputs, &options));
            let tensors = report.unwrap().tensors;
            outputs.push((fs::read(bench.out()).unwrap(), format!("{tensors:?}")));
        }
        assert!(outputs.windows(2).all(|w| w[0] == w[1]), "{method}");

        let bench = Bench::file(&base);
        let checkpoint = Checkpoint::open(&bench.base).unwrap();
        let plan = plan(&checkpoint, &inputs, &by(method, 0.4)).unwrap();
        let merge = TensorMerge::new(&plan, &plan.tensors()[0]).unwrap();
        let whole = outputs[0].0.len() - rows * cols * 2;
        let mut at = whole;
        for start in (0..rows).step_by(13) {
            let part = start..rows.min(start + 13);
            let mut block = vec![0; part.len() * merge.row_bytes()];
            merge.read(&part, &mut block).unwrap();
            merge.merge(part, &mut block).unwrap();
            assert_eq!(block, outputs[0].0[at..at + block.len()], "{method}");
            at += block.len();
        }
    }
}

/// Breaks where the difference from the base is not what is trimmed and weighed of an adapter that replaces a
/// tensor, rows of it, or normalises it.
#[test]
fn whole_tensors_rows_and_doras_are_differences_from_the_base() {
    let (rows, cols) = (12, 10);
    let base = vec![(WEIGHT.to_owned(), tensor(Dtype::F32, &[rows, cols], 4, 1.0))];
    let old = base[0].1.to_f32().unwrap();
    let whole = tensor(Dtype::F16, &[rows, cols], 5, 1.0);
    let mut few = extra(
        WEIGHT,
        ExtraRole::Replace,
        tensor(Dtype::F32, &[2, cols], 6, 1.0),
    );
    few.adapter.extras[0].role = ExtraRole::Rows;
    few.adapter.extras[0].rows = vec![3, 7];
    let group = lora("x.w", rows, cols, ModuleKind::Linear, 8);
    let mut dora = input(vec![group.clone()]);
    let magnitudes = tensor(Dtype::F32, &[rows], 7, 2.0);
    dora.magnitudes.insert("x.w".into(), magnitudes.clone());

    let difference =
        |new: &[f32]| -> Vec<f32> { new.iter().zip(&old).map(|(n, o)| n - o).collect() };
    let of_whole = difference(&whole.to_f32().unwrap());
    let mut of_rows = vec![0.0; rows * cols];
    let given = few.adapter.extras[0].tensor.to_f32().unwrap();
    for (from, row) in [3, 7].into_iter().enumerate() {
        let values = given[from * cols..(from + 1) * cols].iter();
        for (c, v) in values.enumerate() {
            of_rows[row * cols + c] = v - old[row * cols + c];
        }
    }
    let mut of_dora = old.clone();
    of_dora
        .iter_mut()
        .zip(dense(&group))
        .for_each(|(w, d)| *w += d);
    for (row, m) in of_dora.chunks_mut(cols).zip(magnitudes.to_f32().unwrap()) {
        let norm = row
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt() as f32;
        row.iter_mut().for_each(|x| *x *= m / norm);
    }
    let of_dora = difference(&of_dora);

    let mut first = extra(WEIGHT, ExtraRole::Replace, whole);
    (first.weight, few.weight, dora.weight) = (0.5, -0.8, 0.3);
    let updates = [
        (of_whole, 0.5, 0.6),
        (of_rows, -0.8, 0.6),
        (of_dora, 0.3, 0.6),
    ];
    let inputs = [first, few, dora];
    for method in [
        Method::Linear,
        Method::Ties,
        Method::DareTies,
        Method::Della,
    ] {
        let bench = Bench::file(&base);
        let options = by(method, 0.6);
        bench.merge_with(&inputs, &options).unwrap();
        let want = blended(options.method.as_ref().unwrap(), &updates, cols);
        check_blend(&bench, &base[0].1, &want, method.as_str());
    }
}

/// Breaks where a merge by a method cannot be taken back, or one of many alone is another than by itself.
#[test]
fn in_place_and_each_alone() {
    let base = decoder();
    let both = || [input(vec![tied_qkv(70)]), input(vec![tied_qkv(90)])];
    let options = by(Method::DareTies, 0.5);
    let (plain, bench) = (Bench::file(&base), Bench::file(&base));
    plain.merge_with(&both(), &options).unwrap();
    let before = fs::read(&bench.base).unwrap();
    let undo = bench.dir.path().join("undo");
    {
        let checkpoint = Checkpoint::open(&bench.base).unwrap();
        let inputs = both();
        let plan = plan(&checkpoint, &inputs, &options).unwrap();
        merge_in_place(
            &plan,
            &undo,
            &InPlaceOptions::default(),
            &Control::default(),
        )
        .unwrap();
    }
    assert_eq!(
        fs::read(&bench.base).unwrap(),
        fs::read(plain.out()).unwrap()
    );
    unmerge(&bench.base, &undo, &Control::default()).unwrap();
    assert_eq!(fs::read(&bench.base).unwrap(), before);

    let checkpoint = Checkpoint::open(&plain.base).unwrap();
    let (inputs, folder) = (both(), plain.dir.path().join("each"));
    let names = ["a".to_owned(), "b".to_owned()];
    let each = plan_each(&checkpoint, &inputs, &names, &options, &folder).unwrap();
    execute_each(&each, &ExecOptions::default(), &Control::default()).unwrap();
    for (one, name) in both().into_iter().zip(names) {
        let alone = Bench::file(&base);
        alone.merge_with(&[one], &options).unwrap();
        let path = folder.join(format!("{name}.safetensors"));
        assert_eq!(fs::read(path).unwrap(), fs::read(alone.out()).unwrap());
    }
}

/// Breaks where what no method can do is done in some way.
#[test]
fn what_has_no_meaning_is_refused() {
    let base = decoder();
    let bench = Bench::file(&base);
    let one = || [input(vec![tied_qkv(70)])];
    let refused = |inputs: &[MergeInput], change: &dyn Fn(&mut MergeMethod), method| {
        let mut asked = MergeMethod::new(method);
        change(&mut asked);
        let options = PlanOptions {
            method: Some(asked),
            ..PlanOptions::default()
        };
        bench.refusal_with(inputs, &options).code()
    };
    let usage = |change: &dyn Fn(&mut MergeMethod), method| {
        assert_eq!(refused(&one(), change, method), Code::Usage, "{method}");
    };
    usage(&|m| m.density = Some(0.5), Method::Linear);
    usage(&|m| m.rescale = Some(Rescale::L1), Method::Linear);
    usage(&|m| m.sign = Some(Election::Total), Method::Dare);
    usage(&|_| {}, Method::Ties);
    usage(&|m| m.density = Some(0.0), Method::Ties);
    usage(
        &|m| (m.density, m.seed) = (Some(0.5), Some(1)),
        Method::Ties,
    );
    usage(
        &|m| (m.density, m.gamma) = (Some(0.5), Some(0.1)),
        Method::Dare,
    );
    usage(
        &|m| (m.density, m.epsilon) = (Some(0.5), Some(0.1)),
        Method::Dare,
    );
    usage(
        &|m| (m.density, m.epsilon) = (Some(0.5), Some(0.5)),
        Method::Della,
    );
    usage(
        &|m| (m.density, m.gamma) = (Some(0.5), Some(1.0)),
        Method::Breadcrumbs,
    );
    usage(&|m| m.lambda = f64::NAN, Method::Linear);
    usage(&|m| m.lambda = 1e300, Method::Linear);

    let mut dense = input(vec![tied_qkv(70)]);
    dense.density = Some(0.5);
    let plain = bench.refusal(std::slice::from_ref(&dense));
    assert_eq!(plain.code(), Code::Usage);
    let mut heavy = input(vec![tied_qkv(70)]);
    heavy.weight = 1e300;
    assert_eq!(refused(&[heavy], &|_| {}, Method::Linear), Code::Usage);

    let longer = extra(
        "lm_head.weight",
        ExtraRole::Replace,
        tensor(Dtype::BF16, &[11, 6], 1, 1.0),
    );
    let both = [input(vec![tied_qkv(70)]), longer];
    assert_eq!(refused(&both, &|_| {}, Method::Linear), Code::BaseShape);

    // Named on a GPU, refused; where it is left to tlkit, the processor.
    let checkpoint = Checkpoint::open(&bench.base).unwrap();
    let inputs = one();
    let plan = plan(&checkpoint, &inputs, &by(Method::Linear, 1.0)).unwrap();
    let open = |name: &str| {
        let choice = name.parse().unwrap();
        open_device(choice, None, &[&plan], Workload::Merging).map(|gpu| gpu.is_none())
    };
    assert_eq!(open("cuda").unwrap_err().code(), Code::NoDevice);
    assert!(open("auto").unwrap());
    assert!(bench.leftovers().is_empty());
}

/// Breaks where an adapter that leaves a tensor as it is does not count among the weights, as its model does
/// in mergekit.
#[test]
fn an_adapter_that_leaves_a_tensor_counts_as_zeros() {
    let (rows, cols) = (9, 8);
    let base = vec![
        (WEIGHT.to_owned(), tensor(Dtype::F32, &[rows, cols], 4, 1.0)),
        (
            "y.w.weight".to_owned(),
            tensor(Dtype::F32, &[rows, cols], 5, 1.0),
        ),
    ];
    let group = lora("x.w", rows, cols, ModuleKind::Linear, 8);
    let other = input(vec![lora("y.w", rows, cols, ModuleKind::Linear, 11)]);
    let one = input(vec![group.clone()]);
    let mut options = by(Method::Linear, 1.0);
    options.method.as_mut().unwrap().normalize = Some(true);
    let bench = Bench::file(&base);
    bench.merge_with(&[one, other], &options).unwrap();
    let half: Vec<f64> = dense(&group).iter().map(|x| f64::from(*x) / 2.0).collect();
    check_blend(&bench, &base[0].1, &half, "zeros");
}

/// Breaks where the numbers of a quantised weight are not those that differences are taken from and updates
/// added to.
#[test]
fn a_quantised_base_is_what_it_is_dequantised() {
    let quant = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/quant");
    let (name, out, n) = ("layers.0.q_proj", 16, 64);
    let base = Checkpoint::open(quant.join("bnb-nf4-nested")).unwrap();
    let weight = format!("{name}.weight");
    let mut dora = input(vec![lora(name, out, n, ModuleKind::Linear, 7)]);
    let magnitudes = tensor(Dtype::F32, &[out], 7, 2.0);
    dora.magnitudes.insert(name.into(), magnitudes);
    let whole = tensor(Dtype::F32, &[out, n], 6, 1.0);
    let inputs = [
        dora,
        extra(&weight, ExtraRole::Replace, whole),
        input(vec![lora(name, out, n, ModuleKind::Linear, 9)]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = |what: &str| dir.path().join(what);
    let write = |plan: &MergePlan<'_>, to: &Path| {
        execute(plan, to, &ExecOptions::default(), &Control::default()).unwrap();
    };
    let options = by(Method::Ties, 0.5);
    write(&plan_dequantised(&base, &options).unwrap(), &path("plain"));
    write(&plan(&base, &inputs, &options).unwrap(), &path("direct"));
    let plain = Checkpoint::open(path("plain")).unwrap();
    write(&plan(&plain, &inputs, &options).unwrap(), &path("after"));
    let (direct, after) = (read(&path("direct")), read(&path("after")));
    assert!(direct[&weight].same_bytes(&after[&weight]));
    assert!(!direct[&weight].same_bytes(&read(&path("plain"))[&weight]));
}
