//! One request and its answer, as the log and the metrics see them. It is over when the answer's body is dropped, whether that
//! came to its end or not.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderValue;

use super::body::Progress;
use super::connection::ConnectionState;
use crate::clock::{Monotonic, Nanos, UnixMillis};
use crate::gateway::Gateway;
use crate::gateway::access_log::{Entry, Used};
use crate::gateway::metrics::Observed;
use crate::gateway::table::Route;
use crate::gateway::trace::TraceContext;

/// What is known of a request.
pub struct Exchange {
    gateway: Gateway,
    state: ConnectionState,
    begun: Nanos,
    /// When it came, by the wall's clock; 0 unless requests are logged.
    at: UnixMillis,
    /// Its method.
    pub method: Method,
    /// Its id.
    pub request_id: HeaderValue,
    /// The trace it is part of.
    pub trace: TraceContext,
    /// Its canonical path, if requests are logged.
    pub path: Option<String>,
    /// The route it took.
    pub route: Option<Arc<Route>>,
    /// The upstream that was asked last.
    pub upstream: Option<Arc<str>>,
    /// That one's target.
    pub target: Option<u32>,
    /// Whether it went to the route's canary.
    pub canary: bool,
    /// How far its body got.
    pub progress: Rc<Progress>,
    /// Of the answer's body.
    pub bytes_out: u64,
    /// Of the answer; 0 before.
    pub status: u16,
    /// How often it was sent again.
    pub retries: u32,
    /// What stood in for the upstream.
    pub stood_in: Option<Used>,
    /// Our error's code.
    pub code: Option<&'static str>,
    /// Why the last target could not be reached.
    pub cause: Option<&'static str>,
    /// Why the answer broke off.
    pub cut: Option<&'static str>,
    /// Whether the answer came to its end.
    pub whole: bool,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Of a request that came now.
    pub fn begin(
        gateway: Gateway,
        state: ConnectionState,
        method: Method,
        request_id: HeaderValue,
        trace: TraceContext,
    ) -> Box<Self> {
        state.begin();
        Box::new(Self {
            begun: gateway.clock().now(),
            at: if gateway.access_log().is_some() { gateway.wall().now() } else { 0 },
            gateway,
            state,
            method,
            request_id,
            trace,
            path: None,
            route: None,
            upstream: None,
            target: None,
            canary: false,
            progress: Rc::default(),
            bytes_out: 0,
            status: 0,
            retries: 0,
            stood_in: None,
            code: None,
            cause: None,
            cut: None,
            whole: false,
        })
    }

    /// Whose connection it came by, and what the time is there.
    pub fn connection(&self) -> (&ConnectionState, &Monotonic) {
        (&self.state, self.gateway.clock())
    }

    /// How long a client may take for what it has to do.
    pub fn client_timeout(&self) -> Duration {
        self.gateway.options().client_timeout
    }

    /// Its id, as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }
}

/// A request that was none, and was answered 400 by the parser.
pub fn malformed(gateway: &Gateway) {
    let observed =
        Observed { status: 400, took: Duration::ZERO, bytes_in: 0, bytes_out: 0, retries: 0, stood_in: None };
    gateway.unrouted().observe(&observed);
    if let Some(log) = gateway.access_log() {
        log.log(&Entry { at: gateway.wall().now(), status: 400, error: Some("malformed_request"), ..Entry::default() });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = self.gateway.clock().now();
        self.state.end(now);
        let observed = Observed {
            status: self.status,
            took: super::send::since(self.begun, now),
            bytes_in: self.progress.bytes.get(),
            bytes_out: self.bytes_out,
            retries: self.retries,
            stood_in: self.stood_in,
        };
        match &self.route {
            Some(route) => route.metrics.observe(&observed),
            None => self.gateway.unrouted().observe(&observed),
        }
        if let Some(log) = self.gateway.access_log() {
            log.log(&Entry {
                at: self.at,
                request_id: self.request_id(),
                trace_id: &self.trace.trace_id_text(),
                method: self.method.as_str(),
                route: self.route.as_ref().map(|route| route.options.name.as_str()),
                path: self.path.as_deref().unwrap_or_default(),
                status: observed.status,
                bytes_in: observed.bytes_in,
                bytes_out: observed.bytes_out,
                duration_us: u64::try_from(observed.took.as_micros()).unwrap_or(u64::MAX),
                upstream: self.upstream.as_deref(),
                target: self.target.map(|target| target as usize),
                canary: self.canary,
                retries: self.retries,
                fallback: self.stood_in,
                error: self.cut.or(self.code),
                cause: self.cause,
            });
        }
    }
}
