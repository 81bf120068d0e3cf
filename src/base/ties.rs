//! Which tensors of a base are one in the model.

use serde_json::Value;

use super::architecture::{Architecture, TIE_KEY, TiedNames};
use super::config::read_config;
use super::known::Known;
use super::modules::{is_input_embedding, is_output_embedding};
use super::names::Names;
use crate::error::Result;
use crate::safetensors::{Checkpoint, Location};

/// Names that are one tensor once the model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tie {
    /// The names by the model's class; where that is unknown the base's own, and one that it may lack.
    pub(crate) names: Vec<String>,
    /// Where each is stored.
    pub(crate) places: Vec<Option<Location>>,
    /// Which of them is the output projection.
    pub(crate) output: Option<usize>,
}

impl Tie {
    /// The tensors that are stored, in the order of the names.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Location> {
        self.places.iter().flatten().copied()
    }

    /// The one that stands for a name that is not stored, with its own name.
    pub(crate) fn source(&self) -> Option<(&str, Location)> {
        let mut all = self.names.iter().zip(&self.places);
        all.find_map(|(name, place)| Some((name.as_str(), (*place)?)))
    }
}

/// Which tensors of a base are one and the same in the model.
#[derive(Debug)]
pub(crate) struct Ties<'a> {
    architecture: &'a Architecture,
    /// Those that are tied, each with one tensor or more that is stored.
    pub(crate) all: Vec<Tie>,
    /// Where input embeddings, output projections and their biases are stored, tied or not.
    embeddings: Vec<Location>,
}

fn weight_of(name: &str, module_is: fn(&str) -> bool) -> bool {
    // GPTQ and compressed-tensors store the weight under names of their own.
    let ends = [".weight", ".qweight", ".weight_packed"];
    ends.iter()
        .any(|end| name.strip_suffix(end).is_some_and(module_is))
}

impl<'a> Ties<'a> {
    /// By the architecture where its class is known; else by names, and by `config.json` beside the
    /// weights where there is one.
    ///
    /// Where the config does not say whether they are tied, the class's default does, and a model whose
    /// checkpoint has no output projection is tied anyway: transformers' default for
    /// `tie_word_embeddings` differs from model to model and from version to version.
    ///
    /// # Errors
    /// Those of reading the config.
    pub(crate) fn of<K: Known<Place = Location>>(
        base: &Checkpoint,
        architecture: &'a Architecture,
        names: &Names<'_, K>,
    ) -> Result<Self> {
        if !architecture.is_known() {
            let (tie, tied) = by_names(base)?;
            return Ok(Self {
                architecture,
                embeddings: tie.stored().collect(),
                all: if tied { vec![tie] } else { Vec::new() },
            });
        }
        let headless =
            !architecture.is_class_known() && read_config(base)?.as_ref().is_some_and(has_no_head);
        let known = architecture.tied().iter();
        let all: Vec<Tie> = known
            .filter_map(|tied| located(tied, architecture, names, headless))
            .collect();
        let named = [architecture.input(), architecture.output()];
        let named = named.iter().flatten().filter_map(|name| names.stored(name));
        let mut embeddings: Vec<Location> = named.collect();
        // What goes with the output's weight, an entry for each row.
        let bias = architecture.output();
        let bias = bias.and_then(|o| Some(format!("{}.bias", o.strip_suffix(".weight")?)));
        if let Some(bias) = &bias {
            embeddings.extend(names.stored(bias));
            embeddings.extend(bias_beside(base, names, bias));
        }
        for tie in &all {
            let of_bias = |n: &String| Some(n) == bias.as_ref();
            if tie.names.iter().any(of_bias)
                || tie.stored().any(|place| embeddings.contains(&place))
            {
                embeddings.extend(tie.stored());
            }
        }
        embeddings.sort();
        embeddings.dedup();
        Ok(Self {
            architecture,
            all,
            embeddings,
        })
    }

    /// Where input embeddings, output projections and their biases are stored.
    pub(crate) fn embeddings(&self) -> impl Iterator<Item = Location> {
        self.embeddings.iter().copied()
    }

    /// Whether a place is that of an input embedding, an output projection, or the bias of one.
    pub(crate) fn is_embedding(&self, place: Location) -> bool {
        self.embeddings.contains(&place)
    }

