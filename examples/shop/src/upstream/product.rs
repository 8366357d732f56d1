//! Calls to product: gRPC.

use super::{Answered, CONNECT_TIMEOUT, Way};
use crate::failure::Failure;
use crate::hop::{Hop, Trace};
use crate::products::products_client::ProductsClient;
use crate::products::{GetProductRequest, Product, ReserveRequest, reserve_request};
use crate::{Error, Service};
use http::StatusCode;
use http::uri::{PathAndQuery, Scheme, Uri};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

pub struct Catalogue {
    way: Way,
    client: ProductsClient<Channel>,
}

impl Catalogue {
    pub(super) fn new(way: Way) -> Result<Self, Error> {
        // Connects to the one, says the other: the origin becomes the `:authority`.
        let channel = Endpoint::from(uri(&way.connect)?)
            .origin(uri(&way.name)?)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { way, client: ProductsClient::new(channel) })
    }

    pub async fn find(&self, id: &str, trace: &Trace) -> Result<Answered<Product>, Failure> {
        let request = self.request(GetProductRequest { id: id.to_owned() }, trace);
        let answer = async { self.client.clone().get_product(request).await.map_err(failure) };
        answered(format!("GetProduct {id}"), self.way.call(answer).await?)
    }

    /// Takes all the lines off the stock, or none.
    pub async fn reserve(
        &self,
        lines: Vec<reserve_request::Line>,
        trace: &Trace,
    ) -> Result<Hop, Failure> {
        let request = self.request(ReserveRequest { lines }, trace);
        let answer = async { self.client.clone().reserve(request).await.map_err(failure) };
        Ok(answered("Reserve".to_owned(), self.way.call(answer).await?)?.hop)
    }

    fn request<T>(&self, message: T, trace: &Trace) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(trace.headers());
        request.set_timeout(self.way.patience);
        request
    }
}

fn answered<T>(call: String, answer: Response<T>) -> Result<Answered<T>, Failure> {
    let (metadata, value, _) = answer.into_parts();
    let hop = Hop::read(Service::Product, call, &metadata.into_headers())?;
    Ok(Answered { value, hop })
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
