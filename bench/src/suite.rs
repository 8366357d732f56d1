//! The suites, and what they share: the round loop and the measured phase.
//!
//! Every program is started afresh in every round, so that what differs from start to start (memory
//! layout, mostly) is in the spread and not hidden in the median; rounds begin with another program
//! each, so that none always follows the same one.

mod cache;
mod connections;
mod exchanges;
mod instructions;
mod latency;
mod mesh;
mod reload;
mod resilience;
mod scale;
mod tcp;
mod tls;
mod wasm;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tempfile::TempDir;

use crate::cores::Cores;
use crate::identity::{Authority, Identity};
use crate::load::http1::Http1Load;
use crate::load::http2::Http2Load;
use crate::load::tls::{self as tls_load, Handshakes, Requests};
use crate::load::{Pacing, Sample, Target};
use crate::measure;
use crate::origin;
use crate::peer::{
    CALLER_ACCOUNT, Found, HOST, Hop, Mode, Peer, Place, Process, Programs, Running,
    SERVICE_ACCOUNT, Setup,
};
use crate::report::{Figure, Program, Report, Skipped};

/// The suites there are, as the command line names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// HTTP/1.1: CPU per request at a fixed rate, throughput when saturated, latency.
    Http1,
    /// HTTP/2, the same.
    Http2,
    /// Unary gRPC calls, the same.
    Grpc,
    /// Opaque TCP: small exchanges and bulk.
    Tcp,
    /// Mutual TLS, callers' side: handshakes, full and resumed, and bulk.
    Tls,
    /// Two sidecars with mutual TLS between them.
    Mesh,
    /// Memory of an idle proxy, and of each idle connection, plain and under mutual TLS.
    Connections,
    /// Latency a proxy adds at 30 % of the slowest one's capacity.
    Latency,
    /// Time from a change to its effect, and errors during 1,000 changes.
    Reload,
    /// User-space instructions per request, counted by valgrind: no noise.
    Instructions,
    /// One slow, one failing and one crashed instance of eleven; twice the load that an application can carry.
    Resilience,
    /// Memory for 1,000 services of 10 workloads each; a control plane's for each of 1,000 proxies.
    Scale,
    /// Proxy-Wasm plugins: what the same modules add to a request in Leno and in Envoy, and what they weigh.
    Wasm,
    /// Answers from memory, beside nginx and Varnish, and how many of them four rules of eviction make possible.
    Cache,
}

/// What the command line settles.
#[derive(Clone, Debug)]
pub struct Settings {
    pub cores: Cores,
    pub rounds: usize,
    /// Length of a measured phase.
    pub phase: Duration,
    /// Requests a second in the phases with a fixed rate, if not the suite's own.
    pub rate: Option<f64>,
    pub programs: Programs,
}

/// Everything a suite needs.
pub struct Bench {
    pub settings: Settings,
    pub peers: Vec<(Box<dyn Peer>, Found)>,
    pub origin: Origin,
    pub report: Report,
}

/// The service behind the proxies, a process on the load generator's core.
pub struct Origin {
    pub addresses: origin::Addresses,
    // Dropped before the directory that holds what it says.
    process: Process,
    _directory: TempDir,
}

/// A phase in which others used more than this much of a core, in per cent, is disturbed ...
const DISTURBED: f64 = 5.0;
/// ... and repeated, so many times in all at most.
const ATTEMPTS: usize = 3;

/// What a measured phase found.
pub struct Measured {
    pub sample: Sample,
    /// Microseconds of CPU, all the proxy's processes, for each answered request.
    pub cpu_per_request: f64,
    /// Share of its core the proxy used, in per cent.
    pub utilisation: f64,
    /// What programs that are no part of this run used of the two cores meanwhile, in per cent of
    /// one core. They make a proxy wake up later to more work at once, which is cheaper.
    pub disturbance: f64,
}

/// The load generators behind one face.
pub enum Load {
    Http1(Http1Load),
    Http2(Http2Load),
    Handshakes(Handshakes),
    Bulk(Requests),
}

