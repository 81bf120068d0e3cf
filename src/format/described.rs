//! A tensor as a manifest describes it: dtype, shape, digest, and its recipe where it has one.

use serde::{Deserialize, Serialize};

use super::finite::check_finite;
use super::invalid::invalid;
use super::limits::MAX_TENSOR_BYTES;
use super::seeded::{GENERATOR, MAX_SEEDED_ELEMENTS, pieces as seeded_pieces, seeded_tensor};
use super::sink::Sink;
use crate::adapter::Seed;
use crate::digest::{Digest, Hasher, parse_hex};
use crate::error::{Code, Error, Result};
use crate::tensor::{Bytes, Dtype, Tensor, byte_len, not_float};

/// A tensor of a manifest: what its raw bytes are, wherever they lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTensor {
    /// How many bytes a coded tensor is stored as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) coded: Option<u64>,
    pub(super) dtype: String,
    /// The name of the tensor with the scales of an I8 one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scales: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<ManifestSeed>,
    /// SHA-256 of the raw little-endian bytes.
    pub sha256: Digest,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestSeed {
    pub(super) generator: String,
    pub(super) key: String,
    pub(super) step: String,
}

impl ManifestTensor {
    pub(super) fn of(
        tensor: &Tensor,
        sha256: Digest,
        scales: Option<String>,
        seed: Option<&Seed>,
    ) -> Self {
        let seed = seed.map(|seed| ManifestSeed {
            generator: GENERATOR.to_owned(),
            key: seed.key.iter().map(|b| format!("{b:02x}")).collect(),
            step: format!("{:08x}", seed.step.to_bits()),
        });
        Self {
            coded: tensor.coded_bytes().map(|b| b.len() as u64),
            dtype: tensor.dtype().as_str().to_owned(),
            scales,
            seed,
            sha256,
            shape: tensor.shape().to_vec(),
        }
    }

    /// Element type of the values.
    ///
    /// # Errors
    /// [`Code::UnknownDtype`], [`Code::DtypeNotAllowed`]; [`Code::ManifestInvalid`] for scales of
    /// another tensor than an I8 one, or a code of another than an F32 one.
    pub fn dtype(&self) -> Result<Dtype> {
        let dtype: Dtype = self.dtype.parse()?;
        if self.coded.is_some() && dtype != Dtype::F32 {
            return Err(invalid(format!("{dtype} that is coded")));
        }
        match (dtype, &self.scales) {
            (Dtype::I8, Some(_)) => Ok(dtype),
            (_, None) if dtype.is_float() => Ok(dtype),
            (_, Some(_)) if dtype.is_float() => Err(invalid(format!("{dtype} with `scales`"))),
            _ => Err(not_float(dtype)),
        }
    }

    /// Element type and extents of the bytes that are stored: of a coded tensor, U8 and their number.
    ///
    /// # Errors
    /// As [`dtype`](Self::dtype).
    pub(crate) fn stored(&self) -> Result<(Dtype, Vec<usize>)> {
        match (self.dtype()?, self.coded) {
            (dtype, None) => Ok((dtype, self.shape.clone())),
            (_, Some(len)) => Ok((Dtype::U8, vec![usize::try_from(len).unwrap_or(usize::MAX)])),
        }
    }

    /// Whether it is stored as the codes of its numbers.
    pub fn is_coded(&self) -> bool {
        self.coded.is_some()
    }

    /// Bytes of the raw tensor: of a coded one, its coded bytes.
    ///
    /// # Errors
    /// As [`dtype`](Self::dtype); [`Code::ShapeOverflow`]; [`Code::ManifestLimit`].
    pub fn byte_len(&self) -> Result<u64> {
        let (dtype, shape) = self.stored()?;
        within(byte_len(dtype, &shape)?)
    }

    /// Bytes that its values take in memory beside what is stored: none, unless it is coded.
    ///
    /// # Errors
    /// As [`byte_len`](Self::byte_len).
    pub(super) fn decoded_len(&self) -> Result<u64> {
        match self.coded {
            None => Ok(0),
            Some(_) => within(byte_len(self.dtype()?, &self.shape)?),
        }
    }

    /// The recipe, where the tensor is seeded.
    ///
    /// # Errors
    /// [`Code::SeedInvalid`].
    pub fn seed(&self) -> Result<Option<Seed>> {
        self.seed.as_ref().map(ManifestSeed::parse).transpose()
    }

    /// The tensor that `bytes` are, if they are this one's.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`], [`Code::SizeMismatch`], [`Code::NonFinite`].
    pub(super) fn verified(&self, bytes: Bytes) -> Result<Tensor> {
        self.compare(Digest::of(&bytes))?;
        if let Some(len) = self.coded {
            if len != bytes.len() as u64 {
                let message = format!("{} coded bytes, the manifest says {len}", bytes.len());
                return Err(Error::new(Code::SizeMismatch, message));
            }
            return Tensor::coded(self.shape.clone(), bytes);
        }
        let tensor = Tensor::new(self.dtype()?, self.shape.clone(), bytes)?;
        check_finite(&tensor)?;
        Ok(tensor)
    }

