use super::*;
use crate::clock::{DAY, HOUR, MINUTE, parse_rfc3339};
use crate::event::RejectCode;
use crate::event::codec::Entry;
use crate::stats::test_events::{Made, deltas};
use crate::stats::{Delta, Rollup, Rollups, SqliteStore, StatsStore, WindowKey};

struct Shop {
    _dir: tempfile::TempDir,
    store: SqliteStore,
    queries: Queries,
}

fn shop() -> Shop {
    let dir = tempfile::tempdir().unwrap();
    // What a URI would trip over.
    let folder = dir.path().join("größe 100% ?mode=rw #1");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("stats.db");
    let store = SqliteStore::open(&path, StatsOptions::default()).unwrap();
    let queries = Queries::open(&path, StatsOptions::default()).unwrap();
    Shop { _dir: dir, store, queries }
}

fn at(text: &str) -> UnixMillis {
    parse_rfc3339(text).unwrap()
}

fn range(from: &str, to: &str) -> Range {
    Range { from: at(from), to: at(to) }
}

impl Shop {
    fn view(&mut self, times: &[UnixMillis], now: UnixMillis) {
        let made: Vec<Made> = times
            .iter()
            .map(|at| Made { at: *at, visitor: *at as u64, url: Some("/a".into()), ..Made::default() })
            .collect();
        let from = self.store.cursor().unwrap().next;
        for delta in deltas(&made, from, 1000) {
            self.store.commit(&delta, now).unwrap();
        }
    }

    async fn series(&self, interval: Interval, tz: &str, range: Range, now: UnixMillis) -> Arc<answers::Timeseries> {
        self.queries.timeseries("shop", Metric::PageViews, interval, tz, range, now).await.unwrap()
    }
}

