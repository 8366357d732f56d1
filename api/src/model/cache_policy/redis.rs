//! The second tier.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::{
    Path,
    invalid::Problems,
    model::{name::check_subdomain, range::Fields},
    spec::cache_policy as raw,
};

/// What takes longer than a second is slower than most origins.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(50);
/// Bytes.
const MAX_USERNAME: usize = 256;
/// Bytes; PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// A Redis that sidecars share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// `host:port`; an IPv6 address stands in brackets.
    pub address: String,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// `None`: Redis' default user.
    pub username: Option<String>,
    /// Where the password stands; an absolute path.
    pub password_file: Option<PathBuf>,
    /// How long a request waits for it.
    pub timeout: Duration,
}

pub(super) fn parse(at: Path<'_>, raw: raw::Redis, problems: &mut Problems) -> Redis {
    problems.take(&at.field("address"), check_address(&raw.address));
    if let Some(username) = &raw.username {
        let plain = username.chars().all(|letter| !letter.is_control() && letter != ' ');
        if !plain || !(1..=MAX_USERNAME).contains(&username.len()) {
            let message = format!("must have 1 to {MAX_USERNAME} bytes without spaces");
            problems.add(at.field("username"), message);
        }
        if raw.password_file.is_none() {
            problems.add(at.field("username"), "needs passwordFile; without it leave it out");
        }
    }
    let password_file = raw.password_file.map(PathBuf::from);
    if password_file.as_ref().is_some_and(|path| !is_file_name(path)) {
        problems.add(at.field("passwordFile"), "must be an absolute path, such as /etc/leno/redis");
    }
    let mut fields = Fields::new(at, problems);
    let timeout = fields.duration("timeout", raw.timeout.as_deref(), TIMEOUT, DEFAULT_TIMEOUT);
    let tls = raw.tls.unwrap_or_default();
    Redis { address: raw.address, tls, username: raw.username, password_file, timeout }
}

fn is_file_name(path: &std::path::Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute() && bytes.len() <= MAX_PATH && !bytes.contains(&0)
}

fn check_address(text: &str) -> Result<(), String> {
    let parts = text.rsplit_once(':');
    let good = parts.is_some_and(|(host, port)| is_host(host) && is_port(port));
    good.then_some(()).ok_or_else(|| {
        format!(
            "`{}` is not an address; write host:port, such as `redis.shop:6379`, without a scheme",
            text.escape_debug()
        )
    })
}

fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
        None => check_subdomain(host).is_ok(),
    }
}

fn is_port(port: &str) -> bool {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    digits && port.parse::<u16>().is_ok_and(|port| port > 0)
}
