//! The adapters of a store into rows, from its records.

use std::path::Path;

use super::describe::Description;
use super::facts::HashedTensor;
use super::owner::Owner;
use super::parts::{FileSums, Parts};
use super::problem::Problem;
use super::row::{Format, Row};
use super::scan::Other;
use super::tensors::{Contents, StoredTensor, TensorSums};
use crate::error::{Error, Result};
use crate::format::Manifest;
use crate::store::{Name, Store, StoredAdapter};

/// Whether a path is the address of a store elsewhere; stores in folders are found by the walk.
pub(super) fn is_remote(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// The rows of a store, and what belongs to none: older versions, published blobs, garbage. The
/// objects of the rows and the others are all objects of the store.
///
/// # Errors
/// Those of [`Store::open`]; [`crate::Code::StoreBackend`].
pub(super) fn rows(address: &str) -> Result<(Vec<Row>, Other)> {
    let store = Store::open(address)?;
    let (files, bytes) = store.common_objects()?;
    let mut other = Other {
        files,
        bytes,
        disk_bytes: bytes,
    };
    let mut rows = Vec::new();
    for user in store.tenants()? {
        let inventory = match store.inventory(&user) {
            // The tenant's part of the store, not the store.
            Err(e) if e.code() != crate::Code::StoreBackend => {
                rows.push(Row {
                    user: Some(user.to_string()),
                    error: Some(Problem::from(&e)),
                    ..Row::new(format!("{address}#{user}"), Format::Store)
                });
                continue;
            }
            inventory => inventory?,
        };
        other.files += inventory.other_objects;
        other.bytes += inventory.other_bytes;
        other.disk_bytes += inventory.other_bytes;
        let row = |stored: StoredAdapter| {
            let owner = Owner {
                user: Some(user.to_string()),
                task: Some(stored.task.to_string()),
            };
            parts(address, &user, &stored).into_row(owner, None)
        };
        rows.extend(inventory.adapters.into_iter().map(row));
    }
    Ok((rows, other))
}

fn parts(address: &str, user: &Name, stored: &StoredAdapter) -> Parts {
    let address = address.trim_end_matches('/');
    let path = format!("{address}#{user}/{}@{}", stored.task, stored.number);
    let files = FileSums {
        files: stored.objects,
        bytes: stored.bytes,
        disk_bytes: stored.bytes,
        adapter_bytes: stored.bytes,
        ..FileSums::default()
    };
    let empty = Parts::new(path, Format::Store, files);
    let failed = |parts: Parts, e: &Error| Parts {
        error: Some(Problem::from(e)),
        ..parts
    };
    if let Some(e) = &stored.error {
        return failed(empty, e);
    }
    let manifest = Manifest::parse(&stored.manifest);
    let described = manifest.and_then(|m| Ok((Description::of_tl(&m.adapter()?), m)));
    let (description, manifest) = match described {
        Ok(described) => described,
        Err(e) => return failed(empty, &e),
    };
    let described = Parts {
        description,
        ..empty
    };
    match tensors(stored, &manifest) {
        Ok((sums, contents)) => Parts {
            sums: Some(sums),
            contents,
            ..described
        },
        Err(e) => failed(described, &e),
    }
}

/// The tensors that a version has in the store, packed as they are there.
fn tensors(stored: &StoredAdapter, manifest: &Manifest) -> Result<(TensorSums, Contents)> {
    let blobs = stored.version.iter().flat_map(|v| &v.blobs);
    let sizes: Vec<_> = blobs.zip(&stored.blob_bytes).collect();
    let mut tensors = Vec::new();
    for (name, tensor) in manifest.tensors() {
        let held = sizes.iter().find(|(blob, _)| blob.sha256 == tensor.sha256);
        if let Some((_, bytes)) = held {
            tensors.push(StoredTensor::of_manifest(name, tensor, **bytes)?);
        }
    }
    let own = sizes.iter().filter(|(_, bytes)| **bytes > 0);
    let hashed = own.map(|(blob, bytes)| HashedTensor {
        digest: blob.sha256,
        bytes: **bytes,
        // Packed bytes say nothing of what a narrower type would take.
        wide: 0,
    });
    let contents = Contents {
        hashed: hashed.collect(),
        ..Contents::default()
    };
    Ok((TensorSums::of(&tensors), contents))
}
