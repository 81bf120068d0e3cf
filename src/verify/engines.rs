//! What programs that serve adapters make of one as PEFT has it: facts of their code, in `engines.json` beside
//! this file.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::adapter::{ExtraRole, ScalingRule};
use crate::error::{Code, Error, Result};
use crate::open::{Opened, Source};
use crate::peft::export::lacks_companion;
use crate::peft::import::PeftKind;

const TABLE: &str = include_str!("engines.json");
/// Extras that the portable form has no place for either.
const LASTING: [&str; 6] = ["dora", "add-bias", "bias", "saved", "rows", "experts"];

/// What a program does with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Verdict {
    /// Computes what PEFT does.
    Serves,
    /// Does not load it.
    Refuses,
    /// Loads it, says nothing, and computes something else.
    Wrong,
}

/// What one program does with an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EngineReport {
    /// `vLLM`, `SGLang` or `llama.cpp`.
    pub engine: String,
    /// With the PEFT directory itself, or the faithful one of a `.tl`.
    pub verdict: Verdict,
    /// Why it is not served.
    pub why: Vec<String>,
    /// With the portable form, where there is one.
    pub portable: bool,
    /// The smallest `max_lora_rank` that vLLM has for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lora_rank: Option<usize>,
}

#[derive(Deserialize)]
struct Engine {
    engine: String,
    ranks: Vec<usize>,
    traits: BTreeMap<String, (Verdict, String)>,
}

/// What each program does with an adapter.
///
/// # Errors
/// [`Code::Internal`] for a table that is not one.
pub(super) fn engines(opened: &Opened) -> Result<Vec<EngineReport>> {
    let table: Vec<Engine> = serde_json::from_str(TABLE)
        .map_err(|e| Error::new(Code::Internal, "the table of engines").cause(e))?;
    let traits = traits(opened);
    let rank = opened.adapter.groups.iter().map(|g| g.rank).max();
    let reports = table.into_iter().map(|engine| {
        let found = traits.iter().filter_map(|t| engine.traits.get(*t));
        let mut verdict = Verdict::Serves;
        let mut why = Vec::new();
        for (what, reason) in found {
            verdict = match (verdict, *what) {
                (Verdict::Refuses, _) | (_, Verdict::Refuses) => Verdict::Refuses,
                (_, other) => other,
            };
            why.push(reason.clone());
        }
        let fitting = engine.ranks.iter().find(|most| **most >= rank.unwrap_or(0));
        if let (Some(most), None) = (engine.ranks.last(), fitting) {
            verdict = Verdict::Refuses;
            why.push(format!("has ranks up to {most}"));
        }
        let too_wide = fitting.is_none() && !engine.ranks.is_empty();
        EngineReport {
            engine: engine.engine,
            verdict,
            why,
            portable: !too_wide && !traits.iter().any(|t| LASTING.contains(t)) && rank.is_some(),
            max_lora_rank: fitting.copied(),
        }
    });
    Ok(reports.collect())
}

/// What of an adapter some programs do not take, by the table's names.
fn traits(opened: &Opened) -> BTreeSet<&'static str> {
    let adapter = &opened.adapter;
    let mut traits = BTreeSet::new();
    if matches!(
        opened.source,
        Source::Peft(PeftKind::Vera | PeftKind::VeraRegenerated)
    ) {
        traits.insert("vera");
    }
    if !opened.magnitudes.is_empty() {
        traits.insert("dora");
    }
    traits.extend(adapter.extras.iter().filter_map(|e| match e.role {
        ExtraRole::Replace => Some("saved"),
        ExtraRole::Bias => Some("bias"),
        ExtraRole::Rows => Some("rows"),
        ExtraRole::AddBias(..) => Some("add-bias"),
        ExtraRole::BaseLayer => None,
    }));
    let groups = &adapter.groups;
    let several = |values: BTreeSet<u64>| values.len() > 1;
    if several(groups.iter().map(|g| g.rank as u64).collect()) {
        traits.insert("ranks");
    }
    let alphas = groups.iter().map(|g| g.scaling.alpha.to_bits());
    if several(alphas.collect()) {
        traits.insert("scales");
    }
    let rs = ScalingRule::AlphaOverSqrtRank;
    if groups.iter().any(|g| g.scaling.rule == rs && g.rank > 1) {
        traits.insert("rslora");
    }
    let targets = || groups.iter().flat_map(|g| &g.targets);
    if targets().any(|t| t.kind.is_parameter()) {
        traits.insert("experts");
    }
    if lacks_companion(adapter) {
        traits.insert("lone");
    }
    traits
}
