//! Writing one delta, inside a transaction that the caller opened and commits.
//!
//! The minutes of a site are taken together by UTC day, whose names they share: each name's number is looked up once, then
//! the minutes, their quarters and the day are written. Rows are written in the order of their numbers, which are
//! neighbours in the file.

use std::sync::Arc;

use hashbrown::HashMap;
use rusqlite::{Connection, params};
use xxhash_rust::xxh3::xxh3_64;

use super::sqlite_cache::{Cache, Names, OpenSet, Window};
use super::sqlite_read::{Dim, Set};
use crate::clock::UnixMillis;
use crate::event::BotReason;
use crate::stats::delta::{Audit, MinuteDelta, SiteDelta, Tally};
use crate::stats::uniques::encode_exact;
use crate::stats::window::Tier;
use crate::stats::{Delta, StatsError, StatsOptions};

/// A set is written whole again when it lies in this many parts.
const MOST_PARTS: u32 = 24;

pub(super) struct Writer<'a> {
    pub tx: &'a Connection,
    pub cache: &'a mut Cache,
    pub options: &'a StatsOptions,
    pub now: UnixMillis,
}

/// A name of the day, and its number once it has one.
struct Slot<'d> {
    name: &'d Arc<str>,
    id: Option<u32>,
}

/// An occurrence of a name, by its slot.
#[derive(Clone, Copy)]
struct Row {
    slot: u32,
    n: u64,
    first: u32,
}

/// The minutes of one site and day.
struct Day<'d> {
    site: i64,
    start: UnixMillis,
    minutes: Vec<&'d MinuteDelta>,
    slots: [Vec<Slot<'d>>; 3],
    /// By dimension and minute.
    rows: [Vec<Vec<Row>>; 3],
}

