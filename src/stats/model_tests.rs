//! The whole room against a plain recount: random events, cut into random batches, with reopened stores, deltas delivered
//! again and old windows swept, asked in several zones.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::live::Live;
use super::test_events::{Made, Recount, Rng, deltas, events};
use super::timeseries::{Interval, Metric};
use super::{Committed, Queries, Range, SqliteStore, StatsOptions, StatsStore, WindowName};
use crate::clock::{DAY, MINUTE, UnixMillis, parse_rfc3339};

/// Where the interval of an event begins, by jiff's calendar alone.
fn label(at: UnixMillis, zone: &str, interval: Interval) -> String {
    let zoned = Timestamp::from_millisecond(at).unwrap().to_zoned(TimeZone::get(zone).unwrap());
    match interval {
        Interval::Minute => zoned.strftime("%Y-%m-%dT%H:%M:00%:z").to_string(),
        Interval::Hour => zoned.strftime("%Y-%m-%dT%H:00:00%:z").to_string(),
        Interval::Day => zoned.start_of_day().unwrap().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    }
}

fn within<'a>(made: &'a [Made], site: &'a str, from: &str, to: &str) -> impl Iterator<Item = &'a Made> + Clone {
    let range = parse_rfc3339(from).unwrap()..parse_rfc3339(to).unwrap();
    made.iter().filter(move |made| made.site == site && range.contains(&made.at))
}

