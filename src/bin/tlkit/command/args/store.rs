//! Arguments of the store's commands. Names are checked by the library, which has codes for them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use tlkit::tensor::Dtype;

use super::base::BaseNames;
use super::merge::Blobs;
use super::values::{bytes, float_dtype, positive, with_unit};

const URLS: &str = "\
URL is a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix. Credentials, region and \
endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT, …), never from the URL.";

#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Make a store
    Init(Init),
    /// Put an adapter, as a new version of USER/TASK
    Put(Put),
    /// Write an adapter as a .tl or a PEFT directory, every byte verified
    Get(Get),
    /// List adapters
    List(List),
    /// List the versions of an adapter
    History(History),
    /// Let a tag name a version
    Tag(Tag),
    /// Remove an adapter; its versions stay until garbage collection
    Rm(Rm),
    /// Count adapters and bytes
    Stat(Stat),
    /// Read everything, and compare it with its digests
    Fsck(Fsck),
    /// Delete what nothing names any more
    Gc(Gc),
    /// Let all users share the A and B of adapters
    Publish(Publish),
    /// Show or set how many bytes users may have
    Quota(Quota),
    /// Write the last version of every adapter into a folder
    Export(Export),
    /// Put every adapter below some folders, each under the name that its path tells
    Import(Import),
    /// Bring over to another store what it lacks of this one
    Sync(SyncStore),
    /// Print what changes in a store, as JSON lines
    Watch(WatchStore),
    /// Push an adapter to a registry, as a ModelPack artefact
    Push(Push),
    /// Pull an adapter from a registry, as a new version of USER/TASK
    Pull(Pull),
}

#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Init {
    /// Where; a folder is made
    pub(crate) url: String,
    /// How long what nothing names is kept: 30s, 90m, 24h, 7d. Uploads take less than half of it
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
    pub(crate) grace: u64,
}

#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Put {
    /// The store
    pub(crate) url: String,
    /// Under which name
    #[arg(value_name = "USER/TASK")]
    pub(crate) name: String,
    /// A .tl, or a PEFT directory, which is converted as by convert peft-to-tied
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) adapter: PathBuf,
    /// The base model of a PEFT directory, as in convert peft-to-tied
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long, requires = "base")]
    pub(crate) strict: bool,
    /// Code its numbers at this error of all updates together, as pack does: 0.05. What is stored is the coded adapter
    #[arg(long, value_name = "X")]
    pub(crate) code: Option<f64>,
    /// Sign adapter, name and version with this Ed25519 key (PKCS#8 PEM)
    #[arg(long, value_name = "KEY.pem", value_hint = ValueHint::FilePath)]
    pub(crate) sign: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Get {
    /// The store
    pub(crate) url: String,
    /// Which adapter: its last version, version N, or the one that a tag names
    #[arg(value_name = "USER/TASK[@N|:TAG]")]
    pub(crate) name: String,
    /// The .tl or GGUF file to write, or with --peft the directory
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) output: PathBuf,
    /// Leave out seeded tensors and published blobs
    #[arg(long)]
    pub(crate) thin: bool,
    /// With --thin, where the published blobs are written that are left out
    #[arg(long, value_name = "DIR", requires = "thin", value_hint = ValueHint::DirPath)]
    pub(crate) blobs: Option<PathBuf>,
    /// Code its numbers at this error of all updates together, as pack does: 0.05. What is written has a root of its own
    #[arg(long, value_name = "X")]
    pub(crate) code: Option<f64>,
    /// Compress tensors with zstd; the root stays the same
    #[arg(long, conflicts_with_all = ["portable", "base_name", "base"])]
    pub(crate) zstd: bool,
    /// Write a PEFT directory
    #[arg(long, conflicts_with_all = ["thin", "zstd"])]
    pub(crate) peft: bool,
    /// Write llama.cpp's adapter for --base, as convert tied-to-gguf does
    #[arg(long, requires = "base", conflicts_with_all = ["thin", "zstd", "peft", "portable", "base_name"])]
    pub(crate) gguf: bool,
    /// Element type of the factors in a GGUF file: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_parser = float_dtype, requires = "gguf", default_value = "f32")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) serving: Serving,
    /// Refuse a version that none of these Ed25519 keys signed; may be given several times
    #[arg(long, value_name = "PUBLIC.pem", value_hint = ValueHint::FilePath)]
    pub(crate) require_signature: Vec<PathBuf>,
    /// Take signatures of the root alone too, as older builds made them: they bind neither name nor version
    #[arg(long, requires = "require_signature")]
    pub(crate) allow_root_signature: bool,
    /// Replace an existing output: a file, or a PEFT directory without other files; links and devices
    /// never are
    #[arg(long)]
    pub(crate) force: bool,
}

const REGISTRIES: &str = "\
Credentials are those that `docker login` keeps. A registry on this machine (localhost, 127.0.0.1) is spoken to \
without TLS, any other with it.";

