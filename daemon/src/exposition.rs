//! Metrics as Prometheus text, and the metrics every process has.

use prometheus::{Encoder, IntGauge, Registry, TextEncoder};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Reads the process's own figures from `/proc/self` whenever metrics are asked for.
#[derive(Clone, Debug)]
pub struct Process {
    resident: IntGauge,
    open_fds: IntGauge,
    threads: IntGauge,
    cpu_milliseconds: IntGauge,
}

impl Process {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            resident: gauge("process_resident_memory_bytes", "Resident memory in bytes.")?,
            open_fds: gauge("process_open_fds", "Open file descriptors.")?,
            threads: gauge("process_threads", "Threads.")?,
            cpu_milliseconds: gauge(
                "process_cpu_milliseconds",
                "User and system CPU time in milliseconds.",
            )?,
        })
    }

    /// Takes new readings. What cannot be read keeps its last value.
    pub fn read(&self) {
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(i64::try_from(entries.count()).unwrap_or(i64::MAX));
        }
        if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<i64>().ok()
            };
            if let Some(kibibytes) = field("VmRSS:") {
                self.resident.set(kibibytes * 1024);
            }
            if let Some(threads) = field("Threads:") {
                self.threads.set(threads);
            }
        }
        // Fields 14 and 15 of /proc/self/stat (proc(5)), in ticks of 10 ms; the name before may hold spaces.
        if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
            && let Some((_, rest)) = stat.rsplit_once(')')
        {
            let ticks = rest
                .split_whitespace()
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse::<i64>().ok());
            self.cpu_milliseconds.set(ticks.sum::<i64>() * 10);
        }
    }
}

/// Everything in `registry` as Prometheus text.
///
/// # Errors
/// When a family cannot be encoded.
pub fn render(registry: &Registry) -> prometheus::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(16 * 1024);
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let registry = Registry::new();
        let process = Process::register(&registry).unwrap();
        process.read();
        assert!(
            process.resident.get() > 100_000
                && process.open_fds.get() > 2
                && process.threads.get() > 0
        );
        let text = String::from_utf8(render(&registry).unwrap()).unwrap();
        assert!(text.contains("process_open_fds "), "{text}");
    }
}
