use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use leno_api::yaml;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{review::Answer, *};

fn settings() -> Settings {
    // Goldens must not change with each release.
    Settings { image_tag: "1.2.3".to_owned(), ..Settings::default() }
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/testdata").join(name)
}

fn manifest(name: &str) -> Value {
    let text = std::fs::read_to_string(data(&format!("{name}.yaml"))).unwrap();
    yaml::documents(&text).unwrap().remove(0).value
}

const MANIFESTS: [&str; 6] = ["deployment", "statefulset", "cronjob", "list", "pod", "cni"];

/// What is printed stands in files beside the manifests; a deliberate change is copied from where the test says.
#[test]
fn real_manifests_become_what_the_golden_files_say() {
    let mut differing = Vec::new();
    for name in MANIFESTS {
        let mut document = manifest(name);
        let verdicts = inject(&mut document, &settings()).unwrap();
        let said: Vec<String> = verdicts.iter().map(|verdict| format!("{verdict:?}")).collect();
        let found = format!("{:#}\n", json!({"document": document, "verdicts": said}));
        let golden = std::fs::read_to_string(data(&format!("{name}.golden.json")));
        if golden.as_deref().unwrap_or_default() != found {
            let kept = std::env::temp_dir().join(format!("{name}.golden.json"));
            std::fs::write(&kept, &found).unwrap();
            differing.push(kept);
        }
    }
    assert!(differing.is_empty(), "these became something else: {differing:?}");
}

/// Another webhook adds a container after ours, and Kubernetes asks us again (`reinvocationPolicy: IfNeeded`).
#[test]
fn probes_that_come_later_are_led_through_the_sidecar_too() {
    let late = json!({"name": "late", "image": "late", "readinessProbe":
        {"httpGet": {"path": "/$x", "port": 9999, "scheme": "HTTP"}, "periodSeconds": 3}});
    let env = |pod: &Value, list: &str| {
        let containers = pod["spec"][list].as_array().unwrap().iter();
        let ours =
            containers.into_iter().find(|one| one["name"] == names::PROXY_CONTAINER).unwrap();
        let variables = ours["env"].as_array().unwrap().iter();
        let found: Vec<_> =
            variables.filter(|variable| variable["name"] == "LENO_PROBES").cloned().collect();
        assert_eq!(found.len(), 1);
        found[0]["value"].as_str().unwrap().to_owned()
    };
    for (native, list) in [(true, "initContainers"), (false, "containers")] {
        for probe in [json!(null), json!({"tcpSocket": {"port": 8080}})] {
            let settings = Settings { native_sidecar: native, ..settings() };
            let app = json!({"name": "app", "image": "app", "livenessProbe": probe});
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
                "spec": {"containers": [app]}});
            // Without any, the sidecar has no variable for them yet.
            let mut original = pod.clone();
            inject(&mut pod, &settings).unwrap();
            pod["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
            original["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
            // What others did to our containers stays.
            let at = usize::from(native);
            pod["spec"][list][at]["image"] = "mirror/proxy".into();
            let verdicts = inject(&mut pod, &settings).unwrap();
            assert!(matches!(verdicts[0].outcome, Outcome::Injected { .. }), "{verdicts:?}");
            assert_eq!(pod["spec"][list][at]["image"], "mirror/proxy");
            let containers = pod["spec"]["containers"].as_array().unwrap();
            let asked = &containers.last().unwrap()["readinessProbe"];
            let expected = json!({"httpGet": {"path": "/probe/late/ready", "port": 15021}, "periodSeconds": 3});
            assert_eq!(*asked, expected);
            let probes = env(&pod, list);
            assert!(probes.contains("/probe/late/ready") && probes.contains("/$$x"), "{probes}");
            assert_eq!(probes.contains("/probe/app/live"), probe.is_object(), "{probes}");
            let once = pod.clone();
            let verdicts = inject(&mut pod, &settings).unwrap();
            assert_eq!(verdicts[0].outcome, Outcome::Unchanged);
            assert_eq!(pod, once);
            uninject(&mut pod).unwrap();
            assert_eq!(pod, original);
        }
    }
}

#[test]
fn injection_is_undone_and_done_once() {
    for name in MANIFESTS {
        let original = manifest(name);
        let mut document = original.clone();
        inject(&mut document, &settings()).unwrap();
        let once = document.clone();
        let again = inject(&mut document, &settings()).unwrap();
        assert_eq!(document, once, "{name}");
        assert!(!again.iter().any(|v| matches!(v.outcome, Outcome::Injected { .. })), "{again:?}");
        uninject(&mut document).unwrap();
        assert_eq!(document, original, "{name}");
    }
}

