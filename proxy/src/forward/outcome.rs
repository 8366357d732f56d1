//! One classification of everything that can go wrong. Retry, metrics, the access log and the answer to the caller all
//! follow from the value made here. Pure.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};

use crate::{
    cluster::{Cluster, circuit, window::Kind},
    error::{Error, Fault, Flag, Retry},
    http::{body::End, client::Failure},
};

/// Said by the sidecar of an application that has enough to do, and by applications that know it themselves: the
/// request was not processed, and the instance works. Whoever called does not count it against the instance.
pub const OVERLOADED: HeaderName = HeaderName::from_static("x-leno-overloaded");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Of gRPC.
const UNAVAILABLE: u8 = 14;

/// A request that did not get the head of a response. `body` says how the request's own body ended.
pub fn of_send(failure: Failure, body: Option<End>, detail: String) -> Error {
    if let Some(error) = of_request_body(body) {
        return error;
    }
    match failure {
        Failure::NotSent => {
            Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UC, Retry::Safe, detail)
        }
        Failure::Refused => {
            Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UC, Retry::Safe, detail)
        }
        Failure::Closed => {
            Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UC, Retry::Unsafe, detail)
        }
        Failure::Malformed => {
            Error::upstream(StatusCode::BAD_GATEWAY, Flag::UPE, Retry::Unsafe, detail)
        }
        Failure::RequestBody => Error::downstream(StatusCode::BAD_REQUEST, Flag::DC, detail),
    }
}

/// The endpoint did not accept who we are: a connection that failed, although we learn of it late.
pub fn unwelcome(detail: String) -> Error {
    Error::upstream(StatusCode::SERVICE_UNAVAILABLE, Flag::UF, Retry::Safe, detail)
}

/// A request whose body never came in full: the caller's doing, whatever upstream made of it.
pub fn of_request_body(body: Option<End>) -> Option<Error> {
    match body? {
        End::SenderFailed => {
            let detail = "the request's body was cut off or malformed";
            Some(Error::downstream(StatusCode::BAD_REQUEST, Flag::DPE, detail))
        }
        End::TimedOut => {
            let detail = "the request's body came too slowly";
            Some(Error::downstream(StatusCode::REQUEST_TIMEOUT, Flag::DT, detail))
        }
        End::Complete | End::Dropped | End::Unread | End::Plugin => None,
    }
}

/// An exchange that took longer than it may.
pub fn timed_out(limit: Duration) -> Error {
    let detail = format!("no response within {limit:?}");
    Error::upstream(StatusCode::GATEWAY_TIMEOUT, Flag::UT, Retry::Unsafe, detail)
}

/// How an attempt that was answered ended, as far as its endpoint is to be judged by it. `grpc` is the status where the
/// head says it already.
pub fn of_answer(status: StatusCode, grpc: Option<u8>, headers: &HeaderMap) -> Kind {
    const RESOURCE_EXHAUSTED: u8 = 8;
    /// UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, DATA_LOSS: the server's fault.
    const ERRORS: [u8; 4] = [2, 4, 13, 15];
    match (status.as_u16(), grpc) {
        _ if is_overloaded(status, grpc, headers) => Kind::Busy,
        // A limit of requests: as quick as no work is, and the balancer must not take that for a fast endpoint.
        (429, _) | (_, Some(RESOURCE_EXHAUSTED)) => Kind::Busy,
        (502..=504, _) | (_, Some(UNAVAILABLE)) => Kind::Gateway,
        (500..=599, _) => Kind::Error,
        (_, Some(status)) if ERRORS.contains(&status) => Kind::Error,
        _ => Kind::Success,
    }
}

/// Whether an instance that works has refused a request, as it has enough to do.
pub fn is_overloaded(status: StatusCode, grpc: Option<u8>, headers: &HeaderMap) -> bool {
    let unavailable = status == StatusCode::SERVICE_UNAVAILABLE || grpc == Some(UNAVAILABLE);
    unavailable && headers.contains_key(OVERLOADED)
}

/// How an attempt without an answer ended, as far as its endpoint is to be judged by it; `None` where that says nothing
/// about the endpoint: the caller's doing, or ours.
pub fn of_error(error: &Error) -> Option<Kind> {
    (error.fault == Fault::Upstream).then_some(Kind::Local)
}

/// A request that a breaker does not let through, and when it may.
pub fn of_open_circuit(
    name: &str,
    circuit: Option<&circuit::State>,
    retry_after: Duration,
) -> Error {
    let why = match circuit {
        Some(circuit @ circuit::State::Open { cause, .. }) => format!("{circuit}: {cause}"),
        Some(circuit::State::HalfOpen { probes, cause, .. }) => {
            format!("half-open, all of {} probes are under way; it was open: {cause}", probes.of)
        }
        Some(circuit::State::Closed { .. }) | None => "open".to_owned(),
    };
    let detail = format!("{name}: the breaker is {why}");
    let mut error = Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail);
    error.retry_after = Some(retry_after);
    error
}

