//! The access log: one line an exchange, text or JSON. Lines go through a bounded queue to a thread of their
//! own; when the disk or the reader is slow, lines are dropped and counted, never requests delayed.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant, SystemTime},
};

use prometheus::IntCounter;

use super::record::{Record, RequestLine};
use crate::error::Flag;

/// Lines waiting for the writer.
const QUEUE: usize = 8192;
/// Longer values are cut: a line has a bound.
const MAX_VALUE: usize = 2048;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// In the order of Envoy's default format.
    Text,
    /// One JSON object.
    Json,
}

/// The sending end; cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: Format,
    lines: SyncSender<Item>,
    dropped: IntCounter,
}

/// What waits for the writer.
#[derive(Debug)]
enum Item {
    Line(String),
    /// To be told once everything before it is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        format: Format,
        out: impl Write + Send + 'static,
        dropped: IntCounter,
    ) -> io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE);
        let counter = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&receiver, out, &counter))?;
        Ok(Self { format, lines, dropped })
    }

    /// Queues the line for `record`, whose exchange ended at `now`.
    pub fn write(&self, record: &Record, now: Instant) {
        let Some(request) = &record.line else { return };
        let time = SystemTime::now() - now.saturating_duration_since(record.start);
        let line = match self.format {
            Format::Text => text(record, request, time, now),
            Format::Json => json(record, request, time, now),
        };
        if self.lines.try_send(Item::Line(line)).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until everything queued so far is written, at most for `limit`; whether it is. For the end of the process.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, flushed) = sync_channel(1);
        self.lines.try_send(Item::Flush(done)).is_ok() && flushed.recv_timeout(limit).is_ok()
    }
}

fn write_lines(lines: &Receiver<Item>, out: impl Write, dropped: &IntCounter) {
    let mut out = io::BufWriter::with_capacity(64 * 1024, out);
    while let Ok(first) = lines.recv() {
        let mut asked = Vec::new();
        // Whatever is waiting goes out in one write.
        for item in std::iter::once(first).chain(lines.try_iter().take(QUEUE)) {
            match item {
                Item::Line(line) if out.write_all(line.as_bytes()).is_err() => dropped.inc(),
                Item::Line(_) => {}
                Item::Flush(done) => asked.push(done),
            }
        }
        if out.flush().is_err() {
            dropped.inc();
        }
        for done in asked {
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(());
        }
    }
}

fn text(record: &Record, request: &RequestLine, time: SystemTime, now: Instant) -> String {
    let mut line = String::with_capacity(384);
    let path = request.uri.path_and_query().map_or("-", |path| path.as_str());
    // Writing to a String cannot fail.
    let _ = write!(line, "[{}] \"", Rfc3339(time));
    quoted(&mut line, request.method.as_str());
    line.push(' ');
    quoted(&mut line, path);
    let _ = write!(line, " {:?}\" {} {}", request.version, record.status, flags(record));
    let _ = write!(
        line,
        " {} {} {:.3} {} \"",
        record.request_bytes,
        record.response_bytes,
        millis(record, now),
        record.attempts
    );
    quoted(&mut line, header(request.user_agent.as_ref()));
    line.push_str("\" \"");
    quoted(&mut line, header(request.request_id.as_ref()));
    line.push_str("\" \"");
    quoted(&mut line, authority(request));
    let _ = write!(
        line,
        "\" {} {} {}",
        record.direction.as_str(),
        record.downstream,
        record.cluster.as_deref().unwrap_or("-")
    );
    match record.upstream {
        Some(upstream) => _ = write!(line, " {upstream}"),
        None => line.push_str(" -"),
    }
    line.push_str(" \"");
    quoted(&mut line, record.route.as_deref().unwrap_or("-"));
    line.push_str("\" \"");
    quoted(&mut line, record.detail.as_deref().unwrap_or("-"));
    for peer in [&record.downstream_peer, &record.upstream_peer, &record.audit] {
        line.push_str("\" \"");
        quoted(&mut line, peer.as_deref().map_or("-", principal));
    }
    line.push('"');
    if let Some(cache) = record.cache {
        let _ = write!(line, " cache={cache}");
    }
    line.push('\n');
    line
}

fn json(record: &Record, request: &RequestLine, time: SystemTime, now: Instant) -> String {
    let mut line = String::with_capacity(512);
    let _ = write!(
        line,
        "{{\"time\":\"{}\",\"listener\":\"{}\"",
        Rfc3339(time),
        record.direction.as_str()
    );
    let path = request.uri.path_and_query().map_or("-", |path| path.as_str());
    let mut field = |name: &str, value: &str| {
        let _ = write!(line, ",\"{name}\":\"");
        quoted(&mut line, value);
        line.push('"');
    };
    field("method", request.method.as_str());
    field("path", path);
    field("authority", authority(request));
    field("user_agent", header(request.user_agent.as_ref()));
    field("request_id", header(request.request_id.as_ref()));
    field("response_flags", &flags(record));
    field("response_code_details", record.detail.as_deref().unwrap_or("-"));
    field("route_name", record.route.as_deref().unwrap_or("-"));
    field("upstream_cluster", record.cluster.as_deref().unwrap_or("-"));
    let upstream = record.upstream.map_or_else(|| "-".to_owned(), |address| address.to_string());
    field("upstream_host", &upstream);
    for (name, value) in [
        ("downstream_peer", &record.downstream_peer),
        ("upstream_peer", &record.upstream_peer),
        ("audit", &record.audit),
    ] {
        if let Some(value) = value {
            field(name, principal(value));
        }
    }
    if let Some((reason, _)) = record.not_retried {
        field("retry_denied", reason);
    }
    if let Some(cache) = record.cache {
        field("cache", cache);
    }
    let _ = write!(
        line,
        ",\"protocol\":\"{:?}\",\"downstream_remote_address\":\"{}\",\"response_code\":{},\"bytes_received\":{},\
         \"bytes_sent\":{},\"duration\":{:.3},\"attempts\":{}",
        request.version,
        record.downstream,
        record.status,
        record.request_bytes,
        record.response_bytes,
        millis(record, now),
        record.attempts,
    );
    let _ = write!(
        line,
        ",\"tls\":{},\"upstream_tls\":{}",
        record.downstream_peer.is_some(),
        record.upstream_peer.is_some()
    );
    if let Some(status) = record.grpc_status {
        let _ = write!(line, ",\"grpc_status\":{status}");
    }
    line.push_str("}\n");
    line
}

