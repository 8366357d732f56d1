//! Instances of a service are replaced one after another while they are called: nobody notices. The order is that of
//! pods and of machines: callers are told of an instance only when it is ready, and its sidecar goes only after the last
//! answer, while the application still answers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    task::{JoinError, JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    client::{self, Wire},
    control_plane::ControlPlane,
    mesh::{Mesh, PATIENCE, Proxy, until},
    origin::{self, Origin},
};

const INSTANCES: usize = 3;
/// 500 requests a second.
const PERIOD: Duration = Duration::from_millis(2);
/// What is answered by whoever is there, before and after each replacement.
const BETWEEN: usize = 500;
/// Requests under way at once; a machine that is too slow for the clock would only measure our limits.
const MOST_AT_ONCE: usize = 64;
/// Seconds that a sidecar goes on after it has told that it leaves, as `leno join` sets it: what a caller has just begun
/// to send must still be taken.
const DRAIN_DELAY: &str = "5";
/// As a sidecar is that nobody has told to wait: callers hear of its end by its answers.
const NO_DELAY: &str = "0";
/// Every so many requests take the application this long: there is always something to finish.
const SLOW_EVERY: usize = 10;
const SLOW: Duration = Duration::from_millis(200);

/// Who says that an instance is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Its sidecar, as on a machine that joined.
    BySidecar,
    /// Somebody else, as Kubernetes does for pods: nobody is to call it before it is ready, and from when it is to end.
    ByOthers,
}

/// An application with its sidecar.
struct Instance {
    name: String,
    sidecar: Proxy,
    application: Origin,
}

/// A control plane, and instances that come and go.
struct Rollout {
    control_plane: ControlPlane,
    told: Told,
    drain_delay: &'static str,
    started: usize,
    instances: VecDeque<Instance>,
}

