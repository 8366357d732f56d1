//! TLS to the control plane, tokens, certificates and roots, with a real control plane and real sidecars.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::process::{ControlPlane, Said, Sidecar, leno, unused_address};

const PATIENCE: Duration = Duration::from_secs(60);

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What the admin port of a sidecar says about its certificate, once it has one.
fn certified(sidecar: &Sidecar) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let certs = json(&leno(&["proxy-config", "certs", &sidecar.admin, "-o", "json"]).good());
        if certs["id"].is_string() {
            return certs;
        }
        assert!(Instant::now() < deadline, "{certs}");
    }
}

/// Asks until the answer is as it should be; the last one either way.
fn until(ask: impl Fn() -> Said, holds: impl Fn(&Said) -> bool) -> Said {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = ask();
        if holds(&said) || Instant::now() > deadline {
            return said;
        }
    }
}

#[test]
fn a_control_plane_is_known_by_its_root() {
    let mesh = ControlPlane::start();
    let other = ControlPlane::start();
    mesh.leno_trusting(&mesh.roots(), &["get", "services", "-A", "-o", "name"]).good();
    let Said { code, errors, .. } = mesh.leno_trusting(&other.roots(), &["get", "services"]);
    assert_eq!(code, 1);
    assert!(errors.contains("cannot be trusted: none of the roots in "), "{errors}");
    let Said { code, errors, .. } = leno(&["get", "services", "--server", "https://127.0.0.1:1"]);
    assert_eq!(code, 1);
    assert!(errors.contains("set --ca-file"), "{errors}");
}

#[test]
fn a_token_goes_to_other_machines_in_tls_only() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "secret").unwrap();
    let arguments = ["--server", "http://192.0.2.1:15010", "--token-file", token.to_str().unwrap()];
    let Said { code, errors, .. } = leno(&[&["get", "services"], &arguments[..]].concat());
    assert_eq!(code, 1);
    assert!(
        errors.contains("not sent there in the clear") && errors.contains("--ca-file"),
        "{errors}"
    );
}

#[test]
fn tokens_are_for_an_account_and_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let token = |arguments: &[&str]| leno(&[&["token", "--data-dir", data], arguments].concat());
    let create =
        ["create", "cart", "--role", "workload", "-n", "shop", "--service-account", "cart"];
    let printed = token(&[&create[..], &["--ttl", "1h", "--once"]].concat()).good();
    assert!(printed.starts_with("leno_") && printed.lines().count() == 1, "{printed}");
    token(&["create", "ci", "--role", "admin"]).good();
    let list = token(&["list"]).good();
    let row = |name: &str| -> Vec<String> {
        let line = list.lines().find(|line| line.starts_with(name)).unwrap();
        line.split("   ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(row("cart")[..4], ["cart", "workload", "shop", "cart"]);
    assert!(row("cart")[4].starts_with("in ") && row("cart")[5] == "once", "{list}");
    assert_eq!(row("ci"), ["ci", "admin", "-", "-", "never", "any number"]);
    assert!(!list.contains(printed.trim()), "{list}");

    for (wrong, reason) in [
        (&["create", "x", "--role", "workload"][..], "--namespace"),
        (&["create", "x", "--role", "admin", "--once"], "role workload"),
        (&["create", "x", "--role", "viewer", "--service-account", "a"], "workload token"),
        (&["create", "x", "--role", "admin", "--ttl", "0s"], "over before"),
        (&["create", "x", "--role", "workload", "-n", "Not A Name"], "namespace"),
    ] {
        let Said { code, errors, .. } = token(wrong);
        assert!(code != 0 && errors.contains(reason), "{wrong:?}: {errors}");
    }
}

#[test]
fn a_sidecar_shows_its_certificate_and_gets_a_new_one_when_told() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    let before = certified(&sidecar);
    let id = "spiffe://cluster.local/ns/shop/sa/cart";
    assert_eq!(before["id"], id);
    let text = leno(&["proxy-config", "certs", &sidecar.admin]).good();
    assert!(text.contains(&format!("identity    {id}\n")), "{text}");
    let renewed = leno(&["proxy-config", "certs", &sidecar.admin, "--renew", "-o", "json"]).good();
    assert_ne!(json(&renewed)["serial"], before["serial"]);

    let table = mesh.leno(&["ca", "certificates"]).good();
    assert!(table.contains("cart-1") && table.contains(id), "{table}");
    let issued = json(&mesh.leno(&["ca", "certificates", "-o", "json"]).good());
    let serial = json(&renewed)["serial"].clone();
    assert!(issued.as_array().unwrap().iter().any(|found| found["serial"] == serial), "{issued}");
    let used = leno(&["token", "list", "--data-dir", &mesh.data()]).good();
    assert!(used.contains("once, used"), "{used}");
    let Said { code, errors, .. } = leno(&["proxy-config", "routes", &sidecar.admin, "--renew"]);
    assert_eq!((code, errors.as_str()), (1, "error: --renew goes with `certs`\n"));
}

