//! What an output may replace: one rule for every command that writes.
//!
//! Only what tlkit or PEFT would have written under the name is replaced, and only where that was
//! asked for. A file replaces a regular file. A folder replaces a folder that is empty or holds
//! nothing but files of the kind that is written ([`Output`]). Neither ever replaces the other, a
//! link (which is not followed either), a device, a pipe, a socket or a mount point; a folder never
//! the root, the home or the working directory, or one above that. The rule is applied before the
//! work, and again to what is swapped out when the output gets its name (see `staging`).

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::parent::parent;
use crate::error::{Code, Error, Result};

/// Deepest folder of a model that is looked at, as merging copies no deeper ones.
const MAX_DEPTH: usize = 8;

/// What to do where the output exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Fail with [`Code::OutputExists`].
    #[default]
    Refuse,
    /// Leave a file that has the very bytes that would be written, and fail with
    /// [`Code::OutputExists`] on any other: for commands with several outputs, of which an earlier
    /// run may have finished some.
    Same,
    /// Replace it in one step, where the rule of [`check_output`](super::check_output) permits.
    Replace,
}

/// What is written, and so what may be replaced by it.
#[derive(Debug, Clone, Copy)]
pub enum Output<'a> {
    /// A file.
    File,
    /// The folder of an adapter of PEFT or MLX.
    Adapter,
    /// A folder of `.tl` files, and of their blobs in `blobs`.
    SharedAdapters,
    /// A model's folder. Beside the names that models have, it may have these, relative to it.
    Model(&'a [PathBuf]),
}

/// What a folder that may be replaced holds, the innermost folders last.
#[derive(Debug, Default)]
pub(super) struct Contents {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Contents {
    /// Removes exactly this from `path`, and `path` itself if nothing else is in it.
    ///
    /// Best effort: what cannot be removed stays, and is looked at again by the next writer.
    pub(super) fn remove(&self, path: &Path) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        for folder in self.folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
        let _ = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => fs::remove_dir(path),
            _ => Ok(()),
        };
    }
}

/// Refuses an output that may not be written there. Gives its path with the name as the last component,
/// without which a link with a slash behind it would be followed.
pub(super) fn check(dest: &Path, output: Output<'_>, existing: Existing) -> Result<PathBuf> {
    let dest = named(dest)?;
    let Ok(meta) = dest.symlink_metadata() else {
        return Ok(dest);
    };
    check_kind(&dest, &meta, output)?;
    match existing {
        Existing::Refuse => return Err(Error::output_exists(&dest)),
        Existing::Same if meta.is_dir() => return Err(Error::output_exists(&dest)),
        Existing::Same => return Ok(dest),
        Existing::Replace => {}
    }
    check_place(&dest, &meta)?;
    contents(&dest, output)?;
    Ok(dest)
}

/// Refuses to replace what the same command reads: a file under any of its names, a folder with an
/// input inside, a file of a folder that is read. What does not exist yet is no input.
///
/// # Errors
/// [`Code::Usage`].
pub fn check_inputs<P: AsRef<Path>>(dest: &Path, inputs: &[P]) -> Result<()> {
    let dest = named(dest)?;
    let Ok(own) = dest.metadata() else {
        return Ok(());
    };
    let refused = |message: &str| Err(Error::new(Code::Usage, message).file(&dest));
    for input in inputs.iter().map(AsRef::as_ref) {
        let Ok(meta) = input.metadata() else {
            continue;
        };
        if identity(&own) == identity(&meta) {
            return refused("the output is also an input");
        }
        let (Ok(whole), Ok(part)) = (dest.canonicalize(), input.canonicalize()) else {
            continue;
        };
        if own.is_dir() && part.starts_with(&whole) {
            return refused("an input lies in the output, and would be replaced with it");
        }
        if own.is_file() && meta.is_dir() && is_read_in(&part, &whole, &own) {
            return refused("the output is a file of an input");
        }
    }
    Ok(())
}

