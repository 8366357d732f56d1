//! What the process does so as not to hold more memory than it uses.

use std::{io, time::Duration};

use leno_daemon::memory;

/// The side thread has room for whole configurations: what it freed goes back to the system this often.
const EVERY: Duration = Duration::from_secs(1);

/// Pages of 2 MiB, which the kernel gives where only a few KiB are used, were half the memory of a sidecar. The allocator
/// asks for none (its feature `no_thp`); here they are refused where they are given unasked, too.
#[cfg(target_os = "linux")]
pub(super) fn refuse_huge_pages() -> io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn refuse_huge_pages() -> io::Result<()> {
    Ok(())
}

/// Gives back what the start needed, and from then on what each change of the configuration did.
pub(super) async fn give_back_always() {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        memory::give_back();
        ticks.tick().await;
    }
}
