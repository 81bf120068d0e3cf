//! `adapter_model.bin`: the zip archive that `torch.save` writes, read without executing anything.
//!
//! The archive has one folder: `data.pkl`, a pickle that describes the tensors; `data/0`, `data/1`, …,
//! their storages; `byteorder` and `version`. All entries are stored, none compressed.

mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Cursor, Read, Seek};
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use self::vm::View;
use super::json::cut;
use crate::error::{Code, Error, Result};
use crate::fs::open_regular;
use crate::safetensors::{TELLING, check_disguise};
use crate::tensor::{Bytes, Dtype, Tensor, byte_len};

/// What a reader of a torch archive is willing to handle.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the file, all of which are read into memory.
    pub max_file: u64,
    /// Bytes of `data.pkl`; a tensor takes about 200.
    pub max_pickle: u64,
    /// Tensors in the file.
    pub max_tensors: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_file: 16 << 30,
            max_pickle: 16 << 20,
            max_tensors: 1 << 17,
        }
    }
}

/// The tensors of a state dict saved by torch 1.6 or newer, by name.
///
/// Tensors that share a storage share its bytes; those that are not row-major are copied. Where
/// tensors lay when they were saved (`cuda:0`) does not matter.
///
/// # Errors
/// [`Code::PickleRefused`]: the pickle asks for anything but a flat dict of tensors;
/// [`Code::BadArchive`]: not such an archive, or damaged, or big-endian, or a tensor lies outside
/// its storage, or beyond `limits`; [`Code::TooManyTensors`], [`Code::DuplicateKey`],
/// [`Code::ShapeOverflow`]; the errors of the file system.
pub fn read_torch_archive(path: &Path, limits: Limits) -> Result<BTreeMap<String, Tensor>> {
    let (file, len) = open_regular(path)?;
    if len > limits.max_file {
        let message = format!(
            "the file has {len} bytes, at most {} are read",
            limits.max_file
        );
        return Err(bad(message).file(path));
    }
    read(BufReader::new(file), len, limits).map_err(|e| e.file(path))
}

/// As [`read_torch_archive`], of an archive in memory.
///
/// # Errors
/// As [`read_torch_archive`].
pub(crate) fn read_torch_bytes(bytes: &[u8], limits: Limits) -> Result<BTreeMap<String, Tensor>> {
    read(Cursor::new(bytes), bytes.len() as u64, limits)
}

/// Dtype and shape of every tensor of a torch archive, by name: the directory and the pickle are
/// read, no tensor's bytes.
///
/// # Errors
/// As [`read_torch_archive`], for all that shows without the bytes.
pub(crate) fn read_torch_shapes(
    path: &Path,
    limits: Limits,
) -> Result<BTreeMap<String, (Dtype, Vec<usize>)>> {
    let (file, len) = open_regular(path)?;
    shapes(BufReader::new(file), len, limits).map_err(|e| e.file(path))
}

fn shapes(
    file: impl Read + Seek,
    len: u64,
    limits: Limits,
) -> Result<BTreeMap<String, (Dtype, Vec<usize>)>> {
    let mut archive = Archive::checked(file, len)?;
    let pickle = archive.data_pkl(limits.max_pickle)?;
    let mut storages = BTreeSet::new();
    let mut room = len;
    let mut shapes = BTreeMap::new();
    for (name, view) in vm::read_state_dict(&pickle, limits.max_tensors)? {
        let size = byte_len(view.dtype, &view.shape)?;
        let inside = extent(&view, size).is_some_and(|r| r.end as u64 <= view.storage_bytes);
        let left = match storages.insert(view.key.to_string()) {
            true => room.checked_sub(view.storage_bytes),
            false => Some(room),
        };
        room = left.unwrap_or(0);
        if !inside || left.is_none() {
            let message = format!("shape {:?} does not lie inside its storage", view.shape);
            return Err(bad(message).tensor(&*name));
        }
        if shapes
            .insert(name.to_string(), (view.dtype, view.shape))
            .is_some()
        {
            let message = "the name stands twice in the pickle";
            return Err(Error::new(Code::DuplicateKey, message).tensor(&*name));
        }
    }
    Ok(shapes)
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::BadArchive, message)
}

