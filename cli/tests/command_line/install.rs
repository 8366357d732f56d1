//! What people install with: manifests, the chart, a cluster's or machine's fitness.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::{ControlPlane, Lines, Said, leno};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn what_is_printed_is_the_same_in_both_forms() {
    let json: Value = serde_json::from_str(&leno(&["install", "-o", "json"]).good()).unwrap();
    let yaml = leno(&["install"]).good();
    let documents = yaml.matches("\n---\n").count() + 1;
    assert_eq!(json["items"].as_array().unwrap().len(), documents);
    assert!(yaml.starts_with("---\napiVersion: v1\nkind: Namespace\n"), "{yaml:.200}");
}

#[test]
fn settings_that_the_control_plane_would_refuse_are_refused_now() {
    for (set, problem) in [
        ("trustDomain=Shop", "the control plane would not start"),
        ("certificateTtl=1s", "10 s to 720 h"),
        ("logFormat=xml", "must be one of json, text"),
        ("nothing=1", "there is no such setting"),
    ] {
        let said = leno(&["install", "--set", set]);
        assert_eq!((said.code, said.output.as_str()), (1, ""), "{set}");
        assert!(said.errors.contains(problem), "{set}: {}", said.errors);
    }
    let said = leno(&["install", "-f", "/nowhere/values.yaml"]);
    assert!(said.errors.contains("/nowhere/values.yaml"), "{}", said.errors);
}

#[test]
fn uninstalling_says_what_stays() {
    let said = leno(&["uninstall"]);
    assert_eq!(said.code, 0);
    assert!(said.output.contains("kind: MutatingWebhookConfiguration"));
    assert!(!said.output.contains("PersistentVolumeClaim"));
    assert!(said.errors.contains("stay; --purge takes them, too"), "{}", said.errors);
    assert!(leno(&["uninstall", "--purge"]).output.contains("kind: PersistentVolumeClaim"));
}

/// Helm renders the chart, Kubernetes' schemas judge the objects, a linter the Dockerfiles. `.ci/run` installs them.
#[test]
fn other_peoples_tools_agree() {
    let python = root().join("target/python/bin/python");
    if !python.exists() {
        eprintln!(
            "skipped: {} is not there; `python3 -m venv target/python && target/python/bin/pip install -r deploy/requirements.txt` makes it",
            python.display()
        );
        return;
    }
    let script = root().join("deploy/verify.py");
    let said = Command::new(python).arg(script).arg(env!("CARGO_BIN_EXE_leno")).output().unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{}{errors}", String::from_utf8_lossy(&said.stdout));
}

/// Programs, users and commands of the images are those that pods are told to use.
#[test]
fn images_hold_what_pods_start() {
    for (image, package, user) in [
        ("proxy", "leno-proxy", "1337:1337"),
        ("control-plane", "leno-control-plane", "65532:65532"),
        ("redirect", "leno-redirect", "0:0"),
    ] {
        let file = root().join(format!("deploy/docker/{image}.Dockerfile"));
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("-p {package} --bin {package}")), "{image}");
        assert!(text.contains(&format!("\nUSER {user}\n")), "{image}");
        let entry = format!("\nENTRYPOINT [\"/usr/local/bin/{package}\"]\n");
        assert!(text.contains(&entry), "{image}");
        let manifest = fs::read_to_string(root().join(image).join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{image}");
    }
}

/// systemd itself reads the units, with a program that is there.
#[test]
fn units_are_what_systemd_understands() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze (Debian's package systemd has it)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (file, unit) in [
        ("leno-proxy@.service", "leno-proxy@orders-1.service"),
        ("leno-control-plane.service", "leno-control-plane.service"),
    ] {
        let text = fs::read_to_string(root().join("deploy/systemd").join(file)).unwrap();
        assert!(text.contains("ExecStart=/usr/local/bin/leno "), "{file}");
        let path = folder.path().join(unit);
        fs::write(&path, text.replace("/usr/local/bin/leno", "/bin/true")).unwrap();
        let said = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(&path)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && !errors.contains(unit), "{file}: {errors}");
    }
}

