//! Reading the store's rows: the questions that commits, the live state and queries ask of the tables.
//!
//! Every function takes a connection that is in a transaction, so that what one answer is put together from belongs to one
//! state of the store, the cursor included.

use std::collections::{BTreeMap, HashMap};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Cursor;
use crate::clock::{DAY, UnixMillis};
use crate::event::{BotReason, RejectCode};
use crate::stats::uniques::Uniques;
use crate::stats::window::{Piece, Tier};
use crate::stats::{OTHER, StatsError};

/// What is counted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(in crate::stats) enum Dim {
    Page = 1,
    Referrer = 2,
    Event = 3,
    Bot = 4,
}

impl Dim {
    /// Those whose names are texts.
    pub const NAMED: [Dim; 3] = [Dim::Page, Dim::Referrer, Dim::Event];

    /// Its place in arrays of [`Dim::NAMED`].
    pub fn index(self) -> usize {
        self as usize - 1
    }

    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::NAMED.into_iter().find(|dim| *dim as u8 == byte)
    }
}

/// The sets of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(in crate::stats) enum Set {
    Visitors = 1,
    Sessions = 2,
}

impl Set {
    /// Its place in arrays.
    pub fn index(self) -> usize {
        self as usize - 1
    }
}

/// Sums of windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::stats) struct Totals {
    pub page_views: u64,
    pub events: u64,
    pub bots: u64,
}

pub(in crate::stats) fn cursor(conn: &Connection) -> Result<Cursor, StatsError> {
    let row = |row: &Row<'_>| Ok(Cursor { next: row.get::<_, i64>(0)? as u64, time: row.get(1)? });
    Ok(conn.prepare_cached("SELECT next, time FROM stats_cursor")?.query_row([], row)?)
}

pub(in crate::stats) fn site(conn: &Connection, name: &str) -> Result<Option<i64>, StatsError> {
    let mut find = conn.prepare_cached("SELECT id FROM stats_sites WHERE name = ?1")?;
    Ok(find.query_row([name], |row| row.get(0)).optional()?)
}

/// Sites with counted events, by name.
pub(in crate::stats) fn sites(conn: &Connection) -> Result<Vec<String>, StatsError> {
    let sql = "SELECT s.name FROM stats_sites s JOIN stats_audit a ON a.site = s.id AND a.code = -1 ORDER BY s.name";
    let mut statement = conn.prepare_cached(sql)?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names)
}

