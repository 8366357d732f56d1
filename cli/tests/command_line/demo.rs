//! However the demonstration ends, nothing of it is left running.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Lines;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demonstration until its processes are up, ends it with `signal`, and waits for them to be gone.
fn ends_without_a_trace(signal: Signal) {
    let directory = tempfile::tempdir().unwrap();
    let demo = Lines::with_temporary_files(directory.path(), &["demo", "--no-plugins"]);
    while !demo.next_line().contains("workloads registered") {}
    let parent = demo.id();
    let begun = running(parent);
    assert!(begun >= 14, "{begun} processes of the demonstration were found");
    kill_process(Pid::from_raw(i32::try_from(parent).unwrap()).unwrap(), signal).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while running(parent) > 0 {
        assert!(Instant::now() < deadline, "{} processes are left", running(parent));
        std::thread::sleep(Duration::from_millis(20));
    }
    demo.wait();
    let left = fs::read_dir(directory.path()).unwrap().count();
    // SIGKILL leaves no time to tidy up.
    assert_eq!(left, usize::from(signal == Signal::KILL));
}

/// How many processes were started by the demonstration with that id. One that has ended, and that only nobody has
/// waited for yet, has no command line.
fn running(parent: u32) -> usize {
    let wanted = format!("--die-with\0{parent}\0");
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let command_lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    command_lines.filter(|line| String::from_utf8_lossy(line).contains(&wanted)).count()
}

#[test]
fn interrupted_it_stops_its_processes() {
    ends_without_a_trace(Signal::INT);
}

#[test]
fn killed_it_takes_its_processes_along() {
    ends_without_a_trace(Signal::KILL);
}
