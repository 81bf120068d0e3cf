//! From adapters and a base to a plan: which tensor each name means, whether all fits, what is added.

use std::collections::{BTreeMap, BTreeSet};

use super::by_method;
use super::dequantised::Dequantised;
use super::experts;
use super::fit::{
    apart, both_replace, check_magnitudes, misfit, mixed, no_bias, part_of, shared_dora, weighted,
};
use super::layout::lay_out;
use super::orient::Layouts;
use super::plan::{Addition, MergePlan, Origin, TensorPlan};
use super::read_base::{ReadBase, with_base};
use super::request::{MergeInput, PlanOptions, TiedPolicy, TokenizerFrom};
use super::trained::{self, BaseName};
use super::{heads, joint, tokenizer, untie, vocabulary};
use crate::adapter::{Extra, ExtraRole, Module, ModuleKind};
use crate::base::architecture::Architecture;
use crate::base::cut::Found;
use crate::base::edits::ConfigEdits;
use crate::base::names::{Names, quantised, whole_places};
use crate::base::ties::Ties;
use crate::compute::Rounding;
use crate::error::{Code, Error, Result};
use crate::open::check_complete;
use crate::quant::View;
use crate::safetensors::{Checkpoint, Location};

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
) -> Result<MergePlan<'a>> {
    if inputs.is_empty() {
        return Err(Error::new(Code::Usage, "no adapter to merge"));
    }
    let quantised = Dequantised::of(base, options)?;
    with_base(base, quantised, |read| plan_from(read, inputs, options))
}

/// Plans to write a quantised base with its weights dequantised, and nothing added: in the dtype of the
/// options, whose other fields are of no meaning.
///
/// # Errors
/// Those of [`Quantised::of`](crate::quant::Quantised::of); [`Code::Usage`] where it is not quantised.
pub fn plan_dequantised<'a>(base: &'a Checkpoint, options: &PlanOptions) -> Result<MergePlan<'a>> {
    let Some(quantised) = Dequantised::of(base, options)? else {
        return Err(Error::new(Code::Usage, "the base is not quantised").file(base.path()));
    };
    with_base(base, Some(quantised), |read| plan_from(read, &[], options))
}

/// As [`plan`], of a base that was looked at before.
pub(super) fn plan_from<'a>(
    read: &ReadBase<'_, 'a>,
    inputs: &'a [MergeInput],
    options: &PlanOptions,
) -> Result<MergePlan<'a>> {
    by_method::check(options, inputs)?;
    let base = read.base;
    let mut builder = Builder {
        base,
        names: read.names,
        quantised: read.quantised.clone(),
        architecture: read.architecture,
        inputs,
        options,
        called: read.called,
        ties: read.ties,
        tensors: BTreeMap::new(),
        aliases: BTreeMap::new(),
        untie: false,
        edits: ConfigEdits::default(),
        notes: base.notes().to_vec(),
    };
    for (index, input) in inputs.iter().enumerate() {
        if options.strict {
            check_complete(&input.missing).map_err(|e| e.file(&input.label))?;
        }
        builder
            .add_input(index, input)
            .map_err(|e| in_adapter(e, inputs, input))?;
    }
    builder.finish()
}

/// Says which adapter an error is about, where there are several.
fn in_adapter(error: Error, inputs: &[MergeInput], input: &MergeInput) -> Error {
    match inputs.len() {
        0 | 1 => error,
        _ => error.context(&input.label),
    }
}

/// Where a name of the adapter leads: a stored tensor, one that untying adds for a name that was one with
/// another (by tie and name there), or a tensor that the base lacks, by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Stored(Location),
    Alias(usize, usize),
    Absent(String),
}

struct Builder<'a, 'o, 'p> {
    base: &'a Checkpoint,
    names: &'o Names<'o, View<'o, 'a>>,
    quantised: Option<Dequantised<'a>>,
    architecture: &'o Architecture,
    inputs: &'a [MergeInput],
    options: &'p PlanOptions,
    called: &'o BaseName,
    ties: &'o Ties<'o>,
    tensors: BTreeMap<Site, TensorPlan>,
    aliases: BTreeMap<(usize, usize), String>,
    untie: bool,
    edits: ConfigEdits,
    notes: Vec<String>,
}

