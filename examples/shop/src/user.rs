//! Users, over HTTP and JSON.
//!
//! `GET /users` · `GET /users/{id}` · `GET /health`

use crate::Service;
use crate::answer::health;
use crate::failure::Failure;
use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub id: String,
    pub name: String,
}

const USERS: [(&str, &str); 5] = [
    ("u1", "Ada Lovelace"),
    ("u2", "Joseph Jacquard"),
    ("u3", "Grace Hopper"),
    ("u4", "Alan Turing"),
    ("u5", "Barbara Liskov"),
];

pub fn router() -> Router {
    Router::new()
        .route("/users", get(list))
        .route("/users/{id}", get(find))
        .route("/health", get(health))
}

async fn list() -> Json<Vec<User>> {
    Json(users().collect())
}

async fn find(Path(id): Path<String>) -> Result<Json<User>, Failure> {
    let missing =
        || Failure::new(StatusCode::NOT_FOUND, Service::User, format!("there is no user {id:?}"));
    users().find(|user| user.id == id).map(Json).ok_or_else(missing)
}

fn users() -> impl Iterator<Item = User> {
    USERS.into_iter().map(|(id, name)| User { id: id.to_owned(), name: name.to_owned() })
}
