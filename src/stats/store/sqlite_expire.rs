//! Deleting what is past its retention, a little at a time, so that no commit waits long for it.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::Expired;
use super::sqlite::SqliteStore;
use super::sqlite_read::Dim;
use crate::clock::{DAY, UnixMillis};
use crate::stats::StatsError;
use crate::stats::window::Tier;

/// Windows per transaction: a full one has tens of thousands of rows.
const WINDOWS: i64 = 16;
/// Rows after which a call is enough.
const ROWS: usize = 20_000;

/// One sweep.
pub(super) fn expire(store: &mut SqliteStore, now: UnixMillis) -> Result<Expired, StatsError> {
    let mut expired = Expired::default();
    let mut rows = 0;
    for tier in Tier::ALL {
        let before = store.options.retention.deleted_before(tier, now);
        if before == UnixMillis::MIN {
            continue;
        }
        store.cache.forget_windows(tier, before);
        let sites: Vec<i64> = {
            let mut statement = store.conn.prepare_cached("SELECT id FROM stats_sites")?;
            statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        for site in sites {
            loop {
                let (windows, deleted) = delete(store, site, tier, before)?;
                expired.windows += windows as u64;
                rows += deleted;
                if rows >= ROWS {
                    expired.more = true;
                    return Ok(expired);
                }
                if windows < WINDOWS as usize {
                    break;
                }
            }
        }
        // All windows of this tier are gone before `before`: so are the names that only they used.
        if sweep_names(store, tier, before.div_euclid(DAY))? {
            expired.more = true;
            return Ok(expired);
        }
    }
    Ok(expired)
}

fn delete(store: &mut SqliteStore, site: i64, tier: Tier, before: UnixMillis) -> Result<(usize, usize), StatsError> {
    // Nobody else writes, so what is found is still there in the transaction, which most sites need not begin.
    let ids: Vec<i64> = {
        let sql = "SELECT id FROM stats_windows WHERE site = ?1 AND tier = ?2 AND start < ?3 ORDER BY start LIMIT ?4";
        let mut statement = store.conn.prepare_cached(sql)?;
        statement.query_map(params![site, tier as u8, before, WINDOWS], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    if ids.is_empty() {
        return Ok((0, 0));
    }
    let tx = store.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut rows = 0;
    for id in &ids {
        for sql in [
            "DELETE FROM stats_counts WHERE window = ?1",
            "DELETE FROM stats_uniques WHERE window = ?1",
            "DELETE FROM stats_windows WHERE id = ?1",
        ] {
            rows += tx.prepare_cached(sql)?.execute([id])?;
        }
    }
    tx.commit()?;
    Ok((ids.len(), rows))
}

/// Drops the names of a day before `until` that no window uses any more, one day a call; true if there may be more.
///
/// Up to `max_keys` names a day are in the day's own window. Only days with more names than that can have unused ones:
/// a site whose URLs never repeat.
fn sweep_names(store: &mut SqliteStore, tier: Tier, until: i64) -> Result<bool, StatsError> {
    if tier == Tier::Day {
        // The days themselves are gone, and all their names with them.
        let sql = "DELETE FROM stats_names WHERE site IN (SELECT id FROM stats_sites) AND day < ?1";
        store.conn.prepare_cached(sql)?.execute([until])?;
        store.cache.forget_names(until * DAY);
        return Ok(false);
    }
    let tx = store.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let swept: Option<i64> = tx
        .prepare_cached("SELECT day FROM stats_swept WHERE tier = ?1")?
        .query_row([tier as u8], |row| row.get(0))
        .optional()?;
    if swept.is_some_and(|swept| swept >= until) {
        return Ok(false);
    }
    let day = next_day(&tx, swept.unwrap_or(0), until)?;
    if let Some(day) = day {
        let sites: Vec<i64> = {
            let mut statement = tx.prepare_cached("SELECT id FROM stats_sites")?;
            statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        for site in sites {
            for dim in Dim::NAMED {
                let sql = "DELETE FROM stats_names WHERE site = ?1 AND day = ?2 AND dim = ?3
                           AND (SELECT count(*) FROM stats_names WHERE site = ?1 AND day = ?2 AND dim = ?3) > ?5
                           AND id NOT IN (SELECT c.name FROM stats_windows w CROSS JOIN stats_counts c
                                          ON c.window = w.id AND c.dim = ?3
                                          WHERE w.site = ?1 AND w.tier IN (1, 2, 3) AND w.start >= ?2 * ?4
                                          AND w.start < (?2 + 1) * ?4)";
                tx.prepare_cached(sql)?.execute(params![site, day, dim as u8, DAY, store.options.max_keys as i64])?;
            }
        }
    }
    tx.prepare_cached("INSERT OR REPLACE INTO stats_swept (tier, day) VALUES (?1, ?2)")?
        .execute(params![tier as u8, day.map_or(until, |day| day + 1)])?;
    tx.commit()?;
    store.cache.forget_names(until * DAY);
    Ok(day.is_some())
}

/// The first day from `from` on, before `until`, that was counted.
fn next_day(conn: &Connection, from: i64, until: i64) -> Result<Option<i64>, StatsError> {
    let sql = "SELECT min(w.start) FROM stats_sites s CROSS JOIN stats_windows w
               ON w.site = s.id AND w.tier = 3 AND w.start >= ?1 AND w.start < ?2";
    let range = params![from.saturating_mul(DAY), until.saturating_mul(DAY)];
    let start: Option<i64> = conn.prepare_cached(sql)?.query_row(range, |row| row.get(0))?;
    Ok(start.map(|start| start.div_euclid(DAY)))
}
