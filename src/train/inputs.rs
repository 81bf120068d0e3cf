//! What a run reads, which runs on the same files share: model, examples and digests, each once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device};

use super::settings::RunConfig;
use crate::adapter::{Adapter, BaseModel};
use crate::base::{hub_name, read_config};
use crate::convert::touched_tensors;
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::fingerprint;
use crate::model::Model;
use crate::text::{DataOptions, Dataset, Vocabulary};

const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;
pub(crate) const MAX_DATA_BYTES: u64 = 1 << 36;

/// The digests of the files that a run reads, besides the weights, by what they are to it.
pub(super) type FileDigests = BTreeMap<&'static str, Digest>;

/// The settings that say what is read, and how.
#[derive(Debug, Clone, PartialEq)]
struct Reads {
    model: PathBuf,
    data: PathBuf,
    valid: Option<PathBuf>,
    options: DataOptions,
    compute_dtype: Option<crate::tensor::Dtype>,
}

impl Reads {
    fn of(config: &RunConfig, most: usize) -> Self {
        Self {
            model: config.model.clone(),
            data: config.data.clone(),
            valid: config.valid.clone(),
            options: DataOptions {
                seq_len: config.seq_len.min(most),
                loss_on_prompt: config.loss_on_prompt,
                assistant_only: config.assistant_only_loss,
                limit: None,
            },
            compute_dtype: config.compute_dtype,
        }
    }
}

/// A model and the examples of a run, read and tokenised.
#[derive(Debug)]
pub struct RunInputs {
    reads: Reads,
    pub(super) model: Arc<Model>,
    pub(super) vocabulary: Vocabulary,
    pub(super) train: Dataset,
    pub(super) valid: Option<Dataset>,
    /// Made when they are first asked for: hashing takes its time, and an adapter that does not fit
    /// the model needs none.
    files: Mutex<Option<FileDigests>>,
    /// Of base tensors, by their names.
    weights: Mutex<BTreeMap<Vec<String>, Digest>>,
}

impl RunInputs {
    /// Reads model and data of `config`, to compute on `device`.
    ///
    /// # Errors
    /// Those of [`Model::open`], [`Vocabulary::open`] and [`Dataset::load`].
    pub fn open(config: &RunConfig, device: &Device) -> Result<Arc<Self>> {
        let model = Model::open(&config.model, device, config.compute_dtype)?;
        let vocabulary = Vocabulary::open(&config.model)?;
        let reads = Reads::of(config, model.config().max_positions);
        let load = |path: &Path| Dataset::load(path, &vocabulary, &reads.options);
        Ok(Arc::new(Self {
            train: load(&config.data)?,
            valid: config.valid.as_deref().map(load).transpose()?,
            reads,
            model: Arc::new(model),
            vocabulary,
            files: Mutex::default(),
            weights: Mutex::default(),
        }))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Refuses a run that reads other things.
    pub(super) fn check(&self, config: &RunConfig) -> Result<()> {
        match self.reads == Reads::of(config, self.model.config().max_positions) {
            true => Ok(()),
            false => Err(Error::new(
                Code::Usage,
                "the inputs are those of a run on another model or other data",
            )),
        }
    }

    pub(super) fn files(&self) -> Result<FileDigests> {
        let mut known = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &*known {
            return Ok(files.clone());
        }
        let Reads {
            model, data, valid, ..
        } = &self.reads;
        let of = |path: &Path, most| Digest::of_file(path, most);
        let config = of(&model.join("config.json"), MAX_CONFIG_BYTES)?;
        let tokenizer = of(&model.join("tokenizer.json"), MAX_TOKENIZER_BYTES)?;
        let mut files = FileDigests::from([
            ("config.json", config),
            ("tokenizer.json", tokenizer),
            ("data", of(data, MAX_DATA_BYTES)?),
        ]);
        if let Some(valid) = valid {
            files.insert("valid", of(valid, MAX_DATA_BYTES)?);
        }
        Ok(known.insert(files).clone())
    }

    /// The fingerprint of the base weights that the adapter changes.
    pub(super) fn weights(&self, adapter: &Adapter) -> Result<Digest> {
        let base = self.model.checkpoint();
        // The base may store them under other names than its class has.
        let names = touched_tensors(adapter, base, &[])?;
        let key: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut known = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = known.get(&key) {
            return Ok(*digest);
        }
        let digest = fingerprint(base, names)?;
        known.insert(key, digest);
        Ok(digest)
    }

    /// The base's name, where its config has one, with the fingerprint of its weights. The folder's
    /// name is somebody's choice, and in a download cache it is a digest.
    pub(super) fn base(&self, weights: Digest) -> Result<BaseModel> {
        let config = read_config(self.model.checkpoint())?;
        let name = config
            .as_ref()
            .and_then(|c| c.get("_name_or_path"))
            .and_then(serde_json::Value::as_str)
            .and_then(hub_name);
        Ok(BaseModel {
            name: name.map(str::to_owned),
            revision: None,
            weights: Some(weights.hex()),
        })
    }

    /// What computes, where that is not f32 on the processor: a run that `auto` began on a GPU is not
    /// to go on elsewhere.
    pub(super) fn computes(&self) -> Option<String> {
        let (device, dtype) = (self.model.device(), self.model.dtype());
        let plain = device.is_cpu() && dtype == DType::F32;
        let kind = if device.is_cpu() { "cpu" } else { "cuda" };
        (!plain).then(|| format!("{kind} {}", dtype.as_str()))
    }
}
