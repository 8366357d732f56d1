//! Leno's sidecar, one worker, with its configuration in a file it watches.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::time::Instant;

use super::{
    Door, Found, HOST, Hop, LENO, LENO_PLAIN, Missing, Mode, Peer, Place, Process, Protection,
    Running, SERVICE_ACCOUNT, STAMP_HEADER, Setup, version_of,
};

pub const CONFIG: &str = "mesh.yaml";
pub const PORT: u16 = 80;

/// What can be a sidecar, the first that is there counts: the program that the image has, and the one that can be
/// everything, with twice the code.
const PROGRAMS: [&str; 2] = [ALONE, WHOLE];
const ALONE: &str = "leno-proxy";
/// Also the control plane, and the command for its users.
const WHOLE: &str = "leno";

pub struct Leno {
    /// Where it is, if it is not beside the rig. Either program.
    pub program: Option<PathBuf>,
}

/// The one line it prints.
#[derive(Deserialize)]
struct Addresses {
    outbound: SocketAddr,
    inbound: SocketAddr,
}

impl Peer for Leno {
    fn name(&self) -> &'static str {
        LENO
    }

    fn find(&self) -> Result<Found, Missing> {
        let beside = |name: &&str| Some(std::env::current_exe().ok()?.with_file_name(name));
        let usual = PROGRAMS.iter().filter_map(beside).find(|program| program.is_file());
        found(self.program.clone().or(usual), ALONE)
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        place.write(CONFIG, &config(setup)?)?;
        Ok(Instant::now())
    }

    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running> {
        let any = "127.0.0.1:0";
        // The workload it stands beside: that of the service, as its configuration calls it.
        let name = if setup.hop == Hop::Service { "origin-0" } else { "caller" };
        let mut arguments = sidecar(found);
        arguments.extend([
            "--config",
            CONFIG,
            "--outbound",
            any,
            "--inbound",
            any,
            "--admin",
            any,
            "--workers",
            "1",
            "--namespace",
            "bench",
            "--name",
            name,
        ]);
        if let Some(identity) = &setup.identity {
            arguments.extend(["--tls-certificate", text(&identity.certificate)?]);
            arguments.extend(["--tls-key", text(&identity.key)?]);
            arguments.extend(["--tls-roots", text(&identity.roots)?]);
        }
        if let Some(cache) = &setup.module_cache {
            arguments.extend(["--module-cache", text(cache)?]);
        }
        let tunnel = (setup.mode == Mode::Tcp).then(|| format!("{HOST}:{PORT}"));
        running(place.spawn(&found.program, &arguments)?, setup.hop, tunnel)
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        // It watches its file.
        Ok(())
    }

    fn remark(&self, mode: Mode) -> Option<&'static str> {
        (mode == Mode::Tcp).then_some(
            "leno carries opaque TCP in a CONNECT tunnel, asked for once before the measurement",
        )
    }

    fn door(&self, running: &Running, door: &Door) -> (SocketAddr, String) {
        (running.address, door.name.clone())
    }

    fn server_name(&self) -> &'static str {
        "80.origin.bench.leno"
    }

    fn alpn(&self) -> &'static [u8] {
        b"leno-http/1.1"
    }
}

/// The same with plain text between sidecars, whatever the setup says.
pub struct LenoPlain(pub Leno);

impl Peer for LenoPlain {
    fn name(&self) -> &'static str {
        LENO_PLAIN
    }

    fn find(&self) -> Result<Found, Missing> {
        self.0.find()
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        self.0.configure(place, &Setup { identity: None, ..setup.clone() })
    }

    fn start(&self, found: &Found, place: &Place, setup: &Setup) -> Result<Running> {
        self.0.start(found, place, &Setup { identity: None, ..setup.clone() })
    }

    fn reload(&self, running: &Running) -> Result<()> {
        self.0.reload(running)
    }
}

impl Leno {
    /// The program that is also the control plane: the one that was named, or beside that, or beside the rig.
    pub fn whole(&self) -> Result<Found, Missing> {
        if let Ok(named) = found(self.program.clone(), WHOLE)
            && !sidecar(&named).is_empty()
        {
            return Ok(named);
        }
        let neighbour = self.program.clone().or_else(|| std::env::current_exe().ok());
        found(neighbour.map(|path| path.with_file_name(WHOLE)), WHOLE)
    }
}

