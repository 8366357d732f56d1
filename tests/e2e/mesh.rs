//! A configuration file, and the proxy that runs with it as a process of its own.

use std::{
    fs,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    task::Poll,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::client;

/// Longer than anything takes on a busy machine; reaching it is a failure, not a measurement.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a proxy is started with.
#[derive(Default)]
pub struct Mesh {
    documents: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Mesh {
    /// A service with one port, 80, and a workload for each address.
    pub fn service(mut self, name: &str, protocol: &str, endpoints: &[SocketAddr]) -> Self {
        self.documents.push_str(&format!(
            "---\n{{apiVersion: leno.dev/v1alpha1, kind: Service, metadata: {{name: {name}, namespace: default}}, \
             spec: {{ports: [{{name: main, port: 80, protocol: {protocol}}}]}}}}\n"
        ));
        for (at, address) in endpoints.iter().enumerate() {
            self.documents.push_str(&format!(
                "---\n{{apiVersion: leno.dev/v1alpha1, kind: Workload, metadata: {{name: {name}-{at}, namespace: default}}, \
                 spec: {{services: [{name}], address: {}, ports: {{main: {}}}}}}}\n",
                address.ip(),
                address.port()
            ));
        }
        self
    }

    /// An `HTTPRoute` named like the service it is attached to.
    pub fn http_route(self, service: &str, rules: &str) -> Self {
        self.route("HTTPRoute", "v1", service, rules)
    }

    /// A route of any kind.
    pub fn route(self, kind: &str, version: &str, service: &str, rules: &str) -> Self {
        self.yaml(&format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\n\
             metadata: {{name: {service}, namespace: default}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: {service}}}]\n  rules:\n{}\n",
            indented(rules)
        ))
    }

    /// A `TrafficPolicy` for a service.
    pub fn policy(self, service: &str, fields: &str) -> Self {
        self.yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: default}}\n\
             spec:\n  targetRefs: [{{group: '', kind: Service, name: {service}}}]\n{}\n",
            indented(fields)
        ))
    }

    /// Any document.
    pub fn yaml(mut self, document: &str) -> Self {
        self.documents.push_str("---\n");
        self.documents.push_str(document);
        self.documents.push('\n');
        self
    }

    /// Flags of the proxy.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// A variable of the proxy's environment, which has no others.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The file as it is written.
    pub fn text(&self) -> &str {
        &self.documents
    }

    /// Runs the proxy and waits until it listens.
    pub async fn start(self) -> Proxy {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, mut proxy) = {
            let mut command = self.command(&folder);
            let child = command.spawn().expect("the proxy starts");
            (child, Proxy::unbound(folder))
        };
        let output = child.stdout.take().unwrap();
        proxy.child = Some(child);
        let line = tokio::time::timeout(
            PATIENCE,
            tokio::task::spawn_blocking(move || {
                use std::io::BufRead;
                let mut line = String::new();
                std::io::BufReader::new(output).read_line(&mut line).unwrap();
                line
            }),
        );
        let line = line.await.expect("the proxy says where it listens").unwrap();
        let bound: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("not an announcement: {line:?}; {}", proxy.errors()));
        let address = |name: &str| bound[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
        (proxy.outbound, proxy.inbound, proxy.admin) =
            (address("outbound"), address("inbound"), address("admin"));
        proxy
    }

    /// Runs a proxy that is expected to refuse to start: its exit status and what it said.
    pub async fn fail(self) -> (ExitStatus, String) {
        let folder = tempfile::tempdir().unwrap();
        let child = self.command(&folder).spawn().expect("the proxy starts");
        let mut proxy = Proxy::unbound(folder);
        proxy.child = Some(child);
        let status = proxy.ended().await;
        (status, proxy.errors())
    }

    fn command(&self, folder: &TempDir) -> Command {
        let config = folder.path().join("mesh.yaml");
        fs::write(&config, &self.documents).unwrap();
        let errors = fs::File::create(folder.path().join("stderr")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_leno-proxy-under-test"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let log = folder.path().join("access.log");
        let mut defaults = vec![("--access-log", "json"), ("--workers", "1")];
        if !self.arguments.iter().any(|argument| argument == "--control-plane") {
            defaults.push(("--config", config.to_str().unwrap()));
        }
        defaults.push(("--access-log-file", log.to_str().unwrap()));
        defaults.extend(["--outbound", "--inbound", "--admin"].map(|flag| (flag, "127.0.0.1:0")));
        for (flag, value) in defaults {
            if !self.arguments.iter().any(|argument| argument == flag) {
                command.args([flag, value]);
            }
        }
        command.args(&self.arguments);
        command
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// A running proxy; ended when dropped.
pub struct Proxy {
    /// Where the application's calls go in.
    pub outbound: SocketAddr,
    /// Where calls for the application go in.
    pub inbound: SocketAddr,
    /// Where operators look.
    pub admin: SocketAddr,
    child: Option<Child>,
    folder: TempDir,
}

impl Proxy {
    fn unbound(folder: TempDir) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { outbound: nowhere, inbound: nowhere, admin: nowhere, child: None, folder }
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("mesh.yaml")
    }

    /// Replaces the configuration file in one step, as deployment tools do.
    pub fn rewrite(&self, text: &str) {
        let next = self.folder.path().join("next.yaml");
        fs::write(&next, text).unwrap();
        fs::rename(next, self.config()).unwrap();
    }

    /// What the process wrote to standard error.
    pub fn errors(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Lowers the number of files the process may have open.
    pub fn limit_descriptors(&self, number: u64) {
        use rustix::process::{Resource, Rlimit, prlimit};
        let limit = Rlimit { current: Some(number), maximum: Some(number) };
        let pid = Pid::from_raw(self.pid().cast_signed());
        prlimit(pid, Resource::Nofile, limit).unwrap();
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the proxy does not end; {}", self.errors());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// What it holds now without the program itself, in bytes.
    pub fn held(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// The most memory that was ever resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// A page of the admin port.
    pub async fn page(&self, path: &str) -> String {
        let answer = client::get(self.admin, &self.admin.to_string(), path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.text()
    }

    /// A page of the admin port that is JSON.
    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.page(path).await).unwrap()
    }

    /// One cluster as `/clusters` shows it.
    pub async fn cluster(&self, name: &str) -> Value {
        let page = self.json("/clusters?format=json").await;
        let clusters = page["clusters"].as_array().unwrap();
        clusters
            .iter()
            .find(|cluster| cluster["name"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("no {name}"))
    }

    /// The sum of all series of `family` whose labels contain all of `labels`; `None` when there is none.
    pub async fn metric(&self, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let page = self.page("/stats/prometheus").await;
        let wanted: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let of_family = |line: &&str| {
            line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        page.lines()
            .filter(of_family)
            .filter(|line| wanted.iter().all(|label| line.contains(label.as_str())))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .reduce(|sum, value| sum + value)
    }

    /// Waits until a metric has this value: workers publish their counts a moment later.
    pub async fn counts(&self, family: &str, labels: &[(&str, &str)], value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(family, labels).await != Some(value) {
            if Instant::now() > deadline {
                let page = self.page("/stats/prometheus").await;
                let found: Vec<&str> = page.lines().filter(|line| line.contains(family)).collect();
                panic!("{family} {labels:?} is not {value}: {found:#?}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Everything that the proxy shows to people or leaves on the disk.
    pub async fn shown(&self) -> Vec<u8> {
        let mut shown = Vec::new();
        for path in [
            "/help",
            "/ready",
            "/stats/prometheus",
            "/config_dump",
            "/clusters",
            "/clusters?format=json",
            "/listeners",
            "/listeners?format=json",
            "/certs",
            "/issuers",
            "/server_info",
            "/logging",
        ] {
            shown.extend(client::get(self.admin, &self.admin.to_string(), path).await.body);
        }
        // Logs and state; the configuration file is the test's.
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path != self.config() {
                    shown.extend(fs::read(path).unwrap());
                }
            }
        }
        shown
    }

    /// The access log, once it has at least `lines` lines.
    pub async fn access_log_text(&self, lines: usize) -> String {
        until("the access log to be written", async || {
            let text = self.access_log_now();
            (text.lines().count() >= lines && text.ends_with('\n')).then_some(text)
        })
        .await
    }

    /// The access log as it is now.
    pub fn access_log_now(&self) -> String {
        fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// As [`Self::access_log_text`], parsed.
    pub async fn access_log(&self, lines: usize) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
        };
        self.access_log_text(lines).await.lines().map(parse).collect()
    }

    /// The flag and status of the last exchange of `lines`.
    pub async fn last_outcome(&self, lines: usize) -> (u64, String) {
        let log = self.access_log(lines).await;
        let last = &log[lines - 1];
        (
            last["response_code"].as_u64().unwrap(),
            last["response_flags"].as_str().unwrap().to_owned(),
        )
    }

    /// Asserts that a plain request is still answered.
    pub async fn serves(&self, host: &str) {
        let answer = client::get(self.outbound, host, "/still-there").await;
        assert_eq!(answer.status, 200, "{}\n{}", answer.text(), self.errors());
    }

    /// Waits until no exchange of `cluster` is under way.
    pub async fn quiet(&self, cluster: &str) {
        until("everything under way to end", async || {
            let shown = self.cluster(cluster).await;
            let endpoints = shown["endpoints"].as_array().unwrap();
            let idle = endpoints.iter().all(|endpoint| endpoint["active"] == 0);
            (shown["active"] == 0 && shown["pending"] == 0 && idle).then_some(())
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let errors = self.errors();
        if std::thread::panicking() {
            eprintln!("the proxy said:\n{errors}");
        } else {
            assert!(!errors.contains("panic"), "a panic in the proxy: {errors}");
        }
    }
}

/// Runs a test of what happens when a time is up: with short times first, so that it is quick; and once more with times so
/// often as long where that fails, since a machine that stands still for a while is slower than any short one.
pub async fn at_any_pace(test: impl AsyncFn(u32)) {
    const LONGER: u32 = 40;
    let mut quick = Box::pin(test(1));
    let passed = std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| quick.as_mut().poll(context));
        std::panic::catch_unwind(poll).map_or(Poll::Ready(false), |poll| poll.map(|()| true))
    });
    if !passed.await {
        eprintln!("once more, with longer times");
        test(LONGER).await;
    }
}

/// Looks again and again until there is something; panics when there never is.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
