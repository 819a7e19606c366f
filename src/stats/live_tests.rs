use serde_json::Value;

use super::*;
use crate::clock::{DAY, HOUR};
use crate::event::BotReason;
use crate::stats::test_events::{Made, NoStore, deltas};
use crate::stats::{SqliteStore, StatsStore};

/// Some minutes past noon, so that hour and day have begun a while ago.
const NOW: UnixMillis = 20_000 * DAY + 12 * HOUR + 20 * MINUTE + 5_000;

fn live() -> Live {
    Live::load(&mut NoStore, StatsOptions::default(), NOW).unwrap()
}

fn read(reader: &LiveReader, window: WindowName, now: UnixMillis) -> Value {
    serde_json::from_slice(&reader.realtime_json("shop", window, now).data).unwrap()
}

fn view(page: &str, visitor: u64, at: UnixMillis) -> Made {
    Made { at, visitor, session: visitor, url: Some(page.to_owned()), ..Made::default() }
}

fn apply(live: &mut Live, events: &[Made], now: UnixMillis) {
    for delta in deltas(events, live.as_of.offset, 1000) {
        assert!(live.apply(&delta, now));
    }
}

#[test]
fn each_window_counts_what_happened_in_it() {
    let mut live = live();
    let bot = Made { bot: Some(BotReason::Crawler), ..view("/a", 9, NOW) };
    let click = Made { kind: "click".into(), ..view("/a", 3, NOW) };
    let events = [
        view("/a", 1, NOW),
        view("/a", 1, NOW - MINUTE),
        view("/b", 2, NOW - 10 * MINUTE),
        view("/c", 4, NOW - 2 * HOUR),
        view("/d", 5, NOW - DAY),
        bot,
        click,
    ];
    apply(&mut live, &events, NOW);
    let reader = live.reader();
    let minute = read(&reader, WindowName::Minute, NOW);
    assert_eq!(minute["window_start"], (NOW - 5_000) / 1000);
    assert_eq!((&minute["page_views"], &minute["unique_visitors"], &minute["bots"]), (&1.into(), &2.into(), &1.into()));
    assert_eq!(minute["events"], serde_json::json!({"click": 1, "page_view": 1}));
    assert_eq!(minute["as_of"], serde_json::json!({"offset": 7, "time": crate::clock::rfc3339(NOW)}));
    let hour = read(&reader, WindowName::Hour, NOW);
    assert_eq!((&hour["page_views"], &hour["unique_visitors"]), (&3.into(), &3.into()));
    assert_eq!(hour["hot_pages"], serde_json::json!([{"url": "/a", "views": 2}, {"url": "/b", "views": 1}]));
    let day = read(&reader, WindowName::Day, NOW);
    assert_eq!((&day["page_views"], &day["sessions"], &day["exact"]), (&4.into(), &4.into(), &true.into()));
    assert!(day.get("error_bound").is_none());
    assert_eq!(reader.visitors_now("shop", NOW), 2, "the bot and the earlier ones are not there");
    let keys: Vec<&String> = day.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 11, "{keys:?}");
}

#[test]
fn windows_empty_by_time_alone() {
    let mut live = live();
    apply(&mut live, &[view("/a", 1, NOW)], NOW);
    let reader = live.reader();
    for (window, later) in [(WindowName::Minute, MINUTE), (WindowName::Hour, HOUR), (WindowName::Day, DAY)] {
        assert_eq!(read(&reader, window, NOW)["page_views"], 1);
        let empty = read(&reader, window, NOW + later);
        assert_eq!(empty["page_views"], 0);
        assert_eq!(empty["hot_pages"], serde_json::json!([]));
        assert_eq!(empty["window_start"], window.start(NOW + later) / 1000);
    }
    assert_eq!(reader.visitors_now("shop", NOW + 4 * MINUTE), 1);
    assert_eq!(reader.visitors_now("shop", NOW + 5 * MINUTE), 0);
    // A late event of a minute that is over does not come back as one of this minute.
    apply(&mut live, &[view("/a", 2, NOW)], NOW + MINUTE);
    assert_eq!(read(&reader, WindowName::Minute, NOW + MINUTE)["page_views"], 0);
    assert_eq!(read(&reader, WindowName::Hour, NOW + MINUTE)["page_views"], 2);
    // A day later nothing of it is kept.
    apply(&mut live, &[Made { site: "blog", ..view("/a", 2, NOW + 2 * DAY) }], NOW + 2 * DAY);
    assert_eq!(live.sites.len(), 1);
    assert_eq!(read(&reader, WindowName::Day, NOW + 2 * DAY)["page_views"], 0);
}

