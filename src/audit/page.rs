//! What the page of a report shows, as values for its template: sections, tables, cells.

use minijinja::{Value, context};

use super::cells::{in_bytes, in_count, in_usd, more, name, number, table, text};
use super::charts::{Segment, bar, bytes, count, percent, plural, signed_bytes};
use super::money::usd;
use super::plot::plot;
use super::problem::Problem;
use super::report::{FleetScenario, Group, Marginal, Report};
use super::row::{Kind, Row, Waste};
use super::scenario::Quality;
use crate::tensor::Dtype;

/// Lines of a table; the rest is counted.
const TOP: usize = 20;

/// Lines of the table of what could not be read.
const TOP_BROKEN: usize = 100;

/// Everything that the page's template shows.
pub(super) fn page(report: &Report) -> Value {
    context! {
        version => env!("CARGO_PKG_VERSION"),
        schema => report.schema,
        roots => report.roots.clone(),
        headline => headline(report),
        cards => cards(report),
        places => places(report),
        groups => vec![
            grouped(report, "user", "User", &report.by_user),
            grouped(report, "task", "Task", &report.by_task),
            grouped(report, "base", "Base model", &report.by_base),
            grouped(report, "kind", "Kind", &report.by_kind),
        ],
        largest => largest(report),
        forms => forms(report),
        plot => plot(report),
        unmeasured => unmeasured(report),
        scenarios => scenarios(report),
        marginal => marginal(report),
        broken => broken(report),
        definitions => definitions(report),
    }
}

fn headline(report: &Report) -> String {
    let total = &report.total;
    let lossless = total.waste.lossless();
    let mut text = format!(
        "{} and the files beside them take {}, which costs USD {} a month. ",
        plural(total.adapters, "adapter"),
        bytes(report.bytes),
        usd(report.bill.total),
    );
    text += &match lossless {
        0 => "Nothing was found that could go without changing a number.".to_owned(),
        _ => format!(
            "{} of it ({}) could go without changing a number",
            bytes(lossless),
            percent(lossless as f64, report.bytes)
        ),
    };
    text += &match (lossless, total.waste.presumed) {
        (0, _) => String::new(),
        (_, 0) => ".".to_owned(),
        (_, n) => format!(
            ", provided that {} of frozen projections are what their seeds make, which was not checked.",
            bytes(n)
        ),
    };
    text
}

fn cards(report: &Report) -> Vec<Value> {
    let total = &report.total;
    let card = |label: &str, cell: Value, note: String| context! { label, cell, note };
    let requests = report.bill.requests;
    let lossless = total.waste.lossless();
    vec![
        card(
            "Adapters",
            in_count("/total/adapters", total.adapters),
            match report.broken() {
                0 => "all could be read".to_owned(),
                n => format!("{} could not be read", plural(n, "item")),
            },
        ),
        card(
            "Stored",
            in_bytes("/bytes", report.bytes),
            format!("{} bytes", count(report.bytes)),
        ),
        card(
            "USD a month",
            in_usd("/bill/total", report.bill.total),
            match requests > 0.0 {
                true => format!("of which USD {} for requests", usd(requests)),
                false => format!("USD {} a GB, no requests", report.prices.gb_month),
            },
        ),
        card(
            "Could go, exactly",
            text(bytes(lossless), true),
            format!("{} of all bytes", percent(lossless as f64, report.bytes)),
        ),
        card(
            "Parameters",
            in_count("/total/parameters", total.parameters),
            format!("{} trained", count(total.trained_parameters)),
        ),
    ]
}

/// One kind of bytes: a line of the table, and a part of the bar.
struct Place {
    class: &'static str,
    label: &'static str,
    /// Where the JSON report has the number; empty where it is computed.
    field: &'static str,
    bytes: u64,
    /// What to do about it.
    advice: String,
}

