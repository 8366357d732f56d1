use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
};

use leno_api::model::{ObjectName, traffic_policy::Settings};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    task::LocalSet,
    time::timeout,
};

use super::*;
use crate::{
    cluster::{Cluster, ClusterKey, Endpoint},
    forward::{
        observed::Mailbox,
        worker::{Counted, Shared, Unrouted},
    },
    http::server::Limits,
    identity::Identity,
    snapshot::{Inbound, Published, Snapshot},
    telemetry::{
        metrics::Families,
        scope::{Scope, ScopeLabels},
    },
};

fn scope() -> Arc<Scope> {
    Scope::new(ScopeLabels { reporter: "destination", ..ScopeLabels::default() })
}

/// An application that says `words` to everybody, at once or when it is spoken to; its port of that protocol.
async fn application(
    words: &'static [u8],
    speaks_first: bool,
    protocol: Declared,
) -> Arc<InboundPort> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                if speaks_first || stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {
                    stream.write_all(words).await.unwrap();
                }
                let _ = stream.read(&mut [0; 1024]).await;
            });
        }
    });
    Arc::new(InboundPort {
        destination: "shop/orders:80".into(),
        protocol,
        cluster: cluster(address, protocol),
        address,
        mode: TlsMode::Disable,
        guards: None,
        plugins: None,
        limits: Box::default(),
    })
}

fn cluster(address: SocketAddr, protocol: Declared) -> Arc<Cluster> {
    let endpoint = Endpoint::own("orders-1".into(), address, scope());
    Arc::new(Cluster {
        key: ClusterKey::Application(ObjectName::new("shop", "orders"), address),
        name: "inbound".into(),
        destination: None,
        protocol,
        settings: Arc::new(Settings::default()),
        endpoints: vec![endpoint].into(),
        scope: scope(),
        state: Arc::default(),
    })
}

fn publish(published: &Published, http: Arc<InboundPort>, tcp: Arc<InboundPort>) {
    let by_destination = [((*tcp.destination).into(), tcp.clone())].into_iter().collect();
    let (only_http, only_tcp) = (Some(http), Some(tcp));
    let inbound = Arc::new(Inbound { by_destination, only_http, only_tcp, ..Inbound::default() });
    published.publish(Arc::new(Snapshot { loaded: true, inbound, ..Snapshot::default() }));
}

/// A worker beside an application with one port that speaks HTTP and one, `tcp`, that does not.
/// It drains when told.
fn worker(http: Arc<InboundPort>, tcp: Arc<InboundPort>) -> (Rc<Worker>, watch::Sender<bool>) {
    let (published, _) = Published::new(false);
    publish(&published, http, tcp);
    let (draining, drain) = watch::channel(false);
    let worker = Worker::new(Arc::new(Shared {
        published,
        identity: Identity::none(),
        families: Arc::new(Families::register(prometheus::Registry::new()).unwrap()),
        unrouted: Unrouted { outbound: scope(), inbound: scope() },
        access_log: None,
        limits: Limits::default(),
        connections: AtomicUsize::new(0),
        listening: AtomicUsize::new(0),
        max_connections: 10,
        drain,
        on_demand_timeout: Duration::ZERO,
        workers: 1,
        mailbox: Mailbox::default(),
        delayed: Arc::default(),
        started: std::time::Instant::now(),
        capture: None,
    }));
    (Rc::new(worker), draining)
}

/// A connection that `worker` serves as an inbound one.
async fn connect(worker: &Rc<Worker>) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, address) = listener.accept().await.unwrap();
    let direction = Direction::Inbound;
    let counted = Rc::new(Counted::take(&worker.shared, direction).unwrap());
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        serve(&worker, stream, Downstream { address, direction, counted, secured: None }).await;
    });
    caller
}

