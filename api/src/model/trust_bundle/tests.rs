use serde_json::json;

use super::*;
use crate::Resource;

const ROOT: &str = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
const OTHER: &str = "-----BEGIN CERTIFICATE-----\nMAMCAQI=\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAMCAQE=\n-----END PRIVATE KEY-----\n";

fn read_named(
    namespace: &str,
    name: &str,
    roots: Value,
    signer: &str,
) -> Result<TrustBundle, String> {
    let object = json!({
        "apiVersion": "leno.dev/v1alpha1",
        "kind": "TrustBundle",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"trustDomain": "cluster.local", "roots": roots, "signer": signer},
    });
    match Resource::from_json(object).map_err(|invalid| invalid.to_string())?.model {
        Model::TrustBundle(bundle) => Ok((*bundle).clone()),
        other => panic!("{other:?}"),
    }
}

fn read_roots(roots: Value) -> Result<TrustBundle, String> {
    read_named(SYSTEM_NAMESPACE, MESH, roots, &"0a".repeat(32))
}

#[test]
fn reads_roots_as_der() {
    let bundle = read_roots(json!([ROOT, format!("subject=CN = root\n{OTHER}\n")])).unwrap();
    assert_eq!(bundle.trust_domain, TrustDomain::default());
    let roots: Vec<&[u8]> = bundle.roots.iter().map(|root| &**root).collect();
    assert_eq!(roots, [[0x30, 3, 2, 1, 1], [0x30, 3, 2, 1, 2]]);
    assert_eq!(bundle.signer, "0a".repeat(32));
}

#[test]
fn a_root_is_one_certificate_and_nothing_else() {
    let rows = [
        (json!([]), "spec.roots: has 0 entries; 1 to 8"),
        (json!(vec![ROOT; 9]), "spec.roots: has 9 entries; 1 to 8"),
        (json!([ROOT, ROOT]), "spec.roots[1]: stands twice"),
        (json!([""]), "spec.roots[0]: must be exactly one PEM block"),
        (json!(["MAMCAQE="]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([KEY]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([format!("{ROOT}{OTHER}")]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([format!("{ROOT}{KEY}")]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([ROOT.replace("MAMCAQE=", "")]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([ROOT.replace("MAMCAQE=", "%%%%")]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([ROOT.replace("END", "FIN")]), "spec.roots[0]: must be exactly one PEM block"),
        (json!([format!("{}{ROOT}", " ".repeat(MAX_PEM))]), "spec.roots[0]: has 16"),
    ];
    for (roots, message) in rows {
        let error = read_roots(roots.clone()).unwrap_err();
        assert!(error.contains(message), "{roots}: {error}");
        assert!(!error.contains("MAMCAQE"), "{error}");
    }
}

#[test]
fn there_is_one_bundle_only() {
    for (namespace, name) in [("shop", MESH), (SYSTEM_NAMESPACE, "other")] {
        let error = read_named(namespace, name, json!([ROOT]), &"0a".repeat(32)).unwrap_err();
        assert!(error.contains("metadata.name: there is one trust bundle only"), "{error}");
    }
}

#[test]
fn the_signer_is_a_fingerprint() {
    for signer in ["", &"0A".repeat(32), &"0g".repeat(32), &"0a".repeat(31), &"é".repeat(32)] {
        let error = read_named(SYSTEM_NAMESPACE, MESH, json!([ROOT]), signer).unwrap_err();
        assert!(error.contains("spec.signer: must be the SHA-256"), "{signer}: {error}");
    }
}
