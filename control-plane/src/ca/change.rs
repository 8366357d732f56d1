//! What changes what is trusted: the start, a step of a rotation, the user's files; and the task that keeps all of it
//! up to date.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use leno_api::model::identity::SpiffeId;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Authority, Certificate, Error, Fleet, NextStep, RootStatus, RotateError, Rotation, Status,
    authority::Changing,
    files::{self, PUBLIC},
    jwks, now, rfc3339,
    root::Trust,
    rotation::{RootId, State, View},
    user::Contents,
};
use crate::access::{Member, shown};

/// The trusted roots in the data directory: the bootstrap bundle of whoever is on this machine.
pub const ROOT_FILE: &str = "root.pem";
/// How often the user's files, our own certificate and the stored bundle are looked at.
const TICK: Duration = Duration::from_secs(1);
/// After a start, proxies that have a certificate are expected back for this long; whoever comes later is away.
const RETURN: Duration = Duration::from_secs(60);
/// A signer that ends sooner is complained about, once a day.
const SOON: i64 = 30 * 24 * 3600;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Proxies named in a status.
const MAX_NAMED: usize = 20;

impl Authority {
    /// Takes one step of a rotation, or takes it back.
    ///
    /// # Errors
    /// [`RotateError::Refused`] while proxies lag behind the step before, unless forced; what is trusted is then as it
    /// was.
    pub async fn rotate(
        &self,
        action: Rotation,
        force: bool,
        fleet: &dyn Fleet,
    ) -> Result<Status, RotateError> {
        let mut changing = self.changing.lock().await;
        let state = match (&self.trust().rotation, &self.settings.user) {
            (_, Some(files)) => return Err(RotateError::UserRoots(files.root.clone())),
            (Some(state), None) => state.clone(),
            (None, None) => return Err(RotateError::NotPublished),
        };
        // Also finds steps out of order before a root is made for nothing.
        if !force {
            self.check(&state, action, fleet)?;
        }
        let next = state.after(action, || Ok::<_, RotateError>(self.roots.make(now())?))?;
        let trust = self.roots.trust(next.clone(), now())?;
        self.roots.save(&next)?;
        tracing::warn!(
            ?action,
            force,
            signer = next.signer(),
            step = next.step(),
            "a step of the root's rotation was taken"
        );
        self.changed(trust, &mut changing).await;
        Ok(self.status(fleet))
    }

    /// How things stand, and what can be done next.
    pub fn status(&self, fleet: &dyn Fleet) -> Status {
        let trust = self.trust();
        let view = self.view(fleet);
        let connected: BTreeSet<Member> = fleet.connected().into_iter().collect();
        let have = connected.intersection(&view.acknowledged).count();
        let waiting_for = connected.difference(&view.acknowledged).take(MAX_NAMED);
        let other = view.holders(&connected, |root| root != trust.signer.root);
        let absent = view.certificates.iter().map(|(proxy, _)| proxy);
        let absent = absent.filter(|proxy| !is_connected(proxy, &connected)).count();
        Status {
            trust_domain: self.settings.trust_domain.to_string(),
            source: if self.settings.user.is_some() { "files" } else { "own" },
            roots: roots(&trust),
            generation: self.generation(),
            connected: connected.len(),
            have_bundle: have,
            waiting_for: shown(waiting_for, &connected),
            on_other_root: shown(other.into_iter().take(MAX_NAMED), &connected),
            absent,
            step: trust.rotation.as_ref().map(State::step),
            next: self.next(trust.rotation.as_ref(), fleet),
        }
    }

    fn next(&self, state: Option<&State>, fleet: &dyn Fleet) -> Vec<NextStep> {
        let Some(state) = state else { return Vec::new() };
        let all = [Rotation::Add, Rotation::Switch, Rotation::Drop, Rotation::Undo];
        let possible = all.into_iter().filter(|action| state.allows(*action));
        possible
            .map(|action| NextStep {
                action,
                blocked: self.check(state, action, fleet).err().map(|error| error.to_string()),
            })
            .collect()
    }

    fn check(&self, state: &State, action: Rotation, fleet: &dyn Fleet) -> Result<(), RotateError> {
        state.check_order(action)?;
        let needs = state.needs(action);
        if needs.acknowledged() && self.generation().is_none() {
            return Err(RotateError::NotPublished);
        }
        Ok(needs.check(&self.view(fleet))?)
    }

    fn view(&self, fleet: &dyn Fleet) -> View {
        let (now, generation) = (now(), self.generation());
        let valid = self.certificates().into_iter().filter(|one| one.not_after > now);
        let certificates: Vec<(Member, RootId)> = valid.filter_map(holder).collect();
        let mut expected: BTreeSet<Member> = fleet.connected().into_iter().collect();
        if self.opened.elapsed() < RETURN {
            let back = certificates.iter().map(|(member, _)| member);
            let away: Vec<_> = back.filter(|m| !is_connected(m, &expected)).cloned().collect();
            expected.extend(away);
        }
        let acknowledged = generation.map(|generation| fleet.have_bundle(generation));
        View { expected, acknowledged: acknowledged.into_iter().flatten().collect(), certificates }
    }

