//! `resilience`: what callers notice of bad instances among good ones, and what is left of an application that is asked
//! for twice of what it can do. Real processes: eleven instances of a service, one of which is ended in the middle.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Bench, Contestant, Settings};
use crate::load::Pacing;
use crate::load::Target;
use crate::load::http1::Http1Load;
use crate::origin::instance::Order;
use crate::peer::{Hop, Mode, Process, Protection, RELAY, Setup};
use crate::report::{Better, Figure};

const INSTANCES: usize = 11;
const CONNECTIONS: usize = 64;
/// An instance has time for 800 of these a second.
const THREADS: usize = 8;
const SERVICE_MS: u64 = 10;
/// Requests a second for all of them: a twelfth of what they can do, and little for this machine.
const RATE: f64 = 700.0;
const WARM_UP: Duration = Duration::from_secs(1);

/// Connections under overload: so many callers that a queue of all of them is far too long.
const CROWD: usize = 800;
/// After this an answer is of no use to anybody.
const PATIENCE: Duration = Duration::from_millis(250);
/// Until a limit that is found out has been.
const SETTLE: Duration = Duration::from_secs(5);
const CALIBRATION: Duration = Duration::from_secs(1);
const CALIBRATIONS: usize = 3;

pub fn run(bench: &mut Bench) -> Result<()> {
    // It knows one place to go.
    bench.leave_out(RELAY, "it does not balance");
    let rate = bench.settings.rate.unwrap_or(RATE);
    let phase = bench.settings.phase;
    bench.report.work.push(format!(
        "{INSTANCES} instances, {SERVICE_MS} ms for a request; {rate} GET a second, 1 KiB, for \
         {phase:?}; then one instance takes ten times as long, one answers 500 and 503, one is \
         killed, and the same again from that moment on"
    ));
    bench.report.work.push(format!(
        "then one instance of {THREADS} threads, beside which the proxy stands: twice the rate \
         that it can serve, from {CROWD} connections, for {phase:?} after {SETTLE:?}; an answer \
         counts if it comes within {PATIENCE:?}"
    ));
    bench.report.remarks.push(format!(
        "retries: leno `retry` on 5xx within its budget, envoy `retry_on` with outlier detection \
         and a retry budget, haproxy `retry-on` with `redispatch` and `observe layer7`, nginx \
         `proxy_next_upstream`. Overload: leno `adaptiveConcurrency`, envoy its adaptive \
         concurrency filter; haproxy has no such thing and was told the answer (`maxconn \
         {THREADS}`, `timeout queue 100ms`); nginx has nothing"
    ));
    bench.rounds(figures(), |settings, _, contestant| {
        let mut values = trouble(settings, contestant, rate)?;
        values.extend(overload(settings, contestant)?);
        Ok(values)
    })
}

fn figures() -> Vec<Figure> {
    let higher = |figure: Figure| figure.better(Better::Higher);
    vec![
        Figure::new("p50", "healthy: latency p50", "µs").decimals(0),
        Figure::new("p99", "healthy: latency p99", "µs").decimals(0),
        higher(Figure::new("success", "three of eleven bad: success", "%").decimals(3))
            .at_least_absolute(99.9),
        Figure::new("trouble-p50", "three of eleven bad: latency p50", "µs").decimals(0),
        Figure::new("trouble-p99", "three of eleven bad: latency p99", "µs").decimals(0),
        Figure::new("slower", "three of eleven bad: p99 over healthy p99", "times").decimals(2),
        Figure::new("amplification", "requests that instances got, for each asked for", "times")
            .decimals(3)
            .at_most_absolute(1.2),
        Figure::new("capacity", "what the instance can do", "requests/s")
            .better(Better::Neither)
            .decimals(0),
        higher(Figure::new("goodput", "twice the load: useful answers, of capacity", "%"))
            .at_least_absolute(95.0),
        Figure::new("overload-p99", "twice the load: latency p99 of answers", "µs").decimals(0),
    ]
}

