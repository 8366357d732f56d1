//! Everything that was issued or refused, one JSON line each; and the last certificate of each proxy, kept in memory and
//! read back from the log at start.
//!
//! Refusals have a log of their own: anybody can cause as many as they like, and must not push out of the log what was
//! issued.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    files::{FileError, PRIVATE},
    rfc3339,
};
use crate::objects::timestamp;

const ISSUED: &str = "audit.log";
const REFUSED: &str = "refused.log";
/// A full file is put aside: with some 500 bytes a line, 33,000 lines.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Files that were put aside and are kept.
const KEPT: usize = 4;
/// Proxies whose last certificate is remembered: twice as many as can be connected.
const MAX_CERTIFICATES: usize = 20_000;
/// How many go at once when there are too many, so that making room stays cheap.
const EVICTED: usize = MAX_CERTIFICATES / 10;
/// Longest text of a caller that is written down, in characters.
const MAX_TEXT: usize = 300;
/// Longest line that is read back.
const MAX_LINE: usize = 16 * 1024;

/// The last certificate of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// What people know the proxy by.
    pub proxy: String,
    pub spiffe_id: String,
    /// Lower-case hex.
    pub serial: String,
    #[serde(with = "time")]
    pub not_before: i64,
    #[serde(with = "time")]
    pub not_after: i64,
    /// SHA-256 of the root under which it is, lower-case hex.
    pub signer: String,
}

/// One line of the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(with = "time")]
    time: i64,
    event: Event,
    remote: String,
    /// How the identity was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    Issued,
    Refused,
}

/// What was asked for in vain.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub proxy: String,
    pub namespace: String,
    pub service_account: String,
    pub reason: String,
}

#[derive(Debug)]
pub struct Audit {
    issued: Mutex<(Log, Table)>,
    refused: Mutex<Log>,
}

/// One file, and those that were put aside when it was full.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    max_bytes: u64,
    file: fs::File,
    size: u64,
    /// The last line is not whole: the next one must not be added to it.
    torn: bool,
}

/// By proxy and identity: nobody overwrites what is known of another by calling itself like it.
#[derive(Debug, Default)]
struct Table(HashMap<(String, String), Certificate>);

impl Audit {
    /// Opens the log in a directory and reads back who has which certificate.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open(directory: &Path) -> Result<Self, FileError> {
        Self::with_size(directory, MAX_BYTES)
    }

    fn with_size(directory: &Path, max_bytes: u64) -> Result<Self, FileError> {
        let path = directory.join(ISSUED);
        let mut table = Table::default();
        let aside = (1..=KEPT).rev().map(|number| aside(&path, number));
        for file in aside.chain([path.clone()]) {
            restore(&file, &mut table).map_err(|error| FileError::io("read", &file, &error))?;
        }
        let refused = Log::open(directory.join(REFUSED), max_bytes)?;
        let issued = (Log::open(path, max_bytes)?, table);
        Ok(Self { issued: Mutex::new(issued), refused: Mutex::new(refused) })
    }

    /// Writes down what is about to be handed out.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be handed out.
    pub fn issued(
        &self,
        time: i64,
        remote: &str,
        proof: &str,
        certificate: Certificate,
    ) -> Result<(), FileError> {
        let line = Line {
            time,
            event: Event::Issued,
            remote: remote.to_owned(),
            proof: Some(short(proof)),
            certificate: Some(certificate.clone()),
            refusal: None,
        };
        let mut issued = locked(&self.issued);
        let (log, table) = &mut *issued;
        log.write(&line)?;
        table.insert(certificate, time);
        Ok(())
    }

    /// Writes down what was refused.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn refused(&self, time: i64, remote: &str, refusal: Refusal) -> Result<(), FileError> {
        let refusal = Refusal {
            proxy: short(&refusal.proxy),
            namespace: short(&refusal.namespace),
            service_account: short(&refusal.service_account),
            reason: short(&refusal.reason),
        };
        let (event, remote) = (Event::Refused, remote.to_owned());
        let refusal = Some(refusal);
        let line = Line { time, event, remote, proof: None, certificate: None, refusal };
        locked(&self.refused).write(&line)
    }

    /// The last certificate of each proxy, by name.
    pub fn certificates(&self) -> Vec<Certificate> {
        let mut all: Vec<_> = locked(&self.issued).1.0.values().cloned().collect();
        all.sort_by(|a, b| (&a.proxy, &a.spiffe_id).cmp(&(&b.proxy, &b.spiffe_id)));
        all
    }
}

