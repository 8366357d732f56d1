//! Under what a response is kept: everything of a request that decides which stored responses may be its answer, beside
//! the fields that the responses themselves name in `Vary`. Pure.

use std::{fmt::Write as _, hash::BuildHasher as _, sync::Arc};

use http::{HeaderMap, HeaderValue, header};
use leno_api::model::cache_policy::{CacheKey, QueryKey};
use rustc_hash::FxBuildHasher;

/// Fields by which frameworks let callers say another path, host, scheme or method than the request has. Those origins
/// hardly ever name them in `Vary`; whoever sends one would decide what others get.
const ANOTHER_TARGET: [&str; 10] = [
    "x-forwarded-host",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];

/// Where the responses for a request stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The service's port with path and query, as far as the query counts: what a change at the origin makes void.
    pub shelf: Arc<str>,
    /// The rest: authority, cluster, and what the policy names.
    pub extra: Arc<[u8]>,
}

impl Key {
    /// For fetches on behalf of those who show credentials. Nothing is kept under it.
    pub fn for_credentials(&self) -> Self {
        let mut extra = self.extra.to_vec();
        part(&mut extra, b"credentials");
        Self { shelf: self.shelf.clone(), extra: extra.into() }
    }
}

/// What a key is made by: what was kept under other rules is not found under these.
#[derive(Clone, Debug)]
pub struct Parts {
    parts: CacheKey,
    digest: u64,
}

impl Parts {
    /// Of a policy.
    pub fn new(parts: CacheKey) -> Self {
        let digest = FxBuildHasher.hash_one(format!("{parts:?}"));
        Self { parts, digest }
    }

    /// What everything for this path and query has in common.
    pub fn shelf(&self, service: &str, target: &str) -> String {
        shelf(service, target, &self.parts.query)
    }
}

/// Of a request as the origin gets it. `service` is the port that callers address, `cluster` where the request goes:
/// versions of a service that share its traffic do not answer for one another.
pub fn of(
    service: &str,
    cluster: &str,
    authority: &str,
    target: &str,
    headers: &HeaderMap,
    Parts { parts, digest }: &Parts,
) -> Key {
    let mut extra = Vec::with_capacity(authority.len() + cluster.len() + 24);
    extra.extend_from_slice(&digest.to_be_bytes());
    part(&mut extra, usual(authority).to_ascii_lowercase().as_bytes());
    part(&mut extra, cluster.as_bytes());
    for (name, value) in headers.iter().filter(|(name, _)| is_another_target(name.as_str())) {
        part(&mut extra, name.as_str().as_bytes());
        part(&mut extra, value.as_bytes());
    }
    for name in &parts.headers {
        let values = headers.get_all(name);
        many(&mut extra, values.iter().map(HeaderValue::as_bytes));
    }
    for name in &parts.cookies {
        many(&mut extra, cookies(headers, name));
    }
    Key { shelf: shelf(service, target, &parts.query).into(), extra: extra.into() }
}

fn shelf(service: &str, target: &str, query: &QueryKey) -> String {
    let mut shelf = String::with_capacity(service.len() + target.len());
    shelf.push_str(service);
    match (target.split_once('?'), query) {
        (None, _) | (Some(_), QueryKey::All) => shelf.push_str(target),
        // Some read a semicolon as `&`: then nobody knows where a parameter begins, and one that is left out could hide
        // one that counts.
        (Some((_, query)), _) if query.contains(';') => shelf.push_str(target),
        (Some((path, query)), counts) => {
            shelf.push_str(path);
            let members = query.split('&').filter(|member| is_counted(member, counts));
            for (member, between) in members.zip(std::iter::once('?').chain(std::iter::repeat('&')))
            {
                // Writing to a string cannot fail.
                let _ = write!(shelf, "{between}{member}");
            }
        }
    }
    shelf
}

/// The service's port and the path with query of a shelf.
pub fn split(shelf: &str) -> (&str, &str) {
    // `shop/products:80/path`: the first slash ends the namespace.
    let port = shelf.find(':').unwrap_or_default();
    let path = shelf[port..].find('/').map_or(shelf.len(), |at| port + at);
    shelf.split_at(path)
}

/// A name may be written with escapes: it then counts under both spellings.
fn is_counted(member: &str, counts: &QueryKey) -> bool {
    let name = member.split('=').next().unwrap_or_default();
    let is_named = |names: &[String]| {
        names.iter().any(|known| {
            known == name || percent_encoding::percent_decode_str(name).eq(known.bytes())
        })
    };
    match counts {
        QueryKey::All => true,
        QueryKey::Only(names) => is_named(names),
        QueryKey::Except(names) => !is_named(names),
    }
}

/// With its length: whatever is inside, two lists of parts never look the same.
fn part(extra: &mut Vec<u8>, bytes: &[u8]) {
    extra.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    extra.extend_from_slice(bytes);
}

fn many<'a>(extra: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    let values: Vec<_> = values.collect();
    extra.extend_from_slice(&(values.len() as u64).to_be_bytes());
    values.into_iter().for_each(|value| part(extra, value));
}

