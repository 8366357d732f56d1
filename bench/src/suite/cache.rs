//! `cache`: what an answer from memory costs, and how often there is one.
//!
//! The first part asks nginx, Varnish and Leno for the same answer again and again; the origin must not be asked
//! meanwhile. The second replays traces whose popularity follows Zipf's law against rules of eviction, one object
//! being as large as the other: no program runs, so it has no noise.

mod hit_ratio;
mod policies;
mod trace;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Bench, Contestant, Load, Measured, Origin, Settings};
use crate::load::http1::{Http1Load, request};
use crate::load::response::{Progress, ResponseReader};
use crate::load::{Pacing, Target};
use crate::measure::cpu_time;
use crate::origin::KEPT;
use crate::peer::{ENVOY, HAPROXY, Mode, NGINX, RELAY, Running, Setup, varnish};
use crate::report::{Better, Figure, Skipped};

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);
const BYTES: u64 = 256 << 20;
/// Answers whose memory is weighed.
const ANSWERS: usize = 10_000;
/// Allocators give memory back some time after the start.
const SETTLE: Duration = Duration::from_secs(2);
/// More CPU than this in a phase means that the origin was asked.
const IDLE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// One size of answers and the ids of its figures.
struct Size {
    path: &'static str,
    title: &'static str,
    /// Requests a second: about a third of what the slowest carries.
    rate: f64,
    cpu: &'static str,
    p99: &'static str,
    throughput: &'static str,
    saturated: &'static str,
    busy: &'static str,
}

const SIZES: [Size; 2] = [
    Size {
        path: "/1k",
        title: "1 KiB",
        rate: 10_000.0,
        cpu: "cpu-1k",
        p99: "p99-1k",
        throughput: "throughput-1k",
        saturated: "saturated-1k",
        busy: "busy-1k",
    },
    Size {
        path: "/64k",
        title: "64 KiB",
        rate: 4_000.0,
        cpu: "cpu-64k",
        p99: "p99-64k",
        throughput: "throughput-64k",
        saturated: "saturated-64k",
        busy: "busy-64k",
    },
];

pub fn run(bench: &mut Bench) -> Result<()> {
    for (name, reason) in [
        (RELAY, "it keeps nothing"),
        (HAPROXY, "the comparison is with the two that are used as caches"),
        (ENVOY, "its cache is not meant for production"),
    ] {
        bench.leave_out(name, reason);
    }
    if let Err(missing) = varnish().find() {
        let (reason, remedy) = (missing.reason, missing.remedy);
        bench.report.skipped.push(Skipped { name: varnish().name(), reason, remedy });
    } else {
        let last = bench.peers.len().saturating_sub(1);
        bench.add(varnish(), last)?;
    }
    describe(bench);
    bench.rounds(figures(bench.settings.rate), |settings, origin, contestant| {
        let mut values = Vec::new();
        for size in &SIZES {
            values.extend(turn(settings, origin, contestant, size)?);
        }
        let (first, each) = weigh(settings, origin, contestant)?;
        values.extend([("memory", first), ("weight", each)]);
        Ok(values)
    })?;
    hit_ratio::run(bench);
    Ok(())
}

fn describe(bench: &mut Bench) {
    let phase = bench.settings.phase;
    bench.report.work.push(format!(
        "{CONNECTIONS} keep-alive connections, GET of one answer that is kept (`public, max-age`, with ETag and Vary); \
         {phase:?} at a fixed rate, then {phase:?} saturated; the origin used less than {IDLE:?} of CPU meanwhile"
    ));
    bench.report.work.push(format!(
        "memory: proportional set size with one answer of 1 KiB, and what {ANSWERS} add, each"
    ));
    bench.report.remarks.push(
        "nginx keeps answers in files: they are in the page cache and not in its memory".to_owned(),
    );
}

