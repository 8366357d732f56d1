//! Connections of proxies: bounded in how long they may say nothing.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::transport::Incoming;

/// How long a connection may take to begin with HTTP/2. From then on pings tell whether it lives.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 9113, section 3.4.
const PREFACE_BYTES: usize = 24;

/// Every connection, as it comes. None of them can fail the others.
pub(super) fn connections(
    incoming: Incoming,
) -> impl Stream<Item = Result<Prefaced<crate::transport::Connection>, Infallible>> {
    stream::unfold(incoming, |mut incoming| async {
        let connection = incoming.next().await?;
        Some((Ok(Prefaced::new(connection)), incoming))
    })
}

/// A connection that fails when HTTP/2 does not begin in time.
#[derive(Debug)]
pub(super) struct Prefaced<IO> {
    stream: IO,
    preface: Option<Preface>,
}

#[derive(Debug)]
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<IO> Prefaced<IO> {
    fn new(stream: IO) -> Self {
        let deadline = Box::pin(sleep(PREFACE_TIMEOUT));
        Self { stream, preface: Some(Preface { missing: PREFACE_BYTES, deadline }) }
    }
}

impl<IO: Connected> Connected for Prefaced<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> IO::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefaced<IO> {
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

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefaced<IO> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_too_little_fails() {
        for said in [0, PREFACE_BYTES - 1] {
            let (stream, mut client) = duplex(PREFACE_BYTES);
            let mut connection = Prefaced::new(stream);
            client.write_all(&vec![b'x'; said]).await.unwrap();
            let mut text = Vec::new();
            let error = connection.read_to_end(&mut text).await.unwrap_err();
            assert_eq!((error.kind(), text.len()), (io::ErrorKind::TimedOut, said));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_begun_may_be_silent() {
        let (stream, mut client) = duplex(PREFACE_BYTES);
        let mut connection = Prefaced::new(stream);
        client.write_all(&[b'x'; PREFACE_BYTES]).await.unwrap();
        let mut text = [0; PREFACE_BYTES];
        connection.read_exact(&mut text).await.unwrap();
        let silent = tokio::time::timeout(PREFACE_TIMEOUT * 10, connection.read_u8()).await;
        assert!(silent.is_err());
    }
}
