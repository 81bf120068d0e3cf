//! What a base model is called.

/// A base's name where it is one: `owner/name` or `name`, as a hub has them. `None` for what can only
/// be a path: an adapter's identity does not depend on where its base lay.
pub(crate) fn hub_name(text: &str) -> Option<&str> {
    let part = |part: &str| {
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = text.split('/').collect();
    (parts.len() <= 2 && parts.into_iter().all(part)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a path gets into the identity of an adapter, or a name does not.
    #[test]
    fn names_are_told_from_paths() {
        for name in [
            "gpt2",
            "meta-llama/Llama-2-7b-hf",
            "org/bäse",
            "bases/llama-f32",
        ] {
            assert_eq!(hub_name(name), Some(name));
        }
        for path in [
            "",
            "/models/llama",
            "./llama",
            "../llama",
            "~/llama",
            "a/b/c",
            "models/",
            "C:\\models\\llama",
            "a\\b",
            ".",
            "s3://bucket/llama",
        ] {
            assert_eq!(hub_name(path), None, "{path}");
        }
    }
}
