//! `[[gateway.routes]]`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::canary::{self, Canary};
use super::upstreams::Upstream;
use super::{Keys, NAMES, is_name};
use crate::config::raw::section;
use crate::config::units::{Bytes, Span};
use crate::gateway::limit::most_at_once;
use crate::gateway::options::{
    AuthPolicy, CorsOptions, Destination, Fallback as FallbackOptions, LimitOptions, PathMatch, Rewrite, RouteOptions,
};
use crate::gateway::route::{self, Pattern};
use crate::gateway::{headers, path};

section! {
    /// `[[gateway.routes]]`
    Route {
        /// For metrics and logs; has to be set.
        name: String = String::new(),
        /// Or `*.suffix`.
        host: String = String::new(),
        /// A prefix; either this or a pattern has to be set.
        path: String = String::new(),
        /// With names for segments.
        pattern: String = String::new(),
        /// Any, if empty.
        methods: Vec<String> = Vec::new(),
        /// And their values; `*` is any.
        headers: BTreeMap<String, String> = BTreeMap::new(),
        /// Where it leads.
        upstream: String = String::new(),
        /// Whether it leads to Tidegate's own endpoints.
        own: bool = false,
        /// What becomes of the path.
        rewrite: String = String::new(),
        /// Or the target's.
        preserve_host: bool = false,
        /// To connect.
        connect_timeout: Span = Span::secs(5),
        /// For the head of an answer.
        first_byte_timeout: Span = Span::secs(10),
        /// For all of it.
        total_timeout: Span = Span::secs(60),
        /// Of a request; 0 is any.
        max_body: Bytes = Bytes::mib(10),
        /// By name.
        limits: Vec<String> = Vec::new(),
        /// In them.
        cost: u32 = 1,
        /// Who may.
        auth: AuthPolicy = AuthPolicy::Public,
        /// Of a key, or of another issuer's token.
        scopes: Vec<String> = Vec::new(),
        /// Which other origins may.
        cors: Option<Cors> = None,
        /// Of requests that failed.
        retries: u32 = 1,
        /// Of text.
        compress: bool = false,
        /// Set on the request.
        request_headers: BTreeMap<String, String> = BTreeMap::new(),
        /// Set on the answer.
        response_headers: BTreeMap<String, String> = BTreeMap::new(),
        /// When the upstream cannot answer.
        fallback: Fallback = Fallback::default(),
        /// Another version of the upstream.
        canary: Option<Canary> = None,
    }
}

section! {
    /// `[gateway.routes.cors]`
    Cors {
        /// Exact, or `*`; has to be set.
        origins: Vec<String> = Vec::new(),
        /// Of preflights.
        methods: Vec<String> = vec![String::from("GET"), String::from("HEAD"), String::from("POST")],
        /// Of preflights.
        headers: Vec<String> = vec![String::from("content-type")],
        /// To pages.
        expose: Vec<String> = Vec::new(),
        /// Cookies and authorization.
        credentials: bool = false,
        /// Of a preflight.
        max_age: Span = Span::secs(600),
    }
}

section! {
    /// `[gateway.routes.fallback]`
    Fallback {
        /// Age of a last good answer; 0 is none.
        stale: Span = Span::secs(0),
        /// By name.
        upstream: String = String::new(),
    }
}

/// What routes may refer to.
pub(super) struct Known<'a> {
    pub limits: &'a BTreeMap<String, LimitOptions>,
    pub upstreams: &'a BTreeMap<String, Upstream>,
}

