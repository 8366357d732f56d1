use std::net::SocketAddr;

use leno_api::model::{ObjectName, service::Protocol, traffic_policy::Settings};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket},
    task::LocalSet,
    time::timeout,
};

use super::*;
use crate::{
    cluster::ClusterKey,
    http::body::Body,
    telemetry::{
        metrics::Families,
        scope::{Scope, ScopeLabels},
    },
};

fn scope() -> Arc<Scope> {
    Scope::new(ScopeLabels { reporter: "source", ..ScopeLabels::default() })
}

fn cluster(addresses: &[SocketAddr], settings: Settings) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint::own("a".into(), *address, scope());
    Cluster {
        key: ClusterKey::Service(ObjectName::new("shop", "orders"), 80),
        name: "shop/orders:80".into(),
        destination: None,
        protocol: Protocol::Auto,
        settings: settings.into(),
        endpoints: addresses.iter().map(endpoint).collect::<Vec<_>>().into(),
        calling: None,
        state: Arc::default(),
    }
}

fn pools() -> Pools {
    let families = Families::register(prometheus::Registry::new()).unwrap();
    Pools::new(Rc::new(Connector::new(|| None, Arc::new(families))))
}

/// Accepts whatever comes, and keeps it open.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    address
}

const PATIENCE: Duration = Duration::from_secs(60);

fn one() -> Settings {
    // Those who wait do so until a connection is given back, however long the machine takes for it.
    Settings { max_connections: 1, connect_timeout: PATIENCE * 2, ..Settings::default() }
}

