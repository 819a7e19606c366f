//! The long tail: products beyond those counted exactly, estimated by count-min sketches with conservative update.
//!
//! A sketch holds four hours of views or a day of units ([`Window::coarse`]), so that the tail slides too, up to that much
//! late. An estimate is never below the truth, and above it by more than [`TailError`] says in at most one of 50 cases:
//! e/width of all that is in the tail, with probability 1 - e^-4. Nothing is allocated before there is a tail. The owner
//! writes the cells, anybody may read them: they are atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_128;

use super::buckets::edges;
use super::{Kind, Window, score};
use crate::clock::UnixMillis;

/// Rows of a sketch.
const DEPTH: usize = 4;
/// Cells that are saved together.
pub const PAGE: usize = 1024;

/// What an estimate of the tail may be above the truth, with probability 98 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TailError {
    /// Views.
    pub views: u64,
    /// Units.
    pub units: u64,
    /// Of the score.
    pub score: u64,
}

/// One sketch.
#[derive(Debug)]
pub struct Sketch {
    cells: Box<[AtomicU32]>,
    unsaved: Box<[AtomicBool]>,
    /// All that was added.
    total: AtomicU64,
}

/// The hash of a product, from which its cells follow.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64, u64);

impl Hash {
    /// Of an id.
    pub fn of(id: &str) -> Self {
        let hash = xxh3_128(id.as_bytes());
        Self(hash as u64, (hash >> 64) as u64 | 1)
    }
}

impl Sketch {
    fn new(width: usize) -> Self {
        let cells = width * DEPTH;
        Self {
            cells: (0..cells).map(|_| AtomicU32::new(0)).collect(),
            unsaved: (0..cells.div_ceil(PAGE)).map(|_| AtomicBool::new(false)).collect(),
            total: AtomicU64::new(0),
        }
    }

    fn at(&self, hash: Hash) -> [usize; DEPTH] {
        let width = self.cells.len() / DEPTH;
        std::array::from_fn(|row| {
            let mixed = hash.0.wrapping_add(hash.1.wrapping_mul(row as u64 + 1));
            // The width is a power of two; the high bits are the better mixed ones.
            row * width + ((mixed >> 32) as usize & (width - 1))
        })
    }

    fn estimate(&self, hash: Hash) -> u32 {
        self.at(hash).into_iter().map(|at| self.cells[at].load(Relaxed)).min().unwrap_or(0)
    }

    fn raise(&self, hash: Hash, to: u32) {
        for at in self.at(hash) {
            if self.cells[at].load(Relaxed) < to {
                self.cells[at].store(to, Relaxed);
                self.unsaved[at / PAGE].store(true, Relaxed);
            }
        }
    }

    /// All that was added.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Pages that changed since they were last [saved](Self::saved), by number, with their cells.
    pub fn changed(&self) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
        let changed = self.unsaved.iter().enumerate().filter(|(_, unsaved)| unsaved.load(Relaxed));
        changed.map(|(page, _)| {
            let cells = self.cells.iter().skip(page * PAGE).take(PAGE);
            (page, cells.flat_map(|cell| cell.load(Relaxed).to_le_bytes()).collect())
        })
    }

    /// All pages are saved.
    pub fn saved(&self) {
        self.unsaved.iter().for_each(|unsaved| unsaved.store(false, Relaxed));
    }

    /// Puts back a page and the total; false when there is no such page.
    pub fn restore(&self, page: usize, bytes: &[u8], total: u64) -> bool {
        let cells = self.cells.iter().skip(page.saturating_mul(PAGE)).take(PAGE);
        if bytes.len() != 4 * cells.len() || bytes.is_empty() {
            return false;
        }
        for (cell, bytes) in cells.zip(bytes.chunks_exact(4)) {
            cell.store(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), Relaxed);
        }
        self.total.store(total, Relaxed);
        true
    }
}

/// The sketches of the tail. A clone shows the same cells.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    width: usize,
    kinds: [Vec<(u32, Arc<Sketch>)>; 2],
}

impl Tail {
    /// For so many exact products: a wider tail for those who can afford more.
    pub fn new(max_products: usize) -> Self {
        Self { width: max_products.clamp(PAGE, 1 << 20).next_power_of_two(), kinds: Default::default() }
    }

