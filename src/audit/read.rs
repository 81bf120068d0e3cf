//! One adapter into the parts of a row, from headers: configs, safetensors headers, pickles without
//! tensors.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::describe::{Description, peft_contents};
use super::facts::Recipe;
use super::leftover::{Leftover, leftover};
use super::parts::{FileSums, Parts};
use super::problem::Problem;
use super::row::{Format, Kind};
use super::scan::{File, Found};
use super::sum::add;
use super::tensors::{
    Contents, StoredTensor, TensorSums, packed_len, read_pickle, read_safetensors,
};
use crate::adapter::Method;
use crate::error::{Code, Error, Result};
use crate::format::{Stored, TlFile, packed_name};
use crate::fs::read_limited;
use crate::mlx::{MLX_WEIGHTS_FILE, is_mlx_dir};
use crate::open::import_any;
use crate::peft::config::MAX_CONFIG_BYTES;
use crate::peft::projection::Fma;
use crate::peft::{CONFIG_FILE, PICKLE_FILE, PeftConfig, WEIGHTS_FILE, tl_beside};
use crate::safetensors::SafetensorsFile;

/// What of the tensors' own bytes is read, beyond headers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Depth {
    /// Digests of PEFT tensors.
    pub(super) hash: bool,
    /// What zstd makes of the weights.
    pub(super) measure: bool,
}

/// The parts of an adapter. What cannot be read is said in their `error`.
pub(super) fn read(found: &Found, depth: Depth) -> Parts {
    let format = match found.is_file {
        true if found.path.extension().is_some_and(|e| e == "nemo") => Format::Nemo,
        true => Format::Tl,
        false if is_mlx_dir(&found.path) => Format::Mlx,
        false => Format::Peft,
    };
    let empty = Parts::new(found.path.display().to_string(), format, sum_files(found));
    let mut parts = match format {
        Format::Mlx | Format::Nemo => read_foreign(&found.path, depth, empty),
        Format::Tl => read_tl(&found.path, depth, empty),
        // A broken or missing `.tl` leaves what the config says, and the row to be told so by whoever opens it.
        _ => match tl_beside(&found.path) {
            Ok(Some(tl)) => read_tl(&tl, depth, empty),
            _ => read_peft(found, depth, empty),
        },
    };
    if weights(found).is_some_and(|w| !w.counted) {
        // Its bytes are another row's, and so is what could be saved of them.
        parts.description.lora = None;
        parts.contents = Contents::default();
        parts.packed = None;
    }
    parts
}

/// Sums the files by what they are.
fn sum_files(found: &Found) -> FileSums {
    let weights = weights(found);
    let mut sums = FileSums {
        files: found.files.len() as u64,
        adapter_bytes: weights.map_or(0, |w| w.len),
        ..FileSums::default()
    };
    for file in &found.files {
        if !file.counted {
            add(&mut sums.linked_bytes, file.len);
            continue;
        }
        add(&mut sums.bytes, file.len);
        add(&mut sums.disk_bytes, file.disk);
        let inner = file.path.strip_prefix(&found.path).unwrap_or(&file.path);
        match leftover(inner) {
            _ if found.is_file || weights.is_some_and(|w| w.path == file.path) => {}
            Some(Leftover::FullWeights) => add(&mut sums.full_weights, file.len),
            Some(Leftover::Optimizer) => add(&mut sums.optimizer, file.len),
            None if inner == Path::new(CONFIG_FILE) => {}
            None => add(&mut sums.kept, file.len),
        }
    }
    sums
}

/// The file that holds the weights; PEFT prefers safetensors where both forms exist.
fn weights(found: &Found) -> Option<&File> {
    if found.is_file {
        return found.files.first();
    }
    [WEIGHTS_FILE, PICKLE_FILE, MLX_WEIGHTS_FILE]
        .iter()
        .find_map(|name| {
            let path = found.path.join(name);
            found.files.iter().find(|f| f.path == path)
        })
}

fn read_tl(path: &Path, depth: Depth, empty: Parts) -> Parts {
    let read = || {
        let file = TlFile::open(path)?;
        let adapter = file.manifest().adapter().map_err(|e| e.file(path))?;
        let (tensors, seeded) = stored_tensors(&file)?;
        Ok((file, Description::of_tl(&adapter), tensors, seeded))
    };
    let (file, description, tensors, seeded) = match read() {
        Ok(read) => read,
        Err(error) => return failed(empty, &error),
    };
    let header = file.file().header();
    let known = tensors.iter().map(|tensor| {
        let wide = match header.get(&tensor.name) {
            Some(_) => tensor.wide(),
            // Packed bytes say nothing of what a narrower type would take.
            None => 0,
        };
        let recipe = tensor.digest.filter(|_| seeded.contains(&tensor.name));
        (tensor, wide, recipe.map(Recipe::Seeded))
    });
    let raw = file.storage().values().any(|s| *s == Stored::Raw);
    let packed = match depth.measure && raw {
        true => Some(packed_len(file.file(), header.tensors.iter())),
        false => None,
    };
    with_packed(
        Parts {
            description,
            sums: Some(TensorSums::of(&tensors)),
            contents: Contents::of(known),
            ..empty
        },
        packed,
    )
}

/// The tensors that a `.tl` stores, and the names of those that have a seed.
fn stored_tensors(file: &TlFile) -> Result<(Vec<StoredTensor>, BTreeSet<String>)> {
    let storage = file.storage();
    let header = file.file().header();
    let (mut tensors, mut seeded) = (Vec::new(), BTreeSet::new());
    for (name, tensor) in file.manifest().tensors() {
        let info = match storage.get(name.as_str()) {
            Some(Stored::Raw) => header.get(name),
            Some(Stored::Packed) => header.get(&packed_name(name)),
            _ => None,
        };
        let Some(info) = info else { continue };
        if tensor.seed()?.is_some() {
            seeded.insert(name.clone());
        }
        tensors.push(StoredTensor::of_manifest(name, tensor, info.byte_len())?);
    }
    Ok((tensors, seeded))
}