pub(super) fn routes(raw: &[Route], known: &Known<'_>, keys: &mut Keys<'_>) -> Vec<RouteOptions> {
    let mut found: Vec<RouteOptions> = Vec::new();
    let mut names = HashSet::new();
    for (index, raw) in raw.iter().enumerate() {
        // Those without a name of their own are called by their place.
        let is_new = is_name(&raw.name) && names.insert(raw.name.as_str());
        let mut keys = keys.below(&if is_new { raw.name.clone() } else { format!("#{}", index + 1) });
        if !is_name(&raw.name) {
            keys.bad("name", format!("a route has to have a name: {NAMES}"));
        } else if !is_new {
            keys.bad("name", format!("`{}` is the name of another route too", raw.name));
        }
        let options = one(raw, known, &mut keys);
        let same = |other: &&RouteOptions| {
            (&other.host, &other.path, &other.methods, &other.headers)
                == (&options.host, &options.path, &options.methods, &options.headers)
        };
        if let Some(other) = found.iter().find(same) {
            keys.bad_section(format!(
                "it is never taken: `{}` stands before it and is for the same requests",
                other.name
            ));
        }
        found.push(options);
    }
    found
}

fn one(raw: &Route, known: &Known<'_>, keys: &mut Keys<'_>) -> RouteOptions {
    const MILLI: Duration = Duration::from_millis(1);
    let path = path_match(raw, keys);
    let total_timeout = raw.total_timeout.0.map(|_| keys.finite("total_timeout", raw.total_timeout, MILLI));
    scopes(raw, keys);
    let to = destination(raw, known, keys);
    RouteOptions {
        name: raw.name.clone(),
        host: host(&raw.host, keys),
        rewrite: rewrite(raw, &path, keys),
        path,
        methods: methods("methods", &raw.methods, keys),
        headers: matched(&raw.headers, keys),
        fallback: fallback(raw, known, keys),
        to,
        preserve_host: raw.preserve_host,
        connect_timeout: keys.finite("connect_timeout", raw.connect_timeout, MILLI),
        first_byte_timeout: keys.finite("first_byte_timeout", raw.first_byte_timeout, MILLI),
        total_timeout,
        max_body: Some(raw.max_body.0).filter(|bytes| *bytes > 0),
        limits: limits(raw, known, keys),
        cost: raw.cost,
        auth: raw.auth,
        scopes: raw.scopes.clone(),
        cors: raw.cors.as_ref().map(|raw| cors(raw, &mut keys.below("cors"))),
        canary: raw.canary.as_ref().map(|canary| canary::canary(canary, raw, known, &mut keys.below("canary"))),
        retries: keys.within("retries", raw.retries, 0..=10),
        compress: raw.compress,
        request_headers: set("request_headers", &raw.request_headers, |name| is_ours(name) || name == "host", keys),
        response_headers: set(
            "response_headers",
            &raw.response_headers,
            |name| name == "x-request-id" || (raw.cors.is_some() && name.starts_with("access-control-")),
            keys,
        ),
    }
}

fn scopes(raw: &Route, keys: &mut Keys<'_>) {
    if !raw.scopes.is_empty() && raw.auth == AuthPolicy::Public {
        keys.bad("scopes", "nobody is asked for scopes on a route that is public; set auth to \"api_key\" or \"user\"");
    }
    // `scope-token` of RFC 6749, section 3.3: other issuers' are longer and have more signs than ours.
    let token = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\');
    if let Some(scope) = raw.scopes.iter().find(|scope| scope.is_empty() || !scope.bytes().all(token)) {
        keys.bad("scopes", format!("`{scope}` is no scope like orders:read"));
    }
}

/// Names that the gateway says itself; those of the inside are there to be set.
fn is_ours(name: &str) -> bool {
    headers::is_owned(name) && !name.starts_with("x-internal-")
}

fn host(text: &str, keys: &mut Keys<'_>) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if route::host(name).as_deref() != Some(name) {
        keys.bad(
            "host",
            format!("`{text}` is no host like shop.example or *.shop.example, in lower case and without port"),
        );
    }
    Some(text.to_owned())
}

