//! A service that fails as a whole: its breaker, and what stands in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::{Ask, Barrier, Got, Line, Load, ask, at, gateway, get, metric, metric_becomes, service, start, way};
use crate::backend::{Backend, Reply};
use crate::support::{TestApp, eventually};

const WELL: u8 = 0;
const FAILING: u8 = 1;
const SLOW: u8 = 2;
const HELD: u8 = 3;
const HANGING: u8 = 4;

/// A service whose mood can be changed.
fn moody(barrier: &Barrier) -> (Backend, Arc<AtomicU8>) {
    let (mood, barrier) = (Arc::new(AtomicU8::new(WELL)), barrier.clone());
    let set = mood.clone();
    let backend = Backend::start(move |_| match mood.load(Ordering::SeqCst) {
        WELL => Reply::ok("well"),
        FAILING => Reply::with(500, &[], "no"),
        SLOW => Reply::ok("slow").after(Duration::from_millis(60)),
        HANGING => Reply::ok("late").after(Duration::from_millis(400)),
        _ => {
            barrier.pass();
            Reply::ok("well again")
        }
    });
    (backend.forgetful(), set)
}

const BREAKER: &str = "breaker = { window = 10, min_calls = 10, failure_rate = 0.5, slow_call = \"30ms\", slow_rate = 0.8, \
                       open_for = \"600ms\", probes = 3 }";

fn is_open(got: &Got) -> bool {
    let open = got.status == 503 && got.code() == "circuit_open";
    assert!(!open || got.header("retry-after") == Some("1"), "{got:?}");
    open
}

async fn until_open(app: &TestApp, path: &str) -> Vec<Got> {
    let (mut line, mut all) = (Line::to(at(app)).unwrap(), vec![]);
    eventually("the breaker opens", async || {
        all.push(line.ask("GET", path, "", "").unwrap());
        is_open(all.last().unwrap())
    })
    .await;
    all
}

