//! An adapter to a GGUF file, as llama.cpp loads it with `--lora`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::adapter::{Adapter, Method, Module, ModuleKind};
use crate::base::llama_cpp::{GgufWeight, LlamaCpp};
use crate::compute::transpose;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::BlobSource;
use crate::fs::Existing;
use crate::gguf::{TensorInfo, Value, Writer};
use crate::open::{Opened, open_adapter};
use crate::safetensors::Checkpoint;
use crate::tensor::{Dtype, Tensor};

/// What to do with what llama.cpp's adapters do not hold.
const MERGE: &str = "merge it, and convert the merged model";

/// How to write it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ToGgufOptions {
    /// Element type of the factors: F32, F16 or BF16.
    pub dtype: Dtype,
    /// What to do with an existing file.
    pub existing: Existing,
    /// Prefixes of adapter names and what the base has for them, as for a merge.
    pub renames: Vec<(String, String)>,
}

impl Default for ToGgufOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::F32,
            existing: Existing::Refuse,
            renames: Vec::new(),
        }
    }
}

/// Report of [`tied_to_gguf`].
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ToGguf {
    /// What llama.cpp calls the architecture.
    pub architecture: String,
    /// The preset that the adapter follows.
    #[serde(serialize_with = "super::method_name::serialize")]
    pub method: Method,
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Bytes of the adapter.
    pub bytes_before: u64,
    /// Bytes of the file.
    pub bytes_after: u64,
    /// The adapter's identity.
    pub root: String,
    /// What was noticed about the adapter.
    pub notes: Vec<String>,
    /// The file written.
    pub output: PathBuf,
}

/// Converts a `.tl` or a PEFT directory to llama.cpp's adapter format: A' (r, in) and B' (out, r) of every
/// module with its scale in B', each at its own rank. Of the base, `config.json` is read; its weights only
/// where the adapter alone does not say enough (VeRA without its projections).
///
/// # Errors
/// Those of [`open_adapter`]; [`Code::UnsupportedDora`], [`Code::ExportImpossible`] for what llama.cpp's
/// adapters do not hold, [`Code::TiedEmbedding`] for a tensor that it has twice;
/// [`Code::UnsupportedModel`], [`Code::ModelConfig`], [`Code::UnmatchedModule`], [`Code::BaseShape`] where
/// base and adapter do not fit; [`Code::NonFinite`]; those of [`Writer`].
pub fn tied_to_gguf(
    input: &Path,
    output: &Path,
    base: &Path,
    blobs: &dyn BlobSource,
    options: &ToGgufOptions,
) -> Result<ToGguf> {
    let model = LlamaCpp::in_folder(base, &options.renames)?;
    let opened = open(input, base, blobs)?;
    if let Some(module) = opened.magnitudes.keys().next() {
        let message = "DoRA depends on the base's weights, and llama.cpp has no place for it";
        return Err(Error::new(Code::UnsupportedDora, message)
            .tensor(module)
            .hint(MERGE)
            .file(input));
    }
    let written = write(&model, &opened.adapter, &opened.identity, output, options);
    let (tensors, bytes) = written.map_err(|e| match e.path() {
        Some(_) => e,
        None => e.file(input),
    })?;
    Ok(ToGguf {
        architecture: model.arch().to_owned(),
        method: opened.adapter.method(),
        modules: opened.adapter.modules().len(),
        tensors,
        bytes_before: opened.bytes,
        bytes_after: bytes,
        root: opened.identity.to_string(),
        notes: opened.notes,
        output: output.to_owned(),
    })
}

/// As [`tied_to_gguf`], of an adapter in memory whose root is given; the bytes of the file.
///
/// # Errors
/// As [`tied_to_gguf`].
pub fn adapter_to_gguf(
    adapter: &Adapter,
    root: &Digest,
    output: &Path,
    base: &Path,
    options: &ToGgufOptions,
) -> Result<u64> {
    let model = LlamaCpp::in_folder(base, &options.renames)?;
    Ok(write(&model, adapter, root, output, options)?.1)
}

