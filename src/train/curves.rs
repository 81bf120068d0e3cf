//! Whole runs in one form and in another: how far their loss curves may be apart.

use candle_core::{DType, Device};

use crate::adapter::Method;
use crate::model::Model;
use crate::model::ops::{composing, host};
use crate::progress::Progress;
use crate::tensor::Dtype;
use crate::testing::fixture;
use crate::text::Example;
use crate::train::optim::{AdamWOptions, Schedule};
use crate::train::training_loop::{Data, Event, LoopConfig, Observer, train};
use crate::train::{AdapterSpec, TrainingAdapter, TrainingModel};

/// Largest difference of the loss at any step, as a share of it, that `spec/guide-gpu.md` and these
/// tests allow between two forms in f32.
const NARROW: f64 = 1e-4;
/// The same where weights and activations of one are bf16.
const HALF: f64 = 3e-2;

const STEPS: u64 = 40;

#[derive(Default)]
struct Curve(Vec<f64>);

impl Observer for Curve {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step(line) = event {
            self.0.push(line.loss);
        }
    }
}

/// Sequences that count up in steps of 1 to 5, of three lengths, a third of whose tokens are
/// prompts without a loss.
fn examples(vocabulary: usize) -> Vec<Example> {
    (0..24)
        .map(|e: usize| {
            let (length, step) = ([17, 17, 30][e % 3], 1 + e % 5);
            Example {
                tokens: (0..length)
                    .map(|i| ((e * 7 + i * step) % vocabulary) as u32)
                    .collect(),
                predicted: (0..length).map(|i| i > length / 3).collect(),
            }
        })
        .collect()
}

/// The loss of each step of a run, with accumulation over two micro-batches.
fn curve(name: &str, method: Method, device: &Device, dtype: DType, recompute: bool) -> Vec<f64> {
    curve_of(STEPS, name, method, device, dtype, recompute)
}

fn curve_of(
    steps: u64,
    name: &str,
    method: Method,
    device: &Device,
    dtype: DType,
    recompute: bool,
) -> Vec<f64> {
    let model = Model::open_as(&fixture(name), device, dtype).unwrap();
    curve_on(model, steps, method, recompute)
}

