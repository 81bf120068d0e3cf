//! One adapter into one row, from headers: configs, safetensors headers, pickles without tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::leftover::{Leftover, leftover};
use super::row::{Facts, Form, Piece, Problem, Projection, Recipe, Row, Target, add};
use super::scan::{File, Found};
use crate::adapter::{Adapter, LAYER_PLACE, Method, split_digits};
use crate::error::{Code, Error, Result};
use crate::format::{
    Digest, Hasher, MAX_TENSOR_BYTES, ManifestTensor, Stored, TlFile, pack_tensor, packed_name,
};
use crate::peft::config::MAX_CONFIG_BYTES;
use crate::peft::pickle::{Limits, read_torch_archive, read_torch_shapes};
use crate::peft::slot::Slot;
use crate::peft::{CONFIG_FILE, PICKLE_FILE, PeftConfig, WEIGHTS_FILE, names::strip_prefix};
use crate::safetensors::{SafetensorsFile, TensorInfo, read_limited};
use crate::tensor::Dtype;

/// What of the tensors' own bytes is read, beyond headers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Depth {
    /// Digests of PEFT tensors.
    pub(super) hash: bool,
    /// What zstd makes of the weights.
    pub(super) measure: bool,
}

/// A tensor as it is stored.
pub(super) struct Item {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    digest: Option<Digest>,
}

impl Item {
    fn elements(&self) -> u64 {
        self.shape
            .iter()
            .fold(1u64, |n, e| n.saturating_mul(*e as u64))
    }

    /// What a 16-bit form would save.
    fn wide(&self) -> u64 {
        match self.dtype {
            Dtype::F32 => self.bytes / 2,
            Dtype::F64 => self.bytes / 4 * 3,
            _ => 0,
        }
    }
}

/// The row of an adapter of which nothing is known yet.
pub(super) fn empty_row(path: String, format: Form) -> Row {
    Row {
        path,
        format,
        kind: None,
        user: None,
        task: None,
        base: None,
        base_fingerprint: None,
        rank: None,
        alpha: None,
        dtype: None,
        modules: None,
        layers: None,
        parameters: None,
        trained_parameters: None,
        files: 0,
        bytes: 0,
        disk_bytes: 0,
        linked_bytes: 0,
        adapter_bytes: 0,
        waste: Default::default(),
        what_if: Vec::new(),
        error: None,
        facts: Facts::default(),
    }
}

/// A tensor of a `.tl` manifest that takes `bytes` as it is stored.
pub(super) fn tensor_item(name: &str, tensor: &ManifestTensor, bytes: u64) -> Result<Item> {
    Ok(Item {
        name: name.to_owned(),
        dtype: tensor.dtype()?,
        shape: tensor.shape.clone(),
        bytes,
        digest: Some(tensor.sha256),
    })
}

/// The row of an adapter. What cannot be read is said in its `error`.
pub(super) fn read(found: &Found, depth: Depth) -> Row {
    let format = if found.is_tl { Form::Tl } else { Form::Peft };
    let mut row = empty_row(found.path.display().to_string(), format);
    row.files = found.files.len() as u64;
    count_files(found, &mut row);
    let outcome = match found.is_tl {
        true => read_tl(&found.path, depth, &mut row),
        false => read_peft(found, depth, &mut row),
    };
    if let Err(error) = outcome {
        row.error = Some(Problem::from(&error));
    }
    if weights(found).is_some_and(|w| !w.counted) {
        // Its bytes are another row's, and so is what could be saved of them.
        let Facts {
            full_weights,
            optimizer,
            kept,
            ..
        } = row.facts;
        row.facts = Facts {
            full_weights,
            optimizer,
            kept,
            ..Facts::default()
        };
    }
    row
}

/// Sums the files by what they are. Those counted elsewhere hold nothing here.
fn count_files(found: &Found, row: &mut Row) {
    let weights = weights(found);
    for file in &found.files {
        if !file.counted {
            add(&mut row.linked_bytes, file.len);
            continue;
        }
        add(&mut row.bytes, file.len);
        add(&mut row.disk_bytes, file.disk);
        let inner = file.path.strip_prefix(&found.path).unwrap_or(&file.path);
        let facts = &mut row.facts;
        match leftover(inner) {
            _ if found.is_tl || weights.is_some_and(|w| w.path == file.path) => {}
            Some(Leftover::FullWeights) => add(&mut facts.full_weights, file.len),
            Some(Leftover::Optimizer) => add(&mut facts.optimizer, file.len),
            None if inner == Path::new(CONFIG_FILE) => {}
            None => add(&mut facts.kept, file.len),
        }
    }
    row.adapter_bytes = weights.map_or(0, |w| w.len);
}

