//! `target_parameters`: LoRA on parameters themselves (PEFT's `ParamWrapper`), as fused experts need it.
//!
//! Of a parameter of E experts `lora_A` is (E · r, in), expert by expert, and `lora_B` (out, r · E), rank by
//! rank: column `k * E + e` is column k of expert e. Wrappers of several parameters of one module are
//! nested, and their names tell only how deep.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Code, Error, Result};
use crate::tensor::Tensor;

/// What a wrapped module is called inside its wrapper.
const INNER: &str = ".base_layer";

/// Parameters in the order in which the modules of transformers define them, which is the order in
/// which PEFT wraps them: the first is the innermost.
const ORDER: &[&str] = &[
    "gate_proj",
    "gate_up_proj",
    "gate_up_proj_bias",
    "up_proj",
    "down_proj",
    "down_proj_bias",
    "w1",
    "v1",
    "w2",
];

/// The parameters that a list of PEFT's `target_parameters` means.
#[derive(Debug, Clone, Copy)]
pub(super) struct TargetParameters<'c>(pub(super) &'c [String]);

impl TargetParameters<'_> {
    /// Names of the parameters of a module that are listed: whole, or by their ends.
    fn of_module(&self, module: &str) -> BTreeSet<String> {
        let own = |target: &String| {
            let (end, parameter) = target.rsplit_once('.').unwrap_or(("", target));
            let before = module.strip_suffix(end);
            let is_end =
                end.is_empty() || before.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            is_end.then(|| parameter.to_owned())
        };
        self.0.iter().filter_map(own).collect()
    }

    /// Whether the parameter of this name is listed.
    pub(super) fn lists(&self, name: &str) -> bool {
        let split = name.rsplit_once('.');
        split.is_some_and(|(module, parameter)| self.of_module(module).contains(parameter))
    }

    /// The parameter that each wrapper is of, by the wrapper's path. A path that is none of a wrapper of
    /// a listed parameter is left out. `exists` tells whether the base has a parameter, where that is known.
    ///
    /// # Errors
    /// [`Code::UnsupportedTargetParameters`] where wrappers and listed parameters are not as many, or
    /// nobody knows their order.
    pub(super) fn of_wrappers<'p>(
        &self,
        paths: impl Iterator<Item = &'p str>,
        exists: impl Fn(&str) -> Option<bool>,
    ) -> Result<BTreeMap<&'p str, String>> {
        let mut modules: BTreeMap<&str, BTreeMap<usize, &str>> = BTreeMap::new();
        for path in paths {
            let (module, depth) = unwrapped(path);
            modules.entry(module).or_default().insert(depth, path);
        }
        let mut out = BTreeMap::new();
        for (module, wrappers) in modules {
            let mut listed = self.of_module(module);
            let full = |parameter: &String| format!("{module}.{parameter}");
            listed.retain(|p| exists(&full(p)) != Some(false));
            let nested = wrappers.keys().any(|depth| *depth > 0);
            if listed.is_empty() && !nested {
                continue;
            }
            let ordered = in_order(&listed)
                .filter(|o| o.len() == wrappers.len() && wrappers.keys().copied().eq(0..o.len()));
            let ordered = ordered.ok_or_else(|| unclear(module, wrappers.len(), &listed))?;
            // The deepest is that of the first.
            for ((_, path), parameter) in wrappers.iter().rev().zip(ordered) {
                out.insert(*path, full(parameter));
            }
        }
        Ok(out)
    }
}

/// The names in the order of their definition; `None` where it is not known.
pub(super) fn in_order(parameters: &BTreeSet<String>) -> Option<Vec<&String>> {
    let place = |p: &&String| ORDER.iter().position(|o| o == p);
    let mut ordered: Vec<&String> = parameters.iter().collect();
    if ordered.len() > 1 && !ordered.iter().all(|p| place(p).is_some()) {
        return None;
    }
    ordered.sort_by_key(place);
    Some(ordered)
}

/// The path of a wrapper that is `depth` wrappers inside the outermost of a module.
pub(super) fn wrapper(module: &str, depth: usize) -> String {
    format!("{module}{}", INNER.repeat(depth))
}