fn read(file: impl Read + Seek, len: u64, limits: Limits) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = Archive::checked(file, len)?;
    let pickle = archive.data_pkl(limits.max_pickle)?;
    let views = vm::read_state_dict(&pickle, limits.max_tensors)?;

    let mut storages: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    // Views may overlap; what copies of them take is bounded by what the file itself takes.
    let mut room = len.saturating_mul(2);
    for (name, view) in views {
        let name = name.to_string();
        let storage = match storages.get(&*view.key) {
            Some(bytes) => bytes.clone(),
            None => {
                let bytes = archive.storage(&view.key).map_err(|e| e.tensor(&name))?;
                storages.insert(view.key.to_string(), bytes.clone());
                bytes
            }
        };
        let tensor = tensor(&view, &storage, &mut room).map_err(|e| e.tensor(&name))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(
                Error::new(Code::DuplicateKey, "the name stands twice in the pickle").tensor(name),
            );
        }
    }
    Ok(tensors)
}

fn check_magic(magic: &[u8]) -> Result<()> {
    const RESAVE: &str =
        "load it in a Python that you trust with it, and re-save the tensors with safetensors";
    /// A pickle of protocol 2 with the ten-byte integer that torch before 1.6 began its files with.
    const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    if magic.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    check_disguise(magic)?;
    Err(if magic.starts_with(LEGACY) {
        bad("this is torch's format of before 1.6, not a zip archive").hint(RESAVE)
    } else if magic.starts_with(b"\x80") {
        bad("this is a bare pickle, not an archive of torch").hint(RESAVE)
    } else {
        bad("this is not an archive of torch: it is no zip file")
    })
}

struct Archive<R> {
    zip: ZipArchive<R>,
    /// The one folder's name, with its slash.
    folder: String,
    /// Bytes that entries may still take: entries that overlap must not add up to more than the file.
    left: u64,
}

impl<R: Read + Seek> Archive<R> {
    fn checked(mut file: R, len: u64) -> Result<Self> {
        let mut magic = Vec::new();
        file.by_ref()
            .take(TELLING as u64)
            .read_to_end(&mut magic)
            .map_err(|e| bad(format!("cannot be read: {e}")))?;
        check_magic(&magic)?;
        Self::open(file, len)
    }

    fn open(file: R, len: u64) -> Result<Self> {
        let zip = ZipArchive::new(file)
            .map_err(|e| bad("the zip directory is broken or cut off").cause(e))?;
        if zip.has_duplicate_names() {
            return Err(bad("two entries of the archive have one name"));
        }
        let folder = |name: &[u8]| -> Option<String> {
            let folder = std::str::from_utf8(name).ok()?.strip_suffix("data.pkl")?;
            (folder.find('/') == Some(folder.len().wrapping_sub(1))).then(|| folder.to_owned())
        };
        let mut folders = zip.file_names_raw().filter_map(folder);
        let (Some(folder), None) = (folders.next(), folders.next()) else {
            return Err(bad(
                "the archive has not exactly one folder with a data.pkl",
            ));
        };
        drop(folders);
        let mut archive = Self {
            zip,
            folder,
            left: len,
        };
        // Older archives do not say; they were written on little-endian machines.
        if archive
            .zip
            .index_for_name(&format!("{}byteorder", archive.folder))
            .is_some()
        {
            let order = archive.entry("byteorder", 16)?;
            if order != b"little" {
                return Err(bad(format!(
                    "its byte order is {}",
                    cut(&String::from_utf8_lossy(&order))
                )));
            }
        }
        Ok(archive)
    }

    fn data_pkl(&mut self, max: u64) -> Result<Vec<u8>> {
        self.entry("data.pkl", max)
    }

    fn storage(&mut self, key: &str) -> Result<Bytes> {
        self.entry(&format!("data/{key}"), u64::MAX)
            .map(Bytes::from)
    }

