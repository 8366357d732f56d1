//! Tells what happens, and keeps count of what was not as it should be.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

const WIDTH: usize = 96;

/// Writes lines as they become true.
pub struct Narrator<W> {
    out: W,
    begun: Instant,
    steps: usize,
    checked: usize,
    failed: Vec<String>,
}

impl<W: Write> Narrator<W> {
    pub fn new(out: W) -> Self {
        Self { out, begun: Instant::now(), steps: 0, checked: 0, failed: Vec::new() }
    }

    /// Begins a step, with the time at which.
    pub fn step(&mut self, title: &str) -> io::Result<()> {
        self.steps += 1;
        let title = format!("{}. {title} ", self.steps);
        let rest = WIDTH.saturating_sub(title.chars().count() + 12);
        let elapsed = self.begun.elapsed().as_secs_f64();
        writeln!(self.out, "\n── {title}{} {elapsed:4.1} s", "─".repeat(rest))?;
        self.out.flush()
    }

    /// A line about what happens.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "   {line}")?;
        self.out.flush()
    }

    /// Several lines, such as a table.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.out, "   {line}")?;
        }
        self.out.flush()
    }

    /// A line about the demonstration itself.
    pub fn remark(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Tells what should be true, and whether it is.
    pub fn check(&mut self, holds: bool, what: &str) -> io::Result<()> {
        self.checked += 1;
        let mark = if holds { '✓' } else { '✗' };
        if !holds {
            self.failed.push(what.to_owned());
        }
        self.say(&format!("{mark} {what}"))
    }

    /// Sums up; the number of things that were not as they should be.
    pub fn conclude(&mut self) -> io::Result<usize> {
        let elapsed = took(self.begun.elapsed());
        let failed = self.failed.len();
        match failed {
            0 => {
                let checked = self.checked;
                self.remark(&format!("\nAll {checked} checks hold. The whole took {elapsed}."))?;
            }
            _ => {
                self.remark(&format!("\n{failed} of {} checks failed:", self.checked))?;
                for what in std::mem::take(&mut self.failed) {
                    self.remark(&format!("  ✗ {what}"))?;
                }
            }
        }
        Ok(failed)
    }
}

/// `4.2 ms`, `1.3 s`.
pub fn took(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1000.0),
        seconds => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_again_at_the_end() {
        let mut narrator = Narrator::new(Vec::new());
        narrator.step("begin").unwrap();
        narrator.check(true, "water is wet").unwrap();
        narrator.check(false, "fire is cold").unwrap();
        assert_eq!(narrator.conclude().unwrap(), 1);
        let text = String::from_utf8(narrator.out).unwrap();
        assert!(text.contains("── 1. begin ─"), "{text}");
        assert!(text.contains("   ✓ water is wet"), "{text}");
        assert!(text.ends_with("1 of 2 checks failed:\n  ✗ fire is cold\n"), "{text}");
    }

    #[test]
    fn durations_are_told_in_the_unit_that_fits() {
        assert_eq!(took(Duration::from_micros(4_240)), "4.2 ms");
        assert_eq!(took(Duration::from_millis(1_310)), "1.3 s");
    }
}
