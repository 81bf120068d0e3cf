//! Records: the small immutable objects that say what a store holds (`spec/tl-store-v1.md` §4).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::blob;
use super::dropped::Dropped;
use super::layout::{self, Subject};
use super::name::Name;
use super::pack::index::Packs;
use super::pack::name::PackName;
use super::sign::Signature;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::{pack_elements, unpack_elements};
use crate::tensor::Bytes;

/// A record that says where it lies.
pub(super) const MAGIC: [u8; 4] = *b"TLR2";
/// One of an older build, which does not.
pub(super) const UNBOUND: [u8; 4] = *b"TLR1";
/// Magic, SHA-256 of what follows, length of the packed part, its length unpacked.
const FRAME: usize = 44;
/// Longest manifest that lies in a record.
pub const MAX_RECORDED_MANIFEST_BYTES: usize = 8 << 20;
/// Longest JSON of a record.
const MAX_JSON_BYTES: usize = 16 << 20;
/// Longest record as an object.
pub(super) const MAX_RECORD_BYTES: u64 = 48 << 20;
/// A tensor up to this long lies in the record of its version: an object of its own costs more.
pub(super) const MAX_INLINE_BYTES: usize = 16 << 10;

/// A record: who wrote what, when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) body: Body,
    /// Seconds of Unix time, by the writer's clock.
    pub(super) time: u64,
    /// Tells two records with the same content apart.
    pub(super) writer: String,
    /// Where the record lies; none in one of an older build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) at: Option<At>,
}

/// Where a record lies, so that it counts nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    /// The tenant; none for the store's own records.
    pub(super) tenant: Option<Name>,
    /// What its sequence is about, as in the key.
    pub(super) subject: String,
    /// Its number.
    pub(super) number: u64,
    /// SHA-256 of the record before it as an object; none where it is the first, or where what
    /// is there could not be read.
    pub(super) before: Option<Digest>,
}

impl At {
    /// What a key says of the record there; `None` where it is no record's.
    pub(super) fn of(key: &str) -> Option<Self> {
        let (folder, _) = key.rsplit_once('/')?;
        let (subject, number) = layout::parse_record(folder, key)?;
        let tenant = match folder {
            layout::STORE_RECORDS => None,
            _ => Some(layout::tenant_of(folder)?),
        };
        Some(Self::new(tenant, &subject, number, None))
    }

    pub(super) fn new(
        tenant: Option<Name>,
        subject: &Subject,
        number: u64,
        before: Option<Digest>,
    ) -> Self {
        Self {
            tenant,
            subject: subject.stem(),
            number,
            before,
        }
    }

    fn is_same_place(&self, other: &Self) -> bool {
        (&self.tenant, &self.subject, self.number) == (&other.tenant, &other.subject, other.number)
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Body {
    /// A version of an adapter.
    Adapter(Version),
    /// The adapter is gone.
    Removed,
    /// A tag names this version, or none any more.
    Tag(Option<u64>),
    /// What garbage collection has condemned, and whether it is deleting now.
    Collection(Collection),
    /// The store's settings.
    Settings(Settings),
}

/// An immutable version of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// The adapter's identity: SHA-256 of its manifest.
    pub root: Digest,
    /// Length of the manifest.
    pub manifest: u64,
    /// The method's name, as in the manifest.
    pub method: String,
    /// The base model's name, where the manifest has one.
    pub base: Option<String>,
    /// Logical bytes: manifest and stored tensors, unpacked. What quotas count.
    pub bytes: u64,
    /// The tensors that are stored; those made from a seed are not.
    pub blobs: Vec<StoredBlob>,
    /// A signature of the root.
    pub signature: Option<Signature>,
}

/// A tensor of a version, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredBlob {
    /// SHA-256 of the raw bytes.
    pub sha256: Digest,
    /// Length of the raw bytes.
    pub bytes: u64,
    /// Where it lies.
    pub at: Place,
}

/// Where a blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the record itself, so many bytes with its frame.
    Inline(u64),
    /// Among the tenant's blobs, of this generation.
    Tenant(u32),
    /// Among the published blobs.
    Public,
}

/// The state of garbage collection for one tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Collection {
    /// Keys that a collection will take unless a writer takes them back, and since when: of blobs
    /// that no version named, and of versions that nothing needs.
    pub(super) condemned: BTreeMap<String, u64>,
    /// Keys that are being deleted, and will never be used again.
    #[serde(default)]
    pub(super) dead: BTreeSet<String>,
    /// What older builds wrote while they deleted some of the condemned.
    #[serde(default, rename = "deleting", skip_serializing)]
    _deleting: bool,
    /// Versions that collections took. Any other number that is missing is lost.
    #[serde(default, skip_serializing_if = "Dropped::is_empty")]
    pub(super) dropped: Dropped,
    /// Where records lie that have no object of their own.
    #[serde(default, skip_serializing_if = "Packs::is_empty")]
    pub(super) packs: Packs,
    /// By whom records of a pack are about to be added; anybody may make a state without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fence: Option<PackName>,
}

