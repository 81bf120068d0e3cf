//! One safetensors file, whose data is read on demand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::disguise::{TELLING, check_disguise};
use super::header::{Header, MAX_HEADER_BYTES, TensorInfo};
use crate::error::{Code, Error, Result};
use crate::fs::open_regular;
use crate::tensor::{Bytes, Tensor};

/// An open safetensors file: checked header, and data read on demand.
///
/// Data is read with positioned reads ([`read_at`](Self::read_at)), which keep memory flat, or
/// through a memory map ([`tensor`](Self::tensor)).
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    len: u64,
    header: Header,
    raw_header: Vec<u8>,
    map: std::sync::OnceLock<Bytes>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`Code::Io`] and its kin, and the `TL01xx` codes of [`Header::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::open_limited(path, MAX_HEADER_BYTES).map_err(|e| e.file(path))
    }

    /// As [`open`](Self::open), with a limit on the header's length in bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_limited(path: &Path, limit: u64) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        let mut start = [0; TELLING];
        let have = len.min(TELLING as u64) as usize;
        file.read_exact_at(&mut start[..have], 0)
            .map_err(|e| Error::io(path, "read", e))?;
        check_disguise(&start[..have])?;
        let header_len = Header::announced_len(&start[..have.min(8)], len, limit)?;
        let mut raw_header = vec![0; 8 + header_len as usize];
        file.read_exact_at(&mut raw_header, 0)
            .map_err(|e| Error::io(path, "read", e))?;
        let header = Header::parse(&raw_header[8..], len - 8 - header_len)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
            header,
            raw_header,
            map: Default::default(),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.len
    }

    /// The checked header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header as it is in the file, length prefix included.
    pub(crate) fn raw_header(&self) -> &[u8] {
        &self.raw_header
    }

    /// Fills `buffer` from the file, `offset` counted from its start.
    ///
    /// # Errors
    /// [`Code::Io`], also where the file has shrunk since it was opened.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| Error::io(&self.path, "read", e))
    }

    /// Where a tensor's bytes are in the file, counted from its start.
    pub fn file_range(&self, info: &TensorInfo) -> std::ops::Range<u64> {
        let start = self.header.data_start;
        start + info.range.start..start + info.range.end
    }

    /// A tensor over a memory map of the file.
    ///
    /// # Errors
    /// [`Code::TensorNotFound`], [`Code::Io`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self.header.get(name).ok_or_else(|| {
            Error::new(Code::TensorNotFound, "not in this file")
                .tensor(name)
                .file(&self.path)
        })?;
        self.mapped(info)
    }

    /// The tensor that `info`, of this file's header, describes, over a memory map.
    ///
    /// # Errors
    /// [`Code::Io`].
    pub(crate) fn mapped(&self, info: &TensorInfo) -> Result<Tensor> {
        let range = self.file_range(info);
        let bytes = self
            .map()?
            .slice(range.start as usize..range.end as usize)
            .unwrap_or_else(|| Vec::new().into());
        Tensor::new(info.dtype, info.shape.clone(), bytes)
            .map_err(|e| e.tensor(&info.name).file(&self.path))
    }

    fn map(&self) -> Result<&Bytes> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        // SAFETY: the map is read-only and private to this process. A process that truncates or
        // rewrites the file meanwhile could still change what is read; every adapter tensor is
        // checked against its digest or its finiteness after it is copied out, and writers in this
        // crate replace files by rename, which leaves the mapped inode whole.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&self.file) }.map_err(|e| Error::io(&self.path, "map", e))?;
        if (map.len() as u64) < self.len {
            return Err(
                Error::new(Code::Truncated, "the file shrank while it was read").file(&self.path),
            );
        }
        Ok(self.map.get_or_init(|| Bytes::from_owner(map)))
    }
}
