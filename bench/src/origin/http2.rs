//! The HTTP/2 origin: plain requests and unary gRPC calls, over cleartext with prior knowledge.

use std::net::TcpListener;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Flow-control windows wide enough never to be what a run measures.
const WINDOW: u32 = 1 << 20;
const GRPC: &str = "application/grpc";

struct Answers {
    head: Response<()>,
    grpc_head: Response<()>,
    trailers: HeaderMap,
    by_path: Vec<(&'static str, Bytes)>,
    other: Bytes,
}

pub fn serve(listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("set the listener to non-blocking")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = Rc::new(Answers::new());
    LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await.context("accept a connection")?;
            let answers = Rc::clone(&answers);
            tokio::task::spawn_local(async move {
                // A peer that leaves is no concern of the origin: the load generator counts it.
                if stream.set_nodelay(true).is_ok() {
                    let _ = connection(stream, answers).await;
                }
            });
        }
    })
}

async fn connection(stream: TcpStream, answers: Rc<Answers>) -> Result<(), h2::Error> {
    let mut connection = server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if request.body().is_end_stream() {
            // Answered on the spot: a task a request is what a cheap origin does without.
            answers.answer(&request, respond)?;
        } else {
            let answers = Rc::clone(&answers);
            tokio::task::spawn_local(async move {
                let (head, mut body) = request.into_parts();
                if drain(&mut body).await.is_ok() {
                    // As above: who is gone is counted by the load generator.
                    let _ = answers.answer(&Request::from_parts(head, ()), respond);
                }
            });
        }
    }
    Ok(())
}

async fn drain(body: &mut RecvStream) -> Result<(), h2::Error> {
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(())
}

impl Answers {
    fn new() -> Self {
        let mut head = Response::new(());
        for (header, value) in super::headers() {
            head.headers_mut().insert(header, HeaderValue::from_static(value));
        }
        let mut grpc_head = head.clone();
        grpc_head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(GRPC));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let by_path =
            super::BODIES.iter().map(|(path, length)| (*path, super::body(*length).into()));
        Answers {
            head,
            grpc_head,
            trailers,
            by_path: by_path.collect(),
            other: super::body(super::DEFAULT_BODY).into(),
        }
    }

    fn answer<T>(
        &self,
        request: &Request<T>,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), h2::Error> {
        let path = request.uri().path();
        let body = self.by_path.iter().find(|(at, _)| *at == path);
        let body = body.map_or(&self.other, |(_, body)| body).clone();
        let grpc = request.headers().get(header::CONTENT_TYPE);
        if grpc.is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes())) {
            let mut stream = respond.send_response(clone(&self.grpc_head), false)?;
            stream.send_data(message(&body), false)?;
            return stream.send_trailers(self.trailers.clone());
        }
        let mut head = clone(&self.head);
        head.headers_mut().insert(header::CONTENT_LENGTH, body.len().into());
        respond.send_response(head, false)?.send_data(body, true)
    }
}

/// A gRPC message: a flag (not compressed), the length, the bytes.
pub fn message(body: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(body);
    framed.into()
}

fn clone(head: &Response<()>) -> Response<()> {
    let mut copy = Response::new(());
    *copy.headers_mut() = head.headers().clone();
    copy
}
