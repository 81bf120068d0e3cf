mod store;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::*;
use crate::adapter::{Method, Shape};
use crate::error::Code;
use crate::fs::Existing;
use crate::peft::projection::{Fma, regenerate};
use crate::peft::testing::shared;
use crate::progress::Progress;
use crate::safetensors::write_tensors;
use crate::tensor::{Dtype, Tensor};

const LAYERS: usize = 3;
const WIDTHS: [(&str, usize); 3] = [("q_proj", 8), ("k_proj", 4), ("v_proj", 4)];

fn tensor(dtype: Dtype, shape: &[usize], fill: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| fill + i as f32)
        .collect();
    Tensor::narrowed(dtype, shape.to_vec(), &values).unwrap()
}

fn write(dir: &Path, config: &str, tensors: &[(String, Tensor)]) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("adapter_config.json"), config).unwrap();
    let file = dir.join("adapter_model.safetensors");
    write_tensors(&file, Existing::Refuse, &[("format", "pt")], tensors).unwrap();
}

/// A LoRA on q, k and v of three layers, 8 wide; no two of its tensors are equal.
fn lora(dir: &Path, dtype: Dtype, rank: usize, fill: f32) {
    let mut tensors = Vec::new();
    for layer in 0..LAYERS {
        for (n, (target, out)) in WIDTHS.into_iter().enumerate() {
            let module = format!("base_model.model.model.layers.{layer}.self_attn.{target}");
            let at = fill + (100 * layer + 10 * n) as f32;
            let a = tensor(dtype, &[rank, 8], at + 0.25);
            let b = tensor(dtype, &[out, rank], at + 0.5);
            tensors.push((format!("{module}.lora_A.weight"), a));
            tensors.push((format!("{module}.lora_B.weight"), b));
        }
    }
    let config = format!(
        r#"{{"peft_type":"LORA","r":{rank},"lora_alpha":16,"target_modules":["q_proj","k_proj","v_proj"],"base_model_name_or_path":"b"}}"#
    );
    write(dir, &config, &tensors);
}

fn vera(dir: &Path, key: u64, a: &[f32], b: &[f32]) {
    let lambda = |name: &str, n| {
        let name = format!("base_model.model.layers.0.self_attn.q_proj.{name}");
        (name, tensor(Dtype::F32, &[n], key as f32))
    };
    let tensors = [
        (
            "base_model.vera_A".to_owned(),
            Tensor::from_f32(vec![4, 8], a).unwrap(),
        ),
        (
            "base_model.vera_B".to_owned(),
            Tensor::from_f32(vec![8, 4], b).unwrap(),
        ),
        lambda("vera_lambda_b", 8),
        lambda("vera_lambda_d", 4),
    ];
    let config = format!(
        r#"{{"peft_type":"VERA","r":4,"projection_prng_key":{key},"target_modules":["q_proj"]}}"#
    );
    write(dir, &config, &tensors);
}

fn run(dir: &Path, options: &AuditOptions<'_>) -> Report {
    audit(&[dir.to_owned()], options).unwrap()
}

fn hashing() -> AuditOptions<'static> {
    AuditOptions {
        hash: true,
        ..AuditOptions::default()
    }
}

fn row<'r>(report: &'r Report, end: &str) -> &'r Row {
    report.rows.iter().find(|r| r.path.ends_with(end)).unwrap()
}

