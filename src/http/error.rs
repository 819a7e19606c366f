//! Every error a client can see: one type, mapped to status and stable code in one place.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::actor::admission::Overloaded;
use crate::cache::CacheError;
use crate::catalog::{CatalogError, FieldError};
use crate::event::Reject;
use crate::identity::{BadField, IdentityError};
use crate::journal::AppendError;
use crate::stats::StatsError;

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A parameter or the body makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// Nothing in the body could be used; says why for each event.
    #[error("none of the events could be used: {}", .0.first().map_or("", |r| r.message.as_str()))]
    NothingUsable(Vec<Reject>),
    /// The same, because whoever sent them may not, whatever is in them.
    #[error("none of the events is taken: {}", .0.first().map_or("", |r| r.message.as_str()))]
    NothingAllowed(Vec<Reject>),
    /// The body is longer than allowed.
    #[error("the body is longer than {0} bytes, as sent or decompressed")]
    TooLarge(usize),
    /// The body stopped coming.
    #[error("the body did not come; send it without long pauses")]
    TooSlow,
    /// The body's encoding is unknown.
    #[error("Content-Encoding must be gzip, deflate, br or zstd")]
    UnsupportedEncoding,
    /// The operator's endpoints need the key, or a request from this machine; others a token that is good.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// Login or password is wrong.
    #[error("login or password is wrong")]
    Credentials,
    /// Whoever asks is known, and may not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Too many wrong attempts.
    #[error("too many attempts; try again later")]
    TooMany {
        /// When to come again.
        retry_after: Duration,
    },
    /// Fields or parameters that cannot be taken; all of them.
    #[error("{}", .0.iter().map(|bad| format!("{}: {}", bad.field, bad.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// A config with mistakes; each with where it is.
    #[error("{0}")]
    InvalidConfig(String),
    /// It is there already.
    #[error("{0}")]
    Exists(&'static str),
    /// It goes against how things are now; what to do is said.
    #[error("{0}")]
    Conflict(&'static str),
    /// It is not as the client thinks it is.
    #[error("{0}")]
    PreconditionFailed(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// The path exists for other methods.
    #[error("this path does not take the method")]
    MethodNotAllowed,
    /// Too much at once.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something that is needed does not work right now.
    #[error("{0}")]
    Unavailable(String),
    /// The same, with the time after which it may be tried again.
    #[error("{what}")]
    Later {
        /// What is the matter.
        what: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// A mistake of ours; the cause is in the log, not in the answer.
    #[error("something went wrong on the server")]
    Internal,
}

impl ApiError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            ApiError::BadRequest(_) => "bad_request",
            ApiError::NothingUsable(_) => "nothing_usable",
            ApiError::NothingAllowed(_) => "nothing_allowed",
            ApiError::TooLarge(_) => "body_too_large",
            ApiError::TooSlow => "request_timeout",
            ApiError::UnsupportedEncoding => "unsupported_encoding",
            ApiError::Unauthorized(_) => "unauthorized",
            ApiError::Credentials => "invalid_credentials",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::TooMany { .. } => "too_many_attempts",
            ApiError::Invalid(_) => "validation_failed",
            ApiError::InvalidConfig(_) => "invalid_config",
            ApiError::Exists(_) => "already_exists",
            ApiError::Conflict(_) => "conflict",
            ApiError::PreconditionFailed(_) => "precondition_failed",
            ApiError::NotFound(_) => "not_found",
            ApiError::MethodNotAllowed => "method_not_allowed",
            ApiError::Overloaded(_) => "overloaded",
            ApiError::Unavailable(_) | ApiError::Later { .. } => "unavailable",
            ApiError::Internal => "internal",
        }
    }

    /// Logs the cause of a mistake of ours.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        log::error!("request failed: {cause}");
        ApiError::Internal
    }

    /// The answer, in the envelope.
    pub fn render(&self, request_id: &str, timestamp: i64) -> HttpResponse {
        let rejected = match self {
            ApiError::NothingUsable(rejected) | ApiError::NothingAllowed(rejected) => Some(rejected.as_slice()),
            _ => None,
        };
        let fields = match self {
            ApiError::Invalid(fields) => Some(fields.as_slice()),
            _ => None,
        };
        let body = ErrorEnvelope {
            success: false,
            error: ErrorBody { code: self.code(), message: self.to_string(), request_id, rejected, fields },
            timestamp,
        };
        let mut answer = HttpResponse::build(self.status_code());
        answer.insert_header(("x-request-id", request_id)).insert_header((header::CACHE_CONTROL, "no-store"));
        if self.status_code() == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = match self {
                ApiError::Later { retry_after, .. } => retry_after.as_secs().max(1),
                _ => 1,
            };
            answer.insert_header((header::RETRY_AFTER, seconds));
        }
        if let ApiError::TooMany { retry_after } = self {
            // Rounded up: who comes a moment early is refused again.
            answer.insert_header((header::RETRY_AFTER, retry_after.as_millis().div_ceil(1000).max(1).to_string()));
        }
        if self.status_code() == StatusCode::UNAUTHORIZED {
            answer.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        answer.json(body)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            ApiError::BadRequest(_) | ApiError::NothingUsable(_) => StatusCode::BAD_REQUEST,
            ApiError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            ApiError::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ApiError::Unauthorized(_) | ApiError::Credentials => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden(_) | ApiError::NothingAllowed(_) => StatusCode::FORBIDDEN,
            ApiError::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Invalid(_) | ApiError::InvalidConfig(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Exists(_) | ApiError::Conflict(_) => StatusCode::CONFLICT,
            ApiError::PreconditionFailed(_) => StatusCode::PRECONDITION_FAILED,
            ApiError::NotFound(_) => StatusCode::NOT_FOUND,
            ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::Overloaded(_) | ApiError::Unavailable(_) | ApiError::Later { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn error_response(&self) -> HttpResponse {
        // The middleware renders it again with the request's id; this is what a caller without it sees.
        HttpResponse::new(self.status_code())
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Overloaded(overloaded) => ApiError::Overloaded(overloaded),
            AppendError::Unavailable(_) | AppendError::Closed => ApiError::Unavailable(error.to_string()),
        }
    }
}

impl From<StatsError> for ApiError {
    fn from(error: StatsError) -> Self {
        match error {
            StatsError::BadQuery(message) => ApiError::BadRequest(message),
            other => {
                log::error!("statistics: {other}");
                ApiError::Unavailable(String::from("the statistics cannot be read right now"))
            }
        }
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match (error.retry_after(), error) {
            (_, CatalogError::NotFound) => ApiError::NotFound("there is no such product"),
            (_, CatalogError::Exists) => ApiError::Exists("there is a product with this id; PUT replaces it"),
            (_, CatalogError::Conflict { current }) => ApiError::PreconditionFailed(format!(
                "the product is at version {current}; read it again, and send If-Match: \"{current}\""
            )),
            (_, CatalogError::Invalid(fields)) => ApiError::Invalid(fields),
            (Some(retry_after), error) => ApiError::Later { what: error.to_string(), retry_after },
            (None, error) => ApiError::internal(error),
        }
    }
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        let retry_after = error.retry_after();
        match error {
            IdentityError::Invalid(bad) => {
                let field = |bad: BadField| FieldError { field: bad.field.to_owned(), message: bad.message.to_owned() };
                ApiError::Invalid(bad.into_iter().map(field).collect())
            }
            IdentityError::Exists => ApiError::Exists("there is an account with this login or e-mail already"),
            IdentityError::Credentials => ApiError::Credentials,
            IdentityError::RefreshToken => ApiError::Unauthorized("the refresh token is not valid; log in again"),
            IdentityError::TooMany { retry_after } => ApiError::TooMany { retry_after },
            IdentityError::Closed => ApiError::Forbidden("registration is switched off"),
            IdentityError::NoAccount => {
                ApiError::Forbidden("this is for accounts, not for keys or other issuers' tokens")
            }
            IdentityError::NotFound("session") => {
                ApiError::NotFound("there is no such session; GET /api/v1/auth/sessions")
            }
            IdentityError::NotFound(_) => ApiError::Unauthorized("the account is not there any more"),
            IdentityError::Overloaded(overloaded) => ApiError::Overloaded(overloaded),
            error => match retry_after {
                Some(retry_after) => ApiError::Later { what: error.to_string(), retry_after },
                None => ApiError::internal(error),
            },
        }
    }
}

