//! Plans of a merge by a method: whether what is asked for goes together, and what becomes of whole tensors.

use super::method::MergeMethod;
use super::plan::{Addition, TensorPlan};
use super::request::{MergeInput, PlanOptions};
use crate::adapter::{Extra, ExtraRole};
use crate::blend::Sparsify;
use crate::error::{Code, Error, Result};

/// Fails where what is asked for does not go together, or an adapter has a density and there is no method.
pub(super) fn check(options: &PlanOptions, inputs: &[MergeInput]) -> Result<()> {
    match &options.method {
        Some(method) => check_method(method, inputs),
        None if inputs.iter().any(|i| i.density.is_some()) => {
            let message = "a density has no meaning where updates are merely added";
            Err(Error::new(Code::Usage, message).hint("choose a merge method"))
        }
        None => Ok(()),
    }
}

/// Fails where the base has nothing, or something of another shape, that a tensor of an adapter could be the
/// difference from.
pub(super) fn check_base(options: &PlanOptions, code: Code, tensor: &str) -> Result<()> {
    if options.method.is_none() {
        return Ok(());
    }
    let what = match code {
        Code::BaseShape => "the adapter has another number of rows than the base",
        _ => "the base has no such tensor",
    };
    let message = format!("{what}, and so no update that a method could merge");
    Err(Error::new(code, message)
        .tensor(tensor)
        .hint("merge this adapter first, without a method, and the others into the result"))
}

/// Plans a tensor that an adapter brings whole: its difference from the base's is the update.
pub(super) fn add_whole(
    tensor: &mut TensorPlan,
    inputs: &[MergeInput],
    (index, e): (usize, usize),
) -> Result<()> {
    let extra = &inputs[index].adapter.extras[e];
    let earlier = tensor.additions.iter().find_map(|a| match a {
        Addition::Whole { input, extra } if *input == index => Some(*extra),
        _ => None,
    });
    match earlier {
        None => {
            let extra = e;
            tensor.additions.push(Addition::Whole {
                input: index,
                extra,
            });
            Ok(())
        }
        // Two names of one adapter that are one tensor in the model.
        Some(first) => same_embeddings(&inputs[index].adapter.extras[first], extra),
    }
}

/// Fails where two names of one adapter, which are one tensor in the model, have unlike values.
pub(super) fn same_embeddings(first: &Extra, second: &Extra) -> Result<()> {
    if first.tensor.same_bytes(&second.tensor) {
        return Ok(());
    }
    let message =
        "the adapter holds different input and output embeddings, which a tied model cannot";
    Err(Error::new(Code::TiedEmbedding, message)
        .tensor(&second.name)
        .hint("choose the policy `untie` for tied embeddings"))
}

/// What replaces or normalises weights cannot be scaled as a whole, but by a method, which scales its
/// difference from the base.
pub(super) fn check_whole(input: &MergeInput, options: &PlanOptions) -> Result<()> {
    if input.weight == 1.0 || options.method.is_some() {
        return Ok(());
    }
    let replaces = |e: &&Extra| !matches!(e.role, ExtraRole::AddBias(..));
    let what = match input.adapter.extras.iter().find(replaces) {
        Some(extra) => format!("replaces `{}`", extra.name),
        None if !input.magnitudes.is_empty() => "is a DoRA".to_owned(),
        None => return Ok(()),
    };
    let message = format!(
        "`{}` {what}, so that it has no meaning with weight {}",
        input.label, input.weight
    );
    Err(Error::new(Code::Usage, message))
}

fn check_method(method: &MergeMethod, inputs: &[MergeInput]) -> Result<()> {
    let recipe = method.recipe();
    let refuse = |message: String| Err(Error::new(Code::Usage, message));
    let thins = recipe.sparsify != Sparsify::None;
    let with_density = inputs.iter().any(|i| i.density.is_some()) || method.density.is_some();
    let unused = [
        ("density", with_density && !thins),
        ("rescaling", method.rescale.is_some() && !thins),
        (
            "seed",
            method.seed.is_some() && !recipe.sparsify.is_random(),
        ),
        (
            "election of signs",
            method.sign.is_some() && recipe.election.is_none(),
        ),
        (
            "gamma",
            method.gamma.is_some() && !matches!(recipe.sparsify, Sparsify::Outliers { .. }),
        ),
        (
            "epsilon",
            method.epsilon.is_some() && !matches!(recipe.sparsify, Sparsify::Ranked { .. }),
        ),
    ];
    if let Some((what, _)) = unused.iter().find(|(_, unused)| *unused) {
        return refuse(format!("the method `{}` has no {what}", method.method));
    }
    if !recipe.lambda.is_finite() {
        return refuse(format!(
            "lambda {} is not a number to scale by",
            method.lambda
        ));
    }
    for input in inputs {
        if !(input.weight as f32).is_finite() {
            let message = format!("weight {} is not a number to scale by", input.weight);
            return refuse(message);
        }
        if !thins {
            continue;
        }
        let Some(density) = input.density.or(method.density) else {
            let message = format!(
                "the method `{}` drops elements of each update, and no density says how many stay",
                method.method
            );
            return Err(Error::new(Code::Usage, message)
                .hint("give a density above 0 and at most 1, which keeps all"));
        };
        recipe.check(density)?;
    }
    Ok(())
}