impl Suite {
    pub fn run(self, bench: &mut Bench) -> Result<()> {
        match self {
            Suite::Http1 => exchanges::http1(bench),
            Suite::Http2 => exchanges::http2(bench),
            Suite::Grpc => exchanges::grpc(bench),
            Suite::Tcp => tcp::run(bench),
            Suite::Tls => tls::run(bench),
            Suite::Mesh => mesh::run(bench),
            Suite::Connections => connections::run(bench),
            Suite::Latency => latency::run(bench),
            Suite::Reload => reload::run(bench),
            Suite::Instructions => instructions::run(bench),
            Suite::Resilience => resilience::run(bench),
            Suite::Scale => scale::run(bench),
            Suite::Wasm => wasm::run(bench),
            Suite::Cache => cache::run(bench),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Suite::Http1 => "http1",
            Suite::Http2 => "http2",
            Suite::Grpc => "grpc",
            Suite::Tcp => "tcp",
            Suite::Tls => "tls",
            Suite::Mesh => "mesh",
            Suite::Connections => "connections",
            Suite::Latency => "latency",
            Suite::Reload => "reload",
            Suite::Instructions => "instructions",
            Suite::Resilience => "resilience",
            Suite::Scale => "scale",
            Suite::Wasm => "wasm",
            Suite::Cache => "cache",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Suite::Http1 => "HTTP/1.1 requests",
            Suite::Http2 => "HTTP/2 requests",
            Suite::Grpc => "Unary gRPC calls",
            Suite::Tcp => "Opaque TCP",
            Suite::Tls => "Mutual TLS",
            Suite::Mesh => "Two sidecars with mutual TLS",
            Suite::Connections => "Memory of connections",
            Suite::Latency => "Latency added",
            Suite::Reload => "Changes of configuration",
            Suite::Instructions => "Instructions",
            Suite::Resilience => "Instances that fail, and overload",
            Suite::Scale => "Memory of configuration",
            Suite::Wasm => "Plugins",
            Suite::Cache => "Answers from memory",
        }
    }
}

impl Bench {
    /// Finds out who can take part, and starts the origin.
    pub fn new(
        suite: Suite,
        settings: Settings,
        peers: Vec<Box<dyn Peer>>,
        command: String,
    ) -> Result<Self> {
        let mut report = Report {
            suite: suite.name(),
            title: suite.title(),
            command,
            machine: machine(&settings),
            work: Vec::new(),
            programs: Vec::new(),
            skipped: Vec::new(),
            remarks: Vec::new(),
            failures: Vec::new(),
            figures: Vec::new(),
        };
        let mut present = Vec::new();
        for peer in peers {
            match peer.find() {
                Ok(found) => {
                    let version = found.version.clone();
                    eprintln!("{}: {version}", peer.name());
                    report.programs.push(Program { name: peer.name(), version });
                    present.push((peer, found));
                }
                Err(missing) => {
                    let (reason, remedy) = (missing.reason, missing.remedy);
                    eprintln!("{}: skipped, {reason}. To have it: {remedy}", peer.name());
                    report.skipped.push(Skipped { name: peer.name(), reason, remedy });
                }
            }
        }
        let origin = Origin::start(&settings)?;
        Ok(Bench { settings, peers: present, origin, report })
    }

    /// Lets `peer` take part, too, at place `at`.
    pub fn add(&mut self, peer: Box<dyn Peer>, at: usize) -> Result<()> {
        let found = peer.find().map_err(|missing| anyhow::anyhow!(missing.reason))?;
        let program = Program { name: peer.name(), version: found.version.clone() };
        let last = self.peers.len();
        self.report.programs.insert(at.min(last), program);
        self.peers.insert(at.min(last), (peer, found));
        Ok(())
    }

    /// Leaves out a program that cannot do this work.
    pub fn leave_out(&mut self, name: &str, reason: &str) {
        let present = self.peers.len();
        self.peers.retain(|(peer, _)| peer.name() != name);
        self.report.programs.retain(|program| program.name != name);
        if self.peers.len() < present {
            self.report.remarks.push(format!("{name} is left out: {reason}"));
        }
    }

