//! What a proxy says about itself, in the first request of its stream and in the last.

use std::{ops::RangeBounds, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{Struct, value::Kind},
};
use leno_api::{
    KINDS, Key, Resource,
    model::{Model, ObjectName, workload::Workload},
    wire::node,
};
use serde_json::Value;

use crate::{plan::Identity, push::Running};

/// The lease of a proxy that does not name one: long enough to restart the control plane.
const DEFAULT_LEASE: Duration = Duration::from_secs(15);
/// The longest name that a proxy may have.
const MAX_ID: usize = 512;
/// The longest version of a plugin; today's have 21 bytes.
const MAX_VERSION: usize = 64;

/// A proxy that introduced itself.
#[derive(Debug)]
pub struct Introduction {
    /// What people know it by.
    pub name: String,
    pub identity: Identity,
    pub workload: Option<Registration>,
}

/// A workload to register.
#[derive(Debug)]
pub struct Registration {
    pub object: Value,
    /// Whose identity it is to have.
    pub service_account: String,
    /// For how long it stays after the stream broke.
    pub lease: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum BadNode {
    #[error("the first request of a stream must say who it is from: `node` is missing")]
    Missing,
    #[error("node.id must have 1 to {MAX_ID} characters, none of them control characters")]
    BadId,
    #[error(
        "node.metadata.{} must be the proxy's namespace: lower-case letters, digits and `-`",
        node::NAMESPACE
    )]
    BadNamespace,
    #[error("node.metadata.{} is not a valid Workload: {reason}", node::WORKLOAD)]
    BadWorkload { reason: String },
    #[error(
        "node.metadata.{} is in namespace {found}, the proxy in {expected}: they must be the same",
        node::WORKLOAD
    )]
    ForeignWorkload { found: String, expected: String },
}

/// Reads the first request's node.
///
/// # Errors
/// [`BadNode`] says what is missing or wrong.
pub fn introduction(node: Option<&Node>) -> Result<Introduction, BadNode> {
    let node = node.ok_or(BadNode::Missing)?;
    if node.id.is_empty() || node.id.len() > MAX_ID || node.id.chars().any(char::is_control) {
        return Err(BadNode::BadId);
    }
    let metadata = node.metadata.as_ref();
    let namespace = text(metadata, node::NAMESPACE).unwrap_or("default");
    if ObjectName::parse(&format!("{namespace}/x")).is_none() {
        return Err(BadNode::BadNamespace);
    }
    let namespace: Arc<str> = namespace.into();
    let (workload, own) = match text(metadata, node::WORKLOAD) {
        Some(json) => {
            let (object, workload) = workload(json, &namespace)?;
            let (name, service_account) = (workload.name.clone(), workload.service_account.clone());
            (Some(Registration { object, service_account, lease: lease(metadata) }), Some(name))
        }
        // Somebody else wrote its workload: then its name may be the proxy's.
        None => (None, ObjectName::parse(&node.id).filter(|name| name.namespace == namespace)),
    };
    Ok(Introduction {
        name: node.id.clone(),
        identity: Identity { namespace, workload: own },
        workload,
    })
}

/// Whether the proxy says that it leaves for good.
pub fn is_goodbye(node: Option<&Node>) -> bool {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    matches!(field(metadata, node::GOODBYE), Some(Kind::BoolValue(true)))
}

/// Which versions of its plugins the proxy says that it runs, and how many of these words are of no use. `None` for a
/// plugin: no version any more.
pub fn running(node: Option<&Node>) -> (Vec<(Key, Option<Running>)>, usize) {
    let metadata = node.and_then(|node| node.metadata.as_ref());
    let Some(Kind::StructValue(plugins)) = field(metadata, node::PLUGINS) else {
        return (Vec::new(), 0);
    };
    let Some(kind) = KINDS.iter().find(|kind| kind.kind == "WasmPlugin") else {
        return (Vec::new(), 0);
    };
    let read = plugins.fields.iter().take(node::MAX_PLUGINS).filter_map(|(name, value)| {
        let key = Key { kind, name: ObjectName::parse(name)? };
        Some((key, versions(value.kind.as_ref()?)?))
    });
    let read: Vec<_> = read.collect();
    let useless = plugins.fields.len() - read.len();
    (read, useless)
}

/// `None` where it is neither none nor well-formed.
fn versions(value: &Kind) -> Option<Option<Running>> {
    let Kind::StructValue(fields) = value else {
        return matches!(value, Kind::NullValue(_)).then_some(None);
    };
    let read = |name| text(Some(fields), name);
    let trial = match read(node::PLUGIN_TRIAL) {
        Some(trial) => Some(code(trial, ..=MAX_VERSION)?),
        None => None,
    };
    Some(Some(Running {
        version: code(read(node::PLUGIN_VERSION)?, ..=MAX_VERSION)?,
        digest: code(read(node::PLUGIN_DIGEST)?, 64..=64)?,
        trial,
    }))
}

/// Digits and dashes. What a proxy says is shown to people as it is.
fn code(text: &str, length: impl RangeBounds<usize>) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    (length.contains(&text.len()) && text.bytes().all(good)).then(|| text.to_owned())
}

