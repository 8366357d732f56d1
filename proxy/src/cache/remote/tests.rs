//! With a real Redis.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use leno_api::model::{ObjectName, cache_policy::CacheKey};
use redis::Value;

use super::*;
use crate::cache::{
    body::StoredBody,
    candidate::{self, Answer, Question},
    policy::{directives::Directives, freshness::Times},
};

/// For whatever has to happen some time.
const PATIENCE: Duration = Duration::from_secs(60);
const SHELF: &str = "shop/p:80/a";

pub(super) fn policy() -> CachePolicy {
    CachePolicy {
        name: ObjectName { namespace: "shop".into(), name: "catalogue".into() },
        created: String::new(),
        targets: Vec::new(),
        enabled: true,
        max_bytes: 1 << 20,
        max_object_bytes: 64 << 10,
        default_ttl: None,
        negative_ttl: None,
        force_ttl: None,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        get: true,
        head: true,
        statuses: None,
        key: CacheKey::default(),
        tags_header: None,
        collapse_wait: Duration::ZERO,
        redis: None,
    }
}

/// One of our own, gone with its data when dropped.
struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(password: &str) -> Self {
        // Somebody else may get a port between the moment when it is found free and that when it is used.
        loop {
            let mut server = Self::try_start(password);
            let address = ("127.0.0.1", server.port);
            let mut ended = false;
            until("redis-server listens", async || {
                let listens = tokio::net::TcpStream::connect(address).await.is_ok();
                ended = server.process.try_wait().unwrap().is_some();
                listens || ended
            })
            .await;
            if !ended {
                return server;
            }
        }
    }

    fn try_start(password: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--requirepass", password])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server cannot be started: apt-get install redis-server");
        Self { process, port, _folder: folder }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).unwrap();
    }

    fn redis(&self, password_file: Option<&std::path::Path>) -> Redis {
        Redis {
            address: format!("127.0.0.1:{}", self.port),
            tls: false,
            username: None,
            password_file: password_file.map(Into::into),
            timeout: Duration::from_secs(1),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Fixture {
    server: Server,
    folder: tempfile::TempDir,
    policy: Arc<CachePolicy>,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut CachePolicy)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let server = Server::start("secret").await;
        let mut policy = policy();
        policy.redis = Some(server.redis(Some(&file)));
        change(&mut policy);
        Self { server, folder, policy: Arc::new(policy) }
    }

    /// As another sidecar has it, in use.
    async fn sidecar(&self) -> Remote {
        let remote = self.sidecar_of(&self.policy);
        used(&remote).await;
        remote
    }

    fn sidecar_of(&self, policy: &Arc<CachePolicy>) -> Remote {
        let remote = Remote::new(policy, None).unwrap();
        remote.start();
        remote
    }

    /// As any other client.
    async fn link(&self) -> Link {
        Link::open(&self.server.redis(Some(&self.folder.path().join("password")))).await.unwrap()
    }

    async fn run(&self, words: &[&[u8]]) -> Value {
        let mut command = redis::Cmd::new();
        words.iter().for_each(|word| {
            command.arg(*word);
        });
        self.link().await.call(&command).await.unwrap()
    }

    fn hash(&self) -> String {
        Keys::new(&self.policy).shelf(SHELF)
    }

    fn stored(&self, fields: &[(&'static str, &str)], request: &HeaderMap) -> Arc<Stored> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let question = Question {
            method: &Method::GET,
            authority: "p.shop",
            target: &Uri::from_static("/a"),
            headers: request,
            directives: &Directives::default(),
            identity: &"me".into(),
            extra: &key().extra,
        };
        let times = Times { requested: now, received: now };
        let answer = Answer { status: StatusCode::OK, headers: &headers, times };
        let body = StoredBody::whole(Bytes::from_static(b"hello"), None);
        Arc::new(candidate::of(&self.policy, question, answer, Arc::new(body)).unwrap())
    }
}

const PUBLIC: (&str, &str) = ("cache-control", "public, max-age=100");

fn key() -> Key {
    Key { shelf: SHELF.into(), extra: (&b"extra"[..]).into() }
}

fn fields(name: &'static str, value: &str) -> HeaderMap {
    [(name, value)]
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

async fn used(remote: &Remote) {
    until("in use", async || remote.figures().state == 0).await;
}

async fn seen(remote: &Remote) -> Seen {
    remote.ask(&key(), &HeaderMap::new()).await.seen.unwrap()
}

async fn found(remote: &Remote, request: &HeaderMap) -> Option<Entry> {
    remote.ask(&key(), request).await.entry
}

/// Written, and there.
async fn write(remote: &Remote, stored: &Arc<Stored>, request: &HeaderMap) {
    remote.write(&key(), seen(remote).await, stored);
    until("written", async || found(remote, request).await.is_some()).await;
}

/// Until all that was handed over before has been written or not.
async fn settled(fixture: &Fixture, remote: &Remote) {
    let other = Key { shelf: "shop/p:80/other".into(), extra: key().extra };
    let seen = remote.ask(&other, &HeaderMap::new()).await.seen.unwrap();
    remote.write(&other, seen, &fixture.stored(&[PUBLIC], &HeaderMap::new()));
    until("settled", async || remote.ask(&other, &HeaderMap::new()).await.entry.is_some()).await;
}

#[tokio::test]
async fn what_one_writes_another_reads() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.sidecar().await, fixture.sidecar().await);
    let none = HeaderMap::new();
    assert_eq!(found(&other, &none).await, None);
    let stored = fixture.stored(&[PUBLIC, ("age", "7"), ("x-a", "1"), ("x-a", "2")], &none);
    write(&one, &stored, &none).await;
    let entry = found(&other, &none).await.unwrap();
    assert_eq!((&entry.body[..], &entry.headers), (&b"hello"[..], &stored.headers));
    assert!(entry.age >= Duration::from_secs(7), "{:?}", entry.age);
    let figures = other.figures();
    assert_eq!((figures.hits, figures.misses, figures.errors), (1, 1, 0));
    // It does not stay for longer than it is of use.
    let Value::Int(left) = fixture.run(&[b"PTTL", fixture.hash().as_bytes()]).await else {
        panic!()
    };
    assert!((1..=93_000).contains(&left), "{left}");
    // Nor is it another key's.
    let another = Key { extra: (&b"else"[..]).into(), ..key() };
    assert!(other.ask(&another, &none).await.entry.is_none());
}

