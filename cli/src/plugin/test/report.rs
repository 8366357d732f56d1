//! What is printed of it.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use leno_wasm_host::{Headers, LogLevel, MetricValue, Module};

use super::{
    desk::Desk,
    exchange::{Message, Outcome},
    notes::{Callback, Note, text},
    script::Case,
};
use crate::table::Table;

/// How many went as expected.
#[derive(Debug, Default)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
}

impl Count {
    pub fn add(&mut self, wrong: &[String]) {
        *(if wrong.is_empty() { &mut self.passed } else { &mut self.failed }) += 1;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed } = self;
        match failed {
            0 => write!(formatter, "all {passed} as expected"),
            _ => write!(formatter, "{failed} of {} not as expected", passed + failed),
        }
    }
}

/// What was loaded.
pub fn module(
    file: &Path,
    module: &Module,
    took: Duration,
    out: &mut impl Write,
) -> io::Result<()> {
    let abi = match module.abi() {
        leno_wasm_host::AbiVersion::V0_1_0 => "0.1.0",
        leno_wasm_host::AbiVersion::V0_2_0 => "0.2.0",
        leno_wasm_host::AbiVersion::V0_2_1 => "0.2.1",
    };
    writeln!(out, "{}   ABI {abi}, loaded in {}", file.display(), time(took))?;
    writeln!(out, "sha256 {}", module.digest())
}

/// A configuration that has to be refused.
pub fn refusal(
    number: usize,
    wrong: &[String],
    quiet: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    if quiet && wrong.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nconfiguration {number} to be refused")?;
    verdict(wrong, out)
}

/// A request and what became of it.
pub fn case(
    number: usize,
    case: &Case,
    outcome: &Outcome,
    wrong: &[String],
    out: &mut impl Write,
) -> io::Result<()> {
    let name = case.name.as_deref().map_or(String::new(), |name| format!(": {name}"));
    writeln!(out, "\nrequest {number}{name}")?;
    writeln!(out, "  > {} {}", case.request.method, case.request.path)?;
    notes(&outcome.notes, out)?;
    match &outcome.upstream {
        Some(message) => message_line("upstream got", message, out)?,
        None => writeln!(out, "  upstream got nothing")?,
    }
    match &outcome.response {
        Some(message) => message_line("<", message, out)?,
        None => writeln!(out, "  < nothing: the connection is closed")?,
    }
    verdict(wrong, out)
}

fn verdict(wrong: &[String], out: &mut impl Write) -> io::Result<()> {
    if wrong.is_empty() {
        return writeln!(out, "  ok");
    }
    wrong.iter().try_for_each(|line| writeln!(out, "  FAILED {line}"))
}

/// What happened, in order.
pub fn notes(notes: &[Note], out: &mut impl Write) -> io::Result<()> {
    notes.iter().try_for_each(|entry| note(entry, out))
}

fn note(note: &Note, out: &mut impl Write) -> io::Result<()> {
    match note {
        Note::Started { took, memory } => {
            writeln!(out, "  started and configured in {}, {}", time(*took), bytes(*memory))
        }
        Note::Callback(callback) => writeln!(out, "  {}", callback_line(callback)),
        Note::Headers(lines) => lines.iter().try_for_each(|line| writeln!(out, "      {line}")),
        Note::Body { before, after } => {
            writeln!(out, "      body: {before} bytes become {after}")
        }
        Note::Log(level, line) => writeln!(out, "      log {}: {line}", level_name(*level)),
        Note::Call { what, headers, timeout } => {
            writeln!(out, "      calls {what}, at most {}", time(*timeout))?;
            header_lines(headers, out)
        }
        Note::Answer { status, headers, body } => {
            writeln!(out, "  the service answers {status} {}", shortened(body))?;
            header_lines(headers, out)
        }
        Note::GrpcAnswer { status } => writeln!(out, "  the service answers: gRPC status {status}"),
        Note::Ended(token) => writeln!(out, "      ends the call {token}"),
        Note::Refused(what) => writeln!(out, "      is refused {what}"),
        Note::Local { status } => writeln!(out, "      answers {status} itself"),
        Note::Proxy(what) => writeln!(out, "  the proxy {what}"),
        Note::Fault(fault) => writeln!(out, "  BROKE {fault}"),
    }
}