fn bad<T: std::fmt::Debug>(answer: Result<T, StatsError>) -> String {
    match answer {
        Err(StatsError::BadQuery(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// The moments at every quarter of `range`, which is what clocks can change by.
fn quarters(range: Range) -> Vec<UnixMillis> {
    (range.from..range.to).step_by(Tier::Quarter.width() as usize).collect()
}

#[tokio::test]
async fn days_of_a_zone_have_their_own_lengths() {
    for (zone, from, to, expected) in [
        ("Europe/Berlin", "2026-03-28T00:00:00+01:00", "2026-03-31T00:00:00+02:00", [96, 92, 96]),
        ("Europe/Berlin", "2026-10-24T00:00:00+02:00", "2026-10-27T00:00:00+01:00", [96, 100, 96]),
        ("Asia/Kathmandu", "2026-03-28T00:00:00+05:45", "2026-03-31T00:00:00+05:45", [96, 96, 96]),
        ("Australia/Lord_Howe", "2026-04-04T00:00:00+11:00", "2026-04-07T00:00:00+10:30", [96, 98, 96]),
        ("Australia/Lord_Howe", "2026-10-03T00:00:00+10:30", "2026-10-06T00:00:00+11:00", [96, 94, 96]),
    ] {
        let mut shop = shop();
        let range = range(from, to);
        let now = range.to + 10 * DAY;
        shop.view(&quarters(Range { from: range.from - DAY, to: range.to + DAY }), now);
        let series = shop.series(Interval::Day, zone, range, now).await;
        let values: Vec<u64> = series.points.iter().map(|point| point.value).collect();
        assert_eq!(values, expected, "{zone} {from}");
        assert_eq!((&series.from[..], &series.to[..], &series.note), (from, to, &None));
        assert_eq!(series.points[0].start, from);

        let hours = shop.series(Interval::Hour, zone, range, now).await;
        assert_eq!(hours.points.iter().map(|point| point.value).sum::<u64>(), expected.iter().sum::<u64>());
        assert!(hours.points.iter().all(|point| point.value == 4 || (zone.contains("Howe") && point.value == 2)));
        let starts: std::collections::BTreeSet<&String> = hours.points.iter().map(|point| &point.start).collect();
        assert_eq!(starts.len(), hours.points.len(), "no two points with one name");
    }
}

#[tokio::test]
async fn empty_intervals_are_there_and_the_ends_count_what_lies_in_the_range() {
    let mut shop = shop();
    let now = at("2026-05-10T12:00:00Z");
    let times = ["2026-05-10T09:10:00Z", "2026-05-10T09:50:00Z", "2026-05-10T11:29:59Z", "2026-05-10T11:30:00Z"];
    shop.view(&times.map(at), now);
    let range = range("2026-05-10T09:30:00Z", "2026-05-10T11:30:00Z");
    let series = shop.series(Interval::Hour, "Europe/Berlin", range, now).await;
    let points: Vec<(&str, u64)> = series.points.iter().map(|point| (&point.start[11..], point.value)).collect();
    assert_eq!(points, [("11:00:00+02:00", 1), ("12:00:00+02:00", 0), ("13:00:00+02:00", 1)]);
    let summary = shop.queries.summary("shop", range, now).await.unwrap();
    assert_eq!((summary.page_views, &*summary.from), (2, "2026-05-10T09:30:00.000Z"));
    let minutes = shop.series(Interval::Minute, "UTC", range, now).await;
    assert_eq!(minutes.points.len(), 120);
    assert_eq!(minutes.points.iter().map(|point| point.value).sum::<u64>(), 2);
    let nobody = shop.queries.timeseries("nobody", Metric::Sessions, Interval::Hour, "UTC", range, now).await.unwrap();
    assert_eq!((nobody.points.len(), nobody.exact), (3, true));
}

#[tokio::test]
async fn beyond_the_quarters_days_are_those_of_utc_and_it_says_so() {
    let mut shop = shop();
    let now = at("2026-06-30T12:00:00Z");
    let from = at("2026-03-25T00:00:00Z");
    shop.view(&quarters(Range { from, to: now }), from + DAY);
    while shop.store.expire(now).unwrap().more {}

    let all = Range { from, to: now };
    let series = shop.series(Interval::Day, "Asia/Kathmandu", all, now).await;
    assert!(series.note.as_ref().unwrap().contains("2026-04-02T00:00:00"), "{:?}", series.note);
    assert_eq!(series.points[0], answers::Point { start: "2026-03-25T00:00:00+00:00".into(), value: 96 });
    let summary = shop.queries.summary("shop", all, now).await.unwrap();
    assert_eq!(series.points.iter().map(|point| point.value).sum::<u64>(), summary.page_views);
    // The first day of the zone begins at its midnight, but what is counted of it begins where quarters do.
    let first = &series.points[8];
    assert_eq!((&*first.start, first.value), ("2026-04-02T00:00:00+05:45", 73));
    assert_eq!(series.points[9].value, 96);

    let utc = shop.series(Interval::Day, "UTC", all, now).await;
    assert_eq!((&utc.note, utc.points.len()), (&None, 98));
    let hours = shop.series(Interval::Hour, "Asia/Kathmandu", all, now).await;
    assert!(hours.note.is_some());
    assert!(hours.from.starts_with("2026-04-02T05:45:00"), "{}", hours.from);
    let gone = Range { from, to: from + DAY };
    let hours = shop.queries.timeseries("shop", Metric::PageViews, Interval::Hour, "UTC", gone, now).await;
    assert!(bad(hours).contains("coarser"));
}

#[tokio::test]
async fn unreasonable_questions_are_refused_with_the_limit() {
    let shop = shop();
    let now = at("2026-06-30T12:00:00Z");
    let days = Range { from: at("1990-01-01T00:00:00Z"), to: now };
    let many = shop.queries.timeseries("shop", Metric::Events, Interval::Day, "UTC", days, now).await;
    assert!(bad(many).contains("10000 points"));
    let range = Range { from: now - DAY, to: now };
    assert!(bad(shop.queries.pages("shop", range, 0, now).await).contains("1 to 1000"));
    assert!(bad(shop.queries.pages("shop", range, 1001, now).await).contains("1 to 1000"));
    let zone = shop.queries.timeseries("shop", Metric::Events, Interval::Day, "Mars/Base", range, now).await;
    assert!(bad(zone).contains("IANA"));
}

#[tokio::test]
async fn answers_are_remembered_until_the_store_counts_on() {
    let mut shop = shop();
    let now = at("2026-05-10T12:05:00Z");
    shop.view(&[now - HOUR], now);
    let range = Range { from: now - DAY, to: now };
    let first = shop.queries.summary("shop", range, now).await.unwrap();
    let again = shop.queries.summary("shop", range, now + 10_000).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    let pages = shop.queries.pages("shop", range, 10, now).await.unwrap();
    assert_eq!((pages.total, pages.items[0].share, pages.other), (1, 1.0, 0));
    shop.view(&[now - HOUR - MINUTE], now);
    let next = shop.queries.summary("shop", range, now).await.unwrap();
    assert_eq!((first.page_views, next.page_views), (1, 2));
    assert_eq!((first.as_of.offset, next.as_of.offset), (1, 2));
}

#[tokio::test]
async fn the_audit_names_every_site_with_what_became_of_its_entries() {
    let mut shop = shop();
    let now = at("2026-05-10T12:00:00Z");
    shop.view(&[now], now);
    let mut delta = Delta::new(1);
    delta.apply(1, &Entry::Outcome { site: "shop", code: RejectCode::Duplicate, count: 2 });
    delta.apply(2, &Entry::Outcome { site: "(unknown)", code: RejectCode::InvalidJson, count: 3 });
    shop.store.commit(&delta, now).unwrap();
    let audit = shop.queries.audit().await.unwrap();
    assert_eq!(audit.as_of, AsOf { offset: 3, time: Some(now) });
    let expected = StoreAudit { counted: 1, duplicates: 2, rejected: BTreeMap::new() };
    assert_eq!(audit.sites["shop"], expected);
    assert_eq!(audit.sites["(unknown)"].rejected, BTreeMap::from([("invalid_json", 3)]));
    assert_eq!(*shop.queries.sites().await.unwrap(), ["shop"]);
}

#[tokio::test]
async fn queries_cannot_write_and_make_no_file() {
    let shop = shop();
    let conn = shop.queries.0.pool.get().await.unwrap();
    let refused = conn.interact(|conn| conn.execute("DELETE FROM stats_cursor", [])).await.unwrap();
    assert!(refused.is_err());
    let nowhere = shop._dir.path().join("nowhere.db");
    let queries = Queries::open(&nowhere, StatsOptions::default()).unwrap();
    assert!(matches!(queries.sites().await, Err(StatsError::Pool(_))));
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn the_quarters_of_an_hour_merge_into_what_the_summary_says() {
    let mut shop = shop();
    let from = at("2026-03-01T10:00:00Z");
    let times: Vec<UnixMillis> = (0..200).map(|i| from + i * 18_000 + i % 3).collect();
    shop.view(&times, from + HOUR);
    let hour = Range { from, to: from + HOUR };
    let windows = shop.queries.windows(Tier::Quarter, hour.from, hour.to).await.unwrap();
    assert_eq!(windows.len(), 4);
    let missing = WindowKey { start: from - HOUR, ..windows[0].clone() };
    let Rollups { as_of, rollups } =
        shop.queries.rollups(windows.iter().cloned().chain([missing]).collect()).await.unwrap();
    assert_eq!((rollups.len(), as_of.offset), (4, 200));
    let mut sum = Rollup::new(windows[0].clone(), 10_000);
    rollups.iter().for_each(|quarter| sum.merge(quarter));
    let summary = shop.queries.summary("shop", hour, from + HOUR).await.unwrap();
    assert_eq!((sum.page_views, sum.visitors.count().count), (summary.page_views, summary.unique_visitors));
    assert_eq!(sum.types.into_iter().collect::<BTreeMap<_, _>>(), summary.events);
    assert_eq!(sum.pages, HashMap::from([(String::from("/a"), 200)]));
    shop.queries.close().await;
}
