//! The adapters of a store into rows, from its records.

use std::path::Path;

use super::read::{describe_tl, empty_row, summarise, tensor_item};
use super::row::{Form, Piece, Problem, Row};
use super::scan::Other;
use crate::error::Result;
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
                let mut row = empty_row(format!("{address}#{user}"), Form::Store);
                row.user = Some(user.to_string());
                row.error = Some(Problem::from(&e));
                rows.push(row);
                continue;
            }
            inventory => inventory?,
        };
        other.files += inventory.other_objects;
        other.bytes += inventory.other_bytes;
        other.disk_bytes += inventory.other_bytes;
        let row = |stored| row(address, &user, stored);
        rows.extend(inventory.adapters.into_iter().map(row));
    }
    Ok((rows, other))
}

fn row(address: &str, user: &Name, stored: StoredAdapter) -> Row {
    let address = address.trim_end_matches('/');
    let path = format!("{address}#{user}/{}@{}", stored.task, stored.number);
    let mut row = empty_row(path, Form::Store);
    row.user = Some(user.to_string());
    row.task = Some(stored.task.to_string());
    row.files = stored.objects;
    row.bytes = stored.bytes;
    row.disk_bytes = stored.bytes;
    row.adapter_bytes = stored.bytes;
    let described = match &stored.error {
        Some(e) => Err(Problem::from(e)),
        None => describe(&stored, &mut row).map_err(|e| Problem::from(&e)),
    };
    row.error = described.err();
    row
}

fn describe(stored: &StoredAdapter, row: &mut Row) -> Result<()> {
    let manifest = Manifest::parse(&stored.manifest)?;
    describe_tl(&manifest.adapter()?, row);
    let blobs = stored.version.iter().flat_map(|v| &v.blobs);
    let sizes: Vec<_> = blobs.zip(&stored.blob_bytes).collect();
    let mut items = Vec::new();
    for (name, tensor) in manifest.tensors() {
        let held = sizes.iter().find(|(blob, _)| blob.sha256 == tensor.sha256);
        if let Some((_, bytes)) = held {
            items.push(tensor_item(name, tensor, **bytes)?);
        }
    }
    summarise(&items, row);
    // Packed bytes say nothing of what a narrower type would take.
    let pieces = sizes.iter().filter(|(_, bytes)| **bytes > 0);
    row.facts.pieces = pieces
        .map(|(blob, bytes)| Piece {
            digest: blob.sha256,
            bytes: **bytes,
            wide: 0,
        })
        .collect();
    Ok(())
}
