//! The product API, reading: all of it out of the cache, which says so in the answer's head.

use actix_web::http::header::{self, IfNoneMatch};
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, get, post};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::cached::{self, Marked};
use super::error::{ApiError, Envelope, ErrorEnvelope};
use crate::catalog::{
    Explained, FieldError, HotProduct, MAX_PER_PAGE, Product, SearchPage, SearchQuery, Sort, data, is_product_id,
};

/// Products of one batch.
const MOST_IDS: usize = 200;
/// Popular products of one list.
const MOST_HOT: usize = 100;

/// What else is wanted of a product.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ProductQuery {
    /// `cache` tells why it is cached for as long as it is, instead of the product.
    #[param(example = "cache")]
    explain: Option<String>,
}

/// A product with its images, attributes and related products. `Cache-Status` (RFC 9211) tells where it came from.
#[utoipa::path(tag = "catalog", params(("id" = String, Path, description = "The product's id", example = "42"), ProductQuery),
    responses(
        (status = 200, body = Envelope<Product>, example = json!({"success": true, "data": {"id": "42", "name": "Oak table", "description": "Solid.", "category": "Tables",
            "brand": "Nordhus", "price": "249.00", "currency": "EUR", "stock": 7, "status": "active", "images": [{"url": "/img/42-1.webp", "alt": "Oak table"}],
            "attributes": [{"name": "Colour", "value": "Oak"}], "related": [], "version": 3, "created_at": 1795420800000i64, "updated_at": 1795420800000i64}, "timestamp": 1795420800})),
        (status = 304, description = "The client has it"),
        (status = 404, body = ErrorEnvelope, description = "There is no such active product"),
        (status = 503, body = ErrorEnvelope, description = "No tier has it, and the database cannot be read; see Retry-After"),
    ))]
#[get("/api/v1/products/{id}")]
pub async fn product(
    state: web::Data<State>,
    id: web::Path<String>,
    query: web::Query<ProductQuery>,
    etag: web::Header<IfNoneMatch>,
) -> Result<HttpResponse, ApiError> {
    match query.explain.as_deref() {
        None => {}
        Some("cache") => return explained(&state, &id).await,
        Some(_) => return Err(ApiError::BadRequest(String::from("explain must be `cache`"))),
    }
    if !is_product_id(&id) {
        return Err(NO_PRODUCT);
    }
    let found = state.catalog.product(&id).await?;
    cached::answer(&found, &etag).ok_or(NO_PRODUCT)
}

pub(super) const NO_PRODUCT: ApiError = ApiError::NotFound("there is no such product");

/// How a product is cached.
#[derive(Serialize, ToSchema)]
pub struct Explanation {
    /// The product.
    id: String,
    /// Why its lifetime is what it is.
    #[serde(flatten)]
    popularity: Explained,
    /// How it was found now.
    now: Marked,
}

async fn explained(state: &State, id: &str) -> Result<HttpResponse, ApiError> {
    if !is_product_id(id) {
        return Err(NO_PRODUCT);
    }
    let found = state.catalog.product(id).await?;
    let explanation = Explanation { id: id.to_owned(), popularity: state.catalog.explain(id), now: Marked::of(&found) };
    Ok(cached::fresh(explanation, state.clock.now()))
}

/// Which products.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    /// At most 200; one that comes twice is answered once.
    #[schema(example = json!(["1", "2", "nothing"]))]
    ids: Vec<String>,
}

/// Products, and what became of the others.
#[derive(Serialize, ToSchema)]
pub struct Batch<'a> {
    /// In the order of the ids.
    #[schema(value_type = Vec<Product>)]
    products: Vec<&'a RawValue>,
    /// Ids that the catalogue does not have.
    missing: Vec<&'a str>,
    /// Ids that are in no tier, while the database cannot be read. They may be asked for again.
    unavailable: Vec<&'a str>,
    /// How many came from where.
    from: From,
}

/// How many came from where.
#[derive(Default, Serialize, ToSchema)]
pub struct From {
    /// This process.
    l1: u64,
    /// Redis.
    l2: u64,
    /// The database.
    l3: u64,
    /// Past their lifetime, for want of a fresh one.
    stale: u64,
}