/// The settings of a store, all of which its operator may change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Most logical bytes of a tenant that has no quota of its own.
    pub quota: Option<u64>,
    /// Most logical bytes of these tenants.
    pub quotas: BTreeMap<Name, u64>,
}

/// A record as it was read, with what lies in it.
#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) record: Record,
    /// The manifest of a version; empty for other records.
    pub(super) manifest: Vec<u8>,
    /// The blobs that lie inside, in the version's order.
    pub(super) inline: Vec<Bytes>,
    /// Length of the object.
    pub(super) bytes: u64,
    object: Bytes,
}

/// The object of a record; `manifest` and `inline` belong to a version.
pub(super) fn encode(record: &Record, manifest: &[u8], inline: &[Vec<u8>]) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(record)
        .map_err(|e| Error::new(Code::StoreRecord, format!("no JSON: {e}")).cause(e))?;
    let magic = if record.at.is_some() { MAGIC } else { UNBOUND };
    object_of(magic, &json, manifest, inline)
}

/// The object around the JSON of a record.
pub(super) fn object_of(
    magic: [u8; 4],
    json: &[u8],
    manifest: &[u8],
    inline: &[Vec<u8>],
) -> Result<Vec<u8>> {
    let mut plain = (json.len() as u32).to_le_bytes().to_vec();
    plain.extend(json);
    plain.extend(manifest);
    let packed = pack_elements(1, &plain)?;
    let mut rest = (packed.len() as u32).to_le_bytes().to_vec();
    rest.extend((plain.len() as u32).to_le_bytes());
    rest.extend(packed);
    rest.extend(inline.iter().flatten());
    Ok(framed_as(magic, &rest))
}

/// What follows a record's digest, with the digest before it.
#[cfg(any(test, feature = "testing"))]
pub(super) fn framed(rest: &[u8]) -> Vec<u8> {
    framed_as(MAGIC, rest)
}

fn framed_as(magic: [u8; 4], rest: &[u8]) -> Vec<u8> {
    let mut object = magic.to_vec();
    object.extend(Digest::of(rest).as_bytes());
    object.extend(rest);
    object
}

/// Reads the record that lies at a key. One of an older build says nothing of that, and passes
/// unless all records must be `bound`.
///
/// # Errors
/// Those of [`decode`]; [`Code::StoreRecord`] where it was written for another place.
pub(super) fn decode_at(key: &str, object: &Bytes, bound: bool) -> Result<Read> {
    let read = decode(object)?;
    let refuse = |m: String| Err(Error::new(Code::StoreRecord, m));
    let Some(here) = At::of(key) else {
        return refuse("no record has such a name".into());
    };
    match &read.record.at {
        Some(at) if at.is_same_place(&here) => Ok(read),
        Some(at) => {
            let tenant = at.tenant.as_ref().map_or("the store", Name::as_str);
            refuse(format!(
                "it is record {} of {} of {tenant}, and lies elsewhere",
                at.number, at.subject
            ))
        }
        None if bound => refuse("it does not say where it belongs, as all here do".into()),
        None => Ok(read),
    }
}

