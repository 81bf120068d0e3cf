use super::*;

use rayon::ThreadPoolBuilder;
use tempfile::TempDir;
use tlkit::adapter::{Factor, TieGroup};
use tlkit::format::{WriteOptions, write_tl};
use tlkit::fs::Existing;
use tlkit::safetensors::write_tensors;
use tlkit::tensor::Dtype;
use tlkit::verify::{verify_adapters, verify_merged};

/// The small model of the fixtures as one file of the given dtype, and adapters in every form.
struct Workshop {
    dir: TempDir,
    base: PathBuf,
}

impl Workshop {
    fn new(dtype: Dtype) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.safetensors");
        let narrowed = |(name, t): (String, Tensor)| {
            let t = Tensor::narrowed(dtype, t.shape().to_vec(), &t.to_f32().unwrap());
            (name, t.unwrap())
        };
        let tensors = tensors(&fixtures().join("llama-tiny"));
        let tensors: Vec<_> = tensors.into_iter().map(narrowed).collect();
        write_tensors(&base, Existing::Refuse, &[("format", "pt")], &tensors).unwrap();
        Self { dir, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The `.tl` of each fixture, tl6, lora, vera; one with cores, and that in 8 bits.
    fn adapters(&self) -> Vec<PathBuf> {
        let from = fixtures().join("adapters");
        let made = ["lora", "vera"].map(|name| {
            to_tl(
                &from.join(name),
                &self.path(&format!("{name}.tl")),
                &self.base,
            )
            .unwrap()
        });
        let tl6 = from.join("style-tl6.tl");
        let [core, i8_rows] = ["core.tl", "i8-rows.tl"].map(|name| self.path(name));
        if !core.exists() {
            let mut adapter = open_adapter(&tl6, None, &NoBlobs).unwrap().adapter;
            adapter.groups.iter_mut().for_each(with_core);
            write_tl(&core, &adapter, &WriteOptions::default()).unwrap();
            let adapter = adapter.to_dtype(Dtype::I8).unwrap();
            write_tl(&i8_rows, &adapter, &WriteOptions::default()).unwrap();
        }
        [vec![tl6, core, i8_rows], made.to_vec()].concat()
    }

    fn merge(&self, adapters: &[(&Path, f64)], name: &str) -> Vec<u8> {
        let out = self.path(name);
        merge(&self.base, adapters, &out, Rounding::Peft).unwrap();
        fs::read(out).unwrap()
    }
}

/// Puts a core with no zeros and no symmetry in the place of u.
fn with_core(group: &mut TieGroup) {
    let (layers, rank) = (group.layers.as_ref().unwrap().len(), group.rank);
    let values: Vec<f32> = (0..layers * rank * rank)
        .map(|i| ((i * 37 + 11) % 64) as f32 / 48.0 - 0.6)
        .collect();
    let core = Tensor::from_f32(vec![layers, rank, rank], &values).unwrap();
    group.core = Some(Factor::trained(core));
    group.u = None;
}

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// Breaks where the export of a `.tl` does anything else to a model than the `.tl`, in one bit.
#[test]
fn a_tl_and_its_export_merge_to_the_same_bytes() {
    for dtype in DTYPES {
        let shop = Workshop::new(dtype);
        for (i, tl) in shop.adapters().iter().enumerate() {
            let export = shop.path(&format!("export-{i}"));
            let export = to_peft(tl, &export, &shop.base, Form::Faithful).unwrap();
            let one = shop.merge(&[(tl, 1.0)], &format!("tl-{i}.safetensors"));
            let two = shop.merge(&[(&export, 1.0)], &format!("peft-{i}.safetensors"));
            assert!(one == two, "{dtype} {}", tl.display());
        }
    }
}

/// Breaks where a result depends on the number of threads.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    for dtype in DTYPES {
        let shop = Workshop::new(dtype);
        let adapters = shop.adapters();
        let all: Vec<(&Path, f64)> = adapters.iter().map(|a| (a.as_path(), 0.7)).collect();
        let outputs = [1, 2, 3].map(|threads| {
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| shop.merge(&all, &format!("{threads}.safetensors")))
        });
        assert!(
            outputs[0] == outputs[1] && outputs[0] == outputs[2],
            "{dtype}"
        );
    }
}

