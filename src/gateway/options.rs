//! What the gateway is told to do: the validated settings of `[gateway]`. `config` makes them, and nothing here can be wrong
//! any more: names refer to what exists, and numbers are in their ranges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::canary::CanaryOptions;
use crate::redis::RedisOptions;

/// The whole of `[gateway]`.
#[derive(Clone, Debug, Default)]
pub struct GatewayOptions {
    /// Where plain HTTP is taken; `None` together with `tls` `None` is no gateway at all.
    pub listen: Option<SocketAddr>,
    /// Where HTTPS is taken.
    pub tls: Option<TlsOptions>,
    /// Threads.
    pub workers: usize,
    /// Connections in each of them.
    pub max_connections: usize,
    /// How long a client may take to send a request's head, and then may pause within its body or in taking the answer.
    pub client_timeout: Duration,
    /// How long an idle connection of a client is kept open.
    pub keep_alive: Duration,
    /// Longest head of a request, in bytes.
    pub max_header_bytes: usize,
    /// How long a stop waits for what is under way.
    pub drain_timeout: Duration,
    /// Proxies whose word on the client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// Where requests are logged.
    pub access_log: AccessLog,
    /// Routes, in the order in which they are written; see [`RouteOptions`] for which one wins.
    pub routes: Vec<RouteOptions>,
    /// Services behind the gateway, by name.
    pub upstreams: BTreeMap<String, UpstreamOptions>,
    /// Limits, by name.
    pub limits: BTreeMap<String, LimitOptions>,
    /// What all limits have in common.
    pub limiter: LimiterOptions,
    /// Whether instances share where their canaries stand, through the Redis of limits.
    pub share_canaries: bool,
    /// API keys by name: SHA-256 of the key, 32 bytes.
    pub api_keys: BTreeMap<String, [u8; 32]>,
    /// Folder for what is to survive a restart: the last good answers of registries, and where canaries stand.
    pub state_dir: PathBuf,
}

/// Where requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// To standard error.
    Stderr,
    /// To a file, at its end.
    File(PathBuf),
}

/// HTTPS in front.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    /// Where it is taken.
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
}

/// Which requests go where, and how.
///
/// Of the routes that match, the one with the most specific host wins (exact before the longest `*.suffix` before none), then
/// the one with the most literal characters in its path (but for a slash at the end), then a pattern of fixed length before a
/// prefix or a pattern with a rest, then one with a method before one without, then one with more headers, then the first that
/// is written. A route for `GET` is one for `HEAD`.
#[derive(Clone, Debug)]
pub struct RouteOptions {
    /// For metrics, logs and limits; unique.
    pub name: String,
    /// Exact name or `*.suffix`, lower case, without port; `None` is any.
    pub host: Option<String>,
    /// Which paths.
    pub path: PathMatch,
    /// Which methods; empty is any.
    pub methods: Vec<String>,
    /// Headers that must be there (lower-case name) with this value; `None` is any value.
    pub headers: Vec<(String, Option<String>)>,
    /// Where they go.
    pub to: Destination,
    /// What becomes of the path on its way.
    pub rewrite: Rewrite,
    /// Whether the client's `Host` is handed on; else the target's authority.
    pub preserve_host: bool,
    /// To connect to a target.
    pub connect_timeout: Duration,
    /// From the request's last byte to the answer's head.
    pub first_byte_timeout: Duration,
    /// For everything up to the end of the answer; `None` for streams that have no end.
    pub total_timeout: Option<Duration>,
    /// Longest body of a request; `None` is any.
    pub max_body: Option<u64>,
    /// Names of the limits that each request pays.
    pub limits: Vec<String>,
    /// How much a request costs in them.
    pub cost: u32,
    /// Who may.
    pub auth: AuthPolicy,
    /// What an API key, or a token of another issuer, must be allowed; all of it.
    pub scopes: Vec<String>,
    /// Which browsers' pages may, of other origins; `None` leaves CORS to the upstream.
    pub cors: Option<CorsOptions>,
    /// How often a request that failed is tried again.
    pub retries: u32,
    /// Whether text is compressed for clients that take it.
    pub compress: bool,
    /// Headers that are set on the request (lower-case name, value).
    pub request_headers: Vec<(String, String)>,
    /// Headers that are set on the answer.
    pub response_headers: Vec<(String, String)>,
    /// What is answered when the upstream cannot.
    pub fallback: Fallback,
    /// A second version of the upstream, that gets a part of the requests.
    pub canary: Option<CanaryOptions>,
}

