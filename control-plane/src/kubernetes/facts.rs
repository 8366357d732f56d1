//! What is read of Kubernetes' own objects: the few fields that routing needs, so that ten thousand pods cost little. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use leno_api::model::ObjectName;
use serde::Deserialize;
use serde_json::Value;

use crate::inject::names;

/// Label by which an EndpointSlice names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What every object has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: Option<String>,
    /// RFC 3339.
    pub(super) created: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Of a `Namespace`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NamespaceFacts {
    /// For injection.
    pub(super) labelled: bool,
    /// Everything in it is being deleted.
    pub(super) ending: bool,
}

/// Of a `Service`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServiceFacts {
    pub(super) identity: Identity,
    /// A name of somebody else, with nothing behind it here.
    pub(super) external_name: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<PortFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortFacts {
    pub(super) name: String,
    pub(super) port: i64,
    pub(super) app_protocol: Option<String>,
}

/// Of a `Pod`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) identity: Identity,
    pub(super) address: Option<IpAddr>,
    pub(super) service_account: String,
    /// It has ended and will not run again.
    pub(super) finished: bool,
    pub(super) terminating: bool,
    /// Our sidecar stands beside its application.
    pub(super) sidecar: bool,
}

/// Of an `EndpointSlice`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SliceFacts {
    pub(super) service: Arc<str>,
    /// Port of the application by the name of the service's port.
    pub(super) ports: BTreeMap<String, i64>,
    pub(super) endpoints: Vec<EndpointFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointFacts {
    pub(super) behind: Behind,
    pub(super) ready: bool,
    pub(super) zone: Option<Arc<str>>,
}

/// What an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Behind {
    Pod(ObjectName),
    /// An address that somebody wrote down: a machine outside the cluster.
    Address(IpAddr),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawService {
    spec: RawServiceSpec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPort {
    name: Option<String>,
    port: Option<i64>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPod {
    spec: RawPodSpec,
    status: RawPodStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodSpec {
    service_account_name: Option<String>,
    containers: Option<Vec<RawContainer>>,
    init_containers: Option<Vec<RawContainer>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawContainer {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSlice {
    address_type: Option<String>,
    endpoints: Option<Vec<RawEndpoint>>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawEndpoint {
    addresses: Vec<String>,
    conditions: Option<RawConditions>,
    target_ref: Option<RawTarget>,
    zone: Option<String>,
    /// Before `zone` had a field of its own (`discovery.k8s.io/v1beta1`).
    topology: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTarget {
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl ServiceFacts {
    /// # Errors
    /// What of it has another type than Kubernetes gives it.
    pub(super) fn read(identity: Identity, body: &Value) -> Result<Self, String> {
        let RawService { spec } = read(body)?;
        let listed = spec.cluster_ips.unwrap_or_default();
        let all = listed.into_iter().chain(spec.cluster_ip);
        let mut addresses: Vec<IpAddr> = Vec::new();
        // `None` and the empty text are no addresses: headless, or not given out yet.
        for address in all.filter_map(|text| text.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let ports = spec.ports.unwrap_or_default().into_iter().filter(RawPort::is_tcp);
        let ports = ports.filter_map(|raw| {
            let (name, port, app_protocol) = (raw.label(), raw.port?, raw.app_protocol);
            Some(PortFacts { name, port, app_protocol })
        });
        Ok(Self {
            identity,
            external_name: spec.kind.as_deref() == Some("ExternalName"),
            addresses,
            ports: ports.collect(),
        })
    }
}

impl PodFacts {
    /// # Errors
    /// As [`ServiceFacts::read`].
    pub(super) fn read(
        identity: Identity,
        annotated: bool,
        terminating: bool,
        body: &Value,
    ) -> Result<Self, String> {
        let RawPod { spec, status } = read(body)?;
        let containers = [spec.containers, spec.init_containers].into_iter().flatten().flatten();
        let ours = |container: RawContainer| container.name == names::PROXY_CONTAINER;
        Ok(Self {
            identity,
            address: status.pod_ip.and_then(|address| address.parse().ok()),
            service_account: spec
                .service_account_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating,
            sidecar: annotated || containers.into_iter().any(ours),
        })
    }
}

impl SliceFacts {
    /// # Errors
    /// As [`ServiceFacts::read`].
    pub(super) fn read(namespace: &str, identity: &Identity, body: &Value) -> Result<Self, String> {
        let raw: RawSlice = read(body)?;
        // Names instead of addresses say nothing of instances; a slice without a service is nobody's.
        let service = identity.labels.get(SERVICE_NAME_LABEL);
        let service = service.filter(|_| raw.address_type.as_deref() != Some("FQDN"));
        let Some(service) = service else { return Ok(Self::default()) };
        let ports = raw.ports.unwrap_or_default().into_iter().filter(RawPort::is_tcp);
        let ports = ports.filter_map(|port| Some((port.label(), port.port?))).collect();
        let endpoints = raw.endpoints.unwrap_or_default().into_iter();
        let endpoints = endpoints.filter_map(|endpoint| endpoint.facts(namespace)).collect();
        Ok(Self { service: service.as_str().into(), ports, endpoints })
    }
}

impl RawPort {
    /// UDP and SCTP are not ours.
    fn is_tcp(&self) -> bool {
        matches!(self.protocol.as_deref(), None | Some("TCP"))
    }

    /// A port without a name is the only one of its service.
    fn label(&self) -> String {
        self.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned())
    }
}

impl RawEndpoint {
    fn facts(self, namespace: &str) -> Option<EndpointFacts> {
        let behind = match self.target_ref.filter(RawTarget::is_pod) {
            Some(target) => target.pod(namespace)?,
            None => Behind::Address(self.addresses.first()?.parse().ok()?),
        };
        let conditions = self.conditions.unwrap_or_default();
        let topology = self.topology.and_then(|mut labels| labels.remove(ZONE_LABEL));
        Some(EndpointFacts {
            behind,
            // Unknown is ready, as the API says.
            ready: conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false),
            zone: self.zone.or(topology).map(Into::into),
        })
    }
}

impl RawTarget {
    fn is_pod(&self) -> bool {
        self.kind.as_deref() == Some("Pod") && self.name.is_some()
    }

    /// `None` where it is in another namespace than its slice: whoever may write slices in one namespace must not place,
    /// empty or take over pods of another.
    fn pod(self, namespace: &str) -> Option<Behind> {
        let name = self.name?;
        if let Some(other) = self.namespace.filter(|other| other != namespace) {
            tracing::debug!(
                slice_namespace = namespace,
                pod = %format_args!("{other}/{name}"),
                "an EndpointSlice names a pod of another namespace; that endpoint is left out"
            );
            return None;
        }
        Some(Behind::Pod(ObjectName::new(namespace, &name)))
    }
}

/// As a part of a name: `10-0-0-7`.
pub(super) fn dashed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).map(|byte| byte.to_string()).join("-"),
        IpAddr::V6(address) => {
            Ipv6Addr::segments(&address).map(|part| format!("{part:x}")).join("-")
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a Value) -> Result<T, String> {
    T::deserialize(body).map_err(|error| error.to_string())
}
