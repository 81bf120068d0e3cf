//! A blob as an object: a frame around the bytes of one tensor (`spec/tl-store-v1.md` §3).

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{pack_elements, unpack_elements};
use crate::tensor::Bytes;

/// Longest blob, in raw bytes.
pub const MAX_BLOB_BYTES: u64 = 4 << 30;
const MAGIC: [u8; 4] = *b"TLB1";
/// Magic, codec, width of an element, whether it replaced another one, a zero byte, length of the
/// raw bytes.
pub(super) const FRAME: usize = 16;
const RAW: u8 = 0;
const SHUFFLED: u8 = 1;
/// Where an object says whether it replaced another one.
const RESTORED_AT: usize = 6;

/// The object that holds `raw`, whose elements are `width` bytes wide: byte-shuffled and packed
/// with zstd where that is shorter.
pub(super) fn encode(width: usize, raw: &[u8]) -> Result<Vec<u8>> {
    let packed = pack_elements(width, raw)?;
    let (codec, payload) = match packed.len() < raw.len() {
        true => (SHUFFLED, packed.as_slice()),
        false => (RAW, raw),
    };
    let mut object = Vec::with_capacity(FRAME + payload.len());
    object.extend(MAGIC);
    object.extend([codec, width as u8, 0, 0]);
    object.extend((raw.len() as u64).to_le_bytes());
    object.extend(payload);
    Ok(object)
}

/// As [`encode`], for an object that is written in place of a damaged or missing one. Versions
/// that name its key may read it; no further version may name it (`spec/tl-store-v1.md` §7).
pub(super) fn encode_restored(width: usize, raw: &[u8]) -> Result<Vec<u8>> {
    let mut object = encode(width, raw)?;
    if let Some(mark) = object.get_mut(RESTORED_AT) {
        *mark = 1;
    }
    Ok(object)
}

/// Whether an object was written in place of another one.
pub(super) fn is_restored(object: &[u8]) -> bool {
    object.get(RESTORED_AT) == Some(&1)
}

/// The same object as it is first written.
pub(super) fn unmarked(object: &[u8]) -> Vec<u8> {
    let mut object = object.to_vec();
    if let Some(mark) = object.get_mut(RESTORED_AT) {
        *mark = 0;
    }
    object
}

/// The length of the raw bytes, as an object says it.
pub(super) fn announced(object: &[u8]) -> Option<u64> {
    let size = object.get(8..FRAME)?.first_chunk()?;
    Some(u64::from_le_bytes(*size))
}

/// The raw bytes of an object, which must have this digest and length.
///
/// # Errors
/// [`Code::StoreRecord`] where the frame is not valid, [`Code::StoreDamaged`] where the bytes are
/// others.
pub(super) fn decode(object: &Bytes, digest: &Digest, len: u64) -> Result<Bytes> {
    let invalid = |m: &str| Error::new(Code::StoreRecord, format!("not a blob: {m}"));
    let Some((head, payload)) = object.split_first_chunk::<FRAME>() else {
        return Err(invalid("shorter than its frame"));
    };
    let [m0, m1, m2, m3, codec, width, 0 | 1, 0, size @ ..] = *head else {
        return Err(invalid("its frame has bytes that must be zero"));
    };
    if [m0, m1, m2, m3] != MAGIC {
        return Err(invalid("it begins with other bytes"));
    }
    let size = u64::from_le_bytes(size);
    if size != len || size > MAX_BLOB_BYTES {
        return Err(invalid(&format!(
            "it says {size} bytes, {len} are expected"
        )));
    }
    let raw: Bytes = match codec {
        RAW if payload.len() as u64 == size => {
            let all = object.slice(FRAME..object.len());
            all.ok_or_else(|| invalid("shorter than its frame"))?
        }
        RAW => return Err(invalid("its payload has another length than it says")),
        SHUFFLED => unpack_elements(usize::from(width), payload, size)
            .map_err(|e| Error::new(Code::StoreDamaged, e.message()).cause(e))?
            .into(),
        other => return Err(invalid(&format!("unknown codec {other}"))),
    };
    let actual = Digest::of(&raw);
    if actual != *digest {
        let message = format!("the bytes have {actual}, the name says {digest}");
        return Err(Error::new(Code::StoreDamaged, message));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decode_inverts_encode(raw in proptest::collection::vec(any::<u8>(), 1..300), wide: bool) {
            let width = if wide { 4 } else { 2 };
            let raw = &raw[..raw.len() / width * width];
            let object: Bytes = encode(width, raw).unwrap().into();
            let back = decode(&object, &Digest::of(raw), raw.len() as u64).unwrap();
            prop_assert_eq!(&*back, raw);
        }

        /// Breaks where a flipped bit passes, or a hostile object makes the reader panic.
        #[test]
        fn no_other_bytes_pass(at in 0usize..1000, bit in 0u8..8, cut in 0usize..1000) {
            let raw: Vec<u8> = (0..64u32).flat_map(|n| (n as f32).to_le_bytes()).collect();
            let mut object = encode(4, &raw).unwrap();
            let place = at % object.len();
            object[place] ^= 1 << bit;
            let len = raw.len() as u64;
            // The width may not matter: of raw bytes it says nothing. Nor does the mark of a
            // restored object to whom reads it.
            if let Ok(back) = decode(&object.clone().into(), &Digest::of(&raw), len) {
                prop_assert_eq!(&*back, &raw[..]);
            }
            object.truncate(cut % object.len());
            prop_assert!(decode(&object.into(), &Digest::of(&raw), len).is_err());
        }
    }

    #[test]
    fn a_blob_costs_no_more_than_its_frame() {
        let noise: Vec<u8> = (0..256u32)
            .flat_map(|n| Digest::of(&n.to_le_bytes()).as_bytes()[..4].to_vec())
            .collect();
        assert_eq!(encode(4, &noise).unwrap().len(), FRAME + noise.len());
        assert!(encode(4, &[0; 4096]).unwrap().len() < 100);
    }
}
