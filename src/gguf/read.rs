//! What a file of [`Writer`](super::Writer) says, for tests.

use super::write::{ALIGNMENT, TensorInfo, Value};
use crate::tensor::Dtype;

/// A file as it was written.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(TensorInfo, Vec<u8>)>,
}

/// Reads a whole file; `None` where it is not one of version 3 with texts, F32 values, and tensors of F32,
/// F16 and BF16 within it.
pub(crate) fn read(file: &[u8]) -> Option<Contents> {
    let mut at = file.strip_prefix(b"GGUF\x03\0\0\0")?;
    let (tensors, values) = (number(&mut at)?, number(&mut at)?);
    let mut metadata = Vec::new();
    for _ in 0..values {
        let key = text(&mut at)?;
        let value = match word(&mut at)? {
            8 => Value::Text(text(&mut at)?),
            6 => Value::F32(f32::from_bits(word(&mut at)?)),
            _ => return None,
        };
        metadata.push((key, value));
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = text(&mut at)?;
        let axes = word(&mut at)?;
        let mut shape = (0..axes)
            .map(|_| number(&mut at))
            .collect::<Option<Vec<_>>>()?;
        shape.reverse();
        let dtype = match word(&mut at)? {
            0 => Dtype::F32,
            1 => Dtype::F16,
            30 => Dtype::BF16,
            _ => return None,
        };
        let info = TensorInfo { name, dtype, shape };
        infos.push((info, number(&mut at)?));
    }
    let data = (file.len() - at.len()).next_multiple_of(ALIGNMENT);
    let tensors = infos.into_iter().map(|(info, offset)| {
        let len = info.shape.iter().product::<usize>() * info.dtype.bits() / 8;
        (offset % ALIGNMENT == 0).then_some(())?;
        let bytes = file.get(data + offset..data + offset + len)?.to_vec();
        Some((info, bytes))
    });
    Some(Contents {
        metadata,
        tensors: tensors.collect::<Option<_>>()?,
    })
}

fn word(at: &mut &[u8]) -> Option<u32> {
    let (word, rest) = at.split_first_chunk()?;
    *at = rest;
    Some(u32::from_le_bytes(*word))
}

fn number(at: &mut &[u8]) -> Option<usize> {
    let (number, rest) = at.split_first_chunk()?;
    *at = rest;
    usize::try_from(u64::from_le_bytes(*number)).ok()
}

fn text(at: &mut &[u8]) -> Option<String> {
    let len = number(at)?;
    let (text, rest) = at.split_at_checked(len)?;
    *at = rest;
    String::from_utf8(text.to_vec()).ok()
}
