use super::*;
use crate::adapter::Method;
use crate::error::Code;
use crate::tensor::Dtype;

fn parse(text: &str) -> Settings {
    let required = "model = 'm'\ndata = 'd'\noutput = 'o'\n";
    Settings::parse(&format!("{required}{text}")).unwrap()
}

fn refused(text: &str) -> String {
    let error = parse(text).resolve().unwrap_err();
    assert_eq!(error.code(), Code::Usage, "{text}");
    error.message().to_owned()
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let c = parse("").resolve().unwrap();
    assert_eq!(c.method, Method::Tl6);
    assert_eq!(
        (c.train.len(), c.tie, c.joint, c.layers),
        (4, true, true, None)
    );
    assert_eq!(c.targets, ["q", "k", "v"]);
    assert_eq!(
        (c.rank, c.alpha, c.max_steps, c.epochs),
        (8, 8.0, 20_000, None)
    );
    assert_eq!((c.lr, c.min_lr, c.warmup), (1e-4, 1e-6, 50));
    assert_eq!(
        (c.weight_decay, c.beta1, c.beta2, c.clip),
        (0.01, 0.9, 0.98, 1.0)
    );
    assert_eq!((c.batch_size, c.global_batch, c.seq_len), (8, 128, 2048));
    assert_eq!((c.eval_every, c.patience, c.min_delta), (200, 10, 0.001));
    assert_eq!((c.loss_on_prompt, c.recompute, c.seed), (false, false, 0));
    assert_eq!((c.device.as_str(), c.dtype), ("cpu", Dtype::F32));
    for method in Method::PRESETS {
        let c = parse(&format!("method = '{method}'")).resolve().unwrap();
        assert_eq!((c.method, Some(&c.train[..])), (method, method.trains()));
        assert_eq!(Some(c.tie), method.is_tied());
    }
}

#[test]
fn defaults_follow_the_settings_they_depend_on() {
    // A fixed warm-up or batch size would refuse short runs and small global batches.
    let c = parse("rank = 4\nmax-steps = 60\nglobal-batch = 2\nlr = 1e-7")
        .resolve()
        .unwrap();
    assert_eq!(
        (c.alpha, c.warmup, c.batch_size, c.min_lr),
        (4.0, 6, 2, 1e-7)
    );
    let c = parse("epochs = 3\nglobal-batch = 10").resolve().unwrap();
    let c = c.for_examples(95).unwrap();
    assert_eq!(
        (c.max_steps, c.warmup, c.for_loop().schedule.total),
        (30, 3, 30)
    );
    let c = parse("epochs = 3\nglobal-batch = 10\nmax-steps = 20")
        .resolve()
        .unwrap();
    assert_eq!(c.for_examples(95).unwrap().max_steps, 20);
    let c = parse("epochs = 1\nglobal-batch = 10\nwarmup = 10")
        .resolve()
        .unwrap();
    let e = c.for_examples(95).unwrap_err();
    assert!(e.message().contains("`warmup`"), "{e}");
}

#[test]
fn train_and_tie_make_the_method() {
    let of = |text: &str| parse(text).resolve().unwrap();
    assert_eq!(of("train = ['B', 'A']").method, Method::Tl5);
    assert_eq!(of("train = ['B', 'A']\ntie = false").method, Method::Lora);
    assert_eq!(of("method = 'tl5'\ntrain = ['u']").method, Method::Custom);
    assert_eq!(
        of("method = 'custom'\ntrain = ['v', 'u']\ntie = true").method,
        Method::Vera
    );
    assert_eq!(of("train = ['C', 'A', 'B']").method, Method::Custom);
    assert!(refused("method = 'custom'\ntie = true").contains("`train` is not given"));
}

#[test]
fn flags_win_over_the_file() {
    let file = parse("rank = 4\nlr = 1e-3\ntrain = ['A']\ntie = false");
    let flags = Settings {
        rank: Some(16),
        ..Settings::default()
    };
    let c = flags.clone().over(file.clone()).resolve().unwrap();
    assert_eq!((c.rank, c.lr, c.method), (16, 1e-3, Method::Custom));
    // Naming a method on the command line and training the file's factors would surprise.
    let flags = Settings {
        method: Some(Method::Vera),
        ..flags
    };
    assert_eq!(flags.over(file).resolve().unwrap().method, Method::Vera);
}