fn curve_on(model: Model, steps: u64, method: Method, recompute: bool) -> Vec<f64> {
    let examples = examples(model.config().vocabulary);
    let template = AdapterSpec {
        trained: method.trains().unwrap().to_vec(),
        tied: method.is_tied().unwrap(),
        layers: None,
        targets: vec!["all".into()],
        joint: true,
        rank: 4,
        alpha: 4.0,
        rule: crate::adapter::ScalingRule::AlphaOverRank,
        init: crate::train::Init::Default,
        seed: 3,
    };
    let in_training = TrainingAdapter::new(&template, &model).unwrap();
    let start = in_training.start().unwrap();
    let config = LoopConfig {
        schedule: Schedule {
            peak: if method == Method::Vera { 0.1 } else { 0.02 },
            min: 1e-3,
            warmup: steps / 10,
            total: steps,
        },
        rates: Vec::new(),
        adamw: AdamWOptions {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        clip: 1.0,
        batch_size: 6,
        global_batch: 12,
        eval_every: steps,
        patience: 0,
        min_delta: 0.0,
        seed: 5,
        checkpoint_every: steps,
    };
    let data = Data {
        train: &examples,
        valid: &[],
    };
    let mut curve = Curve::default();
    let mut objective = TrainingModel::new(model, in_training, recompute);
    let progress = Progress::new();
    train(
        &mut objective,
        start,
        data,
        &config,
        None,
        &mut curve,
        progress,
    )
    .unwrap();
    assert_eq!(curve.0.len(), steps as usize);
    let (first, last) = (curve.0[0], curve.0[curve.0.len() - 1]);
    assert!(
        steps < STEPS || last < 0.9 * first,
        "{first} to {last} is no curve"
    );
    curve.0
}

/// That two curves nowhere differ by more than a share of `bound`.
fn agree(what: &str, a: &[f64], b: &[f64], bound: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let apart = (a.iter().zip(b)).map(|(a, b)| (a - b).abs() / a);
    let apart = apart.fold(0.0, f64::max);
    assert!(apart < bound, "{what}: {a:?} and {b:?} differ by {apart}");
}

const METHODS: [Method; 3] = [Method::Lora, Method::Tl6, Method::Vera];

/// Breaks where the form that a GPU runs computes another loss or gradient than the fused one.
#[test]
fn composed_curves_are_the_fused_ones() {
    for method in METHODS {
        let name = "llama-tiny";
        let run = |dtype| curve(name, method, &Device::Cpu, dtype, false);
        let fused = run(DType::F32);
        let composed = composing::with(|| run(DType::F32));
        agree(&format!("{method} f32"), &fused, &composed, NARROW);
        let half = run(DType::BF16);
        agree(&format!("{method} bf16"), &fused, &half, HALF);
        if method == Method::Tl6 {
            let again = curve(name, method, &Device::Cpu, DType::BF16, true);
            assert_eq!(half, again, "{method}: recomputation changes the curve");
        }
    }
}

/// Breaks where a family's peculiarity (biases, head norms, windows, a tied head, LayerNorm1p, a
/// partial rotation) is wrong in the form that a GPU runs.
#[test]
fn composed_curves_of_every_family_are_the_fused_ones() {
    for name in [
        "qwen2",
        "qwen3",
        "mistral-window",
        "llama-gqa-tied",
        "megatron-gpt-gqa",
    ] {
        let name = &format!("models/{name}");
        let run = |dtype| curve(name, Method::Tl6, &Device::Cpu, dtype, false);
        let fused = run(DType::F32);
        let composed = composing::with(|| run(DType::F32));
        agree(&format!("{name} f32"), &fused, &composed, NARROW);
        agree(&format!("{name} bf16"), &fused, &run(DType::BF16), HALF);
    }
}

/// Breaks where the calls of the kernels, or what is made of their results, are not what the
/// decoder needs: the kernels run as they would on a GPU, in the same calls, on the processor.
#[test]
fn curves_with_the_kernels_are_the_fused_ones() {
    for (name, method) in [
        ("llama-tiny", Method::Tl6),
        ("models/mistral-window", Method::Lora),
    ] {
        let run = |dtype| curve_of(2, name, method, &Device::Cpu, dtype, true);
        let fused = run(DType::F32);
        let calls = host::calls();
        let with = |dtype| composing::with(|| host::with(|| run(dtype)));
        agree(&format!("{name} f32"), &fused, &with(DType::F32), NARROW);
        agree(&format!("{name} bf16"), &fused, &with(DType::BF16), HALF);
        assert!(host::calls() > calls + 100, "the kernels did not run");
    }
}

/// Breaks where bf16 products on the processor lead a run elsewhere than f32 ones, or its losses depend on the number of
/// threads. Where the processor has no instructions for them it says so on standard error.
#[test]
fn curves_with_bf16_products_are_the_f32_ones() {
    use std::io::Write as _;
    let open = |dtype| Model::open(&fixture("llama-tiny"), &Device::Cpu, Some(dtype)).unwrap();
    if open(Dtype::BF16).dtype() != DType::F32 {
        let text = "skipped, nothing is proven of bf16 on the processor: it has neither AMX nor AVX-512-BF16\n";
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    }
    for method in METHODS {
        let run = |dtype| curve_on(open(dtype), STEPS, method, false);
        let narrow = run(Dtype::BF16);
        agree(&format!("{method}"), &run(Dtype::F32), &narrow, HALF);
    }
    let [one, three] = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let run = || curve_on(open(Dtype::BF16), 3, Method::Tl6, true);
        pool.unwrap().install(run)
    });
    assert_eq!(one, three, "threads change the curve");
}

/// The same on a GPU: in a build with the feature `cuda` where there is one. Where there is none
/// it says so on standard error, whatever captures the output of tests, and with `TLKIT_GPU=1` it
/// fails.
#[cfg_attr(not(feature = "cuda"), ignore = "this build has no CUDA backend")]
#[test]
fn curves_of_a_gpu_are_those_of_the_processor() {
    use std::io::Write as _;
    let device = match crate::model::device(Some("cuda")) {
        Ok(device) => device,
        Err(error) => {
            assert!(std::env::var_os("TLKIT_GPU").is_none(), "{error}");
            let text = format!("skipped, nothing is proven of a GPU: {error}\n");
            std::io::stderr().write_all(text.as_bytes()).unwrap();
            return;
        }
    };
    for method in METHODS {
        let run = |device: &Device, dtype, recompute| {
            curve("llama-tiny", method, device, dtype, recompute)
        };
        let fused = run(&Device::Cpu, DType::F32, false);
        let f32 = run(&device, DType::F32, false);
        agree(&format!("{method} f32"), &fused, &f32, NARROW);
        for recompute in [false, true] {
            let bf16 = run(&device, DType::BF16, recompute);
            agree(&format!("{method} bf16"), &fused, &bf16, HALF);
        }
    }
}
