//! Which endpoint gets the next request.

use std::{ops::RangeInclusive, time::Duration};

use http::HeaderName;

use crate::{
    Path,
    invalid::Problems,
    model::{matching::parse_header_name, range::Fields},
    spec::traffic_policy as raw,
};

/// More keys than this would be a program.
const MAX_KEYS: usize = 8;
/// Bytes of a name: of a query parameter, a cookie.
const MAX_NAME: usize = 256;
/// A year, which is what browsers keep at most.
const MAX_TTL: Duration = Duration::from_secs(8760 * 3600);
/// A shorter average is noise, a longer one does not follow an endpoint that recovers.
const DECAY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// Fewer points than 64 are too uneven; a million take 16 MB per cluster.
const RING: RangeInclusive<u32> = 64..=1 << 20;
/// At exactly the average there is no room to keep a key where it is.
const BOUND: RangeInclusive<u32> = 101..=1000;
const RAMP: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Which endpoint gets the next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// The cheaper of two chosen at random: cost is latency times load, by weight.
    PeakEwma {
        /// Time constant of the average of latencies.
        decay: Duration,
    },
    /// The less busy of two chosen at random, by weight.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// By a ring of hashes.
    RingHash {
        /// What the key is made of, in order of preference; at least one.
        keys: Vec<HashKey>,
        /// Points on the ring, at least.
        minimum_size: u32,
    },
    /// By Maglev's table.
    Maglev {
        /// What the key is made of, in order of preference; at least one.
        keys: Vec<HashKey>,
    },
}

/// What decides which endpoint a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The address of the connection's peer.
    SourceIp,
    /// The value of a query parameter.
    Query(String),
}

/// A cookie that keeps a user at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// The proxy sets it where it is missing, for this long; `ZERO` is the session. `None`: it does not.
    pub ttl: Option<Duration>,
    /// Its `Path` where the proxy sets it.
    pub path: String,
}

/// How much more than its share an endpoint takes before its keys go to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundedLoad {
    /// Of the average load; more than 100.
    pub percent: u32,
}

/// Endpoints by zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zones {
    /// Whether endpoints in the caller's zone go first.
    pub prefer: bool,
    /// Below this share of healthy endpoints the zone sends a part elsewhere.
    pub minimum_healthy_percent: u8,
}

/// How new and returning endpoints come up to their share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// Until they have all of it; more than zero.
    pub window: Duration,
    /// What they begin with, 1 to 100; 100 is no slow start.
    pub minimum_percent: u8,
}

impl Balancer {
    /// As people write it: `peakEwma`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PeakEwma { .. } => "peakEwma",
            Self::LeastRequest => "leastRequest",
            Self::RoundRobin => "roundRobin",
            Self::Random => "random",
            Self::RingHash { .. } => "ringHash",
            Self::Maglev { .. } => "maglev",
        }
    }

    /// What it hashes; empty where it does not.
    pub fn keys(&self) -> &[HashKey] {
        match self {
            Self::RingHash { keys, .. } | Self::Maglev { keys } => keys,
            Self::PeakEwma { .. } | Self::LeastRequest | Self::RoundRobin | Self::Random => &[],
        }
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Self::PeakEwma { decay: Duration::from_secs(10) }
    }
}

impl Default for BoundedLoad {
    fn default() -> Self {
        Self { percent: 125 }
    }
}

impl Default for Zones {
    fn default() -> Self {
        Self { prefer: true, minimum_healthy_percent: 70 }
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { window: Duration::from_secs(30), minimum_percent: 10 }
    }
}

pub(super) fn parse_balancer(
    at: Path<'_>,
    raw: raw::Balancer,
    problems: &mut Problems,
) -> Balancer {
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[
        ("peakEwma", raw.peak_ewma.is_some()),
        ("leastRequest", raw.least_request.is_some()),
        ("roundRobin", raw.round_robin.is_some()),
        ("random", raw.random.is_some()),
        ("ringHash", raw.ring_hash.is_some()),
        ("maglev", raw.maglev.is_some()),
    ]);
    if let Some(ring) = raw.ring_hash {
        let at = at.field("ringHash");
        let keys = parse_keys(&at, ring.hash_on, problems);
        let mut fields = Fields::new(at, problems);
        let minimum_size = fields.number("minimumSize", ring.minimum_size, RING, 1024);
        Balancer::RingHash { keys, minimum_size }
    } else if let Some(maglev) = raw.maglev {
        Balancer::Maglev { keys: parse_keys(&at.field("maglev"), maglev.hash_on, problems) }
    } else if raw.least_request.is_some() {
        Balancer::LeastRequest
    } else if raw.round_robin.is_some() {
        Balancer::RoundRobin
    } else if raw.random.is_some() {
        Balancer::Random
    } else {
        let decay = raw.peak_ewma.and_then(|ewma| ewma.decay);
        let mut fields = Fields::new(at.field("peakEwma"), problems);
        let decay = fields.duration("decay", decay.as_deref(), DECAY, Duration::from_secs(10));
        Balancer::PeakEwma { decay }
    }
}

