//! The scores of a sweep against the rank, as in the paper's Figure 2, with bars where seeds lie apart.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::metric::Metric;
use super::result::CellResult;
use super::summary::{best, summaries};
use crate::adapter::Method;
use crate::chart::{self, Area, Drawn, SIZE, colours};
use crate::error::Result;
use crate::train::curve::{MAX_DRAWN, range};

/// Most ranks with a label: more would run into one another.
const MAX_LABELS: usize = 16;
const LEGEND_WIDTH: u32 = 96;
const COLOURS: [RGBColor; 8] = [
    BLACK,
    colours::ORANGE,
    colours::SKY,
    colours::GREEN,
    colours::PURPLE,
    colours::BLUE,
    colours::VERMILION,
    // Theirs is too light for a line on white.
    RGBColor(160, 140, 0),
];

/// log₂ of a rank, the score of the best learning rate, and how far its seeds lie apart (0 of one seed).
#[derive(Clone, Copy)]
struct Point {
    at: (f64, f64),
    spread: f64,
}

impl Point {
    /// The lower and the upper end of its bar.
    fn ends(&self) -> [(f64, f64); 2] {
        let (x, y) = self.at;
        [(x, y - self.spread), (x, y + self.spread)]
    }
}

/// log₂ of ranks, with labels where the sweep has a rank and nowhere between.
struct RankAxis {
    range: RangedCoordf64,
    labelled: Vec<f64>,
}

impl Ranged for RankAxis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.labelled.clone(),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.range()
    }
}

impl ValueFormatter<f64> for RankAxis {
    fn format(log2: &f64) -> String {
        format!("{:.0}", log2.exp2())
    }
}

struct Line {
    method: Method,
    points: Vec<Point>,
    /// Place among the presets: a method looks the same in every figure.
    look: usize,
}

/// A line for each method: the score of its best learning rate against the rank, on a
/// logarithmic axis. The same cells give the same bytes. Ranks at which a method has no score, or
/// an absurd one, are left out.
///
/// # Errors
/// [`crate::Code::Io`] where the picture cannot be drawn, which no input is known to bring about.
pub(super) fn figure(cells: &[CellResult], metric: &Metric) -> Result<String> {
    let mut ranks: Vec<usize> = cells.iter().map(|c| c.rank.max(1)).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let cells = &summaries(cells);
    let line = |(look, method): (usize, Method)| {
        let score = |rank: &usize| {
            let cell = best(cells, metric, |c| c.method == method && c.rank == *rank)?;
            let score = cell.score.filter(|s| s.abs() <= MAX_DRAWN)?;
            let spread = cell.spread.filter(|s| *s <= MAX_DRAWN).unwrap_or(0.0);
            Some(Point {
                at: ((*rank as f64).log2(), score),
                spread,
            })
        };
        Line {
            method,
            points: ranks.iter().filter_map(score).collect(),
            look,
        }
    };
    let lines: Vec<Line> = Method::PRESETS.into_iter().enumerate().map(line).collect();
    chart::svg("the figure", |area| draw(area, &ranks, &lines, metric))
}

fn draw(area: &Area<'_>, ranks: &[usize], lines: &[Line], metric: &Metric) -> Drawn {
    let lines = || lines.iter().filter(|line| !line.points.is_empty());
    let log2 = |rank: &usize| (*rank as f64).log2();
    let x = range(ranks.iter().map(log2), 0.04);
    let y = range(
        lines()
            .flat_map(|l| &l.points)
            .flat_map(Point::ends)
            .map(|end| end.1),
        0.08,
    );
    let each = ranks.len().div_ceil(MAX_LABELS).max(1);
    let x = RankAxis {
        range: x.into(),
        labelled: ranks.iter().step_by(each).map(log2).collect(),
    };
    let (plot, legend) = area.split_horizontally(SIZE.0 - LEGEND_WIDTH);
    let mut chart = ChartBuilder::on(&plot)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)?;
    chart::plain(&mut chart.configure_mesh())
        .x_desc("rank")
        .y_desc(metric.title())
        .draw()?;
    for line in lines() {
        let look = line.look;
        let colour = COLOURS.get(look).copied().unwrap_or(BLACK);
        let places = line.points.iter().map(|p| p.at);
        chart.draw_series(LineSeries::new(places.clone(), colour.stroke_width(2)))?;
        let bars = line.points.iter().filter(|p| p.spread > 0.0);
        chart.draw_series(bars.map(|p| PathElement::new(p.ends(), colour.stroke_width(1))))?;
        chart.draw_series(places.map(|at| EmptyElement::at(at) + marker(look, colour)))?;
    }
    // Beside the lines: they go where they like, and would run under it.
    for (line, y) in lines().zip((32..).step_by(24)) {
        let colour = COLOURS.get(line.look).copied().unwrap_or(BLACK);
        let name = Text::new(line.method.name(), (14, -7), ("sans-serif", 15));
        legend.draw(&(EmptyElement::at((16, y)) + marker(line.look, colour)))?;
        legend.draw(&(EmptyElement::at((16, y)) + name))?;
    }
    Ok(())
}

/// A disc, triangle, square or diamond, in pixels around a point: neighbouring methods differ by
/// more than their colour.
fn marker(look: usize, colour: RGBColor) -> Polygon<(i32, i32)> {
    let outline: &[(i32, i32)] = match look % 4 {
        0 => &[
            (-2, -5),
            (2, -5),
            (5, -2),
            (5, 2),
            (2, 5),
            (-2, 5),
            (-5, 2),
            (-5, -2),
        ],
        1 => &[(0, -6), (6, 5), (-6, 5)],
        2 => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        _ => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    };
    Polygon::new(outline, colour.filled())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ACCURACY, LOSS, result};
    use super::*;

    /// Breaks where a method has no line of its own, the axis is not of ranks, or the picture
    /// changes from one drawing to the next.
    #[test]
    fn every_method_has_its_line_and_marker() {
        let mut cells = Vec::new();
        for (n, method) in Method::PRESETS.into_iter().enumerate() {
            for rank in [2, 4, 8, 16, 32, 64, 128] {
                let score = 30.0 + n as f64 + (rank as f64).ln();
                cells.push(result(method, rank, 1e-4, Some(score)));
            }
        }
        let svg = figure(&cells, &ACCURACY).unwrap();
        for text in ["rank", "accuracy (%), higher is better", "128"] {
            assert!(svg.contains(text), "{text}");
        }
        for method in Method::PRESETS {
            assert!(svg.contains(&format!("\n{method}\n")), "{method}");
        }
        let markers = svg.matches("<polygon").count();
        assert_eq!(markers, 8 * (7 + 1), "seven points and the legend's");
        assert_eq!(svg, figure(&cells, &ACCURACY).unwrap());
    }

    /// Breaks where cells that a picture has no room for make the plotting library panic or never
    /// end.
    #[test]
    fn few_and_odd_values_make_a_picture() {
        let one = |rank, score| result(Method::Tl6, rank, 1e-4, score);
        for cells in [
            vec![],
            vec![one(1, Some(2.0))],
            vec![one(8, None)],
            vec![one(8, Some(f64::NAN)), one(8, Some(f64::INFINITY))],
            vec![one(8, Some(f64::MAX)), one(16, Some(-f64::MAX))],
            vec![one(0, Some(1.0)), one(usize::MAX, Some(1.0))],
            (1..600).map(|rank| one(rank, Some(rank as f64))).collect(),
        ] {
            let svg = figure(&cells, &LOSS).unwrap();
            assert!(
                svg.ends_with("</svg>\n") && !svg.contains("NaN"),
                "{cells:?}"
            );
        }
    }
}
