//! The catalogue of product, over HTTP and JSON: what there is and what it costs, for everybody to keep a copy.
//!
//! `GET /products` · `GET /products/{id}` · `PUT /products/{id}` `{"priceCents":400}`
//!
//! Stock is not in it: that changes with every order, and only `Reserve` tells it.

use crate::Service;
use crate::failure::Failure;
use crate::product::Shelf;
use crate::products::Product;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// By which a purge names it: `product-p1`.
const TAGS: HeaderName = HeaderName::from_static("surrogate-key");
/// The shop window may lag by a second.
const SHORT: HeaderValue = HeaderValue::from_static("public, max-age=1");
/// Whoever changes a price has the old one purged.
const LONG: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// What is for sale.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Article {
    pub id: String,
    pub name: String,
    pub price_cents: u32,
}

/// How often each path was asked for; what others kept was not.
#[derive(Default)]
pub struct Reads(Mutex<BTreeMap<String, u64>>);

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewPrice {
    price_cents: u32,
}

pub fn router(shelf: Arc<Shelf>) -> Router {
    Router::new()
        .route("/products", get(list))
        .route("/products/{id}", get(find).put(change))
        .with_state(shelf)
}

/// For the control port: `GET /reads`.
pub fn control(shelf: Arc<Shelf>) -> Router {
    Router::new().route("/reads", get(reads)).with_state(shelf)
}

async fn list(State(shelf): State<Arc<Shelf>>, asked: HeaderMap) -> Response {
    shelf.reads.count("/products".to_owned());
    let articles: Vec<_> = shelf.stock().values().map(Article::of).collect();
    kept(&asked, SHORT, &articles, Json(&articles))
}

async fn find(
    State(shelf): State<Arc<Shelf>>,
    Path(id): Path<String>,
    asked: HeaderMap,
) -> Result<Response, Failure> {
    let article = shelf.stock().get(&id).map(Article::of).ok_or_else(|| missing(&id))?;
    shelf.reads.count(format!("/products/{id}"));
    let body = Json(&article);
    Ok(kept(&asked, LONG, std::slice::from_ref(&article), body))
}

async fn change(
    State(shelf): State<Arc<Shelf>>,
    Path(id): Path<String>,
    price: Result<Json<NewPrice>, JsonRejection>,
) -> Result<Json<Article>, Failure> {
    let Json(NewPrice { price_cents }) =
        price.map_err(|rejection| Failure::unreadable(Service::Product, &rejection))?;
    let mut stock = shelf.stock();
    let product = stock.get_mut(&id).ok_or_else(|| missing(&id))?;
    product.price_cents = price_cents;
    Ok(Json(Article::of(product)))
}

async fn reads(State(shelf): State<Arc<Shelf>>) -> Json<BTreeMap<String, u64>> {
    Json(shelf.reads.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// An answer that may be kept for a while, with what it takes to ask for it again and to have it forgotten.
fn kept(
    asked: &HeaderMap,
    control: HeaderValue,
    articles: &[Article],
    body: impl IntoResponse,
) -> Response {
    // Prices are all that ever changes.
    let prices: Vec<_> = articles.iter().map(|article| article.price_cents.to_string()).collect();
    let tag = format!("\"{}\"", prices.join("-"));
    let keys: Vec<_> = articles.iter().map(|article| format!("product-{}", article.id)).collect();
    let mut answer = match has_it(asked, &tag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => body.into_response(),
    };
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, control);
    for (name, text) in [(ETAG, tag), (TAGS, keys.join(" "))] {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    }
    answer
}

fn has_it(asked: &HeaderMap, tag: &str) -> bool {
    let lines = asked.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

fn missing(id: &str) -> Failure {
    let message = format!("there is no product {id:?}");
    Failure::new(StatusCode::NOT_FOUND, Service::Product, message)
}

impl Article {
    fn of(product: &Product) -> Self {
        let Product { id, name, price_cents, .. } = product;
        Self { id: id.clone(), name: name.clone(), price_cents: *price_cents }
    }
}

impl Reads {
    /// Only of what there is: so the table has an end.
    fn count(&self, path: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(path).or_default() += 1;
    }
}
