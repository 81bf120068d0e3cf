//! The store, adapter by adapter. What concerns a whole fleet is in `fleet`.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::ser::{Serialize, SerializeSeq, Serializer};
use tlkit::convert::ToTiedOptions;
use tlkit::digest::Digest;
use tlkit::fit::CodeTarget;
use tlkit::fleet::{self, Chain, CodedAs, Form, GetOptions, Gguf, Got};
use tlkit::fs::{Output as Kind, check_outside};
use tlkit::safetensors::Checkpoint;
use tlkit::store::{
    AdapterName, Listed, Name, PutReport, Scope, Signer, Skipped, Store, Trust, TrustedKey,
    VersionEntry,
};
use tlkit::tensor::Dtype;
use tlkit::{Code, Error, Result};

use super::opened::Opened;
use super::{blob_source, check_output, existing, open_base, show};
use crate::command::args;
use crate::command::output::{Outcome, Output, bytes, fields, plural, relative_error, table, time};

pub(crate) fn init(args: &args::Init, output: &Output) -> Result<Outcome> {
    let store = Store::init(&args.url, args.grace)?;
    #[derive(serde::Serialize)]
    struct Report<'a> {
        store: &'a str,
        version: u32,
        grace: u64,
    }
    let report = Report {
        store: store.backend().address(),
        version: tlkit::store::VERSION,
        grace: store.grace(),
    };
    output.report(&report, || {
        fields(&[
            ("store", report.store.to_owned()),
            ("layout", format!("version {}", report.version)),
            ("grace", format!("{} s", report.grace)),
        ])
    })?;
    Ok(Outcome::Success)
}

pub(crate) fn put(args: &args::Put, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let signer = args.sign.as_deref().map(Signer::open).transpose()?;
    let mut store = Opened::open(&args.url, output)?;
    let base = open_base(args.base.as_ref(), &args.names)?;
    let folder = blob_source(&args.blobs);
    let own = store.blobs(&name.user);
    let mut options = ToTiedOptions::default();
    options.base = base.as_ref();
    options.strict = args.strict;
    let blobs = Chain(&*folder, &own);
    let target = args.code.map(CodeTarget::Error);
    let (package, coded, notes) = fleet::package_coded(&args.adapter, &options, &blobs, target)?;
    for note in &notes {
        output.note(note);
    }
    let report = store.put(&name, &package, signer.as_ref())?;
    #[derive(serde::Serialize)]
    struct Report {
        #[serde(flatten)]
        put: PutReport,
        #[serde(flatten)]
        coded: Option<CodedAs>,
    }
    let report = Report { put: report, coded };
    store.report(&report, || {
        let mut rows = put_rows(&report.put);
        rows.extend(coded.iter().flat_map(coded_rows));
        fields(&rows)
    })?;
    Ok(Outcome::Success)
}

