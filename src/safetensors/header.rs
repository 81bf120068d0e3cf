//! The header: read strictly, written in one canonical form.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, byte_len, shape_text};

/// Longest header that is read, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_TENSORS: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 4096;
const METADATA_KEY: &str = "__metadata__";

/// One tensor of a safetensors header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Byte range within the data section.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A parsed and checked header: tensors lie in file order, without gap or overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `__metadata__`, in the order of the file.
    pub metadata: Vec<(String, String)>,
    /// Tensors by ascending offset.
    pub tensors: Vec<TensorInfo>,
    /// Offset of the data section in the file: 8 + header length.
    pub data_start: u64,
    /// Places in `tensors`, by ascending name: a header may have a million of them.
    by_name: Vec<u32>,
}

impl Header {
    /// The length of the JSON header that the first eight bytes announce, checked against the
    /// file's length and `limit` before anything is allocated.
    ///
    /// # Errors
    /// [`Code::Truncated`], [`Code::HeaderTooLarge`].
    pub fn announced_len(prefix: &[u8], file_len: u64, limit: u64) -> Result<u64> {
        let Some(prefix) = prefix.first_chunk::<8>() else {
            let message =
                format!("a safetensors file has at least 8 bytes, this one has {file_len}");
            return Err(Error::new(Code::Truncated, message));
        };
        let len = u64::from_le_bytes(*prefix);
        if len > limit {
            let message = format!("the header claims {len} bytes, the limit is {limit}");
            return Err(Error::new(Code::HeaderTooLarge, message)
                .hint("check that this is a safetensors file at all"));
        }
        if len > file_len.saturating_sub(8) {
            let message = format!("the header claims {len} bytes, the file has {file_len} in all");
            return Err(
                Error::new(Code::Truncated, message).hint("the download or copy may be incomplete")
            );
        }
        Ok(len)
    }

