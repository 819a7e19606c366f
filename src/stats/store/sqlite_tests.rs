use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::clock::{DAY, HOUR, MINUTE};
use crate::event::codec::Entry;
use crate::event::{BotReason, RejectCode};
use crate::stats::test_events::{Made, deltas, events};
use crate::stats::window::Retention;

/// Noon, so that a few hours back is the same day.
const NOW: UnixMillis = 20_000 * DAY + 12 * HOUR;

struct File(tempfile::TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("stats.db")
    }

    fn open(&self, options: &StatsOptions) -> SqliteStore {
        SqliteStore::open(&self.path(), options.clone()).unwrap()
    }
}

/// Every number of the store in words, to compare stores.
fn dump(store: &SqliteStore) -> BTreeMap<String, i64> {
    let mut dump = BTreeMap::new();
    let mut add = |sql: &str| {
        let mut statement = store.conn.prepare(sql).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            assert!(dump.insert(row.get(0).unwrap(), row.get(1).unwrap()).is_none());
        }
    };
    add("SELECT site || tier || start || dim || name, n FROM stats_readable");
    add("SELECT 'events' || site || ' ' || tier || ' ' || start, events FROM stats_windows");
    add("SELECT 'views' || site || ' ' || tier || ' ' || start, page_views FROM stats_windows");
    add("SELECT 'bots' || site || ' ' || tier || ' ' || start, bots FROM stats_windows");
    add("SELECT 'audit' || site || ' ' || code, n FROM stats_audit");
    add("SELECT 'cursor', next FROM stats_cursor");
    let sites: Vec<(i64, String)> = {
        let mut statement = store.conn.prepare("SELECT id, name FROM stats_sites").unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    for (id, name) in sites {
        for tier in Tier::ALL {
            for kind in [Set::Visitors, Set::Sessions] {
                let pieces = [Piece { tier, from: 0, to: UnixMillis::MAX }];
                let set = read::uniques(&store.conn, id, kind, &pieces, 100).unwrap();
                dump.insert(format!("{kind:?} {name} {tier:?}"), set.count().count as i64);
            }
        }
    }
    dump
}

fn window(store: &mut SqliteStore, tier: Tier, start: UnixMillis) -> Loaded {
    let mut loaded = store.load(tier, start, start + tier.width()).unwrap();
    assert_eq!(loaded.len(), 1);
    loaded.remove(0)
}

fn commit_all(store: &mut SqliteStore, events: &[Made], batch: usize) {
    let from = store.cursor().unwrap().next;
    for delta in deltas(events, from, batch) {
        assert_eq!(store.commit(&delta, NOW).unwrap(), Committed::Applied);
    }
}

#[test]
fn a_commit_lands_in_three_tiers_with_its_cursor() {
    let file = File::new();
    let mut store = file.open(&StatsOptions::default());
    assert_eq!(store.cursor().unwrap(), Cursor::default());
    let mut delta = Delta::new(0);
    let made = Made { at: NOW, visitor: 5, session: 9, url: Some("/a".into()), ..Made::default() };
    delta.apply(0, &Entry::Event(made.event()));
    delta.apply(1, &Entry::Event(Made { bot: Some(BotReason::Monitoring), ..made.clone() }.event()));
    delta.apply(2, &Entry::Outcome { site: "shop", code: RejectCode::Duplicate, count: 4 });
    delta.apply(3, &Entry::Outcome { site: "(unknown)", code: RejectCode::InvalidJson, count: 2 });
    store.commit(&delta, NOW).unwrap();

    for tier in Tier::ALL {
        let loaded = window(&mut store, tier, tier.floor(NOW));
        assert_eq!((loaded.page_views, loaded.bots, &*loaded.site), (1, 1, "shop"));
        assert_eq!(loaded.pages["/a"], 1);
        assert_eq!(loaded.events["page_view"], 1);
        assert_eq!((loaded.visitors.count().count, loaded.sessions.count().count), (1, 1));
    }
    let reopened = &mut file.open(&StatsOptions::default());
    assert_eq!(reopened.cursor().unwrap(), Cursor { next: 4, time: Some(NOW) });
    let audit = read::audit(&reopened.conn).unwrap();
    assert_eq!((audit["shop"].counted, audit["shop"].duplicates), (2, 4));
    assert_eq!(audit["(unknown)"].rejected[&RejectCode::InvalidJson], 2);
    assert_eq!(read::sites(&reopened.conn).unwrap(), ["shop"], "nothing was counted for the unknown site");
}

