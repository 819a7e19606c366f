//! Who may send events for a site: write keys, origins, and names that nobody knows.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::client;
use crate::support::{Answer, Process, TestApp, eventually, run};
use crate::webdriver::Browser;

const SITES: &str = "\
[sites.shop]
write_keys = [\"key-of-now\", \"key-before\"]
[sites.blog]
origins = [\"https://blog.example\", \"https://*.blog.example\", \"http://localhost:3000\"]
[sites.both]
write_keys = [\"key-of-both\"]
origins = [\"https://both.example\"]
[sites.open]
";

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Codes of what was refused, whether something else was taken or not.
fn codes(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let rejected = if answer.status == 202 { &body["data"]["rejected"] } else { &body["error"]["rejected"] };
    let codes = rejected.as_array().unwrap_or_else(|| panic!("{}", answer.text())).iter();
    codes.map(|reject| reject["code"].as_str().unwrap().to_owned()).collect()
}

/// `taken`, or the one code by which it was refused as a whole.
fn fate(answer: &Answer) -> String {
    match answer.status {
        200 | 202 => String::from("taken"),
        403 => {
            assert_eq!(answer.json()["error"]["code"], "nothing_allowed", "{}", answer.text());
            codes(answer).remove(0)
        }
        other => panic!("{other}: {}", answer.text()),
    }
}

async fn post(app: &TestApp, query: &str, headers: Headers<'_>, body: impl Into<Vec<u8>>) -> Answer {
    client::post(&format!("{}/api/v1/events{query}", app.url), headers, body.into()).await
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

/// The audit, once everything is counted: both sides agree, and this is the journal's of a site.
async fn books(app: &TestApp, site: &str) -> Value {
    app.counted().await;
    let audit = app.data("/api/v1/audit").await;
    assert_eq!(audit["agree"], true, "{audit}");
    let sites = audit["sites"].as_array().unwrap();
    sites.iter().find(|book| book["site"] == site).map_or(Value::Null, |book| book["journal"].clone())
}

#[actix_web::test]
async fn a_key_opens_a_site_however_it_is_sent_and_whatever_it_brings() {
    let app = TestApp::with_file(SITES, &[]).await;
    let event = r#"{"url":"/a","site":"shop"}"#;
    let long = format!("[{}]", vec![event; 6000].join(","));
    assert!(long.len() > 128 << 10, "decoded in slices");
    let shapes: [(&str, Vec<u8>); 7] = [
        ("application/json", event.into()),
        ("application/json", format!("[{event},{event}]").into()),
        ("text/plain;charset=UTF-8", format!("[{event}]").into()),
        ("text/plain;charset=UTF-8", gzip(event)),
        ("application/x-ndjson", format!("{event}\n{event}\n").into()),
        ("", event.into()),
        ("application/json", long.clone().into()),
    ];
    let basic = |key: &str| format!("Basic {}", STANDARD.encode(format!("{key}:")));
    for (key, expected) in [
        ("key-of-now", "taken"),
        ("key-before", "taken"),
        ("key-of-both", "invalid_write_key"),
        ("KEY-OF-NOW", "invalid_write_key"),
        ("key-of-no", "invalid_write_key"),
        ("short", "invalid_write_key"),
    ] {
        for (kind, body) in &shapes {
            let kind = ("content-type", *kind);
            let answers = [
                post(&app, "", &[kind, ("x-write-key", key)], body.clone()).await,
                post(&app, &format!("?write_key={key}"), &[kind], body.clone()).await,
                post(&app, "", &[kind, ("authorization", &basic(key))], body.clone()).await,
            ];
            for answer in &answers {
                assert_eq!(fate(answer), expected, "{key} {kind:?} {}", body.len());
                assert!(!answer.text().contains(key), "{}", answer.text());
            }
        }
        let pixel = format!("{}/api/v1/pixel.gif?url=/a&site=shop", app.url);
        assert_eq!(fate(&client::get(&format!("{pixel}&write_key={key}")).await), expected);
        assert_eq!(fate(&client::get_with(&pixel, &[("x-write-key", key)]).await), expected);
    }
    for (kind, body) in &shapes {
        assert_eq!(fate(&post(&app, "", &[("content-type", kind)], body.clone()).await), "write_key_required");
    }
    let answer = post(&app, "", &[], long).await;
    assert_eq!((codes(&answer).len(), answer.status), (1000, 403), "a thousand are listed");
    assert_eq!(
        fate(&client::get(&format!("{}/api/v1/pixel.gif?url=/a&site=shop", app.url)).await),
        "write_key_required"
    );

    // Each way of sending: a body of each shape (6,008 events in all), and two keys; the pixel twice.
    let book = books(&app, "shop").await;
    assert_eq!(book["accepted"], 2 * (3 * 6008 + 2), "{book}");
    let rejected = json!({"invalid_write_key": 4 * (3 * 6008 + 2), "write_key_required": 6008 + 6000 + 1});
    assert_eq!(book["rejected"], rejected, "{book}");
    assert_eq!(app.data("/api/v1/stats/summary?site=shop").await["page_views"], book["accepted"]);
}

#[actix_web::test]
async fn two_keys_and_giant_ones_are_none() {
    let app = TestApp::with_file(SITES, &[]).await;
    let event = r#"{"url":"/a","site":"shop"}"#;
    let giant = "k".repeat(60_000);
    let encoded = format!("Basic {}", STANDARD.encode(&giant));
    let cases: [(&str, Headers); 8] = [
        ("", &[("x-write-key", "key-of-now"), ("x-write-key", "key-before")]),
        ("", &[("x-write-key", "key-of-now,key-of-now")]),
        ("?write_key=key-of-now&write_key=key-of-others", &[]),
        ("?write_key=key-of-others", &[("x-write-key", "key-of-now")]),
        ("", &[("x-write-key", &giant)]),
        ("", &[("authorization", &encoded)]),
        ("", &[("authorization", "Basic %%%")]),
        ("", &[("x-write-key", "")]),
    ];
    for (query, headers) in cases {
        assert_eq!(fate(&post(&app, query, headers, event).await), "invalid_write_key", "{query}");
    }
    let query = format!("?write_key={}", "k".repeat(30_000));
    assert_eq!(fate(&post(&app, &query, &[], event).await), "invalid_write_key");
    // The same twice is one; and who else is meant by Authorization does not matter beside a key.
    let twice: Headers = &[("x-write-key", "key-of-now"), ("x-write-key", "key-of-now")];
    assert_eq!(fate(&post(&app, "?write_key=key-of-now", twice, event).await), "taken");
    let staging = format!("Basic {}", STANDARD.encode("staging:password"));
    let headers: Headers = &[("authorization", &staging)];
    assert_eq!(fate(&post(&app, "?write_key=key%2Dof%2Dnow", headers, event).await), "taken");
    assert_eq!(fate(&post(&app, "", headers, event).await), "invalid_write_key");
    assert_eq!(books(&app, "shop").await["accepted"], 2);
}

#[actix_web::test]
async fn events_of_several_sites_in_one_body_are_judged_one_by_one() {
    let app = TestApp::with_file(SITES, &[]).await;
    let batch = r#"[{"url":"/a","site":"open"},{"url":"/a","site":"shop"},{"url":"/a","site":"blog"},{"url":"/a","site":"both"},
        {"url":"/a"},{"url":"/a","site":"made-up"},{"x":1,"site":"shop"},{"x":1,"site":"open"},7]"#;
    let (key, page) = ("write_key_required", "origin_not_allowed");
    let answer = post(&app, "", &[], batch).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json()["data"]["accepted"], 3);
    assert_eq!(codes(&answer), [key, page, key, key, "missing_type", "not_an_object"]);

    let shop: Headers = &[("x-write-key", "key-of-now"), ("origin", "https://www.blog.example")];
    let answer = post(&app, "", shop, batch).await;
    assert_eq!(answer.json()["data"]["accepted"], 5, "{}", answer.text());
    assert_eq!(codes(&answer), ["invalid_write_key", "missing_type", "missing_type", "not_an_object"]);

    // Nothing is taken: for the sender's sake alone it is 403, and where there is something to mend 400.
    let answer = post(&app, "", &[], r#"[{"url":"/a","site":"shop"},{"url":"/a","site":"blog"}]"#).await;
    assert_eq!((answer.status, codes(&answer)), (403, vec![String::from(key), String::from(page)]));
    let answer = post(&app, "", &[], r#"[{"url":"/a","site":"shop"},{"x":1}]"#).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("nothing_usable")));
    assert_eq!(answer.header("www-authenticate"), None);

    let shop = json!({"received": 5, "accepted": 1, "duplicates": 0, "rejected": {"write_key_required": 4, "missing_type": 1}});
    let mut expected = shop;
    expected["received"] = json!(6);
    assert_eq!(books(&app, "shop").await, expected);
    assert_eq!(books(&app, "both").await["rejected"], json!({"write_key_required": 1, "invalid_write_key": 1}));
}

#[actix_web::test]
async fn origins_are_compared_as_a_whole() {
    let app = TestApp::with_file(SITES, &[]).await;
    let event = r#"{"url":"/a","site":"blog"}"#;
    let mut taken = 0;
    for (headers, fine) in [
        (vec![("origin", "https://blog.example")], true),
        (vec![("origin", "https://www.blog.example")], true),
        (vec![("origin", "https://a.b.blog.example")], true),
        (vec![("origin", "HTTPS://BLOG.Example:443")], true),
        (vec![("origin", "http://localhost:3000")], true),
        (vec![("origin", "https://blog.example"), ("referer", "https://evil.example/")], true),
        (vec![("origin", "https://blog.example"), ("origin", "https://blog.example")], true),
        (vec![("referer", "https://blog.example/page?x=1")], true),
        (vec![("referer", "https://www.blog.example")], true),
        (vec![], false),
        (vec![("origin", "null")], false),
        (vec![("origin", "")], false),
        (vec![("origin", "null"), ("referer", "https://blog.example/")], false),
        (vec![("origin", "http://blog.example")], false),
        (vec![("origin", "https://blog.example:8443")], false),
        (vec![("origin", "https://localhost:3000")], false),
        (vec![("origin", "http://localhost")], false),
        (vec![("origin", "https://evilblog.example")], false),
        (vec![("origin", "https://blog.example.evil.example")], false),
        (vec![("origin", "https://blog.example@evil.example")], false),
        (vec![("origin", "https://evil.example/https://blog.example")], false),
        (vec![("origin", "https://blog.example"), ("origin", "https://evil.example")], false),
        (vec![("origin", "https://blog.example, https://evil.example")], false),
        (vec![("referer", "https://evil.example/?https://blog.example/")], false),
        (vec![("referer", "/page")], false),
        (vec![("x-write-key", "key-of-now")], false),
    ] {
        let expected = if fine { "taken" } else { "origin_not_allowed" };
        assert_eq!(fate(&post(&app, "", &headers, event).await), expected, "{headers:?}");
        let pixel = format!("{}/api/v1/pixel.gif?url=/a&site=blog", app.url);
        assert_eq!(fate(&client::get_with(&pixel, &headers).await), expected, "a pixel, {headers:?}");
        taken += 2 * u64::from(fine);
    }
    // With keys as well: a server says no origin, and a browser must say the right one.
    let event = r#"{"url":"/a","site":"both"}"#;
    let (key, page) = (("x-write-key", "key-of-both"), ("origin", "https://both.example"));
    for (headers, expected) in [
        (vec![key], "taken"),
        (vec![key, page], "taken"),
        (vec![key, ("referer", "https://both.example/x")], "taken"),
        (vec![key, ("origin", "https://evil.example")], "origin_not_allowed"),
        (vec![key, ("origin", "null")], "origin_not_allowed"),
        (vec![key, ("referer", "https://evil.example/x")], "origin_not_allowed"),
        (vec![page], "write_key_required"),
        (vec![], "write_key_required"),
        (vec![("x-write-key", "key-of-now"), page], "invalid_write_key"),
    ] {
        assert_eq!(fate(&post(&app, "", &headers, event).await), expected, "{headers:?}");
    }
    let book = books(&app, "blog").await;
    assert_eq!((book["accepted"].as_u64(), book["rejected"].as_object().unwrap().len()), (Some(taken), 1), "{book}");
    assert_eq!(books(&app, "both").await["accepted"], 3);
}

#[actix_web::test]
async fn made_up_sites_fill_no_books_and_the_books_outlive_the_process() {
    let file = format!("[ingest]\nunknown_sites = \"reject\"\nmax_sites = 8\n{SITES}");
    let app = TestApp::with_file(&file, &[]).await;
    for n in 0..50 {
        let answer = post(&app, "", &[], format!(r#"[{{"url":"/a","site":"made-up-{n}"}},{{"url":"/a"}}]"#)).await;
        assert_eq!((answer.status, codes(&answer)), (400, vec![String::from("unknown_site"); 2]), "{}", answer.text());
    }
    assert_eq!(post(&app, "", &[], r#"{"url":"/a","site":"shop"}"#).await.status, 403);
    // There is room for the real ones.
    let answer = post(
        &app,
        "?write_key=key-of-now",
        &[("origin", "https://blog.example")],
        r#"[{"url":"/a","site":"open"},
        {"url":"/a","site":"shop"},{"url":"/a","site":"blog"},{"url":"/a","site":"both"},{"url":"/a","site":"other"}]"#,
    );
    let answer = answer.await;
    assert_eq!(answer.json()["data"]["accepted"], 3, "{}", answer.text());
    assert_eq!(codes(&answer), ["invalid_write_key", "unknown_site"]);
    assert_eq!(books(&app, "(unknown)").await["rejected"], json!({"unknown_site": 101}));
    let before = app.data("/api/v1/audit").await["sites"].clone();

    let app = TestApp::on(app.stop().await, &[], Clock::system()).await;
    books(&app, "shop").await;
    assert_eq!(app.data("/api/v1/audit").await["sites"], before, "every code is read again");
    // The same journal, from its first entry.
    let folder = app.stop().await;
    for name in ["stats.db", "stats.db-wal", "stats.db-shm", "journal/checkpoint"] {
        let _ = std::fs::remove_file(folder.path().join("data").join(name));
    }
    let app = TestApp::on(folder, &[], Clock::system()).await;
    books(&app, "shop").await;
    assert_eq!(app.data("/api/v1/audit").await["sites"], before);
}

#[actix_web::test]
async fn the_operators_imports_need_no_key() {
    let file = format!("[ingest]\nunknown_sites = \"reject\"\n{SITES}");
    let app = TestApp::with_file(&file, &[]).await;
    let lines =
        ["shop", "blog", "both", "open", "from-the-past"].map(|site| format!(r#"{{"url":"/a","site":"{site}"}}"#));
    let answer = client::post(&format!("{}/api/v1/import", app.url), &[], lines.join("\n").into()).await;
    assert_eq!(answer.json()["data"]["accepted"], 5, "{}", answer.text());
    assert_eq!(books(&app, "from-the-past").await["accepted"], 1);
}

#[actix_web::test]
async fn pages_of_a_site_may_read_their_answers() {
    let file = format!("[ingest]\ncors_origins = [\"https://*.other.example\"]\n{SITES}");
    let app = TestApp::with_file(&file, &[]).await;
    let url = format!("{}/api/v1/events", app.url);
    let preflight = async |origin: &str, method: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "content-type,x-write-key"),
        ];
        let answer = client::request("OPTIONS", &url, &headers).await;
        let allowed = answer.header("access-control-allow-origin").map(str::to_owned);
        assert!(answer.status == 200 || allowed.is_none(), "{}", answer.text());
        (answer.status, allowed, answer.header("access-control-allow-headers").map(str::to_owned))
    };
    let headers = Some(String::from("content-type,x-write-key"));
    for origin in
        ["https://blog.example", "https://www.blog.example", "https://both.example", "https://a.other.example"]
    {
        assert_eq!(preflight(origin, "POST").await, (200, Some(origin.to_owned()), headers.clone()));
        let answer = post(&app, "", &[("origin", origin)], r#"{"url":"/a","site":"blog"}"#).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some(origin), "also on {}", answer.status);
        assert_eq!(answer.header("vary"), Some("Origin"));
    }
    for origin in ["https://evil.example", "https://other.example", "null"] {
        assert_eq!(preflight(origin, "POST").await, (400, None, None));
        let answer = post(&app, "", &[("origin", origin)], r#"{"url":"/a","site":"open"}"#).await;
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (202, None),
            "it is taken, and not shown"
        );
    }
    assert_eq!(preflight("https://blog.example", "DELETE").await, (400, None, None));
    let plain = post(&app, "", &[], r#"{"url":"/a","site":"open"}"#).await;
    assert_eq!((plain.status, plain.header("access-control-allow-origin")), (202, None));
    // An error of another kind has it too, so that a page can read what was wrong.
    let answer = post(&app, "", &[("origin", "https://blog.example")], "rubbish").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (400, Some("https://blog.example")));
    let options = client::request("OPTIONS", &url, &[("origin", "https://blog.example")]).await;
    assert_eq!(options.status, 405, "no preflight");
}

/// Every file below a folder that has a text.
fn files_with(folder: &std::path::Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[actix_web::test]
async fn a_write_key_is_told_to_nobody() {
    const KEY: &str = "Kq7vXw2nWriteKey";
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("tidegate.toml"));
    let text = |key: &str| {
        format!(
            "listen = \"127.0.0.1:0\"\n[sites.shop]\nwrite_keys = [\"{key}\"]\norigins = [\"https://shop.example\"]\n"
        )
    };
    let server =
        Process::with_gateway(&data, &text(KEY).replace("listen = \"127.0.0.1:0\"\n", ""), &[("log.level", "trace")]);
    let url = format!("{}/api/v1/events", server.url);
    let event = br#"{"url":"/a","site":"shop"}"#.to_vec();
    let basic = format!("Basic {}", STANDARD.encode(format!("{KEY}:")));
    let mut told = Vec::new();
    for (origin, status) in [("https://shop.example", 202), ("https://evil.example", 403)] {
        for sent in [("x-write-key", KEY), ("authorization", basic.as_str())] {
            told.push(client::post(&url, &[("origin", origin), sent], event.clone()).await);
        }
        told.push(client::post(&format!("{url}?write_key={KEY}"), &[("origin", origin)], event.clone()).await);
        for answer in &told[told.len() - 3..] {
            assert_eq!(answer.status, status, "{}", answer.text());
        }
        let pixel = format!("{}/api/v1/pixel.gif?url=/a&site=shop&write_key={KEY}", server.url);
        told.push(client::get_with(&pixel, &[("origin", origin)]).await);
    }
    told.push(client::post(&format!("{url}?write_key={KEY}x"), &[], event.clone()).await);
    told.push(client::get(&format!("{}/nowhere?write_key={KEY}", server.url)).await);
    for path in ["/metrics", "/api/v1/audit", "/health", "/api/v1/export", "/openapi.json"] {
        told.push(client::get(&format!("{}{path}", server.url)).await);
    }
    // Changed, taken back, and changed with mistakes.
    let admin = format!("{}/api/v1/admin/config", server.admin);
    let head = "[gateway]\n";
    told.push(client::post(&admin, &[], format!("{head}{}", text("another-key-of-ours")).into()).await);
    assert_eq!(told.last().unwrap().status, 200, "{}", told.last().unwrap().text());
    told.push(client::post(&format!("{admin}/rollback"), &[], vec![]).await);
    assert_eq!(told.last().unwrap().status, 200, "{}", told.last().unwrap().text());
    let good = format!("{head}{}", text(KEY));
    let broken = [
        good.replace("write_keys = [", "write_keys = "),
        good.replace("write_keys = [", "write_keyz = ["),
        good.replace(&format!("{KEY}\""), KEY),
        good.replace(&format!("[\"{KEY}\"]"), &format!("\"{KEY}\"")),
        good.replace(&format!("\"{KEY}\""), &format!("\"{KEY} with space\"")),
        good.replace(&format!("\"{KEY}\""), &format!("5, \"{KEY}\"")),
        good.replace("origins = [\"https", "origins = [\"htt ps"),
    ];
    for text in &broken {
        let answer = client::post(&admin, &[], text.clone().into()).await;
        assert_eq!(answer.status, 422, "{text}\n{}", answer.text());
        told.push(answer);
        // From the file, into the log; and on the command line.
        std::fs::write(&file, text).unwrap();
        assert_eq!(client::post(&format!("{admin}/reload"), &[], vec![]).await.status, 422);
        let (code, out, err) = run(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!(code, Some(1));
        assert!(!format!("{out}{err}").contains(KEY), "{out}{err}");
    }
    // The watcher says in the log what is wrong.
    let log = folder.path().join("data.log");
    let said = |text: &str| std::fs::read_to_string(&log).unwrap().contains(text);
    std::fs::write(&file, &broken[1]).unwrap();
    eventually("the log tells the mistake", async || said("write_keyz")).await;
    std::fs::write(&file, &good).unwrap();
    for path in ["", "/history"] {
        told.push(client::get(&format!("{admin}{path}")).await);
    }
    let (code, shown, _) = run(&["config", "show", "--admin", &server.admin]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("write_keys = [\"(hidden)\"]") && !shown.contains(KEY), "{shown}");
    for answer in &told {
        let headers = format!("{:?}", answer.headers);
        assert!(!answer.text().contains(KEY) && !headers.contains(KEY), "{headers}\n{}", answer.text());
    }
    server.terminate();
    server.wait(std::time::Duration::from_secs(20));
    let found = files_with(folder.path(), KEY);
    // Versions of the config, which are the owner's alone, and the file itself.
    let elsewhere: Vec<&String> =
        found.iter().filter(|path| !path.contains("data/config/") && !path.ends_with("tidegate.toml")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    assert!(said("TRACE") && !found.is_empty(), "there was something to find");
    assert!(files_with(folder.path(), &basic["Basic ".len()..]).is_empty());
}

/// A page on a port of its own, and so an origin of its own, with the tracker.
fn page(server: &str, head: &str, attributes: &str) -> String {
    use actix_web::{App, HttpResponse, HttpServer, web};
    let page = format!(
        "<!doctype html><html lang=\"en\"><title>Page</title>{head}<script defer src=\"{server}/tracker.js\" {attributes}></script></html>"
    );
    let server = HttpServer::new(move || {
        let page = page.clone();
        let answer = move || {
            let page = page.clone();
            async move { HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page) }
        };
        App::new().default_service(web::get().to(answer))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", server.addrs()[0]);
    actix_web::rt::spawn(server.run());
    url
}

#[actix_web::test]
async fn a_real_browser_sends_the_key_and_its_origin() {
    let app = TestApp::with_file("", &[]).await;
    let own = page(&app.url, "", "data-site=\"shop\" data-write-key=\"key-of-the-shop\"");
    let copy = page(&app.url, "", "data-site=\"shop\" data-write-key=\"key-of-the-shop\"");
    let shy = "<meta name=\"referrer\" content=\"no-referrer\">";
    let shy = page(&app.url, shy, "data-site=\"shop\" data-write-key=\"key-of-the-shop\"");
    let keyless = page(&app.url, "", "data-site=\"shop\"");
    // Ports were free ones, so the site is told of its pages while the server runs.
    let config = format!(
        "[ingest]\ncors_origins = []\n[sites.shop]\nwrite_keys = [\"key-of-the-shop\"]\norigins = [\"{own}\", \"{shy}\", \"{keyless}\"]\n"
    );
    app.app().control().put(config, "config", None, "the test").await.unwrap();

    let browser = Browser::start().await;
    let book = async || {
        let audit = app.data("/api/v1/audit").await;
        let sites = audit["sites"].as_array().unwrap().clone();
        let shop = sites.into_iter().find(|book| book["site"] == "shop");
        shop.map_or(Value::Null, |book| book["journal"].clone())
    };
    // As a beacon, on load; and as a fetch that lives on, once something waits in the queue.
    browser.open(&format!("{own}/one")).await;
    eventually("the view", async || book().await["accepted"] == 1).await;
    let queue = "localStorage.setItem('tidegate', JSON.stringify([{type: 'kept', id: 'k1', site: 'shop'}]));
        dispatchEvent(new Event('online'))";
    browser.run(queue, json!([])).await;
    eventually("the queued event", async || book().await["accepted"] == 2).await;
    let emptied = "return localStorage.getItem('tidegate') === '[]'";
    browser.until("the answer could be read", emptied, json!([])).await;
    assert_eq!(browser.complaints().await, [""; 0], "no page of the site is refused anything");
    let sent = "return performance.getEntriesByType('resource').map((entry) => entry.name)";
    let sent: Vec<String> = serde_json::from_value(browser.run(sent, json!([])).await).unwrap();
    assert!(sent.iter().any(|url| url.ends_with("/api/v1/events?write_key=key-of-the-shop")), "{sent:?}");

    // A copy of the page elsewhere, key and all.
    browser.open(&format!("{copy}/one")).await;
    eventually("the refusal", async || book().await["rejected"]["origin_not_allowed"] == 1).await;
    browser.run(queue, json!([])).await;
    eventually("the fetch too", async || book().await["rejected"]["origin_not_allowed"] == 2).await;
    // And a page of the site that was forgotten when the key came.
    browser.open(&format!("{keyless}/one")).await;
    eventually("the refusal", async || book().await["rejected"]["write_key_required"] == 1).await;
    // Without a Referer, this browser's beacons still have an Origin.
    browser.open(&format!("{shy}/one")).await;
    eventually("the view", async || book().await["accepted"] == 3).await;
    drop(browser);
    let book = books(&app, "shop").await;
    let rejected = json!({"origin_not_allowed": 2, "write_key_required": 1});
    assert_eq!((&book["accepted"], &book["rejected"]), (&json!(3), &rejected), "{book}");
    let data = app.data("/api/v1/stats/summary?site=shop").await;
    assert_eq!(data["events"], json!({"kept": 1, "page_view": 2}));
    app.stop().await;
}
