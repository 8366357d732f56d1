//! Calls to product: gRPC.

use super::{CONNECT_TIMEOUT, Way};
use crate::failure::Failure;
use crate::hop::{Hop, Trace};
use crate::products::products_client::ProductsClient;
use crate::products::{ReserveRequest, reserve_request};
use crate::{Error, Service};
use http::StatusCode;
use http::uri::{PathAndQuery, Scheme, Uri};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

pub struct Stock {
    way: Way,
    client: ProductsClient<Channel>,
}

impl Stock {
    pub(super) fn new(way: Way) -> Result<Self, Error> {
        // Connects to the one, says the other: the origin becomes the `:authority`.
        let channel = Endpoint::from(uri(&way.connect)?)
            .origin(uri(&way.name)?)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { way, client: ProductsClient::new(channel) })
    }

    /// Takes all the lines off the stock, or none.
    pub async fn reserve(
        &self,
        lines: Vec<reserve_request::Line>,
        trace: &Trace,
    ) -> Result<Hop, Failure> {
        let request = self.request(ReserveRequest { lines }, trace);
        let answer = async { self.client.clone().reserve(request).await.map_err(failure) };
        let (metadata, _, _) = self.way.call(answer).await?.into_parts();
        Hop::read(Service::Product, "Reserve".to_owned(), &metadata.into_headers())
    }

    fn request<T>(&self, message: T, trace: &Trace) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(trace.headers());
        request.set_timeout(self.way.patience);
        request
    }
}

fn failure(status: Status) -> Failure {
    let message = format!("product answered {:?}: {}", status.code(), status.message());
    let code = match status.code() {
        Code::NotFound => StatusCode::UNPROCESSABLE_ENTITY,
        Code::FailedPrecondition => StatusCode::CONFLICT,
        // Cancelled is what tonic calls the timeout when it is the client's side that sees it.
        Code::DeadlineExceeded | Code::Cancelled => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    Failure::new(code, Service::Product, message)
}

fn uri(authority: &http::uri::Authority) -> Result<Uri, Error> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).map_err(|error| Error::Address {
        address: authority.to_string(),
        reason: error.to_string(),
    })
}