/// `balancer` has been read before: without a hash there is nothing to bound.
pub(super) fn parse_bounded_load(
    at: Path<'_>,
    raw: Option<raw::BoundedLoad>,
    balancer: &Balancer,
    problems: &mut Problems,
) -> BoundedLoad {
    let default = BoundedLoad::default();
    let Some(raw) = raw else { return default };
    if balancer.keys().is_empty() {
        problems.add(at, "has an effect only beside balancer.ringHash or balancer.maglev");
    }
    let mut fields = Fields::new(at, problems);
    BoundedLoad { percent: fields.number("percent", raw.percent, BOUND, default.percent) }
}

pub(super) fn parse_zones(at: Path<'_>, raw: Option<raw::Zones>, problems: &mut Problems) -> Zones {
    let default = Zones::default();
    let Some(raw) = raw else { return default };
    let field = "minimumHealthyPercent";
    let least = raw.minimum_healthy_percent;
    let minimum_healthy_percent =
        Fields::new(at, problems).number(field, least, 1..=100, default.minimum_healthy_percent);
    Zones { prefer: raw.prefer.unwrap_or(default.prefer), minimum_healthy_percent }
}

pub(super) fn parse_slow_start(
    at: Path<'_>,
    raw: Option<raw::SlowStart>,
    problems: &mut Problems,
) -> SlowStart {
    let default = SlowStart::default();
    let Some(raw) = raw else { return default };
    let mut fields = Fields::new(at, problems);
    let least = raw.minimum_percent;
    SlowStart {
        window: fields.duration("window", raw.window.as_deref(), RAMP, default.window),
        minimum_percent: fields.number("minimumPercent", least, 1..=100, default.minimum_percent),
    }
}

fn parse_keys(at: &Path<'_>, raw: Vec<raw::HashOn>, problems: &mut Problems) -> Vec<HashKey> {
    Fields::new(*at, problems).count("hashOn", raw.len(), 1..=MAX_KEYS);
    let here = at.field("hashOn");
    let keys = raw.into_iter().enumerate();
    keys.filter_map(|(i, raw)| parse_key(here.index(i), raw, problems)).collect()
}

fn parse_key(at: Path<'_>, raw: raw::HashOn, problems: &mut Problems) -> Option<HashKey> {
    Fields::new(at, problems).exactly_one(&[
        ("header", raw.header.is_some()),
        ("cookie", raw.cookie.is_some()),
        ("sourceIp", raw.source_ip.is_some()),
        ("query", raw.query.is_some()),
    ]);
    if let Some(header) = raw.header {
        let here = at.field("header");
        parse_header_name(&here.field("name"), &header.name, problems).map(HashKey::Header)
    } else if let Some(cookie) = raw.cookie {
        parse_cookie(at.field("cookie"), cookie, problems).map(HashKey::Cookie)
    } else if let Some(query) = raw.query {
        let good = (1..=MAX_NAME).contains(&query.name.len());
        let name = good.then_some(query.name).ok_or("must have 1 to 256 bytes");
        problems.take(&at.field("query").field("name"), name).map(HashKey::Query)
    } else {
        raw.source_ip.map(|_| HashKey::SourceIp)
    }
}

fn parse_cookie(at: Path<'_>, raw: raw::HashCookie, problems: &mut Problems) -> Option<HashCookie> {
    // A cookie's name is a token (RFC 6265 section 4.1.1), as a header's is, but its case counts.
    let token = raw.name.len() <= MAX_NAME && HeaderName::from_bytes(raw.name.as_bytes()).is_ok();
    if !token {
        problems.add(at.field("name"), "must be letters, digits and !#$%&'*+-.^_`|~");
    }
    if raw.path.is_some() && raw.ttl.is_none() {
        problems.add(at.field("path"), "needs ttl: without it the proxy does not set the cookie");
    }
    let path = raw.path.unwrap_or_else(|| "/".to_owned());
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';');
    if !path.starts_with('/') || !plain || path.len() > MAX_NAME {
        problems.add(at.field("path"), "must begin with `/`, and have no `;` and no blanks");
    }
    let ttl = raw.ttl.map(|ttl| {
        let range = Duration::ZERO..=MAX_TTL;
        Fields::new(at, problems).duration("ttl", Some(&ttl), range, Duration::ZERO)
    });
    token.then_some(HashCookie { name: raw.name, ttl, path })
}
