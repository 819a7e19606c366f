//! Settings that a running server follows: at once, as a whole, and back again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::app::App;
use tidegate::clock::Clock;
use tidegate::config::Config;

use crate::backend::{Backend, Reply};
use crate::client;
use crate::support::{Process, TestApp, eventually, within};

/// Puts a config in force; what it is answered has no key that waits.
async fn change(app: &TestApp, text: &str) {
    let applied = app.app().control().put(text.to_owned(), "config", None, "the test").await.unwrap();
    assert_eq!(applied.restart, [""; 0], "{text}");
    assert_ne!(applied.changes, [], "{text}");
}

async fn post(app: &TestApp, query: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    client::post(&format!("{}/api/v1/events{query}", app.url), headers, body.into()).await.status
}

fn shop(key: &str) -> String {
    format!("[sites.shop]\nwrite_keys = [{key}]\n")
}

const EVENT: &str = r#"{"url":"/a","site":"shop"}"#;

/// What an event of the shop is answered with each of these keys.
async fn with_keys<const N: usize>(app: &TestApp, keys: [&str; N]) -> [u16; N] {
    let mut statuses = [0; N];
    for (status, key) in statuses.iter_mut().zip(keys) {
        *status = post(app, &format!("?write_key={key}"), &[], EVENT).await;
    }
    statuses
}

#[actix_web::test]
async fn a_key_is_rotated_revoked_and_comes_back() {
    let (one, two) = ("key-number-one", "key-number-two");
    let app = TestApp::with_file("", &[]).await;
    let keys = async || with_keys(&app, [one, two, ""]).await;
    assert_eq!(keys().await, [202, 202, 202]);
    change(&app, &shop(&format!("\"{one}\""))).await;
    assert_eq!(keys().await, [202, 403, 403]);
    change(&app, &shop(&format!("\"{one}\", \"{two}\""))).await;
    assert_eq!(keys().await, [202, 202, 403]);
    change(&app, &shop(&format!("\"{two}\""))).await;
    assert_eq!(keys().await, [403, 202, 403]);
    let control = app.app().control();
    let back = control.rollback(Some(2), "the test").await.unwrap();
    assert_eq!((keys().await, back.restart.len()), ([202, 403, 403], 0));
    control.rollback(Some(1), "the test").await.unwrap();
    assert_eq!(keys().await, [202, 202, 202]);
    // Through the file, which is looked at.
    std::fs::write(app.folder.path().join("tidegate.toml"), shop(&format!("\"{two}\""))).unwrap();
    eventually("the file is taken up", async || keys().await == [403, 202, 403]).await;
    app.counted().await;
    assert_eq!(app.data("/api/v1/audit").await["agree"], true);
}

