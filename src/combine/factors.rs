//! Methods on A and B apart, as PEFT's: each weighted with √(|w|·s), and A with the sign of w too.
//!
//! (Σ √w_i B_i)·(Σ √w_i A_i) has products of one adapter's B with another's A, and is not Σ w_i B_i·A_i.

use super::classes::{Class, Member};
use super::elementwise::{Elementwise, Update};
use super::input::CombineInput;
use crate::adapter::{Factor, Scaling, TieGroup};
use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// The factors of a class, which is of one module, or tied over layers without u, v and core.
///
/// # Errors
/// [`Code::AdaptersConflict`] where the adapters have other ranks.
pub(super) fn of_factors(
    class: &Class,
    inputs: &[CombineInput],
    method: &Elementwise,
) -> Result<TieGroup> {
    let first = &class.members[0].group;
    let name = first.module_path(&first.targets[0], 0);
    if let Some(other) = class.members.iter().find(|m| m.group.rank != first.rank) {
        let one = &inputs[class.members[0].input].label;
        let message = format!(
            "rank {} in `{one}`, {} in `{}`, and this method adds A to A and B to B",
            first.rank, other.group.rank, inputs[other.input].label
        );
        return Err(Error::new(Code::AdaptersConflict, message)
            .tensor(name)
            .hint("use `cat` or `svd`, or the method of the same name that ends in `-svd`"));
    }
    let instances = match first.is_tied() && first.experts.is_none() {
        true => 1,
        false => first.instances(),
    };
    let (r, n, m) = (first.rank, first.in_features, first.total_out());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for instance in 0..instances {
        let expert = match first.experts {
            Some(_) => format!("{name}[{instance}]"),
            None => name.clone(),
        };
        let right = |m: &Member| m.group.right(instance);
        a.extend(method.apply(&format!("{expert}.A"), n, updates(class, right, true)?)?);
        let left = class.members.iter().map(|m| m.group.left(instance));
        let left: Vec<Vec<f32>> = left.collect::<Result<_>>()?;
        let mut row = 0;
        for target in &first.targets {
            let rows = row * r..(row + target.out) * r;
            row += target.out;
            let of = left.iter().map(|l| l[rows.clone()].to_vec());
            let label = match first.experts {
                Some(_) => expert.clone(),
                None => first.module_path(target, 0),
            };
            let own = weighted(class, of, false);
            b.extend(method.apply(&format!("{label}.B"), r, own)?);
        }
    }
    let shape = |own: [usize; 2]| match first.experts {
        Some(_) => [&[instances], &own[..]].concat(),
        None => own.to_vec(),
    };
    Ok(TieGroup {
        scaling: Scaling::one(r),
        a: Factor::trained(Tensor::from_f32(shape([r, n]), &a)?),
        b: Factor::trained(Tensor::from_f32(shape([m, r]), &b)?),
        core: None,
        u: None,
        v: None,
        ..first.clone()
    })
}

fn updates(
    class: &Class,
    values: impl Fn(&Member) -> Result<Vec<f32>>,
    signed: bool,
) -> Result<Vec<Update>> {
    let values: Vec<Vec<f32>> = class.members.iter().map(values).collect::<Result<_>>()?;
    Ok(weighted(class, values.into_iter(), signed))
}

fn weighted(class: &Class, values: impl Iterator<Item = Vec<f32>>, signed: bool) -> Vec<Update> {
    let update = |(member, values): (&Member, Vec<f32>)| {
        let scale = member.scale();
        let root = scale.abs().sqrt() as f32;
        Update {
            input: member.input,
            weight: if signed && scale < 0.0 { -root } else { root },
            values,
        }
    };
    class.members.iter().zip(values).map(update).collect()
}
