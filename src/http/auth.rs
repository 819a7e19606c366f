//! Accounts over HTTP: registering, logging in, refreshing, logging out, and the keys by which others verify our tokens. What
//! an account's owner does with it is in [`super::sessions`].
//!
//! No answer here may be kept by anybody, and no message repeats what was sent.

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{FromRequest, HttpRequest, HttpResponse, get, post};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::State;
use super::client::{User, address};
use super::error::{ApiError, Envelope, ErrorEnvelope};
use super::settings::Settings;
use crate::catalog::FieldError;
use crate::identity::{AccountView, Network, Registration, Tokens};

/// The longest body, in bytes.
pub(super) const MAX_BODY: usize = 16 << 10;

/// Who wants an account.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used: bodies are read so that no error can repeat a password")]
pub struct Register {
    /// 3 to 64 of `A-Z a-z 0-9 . _ -`; upper and lower case are the same.
    #[schema(example = "jo.doe")]
    login: String,
    /// Address, which may be logged in with too.
    #[schema(example = "jo@shop.example")]
    email: Option<String>,
    /// 8 to 1024 bytes.
    #[schema(example = "correct horse battery staple")]
    password: String,
}

/// Who logs in.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub struct Login {
    /// Login or e-mail address.
    #[schema(example = "jo.doe")]
    login: String,
    /// Password.
    #[schema(example = "correct horse battery staple")]
    password: String,
}

/// A refresh token.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its description is used")]
pub struct Refresh {
    /// As it was given out.
    #[schema(example = "tgr_…")]
    refresh_token: String,
}

/// The fields of a body. What is wrong with it is told without what it says.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        if body.len() > MAX_BODY {
            return Err(ApiError::TooLarge(MAX_BODY));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            _ => Err(ApiError::BadRequest(String::from("the body must be a JSON object"))),
        }
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(name, "it must be a text")),
        }
    }

    pub fn needed(&self, name: &'static str) -> Result<&str, ApiError> {
        self.text(name)?.ok_or_else(|| invalid(name, "it is missing"))
    }

    pub fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            // Not named: it may be a password in the wrong place.
            Some(_) => Err(ApiError::BadRequest(format!("there may be no fields but {}", known.join(", ")))),
            None => Ok(()),
        }
    }
}

fn invalid(field: &str, message: &str) -> ApiError {
    ApiError::Invalid(vec![FieldError { field: field.to_owned(), message: message.to_owned() }])
}

/// The network that a request came from.
pub(super) fn network(req: &HttpRequest) -> Network {
    let settings = Settings::of(req);
    // Without an address, as behind a socket that has none, all are one.
    let address = address(req, settings.as_ref().map_or(&[], |settings| &settings.trusted_proxies));
    Network::of(address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

/// An answer that nobody may keep.
pub(super) fn answer<T: serde::Serialize>(
    mut with: actix_web::HttpResponseBuilder,
    state: &State,
    data: T,
) -> HttpResponse {
    with.insert_header((header::CACHE_CONTROL, "no-store")).json(Envelope::new(data, state.clock.now()))
}

/// Makes an account.
#[utoipa::path(tag = "identity", operation_id = "auth_register", request_body(content = Register,
    example = json!({"login": "jo.doe", "email": "jo@shop.example", "password": "correct horse battery staple"})), responses(
    (status = 201, body = Envelope<AccountView>, description = "Made, with the role user", example = json!({"success": true, "data": {
        "id": "6f1c3c0e7a514f0c9d6b1f2e3a4b5c6d", "login": "jo.doe", "email": "jo@shop.example", "roles": ["user"],
        "created_at": "2026-11-23T07:30:07.123Z"}, "timestamp": 1795420800})),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 403, body = ErrorEnvelope, description = "Registration is switched off"),
    (status = 409, body = ErrorEnvelope, description = "Login or e-mail is taken"),
    (status = 413, body = ErrorEnvelope, description = "More than 16 KiB"),
    (status = 422, body = ErrorEnvelope, description = "Fields that cannot be taken, all of them"),
    (status = 429, body = ErrorEnvelope, description = "Too many from this network; Retry-After"),
    (status = 503, body = ErrorEnvelope, description = "Too busy, or the database is away; Retry-After"),
))]
#[post("/api/v1/auth/register")]
pub async fn register(req: HttpRequest, state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let fields = Fields::read(&body)?;
    fields.only(&["login", "email", "password"])?;
    let new = Registration::new(fields.needed("login")?, fields.text("email")?, fields.needed("password")?)?;
    let account = state.identity.register(new, network(&req)).await?;
    Ok(answer(HttpResponse::Created(), &state, account))
}

