//! The state: exact counts of the products that matter, and the tail of the others. Pure, and a function of the entries
//! it was given: its time is the time of those, and not the clock's.
//!
//! While there is room a product is counted exactly. Then a newcomer goes into the tail, until what is surely its own
//! (estimate less error) is more than the lowest exact score: it changes places with that product, and brings its
//! estimate along. It is inexact until that has left the windows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::buckets::{Counts, edges};
use super::tail::{Hash, Tail, last};
use super::{Kind, Reading, score};
use crate::clock::{HOUR, UnixMillis};
use crate::event::Event;

/// By how much a clock may be behind the entries before they are taken for those of a clock that was wrong.
const SET_BACK: UnixMillis = HOUR;

/// Who has to hear of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The ranking.
    Unshown = 0,
    /// The snapshot.
    Unsaved = 1,
    /// The shared store.
    Unshared = 2,
}

const MARKS: usize = 3;

/// A product that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Its id.
    pub id: Arc<str>,
    /// Views and units.
    pub counts: [Counts; 2],
    /// From this moment on it is exact: what came from the tail has left the windows.
    pub exact_from: UnixMillis,
}

impl Product {
    fn score(&self) -> u64 {
        score(self.counts[0].sum(), self.counts[1].sum())
    }

    /// Views and units that count when the windows begin at `edges`.
    pub fn sums(&self, edges: [u32; 2]) -> [u64; 2] {
        [self.counts[0].since(edges[0]), self.counts[1].since(edges[1])]
    }
}

/// Scores of all products.
#[derive(Debug)]
pub struct Scores {
    max: usize,
    time: UnixMillis,
    slots: Vec<Option<Product>>,
    free: Vec<u32>,
    by_id: HashMap<Arc<str>, u32>,
    /// The lowest first.
    order: BTreeSet<(u64, Arc<str>)>,
    tail: Tail,
    /// By slot, which marks it has, and the slots that have each. A slot that was freed is marked too.
    flags: Vec<u8>,
    marked: [Vec<u32>; MARKS],
    /// Too old for their windows.
    ignored: u64,
}

