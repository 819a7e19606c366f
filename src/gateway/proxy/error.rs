//! Every answer that the gateway gives of its own accord when something is wrong: one type, mapped to status and stable code in
//! one place, and written like every other error of Tidegate.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use crate::gateway::path::PathError;

/// Why a request was not proxied, or not answered by its upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The path has no canonical form.
    #[error(transparent)]
    BadPath(#[from] PathError),
    /// A good API key is needed, or the one that was sent is none.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// A good access token is needed.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// It is known who asks, and that they may not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Whether a token is good cannot be said right now.
    #[error("the token or key cannot be verified right now")]
    Unverifiable {
        /// When to come again.
        retry_after: Duration,
    },
    /// No route matches.
    #[error("no route leads from this path")]
    NoRoute,
    /// Routes match, for other methods.
    #[error("this path does not take the method")]
    MethodNotAllowed(String),
    /// The body stopped coming.
    #[error("the body did not come; send it without long pauses")]
    RequestTimeout,
    /// The body is longer than the route takes.
    #[error("the body is longer than {0} bytes")]
    BodyTooLarge(u64),
    /// A limit is used up.
    #[error("too many requests for the limit `{limit}`")]
    RateLimited {
        /// Its name.
        limit: String,
        /// When it can be met again; `None` if never, as the request costs more than the limit holds.
        retry_after: Option<Duration>,
    },
    /// The service answers nothing right now, and is left alone.
    #[error("the service behind this path is failing and is left alone for a moment")]
    CircuitOpen {
        /// When it is tried again.
        retry_after: Duration,
    },
    /// Too much is under way to the service.
    #[error("too many requests are under way to the service behind this path")]
    Overloaded,
    /// The service has no instance.
    #[error("the service behind this path has no instance")]
    NoTarget,
    /// An instance could not be reached.
    #[error("the service behind this path cannot be reached")]
    Unreachable,
    /// An instance answered something that is no HTTP, or hung up.
    #[error("the service behind this path gave no answer that can be used")]
    BadAnswer,
    /// An instance did not answer in time.
    #[error("the service behind this path did not answer in time")]
    UpstreamTimeout,
    /// A mistake of ours; the cause is in the log.
    #[error("something went wrong on the server")]
    Internal,
}

/// How every error of Tidegate is written.
#[derive(Serialize)]
struct ErrorEnvelope<'a> {
    success: bool,
    error: ErrorBody<'a>,
    timestamp: i64,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: String,
    request_id: &'a str,
}

impl GatewayError {
    /// The status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::BadPath(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) | Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unverifiable { .. } | Self::CircuitOpen { .. } | Self::Overloaded | Self::NoTarget => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Unreachable | Self::BadAnswer => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::BadPath(_) => "bad_request",
            Self::Unauthorized(_) | Self::Unauthenticated(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::Unverifiable { .. } => "unavailable",
            Self::NoRoute => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge(_) => "body_too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::Overloaded => "overloaded",
            Self::NoTarget => "no_target",
            Self::Unreachable => "upstream_unreachable",
            Self::BadAnswer => "bad_gateway",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::Internal => "internal",
        }
    }

    /// Whether the upstream was not asked at all, so that anything may be sent to another one.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::CircuitOpen { .. } | Self::Overloaded | Self::NoTarget | Self::Unreachable)
    }

    /// Whether another upstream, or an answer of before, may stand in.
    pub fn is_of_upstream(&self) -> bool {
        matches!(
            self,
            Self::CircuitOpen { .. }
                | Self::Overloaded
                | Self::NoTarget
                | Self::Unreachable
                | Self::BadAnswer
                | Self::UpstreamTimeout
        )
    }

    /// The answer; `timestamp` is in Unix seconds.
    pub fn render(&self, request_id: &str, timestamp: i64) -> Response<Bytes> {
        let error = ErrorBody { code: self.code(), message: self.to_string(), request_id };
        // Of texts and numbers: it cannot fail.
        let body = serde_json::to_vec(&ErrorEnvelope { success: false, error, timestamp }).unwrap_or_default();
        let mut answer = Response::new(Bytes::from(body));
        *answer.status_mut() = self.status();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.add_headers(headers);
        answer
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        match self {
            Self::Unauthorized(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey"));
            }
            Self::Unauthenticated(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::MethodNotAllowed(methods) => {
                if let Ok(methods) = HeaderValue::from_str(methods) {
                    headers.insert(header::ALLOW, methods);
                }
            }
            // What is left of the body would be read as a request.
            Self::RequestTimeout | Self::BodyTooLarge(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        let retry_after = match self {
            Self::RateLimited { retry_after, .. } => *retry_after,
            Self::CircuitOpen { retry_after } | Self::Unverifiable { retry_after } => Some(*retry_after),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(Duration::from_secs(1)),
            _ => None,
        };
        if let Some(after) = retry_after {
            // Whole seconds, and not before it is of use.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_overload_are_never_mixed_up() {
        let seconds = |error: &GatewayError| {
            let answer = error.render("r", 0);
            (answer.status().as_u16(), answer.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned()))
        };
        let limited = |retry_after| GatewayError::RateLimited { limit: String::from("a"), retry_after };
        assert_eq!(seconds(&limited(Some(Duration::from_millis(1500)))), (429, Some(String::from("2"))));
        assert_eq!(seconds(&limited(Some(Duration::ZERO))), (429, Some(String::from("1"))));
        assert_eq!(seconds(&limited(None)), (429, None));
        let open = GatewayError::CircuitOpen { retry_after: Duration::from_secs(7) };
        assert_eq!(seconds(&open), (503, Some(String::from("7"))));
        assert_eq!(seconds(&GatewayError::Overloaded), (503, Some(String::from("1"))));
        assert_eq!(seconds(&GatewayError::UpstreamTimeout), (504, None));
    }

    #[test]
    fn answers_have_the_envelope() {
        let answer = GatewayError::NoRoute.render("abc", 12);
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(body["error"]["code"], "not_found");
        assert_eq!(body["error"]["request_id"], "abc");
        assert_eq!((body["success"].clone(), body["timestamp"].clone()), (false.into(), 12.into()));
    }
}
