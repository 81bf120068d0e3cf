//! From integers to adapters, and the bytes of their files.

use std::collections::{BTreeMap, BTreeSet};

use super::module::{COARSE, CodedTerms, Steps};
use super::plan::{Found, Place, Plan};
use crate::adapter::{Adapter, Factor, Scaling, TieGroup};
use crate::coding::{Axis, Coded};
use crate::digest::Digest;
use crate::error::Result;
use crate::format::{Packing, WriteOptions, encoded_len};
use crate::tensor::Tensor;

/// Coded adapters, with the bytes of each one's file and of what several of them have as blobs beside these.
pub(super) struct Assembled {
    pub(super) adapters: Vec<Adapter>,
    pub(super) bytes: Vec<u64>,
    pub(super) shared_bytes: u64,
}

impl Assembled {
    pub(super) fn total(&self) -> u64 {
        self.bytes.iter().sum::<u64>() + self.shared_bytes
    }
}

/// # Errors
/// Those of [`Tensor::coded`] and of writing.
pub(super) fn assemble(plan: &Plan<'_>, found: &Found) -> Result<Assembled> {
    let mut adapters: Vec<Adapter> = plan.adapters.iter().map(|a| (*a).clone()).collect();
    let mut shared: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut by_adapter: Vec<BTreeSet<Digest>> = vec![BTreeSet::new(); adapters.len()];
    for (ties, coded) in plan.ties.iter().zip(&found.tied) {
        let groups: Vec<&TieGroup> = ties.at.iter().map(|at| plan.group(*at)).collect();
        let several = ties.at.iter().any(|at| at.0 != ties.at[0].0);
        for (at, group) in ties.at.iter().zip(coded.groups(&groups)?) {
            for factor in [&group.a, &group.b].into_iter().filter(|_| several) {
                let codes = factor.tensor.coded_bytes().unwrap_or(factor.tensor.data());
                let digest = Digest::of(codes);
                by_adapter[at.0].insert(digest);
                shared.insert(digest, codes.len() as u64);
            }
            adapters[at.0].groups[at.1] = group;
        }
    }
    let mut places = plan.places.iter().zip(&found.coded).peekable();
    while let Some((first, _)) = places.peek() {
        let at = first.at;
        let mut own = Vec::new();
        while let Some(place) = places.next_if(|p| p.0.at == at) {
            own.push(place);
        }
        adapters[at.0].groups[at.1] = coded_group(plan.group(at), &own, found.steps)?;
    }
    let mut bytes = Vec::with_capacity(adapters.len());
    for (adapter, shared) in adapters.iter_mut().zip(by_adapter) {
        adapter.sort();
        adapter.validate()?;
        let mut options = WriteOptions::default();
        if !shared.is_empty() {
            options.packing = Packing::External(shared);
        }
        bytes.push(encoded_len(adapter, &options)?);
    }
    Ok(Assembled {
        adapters,
        bytes,
        shared_bytes: shared.values().sum(),
    })
}

fn coded_group(group: &TieGroup, own: &[(&Place, &CodedTerms)], steps: Steps) -> Result<TieGroup> {
    let last = |c: &CodedTerms| {
        c.terms
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |k| k + 1)
    };
    let rank = own.iter().map(|(_, c)| last(c)).max().unwrap_or(0).max(1);
    let mantissas = own
        .first()
        .map_or([COARSE; 2], |(p, _)| p.module.mantissas(steps));
    let factor = |side: usize, axis: Axis, extents: [usize; 2]| {
        let line = |coded: &CodedTerms, k: usize| {
            let sides = coded.terms.get(k)?.as_ref()?;
            Some((sides[side].line, sides[side].integers.clone()))
        };
        let lines = own
            .iter()
            .flat_map(|(_, c)| (0..rank).map(move |k| line(c, k)));
        let coded = Coded {
            axis,
            mantissa: mantissas[side],
            lines: lines.collect(),
        };
        let stacked = (group.layers.is_some() || group.experts.is_some()).then_some(own.len());
        let shape = stacked.into_iter().chain(extents).collect();
        Tensor::encoded(shape, &coded).map(Factor::trained)
    };
    Ok(TieGroup {
        rank,
        scaling: Scaling::one(rank),
        a: factor(1, Axis::Rows, [rank, group.in_features])?,
        b: factor(0, Axis::Columns, [group.total_out(), rank])?,
        ..group.clone()
    })
}

/// Bytes of the coded tensors, each counted once.
pub(super) fn coded_bytes(adapters: &[Adapter]) -> u64 {
    let groups = adapters.iter().flat_map(|a| &a.groups);
    let factors = groups.flat_map(TieGroup::factors);
    let coded = factors.filter_map(|(_, f)| f.tensor.coded_bytes());
    let by_place: BTreeMap<_, u64> = coded.map(|b| (b.id(), b.len() as u64)).collect();
    by_place.values().sum()
}
