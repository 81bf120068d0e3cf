//! The adapters of a store as folders that servers read: `DIR/USER/TASK` is PEFT's, or rather a link to
//! `DIR/.tlkit/ROOT-FORM`, so that another version is another folder and appears in one step.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::export::{NotExported, tenants};
use super::get::{Form, GetOptions, get};
use crate::digest::Hasher;
use crate::error::{Code, Error, ErrorKind, Result};
use crate::fit::CodeTarget;
use crate::fs::{Existing, rename_new};
use crate::peft::{CARD_FILE, CONFIG_FILE, WEIGHTS_FILE};
use crate::progress::Progress;
use crate::safetensors::Checkpoint;
use crate::store::{AdapterName, Listed, Name, Store, Trust, Which};

/// Where the folders are that the links lead to. No user has such a name.
const ROOTS: &str = ".tlkit";
/// What the links of a user's folder have before a folder's name.
const TO_ROOTS: &str = "../.tlkit/";
/// How long a folder stays that no link leads to: a server may be reading it.
const GRACE: Duration = Duration::from_secs(600);

/// What to export, and how.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ServingOptions {
    /// One tenant; all of them where not given.
    pub user: Option<Name>,
    /// Whether the portable form is written, which every server loads alike.
    pub portable: bool,
    /// What the configs call the base: the name that the server has for it.
    pub base_name: Option<String>,
    /// The base model, as for [`GetOptions::base`].
    pub base: Option<Arc<Checkpoint>>,
    /// Whether `DIR/USER/TASK@N` is there too, of the same version.
    pub versions: bool,
    /// What each adapter's numbers are coded to keep to; as they are where not given.
    pub code: Option<CodeTarget>,
    /// Whose signature is asked for; none where there are no keys.
    pub trust: Trust,
}

/// A version that is served from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Served {
    /// `USER/TASK`.
    pub adapter: String,
    /// The number of the version.
    pub version: u64,
    /// The adapter's root.
    pub root: String,
    /// Bytes written; 0 where the folder was there, of another adapter with the same root.
    pub bytes: u64,
}

/// What one pass over the store did.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Pass {
    /// Number of tenants.
    pub tenants: usize,
    /// Number of adapters that are served.
    pub adapters: usize,
    /// Those that are new, or of another version than before.
    pub served: Vec<Served>,
    /// Those that are served no more.
    pub removed: Vec<String>,
    /// Those that could not be written, and tenants that could not be listed. One whose last version cannot be
    /// written is not served; where the store could not be read, what was served stays.
    pub failed: Vec<NotExported>,
    /// What whoever serves them should know.
    pub notes: Vec<String>,
    /// The folder.
    pub output: PathBuf,
}

impl Pass {
    /// Whether anything is to be told.
    pub fn is_news(&self) -> bool {
        !(self.served.is_empty() && self.removed.is_empty() && self.failed.is_empty())
    }
}

/// Brings `dir` to what the store has: the last version of every adapter, each whole or not at all. Adapters
/// that are gone from the store go. Nothing in `dir` is replaced or removed but links into its own `.tlkit`
/// and, ten minutes after the last link to them, the folders there.
///
/// # Errors
/// [`Code::StoreBackend`] where the store cannot be listed, [`Code::NoSpace`]; [`Code::Io`] where `dir` cannot
/// be made or read; [`Code::OutputExists`] where something else has the place of `.tlkit`;
/// [`Code::NotInStore`] where there is no such tenant; [`Code::Interrupted`] by `progress`.
pub fn serve_folder(
    store: &Store,
    dir: &Path,
    options: &ServingOptions,
    progress: Progress<'_>,
) -> Result<Pass> {
    options.code.map_or(Ok(()), CodeTarget::check)?;
    let users = tenants(store, options.user.as_ref())?;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
    own_folder(&dir.join(ROOTS))?;
    let mut pass = Pass {
        tenants: users.len(),
        output: dir.to_owned(),
        ..Pass::default()
    };
    for user in &users {
        let listed = match store.list(user) {
            Err(e) if e.code() != Code::StoreBackend => {
                pass.fail(user.to_string(), &e);
                continue;
            }
            listed => listed?,
        };
        let mut keep = BTreeSet::new();
        for adapter in &listed {
            progress.advance(0)?;
            let name = format!("{user}/{}", adapter.task);
            match bring(store, dir, adapter, options, &mut pass) {
                Ok(links) => {
                    pass.adapters += 1;
                    keep.extend(links);
                }
                Err(e) if e.code() == Code::NoSpace => return Err(e),
                // Removed since it was listed.
                Err(e) if e.code() == Code::NotInStore => {}
                Err(e) => {
                    if stays(&e) {
                        keep.extend(links_of(dir, adapter)?);
                    }
                    pass.fail(name, &e);
                }
            }
        }
        unlink(dir, user.as_str(), &keep, &mut pass)?;
        progress.advance(1)?;
    }
    if options.user.is_none() {
        let known: BTreeSet<&str> = users.iter().map(Name::as_str).collect();
        for user in names(dir)?.iter().filter(|n| !known.contains(n.as_str())) {
            unlink(dir, user, &BTreeSet::new(), &mut pass)?;
        }
    }
    collect(dir)?;
    Ok(pass)
}

