//! The model card of an exported directory: `README.md`, as the Hugging Face hub reads it.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::form::{ExportOptions, Form};
use crate::adapter::Adapter;
use crate::digest::Digest;

/// What a directory's card tells of.
pub(super) struct Told<'a> {
    pub(super) adapter: &'a Adapter,
    /// The adapter's identity as a `.tl`.
    pub(super) root: Digest,
    pub(super) options: &'a ExportOptions<'a>,
    /// Bytes of config and weights.
    pub(super) bytes: u64,
    pub(super) notes: &'a [String],
}

/// The card. Its metadata are those that PEFT's `save_pretrained` writes (`base_model`, `library_name`, `tags`); every
/// text out of an adapter is quoted, so that none becomes markup.
pub(super) fn card(told: &Told<'_>) -> String {
    let adapter = told.adapter;
    let base = adapter.base.as_ref().and_then(|b| b.name.as_deref());
    let base = told.options.base_name.or(base);
    let kind = match told.options.form {
        Form::Vera => "vera",
        Form::Faithful | Form::Portable => "lora",
    };
    let mut text = String::from("---\n");
    if let Some(base) = base {
        let _ = writeln!(text, "base_model: {}", quoted(base));
    }
    text.push_str("library_name: peft\n");
    if adapter.task.as_deref() == Some("CAUSAL_LM") {
        text.push_str("pipeline_tag: text-generation\n");
    }
    text.push_str("tags:\n");
    if let Some(base) = base {
        let _ = writeln!(text, "- {}", quoted(&format!("base_model:adapter:{base}")));
    }
    let _ = writeln!(text, "- {kind}\n- tlkit\n---\n");
    let title = base.map_or_else(String::new, |b| format!(" for {}", code(b)));
    let _ = writeln!(text, "# Adapter{title}\n\n| | |\n|---|---|");
    for (name, value) in rows(told) {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    for note in told.notes {
        let _ = writeln!(text, "\n- {}", plain(note));
    }
    let _ = write!(
        text,
        "\n```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, \"PATH\")  # this folder\n```\n"
    );
    text
}

fn rows(told: &Told<'_>) -> Vec<(&'static str, String)> {
    let adapter = told.adapter;
    let groups = || adapter.groups.iter();
    let ranks: BTreeSet<usize> = groups().map(|g| g.rank).collect();
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let alphas: BTreeSet<String> = groups().map(|g| g.scaling.alpha.to_string()).collect();
    let suffixes: BTreeSet<&str> = groups()
        .flat_map(|g| &g.targets)
        .map(|t| t.module.rsplit('.').next().unwrap_or(&t.module))
        .collect();
    let suffixes: Vec<String> = suffixes.into_iter().map(code).collect();
    let base = adapter.base.as_ref();
    let form = match told.options.form {
        Form::Faithful => "LoRA that merges to the bytes of the `.tl`",
        Form::Portable => "LoRA that every server loads alike",
        Form::Vera => "VeRA",
    };
    let mut rows = vec![("form", form.to_owned())];
    rows.push(("method", format!("`{}`", adapter.method().name())));
    rows.push(("rank", ranks.join(", ")));
    rows.push(("alpha", Vec::from_iter(alphas).join(", ")));
    rows.push((
        "modules",
        format!("{}: {}", adapter.modules().len(), suffixes.join(", ")),
    ));
    rows.push((
        "numbers",
        format!(
            "{}, {} of them trained",
            adapter.parameters(),
            adapter.trained_parameters()
        ),
    ));
    rows.push((
        "bytes",
        format!("{}, {} as a `.tl`", told.bytes, adapter.tensor_bytes()),
    ));
    rows.push(("root", format!("`{}`", told.root)));
    let said = [
        ("revision", base.and_then(|b| b.revision.as_deref())),
        ("base's weights", base.and_then(|b| b.weights.as_deref())),
    ];
    rows.extend(
        said.into_iter()
            .filter_map(|(name, value)| Some((name, code(value?)))),
    );
    rows.retain(|(_, value)| !value.is_empty());
    rows
}

/// A YAML scalar: JSON's strings are.
fn quoted(text: &str) -> String {
    serde_json::Value::from(plain(text)).to_string()
}

/// A text as Markdown's code, in a table too.
fn code(text: &str) -> String {
    format!("`{}`", plain(text).replace(['`', '|'], "'"))
}

/// A text on one line.
fn plain(text: &str) -> String {
    crate::error::sanitize(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where a name out of a file becomes markup or metadata of the card.
    #[test]
    fn names_stay_names() {
        let name = "x\"\ntags: [evil]\n---\n| `a` |";
        assert_eq!(quoted(name).lines().count(), 1);
        let shown = code(name);
        assert_eq!(shown.matches('`').count(), 2);
        assert!(!shown.contains('|') && !shown.contains('\n'));
    }
}
