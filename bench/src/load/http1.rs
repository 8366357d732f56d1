//! HTTP/1.1 load over keep-alive connections: one thread, one epoll, one write and one read a
//! request.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::response::{Progress, ResponseReader};
use super::{DRAIN, Pacing, Sample, Schedule, Target};

/// One read takes at most this much: a megabyte body needs few, a small one a single one.
const READ: usize = 256 * 1024;
const EVENTS: usize = 256;
/// How long the answer to `CONNECT` may take.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(5);

/// Open connections to one target, kept between phases so that a warm-up warms the next.
pub struct Http1Load {
    target: Target,
    request: Vec<u8>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    scratch: Vec<u8>,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When the request in flight was due.
    in_flight: Option<Instant>,
    reader: ResponseReader,
}

/// One phase in progress.
struct Phase {
    schedule: Schedule,
    sample: Sample,
    in_flight: usize,
}

impl Http1Load {
    /// Opens `count` connections to `target`.
    pub fn connect(target: &Target, count: usize) -> Result<Self> {
        let mut load = Http1Load {
            target: target.clone(),
            request: request(target),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; READ],
            connections: Vec::with_capacity(count),
            idle: VecDeque::with_capacity(count),
        };
        for index in 0..count {
            let stream = load.open(index)?;
            let reader = ResponseReader::default();
            load.connections.push(Connection { stream, in_flight: None, reader });
            load.idle.push_back(index);
        }
        Ok(load)
    }

    /// Sends requests for `duration`, then waits for what is in flight.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Sample> {
        let schedule = Schedule::new(pacing, Instant::now(), duration);
        let mut phase = Phase { schedule, sample: Sample::new(duration)?, in_flight: 0 };
        loop {
            let now = Instant::now();
            self.send_due(&mut phase, now)?;
            let stopped = now >= phase.schedule.stop;
            if (stopped && phase.in_flight == 0) || now >= phase.schedule.stop + DRAIN {
                break;
            }
            self.wait(&phase, now)?;
            self.read_ready(&mut phase)?;
        }
        self.abandon_in_flight(&mut phase)?;
        phase.sample.unsent = phase.schedule.left();
        Ok(phase.sample)
    }

    /// Sends one request on every connection in turn and waits for each answer: all of them have
    /// then been in use, as the idle connections of a real caller have.
    pub fn touch_each(&mut self) -> Result<()> {
        for connection in &mut self.connections {
            connection.stream.set_nonblocking(false).context("set a socket to blocking")?;
            connection.stream.set_read_timeout(Some(TUNNEL_PATIENCE)).context("set a timeout")?;
            connection.stream.write_all(&self.request).context("send a request")?;
            loop {
                let count = connection.stream.read(&mut self.scratch).context("read an answer")?;
                anyhow::ensure!(count > 0, "the connection was closed before the answer");
                let bytes = self.scratch.get(..count).unwrap_or_default();
                match connection.reader.feed(bytes).map_err(|error| anyhow::anyhow!("{error}"))? {
                    Progress::More => {}
                    Progress::Done { .. } => break,
                    Progress::Refused { status, .. } => anyhow::bail!("{}", refused(status)),
                }
            }
            connection.stream.set_nonblocking(true).context("set a socket to non-blocking")?;
        }
        Ok(())
    }

    fn send_due(&mut self, phase: &mut Phase, now: Instant) -> Result<()> {
        while let Some(&index) = self.idle.front() {
            let Some(due) = phase.schedule.take(now) else { return Ok(()) };
            self.idle.pop_front();
            self.send(phase, index, due)?;
        }
        Ok(())
    }

    fn send(&mut self, phase: &mut Phase, index: usize, due: Instant) -> Result<()> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
        // A request is a few hundred bytes and the connection idle: it fits the socket's buffer.
        match connection.stream.write_all(&self.request) {
            Ok(()) => {
                connection.in_flight = Some(due);
                phase.in_flight += 1;
                Ok(())
            }
            Err(error) => {
                phase.sample.failure(|| format!("send: {error}"));
                self.reopen(index)
            }
        }
    }

    fn wait(&mut self, phase: &Phase, now: Instant) -> Result<()> {
        let until = if self.idle.is_empty() { None } else { phase.schedule.next_due(now) };
        let limit = phase.schedule.stop.max(now);
        let until = until.unwrap_or(if now < limit { limit } else { limit + DRAIN });
        let timeout = until.saturating_duration_since(now);
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for connections"),
        }
    }

    fn read_ready(&mut self, phase: &mut Phase) -> Result<()> {
        let events = std::mem::take(&mut self.events);
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            self.read(phase, index)?;
        }
        self.events = events;
        Ok(())
    }

    fn read(&mut self, phase: &mut Phase, index: usize) -> Result<()> {
        let Some(connection) = self.connections.get_mut(index) else { return Ok(()) };
        let count = match connection.stream.read(&mut self.scratch) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return self.lost(phase, index, &format!("read: {error}")),
        };
        if count == 0 {
            return self.lost(phase, index, "the connection was closed before the answer");
        }
        let bytes = self.scratch.get(..count).unwrap_or_default();
        let Some(due) = connection.in_flight else {
            return self.lost(phase, index, "bytes that nothing asked for");
        };
        match connection.reader.feed(bytes) {
            Ok(Progress::More) => Ok(()),
            Ok(Progress::Done { close }) => {
                let now = Instant::now();
                phase.sample.answered(due, now, phase.schedule.stop);
                self.answered(phase, index, close, now)
            }
            // The connection is as good as before: callers do not open another one for that.
            Ok(Progress::Refused { status, close }) => {
                phase.sample.failure(|| refused(status));
                self.answered(phase, index, close, Instant::now())
            }
            Err(error) => {
                let reason = error.to_string();
                self.lost(phase, index, &reason)
            }
        }
    }

    fn answered(
        &mut self,
        phase: &mut Phase,
        index: usize,
        close: bool,
        now: Instant,
    ) -> Result<()> {
        phase.in_flight -= 1;
        if let Some(connection) = self.connections.get_mut(index) {
            connection.in_flight = None;
        }
        if close {
            self.reopen(index)?;
        }
        self.next(phase, index, now)
    }

    /// A connection has become free. Closed loops use it at once; in open ones it queues behind
    /// the others, so that all connections take turns.
    fn next(&mut self, phase: &mut Phase, index: usize, now: Instant) -> Result<()> {
        if self.idle.is_empty()
            && let Some(due) = phase.schedule.take(now)
        {
            return self.send(phase, index, due);
        }
        self.idle.push_back(index);
        Ok(())
    }

    /// The connection is unusable. That is an error where an answer was owed; a peer may close an
    /// idle connection as it likes.
    fn lost(&mut self, phase: &mut Phase, index: usize, reason: &str) -> Result<()> {
        let owed = self.connections.get_mut(index).and_then(|one| one.in_flight.take()).is_some();
        if owed {
            phase.in_flight -= 1;
            phase.sample.failure(|| reason.to_owned());
            self.idle.push_back(index);
        }
        self.reopen(index)
    }

    fn abandon_in_flight(&mut self, phase: &mut Phase) -> Result<()> {
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections.get(index) else { break };
            if connection.in_flight.is_some() {
                self.lost(phase, index, "no answer by the end of the phase")?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self, index: usize) -> Result<()> {
        // The old socket leaves the epoll when it is closed, which replacing it does.
        let stream = self.open(index)?;
        if let Some(connection) = self.connections.get_mut(index) {
            connection.stream = stream;
            connection.reader = ResponseReader::default();
        }
        Ok(())
    }

    fn open(&self, index: usize) -> Result<TcpStream> {
        let stream = open(&self.target)?;
        stream.set_nonblocking(true).context("set a socket to non-blocking")?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).context("watch a socket")?;
        Ok(stream)
    }
}