/// Writes the file; its tensors and bytes.
fn write(
    model: &LlamaCpp,
    adapter: &Adapter,
    root: &Digest,
    output: &Path,
    options: &ToGgufOptions,
) -> Result<(usize, u64)> {
    check_kinds(adapter)?;
    let modules = adapter.modules();
    let weights = weights(model, adapter, &modules)?;
    let pairs = modules.iter().zip(&weights);
    let infos: Vec<TensorInfo> = pairs
        .flat_map(|(module, weight)| infos(adapter, module, weight, options.dtype))
        .collect();
    let metadata = [
        ("general.architecture", Value::Text(model.arch().to_owned())),
        ("general.type", Value::Text("adapter".to_owned())),
        ("adapter.type", Value::Text("lora".to_owned())),
        // 0 stands for a scale of 1.
        ("adapter.lora.alpha", Value::F32(0.0)),
        ("tlkit.root", Value::Text(root.to_string())),
    ];
    let mut writer = Writer::create(output, options.existing, &metadata, &infos)?;
    for (module, weight) in modules.iter().zip(&weights) {
        for tensor in pair(adapter, module, weight, options.dtype)? {
            writer.push(tensor.data())?;
        }
    }
    Ok((infos.len(), writer.finish()?))
}

/// The adapter, with the weights of the base only where it needs them.
fn open(input: &Path, base: &Path, blobs: &dyn BlobSource) -> Result<Opened> {
    match open_adapter(input, None, blobs) {
        Err(e) if e.code() == Code::NeedsBase => {
            open_adapter(input, Some(&Checkpoint::open(base)?), blobs)
        }
        opened => opened,
    }
}

/// Refuses what is not a low-rank update of a linear module or an embedding.
fn check_kinds(adapter: &Adapter) -> Result<()> {
    let impossible = |message: &str, name: &str| {
        Err(Error::new(Code::ExportImpossible, message)
            .tensor(name)
            .hint(MERGE))
    };
    if let Some(extra) = adapter.extras.first() {
        let message = "goes with the adapter, and llama.cpp's adapters hold low-rank updates alone";
        return impossible(message, &extra.name);
    }
    let mut targets = adapter.groups.iter().flat_map(|g| &g.targets);
    let other = |kind| !matches!(kind, ModuleKind::Linear | ModuleKind::Embedding);
    match targets.find(|t| other(t.kind)) {
        Some(t) if t.kind.is_parameter() => {
            impossible("an update of experts, which is not converted", &t.module)
        }
        Some(t) => impossible(
            "stored (in, out), as none of the models that are converted",
            &t.module,
        ),
        None if adapter.groups.is_empty() => impossible("the adapter has no low-rank update", ""),
        None => Ok(()),
    }
}

/// What each module is in llama.cpp.
fn weights(model: &LlamaCpp, adapter: &Adapter, modules: &[Module]) -> Result<Vec<GgufWeight>> {
    let mut taken = BTreeSet::new();
    let found = modules.iter().map(|module| {
        let weight = model.weight(&module.path)?;
        let group = &adapter.groups[module.group];
        let target = &group.targets[module.target];
        if !taken.insert(weight.name.clone()) {
            let message = format!("a second update of llama.cpp's `{}`", weight.name);
            return Err(Error::new(Code::AmbiguousModule, message).tensor(&module.path));
        }
        let embedding = target.kind == ModuleKind::Embedding;
        let sizes = (target.out, group.in_features);
        if sizes != (weight.out, weight.in_features) || embedding != weight.flipped {
            let message = format!(
                "is {} × {}, and the base's config.json makes it {} × {}",
                sizes.0, sizes.1, weight.out, weight.in_features
            );
            return Err(Error::new(Code::BaseShape, message).tensor(&module.path));
        }
        match weight.interleaved {
            Some(heads) if !weight.out.is_multiple_of(2 * heads) => {
                let message = format!("{} rows are not {heads} heads of two halves", weight.out);
                Err(Error::new(Code::ModelConfig, message).tensor(&module.path))
            }
            _ => Ok(weight),
        }
    });
    found.collect()
}

/// The two tensors of a module, before any value is computed.
fn infos(adapter: &Adapter, module: &Module, weight: &GgufWeight, dtype: Dtype) -> [TensorInfo; 2] {
    let rank = adapter.groups[module.group].rank;
    let info = |end: &str, shape: [usize; 2]| TensorInfo {
        name: format!("{}.weight.lora_{end}", weight.name),
        dtype,
        shape: shape.to_vec(),
    };
    let right = match weight.flipped {
        true => [weight.in_features, rank],
        false => [rank, weight.in_features],
    };
    [info("a", right), info("b", [weight.out, rank])]
}

