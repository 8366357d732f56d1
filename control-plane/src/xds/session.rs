//! One proxy's stream as a state machine: no sockets, no clock. Requests and planned changes go in, verdicts
//! and wishes come out, and [`Session::next_response`] says what is sent next.
//!
//! For each object three versions count: the one the proxy should have, the one it was sent last, and the one
//! it accepted last. What it was sent is never sent again until it changes, accepted or not. A consistent
//! change is one **round**: a row of responses in safe order, all but the last marked "more follows"; at most
//! [`MAX_ROUNDS`] may be unanswered, and what changes meanwhile collects as state, not as a queue.
//!
//! Nearly always nearly everything is settled: the proxy has accepted what it should have. Of that only the object
//! is kept, and a slot with all that can be different for what is on its way, refused or to be taken back.
//!
//! Nothing is sent before the first request for services, since the scope of every other type hangs on it:
//! a reconnecting proxy would otherwise be told to drop what it is about to ask for.

mod round;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use leno_api::{Key, KindInfo, model::ObjectName, wire};

use self::round::Draft;
use super::names::parse_wish;
use crate::plan::{Delta, Held, Item, Verdict, Wish};

/// Names that one stream may be subscribed to.
pub const MAX_NAMES: usize = 10_000;
/// Consistent changes that may be on their way, sent but not answered.
pub const MAX_ROUNDS: usize = 4;
/// The kind that must have been asked for before anything is sent.
const GATE: &str = "Service";
/// The longest name that anything answers to: `host/`, a label, a host.
const MAX_NAME_BYTES: usize = 512;
/// Lines of a rejection that are read.
const MAX_REJECTION_LINES: usize = 10_000;

/// So many times the room that its slots need, a session may keep; a quarter of it is what growing leaves.
const SPARE: usize = 4;

/// A request, free of its transport.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub type_url: String,
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
    pub initial_versions: HashMap<String, String>,
    pub nonce: String,
    /// Why the response with this nonce was rejected.
    pub error: Option<String>,
}

/// What a request means for others.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Set when wishes changed: tell the planner, with this sequence number.
    pub sequence: Option<u64>,
    pub add: Vec<Wish>,
    pub remove: Vec<Wish>,
    pub verdicts: Vec<Verdict>,
    /// Odd but harmless; for counting.
    pub oddities: Vec<Oddity>,
    /// The kind of the response that this answers, and whether all of it was accepted.
    pub answered: Option<(&'static KindInfo, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// A type that this control plane does not serve; a newer proxy may ask for such.
    UnknownType,
    UnknownNonce,
    /// A name that nothing can have; it is answered as absent.
    BadName,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error(
        "more than {MAX_NAMES} names subscribed on one stream: unsubscribe those no longer used"
    )]
    TooManyNames,
}

/// A response, free of its transport.
#[derive(Clone, Debug)]
pub struct Response {
    pub kind: &'static KindInfo,
    pub nonce: u64,
    /// The store's revision that the round brings the proxy to.
    pub revision: u64,
    /// More responses of the same round follow.
    pub more: bool,
    pub resources: Vec<Sent>,
    pub removed: Vec<String>,
}

/// A resource in a response, with the subscribed hosts that it answers to.
#[derive(Clone, Debug)]
pub struct Sent {
    pub item: Arc<Item>,
    pub aliases: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Session {
    types: HashMap<&'static str, TypeState>,
    /// What the proxy should have, was sent and has accepted, all three in one version.
    settled: HashSet<Held>,
    /// Everything else that it should have, or may have.
    slots: HashMap<Key, Slot>,
    /// Slots to look at when the next round starts.
    dirty: BTreeSet<Key>,
    wishes: HashMap<Wish, WishState>,
    /// Answers to give in the next round.
    answers: BTreeMap<Wish, Answer>,
    /// Subscribed names that nothing can have, to be answered as absent.
    absent: BTreeSet<String>,
    names: usize,
    asked: u64,
    answered: u64,
    revision: u64,
    nonce: u64,
    round: u64,
    queue: VecDeque<Draft>,
    in_flight: BTreeMap<u64, InFlight>,
}

#[derive(Debug)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<ObjectName>,
}

