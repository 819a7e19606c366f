//! What the options are made into: routes with all they need at hand, and services that keep their state when the options
//! change. Requests read a table that is swapped as a whole.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::ArbiterHandle;
use arc_swap::ArcSwapOption;
use hyper::header::{HeaderName, HeaderValue};

use super::canary::{Canaries, Canary, CanaryKey, CanaryOptions};
use super::check::Checker;
use super::connect::{ConnectError, Connector};
use super::cors::Cors;
use super::discovery::Watcher;
use super::limit::{LimitSet, Limits};
use super::metrics::{Metrics, RouteMetrics};
use super::options::{AuthPolicy, Destination, GatewayOptions, LimitKey, RouteOptions, TargetOptions, UpstreamOptions};
use super::route::Router;
use super::upstream::Upstream;
use crate::clock::Monotonic;

/// Routes and services, as of one moment.
#[derive(Debug)]
pub struct Table {
    /// What it was made of.
    pub options: Arc<GatewayOptions>,
    /// Finds routes by their place in `routes`.
    pub router: Router,
    /// The routes, in the order of the options.
    pub routes: Vec<Arc<Route>>,
    /// The services, by name.
    pub services: BTreeMap<String, Service>,
    /// Names of API keys, by SHA-256 of the key.
    pub api_keys: HashMap<[u8; 32], Arc<str>>,
}

/// A route, with all that a request along it needs.
#[derive(Debug)]
pub struct Route {
    /// Its settings.
    pub options: RouteOptions,
    /// Where it leads.
    pub to: To,
    /// What stands in for that.
    pub fallback: Option<Service>,
    /// Another version of it, and who decides which requests it gets.
    pub canary: Option<(Canary, Service)>,
    /// The limits that a request pays.
    pub limits: LimitSet,
    /// Whether it is of use to know who the user is.
    pub wants_user: bool,
    /// Whose pages may.
    pub cors: Option<Cors>,
    /// Headers that are set on requests.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are set on answers.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// What happened along it.
    pub metrics: RouteMetrics,
}

/// Where a route leads.
#[derive(Clone, Debug)]
pub enum To {
    /// To Tidegate's own endpoints.
    Own,
    /// To a service.
    Service(Service),
}

/// A service behind the gateway.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    name: Arc<str>,
    options: UpstreamOptions,
    upstream: Upstream,
    connector: Connector,
    /// Held, so that they go on for as long as the service is there.
    checks: Arc<ArcSwapOption<Checker>>,
    watcher: Arc<Watcher>,
    /// The number of the watcher whose word counts.
    watching: Arc<AtomicU64>,
}

/// What the owners of all services run on.
#[derive(Clone, Debug)]
pub struct Owners {
    /// Their thread.
    pub arbiter: ArbiterHandle,
    /// Their time.
    pub clock: Monotonic,
    /// Who keeps where canaries stand.
    pub canaries: Canaries,
}

/// What cannot be started of what the options ask for.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificates of an upstream cannot be used.
    #[error("gateway.upstreams.{0}: {1}")]
    Connector(String, ConnectError),
    /// There is no thread for an owner.
    #[error("the gateway cannot start: {0}")]
    Thread(#[from] std::io::Error),
}

impl Service {
    /// A service, that goes on as it was where it was there before.
    fn start(
        name: &str,
        options: &UpstreamOptions,
        connector: Connector,
        state_dir: &Path,
        owners: &Owners,
        before: Option<&Self>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let spoken = |options: &UpstreamOptions| (options.protocol, options.tls.clone());
        // Connections of before are of use if they still speak the same.
        let same = before.filter(|before| spoken(before.options()) == spoken(options));
        let upstream = match before {
            Some(before) => {
                before.upstream().apply(options);
                before.upstream().clone()
            }
            None => Upstream::start_on(owners.arbiter.clone(), name, options, owners.clock.clone()),
        };
        let checks = before.map_or_else(Default::default, |before| before.0.checks.clone());
        let watching = before.map_or_else(Default::default, |before| before.0.watching.clone());
        if same.is_none_or(|same| same.options().health != options.health) {
            let told = upstream.clone();
            let checker = options.health.as_ref().map(|health| {
                let report = move |address: &str, healthy| told.set_health(address, healthy);
                let (clock, arbiter) = (owners.clock.clone(), owners.arbiter.clone());
                let checker = Checker::start(health, connector.clone(), clock, arbiter, report);
                checker.set(upstream.targets().iter().map(|target| target.address()));
                Arc::new(checker)
            });
            checks.store(checker);
        }
        let watcher = match before.filter(|before| before.options().discovery == options.discovery) {
            Some(before) => before.0.watcher.clone(),
            None => {
                let (told, checked, current) = (upstream.clone(), checks.clone(), watching.clone());
                let number = current.fetch_add(1, Ordering::AcqRel) + 1;
                let changed = move |targets: &[TargetOptions]| {
                    // One of before may live on in requests that are under way.
                    if current.load(Ordering::Acquire) != number {
                        return;
                    }
                    told.update_targets(targets);
                    if let Some(checker) = &*checked.load() {
                        checker.set(targets.iter().map(|target| target.address.as_str()));
                    }
                };
                let (clock, arbiter) = (owners.clock.clone(), owners.arbiter.clone());
                Arc::new(Watcher::start(name, &options.discovery, state_dir, clock, arbiter, changed))
            }
        };
        let id = same.map_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed), Service::id);
        Self(Arc::new(Inner {
            id,
            name: name.into(),
            options: options.clone(),
            upstream,
            connector,
            checks,
            watcher,
            watching,
        }))
    }

    /// Its number, unique in the process.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Its settings.
    pub fn options(&self) -> &UpstreamOptions {
        &self.0.options
    }

    /// Who chooses targets, and whether any is to be asked.
    pub fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    /// Who connects to targets.
    pub fn connector(&self) -> &Connector {
        &self.0.connector
    }

    /// Who asks targets how they are, if anybody does.
    pub fn checker(&self) -> Option<Arc<Checker>> {
        self.0.checks.load_full()
    }

    /// Who knows the targets.
    pub fn watcher(&self) -> &Watcher {
        &self.0.watcher
    }
}

