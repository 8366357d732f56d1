//! One consistent change as a row of responses, in an order that is safe at every step:
//! what appears or changes, referred before referring; then what disappears, the other way round.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
};

use leno_api::{KINDS, Key, KindInfo};

use super::{Answer, Sent, Session, Slot, is_service};
use crate::{
    plan::{Wish, rank},
    xds::names::wish_text,
};

/// A response is closed when its resources exceed this; with one resource more it is still far below the
/// 4 MiB that gRPC implementations accept by default.
const RESPONSE_BYTES: usize = 1024 * 1024;
/// Likewise by number, for the sake of names and per-message work.
const RESPONSE_NAMES: usize = 5_000;

/// A response to be.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) kind: &'static KindInfo,
    pub(super) revision: u64,
    pub(super) resources: Vec<Sent>,
    pub(super) removed: Vec<String>,
    bytes: usize,
}

/// Everything that differs between what the proxy should have and what it was sent.
pub(super) fn compose(session: &mut Session) -> VecDeque<Draft> {
    let answers = std::mem::take(&mut session.answers);
    let mut aliases = name_answers(session, &answers);
    let (mut upserts, mut removals) = (Vec::new(), Vec::new());
    for key in std::mem::take(&mut session.dirty) {
        let asked_for = session.is_asked_for(&key);
        let Some(slot) = session.slot(&key) else { continue };
        let aliases = aliases.remove(&key).unwrap_or_default();
        match decide(slot, asked_for) {
            Step::Send(sent) => upserts.push(Sent { aliases, ..sent }),
            Step::Remove => removals.push((key.kind, key.name.to_string())),
            Step::Nothing => {}
        }
        session.settle(&key);
    }
    let unanswered = answers.iter().filter(|(_, answer)| answer.services.is_empty());
    let absent = unanswered.map(|(wish, _)| wish_text(wish));
    let absent = absent.chain(std::mem::take(&mut session.absent));
    if let Some(kind) = service_kind() {
        removals.extend(absent.map(|name| (kind, name)));
    }
    upserts.sort_by_key(|sent| order(sent.item.key.kind));
    removals.sort_by(|one, other| {
        let key = |(kind, name)| (Reverse(order(kind)), name);
        key((one.0, &one.1)).cmp(&key((other.0, &other.1)))
    });
    removals.dedup_by(|one, other| one.1 == other.1 && std::ptr::eq(one.0, other.0));
    drafts(session.revision, upserts, removals)
}

/// The hosts to name with each service that is sent because somebody asked.
fn name_answers(
    session: &mut Session,
    answers: &BTreeMap<Wish, Answer>,
) -> HashMap<Key, Vec<String>> {
    let mut aliases: HashMap<Key, Vec<String>> = HashMap::new();
    let Some(kind) = service_kind() else { return aliases };
    for (wish, answer) in answers {
        for name in &answer.services {
            let key = Key { kind, name: name.clone() };
            if let Some(slot) = session.slot(&key) {
                slot.again |= answer.repeat;
                session.dirty.insert(key.clone());
            }
            aliases.entry(key).or_default().push(wish_text(wish));
        }
    }
    aliases
}

enum Step {
    Send(Sent),
    Remove,
    Nothing,
}

fn decide(slot: &mut Slot, asked_for: bool) -> Step {
    let again = std::mem::take(&mut slot.again);
    match &slot.desired {
        Some(_) if !asked_for => {
            // The proxy has dropped the type itself.
            slot.sent = None;
            Step::Nothing
        }
        Some(item) if again || slot.sent.as_ref() != Some(&item.version) => {
            slot.sent = Some(item.version.clone());
            Step::Send(Sent { item: item.clone(), aliases: Vec::new() })
        }
        Some(_) => Step::Nothing,
        None => {
            slot.verdict = None;
            if slot.sent.take().is_some() && asked_for { Step::Remove } else { Step::Nothing }
        }
    }
}

fn drafts(
    revision: u64,
    upserts: Vec<Sent>,
    removals: Vec<(&'static KindInfo, String)>,
) -> VecDeque<Draft> {
    let mut drafts: VecDeque<Draft> = VecDeque::new();
    for sent in upserts {
        let kind = sent.item.key.kind;
        let full = drafts.back().is_none_or(|draft| !draft.takes(kind));
        if full {
            drafts.push_back(Draft::new(kind, revision));
        }
        let Some(draft) = drafts.back_mut() else { continue };
        draft.bytes += sent.item.body.len();
        draft.resources.push(sent);
    }
    // Never in one response with what appears: what it refers to must be there before, after it must go.
    let last = drafts.len();
    for (kind, name) in removals {
        let full = drafts.len() == last || drafts.back().is_none_or(|draft| !draft.takes(kind));
        if full {
            drafts.push_back(Draft::new(kind, revision));
        }
        let Some(draft) = drafts.back_mut() else { continue };
        draft.removed.push(name);
    }
    drafts
}

impl Draft {
    fn new(kind: &'static KindInfo, revision: u64) -> Self {
        Self { kind, revision, resources: Vec::new(), removed: Vec::new(), bytes: 0 }
    }

    fn takes(&self, kind: &KindInfo) -> bool {
        std::ptr::eq(self.kind, kind)
            && self.resources.len().max(self.removed.len()) < RESPONSE_NAMES
            && self.bytes < RESPONSE_BYTES
    }
}

/// Kinds in the order in which they are sent; no two share a place.
fn order(kind: &KindInfo) -> (u8, usize) {
    let place = KINDS.iter().position(|other| std::ptr::eq(other, kind));
    (rank(kind), place.unwrap_or(KINDS.len()))
}

fn service_kind() -> Option<&'static KindInfo> {
    KINDS.iter().find(|kind| is_service(kind))
}
