//! `leno` as its own user runs it, and as a pod would.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

use crate::{
    PATIENCE,
    api_server::{Cluster, Process, Said},
};

/// A command that ends by itself, beside the kubectl of the cluster.
pub fn leno(cluster: &Cluster, user: &str, arguments: &[&str]) -> Said {
    let done = Command::new(env!("CARGO_BIN_EXE_leno"))
        .args(arguments)
        .env("PATH", cluster.path())
        .env("HOME", cluster.home())
        .env("KUBECONFIG", cluster.kubeconfig(user))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { fine: done.status.success(), output: text(done.stdout), errors: text(done.stderr) }
}

/// A control plane or a sidecar.
pub struct Program {
    _process: Process,
    /// The ports that it has opened.
    bound: Value,
    log: std::path::PathBuf,
}

impl Program {
    /// Runs until dropped. Its environment is what is given, and no more.
    pub fn start(
        folder: &Path,
        arguments: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Self {
        fs::create_dir_all(folder).unwrap();
        let log = folder.join("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_leno"))
            .args(["--die-with", &std::process::id().to_string()])
            .args(arguments)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let process = Process(child);
        let bound = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!("not an announcement: {line:?}; {}", fs::read_to_string(&log).unwrap())
        });
        Self { _process: process, bound, log }
    }

    pub fn address(&self, name: &str) -> SocketAddr {
        self.bound[name].as_str().unwrap().parse().unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// Status and body of a GET; `None` where there is no answer.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A server that answers everything with its name, for as long as the test runs.
pub fn application(address: SocketAddr, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                    if line == "\r\n" {
                        let length = name.len();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                        let _ = (&stream).write_all((head + name).as_bytes());
                    }
                    line.clear();
                }
            });
        }
    });
    address
}
