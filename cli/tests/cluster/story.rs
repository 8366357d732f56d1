//! From `leno install` to `leno uninstall`, with everything in between that needs no nodes.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api_server::{Cluster, assets, free},
    program::{Program, application, get, leno},
    until,
};

const SYSTEM: &str = "leno-system";
const NAME: &str = "leno-control-plane";
const ROUTES: &str = "httproutes.gateway.networking.k8s.io";
const OUR_SERVICES: &str = "apis/leno.dev/v1alpha1/namespaces/shop";

struct Story {
    cluster: Cluster,
    folder: TempDir,
    /// Where applications are: endpoints may not be on the loopback interface.
    host: IpAddr,
    manifests: Vec<Value>,
    /// Where the API server finds the webhook.
    webhook: SocketAddr,
    /// Whether init containers may stay.
    native: bool,
}

#[test]
fn what_people_do_with_kubectl_works() {
    let Some(assets) = assets() else { return };
    let Some(host) = own_address() else {
        eprintln!("skipped: this machine has no address but loopback, and endpoints need one");
        return;
    };
    let mut story = Story::begin(Cluster::start(assets), host);
    story.what_is_missing_before();
    story.install();
    let first = story.control_plane("first");
    story.leads(&first);
    let second = story.control_plane("second");
    story.namespace();
    story.pods_get_sidecars();
    story.what_is_wrong_is_refused();
    let sidecar = story.sidecar(&first);
    story.routes(&first, &sidecar);
    story.api_server_away(&first, &sidecar);
    let _stays = story.leader_gone(first, second);
    story.what_is_missing_after();
    story.uninstall();
}

/// This machine's address for others; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

impl Story {
    fn begin(cluster: Cluster, host: IpAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_authority(folder.path());
        let native = cluster.version() >= (1, 29);
        cluster.write_kubeconfig("nobody", "nobody");
        let webhook = free();
        Self { cluster, folder, host, manifests: Vec::new(), webhook, native }
    }

    fn what_is_missing_before(&self) {
        let said = leno(&self.cluster, "admin", &["check", "--pre"]);
        let old = self.cluster.version() < (1, 30);
        assert_eq!(said.fine, !old, "{}{}", said.output, said.errors);
        assert_eq!(said.output.contains("Leno needs Kubernetes 1.30"), old, "{}", said.output);
        assert!(said.output.contains("there are no HTTPRoutes"), "{}", said.output);
        let said = leno(&self.cluster, "nobody", &["check", "--pre"]);
        assert!(
            !said.fine && said.output.contains("install as an administrator"),
            "{}",
            said.output
        );
    }

    /// Everything that `leno install` prints, where the cluster has the kind; but no nodes run it: the API server finds
    /// the control plane under its name on this machine.
    fn install(&mut self) {
        let native = format!("sidecar.native={}", self.native);
        let sets = ["ca.secret=mesh-ca", "replicas=2", "gatewayApi.install=true", &native];
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let arguments: Vec<&str> = ["install", "-o", "json"].into_iter().chain(sets).collect();
        let printed = leno(&self.cluster, "admin", &arguments);
        let printed: Value = serde_json::from_str(&printed.output).unwrap();
        self.manifests = printed["items"].as_array().unwrap().clone();
        let port = self.webhook.port();
        let version = self.cluster.version();
        for manifest in &mut self.manifests {
            leave_out_unknown(manifest, version);
            if manifest["kind"] == "Service" {
                manifest["spec"] = json!({"type": "ExternalName", "externalName": "localhost"});
            }
            let webhooks = manifest.get_mut("webhooks").and_then(Value::as_array_mut);
            for webhook in webhooks.into_iter().flatten() {
                webhook["clientConfig"]["service"]["port"] = port.into();
            }
        }
        let known = |manifest: &&Value| {
            let served = self.cluster.serves(manifest["apiVersion"].as_str().unwrap());
            if !served {
                eprintln!(
                    "left out: {} of {} is not served",
                    manifest["kind"], manifest["apiVersion"]
                );
            }
            served
        };
        let items: Vec<&Value> = self.manifests.iter().filter(known).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let said = self.cluster.apply(&list);
        assert_eq!(said.matches(" serverside-applied").count(), items.len(), "{said}");
        self.cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all"], "");
        // Again, as for a new version, in either way.
        self.cluster.apply(&list);
        self.cluster.kubectl(&["apply", "-f", "-"], &list.to_string());
    }