fn trouble(
    settings: &Settings,
    contestant: &Contestant,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let mut instances = Instances::start(settings, INSTANCES)?;
    let (first, siblings) = instances.addresses.split_first().context("no instance")?;
    let setup = Setup {
        siblings: siblings.to_vec(),
        protection: Protection::Retries,
        ..Setup::new(Mode::Http1, *first)
    };
    let (_place, running) = contestant.start(settings, &setup)?;
    let mut load = Http1Load::connect(&running.target("/1k"), CONNECTIONS)?;
    let pacing = Pacing::Open { rate };
    load.run(pacing, WARM_UP)?;
    let healthy = load.run(pacing, settings.phase)?;
    healthy.check().context("while all instances were healthy")?;
    let before = instances.trouble()?;
    let sample = load.run(pacing, settings.phase)?;
    let reached = instances.count()? - before;
    Ok(vec![
        ("p50", healthy.latency(0.5)),
        ("p99", healthy.latency(0.99)),
        ("success", sample.success()),
        ("trouble-p50", sample.latency(0.5)),
        ("trouble-p99", sample.latency(0.99)),
        ("slower", sample.latency(0.99) / healthy.latency(0.99).max(1.0)),
        ("amplification", reached as f64 / sample.asked().max(1) as f64),
    ])
}

fn overload(settings: &Settings, contestant: &Contestant) -> Result<Vec<(&'static str, f64)>> {
    let instances = Instances::start(settings, 1)?;
    let address = *instances.addresses.first().context("no instance")?;
    let direct =
        Target { address, host: "instance".to_owned(), path: "/1k".to_owned(), tunnel: None };
    let capacity = capacity(&direct)?;
    let setup = Setup {
        hop: Hop::Service,
        connections: CROWD,
        protection: Protection::Limit(THREADS),
        ..Setup::new(Mode::Http1, address)
    };
    let (_place, running) = contestant.start(settings, &setup)?;
    let mut load = Http1Load::connect(&running.target("/1k"), CROWD)?;
    let pacing = Pacing::Open { rate: 2.0 * capacity };
    load.run(pacing, SETTLE)?;
    let sample = load.run(pacing, settings.phase)?;
    Ok(vec![
        ("capacity", capacity),
        ("goodput", sample.goodput(PATIENCE) * 100.0 / capacity.max(1.0)),
        ("overload-p99", sample.latency(0.99)),
    ])
}

/// Answers a second that an instance can give. Others on the machine can only take from that, so the best attempt
/// is the truth.
fn capacity(direct: &Target) -> Result<f64> {
    let mut load = Http1Load::connect(direct, 2 * THREADS)?;
    let mut best = 0.0_f64;
    for _ in 0..CALIBRATIONS {
        let sample = load.run(Pacing::Closed, CALIBRATION)?;
        sample.check().context("what an instance can do")?;
        best = best.max(sample.throughput());
    }
    Ok(best)
}

/// Processes on the load generator's core.
struct Instances {
    addresses: Vec<SocketAddr>,
    processes: Vec<Process>,
    _directories: Vec<TempDir>,
}

impl Instances {
    fn start(settings: &Settings, count: usize) -> Result<Self> {
        let program = std::env::current_exe().context("find the rig itself")?;
        let (threads, time) = (THREADS.to_string(), SERVICE_MS.to_string());
        let arguments = ["instance", "--threads", &threads, "--milliseconds", &time];
        let mut instances =
            Instances { addresses: Vec::new(), processes: Vec::new(), _directories: Vec::new() };
        for _ in 0..count {
            let directory = tempfile::tempdir().context("make a directory")?;
            let load = settings.cores.load;
            let mut process = Process::spawn(&program, &arguments, directory.path(), load, load)?;
            let line = process.first_line()?;
            let address = serde_json::from_str(&line)
                .with_context(|| format!("an instance printed no address but: {line}"))?;
            instances.addresses.push(address);
            instances.processes.push(process);
            instances._directories.push(directory);
        }
        Ok(instances)
    }

    /// Makes one slow, lets one fail and ends one. Returns how many requests the others have had.
    fn trouble(&mut self) -> Result<u64> {
        let (Some(slow), Some(failing)) = (self.addresses.first(), self.addresses.get(1)) else {
            anyhow::bail!("too few instances");
        };
        Order::Slow.tell(*slow)?;
        Order::Fail.tell(*failing)?;
        self.addresses.remove(2);
        let crashed = self.processes.remove(2);
        let before = self.count()?;
        crashed.signal(rustix::process::Signal::KILL)?;
        Ok(before)
    }

    /// Requests that those that run have had.
    fn count(&self) -> Result<u64> {
        self.addresses.iter().map(|address| Order::Count.tell(*address)).sum()
    }
}
