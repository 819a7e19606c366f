//! The snapshot: `popularity.db`, one SQLite file with what changed since the last time and the cursor in one transaction.
//!
//! A file that is damaged (torn pages, rows whose checksum is wrong, a number of products that is not there) is thrown away
//! and made anew from the journal, which has as many days as the windows by default; so is one of another journal, or
//! with a tail of another width. `synchronous=NORMAL`: after a power loss the file may be some snapshots old, with its
//! cursor, so the journal must keep its entries until [`Store::checkpoint`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use xxhash_rust::xxh3::xxh3_64;

use super::buckets::Counts;
use super::scores::{Mark, Product, Scores};
use super::tail::Tail;
use super::{Kind, PopularityError};

/// The layout of the file.
const VERSION: i64 = 1;
/// A slot beyond this was never written.
const MOST_SLOTS: u32 = 1 << 24;
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS snapshot (
        one INTEGER PRIMARY KEY CHECK (one = 1), next INTEGER NOT NULL, time INTEGER NOT NULL, journal TEXT NOT NULL,
        products INTEGER NOT NULL, width INTEGER NOT NULL, pages INTEGER NOT NULL, steps INTEGER NOT NULL, sum INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS product (slot INTEGER PRIMARY KEY, id TEXT NOT NULL, data BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS tail (
        kind INTEGER NOT NULL, bucket INTEGER NOT NULL, page INTEGER NOT NULL, data BLOB NOT NULL, sum INTEGER NOT NULL,
        PRIMARY KEY (kind, bucket, page)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tail_total (
        kind INTEGER NOT NULL, bucket INTEGER NOT NULL, total INTEGER NOT NULL, sum INTEGER NOT NULL,
        PRIMARY KEY (kind, bucket)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS step (id TEXT PRIMARY KEY, step INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;";

/// The file. The only writer of it.
#[derive(Debug)]
pub(super) struct Store {
    conn: Connection,
    path: PathBuf,
    max_products: usize,
}

/// What a snapshot held.
#[derive(Debug)]
pub(super) struct Loaded {
    pub scores: Scores,
    pub steps: HashMap<Arc<str>, u8>,
    /// The next entry and the journal it is of; `None` when there is no snapshot.
    pub cursor: Option<(u64, String)>,
}

/// A snapshot that is open, with how far it goes.
pub struct OpenStore {
    pub(super) store: Store,
    pub(super) loaded: Loaded,
    pub(super) rebuilt: bool,
}

impl OpenStore {
    /// The next entry to count of the journal of this name; 0 when there is no snapshot of it.
    pub fn cursor_in(&self, journal: &str) -> u64 {
        self.loaded.cursor.as_ref().filter(|(_, of)| of == journal).map_or(0, |(next, _)| *next)
    }
}

/// Opens the snapshot at `path`, for so many exact products. One that is damaged is made anew.
///
/// # Errors
/// When the file cannot be opened, made or read for other reasons than damage.
pub fn open_store(path: &Path, max_products: usize) -> Result<OpenStore, PopularityError> {
    let open = || {
        let mut store = Store::open(path, max_products)?;
        let loaded = store.load()?;
        Ok((store, loaded))
    };
    match open() {
        Ok((store, loaded)) => Ok(OpenStore { store, loaded, rebuilt: false }),
        Err(error) => {
            let error: PopularityError = error;
            if !error.is_damage() {
                return Err(error);
            }
            log::error!("{error}; the file is made anew, and popularity counted again from the journal's oldest entry");
            for suffix in ["", "-wal", "-shm"] {
                let mut name = path.as_os_str().to_owned();
                name.push(suffix);
                match std::fs::remove_file(&name) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                    _ => {}
                }
            }
            let (store, loaded) = open()?;
            Ok(OpenStore { store, loaded, rebuilt: true })
        }
    }
}

impl Store {
    fn open(path: &Path, max_products: usize) -> Result<Self, PopularityError> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.pragma_update(None, "journal_size_limit", 16 << 20)?;
        let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let there: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if there > 0 && version != VERSION {
            return Err(PopularityError::Damaged("the file was written by another version"));
        }
        conn.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
        // What is torn within the file, where no checksum of ours is.
        let check: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Err(PopularityError::Damaged("SQLite's own check of the file fails"));
        }
        Ok(Self { conn, path: path.to_owned(), max_products })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the snapshot.
    pub fn load(&mut self) -> Result<Loaded, PopularityError> {
        use PopularityError::Damaged;
        let mut scores = Scores::new(self.max_products);
        let tx = self.conn.transaction()?;
        let sql = "SELECT next, time, journal, products, width, pages, steps, sum FROM snapshot";
        let read = |row: &rusqlite::Row<'_>| {
            let number = |at| row.get::<_, i64>(at);
            let head = [number(0)?, number(1)?, number(3)?, number(4)?, number(5)?, number(6)?];
            Ok((head, row.get::<_, String>(2)?, number(7)?))
        };
        let Some((head, journal, sum)) = tx.query_row(sql, [], read).optional()? else {
            return Ok(Loaded { scores, steps: HashMap::new(), cursor: None });
        };
        if sum != head_sum(head, &journal) {
            return Err(Damaged("the cursor's checksum is wrong"));
        }
        let [next, time, products, width, pages, known] = head;
        let next = u64::try_from(next).map_err(|_| Damaged("the cursor is negative"))?;
        let mut rows = tx.prepare("SELECT slot, id, data FROM product")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (slot, id, data) = (row.get::<_, u32>(0)?, row.get_ref(1)?, row.get_ref(2)?);
            let id = id.as_str().map_err(|_| Damaged("an id is no text"))?;
            let data = data.as_blob().map_err(|_| Damaged("a product is no blob"))?;
            let product = decode(slot, id, data).ok_or(Damaged("a product's checksum is wrong"))?;
            if slot >= MOST_SLOTS || !scores.restore(slot, product) {
                return Err(Damaged("a product is there twice"));
            }
        }
        if scores.len() as i64 != products {
            return Err(Damaged("products are missing"));
        }
        if width != scores.tail().width() as i64 {
            return Err(Damaged("the tail was kept for another max_products"));
        }
        let sql = "SELECT t.kind, t.bucket, page, data, t.sum, total, n.sum FROM tail t LEFT JOIN tail_total n USING (kind, bucket)";
        let mut rows = tx.prepare(sql)?;
        let mut rows = rows.query([])?;
        let mut read = 0;
        while let Some(row) = rows.next()? {
            read += 1;
            let kind = Kind::ALL.get(usize::from(row.get::<_, u8>(0)?)).ok_or(Damaged("a sketch is of no kind"))?;
            let (bucket, page) = (row.get::<_, u32>(1)?, row.get::<_, u32>(2)? as usize);
            let data = row.get_ref(3)?.as_blob().map_err(|_| Damaged("a sketch is no blob"))?;
            if row.get::<_, i64>(4)? != page_sum(*kind, bucket, page, data) {
                return Err(Damaged("a sketch's checksum is wrong"));
            }
            let total = row.get::<_, i64>(5)? as u64;
            if row.get::<_, i64>(6)? != page_sum(*kind, bucket, 0, &total.to_le_bytes()) {
                return Err(Damaged("a sketch's checksum is wrong"));
            }
            if !scores.restore_tail(*kind, bucket).restore(page, data, total) {
                return Err(Damaged("a sketch has another size"));
            }
        }
        if read != pages {
            return Err(Damaged("parts of a sketch are missing"));
        }
        let mut steps: HashMap<Arc<str>, u8> = HashMap::new();
        let mut rows = tx.prepare("SELECT id, step, sum FROM step")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (id, step) = (row.get::<_, String>(0)?, row.get::<_, u8>(1)?);
            if row.get::<_, i64>(2)? != step_sum(&id, step) {
                return Err(Damaged("a step's checksum is wrong"));
            }
            steps.insert(Arc::from(id), step);
        }
        if steps.len() as i64 != known {
            return Err(Damaged("steps are missing"));
        }
        scores.restored(time);
        Ok(Loaded { scores, steps, cursor: Some((next, journal)) })
    }

    /// Throws the snapshot away: it is of no use here.
    pub fn clear(&mut self) -> Result<Loaded, PopularityError> {
        let sql =
            "BEGIN IMMEDIATE; DELETE FROM snapshot; DELETE FROM product; DELETE FROM tail; DELETE FROM tail_total;
                   DELETE FROM step; COMMIT;";
        self.conn.execute_batch(sql)?;
        self.load()
    }

    /// Writes what changed, with the cursor; all of it or nothing.
    pub fn save(
        &mut self,
        scores: &mut Scores,
        steps: &HashMap<Arc<str>, u8>,
        next: u64,
        journal: &str,
    ) -> Result<(), PopularityError> {
        let slots = scores.take(Mark::Unsaved, usize::MAX);
        let saved = self.write(scores, &slots, steps, next, journal);
        match &saved {
            Ok(()) => Kind::ALL.iter().flat_map(|kind| scores.tail().sketches(*kind)).for_each(|(_, s)| s.saved()),
            Err(_) => scores.untake(Mark::Unsaved, &slots),
        }
        saved
    }

    fn write(
        &mut self,
        scores: &Scores,
        slots: &[u32],
        steps: &HashMap<Arc<str>, u8>,
        next: u64,
        journal: &str,
    ) -> Result<(), PopularityError> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut put = tx.prepare_cached("INSERT OR REPLACE INTO product (slot, id, data) VALUES (?1, ?2, ?3)")?;
            let mut drop = tx.prepare_cached("DELETE FROM product WHERE slot = ?1")?;
            for slot in slots {
                match scores.product(*slot) {
                    Some(product) => put.execute(params![slot, &*product.id, encode(*slot, product)])?,
                    None => drop.execute([slot])?,
                };
            }
            write_tail(&tx, scores.tail())?;
            let mut put = tx.prepare_cached("INSERT OR REPLACE INTO step (id, step, sum) VALUES (?1, ?2, ?3)")?;
            let mut drop = tx.prepare_cached("DELETE FROM step WHERE id = ?1")?;
            for (id, step) in steps {
                match step {
                    0 => drop.execute([&**id])?,
                    step => put.execute(params![&**id, step, step_sum(id, *step)])?,
                };
            }
            let rows = |table: &str| -> Result<i64, rusqlite::Error> {
                tx.prepare_cached(&format!("SELECT count(*) FROM {table}"))?.query_row([], |row| row.get(0))
            };
            let (products, width) = (scores.len() as i64, scores.tail().width() as i64);
            let head = [next as i64, scores.time(), products, width, rows("tail")?, rows("step")?];
            let [next, time, _, _, pages, known] = head;
            let sql = "INSERT OR REPLACE INTO snapshot (one, next, time, journal, products, width, pages, steps, sum)
                       VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let sum = head_sum(head, journal);
            let row = params![next, time, journal, products, width, pages, known, sum];
            tx.prepare_cached(sql)?.execute(row)?;
        }
        Ok(tx.commit()?)
    }

    /// Makes every snapshot so far survive a power loss; false when something was in the way.
    pub fn checkpoint(&mut self) -> Result<bool, PopularityError> {
        let busy: bool = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(!busy)
    }
}