#[tokio::test]
async fn what_is_not_everybodys_never_gets_there() {
    let fixture = Fixture::new().await;
    let remote = fixture.sidecar().await;
    let seen = seen(&remote).await;
    let stored = fixture.stored(&[("cache-control", "max-age=100")], &HeaderMap::new());
    remote.write(&key(), seen, &stored);
    settled(&fixture, &remote).await;
    let hash = fixture.hash();
    assert_eq!(fixture.run(&[b"EXISTS", hash.as_bytes()]).await, Value::Int(0));
}

#[tokio::test]
async fn variants_are_kept_apart_and_bounded() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.sidecar().await, fixture.sidecar().await);
    let vary = [PUBLIC, ("vary", "x-tenant")];
    for at in 0..3 {
        let request = fields("x-tenant", &at.to_string());
        write(&one, &fixture.stored(&vary, &request), &request).await;
    }
    for at in 0..3 {
        assert!(found(&other, &fields("x-tenant", &at.to_string())).await.is_some(), "{at}");
    }
    assert!(found(&other, &fields("x-tenant", "3")).await.is_none());
    assert!(found(&other, &HeaderMap::new()).await.is_none());
    let hash = fixture.hash();
    for at in 3..80 {
        let request = fields("x-tenant", &at.to_string());
        write(&one, &fixture.stored(&vary, &request), &request).await;
        let Value::Int(length) = fixture.run(&[b"HLEN", hash.as_bytes()]).await else { panic!() };
        assert!(length <= 33, "{length}");
    }
    // One that does not vary any more is for everybody.
    let none = HeaderMap::new();
    write(&one, &fixture.stored(&[PUBLIC], &none), &none).await;
    assert!(found(&other, &fields("x-tenant", "9")).await.is_some());
}

#[tokio::test]
async fn what_is_void_is_not_read_nor_written_by_fetches_that_began_before() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.sidecar().await, fixture.sidecar().await);
    let none = HeaderMap::new();
    let stored = fixture.stored(&[PUBLIC], &none);
    type Make = fn(&Remote);
    let ways: [Make; 5] = [
        |remote| remote.forget(SHELF),
        |remote| remote.forget(SHELF),
        |remote| remote.forget_service(Some("shop/p:80")),
        |remote| remote.forget_service(Some("shop/p")),
        |remote| remote.forget_service(None),
    ];
    for make_void in ways {
        write(&one, &stored, &none).await;
        let early = seen(&other).await;
        make_void(&one);
        assert!(found(&one, &none).await.is_none(), "void for whoever says so, at once");
        until("void for others", async || found(&other, &none).await.is_none()).await;
        other.write(&key(), early, &stored);
        settled(&fixture, &other).await;
        assert!(found(&other, &none).await.is_none());
    }
    // What concerns others does not concern this.
    write(&one, &stored, &none).await;
    one.forget("shop/p:80/b");
    one.forget_service(Some("shop/q"));
    one.forget_service(Some("shop/p:81"));
    until("forgotten", async || one.tier.pending.first().is_none()).await;
    assert!(found(&other, &none).await.is_some());
}

