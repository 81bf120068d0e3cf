//! The walk: every regular file below the paths given, once, and the adapter it belongs to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::problem::Problem;
use super::sum::add;
use crate::error::{Code, Error, Result};
use crate::fs::check_inside;
use crate::mlx::MLX_WEIGHTS_FILE;
use crate::peft::{CONFIG_FILE, PICKLE_FILE, TL_FILE, WEIGHTS_FILE, tl_beside};
use crate::store::Store;

/// A file of an adapter.
#[derive(Debug, Clone)]
pub(super) struct File {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) len: u64,
    /// What it takes on the disk, in bytes.
    pub(super) disk: u64,
    /// Whether its bytes count here: another name of the same inode may have been first.
    pub(super) counted: bool,
}

/// An adapter that was found: a folder of PEFT or MLX, a `.tl` or a `.nemo` file.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The folder or file.
    pub(super) path: PathBuf,
    /// The same, relative to the root it was found under, with `/`.
    pub(super) relative: String,
    /// Whether it is a file, and no folder.
    pub(super) is_file: bool,
    /// All files that belong to it, by path.
    pub(super) files: Vec<File>,
}

/// Files that belong to no adapter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Other {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What they take on the disk.
    pub disk_bytes: u64,
}

impl Other {
    pub(super) fn add(&mut self, more: &Self) {
        add(&mut self.files, more.files);
        add(&mut self.bytes, more.bytes);
        add(&mut self.disk_bytes, more.disk_bytes);
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By path.
    pub(super) found: Vec<Found>,
    pub(super) other: Other,
    /// Folders that could not be listed, and links to nothing.
    pub(super) problems: Vec<Problem>,
    /// Links to folders, which are not followed.
    pub(super) folder_links: u64,
    /// Stores, which are read by their records.
    pub(super) stores: Vec<PathBuf>,
}

struct Entry {
    root: usize,
    path: PathBuf,
    len: u64,
    disk: u64,
    inode: (u64, u64),
}

/// Lists everything below `roots`, each folder once, links to folders not followed.
///
/// # Errors
/// [`Code::NotFound`], [`Code::Io`] where a root itself cannot be listed.
pub(super) fn scan(roots: &[PathBuf]) -> Result<Scan> {
    let mut scan = Scan::default();
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for (at, root) in roots.iter().enumerate() {
        let meta = fs::metadata(root).map_err(|e| Error::io(root, "stat", e))?;
        if !meta.is_dir() {
            entries.extend(entry(at, root.clone(), &meta));
            continue;
        }
        fs::read_dir(root).map_err(|e| Error::io(root, "list", e))?;
        let mut level = vec![(root.clone(), inode(&meta))];
        while !level.is_empty() {
            level.retain(|(_, inode)| seen.insert(*inode));
            let (stores, folders): (Vec<_>, _) =
                level.into_iter().partition(|(dir, _)| Store::is_in(dir));
            scan.stores.extend(stores.into_iter().map(|(dir, _)| dir));
            level = folders;
            let list = |(dir, _): &(PathBuf, _)| list((at, root), dir);
            let lists: Vec<Listing> = level.par_iter().map(list).collect();
            level.clear();
            for list in lists {
                entries.extend(list.entries);
                level.extend(list.folders);
                scan.problems.extend(list.problems);
                scan.folder_links += list.folder_links;
            }
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    scan.problems.sort_by(|a, b| a.message.cmp(&b.message));
    scan.stores.sort();
    assign(&entries, roots, &mut scan);
    Ok(scan)
}

#[derive(Default)]
struct Listing {
    entries: Vec<Entry>,
    folders: Vec<(PathBuf, (u64, u64))>,
    problems: Vec<Problem>,
    folder_links: u64,
}

fn list((root, top): (usize, &Path), dir: &Path) -> Listing {
    let mut listing = Listing::default();
    let problem = |path: &Path, what: &str, e| Problem::from(&Error::io(path, what, e));
    let children = match fs::read_dir(dir) {
        Ok(children) => children,
        Err(e) => {
            listing.problems.push(problem(dir, "list", e));
            return listing;
        }
    };
    for child in children {
        let child = match child {
            Ok(child) => child,
            Err(e) => {
                listing.problems.push(problem(dir, "list", e));
                continue;
            }
        };
        let path = child.path();
        let own = match child.metadata() {
            Ok(meta) => meta,
            Err(e) => {
                listing.problems.push(problem(&path, "stat", e));
                continue;
            }
        };
        if own.is_dir() {
            listing.folders.push((path, inode(&own)));
            continue;
        }
        if !own.is_symlink() {
            listing.entries.extend(entry(root, path, &own));
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => listing.folder_links += 1,
            Ok(meta) => match check_inside(top, &path) {
                Ok(()) => listing.entries.extend(entry(root, path, &meta)),
                Err(error) => listing.problems.push(Problem::from(&error)),
            },
            Err(_) => {
                let error = Error::new(Code::NotFound, "a link to nothing").file(&path);
                listing.problems.push(Problem::from(&error));
            }
        }
    }
    listing
}

fn inode(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Pipes, sockets and devices hold no bytes, and are passed over.
fn entry(root: usize, path: PathBuf, meta: &Metadata) -> Option<Entry> {
    meta.is_file().then(|| Entry {
        root,
        path,
        len: meta.len(),
        disk: meta.blocks().saturating_mul(512),
        inode: inode(meta),
    })
}

/// Whether a file makes its folder an adapter.
fn is_marker(path: &Path) -> bool {
    [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, MLX_WEIGHTS_FILE]
        .iter()
        .any(|name| path.file_name().is_some_and(|n| n == *name))
}

/// Whether a file is called as an adapter in one file is.
fn is_whole(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tl" || e == "nemo")
}

/// Whether a file is an adapter by itself, but for the one that a folder of PEFT's Tied-LoRA is opened as.
fn is_alone(path: &Path) -> bool {
    let folder = path.parent().filter(|_| path.ends_with(TL_FILE));
    let beside = folder.map(tl_beside);
    is_whole(path) && !matches!(beside, Some(Ok(Some(_))))
}

/// Gives each file to the nearest adapter around it, and each inode to one file.
fn assign(entries: &[Entry], roots: &[PathBuf], scan: &mut Scan) {
    let mut homes: BTreeMap<&Path, usize> = BTreeMap::new();
    for entry in entries {
        if is_alone(&entry.path) {
            homes.insert(&entry.path, entry.root);
        } else if is_marker(&entry.path)
            && let Some(dir) = entry.path.parent()
        {
            homes.entry(dir).or_insert(entry.root);
        }
    }
    let home = |entry: &Entry| {
        if homes.contains_key(&*entry.path) {
            return Some(entry.path.clone());
        }
        let root = roots.get(entry.root)?;
        let mut above = entry.path.ancestors().skip(1);
        above
            .by_ref()
            .take_while(|dir| dir.starts_with(root))
            .find(|dir| homes.contains_key(dir))
            .map(Path::to_path_buf)
    };
    let places: Vec<Option<PathBuf>> = entries.par_iter().map(home).collect();
    // A name inside an adapter wins over one outside (blobs of a download cache), then the first.
    let mut first: HashMap<(u64, u64), usize> = HashMap::with_capacity(entries.len());
    for inside in [true, false] {
        for (at, (entry, place)) in entries.iter().zip(&places).enumerate() {
            if place.is_some() == inside {
                first.entry(entry.inode).or_insert(at);
            }
        }
    }
    let mut files: BTreeMap<PathBuf, Vec<File>> = BTreeMap::new();
    for (at, (entry, place)) in entries.iter().zip(places).enumerate() {
        let counted = first.get(&entry.inode) == Some(&at);
        match place {
            Some(place) => files.entry(place).or_default().push(File {
                path: entry.path.clone(),
                len: entry.len,
                disk: entry.disk,
                counted,
            }),
            None if counted => {
                scan.other.files += 1;
                add(&mut scan.other.bytes, entry.len);
                add(&mut scan.other.disk_bytes, entry.disk);
            }
            None => {}
        }
    }
    for (path, files) in files {
        let root = homes.get(path.as_path()).and_then(|r| roots.get(*r));
        scan.found.push(Found {
            relative: relative(&path, root),
            is_file: files.first().is_some_and(|f| f.path == path),
            path,
            files,
        });
    }
}

/// The path below its root; the name alone where a file was the root itself.
fn relative(path: &Path, root: Option<&PathBuf>) -> String {
    let rest = root.and_then(|r| path.strip_prefix(r).ok());
    let rest = match rest {
        Some(rest) if rest.as_os_str().is_empty() && is_whole(path) => {
            path.file_name().map(Path::new)
        }
        rest => rest,
    };
    rest.unwrap_or(path).to_string_lossy().into_owned()
}
