//! What is well and what is not, decided from what the control plane says. Nothing is asked here.

use serde_json::Value;

use crate::{
    api_client::authority::{Certificate, Root, Status},
    commands::ca::short,
    moments::{Moment, distance},
    status::{Progress, condition, progress},
};

/// A proxy renews at two thirds of a certificate's life; with less than this left it has failed for long.
const LEAST_LEFT_PERCENT: u64 = 20;
/// Replacing a root takes planning where its copies are kept by hand.
const ROOT_WARNING_SECONDS: u64 = 30 * 86_400;

const UNREACHABLE: &str =
    "is `leno control-plane` running? set --server, and for https:// --ca-file";
const NO_RENEWAL: &str = "`leno proxy-config certs ADMIN` says why a proxy does not renew, with --renew it tries at once";
const OWN_NOT_RENEWED: &str =
    "the control plane renews its own certificate; its log says why it does not";
const OLD_ROOT: &str = "`leno ca rotate-root` replaces the root while everything runs";
const NOT_LIVE: &str =
    "`leno get KIND NAME -n NAMESPACE -o yaml` says in its status which proxies reject it and why";
const ODD: &str =
    "`leno get <kind> <name> -n <namespace> -o yaml` lists all of it under `status.findings`";
const UNUSED: &str = "no connected sidecar serves what it is for: see its `targetRefs` or `selector`, and `leno get workloads`";
/// What keeps nobody out while no sidecar has it.
const GUARDS: [&str; 5] = [
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RateLimitPolicy",
    "RequestAuthentication",
    "WasmPlugin",
];

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub state: State,
    pub because: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Ok,
    /// Still works.
    Warning,
    Wrong,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
        }
    }
}

impl Finding {
    pub(super) fn new(what: impl Into<String>, state: State, because: impl Into<String>) -> Self {
        Self { what: what.into(), state, because: because.into(), hint: None }
    }

    /// Said only where there is something to do.
    pub(super) fn or(mut self, hint: &'static str) -> Self {
        self.hint = (self.state != State::Ok).then_some(hint);
        self
    }
}

pub fn unreachable(reason: &str) -> Finding {
    Finding::new("control plane", State::Wrong, reason).or(UNREACHABLE)
}

pub fn control_plane(server: &str, version: &str) -> Finding {
    Finding::new("control plane", State::Ok, format!("version {version} answers at {server}"))
}

/// The roots.
pub fn authority(status: &Status, now: u64) -> Vec<Finding> {
    status.roots.iter().map(|root| trusted(root, now)).collect()
}

fn trusted(root: &Root, now: u64) -> Finding {
    let end = root.not_after.0;
    let role = if root.signer { "signs" } else { "is trusted" };
    let state = match end.checked_sub(now) {
        None => State::Wrong,
        Some(left) if left < ROOT_WARNING_SECONDS => State::Warning,
        Some(_) => State::Ok,
    };
    let because = format!("{role}, ends {}", distance(end, now));
    Finding::new(format!("root {}", short(&root.fingerprint)), state, because).or(OLD_ROOT)
}

/// The certificates of all proxies. The authority remembers also those of proxies that have gone.
pub fn certificates(certificates: &[Certificate], now: u64) -> Vec<Finding> {
    let current = certificates.iter().filter(|certificate| !is_forgotten(certificate, now));
    current.map(|certificate| issued(certificate, now)).collect()
}

/// Nobody has been heard of for a whole life of the certificate after its end: the proxy has been taken away.
fn is_forgotten(certificate: &Certificate, now: u64) -> bool {
    let (Moment(begin), Moment(end)) = (certificate.not_before, certificate.not_after);
    now > end.saturating_add(end.saturating_sub(begin))
}

fn issued(certificate: &Certificate, now: u64) -> Finding {
    let Certificate { proxy, spiffe_id, not_before, not_after, .. } = certificate;
    let what = format!("certificate of {proxy}");
    alive(what, Some(spiffe_id), (*not_before, *not_after), now).or(NO_RENEWAL)
}

/// The certificate of the control plane's ports.
pub fn own(life: (Moment, Moment), now: u64) -> Finding {
    alive("its certificate".to_owned(), None, life, now).or(OWN_NOT_RENEWED)
}

fn alive(what: String, id: Option<&str>, life: (Moment, Moment), now: u64) -> Finding {
    let (Moment(begin), Moment(end)) = life;
    let left = end.saturating_sub(now).saturating_mul(100) / end.saturating_sub(begin).max(1);
    let when = distance(end, now);
    match (now >= end, left < LEAST_LEFT_PERCENT, id) {
        (true, ..) => Finding::new(what, State::Wrong, format!("ended {when}")),
        (_, true, _) => {
            let because = format!("ends {when}, {left} % of its life are left");
            Finding::new(what, State::Warning, because)
        }
        (.., Some(id)) => Finding::new(what, State::Ok, format!("{id}, ends {when}")),
        (.., None) => Finding::new(what, State::Ok, format!("ends {when}")),
    }
}

