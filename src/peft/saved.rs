//! Modules that are saved whole (`modules_to_save`): which names they are under, and which names a
//! list of them means.

/// What PEFT 0.21 adds to `modules_to_save` by the task, whether the model has such modules or not
/// (`PeftModelForSequenceClassification` and its kin). Releases before 0.7 did not write it down.
pub(crate) fn heads_of_task(task: Option<&str>) -> &'static [&'static str] {
    match task {
        Some("SEQ_CLS" | "TOKEN_CLS") => &["classifier", "score"],
        Some("QUESTION_ANS") => &["qa_outputs"],
        _ => &[],
    }
}

/// Whether `listed` names a module that the tensor of this name is in: by the plain end of the
/// module's path, as PEFT does (`_set_trainable`), so that `classifier` is `pre_classifier` too.
pub(crate) fn is_in(name: &str, listed: &str) -> bool {
    name.match_indices('.')
        .any(|(dot, _)| name[..dot].ends_with(listed))
}

/// A tensor of a module that PEFT wrapped to train a copy of it, under the module's own name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// Of the copy.
    Copy(String),
    /// Of the base's module, which the copy replaces.
    Original(String),
}

impl Wrapped {
    /// Takes apart `<module>.modules_to_save.[<adapter>.]<parameter>` and
    /// `<module>.original_module.<parameter>`; `None` for other names. PEFT takes the wrapper's
    /// part out when it saves, but for embeddings that it saves twice (`save_embedding_layers`).
    pub(super) fn of(name: &str, adapter: &str) -> Option<Self> {
        if let Some((module, rest)) = name.split_once(".modules_to_save.") {
            let own = rest.strip_prefix(adapter).and_then(|r| r.strip_prefix('.'));
            return Some(Self::Copy(format!("{module}.{}", own.unwrap_or(rest))));
        }
        let (module, rest) = name.split_once(".original_module.")?;
        Some(Self::Original(format!("{module}.{rest}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a list means other modules than PEFT saves.
    #[test]
    fn a_listed_name_is_the_plain_end_of_a_path() {
        for (name, listed) in [
            ("score.weight", "score"),
            ("pre_classifier.bias", "classifier"),
            ("classifier.out_proj.weight", "classifier"),
            ("model.layers.0.input_layernorm.weight", "norm"),
            ("bert.pooler.dense.weight", "bert.pooler"),
        ] {
            assert!(is_in(name, listed), "{name} {listed}");
        }
        for (name, listed) in [
            ("score.weight", "weight"),
            ("classifier.weight", "pre_classifier"),
            ("model.norms.weight", "norm"),
            ("weight", "weight"),
        ] {
            assert!(!is_in(name, listed), "{name} {listed}");
        }
    }

    /// Breaks where a wrapped tensor is not told from a module's own.
    #[test]
    fn wrapped_names_are_taken_apart() {
        let copy = |name: &str| Some(Wrapped::Copy(name.to_owned()));
        let of = |name| Wrapped::of(name, "default");
        assert_eq!(of("score.modules_to_save.weight"), copy("score.weight"));
        assert_eq!(
            of("score.modules_to_save.default.weight"),
            copy("score.weight")
        );
        assert_eq!(of("c.modules_to_save.dense.weight"), copy("c.dense.weight"));
        assert_eq!(
            of("c.modules_to_save.default.dense.bias"),
            copy("c.dense.bias")
        );
        assert_eq!(
            of("score.original_module.weight"),
            Some(Wrapped::Original("score.weight".into()))
        );
        assert_eq!(of("score.weight"), None);
        assert_eq!(of("modules_to_save.weight"), None);
    }
}
