//! HTTP/2 and gRPC load: a few connections with several streams each, on the `h2` client.
//!
//! The client is dearer than the hand-written HTTP/1.1 one, so a saturated HTTP/2 run is often
//! bound by the generator's core; the report gives the proxy's utilisation beside the throughput.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderValue, Request, Version, header};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::{DRAIN, Pacing, Sample, Schedule, Target};
use crate::origin::http2::message;

/// Flow-control windows wide enough never to be what a run measures.
const WINDOW: u32 = 1 << 20;
/// Bytes in a gRPC request message.
const GRPC_REQUEST: usize = 128;

/// Open connections to one target, kept between phases so that a warm-up warms the next.
pub struct Http2Load {
    runtime: Runtime,
    tasks: LocalSet,
    senders: Vec<SendRequest<Bytes>>,
    streams: usize,
    call: Rc<Call>,
}

/// What is sent, again and again.
struct Call {
    request: Request<()>,
    /// The request message; plain requests have none.
    message: Option<Bytes>,
}

/// One phase in progress, shared by its tasks.
struct Phase {
    schedule: RefCell<Schedule>,
    sample: RefCell<Sample>,
    in_flight: Cell<usize>,
    freed: Notify,
}

impl Http2Load {
    /// Opens `connections` to `target`, to be used with up to `streams` requests at a time each.
    pub fn connect(
        target: &Target,
        connections: usize,
        streams: usize,
        grpc: bool,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let mut senders = Vec::new();
        for _ in 0..connections {
            senders.push(tasks.block_on(&runtime, open(target))?);
        }
        let call = Rc::new(Call::new(target, grpc)?);
        Ok(Http2Load { runtime, tasks, senders, streams, call })
    }

    /// Sends requests for `duration`, then waits for what is in flight.
    pub fn run(&mut self, pacing: Pacing, duration: Duration) -> Result<Sample> {
        let schedule = Schedule::new(pacing, Instant::now(), duration);
        let end = schedule.stop + DRAIN;
        let phase = Rc::new(Phase {
            schedule: RefCell::new(schedule),
            sample: RefCell::new(Sample::new(duration)?),
            in_flight: Cell::new(0),
            freed: Notify::new(),
        });
        let Http2Load { runtime, tasks, senders, streams, call } = self;
        tasks.block_on(runtime, async {
            match pacing {
                Pacing::Closed => start_loops(&phase, senders, *streams, call),
                Pacing::Open { .. } => send_due(&phase, senders, *streams, call).await?,
            }
            let drained = async {
                while phase.in_flight.get() > 0 {
                    phase.freed.notified().await;
                }
            };
            let patience = end.saturating_duration_since(Instant::now());
            if tokio::time::timeout(patience, drained).await.is_err() {
                let mut sample = phase.sample.borrow_mut();
                for _ in 0..phase.in_flight.get() {
                    sample.failure(|| "no answer by the end of the phase".to_owned());
                }
            }
            anyhow::Ok(())
        })?;
        let mut sample = phase.sample.borrow().clone();
        sample.unsent = phase.schedule.borrow().left();
        Ok(sample)
    }
}

impl Call {
    fn new(target: &Target, grpc: bool) -> Result<Self> {
        let uri = format!("http://{}{}", target.host, target.path);
        let mut request = Request::builder()
            .version(Version::HTTP_2)
            .uri(uri)
            .header(header::USER_AGENT, "leno-bench/1")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        if grpc {
            request = request
                .method("POST")
                .header(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
                .header(header::TE, HeaderValue::from_static("trailers"));
        } else {
            request = request.header(header::ACCEPT, HeaderValue::from_static("*/*"));
        }
        let message = grpc.then(|| message(&[b'q'; GRPC_REQUEST]));
        Ok(Call { request: request.body(()).context("build the request")?, message })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.request.method().clone();
        *request.uri_mut() = self.request.uri().clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.request.headers().clone();
        request
    }

    /// One exchange, to its last byte.
    async fn exchange(&self, sender: SendRequest<Bytes>) -> Result<()> {
        let mut sender = sender.ready().await?;
        let (response, mut stream) = sender.send_request(self.request(), self.message.is_none())?;
        if let Some(message) = &self.message {
            stream.send_data(message.clone(), true)?;
        }
        let response = response.await?;
        anyhow::ensure!(response.status() == 200, "the answer was status {}", response.status());
        let mut body = response.into_body();
        while let Some(chunk) = body.data().await {
            let length = chunk?.len();
            body.flow_control().release_capacity(length)?;
        }
        if self.message.is_some() {
            let trailers = body.trailers().await?.context("the call ended without trailers")?;
            let status = trailers.get("grpc-status").context("no grpc-status in the trailers")?;
            anyhow::ensure!(status == "0", "the call ended with grpc-status {status:?}");
        }
        Ok(())
    }
}

impl Phase {
    async fn exchange(&self, call: &Call, sender: SendRequest<Bytes>, due: Instant) {
        let result = call.exchange(sender).await;
        let stop = self.schedule.borrow().stop;
        let mut sample = self.sample.borrow_mut();
        match result {
            Ok(()) => sample.answered(due, Instant::now(), stop),
            Err(error) => sample.failure(|| format!("{error:#}")),
        }
    }

