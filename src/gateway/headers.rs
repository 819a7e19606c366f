//! Whose headers are whose: what belongs to one connection ends here (RFC 9110, 7.6.1), what belongs to the gateway cannot
//! come from outside, and what it says itself is there once.
//!
//! Names are compared without case and with `_` taken as `-`: many servers behind read `X_Internal_Token` and
//! `X-Internal-Token` as one (CGI's variables have no other way), so a spelling is as good as the name. And a name of ours in
//! `Connection` does not take it away, which is how Traefik lost its own (CVE-2024-45410).

use std::fmt::Write;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Version};

use super::address::Chain;
use super::route;
use super::trace::TraceContext;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");
const X_GATEWAY_TIME: HeaderName = HeaderName::from_static("x-gateway-time");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Names that the gateway alone says to upstreams, beside those that begin with one of [`OWNED_PREFIXES`].
const OWNED: [&str; 7] =
    ["x-trace-id", "x-gateway-time", "x-real-ip", "x-request-id", "forwarded", "traceparent", "tracestate"];
const OWNED_PREFIXES: [&str; 2] = ["x-internal-", "x-forwarded-"];
/// Names of a connection, of which the next one has its own.
const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-authentication-info",
    "proxy-features",
];
/// Names that are for the end of the way: a `Connection` that lists one does not take it away, and no other spelling passes.
const END_TO_END: [&str; 12] = [
    "host",
    "content-length",
    "transfer-encoding",
    "authorization",
    "cookie",
    "set-cookie",
    "content-type",
    "content-encoding",
    "cache-control",
    "origin",
    "expect",
    "trailer",
];
/// Names that mean something before the body or not at all: framing, routing, authentication, conditions, control of the
/// answer (RFC 9110, 6.5.1).
const NOT_IN_TRAILERS: [&str; 30] = [
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "content-location",
    "trailer",
    "host",
    "authorization",
    "www-authenticate",
    "authentication-info",
    "cookie",
    "set-cookie",
    "cache-control",
    "expect",
    "max-forwards",
    "pragma",
    "range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
    "age",
    "date",
    "expires",
    "location",
    "retry-after",
    "vary",
    "warning",
    "origin",
];

/// Headers that a request gets, at most.
const OURS: usize = 10;

/// What the gateway says of a request to its upstream.
#[derive(Clone, Debug)]
pub struct Passage<'a> {
    /// In which the request came.
    pub version: Version,
    /// Whether it is an upgrade that is passed on: see [`upgrade`].
    pub upgrade: bool,
    /// Whether the upstream is spoken to in HTTP/2, where connections have no headers.
    pub to_http2: bool,
    /// The way it came.
    pub chain: &'a Chain,
    /// Whether it came over TLS.
    pub https: bool,
    /// The authority that was asked for, from `Host` or `:authority`.
    pub authority: Option<&'a str>,
    /// Its id: see [`super::trace::request_id`].
    pub request_id: &'a HeaderValue,
    /// Its trace.
    pub trace: &'a TraceContext,
    /// Now, in Unix seconds.
    pub unix_seconds: i64,
}

/// Makes a request's headers those of the request to the upstream. The `Host` is left as it is.
pub fn to_upstream(headers: &mut HeaderMap, passage: &Passage<'_>) {
    // A proxy of ours knows how the client came; nobody else is asked.
    let proto = single(headers, &X_FORWARDED_PROTO).filter(|_| passage.chain.is_proxied()).map(HeaderValue::as_bytes);
    let https = match proto {
        Some(b"https" | b"wss") => true,
        Some(b"http" | b"ws") => false,
        _ => passage.https,
    };
    let upgraded = headers.get(header::UPGRADE).filter(|_| passage.upgrade).cloned();
    let trailers = takes_trailers(headers);
    strip(headers, true);
    if let Some(upgraded) = upgraded {
        headers.insert(header::UPGRADE, upgraded);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if !passage.to_http2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
    }
    headers.reserve(OURS);
    headers.insert(X_REQUEST_ID, passage.request_id.clone());
    headers.insert(TRACEPARENT, passage.trace.traceparent());
    if let Some(state) = &passage.trace.state {
        headers.insert(TRACESTATE, state.clone());
    }
    headers.insert(X_TRACE_ID, passage.trace.trace_id());
    headers.insert(X_GATEWAY_TIME, HeaderValue::from(passage.unix_seconds));
    set(headers, X_FORWARDED_FOR, &passage.chain.to_string());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
    if let Some(authority) = passage.authority {
        set(headers, X_FORWARDED_HOST, authority);
    }
    let port = passage.authority.and_then(route::port).unwrap_or(if https { 443 } else { 80 });
    headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
    append_via(headers, passage.version);
}

