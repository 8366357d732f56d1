use std::io::Write;

use super::*;

const TWO: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  ports: [{port: 80}]
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata:
  name: users
spec:
  ports:
  - port: 80000
";

#[test]
fn a_problem_names_file_line_and_path() {
    let loaded = parse("mesh/shop.yaml", TWO);
    assert_eq!(loaded.manifests.len(), 1);
    let text = loaded.problems[0].to_string();
    assert!(text.starts_with("mesh/shop.yaml:13: spec.ports[0].port: "), "{text}");
}

#[test]
fn what_the_api_says_of_a_path_is_found_in_the_file() {
    let loaded = parse("shop.yaml", TWO);
    let line = |path| loaded.manifests[0].locate(path, "is wrong").line;
    assert_eq!(line("metadata.name"), Some(3));
    assert_eq!(line("spec.ports[0].port"), Some(5));
    assert_eq!(line("spec.ports[0].protocol"), Some(5), "not written: the field around it");
    assert_eq!(line("status"), Some(1), "nothing around it: the document");
}

#[test]
fn text_that_is_not_yaml_has_a_line_too() {
    let loaded = parse("x.yaml", "a: 1\nb: [1\n");
    assert!(loaded.manifests.is_empty());
    let text = loaded.problems[0].to_string();
    assert!(text.starts_with("x.yaml:") && text.contains("is not YAML"), "{text}");
}

#[test]
fn lists_are_taken_apart_with_their_lines() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: leno.dev/v1alpha1
  kind: Service
  metadata: {name: a}
  spec: {ports: [{port: 80}]}
- apiVersion: leno.dev/v1alpha1
  kind: Service
  metadata: {name: b}
  spec:
    ports: []
";
    let loaded = parse("list.yaml", text);
    assert_eq!(loaded.manifests[0].resource.key().to_string(), "Service default/a");
    assert!(loaded.problems[0].to_string().starts_with("list.yaml:12: spec.ports: "));
}

#[test]
fn the_body_has_a_namespace_and_no_status() {
    let text = TWO.replace(", namespace: shop", "") + "status: {}\n";
    let body = parse("a", &text.replace("80000", "8080")).manifests.remove(1).body();
    assert_eq!(body["metadata"]["namespace"], "default");
    assert!(body.get("status").is_none());
}

#[test]
fn services_come_before_routes() {
    let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: s}]}]}
---
apiVersion: leno.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec: {targetRefs: [{group: '', kind: Service, name: s}]}
---
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: s}
spec: {ports: [{port: 80}]}
";
    let mut loaded = parse("a", text);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    sort_for_apply(&mut loaded.manifests);
    let kinds: Vec<_> = loaded.manifests.iter().map(|found| found.resource.kind.kind).collect();
    assert_eq!(kinds, ["Service", "TrafficPolicy", "HTTPRoute"]);
}

#[test]
fn directories_are_read_in_order_and_only_on_request_with_what_is_below() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("below")).unwrap();
    for (name, service) in [("b.yaml", "b"), ("a.yml", "a"), ("c.txt", "c"), ("below/d.json", "d")]
    {
        let mut file = fs::File::create(directory.path().join(name)).unwrap();
        write!(
            file,
            "{{\"apiVersion\": \"leno.dev/v1alpha1\", \"kind\": \"Service\", \
             \"metadata\": {{\"name\": \"{service}\"}}, \"spec\": {{\"ports\": [{{\"port\": 80}}]}}}}"
        )
        .unwrap();
    }
    let names = |recursive| {
        let filename = vec![directory.path().to_owned()];
        let loaded = load(&FileArgs { filename, recursive }).unwrap();
        let names = loaded.manifests.iter().map(|found| found.resource.name().name.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(false), ["a", "b"]);
    assert_eq!(names(true), ["a", "b", "d"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let load = |path: &Path| {
        load(&FileArgs { filename: vec![path.to_owned()], recursive: false })
            .unwrap_err()
            .to_string()
    };
    assert!(load(Path::new("absent.yaml")).starts_with("absent.yaml: cannot be read"));
    let directory = tempfile::tempdir().unwrap();
    assert!(load(directory.path()).contains("has no .yaml"));
    let file = directory.path().join("latin.yaml");
    fs::write(&file, [0xe9, 0x0a]).unwrap();
    assert!(load(&file).contains("UTF-8"));
    fs::write(&file, "# nothing\n").unwrap();
    assert!(load(&file).contains("no resource"));
}