/// An endpoint of the cluster of that name takes no more.
pub fn of_busy_endpoint(name: &str) -> Error {
    let detail = format!("{name}: an endpoint is at the most attempts there can be");
    Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, detail)
}

/// Nobody could be picked.
pub fn of_no_endpoint(cluster: &Cluster, now: Duration) -> Error {
    let breakers = cluster.endpoints.iter().filter(|_| cluster.has_breakers());
    let breakers = breakers.filter_map(|endpoint| endpoint.known_vitals()?.breaker());
    let closed = breakers.filter_map(|breaker| Some((breaker.gate.opens_in(now)?, breaker)));
    if let Some((retry_after, breaker)) = closed.min_by_key(|(retry_after, _)| *retry_after) {
        cluster.state.gate.note_rejected();
        let state = breaker.state.load();
        let name = format!("{}, every endpoint", cluster.name);
        return of_open_circuit(&name, state.as_deref(), retry_after);
    }
    let why = match cluster.endpoints.is_empty() {
        true => "has no endpoint with a weight",
        false => "has no endpoint that is healthy",
    };
    let detail = format!("{} {why}", cluster.name);
    Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UH, detail)
}

/// The flag of a response whose body ended like this.
pub fn of_response_body(end: End) -> Flag {
    match end {
        End::Complete => Flag::None,
        End::SenderFailed => Flag::UC,
        End::TimedOut => Flag::UT,
        End::Dropped => Flag::DC,
        End::Unread => Flag::DT,
        End::Plugin => Flag::WF,
    }
}

/// The `grpc-status` that says what an HTTP status says (gRPC, "HTTP to gRPC Status Code Mapping"), with a deadline
/// told as such, and a rate limit as what it is: gRPC says UNAVAILABLE for 429, upon which clients try again at once.
pub fn grpc_status(error: &Error) -> u8 {
    const DEADLINE_EXCEEDED: u8 = 4;
    const RESOURCE_EXHAUSTED: u8 = 8;
    if let Some(status) = error.grpc {
        return status;
    }
    match error.status.as_u16() {
        _ if error.flag == Flag::UT => DEADLINE_EXCEEDED,
        _ if error.flag == Flag::RL => RESOURCE_EXHAUSTED,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => UNAVAILABLE,
        _ => 2,
    }
}

/// The `grpc-status` of a head or of trailers.
pub fn grpc_status_of(headers: &HeaderMap) -> Option<u8> {
    headers.get(&GRPC_STATUS)?.to_str().ok()?.parse().ok().filter(|status| *status <= 16)
}

