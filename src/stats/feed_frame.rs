//! What one message of the live feed says, and what is gathered for the next one.

use std::cmp::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hashbrown::HashMap;

use super::answers::FeedDelta;
use super::delta::{SiteDelta, Tallies};
use super::live::{Published, json};
use super::{Delta, OTHER};
use crate::clock::UnixMillis;
use crate::event::PAGE_VIEW;

/// Pages and referrers in a message; the sums beside them are complete.
const MOST_NAMES: usize = 50;
/// Event types in a message; all further ones are summed up as one, so that types stay complete too.
const MOST_TYPES: usize = 256;

/// One message to the readers of every site that changed.
#[derive(Debug)]
pub(super) struct Frame {
    pub seq: u64,
    sites: HashMap<Arc<str>, FrameSite>,
    /// About how much memory it takes.
    pub bytes: usize,
}

#[derive(Debug)]
struct FrameSite {
    delta: FeedDelta,
    /// Made by the first reader who wants it: most sites have none.
    json: OnceLock<Bytes>,
}

impl Frame {
    /// The message for a site, if it changed.
    pub fn data(&self, site: &str) -> Option<Bytes> {
        let site = self.sites.get(site)?;
        Some(site.json.get_or_init(|| Bytes::from(json(&site.delta))).clone())
    }

    /// Whether there is a message for a site.
    pub fn has(&self, site: &str) -> bool {
        self.sites.contains_key(site)
    }
}

/// What was committed since the last message.
#[derive(Debug, Default)]
pub(super) struct Pending {
    sites: HashMap<Arc<str>, Added>,
}

#[derive(Debug, Default)]
struct Added {
    page_views: u64,
    bots: u64,
    events: HashMap<Arc<str>, u64>,
    pages: HashMap<Arc<str>, u64>,
    referrers: HashMap<Arc<str>, u64>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    pub fn add(&mut self, delta: &Delta) {
        for site in delta.sites.iter().filter(|site| !site.minutes.is_empty()) {
            self.sites.entry(site.name.clone()).or_default().add(site);
        }
    }

    /// The message that says all of it, with the windows of `published`.
    pub fn frame(self, seq: u64, published: &Published, now: UnixMillis) -> Frame {
        let mut bytes = 256;
        let mut sites = HashMap::with_capacity(self.sites.len());
        for (name, added) in self.sites {
            let delta = FeedDelta {
                as_of: published.as_of(),
                visitors_now: published.visitors_now(&name, now),
                page_views: added.page_views,
                bots: added.bots,
                events: complete(added.events),
                pages: most_frequent(added.pages),
                referrers: most_frequent(added.referrers),
                windows: published.windows(&name, now),
            };
            let names = [&delta.events, &delta.pages, &delta.referrers].into_iter().flatten();
            // Twice: as the delta and, once somebody asked, as JSON.
            bytes += 512 + 2 * names.map(|(name, _)| name.len() + 40).sum::<usize>();
            sites.insert(name, FrameSite { delta, json: OnceLock::new() });
        }
        Frame { seq, sites, bytes }
    }
}

impl Added {
    fn add(&mut self, delta: &SiteDelta) {
        let sum = |sums: &mut HashMap<Arc<str>, u64>, tallies: &Tallies| {
            for (name, tally) in tallies {
                *sums.entry(name.clone()).or_insert(0) += tally.n;
            }
        };
        for minute in &delta.minutes {
            self.page_views += minute.page_views;
            self.bots += minute.bot_events();
            sum(&mut self.events, &minute.other_types);
            if minute.page_views > 0 {
                *self.events.entry_ref(PAGE_VIEW).or_insert(0) += minute.page_views;
            }
            sum(&mut self.pages, &minute.pages);
            sum(&mut self.referrers, &minute.referrers);
        }
    }
}

/// Most frequent first; equally frequent ones by name.
fn by_frequency(a: &(Arc<str>, u64), b: &(Arc<str>, u64)) -> Ordering {
    b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0))
}

fn most_frequent(counts: HashMap<Arc<str>, u64>) -> Vec<(Arc<str>, u64)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    if counts.len() > MOST_NAMES {
        counts.select_nth_unstable_by(MOST_NAMES, by_frequency);
        counts.truncate(MOST_NAMES);
    }
    counts.sort_unstable_by(by_frequency);
    counts
}

/// All of them by name, the rarest summed up when they are too many.
fn complete(counts: HashMap<Arc<str>, u64>) -> Vec<(Arc<str>, u64)> {
    let mut counts: Vec<_> = counts.into_iter().collect();
    if counts.len() > MOST_TYPES {
        counts.sort_unstable_by(by_frequency);
        let other = counts.drain(MOST_TYPES..).map(|(_, n)| n).sum();
        counts.push((Arc::from(OTHER), other));
    }
    counts.sort_unstable();
    counts
}
