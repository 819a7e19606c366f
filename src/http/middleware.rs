//! What is done to every request, around the handlers.

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, web};

use super::State;
use super::error::ApiError;
use super::openapi::Document;
use crate::gateway::trace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives every error the envelope and a request id; an id that came with the request is taken over.
pub async fn envelope<B: MessageBody + 'static>(
    mut req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<BoxBody, B>>, Error> {
    // What answers GET answers HEAD; the encoder leaves the body out, as it knows what was asked.
    if req.method() == Method::HEAD {
        req.head_mut().method = Method::GET;
    }
    let sent = req.headers().get(REQUEST_ID).filter(|id| trace::is_request_id(id.as_bytes())).cloned();
    let mut answer = next.call(req).await?;
    let status = answer.status();
    if !status.is_client_error() && !status.is_server_error() {
        if let Some(id) = sent {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
        return Ok(answer.map_into_right_body());
    }
    // Health answers say more than an error could.
    if answer.response().error().is_none() && answer.headers().contains_key(header::CONTENT_TYPE) {
        return Ok(answer.map_into_right_body());
    }
    let id = match sent.as_ref().and_then(|id| id.to_str().ok()) {
        Some(id) => id.to_owned(),
        None => trace::new_request_id(),
    };
    let now = answer.request().app_data::<web::Data<State>>().map_or(0, |state| state.clock.now());
    let document = answer.request().app_data::<web::Data<Document>>();
    let elsewhere = document.map(|document| document.methods(answer.request().path())).unwrap_or_default();
    let mut rendered = match answer.response().error().and_then(|error| error.as_error::<ApiError>()) {
        Some(error) => error.render(&id, now.div_euclid(1000)),
        // The path is there, for other methods.
        None if status == StatusCode::NOT_FOUND && !elsewhere.is_empty() => {
            ApiError::MethodNotAllowed.render(&id, now.div_euclid(1000))
        }
        None => foreign(status, answer.request().path(), answer.response().error()).render(&id, now.div_euclid(1000)),
    };
    if rendered.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Ok(allowed) = HeaderValue::from_str(&elsewhere)
    {
        rendered.headers_mut().insert(header::ALLOW, allowed);
    }
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        log::error!("{} {} answered {status}, request id {id}", answer.request().method(), answer.request().path());
    }
    // What the framework or another middleware wanted the client to know, like Allow and CORS, stays.
    let (request, old) = answer.into_parts();
    for (name, value) in old.headers() {
        if *name != header::CONTENT_TYPE && *name != header::CONTENT_LENGTH && !rendered.headers().contains_key(name) {
            rendered.headers_mut().append(name.clone(), value.clone());
        }
    }
    Ok(ServiceResponse::new(request, rendered.map_into_boxed_body()).map_into_left_body())
}

/// Refuses methods that nobody has heard of, before each becomes a series of its own in the metrics.
pub async fn known_methods<B: MessageBody + 'static>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<BoxBody, B>>, Error> {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    if KNOWN.contains(req.method()) {
        return Ok(next.call(req).await?.map_into_right_body());
    }
    let now = req.app_data::<web::Data<State>>().map_or(0, |state| state.clock.now());
    let refused = ApiError::MethodNotAllowed.render(&trace::new_request_id(), now.div_euclid(1000));
    Ok(req.into_response(refused).map_into_left_body())
}

/// An error that the framework found.
fn foreign(status: StatusCode, path: &str, error: Option<&Error>) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => ApiError::NotFound("there is nothing at this path; see /docs/"),
        StatusCode::METHOD_NOT_ALLOWED => ApiError::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE if path.starts_with("/api/v1/auth/") => ApiError::TooLarge(super::auth::MAX_BODY),
        // Of products; events have a limit of their own.
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge(super::catalog_write::MAX_PRODUCT),
        status if status.is_client_error() => {
            let detail = error.map(ToString::to_string).filter(|text| !text.is_empty());
            ApiError::BadRequest(detail.unwrap_or_else(|| String::from("the request makes no sense")))
        }
        _ => ApiError::Internal,
    }
}
