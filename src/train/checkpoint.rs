//! The state of a run between two steps, in one safetensors file.
//!
//! Tensors `param/…`, `m/…`, `v/…` and, where a best state is known, `best/…`, all F32, for each
//! parameter; the counters as JSON in the metadata, floats as the hex digits of their bits, and
//! the SHA-256 of all of it. The file is replaced in one step: a crash at any moment leaves the
//! state before or the one after.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Param;
use super::optim::{AdamW, AdamWOptions};
use crate::digest::{Digest, Hasher};
use crate::error::{Code, Error, Result};
use crate::fs::Existing;
use crate::safetensors::{SafetensorsFile, write_tensors};
use crate::tensor::{Dtype, Tensor};

const STATE_KEY: &str = "tlkit_state";
const DIGEST_KEY: &str = "tlkit_digest";
const VERSION: u32 = 1;

/// What a resumed run must share with the one that was stopped, by key: the settings that change
/// the result, and the digests of the model and the data.
pub(super) type Fingerprint = BTreeMap<String, String>;

/// The validated state with the lowest loss.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Best {
    /// Step it was reached at.
    pub step: u64,
    /// Its validation loss, in nats per token.
    pub loss: f64,
    /// Its parameters.
    pub params: Vec<Param>,
}

/// Everything that the rest of a run depends on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    /// The parameters after `optimiser.step` steps.
    pub params: Vec<Param>,
    /// Moments and step number.
    pub optimiser: AdamW,
    /// The lowest validation loss so far.
    pub best: Option<Best>,
    /// Loss and places in time.
    pub counters: Counters,
}

/// The numbers of a [`State`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counters {
    /// Step of the last validation that is complete.
    pub validated: Option<u64>,
    /// Validation loss before the first step, in nats per token.
    #[serde(with = "bits")]
    pub initial_valid_loss: Option<f64>,
    /// Validation loss that the next one is measured against for patience.
    #[serde(with = "bits")]
    pub patience_loss: Option<f64>,
    /// Validations since `patience_loss`.
    pub without_improvement: u64,
    /// Training loss of the first step, in nats per token.
    #[serde(with = "bits")]
    pub initial_loss: Option<f64>,
    /// Training loss of the last step, in nats per token.
    #[serde(with = "bits")]
    pub loss: Option<f64>,
    /// Positions that went through the model in training.
    pub tokens: u64,
    /// Time spent, in all sessions, in seconds.
    #[serde(with = "bits")]
    pub seconds: Option<f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    step: u64,
    counters: Counters,
    best: Option<BestRecord>,
    fingerprint: Fingerprint,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BestRecord {
    step: u64,
    #[serde(with = "bits")]
    loss: Option<f64>,
}

impl State {
    /// The state before the first step.
    pub(super) fn new(params: Vec<Param>, options: AdamWOptions) -> Self {
        Self {
            optimiser: AdamW::new(options, &params),
            params,
            best: None,
            counters: Counters::default(),
        }
    }