fn write_tail(tx: &Connection, tail: &Tail) -> Result<(), PopularityError> {
    for kind in Kind::ALL {
        let oldest = tail.sketches(kind).first().map_or(u32::MAX, |(bucket, _)| *bucket);
        for table in ["tail", "tail_total"] {
            let sql = format!("DELETE FROM {table} WHERE kind = ?1 AND bucket < ?2");
            tx.prepare_cached(&sql)?.execute(params![kind as u8, oldest])?;
        }
        for (bucket, sketch) in tail.sketches(kind) {
            let sql = "INSERT OR REPLACE INTO tail (kind, bucket, page, data, sum) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut put = tx.prepare_cached(sql)?;
            for (page, data) in sketch.changed() {
                let sum = page_sum(kind, *bucket, page, &data);
                put.execute(params![kind as u8, bucket, page as i64, data, sum])?;
            }
            let sql = "INSERT OR REPLACE INTO tail_total (kind, bucket, total, sum) VALUES (?1, ?2, ?3, ?4)";
            let (total, sum) = (sketch.total(), page_sum(kind, *bucket, 0, &sketch.total().to_le_bytes()));
            tx.prepare_cached(sql)?.execute(params![kind as u8, bucket, total as i64, sum])?;
        }
    }
    Ok(())
}

