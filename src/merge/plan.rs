use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;

use super::names::{quantised, resolve};
use super::tied::{self, Ties};
use super::{MergeInput, PlanOptions, Rounding, TiedPolicy, job};
use crate::adapter::{ExtraRole, Module, ModuleKind};
use crate::error::{Code, Error, Result};
use crate::safetensors::{Checkpoint, Location, SafetensorsFile};
use crate::tensor::{Dtype, shape_text};

/// Something that is added to a base tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Addition {
    /// A low-rank update of a module's weight.
    Module {
        /// Index of the adapter.
        input: usize,
        /// Which of its modules.
        module: Module,
        /// Whether the weight is stored (in, out).
        transposed: bool,
        /// s, weighted, as f32.
        scale: f32,
        /// Whether the adapter is a DoRA and has a magnitude for the module.
        dora: bool,
    },
    /// A bias, scaled.
    Bias {
        /// Index of the adapter.
        input: usize,
        /// Index of its extra tensor.
        extra: usize,
        /// s, weighted, as f32.
        scale: f32,
    },
}

/// What happens to one tensor.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Its name in the output.
    pub name: String,
    /// The base tensor that its bytes start from.
    pub source: Location,
    /// Whether it is added to the checkpoint: the output projection of an untied model.
    pub appended: bool,
    /// Element type, F32, F16 or BF16.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// The adapter and its extra tensor that replace the values, before anything is added.
    pub replace: Option<(usize, usize)>,
    /// What is added, in the order of the adapters.
    pub additions: Vec<Addition>,
    /// How low-rank updates are rounded.
    pub rounding: Rounding,
}

impl TensorPlan {
    /// Bytes of the tensor.
    pub fn byte_len(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bits() as u64 / 8
    }

    /// Whether anything happens to it; an appended tensor may be a mere copy.
    pub fn is_touched(&self) -> bool {
        self.replace.is_some() || !self.additions.is_empty()
    }
}

/// A part of an output shard, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the base's shard, as they are: the header too, unless it is rewritten.
    Copy {
        /// Where they are in the base's shard.
        source: Range<u64>,
        /// Where they go.
        at: u64,
    },
    /// A merged tensor.
    Merge {
        /// Index into [`Plan::tensors`].
        tensor: usize,
        /// Where it goes.
        at: u64,
    },
}

/// How one shard comes to be.
#[derive(Debug, Clone)]
pub struct ShardPlan {
    /// Index into [`Checkpoint::shards`], and file name.
    pub index: usize,
    /// File name, the same in base and output.
    pub name: String,
    /// Header with length prefix, where it is not the base's.
    pub new_header: Option<Vec<u8>>,
    /// What follows (or, without a new header, includes) the header.
    pub segments: Vec<Segment>,
    /// Bytes of the output shard.
    pub bytes_out: u64,
    /// Bytes of merged tensors among them.
    pub bytes_merged: u64,
}

/// What a merge is going to do.
#[derive(Debug)]
pub struct Plan<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) inputs: &'a [MergeInput],
    pub(super) options: PlanOptions,
    pub(super) tensors: Vec<TensorPlan>,
    pub(super) shards: Vec<ShardPlan>,
    /// Files of a model directory that are rewritten: name and content.
    pub(super) rewritten: Vec<(&'static str, Vec<u8>)>,
    pub(super) unties: bool,
    pub(super) notes: Vec<String>,
}

/// A plan as `--dry-run` shows it.
#[derive(Debug, Serialize)]
pub struct PlanSummary {
    /// Adapted and replaced tensors.
    pub tensors_merged: usize,
    /// All tensors of the base.
    pub tensors_total: usize,
    /// Bytes of the outputs' shards.
    pub bytes_out: u64,
    /// Bytes of them that are merged.
    pub bytes_merged: u64,
    /// Bytes of them that are copied.
    pub bytes_copied: u64,
    /// Free space that the outputs need where the file system cannot share extents.
    pub disk_needed: u64,
    /// Estimate of the peak memory in bytes, without the pages of mapped adapters.
    pub memory: u64,
    /// Per output file.
    pub shards: Vec<ShardSummary>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One shard of a [`PlanSummary`].
#[derive(Debug, Serialize)]
pub struct ShardSummary {
    /// File name.
    pub name: String,
    /// Bytes.
    pub bytes_out: u64,
    /// Bytes that are merged.
    pub bytes_merged: u64,
    /// Parts that are copied inside the kernel.
    pub copies: usize,
    /// Names of the tensors that are merged.
    pub tensors: Vec<String>,
}

impl<'a> Plan<'a> {
    /// The base model.
    pub fn base(&self) -> &'a Checkpoint {
        self.base
    }

