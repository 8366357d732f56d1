//! The table of kinds: what exists, under which names, with which schema.

use schemars::JsonSchema;
use serde_json::Value;

use crate::{model, spec};

/// Group of the kinds taken over from Gateway API, names unchanged.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Group of Leno's own kinds.
pub const LENO_GROUP: &str = "leno.dev";

/// One kind of resource.
#[derive(Debug)]
pub struct KindInfo {
    /// API group: `leno.dev`.
    pub group: &'static str,
    /// API version: `v1alpha1`.
    pub version: &'static str,
    /// `HTTPRoute`.
    pub kind: &'static str,
    /// `httproutes`, as in URLs.
    pub plural: &'static str,
    /// `httproute`.
    pub singular: &'static str,
    /// What `kubectl` users may type instead.
    pub short_names: &'static [&'static str],
    /// One sentence for `kubectl explain`.
    pub description: &'static str,
    /// Extra columns of `kubectl get`.
    pub columns: &'static [Column],
    /// Users may read such objects, and only the control plane writes them.
    pub read_only: bool,
    /// JSON schema (draft 2020-12, subschemas inlined) of `spec`.
    pub schema: fn() -> Value,
    pub(crate) parse: crate::resource::Parser,
}

impl KindInfo {
    /// `leno.dev/v1alpha1`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }
}

/// A printer column: header and JSON pointer into the object.
#[derive(Debug)]
pub struct Column {
    /// Header as printed.
    pub name: &'static str,
    /// RFC 6901 pointer.
    pub pointer: &'static str,
}