/// Logs in.
#[utoipa::path(tag = "identity", operation_id = "auth_login", request_body(content = Login,
    example = json!({"login": "jo.doe", "password": "correct horse battery staple"})), responses(
    (status = 200, body = Envelope<Tokens>, description = "An access token, and a refresh token that is good once", example = json!({"success": true,
        "data": {"access_token": "eyJ…", "token_type": "Bearer", "expires_in": 600, "refresh_token": "tgr_…", "refresh_expires_in": 2592000},
        "timestamp": 1795420800})),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 401, body = ErrorEnvelope, description = "invalid_credentials: login or password is wrong"),
    (status = 413, body = ErrorEnvelope, description = "More than 16 KiB"),
    (status = 422, body = ErrorEnvelope, description = "A field is missing"),
    (status = 429, body = ErrorEnvelope, description = "too_many_attempts; Retry-After"),
    (status = 503, body = ErrorEnvelope, description = "Too busy, or the database is away; Retry-After"),
))]
#[post("/api/v1/auth/login")]
pub async fn login(req: HttpRequest, state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let fields = Fields::read(&body)?;
    fields.only(&["login", "password"])?;
    let (login, password) = (fields.needed("login")?, fields.needed("password")?);
    let tokens = state.identity.login(login, password, network(&req)).await?;
    Ok(answer(HttpResponse::Ok(), &state, tokens))
}

/// New tokens for a refresh token, which is used up. One that comes a second time ends everything that came of its login.
#[utoipa::path(tag = "identity", operation_id = "auth_refresh", request_body(content = Refresh,
    example = json!({"refresh_token": "tgr_…"})), responses(
    (status = 200, body = Envelope<Tokens>, description = "The next ones", example = json!({"success": true,
        "data": {"access_token": "eyJ…", "token_type": "Bearer", "expires_in": 600, "refresh_token": "tgr_…", "refresh_expires_in": 2592000},
        "timestamp": 1795420800})),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 401, body = ErrorEnvelope, description = "It is not valid, or was used before"),
    (status = 413, body = ErrorEnvelope, description = "More than 16 KiB"),
    (status = 422, body = ErrorEnvelope, description = "A field is missing"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away; Retry-After"),
))]
#[post("/api/v1/auth/refresh")]
pub async fn refresh(state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    let fields = Fields::read(&body)?;
    fields.only(&["refresh_token"])?;
    let tokens = state.identity.refresh(fields.needed("refresh_token")?).await?;
    Ok(answer(HttpResponse::Ok(), &state, tokens))
}

/// Logs out: no refresh token of this login is good any more. Access tokens that are out end by themselves.
#[utoipa::path(tag = "identity", operation_id = "auth_logout", security((), ("bearer" = [])), request_body(content = Option<Refresh>,
    description = "Without a body, the login of the access token is ended", example = json!({"refresh_token": "tgr_…"})), responses(
    (status = 204, description = "Logged out, or never in"),
    (status = 400, body = ErrorEnvelope, description = "The body is no object"),
    (status = 401, body = ErrorEnvelope, description = "There is neither a body nor a valid access token"),
    (status = 413, body = ErrorEnvelope, description = "More than 16 KiB"),
    (status = 422, body = ErrorEnvelope, description = "There is a body, and refresh_token is missing in it"),
    (status = 503, body = ErrorEnvelope, description = "The database is busy or away; Retry-After"),
))]
#[post("/api/v1/auth/logout")]
pub async fn logout(req: HttpRequest, state: web::Data<State>, body: Bytes) -> Result<HttpResponse, ApiError> {
    if body.is_empty() {
        let user = User::extract(&req).await?;
        state.identity.logout_of(&user).await?;
    } else {
        let fields = Fields::read(&body)?;
        fields.only(&["refresh_token"])?;
        state.identity.logout(fields.needed("refresh_token")?).await?;
    }
    Ok(HttpResponse::NoContent().insert_header((header::CACHE_CONTROL, "no-store")).finish())
}

/// Who sends this.
#[utoipa::path(tag = "identity", operation_id = "auth_me", security(("bearer" = [])), responses(
    (status = 200, body = Envelope<AccountView>, description = "The account, or what is known of a key", example = json!({"success": true, "data": {
        "id": "6f1c3c0e7a514f0c9d6b1f2e3a4b5c6d", "login": "jo.doe", "email": "jo@shop.example", "roles": ["user"],
        "created_at": "2026-11-23T07:30:07.123Z"}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "No valid token or key"),
    (status = 503, body = ErrorEnvelope, description = "It cannot be verified now; Retry-After"),
))]
#[get("/api/v1/auth/me")]
pub async fn me(user: User, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let account = state.identity.account(&user).await?;
    Ok(answer(HttpResponse::Ok(), &state, account))
}

/// The public keys of our access tokens (RFC 7517).
#[utoipa::path(tag = "identity", responses((status = 200, description = "JSON Web Key Set", content_type = "application/jwk-set+json",
    body = Object, example = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "3q2-7wAAAAA",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}))))]
#[get("/.well-known/jwks.json")]
pub async fn jwks(state: web::Data<State>) -> HttpResponse {
    let seconds = state.identity.jwks_lifetime().as_secs();
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "application/jwk-set+json"))
        .insert_header((header::CACHE_CONTROL, format!("public, max-age={seconds}")))
        .body(state.identity.jwks())
}
