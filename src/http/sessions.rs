//! Accounts over HTTP, for their owners: another password, sessions, the end of the account.

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse, delete, get, post};
use utoipa::ToSchema;

use super::State;
use super::auth::{Fields, answer, network};
use super::client::User;
use super::error::{ApiError, Envelope, ErrorEnvelope};
use crate::identity::{SessionView, Tokens};

/// Another password.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used: bodies are read so that no error can repeat a password")]
pub struct ChangePassword {
    /// The one that the account has.
    #[schema(example = "correct horse battery staple")]
    current_password: String,
    /// 8 to 1024 bytes, and neither login nor e-mail.
    #[schema(example = "incorrect zebra battery clip")]
    new_password: String,
}

/// The password of the account that is to go.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub struct DeleteAccount {
    /// The one that the account has.
    #[schema(example = "correct horse battery staple")]
    password: String,
}

fn done() -> HttpResponse {
    HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish()
}

/// Another password. All sessions of the account end, this one too; the answer is a new one.
#[utoipa::path(tag = "identity", operation_id = "auth_password", security(("bearer" = [])), request_body(content = ChangePassword,
    example = json!({"current_password": "correct horse battery staple", "new_password": "incorrect zebra battery clip"})), responses(
    (status = 200, body = Envelope<Tokens>, description = "It is changed; tokens of a new session", example = json!({"success": true,
        "data": {"access_token": "eyJ…", "token_type": "Bearer", "expires_in": 600, "refresh_token": "tgr_…", "refresh_expires_in": 2592000},
        "timestamp": 1795420800})),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 401, body = ErrorEnvelope, description = "unauthorized: no valid token; invalid_credentials: the current password is wrong"),
    (status = 403, body = ErrorEnvelope, description = "A key's or another issuer's token: they have no password here"),
    (status = 413, body = ErrorEnvelope, description = "More than 16 KiB"),
    (status = 422, body = ErrorEnvelope, description = "A field is missing, or the new password cannot be taken"),
    (status = 429, body = ErrorEnvelope, description = "too_many_attempts; Retry-After"),
    (status = 503, body = ErrorEnvelope, description = "Too busy, or the database is away; Retry-After"),
))]
#[post("/api/v1/auth/password")]
pub async fn password(
    user: User,
    req: HttpRequest,
    state: web::Data<State>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    let fields = Fields::read(&body)?;
    fields.only(&["current_password", "new_password"])?;
    let passwords = (fields.needed("current_password")?, fields.needed("new_password")?);
    let tokens = state.identity.change_password(&user, passwords, network(&req)).await?;
    Ok(answer(HttpResponse::Ok(), &state, tokens))
}

/// Deletes the account, with its sessions and the networks that it is known from. Access tokens that are out end by themselves.
#[utoipa::path(tag = "identity", operation_id = "auth_delete", security(("bearer" = [])), request_body(content = DeleteAccount,
    example = json!({"password": "correct horse battery staple"})), responses(
    (status = 204, description = "It is gone"),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 401, body = ErrorEnvelope, description = "unauthorized: no valid token; invalid_credentials: the password is wrong"),
    (status = 403, body = ErrorEnvelope, description = "A key's or another issuer's token: they have no account here"),
    (status = 422, body = ErrorEnvelope, description = "The password is missing"),
    (status = 429, body = ErrorEnvelope, description = "too_many_attempts; Retry-After"),
    (status = 503, body = ErrorEnvelope, description = "Too busy, or the database is away; Retry-After"),
))]
#[delete("/api/v1/auth/me")]
pub async fn delete_me(
    user: User,
    req: HttpRequest,
    state: web::Data<State>,
    body: Bytes,
) -> Result<HttpResponse, ApiError> {
    let fields = Fields::read(&body)?;
    fields.only(&["password"])?;
    state.identity.delete_account(&user, fields.needed("password")?, network(&req)).await?;
    Ok(done())
}

/// The account's sessions, the one that was used last first.
#[utoipa::path(tag = "identity", operation_id = "auth_sessions", security(("bearer" = [])), responses(
    (status = 200, body = Envelope<Vec<SessionView>>, description = "Those that may still be refreshed, at most 1000", example = json!({"success": true, "data": [
        {"id": "0d5e7e9bb1ce4a6c8f8e5d2a43c1f7b0", "created_at": "2026-11-20T07:30:07.123Z", "last_used_at": "2026-11-23T07:30:07.123Z",
        "expires_at": "2026-12-23T07:30:07.123Z", "current": true}], "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "No valid token"),
    (status = 403, body = ErrorEnvelope, description = "A key's or another issuer's token"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away; Retry-After"),
))]
#[get("/api/v1/auth/sessions")]
pub async fn sessions(user: User, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let sessions = state.identity.sessions(&user).await?;
    Ok(answer(HttpResponse::Ok(), &state, sessions))
}

/// Ends one of the account's sessions. Access tokens of it that are out end by themselves.
#[utoipa::path(tag = "identity", operation_id = "auth_session_end", security(("bearer" = [])),
    params(("id" = String, Path, description = "A session of this account", example = "0d5e7e9bb1ce4a6c8f8e5d2a43c1f7b0")), responses(
    (status = 204, description = "It is ended"),
    (status = 401, body = ErrorEnvelope, description = "No valid token"),
    (status = 403, body = ErrorEnvelope, description = "A key's or another issuer's token"),
    (status = 404, body = ErrorEnvelope, description = "The account has no such session"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away; Retry-After"),
))]
#[delete("/api/v1/auth/sessions/{id}")]
pub async fn end(user: User, state: web::Data<State>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    state.identity.end_session(&user, &id).await?;
    Ok(done())
}

/// Ends all of the account's sessions, this one too.
#[utoipa::path(tag = "identity", operation_id = "auth_sessions_end", security(("bearer" = [])), responses(
    (status = 204, description = "They are ended"),
    (status = 401, body = ErrorEnvelope, description = "No valid token", example = json!({"success": false, "error": {"code": "unauthorized",
        "message": "the access token or key is not valid", "request_id": "7d752d47-79ae-41b1-8df8-6c899ac562b7"}, "timestamp": 1795420800})),
    (status = 403, body = ErrorEnvelope, description = "A key's or another issuer's token"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away; Retry-After"),
))]
#[delete("/api/v1/auth/sessions")]
pub async fn end_all(user: User, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    state.identity.end_sessions(&user).await?;
    Ok(done())
}
