//! Verdicts that are remembered.
//!
//! An entry is `kind, end as u64 milliseconds little endian, caller`. Its key holds a digest, never the
//! API key: whoever can read shared data must not find keys there.

use plugin_kit::shared_data::{Expected, SharedData, WriteError};
use sha2::{Digest, Sha256};

use crate::{configuration::Configuration, verdict::Verdict};

const ACCEPTED: u8 = 1;
const UNKNOWN: u8 = 2;
const FORBIDDEN: u8 = 3;

/// Remembers verdicts in shared data.
#[derive(Debug)]
pub struct Cache<D> {
    data: D,
    /// Whom was asked for what: another configuration has other verdicts.
    prefix: Vec<u8>,
    accepted: u64,
    refused: u64,
}

impl<D: SharedData> Cache<D> {
    /// For the verdicts that `configuration` leads to.
    pub fn new(data: D, configuration: &Configuration) -> Self {
        let Configuration { service, path, header, caller_header, .. } = configuration;
        let prefix = format!("api-key {service} {path} {header} {caller_header} ");
        Self {
            data,
            prefix: prefix.into_bytes(),
            accepted: configuration.remember_accepted.milliseconds(),
            refused: configuration.remember_refused.milliseconds(),
        }
    }

    /// What is known of a key at `now`, in milliseconds.
    pub fn find(&self, key: &[u8], now: u64) -> Option<Verdict> {
        let (entry, _) = self.data.read(&self.place(key))?;
        decode(&entry, now)
    }

    /// Remembers what the service said at `now`.
    ///
    /// # Errors
    /// If the host has no room: nothing is lost but time.
    pub fn keep(&self, key: &[u8], verdict: &Verdict, now: u64) -> Result<(), WriteError> {
        let life = match verdict {
            Verdict::Accepted(_) => self.accepted,
            Verdict::Unknown | Verdict::Forbidden => self.refused,
        };
        let place = self.place(key);
        let entry = encode(verdict, now.saturating_add(life));
        self.data.write(&place, &entry, Expected::Anything)?;
        self.data.expire(&place, life);
        Ok(())
    }

    fn place(&self, key: &[u8]) -> Vec<u8> {
        let digest = Sha256::new().chain_update(&self.prefix).chain_update(key).finalize();
        [b"api-key ", &digest[..]].concat()
    }
}

fn encode(verdict: &Verdict, end: u64) -> Vec<u8> {
    let (kind, caller) = match verdict {
        Verdict::Accepted(caller) => (ACCEPTED, caller.as_deref().unwrap_or_default()),
        Verdict::Unknown => (UNKNOWN, ""),
        Verdict::Forbidden => (FORBIDDEN, ""),
    };
    [&[kind], &end.to_le_bytes()[..], caller.as_bytes()].concat()
}

fn decode(entry: &[u8], now: u64) -> Option<Verdict> {
    let (kind, rest) = entry.split_first()?;
    let (end, caller) = rest.split_first_chunk()?;
    if u64::from_le_bytes(*end) <= now {
        return None;
    }
    match *kind {
        ACCEPTED if caller.is_empty() => Some(Verdict::Accepted(None)),
        ACCEPTED => Some(Verdict::Accepted(Some(String::from_utf8(caller.to_vec()).ok()?))),
        UNKNOWN => Some(Verdict::Unknown),
        FORBIDDEN => Some(Verdict::Forbidden),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use plugin_kit::shared_data::InMemory;

    use super::*;

    fn cache() -> Cache<InMemory> {
        let text =
            br#"{"service":"user","path":"/keys","rememberAccepted":"1m","rememberRefused":"1s"}"#;
        Cache::new(InMemory::default(), &plugin_kit::configuration::parse(text).unwrap())
    }

    #[test]
    fn remembers_yes_longer_than_no() {
        let cache = cache();
        let yes = Verdict::Accepted(Some("ada".to_owned()));
        cache.keep(b"good", &yes, 1_000).unwrap();
        cache.keep(b"bad", &Verdict::Unknown, 1_000).unwrap();
        cache.keep(b"worse", &Verdict::Forbidden, 1_000).unwrap();
        assert_eq!(cache.find(b"good", 60_999), Some(yes));
        assert_eq!(cache.find(b"good", 61_000), None);
        assert_eq!(cache.find(b"bad", 1_999), Some(Verdict::Unknown));
        assert_eq!(cache.find(b"bad", 2_000), None);
        assert_eq!(cache.find(b"worse", 1_999), Some(Verdict::Forbidden));
        assert_eq!(cache.find(b"other", 1_999), None);
    }

    #[test]
    fn keys_are_not_kept() {
        let cache = cache();
        cache.keep(b"very-secret", &Verdict::Accepted(None), 0).unwrap();
        assert_eq!(cache.find(b"very-secret", 0), Some(Verdict::Accepted(None)));
        assert!(!format!("{cache:?}").contains(&format!("{:?}", b"very-secret")));
        assert!(!cache.place(b"very-secret").windows(11).any(|part| part == b"very-secret"));
    }

    #[test]
    fn what_others_wrote_is_not_believed() {
        let forever = u64::MAX.to_le_bytes();
        for entry in [&b""[..], &[ACCEPTED], &[ACCEPTED, 0, 0]] {
            assert_eq!(decode(entry, 0), None);
        }
        assert_eq!(decode(&[&[9], &forever[..]].concat(), 0), None);
        assert_eq!(decode(&[&[ACCEPTED], &forever[..], &[255]].concat(), 0), None);
    }

    #[test]
    fn a_full_store_is_told() {
        let cache = cache();
        cache.data.refuse(&[WriteError::Refused]);
        assert_eq!(cache.keep(b"k", &Verdict::Unknown, 0), Err(WriteError::Refused));
    }
}
