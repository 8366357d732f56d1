use std::{collections::BTreeSet, fs, path::Path};

use serde_json::json;

use super::*;

fn values(sets: &[&str]) -> Result<Values, String> {
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    Values::new(&[], &sets).map_err(|error| error.to_string())
}

fn found<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap()
}

#[test]
fn the_chart_is_what_this_program_writes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/leno");
    let mut written = BTreeSet::from(["NOTES.txt".to_owned()]);
    for (name, text) in chart::templates() {
        let there = fs::read_to_string(folder.join("templates").join(&name)).unwrap_or_default();
        assert!(
            there == text,
            "{name} is old: run `cargo run -- install --chart deploy/helm/leno`"
        );
        written.insert(name);
    }
    let there = fs::read_dir(folder.join("templates")).unwrap();
    let there: BTreeSet<_> =
        there.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, written);
    let chart = fs::read_to_string(folder.join("Chart.yaml")).unwrap();
    for name in ["version", "appVersion"] {
        assert!(chart.contains(&format!("\n{name}: {}\n", env!("CARGO_PKG_VERSION"))), "{name}");
    }
}

#[test]
fn every_default_is_described_by_the_schema() {
    assert!(values(&[]).is_ok());
    let schema: Value =
        serde_json::from_str(include_str!("../../../deploy/helm/leno/values.schema.json")).unwrap();
    fn same(values: &Values, schema: &Value, at: &str) {
        let Some(known) = schema["properties"].as_object() else { return };
        for (name, field) in known.iter().filter(|(name, _)| *name != "global") {
            let path = format!("{at}{name}");
            let inner = values.at(&path);
            let may_be_null = field["type"].is_array();
            assert!(!inner.is_null() || may_be_null, "{path} has no default");
            same(values, field, &format!("{path}."));
        }
    }
    same(&values(&[]).unwrap(), &schema, "");
}

#[test]
fn settings_that_are_wrong_are_named() {
    for (set, problem) in [
        ("replicas", "must be NAME=VALUE"),
        ("=3", "must be NAME=VALUE"),
        ("a..b=3", "must be NAME=VALUE"),
        ("replica=3", "replica: there is no such setting; here there are ca, certificateTtl, crds"),
        ("image.tags=1", "image.tags: there is no such setting; here there are prefix"),
        ("replicas=many", "replicas: \"many\" is not integer"),
        ("replicas=0", "replicas: must be at least 1"),
        ("replicas=17", "replicas: must be at most 16"),
        ("replicas=3", "replicas: more than one replica needs ca.secret"),
        ("webhook.failurePolicy=fail", "webhook.failurePolicy: must be one of Fail, Ignore"),
        ("webhook=off", "webhook: \"off\" is not object"),
        ("crds.install=yes", "crds.install: \"yes\" is not boolean"),
    ] {
        let error = values(&[set]).unwrap_err();
        assert!(error.contains(problem), "{set}: {error}");
    }
    let file = |text: &str| Values::new(&[("f".to_owned(), text.to_owned())], &[]);
    assert!(file("- a").unwrap_err().to_string().starts_with("f: must be one document"));
    assert!(file("a: 1\n---\nb: 1").unwrap_err().to_string().starts_with("f: must be one"));
    assert!(file("a: [").unwrap_err().to_string().starts_with("f: is not YAML"));
    assert!(file("").is_ok());
}

#[test]
fn later_settings_win() {
    let file = ("f".to_owned(), "replicas: 2\nca: {secret: a}\nimage: {tag: v1}".to_owned());
    let values =
        Values::new(&[file], &["replicas=3".into(), "image.prefix=r.io/x".into()]).unwrap();
    assert_eq!(values.at("replicas"), 3);
    assert_eq!(values.at("image.pullPolicy"), "IfNotPresent", "what nobody set stays");
    let deployment = manifests(&values);
    let deployment = found(&deployment, "Deployment");
    let container = deployment.pointer("/spec/template/spec/containers/0").unwrap();
    assert_eq!(container["image"], "r.io/x/control-plane:v1");
    assert_eq!(deployment["spec"]["replicas"], 3);
}

