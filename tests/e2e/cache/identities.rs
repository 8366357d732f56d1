//! Whose answers they are.

use super::{
    assert_hit, policy, told,
    upstream::{FRESH, PUBLIC, Upstream, path, response},
};
use crate::{
    certificates::Authority,
    client,
    mesh::{Mesh, until},
    mtls::{mode, side},
    origin::Origin,
};

/// The credentials of a sidecar are replaced by those of another workload: what was fetched for the first is not the
/// second's, except what the origin calls public.
#[tokio::test]
async fn another_identity_gets_nothing_of_the_former_one() {
    let application = Origin::raw(|mut stream, number| async move {
        use tokio::io::AsyncWriteExt as _;
        while let Some((head, _)) = crate::origin::read_request(&mut stream).await {
            let fields = if path(&head) == "/public" { PUBLIC } else { FRESH };
            let who = head.split("sa/").find_map(|text| {
                ["first", "second"].into_iter().find(|name| text.starts_with(name))
            });
            let body = format!("{} by {number}", who.unwrap_or("nobody"));
            if stream.write_all(response(fields, &body).as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let authority = Authority::new();
    let services = [("shop", "http", &application)];
    let callee = side(&services, &[&mode("STRICT")], None)
        .arguments(&["--name", "callee"])
        .identity(&authority, "callee")
        .start()
        .await;
    let flags = authority.flags_for("caller", &authority.issue("first"));
    let caller: Mesh = side(&services, &[&policy("")], Some(&callee));
    let caller =
        caller.arguments(&flags.iter().map(String::as_str).collect::<Vec<_>>()).start().await;
    let get = async |path: &str| client::get(caller.outbound, "shop", path).await;
    for path in ["/", "/public"] {
        let first = get(path).await;
        assert!(first.text().starts_with("first"), "{}", first.text());
        assert_hit(&get(path).await, &first.text());
    }
    let public = get("/public").await.text();
    // The same files, for another workload.
    authority.flags_for("caller", &authority.issue("second"));
    until("the other identity", async || {
        let shown = caller.json("/certs").await;
        shown["id"].as_str().unwrap().ends_with("sa/second").then_some(())
    })
    .await;
    let answer = get("/").await;
    assert!(
        told(&answer).starts_with("leno; fwd=uri-miss"),
        "{}: {}",
        told(&answer),
        answer.text()
    );
    assert!(!answer.text().starts_with("first"), "{}", answer.text());
    assert_hit(&get("/").await, &answer.text());
    assert_hit(&get("/public").await, &public);
}

/// Without certificates everybody behind the sidecar is one and the same.
#[tokio::test]
async fn without_identities_there_is_one_audience() {
    let upstream = Upstream::numbered(FRESH).await;
    let proxy = super::proxy(&upstream, "").await;
    super::get(&proxy, "/").await;
    assert_hit(&super::get(&proxy, "/").await, "1");
}