    /// The adapters.
    pub fn inputs(&self) -> &'a [MergeInput] {
        self.inputs
    }

    /// What was asked for.
    pub fn options(&self) -> &PlanOptions {
        &self.options
    }

    /// Every tensor that changes or is added, by shard and place in the output.
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// Every shard, also those that are copied whole.
    pub fn shards(&self) -> &[ShardPlan] {
        &self.shards
    }

    /// Whether the output projection becomes a tensor of its own.
    pub fn unties(&self) -> bool {
        self.unties
    }

    /// Bytes of all output shards.
    pub fn bytes_out(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes_out).sum()
    }

    /// The file and the byte range in it that a tensor starts from.
    pub fn source(&self, tensor: &TensorPlan) -> (&'a SafetensorsFile, Range<u64>) {
        let (file, info) = self.base.at(tensor.source);
        (file, file.file_range(info))
    }

    /// What `--dry-run` shows.
    pub fn summary(&self) -> PlanSummary {
        let shard = |s: &ShardPlan| {
            let names = s.segments.iter().filter_map(|segment| match segment {
                Segment::Merge { tensor, .. } => self.tensors.get(*tensor),
                Segment::Copy { .. } => None,
            });
            let tensors: Vec<String> = names.map(|t| t.name.clone()).collect();
            ShardSummary {
                name: s.name.clone(),
                bytes_out: s.bytes_out,
                bytes_merged: s.bytes_merged,
                copies: s.segments.len() - tensors.len(),
                tensors,
            }
        };
        let shards: Vec<ShardSummary> = self.shards.iter().map(shard).collect();
        let bytes_out = self.bytes_out();
        let bytes_merged = shards.iter().map(|s| s.bytes_merged).sum();
        let headers: usize = self
            .base
            .shards()
            .iter()
            .map(|s| s.raw_header().len())
            .sum();
        let factors = self.tensors.iter().map(|t| job::memory(self.inputs, t));
        PlanSummary {
            tensors_merged: self.tensors.iter().filter(|t| t.is_touched()).count(),
            tensors_total: self.base.tensors().len(),
            bytes_out,
            bytes_merged,
            bytes_copied: bytes_out - bytes_merged,
            disk_needed: bytes_out,
            memory: factors.max().unwrap_or(0) + 4 * headers as u64,
            shards,
            notes: self.notes.clone(),
        }
    }
}

/// Matches every adapter to the base, checks that all of it fits, and lays out the outputs.
/// Nothing is written, and no weight is read.
///
/// # Errors
/// [`Code::UnmatchedModule`], [`Code::AmbiguousModule`], [`Code::BaseShape`], [`Code::BaseDtype`],
/// [`Code::TiedEmbedding`], [`Code::AdaptersConflict`]; [`Code::Usage`] for a weight that cannot
/// be applied; [`Code::ConfigInvalid`] for the base's `config.json`.
pub fn plan<'a>(
    base: &'a Checkpoint,
    inputs: &'a [MergeInput],
    options: &PlanOptions,
) -> Result<Plan<'a>> {
    if inputs.is_empty() {
        return Err(Error::new(Code::Usage, "no adapter to merge"));
    }
    let mut builder = Builder {
        base,
        inputs,
        options,
        ties: Ties::of(base)?,
        tensors: BTreeMap::new(),
        new_output: None,
        untie: false,
        notes: Vec::new(),
    };
    for (index, input) in inputs.iter().enumerate() {
        builder
            .add_input(index, input)
            .map_err(|e| in_adapter(e, inputs, input))?;
    }
    builder.finish()
}

/// Says which adapter an error is about, where there are several.
fn in_adapter(error: Error, inputs: &[MergeInput], input: &MergeInput) -> Error {
    if inputs.len() < 2 {
        return error;
    }
    let mut e = Error::new(
        error.code(),
        format!("{}: {}", input.label, error.message()),
    );
    if let Some(tensor) = error.tensor_name() {
        e = e.tensor(tensor);
    }
    if let Some(file) = error.path() {
        e = e.file(file);
    }
    match error.hint_text() {
        Some(hint) => e.hint(hint),
        None => e,
    }
}

/// Where a name of the adapter leads: a stored tensor, or the output projection that untying adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Stored(Location),
    NewOutput,
}

