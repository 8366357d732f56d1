use http_body_util::{Full, StreamBody};
use tokio::sync::mpsc::Sender;

use super::*;

fn request(nonce: &str, names: usize) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        resource_names_subscribe: (0..names).map(|at| format!("shop/{at}")).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// What arrives in frames of `size` bytes.
fn requests(bytes: &[u8], size: usize) -> Requests {
    let frames: Vec<_> = bytes
        .chunks(size)
        .map(|chunk| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(chunk))))
        .collect();
    Requests::new(tonic::body::Body::new(StreamBody::new(futures_util::stream::iter(frames))))
}

#[tokio::test]
async fn messages_are_read_however_they_are_cut() {
    let (small, large) = (request("1", 0), request("2", 5_000));
    let bytes = [framed(&small).unwrap(), framed(&large).unwrap(), framed(&small).unwrap()];
    let bytes = bytes.concat();
    for size in [1, 4, 5, 7, 1_000, bytes.len()] {
        let mut requests = requests(&bytes, size);
        for expected in [&small, &large, &small] {
            assert_eq!(requests.message().await.unwrap().as_deref(), Some(expected), "{size}");
        }
        assert_eq!(requests.message().await.unwrap(), None, "{size}");
        assert_eq!(requests.partial.capacity(), 0, "nothing is kept of what has passed");
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_stream() {
    let whole = framed(&request("1", 3)).unwrap();
    let compressed = [&[1], &whole[1..]].concat();
    let length = u32::try_from(MAX_REQUEST_BYTES + 1).unwrap();
    let long = [&[0], &length.to_be_bytes()[..]].concat();
    let garbage = [&[0, 0, 0, 0, 3], &[0xff; 3][..]].concat();
    for (bytes, code) in [
        (&whole[..whole.len() - 1], Code::Internal),
        (&whole[..3], Code::Internal),
        (&compressed, Code::Unimplemented),
        (&long, Code::OutOfRange),
        (&garbage, Code::InvalidArgument),
    ] {
        let broken = requests(bytes, 1_000).message().await.unwrap_err();
        let Broken::Malformed(status) = broken else { panic!("{broken:?}") };
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_says_so() {
    let broken = futures_util::stream::iter([Err::<Frame<Bytes>, _>(Status::cancelled("gone"))]);
    let mut requests = Requests::new(tonic::body::Body::new(StreamBody::new(broken)));
    assert!(matches!(requests.message().await, Err(Broken::Gone)));
    let mut requests = Requests::new(tonic::body::Body::new(Full::new(Bytes::new())));
    assert_eq!(requests.message().await.unwrap(), None);
}

fn responses() -> (Sender<Result<Bytes, Status>>, Responses) {
    let (sender, receiver) = mpsc::channel(4);
    (sender, Responses::new(receiver))
}

#[tokio::test]
async fn responses_end_with_their_status() {
    for (status, code, text) in [
        (None, "0", None),
        (Some(Status::resource_exhausted("too many names")), "8", Some("too%20many%20names")),
    ] {
        let (sender, mut body) = responses();
        let message = framed(&request("1", 2)).unwrap();
        sender.send(Ok(message.clone())).await.unwrap();
        if let Some(status) = status {
            sender.send(Err(status)).await.unwrap();
        }
        drop(sender);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), message);
        assert!(!body.is_end_stream());
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers[Status::GRPC_STATUS], code);
        let said = trailers.get("grpc-message").map(|value| value.to_str().unwrap());
        assert_eq!(said, text);
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