#[test]
fn a_root_is_replaced_while_a_sidecar_runs() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    certified(&sidecar);
    // A copy of the roots, as on another machine.
    let copy = mesh.file("copy.pem", &fs::read_to_string(mesh.roots()).unwrap());
    let status = || json(&mesh.leno(&["ca", "status", "-o", "json"]).good());
    let before = status();

    let Said { code, output, errors } = mesh.leno_trusting(&copy, &["ca", "rotate-root"]);
    assert_eq!(code, 0, "{output}{errors}");
    for step in ["1/3  a new root", "2/3  the new root", "3/3  the old root"] {
        assert!(output.contains(step), "{output}");
    }
    let told = format!("the roots in {copy} are no longer those of the mesh");
    assert!(errors.contains(&told), "{errors}");

    let after = status();
    assert_eq!(after["roots"].as_array().unwrap().len(), 1, "{after}");
    assert_ne!(after["roots"], before["roots"]);
    let bundle = mesh.leno(&["ca", "bundle"]).good();
    assert_eq!(bundle, fs::read_to_string(mesh.roots()).unwrap());
    mesh.leno_trusting(&mesh.roots(), &["ca", "status"]).good();
    assert_eq!(mesh.leno_trusting(&copy, &["ca", "status"]).code, 1, "the copy is worthless now");
    let trusted = until(
        || leno(&["proxy-config", "certs", &sidecar.admin, "-o", "json"]),
        |said| json(&said.output)["roots"].as_array().is_some_and(|roots| roots.len() == 1),
    );
    let root = &json(&trusted.output)["roots"][0]["fingerprint"];
    assert_eq!(*root, after["roots"][0]["fingerprint"]);
}

#[test]
fn a_rotation_can_be_taken_step_by_step_and_back() {
    let mesh = ControlPlane::start();
    let ca = |arguments: &[&str]| mesh.leno(&[&["ca"], arguments].concat());
    let Said { code, errors, .. } = ca(&["rotate-root", "--step", "switch"]);
    assert_eq!(code, 1);
    assert!(errors.contains("add one first"), "{errors}");
    ca(&["rotate-root", "--step", "add"]).good();
    let status = ca(&["status"]).good();
    assert!(status.contains("a new root is trusted, the old one signs"), "{status}");
    assert!(status.contains("yes") && status.contains("no"), "{status}");
    ca(&["rotate-root", "--step", "switch"]).good();
    ca(&["rotate-root", "--undo"]).good();
    ca(&["rotate-root", "--undo"]).good();
    assert!(ca(&["status"]).good().contains("none under way"));
    // What somebody else began is gone on with.
    ca(&["rotate-root", "--step", "add"]).good();
    let output = ca(&["rotate-root"]).good();
    assert!(
        !output.contains("1/3") && output.contains("2/3") && output.contains("3/3"),
        "{output}"
    );
    let Said { code, errors, .. } = ca(&["rotate-root", "--force"]);
    assert_eq!(code, 1);
    assert!(errors.contains("--step"), "{errors}");
}