fn path_match(raw: &Route, keys: &mut Keys<'_>) -> PathMatch {
    match (raw.path.is_empty(), raw.pattern.is_empty()) {
        (true, true) | (false, false) => {
            keys.bad("path", "a route has either path = \"/below/here/\" or pattern = \"/users/{id}\"");
        }
        (false, true) => prefix("path", &raw.path, keys),
        (true, false) => {
            if let Err(message) = raw.pattern.parse::<Pattern>() {
                keys.bad("pattern", message);
            }
            return PathMatch::Pattern(raw.pattern.clone());
        }
    }
    PathMatch::Prefix(raw.path.clone())
}

/// A prefix is compared with canonical paths, so it has to be one.
fn prefix(key: &str, text: &str, keys: &mut Keys<'_>) {
    if text.contains(['{', '}']) {
        let instead = if key == "path" { "write it as pattern" } else { "names are those of a pattern" };
        return keys.bad(key, format!("`{text}` has braces; {instead}"));
    }
    match path::canonical(text) {
        Ok(form) if form.as_str() == text => {}
        Ok(form) => keys.bad(key, format!("`{text}` is not how a path arrives here; write `{form}`")),
        Err(error) => keys.bad(key, format!("`{text}`: {error}")),
    }
}

fn rewrite(raw: &Route, path: &PathMatch, keys: &mut Keys<'_>) -> Rewrite {
    if raw.rewrite.is_empty() {
        return Rewrite::Keep;
    }
    match path {
        PathMatch::Prefix(_) => {
            prefix("rewrite", &raw.rewrite, keys);
            Rewrite::Prefix(raw.rewrite.clone())
        }
        PathMatch::Pattern(from) => {
            // What is wrong with the pattern itself has been said.
            let checked = raw.rewrite.parse::<Pattern>().and_then(|to| match from.parse::<Pattern>() {
                Ok(from) => from.check_rewrite(&to),
                Err(_) => Ok(()),
            });
            if let Err(message) = checked {
                keys.bad("rewrite", message);
            }
            Rewrite::Pattern(raw.rewrite.clone())
        }
    }
}

fn destination(raw: &Route, known: &Known<'_>, keys: &mut Keys<'_>) -> Destination {
    if raw.own != raw.upstream.is_empty() {
        keys.bad("upstream", "a route has either upstream = \"NAME\" or own = true");
    } else if !raw.own {
        keys.refers("upstream", "upstream", &raw.upstream, known.upstreams.keys());
    }
    if raw.own { Destination::Own } else { Destination::Upstream(raw.upstream.clone()) }
}

fn fallback(raw: &Route, known: &Known<'_>, keys: &mut Keys<'_>) -> FallbackOptions {
    let mut keys = keys.below("fallback");
    let stale = keys.finite("stale", raw.fallback.stale, Duration::ZERO);
    if raw.own && !stale.is_zero() {
        keys.bad("stale", "own endpoints have caches of their own");
    }
    let upstream = Some(raw.fallback.upstream.clone()).filter(|name| !name.is_empty());
    if let Some(name) = &upstream {
        if raw.own {
            keys.bad("upstream", "own endpoints have no other upstream");
        } else if *name == raw.upstream {
            keys.bad("upstream", "it is the upstream that could not answer");
        } else {
            keys.refers("upstream", "upstream", name, known.upstreams.keys());
        }
    }
    FallbackOptions { stale: Some(stale).filter(|stale| !stale.is_zero()), upstream }
}

fn limits(raw: &Route, known: &Known<'_>, keys: &mut Keys<'_>) -> Vec<String> {
    keys.within("cost", raw.cost, 1..=1_000_000);
    for (number, name) in raw.limits.iter().enumerate() {
        if raw.limits.iter().take(number).any(|other| other == name) {
            keys.bad("limits", format!("`{name}` is there twice"));
        } else if keys.refers("limits", "limit", name, known.limits.keys())
            && let Some(limit) = known.limits.get(name)
            && let most = most_at_once(limit.burst, limit.shared)
            && u64::from(raw.cost) > most
        {
            keys.bad(
                "cost",
                format!("`{name}` lets {most} through at once, so a request that costs more never passes"),
            );
        }
    }
    raw.limits.clone()
}

