//! Connections of proxies: bounded in number, and in how long they may say nothing.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Connections open at the same time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// How long a connection may take to begin with HTTP/2. From then on pings tell whether it lives.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;
/// After an accept that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every connection, as it comes. Ends never: an accept that fails is tried again.
pub(super) fn connections(
    listener: TcpListener,
) -> impl Stream<Item = Result<Connection, io::Error>> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, permits), |(listener, permits)| async {
        loop {
            match accept(&listener, &permits).await {
                Ok(connection) => return Some((Ok(connection), (listener, permits))),
                Err(error) => {
                    tracing::warn!(%error, "a proxy's connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Connection> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // A change is a few small frames, which must not wait for each other's acknowledgement.
    stream.set_nodelay(true)?;
    let preface =
        Some(Preface { missing: PREFACE_BYTES, deadline: Box::pin(sleep(PREFACE_TIMEOUT)) });
    Ok(Connection { stream, preface, _permit: permit })
}

/// A connection that fails when HTTP/2 does not begin in time.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    preface: Option<Preface>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(result) => {
                let count = buffer.filled().len() - before;
                let preface = self.preface.take();
                self.preface = preface.and_then(|mut preface| {
                    preface.missing = preface.missing.saturating_sub(count);
                    (preface.missing > 0).then_some(preface)
                });
                Poll::Ready(result)
            }
            Poll::Pending => {
                let Some(preface) = &mut self.preface else { return Poll::Pending };
                ready!(preface.deadline.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = Box::pin(connections(listener));
        (incoming.next().await.unwrap().unwrap(), client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_too_little_fails() {
        for said in [0, PREFACE_BYTES - 1] {
            let (mut connection, mut client) = pair().await;
            client.write_all(&vec![b'x'; said]).await.unwrap();
            let mut text = Vec::new();
            let error = connection.read_to_end(&mut text).await.unwrap_err();
            assert_eq!((error.kind(), text.len()), (io::ErrorKind::TimedOut, said));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_begun_may_be_silent() {
        let (mut connection, mut client) = pair().await;
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        let mut text = [0; PREFACE_BYTES];
        connection.read_exact(&mut text).await.unwrap();
        let silent = tokio::time::timeout(PREFACE_TIMEOUT * 10, connection.read_u8()).await;
        assert!(silent.is_err());
    }
}
