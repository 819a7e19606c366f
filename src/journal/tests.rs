use super::*;
use crate::clock::HOUR;
use crate::event::access::Claim;
use crate::event::codec::Entry;
use crate::event::decode::{Framing, body};
use crate::event::intake::{Intake, Rules, Sender};
use crate::event::visitor::Salts;
use std::fs;
use std::time::Duration;

const NOW: UnixMillis = 1_700_000_000_000;

struct Fixture {
    folder: tempfile::TempDir,
    clock: Clock,
    options: JournalOptions,
}

fn fixture() -> Fixture {
    let options = JournalOptions { min_free_bytes: 0, ..JournalOptions::default() };
    Fixture { folder: tempfile::tempdir().unwrap(), clock: Clock::manual(NOW), options }
}

impl Fixture {
    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn open(&self) -> Journal {
        Journal::open(&self.path(), self.options.clone(), self.clock.clone(), 0).unwrap()
    }

    fn batch(&self, text: &str) -> Batch {
        let salts = Salts::open(&self.folder.path().join("keys"), self.clock.now()).unwrap();
        let rules = Rules::default();
        let sender = Sender {
            address: "192.0.2.7",
            agent: "Firefox",
            privacy_signal: false,
            received: self.clock.now(),
            import: false,
            claim: Claim::NONE,
        };
        let intake = Intake::new(&rules, &salts, sender);
        let mut batch = Batch::default();
        body(text.as_bytes(), Framing::Guess, |index, raw| intake.take(index, raw, &mut batch));
        batch
    }

    async fn append(&self, journal: &Journal, text: &str) -> Result<Appended, AppendError> {
        let batch = self.batch(text);
        journal.append(batch, journal.admit(0).unwrap()).await
    }

    fn segments(&self) -> Vec<PathBuf> {
        let bases = block::list(&self.path()).unwrap();
        bases.into_iter().map(|base| block::path_of(&self.path(), base)).collect()
    }
}

/// Ids or types of all events in the journal, and the sum of each outcome.
fn all(journal: &Journal) -> (Vec<String>, Vec<(RejectCodeText, u64)>) {
    let mut reader = journal.reader(0);
    let (mut events, mut outcomes) = (vec![], vec![]);
    while let Some(chunk) = reader.read(1 << 20).unwrap() {
        for (_, entry) in chunk.entries() {
            match entry.unwrap() {
                Entry::Event(event) => events.push(event.event_type.to_owned()),
                Entry::Outcome { code, count, .. } => outcomes.push((code.as_str(), count)),
            }
        }
    }
    (events, outcomes)
}

type RejectCodeText = &'static str;

