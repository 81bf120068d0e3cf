//! The whole fleet: totals, and what it would cost in other forms.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::Serialize;

use super::money::{Bill, Prices};
use super::problem::Problem;
use super::row::{Kind, Row, Waste};
use super::scan::Other;
use super::scenario::{Form, Quality, Scenario};
use super::sum::add;
use super::waste;
use super::whatif::{scenarios, signed};

/// Sums over rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Total {
    /// Rows.
    pub adapters: u64,
    /// Rows with an error.
    pub broken: u64,
    /// Numbers stored.
    pub parameters: u64,
    /// Numbers trained.
    pub trained_parameters: u64,
    /// Files.
    pub files: u64,
    /// Bytes of the files, each inode once.
    pub bytes: u64,
    /// What they take on the disk.
    pub disk_bytes: u64,
    /// Bytes of the files with weights.
    pub adapter_bytes: u64,
    /// What of `bytes` could go.
    pub waste: Waste,
}

impl Total {
    fn add(&mut self, row: &Row) {
        self.adapters += 1;
        self.broken += u64::from(row.error.is_some());
        for (sum, more) in [
            (&mut self.parameters, row.parameters.unwrap_or(0)),
            (
                &mut self.trained_parameters,
                row.trained_parameters.unwrap_or(0),
            ),
            (&mut self.files, row.files),
            (&mut self.bytes, row.bytes),
            (&mut self.disk_bytes, row.disk_bytes),
            (&mut self.adapter_bytes, row.adapter_bytes),
        ] {
            add(sum, more);
        }
        self.waste.add(&row.waste);
    }
}

/// The rows that have one thing in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// The user, task, base or kind; `None` for rows of which it is not known.
    pub name: Option<String>,
    /// Their sums.
    #[serde(flatten)]
    pub total: Total,
}

/// What one more adapter of the mean size adds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Marginal {
    /// Bytes of the next task of a user: the mean adapter.
    pub next_task_bytes: u64,
    /// USD a month for them.
    pub next_task_month: f64,
    /// Bytes of the next user, with as many adapters as users have in the mean; `None` where no
    /// user is known.
    pub next_user_bytes: Option<u64>,
    /// USD a month for them.
    pub next_user_month: Option<f64>,
}

/// One form, for all adapters that it applies to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FleetScenario {
    /// The form, by its name.
    #[serde(rename = "name")]
    pub form: Form,
    /// As in [`Scenario::joint`].
    pub joint: bool,
    /// Adapters that have this form; all others stay as they are.
    pub adapters: u64,
    /// Bytes of these adapters now.
    pub bytes_now: u64,
    /// Bytes of these adapters in this form.
    pub bytes: u64,
    /// `bytes_now − bytes`.
    pub saving: i64,
    /// Of the saving, what rests on a presumption, see [`Scenario::presumed`].
    pub presumed: u64,
    /// Numbers trained (retraining only).
    pub parameters: Option<u64>,
    /// As in [`Scenario::bound_bytes`], of these adapters.
    pub bound_bytes: Option<u64>,
    /// What it does to the adapters' quality.
    pub quality: Quality,
    /// Bytes of everything that was audited, with these adapters in this form.
    pub fleet_bytes: u64,
    /// The bill for `fleet_bytes`, in USD a month.
    pub bill: Bill,
    /// What one more adapter of this form adds.
    pub marginal: Marginal,
}

/// Everything an audit found out.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// `tlkit-audit/1`; changes where a field changes its meaning.
    pub schema: &'static str,
    /// The paths that were audited.
    pub roots: Vec<String>,
    /// Whether PEFT tensors were read and hashed, so that equal ones were found.
    pub hashed: bool,
    /// Bytes of everything: adapters and other files.
    pub bytes: u64,
    /// Sums over all rows.
    pub total: Total,
    /// Files that belong to no adapter.
    pub other: Other,
    /// Links to folders, which were not followed.
    pub folder_links: u64,
    /// By user, most bytes first.
    pub by_user: Vec<Group>,
    /// By task, most bytes first.
    pub by_task: Vec<Group>,
    /// By base model, most bytes first.
    pub by_base: Vec<Group>,
    /// By kind, most bytes first.
    pub by_kind: Vec<Group>,
    /// What the prices were.
    pub prices: Prices,
    /// The bill for `bytes`.
    pub bill: Bill,
    /// What one more adapter of the present mean adds.
    pub marginal: Marginal,
    /// Other forms.
    pub scenarios: Vec<FleetScenario>,
    /// Adapters of which the forms that have to be made in memory (coded, int8, truncated, fit) were not asked for:
    /// these forms leave them as they are.
    pub unmeasured: u64,
    /// Adapters of which such a form was asked for and could not be made: it leaves them as they are.
    pub unfitted: Vec<Problem>,
    /// What could not be listed.
    pub problems: Vec<Problem>,
    /// Every adapter, by path.
    pub rows: Vec<Row>,
}

/// What a report says beside its rows.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Context {
    /// The paths or addresses that were audited.
    pub roots: Vec<String>,
    /// Whether tensors' digests are known for all rows.
    pub hashed: bool,
    /// Files that belong to no adapter.
    pub other: Other,
    /// Links to folders that were not followed.
    pub folder_links: u64,
    /// What could not be listed.
    pub problems: Vec<Problem>,
    /// What bytes and requests cost.
    pub prices: Prices,
}

