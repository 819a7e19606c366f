//! The running windows of every site, published: what requests read without asking their owner.
//!
//! [`Live`] belongs to the owner and takes each delta after its commit, so that what is shown is durable. It publishes one
//! immutable [`Published`] at a time; a [`LiveReader`] loads it, and with it numbers and `as_of` that belong together. The
//! JSON of an answer is made once for each publication and window and shared by all who ask.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_64;

use super::answers::{AsOf, FeedSnapshot, FeedWindow, Windows};
use super::live_site::{SiteState, SiteSummary, WindowName, WindowSummary};
use super::options::StatsOptions;
use super::recent::visitors_now;
use super::store::StatsStore;
use super::window::Tier;
use super::{Delta, StatsError};
use crate::clock::{MINUTE, UnixMillis};

/// The owner's side.
#[derive(Debug)]
pub struct Live {
    options: StatsOptions,
    sites: HashMap<Arc<str>, SiteState>,
    as_of: AsOf,
    pruned: UnixMillis,
    reader: LiveReader,
}

/// The readers' side; cheap to clone.
#[derive(Clone, Debug)]
pub struct LiveReader(Arc<ArcSwap<Published>>);

/// One state of all sites.
#[derive(Debug, Default)]
pub struct Published {
    as_of: AsOf,
    version: u64,
    sites: HashMap<Arc<str>, Arc<PublishedSite>>,
}

#[derive(Debug)]
struct PublishedSite {
    summary: SiteSummary,
    /// Answers by window. They outlive a publication in which the site did not change, so they name theirs.
    json: [ArcSwapOption<Rendered>; 3],
}

#[derive(Debug)]
struct Rendered {
    version: u64,
    start: UnixMillis,
    answer: RealtimeAnswer,
}

/// The JSON object of a running window.
#[derive(Clone, Debug)]
pub struct RealtimeAnswer {
    /// The `data` of the answer.
    pub data: Bytes,
    /// Changes exactly when `data` does; also after a restart.
    pub version: u64,
}

impl Live {
    /// Carries on from what `store` has counted.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn load(store: &mut impl StatsStore, options: StatsOptions, now: UnixMillis) -> Result<Self, StatsError> {
        let reader = LiveReader(Arc::default());
        let mut live = Self { options, sites: HashMap::new(), as_of: AsOf::default(), pruned: now, reader };
        live.reload(store, now)?;
        Ok(live)
    }

    /// Starts again from what `store` has counted: after [`super::Committed::Already`].
    ///
    /// # Errors
    /// When the store cannot be read; everything is as before then.
    pub fn reload(&mut self, store: &mut impl StatsStore, now: UnixMillis) -> Result<(), StatsError> {
        let as_of = store.cursor()?.into();
        let mut sites: HashMap<Arc<str>, SiteState> = HashMap::new();
        let state = |sites: &mut HashMap<Arc<str>, SiteState>, name: &str| -> Arc<str> {
            let name: Arc<str> = Arc::from(name);
            sites.entry(name.clone()).or_insert_with(|| SiteState::new(name.clone(), now, &self.options));
            name
        };
        for window in WindowName::ALL {
            let start = window.start(now);
            for loaded in store.load(window.tier(), start, start + window.width())? {
                let name = state(&mut sites, &loaded.site);
                if let Some(site) = sites.get_mut(&name) {
                    site.load(window, loaded, &self.options);
                }
            }
        }
        let minute = WindowName::Minute.start(now);
        for back in 0..5 {
            let start = minute - back * MINUTE;
            for (name, visitors) in store.load_visitors(Tier::Minute, start, start + MINUTE)? {
                let name = state(&mut sites, &name);
                if let Some(site) = sites.get_mut(&name) {
                    site.load_recent(&visitors, start, now);
                }
            }
        }
        (self.sites, self.as_of) = (sites, as_of);
        let all: Vec<Arc<str>> = self.sites.keys().cloned().collect();
        self.publish(all);
        Ok(())
    }

    /// Counts a delta that was committed. One that does not follow is ignored, and the answer is false: the caller reloads.
    pub fn apply(&mut self, delta: &Delta, now: UnixMillis) -> bool {
        if delta.from != self.as_of.offset {
            return false;
        }
        let mut touched = Vec::with_capacity(delta.sites.len());
        for site in delta.sites.iter().filter(|site| !site.minutes.is_empty()) {
            let state = match self.sites.get_mut(&site.name) {
                Some(state) => state,
                None => {
                    let new = SiteState::new(site.name.clone(), now, &self.options);
                    self.sites.entry(site.name.clone()).or_insert(new)
                }
            };
            state.apply(site, now, &self.options);
            touched.push(site.name.clone());
        }
        self.as_of = AsOf { offset: delta.to, time: delta.time.or(self.as_of.time) };
        if now - self.pruned > 10 * MINUTE {
            // Yesterday's sets and pages of sites that were not heard of since.
            self.pruned = now;
            self.sites.retain(|_, site| !site.is_over(now));
        }
        self.publish(touched);
        true
    }

    /// The readers' side.
    pub fn reader(&self) -> LiveReader {
        self.reader.clone()
    }

    fn publish(&mut self, touched: Vec<Arc<str>>) {
        let before = self.reader.0.load_full();
        let mut sites: HashMap<Arc<str>, Arc<PublishedSite>> = before
            .sites
            .iter()
            .filter(|(name, _)| self.sites.contains_key(*name))
            .map(|(name, site)| (name.clone(), site.clone()))
            .collect();
        for name in touched {
            if let Some(state) = self.sites.get_mut(&name) {
                let json = [const { ArcSwapOption::const_empty() }; 3];
                sites.insert(name, Arc::new(PublishedSite { summary: state.summary(), json }));
            }
        }
        self.reader.0.store(Arc::new(Published { as_of: self.as_of, version: before.version + 1, sites }));
    }
}

