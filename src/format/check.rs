//! Checking a `.tl` without holding its tensors: a packed or seeded one may be thousands of times
//! as large as the file, so its bytes come piece by piece.

use std::collections::BTreeMap;

use super::blobs::BlobSource;
use super::described::{ManifestTensor, external_missing};
use super::finite::not_finite;
use super::limits::{MAX_MADE_BYTES, most_held};
use super::pack::packed_name;
use super::read::{Stored, TlFile};
use super::sink::Sink;
use crate::coding::{self, Extents};
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor, widen_into};

/// Bytes of a stored tensor that are read at a time; a multiple of every element's width.
const PIECE: usize = 1 << 20;

impl TlFile {
    /// Checks every tensor as [`load`](Self::load) does, wherever it is kept, and holds a few
    /// megabytes of them at a time; of blobs and packed tensors, what they take on the disk.
    ///
    /// # Errors
    /// Those of [`load`](Self::load); [`Code::SeedInvalid`] where a tensor is stored that its seed does not
    /// make; [`Code::ManifestLimit`] beyond [`MAX_MADE_BYTES`].
    pub fn check(&self, blobs: &dyn BlobSource) -> Result<()> {
        self.refuse_beyond(MAX_MADE_BYTES)?;
        let mut may_overflow = false;
        for (name, stored) in self.storage() {
            let checked = self.check_tensor(name, stored, blobs);
            may_overflow |= checked.map_err(|e| e.tensor(name).file(self.file().path()))?;
        }
        // Scales so large that it depends on the code whether a product is finite.
        if may_overflow {
            self.load(blobs)?;
        }
        Ok(())
    }

    /// The tensors that no seed makes, verified, as they are stored; those that one makes are checked, and not held.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), which have the same limits; [`Code::SeedInvalid`] where a seed
    /// makes other values than its tensor has.
    pub(crate) fn kept(&self, blobs: &dyn BlobSource) -> Result<BTreeMap<String, Tensor>> {
        // As for a load: what is taken into a store has to come out of it.
        self.refuse_made(most_held(self.file().byte_len()))?;
        let seeded = |name: &str| Ok::<_, Error>(self.entry(name)?.seed.is_some());
        let mut kept = BTreeMap::new();
        for (name, stored) in self.storage() {
            let one = || -> Result<Option<Tensor>> {
                if !seeded(name)? {
                    return Ok(Some(self.tensor(name, stored, blobs)?.codes()));
                }
                self.check_tensor(name, stored, blobs)?;
                Ok(None)
            };
            if let Some(tensor) = one().map_err(|e| e.tensor(name).file(self.file().path()))? {
                kept.insert(name.to_owned(), tensor);
            }
        }
        let tensors = kept.iter().map(|(name, t)| (name.as_str(), t.clone()));
        let checked = self.manifest().with_scales(&tensors.collect());
        checked.map_err(|e| e.file(self.file().path()))?;
        Ok(kept)
    }

    /// Checks one tensor; gives whether it has values with which a code's product may overflow.
    pub(super) fn check_tensor(
        &self,
        name: &str,
        stored: Stored,
        blobs: &dyn BlobSource,
    ) -> Result<bool> {
        let entry = self.entry(name)?;
        let mut checker = Checker::new(entry)?;
        let sink: Sink<'_> = &mut |bytes| checker.take(bytes);
        match stored {
            Stored::Raw => self.pieces(name, sink)?,
            Stored::Packed => {
                let packed = self.read(&packed_name(name))?;
                self.unpack(entry.stored()?.0, &packed, entry.byte_len()?, sink)?;
            }
            Stored::Seeded => entry.made(sink)?,
            Stored::External => {
                let bytes = blobs.get(&entry.sha256, entry.byte_len()?)?;
                let bytes = bytes.ok_or_else(|| external_missing(entry))?;
                if bytes.len() as u64 != entry.byte_len()? {
                    entry.compare(Digest::of(&bytes))?;
                }
                bytes.chunks(PIECE).try_for_each(sink)?;
            }
        }
        let may_overflow = checker.finish(entry)?;
        // What it made is compared already where it is all there is.
        if stored != Stored::Seeded {
            entry.check_seed()?;
        }
        Ok(may_overflow)
    }

    fn pieces(&self, name: &str, sink: Sink<'_>) -> Result<()> {
        let info = self.file().header().get(name);
        let info = info.ok_or_else(|| Error::new(Code::TensorNotFound, "not in this file"))?;
        let range = self.file().file_range(info);
        let mut buffer = vec![0; PIECE.min(info.byte_len() as usize)];
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(PIECE as u64) as usize;
            self.file().read_at(&mut buffer[..n], at)?;
            sink(&buffer[..n])?;
            at += n as u64;
        }
        Ok(())
    }
}

/// The rules for a tensor's bytes: their digest, and that all values are finite.
struct Checker {
    dtype: Dtype,
    hasher: Hasher,
    elements: usize,
    /// The first value that is not finite, with its place. It is told where the digest is right.
    bad: Option<(usize, f32)>,
    largest: f32,
    /// The bytes of a coded tensor, which are looked at in whole.
    coded: Option<Vec<u8>>,
}

impl Checker {
    fn new(entry: &ManifestTensor) -> Result<Self> {
        Ok(Self {
            dtype: entry.dtype()?,
            hasher: Hasher::default(),
            elements: 0,
            bad: None,
            largest: 0.0,
            coded: entry.coded.map(|_| Vec::new()),
        })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        const BLOCK: usize = 4096;
        self.hasher.update(bytes);
        if let Some(coded) = &mut self.coded {
            coded.extend_from_slice(bytes);
            return Ok(());
        }
        let width = self.dtype.bits() / 8;
        if self.dtype == Dtype::I8 || self.bad.is_some() {
            return Ok(());
        }
        let mut wide = [0f32; BLOCK];
        for block in bytes.chunks(BLOCK * width) {
            let wide = &mut wide[..block.len() / width];
            widen_into(self.dtype, block, wide);
            if let Some(at) = wide.iter().position(|x| !x.is_finite()) {
                self.bad = Some((self.elements + at, wide[at]));
                return Ok(());
            }
            self.largest = wide.iter().fold(self.largest, |m, x| m.max(x.abs()));
            self.elements += wide.len();
        }
        Ok(())
    }

    fn finish(self, entry: &ManifestTensor) -> Result<bool> {
        entry.compare(self.hasher.finish())?;
        if let Some(coded) = self.coded {
            coding::check(&coded, &Extents::of(&entry.shape)?)?;
            return Ok(false);
        }
        match self.bad {
            Some((at, value)) => Err(not_finite(at, value)),
            None => Ok(self.largest > f32::MAX / 128.0),
        }
    }
}
