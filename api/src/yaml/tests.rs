use serde_json::json;

use super::*;

fn one(text: &str) -> Value {
    documents(text).unwrap().remove(0).value
}

#[test]
fn reads_the_core_schema() {
    let value = one(
        "a: 1\nb: 'x'\nc: [true, ~, 1.5, 0x10, yes, \"1\", 1.2.3, v1, -3, .]\nd: {e: !!str 5}\n",
    );
    let expected = json!({"a": 1, "b": "x", "c": [true, null, 1.5, 16, "yes", "1", "1.2.3", "v1", -3, "."], "d": {"e": "5"}});
    assert_eq!(value, expected);
}

#[test]
fn knows_the_line_of_every_field() {
    let document = documents("# comment\n---\nspec:\n  rules:\n  - name: a\n    weight: 1\n")
        .unwrap()
        .remove(0);
    assert_eq!(document.lines["spec.rules[0].weight"], 6);
    assert_eq!(document.lines["spec.rules[0]"], 5);
}

#[test]
fn refuses_what_would_hurt() {
    let deep = |levels| format!("a: {}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(documents(&deep(100)).unwrap_err().message.contains("nested deeper"));
    assert!(documents(&deep(100_000)).is_err());
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..10 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(documents(&bomb).unwrap_err().message.contains("nodes"));
    let twice = documents("a: 1\nb: 2\na: 3\n").unwrap_err();
    assert_eq!((twice.line, twice.path.as_str()), (Some(3), "a"));
    assert!(documents("a: [1\nb").is_err());
    assert!(documents("a: !exec x").unwrap_err().message.contains("tag"));
}

#[test]
fn anchors_are_expanded() {
    assert_eq!(one("a: &x {b: 1}\nc: *x\n"), json!({"a": {"b": 1}, "c": {"b": 1}}));
}

#[test]
fn problems_name_line_and_path() {
    let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders}]
  rules:
  - backendRefs:
    - {name: orders, port: 80, weight: 90}
    - name: orders-v2
      port: 80
      weight: 2000000
";
    let (good, bad) = resources(text);
    assert!(good.is_empty());
    assert_eq!(bad[0].to_string(), "spec.rules[0].backendRefs[1].weight: must be 0 to 1000000");
    assert_eq!(bad[0].line, Some(11));

    let (_, bad) = resources(&text.replace("weight: 2000000", "wieght: 2"));
    assert_eq!(bad[0].line, Some(11), "{bad:?}");
    assert!(bad[0].message.contains("unknown field `wieght`"), "{bad:?}");
}
