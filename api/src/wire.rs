//! How resources travel to the proxies: incremental xDS with Leno's own resource types inside.
//!
//! Transport: `envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources`.
//! - `type_url` is `type.leno.dev/<group>/<version>/<kind>`.
//! - The `value` of each `Any` is the resource's JSON, UTF-8, exactly as the API serves it, less `status` and
//!   `metadata.managedFields`.
//! - A resource's `name` is `<namespace>/<name>`; its `version` is opaque and changes whenever the `value` does.
//! - `Service` is subscribed by alias ([`service_alias`]) at first use, or by name when declared up front; every
//!   other type is subscribed with `*` and the control plane limits it to the proxy's scope: the closure of
//!   the subscribed services.
//! - An alias that no service answers to comes back in `removed_resources`: "there is none now". The
//!   subscription stays, and the service is sent when it appears. A service that was asked for by alias comes
//!   with that alias in `aliases`, even if the proxy has it already.
//! - Ask for `Service` last: nothing is sent before, since the scope of all other types hangs on it.
//! - What a proxy's plugins run is told with a request for `WasmPlugin` that asks for nothing ([`node::PLUGINS`]).
//! - Order within one change: services and workloads that appear, policies, routes, then what disappears, so
//!   that no intermediate state refers to something that has not arrived. The responses of one change form a
//!   round; [`system_version`] marks all but its last, so that a proxy can apply it in one step.

use crate::{KINDS, KindInfo};

const PREFIX: &str = "type.leno.dev/";

/// Subscribing to this name means: everything of the type that is in my scope.
pub const WILDCARD: &str = "*";

/// `type.leno.dev/leno.dev/v1alpha1/Service`.
pub fn type_url(kind: &KindInfo) -> String {
    format!("{PREFIX}{}/{}/{}", kind.group, kind.version, kind.kind)
}

/// The kind behind a type URL, if it is one of ours.
pub fn kind_of_type_url(url: &str) -> Option<&'static KindInfo> {
    let mut parts = url.strip_prefix(PREFIX)?.split('/');
    let (group, version, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let exact =
        |info: &&KindInfo| info.group == group && info.version == version && info.kind == kind;
    KINDS.iter().find(exact).filter(|_| parts.next().is_none())
}

/// What a proxy in `namespace` subscribes to when an application calls `host` (lower case, without port).
/// `host` is resolved as seen from that namespace: `orders` is `orders.<namespace>` there.
pub fn service_alias(namespace: &str, host: &str) -> String {
    format!("host/{namespace}/{host}")
}

/// Reads a name made by [`service_alias`]: the namespace and the host.
pub fn parse_service_alias(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("host/")?.split_once('/')
}

/// Ends `system_version_info` when more responses of the same round follow.
const MORE_FOLLOWS: char = '+';

/// `system_version_info` of a response: the store's revision, and whether more of the same round follow.
pub fn system_version(revision: u64, more: bool) -> String {
    if more { format!("{revision}{MORE_FOLLOWS}") } else { revision.to_string() }
}

/// Whether more responses of the same round follow one with this `system_version_info`.
pub fn more_follows(system_version: &str) -> bool {
    system_version.ends_with(MORE_FOLLOWS)
}

/// Keys of `Node.metadata` (a protobuf struct). Where nothing else is said: in the first request of a stream.
pub mod node {
    /// Namespace of the proxy, a string. Decides how short host names resolve and which consumer routes apply.
    pub const NAMESPACE: &str = "namespace";
    /// The proxy's own `Workload` as a JSON string; present when the sidecar registers it. The stream is the lease.
    pub const WORKLOAD: &str = "workload";
    /// Lease in whole seconds, a number: how long the workload stays after the stream broke.
    pub const LEASE_SECONDS: &str = "leaseSeconds";
    /// Set to true in the last request of a stream that ends on purpose: the workload is removed at once.
    pub const GOODBYE: &str = "goodbye";
    /// In any later request: which versions of its plugins the proxy runs, where that is something else than it said
    /// before on this stream. A struct: for each plugin (`<namespace>/<name>`) a struct with [`PLUGIN_VERSION`],
    /// [`PLUGIN_DIGEST`] and perhaps [`PLUGIN_TRIAL`], or null if it runs none any more.
    pub const PLUGINS: &str = "plugins";
    /// The version that is live, a string: `<12 digits of the module's SHA-256>-<8 digits for its settings>`.
    pub const PLUGIN_VERSION: &str = "version";
    /// The SHA-256 of that version's module: 64 hexadecimal digits, a string.
    pub const PLUGIN_DIGEST: &str = "digest";
    /// The version on trial beside it, a string.
    pub const PLUGIN_TRIAL: &str = "trial";
    /// Plugins in one request, and known of one proxy: as many as a proxy runs.
    pub const MAX_PLUGINS: usize = 1_000;
}

/// gRPC metadata with the bearer token: `authorization: Bearer <token>`.
pub const TOKEN_HEADER: &str = "authorization";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_read_back() {
        for info in KINDS {
            assert!(
                kind_of_type_url(&type_url(info)).is_some_and(|found| std::ptr::eq(found, info))
            );
        }
        assert!(kind_of_type_url("type.googleapis.com/envoy.config.cluster.v3.Cluster").is_none());
        assert!(kind_of_type_url("type.leno.dev/leno.dev/v1alpha1/Service/x").is_none());
    }

    #[test]
    fn the_last_response_of_a_round_is_told_from_the_others() {
        assert!(more_follows(&system_version(7, true)) && !more_follows(&system_version(7, false)));
        assert_eq!(system_version(7, false), "7");
    }

    #[test]
    fn aliases_read_back() {
        assert_eq!(
            parse_service_alias(&service_alias("shop", "orders.shop")),
            Some(("shop", "orders.shop"))
        );
        assert_eq!(parse_service_alias("shop/orders"), None);
    }
}
