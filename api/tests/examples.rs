//! Every example can be loaded, and there is nothing odd about it beside the shop's services.

#![expect(clippy::unwrap_used, reason = "a test: what it cannot read fails it")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use leno_api::{analyze, yaml};

fn examples(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            examples(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

/// What belongs to Kubernetes and not to Leno: injected, and given back, by the tests of the command line.
const KUBERNETES: &str = "kubernetes";

fn manifests_of_kubernetes(file: &Path) {
    let documents = yaml::documents(&fs::read_to_string(file).unwrap()).unwrap();
    assert!(!documents.is_empty(), "{}", file.display());
    for document in documents {
        let text = |at: &str| document.value.pointer(at).and_then(|value| value.as_str());
        for at in ["/apiVersion", "/kind", "/metadata/name"] {
            assert!(text(at).is_some_and(|text| !text.is_empty()), "{}: {at}", file.display());
        }
        let version = text("/apiVersion").unwrap();
        assert!(!version.contains("leno.dev"), "{}: belongs beside the others", file.display());
    }
}

#[test]
fn every_example_loads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let services = fs::read_to_string(root.join("shop/mesh/services.yaml")).unwrap();
    let mut files = Vec::new();
    examples(&root, &mut files);
    assert!(files.len() >= 10, "only {files:?}");
    for file in files {
        if file.starts_with(root.join(KUBERNETES)) {
            manifests_of_kubernetes(&file);
            continue;
        }
        let (mut resources, problems) = yaml::resources(&fs::read_to_string(&file).unwrap());
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(problems.is_empty() && !resources.is_empty(), "{}: {problems:?}", file.display());
        if !file.ends_with("services.yaml") {
            resources.extend(yaml::resources(&services).0);
        }
        let findings = analyze::findings(&resources);
        assert!(findings.is_empty(), "{}: {findings:?}", file.display());
    }
}
