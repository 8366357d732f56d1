//! Work that may wait: it gets what others leave of the cores, so that it keeps nobody waiting who is waited for.

use std::{panic, sync::mpsc, thread};

use tokio::task::{JoinError, spawn_blocking};

/// How much less than others a thread of ours gets where a core has more to do than it can: a tenth. Far less would keep
/// others waiting after all where they need a lock that it holds.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Runs `work` on a thread of its own, which ends with it: a priority, once lowered, cannot be raised again. Whoever drops
/// this before it is done waits for it, so that nothing `work` holds outlives them: let it be short.
///
/// # Errors
/// When `work` panics.
pub async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let (done, ended) = mpsc::channel();
    let _waiting = UntilEnded(ended);
    // Waited for as other blocking work is, so that a runtime whose clock is turned by hand does not turn it meanwhile.
    spawn_blocking(move || {
        let _done = done;
        match aside(name, work) {
            Ok(result) => result,
            Err(cause) => panic::resume_unwind(cause),
        }
    })
    .await
}

/// On a thread of its own; where there can be no other just now, on this one, as late is better than never.
fn aside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> thread::Result<T> {
    let mut work = Some(work);
    let builder = thread::Builder::new().name(name.to_owned());
    let done = thread::scope(|scope| {
        let lowered = || {
            lower();
            work.take().map(|work| work())
        };
        builder.spawn_scoped(scope, lowered).map(thread::ScopedJoinHandle::join)
    });
    let done = match done {
        Ok(done) => done?,
        Err(error) => {
            tracing::warn!("no thread for {name}, which gets no lower priority: {error}");
            work.take().map(|work| work())
        }
    };
    done.ok_or_else(|| Box::new("the work is done already") as _)
}

/// Its other end goes when the work is done, or never will be.
struct UntilEnded(mpsc::Receiver<()>);

impl Drop for UntilEnded {
    fn drop(&mut self) {
        // Nothing is ever sent.
        self.0.recv().ok();
    }
}

#[cfg(target_os = "linux")]
fn lower() {
    // There, nobody else than this thread. Where it is not allowed, the work is done all the same.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("the priority of a thread cannot be lowered: {error}");
    }
}

/// Elsewhere the priority is the whole process's.
#[cfg(not(target_os = "linux"))]
fn lower() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_its_panics_are_told() {
        let here = thread::current().id();
        let there = run("test", || thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        let panicked = run("test", || -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert!(panicked.is_panic());
    }

    #[tokio::test]
    async fn what_it_holds_does_not_outlive_who_asked() {
        let held = std::sync::Arc::new(());
        let (theirs, (begin, begun)) = (held.clone(), mpsc::channel());
        let work = run("test", move || {
            begin.send(()).unwrap();
            thread::yield_now();
            drop(theirs);
        });
        tokio::select! {
            biased;
            done = work => done.unwrap(),
            () = std::future::ready(()) => {}
        }
        // It may have been dropped before it began; then it never does.
        begun.recv().ok();
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn nobody_else_becomes_slower() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let before = niceness();
        let lowered = run("test", niceness).await.unwrap();
        assert!(lowered >= NICENESS, "{lowered}");
        assert_eq!(niceness(), before);
        assert_eq!(spawn_blocking(niceness).await.unwrap(), before);
    }
}
