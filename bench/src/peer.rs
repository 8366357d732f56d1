//! The programs compared, one file each with its configuration: Leno, the peers, and the null
//! relay as the machine's floor.
//!
//! Every peer is set up as its manual recommends for the same work: upstream keep-alive on, one
//! worker, a request id and the forwarded address added, statistics on, access log off.

mod direct;
mod envoy;
mod haproxy;
mod leno;
mod managed;
mod nginx;
mod process;
mod relay;
mod varnish;

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tempfile::TempDir;

pub use self::process::Process;
use crate::cores::Cores;
use crate::identity::Identity;

/// The name callers use for the service behind the proxy.
pub const HOST: &str = "origin";
/// The service accounts of its sidecar and of its callers.
pub const SERVICE_ACCOUNT: &str = "origin";
pub const CALLER_ACCOUNT: &str = "caller";
/// The header that says under which configuration a request was answered.
pub const STAMP_HEADER: &str = "x-stamp";
/// How long a program may take from its start to its first answer.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// What runs beside Leno, as `--peers` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    Haproxy,
    Nginx,
    Envoy,
}

/// What a proxy is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Http1,
    Http2,
    Grpc,
    Tcp,
}

/// Where a program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Between a caller and the service, both plain text; there is no other proxy.
    Alone,
    /// Beside a caller: plain text in, and out to the sidecar of the service.
    Caller,
    /// Beside the service: its callers are sidecars.
    Service,
}

/// The configuration a proxy gets, in no proxy's language.
#[derive(Clone, Debug)]
pub struct Setup {
    pub mode: Mode,
    pub hop: Hop,
    /// With which the hop between sidecars is under mutual TLS. None: it is plain text.
    pub identity: Option<Arc<Identity>>,
    /// Where the service [`HOST`] is, or its sidecar.
    pub origin: SocketAddr,
    /// Routes of that service by path (`/route-N`), beside the one for everything else.
    pub routes: usize,
    /// Further services, never called, ...
    pub services: usize,
    /// ... with so many workloads each.
    pub workloads: usize,
    /// A number that answers carry in [`STAMP_HEADER`], set by the route for everything else. It
    /// is what the suite changes where it times changes.
    pub stamp: Option<u64>,
    /// Connections it must be able to hold.
    pub connections: usize,
    /// Further instances of the service, beside `origin`.
    pub siblings: Vec<SocketAddr>,
    /// What the service is protected by.
    pub protection: Protection,
    /// Further ways to `origin`, each with its plugin.
    pub doors: Vec<Door>,
    /// Where native code of plugins is kept, by programs that keep it.
    pub module_cache: Option<PathBuf>,
    /// So many bytes of answers are kept and given again. None: nothing is.
    pub cache: Option<u64>,
}

/// A way of its own to the origin, so that one program can be measured with and without a plugin.
#[derive(Clone, Debug)]
pub struct Door {
    /// The service that leads through it, for programs that tell services apart.
    pub name: String,
    /// Where it is, for programs that tell listeners apart.
    pub listen: SocketAddr,
    /// What every request and answer passes. None: nothing.
    pub plugin: Option<PathBuf>,
}

/// What a proxy does about instances that fail or have too much to do, each in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// What it does unasked.
    Defaults,
    /// Two more attempts elsewhere after a failure, the least busy or the fastest instance first, and no requests for
    /// an instance that failed five times in a row.
    Retries,
    /// A limit on requests at once that is found out; where there is none, one of so many.
    Limit(usize),
}

/// Connections a proxy is sized for where the suite does not say.
const CONNECTIONS: usize = 1024;

impl Setup {
    pub fn new(mode: Mode, origin: SocketAddr) -> Self {
        Setup {
            mode,
            hop: Hop::Alone,
            identity: None,
            origin,
            routes: 0,
            services: 0,
            workloads: 0,
            stamp: None,
            connections: CONNECTIONS,
            siblings: Vec::new(),
            protection: Protection::Defaults,
            doors: Vec::new(),
            module_cache: None,
            cache: None,
        }
    }

    /// Every instance of the service.
    fn instances(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.origin).chain(self.siblings.iter().copied())
    }

    /// With which callers must be met under TLS.
    fn accepts_with(&self) -> Option<&Identity> {
        self.identity.as_deref().filter(|_| self.hop == Hop::Service)
    }

    /// With which the sidecar of the service is called.
    fn calls_with(&self) -> Option<&Identity> {
        self.identity.as_deref().filter(|_| self.hop == Hop::Caller)
    }

    /// Addresses of the workloads of service `service`; nothing listens there.
    fn workload_addresses(&self, service: usize) -> impl Iterator<Item = String> + use<> {
        let first = service * self.workloads;
        (first..first + self.workloads)
            .map(|at| format!("127.{}.{}.{}:8080", 1 + at / 65536, at / 256 % 256, at % 256))
    }
}