/// What the caller is told: no addresses, no names, but the flag under which the log knows more.
pub fn message(error: &Error) -> &'static str {
    match error.flag {
        Flag::NR => "no route: no service or rule answers to this host and path",
        Flag::NC => "no backend: the route's backend does not exist",
        Flag::UH => "no endpoint: the service has no instance",
        Flag::UF => "upstream connect failed",
        Flag::UC => "upstream connection ended before the response",
        Flag::UO => "over the limits of this service, or its breaker is open",
        Flag::UT => "upstream timed out",
        Flag::UPE => "upstream response is not valid HTTP",
        Flag::DC => "request incomplete",
        Flag::DPE => "request is not acceptable",
        Flag::DT => "request came too slowly",
        Flag::AD => "access denied",
        Flag::AU => "authentication required",
        Flag::WF => "a plugin failed",
        Flag::RL => "over a rate limit",
        Flag::FI => "a fault is injected here",
        Flag::DI | Flag::None => "the proxy cannot serve this now",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn every_failure_has_one_fault_flag_and_status() {
        for (failure, body, status, flag, fault, retry) in [
            (Failure::NotSent, None, 503, Flag::UC, Fault::Upstream, Retry::Safe),
            (Failure::Refused, Some(End::Complete), 503, Flag::UC, Fault::Upstream, Retry::Safe),
            (Failure::Closed, None, 503, Flag::UC, Fault::Upstream, Retry::Unsafe),
            (Failure::Malformed, None, 502, Flag::UPE, Fault::Upstream, Retry::Unsafe),
            // A caller that gives up in the middle of its body is not the upstream's fault.
            (
                Failure::Closed,
                Some(End::SenderFailed),
                400,
                Flag::DPE,
                Fault::Downstream,
                Retry::Unsafe,
            ),
            (
                Failure::RequestBody,
                Some(End::TimedOut),
                408,
                Flag::DT,
                Fault::Downstream,
                Retry::Unsafe,
            ),
        ] {
            let error = of_send(failure, body, String::new());
            let got = (error.status.as_u16(), error.flag, error.fault, error.retry);
            assert_eq!(got, (status, flag, fault, retry), "{failure:?} {body:?}");
        }
    }

    #[test]
    fn endpoints_are_judged_by_what_is_their_doing() {
        let none = HeaderMap::new();
        let of = |status: u16, grpc| of_answer(StatusCode::from_u16(status).unwrap(), grpc, &none);
        for (status, grpc, kind) in [
            (200, None, Kind::Success),
            (101, None, Kind::Success),
            (404, None, Kind::Success),
            (429, None, Kind::Busy),
            (500, None, Kind::Error),
            (501, None, Kind::Error),
            (502, None, Kind::Gateway),
            (503, None, Kind::Gateway),
            (504, None, Kind::Gateway),
            (599, None, Kind::Error),
            (200, Some(0), Kind::Success),
            // NOT_FOUND is the caller's.
            (200, Some(5), Kind::Success),
            (200, Some(8), Kind::Busy),
            (200, Some(2), Kind::Error),
            (200, Some(13), Kind::Error),
            (200, Some(14), Kind::Gateway),
        ] {
            assert_eq!(of(status, grpc), kind, "{status} {grpc:?}");
        }
        let overloaded = HeaderMap::from_iter([(OVERLOADED, HeaderValue::from_static("true"))]);
        for (status, grpc, kind) in [
            (503, None, Kind::Busy),
            (200, Some(14), Kind::Busy),
            // Only who refuses can say so.
            (500, None, Kind::Error),
            (200, None, Kind::Success),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(of_answer(status, grpc, &overloaded), kind, "{status} {grpc:?}");
        }
        assert_eq!(of_error(&timed_out(Duration::from_secs(1))), Some(Kind::Local));
        assert_eq!(of_error(&unwelcome(String::new())), Some(Kind::Local));
        let closed = |body| of_send(Failure::Closed, body, String::new());
        assert_eq!(of_error(&closed(None)), Some(Kind::Local));
        assert_eq!(of_error(&closed(Some(End::TimedOut))), None, "the caller sent too slowly");
        let ours = Error::ours(StatusCode::SERVICE_UNAVAILABLE, Flag::UO, "");
        assert_eq!(of_error(&ours), None, "a rejection of ours");
    }

    #[test]
    fn an_open_breaker_says_why_and_until_when() {
        let cause = circuit::Cause::Errors {
            failures: 6,
            total: 10,
            window: Duration::from_secs(10),
            allowed: 50,
        };
        let (since, until) = (Duration::ZERO, Duration::from_secs(5));
        let open = circuit::State::Open { since, until, cause, times: 1 };
        let probes = circuit::gate::Probes { of: 3, ..Default::default() };
        let half_open = circuit::State::HalfOpen { since, probes, cause, times: 1 };
        let why = "error rate 60 % of 10 in 10 s, allowed below 50 %";
        for (state, detail) in [
            (Some(&open), format!("the breaker is open: {why}")),
            (Some(&half_open), format!("all of 3 probes are under way; it was open: {why}")),
            (None, "the breaker is open".to_owned()),
        ] {
            let error = of_open_circuit("shop/orders:80", state, Duration::from_secs(4));
            assert!(error.detail.ends_with(&detail), "{}", error.detail);
            assert!(error.detail.starts_with("shop/orders:80: "), "{}", error.detail);
            assert_eq!(
                (error.status.as_u16(), error.flag, error.fault),
                (503, Flag::UO, Fault::Ours)
            );
            assert_eq!(error.retry_after, Some(Duration::from_secs(4)));
        }
    }

    #[test]
    fn grpc_callers_get_grpc_statuses() {
        let of = |status: u16, flag| {
            let status = StatusCode::from_u16(status).unwrap();
            grpc_status(&Error::ours(status, flag, ""))
        };
        assert_eq!(of(504, Flag::UT), 4);
        assert_eq!(of(503, Flag::UH), 14);
        assert_eq!(of(404, Flag::NR), 12);
        assert_eq!(of(500, Flag::NC), 2);
        assert_eq!((of(403, Flag::AD), of(401, Flag::AU)), (7, 16));
        assert_eq!((of(429, Flag::RL), of(503, Flag::RL), of(429, Flag::None)), (8, 8, 14));
        let mut told = Error::ours(StatusCode::OK, Flag::FI, "");
        told.grpc = Some(5);
        assert_eq!(grpc_status(&told), 5);
    }
}