impl Log {
    fn open(path: PathBuf, max_bytes: u64) -> Result<Self, FileError> {
        match open(&path) {
            Ok((file, size, torn)) => Ok(Self { path, max_bytes, file, size, torn }),
            Err(error) => Err(FileError::io("open", &path, &error)),
        }
    }

    fn write(&mut self, line: &Line) -> Result<(), FileError> {
        let text = serde_json::to_vec(line).map_err(io::Error::from);
        let written = text.and_then(|text| self.append(text));
        written.map_err(|error| FileError::io("write", &self.path, &error))
    }

    fn append(&mut self, mut text: Vec<u8>) -> io::Result<()> {
        text.push(b'\n');
        if self.size > 0 && self.size + text.len() as u64 > self.max_bytes {
            rotate(&self.path)?;
            (self.file, self.size, self.torn) = open(&self.path)?;
        }
        if self.torn {
            text.insert(0, b'\n');
        }
        // Until all of it is there.
        self.torn = true;
        self.file.write_all(&text)?;
        self.torn = false;
        self.size += text.len() as u64;
        Ok(())
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn insert(&mut self, certificate: Certificate, now: i64) {
        let key = (certificate.proxy.clone(), certificate.spiffe_id.clone());
        if self.0.len() >= MAX_CERTIFICATES && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        self.0.insert(key, certificate);
    }

    /// Those that have ended go; where that is not enough, those that end first.
    fn make_room(&mut self, now: i64) {
        self.0.retain(|_, certificate| certificate.not_after > now);
        let Some(excess) = (self.0.len() + EVICTED).checked_sub(MAX_CERTIFICATES) else { return };
        let mut ends: Vec<i64> = self.0.values().map(|kept| kept.not_after).collect();
        ends.sort_unstable();
        let Some(&last) = excess.checked_sub(1).and_then(|at| ends.get(at)) else { return };
        self.0.retain(|_, certificate| certificate.not_after > last);
    }
}

/// With its size, and whether a crash or a full disk has cut its last line short.
fn open(path: &Path) -> io::Result<(fs::File, u64, bool)> {
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).append(true).read(true).mode(PRIVATE).open(path)?;
    let size = file.metadata()?.len();
    let mut last = [b'\n'];
    if let Some(at) = size.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok((file, size, last != *b"\n"))
}