/// Their values.
fn pair(
    adapter: &Adapter,
    module: &Module,
    weight: &GgufWeight,
    dtype: Dtype,
) -> Result<[Tensor; 2]> {
    let mut factors = adapter.groups[module.group].low_rank(module.layer, module.target)?;
    let s = factors.scale as f32;
    if s != 1.0 {
        factors.left.iter_mut().for_each(|x| *x *= s);
    }
    if let Some(heads) = weight.interleaved {
        factors.left = interleaved(&factors.left, heads, factors.rank);
    }
    if weight.flipped {
        factors.right = transpose(&factors.right, factors.rank, factors.in_features)?;
    }
    let [right, left] = infos(adapter, module, weight, dtype);
    let tensor = |info: TensorInfo, values: &[f32]| {
        Tensor::stored(dtype, info.shape, values).map_err(|e| e.tensor(info.name))
    };
    Ok([tensor(right, &factors.right)?, tensor(left, &factors.left)?])
}

/// Rows of each head one from its first half and one from its second, in turn.
fn interleaved(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head = values.len() / heads.max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head.max(1)) {
        let (first, second) = head.split_at(head.len() / 2);
        let second = second.chunks_exact(columns.max(1));
        for (one, other) in first.chunks_exact(columns.max(1)).zip(second) {
            out.extend_from_slice(one);
            out.extend_from_slice(other);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::format::NoBlobs;
    use crate::gguf::read::read;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name)
    }

    #[test]
    fn halves_of_heads_alternate() {
        let rows: Vec<f32> = (0u8..16).map(f32::from).collect();
        let got = interleaved(&rows, 2, 2);
        let want = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        assert_eq!(got, want.map(|x: u8| f32::from(x)));
        assert_eq!(
            transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3).unwrap(),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }

    /// Breaks where a factor is another, is padded or unscaled, or the base's weights are asked for.
    #[test]
    fn every_module_has_its_scaled_factors() {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture("llama-tiny");
        let only = dir.path().join("base");
        fs::create_dir(&only).unwrap();
        fs::copy(base.join("config.json"), only.join("config.json")).unwrap();
        let (input, output) = (fixture("adapters/lora"), dir.path().join("a.gguf"));
        let options = ToGgufOptions::default();
        let report = tied_to_gguf(&input, &output, &only, &NoBlobs, &options).unwrap();
        let file = read(&fs::read(&output).unwrap()).unwrap();
        assert_eq!(file.tensors.len(), report.tensors);
        assert_eq!(file.metadata[0].1, Value::Text("llama".into()));
        let adapter = open_adapter(&input, None, &NoBlobs).unwrap().adapter;
        let model = LlamaCpp::in_folder(&base, &[]).unwrap();
        for (module, pair) in adapter.modules().iter().zip(file.tensors.chunks(2)) {
            let factors = adapter.groups[module.group]
                .low_rank(module.layer, module.target)
                .unwrap();
            let weight = model.weight(&module.path).unwrap();
            let s = factors.scale as f32;
            let mut left: Vec<f32> = factors.left.iter().map(|x| x * s).collect();
            if let Some(heads) = weight.interleaved {
                left = interleaved(&left, heads, factors.rank);
            }
            let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            assert_eq!(pair[0].0.name, format!("{}.weight.lora_a", weight.name));
            assert_eq!(pair[0].0.shape, [factors.rank, factors.in_features]);
            assert_eq!(pair[0].1, bytes(&factors.right));
            assert_eq!(pair[1].0.shape, [factors.out, factors.rank]);
            assert_eq!(pair[1].1, bytes(&left));
        }
    }

    /// Breaks where a refused conversion leaves a file, or another base is not noticed.
    #[test]
    fn another_base_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.gguf");
        let input = fixture("adapters/style-tl6.tl");
        let options = ToGgufOptions::default();
        let convert =
            |base: &str| tied_to_gguf(&input, &output, &fixture(base), &NoBlobs, &options);
        let refused = |base: &str| convert(base).unwrap_err().code();
        assert_eq!(refused("models/qwen2"), Code::BaseShape);
        assert_eq!(refused("models/megatron-gpt"), Code::UnsupportedModel);
        assert!(!output.exists());
        convert("llama-tiny").unwrap();
        assert_eq!(refused("llama-tiny"), Code::OutputExists);
    }
}
