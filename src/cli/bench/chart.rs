//! Lines over two axes as an SVG: percentiles of latency, speed against length.

use super::super::svg::{self, escaped};
use super::BenchError;
use super::stats::{percentile, sorted};
use std::fmt::Write;
use std::path::Path;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Around the axes: left, top, right (names of the lines), bottom.
const MARGIN: [f64; 4] = [70.0, 20.0, 190.0, 50.0];
const GREY: &str = "#888";
/// Okabe & Ito (2008), for every kind of colour vision; lines beyond these repeat them dashed.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// What is drawn.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    /// Where a label stands on the x axis.
    pub(super) x_ticks: Vec<(f64, String)>,
    pub(super) y_scale: Scale,
    pub(super) lines: Vec<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    Logarithmic,
}

pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Percentiles to the last one that the samples tell, against 1 / (1 - share) on a logarithmic axis, so that the
/// tail has room.
pub(super) fn percentiles(
    title: String,
    y: &'static str,
    series: impl IntoIterator<Item = (String, Vec<f64>)>,
) -> Chart {
    let place = |share: f64| -(1.0 - share).log10();
    // 1, 2, 5, … of each power of ten beyond
    let shares: Vec<f64> = (0..60).map(|i| 1.0 - 10f64.powf(-f64::from(i) / 10.0)).collect();
    let lines: Vec<Line> = series
        .into_iter()
        .map(|(name, samples)| {
            let samples = sorted(samples);
            let points = shares.iter().filter_map(|&s| Some((place(s), percentile(&samples, s)?)));
            Line { name, points: points.collect() }
        })
        .collect();
    let last = lines.iter().flat_map(|l| &l.points).map(|p| p.0).fold(1.0, f64::max);
    let x_ticks =
        [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]
            .into_iter()
            .map(|(share, label)| (place(share), label.to_owned()))
            .filter(|(x, _)| *x <= last + 0.05)
            .collect();
    Chart { title, x: "share of calls", y, x_ticks, y_scale: Scale::Logarithmic, lines }
}

impl Chart {
    pub(super) fn write(&self, path: &Path) -> Result<(), BenchError> {
        std::fs::write(path, self.draw()).map_err(|source| BenchError::File { path: path.into(), source })
    }

    fn draw(&self) -> String {
        let xs =
            self.lines.iter().flat_map(|l| &l.points).map(|p| p.0).chain(self.x_ticks.iter().map(|t| t.0));
        let (x_low, x_high) = xs.fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
        let ys = self.lines.iter().flat_map(|l| &l.points).map(|p| p.1);
        let (y_low, y_high) = ys.fold((f64::MAX, f64::MIN), |(l, h), y| (l.min(y), h.max(y)));
        let y_ticks = match self.y_scale {
            Scale::Linear => linear_ticks(y_high),
            Scale::Logarithmic => logarithmic_ticks(y_low, y_high),
        };
        let scaled = |y: f64| match self.y_scale {
            Scale::Linear => y,
            Scale::Logarithmic => y.log10(),
        };
        let ends = (scaled(y_ticks[0]), scaled(y_ticks[y_ticks.len() - 1]));
        let at_x = |x: f64| MARGIN[0] + (x - x_low) / (x_high - x_low).max(1e-9) * WIDTH;
        let at_y = |y: f64| MARGIN[1] + (ends.1 - scaled(y)) / (ends.1 - ends.0).max(1e-9) * HEIGHT;
        let (width, height) = (MARGIN[0] + WIDTH + MARGIN[2], MARGIN[1] + HEIGHT + MARGIN[3]);
        let (left, right, bottom) = (MARGIN[0], MARGIN[0] + WIDTH, MARGIN[1] + HEIGHT);

        let mut svg = svg::begin(width, height);
        // a String takes every write
        let _ = writeln!(svg, "<text x=\"{left}\" y=\"13\">{}</text>", escaped(&self.title));
        for &y in &y_ticks {
            let (at, label) = (at_y(y), tick_label(y));
            let _ = writeln!(
                svg,
                "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                left - 6.0,
                at + 4.0
            );
        }
        for (x, label) in &self.x_ticks {
            let at = at_x(*x);
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {bottom}v4\" stroke=\"{GREY}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                escaped(label)
            );
        }
        for (i, line) in self.lines.iter().enumerate() {
            let (colour, dash) = (COLOURS[i % COLOURS.len()], 4 * (i / COLOURS.len()));
            let points: Vec<String> =
                line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y))).collect();
            let place = MARGIN[1] + 14.0 * (i as f64 + 1.0);
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
                 stroke-dasharray=\"{dash}\"/>\n\
                 <text x=\"{}\" y=\"{place}\" fill=\"{colour}\">{}</text>",
                points.join(" "),
                right + 8.0,
                escaped(&line.name)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {}V{bottom}H{right}\" fill=\"none\" stroke=\"{GREY}\"/>\n\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
            MARGIN[1],
            left + WIDTH / 2.0,
            bottom + 36.0,
            escaped(self.x),
            MARGIN[1] + HEIGHT / 2.0,
            escaped(self.y)
        );
        svg
    }
}

/// From 0 to past `high` in steps of 1, 2 or 5 times a power of ten.
fn linear_ticks(high: f64) -> Vec<f64> {
    let rough = (high / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    (0..=(high / step).ceil().max(1.0) as usize).map(|i| i as f64 * step).collect()
}

/// 1, 2 and 5 times powers of ten, from below `low` to above `high`.
fn logarithmic_ticks(low: f64, high: f64) -> Vec<f64> {
    let all: Vec<f64> = (-9..12).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(power))).collect();
    let first = all.iter().rposition(|&t| t <= low).unwrap_or(0);
    let last = all.iter().position(|&t| t >= high).unwrap_or(all.len() - 1).max(first + 1);
    all[first..=last.min(all.len() - 1)].to_vec()
}

fn tick_label(value: f64) -> String {
    let rounded = (value * 1e9).round() / 1e9;
    if rounded >= 1e6 { format!("{} M", rounded / 1e6) } else { rounded.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_span_what_is_drawn() {
        assert_eq!(linear_ticks(9.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.0).len(), 2);
        assert_eq!(logarithmic_ticks(3.0, 30.0), [2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(logarithmic_ticks(2.0, 2.0), [2.0, 5.0]);
        assert_eq!([0.5, 200.0, 2e6].map(tick_label), ["0.5", "200", "2 M"]);
    }

    #[test]
    fn percentiles_end_where_samples_do() {
        let chart = percentiles(
            "a < b".into(),
            "µs",
            [("few".into(), vec![1.0; 10]), ("many".into(), (1..=1000).map(f64::from).collect())],
        );
        assert!((chart.lines[0].points.last().unwrap().0 - 1.0).abs() < 1e-9);
        assert!((chart.lines[1].points.last().unwrap().0 - 3.0).abs() < 1e-9);
        assert_eq!(chart.lines[1].points.last().unwrap().1, 999.0);
        assert_eq!(chart.x_ticks.last().unwrap().1, "99.9 %");
        let svg = chart.draw();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("a &lt; b"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
