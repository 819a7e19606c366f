//! The product API, writing: for the operator, with the version that is expected in `If-Match`.

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, delete, patch, post, put};
use serde_json::Value;

use super::State;
use super::cached;
use super::catalog::{NO_PRODUCT, with_version};
use super::client::Operator;
use super::error::{ApiError, Envelope, ErrorEnvelope};
use crate::catalog::{CatalogError, FieldError, NewProduct, Product, ProductPatch, is_product_id};

/// Longest body of a product.
pub const MAX_PRODUCT: usize = 1 << 20;

/// The version that the client expects; `*` and no header are any.
fn expected(req: &HttpRequest) -> Result<Option<u64>, ApiError> {
    let Some(sent) = req.headers().get(header::IF_MATCH) else { return Ok(None) };
    match sent.to_str().map(str::trim) {
        Ok("*") => Ok(None),
        Ok(tag) => cached::version(tag)
            .map(Some)
            .ok_or_else(|| unreadable("If-Match must be one ETag as it was answered, like \"3\", or *")),
        Err(_) => Err(unreadable("If-Match is no text")),
    }
}

fn unreadable(what: &str) -> ApiError {
    ApiError::BadRequest(what.to_owned())
}

fn json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(format!("the body is no JSON: {error}")))
}

fn known(id: &str) -> Result<(), ApiError> {
    if is_product_id(id) { Ok(()) } else { Err(NO_PRODUCT) }
}

fn stored(state: &State, mut answer: actix_web::HttpResponseBuilder, product: Product) -> HttpResponse {
    let version = product.version;
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    with_version(answer.json(Envelope::new(product, state.clock.now())), version)
}

/// Stores a product that is not there yet.
#[utoipa::path(tag = "catalog", operation_id = "product_create", request_body(content = NewProduct,
    example = json!({"id": "42", "name": "Oak table", "price": "249.00", "stock": 7, "category": "Tables"})), security(("operator" = [])), responses(
    (status = 201, body = Envelope<Product>, description = "Stored; Location and ETag say where and which version", example = json!({"success": true,
        "data": {"id": "42", "name": "Oak table", "price": "249.00", "version": 1}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 409, body = ErrorEnvelope, description = "There is one with this id"),
    (status = 413, body = ErrorEnvelope, description = "More than 1 MiB"),
    (status = 422, body = ErrorEnvelope, description = "Fields that cannot be taken, all of them"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away"),
))]
#[post("/api/v1/products")]
pub async fn create(_: Operator, state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let new = NewProduct::read(&json(&body)?)?;
    let product = state.catalog.create(new).await?;
    let mut answer = HttpResponse::Created();
    answer.insert_header((header::LOCATION, format!("/api/v1/products/{}", product.id)));
    Ok(stored(&state, answer, product))
}

/// Replaces a product.
#[utoipa::path(tag = "catalog", operation_id = "product_replace", params(("id" = String, Path, example = "42"),
    ("If-Match" = Option<String>, Header, description = "The version that is expected", example = "\"3\"")),
    request_body(content = NewProduct, example = json!({"name": "Oak table", "price": "229.00", "stock": 5})), security(("operator" = [])), responses(
    (status = 200, body = Envelope<Product>, description = "Stored", example = json!({"success": true, "data": {"id": "42", "name": "Oak table", "price": "229.00", "version": 4}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such product"),
    (status = 412, body = ErrorEnvelope, description = "It is at another version, which the message tells"),
    (status = 422, body = ErrorEnvelope, description = "Fields that cannot be taken, all of them"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away"),
))]
#[put("/api/v1/products/{id}")]
pub async fn replace(
    _: Operator,
    req: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    known(&id)?;
    let mut json = json(&body)?;
    if let Some(fields) = json.as_object_mut() {
        // The path names it; the body may repeat it.
        let same = fields.entry("id").or_insert_with(|| Value::from(id.as_str())).as_str() == Some(&*id);
        if !same {
            let message = String::from("it must be the one in the path, or be left out");
            return Err(CatalogError::Invalid(vec![FieldError { field: String::from("id"), message }]).into());
        }
    }
    let product = state.catalog.replace(NewProduct::read(&json)?, expected(&req)?).await?;
    Ok(stored(&state, HttpResponse::Ok(), product))
}

/// Changes some fields of a product (JSON Merge Patch, RFC 7396, with lists replaced whole).
#[utoipa::path(tag = "catalog", operation_id = "product_patch", params(("id" = String, Path, example = "42"),
    ("If-Match" = Option<String>, Header, description = "The version that is expected", example = "\"3\"")),
    request_body(content = Object, example = json!({"stock": 4})), security(("operator" = [])), responses(
    (status = 200, body = Envelope<Product>, description = "Stored", example = json!({"success": true, "data": {"id": "42", "name": "Oak table", "stock": 4, "version": 5}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such product"),
    (status = 412, body = ErrorEnvelope, description = "It is at another version, which the message tells"),
    (status = 422, body = ErrorEnvelope, description = "Fields that cannot be taken, all of them"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away"),
))]
#[patch("/api/v1/products/{id}")]
pub async fn change(
    _: Operator,
    req: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    known(&id)?;
    let patch = ProductPatch::read(&id, &json(&body)?)?;
    let product = state.catalog.patch(&id, patch, expected(&req)?).await?;
    Ok(stored(&state, HttpResponse::Ok(), product))
}

/// Deletes a product.
#[utoipa::path(tag = "catalog", operation_id = "product_delete", params(("id" = String, Path, example = "42"),
    ("If-Match" = Option<String>, Header, description = "The version that is expected", example = "\"3\"")),
    security(("operator" = [])), responses(
    (status = 204, description = "It is gone"),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such product"),
    (status = 412, body = ErrorEnvelope, description = "It is at another version, which the message tells"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away"),
))]
#[delete("/api/v1/products/{id}")]
pub async fn remove(
    _: Operator,
    req: HttpRequest,
    state: web::Data<State>,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    known(&id)?;
    state.catalog.delete(&id, expected(&req)?).await?;
    Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish())
}
