//! A program started by the rig: on its core, in a process group of its own, ended with the group.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::START_PATIENCE;
use crate::cores;

/// How long a program may take to end by itself once told to.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// How much of a failed program's words is repeated.
const SAID: usize = 2000;

#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
    errors: PathBuf,
}

impl Process {
    /// Starts `program` on core `core`; the calling thread stays on core `home`.
    pub fn spawn(
        program: &Path,
        arguments: &[&str],
        directory: &Path,
        core: usize,
        home: usize,
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Files rather than pipes: what a program has to say may not stop it.
        let output = directory.join(format!("{name}.out"));
        let errors = directory.join(format!("{name}.err"));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(File::create(&output).context("create a file for output")?)
            .stderr(File::create(&errors).context("create a file for output")?)
            .process_group(0);
        let child = cores::on_core(core, home, || {
            command.spawn().with_context(|| format!("start {}", program.display()))
        })?;
        Ok(Process { child, name, output, errors })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The end of what the program said.
    pub fn said(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let text = format!("{}{}", read(&self.output), read(&self.errors));
        let text = text.trim();
        let from = text.char_indices().rev().nth(SAID).map_or(0, |(at, _)| at);
        text.get(from..).unwrap_or_default().to_owned()
    }

    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look after a child")? {
            anyhow::bail!("{} ended with {status}; it said:\n{}", self.name, self.said());
        }
        Ok(())
    }

    /// The first line on standard output: how our own programs say where they listen.
    pub fn first_line(&mut self) -> Result<String> {
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.output).unwrap_or_default();
            if let Some((line, _)) = text.split_once('\n') {
                return Ok(line.to_owned());
            }
            self.check_alive()?;
            anyhow::ensure!(
                started.elapsed() < START_PATIENCE,
                "{} printed no address in {START_PATIENCE:?}; it said:\n{}",
                self.name,
                self.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to the program itself, not to what it started.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal)
            .with_context(|| format!("send {signal:?} to {}", self.name))
    }

    /// Tells the program and what it started to end, waits for it, and returns all it said on
    /// standard error.
    pub fn finish(mut self, patience: Duration) -> Result<String> {
        kill_process_group(self.pid()?, Signal::TERM)
            .with_context(|| format!("end {}", self.name))?;
        let started = Instant::now();
        while self.child.try_wait().context("look after a child")?.is_none() {
            anyhow::ensure!(
                started.elapsed() < patience,
                "{} does not end within {patience:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::read_to_string(&self.errors).context("read what a program said")
    }

    fn pid(&self) -> Result<Pid> {
        let id = i32::try_from(self.child.id()).context("a process number")?;
        Pid::from_raw(id).context("a process number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Ok(group) = self.pid() else { return };
        // The group is ours alone. Errors mean that it has already ended.
        let _ = kill_process_group(group, Signal::TERM);
        let started = Instant::now();
        while started.elapsed() < END_PATIENCE {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_reported_with_its_words() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ["-c", "echo first; echo why >&2; exit 3"];
        let mut process =
            Process::spawn(Path::new("/bin/sh"), &arguments, directory.path(), 0, 0).unwrap();
        assert_eq!(process.first_line().unwrap(), "first");
        while process.check_alive().is_ok() {
            std::thread::yield_now();
        }
        let error = process.check_alive().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("why"), "{error}");
    }

    #[test]
    fn children_of_a_program_end_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ["-c", "sleep 60 & echo $!; wait"];
        let mut process =
            Process::spawn(Path::new("/bin/sh"), &arguments, directory.path(), 0, 0).unwrap();
        let child = process.first_line().unwrap();
        assert!(Path::new(&format!("/proc/{child}")).exists());
        drop(process);
        // It was told to end before `drop` returned; the scheduler decides when it does, and init
        // when it is reaped.
        let deadline = Instant::now() + Duration::from_secs(60);
        let stat = loop {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let dead = stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ");
            if dead || Instant::now() > deadline {
                break if dead { None } else { Some(stat) };
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(stat, None);
    }
}
