//! A merge by a method, as the command line asks for it.

use tlkit::merge::{MergeInput, MergeMethod, MethodReport};
use tlkit::{Code, Error, Result};

use crate::command::args::ByMethod;
use crate::command::output::number;

/// What is asked for; gives adapters a density of their own where each has one.
pub(super) fn method(args: &ByMethod, inputs: &mut [MergeInput]) -> Result<Option<MergeMethod>> {
    let Some(method) = args.method else {
        return Ok(None);
    };
    let mut asked = MergeMethod::new(method);
    match &args.density[..] {
        [] => {}
        [all] => asked.density = Some(*all),
        each if each.len() == inputs.len() => {
            for (input, density) in inputs.iter_mut().zip(each) {
                input.density = Some(*density);
            }
        }
        each => {
            let message = format!("{} densities for {} adapters", each.len(), inputs.len());
            return Err(Error::new(Code::Usage, message)
                .hint("give one for all, or one for each, in their order"));
        }
    }
    asked.seed = args.seed;
    asked.rescale = args.rescale;
    asked.sign = args.sign_method;
    asked.normalize = args.normalize;
    asked.lambda = args.lambda.unwrap_or(1.0);
    asked.gamma = args.gamma;
    asked.epsilon = args.epsilon;
    Ok(Some(asked))
}

/// A method in one line, with what it leaves to nobody.
pub(super) fn text(report: &MethodReport) -> String {
    let mut parts = vec![report.name.to_string()];
    parts.extend(report.seed.map(|seed| format!("seed {seed}")));
    parts.extend(report.rescale.map(|by| format!("rescaled by {by}")));
    parts.extend(report.sign_method.map(|by| format!("signs by {by}")));
    parts.extend(
        report
            .normalize
            .then(|| "divided by the weights".to_owned()),
    );
    if report.lambda != 1.0 {
        parts.push(format!("lambda {}", number(f64::from(report.lambda))));
    }
    parts.extend(report.gamma.map(|x| format!("gamma {x}")));
    parts.extend(report.epsilon.map(|x| format!("epsilon {x}")));
    parts.join(", ")
}