    /// One entry's bytes, with their CRC verified.
    fn entry(&mut self, name: &str, max: u64) -> Result<Vec<u8>> {
        let broken = |e: ZipError| bad(format!("{} cannot be read: {e}", cut(name))).cause(e);
        let full = format!("{}{name}", self.folder);
        let Some(at) = self.zip.index_for_name(&full) else {
            return Err(bad(format!("the archive has no {}", cut(name))));
        };
        let entry = self.zip.by_index(at).map_err(broken)?;
        let size = entry.size();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(bad(format!(
                "{} is compressed or encrypted, which torch never does",
                cut(name)
            )));
        }
        if size > max || size > self.left {
            return Err(bad(format!(
                "{} claims {size} bytes, at most {} are read",
                cut(name),
                max.min(self.left)
            )));
        }
        self.left -= size;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        // One byte more than promised, so that the reader meets the end and checks the CRC there.
        entry
            .take(size.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| broken(e.into()))?;
        if bytes.len() as u64 != size {
            return Err(bad(format!(
                "{} has {} of {size} bytes",
                cut(name),
                bytes.len()
            )));
        }
        Ok(bytes)
    }
}

/// The tensor that `view` makes of its storage; `room` is what copies may still take, in bytes.
fn tensor(view: &View, storage: &Bytes, room: &mut u64) -> Result<Tensor> {
    if storage.len() as u64 != view.storage_bytes {
        let message = format!(
            "its storage has {} bytes, the pickle says {}",
            storage.len(),
            view.storage_bytes
        );
        return Err(bad(message));
    }
    let size = byte_len(view.dtype, &view.shape)?;
    let Some(range) = extent(view, size).filter(|r| r.end <= storage.len()) else {
        return Err(bad(format!(
            "shape {:?} does not lie inside its storage",
            view.shape
        )));
    };
    if range.len() as u64 == size && is_row_major(view) {
        let data = storage
            .slice(range)
            .ok_or_else(|| bad("it does not lie inside its storage"))?;
        return Tensor::new(view.dtype, view.shape.clone(), data);
    }
    *room = room
        .checked_sub(size)
        .ok_or_else(|| bad("its tensors overlap so much that they take more than the file"))?;
    Tensor::new(view.dtype, view.shape.clone(), gather(view, storage))
}

/// Bytes from the first element to the last; `None` where their number does not fit.
fn extent(view: &View, size: u64) -> Option<Range<usize>> {
    let item = view.dtype.bits() as u64 / 8;
    let start = view.offset.checked_mul(item)?;
    if size == 0 {
        let start = usize::try_from(start).ok()?;
        return Some(start..start);
    }
    let mut last = view.offset;
    for (n, stride) in view.shape.iter().zip(&view.strides) {
        last = last.checked_add((*n as u64 - 1).checked_mul(*stride)?)?;
    }
    let end = last.checked_add(1)?.checked_mul(item)?;
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

fn is_row_major(view: &View) -> bool {
    let mut expected: u64 = 1;
    view.shape
        .iter()
        .zip(&view.strides)
        .rev()
        .all(|(n, stride)| {
            // Along an axis of one element there is no step; torch leaves anything there.
            let fits = *n <= 1 || *stride == expected;
            expected = expected.saturating_mul(*n as u64);
            fits
        })
        || view.shape.contains(&0)
}

/// The view's elements in row-major order. Every element was checked to lie inside.
fn gather(view: &View, storage: &[u8]) -> Vec<u8> {
    let item = view.dtype.bits() / 8;
    let count: usize = view.shape.iter().product();
    let mut out = Vec::with_capacity(count * item);
    let mut index = vec![0; view.shape.len()];
    for _ in 0..count {
        let at = index
            .iter()
            .zip(&view.strides)
            .fold(view.offset, |at, (i, s)| at + *i as u64 * s);
        let at = at as usize * item;
        out.extend_from_slice(storage.get(at..at + item).unwrap_or_default());
        for (i, n) in index.iter_mut().zip(&view.shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests;