#[test]
fn a_delta_is_counted_once_and_only_in_its_place() {
    let file = File::new();
    let mut store = file.open(&StatsOptions::default());
    let events = events(1, 300, NOW, 2 * HOUR);
    let all = deltas(&events, 0, 100);
    store.commit(&all[0], NOW).unwrap();
    let before = dump(&store);
    assert_eq!(store.commit(&all[0], NOW).unwrap(), Committed::Already);
    let gap = store.commit(&all[2], NOW);
    assert!(matches!(gap, Err(StatsError::Fence { store: 100, from: 200, to: 300 })), "{gap:?}");
    let overlap = deltas(&events[50..], 50, 100);
    assert!(matches!(store.commit(&overlap[0], NOW), Err(StatsError::Fence { store: 100, from: 50, to: 150 })));
    assert_eq!(dump(&store), before);
    assert_eq!(store.commit(&all[1], NOW).unwrap(), Committed::Applied);
    assert_eq!(store.commit(&Delta::new(200), NOW).unwrap(), Committed::Applied, "an empty delta is in its place");
}

#[test]
fn the_cut_into_batches_does_not_matter_even_when_windows_are_full() {
    let events = events(2, 2_000, NOW, 30 * HOUR);
    let options = StatsOptions { max_keys: 9, exact_uniques: 60, ..StatsOptions::default() };
    let mut dumps = Vec::new();
    for (batch, cache_bytes) in [(1, 1 << 20), (7, 0), (100, 10_000), (2_000, 1 << 20)] {
        let file = File::new();
        let mut store = file.open(&StatsOptions { cache_bytes, ..options.clone() });
        commit_all(&mut store, &events, batch);
        assert!(store.cache.memory() <= cache_bytes);
        dumps.push(dump(&store));
    }
    assert!(dumps[0].keys().any(|key| key.contains("(other)")));
    for other in &dumps[1..] {
        assert_eq!(other, &dumps[0]);
    }
    // Nothing is lost from the sums, and no window has more names than allowed.
    let views: i64 =
        dumps[0].iter().filter(|(key, _)| key.contains("shop") && key.contains("page/")).map(|(_, n)| n).sum();
    assert!(views > 0);
}

#[test]
fn full_windows_count_the_rest_as_other() {
    let file = File::new();
    let mut store = file.open(&StatsOptions { max_keys: 3, ..StatsOptions::default() });
    let view = |page: i32, minute: i64| Made {
        at: NOW + minute * MINUTE,
        url: Some(format!("/{page}")),
        visitor: 1,
        ..Made::default()
    };
    let first: Vec<Made> = (0..5).map(|page| view(page, 0)).collect();
    let second: Vec<Made> = [4, 3, 2, 9, 0].into_iter().map(|page| view(page, 1)).collect();
    commit_all(&mut store, &[first, second].concat(), 4);

    let names = |loaded: Loaded| {
        assert_eq!(loaded.pages.values().sum::<u64>(), loaded.page_views);
        loaded.pages.into_iter().collect::<BTreeMap<_, _>>()
    };
    let of = |names: &[(&str, u64)]| names.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<BTreeMap<_, _>>();
    assert_eq!(names(window(&mut store, Tier::Minute, NOW)), of(&[("/0", 1), ("/1", 1), ("/2", 1), ("(other)", 2)]));
    let later = window(&mut store, Tier::Minute, NOW + MINUTE);
    assert_eq!(names(later), of(&[("/4", 1), ("/3", 1), ("/2", 1), ("(other)", 2)]), "each window takes its own");
    assert_eq!(
        names(window(&mut store, Tier::Day, 20_000 * DAY)),
        of(&[("/0", 2), ("/1", 1), ("/2", 2), ("(other)", 5)])
    );
}

