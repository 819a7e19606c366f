//! `[gateway.limiter]`, `[gateway.limits.NAME]` and `[gateway.api_keys]`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Keys, NAMES, is_name};
use crate::config::raw::section;
use crate::config::redis::{self, Address};
use crate::config::units::{Bytes, Hidden, Span, Urls};
use crate::gateway::options::{LimitKey, LimitOptions, LimiterOptions, StoreDown};
use serde::Deserialize;

/// Least burst of a limit that is shared, unless one is set: enough for half a dozen instances.
const SHARED_BURST: u64 = 20;

section! {
    /// `[gateway.limiter]`
    Limiter {
        /// Memory for buckets.
        max_bytes: Bytes = Bytes::mib(64),
        /// Redis that limits are shared through.
        url: Urls = Urls::default(),
        /// Before every key.
        prefix: String = String::new(),
        /// Age at which leases are fetched.
        interval: Span = Span::millis(50),
        /// Of a lease.
        lease: Span = Span::secs(1),
        /// How Redis is used.
        redis: LimiterRedis = LimiterRedis::default(),
    }
}

section! {
    /// `[gateway.limiter.redis]`
    LimiterRedis {
        /// One node of a cluster.
        cluster: bool = false,
        /// File with the password.
        password_file: String = String::new(),
        /// Authorities, PEM.
        ca_file: String = String::new(),
        /// For an answer.
        timeout: Span = Span::millis(400),
    }
}

section! {
    /// `[gateway.limits.NAME]`
    Limit {
        /// What has a bucket.
        by: Vec<LimitKey> = vec![LimitKey::Address],
        /// How many; has to be set.
        limit: u64 = 0,
        /// In how long.
        period: Span = Span::secs(60),
        /// At once; 0 is a tenth of the limit.
        burst: u64 = 0,
        /// Denies nothing.
        shadow: bool = false,
        /// Through Redis.
        shared: bool = true,
        /// While Redis is away.
        store_down: StoreDown = StoreDown::LocalShare,
    }
}

pub(super) fn limiter(raw: &Limiter, keys: &mut Keys<'_>) -> LimiterOptions {
    if raw.max_bytes.0 < 1 << 20 {
        keys.bad("max_bytes", "it must be at least 1MiB");
    }
    if raw.prefix.contains(['{', '}']) {
        keys.bad("prefix", "it must not contain braces: they say which slot a key is in");
    }
    let interval = keys.finite("interval", raw.interval, Duration::from_millis(10));
    // A lease that ends before the next is fetched would leave gaps.
    let lease = keys.finite("lease", raw.lease, 2 * interval);
    let timeout = keys.below("redis").finite("timeout", raw.redis.timeout, Duration::from_millis(5));
    let address = Address {
        setting: "gateway.limiter.url",
        section: "gateway.limiter.redis",
        urls: &raw.url,
        cluster: raw.redis.cluster,
        password_file: &raw.redis.password_file,
        ca_file: &raw.redis.ca_file,
    };
    let redis = redis::options(&address, timeout, &mut |key, message| (keys.bad)(key, message));
    if redis.as_ref().is_some_and(|redis| crate::redis::Client::new(redis).is_err()) {
        keys.bad("url", redis::NO_CLIENT);
    }
    LimiterOptions { max_bytes: raw.max_bytes.0, redis, prefix: raw.prefix.clone(), interval, lease }
}

pub(super) fn limits(
    raw: &BTreeMap<String, Limit>,
    has_redis: bool,
    keys: &mut Keys<'_>,
) -> BTreeMap<String, LimitOptions> {
    let mut found = BTreeMap::new();
    for (name, raw) in raw {
        let mut keys = keys.below(name);
        if !is_name(name) {
            keys.bad_section(format!("a name is {NAMES}"));
        }
        if raw.limit == 0 {
            keys.bad("limit", "how many requests it lets through in a period has to be set, at least 1");
        }
        let period = keys.finite("period", raw.period, Duration::from_millis(1));
        if u128::from(raw.limit) > period.as_nanos() || raw.limit > 1_000_000_000_000 {
            keys.bad("limit", "it must be at most one a nanosecond, and at most 1000000000000");
        }
        if raw.burst > raw.limit.saturating_mul(1000) {
            keys.bad("burst", "it must be at most a thousand times the limit");
        }
        let mut by = raw.by.clone();
        by.sort_unstable();
        by.dedup();
        if by.is_empty() || by.len() != raw.by.len() {
            keys.bad("by", "it must be one or more of \"address\", \"api_key\", \"user\" and \"route\", each once");
        }
        let shared = raw.shared && has_redis;
        // Instances that share need some to begin with before they have asked each other.
        let least = if shared { SHARED_BURST.min(raw.limit) } else { 1 };
        let burst = if raw.burst == 0 { raw.limit.div_ceil(10).max(least).max(1) } else { raw.burst };
        let options = LimitOptions {
            by,
            limit: raw.limit,
            period,
            burst,
            shadow: raw.shadow,
            shared,
            store_down: raw.store_down,
        };
        found.insert(name.clone(), options);
    }
    found
}

pub(super) fn api_keys(raw: &BTreeMap<String, Hidden>, keys: &mut Keys<'_>) -> BTreeMap<String, [u8; 32]> {
    let mut found: BTreeMap<String, [u8; 32]> = BTreeMap::new();
    for (name, hash) in raw {
        if !is_name(name) {
            keys.bad(name, format!("a name is {NAMES}"));
        }
        // What was written is not repeated: it may be the key itself.
        let Some(hash) = hash.0.strip_prefix("sha256:").and_then(bytes) else {
            keys.bad(
                name,
                "it must be \"sha256:\" and the 64 hexadecimal digits of the key's hash, as `printf %s KEY | sha256sum` \
                 says; not the key",
            );
            continue;
        };
        if let Some((other, _)) = found.iter().find(|(_, other)| **other == hash) {
            keys.bad(name, format!("`{other}` has the same key"));
        }
        found.insert(name.clone(), hash);
    }
    found
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let mut found = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in found.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(found)
}
