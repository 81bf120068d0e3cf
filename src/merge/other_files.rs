//! The files of a model directory that are not weights, and go along: copied by a merge, and told to
//! whoever compares with one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::parts::left_out;
use super::plan::MergePlan;
use crate::error::{Error, Result};
use crate::fs::{
    MAX_DEPTH, Visited, check_inside, make_dir, open_regular, parent, same_bytes, sync_dir, walk,
};
use crate::quant::OTHER_FILES;
use crate::safetensors::INDEX_FILE;

/// The files of the base directory that are not shards.
pub(super) struct OtherFiles {
    /// Paths within the base.
    files: Vec<PathBuf>,
    skipped: Vec<String>,
    pub(super) bytes: u64,
}

impl OtherFiles {
    pub(super) fn list(plan: &MergePlan<'_>) -> Result<Self> {
        let mut all = Self {
            files: Vec::new(),
            skipped: Vec::new(),
            bytes: 0,
        };
        walk(plan.base().path(), &mut |path, found| {
            all.note(plan, path, found)
        })?;
        // What an adapter brings may have no counterpart in the base.
        for (name, content) in &plan.rewritten {
            if !all.files.iter().any(|path| path == Path::new(name)) {
                all.bytes += content.len() as u64;
                all.files.push(PathBuf::from(name));
            }
        }
        all.files.sort();
        all.skipped.sort();
        Ok(all)
    }

    /// Takes in what a walk through the base came by.
    fn note(&mut self, plan: &MergePlan<'_>, path: PathBuf, found: Visited) -> Result<()> {
        let base = plan.base();
        if matches!(found, Visited::ClosedFolder) {
            self.skip(&path, "hidden folder");
            return Ok(());
        }
        // Models in a download cache are folders of links to files.
        let meta = fs::metadata(base.path().join(&path));
        let Some(meta) = meta.ok().filter(|m| m.is_file()) else {
            self.skip(&path, "not a file");
            return Ok(());
        };
        if plan.shards().iter().any(|s| path == Path::new(&s.name)) {
            return Ok(());
        }
        let is_index = base.is_sharded() && path == Path::new(INDEX_FILE);
        let told = plan.quantised().is_some() && OTHER_FILES.iter().any(|n| path == Path::new(n));
        let reason = told.then_some("describes the quantisation");
        let reason = reason.or_else(|| left_out(base, &path).filter(|_| !is_index));
        if let Some(reason) = reason {
            self.skip(&path, reason);
            return Ok(());
        }
        check_inside(base.path(), &base.path().join(&path))?;
        self.bytes += meta.len();
        self.files.push(path);
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.skipped.push(format!("{}: {reason}", path.display()));
    }

    /// Every file that a merge may write, relative to the output: shards and these.
    pub(super) fn names(&self, plan: &MergePlan<'_>) -> Vec<PathBuf> {
        let shards = plan.shards().iter().map(|s| PathBuf::from(&s.name));
        shards.chain(self.files.iter().cloned()).collect()
    }