#[tokio::test]
async fn what_is_appended_is_read_in_order() {
    let f = fixture();
    let journal = f.open();
    let appended = f.append(&journal, r#"[{"type":"a"},{"type":"b"},{"nothing":1}]"#).await.unwrap();
    assert_eq!((appended.accepted, appended.end), (2, 3));
    f.append(&journal, r#"{"type":"c"}"#).await.unwrap();
    let (events, outcomes) = all(&journal);
    assert_eq!(events, ["a", "b", "c"]);
    assert_eq!(outcomes, [("missing_type", 1)]);
    let mut reader = journal.reader(1);
    assert!(reader.ready().await);
    let chunk = reader.read(1 << 20).unwrap().unwrap();
    assert_eq!((chunk.from(), chunk.end), (1, 4));
    assert_eq!(chunk.entries().next().unwrap().0, 1);
    assert!(reader.caught_up());
    assert!(reader.read(1 << 20).unwrap().is_none());
    journal.stop().await;
    assert_eq!(f.append(&journal, r#"{"type":"d"}"#).await, Err(AppendError::Closed));
}

#[tokio::test]
async fn duplicates_are_known_across_a_restart_for_a_day() {
    let f = fixture();
    let journal = f.open();
    let twice = r#"[{"type":"a","id":"1"},{"type":"b","id":"1"}]"#;
    let appended = f.append(&journal, twice).await.unwrap();
    assert_eq!((appended.accepted, appended.duplicates), (1, 1));
    journal.stop().await;
    for _ in 0..3 {
        f.clock.advance(Duration::from_secs(3600));
        let journal = f.open();
        let appended = f.append(&journal, &format!(r#"{{"type":"z","id":"1","timestamp":{NOW}}}"#)).await.unwrap();
        assert_eq!((appended.accepted, appended.duplicates), (0, 1));
        let (_, totals) = journal.totals();
        assert_eq!(totals.0["default"].accepted, 1);
        journal.stop().await;
    }
    let journal = f.open();
    let (_, mut totals) = journal.totals();
    assert_eq!(totals.site("default").received(), 5);
    assert_eq!(journal.recovery().replayed, 0, "a clean stop leaves nothing to read");
}

#[tokio::test]
async fn visits_go_on_after_a_restart() {
    let f = fixture();
    let session = |journal: &Journal| {
        let mut reader = journal.reader(0);
        let mut sessions = vec![];
        while let Some(chunk) = reader.read(1 << 20).unwrap() {
            for (_, entry) in chunk.entries() {
                if let Ok(Entry::Event(event)) = entry {
                    sessions.push(event.session);
                }
            }
        }
        sessions
    };
    let journal = f.open();
    f.append(&journal, r#"{"type":"a"}"#).await.unwrap();
    // Dropped without a stop, as by a crash: the visit comes back from the entries.
    drop(journal);
    f.clock.advance(Duration::from_secs(20 * 60));
    let journal = f.open();
    f.append(&journal, r#"{"type":"a"}"#).await.unwrap();
    journal.stop().await;
    f.clock.advance(Duration::from_secs(20 * 60));
    let journal = f.open();
    f.append(&journal, r#"{"type":"a"}"#).await.unwrap();
    f.clock.advance(Duration::from_secs(31 * 60));
    f.append(&journal, r#"{"type":"a"}"#).await.unwrap();
    let sessions = session(&journal);
    assert!(sessions[0] != 0 && sessions[..3].iter().all(|s| *s == sessions[0]), "{sessions:?}");
    assert_ne!(sessions[3], sessions[0]);
}

/// Every way to damage the last block: what was acknowledged before it is kept, and the journal goes on.
#[tokio::test]
async fn a_torn_or_flipped_tail_is_cut_and_reported() {
    let f = fixture();
    let journal = f.open();
    f.append(&journal, r#"{"type":"first","id":"1"}"#).await.unwrap();
    let keep = fs::metadata(&f.segments()[0]).unwrap().len() as usize;
    f.append(&journal, r#"{"type":"second","id":"2"}"#).await.unwrap();
    drop(journal);
    let whole = fs::read(&f.segments()[0]).unwrap();
    let mut cases: Vec<Vec<u8>> = (keep + 1..whole.len()).map(|cut| whole[..cut].to_vec()).collect();
    for at in keep..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x04;
        cases.push(flipped);
    }
    for damaged in cases {
        let g = fixture();
        fs::create_dir_all(g.path()).unwrap();
        let path = block::path_of(&g.path(), 0);
        fs::write(&path, &damaged).unwrap();
        let journal = g.open();
        assert_eq!(journal.recovery().cut_bytes as usize, damaged.len() - keep);
        assert_eq!(journal.recovery().lost, 0);
        assert_eq!(fs::metadata(&path).unwrap().len() as usize, keep);
        assert_eq!(fs::read(journal.recovery().cut_into.as_ref().unwrap()).unwrap(), damaged[keep..]);
        assert_eq!(journal.end(), 1);
        let again = g.append(&journal, r#"[{"type":"first","id":"1"},{"type":"second","id":"2"}]"#).await.unwrap();
        assert_eq!((again.accepted, again.duplicates), (1, 1));
        assert_eq!(all(&journal).0, ["first", "second"]);
        journal.stop().await;
    }
}

#[tokio::test]
async fn damage_in_the_middle_costs_only_its_block() {
    let f = fixture();
    let journal = f.open();
    for kind in ["a", "b", "c"] {
        f.append(&journal, &format!(r#"{{"type":"{kind}"}}"#)).await.unwrap();
    }
    drop(journal);
    let path = &f.segments()[0];
    let mut bytes = fs::read(path).unwrap();
    let block = (bytes.len() - 64) / 3;
    bytes[64 + block + 40] ^= 1;
    fs::write(path, &bytes).unwrap();
    let journal = f.open();
    assert_eq!((journal.recovery().lost, journal.recovery().cut_bytes), (1, 0));
    assert_eq!(all(&journal).0, ["a", "c"]);
    let mut reader = journal.reader(0);
    reader.read(1 << 20).unwrap();
    assert_eq!((reader.next(), reader.lost()), (3, 1));
}

#[tokio::test]
async fn segments_rotate_and_are_deleted_when_nobody_needs_them() {
    let mut f = fixture();
    f.options.segment_bytes = 4096;
    f.options.retention = HOUR;
    let journal = f.open();
    let pin = journal.pin(0);
    for i in 0..100 {
        f.append(&journal, &format!(r#"{{"type":"t{i}","url":"/{}"}}"#, "x".repeat(100))).await.unwrap();
        f.clock.advance(Duration::from_millis(10));
    }
    assert!(f.segments().len() >= 3);
    assert_eq!(all(&journal).0.len(), 100);
    f.clock.advance(Duration::from_secs(2 * 3600));
    let left = |wanted: fn(usize) -> bool| {
        let deadline = crate::clock::Stopwatch::start();
        while !wanted(f.segments().len()) {
            assert!(deadline.elapsed() < Duration::from_secs(20), "{} segments", f.segments().len());
            std::thread::sleep(Duration::from_millis(20));
            f.clock.advance(Duration::from_secs(61));
        }
    };
    f.append(&journal, r#"{"type":"late"}"#).await.unwrap();
    assert!(f.segments().len() >= 3, "pinned");
    pin.set(journal.end());
    left(|count| count <= 2);
    journal.stop().await;
    let journal = f.open();
    assert_eq!(journal.totals().1.0["default"].accepted, 101, "totals outlive the segments");
}

#[tokio::test]
async fn a_quiet_journal_lets_go_of_old_events_too() {
    let mut f = fixture();
    f.options.retention = 8 * HOUR;
    let journal = f.open();
    f.append(&journal, r#"{"type":"old"}"#).await.unwrap();
    let deadline = crate::clock::Stopwatch::start();
    while f.segments().iter().any(|path| path.ends_with("00000000000000000000.journal")) {
        assert!(deadline.elapsed() < Duration::from_secs(20), "it is still there");
        f.clock.advance(Duration::from_secs(1800));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(f.clock.now() - NOW >= 8 * HOUR);
    assert_eq!(all(&journal).0, Vec::<String>::new());
    assert_eq!(f.append(&journal, r#"{"type":"new"}"#).await.unwrap().end, 2);
}

#[tokio::test]
async fn numbers_never_come_twice_after_a_lost_tail() {
    let f = fixture();
    let journal = f.open();
    f.append(&journal, r#"{"type":"a"}"#).await.unwrap();
    drop(journal);
    let journal = Journal::open(&f.path(), f.options.clone(), f.clock.clone(), 50).unwrap();
    assert_eq!(f.append(&journal, r#"{"type":"b"}"#).await.unwrap().end, 51);
    let mut reader = journal.reader(50);
    assert_eq!(reader.read(1 << 20).unwrap().unwrap().entries().count(), 1);
    drop(journal);
    let journal = f.open();
    assert_eq!(all(&journal).0, ["a", "b"]);
}

#[tokio::test]
async fn at_its_size_limit_it_refuses_and_recovers() {
    let mut f = fixture();
    f.options.segment_bytes = 2048;
    f.options.max_bytes = 8192;
    let journal = f.open();
    let pin = journal.pin(0);
    let event = format!(r#"{{"type":"a","url":"/{}"}}"#, "x".repeat(500));
    let mut refused = None;
    for _ in 0..100 {
        f.clock.advance(Duration::from_secs(2));
        match f.append(&journal, &event).await {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let Some(AppendError::Unavailable(reason)) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("max_bytes"), "{reason}");
    assert_eq!(journal.fault(), Some(reason));
    let before = all(&journal).0.len();
    pin.set(journal.end());
    let deadline = crate::clock::Stopwatch::start();
    loop {
        f.clock.advance(Duration::from_secs(61));
        if f.append(&journal, &event).await.is_ok() {
            break;
        }
        assert!(deadline.elapsed() < Duration::from_secs(20), "it never recovered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(before > 5);
    assert_eq!(journal.fault(), None);
}

#[tokio::test]
async fn too_many_sites_are_refused_one_by_one() {
    let mut f = fixture();
    f.options.max_sites = 2;
    let journal = f.open();
    let text =
        r#"[{"type":"a","site":"s1"},{"type":"a","site":"s2"},{"type":"a","site":"s3"},{"type":"a","site":"s1"}]"#;
    let appended = f.append(&journal, text).await.unwrap();
    assert_eq!((appended.accepted, appended.too_many_sites), (3, vec![2]));
    assert_eq!(journal.totals().1.0["(unknown)"].rejected.len(), 1);
}

#[tokio::test]
async fn each_mode_answers() {
    for durability in [Durability::Received, Durability::Written, Durability::Synced] {
        let mut f = fixture();
        f.options.durability = durability;
        let journal = f.open();
        assert_eq!(f.append(&journal, r#"{"type":"a"}"#).await.unwrap().accepted, 1);
        journal.stop().await;
        assert_eq!(all(&f.open()).0, ["a"]);
    }
}

#[tokio::test]
async fn a_visitors_latest_events_are_found_over_segments() {
    let mut f = fixture();
    f.options.segment_bytes = 4096;
    let journal = f.open();
    for i in 0..300 {
        let user = if i % 10 == 0 { "rare" } else { "often" };
        f.append(&journal, &format!(r#"{{"type":"t{i}","user_id":"{user}"}}"#)).await.unwrap();
    }
    let rare = crate::event::visitor::known("default", "rare");
    let latest = |limit| {
        let mut types = vec![];
        journal.latest(rare, limit, |_, event| types.push(event.event_type.to_owned())).unwrap();
        types
    };
    assert!(f.segments().len() > 3);
    assert_eq!(latest(3), ["t290", "t280", "t270"]);
    assert_eq!(latest(1000).len(), 30);
    journal.stop().await;
    let filters = fs::read_dir(f.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "visitors"));
    assert_eq!(filters.count(), f.segments().len() - 1, "one for each full segment");
    assert_eq!(latest(3), ["t290", "t280", "t270"], "with filters as without");
}
