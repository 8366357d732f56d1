//! Being asked to stop: SIGTERM or SIGINT. The first asks politely, the second means now.

use std::io::IsTerminal as _;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to stop.
#[derive(Debug)]
pub struct Requests {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// Whether somebody sits before it: then SIGHUP says that they have gone.
    interactive: bool,
}

impl Requests {
    /// Starts listening; from here on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When the operating system refuses the handlers.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            interactive: std::io::stdin().is_terminal(),
        })
    }

    /// Waits for the next request and names it. To a service SIGHUP means to read its files again, which happens anyway
    /// whenever they change.
    pub async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => {
                    if self.interactive {
                        return "SIGHUP";
                    }
                    tracing::info!("SIGHUP: files are read whenever they change; nothing to do");
                }
            }
        }
    }
}
