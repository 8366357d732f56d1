//! Connections that are not HTTP, on their way through the plugins that see such.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use leno_api::model::wasm_plugin::PluginType;
use leno_wasm_host::{Action, ClosedBy, ContextId, Fault, Instance};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    body::{Piece, Pieces},
    filtered::TURN,
    host::ProxyHost,
    plugin::Chain,
    run::{Failure, Run, Side},
    seat::Seats,
    state::{Facts, Waiting},
    stream::PluginStream,
};

/// Bytes that are read at once: as much as the pipe behind it takes.
const READ: usize = 16 * 1024;

impl Run {
    /// For the plugins of a chain that see connections: tells them of a new one. `None` if there are none.
    ///
    /// # Errors
    /// A plugin failed that may not be left out.
    pub async fn connection(
        seats: &Seats,
        chain: &Chain,
        facts: impl FnOnce() -> Facts,
        random: impl Fn() -> u64,
    ) -> Result<Option<Rc<Self>>, Failure> {
        let Some(run) = Self::of(PluginType::Network, seats, chain, facts, random) else {
            return Ok(None);
        };
        for at in 0..run.places.len() {
            run.reached.set(at + 1);
            run.open(at).await?;
        }
        match &run.blocked {
            Some((_, failure)) => Err(failure.clone()),
            None => Ok(Some(run)),
        }
    }

    async fn open(&self, at: usize) -> Result<(), Failure> {
        let place = &self.places[at];
        let stream = place.seat.stream(&self.state, at);
        let opened = place.seat.call(&self.state, 2, |instance| {
            let (context, created) = instance.create_context(stream);
            place.context.set(Some((place.seat.generation(), context)));
            created?;
            instance.on_new_connection(context)
        });
        match opened {
            Ok(_) if self.state.marks[at].closed.get() => Err(self.closed(at)),
            Ok(Action::Continue) => Ok(()),
            Ok(_) => self.held(at, Side::Request, at).await.map(drop),
            Err(broken) => self.failed(place, &broken),
        }
    }

    /// Tells a plugin that both sides are closed.
    pub(super) fn close(
        &self,
        instance: &mut Instance<ProxyHost>,
        context: ContextId,
    ) -> (Option<PluginStream>, Result<(), Fault>) {
        let closed = instance
            .on_upstream_close(context, ClosedBy::Unknown)
            .and_then(|()| instance.on_downstream_close(context, ClosedBy::Unknown));
        let (stream, told) = instance.finish_connection(context);
        (stream, closed.and(told))
    }
}

/// The downstream side of a connection, with plugins between it and whoever reads and writes here.
pub struct Inspected<'a, S> {
    inner: &'a mut S,
    run: Rc<Run>,
    from: Flow,
    to: Flow,
}

/// One direction.
#[derive(Default)]
struct Flow {
    pieces: Pieces,
    /// Let go by the plugins.
    passed: Bytes,
    /// The sender is done.
    ended: bool,
    /// The plugins are, too.
    over: bool,
}

impl Flow {
    /// Whether there are bytes to go on.
    fn next(&mut self) -> bool {
        while self.passed.is_empty() {
            match self.pieces.pop() {
                Some(Piece::Data(bytes, end)) => {
                    self.passed = bytes;
                    self.over |= end;
                }
                // Bytes have none.
                Some(Piece::Trailers(_)) => {}
                None => return false,
            }
        }
        true
    }
}

fn broken(failure: Failure) -> io::Error {
    tracing::debug!("{}", failure.detail);
    io::Error::other(failure.detail)
}

impl<'a, S> Inspected<'a, S> {
    /// What passes `inner` passes the plugins of `run`.
    pub fn new(inner: &'a mut S, run: Rc<Run>) -> Self {
        Self { inner, run, from: Flow::default(), to: Flow::default() }
    }

    fn show(&mut self, side: Side, bytes: Bytes, end: bool) -> io::Result<()> {
        let flow = match side {
            Side::Request => &mut self.from,
            Side::Response => &mut self.to,
        };
        flow.ended |= end;
        let first = self.run.first(side);
        self.run.push(side, first, Piece::Data(bytes, end), &mut flow.pieces).map_err(broken)
    }

    /// Looks what plugins let go since, and waits for more.
    fn advance(&mut self, side: Side, context: &Context<'_>) -> io::Result<bool> {
        let (flow, waiting) = match side {
            Side::Request => (&mut self.from, Waiting::Request),
            Side::Response => (&mut self.to, Waiting::Response),
        };
        self.run.state.wait(waiting, context.waker());
        self.run.advance(side, &mut flow.pieces).map_err(broken)?;
        if self.run.is_closed() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(flow.next())
    }
}

impl<S: AsyncWrite + Unpin> Inspected<'_, S> {
    /// Writes all that plugins have let go.
    fn poll_passed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.advance(Side::Response, context)? {
            let written = ready!(Pin::new(&mut *self.inner).poll_write(context, &self.to.passed))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.to.passed.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inspected<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let began = std::time::Instant::now();
        loop {
            if this.advance(Side::Request, context)? {
                let count = buffer.remaining().min(this.from.passed.len());
                buffer.put_slice(&this.from.passed.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if this.from.over {
                return Poll::Ready(Ok(()));
            }
            if this.from.ended {
                return Poll::Pending;
            }
            let mut read = vec![0; READ];
            let mut room = ReadBuf::new(&mut read);
            ready!(Pin::new(&mut *this.inner).poll_read(context, &mut room))?;
            let count = room.filled().len();
            read.truncate(count);
            this.show(Side::Request, read.into(), count == 0)?;
            if this.from.pieces.is_empty() && began.elapsed() >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inspected<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_passed(context))?;
        this.show(Side::Response, Bytes::copy_from_slice(bytes), false)?;
        // What cannot be written now is written before the next bytes are taken.
        if let Poll::Ready(Err(error)) = this.poll_passed(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_passed(context))?;
        ready!(Pin::new(&mut *this.inner).poll_flush(context))?;
        // Asked again when a plugin lets go of what it holds.
        if this.run.holds(Side::Response) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.to.ended {
            this.show(Side::Response, Bytes::new(), true)?;
        }
        ready!(this.poll_passed(context))?;
        if !this.to.over {
            return Poll::Pending;
        }
        Pin::new(&mut *this.inner).poll_shutdown(context)
    }
}
