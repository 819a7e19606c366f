//! The gateway in front of services that do as the tests tell them.

use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use crate::backend::{Backend, Reply};
use crate::client;
use crate::support::{Answer, TestApp, eventually};
use crate::wire::{Wire, beside};

/// The start of a gateway with an upstream `a`.
pub fn upstream(backend: &Backend) -> String {
    format!("workers = 1\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n", backend.address)
}

/// A route to it, with further lines.
pub fn route(name: &str, lines: &str) -> String {
    format!("[[gateway.routes]]\nname = \"{name}\"\nupstream = \"a\"\n{lines}\n")
}

/// An upstream `a`, and a route to it for every path.
pub fn all_to(backend: &Backend) -> String {
    upstream(backend) + &route("all", "path = \"/\"")
}

/// What a service saw, that answers with it.
pub fn seen(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The values of a header that a service saw.
pub fn told(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().unwrap();
    let named = headers.iter().filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

pub fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

pub fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[actix_web::test]
async fn requests_pass_and_answers_come_back() {
    let backend = Backend::echo();
    let app = TestApp::with_gateway(&all_to(&backend), &[]).await;
    let answer = client::get(&format!("{}/a/%7eb//c/../d?q=1&q=%2F", app.gateway())).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = answer.json();
    assert_eq!((seen["method"].as_str(), seen["target"].as_str()), (Some("GET"), Some("/a/~b/d?q=1&q=%2F")));
    let answer = client::post(&format!("{}/a", app.gateway()), &[], b"hello".to_vec()).await;
    assert_eq!(answer.json()["body"], "hello");
    assert_eq!(backend.connections(), 1, "a connection is kept and used again");
}

#[actix_web::test]
async fn routes_are_chosen_by_host_path_method_and_header() {
    let backend = Backend::echo();
    let tagged = |tag: &str| format!("request_headers = {{ x-route = \"{tag}\" }}");
    let toml = upstream(&backend)
        + &route("a", &format!("path = \"/a/\"\nrewrite = \"/inner/\"\n{}", tagged("a")))
        + &route("shop", &format!("host = \"shop.example\"\npath = \"/a/\"\n{}", tagged("shop")))
        + &route("sub", &format!("host = \"*.shop.example\"\npath = \"/a/\"\n{}", tagged("sub")))
        + &route(
            "user",
            &format!(
                "pattern = \"/users/{{id}}/orders/{{*rest}}\"\nrewrite = \"/o/{{id}}/{{*rest}}\"\n{}",
                tagged("user")
            ),
        )
        + &route("read", &format!("path = \"/m/\"\nmethods = [\"GET\"]\n{}", tagged("read")))
        + &route("write", &format!("path = \"/m/\"\nmethods = [\"PUT\", \"DELETE\"]\n{}", tagged("write")))
        + &route(
            "beta",
            &format!("path = \"/m/\"\nmethods = [\"GET\"]\nheaders = {{ x-beta = \"1\" }}\n{}", tagged("beta")),
        )
        + &route("kept", &format!("path = \"/kept/\"\npreserve_host = true\n{}", tagged("kept")));
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    for (path, headers, tag, target) in [
        ("/a/b?c=d", vec![], "a", "/inner/b?c=d"),
        ("/a", vec![], "a", "/inner"),
        ("/a/b", vec![("host", "SHOP.example:8000")], "shop", "/a/b"),
        ("/a/b", vec![("host", "x.y.shop.example")], "sub", "/a/b"),
        ("/a/b", vec![("host", "notshop.example")], "a", "/inner/b"),
        ("/users/7%2B/orders/x/y?z", vec![], "user", "/o/7%2B/x/y?z"),
        ("/m/x", vec![], "read", "/m/x"),
        ("/m/x", vec![("x-beta", "1")], "beta", "/m/x"),
        ("/m/x", vec![("x-beta", "2")], "read", "/m/x"),
        ("/b/../a/c", vec![], "a", "/inner/c"),
    ] {
        let seen = seen(&client::get_with(&url(path), &headers).await);
        assert_eq!(told(&seen, "x-route"), [tag], "{path} {headers:?}");
        assert_eq!(seen["target"], target, "{path}");
        assert_eq!(told(&seen, "host"), [backend.address.to_string()]);
    }
    let kept = seen(&client::get_with(&url("/kept/"), &[("host", "Some.Where:1")]).await);
    assert_eq!(told(&kept, "host"), ["Some.Where:1"]);
    for path in ["/ab", "/", "/users/7/orders", "/A/b"] {
        assert_eq!(code(&client::get(&url(path)).await), (404, String::from("not_found")), "{path}");
    }
    for path in ["/a/%2e%2e%2fb", "/a/..%2fb", "/a%5cb", "/a/%00", "/../a", "/a/%zz"] {
        let answer = beside({
            let (gateway, path) = (app.gateway(), path.to_owned());
            move || Wire::to(&gateway).ask(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"))
        });
        assert_eq!(code(&answer.await), (400, String::from("bad_request")), "{path}");
    }
    let answer = client::request("POST", &url("/m/x"), &[]).await;
    assert_eq!(code(&answer), (405, String::from("method_not_allowed")));
    let allowed: Vec<&str> = answer.header("allow").unwrap().split(", ").collect();
    assert!(["DELETE", "GET", "PUT"].iter().all(|method| allowed.contains(method)), "{allowed:?}");
    assert!(answer.header("x-request-id").is_some());
    let head = client::request("HEAD", &url("/m/x"), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0), "a route for GET is one for HEAD");
}

#[actix_web::test]
async fn api_keys_open_routes_and_stay_here() {
    let backend = Backend::echo();
    let toml = upstream(&backend)
        + &route("open", "path = \"/open/\"")
        + &route("closed", "path = \"/closed/\"\nauth = \"api_key\"")
        + &format!("[gateway.api_keys]\ntill = \"sha256:{}\"\n", sha256("opensesame"));
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    let unauthorized = (401, String::from("unauthorized"));
    for (path, key) in [("/closed/", ""), ("/closed/", "wrong"), ("/open/", "wrong")] {
        let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("x-api-key", key)] };
        let answer = client::get_with(&url(path), headers).await;
        assert_eq!(code(&answer), unauthorized, "{path} {key}");
        assert!(answer.header("www-authenticate").is_some());
        assert!(key.is_empty() || !answer.text().contains(key));
    }
    assert_eq!(backend.count(), 0);
    for path in ["/closed/", "/open/"] {
        let spoof = [("x-api-key", "opensesame"), ("x-internal-consumer", "admin")];
        let seen = seen(&client::get_with(&url(path), &spoof).await);
        assert_eq!(told(&seen, "x-internal-consumer"), ["till"]);
        assert!(told(&seen, "x-api-key").is_empty());
    }
    let seen = seen(&client::get_with(&url("/open/"), &[("x-internal-consumer", "admin")]).await);
    assert!(told(&seen, "x-internal-consumer").is_empty());
}

