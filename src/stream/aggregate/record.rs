//! The records of a window: one a number, each absolute. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hashbrown::HashSet;
use serde::Serialize;

use super::touched::Changed;
use super::window::Window;
use crate::clock::{UnixMillis, rfc3339};
use crate::stats::rollup::Rollup;
use crate::stats::uniques::Uniques;
use crate::stats::{AsOf, OTHER};
use crate::stream::Topics;
use crate::stream::outgoing::{AGGREGATE_SCHEMA, Outgoing, fixed};

/// What all records of a run share.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Whose numbers.
    pub instance: &'a str,
    /// How far the store had counted.
    pub as_of: AsOf,
    /// How far windows are final.
    pub watermark: UnixMillis,
    /// Now.
    pub now: UnixMillis,
    /// The largest record, in bytes; sets that do not fit are left away.
    pub max_bytes: usize,
}

/// What a window is besides its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// See the schema.
    pub revision: u64,
    /// No further events are expected.
    pub is_final: bool,
    /// Events that came when it was final.
    pub late: u64,
}

#[derive(Serialize)]
struct Aggregate<'a> {
    instance: &'a str,
    site: &'a str,
    metric: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimension: Option<Dimension<'a>>,
    window_start: &'a str,
    window_end: &'a str,
    window_size: &'static str,
    value: u64,
    revision: u64,
    r#final: bool,
    watermark: &'a str,
    late: u64,
    exact: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_bound: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sketch: Option<String>,
    as_of: AsOf,
    emitted_at: &'a str,
}

#[derive(Clone, Copy, Serialize)]
struct Dimension<'a> {
    name: &'static str,
    value: &'a str,
}

/// Makes records for both topics.
#[derive(Clone, Debug)]
pub struct Maker {
    updates: Arc<str>,
    latest: Arc<str>,
}

/// The record's key: what compaction keeps one of.
fn key(window: &Window, metric: &str, dimension: Option<Dimension<'_>>, start: &str, instance: &str) -> Vec<u8> {
    let dimension = dimension.map(|d| format!("{}={}", d.name, d.value)).unwrap_or_default();
    format!("{}|{metric}|{dimension}|{start}|{}|{instance}", window.site, window.size.as_str()).into_bytes()
}

impl Maker {
    /// For these topics.
    pub fn new(topics: &Topics) -> Self {
        Self { updates: Arc::from(topics.updates.as_str()), latest: Arc::from(topics.latest.as_str()) }
    }

