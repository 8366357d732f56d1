//! Load under mutual TLS 1.3: handshakes, one after the other on several connections at a time, and
//! requests over one connection.
//!
//! For a client a handshake of TLS 1.3 ends before the server has looked at its certificate. So the
//! client says goodbye at once, and the handshake counts when the server has closed without a
//! complaint. (Tickets say less: some servers keep them back until they have something else to send.)

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, NamedGroup, StreamOwned};

use super::response::{Progress, ResponseReader};
use super::{DRAIN, Pacing, Sample, Schedule, http1};
use crate::identity::Identity;

/// One read takes at most this much.
const READ: usize = 256 * 1024;
const EVENTS: usize = 64;
/// How long a server may take for one handshake or one answer outside a measured phase.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom to reach, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub server_name: String,
    /// What requests ask for.
    pub host: &'static str,
    pub alpn: &'static [u8],
    pub identity: Arc<Identity>,
}

/// Whether a handshake starts from an earlier session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Full,
    Resumed,
}

/// Handshakes in a closed loop.
pub struct Handshakes {
    server_name: ServerName<'static>,
    kind: Kind,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    target: Target,
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
    stock: usize,
}

/// Tickets there are at the beginning of a phase. One that uses them up ends early.
const STOCK: usize = 2_000;

/// A caller that connects again and again.
struct Slot {
    begun: Instant,
    current: Option<Live>,
}

struct Live {
    stream: TcpStream,
    tls: ClientConnection,
    /// We have said goodbye.
    done: bool,
}

/// A ticket is used once. Most servers give another in each handshake, some only with data.
#[derive(Debug, Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

/// Requests over connections under TLS, each waited for.
pub struct Requests {
    request: Vec<u8>,
    connections: Vec<StreamOwned<ClientConnection, TcpStream>>,
    scratch: Vec<u8>,
}

impl Handshakes {
    /// `count` callers.
    pub fn new(target: &Target, kind: Kind, count: usize) -> Result<Self> {
        let tickets = Arc::new(Tickets::default());
        let mut config = target.identity.client(target.alpn)?;
        config.resumption = match kind {
            Kind::Full => Resumption::disabled(),
            Kind::Resumed => Resumption::store(tickets.clone()),
        };
        Ok(Handshakes {
            server_name: server_name(target)?,
            kind,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("create an epoll")?,
            slots: (0..count).map(|_| Slot { begun: Instant::now(), current: None }).collect(),
            target: target.clone(),
            config: Arc::new(config),
            tickets,
            stock: STOCK,
        })
    }

    /// Collects tickets for a phase of resumed handshakes.
    pub fn prepare(&mut self) -> Result<()> {
        if self.kind == Kind::Full {
            return Ok(());
        }
        let (request, mut scratch) = (request(&self.target, "/1k"), vec![0; READ]);
        let mut config = (*self.config).clone();
        config.resumption = Resumption::store(Arc::new(Fresh(self.tickets.clone())));
        let config = Arc::new(config);
        for _ in 0..self.stock {
            if self.tickets.count() >= self.stock {
                break;
            }
            let mut connection = connect(&self.target, &config).context("get a ticket")?;
            exchange(&mut connection, &request, &mut scratch).context("get a ticket")?;
        }
        anyhow::ensure!(self.tickets.count() > 0, "the server gives no tickets");
        Ok(())
    }

