//! gRPC servers that do what a test tells them, over any kind of connection.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    body::Body,
    codegen::Service,
    server::NamedService,
    transport::{Server, server::Connected},
};

/// Who is at the other end, as its certificate says.
#[derive(Clone, Debug)]
pub struct Shown(pub Option<String>);

/// A connection that a server has accepted.
pub struct Served<IO> {
    pub io: IO,
    pub shown: Shown,
}

impl<IO> Connected for Served<IO> {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        self.shown.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Served<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Served<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Serves what comes until the sender is gone.
pub fn serve<IO, S>(service: S) -> mpsc::Sender<Served<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let (connections, queue) = mpsc::channel(4);
    let incoming = ReceiverStream::new(queue).map(Ok::<_, io::Error>);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    connections
}
