//! The second tier of a cache: what sidecars share in a real Redis, and that they do without.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use crate::{
    client::{self, Answer},
    mesh::{Mesh, Proxy, at_any_pace, until},
    origin::{Origin, read_request},
};

const PASSWORD: &str = "a-secret-of-redis";
const INSTALL: &str = "cannot be started: apt-get install redis-server redis-tools";

/// One of our own, gone with its data when dropped.
struct Redis {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl Redis {
    /// On a port of its own, and listening: somebody else may get a port between the moment when it is found free and that
    /// when it is used.
    async fn start(tls: bool) -> Self {
        until("Redis to listen", async || {
            let mut redis = Self::try_start(tls);
            let listens = until("Redis to answer or to end", async || {
                let ended = redis.process.try_wait().unwrap().is_some();
                let answers = redis.is_this_one(tls);
                (answers || ended).then_some(answers && !ended)
            });
            let listens = listens.await;
            listens.then_some(redis)
        })
        .await
    }

    /// Whether it is this process that answers at the port.
    fn is_this_one(&self, tls: bool) -> bool {
        let mut words = vec!["INFO", "server"];
        let certificate = self.path("cert.pem");
        if tls {
            words.splice(0..0, ["--tls", "--cacert", &certificate]);
        }
        let own = format!("process_id:{}", self.process.id());
        self.run(&words).lines().any(|line| line.trim_end() == own)
    }

