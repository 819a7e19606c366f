//! The running window, from the keys that all instances and the older deployment add to.

use std::collections::BTreeMap;
use std::sync::Arc;

use deadpool_redis::redis::{Cmd, FromRedisValue, Value};
use serde_json::value::RawValue;

use super::UniquesMode;
use super::blob::{self, Sums};
use super::keys::{hot_pages, seconds, site_prefix};
use super::read::{Inner, SharedReads, parse_as_of};
use crate::clock::{SECOND, UnixMillis, rfc3339};
use crate::event::PAGE_VIEW;
use crate::redis::StoreError;
use crate::stats::WindowName;
use crate::stats::answers::{HotPage, Realtime};

/// How many hot pages a window shows.
const HOT: isize = 10;
/// Two standard deviations of Redis' HyperLogLog, whose standard error is 0.81 %.
const HLL_BOUND: f64 = 0.0163;

impl SharedReads {
    /// The window of a site that runs at `now`.
    pub(in crate::stats) async fn realtime(
        &self,
        site: &str,
        window: WindowName,
        now: UnixMillis,
    ) -> Result<Arc<Realtime>, StoreError> {
        let (inner, site) = (self.0.clone(), site.to_owned());
        let key = format!("realtime {site} {} {}", window.as_str(), window.start(now));
        self.ask(key, async move { inner.realtime(&site, window, now).await }).await
    }
}

impl SharedReads {
    /// The latest events of a user, newest first, as all instances and the older deployment have written them; empty for a
    /// user nobody knows. Times come out as RFC 3339.
    pub(in crate::stats) async fn user_events(
        &self,
        site: &str,
        user: &str,
        limit: usize,
    ) -> Result<Arc<Vec<Box<RawValue>>>, StoreError> {
        let inner = self.0.clone();
        let mut command = Cmd::new();
        let key = inner.keys.key(&format!("{}user_events:{user}", site_prefix(site)));
        command.arg("LRANGE").arg(key).arg(0).arg(limit.saturating_sub(1));
        self.ask(format!("user {limit} {site} {user}"), async move {
            let texts = <Vec<String>>::from_redis_value(inner.client.one(&command).await?).unwrap_or_default();
            let events = texts.iter().filter_map(|text| {
                let mut event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
                if let Some(seconds) = event.get("timestamp").and_then(serde_json::Value::as_i64) {
                    event.insert(String::from("timestamp"), rfc3339(seconds.saturating_mul(SECOND)).into());
                }
                serde_json::value::to_raw_value(&event).ok()
            });
            Ok(events.collect())
        })
        .await
    }
}

impl Inner {
    async fn realtime(&self, site: &str, window: WindowName, now: UnixMillis) -> Result<Realtime, StoreError> {
        let (prefix, word, start) = (site_prefix(site), window.as_str(), seconds(window, now));
        let (count, suffix) = match self.options.uniques {
            UniquesMode::Set => ("SCARD", ""),
            UniquesMode::Hll => ("PFCOUNT", "_hll"),
        };
        let command = |name: &str, key: String| {
            let mut command = Cmd::new();
            command.arg(name).arg(self.keys.key(&key));
            command
        };
        let types = self.state.types_of(site);
        let mut hot = command("ZREVRANGE", hot_pages(&prefix, window, start));
        hot.arg(0).arg(HOT - 1).arg("WITHSCORES");
        let mut commands = vec![
            self.as_of_command(),
            command("GET", format!("{prefix}pv:{word}:{start}")),
            command(count, format!("{prefix}uv{suffix}:{word}:{start}")),
            command(count, format!("{prefix}sessions{suffix}:{word}:{start}")),
            hot,
        ];
        commands.extend(types.iter().map(|name| command("GET", format!("{prefix}event_count:{name}:{word}:{start}"))));
        let from = window.start(now);
        commands.extend(self.sums_commands(site, window.tier(), from, from + window.width()));

        let mut answers = self.client.all(commands).await?.into_iter();
        let as_of = parse_as_of(answers.next());
        let mut number = || answers.next().and_then(|value| <Option<u64>>::from_redis_value(value).ok()).flatten();
        let page_views = number().unwrap_or(0);
        let unique_visitors = number().unwrap_or(0);
        let sessions = number().unwrap_or(0);
        let hot_pages = pairs(answers.next());
        let mut events: BTreeMap<String, u64> = BTreeMap::new();
        for name in types {
            let counted = answers.next().and_then(|value| <Option<u64>>::from_redis_value(value).ok()).flatten();
            events.extend(counted.map(|n| (name, n)));
        }
        let mut sums = Sums::default();
        for answer in answers {
            for bytes in <Vec<Vec<u8>>>::from_redis_value(answer).unwrap_or_default() {
                let unreadable = |_| StoreError::Refused(String::from("a published window cannot be read"));
                blob::add_sums(&mut sums, &bytes).map_err(unreadable)?;
            }
        }
        // Types that only other instances have seen so far are asked by name the next time.
        self.state.saw(site, sums.types.keys().filter(|name| *name != PAGE_VIEW).map(String::as_str));
        for (name, n) in sums.types {
            events.entry(name).or_insert(n);
        }
        if page_views > 0 {
            events.insert(PAGE_VIEW.to_owned(), page_views);
        }
        let error_bound = (self.options.uniques == UniquesMode::Hll).then_some(HLL_BOUND);
        Ok(Realtime {
            site: Arc::from(site),
            time_window: word,
            window_start: from / SECOND,
            page_views,
            unique_visitors,
            sessions,
            bots: sums.bots.values().sum(),
            hot_pages,
            events: events.into_iter().map(|(name, n)| (Arc::from(name), n)).collect(),
            exact: error_bound.is_none(),
            error_bound,
            as_of,
            degraded: false,
        })
    }
}

/// Pages and their views, most viewed first.
fn pairs(value: Option<Value>) -> Vec<HotPage> {
    let pairs = value.and_then(|value| <Vec<(String, f64)>>::from_redis_value(value).ok()).unwrap_or_default();
    pairs.into_iter().map(|(url, views)| HotPage { url: Arc::from(url), views: views as u64 }).collect()
}