/// Which paths a route is for, in their canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// `/a/` matches `/a/` and what is below it, and `/a` exactly; never `/ab`.
    Prefix(String),
    /// Segments: a literal, `{name}` for any one segment, or `{*name}` at the end for all the rest.
    Pattern(String),
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To an upstream, by name.
    Upstream(String),
    /// To Tidegate's own endpoints, in this process.
    Own,
}

/// What becomes of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing.
    Keep,
    /// The matched prefix is replaced by this one.
    Prefix(String),
    /// A pattern with the names of the route's pattern: `/v2/{id}`.
    Pattern(String),
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthPolicy {
    /// Anybody; an API key that is sent must be good all the same.
    Public,
    /// Who sends a good API key.
    ApiKey,
    /// Who sends a good access token, or a key of `tidegate key`, as `Authorization: Bearer`.
    User,
}

/// Cross-origin requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsOptions {
    /// Exact origins, lower case; empty together with `any_origin`.
    pub origins: Vec<String>,
    /// `*`; never together with credentials.
    pub any_origin: bool,
    /// Methods of preflights.
    pub methods: Vec<String>,
    /// Headers of preflights, lower case.
    pub headers: Vec<String>,
    /// Headers a page may read.
    pub expose: Vec<String>,
    /// Whether cookies and authorization may be sent.
    pub credentials: bool,
    /// How long a preflight holds.
    pub max_age: Duration,
}

/// What is answered when an upstream cannot: in this order, what is set of it, and at last an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallback {
    /// A `GET`'s last good answer, up to this old.
    pub stale: Option<Duration>,
    /// Another upstream.
    pub upstream: Option<String>,
}

/// A service behind the gateway.
#[derive(Clone, Debug)]
pub struct UpstreamOptions {
    /// Where it is.
    pub discovery: Discovery,
    /// How a target is chosen.
    pub balance: Balance,
    /// What `consistent_hash` hashes.
    pub hash_on: HashOn,
    /// `consistent_hash`: how much more than its share a target may have in flight, as a factor; 1.25 is a quarter.
    pub hash_load: f64,
    /// Failures within `fail_timeout` after which a target is left alone for `fail_timeout`; 0 is never.
    pub max_fails: u32,
    /// See `max_fails`.
    pub fail_timeout: Duration,
    /// Active checks, if any.
    pub health: Option<HealthOptions>,
    /// How long a target that came back or is new takes up to its full share.
    pub slow_start: Duration,
    /// Share of healthy targets, 0 to 1, below which all are used regardless.
    pub panic_threshold: f64,
    /// The breaker, if any.
    pub breaker: Option<BreakerOptions>,
    /// Retries, at most this part of requests.
    pub retry_budget: f64,
    /// Retries a second that are always allowed.
    pub retry_floor: u32,
    /// Idle connections kept to each target, in each worker.
    pub keep_alive: usize,
    /// How long an idle connection is kept.
    pub keep_alive_timeout: Duration,
    /// Requests under way at once, over all targets; further ones wait.
    pub max_in_flight: usize,
    /// Requests that may wait; further ones are refused.
    pub max_queue: usize,
    /// How long a request may wait.
    pub queue_timeout: Duration,
    /// What is spoken.
    pub protocol: Protocol,
    /// Over TLS, if so.
    pub tls: Option<UpstreamTls>,
}

/// HTTP towards targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, known beforehand (over TLS, by ALPN).
    Http2,
}

/// TLS towards targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Name that the certificate must have; `None` is the target's own.
    pub server_name: Option<String>,
    /// Authorities that are trusted, PEM; `None` are the system's.
    pub ca: Option<Arc<Vec<u8>>>,
}