/// The file that holds the weights; PEFT prefers safetensors where both forms exist.
fn weights(found: &Found) -> Option<&File> {
    if found.is_tl {
        return found.files.first();
    }
    [WEIGHTS_FILE, PICKLE_FILE].iter().find_map(|name| {
        let path = found.path.join(name);
        found.files.iter().find(|f| f.path == path)
    })
}

fn read_tl(path: &Path, depth: Depth, row: &mut Row) -> Result<()> {
    let file = TlFile::open(path)?;
    let adapter = file.manifest().adapter().map_err(|e| e.file(path))?;
    let storage = file.storage();
    let header = file.file().header();
    let (mut items, mut seeded) = (Vec::new(), BTreeSet::new());
    for (name, tensor) in file.manifest().tensors() {
        let info = match storage.get(name.as_str()) {
            Some(Stored::Raw) => header.get(name),
            Some(Stored::Packed) => header.get(&packed_name(name)),
            _ => None,
        };
        let Some(info) = info else { continue };
        if tensor.seed()?.is_some() {
            seeded.insert(name.clone());
        }
        items.push(tensor_item(name, tensor, info.byte_len())?);
    }
    describe_tl(&adapter, row);
    summarise(&items, row);
    for item in &items {
        let packed = header.get(&item.name).is_none();
        let wide = if packed { 0 } else { item.wide() };
        let recipe = item.digest.filter(|_| seeded.contains(&item.name));
        note(item, wide, recipe.map(Recipe::Seeded), &mut row.facts);
    }
    if depth.measure && storage.values().any(|s| *s == Stored::Raw) {
        let raw = header
            .tensors
            .iter()
            .filter(|t| header.get(&t.name).is_some());
        row.facts.packed = Some(measure(file.file(), raw)?);
    }
    Ok(())
}

pub(super) fn describe_tl(adapter: &Adapter, row: &mut Row) {
    let method = adapter.method();
    let modules = adapter.modules();
    row.kind = Some(method.name().to_owned());
    let base = adapter.base.as_ref();
    row.base = base.and_then(|b| b.name.clone());
    row.base_fingerprint = base.and_then(|b| b.weights.clone());
    row.rank = adapter.groups.iter().map(|g| g.rank as u64).max();
    row.alpha = adapter.groups.first().map(|g| g.scaling.alpha);
    row.modules = Some(modules.len() as u64);
    row.layers = Some(layers(modules.iter().map(|m| m.path.as_str())));
    row.trained_parameters = Some(adapter.trained_parameters());
    if method == Method::Lora {
        let mut targets = Targets::default();
        for module in &modules {
            let Some(group) = adapter.groups.get(module.group) else {
                continue;
            };
            let Some(target) = group.targets.get(module.target) else {
                continue;
            };
            let sizes = [group.in_features, target.out, group.rank];
            targets.add(&module.path, sizes.map(|n| n as u64));
        }
        row.facts.targets = targets.finish();
        let extras = adapter.extras.iter().map(|e| e.tensor.byte_len());
        row.facts.extra_bytes = extras.sum();
        let a = adapter.groups.first().map(|g| g.a.tensor.dtype());
        row.facts.bits = a.map_or(0, |d| d.bits() as u64);
    }
}

fn read_peft(found: &Found, depth: Depth, row: &mut Row) -> Result<()> {
    // The weights are looked at even where the config is broken, and the other way round; the
    // config's failure is the one that is told.
    let config = read_config(&found.path, row);
    let weights = read_weights(found, depth);
    if let Ok((items, file)) = &weights {
        summarise(items, row);
        describe_peft(items, config.as_ref().ok().copied().flatten(), row);
        if let Some(file) = file.as_ref().filter(|_| depth.measure) {
            row.facts.packed = Some(measure(file, file.header().tensors.iter())?);
        }
    }
    config?;
    weights?;
    Ok(())
}

/// Fills in what the config says, and gives the seed of a VeRA adapter's projections.
fn read_config(dir: &Path, row: &mut Row) -> Result<Option<u64>> {
    let path = dir.join(CONFIG_FILE);
    let bytes = match read_limited(&path, MAX_CONFIG_BYTES as u64) {
        Err(e) if e.code() == Code::NotFound => {
            let message = format!("the folder has weights and no {CONFIG_FILE}");
            return Err(Error::new(Code::NoAdapter, message).file(dir));
        }
        bytes => bytes?,
    };
    let known = PeftConfig::from_slice(&bytes);
    if let Ok(config) = &known {
        row.base = config.common().base_model_name_or_path.clone();
    }
    match known {
        Ok(PeftConfig::Lora(config)) => {
            row.kind = Some("lora".to_owned());
            row.rank = Some(config.r.into());
            row.alpha = config.lora_alpha;
            Ok(None)
        }
        Ok(PeftConfig::Vera(config)) => {
            row.kind = Some("vera".to_owned());
            row.rank = Some(config.r.into());
            Ok(Some(config.projection_prng_key))
        }
        // Types that cannot be converted can be counted all the same.
        Err(e) if e.code() == Code::UnsupportedPeftType => {
            let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let text = |key: &str| json.get(key).and_then(Value::as_str);
            row.kind = text("peft_type").map(str::to_lowercase);
            row.base = text("base_model_name_or_path").map(str::to_owned);
            row.rank = json.get("r").and_then(Value::as_u64);
            row.alpha = ["lora_alpha", "alpha"]
                .iter()
                .find_map(|key| json.get(key).and_then(Value::as_f64));
            Ok(None)
        }
        Err(e) => Err(e.file(&path)),
    }
}

