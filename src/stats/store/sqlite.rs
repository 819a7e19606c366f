//! The embedded store: one SQLite file, `stats.db`, in WAL mode.
//!
//! `synchronous=NORMAL` does not sync at each commit: after a power loss the file is consistent but may be some commits
//! behind, cursor and sums together, and the journal's entries since are counted again. The journal must therefore keep
//! its entries until [`StatsStore::checkpoint`].

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::sqlite_cache::Cache;
use super::sqlite_read::{self as read, Set};
use super::sqlite_write::Writer;
use super::{Committed, Cursor, Expired, Loaded, StatsStore};
use crate::clock::UnixMillis;
use crate::stats::uniques::Uniques;
use crate::stats::window::{Piece, Tier};
use crate::stats::{Delta, StatsError, StatsOptions};

mod embedded {
    refinery::embed_migrations!("migrations/sqlite/stats");
}

/// Size that the WAL is cut back to after a checkpoint; a long read can make it grow beyond.
const WAL_BYTES: u32 = 16 << 20;

/// Statistics in a SQLite file. The only writer of that file.
#[derive(Debug)]
pub struct SqliteStore {
    pub(super) conn: Connection,
    pub(super) options: StatsOptions,
    pub(super) cache: Cache,
}

impl SqliteStore {
    /// Opens the file at `path`, creates it if it is not there, and brings its tables up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or is no database of ours.
    pub fn open(path: &Path, options: StatsOptions) -> Result<Self, StatsError> {
        let mut conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.pragma_update(None, "cache_size", -i64::from(options.sqlite_cache_kib))?;
        conn.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
        conn.pragma_update(None, "wal_autocheckpoint", 2000)?;
        embedded::migrations::runner().run(&mut conn)?;
        let cache = Cache::new(options.cache_bytes);
        Ok(Self { conn, options, cache })
    }

    fn write(&mut self, delta: &Delta, now: UnixMillis) -> Result<Committed, StatsError> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let store = read::cursor(&tx)?.next;
        if store != delta.from {
            return if store >= delta.to {
                Ok(Committed::Already)
            } else {
                Err(StatsError::Fence { store, from: delta.from, to: delta.to })
            };
        }
        Writer { tx: &tx, cache: &mut self.cache, options: &self.options, now }.write(delta)?;
        tx.commit()?;
        Ok(Committed::Applied)
    }
}

impl StatsStore for SqliteStore {
    fn cursor(&mut self) -> Result<Cursor, StatsError> {
        read::cursor(&self.conn)
    }

    fn commit(&mut self, delta: &Delta, now: UnixMillis) -> Result<Committed, StatsError> {
        let done = self.write(delta, now);
        match &done {
            Ok(_) => self.cache.trim(),
            // What the failed transaction wrote is gone, and the cache may hold some of it. The file knows better.
            Err(_) => self.cache.clear(),
        }
        done
    }

    fn load(&mut self, tier: Tier, from: UnixMillis, to: UnixMillis) -> Result<Vec<Loaded>, StatsError> {
        let tx = self.conn.transaction()?;
        let pieces = [Piece { tier, from, to }];
        let mut loaded = Vec::new();
        for (site, name) in read::sites_in(&tx, tier, from, to)? {
            let totals = read::totals(&tx, site, &pieces)?;
            loaded.push(Loaded {
                site: name,
                page_views: totals.page_views,
                bots: totals.bots,
                events: read::named(&tx, site, read::Dim::Event, &pieces)?,
                pages: read::named(&tx, site, read::Dim::Page, &pieces)?,
                visitors: read::uniques(&tx, site, Set::Visitors, &pieces, self.options.exact_uniques)?,
                sessions: read::uniques(&tx, site, Set::Sessions, &pieces, self.options.exact_uniques)?,
            });
        }
        Ok(loaded)
    }

    fn load_visitors(
        &mut self,
        tier: Tier,
        from: UnixMillis,
        to: UnixMillis,
    ) -> Result<Vec<(String, Uniques)>, StatsError> {
        let tx = self.conn.transaction()?;
        let pieces = [Piece { tier, from, to }];
        let mut loaded = Vec::new();
        for (site, name) in read::sites_in(&tx, tier, from, to)? {
            loaded.push((name, read::uniques(&tx, site, Set::Visitors, &pieces, self.options.exact_uniques)?));
        }
        Ok(loaded)
    }

    fn expire(&mut self, now: UnixMillis) -> Result<Expired, StatsError> {
        let expired = super::sqlite_expire::expire(self, now);
        if expired.is_err() {
            self.cache.clear();
        }
        expired
    }

    fn checkpoint(&mut self) -> Result<(), StatsError> {
        // A reader in the way makes it incomplete, not wrong; but then the caller must not rely on it.
        let busy: bool = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(StatsError::Busy("a reader kept the checkpoint from completing"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
