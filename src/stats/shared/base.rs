//! What the journal no longer tells: an instance's contribution up to a point, from the embedded store.
//!
//! When a slot group is new to this instance or was lost, the journal is read again from its oldest entry. What happened
//! before that entry stands in the embedded store's windows alone: totals, and the windows that begin before the journal
//! does. They are put down at once, with the fence, and entries that are read again leave them out ([`Known`]).
//!
//! The embedded store knows visitors by hash only, so that is how they stand in sets put down here.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::SharedOptions;
use super::fold::{Known, WindowSums, audit_key, hash_member};
use super::keys::{page_hash, site_prefix};
use super::ops::Ops;
use crate::clock::{DAY, UnixMillis};
use crate::event::PAGE_VIEW;
use crate::stats::live_site::WindowName;
use crate::stats::query::{AuditTotals, Queries, audit_totals};
use crate::stats::rollup::{Rollup, WindowKey, rollup};
use crate::stats::store::sqlite_read as read;
use crate::stats::{OTHER, StatsError, Tier};

/// Totals over all days, gathered window by window.
#[derive(Debug, Default)]
pub(super) struct Totals {
    views: BTreeMap<String, u64>,
    pages: HashMap<(String, String), u64>,
}

impl Totals {
    /// Adds a day.
    pub fn add(&mut self, day: &Rollup) {
        let site = day.key.site.to_string();
        for (page, n) in day.pages.iter().filter(|(page, _)| *page != OTHER) {
            *self.pages.entry((site.clone(), page.clone())).or_default() += n;
        }
        *self.views.entry(site).or_default() += day.page_views;
    }

    /// Puts them down.
    pub fn put(self, ops: &mut Ops<'_>) {
        let views = self.views.into_iter().filter(|(_, n)| *n > 0);
        let views = views.map(|(site, n)| (format!("{}pv:total", site_prefix(&site)), n));
        let pages = self.pages.into_iter();
        let pages =
            pages.map(|((site, page), n)| (format!("{}pv:page:{}:total", site_prefix(&site), page_hash(&page)), n));
        ops.counts(None, views.chain(pages));
    }
}

/// Puts down a window that began before `known.since`; quarters have been merged to hours.
pub(super) fn put_window(ops: &mut Ops<'_>, rollup: &Rollup, known: Known, options: &SharedOptions) {
    let window = match rollup.key.tier {
        Tier::Minute => WindowName::Minute,
        Tier::Quarter => WindowName::Hour,
        Tier::Day => WindowName::Day,
    };
    let start = window.start(rollup.key.start);
    if start >= known.since {
        return;
    }
    let members = |set: &crate::stats::uniques::Uniques, what: &str| -> Vec<String> {
        match set.hashes() {
            Some(hashes) => hashes.map(hash_member).collect(),
            None => {
                log::warn!(
                    "a window of {what} from before the journal's oldest entry is a sketch and stays out of the shared store"
                );
                Vec::new()
            }
        }
    };
    let sums = WindowSums {
        page_views: rollup.page_views,
        pages: rollup.pages.iter().filter(|(page, _)| *page != OTHER).map(|(page, n)| (page.as_str(), *n)).collect(),
        types: rollup
            .types
            .iter()
            .filter(|(name, _)| *name != PAGE_VIEW && *name != OTHER)
            .map(|(name, n)| (name.as_str(), *n))
            .collect(),
        visitors: members(&rollup.visitors, "visitors"),
        sessions: members(&rollup.sessions, "sessions"),
    };
    sums.put(ops, &site_prefix(&rollup.key.site), window, start, options);
}

/// Puts down the books.
pub(super) fn put_audit(ops: &mut Ops<'_>, audit: &AuditTotals, instance: &str) {
    for (site, book) in &audit.sites {
        let rejected = book.rejected.iter().map(|(code, n)| (*code, *n));
        let all = [("counted", book.counted), ("duplicate", book.duplicates)].into_iter().chain(rejected);
        let pairs = all.filter(|(_, n)| *n > 0).flat_map(|(code, n)| [format!("{code}:{site}"), n.to_string()]);
        let pairs: Vec<Vec<u8>> = pairs.map(String::into_bytes).collect();
        if !pairs.is_empty() {
            ops.put("hincr", &audit_key(instance), None, pairs);
        }
    }
}

/// What the embedded store tells of the time before the journal's oldest entry; all of one state.
#[derive(Debug)]
pub(super) struct Base {
    pub totals: Totals,
    pub windows: Vec<Rollup>,
    pub audit: AuditTotals,
}

impl Queries {
    /// Totals, books, and the windows before `since` that some shared key is still kept for at `now`.
    pub(super) async fn base(&self, since: UnixMillis, now: UnixMillis) -> Result<Base, StatsError> {
        let limit = self.options().exact_uniques;
        let read = self.answer(None, move |conn, as_of| {
            let mut base = Base { totals: Totals::default(), windows: Vec::new(), audit: audit_totals(conn, as_of)? };
            let windows = |tier, from, to| -> Result<Vec<Rollup>, StatsError> {
                let mut rollups = Vec::new();
                for (site, start) in read::windows_in(conn, tier, from, to)? {
                    rollups.extend(rollup(conn, WindowKey { site: site.into(), tier, start }, limit)?);
                }
                Ok(rollups)
            };
            windows(Tier::Day, UnixMillis::MIN, UnixMillis::MAX)?.iter().for_each(|day| base.totals.add(day));
            for window in WindowName::ALL {
                let mut merged: BTreeMap<WindowKey, Rollup> = BTreeMap::new();
                let from = window.start(now - super::keys::kept(window)) - DAY;
                for rollup in windows(window.tier(), from, since)? {
                    let key = WindowKey { start: window.start(rollup.key.start), ..rollup.key.clone() };
                    merged.entry(key.clone()).or_insert_with(|| Rollup::new(key, limit)).merge(&rollup);
                }
                base.windows.extend(merged.into_values());
            }
            Ok(base)
        });
        Arc::try_unwrap(read.await?).map_err(|_| StatsError::Corrupt("unreachable: nobody else has the answer"))
    }
}