#[actix_web::test]
async fn limits_are_told_and_kept_together() {
    let backend = Backend::echo();
    let toml = upstream(&backend)
        + "[gateway.limits.address]\nlimit = 2\nperiod = \"1h\"\nburst = 2\n"
        + "[gateway.limits.key]\nby = [\"api_key\"]\nlimit = 1\nperiod = \"1h\"\nburst = 1\n"
        + "[gateway.limits.all]\nby = [\"route\"]\nlimit = 100\nperiod = \"1h\"\nburst = 4\n"
        + &route(
            "open",
            "path = \"/\"\nlimits = [\"address\", \"key\", \"all\"]\n[gateway.routes.cors]\norigins = [\"https://shop.example\"]",
        )
        + &format!("[gateway.api_keys]\ntill = \"sha256:{}\"\n", sha256("opensesame"));
    let app = TestApp::with_gateway(&toml, &[("server.trusted_proxies", "[\"127.0.0.0/8\"]")]).await;
    let ask = async |from: &str, key: bool| {
        let mut headers = vec![("x-forwarded-for", from), ("origin", "https://shop.example")];
        if key {
            headers.push(("x-api-key", "opensesame"));
        }
        client::get_with(&format!("{}/x", app.gateway()), &headers).await
    };
    let first = ask("192.0.2.1", false).await;
    assert_eq!(first.status, 200);
    let standing = first.header("ratelimit").unwrap();
    assert!(standing.contains("address") && standing.contains("r=1"), "{standing}");
    let policy = first.header("ratelimit-policy").unwrap();
    assert!(policy.contains("\"address\";q=2;w=3600") && policy.contains("\"all\""), "{policy}");
    assert!(!policy.contains("\"key\""), "who has no key does not pay for one: {policy}");
    assert!(first.header("retry-after").is_none());
    // Another address, with a key: it pays three limits.
    assert_eq!(ask("192.0.2.2", true).await.status, 200);
    let denied = ask("192.0.2.2", true).await;
    assert_eq!(code(&denied), (429, String::from("rate_limited")));
    assert!(denied.header("ratelimit").unwrap().contains("\"key\";r=0"), "{:?}", denied.headers);
    let after: u64 = denied.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&after), "{after}");
    assert_eq!(denied.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(denied.header("cache-control"), Some("no-store"));
    // What was denied has paid nothing: of its own address there is one left, and of all there are two.
    assert_eq!(ask("192.0.2.2", false).await.status, 200);
    assert_eq!(code(&ask("192.0.2.2", false).await).0, 429);
    assert_eq!(ask("192.0.2.1", false).await.status, 200);
    let all = ask("192.0.2.3", false).await;
    assert_eq!(code(&all), (429, String::from("rate_limited")));
    assert!(all.header("ratelimit").unwrap().contains("\"all\";r=0"), "{:?}", all.headers);
    assert_eq!(backend.count(), 4);
    // A preflight pays nothing and is not denied.
    let preflight = [
        ("origin", "https://shop.example"),
        ("access-control-request-method", "GET"),
        ("x-forwarded-for", "192.0.2.1"),
    ];
    assert_eq!(client::request("OPTIONS", &format!("{}/x", app.gateway()), &preflight).await.status, 204);
}

