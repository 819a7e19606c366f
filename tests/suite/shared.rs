//! Redis as the shared store: its keys, what is added up there, and who can read it.

use std::collections::BTreeMap;

use deadpool_redis::redis::{self, Commands};
use serde_json::{Value, json};
use tidegate::clock::Clock;

use crate::client;
use crate::services::{Service, fresh, redis, redis_client};
use crate::support::{Process, TestApp, eventually, run};

/// A moment that stands still, near enough to the real one that Redis does not take its windows for long gone.
struct Moment {
    now: i64,
    minute: i64,
    hour: i64,
    day: i64,
}

impl Moment {
    fn new() -> Self {
        let now = Clock::system().now();
        let start = |width: i64| now / 1000 / width * width;
        Self { now, minute: start(60), hour: start(3600), day: start(86_400) }
    }

    fn clock(&self) -> Clock {
        Clock::manual(self.now)
    }

    fn windows(&self) -> [(&'static str, i64); 3] {
        [("minute", self.minute), ("hour", self.hour), ("day", self.day)]
    }
}

async fn app(prefix: &str, more: &[(&str, &str)], clock: Clock) -> TestApp {
    let mut settings =
        vec![("stats.url", redis()), ("stats.redis.prefix", prefix), ("stats.redis.flush_interval", "20ms")];
    settings.extend(more);
    TestApp::with(&settings, clock).await
}

/// Waits until all that is accepted is in Redis too, and what was asked before is asked again.
async fn delivered(app: &TestApp) {
    let core = app.app().core();
    let all = core.stats.delivered_through(core.journal.end());
    tokio::time::timeout(std::time::Duration::from_secs(20), all).await.expect("everything is delivered within 20 s");
    tokio::time::sleep(std::time::Duration::from_millis(260)).await;
}

#[actix_web::test]
async fn the_keys_are_those_of_the_older_deployment() {
    let at = Moment::new();
    let prefix = fresh("keys-");
    let app = app(&prefix, &[("stats.redis.event_keys", "true")], at.clock()).await;
    let body = json!([
        {"type": "page_view", "url": "https://shop.example/a", "user_id": "u1", "session_id": "s1"},
        {"type": "page_view", "url": "https://shop.example/a", "user_id": "u2", "session_id": "s2"},
        {"type": "page_view", "url": "https://shop.example/b", "user_id": "u1", "session_id": "s1"},
        {"type": "buy", "user_id": "u1", "session_id": "s1", "data": {"total": 7}},
        {"type": "buy", "user_id": "u2", "session_id": "s2", "data": {"total": 8}},
        {"type": "click", "site": "blog", "user_id": "u9"},
    ]);
    assert_eq!(app.post(body.to_string()).await.status, 202);
    delivered(&app).await;
    let mut redis = redis_client(redis());
    let key = |name: &str| format!("{prefix}{name}");
    let mut number = |name: String| redis.get::<_, Option<u64>>(key(&name)).unwrap();
    assert_eq!(number("pv:total".into()), Some(3));
    for (window, start) in at.windows() {
        assert_eq!(number(format!("pv:{window}:{start}")), Some(3));
    }
    assert_eq!(number(format!("event_count:buy:hour:{}", at.hour)), Some(2));
    assert_eq!(number(format!("site:blog:event_count:click:hour:{}", at.hour)), Some(1));
    let pages: Vec<String> = redis.keys(key("pv:page:*:total")).unwrap();
    assert_eq!(pages.len(), 2);
    let mut views: Vec<u64> = pages.iter().map(|page| redis.get(page).unwrap()).collect();
    views.sort_unstable();
    assert_eq!(views, [1, 2]);
    let hash = format!("{:x}", Md5(b"https://shop.example/a"));
    assert_eq!(redis.get::<_, u64>(key(&format!("pv:page:{hash}:day:{}", at.day))).unwrap(), 2);

    let members = |redis: &mut redis::Connection, name: String| {
        let mut members: Vec<String> = redis.smembers(key(&name)).unwrap();
        members.sort();
        members
    };
    assert_eq!(members(&mut redis, format!("uv:day:{}", at.day)), ["u1", "u2"]);
    assert_eq!(members(&mut redis, format!("sessions:minute:{}", at.minute)), ["s1", "s2"]);
    assert_eq!(members(&mut redis, format!("site:blog:uv:hour:{}", at.hour)), ["u9"]);
    for name in [
        format!("hot_pages:{}", at.hour),
        format!("hot_pages:minute:{}", at.minute),
        format!("hot_pages:day:{}", at.day),
    ] {
        let hot: Vec<(String, f64)> = redis.zrevrange_withscores(key(&name), 0, 9).unwrap();
        let pages = [("https://shop.example/a".to_owned(), 2.0), ("https://shop.example/b".to_owned(), 1.0)];
        assert_eq!(hot, pages, "{name}");
    }
    let latest: Vec<String> = redis.lrange(key("user_events:u1"), 0, -1).unwrap();
    let latest: Vec<Value> = latest.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(latest.len(), 3);
    assert_eq!(latest[0]["type"], "buy", "the newest first");
    assert_eq!((&latest[0]["data"], &latest[0]["timestamp"]), (&json!({"total": 7}), &json!(at.now / 1000)));
    // The older deployment's own key keeps a second's last event; the stream keeps all.
    let single: String = redis.get(key(&format!("events:buy:{}", at.now / 1000))).unwrap();
    let single: Value = serde_json::from_str(&single).unwrap();
    assert_eq!((&single["data"]["total"], &single["user_id"]), (&json!(8), &json!("u2")));
    let stream: Vec<(String, BTreeMap<String, String>)> =
        redis::cmd("XRANGE").arg(key("events:buy")).arg("-").arg("+").query(&mut redis).unwrap();
    let lines = stream.iter().flat_map(|(_, entry)| entry["events"].lines());
    let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(stream.iter().map(|(_, entry)| entry["count"].parse::<usize>().unwrap()).sum::<usize>(), 2);
    assert_eq!(events.iter().map(|event| event["data"]["total"].as_u64().unwrap()).collect::<Vec<_>>(), [7, 8]);

    // Everything but totals, fences and books goes by itself.
    let all: Vec<String> = redis.keys(key("*")).unwrap();
    assert!(all.len() > 40, "{all:?}");
    for name in all {
        let ttl: i64 = redis.ttl(&name).unwrap();
        let stays = ["pv:total", ":total", "fence:", "tg:audit:"].iter().any(|part| name.contains(part));
        // By the tests' clock windows of days are kept for ever, as the embedded store keeps them.
        let stays = stays || (name.contains("tg:") && name.contains(":day:"));
        assert_eq!(ttl < 0, stays, "{name}: {ttl}");
    }
    app.stop().await;
}

/// The hash, independently of how Tidegate makes it.
struct Md5<'a>(&'a [u8]);

