//! Which files of a model's folder are parts of it, that no merge touches, and which hold the same
//! weights in another form, or none that belong to a model.

use std::path::{Component, Path};

use crate::fs::check_inside;
use crate::safetensors::{Checkpoint, SafetensorsFile};

/// Formats of whole models: what is exported to them does not change with the weights.
const EXPORTED: [&str; 11] = [
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "keras",
    "msgpack",
    "mlmodel",
    "onnx",
    "onnx_data",
    "ot",
    "tflite",
];
/// Formats of weights, of a whole model or of a part.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "pkl"];
/// Beginnings of the names that files of a whole model's weights have, beside a model.
const WHOLE: [&str; 9] = [
    "pytorch_model",
    "model",
    "consolidated",
    "diffusion_pytorch_model",
    "tf_model",
    "flax_model",
    "rust_model",
    "openvino_model",
    "ggml-model",
];
/// Folders that hold a model in another form.
const FORMS: [&str; 8] = [
    "coreml", "gguf", "metal", "mlx", "onnx", "openvino", "original", "tflite",
];
/// Beginnings of the names of what a training run keeps.
const OF_A_RUN: [&str; 7] = [
    "optimizer.",
    "scheduler.",
    "scaler.",
    "rng_state",
    "random_states",
    "training_args.",
    "trainer_state.",
];

const OTHER_FORM: &str = "weights that were not merged";

/// Why a file of the base's folder does not belong into the output; `None` for one that goes along.
///
/// The model's own shards and index are not asked for here.
pub(super) fn left_out(base: &Checkpoint, path: &Path) -> Option<&'static str> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if name.starts_with(".tlkit") || name.contains(".tlkit-") {
        return Some("belongs to tlkit");
    }
    let folders = path.parent().into_iter().flat_map(Path::components);
    let folders: Vec<String> = folders
        .filter(|c| matches!(c, Component::Normal(_)))
        .map(|c| c.as_os_str().to_string_lossy().to_ascii_lowercase())
        .collect();
    let of_a_run = |f: &String| f.starts_with("checkpoint-") || f.starts_with("global_step");
    let weights = WEIGHTS.contains(&&*extension);
    if folders.iter().any(of_a_run) || weights && OF_A_RUN.iter().any(|s| name.starts_with(s)) {
        return Some("of a training run");
    }
    if EXPORTED.contains(&&*extension) {
        return Some(OTHER_FORM);
    }
    let in_other_form = folders.iter().any(|f| FORMS.contains(&f.as_str()));
    if in_other_form && weights {
        return Some(OTHER_FORM);
    }
    if folders.is_empty() {
        if name.starts_with("adapter_") {
            return Some("belongs to an adapter");
        }
        if name.ends_with(".index.json") {
            return Some("index of weights that were not merged");
        }
        if weights && WHOLE.iter().any(|whole| is_called(&name, whole)) {
            return Some(OTHER_FORM);
        }
    }
    let same =
        extension == "safetensors" && holds_the_same(base, path).unwrap_or(folders.is_empty());
    same.then_some(OTHER_FORM)
}

/// Whether a file is called `whole`, or that with something after it that is no word.
fn is_called(name: &str, whole: &str) -> bool {
    let rest = name.strip_prefix(whole);
    rest.is_some_and(|r| !r.starts_with(|c: char| c.is_alphanumeric()))
}

/// Whether a file has a tensor of the base, by name and shape: the same model's weights once more.
/// `None` where it cannot be read.
fn holds_the_same(base: &Checkpoint, path: &Path) -> Option<bool> {
    let full = base.path().join(path);
    let inside = check_inside(base.path(), &full);
    let file = inside.and_then(|()| SafetensorsFile::open(&full)).ok()?;
    let mut tensors = file.header().tensors.iter();
    Some(tensors.any(|t| base.info(&t.name).is_some_and(|own| own.shape == t.shape)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::safetensors::encode_header;
    use crate::tensor::Dtype;

    fn file(path: &Path, tensor: &str) {
        let shape = [1];
        let mut bytes = encode_header(&[], [(tensor, Dtype::U8, &shape[..], 1)], 8);
        bytes.push(0);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Breaks where a part of a model is lost in a merge, or stale weights go along.
    #[test]
    fn parts_go_along_and_other_forms_do_not() {
        let dir = tempfile::tempdir().unwrap();
        file(&dir.path().join("model.safetensors"), "a.weight");
        for (path, tensor) in [
            ("2_Dense/model.safetensors", "linear.weight"),
            ("speaker.safetensors", "speaker"),
            ("fp16/model.safetensors", "a.weight"),
            ("ema.safetensors", "a.weight"),
        ] {
            file(&dir.path().join(path), tensor);
        }
        let base = Checkpoint::open(dir.path()).unwrap();
        let left = |path: &str| left_out(&base, Path::new(path));
        for part in [
            "config.json",
            "tokenizer.model",
            "modeling_own.py",
            "spk_dict.pt",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "text_encoder/model.safetensors.index.json",
            "speech-lora/adapter_model.safetensors",
            "speaker.safetensors",
            "modelling.bin",
            "original/tokenizer.model",
            "onnx/config.json",
        ] {
            assert_eq!(left(part), None, "{part}");
        }
        for other in [
            "pytorch_model.bin",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "model.fp16.safetensors",
            "consolidated.safetensors",
            "original/consolidated.00.pth",
            "metal/model.bin",
            "onnx/model_q4.onnx",
            "model-q4.gguf",
            "tf_model.h5",
            "flax_model.msgpack",
            "openvino/openvino_model.bin",
            "fp16/model.safetensors",
            "ema.safetensors",
            "adapter_config.json",
            "adapter_model.safetensors",
            "optimizer.pt",
            "rng_state_0.pth",
            "checkpoint-10/model.safetensors",
            "checkpoint-10/config.json",
            ".tlkit-lock",
        ] {
            assert!(left(other).is_some(), "{other}");
        }
    }
}