    /// Parses the JSON header of a file whose data section has `data_len` bytes.
    ///
    /// # Errors
    /// The `TL01xx` codes, one for each rule that is broken.
    pub fn parse(json: &[u8], data_len: u64) -> Result<Self> {
        let raw: RawHeader = serde_json::from_slice(json).map_err(header_error)?;
        if raw.tensors.len() > MAX_TENSORS {
            let message = format!("{} tensors, the limit is {MAX_TENSORS}", raw.tensors.len());
            return Err(Error::new(Code::TooManyTensors, message));
        }
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in raw.tensors {
            tensors.push(entry.check(name, data_len)?);
        }
        tensors.sort_by(|a, b| {
            (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
        });
        check_contiguous(&tensors, data_len)?;
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_by_key(|at| &tensors[*at as usize].name);
        Ok(Self {
            by_name,
            metadata: raw.metadata,
            tensors,
            data_start: 8 + json.len() as u64,
        })
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        let name_at = |at: &u32| self.tensors.get(*at as usize).map(|t| t.name.as_str());
        let found = self.by_name.binary_search_by_key(&Some(name), name_at);
        self.tensors.get(*self.by_name.get(found.ok()?)? as usize)
    }
}

fn check_contiguous(tensors: &[TensorInfo], data_len: u64) -> Result<()> {
    let mut end = 0;
    for t in tensors {
        if t.range.start < end {
            let message = format!(
                "bytes {}..{end} belong to another tensor too",
                t.range.start
            );
            return Err(Error::new(Code::Overlap, message).tensor(&t.name));
        }
        if t.range.start > end {
            let message = format!(
                "bytes {end}..{} before it belong to no tensor",
                t.range.start
            );
            return Err(Error::new(Code::Hole, message).tensor(&t.name));
        }
        end = t.range.end;
    }
    if end < data_len {
        let message = format!(
            "{} bytes after the last tensor belong to no tensor",
            data_len - end
        );
        return Err(Error::new(Code::Hole, message));
    }
    Ok(())
}

fn header_error(e: serde_json::Error) -> Error {
    let text = e.to_string();
    let code = if text.contains("duplicate key") || text.contains("duplicate field") {
        Code::DuplicateKey
    } else {
        Code::HeaderInvalid
    };
    Error::new(code, format!("header: {text}"))
}

struct RawHeader {
    metadata: Vec<(String, String)>,
    tensors: Vec<(String, RawEntry)>,
}

/// Remote, since a derived struct would read `["U8",[2],[0,2]]` as well, by the order of its fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawEntry {
    fn check(self, name: String, data_len: u64) -> Result<TensorInfo> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            let message = format!("`{name}` is not a valid tensor name");
            return Err(Error::new(Code::BadTensorName, message));
        }
        let place = |e: Error| e.tensor(&name);
        let dtype: Dtype = self.dtype.parse().map_err(place)?;
        let mut shape = Vec::with_capacity(self.shape.len());
        for extent in self.shape {
            let extent = usize::try_from(extent);
            shape.push(extent.map_err(|_| {
                Error::new(Code::ShapeOverflow, "extent beyond this machine").tensor(&name)
            })?);
        }
        let [start, end] = self.data_offsets;
        if start > end || end > data_len {
            let message = format!(
                "data_offsets [{start}, {end}] are not within the {data_len} bytes of data"
            );
            let code = if start > end {
                Code::BadOffsets
            } else {
                Code::Truncated
            };
            return Err(Error::new(code, message).tensor(name));
        }
        let need = byte_len(dtype, &shape).map_err(place)?;
        if need != end - start {
            let message = format!(
                "{dtype} {} takes {need} bytes, data_offsets span {}",
                shape_text(&shape),
                end - start
            );
            return Err(Error::new(Code::SizeMismatch, message).tensor(name));
        }
        Ok(TensorInfo {
            name,
            dtype,
            shape,
            range: start..end,
        })
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct EntryVisitor;

        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = RawEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                map: M,
            ) -> std::result::Result<RawEntry, M::Error> {
                RawEntry::deserialize(MapAccessDeserializer::new(map))
            }
        }

        d.deserialize_map(EntryVisitor)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<RawHeader, M::Error> {
                let mut header = RawHeader {
                    metadata: Vec::new(),
                    tensors: Vec::new(),
                };
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(M::Error::custom(format!("duplicate key `{key}`")));
                    }
                    if key == METADATA_KEY {
                        header.metadata = map.next_value::<Metadata>()?.0;
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        d.deserialize_map(HeaderVisitor)
    }
}

struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct MetadataVisitor;

        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            // Files of other writers have null, which the reference implementation reads as none.
            fn visit_unit<E>(self) -> std::result::Result<Metadata, E> {
                Ok(Metadata(Vec::new()))
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Metadata, M::Error> {
                let mut entries = Vec::new();
                let mut seen = HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(M::Error::custom(format!("duplicate key `{key}`")));
                    }
                    entries.push((key, value));
                }
                Ok(Metadata(entries))
            }
        }

        d.deserialize_any(MetadataVisitor)
    }
}

