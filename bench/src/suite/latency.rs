//! `latency`: how much later an answer comes through a proxy than without one, when all proxies
//! have the same moderate load: 30 % of what the slowest of this run can carry.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Bench, Contestant, Load, Origin, Settings};
use crate::load::Pacing;
use crate::load::http1::Http1Load;
use crate::peer::{DIRECT, ENVOY, Mode, Setup, direct};
use crate::report::Figure;

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const CALIBRATION: Duration = Duration::from_secs(2);
const SHARE: f64 = 0.3;

pub fn run(bench: &mut Bench) -> Result<()> {
    let rate = match bench.settings.rate {
        Some(rate) => rate,
        None => calibrate(bench)?,
    };
    bench.add(direct(), 0)?;
    bench.report.work.push(format!(
        "{CONNECTIONS} keep-alive connections, GET with a body of 1 KiB, {rate:.0} requests a \
         second for {:?}; latency counts from the time a request was due",
        bench.settings.phase
    ));
    let figures = vec![
        Figure::new("p50", "latency p50", "µs").decimals(0),
        Figure::new("p99", "latency p99", "µs").decimals(0),
        Figure::new("p999", "latency p99.9", "µs").decimals(0),
    ];
    bench
        .rounds(figures, |settings, origin, contestant| turn(settings, origin, contestant, rate))?;
    let added = bench.report.figures.iter().filter_map(added);
    let added: Vec<Figure> = added.map(aimed).collect();
    bench.report.figures.extend(added);
    Ok(())
}

/// 30 % of the lowest capacity among the programs of this run.
fn calibrate(bench: &Bench) -> Result<f64> {
    let mut lowest: Option<f64> = None;
    for (peer, found) in &bench.peers {
        let contestant = Contestant { peer: peer.as_ref(), found };
        let setup = Setup::new(Mode::Http1, bench.origin.addresses.http1);
        let (_place, running) = contestant.start(&bench.settings, &setup)?;
        let mut load = Http1Load::connect(&running.target("/1k"), CONNECTIONS)?;
        load.run(Pacing::Closed, WARM_UP)?;
        let sample = load.run(Pacing::Closed, CALIBRATION)?;
        sample.check().with_context(|| format!("calibrate with {}", peer.name()))?;
        eprintln!("{}: {:.0} requests a second at most", peer.name(), sample.throughput());
        lowest = Some(lowest.map_or(sample.throughput(), |low| low.min(sample.throughput())));
    }
    Ok(lowest.context("no program to measure")? * SHARE)
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let setup = Setup::new(Mode::Http1, origin.addresses.http1);
    let (_place, running) = contestant.start(settings, &setup)?;
    let mut load = Load::Http1(Http1Load::connect(&running.target("/1k"), CONNECTIONS)?);
    load.run(Pacing::Closed, WARM_UP)?;
    let measured = load.measure(settings, &running, Pacing::Open { rate })?;
    Ok(vec![
        ("p50", measured.sample.latency(0.5)),
        ("p99", measured.sample.latency(0.99)),
        ("p999", measured.sample.latency(0.999)),
    ])
}

fn aimed(figure: Figure) -> Figure {
    if figure.id == "p99-added" { figure.at_most(0.6, ENVOY) } else { figure }
}

/// The same figure less what it is without a proxy in the same round.
pub fn added(figure: &Figure) -> Option<Figure> {
    let base = figure.rounds_of(DIRECT)?.to_vec();
    let id = match figure.id {
        "p50" => "p50-added",
        "p99" => "p99-added",
        _ => return None,
    };
    let mut added = Figure::new(id, format!("{} added", figure.title), figure.unit).decimals(0);
    for series in figure.series.iter().filter(|series| series.program != DIRECT) {
        for (round, (value, base)) in series.rounds.iter().zip(&base).enumerate() {
            if let (Some(value), Some(base)) = (value, base) {
                added.record(series.program, round, value - base);
            }
        }
    }
    Some(added)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::LENO;

    #[test]
    fn what_is_added_is_counted_within_the_round() {
        let mut figure = Figure::new("p99", "latency p99", "µs");
        for (round, (direct, leno)) in [(100.0, 150.0), (300.0, 380.0)].into_iter().enumerate() {
            figure.record(DIRECT, round, direct);
            figure.record(LENO, round, leno);
        }
        figure.record(LENO, 2, 500.0);
        let added = added(&figure).unwrap();
        assert_eq!(added.rounds_of(LENO), Some(&[Some(50.0), Some(80.0)][..]));
        assert_eq!(added.rounds_of(DIRECT), None);
    }
}
