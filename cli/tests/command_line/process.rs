//! Runs `leno` and a control plane to talk to.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub output: String,
    pub errors: String,
}

impl Said {
    /// The output of a command that must have worked without complaint.
    pub fn good(self) -> String {
        assert_eq!((self.code, self.errors.as_str()), (0, ""), "{}", self.output);
        self.output
    }
}

pub fn leno(arguments: &[&str]) -> Said {
    let done = Command::new(env!("CARGO_BIN_EXE_leno")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: done.status.code().unwrap(), output: text(done.stdout), errors: text(done.stderr) }
}

/// An address at which nobody listens, and that nobody else gets as long as the tests run: it is bound.
pub fn unused_address() -> SocketAddr {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = getsockname(&socket).unwrap().try_into().unwrap();
    std::mem::forget(socket);
    address
}

/// Lines of a process, as they come. Dropping it ends the process.
pub struct Lines {
    child: Child,
    lines: Receiver<String>,
}

impl Lines {
    pub fn of(arguments: &[&str]) -> Self {
        Self::with_temporary_files(&std::env::temp_dir(), arguments)
    }

    pub fn with_temporary_files(directory: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leno"))
            .args(arguments)
            .env("TMPDIR", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Reads to the end: the process has closed its output.
    pub fn wait(&self) {
        while self.lines.recv_timeout(PATIENCE).is_ok() {}
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The line of JSON with which a process tells its addresses.
    fn announcement(&self) -> Value {
        serde_json::from_str(&self.next_line()).unwrap()
    }

    pub fn next_line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct ControlPlane {
    _process: Lines,
    directory: tempfile::TempDir,
    api: String,
    xds: String,
}

/// A sidecar; dropping it ends it.
pub struct Sidecar {
    process: Lines,
    pub admin: String,
    pub outbound: String,
}

impl Sidecar {
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
}

impl ControlPlane {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let any = "127.0.0.1:0";
        let process = Lines::of(&[
            "control-plane",
            "--memory",
            "--data-dir",
            data.to_str().unwrap(),
            "--api",
            any,
            "--xds",
            any,
            "--metrics",
            any,
        ]);
        let line = process.announcement();
        let [api, xds] = ["api", "xds"].map(|field| line[field].as_str().unwrap().to_owned());
        Self { _process: process, directory, api, xds }
    }

    pub fn leno(&self, arguments: &[&str]) -> Said {
        leno(&[arguments, &["--server", &format!("http://{}", self.api)]].concat())
    }

    /// Over TLS, with the roots in `file`.
    pub fn leno_trusting(&self, file: &str, arguments: &[&str]) -> Said {
        let server = format!("https://{}", self.api);
        leno(&[arguments, &["--server", &server, "--ca-file", file]].concat())
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno"));
        command.args(arguments).args(["--server", &format!("http://{}", self.api)]);
        command
    }

    pub fn watch(&self, arguments: &[&str]) -> Lines {
        Lines::of(&[arguments, &["--server", &format!("http://{}", self.api)]].concat())
    }

    pub fn data(&self) -> String {
        self.directory.path().join("data").to_str().unwrap().to_owned()
    }

    /// The roots that are trusted now, as the control plane keeps them for this machine.
    pub fn roots(&self) -> String {
        format!("{}/root.pem", self.data())
    }

    /// A file with a token for workloads of `account`.
    fn token(&self, name: &str, account: &str, more: &[&str]) -> String {
        let create = ["token", "create", name, "--role", "workload", "-n", "shop"];
        let own = ["--service-account", account, "--data-dir", &self.data()];
        let token = leno(&[&create[..], &own, more].concat()).good();
        self.file(&format!("{name}.token"), &token)
    }

    /// A sidecar with a token for one certificate.
    pub fn sidecar(&self, name: &str, account: &str) -> Sidecar {
        let token = self.token(name, account, &["--once"]);
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let any = "127.0.0.1:0";
        let process = Lines::of(&[
            "proxy",
            "--control-plane",
            &self.xds,
            "--ca-file",
            &self.roots(),
            "--token-file",
            &token,
            "--name",
            name,
            "--namespace",
            "shop",
            "--service-account",
            account,
            "--outbound",
            any,
            "--inbound",
            any,
            "--admin",
            any,
        ]);
        let line = process.announcement();
        let [admin, outbound] =
            ["admin", "outbound"].map(|field| line[field].as_str().unwrap().to_owned());
        Sidecar { process, admin, outbound }
    }

    /// The words with which a machine joins as `name`, serving `service`; and that name.
    pub fn join(&self, name: &str, service: &str) -> (Vec<String>, String) {
        let token = self.token(name, service, &[]);
        let words = [
            "join",
            "--control-plane",
            &self.xds,
            "--ca-file",
            &self.roots(),
            "--token-file",
            &token,
            "--name",
            name,
            "--service",
            service,
            "--service-account",
            service,
            "--namespace",
            "shop",
        ];
        (words.map(str::to_owned).into(), name.to_owned())
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}