    /// Every caller connects anew as soon as its last handshake is done, for `duration`.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Sample> {
        anyhow::ensure!(pacing == Pacing::Closed, "handshakes are measured in a closed loop only");
        let schedule = Schedule::new(pacing, Instant::now(), duration);
        let mut sample = Sample::new(duration)?;
        for index in 0..self.slots.len() {
            self.begin(index, schedule.stop)?;
        }
        let mut events = Vec::with_capacity(EVENTS);
        while self.slots.iter().any(|slot| slot.current.is_some()) {
            let now = Instant::now();
            if now >= schedule.stop + DRAIN {
                break;
            }
            events.clear();
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for connections"),
            }
            for event in &events {
                let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                self.ready(index, schedule.stop, &mut sample)?;
            }
        }
        sample.duration = schedule.start.elapsed().min(duration);
        for slot in &mut self.slots {
            if slot.current.take().is_some() {
                sample.failure(|| "still open at the end of the phase".to_owned());
            }
        }
        Ok(sample)
    }

    /// Connects, unless the phase or the stock of tickets has ended.
    fn begin(&mut self, index: usize, stop: Instant) -> Result<()> {
        let exhausted = self.kind == Kind::Resumed && self.tickets.count() == 0;
        if exhausted || Instant::now() >= stop {
            return Ok(());
        }
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        slot.begun = Instant::now();
        let mut stream = TcpStream::connect(self.target.address).context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        stream.set_nonblocking(true).context("set a socket to non-blocking")?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).context("watch a socket")?;
        let mut tls = ClientConnection::new(self.config.clone(), self.server_name.clone())
            .context("begin a handshake")?;
        tls.write_tls(&mut stream).context("send a hello")?;
        slot.current = Some(Live { stream, tls, done: false });
        Ok(())
    }

    fn ready(&mut self, index: usize, stop: Instant, sample: &mut Sample) -> Result<()> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        let Some(live) = &mut slot.current else { return Ok(()) };
        match live.step(self.kind) {
            Ok(false) => return Ok(()),
            Ok(true) => sample.answered(slot.begun, Instant::now(), stop),
            Err(error) => sample.failure(|| format!("{error:#}")),
        }
        slot.current = None;
        self.begin(index, stop)
    }
}

impl Live {
    /// Takes what has come; true once the server has closed.
    fn step(&mut self, kind: Kind) -> Result<bool> {
        match self.tls.read_tls(&mut self.stream) {
            Ok(0) => {
                anyhow::ensure!(self.done, "the connection was closed in the handshake");
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("read"),
        }
        self.tls.process_new_packets().context("the handshake")?;
        if !self.done && !self.tls.is_handshaking() {
            let was = self.tls.handshake_kind();
            let expected = match kind {
                Kind::Full => HandshakeKind::Full,
                Kind::Resumed => HandshakeKind::Resumed,
            };
            anyhow::ensure!(was == Some(expected), "it was {was:?} and not {expected:?}");
            self.tls.send_close_notify();
            self.done = true;
        }
        let wrote = self.tls.wants_write();
        while self.tls.wants_write() {
            // A flight is 1 KiB: it fits the socket's buffer.
            self.tls.write_tls(&mut self.stream).context("write")?;
        }
        if wrote && self.done {
            self.stream.shutdown(Shutdown::Write).context("end our half")?;
        }
        Ok(false)
    }
}

impl Requests {
    /// Opens `count` connections that ask for `path`.
    pub fn connect(target: &Target, path: &str, count: usize) -> Result<Self> {
        let mut config = target.identity.client(target.alpn)?;
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        Ok(Requests {
            request: request(target, path),
            connections: (0..count).map(|_| connect(target, &config)).collect::<Result<_>>()?,
            scratch: vec![0; READ],
        })
    }

    /// One request after the other on the first connection.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Sample> {
        anyhow::ensure!(pacing == Pacing::Closed, "bulk is measured in a closed loop only");
        let schedule = Schedule::new(pacing, Instant::now(), duration);
        let mut sample = Sample::new(duration)?;
        let connection = self.connections.first_mut().context("no connection")?;
        loop {
            let begun = Instant::now();
            if begun >= schedule.stop {
                return Ok(sample);
            }
            exchange(connection, &self.request, &mut self.scratch)?;
            sample.answered(begun, Instant::now(), schedule.stop);
        }
    }

    /// One request on every connection in turn.
    pub fn touch_each(&mut self) -> Result<()> {
        for connection in &mut self.connections {
            exchange(connection, &self.request, &mut self.scratch)?;
        }
        Ok(())
    }
}

