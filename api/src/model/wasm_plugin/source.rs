//! Where a module comes from.

use http::Uri;

/// Longer ones are not written by people.
const MAX_URL: usize = 2048;
/// The distribution specification's bound on a tag.
const MAX_TAG: usize = 128;

/// Where a module comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A file on the proxy's machine, by its absolute path.
    File(String),
    /// An http or https URL.
    Http(String),
    /// An image in a registry.
    Oci(OciReference),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OciReference {
    /// Host, with a port where one is written.
    pub registry: String,
    /// `team/plugins/tag`.
    pub repository: String,
    /// `v1`; `latest` where neither this nor a digest is written. With a digest it only is for people.
    pub tag: Option<String>,
    /// SHA-256 of the manifest.
    pub digest: Option<[u8; 32]>,
}

impl Source {
    /// As people write it.
    pub fn url(&self) -> String {
        match self {
            Self::File(path) => format!("file://{path}"),
            Self::Http(url) => url.clone(),
            Self::Oci(image) => {
                let tag = image.tag.as_deref().map(|tag| format!(":{tag}")).unwrap_or_default();
                let digest = image.digest.map(|digest| format!("@sha256:{}", hex(&digest)));
                let digest = digest.unwrap_or_default();
                format!("oci://{}/{}{tag}{digest}", image.registry, image.repository)
            }
        }
    }
}

/// Reads a URL.
///
/// # Errors
/// Says what is wrong with it, without repeating what may be a password.
pub(super) fn parse(text: &str) -> Result<Source, String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > MAX_URL || !printable {
        return Err(format!("must be a URL of 1 to {MAX_URL} printable characters"));
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| {
        format!(
            "`{text}` has no scheme; write file:///path, https://host/path or oci://registry/repository:tag"
        )
    })?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("must not hold a user or password: everybody who may read the plugin sees it"
            .to_owned());
    }
    match scheme {
        "file" => parse_file(rest),
        "http" | "https" => parse_http(text),
        "oci" => parse_oci(rest).map(Source::Oci),
        _ => Err(format!("`{scheme}` must be file, http, https or oci")),
    }
}

fn parse_file(path: &str) -> Result<Source, String> {
    if !path.starts_with('/') || path.len() == 1 {
        return Err("must name a file by its absolute path: file:///plugins/tag.wasm".to_owned());
    }
    Ok(Source::File(path.to_owned()))
}

fn parse_http(text: &str) -> Result<Source, String> {
    let uri: Uri =
        text.parse().map_err(|_| format!("`{text}` is not a URL; write https://host/path"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(format!("`{text}` names no host"));
    }
    Ok(Source::Http(text.to_owned()))
}

fn parse_oci(rest: &str) -> Result<OciReference, String> {
    let (registry, image) = rest
        .split_once('/')
        .filter(|(registry, image)| is_registry(registry) && !image.is_empty())
        .ok_or("must be oci://registry/repository:tag")?;
    let (image, digest) = match image.split_once('@') {
        None => (image, None),
        Some((image, digest)) => {
            let digest = digest.strip_prefix("sha256:").and_then(parse_digest);
            (image, Some(digest.ok_or("has no `sha256:` and 64 hexadecimal digits after the `@`")?))
        }
    };
    let (repository, tag) = match image.split_once(':') {
        None => (image, None),
        Some((repository, tag)) => (repository, Some(tag)),
    };
    if !repository.split('/').all(is_component) {
        return Err(format!(
            "`{repository}` is not a repository: lower-case letters and digits, separated by `.`, `_`, `-`, `/`"
        ));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(format!(
            "has a tag that is none: 1 to {MAX_TAG} letters, digits, `_`, `.`, `-`"
        ));
    }
    let default = digest.is_none().then_some("latest");
    let tag = tag.or(default).map(str::to_owned);
    Ok(OciReference {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        tag,
        digest,
    })
}

fn is_registry(text: &str) -> bool {
    let uri = format!("https://{text}/").parse::<Uri>();
    uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/")
}

/// A part of a repository's name (distribution specification, "Pulling manifests").
fn is_component(text: &str) -> bool {
    let edge = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b))
}

fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte))
}

/// Reads 64 hexadecimal digits.
pub(super) fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? * 16 + low?).ok()?;
    }
    Some(digest)
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        text.extend(
            [byte >> 4, byte & 15]
                .map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default()),
        );
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";

    #[test]
    fn what_is_written_reads_back() {
        let digest = DIGEST.to_lowercase();
        for text in [
            "file:///plugins/tag.wasm".to_owned(),
            "http://127.0.0.1:8000/a.wasm?x=y".to_owned(),
            "https://host/a@b.wasm".to_owned(),
            "oci://ghcr.io/team/tag:v1".to_owned(),
            "oci://localhost:5000/tag:latest".to_owned(),
            "oci://[::1]:5000/a/b-c/d_e.f:V_1.2-x".to_owned(),
            format!("oci://ghcr.io/tag@sha256:{digest}"),
            format!("oci://ghcr.io/tag:v1@sha256:{digest}"),
        ] {
            assert_eq!(parse(&text).map(|source| source.url()), Ok(text));
        }
        let latest = parse("oci://ghcr.io/team/tag").unwrap();
        assert_eq!(latest.url(), "oci://ghcr.io/team/tag:latest");
        assert_eq!(
            parse_digest(DIGEST).map(|digest| digest[..3].to_vec()),
            Some(vec![1, 0x23, 0x45])
        );
    }

    #[test]
    fn other_things_are_refused() {
        let digest = &DIGEST[1..];
        for (text, reason) in [
            ("", "printable"),
            ("tag.wasm", "no scheme"),
            ("ftp://host/a", "must be file"),
            ("file://tag.wasm", "absolute path"),
            ("file:///", "absolute path"),
            ("http:///a", "is not a URL"),
            ("https://host name/a", "printable"),
            ("https://me:secret@host/a", "user or password"),
            ("oci://me:secret@host/a:b", "user or password"),
            ("oci://ghcr.io", "must be oci://"),
            ("oci://ghcr.io/", "must be oci://"),
            ("oci:///tag", "must be oci://"),
            ("oci://ghcr.io/Team/tag", "not a repository"),
            ("oci://ghcr.io/team//tag", "not a repository"),
            ("oci://ghcr.io/team/../tag", "not a repository"),
            ("oci://ghcr.io/tag:", "has a tag"),
            ("oci://ghcr.io/tag:a/b", "has a tag"),
            ("oci://ghcr.io/tag@sha512:00", "64 hexadecimal"),
            (&*format!("oci://ghcr.io/tag@sha256:{digest}"), "64 hexadecimal"),
            (&*format!("oci://ghcr.io/tag@sha256:+{digest}"), "64 hexadecimal"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