#[test]
fn another_version_takes_the_place_of_the_one_before() {
    let later = Settings { image_tag: "2.0.0".to_owned(), ..settings() };
    for name in MANIFESTS {
        let mut document = manifest(name);
        let mut expected = document.clone();
        inject(&mut expected, &later).unwrap();
        inject(&mut document, &settings()).unwrap();
        let verdicts = inject(&mut document, &later).unwrap();
        assert_eq!(document, expected, "{name}");
        for verdict in verdicts.iter().filter(|v| !matches!(v.outcome, Outcome::LeftAlone(_))) {
            let replaced = Some("1.2.3".to_owned());
            assert_eq!(verdict.outcome, Outcome::Injected { replaced });
        }
    }
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

fn app() -> Value {
    json!({"name": "app", "image": "app:1"})
}

/// The problems of a pod that cannot have a sidecar; it stays as it was.
fn problems(mut document: Value) -> Vec<String> {
    let before = document.clone();
    let invalid = inject(&mut document, &settings()).unwrap_err();
    assert_eq!(document, before);
    invalid.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_stands_in_the_way_is_named_with_its_place() {
    let table = [
        (
            json!({"containers": [{"name": "app", "ports": [{"containerPort": 15001}]}]}),
            "spec.containers[0].ports[0].containerPort: 15001 is a port of the sidecar",
        ),
        (
            json!({"initContainers": [{"name": "x", "ports": [{"containerPort": 80}, {"containerPort": 15090}]}], "containers": [app()]}),
            "spec.initContainers[0].ports[1].containerPort: 15090",
        ),
        (
            json!({"securityContext": {"runAsUser": 1337}, "containers": [app()]}),
            "spec.securityContext.runAsUser: 1337 is what the sidecar runs as",
        ),
        (
            json!({"containers": [{"name": "app", "securityContext": {"runAsGroup": 1337}}]}),
            "spec.containers[0].securityContext.runAsGroup: 1337",
        ),
        (
            json!({"containers": [app(), {"name": "leno-proxy"}]}),
            "spec.containers[1].name: `leno-proxy` is the name of a container of ours",
        ),
        (
            json!({"containers": [app()], "volumes": [{"name": "leno-root", "emptyDir": {}}]}),
            "spec.volumes[0].name: `leno-root`",
        ),
        (json!({"containers": []}), "spec.containers: there must be at least one"),
        (json!({"containers": "app"}), "spec.containers: must be a list"),
        (json!({"containers": ["app"]}), "spec.containers[0]: must be an object"),
        (
            json!({"hostNetwork": "yes", "containers": [app()]}),
            "spec.hostNetwork: must be true or false",
        ),
        (Value::Null, "spec: is missing"),
    ];
    for (spec, expected) in table {
        let found = problems(pod(spec));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(expected), "{found:?} is not {expected}");
    }
    let both =
        json!({"containers": [{"name": "leno-redirect", "ports": [{"containerPort": 15021}]}]});
    assert_eq!(problems(pod(both)).len(), 2, "all at once");
}

#[test]
fn annotations_are_checked() {
    let of = |key: &str, value: Value| {
        let mut document = pod(json!({"containers": [app()]}));
        document["metadata"]["annotations"][key] = value;
        document
    };
    for (key, value, expected) in [
        (names::EXCLUDE_OUTBOUND_PORTS, json!("80,http"), "`http` must be a port"),
        (names::EXCLUDE_OUTBOUND_PORTS, json!("0"), "`0` must be a port"),
        (names::INCLUDE_INBOUND_PORTS, json!("90-80"), "`90-80` must be a port"),
        (names::EXCLUDE_INBOUND_PORTS, json!("*"), "`*` must be a port"),
        (names::INCLUDE_OUTBOUND_RANGES, json!("10.0.0.0/33"), "must be an address or a range"),
        (names::EXCLUDE_INTERFACES, json!("eth0;reboot"), "must be the name of an interface"),
        (names::NATIVE_SIDECAR, json!("yes"), "`yes` must be \"true\" or \"false\""),
        (names::NATIVE_SIDECAR, json!(true), "must be text"),
        (names::PROXY_CPU, json!("lots"), "`lots` is not a quantity"),
        (names::PROXY_MEMORY, json!("64MB"), "`64MB` is not a quantity"),
        (names::DRAIN_TIME, json!("forever"), "is not a duration"),
        (names::DRAIN_TIME, json!("2h"), "must be 1s to 3600s"),
        (names::REDIRECT, json!("iptables"), "must be `init`, `cni` or `none`"),
        (names::ACCESS_LOG, json!("on"), "must be `off`, `text` or `json`"),
        (names::IMAGE, json!(" "), "must not be empty"),
        (names::LOG_LEVEL, json!("leno_proxy=loud"), "is not a log filter"),
        (names::EXCLUDE_INTERFACES, json!("*"), "must be the name of an interface"),
        (names::INJECTED, json!("{"), "cannot be read"),
    ] {
        let found = problems(of(key, value));
        let place = format!("metadata.annotations.{key}: ");
        assert!(found[0].starts_with(&place) && found[0].contains(expected), "{found:?}");
    }
    let contradiction = problems(of(names::INCLUDE_INBOUND_PORTS, json!("80,15021")));
    let expected = "metadata.annotations: inbound port `15021` is included and excluded";
    assert!(contradiction[0].starts_with(expected), "{contradiction:?}");
    let mut misspelt = of("leno.dev/exclude-outbound-port", json!("80"));
    let verdicts = inject(&mut misspelt, &settings()).unwrap();
    assert!(verdicts[0].warnings[0].contains("is it misspelt?"), "{verdicts:?}");
}

#[test]
fn what_wants_no_sidecar_is_left_alone_and_it_says_why() {
    let labelled = |kind: &str, key: &str, value: &str| {
        let mut document = pod(json!({"containers": [app()]}));
        document["metadata"][kind][key] = value.into();
        document
    };
    for (mut document, reason) in [
        (labelled("labels", names::INJECT_LABEL, "disabled"), "it asks for none"),
        (labelled("labels", names::ISTIO_INJECT, "false"), "it asks for none"),
        (labelled("annotations", names::ISTIO_INJECT, "false"), "it asks for none"),
        (pod(json!({"hostNetwork": true, "containers": [app()]})), "hostNetwork"),
        (pod(json!({"os": {"name": "windows"}, "containers": [app()]})), "Windows"),
        (pod(json!({"containers": [app(), {"name": "istio-proxy"}]})), "Istio"),
    ] {
        let before = document.clone();
        let verdicts = inject(&mut document, &settings()).unwrap();
        let Outcome::LeftAlone(found) = &verdicts[0].outcome else { panic!("{verdicts:?}") };
        assert!(found.contains(reason), "{found}");
        assert_eq!(document, before);
    }
    let wrong = problems(labelled("labels", names::INJECT_LABEL, "true"));
    assert!(wrong[0].contains("`true` must be `enabled` or `disabled`"), "{wrong:?}");
    let mut both = labelled("labels", names::INJECT_LABEL, "enabled");
    both["metadata"]["annotations"][names::ISTIO_INJECT] = "false".into();
    let verdicts = inject(&mut both, &settings()).unwrap();
    assert!(matches!(verdicts[0].outcome, Outcome::Injected { .. }), "the label comes first");
}

#[test]
fn other_documents_pass_as_they_are() {
    for document in [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"kind": "Pod"}}),
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Job", "spec": 7}),
        json!({"apiVersion": "v1", "kind": "List"}),
    ] {
        let mut after = document.clone();
        assert_eq!(inject(&mut after, &settings()).unwrap(), []);
        assert_eq!(after, document);
    }
    let mut deep = pod(json!({"containers": [app()]}));
    for _ in 0..9 {
        deep = json!({"apiVersion": "v1", "kind": "List", "items": [deep]});
    }
    assert!(problems(deep)[0].contains("nested too deeply"));
    let mut half = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod(json!({"containers": [app()]})), pod(Value::Null),
    ]});
    let before = half.clone();
    let invalid = inject(&mut half, &settings()).unwrap_err();
    assert_eq!(invalid.problems[0].path, "items[1].spec");
    assert_eq!(half, before, "nothing half done");
}