impl Place {
    fn wasted(
        class: &'static str,
        label: &'static str,
        field: &'static str,
        bytes: u64,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            class,
            label,
            field,
            bytes,
            advice: advice.into(),
        }
    }

    fn row(&self, all: u64) -> Vec<Value> {
        let n_bytes = match self.field.is_empty() {
            true => text(bytes(self.bytes), true),
            false => in_bytes(self.field, self.bytes),
        };
        vec![
            context! { swatch => self.class, text => self.label },
            n_bytes,
            text(percent(self.bytes as f64, all), true),
            text(self.advice.as_str(), false),
        ]
    }
}

/// Where the bytes are: a bar, and a table that is its legend.
fn places(report: &Report) -> Value {
    let mut places = vec![Place {
        class: "used",
        label: "Adapters themselves",
        field: "",
        bytes: report
            .total
            .bytes
            .saturating_sub(report.total.waste.total()),
        advice: String::new(),
    }];
    places.extend(wasted(report));
    places.push(Place {
        class: "other",
        label: "Files of no adapter",
        field: "/other/bytes",
        bytes: report.other.bytes,
        advice: String::new(),
    });
    let segment = |place: &Place| Segment {
        class: place.class,
        label: place.label,
        bytes: place.bytes,
    };
    let segments: Vec<Segment<'_>> = places.iter().map(segment).collect();
    let head = ["What", ">Bytes", ">Share", "What to do"];
    let rows = places.iter().map(|place| place.row(report.bytes)).collect();
    context! {
        bar => bar("Where the bytes are", &segments, report.bytes, None),
        table => table("places", "", "", &head, rows),
    }
}

/// What of the adapters' bytes could go, by reason.
fn wasted(report: &Report) -> [Place; 5] {
    let waste = &report.total.waste;
    let duplicates = match report.hashed {
        true => "Keep one of each",
        false => "Keep one of each; PEFT tensors were not compared (--hash does)",
    };
    let projections = match waste.presumed {
        0 => "Make them from their seeds: thin",
        _ => "Make them from their seeds: thin; --hash proves that they are theirs",
    };
    let [fp16, bf16] = [Dtype::F16, Dtype::BF16].map(|d| relative(d.unit_roundoff()));
    [
        Place::wasted(
            "dtype",
            "Numbers wider than 16 bits",
            "/total/waste/dtype",
            waste.dtype,
            format!("fp16 or bf16: rounds, relative error up to {fp16} or {bf16}"),
        ),
        Place::wasted(
            "duplicates",
            "Equal tensors, stored again",
            "/total/waste/duplicates",
            waste.duplicates,
            duplicates,
        ),
        Place::wasted(
            "projections",
            "Frozen random tensors, stored beside their seeds",
            "/total/waste/projections",
            waste.projections,
            projections,
        ),
        Place::wasted(
            "optimizer",
            "Leftovers of training",
            "/total/waste/optimizer",
            waste.optimizer,
            "Delete what no run will continue from",
        ),
        Place::wasted(
            "full",
            "Whole models in adapters' folders",
            "/total/waste/full_weights",
            waste.full_weights,
            "Keep the base model in one place",
        ),
    ]
}

/// What of a row's or a group's bytes is in use, as long as its share of the longest.
fn split(title: &str, all: u64, waste: &Waste, max: u64) -> Value {
    let part = |class, label, bytes| Segment {
        class,
        label,
        bytes,
    };
    let parts = [
        part("used", "in use", all.saturating_sub(waste.total())),
        part("dtype", "wider than 16 bits", waste.dtype),
        part("waste", "could go, exactly", waste.lossless()),
    ];
    context! { bar => bar(title, &parts, max, None) }
}

