//! Leno's sidecar as users run it in a mesh: told what to do by a control plane, which is changed
//! over its API. The control plane shares the load generator's core.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::json;

use super::leno::{self, Leno};
use super::{
    Found, HOST, Hop, LENO_MANAGED, Missing, Peer, Place, Process, Running, STAMP_HEADER, Setup,
};

/// What the control plane said when it started, for later changes.
const ADDRESSES: &str = "control-plane.json";
const ROUTE: &str =
    "/apis/gateway.networking.k8s.io/v1/namespaces/bench/httproutes/stamp?fieldManager=leno-bench";
/// How long the API may take for one change.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct LenoManaged {
    pub program: Option<PathBuf>,
}

/// The one line it prints.
#[derive(Deserialize)]
struct Addresses {
    api: SocketAddr,
    xds: SocketAddr,
}

impl Peer for LenoManaged {
    fn name(&self) -> &'static str {
        LENO_MANAGED
    }

    fn find(&self) -> Result<Found, Missing> {
        Leno { program: self.program.clone() }.whole()
    }

    fn configure(&self, place: &Place, setup: &Setup) -> Result<Instant> {
        let Ok(line) = std::fs::read_to_string(place.path(ADDRESSES)) else {
            place.write(leno::CONFIG, &leno::config(setup)?)?;
            return Ok(Instant::now());
        };
        let addresses: Addresses = serde_json::from_str(&line).context("read our own file")?;
        let body = stamped(setup.stamp.context("nothing to change")?);
        let changed = Instant::now();
        patch(addresses.api, ROUTE, &body.to_string())?;
        Ok(changed)
    }

    fn start(&self, found: &Found, place: &Place, _setup: &Setup) -> Result<Running> {
        let any = "127.0.0.1:0";
        let core = place.cores.load;
        let (control_plane, xds) = control_plane(found, place, core)?;
        let xds = xds.to_string();
        let beside_caller = Leno { program: self.program.clone() }.find();
        let beside_caller = beside_caller.map_err(|missing| anyhow::anyhow!(missing.reason))?;
        let mut arguments = leno::sidecar(&beside_caller);
        arguments.extend([
            "--control-plane",
            &xds,
            "--outbound",
            any,
            "--inbound",
            any,
            "--admin",
            any,
            "--workers",
            "1",
            "--state-dir",
            "state",
            "--name",
            "bench",
            "--namespace",
            "bench",
        ]);
        let process = place.spawn(&beside_caller.program, &arguments)?;
        let running = leno::running(process, Hop::Alone, None)?;
        Ok(Running { _beside: vec![control_plane], ..running })
    }

    fn reload(&self, _running: &Running) -> Result<()> {
        // The control plane tells it.
        Ok(())
    }
}

/// A control plane on `core` that knows the configuration written before, and where proxies connect to it.
pub fn control_plane(found: &Found, place: &Place, core: usize) -> Result<(Process, SocketAddr)> {
    let any = "127.0.0.1:0";
    let directory = place.path("control-plane");
    std::fs::create_dir(&directory).context("make a directory")?;
    let arguments =
        ["control-plane", "--data-dir", "data", "--api", any, "--xds", any, "--metrics", any];
    let home = place.cores.load;
    let mut control_plane = Process::spawn(&found.program, &arguments, &directory, core, home)?;
    let line = control_plane.first_line()?;
    let addresses: Addresses = serde_json::from_str(&line)
        .with_context(|| format!("the control plane printed no addresses but: {line}"))?;
    apply(found, place, addresses.api)?;
    place.write(ADDRESSES, &line)?;
    Ok((control_plane, addresses.xds))
}

fn apply(found: &Found, place: &Place, api: SocketAddr) -> Result<()> {
    let output = Command::new(&found.program)
        .args(["apply", "-f", leno::CONFIG, "--server", &format!("http://{api}")])
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .output()
        .context("start leno apply")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "leno apply failed: {said}");
    Ok(())
}

/// The whole list of rules with another stamp: a merge patch replaces lists.
fn stamped(stamp: u64) -> serde_json::Value {
    let set = json!([{"name": STAMP_HEADER, "value": stamp.to_string()}]);
    json!({"spec": {"rules": [{
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "filters": [{
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": {"set": set},
        }],
        "backendRefs": [{"name": HOST, "port": leno::PORT}],
    }]}})
}

fn patch(api: SocketAddr, path: &str, body: &str) -> Result<()> {
    let mut stream = TcpStream::connect(api).context("connect to the control plane's API")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\
         Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).context("send a change")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read what became of a change")?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "a change was refused: {answer}");
    Ok(())
}
