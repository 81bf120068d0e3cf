//! The methods of the paper, by what trains and what is tied.

use std::fmt;
use std::str::FromStr;

use super::factor::FactorName;
use super::group::TieGroup;
use crate::error::{Code, Error};

/// The paper's methods (arXiv 2311.09578, Table 1): which factors exist, train and are tied.
///
/// They are presets over (trains A, B, u, v; tied), not code paths; anything else, a core too, is
/// `Custom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// A, B trained, one pair for each layer.
    Lora,
    /// u, v trained; A, B tied, random and frozen.
    Vera,
    /// A trained and tied; B frozen.
    Tl1,
    /// A, u, v trained; B frozen.
    Tl2,
    /// B trained and tied; A frozen.
    Tl3,
    /// B, u trained; A frozen.
    Tl4,
    /// A, B trained and tied.
    Tl5,
    /// A, B, u, v trained, A and B tied.
    Tl6,
    /// Any other template.
    Custom,
}

impl Method {
    /// The eight presets.
    pub const PRESETS: [Method; 8] = [
        Method::Lora,
        Method::Vera,
        Method::Tl1,
        Method::Tl2,
        Method::Tl3,
        Method::Tl4,
        Method::Tl5,
        Method::Tl6,
    ];

    /// The name in manifests and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Lora => "lora",
            Method::Vera => "vera",
            Method::Tl1 => "tl1",
            Method::Tl2 => "tl2",
            Method::Tl3 => "tl3",
            Method::Tl4 => "tl4",
            Method::Tl5 => "tl5",
            Method::Tl6 => "tl6",
            Method::Custom => "custom",
        }
    }

    /// The factors that train, in the order A, B, u, v; `None` for `Custom`.
    pub fn trains(self) -> Option<&'static [FactorName]> {
        use FactorName::{A, B, U, V};
        Some(match self {
            Method::Lora | Method::Tl5 => &[A, B],
            Method::Vera => &[U, V],
            Method::Tl1 => &[A],
            Method::Tl2 => &[A, U, V],
            Method::Tl3 => &[B],
            Method::Tl4 => &[B, U],
            Method::Tl6 => &[A, B, U, V],
            Method::Custom => return None,
        })
    }

    /// Whether one A and one B serve every layer; `None` for `Custom`.
    pub fn is_tied(self) -> Option<bool> {
        match self {
            Method::Custom => None,
            method => Some(method != Method::Lora),
        }
    }

    /// The preset whose template every one of `groups` has.
    pub fn of(groups: &[TieGroup]) -> Self {
        let Some(first) = groups.first() else {
            return Method::Custom;
        };
        let template = |group: &TieGroup| {
            let trained: Vec<FactorName> = group
                .factors()
                .filter(|(_, f)| f.trained)
                .map(|(p, _)| p)
                .collect();
            let vectors_train = group
                .factors()
                .all(|(p, f)| f.trained || matches!(p, FactorName::A | FactorName::B));
            (trained, vectors_train)
        };
        let (trained, vectors_train) = template(first);
        if !vectors_train
            || groups
                .iter()
                .any(|g| template(g) != (trained.clone(), true))
        {
            return Method::Custom;
        }
        // A group without layers has one module, of which one cannot say whether it is tied.
        let layered: Vec<bool> = groups
            .iter()
            .filter(|g| g.layers.is_some())
            .map(TieGroup::is_tied)
            .collect();
        Method::PRESETS
            .into_iter()
            .find(|m| {
                m.trains() == Some(&trained)
                    && layered.iter().all(|tied| m.is_tied() == Some(*tied))
            })
            .unwrap_or(Method::Custom)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Method::PRESETS
            .into_iter()
            .chain([Method::Custom])
            .find(|m| m.name() == text)
            .ok_or_else(|| Error::new(Code::Usage, format!("`{text}` is not a method")))
    }
}
