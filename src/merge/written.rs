//! What a merge writes beside the weights, for whoever compares with it.

use std::path::{Path, PathBuf};

use super::others::Others;
use super::plan::Plan;
use crate::error::Result;

/// A file of a merged model directory that holds no merged weights.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    /// Path within the folder.
    pub path: PathBuf,
    /// What it will hold, where that is not the content of the base's file.
    pub content: Option<Vec<u8>>,
}

/// Every file that [`super::execute`] writes into a directory, besides shards; ascending by path.
///
/// # Errors
/// [`crate::Code::Io`] where the base cannot be listed.
pub(crate) fn written_files(plan: &Plan<'_>) -> Result<Vec<WrittenFile>> {
    let is_shard = |path: &PathBuf| plan.shards().iter().any(|s| path == Path::new(&s.name));
    let content = |path: &PathBuf| {
        let new = plan
            .rewritten
            .iter()
            .find(|(n, _)| *path == PathBuf::from(n));
        new.map(|(_, content)| content.clone())
    };
    let names = Others::list(plan)?.names(plan);
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
