//! `mesh`: a hop as the mesh has it: caller, its sidecar, mutual TLS, the service's sidecar, service.
//! The floor is two null relays, and for what TLS costs two sidecars of Leno in plain text.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Identities, Load, Origin, Settings, latency};
use crate::load::Pacing;
use crate::load::http1::Http1Load;
use crate::peer::{self, DIRECT, ENVOY, Hop, Mode, NGINX, Place, Running, Setup};
use crate::report::{Better, Figure};

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const RATE: f64 = 1_000.0;

pub fn run(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(RATE);
    bench.report.work.push(format!(
        "{CONNECTIONS} keep-alive connections of the caller, GET with a body of 1 KiB; HTTP/1.1 \
         under mutual TLS 1.3 between the sidecars; {:?} at {rate}/s, then {:?} saturated. CPU and \
         memory are those of both sidecars together, which share a core",
        bench.settings.phase, bench.settings.phase
    ));
    bench.report.remarks.push(
        "the null relays, and leno (plain text), have no TLS; every other program has the \
         certificates of the same authority and chooses the cipher itself; haproxy checks that the \
         service's certificate is of that authority, but not whose it is"
            .to_owned(),
    );
    bench.leave_out(NGINX, "it compares DNS names and no SPIFFE IDs");
    bench.add(peer::direct(), 0)?;
    bench.add(peer::plain(&bench.settings.programs), bench.peers.len())?;
    let identities = Identities::new()?;
    let figures = vec![
        Figure::new("cpu", format!("CPU of both sidecars per request at {rate}/s"), "µs")
            .at_most(0.4, ENVOY),
        Figure::new("core", format!("CPU of both sidecars at {rate}/s"), "% of a core"),
        Figure::new("p50", format!("latency p50 at {rate}/s"), "µs").decimals(0),
        Figure::new("p99", format!("latency p99 at {rate}/s"), "µs").decimals(0),
        Figure::new("saturated-cpu", "CPU of both sidecars per request when saturated", "µs"),
        Figure::new("throughput", "saturated throughput", "requests/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("memory", "peak memory of both sidecars", "MB"),
        Figure::new("others", "used by other programs meanwhile", "% of a core")
            .better(Better::Neither),
    ];
    bench.rounds(figures, |settings, origin, contestant| {
        turn(settings, origin, contestant, &identities, rate)
    })?;
    let added: Vec<Figure> = bench.report.figures.iter().filter_map(latency::added).collect();
    bench.report.figures.extend(added);
    Ok(())
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    identities: &Identities,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let (_places, running) = start(settings, origin, contestant, identities)?;
    let mut load = Load::Http1(Http1Load::connect(&running.target("/1k"), CONNECTIONS)?);
    load.run(Pacing::Closed, WARM_UP)?;
    let fixed = load.measure(settings, &running, Pacing::Open { rate })?;
    let mut values = vec![
        ("p50", fixed.sample.latency(0.5)),
        ("p99", fixed.sample.latency(0.99)),
        ("others", fixed.disturbance),
    ];
    if running.process.is_some() {
        let saturated = load.measure(settings, &running, Pacing::Closed)?;
        values.extend([
            ("cpu", fixed.cpu_per_request),
            ("core", fixed.utilisation),
            ("saturated-cpu", saturated.cpu_per_request),
            ("throughput", saturated.sample.throughput()),
            ("memory", running.memory()?.peak as f64 / 1e6),
        ]);
    }
    Ok(values)
}

/// Both sidecars; nothing where there is no proxy at all.
fn start(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    identities: &Identities,
) -> Result<(Vec<Place>, Running)> {
    let alone = Setup::new(Mode::Http1, origin.addresses.http1);
    if contestant.peer.name() == DIRECT {
        let (place, running) = contestant.start(settings, &alone)?;
        return Ok((vec![place], running));
    }
    let service =
        Setup { hop: Hop::Service, identity: Some(identities.service.clone()), ..alone.clone() };
    let (service_place, service) = contestant.start(settings, &service)?;
    let caller = Setup {
        hop: Hop::Caller,
        identity: Some(identities.caller.clone()),
        origin: service.address,
        ..alone
    };
    let (place, caller) = contestant.start(settings, &caller)?;
    let running = Running { partner: Some(Box::new(service)), ..caller };
    Ok((vec![place, service_place], running))
}