struct Builder<'a, 'o> {
    base: &'a Checkpoint,
    inputs: &'a [MergeInput],
    options: &'o PlanOptions,
    ties: Ties,
    tensors: BTreeMap<Site, TensorPlan>,
    new_output: Option<String>,
    untie: bool,
    notes: Vec<String>,
}

impl<'a> Builder<'a, '_> {
    fn add_input(&mut self, index: usize, input: &'a MergeInput) -> Result<()> {
        if !input.weight.is_finite() {
            let message = format!("weight {} is not a number to scale by", input.weight);
            return Err(Error::new(Code::Usage, message));
        }
        let modules = input.adapter.modules();
        let extras = &input.adapter.extras;
        let wanted: Vec<String> = modules
            .iter()
            .map(|m| format!("{}.weight", m.path))
            .chain(extras.iter().map(|e| e.name.clone()))
            .collect();
        let tied = self.ties.tied;
        let may_miss = |name: &str| tied && tied::is_output(name);
        let places = resolve(self.base, &wanted, &self.options.renames, may_miss).map_err(|e| {
            let bias = extras.iter().any(|x| {
                matches!(x.role, ExtraRole::AddBias(..)) && e.tensor_name() == Some(&x.name)
            });
            if bias && e.code() == Code::UnmatchedModule {
                return Error::new(Code::UnmatchedModule, "the base has no such bias to add to")
                    .tensor(e.tensor_name().unwrap_or_default())
                    .hint("PEFT refuses to merge a lora_bias into a layer without bias, too");
            }
            e
        })?;
        let mut taken = BTreeSet::new();
        for (i, (name, place)) in wanted.iter().zip(&places).enumerate() {
            // A module's weight may be replaced too: then it is an extra and a module.
            let is_extra = i >= modules.len();
            if place.is_some_and(|p| !taken.insert((p, is_extra))) {
                let message = "two names of the adapter lead to one tensor of the base";
                return Err(Error::new(Code::AmbiguousModule, message).tensor(name));
            }
        }
        let layouts = Layouts::of(self.base, input, &modules, &places);
        for (module, place) in modules.iter().zip(&places) {
            for site in self.sites(*place, &format!("{}.weight", module.path))? {
                self.add_module(site, index, module, &layouts)?;
            }
        }
        for (e, place) in places.iter().skip(modules.len()).enumerate() {
            let Some(extra) = extras.get(e) else { break };
            for site in self.sites(*place, &extra.name)? {
                self.add_extra(site, index, e)?;
            }
        }
        self.check_whole(input)?;
        self.note_quantised(input);
        Ok(())
    }

    /// The tensors that change when the adapter changes the one at `place`, by the policy.
    fn sites(&mut self, place: Option<Location>, name: &str) -> Result<Vec<Site>> {
        let is_output = place.is_none() || place == self.ties.output;
        let is_input = place.is_some() && place == self.ties.input;
        let stored = |l: &Location| Site::Stored(*l);
        if !self.ties.tied || !(is_output || is_input) {
            return Ok(place.iter().map(stored).collect());
        }
        match self.options.tied {
            TiedPolicy::Refuse => {
                let other = if is_output { "input" } else { "output" };
                let message = format!(
                    "the model's input and output embedding are one tensor, and changing this one would change the {other} too"
                );
                Err(Error::new(Code::TiedEmbedding, message)
                    .tensor(name)
                    .file(self.base.path())
                    .hint("ask for --tied untie (an output tensor of its own) or --tied shared (change both, as PEFT does)"))
            }
            TiedPolicy::Shared => {
                let both = [self.ties.input, self.ties.output];
                Ok(both.iter().flatten().map(stored).collect())
            }
            TiedPolicy::Untie => {
                self.untie = true;
                if self.ties.output.is_none() && self.new_output.is_none() {
                    self.new_output = Some(self.ties.new_output(self.base)?);
                    self.tensor(Site::NewOutput)?;
                }
                Ok(vec![place.map_or(Site::NewOutput, Site::Stored)])
            }
        }
    }

    /// The plan of a tensor, started where this is the first that happens to it.
    fn tensor(&mut self, site: Site) -> Result<&mut TensorPlan> {
        let source = match site {
            Site::Stored(place) => place,
            Site::NewOutput => self.ties.input.ok_or_else(|| {
                Error::new(Code::TiedEmbedding, "the base has no input embedding")
            })?,
        };
        let (file, info) = self.base.at(source);
        if !info.dtype.is_float() {
            let message = format!(
                "the base stores it as {}, which cannot be merged into",
                info.dtype
            );
            return Err(quantised(Error::new(Code::BaseDtype, message))
                .tensor(&info.name)
                .file(file.path()));
        }
        let name = match (site, &self.new_output) {
            (Site::NewOutput, Some(name)) => name.clone(),
            _ => info.name.clone(),
        };
        Ok(self.tensors.entry(site).or_insert_with(|| TensorPlan {
            name,
            source,
            appended: site == Site::NewOutput,
            dtype: info.dtype,
            shape: info.shape.clone(),
            replace: None,
            additions: Vec::new(),
            rounding: Rounding::Peft,
        }))
    }

    fn add_module(
        &mut self,
        site: Site,
        index: usize,
        module: &Module,
        layouts: &Layouts,
    ) -> Result<()> {
        let (base, rounding) = (self.base, self.options.rounding);
        let input = &self.inputs[index];
        let group = &input.adapter.groups[module.group];
        let target = &group.targets[module.target];
        let dora = input.magnitudes.contains_key(&module.path);
        let scale = weighted(input, group.scaling.factor(group.rank))?;
        let tensor = self.tensor(site)?;
        let kind = layouts.kind(target, group.in_features, &tensor.name, &tensor.shape);
        let needs = kind.weight_shape(target.out, group.in_features);
        if tensor.shape != needs {
            return Err(misfit(base, tensor, &needs));
        }
        if let Some(m) = input.magnitudes.get(&module.path)
            && m.len() != target.out
        {
            let message = format!("{} magnitudes for {} outputs", m.len(), target.out);
            return Err(Error::new(Code::FactorShape, message).tensor(&module.path));
        }
        let others = |a: &Addition| match a {
            Addition::Module { input, dora: d, .. } => *input != index && (dora || *d),
            Addition::Bias { .. } => false,
        };
        if tensor.additions.iter().any(others) {
            let message = "a DoRA depends on the weight alone, and cannot share a module with another adapter";
            return Err(Error::new(Code::AdaptersConflict, message)
                .tensor(&tensor.name)
                .hint("merge one, then the other into the result, if the order is right for you"));
        }
        if tensor
            .additions
            .iter()
            .any(|a| matches!(a, Addition::Bias { .. }))
        {
            return Err(mixed(tensor));
        }
        if !input.single_rounding {
            tensor.rounding = rounding;
        }
        tensor.additions.push(Addition::Module {
            input: index,
            module: module.clone(),
            transposed: kind.is_transposed(),
            scale,
            dora,
        });
        Ok(())
    }

    fn add_extra(&mut self, site: Site, index: usize, e: usize) -> Result<()> {
        let (base, inputs) = (self.base, self.inputs);
        let input = &inputs[index];
        let extra = &input.adapter.extras[e];
        let tensor = self.tensor(site)?;
        if tensor.shape != extra.tensor.shape() {
            return Err(misfit(base, tensor, extra.tensor.shape()));
        }
        if let ExtraRole::AddBias(scaling, rank) = extra.role {
            let scale = weighted(input, scaling.factor(rank))?;
            if tensor
                .additions
                .iter()
                .any(|a| matches!(a, Addition::Module { .. }))
            {
                return Err(mixed(tensor));
            }
            tensor.additions.push(Addition::Bias {
                input: index,
                extra: e,
                scale,
            });
            return Ok(());
        }
        match tensor.replace {
            None => tensor.replace = Some((index, e)),
            Some((other, _)) if other != index => {
                let message = format!(
                    "`{}` and `{}` both replace it",
                    inputs[other].label, input.label
                );
                return Err(Error::new(Code::AdaptersConflict, message).tensor(&tensor.name));
            }
            // Two names of one adapter that are one tensor in the model.
            Some((_, first)) => {
                if !input.adapter.extras[first].tensor.same_bytes(&extra.tensor) {
                    let message = "the adapter holds different input and output embeddings, which a tied model cannot";
                    return Err(Error::new(Code::TiedEmbedding, message)
                        .tensor(&extra.name)
                        .hint("ask for --tied untie"));
                }
            }
        }
        Ok(())
    }

    /// What replaces or normalises weights cannot be scaled as a whole.
    fn check_whole(&self, input: &MergeInput) -> Result<()> {
        let replaces = |e: &&crate::adapter::Extra| !matches!(e.role, ExtraRole::AddBias(..));
        let what = match input.adapter.extras.iter().find(replaces) {
            Some(extra) => Some(format!("replaces `{}`", extra.name)),
            None => (!input.magnitudes.is_empty()).then(|| "is a DoRA".to_owned()),
        };
        match what {
            Some(what) if input.weight != 1.0 => Err(Error::new(
                Code::Usage,
                format!(
                    "`{}` {what}, so that it has no meaning with weight {}",
                    input.label, input.weight
                ),
            )),
            _ => Ok(()),
        }
    }

    fn note_quantised(&mut self, input: &MergeInput) {
        let base = input.adapter.base.as_ref().and_then(|b| b.name.as_deref());
        let name = base.unwrap_or_default().to_ascii_lowercase();
        if ["4bit", "8bit", "-gptq", "-awq", "int4", "int8"]
            .iter()
            .any(|q| name.contains(q))
        {
            self.notes.push(format!(
                "{} was trained on a quantised base; merged into full weights it may behave slightly differently",
                input.label
            ));
        }
    }

    fn finish(self) -> Result<Plan<'a>> {
        let mut tensors: Vec<TensorPlan> = self.tensors.into_values().collect();
        // By place in the output: an appended tensor is the last of its shard.
        tensors.sort_by_key(|t| (t.source.shard, t.appended, t.source.tensor));
        let mut shards = Vec::new();
        for (index, file) in self.base.shards().iter().enumerate() {
            shards.push(lay_out(index, file, &tensors)?);
        }
        let mut plan = Plan {
            base: self.base,
            inputs: self.inputs,
            options: self.options.clone(),
            tensors,
            shards,
            rewritten: Vec::new(),
            unties: self.untie,
            notes: self.notes,
        };
        if self.untie {
            plan.untie()?;
        }
        Ok(plan)
    }
}

