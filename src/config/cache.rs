//! `[cache]`: the settings of the cache as they are written, and what becomes of them.

use std::time::Duration;

use serde::Deserialize;

use super::raw::section;
use super::redis::{self, Address};
use super::units::{Bytes, Span, Urls};
use crate::cache::{CacheOptions, L2Options, TypeOptions};

section! {
    /// `[cache]`
    Cache {
        /// Of the first tier.
        l1_bytes: Bytes = Bytes::mib(128),
        /// Of the first tier.
        l1_entries: usize = 200_000,
        /// Eagerness of early refreshes.
        xfetch_beta: f64 = 1.0,
        /// For a fill.
        fill_timeout: Span = Span::secs(5),
        /// For a failed fill.
        error_memory: Span = Span::secs(1),
        /// Redis as the second tier.
        url: Urls = Urls::default(),
        /// How it is used.
        redis: CacheRedis = CacheRedis::default(),
        /// What is cached.
        types: CacheTypes = CacheTypes::default(),
    }
}

section! {
    /// `[cache.redis]`
    CacheRedis {
        /// One node of a cluster.
        cluster: bool = false,
        /// File with the password.
        password_file: String = String::new(),
        /// Authorities, PEM.
        ca_file: String = String::new(),
        /// Before every key.
        prefix: String = String::new(),
        /// For an answer.
        timeout: Span = Span::millis(100),
        /// Of a fill whose instance dies.
        lease: Span = Span::secs(2),
    }
}

/// The types: each a section with defaults of its own.
macro_rules! types {
    ($($name:ident $section:ident: $lifetime:expr, $stale:expr, $stale_if_error:expr, $negative:expr, $l2:expr;)*) => {
        section! {
            /// `[cache.types]`
            CacheTypes { $(
                /// One of them.
                $name: $section = $section::default(),
            )* }
        }

        $(section! {
            /// `[cache.types.NAME]`
            $section {
                /// How long it is fresh.
                lifetime: Span = $lifetime,
                /// Served while it is refreshed.
                stale: Span = $stale,
                /// Served when there is nothing fresh.
                stale_if_error: Span = $stale_if_error,
                /// Of what does not exist.
                negative: Span = $negative,
                /// In the process.
                l1: bool = true,
                /// In Redis.
                l2: bool = $l2,
                /// Part of the lifetime.
                jitter: f64 = 0.1,
            }
        })*

        impl CacheTypes {
            fn validate(&self, bad: &mut impl FnMut(&str, String)) -> Vec<TypeOptions> {
                vec![$({
                    let raw = &self.$name;
                    let name = stringify!($name);
                    let key = |key: &str| format!("cache.types.{name}.{key}");
                    if !(0.0..=1.0).contains(&raw.jitter) {
                        bad(&key("jitter"), String::from("it must be 0 to 1"));
                    }
                    TypeOptions {
                        name: name.to_owned(),
                        lifetime: finite(&key("lifetime"), raw.lifetime, 1, bad),
                        stale: finite(&key("stale"), raw.stale, 0, bad),
                        stale_if_error: finite(&key("stale_if_error"), raw.stale_if_error, 0, bad),
                        negative: finite(&key("negative"), raw.negative, 0, bad),
                        l1: raw.l1,
                        l2: raw.l2,
                        jitter: raw.jitter,
                    }
                }),*]
            }
        }
    };
}

// Lifetime, stale while refreshed, stale on error, what does not exist, and whether Redis has it too.
types! {
    product_detail ProductDetail: Span::secs(3600), Span::secs(60), Span::secs(86_400), Span::secs(60), true;
    product_search ProductSearch: Span::secs(300), Span::secs(30), Span::secs(3600), Span::secs(30), true;
    user_profile UserProfile: Span::secs(3600), Span::secs(0), Span::secs(3600), Span::secs(30), true;
    session Session: Span::secs(1800), Span::secs(0), Span::secs(0), Span::secs(0), true;
    api_response ApiResponse: Span::secs(300), Span::secs(30), Span::secs(3600), Span::secs(10), false;
    static_config StaticConfig: Span::secs(86_400), Span::secs(300), Span::secs(7 * 86_400), Span::secs(60), true;
}

/// A duration that is not forever: nothing is cached for good, and PX has an end too.
fn finite(key: &str, span: Span, least: u64, bad: &mut impl FnMut(&str, String)) -> Duration {
    const MOST: Duration = Duration::from_secs(10 * 365 * 86_400);
    match span.0 {
        Some(span) if span >= Duration::from_millis(least) && span <= MOST => span,
        _ => {
            bad(key, format!("it must be at least {least}ms, and not forever"));
            Duration::from_millis(least.max(1))
        }
    }
}

