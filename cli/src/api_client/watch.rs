//! A watch: one JSON event per line, for as long as both sides like.

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, Refusal};

/// The largest resource with everything the API adds, several times over.
const MAX_EVENT_BYTES: usize = 8 * 1024 * 1024;

/// Changes as they happen.
pub struct Watch {
    server: String,
    body: Incoming,
    buffer: Vec<u8>,
}

/// One change.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// `ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`.
    #[serde(rename = "type")]
    pub kind: String,
    pub object: Value,
}

impl Watch {
    pub fn new(server: String, body: Incoming) -> Self {
        Self { server, body, buffer: Vec::new() }
    }

    /// The next change; `None` when the control plane ended the watch.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(line) = take_line(&mut self.buffer) {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.event(&line).map(Some);
            }
            if self.buffer.len() > MAX_EVENT_BYTES {
                return Err(self.unreadable("one event is too large"));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| self.unreadable(&error.to_string()))?;
            self.buffer.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new()));
        }
    }

    fn event(&self, line: &[u8]) -> Result<Event, Error> {
        let event: Event =
            serde_json::from_slice(line).map_err(|error| self.unreadable(&error.to_string()))?;
        if event.kind != "ERROR" {
            return Ok(event);
        }
        let refusal = Refusal::read(http::StatusCode::INTERNAL_SERVER_ERROR, &event.object);
        Err(refusal.map_or_else(|| self.unreadable("an error without a reason"), Error::Refused))
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::Unreadable { server: self.server.clone(), reason: format!("watch: {reason}") }
    }
}

fn take_line(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let rest = buffer.split_off(end + 1);
    Some(std::mem::replace(buffer, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_as_they_are_complete() {
        let mut buffer = b"{}\n{\"a\"".to_vec();
        assert_eq!(take_line(&mut buffer).as_deref(), Some(&b"{}\n"[..]));
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b":1}\n");
        assert_eq!(take_line(&mut buffer).as_deref(), Some(&b"{\"a\":1}\n"[..]));
        assert!(buffer.is_empty());
    }
}