#[tokio::test]
async fn what_is_lost_there_makes_everything_void() {
    let fixture = Fixture::new().await;
    let remote = fixture.sidecar().await;
    let none = HeaderMap::new();
    write(&remote, &fixture.stored(&[PUBLIC], &none), &none).await;
    let epoch = Keys::new(&fixture.policy).epoch("shop/p");
    fixture.run(&[b"DEL", epoch.as_bytes()]).await;
    assert!(found(&remote, &none).await.is_none());
}

#[tokio::test]
async fn garbage_of_others_is_a_miss_and_is_replaced() {
    let fixture = Fixture::new().await;
    let remote = fixture.sidecar().await;
    let none = HeaderMap::new();
    let stored = fixture.stored(&[PUBLIC], &none);
    let (hash, keys) = (fixture.hash(), Keys::new(&fixture.policy));
    let hash = hash.as_bytes();
    let field = keys::entry_field(&keys::digest(&key(), &Selection::default().to_bytes()));
    let names = keys::names_field(&key());
    let large = vec![b'x'; 1 << 20];
    let epoch = keys.epoch("");
    let rows: [&[&[u8]]; 10] = [
        &[b"HSET", hash, &field, b"garbage"],
        &[b"HSET", hash, &field, b"LENO\x02 of a newer version, of which nobody here knows"],
        &[b"HSET", hash, &field, &large],
        &[b"HSET", hash, b"g", &large],
        &[b"HSET", hash, &names, &large],
        &[b"HSET", hash, &names, b"\x00 no , names *"],
        &[b"SET", hash, b"a string"],
        &[b"RPUSH", hash, b"a list"],
        &[b"SET", epoch.as_bytes(), &large],
        &[b"HSET", epoch.as_bytes(), b"a", b"hash"],
    ];
    for row in rows {
        fixture.run(&[b"DEL", hash]).await;
        fixture.run(&[b"DEL", epoch.as_bytes()]).await;
        fixture.run(row).await;
        assert!(found(&remote, &none).await.is_none(), "{:?}", row[0]);
        write(&remote, &stored, &none).await;
        assert_eq!(&found(&remote, &none).await.unwrap().body[..], b"hello");
        assert_eq!(remote.figures().state, 0);
    }
    // Bytes of our own, under another name.
    let Value::BulkString(good) = fixture.run(&[b"HGET", hash, &field]).await else { panic!() };
    let other = Key { extra: (&b"else"[..]).into(), ..key() };
    let elsewhere = keys::entry_field(&keys::digest(&other, &Selection::default().to_bytes()));
    fixture.run(&[b"HSET", hash, &elsewhere, &good]).await;
    assert!(remote.ask(&other, &none).await.entry.is_none());
    let mut flipped = good;
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fixture.run(&[b"HSET", hash, &field, &flipped]).await;
    assert!(found(&remote, &none).await.is_none());
    assert!(remote.figures().errors >= 4);
}

