//! Sending a request to an upstream: a place, a target, a connection, and another try where that is safe.
//!
//! What may be tried again: anything of which no byte was sent; what is idempotent and has no body (RFC 9110, section 9.2.2),
//! once over a new connection when a kept one had died, and further within the route's retries and the upstream's budget; and what
//! a target of HTTP/2 says that it did not begin with. Else a request with a body is never sent twice once its body was asked
//! for.

use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::body::{Progress, RequestBody};
use super::error::GatewayError;
use super::exchange::Exchange;
use super::pool::{Http1, Key, ready};
use super::worker::Worker;
use crate::clock::{self, Nanos};
use crate::gateway::connect::ConnectError;
use crate::gateway::options::Protocol;
use crate::gateway::table::{Route, Service};
use crate::gateway::upstream::{Admission, CallOutcome, Picked, Refused, TargetOutcome};

/// How often a request is sent over a new connection because the target would not have it over that one. With HTTP/1 the second
/// one is not kept, and its end is no farewell.
const MOST_FAREWELLS: u32 = 3;

/// A request on its way to an upstream.
pub struct Outgoing<'a> {
    /// Along this route.
    pub route: &'a Route,
    /// To this upstream.
    pub service: &'a Service,
    /// Its method.
    pub method: &'a Method,
    /// Path and query, rewritten.
    pub uri: &'a Uri,
    /// Its headers, ours among them; `Host` is the client's.
    pub headers: &'a HeaderMap,
    /// Its body, until it is sent.
    pub body: &'a mut Option<RequestBody>,
    /// How far the body got.
    pub progress: &'a Rc<Progress>,
    /// For upstreams that choose by hash.
    pub hash: u64,
    /// When it is too late.
    pub deadline: Option<Instant>,
    /// Why a target could not be reached.
    pub cause: Option<&'static str>,
}

/// An answer whose head has come.
pub struct Sent {
    /// The answer.
    pub response: Response<Incoming>,
    /// The connection it comes over, and how many idle ones are kept; none for HTTP/2.
    pub connection: Option<(Http1, Key, usize)>,
    /// What is held until it has come whole.
    pub ticket: Ticket,
}

/// A place in flight, and a target that is busy with it.
pub struct Ticket {
    admission: Admission,
    picked: Picked,
}

impl Ticket {
    /// The answer has come, or broke off: that is the target's failure, though it began well.
    pub fn finish(mut self, whole: bool) {
        if !whole {
            self.picked.broke_off();
        }
        drop(self.admission);
    }
}

/// Why an attempt came to nothing.
enum Failed {
    /// No byte was sent: anything may be tried again.
    Unsent(GatewayError),
    /// A kept connection had died; another one may not have.
    Stale(GatewayError),
    /// The target may have seen it.
    Seen(GatewayError),
    /// It is not the target's fault, or there is no time left.
    Final(GatewayError),
}

