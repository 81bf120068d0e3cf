//! The `.tl` format, version 1. The specification is `spec/tl-v1.md`; one file here for a chapter there.
//!
//! A `.tl` is a strict profile of safetensors: every `.tl` opens with any safetensors reader. The
//! canonical manifest in its metadata lists groups, targets and tensors with their SHA-256; the
//! adapter's identity, its **root**, is the SHA-256 of the manifest. Which tensors are inside the
//! file (fat), left out (thin) or packed with zstd is not part of the identity.
//!
//! ```no_run
//! use tlkit::format::{NoBlobs, TlFile};
//!
//! # fn main() -> tlkit::Result<()> {
//! // Opening checks header, manifest and root; loading reads and verifies every tensor.
//! let file = TlFile::open("my-lora.tl")?;
//! let adapter = file.load(&NoBlobs)?;
//! println!("{}: {} modules", file.root(), adapter.modules().len());
//! for group in &adapter.groups {
//!     println!("rank {}, A is {:?}", group.rank, group.a.tensor.shape());
//! }
//! # Ok(())
//! # }
//! ```

mod assemble;
mod blobs;
mod canonical;
mod chacha;
mod check;
mod codec;
mod described;
mod encode;
mod fingerprint;
mod finite;
mod from_parts;
mod header;
mod invalid;
mod limits;
mod manifest;
mod pack;
mod parts;
mod read;
mod seeded;
mod sink;
mod write;

pub use blobs::{BlobSource, DirBlobs, NoBlobs};
pub(crate) use chacha::{chacha20_block, chacha20_blocks};
pub use described::ManifestTensor;
pub use encode::{Encoded, EncodedTensor, encode};
pub use fingerprint::fingerprint;
pub use from_parts::from_parts;
pub use limits::{MAX_MADE_BYTES, MAX_MANIFEST_BYTES, MAX_TENSOR_BYTES, most_held};
pub use manifest::{FEATURES, Manifest, VERSION};
pub(crate) use pack::pack as pack_tensor;
pub use pack::unpack;
pub(crate) use pack::{pack_elements, packed_name, unpack_elements};
pub use read::{Stored, TlFile};
pub use seeded::{GENERATOR, MAX_SEEDED_ELEMENTS, generate, seeded_tensor};
pub(crate) use write::encoded_len;
pub use write::{
    Packing, WriteOptions, Written, encoded_bytes, write_blobs, write_encoded, write_tl,
};

#[cfg(test)]
mod tests;
