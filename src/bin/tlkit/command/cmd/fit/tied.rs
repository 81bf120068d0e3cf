//! What is told of a tied fit.

use tlkit::fit::{GroupFit, ToFitted};

use super::coded::coded_rows;
use crate::command::cmd::show;
use crate::command::output::{change, fields, plural, relative_error, table};

pub(super) fn fitted_text(r: &ToFitted) -> String {
    format!("{}.\n\n{}", r.fit.summary, fitted_tables(r))
}

pub(super) fn fitted_tables(r: &ToFitted) -> String {
    let row = |g: &GroupFit| {
        vec![
            g.targets.join("\n"),
            g.layers.len().to_string(),
            match (g.with_core, g.with_v) {
                (true, _) => format!("{} + core", g.rank),
                (_, true) => format!("{} + v", g.rank),
                _ => g.rank.to_string(),
            },
            relative_error(g.error),
            relative_error(g.bound),
            relative_error(g.baseline),
            relative_error(g.untied),
            format!("layer {}", g.worst_layer),
            change(g.bytes_before, g.bytes),
        ]
    };
    let header = [
        "tie group",
        "layers",
        "rank",
        "error",
        "bound",
        "triplets",
        "untied",
        "worst",
        "bytes",
    ];
    let groups = table(&header, &[1, 2, 3, 4, 5, 6], r.fit.groups.iter().map(row));
    let mut rows = vec![
        ("error", relative_error(r.fit.error)),
        (
            "bound",
            format!(
                "{} (no tied adapter of this rank without v), {} (with any v)",
                relative_error(r.fit.bound),
                relative_error(r.fit.bound_with_v)
            ),
        ),
        (
            "triplets",
            format!("{} (the fit to beat)", relative_error(r.fit.baseline)),
        ),
        (
            "untied",
            format!(
                "{} (a LoRA of the same bytes)",
                relative_error(r.fit.untied)
            ),
        ),
        (
            "modules",
            format!(
                "{} in {}",
                r.modules,
                plural(r.fit.groups.len(), "fitted tie group")
            ),
        ),
        ("bytes", change(r.file_bytes_before, r.file_bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ];
    if let Some(c) = &r.coded {
        let at = rows.len() - 3;
        rows.splice(at..at, coded_rows(c.error, c.bits, c.bound));
    }
    if !r.fit.kept.is_empty() {
        rows.insert(5, ("kept", plural(r.fit.kept.len(), "module")));
    }
    format!("{groups}\n\n{}", fields(&rows))
}
