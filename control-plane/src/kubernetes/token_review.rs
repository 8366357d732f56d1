//! Whose a service-account token is: the API server is asked, and its answer kept for a moment.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{chain, metrics::Metrics};
use crate::{
    ca::{NotReviewed, Reviewed, Reviewer},
    inject::names,
};

/// How long an answer counts: a pod that reconnects is not asked for again, a deleted one is not believed for long.
const KEPT: Duration = Duration::from_secs(10);
/// Answers kept at most: strangers can make up as many tokens as they like.
const MOST_KEPT: usize = 4096;
/// Questions at the same time; further ones wait.
const AT_ONCE: usize = 16;
/// How long one question may take, waiting included.
const PATIENCE: Duration = Duration::from_secs(5);
/// Which pod a token is bound to, in what the API server says of its user.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

type Digested = [u8; 32];
/// What was answered, and when.
type Answered = (Instant, Result<Reviewed, String>);

pub(super) struct Reviews {
    api: Api<TokenReview>,
    metrics: Metrics,
    asking: Semaphore,
    kept: Mutex<HashMap<Digested, Answered>>,
}

impl Reviews {
    pub(super) fn new(client: Client, metrics: Metrics) -> Self {
        Self {
            api: Api::all(client),
            metrics,
            asking: Semaphore::new(AT_ONCE),
            kept: Mutex::new(HashMap::new()),
        }
    }

    async fn ask(&self, token: &str) -> Result<Reviewed, NotReviewed> {
        let digest: Digested = Sha256::digest(token).into();
        if let Some(known) = self.known(&digest) {
            self.count("cached");
            return known.map_err(NotReviewed::Refused);
        }
        let asked = timeout(PATIENCE, async {
            let _permit = self.asking.acquire().await.map_err(|error| error.to_string())?;
            let review = TokenReview { spec: spec(token), ..TokenReview::default() };
            // The error may be logged: of the client's, none has the request's body in it.
            self.api.create(&PostParams::default(), &review).await.map_err(|error| chain(&error))
        });
        let answered = match asked.await {
            Ok(answered) => answered,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let status = answered.map(|review| review.status.unwrap_or_default());
        let status = status.map_err(|reason| {
            self.count("unavailable");
            tracing::error!(reason, "Kubernetes cannot be asked whose a service-account token is");
            NotReviewed::Unavailable
        })?;
        let verdict = judge(&status);
        self.count(if verdict.is_ok() { "proven" } else { "refused" });
        if is_final(&status) {
            self.keep(digest, verdict.clone());
        }
        verdict.map_err(NotReviewed::Refused)
    }

    fn known(&self, digest: &Digested) -> Option<Result<Reviewed, String>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, verdict) = kept.get(digest)?;
        (since.elapsed() < KEPT).then(|| verdict.clone())
    }

    fn keep(&self, digest: Digested, verdict: Result<Reviewed, String>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if kept.len() < MOST_KEPT {
            kept.insert(digest, (Instant::now(), verdict));
        }
    }

    fn count(&self, result: &str) {
        self.metrics.reviews.with_label_values(&[result]).inc();
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Reviews")
    }
}

impl Reviewer for Reviews {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Reviewed, NotReviewed>> {
        Box::pin(self.ask(token))
    }
}

fn spec(token: &str) -> TokenReviewSpec {
    TokenReviewSpec {
        token: Some(token.to_owned()),
        audiences: Some(vec![names::TOKEN_AUDIENCE.to_owned()]),
    }
}

/// Whether the answer is a verdict. With an error it may be that the token could not be looked at: a webhook or a key
/// server that did not answer, which a pod must not be made to wait for longer than it lasts.
fn is_final(status: &TokenReviewStatus) -> bool {
    status.authenticated == Some(true) || status.error.as_deref().is_none_or(str::is_empty)
}

/// Pure.
fn judge(status: &TokenReviewStatus) -> Result<Reviewed, String> {
    if status.authenticated != Some(true) {
        let why =
            status.error.as_deref().unwrap_or("it is not one that it has issued, or it has ended");
        let why: String = why.chars().take(200).collect();
        return Err(format!("Kubernetes does not accept the token: {why}"));
    }
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == names::TOKEN_AUDIENCE) {
        return Err(format!(
            "the token is for another audience: mount one for {:?}, as `leno inject` does",
            names::TOKEN_AUDIENCE
        ));
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let parts: Vec<&str> = name.split(':').collect();
    let ["system", "serviceaccount", namespace, account] = parts[..] else {
        return Err("the token is of somebody who is no service account".to_owned());
    };
    let extra = user.extra.unwrap_or_default();
    let pod = extra.get(POD_NAME).and_then(|pods| pods.first()).cloned();
    let (namespace, service_account) = (namespace.to_owned(), account.to_owned());
    Ok(Reviewed { namespace, service_account, pod })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(status: Value) -> Result<Reviewed, String> {
        judge(&serde_json::from_value(status).unwrap())
    }

    #[test]
    fn a_token_with_our_audience_proves_account_and_pod() {
        let status = json!({
            "authenticated": true, "audiences": ["leno"],
            "user": {"username": "system:serviceaccount:shop:orders", "extra": {
                "authentication.kubernetes.io/pod-name": ["orders-7d9-x2x"]}},
        });
        let reviewed = judged(status).unwrap();
        assert_eq!((&*reviewed.namespace, &*reviewed.service_account), ("shop", "orders"));
        assert_eq!(reviewed.pod.as_deref(), Some("orders-7d9-x2x"));
    }

    #[test]
    fn a_refusal_with_an_error_is_asked_for_again() {
        for (status, kept) in [
            (json!({"authenticated": true}), true),
            (json!({"authenticated": true, "error": "slow"}), true),
            (json!({"authenticated": false}), true),
            (json!({"authenticated": false, "error": ""}), true),
            (json!({}), true),
            (json!({"authenticated": false, "error": "no answer from the webhook"}), false),
            (json!({"error": "no answer from the webhook"}), false),
        ] {
            assert_eq!(
                is_final(&serde_json::from_value(status.clone()).unwrap()),
                kept,
                "{status}"
            );
        }
    }

    #[test]
    fn everything_else_proves_nothing() {
        let user = json!({"username": "system:serviceaccount:shop:orders"});
        for (status, reason) in [
            (json!({}), "does not accept"),
            (json!({"authenticated": false, "error": "token expired"}), "token expired"),
            // An API server that knows no audiences, and one that found another.
            (json!({"authenticated": true, "user": user}), "another audience"),
            (json!({"authenticated": true, "user": user, "audiences": ["x"]}), "another audience"),
            (json!({"authenticated": true, "audiences": ["leno"]}), "no service account"),
            (
                json!({"authenticated": true, "audiences": ["leno"], "user": {"username": "admin"}}),
                "no service account",
            ),
            (
                json!({"authenticated": true, "audiences": ["leno"],
                    "user": {"username": "system:serviceaccount:a:b:c"}}),
                "no service account",
            ),
        ] {
            let refused = judged(status.clone()).unwrap_err();
            assert!(refused.contains(reason), "{status}: {refused}");
        }
    }
}
