//! Who may do what, tried by callers who look for a way around it (FAULTS 13, 42).

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    certificates::{self, Authority, Issued},
    client::{self, Wire},
    mesh::{Mesh, PATIENCE, Proxy, until},
    mtls::{Pair, authorization, echo_bytes, mode, pair, refused, side, tunnel},
    origin::Origin,
};

const NAME: &str = "80.shop.default.leno";
const DENIED: &str = "access denied\n";

/// One request under mutual TLS, as the caller's bytes.
async fn say(callee: &Proxy, issued: &Issued, request: &str) -> client::Answer {
    let mut stream =
        certificates::connect(callee.inbound, NAME, "leno-http/1.1", Some(issued)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("an answer ends");
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{request}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    client::Answer { status, body: body.into(), ..client::Answer::default() }
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{fields}\r\n")
}

/// Statuses of the same requests over HTTP/2.
async fn say_http2(callee: &Proxy, issued: &Issued, paths: &[&str]) -> Vec<u16> {
    let stream =
        certificates::connect(callee.inbound, NAME, "leno-h2", Some(issued)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = Vec::new();
    for path in paths {
        let request = Request::get(format!("http://shop{path}")).body(()).unwrap();
        statuses.push(crate::http2::ask(&sender, request, b"").await.status().as_u16());
    }
    statuses
}

#[tokio::test]
async fn no_spelling_of_a_path_leads_past_a_denial() {
    let shop = Origin::echo("shop").await;
    let deny = authorization(
        "no-admin",
        "{action: DENY, rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]}",
    );
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &shop)], &[&deny]).await;
    let issued = authority.issue("caller");
    let denied = [
        "/admin",
        "/admin/",
        "/admin/users",
        "/admin?x=/open",
        "/admin?",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2E/admin",
        "/x/.%2e/./admin",
        "/admin/..%2fadmin",
        "//admin",
        "///admin//users",
        "/x/..//admin",
        "/%61dmin",
        "/%61%64%6D%69%6e/users",
        "/%2fadmin",
        "/admin%2Fusers",
        "/admin%2f",
        "/x%2f..%2fadmin",
        "/x%2F%2e%2e%2Fadmin/users",
        "/x/..%5cadmin",
    ];
    for path in denied {
        let answer = say(&callee, &issued, &get(path, "")).await;
        assert_eq!((answer.status, answer.text().as_str()), (403, DENIED), "{path}");
    }
    for request in [
        get("http://shop/admin", ""),
        get("http://shop:80//admin", ""),
        get("/admin#/open", ""),
        get("/admin", "x-original-url: /open\r\nx-rewrite-url: /open\r\n"),
        get("/admin", "x-forwarded-prefix: /open\r\n").replace("GET", "HEAD"),
        get("/admin", "").replace("GET", "get"),
        get("/admin", "").replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let answer = say(&callee, &issued, &request).await;
        assert_eq!(answer.status, 403, "{request}");
    }
    for status in say_http2(&callee, &issued, &denied).await {
        assert_eq!(status, 403);
    }
    for path in ["/x/../../admin", "/admin\\", "/%00admin", "/\\admin"] {
        assert_eq!(say(&callee, &issued, &get(path, "")).await.status, 400, "{path}");
    }
    assert!(shop.requests().is_empty(), "{:?}", shop.requests());
    // What is not the same is not denied, and arrives as it was sent.
    let open = ["/", "/administrator", "/ADMIN", "/x?y=/admin", "/a%20b//c%2fd", "/x/admin"];
    for path in open {
        let answer = say(&callee, &issued, &get(path, "")).await;
        assert_eq!((answer.status, &answer.echo()["path"]), (200, &path.into()));
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_leads_into_what_is_allowed() {
    let shop = Origin::echo("shop").await;
    let allow = authorization(
        "open",
        "{action: ALLOW, rules: [{to: [{operation: {methods: [GET, POST], paths: [/open/*, /a%20b]}}]}]}",
    );
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &shop)], &[&allow]).await;
    let issued = authority.issue("caller");
    for path in [
        "/open",
        "/open/../admin",
        "/open/%2e%2e/admin",
        "/open/..%2fadmin",
        "/open/%2e%2e%2Fadmin",
        "/open/..%5cadmin",
        "/open/x%2f..%2f..%2fadmin",
        "/OPEN/x",
    ] {
        assert_eq!(say(&callee, &issued, &get(path, "")).await.status, 403, "{path}");
    }
    // A method is what the request line says; what frameworks make of fields is the application's affair.
    let overridden =
        "x-http-method-override: GET\r\nx-http-method: GET\r\nx-method-override: GET\r\n";
    for method in ["DELETE", "get", "PATCH", "PROPFIND", "TRACE"] {
        let request = get("/open/x", overridden).replace("GET /", &format!("{method} /"));
        assert_eq!(say(&callee, &issued, &request).await.status, 403, "{method}");
    }
    assert!(shop.requests().is_empty());
    for path in ["/open/", "/open/x//y", "/open/x%2fy", "/open/%78", "/a%20b"] {
        assert_eq!(say(&callee, &issued, &get(path, "")).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn hosts_and_fields_are_read_as_the_application_reads_them() {
    let shop = Origin::echo("shop").await;
    let deny = authorization(
        "hosts",
        "{action: DENY, rules: [{to: [{operation: {hosts: [secret.example, '*.secret.example']}}]}, \
         {when: [{key: 'request.headers[x-role]', values: [admin]}]}]}",
    );
    let Pair { callee, authority, .. } = pair(&[("shop", "http", &shop)], &[&deny]).await;
    let issued = authority.issue("caller");
    let close = "Connection: close\r\n\r\n";
    for (head, status) in [
        ("GET / HTTP/1.1\r\nHost: secret.example\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: SECRET.example:8080\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: secret.example.\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: a.Secret.Example\r\n", 403),
        ("GET http://secret.example/ HTTP/1.1\r\nHost: open\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: open\r\nHost: secret.example\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a@secret.example\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: open\r\nX-Role: admin\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: open\r\nX-Role: user\r\nx-role: admin\r\n", 403),
        ("GET / HTTP/1.1\r\nHost: open\r\nX-Role: user\r\n", 200),
    ] {
        let answer = say(&callee, &issued, &format!("{head}{close}")).await;
        assert_eq!(answer.status, status, "{head}");
    }
    // Of two hosts the one that was decided on is the one that arrives (RFC 9112 section 3.2.2).
    let head = "GET http://open/ HTTP/1.1\r\nHost: secret.example\r\n";
    let answer = say(&callee, &issued, &format!("{head}{close}")).await;
    assert!(answer.status == 400 || answer.echo()["headers"]["host"] == json!(["open"]));
    assert!(shop.requests().len() <= 2);
}

#[tokio::test]
async fn nobody_is_who_only_a_field_says() {
    const CALLER: &str = "cluster.local/ns/default/sa/caller";
    let (shop, store) = (Origin::echo("shop").await, echo_bytes(b"in\n").await);
    let shops = "targetRefs: [{kind: Service, name: shop}]";
    let policies = [
        mode("PERMISSIVE"),
        authorization(
            "callers",
            &format!(
                "{{{shops}, action: ALLOW, rules: [{{from: [{{source: {{principals: [{CALLER}]}}}}]}}, \
                 {{from: [{{source: {{namespaces: [friends]}}}}], to: [{{operation: {{paths: [/friends]}}}}]}}]}}"
            ),
        ),
        authorization(
            "nobody",
            "{targetRefs: [{kind: Service, name: store}], action: DENY, \
             rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
        ),
    ];
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let services = [("shop", "http", &shop), ("store", "auto", &store)];
    let Pair { caller, callee, authority } = pair(&services, &policies).await;
    let forged = format!(
        "x-forwarded-client-cert: By=spiffe://cluster.local/ns/default/sa/callee;URI=spiffe://{CALLER}\r\n\
         x-leno-destination: default/shop:80\r\nx-forwarded-for: 127.0.0.1\r\n"
    );
    // From outside the mesh, in plain.
    for fields in ["", &*forged] {
        let answer = client::get_with(callee.inbound, "shop", "/", fields).await;
        assert_eq!((answer.status, answer.text().as_str()), (403, DENIED));
    }
    // From inside, by somebody else.
    let other = authority.issue("other");
    let lookalikes = ["caller2", "calle", "other/ns/default/sa/caller"];
    let lookalikes = lookalikes.map(|account| authority.issue(account));
    for fields in ["", &*forged] {
        assert_eq!(say(&callee, &other, &get("/", fields)).await.status, 403);
        assert_eq!(say(&callee, &other, &get("/friends", fields)).await.status, 403);
    }
    for issued in &lookalikes[..2] {
        assert_eq!(say(&callee, issued, &get("/", "")).await.status, 403);
    }
    let third = certificates::connect(callee.inbound, NAME, "leno-http/1.1", Some(&lookalikes[2]));
    let mut third = third.await.unwrap();
    assert!(!third.read(&mut [0]).await.is_ok_and(|read| read > 0), "no such identity");
    let friend = authority.issue_to("spiffe://cluster.local/ns/friends/sa/any");
    assert_eq!(say(&callee, &friend, &get("/friends", "")).await.status, 200);
    assert_eq!(say(&callee, &friend, &get("/", "")).await.status, 403);
    // The right one, whatever else it says.
    let own = say(&callee, &authority.issue("caller"), &get("/", &forged)).await.echo();
    let certificate =
        format!("By=spiffe://cluster.local/ns/default/sa/callee;URI=spiffe://{CALLER}");
    assert_eq!(own["headers"]["x-forwarded-client-cert"], json!([certificate]));
    assert!(own["headers"].get("x-leno-destination").is_none());
    // Ports that speak something else are the same: no certificate, no connection.
    let mut wire = Wire::connect(callee.inbound).await;
    wire.send("\0plain").await;
    assert!(wire.is_closed().await);
    let mut wire = tunnel(caller.outbound, "store").await;
    assert_eq!(wire.exactly(3).await.unwrap(), b"in\n");
    refused(&callee, "AD", 1.0).await;
    assert_eq!(shop.requests().len(), 2);
}

/// Trailers pass, but say nothing about who calls either.
#[tokio::test]
async fn nobody_is_who_only_a_trailer_says() {
    let orders = Origin::echo_http2("orders").await;
    let Pair { callee, authority, .. } = pair(&[("shop", "http2", &orders)], &[]).await;
    let issued = authority.issue("other");
    let stream =
        certificates::connect(callee.inbound, NAME, "leno-h2", Some(&issued)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post("http://shop/").body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    let mut trailers = http::HeaderMap::new();
    let forged = "By=x;URI=spiffe://cluster.local/ns/default/sa/caller";
    trailers.insert("x-forwarded-client-cert", forged.parse().unwrap());
    trailers.insert("x-checksum", "1".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    assert_eq!(orders.requests()[0]["trailers"], json!({"x-checksum": "1"}));
}

/// Denied upgrades are no tunnels, and gRPC is told in its own words, without ours.
#[tokio::test]
async fn denials_in_every_protocol() {
    let shop = Origin::echo("shop").await;
    let policies = [
        authorization(
            "deny",
            "{action: DENY, rules: [{to: [{operation: {paths: [/both, /deny]}}]}]}",
        ),
        authorization(
            "allow",
            "{action: ALLOW, rules: [{to: [{operation: {paths: [/both, /allow, /seen]}}]}]}",
        ),
        authorization(
            "audit",
            "{action: AUDIT, rules: [{to: [{operation: {paths: [/seen, /deny]}}]}]}",
        ),
    ];
    let policies: Vec<&str> = policies.iter().map(String::as_str).collect();
    let Pair { caller, callee, authority } = pair(&[("shop", "http", &shop)], &policies).await;
    let issued = authority.issue("caller");
    for (path, status) in
        [("/both", 403), ("/deny", 403), ("/other", 403), ("/allow", 200), ("/seen", 200)]
    {
        assert_eq!(say(&callee, &issued, &get(path, "")).await.status, status, "{path}");
    }
    let log = callee.access_log(5).await;
    let audited: Vec<&Value> = log.iter().map(|line| &line["audit"]).collect();
    assert_eq!(audited[4], "default/audit");
    assert!(audited[..4].iter().all(|audit| **audit != "default/audit"), "{audited:?}");
    let mut wire = Wire::connect(caller.outbound).await;
    let upgrade =
        "GET /deny HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(wire.ask(upgrade).await.status, 403);
    // These are not the bytes of a tunnel, but of a next request, which they are not.
    wire.send("\x01\x02tunnelled\r\n\r\n").await;
    let rest = wire.rest().await;
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 400"));
    let answer =
        client::get_with(caller.outbound, "shop", "/deny", "content-type: application/grpc\r\n")
            .await;
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("7")));
    assert_eq!(answer.header("grpc-message"), Some("access denied"));
    assert_eq!(shop.requests().len(), 2);
}

/// The time in so many seconds, as tokens state it.
pub fn in_seconds(seconds: i64) -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap() + seconds
}

/// An issuer of tokens.
pub struct Issuer {
    key: KeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    pub fn jwks(&self, kid: &str) -> Value {
        let point = self.key.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": kid, "x": text(x), "y": text(y)}]})
    }

    pub fn token(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::ES256) };
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }

    /// What says it was signed with the public key as the secret.
    fn confused(&self, claims: &Value) -> String {
        let header = Header { kid: Some("a".to_owned()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(self.key.public_key_raw());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }
}

fn unsigned(claims: &Value) -> String {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", text(&json!({"alg": "none", "kid": "a"})), text(claims))
}

#[tokio::test]
async fn only_good_tokens_count() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let shop = Origin::echo("shop").await;
    let tokens = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: RequestAuthentication\n\
         metadata: {{name: tokens, namespace: default}}\n\
         spec: {{jwtRules: [{{issuer: me, audiences: [shop], fromParams: [token], \
         fromHeaders: [{{name: Authorization, prefix: 'Bearer '}}], \
         outputClaimToHeaders: [{{header: x-user, claim: sub}}], jwks: '{}'}}]}}",
        issuer.jwks("a")
    );
    let ask_for = authorization(
        "users",
        "{action: ALLOW, rules: [{from: [{source: {requestPrincipals: [me/ann]}}], \
         when: [{key: 'request.auth.claims[role]', values: [buyer]}]}]}",
    );
    let services = [("shop", "http", &shop)];
    let Pair { caller, callee: _callee, .. } = pair(&services, &[&tokens, &ask_for]).await;
    let now = in_seconds(0);
    let claims = |changes: Value| {
        let mut claims =
            json!({"iss": "me", "aud": "shop", "sub": "ann", "role": "buyer", "exp": now + 600});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        claims
    };
    let good = issuer.token("a", &claims(json!({})));
    let mut tampered: Vec<&str> = good.split('.').collect();
    let other = issuer.token("a", &claims(json!({"sub": "bob"})));
    tampered[1] = other.split('.').nth(1).unwrap();
    let rows = [
        (good.clone(), 200),
        (issuer.token("a", &claims(json!({"exp": now - 30}))), 200), // within the leeway
        (issuer.token("a", &claims(json!({"aud": ["x", "shop"]}))), 200),
        (issuer.token("a", &claims(json!({"exp": now - 3600}))), 401),
        (issuer.token("a", &claims(json!({"nbf": now + 3600}))), 401),
        (issuer.token("a", &claims(json!({"aud": "other"}))), 401),
        (issuer.token("a", &claims(json!({"iss": "you"}))), 401),
        (issuer.token("b", &claims(json!({}))), 401),
        (stranger.token("a", &claims(json!({}))), 401),
        (issuer.confused(&claims(json!({}))), 401),
        (unsigned(&claims(json!({}))), 401),
        (tampered.join("."), 401),
        ("garbage".to_owned(), 401),
        (other.clone(), 403),
        (issuer.token("a", &claims(json!({"role": "guest"}))), 403),
        (issuer.token("a", &claims(json!({"role": {"buyer": true}}))), 403),
    ];
    for (at, (token, status)) in rows.iter().enumerate() {
        let in_header = format!("authorization: Bearer {token}\r\nx-user: root\r\n");
        let answer = client::get_with(caller.outbound, "shop", "/", &in_header).await;
        assert_eq!(answer.status, *status, "row {at}");
        let in_query = client::get(caller.outbound, "shop", &format!("/?a=1&token={token}")).await;
        assert_eq!(in_query.status, *status, "row {at}, in the query");
        match status {
            200 => {
                assert_eq!(answer.echo()["headers"]["x-user"], json!(["ann"]));
                assert_eq!(in_query.echo()["path"], "/?a=1");
                assert!(!answer.text().contains(token.as_str()));
            }
            401 => assert_eq!(answer.text(), "authentication required\n"),
            _ => assert_eq!(answer.text(), DENIED),
        }
    }
    for (fields, status) in [
        (String::new(), 403),
        ("x-user: ann\r\n".to_owned(), 403),
        (format!("authorization: bEARER   {good}\r\n"), 200),
        (format!("authorization: Bearer {good}\r\nauthorization: Bearer {}\r\n", rows[3].0), 401),
        (format!("authorization: Bearer {good}\r\nauthorization: Bearer {other}\r\n"), 200),
        (format!("authorization: Bearer {good}, Bearer {other}\r\n"), 401),
        (format!("authorization: Bearer {}\r\n", "e".repeat(40_000)), 401),
        (format!("authorization: Bearer {}\r\n", "e".repeat(1_000_000)), 431),
    ] {
        let answer = client::get_with(caller.outbound, "shop", "/", &fields).await;
        assert_eq!(answer.status, status, "{}", &fields[..fields.len().min(60)]);
    }
}