/// A peer that is installed.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: PathBuf,
    pub version: String,
}

/// A peer that is not, and what to do about it.
#[derive(Clone, Debug)]
pub struct Missing {
    pub reason: String,
    pub remedy: String,
}

pub trait Peer {
    fn name(&self) -> &'static str;

    fn find(&self) -> Result<Found, Missing>;

    /// Puts the configuration for `setup` in place, before the start or again later; returns when
    /// it was handed over.
    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant>;

    /// Starts the program on the configuration written before.
    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running>;

    /// Makes the running program take up the configuration written anew. One that watches its file
    /// has nothing to do.
    fn reload(&self, running: &Running) -> Result<()>;

    /// What should be known about this peer's part in a mode.
    fn remark(&self, _mode: Mode) -> Option<&'static str> {
        None
    }

    /// What it is called by TLS callers of the service.
    fn server_name(&self) -> &'static str {
        HOST
    }

    /// The address and the service by which callers reach a door of `running`.
    fn door(&self, _running: &Running, door: &Door) -> (SocketAddr, String) {
        (door.listen, HOST.to_owned())
    }

    /// The application protocol that it is offered under TLS.
    fn alpn(&self) -> &'static [u8] {
        b"http/1.1"
    }
}

/// Where a program runs: its directory, its ports, its core.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub cores: Cores,
    /// A program to run the peer under, with its arguments.
    under: Option<(PathBuf, Vec<String>)>,
}

/// A program that runs. It is ended with everything it started when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// None where there is no proxy at all.
    pub process: Option<Process>,
    /// What it needs beside it; not measured, and ended with it.
    pub _beside: Vec<Process>,
    /// The other sidecar of its hop; measured with it.
    pub partner: Option<Box<Running>>,
    /// Where callers connect.
    pub address: SocketAddr,
    /// The tunnel to ask for first, where the peer carries opaque TCP in one.
    pub tunnel: Option<String>,
}

/// Leno and the chosen peers, the null relay first.
pub fn peers(chosen: &[Choice], programs: &Programs) -> Vec<Box<dyn Peer>> {
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(relay::Relay)];
    for choice in chosen {
        peers.push(match choice {
            Choice::Haproxy => Box::new(haproxy::Haproxy),
            Choice::Nginx => Box::new(nginx::Nginx),
            Choice::Envoy => Box::new(envoy::Envoy { program: programs.envoy.clone() }),
        });
    }
    peers.push(Box::new(leno::Leno { program: programs.leno.clone() }));
    peers
}

/// Leno under a control plane.
pub fn managed(programs: &Programs) -> Box<dyn Peer> {
    Box::new(managed::LenoManaged { program: programs.leno.clone() })
}

/// Leno's control plane alone, on the proxy's core, with the configuration for `setup`; and where proxies connect to it.
pub fn control_plane(
    programs: &Programs,
    place: &Place,
    setup: &Setup,
) -> Result<(Process, SocketAddr)> {
    let peer = managed::LenoManaged { program: programs.leno.clone() };
    let found = peer.find().map_err(|missing| anyhow::anyhow!(missing.reason))?;
    peer.configure(place, setup)?;
    managed::control_plane(&found, place, place.cores.proxy)
}

/// Two sidecars of Leno that speak plain text to each other, for what TLS costs.
pub fn plain(programs: &Programs) -> Box<dyn Peer> {
    Box::new(leno::LenoPlain(leno::Leno { program: programs.leno.clone() }))
}

/// A cache and nothing else.
pub fn varnish() -> Box<dyn Peer> {
    Box::new(varnish::Varnish)
}

/// No proxy: callers reach the origin. What a proxy adds is the difference to this.
pub fn direct() -> Box<dyn Peer> {
    Box::new(direct::Direct)
}

/// Programs named on the command line instead of being looked for.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    pub leno: Option<PathBuf>,
    pub envoy: Option<PathBuf>,
}

/// Names as the report uses them.
pub const RELAY: &str = "null relay";
pub const LENO: &str = "leno";
pub const LENO_MANAGED: &str = "leno (control plane)";
pub const LENO_PLAIN: &str = "leno (plain text)";
pub const HAPROXY: &str = "haproxy";
pub const NGINX: &str = "nginx";
pub const ENVOY: &str = "envoy";
pub const VARNISH: &str = "varnish";
pub const DIRECT: &str = "no proxy";

