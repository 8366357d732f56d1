//! Properties that do not follow from headers, under the paths that Envoy documents: the newer `xds.` ones and the
//! older flat ones, since plugins for both are about.

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::Version;
use leno_wasm_host::{Status, pairs};

use super::state::{Facts, Node, Outcome, State};
use crate::telemetry::record::Direction;

/// What sidecars speak among themselves; they offer and take no other.
const TLS_VERSION: &[u8] = b"TLSv1.3";

type Value<'a> = Result<Cow<'a, [u8]>, Status>;

/// Envoy's `TrafficDirection`.
const INBOUND: i64 = 1;
const OUTBOUND: i64 = 2;
/// Bits of Envoy's `CoreResponseFlag` for the letters of the access log. It has none for who may not do something, nor for
/// plugins that fail.
const FLAGS: [(&str, u32); 14] = [
    ("UH", 1),
    ("UT", 2),
    ("UF", 5),
    ("UC", 6),
    ("UO", 7),
    ("NR", 8),
    ("DI", 9),
    ("FI", 10),
    ("RL", 11),
    ("DC", 14),
    ("DPE", 18),
    ("DT", 22),
    ("UPE", 23),
    ("NC", 24),
];

/// A property of an exchange or connection.
pub(super) fn of_stream<'a>(state: &'a State, path: &[u8]) -> Value<'a> {
    let mut segments = path.splitn(3, |byte| *byte == 0);
    let first = segments.next().unwrap_or_default();
    let (second, third) = (segments.next(), segments.next());
    let facts = state.facts.as_deref().ok_or(Status::NotFound)?;
    let outcome = state.outcome.get().map(|outcome| &**outcome);
    let found = match (first, second, third) {
        (b"request", Some(member), None) => request(state, facts, member),
        (b"response", Some(member), None) => response(outcome, member),
        (b"source", Some(member), None) => address(Some(facts.source), member),
        (b"destination", Some(member), None) => address(facts.destination, member),
        (b"connection", Some(member), None) => connection(facts, member),
        (b"connection_id", None, None) => connection(facts, b"id"),
        (b"upstream", Some(member), None) => upstream(outcome, member),
        (b"xds", Some(member), None) => surroundings(facts, outcome, member),
        (b"cluster_name" | b"route_name" | b"listener_direction", None, None) => {
            surroundings(facts, outcome, first)
        }
        // Values of plugins are found under both names.
        (b"wasm", Some(_), _) => state.kept(path.get(5..).unwrap_or_default()).map(Cow::Owned),
        (b"filter_state", Some(_), _) => {
            let name = path.get(b"filter_state\0".len()..).unwrap_or_default();
            let name = name.strip_prefix(b"wasm.").unwrap_or(name);
            state.kept(name).map(Cow::Owned)
        }
        _ => None,
    };
    match found.or_else(|| state.kept(path).map(Cow::Owned)) {
        Some(found) => Ok(found),
        None => of_node(&facts.node, path),
    }
}

/// A property that is the same for every stream.
pub(super) fn of_node<'a>(node: &'a Node, path: &[u8]) -> Value<'a> {
    let path = path.strip_prefix(b"xds\0").unwrap_or(path);
    let mut segments = path.split(|byte| *byte == 0);
    if segments.next() != Some(&b"node"[..]) {
        return Err(Status::NotFound);
    }
    let text = |text: &'a str| Ok(Cow::Borrowed(text.as_bytes()));
    match (segments.next(), segments.next()) {
        (None, _) => Err(Status::SerializationFailure),
        (Some(b"id"), None) => {
            Ok(Cow::Owned(format!("{}.{}", node.workload, node.namespace).into_bytes()))
        }
        (Some(b"cluster"), None) => text(&node.workload),
        (Some(b"metadata"), None) => {
            let metadata = [
                ("NAME", &node.workload),
                ("NAMESPACE", &node.namespace),
                ("WORKLOAD_NAME", &node.workload),
            ];
            let pairs = metadata.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            Ok(Cow::Owned(pairs::encode(pairs)))
        }
        (Some(b"metadata"), Some(b"NAME" | b"WORKLOAD_NAME")) => text(&node.workload),
        (Some(b"metadata"), Some(b"NAMESPACE")) => text(&node.namespace),
        (Some(b"metadata"), Some(b"LABELS")) => {
            let labels = [(&b"version"[..], node.version.as_bytes())];
            Ok(Cow::Owned(pairs::encode(labels)))
        }
        _ => Err(Status::NotFound),
    }
}

