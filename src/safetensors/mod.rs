//! The safetensors container: headers, files, sharded checkpoints. It knows nothing of adapters.
//!
//! The format is `u64` little-endian header length, JSON header, data. This reader accepts every
//! file that the reference implementation writes, and is stricter than it: duplicate keys, unknown
//! fields and shapes that overflow are refused. See `spec/tl-v1.md` for the still stricter profile
//! that a `.tl` is.

mod checkpoint;
mod disguise;
mod file;
mod header;
mod write;

pub use checkpoint::{Checkpoint, INDEX_FILE, Location, SINGLE_FILE};
pub(crate) use disguise::{TELLING, check_disguise};
pub use file::SafetensorsFile;
pub use header::{Header, MAX_HEADER_BYTES, TensorInfo, encode_header};
pub use write::write_tensors;