/// Tries the service with exactly the probes that there are to be, and closes.
async fn closes_again(app: &TestApp, backend: &Backend, mood: &AtomicU8, barrier: &Barrier) {
    mood.store(HELD, Ordering::SeqCst);
    let (before, address) = (backend.count(), at(app));
    let load = Load::paced(8, Duration::from_millis(5), |_| address, |_, _| Some(Ask::get("/")));
    eventually("it is tried", async || backend.count() == before + 3).await;
    metric_becomes(app, r#"tidegate_breaker_state{state="half_open",upstream="a"}"#, 1.0).await;
    // The other five hear meanwhile that it is not to be asked.
    let done = load.done();
    load.reaches(done + 100).await;
    assert_eq!(backend.count(), before + 3, "no more probes than there are to be");
    barrier.open();
    metric_becomes(app, r#"tidegate_breaker_state{state="closed",upstream="a"}"#, 1.0).await;
    load.reaches(load.done() + 50).await;
    load.stop();
    let all = load.end().await;
    assert!(all.iter().all(|went| went.status() == 200 || is_open(went.got.as_ref().unwrap())));
    assert_eq!(get(address, "/").status, 200);
}

#[actix_web::test]
async fn a_breaker_trips_tries_and_closes() {
    let barrier = Barrier::default();
    let (backend, mood) = moody(&barrier);
    let app = start(&gateway(&[&backend], BREAKER, "")).await;
    assert_eq!(get(at(&app), "/").status, 200);
    metric_becomes(&app, r#"tidegate_breaker_state{state="closed",upstream="a"}"#, 1.0).await;
    mood.store(FAILING, Ordering::SeqCst);
    let seen = until_open(&app, "/").await;
    let failed = seen.iter().filter(|got| got.status == 500).count();
    assert_eq!(failed + 1, seen.len(), "the service's own errors are handed on");
    assert!(failed >= 5, "half of ten at least, not {failed}");
    let asked = backend.count();
    for method in ["GET", "POST"] {
        assert!(is_open(&ask(at(&app), method, "/x", "", "")));
    }
    assert_eq!(backend.count(), asked, "it is left alone");
    metric_becomes(&app, r#"tidegate_breaker_state{state="open",upstream="a"}"#, 1.0).await;
    let health = app.get("/health").await.text();
    assert!(health.contains("\"open\"") && health.contains("its breaker is open"), "{health}");
    closes_again(&app, &backend, &mood, &barrier).await;
    let health = app.get("/health").await.text();
    assert!(health.contains("\"closed\"") && !health.contains("its breaker is open"), "{health}");
    app.stop().await;
}

#[actix_web::test]
async fn slow_and_silent_services_trip_it_too() {
    let barrier = Barrier::default();
    let (backend, mood) = moody(&barrier);
    let brief = way("brief", "/brief", "a", "first_byte_timeout = \"100ms\"");
    let app = start(&(gateway(&[&backend], BREAKER, "") + &brief)).await;
    mood.store(SLOW, Ordering::SeqCst);
    let seen = until_open(&app, "/").await;
    assert!(seen.len() > 10 && seen[..seen.len() - 1].iter().all(|got| got.status == 200), "{seen:?}");
    // A probe that is slow leaves it open.
    eventually("it was tried and is open again", async || {
        get(at(&app), "/");
        metric(&app, r#"tidegate_breaker_transitions_total{upstream="a"}"#).await >= Some(3.0)
    })
    .await;
    closes_again(&app, &backend, &mood, &barrier).await;
    mood.store(HANGING, Ordering::SeqCst);
    let seen = until_open(&app, "/brief").await;
    let late = seen.iter().filter(|got| got.status == 504 && got.code() == "upstream_timeout").count();
    assert!(late >= 5, "{seen:?}");
    metric_becomes(&app, r#"tidegate_upstream_in_flight{upstream="a"}"#, 0.0).await;
    app.stop().await;
}

#[actix_web::test]
async fn who_stands_in_for_a_service_that_is_gone() {
    let primary = Backend::start(|seen| match seen.target.as_str() {
        "/stale/private" => Reply::with(200, &[("cache-control", "private, max-age=60")], "mine"),
        "/stale/cookie" => Reply::with(200, &[("set-cookie", "a=b")], "hers"),
        "/stale/error" => Reply::with(404, &[], "nothing"),
        target => Reply::with(200, &[("etag", "\"1\""), ("content-type", "text/plain")], &format!("primary {target}")),
    });
    let other = Backend::start(|seen| Reply::ok(&format!("other {}", String::from_utf8_lossy(&seen.body))));
    let plain = "breaker = false\nmax_fails = 0";
    let mut toml = String::from("workers = 1\n");
    toml.push_str(&service("a", &[primary.address.to_string()], plain));
    toml.push_str(&service("b", &[other.address.to_string()], plain));
    toml.push_str(&way("stale", "/stale/", "a", "fallback = { stale = \"1m\" }"));
    toml.push_str(&way("other", "/other/", "a", "fallback = { upstream = \"b\" }"));
    toml.push_str(&way("both", "/both/", "a", "fallback = { stale = \"1m\", upstream = \"b\" }"));
    toml.push_str(&way("bare", "/bare/", "a", ""));
    let app = start(&toml).await;
    let address = at(&app);
    let paths = ["/stale/public", "/stale/private", "/stale/cookie", "/stale/error", "/both/known"];
    for path in paths {
        let got = get(address, path);
        assert_eq!(got.status, if path == "/stale/error" { 404 } else { 200 });
        assert!(got.header("age").is_none() && got.header("cache-status").is_none());
    }
    assert_eq!(ask(address, "GET", "/stale/hers", "cookie: id=1\r\n", "").status, 200);
    primary.kill();
    eventually("it is gone", async || get(address, "/bare/").status == 502).await;
    assert_eq!(get(address, "/bare/").code(), "upstream_unreachable");
    let got = get(address, "/stale/public");
    assert_eq!((got.status, got.body.as_str()), (200, "primary /stale/public"));
    assert!(got.header("age").is_some_and(|age| age.parse::<u64>().unwrap() < 60), "{got:?}");
    assert!(got.header("cache-status").is_some_and(|status| status.contains("stale-if-error")), "{got:?}");
    assert_eq!(got.header("etag"), Some("\"1\""));
    for path in ["/stale/private", "/stale/cookie", "/stale/error", "/stale/hers", "/stale/unknown", "/stale/public?q"]
    {
        let got = get(address, path);
        assert_eq!((got.status, got.code().as_str()), (502, "upstream_unreachable"), "{path}");
    }
    for headers in ["cookie: id=1\r\n", "authorization: Bearer x\r\n", "accept-language: de\r\n"] {
        assert_eq!(ask(address, "GET", "/stale/public", headers, "").status, 502, "{headers}");
    }
    assert_eq!(ask(address, "POST", "/stale/public", "", "x").status, 502);
    assert_eq!(ask(address, "POST", "/other/a", "", "a body").body, "other a body");
    assert_eq!(get(address, "/both/known").body, "primary /both/known", "what is known comes first");
    assert_eq!(get(address, "/both/unknown").body, "other ");
    let stood_in = |by: &str, route: &str| format!("tidegate_gateway_fallbacks_total{{by=\"{by}\",route=\"{route}\"}}");
    metric_becomes(&app, &stood_in("stale", "stale"), 1.0).await;
    metric_becomes(&app, &stood_in("upstream", "other"), 1.0).await;
    other.kill();
    eventually("the other one is gone too", async || get(address, "/other/").status == 502).await;
    app.stop().await;
}

#[actix_web::test]
async fn an_open_breaker_has_a_stand_in_too() {
    let barrier = Barrier::default();
    let (backend, mood) = moody(&barrier);
    let other = Backend::start(|_| Reply::ok("other"));
    let mut toml = gateway(&[&backend], BREAKER, "");
    toml.push_str(&service("b", &[other.address.to_string()], ""));
    toml.push_str(&way("stale", "/stale", "a", "fallback = { stale = \"1m\" }"));
    toml.push_str(&way("other", "/other", "a", "fallback = { upstream = \"b\" }"));
    let app = start(&toml).await;
    assert_eq!(get(at(&app), "/stale").body, "well");
    mood.store(FAILING, Ordering::SeqCst);
    // An error of the service is its answer.
    assert_eq!((get(at(&app), "/stale").status, get(at(&app), "/other").status), (500, 500));
    until_open(&app, "/").await;
    let asked = backend.count();
    assert_eq!((get(at(&app), "/stale").body.as_str(), get(at(&app), "/other").body.as_str()), ("well", "other"));
    assert_eq!(backend.count(), asked);
    app.stop().await;
}
