//! The config of the running server: what is in force, other settings, what was before.

use actix_web::http::header::{self, HeaderMap};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::{Applied, Version};
use crate::http::State;
use crate::http::cached;
use crate::http::client::Operator;
use crate::http::error::{ApiError, Envelope, ErrorEnvelope};

/// The config in force.
#[derive(Serialize, ToSchema)]
pub struct InForce {
    /// Its version; a change may be sent with it as `If-Match`.
    version: u64,
    /// All settings with their defaults; secrets are hidden.
    #[schema(value_type = Object)]
    config: toml::Table,
}

/// What is in force.
#[utoipa::path(tag = "admin", operation_id = "admin_config", security(("operator" = [])), responses(
    (status = 200, body = Envelope<InForce>, example = json!({"success": true, "data": {"version": 3, "config": {"server": {"listen": "127.0.0.1:8080", "admin_key": "(hidden)"}}}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[get("/api/v1/admin/config")]
pub async fn show(_: Operator, state: web::Data<State>) -> HttpResponse {
    let version = state.control.history().await.0;
    let config = state.control.config().effective.shown();
    let mut answer = cached::fresh(InForce { version, config }, state.clock.now());
    if let Ok(tag) = format!("\"{version}\"").parse() {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// How a text is sent.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    name: Option<String>,
}

/// Other settings: the whole file, TOML. It is validated, put in force, kept in the history, and becomes the file's text.
#[utoipa::path(tag = "admin", operation_id = "admin_config_replace", security(("operator" = [])),
    params(
        ("name" = Option<String>, Query, description = "What mistakes call the text; else `config`", example = "next.toml"),
        ("If-Match" = Option<String>, Header, description = "The version that was read, like `\"3\"`", example = "\"3\""),
    ),
    request_body(content = String, content_type = "application/toml", example = json!("[gateway]\nlisten = \"0.0.0.0:8000\"\n")), responses(
    (status = 200, body = Envelope<Applied>, example = json!({"success": true, "data": {"version": 4, "changes": [{"key": "gateway.routes.users.retries", "before": "1", "after": "2"}], "restart": []}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 412, body = ErrorEnvelope, description = "Somebody changed it in between"),
    (status = 422, body = ErrorEnvelope, description = "It has mistakes; each with name, line and key"),
))]
#[post("/api/v1/admin/config")]
pub async fn replace(
    operator: Operator,
    state: web::Data<State>,
    request: HttpRequest,
    query: web::Query<Sent>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    let text = String::from_utf8(body.into())
        .map_err(|_| ApiError::InvalidConfig(String::from("the config must be text in UTF-8")))?;
    let expected = expected(request.headers())?;
    let name = query.name.as_deref().unwrap_or("config");
    let applied = state.control.put(text, name, expected, operator.who()).await?;
    Ok(cached::fresh(applied, state.clock.now()))
}

fn expected(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(sent) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let version = sent.to_str().ok().and_then(|tag| tag.trim_matches('"').parse().ok());
    version.map(Some).ok_or_else(|| ApiError::BadRequest(String::from("If-Match must be a version, like \"3\"")))
}

/// What was in force, the latest first.
#[utoipa::path(tag = "admin", operation_id = "admin_config_history", security(("operator" = [])), responses(
    (status = 200, body = Envelope<Vec<Version>>, example = json!({"success": true, "data": [{"version": 4, "at": 1795420800000i64, "who": "account jo.doe (6f1c3c0e7a514f0c9d6b1f2e3a4b5c6d)", "how": "api", "changes": [{"key": "gateway.routes.users.retries", "before": "1", "after": "2"}]}], "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[get("/api/v1/admin/config/history")]
pub async fn history(_: Operator, state: web::Data<State>) -> HttpResponse {
    cached::fresh(state.control.history().await.1, state.clock.now())
}

/// Where to go back to.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Back {
    /// A version of the history; the one before that in force, if none is said.
    #[schema(example = 3)]
    to: Option<u64>,
}

/// Goes back to an earlier version.
#[utoipa::path(tag = "admin", operation_id = "admin_config_rollback", request_body = Back, security(("operator" = [])), responses(
    (status = 200, body = Envelope<Applied>, example = json!({"success": true, "data": {"version": 5, "changes": [{"key": "gateway.routes.users.retries", "before": "2", "after": "1"}], "restart": []}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such version"),
))]
#[post("/api/v1/admin/config/rollback")]
pub async fn rollback(operator: Operator, state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let back: Back = match body.as_ref() {
        b"" => Back::default(),
        body => serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(error.to_string()))?,
    };
    let applied = state.control.rollback(back.to, operator.who()).await?;
    Ok(cached::fresh(applied, state.clock.now()))
}

/// Reads the file again, as SIGHUP does.
#[utoipa::path(tag = "admin", operation_id = "admin_config_reload", security(("operator" = [])), responses(
    (status = 200, body = Envelope<Applied>, example = json!({"success": true, "data": {"version": 5, "changes": [], "restart": []}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 422, body = ErrorEnvelope, description = "It has mistakes; each with file, line and key"),
))]
#[post("/api/v1/admin/config/reload")]
pub async fn reload(operator: Operator, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let applied = state.control.reload(operator.who()).await?;
    Ok(cached::fresh(applied, state.clock.now()))
}
