//! `wasm`: what plugins cost. The same modules in Leno and in Envoy, in one run.
//!
//! What a plugin adds is a microsecond where a request costs twenty and starts of a program differ by one. So each
//! program has a door of its own for every plugin and one without, and short slices of load go from door to door: a
//! figure is the median, over all turns, of the difference to the slice without a plugin of the same turn.

mod guests;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use leno_wasm_host::{Digest, Engine, EngineSettings, Module};
use tempfile::TempDir;

use self::guests::Guest;
use super::{Bench, Contestant, Load, Origin, Settings};
use crate::load::http1::{Http1Load, request};
use crate::load::{Pacing, Target};
use crate::peer::{Door, ENVOY, HAPROXY, LENO, Mode, NGINX, RELAY, Running, Setup, free_addresses};
use crate::report::Figure;
use crate::statistics::spread;

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);
/// Long enough for thousands of requests, short enough that whatever else happens on the machine meets a whole turn.
const SLICE: Duration = Duration::from_millis(250);
/// Until everything is compiled and answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Instances whose memory is weighed, beside the first.
const INSTANCES: usize = 16;
/// Allocators give memory back some time after the start.
const SETTLE: Duration = Duration::from_secs(3);
/// How often a module is loaded from the cache.
const LOADS: usize = 21;

const NO_PLUGIN: &str = "bare";

/// What is measured: a plugin, which body it sees, and the ids of its figures.
struct Case {
    guest: Guest,
    path: &'static str,
    title: &'static str,
    cpu: &'static str,
    loss: &'static str,
}

const CASES: [Case; 4] = [
    Case { guest: Guest::Nothing, path: "/1k", title: "no-op", cpu: "noop", loss: "noop-loss" },
    Case {
        guest: Guest::AddHeader,
        path: "/1k",
        title: "add one header",
        cpu: "add",
        loss: "add-loss",
    },
    Case {
        guest: Guest::ReadHeaders,
        path: "/1k",
        title: "read ten headers",
        cpu: "read",
        loss: "read-loss",
    },
    Case {
        guest: Guest::RewriteBody,
        path: "/10k",
        title: "rewrite 10 KiB",
        cpu: "rewrite",
        loss: "rewrite-loss",
    },
];

pub fn run(bench: &mut Bench) -> Result<()> {
    for (name, reason) in [
        (RELAY, "it has no plugins"),
        (HAPROXY, "it has no Proxy-Wasm"),
        (NGINX, "it has no Proxy-Wasm"),
    ] {
        bench.leave_out(name, reason);
    }
    let phase = bench.settings.phase;
    bench.report.work.push(format!(
        "{CONNECTIONS} keep-alive connections for each plugin and without one, GET with a body of 1 KiB (10 KiB where it \
         is rewritten); saturated slices of {SLICE:?} from one to the next until each had {phase:?}, in one process; \
         modules of ABI 0.2.1 that export all callbacks; each is seen to do its work before it is measured"
    ));
    bench.report.work.push(format!(
        "memory: proportional set size with {} instances of the no-op less that with one and less what as many doors weigh without, for each, with its own linear \
         memory of 128 KiB as far as it is touched; first answer: from the start of the program with one plugin of 3 MiB, \
         every second start with what leno has kept of the first (envoy keeps nothing)",
        INSTANCES + 1
    ));
    let modules = Modules::new()?;
    if bench.peers.iter().any(|(peer, _)| peer.name() == LENO) {
        let figure = from_the_cache(&modules, bench.settings.rounds)?;
        bench.report.figures.extend(figure);
    }
    bench.rounds(figures(), |settings, origin, contestant| {
        let mut values = costs(settings, origin, contestant, &modules)?;
        values.push(("memory", weight(settings, origin, contestant, &modules)?));
        values.extend(starts(settings, origin, contestant, &modules)?);
        Ok(values)
    })
}

fn figures() -> Vec<Figure> {
    let mut figures = vec![
        Figure::new("cpu", "CPU per request without a plugin", "µs"),
        Figure::new("cpu-10k", "CPU per request without a plugin, 10 KiB", "µs"),
    ];
    for case in &CASES {
        let title = format!("CPU added per request: {}", case.title);
        let figure = Figure::new(case.cpu, title, "µs").decimals(2).at_most(0.35, ENVOY);
        let one_header = case.guest == Guest::AddHeader;
        figures.push(if one_header { figure.at_most_absolute(1.5) } else { figure });
        let title = format!("throughput lost: {}", case.title);
        let figure = Figure::new(case.loss, title, "%");
        figures.push(if one_header { figure.at_most_absolute(5.0) } else { figure });
    }
    figures.extend([
        Figure::new("memory", "memory per instance and worker", "KiB")
            .decimals(0)
            .at_most_absolute(300.0),
        Figure::new("start", "start to first answer, no plugin", "ms").decimals(0),
        Figure::new("start-large", "start to first answer, plugin of 3 MiB", "ms").decimals(0),
        Figure::new("start-again", "the same, started again", "ms").decimals(0),
    ]);
    figures
}

