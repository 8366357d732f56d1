//! How order reaches the other services: the three ways in which an application uses its sidecar.
//!
//! | to | sent to the sidecar's outbound port | the mesh learns the service from |
//! |---|---|---|
//! | user | an HTTP/1.1 request | `Host: user` |
//! | the catalogue of product | the same | `Host: catalogue` |
//! | product | a gRPC call, HTTP/2 with prior knowledge | `:authority: product` |
//! | notification | `CONNECT notification:7000`, then raw bytes | the target of the CONNECT |
//!
//! Given a direct address instead, the same is sent there, only without the CONNECT.

use crate::args::{Address, Args, Service};
use crate::failure::{Failure, with_causes};
use crate::{Error, Hop};
use axum::body::Body;
use http::StatusCode;
use http::uri::Authority;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;
use tokio::time::timeout;

mod catalogue;
mod notification;
mod product;
mod reach;
mod user;
mod web;

pub use catalogue::Catalogue;
pub use notification::Notifications;
pub use product::Stock;
pub use reach::Reach;
pub use user::Users;
use web::Web;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than servers usually keep an idle connection, so that no request meets a closing one.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// The services that order calls.
pub struct Upstreams {
    pub users: Users,
    pub catalogue: Catalogue,
    pub stock: Stock,
    pub notifications: Notifications,
}

impl Upstreams {
    pub fn new(args: &Args) -> Result<Self, Error> {
        let way = |service, direct, name| Way::new(args, service, direct, name);
        let user = way(Service::User, &args.user_addr, &args.user_name)?;
        let catalogue = way(Service::Product, &args.product_addr, &args.catalogue_name)?;
        let product = way(Service::Product, &args.product_addr, &args.product_name)?;
        let notification = way(
            Service::Notification,
            &args.notification_addr,
            args.notification_name.authority(),
        )?;
        Ok(Self {
            users: Users::new(user),
            catalogue: Catalogue::new(catalogue),
            stock: Stock::new(product)?,
            notifications: Notifications::new(notification),
        })
    }
}

/// An answer and who gave it.
pub struct Answered<T> {
    pub value: T,
    pub hop: Hop,
}

/// Where to connect for a service, and the name to ask for there.
struct Way {
    service: Service,
    connect: Authority,
    name: Authority,
    through_mesh: bool,
    patience: Duration,
}

impl Way {
    fn new(
        args: &Args,
        service: Service,
        direct: &Option<Address>,
        name: &Authority,
    ) -> Result<Self, Error> {
        let connect = direct.as_ref().or(args.mesh.as_ref()).ok_or(Error::NoWay { service })?;
        Ok(Self {
            service,
            connect: connect.authority().clone(),
            name: name.clone(),
            through_mesh: direct.is_none(),
            patience: Duration::from_millis(args.call_timeout_ms),
        })
    }

    /// Runs one call, but not for ever.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        timeout(self.patience, call).await.unwrap_or_else(|_| Err(self.too_late()))
    }

    fn too_late(&self) -> Failure {
        let message = format!("{} did not answer within {:?}", self.service, self.patience);
        Failure::new(StatusCode::GATEWAY_TIMEOUT, self.service, message)
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failure {
        let error = with_causes(error);
        let message = format!("{} cannot be reached at {}: {error}", self.service, self.connect);
        Failure::upstream(self.service, message)
    }
}

/// An ordinary HTTP client with a connection pool.
pub fn http_client() -> Client<HttpConnector, Body> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build(connector)
}