impl Outgoing<'_> {
    /// Sends it, and waits for the head of the answer.
    ///
    /// # Errors
    /// With what the client is to be told.
    pub async fn send(&mut self, worker: &Rc<Worker>, exchange: &mut Exchange) -> Result<Sent, GatewayError> {
        exchange.upstream = Some(self.service.name().clone());
        let admitting = self.service.upstream().admit();
        let admitted = match self.deadline {
            // Who has no time left to be answered need not wait for a place.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, admitting).await.map_err(|_| GatewayError::Overloaded)?
            }
            None => admitting.await,
        };
        let mut admission = match admitted {
            Ok(admission) => admission,
            Err(Refused::Open { retry_after }) => return Err(GatewayError::CircuitOpen { retry_after }),
            Err(Refused::Full | Refused::QueueTimeout) => return Err(GatewayError::Overloaded),
        };
        let mut tried = Vec::new();
        let mut retries = self.route.options.retries;
        let begun = worker.gateway.clock().now();
        let mut picked = self.service.upstream().pick(self.hash, &tried).map_err(|_| GatewayError::NoTarget)?;
        loop {
            exchange.target = Some(picked.id().0);
            let tried_at = worker.gateway.clock().now();
            let mut attempt = self.attempt(worker, &picked, false).await;
            for _ in 0..MOST_FAREWELLS {
                if !matches!(attempt, Err(Failed::Stale(_))) {
                    break;
                }
                // Invisible, and at nobody's cost: the target has closed what it had kept open.
                attempt = self.attempt(worker, &picked, true).await;
            }
            exchange.cause = self.cause;
            let (error, again) = match attempt {
                Ok((response, connection)) => {
                    let now = worker.gateway.clock().now();
                    let failed = response.status().is_server_error();
                    // What others took before it is not its doing.
                    picked.finish(TargetOutcome::Answered { first_byte: since(tried_at, now) });
                    let outcome = if failed { CallOutcome::Failure } else { CallOutcome::Success };
                    admission.finish(outcome, since(begun, now));
                    return Ok(Sent { response, connection, ticket: Ticket { admission, picked } });
                }
                Err(Failed::Unsent(error)) => (error, true),
                Err(Failed::Stale(error) | Failed::Seen(error)) => (error, self.is_repeatable()),
                Err(Failed::Final(error)) => {
                    // The client's own doing is no word on the upstream.
                    if error.is_of_upstream() {
                        picked.finish(TargetOutcome::Failed);
                        admission.finish(CallOutcome::Failure, since(begun, worker.gateway.clock().now()));
                    }
                    return Err(error);
                }
            };
            tried.push(picked.id());
            picked.finish(TargetOutcome::Failed);
            let in_time = self.deadline.is_none_or(|deadline| clock::instant() < deadline);
            let may_repeat = again && retries > 0 && in_time && self.body.is_some();
            // First whether there is another target: the budget is for what is really sent again.
            let other = may_repeat.then(|| self.service.upstream().pick(self.hash, &tried).ok()).flatten();
            picked = match other {
                Some(other) if self.service.upstream().may_retry() => other,
                _ => {
                    admission.finish(CallOutcome::Failure, since(begun, worker.gateway.clock().now()));
                    return Err(error);
                }
            };
            retries -= 1;
            exchange.retries += 1;
        }
    }

    /// Whether it may be sent again though a target may have seen it.
    fn is_repeatable(&self) -> bool {
        let idempotent = matches!(
            *self.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
        idempotent && self.body.as_ref().is_some_and(RequestBody::is_empty)
    }

    async fn attempt(
        &mut self,
        worker: &Rc<Worker>,
        picked: &Picked,
        fresh: bool,
    ) -> Result<(Response<Incoming>, Option<(Http1, Key, usize)>), Failed> {
        let key = Key { upstream: self.service.id(), target: u64::from(picked.id().0) };
        if self.service.options().protocol == Protocol::Http2 {
            return self.attempt_http2(worker, picked, key, fresh).await.map(|response| (response, None));
        }
        let options = self.service.options();
        let now = worker.gateway.clock().now();
        let once = !self.is_repeatable();
        let kept = if fresh { None } else { worker.pool.take(key, now, options.keep_alive_timeout, once) };
        let reused = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let io = self.connect(picked).await?;
                Http1::new(io).await.map_err(|error| unusable(&error))?
            }
        };
        let request = self.request(picked, Version::HTTP_11);
        let wait = self.route.options.first_byte_timeout;
        let sent = within(wait, self.deadline, self.progress, connection.send(request)).await;
        match sent {
            // Said to a connection that was idle for too long, as the request was on its way (RFC 9110, section 15.5.9).
            Some(Ok(response)) if reused && !once && response.status() == StatusCode::REQUEST_TIMEOUT => {
                worker.pool.hung_up(key, worker.gateway.clock().now());
                Err(Failed::Stale(GatewayError::BadAnswer))
            }
            Some(Ok(response)) => Ok((response, Some((connection, key, options.keep_alive)))),
            Some(Err(unsent)) => {
                if reused {
                    worker.pool.hung_up(key, worker.gateway.clock().now());
                }
                Err(self.failed(&unsent.error, unsent.request, reused))
            }
            None => Err(Failed::Final(self.client_trouble().unwrap_or(GatewayError::UpstreamTimeout))),
        }
    }

    async fn attempt_http2(
        &mut self,
        worker: &Rc<Worker>,
        picked: &Picked,
        key: Key,
        fresh: bool,
    ) -> Result<Response<Incoming>, Failed> {
        let kept = if fresh { None } else { worker.pool.shared(key) };
        let reused = kept.is_some();
        let mut sender = match kept {
            Some(sender) => sender,
            None => {
                let io = self.connect(picked).await?;
                worker.pool.share(key, io).await.map_err(|error| unusable(&error))?
            }
        };
        if ready(&mut sender).await.is_err() {
            return Err(Failed::Stale(GatewayError::BadAnswer));
        }
        let request = self.request(picked, Version::HTTP_2);
        let wait = self.route.options.first_byte_timeout;
        match within(wait, self.deadline, self.progress, sender.try_send_request(request)).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(mut unsent)) => {
                let request = unsent.take_message();
                Err(self.failed(unsent.error(), request, reused))
            }
            None => Err(Failed::Final(self.client_trouble().unwrap_or(GatewayError::UpstreamTimeout))),
        }
    }

    async fn connect(&mut self, picked: &Picked) -> Result<crate::gateway::connect::Connection, Failed> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(clock::instant()));
        let wait = self.route.options.connect_timeout.min(left.unwrap_or(Duration::MAX));
        self.service.connector().connect(picked.address(), wait).await.map_err(|error| {
            log::debug!("upstream {}, target {}: {error}", self.service.name(), picked.id().0);
            self.cause = Some(error.name());
            Failed::Unsent(match error {
                ConnectError::TimedOut => GatewayError::UpstreamTimeout,
                _ => GatewayError::Unreachable,
            })
        })
    }

    /// The request as it is sent to a target. Its body leaves us.
    fn request(&mut self, picked: &Picked, version: Version) -> Request<RequestBody> {
        let empty = self.body.as_ref().is_none_or(RequestBody::is_empty);
        // An empty body can be sent any number of times.
        let body = if empty { RequestBody::Empty } else { self.body.take().unwrap_or(RequestBody::Empty) };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        if version == Version::HTTP_2 {
            // A connection of HTTP/2 has no such headers (RFC 9113, section 8.2.2).
            request.headers_mut().remove(header::CONNECTION);
            self.progress.keep();
            let host = request.headers_mut().remove(header::HOST).filter(|_| self.route.options.preserve_host);
            let host = host.as_ref().map_or(picked.address().as_bytes(), HeaderValue::as_bytes);
            let scheme = if self.service.options().tls.is_some() { "https" } else { "http" };
            let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
            let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
            // What has been a host and a path is a URI.
            *request.uri_mut() = uri.unwrap_or_default();
            *request.version_mut() = version;
        } else {
            *request.uri_mut() = self.uri.clone();
            if (!self.route.options.preserve_host || !request.headers().contains_key(header::HOST))
                && let Ok(host) = HeaderValue::from_str(picked.address())
            {
                request.headers_mut().insert(header::HOST, host);
            }
        }
        request
    }

    fn failed(&mut self, error: &hyper::Error, unsent: Option<Request<RequestBody>>, reused: bool) -> Failed {
        if let Some(trouble) = self.client_trouble() {
            return Failed::Final(trouble);
        }
        if let Some(request) = unsent {
            let body = request.into_body();
            if !body.is_empty() {
                *self.body = Some(body);
            }
            return if reused {
                Failed::Stale(GatewayError::BadAnswer)
            } else {
                Failed::Unsent(GatewayError::BadAnswer)
            };
        }
        log::debug!("upstream {}: {error}", self.service.name());
        if is_refused(error) {
            if self.body.is_none() {
                *self.body = self.progress.again();
            }
            if self.body.is_some() {
                return Failed::Stale(GatewayError::BadAnswer);
            }
        }
        // The connection ended before a byte of an answer.
        let silent = error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error);
        if reused && silent && self.is_repeatable() {
            Failed::Stale(GatewayError::BadAnswer)
        } else {
            Failed::Seen(GatewayError::BadAnswer)
        }
    }

    /// What the client did wrong, if that is what ended the attempt.
    fn client_trouble(&self) -> Option<GatewayError> {
        self.progress.trouble.get().map(|trouble| trouble.error(self.route.options.max_body))
    }
}