/// Bytes of all regular files below a folder as `du` counts them, where there is a `du`.
fn du(dir: &Path) -> Option<u64> {
    let find = Command::new("find")
        .args([
            dir.as_os_str(),
            "-type".as_ref(),
            "f".as_ref(),
            "-print0".as_ref(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let out = Command::new("du")
        .args(["-cb", "--files0-from=-"])
        .stdin(find.stdout?)
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.lines().last()?.split_whitespace().next()?.parse().ok()
}

/// Bytes of all regular files below a folder, counted by hand, each inode once.
fn by_hand(dir: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            sum += by_hand(&entry.path(), seen);
        } else if meta.is_file() && seen.insert(meta.ino()) {
            sum += meta.len();
        }
    }
    sum
}

fn assert_every_byte_once(report: &Report, dir: &Path) {
    let rows: u64 = report.rows.iter().map(|r| r.bytes).sum();
    assert_eq!(report.bytes, rows + report.other.bytes);
    assert_eq!(report.bytes, by_hand(dir, &mut Default::default()));
    if let Some(du) = du(dir) {
        assert_eq!(report.bytes, du, "du");
    }
    for groups in [
        &report.by_user,
        &report.by_task,
        &report.by_base,
        &report.by_kind,
    ] {
        assert_eq!(groups.iter().map(|g| g.total.bytes).sum::<u64>(), rows);
    }
    for row in &report.rows {
        assert!(row.waste.total() <= row.bytes, "{row:?}");
    }
}

/// Breaks where a file is counted twice, not at all, or for the wrong adapter.
#[test]
fn every_byte_is_counted_once() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    lora(&at("ann/sum"), Dtype::F32, 2, 0.0);
    lora(&at("ann/sum/checkpoint-5"), Dtype::F32, 2, 1000.0);
    fs::write(at("ann/sum/optimizer.pt"), [0; 300]).unwrap();
    fs::write(at("ann/sum/README.md"), [0; 70]).unwrap();
    fs::create_dir(at("ann/sum/checkpoint-5/global_step5")).unwrap();
    fs::write(at("ann/sum/checkpoint-5/global_step5/x.pt"), [0; 500]).unwrap();
    fs::write(at("ann/sum/checkpoint-5/model.safetensors"), [0; 900]).unwrap();
    fs::write(at("ann/notes"), [0; 11]).unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1/tl6-qkv.tl");
    fs::write(at("ann/sum/own.tl"), fs::read(tiny).unwrap()).unwrap();
    // A second name of a counted inode, links to a file, to a folder (a loop), and to nothing.
    fs::create_dir(at("bob")).unwrap();
    lora(&at("bob/qa"), Dtype::F32, 2, 0.0);
    fs::remove_file(at("bob/qa/adapter_model.safetensors")).unwrap();
    fs::hard_link(
        at("ann/sum/adapter_model.safetensors"),
        at("bob/qa/adapter_model.safetensors"),
    )
    .unwrap();
    symlink(at("ann/notes"), at("bob/notes")).unwrap();
    symlink(dir.path(), at("bob/loop")).unwrap();
    symlink("nowhere", at("bob/dangling")).unwrap();

    let options = AuditOptions {
        owners: "{user}/{task}".parse().unwrap(),
        ..AuditOptions::default()
    };
    let report = run(dir.path(), &options);
    assert_every_byte_once(&report, dir.path());
    assert_eq!(report.total.adapters, 4);
    assert_eq!((report.other.files, report.other.bytes), (1, 11));
    assert_eq!(
        (report.folder_links, report.problems.len(), report.broken()),
        (1, 1, 1)
    );
    let (sum, step) = (row(&report, "ann/sum"), row(&report, "checkpoint-5"));
    assert_eq!(
        (sum.files, sum.waste.optimizer, sum.facts.kept),
        (4, 300, 70)
    );
    assert_eq!((step.waste.optimizer, step.waste.full_weights), (500, 900));
    assert_eq!(
        (step.user.as_deref(), step.task.as_deref()),
        (Some("ann"), Some("sum"))
    );
    let qa = row(&report, "bob/qa");
    assert_eq!((qa.linked_bytes, qa.what_if.len()), (sum.adapter_bytes, 0));
    assert_eq!(qa.waste, Waste::default());
    assert_eq!(
        row(&report, "own.tl").kind.as_ref().map(Kind::name),
        Some("tl6")
    );
    // The same folder twice, and a part of it, are the same bytes.
    let twice = audit(&[at("ann"), dir.path().to_owned(), at("bob")], &options).unwrap();
    assert_eq!(twice.bytes, report.bytes);
    assert_eq!(twice.total.adapters, report.total.adapters);
}