impl LiveReader {
    /// The state that is published now.
    pub fn published(&self) -> Arc<Published> {
        self.0.load_full()
    }

    /// How far the published state counts.
    pub fn as_of(&self) -> AsOf {
        self.0.load().as_of
    }

    /// Different visitors of the last five minutes.
    pub fn visitors_now(&self, site: &str, now: UnixMillis) -> u64 {
        self.0.load().visitors_now(site, now)
    }

    /// The running window of a site: the JSON object that is the answer's `data`.
    pub fn realtime_json(&self, site: &str, window: WindowName, now: UnixMillis) -> RealtimeAnswer {
        let published = self.0.load();
        let Some(known) = published.sites.get(site) else {
            // Nothing was counted: an empty window, and nothing to remember it by.
            let empty = WindowSummary::default().realtime(&Arc::from(site), window, now, published.as_of);
            return RealtimeAnswer::of(&empty);
        };
        let start = window.start(now);
        let cell = &known.json[window as usize];
        if let Some(rendered) = &*cell.load()
            && rendered.version == published.version
            && rendered.start == start
        {
            return rendered.answer.clone();
        }
        let summary = &known.summary;
        let realtime = summary.windows[window as usize].realtime(&summary.name, window, now, published.as_of);
        let answer = RealtimeAnswer::of(&realtime);
        // Two readers may render the same at once, and one of a publication before may overwrite it; the next one notices.
        cell.store(Some(Arc::new(Rendered { version: published.version, start, answer: answer.clone() })));
        answer
    }
}

impl RealtimeAnswer {
    pub(super) fn of(realtime: &super::answers::Realtime) -> Self {
        Self::new(Bytes::from(json(realtime)))
    }

    pub(super) fn new(data: Bytes) -> Self {
        Self { version: xxh3_64(&data), data }
    }
}

/// JSON of an answer. Nothing in answers can fail to become JSON: no maps with odd keys, no custom errors.
pub(super) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec())
}

impl Published {
    /// How far it counts.
    pub fn as_of(&self) -> AsOf {
        self.as_of
    }

    /// Different visitors of the last five minutes.
    pub fn visitors_now(&self, site: &str, now: UnixMillis) -> u64 {
        self.sites.get(site).map_or(0, |site| visitors_now(&site.summary.recent, now))
    }

    /// All windows of a site, as a feed begins with.
    pub fn snapshot(&self, site: &Arc<str>, now: UnixMillis) -> FeedSnapshot {
        let window = |name: WindowName| match self.sites.get(site) {
            Some(known) => known.summary.windows[name as usize].realtime(site, name, now, self.as_of),
            None => WindowSummary::default().realtime(site, name, now, self.as_of),
        };
        FeedSnapshot {
            site: site.clone(),
            as_of: self.as_of,
            visitors_now: self.visitors_now(site, now),
            windows: Windows {
                minute: window(WindowName::Minute),
                hour: window(WindowName::Hour),
                day: window(WindowName::Day),
            },
        }
    }

    /// The numbers of all windows of a site, as a feed's deltas carry them.
    pub(super) fn windows(&self, site: &str, now: UnixMillis) -> Windows<FeedWindow> {
        let window = |name: WindowName| {
            let start = name.start(now);
            let known = self.sites.get(site).map(|known| &known.summary.windows[name as usize]);
            let mut window = FeedWindow { window_start: start / 1000, page_views: 0, unique_visitors: 0, sessions: 0 };
            if let Some(summary) = known.filter(|summary| summary.start == start) {
                window.page_views = summary.page_views;
                window.unique_visitors = summary.visitors.count;
                window.sessions = summary.sessions.count;
            }
            window
        };
        Windows { minute: window(WindowName::Minute), hour: window(WindowName::Hour), day: window(WindowName::Day) }
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
