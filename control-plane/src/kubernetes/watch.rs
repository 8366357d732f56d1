//! Follows one kind of objects in the API server, for as long as it takes: an error is waited out, a history that has run
//! out is read anew, and an object that cannot be read is left out alone.

use std::{collections::HashSet, time::Duration};

use futures_util::{Stream, StreamExt, pin_mut};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::ApiResource,
    runtime::watcher::{self, Config, watcher},
};
use leno_api::model::ObjectName;
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    chain,
    facts::{Identity, NamespaceFacts, PodFacts, ServiceFacts, SliceFacts},
    mapping::{self, Metadata},
    world::{Fact, Source},
};
use crate::inject::names;

/// The first wait after an error; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest: an API server that is back is noticed within this.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long a page of a list may take: an API server that accepts and never answers is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is watched, and where: in one namespace or in all.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    pub(super) source: Source,
    pub(super) namespace: Option<String>,
}

/// What Kubernetes says about a user's object, beside what it is for the mesh.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) uid: Option<String>,
    pub(super) generation: u64,
    pub(super) resource_version: String,
    pub(super) parents: Value,
    pub(super) status: Value,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum Event {
    Put {
        source: Source,
        name: ObjectName,
        fact: Fact,
        seen: Option<Seen>,
    },
    Gone {
        source: Source,
        name: ObjectName,
    },
    /// A list is complete; whatever else there was is gone.
    Listed {
        scope: Scope,
        there: HashSet<ObjectName>,
    },
    /// An object was left out.
    Unreadable {
        source: Source,
        name: ObjectName,
        reason: String,
    },
    /// The API server gives nothing now; what is known stays.
    Failed {
        scope: Scope,
        why: Why,
    },
}

/// Why a watch has nothing to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// The kind is not installed.
    Absent,
    Forbidden(String),
    /// The history that we were to go on from has run out.
    Gone,
    Other(String),
}

/// Follows a scope until nobody listens any more.
pub(super) async fn follow(client: Client, scope: Scope, events: mpsc::Sender<Event>) {
    let versions = versions(scope.source);
    let mut follower = Follower { scope, events, wait: FIRST_WAIT };
    for (at, version) in versions.iter().enumerate().cycle() {
        let resource = ApiResource {
            api_version: version.to_string(),
            version: version.rsplit('/').next().unwrap_or(version).to_owned(),
            ..resource(follower.scope.source)
        };
        let client = client.clone();
        let api: Api<DynamicObject> = match &follower.scope.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let last = at + 1 == versions.len();
        loop {
            match follower.listen(&api, last).await {
                Ended::Closed => return,
                Ended::Absent => break,
                Ended::Anew => {}
            }
        }
    }
}

struct Follower {
    scope: Scope,
    events: mpsc::Sender<Event>,
    wait: Duration,
}

/// Why one stream of events is not followed any more.
enum Ended {
    /// Nobody listens.
    Closed,
    /// The API server does not have it in this version.
    Absent,
    /// A new list is needed.
    Anew,
}