/// Breaks where a download cache's blobs are counted as nobody's, or twice.
#[test]
fn links_into_a_cache_belong_to_the_adapter() {
    let dir = TempDir::new().unwrap();
    let snapshot = dir.path().join("snapshots/rev");
    lora(&snapshot, Dtype::F16, 2, 0.0);
    let blobs = dir.path().join("blobs");
    fs::create_dir(&blobs).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::rename(
            snapshot.join(name),
            blobs.join(name.replace("adapter", "0")),
        )
        .unwrap();
        let target = Path::new("../../blobs").join(name.replace("adapter", "0"));
        symlink(target, snapshot.join(name)).unwrap();
    }
    let report = run(dir.path(), &AuditOptions::default());
    assert_every_byte_once(&report, dir.path());
    assert_eq!((report.rows.len(), report.other.files), (1, 0));
    assert_eq!(report.rows[0].kind.as_ref().map(Kind::name), Some("lora"));
    assert_eq!(report.rows[0].waste.dtype, 0);
}

/// Breaks where a byte is waste for two reasons, or equal tensors are found without reading them.
#[test]
fn duplicates_come_before_wide_numbers() {
    let dir = TempDir::new().unwrap();
    lora(&dir.path().join("a"), Dtype::F32, 2, 0.0);
    lora(&dir.path().join("b"), Dtype::F32, 2, 0.0);
    let numbers: u64 = (LAYERS * (3 * 2 * 8 + 2 * 16)) as u64;
    let report = run(dir.path(), &AuditOptions::default());
    let waste = report.total.waste;
    assert_eq!((waste.duplicates, waste.dtype), (0, 2 * numbers * 2));
    let report = run(dir.path(), &hashing());
    assert_eq!(report.rows[0].waste.duplicates, 0);
    assert_eq!(report.rows[0].waste.dtype, numbers * 2);
    assert_eq!(report.rows[1].waste.duplicates, numbers * 4);
    assert_eq!(report.rows[1].waste.dtype, 0);
    let saved: Vec<i64> = report
        .scenarios
        .iter()
        .filter(|s| !s.joint)
        .map(|s| s.saving)
        .collect();
    assert_eq!(
        saved[..2],
        [
            numbers as i64 * 4,
            numbers as i64 * 2 + numbers as i64 * 4 - numbers as i64 * 4
        ]
    );
}

/// Breaks where a projection that its seed does not make is called superfluous once it was read.
#[test]
fn projections_are_presumed_until_they_are_read() {
    let dir = TempDir::new().unwrap();
    let (a, b) = regenerate(7, 4, 8, 8, Fma::Fused).unwrap();
    vera(&dir.path().join("true"), 7, &a, &b);
    vera(&dir.path().join("true-too"), 7, &a, &b);
    vera(&dir.path().join("other"), 8, &a, &b);
    let size = 2 * 4 * 8 * 4;
    let waste = run(dir.path(), &AuditOptions::default()).total.waste;
    assert_eq!((waste.projections, waste.presumed), (3 * size, 3 * size));
    assert_eq!(waste.projection_copies, size);
    let report = run(dir.path(), &hashing());
    let waste = report.total.waste;
    assert_eq!((waste.projections, waste.presumed), (2 * size, 0));
    assert_eq!(row(&report, "true").waste.projections, size);
    assert_eq!(row(&report, "other").waste.projections, 0);
    assert_eq!(row(&report, "true").trained_parameters, Some(12));
}

