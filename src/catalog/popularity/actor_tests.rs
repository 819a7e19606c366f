use std::path::Path;

use super::*;
use crate::catalog::popularity::{Hot, Score, open_store};
use crate::event::Batch;
use crate::event::access::Claim;
use crate::event::decode::{Framing, body};
use crate::event::intake::{Intake, Rules, Sender};
use crate::event::visitor::Salts;
use crate::journal::JournalOptions;

struct Shop {
    folder: tempfile::TempDir,
    clock: Clock,
    salts: Salts,
}

impl Shop {
    fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::manual(1_700_000_000_000));
        let salts = Salts::open(&folder.path().join("keys"), clock.now()).unwrap();
        Self { folder, clock, salts }
    }

    fn journal(&self) -> Journal {
        let options = JournalOptions { min_free_bytes: 0, ..JournalOptions::default() };
        Journal::open(&self.folder.path().join("journal"), options, self.clock.clone(), 0).unwrap()
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("popularity.db")
    }

    fn start(&self, journal: &Journal, file: &Path, snapshots: Duration) -> PopularityHandle {
        let options = PopularityOptions {
            max_products: 8,
            publish_interval: Duration::from_millis(10),
            snapshot_interval: snapshots,
            ..PopularityOptions::default()
        };
        start(open_store(file, options.max_products).unwrap(), journal, self.clock.clone(), options).unwrap()
    }

    async fn post(&self, journal: &Journal, text: &str) {
        let rules = Rules::default();
        let received = self.clock.now();
        let sender = Sender {
            address: "192.0.2.1",
            agent: "Firefox",
            privacy_signal: false,
            received,
            import: false,
            claim: Claim::NONE,
        };
        let mut batch = Batch::default();
        let intake = Intake::new(&rules, &self.salts, sender);
        body(text.as_bytes(), Framing::Guess, |index, raw| intake.take(index, raw, &mut batch));
        assert!(batch.rejected.is_empty(), "{:?}", batch.rejected);
        journal.append(batch, journal.admit(0).unwrap()).await.unwrap();
    }
}