/// Separated by commas where there are several.
fn flags(record: &Record) -> Cow<'static, str> {
    match (record.flag, record.not_retried.and_then(|(_, letters)| letters)) {
        (flag, None) => flag.as_str().into(),
        (Flag::None, Some(letters)) => letters.into(),
        (flag, Some(letters)) => format!("{},{letters}", flag.as_str()).into(),
    }
}

/// As policies have it.
fn principal(id: &str) -> &str {
    id.strip_prefix("spiffe://").unwrap_or(id)
}

fn millis(record: &Record, now: Instant) -> f64 {
    now.saturating_duration_since(record.start).as_secs_f64() * 1000.0
}

fn authority(request: &RequestLine) -> &str {
    request
        .uri
        .authority()
        .map_or_else(|| header(request.host.as_ref()), |authority| authority.as_str())
}

fn header(value: Option<&http::HeaderValue>) -> &str {
    value.map_or("-", |value| value.to_str().unwrap_or("(not ASCII)"))
}

/// Escapes as JSON does, controls and quotes included, so that no header can forge a line (FAULTS 42).
fn quoted(line: &mut String, text: &str) {
    for (at, c) in text.char_indices() {
        if at >= MAX_VALUE {
            line.push_str("...");
            return;
        }
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            c if c.is_control() => _ = write!(line, "\\u{:04x}", u32::from(c)),
            c => line.push(c),
        }
    }
}

/// `2026-01-02T03:04:05.678Z`, by the civil-from-days algorithm (H. Hinnant, "chrono-compatible low-level date
/// algorithms").
struct Rfc3339(SystemTime);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:03}Z",
            second % 60,
            since.subsec_millis()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::record::Direction;

    fn record() -> Record {
        let line = RequestLine {
            method: http::Method::GET,
            uri: "/a?b=%22".parse().unwrap(),
            version: http::Version::HTTP_11,
            host: Some(http::HeaderValue::from_static("orders")),
            user_agent: Some(http::HeaderValue::from_bytes(b"x\" y\\").unwrap()),
            request_id: None,
        };
        Record {
            start: Instant::now(),
            direction: Direction::Outbound,
            downstream: "127.0.0.1:5000".parse().unwrap(),
            line: Some(Box::new(line)),
            grpc: false,
            status: 200,
            grpc_status: None,
            flag: Flag::None,
            detail: Some("line\nbreak".to_owned()),
            route: None,
            cluster: Some("shop/orders:80".into()),
            upstream: None,
            downstream_peer: None,
            upstream_peer: Some("spiffe://cluster.local/ns/shop/sa/orders".into()),
            audit: None,
            scope: None,
            attempts: 1,
            not_retried: None,
            cache: None,
            request_bytes: 0,
            response_bytes: 5,
        }
    }

    fn time() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678)
    }

    #[test]
    fn json_lines_parse_whatever_the_headers_hold() {
        let record = record();
        let line = json(&record, record.line.as_ref().unwrap(), time(), Instant::now());
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["user_agent"], "x\" y\\");
        assert_eq!(value["response_code_details"], "line\nbreak");
        assert_eq!(value["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!((&value["tls"], value.get("downstream_peer")), (&false.into(), None));
        assert_eq!(value["upstream_tls"], true);
        assert_eq!(value["upstream_peer"], "cluster.local/ns/shop/sa/orders");
    }

    #[test]
    fn text_lines_stay_one_line() {
        let record = record();
        let line = text(&record, record.line.as_ref().unwrap(), time(), Instant::now());
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(
            line.starts_with("[2026-01-02T03:04:05.678Z] \"GET /a?b=%22 HTTP/1.1\" 200 - 0 5 "),
            "{line}"
        );
    }

    #[test]
    fn lines_arrive_and_a_full_queue_drops() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let (sent, received) = std::sync::mpsc::channel::<usize>();
        struct Out(std::sync::mpsc::Sender<usize>);
        impl Write for Out {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.send(bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = AccessLog::start(Format::Json, Out(sent), dropped.clone()).unwrap();
        log.write(&record(), Instant::now());
        assert!(log.flush(Duration::from_secs(5)));
        assert!(received.try_recv().unwrap() > 100, "written by the time it is said to be");
        let (lines, kept) = sync_channel(1);
        let full = AccessLog { format: Format::Text, lines, dropped: dropped.clone() };
        full.write(&record(), Instant::now());
        full.write(&record(), Instant::now());
        assert_eq!(dropped.get(), 1);
        assert!(
            !full.flush(Duration::from_secs(5)),
            "a queue that is full does not hold up the end"
        );
        drop(kept);
    }
}
