//! The order in which everything is done to a request; this is its one page.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use tokio::time::{Instant, Sleep};

use super::answer::{Answer, Source, UpstreamBody};
use super::body::RequestBody;
use super::compress::{self, Coding, Compressed};
use super::connection::ConnectionState;
use super::error::GatewayError;
use super::exchange::Exchange;
use super::find::{Found, find};
use super::own::{self, Own};
use super::pool::Pool;
use super::send::{Outgoing, Sent};
use super::tunnel::Tunnel;
use super::version;
use super::who::Who;
use crate::clock;
use crate::gateway::Gateway;
use crate::gateway::access_log::Used;
use crate::gateway::canary::Canary;
use crate::gateway::options::Protocol;
use crate::gateway::table::{Route, Service, To};
use crate::gateway::trace::{self, TraceContext};
use crate::gateway::{address, cors, headers, stale};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What serves requests on one thread.
pub struct Worker {
    /// What all threads share.
    pub gateway: Gateway,
    /// This one's connections to targets.
    pub pool: Pool,
    own: Own,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address, or a proxy's.
    pub peer: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it came over TLS.
    pub secure: bool,
    /// The state of its connection.
    pub state: ConnectionState,
}

/// What an answer is made of.
struct Passed {
    status: StatusCode,
    headers: HeaderMap,
    source: Source,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Both ends of an upgrade.
    tunnel: Option<Tunnel>,
}

/// What is added to whatever is answered in the end, errors too.
#[derive(Default)]
struct Adds {
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's `Origin`, where the route has a policy for it.
    origin: Option<HeaderMap>,
    /// A cookie of ours, beside those of the upstream.
    cookie: Option<HeaderValue>,
}

/// A request that has found its route and may take it.
struct Routed {
    route: Arc<Route>,
    parts: Parts,
    client: address::Chain,
    /// Path and query, rewritten.
    uri: Uri,
    /// Whose it is.
    who: Who,
    deadline: Option<Instant>,
    on_upgrade: Option<OnUpgrade>,
}

impl Routed {
    /// Those that the route sets.
    fn set_headers(&mut self) {
        for (name, value) in &self.route.request_headers {
            self.parts.headers.insert(name, value.clone());
        }
    }
}

impl Worker {
    /// A worker of this thread.
    pub fn new(gateway: Gateway, own: Own) -> Self {
        Self { gateway, pool: Pool::default(), own }
    }

    /// Lets go of connections that have been idle for too long.
    pub fn sweep(&self) {
        let table = self.gateway.table();
        let keep = |id| table.services.values().find(|s| s.id() == id).map(|s| s.options().keep_alive_timeout);
        self.pool.sweep(self.gateway.clock().now(), keep);
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        client: Client,
    ) -> Result<Response<Answer>, Infallible> {
        // 1. Request id and trace.
        let id = trace::request_id(request.headers());
        let trace = TraceContext::of_request(request.headers());
        // 2. Access log and metrics: they hear of it when the exchange is dropped with the answer's body.
        let gateway = self.gateway.clone();
        let mut exchange = Exchange::begin(gateway, client.state.clone(), request.method().clone(), id, trace);
        let mut adds = Adds::default();
        let (parts, incoming) = request.into_parts();
        let waits = parts.headers.contains_key(header::EXPECT);
        let pause = self.gateway.options().client_timeout;
        let mut body = Some(RequestBody::new(incoming, pause, exchange.progress.clone()));
        // 3. A panic costs one request.
        let passing = self.pass(parts, &mut body, &client, &mut exchange, &mut adds);
        let passing = AssertUnwindSafe(passing).catch_unwind();
        let passed = match passing.await {
            Ok(Ok(passed)) => passed,
            Ok(Err(error)) => self.refuse(&error, &mut exchange),
            Err(_) => {
                log::error!("a request panicked, request id {}", exchange.request_id());
                self.refuse(&GatewayError::Internal, &mut exchange)
            }
        };
        // Who waits for our 100 has sent nothing that could be read.
        if let Some(unwanted) = body.filter(|_| !waits) {
            unwanted.drain();
        }
        let Passed { status, mut headers, source, deadline, tunnel } = passed;
        if let (Some(route), Some(origin)) = (&exchange.route, &adds.origin)
            && let Some(cors) = &route.cors
        {
            cors.apply(origin, &mut headers);
        }
        for (name, value) in adds.headers {
            headers.insert(name, value);
        }
        if let Some(cookie) = adds.cookie {
            headers.append(header::SET_COOKIE, cookie);
        }
        headers.insert(X_REQUEST_ID, exchange.request_id.clone());
        exchange.status = status.as_u16();
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        let exchange = match tunnel {
            // It is over when the tunnel is.
            Some(tunnel) => {
                tunnel.join(exchange);
                None
            }
            None => Some(exchange),
        };
        Ok(response.map(|()| Answer::new(source, exchange, deadline)))
    }

