//! A proxy as others speak of it: its name, which it chooses itself, and whose it is, which it has proven.

use std::{collections::BTreeSet, fmt};

use leno_api::model::identity::{SpiffeId, TrustDomain};

use super::{Caller, DEFAULT_ACCOUNT, Role};

/// Never the name alone: with it anybody could pose as somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// What people know it by.
    pub name: String,
    /// By its certificate or token; `None` where an administrator speaks for it, who needs no proof.
    pub id: Option<SpiffeId>,
}

impl Member {
    /// The proxy that calls itself `name` on a stream of `caller`.
    pub fn new(name: String, caller: &Caller, trust_domain: &TrustDomain) -> Self {
        let namespace = caller.namespace.as_deref().filter(|_| caller.role == Role::Workload);
        let account = caller.service_account.as_deref().unwrap_or(DEFAULT_ACCOUNT);
        Self {
            name,
            id: namespace.map(|namespace| SpiffeId::new(trust_domain, namespace, account)),
        }
    }
}

/// A proxy of which nothing but the name is known.
impl From<&str> for Member {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), id: None }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(out, "{} ({id})", self.name),
            None => write!(out, "{} (no identity)", self.name),
        }
    }
}

/// By name, and where several of `all` have the same name, by identity, too.
pub fn shown<'a>(
    members: impl IntoIterator<Item = &'a Member>,
    all: &BTreeSet<Member>,
) -> Vec<String> {
    let pairs = all.iter().zip(all.iter().skip(1));
    let shared: BTreeSet<&str> =
        pairs.filter(|(one, next)| one.name == next.name).map(|(one, _)| &*one.name).collect();
    let text = |member: &Member| match shared.contains(&*member.name) {
        true => member.to_string(),
        false => member.name.clone(),
    };
    members.into_iter().map(text).collect()
}
