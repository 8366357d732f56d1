//! `connections`: what a proxy weighs when idle, and each idle connection on top, in plain text and
//! under mutual TLS.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Identities, Origin, Settings};
use crate::load::http1::Http1Load;
use crate::load::tls::Requests;
use crate::peer::{Mode, RELAY, Setup};
use crate::report::Figure;

const CONNECTIONS: usize = 5_000;
/// Fewer: the generator's side of each weighs more than the proxy's, and they must all be open
/// before the first is closed for its silence.
const TLS_CONNECTIONS: usize = 2_000;
/// Before counting begins: tables and pools grow in steps, and code that serves them is there once for all. A program may
/// let go of code for as long as nobody needs it.
const FIRST: usize = 16;
/// Allocators give memory back, and buffers are released, some time after the last request.
const SETTLE: Duration = Duration::from_secs(5);

pub fn run(bench: &mut Bench) -> Result<()> {
    bench.report.work.push(format!(
        "memory (proportional set size, all processes) after one request, and for each of \
         {CONNECTIONS} further keep-alive connections that made one request and went idle for {SETTLE:?}; \
         the same for {TLS_CONNECTIONS} connections under mutual TLS 1.3 (P-256, AES-128-GCM), \
         idle since the handshake and idle after one request; sockets in the kernel are not counted"
    ));
    let figures = vec![
        Figure::new("idle", "idle memory", "MB").at_most_absolute(10.0),
        Figure::new("connection", "memory per idle connection", "bytes")
            .decimals(0)
            .at_most_absolute(6.0 * 1024.0),
        Figure::new("tls-idle", "idle memory of a proxy with certificates", "MB"),
        Figure::new("tls-fresh", "memory per mTLS connection after its handshake", "bytes")
            .decimals(0)
            .at_most_absolute(20.0 * 1024.0),
        Figure::new("tls-connection", "memory per mTLS connection idle after a request", "bytes")
            .decimals(0)
            .at_most_absolute(20.0 * 1024.0),
    ];
    let identities = Identities::new()?;
    bench.rounds(figures, |settings, origin, contestant| {
        let mut values = plain(settings, origin, contestant)?;
        if contestant.peer.name() != RELAY {
            values.extend(tls(settings, origin, contestant, &identities)?);
        }
        Ok(values)
    })
}

fn plain(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
) -> Result<Vec<(&'static str, f64)>> {
    let setup =
        Setup { connections: CONNECTIONS, ..Setup::new(Mode::Http1, origin.addresses.http1) };
    let (_place, running) = contestant.start(settings, &setup)?;
    let target = running.target("/1k");
    Http1Load::connect(&target, 1)?.touch_each()?;
    std::thread::sleep(SETTLE);
    let idle = running.memory()?.proportional as f64;
    let mut first = Http1Load::connect(&target, FIRST)?;
    first.touch_each()?;
    std::thread::sleep(SETTLE);
    let before = running.memory()?.proportional as f64;
    let mut load = Http1Load::connect(&target, CONNECTIONS)?;
    load.touch_each()?;
    std::thread::sleep(SETTLE);
    let full = running.memory()?.proportional as f64;
    Ok(vec![("idle", idle / 1e6), ("connection", (full - before) / CONNECTIONS as f64)])
}

fn tls(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    identities: &Identities,
) -> Result<Vec<(&'static str, f64)>> {
    let (_place, running) =
        contestant.start_service(settings, origin, identities, TLS_CONNECTIONS)?;
    let target = contestant.tls_target(&running, identities);
    Requests::connect(&target, "/1k", 1)?.touch_each()?;
    std::thread::sleep(SETTLE);
    let idle = running.memory()?.proportional as f64;
    let mut first = Requests::connect(&target, "/1k", FIRST)?;
    first.touch_each()?;
    std::thread::sleep(SETTLE);
    let before = running.memory()?.proportional as f64;
    let mut load = Requests::connect(&target, "/1k", TLS_CONNECTIONS)?;
    std::thread::sleep(SETTLE);
    let fresh = running.memory()?.proportional as f64;
    load.touch_each()?;
    std::thread::sleep(SETTLE);
    let used = running.memory()?.proportional as f64;
    let each = |full: f64| (full - before) / TLS_CONNECTIONS as f64;
    Ok(vec![("tls-idle", idle / 1e6), ("tls-fresh", each(fresh)), ("tls-connection", each(used))])
}
