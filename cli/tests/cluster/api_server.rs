//! `etcd` and `kube-apiserver` as processes, on the loopback interface and free ports; `kubectl` to talk to them.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{PATIENCE, until};

/// Where the two programs are; `None`, with the reason said, where nobody has named them.
pub fn assets() -> Option<PathBuf> {
    let why = match env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        None => "KUBEBUILDER_ASSETS is not set".to_owned(),
        Some(folder) => {
            let missing =
                ["kube-apiserver", "etcd"].into_iter().find(|name| !folder.join(name).exists());
            match missing {
                None => return Some(folder),
                Some(name) => format!("{} is not there", folder.join(name).display()),
            }
        }
    };
    eprintln!("skipped: {why}; docs/kubernetes-source.md says how to get a real API server");
    None
}

/// A process that ends when this is dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What kubectl said: standard output, then standard error.
pub struct Said {
    pub fine: bool,
    pub output: String,
    pub errors: String,
}

pub struct Cluster {
    assets: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    database: SocketAddr,
    server: Option<Process>,
    _etcd: Process,
}

impl Cluster {
    pub fn start(assets: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_keys(folder.path());
        let (address, database) = (free(), free());
        let etcd = etcd(&assets, folder.path(), database);
        let mut cluster =
            Self { assets, folder, address, database, server: None, _etcd: Process(etcd) };
        cluster.resume();
        cluster
    }

    /// Ends the API server; what it has stays in etcd.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Starts it, where it was before.
    pub fn resume(&mut self) {
        self.serve(self.address);
        self.write_kubeconfig("admin", "admin");
        self.wait("admin");
    }

    /// Starts it where nobody else looks for it.
    pub fn resume_elsewhere(&mut self) {
        let address = free();
        self.serve(address);
        self.write_kubeconfig_to("admin", "admin", address);
        self.wait("admin");
    }

    fn wait(&mut self, user: &str) {
        until("the API server", || {
            let ended = self.server.as_mut().and_then(|server| server.0.try_wait().unwrap());
            assert!(ended.is_none(), "kube-apiserver has ended: {}", self.log());
            self.as_user(user, &["get", "--raw", "/readyz"], "").fine.then_some(())
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default()
    }

    fn serve(&mut self, address: SocketAddr) {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let log = fs::File::options().append(true).create(true).open(file("kube-apiserver.log"));
        let flags = [
            ("etcd-servers", format!("http://{}", self.database)),
            ("bind-address", address.ip().to_string()),
            ("secure-port", address.port().to_string()),
            ("tls-cert-file", file("tls.crt")),
            ("tls-private-key-file", file("tls.key")),
            ("cert-dir", file("certificates")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("api-audiences", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", file("accounts.pub")),
            ("service-account-signing-key-file", file("accounts.key")),
            // Nobody is here who would make every namespace's account.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("allow-privileged", "true".to_owned()),
        ];
        let child = Command::new(self.assets.join("kube-apiserver"))
            .args(flags.map(|(name, value)| format!("--{name}={value}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        self.server = Some(Process(child.unwrap()));
    }

    /// How a user with this token gets there.
    pub fn write_kubeconfig(&self, user: &str, token: &str) -> PathBuf {
        self.write_kubeconfig_to(user, token, self.address)
    }

    fn write_kubeconfig_to(&self, user: &str, token: &str, address: SocketAddr) -> PathBuf {
        let root = self.folder.path().join("tls.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "clusters": [{"name": "test", "cluster":
                {"server": format!("https://{address}"), "certificate-authority": root}}],
        });
        let path = self.kubeconfig(user);
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("{user}.kubeconfig"))
    }

    /// The folder that has the programs, then everything else: for programs that call kubectl themselves.
    pub fn path(&self) -> String {
        let rest = env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.assets.display())
    }

    /// kubectl's own files.
    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    pub fn as_user(&self, user: &str, arguments: &[&str], input: &str) -> Said {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .arg("--request-timeout=60s")
            .env("PATH", self.path())
            .env("HOME", self.home())
            .env("KUBECONFIG", self.kubeconfig(user))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that ends before it has read everything says why.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let done = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { fine: done.status.success(), output: text(done.stdout), errors: text(done.stderr) }
    }

    /// What kubectl says to an administrator, who must be obeyed.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let Said { fine, output, errors } = self.as_user("admin", arguments, input);
        assert!(fine, "kubectl {}: {errors}\n{output}", arguments.join(" "));
        output + &errors
    }

    pub fn apply(&self, object: &Value) -> String {
        self.kubectl(&["apply", "--server-side", "-f", "-"], &object.to_string())
    }

    /// `None` where it is not there.
    pub fn find(&self, arguments: &[&str]) -> Option<Value> {
        let arguments = [&["get", "--ignore-not-found", "-o", "json"], arguments].concat();
        serde_json::from_str(&self.as_user("admin", &arguments, "").output).ok()
    }

    /// A call of the API itself: `create` is a POST, `replace` a PUT.
    pub fn raw(&self, verb: &str, path: &str, body: &Value) -> Value {
        let said = self.kubectl(&[verb, "--raw", path, "-f", "-"], &body.to_string());
        serde_json::from_str(&said).unwrap()
    }

    /// Whether there are kinds of this group and version, such as `discovery.k8s.io/v1`.
    pub fn serves(&self, version: &str) -> bool {
        self.kubectl(&["api-versions"], "").lines().any(|line| line == version)
    }

    /// Major and minor.
    pub fn version(&self) -> (u32, u32) {
        let version: Value =
            serde_json::from_str(&self.kubectl(&["get", "--raw", "/version"], "")).unwrap();
        let number = |field: &str| {
            let text = version[field].as_str().unwrap();
            text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
        };
        (number("major"), number("minor"))
    }

    /// A service account's token, as a kubelet gets one for a pod.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<&Value>,
    ) -> String {
        let bound = pod.map(|pod| {
            json!({"apiVersion": "v1", "kind": "Pod",
                   "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]})
        });
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound},
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        self.raw("create", &path, &request)["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Makes etcd forget everything before now.
    pub fn forget_history(&self) {
        let now = self.database("/v3/kv/range", &json!({"key": "AA=="}));
        let now = &now["header"]["revision"];
        self.database("/v3/kv/compaction", &json!({"revision": now, "physical": true}));
    }

    fn database(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.database,
            body.len()
        );
        let mut stream = TcpStream::connect(self.database).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.split(' ').nth(1) == Some("200"), "{path}: {answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

/// Free a moment ago: the two programs take no socket, nor port 0.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn etcd(assets: &Path, folder: &Path, clients: SocketAddr) -> Child {
    let peers = format!("http://{}", free());
    let clients = format!("http://{clients}");
    Command::new(assets.join("etcd"))
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn write_keys(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    write("tls.crt", &certificate.pem());
    write("tls.key", &key.serialize_pem());
    let accounts = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    write("accounts.key", &accounts.serialize_pem());
    write("accounts.pub", &accounts.public_key_pem());
    write("tokens.csv", "admin,admin,admin,system:masters\nnobody,nobody,nobody\n");
}