    /// Cells of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(Vec::is_empty)
    }

    /// The sketch of a coarse bucket, made if it is not there.
    pub fn sketch(&mut self, kind: Kind, coarse: u32) -> &Sketch {
        let list = &mut self.kinds[kind as usize];
        let at = list.partition_point(|(bucket, _)| *bucket < coarse);
        if list.get(at).is_none_or(|(bucket, _)| *bucket != coarse) {
            list.insert(at, (coarse, Arc::new(Sketch::new(self.width))));
        }
        &list[at].1
    }

    /// Adds to a bucket of a window.
    pub fn add(&mut self, kind: Kind, hash: Hash, bucket: u32, n: u32) {
        let sketch = self.sketch(kind, bucket / kind.window().coarse);
        sketch.raise(hash, sketch.estimate(hash).saturating_add(n));
        sketch.total.fetch_add(u64::from(n), Relaxed);
    }

    /// Takes in all of a product that was counted exactly, with what was in the tail of it before.
    pub fn fold(&mut self, kind: Kind, hash: Hash, coarse: u32, n: u32) {
        let sketch = self.sketch(kind, coarse);
        sketch.raise(hash, n);
        // At most what was added in truth; a bound may be too wide.
        sketch.total.fetch_add(u64::from(n), Relaxed);
    }

    /// Coarse buckets with an estimate of a product.
    pub fn buckets(&self, kind: Kind, hash: Hash, now: UnixMillis) -> impl Iterator<Item = (u32, u32)> + '_ {
        let buckets = self.live(kind, now).map(move |(coarse, sketch)| (*coarse, sketch.estimate(hash)));
        buckets.filter(|(_, n)| *n > 0)
    }

    /// Views and units of a product.
    pub fn estimate(&self, hash: Hash, now: UnixMillis) -> [u64; 2] {
        Kind::ALL.map(|kind| self.buckets(kind, hash, now).map(|(_, n)| u64::from(n)).sum())
    }

    fn live(&self, kind: Kind, now: UnixMillis) -> impl Iterator<Item = &(u32, Arc<Sketch>)> {
        let oldest = edges(now)[kind as usize];
        self.kinds[kind as usize].iter().filter(move |(coarse, _)| last(kind.window(), *coarse) >= oldest)
    }

    /// What estimates may be too high.
    pub fn error(&self, now: UnixMillis) -> TailError {
        let [views, units] = Kind::ALL.map(|kind| {
            let total: u64 = self.live(kind, now).map(|(_, sketch)| sketch.total()).sum();
            (total as f64 * std::f64::consts::E / self.width.max(1) as f64).ceil() as u64
        });
        TailError { views, units, score: score(views, units) }
    }

    /// Drops sketches outside the windows; false when there were none.
    pub fn keep(&mut self, now: UnixMillis) -> bool {
        let mut dropped = false;
        for kind in Kind::ALL {
            let (oldest, newest) = (edges(now)[kind as usize], kind.window().bucket(now) / kind.window().coarse);
            let list = &mut self.kinds[kind as usize];
            let before = list.len();
            list.retain(|(coarse, _)| last(kind.window(), *coarse) >= oldest && *coarse <= newest);
            dropped |= list.len() != before;
        }
        dropped
    }

    /// All sketches of a kind, the oldest first.
    pub fn sketches(&self, kind: Kind) -> &[(u32, Arc<Sketch>)] {
        &self.kinds[kind as usize]
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        let one = self.width * DEPTH * size_of::<AtomicU32>() + self.width * DEPTH / PAGE;
        self.kinds.iter().map(|list| list.len() * one).sum()
    }
}

/// The last bucket of a coarse one.
pub fn last(window: Window, coarse: u32) -> u32 {
    coarse.saturating_mul(window.coarse).saturating_add(window.coarse - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{DAY, HOUR};

    const NOW: UnixMillis = 1_700_000_000_000;

    #[test]
    fn an_estimate_is_never_low_and_seldom_higher_than_stated() {
        let mut tail = Tail::new(1024);
        let bucket = Kind::Views.window().bucket(NOW);
        // Zipf: the i-th product has 20,000/i views, in two buckets.
        let truth: Vec<u32> = (1..=20_000u32).map(|i| 20_000 / i).collect();
        for (i, n) in truth.iter().enumerate() {
            let hash = Hash::of(&format!("p{i}"));
            tail.add(Kind::Views, hash, bucket, n / 2);
            tail.add(Kind::Views, hash, bucket - 20, n - n / 2);
        }
        let error = tail.error(NOW).views;
        let total: u64 = truth.iter().map(|n| u64::from(*n)).sum();
        assert!(error >= total / 1024 && error <= total * 3 / 1024, "{error}");
        let mut beyond = 0;
        for (i, n) in truth.iter().enumerate() {
            let [views, units] = tail.estimate(Hash::of(&format!("p{i}")), NOW);
            assert!(views >= u64::from(*n) && units == 0, "p{i}: {views} < {n}");
            beyond += u32::from(views > u64::from(*n) + error);
        }
        assert!(beyond <= 20_000 / 50, "{beyond} estimates are beyond the bound");
    }

    #[test]
    fn the_tail_slides() {
        let mut tail = Tail::new(1);
        let hash = Hash::of("a");
        tail.add(Kind::Views, hash, Kind::Views.window().bucket(NOW), 5);
        tail.add(Kind::Units, hash, Kind::Units.window().bucket(NOW), 2);
        let bytes = tail.bytes();
        assert_eq!(tail.estimate(hash, NOW + 23 * HOUR), [5, 2]);
        assert_eq!(tail.estimate(hash, NOW + 29 * HOUR), [0, 2]);
        assert!(tail.keep(NOW + 29 * HOUR) && tail.bytes() == bytes / 2);
        assert_eq!(tail.error(NOW + 29 * HOUR).views, 0);
        assert!(tail.keep(NOW + 8 * DAY) && tail.is_empty());
    }

    #[test]
    fn pages_that_changed_bring_a_sketch_back() {
        let mut tail = Tail::new(4096);
        let other = Sketch::new(tail.width());
        let ids: Vec<Hash> = (0..500).map(|i| Hash::of(&i.to_string())).collect();
        for round in 0..3 {
            ids.iter().for_each(|hash| tail.add(Kind::Views, *hash, 7, 3));
            let sketch = tail.sketch(Kind::Views, 0);
            for (page, bytes) in sketch.changed() {
                assert!(other.restore(page, &bytes, sketch.total()));
            }
            sketch.saved();
            for hash in &ids {
                assert_eq!(other.estimate(*hash), sketch.estimate(*hash), "round {round}");
            }
        }
        assert_eq!(tail.sketch(Kind::Views, 0).changed().count(), 0);
        assert!(!other.restore(9999, &[0; 4096], 1) && !other.restore(0, &[0; 8], 1));
    }
}
