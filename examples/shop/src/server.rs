//! Binds an instance's two ports, serves them, stops gracefully.

use crate::answer::answer;
use crate::args::{Args, Service};
use crate::instance::Instance;
use crate::notification::{self, Inbox};
use crate::product::{self, Shelf};
use crate::upstream::Reach;
use crate::{Error, Label, catalogue, control, order, user};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::serve::ListenerExt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long begun requests may take after the signal to stop.
const GRACE: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: usize = 64 * 1024;

/// An instance at work. Dropping it ends it at once; [`Running::stop`] lets it finish.
#[derive(serde::Serialize)]
pub struct Running {
    pub service: Service,
    pub instance: Label,
    pub listen: SocketAddr,
    pub control: SocketAddr,
    #[serde(skip)]
    stop: CancellationToken,
    #[serde(skip)]
    tasks: JoinSet<()>,
}

/// Starts one instance inside the current tokio runtime.
pub async fn start(args: Args) -> Result<Running, Error> {
    let instance = Instance::new(&args).map_err(Error::Instance)?;
    let instance = Arc::new(instance);
    let service = app(&args, &instance)?;
    let (listener, listen) = bind("--listen", args.listen).await?;
    let (control_listener, control) = bind("--control", args.control).await?;

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut control_router = control::router(instance.clone());
    match service {
        App::Http { router, control } => {
            control_router = control_router.merge(control);
            let router = router
                .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
                .layer(from_fn_with_state(instance.clone(), answer));
            tasks.spawn(serve(listener, router, stop.clone()));
        }
        App::Tcp(inbox) => {
            control_router = control_router.merge(notification::router(inbox.clone()));
            tasks.spawn(notification::serve(listener, inbox, stop.clone()));
        }
    }
    tasks.spawn(serve(control_listener, control_router, stop.clone()));
    tracing::info!(service = %args.service, instance = %instance.name, %listen, %control, "started");
    let instance = instance.name.clone();
    Ok(Running { service: args.service, instance, listen, control, stop, tasks })
}

impl Running {
    /// Takes no new requests, finishes those begun, within a few seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(GRACE, finished).await.is_err() {
            tracing::warn!("some requests did not end within {GRACE:?} and are cut off");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Connections are tasks of their own and only watch this.
        self.stop.cancel();
    }
}

enum App {
    Http {
        router: Router,
        /// What else its control port answers.
        control: Router,
    },
    Tcp(Arc<Inbox>),
}

fn app(args: &Args, instance: &Arc<Instance>) -> Result<App, Error> {
    Ok(match args.service {
        Service::User => http(user::router()),
        Service::Product => {
            let shelf = Arc::new(Shelf::new());
            App::Http { control: catalogue::control(shelf.clone()), router: product::router(shelf) }
        }
        Service::Order => http(order::router(instance.clone(), Reach::new(args)?)),
        Service::Notification => App::Tcp(Inbox::new(instance.clone())),
    })
}

fn http(router: Router) -> App {
    App::Http { router, control: Router::new() }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Bind { flag, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves HTTP/1.1 and HTTP/2 with prior knowledge on one port: axum tells them apart.
async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("cannot set TCP_NODELAY: {error}");
        }
    });
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!("stopped serving: {error}");
    }
}
