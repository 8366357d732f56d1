//! `tls`: what mutual TLS costs a proxy that accepts it: handshakes, full and resumed, and bulk on
//! one connection. The proxy calls the origin in plain text.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Identities, Load, Origin, Settings};
use crate::load::Pacing;
use crate::load::tls::{Handshakes, Kind, Requests};
use crate::peer::RELAY;
use crate::report::{Better, Figure};

/// As many as keep the proxy busy while the generator does its half of the others.
const CALLERS: usize = 16;
const WARM_UP: Duration = Duration::from_millis(500);
/// For opening buffers and congestion windows.
const BULK_WARM_UP: Duration = Duration::from_secs(1);

pub fn run(bench: &mut Bench) -> Result<()> {
    let phase = bench.settings.phase;
    bench.report.work.push(format!(
        "TLS 1.3 with P-256 certificates on both sides, X25519, AES-128-GCM. {CALLERS} callers \
         connect, close once the handshake is done, and connect again for {phase:?}, with \
         full handshakes and then with resumed ones (a ticket and a new key exchange); then GET \
         with bodies of 1 MiB, one after the other on one connection, for {phase:?}"
    ));
    bench.report.remarks.push(
        "the load generator does not check the server's certificate, so it costs less than the \
         server; handshakes per second and core are a million by the CPU of one"
            .to_owned(),
    );
    bench.leave_out(RELAY, "it has no TLS");
    let identities = Identities::new()?;
    let figures = vec![
        Figure::new("full-cpu", "CPU per full handshake", "µs"),
        Figure::new("full-core", "full handshakes per second and core", "1/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("full", "full handshakes, as many as there could be", "1/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("resumed-cpu", "CPU per resumed handshake", "µs"),
        Figure::new("resumed-core", "resumed handshakes per second and core", "1/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("resumed", "resumed handshakes, as many as there could be", "1/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("bulk-cpu", "CPU per MiB on one stream", "µs").decimals(0),
        Figure::new("bulk-core", "throughput per core on one stream", "MiB/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("bulk", "throughput on one stream", "MiB/s").better(Better::Higher).decimals(0),
        Figure::new("memory", "peak memory", "MB"),
        Figure::new("others", "used by other programs meanwhile", "% of a core")
            .better(Better::Neither),
    ];
    bench.rounds(figures, |settings, origin, contestant| {
        turn(settings, origin, contestant, &identities)
    })
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    identities: &Identities,
) -> Result<Vec<(&'static str, f64)>> {
    let (_place, running) = contestant.start_service(settings, origin, identities, CALLERS)?;
    let target = contestant.tls_target(&running, identities);
    let handshakes = |kind| {
        let mut load = Load::Handshakes(Handshakes::new(&target, kind, CALLERS)?);
        load.prepare()?;
        load.run(Pacing::Closed, WARM_UP)?;
        load.measure(settings, &running, Pacing::Closed)
    };
    let full = handshakes(Kind::Full)?;
    let resumed = handshakes(Kind::Resumed)?;
    let mut bulk = Load::Bulk(Requests::connect(&target, "/1m", 1)?);
    bulk.run(Pacing::Closed, BULK_WARM_UP)?;
    let bulk = bulk.measure(settings, &running, Pacing::Closed)?;
    Ok(vec![
        ("full-cpu", full.cpu_per_request),
        ("full-core", 1e6 / full.cpu_per_request),
        ("full", full.sample.throughput()),
        ("resumed-cpu", resumed.cpu_per_request),
        ("resumed-core", 1e6 / resumed.cpu_per_request),
        ("resumed", resumed.sample.throughput()),
        ("bulk-cpu", bulk.cpu_per_request),
        ("bulk-core", 1e6 / bulk.cpu_per_request),
        ("bulk", bulk.sample.throughput()),
        ("memory", running.memory()?.peak as f64 / 1e6),
        ("others", full.disturbance.max(resumed.disturbance).max(bulk.disturbance)),
    ])
}