impl Plan<'_> {
    fn untie(&mut self) -> Result<()> {
        match tied::untied_config(self.base)? {
            Some(config) if self.base.is_dir() => self.rewritten.push(config),
            _ => self.notes.push(
                "the output has an output embedding of its own: set tie_word_embeddings to false in the model's config.json"
                    .to_owned(),
            ),
        }
        if let Some(t) = self.tensors.iter().find(|t| t.appended)
            && self.base.is_sharded()
            && let Some(shard) = self.shards.get(t.source.shard)
        {
            let elements = t.shape.iter().product::<usize>() as u64;
            let (name, bytes) = (&t.name, t.byte_len());
            let index = tied::extended_index(self.base, name, &shard.name, bytes, elements)?;
            self.rewritten.push(index);
        }
        Ok(())
    }
}

fn weighted(input: &MergeInput, factor: f64) -> Result<f32> {
    let scale = (factor * input.weight) as f32;
    if scale.is_finite() {
        return Ok(scale);
    }
    let message = format!("scaling {factor} times weight {} overflows", input.weight);
    Err(Error::new(Code::BadAlpha, message))
}

fn mixed(tensor: &TensorPlan) -> Error {
    let message = "both a low-rank update and a bias are to be added to it";
    Error::new(Code::AdaptersConflict, message).tensor(&tensor.name)
}

