//! The header of a `.tl`: its metadata, and its one canonical form (spec §4).

use super::pack::unpacked_name;
use crate::error::{Code, Error, Result};
use crate::safetensors::{SafetensorsFile, TensorInfo, encode_header};

/// What the header's length is a multiple of.
pub(super) const ALIGN: usize = 64;
/// The version of the format; what a safetensors file with it is a `.tl` by.
pub(super) const KEY_VERSION: &str = "tl";
/// The manifest.
pub(super) const KEY_MANIFEST: &str = "tl.manifest";
/// The codec of the packed tensors, where there are any.
pub(super) const KEY_PACK: &str = "tl.pack";
/// The digest of the manifest.
pub(super) const KEY_ROOT: &str = "tl.root";

/// The one header that a canonical writer makes for these metadata and tensors.
pub(super) fn check_canonical_header(file: &SafetensorsFile, packed: bool) -> Result<()> {
    let not_canonical = |m: &str| Err(Error::new(Code::HeaderNotCanonical, m));
    let header = file.header();
    let keys: Vec<&str> = header.metadata.iter().map(|(k, _)| k.as_str()).collect();
    let want: &[&str] = if packed {
        &[KEY_VERSION, KEY_MANIFEST, KEY_PACK, KEY_ROOT]
    } else {
        &[KEY_VERSION, KEY_MANIFEST, KEY_ROOT]
    };
    if keys != want {
        return not_canonical(
            "the metadata has other keys, or another order, than tl, tl.manifest, tl.pack, tl.root",
        );
    }
    let order = |t: &TensorInfo| (std::cmp::Reverse(t.dtype.bits()), t.name.clone());
    if !header.tensors.is_sorted_by_key(order) {
        return not_canonical("tensors are not ordered by dtype size, then name");
    }
    let raw = |t: &TensorInfo| unpacked_name(&t.name).map(str::to_owned);
    if header
        .tensors
        .iter()
        .any(|t| raw(t).is_some_and(|n| header.get(&n).is_some()))
    {
        return not_canonical("a tensor is stored both raw and packed");
    }
    if packed && !header.tensors.iter().any(|t| raw(t).is_some()) {
        return not_canonical("says `tl.pack`, and no tensor is packed");
    }
    let metadata: Vec<(&str, &str)> = header
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let tensors = header
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.byte_len()));
    if encode_header(&metadata, tensors, ALIGN) != file.raw_header() {
        return not_canonical("the header's JSON or padding is not in canonical form");
    }
    Ok(())
}
