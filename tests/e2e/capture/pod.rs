//! Network namespaces as pods: three of them, joined by pairs of virtual interfaces. Everything that was made is removed
//! on drop, also after a panic.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use leno_control_plane::access::{NewToken, Role, TokenFile};
use tempfile::TempDir;

use crate::mesh::PATIENCE;

/// As whom the sidecar runs: the rules except it.
const SIDECAR_USER: &str = "1337";
const APPLICATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/capture/application.py");

/// Why these tests cannot run here; `None` where they can.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let missing = |program: &&str| {
        Command::new(program).arg("--version").stdin(Stdio::null()).output().is_err()
    };
    let programs = ["ip", "nft", "iptables", "ip6tables", "curl", "python3", "setpriv"];
    programs.into_iter().find(missing).map(|program| format!("{program} is not installed"))
}

/// Three pods: `a` calls, `b` is called, and `c` knows nothing of any mesh. 10.96.0.0/16 and fd96::/16 lead to nobody.
pub struct Network {
    pub a: Pod,
    pub b: Pod,
    pub c: Pod,
}

impl Network {
    /// Everything but the programs.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Names of interfaces have 15 letters at most.
        let prefix = format!("ln{}-{number}", std::process::id());
        let [a, b, c] = ["a", "b", "c"].map(|name| Pod::new(format!("{prefix}{name}"), name));
        let network = Self { a, b, c };
        network.join(&prefix);
        network
    }

    fn join(&self, prefix: &str) {
        let (a, b, c) = (&self.a, &self.b, &self.c);
        for (at, (one, other, name)) in [(a, b, "eth0"), (a, c, "eth1")].into_iter().enumerate() {
            let (here, there) = (format!("{prefix}v{at}"), format!("{prefix}w{at}"));
            ip(&["link", "add", &here, "type", "veth", "peer", "name", &there]);
            ip(&["link", "set", &here, "netns", &one.namespace, "name", name]);
            ip(&["link", "set", &there, "netns", &other.namespace, "name", "eth0"]);
        }
        for (pod, interface, address) in [
            (a, "eth0", "10.77.0.1/24"),
            (a, "eth0", "fd77::1/64"),
            (b, "eth0", "10.77.0.2/24"),
            (b, "eth0", "fd77::2/64"),
            (a, "eth1", "10.78.0.1/24"),
            (a, "eth1", "fd78::1/64"),
            (c, "eth0", "10.78.0.2/24"),
            (c, "eth0", "fd78::2/64"),
        ] {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            let add = ["-n", &pod.namespace, "addr", "add", address, "dev", interface];
            ip(&[&add[..], nodad].concat());
        }
        for (pod, interface) in
            [(a, "lo"), (a, "eth0"), (a, "eth1"), (b, "lo"), (b, "eth0"), (c, "lo"), (c, "eth0")]
        {
            ip(&["-n", &pod.namespace, "link", "set", interface, "up"]);
        }
        for (pod, gateway) in [(a, "10.77.0.2"), (a, "fd77::2"), (b, "10.77.0.1"), (b, "fd77::1")] {
            ip(&["-n", &pod.namespace, "route", "add", "default", "via", gateway, "dev", "eth0"]);
        }
    }
}

/// A network namespace with its programs.
pub struct Pod {
    namespace: String,
    name: &'static str,
    folder: TempDir,
    children: Mutex<Vec<Child>>,
}

