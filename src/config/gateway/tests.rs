use super::*;
use crate::config::raw::RawConfig;
use crate::gateway::canary::Decider;
use crate::gateway::options::{BreakerWindow, Destination, Discovery, HashOn, LimitKey, PathMatch, Rewrite};

const FILE: &str = include_str!("../../../config/tidegate.toml");

fn check(text: &str) -> Result<GatewayOptions, Vec<(String, String)>> {
    let raw: Gateway = toml::from_str(text).unwrap();
    let around = Around {
        data: Path::new("data"),
        server: SocketAddr::from(([127, 0, 0, 1], 8080)),
        trusted_proxies: &[],
        drain_timeout: Duration::from_secs(5),
    };
    let mut found = Vec::new();
    let options = validate(&raw, &around, &mut |key, message| found.push((key.to_owned(), message)));
    if found.is_empty() { Ok(options) } else { Err(found) }
}

fn mistakes(text: &str) -> Vec<String> {
    check(text).err().unwrap_or_default().into_iter().map(|(key, _)| key).collect()
}

/// One of everything, which is fine.
const GOOD: &str = "\
listen = \"127.0.0.1:8000\"
[limits.l]
limit = 100
[upstreams.u]
targets = [\"a.example:80\"]
[upstreams.v]
targets = [\"[::1]:80\"]
";

fn with_route(lines: &str) -> String {
    format!("{GOOD}[[routes]]\nname = \"r\"\n{lines}\n")
}

#[test]
fn what_is_written_is_what_is_done() {
    let text = "\
listen = \"127.0.0.1:8000\"
access_log = \"stderr\"
[limits.both]
by = [\"route\", \"address\"]
limit = 5
period = \"1s\"
shadow = true
[upstreams.users]
targets = [\"10.0.0.1:80\", { address = \"10.0.0.2:80\", weight = 3 }]
balance = \"consistent_hash\"
hash_on = \"header:X-Session\"
breaker = { window = 50, failure_rate = 0.25 }
health = { path = \"/up?deep=1\" }
[upstreams.plain]
targets = [\"b:81\"]
breaker = false
[[routes]]
name = \"users\"
host = \"*.shop.example\"
pattern = \"/users/{id}\"
methods = [\"GET\"]
headers = { X-Beta = \"*\", x-kind = \"a\" }
upstream = \"users\"
rewrite = \"/v2/{id}\"
total_timeout = \"forever\"
max_body = 0
limits = [\"both\"]
auth = \"api_key\"
cors = { origins = [\"https://shop.example\"], headers = [\"X-Beta\"], credentials = true }
request_headers = { X-Internal-Zone = \"edge\" }
fallback = { stale = \"1m\", upstream = \"plain\" }
canary = { upstream = \"plain\", steps = [0.5, 5], header = \"X-Canary\", cookie = \"Beta\", cookie_value = \"*\" }
[[routes]]
name = \"own\"
path = \"/api/\"
rewrite = \"/\"
own = true
[api_keys]
till = \"sha256:9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08\"
";
    let options = check(text).unwrap();
    let limit = &options.limits["both"];
    assert_eq!((limit.by.clone(), limit.burst, limit.shadow), (vec![LimitKey::Address, LimitKey::Route], 1, true));
    assert!(!limit.shared, "there is no Redis");
    let users = &options.upstreams["users"];
    let Discovery::Static(targets) = &users.discovery else { panic!("{users:?}") };
    assert_eq!(targets.iter().map(|target| target.weight).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(users.hash_on, HashOn::Header(String::from("x-session")));
    let breaker = users.breaker.as_ref().unwrap();
    assert_eq!((breaker.window, breaker.failure_rate, breaker.probes), (BreakerWindow::Count(50), 0.25, 5));
    assert_eq!(users.health.as_ref().unwrap().interval, Duration::from_secs(5));
    let plain = &options.upstreams["plain"];
    assert!(plain.breaker.is_none() && plain.health.is_none() && plain.tls.is_none());
    let [route, own] = options.routes.as_slice() else { panic!("{:?}", options.routes) };
    assert_eq!(route.path, PathMatch::Pattern(String::from("/users/{id}")));
    assert_eq!(route.rewrite, Rewrite::Pattern(String::from("/v2/{id}")));
    assert_eq!((route.total_timeout, route.max_body), (None, None));
    let headers = vec![(String::from("x-beta"), None), (String::from("x-kind"), Some(String::from("a")))];
    assert_eq!(route.headers, headers);
    assert_eq!(route.request_headers, [(String::from("x-internal-zone"), String::from("edge"))]);
    assert_eq!(route.cors.as_ref().unwrap().headers, ["x-beta"]);
    let canary = route.canary.as_ref().unwrap();
    assert_eq!(canary.steps.iter().map(|step| step.slots()).collect::<Vec<_>>(), [50, 500]);
    let decider =
        |name: &str, value: Option<&str>| Some(Decider { name: name.to_owned(), value: value.map(String::from) });
    assert_eq!(canary.header, decider("x-canary", Some("always")));
    assert_eq!(canary.cookie, decider("Beta", None));
    assert_eq!(route.fallback.stale, Some(Duration::from_secs(60)));
    assert_eq!((&own.to, &own.rewrite), (&Destination::Own, &Rewrite::Prefix(String::from("/"))));
    assert_eq!(own.total_timeout, Some(Duration::from_secs(60)));
    assert_eq!(options.api_keys["till"][..4], [0x9f, 0x86, 0xd0, 0x81]);
    assert_eq!(options.state_dir, Path::new("data/gateway"));
    let nothing = check("").unwrap();
    assert!(nothing.listen.is_none() && nothing.tls.is_none() && nothing.routes.is_empty());
    let shared = check(&format!("{GOOD}[limiter]\nurl = \"redis://127.0.0.1:1\"")).unwrap();
    assert!(shared.limits["l"].shared && shared.limiter.redis.is_some());
}

#[test]
fn mistakes_of_the_front_name_the_key() {
    assert_eq!(mistakes(GOOD), [""; 0]);
    for (text, expected) in [
        ("listen = \"here\"", vec!["gateway.listen"]),
        ("listen = \"127.0.0.1:8080\"", vec!["gateway.listen"]),
        ("[[routes]]\nname = \"a\"\npath = \"/\"\nown = true", vec!["gateway.listen"]),
        ("tls_listen = \"127.0.0.1:1\"", vec!["gateway.tls_cert_file", "gateway.tls_key_file"]),
        ("tls_cert_file = \"Cargo.toml\"", vec!["gateway.tls_cert_file"]),
        (
            "tls_listen = \"127.0.0.1:1\"\ntls_cert_file = \"Cargo.toml\"\ntls_key_file = \"/no/such\"",
            vec!["gateway.tls_key_file"],
        ),
        (
            "tls_listen = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:1\"\ntls_cert_file = \"Cargo.toml\"\ntls_key_file = \"Cargo.toml\"",
            vec!["gateway.tls_listen"],
        ),
        ("max_connections = 0", vec!["gateway.max_connections"]),
        ("max_header_bytes = 100", vec!["gateway.max_header_bytes"]),
        ("workers = 5000", vec!["gateway.workers"]),
        ("client_timeout = \"forever\"", vec!["gateway.client_timeout"]),
        ("keep_alive = \"forever\"", vec!["gateway.keep_alive"]),
        ("access_log = \"/no/such/folder/a.log\"", vec!["gateway.access_log"]),
        ("[limiter]\nmax_bytes = 1", vec!["gateway.limiter.max_bytes"]),
        ("[limiter]\nprefix = \"{\"", vec!["gateway.limiter.prefix"]),
        ("[limiter]\ninterval = \"1s\"\nlease = \"1s\"", vec!["gateway.limiter.lease"]),
        ("[limiter]\nurl = \"http://user:secret@x\"", vec!["gateway.limiter.url"]),
        ("[limiter]\nurl = \"redis://a\"\nredis = { ca_file = \"/no/such\" }", vec!["gateway.limiter.redis.ca_file"]),
        ("[limiter.redis]\ntimeout = \"0s\"", vec!["gateway.limiter.redis.timeout"]),
        ("[limits.a]", vec!["gateway.limits.a.limit"]),
        ("[limits.A]\nlimit = 1", vec!["gateway.limits.A"]),
        ("[limits.a]\nlimit = 1\nby = []", vec!["gateway.limits.a.by"]),
        ("[limits.a]\nlimit = 1\nby = [\"user\", \"user\"]", vec!["gateway.limits.a.by"]),
        ("[limits.a]\nlimit = 1\nperiod = \"0s\"", vec!["gateway.limits.a.period"]),
        ("[limits.a]\nlimit = 2000000\nperiod = \"1ms\"", vec!["gateway.limits.a.limit"]),
        ("[limits.a]\nlimit = 1\nburst = 1001", vec!["gateway.limits.a.burst"]),
        ("[api_keys]\na = \"my-key\"", vec!["gateway.api_keys.a"]),
        ("[api_keys]\na = \"sha256:00\"", vec!["gateway.api_keys.a"]),
    ] {
        assert_eq!(mistakes(text), expected, "{text}");
    }
    let hash = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    assert_eq!(mistakes(&format!("[api_keys]\na = \"{hash}\"\nb = \"{hash}\"")), ["gateway.api_keys.b"]);
    for (text, secret) in [("[api_keys]\na = \"my-key\"", "my-key"), ("[limiter]\nurl = \"http://u:pass@x\"", "pass")] {
        let said = format!("{:?}", check(text).unwrap_err());
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn mistakes_of_upstreams_name_the_key() {
    for (lines, expected) in [
        ("", vec!["targets"]),
        ("targets = []", vec!["targets"]),
        ("targets = [\"a\"]", vec!["targets"]),
        ("targets = [\"a:0\"]", vec!["targets"]),
        ("targets = [\"http://a:1\"]", vec!["targets"]),
        ("targets = [\"a:1\", \"a:1\"]", vec!["targets"]),
        ("targets = [{ address = \"a:1\", weight = 0 }]", vec!["targets"]),
        ("targets = [\"a:1\"]\nconsul = { service = \"s\" }", vec!["targets"]),
        ("consul = {}", vec!["consul.service"]),
        ("consul = { service = \"a/b\" }", vec!["consul.service"]),
        ("consul = { service = \"a\", address = \"x\" }", vec!["consul.address"]),
        ("consul = { service = \"a\", token_file = \"/no/such\" }", vec!["consul.token_file"]),
        ("etcd = {}", vec!["etcd.prefix"]),
        ("etcd = { prefix = \"/a/\", endpoints = [] }", vec!["etcd.endpoints"]),
        ("etcd = { prefix = \"/a/\", endpoints = [\"x\"] }", vec!["etcd.endpoints"]),
        ("hash_on = \"path\"", vec!["targets", "hash_on"]),
        ("balance = \"consistent_hash\"\nhash_on = \"cookie\"\ntargets = [\"a:1\"]", vec!["hash_on"]),
        ("balance = \"consistent_hash\"\nhash_on = \"header:a b\"\ntargets = [\"a:1\"]", vec!["hash_on"]),
        ("targets = [\"a:1\"]\nhash_load = 0.5", vec!["hash_load"]),
        ("targets = [\"a:1\"]\nhash_load = nan", vec!["hash_load"]),
        ("targets = [\"a:1\"]\nfail_timeout = \"forever\"", vec!["fail_timeout"]),
        ("targets = [\"a:1\"]\npanic_threshold = 2.0", vec!["panic_threshold"]),
        ("targets = [\"a:1\"]\nretry_budget = -1.0", vec!["retry_budget"]),
        ("targets = [\"a:1\"]\nmax_in_flight = 0", vec!["max_in_flight"]),
        ("targets = [\"a:1\"]\nqueue_timeout = \"forever\"", vec!["queue_timeout"]),
        ("targets = [\"a:1\"]\nhealth = { path = \"x\" }", vec!["health.path"]),
        ("targets = [\"a:1\"]\nhealth = { path = \"/a/../b\" }", vec!["health.path"]),
        ("targets = [\"a:1\"]\nhealth = { interval = \"1s\" }", vec!["health.timeout"]),
        ("targets = [\"a:1\"]\nhealth = { healthy_after = 0 }", vec!["health.healthy_after"]),
        ("targets = [\"a:1\"]\nbreaker = { window = 10 }", vec!["breaker.min_calls"]),
        ("targets = [\"a:1\"]\nbreaker = { window = \"1ms\" }", vec!["breaker.window"]),
        ("targets = [\"a:1\"]\nbreaker = { failure_rate = 0.0 }", vec!["breaker.failure_rate"]),
        ("targets = [\"a:1\"]\nbreaker = { slow_rate = nan }", vec!["breaker.slow_rate"]),
        ("targets = [\"a:1\"]\nbreaker = { open_for = \"forever\" }", vec!["breaker.open_for"]),
        ("targets = [\"a:1\"]\nbreaker = { probes = 0 }", vec!["breaker.probes"]),
        ("targets = [\"a:1\"]\ntls = { server_name = \"a/b\" }", vec!["tls.server_name"]),
        ("targets = [\"a:1\"]\ntls = { ca_file = \"/no/such\" }", vec!["tls.ca_file"]),
    ] {
        let expected: Vec<String> = expected.iter().map(|key| format!("gateway.upstreams.u.{key}")).collect();
        assert_eq!(mistakes(&format!("[upstreams.u]\n{lines}")), expected, "{lines}");
    }
    for lines in ["tls = true", "health = true", "breaker = true", "breaker = { window = \"100\" }"] {
        assert_eq!(mistakes(&format!("[upstreams.u]\ntargets = [\"a:1\"]\n{lines}")), [""; 0], "{lines}");
    }
}

#[test]
fn mistakes_of_routes_name_the_key() {
    let good = "path = \"/a/\"\nupstream = \"u\"";
    assert_eq!(mistakes(&with_route(good)), [""; 0]);
    for (lines, expected) in [
        ("upstream = \"u\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"/a\"\npattern = \"/a\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"a\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"/a//b\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"/%61\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"/a/{id}\"", vec!["path"]),
        ("upstream = \"u\"\npath = \"/a?b\"", vec!["path"]),
        ("upstream = \"u\"\npattern = \"/{*a}/b\"", vec!["pattern"]),
        ("path = \"/a/\"", vec!["upstream"]),
        ("path = \"/a/\"\nupstream = \"u\"\nown = true", vec!["upstream"]),
        ("path = \"/a/\"\nupstream = \"w\"", vec!["upstream"]),
    ] {
        let expected: Vec<String> = expected.iter().map(|key| format!("gateway.routes.r.{key}")).collect();
        assert_eq!(mistakes(&with_route(lines)), expected, "{lines}");
    }
    for (line, expected) in [
        ("host = \"Shop.example\"", "host"),
        ("host = \"shop.example:80\"", "host"),
        ("host = \"*\"", "host"),
        ("host = \"a.*.b\"", "host"),
        ("methods = [\"get\"]", "methods"),
        ("methods = [\"CONNECT\"]", "methods"),
        ("methods = [\"GET\", \"GET\"]", "methods"),
        ("headers = { \"a b\" = \"1\" }", "headers"),
        ("headers = { X_Internal_Token = \"1\" }", "headers"),
        ("headers = { X-Beta = \"1\", x-beta = \"2\" }", "headers"),
        ("rewrite = \"b\"", "rewrite"),
        ("rewrite = \"/b/{id}\"", "rewrite"),
        ("rewrite = \"/b/../\"", "rewrite"),
        ("connect_timeout = \"forever\"", "connect_timeout"),
        ("first_byte_timeout = \"0s\"", "first_byte_timeout"),
        ("total_timeout = \"0s\"", "total_timeout"),
        ("limits = [\"m\"]", "limits"),
        ("limits = [\"l\", \"l\"]", "limits"),
        ("limits = [\"l\"]\ncost = 11", "cost"),
        ("cost = 0", "cost"),
        ("scopes = [\"orders:read\"]", "scopes"),
        ("auth = \"api_key\"\nscopes = [\"a b\"]", "scopes"),
        ("retries = 11", "retries"),
        ("request_headers = { X-Forwarded-For = \"a\" }", "request_headers"),
        ("request_headers = { Content-Length = \"1\" }", "request_headers"),
        ("request_headers = { a = \"\\u0000\" }", "request_headers"),
        ("response_headers = { Connection = \"close\" }", "response_headers"),
        ("fallback = { stale = \"forever\" }", "fallback.stale"),
        ("fallback = { upstream = \"w\" }", "fallback.upstream"),
        ("fallback = { upstream = \"u\" }", "fallback.upstream"),
        ("cors = {}", "cors.origins"),
        ("cors = { origins = [\"*\"], credentials = true }", "cors.credentials"),
        ("cors = { origins = [\"*\", \"https://a\"] }", "cors.origins"),
        ("cors = { origins = [\"a.example\"] }", "cors.origins"),
        ("cors = { origins = [\"https://a/\"] }", "cors.origins"),
        ("cors = { origins = [\"https://A\"] }", "cors.origins"),
        ("cors = { origins = [\"https://a:443\"] }", "cors.origins"),
        ("cors = { origins = [\"https://*.a\"] }", "cors.origins"),
        ("cors = { origins = [\"null\"], methods = [\"get\"] }", "cors.methods"),
        ("cors = { origins = [\"http://[::1]:81\"], headers = [\"*\"] }", "cors.headers"),
        ("cors = { origins = [\"https://a:8443\"], max_age = \"forever\" }", "cors.max_age"),
        ("canary = { weight = 1 }", "canary.upstream"),
        ("canary = { upstream = \"u\", weight = 1 }", "canary.upstream"),
        ("canary = { upstream = \"w\", weight = 1 }", "canary.upstream"),
        ("canary = { upstream = \"v\" }", "canary.steps"),
        ("canary = { upstream = \"v\", steps = [1, 1] }", "canary.steps"),
        ("canary = { upstream = \"v\", steps = [5, 101] }", "canary.steps"),
        ("canary = { upstream = \"v\", steps = [0, 1] }", "canary.steps"),
        ("canary = { upstream = \"v\", steps = [1], weight = 1 }", "canary.weight"),
        ("canary = { upstream = \"v\", weight = 0.001, header = \"x\" }", "canary.weight"),
        ("canary = { upstream = \"v\", steps = [1], interval = \"1ms\" }", "canary.interval"),
        ("canary = { upstream = \"v\", steps = [1], min_requests = 0 }", "canary.min_requests"),
        ("canary = { upstream = \"v\", steps = [1], max_error_difference = nan }", "canary.max_error_difference"),
        ("canary = { upstream = \"v\", steps = [1], max_p99_ratio = 0.9 }", "canary.max_p99_ratio"),
        ("canary = { upstream = \"v\", header = \"a b\", weight = 1 }", "canary.header"),
        ("canary = { upstream = \"v\", header = \"X-Internal-Beta\" }", "canary.header"),
        ("canary = { upstream = \"v\", header = \"x\", header_value = \"never\" }", "canary.header_value"),
        ("canary = { upstream = \"v\", cookie = \"c\", cookie_value = \"a;b\" }", "canary.cookie_value"),
    ] {
        assert_eq!(
            mistakes(&with_route(&format!("{good}\n{line}"))),
            [format!("gateway.routes.r.{expected}")],
            "{line}"
        );
    }
    let own = with_route("path = \"/a/\"\nown = true\ncanary = { upstream = \"v\", weight = 1 }");
    assert_eq!(mistakes(&own), ["gateway.routes.r.canary"]);
    let pattern = "pattern = \"/a/{id}\"\nupstream = \"u\"\nrewrite = ";
    assert_eq!(mistakes(&with_route(&format!("{pattern}\"/b/{{id}}\""))), [""; 0]);
    assert_eq!(mistakes(&with_route(&format!("{pattern}\"/b/{{other}}\""))), ["gateway.routes.r.rewrite"]);
    let twice = format!("{}[[routes]]\nname = \"s\"\n{good}", with_route(good));
    assert_eq!(mistakes(&twice), ["gateway.routes.s"], "it is never taken");
    let names = format!("{}[[routes]]\nname = \"r\"\npath = \"/b\"\nown = true", with_route(good));
    assert_eq!(mistakes(&names), ["gateway.routes.#2.name"]);
    let (_, message) = check(&with_route("path = \"/a/\"\nupstream = \"uu\"")).unwrap_err().remove(0);
    assert!(message.contains("did you mean `u`?"), "{message}");
}

/// The part of the shipped file that is commented out, as it is without the marks.
fn example() -> String {
    let (_, example) = FILE.split_once("\n# [gateway.limits.per_address]\n").unwrap();
    let lines = example.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) => setting,
        None => line.strip_prefix('#').expect("all of it is commented out"),
    });
    ["[gateway.limits.per_address]"].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_in_the_shipped_file_holds_every_default() {
    let raw = toml::from_str::<RawConfig>(&example()).unwrap().gateway;
    let text = String::from;
    assert_eq!(raw.limits["per_address"], Limit { limit: 100, ..Limit::default() });
    let users = &raw.upstreams["users"];
    let expected = Upstream {
        targets: users.targets.clone(),
        health: Switch(Some(Health::default())),
        breaker: Switch(Some(Breaker::default())),
        tls: Switch(Some(Tls::default())),
        ..Upstream::default()
    };
    assert_eq!(*users, expected);
    assert_eq!(users.targets.last().map(|target| target.weight), Some(2));
    assert_eq!(raw.upstreams["stock"].consul, Some(Consul { service: text("stock"), ..Consul::default() }));
    assert_eq!(raw.upstreams["carts"].etcd, Some(Etcd { prefix: text("/services/carts/"), ..Etcd::default() }));
    let cors = Cors { origins: vec![text("https://shop.example")], ..Cors::default() };
    let steps = vec![1.0, 5.0, 10.0, 25.0, 50.0, 100.0];
    let route = Route {
        name: text("users"),
        path: text("/api/v1/users/"),
        upstream: text("users"),
        limits: vec![text("per_address")],
        cors: Some(cors),
        canary: Some(Canary { upstream: text("users_next"), steps, ..Canary::default() }),
        ..Route::default()
    };
    assert_eq!(raw.routes, [route]);
    // And it is fine as it stands, once somebody listens.
    let whole = format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{}", example());
    let table: toml::Table = toml::from_str(&whole).unwrap();
    assert_eq!(mistakes(&toml::to_string(&table["gateway"]).unwrap()), [""; 0]);
}

#[test]
fn the_example_in_the_shipped_file_names_every_setting_with_a_comment() {
    let table: toml::Table = toml::from_str(&example()).unwrap();
    let gateway = table["gateway"].as_table().unwrap();
    let route = gateway["routes"].as_array().unwrap()[0].as_table().unwrap();
    let upstreams = gateway["upstreams"].as_table().unwrap();
    let inner = |table: &toml::Table, key: &str| table[key].as_table().unwrap().clone();
    let users = inner(upstreams, "users");
    for (section, known, written) in [
        ("limit", unknown::<Limit>(), inner(&inner(gateway, "limits"), "per_address")),
        ("upstream", unknown::<Upstream>(), {
            let mut all = users.clone();
            all.extend(inner(upstreams, "stock"));
            all.extend(inner(upstreams, "carts"));
            all
        }),
        ("health", unknown::<Health>(), inner(&users, "health")),
        ("breaker", unknown::<Breaker>(), inner(&users, "breaker")),
        ("tls", unknown::<Tls>(), inner(&users, "tls")),
        ("consul", unknown::<Consul>(), inner(&inner(upstreams, "stock"), "consul")),
        ("etcd", unknown::<Etcd>(), inner(&inner(upstreams, "carts"), "etcd")),
        ("route", unknown::<Route>(), route.clone()),
        ("cors", unknown::<Cors>(), inner(route, "cors")),
        ("fallback", unknown::<Fallback>(), inner(route, "fallback")),
        ("canary", unknown::<Canary>(), inner(route, "canary")),
    ] {
        assert!(!known.is_empty(), "{section}");
        for key in known {
            assert!(written.contains_key(&key), "{section}: {key} is not in the file");
        }
    }
    let mut before = String::new();
    for line in example().lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with("# "), "no comment above {line}");
        }
        before = line.to_owned();
    }
}

/// The keys of a section, from its error message about an unknown one.
fn unknown<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let error = toml::from_str::<T>("nosuch = 1").err().unwrap();
    error.message().split('`').skip(3).step_by(2).map(String::from).collect()
}
