//! Bodies that are kept while they are passed on. A task of its own reads from upstream: whoever asked first may be slow,
//! or go away, and the others get it all the same.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::oneshot;

use crate::{
    cache::{
        Cache,
        body::{Next, Place, StoredBody},
        fills::{Lead, Outcome},
        policy::storing,
        store::Stored,
    },
    error::{Error, Flag, Retry},
    forward::response::Held,
    http::body::{Body, BodyError, End, Watch},
};

/// So long a body is read on when whoever asked for it has gone; others may read it, too.
const ORPHANED: Duration = Duration::from_secs(60);

/// A response that arrives.
pub(super) struct Arriving {
    pub(super) cache: Arc<Cache>,
    pub(super) lead: Lead,
    pub(super) stored: Arc<Stored>,
    /// Its length, if that was said; room is reserved for it then.
    pub(super) length: Option<u64>,
}

/// Begins to read; the result is what whoever asked for it gets.
pub(super) fn begin(arriving: Arriving, upstream: Body) -> Body {
    let body = arriving.stored.body.clone();
    if arriving.length.is_some() {
        // All of it will fit, so that everybody may begin to read.
        arriving.lead.tell(Outcome::Here(arriving.stored.clone()));
    }
    let (too_long, rest) = oneshot::channel();
    tokio::task::spawn_local(take_in(arriving, upstream, too_long));
    reader(Reader { body, place: Place::default(), source: Source::Kept(Some(rest)) })
}

/// A body that is kept, or arriving.
pub(super) fn read(body: Arc<StoredBody>) -> Body {
    reader(Reader { body, place: Place::default(), source: Source::Kept(None) })
}

/// Cuts a body off unless it came to its end: those who read it must not wait for ever.
struct Cut(Arc<Stored>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.body.cut();
    }
}

async fn take_in(arriving: Arriving, mut upstream: Body, too_long: oneshot::Sender<Body>) {
    let Arriving { cache, lead, stored, length } = arriving;
    let _cut = Cut(stored.clone());
    let most = usize::try_from(cache.policy().max_object_bytes).unwrap_or(usize::MAX);
    let mut too_long = Some(too_long);
    let mut left = None;
    let mut trailers = None;
    loop {
        let frame = match next_frame(&mut upstream, too_long.as_mut(), &mut left).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(detail) => {
                tracing::debug!("{detail}");
                // Who waits for all of it gets an error, too: many requests must not make many that break off.
                let status = StatusCode::BAD_GATEWAY;
                let error = Error::upstream(status, Flag::UC, Retry::Unsafe, detail);
                lead.tell(Outcome::Failed(error));
                return;
            }
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        let small = stored.body.len() + data.len() <= most;
        let fits = small && (length.is_some() || cache.reserve(&stored.body, data.len() as u64));
        if !fits {
            lead.tell(if small { Outcome::NoRoom } else { Outcome::Own });
            if let Some(too_long) = too_long.take() {
                // Whoever asked for it gets the rest from upstream; if he is gone, nobody does.
                let _ = too_long.send(rest(data, upstream));
            }
            return;
        }
        stored.body.push(&data);
    }
    stored.body.finish(trailers.as_ref().map(storing::copied));
    cache.keep(lead, stored);
}

/// What comes next from upstream. Once whoever asked for it is gone, all of it has to come within [`ORPHANED`]: a response that
/// never ends would be read for nobody.
async fn next_frame(
    upstream: &mut Body,
    asker: Option<&mut oneshot::Sender<Body>>,
    left: &mut Option<Instant>,
) -> Result<Option<Frame<Bytes>>, String> {
    let gone = async {
        if left.is_none()
            && let Some(asker) = asker
        {
            asker.closed().await;
            *left = Some(Instant::now());
        }
        let until = left.map_or_else(Instant::now, |left| left) + ORPHANED;
        tokio::time::sleep_until(until.into()).await;
    };
    tokio::select! {
        biased;
        frame = upstream.frame() => frame.transpose().map_err(|error| {
            format!("a response broke off while it was kept: {error}")
        }),
        () = gone => Err(format!("a response did not end within {ORPHANED:?} of its caller")),
    }
}

/// What was read already, and what follows.
fn rest(data: Bytes, upstream: Body) -> Body {
    let frames =
        futures_util::stream::unfold((Some(data), upstream), |(data, mut upstream)| async {
            let frame = match data {
                Some(data) => Ok(Frame::data(data)),
                None => upstream.frame().await?,
            };
            Some((frame, (None, upstream)))
        });
    Body::other(StreamBody::new(frames))
}

/// Where a caller is in a body.
struct Reader {
    body: Arc<StoredBody>,
    place: Place,
    source: Source,
}

enum Source {
    /// What is kept; what does not fit comes by this way.
    Kept(Option<oneshot::Receiver<Body>>),
    /// The rest, from upstream.
    Upstream(Body),
    /// Trailers are the last.
    Ended,
}

fn reader(reader: Reader) -> Body {
    let frames = futures_util::stream::unfold(reader, |mut reader| async {
        let frame = reader.next().await?;
        Some((frame, reader))
    });
    Body::other(StreamBody::new(frames))
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        if let Source::Kept(rest) = &mut self.source {
            match self.body.next(&mut self.place).await {
                Next::Data(data) => return Some(Ok(Frame::data(data))),
                Next::End(trailers) => {
                    self.source = Source::Ended;
                    return trailers.map(|trailers| Ok(Frame::trailers(trailers)));
                }
                Next::Broken => match rest.take().and_then(|mut rest| rest.try_recv().ok()) {
                    Some(rest) => {
                        self.source = Source::Upstream(rest);
                        // What has been read of it takes no room any more.
                        self.body = Arc::default();
                    }
                    None => return Some(Err(BodyError::CopyCut)),
                },
            }
        }
        match &mut self.source {
            Source::Upstream(rest) => rest.frame().await,
            Source::Kept(_) | Source::Ended => None,
        }
    }
}

/// Gives back what was held upstream when the body has been read.
pub(super) struct Returning(pub(super) Option<Held>);

impl Watch for Returning {
    fn data(&mut self, _: &Bytes) {}

    fn trailers(&mut self, _: &HeaderMap) {}

    fn end(&mut self, end: End) {
        if let Some(held) = self.0.take() {
            // The requests that are kept have no body that could still be on its way.
            held.ended(end, true, Instant::now());
        }
    }
}
