//! Session and planner together against proxies that drop off, come back, refuse and lag, on random
//! histories; and each rule by itself.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    plan::{
        Identity, Planner, ProxyId,
        tests::{self as world, Edit, World, edits, wishes},
    },
    xds::names::wish_text,
};

/// What a proxy does with a version.
fn refuses(version: &str) -> bool {
    version.bytes().last().is_some_and(|byte| byte == b'0' || byte == b'7')
}

/// A plain xDS client, which applies each response by itself, as it comes.
#[derive(Default)]
struct Client {
    session: Session,
    id: u64,
    sequence: u64,
    wishes: BTreeSet<Wish>,
    /// Accepted.
    held: BTreeMap<Key, Arc<Item>>,
    /// Sent last on this stream, accepted or not.
    sent: BTreeMap<Key, Arc<str>>,
    present: BTreeMap<String, bool>,
    unanswered: VecDeque<Response>,
    live: BTreeMap<Key, Result<(), String>>,
    /// The world when the round that is coming was planned.
    planned: World,
    offered: World,
    within_round: bool,
}

fn type_url(kind: &str) -> String {
    wire::type_url(KINDS.iter().find(|info| info.kind == kind).unwrap())
}

use leno_api::KINDS;

fn request(kind: &str, subscribe: &[&str]) -> Request {
    let subscribe = subscribe.iter().map(ToString::to_string).collect();
    Request { type_url: type_url(kind), subscribe, ..Request::default() }
}

impl Client {
    /// A new stream, on which it says what it has.
    fn hello(&mut self, planner: &mut Planner, id: u64, identity: &Identity) {
        planner.disconnect(ProxyId(self.id));
        planner.connect(ProxyId(id), identity.clone());
        (self.id, self.sequence, self.within_round) = (id, 0, false);
        self.session = Session::default();
        self.unanswered.clear();
        self.sent =
            self.held.iter().map(|(key, item)| (key.clone(), item.version.clone())).collect();
        let mut kinds: Vec<_> = KINDS.iter().collect();
        kinds.sort_by_key(|kind| kind.kind == "Service");
        for kind in kinds {
            let held = self.held.iter().filter(|(key, _)| std::ptr::eq(key.kind, kind));
            let initial_versions =
                held.map(|(key, item)| (key.name.to_string(), item.version.to_string())).collect();
            let subscribe = if kind.kind == "Service" {
                self.wishes.iter().map(wish_text).collect()
            } else {
                vec!["*".to_owned()]
            };
            let type_url = wire::type_url(kind);
            let request = Request { type_url, subscribe, initial_versions, ..Request::default() };
            self.request(planner, request);
        }
    }

    fn request(&mut self, planner: &mut Planner, request: Request) {
        let effects = self.session.request(request).unwrap();
        if let Some(sequence) = effects.sequence {
            self.sequence = sequence;
            effects.add.iter().for_each(|wish| planner.subscribe(ProxyId(self.id), wish));
            effects.remove.iter().for_each(|wish| planner.unsubscribe(ProxyId(self.id), wish));
        }
        self.note(effects.verdicts);
    }

    fn note(&mut self, verdicts: Vec<Verdict>) {
        self.live.extend(verdicts.into_iter().map(|verdict| (verdict.key, verdict.result)));
    }

    fn offer(&mut self, delta: Delta, world: &World) {
        let verdicts = self.session.offer(delta, self.sequence, 1);
        self.offered = world.clone();
        self.note(verdicts);
    }