#[actix_web::test]
async fn who_is_no_proxy_of_ours_is_not_believed() {
    let backend = Backend::echo();
    let toml = upstream(&backend)
        + "[gateway.limits.address]\nlimit = 1\nperiod = \"1h\"\nburst = 1\n"
        + &route("open", "path = \"/\"\nlimits = [\"address\"]");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = format!("{}/x", app.gateway());
    let seen = seen(&client::get_with(&url, &[("x-forwarded-for", "192.0.2.1")]).await);
    assert_eq!(told(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    for spoof in ["192.0.2.2", "192.0.2.3, 127.0.0.1"] {
        assert_eq!(client::get_with(&url, &[("x-forwarded-for", spoof)]).await.status, 429);
    }
}

#[actix_web::test]
async fn users_have_limits_of_their_own() {
    let backend = Backend::echo();
    let toml = upstream(&backend)
        + "[gateway.limits.each]\nby = [\"user\"]\nlimit = 2\nperiod = \"1h\"\nburst = 2\n"
        + &route("theirs", "path = \"/theirs/\"\nauth = \"user\"\nlimits = [\"each\"]")
        + &route("open", "path = \"/open/\"\nlimits = [\"each\"]")
        + &route("foreign", "path = \"/foreign/\"");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    let account = async |login: &str| {
        let body = serde_json::json!({ "login": login, "password": "correct horse battery" });
        let json = [("content-type", "application/json")];
        for step in ["register", "login"] {
            let answer = client::send("POST", &format!("{}/api/v1/auth/{step}", app.url), &json, &body).await;
            assert!(answer.status < 300, "{}", answer.text());
            if step == "login" {
                return format!("Bearer {}", answer.json()["data"]["access_token"].as_str().unwrap());
            }
        }
        unreachable!()
    };
    let (ann, bob) = (account("ann").await, account("bob").await);
    let get = async |path: &str, token: &str| client::get_with(&url(path), &[("authorization", token)]).await;

    for token in ["", "Bearer wrong", "Basic YTpi"] {
        let answer = if token.is_empty() { client::get(&url("/theirs/")).await } else { get("/theirs/", token).await };
        assert_eq!(code(&answer), (401, String::from("unauthorized")), "{token}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let first = get("/theirs/", &ann).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(told(&seen(&first), "x-internal-user").len(), 1);
    assert_eq!(get("/open/", &ann).await.status, 200);
    assert_eq!(code(&get("/theirs/", &ann).await), (429, String::from("rate_limited")), "both routes share it");
    assert_eq!(get("/theirs/", &bob).await.status, 200, "another one has another bucket");
    // Where nobody need be known, a token may be the upstream's own, and who has none does not pay.
    assert_eq!(get("/open/", "Bearer wrong").await.status, 200);
    let foreign = get("/foreign/", "Bearer of-the-upstream").await;
    assert_eq!(told(&seen(&foreign), "authorization"), ["Bearer of-the-upstream"]);
    assert!(told(&seen(&foreign), "x-internal-user").is_empty());
    for _ in 0..5 {
        assert_eq!(client::get(&url("/open/")).await.status, 200);
    }
}

#[actix_web::test]
async fn pages_of_other_origins_are_let_in_by_policy() {
    let backend =
        Backend::start(|_| Reply::with(200, &[("access-control-allow-origin", "*"), ("vary", "accept")], "x"));
    let cors = "[gateway.routes.cors]\norigins = [\"https://shop.example\"]\nmethods = [\"GET\", \"PUT\"]\nheaders = [\"x-a\"]\nexpose = [\"x-b\"]\ncredentials = true\nmax_age = \"5m\"";
    let toml = upstream(&backend)
        + &route("with", &format!("path = \"/with/\"\nmethods = [\"GET\", \"PUT\"]\nauth = \"api_key\"\n{cors}"))
        + &route("open", &format!("path = \"/open/\"\nmax_body = 3\n{cors}"))
        + &route("without", "path = \"/without/\"")
        + &format!("[gateway.api_keys]\ntill = \"sha256:{}\"\n", sha256("opensesame"));
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    let preflight = async |origin: &str, method: &str, headers: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", headers),
        ];
        client::request("OPTIONS", &url("/with/"), &headers).await
    };
    let good = preflight("https://shop.example", "PUT", "X-A").await;
    assert_eq!(good.status, 204);
    assert_eq!(good.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(good.header("access-control-allow-methods"), Some("GET, PUT"));
    assert_eq!(good.header("access-control-allow-headers"), Some("x-a"));
    assert_eq!(good.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(good.header("access-control-max-age"), Some("300"));
    assert!(good.header("vary").unwrap().contains("Origin"));
    for (origin, method, headers) in [
        ("https://shop.example.evil", "PUT", "x-a"),
        ("https://evil-shop.example", "PUT", "x-a"),
        ("http://shop.example", "PUT", "x-a"),
        ("null", "PUT", "x-a"),
        ("https://shop.example", "PUT", "x-a, x-other"),
    ] {
        let bad = preflight(origin, method, headers).await;
        assert_eq!(bad.header("access-control-allow-origin"), None, "{origin} {method} {headers}");
    }
    assert_eq!(backend.count(), 0, "preflights are answered here");
    let origin = ("origin", "https://shop.example");
    // Errors too can be read by the page.
    let unauthorized = client::get_with(&url("/with/"), &[origin]).await;
    assert_eq!((unauthorized.status, unauthorized.header(origin.0)), (401, None));
    assert_eq!(unauthorized.header("access-control-allow-origin"), Some(origin.1));
    let large = client::post(&url("/open/"), &[origin], b"1234".to_vec()).await;
    assert_eq!((large.status, large.header("access-control-allow-origin")), (413, Some(origin.1)));
    let passed = client::get_with(&url("/open/"), &[origin]).await;
    let allowed: Vec<_> = passed.headers.iter().filter(|(name, _)| name == "access-control-allow-origin").collect();
    assert_eq!(allowed.len(), 1, "in place of the upstream's");
    assert_eq!(allowed[0].1, origin.1);
    assert_eq!(passed.header("access-control-expose-headers"), Some("x-b"));
    let evil = client::get_with(&url("/open/"), &[("origin", "https://evil.example")]).await;
    assert_eq!((evil.status, evil.header("access-control-allow-origin")), (200, None));
    let vary: Vec<&str> =
        evil.headers.iter().filter(|(name, _)| name == "vary").map(|(_, value)| value.as_str()).collect();
    assert!(vary.contains(&"accept") && vary.contains(&"Origin"), "{vary:?}");
    // Without a policy, the upstream speaks for itself.
    let without = client::get_with(&url("/without/"), &[("origin", "https://evil.example")]).await;
    assert_eq!(without.header("access-control-allow-origin"), Some("*"));
}

#[actix_web::test]
async fn bodies_that_are_too_long_are_refused_and_end_the_connection() {
    let backend = Backend::echo();
    let toml = upstream(&backend) + &route("all", "path = \"/\"\nmax_body = \"1KiB\"");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.gateway();
    beside(move || {
        let exactly = "x".repeat(1024);
        let mut wire = Wire::to(&gateway);
        let answer = wire.ask(format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1024\r\n\r\n{exactly}"));
        assert_eq!(answer.json()["body"], exactly);
        let mut chunked = String::from("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..64 {
            chunked.push_str(&format!("10\r\n{}\r\n", "y".repeat(16)));
        }
        assert_eq!(wire.ask(chunked.clone() + "0\r\n\r\n").status, 200);
        // Far more than the sockets hold: whoever sends it reads the answer when all is sent, or could not be.
        let large = "z".repeat(8 << 20);
        let refused = |wire: &mut Wire| {
            let answer = wire.answer().expect("the answer is not lost");
            assert_eq!(code(&answer), (413, String::from("body_too_large")));
            assert_eq!(answer.header("connection"), Some("close"));
            wire.end();
        };
        wire.try_send(format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{large}", large.len()));
        refused(&mut wire);
        let mut wire = Wire::to(&gateway);
        wire.try_send(chunked + &format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len()));
        refused(&mut wire);
        assert_eq!(Wire::to(&gateway).ask("GET /after HTTP/1.1\r\nHost: t\r\n\r\n").json()["target"], "/after");
    })
    .await;
    let whole: Vec<usize> = backend.seen().iter().map(|seen| seen.body.len()).collect();
    assert_eq!(whole, [1024, 1024, 0], "of what was refused, the upstream saw nothing whole");
}

fn unpacked(answer: &Answer) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    match answer.header("content-encoding") {
        Some("gzip") => drop(flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap()),
        Some("br") => drop(brotli::Decompressor::new(&answer.body[..], 4096).read_to_end(&mut plain).unwrap()),
        Some("zstd") => plain = zstd::stream::decode_all(&answer.body[..]).unwrap(),
        None => plain = answer.body.clone(),
        other => panic!("{other:?}"),
    }
    plain
}

#[actix_web::test]
async fn texts_are_compressed_for_who_takes_it() {
    let text = "All work and no play makes Jack a dull boy.\n".repeat(2000);
    let sent = text.clone();
    let backend = Backend::start(move |seen| {
        let (kind, body) = match seen.target.as_str() {
            "/image" => ("image/png", sent.as_str()),
            "/short" => ("text/plain", "short"),
            _ => ("text/plain; charset=utf-8", sent.as_str()),
        };
        let headers = [("content-type", kind), ("etag", "\"v1\""), ("accept-ranges", "bytes"), ("vary", "x-a")];
        if seen.method == "HEAD" {
            let head = Reply::with(200, &headers, body).pieces.remove(0).0;
            let end = head.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            return Reply::raw(&head[..end]);
        }
        Reply::with(200, &headers, body)
    });
    let toml = upstream(&backend)
        + &route("all", "path = \"/\"\ncompress = true")
        + &route("not", "path = \"/not/\"\ncompress = false");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    let cases = [
        ("gzip", "/a", Some("gzip")),
        ("br", "/a", Some("br")),
        ("zstd", "/a", Some("zstd")),
        ("gzip;q=0.5, br;q=0.1", "/a", Some("gzip")),
        ("gzip, deflate, br", "/a", Some("br")),
        ("identity", "/a", None),
        ("gzip;q=0", "/a", None),
        ("gzip", "/image", None),
        ("gzip", "/short", None),
        ("gzip", "/not/a", None),
    ];
    for (accepted, path, coding) in cases {
        let answer = client::get_with(&url(path), &[("accept-encoding", accepted)]).await;
        assert_eq!((answer.status, answer.header("content-encoding")), (200, coding), "{accepted} {path}");
        let plain = if path == "/short" { String::from("short") } else { text.clone() };
        assert_eq!(String::from_utf8(unpacked(&answer)).unwrap(), plain);
        let vary: Vec<&str> =
            answer.headers.iter().filter(|(name, _)| name == "vary").map(|(_, value)| value.as_str()).collect();
        if path == "/a" {
            assert!(vary.contains(&"accept-encoding") && vary.contains(&"x-a"), "{vary:?}");
        }
        if coding.is_some() {
            assert!(answer.body.len() * 5 < text.len());
            assert_eq!(answer.header("etag"), Some("W/\"v1\""));
            assert_eq!((answer.header("content-length"), answer.header("accept-ranges")), (None, None));
        } else {
            assert_eq!(answer.header("etag"), Some("\"v1\""));
            assert_eq!(answer.header("content-length"), Some(plain.len().to_string().as_str()));
        }
    }
    let head = client::request("HEAD", &url("/a"), &[("accept-encoding", "gzip")]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let vary = head.headers.iter().any(|(name, value)| name == "vary" && value == "accept-encoding");
    assert!(vary || head.header("content-length") == Some(&text.len().to_string()), "{:?}", head.headers);
}

#[actix_web::test]
async fn a_compressed_stream_is_flushed_where_it_pauses() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut reader, &mut line).unwrap() > 2 {
            line.clear();
        }
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            )
            .unwrap();
        // The rest only once the first piece has arrived.
        wait.lock().unwrap().recv().unwrap();
        stream.write_all(b"5\r\nworld\r\n0\r\n\r\n").unwrap();
    });
    let toml = format!("workers = 1\n[gateway.upstreams.a]\ntargets = [\"{address}\"]\n")
        + &route("all", "path = \"/\"\ncompress = true");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.gateway();
    beside(move || {
        let mut wire = Wire::to(&gateway);
        wire.send("GET / HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n");
        let head = wire.head().unwrap();
        assert_eq!(head.header("content-encoding"), Some("gzip"));
        let mut decoder = flate2::write::GzDecoder::new(Vec::new());
        while decoder.get_ref() != b"hello" {
            decoder.write_all(&wire.chunk().unwrap().unwrap()).unwrap();
            decoder.flush().unwrap();
        }
        go.send(()).unwrap();
        while let Some(chunk) = wire.chunk().unwrap() {
            decoder.write_all(&chunk).unwrap();
        }
        assert_eq!(decoder.finish().unwrap(), b"helloworld");
    })
    .await;
}

