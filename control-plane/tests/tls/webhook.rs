//! The webhook's port, called as the API server calls it.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use leno_control_plane::inject;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    Plane,
    client::{PATIENCE, Trust, http_over},
    mint::Mint,
};

fn port(plane: &Plane) -> SocketAddr {
    plane.running.addresses.webhook.unwrap()
}

async fn plane() -> Plane {
    Plane::start(|_, settings| settings.webhook = Some(([127, 0, 0, 1], 0).into())).await
}

/// As `kube-apiserver` of Kubernetes 1.32 sends it for a pod of a ReplicaSet.
fn review(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop", "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod, "oldObject": null, "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

/// With what the API server and other webhooks have put into it already.
fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "generateName": "orders-6d9f7c5b9d-", "creationTimestamp": null,
            "labels": {"app": "orders", "pod-template-hash": "6d9f7c5b9d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-6d9f7c5b9d",
                "uid": "b1", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": []}}],
            "containers": [{
                "name": "app", "image": "orders:1", "resources": {}, "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"},
                    "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "orders", "serviceAccount": "orders", "securityContext": {},
            "schedulerName": "default-scheduler", "enableServiceLinks": true,
        },
        "status": {},
    })
}

async fn ask(trust: &Trust, address: SocketAddr, path: &str, body: &Value) -> (u16, Value) {
    trust.http(address, "POST", path, None, &body.to_string()).await
}

#[tokio::test]
async fn a_pod_gets_its_sidecar() {
    let plane = plane().await;
    let (code, answer) = ask(&plane.trust, port(&plane), "/inject", &review(&pod())).await;
    assert_eq!(code, 200, "{answer}");
    let response = &answer["response"];
    assert_eq!(response["uid"], "0df28fbd-5f5f-11e8-bc74-36e6bb280816");
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut patched = pod();
    json_patch::patch(&mut patched, &patch).unwrap();
    let mut expected = pod();
    inject::inject(&mut expected, &inject::Settings::default()).unwrap();
    assert_eq!(patched, expected, "the same as the command");

    let (_, again) = ask(&plane.trust, port(&plane), "/inject", &review(&patched)).await;
    assert_eq!(
        (&again["response"]["allowed"], &again["response"]["patch"]),
        (&json!(true), &Value::Null)
    );
    plane.counted(r#"leno_webhook_requests_total{result="injected",webhook="inject"} 1"#).await;
    plane.counted(r#"leno_webhook_requests_total{result="passed",webhook="inject"} 1"#).await;
    plane.running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_applied_is_refused_before_it_is_stored() {
    let plane = plane().await;
    let mut body = review(&json!({
        "apiVersion": "leno.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "orders", "namespace": "shop"}, "spec": {"ports": [{"name": "http", "port": 0}]},
    }));
    body["request"]["kind"] =
        json!({"group": "leno.dev", "version": "v1alpha1", "kind": "Service"});
    let (code, answer) = ask(&plane.trust, port(&plane), "/validate", &body).await;
    assert_eq!((code, &answer["response"]["allowed"]), (200, &json!(false)), "{answer}");
    let status = &answer["response"]["status"];
    assert_eq!(status["details"]["causes"][0]["field"], "spec.ports[0].port");
    assert!(status["message"].as_str().unwrap().contains("Service \"orders\" is invalid"));
}

#[tokio::test]
async fn everything_else_is_told_what_there_is() {
    let plane = plane().await;
    let (trust, address) = (&plane.trust, port(&plane));
    assert_eq!(trust.http(address, "GET", "/inject", None, "").await.0, 405);
    let (code, text) = trust.http(address, "POST", "/mutate", None, "").await;
    assert_eq!(
        (code, text.as_str().unwrap()),
        (404, "there are POST /inject and POST /validate\n")
    );
    let (code, text) = ask(trust, address, "/inject", &json!({"kind": "Pod"})).await;
    assert_eq!(code, 400);
    assert!(text.as_str().unwrap().contains("must be an AdmissionReview"), "{text}");
    // Announced only: who sends so much is told before it is all there.
    let stream = trust.dial(address, b"http/1.1").await.unwrap();
    let body = "x".repeat(8 * 1024 * 1024 + 1);
    let (code, text) = http_over(stream, "POST", "/inject", None, &body).await;
    assert_eq!(code, 413, "{text}");
    plane.counted(r#"leno_webhook_requests_total{result="bad",webhook="inject"} 2"#).await;
}

#[tokio::test]
async fn callers_show_a_certificate_where_that_is_asked() {
    let mint = Mint::new();
    let pem = format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        STANDARD.encode(mint.root())
    );
    let plane = Plane::start(|directory, settings| {
        let path = directory.join("callers.pem");
        fs::write(&path, pem).unwrap();
        settings.webhook = Some(([127, 0, 0, 1], 0).into());
        settings.webhook_client_ca = Some(path);
    })
    .await;
    let body = review(&pod());
    let (code, text) = ask(&plane.trust, port(&plane), "/inject", &body).await;
    assert_eq!(code, 401);
    assert!(text.as_str().unwrap().contains("must show a client certificate"), "{text}");
    let proven = plane.trust.with(&mint.leaf(&["spiffe://elsewhere/api-server"], |_| {}));
    let (code, answer) = ask(&proven, port(&plane), "/inject", &body).await;
    assert_eq!((code, &answer["response"]["allowed"]), (200, &json!(true)));
    let stranger = plane.trust.with(&Mint::new().leaf(&["spiffe://elsewhere/api-server"], |_| {}));
    assert!(stranger.refusal(port(&plane)).await.is_some());
}

#[tokio::test]
async fn a_file_of_roots_that_has_none_keeps_it_from_starting() {
    let directory = tempfile::TempDir::new().unwrap();
    let mut settings = leno_control_plane::Settings::ephemeral(directory.path().into());
    let path = directory.path().join("callers.pem");
    fs::write(&path, "nothing").unwrap();
    settings.webhook = Some(([127, 0, 0, 1], 0).into());
    settings.webhook_client_ca = Some(path);
    let error = leno_control_plane::start(settings).await.unwrap_err().to_string();
    assert!(error.contains("callers.pem: has no certificate"), "{error}");
}

/// Certificates live for ten seconds here: within seven of them there is another, and no caller has noticed.
#[tokio::test]
async fn the_certificate_is_renewed_under_load() {
    let plane = Plane::start(|_, settings| {
        settings.webhook = Some(([127, 0, 0, 1], 0).into());
        settings.certificate_ttl = Duration::from_secs(10);
    })
    .await;
    let (address, trust) = (port(&plane), Arc::new(plane.trust.clone()));
    let first = Arc::new(Mutex::new(None));
    let renewed = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for _ in 0..3 {
        let (trust, first, renewed) = (trust.clone(), first.clone(), renewed.clone());
        callers.spawn(async move {
            while !renewed.load(Ordering::Relaxed) {
                let stream = trust.dial(address, b"http/1.1").await.unwrap();
                let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
                let body = review(&pod()).to_string();
                let (code, _) = http_over(stream, "POST", "/inject", None, &body).await;
                assert_eq!(code, 200);
                let mut first = first.lock().unwrap();
                if first.get_or_insert_with(|| shown.clone()) != &shown {
                    renewed.store(true, Ordering::Relaxed);
                }
            }
        });
    }
    let done = async {
        while let Some(caller) = callers.join_next().await {
            caller.unwrap()
        }
    };
    timeout(2 * PATIENCE.max(Duration::from_secs(15)), done).await.unwrap();
    assert!(renewed.load(Ordering::Relaxed));
}
