//! A TCP connection through a plugin to an origin that answers `got:` and what it got.

use leno_wasm_host::{Action, ClosedBy, ContextId, Instance};

use crate::{
    case::{Client, Observation, TcpStep},
    embedder::{KitHost, KitStream, text},
};

const DOWNSTREAM: usize = 2;
const UPSTREAM: usize = 3;

/// Drives one connection and tells what client and origin saw.
pub fn connection(instance: &mut Instance<KitHost>, steps: &[TcpStep]) -> Observation {
    let (context, created) = instance.create_context(KitStream::default());
    created.unwrap();
    assert_eq!(instance.on_new_connection(context).unwrap(), Action::Continue);
    let mut connection = Connection { instance, context, seen: Vec::new(), closed: false };
    let mut read = String::new();
    let mut steps_read = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let end = steps.get(index + 1).is_some_and(|next| next.shutdown.is_some());
        if let Some(sent) = &step.send {
            read += &connection.send(sent.as_bytes(), end);
        } else if step.read_ms.is_some() {
            steps_read.push(std::mem::take(&mut read));
        }
    }
    let ended = connection.closed.then(|| "closed".to_owned());
    connection.close();
    let client = Client { steps: Some(steps_read), end: ended, ..Client::default() };
    let seen = std::mem::take(&mut connection.seen);
    Observation { client: Some(client), tcp_origin: Some(seen), ..Observation::default() }
}

struct Connection<'a> {
    instance: &'a mut Instance<KitHost>,
    context: ContextId,
    seen: Vec<String>,
    closed: bool,
}

impl Connection<'_> {
    fn stream(&mut self) -> &mut KitStream {
        self.instance.stream_mut(self.context).unwrap()
    }

    /// Bytes from the client; gives back what it reads in turn.
    fn send(&mut self, bytes: &[u8], end: bool) -> String {
        self.stream().buffers[DOWNSTREAM].extend(bytes);
        let size = self.stream().buffers[DOWNSTREAM].len() as u32;
        let action = self.instance.on_downstream_data(self.context, size, end).unwrap();
        if self.stream().closed.is_some() {
            self.instance.on_downstream_close(self.context, ClosedBy::Local).unwrap();
            self.closed = true;
            return String::new();
        }
        if action != Action::Continue {
            return String::new();
        }
        let passed = std::mem::take(&mut self.stream().buffers[DOWNSTREAM]);
        self.seen.push(text(&passed));
        self.stream().buffers[UPSTREAM] = [b"got:", &passed[..]].concat();
        let size = self.stream().buffers[UPSTREAM].len() as u32;
        self.instance.on_upstream_data(self.context, size, end).unwrap();
        if end {
            self.close_both();
        }
        text(&std::mem::take(&mut self.stream().buffers[UPSTREAM]))
    }

    fn close_both(&mut self) {
        self.instance.on_upstream_close(self.context, ClosedBy::Unknown).unwrap();
        self.instance.on_downstream_close(self.context, ClosedBy::Local).unwrap();
        self.closed = true;
    }

    fn close(&mut self) {
        if !self.closed {
            self.instance.on_downstream_data(self.context, 0, true).unwrap();
            self.instance.on_upstream_data(self.context, 0, true).unwrap();
            self.close_both();
        }
        let (stream, told) = self.instance.finish_connection(self.context);
        assert!(stream.is_some());
        told.unwrap();
    }
}
