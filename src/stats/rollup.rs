//! Whole windows of the embedded store: what this instance has counted in them, in absolute numbers.
//!
//! The shared store and the stream hand them on. They never send what was added but what there is, so that a message that
//! comes twice, late or again after years says nothing wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rusqlite::Connection;

use super::query::Queries;
use super::store::sqlite_read::{self as read, Dim, Set};
use super::uniques::Uniques;
use super::window::{Piece, Tier};
use super::{AsOf, StatsError};
use crate::clock::UnixMillis;

/// Which window of which site.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowKey {
    /// The site.
    pub site: Arc<str>,
    /// How wide.
    pub tier: Tier,
    /// Where it starts.
    pub start: UnixMillis,
}

/// A window's numbers.
#[derive(Clone, Debug)]
pub struct Rollup {
    /// Which window.
    pub key: WindowKey,
    /// Page views that were no bot's.
    pub page_views: u64,
    /// Events that were no bot's, page views included.
    pub events: u64,
    /// Bots' events by reason.
    pub bots: BTreeMap<&'static str, u64>,
    /// Events by type.
    pub types: HashMap<String, u64>,
    /// Page views by page.
    pub pages: HashMap<String, u64>,
    /// Page views by foreign referrer.
    pub referrers: HashMap<String, u64>,
    /// Visitors.
    pub visitors: Uniques,
    /// Sessions.
    pub sessions: Uniques,
}

impl Rollup {
    /// Nothing yet; its sets are exact up to `exact_uniques`.
    pub fn new(key: WindowKey, exact_uniques: usize) -> Self {
        Self {
            key,
            page_views: 0,
            events: 0,
            bots: BTreeMap::new(),
            types: HashMap::new(),
            pages: HashMap::new(),
            referrers: HashMap::new(),
            visitors: Uniques::new(exact_uniques),
            sessions: Uniques::new(exact_uniques),
        }
    }

    /// Adds another window's numbers: the quarters of an hour, or another instance's.
    pub fn merge(&mut self, other: &Rollup) {
        self.page_views += other.page_views;
        self.events += other.events;
        for (reason, n) in &other.bots {
            *self.bots.entry(reason).or_default() += n;
        }
        let add = |sums: &mut HashMap<String, u64>, more: &HashMap<String, u64>| {
            for (name, n) in more {
                match sums.get_mut(name) {
                    Some(sum) => *sum += n,
                    None => drop(sums.insert(name.clone(), *n)),
                }
            }
        };
        add(&mut self.types, &other.types);
        add(&mut self.pages, &other.pages);
        add(&mut self.referrers, &other.referrers);
        self.visitors.union(&other.visitors);
        self.sessions.union(&other.sessions);
    }
}

/// Windows of one state of the store.
#[derive(Clone, Debug)]
pub struct Rollups {
    /// How far they count.
    pub as_of: AsOf,
    /// Those of the asked windows that have events, in the order asked.
    pub rollups: Vec<Rollup>,
}

impl Queries {
    /// What the store has counted in these windows.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn rollups(&self, windows: Vec<WindowKey>) -> Result<Rollups, StatsError> {
        let limit = self.options().exact_uniques;
        let read = self.answer(None, move |conn, as_of| {
            let mut rollups = Vec::with_capacity(windows.len());
            for key in windows {
                rollups.extend(rollup(conn, key, limit)?);
            }
            Ok(Rollups { as_of, rollups })
        });
        Ok(Arc::unwrap_or_clone(read.await?))
    }

    /// The windows of `tier` with events that start in `[from, to)`, by start and site.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn windows(&self, tier: Tier, from: UnixMillis, to: UnixMillis) -> Result<Vec<WindowKey>, StatsError> {
        let read = self.answer(None, move |conn, _| {
            let rows = read::windows_in(conn, tier, from, to)?;
            Ok(rows.into_iter().map(|(site, start)| WindowKey { site: site.into(), tier, start }).collect::<Vec<_>>())
        });
        Ok(Arc::unwrap_or_clone(read.await?))
    }
}

/// One window; `None` when nothing was counted in it.
pub(super) fn rollup(conn: &Connection, key: WindowKey, limit: usize) -> Result<Option<Rollup>, StatsError> {
    let Some(site) = read::site(conn, &key.site)? else { return Ok(None) };
    let pieces = [Piece { tier: key.tier, from: key.start, to: key.start + key.tier.width() }];
    let totals = read::totals(conn, site, &pieces)?;
    if totals == read::Totals::default() {
        return Ok(None);
    }
    Ok(Some(Rollup {
        page_views: totals.page_views,
        events: totals.events,
        bots: read::bots(conn, site, &pieces)?,
        types: read::named(conn, site, Dim::Event, &pieces)?,
        pages: read::named(conn, site, Dim::Page, &pieces)?,
        referrers: read::named(conn, site, Dim::Referrer, &pieces)?,
        visitors: read::uniques(conn, site, Set::Visitors, &pieces, limit)?,
        sessions: read::uniques(conn, site, Set::Sessions, &pieces, limit)?,
        key,
    }))
}