/// Makes an upstream's headers those of the answer to the client. `upgraded` is an answer 101 to an upgrade that was passed
/// on.
pub fn to_client(headers: &mut HeaderMap, upgraded: bool, request_id: &HeaderValue) {
    // Of both the encoding wins (RFC 9112, section 6.3), and the length is then anybody's guess.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let upgrade = headers.get(header::UPGRADE).filter(|_| upgraded).cloned();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // It ended where the encoding said, whatever the length is (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    strip(headers, false);
    if let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Makes a request's headers those that Tidegate's own endpoints see: what is of the connection goes, and what proxies said
/// stays, as these ask it of trusted ones themselves.
pub fn to_own(headers: &mut HeaderMap) {
    remove(headers, |name| is_one_of(name, &HOP_BY_HOP) || is_spelling(name));
}

/// Takes out of trailers, either way, what may not be in them.
pub fn trailers(headers: &mut HeaderMap) {
    remove(headers, |name| {
        is_owned(name) || is_one_of(name, &HOP_BY_HOP) || is_one_of(name, &NOT_IN_TRAILERS) || is_spelling(name)
    });
}

/// Makes one line of the cookies, which HTTP/2 may spread over several for its compression (RFC 9113, section 8.2.3): where
/// HTTP/1 is spoken, many take the first line for all.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return };
    let mut all = [first.as_bytes(), b"; ", second.as_bytes()].concat();
    for line in lines {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(line.as_bytes());
    }
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(header::COOKIE, all);
    }
}

/// Whether a request asks for an upgrade that can be passed on: HTTP/1.1, with a `Connection` that says so and one protocol
/// in `Upgrade`. Never to another version of HTTP: what is said in it would pass by all rules here.
pub fn upgrade(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let Some(protocol) = single(headers, &header::UPGRADE) else { return false };
    let protocol = protocol.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-./".contains(byte);
    let starts = |with: &[u8]| protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    method == Method::GET
        && version == Version::HTTP_11
        && !protocol.is_empty()
        && protocol.iter().all(plain)
        && !["h2", "h3", "http", "tls"].iter().any(|no| starts(no.as_bytes()))
        && listed(headers, &header::CONNECTION).any(|name| name.eq_ignore_ascii_case(b"upgrade"))
}

/// Whether an answer's body is what it is read as: any other encoding than by chunks would be lost on its way.
pub fn is_readable(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::TRANSFER_ENCODING);
    encodings.iter().all(|encoding| encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
        && encodings.iter().count() < 2
}

/// Whether a name is the gateway's own, in any spelling.
pub fn is_owned(name: &str) -> bool {
    OWNED_PREFIXES.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|start| same(start, prefix)))
        || is_one_of(name, &OWNED)
}

/// Whether a name says where a message ends, or is one connection's: nobody sets it by hand.
pub fn is_framing(name: &str) -> bool {
    is_one_of(name, &HOP_BY_HOP) || is_one_of(name, &["content-length", "trailer"])
}

/// What is the same both ways. Answers have no forwarded names of ours in them, but an upstream's internal ones do not
/// leave the house either.
fn strip(headers: &mut HeaderMap, is_request: bool) {
    let listed: Vec<HeaderName> = listed(headers, &header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| !is_one_of(name.as_str(), &END_TO_END) && !is_owned(name.as_str()))
        .collect();
    remove(headers, |name| {
        is_one_of(name, &HOP_BY_HOP)
            || listed.iter().any(|listed| listed == name)
            || is_spelling(name)
            || if is_request { is_owned(name) } else { is_of_the_house(name) }
    });
}

/// Names of answers that are for the inside, and those that the gateway says itself.
fn is_of_the_house(name: &str) -> bool {
    let prefix = OWNED_PREFIXES[0];
    name.get(..prefix.len()).is_some_and(|start| same(start, prefix))
        || is_one_of(name, &["x-gateway-time", "x-request-id"])
}

/// Whether a name is another spelling of one that servers behind would take it for.
fn is_spelling(name: &str) -> bool {
    name.contains('_') && (is_owned(name) || is_one_of(name, &END_TO_END) || is_one_of(name, &HOP_BY_HOP))
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| same(name, other))
}

/// Whether a name is `other`, which is in lower case and has no underscores.
fn same(name: &str, other: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.bytes().map(plain).eq(other.bytes())
}

fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The members of a list, over all its lines.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// A header that is there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    listed(headers, &header::TE).any(|coding| {
        let name = coding.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"trailers")
    })
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The version is that of the message as it came (RFC 9110, 7.6.3).
fn append_via(headers: &mut HeaderMap, version: Version) {
    let version = match version {
        Version::HTTP_09 | Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        Version::HTTP_3 => "3.0",
        _ => "1.1",
    };
    let mut via = String::new();
    for line in headers.get_all(header::VIA).iter().filter_map(|line| line.to_str().ok()) {
        let _ = write!(via, "{line}, ");
    }
    let _ = write!(via, "{version} tidegate");
    set(headers, header::VIA, &via);
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
