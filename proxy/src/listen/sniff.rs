//! What a connection speaks, from its first bytes. Pure.

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS ClientHello.
    Tls,
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Opaque,
    /// Too few bytes to tell.
    NeedMore,
}

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method that is taken for one. The longest registered is BASELINE-CONTROL (RFC 3253).
const MAX_METHOD: usize = 24;
/// Bytes after which a verdict is certain.
pub const ENOUGH: usize = 32;

/// Tells what begins with `bytes`.
pub fn sniff(bytes: &[u8]) -> Protocol {
    match bytes {
        [] => return Protocol::NeedMore,
        // Handshake record (22), version 3.x (RFC 8446 section 5.1).
        [0x16] => return Protocol::NeedMore,
        [0x16, 0x03, ..] => return Protocol::Tls,
        _ => {}
    }
    if bytes.starts_with(PREFACE) {
        return Protocol::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Protocol::NeedMore;
    }
    // RFC 9112 section 2.2: empty lines before the request line are to be ignored.
    let line = bytes.trim_ascii_start();
    if line.is_empty() {
        return if bytes.len() <= 4 { Protocol::NeedMore } else { Protocol::Opaque };
    }
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = line.iter().take_while(|byte| token(byte)).count();
    match line.get(method) {
        Some(b' ') if method > 0 => match line.get(method + 1) {
            // Request targets begin with a slash, a star, a scheme or a host; a line of prose rarely does, but text
            // protocols (SMTP, Redis inline) send words: the letters of a method are upper case by convention.
            Some(_) if line[..method].iter().any(u8::is_ascii_lowercase) => Protocol::Opaque,
            Some(target) if target.is_ascii_graphic() => Protocol::Http1,
            Some(_) => Protocol::Opaque,
            None => Protocol::NeedMore,
        },
        Some(_) => Protocol::Opaque,
        None if method <= MAX_METHOD => Protocol::NeedMore,
        None => Protocol::Opaque,
    }
}

/// Methods by which HTTP is known among anything else that programs say: those that RFC 9110 has, those of WebDAV and
/// a few that are common.
const METHODS: [&[u8]; 30] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"QUERY",
    b"PURGE",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"ACL",
    b"BIND",
    b"UNBIND",
    b"REBIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKWORKSPACE",
    b"REPORT",
    b"SEARCH",
    b"VERSION-CONTROL",
];

/// Tells whether TLS begins with `bytes`; nothing else matters where the bytes are somebody's own.
pub fn sniff_tls(bytes: &[u8]) -> Protocol {
    match bytes {
        [] | [0x16] => Protocol::NeedMore,
        [0x16, 0x03, ..] => Protocol::Tls,
        _ => Protocol::Opaque,
    }
}

/// Tells what begins with `bytes` where it may be anything, for anybody: as [`sniff`], but what is taken for HTTP/1 must
/// have a known method and a target as only HTTP has them. SIP, RTSP and others look alike; and who says `CONNECT`, or
/// writes a target in absolute form (RFC 9112 section 3.2.2), speaks to a proxy of its own choice.
pub fn sniff_anything(bytes: &[u8]) -> Protocol {
    let verdict = sniff(bytes);
    if verdict != Protocol::Http1 {
        return verdict;
    }
    let line = bytes.trim_ascii_start();
    let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    let target = line.get(method.len() + 1..).unwrap_or_default();
    if !METHODS.contains(&method) {
        return Protocol::Opaque;
    }
    match target {
        [b'/' | b'*', ..] => Protocol::Http1,
        [] => Protocol::NeedMore,
        _ => Protocol::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tells_protocols_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Protocol::NeedMore),
            (b"\x16", Protocol::NeedMore),
            (b"\x16\x03\x01\x02\x00", Protocol::Tls),
            (b"\x16\x04", Protocol::Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Protocol::Http2),
            (b"PRI * HTTP/2.0\r\n", Protocol::NeedMore),
            (b"P", Protocol::NeedMore),
            (b"POST / HTTP/1.1\r\n", Protocol::Http1),
            (b"PRIX /", Protocol::Http1),
            (b"\r\nGET / HTTP/1.1", Protocol::Http1),
            (b"GET", Protocol::NeedMore),
            (b"GET ", Protocol::NeedMore),
            (b"CONNECT a:1 HTTP/1.1", Protocol::Http1),
            (b"*1\r\n$4\r\nPING\r\n", Protocol::Opaque),
            (b"\0\0\0\x01", Protocol::Opaque),
            (b"SSH-2.0-OpenSSH\r\n", Protocol::Opaque),
            (b"ehlo example.org\r\n", Protocol::Opaque),
            (b"THIS-IS-FAR-TOO-LONG-TO-BE-A-METHOD", Protocol::Opaque),
        ] {
            assert_eq!(sniff(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_only_looks_like_http_is_something_else() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1"[..], Protocol::Http1),
            (b"OPTIONS * HTTP/1.1", Protocol::Http1),
            (b"VERSION-CONTROL /a", Protocol::Http1),
            (b"MKWORKSPACE /a", Protocol::Http1),
            (b"GET http://a/", Protocol::Opaque),
            (b"GET htt", Protocol::Opaque),
            (b"GET ", Protocol::NeedMore),
            (b"GET key", Protocol::Opaque),
            (b"CONNECT a:443 HTTP/1.1", Protocol::Opaque),
            (b"OPTIONS sip:a@b SIP/2.0", Protocol::Opaque),
            (b"OPTIONS rtsp://a RTSP/1.0", Protocol::Opaque),
            (b"INVITE sip:a@b SIP/2.0", Protocol::Opaque),
            (b"SET /a b", Protocol::Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Http2),
            (b"\x16\x03\x01", Protocol::Tls),
        ] {
            assert_eq!(sniff_anything(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn where_only_tls_matters_everything_else_is_bytes() {
        for (bytes, expected) in [
            (&b""[..], Protocol::NeedMore),
            (b"\x16", Protocol::NeedMore),
            (b"\x16\x03\x01", Protocol::Tls),
            (b"\x16\x04", Protocol::Opaque),
            (b"G", Protocol::Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Protocol::Opaque),
        ] {
            assert_eq!(sniff_tls(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn verdicts_on_anything_are_final(
            method in "(GET|PUT|VERSION-CONTROL|FOO|get)",
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = [method.as_bytes(), b" ", &bytes].concat();
            let mut verdict = Protocol::NeedMore;
            for length in 0..=bytes.len() {
                let now = sniff_anything(&bytes[..length]);
                if verdict != Protocol::NeedMore {
                    prop_assert_eq!(now, verdict);
                }
                verdict = now;
            }
            prop_assert!(bytes.len() < ENOUGH || verdict != Protocol::NeedMore);
        }

        /// The verdict is reached within a bound, and more bytes never change it.
        #[test]
        fn verdicts_are_final(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut verdict = Protocol::NeedMore;
            for length in 0..=bytes.len() {
                let now = sniff(&bytes[..length]);
                if verdict != Protocol::NeedMore {
                    prop_assert_eq!(now, verdict);
                }
                verdict = now;
            }
            prop_assert!(bytes.len() < ENOUGH || verdict != Protocol::NeedMore);
        }
    }
}
