//! An origin that answers as the test says, and remembers what it was asked.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{io::AsyncWriteExt, sync::watch};

use crate::{
    mesh::until,
    origin::{self, Origin},
};

/// An origin whose every answer is made by the test.
pub struct Upstream {
    origin: Origin,
    seen: Arc<Seen>,
    gate: watch::Sender<bool>,
}

#[derive(Default)]
struct Seen {
    heads: Mutex<Vec<String>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Upstream {
    /// `answer` gets the head (in lower case) and the number of the request, from 1. Where what it returns holds
    /// `connection: close`, or nothing, the connection is closed behind it.
    pub async fn answering<B: Into<Vec<u8>>>(
        answer: impl Fn(&str, usize) -> B + Send + Sync + 'static,
    ) -> Self {
        Self::new(answer, true).await
    }

    /// The same, where no request is answered before [`Self::open`].
    pub async fn held<B: Into<Vec<u8>>>(
        answer: impl Fn(&str, usize) -> B + Send + Sync + 'static,
    ) -> Self {
        Self::new(answer, false).await
    }

    async fn new<B: Into<Vec<u8>>>(
        answer: impl Fn(&str, usize) -> B + Send + Sync + 'static,
        open: bool,
    ) -> Self {
        let (seen, answer) = (Arc::<Seen>::default(), Arc::new(answer));
        let gate = watch::Sender::new(open);
        let (shared, doors) = (seen.clone(), gate.clone());
        let origin = Origin::raw(move |mut stream, _| {
            let (seen, answer, mut door) = (shared.clone(), answer.clone(), doors.subscribe());
            async move {
                while let Some((head, _)) = origin::read_request(&mut stream).await {
                    let number = seen.begin(&head);
                    let opened = door.wait_for(|open| *open).await.is_ok();
                    let bytes: Vec<u8> = answer(&head, number).into();
                    seen.now.fetch_sub(1, Ordering::Relaxed);
                    let head = bytes[..bytes.len().min(2000)].to_ascii_lowercase();
                    let wanted = b"connection: close";
                    let closes = head.windows(wanted.len()).any(|window| window == wanted);
                    if !opened || stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                    if closes || bytes.is_empty() {
                        let _ = stream.shutdown().await;
                        origin::drain(&mut stream).await;
                        return;
                    }
                }
            }
        });
        Self { origin: origin.await, seen, gate }
    }

    /// Every answer has these fields, each ended by CRLF, and its number as the body.
    pub async fn numbered(fields: &'static str) -> Self {
        Self::answering(move |_, number| response(fields, &number.to_string())).await
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    /// Requests so far.
    pub fn count(&self) -> usize {
        self.seen.heads.lock().unwrap().len()
    }

    /// Their heads, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// The most requests that were here at once, unanswered.
    pub fn most_at_once(&self) -> usize {
        self.seen.most.load(Ordering::Relaxed)
    }

    /// Answers what waits, and what comes.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Answers nothing more.
    pub fn close(&self) {
        self.gate.send_replace(false);
    }

    /// Waits until it was asked so often.
    pub async fn asked(&self, times: usize) {
        until(&format!("request {times} at the origin"), async || {
            (self.count() >= times).then_some(())
        })
        .await;
    }
}

impl Seen {
    fn begin(&self, head: &str) -> usize {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        let mut heads = self.heads.lock().unwrap();
        heads.push(head.to_owned());
        heads.len()
    }
}

/// 200 with these fields, each ended by CRLF, and this body.
pub fn response(fields: &str, body: &str) -> String {
    answer(200, fields, body)
}

/// The same with any status.
pub fn answer(status: u16, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len())
}

/// 200 with these fields and a body in chunks.
pub fn chunked(fields: &str, chunks: &[&str]) -> String {
    let mut text = format!("HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n{fields}\r\n");
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    text.push_str("0\r\n\r\n");
    text
}

/// The path of a request.
pub fn path(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

/// The row of a table that a request for `/0`, `/1`, … means.
pub fn row(head: &str) -> usize {
    path(head).trim_start_matches('/').parse().unwrap()
}

/// Fresh for long.
pub const FRESH: &str = "Cache-Control: max-age=600\r\n";
/// The same, for everybody.
pub const PUBLIC: &str = "Cache-Control: public, max-age=600\r\n";
/// Stale when it comes.
pub const STALE: &str = "Cache-Control: max-age=50\r\nAge: 100\r\n";
