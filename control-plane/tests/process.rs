//! The program: what it prints, and how it ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_leno-control-plane");

fn command(directory: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--data-dir").arg(directory).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["API", "XDS", "METRICS"] {
        command.env(format!("LENO_{name}"), "127.0.0.1:0");
    }
    command
}

fn addresses(child: &mut Child) -> Value {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn failed(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(!status.success());
    assert_eq!(String::from_utf8_lossy(&stdout), "", "standard output is for the addresses");
    String::from_utf8_lossy(&stderr).into_owned()
}

fn terminate(child: &mut Child) -> bool {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(10) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("still running");
}

#[test]
fn prints_its_addresses_once_they_can_be_reached_and_ends_when_asked() {
    let directory = TempDir::new().unwrap();
    let mut child = command(directory.path()).spawn().unwrap();
    let printed = addresses(&mut child);
    for name in ["api", "xds", "metrics"] {
        let address: SocketAddr = printed[name].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0);
        TcpStream::connect(address).unwrap();
    }
    // A connection that says nothing and one to xDS do not hold up the end.
    let _idle = TcpStream::connect(printed["api"].as_str().unwrap()).unwrap();
    let _silent = TcpStream::connect(printed["xds"].as_str().unwrap()).unwrap();
    assert!(terminate(&mut child), "it failed");
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "one line only");
    // What it kept can be used again.
    let mut again = command(directory.path()).spawn().unwrap();
    addresses(&mut again);
    assert!(terminate(&mut again));
}

#[test]
fn what_flags_say_the_environment_can_say() {
    let directory = TempDir::new().unwrap();
    let kept = directory.path().join("kept");
    let resources = kept.join("leno.redb");
    let mut root = Vec::new();
    for (memory, on_disk) in [("1", false), ("true", false), ("0", true)] {
        let mut child = command(&kept).env("LENO_MEMORY", memory).spawn().unwrap();
        let roots = addresses(&mut child)["ca"].as_str().unwrap().to_owned();
        assert!(terminate(&mut child));
        assert_eq!(resources.exists(), on_disk, "LENO_MEMORY={memory}");
        // Whoever trusts this control plane goes on trusting it.
        assert_eq!(Path::new(&roots), kept.join("root.pem"));
        root.push(std::fs::read_to_string(roots).unwrap());
    }
    root.dedup();
    assert_eq!(root.len(), 1, "the same root each time");
}

#[test]
fn says_what_is_wrong_and_fails() {
    let directory = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--api", "--xds", "--metrics"] {
        let mut command = command(directory.path());
        command.args([flag, &address]);
        let error = failed(command);
        assert!(error.contains(&address) && error.contains(flag), "{error}");
    }
    let mut odd = command(directory.path());
    odd.args(["--api", "nowhere"]);
    assert!(failed(odd).contains("--api"));
    let mut odd = command(directory.path());
    odd.args(["--log", "[["]);
    assert!(failed(odd).contains("is not a log filter"));
    // A second one on the same data.
    let mut first = command(directory.path()).spawn().unwrap();
    addresses(&mut first);
    let error = failed(command(directory.path()));
    assert!(error.contains("another control plane is using"), "{error}");
    assert!(terminate(&mut first));
}
