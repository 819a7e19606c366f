use super::*;
use crate::catalog::popularity::buckets::edges;
use crate::catalog::popularity::tail::Hash;
use crate::clock::{HOUR, MINUTE, UnixMillis};
use proptest::prelude::*;

const NOW: UnixMillis = 1_700_000_000_000;

/// What a state says: every product with its numbers, and estimates of those that are not there.
fn said(scores: &Scores) -> Vec<(String, [u64; 2], i64)> {
    let mut said: Vec<_> = (0..40)
        .map(|i| {
            let id = format!("p{i}");
            match scores.find(&id) {
                Some(product) => (id, product.sums(edges(scores.time())), product.exact_from),
                None => {
                    let estimate = scores.tail().estimate(Hash::of(&id), scores.time());
                    (id, estimate, -1)
                }
            }
        })
        .collect();
    said.push((format!("{:?}", scores.tail().error(scores.time())), [scores.len() as u64, 0], scores.time()));
    said
}

fn event(i: i64, product: u8, purchase: bool) -> (String, Kind, i64) {
    let kind = if purchase { Kind::Units } else { Kind::Views };
    (format!("p{product}"), kind, NOW + i * 7 * MINUTE)
}

fn feed(scores: &mut Scores, (id, kind, at): &(String, Kind, i64)) {
    let reading = crate::catalog::popularity::Reading::new(&["v".into()], &["b".into()]);
    let event = crate::event::Event {
        received: *at,
        timestamp: at - 3 * MINUTE,
        site: "default",
        event_type: if *kind == Kind::Views { "v" } else { "b" },
        id: crate::event::EventId::None,
        visitor: 1,
        session: 1,
        url: None,
        referrer: None,
        title: None,
        user_id: None,
        session_id: None,
        product_id: Some(id),
        data: None,
        bot: None,
        imported: false,
    };
    scores.apply(&event, &reading, *at);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Killed at any moments, after any snapshots, it ends as one that never was.
    #[test]
    fn whoever_is_killed_ends_with_the_same_numbers(
        events in proptest::collection::vec((0u8..40, any::<bool>()), 1..250),
        snapshots in proptest::collection::vec(0usize..250, 0..6),
        kills in proptest::collection::vec(0usize..250, 1..6),
        room in 1usize..50,
    ) {
        let events: Vec<_> = events.iter().enumerate().map(|(i, (p, b))| event(i as i64, *p, *b)).collect();
        let mut never = Scores::new(room);
        events.iter().for_each(|event| feed(&mut never, event));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("popularity.db");
        let mut opened = open_store(&path, room).unwrap();
        let (mut at, mut kills) = (0, kills);
        kills.sort_unstable();
        while at < events.len() {
            feed(&mut opened.loaded.scores, &events[at]);
            at += 1;
            if snapshots.contains(&at) {
                let steps = HashMap::from([(Arc::from("p1"), 2), (Arc::from("p2"), 0)]);
                opened.store.save(&mut opened.loaded.scores, &steps, at as u64, "j").unwrap();
            }
            if kills.first().is_some_and(|kill| at >= *kill) {
                kills.remove(0);
                drop(opened);
                opened = open_store(&path, room).unwrap();
                prop_assert!(!opened.rebuilt);
                at = opened.cursor_in("j") as usize;
                prop_assert_eq!(at > 0, opened.loaded.steps == HashMap::from([(Arc::from("p1"), 2)]));
            }
        }
        prop_assert_eq!(said(&opened.loaded.scores), said(&never));
    }
}

fn filled(path: &Path) -> Vec<(String, [u64; 2], i64)> {
    let mut opened = open_store(path, 20).unwrap();
    for i in 0..2_000 {
        feed(&mut opened.loaded.scores, &event(i / 10, (i % 40) as u8, i % 7 == 0));
    }
    let OpenStore { mut store, mut loaded, .. } = opened;
    store.save(&mut loaded.scores, &HashMap::from([(Arc::from("p1"), 2)]), 2_000, "j").unwrap();
    assert!(store.checkpoint().unwrap());
    said(&loaded.scores)
}

#[test]
fn a_file_that_is_torn_anywhere_is_made_anew_and_never_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("popularity.db");
    let right = filled(&path);
    let whole = std::fs::read(&path).unwrap();
    let (mut anew, mut fine) = (0, 0);
    let mut check = |bytes: &[u8], what: String| {
        for name in ["popularity.db-wal", "popularity.db-shm"] {
            let _ = std::fs::remove_file(folder.path().join(name));
        }
        std::fs::write(&path, bytes).unwrap();
        let opened = open_store(&path, 20).unwrap_or_else(|error| panic!("{what}: {error}"));
        if opened.cursor_in("j") == 0 {
            assert!(opened.loaded.scores.is_empty());
            anew += 1;
        } else {
            assert_eq!(said(&opened.loaded.scores), right, "{what}");
            assert_eq!(opened.loaded.steps, HashMap::from([(Arc::from("p1"), 2)]), "{what}");
            fine += 1;
        }
    };
    check(&whole, String::from("whole"));
    for cut in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        check(&whole[..cut], format!("cut at {cut}"));
    }
    // A page of zeros or of rubbish, anywhere.
    for page in 0..whole.len() / 4096 {
        for fill in [0, 0xa5] {
            let mut torn = whole.clone();
            torn[page * 4096..(page + 1) * 4096].fill(fill);
            check(&torn, format!("page {page} of {fill}"));
        }
    }
    // A bit, anywhere: what SQLite does not see, the checksums do.
    for at in (0..whole.len()).step_by(whole.len() / 300) {
        let mut torn = whole.clone();
        torn[at] ^= 4;
        check(&torn, format!("bit in byte {at}"));
    }
    assert!(anew > 50 && fine > 10, "{anew} {fine}");
}

#[test]
fn a_smaller_table_and_another_width() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("popularity.db");
    filled(&path);
    // Fewer, and the tail is as wide: the lowest go there.
    let opened = open_store(&path, 5).unwrap();
    assert_eq!((opened.loaded.scores.len(), opened.cursor_in("j"), opened.rebuilt), (5, 2_000, false));
    drop(opened);
    let opened = open_store(&path, 5_000).unwrap();
    assert_eq!((opened.loaded.scores.len(), opened.cursor_in("j"), opened.rebuilt), (0, 0, true));
}

#[test]
fn what_has_left_the_windows_leaves_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("popularity.db");
    filled(&path);
    let mut opened = open_store(&path, 20).unwrap();
    feed(&mut opened.loaded.scores, &(String::from("p1"), Kind::Views, NOW + 400 * HOUR));
    let OpenStore { mut store, mut loaded, .. } = opened;
    store.save(&mut loaded.scores, &HashMap::new(), 2_001, "j").unwrap();
    let rows = |table: &str| -> i64 {
        store.conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!([rows("product"), rows("tail"), rows("tail_total"), rows("snapshot")], [1, 0, 0, 1]);
}

#[test]
fn a_file_that_cannot_be_opened_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let error = open_store(&folder.path().join("no/such/folder.db"), 20).err().unwrap();
    assert!(!error.is_damage() && error.to_string().starts_with("popularity store: "), "{error}");
}
