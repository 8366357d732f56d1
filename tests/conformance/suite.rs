//! The npm package `http-cache-tests`: installed once under `target/`, run as one Node process that is
//! both the origin behind the cache and the client before it (`http_cache/driver.mjs`).

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::results::{Kind, Outcome, Verdict};

/// The suite pauses for three seconds up to twice per test and runs a hundred tests at a time: 15 seconds on an idle
/// machine. Reaching this is a failure, not a measurement.
const PATIENCE: Duration = Duration::from_secs(300);
const PACKAGE: &str = include_str!("http_cache/package.json");
const LOCK: &str = include_str!("http_cache/package-lock.json");
const NEEDED: &str = "this test needs Node 18 or later with npm (Debian: `apt-get install nodejs npm`) and, when it \
                      runs for the first time, a way to the npm registry";

/// The installed package.
pub struct Suite {
    folder: PathBuf,
}

/// What is run of it, and how the cache is addressed.
#[derive(Clone, Copy, Default)]
pub struct Choice<'a> {
    /// The `Host` of every request; the base URL's own where there is none.
    pub host: Option<&'a str>,
    /// These tests, with those that they depend on; all where there are none.
    pub only: &'a [String],
    /// With all that goes over the wire on standard output.
    pub shown: bool,
}

impl Suite {
    /// Installs what the lock file names, with its digests, unless that was done before.
    pub fn install() -> Self {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tmp.join("http-cache-tests");
        let installed = fs::read_to_string(folder.join("package-lock.json"));
        if installed.is_ok_and(|installed| installed == LOCK) {
            return Self { folder };
        }
        // Made elsewhere and moved: an installation that was interrupted is not found.
        fs::create_dir_all(tmp).unwrap();
        let fresh = tempfile::tempdir_in(tmp).unwrap();
        fs::write(fresh.path().join("package.json"), PACKAGE).unwrap();
        fs::write(fresh.path().join("package-lock.json"), LOCK).unwrap();
        let output = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
            .current_dir(fresh.path())
            .output()
            .unwrap_or_else(|error| panic!("npm: {error}; {NEEDED}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "npm ci: {said}\n{NEEDED}");
        let _ = fs::remove_dir_all(&folder);
        fs::rename(fresh.keep(), &folder).unwrap();
        Self { folder }
    }

    /// Runs the tests through the cache whose base URL `start` says when it is given the origin's port.
    pub fn run<T>(
        &self,
        choice: Choice<'_>,
        start: impl FnOnce(u16) -> (T, String),
    ) -> Vec<Outcome> {
        let results = tempfile::NamedTempFile::new().unwrap();
        let mut driver = Driver::start(&self.folder, results.path(), choice);
        let port = driver.line().parse().expect("the origin's port");
        let (_cache, base) = start(port);
        driver.say(&base);
        driver.finish(choice.shown);
        let text = fs::read_to_string(results.path()).unwrap();
        let report: Vec<Value> = serde_json::from_str(&text).expect("results");
        report.iter().map(outcome).collect()
    }
}

fn outcome(value: &Value) -> Outcome {
    let text = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("no {name}: {value}"));
    Outcome {
        id: text("id").to_owned(),
        suite: text("suite").to_owned(),
        name: text("name").to_owned(),
        kind: Kind::parse(text("kind")).unwrap_or_else(|| panic!("{value}")),
        browser: value["browser"] == true,
        verdict: Verdict::parse(text("verdict")).unwrap_or_else(|| panic!("{value}")),
        alone: value["alone"] == true,
        detail: text("detail").to_owned(),
    }
}

struct Driver {
    child: Child,
    output: Receiver<String>,
    deadline: Instant,
}

impl Driver {
    fn start(folder: &Path, results: &Path, choice: Choice<'_>) -> Self {
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/http_cache/driver.mjs");
        let mut child = Command::new("node")
            .arg("--no-warnings")
            .args([&script, folder, results])
            .args([choice.host.unwrap_or_default(), &choice.only.join(",")])
            .args(choice.shown.then_some("show"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("node: {error}; {NEEDED}"));
        let output = child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, output: receiver, deadline: Instant::now() + PATIENCE }
    }

    fn next(&self) -> Option<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the suite does not end in {PATIENCE:?}"),
        }
    }

    fn line(&self) -> String {
        self.next().expect("the suite's origin starts")
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Reads to the end. Unless it is `shown`, what is printed matters only when the suite breaks down.
    fn finish(&mut self, shown: bool) {
        let mut said = String::new();
        while let Some(line) = self.next() {
            if shown {
                println!("{line}");
            } else {
                said.push_str(&line);
                said.push('\n');
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the suite broke down: {status}\n{said}");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