fn exchange(
    connection: &mut StreamOwned<ClientConnection, TcpStream>,
    request: &[u8],
    scratch: &mut [u8],
) -> Result<()> {
    connection.write_all(request).context("send a request")?;
    let mut reader = ResponseReader::default();
    loop {
        let count = connection.read(scratch).context("read an answer")?;
        anyhow::ensure!(count > 0, "the connection was closed before the answer");
        let bytes = scratch.get(..count).unwrap_or_default();
        match reader.feed(bytes).map_err(|error| anyhow::anyhow!("{error}"))? {
            Progress::More => {}
            Progress::Done { close } => {
                anyhow::ensure!(!close, "the server closes after each answer");
                return Ok(());
            }
            Progress::Refused { status, .. } => anyhow::bail!("the answer was status {status}"),
        }
    }
}

/// Connects and does our part of the handshake.
fn connect(
    target: &Target,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut stream = TcpStream::connect(target.address)
        .with_context(|| format!("connect to {}", target.address))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
    let mut tls =
        ClientConnection::new(config.clone(), server_name(target)?).context("begin a handshake")?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).context("the handshake")?;
    }
    Ok(StreamOwned::new(tls, stream))
}

fn request(target: &Target, path: &str) -> Vec<u8> {
    let Target { address, host, .. } = target;
    let (host, path) = ((*host).to_owned(), path.to_owned());
    http1::request(&super::Target { address: *address, host, path, tunnel: None })
}

fn server_name(target: &Target) -> Result<ServerName<'static>> {
    ServerName::try_from(target.server_name.clone()).context("a server name")
}

impl Tickets {
    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Collects tickets and uses none.
#[derive(Debug)]
struct Fresh(Arc<Tickets>);

impl ClientSessionStore for Fresh {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned as Served};

    use super::*;
    use crate::{identity::Authority, load::calm};

    /// Answers every request with a byte; it trusts callers of `trusted` only.
    fn server(identity: &Identity, trusted: &Identity) -> SocketAddr {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&trusted.roots).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&identity.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&identity.key).unwrap(),
            )
            .unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let tls = ServerConnection::new(config.clone()).unwrap();
                let mut stream = Served::new(tls, stream.unwrap());
                // Ends with the goodbye, or with a caller that is not trusted.
                while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
                    stream.write_all(answer).unwrap();
                }
            }
        });
        address
    }

    fn target(address: SocketAddr, identity: &Arc<Identity>) -> Target {
        let (server_name, identity) = ("origin".to_owned(), identity.clone());
        Target { address, server_name, host: "origin", alpn: b"http/1.1", identity }
    }

    #[test]
    fn full_and_resumed_handshakes_are_what_they_say() {
        let authority = Authority::new().unwrap();
        let identity = authority.issue("caller").unwrap();
        let address = server(&identity, &identity);
        for kind in [Kind::Full, Kind::Resumed] {
            let mut load = Handshakes::new(&target(address, &identity), kind, 1).unwrap();
            // A few suffice here.
            load.stock = 3;
            load.prepare().unwrap();
            let run = || load.run(Pacing::Closed, Duration::from_millis(200)).unwrap();
            let sample = calm("handshakes", run, |sample| sample.check().is_ok());
            assert_eq!(sample.errors, 0, "{kind:?}: {:?}", sample.first_error);
        }
        let mut bulk = Requests::connect(&target(address, &identity), "/", 1).unwrap();
        bulk.touch_each().unwrap();
        let run = || bulk.run(Pacing::Closed, Duration::from_millis(50)).unwrap();
        calm("requests", run, |sample| sample.check().is_ok());
    }

    /// For the client the handshake is done before the server refuses.
    #[test]
    fn a_handshake_that_the_server_refuses_does_not_count() {
        let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
        let (service, stranger) =
            (authority.issue("origin").unwrap(), other.issue("caller").unwrap());
        let address = server(&service, &service);
        let mut load = Handshakes::new(&target(address, &stranger), Kind::Full, 1).unwrap();
        let run = || {
            let sample = load.run(Pacing::Closed, Duration::from_millis(100)).unwrap();
            assert_eq!(sample.completed, 0);
            sample
        };
        assert!(calm("refusals", run, |sample| sample.errors > 0).check().is_err());
    }
}
