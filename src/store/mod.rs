//! The store: adapters of many tenants in one folder or object store. Its layout, and why it
//! holds, is `spec/tl-store-v1.md`.
//!
//! Everything that is written is immutable and written once: blobs by their digest, and numbered
//! records by conditional creation, of which the last of a sequence holds. So every operation of
//! every backend is atomic, a crash leaves at worst blobs that nothing names, and two writers
//! of one name are ordered by the store itself.
//!
//! The store knows blobs and digests, not tensors; [`fleet`](crate::fleet) is where adapters become
//! packages of blobs and back.

mod backend;
mod bitflip;
mod blob;
mod cache;
mod catalog;
mod cloud;
mod collect;
mod confirm;
mod copies;
mod dropped;
mod failure;
mod folder;
mod fsck;
mod get;
mod handle;
mod layout;
mod listing;
mod marker;
mod name;
mod publish;
mod put;
mod quota;
mod record;
mod redact;
mod repair;
mod sequence;
mod settings;
mod sign;
mod state;
mod system;
mod tenants;
pub mod testing;

#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod tests;

pub use backend::{Backend, Entry};
pub use catalog::{Inventory, Listed, Stat, StoredAdapter, TenantStat, VersionEntry};
pub use collect::{CollectOptions, Collected};
pub use fsck::{Checked, Problem};
pub use get::{Fetched, TenantBlobs};
pub use handle::Store;
pub use marker::{FEATURES, GRACE, VERSION};
pub use name::{AdapterName, MAX_NAME_BYTES, Name, Which};
pub use publish::Published;
pub use put::{Package, PackageBlob, PutReport};
pub use record::{Place, Settings, StoredBlob, Version};
pub use repair::{Repair, Repaired};
pub use sign::{Scope, Signature, Signer, Trust, TrustedKey};
pub use tenants::Skipped;
