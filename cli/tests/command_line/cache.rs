//! `leno cache` as a process, against a control plane and a sidecar that are processes, too.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::process::{ControlPlane, Sidecar, leno, unused_address};

const PATIENCE: Duration = Duration::from_secs(20);

const SERVICE: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: products, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
";

#[test]
fn a_purge_without_anybody_to_carry_it_out_is_done_and_says_so() {
    let mesh = ControlPlane::start();
    mesh.leno(&["apply", "-f", &mesh.file("service.yaml", SERVICE)]).good();
    let purge = |more: &[&str]| {
        mesh.leno(&[&["cache", "purge", "--service", "shop/products:80"], more].concat())
    };
    let text = purge(&["--path", "/products/7?lang=en"]).good();
    assert!(text.starts_with("0 responses removed at 0 of 0 sidecars\n"), "{text}");
    assert!(text.contains("no sidecar that calls shop/products:80 keeps responses"), "{text}");
    let answer: Value = serde_json::from_str(&purge(&["--tag", "x", "-o", "json"]).good()).unwrap();
    assert_eq!((&answer["proxies"], &answer["removed"]), (&Value::from(0), &Value::from(0)));

    let wrong = purge(&["--prefix", "products"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.errors.contains("prefix: \"products\" must begin with `/`"), "{}", wrong.errors);
    let missing = mesh.leno(&["cache", "purge", "--service", "shop/none"]);
    assert_eq!(missing.code, 1);
    assert!(missing.errors.contains("shop/none"), "{}", missing.errors);
}

#[test]
fn a_sidecar_tells_what_it_keeps() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    let said = leno(&["cache", "stats", "--proxy", &sidecar.admin]);
    assert_eq!((said.code, &*said.output), (0, ""));
    assert!(said.errors.contains("keeps no responses"), "{}", said.errors);
    let json = leno(&["cache", "stats", "--proxy", &sidecar.admin, "-o", "json"]).good();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), serde_json::json!({"caches": []}));
    let nobody = leno(&["cache", "stats", "--proxy", &unused_address().to_string()]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.errors.contains("is a proxy running there?"), "{}", nobody.errors);
}

/// A service whose every answer may be kept, with a tag by its path: `/a/1` has `a`.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let tag = head.split('/').nth(1).unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\
                 Cache-Control: max-age=600\r\nSurrogate-Key: {tag}\r\n\r\nhello"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// What a sidecar says of its cache in its answer to a GET.
fn told(sidecar: &Sidecar, path: &str) -> String {
    let mut stream = TcpStream::connect(&sidecar.outbound).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: products.shop\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix("cache-status: "));
    line.unwrap_or_default().to_owned()
}

/// Asks until the answer comes from memory: resources reach sidecars a moment after they were applied.
fn fill(sidecar: &Sidecar, paths: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    for path in paths {
        while !told(sidecar, path).starts_with("leno; hit") {
            assert!(Instant::now() < deadline, "{path}: {}", told(sidecar, path));
        }
    }
}

#[test]
fn two_sidecars_forget_what_they_are_told_to() {
    let mesh = ControlPlane::start();
    let address = origin();
    let resources = format!(
        "{SERVICE}---
apiVersion: leno.dev/v1alpha1
kind: Workload
metadata: {{name: products-1, namespace: shop}}
spec: {{services: [products], address: {}, ports: {{http: {}}}}}
---
apiVersion: leno.dev/v1alpha1
kind: CachePolicy
metadata: {{name: products, namespace: shop}}
spec: {{targetRefs: [{{group: '', kind: Service, name: products}}]}}
",
        address.ip(),
        address.port()
    );
    let resources = resources.replace("{port: 80,", "{name: http, port: 80,");
    mesh.leno(&["apply", "-f", &mesh.file("mesh.yaml", &resources)]).good();
    let sidecars = [mesh.sidecar("cart-1", "cart"), mesh.sidecar("home-1", "home")];
    let purge = |more: &[&str]| {
        mesh.leno(&[&["cache", "purge", "--service", "shop/products"], more].concat()).good()
    };
    let paths = ["/a/1", "/a/2", "/b/1"];
    sidecars.iter().for_each(|sidecar| fill(sidecar, &paths));
    // Whoever connects later than it began to keep something forgets all of it once.
    let deadline = Instant::now() + PATIENCE;
    while !purge(&["--tag", "none"]).starts_with("0 responses removed at 2 of 2 sidecars\n") {
        assert!(Instant::now() < deadline);
    }
    for (which, removed) in
        [(&["--tag", "a"][..], 4), (&["--path", "/b/1"], 2), (&["--prefix", "/a/"], 4), (&[], 6)]
    {
        sidecars.iter().for_each(|sidecar| fill(sidecar, &paths));
        let said = purge(which);
        assert_eq!(said, format!("{removed} responses removed at 2 of 2 sidecars\n"), "{which:?}");
    }
    for sidecar in &sidecars {
        assert!(told(sidecar, "/b/1").contains("fwd=uri-miss"));
        fill(sidecar, &["/b/1"]);
        let json = leno(&["cache", "stats", "--proxy", &sidecar.admin, "-o", "json"]).good();
        let shown: Value = serde_json::from_str(&json).unwrap();
        let cache = &shown["caches"][0];
        assert_eq!((&cache["policy"], &cache["urls"]), (&"shop/products".into(), &1.into()));
        assert!(cache["purged"].as_u64() >= Some(8), "{cache}");
        let table = leno(&["cache", "stats", "--proxy", &sidecar.admin]).good();
        let row = table.lines().find(|line| line.starts_with("shop/products"));
        assert!(row.is_some_and(|row| row.contains("64.0 MiB")), "{table}");
    }
}
