use std::future::poll_fn;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

/// A connection that takes as many bytes at a time as its list says, and now and then none yet.
#[derive(Debug, Default)]
struct Narrow {
    taken: Vec<u8>,
    room: Vec<usize>,
    calls: usize,
    shut: bool,
}

impl Narrow {
    fn with(room: &[usize]) -> Self {
        Self { room: room.to_vec(), ..Self::default() }
    }

    fn room(&mut self, context: &Context<'_>) -> Poll<usize> {
        self.calls += 1;
        match self.room.pop() {
            Some(0) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(room) => Poll::Ready(room),
            None => Poll::Ready(usize::MAX),
        }
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.room(context));
        let before = self.taken.len();
        let bytes = pieces.iter().flat_map(|piece| piece.iter()).take(room);
        let bytes: Vec<u8> = bytes.copied().collect();
        self.taken.extend(bytes);
        Poll::Ready(Ok(self.taken.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn small_writes_go_out_together_when_they_are_sent() {
    let mut batched = Batched::new(Narrow::default());
    for piece in ["head ", "data ", "trailers"] {
        batched.write_all(piece.as_bytes()).await.unwrap();
        batched.flush().await.unwrap();
    }
    assert_eq!(batched.0.borrow().stream.calls, 0);
    poll_fn(|context| batched.poll_send(context)).await.unwrap();
    poll_fn(|context| batched.poll_send(context)).await.unwrap();
    let batch = batched.0.borrow();
    assert_eq!((batch.stream.calls, &*batch.stream.taken), (1, &b"head data trailers"[..]));
}

#[tokio::test]
async fn the_end_comes_after_what_waits() {
    let mut batched = Batched::new(Narrow::default());
    batched.write_all(b"last words").await.unwrap();
    batched.shutdown().await.unwrap();
    let batch = batched.0.borrow();
    assert_eq!((batch.stream.shut, &*batch.stream.taken), (true, &b"last words"[..]));
}

#[tokio::test]
async fn more_than_may_wait_goes_out_at_once_and_waits_for_the_peer() {
    // It takes three bytes, and nothing for now.
    let mut batched = Batched::new(Narrow::with(&[0, 0, 3]));
    batched.write_all(&[1; CAPACITY]).await.unwrap();
    let more = [2; 10];
    let mut noop = Context::from_waker(std::task::Waker::noop());
    let written = Pin::new(&mut batched).poll_write(&mut noop, &more);
    assert!(written.is_pending(), "{written:?}");
    assert_eq!(batched.0.borrow().stream.taken, [1; 3]);
    batched.write_all(&more).await.unwrap();
    poll_fn(|context| batched.poll_send(context)).await.unwrap();
    let expected = [vec![1; CAPACITY], more.to_vec()].concat();
    assert!(batched.0.borrow().stream.taken == expected);
}

proptest! {
    /// Whatever is written comes out whole and in order, whatever the peer takes at a time, and no more waits than may.
    #[test]
    fn all_comes_out_in_order(
        writes in prop::collection::vec((prop::collection::vec(0..20_000usize, 1..4), any::<bool>()), 1..12),
        room in prop::collection::vec(prop_oneof![Just(0usize), 1..40usize, 1..30_000usize], 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut batched = Batched::new(Narrow::with(&room));
        let mut said = Vec::new();
        runtime.block_on(async {
            for (lengths, send) in &writes {
                for length in lengths {
                    let bytes: Vec<u8> = (0..*length).map(|at| ((said.len() + at) % 251) as u8).collect();
                    let (first, second) = bytes.split_at(length / 3);
                    let mut done = 0;
                    while done < bytes.len() {
                        let pieces = [
                            IoSlice::new(&first[done.min(first.len())..]),
                            IoSlice::new(&second[done.saturating_sub(first.len())..]),
                        ];
                        done += poll_fn(|context| {
                            Pin::new(&mut batched).poll_write_vectored(context, &pieces)
                        })
                        .await
                        .unwrap();
                        assert!(batched.0.borrow().waiting.len() <= CAPACITY);
                    }
                    said.extend(bytes);
                }
                if *send {
                    poll_fn(|context| batched.poll_send(context)).await.unwrap();
                    assert!(batched.0.borrow().stream.taken == said);
                }
            }
            batched.shutdown().await.unwrap();
        });
        assert!(batched.0.borrow().stream.taken == said);
    }
}
