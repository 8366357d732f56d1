//! Who runs what: for each object the proxies on which its current version is live and those that
//! rejected it, and when that is to be written down. Pure: the time is an argument.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use leno_api::Key;

use super::Running;
use crate::plan::{Item, ProxyId, Verdict};

/// How long the first report about a change waits for proxies to answer.
pub(super) const SETTLE: Duration = Duration::from_millis(100);
/// The least time between two reports about one object.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Proxies named in one status; the number of the others is given.
pub(super) const MAX_NAMED: usize = 20;
/// Versions and reasons told apart in one status, those of most proxies first.
pub(super) const MAX_TOLD_APART: usize = 5;
/// Characters of a proxy's reason that are kept.
const MAX_REASON: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Tally {
    records: HashMap<Key, Record>,
    due: BTreeSet<(Instant, Key)>,
}

#[derive(Debug)]
struct Record {
    version: Arc<str>,
    generation: u64,
    /// Why the control plane itself cannot use the object.
    unusable: Option<String>,
    live: HashSet<ProxyId>,
    rejected: BTreeMap<ProxyId, String>,
    /// What each proxy says that it runs, where the object is something that runs. Whatever version of the object is in
    /// force: that is what is to be known while a new one does not get live.
    running: HashMap<ProxyId, Arc<Running>>,
    reported: Option<Instant>,
    due: Option<Instant>,
}

/// What is to be said about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) key: Key,
    pub(super) generation: u64,
    pub(super) unusable: Option<String>,
    pub(super) connected: usize,
    pub(super) live: usize,
    /// All that rejected it; of these, the first are named.
    pub(super) rejected: usize,
    pub(super) named: Vec<(ProxyId, String)>,
    /// How many rejected it for the same reason, and one of them.
    pub(super) reasons: Vec<Reason>,
    /// How many run the same version.
    pub(super) versions: Vec<(Arc<Running>, usize)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) reason: String,
    pub(super) proxies: usize,
    pub(super) example: ProxyId,
}

impl Tally {
    /// An object has a new version: nobody runs it yet.
    pub(super) fn put(&mut self, item: &Item, first_report: Instant) {
        self.replace(&item.key, item.version.clone(), item.generation, None, first_report);
    }

    /// An object of the store cannot be used.
    pub(super) fn unusable(&mut self, key: &Key, generation: u64, reason: String, now: Instant) {
        self.replace(key, "".into(), generation, Some(reason), now + SETTLE);
    }

    fn replace(
        &mut self,
        key: &Key,
        version: Arc<str>,
        generation: u64,
        unusable: Option<String>,
        first_report: Instant,
    ) {
        let old = self.records.remove(key);
        let (running, reported, due) =
            old.map_or_else(Default::default, |old| (old.running, old.reported, old.due));
        let record = Record {
            version,
            generation,
            unusable,
            live: HashSet::new(),
            rejected: BTreeMap::new(),
            running,
            reported,
            due,
        };
        self.records.insert(key.clone(), record);
        self.mark(key, first_report);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(due) = self.records.remove(key).and_then(|record| record.due) {
            self.due.remove(&(due, key.clone()));
        }
    }

    pub(super) fn verdict(&mut self, proxy: ProxyId, verdict: Verdict, now: Instant) {
        let Some(record) = self.records.get_mut(&verdict.key) else { return };
        if record.version != verdict.version {
            return;
        }
        let changed = match verdict.result {
            Ok(()) => record.rejected.remove(&proxy).is_some() | record.live.insert(proxy),
            Err(reason) => {
                let reason: String = reason.chars().take(MAX_REASON).collect();
                let was_live = record.live.remove(&proxy);
                let before = record.rejected.insert(proxy, reason);
                was_live || before.as_ref() != record.rejected.get(&proxy)
            }
        };
        if changed {
            self.mark(&verdict.key, now + SETTLE);
        }
    }