    fn try_start(tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        fs::write(folder.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--requirepass", PASSWORD]);
        let number = port.to_string();
        if tls {
            let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            fs::write(folder.path().join("cert.pem"), certificate.cert.pem()).unwrap();
            let key = certificate.signing_key.serialize_pem();
            fs::write(folder.path().join("key.pem"), key).unwrap();
            command.args(["--port", "0", "--tls-port", &number, "--tls-auth-clients", "no"]);
            command.args(["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"]);
            command.args(["--tls-ca-cert-file", "cert.pem"]);
        } else {
            command.args(["--port", &number]);
        }
        let command = command.current_dir(folder.path()).stdout(Stdio::null());
        let process =
            command.spawn().unwrap_or_else(|error| panic!("redis-server {INSTALL}: {error}"));
        Self { process, port, folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// What it answers to any other client.
    fn run(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["--raw", "--no-auth-warning", "-a", PASSWORD, "-p", &self.port.to_string()])
            .args(words)
            .output()
            .unwrap_or_else(|error| panic!("redis-cli {INSTALL}: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The hashes with responses.
    fn shelves(&self) -> Vec<String> {
        let keys = self.run(&["KEYS", "leno:cache:*:s:*"]);
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Everything that is there.
    fn everything(&self) -> String {
        let mut all = self.run(&["KEYS", "*"]);
        for key in all.clone().lines() {
            all.push_str(&self.run(&["HGETALL", key]));
            all.push_str(&self.run(&["GET", key]));
        }
        all
    }

    async fn sidecar(&self, name: &str, shop: &Shop, tls: bool, password: &str) -> Proxy {
        let host = if tls { "localhost" } else { "127.0.0.1" };
        let mesh = Mesh::default().service("shop", "http", &[shop.origin.address]).yaml(&format!(
            "apiVersion: leno.dev/v1alpha1\nkind: CachePolicy\nmetadata: {{name: shop, namespace: default}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: shop}}]\n  redis: {{address: '{host}:{}', tls: {tls}, \
             timeout: 1s, passwordFile: {password}}}\n",
            self.port
        ));
        let mesh = match tls {
            true => mesh.environment("SSL_CERT_FILE", &self.path("cert.pem")),
            false => mesh,
        };
        mesh.arguments(&["--name", name]).start().await
    }

    /// One that uses it already.
    async fn user(&self, name: &str, shop: &Shop) -> Proxy {
        let proxy = self.sidecar(name, shop, false, &self.path("password")).await;
        proxy.counts("leno_cache_remote_state", &[], 0.0).await;
        proxy
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says how often it was asked; what is behind `/private` is not for everybody.
struct Shop {
    origin: Origin,
    asked: Arc<AtomicUsize>,
}

impl Shop {
    async fn open() -> Self {
        let asked = Arc::<AtomicUsize>::default();
        let counted = asked.clone();
        let origin = Origin::raw(move |mut stream, _| {
            let asked = counted.clone();
            async move {
                while let Some((head, _)) = read_request(&mut stream).await {
                    let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
                    let control = match head.contains("/private") {
                        true => "max-age=600",
                        false => "public, max-age=600",
                    };
                    let body = format!("{} number-{number}", head.lines().next().unwrap_or_default());
                    let length = body.len();
                    let response = format!(
                        "HTTP/1.1 200 OK\r\ncache-control: {control}\r\nage: 5\r\ncontent-length: {length}\r\n\r\n{body}"
                    );
                    if stream.write_all(response.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { origin, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn get(proxy: &Proxy, path: &str) -> Answer {
    let answer = client::get(proxy.outbound, "shop", path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or_default()
}

#[tokio::test]
async fn what_one_sidecar_fetched_another_has_but_only_what_is_everybodys() {
    // Redis is not waited for, so that a machine that stands still looks as if there were none.
    at_any_pace(async |_| what_one_fetched().await).await;
}

async fn what_one_fetched() {
    let (redis, shop) = (Redis::start(false).await, Shop::open().await);
    let (one, other) = (redis.user("one", &shop).await, redis.user("other", &shop).await);
    get(&one, "/a").await;
    until("written", async || (redis.shelves().len() == 1).then_some(())).await;
    let answer = get(&other, "/a").await;
    assert!(answer.text().ends_with("number-1"), "{}", answer.text());
    let told = status(&answer);
    assert!(told.starts_with("leno; hit; ttl=") && told.ends_with("detail=remote"), "{told}");
    let age: u64 = answer.header("age").unwrap().parse().unwrap();
    assert!((5..600).contains(&age), "{age}");
    // From here on it has it itself.
    assert!(!status(&get(&other, "/a").await).contains("remote"));
    assert_eq!(shop.asked(), 1);
    other.counts("leno_cache_remote_hits_total", &[("policy", "default/shop")], 1.0).await;

    assert!(get(&one, "/private/b").await.text().ends_with("number-2"));
    get(&one, "/c").await;
    until("written", async || (redis.shelves().len() == 2).then_some(())).await;
    assert!(get(&other, "/private/b").await.text().ends_with("number-4"));
    let all = redis.everything();
    assert!(all.contains("get /a http/1.1 number-1") && !all.contains("private"), "{all}");
    for proxy in [&one, &other] {
        let shown = proxy.shown().await;
        assert!(!shown.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()));
    }
}

#[tokio::test]
async fn a_change_through_one_sidecar_is_seen_by_others() {
    // Redis is not waited for, so that a machine that stands still looks as if there were none.
    at_any_pace(async |_| a_change().await).await;
}

async fn a_change() {
    let (redis, shop) = (Redis::start(false).await, Shop::open().await);
    let (one, other) = (redis.user("one", &shop).await, redis.user("other", &shop).await);
    get(&one, "/a").await;
    until("written", async || (redis.shelves().len() == 1).then_some(())).await;
    let shelf = redis.shelves().remove(0);
    let changed = client::ask(
        one.outbound,
        "POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(changed.status, 200);
    until("void", async || (!redis.run(&["HGET", &shelf, "g"]).trim().is_empty()).then_some(()))
        .await;
    let answer = get(&other, "/a").await;
    assert!(answer.text().ends_with("number-3") && !status(&answer).contains("hit"));
}

#[tokio::test]
async fn garbage_under_our_keys_changes_nothing() {
    // Redis is not waited for, so that a machine that stands still looks as if there were none.
    at_any_pace(async |_| garbage().await).await;
}

async fn garbage() {
    let (redis, shop) = (Redis::start(false).await, Shop::open().await);
    let one = redis.user("one", &shop).await;
    get(&one, "/a").await;
    until("written", async || (redis.shelves().len() == 1).then_some(())).await;
    let shelf = redis.shelves().remove(0);
    let entries = "for _,f in ipairs(redis.call('HKEYS',KEYS[1])) do redis.call('HSET',KEYS[1],f,ARGV[1]) end";
    for (at, garbage) in [
        &["EVAL", entries, "1", &shelf, "garbage"][..],
        &["EVAL", entries, "1", &shelf, "LENO\u{2}newer"],
        &["SET", &shelf, "a string"],
        &["DEL", &shelf],
    ]
    .into_iter()
    .enumerate()
    {
        redis.run(garbage);
        let other = redis.user("other", &shop).await;
        let answer = get(&other, "/a").await;
        assert!(answer.text().ends_with(&format!("number-{}", at + 2)), "{}", answer.text());
        // What it fetched takes the place of the garbage.
        let good = "get /a http/1.1 number-";
        until("replaced", async || redis.run(&["HVALS", &shelf]).contains(good).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn without_redis_requests_go_on() {
    let (mut redis, shop) = (Redis::start(false).await, Shop::open().await);
    let one = redis.user("one", &shop).await;
    get(&one, "/before").await;
    redis.signal(Signal::STOP);
    let mut count = 0;
    until("the breaker to open", async || {
        count += 1;
        get(&one, &format!("/hangs/{count}")).await;
        (one.metric("leno_cache_remote_state", &[]).await != Some(0.0)).then_some(())
    })
    .await;
    assert!(one.metric("leno_cache_remote_errors_total", &[]).await >= Some(3.0));
    // Also what is kept here, and changes.
    assert!(status(&get(&one, "/before").await).contains("hit"));
    redis.signal(Signal::CONT);
    one.counts("leno_cache_remote_state", &[], 0.0).await;

    redis.process.kill().unwrap();
    redis.process.wait().unwrap();
    until("the breaker to open", async || {
        count += 1;
        get(&one, &format!("/gone/{count}")).await;
        (one.metric("leno_cache_remote_state", &[]).await == Some(2.0)).then_some(())
    })
    .await;
    let errors = one.errors();
    assert!(errors.contains("going on without it"), "{errors}");
    assert!(!errors.contains("panic"), "{errors}");
}

#[tokio::test]
async fn a_wrong_password_is_as_no_redis() {
    let (redis, shop) = (Redis::start(false).await, Shop::open().await);
    let file = redis.path("wrong");
    fs::write(Path::new(&file), "not-the-password").unwrap();
    let one = redis.sidecar("one", &shop, false, &file).await;
    until("refused", async || {
        get(&one, "/a").await;
        (one.metric("leno_cache_remote_errors_total", &[]).await >= Some(1.0)).then_some(())
    })
    .await;
    let shown = String::from_utf8_lossy(&one.shown().await).into_owned() + &one.errors();
    assert!(!shown.contains("not-the-password"), "{shown}");
    // Somebody puts it right.
    fs::write(Path::new(&file), PASSWORD).unwrap();
    one.counts("leno_cache_remote_state", &[], 0.0).await;
    get(&one, "/b").await;
    until("written", async || (redis.shelves().len() == 1).then_some(())).await;
}

#[tokio::test]
async fn over_tls() {
    let (redis, shop) = (Redis::start(true).await, Shop::open().await);
    let password = redis.path("password");
    let (one, other) = (
        redis.sidecar("one", &shop, true, &password).await,
        redis.sidecar("other", &shop, true, &password).await,
    );
    for proxy in [&one, &other] {
        proxy.counts("leno_cache_remote_state", &[], 0.0).await;
    }
    let mut count = 0;
    until("shared", async || {
        count += 1;
        let path = format!("/{count}");
        get(&one, &path).await;
        status(&get(&other, &path).await).contains("remote").then_some(())
    })
    .await;
}