impl Follower {
    /// `last`: no other version is left to be tried.
    async fn listen(&mut self, api: &Api<DynamicObject>, last: bool) -> Ended {
        let stream = watcher(api.clone(), Config::default());
        pin_mut!(stream);
        let mut listed = HashSet::new();
        let mut listing = true;
        loop {
            let (why, ended) = match next(&mut stream, listing).await {
                Next::Ended => return Ended::Anew,
                Next::Event(Ok(event)) => {
                    if is_answer(&event) {
                        self.wait = FIRST_WAIT;
                    }
                    listing = matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
                    let Some(event) = translate(&self.scope, event, &mut listed) else { continue };
                    if self.events.send(event).await.is_err() {
                        return Ended::Closed;
                    }
                    continue;
                }
                Next::Silent => {
                    let reason = format!("no answer to a list within {} s", PATIENCE.as_secs());
                    (Why::Other(reason), Some(Ended::Anew))
                }
                Next::Event(Err(error)) => {
                    let why = why(&error);
                    match &why {
                        Why::Absent if !last => return Ended::Absent,
                        Why::Absent => (why, Some(Ended::Absent)),
                        Why::Gone => (why, Some(Ended::Anew)),
                        _ => (why, missed_something(&error).then_some(Ended::Anew)),
                    }
                }
            };
            if self.failed(why).await.is_err() {
                return Ended::Closed;
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Says it and waits, each time for longer.
    async fn failed(&mut self, why: Why) -> Result<(), ()> {
        let event = Event::Failed { scope: self.scope.clone(), why };
        self.events.send(event).await.map_err(|_| ())?;
        // Not all at once when it is back.
        sleep(self.wait.mul_f64(rand::random_range(0.5..1.0))).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }
}

#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
enum Next {
    Event(watcher::Result<watcher::Event<DynamicObject>>),
    /// A list, of which something is always to come, brings nothing.
    Silent,
    Ended,
}

async fn next(
    stream: &mut (impl Stream<Item = watcher::Result<watcher::Event<DynamicObject>>> + Unpin),
    listing: bool,
) -> Next {
    // A quiet watch is ended by the API server; should it not, the client's own limit ends it.
    let patience = if listing { PATIENCE } else { Duration::MAX };
    match timeout(patience, stream.next()).await {
        Ok(Some(event)) => Next::Event(event),
        Ok(None) => Next::Ended,
        Err(_) => Next::Silent,
    }
}

/// Whether the API server has said anything. That a list begins, kube-rs says before it has asked.
fn is_answer(event: &watcher::Event<DynamicObject>) -> bool {
    !matches!(event, watcher::Event::Init)
}

/// Whether a change passed that nobody could read: then only a new list says what there is.
fn missed_something(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchFailed(kube::Error::SerdeError(_)))
}

fn why(error: &watcher::Error) -> Why {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    match status {
        Some(status) if status.code == 404 => Why::Absent,
        // 401 is no verdict: a token that has just been replaced, an API server that starts.
        Some(status) if status.code == 403 => Why::Forbidden(status.message.clone()),
        Some(status) if status.code == 410 => Why::Gone,
        _ => Why::Other(chain(error)),
    }
}

fn translate(
    scope: &Scope,
    event: watcher::Event<DynamicObject>,
    listed: &mut HashSet<ObjectName>,
) -> Option<Event> {
    let source = scope.source;
    match event {
        watcher::Event::Init => {
            listed.clear();
            None
        }
        watcher::Event::InitDone => {
            Some(Event::Listed { scope: scope.clone(), there: std::mem::take(listed) })
        }
        watcher::Event::InitApply(object) => {
            let name = name_of(&object)?;
            listed.insert(name.clone());
            Some(read(source, name, &object))
        }
        watcher::Event::Apply(object) => Some(read(source, name_of(&object)?, &object)),
        watcher::Event::Delete(object) => Some(Event::Gone { source, name: name_of(&object)? }),
    }
}

/// Cluster-wide objects are in no namespace.
fn name_of(object: &DynamicObject) -> Option<ObjectName> {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    Some(ObjectName::new(namespace, object.metadata.name.as_deref()?))
}

fn read(source: Source, name: ObjectName, object: &DynamicObject) -> Event {
    let metadata = &object.metadata;
    let annotation = |key| metadata.annotations.as_ref().is_some_and(|all| all.contains_key(key));
    let identity = || Identity {
        uid: metadata.uid.clone(),
        created: metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        labels: metadata.labels.clone().unwrap_or_default(),
    };
    let body = &object.data;
    let fact = match source {
        Source::Namespaces => {
            let label = metadata.labels.as_ref().and_then(|all| all.get(names::INJECT_LABEL));
            Ok(Fact::Namespace(NamespaceFacts {
                labelled: label.is_some_and(|value| value == names::ENABLED),
                ending: metadata.deletion_timestamp.is_some(),
            }))
        }
        Source::Services => ServiceFacts::read(identity(), body).map(Fact::Service),
        Source::EndpointSlices => {
            SliceFacts::read(&name.namespace, &identity(), body).map(Fact::Slice)
        }
        Source::Pods => {
            let terminating = metadata.deletion_timestamp.is_some();
            PodFacts::read(identity(), annotation(names::INJECTED), terminating, body)
                .map(Fact::Pod)
        }
        Source::Custom(kind) => {
            let created = metadata.creation_timestamp.as_ref().map(|time| time.0.to_string());
            let metadata = Metadata {
                uid: metadata.uid.as_deref(),
                created: created.as_deref(),
                generation: metadata.generation,
                labels: metadata.labels.as_ref(),
                annotations: metadata.annotations.as_ref(),
            };
            Ok(Fact::Custom(mapping::custom(kind, &name, &metadata, body)))
        }
    };
    match fact {
        Ok(fact) => Event::Put { source, name, seen: seen(source, object), fact },
        Err(reason) => Event::Unreadable { source, name, reason },
    }
}

fn seen(source: Source, object: &DynamicObject) -> Option<Seen> {
    let Source::Custom(_) = source else { return None };
    let metadata = &object.metadata;
    Some(Seen {
        uid: metadata.uid.clone(),
        generation: metadata.generation.and_then(|number| u64::try_from(number).ok()).unwrap_or(1),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        parents: object.data.pointer("/spec/parentRefs").cloned().unwrap_or_default(),
        status: object.data.get("status").cloned().unwrap_or_default(),
    })
}

/// In which versions it is looked for; one after another where it is not there.
fn versions(source: Source) -> Vec<String> {
    match source {
        // Before Kubernetes 1.21.
        Source::EndpointSlices => {
            vec!["discovery.k8s.io/v1".to_owned(), "discovery.k8s.io/v1beta1".to_owned()]
        }
        _ => vec![resource(source).api_version],
    }
}

/// How the API server calls it.
pub(super) fn resource(source: Source) -> ApiResource {
    let (group, version, kind, plural) = match source {
        Source::Namespaces => ("", "v1", "Namespace", "namespaces"),
        Source::Services => ("", "v1", "Service", "services"),
        Source::EndpointSlices => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        Source::Pods => ("", "v1", "Pod", "pods"),
        Source::Custom(kind) => (kind.group, kind.version, kind.kind, kind.plural),
    };
    let api_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_a_verdict_says_that_something_cannot_be_read() {
        for (code, expected) in [
            (404, Some(Why::Absent)),
            (403, Some(Why::Forbidden("no".into()))),
            (410, Some(Why::Gone)),
            (401, None),
            (429, None),
            (500, None),
            (503, None),
        ] {
            let status = || Box::new(Status { code, ..Status::failure("no", "Reason") });
            for error in [
                watcher::Error::InitialListFailed(kube::Error::Api(status())),
                watcher::Error::WatchError(status()),
            ] {
                let why = why(&error);
                match &expected {
                    Some(expected) => assert_eq!(why, *expected, "{code}"),
                    None => assert!(matches!(why, Why::Other(_)), "{code}: {why:?}"),
                }
            }
        }
    }
}
