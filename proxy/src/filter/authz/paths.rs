//! What else a path may mean to the application. The proxy forwards paths as they come (but for dot segments), since to
//! some applications `//` and `%2F` matter; to many others they are one slash, and then a policy that looked at the path
//! as it came has looked at another one. The same goes for path parameters (`/admin;x=1`), which Java servers take out.

/// Other readings of `path`, which is normal as far as dot segments go: with escapes of letters, digits and `-._~`
/// decoded (RFC 3986 section 6.2.2.2: they always mean the same), and those of slashes and backslashes, too; and that
/// with repeated slashes joined. What other escapes hide (blanks, other scripts) is no way to another resource, so that
/// policies may be written with them. Escapes are decoded once. Then both without path parameters (RFC 3986 section 3.3),
/// which are taken out before dot segments are resolved: `/..;/` climbs. Empty for nearly all paths.
pub(super) fn others(path: &str) -> Vec<String> {
    if !path.contains(['%', ';']) && !path.contains("//") {
        return Vec::new();
    }
    let whole = decoded(path);
    // An escaped slash in a parameter ends it, or goes with it.
    let bare = [without_parameters(&whole), decoded(&without_parameters(path))];
    let mut others = Vec::new();
    for reading in std::iter::once(whole).chain(bare) {
        for other in [without_dots(&reading), without_dots(&joined(&reading))] {
            if other != path && !others.contains(&other) {
                others.push(other);
            }
        }
    }
    others
}

fn without_parameters(path: &str) -> String {
    let bare = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    path.split('/').map(bare).collect::<Vec<_>>().join("/")
}

fn decoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        match plain(after) {
            Some(character) => {
                text.push(character);
                rest = &after[2..];
            }
            None => {
                text.push('%');
                rest = after;
            }
        }
    }
    text + rest
}

/// What the escape stands for whose two digits `digits` begins with, where that is to be decoded.
fn plain(digits: &str) -> Option<char> {
    let digits = digits.get(..2).filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    match char::from(u8::from_str_radix(digits, 16).ok()?) {
        '/' | '\\' => Some('/'),
        character if character.is_ascii_alphanumeric() || "-._~".contains(character) => {
            Some(character)
        }
        _ => None,
    }
}

fn joined(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !text.ends_with('/') {
            text.push(character);
        }
    }
    text
}

/// RFC 3986 section 5.2.4. Above the top there is nothing: such a path was refused unless its dots were hidden.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    let length = kept.iter().map(|segment| segment.len() + 1).sum();
    let mut text = String::with_capacity(length);
    for segment in kept {
        text.push('/');
        text.push_str(segment);
    }
    if text.is_empty() { "/".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_readings_of_paths() {
        for (path, expected) in [
            ("/", &[][..]),
            ("/admin", &[]),
            ("/admin/", &[]),
            ("/a%20b/%C3%A4", &[]),
            ("/%61dmin", &["/admin"]),
            ("/%41dmin%2D1", &["/Admin-1"]),
            ("//admin", &["/admin"]),
            ("/a//b", &["/a/b"]),
            ("/%2fadmin", &["//admin", "/admin"]),
            ("/open/..%2Fadmin", &["/admin"]),
            ("/open/%2e%2e%2fadmin", &["/admin"]),
            ("/open/..%5cadmin", &["/admin"]),
            ("/open%2f..%2f..%2fadmin", &["/admin"]),
            ("/open//..//admin", &["/open//admin", "/admin"]),
            ("/a%252fb", &[]),
            ("/a%2", &[]),
            ("/a%zz%2fb", &["/a%zz/b"]),
            ("/a%\u{e4}", &[]),
            ("/admin;x=1", &["/admin"]),
            ("/admin;", &["/admin"]),
            ("/a;x=1/b;y", &["/a/b"]),
            ("/open/..;/admin", &["/admin"]),
            ("/open/%2e%2E;x/admin", &["/open/..;x/admin", "/admin"]),
            ("/;/admin", &["//admin", "/admin"]),
            ("/admin;a%2f..%2fb", &["/b", "/admin"]),
            ("/a%3Bb", &[]),
        ] {
            assert_eq!(others(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn readings_are_paths(path in "/([a/.%;]|%2[fFeE]|%5c|%61|\\PC){0,20}") {
            for other in others(&path) {
                prop_assert!(other.starts_with('/') && other != path);
            }
        }
    }
}
