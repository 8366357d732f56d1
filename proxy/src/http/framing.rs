//! Requests with both `Content-Length` and `Transfer-Encoding` (RFC 9112 section 6.3). hyper drops the length, goes by
//! the chunks and closes afterwards, which is safe for us; but whoever sends such a request is attacking somebody
//! behind or before us, so it is refused. hyper does not say that there was a length: the bytes are looked at on
//! their way to it, for heads only.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::watched::{Watch, Watched};

const LENGTH: &[u8] = b"content-length";
const ENCODING: &[u8] = b"transfer-encoding";

/// What the bytes of a head said. Pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Scan {
    length: bool,
    encoding: bool,
    /// The empty line has been seen.
    done: bool,
}

impl Scan {
    /// Looks at more bytes of a head. A field name that is cut in two is missed; hyper's own rule holds then.
    fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !self.done
            && let Some(at) = memchr::memchr(b'\n', rest)
        {
            rest = &rest[at + 1..];
            match rest.first() {
                Some(b'\r' | b'\n') => self.done = true,
                Some(b'c' | b'C') => self.length |= is_field(rest, LENGTH),
                Some(b't' | b'T') => self.encoding |= is_field(rest, ENCODING),
                _ => {}
            }
        }
    }
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

/// What the serving side and the stream tell each other.
#[derive(Debug, Default)]
pub(super) struct Framing {
    /// Set while a request's body is on its way: its bytes are not a head.
    in_body: AtomicBool,
    ambiguous: AtomicBool,
}

impl Framing {
    /// A head was read; says whether it had both fields.
    pub(super) fn head_read(&self, has_body: bool) -> bool {
        self.in_body.store(has_body, Ordering::Relaxed);
        self.ambiguous.swap(false, Ordering::Relaxed)
    }

    /// The next bytes may be a head again.
    pub(super) fn body_read(&self) {
        self.in_body.store(false, Ordering::Relaxed);
    }
}

/// A downstream connection whose heads are looked at.
pub(super) type Looked<S> = Watched<S, Look>;

/// Looks at heads.
#[derive(Debug)]
pub(super) struct Look {
    framing: Arc<Framing>,
    scan: Scan,
}

impl<S> Looked<S> {
    pub(super) fn new(inner: S) -> (Self, Arc<Framing>) {
        let framing = Arc::new(Framing::default());
        let look = Look { framing: framing.clone(), scan: Scan::default() };
        (Self::by(look, inner), framing)
    }
}

impl Watch for Look {
    fn after(&mut self, bytes: &[u8]) {
        if self.framing.in_body.load(Ordering::Relaxed) {
            self.scan = Scan::default();
            return;
        }
        if self.scan.done {
            self.scan = Scan::default();
        }
        self.scan.feed(bytes);
        if self.scan.length && self.scan.encoding {
            self.framing.ambiguous.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(parts: &[&[u8]]) -> (bool, bool, bool) {
        let mut scan = Scan::default();
        for part in parts {
            scan.feed(part);
        }
        (scan.length, scan.encoding, scan.done)
    }

    #[test]
    fn fields_are_found_in_heads_only() {
        let both = b"POST / HTTP/1.1\r\nTRANSFER-encoding: chunked\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(scan(&[both]), (true, true, true));
        assert_eq!(
            scan(&[b"POST / HTTP/1.1\r\nContent-Length: 3\r\n", b"x: y\r\n\r\n"]),
            (true, false, true)
        );
        let body = b"POST / HTTP/1.1\r\ncontent-length: 22\r\n\r\na\r\nTransfer-Encoding: x";
        assert_eq!(scan(&[body]), (true, false, true));
        assert_eq!(scan(&[b"GET /\ncontent-length: HTTP/1.1\n\n"]), (true, false, true));
        assert_eq!(
            scan(&[b"GET / HTTP/1.1\r\nx-content-length: 3\r\ncontent-lengthy: 1"]),
            (false, false, false)
        );
    }

    proptest! {
        /// Lines that arrive whole are judged the same however they are grouped into reads.
        #[test]
        fn grouping_by_lines_does_not_matter(lines in proptest::collection::vec(
            "(content-length: 1|Transfer-Encoding: chunked|x: y|c: d)", 0..8,
        )) {
            let mut head = String::from("GET / HTTP/1.1");
            for line in &lines {
                head.push_str("\r\n");
                head.push_str(line);
            }
            let parts: Vec<String> = head.split_inclusive("\r\n").map(str::to_owned).collect();
            let whole = scan(&[head.as_bytes()]);
            let length = lines.iter().any(|line| line.starts_with("content-l"));
            let encoding = lines.iter().any(|line| line.starts_with("Transfer"));
            prop_assert_eq!(whole, (length, encoding, false));
            let mut split = Scan::default();
            for pair in parts.windows(2) {
                split.feed(format!("\n{}", pair[1]).as_bytes());
            }
            prop_assert_eq!((split.length, split.encoding), (length, encoding));
        }
    }
}