impl Scores {
    /// Nothing yet; so many products exactly.
    pub fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            time: 0,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            order: BTreeSet::new(),
            tail: Tail::new(max),
            flags: Vec::new(),
            marked: Default::default(),
            ignored: 0,
        }
    }

    /// Takes in an event. `now` only guards against entries from a clock that ran ahead.
    pub fn apply(&mut self, event: &Event<'_>, reading: &Reading, now: UnixMillis) {
        self.advance(event.received.min(now.saturating_add(SET_BACK)));
        reading.read(event, |kind, id, n| self.add(kind, id, event.timestamp.min(event.received), n));
    }

    /// Lets time pass, and what is too old go.
    fn advance(&mut self, to: UnixMillis) {
        if to > self.time {
            let moved = edges(to) != edges(self.time);
            self.time = to;
            if moved {
                self.drop_old();
            }
        }
    }

    /// Goes back to `now` when the clock was far ahead and has been set right: what it counted ahead is dropped. True when
    /// that was so.
    pub fn set_right(&mut self, now: UnixMillis) -> bool {
        let wrong = self.time > now.saturating_add(SET_BACK);
        if wrong {
            self.time = now;
            self.drop_old();
        }
        wrong
    }

    fn drop_old(&mut self) {
        let (oldest, time) = (edges(self.time), self.time);
        for slot in 0..self.slots.len() {
            let Some(product) = &mut self.slots[slot] else { continue };
            let before = product.score();
            let mut changed = false;
            for kind in Kind::ALL {
                let newest = kind.window().bucket(time);
                changed |= product.counts[kind as usize].keep(oldest[kind as usize], newest);
            }
            if !changed {
                continue;
            }
            let (after, id) = (product.score(), product.id.clone());
            let empty = product.counts.iter().all(|counts| counts.sum() == 0);
            self.reorder(&id, before, after);
            self.mark(slot as u32);
            if empty {
                self.remove(slot as u32);
            }
        }
        self.tail.keep(self.time);
    }

    /// Counts `n` of a product at a moment.
    pub fn add(&mut self, kind: Kind, id: &str, at: UnixMillis, n: u32) {
        let window = kind.window();
        let bucket = window.bucket(at.min(self.time));
        if bucket < window.oldest(self.time) {
            self.ignored += 1;
            return;
        }
        if let Some(slot) = self.by_id.get(id).copied() {
            return self.grow(slot, kind, bucket, n);
        }
        let hash = Hash::of(id);
        if self.by_id.len() < self.max {
            let slot = self.insert(self.with_tail(id, hash));
            return self.grow(slot, kind, bucket, n);
        }
        self.tail.add(kind, hash, bucket, n);
        let [views, units] = self.tail.estimate(hash, self.time);
        let sure = score(views, units).saturating_sub(self.tail.error(self.time).score);
        if self.order.first().is_some_and(|(lowest, _)| sure > *lowest) {
            let product = self.with_tail(id, hash);
            self.evict_lowest();
            self.insert(product);
        }
    }

    fn grow(&mut self, slot: u32, kind: Kind, bucket: u32, n: u32) {
        let Some(product) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else { return };
        let before = product.score();
        product.counts[kind as usize].add(bucket, n);
        let (after, id) = (product.score(), product.id.clone());
        self.reorder(&id, before, after);
        self.mark(slot);
    }

    fn reorder(&mut self, id: &Arc<str>, before: u64, after: u64) {
        if before != after {
            let mut key = (before, id.clone());
            self.order.remove(&key);
            key.0 = after;
            self.order.insert(key);
        }
    }

    /// A product with what the tail has of it, each coarse bucket's in the last bucket it may have been in.
    fn with_tail(&self, id: &str, hash: Hash) -> Product {
        let mut product = Product { id: Arc::from(id), counts: Default::default(), exact_from: 0 };
        for kind in Kind::ALL {
            let window = kind.window();
            for (coarse, n) in self.tail.buckets(kind, hash, self.time) {
                let bucket = last(window, coarse).min(window.bucket(self.time));
                product.counts[kind as usize].add(bucket, n);
                product.exact_from = product.exact_from.max(window.leaves(bucket));
            }
        }
        product
    }

    fn evict_lowest(&mut self) {
        let Some(slot) = self.order.first().and_then(|(_, id)| self.by_id.get(id).copied()) else { return };
        let Some(product) = self.remove(slot) else { return };
        let hash = Hash::of(&product.id);
        for kind in Kind::ALL {
            let mut coarse: Vec<(u32, u32)> = Vec::new();
            for (bucket, n) in product.counts[kind as usize].iter() {
                let bucket = bucket / kind.window().coarse;
                match coarse.last_mut() {
                    Some((last, sum)) if *last == bucket => *sum = sum.saturating_add(n),
                    _ => coarse.push((bucket, n)),
                }
            }
            for (bucket, n) in coarse {
                self.tail.fold(kind, hash, bucket, n);
            }
        }
    }

    fn insert(&mut self, product: Product) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.flags.push(0);
            (self.slots.len() - 1) as u32
        });
        self.order.insert((product.score(), product.id.clone()));
        self.by_id.insert(product.id.clone(), slot);
        self.slots[slot as usize] = Some(product);
        self.mark(slot);
        slot
    }

    fn remove(&mut self, slot: u32) -> Option<Product> {
        let product = self.slots.get_mut(slot as usize)?.take()?;
        self.by_id.remove(&product.id);
        self.order.remove(&(product.score(), product.id.clone()));
        self.free.push(slot);
        self.mark(slot);
        Some(product)
    }

    fn mark(&mut self, slot: u32) {
        let Some(flags) = self.flags.get_mut(slot as usize) else { return };
        for (which, marked) in self.marked.iter_mut().enumerate() {
            if *flags & (1 << which) == 0 {
                marked.push(slot);
            }
        }
        *flags = (1 << MARKS) - 1;
    }

    /// Takes up to `most` slots that changed; they are told of no more until they change again.
    pub fn take(&mut self, mark: Mark, most: usize) -> Vec<u32> {
        let marked = &mut self.marked[mark as usize];
        // The longest waiting first.
        let taken: Vec<u32> =
            if marked.len() <= most { std::mem::take(marked) } else { marked.drain(..most).collect() };
        for slot in &taken {
            if let Some(flags) = self.flags.get_mut(*slot as usize) {
                *flags &= !(1 << mark as u8);
            }
        }
        taken
    }

    /// Puts back what was taken, as it could not be told.
    pub fn untake(&mut self, mark: Mark, slots: &[u32]) {
        for slot in slots {
            let Some(flags) = self.flags.get_mut(*slot as usize) else { continue };
            if *flags & (1 << mark as u8) == 0 {
                *flags |= 1 << mark as u8;
                self.marked[mark as usize].push(*slot);
            }
        }
    }

    /// Marks all slots, in use or not.
    pub fn mark_all(&mut self, mark: Mark) {
        let all: Vec<u32> = (0..self.slots.len() as u32).collect();
        self.untake(mark, &all);
    }

    /// Slots that changed.
    pub fn marked(&self, mark: Mark) -> usize {
        self.marked[mark as usize].len()
    }

    /// The product in a slot.
    pub fn product(&self, slot: u32) -> Option<&Product> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// A product that is counted exactly, or was when it came.
    pub fn find(&self, id: &str) -> Option<&Product> {
        self.product(*self.by_id.get(id)?)
    }

    /// How many slots there are; those in use and others.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Products that are counted singly.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The tail.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// When the latest entry was received, in Unix milliseconds.
    pub fn time(&self) -> UnixMillis {
        self.time
    }

    /// Views and sales that came too late for their windows.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Puts a product back where a snapshot had it; false when the snapshot contradicts itself.
    pub fn restore(&mut self, slot: u32, product: Product) -> bool {
        let at = slot as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, None);
            self.flags.resize(at + 1, 0);
        }
        if self.slots[at].is_some() || self.by_id.insert(product.id.clone(), slot).is_some() {
            return false;
        }
        self.order.insert((product.score(), product.id.clone()));
        self.slots[at] = Some(product);
        true
    }

    /// Puts back the tail's sketch of a coarse bucket.
    pub fn restore_tail(&mut self, kind: Kind, coarse: u32) -> &super::tail::Sketch {
        self.tail.sketch(kind, coarse)
    }

    /// Ends restoring: free slots, the time, and room as configured now.
    pub fn restored(&mut self, time: UnixMillis) {
        self.time = time;
        self.free = (0..self.slots.len() as u32).rev().filter(|slot| self.slots[*slot as usize].is_none()).collect();
        while self.by_id.len() > self.max {
            self.evict_lowest();
        }
    }

    /// Bytes it takes, as near as they can be counted.
    pub fn bytes(&self) -> usize {
        // An id: two counters and its text, in one allocation.
        let ids: usize = self.by_id.keys().map(|id| id.len() + 16 + 8).sum();
        let counts: usize =
            self.slots.iter().flatten().flat_map(|product| &product.counts).map(|counts| counts.bytes() + 8).sum();
        let slots = self.slots.capacity() * size_of::<Option<Product>>() + self.flags.capacity();
        let lists = (self.free.capacity() + self.marked.iter().map(Vec::capacity).sum::<usize>()) * size_of::<u32>();
        let map = self.by_id.capacity() * 8 / 7 * (size_of::<(Arc<str>, u32)>() + 1);
        // Nodes of a B-tree are at least half full.
        let order = self.order.len() * 2 * size_of::<(u64, Arc<str>)>();
        ids + counts + slots + lists + map + order + self.tail.bytes()
    }
}

#[cfg(test)]
#[path = "scores_tests.rs"]
mod tests;
