//! The control plane as a process of its own.

use std::{
    fs,
    io::BufRead,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use leno_control_plane::access::{NewToken, Role, TokenFile};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    certificates::Authority,
    client::{self, Answer},
    mesh::{Mesh, PATIENCE},
};

/// A running control plane; ended when dropped.
pub struct ControlPlane {
    /// For people.
    pub api: SocketAddr,
    /// For proxies.
    pub xds: SocketAddr,
    /// The tokens that were given out.
    pub tokens: Vec<String>,
    child: Child,
    folder: TempDir,
}

impl ControlPlane {
    /// On free ports, with these flags beside.
    pub async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let errors = fs::File::create(folder.path().join("stderr")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno-control-plane-under-test"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        command.arg("--data-dir").arg(folder.path().join("data")).arg("--memory").args(arguments);
        for flag in ["--api", "--xds", "--metrics"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        let mut child = command.spawn().expect("the control plane starts");
        let output = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            std::io::BufReader::new(output).read_line(&mut line).unwrap();
            line
        });
        let line = tokio::time::timeout(PATIENCE, line).await.expect("an announcement").unwrap();
        let bound: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            let errors = fs::read_to_string(folder.path().join("stderr"));
            panic!("not an announcement: {line:?}; {}", errors.unwrap())
        });
        let address = |name: &str| bound[name].as_str().unwrap().parse().unwrap();
        let (api, xds) = (address("api"), address("xds"));
        Self { api, xds, tokens: Vec::new(), child, folder }
    }

    /// Where it keeps what it keeps.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the process wrote to standard error.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// Flags with which a proxy proves itself to be `account` of the namespace `default`.
    pub fn flags(&mut self, account: &str) -> Vec<String> {
        let token = NewToken {
            name: account,
            role: Role::Workload,
            namespace: Some("default"),
            service_account: Some(account),
            expires: None,
            once: false,
        };
        let token = TokenFile::open(&self.data()).unwrap().issue(token).unwrap();
        let file = self.folder.path().join(format!("{account}.token"));
        fs::write(&file, &token).unwrap();
        self.tokens.push(token);
        let values = [
            ("--control-plane", self.xds.to_string()),
            ("--ca-file", self.data().join("root.pem").display().to_string()),
            ("--token-file", file.display().to_string()),
            ("--service-account", account.to_owned()),
            ("--name", account.to_owned()),
        ];
        values.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// One call of the API, as an administrator on this machine.
    pub async fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.api,
            body.len()
        );
        client::ask(self.api, request).await
    }

    /// Makes a resource of the namespace `default`.
    pub async fn create(&self, group: &str, plural: &str, object: Value) {
        let path = format!("/apis/{group}/namespaces/default/{plural}");
        let answer = self.call("POST", &path, &object).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
    }

    /// Takes a step of a rotation as soon as it is safe.
    pub async fn rotate(&self, action: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        let order = serde_json::json!({"action": action});
        loop {
            let answer = self.call("POST", "/ca/rotation", &order).await;
            if answer.status == 200 {
                return;
            }
            let waits = std::time::Instant::now() < deadline;
            assert!(waits, "{action}: {}\n{}", answer.text(), self.errors());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// The root under which it issues now, as somebody who has stolen it. For tests that play its part.
    pub fn stolen_root(&self) -> Authority {
        let read = |kind: &str| {
            let mut files: Vec<_> = fs::read_dir(self.data().join("ca"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    name.starts_with("root-") && name.ends_with(kind)
                })
                .collect();
            files.sort();
            files.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>()
        };
        let roots = read(".pem");
        let keys = read(".key");
        assert_eq!((roots.len(), keys.len()), (1, 1), "no rotation is under way");
        Authority::of(roots[0].clone(), &keys[0])
    }
}

impl Mesh {
    /// A proxy of this control plane.
    pub fn managed(self, control_plane: &mut ControlPlane, account: &str) -> Self {
        let flags = control_plane.flags(account);
        self.arguments(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let errors = self.errors();
        if std::thread::panicking() {
            eprintln!("the control plane said:\n{errors}");
        } else {
            assert!(!errors.contains("panic"), "a panic in the control plane: {errors}");
        }
    }
}