impl<'a> Builder<'a, '_, '_> {
    fn add_input(&mut self, index: usize, input: &'a MergeInput) -> Result<()> {
        if !input.weight.is_finite() {
            let message = format!("weight {} is not a number to scale by", input.weight);
            return Err(Error::new(Code::Usage, message));
        }
        let modules = input.adapter.modules();
        let extras = &input.adapter.extras;
        let wanted = input.adapter.base_tensors();
        let absent = heads::absent_heads(self.base, &input.adapter);
        let may_miss = |name: &str| absent.contains(name) || self.ties.may_miss(name);
        let places = self.names.resolve(&wanted, &self.options.renames, may_miss);
        let weights: Vec<&[Module]> = modules.chunk_by(Module::shares_weight).collect();
        let places = places.and_then(|mut found| {
            let of_extras = found.split_off(weights.len().min(found.len()));
            let (_, names) = wanted.split_at(found.len());
            let part = |(extra, found): (&Extra, &Option<Found<_>>)| {
                joint::rows_of(extra, found.as_ref(), self.options)
            };
            let parts: Vec<_> = extras.iter().zip(&of_extras).map(part).collect();
            let whole = of_extras.into_iter().zip(&parts);
            let whole = whole.map(|(found, part)| found.filter(|_| part.is_none()));
            Ok((found, whole_places(names, whole.collect())?, parts))
        });
        let (weights_at, extras_at, parts) = places.map_err(|e| no_bias(e, extras))?;
        let (own, of_extras) = wanted.split_at(weights.len());
        apart(own, &weights_at)?;
        let both = extras_at.iter().zip(&parts);
        let found = both.map(|(place, part)| match part {
            Some(part) => Some(Found {
                pieces: vec![*part],
            }),
            None => place.map(Found::whole),
        });
        // A module's weight may be replaced too: then it is an extra and a module.
        apart(of_extras, &found.collect::<Vec<_>>())?;
        let copies = self.options.tied == TiedPolicy::Untie
            && !untie::saved_as_one(self.ties, extras, &extras_at);
        self.grow(extras, &extras_at, copies)?;
        let layouts = Layouts::of(self.base, self.architecture, input);
        for ((modules, found), name) in weights.iter().zip(&weights_at).zip(own) {
            self.add_weight(index, modules, found.as_ref(), name, &layouts)?;
        }
        let mut added = BTreeSet::new();
        for (e, (extra, place)) in extras.iter().zip(&extras_at).enumerate() {
            if let Some(Some(part)) = parts.get(e) {
                let (base, inputs, options) = (self.base, self.inputs, self.options);
                let tensor = self.tensor(Site::Stored(part.place))?;
                joint::add(base, tensor, inputs, (index, e), part.at, options)?;
                continue;
            }
            if place.is_none() && absent.contains(extra.name.as_str()) {
                added.insert(extra.name.as_str());
                let site = self.add_absent(extra)?;
                self.add_extra(site, index, e)?;
                continue;
            }
            for site in self.sites_of(extra, *place, copies)? {
                self.add_extra(site, index, e)?;
            }
        }
        heads::settle(self.base, &input.adapter, &added, &mut self.edits)?;
        by_method::check_whole(input, self.options)?;
        if self.quantised.is_none() {
            self.notes.extend(trained::over_quantised(input));
        }
        self.notes.extend(self.called.note(input));
        Ok(())
    }

    /// The tensors that change when the adapter changes the one at `place`, by the policy.
    fn sites(&mut self, place: Option<Location>, name: &str) -> Result<Vec<Site>> {
        let ties = self.ties;
        let Some((t, alias)) = ties.find(name, place) else {
            return Ok(place.into_iter().map(Site::Stored).collect());
        };
        let Some(tie) = ties.all.get(t) else {
            return Ok(Vec::new());
        };
        let stored: Vec<Site> = tie.stored().map(Site::Stored).collect();
        let Some(output) = tie.output else {
            let added = self.aliases.keys().filter(|(of, _)| *of == t);
            let added = added.map(|(t, alias)| Site::Alias(*t, *alias));
            return Ok(stored.into_iter().chain(added).collect());
        };
        match self.options.tied {
            TiedPolicy::Refuse => {
                let other = if alias == output { "input" } else { "output" };
                let message = format!(
                    "the model's input and output embedding are one tensor, and changing this one would change the {other} too"
                );
                Err(Error::new(Code::TiedEmbedding, message)
                    .tensor(name)
                    .file(self.base.path())
                    .hint("choose the policy `untie` (an output tensor of its own) or `shared` (change both, as PEFT does)"))
            }
            TiedPolicy::Shared => Ok(stored),
            TiedPolicy::Untie => {
                self.untie()?;
                let aliases = tie.places.iter().enumerate();
                let same = aliases.filter(|(i, _)| (*i == output) == (alias == output));
                let site = |(i, place): (usize, &Option<Location>)| {
                    place.map_or(Site::Alias(t, i), Site::Stored)
                };
                Ok(same.map(site).collect())
            }
        }
    }