    /// With the flags, the variables and the rights that were installed.
    fn control_plane(&self, name: &str) -> Program {
        let token = self.cluster.token(SYSTEM, NAME, "https://kubernetes.default.svc", None);
        let config = self.cluster.write_kubeconfig(name, &token);
        let folder = self.folder.path().join(name);
        let deployment = self.manifests.iter().find(|manifest| manifest["kind"] == "Deployment");
        let container = deployment.unwrap().pointer("/spec/template/spec/containers/0").unwrap();
        let first = name == "first";
        let arguments = container["args"].as_array().unwrap().iter().map(|argument| {
            let argument = argument.as_str().unwrap();
            let authority = self.folder.path().join("ca");
            match argument.split_once('=').map_or(argument, |(flag, _)| flag) {
                "--webhook" if first => format!("--webhook={}", self.webhook),
                flag @ ("--webhook" | "--xds" | "--metrics" | "--api") => {
                    format!("{flag}=127.0.0.1:0")
                }
                "--data-dir" => format!("--data-dir={}", folder.join("data").display()),
                _ => argument.replace("/etc/leno/ca", &authority.display().to_string()),
            }
        });
        let mut all = vec!["control-plane".to_owned()];
        all.extend(arguments);
        all.push(format!("--kubernetes-config={}", config.display()));
        Program::start(&folder, &all, &variables(container, |_| None))
    }

    fn leader(&self) -> Option<String> {
        let lease = self.cluster.find(&["lease", NAME, "-n", SYSTEM])?;
        Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
    }