/// Reads a record, and checks everything that it says of itself.
///
/// # Errors
/// [`Code::StoreDamaged`] where the bytes are not those that were written, [`Code::StoreRecord`]
/// where they are and are no record of version 1.
pub(super) fn decode(object: &Bytes) -> Result<Read> {
    let (Some(&magic), Some(digest)) = (object.first_chunk(), object.get(4..36)) else {
        return Err(invalid("it begins with other bytes"));
    };
    if magic != MAGIC && magic != UNBOUND {
        return Err(invalid("it begins with other bytes"));
    }
    let rest = object.get(36..).unwrap_or_default();
    if Digest::of(rest).as_bytes() != digest {
        return Err(Error::new(
            Code::StoreDamaged,
            "the record's bytes have another digest than it says",
        ));
    }
    let number = |at: usize| {
        let bytes = object.get(at..at + 4).and_then(|b| b.first_chunk());
        bytes.map(|b| u32::from_le_bytes(*b) as usize)
    };
    let (Some(packed_len), Some(plain_len)) = (number(36), number(40)) else {
        return Err(invalid("shorter than its frame"));
    };
    if plain_len > MAX_JSON_BYTES + MAX_RECORDED_MANIFEST_BYTES + 4 {
        return Err(invalid("longer than the limit"));
    }
    let packed = object.get(FRAME..FRAME.saturating_add(packed_len));
    let packed = packed.ok_or_else(|| invalid("shorter than it says"))?;
    let plain = unpack_elements(1, packed, plain_len as u64)
        .map_err(|e| Error::new(Code::StoreRecord, e.message()).cause(e))?;
    let (size, plain) = plain
        .split_first_chunk()
        .ok_or_else(|| invalid("shorter than its frame"))?;
    let (json, manifest) = plain
        .split_at_checked(u32::from_le_bytes(*size) as usize)
        .ok_or_else(|| invalid("its JSON is shorter than it says"))?;
    let record: Record =
        serde_json::from_slice(json).map_err(|e| invalid(&format!("its JSON: {e}")).cause(e))?;
    if record.at.is_some() != (magic == MAGIC) {
        return Err(invalid("its first bytes and its JSON are of two forms"));
    }
    let manifest_is_named = match &record.body {
        Body::Adapter(version) => {
            manifest.len() as u64 == version.manifest && Digest::of(manifest) == version.root
        }
        _ if !manifest.is_empty() => return Err(invalid("bytes follow its JSON")),
        _ => true,
    };
    let inline = inline_blobs(&record, object, FRAME + packed_len)?;
    if !manifest_is_named {
        return Err(invalid("its manifest is not the one that its root names"));
    }
    if FRAME + packed_len + inline.iter().map(|b| b.len()).sum::<usize>() != object.len() {
        return Err(invalid("bytes follow its blobs"));
    }
    Ok(Read {
        record,
        manifest: manifest.to_vec(),
        inline,
        bytes: object.len() as u64,
        object: object.clone(),
    })
}

fn invalid(message: &str) -> Error {
    Error::new(Code::StoreRecord, format!("not a record: {message}"))
}

/// The blobs that lie in the object of a record from a place on, one after another.
fn inline_blobs(record: &Record, object: &Bytes, mut at: usize) -> Result<Vec<Bytes>> {
    let mut inline = Vec::new();
    let Body::Adapter(version) = &record.body else {
        return Ok(inline);
    };
    for stored in &version.blobs {
        let Place::Inline(len) = stored.at else {
            continue;
        };
        let end = usize::try_from(len)
            .ok()
            .and_then(|len| at.checked_add(len));
        let slice = end.and_then(|end| object.slice(at..end));
        let slice = slice.ok_or_else(|| invalid("shorter than its blobs"))?;
        at += slice.len();
        inline.push(slice);
    }
    Ok(inline)
}