impl Rollout {
    async fn begin(told: Told, drain_delay: &'static str, count: usize) -> Self {
        let control_plane = ControlPlane::start(&[]).await;
        let service = json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": "orders", "namespace": "default"},
            "spec": {"ports": [{"name": "http", "port": 80, "protocol": "http"}]},
        });
        control_plane.create("leno.dev/v1alpha1", "services", service).await;
        let instances = VecDeque::new();
        let mut rollout = Self { control_plane, told, drain_delay, started: 0, instances };
        for _ in 0..count {
            rollout.start().await;
        }
        rollout
    }

    /// Sidecar and application start; callers are told once both are ready.
    async fn start(&mut self) {
        let name = format!("orders-{}", self.started);
        self.started += 1;
        let application = application().await;
        let port = application.address.port();
        let mesh = Mesh::default().managed(&mut self.control_plane, &name);
        let app = format!("http={port}");
        let flags = ["--service", "orders", "--app", &app, "--drain-delay", self.drain_delay];
        let sidecar = match self.told {
            Told::BySidecar => mesh.arguments(&flags),
            // The hook before the end of a container waits as long.
            Told::ByOthers => mesh.arguments(&["--drain-delay", self.drain_delay]),
        };
        let sidecar = sidecar.start().await;
        ready(&sidecar).await;
        let instance = Instance { name, sidecar, application };
        if self.told == Told::ByOthers {
            let workload = instance.workload(0);
            self.control_plane.create("leno.dev/v1alpha1", "workloads", workload).await;
        }
        let inbound = format!(":{port}\"");
        until("the sidecar to know its application", async || {
            instance.sidecar.page("/listeners?format=json").await.contains(&inbound).then_some(())
        })
        .await;
        if self.told == Told::ByOthers {
            self.weigh(&instance, 1).await;
        }
        self.instances.push_back(instance);
    }

    async fn weigh(&self, instance: &Instance, weight: u32) {
        let path =
            format!("/apis/leno.dev/v1alpha1/namespaces/default/workloads/{}", instance.name);
        let answer = self.control_plane.call("PUT", &path, &instance.workload(weight)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The end of the oldest: its sidecar finishes while its application still answers.
    async fn end_oldest(&mut self, caller: &Proxy) {
        let mut old = self.instances.pop_front().unwrap();
        if self.told == Told::ByOthers {
            self.weigh(&old, 0).await;
            // What the hook before the end of a container does, and waits for.
            let post =
                format!("POST /healthcheck/fail HTTP/1.1\r\nHost: {}\r\n\r\n", old.sidecar.admin);
            assert_eq!(client::ask(old.sidecar.admin, post).await.status, 200);
            knows(caller, self.instances.len()).await;
        }
        old.sidecar.signal(Signal::TERM);
        let status = old.sidecar.ended().await;
        assert_eq!(status.code(), Some(0), "{}", old.sidecar.errors());
        let errors = old.sidecar.errors();
        assert!(errors.contains("everything under way has finished"), "{errors}");
        until("the application to have nothing left", async || {
            (old.application.open() == 0).then_some(())
        })
        .await;
    }

    /// Waits until the newest is called.
    async fn newest_serves(&self) {
        let newest = self.instances.back().unwrap();
        until("the new instance to be called", async || {
            (newest.application.accepted() > 0).then_some(())
        })
        .await;
    }
}

impl Instance {
    fn workload(&self, weight: u32) -> Value {
        json!({
            "apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": {
                "services": ["orders"], "address": "127.0.0.1", "serviceAccount": self.name, "weight": weight,
                "ports": {"http": self.application.address.port()},
                "sidecar": {"port": self.sidecar.inbound.port(), "mutualTls": true},
            },
        })
    }
}

/// Waits until the caller knows of so many instances.
async fn knows(caller: &Proxy, instances: usize) {
    until("the caller to know who is there", async || {
        let cluster = caller.cluster("default/orders:80").await;
        (cluster["endpoints"].as_array().unwrap().len() == instances).then_some(())
    })
    .await;
}

/// Answers with its path; `/slow` takes a while.
async fn application() -> Origin {
    Origin::raw(|mut stream, _| async move {
        while let Some((head, _)) = origin::read_request(&mut stream).await {
            if head.contains(" /slow ") {
                sleep(SLOW).await;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn ready(sidecar: &Proxy) {
    until("the sidecar to be ready", async || {
        let admin = sidecar.admin.to_string();
        (client::get(sidecar.admin, &admin, "/ready").await.status == 200).then_some(())
    })
    .await;
}

/// Requests that begin by the clock, however long each answer takes.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    running: JoinHandle<()>,
}

impl Load {
    fn begin(caller: &Proxy, method: &'static str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let outbound = caller.outbound;
        let (stopped, counted, noted) = (stop.clone(), answered.clone(), failures.clone());
        let ended = move |result: Result<(), JoinError>| match result {
            Ok(()) => _ = counted.fetch_add(1, Ordering::Relaxed),
            Err(error) => noted.lock().unwrap().push(error.to_string()),
        };
        let running = tokio::spawn(async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (idle, mut under_way) = (Arc::default(), JoinSet::new());
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                ticks.tick().await;
                if under_way.len() >= MOST_AT_ONCE
                    && let Some(result) = under_way.join_next().await
                {
                    ended(result);
                }
                let call = call(outbound, method, Arc::clone(&idle), number);
                under_way.spawn(async move { timeout(PATIENCE, call).await.expect("an answer") });
                while let Some(result) = under_way.try_join_next() {
                    ended(result);
                }
            }
            while let Some(result) = under_way.join_next().await {
                ended(result);
            }
        });
        Self { stop, answered, failures, running }
    }

    /// Waits until so many more have been answered.
    async fn goes_on(&self) {
        let enough = self.answered.load(Ordering::Relaxed) + BETWEEN;
        until("answers", async || (self.answered.load(Ordering::Relaxed) >= enough).then_some(()))
            .await;
    }

    /// How many requests were answered, and why others were not.
    async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.unwrap();
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        (self.answered.load(Ordering::Relaxed), failures)
    }
}

/// One request on a connection to the caller's own sidecar that is kept.
async fn call(
    outbound: std::net::SocketAddr,
    method: &str,
    idle: Arc<Mutex<Vec<Wire>>>,
    number: usize,
) {
    let kept = idle.lock().unwrap().pop();
    let mut wire = match kept {
        Some(wire) => wire,
        None => Wire::connect(outbound).await,
    };
    let path = if number.is_multiple_of(SLOW_EVERY) { "/slow" } else { "/fast" };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: orders\r\nx-number: {number}\r\nContent-Length: 0\r\n\r\n"
    );
    let answer = wire.ask(request).await;
    assert_eq!(answer.status, 200, "request {number}: {:?} {}", answer.headers, answer.text());
    if answer.header("connection") != Some("close") {
        idle.lock().unwrap().push(wire);
    }
}

/// A caller that has been answered once.
async fn caller(rollout: &mut Rollout) -> Proxy {
    let caller = Mesh::default().managed(&mut rollout.control_plane, "caller").start().await;
    ready(&caller).await;
    until("the first answer", async || {
        (client::get(caller.outbound, "orders", "/").await.status == 200).then_some(())
    })
    .await;
    knows(&caller, rollout.instances.len()).await;
    caller
}

async fn nobody_noticed(load: Load) {
    let (answered, failures) = load.end().await;
    assert!(failures.is_empty(), "{} of {answered} failed: {failures:#?}", failures.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_replaced_and_nobody_notices() {
    let mut rollout = Rollout::begin(Told::ByOthers, DRAIN_DELAY, INSTANCES).await;
    let caller = caller(&mut rollout).await;
    let load = Load::begin(&caller, "GET");
    load.goes_on().await;
    for _ in 0..INSTANCES {
        rollout.start().await;
        rollout.newest_serves().await;
        rollout.end_oldest(&caller).await;
        load.goes_on().await;
    }
    nobody_noticed(load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_leave_and_nobody_notices() {
    let mut rollout = Rollout::begin(Told::BySidecar, DRAIN_DELAY, 2 * INSTANCES).await;
    let caller = caller(&mut rollout).await;
    let load = Load::begin(&caller, "GET");
    load.goes_on().await;
    for _ in 0..INSTANCES {
        rollout.end_oldest(&caller).await;
        load.goes_on().await;
    }
    nobody_noticed(load).await;
}

/// Nobody hears of the end before it comes, and nothing may be sent twice: no connection is closed while somebody may
/// be about to use it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_end_at_once_lose_nothing() {
    let mut rollout = Rollout::begin(Told::BySidecar, NO_DELAY, 2 * INSTANCES).await;
    let caller = caller(&mut rollout).await;
    let load = Load::begin(&caller, "POST");
    load.goes_on().await;
    for _ in 0..INSTANCES {
        rollout.end_oldest(&caller).await;
        load.goes_on().await;
    }
    nobody_noticed(load).await;
}

/// What a job does is over when its program ends. Its sidecar must not keep the pod: Kubernetes ends a native one by a
/// signal, and a program beside a classic one by asking.
#[tokio::test]
async fn a_job_ends_with_its_sidecar() {
    let mut rollout = Rollout::begin(Told::ByOthers, DRAIN_DELAY, 1).await;
    for classic in [false, true] {
        let name = if classic { "classic-job" } else { "native-job" };
        let mesh = Mesh::default().managed(&mut rollout.control_plane, name);
        let mut sidecar = mesh.start().await;
        ready(&sidecar).await;
        // The job leaves its connection open, as programs do that just end.
        let mut wire = Wire::connect(sidecar.outbound).await;
        let answer = until("the answer", async || {
            let answer = wire.ask("GET /slow HTTP/1.1\r\nHost: orders\r\n\r\n").await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert_eq!(answer.text(), "ok");
        if classic {
            let post = format!("POST /quitquitquit HTTP/1.1\r\nHost: {}\r\n\r\n", sidecar.admin);
            assert_eq!(client::ask(sidecar.admin, post).await.status, 200);
        } else {
            sidecar.signal(Signal::TERM);
        }
        assert_eq!(sidecar.ended().await.code(), Some(0), "{}", sidecar.errors());
    }
}