/// The program that is there, with what it says that it is; `wanted` is how it is built.
fn found(program: Option<PathBuf>, wanted: &str) -> Result<Found, Missing> {
    let remedy =
        format!("cargo build --release -p {wanted} (then name it with --leno if it is elsewhere)");
    let missing = |reason| Missing { reason, remedy: remedy.clone() };
    let program = program.filter(|program| program.is_file());
    let program = program.ok_or_else(|| missing(format!("there is no {wanted} binary")))?;
    let version = version_of(&program, "--version").map_err(missing)?;
    Ok(Found { program, version })
}

/// The first arguments with which `found` is a sidecar.
pub fn sidecar(found: &Found) -> Vec<&'static str> {
    match found.version.starts_with(ALONE) {
        true => Vec::new(),
        false => vec!["proxy"],
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a file whose name is not text")
}

/// A sidecar runs once it has said where it listens.
pub fn running(mut process: Process, hop: Hop, tunnel: Option<String>) -> Result<Running> {
    let line = process.first_line()?;
    let addresses: Addresses = serde_json::from_str(&line)
        .with_context(|| format!("leno printed no addresses but: {line}"))?;
    let address = if hop == Hop::Service { addresses.inbound } else { addresses.outbound };
    Ok(Running { process: Some(process), _beside: Vec::new(), partner: None, address, tunnel })
}

pub fn config(setup: &Setup) -> Result<String> {
    let protocol = match setup.mode {
        Mode::Http1 => "http",
        Mode::Http2 => "http2",
        Mode::Grpc => "grpc",
        Mode::Tcp => "tcp",
    };
    let mut text = String::new();
    service(&mut text, HOST, protocol)?;
    origin(&mut text, setup)?;
    text.push_str(&policy(setup.protection));
    if let Some(bytes) = setup.cache {
        cache(&mut text, bytes)?;
    }
    for number in 0..setup.routes {
        route(&mut text, &format!("route-{number}"), &format!("/route-{number}"), "")?;
    }
    if let Some(stamp) = setup.stamp {
        let filter = format!(
            "filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: \
             {{set: [{{name: {STAMP_HEADER}, value: \"{stamp}\"}}]}}}}], "
        );
        route(&mut text, "stamp", "/", &filter)?;
    }
    for door in &setup.doors {
        service(&mut text, &door.name, protocol)?;
        workload(&mut text, &door.name, 0, &setup.origin.to_string())?;
        if let Some(module) = &door.plugin {
            plugin(&mut text, &door.name, module)?;
        }
    }
    for number in 0..setup.services {
        let name = format!("service-{number}");
        service(&mut text, &name, protocol)?;
        for (at, address) in setup.workload_addresses(number).enumerate() {
            workload(&mut text, &name, at, &address)?;
        }
    }
    Ok(text)
}

fn policy(protection: Protection) -> String {
    let fields = match protection {
        Protection::Defaults => return String::new(),
        // Ejections, the balancer and the budget are what they are unasked.
        Protection::Retries => "retry: {attempts: 2, on: [reset, 5xx]}",
        Protection::Limit(_) => "adaptiveConcurrency: {}",
    };
    format!(
        "apiVersion: leno.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {HOST}, namespace: bench}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: {HOST}}}]\n  {fields}\n---\n"
    )
}

fn cache(text: &mut String, bytes: u64) -> Result<()> {
    write!(
        text,
        "apiVersion: leno.dev/v1alpha1\nkind: CachePolicy\n\
         metadata: {{name: {HOST}, namespace: bench}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: {HOST}}}]\n  maxBytes: {bytes}\n---\n"
    )?;
    Ok(())
}

fn service(text: &mut String, name: &str, protocol: &str) -> Result<()> {
    write!(
        text,
        "apiVersion: leno.dev/v1alpha1\nkind: Service\n\
         metadata: {{name: {name}, namespace: bench}}\nspec:\n  hosts: [{name}]\n  \
         ports: [{{name: main, port: {PORT}, protocol: {protocol}}}]\n---\n"
    )?;
    Ok(())
}