impl Read {
    /// SHA-256 of the object, by which the next record of the sequence names this one.
    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.object)
    }

    /// The version, where the record is one.
    pub(super) fn version(&self) -> Option<&Version> {
        match &self.record.body {
            Body::Adapter(version) => Some(version),
            _ => None,
        }
    }

    /// The raw bytes of an inline blob, verified.
    pub(super) fn inline(&self, stored: &StoredBlob) -> Result<Option<Bytes>> {
        let Some(version) = self.version() else {
            return Ok(None);
        };
        let inside = version
            .blobs
            .iter()
            .filter(|b| matches!(b.at, Place::Inline(_)));
        let found = inside
            .zip(&self.inline)
            .find(|(b, _)| b.sha256 == stored.sha256);
        found
            .map(|(b, object)| blob::decode(object, &b.sha256, b.bytes))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> (Record, Vec<u8>, Vec<Vec<u8>>) {
        let raw = [7u8; 40];
        let inline = vec![blob::encode(4, &raw).unwrap()];
        let manifest = b"{\"tl\":1}".to_vec();
        let version = Version {
            root: Digest::of(&manifest),
            manifest: manifest.len() as u64,
            method: "tl6".into(),
            base: None,
            bytes: 48,
            blobs: vec![
                StoredBlob {
                    sha256: Digest::of(b"p"),
                    bytes: 9,
                    at: Place::Public,
                },
                StoredBlob {
                    sha256: Digest::of(&raw),
                    bytes: 40,
                    at: Place::Inline(inline[0].len() as u64),
                },
            ],
            signature: None,
        };
        let record = Record {
            body: Body::Adapter(version),
            time: 5,
            writer: "w".into(),
            at: None,
        };
        (record, manifest, inline)
    }

    fn at(key: &str) -> Option<At> {
        At::of(key)
    }

    #[test]
    fn decode_inverts_encode() {
        let (record, manifest, inline) = sample();
        let read = decode(&encode(&record, &manifest, &inline).unwrap().into()).unwrap();
        assert_eq!((&read.record, &read.manifest), (&record, &manifest));
        let stored = &read.version().unwrap().blobs[1];
        assert_eq!(&*read.inline(stored).unwrap().unwrap(), &[7u8; 40]);
        for body in [
            Body::Removed,
            Body::Tag(None),
            Body::Tag(Some(3)),
            Body::Collection(Collection::default()),
        ] {
            let record = Record {
                body,
                ..record.clone()
            };
            let read = decode(&encode(&record, b"", &[]).unwrap().into()).unwrap();
            assert_eq!(read.record, record);
        }
    }

    #[test]
    fn a_record_that_lies_is_refused() {
        let (record, manifest, inline) = sample();
        let code = |r: &Record, m: &[u8], i: &[Vec<u8>]| {
            decode(&encode(r, m, i).unwrap().into()).unwrap_err().code()
        };
        // Another manifest than the root's; blobs that are missing or too many.
        assert_eq!(code(&record, b"{}", &inline), Code::StoreRecord);
        assert_eq!(code(&record, &manifest, &[]), Code::StoreRecord);
        let twice = [inline.clone(), inline.clone()].concat();
        assert_eq!(code(&record, &manifest, &twice), Code::StoreRecord);
        let removed = Record {
            body: Body::Removed,
            ..record
        };
        assert_eq!(code(&removed, &manifest, &[]), Code::StoreRecord);
    }

    /// Breaks where a record that was copied to another number, task, tag or tenant counts there.
    #[test]
    fn a_record_counts_only_where_it_belongs() {
        let (record, manifest, inline) = sample();
        let keys = [
            "tenants/alice/records/adapter=chat@0000000002",
            "tenants/alice/records/adapter=chat@0000000003",
            "tenants/alice/records/adapter=other@0000000002",
            "tenants/bob/records/adapter=chat@0000000002",
            "tenants/alice/records/collection@0000000002",
            "records/settings@0000000002",
        ];
        for own in keys {
            let record = Record {
                at: at(own),
                ..record.clone()
            };
            let object: Bytes = encode(&record, &manifest, &inline).unwrap().into();
            for key in keys {
                let read = decode_at(key, &object, true);
                assert_eq!(read.is_ok(), key == own, "{own} at {key}");
                if let Err(e) = read {
                    assert_eq!(e.code(), Code::StoreRecord);
                }
            }
        }
        // One of an older build counts anywhere, unless the store has none such.
        let object: Bytes = encode(&record, &manifest, &inline).unwrap().into();
        assert!(object.starts_with(&UNBOUND));
        assert!(decode_at(keys[0], &object, false).is_ok());
        assert!(decode_at(keys[0], &object, true).is_err());
        for other in ["x", "tenants/alice/blobs/adapter=chat@0000000002"] {
            assert_eq!(At::of(other), None);
        }
    }

    /// Breaks where the two forms can be taken for one another.
    #[test]
    fn a_form_with_the_other_forms_json_is_refused() {
        let (record, manifest, inline) = sample();
        let bound = Record {
            at: at("records/settings@0000000001"),
            ..record.clone()
        };
        for (record, magic) in [(&record, MAGIC), (&bound, UNBOUND)] {
            let mut object = encode(record, &manifest, &inline).unwrap();
            object[..4].copy_from_slice(&magic);
            assert_eq!(
                decode(&object.into()).unwrap_err().code(),
                Code::StoreRecord
            );
        }
    }

    /// Breaks where the seeds of the fuzzing are no records, so that it finds nothing.
    #[test]
    fn the_seeds_of_the_fuzzing_are_read() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/store_json");
        let mut count = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            let path = seed.unwrap().path();
            let json = std::fs::read(&path).unwrap();
            assert!(crate::store::testing::decode_json(&json), "{path:?}");
            count += 1;
        }
        assert!(count > 5);
    }

    proptest! {
        /// Breaks where damage passes for a record, or makes the reader panic.
        #[test]
        fn no_other_bytes_pass(at in 0usize..2000, bit in 0u8..8, cut in 0usize..2000) {
            let (record, manifest, inline) = sample();
            let mut object = encode(&record, &manifest, &inline).unwrap();
            let place = at % object.len();
            object[place] ^= 1 << bit;
            prop_assert!(decode(&object.clone().into()).is_err());
            object.truncate(cut % object.len());
            prop_assert!(decode(&object.into()).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&framed(&bytes).into()).is_err());
        }
    }
}
