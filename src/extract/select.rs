//! Which tensors are taken, by name.

use super::options::ExtractOptions;

/// Whether a tensor, by the adapter's name for it, is one of those that are asked for.
pub(super) fn is_chosen(options: &ExtractOptions, name: &str) -> bool {
    let within = |names: &[String]| names.iter().any(|n| is_named(name, n));
    (options.targets.is_empty() || within(&options.targets)) && !within(&options.exclude)
}

/// Whether a name is that of a tensor or of its module, in full or by its last segments.
fn is_named(tensor: &str, name: &str) -> bool {
    let ends = |whole: &str| {
        let rest = whole.strip_suffix(name);
        rest.is_some_and(|r| r.is_empty() || r.ends_with('.'))
    };
    let module = tensor.rsplit_once('.').map(|(module, _)| module);
    ends(tensor) || module.is_some_and(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a part of a segment is taken for a module's name.
    #[test]
    fn names_are_whole_segments() {
        let tensor = "model.layers.1.self_attn.q_proj.weight";
        for name in ["q_proj", "self_attn.q_proj", tensor, "q_proj.weight"] {
            assert!(is_named(tensor, name), "{name}");
        }
        for name in ["proj", "_proj", "weigh", "self_attn", "k_proj"] {
            assert!(!is_named(tensor, name), "{name}");
        }
    }
}
