//! Factors side by side: Σ w_i B_i·A_i = [B_1 B_2 …]·[w_1 A_1; w_2 A_2; …].
//!
//! Where members are tied over layers the result is, if they have no v or the same: u's stand side by side as A's
//! rows do, cores on a diagonal. With different v each layer gets a B of its own, with v inside, and A stays common.

use super::classes::Member;
use crate::adapter::{Factor, MAX_RANK, Scaling, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::{Dtype, Tensor};

/// What becomes of the numbers of A and B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// They stay as they are, in their own type; weights go into u where they would be rounded with them.
    Kept,
    /// F32, with weights, u and cores in A, as a plain LoRA.
    Plain,
}

/// The sum of members that have the same targets, layers and experts, at the sum of their ranks.
///
/// # Errors
/// [`Code::ManifestLimit`] above [`MAX_RANK`]; those of [`TieGroup::low_rank`].
pub(super) fn join(members: &[Member], numbers: Numbers) -> Result<TieGroup> {
    let joined = Joined::of(members)?;
    if let Some(group) = joined.over_one_a()? {
        return Ok(group);
    }
    let all = |is: fn(&TieGroup) -> bool| members.iter().all(|m| is(&m.group));
    let wide = all(|g| [&g.a, &g.b].iter().all(|f| f.tensor.dtype() == Dtype::F32));
    let without = all(|g| g.u.is_none() && g.core.is_none());
    let plain = numbers == Numbers::Plain || (wide && joined.instances == 1);
    let (b, v) = joined.outputs(plain)?;
    let empty = TieGroup {
        rank: joined.rank,
        scaling: Scaling::one(joined.rank),
        b,
        core: None,
        u: None,
        v,
        ..members[0].group.clone()
    };
    if plain || (wide && without) {
        let a = joined.inputs(!without)?;
        return Ok(TieGroup { a, ..empty });
    }
    let a = joined.inputs_as_they_are()?;
    match all(|g| g.core.is_none()) {
        true => Ok(TieGroup {
            a,
            u: Some(joined.vectors()?),
            ..empty
        }),
        false => Ok(TieGroup {
            a,
            core: Some(joined.cores()?),
            ..empty
        }),
    }
}

struct Joined<'m> {
    members: &'m [Member],
    rank: usize,
    n: usize,
    m: usize,
    instances: usize,
}

impl<'m> Joined<'m> {
    fn of(members: &'m [Member]) -> Result<Self> {
        let first = &members[0].group;
        let rank: usize = members.iter().map(|m| m.group.rank).sum();
        if rank > MAX_RANK {
            let message = format!("the ranks add up to {rank}, the limit is {MAX_RANK}");
            let module = first.module_path(&first.targets[0], 0);
            return Err(Error::new(Code::ManifestLimit, message).tensor(module));
        }
        Ok(Self {
            members,
            rank,
            n: first.in_features,
            m: first.total_out(),
            instances: first.instances(),
        })
    }

    /// A leading axis of one entry for each instance.
    fn stacked(&self, own: [usize; 2]) -> Vec<usize> {
        match self.members[0].group.experts.is_some() || self.instances > 1 {
            true => [&[self.instances], &own[..]].concat(),
            false => own.to_vec(),
        }
    }

    /// Where all have one A, and each instance has a B of its own anyway: Σ w_i B_i·diag(u_i), at no higher rank.
    fn over_one_a(&self) -> Result<Option<TieGroup>> {
        let first = &self.members[0].group;
        let one_a = |g: &TieGroup| {
            let same = g.rank == first.rank && g.a.tensor.same_bytes(&first.a.tensor);
            same && g.core.is_none()
        };
        let each = self.instances == 1 || !has_common_v(self.members);
        if !each || self.members.len() == 1 || !self.members.iter().all(|m| one_a(&m.group)) {
            return Ok(None);
        }
        let (r, mut values) = (first.rank, Vec::new());
        for instance in 0..self.instances {
            let mut sum = vec![0.0f64; self.m * r];
            for member in self.members {
                let (scale, u) = (member.scale(), member.group.own_u(instance)?);
                let u = u.unwrap_or_else(|| vec![1.0; r]);
                for (to, row) in sum
                    .chunks_exact_mut(r)
                    .zip(member.group.left(instance)?.chunks_exact(r))
                {
                    for ((to, b), u) in to.iter_mut().zip(row).zip(&u) {
                        *to += scale * f64::from(*b) * f64::from(*u);
                    }
                }
            }
            values.extend(sum.iter().map(|b| *b as f32));
        }
        let b = Tensor::from_f32(self.stacked([self.m, r]), &values)?;
        Ok(Some(TieGroup {
            scaling: Scaling::one(r),
            b: Factor::trained(b),
            u: None,
            v: None,
            ..first.clone()
        }))
    }

    /// A' of all members below one another, with the weights inside: one for all instances, or for each.
    fn inputs(&self, each: bool) -> Result<Factor> {
        let scaled = |member: &Member, instance: usize| {
            let (scale, right) = (member.scale(), member.group.right(instance)?);
            let scaled = right.iter().map(|a| (scale * f64::from(*a)) as f32);
            Ok(scaled.collect())
        };
        let (shape, values) = self.below(each, scaled)?;
        Ok(self.factor(Tensor::from_f32(shape, &values)?, |g| g.a.trained))
    }

