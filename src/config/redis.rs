//! Where Redis is, as each section that uses one says it; and `[stats.redis]`, checked.

use std::time::Duration;

use super::raw::Stats;
use super::units::Urls;
use crate::redis::RedisOptions;
use crate::stats::SharedOptions;

/// What a section says of where Redis is.
pub(super) struct Address<'a> {
    /// The key of the addresses.
    pub setting: &'static str,
    /// The section of the rest.
    pub section: &'static str,
    pub urls: &'a Urls,
    pub cluster: bool,
    pub password_file: &'a str,
    pub ca_file: &'a str,
}

/// What is wrong with an address that no client can be made of.
pub(super) const NO_CLIENT: &str = "no client can be made of it: an address is like redis://user:password@host:6379/0, and \
                                    all nodes of a cluster have the same scheme, user and password; a ca_file holds PEM";

/// The Redis that a section names, if it names one; mistakes go to `bad` with their key. Addresses are not repeated in
/// messages, as they may hold a password.
pub(super) fn options(
    raw: &Address<'_>,
    timeout: Duration,
    bad: &mut impl FnMut(&str, String),
) -> Option<RedisOptions> {
    if raw.urls.0.is_empty() {
        return None;
    }
    let mut urls = Vec::with_capacity(raw.urls.0.len());
    for url in &raw.urls.0 {
        let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| ["redis", "rediss"].contains(scheme))
        else {
            bad(raw.setting, String::from("an address must be like redis://127.0.0.1:6379 or rediss://redis.example"));
            return None;
        };
        urls.push((scheme, rest));
    }
    let mut read = |key: &str, file: &str| -> Option<String> {
        if file.is_empty() {
            return None;
        }
        let key = format!("{}.{key}", raw.section);
        std::fs::read_to_string(file).map_err(|error| bad(&key, format!("cannot be read: {error}"))).ok()
    };
    let password = read("password_file", raw.password_file);
    let ca = read("ca_file", raw.ca_file);
    let urls = urls.into_iter().map(|(scheme, rest)| match &password {
        Some(password) if !rest.contains('@') => format!("{scheme}://:{}@{rest}", encoded(password.trim())),
        _ => format!("{scheme}://{rest}"),
    });
    let urls: Vec<String> = urls.collect();
    Some(RedisOptions {
        setting: raw.setting,
        cluster: raw.cluster || urls.len() > 1,
        urls,
        ca: ca.map(String::into_bytes),
        timeout,
    })
}

/// The shared store that `[stats]` names.
pub(super) fn shared(raw: &Stats, bad: &mut impl FnMut(&str, String)) -> Option<SharedOptions> {
    let address = Address {
        setting: "stats.url",
        section: "stats.redis",
        urls: &raw.url,
        cluster: raw.redis.cluster,
        password_file: &raw.redis.password_file,
        ca_file: &raw.redis.ca_file,
    };
    let mut redis = options(&address, Duration::ZERO, bad)?;
    if raw.redis.prefix.contains(['{', '}']) {
        bad("stats.redis.prefix", String::from("it must not contain braces: they say which slot a key is in"));
    }
    if raw.redis.stream_entries == 0 {
        bad("stats.redis.stream_entries", String::from("it must be at least 1"));
    }
    let mut finite = |key: &str, span: super::Span, least: u64| {
        let span = span.0.filter(|span| span.as_millis() >= u128::from(least));
        span.unwrap_or_else(|| {
            bad(key, format!("it must be at least {least}ms and not forever"));
            Duration::from_millis(least)
        })
    };
    redis.timeout = finite("stats.redis.timeout", raw.redis.timeout, 50);
    let options = SharedOptions {
        redis,
        prefix: raw.redis.prefix.clone(),
        uniques: raw.redis.uniques,
        flush_interval: finite("stats.redis.flush_interval", raw.redis.flush_interval, 10),
        event_streams: raw.redis.event_streams,
        stream_entries: raw.redis.stream_entries,
        event_keys: raw.redis.event_keys,
        user_events: raw.redis.user_events,
    };
    if crate::stats::shared::check(&options).is_err() {
        bad("stats.url", String::from(NO_CLIENT));
    }
    Some(options)
}

/// A password as it stands in a URL.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