/// An adapter of another tool than PEFT, by what it is read as.
fn read_foreign(path: &Path, depth: Depth, empty: Parts) -> Parts {
    let (imported, _) = match import_any(path, None, Fma::Fused, None) {
        Ok(read) => read,
        Err(error) => return failed(empty, &error.file(path)),
    };
    let tensors = StoredTensor::of_adapter(&imported.adapter, depth.hash);
    Parts {
        description: Description::of_tl(&imported.adapter),
        sums: Some(TensorSums::of(&tensors)),
        contents: Contents::of(tensors.iter().map(|t| (t, t.wide(), None))),
        ..empty
    }
}

fn failed(parts: Parts, error: &Error) -> Parts {
    Parts {
        error: Some(Problem::from(error)),
        ..parts
    }
}

/// With what zstd makes of the weights, where it was asked; its failure is the one that is told.
fn with_packed(parts: Parts, packed: Option<Result<(u64, u64)>>) -> Parts {
    match packed.transpose() {
        Ok(packed) => Parts { packed, ..parts },
        Err(error) => failed(parts, &error),
    }
}

fn read_peft(found: &Found, depth: Depth, empty: Parts) -> Parts {
    // The weights are looked at even where the config is broken, and the other way round; the
    // config's failure is the one that is told.
    let config = read_config(&found.path);
    let weights = read_weights(found, depth.hash);
    let error = config.as_ref().err().or(weights.as_ref().err());
    let error = error.map(Problem::from);
    let config = config.unwrap_or_default();
    let Ok((tensors, file)) = weights else {
        return Parts {
            description: config.description,
            error,
            ..empty
        };
    };
    let sums = TensorSums::of(&tensors);
    let parts = Parts {
        description: config.description.with_peft(&tensors, &sums),
        sums: Some(sums),
        contents: peft_contents(&tensors, config.projection_key),
        error,
        ..empty
    };
    let file = file.filter(|_| depth.measure);
    let packed = file.map(|file| packed_len(&file, file.header().tensors.iter()));
    with_packed(parts, packed)
}

/// What a PEFT adapter's config says.
#[derive(Default)]
struct Config {
    description: Description,
    /// The seed of a VeRA adapter's projections.
    projection_key: Option<u64>,
}

fn read_config(dir: &Path) -> Result<Config> {
    let path = dir.join(CONFIG_FILE);
    let bytes = match read_limited(&path, MAX_CONFIG_BYTES as u64) {
        Err(e) if e.code() == Code::NotFound => {
            let message = format!("the folder has weights and no {CONFIG_FILE}");
            return Err(Error::new(Code::NoAdapter, message).file(dir));
        }
        bytes => bytes?,
    };
    let known = PeftConfig::from_slice(&bytes);
    let base = known.as_ref().ok().map(PeftConfig::common);
    let base = base.and_then(|common| common.base_model_name_or_path.clone());
    let described = |method, rank: u64, alpha| Description {
        kind: Some(Kind::Method(method)),
        base,
        rank: Some(rank),
        alpha,
        ..Description::default()
    };
    Ok(match known {
        Ok(PeftConfig::Lora(config)) if config.trainable_tokens.are_alone() => Config {
            description: unsupported(&serde_json::from_slice(&bytes).unwrap_or_default()),
            projection_key: None,
        },
        Ok(PeftConfig::Lora(config)) => Config {
            description: described(Method::Lora, config.r.into(), config.lora_alpha),
            projection_key: None,
        },
        Ok(PeftConfig::Vera(config)) => Config {
            description: described(Method::Vera, config.r.into(), None),
            projection_key: Some(config.projection_prng_key),
        },
        // Types that cannot be converted can be counted all the same.
        Err(e) if e.code() == Code::UnsupportedPeftType => Config {
            description: unsupported(&serde_json::from_slice(&bytes).unwrap_or_default()),
            projection_key: None,
        },
        Err(e) => return Err(e.file(&path)),
    })
}

/// What the config of a type says that cannot be converted.
fn unsupported(json: &Value) -> Description {
    let text = |key: &str| json.get(key).and_then(Value::as_str);
    let kind = text("peft_type").map(str::to_lowercase);
    Description {
        kind: kind.as_deref().map(Kind::from),
        base: text("base_model_name_or_path").map(str::to_owned),
        rank: json.get("r").and_then(Value::as_u64),
        alpha: ["lora_alpha", "alpha"]
            .iter()
            .find_map(|key| json.get(key).and_then(Value::as_f64)),
        ..Description::default()
    }
}

/// The tensors of a PEFT adapter, and the file where it is safetensors.
type Weights = (Vec<StoredTensor>, Option<SafetensorsFile>);

fn read_weights(found: &Found, hash: bool) -> Result<Weights> {
    let Some(file) = weights(found) else {
        let message = format!("the folder has neither {WEIGHTS_FILE} nor {PICKLE_FILE}");
        return Err(Error::new(Code::NoAdapter, message).file(&found.path));
    };
    if file.path.ends_with(PICKLE_FILE) {
        return Ok((read_pickle(&file.path, hash)?, None));
    }
    let file = SafetensorsFile::open(&file.path)?;
    Ok((read_safetensors(&file, hash)?, Some(file)))
}
