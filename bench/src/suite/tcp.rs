//! `tcp`: opaque bytes, as small exchanges and in bulk. The load is HTTP, because it frames and
//! checks itself; the proxies do not look at it.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Load, Origin, Settings};
use crate::load::Pacing;
use crate::load::http1::Http1Load;
use crate::peer::{Mode, Setup};
use crate::report::{Better, Figure};

const CONNECTIONS: usize = 64;
const BULK_CONNECTIONS: usize = 4;
const WARM_UP: Duration = Duration::from_secs(1);
const RATE: f64 = 10_000.0;

pub fn run(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(RATE);
    bench.report.work.push(format!(
        "{CONNECTIONS} connections exchanging 1 KiB at {rate}/s; then {BULK_CONNECTIONS} \
         connections sending bodies of 1 MiB as fast as they can, {:?} each",
        bench.settings.phase
    ));
    for (peer, _) in &bench.peers {
        bench.report.remarks.extend(peer.remark(Mode::Tcp).map(str::to_owned));
    }
    let figures = vec![
        Figure::new("cpu", format!("CPU per exchange at {rate}/s"), "µs"),
        Figure::new("p99", format!("latency p99 at {rate}/s"), "µs").decimals(0),
        Figure::new("bulk", "bulk throughput", "MiB/s").better(Better::Higher).decimals(0),
        Figure::new("bulk-cpu", "CPU per MiB in bulk", "µs").decimals(0),
        Figure::new("memory", "peak memory", "MB"),
    ];
    bench.rounds(figures, |settings, origin, contestant| turn(settings, origin, contestant, rate))
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let setup = Setup::new(Mode::Tcp, origin.addresses.http1);
    let (_place, running) = contestant.start(settings, &setup)?;
    let mut small = Load::Http1(Http1Load::connect(&running.target("/1k"), CONNECTIONS)?);
    small.run(Pacing::Closed, WARM_UP)?;
    let small = small.measure(settings, &running, Pacing::Open { rate })?;
    let mut bulk = Load::Http1(Http1Load::connect(&running.target("/1m"), BULK_CONNECTIONS)?);
    bulk.run(Pacing::Closed, WARM_UP)?;
    let bulk = bulk.measure(settings, &running, Pacing::Closed)?;
    Ok(vec![
        ("cpu", small.cpu_per_request),
        ("p99", small.sample.latency(0.99)),
        ("bulk", bulk.sample.throughput()),
        ("bulk-cpu", bulk.cpu_per_request),
        ("memory", running.memory()?.peak as f64 / 1e6),
    ])
}
