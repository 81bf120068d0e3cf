//! What is coded of adapters: their plain updates, their tied groups, and what several adapters share.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::bound::Term;
use super::lost::Lost;
use super::module::{CodedTerms, Module, Steps};
use super::tied::{CodedTied, Tied};
use crate::adapter::{Adapter, Factor, LowRank, TieGroup};
use crate::error::{Code, Error, Result};

/// A group by its adapter and its place there.
pub(super) type At = (usize, usize);

/// A plain update: an instance of a group, all targets together.
pub(super) struct Place {
    pub(super) at: At,
    pub(super) instance: usize,
    pub(super) module: Module,
}

/// Tied groups with one A and one B: one, or the same of several adapters.
pub(super) struct Ties {
    pub(super) at: Vec<At>,
    pub(super) tied: Tied,
}

/// All that is coded, and what it costs to leave it out.
pub(super) struct Plan<'a> {
    pub(super) adapters: &'a [&'a Adapter],
    pub(super) places: Vec<Place>,
    pub(super) ties: Vec<Ties>,
    pub(super) terms: Vec<Term>,
    /// ‖ΔW‖² of everything.
    pub(super) square: f64,
    /// Numbers of the factors; shared ones count once.
    pub(super) numbers: u64,
}

/// All modules at one price.
pub(super) struct Found {
    pub(super) coded: Vec<CodedTerms>,
    pub(super) tied: Vec<CodedTied>,
    pub(super) steps: Steps,
    pub(super) price: f64,
    pub(super) error: f64,
    /// What the texts say of each place, where it was coded to outputs.
    pub(super) lost: Option<Vec<Lost>>,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// [`Code::Usage`] where there is nothing to code; [`Code::NonFinite`].
    pub(super) fn of(adapters: &'a [&'a Adapter]) -> Result<Self> {
        let all = || {
            let adapters = adapters.iter().enumerate();
            adapters.flat_map(|(i, a)| a.groups.iter().enumerate().map(move |(g, x)| ((i, g), x)))
        };
        let plain = || all().filter(|(_, group)| is_plain(group));
        let instances: Vec<(At, usize)> = plain()
            .flat_map(|(at, group)| (0..group.instances()).map(move |i| (at, i)))
            .collect();
        let place = |(at, instance): &(At, usize)| {
            let group = &adapters[at.0].groups[at.1];
            Ok(Place {
                at: *at,
                instance: *instance,
                module: Module::of(&whole(group, *instance)?)?,
            })
        };
        let places = instances
            .par_iter()
            .map(place)
            .collect::<Result<Vec<_>>>()?;
        let ties = ties(&all().collect::<Vec<_>>())?;
        let terms = places.iter().flat_map(|p| p.module.terms());
        let terms: Vec<Term> = terms
            .chain(ties.iter().flat_map(|t| t.tied.terms()))
            .collect();
        let square = places.iter().map(|p| p.module.square()).sum::<f64>()
            + ties.iter().map(|t| t.tied.square()).sum::<f64>();
        if square == 0.0 {
            let message = "nothing to code: no LoRA with an update is in the adapter";
            return Err(Error::new(Code::Usage, message));
        }
        let size = |g: &TieGroup| g.instances() * g.rank * (g.in_features + g.total_out());
        let numbers = plain().map(|(_, g)| size(g) as u64).sum::<u64>()
            + ties.iter().map(|t| t.tied.numbers()).sum::<u64>();
        Ok(Self {
            adapters,
            places,
            ties,
            terms,
            square,
            numbers,
        })
    }

    pub(super) fn group(&self, at: At) -> &TieGroup {
        &self.adapters[at.0].groups[at.1]
    }

    /// Every module at a price; `near` is what was found at another one.
    pub(super) fn at(&self, price: f64, fine: u8, near: Option<&Found>) -> Found {
        let steps = Steps { fine };
        let one = |(i, place): (usize, &Place)| {
            place.module.coded(price, steps, near.map(|n| &n.coded[i]))
        };
        let coded: Vec<CodedTerms> = self.places.par_iter().enumerate().map(one).collect();
        let tied: Vec<CodedTied> = self.ties.par_iter().map(|t| t.tied.coded(price)).collect();
        let mut found = Found {
            tied,
            error: 0.0,
            coded,
            steps,
            price,
            lost: None,
        };
        found.error = (found.square() / self.square).sqrt();
        found
    }
}

impl Found {
    /// ‖ΔW − ΔW'‖² of everything.
    pub(super) fn square(&self) -> f64 {
        self.coded.iter().map(|c| c.square).sum::<f64>()
            + self.tied.iter().map(CodedTied::square).sum::<f64>()
    }
}

/// Whether A and B are each instance's own, with nothing beside them.
fn is_plain(group: &TieGroup) -> bool {
    let own = |f: &Factor| match f.tensor.shape() {
        [extent, _, _] => *extent == group.instances(),
        _ => group.instances() == 1,
    };
    group.factors().count() == 2 && own(&group.a) && own(&group.b)
}

/// The tied groups whose tensors are their own, or whose A and B all those share that use either.
fn ties(all: &[(At, &TieGroup)]) -> Result<Vec<Ties>> {
    let id = |f: &Factor| f.tensor.data().id();
    let mut uses: BTreeMap<_, usize> = BTreeMap::new();
    for (_, factor) in all.iter().flat_map(|(_, g)| g.factors()) {
        *uses.entry(id(factor)).or_default() += 1;
    }
    let mut classes: BTreeMap<_, Vec<(At, &TieGroup)>> = BTreeMap::new();
    for (at, group) in all.iter().filter(|(_, g)| !is_plain(g)) {
        let own = [&group.a, &group.b].map(|f| match f.seed {
            // What a seed makes stays as it is, whoever else has it.
            Some(_) if uses.get(&id(f)) != Some(&1) => (id(f), Some(*at)),
            _ => (id(f), None),
        });
        classes.entry(own).or_default().push((*at, *group));
    }
    let whole = |class: &Vec<(At, &TieGroup)>| {
        class.iter().all(|(_, group)| {
            let shared = [id(&group.a), id(&group.b)];
            group.factors().all(|(_, f)| {
                let expected = if shared.contains(&id(f)) {
                    class.len()
                } else {
                    1
                };
                f.seed.is_some() || uses.get(&id(f)) == Some(&expected)
            })
        })
    };
    let mut classes: Vec<_> = classes.into_values().filter(whole).collect();
    // By where they stand, not by where their bytes lie.
    classes.sort_by_key(|class| class[0].0);
    let tied = classes.par_iter().map(|class| {
        let groups: Vec<&TieGroup> = class.iter().map(|c| c.1).collect();
        let at = class.iter().map(|c| c.0).collect();
        Ok(Tied::of(&groups)?.map(|tied| Ties { at, tied }))
    });
    let tied = tied.collect::<Result<Vec<_>>>()?;
    Ok(tied.into_iter().flatten().collect())
}

/// The update of all targets of an instance together.
fn whole(group: &TieGroup, instance: usize) -> Result<LowRank> {
    let mut all = group.low_rank(instance, 0)?;
    for target in 1..group.targets.len() {
        let more = group.low_rank(instance, target)?;
        all.left.extend(more.left);
        all.out += more.out;
    }
    Ok(all)
}