#[test]
fn the_order_of_containers_is_that_of_their_start() {
    let names = |document: &Value, list: &str| -> Vec<String> {
        let items = document["spec"][list].as_array().unwrap().iter();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let spec = json!({"initContainers": [{"name": "first"}], "containers": [app()]});
    let mut native = pod(spec.clone());
    inject(&mut native, &settings()).unwrap();
    assert_eq!(names(&native, "initContainers"), ["leno-redirect", "leno-proxy", "first"]);
    assert_eq!(names(&native, "containers"), ["app"]);
    assert_eq!(native["spec"]["initContainers"][1]["restartPolicy"], "Always");
    let mut classic = pod(spec);
    let classic_settings = Settings { native_sidecar: false, ..settings() };
    inject(&mut classic, &classic_settings).unwrap();
    assert_eq!(names(&classic, "initContainers"), ["first", "leno-redirect"]);
    assert_eq!(names(&classic, "containers"), ["leno-proxy", "app"]);
}

#[test]
fn kubernetes_puts_nothing_into_what_the_sidecar_is_told() {
    let probe = json!({"httpGet": {"path": "/$(LENO_NAME)", "port": 80}});
    let mut document = pod(json!({"containers": [{"name": "app", "livenessProbe": probe}]}));
    inject(&mut document, &settings()).unwrap();
    let told = document["spec"]["initContainers"][1]["env"].to_string();
    assert!(told.contains("/$$(LENO_NAME)"), "{told}");
    let probe = json!({"httpGet": {"path": "/$$(LENO_NAME)", "port": 80}});
    let mut document = pod(json!({"containers": [{"name": "app", "livenessProbe": probe}]}));
    inject(&mut document, &settings()).unwrap();
    let told = document["spec"]["initContainers"][1]["env"].to_string();
    assert!(told.contains("/$$$$(LENO_NAME)"), "Kubernetes makes one of two: {told}");
}

#[test]
fn a_request_is_never_above_its_limit() {
    let with = |annotations: Value| {
        let mut document = pod(json!({"containers": [app()]}));
        document["metadata"]["annotations"] = annotations;
        document
    };
    let resources = |annotations: Value| {
        let mut document = with(annotations);
        inject(&mut document, &settings()).unwrap();
        document["spec"]["initContainers"][1]["resources"].clone()
    };
    assert_eq!(
        resources(json!({names::PROXY_CPU_LIMIT: "20m", names::PROXY_MEMORY_LIMIT: "32Mi"})),
        json!({"limits": {"cpu": "20m", "memory": "32Mi"}}),
        "the request is then the limit",
    );
    assert_eq!(
        resources(json!({names::PROXY_MEMORY: "1Gi"})),
        json!({"requests": {"cpu": "50m", "memory": "1Gi"}}),
    );
    for (request, limit, fits) in [
        ("1", "1000m", true),
        ("64Mi", "67108864", true),
        ("1e3", "1k", true),
        ("65Mi", "64Mi", false),
        ("1G", "1Mi", false),
    ] {
        let asked = json!({names::PROXY_MEMORY: request, names::PROXY_MEMORY_LIMIT: limit});
        let found = inject(&mut with(asked), &settings());
        assert_eq!(found.is_ok(), fits, "{request} of {limit}: {found:?}");
        let expected = format!("`{limit}` is less than {}, `{request}`", names::PROXY_MEMORY);
        let said = found.err().map(|invalid| invalid.to_string()).unwrap_or(expected.clone());
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn hooks_that_call_the_application_are_pointed_out() {
    let hooks =
        json!({"postStart": {"exec": {"command": ["true"]}}, "preStop": {"httpGet": {"port": 80}}});
    let container = json!({"name": "app", "lifecycle": hooks});
    let mut document = pod(json!({"containers": [container]}));
    let mut alone = document.clone();
    let verdicts = inject(&mut document, &settings()).unwrap();
    let [warning] = &*verdicts[0].warnings else { panic!("{verdicts:?}") };
    assert!(warning.starts_with("spec.containers[0].lifecycle.preStop.httpGet: the kubelet"));
    let nobody = Settings { redirect: Redirect::None, ..settings() };
    assert_eq!(inject(&mut alone, &nobody).unwrap()[0].warnings, [""; 0], "nothing is captured");
}

/// A field that may be missing, null, or something.
fn maybe(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![2 => Just(None), 1 => Just(Some(Value::Null)), 4 => value.prop_map(Some)]
}

fn fields(pairs: Vec<(&'static str, Option<Value>)>) -> Value {
    let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(pairs.collect())
}

fn probe() -> impl Strategy<Value = Value> {
    let port =
        prop_oneof![(1u16..15000).prop_map(Value::from), Just("http".into()), Just("no".into())];
    (port, 0..4u8, any::<bool>()).prop_map(|(port, kind, slow)| {
        let mut probe = match kind {
            0 => json!({"httpGet": {"port": port, "path": "/x", "unknown": 1}}),
            1 => json!({"tcpSocket": {"port": port}}),
            2 => json!({"grpc": {"port": 9000}}),
            _ => json!({"exec": {"command": ["true"]}}),
        };
        if slow {
            probe["timeoutSeconds"] = 7.into();
        }
        probe
    })
}

fn container() -> impl Strategy<Value = Value> {
    (maybe(probe()), maybe(probe()), maybe(probe()), any::<bool>()).prop_map(
        |(live, ready, start, ports)| {
            let ports = ports.then(|| json!([{"name": "http", "containerPort": 8080}]));
            fields(vec![
                ("ports", ports),
                ("livenessProbe", live),
                ("readinessProbe", ready),
                ("startupProbe", start),
                ("tty", Some(true.into())),
            ])
        },
    )
}

fn named(containers: Vec<Value>, prefix: &str) -> Value {
    let numbered = containers.into_iter().enumerate();
    let name = |(at, mut container): (usize, Value)| {
        container["name"] = format!("{prefix}{at}").into();
        container
    };
    numbered.map(name).collect()
}

fn pods() -> impl Strategy<Value = Value> {
    let containers = prop::collection::vec(container(), 1..4).prop_map(|all| named(all, "c"));
    let init = maybe(prop::collection::vec(container(), 0..3).prop_map(|all| named(all, "i")));
    let volumes = maybe(prop_oneof![Just(json!([])), Just(json!([{"name": "a", "emptyDir": {}}]))]);
    let grace = maybe(prop_oneof![Just(json!(5)), Just(json!(600)), Just(json!("odd"))]);
    let native =
        any::<bool>().prop_map(|native| json!({names::NATIVE_SIDECAR: native.to_string()}));
    let redirect = prop::sample::select(vec!["init", "cni", "none"]);
    let redirect = redirect.prop_map(|who| json!({names::REDIRECT: who}));
    let annotations = maybe(prop_oneof![Just(json!({})), native, redirect]);
    let metadata = maybe((annotations, any::<bool>()).prop_map(|(annotations, label)| {
        let labels = label.then(|| json!({"app": "a"}));
        fields(vec![("annotations", annotations), ("labels", labels)])
    }));
    (containers, init, volumes, grace, metadata).prop_map(
        |(containers, init, volumes, grace, metadata)| {
            let spec = fields(vec![
                ("containers", Some(containers)),
                ("initContainers", init),
                ("volumes", volumes),
                ("terminationGracePeriodSeconds", grace),
            ]);
            fields(vec![
                ("apiVersion", Some("v1".into())),
                ("kind", Some("Pod".into())),
                ("metadata", metadata),
                ("spec", Some(spec)),
            ])
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn uninjection_gives_back_what_was_there(original in pods()) {
        let mut document = original.clone();
        inject(&mut document, &settings()).unwrap();
        prop_assert_ne!(&document, &original);
        let once = document.clone();
        inject(&mut document, &settings()).unwrap();
        prop_assert_eq!(&document, &once);
        uninject(&mut document).unwrap();
        prop_assert_eq!(document, original);
    }

    #[test]
    fn the_patch_of_the_webhook_makes_the_same(original in pods()) {
        let mut expected = original.clone();
        inject(&mut expected, &settings()).unwrap();
        let (answer, _) = review::mutate(&admission("Pod", "", &original), &settings()).unwrap();
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        let mut patched = original;
        json_patch::patch(&mut patched, &patch).unwrap();
        prop_assert_eq!(patched, expected);
    }

    #[test]
    fn nonsense_panics_nowhere(text in "\\PC{0,64}") {
        let _ = review::mutate(text.as_bytes(), &settings());
        let _ = review::validate(text.as_bytes(), |_| Vec::new());
    }
}

fn admission(kind: &str, group: &str, object: &Value) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE",
            "kind": {"group": group, "version": "v1", "kind": kind}, "object": object,
        },
    });
    serde_json::to_vec(&review).unwrap()
}

#[test]
fn the_webhook_blocks_no_pod() {
    let taken = pod(json!({"containers": [{"name": "app", "ports": [{"containerPort": 15006}]}]}));
    let (answer, what) = review::mutate(&admission("Pod", "", &taken), &settings()).unwrap();
    assert_eq!(what, Answer::Failed);
    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("leno: no sidecar was injected: spec.containers[0].ports[0]"));
    let host = pod(json!({"hostNetwork": true, "containers": [app()]}));
    let (answer, what) = review::mutate(&admission("Pod", "", &host), &settings()).unwrap();
    assert_eq!((what, &answer["response"]["patch"]), (Answer::Passed, &Value::Null));
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let (answer, _) = review::mutate(&admission("ConfigMap", "", &config), &settings()).unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("nothing to inject into a ConfigMap"), "{warning}");
}

