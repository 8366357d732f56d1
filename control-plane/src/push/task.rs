//! The loop of the single writer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use leno_api::{KINDS, Key, KindInfo, model::ObjectName, wire};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    Command, Holders, Mailbox, Pending, Running, WINDOW,
    report::{self, Reports},
    tally::{SETTLE, Tally},
};
use crate::{
    access::Member,
    findings::Findings,
    plan::{Item, Planner, ProxyId},
    store::{self, Change, Event, Selection, Store, Stored, Watch},
    telemetry::Metrics,
};

/// Commands taken up before what they change is published.
const COMMANDS_AT_ONCE: usize = 256;
/// How often it is looked whether a status is due.
const TICK: Duration = Duration::from_millis(50);
/// Statuses in one transaction.
const REPORTS_AT_ONCE: usize = 500;
/// Objects of which it is known which version one proxy runs.
const MAX_RUNNING: usize = wire::node::MAX_PLUGINS;
/// After a start proxies get this long to come back, before statuses say that they are gone.
const RETURN_TIME: Duration = Duration::from_secs(5);
/// How long to wait before reading the store anew after its watch failed.
const RETRY: Duration = Duration::from_secs(1);

/// Everything known. Nobody else has a handle to any of it.
pub struct Task {
    store: Arc<dyn Store>,
    findings: Arc<Findings>,
    metrics: Arc<Metrics>,
    commands: mpsc::Receiver<Command>,
    gone: mpsc::UnboundedReceiver<ProxyId>,
    planner: Planner,
    tally: Tally,
    proxies: HashMap<ProxyId, Proxy>,
    /// Everything up to this revision is planned.
    revision: u64,
}

struct Proxy {
    member: Member,
    mailbox: Arc<Mailbox>,
    /// Subscriptions planned in, and up to which of them it was told.
    sequence: u64,
    told: u64,
    /// What it says that it runs, also of what is not in its scope yet: that may be about to change. At most
    /// [`MAX_RUNNING`].
    running: HashMap<Key, Arc<Running>>,
}

/// What woke the loop.
enum Woken {
    Command(Option<Command>),
    Gone(Option<ProxyId>),
    Store(Result<store::Batch, store::Error>),
    Tick,
}

impl Task {
    pub(super) fn new(
        store: Arc<dyn Store>,
        findings: Arc<Findings>,
        metrics: Arc<Metrics>,
        commands: mpsc::Receiver<Command>,
        gone: mpsc::UnboundedReceiver<ProxyId>,
    ) -> Self {
        let mut task = Self {
            store,
            findings,
            metrics,
            commands,
            gone,
            planner: Planner::default(),
            tally: Tally::default(),
            proxies: HashMap::new(),
            revision: 0,
        };
        task.read_all(now() + RETURN_TIME);
        task
    }

    /// Runs until the store closes or nobody can connect any more. One task with the writer of statuses, so
    /// that when it has ended nothing of either holds the store.
    pub async fn run(mut self) {
        let (reports, report_queue) = mpsc::channel(1);
        let writer = report::Writer {
            store: self.store.clone(),
            findings: self.findings.clone(),
            metrics: self.metrics.clone(),
        };
        // A task of its own, since it looks at many resources at once: pushes do not wait for that.
        let writer = tokio::spawn(writer.run(report_queue));
        self.follow_all(reports).await;
        if let Err(error) = writer.await {
            tracing::error!("the writer of statuses ended early: {error}");
        }
    }

    async fn follow_all(&mut self, reports: mpsc::Sender<Reports>) {
        while let Ok(mut watch) = self.watch().await {
            if self.follow(&mut watch, &reports).await {
                return;
            }
            tracing::warn!("the watch of the store fell behind; reading everything anew");
            self.read_all(now());
            self.publish();
        }
    }