#[test]
fn a_clock_that_is_set_back_or_was_wrong_does_not_stop_it() {
    let mut live = live();
    let reader = live.reader();
    apply(&mut live, &[view("/a", 1, NOW + 10)], NOW);
    // The event of the next minute comes while the clock still shows this one.
    apply(&mut live, &[view("/a", 1, NOW + MINUTE)], NOW);
    assert_eq!(read(&reader, WindowName::Minute, NOW + MINUTE)["page_views"], 1);
    apply(&mut live, &[view("/a", 1, NOW + 400 * DAY)], NOW + 400 * DAY);
    apply(&mut live, &[view("/a", 1, NOW + 3 * MINUTE)], NOW + 3 * MINUTE);
    assert_eq!(read(&reader, WindowName::Minute, NOW + 3 * MINUTE)["page_views"], 1);
}

#[test]
fn the_hot_pages_are_the_ten_most_viewed() {
    let mut live = live();
    let mut rng = crate::stats::test_events::Rng::new(7);
    let mut counts: std::collections::BTreeMap<String, u64> = Default::default();
    for _ in 0..60 {
        let mut events = Vec::new();
        for _ in 0..rng.below(40) {
            let page = format!("/{}", rng.below(9) * rng.below(9));
            *counts.entry(page.clone()).or_default() += 1;
            events.push(view(&page, 1, NOW));
        }
        apply(&mut live, &events, NOW);
        let expected: Vec<Value> = crate::stats::test_events::Recount::top(&counts, 10)
            .into_iter()
            .map(|(url, views)| serde_json::json!({"url": url, "views": views}))
            .collect();
        assert_eq!(read(&live.reader(), WindowName::Day, NOW)["hot_pages"], Value::from(expected));
    }
}

#[test]
fn answers_are_made_once_and_their_version_tells_them_apart() {
    let mut live = live();
    apply(&mut live, &[view("/a", 1, NOW)], NOW);
    let reader = live.reader();
    let first = reader.realtime_json("shop", WindowName::Hour, NOW);
    let again = reader.realtime_json("shop", WindowName::Hour, NOW + 1);
    assert_eq!(first.data.as_ptr(), again.data.as_ptr());
    assert_eq!(first.version, again.version);
    let next = reader.realtime_json("shop", WindowName::Hour, NOW + HOUR);
    assert_ne!(first.version, next.version);
    apply(&mut live, &[Made { site: "blog", ..view("/a", 1, NOW) }], NOW);
    let later = reader.realtime_json("shop", WindowName::Hour, NOW);
    assert_ne!(first.version, later.version, "as_of has moved on");
    let unknown = reader.realtime_json("nobody", WindowName::Day, NOW);
    assert_eq!(serde_json::from_slice::<Value>(&unknown.data).unwrap()["page_views"], 0);
}

#[test]
fn a_restart_carries_on_where_the_store_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&dir.path().join("stats.db"), StatsOptions::default()).unwrap();
    let mut live = Live::load(&mut store, StatsOptions::default(), NOW).unwrap();
    let events = crate::stats::test_events::events(11, 3_000, NOW, 13 * HOUR);
    for delta in deltas(&events, 0, 700) {
        store.commit(&delta, NOW).unwrap();
        assert!(live.apply(&delta, NOW));
        assert!(!live.apply(&delta, NOW), "a delta is not counted twice");
        let again = Live::load(&mut store, StatsOptions::default(), NOW).unwrap();
        for site in ["shop", "blog"] {
            for window in WindowName::ALL {
                assert_eq!(
                    live.reader().realtime_json(site, window, NOW).data,
                    again.reader().realtime_json(site, window, NOW).data
                );
            }
            assert_eq!(live.reader().visitors_now(site, NOW), again.reader().visitors_now(site, NOW));
        }
    }
}

#[test]
fn many_event_types_are_summed_up() {
    let mut live = live();
    let events: Vec<Made> = (0..2_000).map(|i| Made { kind: format!("type{i}"), ..view("/a", 1, NOW) }).collect();
    apply(&mut live, &events, NOW);
    let day = read(&live.reader(), WindowName::Day, NOW);
    let types = day["events"].as_object().unwrap();
    assert!(types.len() <= 257);
    assert_eq!(types.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 2_000);
}
