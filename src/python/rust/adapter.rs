//! Adapters as objects of Python.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pyo3::prelude::*;
use rayon::prelude::*;
use tlkit::adapter::{self, Module, Seed};
use tlkit::compute::{Update, delta_rows};
use tlkit::format::{
    self, BlobSource, DirBlobs, Encoded, NoBlobs, WriteOptions, encode, write_encoded,
};
use tlkit::fs::Existing;
use tlkit::open::{Source, open_adapter};
use tlkit::peft::export::{ExportOptions, Form};
use tlkit::peft::import::PeftKind;
use tlkit::safetensors::Checkpoint;
use tlkit::tensor::{Dtype, Tensor};
use tlkit::{Code, Error, Result};

use crate::array::Array;
use crate::error::raised;

/// Rows of an update that are computed at a time.
const ROWS: usize = 64;

/// An adapter in memory, every tensor read and verified once.
#[pyclass(frozen, module = "tlkit._native")]
pub(crate) struct Adapter {
    adapter: adapter::Adapter,
    /// `.tl` or what PEFT has.
    #[pyo3(get)]
    source: &'static str,
    /// `sha256:` and 64 hex digits.
    #[pyo3(get)]
    root: String,
    /// What was ignored, guessed or approximated on the way.
    #[pyo3(get)]
    notes: Vec<String>,
    /// Modules that DoRA scales, whose update depends on the base.
    magnitudes: BTreeMap<String, Tensor>,
    encoded: OnceLock<Result<Encoded>>,
}

impl Adapter {
    fn open_from(
        path: PathBuf,
        base: Option<PathBuf>,
        blobs: Option<PathBuf>,
        renames: Vec<(String, String)>,
    ) -> Result<Self> {
        let base = base.map(|path| base_of(&path, renames)).transpose()?;
        let blobs: Box<dyn BlobSource> = match blobs {
            Some(dir) => Box::new(DirBlobs(dir)),
            None => Box::new(NoBlobs),
        };
        let opened = open_adapter(&path, base.as_ref(), &*blobs).map_err(|e| e.file(&path))?;
        let (source, adapter) = match opened.source {
            Source::Tl => (".tl", opened.adapter),
            Source::Nemo => ("lora", tlkit::convert::coalesce(&opened.adapter)?),
            Source::Peft(kind) | Source::Mlx(kind) => {
                let name = match kind {
                    PeftKind::Lora => "lora",
                    PeftKind::Dora => "dora",
                    PeftKind::Vera | PeftKind::VeraRegenerated => "vera",
                };
                (name, tlkit::convert::coalesce(&opened.adapter)?)
            }
        };
        Ok(Self {
            adapter,
            source,
            root: opened.identity.to_string(),
            notes: opened.notes,
            magnitudes: opened.magnitudes,
            encoded: OnceLock::new(),
        })
    }

    fn encoded(&self) -> Result<&Encoded> {
        let encoded = self.encoded.get_or_init(|| {
            self.refuse_dora()?;
            encode(&self.adapter)
        });
        encoded.as_ref().map_err(Clone::clone)
    }

    fn refuse_dora(&self) -> Result<()> {
        let Some(module) = self.magnitudes.keys().next() else {
            return Ok(());
        };
        let message = "DoRA scales what the base and the adapter make together, so that the adapter alone has no ΔW";
        Err(Error::new(Code::UnsupportedDora, message)
            .tensor(module)
            .hint("merge it directly, without converting"))
    }

    fn module(&self, name: &str) -> Result<Module> {
        let modules = self.adapter.modules();
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let found = modules.into_iter().find(|m| m.label() == name);
        found.ok_or_else(|| {
            let message = format!("the adapter changes no module `{name}`");
            Error::new(Code::Usage, message).hint("`modules` lists those that it changes")
        })
    }

    fn delta_of(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let module = self.module(name)?;
        if self.magnitudes.contains_key(&module.path) {
            self.refuse_dora()?;
        }
        let group = &self.adapter.groups[module.group];
        let factors = group.low_rank(module.layer, module.target)?;
        let update = Update {
            left: &factors.left,
            right: &factors.right,
            rank: factors.rank,
            scale: factors.scale as f32,
        };
        let (out, cols) = (factors.out, factors.in_features);
        let mut delta = vec![0.0; out * cols];
        let blocks = delta.par_chunks_mut(ROWS * cols.max(1)).enumerate();
        blocks.try_for_each(|(block, place)| {
            let first = block * ROWS;
            let rows = first..(first + ROWS).min(out);
            delta_rows(&[update], rows, cols, place)
        })?;
        Ok((vec![out, cols], delta))
    }
}

fn base_of(path: &Path, renames: Vec<(String, String)>) -> Result<Checkpoint> {
    Ok(Checkpoint::open(path)?.with_renames(renames))
}

fn existing(force: bool) -> Existing {
    match force {
        true => Existing::Replace,
        false => Existing::Refuse,
    }
}