    /// Runs `measure` for every program in every round and files what it returns under `figures`.
    /// A program that fails in a round has no values for it, and the report says why.
    pub fn rounds(
        &mut self,
        mut figures: Vec<Figure>,
        mut measure: impl FnMut(&Settings, &Origin, &Contestant) -> Result<Vec<(&'static str, f64)>>,
    ) -> Result<()> {
        for round in 0..self.settings.rounds {
            for turn in 0..self.peers.len() {
                let Some((peer, found)) = self.peers.get((round + turn) % self.peers.len()) else {
                    continue;
                };
                let name = peer.name();
                eprint!("round {} of {}: {name} ...", round + 1, self.settings.rounds);
                let contestant = Contestant { peer: peer.as_ref(), found };
                match measure(&self.settings, &self.origin, &contestant) {
                    Ok(values) => {
                        let mut said = String::new();
                        for (id, value) in values {
                            let figure = figures.iter_mut().find(|figure| figure.id == id);
                            if let Some(figure) = figure {
                                figure.record(name, round, value);
                                said += &format!(" {id} {value:.2}");
                            }
                        }
                        eprintln!("{said}");
                    }
                    Err(error) => {
                        eprintln!(" failed: {error:#}");
                        let failure = format!("{name}, round {}: {error:#}", round + 1);
                        self.report.failures.push(failure);
                        // Without it every later turn would fail, too, and blame the proxies.
                        self.origin.process.check_alive().context("the origin is gone")?;
                    }
                }
            }
        }
        for figure in &mut figures {
            // Rounds rotate; tables keep the order of the peers.
            let place = |program| self.peers.iter().position(|(peer, _)| peer.name() == program);
            figure.series.sort_by_key(|series| place(series.program));
        }
        self.report.figures.extend(figures);
        Ok(())
    }
}

/// A program in its turn.
pub struct Contestant<'a> {
    pub peer: &'a dyn Peer,
    pub found: &'a Found,
}

impl Contestant<'_> {
    /// Starts the program afresh for `setup`.
    pub fn start(&self, settings: &Settings, setup: &Setup) -> Result<(Place, Running)> {
        let place = Place::new(settings.cores)?;
        self.peer.configure(&place, setup)?;
        let running = self.peer.start(self.found, &place, setup)?;
        Ok((place, running))
    }
}

/// Who takes part in hops under mutual TLS.
pub struct Identities {
    pub caller: Arc<Identity>,
    pub service: Arc<Identity>,
    _authority: Authority,
}

impl Identities {
    pub fn new() -> Result<Self> {
        let authority = Authority::new()?;
        let (caller, service) =
            (authority.issue(CALLER_ACCOUNT)?, authority.issue(SERVICE_ACCOUNT)?);
        Ok(Identities { caller, service, _authority: authority })
    }
}

impl Contestant<'_> {
    /// Starts the program as the sidecar of the service: its callers come under mutual TLS.
    pub fn start_service(
        &self,
        settings: &Settings,
        origin: &Origin,
        identities: &Identities,
        connections: usize,
    ) -> Result<(Place, Running)> {
        let setup = Setup {
            hop: Hop::Service,
            identity: Some(identities.service.clone()),
            connections,
            ..Setup::new(Mode::Http1, origin.addresses.http1)
        };
        self.start(settings, &setup)
    }

    /// How callers reach it then.
    pub fn tls_target(&self, running: &Running, identities: &Identities) -> tls_load::Target {
        tls_load::Target {
            address: running.address,
            server_name: self.peer.server_name().to_owned(),
            host: HOST,
            alpn: self.peer.alpn(),
            identity: identities.caller.clone(),
        }
    }
}

impl Running {
    /// Requests for `path` through this program.
    pub fn target(&self, path: &str) -> Target {
        Target {
            address: self.address,
            host: HOST.to_owned(),
            path: path.to_owned(),
            tunnel: self.tunnel.clone(),
        }
    }
}

