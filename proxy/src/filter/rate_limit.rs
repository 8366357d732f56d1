//! Rate limits: how many requests of a route, a caller, a header's value are let through in a time. Pure but for the
//! counters that workers share: `now` is the time since any fixed start, and where it goes backwards no time has passed.
//!
//! - [`bucket`]: one limit's state, in one atomic word: the token bucket, as GCRA.
//! - [`keys`]: a bucket for each caller or value, of bounded number.
//! - [`headers`]: what callers are told: `RateLimit`, `RateLimit-Policy`, `Retry-After`.
//! - [`lease`]: a share in a limit that all proxies have together, granted by the control plane.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "complete in itself; the data path calls it in a later change")
)]

pub mod bucket;
pub mod headers;
pub mod keys;
pub mod lease;