    /// Receives the next response, if there is one, and checks that the step is safe.
    fn receive(&mut self) -> bool {
        if !self.within_round {
            self.planned = self.offered.clone();
        }
        let Some(response) = self.session.next_response() else { return false };
        self.within_round = response.more;
        for sent in &response.resources {
            let item = &sent.item;
            assert!(std::ptr::eq(item.key.kind, response.kind));
            let before = self.sent.insert(item.key.clone(), item.version.clone());
            let repeated = before.as_ref() == Some(&item.version);
            let asked = !sent.aliases.is_empty() || item.key.kind.kind == "Service";
            assert!(!repeated || asked, "{} sent twice in one version", item.key);
            // A service asked for by its own name is its own answer.
            let answered = sent.aliases.iter().cloned().chain([item.name.to_string()]);
            let answered = answered.filter(|_| item.key.kind.kind == "Service");
            self.present.extend(answered.map(|name| (name, true)));
            if !refuses(&item.version) {
                self.held.insert(item.key.clone(), item.clone());
                self.check_backends(item);
            }
        }
        for name in &response.removed {
            if response.kind.kind == "Service" {
                self.present.insert(name.clone(), false);
            }
            if let Some(name) = ObjectName::parse(name) {
                let key = Key { kind: response.kind, name };
                self.sent.remove(&key);
                self.held.remove(&key);
                self.check_referrers(&key);
            }
        }
        self.unanswered.push_back(response);
        true
    }

    /// A route never arrives before a backend that exists.
    fn check_backends(&self, route: &Item) {
        for backend in route.backends() {
            let key = world::key(&format!("Service {backend}"));
            let there = self.planned.items.get(&key);
            assert!(
                there.is_none_or(|item| refuses(&item.version)) || self.sent.contains_key(&key),
                "{} arrived before {key}",
                route.key
            );
        }
    }

    /// A service that still exists never goes while a route that was accepted in its latest version needs it.
    fn check_referrers(&self, gone: &Key) {
        if gone.kind.kind != "Service" || !self.planned.items.contains_key(gone) {
            return;
        }
        for (key, item) in &self.held {
            let latest = self.sent.get(key) == Some(&item.version);
            assert!(!latest || !item.backends().contains(&gone.name), "{gone} went before {key}");
        }
    }

    /// Answers the oldest response.
    fn answer(&mut self, planner: &mut Planner) -> bool {
        let Some(response) = self.unanswered.pop_front() else { return false };
        let bad = response.resources.iter().filter(|sent| refuses(&sent.item.version));
        let lines: Vec<_> = bad.map(|sent| format!("{}: because", sent.item.key)).collect();
        let request = Request {
            type_url: wire::type_url(response.kind),
            nonce: response.nonce.to_string(),
            error: (!lines.is_empty()).then(|| lines.join("\n")),
            ..Request::default()
        };
        self.request(planner, request);
        true
    }

