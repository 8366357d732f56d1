//! `scale`: what a proxy weighs for every service it knows of but is not asked for.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Origin, Settings};
use crate::load::http1::Http1Load;
use crate::peer::{Mode, RELAY, Setup};
use crate::report::Figure;

const SERVICES: usize = 1_000;
const WORKLOADS: usize = 10;
const SETTLE: Duration = Duration::from_secs(2);

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
    })
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
