//! Where the windows of a site are read from: the embedded store's rows, or what the instances have published.
//!
//! An answer is put together from windows by the same code, wherever they come from.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use super::StatsError;
use super::store::sqlite_read::{self as read, Dim, Set, Totals};
use super::uniques::Uniques;
use super::window::Piece;

/// The windows of one site.
pub(super) trait Windows {
    /// Their sums.
    fn totals(&self, pieces: &[Piece]) -> Result<Totals, StatsError>;
    /// How often each name occurred.
    fn named(&self, dim: Dim, pieces: &[Piece]) -> Result<HashMap<String, u64>, StatsError>;
    /// Bots' events by reason.
    fn bots(&self, pieces: &[Piece]) -> Result<BTreeMap<&'static str, u64>, StatsError>;
    /// The union of their sets.
    fn uniques(&self, set: Set, pieces: &[Piece]) -> Result<Uniques, StatsError>;
}

/// The embedded store's rows.
pub(super) struct Rows<'c> {
    conn: &'c Connection,
    /// `None` when nothing was counted of the site.
    site: Option<i64>,
    limit: usize,
}

impl<'c> Rows<'c> {
    /// Of a site; sets are exact up to `limit`.
    pub fn of(conn: &'c Connection, site: &str, limit: usize) -> Result<Self, StatsError> {
        Ok(Self { conn, site: read::site(conn, site)?, limit })
    }
}

impl Windows for Rows<'_> {
    fn totals(&self, pieces: &[Piece]) -> Result<Totals, StatsError> {
        self.site.map_or_else(|| Ok(Totals::default()), |site| read::totals(self.conn, site, pieces))
    }

    fn named(&self, dim: Dim, pieces: &[Piece]) -> Result<HashMap<String, u64>, StatsError> {
        self.site.map_or_else(|| Ok(HashMap::new()), |site| read::named(self.conn, site, dim, pieces))
    }

    fn bots(&self, pieces: &[Piece]) -> Result<BTreeMap<&'static str, u64>, StatsError> {
        self.site.map_or_else(|| Ok(BTreeMap::new()), |site| read::bots(self.conn, site, pieces))
    }

    fn uniques(&self, set: Set, pieces: &[Piece]) -> Result<Uniques, StatsError> {
        let none = || Ok(Uniques::new(self.limit));
        self.site.map_or_else(none, |site| read::uniques(self.conn, site, set, pieces, self.limit))
    }
}
