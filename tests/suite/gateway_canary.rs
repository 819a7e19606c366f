//! Canaries over HTTP: who gets to them, and what becomes of good and bad ones.

use std::time::{Duration, Instant};

use tidegate::gateway::Gateway;
use tidegate::gateway::canary::{CanarySnapshot, Phase, Reason, Weight};

use crate::backend::{Backend, Reply};
use crate::client;
use crate::support::{TestApp, eventually};
use crate::wire::{Wire, beside};

const GET: &str = "GET / HTTP/1.1\r\nhost: t\r\n\r\n";

/// A route `all` to the first, whose canary is the second, with these settings.
pub fn gateway(stable: &str, canary: &str, settings: &str) -> String {
    format!(
        "workers = 1\n[gateway.upstreams.stable]\ntargets = [\"{stable}\"]\n[gateway.upstreams.next]\ntargets = [\"{canary}\"]\n\
         [[gateway.routes]]\nname = \"all\"\npath = \"/\"\nupstream = \"stable\"\n\
         [gateway.routes.canary]\nupstream = \"next\"\n{settings}\n"
    )
}

/// Says its name, and fails each so manieth time.
pub fn named(name: &'static str, fails: Option<u64>) -> Backend {
    let backend = Backend::start(move |seen| match fails {
        Some(fails) if seen.number % fails == fails - 1 => Reply::with(500, &[], name),
        _ => Reply::with(200, &[("set-cookie", "theirs=1")], name),
    });
    backend.forgetful()
}

async fn start(stable: &Backend, canary: &Backend, settings: &str) -> (TestApp, Gateway) {
    let toml = gateway(&stable.address.to_string(), &canary.address.to_string(), settings);
    let app = TestApp::with_gateway(&toml, &[]).await;
    let gateway = app.app().gateway().unwrap().clone();
    (app, gateway)
}

pub fn snapshot(gateway: &Gateway) -> CanarySnapshot {
    gateway.canary("all").unwrap().snapshot()
}

async fn metric(app: &TestApp, series: &str) -> f64 {
    let text = app.get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {text}"));
    line.trim().parse().unwrap()
}

#[actix_web::test]
async fn headers_and_cookies_decide_until_it_is_aborted() {
    let (stable, next) = (named("stable", None), named("next", None));
    let settings = "weight = 0\nheader = \"X-Canary\"\ncookie = \"beta\"\ncookie_value = \"*\"";
    let (app, gateway) = start(&stable, &next, settings).await;
    let url = app.gateway();
    let ask = async |headers: &[(&str, &str)]| client::get_with(&url, headers).await.text();
    assert_eq!(ask(&[]).await, "stable");
    assert_eq!(ask(&[("x-canary", "always")]).await, "next");
    assert_eq!(ask(&[("x-canary", "yes")]).await, "stable");
    assert_eq!(ask(&[("cookie", "a=1; beta=on")]).await, "next");
    assert_eq!(ask(&[("cookie", "beta=never")]).await, "stable");
    assert_eq!(ask(&[("cookie", "beta=on"), ("x-canary", "never")]).await, "stable");
    let canary = gateway.canary("all").unwrap();
    canary.promote();
    assert_eq!(ask(&[]).await, "next");
    assert_eq!(ask(&[("x-canary", "never")]).await, "stable");
    canary.abort();
    assert_eq!(ask(&[("x-canary", "always")]).await, "stable");
    assert_eq!(metric(&app, "tidegate_canary_aborted{route=\"all\"}").await, 1.0);
    assert_eq!(metric(&app, "tidegate_canary_transitions_total{route=\"all\"}").await, 2.0);
    assert_eq!(metric(&app, "tidegate_canary_requests_total{route=\"all\",side=\"canary\"}").await, 3.0);
    assert_eq!(metric(&app, "tidegate_canary_requests_total{route=\"all\",side=\"stable\"}").await, 6.0);
    canary.resume();
    assert_eq!(ask(&[("x-canary", "always")]).await, "next");
    assert!(gateway.canary("other").is_none());
}