    /// Writes the state in place of the one at `path`, and waits until it is on the disk.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::Io`].
    pub(super) fn save(&self, path: &Path, fingerprint: &Fingerprint) -> Result<()> {
        let record = Record {
            version: VERSION,
            step: self.optimiser.step,
            counters: self.counters,
            best: self.best.as_ref().map(|b| BestRecord {
                step: b.step,
                loss: Some(b.loss),
            }),
            fingerprint: fingerprint.clone(),
        };
        let record = serde_json::to_string(&record)
            .map_err(|e| Error::new(Code::Io, format!("cannot write the state: {e}")).file(path))?;
        let mut tensors = Vec::new();
        let mut add = |kind: &str, param: &Param, values: &[f32]| {
            let tensor = Tensor::from_f32(param.shape.clone(), values)?;
            tensors.push((format!("{kind}/{}", param.name), tensor));
            Ok::<(), Error>(())
        };
        let moments = self.optimiser.m.iter().zip(&self.optimiser.v);
        for (param, (m, v)) in self.params.iter().zip(moments) {
            add("param", param, &param.values)?;
            add("m", param, m)?;
            add("v", param, v)?;
        }
        for param in self.best.iter().flat_map(|b| &b.params) {
            add("best", param, &param.values)?;
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        let digest = digest(&record, tensors.iter().map(|(_, t)| t)).hex();
        let metadata = [(STATE_KEY, record.as_str()), (DIGEST_KEY, &digest)];
        write_tensors(path, Existing::Replace, &metadata, &tensors).map(drop)
    }

    /// Reads a state of a run with these parameters (names and shapes; the values do not matter).
    ///
    /// # Errors
    /// [`Code::CheckpointMismatch`] where it is of another run, naming the first key of
    /// `fingerprint`, or the first parameter, that differs; [`Code::BadCheckpoint`] where it is
    /// damaged or not a state at all; [`Code::Io`] and its kin.
    pub(super) fn load(
        path: &Path,
        fingerprint: &Fingerprint,
        params: &[Param],
        options: AdamWOptions,
    ) -> Result<Self> {
        read(path, fingerprint, params, options).map_err(|e| {
            let e = match e.code() {
                Code::BadCheckpoint | Code::CheckpointMismatch => e,
                Code::Io | Code::NotFound => e,
                _ => bad(e.to_string()).cause(e),
            };
            e.file(path)
        })
    }
}

fn read(
    path: &Path,
    fingerprint: &Fingerprint,
    params: &[Param],
    options: AdamWOptions,
) -> Result<State> {
    let file = SafetensorsFile::open(path)?;
    let metadata = |key| file.header().metadata(key);
    let (Some(text), Some(want)) = (metadata(STATE_KEY), metadata(DIGEST_KEY)) else {
        return Err(bad("not the state of a run"));
    };
    let record: Record = serde_json::from_str(text).map_err(|e| bad(format!("its record: {e}")))?;
    if record.version != VERSION {
        return Err(bad(format!("version {}, not {VERSION}", record.version)));
    }
    same_run(&record.fingerprint, fingerprint)?;
    let kinds: &[&str] = match record.best {
        Some(_) => &["param", "m", "v", "best"],
        None => &["param", "m", "v"],
    };
    check_tensors(&file, kinds, params)?;
    let mut names: Vec<&str> = file
        .header()
        .tensors
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    names.sort_unstable();
    let tensors = names.iter().map(|name| file.tensor(name));
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    if digest(text, &tensors).hex() != want {
        return Err(bad("its bytes do not have the digest that it gives"));
    }
    let values = |kind: &str| -> Result<Vec<Vec<f32>>> {
        let of = |p: &Param| file.tensor(&format!("{kind}/{}", p.name))?.to_f32();
        params.iter().map(of).collect()
    };
    let with_values = |kind: &str| -> Result<Vec<Param>> {
        let pairs = params.iter().zip(values(kind)?);
        let with = |(p, values): (&Param, _)| Param {
            name: p.name.clone(),
            shape: p.shape.clone(),
            values,
        };
        Ok(pairs.map(with).collect())
    };
    let best = match record.best {
        None => None,
        Some(best) => Some(Best {
            step: best.step,
            loss: best.loss.ok_or_else(|| bad("its best state has no loss"))?,
            params: with_values("best")?,
        }),
    };
    Ok(State {
        params: with_values("param")?,
        optimiser: AdamW {
            options,
            step: record.step,
            m: values("m")?,
            v: values("v")?,
        },
        best,
        counters: record.counters,
    })
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::BadCheckpoint, message)
}

fn mismatch(message: String) -> Error {
    Error::new(Code::CheckpointMismatch, message).hint(
        "resume with the settings, model and data of the run that was stopped, or start a new run \
         in another folder",
    )
}

fn same_run(have: &Fingerprint, want: &Fingerprint) -> Result<()> {
    let keys = want.keys().chain(have.keys());
    let Some(key) = keys.filter(|k| have.get(*k) != want.get(*k)).min() else {
        return Ok(());
    };
    let text = |map: &Fingerprint| map.get(key).cloned().unwrap_or_else(|| "not set".into());
    let message = format!("`{key}` was {} and is now {}", text(have), text(want));
    Err(mismatch(message))
}

/// Checks that the file has the tensors of `params` in each of `kinds`, and no others, before any
/// of them is read.
fn check_tensors(file: &SafetensorsFile, kinds: &[&str], params: &[Param]) -> Result<()> {
    for kind in kinds {
        for param in params {
            let name = format!("{kind}/{}", param.name);
            let Some(info) = file.header().get(&name) else {
                return Err(mismatch("not in the state".into()).tensor(name));
            };
            if info.dtype != Dtype::F32 || info.shape != param.shape {
                let (dtype, shape) = (info.dtype, &info.shape);
                let message = format!("{dtype} {shape:?} in the state, F32 {:?} now", param.shape);
                return Err(mismatch(message).tensor(name));
            }
        }
    }
    let (have, want) = (file.header().tensors.len(), kinds.len() * params.len());
    match have == want {
        true => Ok(()),
        false => Err(mismatch(format!("{have} tensors in the state, {want} now"))),
    }
}

