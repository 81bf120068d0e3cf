//! The adapters of a store into rows, from its records.

use std::path::Path;

use rayon::prelude::*;

use super::describe::Description;
use super::facts::HashedTensor;
use super::measured::of_adapter;
use super::owner::Owner;
use super::parts::{FileSums, Made, Parts};
use super::problem::Problem;
use super::row::{Format, Row};
use super::scan::Other;
use super::tensors::{Contents, StoredTensor, TensorSums};
use crate::error::{Error, Result};
use crate::format::Manifest;
use crate::progress::Progress;
use crate::store::{AdapterName, Name, Store, StoredAdapter, Which};

/// Whether a path is the address of a store elsewhere; stores in folders are found by the walk.
pub(super) fn is_remote(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

/// The rows of a store, and what belongs to none: older versions, published blobs, garbage. The
/// objects of the rows and the others are all objects of the store. Of the first `made` adapters the numbers are
/// read, and other forms made.
///
/// # Errors
/// Those of [`Store::open`]; [`crate::Code::StoreBackend`]; [`crate::Code::Interrupted`] by `progress`.
pub(super) fn rows(
    address: &str,
    made: usize,
    progress: &Progress<'_>,
) -> Result<(Vec<Row>, Other)> {
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
        let before = rows.len();
        let row = |(at, stored): (usize, &StoredAdapter)| {
            progress.advance(0)?;
            let owner = Owner {
                user: Some(user.to_string()),
                task: Some(stored.task.to_string()),
            };
            let parts = parts(address, &user, stored);
            let made = match before + at < made && parts.error.is_none() {
                true => forms(&store, &user, stored, &parts),
                false => None,
            };
            Ok(parts.into_row(owner, made))
        };
        let found = inventory.adapters.par_iter().enumerate().map(row);
        rows.extend(found.collect::<Result<Vec<_>>>()?);
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

/// The forms of a version, every tensor verified.
fn forms(store: &Store, user: &Name, stored: &StoredAdapter, parts: &Parts) -> Option<Made> {
    if parts.sums.as_ref()?.is_coded {
        return None;
    }
    let name = AdapterName {
        user: user.clone(),
        task: stored.task.clone(),
        which: Which::Number(stored.number),
    };
    let adapter = Manifest::parse(&stored.manifest).and_then(|m| m.load(&store.get(&name)?));
    Some(match adapter {
        Ok(adapter) => of_adapter(adapter),
        Err(error) => Made::failed(error.file(&parts.path)),
    })
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
