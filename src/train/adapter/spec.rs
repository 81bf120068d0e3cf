//! What is trained: which of A, B, C, u, v, on which modules, tied or not; and the values they start
//! from.

use super::group::Group;
use super::init::Init;
use super::layout::TrainingAdapter;
use crate::adapter::{
    Adapter, Factor, FactorName, LAYER_PLACE, Scaling, ScalingRule, Seed, Target, TieGroup,
};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::seeded_tensor;
use crate::model::{Model, ModulePlace, Slot, spans};
use crate::tensor::{self, Dtype};

/// A choice of what to train. The paper's eight methods are presets of it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Which factors train; the others of A and B stay at their random start, and C, u and v that
    /// do not train are absent, which means ones. C takes the place of u: not both.
    pub trained: Vec<FactorName>,
    /// Whether all layers share A and B.
    pub tied: bool,
    /// Adapted layers, ascending; None for all.
    pub layers: Option<Vec<u32>>,
    /// Adapted modules: `q`, `q_proj` or `self_attn.q_proj`.
    pub targets: Vec<String>,
    /// Whether modules that read the same input share one A and one u or C (the paper's q, k, v).
    pub joint: bool,
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
    /// Whether the update is multiplied by α/r, or by α/√r (rsLoRA).
    pub rule: ScalingRule,
    /// How A and B start.
    pub init: Init,
    /// Seeds the random start.
    pub seed: u64,
}

impl AdapterSpec {
    /// Whether the update is zero because v, B, A, C or u starts at zero: the first of these that
    /// trains. All starts leave the model what it is, whatever trains. None where B·A is zero and
    /// neither of them is.
    fn zero_at_start(&self) -> Option<FactorName> {
        if self.init == Init::Orthogonal {
            return None;
        }
        let order = [
            FactorName::V,
            FactorName::B,
            FactorName::A,
            FactorName::C,
            FactorName::U,
        ];
        order
            .into_iter()
            .find(|p| self.trained.contains(p))
            .or(Some(FactorName::V))
    }

    /// The key that a factor's random start is generated from.
    fn key(&self, module: &str, part: FactorName) -> [u8; 32] {
        self.key_of(module, part, "")
    }

    /// As [`key`](Self::key), of one of several streams.
    fn key_of(&self, module: &str, part: FactorName, which: &str) -> [u8; 32] {
        let text = format!(
            "tlkit start 1\n{}\n{module}\n{}\n{which}",
            self.seed,
            part.name()
        );
        *Digest::of(text.as_bytes()).as_bytes()
    }

    /// The start of A or B of the given shape, with `inputs` terms in each sum it makes.
    fn start(
        &self,
        module: &str,
        part: FactorName,
        shape: Vec<usize>,
        inputs: usize,
    ) -> Result<Factor> {
        let trained = self.trained.contains(&part);
        if let Some(values) = (self.init).values(self.rank, part, &shape, &|part, which| {
            self.key_of(module, part, which)
        })? {
            return Ok(Factor {
                tensor: tensor::Tensor::from_f32(shape, &values)?,
                trained,
                seed: None,
            });
        }
        if self.zero_at_start() == Some(part) {
            let values = vec![0.0; shape.iter().product()];
            return Ok(Factor {
                tensor: tensor::Tensor::from_f32(shape, &values)?,
                trained,
                seed: None,
            });
        }
        let bound = match self.init {
            Init::Kaiming => (1.0 / inputs as f64).sqrt(),
            // Uniform with variance 1/inputs: x·Aᵀ and p·Bᵀ keep the scale of what they are made of.
            _ => (3.0 / inputs as f64).sqrt(),
        };
        let seed = Seed {
            key: self.key(module, part),
            step: (bound / f64::from(1 << 23)) as f32,
        };
        let tensor = seeded_tensor(&seed, Dtype::F32, &shape)?;
        Ok(Factor {
            tensor,
            trained,
            seed: (!trained).then_some(seed),
        })
    }