fn grouped(report: &Report, key: &str, what: &str, groups: &[Group]) -> Value {
    let id = format!("by_{key}");
    let max = groups.iter().map(|g| g.total.bytes).max().unwrap_or(0);
    let row = |(at, group): (usize, &Group)| {
        let total = &group.total;
        let at = |field: &str| format!("/{id}/{at}/{field}");
        let waste = &total.waste;
        vec![
            name(group.name.as_deref()),
            in_count(at("adapters"), total.adapters),
            in_count(at("broken"), total.broken),
            in_count(at("parameters"), total.parameters),
            in_bytes(at("bytes"), total.bytes),
            split(
                group.name.as_deref().unwrap_or("not known"),
                total.bytes,
                waste,
                max,
            ),
            text(bytes(waste.lossless()), true),
            text(usd(report.prices.storage(total.bytes)), true),
        ]
    };
    let known = groups.iter().any(|g| g.name.is_some());
    let note = match known {
        true => more(TOP.min(groups.len()), groups.len()),
        false => "Not known for any adapter.".to_owned(),
    };
    let rows = match known {
        true => groups.iter().enumerate().take(TOP).map(row).collect(),
        false => Vec::new(),
    };
    let head = [
        what,
        ">Adapters",
        ">Unreadable",
        ">Parameters",
        ">Bytes",
        "Of its bytes",
        ">Could go, exactly",
        ">USD a month",
    ];
    let title = format!("By {}", what.to_lowercase());
    table(&id, &title, &note, &head, rows)
}

fn largest(report: &Report) -> Value {
    let mut rows: Vec<(usize, &Row)> = report.rows.iter().enumerate().collect();
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.bytes));
    let max = rows.first().map_or(0, |(_, row)| row.bytes);
    let optional = |field: String, n: Option<u64>| match n {
        Some(n) => in_count(field, n),
        None => number(field, n, "–".to_owned()),
    };
    let row = |(at, row): &(usize, &Row)| {
        let at = |field: &str| format!("/rows/{at}/{field}");
        let waste = &row.waste;
        vec![
            name(Some(&row.path)),
            text(row.kind.as_ref().map_or("–", Kind::name), false),
            optional(at("rank"), row.rank),
            text(row.dtype.as_deref().unwrap_or("–"), false),
            optional(at("parameters"), row.parameters),
            in_bytes(at("bytes"), row.bytes),
            split(&row.path, row.bytes, waste, max),
            text(bytes(waste.lossless()), true),
        ]
    };
    let head = [
        "Adapter",
        "Kind",
        ">Rank",
        "Type",
        ">Parameters",
        ">Bytes",
        "Of its bytes",
        ">Could go, exactly",
    ];
    let lines = rows.iter().take(TOP).map(row).collect();
    let note = more(TOP.min(rows.len()), rows.len());
    table("largest", "Largest adapters", &note, &head, lines)
}

fn form(scenario: &FleetScenario) -> String {
    let joint = if scenario.joint { " joint" } else { "" };
    format!("{}{joint}", scenario.form.name())
}

/// What a form costs in quality, and how its bar is drawn: a saving is never told without it.
fn quality(scenario: &FleetScenario) -> (&'static str, String) {
    let provided = match scenario.presumed {
        0 => String::new(),
        n => format!(
            ", provided that {} of projections are what their seeds make (not checked)",
            bytes(n)
        ),
    };
    match scenario.quality {
        Quality::Exact => ("exact", format!("Exact{provided}")),
        Quality::Rounded { bound } => {
            let bound = relative(bound);
            (
                "rounded",
                format!("Rounded: a number’s relative error up to {bound}{provided}"),
            )
        }
        Quality::Measured { error } => (
            "rounded",
            format!("Measured: updates off by up to {}", relative(error)),
        ),
        Quality::Fitted { error } => (
            "retrain",
            format!("Fitted: updates off by up to {}", relative(error)),
        ),
        Quality::Retrain { error: Some(e) } => ("retrain", format!("Trained anew: error {e:.2e}")),
        Quality::Retrain { error: None } => {
            ("unmeasured", "Trained anew: error not measured".to_owned())
        }
    }
}

/// A rounding's bound, as people read it.
fn relative(bound: f64) -> String {
    format!("{:.3}\u{202f}%", 100.0 * bound)
}

