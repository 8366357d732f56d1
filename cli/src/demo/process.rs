//! Child processes: started, waited for until they say they listen, and never left behind.
//!
//! Three ropes hold them: `stop` asks politely and then insists; dropping [`Processes`] kills; and a child kills
//! itself when its parent is gone (`--die-with`), so that even SIGKILL leaves nothing running.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// From the start of a process to the line with its addresses.
const START_LIMIT: Duration = Duration::from_mins(1);
/// From SIGTERM to SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(3);
/// Of a log, when its process failed.
const TAIL_LINES: usize = 12;

/// The processes of the demonstration.
pub struct Processes {
    program: PathBuf,
    logs: PathBuf,
    running: Vec<Running>,
}

/// A process that was started, and has not told its addresses yet.
pub struct Starting {
    name: String,
    deadline: Instant,
}

/// The JSON line with which a process tells its addresses.
#[derive(Clone, Debug)]
pub struct Announcement {
    process: String,
    line: Value,
}

/// What a process can do wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start {name}: {source}")]
    Spawn { name: String, source: io::Error },
    #[error("{name} ended ({status}); its log says:\n{tail}")]
    Ended { name: String, status: ExitStatus, tail: String },
    #[error("{name} does not say where it listens within {START_LIMIT:?}; its log says:\n{tail}")]
    Silent { name: String, tail: String },
    #[error("{name} should tell its addresses in a line of JSON, but printed: {line}")]
    Unreadable { name: String, line: String },
    #[error("{name} does not tell its address `{field}`, only: {line}")]
    NoAddress { name: String, field: &'static str, line: Value },
    #[error("cannot stop {name}: {source}")]
    Stop { name: String, source: io::Error },
}

struct Running {
    name: String,
    child: Child,
}

/// Makes this process end when the thread that started it does; called first thing in a child.
pub fn die_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have gone before the call above.
    let alive =
        getppid().is_some_and(|found| found.as_raw_nonzero().get().cast_unsigned() == parent);
    if alive { Ok(()) } else { Err(io::Error::other("the process it belongs to has ended")) }
}

impl Processes {
    /// Logs go to `directory/logs`.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let logs = directory.join("logs");
        fs::create_dir_all(&logs)?;
        Ok(Self { program: std::env::current_exe()?, logs, running: Vec::new() })
    }

    pub fn count(&self) -> usize {
        self.running.len()
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Starts this program again with `arguments`.
    pub fn spawn(&mut self, name: &str, arguments: &[String]) -> Result<Starting, Error> {
        let failed = |source| Error::Spawn { name: name.to_owned(), source };
        let create = |path: PathBuf| File::create(path).map_err(failed);
        let child = Command::new(&self.program)
            .arg("--die-with")
            .arg(std::process::id().to_string())
            .args(arguments)
            // Settings of the person's own mesh (LENO_...) are none of the demonstration's.
            .env_clear()
            .stdin(Stdio::null())
            .stdout(create(self.stdout(name))?)
            .stderr(create(self.stderr(name))?)
            // Ctrl-C is for the demonstration, which then stops its processes in order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        self.running.push(Running { name: name.to_owned(), child });
        Ok(Starting { name: name.to_owned(), deadline: Instant::now() + START_LIMIT })
    }

    /// Waits for a started process to tell its addresses.
    pub async fn announced(&mut self, starting: Starting) -> Result<Announcement, Error> {
        let Starting { name, deadline } = starting;
        loop {
            // Looked at before the output: what it printed before it ended counts.
            let own = self.running.iter_mut().find(|running| running.name == name);
            let status = own.and_then(|running| running.child.try_wait().ok().flatten());
            let printed = fs::read_to_string(self.stdout(&name)).unwrap_or_default();
            if let Some((line, _)) = printed.split_once('\n') {
                return Announcement::read(name, line);
            }
            if let Some(status) = status {
                let tail = self.tail(&name);
                return Err(Error::Ended { name, status, tail });
            }
            if Instant::now() > deadline {
                let tail = self.tail(&name);
                return Err(Error::Silent { name, tail });
            }
            sleep(POLL).await;
        }
    }

    /// An error when one of them is no longer running.
    pub fn check_alive(&mut self) -> Result<(), Error> {
        let mut ended = None;
        for running in &mut self.running {
            if let Ok(Some(status)) = running.child.try_wait() {
                ended = Some((running.name.clone(), status));
            }
        }
        match ended {
            None => Ok(()),
            Some((name, status)) => {
                let tail = self.tail(&name);
                Err(Error::Ended { name, status, tail })
            }
        }
    }

    /// Kills one, as a crash would.
    pub fn crash(&mut self, name: &str) -> Result<(), Error> {
        let found = self.running.iter().position(|running| running.name == name);
        let Some(mut running) = found.map(|at| self.running.remove(at)) else { return Ok(()) };
        let ended = running.child.kill().and_then(|()| running.child.wait());
        ended.map(drop).map_err(|source| Error::Stop { name: running.name, source })
    }

    /// Ends all of them, politely at first.
    pub async fn stop(&mut self) -> Result<(), Error> {
        for running in self.running.iter().rev() {
            if let Some(pid) = pid(&running.child) {
                // One that has ended already needs no signal.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for running in &mut self.running {
            while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                sleep(POLL).await;
            }
        }
        self.kill()
    }

    fn kill(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for mut running in self.running.drain(..) {
            // `kill` does nothing to a child that was waited for.
            let ended = running.child.kill().and_then(|()| running.child.wait());
            if let Err(source) = ended {
                result = Err(Error::Stop { name: running.name, source });
            }
        }
        result
    }

    fn stdout(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.out"))
    }

    fn stderr(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn tail(&self, name: &str) -> String {
        let log = fs::read_to_string(self.stderr(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
        shown.map(|line| format!("  {line}\n")).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure; children also watch their parent themselves.
        let _ = self.kill();
    }
}

impl Announcement {
    fn read(process: String, line: &str) -> Result<Self, Error> {
        match serde_json::from_str(line) {
            Ok(line @ Value::Object(_)) => Ok(Self { process, line }),
            _ => Err(Error::Unreadable { name: process, line: line.to_owned() }),
        }
    }

    /// The address under `field`.
    pub fn address(&self, field: &'static str) -> Result<std::net::SocketAddr, Error> {
        let address = self.line.get(field).and_then(Value::as_str);
        address.and_then(|address| address.parse().ok()).ok_or_else(|| Error::NoAddress {
            name: self.process.clone(),
            field,
            line: self.line.clone(),
        })
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}
