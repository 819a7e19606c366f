use std::time::Duration;

use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::gateway::options::{AuthPolicy, Destination, Fallback};

fn route(name: &str, path: &str) -> RouteOptions {
    RouteOptions {
        name: name.to_owned(),
        host: None,
        path: match path.strip_prefix('=') {
            Some(pattern) => PathMatch::Pattern(pattern.to_owned()),
            None => PathMatch::Prefix(path.to_owned()),
        },
        methods: Vec::new(),
        headers: Vec::new(),
        to: Destination::Own,
        rewrite: Rewrite::Keep,
        preserve_host: false,
        connect_timeout: Duration::from_secs(1),
        first_byte_timeout: Duration::from_secs(1),
        total_timeout: None,
        max_body: None,
        limits: Vec::new(),
        cost: 1,
        auth: AuthPolicy::Public,
        scopes: vec![],
        cors: None,
        retries: 0,
        compress: false,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        fallback: Fallback::default(),
        canary: None,
    }
}

fn get(routes: &[RouteOptions], host: &str, path: &str) -> Option<(String, String)> {
    let path = canonical(path).unwrap();
    match Router::new(routes).find(Some(host), &path, &Method::GET, &HeaderMap::new()) {
        Match::Found(found) => Some((routes[found.route].name.clone(), found.path.as_str().to_owned())),
        _ => None,
    }
}

fn name(routes: &[RouteOptions], host: &str, path: &str) -> String {
    get(routes, host, path).map_or_else(|| String::from("-"), |(name, _)| name)
}

#[test]
fn a_prefix_is_of_whole_segments() {
    let routes = [route("a", "/a/")];
    for (path, expected) in [("/a", "a"), ("/a/", "a"), ("/a/b/c", "a"), ("/ab", "-"), ("/", "-"), ("/A/", "-")] {
        assert_eq!(name(&routes, "x", path), expected, "{path}");
    }
    assert_eq!(name(&[route("all", "/")], "x", "/"), "all");
    assert_eq!(name(&[route("all", "/")], "x", "/a/b"), "all");
}

#[test]
fn a_pattern_is_of_the_whole_path() {
    let routes =
        [route("one", "=/users/{id}"), route("orders", "=/users/{id}/orders/"), route("rest", "=/files/{*path}")];
    for (path, expected) in [
        ("/users/7", "one"),
        ("/users/", "-"),
        ("/users/7/", "-"),
        ("/users/7/orders/", "orders"),
        ("/users/7/orders", "-"),
        ("/files/", "rest"),
        ("/files/a/b/", "rest"),
        ("/files", "-"),
    ] {
        assert_eq!(name(&routes, "x", path), expected, "{path}");
    }
}

#[test]
fn the_more_specific_route_wins_wherever_it_is_written() {
    let routes = [
        route("rest", "=/a/{*x}"),
        route("prefix", "/a/"),
        route("one", "=/a/{x}"),
        route("me", "=/a/me"),
        route("exact", "=/a"),
        route("deep", "/a/b/c/"),
    ];
    for (path, expected) in
        [("/a", "exact"), ("/a/me", "me"), ("/a/x", "one"), ("/a/x/y", "rest"), ("/a/b/c/d", "deep"), ("/a/b", "one")]
    {
        assert_eq!(name(&routes, "x", path), expected, "{path}");
    }
}

#[test]
fn hosts_are_compared_as_names() {
    let with = |name: &str, host: &str| RouteOptions { host: Some(host.to_owned()), ..route(name, "/") };
    let routes = [
        route("any", "/"),
        with("suffix", "*.shop.example"),
        with("longer", "*.eu.shop.example"),
        with("exact", "www.shop.example"),
        with("six", "[2001:db8::1]"),
        RouteOptions { host: Some(String::from("narrow.shop.example")), ..route("narrow", "/only/") },
    ];
    for (host, expected) in [
        ("www.shop.example", "exact"),
        ("WWW.Shop.Example:8443", "exact"),
        ("www.shop.example.:80", "exact"),
        ("a.shop.example", "suffix"),
        ("a.b.shop.example", "suffix"),
        ("a.eu.shop.example", "longer"),
        ("shop.example", "any"),
        ("evilshop.example", "any"),
        ("[2001:DB8:0::1]:80", "six"),
        ("[2001:db8::2]", "any"),
        ("user@www.shop.example", "any"),
        ("www.shop.example:port", "any"),
        ("", "any"),
        ("narrow.shop.example", "suffix"),
    ] {
        assert_eq!(name(&routes, host, "/"), expected, "{host}");
    }
    for odd in ["a..b", ".", "a b", "a/b", "[::1", "[::1]x", "[1.2.3.4]", "a:1:2", "a:99999", "ä", "[fe80::1%1]"] {
        assert_eq!(host(odd), None, "{odd}");
    }
    assert_eq!(host("a:").as_deref(), Some("a"));
    assert_eq!(
        (port("a:81"), port("[::1]:82"), port("[::1]"), port("a"), port("a:")),
        (Some(81), Some(82), None, None, None)
    );
}