    fn finish(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        self.freed.notify_one();
    }
}

/// One task a stream, each asking again as soon as it is answered.
fn start_loops(phase: &Rc<Phase>, senders: &[SendRequest<Bytes>], streams: usize, call: &Rc<Call>) {
    for sender in senders.iter().flat_map(|sender| std::iter::repeat_n(sender, streams)) {
        let (phase, call, sender) = (Rc::clone(phase), Rc::clone(call), sender.clone());
        phase.in_flight.set(phase.in_flight.get() + 1);
        tokio::task::spawn_local(async move {
            loop {
                let errors = phase.sample.borrow().errors;
                let due = phase.schedule.borrow_mut().take(Instant::now());
                let Some(due) = due else { break };
                phase.exchange(&call, sender.clone(), due).await;
                if phase.sample.borrow().errors > errors {
                    // A dead connection would otherwise fail as fast as it can be asked.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            phase.finish();
        });
    }
}

/// Sends each request when it is due, on the connections in turn.
async fn send_due(
    phase: &Rc<Phase>,
    senders: &[SendRequest<Bytes>],
    streams: usize,
    call: &Rc<Call>,
) -> Result<()> {
    let timer = Timer::new()?;
    let mut turns = senders.iter().cycle();
    loop {
        if phase.in_flight.get() >= senders.len() * streams {
            let stop = phase.schedule.borrow().stop;
            let patience = stop.saturating_duration_since(Instant::now());
            if tokio::time::timeout(patience, phase.freed.notified()).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let now = Instant::now();
        let due = phase.schedule.borrow_mut().take(now);
        if let (Some(due), Some(sender)) = (due, turns.next()) {
            let (phase, call, sender) = (Rc::clone(phase), Rc::clone(call), sender.clone());
            phase.in_flight.set(phase.in_flight.get() + 1);
            tokio::task::spawn_local(async move {
                phase.exchange(&call, sender, due).await;
                phase.finish();
            });
            continue;
        }
        let next = phase.schedule.borrow().next_due(now);
        match next {
            Some(due) => timer.wait(due.saturating_duration_since(now)).await?,
            None => return Ok(()),
        }
    }
}

async fn open(target: &Target) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target.address)
        .await
        .with_context(|| format!("connect to {}", target.address))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let (sender, connection) = client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Bytes>(stream)
        .await
        .context("HTTP/2 handshake")?;
    tokio::task::spawn_local(async move {
        // Its exchanges fail with it and are counted there.
        let _ = connection.await;
    });
    sender.ready().await.context("HTTP/2 handshake")
}

/// A timer of nanoseconds: the runtime's own counts milliseconds, ten requests at 10,000 a second.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; an OwnedFd keeps its descriptor open, which is all it asks"
    )]
    fn new() -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).context("create a timer")?;
        Ok(Timer(AsyncFd::new(timer).context("watch a timer")?))
    }

    async fn wait(&self, duration: Duration) -> Result<()> {
        // Zero would switch the timer off.
        let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX).max(1);
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value =
            Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 };
        let once = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)
            .context("set a timer")?;
        let mut ready = self.0.readable().await.context("wait for a timer")?;
        let mut expirations = [0; 8];
        // Reading clears it; nothing to read means a wake-up too many, and the caller looks again.
        match rustix::io::read(self.0.get_ref(), &mut expirations) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error).context("read a timer"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::calm;

    fn origin() -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || crate::origin::http2::serve(listener).unwrap());
        address
    }

    fn target(path: &str) -> Target {
        Target { address: origin(), host: "a".to_owned(), path: path.to_owned(), tunnel: None }
    }

    #[test]
    fn plain_requests_at_a_fixed_rate() {
        let mut load = Http2Load::connect(&target("/64k"), 2, 4, false).unwrap();
        let pacing = Pacing::Open { rate: 200.0 };
        let run = || {
            let sample = load.run(pacing, Duration::from_millis(500)).unwrap();
            assert_eq!(sample.asked(), 100, "{sample:?}");
            sample
        };
        calm("all of them", run, |sample| sample.completed == 100).check().unwrap();
    }

    #[test]
    fn grpc_calls_end_with_their_status() {
        let mut load = Http2Load::connect(&target("/a.B/C"), 1, 2, true).unwrap();
        let run = || load.run(Pacing::Closed, Duration::from_millis(200)).unwrap();
        calm("many", run, |sample| sample.completed > 10).check().unwrap();
    }
}
