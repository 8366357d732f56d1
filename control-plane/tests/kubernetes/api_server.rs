//! A small API server that speaks what the Kubernetes API conventions say, as far as a client with watches can tell: lists
//! in pages, watches with bookmarks that end with 410 where the history has run out, optimistic locking, server-side apply
//! (deep merge only), status subresources, token reviews; and everything that a real one does wrong only rarely, on demand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};

/// How often a quiet watch says where it is.
const BOOKMARKS: Duration = Duration::from_millis(500);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Where an object is: path of its collection (`api/v1/pods`), namespace, name.
type Place = (String, String, String);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Place, Value>,
    history: Vec<(u64, &'static str, Place, Value)>,
    /// Watches from before are answered with 410.
    compacted: u64,
    /// Collections that nobody knows, and those that nobody may read: all of it, or in one namespace.
    absent: BTreeSet<String>,
    forbidden: BTreeSet<(String, Option<String>)>,
    /// What is said of a token's user.
    tokens: HashMap<String, Value>,
    /// Answers nothing, but accepts.
    mute: bool,
    requests: Vec<String>,
    /// Sent to every watch of a collection as it is.
    garbage: BTreeMap<String, String>,
}

/// A running server; gone when dropped.
pub struct ApiServer {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    accepting: Option<JoinSet<()>>,
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server =
            Self { address, state: Arc::default(), changed: watch::channel(0).0, accepting: None };
        server.serve(listener);
        server
    }

    fn serve(&mut self, listener: TcpListener) {
        let (state, changed) = (self.state.clone(), self.changed.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.spawn(connection(stream, state.clone(), changed.clone()));
            }
        });
        self.accepting = Some(tasks);
    }

    /// Closes every connection and the port.
    pub fn stop(&mut self) {
        self.accepting = None;
    }

    /// Is there again, at the same address, with what it had.
    pub async fn resume(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Writes an object as its owner does; it must have kind, apiVersion and a name.
    pub fn put(&self, object: Value) {
        let place = place_of(&object);
        let mut state = self.state();
        state.write(place, object);
        self.changed.send_replace(state.revision);
    }

    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let place = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        state.remove(&place);
        self.changed.send_replace(state.revision);
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.state().objects.get(&place).cloned()
    }

    /// Writes an object that no watch can tell of, since the history is forgotten with it: they end with 410.
    pub fn put_unseen(&self, object: Value) {
        let place = place_of(&object);
        let mut state = self.state();
        state.write(place, object);
        state.compacted = state.revision;
        state.history.clear();
        self.changed.send_replace(state.revision);
    }

    /// Nobody knows this kind.
    pub fn absent(&self, collection: &str) {
        self.state().absent.insert(collection.to_owned());
    }

    /// Somebody has installed it.
    pub fn install(&self, collection: &str) {
        self.state().absent.remove(collection);
    }

    /// The client may not read this.
    pub fn forbid(&self, collection: &str, namespace: Option<&str>) {
        self.state().forbidden.insert((collection.to_owned(), namespace.map(str::to_owned)));
    }

    /// Somebody has given it the right.
    pub fn allow(&self, collection: &str, namespace: Option<&str>) {
        self.state().forbidden.remove(&(collection.to_owned(), namespace.map(str::to_owned)));
    }

    /// Sends a line to every watch of a collection.
    pub fn garbage(&self, collection: &str, line: &str) {
        let mut state = self.state();
        state.garbage.insert(collection.to_owned(), line.to_owned());
        state.revision += 1;
        self.changed.send_replace(state.revision);
    }

    /// This token is of this user: what a TokenReview's status says.
    pub fn token(&self, token: &str, status: Value) {
        self.state().tokens.insert(token.to_owned(), status);
    }

    /// Takes requests and never answers.
    pub fn mute(&self, mute: bool) {
        self.state().mute = mute;
    }

    /// Method and path of every request so far that has this in it.
    pub fn requests(&self, part: &str) -> usize {
        self.state().requests.iter().filter(|request| request.contains(part)).count()
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>, changed: watch::Sender<u64>) {
    let service = service_fn(move |request| {
        let (state, changed) = (state.clone(), changed.clone());
        async move { Ok::<_, Infallible>(answer(request, &state, &changed).await) }
    });
    // Whoever is gone is gone.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// What a request is about.
struct Asked {
    collection: String,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
    query: HashMap<String, String>,
}

impl Asked {
    fn read(uri: &http::Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let version = if parts.first() == Some(&"api") { 2 } else { 3 };
        let (version, rest) = parts.split_at_checked(version)?;
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let collection = format!("{}/{}", version.join("/"), rest.first()?);
        let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.replace("%3D", "=").replace("%3d", "=")))
        });
        Some(Self {
            collection,
            namespace: namespace.map(str::to_owned),
            name: rest.get(1).map(|name| (*name).to_owned()),
            status: rest.get(2) == Some(&"status"),
            query: query.collect(),
        })
    }

    fn has(&self, place: &Place) -> bool {
        let field =
            self.query.get("fieldSelector").and_then(|all| all.strip_prefix("metadata.name="));
        place.0 == self.collection
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == place.1)
            && field.is_none_or(|name| name == place.2)
    }

    fn place(&self) -> Place {
        let namespace = self.namespace.clone().unwrap_or_default();
        (self.collection.clone(), namespace, self.name.clone().unwrap_or_default())
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
) -> Answer {
    let (head, body) = request.into_parts();
    let mute = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{} {}", head.method, head.uri));
        state.mute
    };
    if mute {
        std::future::pending::<()>().await;
    }
    let Some(asked) = Asked::read(&head.uri) else { return failure(404, "NotFound") };
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if asked.collection == "apis/authentication.k8s.io/v1/tokenreviews" {
        return review(&state.lock().unwrap(), &body);
    }
    {
        let state = state.lock().unwrap();
        if state.absent.contains(&asked.collection) {
            return failure(404, "NotFound");
        }
        let forbidden = [None, asked.namespace.clone()];
        if forbidden
            .iter()
            .any(|place| state.forbidden.contains(&(asked.collection.clone(), place.clone())))
        {
            return failure(403, "Forbidden");
        }
    }
    match (&head.method, asked.name.is_some()) {
        (&Method::GET, false) if asked.query.contains_key("watch") => {
            watching(asked, state.clone(), changed.subscribe())
        }
        (&Method::GET, false) => list(&asked, &state.lock().unwrap()),
        (&Method::GET, true) => match state.lock().unwrap().objects.get(&asked.place()) {
            Some(object) => ok(object),
            None => failure(404, "NotFound"),
        },
        _ => {
            let mut state = state.lock().unwrap();
            let written = write(&head.method, asked, &body, &mut state);
            changed.send_replace(state.revision);
            written
        }
    }
}