fn route(text: &mut String, name: &str, prefix: &str, filters: &str) -> Result<()> {
    write!(
        text,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: bench}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: {HOST}}}]\n  \
         rules: [{{matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}], {filters}\
         backendRefs: [{{name: {HOST}, port: {PORT}}}]}}]\n---\n"
    )?;
    Ok(())
}

/// At callers, because there is no proxy elsewhere.
fn plugin(text: &mut String, service: &str, module: &Path) -> Result<()> {
    write!(
        text,
        "apiVersion: leno.dev/v1alpha1\nkind: WasmPlugin\n\
         metadata: {{name: {service}, namespace: bench}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  \
         url: file://{}\n  match: [{{mode: CLIENT}}]\n---\n",
        module.to_str().context("a module whose name is not text")?
    )?;
    Ok(())
}

fn workload(text: &mut String, service: &str, number: usize, address: &str) -> Result<()> {
    let (host, port) = address.rsplit_once(':').context("an address without a port")?;
    write!(
        text,
        "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: {service}-{number}, namespace: bench}}\n\
         spec: {{services: [{service}], address: {host}, ports: {{main: {port}}}}}\n---\n"
    )?;
    Ok(())
}

/// The service itself. Beside a caller its sidecar's port is what is known; its own is never called
/// from there.
fn origin(text: &mut String, setup: &Setup) -> Result<()> {
    if setup.hop != Hop::Caller {
        return setup
            .instances()
            .enumerate()
            .try_for_each(|(at, address)| workload(text, HOST, at, &address.to_string()));
    }
    let (address, mutual_tls) = (setup.origin, setup.identity.is_some());
    write!(
        text,
        "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: {HOST}-0, namespace: bench}}\n\
         spec: {{services: [{HOST}], address: {}, serviceAccount: {SERVICE_ACCOUNT}, \
         ports: {{main: {PORT}}}, sidecar: {{port: {}, mutualTls: {mutual_tls}}}}}\n---\n",
        address.ip(),
        address.port()
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecar_alone_needs_no_subcommand() {
        let found = |version: &str| Found { program: PathBuf::new(), version: version.to_owned() };
        assert!(sidecar(&found("leno-proxy 0.1.0")).is_empty());
        assert_eq!(sidecar(&found("leno 0.1.0")), ["proxy"]);
    }

    #[test]
    fn what_leno_gets_is_what_its_parser_takes() {
        for mode in [Mode::Http1, Mode::Http2, Mode::Grpc, Mode::Tcp] {
            let origin = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
            let setup = Setup {
                routes: 3,
                services: 2,
                workloads: 2,
                stamp: Some(7),
                ..Setup::new(mode, origin)
            };
            let (resources, problems) = leno_api::yaml::resources(&config(&setup).unwrap());
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(resources.len(), 2 + 3 + 1 + 2 * (1 + 2));
            let beside_caller = config(&Setup { hop: Hop::Caller, ..setup }).unwrap();
            let (resources, problems) = leno_api::yaml::resources(&beside_caller);
            assert!(problems.is_empty() && resources.len() == 12, "{problems:?}");
            let door = |name: &str, plugin: Option<&str>| Door {
                name: name.to_owned(),
                listen: origin,
                plugin: plugin.map(PathBuf::from),
            };
            let doors = vec![door("bare", None), door("add", Some("/tmp/add.wasm"))];
            let setup = Setup { doors, ..Setup::new(mode, origin) };
            let (resources, problems) = leno_api::yaml::resources(&config(&setup).unwrap());
            assert!(problems.is_empty() && resources.len() == 2 + 2 + 3, "{problems:?}");
            for protection in [Protection::Retries, Protection::Limit(8)] {
                let siblings = vec![origin; 10];
                let setup = Setup { siblings, protection, ..Setup::new(mode, origin) };
                let (resources, problems) = leno_api::yaml::resources(&config(&setup).unwrap());
                assert!(problems.is_empty() && resources.len() == 13, "{problems:?}");
            }
            let setup = Setup { cache: Some(64 << 20), ..Setup::new(mode, origin) };
            let (resources, problems) = leno_api::yaml::resources(&config(&setup).unwrap());
            assert!(problems.is_empty() && resources.len() == 3, "{problems:?}");
        }
    }
}
