//! The loss curve of a run as an SVG picture.

use std::ops::Range;

use plotters::prelude::*;

use super::log::Line;
use crate::chart::{self, Area, Drawn};
use crate::error::Result;

/// Most points of a line: more could not be told apart on a picture this wide.
const MAX_POINTS: usize = 1000;
/// Largest value that is drawn; the difference of two f64 may be infinite.
pub(crate) const MAX_DRAWN: f64 = 1e12;
const TRAINING: RGBColor = RGBColor(120, 160, 200);
const VALIDATION: RGBColor = RGBColor(200, 80, 20);

type Point = (f64, f64);

/// The training loss (a thin line) and the validation loss (a line with points) of `lines`
/// against the step. The same lines give the same bytes. Of long runs, every point of the
/// training loss is the mean of some steps; values that are not finite, or absurd, are left out.
///
/// # Errors
/// [`crate::Code::Io`] where the picture cannot be drawn, which no input is known to bring about.
pub(crate) fn curve(lines: &[Line]) -> Result<String> {
    let train = points(lines, |line| match line {
        Line::Step(s) => Some((s.step, s.loss)),
        Line::Valid(_) => None,
    });
    let valid = points(lines, |line| match line {
        Line::Valid(v) => Some((v.step, v.valid_loss)),
        Line::Step(_) => None,
    });
    chart::svg("the loss curve", |area| {
        draw(area, &thinned(&train), &thinned(&valid))
    })
}

fn draw(area: &Area<'_>, train: &[Point], valid: &[Point]) -> Drawn {
    let all = || train.iter().chain(valid);
    let x = range(all().map(|p| p.0).chain([0.0]), 0.0);
    let y = range(all().map(|p| p.1), 0.05);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart::plain(&mut chart.configure_mesh())
        .x_label_formatter(&|x| x.to_string())
        .x_desc("step")
        .y_desc("loss (nats per token)")
        .draw()?;
    let line = |points: &[Point], style| LineSeries::new(points.to_vec(), style);
    let dot = |at: Point, size, color: RGBColor| Circle::new(at, size, color.filled());
    if !train.is_empty() {
        chart
            .draw_series(line(train, TRAINING.stroke_width(1)))?
            .label("training")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], TRAINING));
    }
    // A line of one point would be invisible.
    if let [only] = train {
        chart.draw_series([dot(*only, 2, TRAINING)])?;
    }
    if !valid.is_empty() {
        chart.draw_series(line(valid, VALIDATION.stroke_width(2)))?;
        chart
            .draw_series(valid.iter().map(|at| dot(*at, 4, VALIDATION)))?
            .label("validation")
            .legend(|(x, y)| Circle::new((x + 12, y), 4, VALIDATION.filled()));
    }
    if !(train.is_empty() && valid.is_empty()) {
        chart::framed(&mut chart.configure_series_labels())
            .position(SeriesLabelPosition::UpperRight)
            .draw()?;
    }
    Ok(())
}

fn points(lines: &[Line], pick: impl Fn(&Line) -> Option<(u64, f64)>) -> Vec<Point> {
    let picked = lines.iter().filter_map(pick);
    let drawable = picked.filter(|(_, loss)| loss.abs() <= MAX_DRAWN);
    drawable.map(|(step, loss)| (step as f64, loss)).collect()
}

/// At most [`MAX_POINTS`] points: means of equally many neighbours.
fn thinned(points: &[Point]) -> Vec<Point> {
    let each = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[Point]| {
        let n = part.len() as f64;
        part.iter()
            .fold((0.0, 0.0), |s, p| (s.0 + p.0 / n, s.1 + p.1 / n))
    };
    points.chunks(each).map(mean).collect()
}

/// The range of `values`, wider on both sides by a part `margin` of it. It is never empty, nor so
/// narrow that the ticks of an axis could not be told apart in f64, which plotters would look for
/// without end.
pub(crate) fn range(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let start = (f64::INFINITY, f64::NEG_INFINITY);
    let (min, max) = values.fold(start, |(a, b), v| (a.min(v), b.max(v)));
    if min > max {
        return 0.0..1.0;
    }
    let size = min.abs().max(max.abs()).max(1e-3);
    let margin = match max - min > 1e-6 * size {
        true => (max - min) * margin,
        false => size / 2.0,
    };
    min - margin..max + margin
}

#[cfg(test)]
mod tests {
    use super::super::log::{StepLine, ValidLine};
    use super::*;

    fn step(step: u64, loss: f64) -> Line {
        Line::Step(StepLine {
            step,
            loss,
            lr: 0.0,
            grad_norm: 0.0,
            tokens: 0,
            tokens_per_s: 0.0,
            seconds: 0.0,
        })
    }

    fn valid(step: u64, valid_loss: f64) -> Line {
        Line::Valid(ValidLine {
            step,
            valid_loss,
            best: false,
        })
    }

    #[test]
    fn a_run_has_both_lines_axes_and_a_legend() {
        let mut lines: Vec<Line> = (1..=100).map(|n| step(n, 3.0 / n as f64)).collect();
        lines.extend([valid(0, 3.1), valid(50, 1.0), valid(100, 0.9)]);
        let svg = curve(&lines).unwrap();
        for text in [
            "<svg",
            "step",
            "loss (nats per token)",
            "training",
            "validation",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(
            svg.matches("r=\"4\"").count(),
            4,
            "three points and the legend's"
        );
        assert_eq!(svg, curve(&lines).unwrap(), "the same bytes each time");
    }

    #[test]
    fn few_odd_and_many_values_make_a_picture() {
        // A range that is empty or not finite would make the plotting library panic or never end.
        let huge = f64::MAX;
        for lines in [
            vec![],
            vec![step(1, 2.0)],
            vec![valid(0, 2.0)],
            vec![step(1, f64::NAN), valid(0, f64::INFINITY)],
            vec![step(1, 2.0), step(2, 2.0)],
            vec![step(1, -1e-300), step(2, 1e-300), step(3, f64::NAN)],
            vec![step(1, 1e15), step(2, 1e15 + 0.125)],
            vec![step(u64::MAX, 1.0), valid(u64::MAX, 0.0)],
            vec![step(1, huge), step(2, -huge), valid(3, 0.0)],
        ] {
            let svg = curve(&lines).unwrap();
            assert!(
                svg.ends_with("</svg>\n") && !svg.contains("NaN"),
                "{lines:?}"
            );
        }
        let long: Vec<Line> = (1..=100_000).map(|n| step(n, n as f64)).collect();
        assert!(curve(&long).unwrap().len() < 50_000);
    }
}
