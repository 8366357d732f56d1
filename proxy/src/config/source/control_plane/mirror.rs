//! What this proxy has of the control plane's state: no sockets, no clock. Responses and commands go in,
//! requests and updates come out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use leno_api::{KINDS, Key, KindInfo, Resource, model::ObjectName, wire};

use super::{Change, Command, UPDATES, Update, message};
use crate::config::{prepare::Running, source::Packer};

/// Hosts asked for at the same time; the control plane takes 10,000 names. One more takes the place of one
/// that nobody answers to.
const MAX_HOSTS: usize = 9_000;
/// The longest host there is (RFC 1035).
const MAX_HOST: usize = 253;
/// A round that grows beyond this is applied in parts; the order of its responses makes that safe.
const MAX_ROUND_BYTES: usize = 256 * 1024 * 1024;
/// Rounds handed over that may wait for their verdict.
const MAX_PENDING: usize = 64;
/// Requests that may wait for the transport: answers, as hosts have a limit of their own.
const MAX_REQUESTS: usize = 2 * MAX_HOSTS;
/// Bytes of the reason for one rejection. A response has at most 5,000 resources, and with a reason for each the answer to
/// it is still below the 4 MiB that the control plane takes.
const MAX_REASON: usize = 512;

#[derive(Debug)]
pub(super) struct Mirror {
    namespace: String,
    services: Vec<ObjectName>,
    hosts: HashMap<String, Answer>,
    /// What is live here, in the version that is.
    held: HashMap<Key, String>,
    /// The round that is being received.
    round: Round,
    /// Rounds handed over, waiting for the verdict.
    pending: BTreeMap<u64, Round>,
    last_id: u64,
    /// Which versions of plugins run here.
    running: BTreeMap<ObjectName, Running>,
    updates: VecDeque<Update>,
    requests: VecDeque<DeltaDiscoveryRequest>,
    /// Whether a stream is open that has said hello.
    open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Unknown,
    Present,
    Absent,
}

#[derive(Debug, Default)]
struct Round {
    change: Change,
    packer: Packer,
    /// Type and nonce of each response, with what it brought.
    responses: Vec<Received>,
    bytes: usize,
    /// Of an earlier stream, which nobody waits for any more.
    stale: bool,
}

#[derive(Debug)]
struct Received {
    type_url: String,
    nonce: String,
    brought: Vec<(Key, String)>,
    removed: Vec<Key>,
    /// Resources that cannot be named: garbage.
    garbage: Vec<String>,
}

impl Mirror {
    pub(super) fn new(
        namespace: String,
        services: Vec<ObjectName>,
        hosts: Vec<String>,
        held: Vec<(Key, String)>,
    ) -> Self {
        // Answered in the last run; should that have changed, the control plane says so.
        let hosts = hosts.into_iter().take(MAX_HOSTS).map(|host| (host, Answer::Present));
        Self {
            namespace,
            services,
            hosts: hosts.collect(),
            held: held.into_iter().collect(),
            round: Round::default(),
            pending: BTreeMap::new(),
            last_id: 0,
            running: BTreeMap::new(),
            updates: VecDeque::new(),
            requests: VecDeque::new(),
            open: false,
        }
    }

    /// The first requests of a stream. Services come last, since the control plane begins to answer then.
    pub(super) fn connected(&mut self) {
        self.open = true;
        self.updates.push_back(Update::Connected);
        let (services, others): (Vec<_>, Vec<_>) =
            KINDS.iter().partition(|kind| kind.kind == "Service");
        for kind in others {
            let wildcard = vec![wire::WILDCARD.to_owned()];
            self.requests.push_back(message::subscribe(kind, wildcard, self.held_of(kind)));
        }
        for kind in services {
            // Hosts that were never answered are asked for apart: with the first request the control plane
            // takes it that we know what answers to them.
            let answered = self.hosts_where(|answer| answer != Answer::Unknown);
            let unknown = self.hosts_where(|answer| answer == Answer::Unknown);
            let declared = self.services.iter().map(ToString::to_string);
            let mut names: Vec<_> = declared.chain(answered).collect();
            if names.is_empty() {
                names.push(wire::WILDCARD.to_owned());
            }
            self.requests.push_back(message::subscribe(kind, names, self.held_of(kind)));
            if !unknown.is_empty() {
                self.requests.push_back(message::subscribe(kind, unknown, HashMap::new()));
            }
        }
        let running = std::mem::take(&mut self.running);
        self.run(running);
    }

    /// The stream is gone: half a round is none, and nobody waits for verdicts any more.
    pub(super) fn disconnected(&mut self) {
        self.open = false;
        self.requests.clear();
        self.round = Round::default();
        self.pending.values_mut().for_each(|round| round.stale = true);
    }