/// Whether what was served may stay: the store or the disk failed, not the adapter.
fn stays(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Io | ErrorKind::Interrupted)
}

impl Pass {
    fn fail(&mut self, adapter: String, e: &Error) {
        self.failed.push(NotExported {
            adapter,
            code: e.code(),
            message: e.to_string(),
        });
    }
}

/// Brings one adapter to its version; gives the names of its links.
fn bring(
    store: &Store,
    dir: &Path,
    adapter: &Listed,
    options: &ServingOptions,
    pass: &mut Pass,
) -> Result<Vec<String>> {
    let damaged = || {
        let why = adapter.error.clone().unwrap_or_default();
        Error::new(Code::StoreDamaged, why)
    };
    let root = adapter.entry.as_ref().and_then(|e| e.root.clone());
    let root = root.ok_or_else(damaged)?;
    let folder = format!("{}-{}", digits(&root), form(options)?);
    let own = dir.join(ROOTS).join(&folder);
    let mut bytes = 0;
    if !is_whole(&own) {
        let name = AdapterName {
            user: adapter.user.clone(),
            task: adapter.task.clone(),
            which: Which::Number(adapter.version),
        };
        let get_options = GetOptions {
            form: Form::Peft,
            portable: options.portable,
            base_name: options.base_name.clone(),
            base: options.base.clone(),
            code: options.code,
            existing: Existing::Replace,
            trust: options.trust.clone(),
            ..GetOptions::default()
        };
        let got = get(store, &name, &own, &get_options)?;
        bytes = got.bytes;
        let label = format!("{}/{}", adapter.user, adapter.task);
        let notes = got.notes.iter().map(|n| format!("{label}: {n}"));
        pass.notes.extend(notes);
    }
    let user = dir.join(adapter.user.as_str());
    own_folder(&user)?;
    let mut links = vec![adapter.task.to_string()];
    if options.versions {
        links.push(format!("{}@{}", adapter.task, adapter.version));
    }
    let mut moved = false;
    for link in &links {
        moved |= point(&user.join(link), &format!("{TO_ROOTS}{folder}"))?;
    }
    if moved {
        pass.served.push(Served {
            adapter: format!("{}/{}", adapter.user, adapter.task),
            version: adapter.version,
            root,
            bytes,
        });
    }
    Ok(links)
}

/// The hex digits of a root.
fn digits(root: &str) -> &str {
    root.rsplit_once(':').map_or(root, |(_, digits)| digits)
}

/// Tells folders of one root apart that are written otherwise.
fn form(options: &ServingOptions) -> Result<String> {
    let modules = options.base.as_ref().map(|base| {
        let tensors = base.tensors().iter();
        let shapes = tensors.map(|(name, at)| format!("{name}{:?}", base.at(*at).1.shape));
        shapes.collect::<Vec<_>>()
    });
    let plain = (1, options.portable, &options.base_name, modules);
    let what = match options.code {
        None => serde_json::to_vec(&plain),
        Some(code) => serde_json::to_vec(&(plain, format!("{code:?}"))),
    };
    let what = what.map_err(|e| Error::new(Code::Internal, "the form of an export").cause(e))?;
    let mut hasher = Hasher::default();
    hasher.update(&what);
    Ok(hasher.finish().hex()[..16].to_owned())
}

