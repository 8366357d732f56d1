//! Shares of the limits that all proxies of a service have together: asked for regularly, as long as there are such
//! limits. Without an answer this proxy goes on with an equal part of each limit, by the number of proxies that were there
//! last.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use leno_api::wire::TOKEN_HEADER;
use tonic::{Request, transport::Channel};

use super::{Access, stream};
use crate::{
    filter::rate_limit::{
        Limit,
        counter::Counter,
        lease::{Granted, Lease},
    },
    snapshot::{LimitId, Published},
    telemetry::metrics::Families,
};
use proto::{
    KeyDemand, LeaseRequest, LeaseResponse, LimitDemand, LimitGrant, quota_client::QuotaClient,
};

#[expect(clippy::allow_attributes_without_reason, reason = "generated")]
mod proto {
    tonic::include_proto!("leno.quota.v1");
}

/// How long an answer is waited for: a fraction of the time for which a share holds.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a connection is: by then every share has run out.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failure, at most; half of it is by chance.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The control plane says how often to ask, within these.
const MIN_PACE: Duration = Duration::from_millis(50);
const MAX_PACE: Duration = Duration::from_secs(60);

/// Whom to ask, and for whom.
#[derive(Debug)]
pub struct Options {
    /// `127.0.0.1:15012`, or a name with a port.
    pub address: String,
    /// How it is spoken to.
    pub access: Access,
    /// What people know the proxy by.
    pub proxy: String,
    /// When time began for the limits.
    pub started: Instant,
}

/// Asks for ever. While there are no global limits nobody is connected to.
pub async fn run(options: Options, published: Arc<Published>, families: Arc<Families>) {
    let mut generations = published.subscribe();
    let mut asking =
        Asking { options, families, client: None, held: BTreeMap::new(), answered: None };
    loop {
        generations.mark_unchanged();
        asking.reconcile(&published.load().inbound.limits);
        if asking.held.is_empty() {
            asking.client = None;
            if generations.changed().await.is_err() {
                return;
            }
            continue;
        }
        let pause = asking.round().await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A limit that has just come is asked for at once.
            changed = generations.changed() => if changed.is_err() { return },
        }
    }
}

struct Asking {
    options: Options,
    families: Arc<Families>,
    client: Option<QuotaClient<Channel>>,
    held: BTreeMap<LimitId, Held>,
    /// Whether the last question was; `None` before the first.
    answered: Option<bool>,
}

/// A global limit, and our share in it.
struct Held {
    limit: Arc<Limit>,
    lease: Lease,
}

impl Asking {
    fn now(&self) -> Duration {
        self.options.started.elapsed()
    }

    /// Takes up which limits there are. A share stays with the buckets it is for.
    fn reconcile(&mut self, limits: &BTreeMap<LimitId, crate::snapshot::HeldLimit>) {
        let mut before = std::mem::take(&mut self.held);
        for (id, held) in limits.iter().filter(|(_, held)| held.limit.counter.is_global()) {
            let limit = held.limit.clone();
            let same = |counter: &Arc<Counter>| Arc::ptr_eq(counter, &limit.counter);
            let kept = before.remove(id).filter(|old| same(&old.limit.counter));
            let lease = kept.map(|old| old.lease).unwrap_or_default();
            self.held.insert(id.clone(), Held { limit, lease });
        }
    }

    /// Asks once. Returns after which time to ask again.
    async fn round(&mut self) -> Duration {
        let request = self.request();
        let asked_at = self.now();
        let answer = self.ask(request).await;
        let now = self.now();
        let pause = match answer {
            Ok(answer) => {
                self.note(None);
                self.take_up(&answer, asked_at, now)
            }
            Err(reason) => {
                self.client = None;
                self.note(Some(&reason));
                RETRY_AFTER.mul_f64(0.5 + rand::random::<f64>() / 2.0)
            }
        };
        for (id, held) in &mut self.held {
            if held.lease.expire(&held.limit.counter, &held.limit.rate, now) {
                tracing::warn!(
                    "global limit `{}` of RateLimitPolicy {} for {}: the share has run out, going on with an equal part",
                    id.name,
                    id.policy,
                    id.service
                );
            }
            let labels = [&*id.service.to_string(), &*id.policy.to_string(), &*id.name];
            let leased = self.families.resilience.limiting.leased.with_label_values(&labels);
            leased.set(held.lease.is_granted().into());
        }
        pause
    }

    fn request(&mut self) -> LeaseRequest {
        let now = self.now();
        let limits = self.held.iter_mut().map(|(id, Held { limit, lease })| {
            limit.take_over(now);
            let wishes = lease.wishes(&limit.counter, &limit.rate, now);
            let key = |wish: &crate::filter::rate_limit::lease::Wish| KeyDemand {
                key: wish.key,
                millionths: wish.demand,
            };
            LimitDemand {
                namespace: id.service.namespace.to_string(),
                service: id.service.name.to_string(),
                policy: id.policy.name.to_string(),
                limit: id.name.to_string(),
                keys: wishes.iter().map(key).collect(),
            }
        });
        let limits = limits.collect();
        LeaseRequest { proxy: self.options.proxy.clone(), limits }
    }

    async fn ask(&mut self, request: LeaseRequest) -> Result<LeaseResponse, String> {
        let mut request = Request::new(request);
        if let Access::Plain { token_file: Some(file) } = &self.options.access {
            request.metadata_mut().insert(TOKEN_HEADER, stream::token(file)?);
        }
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let connecting = stream::connect(&self.options.address, &self.options.access);
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
                QuotaClient::new(connected.map_err(|_| "no connection in time".to_owned())??)
            }
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.lease(request)).await;
        let answer = answer.map_err(|_| format!("no answer within {CALL_TIMEOUT:?}"))?;
        let answer = answer.map_err(|status| stream::explain(&status))?.into_inner();
        self.client = Some(client);
        Ok(answer)
    }

    fn take_up(&mut self, answer: &LeaseResponse, asked_at: Duration, now: Duration) -> Duration {
        let valid_for = Duration::from_millis(answer.valid_for_ms.into());
        // Our time began when we asked, lest we use what has been given to somebody else already.
        let valid_for = valid_for.saturating_sub(now.saturating_sub(asked_at));
        for (held, grant) in self.held.values_mut().zip(&answer.limits) {
            let granted = granted(grant, valid_for);
            held.lease.grant(&held.limit.counter, &held.limit.rate, &granted, now);
        }
        Duration::from_millis(answer.ask_again_after_ms.into()).clamp(MIN_PACE, MAX_PACE)
    }

    /// Says so when that changes.
    fn note(&mut self, failure: Option<&str>) {
        match failure {
            Some(reason) if self.answered != Some(false) => tracing::warn!(
                "the control plane grants no share in global rate limits ({reason}); trying again"
            ),
            None if self.answered == Some(false) => {
                tracing::info!("the control plane grants shares in global rate limits again");
            }
            _ => {}
        }
        self.answered = Some(failure.is_none());
    }
}

fn granted(grant: &LimitGrant, valid_for: Duration) -> Granted {
    let shares = grant.keys.iter().map(|key| (key.key, key.millionths)).collect();
    Granted { proxies: grant.proxies, valid_for, shares }
}
