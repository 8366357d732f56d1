//! `leno inject` and `leno uninject` on files that people have.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use leno_api::yaml;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Said, leno};

fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes");
    folder.join(name).display().to_string()
}

/// Runs `leno` with something on its standard input.
fn with_input(arguments: &[&str], input: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_leno"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    // Beside the reading: either pipe may be full.
    let writing = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let done = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: done.status.code().unwrap(), output: text(done.stdout), errors: text(done.stderr) }
}

fn out(said: &Said) -> String {
    assert_eq!(said.code, 0, "{}", said.errors);
    said.output.clone()
}

fn documents(text: &str) -> Vec<Value> {
    yaml::documents(text).unwrap().into_iter().map(|document| document.value).collect()
}

#[test]
fn every_example_is_injected_and_given_back() {
    let mut names: Vec<String> = fs::read_dir(example(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["node-agent.yaml", "orders.yaml", "report.yaml"]);
    for name in &names {
        let file = example(name);
        // What has no sidecar is printed as it is.
        let original = out(&leno(&["uninject", "-f", &file]));
        let injected = out(&leno(&["inject", "-f", &file]));
        assert_eq!(injected == original, name == "node-agent.yaml", "{name}");
        let again = with_input(&["inject", "-f", "-"], &injected);
        assert_eq!(out(&again), injected, "{name}");
        let back = with_input(&["uninject", "-f", "-"], &injected);
        assert_eq!(out(&back), original, "{name}");
    }
}

#[test]
fn it_says_what_became_of_each() {
    let output =
        leno(&["inject", "-f", &example("orders.yaml"), "-f", &example("node-agent.yaml")]);
    let printed = documents(&out(&output));
    assert_eq!(printed.len(), 4);
    let init = &printed[2]["spec"]["template"]["spec"]["initContainers"];
    assert_eq!(
        (&init[0]["name"], &init[1]["name"]),
        (&"leno-redirect".into(), &"leno-proxy".into())
    );
    let volumes = &printed[2]["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["configMap"]["defaultMode"], 0o444);
    let said = &output.errors;
    assert!(said.contains("orders.yaml: Deployment shop/orders: injected\n"), "{said}");
    assert!(
        said.contains("DaemonSet shop/node-agent: left alone: it uses its node's network"),
        "{said}"
    );
    let once = leno(&["inject", "-f", &example("orders.yaml")]);
    let again = with_input(&["inject", "-f", "-"], &out(&once));
    assert!(again.errors.contains("unchanged: it has this version's sidecar already"));
}

#[test]
fn flags_of_the_rules_are_those_of_the_program() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: a
  annotations:
    leno.dev/include-outbound-ports: '8443'
    leno.dev/exclude-outbound-ports: 5432, 8000-8099
    leno.dev/include-outbound-ranges: 10.0.0.0/8,fd00::/8
    leno.dev/exclude-outbound-ranges: 10.96.0.1
    leno.dev/include-inbound-ports: '*'
    leno.dev/exclude-inbound-ports: '9000'
    leno.dev/exclude-interfaces: eth1,veth*
spec:
  containers:
  - {name: app, image: app}
";
    let pod = documents(&out(&with_input(&["inject", "-f", "-"], text))).remove(0);
    let flags = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
    let mut command = vec!["redirect"];
    command.extend(flags.iter().map(|flag| flag.as_str().unwrap()));
    command.extend(["--dry-run", "--backend", "nft"]);
    let rules = out(&leno(&command));
    for entry in ["8443", "5432", "8000-8099", "10.0.0.0/8", "10.96.0.1", "9000", "eth1"] {
        assert!(rules.contains(entry), "{entry} is not in\n{rules}");
    }
}

#[test]
fn nothing_is_printed_where_something_is_wrong() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "good.yaml",
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - {name: a, image: a}\n",
    );
    write(
        "taken.yaml",
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: 15001\n",
    );
    write("broken.yml", "kind: Pod\n  spec: 1\n");
    let output = leno(&["inject", "-f", &folder.path().display().to_string()]);
    assert!(output.code == 1 && output.output.is_empty());
    let said = &output.errors;
    assert!(
        said.contains("taken.yaml:7: spec.containers[0].ports[0].containerPort: 15001 is a port of the sidecar"),
        "{said}"
    );
    assert!(said.contains("broken.yml:2: "), "{said}");
    assert!(said.contains("nothing was printed"));
}

#[test]
fn much_is_taken_and_too_much_is_refused_with_its_place() {
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n";
    let long = format!("{head}  text: {}\n", "x".repeat(5 * 1024 * 1024));
    let output = with_input(&["inject", "-f", "-"], &long);
    assert!(documents(&out(&output)) == documents(&long), "it is not what it was");
    assert!(output.errors.contains("there is no pod"));
    let many: String = (0..250_000).map(|at| format!("  k{at}: {at}\n")).collect();
    let output = with_input(&["inject", "-f", "-"], &format!("{head}{many}"));
    assert!(output.code == 1);
    assert!(output.errors.starts_with("error: (standard input):"), "{}", output.errors);
    let missing = leno(&["inject", "-f", "/nowhere.yaml"]);
    assert!(missing.errors.contains("/nowhere.yaml: cannot be read"));
}
