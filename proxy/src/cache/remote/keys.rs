//! Under what responses are in Redis. Pure.
//!
//! Everything of a policy begins with `leno:cache:1:{shop/catalogue}:<digest>:`, where 1 is the version of this layout and
//! the digest that of the policy's time of creation (two meshes with policies of the same name may share a Redis) and of
//! the parts of requests that it counts. Behind it stands `e:` and a service for an epoch, `s:` and a digest of port, path
//! and query for a hash with all responses to them.

use std::fmt::Write as _;

use leno_api::model::cache_policy::{CachePolicy, QueryKey};
use sha2::{Digest as _, Sha256};

use super::services;
use crate::cache::key::Key;

/// Bytes of a digest that only has to be different.
const SHORT: usize = 16;

/// Where a policy's keys begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// Those for one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfShelf {
    /// Of everything, the service, its port.
    pub epochs: [String; 3],
    /// The hash.
    pub shelf: String,
}

/// Which response: all that is in its key, and what selected it.
pub type Digest = [u8; 32];

impl Keys {
    /// Of a policy.
    pub fn new(policy: &CachePolicy) -> Self {
        let mut hash = Sha256::new();
        part(&mut hash, policy.created.as_bytes());
        let headers: Vec<_> = policy.key.headers.iter().map(|name| name.as_str()).collect();
        parts(&mut hash, &headers);
        parts(&mut hash, &policy.key.cookies);
        match &policy.key.query {
            QueryKey::All => part(&mut hash, b"all"),
            QueryKey::Only(names) => {
                part(&mut hash, b"only");
                parts(&mut hash, names);
            }
            QueryKey::Except(names) => {
                part(&mut hash, b"except");
                parts(&mut hash, names);
            }
        }
        let digest = hex(&hash.finalize()[..SHORT / 2]);
        Self { prefix: format!("leno:cache:1:{{{}}}:{digest}:", policy.name) }
    }

    /// For a path of a port.
    pub fn of(&self, shelf: &str) -> OfShelf {
        let (service, port) = services(shelf);
        let epochs = ["", service, port].map(|name| self.epoch(name));
        OfShelf { epochs, shelf: self.shelf(shelf) }
    }

    /// The epoch of a service, with or without its port; empty: of everything.
    pub fn epoch(&self, service: &str) -> String {
        format!("{}e:{service}", self.prefix)
    }

    /// The hash with all responses for a path.
    pub fn shelf(&self, shelf: &str) -> String {
        format!("{}s:{}", self.prefix, hex(&Sha256::digest(shelf)))
    }
}

/// What makes a response this one and no other; its field is named by it, and its checksum contains it.
pub fn digest(key: &Key, selection: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    part(&mut hash, key.shelf.as_bytes());
    part(&mut hash, &key.extra);
    part(&mut hash, selection);
    hash.finalize().into()
}

/// The field that names what responses vary by.
pub fn names_field(key: &Key) -> Vec<u8> {
    let digest = Sha256::digest(&key.extra);
    [&b"n"[..], &digest[..SHORT]].concat()
}

/// The field of a response.
pub fn entry_field(digest: &Digest) -> Vec<u8> {
    [&b"v"[..], &digest[..SHORT]].concat()
}

/// With its length: two lists of parts never look the same.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn parts(hash: &mut Sha256, all: &[impl AsRef<str>]) {
    hash.update((all.len() as u64).to_be_bytes());
    all.iter().for_each(|one| part(hash, one.as_ref().as_bytes()));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::remote::tests::policy;

    #[test]
    fn what_differs_has_another_key() {
        let base = policy();
        let keys = Keys::new(&base);
        let mut others = vec![base.clone(); 5];
        others[0].created = "2026-01-01T00:00:00Z".to_owned();
        others[1].key.cookies = vec!["a".to_owned()];
        others[2].key.query = QueryKey::Only(vec!["a".to_owned()]);
        others[3].key.query = QueryKey::Except(vec!["a".to_owned()]);
        others[4].name.name = "other".into();
        for other in &others {
            assert_ne!(Keys::new(other), keys);
        }
        let mut same = base;
        same.default_ttl = None;
        same.max_bytes += 1;
        assert_eq!(Keys::new(&same), keys);
        let [all, service, port] = keys.of("shop/p:80/a?b").epochs;
        assert!(all.ends_with(":e:") && service.ends_with(":e:shop/p"), "{all} {service}");
        assert!(port.ends_with(":e:shop/p:80") && port.starts_with("leno:cache:1:{"), "{port}");
        assert_ne!(keys.shelf("shop/p:80/a"), keys.shelf("shop/p:80/b"));
    }

    #[test]
    fn a_digest_is_of_all_parts() {
        let key = |shelf: &str, extra: &[u8]| Key { shelf: shelf.into(), extra: extra.into() };
        let base = digest(&key("ab", b"c"), b"d");
        for (other, selection) in
            [(key("a", b"bc"), &b"d"[..]), (key("ab", b"cd"), b""), (key("ab", b"c"), b"")]
        {
            assert_ne!(digest(&other, selection), base);
        }
        assert_ne!(names_field(&key("a", b"b"))[1..], entry_field(&base)[1..]);
    }
}