#[derive(Debug, Default)]
struct Slot {
    desired: Option<Arc<Item>>,
    sent: Option<Arc<str>>,
    /// Send it even if the proxy has it: it may have dropped it.
    again: bool,
    /// The proxy's last word, and about which version.
    verdict: Option<(Arc<str>, Result<(), String>)>,
}

impl Slot {
    /// Of an object of which nothing is to come.
    fn settled(item: Arc<Item>) -> Self {
        let version = &item.version;
        Self {
            sent: Some(version.clone()),
            again: false,
            verdict: Some((version.clone(), Ok(()))),
            desired: Some(item),
        }
    }

    fn is_settled(&self) -> bool {
        let Some(item) = &self.desired else { return false };
        let accepted = matches!(&self.verdict, Some((version, Ok(()))) if *version == item.version);
        accepted && !self.again && self.sent.as_ref() == Some(&item.version)
    }

    fn is_empty(&self) -> bool {
        self.desired.is_none() && self.sent.is_none()
    }
}

#[derive(Debug)]
struct Answer {
    services: Vec<ObjectName>,
    /// Name the services even if the proxy has them.
    repeat: bool,
}

#[derive(Debug)]
struct WishState {
    /// As last planned; `None` before the first answer.
    services: Option<Vec<ObjectName>>,
    /// Whether the first answer repeats what the proxy has; not when it resumes.
    repeat: bool,
}

#[derive(Debug)]
struct InFlight {
    kind: &'static KindInfo,
    round: u64,
    items: Vec<(Key, Arc<str>)>,
}

impl Session {
    /// Takes up a request.
    ///
    /// # Errors
    /// [`Violation`] ends the stream.
    pub fn request(&mut self, request: Request) -> Result<Effects, Violation> {
        let mut effects = Effects::default();
        let Some(kind) = wire::kind_of_type_url(&request.type_url) else {
            effects.oddities.push(Oddity::UnknownType);
            return Ok(effects);
        };
        self.answer_to_response(kind, &request, &mut effects);
        let first = !self.types.contains_key(kind.kind);
        // xDS: a first request that names nothing asks for everything.
        let implicit = first && request.subscribe.is_empty();
        let resuming = first && !request.initial_versions.is_empty();
        self.types
            .entry(kind.kind)
            .or_insert(TypeState { wildcard: implicit, names: BTreeSet::new() });
        if first {
            self.claim(kind, &request.initial_versions);
        }
        for name in &request.unsubscribe {
            self.unsubscribe(kind, name, &mut effects);
        }
        for name in &request.subscribe {
            self.subscribe(kind, name, resuming, &mut effects)?;
        }
        let named = !request.subscribe.is_empty() || !request.unsubscribe.is_empty();
        if first || (named && !is_service(kind)) {
            self.reconsider(kind);
        }
        let wishes_changed = !effects.add.is_empty() || !effects.remove.is_empty();
        if wishes_changed || (first && is_service(kind)) {
            self.asked += 1;
            effects.sequence = Some(self.asked);
        }
        Ok(effects)
    }

    /// Takes up what was planned. Verdicts follow where the proxy has judged just that before.
    pub fn offer(&mut self, delta: Delta, answered: u64, revision: u64) -> Vec<Verdict> {
        self.answered = self.answered.max(answered);
        self.revision = revision;
        let mut verdicts = Vec::new();
        for (key, item) in delta.items {
            let slot = self.slot_or_new(&key);
            if let (Some(item), Some((version, result))) = (&item, &slot.verdict)
                && item.version == *version
            {
                let (version, result) = (version.clone(), result.clone());
                verdicts.push(Verdict { key: key.clone(), version, result });
            }
            slot.desired = item;
            self.dirty.insert(key);
        }
        for (wish, services) in delta.answers {
            self.answer(wish, services);
        }
        verdicts
    }

    /// What to send next, if anything may be sent now.
    pub fn next_response(&mut self) -> Option<Response> {
        if self.queue.is_empty() && self.may_start_round() {
            self.start_round();
        }
        let draft = self.queue.pop_front()?;
        self.nonce += 1;
        let items = draft.resources.iter();
        let items = items.map(|sent| (sent.item.key.clone(), sent.item.version.clone())).collect();
        self.in_flight.insert(self.nonce, InFlight { kind: draft.kind, round: self.round, items });
        Some(Response {
            kind: draft.kind,
            nonce: self.nonce,
            revision: draft.revision,
            more: !self.queue.is_empty(),
            resources: draft.resources,
            removed: draft.removed,
        })
    }