#[test]
fn methods_and_headers_choose_among_routes() {
    let routes = [
        route("all", "/a/"),
        RouteOptions { methods: vec![String::from("POST")], ..route("post", "/a/") },
        RouteOptions { headers: vec![(String::from("x-beta"), None)], ..route("beta", "/a/") },
        RouteOptions { headers: vec![(String::from("x-beta"), Some(String::from("2")))], ..route("beta2", "/a/b/") },
        RouteOptions { methods: vec![String::from("PUT"), String::from("GET")], ..route("few", "/m/") },
        RouteOptions { methods: vec![String::from("DELETE")], ..route("fewer", "=/m/{id}") },
    ];
    let router = Router::new(&routes);
    let find = |method: &Method, path: &str, beta: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in beta {
            headers.append("x-beta", HeaderValue::from_static(value));
        }
        match router.find(None, &canonical(path).unwrap(), method, &headers) {
            Match::Found(found) => routes[found.route].name.clone(),
            Match::MethodNotAllowed(methods) => methods.iter().map(Method::as_str).collect::<Vec<_>>().join(","),
            Match::NotFound => String::from("-"),
        }
    };
    assert_eq!(find(&Method::GET, "/a/", &[]), "all");
    assert_eq!(find(&Method::POST, "/a/", &["1"]), "post", "a method before headers");
    assert_eq!(find(&Method::GET, "/a/", &["1"]), "beta");
    assert_eq!(find(&Method::GET, "/a/b/", &["1", "2"]), "beta2");
    assert_eq!(find(&Method::GET, "/a/b/", &["22"]), "beta");
    assert_eq!(find(&Method::HEAD, "/m/1", &[]), "few");
    assert_eq!(find(&Method::DELETE, "/m/1", &[]), "fewer");
    assert_eq!(find(&Method::PATCH, "/m/1", &[]), "DELETE,GET,HEAD,PUT");
    assert_eq!(find(&Method::PATCH, "/m/1/2", &[]), "GET,HEAD,PUT");
    assert_eq!(find(&Method::GET, "/x", &[]), "-");
    assert_eq!(find(&Method::from_bytes(b"get").unwrap(), "/m/1", &[]), "DELETE,GET,HEAD,PUT", "case counts");
}

#[test]
fn a_path_is_rewritten_as_configured() {
    let prefix = |from: &str, to: &str| RouteOptions { rewrite: Rewrite::Prefix(to.to_owned()), ..route("r", from) };
    let pattern = |from: &str, to: &str| RouteOptions { rewrite: Rewrite::Pattern(to.to_owned()), ..route("r", from) };
    for (route, path, expected) in [
        (prefix("/api/v1/users/", "/users/"), "/api/v1/users/7", "/users/7"),
        (prefix("/api/v1/users/", "/users/"), "/api/v1/users/", "/users/"),
        (prefix("/api/v1/users/", "/users/"), "/api/v1/users", "/users"),
        (prefix("/api/", "/"), "/api", "/"),
        (prefix("/api/", "/"), "/api/", "/"),
        (prefix("/api/", "/"), "/api/a/b/", "/a/b/"),
        (prefix("/", "/v2"), "/", "/v2/"),
        (prefix("/", "/v2/"), "/a", "/v2/a"),
        (prefix("/", "/"), "/a//b", "/a/b"),
        (pattern("=/users/{id}", "/v2/{id}"), "/users/a%20b", "/v2/a%20b"),
        (pattern("=/users/{id}", "/v2/{id}/"), "/users/7", "/v2/7/"),
        (pattern("=/{a}/{b}", "/{b}/x/{a}"), "/1/2", "/2/x/1"),
        (pattern("=/{a}/{*b}", "/v2/{*b}"), "/1/", "/v2/"),
        (pattern("=/{a}/{*b}", "/v2/{a}/{*b}"), "/1/2/3/", "/v2/1/2/3/"),
        (pattern("=/old", "/new"), "/old", "/new"),
        (route("r", "/a/"), "/a/b", "/a/b"),
    ] {
        assert_eq!(get(&[route], "x", path).unwrap().1, expected, "{path}");
    }
    let routes = [route("r", "=/{a}/x/{*b}")];
    let path = canonical("/1/x/2/3").unwrap();
    let Match::Found(found) = Router::new(&routes).find(None, &path, &Method::GET, &HeaderMap::new()) else {
        panic!("not found")
    };
    assert_eq!(found.captures, ["1", "2/3"]);
}