fn methods(key: &str, raw: &[String], keys: &mut Keys<'_>) -> Vec<String> {
    for (number, method) in raw.iter().enumerate() {
        let is_token = Method::from_bytes(method.as_bytes()).is_ok() && !method.is_empty();
        if !is_token || method.bytes().any(|byte| byte.is_ascii_lowercase()) || method == "CONNECT" {
            keys.bad(key, format!("`{method}` is no method like \"GET\", in upper case, and not CONNECT"));
        } else if raw.iter().take(number).any(|other| other == method) {
            keys.bad(key, format!("`{method}` is there twice"));
        }
    }
    raw.to_vec()
}

/// Headers that a request must have. Ours are not asked for: what comes with such a name is not believed.
fn matched(raw: &BTreeMap<String, String>, keys: &mut Keys<'_>) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for (name, value) in set("headers", raw, headers::is_owned, keys) {
        found.push((name, Some(value).filter(|value| value != "*")));
    }
    found
}

/// Names and values of headers, with lower-case names.
fn set(
    key: &str,
    raw: &BTreeMap<String, String>,
    refused: impl Fn(&str) -> bool,
    keys: &mut Keys<'_>,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (name, value) in raw {
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            keys.bad(key, format!("`{name}` is no name of a header"));
            continue;
        };
        let name = parsed.as_str().to_owned();
        if refused(&name) || headers::is_framing(&name) {
            keys.bad(key, format!("`{name}` is the gateway's own, or HTTP's"));
        }
        // Not repeated: it may be a secret.
        if HeaderValue::from_str(value).is_err() {
            keys.bad(key, format!("the value of `{name}` cannot stand in a header"));
        }
        if found.iter().any(|(other, _)| *other == name) {
            keys.bad(key, format!("`{name}` is there twice"));
        }
        found.push((name, value.clone()));
    }
    found
}

fn cors(raw: &Cors, keys: &mut Keys<'_>) -> CorsOptions {
    let any_origin = raw.origins.iter().any(|origin| origin == "*");
    if raw.origins.is_empty() {
        keys.bad("origins", "which origins may has to be set, like [\"https://shop.example\"], or [\"*\"]");
    }
    if any_origin && raw.origins.len() > 1 {
        keys.bad("origins", "\"*\" is all of them; write it alone");
    }
    if any_origin && raw.credentials {
        keys.bad("credentials", "with \"*\" every page could act as its visitor; name the origins");
    }
    for origin in raw.origins.iter().filter(|origin| !matches!(origin.as_str(), "*" | "null")) {
        if !is_origin(origin) {
            keys.bad(
                "origins",
                format!("`{origin}` is no origin like https://shop.example, in lower case and without path"),
            );
        }
    }
    let names = |key: &str, raw: &[String], keys: &mut Keys<'_>| -> Vec<String> {
        for name in raw {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || name == "*" {
                keys.bad(key, format!("`{name}` is no name of a header"));
            }
        }
        raw.iter().map(|name| name.to_ascii_lowercase()).collect()
    };
    CorsOptions {
        origins: if any_origin { Vec::new() } else { raw.origins.clone() },
        any_origin,
        methods: methods("methods", &raw.methods, keys),
        headers: names("headers", &raw.headers, keys),
        expose: names("expose", &raw.expose, keys),
        credentials: raw.credentials,
        max_age: keys.finite("max_age", raw.max_age, Duration::ZERO),
    }
}

/// `scheme://host[:port]` as browsers write it; a port that is the scheme's own they leave out.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let Some(host) = route::host(authority) else { return false };
    let rest = authority.strip_prefix(host.as_ref());
    let port = route::port(authority);
    let usual = match scheme {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte));
    is_scheme
        && rest.is_some_and(|rest| rest.is_empty() || port.is_some_and(|port| rest == format!(":{port}")))
        && (port.is_none() || port != usual)
}