fn misfit(base: &Checkpoint, tensor: &TensorPlan, needs: &[usize]) -> Error {
    let message = format!(
        "the adapter needs {}, the base has {}",
        shape_text(needs),
        shape_text(&tensor.shape)
    );
    let (file, _) = base.at(tensor.source);
    let hint = match (needs, &tensor.shape[..]) {
        ([_, a], [_, b]) if a == b => {
            "the number of rows differs: was the vocabulary resized for training, or is it another model size?"
        }
        ([a, b], [c, d]) if (a, b) == (d, c) => {
            "the base stores it transposed; the adapter says otherwise"
        }
        _ => "check that this is the adapter's base model",
    };
    Error::new(Code::BaseShape, message)
        .tensor(&tensor.name)
        .file(file.path())
        .hint(hint)
}

/// How modules of a lenient adapter are stored, as far as the base tells.
struct Layouts {
    lenient: bool,
    /// The base is of the GPT-2 kind, whose `Conv1D` stores (in, out).
    conv1d: bool,
    /// Last segments of module names that some non-square weight shows to be (in, out).
    transposed: BTreeSet<String>,
}

impl Layouts {
    const CONV1D: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

    fn of(
        base: &Checkpoint,
        input: &MergeInput,
        modules: &[Module],
        places: &[Option<Location>],
    ) -> Self {
        let mut transposed = BTreeSet::new();
        for (module, place) in modules.iter().zip(places) {
            let group = &input.adapter.groups[module.group];
            let (out, n) = (group.targets[module.target].out, group.in_features);
            let shape = place.map(|p| base.at(p).1.shape.as_slice());
            if out != n && shape == Some(&[n, out]) {
                transposed.insert(last_segment(&module.path).to_owned());
            }
        }
        // A joint projection of q, k and v whose longer side comes last is stored (in, out).
        let joint = |(name, place): (&String, &Location)| {
            let shape = &base.at(*place).1.shape;
            name.ends_with("c_attn.weight") && matches!(shape[..], [n, m] if n < m)
        };
        Self {
            lenient: input.lenient_layout,
            conv1d: input.lenient_layout && base.tensors().iter().any(joint),
            transposed,
        }
    }