/// Sites with events in windows of `tier` that start in `[from, to)`.
pub(super) fn sites_in(
    conn: &Connection,
    tier: Tier,
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Vec<(i64, String)>, StatsError> {
    let sql = "SELECT id, name FROM stats_sites s WHERE EXISTS
               (SELECT 1 FROM stats_windows w WHERE w.site = s.id AND w.tier = ?1 AND w.start >= ?2 AND w.start < ?3)";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![tier as u8, from, to], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Windows of `tier` that start in `[from, to)`: site and start.
pub(in crate::stats) fn windows_in(
    conn: &Connection,
    tier: Tier,
    from: UnixMillis,
    to: UnixMillis,
) -> Result<Vec<(String, UnixMillis)>, StatsError> {
    let sql = "SELECT s.name, w.start FROM stats_sites s JOIN stats_windows w ON w.site = s.id
               WHERE w.tier = ?1 AND w.start >= ?2 AND w.start < ?3 ORDER BY w.start, s.name";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![tier as u8, from, to], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(in crate::stats) fn totals(conn: &Connection, site: i64, pieces: &[Piece]) -> Result<Totals, StatsError> {
    let sql = "SELECT sum(page_views), sum(events), sum(bots) FROM stats_windows
               WHERE site = ?1 AND tier = ?2 AND start >= ?3 AND start < ?4";
    let mut statement = conn.prepare_cached(sql)?;
    let mut totals = Totals::default();
    for piece in pieces {
        let row = statement.query_row(params![site, piece.tier as u8, piece.from, piece.to], |row| {
            let sum = |at| row.get::<_, Option<i64>>(at).map(|n| n.unwrap_or(0) as u64);
            Ok((sum(0)?, sum(1)?, sum(2)?))
        })?;
        totals.page_views += row.0;
        totals.events += row.1;
        totals.bots += row.2;
    }
    Ok(totals)
}

/// How often each name occurred, [`OTHER`] included.
pub(in crate::stats) fn named(
    conn: &Connection,
    site: i64,
    dim: Dim,
    pieces: &[Piece],
) -> Result<HashMap<String, u64>, StatsError> {
    let mut days: BTreeMap<i64, hashbrown::HashMap<u32, u64>> = BTreeMap::new();
    for_counts(conn, site, dim, pieces, |day, name, n| *days.entry(day).or_default().entry(name).or_default() += n)?;

    let mut sums: HashMap<String, u64> = HashMap::new();
    let mut add = |name: &str, n: u64| match sums.get_mut(name) {
        Some(sum) => *sum += n,
        None => drop(sums.insert(name.to_owned(), n)),
    };
    let sql = "SELECT name, id FROM stats_names WHERE site = ?1 AND day = ?2 AND dim = ?3";
    let mut names = conn.prepare_cached(sql)?;
    for (day, mut counts) in days {
        if let Some(n) = counts.remove(&0) {
            add(OTHER, n);
        }
        let mut rows = names.query(params![site, day, dim as u8])?;
        while !counts.is_empty()
            && let Some(row) = rows.next()?
        {
            if let Some(n) = counts.remove(&row.get::<_, u32>(1)?) {
                add(text(row, 0)?, n);
            }
        }
        if !counts.is_empty() {
            return Err(StatsError::Corrupt("a counter's name is missing"));
        }
    }
    Ok(sums)
}

/// Bots' events by reason.
pub(in crate::stats) fn bots(
    conn: &Connection,
    site: i64,
    pieces: &[Piece],
) -> Result<BTreeMap<&'static str, u64>, StatsError> {
    let mut reasons = BTreeMap::new();
    for_counts(conn, site, Dim::Bot, pieces, |_, name, n| {
        if let Some(reason) = u8::try_from(name).ok().and_then(BotReason::from_byte) {
            *reasons.entry(reason.as_str()).or_default() += n;
        }
    })?;
    Ok(reasons)
}

fn for_counts(
    conn: &Connection,
    site: i64,
    dim: Dim,
    pieces: &[Piece],
    mut each: impl FnMut(i64, u32, u64),
) -> Result<(), StatsError> {
    let sql =
        "SELECT w.start, c.name, c.n FROM stats_windows w CROSS JOIN stats_counts c ON c.window = w.id AND c.dim = ?5
               WHERE w.site = ?1 AND w.tier = ?2 AND w.start >= ?3 AND w.start < ?4";
    let mut statement = conn.prepare_cached(sql)?;
    for piece in pieces {
        let mut rows = statement.query(params![site, piece.tier as u8, piece.from, piece.to, dim as u8])?;
        while let Some(row) = rows.next()? {
            each(row.get::<_, i64>(0)?.div_euclid(DAY), row.get(1)?, row.get::<_, i64>(2)? as u64);
        }
    }
    Ok(())
}

/// The union of the sets of `pieces`.
pub(in crate::stats) fn uniques(
    conn: &Connection,
    site: i64,
    kind: Set,
    pieces: &[Piece],
    limit: usize,
) -> Result<Uniques, StatsError> {
    let sql = "SELECT u.data FROM stats_windows w CROSS JOIN stats_uniques u ON u.window = w.id AND u.kind = ?5
               WHERE w.site = ?1 AND w.tier = ?2 AND w.start >= ?3 AND w.start < ?4";
    let mut statement = conn.prepare_cached(sql)?;
    let mut set = Uniques::new(limit);
    for piece in pieces {
        let mut rows = statement.query(params![site, piece.tier as u8, piece.from, piece.to, kind as u8])?;
        while let Some(row) = rows.next()? {
            set.absorb(blob(row, 0)?)?;
        }
    }
    Ok(set)
}

/// What became of the entries, by site.
pub(in crate::stats) fn audit(conn: &Connection) -> Result<BTreeMap<String, crate::stats::delta::Audit>, StatsError> {
    let sql = "SELECT s.name, a.code, a.n FROM stats_audit a JOIN stats_sites s ON s.id = a.site";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut sites: BTreeMap<String, crate::stats::delta::Audit> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let audit = sites.entry(row.get(0)?).or_default();
        let n = row.get::<_, i64>(2)? as u64;
        match row.get::<_, i64>(1)? {
            -1 => audit.counted = n,
            0 => audit.duplicates = n,
            code => {
                let code = u8::try_from(code).ok().and_then(RejectCode::from_byte);
                audit.rejected.insert(code.ok_or(StatsError::Corrupt("an unknown code in the audit"))?, n);
            }
        }
    }
    Ok(sites)
}

/// A text that lives as long as the row, without a copy.
pub(super) fn text<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r str, StatsError> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_err(|_| StatsError::Corrupt("a name is no UTF-8")),
        _ => Err(StatsError::Corrupt("a name is no text")),
    }
}

/// Bytes that live as long as the row.
pub(super) fn blob<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r [u8], StatsError> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => Ok(bytes),
        _ => Err(StatsError::Corrupt("a set is no blob")),
    }
}