/// Callers that ask all the time until told to stop; each answer is judged with whether the change was in force before
/// the request was sent.
struct Load {
    stop: Arc<AtomicBool>,
    in_force: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// `callers` at `address`; answers must be `before`, and `after` once the change is in force. A closed connection
    /// is made anew.
    fn begin(
        address: std::net::SocketAddr,
        callers: usize,
        before: u16,
        after: &'static [u16],
    ) -> Self {
        let load = Self {
            stop: Arc::default(),
            in_force: Arc::default(),
            asked: Arc::default(),
            callers: Vec::new(),
        };
        let callers = (0..callers).map(|_| {
            let (stop, in_force) = (load.stop.clone(), load.in_force.clone());
            let asked = load.asked.clone();
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    let changed = in_force.load(Ordering::SeqCst);
                    let sent = wire.try_send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
                    let answer = if sent { wire.try_answer().await.ok() } else { None };
                    let status = answer.map_or(0, |answer| answer.status);
                    let expected = if changed {
                        after.contains(&status)
                    } else {
                        status == before || after.contains(&status)
                    };
                    assert!(expected, "{status}, changed: {changed}");
                    if status == 0 {
                        wire = Wire::connect(address).await;
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let callers = callers.collect();
        Self { callers, ..load }
    }

    async fn some_more(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        until("more requests", async || {
            (self.asked.load(Ordering::Relaxed) >= before + 40).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
    }
}

/// Once a change is acknowledged no request that is sent slips through on any worker or connection.
#[tokio::test]
async fn a_denial_holds_from_the_moment_it_is_acknowledged() {
    let shop = Origin::echo("shop").await;
    let services = [("shop", "http", &shop)];
    let authority = Authority::new();
    let open = side(&services, &[], None);
    let text = open.text().to_owned();
    let callee = open
        .arguments(&["--name", "callee", "--workers", "2"])
        .identity(&authority, "callee")
        .start()
        .await;
    let caller = side(&services, &[], Some(&callee)).arguments(&["--workers", "2"]);
    let caller = caller.identity(&authority, "caller").start().await;
    let nothing = authorization("nothing", "{action: ALLOW}");
    let closed = side(&services, &[&nothing], None).text().to_owned();
    for _ in 0..3 {
        let load = Load::begin(caller.outbound, 6, 200, &[403]);
        load.some_more().await;
        callee.rewrite(&closed);
        until("the policy", async || {
            callee.page("/listeners?format=json").await.contains("default/nothing").then_some(())
        })
        .await;
        load.in_force.store(true, Ordering::SeqCst);
        load.some_more().await;
        load.end().await;
        let load = Load::begin(caller.outbound, 2, 403, &[200]);
        callee.rewrite(&text);
        until("the policy to go", async || {
            (!callee.page("/listeners?format=json").await.contains("default/nothing")).then_some(())
        })
        .await;
        load.in_force.store(true, Ordering::SeqCst);
        load.some_more().await;
        load.end().await;
    }
}

/// From PERMISSIVE to STRICT: plain callers are out from then on, the mesh does not notice.
#[tokio::test]
async fn strictness_under_load() {
    let shop = Origin::echo("shop").await;
    let services = [("shop", "http", &shop)];
    let Pair { caller, callee, .. } = pair(&services, &[&mode("PERMISSIVE")]).await;
    let mesh = Load::begin(caller.outbound, 4, 200, &[200]);
    let plain = Load::begin(callee.inbound, 4, 200, &[403, 0]);
    mesh.some_more().await;
    plain.some_more().await;
    callee.rewrite(side(&services, &[&mode("STRICT")], None).text());
    until("the new mode", async || {
        callee.page("/listeners").await.contains("STRICT").then_some(())
    })
    .await;
    plain.in_force.store(true, Ordering::SeqCst);
    plain.some_more().await;
    mesh.some_more().await;
    plain.end().await;
    mesh.end().await;
}

#[tokio::test]
async fn a_denial_for_a_part_of_a_service_holds_at_its_instances_however_they_are_called() {
    let shop = Origin::echo("shop").await;
    let part = "apiVersion: leno.dev/v1alpha1\nkind: Service\nmetadata: {name: shop-v2, namespace: default}\n\
                spec: {ports: [{name: main, port: 80, protocol: http}], subset: {of: shop, matchLabels: {version: v2}}}";
    let deny = authorization(
        "no-admin",
        "{targetRefs: [{kind: Service, name: shop-v2}], action: DENY, \
         rules: [{to: [{operation: {paths: [/admin]}}]}]}",
    );
    for (version, status) in [("v2", 403), ("v1", 200)] {
        let authority = Authority::new();
        let mesh = |sidecar: String| {
            let workload = format!(
                "apiVersion: leno.dev/v1alpha1\nkind: Workload\n\
                 metadata: {{name: callee, namespace: default, labels: {{version: {version}}}}}\n\
                 spec: {{services: [shop], address: 127.0.0.1, serviceAccount: callee, ports: {{main: {}}}{sidecar}}}",
                shop.address.port()
            );
            let mesh = Mesh::default().service("shop", "http", &[]);
            mesh.yaml(part).yaml(&deny).yaml(&workload)
        };
        let callee = mesh(String::new()).arguments(&["--name", "callee"]);
        let callee = callee.identity(&authority, "callee").start().await;
        let sidecar = format!(", sidecar: {{port: {}, mutualTls: true}}", callee.inbound.port());
        let caller = mesh(sidecar).identity(&authority, "caller").start().await;
        let hosts = if version == "v2" { &["shop", "shop-v2"][..] } else { &["shop"] };
        for host in hosts {
            let answer = client::get(caller.outbound, host, "/admin").await;
            assert_eq!(answer.status, status, "{version} {host}: {}", answer.text());
            assert_eq!(client::get(caller.outbound, host, "/open").await.status, 200, "{host}");
        }
    }
}