/// Of some twenty products, so that there is a tail.
fn visit(i: u64) -> String {
    let product = i * i % 23;
    let bought = if i.is_multiple_of(5) {
        format!(r#", {{"type": "purchase", "data": {{"items": [{{"product_id": "p{}", "quantity": 2}}]}}}}"#, i % 4)
    } else {
        String::new()
    };
    format!(r#"[{{"url": "/p", "product_id": "p{product}"}}{bought}]"#)
}

fn said(handle: &PopularityHandle) -> (Vec<Hot>, Vec<Score>, Vec<usize>) {
    let hour = Duration::from_secs(3600);
    let ids = || (0..23).map(|i| format!("p{i}"));
    let steps = ids().map(|id| handle.lifetime(&id, hour).step).collect();
    (handle.hottest(100).to_vec(), ids().map(|id| handle.score(&id)).collect(), steps)
}

async fn through(handle: &PopularityHandle, journal: &Journal) {
    let all = handle.delivered_through(journal.end());
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("all is counted within 20 s");
}

#[actix::test]
async fn whoever_panics_and_is_killed_ends_with_the_same_numbers_as_who_never_was() {
    let shop = Shop::new();
    let journal = shop.journal();
    let never = shop.start(&journal, &shop.folder.path().join("never.db"), Duration::from_secs(3600));
    let mut often = shop.start(&journal, &shop.file(), Duration::from_millis(1));
    for i in 0..600u64 {
        shop.clock.advance(Duration::from_secs(400));
        shop.post(&journal, &visit(i)).await;
        if i % 100 == 50 {
            let before = often.restarts();
            while often.restarts() == before {
                often.fail().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if i % 150 == 149 {
            // Killed: its file as it lies there is what a successor finds.
            let copy = shop.folder.path().join(format!("killed-{i}.db"));
            for suffix in ["", "-wal"] {
                let from = format!("{}{suffix}", often_file(&shop, i).display());
                if Path::new(&from).exists() {
                    std::fs::copy(&from, format!("{}{suffix}", copy.display())).unwrap();
                }
            }
            often = shop.start(&journal, &copy, Duration::from_millis(1));
        }
    }
    through(&often, &journal).await;
    through(&never, &journal).await;
    assert_eq!((never.behind(), never.counted()), (0, journal.end()));
    assert!(often.saved() > 0 && never.restarts() == 0);
    assert_eq!(said(&often), said(&never));
    assert!(never.hottest(3).len() == 3 && never.hottest(3)[0].score.score >= never.hottest(3)[2].score.score);
    journal.stop().await;
    never.stop(Duration::from_secs(10)).await;
    often.stop(Duration::from_secs(10)).await;
}

fn often_file(shop: &Shop, i: u64) -> std::path::PathBuf {
    if i < 150 { shop.file() } else { shop.folder.path().join(format!("killed-{}.db", i - 150)) }
}

#[actix::test]
async fn a_stop_counts_and_saves_what_is_left_and_a_start_goes_on_there() {
    let shop = Shop::new();
    let journal = shop.journal();
    let handle = shop.start(&journal, &shop.file(), Duration::from_secs(3600));
    for i in 0..200 {
        shop.post(&journal, &visit(i)).await;
    }
    journal.stop().await;
    handle.stop(Duration::from_secs(20)).await;
    assert_eq!((handle.counted(), handle.saved()), (journal.end(), journal.end()));
    let before = said(&handle);
    let journal = shop.journal();
    let handle = shop.start(&journal, &shop.file(), Duration::from_secs(3600));
    assert_eq!((handle.counted(), said(&handle)), (journal.end(), before), "there before anything is read");
    // Time passes and nobody comes: what is shown slides all the same.
    shop.clock.advance(Duration::from_secs(25 * 3600));
    let watch = Stopwatch::start();
    while handle.hottest(10).iter().any(|hot| hot.score.views_24h > 0) {
        assert!(watch.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(handle.score("p2").views_24h, 0);
    assert!(handle.hottest(10).iter().any(|hot| hot.score.units_7d > 0));
    journal.stop().await;
    handle.stop(Duration::from_secs(10)).await;
}

#[actix::test]
async fn a_snapshot_that_is_no_use_is_made_anew_from_the_journal() {
    let shop = Shop::new();
    let journal = shop.journal();
    let handle = shop.start(&journal, &shop.file(), Duration::from_secs(3600));
    for i in 0..100 {
        shop.post(&journal, &visit(i)).await;
    }
    journal.stop().await;
    handle.stop(Duration::from_secs(20)).await;
    let before = said(&handle);
    let mut bytes = std::fs::read(shop.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0);
    std::fs::write(shop.file(), &bytes).unwrap();
    let journal = shop.journal();
    let handle = shop.start(&journal, &shop.file(), Duration::from_secs(3600));
    through(&handle, &journal).await;
    assert_eq!(said(&handle), before);
    assert_eq!(handle.numbers().rebuilds.load(Ordering::Relaxed), 1);
    journal.stop().await;
    handle.stop(Duration::from_secs(10)).await;
    // That of another shop.
    let other = Shop::new();
    let journal = other.journal();
    other.post(&journal, &visit(1)).await;
    let handle = other.start(&journal, &shop.file(), Duration::from_secs(3600));
    through(&handle, &journal).await;
    assert_eq!(handle.hottest(10).len(), 1);
    assert_eq!(handle.numbers().rebuilds.load(Ordering::Relaxed), 1);
    journal.stop().await;
    handle.stop(Duration::from_secs(10)).await;
}

#[actix::test]
async fn a_beacon_changes_what_is_hot_within_a_second() {
    let shop = Shop::new();
    let journal = shop.journal();
    let options = PopularityOptions::default();
    let opened = open_store(&shop.file(), options.max_products).unwrap();
    let handle = start(opened, &journal, shop.clock.clone(), options).unwrap();
    let hour = Duration::from_secs(3600);
    for (i, product) in ["a", "b", "a", "c"].into_iter().enumerate() {
        shop.post(
            &journal,
            &format!(r#"{{"type": "purchase", "product_id": "{product}", "data": {{"quantity": 9}}}}"#),
        )
        .await;
        let watch = Stopwatch::start();
        while handle.hottest(10).iter().map(|hot| hot.score.units_7d).sum::<u64>() != 9 * (i as u64 + 1) {
            assert!(watch.elapsed() < Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let hottest: Vec<_> = handle.hottest(10).iter().map(|hot| (hot.product_id.to_string(), hot.score.score)).collect();
    assert_eq!(hottest, [("a".into(), 180), ("b".into(), 90), ("c".into(), 90)]);
    let score = Score { views_24h: 0, units_7d: 18, score: 180, exact: true };
    assert_eq!((handle.score("a"), handle.score("nobody").score), (score, 0));
    assert_eq!((handle.lifetime("a", hour).lifetime, handle.lifetime("b", hour).lifetime), (2 * hour, hour));
    journal.stop().await;
    handle.stop(Duration::from_secs(10)).await;
}
