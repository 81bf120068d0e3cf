//! From adapters and a base to a plan: which tensor each name means, whether all fits, what is added.

use std::collections::{BTreeMap, BTreeSet};

use super::experts;
use super::fit::{apart, misfit, mixed, part_of, weighted};
use super::heads::{absent_heads, weight_dtype};
use super::layout::lay_out;
use super::orient::Layouts;
use super::plan::{Addition, MergePlan, Origin, TensorPlan};
use super::request::{MergeInput, PlanOptions, TiedPolicy};
use super::{untie, vocabulary};
use crate::adapter::{Extra, ExtraRole, Module};
use crate::base::architecture::Architecture;
use crate::base::cut::Found;
use crate::base::edits::ConfigEdits;
use crate::base::names::{Names, quantised, whole_places};
use crate::base::ties::{Ties, is_output};
use crate::compute::Rounding;
use crate::error::{Code, Error, Result};
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
    let architecture = Architecture::of(base)?;
    let names = Names::new(base, &architecture);
    let mut builder = Builder {
        base,
        names: &names,
        architecture: &architecture,
        inputs,
        options,
        ties: Ties::of(base)?,
        tensors: BTreeMap::new(),
        new_output: None,
        untie: false,
        edits: ConfigEdits::default(),
        notes: base.notes().to_vec(),
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
    match inputs.len() {
        0 | 1 => error,
        _ => error.context(&input.label),
    }
}

/// Where a name of the adapter leads: a stored tensor, the output projection that untying adds, or a
/// tensor that the base lacks, by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Stored(Location),
    NewOutput,
    Absent(String),
}

