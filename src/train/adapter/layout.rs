//! An adapter in training: its trained tensors, the branches they make, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, WithDType};

use super::group::Group;
use super::left::LeftFactor;
use crate::adapter::{Adapter, FactorName, TieGroup};
use crate::error::{Code, Error, Result};
use crate::model::ops::Branch;
use crate::model::{BranchGradients, Branches, Model, Slot};
use crate::tensor::{self, Dtype};
use crate::train::params::Param;

/// An adapter in training on a given model: its tie groups, and where each meets the model.
#[derive(Debug)]
pub struct TrainingAdapter {
    groups: Vec<Group>,
    /// For each trained tensor in order: its group, its name.
    params: Vec<(usize, FactorName)>,
}

/// One layer of a group, for given values of the trained tensors.
#[derive(Clone, Copy)]
struct Layer<'a> {
    adapter: &'a TrainingAdapter,
    params: &'a [Param],
    group: usize,
    /// Among the layers of the group.
    index: usize,
}

impl TrainingAdapter {
    pub(super) fn of_groups(groups: Vec<Group>) -> Self {
        let params = (groups.iter().enumerate())
            .flat_map(|(g, group)| {
                let trained = group.shape.factors().filter(|(_, f)| f.trained);
                trained.map(move |(name, _)| (g, name))
            })
            .collect();
        Self { groups, params }
    }

    /// The trained tensors at their start; that of a spec leaves the model the base model.
    ///
    /// # Errors
    /// None in practice: the tensors are f32.
    pub fn start(&self) -> Result<Vec<Param>> {
        // GPT-2 calls two modules of a layer `c_proj`.
        let names = |parts| self.groups.iter().map(move |g| g.name(parts));
        let distinct: BTreeSet<String> = names(1).collect();
        let parts = if distinct.len() == self.groups.len() {
            1
        } else {
            2
        };
        (self.params.iter())
            .map(|(g, name)| {
                let group = &self.groups[*g];
                let factor = group.factor(*name).ok_or_else(mismatch)?;
                Ok(Param {
                    name: format!("{}.{}", group.name(parts), name.name()),
                    shape: factor.tensor.shape().to_vec(),
                    values: factor.tensor.to_f32()?,
                })
            })
            .collect()
    }

    /// What multiplies the learning rate of each trained tensor where that of B, u and v is `ratio` times
    /// that of A and C: the groups of PEFT's `create_loraplus_optimizer`.
    pub fn rates(&self, ratio: f64) -> Vec<f64> {
        let rate = |(_, name): &(usize, FactorName)| match name {
            FactorName::A | FactorName::C => 1.0,
            FactorName::B | FactorName::U | FactorName::V => ratio,
        };
        self.params.iter().map(rate).collect()
    }