const OWN: &str = "workers = 1\n[[gateway.routes]]\nname = \"own\"\npath = \"/\"\nown = true\n";

#[actix_web::test]
async fn the_own_endpoints_are_reached_through_it() {
    let backend = Backend::echo();
    let toml = upstream(&backend) + &route("shop", "path = \"/shop/\"") + OWN.trim_start_matches("workers = 1\n");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = |path: &str| format!("{}{path}", app.gateway());
    let gateway = app.gateway();
    let mut live = beside(move || {
        let mut live = Wire::to(&gateway);
        live.send("GET /api/v1/stats/live HTTP/1.1\r\nHost: t\r\n\r\n");
        let head = live.head().unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
        assert!(live.chunk().unwrap().is_some(), "the first event comes at once");
        live
    })
    .await;
    let event = br#"{"url":"/through"}"#.to_vec();
    let answer = client::post(&url("/api/v1/events"), &[("content-type", "application/json")], event).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    beside(move || while !String::from_utf8(live.chunk().unwrap().unwrap()).unwrap().contains("event: delta") {}).await;
    let head = client::request("HEAD", &url("/health"), &[]).await;
    assert!((head.status, head.body.len()) == (200, 0), "{head:?}");
    let missing = client::get(&url("/api/v1/nothing")).await;
    assert_eq!(code(&missing), (404, String::from("not_found")));
    assert_eq!(missing.json()["error"]["request_id"].as_str(), missing.header("x-request-id"));
    assert_eq!(client::get(&url("/shop/x")).await.status, 200);
    let health = client::get(&url("/health")).await;
    let upstreams = &health.json()["gateway"]["upstreams"];
    assert_eq!((&upstreams[0]["name"], &upstreams[0]["status"]), (&"a".into(), &"ok".into()), "{}", health.text());
    eventually("the series count", async || {
        let metrics = app.get("/metrics").await.text();
        [
            "tidegate_gateway_requests_total{route=\"own\",status=\"2xx\"}",
            "tidegate_gateway_requests_total{route=\"shop\",status=\"2xx\"} 1",
            "tidegate_gateway_request_duration_seconds_count{route=\"shop\"} 1",
            "tidegate_upstream_requests_total{",
        ]
        .iter()
        .all(|series| metrics.contains(series))
    })
    .await;
}