    /// Removes all but shards from a folder that an interrupted merge was filling.
    pub(super) fn clear(&self, plan: &MergePlan<'_>, folder: &Path) -> Result<()> {
        let io = |e| Error::io(folder, "clean up", e);
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io)?,
        };
        for entry in entries {
            let entry = entry.map_err(io)?;
            let kind = entry.file_type().map_err(io)?;
            let is_shard = plan.shards().iter().any(|s| entry.file_name() == *s.name);
            let removed = match kind.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false if is_shard && kind.is_file() => Ok(()),
                false => fs::remove_file(entry.path()),
            };
            removed.map_err(io)?;
        }
        Ok(())
    }

    /// Copies them into the staging folder, rewritten ones with their new content. None gets wider
    /// permissions than it has in the base.
    pub(super) fn copy(
        &self,
        plan: &MergePlan<'_>,
        to: &Path,
        durable: bool,
    ) -> Result<Vec<String>> {
        let base = plan.base().path();
        for path in &self.files {
            self.copy_folders(base, parent(path), to)?;
            let (from, dest) = (base.join(path), to.join(path));
            let new = plan.rewritten.iter().find(|(n, _)| path == Path::new(n));
            let mut source = None;
            let mut mode = 0o666;
            if new.is_none() || from.symlink_metadata().is_ok() {
                check_inside(base, &from)?;
                let (file, _) = open_regular(&from)?;
                let meta = file.metadata().map_err(|e| Error::io(&from, "stat", e))?;
                mode = meta.mode() & 0o777;
                source = Some(file);
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&dest)
                .map_err(|e| Error::io(&dest, "create", e))?;
            match (new, &mut source) {
                (Some((_, content)), _) => file.write_all(content),
                (None, Some(source)) => io::copy(source, &mut file).map(drop),
                (None, None) => Ok(()),
            }
            .map_err(|e| Error::io(&dest, "write", e))?;
            if durable {
                file.sync_all().map_err(|e| Error::io(&dest, "sync", e))?;
                sync_dir(parent(&dest))?;
            }
        }
        Ok(self.skipped.clone())
    }

    /// Makes the folders of the base that lead to `inside`, with the base's permissions.
    fn copy_folders(&self, base: &Path, inside: &Path, to: &Path) -> Result<()> {
        let mut path = PathBuf::new();
        for part in inside.components().filter(|p| p.as_os_str() != ".") {
            path.push(part);
            let (from, dest) = (base.join(&path), to.join(&path));
            let mode = from
                .metadata()
                .map_err(|e| Error::io(&from, "stat", e))?
                .mode();
            match make_dir(&dest, mode | 0o700) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(&dest, "create", e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether `folder` has these files with the content that they would be given, and no file beside
    /// them and the shards.
    pub(super) fn are_in(&self, plan: &MergePlan<'_>, folder: &Path) -> Result<bool> {
        let mut found = Vec::new();
        if !list(folder, Path::new(""), 0, &mut found)? {
            return Ok(false);
        }
        let mut names = self.names(plan);
        names.sort();
        found.sort();
        if found != names {
            return Ok(false);
        }
        for path in &self.files {
            let new = plan.rewritten.iter().find(|(n, _)| path == Path::new(n));
            let made = folder.join(path);
            let same = match new {
                Some((_, content)) => fs::read(&made).is_ok_and(|b| b == *content),
                None => same_bytes(&open_regular(&plan.base().path().join(path))?.0, &made),
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A file of a merged model directory that holds no merged weights.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    /// Path within the folder.
    pub path: PathBuf,
    /// What it will hold, where that is not the content of the base's file.
    pub content: Option<Vec<u8>>,
}

/// Every file that [`execute`](super::execute()) writes into a directory, besides shards; ascending by path.
///
/// # Errors
/// [`crate::Code::Io`] where the base cannot be listed.
pub(crate) fn written_files(plan: &MergePlan<'_>) -> Result<Vec<WrittenFile>> {
    let is_shard = |path: &PathBuf| plan.shards().iter().any(|s| path == Path::new(&s.name));
    let content = |path: &PathBuf| {
        let new = plan
            .rewritten
            .iter()
            .find(|(n, _)| *path == PathBuf::from(n));
        new.map(|(_, content)| content.clone())
    };
    let names = OtherFiles::list(plan)?.names(plan);
    let mut files: Vec<WrittenFile> = names
        .into_iter()
        .filter(|path| !is_shard(path))
        .map(|path| WrittenFile {
            content: content(&path),
            path,
        })
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Lists the regular files below `folder`; false where there is anything else, or they lie too deep.
fn list(folder: &Path, inside: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<bool> {
    let path = folder.join(inside);
    let io = |e| Error::io(&path, "list", e);
    for entry in fs::read_dir(&path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        let path = inside.join(entry.file_name());
        if kind.is_file() {
            found.push(path);
        } else if !kind.is_dir() || depth == MAX_DEPTH || !list(folder, &path, depth + 1, found)? {
            return Ok(false);
        }
    }
    Ok(true)
}