fn request<'a>(state: &State, facts: &Facts, member: &[u8]) -> Option<Cow<'a, [u8]>> {
    let bytes = || state.outcome.get().map_or(0, |outcome| outcome.request_bytes);
    match member {
        b"time" => {
            let began = SystemTime::now().checked_sub(facts.started.elapsed())?;
            Some(time(began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()))
        }
        b"protocol" => Some(Cow::Borrowed(match facts.version? {
            Version::HTTP_10 => b"HTTP/1.0",
            Version::HTTP_2 => b"HTTP/2",
            _ => b"HTTP/1.1",
        })),
        b"size" => Some(number(bytes())),
        b"total_size" => {
            let mut size = bytes();
            if let Some(head) = state.request.get() {
                head.visit(&mut |name, value| size += (name.len() + value.len()) as u64);
            }
            Some(number(size))
        }
        b"duration" => Some(time(state.outcome.get()?.duration)),
        _ => None,
    }
}

fn response<'a>(outcome: Option<&Outcome>, member: &[u8]) -> Option<Cow<'a, [u8]>> {
    match member {
        b"flags" => {
            let flag = outcome.map_or("-", |outcome| outcome.flag);
            let bit = FLAGS.iter().find(|(letters, _)| *letters == flag);
            Some(number(bit.map_or(0, |(_, bit)| 1 << bit)))
        }
        b"size" | b"total_size" => {
            Some(number(outcome.map_or(0, |outcome| outcome.response_bytes)))
        }
        b"code" => Some(number(outcome?.status.into())),
        b"code_details" => {
            let outcome = outcome?;
            let detail = outcome.detail.clone().unwrap_or_else(|| "via_upstream".to_owned());
            Some(Cow::Owned(detail.into_bytes()))
        }
        b"grpc_status" => Some(number(outcome?.grpc_status?.into())),
        _ => None,
    }
}

fn address<'a>(of: Option<SocketAddr>, member: &[u8]) -> Option<Cow<'a, [u8]>> {
    let of = of?;
    match member {
        b"address" => Some(Cow::Owned(of.to_string().into_bytes())),
        b"port" => Some(number(of.port().into())),
        _ => None,
    }
}

fn connection<'a>(facts: &'a Facts, member: &[u8]) -> Option<Cow<'a, [u8]>> {
    let text = |text: &'a str| Some(Cow::Borrowed(text.as_bytes()));
    match member {
        b"id" => Some(number(facts.connection)),
        b"mtls" => Some(Cow::Owned(vec![u8::from(facts.proven.is_some())])),
        b"tls_version" => facts.proven.is_some().then_some(Cow::Borrowed(TLS_VERSION)),
        b"requested_server_name" => text(facts.server_name.as_deref()?),
        b"uri_san_peer_certificate" => text(&facts.proven.as_ref()?.0),
        b"uri_san_local_certificate" => text(&facts.proven.as_ref()?.1),
        _ => None,
    }
}

fn upstream<'a>(outcome: Option<&Outcome>, member: &[u8]) -> Option<Cow<'a, [u8]>> {
    match member {
        b"request_attempt_count" => {
            Some(number(outcome.map_or(0, |outcome| outcome.attempts).into()))
        }
        member => address(outcome?.upstream, member),
    }
}

fn surroundings<'a>(
    facts: &'a Facts,
    outcome: Option<&'a Outcome>,
    member: &[u8],
) -> Option<Cow<'a, [u8]>> {
    let text = |text: &'a str| Some(Cow::Borrowed(text.as_bytes()));
    match member {
        b"cluster_name" => {
            let chosen = outcome.and_then(|outcome| outcome.cluster.as_deref());
            text(chosen.unwrap_or(&facts.port))
        }
        b"route_name" => text(outcome.and_then(|outcome| outcome.route.as_deref()).unwrap_or("")),
        b"virtual_host_name" => text(&facts.port),
        b"listener_direction" => Some(Cow::Owned(
            match facts.direction {
                Direction::Inbound => INBOUND,
                Direction::Outbound => OUTBOUND,
            }
            .to_le_bytes()
            .to_vec(),
        )),
        _ => None,
    }
}

fn number<'a>(number: u64) -> Cow<'a, [u8]> {
    Cow::Owned(i64::try_from(number).unwrap_or(i64::MAX).to_le_bytes().to_vec())
}

