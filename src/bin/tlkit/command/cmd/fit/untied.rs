//! What is told of a smaller LoRA.

use std::collections::BTreeMap;

use tlkit::adapter::without_numbers;
use tlkit::fit::{ShrunkModule, ToShrunk};
use tlkit::tensor::larger;

use crate::command::cmd::show;
use crate::command::output::{change, fields, plural, relative_error, table};

pub(super) fn untied_text(r: &ToShrunk) -> String {
    let report = &r.shrunk;
    let row = |(name, modules): (&String, &Vec<&ShrunkModule>)| {
        let total = |of: fn(&ShrunkModule) -> f64| modules.iter().map(|m| of(m)).sum::<f64>();
        let (off, norm) = (
            total(|m| (m.error * m.norm).powi(2)),
            total(|m| m.norm.powi(2)),
        );
        let range = |of: fn(&ShrunkModule) -> usize| {
            let ranks = || modules.iter().map(|m| of(m));
            let (low, high) = (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0));
            match low == high {
                true => high.to_string(),
                false => format!("{low}–{high}"),
            }
        };
        let worst = |worst: f64, m: &&ShrunkModule| larger(worst, m.error);
        vec![
            name.clone(),
            modules.len().to_string(),
            range(|m| m.rank_before),
            range(|m| m.rank),
            relative_error(if norm > 0.0 { (off / norm).sqrt() } else { 0.0 }),
            relative_error(modules.iter().fold(0.0, worst)),
        ]
    };
    let mut kinds: BTreeMap<String, Vec<&ShrunkModule>> = BTreeMap::new();
    for module in &report.modules {
        kinds
            .entry(without_numbers(&module.module))
            .or_default()
            .push(module);
    }
    let header = ["module", "layers", "rank before", "rank", "error", "worst"];
    let kinds = table(&header, &[1, 2, 3, 4, 5], kinds.iter().map(row));
    let left_out = report.modules.iter().filter(|m| m.rank == 0).count();
    let mut rows = vec![
        ("error", relative_error(report.error)),
        (
            "bound",
            format!("{} (no LoRA of these ranks)", relative_error(report.bound)),
        ),
    ];
    if let Some(uniform) = report.uniform {
        let rank = report.uniform_rank;
        let text = format!(
            "{} (rank {rank} for all modules, no more bytes)",
            relative_error(uniform)
        );
        rows.push(("one rank", text));
    }
    rows.push(("modules", plural(report.modules.len(), "module")));
    if left_out > 0 {
        rows.push(("left out", plural(left_out, "module")));
    }
    if !report.kept.is_empty() {
        rows.push(("kept", plural(report.kept.len(), "module")));
    }
    rows.extend([
        ("bytes", change(r.file_bytes_before, r.file_bytes)),
        ("root", r.root.clone()),
        ("output", show(&r.output)),
    ]);
    format!("{}.\n\n{kinds}\n\n{}", report.summary, fields(&rows))
}