    /// The numbers of a window that have changed.
    pub fn numbers(
        &self,
        run: &Run<'_>,
        window: &Window,
        rollup: &Rollup,
        changed: &Changed,
        standing: Standing,
        out: &mut Vec<Outgoing>,
    ) {
        let (start, end) = (rfc3339(window.start), rfc3339(window.end()));
        let (watermark, emitted_at) = (rfc3339(run.watermark), rfc3339(run.now));
        let mut put = |metric: &'static str, dimension: Option<Dimension<'_>>, value: u64, set: Option<&Uniques>| {
            let count = set.map(Uniques::count);
            let mut aggregate = Aggregate {
                instance: run.instance,
                site: &window.site,
                metric,
                dimension,
                window_start: &start,
                window_end: &end,
                window_size: window.size.as_str(),
                value,
                revision: standing.revision,
                r#final: standing.is_final,
                watermark: &watermark,
                late: standing.late,
                exact: set.is_none_or(Uniques::exact),
                error_bound: count.and_then(|count| count.error_bound),
                sketch: set.map(|set| STANDARD.encode(set.encode())),
                as_of: run.as_of,
                emitted_at: &emitted_at,
            };
            let key = key(window, metric, dimension, &start, run.instance);
            let record = |topic: &Arc<str>, value: Vec<u8>| Outgoing {
                topic: topic.clone(),
                key: key.clone(),
                value: Some(value),
                headers: vec![("content-type", fixed("application/json")), ("schema", fixed(AGGREGATE_SCHEMA))],
                timestamp: run.now,
                partition: None,
            };
            // Of numbers and texts only: this cannot fail.
            let mut update = record(&self.updates, serde_json::to_vec(&aggregate).unwrap_or_default());
            if update.size() > run.max_bytes && aggregate.sketch.is_some() {
                aggregate.sketch = None;
                update = record(&self.updates, serde_json::to_vec(&aggregate).unwrap_or_default());
            }
            let value = update.value.clone().unwrap_or_default();
            out.push(update);
            out.push(record(&self.latest, value));
        };
        if changed.people || changed.all {
            put("page_views", None, rollup.page_views, None);
            put("events", None, rollup.events, None);
            put("unique_visitors", None, rollup.visitors.count().count, Some(&rollup.visitors));
            put("sessions", None, rollup.sessions.count().count, Some(&rollup.sessions));
        }
        if changed.bots || changed.all {
            put("bots", None, rollup.bots.values().sum(), None);
            for (reason, n) in &rollup.bots {
                put("bots", Some(Dimension { name: "reason", value: reason }), *n, None);
            }
        }
        for (metric, name, numbers, names) in [
            ("page_views", "page", &rollup.pages, &changed.pages),
            ("page_views", "referrer", &rollup.referrers, &changed.referrers),
            ("events", "type", &rollup.types, &changed.types),
        ] {
            for (value, n) in pick(numbers, names, changed.all) {
                put(metric, Some(Dimension { name, value }), n, None);
            }
        }
    }

    /// The tombstones of a window.
    pub fn tombstones(&self, run: &Run<'_>, window: &Window, rollup: &Rollup, out: &mut Vec<Outgoing>) {
        let start = rfc3339(window.start);
        let mut put = |metric: &str, dimension: Option<Dimension<'_>>| {
            out.push(self.tombstone(key(window, metric, dimension, &start, run.instance), run.now));
        };
        for metric in ["page_views", "events", "unique_visitors", "sessions", "bots"] {
            put(metric, None);
        }
        for reason in rollup.bots.keys() {
            put("bots", Some(Dimension { name: "reason", value: reason }));
        }
        for (metric, name, numbers) in [
            ("page_views", "page", &rollup.pages),
            ("page_views", "referrer", &rollup.referrers),
            ("events", "type", &rollup.types),
        ] {
            for value in numbers.keys() {
                put(metric, Some(Dimension { name, value }));
            }
        }
    }

    /// The tombstone of a key.
    pub fn tombstone(&self, key: Vec<u8>, now: UnixMillis) -> Outgoing {
        Outgoing { topic: self.latest.clone(), key, value: None, headers: Vec::new(), timestamp: now, partition: None }
    }
}

