//! The store: adapters of many tenants in one folder or object store. Its layout, and why it
//! holds, is `spec/tl-store-v1.md`.
//!
//! Everything that is written is immutable and written once: blobs by their digest, and numbered
//! records by conditional creation, of which the last of a sequence holds. So every operation of
//! every backend is atomic, a crash leaves at worst blobs that nothing names, and two writers
//! of one name are ordered by the store itself.
//!
//! ```no_run
//! use tlkit::fleet::{self, GetOptions};
//! use tlkit::format::NoBlobs;
//! use tlkit::store::{GRACE, Store};
//!
//! # fn main() -> tlkit::Result<()> {
//! let store = Store::init("fleet", GRACE)?;
//! let name = "alice/summaries".parse()?;
//! let package = fleet::package("summaries.tl".as_ref(), &NoBlobs)?;
//! let put = store.put(&name, &package, None)?;
//! assert_eq!(put.version, 1);
//!
//! let got = fleet::get(&store, &name, "again.tl".as_ref(), &GetOptions::default())?;
//! assert_eq!(got.root, put.root);
//! # Ok(())
//! # }
//! ```
//!
//! The store knows blobs and digests, not tensors; [`fleet`](crate::fleet) is where adapters become
//! packages of blobs and back.

mod advance;
mod backend;
mod batch;
mod bitflip;
mod blob;
mod cache;
mod catalog;
mod changes;
#[cfg_attr(not(feature = "cloud"), path = "no_cloud.rs")]
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
mod mirror;
mod name;
mod original;
mod pack;
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
mod sync;
mod system;
mod tenants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod interleaved;
#[cfg(test)]
mod tests;

pub use backend::{Backend, Entry};
pub use batch::Batch;
pub use blob::MAX_BLOB_BYTES;
pub use catalog::{Inventory, Listed, Stat, StoredAdapter, TenantStat, VersionEntry};
pub use changes::{Change, Seen, Watcher};
pub use collect::{CollectOptions, Collected};
pub use fsck::{Checked, Problem};
pub use get::{Fetched, TenantBlobs};
pub use handle::Store;
pub use marker::{FEATURES, GRACE, VERSION};
pub use name::{AdapterName, MAX_NAME_BYTES, Name, Which};
pub use publish::Published;
pub use put::{Package, PackageBlob, PutReport};
pub use record::{MAX_RECORDED_MANIFEST_BYTES, Place, Settings, StoredBlob, Version};
pub use repair::{Repair, Repaired};
pub use sign::{Scope, Signature, Signer, Trust, TrustedKey};
pub use sync::{NotSynced, SyncOptions, Synced, sync};
pub use tenants::Skipped;
