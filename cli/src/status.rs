//! What an object's status says about it as it is now.

use serde_json::Value;

/// One condition, in Kubernetes' sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    /// One word.
    pub reason: &'a str,
    /// A sentence.
    pub message: &'a str,
}

/// The condition of that type, if it is about the object's current generation and not an older one.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<Condition<'a>> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let text = |condition: &'a Value, field: &str| condition.get(field).and_then(Value::as_str);
    let found = conditions.iter().find(|condition| text(condition, "type") == Some(kind))?;
    let current = object.pointer("/metadata/generation")?.as_i64()?;
    let about = found.get("observedGeneration").and_then(Value::as_i64)?;
    (about == current).then_some(Condition {
        status: text(found, "status")?,
        reason: text(found, "reason").unwrap_or_default(),
        message: text(found, "message").unwrap_or_default(),
    })
}

/// How far a resource got, and the sentence about it.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// On every proxy that uses it, if any.
    Live(String),
    Pending(String),
    Rejected(String),
}

/// What proxies say of a plugin that takes them longer than they keep the control plane waiting: they will say more.
const STILL_LOADING: &str = "not loaded yet: it is being fetched and compiled";

pub fn progress(object: &Value) -> Progress {
    let Some(live) = condition(object, "Live") else {
        return Progress::Pending(
            "the control plane has not said anything about it yet".to_owned(),
        );
    };
    let message = live.message.to_owned();
    match (live.status, live.reason) {
        ("True", _) | (_, "NotUsed") => Progress::Live(message),
        (_, "Rejected") if message.contains(STILL_LOADING) => Progress::Pending(message),
        (_, "Rejected" | "Invalid") => Progress::Rejected(message),
        _ => Progress::Pending(message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_condition_about_an_older_state_says_nothing() {
        let object = |generation| {
            json!({"metadata": {"generation": generation}, "status": {"conditions": [
                {"type": "Live", "status": "True", "reason": "Live", "message": "yes", "observedGeneration": 2},
            ]}})
        };
        let live = Condition { status: "True", reason: "Live", message: "yes" };
        assert_eq!(condition(&object(2), "Live"), Some(live));
        assert_eq!(condition(&object(3), "Live"), None);
        assert_eq!(condition(&object(2), "Accepted"), None);
    }

    #[test]
    fn only_what_no_proxy_waits_for_is_live() {
        let object = |status, reason| {
            json!({"metadata": {"generation": 1}, "status": {"conditions": [
                {"type": "Live", "status": status, "reason": reason, "message": "m", "observedGeneration": 1},
            ]}})
        };
        let message = || "m".to_owned();
        assert_eq!(progress(&object("True", "Live")), Progress::Live(message()));
        assert_eq!(progress(&object("Unknown", "NotUsed")), Progress::Live(message()));
        assert_eq!(progress(&object("False", "Rejected")), Progress::Rejected(message()));
        assert_eq!(progress(&object("False", "Pending")), Progress::Pending(message()));
        assert!(matches!(progress(&json!({})), Progress::Pending(_)));
    }

    #[test]
    fn a_plugin_that_loads_for_long_is_waited_for() {
        let object = |message: &str| {
            json!({"metadata": {"generation": 1}, "status": {"conditions": [
                {"type": "Live", "status": "False", "reason": "Rejected", "message": message, "observedGeneration": 1},
            ]}})
        };
        let loads =
            "live on 0 of 2, rejected by 2: not loaded yet: it is being fetched and compiled";
        assert_eq!(progress(&object(loads)), Progress::Pending(loads.to_owned()));
        let broken = "live on 0 of 2, rejected by 1: it does not start";
        assert_eq!(progress(&object(broken)), Progress::Rejected(broken.to_owned()));
    }
}
