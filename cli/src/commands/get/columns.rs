//! The columns of `leno get`: name, those of the kind, where it is live.

use leno_api::KindInfo;
use serde_json::Value;

const EVERY: &str = "*";

/// What a row shows.
pub struct Columns {
    kind: &'static KindInfo,
    with_namespace: bool,
}

impl Columns {
    pub fn new(kind: &'static KindInfo, with_namespace: bool) -> Self {
        Self { kind, with_namespace }
    }

    pub fn header(&self) -> Vec<&'static str> {
        let mut header = if self.with_namespace { vec!["namespace", "name"] } else { vec!["name"] };
        header.extend(self.kind.columns.iter().map(|column| column.name));
        header.push("live");
        header
    }

    pub fn row(&self, object: &Value) -> Vec<String> {
        let text = |pointer: &str| at(object, pointer);
        let mut row = match self.with_namespace {
            true => vec![text("/metadata/namespace"), text("/metadata/name")],
            false => vec![text("/metadata/name")],
        };
        row.extend(self.kind.columns.iter().map(|column| text(column.pointer)));
        row.push(live(object));
        row
    }
}

/// On how many proxies the object is live: `3/3`, and how many rejected it.
fn live(object: &Value) -> String {
    let proxies = object.pointer("/status/proxies");
    let number = |field: &str| proxies?.get(field)?.as_u64();
    let (Some(live), Some(total)) = (number("live"), number("connected")) else {
        return String::new();
    };
    match proxies.and_then(|found| found.get("rejected")?.as_array()).map_or(0, Vec::len) {
        0 => format!("{live}/{total}"),
        rejected => format!("{live}/{total}, {rejected} rejected it"),
    }
}

/// What stands at `pointer`, several values joined by commas. `*` stands for every item of an array.
fn at(object: &Value, pointer: &str) -> String {
    let steps: Vec<&str> = pointer.split('/').skip(1).collect();
    let mut found = Vec::new();
    collect(object, &steps, &mut found);
    found.join(",")
}

fn collect(value: &Value, steps: &[&str], found: &mut Vec<String>) {
    match (steps, value) {
        ([], Value::Array(items)) => items.iter().for_each(|item| collect(item, &[], found)),
        ([], Value::Null) => {}
        ([], Value::String(text)) => found.push(text.clone()),
        ([], other) => found.push(other.to_string()),
        ([EVERY, rest @ ..], Value::Array(items)) => {
            items.iter().for_each(|item| collect(item, rest, found));
        }
        ([step, rest @ ..], value) => {
            if let Some(value) = value.get(step) {
                collect(value, rest, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use leno_api::kind_of;
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_what_the_kind_says() {
        let columns = Columns::new(kind_of("service").unwrap(), true);
        let service = json!({
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"hosts": ["a", "b"], "ports": [{"port": 80}, {"port": 81}]},
            "status": {"proxies": {"live": 2, "connected": 3, "rejected": [{"proxy": "a"}]}},
        });
        assert_eq!(columns.header(), ["namespace", "name", "Hosts", "Ports", "live"]);
        let row = columns.row(&service);
        assert_eq!(row, ["shop", "orders", "a,b", "80,81", "2/3, 1 rejected it"]);
        assert_eq!(columns.row(&json!({}))[1..], ["", "", "", ""]);
    }
}
