//! `leno.quota.v1.Quota`: proxies ask for shares of the limits that they have together.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status};

use super::server::{Discovery, caller};
use crate::{
    quota::{Grant, Ledger, LimitId, MAX_KEYS, MAX_LIMITS_ASKED, Part},
    transport::Peer,
};
use proto::{KeyGrant, LeaseRequest, LeaseResponse, LimitDemand, LimitGrant};

/// The wire: generated from `api/proto/quota.proto`.
pub mod proto {
    #![expect(clippy::allow_attributes_without_reason, reason = "generated")]
    tonic::include_proto!("leno.quota.v1");
}

/// The largest request: [`MAX_LIMITS_ASKED`] limits with all of their keys would be 4 MB; no proxy has that many.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// Of a proxy's name, and of each name of a limit.
const MAX_NAME: usize = 512;

/// The service; one for all connections.
pub struct Quotas {
    shared: Arc<Discovery>,
    ledger: Mutex<Ledger>,
    started: Instant,
}

impl Quotas {
    /// Nobody has anything yet.
    pub fn new(shared: Arc<Discovery>) -> Self {
        Self { shared, ledger: Mutex::default(), started: Instant::now() }
    }

    fn grant(&self, holder: &Arc<str>, limits: &[LimitDemand]) -> LeaseResponse {
        let now = self.started.elapsed();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let grants: Vec<Option<Grant>> = limits
            .iter()
            .map(|limit| {
                let part =
                    |key: &proto::KeyDemand| Part { key: key.key, millionths: key.millionths };
                let wishes: Vec<Part> = limit.keys.iter().map(part).collect();
                ledger.lease(&id(limit), holder, &wishes, now)
            })
            .collect();
        let shares = i64::try_from(ledger.len()).unwrap_or(i64::MAX);
        drop(ledger);
        self.shared.metrics.quota_shares.set(shares);
        // What is good for the quickest is good for all.
        let least = |time: fn(&Grant) -> Duration| {
            let millis = grants.iter().flatten().map(time).min().unwrap_or_default().as_millis();
            u32::try_from(millis).unwrap_or(u32::MAX)
        };
        LeaseResponse {
            valid_for_ms: least(|grant| grant.valid_for),
            ask_again_after_ms: least(|grant| grant.ask_again_after),
            limits: grants.iter().map(grant_of).collect(),
        }
    }
}

#[tonic::async_trait]
impl proto::quota_server::Quota for Quotas {
    async fn lease(
        &self,
        request: Request<LeaseRequest>,
    ) -> Result<Response<LeaseResponse>, Status> {
        let caller = caller(&self.shared, &request).await?;
        let peer = request.extensions().get::<Peer>().cloned();
        let request = request.into_inner();
        check(&request).map_err(Status::invalid_argument)?;
        for limit in &request.limits {
            if !caller.speaks_for(&limit.namespace) {
                let message = format!(
                    "{caller} has no share in limits of namespace {:?}: only proxies of that namespace have",
                    limit.namespace
                );
                return Err(Status::permission_denied(message));
            }
        }
        if let Some(peer) = peer {
            peer.admission.grant();
        }
        // A name is worth no more than who says it: nobody asks in the name of another identity's proxy.
        let holder = format!("{} {}", caller.name, request.proxy).into();
        Ok(Response::new(self.grant(&holder, &request.limits)))
    }
}

fn check(request: &LeaseRequest) -> Result<(), String> {
    if request.proxy.is_empty() || request.proxy.len() > MAX_NAME {
        return Err(format!("proxy: must have 1 to {MAX_NAME} bytes"));
    }
    if request.limits.len() > MAX_LIMITS_ASKED {
        return Err(format!("limits: at most {MAX_LIMITS_ASKED}"));
    }
    let mut asked = HashSet::new();
    for (at, limit) in request.limits.iter().enumerate() {
        let names = [&limit.namespace, &limit.service, &limit.policy, &limit.limit];
        if names.iter().any(|name| name.is_empty() || name.len() > MAX_NAME) {
            return Err(format!("limits[{at}]: every name must have 1 to {MAX_NAME} bytes"));
        }
        if limit.keys.len() > MAX_KEYS {
            return Err(format!("limits[{at}].keys: at most {MAX_KEYS}"));
        }
        if !asked.insert(names) {
            return Err(format!("limits[{at}]: asked for twice"));
        }
    }
    Ok(())
}

fn id(limit: &LimitDemand) -> LimitId {
    LimitId {
        namespace: limit.namespace.clone(),
        service: limit.service.clone(),
        policy: limit.policy.clone(),
        limit: limit.limit.clone(),
    }
}

/// Where there are too many limits, nobody is known to share this one.
fn grant_of(grant: &Option<Grant>) -> LimitGrant {
    let Some(grant) = grant else { return LimitGrant::default() };
    let key = |part: &Part| KeyGrant { key: part.key, millionths: part.millionths };
    LimitGrant { proxies: grant.proxies, keys: grant.parts.iter().map(key).collect() }
}