    /// The values of this tensor, whose `stored` bytes were verified; of one that is not coded, the bytes themselves.
    ///
    /// # Errors
    /// Those of [`Tensor::coded`].
    pub fn values(&self, stored: &Tensor) -> Result<Tensor> {
        match self.coded {
            Some(_) => Tensor::coded(self.shape.clone(), stored.data().clone()),
            None => Ok(stored.clone()),
        }
    }

    /// Refuses bytes of another digest than this one's.
    pub(super) fn compare(&self, actual: Digest) -> Result<()> {
        if actual == self.sha256 {
            return Ok(());
        }
        let message = format!(
            "the bytes have {actual}, the manifest says sha256:{}",
            self.sha256.hex()
        );
        Err(Error::new(Code::DigestMismatch, message)
            .hint("the file or blob is damaged; get it again"))
    }

    /// Makes the tensor from its seed, where it has one, piece by piece, and compares the digests.
    /// Whether the bytes are stored or left out, a recipe that makes others describes no adapter (spec §7).
    ///
    /// # Errors
    /// [`Code::SeedInvalid`] where the seed makes other values.
    pub fn check_seed(&self) -> Result<()> {
        if self.seed.is_none() {
            return Ok(());
        }
        let mut hasher = Hasher::default();
        self.made(&mut |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        if hasher.finish() != self.sha256 {
            let message = "its seed makes other values than its digest is of";
            return Err(Error::new(Code::SeedInvalid, message));
        }
        Ok(())
    }

    /// The bytes that the seed makes, where there is one.
    pub(super) fn regenerate(&self) -> Result<Option<Bytes>> {
        let Some(seed) = self.seed()? else {
            return Ok(None);
        };
        let made = seeded_tensor(&seed, self.dtype()?, &self.shape)?;
        Ok(Some(made.data().clone()))
    }

    /// The tensor without its bytes, where it may be in a manifest at all.
    pub(super) fn shape_only(&self) -> Result<Tensor> {
        self.byte_len()?;
        self.decoded_len()?;
        if self.shape.contains(&0) {
            return Err(invalid("a tensor without elements"));
        }
        if self.coded.is_some() && (self.shape.is_empty() || self.coded == Some(0)) {
            return Err(invalid("a coded tensor has an axis, and bytes"));
        }
        if self.seed()?.is_some() && (self.scales.is_some() || self.coded.is_some()) {
            let message = "seeds make floats, and this tensor is I8 or coded";
            return Err(Error::new(Code::SeedInvalid, message));
        }
        if self.seed()?.is_some() && self.shape.iter().product::<usize>() > MAX_SEEDED_ELEMENTS {
            let message =
                format!("more seeded elements than the {MAX_SEEDED_ELEMENTS} of the limit");
            return Err(Error::new(Code::SeedInvalid, message));
        }
        Tensor::shape_only(self.dtype()?, self.shape.clone())
    }

    /// The bytes that the seed makes, piece by piece; nothing without a seed.
    pub(super) fn made(&self, sink: Sink<'_>) -> Result<()> {
        match self.seed()? {
            None => Err(external_missing(self)),
            Some(seed) => seeded_pieces(&seed, self.dtype()?, &self.shape, sink),
        }
    }
}

impl ManifestSeed {
    pub(super) fn parse(&self) -> Result<Seed> {
        let bad = |m: String| Error::new(Code::SeedInvalid, m);
        if self.generator != GENERATOR {
            return Err(bad(format!("unknown generator `{}`", self.generator)));
        }
        let key = parse_hex(&self.key)
            .ok_or_else(|| bad("the key is not 64 lower-case hex digits".into()))?;
        let bits = u32::from_str_radix(&self.step, 16).ok();
        match bits
            .filter(|b| format!("{b:08x}") == self.step)
            .map(f32::from_bits)
        {
            Some(step) if step > 0.0 && (step * (1 << 23) as f32).is_finite() => {
                Ok(Seed { key, step })
            }
            _ => Err(bad(format!(
                "step `{}` is not 8 hex digits of a usable positive f32",
                self.step
            ))),
        }
    }
}

/// A tensor that is left out, and found nowhere.
pub(super) fn external_missing(entry: &ManifestTensor) -> Error {
    let message = format!(
        "left out of this thin file; its blob is {}",
        entry.sha256.hex()
    );
    Error::new(Code::ExternalMissing, message).hint("give the folder that has it")
}

fn within(len: u64) -> Result<u64> {
    if len > MAX_TENSOR_BYTES {
        let message = format!("{len} bytes, the limit for one tensor is {MAX_TENSOR_BYTES}");
        return Err(Error::new(Code::ManifestLimit, message));
    }
    Ok(len)
}
