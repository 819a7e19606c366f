//! `[gateway.canaries]` and `[gateway.routes.canary]`.

use std::time::Duration;

use hyper::header::HeaderName;
use serde::Deserialize;

use super::Keys;
use super::routes::{Known, Route};
use crate::config::raw::section;
use crate::config::units::Span;
use crate::gateway::canary::{CanaryKey, CanaryOptions, Decider, Weight};
use crate::gateway::headers;

/// The longest name of a release.
const LONGEST_RELEASE: usize = 100;

section! {
    /// `[gateway.canaries]`
    Canaries {
        /// Through the limiter's Redis.
        share: bool = true,
    }
}

section! {
    /// `[gateway.routes.canary]`
    Canary {
        /// By name; has to be set.
        upstream: String = String::new(),
        /// What it is called.
        release: String = String::new(),
        /// In percent.
        weight: f64 = 0.0,
        /// In percent.
        steps: Vec<f64> = Vec::new(),
        /// Of a step.
        interval: Span = Span::secs(300),
        /// In a step.
        min_requests: u64 = 500,
        /// 0 to 1.
        max_error_difference: f64 = 0.005,
        /// Of the 99th percentiles.
        max_p99_ratio: f64 = 1.5,
        /// By itself.
        abort: bool = true,
        /// Who is told apart.
        by: CanaryKey = CanaryKey::Cookie,
        /// Name of one that decides.
        header: String = String::new(),
        /// For the canary.
        header_value: String = String::from("always"),
        /// Name of one that decides.
        cookie: String = String::new(),
        /// For the canary.
        cookie_value: String = String::from("always"),
    }
}

pub(super) fn canary(raw: &Canary, route: &Route, known: &Known<'_>, keys: &mut Keys<'_>) -> CanaryOptions {
    if route.own {
        keys.bad_section("own endpoints have no other version");
    }
    if raw.upstream.is_empty() {
        keys.bad("upstream", "the upstream that is the canary has to be set");
    } else if raw.upstream == route.upstream {
        keys.bad("upstream", "it is the route's own upstream; the canary is another one");
    } else {
        keys.refers("upstream", "upstream", &raw.upstream, known.upstreams.keys());
    }
    if raw.release.len() > LONGEST_RELEASE || raw.release.contains(char::is_control) {
        keys.bad(
            "release",
            format!("it must be at most {LONGEST_RELEASE} characters, none of them a control character"),
        );
    }
    let (weight, steps) = weights(raw, keys);
    let header = decider("header", &raw.header, &raw.header_value, keys);
    let cookie = decider("cookie", &raw.cookie, &raw.cookie_value, keys);
    if weight == Weight::NONE && steps.is_empty() && header.is_none() && cookie.is_none() {
        keys.bad("steps", "nothing would go to it; set steps, weight, header or cookie");
    }
    if let Some(header) = &header
        && (headers::is_owned(&header.name) || headers::is_framing(&header.name) || header.name == "cookie")
    {
        keys.bad("header", format!("`{}` is the gateway's own, or HTTP's", header.name));
    }
    CanaryOptions {
        upstream: raw.upstream.clone(),
        release: raw.release.clone(),
        weight,
        steps,
        interval: keys.finite("interval", raw.interval, Duration::from_millis(100)),
        min_requests: keys.within("min_requests", raw.min_requests, 1..=1_000_000_000),
        max_error_difference: keys.within("max_error_difference", raw.max_error_difference, 0.0..=1.0),
        max_p99_ratio: keys.within("max_p99_ratio", raw.max_p99_ratio, 1.0..=1000.0),
        abort: raw.abort,
        by: raw.by,
        header,
        cookie,
    }
}

fn weights(raw: &Canary, keys: &mut Keys<'_>) -> (Weight, Vec<Weight>) {
    const PERCENT: &str = "it must be 0 to 100 percent, to a hundredth";
    let weight = Weight::percent(raw.weight).unwrap_or_else(|| {
        keys.bad("weight", PERCENT);
        Weight::NONE
    });
    let mut steps = Vec::new();
    for percent in &raw.steps {
        match Weight::percent(*percent).filter(|step| *step > Weight::NONE) {
            Some(step) => steps.push(step),
            None => keys.bad("steps", format!("`{percent}`: {PERCENT}, and more than nothing")),
        }
    }
    if !steps.is_sorted_by(|one, next| one < next) {
        keys.bad("steps", "each has to be more than the one before, like [1, 5, 10, 25, 50, 100]");
    }
    if weight > Weight::NONE && !raw.steps.is_empty() {
        keys.bad("weight", "with steps it begins with the first of them; set one or the other");
    }
    (weight, steps)
}

/// A header or cookie that decides, if one is named.
fn decider(key: &str, name: &str, value: &str, keys: &mut Keys<'_>) -> Option<Decider> {
    if name.is_empty() {
        return None;
    }
    // Both names are tokens (RFC 9110, section 5.6.2; RFC 6265, section 4.1.1).
    let Ok(token) = HeaderName::from_bytes(name.as_bytes()) else {
        keys.bad(key, format!("`{name}` is no name of a {key}"));
        return None;
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
    if value.is_empty() || value == "never" || !value.bytes().all(plain) {
        keys.bad(&format!("{key}_value"), "it must be a word, \"*\" for any, and not \"never\", which is against it");
    }
    Some(Decider {
        name: if key == "header" { token.as_str().to_owned() } else { name.to_owned() },
        value: Some(value.to_owned()).filter(|value| value != "*"),
    })
}
