//! `[gateway.upstreams.NAME]`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::{Keys, NAMES, Switch, is_address, is_name};
use crate::config::raw::section;
use crate::config::units::Span;
use crate::gateway::options::{
    Balance, BreakerOptions, BreakerWindow, Discovery, HashOn, HealthOptions, Protocol, Secret, TargetOptions,
    UpstreamOptions, UpstreamTls,
};
use crate::gateway::{path, route};

section! {
    /// `[gateway.upstreams.NAME]`
    Upstream {
        /// Where it is.
        targets: Vec<Target> = Vec::new(),
        /// Who knows where it is.
        consul: Option<Consul> = None,
        /// Who knows where it is.
        etcd: Option<Etcd> = None,
        /// How a target is chosen.
        balance: Balance = Balance::RoundRobin,
        /// For `consistent_hash`.
        hash_on: String = String::new(),
        /// For `consistent_hash`.
        hash_load: f64 = 1.25,
        /// Failures after which a target is left alone.
        max_fails: u32 = 3,
        /// How long.
        fail_timeout: Span = Span::secs(30),
        /// Active checks.
        health: Switch<Health> = Switch(None),
        /// For targets that came back.
        slow_start: Span = Span::secs(0),
        /// Share of healthy ones below which all are used.
        panic_threshold: f64 = 0.5,
        /// When it is not asked any more.
        breaker: Switch<Breaker> = Switch(Some(Breaker::default())),
        /// Part of requests.
        retry_budget: f64 = 0.2,
        /// A second.
        retry_floor: u32 = 10,
        /// Idle connections a target and worker.
        keep_alive: usize = 32,
        /// For idle connections.
        keep_alive_timeout: Span = Span::secs(60),
        /// At once.
        max_in_flight: usize = 1024,
        /// Waiting.
        max_queue: usize = 1024,
        /// For those that wait.
        queue_timeout: Span = Span::secs(1),
        /// What is spoken.
        protocol: Protocol = Protocol::Http1,
        /// Whether over TLS.
        tls: Switch<Tls> = Switch(None),
    }
}

section! {
    /// `[gateway.upstreams.NAME.consul]`
    Consul {
        /// Of an agent.
        address: String = String::from("127.0.0.1:8500"),
        /// Its name there; has to be set.
        service: String = String::new(),
        /// Of instances.
        tag: String = String::new(),
        /// File with the token.
        token_file: String = String::new(),
    }
}

section! {
    /// `[gateway.upstreams.NAME.etcd]`
    Etcd {
        /// Of its members.
        endpoints: Vec<String> = vec![String::from("127.0.0.1:2379")],
        /// Of keys; has to be set.
        prefix: String = String::new(),
    }
}

section! {
    /// `[gateway.upstreams.NAME.health]`
    Health {
        /// What is asked for.
        path: String = String::from("/health"),
        /// How often.
        interval: Span = Span::secs(5),
        /// For an answer.
        timeout: Span = Span::secs(2),
        /// In a row.
        healthy_after: u32 = 2,
        /// In a row.
        unhealthy_after: u32 = 3,
    }
}

section! {
    /// `[gateway.upstreams.NAME.breaker]`
    Breaker {
        /// What is looked at.
        window: Window = Window(BreakerWindow::Time(Duration::from_secs(10))),
        /// Below which nothing is decided.
        min_calls: u32 = 20,
        /// Of failed ones.
        failure_rate: f64 = 0.5,
        /// What is slow.
        slow_call: Span = Span::secs(5),
        /// Of slow ones.
        slow_rate: f64 = 1.0,
        /// Until it is tried again.
        open_for: Span = Span::secs(10),
        /// To try.
        probes: u32 = 5,
    }
}

section! {
    /// `[gateway.upstreams.NAME.tls]`
    Tls {
        /// In the certificate.
        server_name: String = String::new(),
        /// Authorities, PEM.
        ca_file: String = String::new(),
    }
}