/// Refuses an output in a folder of which every file is the command's own, as those of a store are.
///
/// # Errors
/// [`Code::Usage`].
pub fn check_outside(dest: &Path, folder: &Path, what: &str) -> Result<()> {
    let there = dest
        .ancestors()
        .find_map(|part| match part.as_os_str().is_empty() {
            true => Path::new(".").canonicalize().ok(),
            false => part.canonicalize().ok(),
        });
    match (there, folder.canonicalize()) {
        (Some(there), Ok(folder)) if there.starts_with(&folder) => {
            let message = format!("the output lies in {what}");
            Err(Error::new(Code::Usage, message).file(dest))
        }
        _ => Ok(()),
    }
}

/// Whether a file is one that is read where `folder` is an input. Results may lie there as well.
fn is_read_in(folder: &Path, file: &Path, own: &Metadata) -> bool {
    const READ: [&str; 6] = ["safetensors", "bin", "json", "jinja", "model", "jsonl"];
    if file.starts_with(folder) {
        return file
            .extension()
            .is_some_and(|e| READ.iter().any(|r| e == *r));
    }
    let same = |entry: fs::DirEntry| {
        entry
            .metadata()
            .is_ok_and(|m| identity(&m) == identity(own))
    };
    own.nlink() > 1 && fs::read_dir(folder).is_ok_and(|all| all.flatten().any(same))
}

/// The path with the output's name as its last component.
pub(super) fn named(dest: &Path) -> Result<PathBuf> {
    match dest.file_name() {
        Some(name) => Ok(match parent(dest) {
            // As the user wrote it, in messages.
            folder if folder == Path::new(".") => PathBuf::from(name),
            folder => folder.join(name),
        }),
        None => Err(Error::new(Code::Usage, "the output needs a name").file(dest)),
    }
}

pub(super) fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn never(dest: &Path, why: &str) -> Error {
    let message = format!("{why}; it is not replaced");
    Error::new(Code::OutputExists, message)
        .file(dest)
        .hint("choose another name")
}

/// Refuses what no output of this kind replaces.
pub(super) fn check_kind(dest: &Path, meta: &Metadata, output: Output<'_>) -> Result<()> {
    let kind = meta.file_type();
    let what = match (kind.is_file(), kind.is_dir()) {
        _ if kind.is_symlink() => "is a symbolic link",
        _ if kind.is_block_device() || kind.is_char_device() => "is a device",
        _ if kind.is_fifo() => "is a pipe",
        _ if kind.is_socket() => "is a socket",
        (true, _) if matches!(output, Output::File) => return Ok(()),
        (_, true) if !matches!(output, Output::File) => return Ok(()),
        (true, _) => "exists and is a file, and the output a folder",
        (_, true) => "exists and is a folder, and the output a file",
        _ => "is neither a file nor a folder",
    };
    Err(never(dest, what))
}

/// Refuses places that are more than an output, whatever they hold.
fn check_place(dest: &Path, meta: &Metadata) -> Result<()> {
    // Kernels before 5.8 cannot say; there, renaming a mount point fails with an error of its own.
    let stat = statx(CWD, dest, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    if stat.is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return Err(never(dest, "is a mount point"));
    }
    if !meta.is_dir() {
        return Ok(());
    }
    let is = |other: &Path| {
        other
            .metadata()
            .is_ok_and(|o| identity(&o) == identity(meta))
    };
    if std::env::home_dir().is_some_and(|home| is(&home)) {
        return Err(never(dest, "is the home directory"));
    }
    let cwd = std::env::current_dir().unwrap_or_default();
    if cwd.ancestors().any(is) {
        return Err(never(dest, "is the working directory, or above it"));
    }
    Ok(())
}

