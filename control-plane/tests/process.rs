//! The program: what it prints, and how it ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
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
    while asked.elapsed() < Duration::from_secs(60) {
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

/// One request over plain text; `None` when there was no answer.
fn post(address: &str, path: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "POST {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn get(address: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn killed_in_any_step_of_a_rotation_it_comes_back_on_one_side_of_it() {
    let directory = TempDir::new().unwrap();
    let start = || {
        let mut child = command(directory.path()).stderr(Stdio::null()).spawn().unwrap();
        let api = addresses(&mut child)["api"].as_str().unwrap().to_owned();
        (child, api)
    };
    let state = |api: &str| {
        let status = get(api, "/ca/status");
        let prints = status["roots"].as_array().unwrap().iter();
        let prints: Vec<_> = prints.map(|root| root["fingerprint"].to_string()).collect();
        let bundle = "/apis/leno.dev/v1alpha1/namespaces/leno-system/trustbundles/mesh";
        let pem = std::fs::read_to_string(directory.path().join("root.pem")).unwrap();
        let sent = get(api, bundle)["spec"]["roots"].as_array().unwrap().clone();
        let sent: String = sent.iter().map(|root| root.as_str().unwrap()).collect();
        assert_eq!(sent, pem, "what proxies are sent is what is trusted");
        assert_eq!(pem.matches("BEGIN").count(), prints.len());
        (status["step"].as_str().unwrap().to_owned(), prints)
    };
    let next = |step: &str, undo: bool| match (step, undo) {
        ("idle", _) => "add",
        ("added", false) => "switch",
        ("switched", false) => "drop",
        _ => "undo",
    };
    let (mut child, mut api) = start();
    for round in 0..16_u64 {
        let before = state(&api);
        let action = next(&before.0, round % 5 == 4);
        let body = format!("{{\"action\": \"{action}\", \"force\": true}}");
        let asked = std::thread::spawn({
            let api = api.clone();
            move || post(&api, "/ca/rotation", &body)
        });
        // From before the request is read until after it is answered.
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        let answered = asked.join().unwrap();
        (child, api) = start();
        let after = state(&api);
        let expected = match action {
            "add" => "added",
            "switch" => "switched",
            "drop" => "idle",
            _ if before.0 == "added" => "idle",
            _ => "added",
        };
        if answered == Some(200) {
            assert_eq!(after.0, expected, "what was answered is kept");
        }
        assert!(after == before || after.0 == expected, "{before:?} {action} {after:?}");
        // No key is left behind that nobody needs: of the roots that are trusted, and of the one to go back to.
        let names = std::fs::read_dir(directory.path().join("ca")).unwrap();
        let names = names.map(|file| file.unwrap().file_name().into_string().unwrap());
        let names: Vec<_> = names.filter(|name| name.starts_with("root-")).collect();
        assert!(names.len() <= 4 && names.len() >= 2 * after.1.len(), "{after:?} {names:?}");
    }
    assert!(terminate(&mut child));
}

#[test]
fn what_is_secret_is_the_owners_whatever_the_umask() {
    for umask in ["000", "077"] {
        let directory = TempDir::new().unwrap();
        let data = directory.path().join("data");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), PROGRAM]);
        shell.arg("--data-dir").arg(&data).stdout(Stdio::piped()).stderr(Stdio::null());
        for name in ["API", "XDS", "METRICS"] {
            shell.env(format!("LENO_{name}"), "127.0.0.1:0");
        }
        let mut child = shell.spawn().unwrap();
        let api = addresses(&mut child)["api"].as_str().unwrap().to_owned();
        assert_eq!(post(&api, "/ca/rotation", "{\"action\": \"add\"}"), Some(200));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join("ca"))), (0o700, 0o700), "umask {umask}");
        let mut seen = 0;
        for place in [data.clone(), data.join("ca")] {
            for file in std::fs::read_dir(place).unwrap().map(|file| file.unwrap().path()) {
                let public = file.ends_with("root.pem");
                let expected = if public { 0o644 } else { 0o600 };
                if file.is_file() {
                    assert_eq!(mode(&file), expected, "{} under umask {umask}", file.display());
                    seen += 1;
                }
            }
        }
        assert!(seen > 6, "{seen}");
        assert!(terminate(&mut child));
    }
}