impl Load {
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Sample> {
        match self {
            Load::Http1(load) => load.run(pacing, duration),
            Load::Http2(load) => load.run(pacing, duration),
            Load::Handshakes(load) => load.run(pacing, duration),
            Load::Bulk(load) => load.run(pacing, duration),
        }
    }

    /// What a phase needs that is not measured.
    pub fn prepare(&mut self) -> Result<()> {
        match self {
            Load::Handshakes(load) => load.prepare(),
            Load::Http1(_) | Load::Http2(_) | Load::Bulk(_) => Ok(()),
        }
    }

    /// Runs a phase and accounts for what it cost the proxy. One that others disturbed is run
    /// again, and the least disturbed one counts.
    pub fn measure(
        &mut self,
        settings: &Settings,
        running: &Running,
        pacing: Pacing,
    ) -> Result<Measured> {
        let mut best = self.measure_once(settings, running, pacing)?;
        for _ in 1..ATTEMPTS {
            if best.disturbance <= DISTURBED {
                break;
            }
            let again = self.measure_once(settings, running, pacing)?;
            if again.disturbance < best.disturbance {
                best = again;
            }
        }
        Ok(best)
    }

    fn measure_once(
        &mut self,
        settings: &Settings,
        running: &Running,
        pacing: Pacing,
    ) -> Result<Measured> {
        self.prepare()?;
        let Cores { proxy, load } = settings.cores;
        let busy = || anyhow::Ok(measure::core_busy(proxy)? + measure::core_busy(load)?);
        let ours = || measure::cpu_time(std::process::id());
        let started = Instant::now();
        let (busy_before, ours_before) = (busy()?, ours()?);
        let before = running.cpu_time()?;
        let sample = self.run(pacing, settings.phase)?;
        let used = running.cpu_time()?.saturating_sub(before);
        let ours = ours()?.saturating_sub(ours_before);
        let busy = busy()?.saturating_sub(busy_before);
        let elapsed = started.elapsed().as_secs_f64();
        sample.check()?;
        Ok(Measured {
            cpu_per_request: used.as_secs_f64() * 1e6 / sample.completed as f64,
            utilisation: used.as_secs_f64() * 100.0 / elapsed,
            disturbance: busy.saturating_sub(ours).as_secs_f64() * 100.0 / elapsed,
            sample,
        })
    }
}

impl Running {
    /// Of this program, and of the other sidecar where there are two.
    fn cpu_time(&self) -> Result<Duration> {
        let ids =
            [self.process.as_ref(), self.partner.as_ref().and_then(|one| one.process.as_ref())];
        ids.into_iter().flatten().map(|process| measure::cpu_time(process.id())).sum()
    }

    /// The same.
    pub fn memory(&self) -> Result<measure::Memory> {
        let process = self.process.as_ref().context("no process to measure")?;
        let own = measure::memory(process.id())?;
        let Some(partner) = &self.partner else { return Ok(own) };
        let other = partner.memory()?;
        Ok(measure::Memory {
            proportional: own.proportional + other.proportional,
            peak: own.peak + other.peak,
        })
    }
}

impl Origin {
    pub fn start(settings: &Settings) -> Result<Self> {
        let program = std::env::current_exe().context("find the rig itself")?;
        let directory = tempfile::tempdir().context("make a directory")?;
        let load = settings.cores.load;
        let mut process = Process::spawn(&program, &["origin"], directory.path(), load, load)?;
        let line = process.first_line()?;
        let addresses = serde_json::from_str(&line)
            .with_context(|| format!("the origin printed no addresses but: {line}"))?;
        Ok(Origin { addresses, process, _directory: directory })
    }
}

/// The machine, as far as figures depend on it.
fn machine(settings: &Settings) -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(':')).map_or("?", |(_, model)| model.trim());
    let cores = information.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    vec![
        format!("{cores} cores, {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        format!(
            "proxy on core {}, load generator and origin on core {}; load average before: {}",
            settings.cores.proxy,
            settings.cores.load,
            load.split(' ').next().unwrap_or("?")
        ),
    ]
}
