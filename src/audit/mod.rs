//! What a fleet of adapters costs, and would cost in other forms.
//!
//! [`audit`] walks folders, reads the headers of every PEFT adapter and `.tl` that it finds, and
//! gives a [`Report`]: one [`Row`] for each adapter, sums by user, task, base and kind, what could
//! go, and what other forms would take. [`plan()`] computes the same from numbers alone.
//! `spec/audit-v1.md` defines every number.

#[cfg(feature = "plots")]
mod charts;
mod fitted;
#[cfg(feature = "plots")]
mod html;
mod leftover;
mod money;
mod owner;
#[cfg(feature = "plots")]
mod page;
#[cfg(feature = "parquet")]
mod parquet;
mod plan;
mod read;
mod report;
mod row;
mod scan;
mod stored;
mod table;
mod waste;
mod whatif;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use rayon::prelude::*;

use crate::error::{Code, Error, Result};

#[cfg(feature = "parquet")]
pub use self::parquet::{parquet, write_parquet};
pub use fitted::Fit;
#[cfg(feature = "plots")]
pub use html::{html, write_html};
pub use money::{Bill, Prices, usd};
pub use owner::{Owner, Owners, Template};
pub use plan::{MODELS, Plan, PlanForm, PlanOptions, model_shape, plan};
pub use report::{Context, FleetScenario, Group, Marginal, Report, Total};
pub use row::{Facts, Form, Piece, Problem, Projection, Recipe, Row, Target, Waste};
pub use scan::Other;
pub use table::{COLUMNS, Cell, Column, write_csv};
pub use whatif::{Quality, Retrained, Scenario, header_bytes, retrained};

/// What [`audit`] is told beside the paths.
#[derive(Default)]
pub struct Options<'a> {
    /// Where user and task come from.
    pub owners: Owners,
    /// Read and hash PEFT tensors, so that equal ones are found (`.tl` files have digests).
    pub hash: bool,
    /// Read the weights of the first so many adapters and compress them with zstd.
    pub measure: Option<usize>,
    /// Read the weights of the first so many adapters, and fit the closest tied adapter to each LoRA
    /// in a PEFT directory, at its own rank.
    pub fit: Option<usize>,
    /// What bytes and requests cost.
    pub prices: Prices,
    /// Called after each adapter, from any thread; its error ends the audit.
    pub tick: Option<&'a (dyn Fn() -> Result<()> + Sync)>,
}

/// Audits folders and files, reading headers only unless the options say otherwise.
///
/// A file that cannot be read is a row with its error. The report is the same for any number of
/// threads.
///
/// # Errors
/// [`Code::NothingToAudit`]; [`Code::NotFound`] and [`Code::Io`] for the paths themselves;
/// [`Code::Usage`] for prices that are none; what `tick` fails with.
pub fn audit(paths: &[PathBuf], options: &Options<'_>) -> Result<Report> {
    options.prices.check()?;
    let (mut stores, folders): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.iter().cloned().partition(|p| stored::is_remote(p));
    let mut scan = scan::scan(&folders)?;
    stores.append(&mut scan.stores);
    let mut stored = Vec::new();
    for store in &stores {
        match stored::rows(&store.to_string_lossy()) {
            Ok((rows, other)) => {
                stored.extend(rows);
                scan.other.add(&other);
            }
            Err(e) if paths.contains(store) => return Err(e),
            Err(e) => scan.problems.push(Problem::from(&e)),
        }
    }
    if scan.found.is_empty() && stored.is_empty() {
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        let message = format!("no adapter in {}", names.join(", "));
        return Err(Error::new(Code::NothingToAudit, message)
            .hint("an adapter is a folder with adapter_config.json, or a .tl file"));
    }
    let measured = options.measure.unwrap_or(0);
    let fitted = options.fit.unwrap_or(0);
    let row = |(at, found): (usize, &scan::Found)| {
        let depth = read::Depth {
            hash: options.hash,
            measure: at < measured,
        };
        let mut row = read::read(found, depth);
        if at < fitted {
            fitted::measure(&found.path, &mut row);
        }
        if let Some(owner) = options.owners.find(&found.relative, &row.path) {
            row.user = owner.user;
            row.task = owner.task;
        }
        options.tick.map_or(Ok(()), |tick| tick())?;
        Ok(row)
    };
    let rows = scan.found.par_iter().enumerate().map(row);
    let mut rows: Vec<Row> = rows.collect::<Result<_>>()?;
    rows.extend(stored);
    let context = Context {
        roots: paths.iter().map(|p| p.display().to_string()).collect(),
        hashed: options.hash,
        other: scan.other,
        folder_links: scan.folder_links,
        problems: scan.problems,
        prices: options.prices,
    };
    Ok(Report::from_rows(rows, context))
}