impl std::fmt::LowerHex for Md5<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::io::Write;
        let mut child = std::process::Command::new("md5sum")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.0).unwrap();
        let output = child.wait_with_output().unwrap();
        f.write_str(std::str::from_utf8(&output.stdout).unwrap().split(' ').next().unwrap())
    }
}

/// What the older deployment sends for a page view and an event, command by command.
fn older_deployment(redis: &mut redis::Connection, at: &Moment, prefix: &str, page: &str, user: &str, session: &str) {
    let hash = format!("{:x}", Md5(page.as_bytes()));
    let mut pipe = redis::pipe();
    pipe.incr(format!("{prefix}pv:total"), 1);
    for ((window, start), kept) in at.windows().into_iter().zip([3600, 2 * 86_400, 30 * 86_400]) {
        pipe.incr(format!("{prefix}pv:{window}:{start}"), 1);
        pipe.incr(format!("{prefix}pv:page:{hash}:{window}:{start}"), 1);
        for (what, member) in [("uv", user), ("sessions", session)] {
            let key = format!("{prefix}{what}:{window}:{start}");
            pipe.sadd(&key, member).expire(&key, kept);
        }
    }
    pipe.incr(format!("{prefix}pv:page:{hash}:total"), 1);
    pipe.zincr(format!("{prefix}hot_pages:{}", at.hour), page, 1)
        .expire(format!("{prefix}hot_pages:{}", at.hour), 86_400);
    pipe.incr(format!("{prefix}event_count:buy:hour:{}", at.hour), 1);
    let event = json!({"type": "buy", "timestamp": at.now / 1000, "data": {"by": "the other"}}).to_string();
    let list = format!("{prefix}user_events:{user}");
    pipe.lpush(&list, event).ltrim(&list, 0, 99).expire(&list, 30 * 86_400);
    pipe.exec(redis).unwrap();
}