/// A resource that is not live on every proxy that uses it, guards nothing, or does not do all that it says.
pub fn resource(kind: &str, object: &Value) -> Option<Finding> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
    let what = format!("{kind} {}/{}", text("/metadata/namespace"), text("/metadata/name"));
    match progress(object) {
        Progress::Live(message) => {
            let analysed = condition(object, "PassedAnalysis");
            let unused = condition(object, "Live").is_some_and(|live| live.reason == "NotUsed");
            if let Some(odd) = analysed.filter(|analysed| analysed.status == "False") {
                Some(Finding::new(what, State::Warning, odd.message).or(ODD))
            } else if unused && GUARDS.contains(&kind) {
                Some(Finding::new(what, State::Warning, message).or(UNUSED))
            } else {
                None
            }
        }
        Progress::Pending(message) => {
            Some(Finding::new(what, State::Warning, message).or(NOT_LIVE))
        }
        Progress::Rejected(message) => Some(Finding::new(what, State::Wrong, message).or(NOT_LIVE)),
    }
}

pub fn live(count: usize) -> Finding {
    let because = format!("{count} are live on every proxy that uses them");
    Finding::new("resources", State::Ok, because)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn certificate(now_left: i64) -> Option<Finding> {
        let now = 1_000_000_u64;
        let certificate = Certificate {
            proxy: "shop/order-1".to_owned(),
            spiffe_id: "spiffe://m/ns/shop/sa/order".to_owned(),
            not_before: Moment(now.saturating_add_signed(now_left) - 1_000),
            not_after: Moment(now.saturating_add_signed(now_left)),
            ..Certificate::default()
        };
        certificates(&[certificate], now).pop()
    }

    #[test]
    fn a_certificate_is_worth_a_word_long_before_it_ends() {
        let fine = certificate(200).unwrap();
        assert_eq!((fine.state, fine.hint), (State::Ok, None));
        let late = certificate(199).unwrap();
        assert_eq!((late.state, late.hint), (State::Warning, Some(NO_RENEWAL)));
        assert_eq!(late.because, "ends in 3m19s, 19 % of its life are left");
        let over = certificate(0).unwrap();
        assert_eq!((over.state, over.because.as_str()), (State::Wrong, "ended now"));
        assert_eq!(certificate(-90).unwrap().because, "ended 90s ago");
        assert_eq!(certificate(-1_001), None, "it is not coming back");
    }

    #[test]
    fn a_root_is_worth_a_word_a_month_before_it_ends() {
        let root = |left: u64| {
            let roots =
                vec![Root { not_after: Moment(left + 10), signer: true, ..Root::default() }];
            authority(&Status { roots, ..Status::default() }, 10).remove(0).state
        };
        assert_eq!(root(ROOT_WARNING_SECONDS), State::Ok);
        assert_eq!(root(ROOT_WARNING_SECONDS - 1), State::Warning);
    }

    #[test]
    fn only_what_is_not_live_is_named() {
        let object = |status: &str, reason: &str| {
            json!({"metadata": {"name": "order", "namespace": "shop", "generation": 1}, "status": {"conditions": [
                {"type": "Live", "status": status, "reason": reason, "message": "m", "observedGeneration": 1},
            ]}})
        };
        assert_eq!(resource("HTTPRoute", &object("True", "Live")), None);
        let rejected = resource("HTTPRoute", &object("False", "Rejected")).unwrap();
        assert_eq!(
            (rejected.what.as_str(), rejected.state),
            ("HTTPRoute shop/order", State::Wrong)
        );
        assert_eq!(resource("X", &object("False", "Pending")).unwrap().state, State::Warning);
        assert_eq!(resource("HTTPRoute", &object("Unknown", "NotUsed")), None, "nobody calls");
        let unused = resource("AuthorizationPolicy", &object("Unknown", "NotUsed")).unwrap();
        assert_eq!((unused.state, unused.hint), (State::Warning, Some(UNUSED)));
    }

    #[test]
    fn what_is_odd_is_named_though_it_is_live() {
        let object = json!({"metadata": {"name": "order", "namespace": "shop", "generation": 1}, "status": {"conditions": [
            {"type": "Live", "status": "True", "reason": "Live", "message": "m", "observedGeneration": 1},
            {"type": "PassedAnalysis", "status": "False", "reason": "Findings", "message": "spec.parentRefs[0]: gone",
             "observedGeneration": 1},
        ]}});
        let odd = resource("HTTPRoute", &object).unwrap();
        assert_eq!((odd.state, odd.because.as_str()), (State::Warning, "spec.parentRefs[0]: gone"));
        assert_eq!(odd.hint, Some(ODD));
    }
}