#[actix_web::test]
async fn own_endpoints_get_the_headers_that_the_route_sets() {
    let toml = format!("{OWN}request_headers = {{ authorization = \"Bearer the-key-of-operators\" }}\n");
    let app = TestApp::with_gateway(&toml, &[("server.admin_key", "the-key-of-operators")]).await;
    assert_eq!(client::get(&format!("{}/api/v1/export", app.url)).await.status, 401);
    assert_eq!(client::get(&format!("{}/api/v1/export", app.gateway())).await.status, 200);
}

#[actix_web::test]
async fn a_beacon_through_it_is_counted_once_and_for_its_sender() {
    let app = TestApp::with_gateway(OWN, &[("server.trusted_proxies", "[\"127.0.0.0/8\"]")]).await;
    // Sent again with the same id, as by a page that did not hear the answer.
    for accepted in [1, 0] {
        let headers = [("content-type", "application/json"), ("x-forwarded-for", "192.0.2.7")];
        let event = br#"{"url":"/once","id":"e1"}"#.to_vec();
        let answer = client::post(&format!("{}/api/v1/events", app.gateway()), &headers, event).await;
        assert_eq!((answer.status, &answer.json()["data"]["accepted"]), (202, &accepted.into()), "{}", answer.text());
    }
    let event = br#"{"url":"/once","id":"e2"}"#.to_vec();
    let headers = [("content-type", "application/json"), ("x-forwarded-for", "192.0.2.8")];
    client::post(&format!("{}/api/v1/events", app.gateway()), &headers, event).await;
    app.counted().await;
    let summary = app.data("/api/v1/stats/summary").await;
    assert_eq!(summary["page_views"], 2);
    assert_eq!(summary["unique_visitors"], 2, "they differ by their address alone, which proxies of ours tell");
}

