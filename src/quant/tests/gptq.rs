use half::{bf16, f16};
use safetensors::tensor::TensorView;

use super::super::Quantised;
use crate::safetensors::Checkpoint;
use crate::tensor::Dtype;

/// More rows than are turned at once, and no multiple of them.
const OUTPUTS: usize = 96;
const INPUTS: usize = 384;

fn random(seed: &mut u32) -> u32 {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *seed >> 8
}

/// Integers of `bits` bits, the lowest bits first, as words.
fn pack(bits: usize, codes: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut words = vec![0; 1];
    for (i, code) in codes.enumerate() {
        let (word, shift) = (i * bits / 32, i * bits % 32);
        words.resize(words.len().max(word + 1), 0);
        words[word] |= code << shift;
        if shift + bits > 32 {
            words.push(code >> (32 - shift));
        }
    }
    words
}

fn bytes(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// One weight, with the group of each input, and its numbers by the definition.
fn weight(bits: usize, of: &[u32]) -> (tempfile::TempDir, Vec<f16>) {
    let mut seed = bits as u32;
    let groups = 1 + *of.iter().max().unwrap() as usize;
    let most = 1 << bits;
    let codes: Vec<u32> = (0..OUTPUTS * INPUTS)
        .map(|_| random(&mut seed) % most)
        .collect();
    let zeros: Vec<u32> = (0..groups * OUTPUTS)
        .map(|_| random(&mut seed) % most)
        .collect();
    let scale = |_| f16::from_f32((random(&mut seed) % 1000) as f32 * 1.7e-5 - 0.004);
    let scales: Vec<f16> = (0..groups * OUTPUTS).map(scale).collect();
    let rows: Vec<Vec<u32>> = codes
        .chunks(INPUTS)
        .map(|row| pack(bits, row.iter().copied()))
        .collect();
    let qweight = bytes((0..rows[0].len()).flat_map(|w| rows.iter().map(move |row| row[w])));
    let qzeros = bytes(
        zeros
            .chunks(OUTPUTS)
            .flat_map(|row| pack(bits, row.iter().copied())),
    );
    let stored: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let g_idx = bytes(of.iter().copied());
    let tensors = [
        (
            "a.qweight",
            safetensors::Dtype::I32,
            vec![rows[0].len(), OUTPUTS],
            &qweight,
        ),
        (
            "a.qzeros",
            safetensors::Dtype::I32,
            vec![groups, OUTPUTS * bits / 32],
            &qzeros,
        ),
        (
            "a.scales",
            safetensors::Dtype::F16,
            vec![groups, OUTPUTS],
            &stored,
        ),
        ("a.g_idx", safetensors::Dtype::I32, vec![INPUTS], &g_idx),
    ];
    let tensors = tensors
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap()));
    let folder = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(tensors, None, &folder.path().join("model.safetensors"))
        .unwrap();
    let config = format!(
        r#"{{"quantization_config": {{"quant_method": "gptq", "bits": {bits}, "checkpoint_format": "gptq_v2"}}}}"#
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let number = |i: usize| {
        let place = of[i % INPUTS] as usize * OUTPUTS + i / INPUTS;
        f16::from_f32((codes[i] as f32 - zeros[place] as f32) * scales[place].to_f32())
    };
    (folder, (0..codes.len()).map(number).collect())
}

/// Breaks where a code is another input's, output's or group's, in weights that are more than one tile, of any number
/// of bits, whatever the order of the groups, and however many there are.
#[test]
fn every_layout_is_code_less_zero_times_scale() {
    let mut seed = 7;
    let in_order: Vec<u32> = (0..INPUTS as u32).map(|i| i / 128).collect();
    let small: Vec<u32> = (0..INPUTS as u32).map(|i| i / 8).collect();
    let short_last: Vec<u32> = (0..INPUTS as u32).map(|i| i / 100).collect();
    let mut by_size: Vec<u32> = in_order.clone();
    for i in (1..INPUTS).rev() {
        by_size.swap(i, random(&mut seed) as usize % (i + 1));
    }
    for bits in [2, 3, 4, 8] {
        for of in [&in_order, &small, &short_last, &by_size, &vec![0; INPUTS]] {
            let (folder, numbers) = weight(bits, of);
            let base = Checkpoint::open(folder.path()).unwrap();
            let quantised = Quantised::of(&base).unwrap().unwrap();
            let weight = &quantised.weights()[0];
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                let want: Vec<u8> = match dtype {
                    Dtype::F32 => numbers
                        .iter()
                        .flat_map(|n| n.to_f32().to_le_bytes())
                        .collect(),
                    Dtype::F16 => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
                    _ => numbers
                        .iter()
                        .flat_map(|n| bf16::from_f32(n.to_f32()).to_le_bytes())
                        .collect(),
                };
                let size = dtype.bits() / 8;
                for rows in [0..OUTPUTS, 5..40, 17..18] {
                    let elements = rows.start * INPUTS..rows.end * INPUTS;
                    let want = &want[elements.start * size..elements.end * size];
                    let mut got = vec![0; want.len()];
                    weight.fill(elements, dtype, &mut got).unwrap();
                    assert!(
                        got == want,
                        "{bits} bits, {dtype}, rows {rows:?}, groups {:?}",
                        &of[..9]
                    );
                }
            }
        }
    }
}
