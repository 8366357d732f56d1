//! What Kubernetes runs in the sidecar's container at a pod's start and end. The image has no shell; the program itself
//! waits for the sidecar, and tells it that the end is near.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// For one question to a proxy on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read: a status line and a reason.
const MAX_ANSWER: u64 = 4 * 1024;

/// What can be done to a sidecar that runs beside.
#[derive(Clone, Debug, Subcommand)]
pub enum Hook {
    /// Wait until the sidecar on this machine is ready
    Wait(WaitArgs),
    /// Let the sidecar on this machine say that it is not ready any more, and wait until that is known
    Drain(DrainArgs),
}

/// Flags of `leno-proxy wait`.
#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    /// The sidecar's port for readiness.
    #[arg(long, env = "LENO_READY", value_name = "ADDR", default_value = "127.0.0.1:15021")]
    pub ready: SocketAddr,
    /// Seconds to wait at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub time: u32,
}

/// Flags of `leno-proxy drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// The sidecar's port for operators.
    #[arg(long, env = "LENO_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Seconds until nobody sends here any more. Callers hear of a pod's end within one or two.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub settle: u32,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Not ready in time.
    #[error("the sidecar at {address} was not ready within {seconds} s: {reason}")]
    NotReady {
        /// Where it was asked.
        address: SocketAddr,
        /// For so long.
        seconds: u32,
        /// What it said last.
        reason: String,
    },
    /// It could not be told.
    #[error("the sidecar at {address} could not be told: {reason}")]
    NotTold {
        /// Where.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
}

impl Hook {
    /// Does it, and comes back when it is done.
    ///
    /// # Errors
    /// [`HookError`] says what the sidecar said.
    pub fn run(self) -> Result<(), HookError> {
        match self {
            Self::Wait(args) => wait(&args),
            Self::Drain(args) => drain(&args),
        }
    }
}

fn wait(args: &WaitArgs) -> Result<(), HookError> {
    let address = reachable(args.ready);
    let end = Instant::now() + Duration::from_secs(args.time.into());
    loop {
        let reason = match ask(address, "GET", "/ready") {
            Ok((200, _)) => return Ok(()),
            Ok((status, text)) => format!("{status} {text}"),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            return Err(HookError::NotReady { address, seconds: args.time, reason });
        }
        sleep(PAUSE);
    }
}

fn drain(args: &DrainArgs) -> Result<(), HookError> {
    let address = reachable(args.admin);
    let reason = match ask(address, "POST", "/healthcheck/fail") {
        Ok((200, _)) => {
            sleep(Duration::from_secs(args.settle.into()));
            return Ok(());
        }
        Ok((status, text)) => format!("{status} {text}"),
        Err(error) => error.to_string(),
    };
    Err(HookError::NotTold { address, reason })
}

/// Where a listener on any address is reached from here.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        // Both kinds are answered at the IPv6 one, but not every machine has IPv6.
        IpAddr::V4(_) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One request over a connection of its own: the status, and what was said.
fn ask(address: SocketAddr, method: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer is not HTTP"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// Answers one connection after the other, and gives back what was asked.
    fn sidecar(answers: &'static [&'static str]) -> (SocketAddr, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move |answer: &&str| {
            let mut stream = listener.accept().unwrap().0;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            write!(stream, "HTTP/1.1 {answer}\r\n\r\nwhy").unwrap();
            String::from_utf8(head).unwrap()
        };
        (address, thread::spawn(move || answers.iter().map(serve).collect()))
    }

    #[test]
    fn waiting_ends_when_the_sidecar_is_ready() {
        let (ready, served) = sidecar(&["503 Service Unavailable", "200 OK"]);
        wait(&WaitArgs { ready, time: 60 }).unwrap();
        let asked = served.join().unwrap();
        assert!(asked[1].starts_with("GET /ready HTTP/1.1\r\n"), "{asked:?}");
    }

    #[test]
    fn waiting_in_vain_says_why() {
        let (ready, _) = sidecar(&["503 Service Unavailable"]);
        let error = wait(&WaitArgs { ready, time: 0 }).unwrap_err().to_string();
        assert!(error.contains("not ready within 0 s: 503 why"), "{error}");
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = wait(&WaitArgs { ready: nobody, time: 0 }).unwrap_err();
        assert!(matches!(error, HookError::NotReady { .. }));
    }

    #[test]
    fn draining_tells_the_sidecar() {
        let (admin, served) = sidecar(&["200 OK", "500 Oh"]);
        drain(&DrainArgs { admin, settle: 0 }).unwrap();
        let error = drain(&DrainArgs { admin, settle: 0 }).unwrap_err().to_string();
        assert!(error.contains("could not be told: 500 why"), "{error}");
        assert!(served.join().unwrap()[0].starts_with("POST /healthcheck/fail HTTP/1.1\r\n"));
    }

    #[test]
    fn a_listener_on_any_address_is_reached_on_this_machine() {
        for (bound, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "127.0.0.1:1"),
            ("10.0.0.7:1", "10.0.0.7:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(reachable(bound.parse().unwrap()).to_string(), asked);
        }
    }
}
