//! What a run of journal entries adds to the statistics.
//!
//! Folding is the part that every event pays for, so it aggregates per site and minute only; quarters and days are summed
//! from minutes when the delta is committed, which costs per distinct name and not per event. Known names allocate
//! nothing, and the site and minute of the event before are tried first.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::window::Tier;
use crate::clock::UnixMillis;
use crate::event::codec::Entry;
use crate::event::{BotReason, Event, PAGE_VIEW, RejectCode, page};

/// Bots by reason: the reason's byte is the index.
pub type Bots = [u64; 16];
const _: () = assert!(BotReason::ALL.len() < 16);

/// How often a name occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub n: u64,
    /// Where it came first, counted in entries from the start of the delta. Decides which names a full window takes, so
    /// that this does not depend on how the journal was cut into deltas.
    pub first: u32,
}

/// Names and how often they occurred.
pub type Tallies = HashMap<Arc<str>, Tally>;

/// The sums of the journal's entries `[from, to)`.
#[derive(Clone, Debug)]
pub struct Delta {
    /// First entry.
    pub from: u64,
    /// Entry after the last.
    pub to: u64,
    /// When the last event was received; `None` while there is none.
    pub time: Option<UnixMillis>,
    /// What was added, by site, in order of appearance.
    pub sites: Vec<SiteDelta>,
    by_name: HashMap<Arc<str>, usize>,
    last: usize,
    events: u64,
}

/// What was added to a site.
#[derive(Clone, Debug)]
pub struct SiteDelta {
    /// The site.
    pub name: Arc<str>,
    /// What happened in which minute, in order of appearance.
    pub minutes: Vec<MinuteDelta>,
    /// What became of the entries.
    pub audit: Audit,
    by_start: HashMap<UnixMillis, usize>,
    last: usize,
}

/// What happened to the entries of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Events, bots included.
    pub counted: u64,
    /// Events that had been accepted before.
    pub duplicates: u64,
    /// Events that were refused.
    pub rejected: BTreeMap<RejectCode, u64>,
}

/// What was added to a minute of a site.
#[derive(Clone, Debug)]
pub struct MinuteDelta {
    /// Where the minute starts.
    pub start: UnixMillis,
    /// Page views that were no bot's.
    pub page_views: u64,
    /// Events that were no bot's, page views included.
    pub events: u64,
    /// Those of other types than page views.
    pub other_types: Tallies,
    /// Bots' events, which count nowhere else.
    pub bots: Bots,
    /// Page views by page.
    pub pages: Tallies,
    /// Page views by foreign referrer.
    pub referrers: Tallies,
    /// Visitors.
    pub visitors: HashSet<u64>,
    /// Sessions.
    pub sessions: HashSet<u64>,
    page_views_first: u32,
}

impl Delta {
    /// Begins at entry `from`.
    pub fn new(from: u64) -> Self {
        Self { from, to: from, time: None, sites: Vec::new(), by_name: HashMap::new(), last: 0, events: 0 }
    }

    /// Adds the entry `seq`. Entries come in order, each once.
    pub fn apply(&mut self, seq: u64, entry: &Entry<'_>) {
        debug_assert!(seq >= self.to, "entry {seq} again or out of order, after {}", self.to);
        self.to = seq + 1;
        match entry {
            Entry::Event(event) => {
                let order = u32::try_from(seq - self.from).unwrap_or(u32::MAX);
                self.time = Some(event.received);
                self.events += 1;
                self.site(event.site).apply(order, event);
            }
            Entry::Outcome { site, code, count } => {
                let audit = &mut self.site(site).audit;
                match code {
                    RejectCode::Duplicate => audit.duplicates += count,
                    code => *audit.rejected.entry(*code).or_default() += count,
                }
            }
        }
    }

    /// Says that the entries before `to` have been looked at, where the last ones held nothing to count.
    pub fn advance(&mut self, to: u64) {
        self.to = self.to.max(to);
    }

    /// Events in it, bots included.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The site of the entry that was applied last; empty when none was.
    pub fn last_site(&self) -> Arc<str> {
        self.sites.get(self.last).map_or_else(|| Arc::from(""), |site| site.name.clone())
    }

    /// Whether it covers no entry.
    pub fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn site(&mut self, name: &str) -> &mut SiteDelta {
        if self.sites.get(self.last).is_none_or(|site| *site.name != *name) {
            self.last = match self.by_name.get(name) {
                Some(at) => *at,
                None => {
                    let name: Arc<str> = Arc::from(name);
                    self.by_name.insert(name.clone(), self.sites.len());
                    self.sites.push(SiteDelta::new(name));
                    self.sites.len() - 1
                }
            };
        }
        &mut self.sites[self.last]
    }
}

impl SiteDelta {
    fn new(name: Arc<str>) -> Self {
        Self { name, minutes: Vec::new(), audit: Audit::default(), by_start: HashMap::new(), last: 0 }
    }

    fn apply(&mut self, order: u32, event: &Event<'_>) {
        self.audit.counted += 1;
        let start = Tier::Minute.floor(event.timestamp);
        if self.minutes.get(self.last).is_none_or(|minute| minute.start != start) {
            let next = self.minutes.len();
            self.last = *self.by_start.entry(start).or_insert(next);
            if self.last == next {
                self.minutes.push(MinuteDelta::new(start));
            }
        }
        self.minutes[self.last].apply(order, event);
    }
}

impl MinuteDelta {
    fn new(start: UnixMillis) -> Self {
        Self {
            start,
            page_views: 0,
            events: 0,
            other_types: HashMap::new(),
            bots: Bots::default(),
            pages: HashMap::new(),
            referrers: HashMap::new(),
            visitors: HashSet::new(),
            sessions: HashSet::new(),
            page_views_first: 0,
        }
    }

    fn apply(&mut self, order: u32, event: &Event<'_>) {
        if let Some(reason) = event.bot {
            self.bots[reason as usize] += 1;
            return;
        }
        self.events += 1;
        self.visitors.insert(event.visitor);
        if event.session != 0 {
            self.sessions.insert(event.session);
        }
        if event.event_type != PAGE_VIEW {
            tally(&mut self.other_types, event.event_type, order);
            return;
        }
        if self.page_views == 0 {
            self.page_views_first = order;
        }
        self.page_views += 1;
        if let Some(url) = event.url {
            tally(&mut self.pages, &page::page_of(url), order);
        }
        if let Some(referrer) = event.referrer.and_then(|referrer| page::referrer_of(referrer, event.url)) {
            tally(&mut self.referrers, &referrer, order);
        }
    }

    /// Page views as one of the event types.
    pub fn page_view_tally(&self) -> Option<Tally> {
        (self.page_views > 0).then_some(Tally { n: self.page_views, first: self.page_views_first })
    }

    /// Events of bots.
    pub fn bot_events(&self) -> u64 {
        self.bots.iter().sum()
    }
}

fn tally(tallies: &mut Tallies, name: &str, order: u32) {
    tallies.entry_ref(name).or_insert(Tally { n: 0, first: order }).n += 1;
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