impl Pod {
    fn new(namespace: String, name: &'static str) -> Self {
        ip(&["netns", "add", &namespace]);
        let folder = tempfile::tempdir().unwrap();
        // The sidecar runs as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { namespace, name, folder, children: Mutex::default() }
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]).args(arguments);
        command
    }

    /// `leno-redirect`; its output, which must be that of a success.
    pub fn redirect(&self, arguments: &[&str]) -> String {
        let output = self.run(env!("CARGO_BIN_EXE_leno-redirect-under-test"), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, which must fail: what it says.
    pub fn redirect_fails(&self, arguments: &[&str]) -> String {
        let output = self.run(env!("CARGO_BIN_EXE_leno-redirect-under-test"), arguments);
        assert!(!output.status.success(), "{arguments:?} should have been refused");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What the plugin of the node says when a container runtime asks it about this pod, and whether it did it.
    pub fn plugin(&self, command: &str, input: &serde_json::Value) -> (bool, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leno-cni-under-test"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.name)
            .env("CNI_NETNS", format!("/run/netns/{}", self.namespace))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    /// What an HTTP call from here brings; empty when it brings nothing.
    pub fn curl(&self, arguments: &[&str]) -> String {
        let all = [&["-s", "-g", "--max-time", "15"], arguments].concat();
        String::from_utf8(self.run("curl", &all).stdout).unwrap()
    }

    /// What a connection from here brings, after saying `text`.
    pub fn call(&self, host: &str, port: u16, text: &str) -> String {
        let arguments = [APPLICATION, self.name, "call", host, &port.to_string(), text];
        let output = self.run("python3", &arguments);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the application and waits until it listens.
    pub fn application(&self) {
        self.start(self.command("python3", &[APPLICATION, self.name]));
        self.until_listening(9001);
    }

    /// Starts the sidecar with `config` and waits until it listens.
    pub fn sidecar(&self, config: &str, arguments: &[&str]) {
        self.sidecar_as(SIDECAR_USER, config, arguments);
    }

    /// The same as another user.
    pub fn sidecar_as(&self, user: &str, config: &str, arguments: &[&str]) {
        let path = self.folder.path().join("mesh.yaml");
        fs::write(&path, config).unwrap();
        self.sidecar_from(user, &[&["--config", path.to_str().unwrap()], arguments].concat());
    }

    fn sidecar_from(&self, user: &str, arguments: &[&str]) {
        let id = ["--reuid", user, "--regid", user, "--clear-groups"];
        let proxy = env!("CARGO_BIN_EXE_leno-proxy-under-test");
        let flags = [proxy, "--capture", "--workers", "1"];
        let mut command = self.command("setpriv", &[&id[..], &flags, arguments].concat());
        let errors = fs::File::create(self.log()).unwrap();
        command.stderr(errors);
        self.start(command);
        self.until_listening(15001);
        self.until_listening(15006);
    }

    /// Starts a control plane on this machine, and a sidecar of `account` that follows it.
    pub fn managed_sidecar(&self, account: &str, arguments: &[&str]) {
        let data = self.folder.path().join("data");
        let program = env!("CARGO_BIN_EXE_leno-control-plane-under-test");
        let (api, xds) = ("127.0.0.1:15010", "127.0.0.1:15012");
        let places = ["--api", api, "--xds", xds, "--metrics", "127.0.0.1:15014"];
        let own = ["--memory", "--data-dir", data.to_str().unwrap()];
        self.start(self.command(program, &[&own[..], &places].concat()));
        self.until_listening(15010);
        self.until_listening(15012);
        let (roots, deadline) = (data.join("root.pem"), Instant::now() + PATIENCE);
        while !roots.exists() {
            assert!(Instant::now() < deadline, "the control plane has no roots");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let token = NewToken {
            name: account,
            role: Role::Workload,
            namespace: Some("default"),
            service_account: Some(account),
            expires: None,
            once: false,
        };
        let token = TokenFile::open(&data).unwrap().issue(token).unwrap();
        let token = self.private_file("own.token", &token);
        let roots = fs::read_to_string(roots).unwrap();
        let roots = self.private_file("root.pem", &roots);
        let proof = ["--ca-file", &roots, "--token-file", &token, "--service-account", account];
        let all = [&["--control-plane", xds][..], &proof, arguments].concat();
        self.sidecar_from(SIDECAR_USER, &all);
    }

    /// Makes a resource of the namespace `default` at the control plane of this machine.
    pub fn create(&self, plural: &str, object: &serde_json::Value) {
        let url =
            format!("http://127.0.0.1:15010/apis/leno.dev/v1alpha1/namespaces/default/{plural}");
        let body = object.to_string();
        let json = ["-H", "Content-Type: application/json", "-d", &body];
        let said = self.curl(&[&json[..], &["-w", "%{http_code}", &url]].concat());
        assert!(said.ends_with("201"), "{said}");
    }

    /// Starts a server that lists the files of a folder at `port`, and waits until it listens.
    pub fn files(&self, port: u16) {
        let port_text = port.to_string();
        let folder = self.folder.path().to_str().unwrap();
        let server = ["-m", "http.server", "--bind", "::", "--directory", folder, &port_text];
        self.start(self.command("python3", &server));
        self.until_listening(port);
    }

    /// A file that nobody but the sidecar can read.
    pub fn private_file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let user = SIDECAR_USER.parse().unwrap();
        std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// What the sidecar logged.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("sidecar.log")
    }

    fn start(&self, mut command: Command) {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.children.lock().unwrap().push(child);
    }

    fn until_listening(&self, port: u16) {
        let deadline = Instant::now() + PATIENCE;
        let filter = format!("sport = :{port}");
        loop {
            let listening = self.run("ss", &["-Htln", &filter]).stdout;
            if !listening.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "nobody listens at {port}: {}", self.errors());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// The sum of all series of `family` of the sidecar whose labels contain all of `labels`.
    pub fn metric(&self, family: &str, labels: &[&str]) -> f64 {
        let page = self.curl(&["http://127.0.0.1:15000/stats/prometheus"]);
        let of_family = |line: &&str| {
            line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        page.lines()
            .filter(of_family)
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until a metric is at least `value`.
    pub fn counts(&self, family: &str, labels: &[&str], value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(family, labels) < value {
            assert!(
                Instant::now() < deadline,
                "{family} {labels:?} stays below {value}: {}",
                self.errors()
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sidecar of {} said:\n{}", self.name, self.errors());
        }
        let children = self.children.get_mut();
        for child in children.unwrap_or_else(std::sync::PoisonError::into_inner) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // With it go its interfaces, and the rules.
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments:?}: {said}");
}
