//! A proxy as far as TLS, certificates and streams go, and a caller of the API.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{Struct, Value as WireValue, value::Kind},
};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use leno_api::{KINDS, wire};
use leno_control_plane::ca::proto::{IssueRequest, IssueResponse};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    codegen::Service,
    transport::{Channel, Endpoint, Uri},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate chain and its key.
pub struct Held {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Held {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// What a client trusts, and shows if it has it.
#[derive(Clone)]
pub struct Trust {
    pub roots: Vec<CertificateDer<'static>>,
    pub held: Option<Held>,
}

impl Trust {
    pub fn of_pem(pem: &str) -> Self {
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
        Self { roots: roots.unwrap(), held: None }
    }

    pub fn with(&self, held: &Held) -> Self {
        Self { held: Some(held.clone()), ..self.clone() }
    }

    fn config(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.clone()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.held {
            Some(held) => {
                builder.with_client_auth_cert(held.chain.clone(), held.key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }

    /// A TLS connection, as far as this side can tell.
    pub async fn dial(&self, address: SocketAddr, alpn: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
        TlsConnector::from(self.config(alpn)).connect(name, stream).await
    }

    /// What the server at last makes of us: with TLS 1.3 it judges our certificate after we are done.
    pub async fn refusal(&self, address: SocketAddr) -> Option<io::Error> {
        let mut stream = match self.dial(address, b"h2").await {
            Ok(stream) => stream,
            Err(error) => return Some(error),
        };
        let mut byte = [0];
        // A served connection begins with the server's SETTINGS once it has our preface.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok();
        match timeout(PATIENCE, stream.read(&mut byte)).await.unwrap() {
            Ok(0) => Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => None,
            Err(error) => Some(error),
        }
    }

    pub fn channel(&self, address: SocketAddr) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect_with_connector_lazy(Dial { trust: self.clone(), address })
    }

    /// Calls the API; answers with the status code and the body.
    pub async fn http(
        &self,
        address: SocketAddr,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (u16, Value) {
        let stream = self.dial(address, b"http/1.1").await.unwrap();
        http_over(stream, method, path, token, body).await
    }
}

/// One request over a connection, which the answer ends.
pub async fn http_over(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, Value) {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\r\n",
        body.len(),
        token.unwrap_or_default(),
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut text = Vec::new();
    // A connection that is cut without a goodbye has still said what it said.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
}

#[derive(Clone)]
struct Dial {
    trust: Trust,
    address: SocketAddr,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { trust, address } = self.clone();
        Box::pin(async move { Ok(TokioIo::new(trust.dial(address, b"h2").await?)) })
    }
}

/// Asks for a certificate with a new key.
pub async fn issue(
    channel: Channel,
    token: Option<&str>,
    (namespace, account): (&str, &str),
    proxy: &str,
) -> Result<(Held, IssueResponse), Status> {
    let pair = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&pair).unwrap();
    let mut request = Request::new(IssueRequest {
        csr: request.der().to_vec(),
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        proxy: proxy.to_owned(),
        ttl_seconds: 0,
    });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<IssueRequest, IssueResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/leno.ca.v1.CertificateAuthority/Issue");
    let response = timeout(PATIENCE, client.unary(request, path, codec)).await.unwrap()?;
    let response: IssueResponse = response.into_inner();
    let chain = response.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
    Ok((Held { chain, key }, response))
}

/// One proxy's stream.
pub struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// Opens it and asks for trust bundles and services.
    pub async fn open(channel: Channel, token: Option<&str>, node: Node) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut node = Some(node);
        for kind in ["TrustBundle", "Service"] {
            let kind = KINDS.iter().find(|info| info.kind == kind).unwrap();
            let subscribe = DeltaDiscoveryRequest {
                node: node.take(),
                type_url: wire::type_url(kind),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(subscribe).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let call = client.delta_aggregated_resources(request);
        let responses = timeout(PATIENCE, call).await.unwrap()?.into_inner();
        Ok(Self { requests, responses })
    }

    /// The next response, not yet accepted.
    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = timeout(PATIENCE, self.responses.message()).await.unwrap()?;
        next.ok_or_else(|| Status::new(Code::Ok, "ended"))
    }

    pub async fn accept(&self, response: &DeltaDiscoveryResponse) {
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
    }

    /// The next trust bundle, not yet accepted; everything before it is.
    pub async fn bundle(&mut self) -> (DeltaDiscoveryResponse, Value) {
        loop {
            let response = self.next().await.unwrap();
            let found =
                response.resources.iter().find(|_| response.type_url.ends_with("/TrustBundle"));
            if let Some(found) = found {
                let body = &found.resource.as_ref().unwrap().value;
                let object = serde_json::from_slice(body).unwrap();
                return (response, object);
            }
            self.accept(&response).await;
        }
    }

    /// Why the stream ends.
    pub async fn ending(mut self) -> Status {
        loop {
            match self.next().await {
                Ok(response) => self.accept(&response).await,
                Err(status) => return status,
            }
        }
    }
}

pub fn node(id: &str, namespace: &str, workload: Option<Value>) -> Node {
    let text = |text: String| WireValue { kind: Some(Kind::StringValue(text)) };
    let mut fields = vec![("namespace".to_owned(), text(namespace.to_owned()))];
    fields.extend(workload.map(|workload| ("workload".to_owned(), text(workload.to_string()))));
    let metadata = Some(Struct { fields: fields.into_iter().collect() });
    Node { id: id.to_owned(), metadata, ..Node::default() }
}