#[actix_web::test]
async fn an_older_deployment_and_tidegate_see_each_others_sum() {
    let at = Moment::new();
    let prefix = fresh("both-");
    let app = app(&prefix, &[], at.clock()).await;
    let mut redis = redis_client(redis());
    let page = "https://shop.example/a";
    older_deployment(&mut redis, &at, &prefix, page, "u1", "s1");
    let body = json!([
        {"type": "page_view", "url": page, "user_id": "u1", "session_id": "s1"},
        {"type": "page_view", "url": page, "user_id": "u2", "session_id": "s2"},
        {"type": "buy", "user_id": "u2", "session_id": "s2"},
    ]);
    app.post(body.to_string()).await;
    delivered(&app).await;
    older_deployment(&mut redis, &at, &prefix, page, "u3", "s3");
    tokio::time::sleep(std::time::Duration::from_millis(260)).await;
    // Tidegate reads what both wrote.
    let hour = app.data("/api/v1/stats/realtime?window=hour").await;
    assert_eq!(hour["page_views"], 4);
    assert_eq!((&hour["unique_visitors"], &hour["sessions"]), (&json!(3), &json!(3)));
    assert_eq!(hour["hot_pages"], json!([{"url": page, "views": 4}]));
    assert_eq!(hour["events"], json!({"buy": 3, "page_view": 4}));
    assert_eq!(app.data("/api/v1/stats/realtime?window=day").await["page_views"], 4);
    // And the older deployment's reading, which is these commands, finds both.
    let (pv, uv, sessions): (u64, u64, u64) = redis::pipe()
        .get(format!("{prefix}pv:hour:{}", at.hour))
        .scard(format!("{prefix}uv:hour:{}", at.hour))
        .scard(format!("{prefix}sessions:hour:{}", at.hour))
        .query(&mut redis)
        .unwrap();
    assert_eq!((pv, uv, sessions), (4, 3, 3));
    let list = app.data("/api/v1/users/u1/events").await;
    let by: Vec<&Value> = list["events"].as_array().unwrap().iter().map(|event| &event["data"]["by"]).collect();
    assert!(by.contains(&&json!("the other")), "{list}");
    app.stop().await;
}

