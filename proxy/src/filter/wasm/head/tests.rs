use leno_wasm_host::pairs;

use super::*;

fn request() -> RequestHead {
    let mut request = http::Request::new(());
    *request.uri_mut() = Uri::from_static("/a?b=c");
    for (name, value) in [("host", "shop"), ("x", "1"), ("content-length", "3"), ("x", "2")] {
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    let mut head = RequestHead::default();
    head.swap(&mut request);
    head
}

fn all(head: &RequestHead) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    head.visit(&mut |name, value| all.push((text(name), text(value))));
    assert_eq!(all.len(), head.count() as usize);
    all
}

#[test]
fn a_request_has_its_pseudo_headers_first() {
    let names: Vec<_> = all(&request()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(&names[..4], [":authority", ":path", ":method", ":scheme"]);
    assert!(!names.contains(&"host".to_owned()));
    let head = request();
    for (name, value) in
        [(":authority", "shop"), (":path", "/a?b=c"), (":method", "GET"), (":scheme", "http")]
    {
        assert_eq!(head.get(name.as_bytes()), Some(value.as_bytes()), "{name}");
    }
    assert_eq!(head.get(b"x"), Some(&b"1"[..]));
    assert_eq!(head.get(b"\xff"), None);
}

#[test]
fn what_was_checked_of_the_target_is_marked_when_it_changes() {
    let mut head = request();
    head.add(b"y", b"1");
    head.replace(b":method", b"PUT");
    assert!(!head.retargeted && head.method == Method::PUT);
    head.replace(b":path", b"/a/../admin");
    assert!(head.retargeted && head.uri == "/a/../admin");
    let mut head = request();
    head.replace(b":authority", b"other:81");
    assert!(head.retargeted && head.headers[header::HOST] == "other:81");
    let mut absolute = RequestHead { uri: Uri::from_static("http://a/p"), ..request() };
    absolute.replace(b":authority", b"b");
    assert_eq!(absolute.uri, "http://b/p");
}

#[test]
fn what_http_forbids_is_never_in_a_head() {
    type Change<'a> = &'a dyn Fn(&mut RequestHead);
    let refused: [(&str, Change<'_>); 14] = [
        ("no path of `GET`", &|head| head.replace(b":path", b"*")),
        ("backslash", &|head| head.replace(b":path", b"/a\\b")),
        ("NUL", &|head| head.replace(b":path", b"/a%00")),
        ("above the root", &|head| head.replace(b":path", b"/../admin")),
        ("user information", &|head| head.replace(b":authority", b"user@shop")),
        ("bad name", &|head| head.add(b"a b", b"1")),
        ("bad value", &|head| head.replace(b"a", b"1\r\nhost: x")),
        ("method", &|head| head.replace(b":method", b"G T")),
        ("connect", &|head| head.replace(b":method", b"CONNECT")),
        ("path", &|head| head.replace(b":path", b"/a b")),
        ("relative", &|head| head.replace(b":path", b"a")),
        ("authority", &|head| head.add(b":authority", b"a b")),
        ("unknown pseudo header", &|head| head.add(b":x", b"1")),
        ("removed", &|head| head.remove(b":path")),
    ];
    for (what, change) in refused {
        let mut head = request();
        change(&mut head);
        assert!(head.forbidden.is_some(), "{what}");
        assert_eq!(all(&head), all(&request()), "{what}");
    }
}

#[test]
fn the_server_as_a_whole_is_for_options_only() {
    let mut head = request();
    head.replace(b":method", b"OPTIONS");
    head.replace(b":path", b"*");
    assert!(head.forbidden.is_none() && head.retargeted && head.uri == "*");
    head.replace(b":method", b"GET");
    assert!(head.forbidden.is_some() && head.method == Method::OPTIONS);
}

#[test]
fn framing_is_not_a_plugins_to_say() {
    let mut head = request();
    head.replace(b"content-length", b"300");
    head.add(b"transfer-encoding", b"chunked");
    head.add(b"connection", b"x");
    assert_eq!(head.forbidden, None);
    assert_eq!(all(&head), all(&request()));
    head.remove(b"content-length");
    assert!(!head.headers.contains_key(header::CONTENT_LENGTH));
    for (length, kept) in [("3", true), ("4", false)] {
        let list = [(":method", "GET"), (":path", "/a"), ("content-length", length), ("z", "1")];
        let list = pairs::encode(list.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())));
        let mut head = request();
        head.set_all(Pairs::parse(&list).unwrap());
        assert_eq!(head.headers.contains_key(header::CONTENT_LENGTH), kept, "{length}");
        assert_eq!(head.get(b"x"), None);
        assert_eq!(
            (head.get(b":authority"), head.get(b"z")),
            (Some(&b"shop"[..]), Some(&b"1"[..]))
        );
        assert_eq!(head.forbidden, None);
    }
    let mut head = request();
    head.set_all(Pairs::default());
    assert!(head.forbidden.is_some(), "no method and no path");
}

#[test]
fn a_response_has_a_status_that_ends_a_request() {
    let mut head = ResponseHead::default();
    head.enter(&mut http::Response::new(()));
    assert_eq!((head.get(b":status"), head.count()), (Some(&b"200"[..]), 1));
    head.replace(b":status", b"418");
    assert_eq!((head.status.as_u16(), head.get(b":status")), (418, Some(&b"418"[..])));
    assert_eq!(head.forbidden, None);
    for bad in ["101", "99", "x", "1000"] {
        let mut head = head.clone();
        head.replace(b":status", bad.as_bytes());
        assert!(head.forbidden.is_some() && head.status.as_u16() == 418, "{bad}");
    }
}