/// Every kind there is.
pub static KINDS: &[KindInfo] = &[
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["lsvc"],
        description: "A name that callers use, with its ports and their protocols.",
        columns: &[
            Column { name: "Hosts", pointer: "/spec/hosts" },
            Column { name: "Ports", pointer: "/spec/ports/*/port" },
        ],
        read_only: false,
        schema: schema_of::<spec::service::ServiceSpec>,
        parse: model::service::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "Workload",
        plural: "workloads",
        singular: "workload",
        short_names: &["wl"],
        description: "One running instance: where it listens and which services it serves.",
        columns: &[
            Column { name: "Services", pointer: "/spec/services" },
            Column { name: "Address", pointer: "/spec/address" },
            Column { name: "Zone", pointer: "/spec/zone" },
        ],
        read_only: false,
        schema: schema_of::<spec::workload::WorkloadSpec>,
        parse: model::workload::parse,
    },
    KindInfo {
        group: GATEWAY_GROUP,
        version: "v1",
        kind: "HTTPRoute",
        plural: "httproutes",
        singular: "httproute",
        short_names: &[],
        description: "Where the HTTP requests for a service go, and what is done to them on the way.",
        columns: &[
            Column { name: "Hostnames", pointer: "/spec/hostnames" },
            Column { name: "Parents", pointer: "/spec/parentRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::http_route::HttpRouteSpec>,
        parse: model::http_route::parse,
    },
    KindInfo {
        group: GATEWAY_GROUP,
        version: "v1",
        kind: "GRPCRoute",
        plural: "grpcroutes",
        singular: "grpcroute",
        short_names: &[],
        description: "Where the gRPC calls for a service go, by service and method.",
        columns: &[
            Column { name: "Hostnames", pointer: "/spec/hostnames" },
            Column { name: "Parents", pointer: "/spec/parentRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::grpc_route::GrpcRouteSpec>,
        parse: model::grpc_route::parse,
    },
    KindInfo {
        group: GATEWAY_GROUP,
        version: "v1alpha2",
        kind: "TCPRoute",
        plural: "tcproutes",
        singular: "tcproute",
        short_names: &[],
        description: "Where the TCP connections for a service go.",
        columns: &[Column { name: "Parents", pointer: "/spec/parentRefs/*/name" }],
        read_only: false,
        schema: schema_of::<spec::tcp_route::TcpRouteSpec>,
        parse: model::tcp_route::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "TrafficPolicy",
        plural: "trafficpolicies",
        singular: "trafficpolicy",
        short_names: &["tp"],
        description: "How callers treat a service: balancer, timeouts, retries, breaker, ejection, health checks, pools.",
        columns: &[Column { name: "Targets", pointer: "/spec/targetRefs/*/name" }],
        read_only: false,
        schema: schema_of::<spec::traffic_policy::TrafficPolicySpec>,
        parse: model::traffic_policy::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        singular: "peerauthentication",
        short_names: &["pa"],
        description: "Whether workloads take mutual TLS, plain text, or both.",
        columns: &[
            Column { name: "Mode", pointer: "/spec/mtls/mode" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::peer_authentication::PeerAuthenticationSpec>,
        parse: model::peer_authentication::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        singular: "authorizationpolicy",
        short_names: &["ap"],
        description: "Who may do what at a workload.",
        columns: &[
            Column { name: "Action", pointer: "/spec/action" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::authorization_policy::AuthorizationPolicySpec>,
        parse: model::authorization_policy::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        singular: "requestauthentication",
        short_names: &["ra"],
        description: "Which JSON Web Tokens are valid at a workload.",
        columns: &[
            Column { name: "Issuers", pointer: "/spec/jwtRules/*/issuer" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::request_authentication::RequestAuthenticationSpec>,
        parse: model::request_authentication::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "RateLimitPolicy",
        plural: "ratelimitpolicies",
        singular: "ratelimitpolicy",
        short_names: &["rlp"],
        description: "How many requests a service takes, and from whom.",
        columns: &[
            Column { name: "Limits", pointer: "/spec/limits/*/name" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::rate_limit_policy::RateLimitPolicySpec>,
        parse: model::rate_limit_policy::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "FaultPolicy",
        plural: "faultpolicies",
        singular: "faultpolicy",
        short_names: &["fp"],
        description: "How a service fails on purpose: delays and errors, for tests.",
        columns: &[Column { name: "Targets", pointer: "/spec/targetRefs/*/name" }],
        read_only: false,
        schema: schema_of::<spec::fault_policy::FaultPolicySpec>,
        parse: model::fault_policy::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "CachePolicy",
        plural: "cachepolicies",
        singular: "cachepolicy",
        short_names: &["cp"],
        description: "What callers of a service keep of its responses, for how long, and for whom.",
        columns: &[
            Column { name: "Enabled", pointer: "/spec/enabled" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::cache_policy::CachePolicySpec>,
        parse: model::cache_policy::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "WasmPlugin",
        plural: "wasmplugins",
        singular: "wasmplugin",
        short_names: &["wp"],
        description: "A Proxy-Wasm plugin: its module, its configuration and where it runs.",
        columns: &[
            Column { name: "Url", pointer: "/spec/url" },
            Column { name: "Phase", pointer: "/spec/phase" },
            Column { name: "Targets", pointer: "/spec/targetRefs/*/name" },
        ],
        read_only: false,
        schema: schema_of::<spec::wasm_plugin::WasmPluginSpec>,
        parse: model::wasm_plugin::parse,
    },
    KindInfo {
        group: LENO_GROUP,
        version: "v1alpha1",
        kind: "TrustBundle",
        plural: "trustbundles",
        singular: "trustbundle",
        short_names: &["tb"],
        description: "The root certificates that the mesh trusts, written by its certificate authority.",
        columns: &[
            Column { name: "Trust domain", pointer: "/spec/trustDomain" },
            Column { name: "Signer", pointer: "/spec/signer" },
        ],
        read_only: true,
        schema: schema_of::<spec::trust_bundle::TrustBundleSpec>,
        parse: model::trust_bundle::parse,
    },
];

/// The kind in `group` and `version` that is called `name`: its kind, plural, singular or a short name.
pub fn kind(group: &str, version: &str, name: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|info| {
        info.group == group
            && info.version == version
            && (info.kind == name
                || info.plural == name
                || info.singular == name
                || info.short_names.contains(&name))
    })
}

/// The kind people mean by `name` on a command line, whatever its group; case does not matter.
pub fn kind_of(name: &str) -> Option<&'static KindInfo> {
    let wanted = name.to_ascii_lowercase();
    KINDS.iter().find(|info| {
        info.plural == wanted
            || info.singular == wanted
            || info.short_names.contains(&wanted.as_str())
    })
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = schemars::generate::SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}