/// Breaks where the audit and `tlkit params` count a method's numbers differently.
#[test]
fn scenarios_are_the_papers_formulas() {
    let dir = TempDir::new().unwrap();
    lora(dir.path(), Dtype::F32, 2, 0.0);
    let report = run(dir.path(), &AuditOptions::default());
    let shape = Shape {
        layers: LAYERS as u64,
        input: 8,
        outs: [8, 4, 4],
    };
    for method in Method::PRESETS {
        let found = report.rows[0]
            .what_if
            .iter()
            .find(|s| s.joint && s.form == Form::Method(method));
        let expected = shape.parameters(method, 2).unwrap();
        assert_eq!(found.and_then(|s| s.parameters), Some(expected), "{method}");
    }
    // Each target on its own: three A, and q's B has 8 rows, k's and v's 4.
    let alone = |method| retrained(&report.rows[0].facts.targets, method, false).unwrap();
    assert_eq!(alone(Method::Tl5).parameters, 3 * 2 * 8 + 2 * 16);
    assert_eq!(alone(Method::Vera).parameters, 3 * (3 * 2 + 16));
    assert_eq!(
        alone(Method::Lora).parameters,
        report.rows[0].parameters.unwrap()
    );
    assert_eq!(
        (report.rows[0].layers, report.rows[0].modules),
        (Some(3), Some(9))
    );
}

/// Breaks where zstd's saving is told without having been measured.
#[test]
fn zstd_is_there_only_where_measured() {
    let dir = TempDir::new().unwrap();
    lora(&dir.path().join("a"), Dtype::F32, 2, 0.0);
    lora(&dir.path().join("b"), Dtype::F32, 2, 0.0);
    let zstd = |report: Report| report.scenarios.into_iter().find(|s| s.form == Form::Zstd);
    assert!(zstd(run(dir.path(), &AuditOptions::default())).is_none());
    let options = AuditOptions {
        measure: Some(1),
        ..AuditOptions::default()
    };
    let measured = zstd(run(dir.path(), &options)).unwrap();
    assert_eq!((measured.adapters, measured.quality), (1, Quality::Exact));
}

/// Breaks where a hostile file stops the audit, is executed, or has no error of its own.
#[test]
fn broken_files_are_rows() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let weights = |name: &str, bytes: &[u8]| {
        lora(&at(name), Dtype::F32, 2, 0.0);
        fs::write(at(name).join("adapter_model.safetensors"), bytes).unwrap();
    };
    weights("cut", b"\x10\0\0");
    weights("huge", &[u64::MAX.to_le_bytes().as_slice(), b"{}"].concat());
    weights("json", b"\x02\0\0\0\0\0\0\0{]");
    weights("pickle", b"");
    fs::remove_file(at("pickle/adapter_model.safetensors")).unwrap();
    fs::write(at("pickle/adapter_model.bin"), b"\x80\x02cos\nsystem\n.").unwrap();
    weights("none", b"");
    fs::remove_file(at("none/adapter_model.safetensors")).unwrap();
    lora(&at("config"), Dtype::F32, 2, 0.0);
    fs::write(at("config/adapter_config.json"), "{nonsense").unwrap();
    lora(&at("missing"), Dtype::F32, 2, 0.0);
    fs::remove_file(at("missing/adapter_config.json")).unwrap();
    fs::write(at("not.tl"), "not").unwrap();
    lora(&at("good"), Dtype::F32, 2, 0.0);
    for options in [AuditOptions::default(), hashing()] {
        let report = run(dir.path(), &options);
        assert_every_byte_once(&report, dir.path());
        let codes: Vec<_> = report
            .rows
            .iter()
            .map(|r| {
                (
                    r.path.rsplit('/').next().unwrap(),
                    r.error.as_ref().map(|e| e.code),
                )
            })
            .collect();
        let expected = [
            ("config", Some("TL0301")),
            ("cut", Some("TL0101")),
            ("good", None),
            ("huge", Some("TL0102")),
            ("json", Some("TL0103")),
            ("missing", Some("TL0303")),
            ("none", Some("TL0303")),
            ("not.tl", Some("TL0101")),
            ("pickle", Some("TL0315")),
        ];
        assert_eq!(codes, expected);
        // What is still legible is told.
        assert!(row(&report, "config").parameters.is_some());
        assert!(
            report
                .rows
                .iter()
                .all(|r| r.error.is_none() || r.what_if.is_empty())
        );
    }
}

