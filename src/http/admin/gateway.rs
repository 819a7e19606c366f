//! The gateway of the running server: routes, upstreams, breakers, limits and canaries.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use actix_web::web;
use actix_web::{HttpResponse, delete, get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use crate::gateway::Gateway;
use crate::gateway::breaker::Forced;
use crate::gateway::canary::{Canary, CanarySnapshot, Weight};
use crate::gateway::limit::{Caller, LimitStats, Limits};
use crate::gateway::options::{Destination, LimitKey, PathMatch};
use crate::gateway::table::Route;
use crate::gateway::upstream::{Upstream, UpstreamSnapshot};
use crate::http::State;
use crate::http::cached;
use crate::http::client::Operator;
use crate::http::error::{ApiError, Envelope, ErrorEnvelope};
use crate::identity::is_shown_id;

/// What each of these answers while there is no gateway.
const NONE: ApiError = ApiError::NotFound("there is no gateway; set gateway.listen or gateway.tls_listen");

fn gateway(state: &State) -> Result<&Gateway, ApiError> {
    state.gateway.as_ref().ok_or(NONE)
}

/// What an order is for, once that is noted. The disk takes its time for a note, and the config may change in it: what was replaced
/// would obey to no effect, and what is in its place is not what was meant.
pub(super) fn noted<T>(
    find: impl Fn() -> Result<T, ApiError>,
    is_same: impl FnOnce(&T, &T) -> bool,
    note: impl FnOnce() -> Result<(), ApiError>,
) -> Result<T, ApiError> {
    let meant = find()?;
    note()?;
    find().ok().filter(|now| is_same(&meant, now)).ok_or(ApiError::Conflict(
        "the config was changed meanwhile, so the order was noted and not followed; look at what is there now",
    ))
}

/// A route.
#[derive(Serialize, ToSchema)]
pub struct RouteView {
    name: String,
    /// Only for this host, if for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// A prefix, or a pattern.
    path: String,
    /// Only for these methods, if for some.
    methods: Vec<String>,
    /// Name of the upstream; none for Tidegate's own endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    limits: Vec<String>,
    /// Requests that were answered.
    requests: u64,
    /// Of them, with 500 and above.
    failed: u64,
    /// The canary, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<CanarySnapshot>,
}

impl RouteView {
    fn of(route: &Route) -> Self {
        let options = &route.options;
        let (PathMatch::Prefix(path) | PathMatch::Pattern(path)) = &options.path;
        let (requests, failed) = route.metrics.totals();
        Self {
            name: options.name.clone(),
            host: options.host.clone(),
            path: path.clone(),
            methods: options.methods.clone(),
            upstream: match &options.to {
                Destination::Upstream(name) => Some(name.clone()),
                Destination::Own => None,
            },
            limits: options.limits.clone(),
            requests,
            failed,
            canary: route.canary.as_ref().map(|(canary, _)| canary.snapshot()),
        }
    }
}

/// The routes, in the order of the config.
#[utoipa::path(tag = "admin", operation_id = "admin_routes", security(("operator" = [])), responses(
    (status = 200, body = Envelope<Vec<RouteView>>, example = json!({"success": true, "data": [{"name": "users", "path": "/api/v1/users/", "methods": [], "upstream": "users", "limits": ["per_address"], "requests": 120, "failed": 0}], "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[get("/api/v1/admin/routes")]
pub async fn all_routes(_: Operator, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let table = gateway(&state)?.table();
    let views: Vec<RouteView> = table.routes.iter().map(|route| RouteView::of(route)).collect();
    Ok(cached::fresh(views, state.clock.now()))
}

/// The upstreams, with their targets, counts and breakers.
#[utoipa::path(tag = "admin", operation_id = "admin_upstreams", security(("operator" = [])), responses(
    (status = 200, body = Envelope<Vec<UpstreamSnapshot>>, example = json!({"success": true, "data": [{"name": "users", "requests": 120, "failures": 0, "in_flight": 1, "waiting": 0, "usable": 2,
        "breaker": {"state": "closed"}, "targets": [{"id": 0, "address": "10.0.1.10:8080", "healthy": true, "in_flight": 1}]}], "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[get("/api/v1/admin/upstreams")]
pub async fn all_upstreams(_: Operator, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let table = gateway(&state)?.table();
    let views: Vec<UpstreamSnapshot> = table.services.values().map(|service| service.upstream().snapshot()).collect();
    Ok(cached::fresh(views, state.clock.now()))
}

pub(super) fn upstream(gateway: &Gateway, name: &str) -> Result<Upstream, ApiError> {
    let table = gateway.table();
    let service = table.services.get(name).ok_or(ApiError::NotFound("there is no such upstream"))?;
    Ok(service.upstream().clone())
}

/// What to do with a breaker.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerOrder {
    /// Let nothing through.
    Open,
    /// Let all through, whatever fails.
    Closed,
    /// Decide by itself again, from closed.
    Reset,
}

/// An order to a breaker.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderBreaker {
    state: BreakerOrder,
}

/// Forces an upstream's breaker open or closed, or lets it decide by itself again.
#[utoipa::path(tag = "admin", operation_id = "admin_breaker", params(("name" = String, Path, description = "An upstream", example = "users")),
    request_body(content = OrderBreaker, example = json!({"state": "open"})), security(("operator" = [])), responses(
    (status = 200, body = Envelope<UpstreamSnapshot>, example = json!({"success": true, "data": {"name": "users", "breaker": {"state": "forced_open"}}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such upstream"),
    (status = 409, body = ErrorEnvelope, description = "The config was changed meanwhile"),
))]
#[post("/api/v1/admin/upstreams/{name}/breaker")]
pub async fn force_breaker(
    operator: Operator,
    state: web::Data<State>,
    name: web::Path<String>,
    order: web::Json<OrderBreaker>,
) -> Result<HttpResponse, ApiError> {
    let gateway = gateway(&state)?;
    let upstream = noted(
        || upstream(gateway, &name),
        Upstream::is,
        || operator.note(&state, "breaker.force", &name, json!({ "state": order.state })),
    )?;
    match order.state {
        BreakerOrder::Open => upstream.force(Some(Forced::Open)),
        BreakerOrder::Closed => upstream.force(Some(Forced::Closed)),
        BreakerOrder::Reset => {
            upstream.force(Some(Forced::Closed));
            upstream.force(None);
        }
    }
    Ok(cached::fresh(upstream.snapshot(), state.clock.now()))
}

/// A limit.
#[derive(Serialize, ToSchema)]
pub struct LimitView {
    name: String,
    /// What has a bucket of its own.
    by: Vec<&'static str>,
    limit: u64,
    period_ms: u64,
    burst: u64,
    shadow: bool,
    shared: bool,
    allowed: u64,
    denied: u64,
    would_deny: u64,
    /// Buckets that are not full.
    buckets: u64,
    /// Whether it works without the Redis that it is shared through.
    degraded: bool,
}

impl LimitView {
    fn of(stats: &LimitStats) -> Self {
        let options = &stats.options;
        Self {
            name: stats.name.to_string(),
            by: options.by.iter().map(|key| key.name()).collect(),
            limit: options.limit,
            period_ms: u64::try_from(options.period.as_millis()).unwrap_or(u64::MAX),
            burst: options.burst,
            shadow: options.shadow,
            shared: options.shared,
            allowed: stats.allowed,
            denied: stats.denied,
            would_deny: stats.would_deny,
            buckets: stats.buckets,
            degraded: stats.degraded,
        }
    }
}

/// The limits, and what they did.
#[utoipa::path(tag = "admin", operation_id = "admin_limits", security(("operator" = [])), responses(
    (status = 200, body = Envelope<Vec<LimitView>>, example = json!({"success": true, "data": [{"name": "per_address", "by": ["address"], "limit": 100, "period_ms": 60000, "burst": 10, "shadow": false, "shared": false, "allowed": 120, "denied": 3, "would_deny": 0, "buckets": 2, "degraded": false}], "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
))]
#[get("/api/v1/admin/limits")]
pub async fn all_limits(_: Operator, state: web::Data<State>) -> Result<HttpResponse, ApiError> {
    let stats = gateway(&state)?.limits().stats();
    let views: Vec<LimitView> = stats.limits.iter().map(LimitView::of).collect();
    Ok(cached::fresh(views, state.clock.now()))
}

/// Whose bucket.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    /// A client's address.
    #[param(value_type = Option<String>, example = "192.0.2.1")]
    address: Option<IpAddr>,
    /// The name of an API key.
    api_key: Option<String>,
    /// A user.
    user: Option<String>,
    /// A route.
    route: Option<String>,
}

impl Whose {
    /// Whether it has an address where the limit goes by that.
    fn fits(&self, limits: &Limits, name: &str) -> Result<(), ApiError> {
        let stats = limits.stats();
        let limit = stats.limits.iter().find(|limit| &*limit.name == name);
        let by_address = limit.is_some_and(|limit| limit.options.by.contains(&LimitKey::Address));
        if by_address && self.address.is_none() { Err(NO_LIMIT) } else { Ok(()) }
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            address: self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            api_key: self.api_key.as_deref(),
            user: self.user.as_deref(),
            route: self.route.as_deref().unwrap_or_default(),
        }
    }
}

/// A bucket of a limit.
#[derive(Serialize, ToSchema)]
pub struct BucketView {
    /// Requests that would pass at once.
    remaining: u64,
    burst: u64,
    /// Until it is full.
    full_in_ms: u64,
}

const NO_LIMIT: ApiError = ApiError::NotFound(
    "there is no such limit, or the query leaves out what it goes by: address, api_key, user, route",
);

/// How a bucket stands.
#[utoipa::path(tag = "admin", operation_id = "admin_bucket", params(("name" = String, Path, description = "A limit", example = "per_address"), Whose), security(("operator" = [])), responses(
    (status = 200, body = Envelope<BucketView>, example = json!({"success": true, "data": {"remaining": 4, "burst": 10, "full_in_ms": 3600}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such limit"),
))]
#[get("/api/v1/admin/limits/{name}/bucket")]
pub async fn bucket(
    _: Operator,
    state: web::Data<State>,
    name: web::Path<String>,
    whose: web::Query<Whose>,
) -> Result<HttpResponse, ApiError> {
    let limits = gateway(&state)?.limits();
    whose.fits(limits, &name)?;
    let found = limits.look_up(&name, &whose.caller()).ok_or(NO_LIMIT)?;
    let full_in_ms = u64::try_from(found.full_in.as_millis()).unwrap_or(u64::MAX);
    Ok(cached::fresh(BucketView { remaining: found.remaining, burst: found.burst, full_in_ms }, state.clock.now()))
}

/// Whether a bucket was forgotten.
#[derive(Serialize, ToSchema)]
pub struct Forgotten {
    /// False when there was nothing in it.
    reset: bool,
}

/// Forgets what was spent in a bucket.
#[utoipa::path(tag = "admin", operation_id = "admin_bucket_reset", params(("name" = String, Path, description = "A limit", example = "per_address"), Whose), security(("operator" = [])), responses(
    (status = 200, body = Envelope<Forgotten>, example = json!({"success": true, "data": {"reset": true}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such limit"),
    (status = 409, body = ErrorEnvelope, description = "The config was changed meanwhile"),
))]
#[delete("/api/v1/admin/limits/{name}/bucket")]
pub async fn reset_bucket(
    operator: Operator,
    state: web::Data<State>,
    name: web::Path<String>,
    whose: web::Query<Whose>,
) -> Result<HttpResponse, ApiError> {
    let gateway = gateway(&state)?;
    let limits = gateway.limits();
    let find = || limits.look_up(&name, &whose.caller()).map(drop).ok_or(NO_LIMIT);
    find()?;
    // Whose, but for addresses, and for what may be a key or a token in place of a name.
    let (table, api_key) = (gateway.table(), whose.api_key.as_deref());
    let known = |name: &&str| is_shown_id(name) || table.api_keys.values().any(|held| **held == **name);
    let route = whose.route.as_deref().filter(|name| table.routes.iter().any(|route| route.options.name == **name));
    let by: Vec<&str> = [
        whose.address.map(|_| "address"),
        whose.api_key.as_ref().map(|_| "api_key"),
        whose.user.as_ref().map(|_| "user"),
        whose.route.as_ref().map(|_| "route"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let detail = json!({ "by": by, "api_key": api_key.filter(known), "route": route });
    noted(find, |(), ()| true, || operator.note(&state, "limit.reset", &name, detail))?;
    Ok(cached::fresh(Forgotten { reset: limits.reset(&name, &whose.caller()) }, state.clock.now()))
}

/// How long an order waits for the disk.
const SAVED: Duration = Duration::from_secs(1);

/// What to do with a canary.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CanaryOrder {
    /// To the next step now, without waiting for what it waits for, and on by itself from there.
    Step,
    /// All to it, whatever it does: its end.
    Promote,
    /// Nothing to it, also of those who ask for it, until it is resumed.
    Abort,
    /// On by itself: from where it is held, or from the first step if it was promoted or aborted.
    Resume,
    /// So many percent, which it keeps, without steps, unless it does badly.
    Weight(f64),
}

pub(super) fn canary(gateway: &Gateway, route: &str) -> Result<Canary, ApiError> {
    gateway.canary(route).ok_or(ApiError::NotFound("there is no route with a canary of this name"))
}

/// Takes a route's canary to its next step, promotes, aborts or resumes it, or gives it a weight.
#[utoipa::path(tag = "admin", operation_id = "admin_canary", params(("route" = String, Path, description = "A route with a canary", example = "users")),
    request_body(content = CanaryOrder, example = json!({"weight": 12.5})), security(("operator" = [])), responses(
    (status = 200, body = Envelope<CanarySnapshot>, example = json!({"success": true, "data": {"upstream": "users_next", "phase": "held", "weight": 12.5, "next": null, "since": 1795420800123_i64, "reason": "ordered", "waits": null,
        "stable": {"requests": 9000, "failures": 90, "window_requests": 0, "window_failures": 0, "window_p99_us": null}, "canary": {"requests": 1000, "failures": 11, "window_requests": 0, "window_failures": 0, "window_p99_us": null},
        "transitions": 3, "aborts": 0, "last": [{"at": 1795420800123_i64, "from": 10.0, "to": 12.5, "phase": "held", "reason": "ordered", "here": true}], "saved": true, "shared": true, "restarts": 0}, "timestamp": 1795420800})),
    (status = 401, body = ErrorEnvelope, description = "Not the operator"),
    (status = 404, body = ErrorEnvelope, description = "There is no such canary"),
    (status = 409, body = ErrorEnvelope, description = "The config was changed meanwhile, or there is no next step"),
))]
#[post("/api/v1/admin/routes/{route}/canary")]
pub async fn steer_canary(
    operator: Operator,
    state: web::Data<State>,
    route: web::Path<String>,
    order: web::Json<CanaryOrder>,
) -> Result<HttpResponse, ApiError> {
    let gateway = gateway(&state)?;
    let find = || canary(gateway, &route);
    find()?;
    let weight = match &*order {
        CanaryOrder::Weight(percent) => Some(
            Weight::percent(*percent)
                .ok_or_else(|| ApiError::BadRequest(String::from("weight must be 0 to 100, in steps of 0.01")))?,
        ),
        _ => None,
    };
    let canary = noted(find, Canary::is, || operator.note(&state, "canary", &route, json!(&*order)))?;
    match (&*order, weight) {
        (CanaryOrder::Step, _) => {
            if !canary.step() {
                return Err(ApiError::Conflict(
                    "there is no step after where it stands: promote gives it all, resume begins again one that has ended",
                ));
            }
        }
        (CanaryOrder::Promote, _) => canary.promote(),
        (CanaryOrder::Abort, _) => canary.abort(),
        (CanaryOrder::Resume, _) => canary.resume(),
        (CanaryOrder::Weight(_), Some(weight)) => canary.set_weight(weight),
        (CanaryOrder::Weight(_), None) => {}
    }
    // A disk that is full must not keep anybody from it: the answer says whether it was saved.
    canary.saved(SAVED).await;
    Ok(cached::fresh(canary.snapshot(), state.clock.now()))
}