/// The modules as files.
struct Modules {
    directory: TempDir,
}

impl Modules {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory")?;
        let modules = Modules { directory };
        for guest in CASES.iter().map(|case| case.guest).chain([Guest::Large]) {
            guest.write(modules.directory.path())?;
        }
        Ok(modules)
    }

    fn of(&self, guest: Guest) -> PathBuf {
        self.directory.path().join(format!("{}.wasm", guest.name()))
    }
}

fn doors(plugins: Vec<(String, Option<PathBuf>)>) -> Result<Vec<Door>> {
    let addresses = free_addresses(plugins.len())?;
    let doors = plugins.into_iter().zip(addresses);
    Ok(doors.map(|((name, plugin), listen)| Door { name, listen, plugin }).collect())
}

/// A program with doors that all answer.
struct Open {
    targets: Vec<Target>,
    running: Running,
    _place: crate::peer::Place,
}

impl Open {
    fn start(
        settings: &Settings,
        origin: &Origin,
        contestant: &Contestant,
        doors: Vec<Door>,
        module_cache: Option<&Path>,
    ) -> Result<Self> {
        let setup = Setup {
            doors,
            module_cache: module_cache.map(Path::to_owned),
            ..Setup::new(Mode::Http1, origin.addresses.http1)
        };
        let (place, running) = contestant.start(settings, &setup)?;
        let target = |door| {
            let (address, host) = contestant.peer.door(&running, door);
            Target { address, host, path: "/1k".to_owned(), tunnel: None }
        };
        let targets: Vec<Target> = setup.doors.iter().map(target).collect();
        targets.iter().try_for_each(until_it_answers)?;
        Ok(Open { targets, running, _place: place })
    }
}

