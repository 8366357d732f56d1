//! How a root is replaced: trusted before it signs, and no longer trusted only when nothing stands on it. Pure.
//!
//! ```text
//!          add            switch             drop
//! Idle ─────────▶ Added ─────────▶ Switched ─────────▶ Idle (the old root is kept for undo)
//!      ◀─────────       ◀─────────          ◀─────────
//!          undo             undo              undo
//! ```
//!
//! What must be so before a step is [`Needs`]: that every proxy has the roots of the step before, or that none still
//! shows a certificate of the root that goes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::access::{Member, shown};

/// A root: its SHA-256 in lower-case hex.
pub type RootId = String;

/// Proxies named in a refusal; of the others the number is given.
const MAX_NAMED: usize = 10;

/// What an administrator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Make a new root and let everybody trust it.
    Add,
    /// Issue under the new root from now on.
    Switch,
    /// Trust the old root no longer.
    Drop,
    /// Take the last step back.
    Undo,
}

/// Where the rotation stands; kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase", deny_unknown_fields)]
pub enum State {
    Idle {
        root: RootId,
        /// The one before: no longer trusted, kept until the next rotation begins so that dropping it can be undone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retired: Option<RootId>,
    },
    Added {
        root: RootId,
        next: RootId,
    },
    Switched {
        root: RootId,
        previous: RootId,
    },
}

/// What must be so before a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs<'a> {
    Nothing,
    /// Every proxy acknowledged the roots that are published now.
    Acknowledged,
    /// That, and no proxy still shows a certificate of this root.
    AcknowledgedAndUnused(&'a str),
    /// No proxy shows a certificate of this root; who does not know that root is none the worse for losing it.
    Unused(&'a str),
}

/// What is known of the proxies when a step is asked for.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Everybody who must be asked: those connected, and those that may be about to come back.
    pub expected: BTreeSet<Member>,
    /// Those that acknowledged the roots that are published now.
    pub acknowledged: BTreeSet<Member>,
    /// Proxy and root of each certificate that has not ended.
    pub certificates: Vec<(Member, RootId)>,
}

impl View {
    /// Of `members`, those with a certificate of such a root. Whoever has proven nothing has whatever was issued to
    /// anybody of that name.
    pub fn holders<'a>(
        &self,
        members: &'a BTreeSet<Member>,
        such: impl Fn(&str) -> bool,
    ) -> BTreeSet<&'a Member> {
        let found = self.certificates.iter().filter(|(_, root)| such(root));
        let holders: BTreeSet<&Member> = found.map(|(holder, _)| holder).collect();
        let names: BTreeSet<&str> = holders.iter().map(|holder| &*holder.name).collect();
        let holds = |member: &&Member| match member.id {
            Some(_) => holders.contains(*member),
            None => names.contains(&*member.name),
        };
        members.iter().filter(holds).collect()
    }
}

/// Why a step is not taken.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("cannot {action} now: {reason}")]
    OutOfOrder { action: &'static str, reason: &'static str },
    #[error("{have} of {all} proxies have the roots of the step before, wait for: {}", names(.lagging))]
    Lagging { have: usize, all: usize, lagging: Vec<String> },
    #[error(
        "{have} of {all} proxies have a certificate of the other root, wait for: {}", names(.lagging)
    )]
    InUse { have: usize, all: usize, lagging: Vec<String> },
}

impl State {
    pub fn new(root: RootId) -> Self {
        Self::Idle { root, retired: None }
    }

    /// Under which certificates are issued.
    pub fn signer(&self) -> &str {
        match self {
            Self::Idle { root, .. } | Self::Added { root, .. } | Self::Switched { root, .. } => {
                root
            }
        }
    }

    /// All that are trusted, the signer first.
    pub fn trusted(&self) -> Vec<&str> {
        match self {
            Self::Idle { root, .. } => vec![root],
            Self::Added { root, next: other } | Self::Switched { root, previous: other } => {
                vec![root, other]
            }
        }
    }

    /// All whose files are needed.
    pub fn kept(&self) -> Vec<&str> {
        let mut kept = self.trusted();
        if let Self::Idle { retired: Some(retired), .. } = self {
            kept.push(retired);
        }
        kept
    }