/// The module, and how many wrappers are around the one of this path.
pub(super) fn unwrapped(mut path: &str) -> (&str, usize) {
    let mut depth = 0;
    while let Some(outer) = path.strip_suffix(INNER) {
        (path, depth) = (outer, depth + 1);
    }
    (path, depth)
}

fn unclear(module: &str, wrappers: usize, listed: &BTreeSet<String>) -> Error {
    let names: Vec<&str> = listed.iter().map(String::as_str).collect();
    let message = format!(
        "has {wrappers} nested pairs, and target_parameters lists `{}` of it: which is whose is not known",
        names.join("`, `")
    );
    Error::new(Code::UnsupportedTargetParameters, message)
        .tensor(module)
        .hint("give the base, or list exactly the module's parameters that were trained")
}

/// `lora_B` (out, r · E) as (E, out, r).
pub(super) fn by_expert(b: &Tensor, experts: usize) -> Result<Tensor> {
    let (out, rank) = (b.shape()[0], b.shape()[1] / experts.max(1));
    permuted(b, vec![experts, out, rank], |at| {
        let (e, rest) = (at / (out * rank), at % (out * rank));
        let (o, k) = (rest / rank, rest % rank);
        (o * rank + k) * experts + e
    })
}

/// The B (out, r) of each expert as PEFT has them: (out, r · E), rank by rank.
pub(super) fn by_rank(lefts: &[Vec<f32>]) -> Vec<f32> {
    let len = lefts.first().map_or(0, Vec::len);
    let column = |at| lefts.iter().filter_map(move |left| left.get(at).copied());
    (0..len).flat_map(column).collect()
}

/// The elements of a tensor under other extents, element `at` from `source(at)`.
fn permuted(tensor: &Tensor, shape: Vec<usize>, source: impl Fn(usize) -> usize) -> Result<Tensor> {
    let size = tensor.dtype().bits() / 8;
    let data = tensor.data();
    let mut bytes = Vec::with_capacity(data.len());
    for at in 0..tensor.len() {
        let from = source(at) * size;
        bytes.extend_from_slice(data.get(from..from + size).unwrap_or_default());
    }
    Tensor::new(tensor.dtype(), shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrappers(targets: &[&str], paths: &[&str]) -> Result<Vec<(String, String)>> {
        let targets: Vec<String> = targets.iter().map(|t| (*t).to_owned()).collect();
        let found = TargetParameters(&targets).of_wrappers(paths.iter().copied(), |_| None)?;
        Ok(found.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }

    /// Breaks where the outer wrapper is taken for another parameter than PEFT's, which wraps in the
    /// order of definition whatever the config's order is.
    #[test]
    fn the_innermost_wrapper_is_the_first_parameters() {
        let pairs = [
            ("l.0.experts", "l.0.experts.down_proj"),
            ("l.0.experts.base_layer", "l.0.experts.gate_up_proj"),
        ];
        let expected: Vec<_> = pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        let paths = ["l.0.experts", "l.0.experts.base_layer"];
        for targets in [
            ["down_proj", "gate_up_proj"],
            ["experts.gate_up_proj", "0.experts.down_proj"],
        ] {
            assert_eq!(wrappers(&targets, &paths).unwrap(), expected);
        }
        let alone = wrappers(&["experts.down_proj"], &["l.0.experts", "l.0.q"]).unwrap();
        assert_eq!(
            alone,
            [("l.0.experts".to_owned(), "l.0.experts.down_proj".to_owned())]
        );
    }

    /// Breaks where a number of wrappers that the list does not explain is assigned all the same.
    #[test]
    fn what_the_list_does_not_explain_is_refused() {
        for (targets, paths) in [
            (vec!["gate_up_proj"], vec!["e", "e.base_layer"]),
            (vec!["gate_up_proj", "down_proj"], vec!["e"]),
            (vec!["gate_up_proj", "down_proj"], vec!["e.base_layer"]),
            (vec!["alpha", "beta"], vec!["e", "e.base_layer"]),
            (vec![], vec!["e", "e.base_layer"]),
        ] {
            let e = wrappers(&targets, &paths).unwrap_err();
            assert_eq!(e.code(), Code::UnsupportedTargetParameters, "{targets:?}");
        }
    }
}