/// The bytes of a header, length prefix included, for tensors in the order given.
///
/// JSON is minified, `__metadata__` first, entries as `dtype`, `shape`, `data_offsets`; trailing
/// spaces make the data section start at a multiple of `align`. Offsets follow the order: each
/// tensor begins where the one before it ends.
pub fn encode_header<'a>(
    metadata: &[(&str, &str)],
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize], u64)>,
    align: usize,
) -> Vec<u8> {
    #[derive(Serialize)]
    struct Entry<'a> {
        dtype: &'a str,
        shape: &'a [usize],
        data_offsets: [u64; 2],
    }
    fn json(value: &(impl Serialize + ?Sized)) -> String {
        serde_json::to_string(value).unwrap_or_default()
    }

    let mut parts = Vec::new();
    if !metadata.is_empty() {
        let entries: Vec<String> = metadata
            .iter()
            .map(|(k, v)| format!("{}:{}", json(k), json(v)))
            .collect();
        parts.push(format!("\"{METADATA_KEY}\":{{{}}}", entries.join(",")));
    }
    let mut offset = 0;
    for (name, dtype, shape, len) in tensors {
        let entry = Entry {
            dtype: dtype.as_str(),
            shape,
            data_offsets: [offset, offset + len],
        };
        parts.push(format!("{}:{}", json(name), json(&entry)));
        offset += len;
    }
    let mut header = format!("{{{}}}", parts.join(",")).into_bytes();
    let padded = (8 + header.len()).next_multiple_of(align.max(1)) - 8;
    header.resize(padded, b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.append(&mut header);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: &str, data_len: u64) -> Code {
        Header::parse(json.as_bytes(), data_len).unwrap_err().code()
    }

    #[test]
    fn each_broken_rule_has_its_code() {
        // Each of these is a known way to make two readers disagree, or one to over-allocate.
        let t = |o: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{o}}}}}"#);
        assert_eq!(code("[]", 0), Code::HeaderInvalid);
        assert_eq!(code("{", 0), Code::HeaderInvalid);
        assert_eq!(code(&t("[2,0]"), 2), Code::BadOffsets);
        assert_eq!(code(&t("[0,2]"), 1), Code::Truncated);
        assert_eq!(code(&t("[0,1]"), 1), Code::SizeMismatch);
        assert_eq!(code(&t("[1,3]"), 3), Code::Hole);
        assert_eq!(code(&t("[0,2]"), 3), Code::Hole);
        assert_eq!(code(&t("[0,2]").replace("U8", "U9"), 2), Code::UnknownDtype);
        assert_eq!(
            code(&t("[0,2]").replace("\"a\"", "\"\""), 2),
            Code::BadTensorName
        );
        assert_eq!(
            code(&t("[0,2]").replace("\"a\"", "\"\\u001b\""), 2),
            Code::BadTensorName
        );
        assert_eq!(
            code(
                &t("[0,2]").replace("[2]", "[4294967296,4294967296,4294967296]"),
                2
            ),
            Code::ShapeOverflow
        );
        assert_eq!(
            code(&t("[0,2]").replace("{\"dtype\"", "{\"x\":1,\"dtype\""), 2),
            Code::HeaderInvalid
        );
        let list = r#"{"a":["U8",[2],[0,2]]}"#;
        assert_eq!(code(list, 2), Code::HeaderInvalid);
        let two = |b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"{b}":{{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}}}"#
            )
        };
        assert_eq!(code(&two("b"), 2), Code::Overlap);
        assert_eq!(code(&two("a"), 2), Code::DuplicateKey);
        assert_eq!(
            code(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0),
            Code::DuplicateKey
        );
        assert_eq!(code(r#"{"__metadata__":{"k":1}}"#, 0), Code::HeaderInvalid);
    }

    #[test]
    fn announced_length_is_checked_before_use() {
        let len = |n: u64, file: u64| {
            Header::announced_len(&n.to_le_bytes(), file, 100).map_err(|e| e.code())
        };
        assert_eq!(len(101, 1000), Err(Code::HeaderTooLarge));
        assert_eq!(len(93, 100), Err(Code::Truncated));
        assert_eq!(len(92, 100), Ok(92));
        assert_eq!(
            Header::announced_len(&[0; 7], 7, 100).unwrap_err().code(),
            Code::Truncated
        );
    }

    #[test]
    fn encoded_headers_parse_back() {
        let shape = [2, 3];
        let bytes = encode_header(&[("b", "x\"y")], [("t", Dtype::F16, &shape[..], 12)], 64);
        assert_eq!(bytes.len() % 64, 0);
        let header = Header::parse(&bytes[8..], 12).unwrap();
        assert_eq!(header.metadata("b"), Some("x\"y"));
        assert_eq!(header.get("t").unwrap().range, 0..12);
        assert_eq!(header.get("s"), None);
        assert_eq!(header.data_start, bytes.len() as u64);
    }
}