#[pymethods]
impl Adapter {
    /// Opens a `.tl` or a PEFT directory.
    #[staticmethod]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        base: Option<PathBuf>,
        blobs: Option<PathBuf>,
        renames: Vec<(String, String)>,
    ) -> PyResult<Self> {
        let opened = py.detach(|| Self::open_from(path, base, blobs, renames));
        raised(py, opened)
    }

    /// The preset's name, or `custom`.
    #[getter]
    fn method(&self) -> &'static str {
        self.adapter.method().name()
    }

    /// The largest rank of a tie group; 0 without any.
    #[getter]
    fn rank(&self) -> usize {
        let ranks = self.adapter.groups.iter().map(|g| g.rank);
        ranks.max().unwrap_or(0)
    }

    /// Modules by name, `{}` in place of the layer, each once.
    #[getter]
    fn targets(&self) -> Vec<&str> {
        let targets = self.adapter.groups.iter().flat_map(|g| &g.targets);
        let mut names: Vec<&str> = targets.map(|t| t.module.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Every module with the shape of its update, (out, in).
    #[getter]
    fn modules(&self) -> Vec<(String, (usize, usize))> {
        let shape = |m: &Module| {
            let group = &self.adapter.groups[m.group];
            (group.targets[m.target].out, group.in_features)
        };
        let modules = self.adapter.modules();
        modules.iter().map(|m| (m.label(), shape(m))).collect()
    }

    /// Numbers in all factors and extras, and those of them that were trained.
    #[getter]
    fn parameters(&self) -> (u64, u64) {
        (self.adapter.parameters(), self.adapter.trained_parameters())
    }

    /// The canonical manifest, a JSON document.
    fn manifest(&self, py: Python<'_>) -> PyResult<String> {
        let encoded = raised(py, py.detach(|| self.encoded()))?;
        Ok(String::from_utf8_lossy(&encoded.manifest.to_bytes()).into_owned())
    }

    /// The distinct tensors by the manifest's names; of coded ones, their F32 values.
    fn tensors(&self, py: Python<'_>) -> PyResult<Vec<(String, Array)>> {
        let encoded = raised(py, py.detach(|| self.encoded()))?;
        let described = encoded.manifest.tensors();
        let array = |(name, t): (&String, &tlkit::format::EncodedTensor)| {
            let values = described.get(name).map(|d| d.values(&t.tensor)).transpose();
            let values = raised(py, values)?;
            Ok((
                name.clone(),
                Array::of(values.as_ref().unwrap_or(&t.tensor)),
            ))
        };
        encoded.tensors.iter().map(array).collect()
    }

    /// ΔW of a module in f32, (out, in).
    fn delta(&self, py: Python<'_>, module: &str) -> PyResult<Array> {
        let (shape, values) = raised(py, py.detach(|| self.delta_of(module)))?;
        Ok(Array::of_f32(shape, values))
    }

    /// Writes a PEFT directory.
    fn to_peft(
        &self,
        py: Python<'_>,
        output: PathBuf,
        form: &str,
        dtype: &str,
        base: Option<(PathBuf, Vec<(String, String)>)>,
        force: bool,
    ) -> PyResult<()> {
        let written = py.detach(|| {
            self.refuse_dora()?;
            let mut options = ExportOptions::default();
            options.form = match form {
                "lora" => Form::Faithful,
                "lora-portable" => Form::Portable,
                "vera" => Form::Vera,
                _ => return Err(Error::new(Code::Usage, format!("no form `{form}`"))),
            };
            options.dtype = Some(dtype.to_ascii_uppercase().parse()?);
            options.existing = existing(force);
            let base = base.map(|(path, renames)| base_of(&path, renames));
            let base = base.transpose()?;
            tlkit::convert::adapter_to_peft(&self.adapter, &output, base.as_ref(), &options)
        });
        raised(py, written).map(|_| ())
    }

    /// Writes a fat `.tl`, and gives its root and bytes.
    fn save(
        &self,
        py: Python<'_>,
        path: PathBuf,
        zstd: bool,
        force: bool,
    ) -> PyResult<(String, u64)> {
        let written = py.detach(|| {
            let mut options = WriteOptions::default();
            options.zstd = zstd;
            options.existing = existing(force);
            write_encoded(&path, self.encoded()?, &options).map_err(|e| e.file(&path))
        });
        let written = raised(py, written)?;
        Ok((written.root.to_string(), written.bytes))
    }
}

/// A tensor of Python: name, dtype as safetensors has it, shape, bytes.
type Part = (String, String, Vec<usize>, Vec<u8>);

/// The adapter of a manifest's JSON and its tensors.
#[pyfunction]
pub(crate) fn from_parts(
    py: Python<'_>,
    manifest: String,
    tensors: Vec<Part>,
) -> PyResult<Adapter> {
    let made = py.detach(|| {
        let tensors = tensors.into_iter().map(|(name, dtype, shape, data)| {
            let tensor = dtype
                .parse::<Dtype>()
                .and_then(|dtype| Tensor::new(dtype, shape, data));
            let tensor = tensor.map_err(|e| e.tensor(&name))?;
            Ok((name, tensor))
        });
        let adapter = format::from_parts(manifest.as_bytes(), tensors.collect::<Result<_>>()?)?;
        let encoded = encode(&adapter)?;
        Ok::<_, Error>(Adapter {
            root: encoded.manifest.root().to_string(),
            adapter,
            source: ".tl",
            notes: Vec::new(),
            magnitudes: BTreeMap::new(),
            encoded: OnceLock::from(Ok(encoded)),
        })
    });
    raised(py, made)
}

/// The values of a seed (spec §7), in f32.
#[pyfunction]
pub(crate) fn seeded(
    py: Python<'_>,
    key: [u8; 32],
    step: f32,
    shape: Vec<usize>,
) -> PyResult<Array> {
    let values = py.detach(|| {
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let len = len.ok_or_else(|| Error::new(Code::ShapeOverflow, "the shape is too large"))?;
        format::generate(&Seed { key, step }, len)
    });
    Ok(Array::of_f32(shape.clone(), raised(py, values)?))
}
