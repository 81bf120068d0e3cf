//! Trained weights that projects save beside PEFT's own files, in an adapter's folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::files::{PICKLE_FILE, WEIGHTS_FILE};
use super::json::cut;
use super::names::strip_prefix;
use super::pickle::{Limits, read_torch_archive, read_torch_shapes};
use crate::base::shapes::BaseShapes;
use crate::error::{Code, Error, Result};
use crate::fs::check_inside;
use crate::safetensors::SafetensorsFile;
use crate::tensor::Tensor;

/// What files with plain tensors of the model are called: LLaVA's, LongLoRA's, and what scripts call
/// the like. They replace the base's, as `modules_to_save` does.
const PLAIN: [&str; 8] = [
    "embed_tokens",
    "extra_trainables",
    "lm_head",
    "mm_projector",
    "modules_to_save",
    "non_lora_state_dict",
    "non_lora_trainables",
    "trainable_params",
];
/// What files are called whose tensors have a meaning of their own: rows of new tokens, heads that a
/// trainer puts on the model.
const OWN_MEANING: [&str; 6] = [
    "embeddings",
    "new_embeddings",
    "soft_prompt",
    "v_head",
    "value_head",
    "reward_head",
];
/// Beginnings of the names of files that hold no trained weights of the adapter.
const NOT_TRAINED: [&str; 9] = [
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "training_args",
    "trainer_state",
    "dataset",
    "tokenizer",
];
const EXTENSIONS: [&str; 6] = ["safetensors", "bin", "pt", "pth", "ckpt", "pkl"];

/// What was found beside the adapter.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Full tensors under the base's own names, each with its file.
    pub(super) tensors: BTreeMap<String, (PathBuf, Tensor)>,
    /// Files that are of no adapter, as far as their names and tensors tell.
    pub(super) notes: Vec<String>,
    /// Bytes of the files that were read.
    pub(super) bytes: u64,
}

/// Looks for weights beside the adapter's own. Where `base` is at hand, what is read is of it.
///
/// # Errors
/// [`Code::TrainedBeside`] for trained weights that cannot be merged, by name; what reading fails with.
pub(super) fn read_beside(dir: &Path, base: Option<&dyn BaseShapes>) -> Result<Beside> {
    let mut found = Beside::default();
    let entries = fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_candidate(name) && dir.join(name).is_file())
        .collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        check_inside(dir, &path)?;
        found.take(&path, &name, base).map_err(|e| e.file(&path))?;
    }
    Ok(found)
}

/// Whether a file may hold trained weights, by its name alone.
fn is_candidate(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    let own = [WEIGHTS_FILE, PICKLE_FILE].contains(&name);
    EXTENSIONS.contains(&extension)
        && !own
        && !name.starts_with('.')
        && !NOT_TRAINED.iter().any(|start| name.starts_with(start))
}

impl Beside {
    fn take(&mut self, path: &Path, name: &str, base: Option<&dyn BaseShapes>) -> Result<()> {
        let stem = name.split('.').next().unwrap_or_default();
        if OWN_MEANING.contains(&stem) {
            return Err(trained(
                "holds trained weights that are not the base's own tensors",
            ));
        }
        if PLAIN.contains(&stem) {
            return self.add(path, base);
        }
        // Whole models beside their adapters are common, and their own.
        let whole = ["model", "pytorch_model", "consolidated"];
        let is_whole = whole.iter().any(|w| {
            stem.strip_prefix(w)
                .is_some_and(|r| !r.starts_with(char::is_alphabetic))
        });
        let names = if is_whole {
            Vec::new()
        } else {
            names_in(path).unwrap_or_default()
        };
        let of_model = |tensor: &&String| {
            let own = strip_prefix(tensor);
            own.contains("lora_")
                || own.len() < tensor.len()
                || base.is_some_and(|b| b.has_tensor(own))
        };
        if let Some(tensor) = names.iter().find(of_model) {
            return Err(trained("holds weights of the model or of an adapter").tensor(tensor));
        }
        self.notes.push(format!(
            "`{}` is beside the adapter, and nothing of it is used: PEFT does not load it",
            cut(name)
        ));
        Ok(())
    }