/// Where targets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// From the config.
    Static(Vec<TargetOptions>),
    /// From Consul's health endpoint, by blocking queries.
    Consul {
        /// `host:port` of an agent.
        address: String,
        /// Name of the service.
        service: String,
        /// Only instances with this tag.
        tag: Option<String>,
        /// ACL token.
        token: Option<Secret>,
    },
    /// From keys below a prefix in etcd, by a watch. A value is `host:port`, or JSON with `address` and `weight`.
    Etcd {
        /// `host:port` of its members.
        endpoints: Vec<String>,
        /// What keys begin with.
        prefix: String,
    },
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("hidden")
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// `host:port`.
    pub address: String,
    /// Its share, 1 to 1000.
    pub weight: u32,
}

/// How a target is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, smoothly by weight.
    RoundRobin,
    /// The one with the fewest requests under way, by weight.
    LeastConn,
    /// The better of two at random, by latency (EWMA) times requests under way.
    P2cEwma,
    /// By a hash, with bounded load.
    ConsistentHash,
}

/// What `consistent_hash` hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The client's address.
    Address,
    /// The canonical path.
    Path,
    /// A header's value (lower-case name); the address where it is missing.
    Header(String),
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthOptions {
    /// Path that is asked with GET; 200 to 399 is healthy.
    pub path: String,
    /// How often.
    pub interval: Duration,
    /// For an answer.
    pub timeout: Duration,
    /// Successes in a row that make healthy.
    pub healthy_after: u32,
    /// Failures in a row that make unhealthy.
    pub unhealthy_after: u32,
}

/// A breaker.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerOptions {
    /// What is looked at.
    pub window: BreakerWindow,
    /// Calls below which nothing is decided.
    pub min_calls: u32,
    /// Part of failed calls, 0 to 1, at which it opens.
    pub failure_rate: f64,
    /// A call that takes longer is slow.
    pub slow_call: Duration,
    /// Part of slow calls, 0 to 1, at which it opens; 1 never does.
    pub slow_rate: f64,
    /// How long it stays open before it is tried again.
    pub open_for: Duration,
    /// Calls that are let through to try.
    pub probes: u32,
}

/// The calls a breaker looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerWindow {
    /// The last so many.
    Count(u32),
    /// Those of the last so long.
    Time(Duration),
}

/// A limit: `limit` a `period`, and `burst` more at once. Over any stretch of time t it lets through at most
/// `burst + limit * t / period` (GCRA: ITU-T I.371, ATM Forum TM 4.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitOptions {
    /// What has a bucket of its own: each combination of these.
    pub by: Vec<LimitKey>,
    /// How many.
    pub limit: u64,
    /// In how long.
    pub period: Duration,
    /// How many at once beyond an even pace; at least 1.
    pub burst: u64,
    /// Counts, and denies nothing.
    pub shadow: bool,
    /// Whether instances with one Redis share it.
    pub shared: bool,
    /// What to do while Redis is away.
    pub store_down: StoreDown,
}

/// A part of what a bucket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKey {
    /// The client's address; IPv6 by /64.
    Address,
    /// The API key; requests without one do not pay this limit.
    ApiKey,
    /// The user; requests without one do not pay this limit.
    User,
    /// The route.
    Route,
}

impl LimitKey {
    /// As it is written in the config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::ApiKey => "api_key",
            Self::User => "user",
            Self::Route => "route",
        }
    }
}

/// What a shared limit does while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreDown {
    /// Each instance lets through its share: the limit by the number of instances last seen.
    LocalShare,
    /// Nothing is limited.
    Open,
    /// Nothing is let through.
    Closed,
}

/// What all limits have in common.
#[derive(Clone, Debug)]
pub struct LimiterOptions {
    /// Memory for buckets, in bytes.
    pub max_bytes: u64,
    /// Redis that shared limits are shared through.
    pub redis: Option<RedisOptions>,
    /// What stands before every key there.
    pub prefix: String,
    /// How often leases are fetched and returned.
    pub interval: Duration,
    /// How long a lease may be spent.
    pub lease: Duration,
}

impl Default for LimiterOptions {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            redis: None,
            prefix: String::new(),
            interval: Duration::from_millis(50),
            lease: Duration::from_secs(1),
        }
    }
}
