//! Numbers such as `0644`. To Kubernetes, which reads YAML 1.1, they are octal; to YAML 1.2, which we read, they are not.
//! Modes of files are written so, and must come out as they were meant.

use leno_api::yaml::Document;
use serde_json::Value;

/// Gives integers that are written with a leading zero in the `lines` of its file the value that Kubernetes reads.
pub fn restore(document: &mut Document, lines: &[&str]) {
    let Document { value, lines: places } = document;
    walk(value, "", "", &|path, key| {
        let line = usize::try_from(*places.get(path)?).ok()?.checked_sub(1)?;
        octal(lines.get(line)?, key)
    });
}

fn walk(value: &mut Value, path: &str, key: &str, meant: &dyn Fn(&str, &str) -> Option<i64>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(value, &at, key, meant);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                walk(item, &format!("{path}[{at}]"), key, meant);
            }
        }
        Value::Number(number) if number.is_i64() => {
            // A line may name a key twice: only the number that was read is the one that is meant.
            if let Some(number) = meant(path, key).filter(|_| number.as_i64() != Some(0)) {
                *value = number.into();
            }
        }
        _ => {}
    }
}

/// The number after `key:` in a line, if it begins with a zero and is octal.
fn octal(line: &str, key: &str) -> Option<i64> {
    let mut rest = line;
    while let Some(at) = rest.find(key) {
        let whole = !rest[..at].ends_with(|before: char| before.is_alphanumeric());
        rest = &rest[at + key.len()..];
        let after = rest.trim_start_matches(['"', '\'']).trim_start();
        let Some(number) = after.strip_prefix(':').filter(|_| whole) else { continue };
        let digits: String =
            number.trim_start().chars().take_while(char::is_ascii_alphanumeric).collect();
        let digits = digits.strip_prefix('0')?;
        return i64::from_str_radix(digits, 8).ok();
    }
    None
}

#[cfg(test)]
mod tests {
    use leno_api::yaml;
    use serde_json::json;

    use super::*;

    #[test]
    fn modes_are_what_kubernetes_reads() {
        let text = "\
volumes:
- secret:
    defaultMode: 0400
    items: [{key: a, path: b, mode: 0644}, {mode: 420}]
- {\"defaultMode\": 0o600}
replicas: 0
port: 8080
name: \"0644\"
a: 10
";
        let mut document = yaml::documents(text).unwrap().remove(0);
        restore(&mut document, &text.lines().collect::<Vec<_>>());
        let value = document.value;
        assert_eq!(value["volumes"][0]["secret"]["defaultMode"], json!(256));
        assert_eq!(value["volumes"][0]["secret"]["items"][0]["mode"], json!(420));
        assert_eq!(value["volumes"][1]["defaultMode"], json!(384));
        assert_eq!(value["replicas"], json!(0));
        assert_eq!((&value["port"], &value["name"]), (&json!(8080), &json!("0644")));
    }
}