impl From<CacheError> for ApiError {
    fn from(error: CacheError) -> Self {
        match error.retry_after() {
            Some(retry_after) => ApiError::Later { what: error.to_string(), retry_after },
            None => ApiError::internal(error),
        }
    }
}

/// How every error is written.
#[derive(Serialize, ToSchema)]
pub struct ErrorEnvelope<'a> {
    /// Always false.
    success: bool,
    error: ErrorBody<'a>,
    /// Unix seconds.
    timestamp: i64,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody<'a> {
    /// Stable; see docs/api.md.
    #[schema(example = "bad_request")]
    code: &'static str,
    /// For a person.
    message: String,
    /// Also in the header `X-Request-ID`.
    request_id: &'a str,
    /// Why each event was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Object>)]
    rejected: Option<&'a [Reject]>,
    /// Every field or parameter that cannot be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<&'a [FieldError]>,
}

/// How every answer is written.
#[derive(Serialize, ToSchema)]
pub struct Envelope<T> {
    /// Always true.
    pub success: bool,
    /// The answer.
    pub data: T,
    /// Unix seconds.
    pub timestamp: i64,
}

impl<T> Envelope<T> {
    /// Wraps an answer given `now`, in Unix milliseconds.
    pub fn new(data: T, now: i64) -> Self {
        Self { success: true, data, timestamp: now.div_euclid(1000) }
    }
}