    /// Leads, and lets the API server know whom to trust.
    fn leads(&self, control_plane: &Program) {
        until("a leader", || self.leader());
        for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
            until("the caBundle", || {
                let found = self.cluster.find(&[kind, "leno"])?;
                let webhooks = found["webhooks"].as_array()?.clone();
                webhooks
                    .iter()
                    .all(|webhook| webhook["clientConfig"]["caBundle"].is_string())
                    .then_some(())
            });
        }
        let log = control_plane.log();
        assert!(!log.contains("does not let us"), "a right is missing: {log}");
    }

    fn namespace(&self) {
        let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        self.cluster.apply(&namespace("shop", json!({"leno.dev/inject": "enabled"})));
        self.cluster.apply(&namespace("other", json!({})));
        until("the trusted roots", || self.cluster.find(&["configmap", "leno-root", "-n", "shop"]));
        assert!(self.cluster.find(&["configmap", "leno-root", "-n", "other"]).is_none());
        self.cluster.kubectl(&["delete", "configmap", "leno-root", "-n", "shop"], "");
        until("them again", || self.cluster.find(&["configmap", "leno-root", "-n", "shop"]));
    }

    /// What kubectl said, and the names of all containers.
    fn make_pod(&self, pod: &Value) -> (String, Vec<String>) {
        let said = self.cluster.kubectl(&["create", "-f", "-"], &pod.to_string());
        let metadata = &pod["metadata"];
        let (name, namespace) = (&metadata["name"], &metadata["namespace"]);
        let made = ["pod", name.as_str().unwrap(), "-n", namespace.as_str().unwrap()];
        let made = self.cluster.find(&made).unwrap();
        let containers = ["initContainers", "containers"].map(|list| made["spec"][list].clone());
        let containers = containers.iter().filter_map(Value::as_array).flatten();
        (said, containers.map(|container| container["name"].as_str().unwrap().to_owned()).collect())
    }

    fn pods_get_sidecars(&self) {
        for (namespace, label, wanted) in [
            ("shop", None, true),
            ("shop", Some("disabled"), false),
            ("other", None, false),
            ("other", Some("enabled"), true),
        ] {
            let name = format!("web-{}", label.unwrap_or("plain"));
            let (said, containers) = self.make_pod(&pod(namespace, &name, label));
            assert!(!said.contains("Warning"), "{said}");
            let injected = containers.contains(&"leno-proxy".to_owned());
            assert_eq!(injected, wanted, "{namespace} {label:?}: {containers:?}");
        }
        let mut on_the_node = pod("shop", "node", None);
        on_the_node["spec"]["hostNetwork"] = true.into();
        let (said, containers) = self.make_pod(&on_the_node);
        assert_eq!(containers, ["app"]);
        assert!(said.contains("leno: no sidecar was injected"), "{said}");
    }

    fn what_is_wrong_is_refused(&self) {
        let policy = |retries: Value| {
            json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
                "metadata": {"name": "orders", "namespace": "shop"},
                "spec": {"targetRefs": [{"group": "core", "kind": "Service", "name": "orders"}], "retry": retries}})
        };
        let wrong = policy(json!({"atempts": 3}));
        let said = self.cluster.as_user("admin", &["create", "-f", "-"], &wrong.to_string());
        assert!(!said.fine && said.errors.contains("atempts"), "{}", said.errors);
        assert!(said.errors.contains("is invalid"), "{}", said.errors);
        let route = route("orders", "orders", Some("eighty".into()));
        let said = self.cluster.as_user("admin", &["create", "-f", "-"], &route.to_string());
        assert!(!said.fine, "{}", said.output);
        // A gateway's route is somebody else's.
        let mut gateways = crate::story::route("gateways", "orders", None);
        gateways["spec"]["parentRefs"] = json!([{"name": "edge"}]);
        self.cluster.apply(&gateways);
    }

    /// What a kubelet does with the pod `web-plain`: gives it an address and a token, and runs what was injected.
    fn sidecar(&self, control_plane: &Program) -> Program {
        let pod = self.cluster.find(&["pod", "web-plain", "-n", "shop"]).unwrap();
        let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].clone());
        let containers = lists.iter().filter_map(Value::as_array).flatten();
        let container = containers.into_iter().find(|container| container["name"] == "leno-proxy");
        let folder = self.folder.path().join("sidecar");
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let roots = self.cluster.find(&["configmap", "leno-root", "-n", "shop"]).unwrap();
        let roots = write("root.pem", roots["data"]["root.pem"].as_str().unwrap());
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "web", "namespace": "shop"}}));
        let token = write("token", &self.cluster.token("shop", "web", "leno", Some(&pod)));
        let any = || Some("127.0.0.1:0".to_owned());
        let mut environment = variables(container.unwrap(), |variable| {
            let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
            match variable["name"].as_str().unwrap() {
                "LENO_CONTROL_PLANE" => Some(control_plane.address("xds").to_string()),
                "LENO_CA_FILE" => Some(roots.clone()),
                "LENO_TOKEN_FILE" => Some(token.clone()),
                "LENO_STATE_DIR" => Some(folder.join("state").display().to_string()),
                "LENO_ADMIN" | "LENO_READY" | "LENO_METRICS" => any(),
                _ => Some(match field? {
                    "status.podIP" => self.host.to_string(),
                    "spec.serviceAccountName" => "web".to_owned(),
                    field => {
                        pod.pointer(&format!("/{}", field.replace('.', "/")))?.as_str()?.to_owned()
                    }
                }),
            }
        });
        // Nobody leads connections to it here.
        environment.remove("LENO_CAPTURE");
        environment.extend(
            ["LENO_OUTBOUND", "LENO_INBOUND"]
                .map(|name| (name.to_owned(), "127.0.0.1:0".to_owned())),
        );
        self.runs(&pod);
        let sidecar = Program::start(&folder, &["proxy".to_owned()], &environment);
        until("the sidecar to be ready", || {
            let (status, _) = get(sidecar.address("admin"), "localhost", "/ready")?;
            (status == 200).then_some(())
        });
        sidecar
    }

    fn runs(&self, pod: &Value) {
        let mut pod = pod.clone();
        let address = self.host.to_string();
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}]});
        let name = pod["metadata"]["name"].as_str().unwrap();
        self.cluster.raw("replace", &format!("/api/v1/namespaces/shop/pods/{name}/status"), &pod);
    }

    /// A service with one application behind it that says its name.
    fn service(&self, name: &'static str) {
        let port = application(SocketAddr::new(self.host, 0), name).port();
        let version = ["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"];
        let version = version.into_iter().find(|version| self.cluster.serves(version));
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}));
        self.cluster.apply(&json!({
            "apiVersion": version, "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-x"), "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": [self.host.to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        }));
    }

    fn answers(&self, sidecar: &Program, name: &str) {
        until(name, || {
            let (status, body) = get(sidecar.address("outbound"), "orders", "/")?;
            ((status, &*body) == (200, name)).then_some(())
        });
    }

    /// A condition in the status of the route `orders`.
    fn said(&self, kind: &str) -> Option<Value> {
        let route = self.cluster.find(&[ROUTES, "orders", "-n", "shop"])?;
        let conditions = route.pointer("/status/parents/0/conditions")?.as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == kind)
    }

    fn routes(&self, control_plane: &Program, sidecar: &Program) {
        self.service("orders");
        self.service("orders-v2");
        self.answers(sidecar, "orders");
        self.cluster.apply(&route("orders", "orders-v2", None));
        self.answers(sidecar, "orders-v2");
        let live = until("the route to be live", || {
            self.said("Live").filter(|live| live["status"] == "True")
        });
        assert!(live["message"].as_str().unwrap().starts_with("live on 1 of 1"), "{live}");
        assert_eq!(self.said("Accepted").unwrap()["status"], "True");
        self.cluster.apply(&json!({"apiVersion": "leno.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"targetRefs": [{"group": "core", "kind": "Service", "name": "orders"}],
                     "retry": {"attempts": 2}}}));
        for (kind, column) in [("trafficpolicies.leno.dev", 2), (ROUTES, 2)] {
            until("the column Live", || {
                let said = self.cluster.kubectl(&["get", kind, "orders", "-n", "shop"], "");
                assert!(said.contains("LIVE"), "{said}");
                (said.lines().nth(1)?.split_whitespace().nth(column) == Some("True")).then_some(())
            });
        }
        // Written once, and not again and again.
        let version = || {
            let route = self.cluster.find(&[ROUTES, "orders", "-n", "shop"]);
            route.unwrap()["metadata"]["resourceVersion"].clone()
        };
        let before = version();
        self.cluster.apply(&route("orders", "orders", None));
        self.answers(sidecar, "orders");
        self.cluster.apply(&route("orders", "orders-v2", None));
        self.answers(sidecar, "orders-v2");
        assert_ne!(version(), before);
        let log = control_plane.log();
        assert!(!log.contains("cannot be written"), "{log}");
    }

    /// Away, and back with another history: what came and went meanwhile was told by no watch.
    fn api_server_away(&mut self, control_plane: &Program, sidecar: &Program) {
        self.cluster.stop();
        self.answers(sidecar, "orders-v2");
        self.cluster.resume_elsewhere();
        // Nobody who validates knows the control plane's Lease to be old: the webhook still answers.
        self.cluster.kubectl(&["delete", ROUTES, "orders", "-n", "shop"], "");
        self.cluster.forget_history();
        self.answers(sidecar, "orders-v2");
        self.cluster.stop();
        self.cluster.resume();
        self.answers(sidecar, "orders");
        let path = format!("/{OUR_SERVICES}/services/orders");
        let (status, body) = get(control_plane.address("api"), "localhost", &path).unwrap();
        assert_eq!(status, 200, "{body}");
    }

    /// Another takes over what the leader did; whoever that is.
    fn leader_gone(&self, first: Program, second: Program) -> Program {
        let leads = |program: &Program| {
            let metrics = get(program.address("metrics"), "localhost", "/metrics")?.1;
            metrics.lines().any(|line| line == "leno_kubernetes_leader 1").then_some(())
        };
        let is_first = until("a leader", || {
            leads(&first).map(|()| true).or_else(|| leads(&second).map(|()| false))
        });
        let (gone, stays) = if is_first { (first, second) } else { (second, first) };
        drop(gone);
        until("another leader", || leads(&stays));
        self.cluster.kubectl(&["delete", "configmap", "leno-root", "-n", "shop"], "");
        let root = ["configmap", "leno-root", "-n", "shop"];
        until("the new leader's word", || self.cluster.find(&root));
        stays
    }

    fn what_is_missing_after(&self) {
        let said = leno(&self.cluster, "admin", &["check", "--kubernetes"]);
        // Nobody makes pods of the Deployment.
        assert!(
            !said.fine && said.output.contains("0 of 2 replicas are available"),
            "{}",
            said.output
        );
        for fine in ["are served", "knows whom to trust", "1 of 3 have a sidecar"] {
            assert!(said.output.contains(fine), "{fine}: {}", said.output);
        }
    }

    fn uninstall(&self) {
        let printed = leno(&self.cluster, "admin", &["uninstall", "--purge"]).output;
        // Nobody is here who empties namespaces.
        let delete = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
        let said = self.cluster.as_user("admin", &delete, &printed);
        let unknown = !self.cluster.serves("policy/v1");
        assert!(said.fine || unknown, "{}", said.errors);
        for kind in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
            assert!(self.cluster.find(&[kind, "leno"]).is_none());
        }
        until("the definitions to be gone", || {
            let found = self.cluster.kubectl(&["get", "crd", "-o", "name"], "");
            (!found.contains("leno.dev")).then_some(())
        });
        let (_, containers) = self.make_pod(&pod("shop", "late", None));
        assert_eq!(containers, ["app"]);
    }
}

