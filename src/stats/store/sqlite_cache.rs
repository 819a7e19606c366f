//! What the writing connection remembers of the file, so that a commit reads next to nothing.
//!
//! All of it can be read again: after a failed transaction it is simply dropped. Its size is bounded in bytes; what was
//! not touched for longest goes first.

use std::sync::Arc;

use hashbrown::HashMap;
use rusqlite::{Connection, OptionalExtension, params};

use super::sqlite_read::{self as read, Dim, Set};
use crate::clock::{DAY, UnixMillis};
use crate::stats::StatsError;
use crate::stats::uniques::Uniques;
use crate::stats::window::Tier;

/// Site, tier, start.
pub(super) type WindowKey = (i64, Tier, UnixMillis);

/// Names of one site and day.
type DayKey = (i64, UnixMillis);

/// What can be forgotten.
enum Held {
    Window(WindowKey),
    Names(DayKey),
}

/// Sites, open windows and names.
#[derive(Debug)]
pub(super) struct Cache {
    budget: usize,
    tick: u64,
    sites: HashMap<Arc<str>, i64>,
    windows: HashMap<WindowKey, Window>,
    days: HashMap<DayKey, Names>,
}

/// A window that is written to.
#[derive(Debug)]
pub(super) struct Window {
    /// Its row.
    pub id: i64,
    /// How many names it has, by dimension.
    pub names: [usize; 3],
    /// Its visitors and sessions, once they were needed.
    pub sets: [Option<OpenSet>; 2],
    used: u64,
}

/// A set of a window, and how it lies in the file.
#[derive(Debug)]
pub(super) struct OpenSet {
    /// All of it.
    pub set: Uniques,
    /// Rows it lies in.
    pub parts: u32,
    /// Checksum of the sketch as written, to see whether it changed.
    pub written: u64,
}

/// Names of one site and day, by dimension.
#[derive(Debug)]
pub(super) struct Names {
    ids: [HashMap<Arc<str>, u32>; 3],
    next: u32,
    /// All of the file's names are here, so that a name that is not here is new.
    complete: bool,
    most: usize,
    bytes: usize,
    used: u64,
}

impl Cache {
    pub fn new(budget: usize) -> Self {
        Self { budget, tick: 0, sites: HashMap::new(), windows: HashMap::new(), days: HashMap::new() }
    }

    pub fn clear(&mut self) {
        self.sites.clear();
        self.windows.clear();
        self.days.clear();
    }

    /// The site's row, made if need be.
    pub fn site(&mut self, tx: &Connection, name: &Arc<str>) -> Result<i64, StatsError> {
        if let Some(id) = self.sites.get(name) {
            return Ok(*id);
        }
        tx.prepare_cached("INSERT INTO stats_sites (name) VALUES (?1) ON CONFLICT DO NOTHING")?.execute([&**name])?;
        let id =
            tx.prepare_cached("SELECT id FROM stats_sites WHERE name = ?1")?.query_row([&**name], |row| row.get(0))?;
        self.sites.insert(name.clone(), id);
        Ok(id)
    }

    /// The window, and the names of its day.
    pub fn window(&mut self, tx: &Connection, key: WindowKey) -> Result<(&mut Window, &mut Names), StatsError> {
        self.tick += 1;
        if !self.windows.contains_key(&key) {
            self.windows.insert(key, Window::open(tx, key)?);
        }
        let day = (key.0, Tier::Day.floor(key.2));
        match (self.windows.get_mut(&key), self.days.get_mut(&day)) {
            (Some(window), Some(names)) => {
                (window.used, names.used) = (self.tick, self.tick);
                Ok((window, names))
            }
            _ => Err(StatsError::Corrupt("the names of a window's day were not opened")),
        }
    }

    /// The names of the day that begins at `start`; `most` of them are held in memory.
    pub fn names(&mut self, tx: &Connection, key: DayKey, most: usize) -> Result<&mut Names, StatsError> {
        self.tick += 1;
        if !self.days.contains_key(&key) {
            self.days.insert(key, Names::open(tx, key, most)?);
        }
        let names = self.days.get_mut(&key).ok_or(StatsError::Corrupt("unreachable: just inserted"))?;
        names.used = self.tick;
        Ok(names)
    }

    /// Forgets windows of `tier` that start before `before`.
    pub fn forget_windows(&mut self, tier: Tier, before: UnixMillis) {
        self.windows.retain(|key, _| key.1 != tier || key.2 >= before);
    }

    /// Forgets the names of days that start before `before`.
    pub fn forget_names(&mut self, before: UnixMillis) {
        self.days.retain(|key, _| key.1 >= before);
    }

    /// Forgets what was not touched for longest until the rest fits.
    pub fn trim(&mut self) {
        let mut bytes = self.memory();
        if bytes <= self.budget {
            return;
        }
        // A quarter more than needed, so that not every commit has to look.
        let goal = self.budget / 4 * 3;
        let windows = self.windows.iter().map(|(key, window)| (window.used, window.memory(), Held::Window(*key)));
        let days = self.days.iter().map(|(key, names)| (names.used, names.bytes, Held::Names(*key)));
        let mut all: Vec<(u64, usize, Held)> = windows.chain(days).collect();
        all.sort_unstable_by_key(|(used, ..)| *used);
        for (_, freed, key) in all {
            if bytes <= goal {
                break;
            }
            match key {
                Held::Names(day) => drop(self.days.remove(&day)),
                Held::Window(window) => drop(self.windows.remove(&window)),
            }
            bytes = bytes.saturating_sub(freed);
        }
    }

