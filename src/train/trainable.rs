//! What is trained: which of A, B, C, u, v, on which modules, tied or not; and the values they start
//! from.

use candle_core::{DType, Device, Tensor, WithDType};

use super::mix::Mix;
use super::params::Param;
use crate::adapter::{
    Adapter, Factor, LAYER_PLACE, ModuleKind, Part, Scaling, ScalingRule, Seed, Target, TieGroup,
};
use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::format::seeded_tensor;
use crate::model::ops::{Branch, Span};
use crate::model::spans;
use crate::model::{BranchGradients, Branches, Model, ModulePlace, Slot};
use crate::tensor::{self, Dtype};

/// A choice of what to train. The paper's eight methods are presets of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// Which factors train; the others of A and B stay at their random start, and C, u and v that
    /// do not train are absent, which means ones. C takes the place of u: not both.
    pub trained: Vec<Part>,
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
    /// α; the update is multiplied by α/r.
    pub alpha: f64,
    /// Seeds the random start.
    pub seed: u64,
}

/// An adapter in training on a given model: its tie groups, and where each meets the model.
#[derive(Debug)]
pub struct Trainable {
    groups: Vec<Group>,
    /// For each trained tensor in order: its group, its part.
    params: Vec<(usize, Part)>,
}

#[derive(Debug)]
pub(crate) struct Group {
    /// Start values; trained factors are replaced when the adapter is made.
    pub(crate) shape: TieGroup,
    pub(crate) slot: Slot,
    /// Layers of the model, in the order of the factors' layers.
    pub(crate) layers: Vec<u32>,
    pub(crate) spans: Vec<Span>,
    /// Values of the factors that do not train.
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
}

impl Template {
    /// Whether the update is zero because v, B, A, C or u starts at zero: the first of these that
    /// trains. All starts leave the model what it is, whatever trains.
    fn zero(&self) -> Part {
        let order = [Part::V, Part::B, Part::A, Part::C, Part::U];
        order
            .into_iter()
            .find(|p| self.trained.contains(p))
            .unwrap_or(Part::V)
    }

    /// The key that a factor's random start is generated from.
    fn key(&self, module: &str, part: Part) -> [u8; 32] {
        let text = format!("tlkit start 1\n{}\n{module}\n{}\n", self.seed, part.name());
        *Digest::of(text.as_bytes()).as_bytes()
    }

    /// The start of A or B of the given shape, with `inputs` terms in each sum it makes.
    fn start(&self, module: &str, part: Part, shape: Vec<usize>, inputs: usize) -> Result<Factor> {
        let trained = self.trained.contains(&part);
        if self.zero() == part {
            let values = vec![0.0; shape.iter().product()];
            return Ok(Factor {
                tensor: tensor::Tensor::from_f32(shape, &values)?,
                trained,
                seed: None,
            });
        }
        // Uniform with variance 1/inputs: x·Aᵀ and p·Bᵀ keep the scale of what they are made of.
        let bound = (3.0 / inputs as f64).sqrt();
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
        let first = places
            .first()
            .ok_or_else(|| Error::new(Code::Usage, "no target"))?;
        let targets: Vec<Target> = (places.iter())
            .map(|p| Target {
                module: model.module_pattern(p),
                out: p.out,
                kind: ModuleKind::Linear,
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
        let a = self.start(&name, Part::A, stacked([r, n]), n)?;
        let b = self.start(&name, Part::B, stacked([m, r]), r)?;
        let own = |part: Part, shape: Vec<usize>, start: &dyn Fn(usize) -> f32| {
            if !self.trained.contains(&part) {
                return Ok(None);
            }
            let value = |i| if self.zero() == part { 0.0 } else { start(i) };
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
                rank: r,
                in_features: n,
                scaling: Scaling {
                    alpha: self.alpha,
                    rule: ScalingRule::AlphaOverRank,
                },
                a,
                b,
                core: own(Part::C, vec![l, r, r], &identity)?,
                u: own(Part::U, vec![l, r], &ones)?,
                v: own(Part::V, vec![l, m], &ones)?,
                targets,
            },
            slot: first.slot,
            layers: layers.to_vec(),
            spans: spans(places),
        })
    }
}

impl Trainable {
    /// Lays `template` out on `model`.
    ///
    /// # Errors
    /// [`Code::Usage`] for a target, layer, rank or alpha that makes no sense on this model.
    pub fn new(template: &Template, model: &Model) -> Result<Self> {
        if template.trained.is_empty() {
            return Err(Error::new(
                Code::Usage,
                "nothing is to be trained: name some of A, B, C, u, v",
            ));
        }
        let count = model.config().layers as u32;
        let layers = match &template.layers {
            None => (0..count).collect(),
            Some(layers) => {
                let mut layers = layers.clone();
                layers.sort_unstable();
                layers.dedup();
                layers
            }
        };
        if layers.is_empty() || layers.iter().any(|l| *l >= count) {
            let message = format!(
                "layers {layers:?} of a model that has layers 0 to {}",
                count - 1
            );
            return Err(Error::new(Code::Usage, message));
        }
        let modules = model.modules();
        let chosen = model.choose_targets(&template.targets)?;
        let mut groups = Vec::new();
        for slot in Slot::ALL {
            let places: Vec<&ModulePlace> = (modules.iter())
                .filter(|p| p.layer == 0 && p.slot == slot)
                .filter(|p| chosen.contains(&p.path))
                .collect();
            if places.is_empty() {
                continue;
            }
            let width = if template.joint { places.len() } else { 1 };
            for places in places.chunks(width) {
                groups.push(template.group(model, places, &layers)?);
            }
        }
        let adapter = Adapter {
            groups: groups.iter().map(|g| g.shape.clone()).collect(),
            ..Adapter::default()
        };
        adapter.validate()?;
        Ok(Self::of_groups(groups))
    }