fn callback_line(callback: &Callback) -> String {
    let Callback { name, took, memory, action, times } = callback;
    let times = if *times > 1 { format!(" x{times}") } else { String::new() };
    let action = action.map_or(String::new(), |action| format!("   {action}"));
    format!("{:<34} {:>9}   {}{action}", format!("{name}{times}"), time(*took), bytes(*memory))
}

fn header_lines(headers: &Headers, out: &mut impl Write) -> io::Result<()> {
    let ordinary = headers.iter().filter(|(name, _)| !name.starts_with(b":"));
    for (name, value) in ordinary {
        writeln!(out, "        {}: {}", text(name), text(value))?;
    }
    Ok(())
}

fn message_line(what: &str, message: &Message, out: &mut impl Write) -> io::Result<()> {
    let pseudo = |name: &str| {
        let found = message.headers.iter().find(|(key, _)| key == name.as_bytes());
        found.map(|(_, value)| text(value))
    };
    let parts = [":status", ":method", ":path"].into_iter().filter_map(pseudo);
    let line = parts.collect::<Vec<_>>().join(" ");
    let body = text(&message.portions.concat());
    writeln!(out, "  {what} {line} {}", shortened(&body))
}

/// As much of a body as fits on a line.
fn shortened(body: &str) -> String {
    const CHARACTERS: usize = 100;
    match body.char_indices().nth(CHARACTERS) {
        Some((end, _)) => {
            format!("{}... ({} bytes)", body.get(..end).unwrap_or_default(), body.len())
        }
        None => body.to_owned(),
    }
}

/// What each callback took, and what the plugin counted.
pub fn summary(desk: &Desk, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["callback", "calls", "mean", "longest", "memory"]);
    for (name, figures) in desk.world().borrow().notes.figures() {
        let mean = figures.total / u32::try_from(figures.calls).unwrap_or(u32::MAX).max(1);
        table.add(vec![
            name.to_owned(),
            figures.calls.to_string(),
            time(mean),
            time(figures.longest),
            bytes(figures.memory),
        ]);
    }
    writeln!(out)?;
    table.print(out)?;
    let mut metrics = Table::new(["metric", "value"]);
    for metric in desk.shared().metrics.all() {
        let value = match metric.value() {
            MetricValue::Counter(value) | MetricValue::Gauge(value) => {
                value.load(std::sync::atomic::Ordering::Relaxed).to_string()
            }
            MetricValue::Histogram(histogram) => format!("sum {}", histogram.sum()),
        };
        metrics.add(vec![metric.name().to_owned(), value]);
    }
    if !metrics.is_empty() {
        writeln!(out)?;
        metrics.print(out)?;
    }
    writeln!(out)
}

fn time(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

fn bytes(count: usize) -> String {
    match count {
        0..1_048_576 => format!("{} KiB", count >> 10),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warning",
        LogLevel::Error => "error",
        LogLevel::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_people() {
        assert_eq!(time(Duration::from_nanos(999)), "999 ns");
        assert_eq!(time(Duration::from_nanos(1_500)), "1.5 us");
        assert_eq!(time(Duration::from_millis(2)), "2.0 ms");
        assert_eq!(time(Duration::from_secs(2)), "2.0 s");
        assert_eq!(bytes(65_536), "64 KiB");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(200)), format!("{}... (400 bytes)", "é".repeat(100)));
    }

    #[test]
    fn one_failure_is_told() {
        let mut count = Count::default();
        count.add(&[]);
        assert_eq!(count.to_string(), "all 1 as expected");
        count.add(&["x".to_owned()]);
        assert_eq!(count.to_string(), "1 of 2 not as expected");
    }
}