async fn ask(queries: &Queries, made: &[Made], rng: &mut Rng, now: UnixMillis, offset: u64) {
    let site = ["shop", "blog", "nobody"][rng.below(3) as usize];
    let from = now - rng.below(8 * DAY as u64) as UnixMillis;
    let to = from + 1 + rng.below((now - from) as u64 + 1) as UnixMillis;
    let range = Range { from, to };

    let summary = queries.summary(site, range, now).await.unwrap();
    assert!(parse_rfc3339(&summary.from).unwrap() <= from && parse_rfc3339(&summary.to).unwrap() >= to);
    let recount = Recount::of(within(made, site, &summary.from, &summary.to));
    assert_eq!(summary.as_of.offset, offset);
    assert_eq!((summary.page_views, summary.bots), (recount.page_views, recount.bots));
    assert_eq!(summary.bot_reasons, recount.bot_reasons);
    assert_eq!(summary.events, recount.events);
    assert!(summary.exact);
    assert_eq!(summary.unique_visitors, recount.visitors.len() as u64);
    assert_eq!(summary.sessions, recount.sessions.len() as u64);

    let limit = 1 + rng.below(40) as usize;
    let pages = queries.pages(site, range, limit, now).await.unwrap();
    let items: Vec<(String, u64)> = pages.items.iter().map(|item| (item.url.clone(), item.views)).collect();
    assert_eq!(items, Recount::top(&recount.pages, limit));
    assert_eq!(pages.total, recount.pages.values().sum::<u64>());
    let referrers = queries.referrers(site, range, limit, now).await.unwrap();
    let items: Vec<(String, u64)> = referrers.items.iter().map(|item| (item.referrer.clone(), item.views)).collect();
    assert_eq!(items, Recount::top(&recount.referrers, limit));
    let types = queries.events(site, range, limit, now).await.unwrap();
    let items: Vec<(String, u64)> = types.items.iter().map(|item| (item.event_type.clone(), item.count)).collect();
    assert_eq!(items, Recount::top(&recount.events, limit));
    assert_eq!(types.total, recount.all);

    let zones =
        ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York", "Pacific/Chatham", "Australia/Lord_Howe"];
    let zone = zones[rng.below(6) as usize];
    let metric = [Metric::PageViews, Metric::Events, Metric::UniqueVisitors, Metric::Sessions][rng.below(4) as usize];
    let interval = match rng.below(3) {
        0 => Interval::Day,
        // There, clocks change in the middle of an hour; tests of their own look at that.
        _ if matches!(zone, "Australia/Lord_Howe" | "Pacific/Chatham") => Interval::Day,
        1 if now - from < DAY => Interval::Minute,
        _ => Interval::Hour,
    };
    let series = queries.timeseries(site, metric, interval, zone, range, now).await.unwrap();
    assert_eq!(series.note, None);
    let mut expected: BTreeMap<String, Vec<&Made>> = BTreeMap::new();
    for made in within(made, site, &series.from, &series.to) {
        expected.entry(label(made.at, zone, interval)).or_default().push(made);
    }
    let mut starts = BTreeSet::new();
    let mut before = UnixMillis::MIN;
    for point in &series.points {
        let at = parse_rfc3339(&point.start).unwrap();
        assert!(at > before, "points are in order");
        before = at;
        assert!(starts.insert(point.start.clone()));
        let recount = Recount::of(expected.get(&point.start).into_iter().flatten().copied());
        let value = match metric {
            Metric::PageViews => recount.page_views,
            Metric::Events => recount.all,
            Metric::UniqueVisitors => recount.visitors.len() as u64,
            Metric::Sessions => recount.sessions.len() as u64,
        };
        assert_eq!(point.value, value, "{metric:?} {interval:?} {zone} {}", point.start);
    }
    let missing: Vec<&String> = expected.keys().filter(|label| !starts.contains(*label)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn check_live(live: &Live, made: &[Made], now: UnixMillis) {
    let reader = live.reader();
    for site in ["shop", "blog"] {
        for window in WindowName::ALL {
            let range = window.start(now)..now;
            let recount = Recount::of(made.iter().filter(|made| made.site == site && range.contains(&made.at)));
            let data: serde_json::Value =
                serde_json::from_slice(&reader.realtime_json(site, window, now).data).unwrap();
            assert_eq!(data["page_views"], recount.page_views, "{site} {window:?}");
            assert_eq!(data["bots"], recount.bots);
            assert_eq!(data["unique_visitors"], recount.visitors.len() as u64);
            assert_eq!(data["sessions"], recount.sessions.len() as u64);
            assert_eq!(data["events"], serde_json::json!(recount.events));
            let hot: Vec<_> = Recount::top(&recount.pages, 10)
                .into_iter()
                .map(|(url, views)| serde_json::json!({"url": url, "views": views}))
                .collect();
            assert_eq!(data["hot_pages"], serde_json::json!(hot));
        }
        let since = WindowName::Minute.start(now) - 4 * MINUTE;
        let recount = Recount::of(made.iter().filter(|made| made.site == site && made.at >= since));
        assert_eq!(reader.visitors_now(site, now), recount.visitors.len() as u64);
    }
}

async fn model(seed: u64, now: UnixMillis) {
    let mut rng = Rng::new(seed ^ 0xABCD);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.db");
    // So little cache that windows are read back all the time.
    let options = StatsOptions { cache_bytes: [1 << 20, 20_000][seed as usize % 2], ..StatsOptions::default() };
    let open = || SqliteStore::open(&path, options.clone()).unwrap();
    let mut store = open();
    let mut live = Live::load(&mut store, options.clone(), now).unwrap();
    let queries = Queries::open(&path, options.clone()).unwrap();

    // Half of it in the last day, so that the running windows have something to count.
    let mut made = events(seed, 1_000, now, 7 * DAY);
    made.extend(events(seed + 1, 700, now, DAY));
    made.extend(events(seed + 2, 300, now, 10 * MINUTE));
    let mut at = 0;
    while at < made.len() {
        let end = made.len().min(at + 1 + rng.below(300) as usize);
        let delta = deltas(&made[at..end], at as u64, 1000).remove(0);
        assert_eq!(store.commit(&delta, now).unwrap(), Committed::Applied);
        assert!(live.apply(&delta, now));
        at = end;
        if rng.below(3) == 0 {
            assert_eq!(store.commit(&delta, now).unwrap(), Committed::Already);
        }
        if rng.below(4) == 0 {
            store = open();
        }
        if rng.below(4) == 0 {
            live.reload(&mut store, now).unwrap();
        }
        if rng.below(4) == 0 {
            store.expire(now).unwrap();
        }
        ask(&queries, &made[..at], &mut rng, now, at as u64).await;
    }
    check_live(&live, &made, now);
    for _ in 0..25 {
        ask(&queries, &made, &mut rng, now, at as u64).await;
    }
}

#[tokio::test]
async fn every_answer_is_what_a_recount_says() {
    // Weeks in which clocks change: in Berlin, in New York, on Chatham and Lord Howe, and a quiet one.
    for (seed, now) in [
        (1, "2026-03-31T10:07:31Z"),
        (2, "2026-10-27T23:59:59Z"),
        (3, "2026-03-10T00:00:01Z"),
        (4, "2026-04-07T14:14:14Z"),
        (5, "2026-09-29T05:44:59Z"),
        (6, "2026-06-15T12:00:00Z"),
    ] {
        model(seed, parse_rfc3339(now).unwrap()).await;
    }
}