    pub(crate) fn of_groups(groups: Vec<Group>) -> Self {
        let params = (groups.iter().enumerate())
            .flat_map(|(g, group)| {
                let trained = group.shape.factors().filter(|(_, f)| f.trained);
                trained.map(move |(part, _)| (g, part))
            })
            .collect();
        Self { groups, params }
    }

    /// The trained tensors at their start; that of a template leaves the model the base model.
    ///
    /// # Errors
    /// None in practice: the tensors are f32.
    pub fn start(&self) -> Result<Vec<Param>> {
        (self.params.iter())
            .map(|(g, part)| {
                let factor = factor(&self.groups[*g].shape, *part).ok_or_else(mismatch)?;
                Ok(Param {
                    name: format!("{}.{}", self.groups[*g].name(), part.name()),
                    shape: factor.tensor.shape().to_vec(),
                    values: factor.tensor.to_f32()?,
                })
            })
            .collect()
    }

    /// The adapter that has the given trained tensors, rounded to `dtype`; frozen random factors
    /// stay seeds.
    ///
    /// # Errors
    /// [`Code::Usage`] for tensors that are not those of [`Trainable::start`];
    /// [`Code::DtypeNotAllowed`].
    pub fn adapter(&self, params: &[Param], dtype: Dtype) -> Result<Adapter> {
        self.check(params)?;
        let mut groups: Vec<TieGroup> = self.groups.iter().map(|g| g.shape.clone()).collect();
        for ((g, part), param) in self.params.iter().zip(params) {
            let tensor = tensor::Tensor::narrowed(dtype, param.shape.clone(), &param.values)?;
            for (_, factor) in groups[*g].factors_mut().filter(|(p, _)| p == part) {
                factor.tensor = tensor.clone();
            }
        }
        let mut adapter = Adapter {
            groups,
            ..Adapter::default()
        };
        adapter.sort();
        adapter.validate()?;
        Ok(adapter)
    }

    /// The branches of the model for the given trained tensors: Ã_l = diag(u_l)·A, or C_l·A, and
    /// B̃_l = diag(v_l)·B for each group and layer.
    ///
    /// # Errors
    /// [`Code::Usage`] as [`Trainable::adapter`], [`Code::Backend`]
    pub fn branches(&self, params: &[Param], model: &Model) -> Result<Branches> {
        self.check(params)?;
        let mut branches = Branches::none(model.config().layers);
        for (g, group) in self.groups.iter().enumerate() {
            for (i, layer) in group.layers.iter().enumerate() {
                let branch = match model.dtype() {
                    DType::F64 => self.branch::<f64>(params, g, i, model.device())?,
                    _ => self.branch::<f32>(params, g, i, model.device())?,
                };
                branches.push(*layer as usize, group.slot, branch);
            }
        }
        Ok(branches)
    }

    fn branch<T: WithDType + From<f32>>(
        &self,
        params: &[Param],
        g: usize,
        i: usize,
        device: &Device,
    ) -> Result<Branch> {
        let group = &self.groups[g];
        let (r, n, m) = (
            group.shape.rank,
            group.shape.in_features,
            group.shape.total_out(),
        );
        let [a, b] = [
            self.layer_slice(params, g, Part::A, i, r * n),
            self.layer_slice(params, g, Part::B, i, m * r),
        ];
        let trains = |parts: [Part; 2]| {
            group
                .shape
                .factors()
                .any(|(p, f)| f.trained && parts.contains(&p))
        };
        let before_a = group.before_a();
        let a = self.mix(params, g, before_a, i, r).times::<T>(a, n);
        let b = self.mix(params, g, Part::V, i, m).times::<T>(b, r);
        Ok(Branch {
            a: Tensor::from_vec(a, (r, n), device)?,
            b: Tensor::from_vec(b, (m, r), device)?,
            scale: group.shape.scaling.factor(r),
            spans: group.spans.clone(),
            wanted: [trains([Part::A, before_a]), trains([Part::B, Part::V])],
        })
    }