    /// Whether everything planned has been sent and answered.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty() && !self.has_changes()
    }

    fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.answers.is_empty() || !self.absent.is_empty()
    }

    fn may_start_round(&self) -> bool {
        let rounds: HashSet<_> = self.in_flight.values().map(|sent| sent.round).collect();
        let services = self.types.keys().any(|kind| *kind == GATE);
        services && self.answered >= self.asked && self.has_changes() && rounds.len() < MAX_ROUNDS
    }

    fn start_round(&mut self) {
        self.round += 1;
        self.queue = round::compose(self);
    }

    /// What the proxy says it has from an earlier stream. Taken as accepted: it runs it.
    fn claim(&mut self, kind: &'static KindInfo, versions: &HashMap<String, String>) {
        for (name, version) in versions {
            // Other names cannot be ours.
            let Some(name) = ObjectName::parse(name) else { continue };
            let key = Key { kind, name };
            let slot = self.slot_or_new(&key);
            let version: Arc<str> = version.as_str().into();
            slot.sent = Some(version.clone());
            slot.verdict = Some((version, Ok(())));
            self.dirty.insert(key);
        }
    }

    /// Marks every object of the kind: what of it is asked for has changed.
    fn reconsider(&mut self, kind: &KindInfo) {
        let settled = self.settled.iter().map(|Held(item)| &item.key);
        let keys = self.slots.keys().chain(settled);
        self.dirty.extend(keys.filter(|key| std::ptr::eq(key.kind, kind)).cloned());
    }

    /// The slot of an object that is known here, for something about it to change.
    fn slot(&mut self, key: &Key) -> Option<&mut Slot> {
        if let Some(Held(item)) = self.settled.take(key) {
            self.slots.insert(key.clone(), Slot::settled(item));
        }
        self.slots.get_mut(key)
    }

    fn slot_or_new(&mut self, key: &Key) -> &mut Slot {
        let settled = self.settled.take(key);
        let slot = || settled.map_or_else(Slot::default, |Held(item)| Slot::settled(item));
        self.slots.entry(key.clone()).or_insert_with(slot)
    }

    /// Keeps no more of the object than it needs, once nothing about it is to come.
    fn settle(&mut self, key: &Key) {
        match self.slots.get(key) {
            Some(slot) if slot.is_empty() => {
                self.slots.remove(key);
            }
            Some(slot) if slot.is_settled() => {
                let item = self.slots.remove(key).and_then(|slot| slot.desired);
                self.settled.extend(item.map(Held));
            }
            _ => return,
        }
        // The first round needs the most room, by far.
        if self.slots.capacity() > SPARE * (self.slots.len() + 1) {
            self.slots.shrink_to_fit();
        }
    }

    fn subscribe(
        &mut self,
        kind: &'static KindInfo,
        name: &str,
        resuming: bool,
        effects: &mut Effects,
    ) -> Result<(), Violation> {
        let Some(state) = self.types.get_mut(kind.kind) else { return Ok(()) };
        if name == wire::WILDCARD {
            state.wildcard = true;
            return Ok(());
        }
        if !is_service(kind) {
            let Some(name) = ObjectName::parse(name) else { return Ok(()) };
            if state.names.insert(name.clone()) {
                self.names += 1;
            }
            // Asking by name means: judge again, or I may have dropped it.
            if !resuming {
                self.send_again(kind, name);
            }
            return if self.names > MAX_NAMES { Err(Violation::TooManyNames) } else { Ok(()) };
        }
        let Some(wish) = parse_wish(name).filter(|_| name.len() <= MAX_NAME_BYTES) else {
            effects.oddities.push(Oddity::BadName);
            if self.absent.len() >= MAX_NAMES {
                return Err(Violation::TooManyNames);
            }
            self.absent.insert(name.to_owned());
            return Ok(());
        };
        // Asking again means: I may have dropped it, send it again.
        let again = WishState { services: None, repeat: !resuming };
        if self.wishes.insert(wish.clone(), again).is_none() {
            self.names += 1;
        }
        effects.add.push(wish);
        if self.names > MAX_NAMES { Err(Violation::TooManyNames) } else { Ok(()) }
    }

    fn unsubscribe(&mut self, kind: &'static KindInfo, name: &str, effects: &mut Effects) {
        let Some(state) = self.types.get_mut(kind.kind) else { return };
        if name == wire::WILDCARD {
            state.wildcard = false;
            return;
        }
        if !is_service(kind) {
            if ObjectName::parse(name).is_some_and(|name| state.names.remove(&name)) {
                self.names -= 1;
            }
            return;
        }
        let Some(wish) = parse_wish(name) else { return };
        let Some(forgotten) = self.wishes.remove(&wish) else { return };
        self.names -= 1;
        self.answers.remove(&wish);
        // The proxy may drop what answered, although it may yet need it as a backend: then it is sent again.
        for service in forgotten.services.into_iter().flatten() {
            self.send_again(kind, service);
        }
        effects.remove.push(wish);
    }

    fn answer(&mut self, wish: Wish, services: Vec<ObjectName>) {
        let Some(state) = self.wishes.get_mut(&wish) else { return };
        let repeat = state.services.is_some() || state.repeat;
        let before = state.services.replace(services.clone());
        if before.as_ref() == Some(&services) {
            return;
        }
        self.answers.insert(wish, Answer { services, repeat });
    }

    fn send_again(&mut self, kind: &'static KindInfo, name: ObjectName) {
        let key = Key { kind, name };
        if let Some(slot) = self.slot(&key) {
            slot.again = true;
            self.dirty.insert(key);
        }
    }

    fn is_asked_for(&self, key: &Key) -> bool {
        let Some(state) = self.types.get(key.kind.kind) else { return false };
        is_service(key.kind) || state.wildcard || state.names.contains(&key.name)
    }

    fn answer_to_response(
        &mut self,
        kind: &'static KindInfo,
        request: &Request,
        effects: &mut Effects,
    ) {
        if request.nonce.is_empty() {
            return;
        }
        let nonce = request.nonce.parse().unwrap_or(0);
        let same_kind = |sent: &InFlight| std::ptr::eq(sent.kind, kind);
        if !self.in_flight.get(&nonce).is_some_and(same_kind) {
            effects.oddities.push(Oddity::UnknownNonce);
            return;
        }
        let Some(sent) = self.in_flight.remove(&nonce) else { return };
        // Whoever answers only the latest of a type has dealt with the earlier ones; nothing is known of them.
        self.in_flight.retain(|earlier, other| *earlier > nonce || !same_kind(other));
        let rejected = request.error.as_deref().map(|error| rejections(kind, &sent.items, error));
        effects.answered = Some((kind, rejected.is_none()));
        for (key, version) in sent.items {
            let reason = rejected.as_ref().and_then(|reasons| reasons.get(&key.name));
            let result = reason.map_or(Ok(()), |reason| Err(reason.clone()));
            if let Some(slot) = self.slot(&key) {
                slot.verdict = Some((version.clone(), result.clone()));
                self.settle(&key);
            }
            effects.verdicts.push(Verdict { key, version, result });
        }
    }
}

/// Reads the lines `<Kind> <namespace>/<name>: <reason>` of a rejection. Where none of them names a resource
/// of the response, all of it was rejected.
fn rejections(
    kind: &KindInfo,
    items: &[(Key, Arc<str>)],
    error: &str,
) -> HashMap<ObjectName, String> {
    let sent: HashSet<_> = items.iter().map(|(key, _)| &key.name).collect();
    let mut named: HashMap<ObjectName, String> = HashMap::new();
    for line in error.lines().take(MAX_REJECTION_LINES) {
        let Some((name, reason)) = line.split_once(": ") else { continue };
        let name = name.strip_prefix(kind.kind).and_then(|rest| rest.strip_prefix(' '));
        let Some(name) = name.and_then(ObjectName::parse) else { continue };
        if sent.contains(&name) {
            named.insert(name, reason.to_owned());
        }
    }
    if named.is_empty() {
        let reason = if error.is_empty() { "rejected without a reason" } else { error };
        return sent.into_iter().map(|name| (name.clone(), reason.to_owned())).collect();
    }
    named
}

fn is_service(kind: &KindInfo) -> bool {
    crate::plan::rank(kind) == 0
}