/// The bytes of the fleet in every form, the present one first.
fn forms(report: &Report) -> Vec<Value> {
    let fleets = report.scenarios.iter().map(|s| s.fleet_bytes);
    let max = fleets.max().unwrap_or(0).max(report.bytes);
    let line = |label: String, class, n: u64, field: String, quality: String| {
        let part = Segment {
            class,
            label: &quality,
            bytes: n,
        };
        let bar = bar(&label, &[part], max, Some(report.bytes));
        context! { label, bar, cell => in_bytes(field, n), quality, class }
    };
    let now = ("now".to_owned(), "used", report.bytes, "/bytes".to_owned());
    let mut lines = vec![line(now.0, now.1, now.2, now.3, "As it is".to_owned())];
    lines.extend(report.scenarios.iter().enumerate().map(|(at, s)| {
        let (class, quality) = quality(s);
        let field = format!("/scenarios/{at}/fleet_bytes");
        line(form(s), class, s.fleet_bytes, field, quality)
    }));
    lines
}

/// What could have been the first forms, and how to find out.
fn unmeasured(report: &Report) -> Value {
    let note = match report.unmeasured {
        0 => String::new(),
        n => format!(
            "Of {} nobody made the forms whose bytes no header tells: coded at an error of 1, 5 or 10\u{202f}%, int8, \
             truncated, tied (--fit does).",
            plural(n, "adapter")
        ),
    };
    context! { note, field => "/unmeasured", value => report.unmeasured.to_string() }
}

fn quality_cell(at: usize, scenario: &FleetScenario) -> Value {
    let (swatch, text) = quality(scenario);
    let at = format!("/scenarios/{at}/quality");
    let (field, value) = match scenario.quality {
        Quality::Exact => (at + "/kind", serde_json::to_string("exact")),
        Quality::Rounded { bound } => (at + "/bound", serde_json::to_string(&bound)),
        Quality::Measured { error } | Quality::Fitted { error } => {
            (at.clone() + "/error", serde_json::to_string(&error))
        }
        Quality::Retrain { error } => (at + "/error", serde_json::to_string(&error)),
    };
    context! { swatch, text, field, value => value.unwrap_or_default(), wide => true }
}

fn scenarios(report: &Report) -> Value {
    let row = |(at, s): (usize, &FleetScenario)| {
        let field = |field: &str| format!("/scenarios/{at}/{field}");
        let saving = format!(
            "{} ({})",
            signed_bytes(s.saving),
            percent(s.saving as f64, s.bytes_now)
        );
        vec![
            context! { text => form(s), keep => true },
            in_count(field("adapters"), s.adapters),
            in_bytes(field("bytes_now"), s.bytes_now),
            in_bytes(field("bytes"), s.bytes),
            number(field("saving"), s.saving, saving),
            quality_cell(at, s),
            in_bytes(field("fleet_bytes"), s.fleet_bytes),
            in_usd(field("bill/total"), s.bill.total),
        ]
    };
    let head = [
        "Form",
        ">Adapters",
        ">Now",
        ">Then",
        ">Saving",
        "Quality",
        ">Whole fleet",
        ">USD a month",
    ];
    let rows = report.scenarios.iter().enumerate().map(row).collect();
    table("scenarios", "", "", &head, rows)
}

fn marginal(report: &Report) -> Value {
    let line = |label: String, at: String, m: &Marginal, quality: Value| {
        let at = |field: &str| format!("{at}/marginal/{field}");
        let none = |field, n: Option<u64>| number(field, n, n.map_or("–".to_owned(), bytes));
        let month = m.next_user_month;
        vec![
            context! { text => label, keep => true },
            in_bytes(at("next_task_bytes"), m.next_task_bytes),
            in_usd(at("next_task_month"), m.next_task_month),
            none(at("next_user_bytes"), m.next_user_bytes),
            number(
                at("next_user_month"),
                month,
                month.map_or("–".to_owned(), usd),
            ),
            quality,
        ]
    };
    let now = text("As it is", false);
    let mut rows = vec![line("now".to_owned(), String::new(), &report.marginal, now)];
    rows.extend(report.scenarios.iter().enumerate().map(|(at, s)| {
        let quality = quality_cell(at, s);
        line(form(s), format!("/scenarios/{at}"), &s.marginal, quality)
    }));
    let head = [
        "Form",
        ">Next task",
        ">USD a month",
        ">Next user",
        ">USD a month",
        "Quality",
    ];
    table("marginal", "", "", &head, rows)
}