    pub fn step(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Added { .. } => "added",
            Self::Switched { .. } => "switched",
        }
    }

    /// What must be so before this step.
    pub fn needs(&self, action: Action) -> Needs<'_> {
        match (self, action) {
            (Self::Added { .. }, Action::Switch) => Needs::Acknowledged,
            (Self::Switched { previous, .. }, Action::Drop) => {
                Needs::AcknowledgedAndUnused(previous)
            }
            (Self::Added { next, .. }, Action::Undo) => Needs::Unused(next),
            // Both roots are trusted on either side of the others; one that comes back is no danger either.
            _ => Needs::Nothing,
        }
    }

    /// The state after a step; `fresh` makes a root where the step is to add one.
    ///
    /// # Errors
    /// [`Refused::OutOfOrder`] where this step does not come next; else what `fresh` says.
    pub fn after<E: From<Refused>>(
        &self,
        action: Action,
        fresh: impl FnOnce() -> Result<RootId, E>,
    ) -> Result<Self, E> {
        Ok(match (self.clone(), action) {
            (Self::Idle { root, .. }, Action::Add) => Self::Added { root, next: fresh()? },
            (Self::Added { root, next }, Action::Switch) => {
                Self::Switched { root: next, previous: root }
            }
            (Self::Switched { root, previous }, Action::Drop) => {
                Self::Idle { root, retired: Some(previous) }
            }
            (Self::Added { root, .. }, Action::Undo) => Self::new(root),
            (Self::Switched { root, previous }, Action::Undo) => {
                Self::Added { root: previous, next: root }
            }
            (Self::Idle { root, retired: Some(previous) }, Action::Undo) => {
                Self::Switched { root, previous }
            }
            (state, action) => return Err(state.out_of_order(action).into()),
        })
    }

    /// Whether this step comes next.
    pub fn allows(&self, action: Action) -> bool {
        matches!(
            (self, action),
            (Self::Idle { .. }, Action::Add)
                | (Self::Added { .. }, Action::Switch | Action::Undo)
                | (Self::Switched { .. }, Action::Drop | Action::Undo)
                | (Self::Idle { retired: Some(_), .. }, Action::Undo)
        )
    }

    /// # Errors
    /// [`Refused::OutOfOrder`] where it does not, with what does.
    pub fn check_order(&self, action: Action) -> Result<(), Refused> {
        if self.allows(action) { Ok(()) } else { Err(self.out_of_order(action)) }
    }

    fn out_of_order(&self, action: Action) -> Refused {
        let (action, reason) = match (action, self) {
            (Action::Add, _) => ("add a root", "one has been added already; switch to it, or undo"),
            (Action::Switch, Self::Switched { .. }) => {
                ("switch", "the new root signs already; drop the old one, or undo")
            }
            (Action::Switch, _) => ("switch", "there is no new root; add one first"),
            (Action::Drop, Self::Added { .. }) => {
                ("drop the old root", "it still signs; switch to the new one first")
            }
            (Action::Drop, _) => ("drop a root", "there is only one; add a new one first"),
            (Action::Undo, _) => ("undo", "no step has been taken"),
        };
        Refused::OutOfOrder { action, reason }
    }
}

impl Needs<'_> {
    /// Whether it matters who has the published roots.
    pub fn acknowledged(self) -> bool {
        matches!(self, Needs::Acknowledged | Needs::AcknowledgedAndUnused(_))
    }

    /// # Errors
    /// [`Refused`] names who is not there yet.
    pub fn check(self, view: &View) -> Result<(), Refused> {
        let all = view.expected.len();
        let acknowledged = |proxy: &&Member| view.acknowledged.contains(*proxy);
        match split(view, acknowledged) {
            (have, lagging) if self.acknowledged() && !lagging.is_empty() => {
                return Err(Refused::Lagging { have, all, lagging });
            }
            _ => {}
        }
        let (Needs::Unused(root) | Needs::AcknowledgedAndUnused(root)) = self else {
            return Ok(());
        };
        let users = view.holders(&view.expected, |signer| signer == root);
        match split(view, |proxy| !users.contains(proxy)) {
            (_, lagging) if lagging.is_empty() => Ok(()),
            (have, lagging) => Err(Refused::InUse { have, all, lagging }),
        }
    }
}

fn split(view: &View, has: impl Fn(&&Member) -> bool) -> (usize, Vec<String>) {
    let (have, lagging): (Vec<&Member>, Vec<&Member>) = view.expected.iter().partition(has);
    (have.len(), shown(lagging, &view.expected))
}