    /// The tie that a tensor belongs to and its place among the names there, for one that is stored at
    /// `place`, or that is not stored and has this name.
    pub(crate) fn find(&self, name: &str, place: Option<Location>) -> Option<(usize, usize)> {
        let spellings = match place {
            None if self.architecture.is_known() => self.architecture.spellings(name),
            _ => Vec::new(),
        };
        let within = |tie: &Tie| match place {
            Some(_) => tie.places.iter().position(|p| *p == place),
            None if self.architecture.is_known() => {
                tie.names.iter().position(|n| spellings.contains(n))
            }
            None if weight_of(name, is_output_embedding) => tie.output,
            None => None,
        };
        let mut all = self.all.iter().enumerate();
        all.find_map(|(t, tie)| Some((t, within(tie)?)))
    }

    /// Whether the base may lack a tensor of this name, because it has one that is the same.
    pub(crate) fn may_miss(&self, name: &str) -> bool {
        self.find(name, None).is_some()
    }

    /// The tensor that one of this name, which is not stored, is in the model.
    pub(crate) fn stands_for(&self, name: &str) -> Option<Location> {
        let (tie, _) = self.find(name, None)?;
        Some(self.all.get(tie)?.source()?.1)
    }
}

/// BERT's and Reformer's heads have the bias of the output beside it, where it need not be tied to a bias of its own.
fn bias_beside<K: Known<Place = Location>>(
    base: &Checkpoint,
    names: &Names<'_, K>,
    bias: &str,
) -> Option<Location> {
    let output = bias.strip_suffix(".bias")?;
    let (head, _) = output.rsplit_once('.')?;
    let rows = |place| base.at(place).1.shape.first();
    let weight = names.stored(&format!("{output}.weight"))?;
    let beside = names.stored(&format!("{head}.bias"))?;
    (rows(beside) == rows(weight)).then_some(beside)
}

fn located<K: Known<Place = Location>>(
    tied: &TiedNames,
    architecture: &Architecture,
    names: &Names<'_, K>,
    headless: bool,
) -> Option<Tie> {
    let places: Vec<Option<Location>> = tied.names.iter().map(|n| names.stored(n)).collect();
    let lacks_output = tied.output.is_some_and(|o| places.get(o) == Some(&None));
    let untold = match architecture.is_class_known() {
        true => tied.default || lacks_output,
        false => lacks_output && !headless,
    };
    let is = tied.told.unwrap_or(untold) && places.iter().any(Option::is_some);
    is.then(|| Tie {
        names: tied.names.clone(),
        places,
        output: tied.output,
    })
}

/// The embeddings of a base of an unknown architecture, and whether they are one.
fn by_names(base: &Checkpoint) -> Result<(Tie, bool)> {
    let first = |module_is| {
        let found = base
            .tensors()
            .iter()
            .filter(|(n, _)| weight_of(n, module_is));
        found.min_by_key(|(n, _)| (n.split('.').count(), n.len()))
    };
    let (input, output) = (first(is_input_embedding), first(is_output_embedding));
    let config = read_config(base)?;
    let flag = config.as_ref().and_then(|c| {
        let nested = || c.get("text_config").and_then(|t| t.get(TIE_KEY));
        c.get(TIE_KEY).or_else(nested).and_then(Value::as_bool)
    });
    let headless = config.as_ref().is_some_and(has_no_head);
    let tied = input.is_some() && flag.unwrap_or(output.is_none() && !headless);
    let both = [input, output];
    let tie = Tie {
        names: both
            .map(|found| found.map_or_else(String::new, |(name, _)| name.clone()))
            .to_vec(),
        places: both.map(|found| found.map(|(_, place)| *place)).to_vec(),
        output: Some(1),
    };
    Ok((tie, tied))
}

fn has_no_head(config: &Value) -> bool {
    let Some(classes) = config.get("architectures").and_then(Value::as_array) else {
        return false;
    };
    let head = |c: &str| c.contains("LM") || c.ends_with("ForConditionalGeneration");
    let mut names = classes.iter().filter_map(Value::as_str);
    !classes.is_empty() && !names.any(head)
}