struct Builder<'a, 'o> {
    base: &'a Checkpoint,
    names: &'o Names<'o, Checkpoint>,
    architecture: &'o Architecture,
    inputs: &'a [MergeInput],
    options: &'o PlanOptions,
    ties: Ties,
    tensors: BTreeMap<Site, TensorPlan>,
    new_output: Option<String>,
    untie: bool,
    edits: ConfigEdits,
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
        let wanted = input.adapter.base_tensors();
        let tied = self.ties.tied;
        let absent = absent_heads(self.base, &input.adapter);
        let may_miss = |name: &str| absent.contains(name) || tied && is_output(name);
        let places = self.names.resolve(&wanted, &self.options.renames, may_miss);
        let weights: Vec<&[Module]> = modules.chunk_by(Module::shares_weight).collect();
        let places = places.and_then(|mut found| {
            let of_extras = found.split_off(weights.len().min(found.len()));
            let (_, extras) = wanted.split_at(found.len());
            Ok((found, whole_places(extras, of_extras)?))
        });
        let (weights_at, extras_at) = places.map_err(|e| {
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
        let (own, of_extras) = wanted.split_at(weights.len());
        apart(own, &weights_at)?;
        let whole: Vec<_> = extras_at.iter().map(|p| p.map(Found::whole)).collect();
        // A module's weight may be replaced too: then it is an extra and a module.
        apart(of_extras, &whole)?;
        self.grow(extras, &extras_at)?;
        let layouts = Layouts::of(self.base, self.architecture, input);
        for ((modules, found), name) in weights.iter().zip(&weights_at).zip(own) {
            self.add_weight(index, modules, found.as_ref(), name, &layouts)?;
        }
        for (e, (extra, place)) in extras.iter().zip(&extras_at).enumerate() {
            if place.is_none() && absent.contains(extra.name.as_str()) {
                let site = self.add_absent(extra)?;
                self.add_extra(site, index, e)?;
                continue;
            }
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
                    .hint("choose the policy `untie` (an output tensor of its own) or `shared` (change both, as PEFT does)"))
            }
            TiedPolicy::Shared => {
                let both = [self.ties.input, self.ties.output];
                Ok(both.iter().flatten().map(stored).collect())
            }
            TiedPolicy::Untie => {
                self.untie = true;
                if self.ties.output.is_none() && self.new_output.is_none() {
                    self.new_output = Some(untie::new_output(&self.ties, self.base)?);
                    self.tensor(Site::NewOutput)?;
                }
                Ok(vec![place.map_or(Site::NewOutput, Site::Stored)])
            }
        }
    }

    /// The place of a head that the base lacks: written after everything else, in the dtype that
    /// most of the base has, as PEFT's model has it.
    fn add_absent(&mut self, extra: &Extra) -> Result<Site> {
        let site = Site::Absent(extra.name.clone());
        let last = self.base.shards().iter().enumerate().rev();
        let place = last.filter_map(|(shard, file)| {
            let tensor = file.header().tensors.len().checked_sub(1)?;
            Some(Location { shard, tensor })
        });
        let (Some(source), Some(dtype)) = (place.into_iter().next(), weight_dtype(self.base))
        else {
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
                rounding: Rounding::Peft,
            });
        Ok(site)
    }

    /// The plan of a tensor, started where this is the first that happens to it.
    fn tensor(&mut self, site: Site) -> Result<&mut TensorPlan> {
        let source = match &site {
            Site::Stored(place) => *place,
            Site::NewOutput => self.ties.input.ok_or_else(|| {
                Error::new(Code::TiedEmbedding, "the base has no input embedding")
            })?,
            Site::Absent(name) => {
                let planned = self.tensors.get_mut(&site);
                return planned.ok_or_else(|| {
                    Error::new(Code::UnmatchedModule, "the base has no such tensor").tensor(name)
                });
            }
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
        let name = match (&site, &self.new_output) {
            (Site::NewOutput, Some(name)) => name.clone(),
            _ => info.name.clone(),
        };
        let appended = site == Site::NewOutput;
        Ok(self.tensors.entry(site).or_insert_with(|| TensorPlan {
            name,
            source,
            origin: Origin::Stored,
            appended,
            dtype: info.dtype,
            shape: info.shape.clone(),
            replace: None,
            row_replacements: Vec::new(),
            additions: Vec::new(),
            rounding: Rounding::Peft,
        }))
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
                let asked = (self.options.rounding, fused);
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
        let (base, rounding) = (self.base, self.options.rounding);
        let input = &self.inputs[index];
        let group = &input.adapter.groups[module.group];
        let target = &group.targets[module.target];
        let dora = input.magnitudes.contains_key(&module.path);
        let scale = weighted(input, group.scaling.factor(group.rank))?;
        let tensor = self.tensor(site)?;
        let kind = layouts.kind(target, &tensor.name);
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
            Addition::Part { .. } | Addition::Bias { .. } => false,
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
        if tensor
            .additions
            .iter()
            .any(|a| matches!(a, Addition::Part { .. }))
        {
            return Err(part_of(tensor));
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
        if extra.role == ExtraRole::Rows {
            return vocabulary::add_rows(base, inputs, tensor, (index, e));
        }
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
                        .hint("choose the policy `untie` for tied embeddings"));
                }
            }
        }
        Ok(())
    }

    /// What replaces or normalises weights cannot be scaled as a whole.
    fn check_whole(&self, input: &MergeInput) -> Result<()> {
        let replaces = |e: &&Extra| !matches!(e.role, ExtraRole::AddBias(..));
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

    /// Gives embeddings the number of rows that an adapter has trained, before anything is added.
    fn grow(&mut self, extras: &[Extra], places: &[Option<Location>]) -> Result<()> {
        for (extra, place) in extras.iter().zip(places) {
            let Some(place) = place.filter(|p| self.ties.is_embedding(*p)) else {
                continue;
            };
            if vocabulary::resizes(extra, &self.base.at(place).1.shape) {
                for site in self.sites(Some(place), &extra.name)? {
                    self.tensor(site)?.shape = extra.tensor.shape().to_vec();
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<MergePlan<'a>> {
        let mut tensors: Vec<TensorPlan> = self.tensors.into_values().collect();
        // By place in the output: what is appended is the last of its shard.
        tensors.sort_by_key(|t| (t.source.shard, t.appended, t.source.tensor));
        tensors.iter().try_for_each(experts::check_apart)?;
        let mut edits = self.edits;
        let mut notes = self.notes;
        notes.extend(vocabulary::settle(
            self.base, &self.ties, &tensors, &mut edits,
        )?);
        let dropped = BTreeSet::new();
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
        };
        plan.rewrite(edits)?;
        Ok(plan)
    }
}