/// Breaks where the verifier does not recognise a merge, or names a rounding it does not have.
#[test]
fn the_verifier_recognises_each_rounding() {
    for dtype in DTYPES {
        let shop = Workshop::new(dtype);
        let base = Checkpoint::open(&shop.base).unwrap();
        let tl = fixtures().join("adapters/style-tl6.tl");
        let inputs = [MergeInput::open(&tl, &base, &NoBlobs).unwrap()];
        for (rounding, name) in [(Rounding::Peft, "peft"), (Rounding::PeftSafe, "peft-safe")] {
            let out = shop.path(&format!("{name}.safetensors"));
            merge(&shop.base, &[(&tl, 1.0)], &out, rounding).unwrap();
            let merged = Checkpoint::open(&out).unwrap();
            let options = PlanOptions::default();
            let report =
                verify_merged(&base, &inputs, &merged, &options, &Control::default()).unwrap();
            // An f32 update has nothing to round away, so that both roundings agree.
            let obeys = if dtype == Dtype::F32 { "both" } else { name };
            assert_eq!(
                (report.obeys.map(|o| o.to_string()), report.is_equal(0)),
                (Some(obeys.to_owned()), true),
                "{dtype}"
            );
        }
    }
}

/// Breaks where the portable form is more than a rounding away from the adapter.
#[test]
fn the_portable_form_is_equal_to_rounding() {
    let shop = Workshop::new(Dtype::BF16);
    let lora = fixtures().join("adapters/lora");
    let odd = shop.path("odd");
    fs::create_dir(&odd).unwrap();
    let weights = "adapter_model.safetensors";
    fs::write(odd.join(weights), fs::read(lora.join(weights)).unwrap()).unwrap();
    let config = fs::read_to_string(lora.join("adapter_config.json")).unwrap();
    // A scale of 3: folding it into B rounds.
    let config = config.replace("\"lora_alpha\": 8", "\"lora_alpha\": 6");
    fs::write(odd.join("adapter_config.json"), config).unwrap();
    let mut all = shop.adapters();
    all.push(to_tl(&odd, &shop.path("odd.tl"), &shop.base).unwrap());
    for (i, tl) in all.iter().enumerate() {
        let portable = shop.path(&format!("portable-{i}"));
        let portable = to_peft(tl, &portable, &shop.base, Form::Portable).unwrap();
        let one = open_adapter(tl, None, &NoBlobs).unwrap().adapter;
        let two = open_adapter(&portable, None, &NoBlobs).unwrap().adapter;
        let none = BTreeMap::new();
        let report = verify_adapters((&one, &none), (&two, &none)).unwrap();
        assert!(
            report.is_equal(1e-6),
            "{}: {}",
            tl.display(),
            report.max_relative
        );
    }
}

/// Breaks where several weighted adapters are not summed in f32, in order, before the one rounding.
#[test]
fn weighted_adapters_follow_the_naive_oracle() {
    let from = fixtures().join("adapters");
    // Scales from the configs: alpha / r of `style-peft`, alpha / √r of `lora`.
    let adapters = [
        (from.join("style-peft"), 0.3, 4.0 / 4.0),
        (from.join("lora"), -1.25, 8.0 / 2.0),
    ];
    let factors = adapters.clone().map(|(path, weight, scale)| {
        (
            tensors(&path.join("adapter_model.safetensors")),
            (weight * scale) as f32,
        )
    });
    for dtype in DTYPES {
        let shop = Workshop::new(dtype);
        let weighted = adapters.each_ref().map(|(p, w, _)| (p.as_path(), *w));
        shop.merge(&weighted, "merged.safetensors");
        let merged = tensors(&shop.path("merged.safetensors"));
        let mut changed = 0;
        for (name, weight) in tensors(&shop.base) {
            let module = name.strip_suffix(".weight").unwrap();
            let mut values = weight.to_f32().unwrap();
            let mut sum = vec![0.0f32; values.len()];
            for (tensors, scale) in &factors {
                let part =
                    |p: &str| tensors.get(&format!("base_model.model.{module}.lora_{p}.weight"));
                if let (Some(a), Some(b)) = (part("A"), part("B")) {
                    add_product(&mut sum, a, b, *scale);
                    changed += 1;
                }
            }
            values.iter_mut().zip(&sum).for_each(|(w, d)| *w += d);
            let expected = Tensor::narrowed(dtype, weight.shape().to_vec(), &values).unwrap();
            assert!(merged[&name].same_bytes(&expected), "{dtype} {name}");
        }
        assert_eq!(changed, 12 + 8);
    }
}

/// `sum += scale · B · A`, each product a chain of fused multiply-adds over the rank.
fn add_product(sum: &mut [f32], a: &Tensor, b: &Tensor, scale: f32) {
    let (rank, n) = (a.shape()[0], a.shape()[1]);
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    for (at, total) in sum.iter_mut().enumerate() {
        let (i, j) = (at / n, at % n);
        let chain = |d: f32, k: usize| b[i * rank + k].mul_add(a[k * n + j], d);
        *total += scale * (0..rank).fold(0.0, chain);
    }
}
