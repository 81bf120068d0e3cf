//! Groups that differ in one factor: ΔW is linear in each, so that one adds, at no higher rank.

use super::classes::{Member, factor_of};
use crate::adapter::{Factor, FactorName, Scaling, TieGroup};
use crate::error::Result;
use crate::tensor::Tensor;

/// Members of which no two are equal but for one factor.
///
/// # Errors
/// Those of [`Tensor::to_f32`].
pub(super) fn summed(members: Vec<Member>) -> Result<Vec<Member>> {
    let mut out: Vec<Member> = Vec::with_capacity(members.len());
    for member in members {
        let at = |m: &Member| only_difference(&m.group, &member.group);
        let found = out.iter().enumerate().find_map(|(i, m)| Some((i, at(m)?)));
        match found {
            None => out.push(member),
            Some((i, difference)) => out[i] = sum(&out[i], &member, difference)?,
        }
    }
    Ok(out)
}

/// How two groups of one class differ.
#[derive(Clone, Copy)]
enum Difference {
    None,
    In(FactorName),
}

/// `None` where they differ in several factors, or in where they have one.
fn only_difference(one: &TieGroup, two: &TieGroup) -> Option<Difference> {
    if one.rank != two.rank {
        return None;
    }
    let mut difference = Difference::None;
    for name in FactorName::ALL {
        let same = match (factor_of(one, name), factor_of(two, name)) {
            (None, None) => true,
            (Some(one), Some(two)) => one.tensor.same_bytes(&two.tensor),
            // Ones where there is none.
            _ if name == FactorName::U && one.core.is_none() && two.core.is_none() => false,
            _ => return None,
        };
        match (same, difference) {
            (true, _) => {}
            (false, Difference::None) => difference = Difference::In(name),
            (false, Difference::In(_)) => return None,
        }
    }
    match difference {
        Difference::In(name) if !fits(one, two, name) => None,
        other => Some(other),
    }
}

/// Whether the factor has one shape in both, padding of A and B aside.
fn fits(one: &TieGroup, two: &TieGroup, name: FactorName) -> bool {
    match (factor_of(one, name), factor_of(two, name)) {
        (Some(one), Some(two)) => one.tensor.shape() == two.tensor.shape(),
        _ => one.layers.is_some() && one.experts.is_none(),
    }
}

fn sum(one: &Member, two: &Member, difference: Difference) -> Result<Member> {
    let (first, second) = (one.scale(), two.scale());
    let Difference::In(name) = difference else {
        // The same update twice: the weights add, over the first one's scaling.
        let scaling = one.group.scaling.factor(one.group.rank);
        return Ok(Member {
            weight: (first + second) / scaling,
            ..one.clone()
        });
    };
    let shape = [one, two]
        .iter()
        .find_map(|m| factor_of(&m.group, name))
        .map(|f| f.tensor.shape().to_vec())
        .unwrap_or_default();
    let len: usize = shape.iter().product();
    let values = |m: &Member| match factor_of(&m.group, name) {
        Some(factor) => factor.tensor.to_f32(),
        None => Ok(vec![1.0; len]),
    };
    let total: Vec<f32> = values(one)?
        .iter()
        .zip(values(two)?)
        .map(|(x, y)| (first * f64::from(*x) + second * f64::from(y)) as f32)
        .collect();
    let factor = Factor::trained(Tensor::from_f32(shape, &total)?);
    let mut group = TieGroup {
        scaling: Scaling::one(one.group.rank),
        ..one.group.clone()
    };
    match name {
        FactorName::A => group.a = factor,
        FactorName::B => group.b = factor,
        FactorName::C => group.core = Some(factor),
        FactorName::U => group.u = Some(factor),
        FactorName::V => group.v = Some(factor),
    }
    Ok(Member {
        weight: 1.0,
        group,
        ..one.clone()
    })
}