fn rotate(path: &Path) -> io::Result<()> {
    for number in (1..KEPT).rev() {
        match fs::rename(aside(path, number), aside(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, aside(path, 1))
}

fn aside(path: &Path, number: usize) -> PathBuf {
    path.with_extension(format!("log.{number}"))
}

fn restore(path: &Path, table: &mut Table) -> io::Result<()> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (now, mut unreadable) = (super::now(), 0);
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        // A crash may have cut the last line short.
        match serde_json::from_slice::<Line>(line.get(..MAX_LINE).unwrap_or(&line)) {
            Ok(Line { certificate: Some(certificate), event: Event::Issued, .. }) => {
                table.insert(certificate, now);
            }
            Ok(_) => {}
            Err(_) => unreadable += 1,
        }
    }
    if unreadable > 0 {
        tracing::warn!(path = %path.display(), unreadable, "some lines of the audit log cannot be read");
    }
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Times as people read them.
mod time {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{rfc3339, timestamp};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub(super) fn serialize<S: Serializer>(unix: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&rfc3339(*unix))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let text = String::deserialize(from)?;
        let seconds = timestamp::parse(&text).and_then(|seconds| i64::try_from(seconds).ok());
        seconds.ok_or_else(|| D::Error::custom("a time such as 2026-11-21T08:30:00Z is expected"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn certificate(proxy: &str, not_after: i64) -> Certificate {
        Certificate {
            proxy: proxy.into(),
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/orders".into(),
            serial: "00".into(),
            not_before: 0,
            not_after,
            signer: "aa".into(),
        }
    }

    fn refusal(reason: &str) -> Refusal {
        let text = |text: &str| text.to_owned();
        Refusal {
            proxy: text("p"),
            namespace: text("n"),
            service_account: text("s"),
            reason: text(reason),
        }
    }

    #[test]
    fn a_restart_knows_the_last_certificate_of_each_proxy() {
        let directory = TempDir::new().unwrap();
        let end = super::super::now() + 1000;
        let audit = Audit::open(directory.path()).unwrap();
        for certificate in [certificate("a", end), certificate("b", end), certificate("a", end + 9)]
        {
            audit.issued(100, "192.0.2.1:1", "join token \"x\"", certificate).unwrap();
        }
        audit.refused(101, "192.0.2.1:1", refusal("because\n\u{1b}[31m")).unwrap();
        let known = audit.certificates();
        assert_eq!(known, [certificate("a", end + 9), certificate("b", end)]);
        drop(audit);
        let path = directory.path().join(ISSUED);
        for (path, lines) in [(&path, 3), (&directory.path().join(REFUSED), 1)] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let text = fs::read_to_string(path).unwrap();
            assert_eq!(text.lines().count(), lines);
            assert!(!text.contains('\u{1b}'), "control characters are escaped");
        }
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text + "{\"time\": \"cut sh").unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        assert_eq!(audit.certificates(), known);
        // What follows a line that was cut short is not lost with it.
        audit.issued(102, "192.0.2.1:1", "certificate", certificate("c", end)).unwrap();
        let known = Audit::open(directory.path()).unwrap().certificates();
        assert_eq!(known.last(), Some(&certificate("c", end)));
    }

    #[test]
    fn strangers_push_nothing_out_of_what_was_issued() {
        let directory = TempDir::new().unwrap();
        let audit = Audit::with_size(directory.path(), 2000).unwrap();
        let end = super::super::now() + 1000;
        for proxy in 0..20 {
            let certificate = certificate(&proxy.to_string(), end);
            audit.issued(0, "192.0.2.1:1", "certificate", certificate).unwrap();
        }
        for number in 0..1000 {
            audit.refused(number, "192.0.2.1:1", refusal("no proof")).unwrap();
        }
        let audit = Audit::with_size(directory.path(), 2000).unwrap();
        assert_eq!(audit.certificates().len(), 20, "from all files that are kept");
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_go() {
        let directory = TempDir::new().unwrap();
        let audit = Audit::with_size(directory.path(), 500).unwrap();
        for number in 0..40 {
            audit.refused(number, "192.0.2.1:1", refusal(&"x".repeat(100))).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let kept =
            ["refused.log", "refused.log.1", "refused.log.2", "refused.log.3", "refused.log.4"];
        assert_eq!(names[1..], kept);
        for name in names {
            assert!(fs::metadata(directory.path().join(name)).unwrap().len() <= 500);
        }
    }

    #[test]
    fn texts_of_callers_are_cut() {
        let directory = TempDir::new().unwrap();
        let audit = Audit::open(directory.path()).unwrap();
        audit.refused(0, "192.0.2.1:1", refusal(&"x".repeat(1 << 20))).unwrap();
        assert!(fs::metadata(directory.path().join(REFUSED)).unwrap().len() < 1000);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_what_ends_first() {
        let mut table = Table::default();
        for number in 0..MAX_CERTIFICATES + 1 {
            let end = 1000 + i64::try_from(number).unwrap();
            table.insert(certificate(&number.to_string(), end), 0);
        }
        assert_eq!(table.0.len(), MAX_CERTIFICATES - EVICTED + 1);
        assert!(table.0.values().all(|kept| kept.not_after >= 1000 + 2000));
        let mut ended = Table::default();
        for number in 0..=MAX_CERTIFICATES {
            ended.insert(certificate(&number.to_string(), 10), 20);
        }
        assert_eq!(ended.0.len(), 1, "those that have ended go first");
    }
}
