//! Predicted against gold scores as an SVG: a panel for each set, points counted in cells, so that twenty
//! thousand pairs make a small file that can still be read.

use super::super::report::Failure;
use super::super::svg::{self, escaped};
use std::fmt::Write;
use std::path::Path;

/// Cells along each axis of a panel.
const CELLS: usize = 40;
/// Pixels of a cell.
const CELL: usize = 5;
const SIDE: usize = CELLS * CELL;
/// Around a panel: left, top, right, bottom.
const MARGIN: [usize; 4] = [46, 30, 14, 40];
const COLUMNS: usize = 4;
const INK: &str = "#1b4f8a";
const GREY: &str = "#888";

pub(crate) struct Axes {
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
}

/// One set's points.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Vec<f64>,
    pub(crate) y: Vec<f64>,
}

/// Writes the picture.
///
/// # Errors
/// A file that cannot be written.
pub(crate) fn write(path: &Path, axes: &Axes, panels: &[Panel]) -> Result<(), Failure> {
    std::fs::write(path, draw(axes, panels)).map_err(|e| Failure::io(path.display(), &e))
}

fn draw(axes: &Axes, panels: &[Panel]) -> String {
    let (width, height) = (MARGIN[0] + SIDE + MARGIN[2], MARGIN[1] + SIDE + MARGIN[3]);
    let columns = panels.len().clamp(1, COLUMNS);
    let (all_width, all_height) = (columns * width, panels.len().div_ceil(COLUMNS) * height);
    let mut svg = svg::begin(all_width, all_height);
    for (i, panel) in panels.iter().enumerate() {
        let (left, top) = (i % COLUMNS * width + MARGIN[0], i / COLUMNS * height + MARGIN[1]);
        let _ = writeln!(svg, "<g transform=\"translate({left} {top})\">");
        draw_panel(&mut svg, axes, panel);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, axes: &Axes, panel: &Panel) {
    let (x, y) = (Range::of(&panel.x), Range::of(&panel.y));
    let mut counts = vec![0u32; CELLS * CELLS];
    for (&px, &py) in panel.x.iter().zip(&panel.y).filter(|(x, y)| x.is_finite() && y.is_finite()) {
        counts[y.cell(py) * CELLS + x.cell(px)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let _ = writeln!(svg, "<g fill=\"{INK}\">");
    for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        // by the logarithm: one pair must show beside hundreds
        let shade = 0.15 + 0.85 * f64::from(count).ln_1p() / f64::from(most).ln_1p();
        let (left, top) = (i % CELLS * CELL, (CELLS - 1 - i / CELLS) * CELL);
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{CELL}\" height=\"{CELL}\" opacity=\"{shade:.2}\"/>"
        );
    }
    let _ = writeln!(
        svg,
        "</g>\n<rect width=\"{SIDE}\" height=\"{SIDE}\" fill=\"none\" stroke=\"{GREY}\"/>\n\
         <text x=\"0\" y=\"-10\" font-size=\"13\">{}</text>",
        escaped(&panel.title)
    );
    for (position, label) in x.ticks() {
        let at = position * SIDE as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {SIDE}v4\" stroke=\"{GREY}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            SIDE + 16
        );
    }
    for (position, label) in y.ticks() {
        let at = (1.0 - position) * SIDE as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M0 {at:.1}h-4\" stroke=\"{GREY}\"/>\
             <text x=\"-7\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            at + 4.0
        );
    }
    let middle = SIDE / 2;
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(-34 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        SIDE + 32,
        escaped(axes.x),
        escaped(axes.y)
    );
}

/// What an axis spans, in whole steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    low: f64,
    high: f64,
    step: f64,
}

impl Range {
    fn of(values: &[f64]) -> Self {
        let finite = values.iter().copied().filter(|v| v.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // 1, 2 or 5 times a power of ten: four to eight steps
        let rough = ((high - low) / 5.0).max(1e-9);
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999);
        let step = step.unwrap_or(10.0 * power);
        // rounding must not add an empty step
        let (low, high) = ((low / step + 1e-6).floor() * step, (high / step - 1e-6).ceil() * step);
        Self { low, high: high.max(low + step), step }
    }

    fn cell(&self, value: f64) -> usize {
        let share = (value - self.low) / (self.high - self.low);
        ((share * CELLS as f64) as usize).min(CELLS - 1)
    }

    /// Positions from 0 to 1 with their labels.
    fn ticks(&self) -> Vec<(f64, String)> {
        let steps = ((self.high - self.low) / self.step).round() as usize;
        let decimals = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        (0..=steps)
            .map(|i| {
                let value = self.low + i as f64 * self.step;
                // no "-0.0"
                let value = if value.abs() < self.step / 2.0 { 0.0 } else { value };
                (i as f64 / steps as f64, format!("{value:.decimals$}").replace('-', "−"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_whole_steps() {
        let labels = |values: &[f64]| Range::of(values).ticks().into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(labels(&[0.0, 5.0]), ["0", "1", "2", "3", "4", "5"]);
        assert_eq!(labels(&[-0.13, 0.99]), ["−0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(labels(&[2.0, 2.0]).len(), 2);
        assert_eq!(labels(&[]).first().unwrap(), "0.0");
    }

    #[test]
    fn every_panel_is_drawn_and_titles_are_escaped() {
        let panel =
            |title: &str| Panel { title: title.into(), x: vec![0.0, 5.0, f64::NAN], y: vec![0.1, 0.9, 0.5] };
        let svg = draw(&Axes { x: "gold", y: "cosine" }, &[panel("a < b & c"), panel("d")]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b &amp; c"));
        assert_eq!(svg.matches("<g transform").count(), 2);
        assert_eq!(svg.matches("opacity").count(), 4, "a point that is no number is left out");
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }
}
