//! Products and their stock, over gRPC (`proto/shop/v1/products.proto`).
//!
//! Besides gRPC the port answers `GET /health`, for probes that speak only HTTP, and the catalogue: `catalogue.rs`.

use crate::answer::health;
use crate::catalogue::{self, Reads};
use crate::products::products_server::{Products, ProductsServer};
use crate::products::{
    GetProductRequest, ListProductsRequest, Product, ReserveReply, ReserveRequest,
};
use axum::Router;
use axum::routing::get;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::{Request, Response, Status};

/// Enough for years of demo traffic.
const PLENTY: u64 = 1_000_000_000_000;
/// So few that anyone can see a product sell out.
const RARE: u64 = 3;
const MAX_LINES: usize = 100;

pub fn router(shelf: Arc<Shelf>) -> Router {
    let service = ProductsServer::from_arc(shelf.clone());
    let router = tonic::service::Routes::new(service).into_axum_router();
    router.route("/health", get(health)).merge(catalogue::router(shelf))
}

/// What there is, and who asked for it.
pub struct Shelf {
    stock: Mutex<Stock>,
    pub reads: Reads,
}

pub type Stock = BTreeMap<String, Product>;

impl Shelf {
    pub fn new() -> Self {
        let products = [
            product("p1", "Bobbin of linen thread", 350, PLENTY),
            product("p2", "Weaver's shuttle", 2_400, PLENTY),
            product("p3", "Reed, 60 dents", 4_900, PLENTY),
            product("p4", "Heddles, a hundred", 1_250, PLENTY),
            product("p5", "Jacquard loom, 1804", 9_900_000, RARE),
        ];
        let stock = products.into_iter().map(|product| (product.id.clone(), product)).collect();
        Self { stock: Mutex::new(stock), reads: Reads::default() }
    }

    pub fn stock(&self) -> MutexGuard<'_, Stock> {
        // Stock changes by one assignment, so even a poisoned lock guards a whole value.
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn product(id: &str, name: &str, price_cents: u32, stock: u64) -> Product {
    Product { id: id.to_owned(), name: name.to_owned(), price_cents, stock }
}

#[tonic::async_trait]
impl Products for Shelf {
    type ListProductsStream = tokio_stream::Iter<std::vec::IntoIter<Result<Product, Status>>>;

    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<Product>, Status> {
        let id = request.into_inner().id;
        let product = self.stock().get(&id).cloned().ok_or_else(|| missing(&id))?;
        Ok(Response::new(product))
    }

    async fn list_products(
        &self,
        _: Request<ListProductsRequest>,
    ) -> Result<Response<Self::ListProductsStream>, Status> {
        let products: Vec<_> = self.stock().values().cloned().map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(products)))
    }

    async fn reserve(
        &self,
        request: Request<ReserveRequest>,
    ) -> Result<Response<ReserveReply>, Status> {
        let request = request.into_inner();
        let mut stock = self.stock();
        let (left, products) = reserved(stock.clone(), &request)?;
        *stock = left;
        Ok(Response::new(ReserveReply { products }))
    }
}

/// The stock after a reservation and the products it took from; all lines or none.
fn reserved(mut stock: Stock, request: &ReserveRequest) -> Result<(Stock, Vec<Product>), Status> {
    if request.lines.is_empty() || request.lines.len() > MAX_LINES {
        return Err(Status::invalid_argument(format!("lines: must be 1 to {MAX_LINES}")));
    }
    let mut products = Vec::new();
    for line in &request.lines {
        let product = stock.get_mut(&line.product).ok_or_else(|| missing(&line.product))?;
        let left = product.stock.checked_sub(line.quantity.into()).ok_or_else(|| {
            Status::failed_precondition(format!(
                "{} of {} wanted, {} left",
                line.quantity, product.id, product.stock
            ))
        })?;
        product.stock = left;
        products.push(product.clone());
    }
    Ok((stock, products))
}

fn missing(id: &str) -> Status {
    Status::not_found(format!("there is no product {id:?}"))
}