/// One of `targets`: `"10.0.1.10:8080"`, or that with a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Its share.
    pub weight: u32,
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            address: String,
            #[serde(default = "one")]
            weight: u32,
        }
        fn one() -> u32 {
            1
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address like \"10.0.1.10:8080\", or { address = \"10.0.1.10:8080\", weight = 2 }")
            }

            fn visit_str<E: de::Error>(self, address: &str) -> Result<Target, E> {
                Ok(Target { address: address.to_owned(), weight: 1 })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Target, A::Error> {
                let Table { address, weight } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Target { address, weight })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// The calls a breaker looks at: `"10s"`, or so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(pub BreakerWindow);

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Window;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like \"10s\", or a number of calls")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Window, E> {
                if let Ok(count) = text.parse() {
                    return Ok(Window(BreakerWindow::Count(count)));
                }
                match Span::parse(text).map_err(E::custom)?.0 {
                    Some(time) => Ok(Window(BreakerWindow::Time(time))),
                    None => Err(E::custom("a breaker cannot look at all calls forever")),
                }
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Window, E> {
                let count = u32::try_from(count).map_err(|_| E::custom("it is no number of calls"))?;
                Ok(Window(BreakerWindow::Count(count)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

pub(super) fn upstreams(raw: &BTreeMap<String, Upstream>, keys: &mut Keys<'_>) -> BTreeMap<String, UpstreamOptions> {
    let mut found = BTreeMap::new();
    for (name, raw) in raw {
        let mut keys = keys.below(name);
        if !is_name(name) {
            keys.bad_section(format!("a name is {NAMES}"));
        }
        found.insert(name.clone(), upstream(raw, &mut keys));
    }
    found
}

fn upstream(raw: &Upstream, keys: &mut Keys<'_>) -> UpstreamOptions {
    const MILLI: Duration = Duration::from_millis(1);
    UpstreamOptions {
        discovery: discovery(raw, keys),
        balance: raw.balance,
        hash_on: hash_on(raw, keys),
        hash_load: keys.within("hash_load", raw.hash_load, 1.0..=100.0),
        max_fails: keys.within("max_fails", raw.max_fails, 0..=1_000_000),
        fail_timeout: keys.finite("fail_timeout", raw.fail_timeout, Duration::from_millis(100)),
        health: raw.health.0.as_ref().map(|raw| health(raw, &mut keys.below("health"))),
        slow_start: keys.finite("slow_start", raw.slow_start, Duration::ZERO),
        panic_threshold: keys.within("panic_threshold", raw.panic_threshold, 0.0..=1.0),
        breaker: raw.breaker.0.as_ref().map(|raw| breaker(raw, &mut keys.below("breaker"))),
        retry_budget: keys.within("retry_budget", raw.retry_budget, 0.0..=1.0),
        retry_floor: keys.within("retry_floor", raw.retry_floor, 0..=1_000_000),
        keep_alive: keys.within("keep_alive", raw.keep_alive, 0..=100_000),
        keep_alive_timeout: keys.finite("keep_alive_timeout", raw.keep_alive_timeout, MILLI),
        max_in_flight: keys.within("max_in_flight", raw.max_in_flight, 1..=10_000_000),
        max_queue: keys.within("max_queue", raw.max_queue, 0..=10_000_000),
        queue_timeout: keys.finite("queue_timeout", raw.queue_timeout, MILLI),
        protocol: raw.protocol,
        tls: raw.tls.0.as_ref().and_then(|raw| tls(raw, &mut keys.below("tls"))),
    }
}

fn discovery(raw: &Upstream, keys: &mut Keys<'_>) -> Discovery {
    let ways = [!raw.targets.is_empty(), raw.consul.is_some(), raw.etcd.is_some()];
    if ways.iter().filter(|way| **way).count() != 1 {
        keys.bad(
            "targets",
            "an upstream has one of targets = [\"10.0.1.10:8080\"], consul = { service = \"users\" } and etcd = { prefix = \
             \"/services/users/\" }",
        );
    }
    if let Some(raw) = &raw.consul {
        let mut keys = keys.below("consul");
        if !is_address(&raw.address) {
            keys.bad("address", format!("`{}` is no address like 127.0.0.1:8500", raw.address));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if raw.service.is_empty() || !raw.service.bytes().all(plain) {
            keys.bad("service", "the name of a service has to be set, of A-Z a-z 0-9 - . _ ~");
        }
        let token = keys.read("token_file", &raw.token_file).map(|token| Secret(token.trim().to_owned()));
        return Discovery::Consul {
            address: raw.address.clone(),
            service: raw.service.clone(),
            tag: Some(raw.tag.clone()).filter(|tag| !tag.is_empty()),
            token,
        };
    }
    if let Some(raw) = &raw.etcd {
        let mut keys = keys.below("etcd");
        if raw.endpoints.is_empty() {
            keys.bad("endpoints", "at least one member has to be named, like \"127.0.0.1:2379\"");
        }
        for endpoint in raw.endpoints.iter().filter(|endpoint| !is_address(endpoint)) {
            keys.bad("endpoints", format!("`{endpoint}` is no address like 127.0.0.1:2379"));
        }
        if raw.prefix.is_empty() {
            keys.bad("prefix", "what keys begin with has to be set, like \"/services/users/\"");
        }
        return Discovery::Etcd { endpoints: raw.endpoints.clone(), prefix: raw.prefix.clone() };
    }
    let mut targets: Vec<TargetOptions> = Vec::new();
    for target in &raw.targets {
        if !is_address(&target.address) {
            keys.bad("targets", format!("`{}` is no address like 10.0.1.10:8080", target.address));
        }
        if targets.iter().any(|other| other.address == target.address) {
            keys.bad("targets", format!("`{}` is there twice; give it a weight instead", target.address));
        }
        keys.within("targets", target.weight, 1..=1000);
        targets.push(TargetOptions { address: target.address.clone(), weight: target.weight });
    }
    Discovery::Static(targets)
}

fn hash_on(raw: &Upstream, keys: &mut Keys<'_>) -> HashOn {
    if !raw.hash_on.is_empty() && raw.balance != Balance::ConsistentHash {
        keys.bad("hash_on", "it is used with balance = \"consistent_hash\" only");
    }
    match raw.hash_on.as_str() {
        "" | "address" => HashOn::Address,
        "path" => HashOn::Path,
        other => match other.strip_prefix("header:").and_then(|name| hyper::header::HeaderName::try_from(name).ok()) {
            Some(name) => HashOn::Header(name.as_str().to_owned()),
            None => {
                keys.bad("hash_on", "it must be \"address\", \"path\" or like \"header:x-session\"");
                HashOn::Address
            }
        },
    }
}

fn health(raw: &Health, keys: &mut Keys<'_>) -> HealthOptions {
    match path::target(&raw.path) {
        Ok(target) if raw.path.starts_with(target.path.as_str()) => {}
        Ok(target) => keys.bad("path", format!("write it as `{}`", target.path)),
        Err(error) => keys.bad("path", error.to_string()),
    }
    let interval = keys.finite("interval", raw.interval, Duration::from_millis(100));
    let timeout = keys.finite("timeout", raw.timeout, Duration::from_millis(10));
    if timeout > interval {
        keys.bad("timeout", "it must be at most the interval, or checks would run side by side");
    }
    HealthOptions {
        path: raw.path.clone(),
        interval,
        timeout,
        healthy_after: keys.within("healthy_after", raw.healthy_after, 1..=1000),
        unhealthy_after: keys.within("unhealthy_after", raw.unhealthy_after, 1..=1000),
    }
}

fn breaker(raw: &Breaker, keys: &mut Keys<'_>) -> BreakerOptions {
    match raw.window.0 {
        BreakerWindow::Count(count) => {
            keys.within("window", count, 1..=100_000);
            if raw.min_calls > count {
                keys.bad("min_calls", "it must be at most the window, or nothing would ever be decided");
            }
        }
        BreakerWindow::Time(time) if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&time) => {
            keys.bad("window", "it must be 1s to 1h, or a number of calls");
        }
        BreakerWindow::Time(_) => {}
    }
    if !(raw.failure_rate > 0.0 && raw.failure_rate <= 1.0) {
        keys.bad("failure_rate", "it must be above 0, and at most 1");
    }
    if !(raw.slow_rate > 0.0 && raw.slow_rate <= 1.0) {
        keys.bad("slow_rate", "it must be above 0, and at most 1, which never opens");
    }
    BreakerOptions {
        window: raw.window.0,
        min_calls: keys.within("min_calls", raw.min_calls, 1..=100_000),
        failure_rate: raw.failure_rate,
        slow_call: keys.finite("slow_call", raw.slow_call, Duration::from_millis(1)),
        slow_rate: raw.slow_rate,
        open_for: keys.finite("open_for", raw.open_for, Duration::from_millis(10)),
        probes: keys.within("probes", raw.probes, 1..=10_000),
    }
}

fn tls(raw: &Tls, keys: &mut Keys<'_>) -> Option<UpstreamTls> {
    let server_name = Some(raw.server_name.clone()).filter(|name| !name.is_empty());
    if server_name.as_ref().is_some_and(|name| route::host(name).as_deref() != Some(name.as_str())) {
        keys.bad("server_name", format!("`{}` is no name like users.internal", raw.server_name));
    }
    let ca = keys.read("ca_file", &raw.ca_file).map(|ca| Arc::new(ca.into_bytes()));
    Some(UpstreamTls { server_name, ca })
}
