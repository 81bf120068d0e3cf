//! The bytes of the fleet against the error of a form, as geometry for the page's template.

use minijinja::{Value, context};

use super::charts::{bytes, count};
use super::report::{FleetScenario, Report};
use super::scenario::{Form, Quality};

/// The drawing, in units of its view box.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 322.0;
/// Where what is exact stands, left of the errors.
const EXACT: f64 = 100.0;
const FIRST: f64 = 140.0;
/// Decades of error that are drawn, from 0.001 % to 100 %.
const DECADES: (i32, i32) = (-5, 0);
/// About what a letter and a line of a label take.
const LETTER: f64 = 6.2;
const LINE: f64 = 13.0;

/// A form as a point.
struct Point {
    label: String,
    /// How it is drawn.
    class: &'static str,
    x: f64,
    y: f64,
    told: String,
}

/// A label's box: its left upper corner, and its width.
type Place = (f64, f64, f64);

/// `None` where no form has a measured error.
pub(super) fn plot(report: &Report) -> Option<Value> {
    let measured =
        |s: &&FleetScenario| matches!(s.quality, Quality::Measured { .. } | Quality::Fitted { .. });
    report.scenarios.iter().find(measured)?;
    let forms = report.scenarios.iter();
    let shown: Vec<(&FleetScenario, f64)> = forms.filter_map(|s| Some((s, error(s)?))).collect();
    let fleets = shown.iter().map(|(s, _)| s.fleet_bytes);
    let max = fleets.chain([report.bytes]).max().unwrap_or(1).max(1);
    let y = |n: u64| BOTTOM - (BOTTOM - TOP) * n as f64 / max as f64;
    let mut points = vec![Point {
        label: "now".to_owned(),
        class: "exact",
        x: EXACT,
        y: y(report.bytes),
        told: format!("now: {}", bytes(report.bytes)),
    }];
    points.extend(shown.iter().map(|(s, error)| point(s, *error, &y)));
    let line = |class: &str, of: &dyn Fn(&FleetScenario) -> Option<u64>| {
        let corner = |(s, error): &(&FleetScenario, f64)| {
            Some(format!("{:.1},{:.1}", across(*error), y(of(s)?)))
        };
        let corners: Vec<String> = shown.iter().filter_map(corner).collect();
        context! { class, points => corners.join(" ") }
    };
    let coded = |s: &FleetScenario| matches!(s.form, Form::Coded(_)).then_some(s.fleet_bytes);
    let cut = |s: &FleetScenario| matches!(s.form, Form::Truncated(_)).then_some(s.fleet_bytes);
    let bound = |s: &FleetScenario| bound(report, s);
    let lines = vec![
        line("coded", &coded),
        line("truncated", &cut),
        line("bound", &bound),
    ];
    let told = points.iter().map(|p| p.told.clone());
    let bounds = shown.iter().filter_map(|(s, error)| {
        let n = bound(s)?;
        Some(format!("bound at {}: {}", percent(*error), bytes(n)))
    });
    let told: Vec<String> = told.chain(bounds).collect();
    Some(context! {
        width => WIDTH, height => HEIGHT, left => LEFT, right => RIGHT, top => TOP, bottom => BOTTOM,
        told => told.join("; "),
        lines,
        points => drawn(&points),
        across => ticks_across(),
        up => ticks_up(max, &y),
    })
}

/// The error of a form; `None` where none was measured.
fn error(scenario: &FleetScenario) -> Option<f64> {
    match scenario.quality {
        Quality::Exact => Some(0.0),
        Quality::Rounded { bound } => Some(bound),
        Quality::Measured { error } | Quality::Fitted { error } => Some(error),
        Quality::Retrain { error } => error,
    }
}

/// The bytes of the fleet in which the adapters of a coded form take what its bound says.
fn bound(report: &Report, scenario: &FleetScenario) -> Option<u64> {
    let rest = report.bytes.saturating_sub(scenario.bytes_now);
    Some(rest.saturating_add(scenario.bound_bytes?))
}

fn point(scenario: &FleetScenario, error: f64, y: &dyn Fn(u64) -> f64) -> Point {
    let joint = if scenario.joint { " joint" } else { "" };
    let label = format!("{}{joint}", scenario.form.name());
    let off = match scenario.quality {
        Quality::Exact => "exact".to_owned(),
        Quality::Rounded { .. } => format!("a number off by up to {}", percent(error)),
        _ => format!("updates off by up to {}", percent(error)),
    };
    Point {
        told: format!("{label}: {}, {off}", bytes(scenario.fleet_bytes)),
        label,
        class: match scenario.form {
            Form::Coded(_) => "coded",
            Form::Truncated(_) => "truncated",
            Form::Fit => "retrain",
            _ if scenario.quality == Quality::Exact => "exact",
            _ => "rounded",
        },
        x: across(error),
        y: y(scenario.fleet_bytes),
    }
}