    /// Plans a tensor for every name that was one with another and is not stored: with the config's flag off,
    /// a model has all of them, and would begin those that are missing at random.
    fn untie(&mut self) -> Result<()> {
        if self.untie {
            return Ok(());
        }
        self.untie = true;
        let ties = self.ties;
        for (t, tie) in ties.all.iter().enumerate() {
            for (alias, place) in tie.places.iter().enumerate() {
                if place.is_none() {
                    let name = untie::new_name(tie, alias, self.base, self.architecture)?;
                    self.aliases.insert((t, alias), name);
                    let first = tie.source().map(|(_, place)| Site::Stored(place));
                    let first = first.and_then(|f| self.tensors.get(&f)).cloned();
                    let tensor = self.tensor(Site::Alias(t, alias))?;
                    // What an adapter did before to tensors that stay one it did to both.
                    if let (None, Some(first)) = (tie.output, first) {
                        tensor.replace = first.replace;
                        tensor.additions = first.additions;
                    }
                }
            }
        }
        Ok(())
    }

    /// The tensors that an extra changes; `copies` whether it may be the trained copy of one module, which is
    /// one tensor in an untied model.
    fn sites_of(
        &mut self,
        extra: &Extra,
        place: Option<Location>,
        copies: bool,
    ) -> Result<Vec<Site>> {
        let ties = self.ties;
        let found = ties.find(&extra.name, place);
        let found = found.filter(|_| copies && untie::is_copy(extra));
        let tie = found.and_then(|(t, _)| ties.all.get(t));
        let (Some((t, alias)), Some(tie)) = (found, tie) else {
            return self.sites(place, &extra.name);
        };
        self.untie()?;
        if alias == 0 {
            let architecture = self.architecture;
            self.tensors.retain(|site, tensor| match site {
                Site::Alias(of, alias) if *of == t && tensor.is_unchanged() => {
                    !untie::loads_from_first(tie, *alias, architecture)
                }
                _ => true,
            });
        }
        Ok(vec![place.map_or(Site::Alias(t, alias), Site::Stored)])
    }

    /// The place of a head that the base lacks: written after everything else, in the dtype that
    /// most of the base has, as PEFT's model has it.
    fn add_absent(&mut self, extra: &Extra) -> Result<Site> {
        by_method::check_base(self.options, Code::UnmatchedModule, &extra.name)?;
        let site = Site::Absent(extra.name.clone());
        let last = self.base.shards().iter().enumerate().rev();
        let place = last.filter_map(|(shard, file)| {
            let tensor = file.header().tensors.len().checked_sub(1)?;
            Some(Location { shard, tensor })
        });
        let dtype = match &self.quantised {
            Some(quantised) => Some(quantised.dtype()),
            None => View::new(self.base, None).weight_dtype(),
        };
        let (Some(source), Some(dtype)) = (place.into_iter().next(), dtype) else {
            let message = "the base has no weights that this could go with";
            return Err(Error::new(Code::UnmatchedModule, message).tensor(&extra.name));
        };
        if !self.tensors.contains_key(&site) {
            self.notes.push(format!(
                "the base has no `{}`: it is added, and the model's class must be one that has it",
                extra.name
            ));
        }
        self.tensors
            .entry(site.clone())
            .or_insert_with(|| TensorPlan {
                name: extra.name.clone(),
                source,
                origin: Origin::Absent,
                appended: true,
                dtype,
                shape: extra.tensor.shape().to_vec(),
                replace: None,
                row_replacements: Vec::new(),
                additions: Vec::new(),
            });
        Ok(site)
    }