fn write(method: &Method, mut asked: Asked, body: &[u8], state: &mut State) -> Answer {
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    if *method == Method::POST {
        asked.name = sent["metadata"]["name"].as_str().map(str::to_owned);
        if state.objects.contains_key(&asked.place()) {
            return failure(409, "AlreadyExists");
        }
    }
    let place = asked.place();
    let live = state.objects.get(&place).cloned();
    if *method == Method::DELETE {
        state.remove(&place);
        return ok(&json!({"kind": "Status", "status": "Success"}));
    }
    let asked_revision = &sent["metadata"]["resourceVersion"];
    if let Some(live) = &live
        && asked_revision.as_str().is_some_and(|text| !text.is_empty())
        && live["metadata"]["resourceVersion"] != *asked_revision
    {
        return failure(409, "Conflict");
    }
    let applies = *method == Method::PATCH;
    let object = match live {
        None if asked.status || *method == Method::PUT => return failure(404, "NotFound"),
        None => sent,
        // A subresource takes nothing but the status; the rest of the API leaves that alone.
        Some(mut live) if asked.status => {
            live["status"] = sent["status"].clone();
            live
        }
        Some(mut live) if applies => {
            merge(&mut live, &sent);
            live
        }
        Some(live) => {
            let mut object = sent;
            object["status"] = live["status"].clone();
            object
        }
    };
    if state.objects.get(&place).is_some_and(|live| same(live, &object)) {
        return ok(&state.objects[&place]);
    }
    state.write(place.clone(), object);
    ok(&state.objects[&place])
}

