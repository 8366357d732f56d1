//! The control port: an instance shows its state and is told to be slow, failing or newer.
//!
//! `GET /` the state · `POST /` a change of it · `GET /stats` answers served and failed

use crate::failure::Failure;
use crate::instance::{Behaviour, Change, Instance, Stats};
use crate::{Label, Service};
use axum::extract::rejection::JsonRejection;
use axum::routing::get;
use axum::{Json, Router, extract};
use std::sync::Arc;

pub fn router(instance: Arc<Instance>) -> Router {
    Router::new()
        .route("/", get(show).post(change))
        .route("/stats", get(stats))
        .with_state(instance)
}

#[derive(serde::Serialize)]
struct Shown {
    service: Service,
    instance: Label,
    #[serde(flatten)]
    behaviour: Behaviour,
}

type State = extract::State<Arc<Instance>>;

async fn show(instance: State) -> Json<Shown> {
    let behaviour = instance.behaviour();
    Json(Shown { service: instance.service, instance: instance.name.clone(), behaviour })
}

async fn change(
    instance: State,
    change: Result<Json<Change>, JsonRejection>,
) -> Result<Json<Shown>, Failure> {
    let service = instance.service;
    let Json(change) = change.map_err(|rejection| Failure::unreadable(service, &rejection))?;
    let behaviour =
        instance.change(change).map_err(|message| Failure::unprocessable(service, message))?;
    tracing::info!(?behaviour, "told to behave");
    Ok(show(instance).await)
}

async fn stats(instance: State) -> Json<Stats> {
    Json(instance.stats())
}