impl Writer<'_> {
    pub fn write(mut self, delta: &Delta) -> Result<(), StatsError> {
        for site in &delta.sites {
            self.site(site)?;
        }
        self.tx
            .prepare_cached("UPDATE stats_cursor SET next = ?1, time = coalesce(?2, time)")?
            .execute(params![delta.to as i64, delta.time])?;
        Ok(())
    }

    fn site(&mut self, delta: &SiteDelta) -> Result<(), StatsError> {
        let site = self.cache.site(self.tx, &delta.name)?;
        self.audit(site, &delta.audit)?;
        let mut minutes: Vec<&MinuteDelta> = delta.minutes.iter().collect();
        minutes.sort_unstable_by_key(|minute| minute.start);
        for day in minutes.chunk_by(|a, b| Tier::Day.floor(a.start) == Tier::Day.floor(b.start)) {
            self.day(site, day)?;
        }
        Ok(())
    }

    fn audit(&mut self, site: i64, audit: &Audit) -> Result<(), StatsError> {
        let sql = "INSERT INTO stats_audit (site, code, n) VALUES (?1, ?2, ?3)
                   ON CONFLICT DO UPDATE SET n = n + excluded.n";
        let mut add = self.tx.prepare_cached(sql)?;
        let rejected = audit.rejected.iter().map(|(code, n)| (i64::from(*code as u8), *n));
        for (code, n) in [(-1, audit.counted), (0, audit.duplicates)].into_iter().chain(rejected) {
            if n > 0 {
                add.execute(params![site, code, n as i64])?;
            }
        }
        Ok(())
    }

    fn day(&mut self, site: i64, minutes: &[&MinuteDelta]) -> Result<(), StatsError> {
        let Some(first) = minutes.first() else { return Ok(()) };
        let kept = |tier: Tier, start| start >= self.options.retention.deleted_before(tier, self.now);
        let start = Tier::Day.floor(first.start);
        if !kept(Tier::Day, start) {
            return Ok(());
        }
        let mut tiers = Vec::with_capacity(3);
        for tier in Tier::ALL {
            let windows = minutes.chunk_by(|a, b| tier.floor(a.start) == tier.floor(b.start));
            let mut at = 0;
            for window in windows {
                let range = at..at + window.len();
                at = range.end;
                let start = tier.floor(window[0].start);
                if kept(tier, start) {
                    tiers.push((tier, start, range));
                }
            }
        }
        let mut day =
            Day { site, start, minutes: minutes.to_vec(), slots: Default::default(), rows: Default::default() };
        self.number(&mut day)?;
        for (tier, start, range) in tiers {
            self.window(&mut day, tier, start, range)?;
        }
        Ok(())
    }

    /// Finds the numbers of the names, once for all windows of the day.
    fn number<'d>(&mut self, day: &mut Day<'d>) -> Result<(), StatsError> {
        let key = (day.site, day.start);
        let names = self.cache.names(self.tx, key, 4 * self.options.max_keys)?;
        for dim in Dim::NAMED {
            let mut slots: Vec<Slot<'d>> = Vec::new();
            let mut by_name: HashMap<&str, u32> = HashMap::new();
            let several = day.minutes.len() > 1;
            for minute in &day.minutes {
                let mut rows = Vec::new();
                let mut add = |name: &'d Arc<str>, tally: Tally| -> Result<(), StatsError> {
                    let next = slots.len() as u32;
                    let slot = if several { *by_name.entry(&**name).or_insert(next) } else { next };
                    rows.push(Row { slot, n: tally.n, first: tally.first });
                    if slot == next {
                        slots.push(Slot { name, id: names.find(self.tx, key, dim, name)? });
                    }
                    Ok(())
                };
                let tallies = match dim {
                    Dim::Page => &minute.pages,
                    Dim::Referrer => &minute.referrers,
                    Dim::Event | Dim::Bot => &minute.other_types,
                };
                for (name, tally) in tallies {
                    add(name, *tally)?;
                }
                if let (Dim::Event, Some(tally)) = (dim, minute.page_view_tally()) {
                    add(page_view(), tally)?;
                }
                day.rows[dim.index()].push(rows);
            }
            day.slots[dim.index()] = slots;
        }
        Ok(())
    }

    fn window(
        &mut self,
        day: &mut Day<'_>,
        tier: Tier,
        start: UnixMillis,
        range: std::ops::Range<usize>,
    ) -> Result<(), StatsError> {
        let minutes = &day.minutes[range.clone()];
        let (window, names) = self.cache.window(self.tx, (day.site, tier, start))?;
        let (mut page_views, mut events, mut bots) = (0, 0, 0);
        for minute in minutes {
            page_views += minute.page_views;
            events += minute.events;
            bots += minute.bot_events();
        }
        let sql = "UPDATE stats_windows SET page_views = page_views + ?2, events = events + ?3, bots = bots + ?4
                   WHERE id = ?1";
        self.tx.prepare_cached(sql)?.execute(params![window.id, page_views as i64, events as i64, bots as i64])?;

        for dim in Dim::NAMED {
            let slots = &mut day.slots[dim.index()];
            let rows = united(&day.rows[dim.index()][range.clone()], slots.len());
            let mut counts = Counts { tx: self.tx, key: (day.site, day.start), dim, most: self.options.max_keys };
            counts.write(window, names, slots, rows)?;
        }
        write_bots(self.tx, window.id, minutes)?;
        for (kind, hashes) in [
            (Set::Visitors, minutes.iter().map(|minute| &minute.visitors).collect::<Vec<_>>()),
            (Set::Sessions, minutes.iter().map(|minute| &minute.sessions).collect()),
        ] {
            if hashes.iter().all(|set| set.is_empty()) {
                continue;
            }
            let id = window.id;
            let open = window.set(self.tx, kind, self.options.exact_uniques)?;
            write_set(self.tx, id, kind, open, hashes.into_iter().flatten().copied())?;
        }
        Ok(())
    }
}

/// The event type that deltas count apart.
fn page_view() -> &'static Arc<str> {
    static NAME: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| Arc::from(crate::event::PAGE_VIEW));
    &NAME
}

/// The rows of several minutes as those of one window.
fn united(minutes: &[Vec<Row>], slots: usize) -> Vec<Row> {
    if let [one] = minutes {
        return one.clone();
    }
    let mut sums = vec![Row { slot: 0, n: 0, first: u32::MAX }; slots];
    for row in minutes.iter().flatten() {
        let sum = &mut sums[row.slot as usize];
        *sum = Row { slot: row.slot, n: sum.n + row.n, first: sum.first.min(row.first) };
    }
    sums.retain(|row| row.n > 0);
    sums
}

