//! A report as a plot: a bar a program for its median, a whisker from its lowest to its highest
//! round. Plain SVG, readable on light and dark pages.

use std::fmt::Write as _;

use super::{Better, Figure, Report, number};
use crate::peer::{LENO, RELAY};

const WIDTH: usize = 760;
const LABELS: usize = 110;
const VALUES: usize = 190;
const BAR: usize = 22;
const TITLE: usize = 34;
const GAP: usize = 18;

/// The whole report; figures about the measurement itself are left to the table.
pub fn plot(report: &Report) -> String {
    let figures: Vec<&Figure> = report
        .figures
        .iter()
        .filter(|figure| figure.better != Better::Neither && !figure.series.is_empty())
        .collect();
    let height: usize =
        TITLE + figures.iter().map(|figure| TITLE + figure.series.len() * BAR + GAP).sum::<usize>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escape(report.title)
    );
    let mut top = TITLE;
    for figure in figures {
        bars(&mut svg, figure, top);
        top += TITLE + figure.series.len() * BAR + GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn bars(svg: &mut String, figure: &Figure, top: usize) {
    let better = if figure.better == Better::Higher { "higher" } else { "lower" };
    let title = format!("{}, {} ({better} is better)", figure.title, figure.unit);
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{}</text>",
        top + 22,
        escape(&title)
    );
    let spreads: Vec<_> = figure
        .series
        .iter()
        .filter_map(|series| Some((series.program, figure.spread_of(series.program)?)))
        .collect();
    let largest = spreads.iter().map(|(_, spread)| spread.high).fold(0.0, f64::max);
    let scale = if largest > 0.0 { (WIDTH - LABELS - VALUES) as f64 / largest } else { 0.0 };
    for (row, (program, spread)) in spreads.iter().enumerate() {
        let y = top + TITLE + row * BAR;
        let x = |value: f64| LABELS as f64 + value.max(0.0) * scale;
        let (middle, whisker) = (y as f64 + 7.0, x(spread.high));
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"14\" fill=\"{}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{whisker:.1}\" stroke=\"#222222\" stroke-width=\"2\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{}{}</text>\n",
            LABELS - 8,
            y + 12,
            escape(program),
            x(spread.median) - LABELS as f64,
            colour(program),
            x(spread.low),
            whisker + 8.0,
            y + 12,
            number(spread.median, figure.decimals),
            figure
                .of_relay(program)
                .filter(|_| *program != RELAY)
                .map_or_else(String::new, |ratio| format!("  ({:.2} × relay)", ratio.median)),
        );
    }
}

fn colour(program: &str) -> &'static str {
    match program {
        LENO => "#1f77b4",
        RELAY => "#bbbbbb",
        _ => "#e0a458",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
