//! Whether a request went as expected.

use std::collections::BTreeMap;

use leno_wasm_host::Headers;

use super::{
    exchange::{Message, Outcome},
    notes::{Note, text},
    script::{Body, Expect, Received, Values},
};

type ExpectedFields = BTreeMap<String, Option<Values>>;

/// Everything that is not as expected, a sentence each.
pub fn judge(expect: &Expect, outcome: &Outcome) -> Vec<String> {
    let mut wrong = Vec::new();
    let response = outcome.response.as_ref();
    if let Some(status) = expect.status {
        let found = response.and_then(|message| field(&message.headers, ":status"));
        let expected = status.to_string();
        if found.as_deref() != Some(&expected) {
            wrong.push(format!("status: expected {expected}, got {}", or_none(found)));
        }
    }
    let none = Message::default();
    let response = response.unwrap_or(&none);
    fields(&expect.headers, &response.headers, "header", &mut wrong);
    body(expect.body.as_ref(), response, "body", &mut wrong);
    fields(&expect.trailers, &response.trailers, "trailer", &mut wrong);
    if let Some(expected) = &expect.upstream {
        upstream(expected, outcome.upstream.as_ref(), &mut wrong);
    }
    if let Some(calls) = expect.calls
        && calls != outcome.calls
    {
        wrong.push(format!("calls: expected {calls}, got {}", outcome.calls));
    }
    for part in &expect.logs {
        if !logged(&outcome.notes, part) {
            wrong.push(format!("logs: no line has `{part}`"));
        }
    }
    fault(expect.fault.as_deref(), outcome.fault.as_deref(), &mut wrong);
    wrong
}

/// Whether a line that was logged has this part.
pub fn logged(notes: &[Note], part: &str) -> bool {
    notes.iter().any(|note| matches!(note, Note::Log(_, line) if line.contains(part)))
}

fn upstream(expected: &Received, found: Option<&Message>, wrong: &mut Vec<String>) {
    match (expected.reached, found) {
        (Some(false), Some(_)) => {
            return wrong.push("upstream: the request should not have reached it".to_owned());
        }
        (Some(false), None) => return,
        (_, None) => return wrong.push("upstream: the request did not reach it".to_owned()),
        (_, Some(_)) => {}
    }
    let none = Message::default();
    let message = found.unwrap_or(&none);
    let parts = [
        (":method", &expected.method),
        (":path", &expected.path),
        (":authority", &expected.authority),
    ];
    for (name, part) in parts {
        let Some(part) = part else { continue };
        let found = field(&message.headers, name);
        if found.as_deref() != Some(part) {
            let name = name.trim_start_matches(':');
            wrong.push(format!("upstream {name}: expected {part}, got {}", or_none(found)));
        }
    }
    fields(&expected.headers, &message.headers, "upstream header", wrong);
    body(expected.body.as_ref(), message, "upstream body", wrong);
    fields(&expected.trailers, &message.trailers, "upstream trailer", wrong);
}

fn fields(expected: &ExpectedFields, found: &Headers, what: &str, wrong: &mut Vec<String>) {
    for (name, values) in expected {
        let expected = values.as_ref().map(Values::texts).unwrap_or_default();
        let name = name.to_ascii_lowercase();
        let of_name = |(key, _): &&(Vec<u8>, Vec<u8>)| *key == name.as_bytes();
        let found: Vec<_> = found.iter().filter(of_name).map(|(_, value)| text(value)).collect();
        if expected != found {
            let (expected, found) = (expected.join(", "), found.join(", "));
            let say = |values: String| if values.is_empty() { "none".to_owned() } else { values };
            wrong.push(format!("{what} {name}: expected {}, got {}", say(expected), say(found)));
        }
    }
}

fn body(expected: Option<&Body>, message: &Message, what: &str, wrong: &mut Vec<String>) {
    let Some(expected) = expected else { return };
    let found = message.portions.concat();
    if !expected.fits(&found) {
        let wanted = text(&expected.portions().concat());
        wrong.push(format!("{what}: expected `{wanted}`, got `{}`", text(&found)));
    }
}