    /// Takes in the plain tensors of a file.
    fn add(&mut self, path: &Path, base: Option<&dyn BaseShapes>) -> Result<()> {
        for (key, tensor) in tensors_in(path)? {
            let name = strip_prefix(&key).to_owned();
            if base.is_some_and(|b| !b.has_tensor(&name)) {
                let what = "holds trained weights of a module that the base does not have";
                return Err(trained(what).tensor(name));
            }
            if self
                .tensors
                .insert(name, (path.to_owned(), tensor))
                .is_some()
            {
                return Err(trained("holds weights that another file holds too").tensor(key));
            }
        }
        let meta = path.metadata().map_err(|e| Error::io(path, "stat", e))?;
        self.bytes += meta.len();
        Ok(())
    }
}

fn trained(what: &str) -> Error {
    Error::new(Code::TrainedBeside, what).hint(
        "the adapter was trained with it; move the file elsewhere if it is to be left out on purpose",
    )
}

fn tensors_in(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        let file = SafetensorsFile::open(path)?;
        let infos = file.header().tensors.iter();
        return infos
            .map(|info| Ok((info.name.clone(), file.mapped(info)?)))
            .collect();
    }
    read_torch_archive(path, Limits::default())
}

fn names_in(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        let file = SafetensorsFile::open(path)?;
        return Ok(file
            .header()
            .tensors
            .iter()
            .map(|t| t.name.clone())
            .collect());
    }
    let shapes = read_torch_shapes(path, Limits::default())?;
    Ok(shapes.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::encode_header;
    use crate::tensor::Dtype;

    struct Base;

    impl BaseShapes for Base {
        fn weight_shape(&self, _: &str) -> Option<Vec<usize>> {
            None
        }

        fn has_tensor(&self, name: &str) -> bool {
            name == "model.norm.weight"
        }

        fn has_module(&self, _: &str) -> bool {
            false
        }
    }

    fn look(name: &str, tensor: &str) -> Result<Beside> {
        let dir = tempfile::tempdir().unwrap();
        let shape = [1];
        let mut bytes = encode_header(&[], [(tensor, Dtype::F32, &shape[..], 4)], 8);
        bytes.extend([0; 4]);
        fs::write(dir.path().join(name), bytes).unwrap();
        fs::create_dir(dir.path().join("folder.bin")).unwrap();
        read_beside(dir.path(), Some(&Base))
    }

    /// Breaks where trained weights beside an adapter are left out without a word, or a trainer's
    /// own files are taken for such.
    #[test]
    fn weights_beside_an_adapter_are_taken_refused_or_told() {
        let own = "base_model.model.model.norm.weight";
        let taken = look("trainable_params.safetensors", own).unwrap();
        assert_eq!(taken.tensors.len(), 1);
        assert!(taken.tensors.contains_key("model.norm.weight"));
        for (name, tensor) in [
            (
                "non_lora_trainables.safetensors",
                "model.mm_projector.0.weight",
            ),
            ("new_embeddings.safetensors", "input_embeddings"),
            ("value_head.safetensors", "v_head.summary.weight"),
            (
                "adapter_model_1.safetensors",
                "base_model.model.q.lora_A.weight",
            ),
            ("extra.safetensors", "model.norm.weight"),
        ] {
            let error = look(name, tensor).unwrap_err();
            assert_eq!(error.code(), Code::TrainedBeside, "{name}");
        }
        for name in ["model.safetensors", "pytorch_model.bin", "metrics.pt"] {
            let told = look(name, "a").unwrap();
            assert_eq!((told.tensors.len(), told.notes.len()), (0, 1), "{name}");
        }
        for name in [
            "adapter_model.safetensors",
            "optimizer.pt",
            "training_args.bin",
            "rng_state_0.pth",
            "tokenizer.model",
            "README.md",
        ] {
            let silent = look(name, own).unwrap();
            assert_eq!((silent.tensors.len(), silent.notes.len()), (0, 0), "{name}");
        }
    }
}