fn figures(rate: Option<f64>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for size in &SIZES {
        let (title, rate) = (size.title, rate.unwrap_or(size.rate));
        figures.extend([
            Figure::new(size.cpu, format!("{title}: CPU per hit at {rate}/s"), "µs")
                .at_most(1.0, NGINX),
            Figure::new(size.p99, format!("{title}: latency p99 at {rate}/s"), "µs").decimals(0),
            Figure::new(size.throughput, format!("{title}: saturated throughput"), "hits/s")
                .better(Better::Higher)
                .decimals(0),
            Figure::new(size.saturated, format!("{title}: CPU per hit when saturated"), "µs")
                .at_most(1.0, NGINX),
            Figure::new(size.busy, format!("{title}: share of its core used when saturated"), "%")
                .better(Better::Neither)
                .decimals(0),
        ]);
    }
    figures.extend([
        Figure::new("memory", "memory with one answer", "MB"),
        Figure::new("weight", "memory for each further answer of 1 KiB", "KiB").decimals(2),
    ]);
    figures
}

fn setup(origin: &Origin) -> Setup {
    Setup { cache: Some(BYTES), ..Setup::new(Mode::Http1, origin.addresses.http1) }
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    size: &Size,
) -> Result<Vec<(&'static str, f64)>> {
    let (_place, running) = contestant.start(settings, &setup(origin))?;
    let target = running.target(&format!("{KEPT}{}", size.path));
    Http1Load::connect(&target, 1)?.touch_each()?;
    let mut load = Load::Http1(Http1Load::connect(&target, CONNECTIONS)?);
    load.run(Pacing::Closed, WARM_UP)?;
    let rate = settings.rate.unwrap_or(size.rate);
    let fixed = hits(settings, origin, &running, &mut load, Pacing::Open { rate })?;
    let saturated = hits(settings, origin, &running, &mut load, Pacing::Closed)?;
    Ok(vec![
        (size.cpu, fixed.cpu_per_request),
        (size.p99, fixed.sample.latency(0.99)),
        (size.throughput, saturated.sample.throughput()),
        (size.saturated, saturated.cpu_per_request),
        (size.busy, saturated.utilisation),
    ])
}

/// A phase in which nothing but hits is measured.
fn hits(
    settings: &Settings,
    origin: &Origin,
    running: &Running,
    load: &mut Load,
    pacing: Pacing,
) -> Result<Measured> {
    let used = || cpu_time(origin.process.id());
    let before = used()?;
    let measured = load.measure(settings, running, pacing)?;
    let used = used()?.saturating_sub(before);
    anyhow::ensure!(used < IDLE, "the origin was asked: it used {used:?} of CPU");
    Ok(measured)
}

/// Megabytes with one answer, and KiB for each of many more.
fn weigh(settings: &Settings, origin: &Origin, contestant: &Contestant) -> Result<(f64, f64)> {
    let (_place, running) = contestant.start(settings, &setup(origin))?;
    let target = running.target(&format!("{KEPT}/1k"));
    Http1Load::connect(&target, 1)?.touch_each()?;
    std::thread::sleep(SETTLE);
    let one = running.memory()?.proportional as f64;
    fill(&target)?;
    std::thread::sleep(SETTLE);
    let all = running.memory()?.proportional as f64;
    Ok((one / 1e6, (all - one) / ANSWERS as f64 / 1024.0))
}

/// Asks for many different answers, one after the other on one connection.
fn fill(target: &Target) -> Result<()> {
    let mut stream = TcpStream::connect(target.address).context("connect")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
    let mut scratch = vec![0; 64 * 1024];
    for number in 0..ANSWERS {
        let target = Target { path: format!("{}?{number}", target.path), ..target.clone() };
        stream.write_all(&request(&target)).context("send a request")?;
        let mut reader = ResponseReader::default();
        loop {
            let count = stream.read(&mut scratch).context("read an answer")?;
            anyhow::ensure!(count > 0, "the connection was closed before the answer");
            let bytes = scratch.get(..count).unwrap_or_default();
            match reader.feed(bytes).map_err(|error| anyhow::anyhow!("{error}"))? {
                Progress::More => {}
                Progress::Done { .. } => break,
                Progress::Refused { status, .. } => anyhow::bail!("the answer was status {status}"),
            }
        }
    }
    Ok(())
}