    fn refuse(&self, error: &GatewayError, exchange: &mut Exchange) -> Passed {
        exchange.code = Some(error.code());
        let seconds = self.gateway.wall().now().div_euclid(1000);
        let (parts, body) = error.render(exchange.request_id(), seconds).into_parts();
        Passed {
            status: parts.status,
            headers: parts.headers,
            source: Source::Whole(Some(body)),
            deadline: None,
            tunnel: None,
        }
    }

    async fn pass(
        self: &Rc<Self>,
        mut parts: Parts,
        body: &mut Option<RequestBody>,
        client: &Client,
        exchange: &mut Exchange,
        adds: &mut Adds,
    ) -> Result<Passed, GatewayError> {
        let table = self.gateway.table();
        if parts.version == Version::HTTP_2 {
            headers::join_cookies(&mut parts.headers);
        }
        // 4. The one form of the path that everything below works with, and its route.
        let keeps_path = self.gateway.access_log().is_some();
        let Found { route, uri } = find(&table, &mut parts, exchange, keeps_path)?;
        // 5. CORS. Preflights are answered here and pay no limit.
        if let Some(cors) = &route.cors {
            if cors::is_preflight(&parts.method, &parts.headers) {
                let headers = cors.preflight(&parts.headers);
                return Ok(Passed {
                    status: StatusCode::NO_CONTENT,
                    headers,
                    source: Source::Empty,
                    deadline: None,
                    tunnel: None,
                });
            }
            let mut origin = HeaderMap::new();
            if let Some(sent) = parts.headers.get(header::ORIGIN) {
                origin.insert(header::ORIGIN, sent.clone());
            }
            adds.origin = Some(origin);
        }
        // 6. Limits: all that apply are paid together, or none.
        let chain = address::chain(
            client.peer,
            &table.options.trusted_proxies,
            parts.headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes),
            parts.headers.get_all(header::FORWARDED).iter().map(HeaderValue::as_bytes),
        );
        let who = Who::of(&self.gateway, &table, &route, &parts.headers).await;
        let caller = who.caller(&route, chain.client);
        let verdict =
            self.gateway.limits().check(self.gateway.clock().now(), &route.limits, &caller, route.options.cost);
        adds.headers.extend(verdict.headers());
        if !verdict.allowed() {
            return Err(GatewayError::RateLimited {
                limit: verdict.tightest().map(|tightest| tightest.name.to_owned()).unwrap_or_default(),
                retry_after: verdict.retry_after(),
            });
        }
        // 7. Authentication.
        who.may(&route.options)?;
        // 8. The body that is announced.
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let announced = length.and_then(|length| length.parse::<u64>().ok());
        if let (Some(most), Some(announced)) = (route.options.max_body, announced)
            && announced > most
        {
            return Err(GatewayError::BodyTooLarge(most));
        }
        if let Some(body) = body {
            body.limit(route.options.max_body);
        }
        let deadline = route.options.total_timeout.map(|total| clock::instant() + total);
        // Behind a body that is still to come nothing can begin.
        let bodiless = body.as_ref().is_none_or(RequestBody::is_empty);
        let on_upgrade = (bodiless && headers::upgrade(&parts.method, parts.version, &parts.headers))
            .then(|| parts.extensions.remove::<OnUpgrade>())
            .flatten();
        let coding = route.options.compress.then(|| Coding::negotiate(&parts.headers)).flatten();
        let routed = Routed { route: route.clone(), parts, client: chain, uri, who, deadline, on_upgrade };
        // 9. Off it goes: canary or not, breaker, target, transformation, answer.
        let mut passed = match &route.to {
            To::Own => self.own(routed, body, client, exchange).await?,
            To::Service(service) => self.proxy(routed, body, service, client, exchange, adds).await?,
        };
        // 10. Compression, and what the route sets.
        if route.options.compress {
            passed = compressed(passed, coding);
        }
        for (name, value) in &route.response_headers {
            passed.headers.insert(name, value.clone());
        }
        Ok(passed)
    }

    /// Hands a request to Tidegate's own endpoints.
    async fn own(
        self: &Rc<Self>,
        mut routed: Routed,
        body: &mut Option<RequestBody>,
        client: &Client,
        exchange: &mut Exchange,
    ) -> Result<Passed, GatewayError> {
        let gone = GatewayError::Internal;
        let body = body.take().unwrap_or(RequestBody::Empty);
        headers::to_own(&mut routed.parts.headers);
        routed.parts.headers.insert(X_REQUEST_ID, exchange.request_id.clone());
        routed.set_headers();
        let path = routed.uri.path_and_query().map_or("/", |path| path.as_str());
        let peer = SocketAddr::new(client.peer, client.port);
        let request = own::request(&routed.parts, path, body, peer).ok_or(gone)?;
        let answering = (self.own)(request);
        let answer = match routed.deadline {
            // Streams of events have no end; their heads come at once.
            Some(deadline) => {
                tokio::time::timeout_at(deadline, answering).await.map_err(|_| GatewayError::UpstreamTimeout)?
            }
            None => answering.await,
        };
        // What the client did wrong with the body is told as everywhere.
        if let Some(trouble) = exchange.progress.trouble.get() {
            return Err(trouble.error(routed.route.options.max_body));
        }
        let (status, headers, body) = own::response(answer);
        Ok(Passed { status, headers, source: Source::Own(body), deadline: None, tunnel: None })
    }

    /// Sends a request to a service, and to what stands in for it.
    async fn proxy(
        self: &Rc<Self>,
        mut routed: Routed,
        body: &mut Option<RequestBody>,
        service: &Service,
        client: &Client,
        exchange: &mut Exchange,
        adds: &mut Adds,
    ) -> Result<Passed, GatewayError> {
        let route = routed.route.clone();
        let stable = service;
        let caller = routed.who.caller(&route, routed.client.client);
        let version::Chosen { service, trial, new_id } =
            version::choose(&route, stable, &routed.parts.headers, &caller);
        adds.cookie = new_id.and_then(|id| Canary::set_cookie(&id, client.secure));
        exchange.canary = !std::ptr::eq(service, stable);
        let hash = version::hash_of(service, routed.client.client, &routed.uri, &routed.parts.headers);
        let stale = routed.route.options.fallback.stale;
        let stale_key = stale.and_then(|_| {
            let target = routed.uri.path_and_query().map_or("/", |target| target.as_str());
            stale::Key::of(&routed.route.options.name, &routed.parts.method, target, &routed.parts.headers)
        });
        // What one version answered does not stand in for the other.
        let stale_key = stale_key.map(|key| if exchange.canary { key.of_canary() } else { key });
        let http2 = service.options().protocol == Protocol::Http2;
        self.transform(&mut routed, http2, client, exchange);
        let progress = exchange.progress.clone();
        let mut outgoing = Outgoing {
            route: &routed.route,
            service,
            method: &routed.parts.method,
            uri: &routed.uri,
            headers: &routed.parts.headers,
            body,
            progress: &progress,
            hash,
            deadline: routed.deadline,
            cause: None,
        };
        let mut sent = outgoing.send(self, exchange).await;
        if let Some(trial) = trial {
            version::judge(trial, sent.as_ref().map(|sent| sent.response.status()));
        }
        // Nobody has to suffer for a new version that is not there.
        if let Err(error) = &sent
            && exchange.canary
            && error.is_unsent()
            && outgoing.body.is_some()
        {
            outgoing.service = stable;
            sent = outgoing.send(self, exchange).await;
        }
        // An answer of before costs nobody anything; another upstream comes next.
        if let (Err(error), Some(key), Some(most)) = (&sent, &stale_key, stale)
            && error.is_of_upstream()
            && let Some((headers, body)) = self.gateway.stale().get(key, self.gateway.clock().now(), most)
        {
            exchange.stood_in = Some(Used::Stale);
            exchange.code = Some(error.code());
            let source = Source::Whole(Some(body));
            return Ok(Passed { status: StatusCode::OK, headers, source, deadline: None, tunnel: None });
        }
        if let (Err(error), Some(other)) = (&sent, &routed.route.fallback)
            && error.is_of_upstream()
            && outgoing.body.is_some()
        {
            exchange.stood_in = Some(Used::Upstream);
            outgoing.service = other;
            sent = outgoing.send(self, exchange).await;
        }
        let Sent { response, mut connection, ticket } = sent?;
        let (parts, incoming) = response.into_parts();
        let (status, mut headers, mut extensions) = (parts.status, parts.headers, parts.extensions);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let target = extensions.remove::<OnUpgrade>();
            let (Some(on_client), Some(on_target)) = (routed.on_upgrade.take(), target) else {
                ticket.finish(false);
                return Err(GatewayError::BadAnswer);
            };
            // Of what the client sent too early a part is gone: the rest is nobody's protocol.
            if client.state.is_refused() {
                ticket.finish(true);
                return Err(GatewayError::BadRequest("bytes were sent before the upgrade was answered"));
            }
            if let Some((connection, ..)) = &mut connection {
                // It belongs to the tunnel now, and its task ends with the handover.
                connection.detach();
            }
            headers::to_client(&mut headers, true, &exchange.request_id);
            // Before the client can know of it.
            client.state.upgrade();
            let tunnel = Some(Tunnel { client: on_client, target: on_target, ticket });
            return Ok(Passed { status, headers, source: Source::Empty, deadline: None, tunnel });
        }
        if !headers::is_readable(&headers) {
            ticket.finish(false);
            return Err(GatewayError::BadAnswer);
        }
        headers::to_client(&mut headers, false, &exchange.request_id);
        let keeping = stale_key.filter(|_| stale::is_keepable(status, &headers));
        let keeping = keeping.map(|key| stale::Keeping::new(key, &headers));
        let source = UpstreamBody::new(incoming, connection, ticket, keeping, self.clone()).settle();
        let deadline = routed.deadline.filter(|_| !matches!(source, Source::Empty));
        let deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Ok(Passed { status, headers, source, deadline, tunnel: None })
    }

    /// Makes the headers of a request those that the upstream is to see.
    fn transform(&self, routed: &mut Routed, to_http2: bool, client: &Client, exchange: &Exchange) {
        let authority = routed.parts.headers.get(header::HOST).cloned();
        let passage = headers::Passage {
            version: routed.parts.version,
            upgrade: routed.on_upgrade.is_some(),
            to_http2,
            chain: &routed.client,
            https: client.secure,
            authority: authority.as_ref().and_then(|host| host.to_str().ok()),
            request_id: &exchange.request_id,
            trace: &exchange.trace,
            unix_seconds: self.gateway.wall().now().div_euclid(1000),
        };
        let headers = &mut routed.parts.headers;
        headers::to_upstream(headers, &passage);
        routed.who.tell(headers);
        // We say 100 ourselves when the body is asked for.
        headers.remove(header::EXPECT);
        routed.set_headers();
    }
}

/// The same answer, compressed if the client takes it and it is worth it.
fn compressed(mut passed: Passed, coding: Option<Coding>) -> Passed {
    let length = match &passed.source {
        Source::Upstream(body) => body.size().exact(),
        _ => return passed,
    };
    if !compress::is_worth_it(passed.status, &passed.headers, length) {
        return passed;
    }
    // Whoever keeps the answer must know that others get another one.
    passed.headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coding) = coding else { return passed };
    if let Source::Upstream(body) = passed.source {
        passed.source = match Compressed::new(body, coding) {
            Ok(compressed) => {
                compress::announce(&mut passed.headers, coding);
                Source::Compressed(Box::new(compressed))
            }
            Err((body, error)) => {
                log::warn!("an answer is not compressed: {error}");
                Source::Upstream(body)
            }
        };
    }
    passed
}