impl Report {
    /// Computes waste, scenarios and sums of rows from any source; `waste` and `what_if` of the
    /// rows are replaced by what their `facts` say.
    pub fn from_rows(mut rows: Vec<Row>, context: Context) -> Self {
        rows.sort_by(|a, b| a.path.cmp(&b.path));
        for row in &mut rows {
            row.waste = Waste::default();
        }
        waste::settle(&mut rows);
        rows.par_iter_mut()
            .for_each(|row| row.what_if = scenarios(row));
        let mut total = Total::default();
        rows.iter().for_each(|row| total.add(row));
        let bytes = total.bytes.saturating_add(context.other.bytes);
        let users = Users::of(&rows);
        let prices = context.prices;
        Self {
            schema: "tlkit-audit/1",
            roots: context.roots,
            hashed: context.hashed,
            bytes,
            by_user: grouped(&rows, |row| row.user.clone()),
            by_task: grouped(&rows, |row| row.task.clone()),
            by_base: grouped(&rows, |row| row.base.clone()),
            by_kind: grouped(&rows, |row| row.kind.as_ref().map(|k| k.name().to_owned())),
            bill: prices.bill(bytes),
            marginal: users.marginal(total.bytes, total.adapters, &prices),
            scenarios: fleet(&rows, bytes, &users, &prices),
            total,
            other: context.other,
            folder_links: context.folder_links,
            prices,
            unmeasured: rows.iter().filter(|r| is_unmeasured(r)).count() as u64,
            unfitted: rows
                .iter()
                .filter_map(|r| r.facts.unfitted.clone())
                .collect(),
            problems: context.problems,
            rows,
        }
    }

    /// Adapters with an error, and folders that could not be listed.
    pub fn broken(&self) -> u64 {
        self.total.broken + self.problems.len() as u64
    }
}

/// Whether an adapter could have other forms, and nobody made them.
fn is_unmeasured(row: &Row) -> bool {
    let known = matches!(row.kind, Some(Kind::Method(_)));
    known && row.error.is_none() && row.parameters.is_some() && !row.facts.is_measured
}

fn grouped(rows: &[Row], key: impl Fn(&Row) -> Option<String>) -> Vec<Group> {
    let mut groups: BTreeMap<Option<String>, Total> = BTreeMap::new();
    for row in rows {
        groups.entry(key(row)).or_default().add(row);
    }
    let group = |(name, total)| Group { name, total };
    let mut groups: Vec<Group> = groups.into_iter().map(group).collect();
    groups.sort_by_key(|g| std::cmp::Reverse(g.total.bytes));
    groups
}

/// How many adapters a user has in the mean.
struct Users {
    users: u64,
    adapters: u64,
}

impl Users {
    fn of(rows: &[Row]) -> Self {
        let owned = rows.iter().filter_map(|r| r.user.as_deref());
        Self {
            adapters: owned.clone().count() as u64,
            users: owned.collect::<BTreeSet<_>>().len() as u64,
        }
    }

    fn marginal(&self, bytes: u64, adapters: u64, prices: &Prices) -> Marginal {
        let next_task_bytes = ratio(bytes, 1, adapters).unwrap_or(0);
        let of_user = adapters.saturating_mul(self.users);
        let next_user_bytes = ratio(bytes, self.adapters, of_user);
        Marginal {
            next_task_bytes,
            next_task_month: prices.storage(next_task_bytes),
            next_user_bytes,
            next_user_month: next_user_bytes.map(|b| prices.storage(b)),
        }
    }
}

/// `a · b / c` to the nearest whole number; `None` where c is zero.
fn ratio(a: u64, b: u64, c: u64) -> Option<u64> {
    let (product, c) = (u128::from(a) * u128::from(b), u128::from(c));
    let rounded = product.saturating_add(c / 2).checked_div(c)?;
    Some(u64::try_from(rounded).unwrap_or(u64::MAX))
}

fn fleet(rows: &[Row], all: u64, users: &Users, prices: &Prices) -> Vec<FleetScenario> {
    let mut sums: BTreeMap<(bool, Form), Vec<(&Row, &Scenario)>> = BTreeMap::new();
    for row in rows {
        for scenario in &row.what_if {
            let key = (scenario.joint, scenario.form);
            sums.entry(key).or_default().push((row, scenario));
        }
    }
    let sum = |of: &[(&Row, &Scenario)], number: fn(&Row, &Scenario) -> u64| {
        of.iter()
            .fold(0u64, |n, (r, s)| n.saturating_add(number(r, s)))
    };
    let one = |of: Vec<(&Row, &Scenario)>| {
        let (_, first) = of.first()?;
        let adapters = of.len() as u64;
        let bytes_now = sum(&of, |r, _| r.bytes);
        let bytes = sum(&of, |_, s| s.bytes);
        let rest = all.saturating_sub(bytes_now);
        let fleet_bytes = rest.saturating_add(bytes);
        Some(FleetScenario {
            form: first.form,
            joint: first.joint,
            adapters,
            bytes_now,
            bytes,
            saving: signed(bytes_now, bytes),
            presumed: sum(&of, |_, s| s.presumed),
            parameters: first
                .parameters
                .map(|_| sum(&of, |_, s| s.parameters.unwrap_or(0))),
            bound_bytes: first
                .bound_bytes
                .map(|_| sum(&of, |_, s| s.bound_bytes.unwrap_or(0))),
            quality: of
                .iter()
                .fold(first.quality, |q, (_, s)| q.worst(s.quality)),
            fleet_bytes,
            bill: prices.bill(fleet_bytes),
            marginal: users.marginal(bytes, adapters, prices),
        })
    };
    sums.into_values().filter_map(one).collect()
}
