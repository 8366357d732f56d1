//! `leno apply`, `get`, `diff` and `delete` as processes, against a control plane that is one, too.

use std::fs;

use crate::process::{self, ControlPlane, Said, leno};

const SHOP: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules:
  - backendRefs:
    - {name: orders, port: 80, weight: 90}
";

#[test]
fn what_is_applied_is_there_until_it_is_deleted() {
    let mesh = ControlPlane::start();
    let file = mesh.file("shop.yaml", SHOP);
    let created = "Service shop/orders created\nHTTPRoute shop/orders created\n";
    assert_eq!(mesh.leno(&["apply", "-f", &file]).good(), created);
    assert_eq!(mesh.leno(&["apply", "-f", &file]).good(), created.replace("created", "unchanged"));
    assert_eq!(
        mesh.leno(&["apply", "--atomic", "-f", &file]).good(),
        created.replace("created", "unchanged")
    );
    let table = mesh.leno(&["get", "httproutes", "-A"]).good();
    assert!(table.contains("shop        orders   -           orders"), "{table}");
    assert_eq!(
        mesh.leno(&["get", "httproute/orders", "-n", "shop", "-o", "name"]).good(),
        "httproute/orders\n"
    );
    let deleted = mesh.leno(&["delete", "-f", &file]).good();
    assert_eq!(deleted, "HTTPRoute shop/orders deleted\nService shop/orders deleted\n");
    let Said { code, errors, .. } = mesh.leno(&["get", "httproute", "orders", "-n", "shop"]);
    assert_eq!((code, errors.as_str()), (1, "error: there is no HTTPRoute shop/orders\n"));
}

#[test]
fn what_get_prints_can_be_applied() {
    let mesh = ControlPlane::start();
    mesh.leno(&["apply", "-f", &mesh.file("shop.yaml", SHOP)]).good();
    for (output, name) in [("yaml", "got.yaml"), ("json", "got.json")] {
        for kinds in ["services", "services,httproutes"] {
            let got = mesh.leno(&["get", kinds, "-n", "shop", "-o", output]).good();
            assert_eq!(got.contains("HTTPRoute"), kinds.contains("httproutes"));
            let file = mesh.file(name, &got);
            assert_eq!(mesh.leno(&["diff", "-f", &file]).good(), "", "{got}");
        }
    }
    let table = mesh.leno(&["get", "svc,tp,services,httproutes", "-n", "shop"]);
    assert_eq!(table.code, 1, "there is no kind svc");
    let table = mesh.leno(&["get", "lsvc,tp,httproutes", "-n", "shop"]).good();
    let heads: Vec<_> = table.lines().filter(|line| !line.contains(' ')).collect();
    assert_eq!(heads, ["services", "", "httproutes"], "{table}");
}

#[test]
fn diff_shows_what_apply_would_change_and_changes_nothing() {
    let mesh = ControlPlane::start();
    let file = mesh.file("shop.yaml", SHOP);
    let new = mesh.leno(&["diff", "-f", &file]);
    assert_eq!(new.code, 1);
    assert!(new.output.contains("\n+kind: HTTPRoute\n"), "{}", new.output);
    mesh.leno(&["apply", "-f", &file]).good();
    assert_eq!(mesh.leno(&["diff", "-f", &file]).good(), "");

    let changed = mesh.file("changed.yaml", &SHOP.replace("weight: 90", "weight: 10"));
    let Said { code, output, .. } = mesh.leno(&["diff", "-f", &changed]);
    assert_eq!(code, 1);
    assert!(output.contains("\n-      weight: 90\n+      weight: 10\n"), "{output}");
    mesh.leno(&["apply", "--dry-run", "-f", &changed]).good();
    assert_eq!(mesh.leno(&["diff", "-f", &file]).good(), "", "neither changed anything");
}

#[test]
fn a_mistake_is_told_with_file_line_and_path_and_nothing_is_applied() {
    let mesh = ControlPlane::start();
    let file = mesh.file("shop.yaml", &SHOP.replace("weight: 90", "weight: -1"));
    let Said { code, errors, .. } = mesh.leno(&["apply", "-f", &file]);
    assert_eq!(code, 1);
    let place =
        format!("error: {file}:13: spec.rules[0].backendRefs[0].weight: must be 0 to 1000000\n");
    assert!(errors.starts_with(&place), "{errors}");
    assert!(errors.ends_with("nothing was applied\n"), "{errors}");
    assert_eq!(mesh.leno(&["get", "services", "-A", "-o", "name"]).good(), "");
}

#[test]
fn a_reference_to_nothing_is_a_warning_at_its_line() {
    let mesh = ControlPlane::start();
    let file = mesh.file(
        "shop.yaml",
        &SHOP.replace("{name: orders, port: 80, weight", "{name: gone, port: 80, weight"),
    );
    for arguments in [&["apply", "-f", &file][..], &["apply", "--atomic", "-f", &file]] {
        let Said { code, errors, .. } = mesh.leno(arguments);
        assert_eq!(code, 0, "{errors}");
        let warning = format!(
            "warning: {file}:13: spec.rules[0].backendRefs[0]: there is no Service shop/gone"
        );
        assert!(errors.starts_with(&warning), "{errors}");
    }
}

#[test]
fn all_or_nothing_is_kept() {
    let mesh = ControlPlane::start();
    mesh.leno(&["apply", "-f", &mesh.file("shop.yaml", SHOP)]).good();
    let stale = SHOP.replace("protocol: http}", "protocol: auto}").replace(
        "kind: HTTPRoute\nmetadata: {",
        "kind: HTTPRoute\nmetadata: {resourceVersion: \"1\", ",
    );
    let file = mesh.file("stale.yaml", &stale);
    let Said { code, errors, .. } = mesh.leno(&["apply", "--atomic", "-f", &file]);
    assert_eq!(code, 1);
    assert!(
        errors.contains(&format!("{file}:6: ")) && errors.ends_with("nothing was applied\n"),
        "{errors}"
    );
    assert_eq!(mesh.leno(&["diff", "-f", &mesh.file("shop.yaml", SHOP)]).good(), "");
    // One by one the service goes through.
    assert_eq!(mesh.leno(&["apply", "-f", &file]).code, 1);
    assert_eq!(mesh.leno(&["diff", "-f", &mesh.file("shop.yaml", SHOP)]).code, 1);
}

#[test]
fn a_watch_shows_changes_as_they_happen() {
    let mesh = ControlPlane::start();
    let watch = mesh.watch(&["get", "services", "-n", "shop", "-o", "name", "-w"]);
    mesh.leno(&["apply", "-f", &mesh.file("shop.yaml", SHOP)]).good();
    assert_eq!(watch.next_line(), "service/orders");
}

#[test]
fn without_a_control_plane_it_says_what_to_do() {
    let nobody = process::unused_address();
    let server = format!("http://{nobody}");
    for command in [&["get", "services"][..], &["delete", "service", "x"]] {
        let Said { code, errors, .. } = leno(&[command, &["--server", &server]].concat());
        assert_eq!(code, 1);
        let expected = format!(
            "error: cannot reach the control plane at {server}: connection refused; is `leno control-plane` \
             running? set --server\n"
        );
        assert_eq!(errors, expected);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.yaml");
    fs::write(&file, SHOP).unwrap();
    let trouble = leno(&["diff", "-f", file.to_str().unwrap(), "--server", &server]);
    assert_eq!(trouble.code, 2, "1 would mean: different");
}
