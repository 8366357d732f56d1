//! A report as Markdown.

use std::fmt::Write as _;

use super::{Better, Bound, Figure, Report, Verdict, number};
use crate::peer::LENO;
use crate::statistics::Spread;

/// The whole report.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("## {} (`{}`)\n\n", report.title, report.suite);
    let _ = writeln!(text, "    {}\n", report.command);
    list(&mut text, "Machine", &report.machine);
    list(&mut text, "Work", &report.work);
    let programs: Vec<String> =
        report.programs.iter().map(|one| format!("{}: {}", one.name, one.version)).collect();
    list(&mut text, "Programs", &programs);
    let skipped: Vec<String> = report
        .skipped
        .iter()
        .map(|one| format!("{}: {}. To have it: `{}`", one.name, one.reason, one.remedy))
        .collect();
    list(&mut text, "Skipped", &skipped);
    list(&mut text, "Remarks", &report.remarks);
    list(&mut text, "Rounds that failed", &report.failures);
    for figure in &report.figures {
        figure_table(&mut text, figure);
    }
    targets(&mut text, report);
    text
}

/// The report as one table: a row a figure with the median of each program, Leno as a multiple of each peer, and what was
/// to be reached.
pub fn summary(report: &Report) -> String {
    let programs: Vec<&str> = report.figures.iter().fold(Vec::new(), |mut programs, figure| {
        let new = figure.series.iter().map(|series| series.program);
        programs.extend(new.filter(|new| !programs.contains(new)).collect::<Vec<_>>());
        programs
    });
    let has_ratio = |peer: &&str| report.figures.iter().any(|one| one.leno_of(peer).is_some());
    let peers: Vec<&str> = programs.iter().copied().filter(has_ratio).collect();
    let rounds = report.figures.iter().flat_map(|one| &one.series).map(|one| one.rounds.len());
    let mut text = format!("### {}\n\n    {}\n\n", report.title, report.command);
    let _ = writeln!(text, "{} rounds. {}.\n", rounds.max().unwrap_or(0), report.work.join("; "));
    let heads = peers.iter().map(|peer| format!(" leno of {peer} |")).collect::<String>();
    let _ = writeln!(text, "| | {} |{heads} target |", programs.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---:|".repeat(programs.len() + peers.len()));
    for figure in &report.figures {
        let _ = write!(text, "| {} ({}) |", figure.title, figure.unit);
        for program in &programs {
            let median =
                figure.spread_of(program).map(|found| number(found.median, figure.decimals));
            let _ = write!(text, " {} |", median.unwrap_or_default());
        }
        for peer in &peers {
            let _ = write!(text, " {} |", factor(figure.leno_of(peer)));
        }
        let judged: Vec<String> = figure.verdicts().map(|verdict| judgement(&verdict)).collect();
        let _ = writeln!(text, " {} |", judged.join("; "));
    }
    text
}

/// `≤ 1.10 × haproxy: reached`.
fn judgement(verdict: &Verdict<'_>) -> String {
    let (relation, bound) = match verdict.target.bound {
        Bound::AtMost(bound) => ("≤", bound),
        Bound::AtLeast(bound) => ("≥", bound),
    };
    let bound = match verdict.target.against {
        Some(peer) => format!("{bound:.2} × {peer}"),
        None => number(bound, verdict.figure.decimals),
    };
    let who = if verdict.program == LENO { "" } else { verdict.program };
    let answer = if verdict.reached { "reached" } else { "**missed**" };
    format!("{who}{relation} {bound}: {answer}")
}

fn list(text: &mut String, title: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let _ = writeln!(text, "{title}:");
    for item in items {
        let _ = writeln!(text, "- {}", item.replace('\n', " "));
    }
    text.push('\n');
}

fn figure_table(text: &mut String, figure: &Figure) {
    let better = match figure.better {
        Better::Lower => ", lower is better",
        Better::Higher => ", higher is better",
        Better::Neither => "",
    };
    let _ = writeln!(text, "### {} ({}{better})\n", figure.title, figure.unit);
    let ratios = figure.better != Better::Neither;
    let head = if ratios { " × null relay | leno is × this |" } else { "" };
    let rule = if ratios { "---:|---:|" } else { "" };
    let _ = writeln!(text, "| | median | lowest to highest |{head}");
    let _ = writeln!(text, "|---|---:|---:|{rule}");
    for series in &figure.series {
        let Some(spread) = figure.spread_of(series.program) else { continue };
        let decimals = figure.decimals;
        let _ = write!(
            text,
            "| {} | {} | {} to {} |",
            series.program,
            number(spread.median, decimals),
            number(spread.low, decimals),
            number(spread.high, decimals)
        );
        if ratios {
            let of_relay = factor(figure.of_relay(series.program));
            let leno = factor(figure.leno_of(series.program));
            let _ = write!(text, " {of_relay} | {leno} |");
        }
        text.push('\n');
    }
    text.push('\n');
}

fn factor(ratio: Option<Spread>) -> String {
    ratio.map_or_else(String::new, |ratio| {
        format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)
    })
}

fn targets(text: &mut String, report: &Report) {
    let mut rows = String::new();
    for verdict in report.figures.iter().flat_map(Figure::verdicts) {
        let (relation, bound) = match verdict.target.bound {
            Bound::AtMost(bound) => ("at most", bound),
            Bound::AtLeast(bound) => ("at least", bound),
        };
        let decimals = verdict.figure.decimals;
        let (bound, found) = match verdict.target.against {
            Some(program) => {
                (format!("{bound:.2} of {program}"), format!("{:.2}", verdict.found.median))
            }
            None => (
                format!("{} {}", number(bound, decimals), verdict.figure.unit),
                number(verdict.found.median, decimals),
            ),
        };
        let answer = if verdict.reached { "reached" } else { "**missed**" };
        let _ = writeln!(
            rows,
            "| {}: {} | {relation} {bound} | {found} | {answer} |",
            verdict.program, verdict.figure.title
        );
    }
    if !rows.is_empty() {
        let _ = write!(
            text,
            "### Targets for {LENO}\n\n| figure | target | found | |\n|---|---|---:|---|\n{rows}\n"
        );
    }
}