type Weights = (Vec<Item>, Option<SafetensorsFile>);

fn read_weights(found: &Found, depth: Depth) -> Result<Weights> {
    let Some(file) = weights(found) else {
        let message = format!("the folder has neither {WEIGHTS_FILE} nor {PICKLE_FILE}");
        return Err(Error::new(Code::NoAdapter, message).file(&found.path));
    };
    if file.path.ends_with(PICKLE_FILE) {
        return Ok((read_pickle(&file.path, depth)?, None));
    }
    let file = SafetensorsFile::open(&file.path)?;
    let item = |info: &TensorInfo| {
        Ok(Item {
            name: info.name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: info.byte_len(),
            digest: if depth.hash {
                Some(digest(&file, info)?)
            } else {
                None
            },
        })
    };
    let items = file
        .header()
        .tensors
        .iter()
        .map(item)
        .collect::<Result<_>>()?;
    Ok((items, Some(file)))
}

fn read_pickle(path: &Path, depth: Depth) -> Result<Vec<Item>> {
    let tensors = match depth.hash {
        true => Some(read_torch_archive(path, Limits::default())?),
        false => None,
    };
    let shapes = read_torch_shapes(path, Limits::default())?;
    let item = |(name, (dtype, shape)): (String, (Dtype, Vec<usize>))| {
        let tensor = tensors.as_ref().and_then(|t| t.get(&name));
        Ok(Item {
            bytes: crate::tensor::byte_len(dtype, &shape)?,
            digest: tensor.map(|t| Digest::of(t.data())),
            name,
            dtype,
            shape,
        })
    };
    shapes.into_iter().map(item).collect()
}

/// SHA-256 of a tensor, read in small pieces.
fn digest(file: &SafetensorsFile, info: &TensorInfo) -> Result<Digest> {
    let range = file.file_range(info);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; info.byte_len().min(1 << 20) as usize];
    let mut at = range.start;
    while at < range.end {
        let n = (range.end - at).min(buffer.len() as u64);
        let part = buffer.get_mut(..n as usize).unwrap_or_default();
        file.read_at(part, at)?;
        hasher.update(part);
        at += n;
    }
    Ok(hasher.finish())
}

/// Bytes of the tensors, and of what zstd makes of each, byte-shuffled as in a packed `.tl`.
fn measure<'t>(
    file: &SafetensorsFile,
    infos: impl Iterator<Item = &'t TensorInfo>,
) -> Result<(u64, u64)> {
    let (mut raw, mut packed) = (0, 0);
    for info in infos {
        let len = info.byte_len();
        raw += len;
        if info.dtype.bits() < 8 || len > MAX_TENSOR_BYTES {
            packed += len;
            continue;
        }
        let mut bytes = vec![0; len as usize];
        file.read_at(&mut bytes, file.file_range(info).start)?;
        packed += (pack_tensor(info.dtype, &bytes)?.len() as u64).min(len);
    }
    Ok((raw, packed))
}

/// Fills in the counts that any list of tensors gives.
pub(super) fn summarise(items: &[Item], row: &mut Row) {
    let mut dtypes: BTreeMap<&str, u64> = BTreeMap::new();
    for item in items {
        *dtypes.entry(item.dtype.as_str()).or_default() += item.bytes;
    }
    let mut dtypes: Vec<(&str, u64)> = dtypes.into_iter().collect();
    dtypes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let names: Vec<&str> = dtypes.iter().map(|(name, _)| *name).collect();
    row.dtype = (!names.is_empty()).then(|| names.join("+"));
    let counts = items.iter().map(Item::elements);
    row.parameters = Some(counts.fold(0, u64::saturating_add));
}

/// Puts a stored tensor where its waste is looked for.
fn note(item: &Item, wide: u64, recipe: Option<Recipe>, facts: &mut Facts) {
    let (digest, bytes) = (item.digest, item.bytes);
    match (recipe, digest) {
        (Some(recipe), _) => facts.projections.push(Projection {
            recipe,
            digest,
            bytes,
            wide,
        }),
        (None, Some(digest)) => {
            add(&mut facts.wide, wide);
            facts.pieces.push(Piece {
                digest,
                bytes,
                wide,
            });
        }
        (None, None) => add(&mut facts.wide, wide),
    }
}

