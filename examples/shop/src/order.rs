//! Orders, over HTTP and JSON; the service that calls all the others.
//!
//! `POST /orders` `{"user":"u1","items":[{"product":"p1","quantity":2}]}` · `GET /orders/{id}` · `GET /products` · `GET /health`

use crate::answer::health;
use crate::catalogue::Article;
use crate::failure::Failure;
use crate::hop::{CACHE_STATUS, Hop, Trace};
use crate::instance::Instance;
use crate::products::reserve_request;
use crate::upstream::{Answered, Reach, Upstreams};
use crate::user::User;
use crate::{Label, Service};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const MAX_ITEMS: usize = 20;
const MAX_QUANTITY: u32 = 1_000;
/// Only the latest are kept: each instance has its own, in memory.
const KEPT_ORDERS: usize = 1_000;

pub fn router(instance: Arc<Instance>, reach: Reach) -> Router {
    let desk = Desk { instance, reach, orders: Mutex::default(), reads: Reads::default() };
    Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(find))
        .route("/products", get(browse))
        .route("/health", get(health))
        .with_state(Arc::new(desk))
}

struct Desk {
    instance: Arc<Instance>,
    reach: Reach,
    orders: Mutex<Orders>,
    reads: Reads,
}

/// How often this instance looked into the catalogue.
#[derive(Default)]
struct Reads {
    all: AtomicU64,
    /// Of which product knew nothing, because the sidecar had the answer.
    cached: AtomicU64,
}

/// What customers see of the catalogue.
#[derive(serde::Serialize)]
struct Window {
    products: Vec<Article>,
    catalogue: Saved,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    reads: u64,
    from_cache: u64,
    /// Of reads, 0 to 1.
    hit_ratio: f64,
}

#[derive(Default)]
struct Orders {
    count: u64,
    last: VecDeque<Order>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Basket {
    user: Label,
    items: Vec<Item>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    product: Label,
    quantity: u32,
}

#[derive(Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    id: String,
    user: User,
    lines: Vec<Line>,
    total_cents: u64,
    /// The number under which notification keeps the event.
    notification: u64,
    /// Who talked to whom to make this order, in the order of the calls.
    served_by: Vec<Hop>,
}

#[derive(Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    product: String,
    name: String,
    quantity: u32,
    price_cents: u32,
}

type Placed = (StatusCode, Json<Order>);

async fn place(
    State(desk): State<Arc<Desk>>,
    trace: Trace,
    basket: Result<Json<Basket>, JsonRejection>,
) -> Result<Placed, Failure> {
    let Json(basket) =
        basket.map_err(|rejection| Failure::unreadable(Service::Order, &rejection))?;
    basket.check().map_err(|message| Failure::unprocessable(Service::Order, message))?;
    let upstreams = desk.reach.through(desk.instance.behaviour().mesh)?;
    let Upstreams { users, catalogue, stock, notifications } = &*upstreams;
    let mut served_by = vec![desk.instance.hop("POST /orders")];

    let Answered { value: user, hop } = users.find(&basket.user, &trace).await?;
    served_by.push(hop);

    let mut lines = Vec::new();
    for Item { product, quantity } in &basket.items {
        let Answered { value: product, hop } = catalogue.find(product, &trace).await?;
        desk.reads.count(&hop);
        lines.push(Line {
            product: product.id,
            name: product.name,
            quantity: *quantity,
            price_cents: product.price_cents,
        });
        served_by.push(hop);
    }
    served_by.push(stock.reserve(basket.reservation(), &trace).await?);

    // An event that cannot be published fails the order, and its stock stays reserved: a real shop
    // would write the event down and send it later.
    let id = desk.new_id();
    let total_cents = lines.iter().map(Line::total_cents).sum();
    let event = json!({ "event": "order placed", "order": id, "totalCents": total_cents });
    let Answered { value: notification, hop } = notifications.publish(&event, &trace).await?;
    served_by.push(hop);

    let order = Order { id, user, lines, total_cents, notification, served_by };
    desk.keep(order.clone());
    Ok((StatusCode::CREATED, Json(order)))
}

async fn find(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<String>,
) -> Result<Json<Order>, Failure> {
    let found = desk.orders().last.iter().find(|order| order.id == id).cloned();
    found.map(Json).ok_or_else(|| {
        let message = format!("{} has no order {id:?}", desk.instance.name);
        Failure::new(StatusCode::NOT_FOUND, Service::Order, message)
    })
}

/// The shop window, and how much of looking at it product was spared.
async fn browse(
    State(desk): State<Arc<Desk>>,
    trace: Trace,
) -> Result<(HeaderMap, Json<Window>), Failure> {
    let upstreams = desk.reach.through(desk.instance.behaviour().mesh)?;
    let (Answered { value: products, hop }, headers) = upstreams.catalogue.list(&trace).await?;
    desk.reads.count(&hop);
    let mut told = HeaderMap::new();
    for value in headers.get_all(CACHE_STATUS) {
        told.append(CACHE_STATUS, value.clone());
    }
    Ok((told, Json(Window { products, catalogue: desk.reads.saved() })))
}

impl Reads {
    fn count(&self, hop: &Hop) {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.cached.fetch_add(hop.cached.into(), Ordering::Relaxed);
    }

    fn saved(&self) -> Saved {
        let [from_cache, reads] = [&self.cached, &self.all].map(|one| one.load(Ordering::Relaxed));
        let thousandths = from_cache as f64 * 1000.0 / reads.max(1) as f64;
        Saved { reads, from_cache, hit_ratio: thousandths.round() / 1000.0 }
    }
}

impl Desk {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_id(&self) -> String {
        let mut orders = self.orders();
        orders.count += 1;
        format!("{}-{}", self.instance.name, orders.count)
    }

    fn keep(&self, order: Order) {
        let last = &mut self.orders().last;
        if last.len() == KEPT_ORDERS {
            last.pop_front();
        }
        last.push_back(order);
    }
}

impl Basket {
    fn check(&self) -> Result<(), String> {
        if self.items.is_empty() || self.items.len() > MAX_ITEMS {
            return Err(format!("items: must be 1 to {MAX_ITEMS}, not {}", self.items.len()));
        }
        for (index, item) in self.items.iter().enumerate() {
            if item.quantity == 0 || item.quantity > MAX_QUANTITY {
                let quantity = item.quantity;
                return Err(format!(
                    "items[{index}].quantity: must be 1 to {MAX_QUANTITY}, not {quantity}"
                ));
            }
        }
        Ok(())
    }

    fn reservation(&self) -> Vec<reserve_request::Line> {
        let line = |item: &Item| reserve_request::Line {
            product: item.product.to_string(),
            quantity: item.quantity,
        };
        self.items.iter().map(line).collect()
    }
}

impl Line {
    fn total_cents(&self) -> u64 {
        u64::from(self.price_cents) * u64::from(self.quantity)
    }
}