    pub(super) fn has_updates(&self) -> bool {
        !self.updates.is_empty()
    }

    /// Whether the config task has said what became of every round.
    pub(super) fn is_judged(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether there is room for one more response; otherwise the control plane is to wait.
    pub(super) fn takes_responses(&self) -> bool {
        self.updates.len() < UPDATES
            && self.pending.len() < MAX_PENDING
            && self.requests.len() < MAX_REQUESTS
    }

    pub(super) fn next_update(&mut self) -> Option<Update> {
        self.updates.pop_front()
    }

    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.requests.pop_front()
    }

    /// Takes up what the config task says. A goodbye is for the stream.
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Subscribe { host } => self.subscribe(host),
            Command::Verdict { id, rejected } => self.verdict(id, rejected),
            Command::Again { key } => self.ask_again(&key),
            Command::Running { plugins } => self.run(plugins),
            Command::Goodbye => {}
        }
    }

    /// Takes up a response.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse) {
        let more = wire::more_follows(&response.system_version_info);
        let mut received = Received {
            type_url: response.type_url,
            nonce: response.nonce,
            brought: Vec::new(),
            removed: Vec::new(),
            garbage: Vec::new(),
        };
        match wire::kind_of_type_url(&received.type_url) {
            Some(kind) => {
                for resource in response.resources {
                    self.take_resource(kind, resource, &mut received);
                }
                for name in response.removed_resources {
                    self.take_removal(kind, &name, &mut received);
                }
            }
            None => {
                received.garbage.push(format!("this proxy knows no type {}", received.type_url))
            }
        }
        self.round.responses.push(received);
        if !more || self.round.bytes > MAX_ROUND_BYTES {
            self.hand_over();
        }
    }

    fn take_resource(
        &mut self,
        kind: &'static KindInfo,
        resource: WireResource,
        received: &mut Received,
    ) {
        let Some(name) = ObjectName::parse(&resource.name) else {
            received.garbage.push(format!("{:?} is not a name of a {}", resource.name, kind.kind));
            return;
        };
        let key = Key { kind, name };
        let body = resource.resource.map(|any| any.value).unwrap_or_default();
        self.round.bytes += body.len();
        for alias in resource.aliases {
            self.answered(&alias, Answer::Present);
        }
        match parse(&key, &body) {
            Ok(parsed) => {
                received.brought.push((key, resource.version.clone()));
                let json = String::from_utf8_lossy(&body);
                let item = self.round.packer.item(parsed, &json, &resource.version);
                self.round.change.upserts.push(item);
            }
            Err(reason) => {
                received.brought.push((key.clone(), resource.version));
                self.round.change.invalid.push((key, reason));
            }
        }
    }

    fn take_removal(&mut self, kind: &'static KindInfo, name: &str, received: &mut Received) {
        if wire::parse_service_alias(name).is_some() {
            self.answered(name, Answer::Absent);
        } else if let Some(name) = ObjectName::parse(name) {
            let key = Key { kind, name };
            received.removed.push(key.clone());
            self.round.change.removed.push(key);
        }
    }

    fn answered(&mut self, alias: &str, answer: Answer) {
        let Some((namespace, host)) = wire::parse_service_alias(alias) else { return };
        let Some(known) = self.hosts.get_mut(host).filter(|_| namespace == self.namespace) else {
            return;
        };
        *known = answer;
        self.round.change.answer(host, answer);
    }

    /// Gives the round to the config task.
    fn hand_over(&mut self) {
        self.last_id += 1;
        let mut round = std::mem::take(&mut self.round);
        let mut change = std::mem::take(&mut round.change);
        change.id = self.last_id;
        round.change.invalid = change.invalid.clone();
        self.pending.insert(self.last_id, round);
        self.updates.push_back(Update::Changed(change));
    }

    fn subscribe(&mut self, host: String) {
        if let Some(answer) = self.hosts.get(&host).copied() {
            // Asked twice. What is known is said again; what is not will be.
            self.tell(&host, answer);
            return;
        }
        let room = self.hosts.len() < MAX_HOSTS || self.forget_an_absent_host();
        if host.len() > MAX_HOST || !room {
            tracing::warn!(host, "asks for a host too long or one too many; it is taken as absent");
            self.tell(&host, Answer::Absent);
            return;
        }
        if let (true, Some(kind)) = (self.open, service_kind()) {
            let alias = wire::service_alias(&self.namespace, &host);
            self.requests.push_back(message::subscribe(kind, vec![alias], HashMap::new()));
        }
        self.hosts.insert(host, Answer::Unknown);
    }

    /// Tells the config task what is known of a host, by a change of its own that needs no verdict.
    fn tell(&mut self, host: &str, answer: Answer) {
        let mut change = Change::default();
        change.answer(host, answer);
        if answer != Answer::Unknown {
            self.updates.push_back(Update::Changed(change));
        }
    }

    /// What is asked for by name is sent again, even if it has not changed. Should the stream be gone, it is not among
    /// what the next one says is held, which has the same effect.
    fn ask_again(&mut self, key: &Key) {
        self.held.remove(key);
        if self.open {
            let name = vec![key.name.to_string()];
            self.requests.push_back(message::subscribe(key.kind, name, HashMap::new()));
        }
    }

    /// Tells the control plane what it does not know yet of what runs here. Should the stream be gone, the next one
    /// begins with all of it.
    fn run(&mut self, running: BTreeMap<ObjectName, Running>) {
        let before = std::mem::replace(&mut self.running, running);
        let gone = before.keys().filter(|name| !self.running.contains_key(*name));
        let gone = gone.map(|name| (name, None));
        let changed = self.running.iter().filter(|(name, now)| before.get(*name) != Some(*now));
        let news: Vec<_> = gone.chain(changed.map(|(name, now)| (name, Some(now)))).collect();
        let Some(kind) = KINDS.iter().find(|kind| kind.kind == "WasmPlugin") else { return };
        for some in news.chunks(wire::node::MAX_PLUGINS).filter(|_| self.open) {
            self.requests.push_back(message::running(kind, some.iter().copied()));
        }
    }

    fn forget_an_absent_host(&mut self) -> bool {
        let absent = self.hosts.iter().find(|(_, answer)| **answer == Answer::Absent);
        let Some(host) = absent.map(|(host, _)| host.clone()) else { return false };
        self.hosts.remove(&host);
        if let (true, Some(kind)) = (self.open, service_kind()) {
            let alias = wire::service_alias(&self.namespace, &host);
            self.requests.push_back(message::unsubscribe(kind, vec![alias]));
        }
        let change = Change { forgotten_hosts: vec![host], ..Change::default() };
        self.updates.push_back(Update::Changed(change));
        true
    }

    fn verdict(&mut self, id: u64, rejected: Vec<(Key, String)>) {
        let Some(round) = self.pending.remove(&id) else { return };
        let mut reasons: HashMap<Key, String> = round.change.invalid.into_iter().collect();
        reasons.extend(rejected);
        for response in round.responses {
            let mut lines = response.garbage;
            for (key, version) in response.brought {
                match reasons.get(&key) {
                    Some(reason) => lines.push(format!("{key}: {}", one_line(reason))),
                    None => drop(self.held.insert(key, version)),
                }
            }
            for key in response.removed {
                self.held.remove(&key);
            }
            if !round.stale {
                let answer = message::answer(response.type_url, response.nonce, &lines);
                self.requests.push_back(answer);
            }
        }
    }

    fn held_of(&self, kind: &KindInfo) -> HashMap<String, String> {
        let held = self.held.iter().filter(|(key, _)| std::ptr::eq(key.kind, kind));
        held.map(|(key, version)| (key.name.to_string(), version.clone())).collect()
    }

    fn hosts_where(&self, wanted: impl Fn(Answer) -> bool) -> Vec<String> {
        let hosts = self.hosts.iter().filter(|(_, answer)| wanted(**answer));
        hosts.map(|(host, _)| wire::service_alias(&self.namespace, host)).collect()
    }
}

impl Change {
    fn answer(&mut self, host: &str, answer: Answer) {
        match answer {
            Answer::Present => self.present_hosts.push(host.to_owned()),
            Answer::Absent => self.absent_hosts.push(host.to_owned()),
            Answer::Unknown => {}
        }
    }
}

fn service_kind() -> Option<&'static KindInfo> {
    KINDS.iter().find(|kind| kind.kind == "Service")
}

/// Parses a resource, which must be the one it is sent as.
fn parse(key: &Key, body: &[u8]) -> Result<Resource, String> {
    let object = serde_json::from_slice(body).map_err(|error| format!("not JSON: {error}"))?;
    let resource = Resource::from_json(object).map_err(|invalid| invalid.to_string())?;
    if resource.key() == *key {
        Ok(resource)
    } else {
        Err(format!("it was sent under this name, but says that it is {}", resource.key()))
    }
}

fn one_line(reason: &str) -> String {
    let blank = |c: char| if c.is_control() { ' ' } else { c };
    reason
        .get(..reason.floor_char_boundary(MAX_REASON))
        .unwrap_or_default()
        .chars()
        .map(blank)
        .collect()
}