/// What coding lost, and how near the bound it is.
fn coded_rows(coded: &CodedAs) -> [(&'static str, String); 2] {
    let bits = format!(
        "{} as a .tl, {:.2} bits a number; no code of Gaussian components needs less than {:.2}",
        bytes(coded.coded_bytes),
        coded.bits,
        coded.bound
    );
    [("error", relative_error(coded.error)), ("coded", bits)]
}

pub(super) fn put_rows(r: &PutReport) -> Vec<(&'static str, String)> {
    let what = match r.unchanged {
        true => "was the last version already",
        false => "is new",
    };
    let mut blobs = format!("{} known", r.known_blobs);
    if r.mended > 0 {
        blobs.push_str(&format!(", {} mended", r.mended));
    }
    vec![
        ("version", format!("{}@{} {what}", r.adapter, r.version)),
        ("root", r.root.clone()),
        (
            "bytes",
            format!("{}, {} written", bytes(r.bytes), bytes(r.written)),
        ),
        ("blobs", blobs),
    ]
}

pub(crate) fn get(args: &args::Get, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let mut trust = trust(&args.require_signature)?;
    trust.root_only = args.allow_root_signature;
    let mut options = GetOptions::default();
    let gguf = gguf(args.gguf, args.dtype, &args.serving);
    let peft = gguf.is_none() && (args.peft || args.serving.is_asked());
    options.form = match (gguf, peft, args.thin) {
        (Some(gguf), ..) => Form::Gguf(gguf),
        (_, true, _) => Form::Peft,
        (_, _, true) => Form::Thin(args.blobs.clone()),
        _ => Form::Fat,
    };
    options.zstd = args.zstd;
    options.code = args.code.map(CodeTarget::Error);
    options.existing = existing(args.force);
    options.trust = trust;
    options.portable = args.serving.portable;
    options.base_name = args.serving.base_name.clone();
    let kind = match peft {
        true => Kind::Adapter,
        false => Kind::File,
    };
    let inputs: Vec<&Path> = args.serving.base.as_deref().into_iter().collect();
    check_output(&args.output, kind, args.force, &inputs)?;
    check_outside(&args.output, Path::new(&args.url), "the store")?;
    let mut store = Opened::open(&args.url, output)?;
    if peft {
        options.base = base(&args.serving)?;
    }
    let got = fleet::get(&store, &name, &args.output, &options)?;
    for note in &got.notes {
        output.note(note);
    }
    store.report(&got, || got_text(&got, args))?;
    Ok(Outcome::Success)
}

/// The keys whose signatures count.
pub(super) fn trust(keys: &[PathBuf]) -> Result<Trust> {
    let mut trust = Trust::default();
    let keys = keys.iter().map(|p| TrustedKey::open(p));
    trust.keys = keys.collect::<Result<_>>()?;
    Ok(trust)
}

/// How adapters are written for llama.cpp, where that is asked for.
pub(super) fn gguf(asked: bool, dtype: Dtype, serving: &args::Serving) -> Option<Gguf> {
    let base = serving.base.clone().filter(|_| asked)?;
    let renames = serving.names.rename.clone();
    Some(Gguf {
        base,
        dtype,
        renames,
    })
}

/// The base model of PEFT directories.
pub(super) fn base(serving: &args::Serving) -> Result<Option<Arc<Checkpoint>>> {
    let base = open_base(serving.base.as_ref(), &serving.names)?;
    Ok(base.map(Arc::new))
}

fn got_text(got: &Got, args: &args::Get) -> String {
    let mut rows = vec![
        ("version", format!("{}@{}", got.adapter, got.version)),
        ("root", got.root.clone()),
        ("bytes", bytes(got.bytes)),
    ];
    if args.thin {
        let mut left_out = format!("{} left out", plural(got.left_out, "published blob"));
        if args.blobs.is_some() {
            left_out.push_str(&format!(", {} written", got.blobs_written));
        }
        rows.push(("blobs", left_out));
    }
    rows.extend(got.coded.iter().flat_map(coded_rows));
    rows.push(("output", show(&got.output)));
    fields(&rows)
}

pub(crate) fn list(args: &args::List, output: &Output) -> Result<Outcome> {
    let only = user(args.user.as_ref())?;
    let mut store = Opened::open(&args.url, output)?;
    if let Some(user) = only {
        let listed = store.list(&user)?;
        output.report(&listed, || list_text(&listed))?;
        store.tell();
        return Ok(match listed.iter().filter(|l| l.error.is_some()).count() {
            0 => Outcome::Success,
            damaged => damaged_records(damaged, &args.url),
        });
    }
    let walk = Walk {
        store: &store,
        seen: RefCell::default(),
    };
    match output.is_json() {
        true => output.report(&walk, String::new)?,
        false => walk.print(output)?,
    }
    let Seen {
        damaged,
        skipped,
        failed,
    } = walk.seen.into_inner();
    store.tell();
    let left_out = store.skipped(&args.url, &skipped);
    Ok(match (failed, damaged) {
        (Some(e), _) => Outcome::Reported(e),
        (None, 0) => left_out,
        (None, damaged) => damaged_records(damaged, &args.url),
    })
}

/// Adapters that one table of a listing has.
const TABLE: usize = 10_000;

/// The adapters of a store, told tenant by tenant: those of all of them may be more than memory holds.
struct Walk<'a> {
    store: &'a Store,
    seen: RefCell<Seen>,
}

#[derive(Default)]
struct Seen {
    damaged: usize,
    skipped: Vec<Skipped>,
    /// What ended the listing early, after some of it was told.
    failed: Option<Error>,
}

impl Walk<'_> {
    fn each(&self, tell: &mut dyn FnMut(Listed) -> Result<()>) {
        let mut seen = self.seen.borrow_mut();
        let mut damaged = 0;
        let done = self.store.each_tenant(|user| {
            for listed in self.store.list(user)? {
                damaged += usize::from(listed.error.is_some());
                tell(listed)?;
            }
            Ok(())
        });
        match done {
            Ok((_, skipped)) => seen.skipped = skipped,
            Err(e) => seen.failed = Some(e),
        }
        seen.damaged = damaged;
    }

    /// Prints tables of bounded length.
    fn print(&self, output: &Output) -> Result<()> {
        let (mut rows, mut tables) = (Vec::new(), 0);
        self.each(&mut |listed| {
            rows.push(listed);
            if rows.len() == TABLE {
                tables += 1;
                output.print(&list_text(&std::mem::take(&mut rows)))?;
            }
            Ok(())
        });
        match tables > 0 && rows.is_empty() {
            true => Ok(()),
            false => output.print(list_text(&rows).trim_end()),
        }
    }
}

