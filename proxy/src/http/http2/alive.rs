//! Whether the peer of an HTTP/2 connection is still there. One timer a connection, and a look at it every ten seconds:
//! the frames themselves cost nothing.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::super::aside::Bell;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Looks in silence until a peer is pinged: 30 s, or up to a look more.
const QUIET: u32 = 3;
/// Further looks until one that does not answer is gone: 20 s.
const PATIENCE: u32 = 2;

/// Pings a silent peer.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// `None` where there are no pings: then it is never gone.
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    bell: Bell,
    /// Looks since something was heard; as long as nobody waits for anything, fewer than it takes for a ping.
    quiet: u32,
}

impl KeepAlive {
    pub(super) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, timer: Box::pin(sleep(LOOK)), bell: Bell::default(), quiet: 0 }
    }

    /// To be called whenever the connection is polled. `look`: whether something was heard since the last look, and whether
    /// anybody has waited for more since. Ready when the peer is gone.
    pub(super) fn poll(
        &mut self,
        context: &Context<'_>,
        look: impl FnOnce() -> (bool, bool),
    ) -> Poll<()> {
        let Self { pings, timer, bell, quiet } = self;
        bell.poll(context, |context| {
            ready!(timer.as_mut().poll(context));
            if look_after(pings, quiet, look()) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + LOOK);
            // So that it wakes us.
            timer.as_mut().poll(context)
        })
    }
}

/// Whether the peer is gone.
fn look_after(
    pings: &mut Option<PingPong>,
    quiet: &mut u32,
    (heard, waited_for): (bool, bool),
) -> bool {
    if heard {
        *quiet = 0;
        return false;
    }
    // Whoever waits for nothing does not ask. Once it was asked, the peer has to answer whether anybody still waits or not:
    // those who do give up, one after the other.
    if *quiet + 1 == QUIET && !waited_for {
        return false;
    }
    *quiet += 1;
    if *quiet == QUIET
        && let Some(pings) = pings
    {
        // The pong to the last one, if there was one, came long ago; there is no other ping without it.
        let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        // One that is not answered yet is as good as another.
        let _ = pings.send_ping(Ping::opaque());
    }
    *quiet >= QUIET + PATIENCE && pings.is_some()
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::{super::batched::Batched, *};

    /// How many seconds after its first silence a peer is gone, if it is within five minutes. `waited_for`: whether somebody
    /// waits then.
    async fn gone_after(answers: bool, waited_for: impl Fn(u64) -> bool) -> Option<u64> {
        let (near, far) = tokio::io::duplex(1024);
        let near = Batched::new(near);
        let (_requests, mut connection) = h2::client::handshake(near.clone()).await.unwrap();
        let mut alive = KeepAlive::new(connection.ping_pong());
        // One that does not answer keeps its end open.
        let mut silent = Some(far);
        if answers {
            let far = silent.take().unwrap();
            tokio::task::spawn_local(async move {
                let mut peer = h2::server::handshake(far).await.unwrap();
                let _ = peer.accept().await;
            });
        }
        let begun = Instant::now();
        let gone = std::future::poll_fn(|context| {
            let gone =
                alive.poll(context, || (near.has_heard(), waited_for(begun.elapsed().as_secs())));
            let _ = Pin::new(&mut connection).poll(context);
            let _ = near.poll_send(context);
            gone
        });
        let limit = Duration::from_secs(300);
        let gone = tokio::time::timeout(limit, gone).await;
        gone.ok().map(|()| begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_gone_that_is_waited_for_and_answers_no_ping() {
        let all = async {
            assert_eq!(gone_after(false, |_| true).await, Some(50));
            assert_eq!(gone_after(false, |_| false).await, None);
            assert_eq!(gone_after(true, |_| true).await, None);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_asked_has_to_answer_though_nobody_waits_any_more() {
        let all = async {
            assert_eq!(gone_after(false, |second| second == 30).await, Some(50));
            assert_eq!(gone_after(false, |second| second == 120).await, Some(140));
            assert_eq!(gone_after(true, |second| second == 120).await, None);
        };
        LocalSet::new().run_until(all).await;
    }
}