/// Several products at once: at most one round trip to Redis and one read of the database, whatever is where.
#[utoipa::path(tag = "catalog", operation_id = "products_batch", request_body = BatchBody, responses(
    (status = 200, body = Envelope<Batch>, example = json!({"success": true, "data": {"products": [], "missing": ["nothing"], "unavailable": [], "from": {"l1": 2, "l2": 0, "l3": 0, "stale": 0}}, "timestamp": 1795420800})),
    (status = 422, body = ErrorEnvelope, description = "Something else than at most 200 ids"),
    (status = 503, body = ErrorEnvelope, description = "Not one of them is in any tier, and the database cannot be read"),
))]
#[post("/api/v1/products/batch")]
pub async fn batch(state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let wrong = |message: String| ApiError::Invalid(vec![FieldError { field: String::from("ids"), message }]);
    let body: BatchBody = serde_json::from_slice(&body)
        .map_err(|error| wrong(format!("the body must be like {{\"ids\": [\"1\", \"2\"]}}: {error}")))?;
    if body.ids.len() > MOST_IDS {
        return Err(wrong(format!("at most {MOST_IDS} at once, and not {}", body.ids.len())));
    }
    let mut seen = std::collections::HashSet::new();
    let ids: Vec<&str> = body.ids.iter().map(String::as_str).filter(|id| seen.insert(*id)).collect();
    let (known, mut missing): (Vec<&str>, Vec<&str>) = ids.into_iter().partition(|id| is_product_id(id));
    let found = state.catalog.products(&known).await?;
    let (mut products, mut unavailable, mut from) = (Vec::with_capacity(found.len()), Vec::new(), From::default());
    let mut error = None;
    for (id, found) in known.iter().zip(&found) {
        let found = match found {
            Ok(found) => found,
            Err(failed) => {
                unavailable.push(*id);
                error.get_or_insert_with(|| failed.clone());
                continue;
            }
        };
        match found.tier {
            crate::cache::Tier::L1 => from.l1 += 1,
            crate::cache::Tier::L2 => from.l2 += 1,
            crate::cache::Tier::L3 => from.l3 += 1,
        }
        from.stale += u64::from(found.freshness != crate::cache::Freshness::Fresh);
        match &found.body {
            None => missing.push(*id),
            Some(body) => products.push(serde_json::from_slice(data(body)).map_err(ApiError::internal)?),
        }
    }
    if let Some(error) = error.filter(|_| unavailable.len() == known.len()) {
        return Err(error.into());
    }
    Ok(cached::fresh(Batch { products, missing, unavailable, from }, state.clock.now()))
}

/// What is looked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct FindQuery {
    /// Words that all must be in name, description, brand, category, attributes or id.
    #[param(example = "oak table")]
    q: Option<String>,
    /// Name of a category.
    category: Option<String>,
    /// Name of a brand.
    brand: Option<String>,
    /// Least price.
    #[param(example = "10")]
    min_price: Option<String>,
    /// Highest price.
    max_price: Option<String>,
    /// `true` or `false`.
    in_stock: Option<String>,
    /// `relevance` (the default; `newest` without `q`), `price`, `-price`, `name` or `newest`.
    sort: Option<String>,
    /// From 1; reaches 10,000 products.
    page: Option<String>,
    /// 1 to 100; 20 by default.
    per_page: Option<String>,
    /// Where to go on: `next` of the answer before. Reaches everything, at the same cost for each page.
    cursor: Option<String>,
    /// `false` leaves the facets out.
    facets: Option<String>,
}