    /// The adapter that has the given trained tensors, rounded to `dtype`; frozen random factors
    /// stay seeds.
    ///
    /// # Errors
    /// [`Code::Usage`] for tensors that are not those of [`TrainingAdapter::start`];
    /// [`Code::DtypeNotAllowed`].
    pub fn adapter(&self, params: &[Param], dtype: Dtype) -> Result<Adapter> {
        self.check(params)?;
        let mut groups: Vec<TieGroup> = self.groups.iter().map(|g| g.shape.clone()).collect();
        for ((g, name), param) in self.params.iter().zip(params) {
            let tensor = tensor::Tensor::narrowed(dtype, param.shape.clone(), &param.values)?;
            for (_, factor) in groups[*g].factors_mut().filter(|(n, _)| n == name) {
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
    /// [`Code::Usage`] as [`TrainingAdapter::adapter`], [`Code::Backend`]
    pub fn branches(&self, params: &[Param], model: &Model) -> Result<Branches> {
        self.check(params)?;
        let mut branches = Branches::none(model.config().layers);
        for layer in self.layers(params) {
            let branch = match model.dtype() {
                DType::F64 => layer.branch::<f64>(model.device())?,
                _ => layer.branch::<f32>(model.device())?,
            };
            branches.push(layer.number() as usize, layer.group().slot, branch);
        }
        Ok(branches)
    }

    /// Adds to `grads` (one for each trained tensor) what `gradients` of the branches mean for A,
    /// B, C, u and v: dA += diag(u)·dÃ, du_k += Σ_j dÃ_kj·A_kj, and alike for B and v; with a core
    /// dA += Cᵀ·dÃ, dC += dÃ·Aᵀ.
    ///
    /// # Errors
    /// [`Code::Usage`] as [`TrainingAdapter::adapter`], [`Code::Backend`]
    pub fn pull_back(
        &self,
        params: &[Param],
        gradients: &mut BranchGradients,
        grads: &mut [Vec<f32>],
    ) -> Result<()> {
        self.check(params)?;
        let mut used: BTreeMap<(u32, Slot), usize> = BTreeMap::new();
        for layer in self.layers(params) {
            let (number, slot) = (layer.number(), layer.group().slot);
            let index = used.entry((number, slot)).or_default();
            let own = gradients.take(number as usize, slot, *index);
            *index += 1;
            for (name, gradient) in [(FactorName::A, own.a), (FactorName::B, own.b)] {
                if let Some(gradient) = gradient {
                    layer.pull_back(name, &gradient, grads)?;
                }
            }
        }
        Ok(())
    }

    /// Every layer of every group, in order.
    fn layers<'a>(&'a self, params: &'a [Param]) -> impl Iterator<Item = Layer<'a>> {
        let sizes = self.groups.iter().map(|g| g.layers.len()).enumerate();
        sizes.flat_map(move |(group, count)| {
            (0..count).map(move |index| Layer {
                adapter: self,
                params,
                group,
                index,
            })
        })
    }

    fn param(&self, group: usize, name: FactorName) -> Option<usize> {
        self.params.iter().position(|p| *p == (group, name))
    }

    fn check(&self, params: &[Param]) -> Result<()> {
        let fits = params.len() == self.params.len()
            && (self.params.iter().zip(params)).all(|((g, name), param)| {
                self.groups[*g].factor(*name).is_some_and(|f| {
                    f.tensor.shape() == param.shape && f.tensor.len() == param.values.len()
                })
            });
        if fits { Ok(()) } else { Err(mismatch()) }
    }
}

impl<'a> Layer<'a> {
    fn group(&self) -> &'a Group {
        &self.adapter.groups[self.group]
    }

    /// The layer of the model.
    fn number(&self) -> u32 {
        self.group().layers[self.index]
    }

    /// The layer's values of a factor; empty where it is absent.
    fn values(&self, name: FactorName) -> &'a [f32] {
        let group = self.group();
        let all: &[f32] = match self.adapter.param(self.group, name) {
            Some(index) => &self.params[index].values,
            None => match name {
                FactorName::A => &group.a,
                FactorName::B => &group.b,
                FactorName::C | FactorName::U | FactorName::V => &[],
            },
        };
        all.get(group.range(name, self.index)).unwrap_or(&[])
    }

    /// What stands before A or B.
    fn left_of(&self, name: FactorName) -> LeftFactor<'a> {
        match self.group().left_of(name) {
            FactorName::C => LeftFactor::Full(self.values(FactorName::C)),
            diagonal => LeftFactor::Diagonal(self.values(diagonal)),
        }
    }

    fn branch<T: WithDType + From<f32>>(&self, device: &Device) -> Result<Branch> {
        let group = self.group();
        let trains = |name| group.factor(name).is_some_and(|f| f.trained);
        let wanted = |name| trains(name) || trains(group.left_of(name));
        let product = |name| {
            let [rows, cols] = group.size(name);
            let values = self.left_of(name).times::<T>(self.values(name), cols);
            Tensor::from_vec(values, (rows, cols), device)
        };
        Ok(Branch {
            a: product(FactorName::A)?,
            b: product(FactorName::B)?,
            scale: group.shape.scaling.factor(group.shape.rank),
            spans: group.spans.clone(),
            wanted: [wanted(FactorName::A), wanted(FactorName::B)],
        })
    }

    /// Adds to `grads` what the gradient of A or B with what stands before it means for either.
    fn pull_back(&self, name: FactorName, gradient: &Tensor, grads: &mut [Vec<f32>]) -> Result<()> {
        let gradient = gradient.to_dtype(DType::F32)?.flatten_all()?;
        let gradient = gradient.to_vec1::<f32>()?;
        let [_, cols] = self.group().size(name);
        let left = self.left_of(name);
        if let Some(to) = self.gradient(name, grads) {
            left.add_right_gradient(&gradient, cols, to);
        }
        if let Some(to) = self.gradient(self.group().left_of(name), grads) {
            left.add_left_gradient(&gradient, self.values(name), cols, to);
        }
        Ok(())
    }

    /// Where the layer's gradient of a factor goes, if the factor trains.
    fn gradient<'g>(&self, name: FactorName, grads: &'g mut [Vec<f32>]) -> Option<&'g mut [f32]> {
        let index = self.adapter.param(self.group, name)?;
        let range = self.group().range(name, self.index);
        grads.get_mut(index)?.get_mut(range)
    }
}

fn mismatch() -> Error {
    let message = "the trained tensors are not those of this adapter";
    Error::new(Code::Usage, message)
}