fn time<'a>(time: Duration) -> Cow<'a, [u8]> {
    number(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use super::*;

    fn state() -> State {
        let node =
            Node { namespace: "shop".into(), workload: "orders-1".into(), version: "v2".into() };
        let facts = Facts {
            started: Instant::now(),
            direction: Direction::Inbound,
            connection: 7,
            source: SocketAddr::from(([127, 0, 0, 1], 4000)),
            destination: None,
            proven: Some(("spiffe://mesh/caller".into(), "spiffe://mesh/own".into())),
            server_name: Some("80.orders.shop.leno".into()),
            version: Some(Version::HTTP_2),
            request_id: None,
            port: "shop/orders:80".into(),
            node: Arc::new(node),
        };
        State::new(Some(Box::new(facts)), 1)
    }

    fn asked(state: &State, path: &str) -> Result<Vec<u8>, Status> {
        of_stream(state, path.replace('.', "\0").as_bytes()).map(Cow::into_owned)
    }

    #[test]
    fn the_newer_and_the_older_paths_are_answered() {
        let state = state();
        let number = |number: i64| number.to_le_bytes().to_vec();
        for (path, expected) in [
            ("source.address", b"127.0.0.1:4000".to_vec()),
            ("source.port", number(4000)),
            ("connection.id", number(7)),
            ("connection_id", number(7)),
            ("connection.mtls", vec![1]),
            ("connection.tls_version", b"TLSv1.3".to_vec()),
            ("connection.requested_server_name", b"80.orders.shop.leno".to_vec()),
            ("connection.uri_san_peer_certificate", b"spiffe://mesh/caller".to_vec()),
            ("connection.uri_san_local_certificate", b"spiffe://mesh/own".to_vec()),
            ("request.protocol", b"HTTP/2".to_vec()),
            ("request.size", number(0)),
            ("response.flags", number(0)),
            ("xds.cluster_name", b"shop/orders:80".to_vec()),
            ("cluster_name", b"shop/orders:80".to_vec()),
            ("xds.listener_direction", number(1)),
            ("listener_direction", number(1)),
            ("node.id", b"orders-1.shop".to_vec()),
            ("xds.node.id", b"orders-1.shop".to_vec()),
            ("node.metadata.NAMESPACE", b"shop".to_vec()),
        ] {
            assert_eq!(asked(&state, path), Ok(expected), "{path}");
        }
        for path in
            ["response.code", "upstream.address", "destination.address", "no_such", "xds.no"]
        {
            assert_eq!(asked(&state, path), Err(Status::NotFound), "{path}");
        }
        assert_eq!(asked(&state, "node"), Err(Status::SerializationFailure));
    }

    #[test]
    fn what_became_of_an_exchange_is_known_at_its_end() {
        let state = state();
        let outcome = Outcome {
            status: 503,
            flag: "UH",
            upstream: Some(SocketAddr::from(([10, 0, 0, 1], 80))),
            route: Some("HTTPRoute shop/orders".into()),
            duration: Duration::from_nanos(5),
            ..Outcome::default()
        };
        state.outcome.set(Box::new(outcome)).unwrap();
        let number = |number: i64| number.to_le_bytes().to_vec();
        for (path, expected) in [
            ("response.code", number(503)),
            ("response.flags", number(2)),
            ("request.duration", number(5)),
            ("upstream.address", b"10.0.0.1:80".to_vec()),
            ("xds.route_name", b"HTTPRoute shop/orders".to_vec()),
        ] {
            assert_eq!(asked(&state, path), Ok(expected), "{path}");
        }
    }

    /// Numbers as in Envoy's `stream_info.h`, counted from `FailedLocalHealthCheck`.
    #[test]
    fn flags_are_those_of_envoy() {
        for (flag, bit) in [
            ("-", None),
            ("UH", Some(1)),
            ("UC", Some(6)),
            ("RL", Some(11)),
            ("DC", Some(14)),
            ("DPE", Some(18)),
            ("UPE", Some(23)),
            ("NC", Some(24)),
            ("WF", None),
        ] {
            let state = state();
            state.outcome.set(Box::new(Outcome { flag, ..Outcome::default() })).unwrap();
            let expected = bit.map_or(0, |bit| 1_i64 << bit).to_le_bytes().to_vec();
            assert_eq!(asked(&state, "response.flags"), Ok(expected), "{flag}");
        }
    }

    #[test]
    fn what_plugins_keep_is_found_by_its_names() {
        let state = state();
        assert!(state.keep(b"mine", b"1"));
        for path in ["mine", "wasm.mine"] {
            assert_eq!(asked(&state, path), Ok(b"1".to_vec()), "{path}");
        }
        assert_eq!(of_stream(&state, b"filter_state\0wasm.mine").unwrap(), &b"1"[..]);
    }
}
