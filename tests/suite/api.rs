//! Every endpoint, as a client sees it.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::{Value, json};
use tidegate::clock::{Clock, DAY, HOUR, MINUTE};

use crate::client;
use crate::support::TestApp;
use crate::wire::{Wire, beside};

/// 2026-03-02T10:20:30Z, a Monday.
const NOW: i64 = 1_772_446_830_000;

async fn at(now: i64) -> TestApp {
    TestApp::with(&[], Clock::manual(now)).await
}

#[actix_web::test]
async fn events_come_in_in_every_shape() {
    let app = TestApp::start().await;
    let url = format!("{}/api/v1/events", app.url);
    let post = async |kind: &str, body: &str| {
        let answer = client::post(&url, &[("content-type", kind)], body.as_bytes().to_vec()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["data"]["accepted"].as_u64().unwrap()
    };
    assert_eq!(post("application/json", r#"{"url":"/a"}"#).await, 1);
    assert_eq!(post("application/json; charset=utf-8", r#"[{"url":"/a"},{"type":"x"}]"#).await, 2);
    assert_eq!(post("text/plain;charset=UTF-8", r#"{"url":"/a"}"#).await, 1);
    assert_eq!(post("text/plain", "{\"url\":\"/a\"}\n{\"url\":\"/b\"}\n").await, 2);
    assert_eq!(post("application/x-ndjson", "{\"url\":\"/a\"}\n\n{\"url\":\"/b\"}").await, 2);
    assert_eq!(post("", r#"{"url":"/a"}"#).await, 1);
    app.counted().await;
    assert_eq!(app.data("/api/v1/stats/summary").await["page_views"], 8);
}

#[actix_web::test]
async fn bodies_come_compressed_and_are_capped_both_ways() {
    let app = TestApp::with(&[("server.max_body_bytes", "64KiB")], Clock::system()).await;
    let url = format!("{}/api/v1/events", app.url);
    let text = br#"{"url":"/a"}"#;
    let gzip = |text: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    };
    let mut brotli = Vec::new();
    brotli::CompressorWriter::new(&mut brotli, 4096, 5, 22).write_all(text).unwrap();
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    deflate.write_all(text).unwrap();
    for (coding, body) in [
        ("gzip", gzip(text)),
        ("deflate", deflate.finish().unwrap()),
        ("br", brotli),
        ("zstd", zstd::encode_all(&text[..], 3).unwrap()),
        ("identity", text.to_vec()),
    ] {
        let answer = client::post(&url, &[("content-encoding", coding)], body).await;
        assert_eq!(answer.status, 202, "{coding}: {}", answer.text());
    }
    assert_eq!(client::post(&url, &[], gzip(text)).await.status, 202, "gzip that does not say so");
    let code = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let answer = client::post(&url, headers, body).await;
        (answer.status, answer.json()["error"]["code"].as_str().unwrap().to_owned())
    };
    let bomb = gzip(&vec![b' '; 10 << 20]);
    assert!(bomb.len() < 60_000);
    assert_eq!(code(&[("content-encoding", "gzip")], bomb).await, (413, "body_too_large".into()));
    assert_eq!(code(&[], vec![b' '; 65_537]).await, (413, "body_too_large".into()));
    assert_eq!(code(&[("content-encoding", "lzma")], vec![1]).await, (415, "unsupported_encoding".into()));
    assert_eq!(code(&[("content-encoding", "gzip")], b"no gzip".to_vec()).await, (400, "bad_request".into()));
}

#[actix_web::test]
async fn bad_events_are_told_one_by_one_in_the_envelope() {
    let app = TestApp::start().await;
    let answer = app.post(r#"[{"url":"/a"},{"x":1},7,{"url":"/b","data":[]},{"type":"ok"}]"#).await;
    assert_eq!(answer.status, 202);
    let data = answer.json()["data"].clone();
    assert_eq!((&data["accepted"], &data["durability"]), (&json!(2), &json!("written")));
    let rejected = data["rejected"].as_array().unwrap();
    let codes: Vec<_> = rejected.iter().map(|r| (r["index"].as_u64().unwrap(), r["code"].as_str().unwrap())).collect();
    assert_eq!(codes, [(1, "missing_type"), (2, "not_an_object"), (3, "invalid_data")]);

    for body in ["", "   ", "[]", "hello", r#"{"x":1}"#, r#"[{"x":1}]"#, "[", "\u{0}\u{1}", "{\"url\":\"/a\"", "null"] {
        let answer = app.post(body).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.text());
        let error = answer.json();
        assert_eq!(error["success"], false);
        assert!(["bad_request", "nothing_usable"].contains(&error["error"]["code"].as_str().unwrap()));
        assert_eq!(error["error"]["request_id"].as_str(), answer.header("x-request-id"));
        assert!(error["timestamp"].as_i64().unwrap() > 1_700_000_000);
    }
    app.counted().await;
    let audit = app.data("/api/v1/audit").await;
    assert_eq!(audit["agree"], true, "{audit}");
}

#[actix_web::test]
async fn errors_of_every_kind_have_the_envelope() {
    let app = TestApp::start().await;
    let error = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let answer = client::request(method, &format!("{}{path}", app.url), headers).await;
        let body = answer.json();
        assert_eq!(body["success"], false, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        (answer.status, body["error"]["code"].as_str().unwrap().to_owned(), answer)
    };
    assert_eq!(error("GET", "/nowhere", &[]).await.0, 404);
    for (method, path, allow) in [
        ("PUT", "/api/v1/events", "POST"),
        ("POST", "/api/v1/stats/summary", "GET, HEAD"),
        ("DELETE", "/api/v1/users/u42/events", "GET, HEAD"),
        ("BREW", "/dashboard", ""),
    ] {
        let (status, code, answer) = error(method, path, &[]).await;
        assert_eq!((status, code.as_str()), (405, "method_not_allowed"), "{method} {path}");
        assert_eq!(answer.header("allow").unwrap_or_default(), allow);
    }
    assert!(!app.get("/metrics").await.text().contains("BREW"), "anyone could make series");
    for path in [
        "/api/v1/stats/realtime?window=year",
        "/api/v1/stats/realtime?windw=hour",
        "/api/v1/stats/realtime?site=a%20b",
        "/api/v1/stats/summary?from=yesterday",
        "/api/v1/stats/summary?from=-1h&to=-2h",
        "/api/v1/stats/timeseries?metric=money",
        "/api/v1/stats/timeseries?interval=year",
        "/api/v1/stats/timeseries?tz=Mars/Base",
        "/api/v1/stats/timeseries?interval=minute&from=-30d&to=-20d",
        "/api/v1/stats/pages?limit=0",
        "/api/v1/stats/pages?limit=1001",
        "/api/v1/stats/events?limit=x",
        "/api/v1/stats/live?site=%00",
        "/api/v1/users/u/events?limit=101",
        "/api/v1/export?format=xml",
        "/api/v1/pixel.gif",
    ] {
        let (status, code, answer) = error("GET", path, &[]).await;
        assert_eq!(status, 400, "{path}: {}", answer.text());
        assert!(["bad_request", "nothing_usable"].contains(&code.as_str()), "{path}: {code}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().len() > 10);
    }
    let (_, _, answer) = error("GET", "/nowhere", &[("x-request-id", "mine-1")]).await;
    assert_eq!(answer.json()["error"]["request_id"], "mine-1");
    let (_, _, answer) = error("GET", "/nowhere", &[("x-request-id", "not { mine")]).await;
    assert_ne!(answer.json()["error"]["request_id"], "not { mine");
}

#[actix_web::test]
async fn the_pixel_is_an_event_and_an_image() {
    let app = TestApp::start().await;
    let answer = app.get("/api/v1/pixel.gif?url=https%3A%2F%2Fa%2Fb&user_id=u1&data=%7B%22k%22%3A1%7D&id=p1").await;
    assert_eq!((answer.status, answer.body.len()), (200, 43));
    assert_eq!(answer.header("content-type"), Some("image/gif"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.body.starts_with(b"GIF89a"));
    let embedded =
        client::get_with(&format!("{}/api/v1/pixel.gif", app.url), &[("referer", "https://a/embedded")]).await;
    assert_eq!(embedded.status, 200);
    app.counted().await;
    let pages = app.data("/api/v1/stats/pages").await;
    assert_eq!(pages["items"][0]["url"], "https://a/b");
    assert_eq!(pages["items"][1]["url"], "https://a/embedded");
    let events = app.data("/api/v1/users/u1/events").await;
    assert_eq!(events["events"][0]["data"], json!({"k": 1}));
}

#[actix_web::test]
async fn browsers_of_other_origins_may_post() {
    let app = TestApp::start().await;
    let url = format!("{}/api/v1/events", app.url);
    let origin = ("origin", "https://shop.example");
    let preflight = [origin, ("access-control-request-method", "POST"), ("access-control-request-headers", "x-own")];
    let answer = client::request("OPTIONS", &url, &preflight).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    for body in [r#"{"url":"/a"}"#, "rubbish"] {
        let answer = client::post(&url, &[origin], body.into()).await;
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{}", answer.status);
    }
    let app = TestApp::with(&[("ingest.cors_origins", r#"["https://shop.example"]"#)], Clock::system()).await;
    let url = format!("{}/api/v1/events", app.url);
    let answer = client::post(&url, &[origin], br#"{"url":"/a"}"#.to_vec()).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    let other = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let answer = client::request("OPTIONS", &url, &other).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (400, None));
}

#[actix_web::test]
async fn realtime_has_every_window_and_rolls_over_by_itself() {
    let app = at(NOW).await;
    let at_time = |ms: i64, page: &str, user: &str| json!({"url": page, "user_id": user, "timestamp": ms});
    let events = json!([
        at_time(NOW, "/a", "u1"), at_time(NOW - 1000, "/a", "u2"), at_time(NOW - 10 * MINUTE, "/b", "u1"),
        at_time(NOW - 5 * HOUR, "/c", "u3"), at_time(NOW - DAY, "/old", "u4"),
        {"type": "click", "user_id": "u1", "session_id": "s1"},
    ]);
    assert_eq!(app.post(events.to_string()).await.status, 202);
    app.counted().await;
    for (window, views, visitors, pages, start) in [
        ("minute", 2, 2, vec![("/a", 2)], NOW - 30_000),
        ("hour", 3, 2, vec![("/a", 2), ("/b", 1)], NOW - 20 * MINUTE - 30_000),
        ("day", 4, 3, vec![("/a", 2), ("/b", 1), ("/c", 1)], NOW - NOW % DAY),
    ] {
        let data = app.data(&format!("/api/v1/stats/realtime?window={window}")).await;
        assert_eq!(data["time_window"], window);
        assert_eq!(data["window_start"], start / 1000);
        assert_eq!((&data["page_views"], &data["unique_visitors"]), (&json!(views), &json!(visitors)), "{data}");
        let hot: Vec<Value> = pages.iter().map(|(url, views)| json!({"url": url, "views": views})).collect();
        assert_eq!(data["hot_pages"], json!(hot));
        assert_eq!(data["events"]["click"], 1);
        assert_eq!(data["exact"], true);
        assert_eq!(data["as_of"]["offset"], 6);
    }
    app.clock.set(NOW + MINUTE);
    let data = app.data("/api/v1/stats/realtime?window=minute").await;
    assert_eq!((&data["page_views"], &data["window_start"]), (&json!(0), &json!((NOW + 30_000) / 1000)));
    assert_eq!(app.data("/api/v1/stats/realtime").await["page_views"], 3);
}

#[actix_web::test]
async fn ranges_add_up_and_visitors_are_a_union() {
    let app = at(NOW).await;
    let mut events = vec![];
    for day in 0..3 {
        for (user, page) in [("u1", "/a"), ("u2", "/b"), ("u1", "/a")] {
            events.push(
                json!({"url": page, "user_id": user, "timestamp": NOW - day * DAY, "referrer": "https://n.example/x"}),
            );
        }
    }
    events.push(json!({"type": "buy", "user_id": "u9", "timestamp": NOW - DAY}));
    app.post(json!(events).to_string()).await;
    let bot = [("user-agent", "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)")];
    client::post(&format!("{}/api/v1/events", app.url), &bot, br#"{"url":"/a"}"#.to_vec()).await;
    app.counted().await;
    let data = app.data("/api/v1/stats/summary?from=-3d").await;
    assert_eq!((&data["page_views"], &data["unique_visitors"], &data["bots"]), (&json!(9), &json!(3), &json!(1)));
    assert_eq!(data["events"], json!({"page_view": 9, "buy": 1}));
    assert_eq!(data["bot_reasons"], json!({"crawler": 1}));
    let series = app.data("/api/v1/stats/timeseries?interval=day&from=-3d&metric=unique_visitors").await;
    let values: Vec<_> = series["points"].as_array().unwrap().iter().map(|p| p["value"].as_u64().unwrap()).collect();
    assert_eq!(values, [0, 2, 3, 2], "{series}");
    let series = app.data("/api/v1/stats/timeseries?interval=hour&from=-2h&tz=Asia/Kathmandu").await;
    assert_eq!(series["points"][2]["start"], "2026-03-02T16:00:00+05:45");
    let pages = app.data("/api/v1/stats/pages?from=-3d&limit=1").await;
    assert_eq!(pages["items"], json!([{"url": "/a", "views": 6, "share": 0.666667}]));
    assert_eq!(pages["total"], 9);
    let referrers = app.data("/api/v1/stats/referrers?from=-3d").await;
    assert_eq!(referrers["items"][0], json!({"referrer": "n.example", "views": 9, "share": 1.0}));
    let types = app.data("/api/v1/stats/events?from=-3d").await;
    assert_eq!(types["items"][1], json!({"type": "buy", "count": 1, "share": 0.1}));
    assert_eq!(app.data("/api/v1/stats/summary?site=none").await["page_views"], 0);
}

#[actix_web::test]
async fn answers_are_tagged_and_304() {
    let app = TestApp::start().await;
    app.post(r#"{"url":"/a"}"#).await;
    app.counted().await;
    for path in [
        "/api/v1/stats/realtime?window=day",
        "/api/v1/stats/summary?from=2020-01-01T00:00:00Z",
        "/tracker.js",
        "/dashboard",
    ] {
        let url = format!("{}{path}", app.url);
        let first = client::get(&url).await;
        let etag = first.header("etag").unwrap_or_else(|| panic!("{path} has no etag")).to_owned();
        assert!(first.header("cache-control").is_some(), "{path}");
        let again = client::get_with(&url, &[("if-none-match", &etag)]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
    }
    let url = format!("{}/api/v1/stats/realtime?window=day", app.url);
    let etag = client::get(&url).await.header("etag").unwrap().to_owned();
    app.post(r#"{"url":"/a"}"#).await;
    app.counted().await;
    assert_eq!(client::get_with(&url, &[("if-none-match", &etag)]).await.status, 200);
}

#[actix_web::test]
async fn a_visitors_events_come_newest_first() {
    let app = TestApp::start().await;
    for i in 0..120 {
        app.post(format!(r#"{{"type":"t{i}","user_id":"u/1"}}"#)).await;
    }
    app.post(r#"{"type":"anonymous"}"#).await;
    let data = app.data("/api/v1/users/u%2F1/events?limit=3").await;
    let types: Vec<_> = data["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["t119", "t118", "t117"]);
    assert_eq!(app.data("/api/v1/users/u%2F1/events").await["events"].as_array().unwrap().len(), 100);
    assert_eq!(app.data("/api/v1/users/nobody/events").await["events"], json!([]));
    let export = app.get("/api/v1/export").await.text();
    let last: Value = serde_json::from_str(export.lines().last().unwrap()).unwrap();
    let anonymous = app.data(&format!("/api/v1/users/{}/events", last["visitor"].as_str().unwrap())).await;
    assert_eq!(anonymous["events"][0]["type"], "anonymous");
}

#[actix_web::test]
async fn the_operators_endpoints_want_the_key() {
    let key = "0123456789abcdef";
    let app = TestApp::with(&[("server.admin_key", key)], Clock::system()).await;
    let bearer = format!("Bearer {key}");
    for path in ["/api/v1/export", "/api/v1/users/u/events"] {
        let url = format!("{}{path}", app.url);
        let refused = client::get(&url).await;
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (401, Some("unauthorized")));
        assert_eq!(client::get_with(&url, &[("authorization", &bearer)]).await.status, 200);
    }
    let import = format!("{}/api/v1/import", app.url);
    assert_eq!(client::post(&import, &[], br#"{"url":"/a"}"#.to_vec()).await.status, 401);
    assert_eq!(client::post(&import, &[("authorization", &bearer)], br#"{"url":"/a"}"#.to_vec()).await.status, 202);
    let open = TestApp::start().await;
    let proxied = [("x-forwarded-for", "192.0.2.1")];
    assert_eq!(client::get_with(&format!("{}/api/v1/export", open.url), &proxied).await.status, 401);
}

#[actix_web::test]
async fn exports_are_lines_or_csv_and_can_be_imported_again() {
    let app = TestApp::start().await;
    app.post(r#"[{"url":"/a","title":"x, \"y\""},{"type":"buy","site":"s2","user_id":"u","data":{"n":1},"id":"b1"}]"#)
        .await;
    let lines = app.get("/api/v1/export").await.text();
    let csv = app.get("/api/v1/export?format=csv&site=default").await.text();
    assert_eq!(lines.lines().count(), 2);
    assert!(csv.starts_with("id,type,timestamp,") && csv.contains("\"x, \"\"y\"\"\""), "{csv}");
    assert_eq!(csv.lines().count(), 2);
    assert_eq!(app.get("/api/v1/export?from=-1h&site=s2").await.text().lines().count(), 1);
    assert_eq!(app.get("/api/v1/export?to=-1h").await.text(), "");
    // Back into the same journal nothing of it is new, with ids of its own or of clients.
    let import = format!("{}/api/v1/import", app.url);
    let answer = client::post(&import, &[("content-type", "application/x-ndjson")], lines.clone().into()).await;
    assert_eq!((&answer.json()["data"]["accepted"], &answer.json()["data"]["duplicates"]), (&json!(0), &json!(2)));
    let other = TestApp::start().await;
    let import = format!("{}/api/v1/import", other.url);
    let answer = client::post(&import, &[("content-type", "application/x-ndjson")], lines.clone().into()).await;
    assert_eq!(answer.json()["data"]["accepted"], 2);
    let restored = other.get("/api/v1/export").await.text();
    let strip = |text: &str| -> Vec<Value> {
        text.lines()
            .map(|line| {
                let mut event: Value = serde_json::from_str(line).unwrap();
                event.as_object_mut().unwrap().remove("received_at");
                event
            })
            .collect()
    };
    assert_eq!(strip(&restored), strip(&lines), "with the same ids, visitors and sessions");
}

/// Reads server-sent events until `enough`.
async fn events_of(
    url: &str,
    last: Option<&str>,
    mut enough: impl FnMut(&[(String, String, Value)]) -> bool,
) -> Vec<(String, String, Value)> {
    use futures_util::StreamExt;
    let client = awc::Client::builder().timeout(std::time::Duration::from_secs(30)).finish();
    let mut request = client.get(url);
    if let Some(last) = last {
        request = request.insert_header(("last-event-id", last));
    }
    let mut stream = request.send().await.unwrap();
    assert_eq!(stream.headers().get("content-type").unwrap(), "text/event-stream");
    let mut text = String::new();
    let mut events = vec![];
    while !enough(&events) {
        let piece = tokio::time::timeout(std::time::Duration::from_secs(20), stream.next()).await;
        text.push_str(std::str::from_utf8(&piece.expect("an event in time").unwrap().unwrap()).unwrap());
        while let Some((message, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                message.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
            };
            if let (Some(id), Some(kind), Some(data)) = (field("id"), field("event"), field("data")) {
                events.push((id, kind, serde_json::from_str(&data).unwrap()));
            }
            text = rest.to_owned();
        }
    }
    events
}

#[actix_web::test]
async fn the_live_feed_sums_up_and_resumes() {
    let app = TestApp::start().await;
    app.post(r#"{"url":"/before"}"#).await;
    app.counted().await;
    let url = format!("{}/api/v1/stats/live", app.url);
    let first = events_of(&url, None, |events| !events.is_empty()).await;
    assert_eq!(first[0].1, "snapshot");
    let before = first[0].2["windows"]["day"]["page_views"].as_u64().unwrap();
    assert_eq!(before, 1);
    let views = |events: &[(String, String, Value)]| -> u64 {
        events.iter().filter(|e| e.1 == "delta").map(|e| e.2["page_views"].as_u64().unwrap()).sum()
    };
    // Two stretches with a reconnect between, during which events go on.
    for _ in 0..5 {
        app.post(r#"[{"url":"/a"},{"type":"click"}]"#).await;
    }
    let mut all = first.clone();
    all.extend(events_of(&url, Some(&all.last().unwrap().0), |events| views(events) >= 5).await);
    for _ in 0..3 {
        app.post(r#"{"url":"/b"}"#).await;
    }
    app.counted().await;
    all.extend(events_of(&url, Some(&all.last().unwrap().0), |events| views(events) >= 3).await);
    assert_eq!(views(&all), 8);
    assert!(all[1..].iter().all(|e| e.1 == "delta"), "no gap and no second snapshot");
    assert_eq!(all.iter().map(|e| e.0.clone()).collect::<BTreeSet<_>>().len(), all.len(), "no message twice");
    let last = &all.last().unwrap().2;
    let day = app.data("/api/v1/stats/realtime?window=day").await;
    assert_eq!(last["windows"]["day"]["page_views"], day["page_views"]);
    // Of another process, or rubbish: says so, and begins again.
    for id in ["0123456789ab-7", "rubbish"] {
        let events = events_of(&url, Some(id), |events| events.len() >= 2).await;
        assert_eq!((events[0].1.as_str(), events[1].1.as_str()), ("gap", "snapshot"), "{id}");
    }
}

#[actix_web::test]
async fn sites_and_privacy_are_kept_apart() {
    let settings = [("sites.strict.privacy_signal", "drop"), ("sites.keen.privacy_signal", "ignore")];
    let app = TestApp::with(&settings, Clock::system()).await;
    let url = format!("{}/api/v1/events", app.url);
    for header in [("sec-gpc", "1"), ("dnt", "1")] {
        let body = r#"[{"url":"/a","site":"strict","user_id":"u"},{"url":"/a","site":"keen","user_id":"u"},{"url":"/a","user_id":"u"}]"#;
        let data = client::post(&url, &[header], body.into()).await.json()["data"].clone();
        assert_eq!(data["rejected"][0]["code"], "privacy_signal");
        assert_eq!(data["accepted"], 2);
        let alone = client::post(&url, &[header], br#"{"url":"/a","site":"strict"}"#.to_vec()).await;
        assert_eq!(alone.status, 202, "the page made no mistake");
    }
    app.counted().await;
    let named = app.data("/api/v1/users/u/events?site=keen").await;
    assert_eq!(named["events"].as_array().unwrap().len(), 2);
    assert_eq!(app.data("/api/v1/users/u/events").await["events"], json!([]));
    assert_eq!(app.data("/api/v1/stats/summary?site=strict").await["page_views"], 0);
    assert_eq!(app.data("/api/v1/stats/summary?site=default").await["page_views"], 2);
    assert_eq!(app.data("/api/v1/audit").await["agree"], true);
}

#[actix_web::test]
async fn a_proxy_on_this_machine_is_no_operator() {
    let plain = TestApp::start().await;
    let proxied = TestApp::with(&[("server.trusted_proxies", "[\"127.0.0.1\"]")], Clock::system()).await;
    let (plain, proxied) = (plain.url.clone(), proxied.url.clone());
    beside(move || {
        let status = |url: &str, version: &str| {
            let mut wire = Wire::to(url);
            let host = url.trim_start_matches("http://");
            wire.send(format!("GET /api/v1/export HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
            wire.answer().unwrap().status
        };
        assert_eq!(status(&plain, "1.1"), 200);
        assert_eq!(status(&plain, "1.0"), 401, "as nginx asks, of its clients saying nothing");
        assert_eq!(status(&proxied, "1.1"), 401, "who is named as a proxy is none");
    })
    .await;
}

#[actix_web::test]
async fn no_address_is_kept_or_logged() {
    let settings = [("server.trusted_proxies", r#"["127.0.0.1/32"]"#)];
    let app = TestApp::with(&settings, Clock::system()).await;
    let url = format!("{}/api/v1/events", app.url);
    for address in ["203.0.113.77", "203.0.113.78", "203.0.113.77"] {
        client::post(&url, &[("x-forwarded-for", address)], br#"{"url":"/a"}"#.to_vec()).await;
    }
    app.counted().await;
    assert_eq!(app.data("/api/v1/stats/summary").await["unique_visitors"], 2, "told apart by address");
    let folder = app.stop().await;
    let mut pending = vec![folder.path().to_owned()];
    let mut files = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            for needle in [&b"203.0.113"[..], &[203, 0, 113, 77]] {
                assert!(!bytes.windows(needle.len()).any(|w| w == needle), "an address in {}", path.display());
            }
            files += 1;
        }
    }
    assert!(files >= 4);
}

#[actix_web::test]
async fn metrics_and_health_tell_what_happens() {
    let app = TestApp::start().await;
    app.post(r#"[{"url":"/a","id":"1"},{"url":"/a","id":"1"},{"x":1}]"#).await;
    app.counted().await;
    app.get("/nowhere/at/all").await;
    let text = app.get("/metrics").await.text();
    for line in [
        "tidegate_events_total{outcome=\"accepted\"} 1",
        "tidegate_events_total{outcome=\"duplicate\"} 1",
        "tidegate_events_total{outcome=\"missing_type\"} 1",
        "tidegate_stats_behind 0",
        "tidegate_actor_restarts_total{actor=\"aggregator\",cause=\"panic\"} 0",
        "tidegate_http_requests_total{endpoint=\"/api/v1/events\",method=\"POST\",status=\"202\"} 1",
        "tidegate_http_requests_total{endpoint=\"unmatched\",method=\"GET\",status=\"404\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let health = app.get("/health").await.json();
    assert_eq!((&health["status"], &health["stats"]["counted_through"]), (&json!("ok"), &json!(3)));
}

#[actix_web::test]
async fn the_description_has_every_route_with_examples() {
    let app = TestApp::start().await;
    let document = app.get("/openapi.json").await.json();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
        })
        .collect();
    let readme = include_str!("../../README.md");
    for (method, path) in &described {
        assert!(readme.contains(&format!("| `{method} {path}` |")), "{method} {path} is not in the README's table");
        if method == "GET" && !path.contains("live") {
            let real =
                path.replace("{id}", "u42").replace("{file}", "dashboard.css").replace("{name}", "events.v1.json");
            let base = if path.starts_with("/api/v1/admin/") { app.admin() } else { app.url.clone() };
            let answer = client::get(&format!("{base}{real}")).await;
            let nothing = answer.status == 404 && answer.text().contains("there is nothing at this path");
            assert!(!nothing, "{path} is described and not there");
        }
    }
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    let is_route = |line: &&str| methods.iter().any(|method| line.starts_with(&format!("| `{method} /")));
    for line in readme.lines().filter(is_route) {
        let route = line.split('`').nth(1).unwrap();
        let (method, path) = route.split_once(' ').unwrap();
        let known = described.contains(&(method.to_owned(), path.to_owned())) || ["/", "/docs/"].contains(&path);
        assert!(known, "{route} is in the README and not described");
    }
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for operation in methods.as_object().unwrap().values() {
            assert!(operations.insert(operation["operationId"].to_string()), "{path} shares its operationId");
            let page = path.starts_with("/dashboard") || path == "/tracker.js";
            assert!(page || operation.to_string().contains("\"example\""), "{path} has no example");
        }
    }
    let docs = app.get("/docs/").await;
    assert_eq!(docs.status, 200);
    assert!(!docs.text().contains("://"), "the docs load something from elsewhere");
}

#[actix_web::test]
async fn what_answers_get_answers_head() {
    let app = TestApp::start().await;
    for (path, status) in [("/health/ready", 200), ("/dashboard", 200), ("/tracker.js", 200), ("/nowhere", 404)] {
        let answer = client::request("HEAD", &format!("{}{path}", app.url), &[]).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{path}");
    }
    assert_eq!(client::request("HEAD", &format!("{}/api/v1/events", app.url), &[]).await.status, 405);
}

#[actix_web::test]
async fn an_array_with_bad_bytes_keeps_its_events() {
    let app = TestApp::start().await;
    let answer = app.post(&b"[{\"type\":\"ok1\"},{\"type\":\"x\",\"title\":\"\xff\"},{\"type\":\"ok2\"}]"[..]).await;
    assert_eq!(answer.json()["data"]["accepted"], 3, "{}", answer.text());
}

#[actix_web::test]
async fn the_tracker_is_small() {
    let app = TestApp::start().await;
    let answer = app.get("/tracker.js").await;
    assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&answer.body).unwrap();
    let size = packed.finish().unwrap().len();
    assert!(size <= 2048, "the tracker takes {size} bytes gzipped");
}

#[actix_web::test]
async fn the_feed_of_a_site_is_its_own() {
    let app = TestApp::start().await;
    let url = format!("{}/api/v1/stats/live?site=b", app.url);
    app.post(r#"{"url":"/a","site":"b"}"#).await;
    app.counted().await;
    let first = events_of(&url, None, |events| !events.is_empty()).await;
    app.post(r#"[{"url":"/other","site":"a"},{"url":"/mine","site":"b"}]"#).await;
    let more = events_of(&url, Some(&first[0].0), |events| !events.is_empty()).await;
    assert_eq!(more[0].2["pages"], json!({"/mine": 1}));
}
