//! `http1`, `http2` and `grpc`: what one exchange costs, how many fit, how long they take.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Contestant, Load, Origin, Settings};
use crate::load::Pacing;
use crate::load::http1::Http1Load;
use crate::load::http2::Http2Load;
use crate::peer::{ENVOY, HAPROXY, Mode, RELAY, Running, Setup};
use crate::report::{Better, Figure};

const CONNECTIONS: usize = 64;
/// HTTP/2 callers share connections: the same 64 exchanges at a time on eight of them.
const HTTP2_CONNECTIONS: usize = 8;
const HTTP2_STREAMS: usize = 8;
/// Before anything is measured: pools fill, buffers grow, the balancer learns.
const WARM_UP: Duration = Duration::from_secs(1);
/// About a third of what the slowest peer manages on one core of a small machine.
const HTTP1_RATE: f64 = 10_000.0;
const HTTP2_RATE: f64 = 5_000.0;

pub fn http1(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(HTTP1_RATE);
    let mut figures = figures(rate);
    target(&mut figures, "cpu", |figure| {
        figure.at_most(1.10, HAPROXY).at_most(0.45, ENVOY).at_most(1.35, RELAY)
    });
    target(&mut figures, "throughput", |figure| {
        figure.at_least(0.95, HAPROXY).at_least(2.0, ENVOY)
    });
    bench.report.work.push(format!(
        "{CONNECTIONS} keep-alive connections, GET with a body of 1 KiB; {:?} at {rate}/s, then \
         {:?} saturated",
        bench.settings.phase, bench.settings.phase
    ));
    run(bench, Mode::Http1, rate, figures)
}

pub fn http2(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(HTTP2_RATE);
    describe_http2(bench, "GET with a body of 1 KiB", rate);
    run(bench, Mode::Http2, rate, figures(rate))
}

pub fn grpc(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(HTTP2_RATE);
    describe_http2(bench, "unary calls, 128 bytes up, 1 KiB down", rate);
    let mut figures = figures(rate);
    target(&mut figures, "cpu", |figure| figure.at_most(0.55, ENVOY));
    run(bench, Mode::Grpc, rate, figures)
}

fn describe_http2(bench: &mut Bench, what: &str, rate: f64) {
    let phase = bench.settings.phase;
    bench.report.work.push(format!(
        "{HTTP2_CONNECTIONS} connections of up to {HTTP2_STREAMS} streams, {what}; {phase:?} at \
         {rate}/s, then {phase:?} saturated"
    ));
    bench.report.remarks.push(
        "the HTTP/2 load generator and origin cost more than a fast proxy: where the saturated \
         proxy used less than its core, they are what the throughput shows"
            .to_owned(),
    );
}

fn figures(rate: f64) -> Vec<Figure> {
    vec![
        Figure::new("cpu", format!("CPU per request at {rate}/s"), "µs"),
        Figure::new("p50", format!("latency p50 at {rate}/s"), "µs").decimals(0),
        Figure::new("p99", format!("latency p99 at {rate}/s"), "µs").decimals(0),
        Figure::new("p999", format!("latency p99.9 at {rate}/s"), "µs").decimals(0),
        Figure::new("throughput", "saturated throughput", "requests/s")
            .better(Better::Higher)
            .decimals(0),
        Figure::new("saturated-cpu", "CPU per request when saturated", "µs"),
        Figure::new("memory", "peak memory", "MB"),
        Figure::new("busy", "share of its core the saturated proxy used", "%")
            .better(Better::Neither)
            .decimals(0),
        Figure::new("others", "used by other programs meanwhile", "% of a core")
            .better(Better::Neither),
    ]
}

fn target(figures: &mut [Figure], id: &str, add: impl FnOnce(Figure) -> Figure) {
    if let Some(figure) = figures.iter_mut().find(|figure| figure.id == id) {
        *figure = add(figure.clone());
    }
}

fn run(bench: &mut Bench, mode: Mode, rate: f64, figures: Vec<Figure>) -> Result<()> {
    for (peer, _) in &bench.peers {
        bench.report.remarks.extend(peer.remark(mode).map(str::to_owned));
    }
    bench.rounds(figures, |settings, origin, contestant| {
        turn(settings, origin, contestant, mode, rate)
    })
}

fn turn(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    mode: Mode,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let address = if contestant.speaks_http1_upstream(mode) {
        origin.addresses.http1
    } else {
        origin.addresses.http2
    };
    let (_place, running) = contestant.start(settings, &Setup::new(mode, address))?;
    let mut load = connect(&running, mode)?;
    load.run(Pacing::Closed, WARM_UP)?;
    let fixed = load.measure(settings, &running, Pacing::Open { rate })?;
    let saturated = load.measure(settings, &running, Pacing::Closed)?;
    Ok(vec![
        ("cpu", fixed.cpu_per_request),
        ("p50", fixed.sample.latency(0.5)),
        ("p99", fixed.sample.latency(0.99)),
        ("p999", fixed.sample.latency(0.999)),
        ("throughput", saturated.sample.throughput()),
        ("saturated-cpu", saturated.cpu_per_request),
        ("memory", running.memory()?.peak as f64 / 1e6),
        ("busy", saturated.utilisation),
        ("others", fixed.disturbance.max(saturated.disturbance)),
    ])
}

fn connect(running: &Running, mode: Mode) -> Result<Load> {
    let target = running.target(if mode == Mode::Grpc { "/bench.Echo/Call" } else { "/1k" });
    Ok(if mode == Mode::Http1 {
        Load::Http1(Http1Load::connect(&target, CONNECTIONS)?)
    } else {
        let grpc = mode == Mode::Grpc;
        Load::Http2(Http2Load::connect(&target, HTTP2_CONNECTIONS, HTTP2_STREAMS, grpc)?)
    })
}

impl Contestant<'_> {
    /// nginx has HTTP/2 to upstreams for gRPC only.
    fn speaks_http1_upstream(&self, mode: Mode) -> bool {
        mode == Mode::Http1 || (mode == Mode::Http2 && self.peer.name() == crate::peer::NGINX)
    }
}
