//! A base checkpoint, as PEFT's importer and exporter ask it.

use crate::base::architecture::{Architecture, ExpertLayout};
use crate::base::cut::{Cut, Piece};
use crate::base::modules::{has_joint_conv1d, is_conv1d};
use crate::base::names::{Finder, Names};
use crate::base::shapes::ParameterShape;
use crate::base::{layers_of, read_config};
use crate::error::{Code, Result};
use crate::peft::import::BaseShapes;
use crate::peft::target_names::BaseModules;
use crate::quant::{Quantised, View};
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Dtype;

/// The architecture of a base that is asked for its shapes alone: a broken config leaves it unknown.
///
/// # Errors
/// [`crate::Code::Io`], [`crate::Code::HeaderTooLarge`] for an absurd config.
fn lenient_architecture(checkpoint: &Checkpoint) -> Result<Architecture> {
    match Architecture::of(checkpoint) {
        Err(e) if e.code() == Code::ConfigInvalid => Ok(Architecture::default()),
        architecture => architecture,
    }
}

/// The quantised weights of a base that is asked for its shapes alone: none where they are not read.
///
/// # Errors
/// [`crate::Code::Io`].
fn lenient_quantised(checkpoint: &Checkpoint) -> Result<Option<Quantised<'_>>> {
    match Quantised::of(checkpoint) {
        Err(e) if [Code::BaseDtype, Code::ConfigInvalid].contains(&e.code()) => Ok(None),
        quantised => quantised,
    }
}

/// Calls `f` with a base as the importer and exporter see it, where there is one.
///
/// # Errors
/// [`crate::Code::Io`], [`crate::Code::HeaderTooLarge`]; those of `f`.
pub(crate) fn with_modules<T>(
    base: Option<&Checkpoint>,
    f: impl FnOnce(Option<&CheckpointModules<'_>>) -> Result<T>,
) -> Result<T> {
    let Some(base) = base else {
        return f(None);
    };
    let (architecture, quantised) = (lenient_architecture(base)?, lenient_quantised(base)?);
    let view = View::new(base, quantised.as_ref());
    f(Some(&CheckpointModules::new(&view, &architecture)))
}

/// A checkpoint as the importer and exporter see it: modules by the names that adapters use.
#[derive(Debug)]
pub(crate) struct CheckpointModules<'a> {
    view: &'a View<'a, 'a>,
    architecture: &'a Architecture,
    names: Names<'a, View<'a, 'a>>,
    joint: bool,
    finder: Finder,
    layers: Option<usize>,
}

impl<'a> CheckpointModules<'a> {
    fn new(view: &'a View<'a, 'a>, architecture: &'a Architecture) -> Self {
        let config = read_config(view.base()).ok().flatten();
        Self {
            view,
            architecture,
            names: Names::new(view, architecture),
            joint: !architecture.is_known() && has_joint_conv1d(view.base()),
            layers: config.and_then(|c| layers_of(&c)),
            finder: Finder::default(),
        }
    }

    /// The dtype that most two-dimensional weights have.
    pub(crate) fn weight_dtype(&self) -> Option<Dtype> {
        self.view.weight_dtype()
    }
}