fn fault(expected: Option<&str>, found: Option<&str>, wrong: &mut Vec<String>) {
    match (expected, found) {
        (None, None) => {}
        (Some(part), Some(found)) if found.contains(part) => {}
        (None, Some(found)) => wrong.push(format!("the plugin broke: {found}")),
        (Some(part), found) => {
            wrong.push(format!("fault: expected `{part}`, got {}", found.unwrap_or("none")));
        }
    }
}

fn field(headers: &Headers, name: &str) -> Option<String> {
    headers.iter().find(|(key, _)| key == name.as_bytes()).map(|(_, value)| text(value))
}

fn or_none(found: Option<String>) -> String {
    found.unwrap_or_else(|| "none".to_owned())
}

#[cfg(test)]
mod tests {
    use leno_wasm_host::LogLevel;
    use serde_json::json;

    use super::*;

    fn outcome() -> Outcome {
        let pair = |name: &str, value: &str| (name.into(), value.into());
        let upstream = vec![pair(":method", "GET"), pair(":path", "/a"), pair("x", "1")];
        let response = vec![pair(":status", "200"), pair("y", "1"), pair("y", "2")];
        Outcome {
            upstream: Some(Message { headers: upstream, ..Message::default() }),
            response: Some(Message {
                headers: response,
                portions: vec![b"{\"a\"".to_vec(), b":1}".to_vec()],
                trailers: vec![pair("t", "1")],
            }),
            calls: 1,
            notes: vec![Note::Log(LogLevel::Info, "hello world".to_owned())],
            fault: None,
        }
    }

    fn judged(expect: serde_json::Value) -> Vec<String> {
        judge(&serde_json::from_value(expect).unwrap(), &outcome())
    }

    #[test]
    fn what_is_as_expected_is_not_worth_a_word() {
        let expect = json!({
            "status": 200, "headers": {"Y": ["1", "2"], "z": null}, "body": {"a": 1},
            "trailers": {"t": "1"}, "calls": 1, "logs": ["hello"],
            "upstream": {"method": "GET", "path": "/a", "headers": {"x": "1", "q": null}},
        });
        assert_eq!(judged(expect), Vec::<String>::new());
        assert_eq!(judged(json!({})), Vec::<String>::new());
    }

    #[test]
    fn every_difference_is_told() {
        let cases = [
            (json!({"status": 403}), "status: expected 403, got 200"),
            (json!({"headers": {"y": "1"}}), "header y: expected 1, got 1, 2"),
            (json!({"headers": {"z": "1"}}), "header z: expected 1, got none"),
            (json!({"headers": {"y": null}}), "header y: expected none, got 1, 2"),
            (json!({"body": "x"}), "body: expected `x`, got `{\"a\":1}`"),
            (json!({"calls": 0}), "calls: expected 0, got 1"),
            (json!({"logs": ["bye"]}), "logs: no line has `bye`"),
            (json!({"upstream": {"reached": false}}), "should not have reached it"),
            (json!({"upstream": {"path": "/b"}}), "upstream path: expected /b, got /a"),
            (json!({"fault": "trap"}), "fault: expected `trap`, got none"),
        ];
        for (expect, part) in cases {
            let wrong = judged(expect.clone());
            assert!(wrong.len() == 1 && wrong[0].contains(part), "{expect}: {wrong:?}");
        }
        let broken = Outcome { fault: Some("it trapped".to_owned()), ..outcome() };
        assert_eq!(judge(&Expect::default(), &broken), ["the plugin broke: it trapped"]);
        let unreached = Outcome { upstream: None, ..outcome() };
        let expect = Expect { upstream: Some(Received::default()), ..Expect::default() };
        assert_eq!(judge(&expect, &unreached), ["upstream: the request did not reach it"]);
    }
}
