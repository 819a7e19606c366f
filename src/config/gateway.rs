//! `[gateway]`: what stands behind the gateway and who may pass, as it is written, and what becomes of it.

mod canary;
mod limits;
mod listen;
mod routes;
mod upstreams;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::raw::section;
use super::units::{Bytes, Hidden, Span};
use crate::gateway::options::GatewayOptions;

pub use canary::{Canaries, Canary};
pub use limits::{Limit, Limiter, LimiterRedis};
pub use routes::{Cors, Fallback, Route};
pub use upstreams::{Breaker, Consul, Etcd, Health, Target, Tls, Upstream, Window};

section! {
    /// `[gateway]`
    Gateway {
        /// Address and port of plain HTTP.
        listen: String = String::new(),
        /// Address and port of HTTPS.
        tls_listen: String = String::new(),
        /// Certificates, PEM.
        tls_cert_file: String = String::new(),
        /// Key, PEM.
        tls_key_file: String = String::new(),
        /// Threads; 0 is one a core.
        workers: usize = 0,
        /// Connections a worker.
        max_connections: usize = 10_000,
        /// For heads and pauses.
        client_timeout: Span = Span::secs(15),
        /// For idle connections.
        keep_alive: Span = Span::secs(60),
        /// Longest head.
        max_header_bytes: Bytes = Bytes(32 << 10),
        /// Where requests are logged.
        access_log: String = String::new(),
        /// What limits have in common.
        limiter: Limiter = Limiter::default(),
        /// What canaries have in common.
        canaries: Canaries = Canaries::default(),
        /// Limits, by name.
        limits: BTreeMap<String, Limit> = BTreeMap::new(),
        /// Services, by name.
        upstreams: BTreeMap<String, Upstream> = BTreeMap::new(),
        /// Routes.
        routes: Vec<Route> = Vec::new(),
        /// Hashes of keys, by the names of their holders.
        api_keys: BTreeMap<String, Hidden> = BTreeMap::new(),
    }
}

/// What the rest of the config says that the gateway needs.
pub(super) struct Around<'a> {
    pub data: &'a Path,
    pub server: SocketAddr,
    pub trusted_proxies: &'a [IpNet],
    pub drain_timeout: Duration,
}

/// Checks what the types cannot; every mistake goes to `bad` with its key.
pub(super) fn validate(raw: &Gateway, around: &Around<'_>, bad: &mut impl FnMut(&str, String)) -> GatewayOptions {
    let mut keys = Keys { at: String::from("gateway"), bad };
    let front = listen::front(raw, around, &mut keys);
    let limiter = limits::limiter(&raw.limiter, &mut keys.below("limiter"));
    let limits = limits::limits(&raw.limits, limiter.redis.is_some(), &mut keys.below("limits"));
    let upstreams = upstreams::upstreams(&raw.upstreams, &mut keys.below("upstreams"));
    let api_keys = limits::api_keys(&raw.api_keys, &mut keys.below("api_keys"));
    let known = routes::Known { limits: &limits, upstreams: &raw.upstreams };
    let routes = routes::routes(&raw.routes, &known, &mut keys.below("routes"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    GatewayOptions {
        listen: front.listen,
        tls: front.tls,
        workers: if raw.workers == 0 { cores } else { raw.workers },
        max_connections: raw.max_connections,
        client_timeout: front.client_timeout,
        keep_alive: front.keep_alive,
        max_header_bytes: raw.max_header_bytes.0 as usize,
        drain_timeout: around.drain_timeout,
        trusted_proxies: around.trusted_proxies.to_vec(),
        access_log: front.access_log,
        routes,
        upstreams,
        limits,
        share_canaries: raw.canaries.share && limiter.redis.is_some(),
        limiter,
        api_keys,
        state_dir: around.data.join("gateway"),
    }
}

/// Where mistakes go, from within one section.
struct Keys<'a> {
    at: String,
    bad: &'a mut dyn FnMut(&str, String),
}

impl Keys<'_> {
    /// A section within this one.
    fn below(&mut self, name: &str) -> Keys<'_> {
        Keys { at: format!("{}.{name}", self.at), bad: &mut *self.bad }
    }

    fn bad(&mut self, key: &str, message: impl Into<String>) {
        (self.bad)(&format!("{}.{key}", self.at), message.into());
    }

    /// The section itself is wrong, or lacks something.
    fn bad_section(&mut self, message: impl Into<String>) {
        (self.bad)(&self.at, message.into());
    }

    /// A duration that is not forever.
    fn finite(&mut self, key: &str, span: Span, least: Duration) -> Duration {
        const MOST: Duration = Duration::from_secs(366 * 86_400);
        match span.0 {
            Some(span) if span >= least && span <= MOST => span,
            _ => {
                self.bad(key, format!("it must be at least {}ms and at most 366d", least.as_millis()));
                least
            }
        }
    }

    fn within<T: PartialOrd + Display + Copy>(&mut self, key: &str, value: T, range: RangeInclusive<T>) -> T {
        if !range.contains(&value) {
            self.bad(key, format!("it must be {} to {}", range.start(), range.end()));
            return *range.start();
        }
        value
    }

    /// The text of a file; of none, if none is named.
    fn read(&mut self, key: &str, file: &str) -> Option<String> {
        if file.is_empty() {
            return None;
        }
        std::fs::read_to_string(file).map_err(|error| self.bad(key, format!("cannot be read: {error}"))).ok()
    }

    /// Whether something is called so.
    fn refers(&mut self, key: &str, what: &str, name: &str, known: impl Iterator<Item = impl AsRef<str>>) -> bool {
        let known: Vec<_> = known.collect();
        if known.iter().any(|other| other.as_ref() == name) {
            return true;
        }
        let near = known.iter().map(AsRef::as_ref).min_by_key(|other| strsim::damerau_levenshtein(name, other));
        let near = near.map_or_else(|| format!("there is no {what}"), |near| format!("did you mean `{near}`?"));
        self.bad(key, format!("there is no {what} `{name}`; {near}"));
        false
    }
}

/// Names are labels of metrics, and parts of keys and headers.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// What names are made of, for messages.
const NAMES: &str = "1 to 64 characters of a-z 0-9 _ -";

/// Whether a text is `host:port`.
fn is_address(text: &str) -> bool {
    use crate::gateway::route;
    route::host(text).is_some() && route::port(text).is_some_and(|port| port > 0)
}

/// A section that can be switched off by `false`.
#[derive(Clone, Debug, PartialEq)]
pub struct Switch<T>(pub Option<T>);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Either<T> {
            type Value = Switch<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a table")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch<T>, E> {
                Ok(Switch(on.then(T::default)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(|table| Switch(Some(table)))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}