impl BaseShapes for CheckpointModules<'_> {
    fn weight_shape(&self, module: &str) -> Option<Vec<usize>> {
        let name = format!("{module}.weight");
        let found = self.finder.find(&self.names, &name)?;
        match found.pieces[..] {
            [piece] if piece.of == Cut::WHOLE => piece.at.extents(self.view.shape(piece.place)),
            _ => None,
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        // A fused parameter is found for any expert, and has only so many.
        let there = |p: &Piece<Location>| {
            let extent = self.view.shape(p.place).first();
            p.at.index.is_none_or(|i| extent.is_some_and(|e| i < *e))
        };
        let found = self.finder.find(&self.names, name);
        found.is_some_and(|found| found.pieces.iter().all(there))
    }

    fn is_of_model(&self, name: &str) -> bool {
        if self.has_tensor(name) {
            return true;
        }
        let spellings = self.architecture.spellings(name);
        let mut tied = self.architecture.tied().iter();
        tied.any(|tied| {
            let stored = |n: &String| self.names.stored(n).is_some();
            tied.told.unwrap_or(true)
                && tied.names.iter().any(|n| spellings.contains(n))
                && tied.names.iter().any(stored)
        })
    }

    fn parameter(&self, name: &str) -> Option<ParameterShape> {
        let found = self.finder.find(&self.names, name)?;
        let experts = match found.as_whole() {
            Some(place) => match *self.view.shape(place) {
                [experts, _, _] => Some(experts),
                _ => None,
            },
            None => {
                let indices = found.pieces.iter().map(|p| p.of.index);
                let last = indices.max().flatten();
                match (last, found.pieces.first()) {
                    (Some(last), _) => Some(last + 1),
                    (None, Some(p)) => self.view.shape(p.place).first().copied(),
                    (None, None) => None,
                }
            }
        };
        let links = self.architecture.links(name);
        let class = links.first().map_or(name, |l| &l.class);
        let (transposed, interleaved) = match self.architecture.experts(class) {
            Some(ExpertLayout::Stated {
                transposed,
                interleaved,
            }) => (transposed, interleaved),
            _ => (false, None),
        };
        Some(ParameterShape {
            experts,
            transposed,
            interleaved,
        })
    }

    fn has_module(&self, end: &str) -> bool {
        let has = |name: &str| {
            let mut dots = name.match_indices('.').map(|(dot, _)| &name[..dot]);
            dots.any(|path| {
                let before = path.strip_suffix(end);
                before.is_some_and(|b| b.is_empty() || b.ends_with('.'))
            })
        };
        let of_class = |name: &str| {
            let links = self.architecture.links(name);
            self.architecture.has_rules() && links.iter().any(|link| has(&link.class))
        };
        let mut names = self.view.tensors();
        names.any(|(name, _)| has(name) || of_class(name))
    }

    fn layers(&self) -> Option<usize> {
        self.layers
    }

    fn is_conv1d(&self, module: &str) -> Option<bool> {
        let asked = self.names.asked(module);
        let module = asked.as_deref().unwrap_or(module);
        let links = self.architecture.links(&format!("{module}.weight"));
        let class = links.first().and_then(|l| l.class.strip_suffix(".weight"));
        let known = self.architecture.is_conv1d(class.unwrap_or(module));
        known.or_else(|| (self.joint && is_conv1d(module)).then_some(true))
    }
}

impl BaseModules for CheckpointModules<'_> {
    fn modules(&self) -> Vec<String> {
        let names = self.view.tensors();
        let matrices = names.filter(|(_, place)| self.view.shape(*place).len() >= 2);
        let stored = matrices.filter_map(|(n, _)| n.strip_suffix(".weight"));
        stored.map(|name| self.names.called(name)).collect()
    }

    fn sizes(&self, module: &str) -> Option<(usize, usize)> {
        match self.weight_shape(module)?[..] {
            [out, in_features] if self.is_conv1d(module) != Some(true) => Some((out, in_features)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::encode_header;
    use std::fs;

    /// Breaks where an output that a tied base has under its input's name is unknown, so that what PEFT saves
    /// with `save_embedding_layers` is refused.
    #[test]
    fn a_tied_output_is_of_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let (matrix, vector) = ([3, 2], [3]);
        let tensors = [
            (
                "bert.embeddings.word_embeddings.weight",
                Dtype::F32,
                &matrix[..],
                24,
            ),
            ("cls.predictions.bias", Dtype::F32, &vector[..], 12),
        ];
        let mut bytes = encode_header(&[], tensors, 8);
        bytes.extend([0; 36]);
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let config = |tied: bool| {
            format!(
                r#"{{"model_type":"bert","architectures":["BertForMaskedLM"],"tie_word_embeddings":{tied}}}"#
            )
        };
        for tied in [true, false] {
            fs::write(dir.path().join("config.json"), config(tied)).unwrap();
            let base = Checkpoint::open(dir.path()).unwrap();
            let architecture = lenient_architecture(&base).unwrap();
            let view = View::new(&base, None);
            let modules = CheckpointModules::new(&view, &architecture);
            for end in ["weight", "bias"] {
                let name = format!("cls.predictions.decoder.{end}");
                assert_eq!(
                    (modules.is_of_model(&name), modules.has_tensor(&name)),
                    (tied, false)
                );
            }
            assert!(modules.is_of_model("cls.predictions.bias"));
            assert!(!modules.is_of_model("cls.predictions.decoder.scale"));
        }
    }
}
