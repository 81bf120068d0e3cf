//! The parts of a manifest: one struct for each kind of JSON object, its fields in canonical order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::invalid::invalid;
use crate::adapter::{
    BaseModel, Extra, ExtraRole, FactorName, ModuleKind, Scaling, ScalingRule, Target, TieGroup,
};
use crate::digest::Digest;
use crate::error::Result;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Base {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestExtra {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alpha: Option<Alpha>,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rank: Option<usize>,
    pub(super) role: Role,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rows: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scaling: Option<Rule>,
    pub(super) tensor: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    AddBias,
    BaseLayer,
    Bias,
    Replace,
    Rows,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(non_snake_case)]
pub(super) struct Group {
    pub(super) A: String,
    pub(super) B: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) C: Option<String>,
    pub(super) alpha: Alpha,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) experts: Option<usize>,
    pub(super) r#in: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) layers: Option<Vec<u32>>,
    pub(super) rank: usize,
    pub(super) scaling: Rule,
    pub(super) targets: Vec<ManifestTarget>,
    pub(super) trained: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) u: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) v: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestTarget {
    #[serde(default, skip_serializing_if = "Kind::is_linear")]
    pub(super) kind: Kind,
    pub(super) module: String,
    pub(super) out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Linear,
    Conv1d,
    Embedding,
    Parameter,
    #[serde(rename = "parameter_transposed")]
    ParameterTransposed,
}

impl Kind {
    fn is_linear(&self) -> bool {
        *self == Kind::Linear
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Rule {
    #[serde(rename = "alpha/rank")]
    AlphaOverRank,
    #[serde(rename = "alpha/sqrt(rank)")]
    AlphaOverSqrtRank,
}

/// alpha: a JSON integer where it is one, else the bits of the f64 as `0x` and 16 hex digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Alpha {
    Integer(u64),
    Bits(String),
}

impl Base {
    /// # Errors
    /// [`crate::Code::ManifestInvalid`] for a fingerprint that is no digest.
    pub(super) fn of(base: &BaseModel) -> Result<Self> {
        Ok(Self {
            name: base.name.clone(),
            revision: base.revision.clone(),
            weights: base.weights.as_deref().map(str::parse).transpose()?,
        })
    }

