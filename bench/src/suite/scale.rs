//! `scale`: what a proxy weighs for every service it knows of but is not asked for, and what a control plane weighs for
//! every proxy that is connected to it.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Origin, Settings};
use crate::load::http1::Http1Load;
use crate::load::proxies::{Asked, Proxies};
use crate::measure;
use crate::peer::{self, LENO, LENO_MANAGED, Mode, Place, RELAY, Setup};
use crate::report::Figure;

const SERVICES: usize = 1_000;
const WORKLOADS: usize = 10;
const SETTLE: Duration = Duration::from_secs(2);

/// Proxies of the control plane, ...
const PROXIES: usize = 1_000;
/// ... and how many services, of so many workloads each, every one of them calls.
const CALLED: usize = 10;
/// Before counting begins: tables grow in steps, and what all have in common is there once.
const FIRST: usize = 16;
const PROXY_SERVICES: usize = 100;

pub fn run(bench: &mut Bench) -> Result<()> {
    bench.report.work.push(format!(
        "memory (proportional set size, all processes) after one request, with {SERVICES} \
         services of {WORKLOADS} workloads in the configuration, less the same without them"
    ));
    // The relay has no configuration to weigh.
    bench.peers.retain(|(peer, _)| peer.name() != RELAY);
    let figures = vec![
        Figure::new("services", format!("memory for {SERVICES} services x {WORKLOADS}"), "MB")
            .at_most_absolute(5.0),
        Figure::new("whole", "memory of the whole proxy with them", "MB"),
    ];
    bench.rounds(figures, |settings, origin, contestant| {
        let without = weigh(settings, origin, contestant, 0)?;
        let with = weigh(settings, origin, contestant, SERVICES)?;
        Ok(vec![("services", with - without), ("whole", with)])
    })?;
    if bench.peers.iter().any(|(peer, _)| peer.name() == LENO) {
        control_plane(bench)?;
    }
    Ok(())
}

fn control_plane(bench: &mut Bench) -> Result<()> {
    bench.report.work.push(format!(
        "the control plane's memory with {PROXIES} simulated proxies, less that with {FIRST}: each on a plain connection \
         of its own, calling {CALLED} of {PROXY_SERVICES} services of {WORKLOADS} workloads, everything sent and accepted"
    ));
    let title = "control plane's memory for each connected proxy";
    let mut figure =
        Figure::new("proxy", title, "bytes").decimals(0).at_most_absolute(50.0 * 1024.0);
    for round in 0..bench.settings.rounds {
        eprint!("round {} of {}: {LENO_MANAGED} ...", round + 1, bench.settings.rounds);
        match weigh_proxies(&bench.settings, &bench.origin) {
            Ok(value) => {
                eprintln!(" proxy {value:.0}");
                figure.record(LENO_MANAGED, round, value);
            }
            Err(error) => {
                eprintln!(" failed: {error:#}");
                bench
                    .report
                    .failures
                    .push(format!("{LENO_MANAGED}, round {}: {error:#}", round + 1));
            }
        }
    }
    bench.report.figures.push(figure);
    Ok(())
}

fn weigh_proxies(settings: &Settings, origin: &Origin) -> Result<f64> {
    let place = Place::new(settings.cores)?;
    let setup = Setup {
        services: PROXY_SERVICES,
        workloads: WORKLOADS,
        ..Setup::new(Mode::Http1, origin.addresses.http1)
    };
    let (control_plane, address) = peer::control_plane(&settings.programs, &place, &setup)?;
    let weight = || anyhow::Ok(measure::memory(control_plane.id())?.proportional as f64);
    let mut proxies = Proxies::new()?;
    proxies.connect(address, 0..FIRST, asked)?;
    proxies.stay(SETTLE)?;
    let before = weight()?;
    proxies.connect(address, FIRST..PROXIES, asked)?;
    proxies.stay(SETTLE)?;
    let after = weight()?;
    Ok((after - before) / (PROXIES - FIRST) as f64)
}

/// Every proxy calls services of its own choice.
fn asked(number: usize) -> Asked {
    let service = |at| format!("service-{}", (number * 7 + at) % PROXY_SERVICES);
    Asked {
        namespace: "bench",
        hosts: (0..CALLED).map(service).collect(),
        workloads: CALLED * WORKLOADS,
    }
}

fn weigh(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    services: usize,
) -> Result<f64> {
    let setup =
        Setup { services, workloads: WORKLOADS, ..Setup::new(Mode::Http1, origin.addresses.http1) };
    let (_place, running) = contestant.start(settings, &setup)?;
    Http1Load::connect(&running.target("/1k"), 1)?.touch_each()?;
    std::thread::sleep(SETTLE);
    Ok(running.memory()?.proportional as f64 / 1e6)
}
