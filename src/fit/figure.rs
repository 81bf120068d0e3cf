//! A rate–distortion curve as an SVG picture.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::curve::{Curve, CurvePoint};
use super::forms::CurveForm;
use crate::chart::{self, Area, Drawn, colours};
use crate::error::Result;

const BOUND: RGBColor = RGBColor(160, 160, 160);

type Point = (f64, f64);

/// log₁₀ of bytes, with labels at 1, 2 and 5 times the powers of ten.
struct ByteAxis(RangedCoordf64, Range<f64>);

impl Ranged for ByteAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.0.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        let powers = (0..20).flat_map(|p| [1.0f64, 2.0, 5.0].map(|m| m.log10() + f64::from(p)));
        powers.filter(|at| self.1.contains(at)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.1.clone()
    }
}

impl ValueFormatter<f64> for ByteAxis {
    fn format(log10: &f64) -> String {
        let bytes = 10f64.powf(*log10);
        let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")];
        let unit = units.iter().find(|u| bytes > 0.999 * u.0);
        let (size, name) = unit.copied().unwrap_or((1.0, "B"));
        format!("{:.0} {name}", bytes / size)
    }
}

/// One line of the picture: bytes and errors.
struct Line {
    name: &'static str,
    colour: RGBColor,
    width: u32,
    of: fn(&Curve) -> Vec<(u64, f64)>,
}

fn each(curve: &Curve, of: fn(&CurvePoint) -> f64) -> Vec<(u64, f64)> {
    curve.points.iter().map(|p| (p.bytes, of(p))).collect()
}

const LINES: [Line; 8] = [
    Line {
        name: "no tied adapter is below",
        colour: BOUND,
        width: 1,
        of: |c| each(c, |p| p.bound_with_v),
    },
    Line {
        name: "LoRA, one rank for all",
        colour: colours::SKY,
        width: 2,
        of: |c| each(c, |p| p.per_module),
    },
    Line {
        name: "LoRA, largest terms",
        colour: colours::BLUE,
        width: 2,
        of: |c| each(c, |p| p.global),
    },
    Line {
        name: "LoRA, largest terms, f16",
        colour: colours::ORANGE,
        width: 2,
        of: |c| each(c, |p| p.truncated),
    },
    Line {
        name: "tied, with cores",
        colour: colours::GREEN,
        width: 2,
        of: |c| each(c, |p| p.core),
    },
    Line {
        name: "tied",
        colour: colours::VERMILION,
        width: 2,
        of: |c| each(c, |p| p.error),
    },
    Line {
        name: "no code of Gaussian components is below",
        colour: BLACK,
        width: 1,
        of: |c| c.coded.iter().map(|p| (p.bound_bytes, p.error)).collect(),
    },
    Line {
        name: "coded",
        colour: colours::PURPLE,
        width: 2,
        of: |c| c.coded.iter().map(|p| (p.bytes, p.error)).collect(),
    },
];

