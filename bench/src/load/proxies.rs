//! Sidecars of a control plane, as it sees them: each a connection of its own with one stream, which asks for some
//! services, accepts all that it is sent, and stays.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use leno_api::{KINDS, wire};
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// What is sent before the proxy has what it asked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests on their way: one for each kind, and as many answers.
const REQUESTS: usize = 64;

/// Proxies that are connected and have what they asked for. They leave when this is dropped.
pub struct Proxies {
    runtime: Runtime,
    following: JoinSet<Result<()>>,
}

/// What one of them asks for.
pub struct Asked {
    pub namespace: &'static str,
    pub hosts: Vec<String>,
    /// Workloads that follow from it.
    pub workloads: usize,
}

impl Proxies {
    /// None yet.
    pub fn new() -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        Ok(Proxies { runtime: runtime.context("start a runtime")?, following: JoinSet::new() })
    }

    /// Connects proxies of these numbers, one after the other, as `asked` says of each.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        numbers: Range<usize>,
        asked: impl Fn(usize) -> Asked,
    ) -> Result<()> {
        let Proxies { runtime, following } = self;
        runtime.block_on(async {
            for number in numbers {
                let proxy = Proxy::open(address, number, asked(number));
                let proxy = tokio::time::timeout(PATIENCE, proxy).await;
                let proxy = proxy.context("a simulated proxy did not get what it asked for")??;
                following.spawn(proxy.follow());
            }
            Ok(())
        })
    }

    /// Lets them do what they have to for a while.
    pub fn stay(&mut self, time: Duration) -> Result<()> {
        let Proxies { runtime, following } = self;
        let ended = runtime.block_on(async {
            tokio::time::timeout(time, following.join_next()).await.ok().flatten()
        });
        match ended {
            None => Ok(()),
            Some(ended) => ended.context("a simulated proxy failed")?,
        }
    }
}

struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: tonic::Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    /// Until it has everything.
    async fn open(address: SocketAddr, number: usize, asked: Asked) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect().await.context("connect to the control plane")?;
        let (requests, queue) = mpsc::channel(REQUESTS);
        for request in first_requests(number, &asked) {
            requests.send(request).await?;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let opened = client.delta_aggregated_resources(ReceiverStream::new(queue)).await;
        let responses = opened.context("open a stream to the control plane")?.into_inner();
        let mut proxy = Proxy { requests, responses };
        let mut workloads = 0;
        while workloads < asked.workloads {
            workloads += proxy.take().await?;
        }
        Ok(proxy)
    }

    /// Accepts whatever comes, to the end.
    async fn follow(mut self) -> Result<()> {
        loop {
            self.take().await?;
        }
    }

    /// Accepts one response; says how many workloads it had.
    async fn take(&mut self) -> Result<usize> {
        let response = self.responses.message().await.context("follow the control plane")?;
        let response = response.context("the control plane ended a stream")?;
        let kind = wire::kind_of_type_url(&response.type_url);
        let workloads = kind.is_some_and(|kind| kind.kind == "Workload");
        let accepted = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(accepted).await?;
        Ok(if workloads { response.resources.len() } else { 0 })
    }
}

/// All kinds, and services last, as the protocol wants it.
fn first_requests(number: usize, asked: &Asked) -> Vec<DeltaDiscoveryRequest> {
    let (services, others): (Vec<_>, Vec<_>) =
        KINDS.iter().partition(|kind| kind.kind == "Service");
    let everything = || vec![wire::WILDCARD.to_owned()];
    let aliases =
        || asked.hosts.iter().map(|host| wire::service_alias(asked.namespace, host)).collect();
    let mut requests: Vec<_> = others
        .into_iter()
        .map(|kind| (kind, everything()))
        .chain(services.into_iter().map(|kind| (kind, aliases())))
        .map(|(kind, names)| DeltaDiscoveryRequest {
            type_url: wire::type_url(kind),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        })
        .collect();
    if let Some(first) = requests.first_mut() {
        first.node = Some(node(number, asked.namespace));
    }
    requests
}

fn node(number: usize, namespace: &str) -> Node {
    let namespace = Value { kind: Some(Kind::StringValue(namespace.to_owned())) };
    let fields = [(wire::node::NAMESPACE.to_owned(), namespace)].into();
    let metadata = Some(Struct { fields });
    Node { id: format!("simulated-{number}"), metadata, ..Node::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_asked_for_last_and_the_first_request_says_who_asks() {
        let hosts = vec!["orders".to_owned()];
        let requests = first_requests(7, &Asked { namespace: "shop", hosts, workloads: 1 });
        assert_eq!(requests.len(), KINDS.len());
        let last = requests.last().unwrap();
        assert_eq!(last.resource_names_subscribe, ["host/shop/orders"]);
        assert!(last.type_url.ends_with("/Service"));
        assert!(requests.iter().rev().skip(1).all(|other| other.resource_names_subscribe == ["*"]));
        assert_eq!(requests[0].node.as_ref().unwrap().id, "simulated-7");
    }
}