const SERVICE: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: http, port: 80, protocol: http}]}
";

/// The machine's service is part of the mesh while its sidecar runs, and no longer.
#[test]
fn a_machine_joins_and_leaves() {
    let mesh = ControlPlane::start();
    mesh.leno(&["apply", "-f", &mesh.file("service.yaml", SERVICE)]).good();
    let (words, name) = mesh.join("orders-1", "orders");
    let more = ["--app", "http=9001", "--foreground", "--address", "127.0.0.1"];
    let any = ["--outbound=127.0.0.1:0", "--inbound=127.0.0.1:0", "--admin=127.0.0.1:0"];
    let words: Vec<&str> = words.iter().map(String::as_str).chain(more).chain(any).collect();
    let sidecar = Lines::of(&words);
    let announced: Value = serde_json::from_str(&sidecar.next_line()).unwrap();
    assert!(announced["admin"].is_string());
    let workload = |wanted: bool| {
        for _ in 0..400 {
            let said = mesh.leno(&["get", "workload", &name, "-n", "shop", "-o", "json"]);
            if (said.code == 0) == wanted {
                return said;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the workload is {}", if wanted { "not there" } else { "still there" });
    };
    let there: Value = serde_json::from_str(&workload(true).good()).unwrap();
    assert_eq!(there["spec"]["services"], serde_json::json!(["orders"]));
    assert_eq!(there["spec"]["ports"], serde_json::json!({"http": 9001}));
    let process = rustix::process::Pid::from_raw(i32::try_from(sidecar.id()).unwrap()).unwrap();
    rustix::process::kill_process(process, Signal::TERM).unwrap();
    sidecar.wait();
    let Said { errors, .. } = workload(false);
    assert!(errors.contains("orders-1"), "{errors}");
}

/// A kubectl that answers from files named after what it is asked for.
fn kubectl(answers: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\nfile=$(dirname \"$0\")/$1-$2\ntest -e \"$file\" && cat \"$file\" && exit 0\n\
                  echo \"Unable to connect to the server: dial tcp: no such host\" >&2\nexit 1\n";
    let path = folder.path().join("kubectl");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in answers {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn check(folder: &Path, words: &[&str]) -> (i32, String) {
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let said = Command::new(env!("CARGO_BIN_EXE_leno"))
        .arg("check")
        .args(words)
        .env("PATH", path)
        .output()
        .unwrap();
    (said.status.code().unwrap(), String::from_utf8(said.stdout).unwrap())
}

#[test]
fn a_cluster_is_looked_at_before_and_after() {
    let version = r#"{"serverVersion": {"major": "1", "minor": "32"}}"#;
    let route = r#"{"spec": {"versions": [{"name": "v1", "served": true}]}}"#;
    let good = kubectl(&[
        ("version--o", version),
        ("auth-can-i", "yes\n"),
        ("get-crd", route),
        ("get-deployment", ""),
    ]);
    let (code, said) = check(good.path(), &["--pre"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Kubernetes 1.32") && said.contains("HTTPRoute v1 is there"), "{said}");

    let poor = kubectl(&[
        ("version--o", version),
        ("auth-can-i", "no\n"),
        ("get-crd", ""),
        ("get-deployment", ""),
    ]);
    let (code, said) = check(poor.path(), &["--pre", "kubernetes"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("hint: install as an administrator"), "{said}");
    assert!(said.contains("gatewayApi.install=true"), "{said}");

    let nobody = kubectl(&[]);
    for words in [&["--pre"][..], &["--kubernetes"]] {
        let (code, said) = check(nobody.path(), words);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no such host") && said.contains("hint: install kubectl"), "{said}");
    }
    let (code, said) = check(poor.path(), &["--kubernetes"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is not installed") && said.contains("hint: `leno install |"), "{said}");
}