/// The LoRA itself and its smaller types: a disc each.
fn discs(curve: &Curve) -> [(&'static str, RGBColor, (u64, f64)); 3] {
    let at = |f: &CurveForm| (f.bytes, f.error);
    [
        ("the LoRA itself", BLACK, (curve.bytes_before, 0.0)),
        ("f16", colours::ORANGE, at(&curve.f16)),
        ("int8", colours::GREEN, at(&curve.int8)),
    ]
}

/// Error against bytes on a logarithmic axis: the tied fits and the coded LoRA, what bounds both, and LoRAs of the same
/// bytes; a disc where the LoRA itself is, and where smaller types are. The same curve gives the same bytes.
///
/// # Errors
/// [`crate::Code::Io`] where the picture cannot be drawn, which no input is known to bring about.
pub fn figure(curve: &Curve) -> Result<String> {
    chart::svg("the curve", |area| draw(area, curve))
}

fn draw(area: &Area<'_>, curve: &Curve) -> Drawn {
    let log = |bytes: u64| (bytes.max(1) as f64).log10();
    let lines = LINES.iter().flat_map(|l| (l.of)(curve));
    let discs = discs(curve);
    let all = lines.chain(discs.iter().map(|d| d.2));
    let logs = all.map(|(bytes, _)| log(bytes));
    let (low, high) = logs.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
    let x = low.min(high) - 0.1..high + 0.1;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(ByteAxis(x.clone().into(), x), -0.02..1.02)?;
    chart::plain(&mut chart.configure_mesh())
        .x_desc("bytes")
        .y_desc("relative error of the updates")
        .y_label_formatter(&|y| format!("{y:.1}"))
        .draw()?;
    for line in LINES {
        let points = (line.of)(curve).into_iter();
        let points = points.map(|(bytes, error)| (log(bytes), error.clamp(0.0, 1.0)));
        let points: Vec<Point> = points.filter(|p| p.1.is_finite()).collect();
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(
                points.clone(),
                colour.stroke_width(line.width),
            ))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2)));
        let dots = points.iter().filter(|_| line.width > 1);
        chart.draw_series(dots.map(|at| Circle::new(*at, 3, colour.filled())))?;
    }
    for (name, colour, (bytes, error)) in discs {
        let at = (
            log(bytes),
            if error.is_finite() {
                error.clamp(0.0, 1.0)
            } else {
                1.0
            },
        );
        chart
            .draw_series([Circle::new(at, 5, colour.filled())])?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 12, y), 5, colour.filled()));
    }
    chart::framed(&mut chart.configure_series_labels())
        .position(SeriesLabelPosition::LowerLeft)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::forms::CurveCoded;
    use super::*;

    fn curve(sizes: &[(u64, f64)], bytes_before: u64) -> Curve {
        let point = |(rank, (bytes, error)): (usize, &(u64, f64))| CurvePoint {
            rank,
            bytes: *bytes,
            error: *error,
            bound: *error,
            bound_with_v: *error,
            core: *error,
            core_rank: 1,
            baseline: *error,
            global: *error,
            truncated: *error,
            per_module: *error,
            per_module_rank: 1,
        };
        let form = |share: u64| CurveForm {
            bytes: bytes_before / share,
            error: 0.01,
        };
        let coded = |(bytes, error): &(u64, f64)| CurveCoded {
            bytes: *bytes,
            error: *error / 8.0,
            bound_bytes: bytes / 10 * 9,
        };
        Curve {
            bytes_before,
            points: sizes.iter().enumerate().map(point).collect(),
            f16: form(2),
            int8: form(4),
            coded: sizes.iter().map(coded).collect(),
            summary: String::new(),
            kept: Vec::new(),
        }
    }

    /// Breaks where a line, its name, an axis or the LoRA itself is missing, or the picture changes
    /// from one drawing to the next.
    #[test]
    fn every_line_has_its_points_and_its_name() {
        let sizes = [(1_000, 0.9), (4_000, 0.7), (20_000, 0.4)];
        let svg = figure(&curve(&sizes, 64_000)).unwrap();
        for text in LINES.map(|l| l.name) {
            assert!(svg.contains(&format!("\n{text}\n")), "{text}");
        }
        for text in ["bytes", "relative error of the updates", "2 kB", "50 kB"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(
            svg.matches("r=\"3\"").count(),
            6 * 3,
            "six lines of three points"
        );
        assert_eq!(
            svg.matches("r=\"5\"").count(),
            2 * 3,
            "the LoRA, two types, and their legends"
        );
        assert_eq!(svg, figure(&curve(&sizes, 64_000)).unwrap());
    }

    /// Breaks where numbers that no picture has room for make the plotting library panic or never
    /// end.
    #[test]
    fn few_and_odd_values_make_a_picture() {
        for (sizes, before) in [
            (&[][..], 0),
            (&[(0, 0.0)][..], 0),
            (&[(5, f64::NAN), (5, f64::INFINITY)][..], 5),
            (&[(u64::MAX, 1.0), (1, -7.0)][..], u64::MAX),
        ] {
            let svg = figure(&curve(sizes, before)).unwrap();
            assert!(
                svg.ends_with("</svg>\n") && !svg.contains("NaN"),
                "{sizes:?}"
            );
        }
    }
}