/// The .tl is one layer, and each tensor of more than 16 KiB another one: what adapters have in common is kept once.
#[derive(Debug, Args)]
#[command(after_help = REGISTRIES)]
pub(crate) struct Push {
    /// The store
    pub(crate) url: String,
    /// Which adapter: its last version, version N, or the one that a tag names
    #[arg(value_name = "USER/TASK[@N|:TAG]")]
    pub(crate) name: String,
    /// Where to: oci://HOST[:PORT]/REPOSITORY[:TAG]
    pub(crate) artifact: String,
    /// Refuse a version that none of these Ed25519 keys signed; may be given several times
    #[arg(long, value_name = "PUBLIC.pem", value_hint = ValueHint::FilePath)]
    pub(crate) require_signature: Vec<PathBuf>,
    /// Take signatures of the root alone too, as older builds made them: they bind neither name nor version
    #[arg(long, requires = "require_signature")]
    pub(crate) allow_root_signature: bool,
}

/// Also one that another client of ModelPack pushed: a .tl, or the files of a PEFT directory.
#[derive(Debug, Args)]
#[command(after_help = REGISTRIES)]
pub(crate) struct Pull {
    /// The store
    pub(crate) url: String,
    /// Under which name
    #[arg(value_name = "USER/TASK")]
    pub(crate) name: String,
    /// Where from: oci://HOST[:PORT]/REPOSITORY[:TAG|@sha256:DIGEST]
    pub(crate) artifact: String,
    /// The base model of a PEFT directory, as in convert peft-to-tied
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
    /// Refuse an adapter that lacks tensors of modules which its config and the base say are adapted
    #[arg(long, requires = "base")]
    pub(crate) strict: bool,
    /// Sign adapter, name and version with this Ed25519 key (PKCS#8 PEM)
    #[arg(long, value_name = "KEY.pem", value_hint = ValueHint::FilePath)]
    pub(crate) sign: Option<PathBuf>,
}

/// How a PEFT directory is written for a server.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Serving {
    /// Write the PEFT form that PEFT, vLLM, SGLang and llama.cpp all load alike
    #[arg(long, conflicts_with = "thin")]
    pub(crate) portable: bool,
    /// What the PEFT config calls the base: the name that the server has for it (vLLM: --model)
    #[arg(long, value_name = "NAME", conflicts_with = "thin")]
    pub(crate) base_name: Option<String>,
    /// The base model of the PEFT form: names targets by suffix only where that is exact, and gives zeros
    /// for what SGLang does not do without. Of a GGUF file's, config.json is needed
    #[arg(long, conflicts_with = "thin", value_hint = ValueHint::AnyPath)]
    pub(crate) base: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) names: BaseNames,
}

impl Serving {
    /// Whether a PEFT directory is meant without that being said.
    pub(crate) fn is_asked(&self) -> bool {
        self.portable || self.base_name.is_some() || self.base.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The store
    pub(crate) url: String,
    /// Only of this user
    pub(crate) user: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The store
    pub(crate) url: String,
    /// Of which adapter
    #[arg(value_name = "USER/TASK")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The store
    pub(crate) url: String,
    /// Which version: the last one, version N, or the one that another tag names
    #[arg(value_name = "USER/TASK[@N|:TAG]")]
    pub(crate) name: String,
    /// The tag; one that exists moves. What it names is not garbage
    pub(crate) tag: String,
    /// Take the tag away
    #[arg(long)]
    pub(crate) delete: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The store
    pub(crate) url: String,
    /// Which adapter
    #[arg(value_name = "USER/TASK")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// The store
    pub(crate) url: String,
    /// Only of this user
    pub(crate) user: Option<String>,
}

/// Exit code 4 where something is damaged. Putting a good copy of an adapter again mends it; --repair does what
/// can be done without one, and deletes nothing.
#[derive(Debug, Args)]
pub(crate) struct Fsck {
    /// The store
    pub(crate) url: String,
    /// Only of this user, and what is published
    pub(crate) user: Option<String>,
    /// Restore what follows from other bytes, and set damaged records aside in STORE/damaged
    #[arg(long)]
    pub(crate) repair: bool,
    /// Show what --repair would do, and change nothing
    #[arg(long, requires = "repair")]
    pub(crate) dry_run: bool,
}

/// Blobs that nothing names are condemned first, and deleted by a collection after the grace period.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// The store
    pub(crate) url: String,
    /// Only of this user
    pub(crate) user: Option<String>,
    /// Keep this many versions of each adapter, and those with a tag [default: all]
    #[arg(long, value_name = "N", value_parser = positive())]
    pub(crate) keep: Option<u64>,
    /// Show what would be done, and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What is published stays for good, and every user can find out that it is there.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The store
    pub(crate) url: String,
    /// Each a .tl or a PEFT directory
    #[arg(required = true, value_name = "ADAPTER", value_hint = ValueHint::AnyPath)]
    pub(crate) adapters: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) blobs: Blobs,
}

