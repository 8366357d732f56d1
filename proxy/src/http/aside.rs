//! What happens beside the exchanges of a connection: timers and the end of the proxy. They seldom have news, and their
//! connection is polled several times a request: it asks them only when one of them has said that there is something.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};

/// Nobody waits for a head.
const NEVER: u64 = u64::MAX;

/// Wakes a connection's task, and remembers that it was for what is beside it.
#[derive(Debug, Default)]
pub(super) struct Aside {
    woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

/// Asks what is beside a connection, if there may be something new.
#[derive(Debug)]
pub(super) struct Bell {
    aside: Arc<Aside>,
    waker: Waker,
    /// Whom it wakes.
    task: Option<Waker>,
}

impl Wake for Aside {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Default for Bell {
    fn default() -> Self {
        // Who has not been asked yet may have something.
        let aside = Arc::new(Aside { woken: AtomicBool::new(true), task: Mutex::default() });
        let waker = Waker::from(aside.clone());
        Self { aside, waker, task: None }
    }
}

impl Bell {
    /// To be called at every poll: the task of `context` is woken when there is something to ask for. Asks now with
    /// `poll` if there is; the context that it is given has to be left with whoever is asked.
    pub(super) fn poll<T>(
        &mut self,
        context: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
            self.task = Some(context.waker().clone());
            let mut task = self.aside.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.clone_from(&self.task);
        }
        // A swap costs twenty times what a look does, and there is nothing nearly always.
        let woken = &self.aside.woken;
        if !woken.load(Ordering::Relaxed) || !woken.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        poll(&mut Context::from_waker(&self.waker))
    }

    /// There is something to ask for.
    pub(super) fn ring(&self) {
        self.aside.woken.store(true, Ordering::Release);
    }
}

/// Until when the head that a connection waits for must be there. hyper would set a timer for every request and take it
/// back some microseconds later; this only notes the time, and whoever serves the connection has one timer for all.
#[derive(Clone, Debug)]
pub(super) struct HeadTimer(Arc<Due>);

#[derive(Debug)]
struct Due {
    start: Instant,
    /// Nanoseconds since the start.
    at: AtomicU64,
    /// Whether that time has come.
    over: AtomicBool,
}

/// Over when its timer says so, not by itself.
struct Until(Arc<Due>);

impl HeadTimer {
    pub(super) fn new() -> Self {
        let (at, over) = (AtomicU64::new(NEVER), AtomicBool::new(false));
        let start = tokio::time::Instant::now().into_std();
        Self(Arc::new(Due { start, at, over }))
    }

    /// Until when, if a head is waited for and that time has not come yet.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.0.over.load(Ordering::Relaxed) { None } else { self.at() }
    }

    fn at(&self) -> Option<Instant> {
        match self.0.at.load(Ordering::Relaxed) {
            NEVER => None,
            at => self.0.start.checked_add(Duration::from_nanos(at)),
        }
    }

    /// Whether it is too late now. hyper learns of it at its next poll.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let over = self.at().is_some_and(|deadline| deadline <= now);
        self.0.over.store(over, Ordering::Relaxed);
        over
    }

    fn set(&self, deadline: Instant) {
        let nanos = deadline.saturating_duration_since(self.0.start).as_nanos();
        self.0.at.store(u64::try_from(nanos).unwrap_or(NEVER), Ordering::Relaxed);
        self.0.over.store(false, Ordering::Relaxed);
    }
}

impl Timer for HeadTimer {
    /// That of the timers of whoever serves the connection.
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.set(deadline);
        Box::pin(Until(self.0.clone()))
    }

    fn reset(&self, _: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.set(deadline);
    }
}

impl Sleep for Until {}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match self.0.over.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Drop for Until {
    fn drop(&mut self) {
        self.0.at.store(NEVER, Ordering::Relaxed);
        self.0.over.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noop() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn who_is_beside_is_asked_at_first_and_when_it_has_said_something() {
        let mut bell = Bell::default();
        let mut left = None;
        let first = bell.poll(&noop(), |context| {
            left = Some(context.waker().clone());
            Poll::<()>::Pending
        });
        assert!(first.is_pending());
        assert!(bell.poll(&noop(), |_| Poll::Ready(())).is_pending(), "nothing is new");
        left.unwrap().wake();
        assert!(bell.poll(&noop(), |_| Poll::Ready(())).is_ready());
        assert!(bell.poll(&noop(), |_| Poll::Ready(())).is_pending());
        bell.ring();
        assert!(bell.poll(&noop(), |_| Poll::Ready(())).is_ready());
    }

    #[test]
    fn a_head_is_late_when_it_is_waited_for_and_its_time_has_come() {
        let timer = HeadTimer::new();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert_eq!((timer.deadline(), timer.is_over(later)), (None, false));
        let mut sleep = timer.sleep_until(later);
        assert_eq!(timer.deadline(), Some(later));
        assert!(!timer.is_over(now) && sleep.as_mut().poll(&mut noop()).is_pending());
        assert!(timer.is_over(later) && sleep.as_mut().poll(&mut noop()).is_ready());
        timer.reset(&mut sleep, later + Duration::from_secs(1));
        assert!(sleep.as_mut().poll(&mut noop()).is_pending() && !timer.is_over(later));
        drop(sleep);
        assert_eq!(timer.deadline(), None);
        assert!(!timer.is_over(later + Duration::from_secs(9)));
    }
}
