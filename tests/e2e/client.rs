//! HTTP/1.1 by the byte: what is sent is exactly what the test says, what comes back is read strictly.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::mesh::PATIENCE;

/// A response.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// As they came, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    /// The one value of a header; panics when there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.headers_named(name);
        assert!(values.len() <= 1, "{name} came {} times", values.len());
        values.first().copied()
    }

    /// All values of a header.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(other, _)| other == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of an echo, as JSON.
    pub fn echo(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{} {}", self.status, self.text()))
    }
}

/// The message ended before it was complete.
#[derive(Debug)]
pub struct CutOff {
    /// What there was of it.
    pub answer: Answer,
}

/// A connection on which a test decides every byte.
#[derive(Debug)]
pub struct Wire {
    pub stream: TcpStream,
    /// Read and not yet used.
    pub unread: Vec<u8>,
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Sends all of it; panics when the peer does not take it.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes).await, "the connection is closed");
    }

    /// Sends; `false` when the peer has closed the connection.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref()))
            .await
            .expect("the peer reads")
            .is_ok()
    }

    /// Closes the sending half.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads more; `false` at the end, whether orderly or not.
    pub async fn more(&mut self) -> bool {
        let mut chunk = vec![0; 64 * 1024];
        let read = timeout(PATIENCE, self.stream.read(&mut chunk)).await.expect("the peer answers");
        let read = read.unwrap_or(0);
        self.unread.extend_from_slice(&chunk[..read]);
        read > 0
    }

    /// Everything until the peer closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.unread)
    }

    /// Exactly `count` bytes.
    pub async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.unread.len() < count {
            if !self.more().await {
                return None;
            }
        }
        Some(self.unread.drain(..count).collect())
    }

    /// Up to and without the next line break.
    pub async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.unread.drain(..at + 2).take(at).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').expect("a field line");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next head, interim or final. `None` when the connection ends instead.
    pub async fn head(&mut self) -> Option<Answer> {
        let line = self.line().await?;
        assert!(line.starts_with("HTTP/1."), "not a status line: {line}");
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let headers = self.fields().await?;
        Some(Answer { status, headers, ..Answer::default() })
    }

    /// The next final response to a request that was no HEAD.
    pub async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("a complete response")
    }

    /// As [`Self::answer`]; an error when the message is not complete.
    pub async fn try_answer(&mut self) -> Result<Answer, CutOff> {
        let cut = |answer| CutOff { answer };
        let mut answer = loop {
            let Some(head) = self.head().await else { return Err(cut(Answer::default())) };
            if head.status >= 200 {
                break head;
            }
        };
        if matches!(answer.status, 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            assert_eq!(answer.header("content-length"), None);
            return match self.chunks(&mut answer).await {
                Some(()) => Ok(answer),
                None => Err(cut(answer)),
            };
        }
        match answer.header("content-length").map(|length| length.parse().unwrap()) {
            Some(length) => match self.exactly(length).await {
                Some(body) => answer.body = body,
                None => {
                    answer.body = std::mem::take(&mut self.unread);
                    return Err(cut(answer));
                }
            },
            None => answer.body = self.rest().await,
        }
        Ok(answer)
    }

    async fn chunks(&mut self, answer: &mut Answer) -> Option<()> {
        loop {
            let size = usize::from_str_radix(&self.line().await?, 16).expect("a chunk size");
            if size == 0 {
                answer.trailers = self.fields().await?;
                return Some(());
            }
            answer.body.extend(self.exactly(size).await?);
            assert_eq!(self.line().await?, "");
        }
    }

    /// Sends a request and reads its response.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    /// Whether the peer closes without another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.rest().await.is_empty()
    }
}

/// One request on a connection of its own.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    Wire::connect(address).await.ask(request).await
}

/// One GET on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    get_with(address, host, path, "").await
}

/// One GET with more fields, each ended by CRLF.
pub async fn get_with(address: SocketAddr, host: &str, path: &str, fields: &str) -> Answer {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    ask(address, request).await
}
