//! A rate–distortion curve as an SVG picture.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::curve::{Curve, CurvePoint};
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

/// One line of the picture, from what a point of the curve has of it.
struct Line {
    name: &'static str,
    colour: RGBColor,
    width: u32,
    of: fn(&CurvePoint) -> f64,
}

const LINES: [Line; 5] = [
    Line {
        name: "no tied adapter is below",
        colour: BOUND,
        width: 1,
        of: |p| p.bound_with_v,
    },
    Line {
        name: "LoRA, one rank for all",
        colour: colours::SKY,
        width: 2,
        of: |p| p.per_module,
    },
    Line {
        name: "LoRA, largest terms",
        colour: colours::BLUE,
        width: 2,
        of: |p| p.global,
    },
    Line {
        name: "tied, with cores",
        colour: colours::GREEN,
        width: 2,
        of: |p| p.core,
    },
    Line {
        name: "tied",
        colour: colours::VERMILION,
        width: 2,
        of: |p| p.error,
    },
];

/// Error against bytes on a logarithmic axis: the tied fits, what bounds them, and LoRAs of the same
/// bytes; a disc where the LoRA itself is. The same curve gives the same bytes.
///
/// # Errors
/// [`crate::Code::Io`] where the picture cannot be drawn, which no input is known to bring about.
pub fn figure(curve: &Curve) -> Result<String> {
    chart::svg("the curve", |area| draw(area, curve))
}

fn draw(area: &Area<'_>, curve: &Curve) -> Drawn {
    let log = |bytes: u64| (bytes.max(1) as f64).log10();
    let logs = curve.points.iter().map(|p| p.bytes);
    let logs = logs.chain([curve.bytes_before]).map(log);
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
        let of = |p: &CurvePoint| (log(p.bytes), (line.of)(p).clamp(0.0, 1.0));
        let points = curve.points.iter().map(of);
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
    let lora = (log(curve.bytes_before), 0.0);
    chart
        .draw_series([Circle::new(lora, 5, BLACK.filled())])?
        .label("the LoRA itself")
        .legend(|(x, y)| Circle::new((x + 12, y), 5, BLACK.filled()));
    chart::framed(&mut chart.configure_series_labels())
        .position(SeriesLabelPosition::LowerLeft)
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
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
            per_module: *error,
            per_module_rank: 1,
        };
        Curve {
            bytes_before,
            points: sizes.iter().enumerate().map(point).collect(),
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
            4 * 3,
            "four lines of three points"
        );
        assert_eq!(svg.matches("r=\"5\"").count(), 2, "the LoRA and its legend");
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
