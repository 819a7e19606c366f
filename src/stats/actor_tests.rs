use super::*;
use crate::event::Batch;
use crate::event::access::Claim;
use crate::event::decode::{Framing, body};
use crate::event::intake::{Intake, Rules, Sender};
use crate::event::visitor::Salts;
use crate::journal::JournalOptions;

async fn post(journal: &Journal, salts: &Salts, now: UnixMillis, text: &str) {
    let rules = Rules::default();
    let sender = Sender {
        address: "192.0.2.1",
        agent: "x",
        privacy_signal: false,
        received: now,
        import: false,
        claim: Claim::NONE,
    };
    let mut batch = Batch::default();
    let intake = Intake::new(&rules, salts, sender);
    body(text.as_bytes(), Framing::Guess, |index, raw| intake.take(index, raw, &mut batch));
    journal.append(batch, journal.admit(0).unwrap()).await.unwrap();
}

/// Acknowledged events survive any number of panics of the aggregator, each counted once, behind the same handle.
#[actix::test]
async fn a_panicking_aggregator_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let options = JournalOptions { min_free_bytes: 0, ..JournalOptions::default() };
    let journal = Journal::open(&folder.path().join("journal"), options, clock.clone(), 0).unwrap();
    let salts = Salts::open(&folder.path().join("keys"), clock.now()).unwrap();
    let path = folder.path().join("stats.db");
    let stats_options = StatsOptions::default();
    let store = open_store(&path, stats_options.clone()).unwrap();
    let flush = Duration::from_millis(5);
    let stats = start(store, &journal, clock.clone(), &stats_options, flush, None).unwrap();
    let mut sent = 0;
    for round in 0..5 {
        for _ in 0..20 {
            post(&journal, &salts, clock.now(), r#"[{"url":"/a"},{"type":"b"}]"#).await;
            sent += 2;
        }
        // At another moment of its work each time; and not into the void while it is being replaced.
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        let watch = Stopwatch::start();
        while stats.restarts() <= round {
            stats.panic().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(watch.elapsed() < Duration::from_secs(20));
        }
    }
    tokio::time::timeout(Duration::from_secs(30), stats.counted_through(sent)).await.unwrap();
    assert!(stats.restarts_by_cause().0 >= 5, "{:?}", stats.restarts_by_cause());
    let audit = stats.queries().audit().await.unwrap();
    assert_eq!(audit.sites["default"].counted, sent);
    let day = stats.live().realtime_json("default", super::super::WindowName::Day, clock.now());
    let day: serde_json::Value = serde_json::from_slice(&day.data).unwrap();
    assert_eq!(day["page_views"], sent / 2, "what is shown is what is stored");
    assert_eq!(stats.fault(), None);
    journal.stop().await;
    stats.stop(Duration::from_secs(10)).await;
}

#[actix::test]
async fn a_stop_counts_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let options = JournalOptions { min_free_bytes: 0, ..JournalOptions::default() };
    let journal = Journal::open(&folder.path().join("journal"), options, clock.clone(), 0).unwrap();
    let salts = Salts::open(&folder.path().join("keys"), clock.now()).unwrap();
    let stats_options = StatsOptions::default();
    let store = open_store(&folder.path().join("stats.db"), stats_options.clone()).unwrap();
    // An interval so long that only the stop can make it count.
    let stats = start(store, &journal, clock.clone(), &stats_options, Duration::from_secs(3600), None).unwrap();
    for _ in 0..50 {
        post(&journal, &salts, clock.now(), r#"{"type":"b"}"#).await;
    }
    journal.stop().await;
    let watch = Stopwatch::start();
    stats.stop(Duration::from_secs(20)).await;
    assert!(watch.elapsed() < Duration::from_secs(10));
    assert_eq!(stats.counted(), 50);
}