#[actix_web::test]
async fn a_key_that_holds_something_else_is_left_alone() {
    let at = Moment::new();
    let prefix = fresh("foreign-");
    let mut redis = redis_client(redis());
    let _: () = redis.set(format!("{prefix}uv:hour:{}", at.hour), "mine").unwrap();
    // And one of those that are published whole.
    let _: () = redis.set(format!("{prefix}tg:sums:default:day:{}", at.day), "mine too").unwrap();
    let app = app(&prefix, &[], at.clock()).await;
    app.post(r#"{"type":"buy","user_id":"u1"}"#).await;
    delivered(&app).await;
    let hour = app.data("/api/v1/stats/realtime?window=hour").await;
    assert_eq!((&hour["events"], hour.get("degraded")), (&json!({"buy": 1}), None), "{hour}");
    assert_eq!(redis.get::<_, String>(format!("{prefix}uv:hour:{}", at.hour)).unwrap(), "mine");
    assert_eq!(
        redis.get::<_, u64>(format!("{prefix}event_count:buy:hour:{}", at.hour)).unwrap(),
        1,
        "the others are counted"
    );
    let metrics = app.get("/metrics").await.text();
    assert!(metrics.contains("tidegate_shared_foreign_keys_total 2"), "{metrics}");
    app.stop().await;
}

#[actix_web::test]
async fn sketches_count_within_their_bound() {
    let at = Moment::new();
    let prefix = fresh("hll-");
    let app = app(&prefix, &[("stats.redis.uniques", "hll")], at.clock()).await;
    let events: Vec<Value> = (0..5000).map(|i| json!({"type": "buy", "user_id": format!("u{i}")})).collect();
    app.post(json!(events).to_string()).await;
    delivered(&app).await;
    let hour = app.data("/api/v1/stats/realtime?window=hour").await;
    let (visitors, bound) = (hour["unique_visitors"].as_f64().unwrap(), hour["error_bound"].as_f64().unwrap());
    assert!((visitors / 5000.0 - 1.0).abs() < 2.0 * bound, "{visitors}");
    assert_eq!(hour["exact"], false);
    let summary = app.data("/api/v1/stats/summary").await;
    assert_eq!((&summary["unique_visitors"], &summary["exact"]), (&json!(5000), &json!(true)), "windows are exact");
    app.stop().await;
}

#[actix_web::test]
async fn three_instances_add_up_and_a_dead_ones_journal_is_delivered() {
    let prefix = fresh("three-");
    let settings = [("stats.url", redis()), ("stats.redis.prefix", &prefix), ("stats.redis.flush_interval", "50ms")];
    let folder = tempfile::tempdir().unwrap();
    let data = |i: usize| folder.path().join(format!("instance-{i}"));
    // The third cannot reach Redis: what it took in stays in its journal.
    let away = [("stats.url", "redis://127.0.0.1:1"), settings[1], settings[2]];
    let instances: Vec<Process> =
        (0..3).map(|i| Process::start(&data(i), if i == 2 { &away } else { &settings })).collect();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for (i, instance) in instances.iter().enumerate() {
        // Users 0..200, 100..300, 200..400: unions, not sums. The same page on all.
        let events: Vec<Value> = (i * 100..i * 100 + 200)
            .map(|user| {
                let page = format!("https://shop.example/{}", user % 7);
                *expected.entry(page.clone()).or_default() += 1;
                json!({"type": "page_view", "url": page, "user_id": format!("u{user}"), "session_id": format!("s{user}")})
            })
            .collect();
        let answer =
            client::post(&format!("{}/api/v1/events", instance.url), &[], json!(events).to_string().into()).await;
        assert_eq!(answer.json()["data"]["accepted"], 200);
    }
    let ask = async |path: &str| client::get(&format!("{}{path}", instances[0].url)).await.json()["data"].clone();
    eventually("two instances are seen", async || ask("/api/v1/stats/summary").await["page_views"] == 400).await;
    assert_eq!(ask("/api/v1/stats/summary").await["unique_visitors"], 300);
    let own = client::get(&format!("{}/api/v1/stats/summary", instances[2].url)).await.json();
    assert_eq!((&own["data"]["page_views"], &own["data"]["degraded"]), (&json!(200), &json!(true)));

    let mut instances = instances;
    instances.pop().unwrap().kill();
    let (code, _, error) = run(&["drain", "--data", data(2).to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(error.contains("stats.url"), "{error}");
    let drain = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        for (key, value) in settings {
            command.env(format!("TIDEGATE__{}", key.to_uppercase().replace('.', "__")), value);
        }
        command.args(["drain", "--data", data(2).to_str().unwrap()]).output().unwrap()
    };
    // Twice: what was delivered is not delivered again.
    for _ in 0..2 {
        let output = drain();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("all 200 entries are delivered"), "{output:?}");
    }
    let ask = async |path: &str| client::get(&format!("{}{path}", instances[1].url)).await.json()["data"].clone();
    eventually("all three are seen", async || ask("/api/v1/stats/summary").await["page_views"] == 600).await;
    let summary = ask("/api/v1/stats/summary").await;
    assert_eq!((&summary["unique_visitors"], &summary["sessions"]), (&json!(400), &json!(400)));
    let realtime = ask("/api/v1/stats/realtime?window=day").await;
    assert_eq!((&realtime["page_views"], &realtime["unique_visitors"]), (&json!(600), &json!(400)));
    for (path, field) in
        [("/api/v1/stats/pages?limit=100", "items"), ("/api/v1/stats/realtime?window=day", "hot_pages")]
    {
        let pages = ask(path).await[field].clone();
        let pages = pages.as_array().unwrap().iter();
        let pages: BTreeMap<String, u64> =
            pages.map(|page| (page["url"].as_str().unwrap().to_owned(), page["views"].as_u64().unwrap())).collect();
        assert_eq!(pages, expected, "{path}");
    }
    let series = ask("/api/v1/stats/timeseries?metric=unique_visitors&interval=day").await;
    let points: u64 = series["points"].as_array().unwrap().iter().map(|point| point["value"].as_u64().unwrap()).sum();
    assert!(points >= 400, "{series}");
    let audit = ask("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["stores"][0]["store"]), (&json!(true), &json!("redis")), "{audit}");
}

#[actix_web::test]
async fn visitors_without_an_id_are_the_same_for_all_instances() {
    let prefix = fresh("salt-");
    let (one, two) = (app(&prefix, &[], Clock::system()).await, app(&prefix, &[], Clock::system()).await);
    // The salt is agreed on with the first contact.
    for app in [&one, &two] {
        eventually("connected", async || app.get("/health").await.json()["shared"]["status"] == "ok").await;
    }
    for app in [&one, &two] {
        app.post(r#"{"type":"page_view","url":"https://shop.example/a"}"#).await;
    }
    for app in [&one, &two] {
        delivered(app).await;
    }
    let day = one.data("/api/v1/stats/realtime?window=day").await;
    assert_eq!((&day["page_views"], &day["unique_visitors"]), (&json!(2), &json!(1)), "{day}");
    for app in [one, two] {
        app.stop().await;
    }
}

#[actix_web::test]
async fn the_same_question_is_asked_once() {
    let prefix = fresh("ask-");
    let app = app(&prefix, &[], Clock::system()).await;
    app.post(r#"{"type":"buy","user_id":"u1"}"#).await;
    delivered(&app).await;
    let before = questions(&app).await;
    let asked: Vec<_> = (0..100).map(|_| app.get("/api/v1/stats/summary?from=-1h&to=-1m")).collect();
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.status, 200);
    }
    let asked = questions(&app).await - before;
    assert!((1..=20).contains(&asked), "{asked} questions for 100 askers");
    app.stop().await;
}

async fn questions(app: &TestApp) -> u64 {
    let metrics = app.get("/metrics").await.text();
    let line = metrics.lines().find(|line| line.starts_with("tidegate_shared_questions_total")).unwrap();
    line.split(' ').nth(1).unwrap().parse::<f64>().unwrap() as u64
}

#[actix_web::test]
async fn an_event_costs_a_twentieth_of_a_command() {
    // A server of its own, as it counts commands for all who use it.
    let service = Service::start("redis", &[]);
    let folder = tempfile::tempdir().unwrap();
    // A build for tests takes in a third of what full load is, so it gathers three times as long.
    let settings = [("stats.url", service.address.as_str()), ("stats.redis.flush_interval", "3s")];
    let server = Process::start(&folder.path().join("data"), &settings);
    let mut redis = redis_client(&service.address);
    eventually("connected", async || {
        client::get(&format!("{}/health", server.url)).await.json()["shared"]["status"] == "ok"
    })
    .await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut redis).unwrap();
    const EVENTS: usize = 60_000;
    for batch in 0..EVENTS / 500 {
        let events: Vec<Value> = (0..500)
            .map(|i| {
                let n = batch * 500 + i;
                let kind = ["page_view", "page_view", "click", "buy"][n % 4];
                json!({"type": kind, "url": format!("https://shop.example/p/{}", n % 53), "user_id": format!("u{}", n % 101)})
            })
            .collect();
        let body = json!(events).to_string().into();
        assert_eq!(client::post(&format!("{}/api/v1/events", server.url), &[], body).await.status, 202);
    }
    eventually("all is delivered", async || {
        let audit = client::get(&format!("{}/api/v1/audit", server.url)).await.json();
        audit["data"]["stores"][0]["sites"][0]["store"]["counted"] == EVENTS
    })
    .await;
    let info: String = redis::cmd("INFO").arg("commandstats").query(&mut redis).unwrap();
    let calls = info.lines().filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok());
    let calls: u64 = calls.sum();
    println!("{calls} commands for {EVENTS} events: {:.4} an event", calls as f64 / EVENTS as f64);
    assert!(calls as f64 <= 0.05 * EVENTS as f64, "{calls} commands for {EVENTS} events\n{info}");
}

