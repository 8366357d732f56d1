//! From a path and a method to an operation on objects.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, request::Parts};
use leno_api::KindInfo;

use super::{
    Api, Failure, batch, list, parameters::Parameters, remove, rendering::Rendering, watch, write,
};
use crate::{
    access::{Action, Caller, Target},
    store::{Key, Selection},
};

/// What a path names: a kind, within a namespace or in all of them.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: &'static KindInfo,
    pub(super) namespace: Option<String>,
}

/// A request about objects, once it is known what about and that its caller may.
pub(super) struct Call {
    pub(super) place: Place,
    pub(super) caller: Caller,
    pub(super) parameters: Parameters,
    pub(super) headers: HeaderMap,
    pub(super) rendering: Rendering,
}

type Names = HashMap<String, String>;

impl Place {
    fn named(names: &Names) -> Result<Self, Failure> {
        let name = |part: &str| names.get(part).map(String::as_str).unwrap_or_default();
        let kind = leno_api::KINDS.iter().find(|kind| {
            (kind.group, kind.version, kind.plural)
                == (name("group"), name("version"), name("plural"))
        });
        let kind = kind.ok_or_else(Failure::no_such_path)?;
        Ok(Self { kind, namespace: names.get("namespace").cloned() })
    }

    pub(super) fn key(&self, name: &str) -> Key {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        Key::new(self.kind.group, self.kind.plural, namespace, name)
    }

    pub(super) fn selection(&self) -> Selection {
        let selection = Selection::kind(self.kind.group, self.kind.plural);
        match &self.namespace {
            Some(namespace) => selection.within(namespace),
            None => selection,
        }
    }

    /// Some kinds are for reading only, whoever asks.
    pub(super) fn check_writable(&self) -> Result<(), Failure> {
        if !self.kind.read_only {
            return Ok(());
        }
        Err(Failure::not_possible(format!(
            "{} are kept by the certificate authority: read them here, change them with `leno ca rotate-root`",
            self.kind.plural
        )))
    }

    fn target(&self) -> Target<'_> {
        let KindInfo { group, plural, .. } = self.kind;
        Target { group, plural, namespace: self.namespace.as_deref() }
    }
}

impl Call {
    fn new(api: &Api, parts: Parts, names: &Names, caller: Caller) -> Result<Self, Failure> {
        let place = Place::named(names)?;
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        let target = place.target();
        caller.may(if reads { Action::Read(target) } else { Action::Write(target) })?;
        if !reads {
            place.check_writable()?;
            // A lease is for who registered here, and only says that it is still there.
            if names.get("part").is_none_or(|part| part != "lease") {
                api.check_writable()?;
            }
        }
        let parameters = Parameters::parse(parts.uri.query())?;
        let include_object = parameters.include_object.as_deref();
        let rendering = Rendering::of(place.kind, &parts.headers, include_object)?;
        Ok(Self { place, caller, parameters, headers: parts.headers, rendering })
    }
}

/// `/apis/{group}/{version}/{plural}`
pub(super) async fn everywhere(
    State(api): State<Arc<Api>>,
    Path(names): Path<Names>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let path = request.uri().path();
    if path == batch::PATH {
        return batch::serve(&api, caller, request).await.into_response();
    }
    on_collection(&api, &names, caller, request).await.into_response()
}

/// `/apis/{group}/{version}/namespaces/{namespace}/{plural}`
pub(super) async fn collection(
    State(api): State<Arc<Api>>,
    Path(names): Path<Names>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    on_collection(&api, &names, caller, request).await.into_response()
}

async fn on_collection(
    api: &Api,
    names: &Names,
    caller: Caller,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let call = Call::new(api, parts, names, caller)?;
    match method {
        Method::GET | Method::HEAD if call.parameters.watch => {
            watch::serve(api, &call.place, call.parameters, call.rendering)
        }
        Method::GET | Method::HEAD => {
            list::many(api, &call.place, &call.parameters, &call.rendering)
        }
        Method::POST if call.place.namespace.is_none() => Err(Failure::not_possible(format!(
            "{} live in namespaces: create them at …/namespaces/<namespace>/{}",
            call.place.kind.plural, call.place.kind.plural
        ))),
        Method::POST => write::create(api, &call, body).await,
        Method::DELETE => remove::collection(api, &call, body).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// `/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}`
pub(super) async fn item(
    State(api): State<Arc<Api>>,
    Path(names): Path<Names>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    on_item(&api, &names, caller, request).await.into_response()
}

async fn on_item(
    api: &Api,
    names: &Names,
    caller: Caller,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let method = parts.method.clone();
    let name = names.get("name").cloned().unwrap_or_default();
    let mut call = Call::new(api, parts, names, caller)?;
    match method {
        Method::GET | Method::HEAD if call.parameters.watch => {
            // The old way to watch one object; kubectl no longer uses it, older clients do.
            call.parameters
                .selector
                .fields(&format!("metadata.name={name}"))
                .map_err(Failure::bad_request)?;
            watch::serve(api, &call.place, call.parameters, call.rendering)
        }
        Method::GET | Method::HEAD => list::one(api, &call.place, &name, &call.rendering),
        Method::PUT => write::replace(api, &call, &name, body).await,
        Method::PATCH => write::patch(api, &call, &name, body).await,
        Method::DELETE => remove::one(api, &call, &name, body).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// `/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}/{part}`
pub(super) async fn part(
    State(api): State<Arc<Api>>,
    Path(names): Path<Names>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    on_part(&api, &names, caller, request).into_response()
}

fn on_part(
    api: &Api,
    names: &Names,
    caller: Caller,
    request: Request,
) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let method = parts.method.clone();
    let call = Call::new(api, parts, names, caller)?;
    let name = names.get("name").map(String::as_str).unwrap_or_default();
    match (names.get("part").map(String::as_str), method) {
        (Some("status"), Method::GET | Method::HEAD) => {
            list::one(api, &call.place, name, &call.rendering)
        }
        (Some("status"), _) => Err(Failure::not_possible(
            "status is written by the control plane: it says what the proxies made of the resource",
        )),
        (Some("lease"), Method::PUT) if call.place.kind.kind == "Workload" => {
            let key = call.place.key(name);
            if let Some(stored) = api.store.get(&key) {
                write::check_owner(&call.caller, &key, &stored.json()?)?;
            }
            api.registry.renew(&key)?;
            list::one(api, &call.place, name, &call.rendering)
        }
        (Some("lease"), _) if call.place.kind.kind == "Workload" => {
            Err(Failure::not_possible("a lease is renewed with PUT; it ends with its workload"))
        }
        _ => Err(Failure::no_such_path()),
    }
}