#[test]
fn values_that_make_no_sense_are_named() {
    for (text, key) in [
        ("rank = 0", "`rank` is 0"),
        ("rank = 65537", "`rank` is 65537"),
        ("alpha = 0", "`alpha` is 0"),
        ("alpha = inf", "`alpha` is inf"),
        ("lr = nan", "`lr` is NaN"),
        ("lr = -1.0", "`lr` is -1"),
        ("min-lr = 1.0", "`min-lr` is 1"),
        ("min-lr = nan", "`min-lr` is NaN"),
        ("beta1 = 1.0", "`beta1` is 1"),
        ("beta2 = -0.1", "`beta2` is -0.1"),
        ("weight-decay = -1", "`weight-decay` is -1"),
        ("clip = nan", "`clip` is NaN"),
        ("min-delta = inf", "`min-delta` is inf"),
        ("max-steps = 0", "`max-steps` is 0"),
        ("epochs = 0", "`epochs` is 0"),
        ("max-steps = 9\nwarmup = 9", "`warmup` is 9"),
        ("batch-size = 0", "`batch-size` is 0"),
        ("batch-size = 129", "`batch-size` is 129"),
        ("global-batch = 0", "`global-batch` is 0"),
        ("seq-len = 1", "`seq-len` is 1"),
        ("eval-every = 0", "`eval-every` is 0"),
        ("checkpoint-every = 0", "`checkpoint-every` is 0"),
        ("train = []", "`number of train` is 0"),
        ("train = ['A', 'A']", "`train` has A twice"),
        ("train = ['u', 'C']", "`train` has C and u"),
        ("targets = []", "`number of targets` is 0"),
        ("targets = ['q', 'k', 'q']", "`targets` has q twice"),
        ("targets = ['a b']", "`targets`: `a b`"),
    ] {
        assert!(refused(text).contains(key), "{text}: {}", refused(text));
    }
    let e = Settings::default().resolve().unwrap_err();
    assert_eq!(e.message(), "`model` is not given");
    assert!(e.hint_text().unwrap().contains("`model`"));
}

#[test]
fn a_bad_file_is_refused_with_its_line() {
    for (text, want) in [
        ("rank = 1\nranks = 2", "line 2: unknown field `ranks`"),
        (
            "rank = 1\n\nmax_steps = 2",
            "line 3: unknown field `max_steps`",
        ),
        ("rank = 1\nrank = 2", "line 2:"),
        ("\nrank = 'a'", "line 2: invalid type"),
        ("rank = -1", "line 1: invalid value"),
        ("lr = 1\n\nmethod = 'tl9'", "line 3: `tl9` is not a method"),
        ("lr = 1\ntrain = ['A', 'D']", "line 2: `D` is not one of"),
        ("dtype = 'F8_E4M3'", "line 1: `F8_E4M3` is not one of f32"),
        ("lr = 1\nlayers = '1-'", "line 2: `layers` has `1-`"),
        ("lr = 1\n[", "line 2:"),
    ] {
        let e = Settings::parse(text).unwrap_err();
        assert_eq!(e.code(), Code::BadRunConfig, "{text}");
        assert!(e.message().starts_with(want), "{text}: {e}");
        assert!(!e.message().contains('\n'), "{e}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, b"rank = 2 # \xff").unwrap();
    let e = Settings::read(&path).unwrap_err();
    assert_eq!((e.code(), e.path()), (Code::BadRunConfig, Some(&*path)));
    std::fs::write(&path, "rank = 2").unwrap();
    assert_eq!(Settings::read(&path).unwrap().rank, Some(2));
}

#[test]
fn layers_are_lists_numbers_or_text() {
    let of = |text: &str| parse(text).layers.unwrap().numbers().to_vec();
    assert_eq!(of("layers = '0-2, 12,5-5'"), [0, 1, 2, 5, 12]);
    assert_eq!(of("layers = [3, 1]"), [1, 3]);
    assert_eq!(of("layers = 8"), [8]);
    // The range is longer than memory, and must be refused before it is written out.
    for bad in ["0-4294967295", "", "3-1", "1,1", "4096", "-1", "a", "0-3,2"] {
        assert_eq!(
            bad.parse::<Layers>().unwrap_err().code(),
            Code::Usage,
            "{bad}"
        );
    }
    for bad in [
        "layers = []",
        "layers = [-1]",
        "layers = true",
        "layers = [1.0]",
    ] {
        assert_eq!(Settings::parse(bad).unwrap_err().code(), Code::BadRunConfig);
    }
}

#[test]
fn the_fingerprint_holds_what_changes_the_result() {
    // A key missing here lets a run resume into values that no uninterrupted run would reach.
    let of = |text: &str| parse(text).resolve().unwrap().fingerprint().unwrap();
    let base = of("");
    for same in [
        "valid = 'v'",
        "dtype = 'bf16'",
        "checkpoint-every = 3",
        "epochs = 9",
    ] {
        assert_eq!(of(same), base, "{same}");
    }
    for other in [
        "lr = 2e-4",
        "max-steps = 9",
        "layers = 3",
        "patience = 0",
        "seed = 1",
    ] {
        assert_ne!(of(other), base, "{other}");
    }
    assert_eq!(base["train"], r#"["A","B","u","v"]"#);
    assert_eq!(base.len(), 33 - 7, "is the new setting's place thought of?");
    let json = serde_json::to_value(parse("layers = '1-2'").resolve().unwrap()).unwrap();
    assert_eq!(json["layers"], serde_json::json!([1, 2]));
    assert_eq!(
        (&json["dtype"], &json["method"]),
        (&"f32".into(), &"tl6".into())
    );
}
