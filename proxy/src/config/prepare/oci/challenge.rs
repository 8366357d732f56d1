//! What a registry answers to who has no token: `WWW-Authenticate: Bearer realm="...",service="...",scope="..."`
//! (RFC 9110 section 11.6.1, and the token authentication of registries). Pure.

/// Where a token is given out, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// Reads a header; `None` when it asks for something else.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (scheme, parameters) = value.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = parameters.trim();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=')?;
            let (value, after) = text(after.trim_start())?;
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after.trim_start();
            if let Some(next) = rest.strip_prefix(',') {
                rest = next.trim_start();
            } else if !rest.is_empty() {
                return None;
            }
        }
        Some(Self { realm: realm?, service, scope })
    }
}

/// A token, or a quoted string with its escapes resolved; and what follows.
fn text(from: &str) -> Option<(String, &str)> {
    let Some(quoted) = from.strip_prefix('"') else {
        let end = from.find([',', ' ', '\t']).unwrap_or(from.len());
        return Some((from[..end].to_owned(), &from[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_registries_say() {
        let read = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        let expected = Challenge {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(read, Some(expected));
        let read = Challenge::parse(r#"bearer  scope = a , realm="a \"b\"" , error=x"#).unwrap();
        assert_eq!((&*read.realm, read.scope.as_deref()), (r#"a "b""#, Some("a")));
    }

    #[test]
    fn other_things_are_none() {
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Basic realm=\"x\"",
            "Bearer service=x",
            "Bearer realm=\"x",
            "Bearer realm=\"x\\",
            "Bearer realm=\"x\" service=\"y\"",
            "Bearer realm",
        ] {
            assert_eq!(Challenge::parse(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(value in "Bearer [a-z=\", \\\\é]{0,40}") {
            let _ = Challenge::parse(&value);
        }
    }
}
