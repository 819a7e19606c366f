//! Who stays in the first tier: S3-FIFO (Yang et al., FIFO Queues are All You Need for Cache Eviction, SOSP 2023).
//!
//! What is new goes into a small queue, a tenth of the room. What is read there more than once moves on to the main queue;
//! the rest leaves and is remembered as a ghost, and whoever comes back as one goes to the main queue at once. So a scan
//! passes through the small queue and leaves the rest alone. In the main queue a read earns another round. Readers only
//! bump a counter in the entry: nothing is moved by a read.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Entry, NO_SLOT};

/// The small queue's part of the room.
const SMALL: u64 = 10;
/// Reads in the small queue that are worth a place in the main one.
const WORTH: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Small,
    Main,
}

/// A list through the nodes, newest at the head.
#[derive(Debug)]
struct Queue {
    head: u32,
    tail: u32,
    entries: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Node {
    /// Towards the head.
    newer: u32,
    /// Towards the tail.
    older: u32,
    which: Which,
    entry: Option<Arc<Entry>>,
}

/// The queues. No entry is known to them that is not in the map, but for the moment between the two.
#[derive(Debug)]
pub(super) struct Policy {
    max_bytes: u64,
    max_entries: usize,
    nodes: Vec<Node>,
    free: Vec<u32>,
    small: Queue,
    main: Queue,
    ghosts: Ghosts,
}

impl Policy {
    pub fn new(max_bytes: u64, max_entries: usize) -> Self {
        let queue = || Queue { head: NO_SLOT, tail: NO_SLOT, entries: 0, bytes: 0 };
        Self {
            max_bytes,
            max_entries: max_entries.min(NO_SLOT as usize - 1),
            nodes: Vec::new(),
            free: Vec::new(),
            small: queue(),
            main: queue(),
            ghosts: Ghosts::default(),
        }
    }

    pub fn entries(&self) -> usize {
        self.small.entries + self.main.entries
    }