impl Serialize for Walk<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        let mut failed = None;
        self.each(&mut |listed| {
            list.serialize_element(&listed).map_err(|e| {
                failed = Some(e);
                Error::new(Code::Io, "stdout")
            })
        });
        match failed {
            Some(e) => Err(e),
            None => list.end(),
        }
    }
}

/// How a command ends that showed damaged records among others.
fn damaged_records(count: usize, url: &str) -> Outcome {
    let error = Error::new(Code::StoreDamaged, plural(count, "damaged record"));
    Outcome::Reported(error.file(url).hint("`tlkit store fsck` says more"))
}

fn list_text(listed: &[Listed]) -> String {
    let rows = listed.iter().map(|l| {
        let mut row = vec![format!("{}/{}", l.user, l.task), l.version.to_string()];
        match &l.entry {
            Some(entry) => row.extend([
                entry.method.clone().unwrap_or_default(),
                bytes(entry.bytes),
                signed(entry),
                time(entry.time),
                root(entry),
                entry.base.clone().unwrap_or_else(|| "-".into()),
            ]),
            None => row.push("damaged".into()),
        }
        row.resize(8, "-".into());
        row
    });
    let header = [
        "adapter", "version", "method", "bytes", "signed", "put", "root", "base",
    ];
    table(&header, &[1, 3], rows)
}

pub(crate) fn history(args: &args::History, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let mut store = Opened::open(&args.url, output)?;
    let before = store.told().len();
    let entries = store.history(&name)?;
    store.tell();
    output.report(&entries, || history_text(&entries))?;
    let tags = store.told().len() - before;
    match tags + entries.iter().filter(|e| e.error.is_some()).count() {
        0 => Ok(Outcome::Success),
        damaged => Ok(damaged_records(damaged, &args.url)),
    }
}

fn history_text(entries: &[VersionEntry]) -> String {
    let rows = entries.iter().map(|e| {
        let tags: Vec<&str> = e.tags.iter().map(Name::as_str).collect();
        let mut row = vec![e.version.to_string()];
        match e.error {
            Some(_) => row.extend(["-", "damaged", "-", "-", "-"].map(str::to_owned)),
            None => row.extend([
                time(e.time),
                e.method.clone().unwrap_or_else(|| "removed".into()),
                bytes(e.bytes),
                signed(e),
                root(e),
            ]),
        }
        row.push(tags.join(", "));
        row
    });
    let header = [
        "version", "put", "method", "bytes", "signed", "root", "tags",
    ];
    table(&header, &[0, 3], rows)
}

fn signed(entry: &VersionEntry) -> String {
    match entry.signature {
        Some(Scope::Version) => "yes",
        Some(Scope::Root) => "root only",
        None => "no",
    }
    .to_owned()
}

/// The first digits of a root, as tables show it.
fn root(entry: &VersionEntry) -> String {
    let digest = entry.root.as_ref().and_then(|r| r.parse::<Digest>().ok());
    digest.map_or_else(|| "-".into(), |d| d.hex()[..16].to_owned())
}

#[derive(serde::Serialize)]
struct TagReport {
    adapter: String,
    tag: Name,
    /// The version that the tag names now.
    version: Option<u64>,
}

pub(crate) fn tag(args: &args::Tag, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let tag: Name = args.tag.parse()?;
    if args.delete {
        name.latest_only()?;
    }
    let mut store = Opened::open(&args.url, output)?;
    let version = match args.delete {
        true => store.untag(&name, &tag).map(|()| None)?,
        false => Some(store.tag(&name, &tag)?),
    };
    let report = TagReport {
        adapter: format!("{}/{}", name.user, name.task),
        tag,
        version,
    };
    store.report(&report, || {
        let (adapter, tag) = (&report.adapter, &report.tag);
        match report.version {
            Some(version) => format!("{adapter}:{tag} is version {version}"),
            None => format!("{adapter}:{tag} is gone"),
        }
    })?;
    Ok(Outcome::Success)
}

pub(crate) fn rm(args: &args::Rm, output: &Output) -> Result<Outcome> {
    let name: AdapterName = args.name.parse()?;
    let mut store = Opened::open(&args.url, output)?;
    store.remove(&name)?;
    #[derive(serde::Serialize)]
    struct Report {
        removed: String,
    }
    let report = Report {
        removed: name.to_string(),
    };
    store.report(&report, || format!("{name} is removed"))?;
    Ok(Outcome::Success)
}

/// A user's name, where one was given.
pub(super) fn user(text: Option<&String>) -> Result<Option<Name>> {
    text.map(|t| t.parse()).transpose()
}

/// A user that a command is only about; an error where the store has none of that name.
pub(super) fn tenant(store: &Store, user: Option<Name>) -> Result<Option<Name>> {
    if let Some(name) = &user
        && !store.tenants()?.contains(name)
    {
        let message = format!("no tenant `{name}`");
        return Err(Error::new(Code::NotInStore, message).file(store.backend().address()));
    }
    Ok(user)
}
