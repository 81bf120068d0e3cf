//! Which tensor of one checkpoint is which of the other, and what each is in the model.

use std::collections::{BTreeMap, BTreeSet};

use super::delta::Numbers;
use crate::adapter::ModuleKind;
use crate::base::architecture::{Architecture, ExpertLayout, WeightKind};
use crate::base::cut::Cut;
use crate::base::heads::absent;
use crate::base::modules::{
    has_joint_conv1d, is_any_embedding, is_conv1d, is_head, is_output_embedding,
};
use crate::base::names::{Finder, Known, Names};
use crate::base::ties::Ties;
use crate::error::{Code, Error, Result};
use crate::quant::{Quantised, View};
use crate::safetensors::{Checkpoint, Location};

/// What a tensor is in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The weight of a linear layer.
    Linear(ModuleKind),
    /// The parameter of so many experts.
    Experts(ModuleKind, usize),
    /// An embedding or an output projection, and how its module stores it.
    Embedding(ModuleKind),
    Bias,
    /// What has no low rank: a norm, a vector, a table.
    Other,
}

/// A tensor that both checkpoints have, or that the tuned one has more.
pub(super) struct Pair<'c> {
    /// The adapter's name for it.
    pub(super) name: String,
    /// Its name in the base, or in the tuned checkpoint where the base has none.
    pub(super) stored: String,
    pub(super) role: Role,
    pub(super) shape: Vec<usize>,
    /// `None` for a head that the base is without.
    pub(super) base: Option<Numbers<'c>>,
    pub(super) tuned: Numbers<'c>,
    pub(super) base_shape: Vec<usize>,
    /// All names that it has in the model, where these are several.
    pub(super) tied: Vec<String>,
}

/// What two checkpoints have, tensor by tensor.
pub(super) struct Pairs<'c> {
    /// In the order of the tuned checkpoint's names.
    pub(super) all: Vec<Pair<'c>>,
    /// Tensors that only one of them has.
    pub(super) alone: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// A checkpoint with its quantised weights.
pub(super) struct Side<'c> {
    pub(super) checkpoint: &'c Checkpoint,
    pub(super) quantised: Option<Quantised<'c>>,
}

impl<'c> Side<'c> {
    /// # Errors
    /// Those of [`Quantised::of`].
    pub(super) fn of(checkpoint: &'c Checkpoint) -> Result<Self> {
        let quantised = Quantised::of(checkpoint)?;
        Ok(Self {
            checkpoint,
            quantised,
        })
    }

    fn numbers<'s>(&'s self, place: Location) -> Numbers<'s> {
        Numbers {
            checkpoint: self.checkpoint,
            quantised: self.quantised.as_ref(),
            place,
        }
    }
}

/// Matches the tensors of two checkpoints.
///
/// # Errors
/// Those of reading configs; [`Code::BaseLayout`] for a tensor that the base has in parts.
pub(super) fn pairs<'s>(base: &'s Side<'_>, tuned: &'s Side<'_>) -> Result<Pairs<'s>> {
    let architecture = match Architecture::of(base.checkpoint)? {
        known if known.is_known() => known,
        _ => Architecture::of(tuned.checkpoint)?,
    };
    let view = View::new(base.checkpoint, base.quantised.as_ref());
    let other = View::new(tuned.checkpoint, tuned.quantised.as_ref());
    let names = Names::new(&view, &architecture);
    let ties = Ties::of(base.checkpoint, &architecture, &names)?;
    let matcher = Matcher {
        base,
        tuned,
        called: Called::of(&architecture, &names, &view),
        architecture: &architecture,
        view: &view,
        other: &other,
        joint: !architecture.is_known() && has_joint_conv1d(base.checkpoint),
        names: &names,
        ties: &ties,
        finder: Finder::default(),
        stored: names_of(base),
    };
    matcher.all()
}

fn names_of<'s>(base: &'s Side<'_>) -> BTreeMap<Location, &'s str> {
    let stored = base.checkpoint.tensors().iter();
    let mut names: BTreeMap<Location, &str> = stored.map(|(n, l)| (*l, n.as_str())).collect();
    let weights = base.quantised.iter().flat_map(Quantised::weights);
    names.extend(weights.map(|w| (w.location, w.name.as_str())));
    names
}

