//! Made-up events for the room's tests, the same for the same seed.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::store::{Committed, Cursor, Expired, Loaded, StatsStore};
use super::uniques::Uniques;
use super::window::Tier;
use super::{Delta, StatsError};
use crate::clock::UnixMillis;
use crate::event::codec::Entry;
use crate::event::{BotReason, Event, EventId, PAGE_VIEW, page};

/// An event that owns its texts.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub at: UnixMillis,
    pub site: &'static str,
    pub kind: String,
    pub visitor: u64,
    pub session: u64,
    pub url: Option<String>,
    pub referrer: Option<String>,
    pub bot: Option<BotReason>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            at: 0,
            site: "shop",
            kind: PAGE_VIEW.to_owned(),
            visitor: 1,
            session: 0,
            url: None,
            referrer: None,
            bot: None,
        }
    }
}

impl Made {
    pub fn event(&self) -> Event<'_> {
        Event {
            received: self.at,
            timestamp: self.at,
            site: self.site,
            event_type: &self.kind,
            id: EventId::None,
            visitor: self.visitor,
            session: self.session,
            url: self.url.as_deref(),
            referrer: self.referrer.as_deref(),
            title: None,
            user_id: None,
            session_id: None,
            product_id: None,
            data: None,
            bot: self.bot,
            imported: false,
        }
    }
}

/// Random numbers that are the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64, u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed, 0)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.1 += 1;
        xxh3_64_with_seed(&self.1.to_le_bytes(), self.0) % n
    }
}

/// `n` events of the `span` before `until`, in the order of arrival, which is not that of time.
pub(crate) fn events(seed: u64, n: usize, until: UnixMillis, span: UnixMillis) -> Vec<Made> {
    let mut rng = Rng::new(seed);
    let paths = ["/", "/über-uns", "/produkte/größe?id=", "/カート", "https://shop.example/p/"];
    (0..n)
        .map(|_| {
            let visitor = xxh3_64_with_seed(&rng.below(200).to_le_bytes(), 1) | 1;
            let page = format!("{}{}", paths[rng.below(5) as usize], rng.below(30));
            Made {
                at: until - 1 - rng.below(span as u64) as UnixMillis,
                site: ["shop", "shop", "blog"][rng.below(3) as usize],
                kind: ["click", "purchase", "größe", PAGE_VIEW, PAGE_VIEW, PAGE_VIEW][rng.below(6) as usize].to_owned(),
                visitor,
                session: if rng.below(9) == 0 { 0 } else { visitor ^ rng.below(4) },
                url: (rng.below(20) > 0).then(|| format!("{page}#x")),
                referrer: (rng.below(3) == 0).then(|| format!("https://site{}.example/x", rng.below(25))),
                bot: (rng.below(12) == 0).then(|| BotReason::ALL[rng.below(9) as usize].0),
            }
        })
        .collect()
}

/// The events as deltas of `batch` each, from entry `from` on.
pub(crate) fn deltas(events: &[Made], from: u64, batch: usize) -> Vec<Delta> {
    let mut seq = from;
    let fold = |chunk: &[Made]| {
        let mut delta = Delta::new(seq);
        for made in chunk {
            delta.apply(seq, &Entry::Event(made.event()));
            seq += 1;
        }
        delta
    };
    events.chunks(batch).map(fold).collect()
}

/// What a range of a site comes to, counted the plain way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recount {
    pub page_views: u64,
    pub all: u64,
    pub bots: u64,
    pub bot_reasons: BTreeMap<&'static str, u64>,
    pub events: BTreeMap<String, u64>,
    pub pages: BTreeMap<String, u64>,
    pub referrers: BTreeMap<String, u64>,
    pub visitors: BTreeSet<u64>,
    pub sessions: BTreeSet<u64>,
}

impl Recount {
    pub fn of<'a>(events: impl Iterator<Item = &'a Made>) -> Self {
        let mut sums = Self::default();
        for made in events {
            if let Some(reason) = made.bot {
                sums.bots += 1;
                *sums.bot_reasons.entry(reason.as_str()).or_default() += 1;
                continue;
            }
            sums.all += 1;
            *sums.events.entry(made.kind.clone()).or_default() += 1;
            sums.visitors.insert(made.visitor);
            if made.session != 0 {
                sums.sessions.insert(made.session);
            }
            if made.kind == PAGE_VIEW {
                sums.page_views += 1;
                if let Some(url) = &made.url {
                    *sums.pages.entry(page::page_of(url).into_owned()).or_default() += 1;
                }
                let referrer = made.referrer.as_ref().and_then(|from| page::referrer_of(from, made.url.as_deref()));
                if let Some(referrer) = referrer {
                    *sums.referrers.entry(referrer.into_owned()).or_default() += 1;
                }
            }
        }
        sums
    }

    /// The most frequent, as a list.
    pub fn top(counts: &BTreeMap<String, u64>, limit: usize) -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = counts.iter().map(|(name, n)| (name.clone(), *n)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        all.truncate(limit);
        all
    }
}

/// A store that holds nothing.
pub(crate) struct NoStore;

impl StatsStore for NoStore {
    fn cursor(&mut self) -> Result<Cursor, StatsError> {
        Ok(Cursor::default())
    }

    fn commit(&mut self, _: &Delta, _: UnixMillis) -> Result<Committed, StatsError> {
        Ok(Committed::Applied)
    }

    fn load(&mut self, _: Tier, _: UnixMillis, _: UnixMillis) -> Result<Vec<Loaded>, StatsError> {
        Ok(Vec::new())
    }

    fn load_visitors(&mut self, _: Tier, _: UnixMillis, _: UnixMillis) -> Result<Vec<(String, Uniques)>, StatsError> {
        Ok(Vec::new())
    }

    fn expire(&mut self, _: UnixMillis) -> Result<Expired, StatsError> {
        Ok(Expired::default())
    }

    fn checkpoint(&mut self) -> Result<(), StatsError> {
        Ok(())
    }
}