    fn check(&self, world: &World, identity: &Identity) {
        let expected = world.scope(identity, &self.wishes);
        for (key, item) in &expected {
            let sent = self.sent.get(key).or_else(|| self.held.get(key).map(|held| &held.version));
            assert_eq!(sent, Some(&item.version), "{key}");
            let live = !refuses(&item.version);
            assert!(!live || self.held[key].version == item.version, "{key}");
            assert_eq!(self.live.get(key).map(Result::is_ok), Some(live), "verdict about {key}");
        }
        for key in self.held.keys() {
            assert!(expected.contains_key(key), "{key} stayed");
        }
        for wish in &self.wishes {
            let answered = !world.answers(wish).is_empty();
            match self.present.get(&wish_text(wish)) {
                Some(present) => assert_eq!(*present, answered, "{wish:?}"),
                // A service asked for by its own name needs no word beside itself.
                None => assert!(answered, "{wish:?} was never answered"),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Edit(Edit),
    Subscribe(usize, Wish),
    Unsubscribe(usize, Wish),
    Reconnect(usize),
    Plan,
    Receive(usize),
    Answer(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let proxy = || 0..2_usize;
    prop_oneof![
        6 => edits().prop_map(Step::Edit),
        3 => (proxy(), wishes()).prop_map(|(proxy, wish)| Step::Subscribe(proxy, wish)),
        1 => (proxy(), wishes()).prop_map(|(proxy, wish)| Step::Unsubscribe(proxy, wish)),
        1 => proxy().prop_map(Step::Reconnect),
        4 => Just(Step::Plan),
        6 => proxy().prop_map(Step::Receive),
        4 => proxy().prop_map(Step::Answer),
    ]
}

fn plan(planner: &mut Planner, clients: &mut [Client], world: &World) {
    let mut deltas: HashMap<_, _> = planner.take().into_iter().collect();
    for client in clients {
        // Every proxy is told that its wishes are planned, even if for nothing.
        let delta = deltas.remove(&ProxyId(client.id)).unwrap_or_default();
        client.offer(delta, world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn proxies_end_up_with_their_scope(steps in prop::collection::vec(steps(), 1..80)) {
        let identities = [world::identity("shop", Some("shop/a")), world::identity("other", None)];
        let (mut world, mut planner) = (World::default(), Planner::default());
        let mut clients = vec![Client::default(), Client::default()];
        let mut next = 0;
        for (client, identity) in clients.iter_mut().zip(&identities) {
            next += 1;
            client.hello(&mut planner, next, identity);
        }
        for step in steps {
            match step {
                Step::Edit(edit) => world.edit(&mut planner, edit),
                Step::Subscribe(at, wish) => {
                    clients[at].wishes.insert(wish.clone());
                    clients[at].request(&mut planner, request("Service", &[&wish_text(&wish)]));
                }
                Step::Unsubscribe(at, wish) => {
                    clients[at].wishes.remove(&wish);
                    clients[at].present.remove(&wish_text(&wish));
                    let request = Request {
                        type_url: type_url("Service"),
                        unsubscribe: vec![wish_text(&wish)],
                        ..Request::default()
                    };
                    clients[at].request(&mut planner, request);
                }
                Step::Reconnect(at) => {
                    next += 1;
                    clients[at].hello(&mut planner, next, &identities[at]);
                }
                Step::Plan => plan(&mut planner, &mut clients, &world),
                Step::Receive(at) => drop(clients[at].receive()),
                Step::Answer(at) => drop(clients[at].answer(&mut planner)),
            }
        }
        plan(&mut planner, &mut clients, &world);
        for (client, identity) in clients.iter_mut().zip(&identities) {
            while client.receive() || client.answer(&mut planner) {}
            prop_assert!(client.session.is_settled());
            client.check(&world, identity);
        }
    }

    #[test]
    fn no_request_makes_it_panic(
        requests in prop::collection::vec(
            (
                prop::sample::select(vec!["Service", "HTTPRoute", "Nothing"]),
                prop::collection::vec("[a-z/*.]{0,12}|host/shop/[a-z.]{1,5}", 0..4),
                prop::collection::vec("[a-z/*.]{0,12}|host/shop/[a-z.]{1,5}", 0..4),
                "[0-9x-]{0,3}",
                prop::option::of(".{0,40}"),
            ),
            0..20,
        )
    ) {
        let mut session = Session::default();
        for (kind, subscribe, unsubscribe, nonce, error) in requests {
            let type_url = format!("type.leno.dev/leno.dev/v1alpha1/{kind}");
            let initial_versions =
                subscribe.iter().map(|name| (name.clone(), nonce.clone())).collect();
            let request = Request { type_url, subscribe, unsubscribe, initial_versions, nonce, error };
            session.request(request).unwrap();
            session.offer(Delta::default(), session.asked, 1);
            while session.next_response().is_some() {}
        }
    }
}

/// A session that has asked for everything, with the given objects offered.
fn session(objects: Vec<serde_json::Value>) -> Session {
    let mut session = Session::default();
    for kind in ["Workload", "HTTPRoute", "TrafficPolicy", "Service"] {
        session.request(request(kind, &["*"])).unwrap();
    }
    offer(&mut session, objects, 1);
    session
}

fn offer(session: &mut Session, objects: Vec<serde_json::Value>, revision: u64) {
    let items = objects.into_iter().map(|object| world::item(object, revision));
    let items = items.map(|item| (item.key.clone(), Some(item))).collect();
    session.offer(Delta { items, answers: HashMap::new() }, session.asked, revision);
}

fn names(response: &Response) -> Vec<String> {
    response.resources.iter().map(|sent| sent.item.key.to_string()).collect()
}

fn all(session: &mut Session) -> Vec<Response> {
    std::iter::from_fn(|| session.next_response()).collect()
}

fn answer(session: &mut Session, response: &Response, error: Option<&str>) -> Effects {
    let request = Request {
        type_url: wire::type_url(response.kind),
        nonce: response.nonce.to_string(),
        error: error.map(ToOwned::to_owned),
        ..Request::default()
    };
    session.request(request).unwrap()
}

#[test]
fn nothing_is_sent_before_services_are_asked_for_and_planned() {
    let mut session = Session::default();
    session.request(request("HTTPRoute", &["*"])).unwrap();
    offer(&mut session, vec![world::route("shop/a", &["shop/a"], &["a"])], 1);
    assert!(session.next_response().is_none());
    let effects = session.request(request("Service", &["host/shop/a", "shop/b"])).unwrap();
    assert_eq!(effects.add, [world::host("shop", "a"), world::named("shop/b")]);
    assert!(session.next_response().is_none(), "the planner has not answered yet");
    session.offer(Delta::default(), effects.sequence.unwrap(), 1);
    assert_eq!(all(&mut session).len(), 1);
}

#[test]
fn a_round_goes_in_safe_order_and_marks_its_last_response() {
    let mut session = session(vec![
        world::route("shop/a", &["shop/a"], &["a"]),
        world::policy("shop/a", "a"),
        world::workload("shop/a-1", &["a"]),
        world::service("shop/a", &[]),
    ]);
    let round = all(&mut session);
    let kinds: Vec<_> = round.iter().map(|response| (response.kind.kind, response.more)).collect();
    assert_eq!(
        kinds,
        [("Service", true), ("Workload", true), ("TrafficPolicy", true), ("HTTPRoute", false)]
    );
    let gone = ["Service shop/a", "HTTPRoute shop/a", "Workload shop/a-1"];
    let items = gone.iter().map(|name| (world::key(name), None)).collect();
    session.offer(Delta { items, answers: HashMap::new() }, 1, 2);
    offer(&mut session, vec![world::service("shop/b", &[])], 3);
    let round: Vec<_> = all(&mut session)
        .iter()
        .map(|response| (response.kind.kind, response.resources.len(), response.removed.clone()))
        .collect();
    let removed = |name: &str| vec![name.to_owned()];
    assert_eq!(
        round,
        [
            ("Service", 1, vec![]),
            ("HTTPRoute", 0, removed("shop/a")),
            ("Workload", 0, removed("shop/a-1")),
            ("Service", 0, removed("shop/a")),
        ]
    );
}

#[test]
fn a_rejection_concerns_the_named_resources_and_they_are_not_sent_again() {
    let mut session = session(vec![world::service("shop/a", &[]), world::service("shop/b", &[])]);
    let response = session.next_response().unwrap();
    let effects = answer(
        &mut session,
        &response,
        Some("Service shop/b: no: really\nService shop/x: ?\njunk"),
    );
    let verdicts: Vec<_> = effects
        .verdicts
        .iter()
        .map(|verdict| (verdict.key.to_string(), verdict.result.clone()))
        .collect();
    assert_eq!(
        verdicts,
        [("Service shop/a".into(), Ok(())), ("Service shop/b".into(), Err("no: really".into()))]
    );
    assert!(session.next_response().is_none());
    // The same version planned again is judged as before, without sending it.
    let verdicts = {
        let item = world::item(world::service("shop/b", &[]), 1);
        let items = [(item.key.clone(), Some(item))].into();
        session.offer(Delta { items, answers: HashMap::new() }, 1, 1)
    };
    assert_eq!(verdicts[0].result, Err("no: really".into()));
    assert!(session.next_response().is_none());
    offer(&mut session, vec![world::service("shop/b", &["x"])], 2);
    assert_eq!(names(&session.next_response().unwrap()), ["Service shop/b"]);
}

#[test]
fn a_rejection_that_names_nothing_is_of_everything() {
    for error in ["", "out of memory", "Service shop/x: not in it", "HTTPRoute shop/a: other kind"]
    {
        let mut session = session(vec![world::service("shop/a", &[])]);
        let response = session.next_response().unwrap();
        let effects = answer(&mut session, &response, Some(error));
        assert!(effects.verdicts[0].result.is_err(), "{error}");
        assert_eq!(effects.answered.map(|(_, accepted)| accepted), Some(false));
    }
}

#[test]
fn odd_answers_change_nothing() {
    let mut session = session(vec![world::service("shop/a", &[])]);
    let response = session.next_response().unwrap();
    for nonce in ["99", "x", "-1", "18446744073709551616"] {
        let odd =
            Request { nonce: nonce.into(), type_url: type_url("Service"), ..Request::default() };
        let effects = session.request(odd).unwrap();
        assert_eq!(effects.oddities, [Oddity::UnknownNonce], "{nonce}");
    }
    // The nonce of one type does not answer another.
    let nonce = response.nonce.to_string();
    let other = Request { nonce, type_url: type_url("HTTPRoute"), ..Request::default() };
    assert_eq!(session.request(other).unwrap().oddities, [Oddity::UnknownNonce]);
    assert_eq!(answer(&mut session, &response, None).verdicts.len(), 1);
    assert_eq!(answer(&mut session, &response, None).oddities, [Oddity::UnknownNonce]);
    let unknown = Request { type_url: "type.googleapis.com/x".into(), ..Request::default() };
    assert_eq!(session.request(unknown).unwrap().oddities, [Oddity::UnknownType]);
}

#[test]
fn a_host_that_nobody_answers_to_is_answered_and_the_service_sent_when_it_appears() {
    let mut session = session(vec![]);
    let effects = session.request(request("Service", &["host/shop/a", "not a name"])).unwrap();
    assert_eq!(effects.oddities, [Oddity::BadName]);
    let wish = world::host("shop", "a");
    let answers = |services: Vec<ObjectName>| HashMap::from([(wish.clone(), services)]);
    let delta = Delta { items: HashMap::new(), answers: answers(vec![]) };
    session.offer(delta, effects.sequence.unwrap(), 1);
    assert_eq!(session.next_response().unwrap().removed, ["host/shop/a", "not a name"]);
    let item = world::item(world::service("shop/a", &[]), 2);
    let items = HashMap::from([(item.key.clone(), Some(item.clone()))]);
    let delta = Delta { items, answers: answers(vec![item.key.name.clone()]) };
    session.offer(delta, session.asked, 2);
    assert_eq!(session.next_response().unwrap().resources[0].aliases, ["host/shop/a"]);
    // Asked for by another name, it is sent again, as xDS demands: this answers the question.
    let effects = session.request(request("Service", &["shop/a"])).unwrap();
    let answers = HashMap::from([(world::named("shop/a"), vec![item.key.name.clone()])]);
    session.offer(Delta { items: HashMap::new(), answers }, effects.sequence.unwrap(), 2);
    assert_eq!(session.next_response().unwrap().resources[0].aliases, ["shop/a"]);
}

#[test]
fn a_proxy_that_comes_back_gets_the_differences_alone() {
    let [same, old, new] = [
        world::item(world::service("shop/same", &[]), 1),
        world::item(world::service("shop/changed", &[]), 1),
        world::item(world::service("shop/changed", &["x"]), 2),
    ];
    let mut session = Session::default();
    let held = |item: &Item| (item.name.to_string(), item.version.to_string());
    let mut hello = request("Service", &["shop/same", "shop/changed", "host/shop/same"]);
    hello.initial_versions = [held(&same), held(&old), ("shop/gone".into(), "1-0".into())].into();
    let effects = session.request(hello).unwrap();
    let answers = effects.add.iter().map(|wish| (wish.clone(), vec![same.key.name.clone()]));
    let items = [&same, &new].map(|item| (item.key.clone(), Some(item.clone()))).into();
    let delta = Delta { items, answers: answers.collect() };
    let verdicts = session.offer(delta, 1, 2);
    assert_eq!(verdicts.len(), 1, "it runs what it claims to have: {verdicts:?}");
    let round = all(&mut session);
    assert_eq!(names(&round[0]), ["Service shop/changed"]);
    assert_eq!((round.len(), &round[1].removed[..]), (2, &["shop/gone".to_owned()][..]));
}

#[test]
fn a_proxy_that_does_not_answer_gets_the_latest_state_once_it_does() {
    let mut session = session(vec![]);
    let mut responses = Vec::new();
    for revision in 1..100 {
        offer(&mut session, vec![world::service("shop/a", &[])], revision);
        responses.extend(all(&mut session));
    }
    assert_eq!(responses.len(), MAX_ROUNDS);
    assert_eq!(session.slots.len(), 1);
    answer(&mut session, &responses[0], None);
    let latest = session.next_response().unwrap();
    assert!(latest.resources[0].item.version.starts_with("99-"));
    // Answering the latest of a type answers for the earlier ones, of which nothing is known.
    let effects = answer(&mut session, &latest, None);
    assert_eq!(effects.verdicts.len(), 1);
    assert!(session.is_settled());
}

#[test]
fn large_rounds_are_cut_into_responses_of_bounded_size() {
    let large = |number: usize| {
        let mut object = world::service(&format!("shop/s{number}"), &[]);
        object["metadata"]["annotations"] = json!({"x": "y".repeat(300_000)});
        object
    };
    let mut session = session((0..20).map(large).collect());
    let round = all(&mut session);
    assert_eq!(round.iter().map(|response| response.resources.len()).sum::<usize>(), 20);
    for response in &round {
        let bytes: usize = response.resources.iter().map(|sent| sent.item.body.len()).sum();
        assert!(bytes < 2 * 1024 * 1024, "{bytes}");
    }
    assert_eq!(round.iter().filter(|response| !response.more).count(), 1);
}

#[test]
fn names_are_bounded() {
    for kind in ["Service", "HTTPRoute"] {
        let mut session = Session::default();
        let names: Vec<_> = (0..=MAX_NAMES).map(|number| format!("shop/s{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        session.request(request(kind, &names[..MAX_NAMES])).unwrap();
        session.request(request(kind, &names[..10])).unwrap();
        let refused = session.request(request(kind, &names[MAX_NAMES..]));
        assert_eq!(refused.unwrap_err(), Violation::TooManyNames);
    }
}

#[test]
fn what_is_asked_for_by_name_is_sent_and_judged_again() {
    let mut session = session(vec![world::policy("shop/a", "a"), world::service("shop/a", &[])]);
    for response in all(&mut session) {
        let refused = response.kind.kind == "TrafficPolicy";
        answer(&mut session, &response, refused.then_some("TrafficPolicy shop/a: not yet"));
    }
    assert!(session.next_response().is_none());
    session.request(request("TrafficPolicy", &["shop/a", "shop/unknown"])).unwrap();
    let response = session.next_response().unwrap();
    assert_eq!(names(&response), ["TrafficPolicy shop/a"]);
    let verdicts = answer(&mut session, &response, None).verdicts;
    assert_eq!((verdicts.len(), &verdicts[0].result), (1, &Ok(())));
    assert!(session.next_response().is_none());
}