/// What the names and shapes of PEFT tensors say. `key` is the seed of VeRA's projections.
fn describe_peft(items: &[Item], key: Option<u64>, row: &mut Row) {
    let find = |name: &str| {
        items
            .iter()
            .find(|i| i.name == name)
            .map(|i| i.shape.as_slice())
    };
    let pair = match (find("base_model.vera_A"), find("base_model.vera_B")) {
        (Some(&[rank, input]), Some(&[out, _])) => key.map(|key| (key, rank, input, out)),
        _ => None,
    };
    let mut frozen = 0;
    for item in items {
        let recipe = pair
            .filter(|_| is_projection(&item.name))
            .map(|(key, rank, input, out)| {
                let dtype = item.dtype.as_str();
                let is_b = item.name.ends_with('B');
                Recipe::Vera {
                    key,
                    rank,
                    input,
                    out,
                    dtype,
                    is_b,
                }
            });
        if is_projection(&item.name) {
            add(&mut frozen, item.elements());
        }
        note(item, item.wide(), recipe, &mut row.facts);
    }
    row.trained_parameters = row.parameters.map(|all| all.saturating_sub(frozen));
    let modules: BTreeSet<&str> = items
        .iter()
        .filter_map(|i| factor(&i.name))
        .map(|(m, _)| m)
        .collect();
    if !modules.is_empty() {
        row.modules = Some(modules.len() as u64);
        row.layers = Some(layers(modules.iter().copied()));
    }
    if row.kind.as_deref() == Some("lora") {
        describe_lora(items, row);
    }
}

fn is_projection(name: &str) -> bool {
    matches!(name, "base_model.vera_A" | "base_model.vera_B")
}

fn describe_lora(items: &[Item], row: &mut Row) {
    let mut pairs: BTreeMap<&str, [Option<&Item>; 2]> = BTreeMap::new();
    for item in items {
        match factor(&item.name) {
            Some((module, slot @ (0 | 1))) => pairs.entry(module).or_default()[slot] = Some(item),
            _ => add(&mut row.facts.extra_bytes, item.bytes),
        }
    }
    let mut targets = Targets::default();
    for (module, pair) in pairs {
        let [Some(a), Some(b)] = pair else { continue };
        // A convolution's A is (rank, in, height, width). Where B is of another rank, as in the
        // grouped factors of PEFT's first releases, no formula says what retraining would take.
        let (Some(rank), Some(out)) = (a.shape.first(), b.shape.first()) else {
            continue;
        };
        if b.shape.get(1) != Some(rank) {
            add(&mut row.facts.extra_bytes, a.bytes + b.bytes);
            continue;
        }
        let input = a.elements().checked_div(*rank as u64).unwrap_or(0);
        targets.add(module, [input, *out as u64, *rank as u64]);
        row.facts.bits = row.facts.bits.max(a.dtype.bits() as u64);
    }
    row.facts.targets = targets.finish();
    let rank = row.facts.targets.iter().map(|t| t.rank).max();
    row.rank = rank.or(row.rank);
}

/// The module that a tensor is a factor of, and which: 0 for A, 1 for B, 2 for VeRA's outputs.
fn factor(name: &str) -> Option<(&str, usize)> {
    let (module, slot) = Slot::split_saved(strip_prefix(name))?;
    let which = match slot {
        Slot::A | Slot::EmbeddingA => 0,
        Slot::B | Slot::EmbeddingB => 1,
        Slot::LambdaB => 2,
        Slot::Bias | Slot::Magnitude | Slot::LambdaD => return None,
    };
    Some((module, which))
}

/// How many layers these modules are in; the same number in two lists of layers is two.
fn layers<'m>(modules: impl Iterator<Item = &'m str>) -> u64 {
    let layer = |module: &'m str| {
        let (path, layer) = split_digits(module);
        let list = path
            .split(LAYER_PLACE)
            .next()
            .unwrap_or_default()
            .to_owned();
        layer.map(|layer| (list, layer))
    };
    modules.filter_map(layer).collect::<BTreeSet<_>>().len() as u64
}

/// Adapted modules, gathered over their layers.
#[derive(Default)]
struct Targets(BTreeMap<(String, u64, u64), (u64, u64)>);

impl Targets {
    /// Adds a module with its input, output and rank.
    fn add(&mut self, module: &str, [input, out, rank]: [u64; 3]) {
        let key = (split_digits(module).0, input, out);
        let (layers, largest) = self.0.entry(key).or_default();
        *layers += 1;
        *largest = rank.max(*largest);
    }

    fn finish(self) -> Vec<Target> {
        let target = |((module, input, out), (layers, rank))| Target {
            module,
            input,
            out,
            rank,
            layers,
        };
        self.0.into_iter().map(target).collect()
    }
}