    fn group(&self, model: &Model, places: &[&ModulePlace], layers: &[u32]) -> Result<Group> {
        let no_target = || Error::new(Code::Usage, "no target");
        let first = places.first().ok_or_else(no_target)?;
        let targets: Vec<Target> = (places.iter())
            .map(|p| Target {
                module: module_pattern(model, p),
                out: p.out,
                kind: p.kind,
            })
            .collect();
        let (r, n) = (self.rank, first.in_features);
        let m: usize = places.iter().map(|p| p.out).sum();
        let l = layers.len();
        let stacked = |shape: [usize; 2]| match self.tied {
            true => shape.to_vec(),
            false => vec![l, shape[0], shape[1]],
        };
        let name = targets
            .iter()
            .map(|t| t.module.as_str())
            .collect::<Vec<_>>()
            .join(",");
        let a = self.start(&name, FactorName::A, stacked([r, n]), n)?;
        let b = self.start(&name, FactorName::B, stacked([m, r]), r)?;
        let own = |part: FactorName, shape: Vec<usize>, start: &dyn Fn(usize) -> f32| {
            if !self.trained.contains(&part) {
                return Ok(None);
            }
            let value = |i| {
                if self.zero_at_start() == Some(part) {
                    0.0
                } else {
                    start(i)
                }
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
            tensor::Tensor::from_f32(shape, &values).map(|t| Some(Factor::trained(t)))
        };
        let ones = |_| 1.0;
        let identity = |i| f32::from(i % (r * r) / r == i % r);
        Ok(Group {
            a: a.tensor.to_f32()?,
            b: b.tensor.to_f32()?,
            shape: TieGroup {
                layers: Some(layers.to_vec()),
                experts: None,
                rank: r,
                in_features: n,
                scaling: Scaling {
                    alpha: self.alpha,
                    rule: self.rule,
                },
                a,
                b,
                core: own(FactorName::C, vec![l, r, r], &identity)?,
                u: own(FactorName::U, vec![l, r], &ones)?,
                v: own(FactorName::V, vec![l, m], &ones)?,
                targets,
            },
            slot: first.slot,
            layers: layers.to_vec(),
            spans: spans(places),
        })
    }
}

impl TrainingAdapter {
    /// Lays `spec` out on `model`.
    ///
    /// # Errors
    /// [`Code::Usage`] for a target, layer, rank or alpha that makes no sense on this model.
    pub fn new(spec: &AdapterSpec, model: &Model) -> Result<Self> {
        if spec.trained.is_empty() {
            let message = "nothing is to be trained: name some of A, B, C, u, v";
            return Err(Error::new(Code::Usage, message));
        }
        spec.init.check(&spec.trained, spec.rank)?;
        let layers = layers(spec, model)?;
        let modules = model.modules();
        let chosen = model.choose_targets(&spec.targets)?;
        let mut groups = Vec::new();
        for slot in Slot::ALL {
            let places: Vec<&ModulePlace> = (modules.iter())
                .filter(|p| p.layer == 0 && p.slot == slot)
                .filter(|p| chosen.contains(&p.path))
                .collect();
            if places.is_empty() {
                continue;
            }
            let width = if spec.joint { places.len() } else { 1 };
            for places in places.chunks(width) {
                groups.push(spec.group(model, places, &layers)?);
            }
        }
        let adapter = Adapter {
            groups: groups.iter().map(|g| g.shape.clone()).collect(),
            ..Adapter::default()
        };
        adapter.validate()?;
        Ok(Self::of_groups(groups))
    }
}

/// A module's path in the model's class, with `{}` for the layer's number.
fn module_pattern(model: &Model, place: &ModulePlace) -> String {
    let prefix = model.layer_prefix();
    let number = prefix.replacen(LAYER_PLACE, &place.layer.to_string(), 1);
    match place.path.strip_prefix(&number) {
        Some(rest) => format!("{}{rest}", model.layer_name()),
        None => place.path.clone(),
    }
}

/// The layers to adapt, ascending.
fn layers(spec: &AdapterSpec, model: &Model) -> Result<Vec<u32>> {
    let count = model.config().layers as u32;
    let layers = match &spec.layers {
        None => (0..count).collect(),
        Some(layers) => {
            let mut layers = layers.clone();
            layers.sort_unstable();
            layers.dedup();
            layers
        }
    };
    if layers.is_empty() || layers.iter().any(|l| *l >= count) {
        let last = count - 1;
        let message = format!("layers {layers:?} of a model that has layers 0 to {last}");
        return Err(Error::new(Code::Usage, message));
    }
    Ok(layers)
}
