//! What a fleet of adapters costs, and would cost in other forms.
//!
//! [`audit`] walks folders, reads the headers of every PEFT adapter and `.tl` that it finds, and
//! gives a [`Report`]: one [`Row`] for each adapter, sums by user, task, base and kind, what could
//! go, and what other forms would take. [`plan()`] computes the same from numbers alone.
//! `spec/audit-v1.md` defines every number.
//!
//! ```no_run
//! use tlkit::audit::{AuditOptions, audit, write_csv};
//! use tlkit::fs::Existing;
//!
//! # fn main() -> tlkit::Result<()> {
//! let mut options = AuditOptions::default();
//! options.owners = "{user}/{task}".parse()?;
//! let report = audit(&["fleet".into()], &options)?;
//! let waste = report.total.waste.lossless();
//! println!("{} adapters, {waste} of {} bytes could go", report.total.adapters, report.bytes);
//! write_csv("fleet.csv".as_ref(), &report.rows, Existing::Refuse)?;
//! # Ok(())
//! # }
//! ```

mod bases;
#[cfg(feature = "plots")]
mod cells;
#[cfg(feature = "plots")]
mod charts;
mod describe;
mod facts;
#[cfg(feature = "plots")]
mod html;
mod leftover;
mod measured;
mod money;
mod owner;
#[cfg(feature = "plots")]
mod page;
#[cfg(feature = "parquet")]
mod parquet;
mod parts;
mod plan;
#[cfg(feature = "plots")]
mod plot;
mod problem;
mod read;
mod report;
mod row;
mod run;
mod scan;
mod scenario;
mod stored;
mod sum;
mod table;
mod tensors;
mod waste;
mod whatif;

#[cfg(test)]
mod tests;

#[cfg(feature = "parquet")]
pub use self::parquet::{parquet, write_parquet};
pub use facts::{Facts, Fit, HashedTensor, Measured, Projection, Recipe, TargetModule};
#[cfg(feature = "plots")]
pub use html::{html, write_html};
pub use measured::{Rate, rates};
pub use money::{Bill, Prices, usd};
pub use owner::{Owner, Owners, Template};
pub use plan::{FleetPlan, MODELS, PlanOptions, PlannedCode, PlannedMethod, model_shape, plan};
pub use problem::Problem;
pub use report::{Context, FleetScenario, Group, Marginal, Report, Total};
pub use row::{Format, Kind, Row, Waste};
pub use run::{AuditOptions, Owned, audit, find};
pub use scan::Other;
pub use scenario::{Form, Quality, Scenario};
pub use table::{COLUMNS, Cell, Column, write_csv};
pub use whatif::{Retrained, header_bytes, retrained};