    /// What a proxy runs of the object; `None`: nothing any more.
    pub(super) fn runs(
        &mut self,
        proxy: ProxyId,
        key: &Key,
        running: Option<Arc<Running>>,
        now: Instant,
    ) {
        let Some(record) = self.records.get_mut(key) else { return };
        let same = record.running.get(&proxy) == running.as_ref();
        match running {
            Some(running) => _ = record.running.insert(proxy, running),
            None => _ = record.running.remove(&proxy),
        }
        if !same {
            self.mark(key, now + SETTLE);
        }
    }

    /// Whether the proxy runs the object as it is now.
    pub(super) fn is_live(&self, key: &Key, proxy: ProxyId) -> bool {
        self.records.get(key).is_some_and(|record| record.live.contains(&proxy))
    }

    /// The object entered or left the scope of a proxy, or came back to it.
    pub(super) fn moved(&mut self, key: &Key, now: Instant) {
        self.mark(key, now + SETTLE);
    }

    /// The proxy does not have the object any more.
    pub(super) fn left(&mut self, proxy: ProxyId, key: &Key, now: Instant) {
        if let Some(record) = self.records.get_mut(key) {
            record.live.remove(&proxy);
            record.rejected.remove(&proxy);
            record.running.remove(&proxy);
            self.mark(key, now + SETTLE);
        }
    }

    /// The reports that are due, at most `most` of them.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        most: usize,
        connected: impl Fn(&Key) -> u32,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        while reports.len() < most {
            let Some((at, key)) = self.due.pop_first() else { break };
            if at > now {
                self.due.insert((at, key));
                break;
            }
            let Some(record) = self.records.get_mut(&key) else { continue };
            record.due = None;
            record.reported = Some(now);
            let named = record.rejected.iter().take(MAX_NAMED);
            reports.push(Report {
                generation: record.generation,
                unusable: record.unusable.clone(),
                connected: usize::try_from(connected(&key)).unwrap_or(usize::MAX),
                live: record.live.len(),
                rejected: record.rejected.len(),
                named: named.map(|(proxy, reason)| (*proxy, reason.clone())).collect(),
                reasons: record.reasons(),
                versions: record.versions(),
                key,
            });
        }
        reports
    }

    fn mark(&mut self, key: &Key, wanted: Instant) {
        let Some(record) = self.records.get_mut(key) else { return };
        if record.due.is_some_and(|due| due <= wanted) {
            return;
        }
        let earliest = record.reported.map_or(wanted, |last| wanted.max(last + INTERVAL));
        if let Some(before) = record.due.replace(earliest) {
            self.due.remove(&(before, key.clone()));
        }
        self.due.insert((earliest, key.clone()));
    }
}

impl Record {
    fn reasons(&self) -> Vec<Reason> {
        let mut found: HashMap<&str, (usize, ProxyId)> = HashMap::new();
        for (proxy, reason) in &self.rejected {
            found.entry(reason).or_insert((0, *proxy)).0 += 1;
        }
        let reasons =
            found.into_iter().map(|(reason, (proxies, example))| (reason, proxies, example));
        let mut reasons: Vec<_> = reasons.collect();
        reasons.sort_by_key(|(reason, proxies, _)| (Reverse(*proxies), *reason));
        reasons.truncate(MAX_TOLD_APART);
        let own = |(reason, proxies, example): (&str, _, _)| Reason {
            reason: reason.to_owned(),
            proxies,
            example,
        };
        reasons.into_iter().map(own).collect()
    }

    fn versions(&self) -> Vec<(Arc<Running>, usize)> {
        let mut found: HashMap<&Arc<Running>, usize> = HashMap::new();
        for running in self.running.values() {
            *found.entry(running).or_default() += 1;
        }
        let mut versions: Vec<_> =
            found.into_iter().map(|(running, proxies)| (running.clone(), proxies)).collect();
        versions.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        versions.truncate(MAX_TOLD_APART);
        versions
    }
}
