//! Which key holds what.
//!
//! The names of the default site are those of the OpenResty deployment that Tidegate replaces, so that both can work on
//! one Redis: `pv:*`, `uv:*`, `sessions:*`, `hot_pages:*`, `event_count:*`, `user_events:*`. Other sites have a prefix,
//! and what that deployment did not have begins with `tg:`.
//!
//! One script can only touch keys of one slot. In a Redis Cluster every key therefore carries the tag of one of
//! [`GROUPS`] slot groups, `{tg-07}`, which follows from its name; each group has a fence of its own.

use std::sync::Arc;

use md5::{Digest, Md5};
use xxhash_rust::xxh3::xxh3_64;

use super::Role;
use crate::clock::{DAY, HOUR, MINUTE, SECOND, UnixMillis};
use crate::event::DEFAULT_SITE;
use crate::stats::live_site::WindowName;
use crate::stats::window::Tier;

/// Slot groups of a cluster.
pub(super) const GROUPS: usize = 16;

/// Makes keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: Arc<str>,
    groups: usize,
}

/// The kinds of what an instance publishes of a window, each in a hash with a field an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::stats) enum Part {
    Sums,
    Pages,
    Referrers,
    Visitors,
    Sessions,
}

impl Part {
    pub const ALL: [Part; 5] = [Part::Sums, Part::Pages, Part::Referrers, Part::Visitors, Part::Sessions];

    pub fn as_str(self) -> &'static str {
        match self {
            Part::Sums => "sums",
            Part::Pages => "pages",
            Part::Referrers => "referrers",
            Part::Visitors => "visitors",
            Part::Sessions => "sessions",
        }
    }
}

impl Keys {
    /// Keys under `prefix`, in a cluster or not.
    pub fn new(prefix: &str, cluster: bool) -> Self {
        Self { prefix: Arc::from(prefix), groups: if cluster { GROUPS } else { 1 } }
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The group of a name.
    pub fn group(&self, name: &str) -> usize {
        if self.groups == 1 { 0 } else { (xxh3_64(name.as_bytes()) % self.groups as u64) as usize }
    }

    /// The key of a name.
    pub fn key(&self, name: &str) -> String {
        self.in_group(self.group(name), name)
    }

    /// The key of a name in a given group.
    pub fn in_group(&self, group: usize, name: &str) -> String {
        if self.groups == 1 {
            format!("{}{name}", self.prefix)
        } else {
            format!("{{{}tg-{group:02}}}:{name}", self.prefix)
        }
    }

    /// The fence of an instance's publisher in a group.
    pub fn fence(&self, role: Role, group: usize, instance: &str) -> String {
        let name = match role {
            Role::Counts => "fence",
            Role::Events => "events-fence",
        };
        self.in_group(group, &format!("tg:{name}:{instance}"))
    }
}

/// What stands before the names of a site.
pub(super) fn site_prefix(site: &str) -> String {
    if site == DEFAULT_SITE { String::new() } else { format!("site:{site}:") }
}

/// The hash by which a page's counters are named.
pub(super) fn page_hash(page: &str) -> String {
    Md5::digest(page.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the window that holds `at` begins, in Unix seconds as keys have it.
pub(super) fn seconds(window: WindowName, at: UnixMillis) -> i64 {
    window.start(at) / SECOND
}

/// Hot pages: the hour's name is the older deployment's, which has no other window.
pub(super) fn hot_pages(prefix: &str, window: WindowName, start: i64) -> String {
    match window {
        WindowName::Hour => format!("{prefix}hot_pages:{start}"),
        _ => format!("{prefix}hot_pages:{}:{start}", window.as_str()),
    }
}

/// The hash that has each instance's part of a window.
pub(super) fn part(site: &str, tier: Tier, start: UnixMillis, part: Part) -> String {
    let tier = match tier {
        Tier::Minute => "minute",
        Tier::Quarter => "quarter",
        Tier::Day => "day",
    };
    format!("tg:{}:{site}:{tier}:{}", part.as_str(), start / SECOND)
}

/// How long after its end a window of visitors, sessions or events is kept.
pub(super) fn kept(window: WindowName) -> UnixMillis {
    match window {
        WindowName::Minute => HOUR,
        WindowName::Hour => 2 * DAY,
        WindowName::Day => 30 * DAY,
    }
}

/// The same of hot pages.
pub(super) fn hot_pages_kept(window: WindowName) -> UnixMillis {
    match window {
        WindowName::Minute => HOUR,
        WindowName::Hour => DAY,
        WindowName::Day => 30 * DAY,
    }
}

/// When a window that begins at `start` goes, if it is kept for `kept` after its end: Unix seconds.
pub(super) fn expires(window: WindowName, start: UnixMillis, kept: UnixMillis) -> i64 {
    let width = match window {
        WindowName::Minute => MINUTE,
        WindowName::Hour => HOUR,
        WindowName::Day => DAY,
    };
    (start + width + kept) / SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_older_deployment() {
        let keys = Keys::new("", false);
        assert_eq!(keys.key("pv:total"), "pv:total");
        assert_eq!(hot_pages(&site_prefix(DEFAULT_SITE), WindowName::Hour, 3600), "hot_pages:3600");
        assert_eq!(hot_pages(&site_prefix("shop"), WindowName::Minute, 60), "site:shop:hot_pages:minute:60");
        assert_eq!(page_hash("hello"), "5d41402abc4b2a76b9719d911017c592");
        assert_eq!(expires(WindowName::Minute, 0, kept(WindowName::Minute)), 3660);
    }

    #[test]
    fn in_a_cluster_a_name_says_its_group() {
        let keys = Keys::new("x:", true);
        let group = keys.group("pv:total");
        assert_eq!(keys.key("pv:total"), format!("{{x:tg-{group:02}}}:pv:total"));
        let groups: std::collections::HashSet<usize> = (0..500).map(|i| keys.group(&format!("pv:page:{i}"))).collect();
        assert_eq!(groups.len(), GROUPS);
        assert!(keys.fence(Role::Counts, 3, "i").starts_with("{x:tg-03}:"));
    }
}
