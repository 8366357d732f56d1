//! The API by the stock `kubectl`, where there is one on the PATH.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
    time::Duration,
};

use leno_control_plane::{
    Running, Settings,
    access::{NewToken, Role, TokenFile},
};
use tempfile::TempDir;

const MANIFESTS: &str = r#"
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop, labels: {app: orders}}
spec:
  hosts: [orders]
  ports: [{name: http, port: 80, protocol: http}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: orders}]
  rules: [{backendRefs: [{name: orders, port: 80, weight: 90}, {name: orders-v2, port: 80, weight: 10}]}]
"#;

const PATIENCE: Duration = Duration::from_secs(60);

struct Kubectl {
    server: Vec<String>,
    home: TempDir,
    /// The control plane ends when this is dropped.
    running: Running,
}

impl Kubectl {
    /// Over TLS, as people do it from elsewhere. Without a token kubectl would ask for a password then.
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let settings = Settings::ephemeral(directory.path().into());
        let running = leno_control_plane::start(settings).await.unwrap();
        let (name, role) = ("kubectl", Role::Admin);
        let (namespace, service_account, expires, once) = (None, None, None, false);
        let new = NewToken { name, role, namespace, service_account, expires, once };
        let token = TokenFile::open(directory.path()).unwrap().issue(new).unwrap();
        let roots = running.roots.display();
        let server = vec![
            format!("--server=https://{}", running.addresses.api),
            format!("--certificate-authority={roots}"),
            format!("--token={token}"),
        ];
        Self { server, home: directory, running }
    }

    fn plainly(mut self) -> Self {
        let address = self.running.addresses.api;
        self.server = vec![format!("--server=http://{address}")];
        self
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.server).args(["--namespace=shop", "--request-timeout=20s"]);
        // Its discovery cache must not outlive the test, and no kubeconfig must matter.
        command.env("HOME", self.home.path()).env("KUBECONFIG", "/dev/null");
        command.args(arguments.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs kubectl with an input; answers whether it succeeded, and all that it said.
    async fn run(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut command = self.command(arguments);
        let input = input.to_owned();
        let run = move || -> Output {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn fine(&self, arguments: &str, input: &str, expected: &[&str]) {
        let (success, text) = self.run(arguments, input).await;
        assert!(success, "kubectl {arguments}: {text}");
        for part in expected {
            assert!(text.contains(part), "kubectl {arguments}: no {part:?} in\n{text}");
        }
    }

    async fn fails(&self, arguments: &str, input: &str, expected: &str) {
        let (success, text) = self.run(arguments, input).await;
        assert!(!success, "kubectl {arguments} succeeded: {text}");
        assert!(text.contains(expected), "kubectl {arguments}: no {expected:?} in\n{text}");
    }
}

fn is_there() -> bool {
    let there = Command::new("kubectl").args(["version", "--client"]).output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: there is no kubectl on the PATH");
    }
    there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_as_people_know_it() {
    if !is_there() {
        return;
    }
    let kubectl = Kubectl::start().await;
    kubectl
        .fine(
            "api-resources",
            "",
            &["httproutes", "gateway.networking.k8s.io/v1", "trafficpolicies", "wl"],
        )
        .await;
    kubectl.fine("version", "", &["Server Version"]).await;
    kubectl.fine("explain services.spec.ports.protocol", "", &["<string>", "grpc"]).await;
    kubectl.fine("explain httproute.spec --recursive", "", &["backendRefs"]).await;
    kubectl.fails("diff -f -", MANIFESTS, "+kind: Service").await;

    let apply = "apply -f -";
    kubectl
        .fine(&format!("{apply} --dry-run=server"), MANIFESTS, &["orders created (server dry run)"])
        .await;
    kubectl.fine("get all", "", &["No resources found"]).await;
    kubectl.fine("get trustbundles -n leno-system", "", &["mesh"]).await;
    kubectl.fails("delete trustbundle mesh -n leno-system", "", "certificate authority").await;
    kubectl
        .fine(
            apply,
            MANIFESTS,
            &["service.leno.dev/orders created", "Warning", "no Service shop/orders-v2"],
        )
        .await;
    kubectl.fine(apply, MANIFESTS, &["service.leno.dev/orders unchanged"]).await;
    kubectl.fine("get services -A", "", &["NAMESPACE", "shop", "orders", "80"]).await;
    kubectl.fine("get httproute orders -o yaml", "", &["resourceVersion:", "weight: 90"]).await;
    kubectl.fine("diff -f -", MANIFESTS, &[]).await;
    let changed = MANIFESTS.replace("weight: 10", "weight: 50");
    kubectl.fails("diff -f -", &changed, "+      weight: 50").await;
    kubectl.fine(apply, &changed, &["orders configured"]).await;

    kubectl.fine("apply --server-side -f -", &changed, &["serverside-applied"]).await;
    let taken = changed.replace("weight: 50", "weight: 60");
    kubectl
        .fails(
            "apply --server-side --field-manager=other -f -",
            &taken,
            "conflict with \"kubectl\"",
        )
        .await;
    let force = "apply --server-side --field-manager=other --force-conflicts -f -";
    kubectl.fine(force, &taken, &["serverside-applied"]).await;
    kubectl.fine("get httproute orders -o jsonpath={.metadata.generation}", "", &["3"]).await;

    kubectl.fine("label service orders team=a", "", &["labeled"]).await;
    kubectl.fine("get services -l team=a --show-labels", "", &["orders", "team=a"]).await;
    kubectl.fine("get services -l team=b", "", &["No resources"]).await;
    kubectl.fine("annotate service orders note=x", "", &["annotated"]).await;
    kubectl
        .fine(r#"patch service orders --type=merge -p {"spec":{"hosts":["o"]}}"#, "", &["patched"])
        .await;
    kubectl
        .fine(
            r#"patch service orders --type=json -p [{"op":"remove","path":"/spec/hosts"}]"#,
            "",
            &["patched"],
        )
        .await;
    kubectl.fine("describe service orders", "", &["Name:", "orders", "Port:"]).await;
    kubectl.fine("replace -f -", MANIFESTS, &["replaced"]).await;
    kubectl.fine("get namespaces", "", &["default", "shop"]).await;

    kubectl.fine("delete -f -", MANIFESTS, &["\"orders\" deleted"]).await;
    kubectl.fine("get all", "", &["No resources found"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_says_what_is_wrong() {
    if !is_there() {
        return;
    }
    let kubectl = Kubectl::start().await.plainly();
    let apply = "apply -f -";
    let typo = MANIFESTS.replace("protocol: http", "protocl: http");
    kubectl.fails(apply, &typo, "spec.ports[0].protocl: unknown field").await;
    let port = MANIFESTS.replace("port: 80,", "port: 800000,");
    kubectl.fails(apply, &port, "spec.ports[0].port: 800000 is not a port").await;
    let kind = MANIFESTS.replace("kind: Service\nmeta", "kind: Servise\nmeta");
    kubectl.fails(apply, &kind, "no matches for kind \"Servise\"").await;
    kubectl.fails("get service none", "", "services.leno.dev \"none\" not found").await;
    kubectl.fails("create namespace x", "", "one is there when something is in it").await;
    kubectl.run(apply, MANIFESTS).await;
    kubectl.fails("create -f -", MANIFESTS, "already exists").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_watches() {
    if !is_there() {
        return;
    }
    let kubectl = Kubectl::start().await;
    kubectl.fine("apply -f -", MANIFESTS, &[]).await;
    let mut watching = kubectl.command("get services -w --output-watch-events").spawn().unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let (sender, mut lines_read) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut events: Vec<String> = Vec::new();
    for (event, command) in [
        ("ADDED", Some("label service orders team=a")),
        ("MODIFIED", Some("delete service orders")),
        ("DELETED", None),
    ] {
        while events.last().is_none_or(|last| last != event) {
            let line = tokio::time::timeout(PATIENCE, lines_read.recv()).await.expect(event);
            let line = line.expect("kubectl ended");
            events.extend(line.split_whitespace().next().map(str::to_owned));
        }
        if let Some(command) = command {
            kubectl.fine(command, "", &[]).await;
        }
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(events.remove(0), "EVENT", "the title");
    // The control plane writes its status, too.
    events.dedup();
    assert_eq!(events, ["ADDED", "MODIFIED", "DELETED"]);
}