/// Where an error stands: its logarithm, and apart from all others what is exact.
fn across(error: f64) -> f64 {
    let (low, high) = (f64::from(DECADES.0), f64::from(DECADES.1));
    // NaN is as far off as can be.
    match error {
        0.0 => EXACT,
        e if e.is_nan() => RIGHT,
        e => FIRST + (RIGHT - FIRST) * ((e.log10() - low) / (high - low)).clamp(0.0, 1.0),
    }
}

fn percent(error: f64) -> String {
    format!("{:.3}\u{202f}%", 100.0 * error)
}

/// Points with their labels beside them, where none lies over another as far as there is room.
fn drawn(points: &[Point]) -> Vec<Value> {
    let mut taken: Vec<Place> = points
        .iter()
        .map(|p| (p.x - 5.0, p.y - 5.0, 10.0))
        .collect();
    let mut values = Vec::new();
    for point in points {
        let width = LETTER * point.label.chars().count() as f64;
        let (x, y) = (point.x, point.y - LINE / 2.0);
        let near = (0..6).flat_map(|step| {
            let by = LINE * f64::from(step);
            [y - by, y + by].map(|y| [(x + 8.0, y, width), (x - 8.0 - width, y, width)])
        });
        let free = |place: &Place| is_inside(place) && !taken.iter().any(|t| overlap(t, place));
        let place = near.flatten().find(free).unwrap_or((x + 8.0, y, width));
        taken.push(place);
        values.push(context! {
            class => point.class,
            told => point.told.as_str(),
            label => point.label.as_str(),
            x => at(point.x),
            y => at(point.y),
            label_x => at(place.0),
            label_y => at(place.1 + LINE - 3.0),
        });
    }
    values
}

fn is_inside((x, y, width): &Place) -> bool {
    *x >= LEFT && x + width <= WIDTH && *y >= 0.0 && y + LINE <= BOTTOM
}

fn overlap(one: &Place, two: &Place) -> bool {
    let apart = one.0 + one.2 <= two.0 || two.0 + two.2 <= one.0;
    !apart && (one.1 - two.1).abs() < LINE
}

fn at(n: f64) -> String {
    format!("{n:.1}")
}

fn ticks_across() -> Vec<Value> {
    let exact = context! { x => at(EXACT), label => "exact" };
    let decade = |power: i32| {
        let share = 10f64.powi(power);
        context! { x => at(across(share)), label => format!("{}\u{202f}%", 100.0 * share) }
    };
    let decades = (DECADES.0..=DECADES.1).map(decade);
    std::iter::once(exact).chain(decades).collect()
}

/// Four lines or five at round numbers of bytes.
fn ticks_up(max: u64, y: &dyn Fn(u64) -> f64) -> Vec<Value> {
    let power = 10u64.pow(max.ilog10());
    let step = match max / power {
        1 => power / 4,
        2..4 => power / 2,
        4..8 => power,
        _ => power.saturating_mul(2),
    };
    let ticks = (0..=8u64).map(|n| n.saturating_mul(step.max(1)));
    let tick =
        |n: u64| context! { y => at(y(n)), label => if n == 0 { count(0) } else { bytes(n) } };
    ticks.take_while(|n| *n <= max).map(tick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks where errors stand in another order than they are, or outside of the drawing.
    #[test]
    fn errors_stand_in_order() {
        let errors = [0.0, 1e-9, 1e-4, 0.05, 0.5, 1.0, 7.0];
        let places: Vec<f64> = errors.iter().map(|e| across(*e)).collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!((places[0], places[6]), (EXACT, RIGHT));
        assert_eq!(across(f64::NAN), RIGHT);
    }

    /// Breaks where labels of forms that take about the same lie over one another.
    #[test]
    fn labels_do_not_overlap() {
        let point = |n: u32| Point {
            label: format!("form {n}"),
            class: "coded",
            x: 300.0,
            y: 200.0 + f64::from(n),
            told: String::new(),
        };
        let points: Vec<Point> = (0..6).map(point).collect();
        let value = |v: &Value, key: &str| -> f64 {
            let value = v.get_attr(key).unwrap().to_string();
            value.parse().unwrap()
        };
        let places: Vec<Place> = drawn(&points)
            .iter()
            .map(|v| (value(v, "label_x"), value(v, "label_y"), LETTER * 6.0))
            .collect();
        for (n, one) in places.iter().enumerate() {
            for two in &places[n + 1..] {
                assert!(!overlap(one, two), "{one:?} {two:?}");
            }
        }
    }

    /// Breaks where a scale has no line but the lowest.
    #[test]
    fn scales_have_lines() {
        for max in [1, 7, 19, 20, 999, 1 << 40, u64::MAX] {
            let ticks = ticks_up(max, &|n| n as f64);
            assert!((2..=9).contains(&ticks.len()), "{max}: {}", ticks.len());
        }
    }
}
