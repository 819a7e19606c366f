//! The port: what a store of statistics must do.
//!
//! A store keeps the sums of every window and, **in the same transaction**, the [`Cursor`] that says which journal entries
//! they cover. That makes counting exactly once: a delta is written only if it begins where the store ends. Whether a
//! commit with an unknown outcome (crash, lost connection, full disk) took effect is answered by the cursor, so the same
//! delta can always be committed again. `sqlite` is the embedded store.
//!
//! The methods block: the owner calls them on a thread that may.

pub mod sqlite;
mod sqlite_cache;
mod sqlite_expire;
pub(super) mod sqlite_read;
mod sqlite_write;

use std::collections::HashMap;

use super::uniques::Uniques;
use super::window::Tier;
use super::{Delta, StatsError};
use crate::clock::UnixMillis;

/// How far a store has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The next entry to count; every one before it is counted.
    pub next: u64,
    /// When the last counted event was received.
    pub time: Option<UnixMillis>,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The delta is counted now.
    Applied,
    /// It was counted before: an earlier commit took effect although it did not say so. What was derived from earlier
    /// commits (`Live`) has to be loaded again.
    Already,
}

/// What a sweep of old windows did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Windows deleted.
    pub windows: u64,
    /// There is more to delete: sweep again soon.
    pub more: bool,
}

/// The sums of a site over some windows, for whoever carries on counting in memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The site.
    pub site: String,
    /// Page views.
    pub page_views: u64,
    /// Bots' events.
    pub bots: u64,
    /// Events by type.
    pub events: HashMap<String, u64>,
    /// Page views by page.
    pub pages: HashMap<String, u64>,
    /// Visitors.
    pub visitors: Uniques,
    /// Sessions.
    pub sessions: Uniques,
}

/// A store of statistics.
pub trait StatsStore {
    /// How far it has counted. After a power loss that may be further than the journal reaches.
    fn cursor(&mut self) -> Result<Cursor, StatsError>;

    /// Counts `delta`, all of it or nothing. Windows that are past their retention at `now` are not written.
    ///
    /// # Errors
    /// [`StatsError::Fence`] when the delta does not begin at the store's cursor and is not counted yet. After any other
    /// error the same delta can be committed again.
    fn commit(&mut self, delta: &Delta, now: UnixMillis) -> Result<Committed, StatsError>;

    /// The sums of each site with events over the windows of `tier` that start in `[from, to)`.
    fn load(&mut self, tier: Tier, from: UnixMillis, to: UnixMillis) -> Result<Vec<Loaded>, StatsError>;

    /// Visitors only, as [`StatsStore::load`].
    fn load_visitors(
        &mut self,
        tier: Tier,
        from: UnixMillis,
        to: UnixMillis,
    ) -> Result<Vec<(String, Uniques)>, StatsError>;

    /// Deletes some of the windows that are past their retention, oldest first; about once a minute, and again at once
    /// while there are more.
    fn expire(&mut self, now: UnixMillis) -> Result<Expired, StatsError>;

    /// Makes every commit so far survive a power loss; before journal entries are deleted that it covers.
    fn checkpoint(&mut self) -> Result<(), StatsError>;
}