#[actix_web::test]
async fn a_browser_stays_where_it_is_while_the_weight_grows() {
    let (stable, next) = (named("stable", None), named("next", None));
    let (app, gateway) = start(&stable, &next, "weight = 10").await;
    let at = app.gateway();
    let ids = gateway.clone();
    let sides = beside(move || {
        let mut wire = Wire::to(&at);
        let mut browsers = Vec::new();
        for _ in 0..100 {
            let answer = wire.ask(GET);
            let cookies: Vec<&str> = answer
                .headers
                .iter()
                .filter(|(name, _)| name == "set-cookie")
                .map(|(_, value)| value.as_str())
                .collect();
            let [theirs, ours] = cookies.as_slice() else { panic!("{cookies:?}") };
            assert_eq!(*theirs, "theirs=1", "an upstream's cookies stay");
            let (pair, rest) = ours.split_once("; ").unwrap();
            assert_eq!(rest, "Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax");
            browsers.push((pair.to_owned(), answer.text() == "next"));
        }
        let mut sides = Vec::new();
        for weight in [10.0, 30.0, 60.0, 90.0] {
            ids.canary("all").unwrap().set_weight(Weight::percent(weight).unwrap());
            for (cookie, before) in &mut browsers {
                let answer = wire.ask(format!("GET / HTTP/1.1\r\nhost: t\r\ncookie: a=b; {cookie}\r\n\r\n"));
                let now = answer.text() == "next";
                assert!(now || !*before, "it flipped back at {weight} %");
                assert!(now == *before || weight > 10.0, "it moved though the weight did not");
                assert!(!answer.headers.iter().any(|(_, value)| value.contains("tidegate_canary")));
                *before = now;
            }
            sides.push(browsers.iter().filter(|(_, canary)| *canary).count());
        }
        ids.canary("all").unwrap().abort();
        for (cookie, _) in &browsers {
            let answer = wire.ask(format!("GET / HTTP/1.1\r\nhost: t\r\ncookie: {cookie}\r\n\r\n"));
            assert_eq!(answer.text(), "stable");
        }
        sides
    })
    .await;
    // 100 times chance: five standard deviations and more.
    for (count, weight) in sides.iter().zip([10, 30, 60, 90]) {
        assert!(count.abs_diff(weight) < 27, "{sides:?}");
    }
    assert_eq!(snapshot(&gateway).phase, Phase::Aborted);
}

#[actix_web::test]
async fn the_split_is_that_of_the_weight() {
    let (stable, next) = (named("stable", None), named("next", None));
    let (app, _) = start(&stable, &next, "weight = 30\nmax_p99_ratio = 1000.0").await;
    let at = app.gateway();
    beside(move || {
        let mut wire = Wire::to(&at);
        for _ in 0..4000 {
            assert_eq!(wire.ask(GET).status, 200);
        }
    })
    .await;
    // Five standard deviations are 145.
    let count = next.count();
    assert!(count.abs_diff(1200) < 145, "{count} of 4,000 at 30 %");
    assert_eq!(stable.count() + count, 4000);
    assert_eq!(metric(&app, "tidegate_canary_weight{route=\"all\"}").await, 0.3);
    assert_eq!(metric(&app, "tidegate_canary_requests_total{route=\"all\",side=\"canary\"}").await, count as f64);
}

#[actix_web::test]
async fn one_that_fails_more_often_is_aborted_within_2000_of_its_requests() {
    let (stable, next) = (named("stable", Some(100)), named("next", Some(33)));
    let settings = "steps = [25, 100]\nmax_p99_ratio = 1000.0";
    let (app, gateway) = start(&stable, &next, settings).await;
    let (at, watched) = (app.gateway(), gateway.clone());
    let begun = Instant::now();
    beside(move || {
        let mut wire = Wire::to(&at);
        while snapshot(&watched).phase == Phase::Running {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", snapshot(&watched));
            for _ in 0..20 {
                wire.ask(GET);
            }
        }
    })
    .await;
    let count = next.count();
    assert!(count <= 2000, "{count}");
    let snapshot = snapshot(&gateway);
    assert_eq!((snapshot.phase, snapshot.weight, snapshot.reason), (Phase::Aborted, Weight::NONE, Reason::Errors));
    let failures = metric(&app, "tidegate_canary_failures_total{route=\"all\",side=\"canary\"}").await;
    assert_eq!(failures, (count / 33) as f64);
    assert_eq!(metric(&app, "tidegate_canary_aborts_total{route=\"all\"}").await, 1.0);
    // And all are back.
    let at = app.gateway();
    beside(move || {
        let mut wire = Wire::to(&at);
        for _ in 0..200 {
            assert_eq!(wire.ask(GET).text(), "stable");
        }
    })
    .await;
    assert_eq!(next.count(), count);
}

#[actix_web::test]
async fn one_that_is_slow_is_aborted() {
    let stable = named("stable", None);
    let next = Backend::start(|_| Reply::ok("next").after(Duration::from_millis(30))).forgetful();
    let (app, gateway) = start(&stable, &next, "steps = [20, 100]").await;
    let (at, watched) = (app.gateway(), gateway.clone());
    let begun = Instant::now();
    beside(move || {
        let mut wire = Wire::to(&at);
        while snapshot(&watched).phase == Phase::Running {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", snapshot(&watched));
            for _ in 0..20 {
                wire.ask(GET);
            }
        }
    })
    .await;
    let snapshot = snapshot(&gateway);
    assert_eq!((snapshot.phase, snapshot.reason), (Phase::Aborted, Reason::Latency));
    assert!(next.count() <= 2000, "{}", next.count());
}