impl Place {
    pub fn new(cores: Cores) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("leno-bench-").tempdir().context("make a directory")?;
        // Servers that drop root read their files as somebody else.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), permissions).context("open the directory")?;
        let (listen, admin) = (free_address()?, free_address()?);
        Ok(Place { directory, listen, admin, cores, under: None })
    }

    /// The same place, but what starts there runs under `program`.
    pub fn under(self, program: PathBuf, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().copied().map(str::to_owned).collect();
        Place { under: Some((program, arguments)), ..self }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file in one step: a program watching it never sees half of it.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let beside = self.path(&format!(".{name}.new"));
        std::fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
        std::fs::rename(&beside, &path).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn spawn(&self, program: &Path, arguments: &[&str]) -> Result<Process> {
        let (directory, cores) = (self.directory.path(), self.cores);
        let Some((above, above_arguments)) = &self.under else {
            return Process::spawn(program, arguments, directory, cores.proxy, cores.load);
        };
        let program = program.to_str().context("a program whose name is not text")?;
        let mut all: Vec<&str> = above_arguments.iter().map(String::as_str).collect();
        all.push(program);
        all.extend(arguments);
        Process::spawn(above, &all, directory, cores.proxy, cores.load)
    }

    /// The usual end of a start: the program runs once something listens where it should.
    fn running(&self, mut process: Process) -> Result<Running> {
        wait_listening(&mut process, self.listen)?;
        Ok(Running {
            process: Some(process),
            _beside: Vec::new(),
            partner: None,
            address: self.listen,
            tunnel: None,
        })
    }
}

/// Waits until something accepts connections at `address`.
fn wait_listening(process: &mut Process, address: SocketAddr) -> Result<()> {
    let started = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        process.check_alive()?;
        anyhow::ensure!(
            started.elapsed() < START_PATIENCE,
            "{} does not listen on {address} after {START_PATIENCE:?}; it said:\n{}",
            process.name(),
            process.said()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A port nobody has now. Programs that cannot choose one themselves must be told.
fn free_address() -> Result<SocketAddr> {
    free_addresses(1)?.pop().context("look for a free port")
}

/// So many, all different: each is held until all are found.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: std::io::Result<Vec<_>> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let addresses = listeners.context("look for a free port")?;
    let addresses: std::io::Result<_> = addresses.iter().map(TcpListener::local_addr).collect();
    addresses.context("look for a free port")
}

/// Looks a program up where shells and Debian's servers are.
pub fn look_up(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|place| place.join(name)).find(|at| at.is_file())
}

/// What `program` says about its version, on either output.
fn version_of(program: &Path, argument: &str) -> Result<String, String> {
    let output = std::process::Command::new(program)
        .arg(argument)
        .output()
        .map_err(|error| format!("{} does not start: {error}", program.display()))?;
    let mut text = String::new();
    for bytes in [&output.stdout, &output.stderr] {
        let _ = write!(text, "{}", String::from_utf8_lossy(bytes));
    }
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if output.status.success() {
        Ok(line.to_owned())
    } else {
        Err(format!("`{} {argument}` failed: {line}", program.display()))
    }
}

/// Finds a program of a Debian package.
fn debian(name: &str, version_argument: &str) -> Result<Found, Missing> {
    let missing = |reason| Missing { reason, remedy: format!("apt-get install {name}") };
    let program = look_up(name).ok_or_else(|| missing(format!("{name} is not installed")))?;
    let version = version_of(&program, version_argument).map_err(missing)?;
    Ok(Found { program, version })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn setup() -> Setup {
        let origin = SocketAddr::from(([127, 0, 0, 1], 9));
        Setup { services: 1000, workloads: 10, ..Setup::new(Mode::Http1, origin) }
    }

    #[test]
    fn every_workload_has_an_address_of_its_own() {
        let setup = setup();
        let addresses: HashSet<_> =
            (0..setup.services).flat_map(|service| setup.workload_addresses(service)).collect();
        assert_eq!(addresses.len(), 10_000);
        assert!(addresses.iter().all(|address| address.parse::<SocketAddr>().is_ok()));
    }

    #[test]
    fn free_addresses_differ() {
        let addresses = free_addresses(50).unwrap();
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), 50);
    }

    #[test]
    fn what_is_not_installed_is_named_with_its_remedy() {
        let missing = debian("leno-bench-no-such-program", "-v").unwrap_err();
        assert!(missing.reason.contains("not installed"));
        assert_eq!(missing.remedy, "apt-get install leno-bench-no-such-program");
    }

    #[test]
    fn files_replace_each_other_whole() {
        let place = Place::new(Cores { proxy: 0, load: 0 }).unwrap();
        place.write("a.conf", "one").unwrap();
        let path = place.write("a.conf", "two").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "two");
    }
}
