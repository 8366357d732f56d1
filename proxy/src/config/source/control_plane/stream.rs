//! One connection to the control plane.

use std::{path::Path, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use leno_api::wire::TOKEN_HEADER;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{Access, Channels, Command, Options, message, mirror::Mirror};
use crate::identity::Identity;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the control plane may take to accept the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first certificate is waited for before the log says so.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(10);
/// A control plane that answers no ping within these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye may take to be heard.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// The control plane closes its responses at about 1 MiB plus one resource.
const MAX_RESPONSE_BYTES: usize = 8 * 1024 * 1024;
/// Requests handed to the transport before it has sent them.
const REQUESTS_AHEAD: usize = 16;

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody wants it any more.
    Over,
    Broken(String),
}

type Outgoing = mpsc::Sender<DeltaDiscoveryRequest>;

/// Connects and follows until the stream breaks or the config task is done with it. `failures` goes back to
/// zero once the control plane has answered.
pub(super) async fn follow(
    options: &Options,
    mirror: &mut Mirror,
    channels: &mut Channels,
    failures: &mut u32,
) -> Ended {
    let opening = open(options);
    tokio::pin!(opening);
    let opened = loop {
        tokio::select! {
            opened = &mut opening => break opened,
            command = channels.commands.recv() => match command {
                Some(Command::Goodbye) | None => return Ended::Over,
                Some(command) => mirror.obey(command),
            },
        }
    };
    let (requests, mut responses) = match opened {
        Ok(opened) => opened,
        Err(reason) => return Ended::Broken(reason),
    };
    mirror.connected();
    let mut request = mirror.next_request();
    if let Some(first) = &mut request {
        first.node = Some(message::node(options));
    }
    loop {
        tokio::select! {
            permit = requests.reserve(), if request.is_some() => {
                let Ok(permit) = permit else {
                    return Ended::Broken(reason_of(&mut responses).await);
                };
                if let Some(request) = request.take() {
                    permit.send(request);
                }
            }
            permit = channels.updates.reserve(), if mirror.has_updates() => {
                let Ok(permit) = permit else { return Ended::Over };
                if let Some(update) = mirror.next_update() {
                    permit.send(update);
                }
            }
            response = responses.message(), if mirror.takes_responses() => match response {
                Ok(Some(response)) => {
                    *failures = 0;
                    mirror.receive(response);
                }
                Ok(None) => return Ended::Broken("the control plane ended the stream".to_owned()),
                Err(status) => return Ended::Broken(explain(&status)),
            },
            command = channels.commands.recv() => match command {
                Some(Command::Goodbye) => break,
                None => return Ended::Over,
                Some(command) => mirror.obey(command),
            },
        }
        if request.is_none() {
            request = mirror.next_request();
        }
    }
    say_goodbye(options, requests, &mut responses).await;
    Ended::Over
}

/// A connection by which the control plane can be asked.
pub(super) async fn connect(address: &str, access: &Access) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address} is not an address of a control plane: {error}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = match access {
        Access::Plain { .. } => endpoint.connect().await,
        Access::Secured { identity, connector } => {
            certificate(identity).await?;
            endpoint.connect_with_connector(connector.clone()).await
        }
    };
    connected
        .map_err(|error| format!("cannot reach the control plane at {address}: {}", causes(&error)))
}

async fn open(options: &Options) -> Result<(Outgoing, Streaming<DeltaDiscoveryResponse>), String> {
    let address = &options.address;
    let channel = connect(address, &options.access).await?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_RESPONSE_BYTES);
    let (requests, queue) = mpsc::channel(REQUESTS_AHEAD);
    let mut request = Request::new(ReceiverStream::new(queue));
    if let Access::Plain { token_file: Some(file) } = &options.access {
        request.metadata_mut().insert(TOKEN_HEADER, token(file)?);
    }
    let opened = timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(request)).await;
    let opened = opened.map_err(|_| {
        format!("the control plane at {address} did not answer within {} s", OPEN_TIMEOUT.as_secs())
    })?;
    Ok((requests, opened.map_err(|status| explain(&status))?.into_inner()))
}

/// Waits for the certificate that says who we are.
async fn certificate(identity: &Identity) -> Result<(), String> {
    let mut changes = identity.subscribe();
    let there = async {
        // Whoever would tell of changes may be gone; then there are none to wait for.
        while identity.current().is_none() && changes.changed().await.is_ok() {}
    };
    let _ = timeout(CERTIFICATE_TIMEOUT, there).await;
    match (identity.current(), identity.status().last_error) {
        (Some(_), _) => Ok(()),
        (None, Some(reason)) => Err(format!("no certificate yet: {reason}")),
        (None, None) => Err("no certificate yet".to_owned()),
    }
}

pub(super) fn token(file: &Path) -> Result<MetadataValue<Ascii>, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read the token file {}: {error}", file.display()))?;
    let header = format!("Bearer {}", text.trim());
    let mut value: MetadataValue<Ascii> = header
        .parse()
        .map_err(|_| format!("{} does not hold a token: one line of ASCII", file.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Says that the proxy leaves, closes its half, and waits until the control plane has closed the other.
async fn say_goodbye(
    options: &Options,
    requests: Outgoing,
    responses: &mut Streaming<DeltaDiscoveryResponse>,
) {
    let leaving = async {
        requests.send(message::goodbye(options)).await.ok();
        drop(requests);
        while let Ok(Some(_)) = responses.message().await {}
    };
    if timeout(GOODBYE_TIMEOUT, leaving).await.is_err() {
        tracing::warn!("the control plane did not hear the goodbye; the lease will lapse");
    }
}

/// The transport takes no more requests: the reason is at the end of the responses.
async fn reason_of(responses: &mut Streaming<DeltaDiscoveryResponse>) -> String {
    let last = async {
        loop {
            match responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return "the control plane ended the stream".to_owned(),
                Err(status) => return explain(&status),
            }
        }
    };
    timeout(CONNECT_TIMEOUT, last).await.unwrap_or_else(|_| "the connection broke".to_owned())
}

pub(super) fn explain(status: &Status) -> String {
    let message = if status.message().is_empty() { "no reason given" } else { status.message() };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            format!("the control plane refuses this proxy: {message}")
        }
        code => format!("the stream to the control plane broke: {message} ({code:?})"),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