/// What is at `path`, where an output of this kind may replace it.
///
/// # Errors
/// [`Code::OutputExists`] with the first thing that is of another kind; [`Code::Io`].
pub(super) fn contents(path: &Path, output: Output<'_>) -> Result<Contents> {
    let meta = path
        .symlink_metadata()
        .map_err(|e| Error::io(path, "stat", e))?;
    check_kind(path, &meta, output)?;
    let mut all = Contents::default();
    if meta.is_file() {
        all.files.push(path.to_owned());
        return Ok(all);
    }
    let foreign = walk(path, Path::new(""), output, &mut all)?;
    let has = |names: &[&str]| names.iter().any(|n| all.files.contains(&path.join(n)));
    let empty = all.files.is_empty() && all.folders.is_empty() && foreign.is_none();
    let (is_one, what) = match output {
        Output::Adapter => (has(&[ADAPTER_CONFIG]), "is not a PEFT adapter's folder"),
        Output::Model(_) => (has(&MODEL_MARKS), "is not a model directory"),
        Output::SharedAdapters => (
            all.files
                .iter()
                .any(|f| f.extension().is_some_and(|e| e == "tl")),
            "",
        ),
        Output::File => (true, ""),
    };
    if matches!(output, Output::SharedAdapters) && !empty && (!is_one || foreign.is_some()) {
        let message = "the output exists, and holds more than .tl files and blobs";
        let error = Error::new(Code::OutputExists, message).file(path);
        return Err(error.hint("choose another name"));
    }
    if !is_one && !empty {
        return Err(never(path, &format!("exists and {what}")));
    }
    match foreign {
        Some(name) => {
            let message = format!("holds `{}`, which is not of such an output", name.display());
            Err(never(path, &message))
        }
        None => Ok(all),
    }
}

/// Lists what belongs into an output of this kind; gives the first thing that does not.
fn walk(
    root: &Path,
    inside: &Path,
    output: Output<'_>,
    all: &mut Contents,
) -> Result<Option<PathBuf>> {
    let folder = root.join(inside);
    let io = |e| Error::io(&folder, "list", e);
    let mut foreign = None;
    for entry in fs::read_dir(&folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        let path = inside.join(entry.file_name());
        let deep = path.components().count() > MAX_DEPTH;
        if kind.is_file() && is_own(&path, output) {
            all.files.push(root.join(path));
        } else if kind.is_dir() && !deep && is_own_folder(&path, output) {
            all.folders.push(root.join(&path));
            let found = walk(root, &path, output, all)?;
            foreign = foreign.or(found);
        } else {
            foreign = foreign.or(Some(path));
        }
    }
    Ok(foreign)
}

const ADAPTER_CONFIG: &str = "adapter_config.json";
const MODEL_MARKS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];
const BLOBS: &str = "blobs";

/// Whether tlkit or PEFT writes a file of this name, relative to the output's folder.
fn is_own(path: &Path, output: Output<'_>) -> bool {
    const ADAPTER: [&str; 6] = [
        ADAPTER_CONFIG,
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapters.safetensors",
        "README.md",
        ".gitattributes",
    ];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let top = path.components().count() == 1;
    match output {
        Output::File => false,
        Output::Adapter => top && ADAPTER.contains(&&*name),
        Output::SharedAdapters if top => name.ends_with(".tl"),
        Output::SharedAdapters => name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()),
        Output::Model(also) => {
            let shard = name.starts_with("model-") && name.ends_with(".safetensors");
            top && shard || is_of_models(&name) || also.iter().any(|a| a == path)
        }
    }
}

fn is_own_folder(path: &Path, output: Output<'_>) -> bool {
    match output {
        Output::File | Output::Adapter => false,
        Output::SharedAdapters => path == Path::new(BLOBS),
        // Merging copies no hidden folders: one that is there is a repository, or a cache.
        Output::Model(_) => {
            let name = path.file_name().unwrap_or_default();
            !name.as_encoded_bytes().starts_with(b".")
        }
    }
}

/// Names of files that go with the weights of a model.
fn is_of_models(name: &str) -> bool {
    const NAMES: [&str; 21] = [
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.json",
        "modules.json",
        "configuration.json",
        "README.md",
        ".gitattributes",
        "LICENSE",
        "LICENSE.txt",
        "LICENSE.md",
        "NOTICE",
        "NOTICE.txt",
        "USE_POLICY.md",
    ];
    const PYTHON: [&str; 3] = ["modeling_", "configuration_", "tokenization_"];
    let python = || name.ends_with(".py") && PYTHON.iter().any(|p| name.starts_with(p));
    NAMES.contains(&name)
        || name.ends_with("_config.json")
        || name.ends_with(".jinja")
        || name.ends_with(".tiktoken")
        || python()
}
