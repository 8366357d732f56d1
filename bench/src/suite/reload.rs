//! `reload`: how long a configuration change takes to reach traffic, with 0, 1,000 and 10,000
//! routes around it, and what 1,000 changes in a row cost the callers.
//!
//! Every change has a number, which the route sets in a header of the answers: an answer says under
//! which configuration it was given, and an old worker that still answers cannot pass for a new one. Each probe is a connection of its own, because HAProxy and nginx keep connections
//! that are open on the configuration they were accepted with.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, Contestant, Settings};
use crate::load::http1::{Http1Load, open, request};
use crate::load::{Pacing, Target};
use crate::peer::{HAPROXY, LENO, Mode, Place, RELAY, Running, STAMP_HEADER, Setup, managed};
use crate::report::Figure;
use crate::statistics::spread;

/// Table sizes, with the names of their figures.
const TABLES: [(usize, &str, &str); 3] = [
    (0, "effect-0", "slowest-0"),
    (1_000, "effect-1000", "slowest-1000"),
    (10_000, "effect-10000", "slowest-10000"),
];
/// Changes timed for each size.
const TIMED: usize = 20;
/// A change without effect after this long is a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// A change is live from the first of so many answers under it: an old worker may answer after a
/// new one already has.
const IN_A_ROW: usize = 5;
/// HAProxy loses the signal for a reload that comes while it still finishes the last: an operator
/// would send it again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between changes that are timed, so that each is measured for itself.
const BETWEEN: Duration = Duration::from_millis(100);
const PROBE_PAUSE: Duration = Duration::from_micros(200);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes made under load, and what they are made around.
const CHANGES: usize = 1_000;
const CHANGES_ROUTES: usize = 100;
/// A peer too slow for all the changes makes those it can in this time.
const CHANGES_BUDGET: Duration = Duration::from_secs(60);
const RATE: f64 = 2_000.0;
const CONNECTIONS: usize = 16;
/// Load runs in pieces this long, so that it can stop when the changes are done.
const PIECE: Duration = Duration::from_millis(500);

pub fn run(bench: &mut Bench) -> Result<()> {
    let rate = bench.settings.rate.unwrap_or(RATE);
    // The relay has no configuration to change.
    bench.peers.retain(|(peer, _)| peer.name() != RELAY);
    bench.report.work.push(format!(
        "{TIMED} changes at each size, timed from when the file is in place to the first answer \
         under it; then {CHANGES} changes in a row (as many as fit {CHANGES_BUDGET:?}) among \
         {CHANGES_ROUTES} routes, each as soon as the last has its effect, under {rate} requests a \
         second on {CONNECTIONS} keep-alive connections"
    ));
    if bench.peers.iter().any(|(peer, _)| peer.name() == LENO) {
        bench.add(managed(&bench.settings.programs), bench.peers.len())?;
    }
    if bench.peers.iter().any(|(peer, _)| peer.name() == HAPROXY) {
        bench.report.remarks.push(format!(
            "haproxy loses a signal that comes while it finishes the last reload; the rig repeats \
             it after {ASK_AGAIN:?}, which is what its time for changes in a row shows"
        ));
    }
    bench
        .report
        .remarks
        .push("haproxy, nginx, envoy and leno take changes by their files; leno (control plane) is changed \
         over the control plane's API, timed from when the change is sent".to_owned());
    bench.rounds(figures(), |settings, origin, contestant| {
        let origin = origin.addresses.http1;
        let mut values = Vec::new();
        for (routes, effect, slowest) in TABLES {
            let times = time_changes(settings, contestant, origin, routes)?;
            let times = spread(times).context("no change was timed")?;
            values.extend([(effect, times.median), (slowest, times.high)]);
        }
        values.extend(changes_under_load(settings, contestant, origin, rate)?);
        Ok(values)
    })
}

fn figures() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (routes, effect, slowest) in TABLES {
        let figure = Figure::new(slowest, format!("slowest change, {routes} routes"), "ms");
        figures.push(Figure::new(effect, format!("median change, {routes} routes"), "ms"));
        figures.push(if routes == 10_000 { figure.at_most_absolute(50.0) } else { figure });
    }
    figures.push(
        Figure::new("errors", "failed requests in 1,000 changes", "requests").at_most_absolute(0.0),
    );
    figures.push(Figure::new("pause", "slowest request during the changes", "ms"));
    figures.push(Figure::new("each", "time for each change in a row", "ms"));
    figures
}

/// A program whose stamp can be changed.
struct Changing<'a> {
    contestant: &'a Contestant<'a>,
    place: Place,
    running: Running,
    setup: Setup,
    target: Target,
    probe: Vec<u8>,
}

impl<'a> Changing<'a> {
    fn start(
        settings: &Settings,
        contestant: &'a Contestant<'a>,
        origin: SocketAddr,
        routes: usize,
    ) -> Result<Self> {
        let setup = Setup { routes, stamp: Some(0), ..Setup::new(Mode::Http1, origin) };
        let (place, running) = contestant.start(settings, &setup)?;
        let target = running.target("/1k");
        let probe = request(&target);
        let mut changing = Changing { contestant, place, running, setup, target, probe };
        changing.await_effect(Instant::now())?;
        Ok(changing)
    }

