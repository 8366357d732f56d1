//! The HTTP/1.1 origin: ready-made answers over epoll.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};

const READ: usize = 64 * 1024;
const EVENTS: usize = 256;
/// Token of the listener; connections are numbered from zero.
const LISTENER: u64 = u64::MAX;
/// A request head longer than this ends its connection.
const LONGEST_HEAD: usize = 64 * 1024;

struct Origin {
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: Answers,
    scratch: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// A head that has not ended yet.
    head: Vec<u8>,
    /// Bytes of a request body still to skip.
    skip: usize,
    /// Answers that did not fit the socket's buffer.
    unsent: Vec<u8>,
}

struct Answers {
    by_path: Vec<(String, Vec<u8>)>,
    other: Vec<u8>,
}

pub fn serve(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("set the listener to non-blocking")?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)
        .context("watch the listener")?;
    let mut origin = Origin {
        epoll,
        connections: Vec::new(),
        free: Vec::new(),
        answers: Answers::new(),
        scratch: vec![0; READ],
    };
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&origin.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for connections"),
        }
        let mut ended = Vec::new();
        for event in &events {
            if event.data.u64() == LISTENER {
                origin.accept(listener)?;
                continue;
            }
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if !origin.ready(index, event.flags) {
                ended.push(index);
            }
        }
        // Only now may a number be given again: an event of this batch may still name the old one.
        for index in ended {
            if let Some(slot) = origin.connections.get_mut(index)
                && slot.take().is_some()
            {
                origin.free.push(index);
            }
        }
    }
}

impl Origin {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept a connection"),
            };
            stream.set_nonblocking(true).context("set a socket to non-blocking")?;
            stream.set_nodelay(true).context("set TCP_NODELAY")?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let data = EventData::new_u64(index as u64);
            epoll::add(&self.epoll, &stream, data, EventFlags::IN).context("watch a socket")?;
            if let Some(slot) = self.connections.get_mut(index) {
                *slot = Some(Connection { stream, head: Vec::new(), skip: 0, unsent: Vec::new() });
            }
        }
    }

    /// Serves what is ready; false once the connection has ended.
    fn ready(&mut self, index: usize, flags: EventFlags) -> bool {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return true };
        let data = EventData::new_u64(index as u64);
        if flags.contains(EventFlags::OUT) {
            let unsent = std::mem::take(&mut connection.unsent);
            if !connection.send(&unsent) {
                return false;
            }
            if connection.unsent.is_empty() {
                let watched = epoll::modify(&self.epoll, &connection.stream, data, EventFlags::IN);
                return watched.is_ok();
            }
            return true;
        }
        let count = match connection.stream.read(&mut self.scratch) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        let bytes = self.scratch.get(..count).unwrap_or_default();
        if !connection.feed(bytes, &self.answers) {
            return false;
        }
        // While answers wait the connection is not read: a slow reader does not grow memory.
        connection.unsent.is_empty()
            || epoll::modify(&self.epoll, &connection.stream, data, EventFlags::OUT).is_ok()
    }
}

impl Connection {
    fn feed(&mut self, bytes: &[u8], answers: &Answers) -> bool {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            if self.head.is_empty()
                && let Some(end) = head_end(bytes)
            {
                let (head, rest) = bytes.split_at(end);
                bytes = rest;
                if !self.answer(head, answers) {
                    return false;
                }
                continue;
            }
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(end) = head_end(&self.head) else { return self.head.len() < LONGEST_HEAD };
            let head = std::mem::take(&mut self.head);
            bytes = bytes.get(end - before..).unwrap_or_default();
            if !self.answer(head.get(..end).unwrap_or_default(), answers) {
                return false;
            }
        }
        true
    }

    fn answer(&mut self, head: &[u8], answers: &Answers) -> bool {
        let Some((path, body)) = parse(head) else { return false };
        self.skip = body;
        self.send(answers.to(path))
    }

    /// Sends, or keeps for later what does not fit; false if the connection is gone.
    fn send(&mut self, bytes: &[u8]) -> bool {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return true;
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent.extend_from_slice(bytes);
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

impl Answers {
    fn new() -> Self {
        let paths = super::BODIES.iter();
        let usual = paths.clone().map(|(path, length)| ((*path).to_owned(), answer(*length)));
        let kept = |(path, length): &(&str, usize)| {
            (format!("{}{path}", super::KEPT), answer_with(*length, &super::kept_headers()))
        };
        let by_path = usual.chain(paths.map(kept)).collect();
        Answers { by_path, other: answer(super::DEFAULT_BODY) }
    }

    fn to(&self, path: &[u8]) -> &[u8] {
        let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let known = self.by_path.iter().find(|(at, _)| at.as_bytes() == path);
        known.map_or(&self.other, |(_, answer)| answer)
    }
}

fn answer(length: usize) -> Vec<u8> {
    answer_with(length, &super::headers())
}

fn answer_with(length: usize, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n").into_bytes();
    for (header, value) in headers {
        bytes.extend_from_slice(format!("{header}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&super::body(length));
    bytes
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Path and body length of a request. Proxies never send this origin a chunked request, because
/// the load generator sends none.
fn parse(head: &[u8]) -> Option<(&[u8], usize)> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let path = lines.next()?.split(|byte| *byte == b' ').nth(1)?;
    let label = b"content-length:";
    let length = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(label.len())?;
        name.eq_ignore_ascii_case(label).then_some(value)
    });
    let length = match length {
        Some(value) => std::str::from_utf8(value).ok()?.trim().parse().ok()?,
        None => 0,
    };
    Some((path, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_path_and_perhaps_a_body() {
        assert_eq!(parse(b"GET /1k HTTP/1.1\r\nhost: a\r\n\r\n"), Some((&b"/1k"[..], 0)));
        assert_eq!(parse(b"PUT / HTTP/1.1\r\nContent-Length: 7\r\n\r\n"), Some((&b"/"[..], 7)));
        assert_eq!(parse(b"PUT / HTTP/1.1\r\ncontent-length: x\r\n\r\n"), None);
        assert_eq!(parse(b"nonsense\r\n\r\n"), None);
    }

    #[test]
    fn it_answers_over_a_socket_however_the_bytes_arrive() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener).unwrap());
        let mut stream = TcpStream::connect(address).unwrap();
        // Two requests in pieces, the first with a body, pipelined.
        let pieces = [
            "POST /1k HTTP/1.1\r\nContent-Le",
            "ngth: 4\r\n\r\nab",
            "cdGET /1m HTTP/1.1\r\n",
            "\r\n",
        ];
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let expected = answer(1024).len() + answer(1024 * 1024).len();
        let mut bytes = vec![0; expected];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n"));
        assert!(String::from_utf8_lossy(&bytes).contains("vary: accept-encoding\r\n"));
    }
}
