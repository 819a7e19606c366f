//! The gateway's handle: what every thread of it, and whoever steers and watches it, works with.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::access_log::AccessLog;
use super::canary::{Canaries, Canary};
use super::identify::Identify;
use super::limit::Limits;
use super::metrics::{Metrics, RouteMetrics};
use super::options::GatewayOptions;
use super::stale::StaleStore;
use super::table::{Owners, Route, StartError, Table};
use crate::clock::{Clock, Monotonic};

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    table: ArcSwap<Table>,
    limits: Limits,
    identify: Option<Arc<dyn Identify>>,
    metrics: Metrics,
    owners: Owners,
    /// Held by who changes the options.
    changing: Mutex<()>,
    stale: StaleStore,
    unrouted: RouteMetrics,
    access_log: Option<AccessLog>,
    clock: Monotonic,
    wall: Clock,
    draining: watch::Sender<bool>,
    arbiter: actix::Arbiter,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gateway")
    }
}

impl Gateway {
    /// Starts the owners of all that the options name. Nothing is listened to yet.
    ///
    /// # Errors
    /// With what cannot be started.
    pub fn start(
        options: GatewayOptions,
        registry: &prometheus::Registry,
        identify: Option<Arc<dyn Identify>>,
        clock: Monotonic,
        wall: Clock,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new(registry).map_err(std::io::Error::other)?;
        let limits = Limits::start(&options.limits, &options.limiter, clock.clone())?;
        let access_log = AccessLog::start(&options.access_log)?;
        let arbiter = actix::Arbiter::new();
        let canaries = Canaries::start(&options, clock.clone(), wall.clone(), arbiter.handle())?;
        let owners = Owners { arbiter: arbiter.handle(), clock: clock.clone(), canaries };
        let table = Table::new(options, &limits, &metrics, &owners, None)?;
        Ok(Self(Arc::new(Inner {
            table: ArcSwap::from_pointee(table),
            limits,
            identify,
            metrics: metrics.clone(),
            owners,
            changing: Mutex::new(()),
            stale: StaleStore::default(),
            unrouted: metrics.route("(none)"),
            access_log,
            clock,
            wall,
            draining: watch::Sender::new(false),
            arbiter,
        })))
    }

    /// Other routes, upstreams, limits and keys from now on: requests under way go on as they began, and what stays by its name
    /// keeps its state. Sockets, threads, the log and the limiter's store are those of the start.
    ///
    /// # Errors
    /// When a service cannot be started; then nothing has changed.
    pub fn apply(&self, options: GatewayOptions) -> Result<(), StartError> {
        let inner = &self.0;
        let _one_at_a_time = inner.changing.lock();
        let before = inner.table.load_full();
        let next = Table::new(options, &inner.limits, &inner.metrics, &inner.owners, Some(&before))?;
        inner.table.store(Arc::new(next));
        Ok(())
    }

    /// Whether both are handles of the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Routes and services as of now.
    pub fn table(&self) -> Arc<Table> {
        self.0.table.load_full()
    }

    /// The options as of now.
    pub fn options(&self) -> Arc<GatewayOptions> {
        self.0.table.load().options.clone()
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Who knows accounts, if anybody does.
    pub(super) fn identify(&self) -> Option<&dyn Identify> {
        self.0.identify.as_deref()
    }

    /// Where requests are logged, if anywhere.
    pub fn access_log(&self) -> Option<&AccessLog> {
        self.0.access_log.as_ref()
    }

    /// The canary of a route, by the route's name.
    pub fn canary(&self, route: &str) -> Option<Canary> {
        let table = self.0.table.load();
        let route = table.routes.iter().find(|other| other.options.name == route)?;
        route.canary.as_ref().map(|(canary, _)| canary.clone())
    }

    /// How canaries are kept and shared.
    pub fn canaries(&self) -> &Canaries {
        &self.0.owners.canaries
    }

    /// Last good answers.
    pub(super) fn stale(&self) -> &StaleStore {
        &self.0.stale
    }

    /// Of each route of now: its name, requests so far, and those of them that failed (500 and above, or no answer before the
    /// client left).
    pub fn totals(&self) -> Vec<(String, u64, u64)> {
        let table = self.0.table.load();
        let one = |route: &Arc<Route>| {
            let ((requests, failed), cancelled) = (route.metrics.totals(), route.metrics.cancelled());
            (route.options.name.clone(), requests + cancelled, failed + cancelled)
        };
        table.routes.iter().map(one).collect()
    }

    /// Time that only goes forward.
    pub fn clock(&self) -> &Monotonic {
        &self.0.clock
    }

    /// The time of day.
    pub fn wall(&self) -> &Clock {
        &self.0.wall
    }

    /// Series of requests that no route was found for.
    pub fn unrouted(&self) -> &RouteMetrics {
        &self.0.unrouted
    }

    /// Whether connections are to end when what is under way on them is answered.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.0.draining.subscribe()
    }

    /// Ends connections when what is under way on them is answered.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Ends its owners: where canaries stand and what is left of the log is written, leases of limits go back.
    pub async fn stop(&self, deadline: Duration) {
        self.0.owners.canaries.stop(deadline).await;
        self.0.limits.stop(deadline).await;
        if let Some(log) = self.0.access_log.clone() {
            let _ = tokio::task::spawn_blocking(move || log.stop(deadline)).await;
        }
        self.0.arbiter.stop();
    }

    /// Whose an API key of the config is. Only its hash is compared, so that the time it takes says nothing of the keys.
    pub fn api_key(&self, table: &Table, sent: &HeaderValue) -> Option<Arc<str>> {
        let hash: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        table.api_keys.get(&hash).cloned()
    }
}