#[actix_web::test]
async fn a_change_that_fails_leaves_every_setting_as_it_was() {
    let backend = Backend::echo();
    let gateway = |more: &str| {
        format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n{more}\
             [[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\n",
            backend.address
        )
    };
    let (one, two) = ("key-number-one", "key-number-two");
    let app = TestApp::with_file(&(gateway("") + &shop(&format!("\"{one}\""))), &[]).await;
    let control = app.app().control();
    let second = shop(&format!("\"{two}\""));
    let mut broken = vec![
        gateway("") + &second + "origins = [\"nowhere\"]\n",
        gateway("tls = { ca_file = \"/nowhere.pem\" }\n") + &second,
        gateway("") + &second + "[server]\nmax_body_bytes = \"60MiB\"\n",
        gateway("") + &second + "[server]\nmax_body_bytes = \"60MiB\"\n[journal]\nqueue_bytes = \"1GiB\"\n",
    ];
    for text in &broken {
        assert!(control.put(text.clone(), "config", None, "the test").await.is_err(), "{text}");
        assert_eq!(with_keys(&app, [one, two]).await, [202, 403]);
    }
    // What cannot be kept is not done.
    let history = app.folder.path().join("data/config");
    std::fs::rename(&history, app.folder.path().join("away")).unwrap();
    broken.push(gateway("max_in_flight = 7\n") + &second);
    let error = control.put(broken.pop().unwrap(), "config", None, "the test").await.unwrap_err().to_string();
    assert!(error.contains("history"), "{error}");
    assert_eq!(with_keys(&app, [one, two]).await, [202, 403]);
    assert_eq!(app.app().gateway().unwrap().options().upstreams["a"].max_in_flight, 1024);
    std::fs::rename(app.folder.path().join("away"), &history).unwrap();
    control.put(gateway("max_in_flight = 7\n") + &second, "config", None, "the test").await.unwrap();
    assert_eq!(with_keys(&app, [one, two]).await, [403, 202]);
}

#[actix_web::test]
async fn a_harmful_change_takes_its_keys_back_with_it() {
    let (good, bad) = (Backend::echo(), Backend::start(|_| Reply::with(500, &[], "no")));
    let config = |backend: &Backend, key: &str| {
        format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\n[gateway.upstreams.a]\ntargets = [\"{}\"]\n\
             [[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"a\"\nretries = 0\n{}",
            backend.address,
            shop(&format!("\"{key}\""))
        )
    };
    let (one, two) = ("key-number-one", "key-number-two");
    let app = TestApp::with_file(&config(&good, one), &[]).await;
    for _ in 0..50 {
        assert_eq!(client::get(&format!("{}/x", app.gateway())).await.status, 200);
    }
    change(&app, &config(&bad, two)).await;
    assert_eq!(with_keys(&app, [one, two]).await, [403, 202]);
    within(Duration::from_secs(10), "it is taken back", async || {
        client::get(&format!("{}/x", app.gateway())).await.status == 200
    })
    .await;
    // Gateway and keys are swapped one after the other, with the disk in between.
    eventually("the key too", async || with_keys(&app, [one, two]).await == [202, 403]).await;
}

#[actix_web::test]
async fn every_setting_that_is_followed_is() {
    let app = TestApp::with_file("", &[]).await;
    let visitors = async |site: &str| {
        for address in ["192.0.2.1", "192.0.2.2"] {
            let body = format!(r#"{{"url":"/a","site":"{site}"}}"#);
            assert_eq!(post(&app, "", &[("x-forwarded-for", address)], &body).await, 202);
        }
        app.counted().await;
        app.data(&format!("/api/v1/stats/summary?site={site}")).await["unique_visitors"].clone()
    };
    assert_eq!(visitors("before").await, 1);
    change(&app, "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]").await;
    assert_eq!(visitors("behind").await, 2);
    change(&app, "").await;

    let export = format!("{}/api/v1/export", app.url);
    let bearer = |key: &str| format!("Bearer {key}");
    let operator = async |key: &str| client::get_with(&export, &[("authorization", &bearer(key))]).await.status;
    assert_eq!(client::get(&export).await.status, 200);
    for key in ["the-first-key-of-ours", "the-second-key-of-ours"] {
        change(&app, &format!("[server]\nadmin_key = \"{key}\"")).await;
        assert_eq!((client::get(&export).await.status, operator(key).await), (401, 200));
    }
    assert_eq!(operator("the-first-key-of-ours").await, 401);
    let admin = format!("{}/api/v1/admin/config", app.admin());
    assert_eq!(client::get(&admin).await.status, 401, "the admin API wants it too");

    let long = format!(r#"{{"url":"/a","title":"{}"}}"#, "x".repeat(5000));
    assert_eq!(post(&app, "", &[], &long).await, 202);
    change(&app, "[server]\nmax_body_bytes = \"2KiB\"").await;
    assert_eq!(post(&app, "", &[], &long).await, 413);

    let old = r#"{"url":"/a","timestamp":1500000000000}"#;
    assert_eq!(post(&app, "", &[], old).await, 202);
    change(&app, "[ingest]\nmax_age = \"1h\"").await;
    assert_eq!(post(&app, "", &[], old).await, 400);
    let soon = format!(r#"{{"url":"/a","timestamp":{}}}"#, app.clock.now() + 3_600_000);
    assert_eq!(post(&app, "", &[], &soon).await, 202);
    change(&app, "[ingest]\nmax_future = \"1m\"").await;
    assert_eq!(post(&app, "", &[], &soon).await, 400);

    let dropped = async |site: &str| {
        let body = format!(r#"{{"url":"/a","site":"{site}"}}"#);
        let answer = client::post(&format!("{}/api/v1/events", app.url), &[("dnt", "1")], body.into()).await;
        answer.json()["data"]["rejected"][0]["code"] == "privacy_signal"
    };
    change(&app, "[ingest]\nprivacy_signal = \"drop\"\n[sites.own]\nprivacy_signal = \"ignore\"\n[sites.plain]").await;
    assert_eq!((dropped("own").await, dropped("plain").await, dropped("other").await), (false, true, true));
    change(&app, "[sites.own]\nprivacy_signal = \"drop\"").await;
    assert_eq!((dropped("own").await, dropped("plain").await, dropped("other").await), (true, false, false));

    change(&app, "[ingest]\nunknown_sites = \"reject\"\n[sites.own]").await;
    assert_eq!(post(&app, "", &[], r#"{"url":"/a","site":"own"}"#).await, 202);
    assert_eq!(post(&app, "", &[], r#"{"url":"/a","site":"other"}"#).await, 400);

    let url = format!("{}/api/v1/events", app.url);
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let allowed = async || {
        let answer = client::request("OPTIONS", &url, &preflight).await;
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed().await.as_deref(), Some("*"));
    for (cors, expected) in
        [("[]", None), ("[\"https://*.example\"]", Some("https://a.example")), ("[\"*\"]", Some("*"))]
    {
        change(&app, &format!("[ingest]\ncors_origins = {cors}")).await;
        assert_eq!(allowed().await.as_deref(), expected);
    }
    change(&app, "[sites.own]\norigins = [\"https://own.example\"]\n[ingest]\ncors_origins = []").await;
    assert_eq!(allowed().await, None);

    let warm = async || client::post(&format!("{}/api/v1/cache/warm", app.url), &[], vec![]).await.status;
    assert_eq!(warm().await, 200);
    change(&app, "[catalog]\nwarm_up = 0\nwarm_rate = 7").await;
    assert_eq!(warm().await, 400, "the default of the limit is none");

    // What is of the start is told, and does nothing.
    let applied =
        app.app().control().put("[ingest]\nmax_sites = 1\nmax_age = \"1d\"\n".into(), "config", None, "the test").await;
    assert_eq!(applied.unwrap().restart, ["ingest.max_sites"]);
    assert_eq!((post(&app, "", &[], EVENT).await, post(&app, "", &[], old).await), (202, 400));
    app.counted().await;
    assert_eq!(app.data("/api/v1/audit").await["agree"], true);
}

#[actix_web::test]
async fn the_log_follows_its_level() {
    let folder = tempfile::tempdir().unwrap();
    let text = |level: &str| format!("[gateway.limits.l]\nlimit = 5\n[log]\nlevel = \"{level}\"\n");
    let server = Process::with_gateway(&folder.path().join("data"), &text("info"), &[]);
    let log = || std::fs::read_to_string(folder.path().join("data.log")).unwrap();
    let apply = async |level: &str| {
        let text = format!("[gateway]\nlisten = \"127.0.0.1:0\"\n{}", text(level));
        let answer = client::post(&format!("{}/api/v1/admin/config", server.admin), &[], text.into()).await;
        assert_eq!(answer.json()["data"]["restart"], json!([]), "{}", answer.text());
        client::get(&format!("{}/health", server.url)).await;
        log()
    };
    assert!(!log().contains("TRACE"));
    assert!(apply("trace").await.contains("TRACE"));
    apply("error").await;
    let before = log().lines().count();
    assert_eq!(apply("off").await.lines().count(), before, "a change is told at info");
    assert!(apply("info").await.lines().count() > before);
}

#[actix_web::test]
async fn the_admin_api_is_never_left_open() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let key = "a-key-of-the-operators";
    std::fs::write(&file, format!("[server]\nadmin_key = \"{key}\"\n[admin]\nlisten = \"0.0.0.0:0\"\n")).unwrap();
    let env = [
        ("SERVER__LISTEN", String::from("127.0.0.1:0")),
        ("DATA__DIR", folder.path().join("data").display().to_string()),
    ];
    let env = env.map(|(name, value)| (format!("TIDEGATE__{name}"), value));
    let app = App::start(Config::load(Some(&file), env.into_iter()).unwrap(), Clock::system()).await.unwrap();
    let port = app.admin_address().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/api/v1/admin/config");
    let bearer = format!("Bearer {key}");
    // Without the key; and without the key, but with a listener that would be fine after a restart.
    for text in ["[admin]\nlisten = \"0.0.0.0:0\"\n", "[admin]\nlisten = \"127.0.0.1:0\"\n", ""] {
        let answer = client::post(&url, &[("authorization", &bearer)], text.into()).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (422, Some("invalid_config")), "{text:?}");
        assert!(answer.text().contains("admin.listen"), "{}", answer.text());
        assert_eq!(client::get(&url).await.status, 401);
    }
    let other = format!("[server]\nadmin_key = \"{key}-2\"\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    let answer = client::post(&url, &[("authorization", &bearer)], other.into()).await;
    assert_eq!(answer.json()["data"]["restart"], json!(["admin.listen"]), "{}", answer.text());
    let status = client::get_with(&url, &[("authorization", &bearer)]).await.status;
    assert_eq!(status, 401, "the old key");
    assert_eq!(client::get_with(&url, &[("authorization", &format!("{bearer}-2"))]).await.status, 200);
    app.stop().await.unwrap();
}

#[actix_web::test]
async fn a_key_in_a_file_is_read_anew_and_is_no_version() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("admin");
    let put = |key: &str| std::fs::write(&file, key).unwrap();
    put("the-first-key-of-ours\n");
    let text = format!("[server]\nadmin_key_file = \"{}\"\n", file.display());
    let app = TestApp::with_file(&text, &[]).await;
    let reload = async |key: &str| {
        let url = format!("{}/api/v1/admin/config/reload", app.admin());
        client::post(&url, &[("authorization", &format!("Bearer {key}"))], vec![]).await
    };
    assert_eq!(
        reload("the-first-key-of-ours").await.json()["data"],
        json!({"version": 1, "changes": [], "restart": []})
    );
    put("the-second-key-of-ours");
    let answer = reload("the-first-key-of-ours").await;
    let hidden = json!({"key": "server.admin_key", "before": "(hidden)", "after": "(hidden)"});
    assert_eq!(answer.json()["data"], json!({"version": 1, "changes": [hidden], "restart": []}));
    assert_eq!(reload("the-first-key-of-ours").await.status, 401);
    put("short");
    assert_eq!(reload("the-second-key-of-ours").await.status, 422);
    assert_eq!(app.app().control().history().await.1.len(), 1);
    let log = std::fs::read_to_string(app.folder.path().join("data/audit.log")).unwrap();
    assert!(log.contains("server.admin_key") && !log.contains("of-ours"), "{log}");
}

/// Reloads begun and answered so far: odd while one is under way. The config of `n` answered ones has the key of number `n`.
type Reloads = Arc<AtomicU64>;

fn key(number: u64) -> String {
    format!("key-number-{number}")
}

/// Sends events with keys of now, of before and of later, and checks each answer against what was in force meanwhile. Gives
/// how many events were taken, and how many answers left no doubt.
fn send(address: std::net::SocketAddr, events: usize, seed: u64, reloads: &Reloads, stop: &AtomicBool) -> (u64, u64) {
    let body = format!("[{}]", vec![EVENT; events].join(","));
    let mut raw = client::Raw::connect(address).unwrap();
    let (mut taken, mut certain) = (0, 0);
    for n in seed.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let before = reloads.load(Ordering::SeqCst);
        let number = (before / 2 + n % 3).saturating_sub(1);
        let path = format!("/api/v1/events?write_key={}", key(number));
        let (status, text) = raw.post_to(&path, &body).expect("no connection is dropped");
        let after = reloads.load(Ordering::SeqCst);
        let answer: Value = serde_json::from_str(&text).unwrap();
        let accepted = answer["data"]["accepted"].as_u64().unwrap_or(0);
        // All of a request goes by one config.
        match status {
            202 => assert_eq!((accepted, &answer["data"]["rejected"]), (events as u64, &json!([])), "{text}"),
            403 => assert_eq!(answer["error"]["rejected"].as_array().unwrap().len(), events.min(1000)),
            other => panic!("{other}: {text}"),
        }
        taken += accepted;
        let in_force = before / 2..=after.div_ceil(2);
        if !in_force.contains(&number) {
            assert_eq!(status, 403, "key {number} while {in_force:?} were in force");
            certain += 1;
        } else if in_force.start() == in_force.end() {
            assert_eq!(status, 202, "key {number} while {in_force:?} was in force");
            certain += 1;
        }
    }
    (taken, certain)
}

#[actix_web::test]
async fn under_load_no_request_is_judged_by_a_key_that_is_not_in_force() {
    let config = |number: u64| shop(&format!("\"{}\"", key(number)));
    let app = TestApp::with_file(&config(0), &[]).await;
    let address = app.app().address();
    let (reloads, stop) = (Reloads::default(), Arc::new(AtomicBool::new(false)));
    // Alone, in a batch, and in a body that is decoded in slices.
    let load: Vec<_> = [1, 10, 6000, 1]
        .into_iter()
        .zip(0..)
        .map(|(events, seed)| {
            let (reloads, stop) = (reloads.clone(), stop.clone());
            std::thread::spawn(move || send(address, events, seed, &reloads, &stop))
        })
        .collect();
    for number in 1..=150 {
        reloads.fetch_add(1, Ordering::SeqCst);
        change(&app, &config(number)).await;
        reloads.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(number % 7)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let sums = tokio::task::spawn_blocking(move || {
        load.into_iter().map(|thread| thread.join().expect("no answer was wrong")).collect::<Vec<_>>()
    });
    let sums = sums.await.unwrap();
    let (taken, certain) = sums.iter().fold((0, 0), |(taken, certain), sum| (taken + sum.0, certain + sum.1));
    println!("over 150 changes: {taken} events taken, {certain} answers left no doubt, {sums:?}");
    assert!(taken > 1000 && certain > 100, "{sums:?}");
    app.counted().await;
    let audit = app.data("/api/v1/audit").await;
    assert_eq!((&audit["agree"], &audit["sites"][0]["journal"]["accepted"]), (&json!(true), &json!(taken)), "{audit}");
}