    pub fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    /// Takes an entry in, and returns what has to go for it.
    pub fn insert(&mut self, entry: Arc<Entry>) -> Vec<Arc<Entry>> {
        let which = if self.ghosts.take(entry.hash) { Which::Main } else { Which::Small };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.nodes.push(Node { newer: NO_SLOT, older: NO_SLOT, which, entry: None });
                (self.nodes.len() - 1) as u32
            }
        };
        self.link(slot, which, entry);
        self.make_room()
    }

    /// Puts a newer value in the place that the old one earned.
    pub fn replace(&mut self, old: &Arc<Entry>, new: Arc<Entry>) -> Vec<Arc<Entry>> {
        let slot = old.slot.load(Ordering::Relaxed);
        if !self.holds(slot, old) {
            return self.insert(new);
        }
        let node = &mut self.nodes[slot as usize];
        let which = node.which;
        new.freq.store(old.freq.load(Ordering::Relaxed), Ordering::Relaxed);
        new.slot.store(slot, Ordering::Relaxed);
        old.slot.store(NO_SLOT, Ordering::Relaxed);
        let (before, after) = (old.weight(), new.weight());
        node.entry = Some(new);
        let queue = self.queue(which);
        queue.bytes = queue.bytes + after - before;
        self.make_room()
    }

    /// Forgets an entry that is no longer in the map; whether it was known.
    pub fn remove(&mut self, entry: &Arc<Entry>) -> bool {
        let slot = entry.slot.load(Ordering::Relaxed);
        let known = self.holds(slot, entry);
        if known {
            self.unlink(slot);
        }
        known
    }

    fn holds(&self, slot: u32, entry: &Arc<Entry>) -> bool {
        let held = self.nodes.get(slot as usize).and_then(|node| node.entry.as_ref());
        held.is_some_and(|held| Arc::ptr_eq(held, entry))
    }

    fn make_room(&mut self) -> Vec<Arc<Entry>> {
        let mut gone = Vec::new();
        while self.bytes() > self.max_bytes || self.entries() > self.max_entries {
            let small_is_full = self.small.bytes > self.max_bytes / SMALL
                || self.small.entries > (self.max_entries as u64 / SMALL) as usize;
            let from_small = self.small.tail != NO_SLOT && (small_is_full || self.main.tail == NO_SLOT);
            let evicted = if from_small { self.evict_small() } else { self.evict_main() };
            gone.extend(evicted);
        }
        gone
    }

    /// The oldest of the small queue goes, or moves on.
    fn evict_small(&mut self) -> Option<Arc<Entry>> {
        let slot = self.small.tail;
        let entry = self.unlink(slot)?;
        if entry.freq.load(Ordering::Relaxed) >= WORTH {
            entry.freq.store(0, Ordering::Relaxed);
            let slot = self.free.pop()?;
            self.link(slot, Which::Main, entry);
            return None;
        }
        self.ghosts.add(entry.hash, self.entries().max(64));
        Some(entry)
    }

    /// The oldest of the main queue goes, or has another round for a read.
    fn evict_main(&mut self) -> Option<Arc<Entry>> {
        let slot = self.main.tail;
        let entry = self.unlink(slot)?;
        let freq = entry.freq.load(Ordering::Relaxed);
        if freq > 0 {
            entry.freq.store(freq - 1, Ordering::Relaxed);
            let slot = self.free.pop()?;
            self.link(slot, Which::Main, entry);
            return None;
        }
        Some(entry)
    }

    fn queue(&mut self, which: Which) -> &mut Queue {
        match which {
            Which::Small => &mut self.small,
            Which::Main => &mut self.main,
        }
    }

    /// Puts an entry at the head of a queue.
    fn link(&mut self, slot: u32, which: Which, entry: Arc<Entry>) {
        entry.slot.store(slot, Ordering::Relaxed);
        let weight = entry.weight();
        let queue = self.queue(which);
        let head = std::mem::replace(&mut queue.head, slot);
        if queue.tail == NO_SLOT {
            queue.tail = slot;
        }
        queue.entries += 1;
        queue.bytes += weight;
        if let Some(head) = self.nodes.get_mut(head as usize) {
            head.newer = slot;
        }
        self.nodes[slot as usize] = Node { newer: NO_SLOT, older: head, which, entry: Some(entry) };
    }

    /// Takes a node out of its queue and makes its slot free.
    fn unlink(&mut self, slot: u32) -> Option<Arc<Entry>> {
        let node = self.nodes.get_mut(slot as usize)?;
        let entry = node.entry.take()?;
        let (newer, older, which) = (node.newer, node.older, node.which);
        if let Some(node) = self.nodes.get_mut(newer as usize) {
            node.older = older;
        }
        if let Some(node) = self.nodes.get_mut(older as usize) {
            node.newer = newer;
        }
        let weight = entry.weight();
        let queue = self.queue(which);
        if queue.head == slot {
            queue.head = older;
        }
        if queue.tail == slot {
            queue.tail = newer;
        }
        queue.entries -= 1;
        queue.bytes -= weight;
        self.free.push(slot);
        entry.slot.store(NO_SLOT, Ordering::Relaxed);
        Some(entry)
    }
}

/// Hashes of what left the small queue, oldest forgotten first. Two keys of one hash share a ghost, which does no harm.
#[derive(Debug, Default)]
struct Ghosts {
    order: VecDeque<(u64, u64)>,
    known: HashMap<u64, u64>,
    next: u64,
}

impl Ghosts {
    fn add(&mut self, hash: u64, most: usize) {
        self.next += 1;
        self.order.push_back((hash, self.next));
        self.known.insert(hash, self.next);
        // The order also holds those that came back; they count until they are passed.
        while self.order.len() > most {
            let Some((hash, at)) = self.order.pop_front() else { break };
            if self.known.get(&hash) == Some(&at) {
                self.known.remove(&hash);
            }
        }
    }

    fn take(&mut self, hash: u64) -> bool {
        self.known.remove(&hash).is_some()
    }
}