/// Whether an adapter's folder has both its files, which come in one step.
fn is_whole(folder: &Path) -> bool {
    let is = |name: &str| {
        let meta = folder.join(name).symlink_metadata();
        meta.is_ok_and(|m| m.is_file())
    };
    is(CONFIG_FILE) && is(WEIGHTS_FILE)
}

/// Makes a folder, or finds it: a link to one would lead elsewhere.
fn own_folder(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            match path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                true => Ok(()),
                false => Err(Error::output_exists(path)),
            }
        }
        made => made.map_err(|e| Error::io(path, "create", e)),
    }
}

/// The folder in `.tlkit` that a link leads to; `None` for whatever else is there.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    let folder = target.to_str()?.strip_prefix(TO_ROOTS)?;
    let plain = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    (!folder.is_empty() && folder.bytes().all(plain)).then(|| folder.to_owned())
}

/// Makes a link lead to a target, in one step; whether it did not before.
fn point(link: &Path, to: &str) -> Result<bool> {
    let failed = |e| Error::io(link, "link", e);
    match link.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(_) => match target(link) {
            None => return Err(Error::output_exists(link)),
            Some(now) if format!("{TO_ROOTS}{now}") == to => return Ok(false),
            Some(now) => touch(link, &now),
        },
    }
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let new = link.with_file_name(format!(".{name}.tlkit-link"));
    if target(&new).is_some() {
        fs::remove_file(&new).map_err(failed)?;
    }
    symlink(to, &new).map_err(failed)?;
    match target(link) {
        Some(_) => fs::rename(&new, link).map_err(failed)?,
        None => rename_new(&new, link)?,
    }
    Ok(true)
}

/// Notes when the last link left a folder. Best effort: at worst it goes earlier.
fn touch(link: &Path, folder: &str) {
    let user = link.parent().unwrap_or(link);
    let path = user.join(TO_ROOTS).join(folder);
    let _ = File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
}

/// The links of an adapter that are there.
fn links_of(dir: &Path, adapter: &Listed) -> Result<Vec<String>> {
    let user = dir.join(adapter.user.as_str());
    let task = adapter.task.as_str();
    let mut links = names(&user)?;
    links.retain(|n| n.split('@').next() == Some(task));
    Ok(links)
}

/// Takes the links of a user away that are not to be kept, and the folder with the last one.
fn unlink(dir: &Path, user: &str, keep: &BTreeSet<String>, pass: &mut Pass) -> Result<()> {
    let folder = dir.join(user);
    let is_folder = folder.symlink_metadata().is_ok_and(|m| m.is_dir());
    if !is_folder || user.starts_with('.') {
        return Ok(());
    }
    let mut gone = false;
    for name in names(&folder)? {
        let link = folder.join(&name);
        let Some(root) = target(&link).filter(|_| !keep.contains(&name)) else {
            continue;
        };
        touch(&link, &root);
        fs::remove_file(&link).map_err(|e| Error::io(&link, "remove", e))?;
        gone = true;
        if !name.contains('@') && !name.starts_with('.') {
            pass.removed.push(format!("{user}/{name}"));
        }
    }
    if gone {
        // Others may have put something there.
        let _ = fs::remove_dir(&folder);
    }
    Ok(())
}

/// Removes the folders that no link has led to for a while.
fn collect(dir: &Path) -> Result<()> {
    let mut used = BTreeSet::new();
    for user in names(dir)?.iter().filter(|n| !n.starts_with('.')) {
        let folder = dir.join(user);
        if folder.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            let links = names(&folder)?;
            used.extend(links.iter().filter_map(|n| target(&folder.join(n))));
        }
    }
    for name in names(&dir.join(ROOTS))? {
        let folder = dir.join(ROOTS).join(&name);
        let meta = folder.symlink_metadata();
        let age = meta.and_then(|m| m.modified()).map(|t| t.elapsed());
        let old = matches!(age, Ok(Ok(age)) if age > GRACE);
        if old && !used.contains(&name) && is_whole(&folder) {
            for file in [CARD_FILE, WEIGHTS_FILE, CONFIG_FILE] {
                let _ = fs::remove_file(folder.join(file));
            }
            let _ = fs::remove_dir(&folder);
        }
    }
    Ok(())
}

