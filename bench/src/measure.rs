//! What a program costs, read from `/proc`: CPU time and memory of a process with all its children,
//! and how busy a core was with anything else meanwhile.
//!
//! CPU time comes from each thread's `schedstat`, which counts nanoseconds: the `utime + stime` of
//! `stat` is the same sum in ticks of 10 ms, which is one per cent of what a four-second phase at a
//! third of a core uses. Threads that ended are missing from it, so it fits phases in which a peer
//! keeps its threads; a phase that replaces processes does not measure CPU.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Resident memory of a process tree, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Proportional set size: pages shared between processes are counted once in the sum.
    pub proportional: u64,
    /// Sum of the peaks of the resident set (`VmHWM`).
    pub peak: u64,
}

/// The process `root` and all its descendants that are alive.
pub fn process_tree(root: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and the read: then it is not alive.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some(parent) = parent_in_stat(&stat) {
            parents.push((pid, parent));
        }
    }
    Ok(descendants(root, &parents))
}

/// CPU time, user and system, used so far by all threads of the processes `root` and below.
pub fn cpu_time(root: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for pid in process_tree(root)? {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse().ok());
            total += Duration::from_nanos(nanoseconds.context("malformed schedstat in /proc")?);
        }
    }
    Ok(total)
}

/// Memory of the processes `root` and below.
pub fn memory(root: u32) -> Result<Memory> {
    let mut total = Memory::default();
    for pid in process_tree(root)? {
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        total.proportional += kilobytes(&rollup, "Pss:").unwrap_or(0) * 1024;
        total.peak += kilobytes(&status, "VmHWM:").unwrap_or(0) * 1024;
    }
    Ok(total)
}

/// How long `core` has been busy since the machine started, counted in ticks of 10 ms.
pub fn core_busy(core: usize) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let ticks = busy_ticks(&text, core);
    ticks
        .map(|ticks| Duration::from_millis(ticks * 10))
        .with_context(|| format!("no core {core} in /proc/stat"))
}

/// Field 4 of `/proc/PID/stat`. The command name (field 2) may hold spaces and parentheses.
fn parent_in_stat(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

fn descendants(root: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

fn kilobytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Everything but idle and iowait (fields 4 and 5) and the guest time already inside user time.
fn busy_ticks(stat: &str, core: usize) -> Option<u64> {
    let label = format!("cpu{core} ");
    let fields = stat.lines().find_map(|line| line.strip_prefix(label.as_str()))?;
    let ticks: Vec<u64> = fields.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let counted = [0, 1, 2, 5, 6, 7];
    counted.iter().map(|&field| ticks.get(field).copied()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_contain_anything() {
        assert_eq!(parent_in_stat("7 (a) b) S 3 7 7 0"), Some(3));
        assert_eq!(parent_in_stat("garbage"), None);
    }

    #[test]
    fn a_tree_has_grandchildren_and_no_strangers() {
        let parents = [(2, 1), (3, 2), (4, 3), (9, 8)];
        assert_eq!(descendants(2, &parents), vec![2, 3, 4]);
    }

    #[test]
    fn memory_lines() {
        let rollup = "Rss:  100 kB\nPss:                 42 kB\nPss_Anon: 7 kB\n";
        assert_eq!(kilobytes(rollup, "Pss:"), Some(42));
        assert_eq!(kilobytes(rollup, "Swap:"), None);
    }

    #[test]
    fn a_busy_core_is_neither_idle_nor_waiting() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 400 500 6 7 8 90 0\ncpu1 0 0 0 1 0 0 0 0 0 0\n";
        assert_eq!(busy_ticks(stat, 0), Some(1 + 2 + 3 + 6 + 7 + 8));
        assert_eq!(busy_ticks(stat, 1), Some(0));
        assert_eq!(busy_ticks(stat, 2), None);
    }

    #[test]
    fn work_shows_in_our_own_cpu_time() {
        let before = cpu_time(std::process::id()).unwrap();
        let started = std::time::Instant::now();
        let mut sum = 0_u64;
        while started.elapsed() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time(std::process::id()).unwrap() > before);
        assert!(memory(std::process::id()).unwrap().proportional > 100_000);
    }
}