#[actix_web::test]
async fn one_that_does_well_takes_its_steps() {
    let (stable, next) = (named("stable", None), named("next", None));
    let settings = "steps = [20, 50, 100]\ninterval = \"100ms\"\nmin_requests = 20\nmax_p99_ratio = 1000.0";
    let (app, gateway) = start(&stable, &next, settings).await;
    let (at, watched) = (app.gateway(), gateway.clone());
    let begun = Instant::now();
    beside(move || {
        let mut wire = Wire::to(&at);
        while snapshot(&watched).phase == Phase::Running {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", snapshot(&watched));
            wire.ask(GET);
        }
        assert_eq!(wire.ask(GET).text(), "next");
    })
    .await;
    let snapshot = snapshot(&gateway);
    let between: Vec<i64> = snapshot.last.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(between.len() == 1 && between[0] >= 99, "a step takes its interval: {between:?}");
    let steps: Vec<String> = snapshot.last.iter().map(|change| format!("{} to {}", change.from, change.to)).collect();
    assert_eq!(steps, ["20 % to 50 %", "50 % to 100 %"]);
    assert_eq!((snapshot.phase, snapshot.reason, snapshot.next), (Phase::Promoted, Reason::Step, None));
}

#[actix_web::test]
async fn nobody_suffers_for_one_that_is_not_there() {
    let (stable, next) = (named("stable", None), named("next", None));
    let (app, gateway) = start(&stable, &next, "weight = 50").await;
    next.kill();
    let gone = async || std::net::TcpStream::connect(next.address).is_err();
    eventually("nobody listens there", gone).await;
    let at = app.gateway();
    let watched = gateway.clone();
    let asked = beside(move || {
        let mut wire = Wire::to(&at);
        let mut asked = 0;
        while snapshot(&watched).phase == Phase::Running {
            let answer = wire.ask("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nhello");
            assert_eq!((answer.status, answer.text().as_str()), (200, "stable"));
            asked += 1;
            assert!(asked < 20_000, "{:?}", snapshot(&watched));
        }
        asked
    })
    .await;
    let snapshot = snapshot(&gateway);
    assert_eq!((snapshot.phase, snapshot.reason), (Phase::Aborted, Reason::Errors));
    assert_eq!(snapshot.canary.requests + snapshot.stable.requests, asked);
    assert_eq!((snapshot.canary.failures, snapshot.stable.failures), (snapshot.canary.requests, 0));
}

#[actix_web::test]
async fn a_new_config_keeps_it_where_it_is_unless_it_is_another() {
    let (stable, next) = (named("stable", None), named("next", None));
    let (app, gateway) = start(&stable, &next, "steps = [10, 20]").await;
    let canary = gateway.canary("all").unwrap();
    client::get(&app.gateway()).await;
    canary.abort();
    let mut options = (*gateway.options()).clone();
    options.routes[0].retries = 5;
    gateway.apply(options.clone()).unwrap();
    let aborted = options.clone();
    assert_eq!(snapshot(&gateway).phase, Phase::Aborted);
    assert_eq!(snapshot(&gateway).canary.requests + snapshot(&gateway).stable.requests, 1);
    let settings = options.routes[0].canary.as_mut().unwrap();
    settings.steps = vec![Weight::percent(5.0).unwrap()];
    gateway.apply(options.clone()).unwrap();
    assert_eq!((snapshot(&gateway).phase, snapshot(&gateway).weight), (Phase::Running, Weight::percent(5.0).unwrap()));
    options.routes[0].canary = None;
    gateway.apply(options).unwrap();
    assert!(gateway.canary("all").is_none());
    assert_eq!(client::get(&app.gateway()).await.text(), "stable");
    // A change that is taken back brings nobody to one that was aborted.
    gateway.apply(aborted).unwrap();
    assert_eq!((snapshot(&gateway).phase, snapshot(&gateway).aborts), (Phase::Aborted, 1));
}

#[actix_web::test]
async fn the_access_log_tells_them_apart() {
    let (stable, next) = (named("stable", None), named("next", None));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let settings = gateway(&stable.address.to_string(), &next.address.to_string(), "header = \"x-canary\"");
    let app = TestApp::with_gateway(&format!("access_log = {log:?}\n{settings}"), &[]).await;
    client::get_with(&app.gateway(), &[("x-canary", "always")]).await;
    client::get(&app.gateway()).await;
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually("both are logged", async || lines().len() == 2).await;
    let told: Vec<_> = lines().iter().map(|line| (line["upstream"].clone(), line["canary"].clone())).collect();
    assert_eq!(told, [("next".into(), true.into()), ("stable".into(), serde_json::Value::Null)]);
}
