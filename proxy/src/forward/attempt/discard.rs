//! The end of an answer that nobody gets.

use std::{sync::Arc, time::Duration};

use http::Response;
use http_body_util::BodyExt;

use crate::{
    cluster::{Cluster, pool::Connection},
    http::body::Incoming,
};

/// Reading so much of a body and for so long is cheaper than making another connection.
const MOST: u64 = 16 * 1024;
const LONGEST: Duration = Duration::from_secs(1);

/// Drops an answer of an attempt after which there is another. An HTTP/1.1 connection is used again where the answer's
/// body is short, and closed otherwise; a stream of HTTP/2 is cancelled.
pub(super) fn discard(
    response: Response<Incoming>,
    connection: Connection,
    cluster: &Arc<Cluster>,
    request_sent: bool,
) {
    use http_body::Body as _;
    let body = response.into_body();
    if body.is_end_stream() {
        if request_sent {
            connection.give_back(cluster);
        }
        return;
    }
    if !request_sent || !connection.is_alone() || body.size_hint().lower() > MOST {
        return;
    }
    let cluster = cluster.clone();
    tokio::task::spawn_local(async move {
        if tokio::time::timeout(LONGEST, drain(body)).await == Ok(true) {
            connection.give_back(&cluster);
        }
    });
}

/// Whether it came to its end.
async fn drain(mut body: Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > MOST {
            return false;
        }
    }
    true
}
