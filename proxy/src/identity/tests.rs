//! Sources of identities, with real files and sockets.

mod control_plane;
mod files;
mod server;
mod workload_api;

use std::time::Duration;

use prometheus::Registry;

use super::*;
use crate::tls::fixture::{Authority, Wanted, id};

/// What happens is waited for, not slept for; it may take this long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn families() -> Families {
    Families::register(Registry::new()).unwrap()
}

fn unix_now() -> i64 {
    i64::try_from(now().as_secs()).unwrap()
}

/// A certificate for the real time, unlike those of the TLS tests.
fn wanted(uri: &str, seconds: i64) -> Wanted {
    Wanted { not_before: unix_now() - 60, not_after: unix_now() + seconds, ..Wanted::id(uri) }
}

fn spiffe(account: &str) -> String {
    id("shop", account).to_string()
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Waits until `done` says so; it is asked again whenever a little time has passed.
async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

fn credentials(root: &Authority, seconds: i64) -> Credentials {
    let material = root.material_of(&wanted(&spiffe("orders"), seconds));
    Credentials::new(material, None).unwrap()
}

#[test]
fn without_a_source_there_is_nothing() {
    let identity = Identity::none();
    assert!(!identity.is_expected() && identity.current().is_none());
    assert!(identity.warning().is_none() && identity.trust_domain().is_none());
    let status = serde_json::to_value(identity.status()).unwrap();
    assert_eq!(status["source"], "none");
    assert_eq!(status["id"], serde_json::Value::Null);
}

#[test]
fn what_is_about_to_expire_is_shouted_about() {
    let root = Authority::new("root");
    let identity = Identity::new(Some("files"), None);
    assert!(identity.warning().is_none(), "not expected yet");
    identity.renewed(credentials(&root, 1000), None);
    assert!(identity.warning().is_none());
    let life = |received: i64, not_after: i64| {
        let received = Duration::from_secs((unix_now() + received).try_into().unwrap());
        identity.state().life = Some(Life::new(received, unix_now() + not_after));
    };
    life(-900, 100);
    let warning = identity.warning().unwrap();
    assert!(warning.starts_with("the certificate expires in "), "{warning}");
    identity.failed("the authority is away".to_owned());
    life(-2000, -1000);
    assert_eq!(identity.warning().unwrap(), "the certificate has expired: the authority is away");
    let now = now();
    let mut state = identity.state();
    assert!(state.remind(now));
    assert!(!state.remind(now + Duration::from_secs(59)));
    assert!(state.remind(now + Duration::from_secs(61)));
    assert!(state.remind(now), "the clock was set back");
}

#[test]
fn the_status_tells_what_is_in_use() {
    let root = Authority::new("root");
    let identity = Identity::new(Some("files"), None);
    let ours = credentials(&root, 200_000);
    let serial = ours.serial().to_owned();
    identity.renewed(ours, None);
    identity.failed("no luck".to_owned());
    let status = serde_json::to_value(identity.status()).unwrap();
    assert_eq!(status["id"], spiffe("orders"));
    assert_eq!(status["serial"], serial);
    assert_eq!(status["days_until_expiration"], 2);
    assert_eq!(status["renewals"], 1);
    assert_eq!(status["last_error"], "no luck");
    assert_eq!(status["roots"][0]["subject"], "CN=root");
    assert_eq!(
        status["roots"][0]["fingerprint"],
        crate::tls::credentials::fingerprint(&root.certificate)
    );
}
