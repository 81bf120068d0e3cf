//! Files written tensor by tensor.

use std::path::Path;

use crate::error::{Code, Error, Result};
use crate::fs::{AtomicFile, Existing};
use crate::tensor::{Dtype, byte_len};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// What the data and each tensor in it begin at a multiple of, where no key says otherwise.
pub(super) const ALIGNMENT: usize = 32;
/// Longest name of a tensor: ggml has 64 bytes for it and its end.
const MAX_NAME: usize = 63;
/// Most axes of a tensor.
const MAX_AXES: usize = 4;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    F32(f32),
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name: 1 to 63 bytes, of no other tensor.
    pub name: String,
    /// F32, F16 or BF16.
    pub dtype: Dtype,
    /// Its shape, the last axis the one whose elements follow one another. GGUF lists axes the other way.
    pub shape: Vec<usize>,
}

/// A file that is being written: the header first, then the tensors in its order.
#[derive(Debug)]
pub struct Writer {
    out: AtomicFile,
    /// Bytes of the tensors to come, the next one last.
    left: Vec<u64>,
    written: u64,
}

impl Writer {
    /// Starts a file, which appears under its name with [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`Code::BadTensorName`], [`Code::DtypeNotAllowed`], [`Code::ShapeOverflow`] for what the format does
    /// not hold; [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Io`].
    pub fn create(
        dest: &Path,
        existing: Existing,
        metadata: &[(&str, Value)],
        tensors: &[TensorInfo],
    ) -> Result<Self> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut header, key);
            match value {
                Value::Text(value) => {
                    header.extend(8u32.to_le_bytes());
                    text(&mut header, value);
                }
                Value::F32(value) => {
                    header.extend(6u32.to_le_bytes());
                    header.extend(value.to_le_bytes());
                }
            }
        }
        let mut left = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for tensor in tensors {
            let len = check(tensor)?;
            text(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for extent in tensor.shape.iter().rev() {
                header.extend((*extent as u64).to_le_bytes());
            }
            header.extend(type_of(tensor.dtype)?.to_le_bytes());
            header.extend(offset.to_le_bytes());
            let too_long = || Error::new(Code::ShapeOverflow, "the tensors are too many bytes");
            offset = aligned(
                offset
                    .checked_add(len)
                    .filter(|n| *n < 1 << 62)
                    .ok_or_else(too_long)?,
            );
            left.push(len);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
        left.reverse();
        let mut out = AtomicFile::create(dest, existing)?;
        out.write_all(&header)?;
        Ok(Self {
            out,
            left,
            written: header.len() as u64,
        })
    }

    /// Writes the next tensor: little-endian, in the order of its shape.
    ///
    /// # Errors
    /// [`Code::SizeMismatch`] where it has not the bytes of its shape, or was not announced;
    /// [`Code::NoSpace`], [`Code::Io`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let len = self.left.pop();
        if len != Some(bytes.len() as u64) {
            let message = format!("a tensor of {} bytes where another is due", bytes.len());
            return Err(Error::new(Code::SizeMismatch, message));
        }
        self.out.write_all(bytes)?;
        let end = self.written + bytes.len() as u64;
        self.out
            .write_all(&vec![0; (aligned(end) - end) as usize])?;
        self.written = aligned(end);
        Ok(())
    }

    /// Gives the complete file its name, on the disk. Gives its bytes.
    ///
    /// # Errors
    /// [`Code::Truncated`] where tensors are missing; those of [`AtomicFile::commit`].
    pub fn finish(self) -> Result<u64> {
        if !self.left.is_empty() {
            let message = format!("{} tensors were not written", self.left.len());
            return Err(Error::new(Code::Truncated, message));
        }
        self.out.commit(true)?;
        Ok(self.written)
    }
}

/// Whether tensors of this type can be written.
pub fn is_storable(dtype: Dtype) -> bool {
    type_of(dtype).is_ok()
}

/// Refuses what the format does not hold; gives the tensor's bytes.
fn check(tensor: &TensorInfo) -> Result<u64> {
    let name = &tensor.name;
    if name.is_empty() || name.len() > MAX_NAME || tensor.shape.len() > MAX_AXES {
        let message = "a GGUF tensor has a name of 1 to 63 bytes and at most 4 axes";
        return Err(Error::new(Code::BadTensorName, message).tensor(name));
    }
    byte_len(tensor.dtype, &tensor.shape).map_err(|e| e.tensor(name))
}

/// ggml's number of a type.
fn type_of(dtype: Dtype) -> Result<u32> {
    match dtype {
        Dtype::F32 => Ok(0),
        Dtype::F16 => Ok(1),
        Dtype::BF16 => Ok(30),
        _ => {
            let message = format!("{dtype} is not written to GGUF: F32, F16 or BF16");
            Err(Error::new(Code::DtypeNotAllowed, message))
        }
    }
}

fn text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn aligned(at: u64) -> u64 {
    at.next_multiple_of(ALIGNMENT as u64)
}

#[cfg(test)]
mod tests {
    use super::super::read::read;
    use super::*;

    fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
        TensorInfo {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }

    #[test]
    fn a_file_says_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let metadata = [
            ("general.type", Value::Text("adapter".into())),
            ("adapter.lora.alpha", Value::F32(0.0)),
        ];
        let tensors = [
            info("one", Dtype::F32, &[3, 5]),
            info("two", Dtype::BF16, &[7]),
        ];
        let mut writer = Writer::create(&path, Existing::Refuse, &metadata, &tensors).unwrap();
        assert!(!path.exists());
        let (one, two) = (vec![1; 60], vec![2; 14]);
        writer.push(&one).unwrap();
        writer.push(&two).unwrap();
        let bytes = writer.finish().unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!(
            (file.len() as u64, &file[..8]),
            (bytes, &b"GGUF\x03\0\0\0"[..])
        );
        let found = read(&file).unwrap();
        assert_eq!(
            found.metadata[1],
            ("adapter.lora.alpha".into(), Value::F32(0.0))
        );
        assert_eq!(found.tensors[0], (tensors[0].clone(), one));
        assert_eq!(found.tensors[1], (tensors[1].clone(), two));
    }

    /// Breaks where half a file gets its name, or a tensor goes to another's place.
    #[test]
    fn what_was_not_announced_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let start = |tensors: &[TensorInfo]| Writer::create(&path, Existing::Refuse, &[], tensors);
        let mut writer = start(&[info("one", Dtype::F32, &[2])]).unwrap();
        assert_eq!(writer.push(&[0; 4]).unwrap_err().code(), Code::SizeMismatch);
        let writer = start(&[info("one", Dtype::F32, &[2])]).unwrap();
        assert_eq!(writer.finish().unwrap_err().code(), Code::Truncated);
        assert!(!path.exists());
        for (tensor, code) in [
            (info("", Dtype::F32, &[1]), Code::BadTensorName),
            (info(&"x".repeat(64), Dtype::F32, &[1]), Code::BadTensorName),
            (info("x", Dtype::F32, &[1; 5]), Code::BadTensorName),
            (info("x", Dtype::I8, &[1]), Code::DtypeNotAllowed),
            (info("x", Dtype::F32, &[usize::MAX, 8]), Code::ShapeOverflow),
        ] {
            assert_eq!(start(&[tensor]).unwrap_err().code(), code);
        }
    }
}