    /// The plan of a tensor, started where this is the first that happens to it.
    fn tensor(&mut self, site: Site) -> Result<&mut TensorPlan> {
        let source = match &site {
            Site::Stored(place) => *place,
            Site::Alias(tie, _) => {
                let source = self.ties.all.get(*tie).and_then(|t| t.source());
                let none = || Error::new(Code::TiedEmbedding, "the base has no input embedding");
                source.ok_or_else(none)?.1
            }
            Site::Absent(name) => {
                let planned = self.tensors.get_mut(&site);
                return planned.ok_or_else(|| {
                    Error::new(Code::UnmatchedModule, "the base has no such tensor").tensor(name)
                });
            }
        };
        let quantised_weight = self.quantised.as_ref().and_then(|q| q.tensor(source));
        let (file, info) = self.base.at(source);
        if quantised_weight.is_none() && !info.dtype.is_float() {
            let message = format!(
                "the base stores it as {}, which cannot be merged into",
                info.dtype
            );
            return Err(quantised(Error::new(Code::BaseDtype, message))
                .tensor(&info.name)
                .file(file.path()));
        }
        let stored = || TensorPlan {
            name: info.name.clone(),
            source,
            origin: Origin::Stored,
            appended: false,
            dtype: info.dtype,
            shape: info.shape.clone(),
            replace: None,
            row_replacements: Vec::new(),
            additions: Vec::new(),
        };
        let mut tensor = quantised_weight.unwrap_or_else(stored);
        if let Site::Alias(tie, alias) = &site
            && let Some(name) = self.aliases.get(&(*tie, *alias))
        {
            tensor.appended = true;
            tensor.name = name.clone();
        }
        Ok(self.tensors.entry(site).or_insert(tensor))
    }

    /// Adds the update of one weight, of all its experts, to what it is on the disk.
    fn add_weight(
        &mut self,
        index: usize,
        modules: &[Module],
        found: Option<&Found<Location>>,
        name: &str,
        layouts: &Layouts<'_>,
    ) -> Result<()> {
        let Some(module) = modules.first() else {
            return Ok(());
        };
        let target = &self.inputs[index].adapter.groups[module.group].targets[module.target];
        let fused = target.kind.is_parameter() || self.is_of_experts(name);
        let whole = found.map(Found::as_whole);
        if let (None | Some(Some(_)), false) = (whole, fused) {
            for site in self.sites(whole.flatten(), name)? {
                self.add_module(site, index, module, layouts)?;
            }
            return Ok(());
        }
        for piece in found.iter().flat_map(|f| &f.pieces) {
            for site in self.sites(Some(piece.place), name)? {
                let input = (index, &self.inputs[index]);
                let asked = (self.options, fused);
                let (base, tensor) = (self.base, self.tensor(site)?);
                experts::add(base, tensor, input, modules, piece, layouts, asked)?;
            }
        }
        Ok(())
    }

    /// Whether the class has the weight of this name in a parameter of several experts.
    fn is_of_experts(&self, name: &str) -> bool {
        let links = self.architecture.links(name);
        links.iter().any(|l| l.of.index.is_some())
    }

    fn add_module(
        &mut self,
        site: Site,
        index: usize,
        module: &Module,
        layouts: &Layouts<'_>,
    ) -> Result<()> {
        let (base, asked) = (self.base, self.options.rounding);
        let output_first = self.architecture.output_first();
        let input = &self.inputs[index];
        let group = &input.adapter.groups[module.group];
        let target = &group.targets[module.target];
        let dora = input.magnitudes.contains_key(&module.path);
        let scale = weighted(input, group.scaling.factor(group.rank), self.options)?;
        let by_method = self.options.method.is_some();
        let tensor = self.tensor(site)?;
        let kind = layouts.kind(target, &tensor.name);
        let needs = kind.weight_shape(target.out, group.in_features);
        if tensor.shape != needs {
            return Err(misfit(base, tensor, &needs));
        }
        if let Some(m) = input.magnitudes.get(&module.path) {
            check_magnitudes(m.len(), target.out, &module.path)?;
        }
        let others = |a: &Addition| match a {
            Addition::Module { input, dora: d, .. } => *input != index && (dora || *d),
            _ => false,
        };
        if !by_method && tensor.additions.iter().any(others) {
            return Err(shared_dora(&tensor.name));
        }
        if tensor
            .additions
            .iter()
            .any(|a| matches!(a, Addition::Bias { .. }))
        {
            return Err(mixed(tensor));
        }
        let in_part = |a: &Addition| matches!(a, Addition::Part { input, .. } if !by_method || *input == index);
        if tensor.additions.iter().any(in_part) {
            return Err(part_of(tensor));
        }
        let embedding = kind == ModuleKind::Embedding;
        // PEFT rounds an embedding's update to the weight's dtype whether asked to be safe or not.
        let rounding = match asked {
            _ if input.single_rounding => Rounding::Peft,
            Rounding::Peft if embedding => Rounding::PeftSafe,
            asked => asked,
        };
        tensor.additions.push(Addition::Module {
            input: index,
            module: module.clone(),
            transposed: kind.is_transposed(),
            scale,
            dora,
            first: embedding != output_first,
            rounding,
        });
        Ok(())
    }

