//! What proxies send.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message as _;

use super::{
    node,
    server::session_request,
    session::{MAX_NAMES, Session},
};

/// Requests of one stream, each after its length in two bytes: what the proxy says of itself, and what it asks for.
pub fn requests(data: &[u8]) {
    let mut session = Session::default();
    let mut rest = data;
    // A request alone needs no length.
    read(&mut session, data);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (request, after) = after.split_at(length);
        read(&mut session, request);
        rest = after;
    }
}

fn read(session: &mut Session, bytes: &[u8]) {
    let Ok(request) = DeltaDiscoveryRequest::decode(bytes) else { return };
    let of_node = request.node.as_ref();
    if let Ok(introduction) = node::introduction(of_node) {
        assert!(!introduction.name.chars().any(char::is_control));
    }
    node::is_goodbye(of_node);
    let (running, useless) = node::running(of_node);
    assert!(running.len() + useless <= bytes.len());
    if let Ok(effects) = session.request(session_request(request)) {
        assert!(effects.add.len() <= MAX_NAMES);
        while session.next_response().is_some() {}
    }
}

#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_do_not_panic() {
        mutate::run("requests", 20_000, requests);
    }
}
