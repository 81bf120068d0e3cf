//! The tensors of an adapter as they are stored: from headers, and their bytes where asked.

use std::collections::BTreeMap;
use std::path::Path;

use super::facts::{HashedTensor, Projection, Recipe};
use super::sum::add;
use crate::adapter::{Adapter, Factor, FactorName};
use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::format::{MAX_TENSOR_BYTES, ManifestTensor, pack_tensor};
use crate::peft::pickle::{Limits, read_torch_archive, read_torch_shapes};
use crate::safetensors::{SafetensorsFile, TensorInfo};
use crate::tensor::Dtype;

/// A tensor as it is stored.
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// Whether it is stored as the codes of its numbers.
    pub(super) is_coded: bool,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: u64,
    pub(super) digest: Option<Digest>,
}

impl StoredTensor {
    /// A tensor of a `.tl` manifest that takes `bytes` as it is stored.
    pub(super) fn of_manifest(name: &str, tensor: &ManifestTensor, bytes: u64) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            dtype: tensor.stored()?.0,
            is_coded: tensor.is_coded(),
            shape: tensor.shape.clone(),
            bytes,
            digest: Some(tensor.sha256),
        })
    }

    /// The factors and whole tensors of an adapter in memory, each once.
    pub(super) fn of_adapter(adapter: &Adapter, hash: bool) -> Vec<Self> {
        let groups = adapter.groups.iter().enumerate();
        let factors = groups.flat_map(|(g, group)| {
            let named = move |(name, factor): (FactorName, &Factor)| {
                (format!("g{g}.{}", name.name()), factor.tensor.clone())
            };
            group.factors().map(named).collect::<Vec<_>>()
        });
        let extras = adapter.extras.iter();
        let extras = extras.map(|e| (e.name.clone(), e.tensor.clone()));
        let all = factors.chain(extras).map(|(name, tensor)| Self {
            name,
            dtype: tensor.dtype(),
            is_coded: tensor.coded_bytes().is_some(),
            shape: tensor.shape().to_vec(),
            bytes: tensor.byte_len(),
            digest: hash.then(|| Digest::of(tensor.data())),
        });
        all.collect()
    }

    pub(super) fn elements(&self) -> u64 {
        self.shape
            .iter()
            .fold(1u64, |n, e| n.saturating_mul(*e as u64))
    }

    /// What a 16-bit form would save.
    pub(super) fn wide(&self) -> u64 {
        match self.dtype {
            _ if self.is_coded => 0,
            Dtype::F32 => self.bytes / 2,
            Dtype::F64 => self.bytes / 4 * 3,
            _ => 0,
        }
    }
}

/// The tensors of a safetensors file, with digests where their bytes are to be read.
pub(super) fn read_safetensors(file: &SafetensorsFile, hash: bool) -> Result<Vec<StoredTensor>> {
    let stored = |info: &TensorInfo| {
        Ok(StoredTensor {
            name: info.name.clone(),
            dtype: info.dtype,
            is_coded: false,
            shape: info.shape.clone(),
            bytes: info.byte_len(),
            digest: match hash {
                true => Some(digest(file, info)?),
                false => None,
            },
        })
    };
    file.header().tensors.iter().map(stored).collect()
}

pub(super) fn read_pickle(path: &Path, hash: bool) -> Result<Vec<StoredTensor>> {
    let tensors = match hash {
        true => Some(read_torch_archive(path, Limits::default())?),
        false => None,
    };
    let shapes = read_torch_shapes(path, Limits::default())?;
    let item = |(name, (dtype, shape)): (String, (Dtype, Vec<usize>))| {
        let tensor = tensors.as_ref().and_then(|t| t.get(&name));
        Ok(StoredTensor {
            bytes: crate::tensor::byte_len(dtype, &shape)?,
            digest: tensor.map(|t| Digest::of(t.data())),
            name,
            dtype,
            is_coded: false,
            shape,
        })
    };
    shapes.into_iter().map(item).collect()
}

/// SHA-256 of a tensor, read in small pieces.
fn digest(file: &SafetensorsFile, info: &TensorInfo) -> Result<Digest> {
    let range = file.file_range(info);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; info.byte_len().min(1 << 20) as usize];
    let mut at = range.start;
    while at < range.end {
        let n = (range.end - at).min(buffer.len() as u64);
        let part = buffer.get_mut(..n as usize).unwrap_or_default();
        file.read_at(part, at)?;
        hasher.update(part);
        at += n;
    }
    Ok(hasher.finish())
}

/// Bytes of the tensors, and of what zstd makes of each, byte-shuffled as in a packed `.tl`.
pub(super) fn packed_len<'t>(
    file: &SafetensorsFile,
    infos: impl Iterator<Item = &'t TensorInfo>,
) -> Result<(u64, u64)> {
    let (mut raw, mut packed) = (0, 0);
    for info in infos {
        let len = info.byte_len();
        raw += len;
        if info.dtype.bits() < 8 || len > MAX_TENSOR_BYTES {
            packed += len;
            continue;
        }
        let mut bytes = vec![0; len as usize];
        file.read_at(&mut bytes, file.file_range(info).start)?;
        packed += (pack_tensor(info.dtype, &bytes)?.len() as u64).min(len);
    }
    Ok((raw, packed))
}

/// What any list of tensors says.
#[derive(Debug, Default)]
pub(super) struct TensorSums {
    /// Element types, the one with most bytes first.
    pub(super) dtype: Option<String>,
    /// Numbers stored.
    pub(super) parameters: u64,
    /// Whether any tensor is coded.
    pub(super) is_coded: bool,
}

impl TensorSums {
    pub(super) fn of(tensors: &[StoredTensor]) -> Self {
        let mut dtypes: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in tensors {
            let name = match tensor.is_coded {
                true => "coded",
                false => tensor.dtype.as_str(),
            };
            *dtypes.entry(name).or_default() += tensor.bytes;
        }
        let mut dtypes: Vec<(&str, u64)> = dtypes.into_iter().collect();
        dtypes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let names: Vec<&str> = dtypes.iter().map(|(name, _)| *name).collect();
        let counts = tensors.iter().map(StoredTensor::elements);
        Self {
            dtype: (!names.is_empty()).then(|| names.join("+")),
            parameters: counts.fold(0, u64::saturating_add),
            is_coded: tensors.iter().any(|t| t.is_coded),
        }
    }
}

/// Stored tensors by what their waste is looked for by.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// What a 16-bit form would save of stored floats, projections left aside.
    pub(super) wide: u64,
    /// Frozen random tensors stored beside their seed.
    pub(super) projections: Vec<Projection>,
    /// All other tensors whose digests are known.
    pub(super) hashed: Vec<HashedTensor>,
}

impl Contents {
    /// Of tensors, each with what a 16-bit form would save of it, and with what makes it where that is
    /// stored too.
    pub(super) fn of<'t>(
        tensors: impl IntoIterator<Item = (&'t StoredTensor, u64, Option<Recipe>)>,
    ) -> Self {
        let mut contents = Self::default();
        for (tensor, wide, recipe) in tensors {
            let (digest, bytes) = (tensor.digest, tensor.bytes);
            if let Some(recipe) = recipe {
                contents.projections.push(Projection {
                    recipe,
                    digest,
                    bytes,
                    wide,
                });
                continue;
            }
            add(&mut contents.wide, wide);
            contents.hashed.extend(digest.map(|digest| HashedTensor {
                digest,
                bytes,
                wide,
            }));
        }
        contents
    }
}
