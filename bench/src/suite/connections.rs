//! `connections`: what a proxy weighs when idle, and each idle connection on top.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Origin, Settings};
use crate::load::http1::Http1Load;
use crate::peer::{Mode, Setup};
use crate::report::Figure;

const CONNECTIONS: usize = 5_000;
/// Allocators give memory back, and buffers are released, some time after the last request.
const SETTLE: Duration = Duration::from_secs(2);

pub fn run(bench: &mut Bench) -> Result<()> {
    bench.report.work.push(format!(
        "memory (proportional set size, all processes) after one request, and after \
         {CONNECTIONS} keep-alive connections made one request each and went idle for {SETTLE:?}; \
         sockets in the kernel are not counted"
    ));
    let figures = vec![
        Figure::new("idle", "idle memory", "MB").at_most_absolute(10.0),
        Figure::new("connection", "memory per idle connection", "bytes")
            .decimals(0)
            .at_most_absolute(6.0 * 1024.0),
    ];
    bench.rounds(figures, turn)
}

fn turn(
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
    let mut load = Http1Load::connect(&target, CONNECTIONS)?;
    load.touch_each()?;
    std::thread::sleep(SETTLE);
    let full = running.memory()?.proportional as f64;
    Ok(vec![("idle", idle / 1e6), ("connection", (full - idle) / CONNECTIONS as f64)])
}
