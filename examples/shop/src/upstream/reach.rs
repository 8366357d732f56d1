//! The clients for the other services, made anew when the sidecar is another one.

use super::Upstreams;
use crate::failure::Failure;
use crate::{Address, Args, Error, Service};
use http::StatusCode;
use std::sync::{Arc, Mutex, PoisonError};

pub struct Reach {
    args: Args,
    made: Mutex<Option<Made>>,
}

struct Made {
    mesh: Option<Address>,
    upstreams: Arc<Upstreams>,
}

impl Reach {
    pub fn new(args: &Args) -> Result<Self, Error> {
        let reach = Self { args: args.clone(), made: Mutex::default() };
        if !args.await_mesh {
            reach.make(args.mesh.clone())?;
        }
        Ok(reach)
    }

    /// The clients that go through the sidecar at `mesh`.
    pub fn through(&self, mesh: Option<Address>) -> Result<Arc<Upstreams>, Failure> {
        self.make(mesh).map_err(|error| {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, Service::Order, error.to_string())
        })
    }

    fn make(&self, mesh: Option<Address>) -> Result<Arc<Upstreams>, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| made.mesh == mesh) {
            return Ok(made.upstreams.clone());
        }
        let args = Args { mesh: mesh.clone(), ..self.args.clone() };
        let upstreams = Arc::new(Upstreams::new(&args)?);
        *made = Some(Made { mesh, upstreams: upstreams.clone() });
        Ok(upstreams)
    }
}