/// How the adapter calls the tensors of the base: as the model's class does.
struct Called<'a> {
    architecture: &'a Architecture,
    /// What the names on the disk lack of the class's, or have more.
    lacks: bool,
    has: bool,
}

impl<'a> Called<'a> {
    fn of<'v>(
        architecture: &'a Architecture,
        names: &Names<'_, View<'v, '_>>,
        view: &View<'v, '_>,
    ) -> Self {
        let input = architecture.input().unwrap_or_default();
        let place = names.stored(&input);
        let mut all = view.tensors();
        let stored = all.find_map(|(name, at)| (Some(at) == place).then_some(name));
        let stored = stored
            .map(|name| whole_class(architecture, name))
            .unwrap_or_default();
        let prefixed = |name: &str| format!("{}.{name}", architecture.prefix());
        Self {
            architecture,
            lacks: place.is_some() && prefixed(&stored) == input,
            has: place.is_some() && stored == prefixed(&input),
        }
    }

    fn name(&self, stored: &str) -> String {
        let name = whole_class(self.architecture, stored);
        let outside = || is_head(&name) || self.architecture.output().is_some_and(|o| o == name);
        let prefix = self.architecture.prefix();
        if self.lacks && !outside() {
            return format!("{prefix}.{name}");
        }
        let inner = name.strip_prefix(prefix).and_then(|n| n.strip_prefix('.'));
        match inner.filter(|_| self.has) {
            Some(inner) => inner.to_owned(),
            None => name,
        }
    }
}

/// The class's name of a tensor on the disk, where it is all of one; else its own.
fn whole_class(architecture: &Architecture, stored: &str) -> String {
    match architecture.links(stored).as_slice() {
        [link] if link.of == Cut::WHOLE && link.at == Cut::WHOLE && link.unknown.is_none() => {
            link.class.clone()
        }
        _ => stored.to_owned(),
    }
}

struct Matcher<'m, 's, 'b, 't> {
    base: &'s Side<'b>,
    tuned: &'s Side<'t>,
    architecture: &'m Architecture,
    called: Called<'m>,
    view: &'m View<'s, 'b>,
    other: &'m View<'s, 't>,
    names: &'m Names<'m, View<'s, 'b>>,
    ties: &'m Ties<'m>,
    finder: Finder,
    joint: bool,
    /// Names by their places in the base.
    stored: BTreeMap<Location, &'s str>,
}