fn step_sum(id: &str, step: u8) -> i64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), u64::from(step)) as i64
}

fn head_sum(head: [i64; 6], journal: &str) -> i64 {
    let mut bytes: Vec<u8> = head.iter().flat_map(|n| n.to_le_bytes()).collect();
    bytes.extend_from_slice(journal.as_bytes());
    xxh3_64(&bytes) as i64
}

fn page_sum(kind: Kind, bucket: u32, page: usize, data: &[u8]) -> i64 {
    let place = (kind as u64) ^ (u64::from(bucket) << 8) ^ ((page as u64) << 40);
    xxhash_rust::xxh3::xxh3_64_with_seed(data, place) as i64
}

/// `exact_from`, then both lists as numbers of buckets and pairs, all varints; a checksum of slot, id and these.
fn encode(slot: u32, product: &Product) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put(&mut out, product.exact_from.max(0) as u64);
    for counts in &product.counts {
        put(&mut out, counts.iter().len() as u64);
        let mut before = 0;
        for (bucket, n) in counts.iter() {
            put(&mut out, u64::from(bucket - before));
            put(&mut out, u64::from(n));
            before = bucket;
        }
    }
    out.extend_from_slice(&sum(slot, &product.id, &out).to_le_bytes());
    out
}

fn sum(slot: u32, id: &str, body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(body, xxh3_64(id.as_bytes()) ^ u64::from(slot))
}

fn decode(slot: u32, id: &str, data: &[u8]) -> Option<Product> {
    let (mut body, checksum) = data.split_last_chunk::<8>()?;
    if u64::from_le_bytes(*checksum) != sum(slot, id, body) {
        return None;
    }
    let mut take = || take(&mut body);
    let exact_from = i64::try_from(take()?).ok()?;
    let mut counts = [Counts::default(), Counts::default()];
    for counts in &mut counts {
        let mut bucket = 0u32;
        for _ in 0..take()? {
            bucket = bucket.checked_add(u32::try_from(take()?).ok()?)?;
            counts.add(bucket, u32::try_from(take()?).ok()?);
        }
    }
    Some(Product { id: Arc::from(id), counts, exact_from })
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = from.split_first()?;
        *from = rest;
        n |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