fn refused(status: u16) -> String {
    format!("the answer was status {status}")
}

/// A request as an instrumented application sends it through its sidecar.
pub fn request(target: &Target) -> Vec<u8> {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: leno-bench/1\r\nAccept: */*\r\n\
         Accept-Encoding: gzip, deflate\r\n\
         traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n\r\n",
        target.path, target.host
    )
    .into_bytes()
}

/// Connects to `target`, and through the tunnel it names.
pub fn open(target: &Target) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target.address)
        .with_context(|| format!("connect to {}", target.address))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    if let Some(authority) = &target.tunnel {
        stream.set_read_timeout(Some(TUNNEL_PATIENCE)).context("set a timeout")?;
        write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
            .context("ask for a tunnel")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("wait for the tunnel")?;
            head.extend_from_slice(&byte);
        }
        let line = String::from_utf8_lossy(&head);
        let line = line.lines().next().unwrap_or_default();
        anyhow::ensure!(line.contains(" 200"), "the tunnel to {authority} was refused: {line}");
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::load::calm;

    fn target(address: std::net::SocketAddr, path: &str) -> Target {
        Target { address, host: "a".to_owned(), path: path.to_owned(), tunnel: None }
    }

    fn origin() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || crate::origin::http1::serve(&listener).unwrap());
        address
    }

    /// Answers one request on each connection, `answer`, then closes it.
    fn server(answer: &'static str) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                // Who has given up, and reset it, is none that we count.
                if stream.read(&mut [0; 4096]).is_ok() {
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        });
        address
    }

    #[test]
    fn a_fixed_rate_is_kept_over_all_connections() {
        let mut load = Http1Load::connect(&target(origin(), "/1m"), 3).unwrap();
        load.touch_each().unwrap();
        let mut run = |pacing, time| {
            let sample = load.run(pacing, Duration::from_millis(time)).unwrap();
            let open = !matches!(pacing, Pacing::Closed);
            assert!(!open || sample.asked() == 50, "{sample:?}");
            sample
        };
        let open = Pacing::Open { rate: 100.0 };
        let sample = calm("all of them", || run(open, 500), |sample| sample.completed == 50);
        sample.check().unwrap();
        calm("as many as it can", || run(Pacing::Closed, 100), |it| it.throughput() > 10.0);
    }

    #[test]
    fn a_connection_that_closes_after_its_answer_is_opened_anew() {
        let address = server("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let mut load = Http1Load::connect(&target(address, "/"), 1).unwrap();
        let open = Pacing::Open { rate: 100.0 };
        let run = || load.run(open, Duration::from_millis(200)).unwrap();
        calm("most of them", run, |sample| sample.completed > 10 && sample.errors == 0);
    }

    #[test]
    fn a_stall_is_seen_by_all_the_requests_it_delayed() {
        // The first answer takes 100 ms; the nine requests due meanwhile waited for the connection.
        let slow_at_first = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                for number in 0.. {
                    if !stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                        break;
                    }
                    if number == 0 {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).is_err() {
                        break;
                    }
                }
            });
            address
        };
        let run = || {
            let mut load = Http1Load::connect(&target(slow_at_first(), "/"), 1).unwrap();
            load.run(Pacing::Open { rate: 100.0 }, Duration::from_millis(200)).unwrap()
        };
        let sample = calm("most of them", run, |sample| sample.completed > 10);
        assert!(sample.latency(0.75) > 35_000.0, "{}", sample.latency(0.75));
    }

    #[test]
    fn failures_are_counted_with_their_reason() {
        let address = server("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n");
        let mut load = Http1Load::connect(&target(address, "/"), 1).unwrap();
        let open = Pacing::Open { rate: 100.0 };
        let run = || load.run(open, Duration::from_millis(100)).unwrap();
        let refused = |sample: &Sample| sample.completed == 0 && sample.errors > 5;
        let sample = calm("most of them", run, refused);
        assert!(sample.check().unwrap_err().to_string().contains("status 503"));
    }
}
