//! Responses made of what is kept.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};

use super::arrive;
use crate::{
    cache::{
        body::Whole,
        policy::{ranges::Part, validation},
        store::Stored,
    },
    http::body::{Body, BodyError},
};

/// The answer to `request`: all of it, a part, or that the caller has it already.
pub(super) fn of(request: &Request<Body>, stored: &Stored, now: Duration) -> Response<Body> {
    let asked = request.headers();
    let mut response = if has_it(asked, stored) {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.headers_mut() = validation::not_modified_fields(&stored.headers);
        response
    } else {
        let head = *request.method() == Method::HEAD;
        let mut response = whole_or_part((!head).then_some(asked), stored);
        if head {
            leave_out_body(&mut response);
        }
        response
    };
    let age = HeaderValue::from(stored.freshness.age(now).as_secs().min(MOST_SECONDS));
    response.headers_mut().insert(header::AGE, age);
    response
}

/// RFC 9111 section 1.2.2.
const MOST_SECONDS: u64 = 1 << 31;

/// Whether what the caller has is what would be sent (RFC 9110 section 13.2.1: only instead of a success).
pub(super) fn has_it(asked: &HeaderMap, stored: &Stored) -> bool {
    stored.status.is_success() && validation::caller_has_it(asked, &stored.headers)
}

/// `asked`: the fields of a request that may have a part (RFC 9110 section 14.2: GET alone).
fn whole_or_part(asked: Option<&HeaderMap>, stored: &Stored) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = stored.status;
    response.headers_mut().clone_from(&stored.headers);
    let Some(whole) = stored.body.get().filter(|whole| whole.trailers.is_none()) else {
        *response.body_mut() = arrive::read(stored.body.clone());
        return response;
    };
    let length = whole.len() as u64;
    let part = match (stored.status, asked) {
        (StatusCode::OK, Some(asked)) => Part::of(asked, &stored.headers, length),
        _ => Part::Whole,
    };
    *response.body_mut() = match part {
        Part::Whole => in_memory(whole, 0, whole.len()),
        Part::Bytes { first, last } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            // Within the length, which is that of something in memory.
            let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
            in_memory(whole, at(first), at(last).saturating_add(1).min(whole.len()))
        }
        Part::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            Body::Full(Bytes::new())
        }
    };
    if let Some(range) = part.content_range(length) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    response
}

/// The bytes from `first` to before `end`.
fn in_memory(whole: &Whole, first: usize, end: usize) -> Body {
    let mut pieces = whole.part(first, end);
    match (pieces.next(), pieces.next()) {
        (None, _) => Body::Full(Bytes::new()),
        (Some(one), None) => Body::Full(one),
        (Some(one), Some(two)) => {
            let pieces: Vec<_> = [one, two].into_iter().chain(pieces).collect();
            Body::other(Pieces { left: (end - first) as u64, pieces: pieces.into_iter() })
        }
    }
}

/// A body of several pieces that are all here.
struct Pieces {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.pieces.next().map(|piece| {
            self.left -= piece.len() as u64;
            Ok(Frame::data(piece))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn leave_out_body(response: &mut Response<Body>) {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
}