fn workload(json: &str, namespace: &str) -> Result<(Value, Arc<Workload>), BadNode> {
    let bad = |reason: String| BadNode::BadWorkload { reason };
    let object: Value = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    let resource =
        Resource::from_json(object.clone()).map_err(|invalid| bad(invalid.to_string()))?;
    let Model::Workload(workload) = resource.model else {
        return Err(bad(format!("it is a {}", resource.kind.kind)));
    };
    if *workload.name.namespace != *namespace {
        let (found, expected) = (workload.name.namespace.to_string(), namespace.to_owned());
        return Err(BadNode::ForeignWorkload { found, expected });
    }
    Ok((object, workload))
}

/// The registry has limits of its own; here it only has to be a duration.
fn lease(metadata: Option<&Struct>) -> Duration {
    match field(metadata, node::LEASE_SECONDS) {
        Some(Kind::NumberValue(seconds)) => {
            Duration::try_from_secs_f64(*seconds).unwrap_or(DEFAULT_LEASE)
        }
        _ => DEFAULT_LEASE,
    }
}

fn text<'a>(metadata: Option<&'a Struct>, name: &str) -> Option<&'a str> {
    match field(metadata, name) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn field<'a>(metadata: Option<&'a Struct>, name: &str) -> Option<&'a Kind> {
    metadata?.fields.get(name)?.kind.as_ref()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf;

    use super::*;

    fn node(id: &str, fields: &[(&str, Kind)]) -> Node {
        let value = |kind: &Kind| protobuf::Value { kind: Some(kind.clone()) };
        let fields = fields.iter().map(|(name, kind)| ((*name).to_owned(), value(kind))).collect();
        Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..Node::default() }
    }

    fn string(text: &str) -> Kind {
        Kind::StringValue(text.to_owned())
    }

    const WORKLOAD: &str = r#"{"apiVersion": "leno.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": "orders-1", "namespace": "shop"},
        "spec": {"services": ["orders"], "address": "127.0.0.1", "ports": {"http": 9001}}}"#;

    #[test]
    fn reads_a_proxy_with_a_workload() {
        let node = node(
            "orders-1",
            &[
                ("namespace", string("shop")),
                ("workload", string(WORKLOAD)),
                ("leaseSeconds", Kind::NumberValue(3.0)),
            ],
        );
        let read = introduction(Some(&node)).unwrap();
        assert_eq!(read.identity.workload, ObjectName::parse("shop/orders-1"));
        let workload = read.workload.unwrap();
        assert_eq!(workload.lease, Duration::from_secs(3));
        assert_eq!(workload.service_account, "default");
        assert!(!is_goodbye(Some(&node)));
    }

    #[test]
    fn a_proxy_without_one_may_be_named_like_its_workload() {
        let read = introduction(Some(&node("shop/a", &[("namespace", string("shop"))]))).unwrap();
        assert_eq!(read.identity.workload, ObjectName::parse("shop/a"));
        // Somebody else's workload is not one's own.
        let read = introduction(Some(&node("shop/a", &[("namespace", string("other"))]))).unwrap();
        assert_eq!(read.identity.workload, None);
    }

    #[test]
    fn reads_what_plugins_run() {
        let fields =
            |fields: &[(&str, Kind)]| Struct { fields: node("x", fields).metadata.unwrap().fields };
        let digest = "ab".repeat(32);
        let good = |more: &[(&str, Kind)]| {
            let all =
                [&[("version", string("abab-01")), ("digest", string(&digest))], more].concat();
            Kind::StructValue(fields(&all))
        };
        let plugins = [
            ("shop/one", good(&[])),
            ("shop/two", good(&[("trial", string("cd-02")), ("fromTheFuture", string("x"))])),
            ("shop/gone", Kind::NullValue(0)),
            ("no name", good(&[])),
            ("shop/a", good(&[("version", string("<b>"))])),
            ("shop/b", good(&[("digest", string("abab"))])),
            ("shop/c", good(&[("trial", string(&"1".repeat(65)))])),
            ("shop/d", Kind::BoolValue(true)),
        ];
        let node = node("x", &[("plugins", Kind::StructValue(fields(&plugins)))]);
        let (mut read, useless) = running(Some(&node));
        read.sort_by_key(|(key, _)| key.to_string());
        let trials: Vec<_> = read
            .iter()
            .map(|(key, running)| {
                (key.to_string(), running.as_ref().map(|running| running.trial.as_deref()))
            })
            .collect();
        let expected = [
            ("WasmPlugin shop/gone".to_owned(), None),
            ("WasmPlugin shop/one".to_owned(), Some(None)),
            ("WasmPlugin shop/two".to_owned(), Some(Some("cd-02"))),
        ];
        assert_eq!((&trials[..], useless), (&expected[..], 5));
        assert!(running(None).0.is_empty());
    }

    #[test]
    fn refuses_what_is_not_a_proxy() {
        let wrong = WORKLOAD.replace("shop", "other");
        let rows: [(Option<Node>, &str); 6] = [
            (None, "`node` is missing"),
            (Some(node("", &[])), "node.id"),
            (Some(node("a\nb", &[])), "node.id"),
            (Some(node("a", &[("namespace", string("A B"))])), "node.metadata.namespace"),
            (Some(node("a", &[("workload", string("{"))])), "not a valid Workload"),
            (
                Some(node("a", &[("namespace", string("shop")), ("workload", string(&wrong))])),
                "is in namespace other, the proxy in shop",
            ),
        ];
        for (node, message) in rows {
            let error = introduction(node.as_ref()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let odd = node("a", &[("leaseSeconds", Kind::NumberValue(f64::NAN))]);
        assert!(introduction(Some(&odd)).is_ok());
    }
}
