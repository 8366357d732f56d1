//! How endpoints are asked how they are.

use std::{ops::RangeInclusive, time::Duration};

use http::uri::{Authority, PathAndQuery};

use crate::{
    Path,
    invalid::Problems,
    model::{backend::port_number, range::Fields, traffic_policy::retry::MAX_STATUSES},
    spec::traffic_policy as raw,
};

/// Faster would be traffic rather than a check.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const MAX_IN_A_ROW: u32 = 100;
const STATUSES: RangeInclusive<u16> = 100..=599;
/// Bytes of a path, a host, a service's name.
const MAX_TEXT: usize = 1024;

/// How every endpoint is asked how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// How.
    pub probe: Probe,
    /// How often; more than zero.
    pub interval: Duration,
    /// After which time without an answer it has failed; not more than `interval`.
    pub timeout: Duration,
    /// Good answers in a row after which an unhealthy endpoint is healthy; at least 1.
    pub healthy: u32,
    /// Failures in a row after which a healthy endpoint is unhealthy; at least 1.
    pub unhealthy: u32,
    /// Another port of the endpoint than that for requests.
    pub port: Option<u16>,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// `GET` of a path.
    Http {
        /// Path and query.
        path: PathAndQuery,
        /// `Host`; `None` is the service's name.
        host: Option<Authority>,
        /// Good answers, sorted; 200 to 299 when empty.
        statuses: Vec<u16>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Which service; empty is the server as a whole.
        service: String,
    },
    /// Whether it takes a connection.
    #[default]
    Tcp,
}

impl Probe {
    /// Whether an answer with `status` is a good one. Only HTTP has statuses.
    pub fn accepts(&self, status: u16) -> bool {
        match self {
            Self::Http { statuses, .. } if !statuses.is_empty() => statuses.contains(&status),
            Self::Http { .. } | Self::Grpc { .. } | Self::Tcp => (200..300).contains(&status),
        }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::default(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
            port: None,
        }
    }
}

pub(super) fn parse_health_check(
    at: Path<'_>,
    raw: raw::HealthCheck,
    problems: &mut Problems,
) -> HealthCheck {
    let default = HealthCheck::default();
    let port = raw.port.and_then(|port| port_number(&at.field("port"), port, problems));
    let mut fields = Fields::new(at, problems);
    fields.exactly_one(&[
        ("http", raw.http.is_some()),
        ("grpc", raw.grpc.is_some()),
        ("tcp", raw.tcp.is_some()),
    ]);
    let interval = raw.interval.as_deref();
    let interval = fields.duration("interval", interval, INTERVAL, default.interval);
    let range = SHORTEST_TIMEOUT..=interval;
    let timeout = fields.duration("timeout", raw.timeout.as_deref(), range, default.timeout);
    let in_a_row = 1..=MAX_IN_A_ROW;
    let healthy = fields.number("healthy", raw.healthy, in_a_row.clone(), default.healthy);
    let unhealthy = fields.number("unhealthy", raw.unhealthy, in_a_row, default.unhealthy);
    let probe = match (raw.http, raw.grpc) {
        (Some(http), _) => parse_http(at.field("http"), http, problems).unwrap_or_default(),
        (None, Some(grpc)) => {
            let service = grpc.service.unwrap_or_default();
            if service.len() > MAX_TEXT || service.chars().any(char::is_control) {
                let here = at.field("grpc");
                problems.add(
                    here.field("service"),
                    "must be the name of a service: at most 1024 bytes",
                );
            }
            Probe::Grpc { service }
        }
        (None, None) => Probe::Tcp,
    };
    HealthCheck { probe, interval, timeout, healthy, unhealthy, port }
}

fn parse_http(at: Path<'_>, raw: raw::HttpHealthCheck, problems: &mut Problems) -> Option<Probe> {
    let statuses =
        Fields::new(at, problems).numbers("statuses", raw.statuses, 1..=MAX_STATUSES, STATUSES);
    let host = raw.host.and_then(|host| {
        let read = host.parse::<Authority>().ok().filter(|read| !read.as_str().contains('@'));
        let message = "must be a host, with a port if need be: orders.example:8080";
        problems.take(&at.field("host"), read.ok_or(message))
    });
    // Without the slash it would be read as the form for CONNECT.
    let path = Some(&raw.path).filter(|path| path.starts_with('/') && path.len() <= MAX_TEXT);
    let path = path.and_then(|path| path.parse::<PathAndQuery>().ok());
    let message = "must be a path such as /healthz, without blanks and of at most 1024 bytes";
    let path = problems.take(&at.field("path"), path.ok_or(message))?;
    Some(Probe::Http { path, host, statuses })
}