/// Bytes are those of all versions that were not collected, unpacked, with published blobs.
#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// The store
    pub(crate) url: String,
    /// Of which user
    pub(crate) user: Option<String>,
    /// The quota to set: 500MB, 2GB, or none
    #[arg(value_name = "BYTES|none", value_parser = limit)]
    pub(crate) limit: Option<Limit>,
    /// The quota to set for users that have none of their own
    #[arg(long, value_name = "BYTES|none", conflicts_with = "user", value_parser = limit)]
    pub(crate) default: Option<Limit>,
}

/// A quota to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Export {
    /// The store
    pub(crate) url: String,
    /// The folder to write USER/TASK.tl or .gguf into, or with --peft the folders USER/TASK
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: PathBuf,
    /// Only of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Leave out seeded tensors, and keep published blobs once, in DIR/blobs
    #[arg(long)]
    pub(crate) thin: bool,
    /// Code each adapter's numbers at this error of all its updates together, as pack does: 0.05
    #[arg(long, value_name = "X")]
    pub(crate) code: Option<f64>,
    /// Write llama.cpp's adapters for --base, as convert tied-to-gguf does
    #[arg(long, requires = "base", conflicts_with_all = ["thin", "peft", "portable", "base_name", "versions", "watch"])]
    pub(crate) gguf: bool,
    /// Element type of the factors in GGUF files: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_parser = float_dtype, requires = "gguf", default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// Write PEFT directories for servers: DIR/USER/TASK leads to the adapter's last version. What is there
    /// already is brought up to date, and what the store has no more goes
    #[arg(long, conflicts_with_all = ["thin", "force"])]
    pub(crate) peft: bool,
    #[command(flatten)]
    pub(crate) serving: Serving,
    /// With --peft, DIR/USER/TASK@N too, which names the version
    #[arg(long, conflicts_with = "thin")]
    pub(crate) versions: bool,
    /// With --peft, leave out versions that none of these Ed25519 keys signed; may be given several times
    #[arg(long, value_name = "PUBLIC.pem", conflicts_with = "thin", value_hint = ValueHint::FilePath)]
    pub(crate) require_signature: Vec<PathBuf>,
    /// With --peft, go on until interrupted, and follow what changes in the store
    #[arg(long, conflicts_with = "thin")]
    pub(crate) watch: bool,
    /// How often --watch looks at the store
    #[arg(long, value_name = "TIME", requires = "watch", default_value = "5s", value_parser = seconds)]
    pub(crate) every: u64,
    /// Replace existing files; links and devices never are
    #[arg(long)]
    pub(crate) force: bool,
}

/// One that fails is a row with its error, and the others go on. A run that was stopped may be started again: an adapter that is
/// the last version of its name already is not stored again.
#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct Import {
    /// The store
    pub(crate) url: String,
    /// Folders with adapters, or .tl files
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// Where user and task stand in a path below PATH: {user}/{task}, {task}-{user}, x/*/{user}
    #[arg(
        long,
        value_name = "TEMPLATE",
        conflicts_with = "owners",
        required_unless_present = "owners"
    )]
    pub(crate) template: Option<String>,
    /// CSV with the columns path, user and task
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) owners: Option<PathBuf>,
    /// Code each adapter's numbers at this error of all its updates together, as pack does: 0.05
    #[arg(long, value_name = "X")]
    pub(crate) code: Option<f64>,
    /// Read and code everything, and put nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Versions and removals keep their numbers, and signatures what they bind; tags and published blobs come along. Nothing goes
/// from TARGET. An adapter of which TARGET has another history is left as it is, and told. A run that was stopped goes
/// on where it stopped.
#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct SyncStore {
    /// The store to copy
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// The store that is brought up to date; init makes it
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// Only of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Show what would be copied, and copy nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// From now on, or from where --since ends. The first lines say what is known already; each later one has a change. All of
/// them together, in a file, are what --since takes: nothing is lost between two runs, and nothing told twice.
#[derive(Debug, Args)]
#[command(after_help = URLS)]
pub(crate) struct WatchStore {
    /// The store
    pub(crate) url: String,
    /// Only of this user
    pub(crate) user: Option<String>,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = seconds)]
    pub(crate) interval: u64,
    /// Go on after the lines in this file, which earlier runs printed; after none of an empty one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) since: Option<PathBuf>,
    /// Look once, and end; with --json that is one list
    #[arg(long)]
    pub(crate) once: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    with_unit(text, &units).ok_or_else(|| "not a time such as 30s, 90m, 24h or 7d".into())
}

fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    bytes(text)
        .map(|n| Limit(Some(n)))
        .ok_or_else(|| "not bytes such as 4096, 500MB or 2GB, nor none".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a unit is taken for another, or a number too large for a smaller one.
    #[test]
    fn times_and_bytes() {
        assert_eq!((seconds("90m"), seconds("0s")), (Ok(5400), Ok(0)));
        for wrong in [
            "",
            "h",
            "1",
            "1w",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(limit("12"), Ok(Limit(Some(12))));
        assert_eq!(limit("2GB"), Ok(Limit(Some(2_000_000_000))));
        assert_eq!(limit("none"), Ok(Limit(None)));
        for wrong in ["", "MB", "1.5MB", "1KB", "99999999TB"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
