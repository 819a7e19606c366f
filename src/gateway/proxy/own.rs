//! Tidegate's own endpoints behind the gateway: a request is handed to the actix-web application of the same thread, without a
//! connection in between.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::error::PayloadError;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use futures_util::stream;
use hyper::body::Body;
use hyper::{HeaderMap, StatusCode, header};

use super::body::{BodyError, RequestBody};

/// The application of one thread.
pub type Own = Rc<dyn Fn(actix_http::Request) -> LocalBoxFuture<'static, actix_http::Response<BoxBody>>>;

/// Makes the application of a thread, on that thread.
pub type OwnFactory = Arc<dyn Fn() -> LocalBoxFuture<'static, Own> + Send + Sync>;

/// Turns a request into one of actix.
///
/// # Errors
/// With nothing, when actix's types do not take it; they take what hyper's do.
pub fn request(
    parts: &hyper::http::request::Parts,
    path_and_query: &str,
    body: RequestBody,
    peer: std::net::SocketAddr,
) -> Option<actix_http::Request> {
    let mut body = Box::pin(body);
    let payload: actix_http::Payload = if body.is_end_stream() {
        actix_http::Payload::None
    } else {
        let pieces = stream::poll_fn(move |cx| {
            loop {
                return match body.as_mut().poll_frame(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(None) => Poll::Ready(None),
                    Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(PayloadError::Incomplete(None)))),
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => Poll::Ready(Some(Ok::<Bytes, PayloadError>(data))),
                        Err(_) => continue,
                    },
                };
            }
        });
        actix_http::Payload::Stream { payload: Box::pin(pieces) }
    };
    let mut request: actix_http::Request = actix_http::Request::with_payload(payload);
    let head = request.head_mut();
    head.method = parts.method.as_str().parse().ok()?;
    head.uri = path_and_query.parse().ok()?;
    head.version = actix_http::Version::HTTP_11;
    head.peer_addr = Some(peer);
    for (name, value) in &parts.headers {
        let name = actix_http::header::HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        let value = actix_http::header::HeaderValue::from_bytes(value.as_bytes()).ok()?;
        head.headers_mut().append(name, value);
    }
    Some(request)
}

/// Status, headers and body of the application's answer.
pub fn response(answer: actix_http::Response<BoxBody>) -> (StatusCode, HeaderMap, OwnBody) {
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::with_capacity(answer.headers().len());
    for (name, value) in answer.headers() {
        let name = header::HeaderName::from_bytes(name.as_str().as_bytes());
        let value = header::HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let (_, body) = answer.into_parts();
    if let BodySize::Sized(length) = body.size() {
        headers.insert(header::CONTENT_LENGTH, header::HeaderValue::from(length));
    }
    (status, headers, OwnBody(Box::pin(body)))
}

/// The body of the application's answer.
pub struct OwnBody(Pin<Box<BoxBody>>);

impl std::fmt::Debug for OwnBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnBody")
    }
}

impl OwnBody {
    /// The next piece.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let piece = std::task::ready!(self.0.as_mut().poll_next(cx));
        Poll::Ready(piece.map(|piece| piece.map_err(|error| error.to_string().into())))
    }

    /// How long it is, if that is known.
    pub fn length(&self) -> Option<u64> {
        match self.0.size() {
            BodySize::None => Some(0),
            BodySize::Sized(length) => Some(length),
            BodySize::Stream => None,
        }
    }
}
