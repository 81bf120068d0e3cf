//! A report as one page that can be mailed: no network, no script, light, dark and printable.
//!
//! Names in an audit are other people's: the template escapes all of them, and nothing in it is
//! marked as safe. Every number that the JSON report has carries its place there and its exact
//! value (`data-field`, `data-value`); what has none is computed from those beside it.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, escape_formatter};

use super::page::page;
use super::report::Report;
use crate::error::{Code, Error, Result, sanitize};
use crate::fs::{AtomicFile, Existing};

/// Writes [`html`] to a file, atomically.
///
/// # Errors
/// [`Code::OutputExists`], [`Code::NoSpace`], [`Code::Io`].
pub fn write_html(path: &Path, report: &Report, existing: Existing) -> Result<()> {
    let mut out = AtomicFile::create(path, existing)?;
    out.write_all(html(report).map_err(|e| e.file(path))?.as_bytes())?;
    out.commit(true)
}

/// The page of a report: HTML in UTF-8, the same for the same report.
///
/// Control and invisible characters of names become `\u{…}`, and names longer than 1000 characters
/// are cut. Tables have at most 20 lines (100 of what could not be read) and say what they leave out.
///
/// # Errors
/// [`Code::Io`] where the page cannot be made, which no report should cause.
pub fn html(report: &Report) -> Result<String> {
    let failed = |e: minijinja::Error| Error::new(Code::Io, format!("cannot make the page: {e:#}"));
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(failed)?);
    // The name's ending is what turns escaping on.
    let name = "page.html";
    environment.set_formatter(|out, state, value| match value.as_str() {
        Some(text) if !value.is_safe() => {
            escape_formatter(out, state, &Value::from(sanitize(text)))
        }
        _ => escape_formatter(out, state, value),
    });
    let source = include_str!("page.html.j2");
    environment.add_template(name, source).map_err(failed)?;
    let template = environment.get_template(name).map_err(failed)?;
    template.render(page(report)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fancy_regex::Regex;

    use super::*;
    use crate::audit::{Context, Problem, TargetModule};
    use crate::audit::{FleetScenario, Form, Measured, Quality};
    use crate::audit::{Format, Row};

    const HOSTILE: &str = "</td><script>alert(\"1\")</script>&'\u{1b}[2J\u{202e}\n";

    /// Breaks where a measured form is missing from the chart, or an error that nobody measured is in it.
    #[test]
    fn measured_forms_are_points() {
        let page = html(&report()).unwrap();
        assert!(
            !page.contains("Bytes against error"),
            "nothing was measured"
        );
        assert!(page.contains("nobody made the forms"));
        let mut rows = report().rows;
        for row in &mut rows {
            row.facts.is_measured = true;
            let coded = Form::PERCENT.map(|percent| Measured {
                form: Form::Coded(percent),
                bytes: 90_000 / u64::from(percent),
                error: f64::from(percent) / 100.0,
                bound: Some(80_000 / u64::from(percent)),
            });
            row.facts.measured = coded.into();
        }
        let report = Report::from_rows(rows, Context::default());
        let page = html(&report).unwrap();
        let points = page.matches("<circle").count();
        let anew = |s: &&FleetScenario| s.quality == Quality::Retrain { error: None };
        let anew = report.scenarios.iter().filter(anew).count();
        assert_eq!(points, 1 + report.scenarios.len() - anew);
        assert!(page.contains("coded-5: ") && page.contains("bound at 5.000"));
        assert_eq!(page.matches("<polyline").count(), 2);
        assert!(!page.contains("nobody made the forms"));
    }

    /// Two users with LoRAs and all kinds of waste, and a row whose every text is an attack.
    fn report() -> Report {
        let lora = |user: &str, task: &str| {
            let mut row = Row::new(format!("{user}/{task}"), Format::Peft);
            row.user = Some(user.into());
            row.task = Some(task.into());
            row.kind = Some("lora".into());
            row.rank = Some(8);
            row.dtype = Some("F32".into());
            row.parameters = Some(2 * 8 * 64 * 4);
            row.trained_parameters = row.parameters;
            row.adapter_bytes = 4 * row.parameters.unwrap() + 300;
            row.bytes = row.adapter_bytes + 900_000;
            row.facts.wide = 2 * row.parameters.unwrap();
            row.facts.full_weights = 500_000;
            row.facts.optimizer = 300_000;
            row.facts.kept = 100_000;
            row.facts.bits = 16;
            row.facts.targets = vec![TargetModule {
                module: "layers.{}.q_proj".into(),
                input: 64,
                out: 64,
                rank: 8,
                layers: 4,
            }];
            row
        };
        let mut hostile = Row::new(HOSTILE, Format::Peft);
        for text in [
            &mut hostile.user,
            &mut hostile.task,
            &mut hostile.base,
            &mut hostile.dtype,
        ] {
            *text = Some(HOSTILE.into());
        }
        hostile.kind = Some(HOSTILE.into());
        hostile.bytes = 1 << 40;
        hostile.error = Some(Problem {
            code: "TL0101",
            message: HOSTILE.into(),
        });
        let context = Context {
            roots: vec![HOSTILE.into()],
            folder_links: 2,
            problems: vec![Problem {
                code: "TL0001",
                message: HOSTILE.into(),
            }],
            ..Context::default()
        };
        let rows = vec![
            lora("ann", "sum"),
            lora("ann", "qa"),
            lora("bob", "qa"),
            hostile,
        ];
        Report::from_rows(rows, context)
    }

    /// Breaks where text of an adapter becomes markup, or a control character gets through.
    #[test]
    fn text_of_adapters_stays_text() {
        let page = html(&report()).unwrap();
        assert!(
            !page.contains("<script") && !page.contains("</script"),
            "markup got through"
        );
        assert!(page.contains("&lt;script&gt;"), "the name is not shown");
        let odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!page.contains(odd), "a control character got through");
        // No attribute was left by a quote: tags and attributes are the template's.
        let attribute = Regex::new(r#"<[a-z][^<>]*alert[^<>]*>"#).unwrap();
        for tag in attribute.find_iter(&page) {
            let tag = tag.unwrap().as_str();
            assert!(tag.contains("alert(&quot;1&quot;)"), "{tag}");
        }
    }

    /// Breaks where the page needs the network or a script, or its policy lets one in.
    #[test]
    fn the_page_is_alone() {
        let page = html(&report()).unwrap();
        assert!(page.contains("default-src 'none'"));
        for bad in [
            "http:",
            "https:",
            "src=",
            "@import",
            "<link",
            "<iframe",
            "javascript:",
        ] {
            assert!(!page.contains(bad), "{bad} in the page");
        }
        let handler = Regex::new(r"<[^<>]* on[a-z]+=").unwrap();
        assert!(!handler.is_match(&page).unwrap(), "an event handler");
        assert_eq!(page, html(&report()).unwrap());
    }

    /// Breaks where a number on the page is not that of the JSON report, or a part of the report is
    /// not on the page.
    #[test]
    fn numbers_are_those_of_the_json() {
        let report = report();
        let json = serde_json::to_value(&report).unwrap();
        let page = html(&report).unwrap();
        let field = Regex::new(r#"data-field="([^"]+)" data-value="([^"]*)""#).unwrap();
        let mut seen = BTreeSet::new();
        for found in field.captures_iter(page.as_str()) {
            let found = found.unwrap();
            let place = found[1].replace("&#x2f;", "/");
            let value = found[2].replace("&quot;", "\"");
            let value: serde_json::Value = serde_json::from_str(&value).unwrap();
            assert_eq!(json.pointer(&place), Some(&value), "{place}");
            seen.insert(place);
        }
        let mut wanted = vec!["/bytes", "/bill/total", "/total/adapters", "/other/bytes"];
        wanted.extend(["/total/waste/optimizer", "/marginal/next_user_bytes"]);
        wanted.extend([
            "/by_user/2/bytes",
            "/by_task/0/adapters",
            "/by_base/1/broken",
        ]);
        wanted.extend([
            "/by_kind/0/parameters",
            "/rows/3/bytes",
            "/scenarios/0/saving",
        ]);
        for place in wanted {
            assert!(seen.contains(place), "{place} is not on the page");
        }
        let savings = page.matches("&#x2f;saving\"").count();
        assert_eq!(savings, report.scenarios.len());
        let unmeasured = page.matches("error not measured").count();
        let retrained = |s: &&FleetScenario| s.quality == Quality::Retrain { error: None };
        let retrained = report.scenarios.iter().filter(retrained).count();
        assert!(retrained > 0 && unmeasured >= 3 * retrained, "{unmeasured}");
    }

    /// Breaks where a fleet of nothing but bytes has no page.
    #[test]
    fn little_is_enough() {
        let report = Report::from_rows(vec![Row::new("a", Format::Peft)], Context::default());
        let page = html(&report).unwrap();
        assert!(page.contains("Not known for any adapter."));
        assert!(page.contains("Everything could be read."));
    }
}
