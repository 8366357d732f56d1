//! Whether a sidecar can run on this machine, and whether those that joined do.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use leno_control_plane::inject::names::{ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT};

use super::judge::{Finding, State};
use crate::commands::join::readiness;

const SETTINGS: &str = "/etc/leno";
const SYSTEMD: &str = "/run/systemd/system";

const NO_SYSTEMD: &str =
    "`leno join --foreground` runs the sidecar under whatever runs services here";
const NOT_ROOT: &str = "`leno join` writes to /etc: call it with sudo";
const TAKEN: &str = "`ss -ltnp` says who listens there; `leno join` has --outbound, --inbound and --admin for other ports";
const NOT_JOINED: &str = "`leno join` makes a service of this machine part of the mesh";
const NOT_READY: &str =
    "`systemctl status leno-proxy@NAME` and `journalctl -u leno-proxy@NAME` say why";

/// Before anything joined.
pub fn before() -> Vec<Finding> {
    let mut findings =
        vec![systemd(Path::new(SYSTEMD).is_dir()), root(rustix::process::geteuid().is_root())];
    for port in [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT] {
        findings.push(free(port, TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map(|_| ())));
    }
    findings
}

/// Every sidecar that joined from here.
pub async fn after() -> Vec<Finding> {
    let joined = joined(Path::new(SETTINGS));
    if joined.is_empty() {
        let because = format!("none has joined: {SETTINGS} has no settings");
        return vec![Finding::new("sidecars", State::Warning, because).or(NOT_JOINED)];
    }
    let mut findings = Vec::new();
    for (name, admin) in joined {
        findings.push(sidecar(&name, readiness::ask(&admin).await));
    }
    findings
}

fn systemd(runs: bool) -> Finding {
    match runs {
        true => Finding::new("systemd", State::Ok, "runs"),
        false => Finding::new("systemd", State::Warning, "does not run here").or(NO_SYSTEMD),
    }
}

fn root(is_root: bool) -> Finding {
    match is_root {
        true => Finding::new("rights", State::Ok, "root"),
        false => Finding::new("rights", State::Warning, "not root").or(NOT_ROOT),
    }
}

fn free(port: u16, bound: io::Result<()>) -> Finding {
    let what = format!("port {port}");
    match bound {
        Ok(()) => Finding::new(what, State::Ok, "is free"),
        Err(error) => Finding::new(what, State::Wrong, error.to_string()).or(TAKEN),
    }
}

fn sidecar(name: &str, ready: Result<(), String>) -> Finding {
    let what = format!("sidecar {name}");
    match ready {
        Ok(()) => Finding::new(what, State::Ok, "is ready"),
        Err(reason) => Finding::new(what, State::Wrong, reason).or(NOT_READY),
    }
}

/// Name and admin address of each, from the settings that `leno join` wrote.
fn joined(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".env") else { continue };
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        // The control plane's settings, which may lie beside, name no admin port.
        let admin = text.lines().find_map(|line| line.strip_prefix("LENO_ADMIN="));
        found.extend(admin.map(|admin| (name.to_owned(), admin.to_owned())));
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(systemd(true).state, State::Ok);
        assert_eq!(systemd(false).hint, Some(NO_SYSTEMD));
        assert_eq!(root(false).state, State::Warning);
        let taken = free(15001, Err(io::ErrorKind::AddrInUse.into()));
        assert_eq!((taken.state, taken.what.as_str()), (State::Wrong, "port 15001"));
        assert_eq!(sidecar("a", Err("no".to_owned())).hint, Some(NOT_READY));
    }

    #[test]
    fn only_settings_of_sidecars_are_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b.env"), "LENO_NAME=b\nLENO_ADMIN=127.0.0.1:2\n").unwrap();
        fs::write(folder.path().join("a.env"), "LENO_ADMIN=127.0.0.1:1\n").unwrap();
        fs::write(folder.path().join("a.token"), "secret").unwrap();
        fs::write(folder.path().join("control-plane.env"), "LENO_API=0.0.0.0:15010\n").unwrap();
        let pair = |name: &str, admin: &str| (name.to_owned(), admin.to_owned());
        assert_eq!(joined(folder.path()), [pair("a", "127.0.0.1:1"), pair("b", "127.0.0.1:2")]);
        assert!(joined(&folder.path().join("none")).is_empty());
    }
}