impl<'s> Matcher<'_, 's, '_, '_> {
    fn all(&self) -> Result<Pairs<'s>> {
        let mut found = Pairs {
            all: Vec::new(),
            alone: Vec::new(),
            notes: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        for (name, at) in self.other.tensors() {
            if is_buffer(name, self.other.shape(at)) {
                continue;
            }
            match self.place(name)? {
                Some(place) => {
                    seen.insert(place);
                    found.all.push(self.pair(name, at, Some(place)));
                }
                None if !absent(self.base.checkpoint, None, [name].into_iter()).is_empty() => {
                    found.all.push(self.pair(name, at, None));
                }
                None => found.alone.push(name.to_owned()),
            }
        }
        if !self.architecture.is_known() {
            let message = "the architecture is not one that is known: weights of two axes are taken for those of \
                           nn.Linear, embeddings and Conv1D aside, which are told by their names";
            found.notes.push(message.to_owned());
        }
        for (name, place) in self.view.tensors() {
            let stands = self
                .ties
                .find(name, Some(place))
                .and_then(|(t, _)| self.ties.all.get(t));
            let same = stands.is_some_and(|tie| tie.stored().any(|p| seen.contains(&p)));
            if !seen.contains(&place) && !same && !is_buffer(name, self.view.shape(place)) {
                found.alone.push(name.to_owned());
            }
        }
        if !self.are_found(&found.all) {
            for pair in &mut found.all {
                pair.name.clone_from(&pair.stored);
            }
        }
        Ok(found)
    }

    /// Whether the adapter's names, taken together, lead to the base's tensors.
    fn are_found(&self, all: &[Pair<'_>]) -> bool {
        let of_base = all.iter().filter(|p| p.base.is_some());
        let wanted: Vec<String> = of_base.map(|p| p.name.clone()).collect();
        let may_miss = |name: &str| self.ties.may_miss(name);
        self.names.resolve(&wanted, &[], may_miss).is_ok()
    }

    /// Where the base has a tensor of the tuned checkpoint.
    fn place(&self, name: &str) -> Result<Option<Location>> {
        if let Some(place) = self.view.locate(name) {
            return Ok(Some(place));
        }
        match self.finder.find(self.names, name) {
            Some(found) => match found.as_whole() {
                Some(place) => Ok(Some(place)),
                None => {
                    let message = "the base has it in parts, or as a part of another tensor";
                    Err(Error::new(Code::BaseLayout, message)
                        .tensor(name)
                        .file(self.tuned.checkpoint.path())
                        .hint("save both with the same version of their library"))
                }
            },
            None => Ok(self.ties.stands_for(name)),
        }
    }

    fn pair(&self, name: &str, at: Location, place: Option<Location>) -> Pair<'s> {
        // One that the base has under the name of another, with which it is tied, keeps its own.
        let own = place.filter(|p| !self.is_other_name(name, *p));
        let of_base = own.and_then(|p| self.stored.get(&p).copied());
        let stored = of_base.unwrap_or(name).to_owned();
        let called = self.called.name(&stored);
        let shape = self.other.shape(at).to_vec();
        Pair {
            role: self.role(&stored, &called, &shape, place),
            tied: self.tied(&called, place),
            base_shape: place.map_or(Vec::new(), |p| self.view.shape(p).to_vec()),
            base: place.map(|p| self.base.numbers(p)),
            tuned: self.tuned.numbers(at),
            name: called,
            stored,
            shape,
        }
    }

    fn tied(&self, called: &str, place: Option<Location>) -> Vec<String> {
        let tie = self.ties.find(called, place);
        let tie = tie.and_then(|(t, _)| self.ties.all.get(t));
        tie.map_or(Vec::new(), |tie| tie.names.clone())
    }

    /// Whether a name is not the one that the base has its tensor under, but one that is tied to it.
    fn is_other_name(&self, name: &str, place: Location) -> bool {
        let direct = self.view.locate(name) == Some(place);
        let found = || {
            self.finder
                .find(self.names, name)
                .and_then(|f| f.as_whole())
        };
        !direct && found() != Some(place)
    }

    fn role(&self, stored: &str, called: &str, shape: &[usize], place: Option<Location>) -> Role {
        let class = whole_class(self.architecture, stored);
        if let (Some(layout), [experts, _, _]) = (self.architecture.experts(&class), shape) {
            let kind = match layout {
                ExpertLayout::Stated {
                    transposed: true, ..
                } => ModuleKind::ParameterTransposed,
                _ => ModuleKind::Parameter,
            };
            return Role::Experts(kind, *experts);
        }
        let of_output = place.is_some_and(|p| self.ties.is_embedding(p));
        match (called.strip_suffix(".weight"), shape) {
            (Some(module), [_, _]) => self.weight(module, &class, of_output),
            _ if called.ends_with(".bias") => Role::Bias,
            _ => Role::Other,
        }
    }

    fn weight(&self, module: &str, class: &str, is_embedding: bool) -> Role {
        let own = class.strip_suffix(".weight").unwrap_or(class);
        let named = || match () {
            () if is_output_embedding(module) => WeightKind::Output,
            () if is_any_embedding(module) => WeightKind::Embedding,
            () if self.joint && is_conv1d(module) => WeightKind::Conv1d,
            () => WeightKind::Linear,
        };
        match self.architecture.weight_kind(own).unwrap_or_else(named) {
            WeightKind::Embedding => Role::Embedding(ModuleKind::Embedding),
            WeightKind::Output => Role::Embedding(ModuleKind::Linear),
            WeightKind::Other => Role::Other,
            WeightKind::Conv1d => Role::Linear(ModuleKind::Conv1d),
            // An output of a class that is not known.
            WeightKind::Linear if is_embedding => Role::Embedding(ModuleKind::Linear),
            WeightKind::Linear => Role::Linear(ModuleKind::Linear),
        }
    }
}

/// Whether a tensor is none of the model's parameters: what some versions of its library saved beside them.
fn is_buffer(name: &str, shape: &[usize]) -> bool {
    const ENDS: [&str; 3] = ["inv_freq", "masked_bias", "position_ids"];
    let last = name.rsplit('.').next().unwrap_or(name);
    // The mask of causal attention.
    let is_mask = matches!(shape, [1, 1, n, m] if n == m) && last == "bias";
    is_mask || ENDS.contains(&last)
}
