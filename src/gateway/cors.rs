//! Cross-origin requests, where a route has a policy of its own: the Fetch standard's CORS protocol, as its server.
//!
//! Origins are compared as a whole. Policies were broken by reflecting whatever origin was sent, or by its end.

use std::time::Duration;

use hyper::Method;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::options::CorsOptions;

/// What an answer may depend on, for caches between.
const VARY_PREFLIGHT: &str = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

/// A policy, ready to be asked.
#[derive(Clone, Debug)]
pub struct Cors {
    origins: Vec<HeaderValue>,
    any_origin: bool,
    methods: Vec<Method>,
    headers: Vec<String>,
    credentials: bool,
    allow_methods: HeaderValue,
    allow_headers: HeaderValue,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
}

/// Whether a request is a preflight: a browser's question, whether it may send another.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The method that a preflight asks for; the route is looked for with it.
pub fn requested_method(headers: &HeaderMap) -> Option<Method> {
    Method::from_bytes(single(headers, &header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

impl Cors {
    /// A policy as it is configured.
    pub fn new(options: &CorsOptions) -> Self {
        let list = |items: &[String]| HeaderValue::try_from(items.join(", ")).unwrap_or(HeaderValue::from_static(""));
        Self {
            origins: options.origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect(),
            any_origin: options.any_origin,
            methods: options.methods.iter().filter_map(|method| Method::from_bytes(method.as_bytes()).ok()).collect(),
            headers: options.headers.clone(),
            // Together they would let every page act for its visitor.
            credentials: options.credentials && !options.any_origin,
            allow_methods: list(&options.methods),
            allow_headers: list(&options.headers),
            expose: (!options.expose.is_empty()).then(|| list(&options.expose)),
            max_age: seconds(options.max_age),
        }
    }

    /// The headers of a preflight's answer, which is 204 and has no body. One that is not allowed has none that allow.
    pub fn preflight(&self, request: &HeaderMap) -> HeaderMap {
        let mut answer = HeaderMap::new();
        let Some(origin) = self.allowed(request) else {
            self.vary(&mut answer, true);
            return answer;
        };
        let method = requested_method(request).filter(|method| self.methods.contains(method));
        if method.is_some() && self.has_headers(request) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.allow_methods.clone());
            if !self.headers.is_empty() {
                answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.allow_headers.clone());
            }
            if self.credentials {
                answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        self.vary(&mut answer, true);
        answer
    }

    /// Puts the policy on the answer to a request, in place of what the upstream says. A page that is not allowed gets the
    /// answer without: its browser keeps it.
    pub fn apply(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        for name in OWNED {
            answer.remove(name);
        }
        if let Some(origin) = self.allowed(request) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if self.credentials {
                answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            if let Some(expose) = &self.expose {
                answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        self.vary(answer, false);
    }

    /// What is allowed to the page that sends a request.
    fn allowed(&self, request: &HeaderMap) -> Option<HeaderValue> {
        if self.any_origin {
            // Whether or not there is an origin, so that a cache may give the answer to all.
            return Some(HeaderValue::from_static("*"));
        }
        let origin = single(request, &header::ORIGIN)?;
        self.origins.iter().find(|allowed| *allowed == origin).cloned()
    }

    fn has_headers(&self, request: &HeaderMap) -> bool {
        let lines = request.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS);
        lines.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).all(|name| {
            name.is_empty() || self.headers.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(name))
        })
    }

    /// An answer that may differ by origin says so also to who sent none: a cache must not give it to others.
    fn vary(&self, answer: &mut HeaderMap, is_preflight: bool) {
        if is_preflight {
            answer.insert(header::VARY, HeaderValue::from_static(VARY_PREFLIGHT));
            return;
        }
        let named = |name: &[u8]| name == b"*" || name.eq_ignore_ascii_case(b"origin");
        let mut there =
            answer.get_all(header::VARY).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        if !self.any_origin && !there.any(|name| named(name.trim_ascii())) {
            answer.append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// Headers of answers that are ours where there is a policy.
const OWNED: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// A header that is there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    lines.next().filter(|_| lines.next().is_none())
}

fn seconds(age: Duration) -> HeaderValue {
    HeaderValue::from(age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn policy() -> CorsOptions {
        CorsOptions {
            origins: vec![String::from("https://shop.example"), String::from("https://www.shop.example:8443")],
            any_origin: false,
            methods: vec![String::from("GET"), String::from("PUT")],
            headers: vec![String::from("content-type"), String::from("x-beta")],
            expose: vec![String::from("x-total")],
            credentials: true,
            max_age: Duration::from_secs(600),
        }
    }

    fn text<'a>(map: &'a HeaderMap, name: &str) -> &'a str {
        map.get(name).map_or("-", |value| value.to_str().unwrap())
    }

    #[test]
    fn only_origins_that_are_listed_may() {
        let cors = Cors::new(&policy());
        for (origin, expected) in [
            ("https://shop.example", "https://shop.example"),
            ("https://www.shop.example:8443", "https://www.shop.example:8443"),
            ("http://shop.example", "-"),
            ("https://evil-shop.example", "-"),
            ("https://shop.example.evil.example", "-"),
            ("https://a.shop.example", "-"),
            ("https://shop.example:443", "-"),
            ("https://shop.example/", "-"),
            ("https://SHOP.example", "-"),
            ("null", "-"),
            ("", "-"),
            ("*", "-"),
        ] {
            let mut answer = map(&[("access-control-allow-origin", "*"), ("access-control-max-age", "9")]);
            cors.apply(&map(&[("origin", origin)]), &mut answer);
            assert_eq!(text(&answer, "access-control-allow-origin"), expected, "{origin}");
            let with = if expected == "-" { ("-", "-") } else { ("true", "x-total") };
            assert_eq!(text(&answer, "access-control-allow-credentials"), with.0);
            assert_eq!(text(&answer, "access-control-expose-headers"), with.1);
            assert_eq!(text(&answer, "access-control-max-age"), "-", "the upstream's");
            assert_eq!(text(&answer, "vary"), "Origin");
        }
        let mut answer = HeaderMap::new();
        cors.apply(&HeaderMap::new(), &mut answer);
        assert_eq!(answer, map(&[("vary", "Origin")]), "without an origin too");
        let twice = map(&[("origin", "https://shop.example"), ("origin", "https://shop.example")]);
        cors.apply(&twice, &mut answer);
        assert_eq!(text(&answer, "access-control-allow-origin"), "-");
        let listed = Cors::new(&CorsOptions { origins: vec![String::from("null")], ..policy() });
        listed.apply(&map(&[("origin", "null")]), &mut answer);
        assert_eq!(text(&answer, "access-control-allow-origin"), "null");
    }

    #[test]
    fn the_upstreams_vary_stays() {
        let cors = Cors::new(&policy());
        for (vary, expected) in [
            ("Accept-Encoding", vec!["Accept-Encoding", "Origin"]),
            ("Accept, origin", vec!["Accept, origin"]),
            ("*", vec!["*"]),
            ("X-Origin", vec!["X-Origin", "Origin"]),
        ] {
            let mut answer = map(&[("vary", vary)]);
            cors.apply(&HeaderMap::new(), &mut answer);
            let found: Vec<&str> = answer.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_preflight_is_allowed_whole_or_not_at_all() {
        let cors = Cors::new(&policy());
        let ask = |origin: &'static str, method: &'static str, headers: &'static str| {
            let request = map(&[
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", headers),
            ]);
            assert!(is_preflight(&Method::OPTIONS, &request) && !is_preflight(&Method::GET, &request));
            let answer = cors.preflight(&request);
            assert_eq!(text(&answer, "vary"), VARY_PREFLIGHT);
            if answer.len() == 1 {
                return false;
            }
            assert_eq!(text(&answer, "access-control-allow-origin"), origin);
            assert_eq!(text(&answer, "access-control-allow-methods"), "GET, PUT");
            assert_eq!(text(&answer, "access-control-allow-headers"), "content-type, x-beta");
            assert_eq!(text(&answer, "access-control-allow-credentials"), "true");
            assert_eq!(text(&answer, "access-control-max-age"), "600");
            true
        };
        assert!(ask("https://shop.example", "PUT", "X-Beta,content-type"));
        assert!(ask("https://shop.example", "GET", ""));
        assert!(!ask("https://evil.example", "GET", ""));
        assert!(!ask("https://shop.example", "DELETE", ""));
        assert!(!ask("https://shop.example", "put", ""), "case counts");
        assert!(!ask("https://shop.example", "", ""));
        assert!(!ask("https://shop.example", "PUT", "x-beta, x-other"));
        assert!(!ask("https://shop.example", "PUT", "*"));
        assert!(!is_preflight(&Method::OPTIONS, &map(&[("origin", "https://shop.example")])));
        assert_eq!(requested_method(&map(&[("access-control-request-method", "PUT")])), Some(Method::PUT));
    }

    #[test]
    fn any_origin_is_never_with_credentials() {
        let cors = Cors::new(&CorsOptions { origins: Vec::new(), any_origin: true, ..policy() });
        let mut answer = HeaderMap::new();
        cors.apply(&map(&[("origin", "https://a.example")]), &mut answer);
        assert_eq!(answer, map(&[("access-control-allow-origin", "*"), ("access-control-expose-headers", "x-total")]));
    }
}