    fn add_extra(&mut self, site: Site, index: usize, e: usize) -> Result<()> {
        let (base, inputs, options) = (self.base, self.inputs, self.options);
        let input = &inputs[index];
        let extra = &input.adapter.extras[e];
        let by_method = options.method.is_some();
        let tensor = self.tensor(site)?;
        if extra.role == ExtraRole::Rows {
            return vocabulary::add_rows(base, inputs, tensor, (index, e), by_method);
        }
        if tensor.shape != extra.tensor.shape() {
            return Err(misfit(base, tensor, extra.tensor.shape()));
        }
        if let ExtraRole::AddBias(scaling, rank) = extra.role {
            let scale = weighted(input, scaling.factor(rank), options)?;
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
                part: None,
                scale,
            });
            return Ok(());
        }
        if by_method {
            return by_method::add_whole(tensor, inputs, (index, e));
        }
        let of_part = tensor.row_replacements.iter().find(|r| r.part.is_some());
        if let Some(part) = of_part {
            return Err(both_replace(&inputs[part.input], input, &tensor.name));
        }
        match tensor.replace {
            None => tensor.replace = Some((index, e)),
            Some((other, _)) if other != index => {
                return Err(both_replace(&inputs[other], input, &tensor.name));
            }
            // Two names of one adapter that are one tensor in the model.
            Some((_, first)) => by_method::same_embeddings(&input.adapter.extras[first], extra)?,
        }
        Ok(())
    }

    /// Gives embeddings the number of rows that an adapter has trained, before anything is added.
    fn grow(&mut self, extras: &[Extra], places: &[Option<Location>], copies: bool) -> Result<()> {
        for (extra, place) in extras.iter().zip(places) {
            let whose = place.or_else(|| self.ties.stands_for(&extra.name));
            let Some(of_base) = whose.filter(|p| self.ties.is_embedding(*p)) else {
                continue;
            };
            if vocabulary::resizes(extra, &self.base.at(of_base).1.shape) {
                by_method::check_base(self.options, Code::BaseShape, &extra.name)?;
                for site in self.sites_of(extra, *place, copies)? {
                    self.tensor(site)?.shape = extra.tensor.shape().to_vec();
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<MergePlan<'a>> {
        let mut tensors: Vec<TensorPlan> = self.tensors.into_values().collect();
        match self.options.method {
            None => tensors.iter().try_for_each(experts::check_apart)?,
            Some(_) => {
                for (tensor, input) in tensors
                    .iter()
                    .flat_map(|t| (0..self.inputs.len()).map(move |i| (t, i)))
                {
                    experts::check_apart(&tensor.of_input(input))?;
                }
            }
        }
        let mut edits = self.edits;
        let mut notes = self.notes;
        let resized = vocabulary::settle(self.base, self.ties, &mut tensors, &mut edits)?;
        if self.options.tokenizer == TokenizerFrom::Base {
            let mut folders = self.inputs.iter().filter_map(|i| i.folder.as_deref());
            let beside = folders.any(tokenizer::lies_in);
            notes.extend(resized.map(|note| vocabulary::with_tokenizer(&note, beside)));
        }
        let mut dropped = BTreeSet::new();
        if let Some(quantised) = &self.quantised {
            dropped = quantised.complete(&mut tensors);
            quantised.edit(self.base, &mut edits)?;
            notes.extend((!self.inputs.is_empty()).then(|| quantised.note()));
        }
        // By place in the output: what is appended is the last of its shard.
        tensors.sort_by_key(|t| (t.source.shard, t.appended, t.source.tensor));
        let mut shards = Vec::new();
        for (index, file) in self.base.shards().iter().enumerate() {
            shards.push(lay_out(index, file, &tensors, &dropped)?);
        }
        let mut plan = MergePlan {
            base: self.base,
            inputs: self.inputs,
            options: self.options.clone(),
            tensors,
            shards,
            dropped,
            rewritten: Vec::new(),
            unties: self.untie,
            notes,
            quantised: self.quantised,
        };
        plan.rewrite(edits)?;
        if plan.options.tokenizer == TokenizerFrom::Adapter {
            let files = tokenizer::of_adapters(plan.base, plan.inputs)?;
            plan.rewritten.extend(files);
        }
        Ok(plan)
    }
}