    async fn watch(&mut self) -> Result<Watch, store::Error> {
        loop {
            match self.store.watch(self.revision, Selection::all()) {
                Ok(watch) => return Ok(watch),
                Err(store::Error::Closed) => return Err(store::Error::Closed),
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the store; reading everything anew");
                    tokio::time::sleep(RETRY).await;
                    self.read_all(now());
                    self.publish();
                }
            }
        }
    }

    /// Follows the watch until it fails (false) or all is over (true).
    async fn follow(&mut self, watch: &mut Watch, reports: &mpsc::Sender<Reports>) -> bool {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut not_before = tokio::time::Instant::now();
        loop {
            let batch = async {
                sleep_until(not_before).await;
                watch.next().await
            };
            let woken = tokio::select! {
                command = self.commands.recv() => Woken::Command(command),
                gone = self.gone.recv() => Woken::Gone(gone),
                batch = batch => Woken::Store(batch),
                _ = tick.tick() => Woken::Tick,
            };
            match woken {
                Woken::Command(Some(command)) => self.obey_several(command),
                Woken::Gone(Some(id)) => self.disconnect(id),
                Woken::Command(None) | Woken::Gone(None) => return true,
                Woken::Store(Ok(batch)) => {
                    let changes = batch.events.iter().filter(|event| self.apply(event)).count();
                    self.reached(batch.revision);
                    // Statuses that we wrote ourselves are no reason to let the next change wait.
                    if changes > 0 {
                        not_before = tokio::time::Instant::now() + WINDOW;
                    }
                }
                Woken::Store(Err(store::Error::Closed)) => return true,
                Woken::Store(Err(_)) => return false,
                Woken::Tick => self.report(reports),
            }
            self.publish();
        }
    }

    fn obey_several(&mut self, first: Command) {
        self.obey(first);
        for _ in 1..COMMANDS_AT_ONCE {
            let Ok(command) = self.commands.try_recv() else { break };
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Connect { id, member, identity, mailbox } => {
                self.planner.connect(id, identity);
                let running = HashMap::new();
                self.proxies.insert(id, Proxy { member, mailbox, sequence: 0, told: 0, running });
            }
            Command::Subscribe { id, sequence, add, remove } => {
                let Some(proxy) = self.proxies.get_mut(&id) else { return };
                proxy.sequence = sequence;
                add.iter().for_each(|wish| self.planner.subscribe(id, wish));
                remove.iter().for_each(|wish| self.planner.unsubscribe(id, wish));
                self.tell(id);
            }
            Command::Verdicts { id, verdicts } => {
                let now = now();
                for verdict in verdicts {
                    self.tally.verdict(id, verdict, now);
                }
            }
            Command::Running { id, running } => self.runs(id, running),
            Command::Holders { key, answer } => {
                // Whoever asked may have given up.
                answer.send(self.holders(&key)).ok();
            }
            Command::InScope { key, answer } => {
                let proxies = self.planner.in_scope(&key);
                let members = proxies.filter_map(|id| Some(self.proxies.get(&id)?.member.clone()));
                answer.send(members.collect()).ok();
            }
        }
    }

    /// Takes up what a proxy says that it runs. Of what it has not, it says nothing that counts.
    fn runs(&mut self, id: ProxyId, running: Vec<(Key, Option<Running>)>) {
        let Some(proxy) = self.proxies.get_mut(&id) else { return };
        let now = now();
        for (key, running) in running {
            let running = running.map(Arc::new);
            match &running {
                None => _ = proxy.running.remove(&key),
                Some(_)
                    if proxy.running.len() >= MAX_RUNNING && !proxy.running.contains_key(&key) =>
                {
                    continue;
                }
                Some(running) => _ = proxy.running.insert(key.clone(), running.clone()),
            }
            if self.planner.has(id, &key) {
                self.tally.runs(id, &key, running, now);
            }
        }
    }

    fn holders(&self, key: &Key) -> Holders {
        let streams = self.proxies.iter();
        let lagging: BTreeSet<&Member> = streams
            .clone()
            .filter(|(id, _)| !self.tally.is_live(key, **id))
            .map(|(_, proxy)| &proxy.member)
            .collect();
        let connected: BTreeSet<Member> = streams.map(|(_, proxy)| proxy.member.clone()).collect();
        let live = connected.iter().filter(|member| !lagging.contains(member)).cloned();
        Holders {
            live: live.collect(),
            generation: self.planner.item(key).map_or(0, |item| item.generation),
            connected,
        }
    }

    fn disconnect(&mut self, id: ProxyId) {
        let now = now();
        self.proxies.remove(&id);
        for key in self.planner.disconnect(id) {
            self.tally.left(id, &key, now);
        }
    }

    /// Publishes what the planner has, and that the proxy's subscriptions are planned, even if for nothing.
    fn tell(&mut self, id: ProxyId) {
        self.publish();
        let Some(proxy) = self.proxies.get_mut(&id).filter(|proxy| proxy.told < proxy.sequence)
        else {
            return;
        };
        proxy.told = proxy.sequence;
        proxy.mailbox.put(Pending {
            answered: proxy.sequence,
            revision: self.revision,
            since: Some(now()),
            ..Pending::default()
        });
    }

    /// Leaves every proxy concerned what changed for it.
    fn publish(&mut self) {
        let deltas = self.planner.take();
        if deltas.is_empty() {
            return;
        }
        let now = now();
        for (id, delta) in deltas {
            let proxy = self.proxies.get_mut(&id);
            for (key, item) in &delta.items {
                match item {
                    Some(_) => self.tally.moved(key, now),
                    None => self.tally.left(id, key, now),
                }
                let known = proxy.as_ref().and_then(|proxy| proxy.running.get(key));
                if let (Some(_), Some(running)) = (item, known) {
                    self.tally.runs(id, key, Some(running.clone()), now);
                }
            }
            let Some(proxy) = proxy else { continue };
            proxy.told = proxy.sequence;
            proxy.mailbox.put(Pending {
                delta,
                answered: proxy.sequence,
                revision: self.revision,
                since: Some(now),
            });
        }
        self.metrics.pushes.inc();
        self.metrics.publish_seconds.observe(now.elapsed().as_secs_f64());
    }

    fn reached(&mut self, revision: u64) {
        self.revision = revision;
        self.metrics.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// Takes up a change; false where it concerns nobody.
    fn apply(&mut self, event: &Event) -> bool {
        match event.change {
            Change::Created | Change::Updated => self.put(&event.object, now() + SETTLE),
            Change::Deleted => {
                if let Some(key) = key_of(&event.object.key) {
                    self.remove(&key);
                }
            }
            Change::StatusWritten => return false,
        }
        true
    }

    fn put(&mut self, stored: &Stored, first_report: Instant) {
        // Kinds that this version does not know concern no proxy.
        let Some(key) = key_of(&stored.key) else { return };
        let read = stored.json_at(stored.content).map_err(|error| error.to_string());
        let generation = read.as_ref().ok().and_then(generation).unwrap_or(0);
        let built = read.and_then(|object| {
            Item::from_json(object, stored.content).map_err(|error| error.to_string())
        });
        match built {
            Ok(item) => {
                self.tally.put(&item, first_report);
                self.planner.put(Arc::new(item));
            }
            // Proxies keep the last good version.
            Err(reason) => {
                tracing::error!(%key, reason, "an object of the store is not valid here");
                self.tally.unusable(&key, generation, reason, now());
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        self.planner.remove(key);
        self.tally.remove(key);
    }

    /// Brings everything to what the store holds now.
    fn read_all(&mut self, first_report: Instant) {
        let listing = self.store.list(&Selection::all());
        let there: HashMap<Key, &Arc<Stored>> = listing
            .items
            .iter()
            .filter_map(|stored| Some((key_of(&stored.key)?, stored)))
            .collect();
        let vanished: Vec<_> = self
            .planner
            .items()
            .filter(|item| !there.contains_key(&item.key))
            .map(|item| item.key.clone())
            .collect();
        vanished.iter().for_each(|key| self.remove(key));
        for (key, stored) in there {
            if self.planner.item(&key).is_none_or(|item| item.revision != stored.content) {
                self.put(stored, first_report);
            }
        }
        self.reached(listing.revision);
    }

    /// Hands over the statuses that are due, unless the writer is still busy with earlier ones.
    fn report(&mut self, reports: &mpsc::Sender<Reports>) {
        let Ok(permit) = reports.try_reserve() else { return };
        let planner = &self.planner;
        let due = self.tally.take_due(now(), REPORTS_AT_ONCE, |key| planner.holders(key));
        if due.is_empty() {
            return;
        }
        let proxies = due.iter().flat_map(|report| {
            let named = report.named.iter().map(|(id, _)| *id);
            named.chain(report.reasons.iter().map(|reason| reason.example))
        });
        let names = proxies
            .filter_map(|id| Some((id, self.proxies.get(&id)?.member.name.clone())))
            .collect();
        permit.send((due, names));
    }
}

/// Tokio's clock, so that tests can turn it by hand.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn key_of(key: &store::Key) -> Option<Key> {
    let matches = |info: &&KindInfo| *info.group == *key.group && *info.plural == *key.plural;
    let kind = KINDS.iter().find(matches)?;
    let name = ObjectName { namespace: key.namespace.clone(), name: key.name.clone() };
    Some(Key { kind, name })
}

fn generation(object: &Value) -> Option<u64> {
    object.get("metadata")?.get("generation")?.as_u64()
}