    /// Everything that follows from new roots or a new signer. What fails is tried again by the task.
    async fn changed(&self, trust: Trust, changing: &mut Changing) {
        self.adopt(trust);
        self.announce();
        if let Err(error) = self.serve_anew(&mut changing.serving) {
            tracing::error!(%error, "our own ports keep the certificate they have");
            changing.serving.renew = now();
        }
        self.write_root_file();
        self.keep_published().await;
    }

    fn announce(&self) {
        let trust = self.trust();
        self.metrics.issuer_expiry.set(trust.signer.not_after);
        self.metrics.roots.set(i64::try_from(trust.roots.len()).unwrap_or(i64::MAX));
    }

    fn write_root_file(&self) {
        let path = self.settings.data_dir.join(ROOT_FILE);
        let text = self.bundle_pem();
        if files::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return;
        }
        if let Err(error) = files::write(&path, text.as_bytes(), PUBLIC) {
            tracing::error!(%error, "the trusted roots cannot be written to the data directory");
        }
    }

    /// Costs a look into the store where nothing changed.
    async fn keep_published(&self) {
        if let Err(error) = self.publish().await {
            self.metrics.publish_failures.inc();
            tracing::error!(%error, "proxies cannot be told which roots are trusted; trying again");
        }
    }

    /// Looks at the user's files; garbage, and files that do not belong together, change nothing.
    async fn reload(&self, changing: &mut Changing) {
        let Some(files) = self.settings.user.clone() else { return };
        let read = tokio::task::spawn_blocking(move || Contents::read(&files)).await;
        let read = match read {
            Ok(Ok(contents)) => contents,
            Ok(Err(error)) => return self.reload_failed(changing, error.to_string()),
            Err(error) => return self.reload_failed(changing, error.to_string()),
        };
        changing.unreadable = None;
        if changing.contents.as_ref() == Some(&read) {
            return;
        }
        let trust = self.settings.user.as_ref().map(|files| read.trust(files, now()));
        changing.contents = Some(read);
        match trust {
            Some(Ok(trust)) => {
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                tracing::info!(signer = trust.signer.root, "the certificate files were read again");
                self.changed(trust, changing).await;
            }
            Some(Err(error)) => {
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                tracing::error!(%error, "the certificate files changed and cannot be used; what was read before stays");
            }
            None => {}
        }
    }

    /// Once for each reason, not each second.
    fn reload_failed(&self, changing: &mut Changing, reason: String) {
        if changing.unreadable.as_ref() == Some(&reason) {
            return;
        }
        self.metrics.reloads.with_label_values(&["failed"]).inc();
        tracing::error!(reason, "the certificate files cannot be read; what was read before stays");
        changing.unreadable = Some(reason);
    }

    pub(super) async fn tick(&self) {
        let mut changing = self.changing.lock().await;
        self.reload(&mut changing).await;
        if changing.serving.is_due(now())
            && let Err(error) = self.serve_anew(&mut changing.serving)
        {
            tracing::error!(%error, "the certificate of our own ports cannot be renewed");
        }
        self.write_root_file();
        self.keep_published().await;
    }
}

/// Publishes what was read at start.
pub(super) async fn begin(authority: &Authority) -> Result<(), Error> {
    let changing = authority.changing.lock().await;
    authority.announce();
    authority.metrics.serving_expiry.set(changing.serving.not_after);
    authority.write_root_file();
    authority.publish().await
}

pub(super) async fn run(authority: &Authority) {
    tokio::join!(keep_up(authority), keep_keys(authority));
}

async fn keep_up(authority: &Authority) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained: Option<Instant> = None;
    loop {
        ticks.tick().await;
        authority.tick().await;
        let left = authority.trust().signer.not_after - now();
        if left < SOON && complained.is_none_or(|last| last.elapsed() > DAY) {
            complained = Some(Instant::now());
            let days = left / 86_400;
            tracing::error!(
                days,
                "the issuing certificate or its root ends soon: rotate the root (`leno ca rotate-root`), or replace the certificate files"
            );
        }
    }
}

/// Beside the rest: an issuer that answers slowly must not delay our own certificate.
async fn keep_keys(authority: &Authority) {
    let Some(issuer) = &authority.issuer else { return };
    let mut ticks = interval(jwks::REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        issuer.read_again(TICK).await;
    }
}

/// Whose certificate it is, and under which root.
fn holder(certificate: Certificate) -> Option<(Member, RootId)> {
    // Ours are all of this form.
    let id = SpiffeId::parse(&certificate.spiffe_id).ok()?;
    Some((Member { name: certificate.proxy, id: Some(id) }, certificate.signer))
}

/// As who it has proven to be, or by an administrator who speaks for it.
fn is_connected(member: &Member, connected: &BTreeSet<Member>) -> bool {
    connected.contains(member)
        || connected.contains(&Member { name: member.name.clone(), id: None })
}

fn roots(trust: &Trust) -> Vec<RootStatus> {
    let root = |root: &super::root::Root| RootStatus {
        fingerprint: root.fingerprint.clone(),
        subject: root.subject.clone(),
        not_before: rfc3339(root.not_before),
        not_after: rfc3339(root.not_after),
        signer: root.fingerprint == trust.signer.root,
    };
    trust.roots.iter().map(root).collect()
}
