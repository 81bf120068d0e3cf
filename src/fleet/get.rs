//! An adapter out of a store, as a file or folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::coded::{CodedAs, or_as_it_is};
use crate::adapter::Adapter;
use crate::convert::{ToGgufOptions, adapter_to_gguf};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::fit::CodeTarget;
use crate::format::{Encoded, Manifest, Packing, WriteOptions, encode, write_blobs, write_encoded};
use crate::fs::{AtomicFile, Existing};
use crate::open::with_modules;
use crate::peft::export;
use crate::peft::target_names::BaseModules;
use crate::safetensors::Checkpoint;
use crate::store::{AdapterName, Fetched, Store, Trust};
use crate::tensor::Dtype;

/// What an adapter is written as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// A `.tl` with every tensor inside.
    #[default]
    Fat,
    /// A `.tl` without its seeded tensors and published blobs; with a folder, those blobs go there,
    /// each under the hex digits of its digest.
    Thin(Option<PathBuf>),
    /// A PEFT directory: that merges to the same bytes, or with [`GetOptions::portable`] that servers load alike.
    Peft,
    /// llama.cpp's adapter for a base, as [`convert::tied_to_gguf`](crate::convert::tied_to_gguf) writes it.
    Gguf(Gguf),
}

/// How an adapter is written for llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gguf {
    /// The folder of the base model; of its files `config.json` is read.
    pub base: PathBuf,
    /// Element type of the factors: F32, F16 or BF16.
    pub dtype: Dtype,
    /// Prefixes of adapter names and what the base has for them.
    pub renames: Vec<(String, String)>,
}

/// How to get an adapter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GetOptions {
    /// What to write.
    pub form: Form,
    /// Whether a PEFT directory is the portable one.
    pub portable: bool,
    /// What the config of a PEFT directory calls the base, in place of what the adapter does.
    pub base_name: Option<String>,
    /// The base model of a PEFT directory: targets are named by suffix only where that is exact, and the
    /// portable form gets zeros for what SGLang does not do without.
    pub base: Option<Arc<Checkpoint>>,
    /// What the numbers are coded to keep to, in whatever form is written; as they are where not given.
    pub code: Option<CodeTarget>,
    /// Whether tensors of a `.tl` are packed with zstd.
    pub zstd: bool,
    /// What to do with an existing output.
    pub existing: Existing,
    /// Whose signature is asked for; none where there are no keys.
    pub trust: Trust,
}

impl Default for GetOptions {
    fn default() -> Self {
        Self {
            form: Form::Fat,
            portable: false,
            base_name: None,
            base: None,
            code: None,
            zstd: false,
            existing: Existing::Refuse,
            trust: Trust::default(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Got {
    /// `USER/TASK`.
    pub adapter: String,
    /// The number of the version.
    pub version: u64,
    /// The adapter's root: of a coded one, that of what was written.
    pub root: String,
    /// What coding it came to, where that was asked for and it was not coded already.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub coded: Option<CodedAs>,
    /// Bytes written, without blobs.
    pub bytes: u64,
    /// Published blobs that the file leaves out.
    pub left_out: usize,
    /// How many of them were written into the folder of blobs.
    pub blobs_written: usize,
    /// What whoever uses a PEFT directory should know, such as that some programs misread it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The file or folder.
    pub output: PathBuf,
}

/// Writes a version of an adapter, every byte verified before the first one is written. A fat `.tl`
/// without zstd is the very file that was put, where that was one.
///
/// # Errors
/// Those of [`Store::get`] and [`adapter`]; [`Code::SignatureInvalid`];
/// [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Io`]; those of [`export::export`]; those of
/// [`code`](crate::fit::code).
pub fn get(store: &Store, name: &AdapterName, output: &Path, options: &GetOptions) -> Result<Got> {
    let fetched = store.get(name)?;
    if !options.trust.keys.is_empty() {
        fetched.require_signature(&options.trust)?;
    }
    let adapter = adapter(&fetched)?;
    let encoded = encode(&adapter)?;
    if encoded.manifest.root() != fetched.version().root {
        let message = "the adapter has another root than its record";
        return Err(Error::new(Code::StoreRecord, message));
    }
    let mut notes = Vec::new();
    let (adapter, coded) = or_as_it_is(adapter, options.code, &mut notes)?;
    let encoded = match coded {
        Some(_) => encode(&adapter)?,
        None => encoded,
    };
    let mut got = Got {
        adapter: format!("{}/{}", name.user, name.task),
        version: fetched.number,
        root: encoded.manifest.root().to_string(),
        coded,
        bytes: 0,
        left_out: 0,
        blobs_written: 0,
        notes,
        output: output.to_owned(),
    };
    let packing = match &options.form {
        Form::Peft => {
            let written = with_modules(options.base.as_deref(), |known| {
                let peft = export::ExportOptions {
                    form: match options.portable {
                        true => export::Form::Portable,
                        false => export::Form::Faithful,
                    },
                    base: known.map(|k| k as &dyn BaseModules),
                    base_name: options.base_name.as_deref(),
                    existing: options.existing,
                    ..export::ExportOptions::default()
                };
                export::export(&adapter, output, &peft)
            })?;
            got.bytes = written.bytes;
            got.notes.extend(written.notes);
            return Ok(got);
        }
        Form::Gguf(gguf) => {
            let to_gguf = ToGgufOptions {
                dtype: gguf.dtype,
                existing: options.existing,
                renames: gguf.renames.clone(),
            };
            let root = encoded.manifest.root();
            got.bytes = adapter_to_gguf(&adapter, &root, output, &gguf.base, &to_gguf)?;
            return Ok(got);
        }
        Form::Fat => Packing::Fat,
        Form::Thin(blobs) => {
            let public = published(store, &encoded)?;
            got.left_out = public.len();
            if let Some(dir) = blobs {
                // An output that cannot be written must not leave blobs behind.
                drop(AtomicFile::create(output, options.existing)?);
                got.blobs_written = write_blobs(dir, &encoded, &public)?;
            }
            Packing::External(public)
        }
    };
    let write = WriteOptions {
        packing,
        zstd: options.zstd,
        exact: false,
        existing: options.existing,
    };
    got.bytes = write_encoded(output, &encoded, &write)?.bytes;
    Ok(got)
}

/// The tensors of an adapter that are published blobs; what a seed makes needs none.
fn published(store: &Store, encoded: &Encoded) -> Result<BTreeSet<Digest>> {
    let known = store.published()?;
    let own = encoded.tensors.values().filter(|t| !t.seeded);
    let public = own.map(|t| t.digest).filter(|d| known.contains_key(d));
    Ok(public.collect())
}

/// The adapter of a version, every tensor verified.
///
/// # Errors
/// Those of [`Manifest::parse`] and [`Manifest::load`]; [`Code::StoreDamaged`],
/// [`Code::BlobMissing`]; [`Code::StoreRecord`] where the manifest has another root.
pub fn adapter(fetched: &Fetched<'_>) -> Result<Adapter> {
    let manifest = Manifest::parse(fetched.manifest())?;
    if manifest.root() != fetched.version().root {
        return Err(Error::new(
            Code::StoreRecord,
            "the manifest has another root than its record",
        ));
    }
    manifest.load(fetched)
}