#[test]
fn a_failed_commit_leaves_no_trace_and_can_be_repeated() {
    let events = events(3, 3_000, NOW, 26 * HOUR);
    let (good, file) = (File::new(), File::new());
    let mut expected = good.open(&StatsOptions::default());
    commit_all(&mut expected, &events, 500);

    let mut store = file.open(&StatsOptions::default());
    let mut failures = 0;
    for delta in deltas(&events, 0, 500) {
        let before = dump(&store);
        let pages: i64 = store.conn.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        for more in [0, 1, 3] {
            store.conn.pragma_update(None, "max_page_count", pages + more).unwrap();
            match store.commit(&delta, NOW) {
                Ok(_) => break,
                Err(StatsError::Sqlite(error)) => {
                    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
                    failures += 1;
                    assert_eq!(dump(&store), before);
                }
                Err(other) => panic!("{other}"),
            }
        }
        store.conn.pragma_update(None, "max_page_count", 1 << 30).unwrap();
        store.commit(&delta, NOW).unwrap();
    }
    assert!(failures > 5, "{failures}");
    assert_eq!(dump(&store), dump(&expected));
}

#[test]
fn large_sets_are_not_written_again_for_a_few_new_hashes() {
    let file = File::new();
    let mut store = file.open(&StatsOptions { exact_uniques: 5_000, ..StatsOptions::default() });
    let visit =
        |visitor: u64| Made { at: NOW, visitor: visitor.wrapping_mul(0x9E37_79B9_7F4A_7C15), ..Made::default() };
    let rows = |store: &SqliteStore| -> (i64, i64) {
        let sql = "SELECT count(*), sum(length(data)) FROM stats_uniques u JOIN stats_windows w ON w.id = u.window
                   WHERE w.tier = 3 AND kind = 1";
        store.conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    commit_all(&mut store, &(0..4_000).map(visit).collect::<Vec<_>>(), 4_000);
    assert_eq!(rows(&store), (1, 2 + 32_000));
    commit_all(&mut store, &(0..10).map(visit).collect::<Vec<_>>(), 10);
    assert_eq!(rows(&store), (1, 2 + 32_000), "nobody new");
    commit_all(&mut store, &(3_990..4_010).map(visit).collect::<Vec<_>>(), 20);
    assert_eq!(rows(&store), (2, 2 + 32_000 + 2 + 80));
    commit_all(&mut store, &(4_010..4_060).map(visit).collect::<Vec<_>>(), 1);
    assert!(rows(&store).0 <= 25, "parts are put together again");
    assert_eq!(window(&mut store, Tier::Day, 20_000 * DAY).visitors.count().count, 4_060);

    // Past the limit it becomes a sketch, also when the store is opened in between.
    let mut store = file.open(&StatsOptions { exact_uniques: 5_000, ..StatsOptions::default() });
    commit_all(&mut store, &(4_060..6_000).map(visit).collect::<Vec<_>>(), 500);
    let (parts, bytes) = rows(&store);
    assert_eq!(parts, 1);
    assert!(bytes < 17_000);
    let count = window(&mut store, Tier::Day, 20_000 * DAY).visitors.count();
    assert!((count.count as f64 / 6_000.0 - 1.0).abs() < count.error_bound.unwrap());
    let changes = store.conn.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0)).unwrap();
    commit_all(&mut store, &(0..10).map(visit).collect::<Vec<_>>(), 10);
    let after = store.conn.query_row("SELECT total_changes()", [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(after - changes <= 12, "an unchanged sketch is not written: {}", after - changes);
}

#[test]
fn old_windows_go_and_days_stay() {
    let file = File::new();
    let options = StatsOptions::default();
    let mut store = file.open(&options);
    let events = events(4, 2_000, NOW, 5 * DAY);
    let early = NOW - 4 * DAY;
    for delta in deltas(&events, 0, 250) {
        store.commit(&delta, early).unwrap();
    }
    let starts = |store: &SqliteStore, tier: Tier| -> (i64, i64) {
        let sql = "SELECT count(*), coalesce(min(start), 0) FROM stats_windows WHERE tier = ?1";
        store.conn.query_row(sql, [tier as u8], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let orphans = |store: &SqliteStore| -> i64 {
        let sql = "SELECT (SELECT count(*) FROM stats_counts WHERE window NOT IN (SELECT id FROM stats_windows))
                        + (SELECT count(*) FROM stats_uniques WHERE window NOT IN (SELECT id FROM stats_windows))";
        store.conn.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let days = starts(&store, Tier::Day);
    assert!(starts(&store, Tier::Minute).1 < NOW - 4 * DAY);
    let sweep = |store: &mut SqliteStore, now| {
        for _ in 0..1000 {
            if !store.expire(now).unwrap().more {
                return;
            }
        }
        panic!("it never ends");
    };
    sweep(&mut store, NOW);
    assert!(starts(&store, Tier::Minute).0 > 0);
    assert!(starts(&store, Tier::Minute).1 >= options.retention.deleted_before(Tier::Minute, NOW));
    assert!(starts(&store, Tier::Quarter).1 < NOW - 4 * DAY);
    assert_eq!((starts(&store, Tier::Day), orphans(&store)), (days, 0));
    let late = Made { at: NOW - 3 * DAY, visitor: 3, ..Made::default() };
    let minutes = starts(&store, Tier::Minute);
    commit_all(&mut store, &[late], 1);
    assert_eq!(starts(&store, Tier::Minute), minutes, "late events do not bring minutes back");

    sweep(&mut store, NOW + 95 * DAY);
    assert_eq!(starts(&store, Tier::Minute).0 + starts(&store, Tier::Quarter).0, 0);
    assert_eq!((starts(&store, Tier::Day), orphans(&store)), (days, 0));
    assert!(!store.load(Tier::Day, 0, NOW + DAY).unwrap()[0].pages.is_empty(), "days keep their names");
    assert_eq!(store.expire(NOW + 95 * DAY).unwrap(), Expired::default());

    let forgetful = Retention { minutes: Some(HOUR), quarters: Some(DAY), days: Some(2 * DAY) };
    store.options.retention = forgetful;
    sweep(&mut store, NOW + 95 * DAY);
    let left: i64 = store
        .conn
        .query_row(
            "SELECT (SELECT count(*) FROM stats_windows) + (SELECT count(*) FROM stats_names)
        + (SELECT count(*) FROM stats_counts)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(left, 0);
}

#[test]
fn names_that_only_minutes_used_go_with_them() {
    let file = File::new();
    let mut store = file.open(&StatsOptions { max_keys: 5, ..StatsOptions::default() });
    let view = |i: i64| Made { at: NOW + (i / 4) * MINUTE, url: Some(format!("/{i}")), visitor: 1, ..Made::default() };
    commit_all(&mut store, &(0..400).map(view).collect::<Vec<_>>(), 50);
    let names = |store: &SqliteStore| -> i64 {
        store.conn.query_row("SELECT count(*) FROM stats_names WHERE dim = 1", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(names(&store), 400);
    for later in [0, 3, 95] {
        let day = store.load(Tier::Day, 20_000 * DAY, 20_001 * DAY).unwrap().remove(0);
        assert_eq!((day.pages.len(), day.page_views), (6, 400));
        while store.expire(NOW + later * DAY).unwrap().more {}
        let quarters = store.load(Tier::Quarter, 20_000 * DAY, 20_001 * DAY).unwrap();
        assert_eq!(quarters.iter().map(|site| site.page_views).sum::<u64>(), if later < 90 { 400 } else { 0 });
        assert_eq!(names(&store), [400, 35, 5][[0, 3, 95].iter().position(|l| *l == later).unwrap()]);
    }
    // Numbers of dropped names are given to others without confusion.
    commit_all(&mut store, &[Made { url: Some("/new".into()), ..view(0) }], 1);
}

#[test]
fn a_checkpoint_empties_the_wal() {
    let file = File::new();
    let mut store = file.open(&StatsOptions::default());
    commit_all(&mut store, &events(5, 500, NOW, HOUR), 100);
    let wal = file.path().with_extension("db-wal");
    assert!(std::fs::metadata(&wal).unwrap().len() > 0);
    store.checkpoint().unwrap();
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), 0);
}
