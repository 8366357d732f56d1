//! Where tokens stand in a request, and how they are taken out of it.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, uri::PathAndQuery};
use leno_api::model::request_authentication::JwtRule;
use percent_encoding::percent_decode_str;

use super::verify::Refused;

/// All places in which rules look, headers first.
#[derive(Debug, Default)]
pub struct Places {
    headers: Vec<Place>,
    params: Vec<Place>,
}

/// One place, and the rules (by number) that look there.
#[derive(Debug)]
pub struct Place {
    at: At,
    pub rules: Vec<usize>,
}

#[derive(Debug, PartialEq, Eq)]
enum At {
    /// Name, and what stands before the token.
    Header(HeaderName, Box<str>),
    /// A query parameter.
    Param(Box<str>),
}

/// Something that claims to be a token.
pub struct Found<'p, 'r> {
    pub text: Cow<'r, str>,
    pub place: &'p Place,
}

impl Places {
    /// Adds the places of rule number `number`.
    pub fn add(&mut self, rule: &JwtRule, number: usize) {
        for (name, prefix) in &rule.from_headers {
            // Names were checked when the rule was read.
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                add(&mut self.headers, At::Header(name, prefix.as_str().into()), number);
            }
        }
        for name in &rule.from_params {
            add(&mut self.params, At::Param(name.as_str().into()), number);
        }
    }

    /// To be called after the last: of several prefixes for one header the longest is tried first.
    pub fn order(&mut self) {
        self.headers.sort_by_key(|place| std::cmp::Reverse(place.prefix().len()));
    }

    /// Everything that stands where a token should.
    ///
    /// # Errors
    /// When there is more than `limit`, or it is no text.
    pub fn find<'p, 'r>(
        &'p self,
        headers: &'r HeaderMap,
        uri: &'r Uri,
        limit: usize,
    ) -> Result<Vec<Found<'p, 'r>>, Refused> {
        let mut found = Vec::new();
        for (at, place) in self.headers.iter().enumerate() {
            let At::Header(name, _) = &place.at else { continue };
            let earlier = &self.headers[..at];
            for value in headers.get_all(name) {
                if earlier.iter().any(|other| other.is_header(name) && other.token(value).is_some())
                {
                    continue;
                }
                if let Some(text) = place.token(value) {
                    let text = std::str::from_utf8(text).map_err(|_| Refused::Malformed)?;
                    found.push(Found { text: text.into(), place });
                }
            }
        }
        if !self.params.is_empty() {
            self.find_params(uri, &mut found)?;
        }
        if found.len() > limit { Err(Refused::Malformed) } else { Ok(found) }
    }

    /// The URL without any parameter in which a token may be; `None` when there is none in it.
    pub fn without_params(&self, uri: &Uri) -> Option<Uri> {
        let is_one = |pair: &str| self.params.iter().any(|place| place.param(pair).is_some());
        uri.query()?.split('&').any(is_one).then(|| without(uri, is_one)).flatten()
    }

    fn find_params<'p, 'r>(
        &'p self,
        uri: &'r Uri,
        found: &mut Vec<Found<'p, 'r>>,
    ) -> Result<(), Refused> {
        for pair in uri.query().unwrap_or_default().split('&') {
            for place in &self.params {
                if let Some(text) = place.param(pair) {
                    let text = percent_decode_str(text).decode_utf8();
                    found.push(Found { text: text.map_err(|_| Refused::Malformed)?, place });
                }
            }
        }
        Ok(())
    }
}

fn add(places: &mut Vec<Place>, at: At, rule: usize) {
    match places.iter_mut().find(|place| place.at == at) {
        Some(place) => place.rules.push(rule),
        None => places.push(Place { at, rules: vec![rule] }),
    }
}

impl Place {
    fn is_header(&self, wanted: &HeaderName) -> bool {
        matches!(&self.at, At::Header(name, _) if name == wanted)
    }

    fn prefix(&self) -> &str {
        match &self.at {
            At::Header(_, prefix) => prefix,
            At::Param(_) => "",
        }
    }

    /// What follows the prefix. Its case does not matter (RFC 9110 section 11.1): `bearer` is a token for the
    /// application, too, so it must be one that was checked.
    fn token<'v>(&self, value: &'v HeaderValue) -> Option<&'v [u8]> {
        let (value, prefix) = (value.as_bytes().trim_ascii_start(), self.prefix().as_bytes());
        let (start, rest) = value.split_at_checked(prefix.len())?;
        let token = start.eq_ignore_ascii_case(prefix).then(|| rest.trim_ascii())?;
        // Nothing is no token, not a bad one.
        (!token.is_empty()).then_some(token)
    }

    /// The value of `name=value`, if it is this parameter. Names are compared decoded.
    fn param<'q>(&self, pair: &'q str) -> Option<&'q str> {
        let At::Param(wanted) = &self.at else { return None };
        let (name, value) = pair.split_once('=')?;
        let same = percent_decode_str(name).eq(wanted.bytes());
        (same && !value.is_empty()).then_some(value)
    }

    /// Takes every token at this place out of the request.
    ///
    /// # Errors
    /// When what is left of the URL is none; which cannot be, as only whole parameters go.
    pub fn strip<B>(&self, request: &mut Request<B>) -> Result<(), Refused> {
        match &self.at {
            At::Header(name, _) => {
                self.strip_header(name, request.headers_mut());
                Ok(())
            }
            At::Param(_) => {
                let stripped = without(request.uri(), |pair| self.param(pair).is_some());
                *request.uri_mut() = stripped.ok_or(Refused::Malformed)?;
                Ok(())
            }
        }
    }

    fn strip_header(&self, name: &HeaderName, headers: &mut HeaderMap) {
        let others = headers.get_all(name).iter().filter(|value| self.token(value).is_none());
        let others: Vec<_> = others.cloned().collect();
        headers.remove(name);
        for value in others {
            headers.append(name.clone(), value);
        }
    }
}

/// The URL without the parameters (`name=value`) for which `goes` holds. Others stay as they were written.
fn without(uri: &Uri, goes: impl Fn(&str) -> bool) -> Option<Uri> {
    let kept: Vec<_> = uri.query()?.split('&').filter(|pair| !goes(pair)).collect();
    let path = uri.path();
    let changed = if kept.is_empty() {
        PathAndQuery::try_from(path)
    } else {
        PathAndQuery::try_from(format!("{path}?{}", kept.join("&")))
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(changed.ok()?);
    Uri::from_parts(parts).ok()
}
