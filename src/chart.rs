//! What all pictures have in common.

use plotters::chart::{MeshStyle, SeriesLabelStyle};
use plotters::coord::ranged1d::Ranged;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;

use crate::error::{Code, Error, Result};

/// Pixels.
pub(crate) const SIZE: (u32, u32) = (960, 540);

/// Okabe and Ito's colours, which colour-blind people can tell apart as well.
pub(crate) mod colours {
    use plotters::style::RGBColor;

    pub(crate) const ORANGE: RGBColor = RGBColor(230, 159, 0);
    pub(crate) const SKY: RGBColor = RGBColor(86, 180, 233);
    pub(crate) const GREEN: RGBColor = RGBColor(0, 158, 115);
    pub(crate) const BLUE: RGBColor = RGBColor(0, 114, 178);
    pub(crate) const VERMILION: RGBColor = RGBColor(213, 94, 0);
    pub(crate) const PURPLE: RGBColor = RGBColor(204, 121, 167);
}

/// The whole picture, or a part of it.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What drawing returns.
pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// A picture on white as SVG; `what` names it in an error.
///
/// # Errors
/// [`Code::Io`] where it cannot be drawn, which no input is known to bring about.
pub(crate) fn svg(what: &str, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = area
        .fill(&WHITE)
        .map_err(Into::into)
        .and_then(|()| draw(&area))
        .and_then(|()| Ok(area.present()?));
    drop(area);
    drawn.map_err(|e| Error::new(Code::Io, format!("cannot draw {what}: {e}")))?;
    Ok(svg)
}

/// A grid with the look that all have.
pub(crate) fn plain<'m, 'a, 'b, 'c, X: Ranged, Y: Ranged>(
    mesh: &'m mut MeshStyle<'a, 'b, X, Y, SVGBackend<'c>>,
) -> &'m mut MeshStyle<'a, 'b, X, Y, SVGBackend<'c>> {
    mesh.light_line_style(BLACK.mix(0.04))
        .bold_line_style(BLACK.mix(0.12))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
}

/// A legend over the lines, with the look that all have.
pub(crate) fn framed<'m, 'a, 'b, 'c: 'a, T: CoordTranslate>(
    labels: &'m mut SeriesLabelStyle<'a, 'b, SVGBackend<'c>, T>,
) -> &'m mut SeriesLabelStyle<'a, 'b, SVGBackend<'c>, T> {
    labels
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
}