/// The names in a folder; none where there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(folder, "list", e);
    let entries = match fs::read_dir(folder) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::package;
    use crate::format::NoBlobs;

    struct Place {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let address = dir.path().join("store");
            let store = Store::init(address.to_str().unwrap(), 60).unwrap();
            Self { dir, store }
        }

        fn out(&self) -> PathBuf {
            self.dir.path().join("out")
        }

        fn put(&self, name: &str, adapter: &str) {
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters");
            let fixture = fixtures.join(adapter);
            let package = match fixture.is_dir() {
                true => {
                    crate::fleet::package_any(&fixture, &Default::default(), &NoBlobs)
                        .unwrap()
                        .0
                }
                false => package(&fixture, &NoBlobs).unwrap(),
            };
            self.store
                .put(&name.parse().unwrap(), &package, None)
                .unwrap();
        }

        fn pass(&self) -> Pass {
            let options = ServingOptions {
                versions: true,
                ..ServingOptions::default()
            };
            serve_folder(&self.store, &self.out(), &options, Progress::new()).unwrap()
        }
    }

    /// Breaks where a server finds an old version, half a new one, or an adapter that is gone; or where a folder goes
    /// that it may be reading.
    #[test]
    fn a_folder_follows_the_store() {
        let place = Place::new();
        place.put("alice/one", "style-tl6.tl");
        place.put("bob/same", "style-tl6.tl");
        let first = place.pass();
        assert_eq!((first.adapters, first.served.len()), (2, 2));
        assert_eq!(first.served.iter().filter(|s| s.bytes > 0).count(), 1);
        assert!(!place.pass().is_news());
        let one = place.out().join("alice/one");
        let old = fs::canonicalize(&one).unwrap();
        assert!(is_whole(&one) && place.out().join("alice/one@1").is_dir());
        place.put("alice/one", "lora");
        place.store.remove(&"bob/same".parse().unwrap()).unwrap();
        let second = place.pass();
        assert_eq!(second.served[0].version, 2);
        assert_eq!(second.removed, ["bob/same"]);
        let new = fs::canonicalize(&one).unwrap();
        assert!(new != old && is_whole(&one) && is_whole(&old));
        assert_eq!(names(&place.out()).unwrap(), [".tlkit", "alice"]);
        assert_eq!(names(&place.out().join("alice")).unwrap(), ["one", "one@2"]);
        let long_ago = SystemTime::now() - 2 * GRACE;
        for folder in [&old, &new] {
            File::open(folder).unwrap().set_modified(long_ago).unwrap();
        }
        place.pass();
        assert!(!old.exists() && is_whole(&one));
    }

    /// Breaks where an export goes through a link, or takes something away that it did not make.
    #[test]
    fn what_is_not_ours_stays() {
        let place = Place::new();
        for name in ["alice/one", "bob/one", "carl/one", "dora/one"] {
            place.put(name, "style-tl6.tl");
        }
        let (out, other) = (place.out(), place.dir.path().join("other"));
        fs::create_dir_all(out.join("bob/one")).unwrap();
        fs::create_dir_all(out.join("carl")).unwrap();
        fs::create_dir_all(out.join("old")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(out.join("bob/one/mine"), "x").unwrap();
        symlink(&other, out.join("alice")).unwrap();
        symlink("../.tlkit/../../other", out.join("carl/one")).unwrap();
        symlink("../.tlkit/00-11", out.join("old/gone")).unwrap();
        symlink("/etc", out.join("old/stays")).unwrap();
        let pass = place.pass();
        let failed: Vec<_> = pass.failed.iter().map(|f| f.adapter.as_str()).collect();
        assert_eq!(failed, ["alice/one", "bob/one", "carl/one"]);
        assert!(pass.failed.iter().all(|f| f.code == Code::OutputExists));
        assert_eq!(
            (pass.adapters, &pass.removed[..]),
            (1, &["old/gone".to_owned()][..])
        );
        assert!(names(&other).unwrap().is_empty());
        assert!(out.join("bob/one/mine").is_file() && out.join("old/stays").is_symlink());
        fs::remove_dir_all(out.join(ROOTS)).unwrap();
        symlink(&other, out.join(ROOTS)).unwrap();
        let refused = serve_folder(
            &place.store,
            &out,
            &ServingOptions::default(),
            Progress::new(),
        );
        assert_eq!(refused.unwrap_err().code(), Code::OutputExists);
    }
}
