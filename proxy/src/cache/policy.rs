//! What RFC 9111 (HTTP Caching) says of a response and a request, for a shared cache. Pure: `now` is the time since the
//! Unix epoch and comes in as an argument.
//!
//! - [`directives`]: `Cache-Control`, and `CDN-Cache-Control` which goes before it (section 5.2, RFC 9213).
//! - [`storing`]: whether a response may be kept, and what of it (section 3).
//! - [`freshness`]: how old it is and how old it may get (section 4.2).
//! - [`reuse`]: whether a request may be answered with it (section 4), also when it is stale (RFC 5861).
//! - [`variants`]: which of several responses a request selects (section 4.1).
//! - [`validation`]: asking the origin whether it still holds, and telling a caller that it does (section 4.3).
//! - [`ranges`]: a part of a whole (RFC 9110 section 14).
//! - [`invalidation`]: what a change at the origin makes void (section 4.4).

pub mod directives;
pub mod freshness;
pub mod invalidation;
pub mod ranges;
pub mod reuse;
pub mod storing;
pub mod validation;
pub mod variants;

#[cfg(test)]
pub(in crate::cache) mod fixtures {
    use http::HeaderMap;

    /// Fields of a message, in this order.
    pub(in crate::cache) fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }
}