#[actix_web::test]
async fn a_request_has_one_id_and_one_trace_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let backend = Backend::echo();
    let toml = format!("access_log = \"{}\"\n", file.display()) + &all_to(&backend);
    let app = TestApp::with_gateway(&toml, &[]).await;
    let url = format!("{}/a/b?secret=1", app.gateway());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("x-request-id", "mine-1.2:3"), ("traceparent", parent.as_str()), ("tracestate", "a=b")];
    let answer = client::get_with(&url, &headers).await;
    assert_eq!(answer.header("x-request-id"), Some("mine-1.2:3"));
    let taken = seen(&answer);
    assert_eq!(told(&taken, "x-request-id"), ["mine-1.2:3"]);
    assert_eq!(told(&taken, "x-trace-id"), [trace]);
    assert_eq!(told(&taken, "tracestate"), ["a=b"]);
    let onward = told(&taken, "traceparent").remove(0);
    assert!(onward.starts_with(&format!("00-{trace}-")) && onward.ends_with("-01") && onward != parent, "{onward}");
    let answer = client::get_with(&url, &[("x-request-id", "not one"), ("traceparent", "00-zz")]).await;
    let made = answer.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 36);
    assert_eq!(told(&seen(&answer), "x-request-id"), [made.as_str()]);
    let missing = client::post(&format!("{}/%2f?x", app.gateway()), &[], b"abc".to_vec()).await;
    assert_eq!(missing.json()["error"]["request_id"].as_str(), missing.header("x-request-id"));
    let mut lines: Vec<Value> = Vec::new();
    eventually("three lines are logged", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        lines = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.len() == 3
    })
    .await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("127.0.0.1") && !text.contains("secret") && !text.contains('?'), "{text}");
    let first = &lines[0];
    assert_eq!(first["request_id"], "mine-1.2:3");
    assert_eq!(first["trace_id"], trace);
    assert_eq!((&first["method"], &first["path"], &first["route"]), (&"GET".into(), &"/a/b".into(), &"all".into()));
    assert_eq!((&first["status"], &first["upstream"], &first["target"]), (&200.into(), &"a".into(), &0.into()));
    assert!(first["bytes_out"].as_u64().unwrap() > 100 && first["duration_us"].as_u64().unwrap() > 0);
    assert_eq!(lines[1]["request_id"], made.as_str());
    assert_eq!(told(&seen(&answer), "x-trace-id"), [lines[1]["trace_id"].as_str().unwrap()]);
    assert_eq!((&lines[2]["status"], &lines[2]["error"]), (&400.into(), &"bad_request".into()));
}

