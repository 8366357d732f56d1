//! Kinds and names as people type them.

use leno_api::{KINDS, KindInfo, kind_of, model::ObjectName};

use crate::error::Error;

/// What a command is about: `httproute orders`, `httproute/orders`, `services`.
#[derive(Debug)]
pub struct Selection {
    pub kind: &'static KindInfo,
    pub name: Option<String>,
}

impl Selection {
    pub fn parse(kind: &str, name: Option<&str>) -> Result<Self, Error> {
        let (kind, joined) = match kind.split_once('/') {
            Some((kind, name)) => (kind, Some(name)),
            None => (kind, None),
        };
        if let (Some(_), Some(second)) = (joined, name) {
            return Err(Error::Usage(format!("`{second}` is a second name; one at a time")));
        }
        // `httproutes.gateway.networking.k8s.io` is how kubectl prints and takes it.
        let short = kind.split('.').next().unwrap_or(kind);
        let kind = kind_of(short).ok_or_else(|| unknown(kind))?;
        Ok(Self { kind, name: joined.or(name).map(str::to_owned) })
    }

    pub fn object(&self, namespace: &str) -> Option<ObjectName> {
        self.name.as_deref().map(|name| ObjectName::new(namespace, name))
    }
}

fn unknown(kind: &str) -> Error {
    let known: Vec<_> = KINDS.iter().map(|info| info.plural).collect();
    Error::Usage(format!("there is no kind `{kind}`; there are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_under_all_their_names() {
        for text in ["HTTPRoute", "httproutes", "httproutes.gateway.networking.k8s.io"] {
            assert_eq!(Selection::parse(text, None).unwrap().kind.kind, "HTTPRoute");
        }
        let selection = Selection::parse("tp/orders", None).unwrap();
        assert_eq!(
            (selection.kind.kind, selection.name.as_deref()),
            ("TrafficPolicy", Some("orders"))
        );
        assert!(Selection::parse("tp/orders", Some("x")).is_err());
        let error = Selection::parse("pods", None).unwrap_err().to_string();
        assert!(error.contains("`pods`") && error.contains("httproutes"), "{error}");
    }
}