/// The changed numbers. A name that a full window did not take is among the others, which change with it.
fn pick<'a>(
    numbers: &'a HashMap<String, u64>,
    names: &'a HashSet<Box<str>>,
    all: bool,
) -> Box<dyn Iterator<Item = (&'a str, u64)> + 'a> {
    if all {
        return Box::new(numbers.iter().map(|(name, n)| (name.as_str(), *n)));
    }
    let known = names.iter().filter(|name| ***name != *OTHER);
    let known = known.filter_map(|name| Some((&**name, *numbers.get(&**name)?)));
    let others = numbers.get(OTHER).filter(|_| !names.is_empty()).map(|n| (OTHER, *n));
    Box::new(known.chain(others))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::window::Size;
    use super::*;

    fn rollup(window: &Window) -> Rollup {
        let mut rollup = Rollup::new(window.parts().next().unwrap(), 100);
        rollup.page_views = 5;
        rollup.events = 6;
        rollup.pages = [("/a".into(), 3), ("/b".into(), 1), (OTHER.into(), 1)].into();
        rollup.types = [("page_view".into(), 5), ("buy".into(), 1)].into();
        rollup.bots = [("crawler", 2)].into();
        rollup.visitors.insert(7);
        rollup.visitors.insert(8);
        rollup
    }

    fn records(changed: &Changed, max_bytes: usize) -> Vec<Outgoing> {
        let window = Window { site: "shop".into(), size: Size::Minute, start: 1_700_000_040_000 };
        let as_of = AsOf { offset: 10, time: Some(1_700_000_050_000) };
        let run = Run { instance: "j", as_of, watermark: 0, now: 1_700_000_060_000, max_bytes };
        let standing = Standing { revision: 20, is_final: false, late: 0 };
        let mut out = vec![];
        Maker::new(&Topics::new("t")).numbers(&run, &window, &rollup(&window), changed, standing, &mut out);
        out
    }

    fn keys(records: &[Outgoing]) -> Vec<String> {
        let updates = records.iter().filter(|record| record.topic.ends_with("updates"));
        let mut keys: Vec<String> = updates
            .map(|r| String::from_utf8(r.key.clone()).unwrap().replace("|2023-11-14T22:14:00.000Z|minute|j", ""))
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn only_what_changed_is_sent_and_all_of_it_when_asked() {
        let changed =
            Changed { people: true, pages: ["/a".into(), "/gone".into()].into_iter().collect(), ..Changed::default() };
        let totals = ["shop|events|", "shop|page_views|"];
        let mut expected = totals.to_vec();
        expected.extend([
            "shop|page_views|page=(other)",
            "shop|page_views|page=/a",
            "shop|sessions|",
            "shop|unique_visitors|",
        ]);
        assert_eq!(keys(&records(&changed, 100_000)), expected);
        assert_eq!(
            keys(&records(&Changed { bots: true, ..Changed::default() }, 100_000)),
            ["shop|bots|", "shop|bots|reason=crawler"]
        );
        let all = records(&Changed::all(), 100_000);
        assert_eq!(all.len(), 2 * (4 + 2 + 3 + 2));
        let window = Window { site: "shop".into(), size: Size::Minute, start: 1_700_000_040_000 };
        let run = Run { instance: "j", as_of: AsOf::default(), watermark: 0, now: 0, max_bytes: 0 };
        let mut gone = vec![];
        Maker::new(&Topics::new("t")).tombstones(&run, &window, &rollup(&window), &mut gone);
        let mut gone: Vec<Vec<u8>> = gone.into_iter().map(|record| record.key).collect();
        let mut there: Vec<Vec<u8>> =
            all.iter().filter(|r| r.topic.ends_with("latest")).map(|r| r.key.clone()).collect();
        gone.sort();
        there.sort();
        assert_eq!(gone, there, "a tombstone for each key");
    }

    #[test]
    fn a_set_comes_along_to_be_merged_unless_it_does_not_fit() {
        let changed = Changed { people: true, ..Changed::default() };
        for (max, with) in [(100_000, true), (10, false)] {
            let records = records(&changed, max);
            let of = |metric: &str| -> Value {
                let found = records.iter().map(|r| serde_json::from_slice::<Value>(r.value.as_ref().unwrap()).unwrap());
                found.into_iter().find(|value| value["metric"] == metric).unwrap()
            };
            let visitors = of("unique_visitors");
            assert_eq!((&visitors["value"], &visitors["exact"]), (&2.into(), &true.into()));
            assert_eq!(visitors["sketch"].is_string(), with);
            if with {
                let mut set = Uniques::new(100);
                set.absorb(&STANDARD.decode(visitors["sketch"].as_str().unwrap()).unwrap()).unwrap();
                assert_eq!(set.count().count, 2);
            }
            let views = of("page_views");
            assert_eq!((&views["value"], &views["revision"], &views["final"]), (&5.into(), &20.into(), &false.into()));
            assert_eq!(views["window_end"], "2023-11-14T22:15:00.000Z");
            assert!(views.get("sketch").is_none() && views.get("dimension").is_none());
        }
    }
}