    /// Changes the route's stamp; returns how long that took to reach requests.
    fn change(&mut self) -> Result<Duration> {
        self.setup.stamp = self.setup.stamp.map(|stamp| stamp + 1);
        let changed = self.contestant.peer.configure(&self.place, &self.setup)?;
        self.contestant.peer.reload(&self.running)?;
        self.await_effect(changed)
    }

    fn await_effect(&mut self, since: Instant) -> Result<Duration> {
        let mut effect = None;
        let mut asked = Instant::now();
        let mut in_a_row = 0;
        loop {
            // A probe may fail while a program changes over; whether callers lose requests is
            // what the load counts.
            let stamp = ask(&self.target, &self.probe).ok().flatten();
            if stamp.is_some() && stamp == self.setup.stamp {
                let effect = *effect.get_or_insert_with(|| since.elapsed());
                in_a_row += 1;
                if in_a_row == IN_A_ROW {
                    return Ok(effect);
                }
            } else {
                effect = None;
                in_a_row = 0;
            }
            if asked.elapsed() > ASK_AGAIN {
                asked = Instant::now();
                self.contestant.peer.reload(&self.running)?;
            }
            anyhow::ensure!(since.elapsed() < PATIENCE, "a change had no effect in {PATIENCE:?}");
            thread::sleep(PROBE_PAUSE);
        }
    }
}

fn time_changes(
    settings: &Settings,
    contestant: &Contestant,
    origin: SocketAddr,
    routes: usize,
) -> Result<Vec<f64>> {
    let mut changing = Changing::start(settings, contestant, origin, routes)
        .with_context(|| format!("with {routes} routes"))?;
    (0..TIMED)
        .map(|_| {
            thread::sleep(BETWEEN);
            let time = changing.change().with_context(|| format!("with {routes} routes"))?;
            Ok(time.as_secs_f64() * 1e3)
        })
        .collect()
}

fn changes_under_load(
    settings: &Settings,
    contestant: &Contestant,
    origin: SocketAddr,
    rate: f64,
) -> Result<Vec<(&'static str, f64)>> {
    let mut changing = Changing::start(settings, contestant, origin, CHANGES_ROUTES)?;
    let target = changing.target.clone();
    let done = AtomicBool::new(false);
    let started = Instant::now();
    let (changes, load) = thread::scope(|scope| {
        let load = scope.spawn(|| steady_load(&target, rate, &done));
        let changes = change_many(&mut changing, started);
        done.store(true, Ordering::Relaxed);
        (changes, load.join())
    });
    let changes = changes.context("under load")? as f64;
    let each = started.elapsed().as_secs_f64() * 1e3 / changes;
    let (errors, slowest) = load.map_err(|_| anyhow::anyhow!("the load generator panicked"))??;
    let errors = errors as f64 * CHANGES as f64 / changes;
    Ok(vec![("errors", errors), ("pause", slowest / 1e3), ("each", each)])
}

fn change_many(changing: &mut Changing, started: Instant) -> Result<usize> {
    for made in 0..CHANGES {
        if made > 0 && started.elapsed() > CHANGES_BUDGET {
            return Ok(made);
        }
        changing.change()?;
    }
    Ok(CHANGES)
}

/// Failed requests, and the slowest in microseconds.
fn steady_load(target: &Target, rate: f64, done: &AtomicBool) -> Result<(u64, f64)> {
    let mut load = Http1Load::connect(target, CONNECTIONS)?;
    let mut errors = 0;
    let mut first_error = None;
    let mut slowest: f64 = 0.0;
    while !done.load(Ordering::Relaxed) {
        let sample = load.run(Pacing::Open { rate }, PIECE)?;
        errors += sample.errors + sample.unsent;
        slowest = slowest.max(sample.latency(1.0));
        first_error = first_error.or(sample.first_error);
    }
    if let Some(reason) = first_error {
        eprint!(" (the first failure: {reason})");
    }
    Ok((errors, slowest))
}

/// One request on a connection of its own: the stamp of its answer.
fn ask(target: &Target, request: &[u8]) -> Result<Option<u64>> {
    let mut stream = open(target)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT)).context("set a timeout")?;
    stream.write_all(request).context("send a probe")?;
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).context("read the answer to a probe")?;
        anyhow::ensure!(count > 0, "a probe was not answered");
        head.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let text = String::from_utf8_lossy(&head);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            return Ok(stamp(head));
        }
    }
}

fn stamp(head: &str) -> Option<u64> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(STAMP_HEADER).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_its_configuration() {
        assert_eq!(stamp("HTTP/1.1 200 OK\r\nX-Stamp: 17\r\nvia: x"), Some(17));
        assert_eq!(stamp("HTTP/1.1 503 Unavailable\r\nvia: x"), None);
    }
}