/// RFC 6265 section 4.2.1; over HTTP/2 there are several fields.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter();
    let pairs = pairs.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let known = halves.next()?.trim_ascii() == name.as_bytes();
        known.then(|| halves.next().unwrap_or_default().trim_ascii())
    })
}

/// Whether an origin's framework may take what a request has in this field for its path, host or method.
fn is_another_target(name: &str) -> bool {
    // The first look is for all the others.
    name.starts_with("x-") && ANOTHER_TARGET.contains(&name)
}

/// Without the port that every URL of its scheme has.
fn usual(authority: &str) -> &str {
    authority.strip_suffix(":80").unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::policy::fixtures::headers as fields;

    fn parts(headers: &[&'static str], cookies: &[&str], query: QueryKey) -> Parts {
        Parts::new(CacheKey {
            headers: headers.iter().map(|name| http::HeaderName::from_static(name)).collect(),
            cookies: cookies.iter().map(|name| (*name).to_owned()).collect(),
            query,
        })
    }

    #[test]
    fn queries_count_as_the_policy_says() {
        let only = QueryKey::Only(vec!["id".into(), "q r".into()]);
        let except = QueryKey::Except(vec!["utm_source".into()]);
        for (target, query, expected) in [
            ("/a?x=1&id=2", QueryKey::All, "s:80/a?x=1&id=2"),
            ("/a?x=1&id=2&id=3&id", only.clone(), "s:80/a?id=2&id=3&id"),
            ("/a?q%20r=1&%69d=2&idx=3", only.clone(), "s:80/a?q%20r=1&%69d=2"),
            ("/a?x=1", only.clone(), "s:80/a"),
            ("/a?x=1;id=1", only.clone(), "s:80/a?x=1;id=1"),
            ("/a", only, "s:80/a"),
            ("/a?utm_source=1&b=2", except.clone(), "s:80/a?b=2"),
            ("/a?utm_source=1", except.clone(), "s:80/a"),
            ("/a?utm_source=1;id=2&b=2", except, "s:80/a?utm_source=1;id=2&b=2"),
            ("/a?", QueryKey::All, "s:80/a?"),
        ] {
            assert_eq!(shelf("s:80", target, &query), expected, "{target}");
        }
    }

    #[test]
    fn hosts_clusters_headers_and_cookies_keep_responses_apart() {
        let parts = parts(&["x-tenant"], &["lang"], QueryKey::All);
        let of = |cluster: &str, host: &str, headers: &[(&'static str, &str)]| {
            of("shop/p:80", cluster, host, "/a", &fields(headers), &parts)
        };
        let plain = of("c", "p.shop", &[]);
        assert_eq!(plain, of("c", "P.Shop:80", &[("x-other", "1"), ("cookie", "b=1; langs=de")]));
        for other in [
            of("d", "p.shop", &[]),
            of("c", "p", &[]),
            of("c", "p.shop:8080", &[]),
            of("c", "p.shop", &[("x-tenant", "")]),
            of("c", "p.shop", &[("x-tenant", "a")]),
            of("c", "p.shop", &[("x-tenant", "a"), ("x-tenant", "b")]),
            of("c", "p.shop", &[("cookie", "a=1; lang=de")]),
            of("c", "p.shop", &[("cookie", "lang")]),
            of("c", "p.shop", &[("x-forwarded-host", "evil")]),
            of("c", "p.shop", &[("x-original-url", "/evil")]),
            of("c", "p.shop", &[("x-http-method-override", "DELETE")]),
        ] {
            assert_eq!(plain.shelf, other.shelf);
            assert_ne!(plain.extra, other.extra);
        }
    }

    #[test]
    fn what_was_kept_under_other_rules_is_not_found() {
        let of = |parts: Parts| {
            of("s:80", "c", "h", "/a", &fields(&[("x-a", "1"), ("x-b", "1")]), &parts).extra
        };
        let one = of(parts(&["x-a"], &[], QueryKey::All));
        assert_eq!(one, of(parts(&["x-a"], &[], QueryKey::All)));
        assert_ne!(one, of(parts(&["x-b"], &[], QueryKey::All)));
        assert_ne!(one, of(parts(&["x-a"], &[], QueryKey::Only(Vec::new()))));
    }

    #[test]
    fn shelves_know_their_service_and_path() {
        assert_eq!(split("shop/p:80/a/b?c"), ("shop/p:80", "/a/b?c"));
        assert_eq!(split("shop/p:80"), ("shop/p:80", ""));
        assert_eq!(split("/a:b/c"), ("/a:b", "/c"));
    }

    proptest! {
        #[test]
        fn no_two_requests_that_differ_in_a_part_share_a_key(
            one in prop::collection::vec("[a-c]{0,3}", 0..3),
            other in prop::collection::vec("[a-c]{0,3}", 0..3),
        ) {
            let parts = parts(&["x-a", "x-b"], &[], QueryKey::All);
            let key = |values: &[String]| {
                let mut headers = HeaderMap::new();
                for (at, value) in values.iter().enumerate() {
                    let name = if at % 2 == 0 { "x-a" } else { "x-b" };
                    headers.append(name, value.parse().unwrap());
                }
                super::of("s:80", "c", "h", "/", &headers, &parts)
            };
            prop_assert_eq!(one == other, key(&one) == key(&other));
        }
    }
}