fn until_it_answers(target: &Target) -> Result<()> {
    let started = Instant::now();
    loop {
        match ask(target) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            outcome => anyhow::ensure!(
                started.elapsed() < PATIENCE,
                "{} does not answer with 200 after {PATIENCE:?}, but: {outcome:?}",
                target.host
            ),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One request on a connection of its own, and all that comes back.
fn ask(target: &Target) -> Result<String> {
    let mut stream = TcpStream::connect(target.address).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
    let head = String::from_utf8(request(target)).context("a request that is not text")?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    stream.write_all(head.as_bytes()).context("send a request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read an answer")?;
    Ok(answer)
}

/// A figure of a plugin that does not do its work would be a good one.
fn check(case: &Case, target: &Target) -> Result<()> {
    let answer = ask(target)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    let (name, value) = guests::ADDED;
    let added = head.lines().any(|line| line.eq_ignore_ascii_case(&format!("{name}: {value}")));
    anyhow::ensure!(
        added == (case.guest == Guest::AddHeader),
        "{}: header added: {added}",
        case.title
    );
    // There may be sizes of chunks between them.
    let capitals = body.bytes().filter(u8::is_ascii_uppercase).count() >= 10 * 1024;
    anyhow::ensure!(
        capitals == (case.guest == Guest::RewriteBody),
        "{}: rewritten: {capitals}",
        case.title
    );
    Ok(())
}

/// One slice at one door.
#[derive(Clone, Copy)]
struct Slice {
    cpu: f64,
    throughput: f64,
}

fn costs(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    modules: &Modules,
) -> Result<Vec<(&'static str, f64)>> {
    let cases = CASES.iter().map(|case| case.guest);
    let plugins = cases.map(|guest| (guest.name().to_owned(), Some(modules.of(guest))));
    let doors = doors(std::iter::once((NO_PLUGIN.to_owned(), None)).chain(plugins).collect())?;
    let open = Open::start(settings, origin, contestant, doors, None)?;
    let (bare, others) = open.targets.split_first().context("no door")?;
    let mut loads = Vec::new();
    for path in ["/1k", "/10k"] {
        loads.push(connect(&Target { path: path.to_owned(), ..bare.clone() })?);
    }
    for (case, target) in CASES.iter().zip(others) {
        let target = Target { path: case.path.to_owned(), ..target.clone() };
        check(case, &target)?;
        loads.push(connect(&target)?);
    }
    let slice = Settings { phase: SLICE.min(settings.phase), ..settings.clone() };
    let turns = settings.phase.as_millis().div_ceil(SLICE.as_millis()).max(1);
    let mut found = Vec::new();
    for turn in 0..turns {
        let mut slices = vec![Slice { cpu: 0.0, throughput: 0.0 }; loads.len()];
        for step in 0..loads.len() {
            // Each turn begins elsewhere, so that no door always follows the same one.
            let at = (step + usize::try_from(turn).unwrap_or(0)) % loads.len();
            let (Some(load), Some(place)) = (loads.get_mut(at), slices.get_mut(at)) else {
                continue;
            };
            let measured = load.measure_once(&slice, &open.running, Pacing::Closed)?;
            *place =
                Slice { cpu: measured.cpu_per_request, throughput: measured.sample.throughput() };
        }
        found.push(slices);
    }
    Ok(summary(&found))
}

fn connect(target: &Target) -> Result<Load> {
    let mut load = Load::Http1(Http1Load::connect(target, CONNECTIONS)?);
    load.run(Pacing::Closed, WARM_UP)?.check()?;
    Ok(load)
}

/// Each turn has the door without a plugin (1 KiB, 10 KiB), then those of `CASES`.
fn summary(turns: &[Vec<Slice>]) -> Vec<(&'static str, f64)> {
    let median = |value: &dyn Fn(&[Slice]) -> Option<f64>| {
        spread(turns.iter().filter_map(|slices| value(slices))).map(|found| found.median)
    };
    let mut values = Vec::new();
    let mut add = |id, value: &dyn Fn(&[Slice]) -> Option<f64>| {
        values.extend(median(value).map(|value| (id, value)))
    };
    add("cpu", &|slices| Some(slices.first()?.cpu));
    add("cpu-10k", &|slices| Some(slices.get(1)?.cpu));
    for (at, case) in CASES.iter().enumerate() {
        let base = usize::from(case.path == "/10k");
        let pair = |slices: &[Slice]| Some((*slices.get(base)?, *slices.get(at + 2)?));
        add(case.cpu, &|slices| pair(slices).map(|(without, with)| with.cpu - without.cpu));
        add(case.loss, &|slices| {
            pair(slices).map(|(without, with)| 100.0 - with.throughput * 100.0 / without.throughput)
        });
    }
    values
}

/// KiB that one more instance weighs: what more doors with it weigh, less what as many doors do without.
fn weight(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    modules: &Modules,
) -> Result<f64> {
    let memory = |count: usize, module: Option<&PathBuf>| -> Result<f64> {
        let plugin = |number| (format!("door-{number}"), module.cloned());
        let doors = doors((0..count).map(plugin).collect())?;
        let open = Open::start(settings, origin, contestant, doors, None)?;
        std::thread::sleep(SETTLE);
        Ok(open.running.memory()?.proportional as f64)
    };
    let more = |module| anyhow::Ok(memory(1 + INSTANCES, module)? - memory(1, module)?);
    let module = modules.of(Guest::Nothing);
    Ok((more(Some(&module))? - more(None)?) / INSTANCES as f64 / 1024.0)
}

/// Milliseconds from the start of the program to an answer.
fn starts(
    settings: &Settings,
    origin: &Origin,
    contestant: &Contestant,
    modules: &Modules,
) -> Result<Vec<(&'static str, f64)>> {
    let cache = tempfile::tempdir().context("make a directory")?;
    let time = |plugin: Option<PathBuf>| -> Result<f64> {
        let doors = doors(vec![(NO_PLUGIN.to_owned(), plugin)])?;
        let started = Instant::now();
        let _open = Open::start(settings, origin, contestant, doors, Some(cache.path()))?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let large = || Some(modules.of(Guest::Large));
    Ok(vec![
        ("start", time(None)?),
        ("start-large", time(large())?),
        ("start-again", time(large())?),
    ])
}

/// What Leno's host takes for the large module by itself, in this process. Envoy has no such step.
fn from_the_cache(modules: &Modules, rounds: usize) -> Result<[Figure; 2]> {
    let bytes = std::fs::read(modules.of(Guest::Large)).context("read a module")?;
    let engine = Engine::new(EngineSettings::default()).context("make an engine")?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let mut compile = Figure::new("compile", "compile a module of 3 MiB", "ms");
    // As the proxy does: it remembers the digest of a file that nobody has touched.
    let digest = Digest::of(&bytes);
    let mut load = Figure::new("load", "load a module of 3 MiB from the cache by its digest", "ms")
        .at_most_absolute(5.0);
    for round in 0..rounds {
        let started = Instant::now();
        let module = Module::compile(&engine, &bytes).context("compile a module")?;
        compile.record(LENO, round, started.elapsed().as_secs_f64() * 1e3);
        module.save(directory.path()).context("keep a module")?;
        let mut times = Vec::new();
        for _ in 0..LOADS {
            let started = Instant::now();
            let loaded = Module::load_cached(&engine, directory.path(), digest);
            loaded.context("load a module")?.context("the cache has lost a module")?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        let median = spread(times).context("nothing was loaded")?.median;
        load.record(LENO, round, median);
    }
    Ok([compile, load])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_a_difference_within_a_turn() {
        let slice = |cpu: f64| Slice { cpu, throughput: 1e6 / cpu };
        // The second turn was twice as slow for everybody.
        let turn = |factor: f64| {
            [20.0, 30.0, 21.0, 22.0, 24.0, 36.0].map(|cpu| slice(cpu * factor)).to_vec()
        };
        let values = summary(&[turn(1.0), turn(2.0), turn(1.0)]);
        let value = |id| values.iter().find(|(of, _)| *of == id).unwrap().1;
        assert_eq!(
            ["cpu", "cpu-10k", "noop", "add", "read", "rewrite"].map(value),
            [20.0, 30.0, 1.0, 2.0, 4.0, 6.0]
        );
        assert!((value("rewrite-loss") - 100.0 / 6.0).abs() < 1e-6);
    }
}