#[test]
fn an_interrupted_rotation_says_how_to_go_on() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    certified(&sidecar);
    let connected = until(
        || mesh.leno(&["ca", "status"]),
        |said| said.output.contains("1 of 1 trust these roots"),
    );
    assert!(connected.output.contains("1 of 1"), "{}", connected.output);
    // Connected, and deaf.
    sidecar.signal(Signal::STOP);
    let mut rotation = mesh.command(&["ca", "rotate-root"]);
    let mut rotation = rotation.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(rotation.stdout.take().unwrap()).lines();
    let waits = lines.find(|line| line.as_ref().unwrap().contains("waiting for "));
    assert_eq!(waits.unwrap().unwrap().trim(), "0 of 1 proxies know, waiting for shop/cart-1");
    let id = Pid::from_raw(i32::try_from(rotation.id()).unwrap()).unwrap();
    kill_process(id, Signal::INT).unwrap();
    let ended = rotation.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert!(errors.starts_with("stopped; ") && errors.contains("--undo"), "{errors}");

    let Said { code, errors, .. } = mesh.leno(&["ca", "rotate-root", "--step", "switch"]);
    assert_eq!(code, 1);
    assert!(errors.contains("shop/cart-1"), "{errors}");
    let status = mesh.leno(&["ca", "status"]).good();
    assert!(status.contains("0 of 1 trust these roots, waiting for shop/cart-1"), "{status}");
    let check = until(|| mesh.leno(&["check"]), |said| said.output.contains("TrustBundle"));
    assert_eq!(check.code, 1);
    let last = check.output.lines().find(|line| line.starts_with("TrustBundle leno-system/mesh"));
    assert!(last.is_some_and(|line| line.contains("warning")), "{}", check.output);
    assert!(check.output.contains("hint: `leno get"), "{}", check.output);
    sidecar.signal(Signal::CONT);
    let output = mesh.leno(&["ca", "rotate-root"]).good();
    assert!(!output.contains("1/3") && output.contains("3/3"), "{output}");
}

#[test]
fn a_check_finds_nothing_where_all_is_well_and_says_what_is_not() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    certified(&sidecar);
    let check = || mesh.leno_trusting(&mesh.roots(), &["check", "-o", "json"]);
    // The trust bundle has to be acknowledged first.
    let Said { code, output, errors } = until(check, |said| said.code == 0);
    assert_eq!((code, errors.as_str()), (0, ""), "{output}");
    let table = mesh.leno_trusting(&mesh.roots(), &["check"]).good();
    for part in
        ["control plane", "its certificate", "certificate of shop/cart-1", "root ", "resources"]
    {
        assert!(table.contains(part), "{table}");
    }
    assert!(!table.contains("hint:"), "{table}");

    let nobody = format!("http://{}", unused_address());
    let Said { code, output, .. } = leno(&["check", "--server", &nobody]);
    assert_eq!(code, 1);
    assert!(
        output.contains("wrong") && output.contains("hint: is `leno control-plane`"),
        "{output}"
    );
    let report = json(&leno(&["check", "--server", &nobody, "-o", "json"]).output);
    assert_eq!(
        (&report["ok"], &report["findings"][0]["state"]),
        (&Value::from(false), &"wrong".into())
    );
}

const POLICIES: &str = "\
apiVersion: leno.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: leno.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  action: DENY
  targetRefs: [{group: '', kind: Service, name: gone}]
  rules: [{from: [{source: {namespaces: [elsewhere]}}]}]
---
apiVersion: leno.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: people, namespace: shop}
spec: {jwtRules: [{issuer: 'https://issuer.example', jwksUri: 'https://issuer.example/keys'}]}
";

#[test]
fn policies_of_identity_are_resources_like_others() {
    let mesh = ControlPlane::start();
    let file = mesh.file("policies.yaml", POLICIES);
    let analyzed = leno(&["analyze", "-f", &file]);
    assert_eq!(analyzed.code, 0);
    let warning = format!("warning: {file}:11: spec.targetRefs[0]");
    assert!(analyzed.output.contains(&warning), "{}", analyzed.output);
    assert!(analyzed.output.contains("there is no Service shop/gone"), "{}", analyzed.output);

    assert_eq!(mesh.leno(&["apply", "-f", &file]).code, 0);
    for (kind, columns) in [
        ("pa", ["default", "STRICT"]),
        ("ap", ["cart", "DENY"]),
        ("ra", ["people", "https://issuer.example"]),
    ] {
        let table = mesh.leno(&["get", kind, "-n", "shop"]).good();
        assert!(columns.iter().all(|column| table.contains(column)), "{kind}: {table}");
    }
    let table = mesh.leno(&["get", "tb", "-A"]).good();
    assert!(table.contains("leno-system") && table.contains("cluster.local"), "{table}");
    let Said { code, errors, .. } = mesh.leno(&["delete", "tb", "mesh", "-n", "leno-system"]);
    assert_eq!(code, 1, "{errors}");
    let table = mesh.leno(&["get", "tb", "-A"]).good();
    assert!(table.contains("cluster.local"), "{table}");
}