#[actix_web::test]
async fn the_line_may_be_tls_with_a_password() {
    let keys = tempfile::tempdir().unwrap();
    let file = |name: &str| keys.path().join(name).to_str().unwrap().to_owned();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &file("key.pem"), "-out", &file("cert.pem")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let _service = Service::start(
        "redis",
        &[
            "--tls-port",
            &port,
            "--tls-cert-file",
            &file("cert.pem"),
            "--tls-key-file",
            &file("key.pem"),
            "--tls-ca-cert-file",
            &file("cert.pem"),
            "--tls-auth-clients",
            "no",
            "--requirepass",
            "an open secret",
        ],
    );
    std::fs::write(file("password"), "an open secret\n").unwrap();
    let url = format!("rediss://localhost:{port}");
    let settings = [
        ("stats.url", url.as_str()),
        ("stats.redis.password_file", &file("password")),
        ("stats.redis.ca_file", &file("cert.pem")),
        ("stats.redis.flush_interval", "20ms"),
    ];
    let app = TestApp::with(&settings, Clock::system()).await;
    app.post(r#"{"type":"buy","user_id":"u1"}"#).await;
    delivered(&app).await;
    assert_eq!(app.data("/api/v1/stats/realtime?window=day").await["events"], json!({"buy": 1}));
    app.stop().await;
    // Without the authority nobody is trusted, and the reason names neither address nor password.
    let settings = [settings[0], settings[1]];
    let app = TestApp::with(&settings, Clock::system()).await;
    eventually("it is refused", async || {
        let health = app.get("/health").await.json();
        let reason = health["shared"]["reason"].as_str().unwrap_or_default().to_owned();
        assert!(!health.to_string().contains("secret") && !health.to_string().contains("localhost"), "{health}");
        reason.starts_with("Redis ") && !reason.contains("not connected yet")
    })
    .await;
    app.stop().await;
}