/// The counters of one dimension of a window.
struct Counts<'a> {
    tx: &'a Connection,
    key: (i64, UnixMillis),
    dim: Dim,
    most: usize,
}

impl Counts<'_> {
    fn write(
        &mut self,
        window: &mut Window,
        names: &mut Names,
        slots: &mut [Slot<'_>],
        mut rows: Vec<Row>,
    ) -> Result<(), StatsError> {
        if rows.is_empty() {
            return Ok(());
        }
        let taken = &mut window.names[self.dim.index()];
        if *taken + rows.len() <= self.most {
            // Neighbours in the file one after the other.
            rows.sort_unstable_by_key(|row| slots[row.slot as usize].id.unwrap_or(u32::MAX));
        } else {
            // The window may become full: who came first is in, whatever the batches.
            rows.sort_unstable_by_key(|row| row.first);
        }
        let dim = self.dim as u8;
        let sql = "UPDATE stats_counts SET n = n + ?4 WHERE window = ?1 AND dim = ?2 AND name = ?3";
        let mut update = self.tx.prepare_cached(sql)?;
        let sql = "INSERT INTO stats_counts (window, dim, name, n) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = self.tx.prepare_cached(sql)?;
        let mut other = 0;
        for row in rows {
            let slot = &mut slots[row.slot as usize];
            let n = row.n as i64;
            if let Some(id) = slot.id
                && *taken > 0
                && update.execute(params![window.id, dim, id, n])? == 1
            {
                continue;
            }
            if *taken >= self.most {
                other += n;
                continue;
            }
            let id = match slot.id {
                Some(id) => id,
                None => *slot.id.insert(names.add(self.tx, self.key, self.dim, slot.name)?),
            };
            insert.execute(params![window.id, dim, id, n])?;
            *taken += 1;
        }
        if other > 0 && update.execute(params![window.id, dim, 0, other])? == 0 {
            insert.execute(params![window.id, dim, 0, other])?;
        }
        Ok(())
    }
}

fn write_bots(tx: &Connection, window: i64, minutes: &[&MinuteDelta]) -> Result<(), StatsError> {
    let sql = "INSERT INTO stats_counts (window, dim, name, n) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT DO UPDATE SET n = n + excluded.n";
    for (reason, _) in BotReason::ALL {
        let n: u64 = minutes.iter().map(|minute| minute.bots[*reason as usize]).sum();
        if n > 0 {
            tx.prepare_cached(sql)?.execute(params![window, Dim::Bot as u8, *reason as u8, n as i64])?;
        }
    }
    Ok(())
}

/// Adds hashes to a set and writes what is new: as a small part of its own, or all of it when there are many parts.
fn write_set(
    tx: &Connection,
    window: i64,
    kind: Set,
    open: &mut OpenSet,
    hashes: impl Iterator<Item = u64>,
) -> Result<(), StatsError> {
    let was_exact = open.set.exact();
    let new: Vec<u64> = hashes.filter(|hash| open.set.insert(*hash)).collect();
    let part = |part: u32, data: &[u8]| -> Result<(), StatsError> {
        let sql = "INSERT OR REPLACE INTO stats_uniques (window, kind, part, data) VALUES (?1, ?2, ?3, ?4)";
        tx.prepare_cached(sql)?.execute(params![window, kind as u8, part, data])?;
        Ok(())
    };
    if open.set.exact() {
        if new.is_empty() {
            return Ok(());
        }
        let few = new.len() * 4 < open.set.count().count as usize;
        if open.parts > 0 && open.parts < MOST_PARTS && few {
            part(open.parts, &encode_exact(new))?;
            open.parts += 1;
            return Ok(());
        }
    }
    let data = open.set.encode();
    if !open.set.exact() {
        let checksum = xxh3_64(&data);
        if !was_exact && checksum == open.written {
            return Ok(());
        }
        open.written = checksum;
    }
    if open.parts > 1 {
        tx.prepare_cached("DELETE FROM stats_uniques WHERE window = ?1 AND kind = ?2 AND part > 0")?
            .execute(params![window, kind as u8])?;
    }
    open.parts = 1;
    part(0, &data)
}
