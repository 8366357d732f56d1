//! Whether a policy lets a response be kept, and as what: what RFC 9111 says, and what the policy adds. Pure.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use leno_api::model::cache_policy::CachePolicy;

use super::{
    body::StoredBody,
    policy::{
        directives::Directives,
        freshness::{self, Times},
        invalidation,
        storing::{self, Answered, Asked, NotStored},
        variants::Selection,
    },
    store::{Audience, Stored},
};

/// Tags of one response, and bytes of one: more are not remembered.
const MOST_TAGS: usize = 128;
const LONGEST_TAG: usize = 256;
/// Where tags stand, as CDNs have it: with spaces between them, and with commas.
const TAGS: [HeaderName; 2] =
    [HeaderName::from_static("surrogate-key"), HeaderName::from_static("cache-tag")];

/// A request as the origin gets it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Host, with a port where it has one.
    pub authority: &'a str,
    /// Its target.
    pub target: &'a Uri,
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// What it says of caches.
    pub directives: &'a Directives,
    /// On whose behalf it is.
    pub identity: &'a Arc<str>,
    /// The parts of its key that are not the URL.
    pub extra: &'a Arc<[u8]>,
}

/// The head of its response.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// When it was asked for, and when it came.
    pub times: Times,
}

/// The response as it will be kept, with a body that is yet to come.
///
/// # Errors
/// Why it is not kept, in one word.
pub fn of(
    policy: &CachePolicy,
    question: Question<'_>,
    answer: Answer<'_>,
    body: Arc<StoredBody>,
) -> Result<Stored, &'static str> {
    let Answer { status, headers, times } = answer;
    if policy.statuses.as_ref().is_some_and(|only| only.binary_search(&status.as_u16()).is_err()) {
        return Err("status");
    }
    let (directives, target) = Directives::of_response(headers);
    let forced = policy.force_ttl.filter(|_| may_be_forced(question.method, status));
    let (directives, target) = match forced {
        Some(_) => (Directives::default(), target),
        None => (directives, target),
    };
    let default = default_ttl(policy, status, headers);
    if forced.is_none() {
        let asked = Asked {
            method: question.method,
            headers: question.headers,
            directives: question.directives,
        };
        let is_representation = is_representation(&question, headers);
        let answered =
            Answered { status, headers, directives: &directives, target, is_representation };
        storing::check(asked, answered, default.is_some()).map_err(NotStored::as_str)?;
        // Nobody said that others may have what is for this caller.
        if headers.contains_key(header::SET_COOKIE)
            && !freshness::is_explicit(headers, &directives, target)
        {
            return Err("set-cookie");
        }
    }
    // Whoever overrules the origin does not overrule the caller.
    if forced.is_some() && question.directives.no_store {
        return Err(NotStored::RequestNoStore.as_str());
    }
    if forced.is_some() && question.headers.contains_key(header::AUTHORIZATION) {
        return Err(NotStored::Authorization.as_str());
    }
    let selection = Selection::of(headers, question.headers).ok_or(NotStored::VaryStar.as_str())?;
    let mut freshness =
        freshness::of_response(status, headers, &directives, target, times, default);
    if let Some(lifetime) = forced {
        freshness.lifetime = lifetime;
        freshness.initial_age = Duration::ZERO;
    }
    let audience = match directives.public {
        true => Audience::Everybody,
        false => Audience::Only(question.identity.clone()),
    };
    Ok(Stored {
        audience,
        extra: question.extra.clone(),
        selection,
        status,
        headers: storing::stored_fields(headers, &directives),
        directives,
        freshness,
        tags: tags(policy, headers),
        body,
    })
}

/// How long a response that says nothing is good for. What is an error of the moment has no default.
fn default_ttl(policy: &CachePolicy, status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let usual = policy
        .default_ttl
        .filter(|_| freshness::is_heuristic(status) && !headers.contains_key(header::SET_COOKIE));
    match status.as_u16() {
        404 | 405 | 410 | 414 | 501 => policy.negative_ttl.or(usual),
        _ => usual,
    }
}

fn may_be_forced(method: &Method, status: StatusCode) -> bool {
    *method == Method::GET && freshness::is_heuristic(status) && status != 206
}

/// RFC 9110 section 8.7: whether the response says that it is what a GET of the target would bring.
fn is_representation(question: &Question<'_>, headers: &HeaderMap) -> bool {
    let named = headers.get(header::CONTENT_LOCATION).and_then(|value| value.to_str().ok());
    let path =
        named.and_then(|named| invalidation::resolve(question.authority, question.target, named));
    path.is_some_and(|path| {
        Some(&*path) == question.target.path_and_query().map(|own| own.as_str())
    })
}

fn tags(policy: &CachePolicy, headers: &HeaderMap) -> Arc<[Box<str>]> {
    let names = match &policy.tags_header {
        Some(name) => std::slice::from_ref(name),
        None => &TAGS[..],
    };
    let values = names.iter().flat_map(|name| headers.get_all(name));
    let lines = values.filter_map(|value: &HeaderValue| value.to_str().ok());
    let tags = lines.flat_map(|line| line.split([' ', ',', '\t']));
    let tags = tags.filter(|tag| !tag.is_empty() && tag.len() <= LONGEST_TAG);
    tags.take(MOST_TAGS).map(Box::from).collect()
}

#[cfg(test)]
mod tests;