async fn read(caller: &mut TcpStream) -> String {
    let mut bytes = [0; 1024];
    let read = timeout(Duration::from_secs(60), caller.read(&mut bytes)).await;
    String::from_utf8_lossy(&bytes[..read.unwrap().unwrap()]).into_owned()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

#[tokio::test]
async fn a_request_after_a_long_silence_goes_to_the_port_that_speaks_http() {
    let test = async {
        let http = application(OK, false, Declared::Http).await;
        let (worker, _draining) = worker(http, application(b"pong", false, Declared::Tcp).await);
        let mut late = connect(&worker).await;
        tokio::time::sleep(SERVER_FIRST + Duration::from_millis(100)).await;
        late.write_all(GET).await.unwrap();
        assert!(read(&mut late).await.starts_with("HTTP/1.1 200 OK"));
        let mut other = connect(&worker).await;
        tokio::time::sleep(SERVER_FIRST + Duration::from_millis(100)).await;
        other.write_all(b"\0ping").await.unwrap();
        assert_eq!(read(&mut other).await, "pong");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn what_is_in_force_when_a_caller_speaks_holds_for_it() {
    let test = async {
        let http = application(OK, false, Declared::Http).await;
        let open = application(b"pong", false, Declared::Tcp).await;
        let strict = InboundPort {
            destination: open.destination.clone(),
            protocol: open.protocol,
            cluster: open.cluster.clone(),
            address: open.address,
            mode: TlsMode::Strict,
            guards: None,
            plugins: None,
            limits: Box::default(),
        };
        let (worker, _draining) = worker(http.clone(), open.clone());
        let mut early = connect(&worker).await;
        let mut silent = connect(&worker).await;
        // Until the application is connected to on their behalf.
        while open.cluster.endpoints[0].active() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        early.write_all(b"\0ping").await.unwrap();
        assert_eq!(read(&mut early).await, "pong");
        publish(&worker.shared.published, http, strict.into());
        silent.write_all(b"\0ping").await.unwrap();
        let mut answer = [0; 4];
        let closed = timeout(Duration::from_secs(60), silent.read_exact(&mut answer)).await;
        closed.unwrap().expect_err("nothing is forwarded in plain text any more");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn an_application_that_speaks_first_is_heard() {
    let test = async {
        let http = application(OK, false, Declared::Http).await;
        let (worker, _draining) =
            worker(http, application(b"220 ready", true, Declared::Tcp).await);
        let mut caller = connect(&worker).await;
        assert_eq!(read(&mut caller).await, "220 ready");
        // From here on it is a tunnel, whatever the caller says.
        caller.write_all(GET).await.unwrap();
        assert_eq!(read(&mut caller).await, "");
    };
    LocalSet::new().run_until(test).await;
}

/// What stops being HTTP is still a connection: it counts against the limit, and draining waits for it.
#[tokio::test]
async fn an_upgraded_connection_counts_until_it_ends() {
    use std::sync::atomic::Ordering;
    const UPGRADE: &[u8] =
        b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    const SWITCH: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let test = async {
        let http = application(SWITCH, false, Declared::Http).await;
        let (worker, _draining) = worker(http.clone(), http);
        let mut caller = connect(&worker).await;
        caller.write_all(UPGRADE).await.unwrap();
        assert!(read(&mut caller).await.starts_with("HTTP/1.1 101"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(worker.shared.connections.load(Ordering::Relaxed), 1);
        drop(caller);
        let ended = async {
            while worker.shared.connections.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), ended).await.expect("to be counted no longer");
    };
    LocalSet::new().run_until(test).await;
}

/// Of the 3.4 KB that a silent connection takes, its task is the most. hyper's buffers come with the first bytes.
#[test]
fn a_silent_connection_takes_little() {
    fn size_of_future<'a, F>(_: impl FnOnce(&'a Rc<Worker>, TcpStream, Downstream) -> F) -> usize {
        size_of::<F>()
    }
    let http = size_of_future(|worker, stream, downstream| http(worker, stream, downstream, true));
    let whole = size_of_future(serve);
    assert!(whole <= 2_560, "{whole} bytes, of which HTTP {http}");
}
