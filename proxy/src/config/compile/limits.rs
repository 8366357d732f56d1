//! Rate limits of our own application's ports.

use std::{collections::BTreeMap, sync::Arc};

use leno_api::model::service::{Service, ServicePort};

use super::{Inputs, inbound::Served};
use crate::{
    filter::rate_limit::Limit,
    snapshot::{HeldLimit, LimitId},
};

type Held = BTreeMap<LimitId, HeldLimit>;

/// Adds all limits on `service` to `held`. One whose policy is the same is carried over; one with other numbers keeps
/// its counts.
pub(super) fn hold(held: &mut Held, previous: &Held, inputs: &Inputs, service: &Service) {
    for policy in inputs.rate_limits_of(&service.name) {
        for model in &policy.limits {
            let id = LimitId {
                service: service.name.clone(),
                policy: policy.name.clone(),
                name: model.name.clone(),
            };
            let old = previous.get(&id);
            let kept = old.filter(|old| Arc::ptr_eq(&old.source, policy)).cloned();
            let limit = kept.unwrap_or_else(|| {
                let old = old.map(|old| &*old.limit);
                let limit = Limit::new(policy.name.to_string().into(), model.clone(), old);
                HeldLimit { source: policy.clone(), limit: limit.into() }
            });
            held.insert(id, limit);
        }
    }
}

/// Those of `held` that are for this port.
pub(super) fn of(
    inputs: &Inputs,
    served: &Served<'_>,
    port: &ServicePort,
    held: &Held,
) -> Box<[Arc<Limit>]> {
    served.all().flat_map(|service| of_one(inputs, service, port, held)).collect()
}

fn of_one<'a>(
    inputs: &'a Inputs,
    service: &'a Service,
    port: &'a ServicePort,
    held: &'a Held,
) -> impl Iterator<Item = Arc<Limit>> {
    let policies = inputs.rate_limits_of(&service.name).filter(move |policy| {
        policy.targets.iter().any(|target| {
            let section = target.section.as_deref();
            target.service == service.name && section.is_none_or(|section| section == port.name)
        })
    });
    let ids = policies.flat_map(move |policy| {
        policy.limits.iter().map(move |limit| LimitId {
            service: service.name.clone(),
            policy: policy.name.clone(),
            name: limit.name.clone(),
        })
    });
    ids.filter_map(|id| held.get(&id)).map(|held| held.limit.clone())
}
