//! Keys and tokens are in nothing that a proxy shows or leaves behind, however much it is told to say.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::PrivateKeyDer;

use crate::{
    authorization::{Issuer, in_seconds},
    certificates::{self, Authority},
    client,
    control_plane::ControlPlane,
    mesh::{Mesh, Proxy, until},
    mtls::side,
    origin::Origin,
};

/// A secret, and what it could be hidden as.
fn guises(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let debug = format!("{secret:?}");
    let listed = debug.trim_matches(['[', ']']).as_bytes().to_vec();
    vec![secret.to_vec(), hex.into_bytes(), STANDARD.encode(secret).into_bytes(), listed]
}

pub fn assert_hidden(what: &str, shown: &[u8], secrets: &[Vec<u8>]) {
    // A character a byte: the search in text is a fast one, also where tests are not optimised.
    let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let shown = text(shown);
    for secret in secrets.iter().flat_map(|secret| guises(secret)) {
        let at = shown.find(&text(&secret));
        let around = |at: usize| shown[..at].lines().last().unwrap_or_default().to_owned();
        assert!(at.is_none(), "{what} shows a secret after {:?}", at.map(around));
    }
}

fn trace(mesh: Mesh, name: &str) -> Mesh {
    mesh.arguments(&["--name", name, "--log", "trace"])
}

/// The parts of a key that no certificate has: the private scalar, and its lines in a PEM file.
fn of_key(issued: &certificates::Issued) -> Vec<Vec<u8>> {
    let PrivateKeyDer::Pkcs8(der) = issued.private_key() else { panic!("not PKCS#8") };
    // RFC 5208 and RFC 5915: the scalar is the octet string of 32 bytes after `04 20`.
    let der = der.secret_pkcs8_der();
    let at = der.windows(2).position(|two| two == [4, 32]).unwrap() + 2;
    let pem = issued.key.serialize_pem();
    let lines = pem.lines().filter(|line| line.len() == 64).take(1);
    std::iter::once(der[at..at + 32].to_vec())
        .chain(lines.map(|line| line.as_bytes().to_vec()))
        .chain([b"PRIVATE KEY".to_vec()])
        .collect()
}

#[tokio::test]
async fn keys_and_tokens_of_a_mesh_in_files() {
    let (shop, orders) = (Origin::echo("shop").await, Origin::echo_http2("orders").await);
    let issuer = Issuer::new();
    let tokens = format!(
        "apiVersion: leno.dev/v1alpha1\nkind: RequestAuthentication\n\
         metadata: {{name: tokens, namespace: default}}\n\
         spec: {{jwtRules: [{{issuer: me, fromParams: [token], \
         fromHeaders: [{{name: Authorization, prefix: 'Bearer '}}], jwks: '{}'}}, \
         {{issuer: you, fromHeaders: [{{name: x-token}}], jwks: '{}'}}]}}",
        issuer.jwks("a"),
        Issuer::new().jwks("b")
    );
    let services = [("shop", "http", &shop), ("orders", "http2", &orders)];
    let authority = Authority::new();
    let (of_callee, of_caller) = (authority.issue("callee"), authority.issue("caller"));
    let with = |mesh: Mesh, name: &str, issued| {
        let flags = authority.flags_for(name, issued);
        trace(mesh, name).arguments(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let callee = with(side(&services, &[&tokens], None), "callee", &of_callee).start().await;
    let caller = side(&services, &[&tokens], Some(&callee));
    let caller = with(caller, "caller", &of_caller).start().await;
    let token = |seconds: i64| {
        let claims = serde_json::json!({"iss": "me", "sub": "ann", "exp": in_seconds(seconds)});
        issuer.token("a", &claims)
    };
    let (good, expired) = (token(600), token(-3600));
    for host in ["shop", "orders"] {
        for (token, status) in
            [(&good, 200), (&expired, 401), (&"eyJnonsense.x.y-secret".to_owned(), 401)]
        {
            for fields in [
                format!("authorization: Bearer {token}\r\n"),
                format!("AUTHORIZATION: bearer  {token}\r\ncookie: token={token}\r\n"),
            ] {
                let answer = client::get_with(caller.outbound, host, "/", &fields).await;
                assert_eq!(answer.status, status);
            }
            let answer = client::get(caller.outbound, host, &format!("/?a=b&token={token}")).await;
            assert_eq!(answer.status, status);
        }
    }
    callee.access_log(18).await;
    let signature = |token: &str| token.rsplit('.').next().unwrap().as_bytes().to_vec();
    let tokens = [signature(&good), signature(&expired), b"y-secret".to_vec()];
    let keys = [of_key(&of_callee), of_key(&of_caller)].concat();
    assert_hidden("the callee", &callee.shown().await, &[&keys[..], &tokens].concat());
    assert!(callee.errors().contains("TRACE"), "there was something to look at");
    // The caller's proxy does not know what in a URL is a token.
    assert_hidden("the caller", &caller.shown().await, &keys);
}

async fn certified(proxy: &Proxy) {
    until("a certificate", async || proxy.json("/certs").await["serial"].as_str().map(drop)).await;
}

#[tokio::test]
async fn keys_and_tokens_of_a_managed_mesh() {
    let mut control_plane = ControlPlane::start(&["--log", "trace"]).await;
    let proxy = Mesh::default().arguments(&["--log", "trace"]).managed(&mut control_plane, "x");
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    let proxy = proxy.arguments(&["--state-dir", folder.to_str().unwrap()]).start().await;
    certified(&proxy).await;
    let last_good = folder.join("last-good");
    until("the state to be kept", async || last_good.exists().then_some(())).await;
    let mut secrets: Vec<Vec<u8>> =
        control_plane.tokens.iter().map(|it| it.clone().into()).collect();
    let kept = std::fs::read(last_good).unwrap();
    assert!(!kept.is_empty());
    secrets.extend([b"PRIVATE KEY".to_vec(), PKCS8_P256.to_vec()]);
    assert_hidden("the proxy's state", &kept, &secrets);
    assert_hidden("the proxy", &proxy.shown().await, &secrets);
    assert_hidden("the control plane's log", control_plane.errors().as_bytes(), &secrets);
}

/// How every P-256 key in PKCS#8 begins that is made here, in proxies, and in the control plane.
pub const PKCS8_P256: &[u8] =
    b"\x30\x81\x87\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a";
