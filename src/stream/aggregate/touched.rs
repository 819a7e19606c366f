//! Which numbers a run of journal entries changes. Pure.
//!
//! Only the names are gathered, by site and minute; what they add up to is the statistics' to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashSet;

use super::window::{Size, Window};
use crate::clock::UnixMillis;
use crate::event::{Event, PAGE_VIEW, page};
use crate::stats::Tier;

/// What changed in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Everything, whatever the names say.
    pub all: bool,
    /// Whether anything but bots' events.
    pub people: bool,
    /// Pages.
    pub pages: HashSet<Box<str>>,
    /// Foreign referrers.
    pub referrers: HashSet<Box<str>>,
    /// Event types.
    pub types: HashSet<Box<str>>,
    /// Whether bots' events.
    pub bots: bool,
}

impl Changed {
    /// Everything.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    fn add(&mut self, other: &Changed) {
        self.all |= other.all;
        self.people |= other.people;
        self.bots |= other.bots;
        let union = |mine: &mut HashSet<Box<str>>, theirs: &HashSet<Box<str>>| {
            for name in theirs {
                mine.get_or_insert_with(name, |name| name.clone());
            }
        };
        union(&mut self.pages, &other.pages);
        union(&mut self.referrers, &other.referrers);
        union(&mut self.types, &other.types);
    }
}

#[derive(Debug, Default)]
struct Minute {
    changed: Changed,
    /// Events that came when the minute, hour or day was final.
    late: [u64; 3],
}

/// What the entries `[from, to)` touch.
#[derive(Debug)]
pub struct Touched {
    /// The entry after the last.
    pub to: u64,
    /// When the last event was received.
    pub time: Option<UnixMillis>,
    lateness: UnixMillis,
    minutes: BTreeMap<(Arc<str>, UnixMillis), Minute>,
    sites: HashSet<Arc<str>>,
}

impl Touched {
    /// Begins at an entry.
    pub fn new(from: u64, lateness: UnixMillis) -> Self {
        Self { to: from, time: None, lateness, minutes: BTreeMap::new(), sites: HashSet::new() }
    }

    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.minutes.is_empty()
    }

    /// Minutes that are touched: how much has gathered.
    pub fn len(&self) -> usize {
        self.minutes.len()
    }

    /// Says that the entries before `to` have been looked at.
    pub fn advance(&mut self, to: u64) {
        self.to = self.to.max(to);
    }

    /// Adds an event.
    pub fn apply(&mut self, event: &Event<'_>) {
        self.time = self.time.max(Some(event.received));
        let site = match self.sites.get(event.site) {
            Some(site) => site.clone(),
            None => {
                let site: Arc<str> = Arc::from(event.site);
                self.sites.insert(site.clone());
                site
            }
        };
        let minute = self.minutes.entry((site, Tier::Minute.floor(event.timestamp))).or_default();
        // What is taken in from a log of long ago is no late event: nobody has waited for it.
        if !event.imported {
            let watermark = event.received.saturating_sub(self.lateness);
            for size in Size::ALL {
                let end = size.floor(event.timestamp).saturating_add(size.width());
                minute.late[size.index()] += u64::from(end <= watermark);
            }
        }
        let changed = &mut minute.changed;
        if event.bot.is_some() {
            changed.bots = true;
            return;
        }
        changed.people = true;
        note(&mut changed.types, event.event_type);
        if event.event_type != PAGE_VIEW {
            return;
        }
        if let Some(url) = event.url {
            note(&mut changed.pages, &page::page_of(url));
        }
        if let Some(referrer) = event.referrer.and_then(|referrer| page::referrer_of(referrer, event.url)) {
            note(&mut changed.referrers, &referrer);
        }
    }

    /// The windows of all sizes with what changed in them, and how many late events came for each.
    pub fn windows(&self) -> BTreeMap<Window, (Changed, u64)> {
        let mut windows: BTreeMap<Window, (Changed, u64)> = BTreeMap::new();
        for ((site, start), minute) in &self.minutes {
            for size in Size::ALL {
                let window = Window { site: site.clone(), size, start: size.floor(*start) };
                let (changed, late) = windows.entry(window).or_default();
                changed.add(&minute.changed);
                *late += minute.late[size.index()];
            }
        }
        windows
    }
}

fn note(names: &mut HashSet<Box<str>>, name: &str) {
    names.get_or_insert_with(name, |name| Box::from(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{HOUR, MINUTE};
    use crate::event::{BotReason, EventId};

    fn event<'a>(kind: &'a str, timestamp: UnixMillis, received: UnixMillis) -> Event<'a> {
        Event {
            received,
            timestamp,
            site: "shop",
            event_type: kind,
            id: EventId::None,
            visitor: 1,
            session: 2,
            url: Some("https://a/p?utm_source=x"),
            referrer: Some("https://b/"),
            title: None,
            user_id: None,
            session_id: None,
            product_id: None,
            data: None,
            bot: None,
            imported: false,
        }
    }

    #[test]
    fn an_event_touches_a_minute_an_hour_and_a_day() {
        let mut touched = Touched::new(5, 5 * MINUTE);
        let at = 400_000 * HOUR + 30 * MINUTE;
        touched.apply(&event(PAGE_VIEW, at, at));
        touched.apply(&event("buy", at, at + 7 * MINUTE));
        touched.apply(&Event { bot: Some(BotReason::Crawler), ..event("x", at - MINUTE, at) });
        touched.apply(&Event { imported: true, ..event("old", at, at + 100 * HOUR) });
        touched.advance(9);
        let windows = touched.windows();
        assert_eq!(windows.len(), 4, "two minutes, an hour, a day");
        let of = |size: Size, start| &windows[&Window { site: "shop".into(), size, start: size.floor(start) }];
        let (minute, late) = of(Size::Minute, at);
        assert!(minute.people && !minute.bots);
        assert_eq!(minute.pages.iter().map(|p| &**p).collect::<Vec<_>>(), ["https://a/p"]);
        assert_eq!(minute.types.len(), 3);
        assert_eq!(*late, 1, "the minute had been final for two minutes");
        let (hour, late) = of(Size::Hour, at);
        assert!(hour.people && hour.bots && hour.referrers.len() == 1);
        assert_eq!(*late, 0);
        assert_eq!((touched.to, touched.time), (9, Some(at + 100 * HOUR)));
    }
}