/// Breaks where an adapter of another type, or of none known, has no row.
#[test]
fn other_types_are_counted_by_name() {
    let dir = TempDir::new().unwrap();
    let config = r#"{"peft_type":"LOHA","r":4,"alpha":8,"base_model_name_or_path":"m-bnb-4bit"}"#;
    let tensors = [(
        "base_model.model.x.hada_w1_a".to_owned(),
        tensor(Dtype::F32, &[4, 8], 0.0),
    )];
    write(dir.path(), config, &tensors);
    let report = run(dir.path(), &AuditOptions::default());
    let row = &report.rows[0];
    assert_eq!(
        (
            row.kind.as_ref().map(Kind::name),
            row.rank,
            row.base.as_deref()
        ),
        (Some("loha"), Some(4), Some("m-bnb-4bit"))
    );
    assert_eq!(row.base_kind, Some("bitsandbytes 4 bit"));
    assert_eq!((row.parameters, row.error.is_none()), (Some(32), true));
    let names: Vec<_> = row.what_if.iter().map(|s| s.form.name()).collect();
    assert_eq!(
        names,
        ["thin", "fp16", "bf16"],
        "nobody knows what retraining it would take"
    );
}

/// Breaks where nothing to audit looks like an empty fleet.
/// Breaks where a folder of PEFT's Tied-LoRA is two adapters, or is not what its `.tl` is.
#[test]
fn a_tied_lora_of_peft_is_one_row() {
    let dir = TempDir::new().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters");
    let [both, alone] = ["ann/style", "bob/style"].map(|name| dir.path().join(name));
    let weights = [("w".to_owned(), tensor(Dtype::F32, &[4], 0.0))];
    write(&both, r#"{"peft_type":"TIED_LORA","r":4}"#, &weights);
    fs::copy(fixtures.join("style-tl6.tl"), both.join("adapter.tl")).unwrap();
    fs::create_dir_all(&alone).unwrap();
    fs::copy(fixtures.join("style-tl6.tl"), alone.join("adapter.tl")).unwrap();
    let report = run(dir.path(), &hashing());
    assert_eq!(report.rows.len(), 2, "{:?}", report.rows);
    let (folder, file) = (
        row(&report, "ann/style"),
        row(&report, "bob/style/adapter.tl"),
    );
    assert_eq!((folder.format, &folder.error), (Format::Peft, &None));
    assert_eq!((&folder.kind, folder.rank), (&file.kind, file.rank));
    assert_eq!(folder.kind, Some(Kind::Method(Method::Tl6)));
    assert_every_byte_once(&report, dir.path());
}

#[test]
fn nothing_found_is_an_error() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("x"), "x").unwrap();
    let code = |paths: &[PathBuf]| audit(paths, &AuditOptions::default()).unwrap_err().code();
    assert_eq!(code(&[dir.path().to_owned()]), Code::NothingToAudit);
    assert_eq!(code(&[dir.path().join("no")]), Code::NotFound);
    lora(dir.path(), Dtype::F32, 2, 0.0);
    let stop = AtomicBool::new(true);
    let options = AuditOptions {
        progress: Progress::new().stopped_by(&stop),
        ..AuditOptions::default()
    };
    let stopped = audit(&[dir.path().to_owned()], &options).unwrap_err();
    assert_eq!(stopped.code(), Code::Interrupted);
}

/// Breaks where the order of threads shows in a report.
#[test]
fn reports_do_not_depend_on_threads() {
    let dir = TempDir::new().unwrap();
    for n in 0..20 {
        lora(
            &dir.path().join(format!("u{}/t{n}", n % 3)),
            Dtype::F32,
            2,
            (n / 2) as f32,
        );
    }
    let json = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| serde_json::to_string(&run(dir.path(), &hashing())).unwrap())
    };
    assert_eq!(json(1), json(4));
}

