//! A connection whose writes wait until its task has nothing more to say. h2 writes out whatever it cannot copy before it
//! takes the next frame: a small answer would be two packets, its trailers alone in the second. Each write costs what
//! parsing three heads does, and wakes the peer.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait at most; with more, all is written at once. That of h2's own buffer: a DATA frame of the usual greatest
/// size goes through uncopied, and eight small answers fit.
const CAPACITY: usize = 16 * 1024;
/// Pieces of one write. h2 has two: a head that it has put together, and a payload.
const PIECES: usize = 8;

/// The connection as h2 sees it. Clones are the same one: its task keeps another, to send what waits.
#[derive(Debug)]
pub(super) struct Batched<S>(Rc<RefCell<Batch<S>>>);

#[derive(Debug)]
struct Batch<S> {
    stream: S,
    /// What waits, from `written` on.
    waiting: Vec<u8>,
    written: usize,
    /// Whether something was written since all was sent.
    unsent: bool,
    /// Whether something came since somebody asked.
    heard: bool,
}

impl<S> Clone for Batched<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Batched<S> {
    pub(super) fn new(stream: S) -> Self {
        let batch = Batch { stream, waiting: Vec::new(), written: 0, unsent: false, heard: false };
        Self(Rc::new(RefCell::new(batch)))
    }

    /// Whether the peer has said anything since this was asked last. If not, room that nothing waits in is given back.
    pub(super) fn has_heard(&self) -> bool {
        let mut batch = self.0.borrow_mut();
        if !batch.heard && batch.waiting.is_empty() {
            batch.waiting = Vec::new();
        }
        std::mem::take(&mut batch.heard)
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    /// Sends all that waits. To be called after h2 was polled: it believes that it has been sent.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }
}

impl<S: AsyncWrite + Unpin> Batch<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent {
            return Poll::Ready(Ok(()));
        }
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.clear();
        // TLS may still hold some of it.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.unsent = false;
        Poll::Ready(Ok(()))
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.written = 0;
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        self.unsent = true;
        if self.waiting.len() + length <= CAPACITY {
            pieces.iter().for_each(|piece| self.waiting.extend_from_slice(piece));
            return Poll::Ready(Ok(length));
        }
        loop {
            let before = self.waiting.len() - self.written;
            let count = ready!(self.poll_write_through(context, pieces))?;
            if count < before {
                self.written += count;
            } else {
                self.clear();
            }
            // Of what waited nobody is told again.
            if count > before || count == 0 {
                return Poll::Ready(Ok(count - before.min(count)));
            }
        }
    }

    /// Writes what waits and then `pieces`, as far as there is room. How much that was together.
    fn poll_write_through(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut all = [IoSlice::new(&[]); PIECES];
        let waiting = IoSlice::new(&self.waiting[self.written..]);
        let pieces = pieces.iter().filter(|piece| !piece.is_empty());
        let waiting = Some(&waiting).filter(|waiting| !waiting.is_empty());
        let mut count = 0;
        for (place, piece) in all.iter_mut().zip(waiting.into_iter().chain(pieces)) {
            *place = IoSlice::new(piece);
            count += 1;
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, &all[..count])
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let batch = &mut *self.0.borrow_mut();
        let read = Pin::new(&mut batch.stream).poll_read(context, buffer);
        batch.heard |= read.is_ready();
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        // What waits goes before a large piece in one write.
        true
    }

    /// Nothing: h2 flushes after every frame that it does not copy. See [`Batched::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let batch = &mut *self.0.borrow_mut();
        ready!(batch.poll_send(context))?;
        Pin::new(&mut batch.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
