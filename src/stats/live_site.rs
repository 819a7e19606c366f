//! The running windows of one site: counted by the owner, summed up for readers.
//!
//! The owner keeps every page and every visitor of the running minute, hour and day; a summary holds only the numbers and
//! the ten hottest pages. Counts only grow within a window, so the ten are kept up to date by looking at what a delta
//! touched: a page that was not touched cannot enter.

use std::sync::Arc;

use hashbrown::HashMap;
use serde::Deserialize;
use utoipa::ToSchema;

use super::OTHER;
use super::answers::{AsOf, HotPage, Realtime};
use super::delta::{MinuteDelta, SiteDelta};
use super::options::StatsOptions;
use super::recent::{self, Recent};
use super::store::Loaded;
use super::uniques::{Unique, Uniques};
use super::window::Tier;
use crate::clock::{DAY, HOUR, MINUTE, UnixMillis};
use crate::event::PAGE_VIEW;

/// How many hot pages a window shows.
const HOT: usize = 10;
/// Event types told apart in a running window.
const MOST_TYPES: usize = 256;
/// Visitors followed one by one for "now on the site".
const MOST_RECENT: usize = 20_000;

/// A running window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowName {
    /// The running minute.
    Minute,
    /// The running hour of the clock, in UTC.
    Hour,
    /// The running UTC day.
    Day,
}

impl WindowName {
    /// All of them, in the order of their indices.
    pub const ALL: [WindowName; 3] = [WindowName::Minute, WindowName::Hour, WindowName::Day];

    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            WindowName::Minute => "minute",
            WindowName::Hour => "hour",
            WindowName::Day => "day",
        }
    }

    /// The window of a word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// Where the window that runs at `now` begins.
    pub fn start(self, now: UnixMillis) -> UnixMillis {
        now - now.rem_euclid(self.width())
    }

    pub(super) fn width(self) -> UnixMillis {
        match self {
            WindowName::Minute => MINUTE,
            WindowName::Hour => HOUR,
            WindowName::Day => DAY,
        }
    }

    /// The stored windows it is made of.
    pub(super) fn tier(self) -> Tier {
        match self {
            WindowName::Minute => Tier::Minute,
            WindowName::Hour => Tier::Quarter,
            WindowName::Day => Tier::Day,
        }
    }
}

/// A site's running windows, as their owner keeps them.
#[derive(Debug)]
pub(super) struct SiteState {
    name: Arc<str>,
    windows: [WindowState; 3],
    recent: Recent,
    recent_minute: UnixMillis,
}

#[derive(Debug)]
struct WindowState {
    name: WindowName,
    start: UnixMillis,
    page_views: u64,
    bots: u64,
    /// Sorted by type.
    events: Vec<(Arc<str>, u64)>,
    pages: HashMap<Arc<str>, u64>,
    hot: Vec<HotPage>,
    visitors: Uniques,
    sessions: Uniques,
    summary: Option<Arc<WindowSummary>>,
}

/// What readers see of a site.
#[derive(Clone, Debug)]
pub(super) struct SiteSummary {
    pub name: Arc<str>,
    pub windows: [Arc<WindowSummary>; 3],
    pub recent: recent::Minutes,
}

/// What readers see of a window.
#[derive(Clone, Debug, Default)]
pub(super) struct WindowSummary {
    pub start: UnixMillis,
    pub page_views: u64,
    pub bots: u64,
    pub events: Vec<(Arc<str>, u64)>,
    pub hot: Vec<HotPage>,
    pub visitors: Unique,
    pub sessions: Unique,
}

impl SiteState {
    pub fn new(name: Arc<str>, now: UnixMillis, options: &StatsOptions) -> Self {
        Self {
            name,
            windows: WindowName::ALL.map(|name| WindowState::new(name, name.start(now), options)),
            recent: Recent::new(MOST_RECENT),
            recent_minute: 0,
        }
    }

    /// Counts what a delta adds to the windows that run at `now`.
    pub fn apply(&mut self, delta: &SiteDelta, now: UnixMillis, options: &StatsOptions) {
        let minute = WindowName::Minute.start(now);
        if self.recent_minute != minute {
            self.recent_minute = minute;
            self.recent.roll(now);
        }
        for window in &mut self.windows {
            window.roll(now, options);
        }
        for minute in &delta.minutes {
            for window in &mut self.windows {
                window.apply(minute, now, options);
            }
            for visitor in &minute.visitors {
                self.recent.see(*visitor, minute.start, now);
            }
        }
    }

    /// Takes over what the store has counted in a window that runs at `now`.
    pub fn load(&mut self, name: WindowName, loaded: Loaded, options: &StatsOptions) {
        let window = &mut self.windows[name as usize];
        window.page_views = loaded.page_views;
        window.bots = loaded.bots;
        window.events = loaded.events.into_iter().map(|(kind, n)| (Arc::from(kind), n)).collect();
        window.events.sort_unstable();
        for (page, n) in loaded.pages {
            window.view(&Arc::from(page), n, options.max_keys);
        }
        window.visitors = loaded.visitors;
        window.sessions = loaded.sessions;
        window.summary = None;
    }