impl Table {
    /// Makes all that the options name. What was there before goes on as it was: health, breakers, connections, canaries.
    ///
    /// # Errors
    /// When a service cannot be started; then nothing has changed.
    pub fn new(
        options: GatewayOptions,
        limits: &Limits,
        metrics: &Metrics,
        owners: &Owners,
        before: Option<&Self>,
    ) -> Result<Self, StartError> {
        let mut connectors = Vec::new();
        for (name, upstream) in &options.upstreams {
            let connector = Connector::new(upstream).map_err(|error| StartError::Connector(name.clone(), error))?;
            connectors.push((name, upstream, connector));
        }
        // Nothing fails from here on, so that what is changed here never has to be taken back.
        limits.apply(&options.limits);
        let services: BTreeMap<String, Service> = connectors
            .into_iter()
            .map(|(name, upstream, connector)| {
                let before = before.and_then(|before| before.services.get(name));
                let service = Service::start(name, upstream, connector, &options.state_dir, owners, before);
                (name.clone(), service)
            })
            .collect();
        let find = |name: &String| services.get(name).cloned();
        let routes = options.routes.iter().filter_map(|route| {
            let to = match &route.to {
                Destination::Own => To::Own,
                // `config` lets no name through that is none.
                Destination::Upstream(name) => To::Service(find(name)?),
            };
            let limit_set = limits.resolve(&route.limits);
            Some(Arc::new(Route {
                to,
                fallback: route.fallback.upstream.as_ref().and_then(find),
                canary: canary(route, owners, before).and_then(|canary| {
                    let service = find(&canary.options().upstream)?;
                    Some((canary, service))
                }),
                wants_user: wants_user(route, &limit_set),
                limits: limit_set,
                cors: route.cors.as_ref().map(Cors::new),
                request_headers: parsed(&route.request_headers),
                response_headers: parsed(&route.response_headers),
                metrics: metrics.route(&route.name),
                options: route.clone(),
            }))
        });
        let routes: Vec<Arc<Route>> = routes.collect();
        let canaries = routes.iter().filter_map(|route| Some(route.canary.as_ref()?.0.clone()));
        owners.canaries.set(canaries.collect());
        let api_keys = options.api_keys.iter().map(|(name, hash)| (*hash, Arc::from(name.as_str()))).collect();
        Ok(Self { router: Router::new(&options.routes), routes, services, api_keys, options: Arc::new(options) })
    }
}

/// The canary of a route: as it was, where it has the same settings and is compared with the same upstream.
fn canary(route: &RouteOptions, owners: &Owners, before: Option<&Table>) -> Option<Canary> {
    let options = route.canary.as_ref()?;
    let before = before.and_then(|before| before.routes.iter().find(|other| other.options.name == route.name));
    let same = before.filter(|before| before.options.to == route.to).and_then(|before| before.canary.as_ref());
    let same = same.map(|(canary, _)| canary).filter(|canary| canary.options() == options);
    let new = || owners.canaries.begin(&route.name, &route.to, options);
    Some(same.cloned().unwrap_or_else(new))
}

fn parsed(headers: &[(String, String)]) -> Vec<(HeaderName, HeaderValue)> {
    let parse = |(name, value): &(String, String)| Some((name.parse().ok()?, value.parse().ok()?));
    headers.iter().filter_map(parse).collect()
}

/// Whether anything along a route depends on the user.
fn wants_user(route: &RouteOptions, limits: &LimitSet) -> bool {
    let by_user = |canary: &CanaryOptions| canary.by == CanaryKey::User;
    route.auth == AuthPolicy::User || limits.goes_by(LimitKey::User) || route.canary.as_ref().is_some_and(by_user)
}