#[tokio::test]
async fn a_reused_connection_says_how_long_it_lay_idle() {
    let test = async {
        let (cluster, pools) = (cluster(&[server().await], one()), pools());
        let fresh = pools.http1(&cluster, &cluster.endpoints[0]).await.unwrap();
        assert_eq!(fresh.idle, None);
        fresh.give_back(&cluster);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let reused = pools.http1(&cluster, &cluster.endpoints[0]).await.unwrap();
        assert!(reused.idle >= Some(Duration::from_millis(30)), "{:?}", reused.idle);
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

/// It answers before it has read the request, and does not read on.
#[tokio::test]
async fn nobody_waits_for_the_rest_of_somebody_elses_request() {
    let test = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let early = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                stream.readable().await.unwrap();
                stream.write_all(early).await.unwrap();
                kept.push(stream);
            }
        });
        let (cluster, pools) = (cluster(&[address], Settings::default()), pools());
        let mut first = pools.http1(&cluster, &cluster.endpoints[0]).await.unwrap();
        // More than fits into the sockets.
        let body = Body::Full(bytes::Bytes::from(vec![0; 64 << 20]));
        let request = http::Request::post("/").header("host", "a").body(body).unwrap();
        first.sender.send(request).await.unwrap();
        first.give_back(&cluster);
        let next = pools.http1(&cluster, &cluster.endpoints[0]);
        let next = timeout(PATIENCE, next).await.expect("not to wait").unwrap();
        assert_eq!(next.idle, None, "another one");
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_another_endpoint() {
    let test = async {
        let addresses = [server().await, server().await];
        let (cluster, pools) = (cluster(&addresses, one()), pools());
        for turn in 0..4 {
            let endpoint = &cluster.endpoints[turn % 2];
            let connection = timeout(PATIENCE, pools.http1(&cluster, endpoint));
            connection.await.unwrap().unwrap().give_back(&cluster);
            assert_eq!(cluster.state.limits.in_use(Resource::Connections), 1);
        }
        // HTTP/2 connections without exchanges make room, too.
        for turn in 0..4 {
            drop(pools.http2(&cluster, &cluster.endpoints[turn % 2]).await.unwrap());
            assert_eq!(cluster.state.limits.in_use(Resource::Connections), 1);
        }
        let busy = pools.http2(&cluster, &cluster.endpoints[0]).await.unwrap();
        let hurried = Settings { connect_timeout: Duration::from_millis(50), ..one() };
        let cluster = Cluster { settings: hurried.into(), ..cluster };
        let refused = pools.http2(&cluster, &cluster.endpoints[1]).await.unwrap_err();
        assert_eq!((refused.flag, cluster.state.limits.in_use(Resource::Pending)), (Flag::UO, 0));
        drop(busy);
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_another_worker() {
    let test = async {
        let cluster = cluster(&[server().await], one());
        let (here, there) = (pools(), pools());
        here.http1(&cluster, &cluster.endpoints[0]).await.unwrap().give_back(&cluster);
        let wanted = there.http1(&cluster, &cluster.endpoints[0]);
        let swept = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            here.sweep(Instant::now());
            std::future::pending::<()>().await;
        };
        let connection = tokio::select! {
            connection = wanted => connection.unwrap(),
            () = swept => unreachable!(),
        };
        // Whoever gives one back while others wait does not keep it.
        let (given, wanted) = (
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                connection.give_back(&cluster);
            },
            here.http1(&cluster, &cluster.endpoints[0]),
        );
        tokio::join!(given, async { wanted.await.unwrap() });
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

#[tokio::test]
async fn exchanges_beyond_what_a_connection_carries_get_another_one() {
    let test = async {
        let settings =
            Settings { max_connections: 2, connect_timeout: PATIENCE, ..Settings::default() };
        let (cluster, pools) = (cluster(&[server().await], settings), pools());
        let mut lent = Vec::new();
        for count in 1..=2 * MOST_STREAMS {
            lent.push(pools.http2(&cluster, &cluster.endpoints[0]).await.unwrap());
            let connections = cluster.state.limits.in_use(Resource::Connections);
            assert_eq!(connections, count.div_ceil(STREAMS).min(2), "{count}");
        }
        // Nothing more may go onto either until something has ended there.
        assert!(share(&pools.pool(&cluster, &cluster.endpoints[0]), MOST_STREAMS).is_none());
        let ended = async { drop(lent.swap_remove(0)) };
        let (next, ()) = tokio::join!(pools.http2(&cluster, &cluster.endpoints[0]), ended);
        lent.push(next.unwrap());
        drop(lent);
        pools.sweep(Instant::now());
        let closed = async {
            while cluster.state.limits.in_use(Resource::Connections) != 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, closed).await.expect("all but one to close");
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

/// Requests for an endpoint that swallows connection attempts fail together, not one after the other.
#[tokio::test]
async fn those_who_waited_for_a_dial_fail_with_it() {
    let test = async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        // A full queue of connections drops what comes on top.
        let connect =
            || timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(address));
        let mut queued = Vec::new();
        while let Ok(connected) = connect().await {
            queued.push(connected.unwrap());
        }
        // Once more with more time where the machine stood still.
        for (last, millis) in [(false, 300), (false, 3_000), (true, 20_000)] {
            let connect_timeout = Duration::from_millis(millis);
            let settings = Settings { connect_timeout, ..Settings::default() };
            let (cluster, pools) = (cluster(&[address], settings), pools());
            let begun = Instant::now();
            let request = || async {
                let error = pools.http2(&cluster, &cluster.endpoints[0]).await.unwrap_err();
                assert_eq!(error.flag, Flag::UF);
            };
            tokio::join!(request(), request(), request(), request(), request());
            assert_eq!(cluster.state.limits.in_use(Resource::Connections), 0);
            if begun.elapsed() < 2 * connect_timeout {
                return;
            }
            assert!(!last, "{:?}", begun.elapsed());
        }
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}

/// What a peer would not take now is not left to wait for those before it.
#[tokio::test]
async fn exchanges_beyond_what_the_peer_takes_get_another_connection() {
    let test = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    let mut builder = h2::server::Builder::new();
                    let builder = builder.max_concurrent_streams(2);
                    let mut serving = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
                    while serving.accept().await.is_some() {}
                });
            }
        });
        let (cluster, pools) = (cluster(&[address], Settings::default()), pools());
        let endpoint = &cluster.endpoints[0];
        let mut lent = vec![pools.http2(&cluster, endpoint).await.unwrap()];
        let told = async {
            while lent[0].pool.shared.borrow()[0].sender.most_streams() != 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, told).await.expect("to be told what the peer takes");
        for connections in [1, 2] {
            lent.push(pools.http2(&cluster, endpoint).await.unwrap());
            assert_eq!(cluster.state.limits.in_use(Resource::Connections), connections);
        }
    };
    LocalSet::new().run_until(Box::pin(test)).await;
}