#[test]
fn the_root_is_on_a_volume_or_in_a_secret() {
    let own = manifests(&values(&[]).unwrap());
    found(&own, "PersistentVolumeClaim");
    assert_eq!(found(&own, "Deployment")["spec"]["strategy"]["type"], "Recreate");
    let given = manifests(&values(&["ca.secret=mesh-ca", "replicas=2"]).unwrap());
    assert!(given.iter().all(|manifest| manifest["kind"] != "PersistentVolumeClaim"));
    let pod = &found(&given, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][1]["secret"]["secretName"], "mesh-ca");
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    assert!(arguments.contains(&json!("--ca-key=/etc/leno/ca/tls.key")));
}

/// What cannot run with more rights than it needs must not get them by a slip.
#[test]
fn rights_are_few() {
    let manifests = manifests(&values(&[]).unwrap());
    let role = found(&manifests, "ClusterRole");
    for rule in role["rules"].as_array().unwrap() {
        let text = rule.to_string();
        assert!(!text.contains("\"*\"") && !text.contains("secrets"), "{text}");
        let writes = ["patch", "update", "delete"].iter().any(|verb| text.contains(verb));
        let narrow = rule["resourceNames"].is_array() || text.contains("/status");
        assert!(!writes || narrow, "{text}");
    }
    let pod = &found(&manifests, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let own = &pod["containers"][0]["securityContext"];
    assert_eq!(own["readOnlyRootFilesystem"], true);
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(own["allowPrivilegeEscalation"], false);
}

/// A pod's own label wins over its namespace's, and no pod is asked for twice.
#[test]
fn a_pod_is_asked_for_once() {
    let manifests = manifests(&values(&[]).unwrap());
    let webhooks = &found(&manifests, "MutatingWebhookConfiguration")["webhooks"];
    let matches = |expression: &Value, label: Option<&str>| {
        let listed = expression["values"].as_array().unwrap();
        let is_in = label.is_some_and(|label| listed.contains(&label.into()));
        is_in == (expression["operator"] == "In")
    };
    for namespace in [None, Some("enabled"), Some("disabled"), Some("true")] {
        for pod in [None, Some("enabled"), Some("disabled")] {
            let asked = webhooks.as_array().unwrap().iter().filter(|webhook| {
                matches(&webhook["namespaceSelector"]["matchExpressions"][0], namespace)
                    && matches(&webhook["objectSelector"]["matchExpressions"][0], pod)
            });
            let wanted = pod.or(namespace) == Some("enabled");
            assert_eq!(asked.count(), usize::from(wanted), "{namespace:?} {pod:?}");
        }
    }
}

#[test]
fn objects_come_in_an_order_in_which_they_can_be_made() {
    let manifests = manifests(&values(&["gatewayApi.install=true"]).unwrap());
    let kinds: Vec<_> =
        manifests.iter().map(|manifest| manifest["kind"].as_str().unwrap()).collect();
    let first = |kind: &str| kinds.iter().position(|known| *known == kind).unwrap();
    let order = [
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "Service",
        "Deployment",
        "MutatingWebhookConfiguration",
    ];
    assert!(order.map(first).is_sorted(), "{kinds:?}");
    let names = manifests.iter().map(|manifest| {
        (manifest["kind"].to_string(), manifest["metadata"]["name"].as_str().unwrap())
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert!(names.iter().any(|(_, name)| *name == "httproutes.gateway.networking.k8s.io"));
    let without = super::manifests(&values(&["crds.install=false"]).unwrap());
    assert!(without.iter().all(|manifest| manifest["kind"] != "CustomResourceDefinition"));
}

#[test]
fn expressions_stand_without_quotes() {
    let text =
        chart::templates().into_iter().find(|(name, _)| name == "deployment.yaml").unwrap().1;
    assert!(text.contains("\n  replicas: {{ toJson .Values.replicas }}\n"), "{text}");
    assert!(text.contains("{{ if .Values.ca.secret }}[\"--kubernetes\","), "{text}");
    assert!(
        text.contains("image: \"{{ .Values.image.prefix }}/control-plane:{{ .Values.image.tag")
    );
}
