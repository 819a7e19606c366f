//! What is tried again, how often, and what never is.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Ask, Load, ask, at, failures, gateway, get, metric, metric_becomes, of_addresses, start};
use crate::backend::{Backend, Reply};

/// Neither leaves targets alone nor all of them, and retries as much as a route says.
const EAGER: &str = "breaker = false\nmax_fails = 0\nretry_floor = 1000";

/// An address where nobody listens.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[actix_web::test]
async fn what_was_not_sent_goes_to_another_target() {
    let arrived: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let counts = arrived.clone();
    let alive = Backend::start(move |seen| {
        *counts.lock().unwrap().entry(String::from_utf8_lossy(&seen.body).into_owned()).or_default() += 1;
        Reply::ok("ok")
    });
    let addresses = [nowhere(), alive.address.to_string(), nowhere()];
    let app = start(&of_addresses(&addresses, EAGER, "retries = 2")).await;
    let address = at(&app);
    let load = Load::start(4, |_| address, |client, i| (i < 50).then(|| Ask::post("/", format!("{client}-{i}"))));
    assert_eq!(failures(&load.end().await), Vec::<String>::new());
    let arrived = arrived.lock().unwrap().clone();
    assert!(arrived.len() == 200 && arrived.values().all(|times| *times == 1), "{arrived:?}");
    app.stop().await;
}

#[actix_web::test]
async fn what_was_sent_is_repeated_only_where_that_is_safe() {
    let rude = Backend::start(|_| Reply::hang_up());
    let kind = Backend::start(|_| Reply::ok("ok"));
    let app = start(&gateway(&[&rude, &kind], EAGER, "")).await;
    let address = at(&app);
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
        let before = rude.count();
        for n in 0..4 {
            let got = if method == "HEAD" {
                // Its answer has a length and no body.
                let url = format!("{}/{method}/{n}", app.gateway());
                crate::client::request(method, &url, &[]).await.status
            } else {
                ask(address, method, &format!("/{method}/{n}"), "", "").status
            };
            assert_eq!(got, 200, "{method}");
        }
        assert!(rude.count() > before, "{method} never went there");
    }
    let (mut good, mut bad) = (0, 0);
    for (method, body) in [("POST", "a body"), ("POST", ""), ("PUT", "a body"), ("PATCH", "")] {
        for n in 0..10 {
            let got = ask(address, method, &format!("/once/{n}"), "", body);
            match got.status {
                200 => good += 1,
                502 => {
                    assert_eq!(got.code(), "bad_gateway");
                    bad += 1;
                }
                other => panic!("{other}"),
            }
        }
    }
    let once = |backend: &Backend| backend.seen().iter().filter(|seen| seen.target.starts_with("/once/")).count();
    assert_eq!((once(&rude), once(&kind)), (bad, good), "each arrived once");
    assert!(bad >= 10 && good >= 10, "{bad} {good}");
    app.stop().await;
}

#[actix_web::test]
async fn an_outage_is_not_multiplied_by_retries() {
    let backends = [Backend::start(|_| Reply::hang_up()).forgetful(), Backend::start(|_| Reply::hang_up()).forgetful()];
    let upstream = "breaker = false\nmax_fails = 0\nretry_budget = 0.1\nretry_floor = 0";
    let app = start(&gateway(&[&backends[0], &backends[1]], upstream, "retries = 3")).await;
    let address = at(&app);
    let load = Load::start(4, |_| address, |_, i| (i < 300).then(|| Ask::get("/")));
    let all = load.end().await;
    assert!(all.iter().all(|went| went.status() == 502), "{:?}", all[0]);
    let (offered, sent) = (all.len() as u64, backends[0].connections() + backends[1].connections());
    println!("{offered} offered, {sent} sent");
    assert!(sent * 10 <= offered * 11, "{sent} for {offered}");
    assert!(sent * 100 >= offered * 105, "retries are not used: {sent} for {offered}");
    let granted = metric(&app, r#"tidegate_upstream_retries_total{upstream="a",outcome="granted"}"#).await;
    assert_eq!(granted, Some((sent - offered) as f64));
    metric_becomes(&app, r#"tidegate_upstream_in_flight{upstream="a"}"#, 0.0).await;
    app.stop().await;
}

#[actix_web::test]
async fn nothing_is_tried_again_when_time_is_up() {
    let wait = Duration::from_millis(150);
    let backends =
        [Backend::start(move |_| Reply::hang_up().after(wait)), Backend::start(move |_| Reply::hang_up().after(wait))];
    let route = "retries = 10\ntotal_timeout = \"250ms\"";
    let app = start(&gateway(&[&backends[0], &backends[1]], EAGER, route)).await;
    let begun = Instant::now();
    let got = get(at(&app), "/");
    assert_eq!((got.status, got.code().as_str()), (504, "upstream_timeout"));
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    assert_eq!(backends[0].count() + backends[1].count(), 2, "at 0 and 150 ms");
    app.stop().await;
}
