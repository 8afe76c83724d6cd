//! Charts: a quantity against the number of CPUs, a line for each system, as SVG.

use anyhow::{Result, anyhow};
use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    prelude::*,
};

/// A line of a chart.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Number of CPUs, and the quantity.
    pub points: Vec<(u32, f64)>,
}

/// What a chart shows.
pub struct Chart<'a> {
    /// The quantity and its unit, above the chart.
    pub quantity: &'a str,
    /// The lines.
    pub lines: &'a [Line],
    /// A logarithmic scale, with everything below [`FLOOR`] shown there, as 0.
    pub logarithmic: bool,
}

/// The bottom of a logarithmic scale.
const FLOOR: f64 = 0.01;
/// Pixels, before the page scales it: small, so that the letters stay legible on a phone.
const SIZE: (u32, u32) = (560, 340);

/// Distinguishable also without colour vision (Okabe, Ito, "Color Universal Design", 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x33, 0x33, 0x33),
];

/// The chart as an SVG element.
pub fn svg(chart: &Chart<'_>) -> Result<String> {
    let most = chart.lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        match chart.logarithmic {
            true => {
                plot(&area, chart, (FLOOR..most.max(1.0) * 3.0).log_scale().with_key_points(decades(most)))?
            }
            false => plot(&area, chart, 0.0..(most * 1.25).max(f64::MIN_POSITIVE))?,
        }
        area.present().map_err(drawing)?;
    }
    Ok(text)
}

/// The powers of ten from [`FLOOR`] up to `most`.
fn decades(most: f64) -> Vec<f64> {
    (-2..9).map(|exponent| 10f64.powi(exponent)).take_while(|&n| n <= most.max(1.0) * 3.0).collect()
}

fn plot<Y>(area: &DrawingArea<SVGBackend<'_>, Shift>, chart: &Chart<'_>, y: Y) -> Result<()>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut cpus: Vec<f64> =
        chart.lines.iter().flat_map(|line| &line.points).map(|p| f64::from(p.0)).collect();
    cpus.sort_by(f64::total_cmp);
    cpus.dedup();
    let (first, last) = (cpus.first().copied().unwrap_or(1.0), cpus.last().copied().unwrap_or(1.0));
    // A scale needs two ends; the marks are where something was measured.
    let x = (first * 0.9..last.max(first + 1.0) * 1.1).log_scale().with_key_points(cpus);
    let mut context = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .caption(chart.quantity, ("sans-serif", 16))
        .build_cartesian_2d(x, y)
        .map_err(drawing)?;
    context
        .configure_mesh()
        .x_desc("CPUs")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| number(*y, chart.logarithmic))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(drawing)?;
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        let shown = |y: f64| if chart.logarithmic { y.max(FLOOR) } else { y };
        let points = line.points.iter().map(|&(x, y)| (f64::from(x), shown(y)));
        let series = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
        context
            .draw_series(series)
            .map_err(drawing)?
            .label(&line.name)
            .legend(move |at| Circle::new((at.0 + 8, at.1), 4, colour.filled()));
    }
    // In the corner that the curves leave free: they rise or fall.
    let rises = chart.lines.iter().any(|line| {
        line.points.first().zip(line.points.last()).is_some_and(|(first, last)| first.1 <= last.1)
    });
    let corner = if rises { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperRight };
    context
        .configure_series_labels()
        .position(corner)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(drawing)
}

/// A number short enough for an axis.
fn number(n: f64, logarithmic: bool) -> String {
    match n {
        n if logarithmic && n <= FLOOR => "0".to_owned(),
        0.0 => "0".to_owned(),
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e4 => format!("{}k", n / 1e3),
        n if n >= 10.0 => format!("{n:.0}"),
        n => format!("{n}"),
    }
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw a chart: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(logarithmic: bool, points: &[(u32, f64)]) -> String {
        let lines = [Line { name: "Quire <locked>".into(), points: points.to_vec() }];
        svg(&Chart { quantity: "transfers", lines: &lines, logarithmic }).unwrap()
    }

    #[test]
    fn a_line_has_a_mark_for_each_point_and_a_name() {
        let text = chart(false, &[(1, 5.0), (8, 3.0), (80, 1.0)]);
        // One more for the legend.
        assert_eq!(text.matches("<circle").count(), 4);
        assert!(text.contains("Quire &lt;locked&gt;") && text.contains("CPUs"));
    }

    #[test]
    fn nothing_and_zero_can_be_shown() {
        for points in [&[][..], &[(1, 0.0)], &[(1, 0.0), (80, 0.0)]] {
            for logarithmic in [false, true] {
                assert!(chart(logarithmic, points).starts_with("<svg"));
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.5, "0.5"), (12.0, "12"), (20_000.0, "20k"), (3e6, "3M")];
        assert!(cases.iter().all(|(n, text)| number(*n, false) == *text));
        assert_eq!(number(FLOOR, true), "0");
    }
}