fn broken(report: &Report) -> Value {
    let rows = report.rows.iter().filter_map(|row| row.error.as_ref());
    let line = |problem: &Problem| {
        let mut message = name(Some(&problem.message));
        if problem.message.is_empty() {
            message = name(None);
        }
        vec![text(problem.code, false), message]
    };
    let problems = rows.chain(&report.problems);
    let lines: Vec<_> = problems.take(TOP_BROKEN).map(line).collect();
    let all = usize::try_from(report.broken()).unwrap_or(usize::MAX);
    let note = match all {
        0 => "Everything could be read.".to_owned(),
        _ => more(lines.len(), all),
    };
    let head = ["Code", "What is wrong"];
    table("broken", "", &note, &head, lines)
}

/// How it was counted, in the order of the page.
fn definitions(report: &Report) -> Vec<Value> {
    let prices = &report.prices;
    let money = format!(
        "USD {} for a GB (10⁹ bytes) and month, USD {} for 1000 requests, {} a month. A group’s month is for its bytes alone.",
        prices.gb_month,
        prices.thousand_requests,
        plural(prices.requests, "request"),
    );
    let links = match report.folder_links {
        0 => String::new(),
        n => format!(" {} to folders were not followed.", plural(n, "link")),
    };
    let bytes = format!(
        "Sizes of files, each counted once however many names it has; kB, MB, GB are powers of ten.{links}"
    );
    let read = match report.hashed {
        true => "Every PEFT tensor was read and compared by its SHA-256; .tl files state theirs.",
        false => {
            "Headers only: PEFT tensors were not compared, and projections are taken to be what their seeds make."
        }
    };
    let lines = [
        ("Bytes", bytes.as_str()),
        ("Money", &money),
        ("What was read", read),
        (
            "Could go",
            "Bytes with a reason to go; a byte counts for the first that fits, so the reasons add up. Exactly: all but numbers wider than 16 bits, of which half (a 32-bit number) or three quarters (a 64-bit one) are counted and whose removal rounds.",
        ),
        (
            "thin, zstd",
            "thin leaves out all that could go exactly; zstd compresses the tensors and was measured on the adapters counted.",
        ),
        (
            "fp16, bf16",
            "thin, and every wider number rounded to nearest; the bound holds for numbers that neither overflow nor are subnormal.",
        ),
        (
            "coded-1, -5, -10",
            "The components of each adapter coded at an error of so many percent of its updates, as tlkit pack --error writes them: made in memory, every byte counted. The bound: what no code of Gaussian components of these energies needs less than at this error.",
        ),
        (
            "int8, truncated-1, -5, -10",
            "int8: every factor rounded, with a scale for each row. truncated: the fewest singular triplets that keep to that error, in f16. Both made in memory.",
        ),
        (
            "fit",
            "The closest tied adapter at the same rank, found by fitting each LoRA counted, as tlkit convert peft-to-tied --fit writes it; the error is the largest, relative to the updates.",
        ),
        (
            "vera, tl1 … tl6, lora joint",
            "What adapters trained anew with that method at the same rank would take, from their shapes, without what thin leaves out. They are other adapters: where no error is given, none was measured. joint: q, k and v share one A.",
        ),
        (
            "Next task, next user",
            "The mean adapter of a form, and as many of them as a user has in the mean.",
        ),
        (
            "Unreadable",
            "Adapters with an error; their bytes are counted all the same, and other forms leave them as they are.",
        ),
    ];
    let line = |(term, text): (&str, &str)| context! { term, text };
    lines.into_iter().map(line).collect()
}
