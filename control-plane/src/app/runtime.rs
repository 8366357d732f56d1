//! The threads of a control plane.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

use leno_daemon::memory;
use tokio::runtime::{Builder, Runtime};

/// A thread gives back what it freed this often, when it has nothing else to do.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(1);

thread_local! {
    static GIVEN_BACK: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The runtime for [`super::run`]. Proxies come in bursts, after a restart all of them: what their first responses took
/// goes back to the system once they have them.
///
/// # Errors
/// When there can be no threads.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().on_thread_park(give_back).build()
}

fn give_back() {
    let now = Instant::now();
    let due = |last: Instant| now.duration_since(last) >= GIVE_BACK_EVERY;
    if GIVEN_BACK.get().is_none_or(due) {
        GIVEN_BACK.set(Some(now));
        memory::give_back();
    }
}