#[actix_web::test]
async fn what_an_upstream_says_of_the_inside_stays_inside() {
    let backend = Backend::start(|_| {
        let headers = [
            ("x-internal-node", "7"),
            ("X_Internal_Node", "7"),
            ("x-request-id", "theirs"),
            ("keep-alive", "timeout=5"),
            ("connection", "keep-alive, x-gone"),
            ("x-gone", "1"),
            ("proxy-authenticate", "Basic"),
            ("x-stays", "1"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ];
        Reply::with(200, &headers, "x")
    });
    let toml =
        upstream(&backend) + &route("all", "path = \"/\"\nresponse_headers = { x-set = \"1\", x-stays = \"2\" }");
    let app = TestApp::with_gateway(&toml, &[]).await;
    let answer = client::get_with(&format!("{}/", app.gateway()), &[("x-request-id", "ours")]).await;
    for gone in ["x-internal-node", "x_internal_node", "keep-alive", "x-gone", "proxy-authenticate"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    let all = |name: &str| -> Vec<&str> {
        answer.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(all("x-request-id"), ["ours"]);
    assert_eq!(all("x-stays"), ["2"]);
    assert_eq!(all("x-set"), ["1"]);
    assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(all("content-length").len(), 1);
    tokio::time::timeout(Duration::from_secs(5), app.stop()).await.expect("it stops with idle connections");
}