    fn kind(
        &self,
        target: &crate::adapter::Target,
        n: usize,
        name: &str,
        shape: &[usize],
    ) -> ModuleKind {
        if !self.lenient || target.kind == ModuleKind::Embedding {
            return target.kind;
        }
        let module = last_segment(name.strip_suffix(".weight").unwrap_or(name));
        if target.out != n {
            let flipped = shape == [n, target.out];
            return if flipped {
                ModuleKind::Conv1d
            } else {
                ModuleKind::Linear
            };
        }
        if self.transposed.contains(module) || self.conv1d && Self::CONV1D.contains(&module) {
            return ModuleKind::Conv1d;
        }
        target.kind
    }
}

fn last_segment(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Cuts one shard into copied and merged parts; neighbouring copies are one.
fn lay_out(index: usize, file: &SafetensorsFile, tensors: &[TensorPlan]) -> Result<ShardPlan> {
    let name = file.path().file_name().unwrap_or_default();
    let here = || {
        tensors
            .iter()
            .enumerate()
            .filter(|(_, t)| t.source.shard == index)
    };
    let appended = here().find(|(_, t)| t.appended);
    let new_header = appended
        .map(|(_, t)| extended_header(file, t))
        .transpose()?;
    let data_start = file.header().data_start;
    let new_start = new_header.as_ref().map_or(data_start, |h| h.len() as u64);
    let shift = |offset: u64| offset - data_start + new_start;
    let mut segments = Vec::new();
    let mut bytes_merged = 0;
    let mut done = if new_header.is_some() { data_start } else { 0 };
    let place = |offset: u64| {
        if new_header.is_some() {
            shift(offset)
        } else {
            offset
        }
    };
    for (i, t) in here().filter(|(_, t)| !t.appended) {
        let range = file.file_range(&file.header().tensors[t.source.tensor]);
        if done < range.start {
            segments.push(Segment::Copy {
                source: done..range.start,
                at: place(done),
            });
        }
        segments.push(Segment::Merge {
            tensor: i,
            at: place(range.start),
        });
        bytes_merged += t.byte_len();
        done = range.end;
    }
    if done < file.byte_len() {
        segments.push(Segment::Copy {
            source: done..file.byte_len(),
            at: place(done),
        });
    }
    let mut bytes_out = place(file.byte_len());
    if let Some((i, t)) = appended {
        if t.is_touched() {
            bytes_merged += t.byte_len();
            segments.push(Segment::Merge {
                tensor: i,
                at: bytes_out,
            });
        } else {
            let source = file.file_range(&file.header().tensors[t.source.tensor]);
            segments.push(Segment::Copy {
                source,
                at: bytes_out,
            });
        }
        bytes_out += t.byte_len();
    }
    Ok(ShardPlan {
        index,
        name: name.to_string_lossy().into_owned(),
        new_header,
        segments,
        bytes_out,
        bytes_merged,
    })
}

/// The header of `file` with one more tensor at the end of the data: the entries before it stay
/// byte for byte.
fn extended_header(file: &SafetensorsFile, tensor: &TensorPlan) -> Result<Vec<u8>> {
    let json = file
        .raw_header()
        .get(8..)
        .unwrap_or_default()
        .trim_ascii_end();
    let open = json.strip_suffix(b"}").unwrap_or(json);
    let end = file.byte_len() - file.header().data_start;
    let name = serde_json::to_string(&tensor.name).unwrap_or_default();
    let entry = format!(
        ",{name}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{end},{}]}}}}",
        tensor.dtype,
        shape_text(&tensor.shape).replace(' ', ""),
        end + tensor.byte_len()
    );
    let mut header = [open, entry.as_bytes()].concat();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.append(&mut header);
    crate::safetensors::Header::parse(&out[8..], end + tensor.byte_len())?;
    Ok(out)
}