#[test]
fn what_is_no_review_is_told_so() {
    let of = |body: Value| {
        review::validate(body.to_string().as_bytes(), |_| Vec::new()).unwrap_err().to_string()
    };
    assert!(review::mutate(b"{", &settings()).unwrap_err().to_string().contains("is not JSON"));
    assert!(of(json!([])).contains("something without apiVersion and kind"));
    assert!(of(json!({"apiVersion": "v1", "kind": "Pod"})).contains("a `Pod` of `v1`"));
    let old = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"});
    assert!(of(old).contains("v1beta1"));
    let mut review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    assert!(of(review.clone()).contains("without request"));
    review["request"] = json!({"operation": "CREATE"});
    assert!(of(review).contains("without request.uid"));
}

#[test]
fn validation_names_the_fields() {
    let service = |port: Value| {
        json!({"apiVersion": "leno.dev/v1alpha1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": port}]}})
    };
    let ask = |object: &Value| {
        let odd = |_: &leno_api::Resource| vec!["spec.x: odd".to_owned()];
        review::validate(&admission("Service", "leno.dev", object), odd).unwrap()
    };
    let (answer, what) = ask(&service(json!(80)));
    assert_eq!((what, &answer["response"]["allowed"]), (Answer::Valid, &true.into()), "{answer}");
    assert_eq!(answer["response"]["warnings"], json!(["leno: spec.x: odd"]));
    let (answer, what) = ask(&service(json!(0)));
    assert_eq!((what, &answer["response"]["allowed"]), (Answer::Refused, &false.into()));
    let mut ending = service(json!(0));
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(ask(&ending).1, Answer::Passed, "or its finalizers could never be taken away");
    let status = &answer["response"]["status"];
    assert_eq!((&status["code"], &status["reason"]), (&422.into(), &"Invalid".into()));
    assert_eq!(status["details"]["causes"][0]["field"], "spec.ports[0].port");
    let (_, what) = ask(&json!({"apiVersion": "v1", "kind": "Service"}));
    assert_eq!(what, Answer::Passed, "Kubernetes' own");
    let route = |parent: &str, weight: i64| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"parentRefs": [{"group": "", "kind": parent, "name": "orders"}],
                "rules": [{"backendRefs": [{"name": "orders", "port": 80, "weight": weight}]}]}})
    };
    assert_eq!(ask(&route("Service", 1)).1, Answer::Valid);
    assert_eq!(ask(&route("Service", -1)).1, Answer::Refused);
    assert_eq!(ask(&route("Gateway", -1)).1, Answer::Passed, "not ours to judge");
}

/// Where a plugin of the node writes the rules, nothing in the pod has the right to, and the pod says whose they are.
#[test]
fn a_plugin_finds_the_pods_that_ask_for_it() {
    let by_plugin = Settings { redirect: Redirect::Cni, ..settings() };
    let original = pod(json!({"containers": [app()]}));
    let mut document = original.clone();
    inject(&mut document, &by_plugin).unwrap();
    assert_eq!(document["metadata"]["annotations"][names::REDIRECT], leno_redirect::cni::BY_PLUGIN);
    assert_eq!(
        (names::REDIRECT, names::INJECTED),
        (leno_redirect::cni::REDIRECT, leno_redirect::cni::INJECTED)
    );
    assert!(!document.to_string().contains("NET_ADMIN"));
    uninject(&mut document).unwrap();
    assert_eq!(document, original);
    let known: Vec<_> = wishes::RULES.iter().map(|(key, flag, _)| (*key, *flag)).collect();
    let mut read = leno_redirect::cni::ANNOTATIONS.to_vec();
    read.sort_unstable();
    assert!(known.iter().all(|pair| read.contains(pair)) && known.len() == read.len(), "{read:?}");
}
