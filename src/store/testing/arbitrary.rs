//! Arbitrary bytes as what a store reads.

use crate::digest::Digest;
use crate::store::marker::Marker;
use crate::store::pack::read::look_through;
use crate::store::{blob, record};
use crate::tensor::Bytes;

/// Reads arbitrary bytes as a blob, as a pack, and as what follows the digest of a record, for fuzzing: a
/// digest would keep nearly all of them out. `true` where they are a record.
pub fn decode(bytes: &[u8]) -> bool {
    let object: Bytes = bytes.to_vec().into();
    let len = blob::announced(&object).unwrap_or(0).min(1 << 24);
    let _ = blob::decode(&object, &Digest::of(bytes), len);
    let _ = look_through("tenants/u/records", &object);
    record::decode(&record::framed(bytes).into()).is_ok()
}

/// Reads arbitrary bytes as the JSON of a record of either form, and as a store's marker, for
/// fuzzing. `true` where they are one of these. A record that is read and written again says the
/// same.
///
/// # Panics
/// Where it does not.
pub fn decode_json(json: &[u8]) -> bool {
    let mut valid = Marker::parse(json).is_some();
    for magic in [record::MAGIC, record::UNBOUND] {
        let object = record::object_of(magic, json, b"", &[]);
        let Some(read) = object.ok().and_then(|o| record::decode(&o.into()).ok()) else {
            continue;
        };
        valid = true;
        let again = record::encode(&read.record, b"", &[]);
        let again = again.ok().and_then(|o| record::decode(&o.into()).ok());
        let text = |r: &record::Record| serde_json::to_string(r).ok();
        assert_eq!(again.and_then(|r| text(&r.record)), text(&read.record));
    }
    valid
}