/// Breaks where a column of the CSV is lost, or a name with a comma makes two.
#[test]
fn csv_has_every_row_and_column() {
    let dir = TempDir::new().unwrap();
    lora(&dir.path().join("fleet/a,\"b\""), Dtype::BF16, 2, 0.0);
    let report = run(&dir.path().join("fleet"), &AuditOptions::default());
    let file = dir.path().join("rows.csv");
    write_csv(&file, &report.rows, Existing::Refuse).unwrap();
    assert!(write_csv(&file, &report.rows, Existing::Refuse).is_err());
    let mut reader = csv::Reader::from_path(&file).unwrap();
    let names: Vec<String> = reader
        .headers()
        .unwrap()
        .iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(names.len(), COLUMNS.len());
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), 1);
    let value = |name: &str| &records[0][names.iter().position(|n| n == name).unwrap()];
    assert!(value("path").ends_with("a,\"b\""));
    assert_eq!(
        (value("dtype"), value("rank"), value("user")),
        ("BF16", "2", "")
    );
    assert_eq!(value("bytes"), report.bytes.to_string());
}

/// Breaks where the paper's example is not what its formulas say, or a huge fleet panics.
#[test]
fn plans_count_as_params_does() {
    let options = PlanOptions {
        users: 10_000,
        tasks: 5,
        shape: model_shape("LLaMA-2-7b").unwrap(),
        rank: 8,
        dtype: Dtype::BF16,
        prices: Prices::default(),
        rates: Vec::new(),
    };
    let plan_of = |options: &PlanOptions| plan(options);
    let forms = plan_of(&options).unwrap().forms;
    assert_eq!((forms[0].method, forms[0].parameters), ("lora", 4_194_304));
    assert_eq!(
        forms[0].fleet_bytes,
        50_000 * (2 * 4_194_304 + header_bytes(4))
    );
    let tl6 = forms.last().unwrap();
    assert_eq!(
        (tl6.method, tl6.parameters, tl6.shared_bytes),
        ("tl6", 524_544, 0)
    );
    assert_eq!(forms[1].shared_bytes, 2 * 8 * (4096 + 3 * 4096));
    assert_eq!(tl6.next_user_bytes, 5 * tl6.adapter_bytes);
    assert!(model_shape("gpt-9").is_err());
    let users = u64::MAX;
    assert_eq!(
        plan_of(&PlanOptions {
            users,
            ..options.clone()
        })
        .unwrap_err()
        .code(),
        Code::Usage
    );
    let dtype = Dtype::I64;
    assert!(plan_of(&PlanOptions { dtype, ..options }).is_err());
}

/// Breaks where a real fleet's bytes are not those that `du` and a hand count give.
#[test]
fn real_adapters_are_right_to_the_byte() {
    let (Some(adapters), Some(interop)) = (shared("adapters"), shared("peft-interop")) else {
        return;
    };
    for (dir, broken) in [(&adapters, 0), (&interop, 0)] {
        let report = run(dir, &AuditOptions::default());
        assert_every_byte_once(&report, dir);
        assert_eq!(report.total.broken, broken, "{}", dir.display());
    }
    let report = run(&adapters, &AuditOptions::default());
    let bin = row(&report, "bloom-560m-r8-bin");
    let file = adapters.join("bloom-560m-r8-bin/adapter_model.bin");
    assert_eq!(bin.adapter_bytes, fs::metadata(file).unwrap().len());
    assert_eq!((bin.parameters, bin.rank), (Some(786_432), Some(8)));
    let mlx = row(&report, "mlx-qwen2.5-0.5b-wyek1n");
    assert_eq!((mlx.format, mlx.parameters), (Format::Mlx, Some(90_112)));
    // PEFT's stored projections are what the seed makes.
    let waste = run(&interop, &hashing()).total.waste;
    assert_eq!(waste.presumed, 0);
    assert_eq!(
        waste.projections,
        run(&interop, &AuditOptions::default())
            .total
            .waste
            .projections
    );
}
