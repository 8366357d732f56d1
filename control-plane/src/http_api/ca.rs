//! What people ask and tell the certificate authority.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use leno_api::{KINDS, Key, SYSTEM_NAMESPACE, model::ObjectName, model::trust_bundle};
use serde::Deserialize;

use super::{Api, Failure, MAX_BODY_BYTES, body};
use crate::{
    access::{Action, Caller, Member, Target},
    ca::{Certificate, Fleet, RotateError, Rotation, Status},
    push::Holders,
    store,
};

/// The one path that is there for everybody: public, and needed before anything else can be trusted.
pub(super) const BUNDLE: &str = "/ca/bundle";
const PEM: &str = "application/x-pem-file";
/// What all of this is about, for whoever decides who may.
const AUTHORITY: Target<'_> = Target { group: "leno.dev", plural: "certificates", namespace: None };

/// A step of a rotation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    action: Rotation,
    #[serde(default)]
    force: bool,
}

/// Who is connected and how far they are, at one moment.
struct Moment(Holders);

/// `GET /ca/bundle`: the trusted roots.
pub(super) async fn bundle(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, PEM)], api.authority.bundle_pem()).into_response()
}

/// `GET /ca/status`
pub(super) async fn status(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Status>, Failure> {
    caller.may(Action::Read(AUTHORITY))?;
    let fleet = api.fleet().await?;
    Ok(Json(api.authority.status(&fleet)))
}

/// `GET /ca/certificates`: the last one that each proxy got.
pub(super) async fn certificates(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<Certificate>>, Failure> {
    caller.may(Action::Read(AUTHORITY))?;
    Ok(Json(api.authority.certificates()))
}

/// `POST /ca/rotation`: one step of replacing the root.
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Status>, Failure> {
    caller.may(Action::Write(AUTHORITY))?;
    let order = body::resource(body, &headers, MAX_BODY_BYTES).await?;
    let order: Order = serde_json::from_value(order).map_err(|error| {
        Failure::bad_request(format!(
            "{error}; send {{\"action\": \"add|switch|drop|undo\", \"force\": false}}"
        ))
    })?;
    let fleet = api.fleet().await?;
    let status = api.authority.rotate(order.action, order.force, &fleet).await?;
    tracing::info!(action = ?order.action, forced = order.force, %caller, "root rotated");
    Ok(Json(status))
}

impl Api {
    async fn fleet(&self) -> Result<Moment, Failure> {
        let kind = KINDS.iter().find(|info| info.kind == "TrustBundle");
        let kind = kind.ok_or_else(|| Failure::internal("there is no kind TrustBundle"))?;
        let key = Key { kind, name: ObjectName::new(SYSTEM_NAMESPACE, trust_bundle::MESH) };
        let holders = self.push.holders(key).await;
        Ok(Moment(holders.map_err(|_| Failure::from(store::Error::Closed))?))
    }
}

impl Fleet for Moment {
    fn connected(&self) -> Vec<Member> {
        self.0.connected.iter().cloned().collect()
    }

    fn have_bundle(&self, generation: u64) -> Vec<Member> {
        // The push may not have seen the latest bundle; what it knows is about an older one then.
        if self.0.generation < generation {
            return Vec::new();
        }
        self.0.live.iter().cloned().collect()
    }
}

impl From<RotateError> for Failure {
    fn from(error: RotateError) -> Self {
        let message = error.to_string();
        match error {
            RotateError::Refused(crate::ca::Refused::OutOfOrder { .. })
            | RotateError::UserRoots(_) => Self::bad_request(message),
            RotateError::Refused(_) | RotateError::NotPublished => Self::not_ready(message),
            RotateError::Failed(_) => {
                tracing::error!(error = message, "a step of the rotation failed");
                Self::internal(message)
            }
        }
    }
}
