use tlkit::Result;
use tlkit::sweep::{
    CELLS_FILE, Cell, CellResult, FIGURE_FILE, Row, Sweep, SweepConfig, SweepObserver, SweepReport,
    TABLE_FILE,
};
use tlkit::train::{Event, Observer};

use super::show;
use crate::command::args;
use crate::command::output::{Outcome, Output, count, fields, plural, table};
use crate::command::progress::TrainBar;
use crate::command::watch::Stop;

pub(crate) fn sweep(args: &args::Sweep, output: &Output) -> Result<Outcome> {
    let config = SweepConfig::read(&args.config)?;
    let sweep = Sweep::open(config, &args.output)?;
    let stop = Stop::here();
    let report = TrainBar::during("sweep", |bar| {
        let count = bar.counter();
        let mut watcher = Watcher {
            bar,
            label: String::new(),
        };
        sweep.run(&mut watcher, stop.progress().counted_by(&count))
    })?;
    if report.found_done > 0 {
        let cells = plural(report.found_done, "cell");
        output.note(&format!("{cells} of {} done before", report.cells.len()));
    }
    output.report(&report, || text(&report))?;
    Ok(Outcome::Success)
}

struct Watcher<'a> {
    bar: &'a mut TrainBar,
    label: String,
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: &Event<'_>) {
        // A line for each validation of each cell would bury the cells.
        if !matches!(event, Event::Validation(_)) {
            self.bar.event(event);
        }
    }
}

impl SweepObserver for Watcher<'_> {
    fn cell(&mut self, number: usize, total: usize, cell: &Cell) {
        self.label = format!("{number}/{total} {}", cell.name());
        self.bar.restart(self.label.clone(), 0);
    }

    fn evaluating(&mut self, questions: usize) {
        let label = format!("{}, evaluating", self.label);
        self.bar.restart(label, questions as u64);
    }

    fn done(&mut self, result: &CellResult) {
        let what = match (&result.error, result.score) {
            (Some(error), _) => error.clone(),
            (None, score) => score.map_or("no score".to_owned(), |s| format!("score {s:.4}")),
        };
        self.bar.line(format!("{}: {what}", self.label));
    }
}

fn text(r: &SweepReport) -> String {
    let lora = match r.table.lora_has_score {
        true => "LoRA's best",
        false => "the smallest of the sweep, where no LoRA has a score",
    };
    let head = fields(&[
        ("score", r.metric.title()),
        ("cells", r.cells.len().to_string()),
        (
            "% of LoRA",
            format!(
                "of {} parameters at rank {}, {lora}",
                count(r.table.lora_parameters),
                r.table.lora_rank
            ),
        ),
    ]);
    let row = |row: &Row| {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            row.section.replace('_', " "),
            row.method.to_string(),
            row.rank.to_string(),
            or_dash(row.lr.map(|lr| format!("{lr:e}"))),
            or_dash(row.score.map(|s| match row.spread {
                Some(spread) => format!("{} ± {}", r.metric.text(s), r.metric.text(spread)),
                None => r.metric.text(s),
            })),
            or_dash(row.percent.map(|p| format!("{p:.1}"))),
        ]
    };
    let header = ["section", "method", "rank", "lr", "score", "% of LoRA"];
    let rows = table(&header, &[2, 3, 4, 5], r.table.rows.iter().map(row));
    let failed: String = r
        .cells
        .iter()
        .filter_map(|c| {
            let error = c.error.as_ref()?;
            let seed = c.seed.map_or(String::new(), |seed| format!(" seed {seed}"));
            Some(format!(
                "{} rank {} lr {:e}{seed}: {error}\n",
                c.method, c.rank, c.lr
            ))
        })
        .collect();
    let failed = match failed.is_empty() {
        true => failed,
        false => format!("diverged:\n{}\n", failed),
    };
    let files = fields(&[
        ("cells", show(&r.output.join(CELLS_FILE))),
        ("table", show(&r.output.join(TABLE_FILE))),
        ("figure", show(&r.output.join(FIGURE_FILE))),
    ]);
    format!("{head}\n{rows}\n\n{failed}{files}")
}
