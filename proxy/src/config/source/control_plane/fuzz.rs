//! What the control plane sends.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use leno_api::model::ObjectName;
use prost::Message as _;

use super::{Command, Update, mirror::Mirror};

/// Responses of one stream, each after its length in two bytes, and verdicts on what comes of them.
pub fn responses(data: &[u8]) {
    let services = vec![ObjectName::new("shop", "orders")];
    let mut mirror = Mirror::new("shop".to_owned(), services, vec!["gone".to_owned()], Vec::new());
    mirror.connected();
    // A response alone needs no length.
    read(&mut mirror, data);
    let mut rest = data;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (response, after) = after.split_at(length);
        read(&mut mirror, response);
        rest = after;
    }
    mirror.disconnected();
    assert!(mirror.next_request().is_none());
}

fn read(mirror: &mut Mirror, bytes: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return };
    mirror.receive(response);
    while let Some(update) = mirror.next_update() {
        let Update::Changed(change) = update else { continue };
        // One of two is refused.
        let refused = change.upserts.iter().step_by(2);
        let rejected = refused.map(|item| (item.resource.key(), "no\nroom".to_owned())).collect();
        mirror.obey(Command::Verdict { id: change.id, rejected });
    }
    while let Some(request) = mirror.next_request() {
        assert!(request.encoded_len() < 4 << 20);
    }
}