/// SHA-256 of the record and of the tensors' bytes, in the order of their names.
fn digest<'a>(record: &str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(record.as_bytes());
    for tensor in tensors {
        hasher.update(tensor.data());
    }
    hasher.finish()
}

/// An f64 as the hex digits of its bits: decimal text would have to be trusted to come back.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[allow(clippy::ref_option)]
    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        value.map(|v| format!("{:016x}", v.to_bits())).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        let parse = |t: String| u64::from_str_radix(&t, 16).map(f64::from_bits);
        text.map(parse).transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OPTIONS: AdamWOptions = AdamWOptions {
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-8,
        weight_decay: 0.01,
    };

    fn fingerprint(lr: &str) -> Fingerprint {
        [("data", "d"), ("lr", lr), ("model", "m")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    fn state() -> State {
        let param = |name: &str, shape: &[usize], x: f32| Param {
            name: name.into(),
            shape: shape.into(),
            values: (0..shape.iter().product()).map(|i| x + i as f32).collect(),
        };
        // Not in the order of the names, which is that of the file.
        let params = vec![param("g0.u", &[3], 0.1), param("g0.A", &[2, 2], -1.5e-40)];
        let mut state = State::new(params.clone(), OPTIONS);
        let grads = [vec![1.0, -2.0, 0.3], vec![1e-9; 4]];
        state.optimiser.step(&mut state.params, &grads, 0.1);
        state.best = Some(Best {
            step: 0,
            loss: 0.1 + 0.2,
            params,
        });
        state.counters = Counters {
            validated: Some(1),
            initial_valid_loss: Some(f64::MIN_POSITIVE / 3.0),
            patience_loss: None,
            tokens: u64::MAX,
            ..Counters::default()
        };
        state
    }

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        // One bit less, and a resumed run would drift from the one that was not stopped.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let mut state = state();
        for best in [state.best.clone(), None] {
            state.best = best;
            state.save(&path, &fingerprint("1")).unwrap();
            let back = State::load(&path, &fingerprint("1"), &state.params, OPTIONS).unwrap();
            assert_eq!(back, state);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_run_is_refused_by_the_first_key_that_differs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let state = state();
        state.save(&path, &fingerprint("1")).unwrap();
        let load = |f: &Fingerprint, p: &[Param]| State::load(&path, f, p, OPTIONS).unwrap_err();
        let e = load(&fingerprint("2"), &state.params);
        assert_eq!(e.code(), Code::CheckpointMismatch);
        assert_eq!(e.message(), "`lr` was 1 and is now 2");
        let mut more = fingerprint("2");
        more.insert("clip".into(), "1.0".into());
        let e = load(&more, &state.params);
        assert_eq!(e.message(), "`clip` was not set and is now 1.0");
        // A caller whose fingerprint leaves out the rank must still not get foreign shapes.
        let mut params = state.params.clone();
        params[0].shape = vec![4];
        let e = load(&fingerprint("1"), &params);
        assert_eq!(
            (e.code(), e.tensor_name()),
            (Code::CheckpointMismatch, Some("param/g0.u"))
        );
        let e = load(&fingerprint("1"), &state.params[1..]);
        assert_eq!(e.code(), Code::CheckpointMismatch);
    }

    #[test]
    fn damage_anywhere_is_seen() {
        // A flipped bit in a moment would not stop a run, only spoil it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let state = state();
        state.save(&path, &fingerprint("1")).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            if let Ok(back) = State::load(&path, &fingerprint("1"), &state.params, OPTIONS) {
                // Only padding of the header can change without a trace.
                assert_eq!((good[at], back), (b' ', state.clone()), "byte {at}");
            }
            fs::write(&path, &good[..at]).unwrap();
            let e = State::load(&path, &fingerprint("1"), &state.params, OPTIONS).unwrap_err();
            assert_eq!(e.code(), Code::BadCheckpoint, "cut at {at}");
        }
    }
}