#[test]
fn patterns_are_checked() {
    for good in ["/", "/a", "/a/", "/{a}/b/{*c}", "/{a}/", "/a%20b"] {
        assert!(good.parse::<Pattern>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "a",
        "/a//b",
        "/a/../b",
        "/{a",
        "/{a}.json",
        "/{}",
        "/{*}",
        "/{*a}/b",
        "/{a}/{a}",
        "/{a-b}",
        "/a b",
        "/%61",
    ] {
        assert!(bad.parse::<Pattern>().is_err(), "{bad}");
    }
    let check = |from: &str, to: &str| from.parse::<Pattern>().unwrap().check_rewrite(&to.parse().unwrap());
    assert!(check("/{a}/{*b}", "/{*b}").is_ok());
    assert!(check("/{a}/{*b}", "/{b}/x").is_err(), "the rest is no segment");
    assert!(check("/{a}", "/{*a}").is_err());
    assert!(check("/{a}", "/{b}").is_err());
}

/// The same in the plainest way: every route by itself, and then the order of the documentation.
mod model {
    use super::*;

    fn path_matches(path: &PathMatch, sent: &str) -> bool {
        let sent: Vec<&str> = sent.split('/').skip(1).collect();
        match path {
            PathMatch::Prefix(prefix) => {
                let prefix: Vec<&str> = prefix.trim_end_matches('/').split('/').skip(1).collect();
                sent.starts_with(&prefix)
            }
            PathMatch::Pattern(pattern) => {
                let pattern: Vec<&str> = pattern.split('/').skip(1).collect();
                let fits = |(part, sent): (&&str, &&str)| match part.starts_with('{') {
                    true => !sent.is_empty(),
                    false => part == sent,
                };
                match pattern.last().filter(|last| last.starts_with("{*")) {
                    Some(_) => sent.len() >= pattern.len() && pattern.iter().rev().skip(1).rev().zip(&sent).all(fits),
                    None => sent.len() == pattern.len() && pattern.iter().zip(&sent).all(fits),
                }
            }
        }
    }

    fn host_matches(host: Option<&str>, sent: &str) -> bool {
        host.is_none_or(|host| match host.strip_prefix('*') {
            Some(suffix) => sent.ends_with(suffix) && sent.len() > suffix.len(),
            None => host == sent,
        })
    }

    fn literal(path: &PathMatch) -> (usize, bool) {
        match path {
            PathMatch::Prefix(prefix) => (prefix.trim_end_matches('/').len(), true),
            PathMatch::Pattern(pattern) => {
                let open = pattern.contains("{*");
                let parts = pattern.trim_end_matches('/').split('/').skip(1);
                let len = parts.map(|part| match (part.starts_with("{*"), part.starts_with('{')) {
                    (true, _) => 0,
                    (_, true) => 1,
                    _ => part.len() + 1,
                });
                (len.sum(), open)
            }
        }
    }

    pub fn find(routes: &[RouteOptions], host: &str, path: &str, method: &str, header: bool) -> Result<usize, bool> {
        let fits = |route: &&RouteOptions| {
            host_matches(route.host.as_deref(), host)
                && path_matches(&route.path, path)
                && (header || route.headers.is_empty())
        };
        let there: Vec<&RouteOptions> = routes.iter().filter(fits).collect();
        let taken = there.iter().filter(|route| route.methods.is_empty() || route.methods.iter().any(|m| m == method));
        let order = |route: &RouteOptions| {
            let host = route.host.as_deref();
            let kind = host.map_or(2, |host| usize::from(host.starts_with('*')));
            let (len, open) = literal(&route.path);
            let suffix = if kind == 1 { host.unwrap_or_default().len() } else { 0 };
            let place: usize = route.name.parse().unwrap();
            (kind, Reverse(suffix), Reverse(len), open, route.methods.is_empty(), Reverse(route.headers.len()), place)
        };
        match taken.min_by_key(|route| order(route)) {
            Some(route) => Ok(route.name.parse().unwrap()),
            None => Err(!there.is_empty()),
        }
    }
}

fn any_route() -> impl Strategy<Value = RouteOptions> {
    let host = prop::sample::select(vec![None, None, Some("a.x"), Some("*.x"), Some("*.a.x"), Some("b.a.x")]);
    let part = || prop::sample::select(vec!["a", "b", "ab", "{p}"]);
    let path = (prop::collection::vec(part(), 0..4), any::<bool>(), prop::sample::select(vec!["", "/", "/{*r}"]));
    let path = path.prop_map(|(parts, is_prefix, end)| {
        let mut text = String::new();
        for (number, part) in parts.iter().enumerate() {
            let literal = if is_prefix { "b" } else { part };
            text.push('/');
            text.push_str(&if *part == "{p}" && !is_prefix { format!("{{p{number}}}") } else { literal.to_owned() });
        }
        match is_prefix {
            true => PathMatch::Prefix(format!("{text}/")),
            false if text.is_empty() && end.is_empty() => PathMatch::Pattern(String::from("/")),
            false => PathMatch::Pattern(format!("{text}{end}")),
        }
    });
    let methods = prop::sample::select(vec![vec![], vec![], vec!["GET"], vec!["POST", "PUT"]]);
    (host, path, methods, any::<bool>()).prop_map(|(host, path, methods, header)| RouteOptions {
        host: host.map(String::from),
        path,
        methods: methods.into_iter().map(String::from).collect(),
        headers: if header { vec![(String::from("x-beta"), None)] } else { Vec::new() },
        ..route("", "/")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn the_tree_finds_what_the_model_finds(
        mut routes in prop::collection::vec(any_route(), 1..12),
        host in prop::sample::select(vec!["a.x", "b.a.x", "c.b.a.x", "x", "y"]),
        parts in prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "c"]), 0..5),
        slash in any::<bool>(),
        method in prop::sample::select(vec!["GET", "POST", "DELETE"]),
        header in any::<bool>(),
    ) {
        for (place, route) in routes.iter_mut().enumerate() {
            route.name = place.to_string();
        }
        let mut path: String = parts.iter().flat_map(|part| ["/", part]).collect();
        if slash || path.is_empty() {
            path.push('/');
        }
        let mut headers = HeaderMap::new();
        if header {
            headers.insert("x-beta", HeaderValue::from_static("1"));
        }
        let path = canonical(&path).unwrap();
        let method_sent = Method::from_bytes(method.as_bytes()).unwrap();
        let found = match Router::new(&routes).find(Some(host), &path, &method_sent, &headers) {
            Match::Found(found) => Ok(found.route),
            Match::MethodNotAllowed(methods) => {
                prop_assert!(!methods.contains(&method_sent));
                Err(true)
            }
            Match::NotFound => Err(false),
        };
        prop_assert_eq!(found, model::find(&routes, host, path.as_str(), method, header));
    }

    #[test]
    fn a_rewritten_path_is_canonical_and_gains_no_segments(
        parts in prop::collection::vec(prop::sample::select(vec!["a", "b%2E", "..", "c%20", ".", ""]), 0..7),
        from in prop::sample::select(vec!["/", "/a/", "=/{x}/{y}", "=/{x}/{*y}", "=/{*y}"]),
        to in prop::sample::select(vec!["/", "/v2", "/v2/", "/v2/w/"]),
    ) {
        let Ok(path) = canonical(&format!("/{}", parts.join("/"))).map(CanonicalPath::into_owned) else { return Ok(()) };
        let rewrite = match from.strip_prefix('=') {
            None => Rewrite::Prefix(to.to_owned()),
            Some("/{x}/{y}") => Rewrite::Pattern(String::from("/v2/{y}/{x}")),
            Some("/{x}/{*y}") => Rewrite::Pattern(String::from("/v2/{x}/{*y}")),
            Some(_) => Rewrite::Pattern(String::from("/v2/{*y}")),
        };
        let routes = [RouteOptions { rewrite, ..route("r", from) }];
        if let Match::Found(found) = Router::new(&routes).find(None, &path, &Method::GET, &HeaderMap::new()) {
            let text = found.path.as_str();
            prop_assert!(matches!(canonical(text), Ok(again) if again.as_str() == text), "{}", text);
            prop_assert!(text.split('/').count() <= path.as_str().split('/').count() + 2, "{} of {}", text, path);
        }
    }
}
