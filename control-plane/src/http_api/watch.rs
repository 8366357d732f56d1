//! Watching: a stream of JSON objects, one per line, as long as the client wants.
//!
//! `{"type": "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" | "ERROR", "object": …}`

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::stream;
use http::{HeaderValue, header};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep_until},
};

use super::{
    Api, Failure, list::revision, parameters::Parameters, rendering::Rendering, resources::Place,
    selector::Selector,
};
use crate::{
    store::{Change, Error, Event, Store, Watch},
    transport::conversation::told,
};

/// How long a watch lasts unless the client says: clients start the next one by themselves.
const DEFAULT_SECONDS: u64 = 45 * 60;
const MAX_SECONDS: u64 = 24 * 3600;
/// How often a bookmark tells a quiet watch how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// How many objects of the initial state are rendered at a time.
const INITIAL_BATCH: usize = 256;

struct Following {
    watch: Watch,
    /// Objects there at the start that were not sent yet.
    initial: VecDeque<Arc<crate::store::Stored>>,
    /// The revision to announce once they are sent.
    announce: Option<u64>,
    selector: Selector,
    rendering: Rendering,
    bookmarks: bool,
    next_bookmark: Instant,
    end: Instant,
    ending: watch::Receiver<bool>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

pub(super) fn serve(
    api: &Api,
    place: &Place,
    parameters: Parameters,
    rendering: Rendering,
) -> Result<Response, Failure> {
    let permit = api.watches.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Failure::busy("too many watches are open; end one first"))?;
    let mut start = start(&*api.store, place, &parameters)?;
    if let Some(continuation) = &parameters.continuation {
        return Err(Failure::bad_request(format!(
            "a watch does not continue lists: {continuation:?}"
        )));
    }
    let seconds = parameters.timeout_seconds.unwrap_or(DEFAULT_SECONDS).clamp(1, MAX_SECONDS);
    let now = Instant::now();
    let following = Following {
        initial: start.initial.take().unwrap_or_default(),
        announce: start.announce,
        watch: start.watch,
        selector: parameters.selector,
        rendering,
        bookmarks: parameters.bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        end: now + Duration::from_secs(seconds),
        ending: api.ending.subscribe(),
        ended: false,
        _permit: permit,
    };
    let lines = stream::unfold(following, |mut following| async {
        let lines = following.next().await?;
        Some((Ok::<_, std::convert::Infallible>(lines), following))
    });
    let mut response = Response::new(Body::from_stream(lines));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

struct Start {
    watch: Watch,
    initial: Option<VecDeque<Arc<crate::store::Stored>>>,
    announce: Option<u64>,
}

/// Without a revision a watch begins with what is there; with one, after it.
fn start(store: &dyn Store, place: &Place, parameters: &Parameters) -> Result<Start, Failure> {
    let selection = place.selection();
    let from = parameters.resource_version.as_deref().map(revision).transpose()?.unwrap_or(0);
    let wanted = parameters.initial_events.unwrap_or(from == 0);
    if wanted {
        let listing = store.list(&selection);
        if from > listing.revision {
            return Err(Failure::not_yet(from, listing.revision));
        }
        let announce = (parameters.initial_events == Some(true)).then_some(listing.revision);
        let watch = store.watch(listing.revision, selection)?;
        return Ok(Start { watch, initial: Some(listing.items.into()), announce });
    }
    let from = if from == 0 { store.revision() } else { from };
    Ok(Start { watch: store.watch(from, selection)?, initial: None, announce: None })
}

impl Following {
    /// The next lines to send; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let lines = if self.initial.is_empty() && self.announce.is_none() {
                self.follow().await
            } else {
                self.begin()
            };
            if !lines.is_empty() {
                return Some(lines.into());
            }
        }
    }

    /// What was there at the start.
    fn begin(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        for stored in self.initial.drain(..self.initial.len().min(INITIAL_BATCH)) {
            match stored.json() {
                Ok(object) if self.selector.matches(&stored.key, &object) => {
                    write_line(&mut lines, "ADDED", &self.rendering.object(object));
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "left out of a watch"),
            }
        }
        if self.initial.is_empty()
            && let Some(revision) = self.announce.take()
        {
            let mut bookmark = self.bookmark(revision);
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            write_line(&mut lines, "BOOKMARK", &bookmark);
        }
        lines
    }

    async fn follow(&mut self) -> Vec<u8> {
        let mut lines = Vec::new();
        tokio::select! {
            batch = self.watch.next() => match batch {
                Ok(batch) => {
                    batch.events.iter().for_each(|event| self.write_event(&mut lines, event));
                }
                Err(error) => self.fail(&mut lines, error),
            },
            () = sleep_until(self.next_bookmark), if self.bookmarks => {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                write_line(&mut lines, "BOOKMARK", &self.bookmark(self.watch.seen()));
            }
            () = sleep_until(self.end) => self.finish(&mut lines),
            () = told(&mut self.ending) => self.finish(&mut lines),
        }
        lines
    }

    /// These lines are the last ones.
    fn finish(&mut self, lines: &mut Vec<u8>) {
        self.ended = true;
        if self.bookmarks {
            write_line(lines, "BOOKMARK", &self.bookmark(self.watch.seen()));
        }
    }

    fn fail(&mut self, lines: &mut Vec<u8>, error: Error) {
        self.ended = true;
        if !matches!(error, Error::Closed) {
            write_line(lines, "ERROR", &Failure::from(error).to_json());
        }
    }

    fn write_event(&self, lines: &mut Vec<u8>, event: &Event) {
        let written = self.line(event).unwrap_or_else(|error| {
            tracing::error!(%error, "left out of a watch");
            None
        });
        if let Some((what, object)) = written {
            write_line(lines, what, &self.rendering.object(object));
        }
    }

    /// How an event looks through the selector: what comes into view is added, what leaves it is
    /// deleted.
    fn line(&self, event: &Event) -> Result<Option<(&'static str, Value)>, Error> {
        let key = &event.object.key;
        let object = event.object.json_at(event.revision)?;
        let visible = self.selector.matches(key, &object);
        let before = match &event.previous {
            Some(previous) => self.selector.matches(key, &previous.json()?),
            None => false,
        };
        Ok(match (event.change, before, visible) {
            (Change::Deleted, _, true) => Some(("DELETED", object)),
            (Change::Deleted, ..) | (_, false, false) => None,
            (_, false, true) => Some(("ADDED", object)),
            (_, true, true) => Some(("MODIFIED", object)),
            (_, true, false) => Some(("DELETED", object)),
        })
    }

    fn bookmark(&self, revision: u64) -> Value {
        let kind = self.rendering.kind;
        json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string()},
        })
    }
}

fn write_line(lines: &mut Vec<u8>, what: &str, object: &Value) {
    lines.extend_from_slice(json!({"type": what, "object": object}).to_string().as_bytes());
    lines.push(b'\n');
}