fn names(all: &[String]) -> String {
    let mut text = all.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.len() > MAX_NAMED {
        text.push_str(&format!(" and {} more", all.len() - MAX_NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use leno_api::model::identity::SpiffeId;

    use super::*;

    fn step(state: &State, action: Action) -> Result<State, Refused> {
        state.after(action, || Ok::<_, Refused>("b".into()))
    }

    fn view(expected: &[&str], acknowledged: &[&str], certificates: &[(&str, &str)]) -> View {
        let set = |names: &[&str]| names.iter().map(|name| Member::from(*name)).collect();
        let certificates = certificates.iter().map(|(p, r)| (Member::from(*p), r.to_string()));
        View {
            expected: set(expected),
            acknowledged: set(acknowledged),
            certificates: certificates.collect(),
        }
    }

    #[test]
    fn each_step_leads_on_and_back() {
        let idle = State::new("a".into());
        let added = step(&idle, Action::Add).unwrap();
        assert_eq!((added.signer(), added.trusted()), ("a", vec!["a", "b"]));
        assert_eq!(step(&added, Action::Undo).unwrap(), idle);
        let switched = step(&added, Action::Switch).unwrap();
        assert_eq!((switched.signer(), switched.trusted()), ("b", vec!["b", "a"]));
        assert_eq!(step(&switched, Action::Undo).unwrap(), added);
        let dropped = step(&switched, Action::Drop).unwrap();
        assert_eq!((dropped.signer(), dropped.trusted()), ("b", vec!["b"]));
        assert_eq!(dropped.kept(), ["b", "a"]);
        assert_eq!(step(&dropped, Action::Undo).unwrap(), switched);
    }

    #[test]
    fn steps_out_of_order_are_refused_with_what_to_do() {
        let idle = State::new("a".into());
        let added = step(&idle, Action::Add).unwrap();
        let switched = step(&added, Action::Switch).unwrap();
        for (state, action, says) in [
            (&idle, Action::Switch, "add one first"),
            (&idle, Action::Drop, "add a new one first"),
            (&idle, Action::Undo, "no step"),
            (&added, Action::Add, "switch to it"),
            (&added, Action::Drop, "switch to the new one first"),
            (&switched, Action::Add, "already"),
            (&switched, Action::Switch, "drop the old one"),
        ] {
            let refused = step(state, action).unwrap_err().to_string();
            assert!(refused.contains(says), "{state:?} {action:?}: {refused}");
        }
    }

    #[test]
    fn a_switch_waits_for_everybody_to_trust_the_new_root() {
        let added = State::Added { root: "a".into(), next: "b".into() };
        let needs = added.needs(Action::Switch);
        let refused = needs.check(&view(&["p", "q", "r"], &["q"], &[])).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "1 of 3 proxies have the roots of the step before, wait for: p, r"
        );
        needs.check(&view(&["p", "q"], &["q", "p"], &[("p", "a")])).unwrap();
    }

    #[test]
    fn a_root_goes_only_when_nobody_shows_it() {
        let switched = State::Switched { root: "b".into(), previous: "a".into() };
        let needs = switched.needs(Action::Drop);
        let refused = needs.check(&view(&["p", "q"], &["p", "q"], &[("p", "a"), ("q", "b")]));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "1 of 2 proxies have a certificate of the other root, wait for: p"
        );
        assert!(needs.check(&view(&["p"], &[], &[("p", "b")])).is_err(), "not acknowledged");
        needs.check(&view(&["p", "q"], &["p", "q"], &[("p", "b"), ("gone", "a")])).unwrap();
        let added = State::Added { root: "a".into(), next: "b".into() };
        let undo = added.needs(Action::Undo);
        assert!(undo.check(&view(&["p"], &["p"], &[("p", "b")])).is_err());
        undo.check(&view(&["p"], &["p"], &[("p", "a")])).unwrap();
        // A root that proxies cannot use must not stay because they cannot use it.
        undo.check(&view(&["p"], &[], &[("p", "a")])).unwrap();
    }

    #[test]
    fn nobody_is_up_to_date_in_anothers_name() {
        let of = |name: &str, account: Option<&str>| {
            let domain = leno_api::model::identity::TrustDomain::default();
            let id = account.map(|account| SpiffeId::new(&domain, "shop", account));
            Member { name: name.into(), id }
        };
        let (real, fake) = (of("p", Some("orders")), of("p", Some("web")));
        let mut view = View {
            expected: [real.clone(), fake.clone()].into(),
            acknowledged: [fake.clone()].into(),
            certificates: vec![(real.clone(), "a".into()), (fake.clone(), "b".into())],
        };
        let said = |needs: Needs<'_>, view: &View| needs.check(view).unwrap_err().to_string();
        let lagging = said(Needs::Acknowledged, &view);
        assert!(lagging.starts_with("1 of 2"), "{lagging}");
        assert!(lagging.ends_with("p (spiffe://cluster.local/ns/shop/sa/orders)"), "{lagging}");
        let in_use = said(Needs::Unused("a"), &view);
        assert!(in_use.ends_with("p (spiffe://cluster.local/ns/shop/sa/orders)"), "{in_use}");
        // Whoever proves nothing is nobody else either, and is taken to have what anybody of that name has.
        let bare = of("p", None);
        view.acknowledged = [bare.clone()].into();
        view.expected = [real.clone(), bare.clone()].into();
        assert!(said(Needs::Acknowledged, &view).contains("sa/orders"));
        view.expected = [bare].into();
        view.certificates = vec![(fake, "b".into()), (real, "a".into())];
        assert!(
            Needs::Unused("a").check(&view).is_err() && Needs::Unused("b").check(&view).is_err()
        );
        Needs::Unused("c").check(&view).unwrap();
    }

    #[test]
    fn long_lists_of_laggards_are_cut() {
        let all: Vec<String> = (10..30).map(|n| format!("p{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let refused = Needs::Acknowledged.check(&view(&all, &[], &[])).unwrap_err().to_string();
        assert!(refused.contains("0 of 20") && refused.ends_with("p19 and 10 more"), "{refused}");
    }

    #[test]
    fn survives_its_file() {
        for state in [
            State::new("a".into()),
            State::Idle { root: "b".into(), retired: Some("a".into()) },
            State::Added { root: "a".into(), next: "b".into() },
            State::Switched { root: "b".into(), previous: "a".into() },
        ] {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
        }
    }
}
