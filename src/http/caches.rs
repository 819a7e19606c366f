//! The cache, for whoever operates it: its numbers, invalidation, and warming up.

use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, delete, get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::State;
use super::cached;
use super::client::Operator;
use super::error::{ApiError, Envelope, ErrorEnvelope};
use super::settings::Settings;
use crate::cache::CacheStats;
use crate::catalog::Warmed;

/// Popular products of one warm-up.
const MOST_WARMED: usize = 1000;

/// What every tier did, by type.
#[utoipa::path(tag = "operate", operation_id = "cache_stats", responses((status = 200, body = Envelope<CacheStats>, example = json!({"success": true, "data": {"l1": {"entries": 2, "bytes": 3100,
    "max_entries": 200000, "max_bytes": 134217728, "restarts": 0}, "l2": null, "types": [{"name": "product_detail", "entries": 2, "l1_hits": 40, "l1_misses": 2}]}, "timestamp": 1795420800}))))]
#[get("/api/v1/cache")]
pub async fn stats(state: web::Data<State>) -> HttpResponse {
    cached::fresh(state.catalog.cache().stats(), state.clock.now())
}

/// What was invalidated.
#[derive(Serialize, ToSchema)]
pub struct Invalidated<'a> {
    /// The type.
    #[serde(rename = "type")]
    kind: &'a str,
    /// The key, or `*`.
    key: &'a str,
}

/// Forgets a value, here and in every instance; the key `*` is all of the type.
#[utoipa::path(tag = "operate", operation_id = "cache_invalidate", params(
    ("type" = String, Path, description = "A type of `[cache.types]`", example = "product_detail"),
    ("key" = String, Path, description = "The key, like a product's id; `*` is all", example = "42")), security(("operator" = [])), responses(
    (status = 200, body = Envelope<Invalidated>, example = json!({"success": true, "data": {"type": "product_detail", "key": "42"}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such type"),
))]
#[delete("/api/v1/cache/{type}/{key:.*}")]
pub async fn invalidate(
    operator: Operator,
    state: web::Data<State>,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let (kind, key) = path.into_inner();
    let cache = state.catalog.cache();
    let Some(of) = cache.kind(&kind) else {
        return Err(ApiError::NotFound("there is no such type in the cache; GET /api/v1/cache names them"));
    };
    operator.note_aside(&state, "cache.invalidate", format!("{kind}/{key}"), Value::Null).await?;
    match key.as_str() {
        "*" => cache.invalidate_kind(of).await,
        key => cache.invalidate(of, &[key]).await,
    }
    Ok(cached::fresh(Invalidated { kind: &kind, key: &key }, state.clock.now()))
}

/// How much to warm.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmBody {
    /// The hottest so many products, at most 1000; `[catalog] warm_up` by default.
    #[schema(example = 100)]
    limit: Option<usize>,
}

/// Reads the hottest products into the cache, no faster than `[catalog] warm_rate`.
#[utoipa::path(tag = "operate", operation_id = "cache_warm", request_body = WarmBody, security(("operator" = [])), responses(
    (status = 200, body = Envelope<Warmed>, example = json!({"success": true, "data": {"asked": 100, "filled": 58, "present": 42, "missing": 0, "failed": 0, "took_ms": 131}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[post("/api/v1/cache/warm")]
pub async fn warm(
    operator: Operator,
    settings: Settings,
    state: web::Data<State>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    let body: WarmBody = match body.as_ref() {
        [] => WarmBody::default(),
        body => serde_json::from_slice(body)
            .map_err(|error| ApiError::BadRequest(format!("the body must be like {{\"limit\": 100}}: {error}")))?,
    };
    let limit = body.limit.unwrap_or(settings.warm_up);
    if !(1..=MOST_WARMED).contains(&limit) {
        return Err(ApiError::BadRequest(format!("limit must be 1 to {MOST_WARMED}")));
    }
    operator.note_aside(&state, "cache.warm", String::from("products"), json!({ "limit": limit })).await?;
    let warmed = state.catalog.warm(limit, settings.warm_rate).await;
    Ok(cached::fresh(warmed, state.clock.now()))
}