    /// Takes over the visitors of a minute. A sketch cannot say who they were: after a restart in a crowd, the number of
    /// the last five minutes is too small for as long.
    pub fn load_recent(&mut self, visitors: &Uniques, start: UnixMillis, now: UnixMillis) {
        for visitor in visitors.hashes().into_iter().flatten() {
            self.recent.see(visitor, start, now);
        }
    }

    /// Whether nothing of it can be seen any more at `now`.
    pub fn is_over(&self, now: UnixMillis) -> bool {
        self.windows.iter().all(|window| window.start != window.name.start(now)) && now - self.recent_minute > HOUR
    }

    pub fn summary(&mut self) -> SiteSummary {
        let recent = self.recent.minutes();
        SiteSummary { name: self.name.clone(), windows: self.windows.each_mut().map(WindowState::summary), recent }
    }
}

impl WindowState {
    fn new(name: WindowName, start: UnixMillis, options: &StatsOptions) -> Self {
        Self {
            name,
            start,
            page_views: 0,
            bots: 0,
            events: Vec::new(),
            pages: HashMap::new(),
            hot: Vec::new(),
            visitors: Uniques::new(options.exact_uniques),
            sessions: Uniques::new(options.exact_uniques),
            summary: None,
        }
    }

    /// Begins again when another window runs at `now`. One that runs a little ahead of `now` stays: clocks are set back.
    fn roll(&mut self, now: UnixMillis, options: &StatsOptions) {
        let start = self.name.start(now);
        if self.start < start || self.start > start + self.name.width() {
            *self = Self::new(self.name, start, options);
        }
    }

    fn apply(&mut self, minute: &MinuteDelta, now: UnixMillis, options: &StatsOptions) {
        let start = self.name.start(minute.start);
        if start > self.start && start <= self.name.start(now) + self.name.width() {
            *self = Self::new(self.name, start, options);
        }
        if start != self.start {
            return;
        }
        self.page_views += minute.page_views;
        self.bots += minute.bot_events();
        for (kind, tally) in &minute.other_types {
            self.event(kind, tally.n);
        }
        if minute.page_views > 0 {
            self.event(PAGE_VIEW, minute.page_views);
        }
        for (page, tally) in &minute.pages {
            self.view(page, tally.n, options.max_keys);
        }
        minute.visitors.iter().for_each(|visitor| {
            self.visitors.insert(*visitor);
        });
        minute.sessions.iter().for_each(|session| {
            self.sessions.insert(*session);
        });
        self.summary = None;
    }

    fn event(&mut self, mut kind: &str, n: u64) {
        let mut place = self.events.binary_search_by(|(known, _)| (**known).cmp(kind));
        if place.is_err() && self.events.len() >= MOST_TYPES {
            kind = OTHER;
            place = self.events.binary_search_by(|(known, _)| (**known).cmp(kind));
        }
        match place {
            Ok(at) => self.events[at].1 += n,
            Err(at) => self.events.insert(at, (Arc::from(kind), n)),
        }
    }

    fn view(&mut self, page: &Arc<str>, n: u64, most: usize) {
        let full = self.pages.len() >= most;
        let views = match self.pages.get_mut(page) {
            Some(views) => {
                *views += n;
                *views
            }
            // In no list, but in the page views.
            None if full || **page == *OTHER => return,
            None => *self.pages.entry(page.clone()).insert(n).get(),
        };
        let before = |a: &HotPage, views: u64, url: &str| a.views > views || (a.views == views && *a.url < *url);
        if let Some(at) = self.hot.iter().position(|hot| hot.url == *page) {
            self.hot.remove(at);
        } else if self.hot.len() == HOT && self.hot.last().is_some_and(|last| before(last, views, page)) {
            return;
        }
        let at = self.hot.partition_point(|hot| before(hot, views, page));
        self.hot.insert(at, HotPage { url: page.clone(), views });
        self.hot.truncate(HOT);
    }

    fn summary(&mut self) -> Arc<WindowSummary> {
        if let Some(summary) = &self.summary {
            return summary.clone();
        }
        let summary = Arc::new(WindowSummary {
            start: self.start,
            page_views: self.page_views,
            bots: self.bots,
            events: self.events.clone(),
            hot: self.hot.clone(),
            visitors: self.visitors.count(),
            sessions: self.sessions.count(),
        });
        self.summary = Some(summary.clone());
        summary
    }
}

impl WindowSummary {
    /// The answer for the window that runs at `now`: empty if this is an earlier one.
    pub fn realtime(&self, site: &Arc<str>, name: WindowName, now: UnixMillis, as_of: AsOf) -> Realtime {
        let empty = Self::default();
        let start = name.start(now);
        let of = if self.start == start { self } else { &empty };
        let error_bound = Unique::widest([of.visitors.error_bound, of.sessions.error_bound]);
        Realtime {
            site: site.clone(),
            time_window: name.as_str(),
            window_start: start / 1000,
            page_views: of.page_views,
            unique_visitors: of.visitors.count,
            sessions: of.sessions.count,
            bots: of.bots,
            hot_pages: of.hot.clone(),
            events: of.events.clone(),
            exact: error_bound.is_none(),
            error_bound,
            as_of,
            degraded: false,
        }
    }
}