impl FindQuery {
    /// The question, or every parameter that cannot be read.
    fn read(self) -> Result<SearchQuery, ApiError> {
        let mut errors = Vec::new();
        fn one<T>(
            errors: &mut Vec<FieldError>,
            field: &str,
            text: Option<String>,
            must: &str,
            parse: impl Fn(&str) -> Option<T>,
        ) -> Option<T> {
            let text = text.filter(|text| !text.is_empty())?;
            let parsed = parse(&text);
            if parsed.is_none() {
                errors.push(FieldError { field: field.to_owned(), message: format!("it must be {must}") });
            }
            parsed
        }
        let price = |text: &str| Decimal::from_str_exact(text).ok();
        let truth = |text: &str| text.parse::<bool>().ok();
        let whole = |text: &str| text.parse::<u32>().ok();
        let query = SearchQuery {
            q: self.q,
            category: self.category.filter(|text| !text.is_empty()),
            brand: self.brand.filter(|text| !text.is_empty()),
            min_price: one(&mut errors, "min_price", self.min_price, "a price like 19.90", price),
            max_price: one(&mut errors, "max_price", self.max_price, "a price like 19.90", price),
            in_stock: one(&mut errors, "in_stock", self.in_stock, "true or false", truth),
            sort: one(&mut errors, "sort", self.sort, "relevance, price, -price, name or newest", Sort::parse)
                .unwrap_or_default(),
            page: one(&mut errors, "page", self.page, "a number from 1", whole).unwrap_or(1),
            per_page: one(&mut errors, "per_page", self.per_page, &format!("a number from 1 to {MAX_PER_PAGE}"), whole)
                .unwrap_or(20),
            cursor: self.cursor.filter(|text| !text.is_empty()),
            facets: one(&mut errors, "facets", self.facets, "true or false", truth).unwrap_or(true),
        };
        if errors.is_empty() { Ok(query) } else { Err(ApiError::Invalid(errors)) }
    }
}

/// Finds products by words and properties, with what the results are made of.
#[utoipa::path(tag = "catalog", operation_id = "products_search", params(FindQuery), responses(
    (status = 200, body = Envelope<SearchPage>, example = json!({"success": true, "data": {"items": [], "total": 0, "page": 1, "per_page": 20, "total_pages": 0, "next": null,
        "facets": {"categories": [], "brands": [], "prices": [], "in_stock": 0, "out_of_stock": 0}}, "timestamp": 1795420800})),
    (status = 304, description = "The client has it"),
    (status = 422, body = ErrorEnvelope, description = "Parameters that make no sense, all of them"),
    (status = 503, body = ErrorEnvelope, description = "It is not cached, and the database cannot be read"),
))]
#[get("/api/v1/products")]
pub async fn search(
    state: web::Data<State>,
    query: web::Query<FindQuery>,
    etag: web::Header<IfNoneMatch>,
) -> Result<HttpResponse, ApiError> {
    let found = state.catalog.search(query.into_inner().read()?).await??;
    cached::answer(&found, &etag).ok_or(ApiError::Internal)
}

/// How many.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct HotQuery {
    /// At most this many, 1 to 100; 10 by default.
    #[param(example = 10)]
    limit: Option<usize>,
}

/// The most popular products now: views of the last 24 hours and ten times the units sold in the last 7 days.
#[utoipa::path(tag = "catalog", operation_id = "products_hot", params(HotQuery), responses(
    (status = 200, body = Envelope<Vec<HotProduct>>, example = json!({"success": true, "data": [{"product_id": "42", "score": 31, "views_24h": 21, "units_7d": 1, "exact": true,
        "product": {"name": "Oak table", "category": "Tables", "price": "249.00", "currency": "EUR", "stock": 7, "image": "/img/42-1.webp"}}], "timestamp": 1795420800})),
))]
#[get("/api/v1/products/hot")]
pub async fn hot(state: web::Data<State>, query: web::Query<HotQuery>) -> Result<HttpResponse, ApiError> {
    let limit = query.limit.unwrap_or(10);
    if !(1..=MOST_HOT).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit must be 1 to {MOST_HOT}")));
    }
    let hottest = state.catalog.hottest(limit).await;
    Ok(cached::fresh(hottest, state.clock.now()))
}

/// The header of a version that a write gave.
pub(super) fn with_version(mut answer: HttpResponse, version: u64) -> HttpResponse {
    if let Ok(tag) = header::HeaderValue::from_str(&format!("\"{version}\"")) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}
