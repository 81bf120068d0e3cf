//! Projections that the class has apart and the base as one tensor: the same as where the base has them apart, too.

use super::*;

const CONFIG: &str = r#"{"model_type": "gte", "architectures": ["GteModel"]}"#;
const JOINT: &str = "encoder.layer.0.attention.qkv_proj";
const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

fn path(part: &str) -> String {
    format!("layers.0.self_attn.{part}")
}

/// The base with one tensor, and with three.
fn bases(dtype: Dtype) -> (Bench, Bench) {
    let (mut rows, mut entries) = (Vec::new(), Vec::new());
    let mut apart = Vec::new();
    for (part, seed) in PARTS.iter().zip(1..) {
        let weight = tensor(dtype, &[4, 6], seed, 1.0);
        let bias = tensor(dtype, &[4], seed + 5, 1.0);
        rows.extend(weight.to_f32().unwrap());
        entries.extend(bias.to_f32().unwrap());
        apart.push((format!("{}.weight", path(part)), weight));
        apart.push((format!("{}.bias", path(part)), bias));
    }
    let joint = vec![
        (
            format!("{JOINT}.bias"),
            Tensor::narrowed(dtype, vec![12], &entries).unwrap(),
        ),
        (
            format!("{JOINT}.weight"),
            Tensor::narrowed(dtype, vec![12, 6], &rows).unwrap(),
        ),
    ];
    let model = |tensors: &[_]| Bench::model(tensors, 1, Some(CONFIG));
    (model(&joint), model(&apart))
}

/// Fails unless what comes of the joint tensors is, part by part, what comes of those apart.
fn check_joint(inputs: &[MergeInput], options: &PlanOptions) {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let (joint, apart) = bases(dtype);
        joint.merge_with(inputs, options).unwrap();
        apart.merge_with(inputs, options).unwrap();
        let (joint, apart) = (read(&joint.out()), read(&apart.out()));
        for end in ["weight", "bias"] {
            let whole = &joint[&format!("{JOINT}.{end}")];
            for (n, part) in PARTS.iter().enumerate() {
                let own = whole.slice_first(4 * n..4 * (n + 1)).unwrap();
                assert!(
                    own.same_bytes(&apart[&format!("{}.{end}", path(part))]),
                    "{part} {end} {dtype}"
                );
            }
        }
    }
}

fn dora(part: &str, seed: u64) -> MergeInput {
    let mut dora = input(vec![lora(&path(part), 4, 6, ModuleKind::Linear, seed)]);
    let magnitudes = tensor(Dtype::F32, &[4], seed + 7, 2.0);
    dora.magnitudes.insert(path(part), magnitudes);
    dora.label = part.to_owned();
    dora
}

fn bias(part: &str, role: ExtraRole, seed: u64) -> MergeInput {
    let mut bias = extra(
        &format!("{}.bias", path(part)),
        role,
        tensor(Dtype::F32, &[4], seed, 1.0),
    );
    bias.label = format!("{part}'s bias");
    bias
}

/// Breaks where the lengths of rows are taken of others than the part's, or rows beside it change.
#[test]
fn a_dora_of_a_part_has_the_parts_own_rows() {
    let inputs = [
        dora("k_proj", 1),
        input(vec![lora(&path("v_proj"), 4, 6, ModuleKind::Linear, 9)]),
    ];
    check_joint(&inputs, &PlanOptions::default());
    let two = [dora("q_proj", 1), dora("q_proj", 2)];
    let e = bases(Dtype::F32).0.refusal(&two);
    assert_eq!(e.code(), Code::AdaptersConflict);
    let mut long = dora("q_proj", 1);
    let magnitudes = tensor(Dtype::F32, &[5], 3, 1.0);
    long.magnitudes.insert(path("q_proj"), magnitudes);
    let e = bases(Dtype::F32).0.refusal(&[long]);
    assert_eq!(e.code(), Code::FactorShape);
}

/// Breaks where a bias is added to, or takes, another part's entries.
#[test]
fn biases_of_parts_are_added_and_replaced() {
    let added = ExtraRole::AddBias(Scaling::one(2), 2);
    let inputs = [
        bias("q_proj", ExtraRole::Bias, 1),
        bias("v_proj", ExtraRole::Replace, 2),
        bias("k_proj", added, 3),
        bias("k_proj", added, 4),
    ];
    check_joint(&inputs, &PlanOptions::default());
    let twice = [
        bias("q_proj", ExtraRole::Bias, 1),
        bias("q_proj", ExtraRole::Bias, 2),
    ];
    let e = bases(Dtype::F32).0.refusal(&twice);
    assert_eq!(e.code(), Code::AdaptersConflict);
    let whole = || {
        let values = tensor(Dtype::F32, &[12], 3, 1.0);
        extra(&format!("{JOINT}.bias"), ExtraRole::Replace, values)
    };
    for both in [
        [whole(), bias("q_proj", ExtraRole::Bias, 1)],
        [bias("q_proj", ExtraRole::Bias, 1), whole()],
    ] {
        let e = bases(Dtype::F32).0.refusal(&both);
        assert_eq!(e.code(), Code::AdaptersConflict);
    }
    let mut long = bias("q_proj", ExtraRole::Bias, 1);
    long.adapter.extras[0].tensor = tensor(Dtype::F32, &[5], 3, 1.0);
    let e = bases(Dtype::F32).0.refusal(&[long]);
    assert_eq!(e.code(), Code::BaseShape);
}
