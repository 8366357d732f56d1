//! `leno cache` as a process, against a control plane and a sidecar that are processes, too.

use serde_json::Value;

use crate::process::{ControlPlane, leno, unused_address};

const SERVICE: &str = "\
apiVersion: leno.dev/v1alpha1
kind: Service
metadata: {name: products, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
";

#[test]
fn a_purge_without_anybody_to_carry_it_out_is_done_and_says_so() {
    let mesh = ControlPlane::start();
    mesh.leno(&["apply", "-f", &mesh.file("service.yaml", SERVICE)]).good();
    let purge = |more: &[&str]| {
        mesh.leno(&[&["cache", "purge", "--service", "shop/products:80"], more].concat())
    };
    let text = purge(&["--path", "/products/7?lang=en"]).good();
    assert!(text.starts_with("0 responses removed at 0 of 0 sidecars\n"), "{text}");
    assert!(text.contains("no sidecar that calls shop/products:80 keeps responses"), "{text}");
    let answer: Value = serde_json::from_str(&purge(&["--tag", "x", "-o", "json"]).good()).unwrap();
    assert_eq!((&answer["proxies"], &answer["removed"]), (&Value::from(0), &Value::from(0)));

    let wrong = purge(&["--prefix", "products"]);
    assert_eq!(wrong.code, 1);
    assert!(wrong.errors.contains("prefix: \"products\" must begin with `/`"), "{}", wrong.errors);
    let missing = mesh.leno(&["cache", "purge", "--service", "shop/none"]);
    assert_eq!(missing.code, 1);
    assert!(missing.errors.contains("shop/none"), "{}", missing.errors);
}

#[test]
fn a_sidecar_tells_what_it_keeps() {
    let mesh = ControlPlane::start();
    let sidecar = mesh.sidecar("cart-1", "cart");
    let said = leno(&["cache", "stats", "--proxy", &sidecar.admin]);
    assert_eq!((said.code, &*said.output), (0, ""));
    assert!(said.errors.contains("keeps no responses"), "{}", said.errors);
    let json = leno(&["cache", "stats", "--proxy", &sidecar.admin, "-o", "json"]).good();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), serde_json::json!({"caches": []}));
    let nobody = leno(&["cache", "stats", "--proxy", &unused_address().to_string()]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.errors.contains("is a proxy running there?"), "{}", nobody.errors);
}
