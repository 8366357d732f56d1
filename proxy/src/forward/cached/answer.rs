//! Responses made of what is kept.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use super::arrive;
use crate::{
    cache::{
        policy::{ranges::Part, validation},
        store::Stored,
    },
    http::body::Body,
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
    let Some(whole) = stored.body.get() else {
        *response.body_mut() = arrive::read(stored.body.clone());
        return response;
    };
    if whole.trailers.is_some() {
        *response.body_mut() = arrive::read(stored.body.clone());
        return response;
    }
    let length = whole.bytes.len() as u64;
    let part = match (stored.status, asked) {
        (StatusCode::OK, Some(asked)) => Part::of(asked, &stored.headers, length),
        _ => Part::Whole,
    };
    let bytes = match part {
        Part::Whole => whole.bytes.clone(),
        Part::Bytes { first, last } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            // Within the length, which is that of something in memory.
            let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
            whole.bytes.slice(at(first)..at(last).saturating_add(1).min(whole.bytes.len()))
        }
        Part::Unsatisfiable => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            Default::default()
        }
    };
    if let Some(range) = part.content_range(length) {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    *response.body_mut() = Body::Full(bytes);
    response
}

fn leave_out_body(response: &mut Response<Body>) {
    if let Body::Full(bytes) = std::mem::take(response.body_mut()) {
        let length = HeaderValue::from(bytes.len());
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length);
    }
}
