//! What plugins call: services of the mesh, by a handle that whoever forwards implements.

use std::{future::Future, pin::Pin};

use http::{Request, Response};

use crate::{error::Error, http::body::Body};

/// An answer on its way.
pub type Sending = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>>>>;

/// Sends requests of plugins to services.
pub trait Callouts {
    /// Sends `request` to the service that the plugin calls `upstream`; over HTTP/2 in any case when `http2`. It is under
    /// way once this returns; dropping what it returns ends it. `None`: there is no such service.
    fn send(&self, upstream: &str, request: Request<Body>, http2: bool) -> Option<Sending>;
}