fn same(live: &Value, object: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        object
    };
    bare(live) == bare(object)
}

fn merge(live: &mut Value, patch: &Value) {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(live.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (live, patch) => *live = patch.clone(),
    }
}

impl State {
    fn write(&mut self, place: Place, mut object: Value) {
        self.revision += 1;
        let before = self.objects.get(&place);
        let generation = before.and_then(|before| before["metadata"]["generation"].as_u64());
        let raised = before.is_none_or(|before| before["spec"] != object["spec"]);
        let metadata = &mut object["metadata"];
        metadata["generation"] = (generation.unwrap_or(0) + u64::from(raised)).into();
        metadata["resourceVersion"] = self.revision.to_string().into();
        metadata["uid"] = format!("{}-{}-{}", place.0, place.1, place.2).into();
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        let kind = if before.is_none() { "ADDED" } else { "MODIFIED" };
        self.history.push((self.revision, kind, place.clone(), object.clone()));
        self.objects.insert(place, object);
    }

    fn remove(&mut self, place: &Place) {
        let Some(mut object) = self.objects.remove(place) else { return };
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.history.push((self.revision, "DELETED", place.clone(), object));
    }
}

fn list(asked: &Asked, state: &State) -> Answer {
    let number = |key: &str| asked.query.get(key).and_then(|text| text.parse::<usize>().ok());
    let (skip, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
    let fitting: Vec<&Value> = state
        .objects
        .iter()
        .filter(|(place, _)| asked.has(place))
        .map(|(_, object)| object)
        .collect();
    let items: Vec<&Value> = fitting.iter().skip(skip).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": state.revision.to_string()});
    if skip + items.len() < fitting.len() {
        metadata["continue"] = (skip + items.len()).to_string().into();
    }
    ok(&json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn watching(asked: Asked, state: Arc<Mutex<State>>, mut changed: watch::Receiver<u64>) -> Answer {
    let (lines, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let from = asked.query.get("resourceVersion").and_then(|text| text.parse().ok());
        let mut from: u64 = from.unwrap_or(0);
        loop {
            let (events, gone) = {
                let mut state = state.lock().unwrap();
                let garbage = state.garbage.remove(&asked.collection).into_iter();
                let later =
                    state.history.iter().filter(|event| event.0 > from && asked.has(&event.2));
                let events = later.map(|(_, kind, _, object)| line(kind, object));
                let events: Vec<String> = garbage.chain(events).collect();
                let gone = from < state.compacted;
                from = if gone { from } else { state.revision };
                (events, gone)
            };
            if gone {
                let status = json!({"kind": "Status", "status": "Failure", "reason": "Expired",
                                    "code": 410, "message": "too old resource version"});
                let _ = lines.send((line("ERROR", &status) + "\n").into()).await;
                return;
            }
            for event in events {
                if lines.send((event + "\n").into()).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = lines.closed() => return,
                () = tokio::time::sleep(BOOKMARKS) => {
                    let object = json!({"kind": "Pod", "apiVersion": "v1",
                                        "metadata": {"resourceVersion": from.to_string()}});
                    if lines.send((line("BOOKMARK", &object) + "\n").into()).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let frames = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Bytes>| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), receiver))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn line(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

fn review(state: &State, body: &[u8]) -> Answer {
    let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let status = state.tokens.get(token).cloned();
    review["status"] = status.unwrap_or_else(|| json!({"authenticated": false}));
    ok(&review)
}

fn ok(object: &Value) -> Answer {
    let body: Bytes = object.to_string().into();
    Response::new(Full::new(body).boxed_unsync())
}

fn failure(code: u16, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "reason": reason, "message": reason, "code": code});
    let mut response = ok(&status);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn place_of(object: &Value) -> Place {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let prefix = if version.contains('/') { "apis" } else { "api" };
    let kind = text(&object["kind"]).to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    let metadata = &object["metadata"];
    (format!("{prefix}/{version}/{plural}"), text(&metadata["namespace"]), text(&metadata["name"]))
}