#[tokio::test]
async fn a_redis_that_hangs_or_is_gone_is_left_alone_and_taken_up_again() {
    let mut fixture = Fixture::with(|policy| {
        policy.redis.as_mut().unwrap().timeout = Duration::from_millis(50);
    })
    .await;
    let remote = fixture.sidecar().await;
    let none = HeaderMap::new();
    let stored = fixture.stored(&[PUBLIC], &none);
    write(&remote, &stored, &none).await;
    fixture.server.signal(rustix::process::Signal::STOP);
    until("given up", async || {
        assert!(found(&remote, &none).await.is_none());
        remote.figures().state != 0
    })
    .await;
    let errors = remote.figures();
    assert!(errors.errors >= u64::from(link::MOST_FAILURES), "{errors:?}");
    // It is not asked at all: nothing is seen, nothing counted.
    assert_eq!(remote.ask(&key(), &none).await.seen, None);
    assert_eq!(remote.figures().misses, errors.misses);
    // A purge is not lost meanwhile.
    remote.forget(SHELF);
    fixture.server.signal(rustix::process::Signal::CONT);
    used(&remote).await;
    until("asked", async || remote.ask(&key(), &none).await.seen.is_some()).await;
    assert!(found(&remote, &none).await.is_none());

    fixture.server.process.kill().unwrap();
    fixture.server.process.wait().unwrap();
    until("gone", async || {
        assert!(found(&remote, &none).await.is_none());
        remote.figures().state != 0
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_a_new_one_read() {
    let fixture = Fixture::new().await;
    let file = fixture.folder.path().join("password");
    let up = async || Link::open(&fixture.server.redis(Some(&file))).await.is_ok();
    until("Redis is up", up).await;
    std::fs::write(&file, "wrong").unwrap();
    let remote = fixture.sidecar_of(&fixture.policy);
    until("refused", async || remote.figures().errors > 0).await;
    assert_eq!(remote.ask(&key(), &HeaderMap::new()).await.seen, None);
    let failure = Link::open(&fixture.server.redis(Some(&file))).await.unwrap_err();
    let text = format!("{failure} {failure:?} {remote:?}");
    assert!(!text.contains("wrong") && text.contains("authentication failed"), "{text}");
    std::fs::write(&file, "secret\n").unwrap();
    used(&remote).await;
    let missing = Link::open(&fixture.server.redis(Some("/nowhere".as_ref()))).await.unwrap_err();
    assert!(missing.to_string().contains("passwordFile /nowhere"), "{missing}");
    let without = Link::open(&fixture.server.redis(None)).await.unwrap_err();
    assert!(without.to_string().contains("NOAUTH"), "{without}");
}

#[tokio::test]
async fn a_redis_that_is_full_is_still_read() {
    let fixture = Fixture::new().await;
    let remote = fixture.sidecar().await;
    let none = HeaderMap::new();
    write(&remote, &fixture.stored(&[PUBLIC], &none), &none).await;
    fixture.run(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    for _ in 0..=link::MOST_FAILURES {
        let before = remote.figures().dropped;
        remote.write(&key(), seen(&remote).await, &fixture.stored(&[PUBLIC], &none));
        until("dropped", async || remote.figures().dropped > before).await;
    }
    assert!(found(&remote, &none).await.is_some());
    assert_eq!(remote.figures().state, 0);
}

#[tokio::test]
async fn who_answers_garbage_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        for answer in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"+PONG\r\n$-5\r\n",
            b"*1000000000\r\n",
            b"$9223372036854775807\r\nx",
            b"+PONG\r\n+OK\r\n+OK\r\n+OK\r\n",
            b"",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut asked).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let mut policy = policy();
    let timeout = Duration::from_millis(50);
    let redis = Redis { address, tls: false, username: None, password_file: None, timeout };
    policy.redis = Some(redis);
    let remote = Remote::new(&Arc::new(policy), None).unwrap();
    remote.start();
    until("all of them", async || {
        assert!(found(&remote, &HeaderMap::new()).await.is_none());
        serving.is_finished()
    })
    .await;
    until("left alone", async || remote.figures().state == 2).await;
}

#[test]
fn ages_are_by_the_clock_of_redis() {
    let at = Duration::from_secs;
    let entry = |written| Entry {
        written: at(written),
        age: at(3),
        stamp: codec::Stamp::default(),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        trailers: None,
        body: Bytes::new(),
    };
    for (written, now, waited, expected) in [
        (100, 100, 0, Some(3)),
        (100, 110, 1, Some(14)),
        // It went back a little.
        (105, 100, 0, Some(3)),
        (106, 100, 0, None),
        (0, u64::MAX, 0, Some(u64::MAX)),
    ] {
        let aged = aged(entry(written), at(now), at(waited)).map(|entry| entry.age.as_secs());
        assert_eq!(aged, expected, "{written} {now}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_soon_is_not_written() {
    let fixture = Fixture::new().await;
    let remote = fixture.sidecar().await;
    let seen = seen(&remote).await;
    fixture.server.signal(rustix::process::Signal::STOP);
    let stored = fixture.stored(&[PUBLIC], &HeaderMap::new());
    for _ in 0..10 * MOST_WAITING {
        remote.write(&key(), seen.clone(), &stored);
    }
    assert!(remote.figures().dropped >= 8 * MOST_WAITING as u64);
    let waiting = remote.tier.waiting.load(Ordering::Relaxed);
    assert!(waiting <= stored.size() as u64 * (MOST_WAITING as u64 + 1), "{waiting}");
    fixture.server.signal(rustix::process::Signal::CONT);
}
