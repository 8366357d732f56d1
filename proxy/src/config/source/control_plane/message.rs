//! What requests look like.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest},
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc::Status,
    },
};
use leno_api::{KindInfo, model::ObjectName, wire};

use super::Options;
use crate::config::prepare::Running;

/// gRPC's code for an argument that is not valid, as Envoy uses it to reject.
const INVALID_ARGUMENT: i32 = 3;

/// Who asks, for the first request of a stream.
pub(super) fn node(options: &Options) -> Node {
    let mut fields = HashMap::from([
        (wire::node::NAMESPACE.to_owned(), value(Kind::StringValue(options.namespace.clone()))),
        (
            wire::node::LEASE_SECONDS.to_owned(),
            value(Kind::NumberValue(options.lease.as_secs_f64().ceil())),
        ),
    ]);
    if let Some(workload) = &options.workload {
        let workload = value(Kind::StringValue(workload.to_string()));
        fields.insert(wire::node::WORKLOAD.to_owned(), workload);
    }
    Node {
        id: options.id.clone(),
        metadata: Some(Struct { fields }),
        user_agent_name: "leno".to_owned(),
        ..Node::default()
    }
}

/// The last request of a proxy that ends.
pub(super) fn goodbye(options: &Options) -> DeltaDiscoveryRequest {
    let leaving = value(Kind::BoolValue(true));
    let fields = HashMap::from([(wire::node::GOODBYE.to_owned(), leaving)]);
    let metadata = Some(Struct { fields });
    let node = Node { id: options.id.clone(), metadata, ..Node::default() };
    DeltaDiscoveryRequest { node: Some(node), ..DeltaDiscoveryRequest::default() }
}

/// Asks for names of a kind, and says which are held already.
pub(super) fn subscribe(
    kind: &KindInfo,
    names: Vec<String>,
    held: HashMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: wire::type_url(kind),
        resource_names_subscribe: names,
        initial_resource_versions: held,
        ..DeltaDiscoveryRequest::default()
    }
}

/// Asks no more for names of a kind.
pub(super) fn unsubscribe(kind: &KindInfo, names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: wire::type_url(kind),
        resource_names_unsubscribe: names,
        ..DeltaDiscoveryRequest::default()
    }
}

/// Accepts a response, or says line by line what of it was rejected.
pub(super) fn answer(
    type_url: String,
    nonce: String,
    rejected: &[String],
) -> DeltaDiscoveryRequest {
    let error =
        Status { code: INVALID_ARGUMENT, message: rejected.join("\n"), details: Vec::new() };
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail: (!rejected.is_empty()).then_some(error),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Asks for nothing, and says which versions of plugins run here: `None` for none any more.
pub(super) fn running<'a>(
    kind: &KindInfo,
    plugins: impl Iterator<Item = (&'a ObjectName, Option<&'a Running>)>,
) -> DeltaDiscoveryRequest {
    let fields = plugins.map(|(name, running)| {
        let running = running.map_or(Kind::NullValue(0), |running| {
            Kind::StructValue(Struct { fields: versions(running) })
        });
        (name.to_string(), value(running))
    });
    let plugins = value(Kind::StructValue(Struct { fields: fields.collect() }));
    let fields = HashMap::from([(wire::node::PLUGINS.to_owned(), plugins)]);
    let node = Node { metadata: Some(Struct { fields }), ..Node::default() };
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: wire::type_url(kind),
        ..DeltaDiscoveryRequest::default()
    }
}

fn versions(running: &Running) -> HashMap<String, Value> {
    let text = |text: &String| value(Kind::StringValue(text.clone()));
    let fields = [
        (wire::node::PLUGIN_VERSION, Some(&running.version)),
        (wire::node::PLUGIN_DIGEST, Some(&running.digest)),
        (wire::node::PLUGIN_TRIAL, running.trial.as_ref()),
    ];
    let there = |(name, found): (&str, Option<&String>)| Some((name.to_owned(), text(found?)));
    fields.into_iter().filter_map(there).collect()
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}