fn unusable(error: &hyper::Error) -> Failed {
    log::debug!("a new connection to a target cannot be used: {error}");
    Failed::Unsent(GatewayError::BadAnswer)
}

fn is_reset(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(http2) = inner.downcast_ref::<h2::Error>() {
            return http2.is_io();
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::UnexpectedEof
            );
        }
        cause = inner.source();
    }
    false
}

/// Whether a target of HTTP/2 has said that it did not begin with a request, whatever that is (RFC 9113, section 8.7): it is
/// behind the last one of a farewell, or was refused by itself.
fn is_refused(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(http2) = inner.downcast_ref::<h2::Error>() {
            let refused = http2.is_reset() && http2.reason() == Some(h2::Reason::REFUSED_STREAM);
            return http2.is_remote() && (http2.is_go_away() || refused);
        }
        cause = inner.source();
    }
    false
}

/// Waits for the head of an answer: `wait` from the end of the request on, and until the deadline at most.
async fn within<T>(
    wait: Duration,
    deadline: Option<Instant>,
    progress: &Progress,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = std::pin::pin!(answer);
    let begun = clock::instant();
    loop {
        let now = clock::instant();
        let uploading = progress.begun.get() && progress.ended.get().is_none();
        // A pause within the body has a time-out of its own.
        let due = if uploading { now } else { progress.ended.get().unwrap_or(begun) } + wait;
        let late = deadline.is_some_and(|deadline| now >= deadline);
        if late || due <= now {
            return None;
        }
        let end = deadline.map_or(due, |deadline| deadline.min(due));
        if let Ok(answer) = tokio::time::timeout_at(end, answer.as_mut()).await {
            return Some(answer);
        }
    }
}

/// How long ago, on the monotonic clock.
pub fn since(begun: Nanos, now: Nanos) -> Duration {
    Duration::from_nanos(now.saturating_sub(begun))
}
