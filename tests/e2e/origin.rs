//! What stands behind the proxy: an honest echo, and origins that misbehave in one way each.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Any body.
pub type Body = BoxBody<Bytes, Infallible>;

/// A listening origin; ends with the test.
pub struct Origin {
    pub address: SocketAddr,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    requests: Mutex<Vec<Value>>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Origin {
    /// Hands every connection, with its number from 1, to `serve`.
    pub async fn raw<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + Send + 'static,
    ) -> Self {
        Self::counted(move |stream, number, _| serve(stream, number)).await
    }

    async fn counted<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, usize, Arc<Counts>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let shared = counts.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                stream.set_nodelay(true).unwrap();
                let number = shared.accepted.fetch_add(1, Ordering::Relaxed) + 1;
                shared.open.fetch_add(1, Ordering::Relaxed);
                let serving = serve(stream, number, shared.clone());
                let shared = shared.clone();
                tokio::spawn(async move {
                    serving.await;
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, counts, accepting }
    }

    /// Answers 200 with what it got, as JSON; over HTTP/1.1.
    pub async fn echo(name: &'static str) -> Self {
        Self::counted(move |stream, _, counts| async move {
            let service = service_fn(move |request| {
                let counts = counts.clone();
                async move { Ok::<_, Infallible>(echo(name, request, counts).await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.half_close(true).max_headers(2000);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// As [`Self::echo`], over HTTP/2 with prior knowledge.
    pub async fn echo_http2(name: &'static str) -> Self {
        Self::counted(move |stream, _, counts| async move {
            let service = service_fn(move |request| {
                let counts = counts.clone();
                async move { Ok::<_, Infallible>(echo(name, request, counts).await) }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// Answers every request on every connection with the same bytes, which must leave the connection usable.
    pub async fn canned(response: impl Into<Vec<u8>>) -> Self {
        let response: Arc<[u8]> = response.into().into();
        Self::raw(move |mut stream, _| {
            let response = response.clone();
            async move {
                while read_request(&mut stream).await.is_some() {
                    if stream.write_all(&response).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// Answers the first request with these bytes and closes.
    pub async fn canned_once(response: impl Into<Vec<u8>>) -> Self {
        let response: Arc<[u8]> = response.into().into();
        Self::raw(move |mut stream, _| {
            let response = response.clone();
            async move {
                if read_request(&mut stream).await.is_some() {
                    let _ = stream.write_all(&response).await;
                    let _ = stream.shutdown().await;
                    drain(&mut stream).await;
                }
            }
        })
        .await
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are being served.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// What an echo has answered so far.
    pub fn requests(&self) -> Vec<Value> {
        self.counts.requests.lock().unwrap().clone()
    }
}

/// A port on which nobody listens, and that nobody else gets as long as the tests run.
pub fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    std::mem::forget(socket);
    address
}

async fn echo(name: &str, request: Request<Incoming>, counts: Arc<Counts>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut headers = Map::new();
    for (name, value) in &parts.headers {
        let values = headers.entry(name.as_str()).or_insert_with(|| json!([]));
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        values.as_array_mut().unwrap().push(value.into());
    }
    let Ok(body) = body.collect().await else {
        return Response::builder().status(StatusCode::BAD_REQUEST).body(full("")).unwrap();
    };
    let trailers: Map<String, Value> = body
        .trailers()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
        .collect();
    let seen = json!({
        "origin": name, "method": parts.method.as_str(), "version": format!("{:?}", parts.version),
        "path": parts.uri.path_and_query().map(|path| path.as_str()),
        "authority": parts.uri.authority().map(|authority| authority.as_str()),
        "headers": headers, "body": String::from_utf8_lossy(&body.to_bytes()), "trailers": trailers,
    });
    counts.requests.lock().unwrap().push(seen.clone());
    Response::builder()
        .header("content-type", "application/json")
        .header("x-origin", name)
        .body(full(seen.to_string()))
        .unwrap()
}

/// A body made of one piece.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// Reads one request with `Content-Length` or none; `None` at the end of the connection. Returns head and body.
pub async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if !read_some(stream, &mut bytes).await {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while bytes.len() < end + length {
        if !read_some(stream, &mut bytes).await {
            return None;
        }
    }
    Some((head, bytes.split_off(end)))
}

async fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut chunk = vec![0; 64 * 1024];
    let read = stream.read(&mut chunk).await.unwrap_or(0);
    bytes.extend_from_slice(&chunk[..read]);
    read > 0
}

/// Reads until the peer closes: a close with unread bytes would be a reset.
pub async fn drain(stream: &mut TcpStream) -> usize {
    let (mut chunk, mut total) = (vec![0; 64 * 1024], 0);
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        total += read;
    }
    total
}
