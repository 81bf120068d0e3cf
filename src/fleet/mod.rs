//! Adapters into a store and out of it: a `.tl` or a PEFT directory as the package of blobs that a
//! [`Store`](crate::store::Store) keeps, and a version of a store as a file, a folder or an [`Adapter`](crate::adapter::Adapter).

mod blobs;
mod coded;
mod export;
mod get;
mod import;
mod package;
#[cfg(feature = "cloud")]
mod registry;
mod serving;

pub use blobs::Chain;
pub use coded::{CodedAs, package_coded};
pub use export::{ExportOptions, Exported, NotExported, export};
pub use get::{Form, GetOptions, Gguf, Got, adapter, get};
pub use import::{Candidate, ImportOptions, Imported, ImportedRow, import};
pub use package::{package, package_adapter, package_any};
#[cfg(feature = "cloud")]
pub use registry::{Pulled, PushReport, pull, push};
pub use serving::{Pass, Served, ServingOptions, serve_folder};