    /// About how much memory it takes.
    pub fn memory(&self) -> usize {
        self.windows.values().map(Window::memory).sum::<usize>()
            + self.days.values().map(|day| day.bytes).sum::<usize>()
    }
}

impl Window {
    fn open(tx: &Connection, (site, tier, start): WindowKey) -> Result<Self, StatsError> {
        let known: Option<i64> = tx
            .prepare_cached("SELECT id FROM stats_windows WHERE site = ?1 AND tier = ?2 AND start = ?3")?
            .query_row(params![site, tier as u8, start], |row| row.get(0))
            .optional()?;
        let mut window = Self { id: 0, names: [0; 3], sets: [None, None], used: 0 };
        let Some(id) = known else {
            let sql =
                "INSERT INTO stats_windows (site, tier, start, page_views, events, bots) VALUES (?1, ?2, ?3, 0, 0, 0)";
            window.id = tx.prepare_cached(sql)?.insert(params![site, tier as u8, start])?;
            return Ok(window);
        };
        window.id = id;
        let sql = "SELECT count(*) FROM stats_counts WHERE window = ?1 AND dim = ?2 AND name > 0";
        let mut count = tx.prepare_cached(sql)?;
        for dim in Dim::NAMED {
            window.names[dim.index()] = count.query_row(params![id, dim as u8], |row| row.get::<_, u32>(0))? as usize;
        }
        Ok(window)
    }

    /// A set of this window.
    pub fn set(&mut self, tx: &Connection, kind: Set, limit: usize) -> Result<&mut OpenSet, StatsError> {
        let slot = &mut self.sets[kind.index()];
        match slot {
            Some(open) => Ok(open),
            None => Ok(slot.insert(OpenSet::open(tx, self.id, kind, limit)?)),
        }
    }

    fn memory(&self) -> usize {
        128 + self.sets.iter().flatten().map(|open| open.set.memory() + 16).sum::<usize>()
    }
}

impl OpenSet {
    fn open(tx: &Connection, window: i64, kind: Set, limit: usize) -> Result<Self, StatsError> {
        let mut open = Self { set: Uniques::new(limit), parts: 0, written: 0 };
        let sql = "SELECT data FROM stats_uniques WHERE window = ?1 AND kind = ?2 ORDER BY part";
        let mut statement = tx.prepare_cached(sql)?;
        let mut rows = statement.query(params![window, kind as u8])?;
        while let Some(row) = rows.next()? {
            open.set.absorb(read::blob(row, 0)?)?;
            open.parts += 1;
        }
        Ok(open)
    }
}

impl Names {
    fn open(tx: &Connection, (site, start): DayKey, most: usize) -> Result<Self, StatsError> {
        let day = start / DAY;
        let mut names = Self { ids: Default::default(), next: 1, complete: true, most, bytes: 0, used: 0 };
        let sql = "SELECT dim, name, id FROM stats_names WHERE site = ?1 AND day = ?2 LIMIT ?3";
        let mut statement = tx.prepare_cached(sql)?;
        let mut rows = statement.query(params![site, day, most as i64 + 1])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += 1;
            let id: u32 = row.get(2)?;
            names.next = names.next.max(id + 1);
            if let Some(dim) = Dim::from_byte(row.get(0)?) {
                names.remember(dim, read::text(row, 1)?.into(), id);
            }
        }
        if count > most {
            names.complete = false;
            let sql = "SELECT coalesce(max(id), 0) FROM stats_names WHERE site = ?1 AND day = ?2";
            let max: u32 = tx.prepare_cached(sql)?.query_row(params![site, day], |row| row.get(0))?;
            names.next = max + 1;
        }
        Ok(names)
    }

    /// The number of a name, if it has one.
    pub fn find(
        &mut self,
        tx: &Connection,
        (site, start): DayKey,
        dim: Dim,
        name: &Arc<str>,
    ) -> Result<Option<u32>, StatsError> {
        if let Some(id) = self.ids[dim.index()].get(name) {
            return Ok(Some(*id));
        }
        if self.complete {
            return Ok(None);
        }
        let sql = "SELECT id FROM stats_names WHERE site = ?1 AND day = ?2 AND dim = ?3 AND name = ?4";
        let found: Option<u32> = tx
            .prepare_cached(sql)?
            .query_row(params![site, start / DAY, dim as u8, &**name], |row| row.get(0))
            .optional()?;
        if let Some(id) = found {
            self.remember(dim, name.clone(), id);
        }
        Ok(found)
    }

    /// Gives a new name a number.
    pub fn add(
        &mut self,
        tx: &Connection,
        (site, start): DayKey,
        dim: Dim,
        name: &Arc<str>,
    ) -> Result<u32, StatsError> {
        let id = self.next;
        let sql = "INSERT INTO stats_names (site, day, dim, name, id) VALUES (?1, ?2, ?3, ?4, ?5)";
        tx.prepare_cached(sql)?.execute(params![site, start / DAY, dim as u8, &**name, id])?;
        self.next += 1;
        self.remember(dim, name.clone(), id);
        Ok(id)
    }

    fn remember(&mut self, dim: Dim, name: Arc<str>, id: u32) {
        if self.ids.iter().map(HashMap::len).sum::<usize>() >= self.most {
            self.ids.iter_mut().for_each(HashMap::clear);
            (self.complete, self.bytes) = (false, 0);
        }
        // The text, its two counts, the map's entry at the usual load.
        self.bytes += name.len() + 16 + 40;
        self.ids[dim.index()].insert(name, id);
    }
}
