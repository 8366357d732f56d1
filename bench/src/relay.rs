//! The null relay: accepts, connects, and passes bytes both ways without reading them. What it
//! costs no proxy on this machine can undercut, so it runs in every round as the floor.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use serde::{Deserialize, Serialize};

const READ: usize = 64 * 1024;
const EVENTS: usize = 256;
/// Token of the listener; the sides of pair N are 2N and 2N+1.
const LISTENER: u64 = u64::MAX;

/// Where the relay listens: the one line it prints.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Addresses {
    pub outbound: SocketAddr,
}

/// Relays every connection to `upstream` until the process ends.
pub fn serve(upstream: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind the relay")?;
    println!("{}", serde_json::to_string(&Addresses { outbound: listener.local_addr()? })?);
    relay(&listener, upstream)
}

struct Relay {
    epoll: OwnedFd,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
}

/// Two connections; index 0 is downstream, 1 upstream.
struct Pair([Side; 2]);

struct Side {
    stream: TcpStream,
    /// Bytes from the other side that did not fit this socket's buffer.
    unsent: Vec<u8>,
    /// The peer has sent its last byte.
    ended: bool,
    watched: EventFlags,
}

fn relay(listener: &TcpListener, upstream: SocketAddr) -> Result<()> {
    listener.set_nonblocking(true).context("set the listener to non-blocking")?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)
        .context("watch the listener")?;
    let mut relay = Relay { epoll, pairs: Vec::new(), free: Vec::new(), scratch: vec![0; READ] };
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&relay.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for connections"),
        }
        let mut ended = Vec::new();
        for event in &events {
            if event.data.u64() == LISTENER {
                relay.accept(listener, upstream)?;
                continue;
            }
            let token = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            if !relay.ready(token / 2, token % 2, event.flags) {
                ended.push(token / 2);
            }
        }
        // Only now may a number be given again: an event of this batch may still name the old one.
        for index in ended {
            if let Some(slot) = relay.pairs.get_mut(index)
                && slot.take().is_some()
            {
                relay.free.push(index);
            }
        }
    }
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener, upstream: SocketAddr) -> Result<()> {
        loop {
            let downstream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept a connection"),
            };
            // The origin is on this machine: connecting does not wait.
            let Ok(upstream) = TcpStream::connect(upstream) else { continue };
            self.add(downstream, upstream)?;
        }
    }

    fn add(&mut self, downstream: TcpStream, upstream: TcpStream) -> Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let pair = Pair([Side::new(downstream)?, Side::new(upstream)?]);
        for (number, side) in pair.0.iter().enumerate() {
            let token = EventData::new_u64((index * 2 + number) as u64);
            epoll::add(&self.epoll, &side.stream, token, EventFlags::IN)
                .context("watch a socket")?;
        }
        if let Some(slot) = self.pairs.get_mut(index) {
            *slot = Some(pair);
        }
        Ok(())
    }

    /// Moves what can be moved; false once the pair has ended.
    fn ready(&mut self, index: usize, number: usize, flags: EventFlags) -> bool {
        let Some(Some(Pair(sides))) = self.pairs.get_mut(index) else { return true };
        let [downstream, upstream] = sides;
        let (from, to) = if number == 0 { (downstream, upstream) } else { (upstream, downstream) };
        let alive = if flags.contains(EventFlags::OUT) {
            from.flush(to.ended)
        } else {
            pass(from, to, &mut self.scratch)
        };
        alive
            && from.watch(&self.epoll, index * 2 + number, to.unsent.is_empty())
            && to.watch(&self.epoll, index * 2 + 1 - number, from.unsent.is_empty())
            && !(from.finished() && to.finished())
    }
}

fn pass(from: &mut Side, to: &mut Side, scratch: &mut [u8]) -> bool {
    match from.stream.read(scratch) {
        Ok(0) => {
            from.ended = true;
            to.flush(true)
        }
        Ok(count) => to.send(scratch.get(..count).unwrap_or_default()),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

impl Side {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true).context("set a socket to non-blocking")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        Ok(Side { stream, unsent: Vec::new(), ended: false, watched: EventFlags::IN })
    }

    fn finished(&self) -> bool {
        self.ended && self.unsent.is_empty()
    }

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

    /// Sends what waited, and the end of the stream after it where the other side has ended.
    fn flush(&mut self, other_ended: bool) -> bool {
        let unsent = std::mem::take(&mut self.unsent);
        if !self.send(&unsent) {
            return false;
        }
        if other_ended && self.unsent.is_empty() {
            // A peer that has already gone cannot be told; its reset ends the pair.
            return self.stream.shutdown(Shutdown::Write).is_ok();
        }
        true
    }

    /// Reads only while the other side takes what was read: a slow reader does not grow memory.
    fn watch(&mut self, epoll: &OwnedFd, token: usize, other_takes: bool) -> bool {
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::IN, !self.ended && other_takes);
        wanted.set(EventFlags::OUT, !self.unsent.is_empty());
        if wanted == self.watched {
            return true;
        }
        self.watched = wanted;
        epoll::modify(epoll, &self.stream, EventData::new_u64(token as u64), wanted).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A megabyte each way through a relay with a half-close: nothing lost, nothing left hanging.
    #[test]
    fn bytes_pass_both_ways_and_ends_do_too() {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream_address = upstream.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || relay(&listener, upstream_address).unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = upstream.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(&received).unwrap();
            received.len()
        });
        let mut client = TcpStream::connect(address).unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(server.join().unwrap(), sent.len());
        assert_eq!(received, sent);
    }
}