    pub(super) fn to_model(&self) -> BaseModel {
        BaseModel {
            name: self.name.clone(),
            revision: self.revision.clone(),
            weights: self.weights.map(|w| w.hex()),
        }
    }
}

impl Group {
    pub(super) fn of(group: &TieGroup, names: &BTreeMap<FactorName, String>) -> Self {
        let name = |part| names.get(&part).cloned();
        Self {
            A: name(FactorName::A).unwrap_or_default(),
            B: name(FactorName::B).unwrap_or_default(),
            C: name(FactorName::C),
            alpha: Alpha::of(group.scaling.alpha),
            experts: group.experts,
            r#in: group.in_features,
            layers: group.layers.clone(),
            rank: group.rank,
            scaling: Rule::of(group.scaling.rule),
            targets: group.targets.iter().map(ManifestTarget::of).collect(),
            trained: group
                .factors()
                .filter(|(_, f)| f.trained)
                .map(|(p, _)| p.name().to_owned())
                .collect(),
            u: name(FactorName::U),
            v: name(FactorName::V),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (FactorName, &String)> {
        let core = self.C.iter().map(|n| (FactorName::C, n));
        let u = self.u.iter().map(|n| (FactorName::U, n));
        let v = self.v.iter().map(|n| (FactorName::V, n));
        [(FactorName::A, &self.A), (FactorName::B, &self.B)]
            .into_iter()
            .chain(core)
            .chain(u)
            .chain(v)
    }

    /// Whether it adapts parameters, with or without experts.
    pub(super) fn has_parameters(&self) -> bool {
        let is_parameter = |t: &ManifestTarget| t.to_target().kind.is_parameter();
        self.experts.is_some() || self.targets.iter().any(is_parameter)
    }

    pub(super) fn check_trained(&self) -> Result<()> {
        let present: Vec<&str> = self.names().map(|(p, _)| p.name()).collect();
        let mut places = self
            .trained
            .iter()
            .map(|t| present.iter().position(|p| p == t));
        let mut last = None;
        if places.all(|place| {
            let ascends = place.is_some() && place > last;
            last = place;
            ascends
        }) {
            return Ok(());
        }
        Err(invalid(format!(
            "`trained` {:?} is not a sub-list of {present:?}",
            self.trained
        )))
    }
}

impl ManifestTarget {
    pub(super) fn of(target: &Target) -> Self {
        let kind = match target.kind {
            ModuleKind::Linear => Kind::Linear,
            ModuleKind::Conv1d => Kind::Conv1d,
            ModuleKind::Embedding => Kind::Embedding,
            ModuleKind::Parameter => Kind::Parameter,
            ModuleKind::ParameterTransposed => Kind::ParameterTransposed,
        };
        Self {
            kind,
            module: target.module.clone(),
            out: target.out,
        }
    }

    pub(super) fn to_target(&self) -> Target {
        let kind = match self.kind {
            Kind::Linear => ModuleKind::Linear,
            Kind::Conv1d => ModuleKind::Conv1d,
            Kind::Embedding => ModuleKind::Embedding,
            Kind::Parameter => ModuleKind::Parameter,
            Kind::ParameterTransposed => ModuleKind::ParameterTransposed,
        };
        Target {
            module: self.module.clone(),
            out: self.out,
            kind,
        }
    }
}

impl ManifestExtra {
    pub(super) fn of(extra: &Extra, tensor: &str) -> Self {
        let (role, scaled) = match extra.role {
            ExtraRole::Replace => (Role::Replace, None),
            ExtraRole::Bias => (Role::Bias, None),
            ExtraRole::BaseLayer => (Role::BaseLayer, None),
            ExtraRole::Rows => (Role::Rows, None),
            ExtraRole::AddBias(scaling, rank) => (Role::AddBias, Some((scaling, rank))),
        };
        Self {
            alpha: scaled.map(|(s, _)| Alpha::of(s.alpha)),
            name: extra.name.clone(),
            rank: scaled.map(|(_, rank)| rank),
            role,
            rows: extra.rows.clone(),
            scaling: scaled.map(|(s, _)| Rule::of(s.rule)),
            tensor: tensor.to_owned(),
        }
    }

    pub(super) fn role(&self) -> Result<ExtraRole> {
        match (self.role, &self.alpha, self.rank, self.scaling) {
            (Role::Replace, None, None, None) => Ok(ExtraRole::Replace),
            (Role::Bias, None, None, None) => Ok(ExtraRole::Bias),
            (Role::BaseLayer, None, None, None) => Ok(ExtraRole::BaseLayer),
            (Role::Rows, None, None, None) => Ok(ExtraRole::Rows),
            (Role::AddBias, Some(alpha), Some(rank), Some(rule)) if rank > 0 => {
                let scaling = scaling(alpha, rule)?;
                scaling.validate(rank)?;
                Ok(ExtraRole::AddBias(scaling, rank))
            }
            _ => Err(invalid(format!(
                "extra `{}`: alpha, rank and scaling go with add_bias, and only with it",
                self.name
            ))),
        }
    }
}

impl Rule {
    pub(super) fn of(rule: ScalingRule) -> Self {
        match rule {
            ScalingRule::AlphaOverRank => Self::AlphaOverRank,
            ScalingRule::AlphaOverSqrtRank => Self::AlphaOverSqrtRank,
        }
    }
}

pub(super) fn scaling(alpha: &Alpha, rule: Rule) -> Result<Scaling> {
    let rule = match rule {
        Rule::AlphaOverRank => ScalingRule::AlphaOverRank,
        Rule::AlphaOverSqrtRank => ScalingRule::AlphaOverSqrtRank,
    };
    Ok(Scaling {
        alpha: alpha.value()?,
        rule,
    })
}

impl Alpha {
    const MAX_INTEGER: u64 = (1 << 53) - 1;

    pub(super) fn of(alpha: f64) -> Self {
        if alpha >= 0.0 && alpha.fract() == 0.0 && alpha <= Self::MAX_INTEGER as f64 {
            return Self::Integer(alpha as u64);
        }
        Self::Bits(format!("0x{:016x}", alpha.to_bits()))
    }

    pub(super) fn value(&self) -> Result<f64> {
        let value = match self {
            Self::Integer(n) => *n as f64,
            Self::Bits(text) => text
                .strip_prefix("0x")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .map_or(f64::NAN, f64::from_bits),
        };
        // One value, one spelling: an integer must not hide in bits, nor bits in upper case.
        if value.is_nan() || Self::of(value) != *self {
            return Err(invalid(format!(
                "alpha {self:?} is not in its canonical form"
            )));
        }
        Ok(value)
    }
}