    /// A of all members below one another, in the narrowest type that holds all.
    fn inputs_as_they_are(&self) -> Result<Factor> {
        let own = |member: &Member, instance: usize| member.group.inputs(instance);
        let (shape, values) = self.below(false, own)?;
        let tensor = Tensor::narrowed(self.common(|g| &g.a), shape, &values)?;
        Ok(self.factor(tensor, |g| g.a.trained))
    }

    /// The rows of all members below one another, for `each` instance, or for all where no A is an instance's own.
    fn below(
        &self,
        each: bool,
        rows: impl Fn(&Member, usize) -> Result<Vec<f32>>,
    ) -> Result<(Vec<usize>, Vec<f32>)> {
        let mut members = self.members.iter();
        let each = each || members.any(|m| m.group.a.tensor.shape().len() == 3);
        let instances = if each { self.instances } else { 1 };
        let mut values = Vec::with_capacity(instances * self.rank * self.n);
        for instance in 0..instances {
            for member in self.members {
                values.extend(rows(member, instance)?);
            }
        }
        let shape = match each {
            true => self.stacked([self.rank, self.n]),
            false => vec![self.rank, self.n],
        };
        Ok((shape, values))
    }

    /// B of all members side by side, and the v that they have in common; `plain`, or with different v, each instance's
    /// own, with v inside.
    fn outputs(&self, plain: bool) -> Result<(Factor, Option<Factor>)> {
        let first = self.members[0].group.v.as_ref();
        let common = has_common_v(self.members) && !(plain && first.is_some());
        let each = !common
            || self
                .members
                .iter()
                .any(|m| m.group.b.tensor.shape().len() == 3);
        let instances = if each { self.instances } else { 1 };
        let mut values = vec![0.0; instances * self.m * self.rank];
        let mut column = 0;
        for member in self.members {
            let r = member.group.rank;
            for instance in 0..instances {
                let own = match common {
                    true => member.group.outputs(instance)?,
                    false => member.group.left(instance)?,
                };
                let place = instance * self.m * self.rank;
                for (i, row) in own.chunks_exact(r).enumerate() {
                    let to = place + i * self.rank + column;
                    values[to..to + r].copy_from_slice(row);
                }
            }
            column += r;
        }
        let shape = match each {
            true => self.stacked([self.m, self.rank]),
            false => vec![self.m, self.rank],
        };
        let dtype = match common && !plain {
            true => self.common(|g| &g.b),
            false => Dtype::F32,
        };
        let b = self.factor(Tensor::narrowed(dtype, shape, &values)?, |g| g.b.trained);
        Ok((b, common.then(|| first.cloned()).flatten()))
    }

    /// u of all members side by side, with the weights inside.
    fn vectors(&self) -> Result<Factor> {
        let mut values = Vec::with_capacity(self.instances * self.rank);
        for instance in 0..self.instances {
            for member in self.members {
                let (scale, r) = (member.scale(), member.group.rank);
                let own = member
                    .group
                    .own_u(instance)?
                    .unwrap_or_else(|| vec![1.0; r]);
                values.extend(own.iter().map(|u| (scale * f64::from(*u)) as f32));
            }
        }
        let shape = self.with_axis(vec![self.rank]);
        Ok(Factor::trained(Tensor::from_f32(shape, &values)?))
    }

    /// The cores of all members on a diagonal, with the weights inside.
    fn cores(&self) -> Result<Factor> {
        let size = self.rank * self.rank;
        let mut values = vec![0.0; self.instances * size];
        for (instance, to) in values.chunks_exact_mut(size).enumerate() {
            let mut at = 0;
            for member in self.members {
                let (scale, r) = (member.scale(), member.group.rank);
                let core = member.group.own_core(instance)?;
                let u = member.group.own_u(instance)?;
                for i in 0..r {
                    for j in 0..r {
                        let own = match (&core, &u) {
                            (Some(core), _) => core[i * r + j],
                            (None, _) if i != j => 0.0,
                            (None, Some(u)) => u[i],
                            (None, None) => 1.0,
                        };
                        to[(at + i) * self.rank + at + j] = (scale * f64::from(own)) as f32;
                    }
                }
                at += r;
            }
        }
        let shape = self.with_axis(vec![self.rank, self.rank]);
        Ok(Factor::trained(Tensor::from_f32(shape, &values)?))
    }

    /// The shape of a vector or core, which has the instances' axis wherever there is one.
    fn with_axis(&self, own: Vec<usize>) -> Vec<usize> {
        let group = &self.members[0].group;
        match group.layers.is_some() || group.experts.is_some() {
            true => [vec![self.instances], own].concat(),
            false => own,
        }
    }

    /// The type that holds the numbers of a factor of every member.
    fn common(&self, pick: fn(&TieGroup) -> &Factor) -> Dtype {
        let first = pick(&self.members[0].group).tensor.dtype();
        let same = self
            .members
            .iter()
            .all(|m| pick(&m.group).tensor.dtype() == first);
        if same && first.is_float() {
            first
        } else {
            Dtype::F32
        }
    }

    fn factor(&self, tensor: Tensor, trained: fn(&TieGroup) -> bool) -> Factor {
        Factor {
            tensor,
            trained: self.members.iter().any(|m| trained(&m.group)),
            seed: None,
        }
    }
}

/// Whether all members have the same v, or none.
pub(super) fn has_common_v(members: &[Member]) -> bool {
    let first = members.first().and_then(|m| m.group.v.as_ref());
    members.iter().all(|m| match (first, &m.group.v) {
        (None, None) => true,
        (Some(one), Some(two)) => one.tensor.same_bytes(&two.tensor),
        _ => false,
    })
}