/// Checks what the types cannot; every mistake goes to `bad` with its key.
pub(super) fn validate(raw: &Cache, bad: &mut impl FnMut(&str, String)) -> CacheOptions {
    if raw.l1_bytes.0 < 64 << 10 {
        bad("cache.l1_bytes", String::from("it must be at least 64KiB"));
    }
    if !(1..=100_000_000).contains(&raw.l1_entries) {
        bad("cache.l1_entries", String::from("it must be 1 to 100000000"));
    }
    if !(0.0..=100.0).contains(&raw.xfetch_beta) {
        bad("cache.xfetch_beta", String::from("it must be 0 to 100; 1 is the optimum, 0 refreshes nothing early"));
    }
    let fill_timeout = finite("cache.fill_timeout", raw.fill_timeout, 10, bad);
    let error_memory = finite("cache.error_memory", raw.error_memory, 0, bad);
    let timeout = finite("cache.redis.timeout", raw.redis.timeout, 5, bad);
    let lease = finite("cache.redis.lease", raw.redis.lease, 100, bad);
    if raw.redis.prefix.contains(['{', '}']) {
        bad("cache.redis.prefix", String::from("it must not contain braces: they say which slot a key is in"));
    }
    let address = Address {
        setting: "cache.url",
        section: "cache.redis",
        urls: &raw.url,
        cluster: raw.redis.cluster,
        password_file: &raw.redis.password_file,
        ca_file: &raw.redis.ca_file,
    };
    let l2 = redis::options(&address, timeout, bad).map(|redis| {
        if crate::redis::Client::new(&redis).is_err() {
            bad("cache.url", String::from(redis::NO_CLIENT));
        }
        L2Options { redis, prefix: raw.redis.prefix.clone(), lease }
    });
    CacheOptions {
        types: raw.types.validate(bad),
        l1_bytes: raw.l1_bytes.0,
        l1_entries: raw.l1_entries,
        xfetch_beta: raw.xfetch_beta,
        fill_timeout,
        error_memory,
        seed: None,
        l2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let raw: Cache = toml::from_str(text).unwrap();
        let mut found = Vec::new();
        validate(&raw, &mut |key, _| found.push(key.to_owned()));
        found
    }

    #[test]
    fn mistakes_name_the_key() {
        assert!(mistakes("").is_empty());
        for (text, key) in [
            ("l1_bytes = 1", "cache.l1_bytes"),
            ("l1_entries = 0", "cache.l1_entries"),
            ("xfetch_beta = -1.0", "cache.xfetch_beta"),
            ("xfetch_beta = nan", "cache.xfetch_beta"),
            ("fill_timeout = \"forever\"", "cache.fill_timeout"),
            ("redis = { lease = \"1ms\" }", "cache.redis.lease"),
            ("redis = { prefix = \"{a}\" }", "cache.redis.prefix"),
            ("url = \"http://user:secret@x\"", "cache.url"),
            ("url = \"redis://127.0.0.1:6379/abc\"", "cache.url"),
            ("url = \"redis://a\"\nredis = { ca_file = \"/no/such/file\" }", "cache.redis.ca_file"),
            ("types = { session = { lifetime = \"forever\" } }", "cache.types.session.lifetime"),
            ("types = { product_detail = { jitter = 1.5 } }", "cache.types.product_detail.jitter"),
        ] {
            assert_eq!(mistakes(text), [key], "{text}");
        }
    }

    #[test]
    fn a_type_keeps_its_own_defaults_for_what_is_not_set() {
        let raw: Cache =
            toml::from_str("url = \"redis://a,redis://b\"\n[types.product_search]\nstale = \"7s\"").unwrap();
        let options = validate(&raw, &mut |key, message| panic!("{key}: {message}"));
        let search = options.types.iter().find(|kind| kind.name == "product_search").unwrap();
        assert_eq!((search.lifetime.as_secs(), search.stale.as_secs(), search.l2), (300, 7, true));
        let l2 = options.l2.unwrap();
        assert!(l2.redis.cluster && l2.redis.timeout == Duration::from_millis(100));
        let names: Vec<&str> = options.types.iter().map(|kind| kind.name.as_str()).collect();
        let practices =
            ["product_detail", "product_search", "user_profile", "session", "api_response", "static_config"];
        assert_eq!(names, practices);
    }
}
