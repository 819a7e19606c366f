//! More than a service can do.

use std::time::{Duration, Instant};

use super::{Ask, Load, gateway};
use crate::backend::{Backend, Reply};
use crate::support::Process;

/// What the service does at once, and how long each takes it.
const AT_ONCE: usize = 4;
const EACH: Duration = Duration::from_millis(100);

/// Answers a second, from a second after the beginning on, of clients that each ask every `pace`.
async fn goodput(load: Load, begun: Instant, seconds: u64) -> (f64, Vec<super::Went>) {
    crate::support::within(Duration::from_secs(seconds + 10), "time passes", async || {
        begun.elapsed() >= Duration::from_secs(seconds)
    })
    .await;
    load.stop();
    let all = load.end().await;
    let window = |went: &&super::Went| {
        let at = went.ended - begun;
        went.status() == 200 && at >= Duration::from_secs(1) && at < Duration::from_secs(seconds)
    };
    (all.iter().filter(window).count() as f64 / (seconds - 1) as f64, all)
}

#[actix_web::test]
async fn three_times_what_a_service_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(|_| Reply::ok(&"x".repeat(1000)).after(EACH)).forgetful();
    let begun = Instant::now();
    // The service alone, as fast as it goes.
    let direct = Load::start(AT_ONCE, |_| backend.address, |_, _| Some(Ask::get("/")));
    let (capacity, _) = goodput(direct, begun, 4).await;
    let upstream = format!("max_in_flight = {AT_ONCE}\nmax_queue = 8\nqueue_timeout = \"500ms\"");
    let server = Process::with_gateway(&folder.path().join("data"), &gateway(&[&backend], &upstream, ""), &[]);
    let address = server.gateway.unwrap();
    let clients = 48;
    let pace = Duration::from_secs_f64(clients as f64 / (capacity * 3.0));
    let next = |client: usize, i: usize| {
        Some(if (client + i).is_multiple_of(4) { Ask::post("/", "x") } else { Ask::get("/") })
    };
    let begun = Instant::now();
    let load = Load::paced(clients, pace, |_| address, next);
    load.reaches(clients as u64 * 4).await;
    let before = server.resident();
    let (good, all) = goodput(load, begun, 7).await;
    let after = server.resident();
    let refused: Vec<_> = all.iter().filter(|went| went.status() != 200).collect();
    let offered = all.len() as f64 / begun.elapsed().as_secs_f64();
    println!(
        "capacity {capacity:.0}/s, offered {offered:.0}/s, goodput {good:.0}/s ({:.3}), {} refused, {} KiB more",
        good / capacity,
        refused.len(),
        after.saturating_sub(before) >> 10
    );
    for went in &refused {
        let got = went.got.as_ref().expect("an answer to everybody");
        assert_eq!((got.status, got.code().as_str()), (503, "overloaded"), "{got:?}");
        assert!(got.header("retry-after").is_some());
    }
    assert!(refused.len() as f64 > all.len() as f64 / 3.0, "that was no overload: {offered:.0}/s");
    assert!(backend.most_under_way() <= AT_ONCE as u64, "{} at once", backend.most_under_way());
    assert!(good >= 0.9 * capacity, "goodput {good:.0}/s of {capacity:.0}/s");
    assert!(after < before + (16 << 20), "{} KiB became {} KiB", before >> 10, after >> 10);
}