/// A container's variables; those without a value of their own, and those that must be others here, from `other`.
fn variables(
    container: &Value,
    other: impl Fn(&Value) -> Option<String>,
) -> BTreeMap<String, String> {
    let all = container["env"].as_array().unwrap().iter();
    all.map(|variable| {
        let value = other(variable).or_else(|| Some(variable["value"].as_str()?.to_owned()));
        (variable["name"].as_str().unwrap().to_owned(), value.unwrap())
    })
    .collect()
}

/// What API servers older than Leno needs do not know, and server-side apply then refuses.
fn leave_out_unknown(manifest: &mut Value, version: (u32, u32)) {
    const SINCE: [(&str, (u32, u32)); 2] =
        [("x-kubernetes-validations", (1, 25)), ("matchConditions", (1, 28))];
    if let Some(fields) = manifest.as_object_mut() {
        fields.retain(|name, _| !SINCE.iter().any(|(new, since)| name == new && version < *since));
        fields.values_mut().for_each(|field| leave_out_unknown(field, version));
    }
    if let Some(items) = manifest.as_array_mut() {
        items.iter_mut().for_each(|item| leave_out_unknown(item, version));
    }
}

fn pod(namespace: &str, name: &str, label: Option<&str>) -> Value {
    let labels = label.map(|label| json!({"leno.dev/inject": label}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}}}]},
    })
}

/// All calls of `orders` to another service.
fn route(name: &str, to: &str, port: Option<Value>) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
                 "rules": [{"backendRefs": [{"name": to, "port": port.unwrap_or(80.into())}]}]},
    })
}

/// A root that issues by itself, as cert-manager makes one.
fn write_authority(folder: &Path) {
    let folder: PathBuf = folder.join("ca");
    fs::create_dir_all(&folder).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the mesh of a test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    for (name, text) in [("ca.crt", &root), ("tls.crt", &root), ("tls.key", &key.serialize_pem())] {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