    /// The part's values for layer `i` of group `g`; empty where it is absent.
    fn layer_slice<'a>(
        &'a self,
        params: &'a [Param],
        g: usize,
        part: Part,
        i: usize,
        len: usize,
    ) -> &'a [f32] {
        let group = &self.groups[g];
        let values: &[f32] = match self.params.iter().position(|p| *p == (g, part)) {
            Some(index) => &params[index].values,
            None => match part {
                Part::A => &group.a,
                Part::B => &group.b,
                Part::C | Part::U | Part::V => &[],
            },
        };
        if values.len() == len {
            values
        } else {
            values.get(i * len..(i + 1) * len).unwrap_or(&[])
        }
    }

    /// What layer `i` of group `g` has before a factor of `rows` rows: `part` is C, u or v.
    fn mix<'a>(
        &'a self,
        params: &'a [Param],
        g: usize,
        part: Part,
        i: usize,
        rows: usize,
    ) -> Mix<'a> {
        match part {
            Part::C => Mix::Full(self.layer_slice(params, g, part, i, rows * rows)),
            _ => Mix::Diagonal(self.layer_slice(params, g, part, i, rows)),
        }
    }

    /// Adds to `grads` (one for each trained tensor) what `gradients` of the branches mean for A,
    /// B, C, u and v: dA += diag(u)·dÃ, du_k += Σ_j dÃ_kj·A_kj, and alike for B and v; with a core
    /// dA += Cᵀ·dÃ, dC += dÃ·Aᵀ.
    ///
    /// # Errors
    /// [`Code::Usage`] as [`Trainable::adapter`], [`Code::Backend`]
    pub fn pull_back(
        &self,
        params: &[Param],
        gradients: &mut BranchGradients,
        grads: &mut [Vec<f32>],
    ) -> Result<()> {
        self.check(params)?;
        let mut used: std::collections::BTreeMap<(u32, Slot), usize> = Default::default();
        for (g, group) in self.groups.iter().enumerate() {
            let (r, n, m) = (
                group.shape.rank,
                group.shape.in_features,
                group.shape.total_out(),
            );
            for (i, layer) in group.layers.iter().enumerate() {
                let index = used.entry((*layer, group.slot)).or_default();
                let own = gradients.take(*layer as usize, group.slot, *index);
                *index += 1;
                if let Some(d) = own.a {
                    let parts = [Part::A, group.before_a()];
                    self.pull_pair(params, g, i, parts, [r, n], &d, grads)?;
                }
                if let Some(d) = own.b {
                    self.pull_pair(params, g, i, [Part::B, Part::V], [m, r], &d, grads)?;
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn pull_pair(
        &self,
        params: &[Param],
        g: usize,
        i: usize,
        [matrix, before]: [Part; 2],
        [rows, cols]: [usize; 2],
        gradient: &Tensor,
        grads: &mut [Vec<f32>],
    ) -> Result<()> {
        let d = gradient
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let values = self.layer_slice(params, g, matrix, i, rows * cols);
        let mix = self.mix(params, g, before, i, rows);
        if let Some(to) = self.place(grads, g, matrix, i, rows * cols) {
            mix.pull_values(&d, cols, to);
        }
        let own = if before == Part::C { rows * rows } else { rows };
        if let Some(to) = self.place(grads, g, before, i, own) {
            mix.pull_own(&d, values, cols, to);
        }
        Ok(())
    }

    /// Where layer `i`'s gradient of a part goes: a tied tensor has one for all layers, a stacked
    /// one its own for each.
    fn place<'a>(
        &self,
        grads: &'a mut [Vec<f32>],
        g: usize,
        part: Part,
        i: usize,
        len: usize,
    ) -> Option<&'a mut [f32]> {
        let index = self.params.iter().position(|p| *p == (g, part))?;
        let all = grads.get_mut(index)?;
        match all.len() == len {
            true => Some(all),
            false => all.get_mut(i * len..(i + 1) * len),
        }
    }

    fn check(&self, params: &[Param]) -> Result<()> {
        let fits = params.len() == self.params.len()
            && (self.params.iter().zip(params)).all(|((g, part), param)| {
                factor(&self.groups[*g].shape, *part).is_some_and(|f| {
                    f.tensor.shape() == param.shape && f.tensor.len() == param.values.len()
                })
            });
        if fits { Ok(()) } else { Err(mismatch()) }
    }
}

impl Group {
    /// What this group has before A where it has anything.
    fn before_a(&self) -> Part {
        match self.shape.core {
            Some(_) => Part::C,
            None => Part::U,
        }
    }

    fn name(&self) -> String {
        let short = |t: &Target| t.module.rsplit('.').next().unwrap_or_default().to_owned();
        self.shape
            .targets
            .iter()
            .map(short)
            .collect::<Vec<_>>()
            .join("+")
    }
}

fn factor(group: &TieGroup, part: Part) -> Option<&Factor> {
    group.factors().find(|(p, _)| *p == part).map(|(_, f)| f)
}

fn mismatch() -> Error {
    Error::new(
        Code::Usage,
        "the trained tensors are not those of this template",
    )
}

impl Model {
    /// A module's path with `{}` for the layer's number.
    fn module_pattern(&self, place: &ModulePlace) -> String {
        let prefix = self.config().family.layer_prefix();
        let number = prefix.replacen(LAYER_PLACE, &place.layer.to_string(), 1);
        match place.path.strip_prefix(&number) {
            Some(rest) => format!("{prefix}{rest}"),
            None => place.path.clone(),
        }
    }
}
